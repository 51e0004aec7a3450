"""What does it cost to differentiate through chance?

Lecture: estimators of gradients (score function, baseline, pathwise)

Question
--------
The gradient of a mean over random z can be had from one draw of z in two ways: through the draw (pathwise), or from
values of f alone (score function, REINFORCE). Both are right in the mean. How many draws more does the second need,
what does a baseline save, how does it grow with the dimension, and what does that do to descent?

Prediction
----------
For z ~ N(m, s2 I) the variances are Gaussian integrals: theory.estimators. For |z|^2 in D dimensions and the best
baseline

    pathwise: 4 s2 D,    score function: 2 s2 D (D + 2) + 4 |m|^2 (D + 1)

(summed over coordinates; without a baseline at m = 0: s2 D (D + 2) (D + 4)). Gradient descent on m with rate h and
one draw for each step then has a closed law of its own, E|m|^2 <- A E|m|^2 + B with

    pathwise:          A = (1 - 2 h)^2,                    B = 4 h^2 s2 D
    score function:    A = (1 - 2 h)^2 + 4 h^2 (D + 1),    B = 2 h^2 s2 D (D + 2)

The score function's descent diverges in mean square at h = 1 / (D + 2), whatever the variance of the draws; the
pathwise one at h = 1. Sources: Williams 1992; Mohamed et al. 2020, arXiv:1906.10652; the law of descent is derived
here.

Measurement
-----------
Draws of both estimators for z^2, z^4 and sin z in one dimension, with no baseline, the mean and the best one; for
|z|^2 in D = 1 to 64. Then many descents with one draw for each step, |m|^2 step by step.

Verdict
-------
100 batches of 2000 draws, 4000 descents; two CPU cores, shared with other programs, 25 CPU seconds. All claims hold:
no moment of the four estimators is farther than 1.8 standard errors from theory. For z^2 a draw of the score function
is worth 0.13 pathwise ones, with the best baseline 0.29; for |z|^2 in 64 dimensions the pathwise draw is worth 1200
of the one without a baseline, 35 with the best. Descent follows its law: after 150 steps in 10 dimensions E|m|^2 is
0.10 pathwise and 0.79 by the score function, whose limit 1 / (D + 2) shows in one step: a factor of 0.97 at half of
it, 2.50 at twice.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.claiming import in_errors, near
from experiments.drawing import dress
from numdl import plotting
from numdl.analysis import estimators as measured
from numdl.precision import float64
from numdl.records import record
from numdl.statistics import agreement
from numdl.theory import estimators as predicted

MOHAMED = "Mohamed, Rosca, Figurnov & Mnih 2020, arXiv:1906.10652"
FUNCTIONS = {"z^2": lambda z: z**2, "z^4": lambda z: z**4, "sin z": jnp.sin}
MEAN, VARIANCE = 0.7, 0.5
SQUARE_MEAN = 1.0  # |m|^2 in D dimensions
WAYS = ("pathwise", *(f"score, {baseline}" for baseline in predicted.BASELINES))
START = 4.0  # |m|^2 at the beginning of descent


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    draws: int = 2000  # in one batch
    batches: int = 100
    dimensions: tuple[int, ...] = (1, 4, 16, 64)
    dimension: int = 10  # of descent
    rate: float = 0.02
    steps: int = 150
    descents: int = 4000
    seed: int = 0

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(draws=400, batches=40, dimensions=(1, 4, 16), descents=500)


@record
class Result:
    """Moments of the estimators, and descent."""

    means: dict  # function -> [ways, batches]
    variances: dict  # function -> [ways, batches]
    spread: np.ndarray  # [ways, dimensions, batches]: variance summed over coordinates, |z|^2
    descent: dict  # way -> [steps + 1, descents]: |m|^2
    growth: np.ndarray  # [2, descents]: ln of |m|^2 after one step over before, below and above the limit


def run(config):
    """Moments in one dimension, in many, and descent."""
    key = jax.random.key(config.seed)
    means, variances = {}, {}
    for number, (name, f) in enumerate(FUNCTIONS.items()):
        one = lambda z, f=f: f(z[0])  # noqa: E731
        rows = [_moments(config, jax.random.fold_in(key, number), way, one, [MEAN], _bases(f)) for way in WAYS]
        means[name], variances[name] = np.stack(rows, axis=1)
    spread = [[_spread(config, key, way, d) for d in config.dimensions] for way in WAYS]
    ways = ("pathwise", "score, best")
    descent = {way: _descent(config, jax.random.fold_in(key, 99), way, config.rate, config.steps) for way in ways}
    growth = [_descent(config, key, "score, best", h / (config.dimension + 2), 1) for h in (0.5, 2.0)]
    return Result(means, variances, np.array(spread), descent, np.stack([np.log(row[1] / row[0]) for row in growth]))


def _bases(f):
    theory = {b: predicted.score_function(f, mean=MEAN, variance=VARIANCE, baseline=b) for b in predicted.BASELINES}
    return {name: float(moments.baseline) for name, moments in theory.items()}


def square(z):
    """|z|^2."""
    return jnp.sum(z**2)


@float64
def _moments(config, key, way, f, mean, baselines):
    """(means, variances) of every batch, summed over coordinates: each [batches]."""
    draw = functools.partial(_draw, f, way, jnp.asarray(mean, jnp.float64), baselines, config.draws)
    samples = lax.map(draw, jax.random.split(key, config.batches))
    return np.asarray([jnp.mean(samples, axis=1).sum(axis=-1), jnp.var(samples, axis=1, ddof=1).sum(axis=-1)])


def _draw(f, way, mean, baselines, draws, key):
    settings = {"mean": mean, "variance": VARIANCE, "draws": draws}
    if way == "pathwise":
        return measured.pathwise(key, f, **settings)
    return measured.score_function(key, f, **settings, baseline=baselines[way.split(", ")[1]])


def _spread(config, key, way, d):
    theory = {b: _theory(f"score, {b}", d) for b in predicted.BASELINES}
    baselines = {name: float(moments.baseline) for name, moments in theory.items()}
    mean = np.full(d, np.sqrt(SQUARE_MEAN / d))
    return _moments(config, jax.random.fold_in(key, d), way, square, mean, baselines)[1]


def _theory(way, d):
    name, _, baseline = way.partition(", ")
    made = predicted.square_norm(dimension=d, square_mean=SQUARE_MEAN, variance=VARIANCE, baseline=baseline or "none")
    return made["pathwise" if name == "pathwise" else "score_function"]


@float64
def _descent(config, key, way, rate, steps):
    """|m|^2 before every step and after the last, [steps + 1, descents]."""
    start = jnp.full((config.descents, config.dimension), np.sqrt(START / config.dimension))
    return np.asarray(_descents(key, start, rate, way, steps))


@functools.partial(jax.jit, static_argnames=("way", "steps"))
def _descents(key, start, rate, way, steps):
    dimension = start.shape[1]

    def step(m, key):
        u = jax.random.normal(key, m.shape, m.dtype)
        z, length = m + np.sqrt(VARIANCE) * u, jnp.sum(m**2, axis=1, keepdims=True)
        above = jnp.sum(z**2, axis=1, keepdims=True) - length - VARIANCE * (dimension + 2)
        gradient = 2 * z if way == "pathwise" else above * u / np.sqrt(VARIANCE)
        return m - rate * gradient, length[:, 0]

    last, lengths = lax.scan(step, start, jax.random.split(key, steps))
    return jnp.concatenate([lengths, jnp.sum(last**2, axis=1)[None]])


def law(way, *, dimension, rate):
    """(A, B) of E|m|^2 <- A E|m|^2 + B."""
    stay, d = (1 - 2 * rate) ** 2, dimension
    if way == "pathwise":
        return stay, 4 * rate**2 * VARIANCE * d
    return stay + 4 * rate**2 * (d + 1), 2 * rate**2 * VARIANCE * d * (d + 2)


def expected(way, config):
    """E|m|^2 before every step and after the last."""
    a, b = law(way, dimension=config.dimension, rate=config.rate)
    values = [START]
    for _ in range(config.steps):
        values.append(a * values[-1] + b)
    return np.array(values)


def moments(config):
    """function -> (means [ways, 1], variances [ways, 1]) predicted."""
    rows = {}
    for name, f in FUNCTIONS.items():
        settings = {"mean": MEAN, "variance": VARIANCE}
        made = [predicted.pathwise(f, **settings)]
        made += [predicted.score_function(f, **settings, baseline=b) for b in predicted.BASELINES]
        rows[name] = np.array([m.mean for m in made]), np.array([m.variance for m in made])
    return rows


def claims(config, result):
    """Moments in standard errors, dimension, descent and its limit."""
    return list(_claims(config, result))


def _claims(config, result):
    theory = moments(config)
    for name in FUNCTIONS:
        pairs = zip(("mean", "variance"), theory[name], (result.means[name], result.variances[name]), strict=True)
        yield from (_in_errors(f"{name}: {what} of four estimators", exact, found.T) for what, exact, found in pairs)
    exact = np.array([[_theory(way, d).variance for d in config.dimensions] for way in WAYS])
    yield _in_errors("|z|^2: variance in all dimensions", exact.ravel(), result.spread.reshape(exact.size, -1).T)
    yield from (_power(config, result, way) for way in ("score, none", "score, best"))
    for way, rows in result.descent.items():
        at = [config.steps // 10, config.steps // 3, config.steps]
        yield _in_errors(f"descent, {way}: E|m|^2 at steps {at}", expected(way, config)[at], rows[at].T)
    yield from (_factor(config, result, i, *pair) for i, pair in enumerate(((0.5, 0.04), (2.0, 0.8))))


def _in_errors(text, exact, samples):
    return in_errors(text, f"{MOHAMED}; theory.estimators", agreement(exact, samples).z)


def _power(config, result, way):
    """The exponent of D between the two largest dimensions."""
    d = np.array(config.dimensions[-2:], float)
    ratios = np.log(result.spread[WAYS.index(way), -2:] / result.spread[0, -2:])
    exact = np.log([_theory(way, int(k)).variance / _theory("pathwise", int(k)).variance for k in d])
    return near(
        f"{way}: exponent of D in the number of draws that are worth one pathwise draw, D = {d[0]:g} to {d[1]:g}",
        f"{MOHAMED}: quadratic without a baseline; (2 D (D + 2) + ...) / 4 D with the best: linear",
        origin="exact",
        expected=(exact[1] - exact[0]) / np.log(d[1] / d[0]),
        samples=(ratios[1] - ratios[0]) / np.log(d[1] / d[0]),
        tolerance=0.2,
        tolerance_from="tells exponents 1 and 2 apart",
    )


def _factor(config, result, index, times, tolerance):
    """One step of descent from |m|^2 = START, where B is small beside A |m|^2: above or below 1."""
    rate = times / (config.dimension + 2)
    a, b = law("score", dimension=config.dimension, rate=rate)
    return near(
        f"score, best: factor of E|m|^2 in one step at {times:g} times the limit 1 / (D + 2)",
        "the law of descent, see Prediction",
        origin="exact",
        expected=a + b / START,
        samples=np.exp(result.growth[index]),
        tolerance=tolerance,
        tolerance_from="four standard errors of the smallest version of this experiment",
    )


def figure(config, result):
    """Variances in one dimension, draws by dimension, descent."""
    drawing = plotting.figure(width=13.5, height=4.2)
    left, middle, right = drawing.subplots(1, 3)
    theory, names = moments(config), list(FUNCTIONS)
    for i, (way, color) in enumerate(zip(WAYS, plotting.COLORS, strict=False)):
        at = np.arange(len(names)) + 0.18 * (i - 1.5)
        left.bar(at, [result.variances[name][i].mean() for name in names], 0.16, color=color, label=way)
        left.plot(at, [theory[name][1][i] for name in names], "k_", ms=14, label=None if i else "predicted")
        exact = [_theory(way, d).variance for d in config.dimensions]
        middle.plot(config.dimensions, result.spread[i].mean(axis=-1), "o", color=color, ms=5, label=way)
        middle.plot(config.dimensions, exact, "k--", linewidth=1)
    left.set_xticks(range(len(names)), names)
    left.set_ylabel("variance of one draw of the gradient")
    middle.set_xscale("log", base=2)
    middle.set(xlabel="dimension D", ylabel="variance of the gradient of E|z|²")
    for (way, rows), color in zip(result.descent.items(), (plotting.COLORS[0], plotting.COLORS[3]), strict=True):
        right.plot(rows[:, :5], color=color, linewidth=0.5, alpha=0.5)
        right.plot(rows.mean(axis=1), color=color, linewidth=2, label=f"{way}: mean of {config.descents}")
        right.plot(expected(way, config), "k--", linewidth=1)
    right.set(xlabel="step", ylabel="|m|²")
    right.set_title(f"descent on E|z|², D = {config.dimension}, one draw a step", fontsize=10)
    for ax in (left, middle, right):
        dress(ax, yscale="log")
    return drawing
