"""By which powers of the width do layers and outputs change in a step?

Question
--------
Standard, NTK and maximal update parametrization (muP) draw and train the same network with other powers of the width
n. By which power does each layer's change grow, and the output's, with SGD and with Adam? Which of them can keep its
learning rate when the width grows?

Prediction
----------
For W_1 (fixed -> n), W_2 (n -> n), W_3 (n -> fixed) with entries n^b_l and rates n^c_l: `theory.scaling.exponents`,

    own change     sgd:  c_1 + b_3,  c_2 + b_3 + 1,  c_3 + 1        adam:  c_1,  c_2 + 1,  c_3 + 1
    output         max(own_3, 1 + b_3 + max(own_2, own_1))

muP alone has zeros everywhere. The standard start with a rate for each layer has zeros in every layer, and an output
that changes as n^(1/2): a check of layers alone calls it muP. Adam's step under white gradients has the root mean
square sqrt((1 - b)(1 + b^t) / ((1 + b)(1 - b^t))) of `theory.descent.adam_step_rms`: 1 at first.
Sources: Yang & Hu 2021, arXiv:2011.14522; Yang et al. 2022, arXiv:2203.03466; Everett et al. 2024, arXiv:2407.05872.

Measurement
-----------
tanh networks of two hidden layers, 8 inputs, 4 outputs, 8 examples, drawn with variance 1 / fan_in and then rescaled by
`optimize.scaling`; one small step; `analysis.scaling.coordinate_check` fits powers, the part of the output's change
that is passed on apart from the last layer's own. Adam's steps on independent Gaussian gradients.

Verdict
-------
4 widths, 24 networks of each; two CPU cores shared with many other programs, 287 s, most of it compilation. All claims
hold, seven standard errors or more inside their limits. Own changes are nowhere farther than 0.06 from theory, the
output's powers are 1.00, 0.00, 0.45, -0.04 with sgd (standard, ntk, rate per layer, muP) and 1.41, 0.93, 0.48, -0.02
with Adam; the standard output of Adam comes in slowly, 3/2 being the power of its largest part. Nothing fails under
muP, and the output alone under rates per layer. Adam's steps agree within 2.5 standard errors at every step. A small
trial with 4 networks of each width could not tell powers of sgd apart (standard errors to 0.17, gradients of few
networks scatter); 24 are used since. It also counted what is not known as failing; only what fails is counted now.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments.claiming import one_number, within
from experiments.drawing import dress
from numdl import activations, plotting
from numdl.analysis import scaling as measured
from numdl.networks import dense
from numdl.optimize import scaling
from numdl.records import record
from numdl.reporting import Claim
from numdl.statistics import agreement
from numdl.theory import descent
from numdl.theory import scaling as predicted

YANG = "Yang & Hu 2021, arXiv:2011.14522; theory.scaling.exponents"
RULES = ("standard", "ntk", "standard with rate per layer", "mup")
OPTIMIZERS = {"sgd": optax.sgd, "adam": functools.partial(optax.adam, eps=1e-20)}
CASES = tuple((rule, optimizer) for optimizer in OPTIMIZERS for rule in RULES)
WEIGHTS = ("hidden/0/kernel", "hidden/1/kernel", "readout/kernel")
INPUTS, OUTPUTS, EXAMPLES, BETA = 8, 4, 8, 0.9


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    widths: tuple[int, ...] = (64, 128, 256, 512)
    seeds: int = 24
    rate: float = 1e-4
    coordinates: int = 200_000  # of Adam's white gradients
    batches: int = 20
    steps: int = 30
    seed: int = 0

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(widths=(64, 128, 256), seeds=24, coordinates=20_000)


@record
class Result:
    """Slopes with standard errors, sizes of changes, and Adam's steps."""

    own: np.ndarray  # [cases, 3]
    own_error: np.ndarray  # [cases, 3]
    passed: np.ndarray  # [cases]: of what the last layer passes on
    passed_error: np.ndarray  # [cases]
    output_rms: np.ndarray  # [cases, widths]: of the output's whole change, geometric mean of the seeds
    fails: dict  # "rule, optimizer" -> the places that fail, as text
    steps: np.ndarray  # [batches, steps]: mean square of Adam's update over the rate squared


def run(config):
    """All rules with both optimizers, and Adam on noise."""
    checks = [_check(config, *case) for case in CASES]
    at = [checks[0].names.index(name) for name in WEIGHTS]
    own, own_error = (np.stack([getattr(c, name)[at] for c in checks]) for name in ("own", "own_error"))
    passed, passed_error = (np.stack([getattr(c, name)[-1] for c in checks]) for name in ("passed", "passed_error"))
    output = np.stack([np.exp(np.log(c.rms[3, :, :, 0, -1]).mean(axis=1)) for c in checks])
    fails = {
        f"{rule}, {optimizer}": ", ".join(name for name, text in c.verdict.items() if text.startswith("fails"))
        for (rule, optimizer), c in zip(CASES, checks, strict=True)
    }
    return Result(own, own_error, passed, passed_error, output, fails, _adam(config))


def _check(config, rule, optimizer):
    """The coordinate check of one case."""
    key = jax.random.key(config.seed)
    x = jax.random.normal(key, (EXAMPLES, INPUTS))
    targets = jax.random.normal(jax.random.fold_in(key, 1), (EXAMPLES, OUTPUTS))
    roles = scaling.roles(build, config.widths[:2], x)

    def made(width, seed):
        apply, params = build(width, seed)
        return apply, scaling.rescale(params, roles, rule)

    update = optax.chain(OPTIMIZERS[optimizer](config.rate), scaling.multipliers(roles, rule, optimizer))
    options = {"optimizer": update, "seeds": config.seeds}
    return measured.coordinate_check(made, (x, targets), config.widths, 1, **options)


def build(width, seed=0):
    """(apply, params) of one width: drawn with variance 1 / fan_in, no biases but zeros."""
    settings = {"activation": activations.tanh, "weight_variance": 1.0, "bias_variance": 0.0}
    net = dense.network(widths=(INPUTS, width, width, OUTPUTS), **settings)
    return net.apply, net.init(jax.random.fold_in(jax.random.key(seed), width), jnp.ones((1, INPUTS)))


def _adam(config):
    """Mean squares of Adam's updates on white gradients, [batches, steps]."""
    update = optax.scale_by_adam(b1=BETA, b2=1 - 2.0**-20, eps=0.0)

    def one(key):
        start = jnp.zeros(config.coordinates // config.batches)

        def step(state, key):
            updates, state = update.update(jax.random.normal(key, start.shape), state)
            return state, jnp.mean(updates**2)

        return lax.scan(step, update.init(start), jax.random.split(key, config.steps))[1]

    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 2), config.batches)
    return np.asarray(jax.jit(jax.vmap(one))(keys), np.float64)


def claims(config, result):
    """Own changes and outputs of every case, what only the output shows, and Adam's steps."""
    made = [_own(result, i) for i in range(len(CASES))]
    made += [_output(result, i) for i in range(len(CASES))]
    return [*made, _only_mup(result), _hidden_from_layers(result), _steps(config, result)]


def _theory(case):
    return predicted.exponents(parametrization=case[0], optimizer=case[1])


def _slope_claim(text, expected, value, error):
    return Claim(
        text,
        YANG,
        origin="exact",
        expected=expected,
        measured=value,
        uncertainty=error,
        tolerance=0.25,
        tolerance_from="half of the distance between two powers, which are multiples of 1/2",
    )


def _own(result, i):
    theory = _theory(CASES[i]).own
    layer = int(np.argmax(np.abs(result.own[i] - theory)))
    text = f"{', '.join(CASES[i])}: power of layer {layer + 1}'s own change, the layer that is farthest from theory"
    return _slope_claim(text, theory[layer], result.own[i, layer], result.own_error[i, layer])


def _parts(result, i):
    """(slope, error) of the part of the output's change that grows faster."""
    return max((result.own[i, 2], result.own_error[i, 2]), (result.passed[i], result.passed_error[i]))


def _output(result, i):
    text = f"{', '.join(CASES[i])}: power of the output's change, of its two parts the faster one"
    return _slope_claim(text, float(_theory(CASES[i]).output), *_parts(result, i))


def _only_mup(result):
    passing = sum(not text for text in result.fails.values())
    return one_number(
        "cases of eight in which nothing fails the coordinate check, neither a layer nor the output: muP's two",
        YANG,
        origin="exact",
        expected=2.0,
        measured=float(passing if all(not result.fails[f"mup, {name}"] for name in OPTIMIZERS) else np.nan),
        tolerance_from="a count",
    )


def _hidden_from_layers(result):
    found = [result.fails[f"standard with rate per layer, {name}"] for name in OPTIMIZERS]
    return one_number(
        "standard start with rates per layer: cases, of two, in which the output alone fails",
        "Everett et al. 2024, arXiv:2407.05872; theory.scaling.exponents",
        origin="exact",
        expected=2.0,
        measured=float(found.count("output")),
        tolerance_from="a count",
    )


def _steps(config, result):
    exact = descent.adam_step_rms(step=np.arange(1, config.steps + 1), momentum=BETA) ** 2
    z = agreement(exact[1:], result.steps[:, 1:]).z
    first = np.abs(result.steps[:, 0] - 1).max()
    return within(
        f"Adam on white gradients, steps 2 to {config.steps}: largest |measured - predicted| mean square, in standard "
        f"errors (step 1 is off by {first:.0e})",
        "theory.descent.adam_step_rms",
        z,
    )


def figure(config, result):
    """Slopes beside theory, the outputs' changes against width, and Adam's steps."""
    drawing = plotting.figure(width=14.0, height=4.4)
    slopes, outputs, steps = drawing.subplots(1, 3)
    _draw_slopes(slopes, result)
    _draw_outputs(outputs, config, result)
    _draw_steps(steps, config, result)
    return drawing


def _draw_slopes(ax, result):
    for color, (layer, name) in zip(plotting.COLORS, enumerate(("input", "hidden", "output layer")), strict=False):
        theory = [_theory(case).own[layer] for case in CASES]
        ax.errorbar(
            theory, result.own[:, layer], result.own_error[:, layer], fmt="o", color=color, label=f"own, {name}"
        )
    parts = np.array([_parts(result, i) for i in range(len(CASES))])
    theory = [_theory(case).output for case in CASES]
    ax.errorbar(theory, parts[:, 0], parts[:, 1], fmt="s", color="k", markersize=4, label="network's output")
    ax.plot([-0.6, 1.6], [-0.6, 1.6], "--k", linewidth=1, label="equal")
    dress(ax, xlabel="power of the width, predicted", ylabel="measured", fontsize=7)


def _draw_outputs(ax, config, result):
    for color, rule in zip(plotting.COLORS, RULES, strict=False):
        for style, optimizer in zip(("o-", "s--"), OPTIMIZERS, strict=True):
            values = result.output_rms[CASES.index((rule, optimizer))]
            ax.loglog(config.widths, values / values[0], style, color=color, markersize=4, label=f"{rule}, {optimizer}")
    ax.set_xticks(config.widths, [str(width) for width in config.widths])
    ax.minorticks_off()
    dress(ax, xlabel="width n", ylabel="output's change, over that of the first width", fontsize=6)


def _draw_steps(ax, config, result):
    steps = np.arange(1, config.steps + 1)
    ax.plot(steps, np.sqrt(result.steps.mean(axis=0)), "o", color=plotting.COLORS[0], markersize=4, label="measured")
    exact = descent.adam_step_rms(step=steps, momentum=BETA)
    ax.plot(steps, exact, "--k", linewidth=1, label="predicted")
    limit = np.sqrt((1 - BETA) / (1 + BETA))
    ax.axhline(limit, color="0.6", linewidth=1, label=f"limit {limit:.3f}")
    dress(ax, xlabel="step", ylabel="root mean square of Adam's update over the rate", fontsize=7)
