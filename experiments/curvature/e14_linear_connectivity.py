"""From which step on does the order of the batches no longer matter?

Question
--------
Two copies of a network share their first k steps and see other batches from then on. Do they end in one linearly
connected minimum, with no barrier of error on the straight line between them? From k = 0 on, or only after a while?

Prediction
----------
Instability is the largest error on the line minus the mean of its ends; below 2 % the network is stable to the noise of
SGD. LeNet (300 and 100 hidden units) is stable from k = 0 on; deeper networks are not, and up to guessing on the line,
but are after 1.5 to 20 % of the steps. Copies that train for all the steps after k, not only for the rest, are as
stable: it is not that they have less time to part. Instability on the training examples goes with that on test ones.
Source: Frankle, Dziugaite, Roy & Carbin 2020, arXiv:1912.05671, figs. 2, 3 and 4 (convolutional networks with shortcuts
and normalization on CIFAR-10 and ImageNet, 30 positions on the line).

Measurement
-----------
Dense relu networks on digits of 8 x 8, `--source mnist` for MNIST: LeNet with Adam as in the paper, and many hidden
layers with momentum. Several initializations, one pair of copies each; error on 31 positions of the line, on test and
training digits; standard errors over pairs. The deep network from k = 0 with a rate that rises linearly, too.

Verdict
-------
16 pairs, 1000 steps; two CPU cores shared with many other programs, 1994 s. All claims hold: LeNet is stable from k =
0 on (0.2 %), 12 hidden layers are not (9.8 %, standard error 2.3: one pair has 33 %, six less than 5 %, and the
margin is 3.4 standard errors), from 10 common steps on below 2 % in the mean, with 200 at 0.4 %, and 0.3 % with 1000
steps after them. With a rate that rises they are stable from the start (1.6 %). Ten pairs had given
9.6 % and 1.1 %; they became sixteen since the first margin had been 2.8 standard errors.
Changed after seeing results: a first whole run (8 pairs, 2000 steps, rate 0.02 for the deep network, 238 s on two
shared cores) held, too, with 24 % from k = 0, 19 % from 20, 2.1 % from 80, 4.2 % from 200, 0.8 % (standard error 0.6)
from 400 and 0.1 % from 800 of 2000 steps on, LeNet 0.3 %; but with a rate that rises the copies had 15 % of errors in
the mean, so that the instability said little, and the onset's margin was two standard errors: rate and steps were
halved. Before that, 200 steps were too few: 9.6 % from 40 on.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial

from experiments.claiming import near
from experiments.curvature import copies
from experiments.drawing import dress
from numdl import checks, data, plotting
from numdl.records import record
from numdl.statistics import mean_and_error

FRANKLE = "Frankle et al. 2020, arXiv:1912.05671"
STABLE = 0.02  # instability below which a network is stable, in error
LENET = (300, 100)
MEASURED = 2000  # digits at most, of each set, that errors are measured on
ONSET = 0.2  # of the steps: where the last of the paper's networks becomes stable
NAMES = ("LeNet", "deep")


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    source: str = "digits"  # or mnist: needs NUMDL_DATA
    pairs: int = 16
    steps: int = 1000
    batch: int = 60
    shared: tuple[int, ...] = (10, 30, 100)  # steps that two copies have in common, besides 0 and the onset
    lenet_rate: float = 1.2e-3
    hidden: int = 12  # layers of the deep network
    width: int = 64
    deep_rate: float = 0.01
    warm_up: int = 500  # steps in which the rate of the warm one rises
    digits: int = 1200  # of the bundled ones, to train on; the others test
    points: int = 31
    seed: int = 14

    def __post_init__(self):
        checks.one_of("source", self.source, ("digits", "mnist"))

    @property
    def onset(self):
        """The step by which all of the paper's networks are stable."""
        return round(ONSET * self.steps)

    @property
    def common(self):
        """All numbers of common steps, 0 and the onset among them."""
        return sorted({0, self.onset, *(k for k in self.shared if k < self.steps)})

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(pairs=4, steps=800, shared=(), warm_up=400, points=11)


@record
class Result:
    """Errors on the straight line between two copies, [..., pairs, points]; networks in the order of NAMES."""

    test: np.ndarray  # [networks, shared, pairs, points]
    train: np.ndarray  # [networks, shared, pairs, points]
    longer: np.ndarray  # [pairs, points]: deep, all steps after the onset; on test digits
    warm: np.ndarray  # [pairs, points]: deep, the rate rises, no common step; on test digits


def run(config):
    """Both networks at every k; the deep one with more steps, and with a rate that rises."""
    sets, keys = examples(config), jax.random.split(jax.random.key(config.seed), 3)
    starts, shape = jax.random.split(keys[0], config.pairs), (config.pairs, config.steps, config.batch)
    count = len(sets[0][1])
    drawn, more = copies.batches(keys[1], shape, count), (config.pairs, config.steps + config.onset, config.batch)
    lenet, deep = (copies.network((sets[0][0].shape[1], *hidden, 10)) for hidden in _hidden(config))
    ways = ((lenet, config.lenet_rate, optax.adam), (deep, config.deep_rate, copies.momentum))
    lines = [
        [_lines(net, sets, copies.spawned(net, starts, drawn, sets[0], k, *way), config) for k in config.common]
        for net, *way in ways
    ]
    test, train = np.moveaxis(np.array(lines), 2, 0)
    later = copies.batches(keys[2], more, count)
    longer = copies.spawned(deep, starts, later, sets[0], config.onset, config.deep_rate)
    rising = jnp.asarray(config.deep_rate), jnp.asarray(config.warm_up)
    warm = copies.spawned(deep, starts, drawn, sets[0], 0, rising, _rising)
    return Result(test, train, *(_lines(deep, sets, ends, config)[0] for ends in (longer, warm)))


def examples(config):
    """Training and test digits, (x [N, pixels], labels) each."""
    if config.source == "digits":
        return copies.digits(config.seed, config.digits)
    parts = [data.mnist(split) for split in ("train", "test")]
    return tuple((jnp.asarray(data.standardize(part.images)), jnp.asarray(part.labels)) for part in parts)


def _hidden(config):
    return LENET, (config.width,) * config.hidden


def _rising(rate):
    """Momentum with a rate that rises linearly for some steps to its largest; rate: (largest, steps)."""
    largest, steps = rate
    return copies.momentum(lambda count: largest * jnp.minimum(1.0, (count + 1) / steps))


def _lines(net, sets, ends, config):
    """Errors on the line, [2, pairs, points]: on test and training digits."""
    parts = (tuple(leaf[:MEASURED] for leaf in part) for part in sets[::-1])
    found = (copies.paths(Partial(copies.error, net), *ends, part, config.points).values for part in parts)
    return np.array([np.asarray(values, float) for values in found])


def instability(errors):
    """The largest error on the line [..., points] minus the mean of its two ends."""
    return errors.max(axis=-1) - (errors[..., 0] + errors[..., -1]) / 2


def claims(config, result):
    """Where the paper's networks are stable and where not, and what does not change it."""
    first, onset = config.common.index(0), config.common.index(config.onset)
    lenet, deep = instability(result.test)
    apart = instability(result.train)[1] - deep
    farthest = np.argmax(np.abs(apart.mean(axis=1)))
    last = f"{config.hidden} hidden layers"
    made = [
        _claim("LeNet, no common step: instability", "fig. 2", lenet[first], "<="),
        _claim(f"{last}, no common step: instability", "fig. 2", deep[first], ">="),
        _claim(f"{last}, {config.onset} of {config.steps} steps in common: instability", "fig. 3", deep[onset], "<="),
        _claim(
            f"{last}, {config.onset} steps in common and {config.steps} of their own: instability",
            "fig. 4", instability(result.longer), "<=",
        ),
    ]  # fmt: skip
    return [*made, _together(last, config.common[farthest], apart[farthest]), _warmed(last, deep[first], result.warm)]


def _claim(text, place, samples, relation):
    return near(
        f"{text}, mean over pairs",
        f"{FRANKLE}, {place}",
        origin="published",
        expected=STABLE,
        samples=samples,
        tolerance=0.0,
        tolerance_from="2 % is the source's threshold",
        relation=relation,
    )


def _together(network, shared, samples):
    return near(
        f"{network}: instability on training digits minus that on test digits, where it is farthest from 0 "
        f"({shared} common steps)",
        f"{FRANKLE}, section 3: one goes with the other",
        origin="own",
        expected=0.0,
        samples=samples,
        tolerance=0.05,
        tolerance_from="set before the run: a test set of some hundred digits, whose ends are not errorless",
    )


def _warmed(network, plain, warm):
    return near(
        f"{network}, no common step: instability at a constant rate minus that with one that rises, mean over pairs",
        f"{FRANKLE} trains such variants; where SGD is least noisy at first, copies part less",
        origin="own",
        expected=0.0,
        samples=plain - instability(warm),
        tolerance=0.0,
        tolerance_from="the sign is the claim",
        relation=">=",
    )


def figure(config, result):
    """Errors on the line for copies without a common step; instability over the common steps."""
    drawing = plotting.figure(width=11, height=4.4)
    left, right = drawing.subplots(1, 2)
    _draw_lines(left, config, result)
    _draw_instability(right, config, result)
    dress(left, right)
    return drawing


def _labels(config):
    return "LeNet (300, 100)", f"{config.hidden} hidden layers of {config.width}"


def _draw_lines(ax, config, result):
    t, first = np.linspace(0, 1, config.points), config.common.index(0)
    lenet, deep = _labels(config)
    lines = {lenet: result.test[0, first], deep: result.test[1, first], f"{deep}, rate rises": result.warm}
    for color, (label, values) in zip(plotting.COLORS, lines.items(), strict=False):
        ax.plot(t, 100 * values.T, color=color, linewidth=0.6, alpha=0.4)
        ax.plot(t, 100 * values.mean(axis=0), color=color, linewidth=2, label=label)
    ax.set(
        xlabel="position on the line between two copies",
        ylabel="error on test digits (%): pairs and mean",
        ylim=(0, None),
    )
    ax.set_title("no common step", fontsize=10)


def _draw_instability(ax, config, result):
    for index, (color, label) in enumerate(zip(plotting.COLORS, _labels(config), strict=False)):
        for errors, style, where in ((result.test, "o-", "test"), (result.train, "s--", "training")):
            found = mean_and_error(100 * instability(errors[index]), axis=1)
            text = f"{label}, {where}"
            ax.errorbar(config.common, found.mean, found.stderr, fmt=style, ms=4, lw=1.2, color=color, label=text)
    ax.axhline(100 * STABLE, color="k", linestyle=":", linewidth=1, label="2 %: stable below")
    ax.set_xscale("symlog", linthresh=config.common[1])
    ax.set_xticks(config.common, [str(shared) for shared in config.common])
    ax.minorticks_off()
    ax.set(
        xlabel=f"common steps k of {config.steps}",
        ylabel="instability (% of error), mean and standard error",
        ylim=(0, None),
    )
    ax.set_title("one initialization, other batches after k", fontsize=10)
