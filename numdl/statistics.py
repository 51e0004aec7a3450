"""Numbers with their errors, in NumPy float64: means over seeds, slopes, a prediction beside its measurement.

False alarms. A test that compares a Monte Carlo mean with an exact value fails by chance once in a while. Give the
whole suite one budget and every test its share: `z_limit(tests)` is the threshold for |z| such that `tests` tests
together raise a false alarm with probability at most `budget`: 5.61 for 50 tests, 6.00 for 500, 6.36 for 5000 at one in
a million. It counts on Gaussian means: many samples, no heavy tails; test logarithms of what is heavy-tailed.

    >>> from numdl import statistics
    >>> found = statistics.agreement(2.0, [1.9, 2.2, 2.1, 2.0])
    >>> print(f"{found.mean:.2f} +- {found.stderr:.2f}, z = {found.z:.2f}")
    2.05 +- 0.06, z = 0.77
    >>> print(f"{statistics.z_limit(50):.2f}")
    5.61
"""

import math
from collections.abc import Sequence
from statistics import NormalDist

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Key

from numdl import _power_law, checks
from numdl.records import record


@record
class Mean:
    """A mean over independent samples and its standard error."""

    mean: np.ndarray  # [...]
    stderr: np.ndarray  # [...]: standard deviation (n - 1) / sqrt(n)
    count: int


@record
class Agreement:
    """A prediction beside the mean of samples."""

    predicted: np.ndarray  # [...]
    mean: np.ndarray  # [...]
    stderr: np.ndarray  # [...]
    z: np.ndarray  # [...]: (mean - predicted) / stderr
    relative: np.ndarray  # [...]: (mean - predicted) / |predicted|


@record
class Slope:
    """A least-squares line with the interval of its slope."""

    value: float
    stderr: float
    low: float
    high: float
    intercept: float


@record
class PowerLaw:
    """A power law fitted to the largest of some values, and whether it is one."""

    exponent: float  # alpha of the density x^-alpha; nan where too few values differ
    stderr: float  # (alpha - 1) / sqrt(tail), the cut taken as known
    cut: float  # smallest value of the tail
    tail: int  # values in it
    distance: float  # Kolmogorov-Smirnov
    p: float  # share of samples of this law that lie further from their own fit; nan without a key
    exponential: float  # log-likelihood over that of an exponential tail, in standard errors; < 0: that one is better
    lognormal: float  # the same of a lognormal tail

    @property
    def plausible(self):
        """p >= 0.1, and neither other law better by two standard errors: what the authors ask for; False if unknown."""
        return bool(self.p >= 0.1 and self.exponential > -2 and self.lognormal > -2)


def mean_and_error(samples: ArrayLike | Sequence, axis: int = 0) -> Mean:
    """Mean and standard error of independent samples along an axis.

        stderr = sqrt(sum (s_i - mean)**2 / (n - 1)) / sqrt(n);   exactly 0 where all samples are equal

    Parameters
    ----------
    samples : array             n >= 2 along `axis`, real numbers
    axis : int                  of the samples
    Returns
    -------
    Mean                        fields without that axis
    Raises
    ------
    ValueError                  fewer than 2 samples, or no such axis
    TypeError                   samples that are not real numbers
    Source: elementary.
    """
    values = _numbers("samples", samples)
    axis, count = _count(values, axis)
    # In units of the largest, a power of two: squares of 1e-200 are 0, and those of 1e200 infinite.
    unit = _exponent(values, axis)
    scaled, unit = np.ldexp(values, -unit), np.squeeze(unit, axis)
    with np.errstate(over="ignore", invalid="ignore"):
        mean, deviation = np.ldexp(scaled.mean(axis=axis), unit), np.ldexp(scaled.std(axis=axis, ddof=1), unit)
    # The mean of equal numbers is off by rounding, and would leave a spread of that size.
    lowest = values.min(axis=axis)
    equal = lowest == values.max(axis=axis)
    return Mean(np.where(equal, lowest, mean)[()], np.where(equal, 0.0, deviation / np.sqrt(count))[()], count)


def agreement(predicted: ArrayLike | Sequence, samples: ArrayLike | Sequence, axis: int = 0) -> Agreement:
    """The prediction beside the mean of samples, apart in standard errors (z) and relative to the prediction.

        z = (mean - predicted) / stderr,    relative = (mean - predicted) / |predicted|

    Where all samples are equal, stderr is 0: z is 0 if mean and prediction agree within rounding (16 units in the last
    place of the samples' dtype) and infinite otherwise. A prediction of 0 makes `relative` 0 or infinite.

    Parameters
    ----------
    predicted : array [...]     shape of the mean, or one number for all
    samples : array             independent along `axis`
    axis : int                  of the samples
    Returns
    -------
    Agreement                   fields without that axis
    Raises
    ------
    ValueError, TypeError       fewer than 2 samples, the shapes differ, not real numbers
    Source: the definition.
    """
    measured = mean_and_error(samples, axis)
    expected = _numbers("predicted", predicted)
    shape = np.shape(measured.mean)
    if expected.shape not in ((), shape):
        raise checks.BadValue(f"predicted must have shape {shape} or be one number; got {expected.shape}")
    expected = np.broadcast_to(expected, shape)
    with np.errstate(invalid="ignore"):
        gap = measured.mean - expected
    rounding = 16 * _epsilon(samples) * np.maximum(np.abs(expected), np.abs(measured.mean))
    exact = (measured.stderr == 0) & (np.abs(gap) <= rounding)
    z = np.where(exact, 0.0, _ratio(gap, measured.stderr))
    return Agreement(expected[()], measured.mean, measured.stderr, z[()], _ratio(gap, np.abs(expected))[()])


def slope(x: ArrayLike | Sequence, y: ArrayLike | Sequence, confidence: float = 0.95) -> Slope:
    """Least-squares slope of y against x, with Student's interval for independent errors of one variance.

    Parameters
    ----------
    x, y : array [n]            n >= 3; x not all equal
    confidence : scalar         probability that [low, high] covers the slope
    Returns
    -------
    Slope(value, stderr, low, high, intercept)
    Raises
    ------
    ValueError, TypeError       too few points, different shapes, equal x, confidence outside (0, 1)
    Source: elementary.
    """
    from scipy.special import stdtrit

    x, y = _numbers("x", x), _numbers("y", y)
    _check_line(x, 3, y=y)
    confidence = checks.number("confidence", confidence)
    if not 0 < confidence < 1:
        raise checks.BadValue(f"confidence must be in (0, 1); got {confidence}")
    value, intercept, stderr = _line(x, y)
    half = stdtrit(x.size - 2, (1 + confidence) / 2) * stderr
    return Slope(value, stderr, value - half, value + half, intercept)


def extrapolate(x: ArrayLike | Sequence, means: ArrayLike | Sequence, stderrs: ArrayLike | Sequence) -> Mean:
    """The limit at x = 0 of means with known standard errors, by weighted least squares of a line.

    With x = 1 / width it removes the leading bias of a finite network, which no tolerance need then hide.

    Parameters
    ----------
    x, means, stderrs : array [n]   n >= 2, x not all equal, stderrs > 0; independent
    Returns
    -------
    Mean                        of the limit, its standard error, n
    Raises
    ------
    ValueError, TypeError       fewer than 2 points, different shapes, equal x, a standard error not above 0
    Source: elementary.
    """
    x, means, stderrs = _numbers("x", x), _numbers("means", means), _numbers("stderrs", stderrs)
    _check_line(x, 2, means=means, stderrs=stderrs)
    checks.positive("stderrs", stderrs)
    order = np.argsort(stderrs)  # the heavy rows first: QR is then right row by row, however far apart the weights are
    means, scaled = means[order], stderrs[order] / stderrs.min()
    line = np.stack([np.ones_like(x), np.ldexp(x, -_exponent(x, 0))], axis=1)[order]
    q, r = np.linalg.qr(line / scaled[:, None])
    weights = np.linalg.solve(r, q.T)[0]
    return Mean(weights / scaled @ means, np.linalg.norm(weights) * stderrs.min(), x.size)


def power_law(
    values: ArrayLike | Sequence, *, least: int | None = None, key: Key[Array, ""] | None = None, draws: int = 200
) -> PowerLaw:
    """The power law nearest to the largest of the values, its exponent (tail index), and whether it is one at all.

        alpha = 1 + n / sum_i ln(x_i / cut),    over the n values >= cut

    The cut is the one of at most 256 values whose tail is nearest to its law in the Kolmogorov-Smirnov distance.
    A straight line through a doubly logarithmic plot is not a test: `plausible` asks for `p` and against two other
    laws. A tail of a hundred values seldom tells a power law from an exponential: do not let it be too short.

    Parameters
    ----------
    values : array [N]          > 0; zeros are left out
    least : int                 values that the tail must have, >= 10; None: a fifth of them, and 30
    key : key                   of the samples that give p; None: p is nan
    draws : int                 samples, each fitted anew
    Returns
    -------
    PowerLaw                    nan where fewer than `least` values are left, or all are equal
    Raises
    ------
    ValueError, TypeError       negative values or not finite, least < 10, draws < 1
    Source: Clauset, Shalizi & Newman 2009, arXiv:0706.1062; Vuong 1989 (the other laws).
    """
    least = None if least is None else checks.whole("least", least, least=10)
    key, draws = None if key is None else checks.key("key", key), checks.whole("draws", draws)
    values = checks.finite("values", checks.array("values", _numbers("values", values), ndim=1), least=0.0)
    values = np.sort(values[values > 0])
    least = max(30, math.ceil(len(values) / 5)) if least is None else least
    found = _power_law.fit(values, least) if len(values) >= least else (math.nan, math.nan, math.nan, 0)
    if math.isnan(found[0]):
        return PowerLaw(math.nan, math.nan, math.nan, 0, math.nan, math.nan, math.nan, math.nan)
    p, others = math.nan, _power_law.against(values, found)
    if key is not None:
        random = np.random.default_rng(np.asarray(jax.random.key_data(key)).ravel())
        p = _power_law.goodness(values, found, least, draws, random)
    exponent, cut, distance, tail = found
    error = (exponent - 1) / math.sqrt(tail)
    return PowerLaw(*map(float, (exponent, error, cut)), tail, float(distance), p, **others)


def z_limit(tests: int, budget: float = 1e-6) -> float:
    """The threshold for |z| at which `tests` tests together raise a false alarm with probability at most `budget`.

        P(|Z| > z_limit) = budget / tests,   Z ~ N(0, 1)

    Parameters
    ----------
    tests : int                 >= 1
    budget : scalar             probability in (0, 1)
    Raises
    ------
    ValueError, TypeError       no tests, a budget outside (0, 1)
    Source: Bonferroni's inequality.
    """
    checks.whole("tests", tests)
    budget = checks.number("budget", budget, above=0.0)
    if budget >= 1:
        raise checks.BadValue(f"budget must be a probability below 1; got {budget}")
    return -NormalDist().inv_cdf(budget / tests / 2)


def _check_line(x, least, **others):
    if x.ndim != 1 or x.size < least:
        got = x.item() if not x.ndim else f"shape {x.shape}"
        raise checks.BadValue(f"x must be at least {least} numbers in one axis, not all equal; got {got}")
    for name, other in others.items():
        if other.shape != x.shape:
            got = other.item() if not other.ndim else f"shape {other.shape}"
            raise checks.BadValue(f"{name} must have the shape of x, {x.shape}; got {got}")
        checks.finite(name, other)
    if np.ptp(checks.finite("x", x)) == 0:
        raise checks.BadValue(
            f"x must be at least {least} numbers in one axis, not all equal; got {x[0]} everywhere, shape {x.shape}"
        )


def _line(x, y):
    unit = _exponent(x, 0)[0], _exponent(y, 0)[0]
    x, y = (np.ldexp(values, -power) for values, power in zip((x, y), unit))
    across = x - x.mean()
    weight = (across**2).sum()
    value = (across * (y - y.mean())).sum() / weight
    residual = y - y.mean() - value * across
    stderr = np.sqrt((residual**2).sum() / (x.size - 2) / weight)
    scale = unit[1] - unit[0]
    with np.errstate(over="ignore"):
        intercept = np.ldexp(y.mean() - value * x.mean(), unit[1])
        return np.ldexp(value, scale), intercept, np.ldexp(stderr, scale)


def _exponent(values, axis):
    """Of the power of two next to the largest of the values, as an array that keeps the axis."""
    return np.frexp(np.abs(values).max(axis=axis, keepdims=True))[1]


def _numbers(name, value):
    """Real numbers of any dtype as float64; a bool is not one."""
    value = checks.native(name, value)
    array = checks.array(name, value, kind="real", empty=True)
    if array.dtype == bool:
        raise checks.BadType(f"{name} must be real numbers; got dtype {array.dtype}, shape {array.shape}")
    return np.asarray(array).astype(np.float64)


def _count(values, axis):
    if not values.ndim:
        raise checks.BadValue(f"samples must have an axis of independent samples; got {values.item()}")
    axis = checks.whole("axis", axis, least=-values.ndim, most=values.ndim - 1)
    if values.shape[axis] < 2:
        raise checks.BadValue(f"samples must hold at least 2 along axis {axis}; got shape {values.shape}")
    return axis, values.shape[axis]


def _epsilon(samples):
    dtype = np.asarray(samples).dtype
    return float(jnp.finfo(dtype).eps) if jnp.issubdtype(dtype, jnp.floating) else np.finfo(np.float64).eps


def _ratio(gap, size):
    """gap / size, 0 for 0/0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((gap == 0) & (size == 0), 0.0, np.asarray(gap) / size)
