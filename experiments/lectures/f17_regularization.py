"""Which remedy against fitting too much does most for the same network?

Lecture: regularisation (dropout, weight decay, early stopping, batch normalization, noise)

Question
--------
Two hundred digits, some of them with a wrong label, and a network with eighty times as many weights, which learns them
all by heart. What do dropout, weight decay, early stopping, batch normalization and labels that change all the time do
to the error on new digits, and to the gap between the two?

Prediction
----------
Dropout that divides what it keeps by q has the unit itself as its mean over all masks, and the variance (1 - q) / q of
its square (Srivastava et al. 2014). Labels that are drawn anew with probability a at every step are, in the mean,
smoothed targets (1 - a) y + a / 10, since cross-entropy is linear in them: both are identities, to rounding. Every
remedy keeps weights or time from growing, so that the cross-entropy on new digits is less than without, and so is the
gap. Which one is best is not known beforehand.

Measurement
-----------
Bundled digits: 200 to train on, a fifth of their labels drawn by lot, once; 200 to choose by, the others for the test,
their labels right; another split for each seed. Two hidden
layers of relu, Adam, the same steps and batches for all. Dropout, decay and label noise with three strengths each, of
which that with the least cross-entropy on the 200 others, mean over seeds, is reported; so is the step for early
stopping, for each seed. Batch normalization has no strength; its statistics are frozen on the 200 digits at the end.

Verdict
-------
10 seeds, 2000 steps, two hidden layers of 100; two CPU cores, shared with other programs, 62 CPU seconds. All claims
hold. Error on new digits: none 21.1 % (standard error 1.0), early stopping 17.9 %, weight decay 0.03 16.9 %, dropout of
60 % 16.8 % (1.2); label noise 0.1 22.4 % and batch normalization 22.5 % do not lower it. Cross-entropy: none 0.94,
stopped (after 2 to 6 rounds of 50 steps) 0.59, decay 0.62, dropout 0.61, label noise 0.79, batch normalization 0.90;
that of the digits trained on goes from 0.001 (none) to 0.33 (decay). Without any wrong label the same network hardly
fits too much: in the tiny form all gains but label noise's loss of 0.13 (standard error 0.01) were within three
standard errors, so that a fifth of the labels is drawn by lot since. Batch normalization's fall against none, 0.08 with
0.05 as its error in the tiny form, was no claim to make; that it does less than dropout is one.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.claiming import near
from experiments.drawing import dress
from numdl import activations, data, plotting
from numdl.networks import dense, dropout, normalization
from numdl.optimize import losses
from numdl.precision import float64
from numdl.records import record
from numdl.reporting import Claim
from numdl.statistics import mean_and_error

SRIVASTAVA = "Srivastava et al. 2014, J. Mach. Learn. Res. 15"
STRENGTHS = {"dropout": (0.2, 0.4, 0.6), "weight decay": (1e-3, 1e-2, 3e-2), "label noise": (0.1, 0.3, 0.5)}
REMEDIES = ("none", "early stopping", "weight decay", "dropout", "label noise", "batch norm")
SOURCES = {
    "early stopping": "Prechelt 1998, Neural Networks: Tricks of the Trade",
    "weight decay": "Krogh & Hertz 1992, NIPS 4",
    "dropout": SRIVASTAVA,
    "label noise": "Xie et al. 2016, arXiv:1605.00055",
    "batch norm": "Ioffe & Szegedy 2015, arXiv:1502.03167, section 4.2.1",
}
RELU = {"activation": activations.relu, "weight_variance": 2.0}
SETS = ("train", "held out", "test")
BY_LOT = 0.2  # of the labels trained on, once for each seed
GIVEN = 200  # digits to train on, and as many to choose by


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    seeds: int = 10
    width: int = 100
    rounds: int = 40  # of 50 steps
    batch: int = 50
    learning_rate: float = 1e-3
    seed: int = 0

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(seeds=4, width=50, rounds=20)


@record
class Result:
    """Cross-entropy and error of every remedy, round by round."""

    loss: dict  # remedy -> [seeds, rounds, sets]: cross-entropy, at the strength chosen
    wrong: dict  # remedy -> [seeds, rounds, sets]: share misread
    strength: dict  # remedy -> the one chosen
    stop: np.ndarray  # [seeds]: round of early stopping
    identities: dict  # "mean", "variance": of dropout; "labels": largest deviations over what is compared


def run(config):
    """All remedies, then what is exact."""
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    x, labels = _digits()
    plain = {"none": (0.0, 0.0, 0.0)}
    for i, (name, strengths) in enumerate(STRENGTHS.items()):
        plain |= {(name, s): tuple(s if i == j else 0.0 for j in range(3)) for s in strengths}
    rows = np.asarray(_plain(config, jnp.asarray(list(plain.values())), keys, x, labels), float)
    every = dict(zip(plain, rows, strict=True))  # [seeds, rounds, 2, sets]
    strength = {name: min(each, key=lambda s, name=name: _held(every[name, s])) for name, each in STRENGTHS.items()}
    found = {"none": every["none"]} | {name: every[name, s] for name, s in strength.items()}
    found["batch norm"] = np.asarray(_normalized(config, keys, x, labels), float)
    stop = every["none"][:, :, 0, 1].argmin(axis=1)
    found["early stopping"] = np.take_along_axis(every["none"], stop[:, None, None, None], axis=1)
    return Result(
        loss={name: found[name][:, :, 0] for name in REMEDIES},
        wrong={name: found[name][:, :, 1] for name in REMEDIES},
        strength=strength,
        stop=stop,
        identities={**_masks(config), "labels": _labels(config)},
    )


def _held(rows):
    """Cross-entropy at the end on the digits to choose by."""
    return rows[:, -1, 0, 1].mean()


def _digits():
    digits = data.digits()
    x = digits.images.reshape(-1, 64)
    return jnp.asarray((x - x.mean()) / x.std()), jnp.asarray(digits.labels)


# ---- training ------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def _plain(config, strengths, keys, x, labels):
    """Cross-entropy and error, [strengths, seeds, rounds, 2, sets], of networks without normalization."""
    net = dense.network(widths=(64, config.width, config.width, 10), bias_variance=0.0, **RELU)

    def one(strength, key):
        dropped, decay, wrong = strength

        def loss(params, batch):
            x, targets, key = batch
            z = dropout.outputs(key, params, x, activation=activations.relu, keep_probability=1 - dropped)
            kernels = [part["kernel"] for part in (*params["hidden"], params["readout"])]
            penalty = decay / 2 * sum(jnp.sum(kernel**2) for kernel in kernels)
            return losses.softmax_cross_entropy(z, redrawn(key, targets, wrong)) + penalty

        return _path(config, net, lambda params, _: params, loss, key, x, labels)

    return jax.lax.map(lambda s: jax.lax.map(lambda key: one(s, key), keys), strengths)


@functools.partial(jax.jit, static_argnums=0)
def _normalized(config, keys, x, labels):
    """The same, [seeds, rounds, 2, sets], with batch normalization in both hidden layers."""
    net = normalization.network(width=config.width, depth=2, outputs=10, **RELU)

    def loss(params, batch):
        return losses.softmax_cross_entropy(net.apply(params, batch[0]), batch[1])

    frozen = functools.partial(normalization.freeze, net)
    return jax.lax.map(lambda key: _path(config, net, frozen, loss, key, x, labels), keys)


def _path(config, net, used, loss, key, x, labels):
    """[rounds, 2, sets] of one network; used(params, x) are the parameters to predict with."""
    split, init, steps = jax.random.split(key, 3)
    order = jax.random.permutation(split, len(labels))
    sets = [(x[part], labels[part]) for part in jnp.split(order, (GIVEN, 2 * GIVEN))]
    x, labels = sets[0][0], redrawn(jax.random.fold_in(split, 1), sets[0][1], BY_LOT)
    sets[0] = x, labels

    def turn(state, keys):
        params, moments = state
        rows = jax.vmap(lambda key: jax.random.choice(key, GIVEN, (config.batch,), replace=False))(keys)
        (params, moments), _ = jax.lax.scan(step, (params, moments), (x[rows], labels[rows], keys))
        seen = [(net.apply(used(params, x), part), targets) for part, targets in sets]
        misfit = jnp.stack([losses.softmax_cross_entropy(*pair) for pair in seen])
        wrong = jnp.stack([1 - losses.accuracy(*pair) for pair in seen])
        return (params, moments), jnp.stack([misfit, wrong])

    def step(state, batch):
        params, moments = state
        updates, moments = optimizer.update(jax.grad(loss)(params, batch), moments)
        return (optax.apply_updates(params, updates), moments), None

    optimizer, params = optax.adam(config.learning_rate), net.init(init, x[:1])
    keys = jax.random.split(steps, (config.rounds, 50))
    return jax.lax.scan(turn, (params, optimizer.init(params)), keys)[1]


def redrawn(key, labels, probability):
    """Labels of which each is drawn anew, from all ten, with this probability."""
    lot, fresh = jax.random.split(jax.random.fold_in(key, 1))
    other = jax.random.randint(fresh, labels.shape, 0, 10, labels.dtype)
    return jnp.where(jax.random.uniform(lot, labels.shape) < probability, other, labels)


# ---- identities ----------------------------------------------------------------------------------------------------


@float64
def _masks(config):
    """Mean and variance of dropout over all masks of ten units, with the values that `drop` gives to what it keeps."""
    x, q = np.random.default_rng(config.seed).standard_normal(10), 0.4
    seen = np.asarray(dropout.drop(jax.random.key(0), jnp.asarray(np.tile(x, (200, 1))), keep_probability=q))
    kept = np.abs(seen).max(axis=0) * np.sign(x)
    masks = np.array(list(itertools.product([0, 1], repeat=10)))
    chance = (q**masks * (1 - q) ** (1 - masks)).prod(axis=1)
    return {
        "mean": np.abs(chance @ (masks * kept[None]) / x - 1).max(),
        "variance": np.abs(chance @ (masks * kept[None] - x[None]) ** 2 / ((1 - q) / q * x**2) - 1).max(),
    }


@float64
def _labels(config):
    """The mean slope over all labels that noise may give, beside the slope at the smoothed target."""
    z, a = jnp.asarray(np.random.default_rng(config.seed).standard_normal((10, 10))), 0.3
    chance = (1 - a) * np.eye(10) + a / 10
    slope = losses.softmax_cross_entropy.gradient
    each = np.stack([slope(z, np.full(10, label)) for label in range(10)], axis=1)
    return np.abs(np.einsum("nc,nck->nk", chance, each) - np.asarray(slope(z, jnp.asarray(chance)))).max()


# ---- claims and figure ---------------------------------------------------------------------------------------------


def claims(config, result):
    """Identities, then each remedy against none."""
    made = [_identity(result, *row) for row in (
        ("mean", "dropout, q = 0.4, all masks of ten units: largest |mean / x - 1|", SRIVASTAVA),
        ("variance", "dropout, q = 0.4: largest |variance / ((1 - q) / q x^2) - 1|", SRIVASTAVA),
        ("labels", "label noise: largest difference of the mean slope from that at smoothed targets", "Szegedy et al. "
         "2016, arXiv:1512.00567, section 7; Xie et al. 2016, arXiv:1605.00055"),
    )]  # fmt: skip
    made += [_gain(result, name) for name in REMEDIES[1:-1]]
    return [*made, *(_narrows(result, name) for name in REMEDIES[1:-1]), _weaker(result)]


def _identity(result, name, text, source):
    return Claim(text, source, 0.0, float(result.identities[name]), 0.0, 1e-12, "rounding, in float64", origin="exact")


def _gain(result, name):
    fall = end(result.loss, "none")[:, 2] - end(result.loss, name)[:, 2]
    return _above_zero(
        f"{name}: cross-entropy of new digits, fall against none, mean over seeds", SOURCES[name], fall, "published"
    )


def _narrows(result, name):
    gaps = [end(result.loss, each)[:, 2] - end(result.loss, each)[:, 0] for each in ("none", name)]
    text = f"{name}: gap of the cross-entropies of new digits and of those trained on, fall against none"
    return _above_zero(text, SOURCES[name], gaps[0] - gaps[1], "published")


def _weaker(result):
    excess = end(result.loss, "batch norm")[:, 2] - end(result.loss, "dropout")[:, 2]
    source = f"{SOURCES['batch norm']} has it as a remedy; {SRIVASTAVA}"
    return _above_zero("batch norm: cross-entropy of new digits, excess over dropout's", source, excess, "own")


def _above_zero(text, source, samples, origin):
    return near(
        text,
        source,
        origin=origin,
        expected=0.0,
        samples=samples,
        tolerance=0.0,
        tolerance_from="the sign is the claim",
        relation=">=",
    )


def end(rows, name):
    """[seeds, sets] at the end."""
    return rows[name][:, -1]


def figure(config, result):
    """Cross-entropy along training; errors; gaps."""
    drawing = plotting.figure(width=13.5, height=4.4)
    left, middle, right = drawing.subplots(1, 3, width_ratios=(1.3, 1, 1))
    steps = 50 * np.arange(1, config.rounds + 1)
    colors = dict(zip(REMEDIES, ("k", *plotting.COLORS), strict=False))
    for name in REMEDIES:
        if name != "early stopping":
            label = f"{name} {result.strength[name]:g}" if name in result.strength else name
            rows = result.loss[name][:, :, 2]
            left.plot(steps, rows.mean(axis=0), color=colors[name], label=label)
            left.fill_between(steps, rows.min(axis=0), rows.max(axis=0), color=colors[name], alpha=0.12, linewidth=0)
    left.plot(
        steps[result.stop], end(result.loss, "early stopping")[:, 2], "x", color=colors["early stopping"],
        label="stopped early",
    )  # fmt: skip
    dress(left, xlabel="step", ylabel="cross-entropy of new digits")
    at = np.arange(len(REMEDIES))
    found = mean_and_error(np.array([end(result.wrong, name)[:, 2] for name in REMEDIES]), axis=1)
    middle.bar(at, found.mean, yerr=found.stderr, color=[colors[name] for name in REMEDIES])
    middle.set_ylabel("share of new digits misread")
    for i, shift, alpha in ((0, -0.2, 0.4), (2, 0.2, 1.0)):
        found = mean_and_error(np.array([end(result.loss, name)[:, i] for name in REMEDIES]), axis=1)
        shown = [colors[name] for name in REMEDIES]
        right.bar(at + shift, found.mean, 0.38, yerr=found.stderr, color=shown, alpha=alpha)
    right.set_ylabel("cross-entropy: trained on (pale), new (full)")
    for ax in (middle, right):
        ax.set_xticks(at, REMEDIES, rotation=30, ha="right", fontsize=8)
        plotting.tidy(ax)
    return drawing
