"""MEASURED: Laplace's approximation of a posterior over parameters, from a curvature whose errors are known.

    p(params | data) ~ N(params*, (scale A + prior_precision I)^-1)

A is a curvature of the mean loss at the optimum params*, scale what makes the mean loss minus the log likelihood (the
number of examples, over the noise variance where there is one). An Operator of `analysis.curvature` says which part of
the parameters is uncertain: `curvature.restrict(operator, "readout")` makes a last-layer approximation.

With all eigenpairs (`k=None`) it is exact linear algebra. With the k largest all others lie between 0 and what Lanczos
certifies, so that each variance and the evidence come as two bounds (to within the eigenpairs' residuals). Of
`curvature.kronecker` all eigenpairs are known by their factors, for networks of any size.

    >>> import jax, jax.numpy as jnp
    >>> from numdl.analysis import curvature
    >>> x = jnp.array([[1.0], [2.0]])
    >>> outputs, half_square = lambda w, batch: batch[0] @ w, lambda z, batch: jnp.mean((z - batch[1]) ** 2) / 2
    >>> operator = curvature.gauss_newton(outputs, half_square, jnp.array([[0.5]]), (x, jnp.ones((2, 1))))
    >>> found = posterior(operator, scale=2.0, prior_precision=1.0)  # precision 1 + 1 + 4
    >>> [f"{float(v):.3f}" for v in predict(found, lambda w, x: x @ w, x).covariance.ravel()]  # x^2 / 6
    ['0.167', '0.667']
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Key, PyTree, ScalarLike

from numdl import _random, checks
from numdl._compiled import jit
from numdl.analysis.curvature import Kronecker, Operator, _operators, top_eigenvalues
from numdl.analysis.curvature._kinds import Hessian
from numdl.analysis.curvature._kronecker import transformed
from numdl.krylov import _vectors
from numdl.records import record
from numdl.typing import Apply

DENSE = 5000  # parameters up to which all eigenpairs are computed


@record
class Posterior:
    """A Gaussian over the coordinates of a curvature, by eigenpairs of its matrix; n coordinates, k pairs."""

    operator: Any
    values: np.ndarray  # [k]: eigenvalues of A, descending
    rows: Any  # [k, n]: eigenvectors; None of Kronecker factors, which have them
    ceiling: np.ndarray  # []: all other eigenvalues lie in [0, ceiling]; 0 where there are no others
    scale: np.ndarray  # []
    prior_precision: np.ndarray  # []
    proper: np.ndarray  # [] bool: scale A + prior_precision I is positive definite; what follows is nan if not


@record
class Prediction:
    """Outputs for new inputs, Gaussian by linearization in the parameters."""

    mean: jax.Array  # [N, c]: the network's own outputs
    covariance: jax.Array  # [N, c, c]: J C J', an upper bound where eigenvalues are missing
    least: jax.Array  # [N, c, c]: a lower bound; the same where none is missing


@record
class Evidence:
    """ln p(data), in nats: between two bounds, which are one number where no eigenvalue is missing."""

    least: np.ndarray  # []
    most: np.ndarray  # []


def posterior(
    operator: Operator | Kronecker,
    *,
    scale: ScalarLike,
    prior_precision: ScalarLike,
    k: int | None = None,
    key: Key[Array, ""] | None = None,
) -> Posterior:
    """MEASURED Laplace approximation at the operator's parameters.

        covariance = (scale A + prior_precision I)^-1

    Parameters
    ----------
    operator : Operator or Kronecker    A, of `curvature.gauss_newton` (or `hessian`, `fisher`, a block of one), or
                                its factors, of `curvature.kronecker`
    scale : scalar              > 0: examples, over the noise variance of a regression
    prior_precision : scalar    > 0: the prior is N(0, I / prior_precision)
    k : int                     eigenpairs, the largest; None: all, of at most 5000 or of Kronecker factors
    key : key                   of Lanczos's random starts; needed with k alone
    Returns
    -------
    Posterior
    Raises
    ------
    ValueError, TypeError       not an Operator, numbers not above 0, all of too many eigenpairs, k without a key or
                                of a Hessian, whose other eigenvalues may be negative, or of factors
    Source: MacKay 1992, Neural Computation 4; Immer, Korzepa & Bauer 2021, arXiv:2008.08400.    Experiment: f16.
    """
    hint = "from curvature.gauss_newton, hessian, fisher or kronecker"
    checks.instance("operator", operator, (Operator, Kronecker), hint=hint)
    scale = np.float64(checks.positive("scale", scale, shape=()))
    precision = np.float64(checks.positive("prior_precision", prior_precision, shape=()))
    k = None if k is None else checks.whole("k", k, most=operator.size)
    key = key if k is None and key is None else checks.key("key", key)
    if isinstance(operator, Kronecker):
        values, rows, ceiling = _of_factors(operator, k)
    else:
        values, rows, ceiling = _all(operator) if k is None else _largest(operator, k, key)
    lowest = scale * values.min() + precision
    return Posterior(operator, values, rows, ceiling, scale, precision, np.asarray(lowest > 0))


def predict(posterior: Posterior, apply: Apply, x: Float[ArrayLike, "N ..."]) -> Prediction:
    """MEASURED outputs and their covariance, the function linearized in the parameters (generalized linear model).

        mean = f(x, params*),    covariance = J C J',    J = df/dparams

    Parameters
    ----------
    posterior : Posterior
    apply : function            (params, x [N, ...]) -> outputs [N, c]; its rows do not mix
    x : array [N, ...]
    Returns
    -------
    Prediction
    Raises
    ------
    ValueError, TypeError       not a Posterior, outputs that are not [N, c]
    Source: Immer, Korzepa & Bauer 2021, arXiv:2008.08400, section 3.    Experiment: f16.
    """
    checks.instance("posterior", posterior, Posterior, hint="made by laplace.posterior")
    apply = checks.returning("apply", apply, 2, "apply(params, x)")
    x = checks.floating("x", x, least_ndim=2)
    shape = getattr(jax.eval_shape(apply, posterior.operator.params, x), "shape", ())
    if len(shape) != 2 or shape[0] != len(x):
        raise checks.BadValue(f"apply must return outputs of shape [{len(x)}, c]; got shape {tuple(shape)}")
    if isinstance(posterior.operator, Kronecker):
        mean, covariance = _predicted_by_factors(posterior, apply, x)
        return Prediction(mean, covariance, covariance)
    return Prediction(*_predicted(posterior.operator, posterior.rows, _gains(posterior), apply, x))


def draw(key: Key[Array, ""], posterior: Posterior, *, draws: int) -> PyTree:
    """MEASURED parameters drawn from the posterior, what is certain as it is; leaves have a leading axis [draws].

        params* + C^(1/2) z,    z ~ N(0, I)

    Parameters
    ----------
    key : key                   of z
    posterior : Posterior       directions without an eigenpair have the prior's variance
    draws : int                 >= 1
    Returns
    -------
    params                      like the operator's, with a leading axis
    Raises
    ------
    ValueError, TypeError       not a Posterior, draws < 1, no typed key
    Source: the definition.    Experiment: f16.
    """
    checks.key("key", key)
    checks.instance("posterior", posterior, Posterior, hint="made by laplace.posterior")
    draws = checks.whole("draws", draws)
    if isinstance(posterior.operator, Kronecker):
        return _drawn_by_factors(key, posterior, draws)
    return _drawn(key, posterior.operator, posterior.rows, *_roots(posterior), draws)


def evidence(posterior: Posterior, misfit: ScalarLike) -> Evidence:
    """MEASURED logarithm of the evidence (marginal likelihood), by Laplace's method.

        ln p(data) = -misfit - prior_precision / 2 |params*|^2 - 1/2 sum_i ln(1 + scale lambda_i / prior_precision)

    |params*|^2 is over the coordinates of the operator. Exact for a Gaussian likelihood that is linear in them.

    Parameters
    ----------
    posterior : Posterior
    misfit : scalar             -ln p(data | params*), constants included if they are to count
    Returns
    -------
    Evidence                    in nats
    Raises
    ------
    ValueError, TypeError       not a Posterior, a misfit that is not a finite number
    Source: MacKay 1992, Neural Computation 4, eq. (2.7).    Experiment: f16.
    """
    checks.instance("posterior", posterior, Posterior, hint="made by laplace.posterior")
    misfit = np.float64(checks.finite("misfit", misfit, shape=()))
    own = sum(np.sum(np.asarray(leaf, np.float64) ** 2) for leaf in jax.tree.leaves(posterior.operator.like))
    ratio = posterior.scale / posterior.prior_precision
    with np.errstate(invalid="ignore"):
        known = np.sum(np.log1p(ratio * posterior.values)) if posterior.proper else np.nan
    most = -misfit - posterior.prior_precision * own / 2 - known / 2
    missing = posterior.operator.size - len(posterior.values)
    spared = missing * np.log1p(ratio * posterior.ceiling) / 2 if missing else 0.0
    return Evidence(np.asarray(most - spared), np.asarray(most))


# ---- eigenpairs ----------------------------------------------------------------------------------------------------


def _all(operator):
    if operator.size > DENSE:
        raise checks.BadValue(
            f"k must be given for an operator of more than {DENSE} coordinates; got None and {operator.size}"
        )
    matvec, layout = _vectors.flat(
        _operators.prepared(*_operators.settled(operator, None)), operator.like, spread=False
    )
    matrix = np.asarray(_vectors.products(matvec, jnp.eye(layout.size, dtype=layout.dtype)), np.float64)
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    # What rounding has left below 0 of a semidefinite matrix is 0.
    noise = layout.size * layout.eps * np.abs(values).max()
    values = np.where(np.abs(values) <= noise, np.maximum(values, 0.0), values)
    return values[::-1], jnp.asarray(vectors.T[::-1], layout.dtype), np.float64(0.0)


def _largest(operator, k, key):
    if isinstance(operator.kind, Hessian):
        raise checks.BadValue(
            f"k must be None for a Hessian, whose other eigenvalues may be negative (gauss_newton's are not); got {k!r}"
        )
    found = top_eigenvalues(operator, key=key, k=k)
    layout = _vectors.layout("operator", operator.like)
    rows = layout.rows("vectors", operator.inward_rows("vectors", found.vectors))
    ceiling = np.float64(0.0) if k == operator.size else max(found.intervals[-1, 1], 0.0)
    return np.maximum(found.values, 0.0), rows, np.float64(ceiling)


def _of_factors(operator, k):
    if k is not None:
        raise checks.BadValue(f"k must be None for Kronecker factors, whose eigenpairs are all known; got {k!r}")
    found = np.concatenate([np.asarray(values, np.float64) for values in operator.eigenvalues.values()])
    return np.sort(found)[::-1], None, np.float64(0.0)


# ---- covariances ---------------------------------------------------------------------------------------------------


def _gains(posterior):
    """Of C = b I + V' diag(a) V the pairs (a, b): with the largest variances and with the least; nan if improper."""
    own = posterior.scale * posterior.values + posterior.prior_precision
    pairs = []
    for rest in (posterior.prior_precision, posterior.scale * posterior.ceiling + posterior.prior_precision):
        rest = np.float64(1.0) / rest if posterior.proper else np.nan
        pairs.append((1.0 / own - rest, rest))
    return jax.tree.map(lambda number: np.asarray(number, posterior.rows.dtype), pairs)


def _roots(posterior):
    own = posterior.scale * posterior.values + posterior.prior_precision
    rest = 1.0 / np.sqrt(posterior.prior_precision) if posterior.proper else np.nan
    with np.errstate(invalid="ignore"):
        pair = 1.0 / np.sqrt(own) - rest, rest
    return [np.asarray(number, posterior.rows.dtype) for number in pair]


@jit
def _predicted(operator, rows, gains, apply, x):
    layout = _vectors.layout("operator", operator.like)
    here = layout.ravel(operator.like)

    def one(x):
        def outputs(v):
            return apply(operator._whole(layout.unravel(v)), x[None])[0]

        slopes = jax.jacrev(outputs)(here)
        along = jnp.matmul(slopes, rows.T, precision="highest")
        square = jnp.matmul(slopes, slopes.T, precision="highest")
        turned = [jnp.matmul(along * a[None], along.T, precision="highest") + b * square for a, b in gains]
        return outputs(here), *turned

    return lax.map(one, jnp.asarray(x))


@functools.partial(jit, static_argnames="draws")
def _drawn(key, operator, rows, along, rest, draws):
    layout = _vectors.layout("operator", operator.like)
    z = _random.normal(key, (draws, layout.size), layout.dtype)
    inside = jnp.matmul(z, rows.T, precision="highest") * along[None]
    moved = layout.ravel(operator.like)[None] + rest * z + jnp.matmul(inside, rows, precision="highest")
    return jax.vmap(lambda v: operator._whole(layout.unravel(v)))(moved)


def _shrunk(posterior, v, power):
    """(scale A + prior_precision I)^power v of coordinates, by Kronecker factors."""

    def function(values):
        scale, precision = (jnp.asarray(n, values.dtype) for n in (posterior.scale, posterior.prior_precision))
        return (scale * values + precision) ** power

    return transformed(posterior.operator, v, function)


@jit
def _predicted_by_factors(posterior, apply, x):
    operator = posterior.operator
    layout = _vectors.layout("operator", operator.like)
    here = layout.ravel(operator.like)

    def one(x):
        def outputs(v):
            return apply(operator.rest.params(layout.unravel(v)), x[None])[0]

        slopes = jax.jacrev(outputs)(here)
        turned = jax.vmap(lambda row: layout.ravel(_shrunk(posterior, layout.unravel(row), -1.0)))(slopes)
        return outputs(here), jnp.matmul(slopes, turned.T, precision="highest")

    return lax.map(one, jnp.asarray(x))


@functools.partial(jit, static_argnames="draws")
def _drawn_by_factors(key, posterior, draws):
    operator = posterior.operator
    layout = _vectors.layout("operator", operator.like)

    def one(z):
        step = _shrunk(posterior, layout.unravel(z), -0.5)
        return operator.rest.params(jax.tree.map(jnp.add, operator.like, step))

    return jax.vmap(one)(_random.normal(key, (draws, layout.size), layout.dtype))
