"""How far back in time does a recurrent network feel its past?

Lecture: recurrent networks and their gradients through time

Question
--------
A recurrent network is as deep as its sequence is long. How does the gradient through time, dh_T/dh_t, depend on how
many steps it goes back? What do the weights alone tell, and what does the forget gate of an LSTM change?

Prediction
----------
h_t = f(h_{t-1} W + x_t U) with |f'| <= gamma (1 for tanh, 1/4 for sigmoid) and sigma = |W|_2 obeys, for all inputs,
|dh_T/dh_t| <= (gamma sigma)^(T - t): below sigma = 1 / gamma gradients vanish. Above, they may explode and need not:
the bound is met where no input comes in and W is orthogonal, since h = 0 then and every slope of tanh is 1; in general
powers of W stay far below powers of sigma, and inputs push tanh to where its slope is small. A Jordan block of radius
0.9 has sigma = 1.53; |W^k| = |[[0.9^k, k 0.9^(k-1)], [0, 0.9^k]]| grows 3.9 times until k = 9 and then vanishes.
Along the cell state of an LSTM the gradient is the product of the forget gates,
ln dc_k/dc_0 = sum ln sigmoid(forget_bias + a_t); for a ~ N(0, v) it falls by E softplus(-forget_bias - a) a step, and
the inverse of that is the length of the memory.
Source: Pascanu et al. 2013, arXiv:1211.5063, section 2.1; Trefethen & Embree 2005, Spectra and Pseudospectra,
section 14; Hochreiter & Schmidhuber 1997, section 4; Gers et al. 2000.

Measurement
-----------
Spectral norms of the Jacobians of random cells by automatic differentiation, rescaled at every step, with and without
random inputs; W Gaussian or orthogonal, scaled to a given sigma. The gradient along the cell state of random LSTMs;
theory for its mean is exact where the gates see the inputs only, which have mean square 1.

Verdict
-------
15 settings, 10 networks of width 50 each, 100 steps; LSTMs of 100 units, 10 for each of 5 forget biases; two CPU
cores. All claims hold. With recurrent weights the gates vary more, and memories are a little shorter.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claiming import near, one_number
from experiments.drawing import dress
from numdl import activations, plotting
from numdl.analysis import recurrent as measured
from numdl.networks import initializers, recurrent
from numdl.records import record
from numdl.reporting import Claim
from numdl.theory import recurrent as predicted

PASCANU = "Pascanu et al. 2013, arXiv:1211.5063, section 2.1"
TREFETHEN = "Trefethen & Embree 2005, section 14"
LSTM = "Hochreiter & Schmidhuber 1997, section 4; Gers et al. 2000"
LAWS = {"Gaussian": initializers.variance_scaling(1.0), "orthogonal": initializers.orthogonal(1.0)}
LEVELS = {"below": 0.9, "at": 1.0, "above": 1.5, "far above": 4.0}  # gamma * sigma
JORDAN = np.array([[0.9, 1.0], [0.0, 0.9]])
PEAK = 3.912567078376658845721  # |[[0.9^9, 9 0.9^8], [0, 0.9^9]]|_2 by mpmath
FEATURES = 10
GATE_INPUT_VARIANCE = 1.0  # of the forget gate's pre-activation, from the inputs


class Setting(NamedTuple):
    """A family of random plain cells and what drives them."""

    activation: activations.Activation
    law: str  # of W
    level: str  # key of LEVELS
    input_variance: float  # variance of what the input adds to a pre-activation; 0: no input

    @property
    def name(self):
        """As the arrays and claims call it."""
        driven = f"inputs of variance {self.input_variance:g}" if self.input_variance else "no input"
        return f"{self.activation.name}, {self.law} {LEVELS[self.level]:g}, {driven}"


SETTINGS = (
    *(
        Setting(activations.tanh, law, level, variance)
        for level in ("below", "at", "above")
        for law in LAWS
        for variance in (0.0, 1.0)
    ),
    Setting(activations.sigmoid, "Gaussian", "below", 1.0),
    Setting(activations.tanh, "Gaussian", "far above", 0.1),
    Setting(activations.tanh, "orthogonal", "far above", 1.0),
)
QUIET = Setting(activations.tanh, "Gaussian", "above", 0.0).name


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    width: int = 50  # of the plain cells
    steps: int = 100
    seeds: int = 10  # networks for each setting
    units: int = 100  # of an LSTM
    memory_steps: int = 50
    forget_biases: tuple[float, ...] = (-1.0, 0.0, 1.0, 2.0, 4.0)
    seed: int = 0

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(width=20, steps=50, seeds=4, units=20, memory_steps=12, forget_biases=(0.0, 2.0))


@record
class Result:
    """Natural logarithms of gradients through time, by lag 1..T, and along the memory of LSTMs."""

    gradients: dict  # setting -> [seeds, T]  ln |dh_T/dh_{T-lag}|_2
    bounds: dict  # setting -> [T]
    powers: np.ndarray  # [T]  ln |W^lag|_2 of the first network of QUIET
    jordan: np.ndarray  # [T]  measured
    jordan_predicted: np.ndarray  # [T]
    memories: dict  # what the gates see -> [biases, seeds]  ln of the gradient along the cell, per step
    predicted_memory: np.ndarray  # [biases]
    gate_error: np.ndarray  # [biases]  largest |ln gradient - sum of ln gates|, with recurrent weights


def run(config):
    """The plain cells, the Jordan block, the LSTMs."""
    gradients, bounds, powers = {}, {}, None
    for index, setting in enumerate(SETTINGS):
        gamma = float(predicted.largest_slope(setting.activation))
        sigma, key = LEVELS[setting.level] / gamma, jax.random.fold_in(jax.random.key(config.seed), index)
        found, matrices = _gradients(_cell(setting, config.width), jax.random.split(key, config.seeds), sigma, config)
        bound = predicted.gradient_through_time(
            steps=config.steps, largest_singular_value=sigma, largest_slope=gamma
        ).log_norm
        gradients[setting.name], bounds[setting.name] = np.asarray(found, float), bound[::-1]
        if setting.name == QUIET:
            powers = predicted.transient_growth(matrices[0], steps=config.steps).log_norm
    block = predicted.transient_growth(JORDAN, steps=config.steps).log_norm
    return Result(gradients, bounds, powers, _jordan(config), block, *_memories(config))


def _cell(setting, width):
    return recurrent.vanilla(
        width=width,
        activation=setting.activation,
        input_weights=initializers.variance_scaling(setting.input_variance),
        recurrent_weights=LAWS[setting.law],
        bias_variance=0.0,
    )


@functools.partial(jax.jit, static_argnames="config")
def _gradients(cell, keys, sigma, config):
    """Logarithms by lag [seeds, T] and the recurrent weights [seeds, n, n]."""

    def one(key):
        weights_key, input_key = jax.random.split(key)
        params = cell.init(weights_key, FEATURES, jnp.float32)
        weights = params["recurrent"]
        params = {**params, "recurrent": weights * (sigma / jnp.linalg.norm(weights, 2)).astype(jnp.float32)}
        inputs = _inputs(input_key, config.steps)
        through = measured.gradient_through_time(cell.step, params, cell.start(1, jnp.float32), inputs)
        return through.log_norm[::-1, 0], params["recurrent"]

    return jax.lax.map(one, keys)


def _inputs(key, steps):
    """Gaussian inputs [T, 1, features], each with mean square 1: what they add to a gate is Gaussian at any width."""
    inputs = jax.random.normal(key, (steps, 1, FEATURES), jnp.float32)
    return inputs / jnp.sqrt(jnp.mean(inputs**2, axis=-1, keepdims=True))


def _jordan(config):
    setting = Setting(activations.identity, "Gaussian", "above", 0.0)
    cell = _cell(setting, len(JORDAN))
    params = {**cell.init(jax.random.key(0), 1, jnp.float32), "recurrent": jnp.asarray(JORDAN, jnp.float32)}
    inputs = jnp.zeros((config.steps, 1, 1), jnp.float32)
    through = measured.gradient_through_time(cell.step, params, cell.start(1, jnp.float32), inputs)
    return np.asarray(through.log_norm, float)[::-1, 0]


def _memories(config):
    """Measured and predicted change of the logarithm per step, and the error of the product of gates."""
    memories, errors = {}, []
    for stream, (kind, variance) in enumerate({"inputs only": 0.0, "inputs and hidden state": 1.0}.items()):
        rows = []
        for index, forget_bias in enumerate(config.forget_biases):
            cell = recurrent.lstm(
                width=config.units,
                input_weights=initializers.variance_scaling(GATE_INPUT_VARIANCE),
                recurrent_weights=initializers.variance_scaling(variance),
                bias_variance=0.0,
                forget_bias=forget_bias,
            )
            key = jax.random.fold_in(jax.random.key(config.seed), 1000 * (1 + stream) + index)
            logs, gates = _carousels(cell, jax.random.split(key, config.seeds), config)
            logs, gates = np.asarray(logs, float), np.asarray(gates, float)
            rows.append(logs[:, -1].mean(axis=-1) / config.memory_steps)
            errors += [np.abs(logs - gates).max()] if variance else []
        memories[kind] = np.stack(rows)
    line = [
        predicted.carousel(steps=1, forget_bias=bias, gate_variance=GATE_INPUT_VARIANCE)[0]
        for bias in config.forget_biases
    ]
    return memories, np.array(line), np.array(errors)


@functools.partial(jax.jit, static_argnames="config")
def _carousels(cell, keys, config):
    """Along the cell state by automatic differentiation, and the sums of ln gates: both [seeds, steps, units]."""

    def one(key):
        weights_key, input_key = jax.random.split(key)
        params, start = cell.init(weights_key, FEATURES, jnp.float32), cell.start(1, jnp.float32)
        inputs = _inputs(input_key, config.memory_steps)
        carousel = measured.carousel(cell.step, params, start, inputs)
        hidden = recurrent.run(cell, params, start, inputs).hidden
        before = jnp.concatenate([start.hidden[None], hidden[:-1]])[:, 0]
        return carousel.log_gradient[:, 0], _log_gates(params, before, inputs[:, 0])

    return jax.lax.map(one, keys)


def _log_gates(params, hidden, inputs):
    """Sums of ln sigmoid of the forget gate's pre-activations, [steps, units]."""
    gate = recurrent.LSTM_GATES.index("forget")
    given = hidden @ params["recurrent"][gate] + inputs @ params["input"][gate] + params["bias"][gate][None, :]
    return jnp.cumsum(jax.nn.log_sigmoid(given), axis=0)


def claims(config, result):
    """The bound at every lag, where it is met and where not, the Jordan block, the carousel."""
    made = [_bounded(level, config, result) for level in LEVELS]
    made += [_met(level, config, result) for level in ("below", "at", "above")]
    made += [_powers(config, result), *_above(config, result), *_jordan_claims(config, result)]
    made.append(_carousel_identity(config, result))
    return made + [_memory(config, result, index) for index in range(len(config.forget_biases))]


def _up_to_rounding(config, claim, source, measured, *, expected=0.0, width=None, relation="=="):
    """A claim without chance: a sum of logarithms, one product of matrices a step."""
    return one_number(
        claim,
        source,
        origin="exact",
        expected=expected,
        measured=measured,
        tolerance=float(np.finfo(np.float32).eps) * (width or config.width) * config.steps,
        tolerance_from="rounding, float32 epsilon x width x steps",
        relation=relation,
    )


def _bounded(level, config, result):
    names = [setting.name for setting in SETTINGS if setting.level == level]
    excess = max((result.gradients[name] - result.bounds[name]).max() for name in names)
    verb = "gradients vanish at least as fast" if level == "below" else "gradients stay below the bound"
    text = f"sigma = {LEVELS[level]:g}/gamma: {verb}; largest ln(|dh_T/dh_t| / bound), all lags, {len(names)} settings"
    return _up_to_rounding(config, text, PASCANU, excess, relation="<=")


def _met(level, config, result):
    name = Setting(activations.tanh, "orthogonal", level, 0.0).name
    off = np.abs(result.gradients[name] - result.bounds[name]).max()
    return _up_to_rounding(config, f"{name}: the bound is met; largest |ln(|dh_T/dh_t| / bound)|", PASCANU, off)


def _powers(config, result):
    off = np.abs(result.gradients[QUIET][0] - result.powers).max()
    text = f"{QUIET}: gradients are powers of W; largest |ln(|dh_T/dh_t| / |W^(T-t)|)|"
    return _up_to_rounding(config, text, TREFETHEN, off)


def _above(config, result):
    """Above 1 / gamma both happen."""
    driven = [result.gradients[Setting(activations.tanh, law, "above", 1.0).name][:, -1].max() for law in LAWS]
    chaotic = Setting(activations.tanh, "Gaussian", "far above", 0.1).name
    common = {"expected": 0.0, "uncertainty": 0.0, "tolerance": 0.0, "tolerance_from": "the sign alone decides"}
    return [
        Claim(
            f"sigma = 1.5/gamma does not suffice: largest ln |dh_T/dh_0| with inputs, {config.steps} steps",
            PASCANU,
            origin="published",
            measured=max(driven),
            relation="<=",
            **common,
        ),
        Claim(
            f"{chaotic}: it does explode; smallest ln |dh_T/dh_0| over networks, {config.steps} steps",
            PASCANU,
            origin="published",
            measured=result.gradients[chaotic][:, -1].min(),
            relation=">=",
            **common,
        ),
    ]


def _jordan_claims(config, result):
    peak, block = f"{TREFETHEN}; |W^9| in closed form by mpmath at 20 digits", "Jordan block of radius 0.9"
    text = f"{block}, sigma = 1.53: ln |W^{config.steps}| at the last lag, radius decides in the end"
    last = {"expected": result.jordan_predicted[-1], "width": len(JORDAN)}
    return [
        _up_to_rounding(
            config, f"{block}: ln of the largest |W^k|, {PEAK:.2f}", peak, result.jordan.max(),
            expected=np.log(PEAK), width=len(JORDAN),
        ),
        one_number(
            f"{block}: the k of the largest |W^k|",
            peak, origin="exact",
            expected=9,
            measured=1 + result.jordan.argmax(),
            tolerance_from="a whole number",
        ),
        _up_to_rounding(config, text, f"{TREFETHEN}; powers in float64", result.jordan[-1], **last),
    ]  # fmt: skip


def _carousel_identity(config, result):
    largest_sum = config.memory_steps * max(1.0, -result.predicted_memory.min())
    return one_number(
        "LSTM with recurrent weights: ln of the gradient along the cell is the sum of ln of the forget gates; largest "
        "difference over units, steps and forget biases",
        LSTM,
        origin="exact",
        expected=0.0,
        measured=result.gate_error.max(),
        tolerance=16 * float(np.finfo(np.float32).eps) * largest_sum,
        tolerance_from="rounding, 16 float32 epsilon x the largest predicted sum of logarithms, at least the steps",
    )


def _memory(config, result, index):
    return near(
        f"LSTM, forget bias {config.forget_biases[index]:g}, gates driven by inputs: change of ln dc_k/dc_0 per step "
        f"(a memory of {-1 / result.predicted_memory[index]:.3g} steps)",
        LSTM,
        origin="exact",
        expected=result.predicted_memory[index],
        samples=result.memories["inputs only"][index],
        tolerance=0.0,
        errors=6,
        tolerance_from="six standard errors",
    )


def figure(config, result):
    """Without and with inputs, the Jordan block, the memory of an LSTM."""
    drawing = plotting.figure(width=11, height=8.2)
    (quiet, driven), (block, memory) = drawing.subplots(2, 2)
    for ax, variance, title in ((quiet, 0.0, "no input"), (driven, 1.0, "inputs of variance 1")):
        _draw_plain(ax, config, result, variance)
        ax.set_title(f"tanh, {title}: dashed is the bound, (γσ) to the lag", fontsize=10)
    _draw_jordan(block, config, result)
    _draw_memory(memory, config, result)
    return drawing


def _draw_plain(ax, config, result, variance):
    lags = np.arange(1, config.steps + 1)
    colors = iter(plotting.COLORS)
    for level in ("below", "at", "above"):
        for law in LAWS:
            name, color = Setting(activations.tanh, law, level, variance).name, next(colors)
            samples, label = result.gradients[name], f"{law}, γσ = {LEVELS[level]:g}"
            ax.plot(lags, samples.mean(axis=0), color=color, linewidth=2.5, label=label)
            ax.fill_between(lags, samples.min(axis=0), samples.max(axis=0), color=color, alpha=0.18, linewidth=0)
        ax.plot(lags, result.bounds[name], "k--", linewidth=1.2, label="bound" if level == "above" else "_")
    dress(ax, xlabel="lag T - t (steps)", ylabel="ln |dh_T/dh_t|")


def _draw_jordan(ax, config, result):
    lags = np.arange(1, config.steps + 1)
    ax.plot(lags, np.exp(result.jordan_predicted), "k--", label="predicted, |W^k|", zorder=4)
    ax.plot(lags[::3], np.exp(result.jordan[::3]), "o", color=plotting.COLORS[0], markersize=4, label="measured")
    ax.plot(lags, 0.9**lags, color="0.6", label="its eigenvalue, 0.9^k")
    ax.set(xlabel="lag k (steps)", ylabel="|dh_T/dh_(T-k)|", yscale="log")
    dress(ax, title="Jordan block of radius 0.9: grows 3.9-fold, then vanishes")


def _draw_memory(ax, config, result):
    ax.plot(config.forget_biases, -1 / result.predicted_memory, "k--", label="predicted, gates see inputs only")
    for color, marker, (kind, samples) in zip(plotting.COLORS, "os", result.memories.items(), strict=False):
        label = f"measured, gates see {kind}"
        inside = color if marker == "o" else "none"
        size = 5 if marker == "o" else 10
        steps = -1 / samples.mean(axis=1)
        ax.plot(config.forget_biases, steps, marker, color=color, markerfacecolor=inside, markersize=size, label=label)
    ax.set(xlabel="forget bias", ylabel="memory (steps until 1/e)", yscale="log")
    dress(ax, title="LSTM: gradient along the cell state")
