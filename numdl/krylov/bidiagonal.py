"""Singular values of a rectangular matrix from products with it and with its transpose: Golub-Kahan bidiagonalization.

    U A = B V,    V A' = B' U + (what is left) e_{m+1},    B [m, m + 1] upper bidiagonal; rows of U and of V orthonormal

Ritz values of B approach the singular values from below, the largest first. One `lax.scan`: use it inside of `jit` too.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Key, PyTree

from numdl import _random, checks
from numdl._compiled import as_tree, compiled, jit
from numdl.krylov import _vectors
from numdl.precision import widen
from numdl.records import record
from numdl.typing import Matvec


@record
class Bidiagonal:
    """The factors of m steps; rows are vectors."""

    left: jax.Array  # [m, p]: U
    right: jax.Array  # [m + 1, n]: V
    diagonal: jax.Array  # [m]
    off_diagonal: jax.Array  # [m]: to the right of the diagonal

    @property
    def square(self):
        """B, [m, m + 1]."""
        rows = jnp.arange(self.diagonal.shape[0])
        empty = jnp.zeros((rows.size, rows.size + 1), self.diagonal.dtype)
        return empty.at[rows, rows].set(self.diagonal).at[rows, rows + 1].set(self.off_diagonal)


@record
class SingularTriplets:
    """Singular values with vectors and a bound for each."""

    values: jax.Array  # [k] descending
    left: Any  # pytree like A v, leaves with a leading axis k
    right: Any  # pytree like v, leaves with a leading axis k
    residuals: jax.Array  # [k]: sqrt((|A v - s u|^2 + |A' u - s v|^2) / 2) by one more product each
    intervals: jax.Array  # [k, 2]: each contains a singular value; rounding of a product is included
    converged: jax.Array  # [k] bool: residual <= tolerance * largest value
    matvecs: int  # products with A and with A', each


def decompose(
    matvec: Callable[[Array], Array],
    transpose: Callable[[Array], Array],
    start: Float[ArrayLike, "n"],
    *,
    num_matvecs: int,
    key: Key[Array, ""] | None = None,
) -> Bidiagonal:
    """The bidiagonal factors from a start v: m products with A and m with its transpose.

        u_j = (A v_j - beta_{j-1} u_{j-1}) / alpha_j,    v_{j+1} = (A' u_j - alpha_j v_j) / beta_j

    Parameters
    ----------
    matvec, transpose : functions       v [n] -> A v [p] and u [p] -> A' u [n]
    start : array [n]           not zero; inside of jit all factors are nan for one that is
    num_matvecs : int           m <= min(n, p)
    key : key                   where the space is exhausted (equal singular values), a random direction comes next,
                                coupled by 0; without a key, zeros
    Returns
    -------
    Bidiagonal
    Raises
    ------
    ValueError, TypeError       a start that is 0, not finite or not a real vector, m too large, unfit functions
    Source: Golub & Kahan 1965, SIAM J. Numer. Anal. 2.
    """
    looked = checks.returning("matvec", matvec, 1, "matvec(v)")
    back = checks.returning("transpose", transpose, 1, "transpose(u)")
    start = _vectors.nonzero("start", checks.floating("start", start, ndim=1))
    image = jax.eval_shape(looked, start)
    checks.shape("matvec(v)", image, (None,))
    checks.shape("transpose(u)", jax.eval_shape(back, image), start.shape)
    m = checks.whole("num_matvecs", num_matvecs, most=min(start.size, image.size))

    key = None if key is None else checks.key("key", key)
    return _decompose(key, as_tree(matvec), as_tree(transpose), start, m=m)


@functools.partial(compiled, static=("m",))
def _decompose(key, matvec, transpose, start, m):
    keys = None if key is None else jax.random.split(key, (m, 2))
    matvec, transpose = map(_vectors.as_precise, (matvec, transpose))
    image = jax.eval_shape(matvec, start)

    def spare(key, like):
        return None if key is None else _random.normal(key, like.shape, like.dtype)

    def step(state, given):
        (left, right, v), (j, key) = state, given
        right = right.at[j].set(v)
        _, u, alpha = _vectors.unit_beside(left, matvec(v), spare(key if key is None else key[0], image))
        left = left.at[j].set(u)
        _, ahead, beta = _vectors.unit_beside(right, transpose(u), spare(key if key is None else key[1], start))
        return (left, right, ahead), (alpha, beta)

    left, right = jnp.zeros((m, image.size), image.dtype), jnp.zeros((m + 1, start.size), start.dtype)
    state = (left, right, start / jnp.linalg.norm(start))
    (left, right, last), (diagonal, off_diagonal) = lax.scan(step, state, (jnp.arange(m), keys))
    return Bidiagonal(left, right.at[m].set(last), diagonal, off_diagonal)


def singular_triplets(
    key: Key[Array, ""],
    matvec: Matvec,
    like: PyTree,
    *,
    k: int,
    num_matvecs: int,
    transpose: Matvec | None = None,
    tolerance: float = 1e-4,
) -> SingularTriplets:
    """The k largest singular values of A after `num_matvecs` steps from a random start, with residuals and intervals.

    There is no restart: a value that has not converged says so. Equal singular values are found once (a single start
    sees one direction of each space); `lanczos.eigenpairs` of v -> A' A v finds the copies.

    Parameters
    ----------
    key : key                   of the random start
    matvec : function           v -> A v, linear, on pytrees like `like`; hand data over in a `Partial`
    like : pytree               arrays, or shapes and dtypes
    k : int                     values asked for
    num_matvecs : int           k <= num_matvecs <= the smaller side of A
    transpose : function        u -> A' u; None: by `jax.linear_transpose`
    tolerance : scalar          relative to the largest value
    Returns
    -------
    SingularTriplets
    Raises
    ------
    ValueError, TypeError       k or num_matvecs too large, a tolerance that is not positive, functions that do not fit
    Source: Golub & Kahan 1965; Parlett 1980, for [[0, A], [A', 0]].
    """
    checks.key("key", key)
    tolerance = checks.positive("tolerance", tolerance, shape=())
    matvec, layout = _vectors.flat(matvec, like, square=False, spread=False)
    image = _vectors.image("matvec", matvec.matvec, layout.form)
    outer = _vectors.layout("matvec(like)", image)
    most = min(layout.size, outer.size)
    steps = checks.whole("num_matvecs", num_matvecs, most=most)
    k = checks.whole("k", k, most=steps)
    if transpose is not None:
        transpose = as_tree(checks.accepts("transpose", transpose, 1, "transpose(u)"))
        checks.like("transpose(u)", _vectors.image("transpose", transpose, image), layout.form, of="like", shapes=True)
    return _triplets(key, matvec.matvec, transpose, layout, outer, k, steps, float(tolerance))


@functools.partial(jit, static_argnums=(3, 4, 5, 6))
def _triplets(key, matvec, transpose, layout, outer, k, steps, tolerance):
    def forward(v):
        return outer.ravel(matvec(layout.unravel(v)))

    def backward(u):
        if transpose is not None:
            return layout.ravel(transpose(outer.unravel(u)))
        like = layout.unravel(jnp.zeros(layout.size, layout.dtype))
        return layout.ravel(jax.linear_transpose(matvec, like)(outer.unravel(u))[0])

    found = decompose(forward, backward, _random.normal(key, (layout.size,), layout.dtype), num_matvecs=steps)
    turn_left, values, turn_right = jnp.linalg.svd(widen(found.square), full_matrices=False)
    left = jnp.matmul(turn_left[:, :k].T, found.left, precision="highest")
    right = jnp.matmul(turn_right[:k], found.right, precision="highest")
    values = values[:k]
    missed = lax.map(lambda row: forward(row[0]) - row[1] * row[2], (right, values, left))
    behind = lax.map(lambda row: backward(row[0]) - row[1] * row[2], (left, values, right))
    residuals = jnp.sqrt((jnp.sum(missed**2, axis=1) + jnp.sum(behind**2, axis=1)) / 2)
    # Past the rank that the start sees there are no vectors, and nothing is known.
    residuals = jnp.where(jnp.sum(right**2, axis=1) * jnp.sum(left**2, axis=1) > 0.5, residuals, values[0])
    noise = float((layout.size + outer.size) ** 0.5 * max(layout.eps, outer.eps)) * values[0]
    radius = residuals + noise
    intervals = jnp.stack([jnp.maximum(values - radius, 0.0), values + radius], axis=1)
    good = (residuals <= tolerance * values[0]) & jnp.isfinite(residuals)
    return SingularTriplets(values, outer.unravel(left), layout.unravel(right), residuals, intervals, good, steps + k)
