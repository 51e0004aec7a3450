"""Does batch normalization make gradients explode?

Question
--------
Batch normalization keeps every signal at length one. What does it do to the gradients of a deep network before the
first step, and how does a critical network without it fare?

Prediction
----------
On its way back the mean squared gradient of a batch-normalized network grows in every layer by
g = E f'(z)^2 / Var f(z) >= 1 in the limit of large batches, whatever the variance of the weights: pi / (pi - 1) = 1.467
for relu. A batch of B has g = B T / ((m - k) (B - 1) (B - 3)), T = m (B - 3 + 2/B) + (1 - 1/B) (k + p) with
m = E f(z)^2, k = E f(u) f(v), p = E f'(u) f'(v), corr(u, v) = -1 / (B - 1); (B - 2) / (B - 3) for a linear network,
which explodes for small batches only. The pre-activations of two examples then have correlation k / m, 1 / pi for
large batches. relu without normalization at weight variance 2 keeps squared gradients: growth 1.
Source: Yang et al. 2019, arXiv:1902.08129; finite B derived in numdl.theory.normalization; He et al. 2015,
arXiv:1502.01852, eq. (14).

Measurement
-----------
The squared gradient of a random linear loss at every state of random networks on Gaussian inputs, eps = 0. The mean
growth of its logarithm per layer between layer 4 and the last but one, at three widths, extrapolated in 1 / width: a
finite width changes the typical gradient in that order. The prediction is for mean squares; at infinite width they have
no spread.

Verdict
-------
Depth 12, 40 networks for each of widths 64, 128 and 256 and four settings; two CPU cores. All claims hold.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.drawing import dress
from numdl import activations, plotting
from numdl.analysis import normalization as measured
from numdl.networks import dense, normalization
from numdl.records import record
from numdl.reporting import Claim
from numdl.statistics import extrapolate, mean_and_error
from numdl.theory import normalization as predicted

YANG = "Yang et al. 2019, arXiv:1902.08129"
FINITE = f"{YANG}; finite batch derived in numdl.theory.normalization"
HE = "He et al. 2015, arXiv:1502.01852, eq. (14)"
LIMIT = 1.466942206924260  # pi / (pi - 1)
FIRST = 4  # layer from which the growth is stationary


class Setting(NamedTuple):
    """A family of random networks."""

    activation: activations.Activation
    batch: int
    normalized: bool

    @property
    def name(self):
        """As the arrays and claims call it."""
        return f"{self.activation.name}, {'batch norm' if self.normalized else 'no norm'}, batch {self.batch}"


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    widths: tuple[int, ...] = (64, 128, 256)
    depth: int = 12
    seeds: int = 40  # networks for each setting and width
    batches: tuple[int, ...] = (8, 128)  # the last one stands for the limit
    linear_batch: int = 8
    plain_batch: int = 16  # without normalization
    correlation_seeds: int = 20
    seed: int = 0

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(widths=(32, 64), depth=9, batches=(16,), seeds=30, correlation_seeds=10)


@record
class Result:
    """Logarithms of squared gradients, and correlations of examples."""

    log_squares: dict  # setting -> [widths, seeds, L]
    growth: dict  # setting -> predicted growth of the squared gradient per layer
    limit: np.ndarray  # [] theory's growth for relu and large batches
    correlations: np.ndarray  # [widths, seeds]  relu, first batch, mean over layers from FIRST
    predicted_correlation: np.ndarray  # []


def settings(config):
    """relu with every batch, a linear network, relu without normalization."""
    made = [Setting(activations.relu, batch, True) for batch in config.batches]
    made.append(Setting(activations.identity, config.linear_batch, True))
    return [*made, Setting(activations.relu, config.plain_batch, False)]


def network(config, setting, width):
    """relu at weight variance 2, critical without normalization; with it the variance does not matter."""
    if setting.normalized:
        return normalization.network(
            width=width, depth=config.depth, outputs=width, activation=setting.activation, weight_variance=2.0, eps=0.0
        )
    widths = (width,) * (config.depth + 2)
    return dense.network(widths=widths, activation=setting.activation, weight_variance=2.0, bias_variance=0.0)


def run(config):
    """Gradients in every setting at every width, then the correlations."""
    log_squares, growth = {}, {}
    for index, setting in enumerate(settings(config)):
        rows = []
        for width in config.widths:
            data_key, key = jax.random.split(_key(config, index, width))
            x = jax.random.normal(data_key, (setting.batch, width), jnp.float32)
            found = measured.gradient_growth(key, network=network(config, setting, width), x=x, seeds=config.seeds)
            rows.append(np.asarray(found.log_square, float))
        log_squares[setting.name], growth[setting.name] = np.stack(rows), _growth(setting)
    first = settings(config)[0]
    correlations = np.stack([_correlations(config, first, width) for width in config.widths])
    level = predicted.correlation(activation=first.activation, batch_size=first.batch)
    limit = predicted.gradient_growth(activation=activations.relu)
    return Result(log_squares, growth, np.asarray(limit), correlations, np.asarray(level))


def _key(config, stream, width):
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), stream), width)


def _growth(setting):
    if not setting.normalized:
        return np.float64(1.0)
    return predicted.gradient_growth(activation=setting.activation, batch_size=setting.batch)


def _correlations(config, setting, width):
    keys = jax.random.split(_key(config, 100, width), config.correlation_seeds)
    found = _correlate(network(config, setting, width), keys, setting.batch, width)
    return np.asarray(found, float)[:, FIRST - 1 :].mean(axis=1)


@functools.partial(jax.jit, static_argnames=("batch", "width"))
def _correlate(stack, keys, batch, width):
    """[seeds, L], inputs drawn anew for every network."""

    def one(key):
        data_key, weights_key = jax.random.split(key)
        x = jax.random.normal(data_key, (batch, width), jnp.float32)
        return measured.correlation(stack, stack.init(weights_key, x), x)

    return jax.lax.map(one, keys)


def rates(log_squares):
    """Mean growth of the logarithm per layer going back, between FIRST and the last but one: [widths, seeds]."""
    first, last = FIRST - 1, log_squares.shape[-1] - 2
    return (log_squares[..., first] - log_squares[..., last]) / (last - first)


def claims(config, result):
    """The growth of every setting at infinite width, the limit of large batches, the correlation."""
    made = [_rate(config, result, setting) for setting in settings(config)]
    return [*made, _large_batch(config, result), _correlation(config, result)]


def at_infinite_width(config, samples):
    """The limit in 1 / width of means over seeds [widths, seeds]."""
    means = mean_and_error(samples, axis=1)
    return extrapolate(1 / np.asarray(config.widths), means.mean, means.stderr)


def _rate(config, result, setting):
    limit, growth = at_infinite_width(config, rates(result.log_squares[setting.name])), result.growth[setting.name]
    return Claim(
        f"{setting.name}: ln growth of squared gradients per layer, infinite width (growth {growth:.4g})",
        FINITE if setting.normalized else HE,
        origin="exact",
        expected=np.log(growth),
        measured=limit.mean,
        uncertainty=limit.stderr,
        tolerance=6 * limit.stderr,
        tolerance_from="six standard errors of the intercept in 1 / width",
    )


def _large_batch(config, result):
    name = Setting(activations.relu, config.batches[-1], True).name
    limit = at_infinite_width(config, rates(result.log_squares[name]))
    remainder = abs(np.log(result.growth[name] / result.limit))
    return Claim(
        f"{name}: ln growth of squared gradients per layer is ln(pi / (pi - 1)), that of large batches",
        YANG,
        origin="exact",
        expected=np.log(LIMIT),
        measured=limit.mean,
        uncertainty=limit.stderr,
        tolerance=6 * limit.stderr + remainder,
        tolerance_from=f"six standard errors, and what theory says a batch of {config.batches[-1]} still adds",
    )


def _correlation(config, result):
    limit = at_infinite_width(config, result.correlations)
    return Claim(
        f"{settings(config)[0].name}: correlation of two examples deep in the network, infinite width",
        FINITE,
        origin="exact",
        expected=result.predicted_correlation,
        measured=limit.mean,
        uncertainty=limit.stderr,
        tolerance=6 * limit.stderr,
        tolerance_from="six standard errors of the intercept in 1 / width",
    )


def figure(config, result):
    """Squared gradients by layer, their growth against 1 / width, and against the size of the batch."""
    drawing = plotting.figure(width=14, height=4.8)
    by_layer, by_width, by_batch = drawing.subplots(1, 3)
    for color, setting in zip(plotting.COLORS, settings(config), strict=False):
        _draw_layers(by_layer, config, result, setting, color)
        _draw_widths(by_width, config, result, setting, color)
    by_width.plot([], [], "k_", markersize=14, markeredgewidth=2, label="predicted, infinite width")
    dress(by_width)
    _draw_batches(by_batch, config, result)
    return drawing


def _draw_layers(ax, config, result, setting, color):
    layers = np.arange(1, config.depth)
    samples = result.log_squares[setting.name][-1][:, :-1]
    line = np.log(result.growth[setting.name]) * (config.depth - 1 - layers)
    plotting.prediction_and_measurement(
        layers, np.exp(line), np.exp(samples - samples[:, -1:]), ax=ax, label=setting.name, color=color,
        xlabel="layer", ylabel=f"squared gradient, relative to layer {config.depth - 1}", log=True,
    )  # fmt: skip
    dress(ax)
    ax.set_title(f"width {config.widths[-1]}, depth {config.depth}", fontsize=10)


def _draw_widths(ax, config, result, setting, color):
    means = mean_and_error(rates(result.log_squares[setting.name]), axis=1)
    ax.errorbar(1 / np.asarray(config.widths), means.mean, means.stderr, fmt="o", color=color, label=setting.name)
    ax.plot([0], [np.log(result.growth[setting.name])], "k_", markersize=14, markeredgewidth=2)
    ax.set(xlabel="1 / width", ylabel="ln growth of squared gradients per layer")
    ax.set_title("finite width", fontsize=10)


def _draw_batches(ax, config, result):
    sizes = np.unique(np.geomspace(min(config.batches), max(config.batches) * 2, 40).astype(int))
    for name, activation in (("relu", activations.relu), ("linear", activations.identity)):
        growth = [predicted.gradient_growth(activation=activation, batch_size=int(size)) for size in sizes]
        ax.plot(sizes, growth, "k--", linewidth=1.6, label="predicted" if name == "relu" else "_")
        ax.text(sizes[-1], growth[-1] + 0.02, name, ha="right")
    normalized = [setting for setting in settings(config) if setting.normalized]
    for color, setting in zip(plotting.COLORS, normalized, strict=False):
        limit = at_infinite_width(config, rates(result.log_squares[setting.name]))
        mean, stderr = np.exp(limit.mean), np.exp(limit.mean) * limit.stderr
        ax.errorbar(setting.batch, mean, stderr, fmt="o", color=color, label=setting.name)
    ax.axhline(LIMIT, color="0.6", linewidth=1, label="π / (π - 1)")
    ax.set(xlabel="batch size", ylabel="growth of squared gradients per layer", xscale="log")
    dress(ax, title="extrapolated to infinite width")
