"""MEASURED: the loss between two solutions, along the straight line and along a curve that avoids what is high."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Key, PyTree, ScalarLike

from numdl import _random, checks
from numdl._compiled import jit
from numdl.analysis import _grids, _parts, _samples
from numdl.records import record
from numdl.typing import Loss


@record
class Path:
    """The loss between two parameters, t = 0 to 1."""

    positions: jax.Array  # [n]
    values: jax.Array  # [n]
    barrier: jax.Array  # []: the most that the loss lies above the line between its end values, >= 0
    rise: jax.Array  # []: the largest sum of consecutive rises minus falls: 0 if the loss never rises

    @property
    def monotone(self):
        """Whether the loss never rises on the way from t = 0 to t = 1."""
        return self.rise == 0


@record
class Connection:
    """A Bezier curve of low loss, (1 - t)^2 start + 2 t (1 - t) middle + t^2 stop, beside the straight line."""

    middle: Any  # pytree
    curve: Path
    straight: Path
    losses: jax.Array  # [steps]: at the random t of each step


def interpolation(
    loss: Loss,
    start: PyTree,
    stop: PyTree,
    batch: PyTree,
    *,
    points: int = 51,
    at_a_time: int | None = None,
    frozen: Sequence[str] = (),
) -> Path:
    """MEASURED loss on the straight line between two parameters (linear mode connectivity), with barrier and rise.

        barrier = max over t of L(t) - ((1 - t) L(0) + t L(1))

    From initialization to solution the loss is often monotone (Goodfellow et al. 2015); between two solutions that
    shared their first steps there is often no barrier (Frankle et al. 2020). What does not move, leaves that are not
    floating-point numbers and those that `frozen` names, is that of `start` all along.

    Parameters
    ----------
    loss : function             loss(params, batch) -> scalar
    start, stop : pytrees       params of one structure
    batch : pytree              data [N, ...]
    points : int >= 3           evenly spaced, both ends included
    at_a_time, frozen : as in `line`
    Returns
    -------
    Path                        positions, values [points], barrier, rise []; `monotone`
    Raises
    ------
    ValueError, TypeError       fewer than three points, stop not like start, a loss that is not a scalar
    Source: Goodfellow et al. 2015, arXiv:1412.6544; Frankle et al. 2020, arXiv:1912.05671.
    Experiments: e9, e10, e14.
    """
    points = checks.whole("points", points, least=3)
    loss, moving, rest, batch = _parts.opened(loss, start, batch, frozen, "start")
    stop, size = _parts.inward("stop", stop, start, rest, moving, of="start"), _samples.at_a_time(at_a_time, points)
    positions = _grids.checked_positions("points", np.linspace(0, 1, points), moving)
    along = jax.tree.map(jnp.subtract, stop, moving)
    return _path(positions, _grids.on_grid(loss, moving, rest, batch, (along,), (positions,), size))


def connect(
    key: Key[Array, ""],
    loss: Loss,
    start: PyTree,
    stop: PyTree,
    batch: PyTree,
    *,
    steps: int,
    learning_rate: ScalarLike,
    points: int = 51,
    frozen: Sequence[str] = (),
) -> Connection:
    """MEASURED curve of low loss between two solutions (mode connectivity), its middle found by Adam at random t.

        point(t) = (1 - t)^2 start + 2 t (1 - t) middle + t^2 stop

    Parameters
    ----------
    key : key                   of the random t
    loss, start, stop, batch, points, frozen : as in `interpolation`
    steps : int >= 1            one random t each, the whole batch
    learning_rate : scalar > 0  of Adam, which sees only what moves
    Returns
    -------
    Connection                  middle (like start), curve, straight (Paths), losses [steps]
    Raises
    ------
    ValueError, TypeError       steps < 1, learning_rate <= 0, no key, what `interpolation` refuses
    Source: Garipov et al. 2018, arXiv:1802.10026 (chain and Bezier curve).    Experiment: e10.
    """
    checks.key("key", key)
    steps = checks.whole("steps", steps)
    rate = np.float32(checks.positive("learning_rate", learning_rate, shape=()))
    straight = interpolation(loss, start, stop, batch, points=points, frozen=frozen)
    loss, moving, rest, batch = _parts.opened(loss, start, batch, frozen, "start")
    ends = moving, _parts.inward("stop", stop, start, rest, moving, of="start")
    middle, losses, values = _connect(key, loss, ends, rest, batch, rate, straight.positions, steps=steps)
    return Connection(rest.params(middle), _path(straight.positions, values), straight, losses)


@jit
def _path(positions, values):
    chord = (1 - positions) * values[0] + positions * values[-1]
    lowest = lax.cummin(values)
    return Path(positions, values, jnp.max(values - chord), jnp.max(values - lowest))


@functools.partial(jit, static_argnames="steps")
def _connect(key, loss, ends, rest, batch, rate, positions, steps):
    import optax

    start, stop = ends

    def value_at(middle, t):
        def point(a, m, b):
            return ((1 - t) ** 2 * a + 2 * t * (1 - t) * m + t**2 * b).astype(m.dtype)

        return loss(rest.params(jax.tree.map(point, start, middle, stop)), batch)

    def step(state, key):
        middle, memory = state
        t = _random.uniform(key, (), positions.dtype)
        value, gradient = jax.value_and_grad(value_at)(middle, t)
        update, memory = optimizer.update(gradient, memory, middle)
        return (optax.apply_updates(middle, update), memory), value

    optimizer = optax.adam(rate)
    middle = jax.tree.map(lambda a, b: (a + b) / 2, start, stop)
    (middle, _), losses = lax.scan(step, (middle, optimizer.init(middle)), jax.random.split(key, steps))
    return middle, losses, lax.map(lambda t: value_at(middle, t), positions)
