"""How do the trained weights of a residual network scale with its depth?

Question
--------
A residual network is read as a differential equation on the ground that its weights become a smooth function of the
layer as it is made deeper, and its step 1 / L. Does training make such networks? Which part of the architecture decides
it: the activation, or the step sizes being trained one by one?

Prediction
----------
h_{k+1} = h_k + delta_k f(A_k h_k + b_k), everything trained. Let max |A_k| ~ L^-beta, delta ~ L^-alpha.

    f = tanh, one delta for all:    smooth, increments over weights ~ L^-1, and alpha + beta = 1: L terms make one sum
    f = relu, delta_k for each:     rough, increments over weights ~ L^0; if also sum |delta_k A_k|^2 ~ 1, the limit
                                    is a stochastic differential equation

Neither is the neural ODE's alpha = 1, beta = 0: the authors' program has beta = 0.2 for tanh on the synthetic data.
Source: Cohen, Cont, Rossier & Xu 2021, arXiv:2105.12245, eq. (1), and the program that they published.

Measurement
-----------
Their synthetic data (10 numbers, mapped by a differential equation, all scaled to length 1), width 10, their start (A
and b near 0, delta 1 / L or N(0, 1 / L^2)) and Adam, for both activations with both kinds of delta. The rate falls to
0, so that the noise of the last steps is not taken for roughness. Slopes of logarithms over the depth for each seed by
`analysis.regularity`; the limit between smooth (-1) and rough (0) is half way.

Verdict
-------
8 networks of each kind, depths 8 to 256, 500 steps; two CPU cores that others used, too, 128 s. All claims hold. tanh
with one delta is smooth, and not the neural ODE: beta = 0.26, alpha = 0.66 (the authors' program scales with beta =
0.2), increments over weights ~ L^-0.72, max |delta A_k| ~ L^-0.92. relu with a delta for each layer is rough (L^0.05).
One of the two is enough: tanh with a delta for each (L^0.41) and relu with one delta (L^0.03) are rough, too; likely
because signs of delta_k and gates of relu differ from layer to layer at the start. From L = 32 on the root of
sum |delta_k A_k|^2 keeps its size (L^-0.08, standard error 0.05), as the stochastic equation asks for.
Changed after seeing results: the claims about the two mixed kinds were added after a small run. The root of the sum was
first fitted over all depths, -0.22 with standard error 0.03 where -0.25 is the least, but is no single power: it falls
as L^-0.5 between 16 and 32 and rises as L^0.2 between 128 and 256. A claim that max |delta_k A_k| goes as L^-0.5 within
0.25 was dropped for that: -0.27, standard error 0.08, over all depths, but 0.08, standard error 0.09, from 32 on.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.drawing import dress
from numdl import activations, plotting
from numdl.analysis import regularity
from numdl.networks import residual
from numdl.ode import integrate, tableaus
from numdl.optimize import losses, train
from numdl.records import record
from numdl.reporting import Claim
from numdl.statistics import mean_and_error

COHEN = "Cohen et al. 2021, arXiv:2105.12245"
WIDTH = 10
SMALL = 0.01  # of the start of A and b
FUNCTIONS = {"tanh": activations.tanh, "relu": activations.relu}
KINDS = tuple((name, shared) for name in FUNCTIONS for shared in (True, False))  # activation, one delta for all
STACKS = ("A", "delta", "product")  # the last: delta_k A_k
DEEP = 32  # depth from which on sums over layers are held against their limit


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    depths: tuple[int, ...] = (8, 16, 32, 64, 128, 256)
    seeds: int = 8
    steps: int = 500
    batch: int = 32
    examples: int = 512
    learning_rate: float = 0.01
    seed: int = 0

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(depths=(8, 16, 32), seeds=6, steps=200, examples=128)


@record
class Result:
    """Of trained networks; kinds in the order of KINDS."""

    sizes: dict  # of `regularity.SIZES` -> [stacks, kinds, depths, seeds]
    loss: np.ndarray  # [kinds, depths, seeds]: on all examples
    start: np.ndarray  # []: loss of the identity
    weights: np.ndarray  # [kinds, L, 10, 10]: delta_k A_k of the first seed, greatest depth


def run(config):
    """All kinds at all depths: a shallow network starts as the first layers of the deepest, scaled for its depth."""
    data, (normal, rows) = problem(config), draws(jax.random.key(config.seed), config)
    starts = [start(normal, depth) for depth in config.depths]
    sizes, loss, weights = [], [], []
    for name in FUNCTIONS:
        found = [_train(each, rows, data, name, config.learning_rate) for each in starts]
        sizes.append({key: np.array([getattr(part[0], key) for part in found], float) for key in regularity.SIZES})
        loss.append(np.stack([part[1] for part in found]))
        weights.append(np.asarray(found[-1][2], float))
    joined = {key: np.concatenate([part[key].transpose(3, 1, 0, 2) for part in sizes], axis=1) for key in sizes[0]}
    loss = np.concatenate([np.asarray(part, float).transpose(1, 0, 2) for part in loss])
    return Result(joined, loss, np.asarray(losses.squared(*data)), np.concatenate(weights))


def problem(config):
    """Inputs and targets [N, 10] of length 1: where z' = tanh(sin(pi t / 2) z + cos(pi t / 2)) takes them in t = 10."""
    z = np.random.default_rng(config.seed).uniform(-1, 1, (config.examples, WIDTH)).astype(np.float32)
    ends = integrate.endpoint(_field, z, np.float32(np.pi / 2), t1=10.0, steps=100, tableau=tableaus.euler)
    return tuple(jnp.asarray(part) / jnp.linalg.norm(part, axis=1, keepdims=True) for part in (z, ends))


def _field(t, z, frequency):
    return jnp.tanh(jnp.sin(frequency * t) * z + jnp.cos(frequency * t))


def network(name, depth):
    """Blocks f(y A + b) V; V = delta I and a readout I make it the paper's network."""
    return residual.network(
        widths=(WIDTH, WIDTH, WIDTH),
        depth=depth,
        block="two_layer",
        activation=FUNCTIONS[name],
        weight_variance=1.0,
        bias_variance=0.0,
        step=1.0,
    )


@functools.partial(jax.jit, static_argnames="config")
def draws(key, config):
    """Standard normal numbers for the greatest depth, and the batches, for each seed."""
    weights, biases, steps, order = jax.random.split(key, 4)
    shape = (config.seeds, max(config.depths))
    normal = {
        "A": jax.random.normal(weights, (*shape, WIDTH, WIDTH)),
        "b": jax.random.normal(biases, (*shape, WIDTH)),
        "each": jax.random.normal(steps, shape),
    }
    return normal, jax.random.randint(order, (config.seeds, config.steps, config.batch), 0, config.examples)


def start(normal, depth):
    """The paper's start for every seed, of the first layers' draws: A and b near 0, and both kinds of delta."""
    scale = {"A": SMALL / (depth * WIDTH), "b": SMALL / (depth * WIDTH**0.5), "each": 1 / depth}
    drawn = {name: scale[name] * leaf[:, :depth] for name, leaf in normal.items()}
    return {**drawn, "one": jnp.full(len(normal["each"]), 1 / depth)}


def deltas(free, shared):
    """The step of every layer [L]; that of the other kind has no gradient and stays."""
    return jnp.where(shared, jnp.full(free["each"].shape, free["one"]), free["each"])


def parameters(free, shared):
    """What is trained, as parameters of `network`."""
    unit = jnp.eye(WIDTH)
    blocks = {"kernel": free["A"], "bias": free["b"], "second": deltas(free, shared)[:, None, None] * unit[None]}
    return {"connectors": ({},), "blocks": (blocks,), "readout": {"kernel": unit, "bias": jnp.zeros(WIDTH)}}


@functools.partial(jax.jit, static_argnames="name")
def _train(starts, rows, data, name, rate):
    """Norms of the three stacks [2, seeds, 3], losses [2, seeds], and delta_k A_k of the first seed [2, L, 10, 10]."""
    net, (x, y) = network(name, starts["each"].shape[1]), data

    def one(free, rows, shared):
        def loss(free, rows):
            return losses.squared(net.apply(parameters(free, shared), x[rows]), y[rows])

        optimizer = optax.adam(optax.cosine_decay_schedule(rate, len(rows)))
        free, _ = train.descend(loss, free, optimizer, rows)
        delta = deltas(free, shared)
        product = delta[:, None, None] * free["A"]
        norms = [regularity.norms(stack) for stack in (free["A"], delta, product)]
        norms = jax.tree.map(lambda *sizes: jnp.stack(sizes), *norms)
        return norms, loss(free, jnp.arange(len(x))), product

    over_seeds = jax.vmap(one, in_axes=(0, 0, None))
    norms, loss, product = jax.vmap(over_seeds, in_axes=(None, None, 0))(starts, rows, jnp.array([True, False]))
    return norms, loss, product[:, 0]


def powers(config, result, stack, kind, chosen=None):
    """Powers of the depth of a stack's sizes, for one kind of network; of the chosen depths."""
    place = STACKS.index(stack), KINDS.index(kind)
    found = [
        regularity.Norms(config.depths[i], **{key: result.sizes[key][(*place, i)] for key in regularity.SIZES})
        for i in (range(len(config.depths)) if chosen is None else chosen)
    ]
    return regularity.exponents(found)


def claims(config, result):
    """The two regimes of the paper, what the sum over layers asks for, and that all this was trained."""
    smooth, rough = ("tanh", True), ("relu", False)
    weights, product = (powers(config, result, stack, smooth) for stack in ("A", "product"))
    noise = powers(config, result, "product", rough)
    regime = f"{COHEN}: smooth is -1, rough 0"
    half = "half way between the two regimes"
    made = [
        _learned(result),
        _claim("tanh, one delta: increments of A over A ~ L^p, p", regime, weights.roughness, -0.5, "<=", 0.0, half),
        _claim(
            "tanh, one delta: max |A_k| ~ L^-beta, and not the neural ODE's L^0: -beta",
            f"{COHEN}: beta = 0.2",
            weights.largest, 0.0, "<=", 0.0, "the sign is the claim",
        ),
        _claim(
            "tanh, one delta: max |delta A_k| ~ L^p, p",
            f"{COHEN}: alpha + beta = 1, L terms whose sum keeps its size",
            product.largest, -1.0, "==", 0.25, "a quarter: half of what is between this and the other regime's -1/2",
            origin="exact",
        ),
        _claim(
            "relu, delta_k for each: increments of delta_k A_k over them ~ L^p, p",
            regime, noise.roughness, -0.5, ">=", 0.0, half,
        ),
    ]  # fmt: skip
    made += [_mixed(config, result, kind) for kind in KINDS if kind not in (smooth, rough)]
    return made + _diffusive(config, result, rough)


def _mixed(config, result, kind):
    """One of the two parts of the rough network alone."""
    return _claim(
        f"{label(kind)}: increments of delta_k A_k over them ~ L^p, p: one of the two parts makes it rough",
        "gates of relu, and signs of delta_k, differ from layer to layer at the start",
        powers(config, result, "product", kind).roughness, -0.5, ">=", 0.0, "half way between the two regimes",
        origin="own",
    )  # fmt: skip


def label(kind):
    """What a kind of network is called."""
    return f"{kind[0]}, {'one delta' if kind[1] else 'delta_k for each'}"


def _diffusive(config, result, kind):
    """What the stochastic equation asks for beyond roughness, where there are depths enough."""
    deep = [i for i, depth in enumerate(config.depths) if depth >= DEEP]
    if len(deep) < 3:
        return []
    return [
        _claim(
            f"{label(kind)}, L >= {DEEP}: (sum |delta_k A_k|^2)^(1/2) ~ L^p, p",
            f"{COHEN}: a quadratic variation, p = 0",
            powers(config, result, "product", kind, deep).root_sum, -0.25, ">=", 0.0,
            "half way to the -1/2 of terms of order 1 / L",
        )
    ]  # fmt: skip


def _learned(result):
    """The kind and depth that learned least."""
    ratio = mean_and_error(result.loss / result.start, axis=-1)
    place = np.unravel_index(np.argmax(ratio.mean), ratio.mean.shape)
    return Claim(
        "loss after training over that of the identity, mean over seeds, of the kind and depth that learned least",
        "weights that were not trained scale as the start does",
        origin="own",
        expected=0.25,
        measured=ratio.mean[place],
        uncertainty=ratio.stderr[place],
        tolerance=0.0,
        tolerance_from="a quarter, set before the run",
        relation="<=",
    )


def _claim(text, source, power, expected, relation, tolerance, tolerance_from, origin="published"):
    return Claim(
        text,
        source,
        origin=origin,
        expected=expected,
        measured=power.mean,
        uncertainty=power.stderr,
        tolerance=tolerance,
        tolerance_from=tolerance_from,
        relation=relation,
    )


def figure(config, result):
    """Largest delta_k A_k and roughness over the depth, and one entry along the greatest depth."""
    drawing = plotting.figure(width=14, height=4.2)
    left, middle, right = drawing.subplots(1, 3)
    for place, (color, kind) in enumerate(zip(plotting.COLORS, KINDS, strict=False)):
        found = powers(config, result, "product", kind)
        for ax, name, power in ((left, "largest", found.largest), (middle, "roughness", found.roughness)):
            values = mean_and_error(result.sizes[name][STACKS.index("product"), place], axis=-1)
            text = f"{label(kind)}: $L^{{{power.mean:.2f}}}$"
            ax.errorbar(config.depths, values.mean, values.stderr, fmt="o-", ms=4, color=color, label=text)
        if kind in (("tanh", True), ("relu", False)):
            entry = result.weights[place][:, 0, 0]
            layers = np.arange(1, len(entry) + 1)
            right.plot(layers, len(entry) * entry, ".-", ms=3, lw=0.6, color=color, label=label(kind))
    middle.axhline(2**0.5, color="0.5", linestyle=":", linewidth=1)
    middle.text(config.depths[0], 1.45, "independent layers", fontsize=8, color="0.4", va="bottom")
    left.set_ylabel(r"max $|\delta_k A_k|$")
    middle.set_ylabel(r"increments of $\delta_k A_k$ over $\delta_k A_k$, rms")
    for ax in (left, middle):
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xticks(config.depths, [str(depth) for depth in config.depths])
        ax.set_xlabel("depth L")
    right.set(xlabel=f"layer k of {config.depths[-1]}", ylabel=r"one entry of $L\,\delta_k A_k$")
    for ax in (left, middle, right):
        dress(ax, fontsize=7, loc="best" if ax is right else "lower left")
    return drawing
