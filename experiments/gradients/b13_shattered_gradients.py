"""Do gradients at two inputs have anything in common in a deep network?

Question
--------
A step on one example helps another if their gradients are alike. At the start, how much of the gradient at one input is
left in the gradient at another, layer after layer back from the outputs, with and without skip connections and batch
normalization?

Prediction
----------
On its way back a layer multiplies the correlation of two gradients by E f'(u) f'(u') / E f'(u)^2: of relu, the share of
active units that are active for both. If a unit's two pre-activations are uncorrelated, that is 1/2, and a residual
block has (1 + 1/2) / (1 + 1) = 3/4: 1 / 2^L and (3/4)^L. Batch normalization, of a large batch of uncorrelated inputs,
keeps them so. Without it they become alike, 1 - c ~ l^-2, and both architectures lose L^-3 in the end instead. A stream
of batch-normalized blocks grows by h^2 v Var f a block, so that block l counts as 1 / l, and L^-k is left:
k = pi / (2 (pi - 1)) = 0.733 for relu; who counts E f^2 for Var f gets 1 / sqrt(L).
Source: Balduzzi et al. 2017, arXiv:1702.08591 (exponential decay without skip connections, sublinear with them; 1/2^L,
(3/4)^L and 1/sqrt(L) for units of which a quarter is active for both of two inputs); the recursions are those of
numdl.theory.shattering.

Measurement
-----------
The cosine between d(v.f)/dy_l at pairs of orthogonal inputs, v the same for both, at every layer of random relu
networks with a linear readout: plain and residual, each with and without batch normalization, whose statistics come of
a batch of other inputs and stay fixed. Means over networks at three widths, extrapolated in 1 / width. Exponents in the
limit come of the recursions at depths that no network here has.

Verdict
-------
60 networks of depth 16 for each of four kinds and three widths, 8 pairs each; two CPU cores, shared with other
programs, 60 CPU seconds. All claims hold. Batch-normalized plain networks halve the correlation layer by layer, by
exp(-0.699) with standard error 0.038; residual ones have the exponent 0.622 (error 0.006) between 8 and 16 blocks, and
0.733 in the end. The residual networks without normalization of this seed lie 3.4 standard errors above their recursion
at y_1, the most of all; 200 more networks of width 256, of other seeds, within one. (3/4)^L is nowhere to be seen: what
keeps two inputs uncorrelated, batch normalization, also shrinks the share of the block. The paper's 1 / 2^L and
1 / sqrt(L) are from memory: the abstract and a summary were at hand, its theorems were not. That the recursions of
unnormalized networks end in L^-3 was known before the limit of the claim was chosen.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claiming import in_errors, one_number
from experiments.drawing import dress
from numdl import activations, plotting
from numdl.analysis import shattering as measured
from numdl.networks import dense, normalization, residual
from numdl.records import record
from numdl.reporting import Claim
from numdl.statistics import extrapolate, mean_and_error
from numdl.theory import shattering as predicted

BALDUZZI = "Balduzzi et al. 2017, arXiv:1702.08591"
RECURSION = f"{BALDUZZI}; recursion of numdl.theory.shattering"
KINDS = ("plain", "plain, batch norm", "residual", "residual, batch norm")
VISIBLE = 0.02  # correlations below it are lost in the noise of these widths
LAYERS = 5  # of the plain batch-normalized network, for its rate: 1/32 is visible
OUTPUTS = 8
RELU = {"activation": activations.relu, "bias_variance": 0.0}
BLOCK = {**RELU, "weight_variance": 1.0, "second_weight_variance": 2.0, "step": 1.0}
POWER = np.pi / (2 * (np.pi - 1))


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    widths: tuple[int, ...] = (64, 128, 256)
    depth: int = 16
    seeds: int = 60  # networks of each kind and width
    pairs: int = 8  # of inputs, for each network
    batch: int = 1024  # inputs that the statistics come of
    far: int = 4000  # depth of the recursions, for the exponents
    seed: int = 0

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(widths=(32, 64), depth=8, seeds=30, pairs=4, batch=256, far=1000)


@record
class Result:
    """Correlations of gradients; layers are numbered from 1, the last dimension is the layer."""

    measured: dict  # kind -> [widths, seeds, L]
    predicted: dict  # kind -> [L]
    far: dict  # kind -> [blocks]  recursion: correlation of the gradients of y_1 after so many more layers


def run(config):
    """The four kinds at every width, then the recursions."""
    found = {kind: [] for kind in KINDS}
    for index, kind in enumerate(KINDS):
        for width in config.widths:
            key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), index), width)
            keys = jax.random.split(key, config.seeds)
            found[kind].append(np.asarray(_sample(keys, kind, width, config), float))
    theory = {kind: _theory(kind, config.depth).gradient for kind in KINDS}
    return Result(
        {k: np.stack(rows) for k, rows in found.items()}, theory, {kind: _far(kind, config) for kind in KINDS}
    )


def network(kind, width, depth):
    """A network of this kind; relu keeps lengths where nothing normalizes and nothing is added."""
    if kind == "plain":
        return dense.network(widths=(*[width] * (depth + 1), OUTPUTS), weight_variance=2.0, **RELU)
    if kind == "plain, batch norm":
        sizes = {"width": width, "depth": depth, "outputs": OUTPUTS}
        return normalization.network(activation=activations.relu, weight_variance=2.0, eps=0.0, **sizes)
    norm = "batch" if "norm" in kind else "none"
    return residual.network(widths=(width, width, OUTPUTS), depth=depth, block="two_layer", norm=norm, **BLOCK)


def _theory(kind, depth):
    physics = {"x_variance": 1.0, "depth": depth, "normalized": "norm" in kind}
    if "plain" in kind:
        return predicted.dense(0.0, weight_variance=2.0, **physics, **RELU)
    return predicted.residual(0.0, **physics, **BLOCK)


def _far(kind, config):
    """Down to where float64 ends: a stream that doubles in each block, a correlation that is halved by each layer."""
    short = kind in ("plain, batch norm", "residual")
    gradient = _theory(kind, min(config.far, 1000) if short else config.far).gradient
    return gradient[0] / gradient


@functools.partial(jax.jit, static_argnames=("kind", "width", "config"))
def _sample(keys, kind, width, config):
    """[seeds, L], means over pairs."""
    net = network(kind, width, config.depth)

    def one(key):
        start, pair_key, batch_key, v_key = jax.random.split(key, 4)
        x = _orthogonal(pair_key, config.pairs, width)
        params = net.init(start, x[:, 0])
        if "norm" in kind:
            freeze = residual.freeze if "residual" in kind else normalization.freeze
            params = freeze(net, params, jax.random.normal(batch_key, (config.batch, width), x.dtype))
        v = jax.random.normal(v_key, (OUTPUTS,), x.dtype)
        return measured.gradient_correlations(net, params, x, v).mean(axis=0)

    return jax.lax.map(one, keys)


def _orthogonal(key, pairs, width):
    """Pairs of Gaussian inputs [pairs, 2, width], made orthogonal and of mean square 1."""
    one, other = jnp.moveaxis(jax.random.normal(key, (pairs, 2, width), jnp.float32), 1, 0)
    one = one / jnp.linalg.norm(one, axis=1, keepdims=True)
    other = other - jnp.sum(one * other, axis=1, keepdims=True) * one
    return jnp.sqrt(width) * jnp.stack([one, other / jnp.linalg.norm(other, axis=1, keepdims=True)], axis=1)


def at_infinite_width(config, samples):
    """(mean, standard error), both [L], of the limit in 1 / width of samples [widths, seeds, L]."""
    means = mean_and_error(samples, axis=1)
    limits = [
        extrapolate(1 / np.asarray(config.widths), mean, error)
        for mean, error in zip(means.mean.T, means.stderr.T, strict=True)
    ]
    return np.array([limit.mean for limit in limits]), np.array([limit.stderr for limit in limits])


def claims(config, result):
    """Every kind against its recursion, the published rate and power, the limits."""
    made = [_against_recursion(config, result, kind) for kind in KINDS]
    made += [_halved(config, result), _sublinear(config, result)]
    made += [_power(result, kind, 3.0) for kind in ("plain", "residual")]
    return [*made, _power(result, "residual, batch norm", POWER)]


def _against_recursion(config, result, kind):
    mean, error = at_infinite_width(config, result.measured[kind])
    seen = (result.predicted[kind] > VISIBLE) & (result.predicted[kind] < 1)
    z = (mean[seen] - result.predicted[kind][seen]) / error[seen]
    return in_errors(f"{kind}: correlation of gradients, infinite width, {seen.sum()} layers", RECURSION, z)


def _halved(config, result):
    layers = min(LAYERS, config.depth)
    mean, error = at_infinite_width(config, result.measured["plain, batch norm"])
    rate, rate_error = np.log(mean[-layers]) / layers, error[-layers] / abs(mean[-layers]) / layers
    return Claim(
        f"plain, batch norm: ln of the correlation of gradients per layer, {layers} layers: 1 / 2^L",
        f"{BALDUZZI}: without skip connections",
        origin="published",
        expected=np.log(0.5),
        measured=rate,
        uncertainty=rate_error,
        tolerance=5 * rate_error,
        tolerance_from="five standard errors of the limit in 1 / width",
    )


def _sublinear(config, result):
    """The exponent of networks as they are, the largest width, between half of the depth and all of it.

    Blocks m+1..L take from R(L), the correlation after L blocks, what R(L) has less than R(m): the gradient of y_m.
    """
    samples, half = result.measured["residual, batch norm"][-1], config.depth // 2
    found = mean_and_error(samples[:, half - 1])
    span = np.log(config.depth / half)
    return Claim(
        f"residual, batch norm, width {config.widths[-1]}: exponent of the decay between {half} and "
        f"{config.depth} blocks is below 1",
        f"{BALDUZZI}: sublinear with skip connections",
        origin="published",
        expected=1.0,
        measured=-np.log(found.mean) / span,
        uncertainty=found.stderr / found.mean / span,
        tolerance=0.0,
        tolerance_from="what sublinear means",
        relation="<=",
    )


def _power(result, kind, expected):
    far = result.far[kind]
    start = len(far) // 2
    return one_number(
        f"{kind}: the recursion's exponent in depth, layers {start} to {len(far)}",
        RECURSION,
        origin="exact",
        expected=expected,
        measured=-np.log(far[-1] / far[start - 1]) / np.log(len(far) / start),
        tolerance=10 * np.log(start) / start,
        tolerance_from="the next term, of order ln l / l, with a factor of order 10",
    )


def figure(config, result):
    """Correlations by the number of layers passed; the recursions' powers; what the width does."""
    drawing = plotting.figure(width=14, height=4.4)
    by_layer, far, by_width = drawing.subplots(1, 3)
    colors = dict(zip(KINDS, plotting.COLORS, strict=False))
    for kind, color in colors.items():
        _draw_layers(by_layer, config, result, kind, color)
        places = np.arange(1, len(result.far[kind]) + 1)
        shown = result.far[kind] > 1e-12
        far.plot(places[shown], result.far[kind][shown], color=color, label=kind)
        samples = mean_and_error(result.measured[kind][..., 0], axis=1)
        inverse = 1 / np.asarray(config.widths)
        by_width.errorbar(inverse, samples.mean, samples.stderr, fmt="o", color=color, label=kind)
        by_width.plot([0], result.predicted[kind][:1], "k_", markersize=14, markeredgewidth=2)
    _draw_rules(by_layer, config)
    by_layer.set(xlabel="layers or blocks that the gradients have passed", ylim=(VISIBLE / 4, 1.3))
    far.set(xlabel="depth of the recursion", xscale="log")
    by_width.set(xlabel="1 / width (0: predicted)")
    for ax in (by_layer, far):
        dress(ax, ylabel="correlation of the gradients at two inputs", yscale="log")
    by_width.set_ylabel("correlation of the gradients of y_1")
    by_width.set_title("colors as in the other two", fontsize=9)
    plotting.tidy(by_width)
    return drawing


def _draw_layers(ax, config, result, kind, color):
    passed = np.arange(config.depth, 0, -1) - ("residual" in kind)
    mean, error = at_infinite_width(config, result.measured[kind])
    shown = mean > np.maximum(2 * error, VISIBLE / 4)
    ax.errorbar(passed[shown], mean[shown], error[shown], fmt="o", ms=4, color=color, label=kind)
    ax.plot(passed, result.predicted[kind], color=color, linewidth=1)


def _draw_rules(ax, config):
    passed = np.arange(config.depth + 1)
    for base, name, style in ((0.5, "1 / 2^L", "k:"), (0.75, "(3/4)^L", "k--")):
        ax.plot(passed, base**passed, style, linewidth=1, label=name)
