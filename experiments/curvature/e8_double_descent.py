"""Can more parameters help after the fit is perfect?

Question
--------
A model with as many parameters as data interpolates them, and its predictions are useless. What do still more
parameters do to them, without and with regularization?

Prediction
----------
Least squares of least norm on p of D standard Gaussian features, y = x b + noise of variance v, E |b|^2 = s. The
features that are left out are noise too: u = v + s (1 - p / D). From n examples, exactly and for every p,

    E (y - x w)^2 = u (1 + p / (n - p - 1))                              p <= n - 2
    E (y - x w)^2 = u (1 + n / (p - n - 1)) + s (p / D) (1 - n / p)      p >= n + 2

by the inverse moments of Wishart matrices: infinite at p = n, and falling again. For D = p (all features known) and
p / n = g fixed it tends to v + v g / (1 - g), and to v + v / (g - 1) + s (1 - 1 / g).
With the damping u D / s the solution is the posterior mean, with risk u + u g m(-damping / n), m the Stieltjes
transform of the Marchenko-Pastur law, and no more features do harm.
Sources: Hastie, Montanari, Rosset & Tibshirani 2019, arXiv:1903.08560, theorem 1 and corollary 6; Belkin, Hsu & Xu
2019, arXiv:1903.07571, theorem 1; Nakkiran et al. 2020, arXiv:2003.01897 (damping); Belkin et al. 2019,
arXiv:1812.11118 (random features).

Measurement
-----------
Many draws of data at every p, the risk of each fit in closed form, in float64: once with D = p, once with D = 3 n. Then
handwritten digits: p random relu features, classes as rows of a unit matrix, least norm or a damping by generalized
cross validation (`optimize.least_squares`), new features and another split for every draw.

Verdict
-------
n = 60, ten p from 12 to 180, 500 draws of each; 300 digits, ten p from 30 to 2000, 10 draws; two CPU cores shared with
other programs, 73 s, 29 s of processor time. All claims hold. Both exact formulas agree within one standard error at
every p that is 15 or more away from n. With features left out, all 180 of them predict better than the best p < n, by
the factor 0.745 that the formula says (0.743); on digits 3.5 % of the answers are wrong with 2000 features, 10 % with
the best p < 300. Damping removes the peak; with D = p its risk lies within 1 / n of the asymptotic law.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.claiming import near, one_number, within
from experiments.drawing import dress
from numdl import activations, data, plotting
from numdl.optimize import least_squares
from numdl.precision import float64
from numdl.records import record
from numdl.reporting import Claim
from numdl.statistics import agreement, mean_and_error, z_limit

HASTIE = "Hastie et al. 2019, arXiv:1903.08560"
BELKIN = "Belkin, Hsu & Xu 2019, arXiv:1903.07571, theorem 1"
FEATURES = "Belkin et al. 2019, arXiv:1812.11118, fig. 2"
SIGNAL, NOISE = 10.0, 1.0  # s and v


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    examples: int = 60
    sizes: tuple[int, ...] = (12, 30, 45, 54, 60, 66, 75, 90, 120, 180)  # p; n is one, the last is D
    margin: int = 15  # |p - n| from which on the risk has moments enough for standard errors
    draws: int = 500
    digits: int = 300  # to train on; the others test
    digit_sizes: tuple[int, ...] = (30, 100, 200, 270, 300, 330, 400, 600, 1000, 2000)
    digit_draws: int = 10
    seed: int = 0

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(
            examples=20,
            sizes=(10, 20, 30, 60),
            margin=10,
            draws=400,
            digits=60,
            digit_sizes=(20, 60, 400),
            digit_draws=6,
        )


@record
class Result:
    """Squared errors of predictions; index 0 of "fits" is least norm, 1 is damped."""

    full: np.ndarray  # [sizes, draws, fits]: D = p
    weak: np.ndarray  # [sizes, draws, fits]: D = sizes[-1]
    digits: np.ndarray  # [digit_sizes, draws, fits]: mean of |outputs - class|^2 over the test set
    errors: np.ndarray  # [digit_sizes, draws, fits]: share of the test set in the wrong class


@float64
def run(config):
    """Both Gaussian models and the digits; the number of features is a mask, so that each compiles once."""
    key, weak_key, digits_key = jax.random.split(jax.random.key(config.seed), 3)
    full = [_gaussian(key, p, p, config) for p in config.sizes]
    weak = [_gaussian(weak_key, p, config.sizes[-1], config) for p in config.sizes]
    digits = data.digits()
    x, labels = jnp.asarray(data.standardize(digits.images.astype(np.float64))), jnp.asarray(digits.labels)
    parts = [_on_digits(digits_key, x, labels, p, config) for p in config.digit_sizes]
    return Result(np.stack(full), np.stack(weak), *(np.stack([part[i] for part in parts]) for i in (0, 1)))


@functools.partial(jax.jit, static_argnames="config")
def _gaussian(key, p, total, config):
    """[draws, fits]: the risk of both fits with p of `total` features, exact for each draw."""
    width = config.sizes[-1]
    exists, used = (jnp.arange(width) < count for count in (total, p))

    def draw(key):
        x_key, b_key, noise_key = jax.random.split(key, 3)
        x = jax.random.normal(x_key, (config.examples, width), jnp.float64)
        b = exists * jnp.sqrt(SIGNAL / total) * jax.random.normal(b_key, (width,), jnp.float64)
        y = x @ b + jnp.sqrt(NOISE) * jax.random.normal(noise_key, (config.examples,), jnp.float64)
        features = x * used[None, :]  # a column of zeros gets a weight of zero
        fits = (
            least_squares.svd(features, y).solution,
            least_squares.tikhonov(features, y, damping=damping_of(p, total)).solution,
        )
        return jnp.stack([jnp.sum((w - b) ** 2) + NOISE for w in fits])

    return lax.map(draw, jax.random.split(key, config.draws))


@functools.partial(jax.jit, static_argnames="config")
def _on_digits(key, x, labels, p, config):
    """[draws, fits]: squared test errors and shares of wrong classes with p random features."""
    width, examples, classes = config.digit_sizes[-1], config.digits, jax.nn.one_hot(labels, 10, dtype=x.dtype)
    used = jnp.arange(width) < p

    def draw(key):
        weights_key, bias_key, split_key = jax.random.split(key, 3)
        weights = jnp.sqrt(2 / x.shape[1]) * jax.random.normal(weights_key, (x.shape[1], width), x.dtype)
        bias = jax.random.normal(bias_key, (width,), x.dtype)
        order = jax.random.permutation(split_key, x.shape[0])
        features = activations.relu(x[order] @ weights + bias[None, :]) * used[None, :]
        train, test = features[:examples], features[examples:]
        known, asked = classes[order[:examples]], classes[order[examples:]]
        fits = (least_squares.svd(train, known).solution, least_squares.tikhonov(train, known).solution)
        outputs = jnp.stack([test @ w for w in fits])
        wrong = jnp.argmax(outputs, axis=-1) != labels[order[examples:]][None, :]
        return jnp.mean(jnp.sum((outputs - asked[None]) ** 2, axis=-1), axis=-1), jnp.mean(wrong, axis=-1)

    return lax.map(draw, jax.random.split(key, config.digit_draws))


def left_out(p, total):
    """u: the variance of the noise together with the features that are left out."""
    return NOISE + SIGNAL * (1 - p / total)


def damping_of(p, total):
    """The damping with which the fit is the posterior mean: noise variance over variance of a coefficient."""
    return left_out(p, total) * total / SIGNAL


def risk(p, total, examples):
    """PREDICTED mean squared error of the fit of least norm; infinite next to p = n."""
    u, n = left_out(p, total), examples
    if p <= n - 2:
        return u * (1 + p / (n - p - 1))
    if p >= n + 2:
        return u * (1 + n / (p - n - 1)) + SIGNAL * (p / total) * (1 - n / p)
    return np.inf


def damped_risk(p, total, examples):
    """PREDICTED mean squared error with the best damping, for large n: u (1 + g m(-damping / n))."""
    u, g, z = left_out(p, total), p / examples, damping_of(p, total) / examples
    stieltjes = (g - 1 - z + np.sqrt((g - 1 - z) ** 2 + 4 * g * z)) / (2 * g * z)
    return u * (1 + g * stieltjes)


def claims(config, result):
    """Exact risks, the peak, the second descent, what damping does; then the same on digits."""
    made = [_exact(config, result.full, HASTIE, "D = p"), _exact(config, result.weak, BELKIN, "D = 3 n")]
    made += [
        _peak(config.sizes, config.examples, result.weak, "D = 3 n", BELKIN, "exact"),
        _second_descent(config, result),
    ]
    made += [
        _damped(config, result),
        _no_harm(result.weak, "D = 3 n", "Nakkiran et al. 2020, arXiv:2003.01897", "exact"),
    ]
    made += [_peak(config.digit_sizes, config.digits, result.digits, "digits", FEATURES, "published")]
    made += [_better_digits(config, result)]
    return [
        *made,
        _no_harm(result.digits, "digits", "Nakkiran et al. 2020, arXiv:2003.01897, for real data", "published"),
    ]


def _tested(config):
    return [i for i, p in enumerate(config.sizes) if abs(p - config.examples) >= config.margin]


def _exact(config, samples, source, name):
    z = []
    for i in _tested(config):
        p = config.sizes[i]
        total = p if name == "D = p" else config.sizes[-1]
        z.append(agreement(risk(p, total, config.examples), samples[i, :, 0]).z)
    return within(
        f"{name}: largest |measured - exact| mean risk over p with |p - n| >= {config.margin}, in standard errors",
        source,
        z,
        limit=z_limit(2 * len(z)),
    )


def _peak(sizes, examples, samples, name, source, origin):
    medians = np.median(samples[:, :, 0], axis=1)
    return one_number(
        f"{name}: the number of features with the largest median error, without damping",
        source,
        origin=origin,
        expected=examples,
        measured=sizes[medians.argmax()],
        tolerance_from="exact on the grid of sizes",
    )


def _second_descent(config, result):
    n, total = config.examples, config.sizes[-1]
    best = min(risk(p, total, n) for p in range(n - 1))
    last = mean_and_error(result.weak[-1, :, 0])
    return Claim(
        "D = 3 n: mean risk with all features over the exact risk of the best p < n (p = 0 included)",
        BELKIN,
        origin="exact",
        expected=risk(total, total, n) / best,
        measured=last.mean / best,
        uncertainty=last.stderr / best,
        tolerance=6 * last.stderr / best,
        tolerance_from="six standard errors; below 1 means that more parameters helped",
    )


def _damped(config, result):
    far = []
    for p, samples in zip(config.sizes, result.full[:, :, 1], strict=True):
        compared = agreement(damped_risk(p, p, config.examples), samples)
        far.append(abs(compared.relative) - 6 * compared.stderr / compared.predicted)
    return one_number(
        "D = p, best damping: largest |measured / asymptotic risk - 1| beyond six standard errors, over all p",
        HASTIE + ", corollary 6",
        origin="exact",
        expected=0.0,
        measured=max(far),
        tolerance=1 / config.examples,
        tolerance_from="the law of the eigenvalues is approached as 1 / n",
        relation="<=",
    )


def _no_harm(samples, name, source, origin):
    logs = np.log(samples[:, :, 1])
    rises = [agreement(0.0, later - now).z for now, later in zip(logs, logs[1:])]
    return one_number(
        f"{name}, damped: largest rise of the mean ln error from one p to the next, in standard errors",
        source,
        origin=origin,
        expected=0.0,
        measured=max(rises),
        tolerance=6.0,
        tolerance_from="six standard errors",
        relation="<=",
    )


def _better_digits(config, result):
    few = [i for i, p in enumerate(config.digit_sizes) if p < config.digits]
    best = result.errors[few, :, 0].mean(axis=1).min()
    return near(
        f"digits: share of errors with {config.digit_sizes[-1]} features, at most the least over p < n",
        FEATURES,
        origin="published",
        expected=best,
        samples=result.errors[-1, :, 0],
        tolerance=0.0,
        tolerance_from="a comparison on the same splits",
        relation="<=",
    )


def figure(config, result):
    """Risk by number of features: all features known, features left out, random features of digits."""
    drawing = plotting.figure(width=13.5, height=4.2)
    axes = drawing.subplots(1, 3)
    titles = ("all features known (D = p)", "p of D = 3 n features")
    for ax, samples, title in zip(axes, (result.full, result.weak), titles):
        _draw(ax, config.sizes, config.examples, samples)
        total = (lambda p: p) if samples is result.full else (lambda _: config.sizes[-1])
        _draw_theory(ax, config, total)
        ax.set(title=title, ylabel="squared error of a prediction", ylim=(1, 2e3))
    _draw(axes[2], config.digit_sizes, config.digits, result.digits)
    axes[2].set_title(f"random relu features, {config.digits} digits", fontsize=10)
    axes[2].set_ylabel("|outputs - class|², test")
    for ax in axes:
        dress(ax, loc="lower left" if ax is axes[1] else "upper left")
    return drawing


def _draw(ax, sizes, examples, samples):
    ratio = np.asarray(sizes) / examples
    for color, label, fits in zip(plotting.COLORS, ("least norm", "best damping"), (samples[..., 0], samples[..., 1])):
        ax.plot(ratio, np.median(fits, axis=1), "o", color=color, markersize=4, label=f"{label}: median, 80 %")
        ax.fill_between(ratio, *np.quantile(fits, (0.1, 0.9), axis=1), color=color, alpha=0.18, linewidth=0)
    ax.axvline(1.0, color="0.6", linewidth=0.8, zorder=0)
    ax.set(xscale="log", yscale="log")
    shown = [r for r in (0.1, 0.2, 0.5, 1, 2, 5) if ratio[0] * 0.9 < r < ratio[-1] * 1.1]
    ax.set_xticks(shown, [f"{r:g}" for r in shown])
    ax.minorticks_off()
    ax.set_xlabel("features / examples, p / n")


def _draw_theory(ax, config, total):
    n = config.examples
    every = np.arange(config.sizes[0], config.sizes[-1] + 1)
    exact = [risk(p, total(p), n) for p in every]
    ax.plot(every / n, np.where(np.isfinite(exact), exact, np.nan), "k--", linewidth=1.2, label="predicted mean")
    ax.plot(every / n, [damped_risk(p, total(p), n) for p in every], "k--", linewidth=1.2)
