"""MEASURED: a point where the gradient of a loss vanishes, and how many directions lead down from it."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import PyTree, ScalarLike

from numdl import checks, trees
from numdl._compiled import jit
from numdl.analysis import _parts
from numdl.precision import widen
from numdl.records import record
from numdl.typing import Loss


@record
class CriticalPoint:
    """Where the search for a vanishing gradient ended."""

    params: Any  # pytree
    loss: jax.Array  # []
    gradient_norm: jax.Array  # []
    eigenvalues: jax.Array  # [n]: of the Hessian, ascending
    index: jax.Array  # []: how many are negative, beyond rounding: 0 at a minimum
    flat: jax.Array  # []: how many are 0 within rounding
    steps: jax.Array  # []
    converged: jax.Array  # [] bool: the gradient is below the tolerance


def critical_point(
    loss: Loss,
    params: PyTree,
    batch: PyTree,
    *,
    steps: int = 200,
    tolerance: ScalarLike = 1e-6,
    damping: ScalarLike = 1e-3,
    frozen: Sequence[str] = (),
) -> CriticalPoint:
    """MEASURED critical point near params: the gradient vanishes there, at a saddle as well as at a minimum.

        step = -H (H H + damping |g| 1)^{-1} g,    halved until |g| falls: descent on |g|^2 / 2

    The Hessian is a matrix here: for up to a few thousand parameters.

    Parameters
    ----------
    loss : function             loss(params, batch) -> scalar
    params, batch : pytree      where the search begins, floating leaves [..] move; data [N, ...]
    steps : int >= 1            at most
    tolerance : scalar >= 0     of the gradient's norm; `converged` says whether it was reached
    damping : scalar >= 0       in units of the gradient's norm
    frozen : names              paths of leaves that stay; only what moves has eigenvalues
    Returns
    -------
    CriticalPoint               params, loss, gradient_norm, eigenvalues [n], index, flat, steps, converged
    Raises
    ------
    ValueError, TypeError       a number out of its range, nothing that moves, a loss that is not a scalar
    Source: Pennington & Bahri 2017, ICML; Frye et al. 2021, arXiv:2003.10397 (|g|^2 has other minima: `converged`).
    """
    steps = checks.whole("steps", steps)
    tolerance = checks.finite("tolerance", tolerance, least=0.0, shape=())
    damping = checks.finite("damping", damping, least=0.0, shape=())
    loss, moving, rest, batch = _parts.opened(loss, params, batch, frozen)
    return _critical_point(loss, moving, rest, batch, steps, tolerance, damping)


@functools.partial(jit, static_argnames="steps")
def _critical_point(loss, moving, rest, batch, steps, tolerance, damping):
    flat, unravel = trees.ravel(moving)

    def value(vector):
        return loss(rest.params(unravel(vector)), batch)

    gradient, hessian = jax.grad(value), jax.hessian(value)

    def unfinished(state):
        _, norm, count, stuck = state
        return (norm > tolerance) & (count < steps) & ~stuck

    def step(state):
        vector, norm, count, _ = state
        g, h = gradient(vector), hessian(vector)
        values, vectors = (part.astype(flat.dtype) for part in jnp.linalg.eigh(widen(h)))
        squares = values**2 + damping * norm
        alive = squares > 0
        inverse = jnp.where(alive, values / jnp.where(alive, squares, jnp.ones_like(squares)), jnp.zeros_like(squares))
        toward = -vectors @ (inverse * (vectors.T @ g))
        sizes = 0.5 ** jnp.arange(20, dtype=flat.dtype)
        norms = lax.map(lambda size: jnp.linalg.norm(gradient(vector + size * toward)), sizes)
        better = norms < norm
        size = sizes[jnp.argmax(better)]
        found = jnp.any(better)
        vector = jnp.where(found, vector + size * toward, vector)
        return vector, jnp.where(found, jnp.linalg.norm(gradient(vector)), norm), count + 1, ~found

    first = flat, jnp.linalg.norm(gradient(flat)), jnp.zeros((), jnp.int32), jnp.zeros((), bool)
    vector, norm, count, _ = lax.while_loop(unfinished, step, first)
    eigenvalues = jnp.linalg.eigvalsh(widen(hessian(vector))).astype(flat.dtype)
    # A flat direction's eigenvalue is rounding, or as small as what is left of the gradient.
    edge = flat.size * jnp.finfo(flat.dtype).eps * jnp.max(jnp.abs(eigenvalues)) + norm
    index, level = jnp.sum(eigenvalues < -edge), jnp.sum(jnp.abs(eigenvalues) <= edge)
    found = rest.params(unravel(vector))
    return CriticalPoint(found, value(vector), norm, eigenvalues, index, level, count, norm <= tolerance)
