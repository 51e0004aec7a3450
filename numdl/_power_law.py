"""Parts of `statistics.power_law`: the fit over all cuts at once, its goodness, the laws it is held against."""

import math

import numpy as np

CUTS = 256  # at most so many places are tried as the cut


def fit(values, least):
    """(exponent, cut, distance, tail) of sorted values: the cut whose tail is nearest to its power law."""
    n = len(values)
    starts = np.unique(np.searchsorted(values, values[: n - least + 1]))  # the first of equal ones
    starts = starts[np.unique(np.linspace(0, len(starts) - 1, CUTS).astype(int))]
    logs = np.log(values)
    tails = n - starts
    above = np.cumsum(logs[::-1])[::-1][starts] - tails * logs[starts]
    exponents = 1 + tails / np.where(above > 0, above, np.nan)
    distances = np.array([_distance(logs[start:], exponent) for start, exponent in zip(starts, exponents)])
    if np.isnan(distances).all():  # equal values
        return math.nan, math.nan, math.nan, 0
    best = np.nanargmin(distances)
    return exponents[best], values[starts[best]], distances[best], int(tails[best])


def _distance(logs, exponent):
    """Kolmogorov-Smirnov: between the share of the tail at or below x and 1 - (x / cut)^(1 - exponent)."""
    if np.isnan(exponent):
        return math.nan
    model = 1 - np.exp((1 - exponent) * (logs - logs[0]))
    ranks = np.arange(len(logs) + 1) / len(logs)
    return max(np.abs(model - ranks[1:]).max(), np.abs(model - ranks[:-1]).max())


def goodness(values, fitted, least, draws, random):
    """The share of samples of the fitted law, body as observed, that lie further from their own fit than the data."""
    exponent, cut, distance, tail = fitted
    body, n = values[: len(values) - tail], len(values)
    further = 0
    for _ in range(draws):
        above = random.binomial(n, tail / n) if len(body) else n
        sample = cut * random.random(above) ** (1 / (1 - exponent))
        sample = np.sort(np.concatenate([random.choice(body, n - above), sample])) if n > above else np.sort(sample)
        further += fit(sample, least)[2] >= distance
    return further / draws


def against(values, fitted):
    """{law: z}: log-likelihood of the power law over the other's in its standard errors; negative: the other is better.

    Vuong's test. Both are laws of the tail alone, each with its most likely parameters.
    """
    exponent, cut, _, tail = fitted
    x = values[len(values) - tail :]
    logs = np.log(x / cut)
    own = np.log((exponent - 1) / cut) - exponent * logs
    rate = 1 / np.mean(x - cut)
    others = {"exponential": np.log(rate) - rate * (x - cut), "lognormal": _lognormal(logs) - np.log(x)}
    return {name: _vuong(own - other) for name, other in others.items()}


def _vuong(difference):
    spread = difference.std()
    return float(difference.sum() / (math.sqrt(len(difference)) * spread)) if spread > 0 else 0.0


def _lognormal(logs):
    """Log-density of ln(x / cut) under the Gaussian, cut at 0, under which it is most likely."""
    from scipy.optimize import minimize
    from scipy.stats import norm

    def density(law):
        mean, deviation = law[0], math.exp(law[1])
        return norm.logpdf(logs, mean, deviation) - norm.logsf(0.0, mean, deviation)

    start = [logs.mean(), math.log(max(logs.std(), 1e-12))]
    found = minimize(lambda law: -np.mean(density(law)), start, method="Nelder-Mead", options={"maxiter": 2000})
    return density(found.x)
