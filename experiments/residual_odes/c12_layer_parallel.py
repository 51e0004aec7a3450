"""Can the layers of a deep residual network be solved in parallel?

Question
--------
A residual network is an initial value problem, and those can be solved in slices of time at once, an iteration joining
them. How fast does the iteration converge for layers, forward and backward, is it as fast as theory says, and does a
network of a thousand layers train when every step of training does only one cycle each way?

Prediction
----------
For y' = lambda y parareal reduces the largest error over N slices in k iterations by at most |F - G|^k sum_{s=k}^{N-1}
binomial(s-1, k-1) |G|^(s-k), below (|F - G| / (1 - |G|))^k and |F - G|^k binomial(N-1, k) max(1, |G|)^(N-1-k), with F
and G the factors of a slice and of a long step over it; N iterations leave nothing. A two-level cycle with FCF
relaxation reduces the 2-norm by |F - G| |F| (1 - |G|^(N-2)) / (1 - |G|). A network is bounded likewise with Lipschitz
constants. With warm starts one cycle forward and one backward per step train to the serial loss. Sources: Gander &
Vandewalle 2007, SIAM J. Sci. Comput. 29, 556-578; Dobrev, Kolev, Petersson & Schroder 2017, SIAM J. Sci.
Comput. 39, S501-S527; Günther, Ruthotto, Schroder, Cyr & Gauger 2020, arXiv:1812.04352.

Measurement
-----------
Euler's method on eight modes, from a guess whose errors add up for parareal and from random ones for multigrid.
Antisymmetric networks of 1024 layers at their initialization: errors of parareal's states beside the bound with norms
of Jacobians on the serial trajectory, and relative errors of the gradient with every cycle of multigrid. Then training
on digits, full batches, by Adam: serial, and one-shot with slices of 32 layers. No parallel machine is used: the
speed-ups that are drawn are those of a model, whose count of work a test compares with the program for eight devices.

Verdict
-------
1024 layers, 32 slices, four seeds; two busy CPU cores, 75 s. All claims hold. The sharp bound is attained; an FCF cycle
stays at 0.63 of its own or below; states are exact to the bit, at rounding from 21 iterations on. In the network
parareal leaves a third of the error per iteration, and so do the gradient's cycles (0.335, standard error 0.016), but
norms of Jacobians see no cancellation: that bound first grows to 5e3 to 5e4 and predicts no rate. On 64 digits both
trainings end near zero, so that their last losses say little (changed after a tiny run: beside the first one); all
along they differ by at most 0.009 to 0.022 of it. The speed-ups are the model's, 2.3 on 8 devices and 6.3 on 32 with
one cycle and no latency; nothing was timed on more than one device.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.drawing import dress
from numdl import activations, data, plotting
from numdl.networks import fields, residual
from numdl.ode import integrate, parallel, stability, tableaus
from numdl.records import record
from numdl.reporting import Claim
from numdl.statistics import mean_and_error
from numdl.theory import layer_parallel

GANDER = "Gander & Vandewalle 2007"
DOBREV = "Dobrev, Kolev, Petersson & Schroder 2017"
GUENTHER = "Günther et al. 2020, arXiv:1812.04352"
FIELD = fields.single("antisymmetric", activations.tanh)
EULER = {"tableau": tableaus.euler, "interpolation": "constant"}
BOUNDS = "linear", "superlinear", "sharp"
NONE = 1e9  # a tolerance above every residual: the guess by long steps alone, no cycle
ROUNDING = 1e-10  # errors of this size beside the first one are not compared with bounds


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    rates: tuple[float, ...] = (-0.5, -2.0, -6.0, -1.0, -3.0, 0.0, 0.0, 0.3)  # real parts of lambda, T = 4
    frequencies: tuple[float, ...] = (0.0, 0.0, 0.0, 2.0, 3.0, 0.5, 2.0, 0.0)  # imaginary parts
    mode_slices: int = 16
    mode_layers: int = 256
    guesses: int = 20  # random ones for multigrid
    layers: int = 1024
    slices: int = 32
    time: float = 4.0  # T, h = T / layers
    damping: float = 0.1
    width: int = 8
    cycles: int = 5
    seeds: int = 4
    examples: int = 64
    steps: int = 120  # of Adam
    learning_rate: float = 1e-2
    seed: int = 0

    @property
    def modes(self):
        """Lambda of every mode."""
        return np.array(self.rates) + 1j * np.array(self.frequencies)

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(mode_slices=8, mode_layers=32, guesses=3, layers=32, slices=8, examples=32, seeds=3, steps=40)


@record
class Result:
    """Errors relative to those of the guess, and losses."""

    parareal: np.ndarray  # [iterations + 1, modes]: largest over the slices
    bounds: dict  # linear, superlinear, sharp -> [iterations + 1, modes]
    multigrid: np.ndarray  # [guesses, modes]: after one cycle, 2-norm
    multigrid_bound: np.ndarray  # [modes]
    network: np.ndarray  # [seeds, slices + 1]: parareal's states, the worst of a few examples
    network_bound: np.ndarray  # [seeds, slices + 1]
    exact: np.ndarray  # [seeds]: relative error of the states after as many iterations as slices
    gradient: np.ndarray  # [seeds, cycles + 1]: relative error, of the cold start first
    losses: dict  # serial, one-shot -> [seeds, steps]


def run(config):
    """Theory's cases in float64, training in float32."""
    digits = data.digits()
    x, labels = data.standardize(digits.images)[: config.examples], jnp.asarray(digits.labels[: config.examples])
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    with jax.enable_x64(True):
        linear, wide = _linear(config), jnp.asarray(x, float)
        networks = [_states(config, key, wide[:4]) for key in keys]
        gradient = np.stack([_gradients(config, key, wide, labels) for key in keys])
    errors, exact, *norms = (np.stack(column) for column in zip(*networks, strict=True))
    sizes = {"slices": config.slices, "iterations": config.slices}
    bound = np.stack([layer_parallel.parareal(*pair, **sizes).sharp for pair in zip(*norms, strict=True)])
    losses = _train(config, keys, jnp.asarray(x, jnp.float32), labels)
    return Result(*linear, errors, bound, exact, gradient, {name: np.asarray(one) for name, one in losses.items()})


def _factors(config):
    """F and G of every mode."""
    m, h = config.mode_layers // config.mode_slices, 4.0 / config.mode_layers
    z = h * config.modes
    return stability.amplification(tableaus.euler, z) ** m, stability.amplification(tableaus.euler, m * z)


def _growth(t, y, rate):
    return rate * y


def _linear(config):
    """Parareal from a guess that is wrong by the phases of G^n, so that nothing cancels; cycles from random guesses."""
    fine, coarse = _factors(config)
    places, m = np.arange(config.mode_slices + 1)[:, None], config.mode_layers // config.mode_slices
    exact, wrong = jnp.asarray(fine**places), np.exp(1j * np.angle(coarse) * places)
    wrong[0] = 0
    theta = jnp.broadcast_to(jnp.asarray(config.modes), (config.mode_layers, len(config.modes)))
    settings = {"t1": 4.0, "steps": config.mode_layers, "iterations": 1, "tolerance": 0.0, **EULER}
    step = functools.partial(parallel.multigrid, _growth, exact[0], theta, coarsening=(m,), **settings)
    later = _iterate(lambda states: step(relaxations=0, guess=states).states, exact + wrong, config.mode_slices)
    random = np.random.default_rng(config.seed).normal(size=(config.guesses, *exact.shape, 2)) @ np.array([1, 1j])
    random[:, 0] = 0
    found = np.stack([step(guess=exact + one).states - exact for one in random])
    each = [
        layer_parallel.parareal(d, g, slices=config.mode_slices, iterations=config.mode_slices)
        for d, g in zip(np.abs(fine - coarse), np.abs(coarse), strict=True)
    ]
    bounds = {name: np.stack([getattr(one, name) for one in each], axis=1) for name in BOUNDS}
    shrunk = np.linalg.norm(found, axis=1) / np.linalg.norm(random, axis=1)
    errors = np.abs(later - exact[None]).max(axis=1)
    return errors, bounds, shrunk, layer_parallel.multigrid(fine, coarse, slices=config.mode_slices)


def _iterate(step, start, times):
    """The start and what follows it, leaves [times + 1, ...]."""
    later = jax.lax.scan(lambda value, _: 2 * (step(value),), start, None, length=times)[1]
    return jax.tree.map(lambda one, rest: jnp.concatenate([one[None], rest]), start, later)


def network(config):
    """Digits to a few channels, antisymmetric layers with a step T / layers, a readout."""
    return residual.network(
        widths=(64, config.width, 10),
        depth=config.layers,
        time=config.time,
        block="antisymmetric",
        damping=config.damping,
        activation=activations.tanh,
        weight_variance=1.0,
        bias_variance=0.0,
    )


def equation(config, params, x):
    """y0, theta and the keyword arguments of the network's one stage."""
    weights = params["connectors"][0]
    theta = {**params["blocks"][0], "damping": jnp.full(config.layers, config.damping, x.dtype)}
    settings = {"t1": config.time, "steps": config.layers, "coarsening": (config.layers // config.slices,), **EULER}
    return x @ weights["kernel"] + weights["bias"][None], theta, settings


@functools.partial(jax.jit, static_argnames="config")
def _states(config, key, x):
    """Errors of parareal's states with each iteration over the first, what is left; norms of Jacobians."""
    y0, theta, settings = equation(config, network(config).init(key, x), x)
    (m,) = settings["coarsening"]
    serial = {name: settings[name] for name in ("t1", "steps", *EULER)}
    exact = integrate.trajectory(FIELD, y0, theta, **serial).states[::m]
    step = functools.partial(parallel.multigrid, FIELD, y0, theta, relaxations=0, iterations=1, **settings)
    begun = step(tolerance=NONE).states
    states = _iterate(lambda guess: step(guess=guess, tolerance=0.0).states, begun, config.slices)
    errors = jnp.linalg.norm(states - exact[None], axis=-1).max(axis=1)
    left = jnp.abs(states[-1] - exact).max() / jnp.abs(exact).max()
    rows = jax.tree.map(lambda leaf: leaf.reshape(config.slices, m, *leaf.shape[1:]), theta)
    norms = jax.vmap(jax.vmap(functools.partial(_jacobians, config, m), in_axes=(0, None)))(exact[:-1], rows)
    return (errors / errors[:1]).max(axis=1), left, *(values.max() for values in norms)


def _jacobians(config, m, y, row):
    """2-norms of the Jacobians of F - G and of G over one slice."""

    def over(y, steps):
        layers = jax.tree.map(lambda leaf: leaf[:steps], row)
        return integrate.endpoint(FIELD, y[None], layers, t1=config.time / config.slices, steps=steps, **EULER)[0]

    fine, coarse = (jax.jacfwd(over)(y, steps) for steps in (m, 1))
    return jnp.linalg.norm(fine - coarse, 2), jnp.linalg.norm(coarse, 2)


def _cross_entropy(labels, y, readout):
    outputs = y @ readout["kernel"] + readout["bias"][None]
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()


def layer_parallel_gradient(config, params, x, labels, **options):
    """The loss, its gradient like params, and the record: slices of layers, and the connector by hand."""
    y0, theta, settings = equation(config, params, x)
    pull = jax.vjp(lambda weights: equation(config, {**params, "connectors": (weights,)}, x)[0], *params["connectors"])[
        1
    ]
    found = parallel.value_and_gradient(
        jax.tree_util.Partial(_cross_entropy, labels),
        FIELD,
        y0,
        theta,
        outer=params["readout"],
        **settings,
        **options,
    )
    blocks = {name: found.theta[name] for name in params["blocks"][0]}
    gradient = {"blocks": (blocks,), "connectors": (pull(found.y0)[0],), "readout": found.outer}
    return found.value, gradient, found


@functools.partial(jax.jit, static_argnames="config")
def _gradients(config, key, x, labels):
    """Relative error of the gradient by blocks after 0, 1, ... cycles each way, from a cold start."""
    net = network(config)
    params = net.init(key, x)
    exact = jax.grad(lambda params: _serial(net, params, x, labels))(params)["blocks"]
    solve = functools.partial(layer_parallel_gradient, config, params, x, labels, iterations=1)

    def kept(result):
        gaps = jax.tree.map(jnp.subtract, result[1]["blocks"], exact)
        return (result[2].states, result[2].adjoints), optax.tree.norm(gaps) / optax.tree.norm(exact)

    return _iterate(
        lambda state: kept(solve(guess=state[0], tolerance=0.0)), kept(solve(tolerance=NONE)), config.cycles
    )[1]


def _serial(net, params, x, labels):
    return optax.softmax_cross_entropy_with_integer_labels(net.apply(params, x), labels).mean()


def _train(config, keys, x, labels):
    """Losses of all steps for each seed: serial, and by one cycle each way from the states of the step before."""
    net, optimizer = network(config), optax.adam(config.learning_rate)
    params = jax.vmap(lambda key: net.init(key, x))(keys)

    def serial(params, guess):
        return *jax.value_and_grad(lambda params: _serial(net, params, x, labels))(params), guess

    def one_shot(params, guess):
        value, gradient, found = layer_parallel_gradient(config, params, x, labels, iterations=1, guess=guess)
        return value, gradient, (found.states, found.adjoints)

    def descend(differentiate, params, guess):
        def body(carry, _):
            params, memory, guess = carry
            value, gradient, guess = differentiate(params, guess)
            updates, memory = optimizer.update(gradient, memory)
            return (optax.apply_updates(params, updates), memory, guess), value

        start = params, optimizer.init(params), guess
        return jax.lax.scan(body, start, None, length=config.steps)[1]

    cold = jax.jit(jax.vmap(lambda params: one_shot(params, None)[2]))(params)
    runs = {"serial": (serial, None), "one-shot": (one_shot, cold)}
    return {
        name: jax.jit(jax.vmap(functools.partial(descend, differentiate)))(params, guess)
        for name, (differentiate, guess) in runs.items()
    }


def _claim(text, source, values, expected, tolerance=0.0, why="the inequality is the claim", origin="exact"):
    """The values' mean over seeds, or one number, is not above the expected one."""
    found = mean_and_error(np.asarray(values, float)) if np.ndim(values) else None
    measured, uncertainty = (found.mean, found.stderr) if found else (values, 0.0)
    return Claim(text, source, expected, measured, uncertainty, tolerance, why, "<=", origin=origin)


def claims(config, result):
    """The bounds hold, nothing is left after N iterations, gradients converge and one-shot training trains."""
    seen, bounds = result.parareal > ROUNDING, result.bounds
    sharp = result.parareal[seen] / bounds["sharp"][seen]
    above = result.parareal[seen] / np.minimum(bounds["linear"], bounds["superlinear"])[seen]
    k = np.arange(config.slices + 1)
    pairs = zip(result.network, result.network_bound, strict=True)
    worst = [(row / np.maximum(bound, ROUNDING))[(row > ROUNDING) & (k > 0)].max() for row, bound in pairs]
    first, last = ({name: loss[:, i] for name, loss in result.losses.items()} for i in (0, -1))
    depth, rounding = f"{config.layers} layers", f"rounding: errors down to {ROUNDING:g} of the first are compared"
    text = "linear modes: parareal's error over the sharp bound, furthest from 1 over modes and iterations"
    measured, source = sharp[np.abs(sharp - 1).argmax()], f"{GANDER}; the norm of a Toeplitz matrix's power"
    return [
        Claim(text, source, 1.0, measured, 0.0, 1e-4, rounding, origin="exact"),
        _claim(
            "linear modes: parareal's error over the smaller of the linear and the superlinear bound, largest",
            GANDER, above.max(), 1.0, 1e-4, rounding,
        ),
        _claim(
            "linear modes: error after one FCF cycle over the two-level bound, largest over modes and random guesses",
            DOBREV, (result.multigrid / result.multigrid_bound).max(), 1.0,
        ),
        _claim(
            f"{depth}: parareal's error over the bound with norms of Jacobians, largest over iterations",
            f"{GANDER}, with Lipschitz constants", worst, 1.0,
        ),
        _claim(
            f"{depth}: relative error of the states after {config.slices} iterations",
            GANDER, result.exact, 0.0, config.layers * np.finfo(float).eps, "rounding, once for each layer",
        ),
        _claim(
            "gradient: factor by which a cycle each way reduces its error, geometric mean",
            GUENTHER, (result.gradient[:, -1] / result.gradient[:, 0]) ** (1 / config.cycles), 0.5,
            why="set before the run: a cycle that does less is not worth its passes", origin="own",
        ),
        _claim(
            "training: last losses of one-shot and serial, difference over the first loss",
            GUENTHER, np.abs(last["one-shot"] - last["serial"]) / first["serial"], 0.0, 0.05,
            "set before the run", "own",
        ),
        _claim(
            "training: last serial loss over the first one",
            "that there is something to agree on", last["serial"] / first["serial"], 0.5, origin="own",
        ),
    ]  # fmt: skip


def figure(config, result):
    """Modes and bounds, the network's states and gradients, training, and the model's speed-ups."""
    drawing = plotting.figure(width=11, height=8)
    (modes, states), (training, speed) = drawing.subplots(2, 2)
    colors = plotting.COLORS
    for place, color in zip((1, 3, 6), colors, strict=False):
        seen = result.parareal[:, place] > 1e-16
        k = np.arange(len(seen))
        modes.semilogy(
            k[seen], result.parareal[seen, place], "o", ms=4, color=color, label=f"λ = {config.modes[place]:g}"
        )
        modes.semilogy(k, np.maximum(result.bounds["sharp"][:, place], 1e-17), "-", color=color, linewidth=1)
        modes.semilogy(k, np.minimum(result.bounds["linear"][:, place], 1e3), ":", color=color, linewidth=1)
    modes.set_title("linear modes: sharp bound (line), linear bound (dots)", fontsize=10)
    k = np.arange(config.slices + 1)
    states.semilogy(k, np.maximum(result.network.T, 1e-17), color=colors[0], linewidth=1)
    states.semilogy(k, np.maximum(result.network_bound.T, 1e-17), "--", color="0.5", linewidth=1)
    states.semilogy(np.arange(config.cycles + 1), result.gradient.T, "s-", ms=3, color=colors[1], linewidth=1)
    handles = [
        states.plot([], [], style, color=color)[0]
        for style, color in (("-", colors[0]), ("--", "0.5"), ("s-", colors[1]))
    ]
    names = "states, parareal", "bound", "gradient, FCF cycles each way"
    states.legend(handles, names, frameon=False, fontsize=8)
    states.set_title(f"antisymmetric network, {config.layers} layers, every seed", fontsize=10)
    for ax in (modes, states):
        ax.set(xlabel="iterations k", ylabel="relative error", ylim=(1e-16, 1e3))
    for (name, losses), color, style in zip(result.losses.items(), colors, ("-", "--"), strict=False):
        lines = training.plot(losses.T, style, color=color, linewidth=1)
        lines[0].set_label(name)
    training.set(xlabel="steps of Adam", ylabel="cross-entropy")
    devices = [n for n in (1, 2, 4, 8, 16, 32) if config.slices % n == 0]
    for latency, color in zip((0.0, 1e-5, 1e-4), colors, strict=False):
        each = [_model(config, n, latency) for n in devices]
        speed.loglog(
            devices, [float(one.speed_up) for one in each], "o-", ms=3, color=color, label=f"latency {latency:g} s"
        )
    speed.loglog(devices, [float(_model(config, n, 0.0).bound) for n in devices], "k:", label="bound")
    speed.set_xticks(devices, [str(n) for n in devices])
    speed.set_yticks([0.2, 0.5, 1, 2, 5, 10], ["0.2", "0.5", "1", "2", "5", "10"])
    speed.minorticks_off()
    speed.set(xlabel="devices", ylabel="speed-up of one FCF cycle, model")
    dress(modes, training, speed)
    plotting.tidy(states)
    return drawing


def _model(config, devices, latency):
    """One cycle, layers of 100 microseconds, states of 4 kB, 10 GB/s."""
    sizes = {"layers": config.layers, "slices": config.slices, "devices": devices, "iterations": 1, "relaxations": 1}
    return layer_parallel.speed_up(layer_seconds=1e-4, state_bytes=4096.0, latency=latency, bandwidth=1e10, **sizes)
