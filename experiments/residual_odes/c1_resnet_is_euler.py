"""Is a residual network a discretized differential equation?

Lecture: Ruthotto & Haber, Numerical Methods for Deep Learning, deck 8 (continuous models): residual networks as
differential equations

Question
--------
y_{l+1} = y_l + h F(y_l; theta_l) looks like Euler's method. Do the outputs of ever deeper residual networks approach
the solution of y' = F(y; theta(t)), how fast, and what if the weights of neighbouring layers have nothing in common?

Prediction
----------
With weights that are one function theta(t), however deep the network is, the error is that of the solver: O(1/N) for
the usual network, O(1/N^2) with Heun's step, O(1/N^4) with Runge and Kutta's. Weights that are known at the grid times
only, and straight in between, are themselves O(1/N^2) off: then Runge and Kutta's step is of order 2, no better than
Heun's. With independent weights of mean zero and an odd activation, increments are uncorrelated, exactly, and

    E |y_L - y_0|^2 = h^2 sum over l of n E[f(sqrt(w |y_l|^2 / n) z)^2],   z ~ N(0, 1).

At h = 1/L the limit is the identity, approached like sqrt(E f^2 / L): half an order. At h = L^-1/2 the displacement
does not depend on L: the limit is a stochastic equation, no ordinary one. Sources: Thorpe & van Gennip 2018,
arXiv:1810.11741; Sander et al. 2022, arXiv:2205.14612; Marion et al. 2022, arXiv:2206.06929.

Measurement
-----------
Networks as built by `networks.residual`, tanh, fixed weights theta(t); the solution by SciPy's DOP853 with tolerance
1e-13. "refined": theta is straight between 9 fixed times and every network cuts its steps by `residual.refine`.
"sampled": theta is a trigonometric polynomial, read off at the N + 1 grid times. Orders by `ode.convergence`, from
errors between 1e-12 and 1e-2. Independent weights: displacements over many draws.

Verdict
-------
Four curves at seven depths from 16 to 1024 (width 6, 4 examples), 200 draws of independent weights at each of four
depths up to 1024 (width 32); two CPU cores, shared with other programs, 47 s. All claims hold: orders 0.999, 2.004 and
4.012 with refined weights, 2.000 with RK4 on sampled ones; exponents -0.501 and -0.001, both within 0.003, with
independent weights. A curve "Euler, sampled" (order 0.999 in a small run) was dropped: it said nothing new.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.drawing import dress
from numdl import activations, plotting, quadrature
from numdl.networks import residual
from numdl.ode import convergence, tableaus
from numdl.precision import float64
from numdl.records import record
from numdl.reporting import Claim
from numdl.statistics import mean_and_error, slope

THORPE = "Thorpe & van Gennip 2018, arXiv:1810.11741; Sander et al. 2022, arXiv:2205.14612"
MARION = "Marion et al. 2022, arXiv:2206.06929"
# curve -> (solver, how the weights are made finer, order)
CURVES = {
    "Euler, refined": (tableaus.euler, "refined", 1),
    "Heun, refined": (tableaus.heun, "refined", 2),
    "RK4, refined": (tableaus.rk4, "refined", 4),
    "RK4, sampled": (tableaus.rk4, "sampled", 2),
}
BETAS = {"1": 1.0, "0.5": 0.5}  # h = L^-beta for independent weights
INTERVALS = 8  # on which the refined weights are straight
WEIGHT_VARIANCE = 1.0  # of the independent weights


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    width: int = 6
    examples: int = 4
    depths: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024)  # multiples of 8
    random_width: int = 32
    random_depths: tuple[int, ...] = (16, 64, 256, 1024)
    draws: int = 200  # networks with independent weights for each depth
    seed: int = 0

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(depths=(64, 128, 256), random_width=16, random_depths=(16, 144), draws=100)


@record
class Result:
    """Errors of the networks whose weights are a function of time, displacements of those with independent weights."""

    orders: dict  # curve -> convergence.Order: errors [depths] relative to the solution
    displacement: dict  # beta -> [random depths, draws]: |y_L - y_0|^2 / |y_0|^2


def run(config):
    """Every curve at every depth, and all draws."""
    rows = [_displacements(config, depth) for depth in config.random_depths]
    by_beta = {name: np.stack([row[:, i] for row in rows]) for i, name in enumerate(BETAS)}
    return Result(_orders(config), by_beta)


def weights(random, width):
    """theta(t) as a NumPy function: t -> kernel [n, n], bias [n], each c_0 + c_1 cos(pi t) + c_2 sin(2 pi t)."""
    kernels = random.standard_normal((3, width, width)) / np.sqrt(width)
    biases = random.standard_normal((3, width)) / 2

    def theta(t):
        waves = np.array([1.0, np.cos(np.pi * t), np.sin(2 * np.pi * t)])
        return np.tensordot(waves, kernels, 1), waves @ biases

    return theta


def network(width, depth, tableau):
    """A residual network on the time [0, 1], its weights straight between the grid times."""
    return residual.network(
        widths=(width, width, 1),
        depth=depth,
        activation=activations.tanh,
        weight_variance=1.0,
        bias_variance=0.0,
        time=1.0,
        tableau=tableau,
        interpolation="linear",
    )


@float64
def _orders(config):
    random = np.random.default_rng(config.seed)
    theta = weights(random, config.width)
    x = random.standard_normal((config.examples, config.width))
    straight = _straight(theta, INTERVALS)
    solutions = {
        "refined": _solution(straight, x, np.linspace(0, 1, INTERVALS + 1)),
        "sampled": _solution(theta, x, np.array([0.0, 1.0])),
    }
    return {
        name: convergence.study(
            functools.partial(_output, theta, jnp.asarray(x), tableau, manner),
            steps=config.depths,
            reference=solutions[manner],
        )
        for name, (tableau, manner, _) in CURVES.items()
    }


def _output(theta, x, tableau, manner, depth):
    """y_N of the network of this depth."""
    start = depth if manner == "sampled" else INTERVALS
    return _last(_params(theta, start), x, start, depth // start, tableau)


@functools.partial(jax.jit, static_argnames=("start", "factor", "tableau"))
def _last(params, x, start, factor, tableau):
    net, params = residual.refine(network(x.shape[1], start, tableau), params, factor=factor)
    return net.states(params, x, save=False)[-1][-1]


def _params(theta, steps):
    kernels, biases = zip(*(theta(t) for t in np.linspace(0, 1, steps + 1)), strict=True)
    return _tree(jnp.asarray(np.stack(kernels)), jnp.asarray(np.stack(biases)))


def _tree(kernels, biases):
    """Parameters of a network of one stage: kernels [L, n, n], biases [L, n]; the readout is not looked at."""
    readout = {"kernel": jnp.zeros((biases.shape[1], 1), biases.dtype), "bias": jnp.zeros(1, biases.dtype)}
    return {"connectors": ({},), "blocks": ({"kernel": kernels, "bias": biases},), "readout": readout}


def _straight(theta, intervals):
    """The function that agrees with theta at the ends of the intervals and is straight in between."""
    nodes = [theta(t) for t in np.linspace(0, 1, intervals + 1)]

    def between(t):
        left = min(int(t * intervals), intervals - 1)
        share = t * intervals - left
        return tuple((1 - share) * a + share * b for a, b in zip(nodes[left], nodes[left + 1], strict=True))

    return between


def _solution(theta, x, breaks):
    """y(1) by SciPy; it starts anew at every break, where theta has a kink."""
    from scipy.integrate import solve_ivp

    def rate(t, y):
        kernel, bias = theta(t)
        return np.tanh(y.reshape(x.shape) @ kernel + bias).ravel()

    y = x.ravel()
    for t0, t1 in zip(breaks[:-1], breaks[1:], strict=True):
        y = solve_ivp(rate, (t0, t1), y, method="DOP853", rtol=1e-13, atol=1e-14).y[:, -1]
    return y.reshape(x.shape)


def _displacements(config, depth):
    keys = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), depth), config.draws)
    steps = jnp.asarray([depth**-beta for beta in BETAS.values()], jnp.float32)
    return np.asarray(_random(keys, steps, config.random_width, depth), np.float64)


@functools.partial(jax.jit, static_argnames=("width", "depth"))
def _random(keys, steps, width, depth):
    """|y_L - y_0|^2 / |y_0|^2 for each draw of the weights and each h."""
    x = jnp.ones((1, width), jnp.float32)
    scale = jnp.asarray(WEIGHT_VARIANCE / width, x.dtype)

    def build(step):
        return residual.network(
            widths=(width, width, 1),
            depth=depth,
            activation=activations.tanh,
            weight_variance=WEIGHT_VARIANCE,
            bias_variance=0.0,
            step=step,
        )

    def draw(key):
        kernels = jnp.sqrt(scale) * jax.random.normal(key, (depth, width, width), x.dtype)
        params = _tree(kernels, jnp.zeros((depth, width), x.dtype))
        last = lax.map(lambda step: build(step).states(params, x, save=False)[-1][-1], steps)
        return jnp.sum((last - x[None]) ** 2, axis=(1, 2)) / width

    return lax.map(draw, keys)


def claims(config, result):
    """The order of every curve, and both limits of independent weights."""
    made = [_order(name, result.orders[name]) for name in CURVES]
    made += [_half_order(config, result, "1", -0.5), _half_order(config, result, "0.5", 0.0)]
    return [*made, _constant(config, result)]


def _order(name, found):
    expected = CURVES[name][2]
    return Claim(
        f"{name}: order at which the outputs approach the solution, 95 % interval {found.low:.3f} to {found.high:.3f}",
        THORPE if "Euler" in name else "order of the solver; of the straight interpolation where weights are sampled",
        origin="exact",
        expected=expected,
        measured=found.value,
        uncertainty=_standard_error(found),
        tolerance=0.1,
        tolerance_from="what is left of higher orders at these depths",
    )


def _standard_error(found):
    used = found.used
    if used.sum() < 3:
        return np.nan
    return slope(-np.log(found.steps[used]), np.log(found.errors[used])).stderr


def _half_order(config, result, name, expected):
    value, stderr = _slope(config.random_depths, result.displacement[name])
    return Claim(
        f"independent weights, h = L^-{name}: exponent of L in the root mean square of |y_L - y_0|",
        MARION,
        origin="exact",
        expected=expected,
        measured=value,
        uncertainty=stderr,
        tolerance=0.1 + 6 * stderr,
        tolerance_from="as for the orders, and six standard errors",
    )


def _slope(depths, samples):
    """Slope of ln rms against ln L and its standard error, from those of the means."""
    means = mean_and_error(samples, axis=1)
    across = np.log(depths) - np.log(depths).mean()
    weights = across / (across**2).sum() / 2  # of ln mean square: half of it is ln rms
    return weights @ np.log(means.mean), np.linalg.norm(weights * means.stderr / means.mean)


def limit_constant():
    """sqrt(E tanh(sqrt(w) z)^2): |y_L - y_0| sqrt(L) / |y_0| at h = 1/L where |y_0|^2 = n."""
    return float(np.sqrt(quadrature.expectation(lambda z: jnp.tanh(z) ** 2, WEIGHT_VARIANCE).value))


def _constant(config, result):
    depth, samples = config.random_depths[-1], mean_and_error(result.displacement["1"][-1])
    measured = np.sqrt(depth * samples.mean)
    stderr = measured * samples.stderr / (2 * samples.mean)
    expected = limit_constant()
    return Claim(
        f"independent weights, h = 1/L, {depth} layers: sqrt(L) times the root mean square of |y_L - y_0| / |y_0|",
        "increments are uncorrelated: sqrt(E tanh(z)^2), exact as L grows",
        origin="exact",
        expected=expected,
        measured=measured,
        uncertainty=stderr,
        tolerance=6 * stderr + expected / depth,
        tolerance_from="six standard errors, and the lengths of later layers, O(1/L)",
    )


def figure(config, result):
    """Left the errors with weights that are a function of time, right the displacement with independent ones."""
    drawing = plotting.figure(width=11, height=4.4)
    left, right = drawing.subplots(1, 2)
    for ax in (left, right):
        ax.set_xscale("log")
    _draw_errors(left, config, result)
    _draw_displacements(right, config, result)
    for ax in (left, right):
        ax.minorticks_off()
        dress(ax)
    return drawing


def _draw_errors(ax, config, result):
    depths = np.asarray(config.depths, float)
    for color, (name, found) in zip(plotting.COLORS, result.orders.items(), strict=False):
        look = {"marker": "o", "markersize": 5}
        if CURVES[name][1] == "sampled":
            look = {"marker": "s", "markersize": 8, "markerfacecolor": "none"}
        ax.plot(depths, found.errors, linestyle="", color=color, label=f"{name}: order {found.value:.2f}", **look)
        anchor = np.flatnonzero(found.used)[0]
        line = found.errors[anchor] * (depths / depths[anchor]) ** -float(CURVES[name][2])
        ax.plot(depths, line, "--", color="k", linewidth=1, label="predicted" if name == "RK4, sampled" else None)
    ax.set(yscale="log", ylim=(1e-14, None))
    ax.set_xticks(config.depths, [str(depth) for depth in config.depths])
    ax.set(xlabel="depth N", ylabel="|y_N - y(1)| / |y(1)|")
    ax.set_title("weights are a function of time", fontsize=10)


def _draw_displacements(ax, config, result):
    depths = np.asarray(config.random_depths, float)
    for color, (name, samples) in zip(plotting.COLORS, result.displacement.items(), strict=False):
        means = mean_and_error(samples, axis=1)
        rms = np.sqrt(means.mean)
        ax.errorbar(depths, rms, means.stderr / (2 * rms), fmt="o", color=color, label=f"h = L^-{name}")
    ax.plot(depths, limit_constant() * depths**-0.5, "--", color="k", linewidth=1, label="predicted, h = 1/L")
    level = np.sqrt(result.displacement["0.5"].mean())
    ax.plot(depths, np.full_like(depths, level), ":", color="k", linewidth=1, label="does not depend on L")
    ax.set_yscale("log")
    ax.set_xticks(config.random_depths, [str(depth) for depth in config.random_depths])
    ax.set(xlabel="depth L", ylabel="|y_L - y_0| / |y_0|, root mean square")
    ax.set_title("weights of every layer independent", fontsize=10)
