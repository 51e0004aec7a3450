"""Does a deep network forget how long its input was?

Question
--------
Images of digits, scaled to different lengths, enter random deep networks. How long are the pre-activations after each
layer, and do they forget the length of the input?

Prediction
----------
At infinite width the mean square q of a layer's pre-activations decides that of the next:
q_{l+1} = V(q_l) = weight_variance E[f(sqrt(q_l) z)^2] + bias_variance; q_1 = weight_variance mean(x^2) + bias_variance.
A saturating f has one attracting fixed point q* = V(q*): every length is forgotten within a few depth scales
-1 / ln V'(q*). relu at weight variance 2 and bias variance 0 has V(q) = q: it keeps every length.
Source: Poole et al. 2016, arXiv:1606.05340, figure 1; He et al. 2015, arXiv:1502.01852.

Measurement
-----------
q_l on dense networks drawn at random, averaged over units and over real digits that were scaled to one length each.

Verdict
-------
40 networks of width 400 and depth 15 for each of four settings and four input lengths, 32 digits; two CPU
cores, 20 s. Every measured length is within the limit that chance allows.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claiming import near, within
from experiments.drawing import legend_below
from numdl import activations, data, plotting
from numdl.analysis import propagation as measured
from numdl.networks import dense
from numdl.records import record
from numdl.statistics import agreement, z_limit
from numdl.theory import propagation as predicted

POOLE = "Poole et al. 2016, arXiv:1606.05340, fig. 1"
# name -> (activation, weight variance, bias variance)
SETTINGS = {
    "tanh, ordered": (activations.tanh, 1.3, 0.3),
    "tanh, chaotic": (activations.tanh, 4.0, 0.3),
    "erf, chaotic": (activations.erf, 3.0, 0.1),
    "relu, critical": (activations.relu, 2.0, 0.0),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    width: int = 400
    depth: int = 15  # hidden layers
    seeds: int = 40  # networks for each setting and length
    digits: int = 32  # images
    input_variances: tuple[float, ...] = (0.05, 0.5, 2.0, 8.0)  # mean square of the pixels after scaling
    seed: int = 0

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(width=80, depth=6, seeds=16, digits=8, input_variances=(0.1, 4.0))


@record
class Result:
    """Lengths by setting and input length."""

    samples: dict  # setting -> [input lengths, seeds, L]
    predicted: dict  # setting -> [input lengths, L]
    fixed_points: dict  # setting -> FixedPoint


def run(config):
    """Measure and predict every setting."""
    images = data.digits().images[: config.digits].reshape(config.digits, -1)
    images = images / np.sqrt(np.mean(images**2, axis=1, keepdims=True))
    samples, lines, points = {}, {}, {}
    for index, (name, (activation, weight_variance, bias_variance)) in enumerate(SETTINGS.items()):
        physics = {"activation": activation, "weight_variance": weight_variance, "bias_variance": bias_variance}
        widths = (images.shape[1], *[config.width] * config.depth, 10)
        network, key = dense.network(widths=widths, **physics), jax.random.fold_in(jax.random.key(config.seed), index)
        scaled = [jnp.asarray(np.sqrt(v) * images, dtype=jnp.float32) for v in config.input_variances]
        samples[name] = np.stack([measured.lengths(key, network, x, seeds=config.seeds) for x in scaled])
        lines[name] = np.stack([predicted.lengths(v, depth=config.depth, **physics) for v in config.input_variances])
        points[name] = predicted.fixed_point(**physics)
    return Result(samples, lines, points)


def claims(config, result):
    """No length is off by more than chance allows; lengths are forgotten, or kept."""
    limit = z_limit(sum(line.size for line in result.predicted.values()))
    made = [_no_outlier(name, result, limit) for name in SETTINGS]
    made += [_forgotten(name, config, result) for name in SETTINGS if "relu" not in name]
    return [*made, _kept(config, result)]


def _no_outlier(name, result, limit):
    z = agreement(result.predicted[name], result.samples[name], axis=1).z
    return within(
        f"{name}: largest |measured - predicted| length over layers and inputs, in standard errors",
        POOLE,
        z,
        limit=limit,
        why="one false alarm in a million for all lengths of this experiment together",
    )


def _forgotten(name, config, result):
    remembered = abs(result.predicted[name][-1, -1] - result.fixed_points[name].q)
    return near(
        f"{name}: length of layer {config.depth} from the longest input is the fixed point q*",
        POOLE,
        origin="exact",
        expected=result.fixed_points[name].q,
        samples=result.samples[name][-1, :, -1],
        tolerance=remembered,
        errors=6,
        tolerance_from="six standard errors and what theory says is still remembered",
    )


def _kept(config, result):
    expected = np.log(2 * np.mean(config.input_variances))
    drift = 2.5 * config.depth / config.width
    return near(
        f"relu, critical: ln of the length of layer {config.depth}, averaged over inputs, is that of layer 1",
        "He et al. 2015, arXiv:1502.01852, eq. (10)",
        origin="exact",
        expected=expected,
        samples=np.log(result.samples["relu, critical"][:, :, -1].mean(axis=0)),
        tolerance=drift,
        errors=6,
        tolerance_from="six standard errors and the typical drift at finite width, half of Var ln q = 5 L / n",
    )


def figure(config, result):
    """One panel a setting, one curve an input length."""
    drawing = plotting.figure(width=11, height=6.4)
    layers = np.arange(1, config.depth + 1)
    for ax, name in zip(drawing.subplots(2, 2, sharex=True).flat, SETTINGS, strict=True):
        for line, samples, variance in zip(
            result.predicted[name], result.samples[name], config.input_variances, strict=True
        ):
            label = f"input of mean square {variance:g}"
            plotting.prediction_and_measurement(
                layers, line, samples, ax=ax, label=label, xlabel="layer", ylabel="length q", log=True
            )
        _, weight_variance, bias_variance = SETTINGS[name]
        ax.set_title(f"{name}: weight variance {weight_variance:g}, bias variance {bias_variance:g}", fontsize=10)
        if "relu" not in name:
            ax.axhline(result.fixed_points[name].q, color="0.6", linewidth=1, label="fixed point q*")
        ax.get_legend().remove()
        plotting.tidy(ax)
    legend_below(drawing, *drawing.axes[0].get_legend_handles_labels())
    return drawing
