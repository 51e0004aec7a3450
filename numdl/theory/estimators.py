"""PREDICTED: mean and variance of estimators of d/dm E f(z), z ~ N(m, s2 I), from one draw of z.

    pathwise:          f'(z)                             z = m + sqrt(s2) u, a path from u to z
    score function:    (f(z) - baseline) (z - m) / s2    needs values of f only; also called REINFORCE

Both have the same mean, by Stein's lemma; their variances say how many draws that mean costs.
Twin: analysis.estimators. Everything is float64 NumPy.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import ArrayLike, ScalarLike

from numdl import checks, quadrature
from numdl._compiled import jit
from numdl.precision import float64
from numdl.records import record

BASELINES = ("none", "mean", "best")


@record
class GradientMoments:
    """What one draw gives."""

    mean: np.ndarray  # of the estimator: the gradient itself
    variance: np.ndarray  # of one draw; in several dimensions the sum over coordinates
    baseline: np.ndarray  # subtracted from f; 0 where there is none


def pathwise(f: Callable, *, mean: ArrayLike, variance: ScalarLike) -> GradientMoments:
    """PREDICTED mean and variance of the pathwise (reparameterization) gradient of E f(z), z one number.

        mean = E f'(z),    variance = E f'(z)**2 - mean**2

    Parameters
    ----------
    f : function                elementwise, smooth, traceable
    mean : array                m, any shape
    variance : scalar           s2 > 0
    Returns
    -------
    GradientMoments             arrays shaped like mean
    Raises
    ------
    ValueError, TypeError       a variance not above 0, a mean that is not finite, f that does not take one array
    Source: Kingma & Welling 2014, arXiv:1312.6114; Mohamed et al. 2020, arXiv:1906.10652.
    Twin: analysis.estimators.pathwise.    Experiment: f5.
    """
    f, m, s2 = _admitted(f, mean, variance)
    first, second = _moments(f, True, m, s2)
    return GradientMoments(first, second - first**2, np.zeros_like(first))


def score_function(
    f: Callable, *, mean: ArrayLike, variance: ScalarLike, baseline: str | ScalarLike = "none"
) -> GradientMoments:
    """PREDICTED mean and variance of the score-function (REINFORCE) gradient of E f(z), z one number.

        mean = E f(z) u / sqrt(s2),    variance = E (f(z) - b)**2 u**2 / s2 - mean**2,    z = m + sqrt(s2) u
        b = 0 ("none"), E f(z) ("mean") or E f(z) u**2 ("best": of least variance), or the number given

    Parameters
    ----------
    f : function                elementwise, smooth, traceable
    mean : array                m, any shape
    variance : scalar           s2 > 0
    baseline : str or scalar    "none", "mean", "best", or b
    Returns
    -------
    GradientMoments             arrays shaped like mean
    Raises
    ------
    ValueError, TypeError       a variance not above 0, a mean that is not finite, another baseline
    Source: Williams 1992, Machine Learning 8; Weaver & Tao 2001, UAI (the best baseline).
    Twin: analysis.estimators.score_function.    Experiment: f5.
    """
    f, m, s2 = _admitted(f, mean, variance)
    baseline = _baseline(baseline)
    value, first, weighted, square = _moments(f, False, m, s2)
    named = {"none": np.zeros_like(value), "mean": value, "best": weighted}
    b = named[baseline] if isinstance(baseline, str) else np.full_like(value, baseline)
    return GradientMoments(first / np.sqrt(s2), (square - 2 * b * weighted + b**2 - first**2) / s2, b)


def square_norm(
    *, dimension: int, square_mean: ArrayLike, variance: ScalarLike, baseline: str | ScalarLike = "none"
) -> dict[str, GradientMoments]:
    """PREDICTED moments of both gradients of E |z|^2 in D dimensions, summed over coordinates, with M = |m|^2.

        pathwise:          variance 4 s2 D
        score function:    ((M^2 - 2 b M + b^2) D + 2 (M - b) s2 D (D+2) + s2^2 D (D+2) (D+4)) / s2 + 4 M (D+2) - 4 M
        best baseline:     b = M + s2 (D + 2):    variance 2 s2 D (D + 2) + 4 M (D + 1)

    Parameters
    ----------
    dimension : int             D >= 1
    square_mean : array         M >= 0, any shape
    variance : scalar           s2 > 0
    baseline : str or scalar    "none", "mean" (M + s2 D), "best", or b
    Returns
    -------
    dict                        "pathwise" and "score_function": GradientMoments, `mean` being the length 2 sqrt(M)
    Raises
    ------
    ValueError, TypeError       D < 1, a negative M, a variance not above 0, another baseline
    Source: moments of the chi-squared distribution; both gradients as in Mohamed et al. 2020, arXiv:1906.10652.
    Twins: analysis.estimators.pathwise, analysis.estimators.score_function.    Experiment: f5.
    """
    d = checks.whole("dimension", dimension)
    big = checks.finite("square_mean", checks.concrete("square_mean", square_mean), least=0.0)
    s2 = checks.number("variance", variance, above=0.0)
    baseline = _baseline(baseline)
    m = np.asarray(big, np.float64)
    named = {"none": 0 * m, "mean": m + s2 * d, "best": m + s2 * (d + 2)}
    b = named[baseline] if isinstance(baseline, str) else np.full_like(m, baseline)
    powers = (m - b) ** 2 * d + 2 * (m - b) * s2 * d * (d + 2) + s2**2 * d * (d + 2) * (d + 4)
    spread = powers / s2 + 4 * m * (d + 1)
    length = 2 * np.sqrt(m)
    return {
        "pathwise": GradientMoments(length, 4 * s2 * d + 0 * m, 0 * m),
        "score_function": GradientMoments(length, spread, b),
    }


def _admitted(f, mean, variance):
    f = checks.accepts("f", f, 1, "f(z)")
    mean = checks.finite("mean", checks.concrete("mean", mean))
    variance = checks.number("variance", variance, above=0.0)
    return f, np.asarray(mean, np.float64), float(variance)


def _baseline(baseline):
    if isinstance(baseline, str) or not isinstance(baseline, int | float | np.generic | np.ndarray | jax.Array):
        return checks.one_of("baseline", baseline, BASELINES)
    return checks.number("baseline", baseline)


@float64
def _moments(f, differentiated, m, s2):
    """E f'(z) and E f'(z)^2, or E f(z), E f(z) u, E f(z) u^2 and E f(z)^2 u^2, at every m."""
    found = _integrals(f, differentiated, jnp.asarray(m).reshape(-1), jnp.asarray(s2))
    return [np.asarray(values, np.float64).reshape(m.shape) for values in found]


@functools.partial(jit, static_argnums=(0, 1))
def _integrals(f, differentiated, m, s2):
    values = jax.grad(lambda z: f(z).sum()) if differentiated else f
    powers = ((1, 0), (2, 0)) if differentiated else ((1, 0), (1, 1), (1, 2), (2, 2))

    def at(m):
        return [
            quadrature.expect(lambda y, p=p, q=q: values(m + y) ** p * (y / jnp.sqrt(s2)) ** q, s2) for p, q in powers
        ]

    return lax.map(at, m)
