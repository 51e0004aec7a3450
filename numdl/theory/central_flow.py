"""PREDICTED: where gradient descent goes on average when it oscillates at the edge of stability.

    w' = -learning_rate (g + (1/2) grad <Sigma, H(w)>),     Sigma >= 0,   H <= 2 / learning_rate,
    <Sigma, 2 / learning_rate - H> = 0                      time in steps, g the gradient, H the Hessian

Sigma is the covariance of the oscillation, along eigenvectors that have reached the limit, and just so large that its
push on the sharpness holds it there. Where nothing has, it is gradient flow. In a step Sigma solves a small convex
problem: min (1/2) <X, B X> + <A, X> over X >= 0 in the span of the sharpest eigenvectors.
Source: Cohen, Damian, Talwalkar, Kolter & Lee 2025, arXiv:2410.24206. Twin: analysis.descent.path.

    >>> import jax.numpy as jnp
    >>> valley = lambda w: 0.5 * w[0] ** 2 * (1 + w[1]) - 0.05 * w[1]  # sharper and sharper along the way
    >>> found = central_flow(valley, jnp.zeros(2), learning_rate=0.5, steps=200)
    >>> float(found.sharpness[-1].round(3)), float(found.variance[-1].round(3))  # 2 / 0.5; 2 * 0.05 holds it
    (4.0, 0.1)
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import ArrayLike, PyTree

from numdl import checks
from numdl._compiled import compiled
from numdl.precision import float64
from numdl.records import record

ROUNDS = 200  # of the projected gradient method for Sigma


@record
class CentralFlow:
    """The flow at whole steps, from where it starts."""

    path: np.ndarray  # [T + 1, P]: parameters, in the order of the tree's leaves
    loss: np.ndarray  # [T + 1]: there
    sharpness: np.ndarray  # [T + 1]: largest eigenvalue of the Hessian there
    variance: np.ndarray  # [T + 1]: trace of Sigma, E |w - average|^2 of gradient descent; 0 below the edge
    mean_loss: np.ndarray  # [T + 1]: loss + variance / learning_rate, the average along gradient descent


def central_flow(
    loss: Callable[[PyTree], ArrayLike],
    params: PyTree,
    *,
    learning_rate: ArrayLike,
    steps: int,
    substeps: int = 2,
    directions: int = 2,
) -> CentralFlow:
    """PREDICTED average of gradient descent over its oscillations (central flow), beyond the edge of stability too.

        w' = -learning_rate (gradient + (1/2) grad <Sigma, H>),     average loss = loss(w) + trace Sigma / learning_rate

    Euler's method with the Hessian as a matrix: for P parameters in the hundreds. Where the Hessian begins above
    2 / learning_rate the first step forces it below, which gradient descent does not do.

    Parameters
    ----------
    loss : function             params -> scalar, three times differentiable
    params : pytree             where it starts, floating leaves
    learning_rate : scalar      h > 0
    steps : int                 T >= 1, of gradient descent
    substeps : int              of the flow within one, >= 1; the error falls like its reciprocal
    directions : int            eigenvectors that may oscillate at once, >= 1; 0 is gradient flow
    Returns
    -------
    CentralFlow                 rows at steps 0 ... T, float64
    Raises
    ------
    ValueError, TypeError       a loss that is not a function of params to a scalar, a learning rate not above 0, counts
    Source: Cohen, Damian, Talwalkar, Kolter & Lee 2025, arXiv:2410.24206.
    Twin: analysis.descent.path.    Experiment: d17.
    """
    loss = checks.returning("loss", loss, 1, "loss(params)", scalar=True)
    params = jax.tree.map(functools.partial(checks.floating, "params"), checks.leaves("params", params))
    rate = checks.number("learning_rate", learning_rate, above=0.0)
    steps, substeps = checks.whole("steps", steps), checks.whole("substeps", substeps)
    directions = checks.whole("directions", directions, least=0)
    return _flow(loss, params, float(rate), steps, substeps, directions)


@float64
def _flow(loss, params, rate, steps, substeps, directions):
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, float), params)
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    rows = _rows(loss, params, jnp.asarray(rate), steps=steps, substeps=substeps, directions=min(directions, size))
    path, values, sharpness, variance = map(np.asarray, rows)
    return CentralFlow(path, values, sharpness, variance, values + variance / rate)


@functools.partial(compiled, static=("steps", "substeps", "directions"))
def _rows(loss, params, rate, steps, substeps, directions):
    w, unravel = ravel_pytree(params)
    flat_loss = lambda w: loss(unravel(w))  # noqa: E731
    advance = functools.partial(_substep, flat_loss, rate, rate / substeps, directions)

    def step(w, _):
        moved, first = advance(w)
        moved = jax.lax.fori_loop(1, substeps, lambda _, w: advance(w)[0], moved)
        return moved, (w, flat_loss(w), *first)

    last, rows = jax.lax.scan(step, w, None, length=steps)
    end = (last, flat_loss(last), *advance(last)[1])
    return jax.tree.map(lambda row, one: jnp.concatenate([row, one[None]]), rows, end)


def _substep(loss, rate, time, directions, w):
    """(w after it, (sharpness, trace of Sigma) before it)."""
    # NumPy for what is known: each operation of jax's on known numbers would be a program of its own.
    gradient, push = jax.linearize(jax.grad(loss), w)
    values, vectors = jnp.linalg.eigh(jax.vmap(push)(np.eye(w.size)))
    if not directions:
        return w - time * gradient, (values[-1], jnp.zeros(()))
    top = vectors[:, -directions:]
    _, pull = jax.vjp(lambda w: _block(loss, w, top), w)
    units = np.eye(directions**2).reshape(-1, directions, directions)
    pushes = jax.vmap(pull)(units)[0].reshape(directions, directions, -1)  # d<u_i, H u_j> / dw
    slack = np.eye(directions) * (2 / rate - values[None, -directions:])
    linear = slack + time * pushes @ gradient
    quadratic = time / 2 * jnp.einsum("ijp,klp->ijkl", pushes, pushes)
    sigma = _complement(linear, quadratic)
    moved = w - time * (gradient + jnp.einsum("ij,ijp->p", sigma, pushes) / 2)
    return moved, (values[-1], jnp.trace(sigma))


def _block(loss, w, vectors):
    products = jax.vmap(lambda v: jax.jvp(jax.grad(loss), (w,), (v,))[1], in_axes=1, out_axes=1)(vectors)
    return vectors.T @ products


def _complement(linear, quadratic):
    """X >= 0 with linear + quadratic X >= 0 and no product between them, by Nesterov's method on the convex problem."""
    size = len(linear)
    bound = jnp.linalg.norm(quadratic.reshape(size**2, size**2))
    step = 1 / jnp.where(bound > 0, bound, 1.0)

    def better(state, number):
        x, ahead = state
        slope = linear + jnp.einsum("ijkl,kl->ij", quadratic, ahead)
        new = _positive_part(ahead - step * (slope + slope.T) / 2)
        return (new, new + number / (number + 3) * (new - x)), None

    start = jnp.zeros_like(linear)
    return jax.lax.scan(better, (start, start), np.arange(ROUNDS, dtype=linear.dtype))[0][0]


def _positive_part(matrix):
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * jnp.maximum(values, 0)[None]) @ vectors.T
