"""Do two numbers of the initialization, the angle and the gradient exponent, tell which deep transformers train?

Question
--------
By depth, the tokens of a transformer grow alike or part, and gradients vanish or explode, both exponentially. Cowsik et
al. find that two exponents, known before the first step, predict the loss after training, and that it is small only
where both vanish. Does this hold in small transformers, and are two numbers better than one?

Prediction
----------
A block with norms behind unit skips, value gain v, MLP of mean square m and mean squared slope a, tokens nearly alike:

    gradient exponent  g = ln((1 + a) / (1 + m)),      angle exponent  t = g - ln(1 + v)

1 - c of two tokens changes as exp(t L) over L blocks, the gradient that tokens have in common as exp(g L), downwards.
Trained nets then have |t| L and |g| L of order 1, so that the depth to which a network can be trained is 1 / |t| or 1 /
|g|, the smaller one. On t = 0 gradients explode, on g = 0 tokens collapse: neither number alone is enough.
Source: Cowsik et al. 2024, arXiv:2403.02579, for the question; theory.transformer.exponents.

Measurement
-----------
Sentences that count modulo 15 by a step of their own, a quarter of the tokens hidden: the net names all of them. Blocks
of width 16, a grid of both gains, two depths, Adam at one rate, a new batch for each step: the cross-entropy of
sentences not trained on, and its rank correlation with |t| L, |g| L and the larger of the two. Nothing is fitted.

Verdict
-------
12 networks for each of 16 settings and two depths, 120 steps, two x86 cores shared with many other programs, 1936 s.
All claims hold. At 6 blocks every setting trains: 0.60 to 0.82 nats, from 3.2. At 18 the four whose exponents are both
below 2 over the depth, and no other, come below 0.7. With almost no mixing, but a gradient exponent of 0.5, it is 2.3;
with almost none of the gradient, but tokens that collapse by 0.5 a block, 2.7; on the line of angle exponent 0 it rises
to 2.7, too (no knowledge: ln 16 = 2.8). Rank correlation with the larger exponent times depth: 0.861 +- 0.009, 0.32
more than with the angle's, 0.14 more than with the gradient's. A gradient exponent of 4.5 over the depth costs little
where tokens part (0.83). Exponents at the start agree with theory to 0.01 and 0.05 +- 0.01 at width 128, the second to
0.08 +- 0.02 at width 64, as in a first run: what is left is the width's, 4.6 standard errors inside the limit of 0.1.
Changed after a first tiny run: least squares by both exponents was to tell half of the settings (rank correlation 0.67,
hardly better than one: it does not know that one suffices); now the larger one does, unfitted. After a first default
run 5 seeds became 12 and 32 draws of the exponents 256, since claims held by less than three standard errors. What the
paper measured was not at hand beyond its abstract; the rate is the same everywhere, not each setting's best.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from scipy import stats

from experiments.drawing import dress
from experiments.transformers import networks
from numdl import activations, plotting
from numdl.networks import core, initializers, transformer
from numdl.optimize import losses
from numdl.records import record
from numdl.reporting import Claim
from numdl.theory import transformer as predicted

COWSIK = "Cowsik et al. 2024, arXiv:2403.02579, abstract"
THEORY = "theory.transformer.exponents"
UNIT = initializers.variance_scaling(1.0)
VOCABULARY, TOKENS, HEADS, HEAD = 16, 8, 2, 8  # token 0 hides another
STEEPNESS = 3.0  # hidden units are tanh(3 z): slopes and values differ, so that gradients can grow
MOST = 0.7  # gradient exponents up to 0.74 exist with these units
NEAR, FAR = 1.0, 4.0  # exponents times depth
CHECKED = (128, 2, 0.999, 256)  # where exponents are measured: width, blocks, correlation of the tokens, draws


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    depths: tuple[int, ...] = (6, 18)
    mixing: tuple[float, ...] = (0.02, 0.1, 0.25, 0.5)  # ln(1 + v)
    gradient: tuple[float, ...] = (0.02, 0.1, 0.25, 0.5)  # the exponent
    batch: int = 16
    steps: int = 120
    rate: float = 2.0**-7
    seeds: int = 12
    seed: int = 0

    def __post_init__(self):
        if min(self.mixing) <= 0 or not 0 < min(self.gradient) <= max(self.gradient) <= MOST:
            got = f"mixing {self.mixing}, gradient {self.gradient}"
            raise ValueError(f"mixing must be above 0 and gradient in (0, {MOST:g}]; got {got}")
        larger = [max(g, abs(g - m)) for g in self.gradient for m in self.mixing]
        if min(larger) * min(self.depths) >= NEAR or max(larger) * max(self.depths) <= FAR:
            raise ValueError(f"depths must reach below {NEAR:g} and beyond {FAR:g} exponents; got {self.depths}")

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(depths=(4, 12), steps=50, seeds=3)


@record
class Result:
    """Settings [M, G]: mixing, then gradient exponents."""

    angle: np.ndarray  # [M, G, draws] measured exponents, of wider networks
    gradient: np.ndarray  # [M, G, draws]
    loss: np.ndarray  # [depths, M, G, seeds] at the end, sentences not trained on
    first: np.ndarray  # [depths, M, G, seeds]


def network(depth, heads, head, readout):
    """A stack with norms behind unit skips; every weight of variance one over fan_in."""
    stack = transformer.blocks(
        depth=depth,
        heads=heads,
        head_width=head,
        mlp_width=2 * heads * head,
        query_key_weights=UNIT,
        value_weights=UNIT,
        mlp_weights=UNIT,
        activation=_steep,
        norm="post",
        normalization="rms",
    )
    return readout(stack)


def _steep(x):
    return jnp.tanh(STEEPNESS * x)


def _reader(stack):
    ends = {"embedding_variance": 1.0, "readout_weights": UNIT, "positions": "sinusoidal"}
    return transformer.language_model(stack, vocabulary=VOCABULARY, width=HEADS * HEAD, **ends)


def _bare(stack):
    return transformer.network(stack, outputs=1, readout_weights=UNIT)


def gains(config):
    """(value gain v, second variance of the MLP) [M, G, 2] that have these exponents."""
    square = float(activations.tanh.mean_square(STEEPNESS**2))
    slope = STEEPNESS**2 * float(activations.tanh.slope_mean_product(STEEPNESS**2, STEEPNESS**2, 1.0))
    v, growth = np.expm1(config.mixing), np.exp(config.gradient)
    return np.stack(np.broadcast_arrays(v[:, None], (growth - 1) / (slope - square * growth)), axis=-1)


def exponents(config):
    """Predicted (angle, gradient) [M, G, 2]."""
    v, second = np.moveaxis(gains(config), -1, 0)
    square = activations.tanh.mean_square(STEEPNESS**2)
    slope = STEEPNESS**2 * activations.tanh.slope_mean_product(STEEPNESS**2, STEEPNESS**2, 1.0)
    told = predicted.exponents(value_gain=v, mlp_gain=second * square, slope_gain=second * slope)
    return np.stack([told.angle, told.gradient], axis=-1)


def scaled(gain, params):
    """Weights that end a branch times the roots of (v, second variance): gains of the branches, not trained."""
    blocks, (value, second) = params["blocks"], jnp.sqrt(gain)
    attention = blocks["attention"] | {"output": blocks["attention"]["output"] * value}
    return params | {"blocks": {"attention": attention, "mlp": blocks["mlp"] | {"out": blocks["mlp"]["out"] * second}}}


def sentences(count, seed):
    """(tokens, a quarter of them hidden [count, T]; all of them): they count modulo 15 by 1, 2, 4 or 7."""
    draw = np.random.default_rng(seed)
    start, by = draw.integers(VOCABULARY - 1, size=count), draw.choice([1, 2, 4, 7], size=count)
    whole = 1 + (start[:, None] + by[:, None] * np.arange(TOKENS)) % (VOCABULARY - 1)
    hidden = draw.random(whole.shape) < 0.25
    return jnp.asarray(np.where(hidden, 0, whole), jnp.int32), jnp.asarray(whole, jnp.int32)


def run(config):
    """Exponents of wide networks, then trainings."""
    grid = jnp.asarray(gains(config).reshape(-1, 2), jnp.float32)
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    shape = len(config.mixing), len(config.gradient)
    train = sentences(config.steps * config.batch, config.seed + 1)
    train = [part.reshape(config.steps, config.batch, TOKENS) for part in train]
    held = sentences(128, config.seed + 2)
    found = []
    for depth in config.depths:
        net = network(depth, HEADS, HEAD, _reader)
        pair = _trained(net, grid, keys, config.rate, train, held)
        found.append([np.asarray(part, np.float64).reshape(*shape, -1) for part in pair])
    angle, gradient = (part.reshape(*shape, -1) for part in _measured(config, grid))
    return Result(angle, gradient, *(np.stack(part) for part in zip(*found, strict=True)))


def _measured(config, grid):
    """(angle, gradient exponents) [settings, draws] of a block whose tokens are nearly alike."""
    width, blocks, c, draws = CHECKED
    x = networks.like(c, tokens=TOKENS, width=width)
    cotangent = networks.like(1.0 - 1e-6, tokens=TOKENS, width=width, first=TOKENS)
    net = network(blocks, 4, width // 4, _bare)
    rows = []
    for gain in grid:
        born = core.Network(Partial(_born, net, gain), net.states, net.readout)
        flow = networks.flows(jax.random.key(config.seed), born, x, cotangent, seeds=draws)
        gap, pooled = (np.log(np.asarray(flow[name], np.float64)) for name in ("gap", "pooled"))
        rows.append([(gap[:, -1] - gap[:, 0]) / blocks, (pooled[:, 0] - pooled[:, -1]) / blocks])
    return np.moveaxis(np.asarray(rows), 1, 0)


def _born(net, gain, key, x):
    return scaled(gain, net.init(key, x))


@jax.jit
def _trained(net, grid, keys, rate, train, held):
    """Cross-entropy of the sentences held out (at the end, before) [settings, seeds]."""
    adam = optax.scale_by_adam()

    def loss(params, gain, pair):
        return losses.softmax_cross_entropy(net.apply(scaled(gain, params), pair[0]), pair[1])

    def one(gain, key):
        params = net.init(key, held[0])

        def step(carry, pair):
            params, state = carry
            updates, state = adam.update(jax.grad(loss)(params, gain, pair), state)
            return (jax.tree.map(lambda p, u: p - rate * u, params, updates), state), None

        (last, _), _ = jax.lax.scan(step, (params, adam.init(params)), tuple(train))
        return loss(last, gain, held), loss(params, gain, held)

    return jax.lax.map(lambda gain: jax.vmap(one, (None, 0))(gain, keys), grid)


def distances(config):
    """|exponent| times depth [depths, M, G, 3]: angle, gradient, the larger one."""
    two = np.asarray(config.depths)[:, None, None, None] * np.abs(exponents(config))
    return np.concatenate([two, two.max(axis=-1, keepdims=True)], axis=-1)


def correlations(config, result):
    """Rank correlation [3, seeds] of the loss with each distance, over all depths and settings."""
    far, loss = distances(config).reshape(-1, 3), result.loss.reshape(-1, config.seeds)
    return np.array([[stats.spearmanr(a, b).statistic for b in loss.T] for a in far.T])


def claims(config, result):
    """Exponents at the start, losses near and far, two numbers against one."""
    near, told = networks.near, exponents(config)
    made = [
        _worst(name, told[..., i], samples)
        for i, (name, samples) in enumerate(zip(("angle", "gradient"), (result.angle, result.gradient)))
    ]
    far, loss = distances(config)[..., 2], result.loss
    text = f"least loss where an exponent times depth is beyond {FAR:g}, less the largest where both are below {NEAR:g}"
    apart = loss[far > FAR].min(axis=0) - loss[far < NEAR].max(axis=0)
    made.append(near(f"{text}, nats", COWSIK, "published", 0.0, apart, 0.0, "a sign", ">="))
    angle, gradient, both = correlations(config, result)
    text = "rank correlation of the loss with the larger exponent times depth"
    made.append(near(text, COWSIK, "own", 0.7, both, 0.0, "set before the run: half of the ranks' variance", ">="))
    for name, alone in (("angle", angle), ("gradient", gradient)):
        made.append(near(f"{text}, less that with the {name} exponent", COWSIK, "published", 0.0, both - alone, 0.0,
                         "a sign", ">="))  # fmt: skip
    return made


def _worst(name, told, samples):
    """The setting whose mean is the farthest from what is told."""
    apart = np.abs(samples.mean(axis=-1) - told)
    place = np.unravel_index(np.argmax(apart), apart.shape)
    text = f"{name} exponent of a block, {CHECKED[0]} wide: largest |measured - predicted| of all settings"
    error = samples[place].std(ddof=1) / np.sqrt(samples.shape[-1])
    return Claim(
        text, THEORY, origin="exact", expected=0.0, measured=float(apart[place]), uncertainty=float(error),
        tolerance=0.1, tolerance_from="heavy tails at this width; the grid's steps are larger",
    )  # fmt: skip


def figure(config, result):
    """Loss over the plane of both exponents at each depth, then against the distance from the edge."""
    drawing = plotting.figure(width=15, height=4.4)
    axes, loss, told = drawing.subplots(1, len(config.depths) + 1), result.loss.mean(axis=-1), exponents(config)
    for ax, depth, row in zip(axes, config.depths, loss, strict=False):
        shown = ax.scatter(told[..., 0] * depth, told[..., 1] * depth, c=row, s=110, vmin=0.5, vmax=np.log(VOCABULARY))
        ax.axvline(0, color="0.6", linewidth=0.8)
        ax.axhline(0, color="0.6", linewidth=0.8)
        ax.set_title(f"{depth} blocks", fontsize=10)
        ax.set(xlabel="angle exponent times depth", ylabel="gradient exponent times depth")
    drawing.colorbar(shown, ax=axes[:-1], label="loss at the end, nats")
    _draw_distance(axes[-1], config, loss, correlations(config, result).mean(axis=1))
    for ax in axes:
        plotting.tidy(ax)
    return drawing


def _draw_distance(ax, config, loss, ranks):
    names, far = ("angle", "gradient", "larger of both"), distances(config).reshape(-1, 3).T
    for name, values, mark, color, rank in zip(names, far, "^vo", plotting.COLORS, ranks, strict=False):
        ax.plot(values, loss.ravel(), mark, color=color, alpha=0.6, label=f"{name}: rank correlation {rank:.2f}")
    ax.axhline(np.log(VOCABULARY), color="0.6", linestyle=":", label="ln 16")
    ax.set(xlabel="|exponent| times depth", ylabel="loss at the end, nats")
    dress(ax, loc="lower right", bbox_to_anchor=(1.0, 0.17))
