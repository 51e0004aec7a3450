"""What does batch normalization do for a thousand residual blocks, and can a number do it instead?

Question
--------
Residual networks of a thousand blocks train with batch normalization and not without. Is it the normalization that
they need, or only what it does to the size of the branches? Then an initialization should do: SkipInit (a trained
number before each branch, 0 at first) or Fixup (first weights of a branch divided by sqrt(L), its last 0).

Prediction
----------
Blocks y + f(norm(y K)) V of relu, v = fan_in Var(V_ij) = 2, w = fan_in Var(K_ij) = 1. A normalized branch adds
v E f(z)^2 = 1 to the mean square of the stream whatever its length, so that block l has the share 1 / (p_0 + l), ~ 1/l;
without normalization every block has the share 1/2, the stream doubles in each, and 2^1000 is beyond any float32. If
branches are 0 at first, the stream stays as it is. The squared gradient of a functional R of y_L with respect to the
parameters of all blocks, |x|^2 |R|^2 taken out, is w / 2 for Fixup at every depth, and L w v / (2 n) for the L gates of
SkipInit at width n: Fixup's update does not know the depth, SkipInit's rate has to.
Source: De & Smith 2020, arXiv:2002.10444 (share 1/l, SkipInit; normalization enables depth 1000); Zhang et al. 2019,
arXiv:1901.09321 (Fixup, 10 000 layers, updates independent of depth). The two gradients follow from the definitions.

Measurement
-----------
Shares block by block, in networks of many batch-normalized blocks and of some without; gradients at three depths; and
training: dense networks on real digits, the same steps of gradient descent with momentum for all, the best of the same
rates for each kind and depth, by the accuracy on the training set. The readout is 0 at first.

Verdict
-------
Shares and gradients of 60 networks, training of 4 networks for each of 4 rates; two CPU cores, shared with other
programs, 140 CPU seconds. All claims hold. The share's exponent over 999 normalized blocks is -0.9985 with standard
error 0.0031; the squared gradient of Fixup is 0.499, 0.501 and 0.501 at depths 10, 100 and 1000, of SkipInit 0.58, 6.1
and 63. Accuracies at depths 10, 100, 1000: plain 0.83, 0.10, 0.10; batch norm 0.95, 0.88, 0.74; SkipInit 0.96, 0.68,
0.79; Fixup 0.98 at each. Fixup's best rate is 2^-5 at every depth; SkipInit has to go from 2^-5 to 2^-8, as its
gradients say, and the readout learns less there in 60 steps: what is lost is the rate's, not the depth's. Within 60
steps the branches stay small: that networks begin to train is shown, not what a thousand trained blocks are good for.
A first run had 20 networks for the shares, and one block, the fourth, was 4.8 standard errors of 20 off; 600 other
networks showed no bias of it above 1 %. The texts' theorems were not at hand, but the abstracts and summaries.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.claiming import in_errors, near
from experiments.drawing import dress
from numdl import activations, data, plotting, trees
from numdl.analysis import propagation as measured
from numdl.networks import residual
from numdl.records import record
from numdl.reporting import Claim
from numdl.statistics import agreement, mean_and_error
from numdl.theory import residual as predicted

DE = "De & Smith 2020, arXiv:2002.10444"
FIXUP = "Zhang et al. 2019, arXiv:1901.09321"
WEIGHT_VARIANCE, SECOND_WEIGHT_VARIANCE = 1.0, 2.0
MIDDLE = 0.55  # half way between chance on ten digits and one
PHYSICS = {
    "activation": activations.relu,
    "weight_variance": WEIGHT_VARIANCE,
    "second_weight_variance": SECOND_WEIGHT_VARIANCE,
    "bias_variance": 0.0,
    "step": 1.0,
}
BRANCHES = {
    "plain": {},
    "batch norm": {"norm": "batch"},
    "SkipInit": {"skip": "gate"},
    "Fixup": {"skip": "fixup"},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    depths: tuple[int, ...] = (10, 100, 1000)  # blocks, in training
    update_depths: tuple[int, ...] = (10, 100, 1000)  # blocks, of gradients
    width: int = 16
    steps: int = 60
    batch: int = 32
    rates: tuple[float, ...] = (2.0**-2, 2.0**-5, 2.0**-8, 2.0**-11)
    seeds: int = 4
    digits: int = 500
    share_depth: int = 1000
    plain_depth: int = 50  # of the networks without normalization whose shares are measured
    share_width: int = 64
    share_batch: int = 128
    samples: int = 60  # networks, for shares and gradients
    seed: int = 0

    @classmethod
    def tiny(cls):
        """For the tests: seconds. 2^300 is beyond float32 as well."""
        sizes = {"depths": (300,), "rates": (2.0**-4, 2.0**-8), "steps": 40, "seeds": 3, "digits": 200}
        sizes |= {"samples": 40, "update_depths": (10, 50)}
        return cls(**sizes, share_depth=60, plain_depth=12, share_width=32, share_batch=32)


@record
class Result:
    """Blocks are numbered from 2 in shares, whose arrays have them last."""

    shares: dict  # kind -> [samples, blocks]
    predicted_shares: dict  # kind -> [blocks]
    updates: dict  # kind -> [depths, samples]  squared gradient with respect to all blocks, over |x|^2 |R|^2
    accuracy: dict  # kind -> [depths, rates, seeds]  on the training set


def run(config):
    """Shares, gradients, training."""
    keys = jax.random.split(jax.random.key(config.seed), 3)
    shares, theory = {}, {}
    for kind, depth in (("batch norm", config.share_depth), ("plain", config.plain_depth)):
        shares[kind] = np.asarray(_shares(jax.random.split(keys[0], config.samples), kind, depth, config), float)
        normalized = kind == "batch norm"
        theory[kind] = predicted.branch_shares(x_variance=1.0, depth=depth, normalized=normalized, **PHYSICS)[1:]
    each = jax.random.split(keys[1], config.samples)
    updates = {
        kind: np.stack([np.asarray(_updates(each, kind, depth, config.width), float) for depth in config.update_depths])
        for kind in ("SkipInit", "Fixup")
    }
    digits = data.digits()
    x = jnp.asarray(data.standardize(digits.images[: config.digits]), jnp.float32)
    y = jnp.asarray(digits.labels[: config.digits])
    accuracy = {
        kind: np.stack([np.asarray(_accuracies(keys[2], x, y, kind, depth, config), float) for depth in config.depths])
        for kind in BRANCHES
    }
    return Result(shares, theory, updates, accuracy)


def network(kind, widths, depth, readout_weight_variance):
    """Residual blocks of this kind."""
    laws = {"connector_weight_variance": 1.0, "readout_weight_variance": readout_weight_variance}
    return residual.network(widths=widths, depth=depth, block="two_layer", **BRANCHES[kind], **PHYSICS, **laws)


@functools.partial(jax.jit, static_argnames=("kind", "depth", "config"))
def _shares(keys, kind, depth, config):
    """[samples, blocks from 2], for Gaussian inputs of mean square 1."""
    n = config.share_width
    net = network(kind, (n, n, 1), depth, 1.0)

    def one(key):
        x_key, key = jax.random.split(key)
        x = jax.random.normal(x_key, (config.share_batch, n), jnp.float32)
        return measured.branch_shares(net, net.init(key, x), x / jnp.sqrt(jnp.mean(x**2)))

    return jax.lax.map(one, keys)


@functools.partial(jax.jit, static_argnames=("kind", "depth", "width"))
def _updates(keys, kind, depth, width):
    """[samples]: squared gradient of R . y_L with respect to the blocks' parameters, over |x|^2 |R|^2."""
    net = network(kind, (width, width, 1), depth, 1.0)

    def one(key):
        x_key, key = jax.random.split(key)
        x = jax.random.normal(x_key, (1, width), jnp.float32)
        params = net.init(key, x)
        gradient = jax.grad(lambda blocks: net.apply({**params, "blocks": blocks}, x).sum())(params["blocks"])
        scale = jnp.sum(x**2) * jnp.sum(params["readout"]["kernel"] ** 2)
        return trees.inner(gradient, gradient) / scale

    return jax.lax.map(one, keys)


def predicted_update(kind, depth, width):
    """What `_updates` estimates: exact at every width."""
    half = WEIGHT_VARIANCE / 2
    return half if kind == "Fixup" else half * depth * SECOND_WEIGHT_VARIANCE / width


@functools.partial(jax.jit, static_argnames=("kind", "depth", "config"))
def _accuracies(key, x, y, kind, depth, config):
    """[rates, seeds], all networks of this kind and depth at once."""
    net = network(kind, (x.shape[1], config.width, 10), depth, 0.0)
    start, order = jnp.moveaxis(jax.vmap(jax.random.split)(jax.random.split(key, config.seeds)), 1, 0)
    params = jax.lax.map(lambda key: net.init(key, x[:2]), start)  # a vmap of draws compiles longer
    by_seed = jax.vmap(functools.partial(_train, net, x, y, config), in_axes=(0, 0, None))
    return jax.vmap(by_seed, in_axes=(None, None, 0))(params, order, jnp.asarray(config.rates))


def _train(net, x, y, config, params, order, rate):
    """Accuracy on the training set after the last step."""
    descent = optax.sgd(rate, momentum=0.9)

    def loss(params, batch):
        return optax.softmax_cross_entropy_with_integer_labels(net.apply(params, x[batch]), y[batch]).mean()

    def step(state, batch):
        params, memory = state
        update, memory = descent.update(jax.grad(loss)(params, batch), memory)
        return (optax.apply_updates(params, update), memory), None

    batches = jax.random.randint(order, (config.steps, config.batch), 0, x.shape[0])
    (params, _), _ = jax.lax.scan(step, (params, descent.init(params)), batches)
    return jnp.mean(jnp.argmax(net.apply(params, x), axis=1) == y)


def best(accuracy):
    """Mean and standard error over seeds at the rate whose mean is the largest, [depths], of [depths, rates, seeds]."""
    found = mean_and_error(accuracy, axis=-1)
    at = np.argmax(found.mean, axis=1)[:, None]
    return tuple(np.take_along_axis(part, at, axis=1)[:, 0] for part in (found.mean, found.stderr))


def claims(config, result):
    """Shares, gradients, what trains."""
    made = [_share(result, kind) for kind in result.shares]
    made += [_inverse(result)]
    made += [_update(config, result, kind) for kind in result.updates]
    made += [_independent(config, result)]
    return [*made, *(_trains(config, result, kind) for kind in BRANCHES)]


def _places(blocks):
    """Indices of some blocks, evenly spaced in the logarithm."""
    return np.unique(np.geomspace(1, blocks, 16).round().astype(int)) - 1


def _share(result, kind):
    at = _places(result.shares[kind].shape[-1])
    z = agreement(result.predicted_shares[kind][at], result.shares[kind][:, at]).z
    return in_errors(f"{kind}: share of the branch in {at.size} of {result.shares[kind].shape[-1]} blocks", DE, z)


def _inverse(result):
    samples = np.log(result.shares["batch norm"])
    logs = np.log(np.arange(samples.shape[-1]) + 3)  # block l stands against l + 1: the input counts as one block
    logs = logs - logs.mean()
    return near(
        f"batch norm: exponent of the branch's share in the block's number, {samples.shape[-1]} blocks",
        f"{DE}: 1 / l",
        origin="published",
        expected=-1.0,
        samples=samples @ logs / (logs @ logs),
        tolerance=0.0,
        errors=5,
        tolerance_from="five standard errors over networks",
    )


def _update(config, result, kind):
    expected = np.array([predicted_update(kind, depth, config.width) for depth in config.update_depths])
    z = agreement(expected, result.updates[kind].T).z
    return in_errors(f"{kind}: squared gradient of all blocks at depths {config.update_depths}", "the definitions", z)


def _independent(config, result):
    shallow, deep = mean_and_error(result.updates["Fixup"][0]), mean_and_error(result.updates["Fixup"][-1])
    first, last = config.update_depths[0], config.update_depths[-1]
    ratio = deep.mean / shallow.mean
    error = ratio * np.hypot(deep.stderr / deep.mean, shallow.stderr / shallow.mean)
    return Claim(
        f"Fixup: squared gradient of all blocks at depth {last} over that at depth {first}",
        f"{FIXUP}: updates independent of depth",
        origin="published",
        expected=1.0,
        measured=ratio,
        uncertainty=error,
        tolerance=5 * error,
        tolerance_from="five standard errors over networks",
    )


def _trains(config, result, kind):
    mean, error = best(result.accuracy[kind])
    fails = kind == "plain"
    return Claim(
        f"{kind}, {config.depths[-1]} blocks: {'does not train' if fails else 'trains'}, accuracy on the training set",
        FIXUP if kind == "Fixup" else DE,
        origin="published",
        expected=MIDDLE,
        measured=mean[-1],
        uncertainty=error[-1],
        tolerance=0.0,
        tolerance_from="half way between chance and one",
        relation="<=" if fails else ">=",
    )


def figure(config, result):
    """Shares by block; gradients by depth; accuracy by depth."""
    drawing = plotting.figure(width=14, height=4.4)
    left, middle, right = drawing.subplots(1, 3)
    colors = dict(zip(BRANCHES, plotting.COLORS, strict=False))
    for kind, samples in result.shares.items():
        at = _places(samples.shape[-1])
        found = mean_and_error(samples[:, at])
        left.errorbar(at + 2, found.mean, found.stderr, fmt="o", ms=4, color=colors[kind], label=kind)
        left.plot(np.arange(2, 2 + samples.shape[-1]), result.predicted_shares[kind], "k--", linewidth=1)
    for kind, samples in result.updates.items():
        found = mean_and_error(samples, axis=1)
        middle.errorbar(config.update_depths, found.mean, found.stderr, fmt="o", ms=4, color=colors[kind], label=kind)
        expected = [predicted_update(kind, depth, config.width) for depth in config.update_depths]
        middle.plot(config.update_depths, expected, "k--", linewidth=1)
    for kind, accuracy in result.accuracy.items():
        right.errorbar(config.depths, *best(accuracy), fmt="o-", ms=4, color=colors[kind], label=kind)
    right.axhline(MIDDLE, color="0.6", linewidth=1, label="half way from chance to one")
    right.set_ylim(0, 1.05)
    for ax, x, y in (
        (left, "block", "share of the branch in the stream's mean square"),
        (middle, "blocks", "squared gradient of all blocks, over |x|² |R|²"),
        (right, "blocks", f"accuracy on the training set, {config.steps} steps"),
    ):
        ax.set(xlabel=x, ylabel=y, xscale="log")
        ax.plot([], [], "k--", linewidth=1, label="predicted" if ax is not right else "_")
        dress(ax)
    for ax in (left, middle):
        ax.set_yscale("log")
    return drawing
