"""Is the border between learning rates that train and learning rates that diverge a fractal?

Question
--------
Training is a map that is applied again and again, and for some learning rates it diverges. Sets of parameters for which
an iteration stays bounded, Mandelbrot's among them, have fractal borders. Has trainability one too?

Prediction
----------
A network with one hidden layer learns with one rate for each of its two layers. N(s) boxes of edge s hold a piece of
the border in the plane of the logarithms of both rates, and N(s) ~ s^-D: D = 1 for a smooth curve, 2 for a border that
is everywhere. Measured for width 16, mean-field scaling and as many random data as weights (as many as inputs for the
linear network): D = 1.66 (tanh), 1.55 (tanh, minibatches of 16), 1.41 (tanh, one datum), 1.20 (relu), 1.17 (linear).
Control: a model that is linear in its weights has the smooth border

    largest eigenvalue of R^(1/2) H R^(1/2) = 2,    R the diagonal of the rates, H the Hessian,    D = 1

so that the way D is estimated is judged with it. Sources: Sohl-Dickstein 2024, arXiv:2402.06184; the stability limit of
gradient descent (theory.descent.sharpness_limit).

Measurement
-----------
Gaussian weights, inputs and targets in float64, every cell of a grid a training of its own; it trains if the mean of
its last 20 losses is below the first. A plane of nine decades (three for the control), then zooms by 16, each where a
window of that size holds most of the border: what the paper's author did by hand. D is the median over zooms and box
sizes of the slopes between neighbouring sizes, as in the paper; mean and standard error are over seeds, each with its
own network and data. Where all data, as many as weights, are used at every step, the network is narrower.

Verdict
-------
Width 16 (8 where all data are used at every step), grids of 96, two zooms, 100 steps, 3 seeds; two CPU cores shared
with other programs. The control is in its place within 0.15 cells (standard error 0.09) and has dimension 1.005
(0.009). Rough borders are found: tanh 1.58 (0.08), with minibatches 1.79 (0.02), relu 1.69 (0.03), linear 1.31
(0.11). Five of nine claims fail. Minibatches (1.55 in the paper) and relu (1.20) are rougher here: where the border
is densest it fills the plane at the second zoom, and it is a curve elsewhere, so that D says where one looks; the
paper's zooms were chosen by hand. With one datum it is 1.00 (0.01), not 1.41, a curve at every zoom, and so the least
of all networks is no rougher than the control; and tanh is not rougher than relu. Tanh and linear are within 0.2 of
the published, which their errors of 0.08 and 0.11 hardly decide. At width 8 on grids of 48 with 2 seeds the same two
networks were off, minibatches not (1.65, 0.04).
Changed after seeing a result: zooms went to a border cell drawn by lot, which lies on a smooth leg of the border
nearly always (1.00 with one datum); since then they go where the border is densest.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments.claiming import near
from experiments.drawing import dress
from numdl import plotting
from numdl.analysis import landscape
from numdl.precision import float64
from numdl.records import record
from numdl.theory import descent as predicted

SOHL = "Sohl-Dickstein 2024, arXiv:2402.06184"
LAST = 20  # losses that decide
ZOOM = 16
CONTROL, TANH, RELU = "control", "tanh", "relu"


class Case(NamedTuple):
    """What is trained, and what the paper found."""

    activation: str
    points: str  # "weights": as many as there are; "inputs"; "one"
    batch: int  # 0: all points at every step
    dimension: float
    note: str = ""  # why the claim fails, where it does


CASES = {
    TANH: Case("tanh", "weights", 0, 1.66),
    "tanh, minibatch": Case("tanh", "weights", 16, 1.55),
    "tanh, one datum": Case("tanh", "one", 0, 1.41, "its border is a curve wherever it is densest in a grid"),
    RELU: Case("relu", "weights", 0, 1.20, "where it is densest the border fills the plane; it is a curve elsewhere"),
    "linear": Case("linear", "inputs", 0, 1.17),
    CONTROL: Case("none", "twice", 0, 1.0),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    cases: tuple[str, ...] = tuple(CASES)
    width: int = 16
    full_width: int = 8  # where all data, as many as weights, are used at every step
    steps: int = 100  # as the author's program has it; his pictures took 500 and more
    grid: int = 96  # cells along each axis
    zooms: int = 2
    seeds: int = 3
    seed: int = 0

    def __post_init__(self):
        if not set(self.cases) <= set(CASES) or CONTROL not in self.cases:
            raise ValueError(f"cases must be among {', '.join(CASES)}, and {CONTROL} one of them; got {self.cases}")
        if self.steps <= LAST:
            raise ValueError(f"steps must be more than {LAST}; got {self.steps}")

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(cases=("linear", CONTROL), width=8, grid=64, zooms=1, seeds=2)


@record
class Result:
    """Planes from the whole one to the last zoom; axis 0 of a plane is the rate of the first layer."""

    trains: dict  # case -> [S, zooms + 1, grid, grid] bool
    center: dict  # case -> [S, zooms + 1, 2]: log10 of both rates
    half: dict  # case -> [zooms + 1]: half of a plane's edge, in decades
    stable: np.ndarray  # [S, grid, grid] bool: what theory says of the control's whole plane


def run(config):
    """Case after case, zoom after zoom; all seeds of a plane together."""
    found = {name: _zoomed(config, CASES[name]) for name in config.cases}
    stable = _stable(config, found[CONTROL][1][:, 0], found[CONTROL][2][0])
    return Result(*({name: part[i] for name, part in found.items()} for i in range(3)), stable)


@float64
def _zoomed(config, case):
    """The planes of one case, their centers and half edges."""
    problems = _problems(config, case)
    center = np.full((config.seeds, 2), -0.5 if case.activation == "none" else 1.5)
    half = (1.5 if case.activation == "none" else 4.5) / float(ZOOM) ** np.arange(config.zooms + 1)
    planes, centers = [], []
    for size in half:
        rates = 10.0 ** (center[:, None] + _cells(config, size))
        trains = np.asarray(_planes(case.activation, problems, jnp.asarray(rates)))
        planes.append(trains.reshape(config.seeds, config.grid, config.grid))
        centers.append(center)
        center = np.array([c + _densest(p, size) for c, p in zip(center, planes[-1], strict=True)])
    return np.stack(planes, axis=1), np.stack(centers, axis=1), half


def _cells(config, half):
    """Both log10 rates of every cell relative to the center, [cells, 2]."""
    axis = half * np.linspace(-1, 1, config.grid)
    return np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)


def _densest(trains, half):
    """Where, relative to the center, a window of the next zoom's size holds most of the border."""
    size = max(2, len(trains) // ZOOM)
    windows = np.lib.stride_tricks.sliding_window_view(landscape.boundary(trains), (size, size))
    held = windows.sum(axis=(2, 3))
    place = np.array(np.unravel_index(held.argmax(), held.shape)) + size / 2
    return half * (2 * place / (len(trains) - 1) - 1)


def _problems(config, case):
    """Weights, data and the rows of every step, with seeds in front."""
    n = config.full_width if case.points == "weights" and not case.batch else config.width
    points = {"weights": n * n + n, "inputs": n, "one": 1, "twice": 2 * n}[case.points]
    shapes = ((n // 2,), (n - n // 2,)) if case.activation == "none" else ((n, n), (n,))

    def draw(key):
        keys = jax.random.split(key, 5)
        first, second, x, y = map(jax.random.normal, keys[:4], (*shapes, (points, n), (points,)))
        return (first, second), (x, y), jax.random.randint(keys[4], (config.steps, case.batch), 0, points)

    return jax.vmap(draw)(jax.random.split(jax.random.key(config.seed), config.seeds))


def outputs(activation, params, x):
    """The network in mean-field scaling; "none": linear in the weights, each half of the inputs with its own."""
    first, second = params
    if activation == "none":
        return x @ jnp.concatenate(params)
    z = x @ first / jnp.sqrt(len(first))
    if activation != "linear":
        z = jnp.tanh(jnp.sqrt(2.0) * z) if activation == "tanh" else jnp.sqrt(2.0) * jax.nn.relu(z)
    return z @ second / len(first)


@functools.partial(jax.jit, static_argnames="activation")
def _planes(activation, problems, rates):
    """Whether each pair of rates trains, [S, cells]."""

    def loss(params, x, y):
        return jnp.mean((outputs(activation, params, x) - y) ** 2)

    def trains(params, data, rows, rates):
        def moved(params, row):
            batch = tuple(part[row] for part in data) if row.size else data
            slopes = jax.grad(loss)(params, *batch)
            return tuple(w - rate * slope for w, rate, slope in zip(params, rates, slopes, strict=True))

        end = lax.scan(lambda params, row: (moved(params, row), None), params, rows[:-LAST])[0]
        seen = lax.scan(lambda params, row: (moved(params, row), loss(params, *data)), end, rows[-LAST:])[1]
        return jnp.mean(seen) < loss(params, *data)  # nan is not below

    def plane(problem):
        *fixed, rates = problem
        return lax.map(functools.partial(trains, *fixed), rates, batch_size=256)

    return lax.map(plane, (*problems, rates))


@float64
def _stable(config, center, half):
    """Whether the control is stable by theory, [S, grid, grid]."""
    (first, _), (x, _), _ = _problems(config, CASES[CONTROL])
    hessian = 2 * jnp.einsum("spi,spj->sij", x, x) / x.shape[1]
    roots = np.sqrt(10.0 ** (center[:, None] + _cells(config, half)))
    parts = [first.shape[1], x.shape[2] - first.shape[1]]
    found = _sharpness(hessian, jnp.asarray(np.repeat(roots, parts, axis=-1)))
    limit = predicted.sharpness_limit("gradient_descent", learning_rate=1.0)
    return np.asarray(found).reshape(-1, config.grid, config.grid) < limit


@jax.jit
def _sharpness(hessian, roots):
    """Largest eigenvalue of the Hessian between the roots of the rates, [S, cells]."""
    one = lambda h, r: jnp.linalg.eigvalsh(r[:, None] * h * r[None, :])[-1]  # noqa: E731
    return lax.map(lambda pair: lax.map(functools.partial(one, pair[0]), pair[1], batch_size=256), (hessian, roots))


def counted(trains):
    """Boxes that hold a piece of the border of one plane."""
    return landscape.box_dimension(landscape.boundary(trains))


def dimensions(result, name):
    """D of every seed: the median over zooms and box sizes, the whole plane left out."""
    local = [[counted(plane).local for plane in planes[1:]] for planes in result.trains[name]]
    return np.median(np.array(local).reshape(len(local), -1), axis=1)


def claims(config, result):
    """The control first, then the dimensions beside the paper's, and that they are no curve's."""
    found = {name: dimensions(result, name) for name in config.cases}
    networks = [name for name in config.cases if name != CONTROL]
    made = [_control(found[CONTROL]), _place(config, result), *(_published(name, found[name]) for name in networks)]
    least = min(networks, key=lambda name: found[name].mean())
    text = f"dimension minus that of the control, the least of all networks ({least})"
    note = CASES[least].note
    made.append(_sign(text, f"{SOHL}: fractal in all cases", found[least] - found[CONTROL], note))
    if {TANH, RELU} <= set(networks):
        made.append(_sign("dimension for tanh minus that for relu", f"{SOHL}, table 1", found[TANH] - found[RELU]))
    return made


def _control(samples):
    source = "a level set of an analytic function is a smooth curve"
    reason = "few and small boxes: a slope of counts of some ten is good to a tenth"
    return near("control: dimension of the border", source, "exact", 1.0, samples, 0.1, reason)


def _place(config, result):
    border = np.array([landscape.boundary(plane).sum() for plane in result.stable])
    wrong = (result.trains[CONTROL][:, 0] != result.stable).sum(axis=(1, 2)) / border
    text = "control: cells on another side of the border than theory says, over cells of the border"
    reason = f"half a cell: in {config.steps} steps a slowly growing mode stays below the first loss"
    return near(text, "theory.descent.sharpness_limit", "exact", 0.0, wrong, 0.5, reason)


def _published(name, samples):
    text = f"{name}: dimension of the border, beside the paper's for width 16 and zooms chosen by hand"
    reason = "chosen: one network and one sequence of zooms in the paper, a median of slopes here and there"
    case, source = CASES[name], f"{SOHL}, table 1"
    return near(text, source, "published", case.dimension, samples, 0.2, reason, note=case.note)


def _sign(text, source, samples, note=""):
    return near(text, source, "published", 0.0, samples, 0.0, "the sign", ">=", note)


def figure(config, result):
    """Of the first seed the whole plane and the last zoom of every case, and the counts of all seeds."""
    drawing = plotting.figure(width=3.1 * len(config.cases), height=9.5)
    for column, panels in zip(config.cases, drawing.subplots(3, len(config.cases)).T, strict=True):
        for ax, k in zip(panels, (0, -1), strict=False):
            _draw_plane(ax, result, column, k)
        panels[0].set_title(column, fontsize=10)
        _draw_counts(panels[2], result, column)
    return drawing


def _draw_plane(ax, result, name, k):
    center, half = result.center[name][0, k], result.half[name][k]
    low, high = center - half, center + half
    ax.imshow(
        result.trains[name][0, k].T,
        origin="lower",
        extent=(low[0], high[0], low[1], high[1]),
        cmap="Blues",
        vmin=-0.4,
        vmax=1.2,
        interpolation="nearest",
        aspect="auto",
    )
    if k == 0 and len(result.half[name]) > 1:
        ax.plot(*result.center[name][0, 1], "s", color=plotting.COLORS[1], markersize=7, fillstyle="none")
    ax.tick_params(labelsize=7)
    ax.locator_params(nbins=4)
    ax.set_xlabel("log10 rate of the first layer", fontsize=8)
    ax.set_ylabel("log10 rate of the second layer", fontsize=8)


def _draw_counts(ax, result, name):
    for planes in result.trains[name]:
        for plane in planes[1:]:
            found = counted(plane)
            ax.plot(found.sizes, found.counts, "o-", color="0.6", markersize=3, linewidth=0.8)
    sizes, top = found.sizes.astype(float), found.counts[0]
    found = np.mean(dimensions(result, name))
    ax.plot(sizes, top * sizes**-found, "-", color=plotting.COLORS[0], label=f"measured: {found:.2f}")
    ax.plot(sizes, top * sizes ** -CASES[name].dimension, "k--", label=f"expected: {CASES[name].dimension:.2f}")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.set_xlabel("edge of a box, in cells", fontsize=8)
    ax.set_ylabel("boxes with border", fontsize=8)
    ax.tick_params(labelsize=7)
    dress(ax, fontsize=7)
