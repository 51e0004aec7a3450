"""How deep can two digits be told apart?

Question
--------
Two images of digits enter a random deep network. How similar are their pre-activations after each layer? Down to which
depth does the network still know that they were different, or that they were alike?

Prediction
----------
At infinite width and at the length's fixed point q* the correlation of the two follows
c_{l+1} = C(c_l) = (weight_variance E[f(u) f(v)] + bias_variance) / q*. Where chi_1 = C'(1) < 1 (ordered) every pair
converges to c = 1; where chi_1 > 1 (chaotic) even near twins part, down to c* < 1. Both take a depth scale
xi_c = -1 / ln C'(c*), which grows without bound at criticality, chi_1 = 1.
Source: Poole et al. 2016, arXiv:1606.05340, fig. 2; Schoenholz et al. 2017, arXiv:1611.01232, figs. 2 and 3.

Measurement
-----------
The cosine between the pre-activations of pairs of real digits, mean image subtracted, scaled so that every layer starts
at q*, in dense tanh networks drawn at random; the depth scale from the slope of ln(1 - c_l), at three widths and
extrapolated in 1 / width, because a network of finite width forgets faster by a term of that order.

Verdict
-------
40 networks of width 400 and depth 25 in three phases, 8 pairs; 100 networks of widths 100, 200 and 400 for the depth
scale; two CPU cores, 13 s. All claims hold.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claiming import near, one_number, within
from experiments.drawing import dress
from numdl import activations, data, plotting
from numdl.analysis import propagation as measured
from numdl.networks import dense
from numdl.records import record
from numdl.reporting import Claim
from numdl.statistics import agreement, extrapolate, mean_and_error, z_limit
from numdl.theory import propagation as predicted

BIAS_VARIANCE = 0.05
SCHOENHOLZ = "Schoenholz et al. 2017, arXiv:1611.01232, figs. 2, 3"
ORDERED, CRITICAL, CHAOTIC = "ordered", "critical", "chaotic"


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    width: int = 400
    depth: int = 25  # hidden layers
    seeds: int = 40  # networks for each phase
    pairs: int = 8  # pairs of digits
    weight_variances: tuple[float, float] = (1.3, 4.0)  # ordered and chaotic; the critical one is computed
    scale_widths: tuple[int, ...] = (100, 200, 400)  # for the depth scale, extrapolated to infinite width
    scale_seeds: int = 100
    scale_window: tuple[int, int] = (8, 20)  # layers over which ln(1 - c) is fitted
    seed: int = 0

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(
            width=100, depth=8, seeds=100, pairs=3, scale_widths=(40, 60, 80), scale_seeds=30, scale_window=(3, 8)
        )


@record
class Result:
    """Correlations by phase, and the depth scale by width."""

    weight_variances: dict  # phase -> scalar
    samples: dict  # phase -> [seeds, pairs, L]
    predicted: dict  # phase -> [pairs, L]
    fixed_points: dict  # phase -> FixedPoint
    rates: np.ndarray  # [widths, seeds]  slope of ln(1 - c_l) over the window, ordered phase, first pair
    predicted_rate: np.ndarray  # []


def physics(weight_variance):
    """The settings shared by theory and network."""
    return {"activation": activations.tanh, "weight_variance": weight_variance, "bias_variance": BIAS_VARIANCE}


def digit_pairs(config, fixed_point, weight_variance):
    """Pairs of centred digits [P, 2, 64] scaled so that layer 1 has length q*, and their correlations there [P]."""
    images = np.asarray(data.digits().images, dtype=float).reshape(-1, 64)
    images = (images - images.mean(axis=0))[: 2 * config.pairs]
    variance = (fixed_point.q - BIAS_VARIANCE) / weight_variance
    images *= np.sqrt(variance / np.mean(images**2, axis=1, keepdims=True))
    pairs = images.reshape(config.pairs, 2, 64)
    overlap = np.mean(pairs[:, 0] * pairs[:, 1], axis=1)
    return pairs, (weight_variance * overlap + BIAS_VARIANCE) / fixed_point.q


def run(config):
    """Three phases on the digits, then the depth scale at several widths."""
    critical = float(predicted.critical_weight_variance(activation=activations.tanh, bias_variance=BIAS_VARIANCE))
    weights = {ORDERED: config.weight_variances[0], CRITICAL: critical, CHAOTIC: config.weight_variances[1]}
    samples, lines, points = {}, {}, {}
    for index, (phase, weight_variance) in enumerate(weights.items()):
        points[phase] = predicted.fixed_point(**physics(weight_variance))
        pairs, first = digit_pairs(config, points[phase], weight_variance)
        samples[phase] = _correlations(config, index, weight_variance, pairs, config.width, config.seeds)
        rest = predicted.correlations(first, depth=config.depth - 1, q=points[phase].q, **physics(weight_variance))
        lines[phase] = np.concatenate([first[:, None], rest], axis=1)
    pairs, _ = digit_pairs(config, points[ORDERED], weights[ORDERED])
    rates = [
        _rates(config, _correlations(config, 10 + i, weights[ORDERED], pairs[:1], width, config.scale_seeds))
        for i, width in enumerate(config.scale_widths)
    ]
    rate = _rates(config, lines[ORDERED][None])[0]
    return Result(weights, samples, lines, points, np.stack(rates), rate)


def _correlations(config, stream, weight_variance, pairs, width, seeds):
    network = dense.network(widths=(64, *[width] * config.depth, 10), **physics(weight_variance))
    key = jax.random.fold_in(jax.random.key(config.seed), stream)
    return np.asarray(measured.correlations(key, network, jnp.asarray(pairs, dtype=jnp.float32), seeds=seeds), float)


def _rates(config, correlations):
    """Slope of ln(1 - c_l) over the window, for the first pair: [seeds]."""
    start, stop = config.scale_window
    layers = np.arange(start, stop + 1)
    return np.polyfit(layers, np.log(1 - correlations[:, 0, start - 1 : stop]).T, 1)[0]


def claims(config, result):
    """No correlation is off by more than chance allows; where pairs end; how fast."""
    limit = z_limit(sum(line.size for line in result.predicted.values()))
    made = [_no_outlier(phase, result, limit) for phase in result.samples]
    return [*made, _parted(config, result), _critical_variance(result), _rate(config, result)]


def _no_outlier(phase, result, limit):
    z = agreement(result.predicted[phase], result.samples[phase]).z
    return within(
        f"{phase}, weight variance {result.weight_variances[phase]:.4g}: largest |measured - predicted| correlation "
        "over layers and pairs, in standard errors",
        SCHOENHOLZ,
        z,
        limit=limit,
        why="one false alarm in a million for all correlations of this experiment together",
    )


def _parted(config, result):
    remembered = abs(result.predicted[CHAOTIC][:, -1].mean() - result.fixed_points[CHAOTIC].c)
    return near(
        f"chaotic: mean correlation of the pairs at layer {config.depth} is the fixed point c*",
        SCHOENHOLZ,
        origin="exact",
        expected=result.fixed_points[CHAOTIC].c,
        samples=result.samples[CHAOTIC][:, :, -1].mean(axis=1),
        tolerance=remembered,
        errors=6,
        tolerance_from="six standard errors and what theory says is still remembered",
    )


def _critical_variance(result):
    return one_number(
        "tanh is critical at bias variance 0.05 for this weight variance",
        "root of chi_1 = 1 by mpmath at 20 digits; Schoenholz et al. 2017, fig. 1",
        origin="exact",
        expected=1.7609546396067391316,
        measured=result.weight_variances[CRITICAL],
        tolerance=1e-10,
        tolerance_from="rounding and quadrature",
    )


def _rate(config, result):
    """The rate without the bias of finite width."""
    means = mean_and_error(result.rates, axis=1)
    limit = extrapolate(1 / np.asarray(config.scale_widths), means.mean, means.stderr)
    start, stop = config.scale_window
    return Claim(
        f"ordered: slope of ln(1 - c) per layer over layers {start} to {stop}, extrapolated to infinite width "
        f"(-1 / depth scale; asymptotically {-1 / result.fixed_points[ORDERED].depth_scale_c:.4f})",
        SCHOENHOLZ,
        origin="exact",
        expected=result.predicted_rate,
        measured=limit.mean,
        uncertainty=limit.stderr,
        tolerance=6 * limit.stderr,
        tolerance_from="six standard errors of the intercept in 1 / width",
    )


def figure(config, result):
    """Three phases, then the depth scale against 1 / width."""
    drawing = plotting.figure(width=11, height=6.8)
    axes = list(drawing.subplots(2, 2).flat)
    layers = np.arange(1, config.depth + 1)
    for ax, phase in zip(axes, result.samples, strict=False):
        shown = np.argsort(result.predicted[phase][:, 0])[[0, config.pairs // 2, -1]]
        for pair in shown:
            plotting.prediction_and_measurement(
                layers,
                result.predicted[phase][pair],
                result.samples[phase][:, pair],
                ax=ax,
                label=f"pair that enters at {result.predicted[phase][pair, 0]:.2f}",
                xlabel="layer",
                ylabel="correlation c",
            )
        scale = result.fixed_points[phase].depth_scale_c
        length = f"depth scale {scale:.1f} layers" if np.isfinite(scale) else "no finite depth scale"
        ax.set(title=f"{phase}: weight variance {result.weight_variances[phase]:.3f}, {length}")
        dress(ax, ylim=(min(-0.3, ax.get_ylim()[0]), 1.05), loc="lower right" if phase != CHAOTIC else "upper right")
    _draw_rates(axes[3], config, result)
    return drawing


def _draw_rates(ax, config, result):
    means = mean_and_error(result.rates, axis=1)
    inverse = 1 / np.asarray(config.scale_widths, dtype=float)
    ax.errorbar(inverse, means.mean, means.stderr, fmt="o", color=plotting.COLORS[0], label="measured")
    ax.plot(0, result.predicted_rate, "k_", markersize=14, markeredgewidth=2, label="predicted, infinite width")
    line = np.polynomial.Polynomial.fit(inverse, means.mean, 1, w=1 / means.stderr)
    ends = np.array([0, inverse.max()])
    ax.plot(ends, line(ends), color=plotting.COLORS[0], linewidth=1, label="extrapolation")
    dress(ax, title="ordered: finite width forgets faster", xlabel="1 / width", ylabel="slope of ln(1 - c) per layer")
