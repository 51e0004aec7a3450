"""Arnoldi's method: a square matrix in the Krylov space of one vector, whose eigenvalues are Ritz values.

    A V = V H + h v_{m+1} e_m',    V' V = I,    H [m, m] upper Hessenberg

One `lax.scan`: use it inside of `jit` too. A symmetric matrix has a tridiagonal H; `lanczos` knows how to use that.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from numdl import checks
from numdl._compiled import as_tree, compiled
from numdl.krylov import _vectors
from numdl.records import record


@record
class Hessenberg:
    """The factors of m steps; rows of the basis are vectors."""

    basis: jax.Array  # [m + 1, n]: orthonormal rows, 0 once an invariant subspace is found
    matrix: jax.Array  # [m + 1, m]: H above its last row, which couples to what is not in the basis

    @property
    def square(self):
        """H, [m, m]."""
        return self.matrix[..., :-1, :]


def decompose(matvec: Callable[[Array], Array], start: Float[ArrayLike, "n"], *, num_matvecs: int) -> Hessenberg:
    """The Hessenberg factors from a start v: m products with A, each orthogonalized twice against all before.

        h[i, j] = v_i' A v_j,    h[j+1, j] v_{j+1} = A v_j - sum_{i <= j} h[i, j] v_i

    Parameters
    ----------
    matvec : function           v [n] -> A v [n]
    start : array [n]           not zero; inside of jit all factors are nan for one that is
    num_matvecs : int           m <= n; where an invariant subspace is found, zeros follow
    Returns
    -------
    Hessenberg
    Raises
    ------
    ValueError, TypeError       a start that is 0 or not a real vector, m > n, a matvec that returns another shape
    Source: Arnoldi 1951, Quart. Appl. Math. 9; Saad 2011, Numerical Methods for Large Eigenvalue Problems.
    """
    checks.accepts("matvec", matvec, 1, "matvec(v)")
    start = _vectors.nonzero("start", checks.floating("start", start, ndim=1))
    m = checks.whole("num_matvecs", num_matvecs, most=start.size)
    _vectors.look("matvec", matvec, start, start, of="start")
    return _decompose(as_tree(matvec), start, m=m)


@functools.partial(compiled, static=("m",))
def _decompose(matvec, start, m):
    matvec = _vectors.as_precise(matvec)

    def step(basis, j):
        coefficients, ahead, norm = _vectors.unit_beside(basis, matvec(basis[j]))
        return basis.at[j + 1].set(ahead), coefficients.at[j + 1].set(norm)

    basis = jnp.zeros((m + 1, start.size), start.dtype).at[0].set(start / jnp.linalg.norm(start))
    basis, columns = lax.scan(step, basis, jnp.arange(m))
    return Hessenberg(basis, columns.T)
