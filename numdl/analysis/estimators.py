"""MEASURED: draws of estimators of d/dm E f(z), z ~ N(m, s2 I): their means and variances are samples' own.

    pathwise:          grad f(z)                         z = m + sqrt(s2) u
    score function:    (f(z) - baseline) (z - m) / s2    values of f only; also called REINFORCE

>>> import jax, numpy as np
>>> found = pathwise(jax.random.key(0), lambda z: z[0] ** 2, mean=np.ones(1), variance=0.25, draws=2000)
>>> found.shape, bool(abs(found.mean() - 2.0) < 5 * 1.0 / 2000**0.5)
((2000, 1), True)

Twin: theory.estimators.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key, ScalarLike

from numdl import _random, checks
from numdl._compiled import jit


def pathwise(
    key: Key[Array, ""],
    f: Callable,
    *,
    mean: Float[ArrayLike, "D"],
    variance: ScalarLike,
    draws: int,
) -> Float[Array, "draws D"]:
    """MEASURED draws of the pathwise (reparameterization) gradient.

        grad f(z),    z = m + sqrt(s2) u,    u ~ N(0, I)

    Parameters
    ----------
    key : key                   of the draws
    f : function                z [D] -> scalar, differentiable
    mean : array [D]            m
    variance : scalar           s2 > 0
    draws : int                 >= 1
    Returns
    -------
    array [draws, D]
    Raises
    ------
    ValueError, TypeError       a variance not above 0, draws < 1, f that is not real and scalar, no typed key
    Source: Kingma & Welling 2014, arXiv:1312.6114.
    Twin: theory.estimators.pathwise.    Experiment: f5.
    """
    key, f, mean, variance, draws = _admitted(key, f, mean, variance, draws)
    return _pathwise(key, f, mean, variance, draws)


def score_function(
    key: Key[Array, ""],
    f: Callable,
    *,
    mean: Float[ArrayLike, "D"],
    variance: ScalarLike,
    draws: int,
    baseline: ScalarLike = 0.0,
) -> Float[Array, "draws D"]:
    """MEASURED draws of the score-function (REINFORCE) gradient.

        (f(z) - baseline) (z - m) / s2,    z = m + sqrt(s2) u,    u ~ N(0, I)

    Parameters
    ----------
    key : key                   of the draws
    f : function                z [D] -> scalar; it needs no derivative
    mean : array [D]            m
    variance : scalar           s2 > 0
    draws : int                 >= 1
    baseline : scalar           must not depend on the draws; theory.estimators has the best one
    Returns
    -------
    array [draws, D]
    Raises
    ------
    ValueError, TypeError       as `pathwise`; a baseline that is not finite
    Source: Williams 1992, Machine Learning 8.
    Twin: theory.estimators.score_function.    Experiment: f5.
    """
    key, f, mean, variance, draws = _admitted(key, f, mean, variance, draws)
    return _score(key, f, mean, variance, draws, checks.finite("baseline", baseline, shape=()))


def _admitted(key, f, mean, variance, draws):
    checks.key("key", key)
    f = checks.returning("f", f, 1, "f(z)", scalar=True)
    mean = checks.finite("mean", checks.floating("mean", mean, ndim=1))
    return key, f, mean, checks.positive("variance", variance, shape=()), checks.whole("draws", draws)


@functools.partial(jit, static_argnames="draws")
def _pathwise(key, f, mean, variance, draws):
    return jax.vmap(jax.grad(f))(_points(key, mean, variance, draws)[0])


@functools.partial(jit, static_argnames="draws")
def _score(key, f, mean, variance, draws, baseline):
    points, scores = _points(key, mean, variance, draws)
    return (jax.vmap(f)(points) - baseline)[:, None] * scores


def _points(key, mean, variance, draws):
    """z [draws, D] and the gradient of ln p(z) with respect to m there."""
    u = _random.normal(key, (draws, *mean.shape), mean.dtype)
    root = jnp.sqrt(jnp.asarray(variance, mean.dtype))
    return mean[None] + root * u, u / root
