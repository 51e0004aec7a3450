"""MEASURED: the largest eigenvalues of a curvature matrix, with bounds; outliers; the gradient in their span."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from numdl import checks, trees
from numdl.analysis import _parts
from numdl.analysis.curvature import _kinds, _memory, _operators
from numdl.krylov import lanczos
from numdl.records import record


@record
class Outliers:
    """Eigenvalues that stand apart from the ones below them."""

    count: int
    ratio: np.ndarray  # []: the last outlier / the first value of the bulk
    threshold: np.ndarray  # []: the geometric mean of those two
    certain: np.ndarray  # [] bool: the intervals on both sides of the gap are certified and do not meet


def top_eigenvalues(
    loss,
    params=None,
    batch=None,
    *,
    key,
    k=5,
    operator="hessian",
    which="largest",
    tolerance=1e-4,
    max_matvecs=1000,
    basis=None,
    start=None,
    deflate=None,
    frozen=(),
    chunk=None,
    reduction=None,
    linearize=None,
    verify=True,
):
    """MEASURED k largest eigenvalues of the curvature of a loss, with vectors, residual bounds and a verdict on each.

    Parameters
    ----------
    loss : function or Operator     (params, batch) -> scalar or (sum, weight); a `Composed` for "gauss_newton"; or an
                                Operator alone
    key : key                   of the random starts
    operator : "hessian" | "gauss_newton" | "empirical_fisher"      of the loss; for others make an Operator
    which, tolerance, max_matvecs, basis, start, deflate, verify    of `krylov.lanczos.eigenpairs`, where they are told;
                                `start` takes the `vectors` of a step before
    frozen, chunk, reduction    those of `hessian`: leaves that stay; examples at a time, for data that do not fit
    linearize : bool            keep all that does not depend on v: faster by a half for dense networks, slower for
                                convolutions on a CPU; None: choose so
    Returns
    -------
    krylov.lanczos.Eigenpairs   values, vectors (like params, 0 where nothing moves), residuals, intervals [k, 2],
                                converged [k], ceiling, noise, matvecs
    Raises
    ------
    ValueError, TypeError       bad arguments
    MemoryError                 what must be held at once is not there; the message says what and how much
    Source: Lanczos with thick restarts, as in `krylov.lanczos`.
    """
    k = checks.whole("k", k)
    settings = {"which": which, "tolerance": tolerance, "max_matvecs": max_matvecs, "basis": basis, "verify": verify}
    settings = lanczos.settings(key, k=k, **settings)
    operator = _operators.named(loss, params, batch, operator, frozen=frozen, chunk=chunk, reduction=reduction)
    checks.whole("k", k, most=operator.size)
    warm = {"start": start, "deflate": deflate}
    warm = {name: tree if tree is None else operator.inward_rows(name, tree) for name, tree in warm.items()}
    linearize = _operators.linearizes(operator, linearize)
    rows = min(operator.size, k + 60 if basis is None else settings["basis"])
    _memory.check("top_eigenvalues", _memory.needs(operator, basis=rows, extra=2 * k), least=k + 3)
    matvec = _operators.prepared(operator, linearize)
    found = lanczos.eigenpairs(key, matvec, operator.like, k=k, **warm, **settings)
    return dataclasses.replace(found, vectors=operator.outward(found.vectors, (k,)))


def gradient_overlap(loss, params, batch, vectors, *, frozen=()):
    """MEASURED share of the gradient that lies in the span of the first 1, 2, ... k orthonormal vectors, [k].

        overlap[j] = sum_{i <= j} (v_i . g)^2 / |g|^2,    g = gradient of loss(params, batch)

    Parameters
    ----------
    vectors : pytree            like params, leaves with a leading axis k: `vectors` of `top_eigenvalues`
    frozen : names              paths of leaves that stay, as for `hessian`
    Raises
    ------
    ValueError                  vectors of another shape than params
    Source: Gur-Ari, Roberts & Dyer 2018, arXiv:1812.04754.
    """
    loss = checks.returning("loss", loss, 2, "loss(params, batch)", scalar=True)
    moving, rest = trees.trainable(params, frozen=frozen)
    rows = _parts.inward_rows("vectors", vectors, rest.params(moving), rest, moving)
    return _overlap(loss, moving, rest, _parts.data("batch", batch), rows)


def outliers(values, intervals=None, *, least_ratio=1.5):
    """How many of the largest eigenvalues stand apart: above the widest gap, in ratio, of a descending list.

        count = argmax_i values[i] / values[i + 1],   0 if no ratio reaches least_ratio

    The last value of the list belongs to the bulk by construction: ask for more values than outliers are expected.

    Parameters
    ----------
    values : array [k], k >= 2  descending, positive ones count
    intervals : array [k, 2]    of the same record: whether the gap is certain
    Source: Sagun et al. 2017, arXiv:1706.04454 (as many outliers as classes, or one less).
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


@functools.partial(jax.jit, static_argnums=0)
def _overlap(loss, moving, rest, batch, rows):
    gradient = jax.grad(lambda part: _kinds.scalar(loss(rest.params(part), batch)))(moving)
    along = jax.vmap(lambda v: trees.inner(v, gradient) / trees.norm(gradient))(rows)
    return jnp.cumsum(along**2)
