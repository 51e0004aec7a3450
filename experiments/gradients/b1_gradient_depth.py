"""How fast do gradients vanish or explode on their way back?

Question
--------
The loss of a deep network sends a gradient back through all layers. How does its size change from layer to layer in
random networks, and can that be known from the variances of the weights alone?

Prediction
----------
At infinite width the mean square of the gradient is multiplied by chi = weight_variance E[f'(sqrt(q) z)^2] in every
layer on its way back. At the fixed point q* this is chi_1, the number that also decides whether two inputs part:
below one gradients vanish over -1 / ln chi_1 layers, above one they explode, at one they keep their size. Source:
Schoenholz et al. 2017, arXiv:1611.01232, section 4 and figure 4.

Measurement
-----------
The mean square of the per-example gradient of every state, on digits, over random dense tanh networks. Logarithms of it
fall short of the logarithm of the mean by a term of order depth / width, so the growth per layer is measured at three
widths and extrapolated in 1 / width.

Verdict
-------
Four weight variances, depth 30; 60 networks each of width 100, 200 and 400; two CPU cores. All claims hold.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claiming import one_number
from numdl import activations, data, plotting
from numdl.analysis import gradients as measured
from numdl.audit import verdicts
from numdl.networks import dense
from numdl.records import record
from numdl.reporting import Claim
from numdl.statistics import extrapolate, mean_and_error
from numdl.theory import gradients as predicted
from numdl.theory import propagation

SCHOENHOLZ = "Schoenholz et al. 2017, arXiv:1611.01232, fig. 4"
BIAS_VARIANCE = 0.05


@functools.cache
def critical():
    """The weight variance at which tanh is critical at this bias variance, 1.76: the digits that all machines share."""
    physics = {"activation": activations.tanh, "bias_variance": BIAS_VARIANCE}
    return round(float(propagation.critical_weight_variance(**physics)), 12)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    widths: tuple[int, ...] = (100, 200, 400)
    depth: int = 30
    seeds: int = 60
    digits: int = 8
    weight_variances: tuple[float, ...] = dataclasses.field(default_factory=lambda: (1.0, 1.3, critical(), 4.0))
    seed: int = 0

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(widths=(30, 45, 60), depth=26, seeds=40, digits=2, weight_variances=(1.0, 4.0))


@record
class Result:
    """Logarithms of mean squared gradients relative to the outputs', by weight variance."""

    samples: dict  # weight variance -> [widths, seeds, L]
    predicted: dict  # weight variance -> [L]
    kinds: dict  # weight variance -> index into GradientVerdict's words, at the largest width
    depth_scales: dict  # weight variance -> layers


WORDS = ("vanishing", "stable", "exploding", "undecided")


def run(config):
    """Measure and predict every weight variance."""
    samples, lines, kinds, scales = {}, {}, {}, {}
    for index, weight_variance in enumerate(config.weight_variances):
        physics = {"activation": activations.tanh, "weight_variance": weight_variance, "bias_variance": BIAS_VARIANCE}
        x, x_variance = _digits(config, physics)
        theory = predicted.growth(x_variance, depth=config.depth, **physics)
        rows = []
        for width in config.widths:
            network = dense.network(widths=(64, *[width] * (config.depth + 1)), **physics)
            key = jax.random.fold_in(jax.random.key(config.seed), 100 * index + width)
            found = measured.growth(key, network, x, seeds=config.seeds)
            rows.append(np.asarray(found.log_ratio, dtype=float))
        name = f"{weight_variance:g}"
        samples[name], lines[name] = np.stack(rows), theory.log_products
        kinds[name] = np.asarray(WORDS.index(verdicts.gradients(found).kind))
        scales[name] = theory.depth_scale
    return Result(samples, lines, kinds, scales)


def _digits(config, physics):
    """Digits whose first layer has the length of the fixed point, and their mean square."""
    q = propagation.fixed_point(**physics).q
    variance = (q - BIAS_VARIANCE) / physics["weight_variance"]
    images = data.digits().images[: config.digits].reshape(config.digits, -1).astype(float)
    images *= np.sqrt(variance / np.mean(images**2, axis=1, keepdims=True))
    return jnp.asarray(images, dtype=jnp.float32), float(variance)


def rates(samples):
    """Growth per layer going back, of the logarithm: (first state - last state) / (L - 1), [..., seeds]."""
    return (samples[..., 0] - samples[..., -1]) / (samples.shape[-1] - 1)


def claims(config, result):
    """The growth at infinite width, and the verdict in words."""
    made = []
    for weight_variance in config.weight_variances:
        name = f"{weight_variance:g}"
        means = mean_and_error(rates(result.samples[name]), axis=1)
        limit = extrapolate(1 / np.asarray(config.widths), means.mean, means.stderr)
        made.append(
            Claim(
                f"weight variance {name}: ln growth of squared gradients per layer, at infinite width",
                SCHOENHOLZ,
                origin="exact",
                expected=rates(result.predicted[name]),
                measured=limit.mean,
                uncertainty=limit.stderr,
                tolerance=6 * limit.stderr,
                tolerance_from="six standard errors of the intercept in 1 / width",
            )
        )
    for weight_variance, kind in {1.0: "vanishing", critical(): "stable", 4.0: "exploding"}.items():
        if weight_variance in config.weight_variances:
            name = f"{weight_variance:g}"
            made.append(
                one_number(
                    f"weight variance {name}: the verdict is '{kind}' (0 vanishing, 1 stable, 2 exploding)",
                    SCHOENHOLZ,
                    origin="exact",
                    expected=WORDS.index(kind),
                    measured=result.kinds[name],
                    tolerance_from="a word is right or wrong",
                )
            )
    return made


def figure(config, result):
    """Squared gradients by layer, and their growth against 1 / width."""
    drawing = plotting.figure(width=11, height=4.6)
    left, right = drawing.subplots(1, 2)
    layers, inverse = np.arange(1, config.depth + 1), 1 / np.asarray(config.widths)
    for color, weight_variance in zip(plotting.COLORS, config.weight_variances, strict=False):
        name = f"{weight_variance:g}"
        samples = np.exp(result.samples[name][-1])
        plotting.prediction_and_measurement(
            layers, np.exp(result.predicted[name]), samples, ax=left, label=f"weight variance {name}", color=color,
            xlabel="layer", ylabel="squared gradient, relative to the outputs'", log=True,
        )  # fmt: skip
        means = mean_and_error(rates(result.samples[name]), axis=1)
        right.errorbar(inverse, means.mean, means.stderr, fmt="o", color=color, label=f"weight variance {name}")
        right.plot([0], [rates(result.predicted[name])], "k_", markersize=14, markeredgewidth=2)
    right.plot([], [], "k_", markersize=14, markeredgewidth=2, label="predicted, infinite width")
    right.set(
        xlabel="1 / width", ylabel="ln growth of squared gradients per layer", ylim=(None, right.get_ylim()[1] + 0.25)
    )
    right.legend(fontsize="small", framealpha=0.6, edgecolor="none")
    left.set_title(f"width {config.widths[-1]}", fontsize=10)
    right.set_title("finite width shrinks the typical gradient", fontsize=10)
    for ax in (left, right):
        plotting.tidy(ax)
    return drawing
