"""How much memory does a deep network need for its gradient?

Question
--------
Back-propagation stores what every layer has computed. How does that memory grow with depth if states are computed
again, or undone, instead; is the gradient still the same; and which networks can be undone at all?

Prediction
----------
Beside a few states of its own, the gradient of L layers keeps every intermediate of every layer (direct), L states
(checkpointed), 2 sqrt(L) states (Chen et al. 2016, arXiv:1604.06174), as many snapshots as it is given (binomial,
Griewank & Walther 2000), or one state (reversible: Gomez et al. 2017, arXiv:1707.04585; Chang et al. 2018,
arXiv:1709.03698). In a log-log plot: slopes 1, 1, 1/2, 0, 0. All five are the same gradient, the reversible one up to
the rounding of its reconstruction. Verlet, leapfrog and coupling undo a step by algebra, so that input comes back with
at most about one unit of rounding for each layer. A stable contracting network must not be run backwards: forward
Euler's step back is another method, and even its exact inverse multiplies rounding by exp(contraction * T).

Measurement
-----------
Temporary memory of the compiled gradient, by the compiler's own analysis, in states (one batch at one layer). Gradients
in float64 and float32 against the direct one in float64. Inputs from outputs by the inverse. The network is one
function of time, cut into more and more steps: depth refines it, T stays.

Verdict
-------
Width 32, 8 networks of 50 random layers, cut into 400 and 3200; 150 s of CPU. All claims hold. Memory of 3200 layers:
14409 states direct, 3204 checkpointed, 120 square root, 15 binomial, 4.5 reversible, which took half of the direct
gradient's time. Inputs come back to about two units of rounding at every depth, better than the bound: what a step adds
its inverse takes away again, rounding included. A first run claimed that Euler's step back loses half of the input at
any depth. It does at 50 and 400 layers; at 3200 it is 42 %, falling like the step, so a tenth is claimed.
"""

import dataclasses
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.claiming import one_number
from experiments.drawing import dress
from numdl import activations, plotting, trees
from numdl.networks import residual, reversible
from numdl.ode import adjoints
from numdl.records import record
from numdl.reporting import Claim

CHANG = "Chang et al. 2018, arXiv:1709.03698"
GOMEZ = "Gomez et al. 2017, arXiv:1707.04585"
SNAPSHOTS = 10
METHODS = {
    "direct": adjoints.direct,
    "checkpointed": adjoints.checkpointed,
    "square_root": adjoints.square_root,
    "binomial": adjoints.binomial(snapshots=SNAPSHOTS),
    "reversible": adjoints.reversible,
}
SLOPES = {"direct": 1.0, "checkpointed": 1.0, "square_root": 0.5, "binomial": 0.0, "reversible": 0.0}
STORED = {  # states, predicted
    "checkpointed": lambda depth: depth,
    "square_root": lambda depth: 2 * np.sqrt(depth),
    "binomial": lambda depth: np.full_like(depth, SNAPSHOTS),
    "reversible": np.ones_like,
}
SCHEMES = ("hamiltonian", "leapfrog", "coupling")
FAILING = ("Euler, a step back", "Euler, exact inverse")
DTYPES = ("float32", "float64")
FLOAT32 = float(np.finfo(np.float32).eps)
TIME = 5.0
DAMPING = 2.0


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    width: int = 32
    batch: int = 64
    memory_batch: int = 8192  # never computed: large, so that weights are small beside states
    depths: tuple[int, ...] = (50, 400, 3200)  # multiples of the first
    timed_depth: int = 400
    timed_batch: int = 512
    rounds: int = 7  # of timing; below 5 there is no claim about time
    seeds: int = 8
    seed: int = 0

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(width=8, batch=4, depths=(100, 1600), timed_depth=20, timed_batch=8, rounds=1, seeds=2)


@record
class Result:
    """Memory, seconds and errors of all methods; names as in METHODS, SCHEMES and FAILING."""

    memory: dict  # method -> [depths]: states
    seconds: dict  # method -> [rounds]: CPU seconds of one gradient at `timed_depth`
    gradient: dict  # method -> [depths, seeds]: relative error, float64
    gradient32: dict  # direct, reversible -> [depths, seeds]: relative error of float32
    recovered: dict  # scheme or failing way -> [dtypes, depths, seeds]: relative error of the input


def run(config):
    """Analyse, time and compare the gradients; run all networks backwards."""
    memory = {name: np.array([_memory(config, name, depth) for depth in config.depths]) for name in METHODS}
    with jax.enable_x64(True):
        samples = {name: _samples(config, name) for name in (*SCHEMES, "antisymmetric")}
        errors = [_gradient_errors(*samples["hamiltonian"], config, depth) for depth in config.depths]
        recovered = {name: _table(_recovered, samples[name], config, name) for name in SCHEMES}
        failing = _table(_euler_back, samples["antisymmetric"], config, "antisymmetric")
        wide, narrow = _stack(errors)
    return Result(memory, _seconds(config), wide, narrow, recovered | failing)


def network(config, name, depth, adjoint, **more):
    """One of the networks on its way from 0 to TIME, no connectors."""
    build = {
        "hamiltonian": reversible.hamiltonian,
        "leapfrog": reversible.leapfrog,
        "coupling": reversible.coupling,
        "antisymmetric": functools.partial(reversible.antisymmetric, damping=DAMPING),
    }[name]
    return build(
        widths=(config.width, config.width, 2),
        depth=depth,
        activation=activations.tanh,
        weight_variance=1.0,
        bias_variance=0.1,
        time=TIME,
        adjoint=adjoint,
        **more,
    )


def _samples(config, name):
    """Parameters of config.depths[0] random layers, and inputs, for every seed."""
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    net = network(config, name, config.depths[0], adjoints.checkpointed)
    x = jax.random.normal(jax.random.key(config.seed + 1), (config.seeds, config.batch, config.width), jnp.float64)
    return jax.vmap(net.init, in_axes=(0, None))(keys, x[0]), x


def _refined(config, params, name, depth, adjoint=adjoints.checkpointed):
    """The network and its parameters with every layer cut into equal steps."""
    return residual.refine(network(config, name, config.depths[0], adjoint), params, factor=depth // config.depths[0])


def _gradient(net):
    return jax.grad(lambda params, x: jnp.sum(net.apply(params, x) ** 2) / 2, argnums=(0, 1))


def _compiled(config, method, depth, batch):
    net = network(config, "hamiltonian", depth, METHODS[method])
    x = jax.ShapeDtypeStruct((batch, config.width), jnp.float32)
    params = jax.eval_shape(net.init, jax.random.key(0), x)
    return jax.jit(_gradient(net)).lower(params, x).compile(), net


def _memory(config, method, depth):
    """Temporary memory of the compiled gradient, in states."""
    compiled, _ = _compiled(config, method, depth, config.memory_batch)
    return compiled.memory_analysis().temp_size_in_bytes / (config.memory_batch * config.width * 4)


def _seconds(config):
    """CPU seconds of every method's gradient, taken in turns."""
    compiled = {name: _compiled(config, name, config.timed_depth, config.timed_batch) for name in METHODS}
    x = jax.random.normal(jax.random.key(config.seed), (config.timed_batch, config.width), jnp.float32)
    params = compiled["direct"][1].init(jax.random.key(1), x)
    rounds = [{name: _clock(f, params, x) for name, (f, _) in compiled.items()} for _ in range(config.rounds + 1)]
    return {name: np.array([row[name] for row in rounds[1:]]) for name in METHODS}  # the first round warms up


def _clock(compiled, params, x):
    begin = time.process_time()
    jax.block_until_ready(compiled(params, x))
    return time.process_time() - begin


@functools.partial(jax.jit, static_argnames=("config", "depth"))
def _gradient_errors(params, x, config, depth):
    """Relative errors of all methods in float64, and of two in float32, against the direct gradient in float64."""

    def one(sample):
        gradients, narrow = {}, {}
        for name, adjoint in METHODS.items():
            net, params = _refined(config, sample[0], "hamiltonian", depth, adjoint)
            gradients[name] = _gradient(net)(params, sample[1])
            if name in ("direct", "reversible"):
                narrow[name] = _gradient(net)(*_cast((params, sample[1]), "float32"))
        relative = functools.partial(_relative, gradients["direct"])
        return {n: relative(g) for n, g in gradients.items()}, {n: relative(g) for n, g in narrow.items()}

    return lax.map(one, (params, x))


def _table(measure, samples, config, name):
    """One measure for every dtype and depth."""
    return _stack([_stack([measure(*samples, config, name, n, dtype) for n in config.depths]) for dtype in DTYPES])


@functools.partial(jax.jit, static_argnames=("config", "name", "depth", "dtype"))
def _recovered(params, x, config, name, depth, dtype):
    """Relative error of the input, from the last state by the scheme's inverse."""

    def one(sample):
        params, x = _cast(sample, dtype)
        net, params = _refined(config, params, name, depth)
        last = net.states(params, x, save=False)[-1][-1]
        return _relative(x, reversible.inverse(net, params, last))

    return lax.map(one, (params, x))


@functools.partial(jax.jit, static_argnames=("config", "name", "depth", "dtype"))
def _euler_back(params, x, config, name, depth, dtype):
    """The same for the damped antisymmetric network: y - h F(y), and the solution of y + h F(y) = y_new."""

    def one(sample):
        params, x = _cast(sample, dtype)
        net, params = _refined(config, params, name, depth)
        flow = residual.unroll(net, params, x)
        last = net.states(params, x, save=False)[-1][-1]

        def back(iterations, y, theta):
            fixed_point = lambda _, guess: y - jnp.asarray(flow.step, y.dtype) * flow.field(guess, theta)  # noqa: E731
            return lax.fori_loop(0, iterations, fixed_point, y), None

        ways = zip(FAILING, (1, 30), strict=True)
        ends = {n: lax.scan(functools.partial(back, k), last, flow.theta, reverse=True)[0] for n, k in ways}
        return {name: _relative(x, end) for name, end in ends.items()}

    return lax.map(one, (params, x))


def _cast(tree, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def _relative(wanted, got):
    wanted, got = _cast((wanted, got), "float64")
    return trees.norm(jax.tree.map(jnp.subtract, got, wanted)) / trees.norm(wanted)


def _stack(rows):
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *rows)


def claims(config, result):
    """Slopes of memory, one gradient, inputs recovered, and where they are not."""
    made = [_slope(config, result, name) for name in METHODS]
    made += [_same_gradient(result), _gradient32(config, result)]
    made += [_undone(config, result, index) for index in range(len(DTYPES))]
    made += [_lost(result), _amplified(result)]
    return made if config.rounds < 5 else [*made, _ratio(config, result)]


def _slope(config, result, name):
    a, b = np.log(result.memory[name][-2:])
    first, last = config.depths[-2:]
    return one_number(
        f"{name}: slope of ln memory in ln depth between depths {first} and {last}",
        {"square_root": "Chen et al. 2016, arXiv:1604.06174", "binomial": "Griewank & Walther 2000"}.get(name, GOMEZ),
        origin="exact",
        expected=SLOPES[name],
        measured=(b - a) / np.log(last / first),
        tolerance=0.1,
        tolerance_from="half a dozen states that do not grow, beside 2 sqrt(L) that do",
    )


def _bound(claim, source, origin, relation, limit, measured, tolerance_from, uncertainty=0.0):
    return Claim(claim, source, limit, measured, uncertainty, 0.0, tolerance_from, relation, origin=origin)


def _same_gradient(result):
    text = "float64: largest relative difference of the five gradients from the direct one, all depths and seeds"
    source = "exact adjoints; the reversible one up to its reconstruction"
    worst = max(np.max(errors) for errors in result.gradient.values())
    return _bound(text, source, "exact", "<=", 1e-10, worst, "a hundred times the rounding of 3200 layers")


def _gradient32(config, result):
    units = result.gradient32["reversible"] / (FLOAT32 * np.asarray(config.depths)[:, None])
    text = "float32: largest relative error of the reversible gradient, in units of rounding for each layer"
    return _bound(text, CHANG, "exact", "<=", 1.0, units.max(), "worst case: every layer adds one unit of rounding")


def _undone(config, result, index):
    layers = float(np.finfo(DTYPES[index]).eps) * np.asarray(config.depths)[:, None]
    worst = max(np.max(result.recovered[name][index] / layers) for name in SCHEMES)
    text = (
        f"{DTYPES[index]}: largest relative error of the recovered input over {', '.join(SCHEMES)}, in units of "
        "rounding for each layer"
    )
    return _bound(text, CHANG, "exact", "<=", 1.0, worst, "worst case: every layer adds one unit of rounding")


def _lost(result):
    text = (
        "damped antisymmetric network, a step of -h for each step of h: smallest relative error of the input at any "
        "depth, median of the seeds"
    )
    source = "Gholami et al. 2019, arXiv:1902.10298: stable forwards is unstable backwards"
    least = np.median(result.recovered[FAILING[0]], axis=-1).min()
    return _bound(
        text, source, "own", ">=", 0.1, least, "a tenth of the input is lost at any depth tried; see the verdict"
    )


def _amplified(result):
    contracting, conserving = (result.recovered[name][1, -1] for name in (FAILING[1], "hamiltonian"))
    text = (
        "float64, deepest networks: error of the exact inverse of damped Euler beside that of the Hamiltonian network, "
        "median of the seeds"
    )
    source = "rounding grows by exp(contraction * T) on the way back"
    why = f"far below exp({DAMPING * TIME:g}), the most that this damping can do"
    return _bound(text, source, "own", ">=", 10.0, np.median(contracting / conserving), why)


def _ratio(config, result):
    ratios = result.seconds["reversible"] / result.seconds["direct"]
    text = f"CPU time of the reversible gradient beside the direct one, {config.timed_depth} layers, median of rounds"
    why = "4 passes of the block instead of 3, and as much again for fetching"
    stderr = ratios.std(ddof=1) / np.sqrt(ratios.size)
    return _bound(
        text, f"{GOMEZ}: one more forward pass and the inverse", "own", "<=", 2.2, np.median(ratios), why, stderr
    )


def figure(config, result):
    """Memory, gradient errors and recovered inputs against depth."""
    drawing = plotting.figure(width=13.5, height=4.4)
    memory, gradient, recovered = drawing.subplots(1, 3)
    depths = np.asarray(config.depths, float)
    _draw_memory(memory, depths, result)
    _draw_gradients(gradient, depths, result)
    _draw_recovered(recovered, depths, result)
    for ax in (memory, gradient, recovered):
        ax.set(xscale="log", yscale="log")
        ax.set_xticks(config.depths, [str(depth) for depth in config.depths])
        ax.minorticks_off()
        ax.set_xlabel("depth L (layers)")
        plotting.tidy(ax)
    return drawing


def _draw_memory(ax, depths, result):
    for color, name in zip(plotting.COLORS, METHODS, strict=False):
        ax.plot(depths, result.memory[name], "o-", color=color, ms=4, linewidth=0.8, label=name)
        if name in STORED:
            ax.plot(depths, STORED[name](depths), "--", color="k", linewidth=1, zorder=1)
    ax.plot([], [], "k--", linewidth=1, label="predicted: states stored")
    dress(ax, title="memory", ylabel="temporary memory of the gradient (states)", fontsize=7.5)


def _draw_gradients(ax, depths, result):
    for color, name in zip(plotting.COLORS[1:], list(METHODS)[1:], strict=False):
        floor = np.maximum(np.median(result.gradient[name], axis=1), 1e-17)
        ax.plot(depths, floor, "o-", color=color, ms=4, linewidth=0.8, label=f"{name}, float64")
    for name, color in (("direct", plotting.COLORS[0]), ("reversible", plotting.COLORS[4])):
        errors = np.median(result.gradient32[name], axis=1)
        ax.plot(depths, errors, "s--", color=color, ms=4, mfc="w", linewidth=0.8, label=f"{name}, float32")
    ax.set(ylabel="relative error of the gradient")
    dress(ax, title="one gradient (1e-17 stands for no difference)", fontsize=7.5)


def _draw_recovered(ax, depths, result):
    for color, (name, errors) in zip(plotting.COLORS, result.recovered.items(), strict=False):
        for row, style in zip(np.median(errors, axis=-1), ("s--", "o-"), strict=True):
            fill = "w" if style == "s--" else color
            label = name if style == "o-" else None
            ax.plot(depths, row, style, color=color, mfc=fill, ms=4, linewidth=0.8, label=label)
    for dtype in DTYPES:
        ax.plot(depths, float(np.finfo(dtype).eps) * depths, ":", color="k", linewidth=1)
    ax.plot([], [], "k:", linewidth=1, label="one unit of rounding a layer")
    ax.set(ylabel="relative error of the recovered input")
    dress(ax, title="input from output (filled float64, open float32)", fontsize=7.5)
