"""How deep do signals reach under dropout?

Question
--------
At the edge of chaos correlations travel through any depth. Dropout multiplies each value by noise. Does an edge remain
if a hundredth of the values is dropped, and how far do two inputs remember how alike they were?

Prediction
----------
Values are kept with probability rho and divided by it. At infinite width, masks being drawn anew in each pass,

    q* = w/rho E[f^2] + b,     C(c) = (w E[f(u) f(v)] + b) / q*,     C(1) = 1 - w (1 - rho) / rho E[f^2] / q* < 1,

so equal inputs part, correlations settle at c* < 1 with slope C'(c*) < 1, and the depth scale xi_c = -1 / ln C'(c*) is
finite for every weight variance: no critical point is left. For tanh and b = 0.05 the longest xi_c is 14 layers at
rho = 0.99 and 6 at rho = 0.94. Source: Schoenholz et al. 2017, arXiv:1611.01232, on dropout. Squared gradients do not
see it: they still grow by chi_1 = w/rho E[f'^2], which is 1 at the old critical variance times rho.

Measurement
-----------
Dense tanh networks with a mask in every layer, at the weight variance where theory's xi_c is longest. An input beside
itself (c = 1, other masks) and beside one that is orthogonal but for the biases; correlations layer by layer; xi_c from
the slope of the logarithm of the difference of the two, by the jackknife, beside the same fit to theory's curves.

Verdict
-------
60 networks of width 400 and depth 25 for each keep probability; two CPU cores, shared with other programs, 36 CPU
seconds. All claims hold. No correlation is off by more than 3.1 standard errors. Where xi_c is longest, at 1.75 to
1.85, two passes of one input are correlated by 0.82, 0.45 and 0.23 after 25 layers for rho = 0.99, 0.94 and 0.8
(c* = 0.74, 0.43 and 0.20), and the slopes are -0.084, -0.135 and -0.35 with standard errors 0.004, 0.006 and 0.02
(theory: -0.083, -0.143 and -0.32). The difference that is left of unlike inputs is 0.70 times that of the critical
network at rho = 0.99.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claiming import near, within
from experiments.drawing import dress
from numdl import activations, plotting
from numdl.analysis import propagation as measured
from numdl.networks import core, dense, dropout
from numdl.records import record
from numdl.reporting import Claim
from numdl.statistics import Mean, agreement, mean_and_error, z_limit
from numdl.theory import gradients
from numdl.theory import propagation as predicted

BIAS_VARIANCE = 0.05
SCHOENHOLZ = "Schoenholz et al. 2017, arXiv:1611.01232, on dropout"
TANH = {"activation": activations.tanh, "bias_variance": BIAS_VARIANCE}
PAIRS = ("equal inputs", "unlike inputs")


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    width: int = 400
    depth: int = 25  # hidden layers
    seeds: int = 60  # networks for each keep probability
    keep: tuple[float, ...] = (0.99, 0.94, 0.8)  # the control, 1, is at the critical weight variance
    weight_variances: tuple[float, float, int] = (0.8, 4.0, 65)  # of the search for the longest xi_c
    window: tuple[int, int] = (2, 8)  # layers over which the difference of the correlations is fitted
    seed: int = 0

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(width=150, depth=8, seeds=30, keep=(0.94, 0.8), weight_variances=(1.4, 2.2, 5), window=(2, 5))


@record
class Result:
    """By keep probability; pairs in the order of PAIRS."""

    weight_variances: np.ndarray  # [W]
    scales: dict  # keep -> [W]: predicted xi_c; at 1 the undropped network's
    chosen: dict  # keep -> scalar: the weight variance measured at
    fixed_points: dict  # keep -> DropoutFixedPoint there
    samples: dict  # keep -> [seeds, 2, L]: correlations
    predicted: dict  # keep -> [2, L]


def run(config):
    """Theory over all weight variances, then networks where its depth scale is longest."""
    grid = np.linspace(*config.weight_variances)
    critical = float(predicted.critical_weight_variance(**TANH))
    scales, chosen, points, samples, curves = {}, {}, {}, {}, {}
    for index, keep in enumerate((1.0, *config.keep)):
        found = [_point(w, keep) for w in grid]
        scales[keep] = np.array([float(point.depth_scale_c) for point in found])
        chosen[keep] = critical if keep == 1 else float(grid[scales[keep].argmax()])
        points[keep] = _point(chosen[keep], keep)
        key = jax.random.fold_in(jax.random.key(config.seed), index)
        samples[keep] = _correlations(config, key, keep, chosen[keep], float(points[keep].q))
        curves[keep] = _theory(config, keep, chosen[keep], float(points[keep].q))
    return Result(grid, scales, chosen, points, samples, curves)


def _point(weight_variance, keep):
    return gradients.dropout_fixed_point(weight_variance=weight_variance, keep_probability=keep, **TANH)


def network(width, depth, weight_variance, keep):
    """A dense network, inputs of `width` coordinates, whose parameters hold the key of its masks."""
    plain = dense.network(widths=(width, *[width] * depth, 1), weight_variance=weight_variance, **TANH)

    def init(key, x):
        return {"weights": plain.init(key, x), "masks": jax.random.fold_in(key, 2**20)}

    def states(params, x, probes=None):
        assert probes is None
        return dropout.states(params["masks"], params["weights"], x, activation=activations.tanh, keep_probability=keep)

    return core.Network(init, states, lambda params, y: plain.readout(params["weights"], y))


def _start(weight_variance, q):
    """The correlation of the unlike inputs in the first layer: they are orthogonal, its biases are shared."""
    return np.array([1.0, BIAS_VARIANCE / q]), (q - BIAS_VARIANCE) / weight_variance


def _correlations(config, key, keep, weight_variance, q):
    _, variance = _start(weight_variance, q)
    signs = np.where(np.arange(config.width) % 2, 1.0, -1.0)
    one, other = np.ones(config.width), signs
    pairs = np.sqrt(variance) * np.array([[one, one], [one, other]])
    net = network(config.width, config.depth, weight_variance, keep)
    keys, x = jax.random.split(key, config.seeds), jnp.asarray(pairs, jnp.float32)
    return np.asarray(_sample(keys, x, net), float)


@functools.partial(jax.jit, static_argnames="net")
def _sample(keys, x, net):
    def one(key):
        return measured.correlations_at(net, net.init(key, x[:, 0]), x)

    return jax.lax.map(one, keys)


def _theory(config, keep, weight_variance, q):
    first, _ = _start(weight_variance, q)
    physics = {"weight_variance": weight_variance, "keep_probability": keep, **TANH}
    rest = predicted.correlations(first, depth=config.depth - 1, q=q, **physics)
    return np.concatenate([first[:, None], rest], axis=1)


def rate(config, correlations):
    """Slope of ln(difference of the two pairs' correlations) over the window: [2, L] -> scalar."""
    first, last = config.window
    difference = (correlations[0] - correlations[1])[first - 1 : last]
    return np.polyfit(np.arange(first, last + 1), np.log(difference), 1)[0]


def measured_rate(config, samples):
    """The slope of the mean over networks, with the jackknife's standard error."""
    n, total = len(samples), samples.sum(axis=0)
    left_out = np.array([rate(config, (total - sample) / (n - 1)) for sample in samples])
    return Mean(rate(config, total / n), np.sqrt((n - 1) * np.mean((left_out - left_out.mean()) ** 2)), n)


def claims(config, result):
    """Curves, their ends, their rates; and that every dropped one is short."""
    limit = z_limit(sum(curve[:, 1:].size for curve in result.predicted.values()))
    made = [_curves(result, keep, limit) for keep in result.samples]
    made += [_end(config, result, keep) for keep in config.keep]
    made += [_rate(config, result, keep) for keep in config.keep]
    return [*made, _remembers(result)]


def _curves(result, keep, limit):
    z = agreement(result.predicted[keep][:, 1:], result.samples[keep][:, :, 1:]).z
    return within(
        f"keep {keep:g}, weight variance {result.chosen[keep]:.4g}: largest |measured - predicted| correlation over "
        "both pairs and layers from the second, in standard errors",
        SCHOENHOLZ,
        z,
        limit=limit,
        why="one false alarm in a million for all correlations of this experiment together",
    )


def _end(config, result, keep):
    return near(
        f"keep {keep:g}: correlation of two passes of one input after {config.depth} layers is at most half way from "
        f"1 to c* = {float(result.fixed_points[keep].c):.3g}",
        f"{SCHOENHOLZ}: c = 1 is no longer a fixed point",
        origin="own",
        expected=(1 + float(result.fixed_points[keep].c)) / 2,
        samples=result.samples[keep][:, 0, -1],
        tolerance=0.0,
        tolerance_from="half of the way to c*",
        relation="<=",
    )


def _rate(config, result, keep):
    found = measured_rate(config, result.samples[keep])
    longest = float(result.fixed_points[keep].depth_scale_c)
    return Claim(
        f"keep {keep:g}, where xi_c is longest, {longest:.3g} layers: slope of ln of the two pairs' difference, layers "
        f"{config.window[0]} to {config.window[1]}",
        f"{SCHOENHOLZ}: xi_c is finite at every weight variance",
        origin="exact",
        expected=rate(config, result.predicted[keep]),
        measured=found.mean,
        uncertainty=found.stderr,
        tolerance=5 * found.stderr,
        tolerance_from="five standard errors over networks",
    )


def _remembers(result):
    gaps = {keep: samples[:, 0, -1] - samples[:, 1, -1] for keep, samples in result.samples.items()}
    dropped = max((mean_and_error(gap) for keep, gap in gaps.items() if keep < 1), key=lambda gap: gap.mean)
    control = mean_and_error(gaps[1.0])
    return Claim(
        "difference of the two pairs' correlations in the last layer: the longest of the dropped networks over the "
        "critical one without dropout",
        f"{SCHOENHOLZ}: dropout bounds the depth",
        origin="own",
        expected=1.0,
        measured=dropped.mean / control.mean,
        uncertainty=np.hypot(dropped.stderr, dropped.mean / control.mean * control.stderr) / control.mean,
        tolerance=0.0,
        tolerance_from="less is less",
        relation="<=",
    )


def figure(config, result):
    """Left xi_c over weight variances, right correlations on their way."""
    drawing = plotting.figure(width=11.5, height=4.2)
    left, right = drawing.subplots(1, 2)
    layers = np.arange(1, config.depth + 1)
    for color, keep in zip(plotting.COLORS, result.samples, strict=False):
        left.plot(result.weight_variances, result.scales[keep], "--", color=color, label=f"keep {keep:g}")
        if keep < 1:
            left.axvline(result.chosen[keep], color=color, linewidth=0.6)
        samples = mean_and_error(result.samples[keep])
        for pair, marker in enumerate("os"):
            right.plot(layers, result.predicted[keep][pair], "--", color=color, linewidth=1)
            label = f"keep {keep:g}" if not pair else None
            right.errorbar(layers, samples.mean[pair], samples.stderr[pair], fmt=marker, ms=3, color=color, label=label)
    left.set(xlabel="weight variance", ylabel="depth scale xi_c, layers (predicted)", yscale="log", ylim=(1, 200))
    dress(left, title="lines: where the networks are measured")
    right.plot([], [], "k--", linewidth=1, label="predicted")
    right.set(
        title="circles: the same input twice; squares: unlike inputs",
        xlabel="layer",
        ylabel="correlation of two passes",
    )
    dress(right)
    return drawing
