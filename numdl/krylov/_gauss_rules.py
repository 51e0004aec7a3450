"""Gauss rules of the spectral density from the three-term recurrence of Lanczos, and sums over their nodes.

The doors are in krylov.trace. Source: Golub & Welsch 1969, Math. Comp. 23.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from numdl import checks
from numdl._compiled import jit
from numdl.krylov import _vectors
from numdl.records import record


@record
class Quadrature:
    """Gauss rules of the spectral density seen from random starts: mean over starts of sum_j weights f(nodes)."""

    nodes: np.ndarray  # [starts, m] float64: Ritz values, ascending; where Lanczos ended early the last one is repeated
    weights: np.ndarray  # [starts, m] float64: each row sums to 1; 0 for what is repeated
    size: int  # n: the trace of f(A) is n times the mean

    def sums(self, function):
        """sum_j weights f(nodes) of each start, [starts]; f's value counts only where there is weight."""
        return weighted_sums(self.weights, self.nodes, function)


def weighted_sums(weights: np.ndarray, nodes: np.ndarray, function: Callable) -> np.ndarray:
    """The sum of weights * function(nodes) along the last axis; where a weight is 0 the value is not looked at.

    Parameters
    ----------
    weights, nodes : array [..., m]     as a `Quadrature` holds them
    function : function                 of the nodes, elementwise
    Raises
    ------
    ValueError, TypeError               no function, or one that returns another shape
    """
    checks.accepts("function", function, 1, "function(eigenvalues)")
    values = checks.array("function(eigenvalues)", function(nodes), kind="number")
    if values.shape:  # else a constant
        checks.shape("function(eigenvalues)", values, nodes.shape)
    return np.sum(weights * np.where(weights == 0, 0.0, values), axis=-1)


def rule(q, matvec, layout, steps, reorthogonalize):
    """Nodes and weights seen from a unit vector q: eigenvalues of the tridiagonal matrix, squares of first entries."""
    before, beta = jnp.zeros_like(q), jnp.zeros((), q.dtype)
    space, diagonal, off_diagonal = _vectors.Rows(layout), [], []
    eager = getattr(matvec.matvec, "eager", False)
    for _ in range(steps):
        step = _advance(None, matvec(q), q, before, beta) if eager else _advance(matvec, q, q, before, beta)
        before, (q, alpha, beta) = q, step
        if reorthogonalize:
            space.append(before)
            _, q, norm = _vectors.orthonormal(space, q)
            beta = beta * np.asarray(norm, q.dtype)
        diagonal.append(alpha)
        off_diagonal.append(beta)
    diagonal, off_diagonal = (np.asarray(jax.device_get(part), np.float64) for part in (diagonal, off_diagonal))
    if not np.isfinite(np.concatenate([diagonal, off_diagonal])).all():
        return np.full(steps, np.nan), np.full(steps, np.nan)
    # A coupling of 0 says that the start's Krylov space is spanned: what follows is no part of the matrix.
    count = int(np.argmax(np.append(off_diagonal[:-1], 0.0) == 0)) + 1
    coupling = off_diagonal[: count - 1]
    nodes, turn = np.linalg.eigh(np.diag(diagonal[:count]) + np.diag(coupling, 1) + np.diag(coupling, -1))
    empty = (0, steps - count)
    return np.pad(nodes, empty, mode="edge"), np.pad(turn[0] ** 2, empty)


@jit
def _advance(matvec, w, q, before, beta):
    """(next unit vector, alpha, beta) of the three-term recurrence; w is A q, or q if A is still to be applied."""
    w = w if matvec is None else matvec(w)
    size = jnp.linalg.norm(w)
    alpha = jnp.vdot(q, w, precision="highest")
    w = w - alpha * q - beta * before
    norm = jnp.linalg.norm(w)
    norm = jnp.where(norm > 8 * jnp.finfo(w.dtype).eps * size, norm, jnp.zeros_like(norm))
    return jnp.where(norm > 0, w / jnp.where(norm > 0, norm, jnp.ones_like(norm)), jnp.zeros_like(w)), alpha, norm
