"""Why do thirty layers of relu start to learn from one initialisation and not from another?

Question
--------
Dense relu networks of 22 and 30 hidden layers are trained on digits by plain SGD, once from weights of variance 1/n
(Xavier) and once from 2/n (He), over the same learning rates. Which of them start to learn?

Prediction
----------
relu halves the mean square of what enters it: q_{l+1} = weight_variance q_l / 2, and squared gradients go back by the
same factor. At weight variance 2 both are kept; at 1 both shrink by 2^-L: at 30 layers outputs and gradients are
2^-15 = 3e-5 of their size, and the loss stays at ln 10. In the paper 22 layers start from both, later from Xavier's; 30
layers from He's alone. With the fixed deviation of 0.01 the gradient of the ten-layer model B of Simonyan & Zisserman
shrinks by 5.9 x 4.2^2 x 2.9^2 x 2.1^4 = 1.7e4. Source: He et al. 2015, arXiv:1502.01852, eq. (10) to (14), figs. 2, 3.

Measurement
-----------
Lengths on wide networks at random weights; the training loss of every step, over seeds and learning rates; and the
attenuation itself, on dense layers as wide as that model has channels, entries of variance 9 x 0.01^2: a 3 x 3 window
has nine times the products.

Verdict
-------
n = 4 networks for each of four learning rates, two depths and two initialisations, 600 steps each; 40 networks of width
400 for the lengths, 60 for the attenuation; two CPU cores, 56 s. All claims hold. The budget was shortened from 800
to 600 steps after the first run, in which one of Xavier's networks of 30 layers began to learn (loss 2.272).
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.claiming import near, one_number, within
from experiments.drawing import legend_below
from numdl import activations, data, plotting
from numdl.analysis import gradients
from numdl.analysis import propagation as measured
from numdl.networks import dense, initializers
from numdl.records import record
from numdl.reporting import Claim
from numdl.statistics import agreement, mean_and_error
from numdl.theory import propagation as predicted

HE = "He et al. 2015, arXiv:1502.01852"
WEIGHT_VARIANCES = {"Xavier": 1.0, "He": 2.0}
CHANNELS = (64, 64, 128, 128, 256, 256, 512, 512, 512, 512)  # of the ten convolutions of model B
CHANCE = math.log(10)  # loss of a network that says 1/10 to every digit


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment, and what counts as having started."""

    width: int = 64
    depths: tuple[int, int] = (22, 30)  # hidden layers: the paper's two
    learning_rates: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1)
    steps: int = 600
    batch: int = 64
    seeds: int = 4  # networks for each learning rate
    forward_width: int = 400
    forward_seeds: int = 40
    attenuation_seeds: int = 60
    started: float = 1.0  # a loss below this: learning has started
    seed: int = 0

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(
            width=48, learning_rates=(0.02,), steps=200, seeds=3, forward_width=100, attenuation_seeds=10, started=2.0
        )


@record
class Result:
    """Lengths, losses and the attenuation, by initialisation."""

    lengths: dict  # name -> [seeds, L]
    predicted_lengths: dict  # name -> [L]
    losses: dict  # name -> depth -> [seeds, learning rates, 40]: means over consecutive steps
    attenuation: np.ndarray  # [seeds]  mean squared gradient of layer 1 over that of layer 10


def run(config):
    """Measure the lengths, train everything, and let a gradient go through ten layers of deviation 0.01."""
    digits = data.digits()
    images, labels = jnp.asarray(data.standardize(digits.images, mean="pixel")), jnp.asarray(digits.labels)
    keys = jax.random.split(jax.random.key(config.seed), 3)
    lengths, lines, losses = {}, {}, {}
    for name, weight_variance in WEIGHT_VARIANCES.items():
        physics = {"activation": activations.relu, "weight_variance": weight_variance, "bias_variance": 0.0}
        depth = max(config.depths)
        wide = dense.network(widths=(64, *[config.forward_width] * depth, 10), **physics)
        lengths[name] = np.asarray(measured.lengths(keys[0], wide, images[:32], seeds=config.forward_seeds), float)
        lines[name] = predicted.lengths(float(jnp.mean(images[:32] ** 2)), depth=depth, **physics)
        losses[name] = {str(depth): _train(config, depth, physics, keys[1], images, labels) for depth in config.depths}
    return Result(lengths, lines, losses, _attenuation(config, keys[2], images[:32]))


def _train(config, depth, physics, key, images, labels):
    network = dense.network(widths=(64, *[config.width] * depth, 10), **physics)
    start, order = jax.random.split(key)
    batches = jax.random.randint(order, (config.seeds, config.steps, config.batch), 0, images.shape[0])
    rates = jnp.asarray(config.learning_rates, jnp.float32)
    losses = _losses(network, jax.random.split(start, config.seeds), rates, images, labels, batches)
    return np.asarray(losses, float).reshape(config.seeds, rates.size, 40, -1).mean(axis=-1)


@jax.jit
def _losses(network, keys, rates, images, labels, batches):
    """The loss of every step of SGD, [seeds, rates, steps]; a seed has one network and one order of the data."""

    def one(params, batches, rate):
        def step(params, chosen):
            loss, slope = jax.value_and_grad(_loss, argnums=1)(network, params, images[chosen], labels[chosen])
            return jax.tree.map(lambda p, g: p - rate * g, params, slope), loss

        return lax.scan(step, params, batches)[1]

    def seed(case):
        key, batches = case
        params = network.init(key, images[:1])
        return lax.map(lambda rate: one(params, batches, rate), rates)

    return lax.map(seed, (keys, batches))


def _loss(network, params, images, labels):
    scores = jax.nn.log_softmax(network.apply(params, images))
    return -jnp.mean(jnp.take_along_axis(scores, labels[:, None], axis=1))


def _attenuation(config, key, images):
    network = dense.network(
        widths=(64, *CHANNELS, 512), activation=activations.relu, bias_variance=0.0,
        initializer=initializers.normal(9 * 0.01**2),
    )  # fmt: skip
    logs = np.asarray(gradients.growth(key, network, images, seeds=config.attenuation_seeds).log_square, float)
    return np.exp(logs[:, 0] - logs[:, -1])


def final(config, result, name, depth):
    """Mean loss of the last tenth of the steps, [seeds, learning rates]; a run that diverged counts as infinite."""
    last = result.losses[name][str(depth)][:, :, -4:].mean(axis=-1)
    return np.where(np.isfinite(last), last, np.inf)


def best(config, result, name, depth):
    """Index of the learning rate with the smallest mean final loss."""
    return int(final(config, result, name, depth).mean(axis=0).argmin())


def claims(config, result):
    """Signals by layer, the attenuation, and who starts."""
    shallow, deep = config.depths
    return [
        *[_lengths(config, name, result) for name in WEIGHT_VARIANCES],
        _halving(config, result),
        _arithmetic(),
        _ten_layers(result),
        _starts(config, result, shallow, f"fig. 2: {shallow} layers"),
        _starts(config, result, deep, f"fig. 3: {deep} layers"),
        _stays(config, result, deep),
        _later(config, result, shallow),
    ]


def _lengths(config, name, result):
    z = agreement(result.predicted_lengths[name], result.lengths[name]).z
    return within(
        f"{name}: largest distance of the length of a layer from theory, over {z.size} layers, in standard errors",
        f"{HE}, eq. (9)",
        z,
        why="one false alarm in a million over the layers",
    )


def _halving(config, result):
    ratio = mean_and_error(result.lengths["Xavier"][:, -1] / result.lengths["Xavier"][:, 0].mean())
    layers = max(config.depths) - 1
    stderr = ratio.stderr / ratio.mean / layers
    return Claim(
        f"Xavier: ln of the factor of a layer on the signal's mean square, over {layers} layers",
        f"{HE}, eq. (9): relu halves the mean square",
        origin="exact",
        expected=-math.log(2),
        measured=math.log(ratio.mean) / layers,
        uncertainty=stderr,
        tolerance=6 * stderr,
        tolerance_from="six standard errors over networks",
    )


def _arithmetic():
    return one_number(
        "5.9 x 4.2^2 x 2.9^2 x 2.1^4, the paper's ten layers with deviation 0.01",
        f'{HE}, section 2.2, "Comparisons with Xavier initialization"',
        origin="published",
        expected=1.7e4,
        measured=5.9 * 4.2**2 * 2.9**2 * 2.1**4,
        tolerance=500.0,
        tolerance_from="half a unit of the last printed digit",
    )


def _ten_layers(result):
    ratio = mean_and_error(result.attenuation)
    stderr = ratio.stderr / ratio.mean / 2
    return Claim(
        "ten layers with deviation 0.01: ln of the factor by which the gradient shrinks, 9.7 = ln 1.7e4",
        f"{HE}, eq. (14): sqrt(n/2) 0.01 a layer, n = 9 x channels",
        origin="exact",
        expected=-sum(math.log(9 * channels / 2 * 0.01**2) for channels in CHANNELS[1:]) / 2,
        measured=-math.log(ratio.mean) / 2,
        uncertainty=stderr,
        tolerance=6 * stderr,
        tolerance_from="six standard errors over networks",
    )


def _starts(config, result, depth, where):
    return near(
        f"He, {depth} layers: loss after {config.steps} steps at the best learning rate; chance is ln 10 = 2.303",
        f"{HE}, {where}",
        origin="own",
        expected=config.started,
        samples=final(config, result, "He", depth)[:, best(config, result, "He", depth)],
        tolerance=0.0,
        tolerance_from="the loss that was stated beforehand to count as a start",
        relation="<=",
    )


def _stays(config, result, depth):
    losses = final(config, result, "Xavier", depth)
    return one_number(
        f"Xavier, {depth} layers: smallest loss after {config.steps} steps, over all learning rates and networks",
        f"{HE}, fig. 3: {depth} layers",
        origin="own",
        expected=CHANCE,
        measured=losses.min(),
        tolerance=0.05,
        tolerance_from="stated beforehand: 2 % of ln 10",
        relation=">=",
    )


def _later(config, result, depth):
    gap = final(config, result, "Xavier", depth)[:, best(config, result, "Xavier", depth)]
    gap = gap - final(config, result, "He", depth)[:, best(config, result, "He", depth)]
    return near(
        f"{depth} layers: Xavier's loss after {config.steps} steps less He's, each at its best learning rate",
        f"{HE}, fig. 2: He's starts reducing the error earlier",
        origin="published",
        expected=0.0,
        samples=gap,
        tolerance=0.0,
        tolerance_from="the sign is what is claimed",
        relation=">=",
    )


def figure(config, result):
    """The signal by layer, and the losses at both depths."""
    drawing = plotting.figure(width=12, height=4.4)
    left, *others = drawing.subplots(1, 3)
    _draw_lengths(left, result)
    for ax, depth in zip(others, config.depths, strict=True):
        _draw_losses(ax, config, result, depth)
    others[1].sharey(others[0])
    for ax in (left, *others):
        plotting.tidy(ax)
    shown = {}
    for ax in (others[0], left):
        handles, labels = ax.get_legend_handles_labels()
        shown |= dict(zip(labels, handles, strict=True))
    legend_below(drawing, list(shown.values()), list(shown))
    return drawing


def _draw_lengths(ax, result):
    for name, colour in zip(WEIGHT_VARIANCES, plotting.COLORS, strict=False):
        samples = result.lengths[name]
        plotting.prediction_and_measurement(
            np.arange(1, samples.shape[1] + 1), result.predicted_lengths[name], samples, ax=ax, label=name,
            xlabel="layer", ylabel="length q of the pre-activations", log=True, color=colour,
        )  # fmt: skip
    ax.get_legend().remove()
    ax.set_title("the signal at the start", fontsize=10)


def _draw_losses(ax, config, result, depth):
    steps, rates = (np.arange(40) + 0.5) * config.steps / 40, []
    for name, colour in zip(WEIGHT_VARIANCES, plotting.COLORS, strict=False):
        chosen = best(config, result, name, depth)
        curves = result.losses[name][str(depth)][:, chosen]
        rates.append(f"{name} {config.learning_rates[chosen]:g}")
        ax.plot(steps, curves.T, color=colour, linewidth=0.8, alpha=0.5)
        ax.plot(steps, curves.mean(axis=0), color=colour, linewidth=2.2, label=name)
    ax.axhline(CHANCE, color="0.4", linewidth=1, linestyle=":", label="chance, ln 10")
    ax.set(xlabel="step", ylabel="training loss", ylim=(0, 2.6))
    ax.set_title(f"{depth} layers; rates: {', '.join(rates)}", fontsize=10)
