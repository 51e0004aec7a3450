"""PREDICTED: moments of a softmax of Gaussian scores, by Laplace integrals: plain NumPy, one set of numbers at a time.

    1 / Z^n = integral of l^(n-1) e^(-l Z) dl / (n - 1)!,  l = e^y,  G_k(x) = exp(k x - e^x),  h_k(y) = E G_k(y + t g)

Powers of a sum of T iid terms become T-th powers of h_0. Everything is analytic in y and decays at both ends, so
that equal steps converge exponentially. 1 - h_0 is computed itself: at large T only its digits count.
"""

import functools
from typing import NamedTuple

import numpy as np

_EULER = float(np.euler_gamma)
_REACH = 9.5  # deviations of a Gaussian beyond which nothing is left in float64
_LOW = 38.0  # e^-38 is below the rounding of one
_OPPOSED = 30.0  # strongly opposed rows of larger deviation need a grid too fine and too wide


class Single(NamedTuple):
    """Of one row."""

    log_partition: float
    participation: float
    entropy: float
    response: float


class Pair(NamedTuple):
    """Of two rows whose scores are correlated."""

    overlap: float
    response: float


def single(deviation, tokens):
    """The moments of one row; nan where the deviation is not finite."""
    if not np.isfinite(deviation):
        return Single(*[np.nan] * 4)
    if deviation == 0:
        return Single(np.log(tokens), 1 / tokens, np.log(tokens), (tokens - 1) / tokens**2)
    return _single(float(deviation), float(tokens))


def pair(deviation, correlation, tokens):
    """The moments of two rows; nan where the deviation is not finite."""
    if not (np.isfinite(deviation) and np.isfinite(correlation)):
        return Pair(np.nan, np.nan)
    if deviation == 0:
        return Pair(1 / tokens, (tokens - 1) / tokens**2)
    if tokens == 2 and correlation < 0:  # the tokens of one row change places
        swapped = pair(deviation, -correlation, tokens)
        return Pair(1 - swapped.overlap, swapped.response)
    if correlation < -0.5 and deviation > _OPPOSED:
        return Pair(np.nan, np.nan)
    return _pair(float(deviation), float(np.clip(correlation, -1.0, 1.0)), float(tokens))


def decisive(deviation, tokens):
    """The size of a shift beyond which one score is above all others, or below, to rounding."""
    return deviation * (np.sqrt(2 * np.log(tokens)) + 2 * _REACH) + np.log(tokens) + _LOW


def log_partition(deviation, tokens, shift):
    """E ln(sum of T - 1 exp(s_i) and one exp(s + shift))."""
    y, step = _line(deviation, tokens, 0.125, abs(shift))
    reference, offset = _reference(y, deviation)
    logs = (tokens - 1) * _log(_below(y, deviation)) + _log(_below(y + shift, deviation))
    return offset + step * np.sum(reference - np.exp(logs))


@functools.lru_cache(maxsize=4096)
def _single(deviation, tokens):
    y, step = _line(deviation, tokens, 0.125)
    below = _below(y, deviation)
    first, second, third, fourth, surprise = _smoothed(y, deviation, (1, 2, 3, 4), surprise=True)
    logs = _log(below)
    rest = np.exp((tokens - 1) * logs)
    reference, offset = _reference(y, deviation)
    log_z = offset + step * np.sum(reference - (1 - below) * rest)
    participation = tokens * step * np.sum(second * rest)
    cubes = tokens / 2 * step * np.sum(third * rest)
    pairs = second**2 * np.exp(max(tokens - 2, 0) * logs)
    squares = tokens / 6 * step * np.sum(fourth * rest + (tokens - 1) * pairs)
    entropy = -tokens * step * np.sum((surprise + _EULER * first) * rest)
    return Single(log_z, participation, entropy, participation - 2 * cubes + squares)


@functools.lru_cache(maxsize=4096)
def _pair(deviation, correlation, tokens):
    common, own = deviation * np.sqrt(abs(correlation)), deviation * np.sqrt(1 - abs(correlation))
    if correlation > 0 and common > max(1.0, own):
        products, area = _far(common, own, tokens)
    else:
        products, area = _near(common, own, np.copysign(1.0, correlation), tokens)
    below, one_one, one_two, two_two = products
    logs = _log(below)
    rest = np.exp((tokens - 1) * logs)
    pairs = (tokens - 1) * one_one**2 * np.exp(max(tokens - 2, 0) * logs)
    overlap = tokens * area * np.sum(one_one * rest)
    return Pair(overlap, overlap + tokens * area * np.sum((two_two - 2 * one_two) * rest + pairs))


def _near(common, own, sign, tokens):
    """Products on the square (y1, y2); the common part is integrated node by node."""
    deviation = np.hypot(common, own)
    y, step = _line(deviation, tokens, 0.2, scale=own)
    if common <= 0.15 * max(1.0, own):
        nodes, weights = np.polynomial.hermite_e.hermegauss(20 if common else 1)
        weights = weights / weights.sum()
        pairs = [_functions(y[:, None] + side * common * nodes, own) for side in (1.0, sign)]
    else:
        pairs, weights = _tabulated(y, step, common, own, sign)
    (low, first, second), (other_low, other_first, other_second) = pairs
    below = (low @ weights)[:, None] + ((1 - low) * weights) @ other_low.T
    firsts, seconds = first * weights, second * weights
    return (below, firsts @ other_first.T, firsts @ other_second.T, seconds @ other_second.T), step**2


def _tabulated(y, step, common, own, sign):
    """The functions at y + u and y + sign u for the nodes u of the common part, read from one fine line."""
    parts = int(np.ceil(step / (0.3 * common)))
    reach = int(np.ceil(_REACH * common * parts / step))
    shifts = np.arange(-reach, reach + 1)
    first = np.round(y[0] * parts / step).astype(int) - reach
    count = (y.size - 1) * parts + 2 * reach + 1
    table = _functions((first + np.arange(count)) * (step / parts), own)
    places = parts * np.arange(y.size)[:, None] + reach + shifts
    other = places if sign > 0 else places[:, ::-1]
    weights = np.exp(-((shifts * (step / parts) / common) ** 2) / 2)
    return [table[:, place] for place in (places, other)], weights / weights.sum()


def _functions(y, deviation):
    """1 - h_0, h_1, h_2."""
    return np.stack([_below(y, deviation), *_smoothed(y, deviation, (1, 2))])


def _far(common, own, tokens):
    """Products on the strip (middle, difference): the common part smooths along the middle alone."""
    deviation = np.hypot(common, own)
    step = 0.2 * max(1.0, own)
    reach = np.ceil((_LOW + 14 * own) / step)
    difference = np.arange(-reach, reach + 1)  # in steps, as x; y = x +- difference / 2 is in half steps
    ends = np.ceil((_LOW + _REACH * own) / step + reach / 2), np.ceil((5 + _REACH * own) / step + reach / 2)
    x = np.arange(-ends[0], ends[1] + 1)
    places = (2 * x[:, None] + difference).astype(int), (2 * x[:, None] - difference).astype(int)
    least = min(p.min() for p in places)
    line = np.arange(least, max(p.max() for p in places) + 1) * step / 2
    table = _functions(line, own)
    (l0, h1, h2), (m0, k1, k2) = (table[:, p - least] for p in places)
    middle, along = _line(deviation, tokens, 0.2, scale=common)
    z = (x * step - middle[:, None]) / common
    density = np.exp(-(z**2) / 2) * (step / (common * np.sqrt(2 * np.pi)))
    below = step * _probability(-z) @ (h1 * (1 - m0) + (1 - l0) * k1)
    return (
        np.minimum(below, 1),
        density @ (h1 * k1),
        density @ (h1 * k2 + h2 * k1) / 2,
        density @ (h2 * k2),
    ), along * step


def _line(deviation, tokens, fineness, extra=0.0, scale=None):
    """(nodes, step): all y where a power of h_0 is neither 0 nor 1."""
    extreme = np.sqrt(2 * np.log(tokens))
    low = deviation * (extreme + _REACH) + np.log(tokens) + _LOW + extra
    high = _REACH * deviation + 5 + extra
    step = fineness * max(1.0, (deviation if scale is None else scale) / (1 + extreme))
    return np.arange(-np.ceil(low / step), np.ceil(high / step) + 1) * step, step


def _reference(y, deviation):
    """(f, a): a fall from 1 to 0 as smooth as h_0^T, and what the integral of exp(-e^y) - f is."""
    if deviation <= 1:
        return np.exp(-np.exp(np.minimum(y, 700))), 0.0
    return _probability(-y / deviation), -_EULER


def _gaussian(spacing):
    nodes = np.arange(-np.ceil(_REACH / spacing), np.ceil(_REACH / spacing) + 1) * spacing
    weights = np.exp(-(nodes**2) / 2)
    return nodes, weights / weights.sum()


def _nodes():
    """Where G_1 and higher ones live."""
    return np.arange(-400, 38) * 0.15


def _blocks(function):
    """Few rows at a time: the arrays of nodes stay small."""

    @functools.wraps(function)
    def wrapped(y, deviation, *args, **kwargs):
        flat = np.ravel(y)
        parts = [function(part, deviation, *args, **kwargs) for part in np.array_split(flat, flat.size // 8192 + 1)]
        return np.concatenate(parts, axis=-1).reshape(*parts[0].shape[:-1], *np.shape(y))

    return wrapped


@_blocks
def _below(y, deviation):
    """1 - h_0, all its digits."""
    if deviation <= 1:
        nodes, weights = _gaussian(0.3)
        return -np.expm1(-_exp(y[:, None] + deviation * nodes)) @ weights
    x = _nodes()
    return _probability((y[:, None] - x) / deviation) @ np.exp(x - np.exp(x)) * (x[1] - x[0])


@_blocks
def _smoothed(y, deviation, powers, surprise=False):
    """h_k for these k, and E x G_1(x), x = y + deviation g, if asked for: [number, y]."""
    if deviation <= 1:
        nodes, weights = _gaussian(0.3)
        x = np.minimum(y[:, None] + deviation * nodes, 50.0)
        rows = [np.exp(k * x - np.exp(x)) @ weights for k in powers]
        return np.stack([*rows, (x * np.exp(x - np.exp(x))) @ weights] if surprise else rows)
    x = _nodes()
    step = x[1] - x[0]
    kernel = np.exp(-(((y[:, None] - x) / deviation) ** 2) / 2) * (step / (deviation * np.sqrt(2 * np.pi)))
    columns = [np.exp(k * x - np.exp(x)) for k in powers]
    columns = [*columns, x * np.exp(x - np.exp(x))] if surprise else columns
    return (kernel @ np.stack(columns, axis=1)).T


def _log(below):
    """ln h_0; where rounding makes 1 - h_0 more than one, the least number that is less."""
    return np.log1p(-np.minimum(below, np.nextafter(1.0, 0.0)))


def _exp(x):
    return np.exp(np.minimum(x, 700.0))


def _probability(z):
    from scipy.special import ndtr

    return ndtr(z)
