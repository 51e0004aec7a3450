"""How small must the branches of a deep residual network be?

Question
--------
y_{l+1} = y_l + h V relu(y_l K) with h = L^-beta, at initialization: for which beta does a network of L = 10, 100, 1000
layers explode, do nothing, or neither?

Prediction
----------
V has mean zero and is independent of K, and relu of a symmetric variable keeps half of its square. So with
weight variances w and v, exactly, at every width and depth,

    E |y_L|^2 = (1 + h^2 w v / 2)^L |y_0|^2,    E |y_L - y_0|^2 = ((1 + h^2 w v / 2)^L - 1) |y_0|^2,

and gradients grow by the same factor. L^(1 - 2 beta) decides: beta = 0.25 explodes, 1/2 stays of order one, 1 is the
identity in the limit (and the scaling of an ODE only if the weights are smooth in depth). The variance of |y_L|^2 is
known exactly, too. All this is wrong for the one-layer block y + h relu(y K): relu has a mean, all coordinates drift
together, and at h = L^-1/2 the logarithm grows like 2 sqrt(w L / (2 pi)). Source: Marion et al. 2022, arXiv:2206.06929.

Measurement
-----------
Residual networks as built by `networks.residual`, w = v = 1, no biases; every draw of the weights serves all beta.
Squared lengths and displacements of one input, and the squared gradient of a random linear function of y_L.

Verdict
-------
100 networks of width 64 for each depth and block; two CPU cores, 31 s. All claims hold.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.claiming import one_number, within
from experiments.drawing import dress
from numdl import activations, plotting
from numdl.networks import residual
from numdl.records import record
from numdl.reporting import Claim
from numdl.statistics import agreement, mean_and_error, z_limit
from numdl.theory import gradients as predicted

MARION = "Marion et al. 2022, arXiv:2206.06929"
BETAS = {"0.25": 0.25, "0.5": 0.5, "1": 1.0}
WEIGHT_VARIANCE = 1.0  # of both matrices


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    width: int = 64
    depths: tuple[int, ...] = (10, 100, 1000)
    draws: int = 100  # networks for each depth and block
    seed: int = 0

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(width=16, depths=(5, 20, 80), draws=60)


@record
class Result:
    """Squared lengths relative to |y_0|^2, and squared gradients relative to those of the output."""

    length: dict  # beta -> [depths, draws], two-layer block
    displacement: dict  # beta -> [depths, draws], two-layer block
    gradient: dict  # beta -> [depths, draws], two-layer block
    one_layer: dict  # beta -> [depths, draws]: length, one-layer block


def run(config):
    """Every depth and block once, all beta on the same weights."""
    two = [_measure(config, depth, "two_layer") for depth in config.depths]
    one = [_measure(config, depth, "one_layer") for depth in config.depths]
    by_beta = {name: index for index, name in enumerate(BETAS)}
    pick = lambda runs, field: {name: np.stack([r[field][:, i] for r in runs]) for name, i in by_beta.items()}  # noqa: E731
    return Result(pick(two, 0), pick(two, 1), pick(two, 2), pick(one, 0))


def network(width, depth, block, step):
    """A residual network without connectors: the input is y_0."""
    return residual.network(
        widths=(width, width, 1),
        depth=depth,
        block=block,
        activation=activations.relu,
        weight_variance=WEIGHT_VARIANCE,
        bias_variance=0.0,
        step=step,
    )


def _measure(config, depth, block):
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), depth), config.draws)
    steps = jnp.asarray([depth**-beta for beta in BETAS.values()], jnp.float32)
    samples = _samples(keys, steps, config.width, depth, block)
    return tuple(np.asarray(a, np.float64) for a in samples)


@functools.partial(jax.jit, static_argnames=("width", "depth", "block"))
def _samples(keys, steps, width, depth, block):
    # Coordinates of mean zero: the one-layer block starts without a drift.
    x = jnp.tile(jnp.asarray([1.0, -1.0], jnp.float32), width // 2)[None]

    def draw(key):
        key_weights, key_cotangent = jax.random.split(key)
        params = network(width, depth, block, steps[0]).init(key_weights, x)
        cotangent = jax.random.normal(key_cotangent, x.shape, x.dtype)
        return lax.map(lambda step: _ratios(network(width, depth, block, step), params, x, cotangent), steps)

    return lax.map(draw, keys)


def _ratios(net, params, x, cotangent):
    y, pull = jax.vjp(lambda x: net.states(params, x, save=False)[-1][-1], x)
    squares = [jnp.sum(a**2) / jnp.sum(b**2) for a, b in ((y, x), (y - x, x), (pull(cotangent)[0], cotangent))]
    return tuple(squares)


def growth(depth, beta, width):
    """Mean and relative variance of |y_L|^2 / |y_0|^2 for the two-layer relu block, exact.

    mean = (1 + g)^L,   g = h^2 w v / 2
    E|y_{l+1}|^4 / |y_l|^4 = 1 + 2 g + 4 g / n + g^2 (1 + 2/n) (1 + 5/n):
    V gives a chi-square with n degrees of freedom, relu of n Gaussians the factor 1 + 5/n.
    """
    g = depth ** (-2 * beta) * WEIGHT_VARIANCE**2 / 2
    fourth = 1 + 2 * g + 4 * g / width + g**2 * (1 + 2 / width) * (1 + 5 / width)
    return np.exp(depth * np.log1p(g)), np.expm1(depth * (np.log(fourth) - 2 * np.log1p(g)))


def claims(config, result):
    """Lengths at every beta and depth, the three regimes, gradients, and the warning about one layer."""
    made = [_lengths(config, result, name) for name in BETAS]
    made += [_displacement(config, result, name) for name in ("0.5", "1")]
    return [*made, _explodes(config, result), _gradients(config, result), _one_layer(config, result)]


def _lengths(config, result, name):
    z = []
    for depth, samples in zip(config.depths, result.length[name], strict=True):
        mean, variance = growth(depth, BETAS[name], config.width)
        z.append((samples.mean() / mean - 1) / np.sqrt(variance / samples.size))
    return within(
        f"beta = {name}: largest |measured - predicted| mean of |y_L|^2 over depths {config.depths}, in standard "
        "errors",
        f"(1 + h^2 / 2)^L, exact at every width; {MARION}",
        z,
        limit=z_limit(len(BETAS) * len(config.depths)),
        why="one false alarm in a million; the variance of |y_L|^2 is taken from theory",
    )


def _displacement(config, result, name):
    depth, samples = config.depths[-1], mean_and_error(result.displacement[name][-1])
    distance = np.sqrt(samples.mean)
    stderr = samples.stderr / (2 * distance)
    return Claim(
        f"beta = {name}, {depth} layers: root mean square of |y_L - y_0| / |y_0|",
        MARION,
        origin="exact",
        expected=np.sqrt(growth(depth, BETAS[name], config.width)[0] - 1),
        measured=distance,
        uncertainty=stderr,
        tolerance=6 * stderr,
        tolerance_from="six standard errors",
    )


def _explodes(config, result):
    grown = [np.log(samples.mean()) for samples in result.length["0.25"]]
    least = np.sqrt(config.depths[-1]) / 4
    return one_number(
        f"beta = 0.25: ln of the mean of |y_L|^2 / |y_0|^2 after {config.depths[-1]} layers is at least sqrt(L) / 4",
        MARION,
        origin="own",
        expected=least,
        measured=grown[-1],
        tolerance_from="half of sqrt(L) / 2, to which L ln(1 + 1 / (2 sqrt(L))) tends",
        relation=">=",
    )


def _gradients(config, result):
    z = []
    for depth, samples in zip(config.depths, result.gradient["0.5"], strict=True):
        chi = predicted.residual_growth(
            1.0,
            depth=depth,
            step=depth**-0.5,
            activation=activations.relu,
            weight_variance=WEIGHT_VARIANCE,
            second_weight_variance=WEIGHT_VARIANCE,
            bias_variance=0.0,
        ).chi[0]  # of every block but the first, which log_products leaves to the input
        z.append(agreement(chi**depth, samples).z)
    return within(
        f"beta = 0.5: largest |measured - predicted| mean squared gradient of y_0 over depths {config.depths}, in "
        "standard errors",
        "Yang & Schoenholz 2017, arXiv:1712.08969; exact at every width for this block",
        z,
    )


def _one_layer(config, result):
    depth, samples = config.depths[-1], mean_and_error(np.log(result.one_layer["0.5"][-1]))
    naive = depth * np.log1p(WEIGHT_VARIANCE / (2 * depth))
    drift = 2 * np.sqrt(WEIGHT_VARIANCE * depth / (2 * np.pi))
    return Claim(
        f"one-layer relu block, beta = 0.5, {depth} layers: mean of ln |y_L|^2 / |y_0|^2 is at least half of "
        f"2 sqrt(L / (2 pi)) = {drift:.3g}; as for two layers it would be {naive:.2g}",
        "relu's mean makes all coordinates drift together: y^2 grows like exp(2 E[f] / sqrt(E y^2) h L)",
        origin="own",
        expected=drift / 2,
        measured=samples.mean,
        uncertainty=samples.stderr,
        tolerance=0.0,
        tolerance_from="half of the leading term, which is reached as L grows",
        relation=">=",
    )


def figure(config, result):
    """Left the regimes of the two-layer block, right the one-layer block at the same scalings."""
    drawing = plotting.figure(width=11, height=4.4)
    left, right = drawing.subplots(1, 2)
    depths = np.asarray(config.depths, float)
    fine = np.geomspace(depths[0], depths[-1], 100)
    for color, (name, beta) in zip(plotting.COLORS, BETAS.items(), strict=False):
        exact = np.sqrt(np.expm1(fine * np.log1p(fine ** (-2 * beta) / 2)))
        left.plot(fine, exact, "--", color="k", linewidth=1, label="predicted" if name == "1" else None)
        samples = mean_and_error(result.displacement[name], axis=1)
        error = samples.stderr / (2 * np.sqrt(samples.mean))
        left.errorbar(depths, np.sqrt(samples.mean), error, fmt="o", color=color, label=f"beta = {name}")
        logs = mean_and_error(np.log(result.one_layer[name]), axis=1)
        right.errorbar(depths, logs.mean, logs.stderr, fmt="o-", color=color, label=f"beta = {name}")
    right.plot(fine, 2 * np.sqrt(fine / (2 * np.pi)), ":", color="k", label="drift at beta = 0.5")
    left.set(ylabel="|y_L - y_0| / |y_0|, root mean square", yscale="log")
    left.set_title("two layers: y + h V relu(y K)", fontsize=10)
    right.set_yscale("symlog", linthresh=0.1)
    right.set_ylabel("mean of ln |y_L|² / |y_0|²")
    right.set_title("one layer: y + h relu(y K) drifts", fontsize=10)
    for ax in (left, right):
        ax.set_xscale("log")
        ax.set_xticks(config.depths, [str(depth) for depth in config.depths])
        ax.minorticks_off()
        dress(ax, xlabel="depth L")
    return drawing
