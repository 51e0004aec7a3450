"""E f(sqrt(variance) z) of an f with poles, logarithms or fast growth, and whether that exists: the tanh-sinh rule.

On every piece of the line between two special points the integral becomes one over all t by

    z = left + length / (1 + exp(-pi sinh t))

which is exponentially fine at both ends: what is integrable there is integrated to rounding, and where the integrand
times the distance does not fall towards an end, the expectation is infinite or does not exist. Slower than the rules of
`quadrature`, which asks here only where its own do not do.
Source: Takahasi & Mori 1974, Publ. RIMS 9, 721-741.
"""

import math

import numpy as np

REACH = 38.0  # beyond, the Gaussian leaves float64
_LAST = 6.1  # exp(-pi sinh(6.1)) is 1e-304
_COUNTS = (403, 571, 800)


def expectation(f, deviation, places):
    """E f(deviation * z), z ~ N(0, 1), and a bound on its error; `places` are where f is special.

    inf with error inf where the expectation is infinite, nan with error inf where there is none, or f is nan somewhere.
    """
    if deviation == 0:
        value = float(f(np.zeros(1))[0])
        return value, 0.0 if math.isfinite(value) else math.inf
    inner = sorted({place / deviation for place in (0.0, *places) if abs(place) < REACH * deviation})
    edges = [-REACH, *inner, REACH]
    pieces = list(zip(edges[:-1], edges[1:], strict=True))
    coarse, middle, best = (sum(_piece(f, deviation, *piece, count)[0] for piece in pieces) for count in _COUNTS)
    ends = [end for piece in pieces for end in _piece(f, deviation, *piece, _COUNTS[-1])[1]]
    size = sum(abs(_piece(lambda x: np.abs(f(x)), deviation, *piece, _COUNTS[-1])[0]) for piece in pieces)
    if math.isnan(best):
        return math.nan, math.inf
    significant = 1e-12 * size if math.isfinite(size) else 0.0
    divergent = [sign for sign, mass, before in ends if mass > significant and mass > 0.5 * before]
    if divergent:
        return (divergent[0] * math.inf if len(set(divergent)) == 1 else math.nan), math.inf
    change = max(abs(best - coarse), abs(best - middle))
    return best, change + 10 * sum(mass for _, mass, _ in ends) + 64 * np.finfo(float).eps * size


def _piece(f, deviation, left, right, count):
    """The integral over one piece, and (sign, mass, mass further in) at its two ends."""
    t = np.linspace(-_LAST, _LAST, count)
    share = 1 / (1 + np.exp(-np.pi * np.sinh(t)))
    rest = share[::-1]
    length = right - left
    z = np.where(share < 0.5, left + length * share, right - length * rest)
    kept = (z != left) & (z != right)
    z, near = z[kept], length * np.minimum(share, rest)[kept]
    weights = length * (t[1] - t[0]) * np.pi * (np.cosh(t) * share * rest)[kept]
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        values = np.asarray(f(deviation * z), np.float64)
        within = _in_range(values)
        z, near, weights, values = z[within], near[within], weights[within], values[within]
        logs = np.log(np.abs(values)) - z**2 / 2 - math.log(2 * math.pi) / 2
        inside = np.sign(values) * np.exp(logs)
        total = float(np.sum(inside * weights))
        return total, [_end(z, near, inside, index, left if not index else right) for index in (0, -1)]


def _in_range(values):
    """All but the infinities next to the ends, where f has left its range."""
    finite = np.flatnonzero(~np.isinf(values))
    return slice(finite[0], finite[-1] + 1) if finite.size else slice(None)


def _end(z, near, inside, index, place):
    """How much may lie beyond the last node: that times its distance; in the tail, times the width of its decay."""
    if abs(place) == REACH:
        further = np.abs(inside[np.argmin(np.abs(z - place * (1 - 1 / 19)))])
        last = np.abs(inside[index])
        # Over the last nineteenth of the reach the Gaussian itself falls by exp(-74).
        return np.sign(inside[index]), float(last), float(2 * further if last < 0.9 * further else last)
    half = slice(None, len(z) // 2) if index == 0 else slice(len(z) // 2, None)
    middle = np.argmin(np.abs(np.log(near[half]) - np.log(near[index]) / 2))
    return (
        np.sign(inside[index]),
        float(np.abs(inside[index]) * near[index]),
        float(np.abs(inside[half][middle]) * near[half][middle]),
    )
