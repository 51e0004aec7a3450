"""What does the sign of the weights do to trajectories?

Lecture: residual networks as differential equations

Question
--------
A residual network whose layers all have the same matrix, y_{l+1} = y_l + h tanh(y_l K), follows y' = tanh(y K). Which
property of K decides whether features fly apart, collapse, or go round?

Prediction
----------
Near the origin the eigenvalues: K+ = [[2, -2], [0, 2]] has 2, 2, K- = [[-2, 0], [2, -2]] has -2, -2, the antisymmetric
K0 = [[0, -1], [1, 0]] has i, -i; each layer multiplies by R(h lambda) = 1 + h lambda. Anywhere, the symmetric part,
through H(y) = sum log cosh((y K)_i): with f = tanh(y K)

    dH/dt = f K f^T,    so  1 <= dH / (|f|^2 dt) <= 3 for K+,    -3 <= ... <= -1 for K-,    H is conserved for K0.

Small distances grow at most like exp of the integral of the logarithmic norm of K diag(1 - f^2). Forward Euler does not
conserve H: a step adds h^2/2 f H''(y) f, which is positive, so that dH/dt = h/2 sum_i (1 - tanh(y_i)^2) f_i^2 + O(h^2).
Verlet, which moves one coordinate after the other, keeps H within O(h^2) for ever. Source: Haber & Ruthotto 2017,
arXiv:1705.03341, section 3 and figure 1; Hairer, Lubich & Wanner, Geometric Numerical Integration, chapter IX.

Measurement
-----------
Networks as built by `networks.residual` and, for Verlet, `networks.reversible`, with these matrices in every layer,
h = 0.1; the equation is the same network with its steps cut and taken by RK4. Derivatives by automatic differentiation.

Verdict
-------
60 layers from 12 starts, 4000 layers for H; two CPU cores, shared with other programs, 36 s. All claims hold. The
matrices K+, K-, K0 are those of the paper, applied from the right. Nothing is random. The number of layers was raised
from 30 after a first run, so that the portrait of K0 shows about one round. K+ meets its bound: along the direction in
which H grows least, dH / (|f|^2 dt) comes to 1 within 1e-7.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claiming import one_number
from experiments.drawing import dress, legend_below
from numdl import activations, plotting
from numdl.networks import residual, reversible
from numdl.ode import convergence, stability, tableaus
from numdl.precision import float64
from numdl.records import record

HABER = "Haber & Ruthotto 2017, arXiv:1705.03341, fig. 1"
MATRICES = {
    "K+": np.array([[2.0, -2.0], [0.0, 2.0]]),
    "K-": np.array([[-2.0, 0.0], [2.0, -2.0]]),
    "K0": np.array([[0.0, -1.0], [1.0, 0.0]]),
}
TITLES = {"K+": "K+: eigenvalues 2, 2", "K-": "K-: eigenvalues -2, -2", "K0": "K0: eigenvalues i, -i"}
STEP = 0.1  # of the networks, as in the paper
CUT = 16  # the steps of the equation are so many times smaller
START = np.array([[1.0, 0.0]])  # of the trajectories around the origin
ROUND = 2 * np.pi  # the time over which Euler's drift is predicted


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    layers: int = 60  # of the networks whose trajectories are drawn
    starts: int = 12  # on two circles
    long_layers: int = 4000  # of the networks whose H is followed, a multiple of 10
    drift_layers: tuple[int, ...] = (128, 256, 512, 1024)  # on one round, doubling

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(starts=6, long_layers=1000, drift_layers=(128, 256, 512))


@record
class Result:
    """Trajectories, small distances, and H; the first axis is that of MATRICES."""

    states: np.ndarray  # [3, layers + 1, starts, 2]: of the network
    exact: np.ndarray  # [3, CUT layers + 1, starts, 2]: of the equation
    growth: np.ndarray  # [3, starts]: ln of the largest singular value of dy(T)/dy(0), of the equation
    bound: np.ndarray  # [3, starts]: integral of the logarithmic norm
    slack: np.ndarray  # [3]: error of that integral
    area: np.ndarray  # [3]: ln |det dy_L/dy_0| / 2 of the network at the origin, per time
    long_times: np.ndarray  # [long layers + 1]
    euler: np.ndarray  # [long layers + 1]: H / H(0) - 1 around the origin
    verlet: np.ndarray  # [long layers + 1]: the same by Verlet
    drift: np.ndarray  # [drift layers]: H(T) / H(0) - 1 by Euler after one round
    drift_predicted: np.ndarray  # [drift layers]


def run(config):
    """Trajectories of all three, then H of the last one."""
    return Result(**_portraits(config), **_energies(config))


def network(depth, step, tableau=tableaus.euler):
    """y + h tanh(y K) in the plane."""
    return residual.network(
        widths=(2, 2, 1),
        depth=depth,
        activation=activations.tanh,
        weight_variance=1.0,
        bias_variance=0.0,
        step=step,
        tableau=tableau,
    )


def verlet_network(depth, step):
    """q' = tanh(p K), p' = -tanh(q K^T), which for K = 1 is what K0 makes of y = (q, p)."""
    return reversible.hamiltonian(
        widths=(2, 2, 1), depth=depth, activation=activations.tanh, weight_variance=1.0, bias_variance=0.0, step=step
    )


def energy(states, matrix):
    """H(y) = sum log cosh((y K)_i) of states [..., 2]."""
    z = states @ matrix
    return np.sum(np.logaddexp(z, -z) - np.log(2.0), axis=-1)


def ring(count):
    """Starts on the circles of radius 0.5 and 1.5, in turns."""
    angle = 2 * np.pi * np.arange(count) / count
    radius = np.where(np.arange(count) % 2, 0.5, 1.5)
    return radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


@float64
def _portraits(config):
    matrices = jnp.asarray(np.stack(list(MATRICES.values())))
    origin = jnp.zeros((1, 2), matrices.dtype)
    x = jnp.concatenate([jnp.asarray(ring(config.starts)), origin])
    states, jacobians = (np.asarray(a) for a in _follow(matrices, x, STEP, config.layers, tableaus.euler))
    exact, flows = (np.asarray(a) for a in _follow(matrices, x, STEP / CUT, CUT * config.layers, tableaus.rk4))
    time = STEP * config.layers
    norms = np.stack([_log_norms(k, y[:, :-1]) for k, y in zip(MATRICES.values(), exact, strict=True)])
    return {
        "states": states[:, :, :-1],
        "exact": exact[:, :, :-1],
        "growth": np.log(np.linalg.norm(flows[:, :-1], ord=2, axis=(-2, -1))),
        "bound": STEP / CUT * (norms[:, 1:] + norms[:, :-1]).sum(axis=1) / 2,
        "slack": STEP / CUT * np.abs(np.diff(norms, axis=1)).sum(axis=1).max(axis=1),
        "area": np.log(np.abs(np.linalg.det(jacobians[:, -1]))) / 2 / time,
    }


@functools.partial(jax.jit, static_argnames=("depth", "tableau"))
def _follow(matrices, x, step, depth, tableau):
    """States [matrices, depth + 1, N, 2] and Jacobians dy_L/dy_0 [matrices, N, 2, 2]."""
    net = network(depth, step, tableau)

    def states(matrix, x):
        return jnp.concatenate([x[None], net.states(_params(matrix, depth), x)[-1]])

    def jacobian(matrix, y):
        return jax.jacfwd(lambda y: states(matrix, y[None])[-1, 0])(y)

    both = jax.vmap(lambda matrix: (states(matrix, x), jax.vmap(lambda y: jacobian(matrix, y))(x)))
    return both(matrices)


def _params(matrix, depth):
    """Parameters with this matrix in every layer, and no biases."""
    kernel = jnp.broadcast_to(matrix, (depth, *matrix.shape))
    bias = jnp.zeros((depth, matrix.shape[1]), matrix.dtype)
    readout = {"kernel": jnp.zeros((2, 1), matrix.dtype), "bias": jnp.zeros(1, matrix.dtype)}
    return {"connectors": ({},), "blocks": ({"kernel": kernel, "bias": bias},), "readout": readout}


def _log_norms(matrix, states):
    """Logarithmic norms of d tanh(y K) / dy = K diag(1 - f^2) at states [..., 2]."""
    slopes = 1 - np.tanh(states @ matrix) ** 2
    return stability.logarithmic_norm(matrix * slopes[..., None, :])


@float64
def _energies(config):
    matrix, x = jnp.asarray(MATRICES["K0"]), jnp.asarray(START)
    euler = energy(np.asarray(_euler(matrix, x, STEP, config.long_layers)), MATRICES["K0"])[:, 0]
    verlet = energy(np.asarray(_verlet(x, config.long_layers)), MATRICES["K0"])[:, 0]
    ends = [np.asarray(_euler(matrix, x, ROUND / n, n))[-1, 0] for n in config.drift_layers]
    start = energy(START[0], MATRICES["K0"])
    return {
        "long_times": STEP * np.arange(config.long_layers + 1),
        "euler": euler / start - 1,
        "verlet": verlet / start - 1,
        "drift": energy(np.stack(ends), MATRICES["K0"]) / start - 1,
        "drift_predicted": ROUND / np.array(config.drift_layers) / 2 * _drift_integral() / start,
    }


@functools.partial(jax.jit, static_argnames="depth")
def _euler(matrix, x, step, depth):
    return jnp.concatenate([x[None], network(depth, step).states(_params(matrix, depth), x)[-1]])


@functools.partial(jax.jit, static_argnames="depth")
def _verlet(x, depth):
    states = verlet_network(depth, STEP).states(_params(jnp.ones((1, 1), x.dtype), depth), x)[-1]
    return jnp.concatenate([x[None], states])


def _drift_integral():
    """The integral of sum_i (1 - tanh(y_i)^2) f_i^2 over one round of the equation, by SciPy."""
    from scipy.integrate import solve_ivp

    def rate(t, state):
        f = np.tanh(state[:2] @ MATRICES["K0"])
        return np.append(f, np.sum((1 - np.tanh(state[:2]) ** 2) * f**2))

    return solve_ivp(rate, (0, ROUND), np.append(START[0], 0.0), method="DOP853", rtol=1e-12, atol=1e-13).y[2, -1]


def claims(config, result):
    """Eigenvalues, the symmetric part, logarithmic norms, and what two schemes do to H."""
    made = [_area(name, result) for name in MATRICES]
    made += [_symmetric(name, result) for name in ("K+", "K-")]
    made += [_conserved(result), _distances(result), _contraction(result)]
    return [*made, _drift_order(config, result), _drift_constant(result), _bounded(config, result)]


def _area(name, result):
    eigenvalue = np.linalg.eigvals(MATRICES[name])[0]
    gain = np.abs(stability.amplification(tableaus.euler, STEP * eigenvalue))
    return one_number(
        f"{name}: rate at which the network spreads what is close to the origin, ln |det| / 2 per time",
        f"ln |1 + h lambda| / h; {HABER}",
        origin="exact",
        expected=np.log(gain) / STEP,
        measured=result.area[list(MATRICES).index(name)],
        tolerance=1e-10,
        tolerance_from="exact; rounding",
    )


def _symmetric(name, result):
    """dH over the integral of |f|^2 is between the eigenvalues of the symmetric part."""
    matrix, states = MATRICES[name], result.exact[list(MATRICES).index(name)]
    change = energy(states[-1], matrix) - energy(states[0], matrix)
    speed = np.sum(np.tanh(states @ matrix) ** 2, axis=-1)
    moved = STEP / CUT * (speed[1:] + speed[:-1]).sum(axis=0) / 2
    low, high = np.linalg.eigvalsh((matrix + matrix.T) / 2)
    outside = np.maximum(low - change / moved, change / moved - high)
    return one_number(
        f"{name}: how far the change of H per integral of |f|^2 leaves [{low:.0f}, {high:.0f}], largest over starts",
        "dH/dt = f K f^T lies between the eigenvalues of the symmetric part times |f|^2",
        origin="exact",
        expected=0.0,
        measured=outside.max(),
        tolerance=1e-3,
        tolerance_from="the trapezoidal rule for the integral, O(h^2) at the equation's small step",
        relation="<=",
    )


def _conserved(result):
    index = list(MATRICES).index("K0")
    values = energy(result.exact[index], MATRICES["K0"])
    return one_number(
        "K0: the equation's largest relative change of H",
        f"an antisymmetric K has f K f^T = 0; {HABER}",
        origin="exact",
        expected=0.0,
        measured=np.abs(values / values[0] - 1).max(),
        tolerance=1e-8,
        tolerance_from="RK4 at h / 16, O(h^4)",
    )


def _distances(result):
    excess = result.growth - result.bound
    return one_number(
        "all three: largest excess of ln |dy(T)/dy(0)| over the integral of the logarithmic norm",
        "Dahlquist 1959; Hairer, Norsett & Wanner I, theorem I.10.6",
        origin="exact",
        expected=0.0,
        measured=excess.max(),
        tolerance=result.slack.max(),
        tolerance_from="total variation of the logarithmic norm times the step: error of the integral",
        relation="<=",
    )


def _contraction(result):
    largest = result.growth[list(MATRICES).index("K-")].max()
    return one_number(
        "K-: the largest ln |dy(T)/dy(0)| over all starts is negative: every small distance shrinks",
        HABER,
        origin="published",
        expected=0.0,
        measured=largest,
        tolerance_from="the sign is the claim",
        relation="<=",
    )


def _drift_order(config, result):
    found = convergence.observed_order(result.drift, config.drift_layers, high=1.0)
    return one_number(
        "K0: order in h of what Euler adds to H in one round",
        "dH/dt = h/2 f H'' f + O(h^2)",
        origin="exact",
        expected=1.0,
        measured=found.value,
        tolerance=0.1,
        tolerance_from="what is left of the next order",
    )


def _drift_constant(result):
    ratios = result.drift / result.drift_predicted
    return one_number(
        "K0: what Euler adds to H in one round relative to h/2 times the integral of f H'' f, extrapolated to h = 0",
        "dH/dt = h/2 f H'' f + O(h^2)",
        origin="exact",
        expected=1.0,
        measured=float(convergence.richardson(ratios[-2], ratios[-1], order=1).value),
        tolerance=1e-3,
        tolerance_from="O(h^2) after the extrapolation, h about 0.01",
    )


def _bounded(config, result):
    tenth = config.long_layers // 10
    first, last = (np.abs(part).max() for part in (result.verlet[:tenth], result.verlet[-tenth:]))
    return one_number(
        f"K0: Verlet's largest deviation of H in the last tenth of {config.long_layers} layers over the first tenth's",
        "Hairer, Lubich & Wanner, theorem IX.8.1",
        origin="exact",
        expected=1.0,
        measured=last / first,
        tolerance=0.05,
        tolerance_from="which phases of a round the layers meet",
    )


def figure(config, result):
    """Three portraits, and H for K0 by two schemes."""
    drawing = plotting.figure(width=13.5, height=3.9)
    axes = drawing.subplots(1, 4, width_ratios=(1, 1, 1, 1.2))
    for index, (ax, name) in enumerate(zip(axes, MATRICES, strict=False)):
        _portrait(ax, name, result.states[index], result.exact[index])
    legend_below(drawing, *axes[0].get_legend_handles_labels(), loc="outside lower left", fontsize=8)
    _draw_energy(axes[-1], config, result)
    return drawing


def _portrait(ax, name, states, exact):
    grid = np.linspace(-2.5, 2.5, 21)
    plane = np.stack(np.meshgrid(grid, grid), axis=-1)
    rate = np.tanh(plane @ MATRICES[name])
    ax.streamplot(grid, grid, rate[..., 0], rate[..., 1], color="0.85", linewidth=0.7, arrowsize=0.7, density=0.8)
    for start in range(2 if name == "K0" else states.shape[1]):
        ax.plot(*exact[:, start].T, "--", color="k", linewidth=0.8, label=None if start else "equation")
        label = None if start else "network, h = 0.1"
        ax.plot(*states[:, start].T, "o", color=plotting.COLORS[0], markersize=2, label=label)
        ax.plot(*states[0, start], "o", color=plotting.COLORS[1], markersize=4, label=None if start else "start")
    ax.set(xlim=(-2.5, 2.5), ylim=(-2.5, 2.5))
    ax.set_aspect("equal")
    ax.set(xlabel="y_1", ylabel="y_2")
    ax.set_title(TITLES[name], fontsize=10)


def _draw_energy(ax, config, result):
    times = result.long_times[1:]
    for color, label, values in zip(plotting.COLORS, ("Euler", "Verlet"), (result.euler, result.verlet), strict=False):
        ax.plot(times, np.maximum.accumulate(np.abs(values[1:])), color=color, linewidth=1.5, label=label)
    rate = result.drift_predicted[0] / (ROUND / config.drift_layers[0]) / ROUND * STEP
    ax.plot(times, rate * times, "--", color="k", linewidth=1, label="predicted, first rounds")
    ax.set(xlabel="time h l", ylabel="|H / H(0) - 1|, largest so far", xscale="log", yscale="log")
    dress(ax, title="K0, h = 0.1: who conserves H")
