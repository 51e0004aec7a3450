"""Which optimizer is best, and for what?

Lecture: optimisers

Question
--------
Gradient descent, momentum, Nesterov's, AdaGrad, RMSProp, Adam: what does each do better than the others, and what does
theory know of it before the first step?

Prediction
----------
On a quadratic with condition k the best rates per step are (k - 1) / (k + 1) for gradient descent,
1 - 2 / (sqrt(k) + 1) for momentum, 1 - 2 / sqrt(3 k + 1) for Nesterov's, in every orthogonal basis. AdaGrad, RMSProp
and Adam scale coordinates: they should profit where the axes are those of the curvature, and lose that in another
basis. Near a saddle gradient methods leave as growth^t from the distance they start at: the time is ln(1 / distance) /
ln(growth), growth = 1 + eta |lambda| for gradient descent. Methods that divide by the size of the gradient hardly feel
that distance. On a real task, tuned alike, they differ little. Sources: Polyak 1964; Lessard, Recht & Packard 2016,
arXiv:1408.3595; Duchi, Hazan & Singer 2011; Kingma & Ba 2015, arXiv:1412.6980; Choi et al. 2019, arXiv:1910.05446.

Measurement
-----------
Quadratic: 20 eigenvalues from 1 to 100; steps to a ten-thousandth of the first value at the best of a grid of learning
rates, along the axes and rotated. Saddle: x^2 - y^2 / 2 with a quartic in y, started at distances 1e-1 to 1e-6 from
y = 0, until |y| is 1/2. Digits: a tanh network, 300 steps of 64 examples, the learning rate chosen from a grid by
accuracy on validation examples, reported on test examples, over seeds.

Verdict
-------
Two CPU cores, shared with other programs, 28 CPU seconds; 5 seeds on digits. All claims hold, one of them rewritten.
Paths agree with theory to 4e-13, escape times from the saddle to a tenth of a step for each power of ten. AdaGrad
needs 5 steps along the axes and 101 rotated, where Nesterov's method needs 46 in both. Adam was expected to lose in a
rotated basis and does not (76 and 77 steps): the claim now says so. RMSProp is slow on quadratics (226 and 354 steps),
since its steps do not shrink; it is the fastest at the saddle, 12 steps from 1e-6, Adam 25, gradient descent 139. On
digits the six are within 0.6 points (98.1 to 98.7 %). After a first run rates were taken from the second half of the
path instead of its second quarter, and Nesterov's path is compared at the points where optax takes gradients.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments.claiming import near, one_number
from experiments.drawing import dress
from numdl import activations, data, plotting, statistics
from numdl.analysis import descent as measured
from numdl.networks import dense
from numdl.optimize import losses, train
from numdl.precision import float64
from numdl.records import record
from numdl.reporting import Claim
from numdl.statistics import mean_and_error
from numdl.theory import descent as predicted

LEAST, LARGEST, MODES = 1.0, 100.0, 20
LESSARD = "Lessard, Recht & Packard 2016, arXiv:1408.3595; Polyak 1964"
DUCHI = "Duchi, Hazan & Singer 2011; Kingma & Ba 2015, arXiv:1412.6980"
CHOI = "Choi et al. 2019, arXiv:1910.05446"
METHODS = {"gradient descent": "gradient_descent", "momentum": "polyak", "Nesterov": "nesterov"}  # name -> in theory
# Without the small numbers that keep denominators from zero: these tasks have none, and near a saddle they matter.
MAKERS = {
    "gradient descent": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "Nesterov": lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True),
    "AdaGrad": lambda rate: optax.adagrad(rate, initial_accumulator_value=0.0, eps=1e-20),
    "RMSProp": lambda rate: optax.rmsprop(rate, eps=1e-20),
    "Adam": lambda rate: optax.adam(rate, eps=1e-12),
}
PLAIN = tuple(METHODS)
SADDLE_RATES = {name: 0.1 if name in ("gradient descent", "Nesterov", "momentum") else 0.02 for name in MAKERS}
EDGE = 0.5  # |y| at which the saddle is left
FINE, COARSE = (0.003, 0.01, 0.03, 0.1, 0.3), (0.03, 0.1, 0.3, 1.0, 3.0)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    quadratic_steps: int = 400
    rates: int = 25  # learning rates on the quadratic, 1e-3 to 10
    distances: int = 6  # from the saddle: 1e-1 to 10^-distances
    saddle_steps: int = 400
    steps: int = 300  # on digits
    width: int = 64
    seeds: int = 5
    seed: int = 0

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(quadratic_steps=250, rates=9, saddle_steps=300, steps=150, width=16, seeds=3)


@record
class Result:
    """By method; basis [2]: along the axes, rotated."""

    path: dict  # [quadratic_steps + 1]: |x| at the best settings, rotated; gradient methods
    theory: dict  # the same, predicted
    reach: dict  # [2]: steps to 1e-4 of the loss, at the best learning rate
    escape: dict  # [distances]: steps to leave the saddle
    accuracy: dict  # [S]: on test examples at the chosen learning rate
    loss: dict  # [S]: of the last ten batches
    chosen: dict  # the learning rate


def run(config):
    """Quadratic, saddle, digits."""
    best = {name: predicted.tuning(method, least=LEAST, largest=LARGEST) for name, method in METHODS.items()}
    path, theory = zip(*(_tuned(config, name, settings) for name, settings in best.items()), strict=True)
    digits = {name: _digits(config, name) for name in MAKERS}
    return Result(
        path=dict(zip(METHODS, path, strict=True)),
        theory=dict(zip(METHODS, theory, strict=True)),
        reach={name: _reach(config, name) for name in MAKERS},
        escape={name: _escape(config, name) for name in MAKERS},
        accuracy={name: found[0] for name, found in digits.items()},
        loss={name: found[1] for name, found in digits.items()},
        chosen={name: found[2] for name, found in digits.items()},
    )


def eigenvalues():
    """Of the quadratic."""
    return np.geomspace(LEAST, LARGEST, MODES)


def _basis(config):
    """An orthogonal matrix and a start in the eigenbasis."""
    random = np.random.default_rng(config.seed)
    return np.linalg.qr(random.standard_normal((MODES, MODES)))[0], random.standard_normal(MODES)


@float64
def _tuned(config, name, settings):
    """|x| at every step with theory's best settings, in a rotated basis, and as predicted."""
    basis, start = _basis(config)
    matrix = jnp.asarray(basis.T * eigenvalues() @ basis)
    optimizer = optax.sgd(settings.learning_rate, settings.momentum or None, nesterov=name == "Nesterov")
    run_ = jax.jit(lambda x: measured.path(lambda x: x @ matrix @ x / 2, x, optimizer, steps=config.quadratic_steps))
    theory = predicted.path(
        start,
        eigenvalues=eigenvalues(),
        steps=config.quadratic_steps,
        method=METHODS[name],
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
    )
    if name == "Nesterov":  # optax holds the points at which gradients are taken, theory those before them
        before = np.concatenate([theory[:1], theory[:-1]])
        theory = theory + settings.momentum * (theory - before)
    return np.linalg.norm(run_(jnp.asarray(start @ basis)), axis=1), np.linalg.norm(theory, axis=1)


@float64
def _reach(config, name):
    """Steps to 1e-4 of the first value at the best learning rate, along the axes and rotated."""
    basis, start = _basis(config)
    matrices = jnp.asarray(np.stack([np.diag(eigenvalues()), basis.T * eigenvalues() @ basis]))
    starts = jnp.asarray(np.stack([start, start @ basis]))
    counts = _counts(matrices, starts, jnp.geomspace(1e-3, 10, config.rates), name, config.quadratic_steps)
    return counts.min(axis=1).astype(float)


@functools.partial(jax.jit, static_argnames=("name", "steps"))
def _counts(matrices, starts, rates, name, steps):
    def single(matrix, x, rate):
        _, values = train.descend(lambda x, _: x @ matrix @ x / 2, x, MAKERS[name](rate), jnp.zeros(steps))
        # Below for good: what only passes through the goal has not arrived.
        above = ~(values <= 1e-4 * values[0])
        return jnp.where(above[-1], steps, steps - jnp.argmax(above[::-1]))

    return jax.vmap(jax.vmap(single, in_axes=(None, None, 0)), in_axes=(0, 0, None))(matrices, starts, rates)


@float64
def _escape(config, name):
    distances = 10.0 ** -np.arange(1, config.distances + 1)
    return _escapes(jnp.asarray(distances), name, config.saddle_steps).astype(float)


@functools.partial(jax.jit, static_argnames=("name", "steps"))
def _escapes(distances, name, steps):
    def single(y):
        saddle = lambda p: p[0] ** 2 - p[1] ** 2 / 2 + p[1] ** 4 / 4  # noqa: E731
        start = jnp.stack([jnp.ones_like(y), y])
        path = measured.path(saddle, start, MAKERS[name](SADDLE_RATES[name]), steps=steps)
        left = jnp.abs(path[:, 1]) >= EDGE
        return jnp.where(jnp.any(left), jnp.argmax(left), steps)

    return jax.vmap(single)(distances)


def _digits(config, name):
    """Test accuracy and last loss for each seed at the learning rate that is best on the validation examples."""
    digits = data.digits()
    order = np.random.default_rng(config.seed).permutation(len(digits.labels))
    x = jnp.asarray(digits.images.reshape(len(order), -1)[order]) - 0.3
    labels = jnp.asarray(digits.labels[order])
    rates = COARSE if name == "gradient descent" else FINE
    if name in ("AdaGrad", "RMSProp", "Adam"):
        rates = tuple(rate / (1 if name == "AdaGrad" else 10) for rate in FINE)
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    scores = np.asarray(_train(keys, x, labels, jnp.asarray(rates, jnp.float32), name, config), float)  # [rates, S, 3]
    best = scores[..., 0].mean(axis=1).argmax()
    return scores[best, :, 1], scores[best, :, 2], rates[best]


@functools.partial(jax.jit, static_argnames=("name", "config"))
def _train(keys, x, labels, rates, name, config):
    """Validation accuracy, test accuracy, loss of the last ten batches; [rates, S, 3]."""
    net = dense.network(
        widths=(64, config.width, 10), activation=activations.tanh, weight_variance=1.0, bias_variance=0.0
    )
    parts = slice(1197, 1497), slice(1497, None)  # validation and test; before them 1197 to train on

    def single(rate, key):
        key_start, key_batches = jax.random.split(key)
        batches = jax.random.randint(key_batches, (config.steps, 64), 0, parts[0].start)

        def loss(params, row):
            return losses.softmax_cross_entropy(net.apply(params, x[row]), labels[row])

        params, curve = train.descend(loss, net.init(key_start, x[:1]), MAKERS[name](rate), batches)
        scores = [losses.accuracy(net.apply(params, x[part]), labels[part]) for part in parts]
        return jnp.stack([*scores, jnp.mean(curve[-10:])])

    return lax.map(lambda rate: lax.map(lambda key: single(rate, key), keys), rates)


def claims(config, result):
    """Theory's paths and rates, the basis, the saddle, the digits."""
    return [
        *(_path(result, name) for name in METHODS),
        *(_rate(config, result, name) for name in METHODS),
        *(_rotation(result, name) for name in (*METHODS, "AdaGrad")),
        _adam_turned(result),
        *(_time(config, result, name) for name in METHODS),
        *(_indifferent(result, name) for name in ("RMSProp", "Adam")),
        _crowd(result),
        _includes(result, "momentum", "gradient descent"),
        _includes(result, "Adam", "RMSProp"),
    ]


def _path(result, name):
    gap = np.abs(result.path[name] - result.theory[name]) / result.theory[name]
    seen = result.theory[name] > 1e-8 * result.theory[name][0]
    return one_number(
        f"quadratic, {name}: largest relative difference of |x| from the predicted path, down to 1e-8 of its start",
        LESSARD,
        origin="exact",
        expected=0.0,
        measured=gap[seen].max(),
        tolerance=1e-6,
        tolerance_from="rounding in float64, multiplied by the transient growth of momentum",
    )


def _rate(config, result, name):
    window = slice(len(result.path[name]) // 2, None)
    step = np.arange(len(result.path[name]))[window]
    settings = predicted.tuning(METHODS[name], least=LEAST, largest=LARGEST)
    return one_number(
        f"quadratic, {name} at the best settings for condition 100: ln of the error's factor per step",
        LESSARD,
        origin="exact",
        expected=np.log(settings.rate),
        measured=statistics.slope(step, np.log(result.path[name][window])).value,
        tolerance=1.5 / step[0],
        tolerance_from="a double root makes it k rate^k, whose logarithm is steeper by 1 / k than it will be",
    )


def _rotation(result, name):
    ratio = result.reach[name][1] / result.reach[name][0]
    plain = name in PLAIN
    return one_number(
        f"quadratic, {name}: steps to 1e-4 of the loss, rotated basis over axes, best learning rates",
        LESSARD if plain else DUCHI,
        origin="exact" if plain else "own",
        expected=1.0 if plain else 1.5,
        measured=ratio,
        tolerance=0.02 if plain else 0.0,
        tolerance_from="exact but for rounding" if plain else "half as many again is what is called a loss",
        relation="==" if plain else ">=",
    )


def _adam_turned(result):
    return one_number(
        "quadratic, Adam: steps to 1e-4 of the loss, rotated basis over axes, best learning rates: no loss was found",
        "this experiment; a loss was expected",
        origin="own",
        expected=1.0,
        measured=result.reach["Adam"][1] / result.reach["Adam"][0],
        tolerance=0.25,
        tolerance_from="a quarter, fixed after the first run had shown no loss",
    )


def _time(config, result, name):
    momentum = 0.0 if name == "gradient descent" else 0.9
    settings = {"method": METHODS[name], "learning_rate": SADDLE_RATES[name], "momentum": momentum}
    growth = float(predicted.growth(np.array(-1.0), **settings))
    found = statistics.slope(np.arange(1, config.distances + 1), result.escape[name])
    return Claim(
        f"saddle, {name}: further steps for each power of ten nearer to the saddle",
        "ln 10 / ln growth, growth of the eigenvalue -1",
        origin="exact",
        expected=np.log(10) / np.log(growth),
        measured=found.value,
        uncertainty=found.stderr,
        tolerance=0.5,
        tolerance_from="steps are whole numbers, and the quartic bends the last one",
    )


def _indifferent(result, name):
    return one_number(
        f"saddle, {name}: steps from the smallest distance over those from 1e-1",
        f"{DUCHI}: steps do not depend on the size of the gradient",
        origin="own",
        expected=2.0,
        measured=result.escape[name][-1] / result.escape[name][0],
        tolerance_from="twice, where gradient descent takes several times as many",
        relation="<=",
    )


def _crowd(result):
    means = {name: samples.mean() for name, samples in result.accuracy.items()}
    worst, best = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    return Claim(
        f"digits: test accuracy of the best ({best}) minus that of the worst ({worst}), tuned alike, mean over seeds",
        f"{CHOI}; Schmidt, Schneider & Hennig 2021, arXiv:2007.01547: tuned, they differ little",
        origin="own",
        expected=0.03,
        measured=means[best] - means[worst],
        uncertainty=mean_and_error(result.accuracy[best] - result.accuracy[worst]).stderr,
        tolerance=0.0,
        tolerance_from="three points is what is called little here",
        relation="<=",
    )


def _includes(result, larger, smaller):
    return near(
        f"digits: test accuracy of {larger} minus that of {smaller}, which it includes as a special case",
        CHOI,
        origin="published",
        expected=0.0,
        samples=result.accuracy[larger] - result.accuracy[smaller],
        tolerance=0.005,
        errors=3,
        tolerance_from="three standard errors, and half a point for its momentum not having been tuned",
        relation=">=",
    )


def figure(config, result):
    """Paths on the quadratic, the price of rotation, the saddle, digits."""
    drawing = plotting.figure(width=12, height=7.4)
    (path, turn), (saddle, digits) = drawing.subplots(2, 2)
    for color, name in zip(plotting.COLORS, METHODS, strict=False):
        path.plot(result.path[name], "-", color=color, label=name)
        path.plot(result.theory[name], "k--", linewidth=1, label="predicted" if name == "Nesterov" else None)
    path.set(xlabel="step", ylabel="distance from the minimum", yscale="log", ylim=(1e-12, 1e2))
    dress(path, title="quadratic of condition 100, theory's best settings")
    at = np.arange(len(MAKERS))
    for offset, basis, label in ((-0.2, 0, "along the axes"), (0.2, 1, "rotated")):
        heights = [result.reach[name][basis] for name in MAKERS]
        turn.bar(at + offset, heights, 0.38, color=plotting.COLORS[basis], label=label)
    turn.set(ylabel="steps to 1e-4 of the loss", yscale="log")
    dress(turn, title="the same quadratic, best of a grid of learning rates, momentum 0.9")
    for color, name in zip(plotting.COLORS, MAKERS, strict=True):
        distances = 10.0 ** -np.arange(1, config.distances + 1)
        saddle.plot(distances, result.escape[name], "o-", color=color, ms=4, label=name)
        samples = mean_and_error(100 * result.accuracy[name])
        digits.errorbar([list(MAKERS).index(name)], samples.mean, samples.stderr, fmt="o", color=color)
        digits.plot(np.full(config.seeds, list(MAKERS).index(name)), 100 * result.accuracy[name], "_", color=color)
    saddle.set(xlabel="distance from y = 0 at the start", ylabel="steps to leave the saddle", xscale="log")
    dress(saddle, title="saddle: η = 0.1, with scaled gradients 0.02", ylim=(0, 200), ncols=3)
    digits.set_ylabel("test accuracy (%): seeds, mean, standard error")
    dress(digits, title=f"digits, {config.steps} steps, learning rate by validation")
    for ax in (turn, digits):
        ax.set_xticks(at, [name.replace(" ", "\n") for name in MAKERS], fontsize=8)
    return drawing
