"""MEASURED: a gradient method at work: its path, its loss and the sharpness of what it walks on.

Twin: theory.descent, which says where the method becomes unstable, how fast it is and what it learns when.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree

from numdl import checks
from numdl.krylov import lanczos
from numdl.records import record


@record
class Sharpness:
    """The largest eigenvalue of the Hessian, as far as a few products tell."""

    value: jax.Array  # []: never above the eigenvalue, but for rounding
    residual: jax.Array  # []: |H v - value v|: an eigenvalue lies that near
    vector: Any  # like the parameters, of unit length


@record
class Descent:
    """A run of a gradient method with its sharpness, every `every` steps."""

    loss: jax.Array  # [steps]: before each step
    step: np.ndarray  # [n]: at which the following were measured
    sharpness: jax.Array  # [n]: of the (preconditioned) Hessian
    residual: jax.Array  # [n]
    params: Any  # after the last step


def sharpness(loss, params, batch, *, start, num_matvecs, preconditioner=None):
    """MEASURED largest eigenvalue of the Hessian of loss(., batch) by Lanczos from `start`; traceable.

    Warm starts make it cheap along a run: hand the last `vector` in. For a certificate that nothing larger was missed
    ask `analysis.curvature.top_eigenvalues`.

    Parameters
    ----------
    loss : function             (params, batch) -> scalar
    start : pytree              like params, not zero and not orthogonal to the eigenvector
    num_matvecs : int           Hessian-vector products
    preconditioner : pytree     positive entries P like params: the eigenvalues are those of P^{-1/2} H P^{-1/2}
    """
    checks.function("loss", loss)
    start = checks.like("start", start, params)
    if preconditioner is not None:
        preconditioner = checks.like("preconditioner", preconditioner, params)
    flat, unravel = ravel_pytree(params)
    size = checks.whole("num_matvecs", num_matvecs)
    weights = jnp.ones_like(flat) if preconditioner is None else 1 / jnp.sqrt(ravel_pytree(preconditioner)[0])
    gradient = jax.grad(lambda w: loss(unravel(w), batch))
    product = jax.linearize(gradient, flat)[1]
    matvec = lambda v: weights * product(weights * v)  # noqa: E731
    found = lanczos.tridiagonalize(matvec, ravel_pytree(start)[0], min(size, flat.size))
    coupling = found.off_diagonal[:-1]
    matrix = jnp.diag(found.diagonal) + jnp.diag(coupling, 1) + jnp.diag(coupling, -1)
    values, vectors = jnp.linalg.eigh(matrix)
    vector = jnp.matmul(vectors[:, -1], found.basis, precision="highest")
    residual = jnp.abs(found.off_diagonal[-1] * vectors[-1, -1])
    return Sharpness(values[-1], residual, unravel(vector / jnp.linalg.norm(vector)))


def along(key, loss, params, batch, optimizer, *, steps, every, num_matvecs=12, preconditioner=None):
    """MEASURED loss and sharpness along a full-batch run: is it at the edge of stability?

    One compiled loop; each measurement starts from the eigenvector of the one before.

    Parameters
    ----------
    key : key                   of the first Lanczos start
    loss : function             (params, batch) -> scalar
    optimizer : GradientTransformation      of optax; hand the same object in again, and nothing is compiled again
    steps, every : int          `steps` a multiple of `every`; sharpness is measured before steps 0, every, 2 every ...
    num_matvecs : int           Hessian-vector products for each measurement
    preconditioner : function   (optimizer state, step) -> pytree P as in `sharpness`, such as `adam_preconditioner`
    Source: Cohen et al. 2021, arXiv:2103.00065; Cohen et al. 2022, arXiv:2207.14484.
    """
    checks.key("key", key)
    checks.function("loss", loss)
    checks.whole("every", every)
    checks.whole("num_matvecs", num_matvecs)
    if checks.whole("steps", steps) % every:
        raise ValueError(f"steps must be a multiple of every = {every}; got {steps}")
    losses, values, residuals, params = _along(
        key, params, batch, loss, optimizer, steps // every, every, num_matvecs, preconditioner
    )
    return Descent(losses.reshape(-1), np.arange(0, steps, every), values, residuals, params)


def adam_preconditioner(*, b2=0.999, eps=1e-8):
    """The diagonal sqrt(v / (1 - b2^t)) + eps of optax's adam, for `along`; t = 1 before the first step."""

    def diagonal(memory, step):
        import optax

        moments = optax.tree.get(memory, "nu")
        return jax.tree.map(lambda v: jnp.sqrt(v / (1 - b2 ** jnp.maximum(step, 1).astype(v.dtype))) + eps, moments)

    return diagonal


def path(loss, params, optimizer, *, steps):
    """MEASURED parameters at every step of a gradient method on loss(params): leaves [steps + 1, ...]; traceable."""
    import optax

    checks.function("loss", loss)
    checks.whole("steps", steps, least=0)

    def step(state, _):
        params, memory = state
        update, memory = optimizer.update(jax.grad(loss)(params), memory, params)
        return (optax.apply_updates(params, update), memory), params

    (last, _), before = lax.scan(step, (params, optimizer.init(params)), None, length=steps)
    return jax.tree.map(lambda rows, end: jnp.concatenate([rows, end[None]]), before, last)


def mode_strength(matrices, *, left, right):
    """MEASURED strength of modes of a deep linear network x W_1 ... W_D: right_i' W_1 ... W_D left_i; traceable.

    Parameters
    ----------
    matrices : sequence         W_1 [d_0, d_1], ..., W_D [d_{D-1}, d_D]
    left, right : arrays        [modes, d_D], [modes, d_0]: singular vectors of what is to be learned
    Returns
    -------
    array [modes]
    """
    checks.shape("right", right, (None, matrices[0].shape[0]))
    checks.shape("left", left, (right.shape[0], matrices[-1].shape[1]))
    through = functools.reduce(jnp.matmul, matrices, right)
    return jnp.sum(through * left, axis=1)


@functools.partial(jax.jit, static_argnums=(3, 4, 5, 6, 7, 8))
def _along(key, params, batch, loss, optimizer, rounds, every, num_matvecs, preconditioner):
    import optax

    flat, unravel = ravel_pytree(params)
    first = unravel(jax.random.normal(key, flat.shape, flat.dtype))

    def step(state, _):
        params, memory = state
        value, gradient = jax.value_and_grad(loss)(params, batch)
        update, memory = optimizer.update(gradient, memory, params)
        return (optax.apply_updates(params, update), memory), value

    def measure(state, index):
        (params, memory), vector = state
        metric = None if preconditioner is None else preconditioner(memory, index * every)
        found = sharpness(loss, params, batch, start=vector, num_matvecs=num_matvecs, preconditioner=metric)
        after, losses = lax.scan(step, (params, memory), None, length=every)
        return (after, found.vector), (losses, found.value, found.residual)

    ((params, _), _), measured = lax.scan(measure, ((params, optimizer.init(params)), first), jnp.arange(rounds))
    return *measured, params
