"""MEASURED: the largest eigenvalues of a curvature matrix, with bounds; outliers; the gradient in their span."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Key, PyTree, ScalarLike

from numdl import checks, trees
from numdl._compiled import compiled
from numdl.analysis import _parts
from numdl.analysis.curvature import _kinds, _matrices, _memory, _operators
from numdl.krylov import lanczos
from numdl.records import record
from numdl.typing import Loss


@record
class Outliers:
    """Eigenvalues that stand apart from the ones below them."""

    count: int
    ratio: np.ndarray  # []: the last outlier / the first value of the bulk
    threshold: np.ndarray  # []: the geometric mean of those two
    certain: np.ndarray  # [] bool: the intervals on both sides of the gap are certified and do not meet


def top_eigenvalues(
    loss: Loss | _operators.Operator,
    params: PyTree = None,
    batch: PyTree = None,
    *,
    key: Key[Array, ""],
    k: int = 5,
    operator: str = "hessian",
    which: str = "largest",
    tolerance: ScalarLike = 1e-4,
    max_matvecs: int = 1000,
    basis: int | None = None,
    start: PyTree = None,
    deflate: PyTree = None,
    frozen: Sequence[str] = (),
    chunk: int | str | None = None,
    reduction: str | None = None,
    linearize: bool | None = None,
    verify: bool = True,
) -> lanczos.Eigenpairs:
    """MEASURED k largest Hessian eigenvalues of a loss (or another curvature's), with residual bounds and verdicts.

    Parameters
    ----------
    loss : function or Operator     (params, batch) -> scalar or (sum, weight); a `Composed` for "gauss_newton"; or an
                                Operator alone, which has its own params and batch
    params, batch : pytree      floating leaves [..] move; data [N, ...]
    key : key                   of the random starts
    k : int >= 1                how many
    operator : "hessian" | "gauss_newton" | "empirical_fisher"      of the loss; for others make an Operator
    which, tolerance, max_matvecs, basis, verify : as in `krylov.lanczos.eigenpairs`
    start, deflate : pytree     like params, leaves with a leading axis: guesses (`vectors` of a step before); vectors
                                to stay orthogonal to. None: none
    frozen, chunk, reduction : as in `hessian`; leaves that stay; examples at a time; "mean" or "sum": with it, or
                                with chunk="auto", as many at a time as fit and are fast
    linearize : bool            keep all that does not depend on v; None: unless convolutions make it slow, on a CPU
    Returns
    -------
    Eigenpairs                  values [k], vectors (like params, 0 where nothing moves), residuals [k],
                                intervals [k, 2], converged [k], ceiling, noise, matvecs
    Raises
    ------
    ValueError, TypeError       bad arguments, k above the number of parameters, an Operator and params
    MemoryError                 what must be held at once is not there; the message says what and how much
    Source: Lanczos with thick restarts, as in `krylov.lanczos`.    Experiments: e1, e2.
    """
    k = checks.whole("k", k)
    settings = {"which": which, "tolerance": tolerance, "max_matvecs": max_matvecs, "basis": basis, "verify": verify}
    settings = lanczos.settings(key, k=k, **settings)

    def rows(size):
        return min(size, k + 60 if basis is None else settings["basis"])

    held = {"vectors": lambda size: 2 * rows(size) + 2 * k}
    operator = _matrices.named(loss, params, batch, operator, frozen=frozen, chunk=chunk, reduction=reduction, **held)
    checks.whole("k", k, most=operator.size)
    warm = {"start": start, "deflate": deflate}
    warm = {name: tree if tree is None else operator.inward_rows(name, tree) for name, tree in warm.items()}
    operator, linearize = _operators.settled(operator, linearize)
    plan = _memory.needs(operator, basis=rows(operator.size), extra=2 * k)
    _memory.check("top_eigenvalues", plan, operator, least=k + 3)
    matvec = _operators.prepared(operator, linearize)
    found = lanczos.eigenpairs(key, matvec, operator.like, k=k, **warm, **settings)
    return dataclasses.replace(found, vectors=operator.outward(found.vectors, (k,)))


def gradient_overlap(
    loss: Loss, params: PyTree, batch: PyTree, vectors: PyTree, *, frozen: Sequence[str] = ()
) -> Float[Array, "k"]:
    """MEASURED share of the gradient that lies in the span of the first 1, 2, ... k orthonormal vectors, [k].

        overlap[j] = sum_{i <= j} (v_i . g)^2 / |g|^2,    g = gradient of loss(params, batch)

    Parameters
    ----------
    loss : function             (params, batch) -> scalar
    params, batch : pytree      floating leaves [..] move; data [N, ...]
    vectors : pytree            like params, leaves with a leading axis k: `vectors` of `top_eigenvalues`
    frozen : names              paths of leaves that stay, as for `hessian`
    Returns
    -------
    array [k]                   shares 0..1, not descending; nan where the gradient is 0
    Raises
    ------
    ValueError, TypeError       vectors of another shape than params, a loss that is not a scalar
    Source: Gur-Ari, Roberts & Dyer 2018, arXiv:1812.04754.    Experiment: e2.
    """
    loss = checks.returning("loss", loss, 2, "loss(params, batch)", scalar=True)
    moving, rest = trees.trainable(params, frozen=frozen)
    batch = _parts.data("batch", batch)
    rows = _parts.inward_rows("vectors", vectors, rest.params(moving), rest, moving)
    return _overlap(loss, moving, rest, batch, rows)


def outliers(values: ArrayLike, intervals: ArrayLike | None = None, *, least_ratio: ScalarLike = 1.5) -> Outliers:
    """How many of the largest eigenvalues stand apart (Hessian outliers): above the widest gap of a descending list.

        count = argmax_i values[i] / values[i + 1],   0 if no ratio reaches least_ratio

    The last value of the list belongs to the bulk by construction: ask for more values than outliers are expected.

    Parameters
    ----------
    values : array [k], k >= 2  descending, positive ones count
    intervals : array [k, 2]    of the same record: whether the gap is certain; None: it is not
    least_ratio : scalar > 0    what the widest gap must reach to count
    Returns
    -------
    Outliers                    count, ratio, threshold, certain
    Raises
    ------
    ValueError, TypeError       fewer than two values, not descending, not finite, intervals of another shape
    Source: Sagun et al. 2017, arXiv:1706.04454 (as many outliers as classes, or one less).    Experiments: e1, e2.
    """
    values = np.asarray(checks.finite("values", checks.array("values", values, ndim=1)), np.float64)
    checks.positive("least_ratio", least_ratio, shape=())
    if values.size < 2 or np.any(np.diff(values) > 0):
        raise checks.BadValue(f"values must be at least 2 numbers in descending order; got {values}")
    if intervals is not None:
        intervals = checks.shape("intervals", checks.array("intervals", intervals), (values.size, 2))
    above, below = values[:-1], np.maximum(values[1:], np.finfo(np.float64).tiny)
    ratios = np.where(above > 0, above / below, 0.0)
    place = int(np.argmax(ratios))
    count = place + 1 if ratios[place] >= least_ratio else 0
    low = np.full(values.size, -np.inf) if intervals is None else np.asarray(intervals)[:, 0]
    high = np.full(values.size, np.inf) if intervals is None else np.asarray(intervals)[:, 1]
    certain = bool(count) and bool(low[place] > high[place + 1])
    return Outliers(count, ratios[place], np.sqrt(max(above[place], 0.0) * below[place]), np.asarray(certain))


@compiled
def _overlap(loss, moving, rest, batch, rows):
    gradient = jax.grad(lambda part: _kinds.scalar(loss(rest.params(part), batch)))(moving)
    along = jax.vmap(lambda v: trees.inner(v, gradient) / trees.norm(gradient))(rows)
    return jnp.cumsum(along**2)
