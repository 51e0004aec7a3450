"""What does gradient descent solve exactly?

Question
--------
Gradient descent is Euler's method for the gradient flow theta' = -E'(theta), and at the steps that are used in practice
it leaves that flow. Which flow does it follow instead, and how much more closely?

Prediction
----------
Backward error analysis: a step theta - h E'(theta) is, up to O(h^3), the exact flow over a time h of another loss,

    E_h = E + (h / 4) |E'|^2,

so after n steps gradient descent is O(h) from the flow of E and O(h^2) from that of E_h at time n h: large steps
penalize steep places. This is a statement for small h: it ends where h times the sharpness of E comes near 2. Sources:
Hairer, Lubich & Wanner, Geometric Numerical Integration, chapter IX; Barrett & Dherin 2021, arXiv:2009.11162, eq. (3).

Measurement
-----------
A tanh network in float64, squared loss on points of the plane, full batches, a fixed time T = n h for n = 4 to 512.
Gradient descent by optax; both flows by RK4 with so many steps that its own error does not count, which is checked.
Distances are relative to |theta(T)|; orders are slopes of their logarithms over the four smallest steps.

Verdict
-------
10 starts; two CPU cores, shared with other programs, 15 CPU seconds. All claims hold: orders 1.030 (standard error
0.007) and 2.005 (0.004). With 512 steps (h = 0.008) the modified flow explains 98 % of the distance of gradient descent
from the flow of E, and the change of its loss to within 1 %. Beyond h = 2 / sharpness neither flow says anything: the
modified one is no better there than the plain one (figure).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from experiments.claiming import near, one_number
from experiments.drawing import dress
from numdl import activations, plotting
from numdl.analysis import descent as measured
from numdl.networks import dense
from numdl.ode import convergence, integrate, tableaus
from numdl.optimize import losses, train
from numdl.precision import float64
from numdl.records import record
from numdl.theory import descent as predicted

SOURCE = "Barrett & Dherin 2021, arXiv:2009.11162; Hairer, Lubich & Wanner, chapter IX"
ASYMPTOTIC = 4  # smallest steps, from which the order is taken


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    width: int = 32  # of the hidden layer
    examples: int = 32
    time: float = 4.0
    counts: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256, 512)  # steps of gradient descent
    flow_steps: int = 512  # of RK4
    seeds: int = 10
    seed: int = 0

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(width=6, counts=(32, 64, 128, 256), flow_steps=256, seeds=3)


@record
class Result:
    """Axes: seeds [S], numbers of steps [N]; distances at time T, relative to |theta(T)|."""

    flow: np.ndarray  # [S, N]: gradient descent from the flow of E
    modified: np.ndarray  # [S, N]: gradient descent from the flow of E_h
    reference: np.ndarray  # [S, N]: of both flows, RK4 with half as many steps: the larger change
    sharpness: np.ndarray  # [S]: at the start
    loss: dict  # "flow" [S], "modified" [S, N], "descent" [S, N]: E at time T
    order: dict  # "flow", "modified" -> [S]: observed
    interval: dict  # "flow", "modified" -> [S, 2]: of each observed order, 95 %


def run(config):
    """All numbers of steps from the same starts."""
    found = _distances(config)
    orders = {
        name: [convergence.observed_order(row[-ASYMPTOTIC:], config.counts[-ASYMPTOTIC:]) for row in found[name]]
        for name in ("flow", "modified")
    }
    return Result(
        **found,
        order={name: np.array([order.value for order in rows]) for name, rows in orders.items()},
        interval={name: np.array([(order.low, order.high) for order in rows]) for name, rows in orders.items()},
    )


def network(config):
    """One hidden layer."""
    return dense.network(
        widths=(2, config.width, 1),
        activation=activations.tanh,
        weight_variance=1.0,
        bias_variance=0.1,
    )


def loss(params, batch, net):
    """Half the mean square of the residual."""
    x, targets = batch
    return losses.squared(net.apply(params, x), targets)


@float64
def _distances(config):
    random = np.random.default_rng(config.seed)
    x = random.standard_normal((config.seeds, config.examples, 2))
    batches = x, np.sin(2 * x[..., :1]) * x[..., 1:]
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    return _measure(keys, jax.tree.map(jnp.asarray, batches), jnp.asarray(config.counts), config)


@functools.partial(jax.jit, static_argnames="config")
def _measure(keys, batches, counts, config):
    energy = functools.partial(loss, net=network(config))
    params = jax.vmap(network(config).init)(keys, batches[0])
    flow, modified, reference = _flows(params, batches, config.time / counts, config)
    ends = _descend(params, batches, counts, config)  # [S, N, ...]
    every = jax.vmap(jax.vmap(energy, in_axes=(0, None)))
    direction = jax.tree.map(jnp.ones_like, params)
    sharpness = jax.vmap(lambda p, b, v: measured.sharpness(energy, p, b, start=v, num_matvecs=20).value)
    first = jax.tree.map(lambda leaf: leaf[:, None], flow)
    return {
        "flow": _relative(ends, first),
        "modified": _relative(ends, modified),
        "reference": reference,
        "sharpness": sharpness(params, batches, direction),
        "loss": {
            "flow": every(first, batches)[:, 0],
            "modified": every(modified, batches),
            "descent": every(ends, batches),
        },
    }


def _flows(params, batches, steps, config):
    """Ends of the flow [S, ...] and of the modified flows [S, N, ...], and what RK4 with half the steps changes."""
    rates = jnp.concatenate([jnp.zeros_like(steps[:1]), steps])  # h = 0 is the flow of E itself
    start = jax.tree.map(lambda leaf: jnp.repeat(leaf[:, None], len(rates), axis=1), params)
    # The whole time at once with half of the steps, then in two halves: the loop holds RK4 as one program.
    durations = config.time * jnp.asarray([1.0, 0.5, 0.5], steps.dtype)

    def piece(rows, now):
        duration, again = now
        rows = jax.tree.map(lambda first, row: jnp.where(again, first, row), start, rows)
        rows = _flow(rows, batches, rates, duration, config)
        return rows, rows

    _, ends = lax.scan(piece, start, (durations, jnp.asarray([True, True, False])))
    coarse, fine = (jax.tree.map(lambda leaf, i=i: leaf[i], ends) for i in (0, 2))
    change = _relative(coarse, fine)
    flow, modified = (jax.tree.map(lambda leaf, part=part: leaf[:, part], fine) for part in (0, slice(1, None)))
    return flow, modified, jnp.maximum(change[:, :1], change[:, 1:])


def _flow(starts, batches, rates, duration, config):
    """The flows of E_h for all learning rates from their starts [S, 1 + N, ...]."""
    energy = functools.partial(loss, net=network(config))

    def field(t, params, theta):
        h, batch = theta
        return jax.tree.map(jnp.negative, jax.grad(predicted.modified_loss(energy, learning_rate=h))(params, batch))

    def end(row, h, batch):
        rk4 = {"tableau": tableaus.rk4, "t1": duration, "steps": config.flow_steps // 2}
        return integrate.endpoint(field, row, (h, batch), **rk4)

    return jax.vmap(jax.vmap(end, in_axes=(0, 0, None)), in_axes=(0, None, 0))(starts, rates, batches)


def _descend(params, batches, counts, config):
    """Ends of gradient descent [S, N, ...]: the learning rate is T / n for n steps, then 0."""
    net = network(config)

    def seed(params, batch, count):
        rate = config.time / count
        optimizer = optax.sgd(lambda step: jnp.where(step < count, rate, jnp.zeros_like(rate)))
        unused = jnp.arange(config.counts[-1])
        return train.descend(lambda params, _: loss(params, batch, net), params, optimizer, unused)[0]

    return jax.vmap(jax.vmap(seed, in_axes=(None, None, 0)), in_axes=(0, 0, None))(params, batches, counts)


def _relative(a, b):
    """|a - b| / |b| over all leaves [S, N, ...], of shape [S, N]."""
    square = lambda leaf: jnp.sum(leaf**2, axis=tuple(range(2, leaf.ndim)))  # noqa: E731
    distance = sum(square(p - q) for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    return jnp.sqrt(distance / sum(square(q) for q in jax.tree.leaves(b)))


def claims(config, result):
    """The two orders, how much of the displacement is explained, and that RK4 stands for the flows."""
    made = [_order(config, result, "flow", 1), _order(config, result, "modified", 2)]
    return [*made, _explained(config, result), _loss(config, result), _reference(config, result)]


def _order(config, result, name, expected):
    whose = {"flow": "E", "modified": "E + (h / 4) |E'|^2"}[name]
    return near(
        f"observed order in h of the distance of gradient descent from the flow of {whose} at a fixed time, mean over "
        f"{config.seeds} starts",
        SOURCE,
        origin="exact",
        expected=expected,
        samples=result.order[name],
        tolerance=0.1,
        tolerance_from="the next power of h, at steps of h = T / n with n from "
        f"{config.counts[-ASYMPTOTIC]} to {config.counts[-1]}",
    )


def _explained(config, result):
    return near(
        f"{config.counts[-1]} steps: distance from the modified flow over that from the flow of E, mean over starts",
        SOURCE,
        origin="own",
        expected=0.05,
        samples=result.modified[:, -1] / result.flow[:, -1],
        tolerance=0.0,
        tolerance_from="the ratio is O(h); 5 % is what makes the modified flow worth its name at the smallest step",
        relation="<=",
    )


def _loss(config, result):
    gap = result.loss["flow"][:, None] - result.loss["descent"]
    predicted_gap = result.loss["flow"][:, None] - result.loss["modified"]
    return near(
        f"{config.counts[-1]} steps: change of E(theta(T)) by the modification over the change by gradient descent, "
        "mean over starts",
        SOURCE,
        origin="exact",
        expected=1.0,
        samples=predicted_gap[:, -1] / gap[:, -1],
        tolerance=0.05,
        tolerance_from="the ratio is 1 + O(h)",
    )


def _reference(config, result):
    return one_number(
        "largest change of a flow by halving RK4's steps, over the distance that is measured with it",
        "RK4 is of order 4: its error is a fifteenth of that change",
        origin="own",
        expected=0.01,
        measured=(result.reference / result.modified)[:, -ASYMPTOTIC:].max(),
        tolerance_from="one percent of a distance moves no order by more than 0.01",
        relation="<=",
    )


def figure(config, result):
    """Left both distances by step, right what each flow says of the loss at time T."""
    drawing = plotting.figure(width=11, height=4.2)
    left, right = drawing.subplots(1, 2)
    h = config.time / np.asarray(config.counts, float)
    for color, name, label, order in (
        (plotting.COLORS[1], "flow", "flow of E", 1),
        (plotting.COLORS[0], "modified", "flow of E + (h/4) |E'|²", 2),
    ):
        values = getattr(result, name)
        middle = np.exp(np.log(values).mean(axis=0))
        left.plot(h, values.T, "-", color=color, linewidth=0.5, alpha=0.4)
        left.plot(h, middle, "o", color=color, markersize=5, label=f"from the {label}")
        left.plot(
            h, middle[-1] * (h / h[-1]) ** order, "k--" if order == 1 else "k:", linewidth=1, label=f"order {order}"
        )
        excess = result.loss["descent"] - (result.loss[name] if order == 2 else result.loss[name][:, None])
        relative = np.abs(excess) / result.loss["flow"][:, None]
        right.plot(h, np.exp(np.log(relative).mean(axis=0)), "o-", color=color, markersize=5, label=label)
    left.set_ylabel("distance of gradient descent, relative to |θ(T)|")
    right.set_ylabel("error of the flow's E(θ(T)), relative")
    for ax in (left, right):
        ax.axvspan(2 / result.sharpness.max(), 2 / result.sharpness.min(), color="0.9", linewidth=0, zorder=0)
        ax.plot([], [], color="0.9", linewidth=8, label="2 / sharpness at the start")
        dress(ax, xlabel=f"learning rate h = {config.time:g} / steps", xscale="log", yscale="log")
    return drawing
