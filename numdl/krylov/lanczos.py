"""Eigenvalues of a symmetric matrix from products with it, each with a bound, or the word that it has not converged.

    >>> import jax, jax.numpy as jnp
    >>> from numdl.krylov import lanczos
    >>> scales = jnp.arange(100.0)
    >>> found = lanczos.eigenpairs(jax.random.key(0), lambda v: scales * v, scales, k=2)
    >>> found.values.round(2).tolist(), found.converged.tolist()
    ([99.0, 98.0], [True, True])

`eigenpairs` is Lanczos with full reorthogonalization, thick restarts and a second, random start beside what was found;
a loop in Python over compiled products. `tridiagonalize` is the plain recurrence, for use inside of `jit`.

What is proved. With R the residuals A v - theta v of k orthonormal vectors, each theta_i has an eigenvalue within
|r_i|, and k eigenvalues, counted with multiplicity, lie within the norm of R (Kahan): a ghost, a second copy of one
eigenvector, cannot be among orthonormal vectors. The i-th largest eigenvalue is never below theta_i (Cauchy). What no
product can prove is that no larger eigenvalue was missed: its eigenvector may be orthogonal to everything that was
seen. For a random start that has a probability, and `ceiling` is the bound that fails for one start in a thousand at
most; intervals that have not converged reach up to it. `converged` asks for less: a second random start, beside what
was found, has been followed until its own largest value was known to lie below. Where the k-th value is one of several
copies, any k of them are returned. All bounds include the rounding of a product, sqrt(n) eps |A| or the asymmetry seen
if that is more, but not what the loss itself loses in this precision.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Key, PyTree

from numdl import _effort, checks
from numdl._compiled import as_tree, compiled, reading_once
from numdl.krylov import _vectors
from numdl.krylov._search import Search, quotients
from numdl.records import record
from numdl.typing import Matvec


@record
class Eigenpairs:
    """Eigenvalues at one end of the spectrum and what is known about their errors; numbers in NumPy float64."""

    values: np.ndarray  # [k]: descending ("largest") or ascending ("smallest"); nan where nothing finite came
    vectors: Any = dataclasses.field(repr=False)  # pytree, leaves with a leading axis k: orthonormal
    residuals: np.ndarray  # [k]: bounds of |A v - theta v|: `eigenpairs`
    intervals: np.ndarray  # [k, 2]: each holds an eigenvalue, the i-th unless a random start has hidden one
    converged: np.ndarray  # [k] bool: residual within the tolerance, and no larger eigenvalue was met
    ceiling: np.ndarray  # []: nothing beside what was locked lies beyond, but for one start in a thousand; may be inf
    noise: np.ndarray  # []: rounding of one product, part of the intervals
    matvecs: int  # products made


@record
class Tridiagonal:
    """A Q' = Q' T + beta[-1] q_next e_m' with T symmetric tridiagonal."""

    diagonal: jax.Array  # [m]: past `count` the first entry again, a number between the Ritz values, of no weight
    off_diagonal: jax.Array  # [m]: the last one couples to what is not in the basis; 0 past `count`
    basis: jax.Array | None  # [m, n]: orthonormal rows, 0 past `count`; None without reorthogonalization
    count: jax.Array  # []: steps until the space of the start was exhausted; 0 for a start that is 0 or not finite


@reading_once
def eigenpairs(
    key: Key[Array, ""],
    matvec: Matvec,
    like: PyTree,
    *,
    k: int,
    which: str = "largest",
    tolerance: float = 1e-4,
    max_matvecs: int = 1000,
    basis: int | None = None,
    start: PyTree | None = None,
    deflate: PyTree | None = None,
    verify: bool = True,
) -> Eigenpairs:
    """The k largest (or smallest) eigenvalues of a symmetric matrix by Lanczos, with vectors, residuals, intervals.

    Parameters
    ----------
    key : key                   of the random starts
    matvec : function           v -> A v on pytrees like `like`; hand data over in a `Partial`, it is then an argument
    like : pytree               arrays, or shapes and dtypes: the form of a vector, of n numbers
    k : int                     1 <= k <= n
    which : str                 "largest" or "smallest", algebraically
    tolerance : scalar          residuals asked for, relative to the largest |eigenvalue|; below a thousand roundings
                                each takes a product of its own, above the recursion has them and one product checks all
    max_matvecs : int           products at most, at least 2 k: those of the residuals are among them
    basis : int                 vectors held at once, more than k + 2: fewer restarts for more memory; None: k + 60
    start : pytree              a warm start: vectors with a leading axis, as `vectors` of a matrix nearby
    deflate : pytree            vectors with a leading axis, to be left out: A is P A P, P the projection beside them
    verify : bool               start again at random beside what was found, to meet copies of degenerate eigenvalues
    Raises
    ------
    ValueError, TypeError       k > n, too few products or vectors, an unknown end, leaves that are not real
    Source: Wu & Simon 2000, SIAM J. Matrix Anal. 22; Parlett 1980; Kuczynski & Wozniakowski 1992.
    """
    checked = settings(key, k=k, which=which, tolerance=tolerance, max_matvecs=max_matvecs, basis=basis, verify=verify)
    tolerance, max_matvecs, basis = (checked[name] for name in ("tolerance", "max_matvecs", "basis"))
    flat, layout = _vectors.flat(matvec, like)
    left_out = _vectors.Rows(layout)
    for row in () if deflate is None else layout.rows("deflate", deflate):
        _, unit, norm = _vectors.orthonormal(left_out, row)
        if norm > 0:
            left_out.append(unit)
    k = checks.whole("k", k, most=layout.size - left_out.count)
    basis = k + 60 if basis is None else basis
    warm = None if start is None else layout.rows("start", start).sum(axis=0)
    sign = 1 if which == "largest" else -1
    search = Search(key, flat, layout, left_out, k=k, sign=sign, tolerance=tolerance, basis=basis)
    search.run(max_matvecs - k, warm, verify)
    return _certified(search, verify, max_matvecs)


def settings(
    key: Key[Array, ""],
    *,
    k: int,
    which: str,
    tolerance: float,
    max_matvecs: int,
    basis: int | None,
    verify: bool,
) -> dict[str, Any]:
    """The settings of `eigenpairs`, checked: for callers that have much to do before they come to it.

    Parameters
    ----------
    key, k, which, tolerance, max_matvecs, basis, verify : as for `eigenpairs`
    Returns
    -------
    dict                        all but key and k
    Raises
    ------
    ValueError, TypeError       as for `eigenpairs`
    """
    checks.key("key", key)
    k = checks.whole("k", k)
    return {
        "which": checks.one_of("which", which, ("largest", "smallest")),
        "tolerance": checks.positive("tolerance", tolerance, shape=()),
        "max_matvecs": checks.whole("max_matvecs", max_matvecs, least=2 * k),
        "basis": None if basis is None else checks.whole("basis", basis, least=k + 3),
        "verify": checks.flag("verify", verify),
    }


def tridiagonalize(
    matvec: Callable[[Array], Array], start: Float[ArrayLike, "n"], num_matvecs: int, *, reorthogonalize: bool = True
) -> Tridiagonal:
    """The Lanczos recurrence from a vector, without restarts: traceable, one `lax.scan`.

        beta_j q_{j+1} = A q_j - alpha_j q_j - beta_{j-1} q_{j-1}

    Parameters
    ----------
    matvec : function           v -> A v on vectors [n]
    start : array [n]           not zero; inside of jit, `count` is 0 for one that is
    num_matvecs : int           m <= n
    reorthogonalize : bool      twice against all rows; without, the rows lose their orthogonality and eigenvalues
                                come in copies, which moments and densities survive and lists of eigenvalues do not
    Returns
    -------
    Tridiagonal
    Raises
    ------
    ValueError, TypeError       a start that is 0, not finite or not a real vector, m > n, a matvec of another shape
    Source: Lanczos 1950; Paige 1972.
    """
    checks.accepts("matvec", matvec, 1, "matvec(v)")
    reorthogonalize = checks.flag("reorthogonalize", reorthogonalize)
    start = _vectors.nonzero("start", checks.floating("start", start, ndim=1))
    m = checks.whole("num_matvecs", num_matvecs, most=start.size)
    _vectors.look("matvec", matvec, start, start, of="start")
    return _recurrence(as_tree(matvec), start, m=m, reorthogonalize=reorthogonalize)


def _certified(search, verify, most):
    """The record: the pairs with bounds of their residuals."""
    if search.broken or search.size < search.k:
        return _nothing(search)
    rows, values, parts = search.best()
    scale, ceiling = np.abs(values).max(), search.ceiling()
    theta, residuals, asymmetry, more = _measured(search, rows, values[: search.k], parts, scale, most)
    if not np.isfinite(residuals).all():
        return _nothing(search)
    order = np.argsort(-theta)
    theta, residuals = theta[order], residuals[order]
    noise = np.sqrt(search.layout.size) * max(search.layout.eps * scale, float(asymmetry))
    good = residuals <= search.tolerance * scale
    if verify and not search.verified:
        good &= theta >= ceiling
    intervals = _intervals(theta, residuals + noise, np.where(good, theta + search.tolerance * scale, ceiling))
    if search.sign < 0:
        theta, intervals, ceiling = -theta, -intervals[:, ::-1], -ceiling
    found, matvecs = search.layout.unravel(rows[order]), search.used + more
    return Eigenpairs(theta, found, residuals, intervals, good, np.float64(ceiling), np.float64(noise), matvecs)


def _measured(search, rows, values, parts, scale, most):
    """(values, residuals, asymmetry, products made for them) of the rows.

    The recursion bounds the residuals, and one product with a sum of all rows shows whether it tells the truth; one
    product for each row where it does not, where the bounds are above what is asked, or rounding would be most of them.
    """
    more = search.k
    if search.exact and search.used + 1 + search.k <= most:
        rounding, more = np.sqrt(search.space.count) * search.layout.eps * scale, more + 1
        signs = np.where(np.arange(search.k) % 3 == 1, -1.0, 1.0)
        left = float(_residual_of_sum(rows, search.image(signs.astype(rows.dtype) @ rows), signs * values))
        told = np.abs(signs @ parts).sum() + np.sqrt(search.k * search.layout.size) * search.layout.eps * scale
        bounds = np.abs(parts).sum(axis=1) + rounding
        if left <= told and np.all(bounds <= search.tolerance * scale):
            return values, bounds, search.asymmetry, 1
    found = (np.asarray(x, np.float64) for x in quotients(rows, _vectors.each(search.image, rows)))
    return *found, more


def _nothing(search):
    """The record of a search that met a number that is not finite."""
    k, unknown = search.k, np.full(search.k, np.nan)
    rows = search.layout.zeros(k) + np.asarray(np.nan, search.layout.dtype)
    everything = np.tile([-np.inf, np.inf], (k, 1))
    ceiling, noise = np.float64(search.sign * np.inf), np.float64(np.nan)
    none = np.zeros(k, bool)
    return Eigenpairs(unknown, search.layout.unravel(rows), unknown, everything, none, ceiling, noise, search.used)


def _intervals(theta, radii, tops):
    """[theta - r, theta + r], up to the top where that is higher; values that cannot be told apart share one bound.

    Of p values whose intervals overlap, p eigenvalues lie within sqrt(sum r^2), a bound of the norm of R.
    """
    shared = radii.copy()
    for _ in theta:
        apart = (theta[:-1] - shared[:-1]) > (theta[1:] + shared[1:])
        groups = np.concatenate([[0], np.cumsum(apart)])
        shared = np.sqrt(np.bincount(groups, radii**2))[groups]
    return np.stack([theta - shared, np.maximum(theta + shared, tops)], axis=1)


@_effort.jit
def _residual_of_sum(rows, image, values):
    """|image - values @ rows|"""
    return jnp.linalg.norm(image - jnp.matmul(values.astype(rows.dtype), rows, precision="highest"))


@functools.partial(compiled, static=("m", "reorthogonalize"))
def _recurrence(matvec, start, m, reorthogonalize):
    first = start / jnp.linalg.norm(start)
    basis = jnp.zeros((m, start.size), start.dtype) if reorthogonalize else None

    def step(state, j):
        basis, q, before, beta = state
        basis = basis if basis is None else basis.at[j].set(q)
        w = matvec(q).astype(q.dtype)
        size = jnp.linalg.norm(w)
        alpha, w = _three_terms(w, q, before, beta)
        w = _vectors.beside(basis, w)[1] if reorthogonalize else w
        ahead, norm = _vectors.unit(w, size)
        return (basis, ahead, q, norm), (alpha, norm)

    state = (basis, first, jnp.zeros_like(first), jnp.zeros((), start.dtype))
    (basis, *_), (diagonal, off_diagonal) = lax.scan(step, state, jnp.arange(m))
    count = jnp.argmax(jnp.append(off_diagonal[:-1], jnp.zeros((), start.dtype)) == 0) + 1
    inside = jnp.arange(m) < count
    diagonal, off_diagonal = jnp.where(inside, diagonal, diagonal[:1]), jnp.where(inside, off_diagonal, 0)
    count = jnp.where(jnp.isfinite(diagonal[0]), count, 0)
    return Tridiagonal(diagonal, off_diagonal, basis, count)


def _three_terms(w, q, before, beta):
    w = w - beta * before
    alpha = jnp.vdot(q, w)
    return alpha, w - alpha * q
