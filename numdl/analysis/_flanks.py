"""MEASURED: the loss after training at a grid of rates, and its two flanks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from numdl import checks, trees
from numdl._compiled import as_tree, compiled
from numdl.analysis import _widened
from numdl.records import record, static


@record
class Transfer:
    """How the loss against the rate moves with the width."""

    widths: tuple = static()
    rates: np.ndarray  # [R]
    loss: np.ndarray  # [W, R, S] after the last step; nan or inf where it diverged
    first: np.ndarray  # [W, S] before the first
    target: float  # the loss that `left` reaches
    best: np.ndarray  # [W] the rate of the least mean loss
    left: np.ndarray  # [W, S] least rate that reaches the target; nan: none does
    upper: np.ndarray  # [W, S] the rate from which on it does not any more; nan: none does, or all from `left` on
    right: np.ndarray  # [W, S] largest rate that leaves the loss finite and no higher than at first; nan: none, or all
    best_octaves: float  # log2 of the last width's best rate over the first's
    left_octaves: float  # likewise, of the geometric means over seeds
    upper_octaves: float
    right_octaves: float


def trained(network, optimizer, loss, steps, batch, rates):
    """(loss before, [S]; loss after, [R, S]) of one width, all rates and seeds in one program."""
    rates = jnp.asarray(rates, jnp.result_type(float))
    functions = (as_tree(network.apply), as_tree(optimizer), as_tree(loss))
    first, last = jax.device_get(_trained(*functions, network.params, rates, *batch, steps=steps))
    return first[0].astype(np.float64), last.astype(np.float64)


@functools.partial(compiled, static=("steps",))
def _trained(apply, optimizer, loss, params, rates, x, targets, steps):
    def run(params, rate, x, targets):
        moving, rest = trees.trainable(params)
        transformation = _widened.transformation("optimizer", optimizer, rate)

        def cost(moving):
            value = loss(apply(rest.params(moving), x), targets)
            return checks.one_real_number("loss", "loss(outputs, targets)", value)

        def step(carry, _):
            now, state = carry
            value, gradient = jax.value_and_grad(cost)(now)
            updates, state = transformation.update(gradient, state, now)
            return (jax.tree.map(lambda p, u: (p + u).astype(p.dtype), now, updates), state), value

        (end, _), values = jax.lax.scan(step, (moving, transformation.init(moving)), length=steps)
        return values[0], cost(end)

    return jax.vmap(jax.vmap(run, (0, None, None, None)), (None, 0, None, None))(params, rates, x, targets)


def flanks(widths, rates, found, target):
    """The `Transfer` of what was trained at each width."""
    first, loss = (np.stack(each) for each in zip(*found))
    steady = np.where(np.isfinite(loss), loss, np.inf)
    mean = steady.mean(axis=2)
    best = np.where(np.isfinite(mean).any(axis=1), rates[mean.argmin(axis=1)], np.nan)
    if target is None:
        target = float(np.sqrt(first.mean() * mean.min(axis=1).max()))
    reached = np.log(rates)
    left = np.array([[_left(reached, one, target) for one in each.T] for each in steady])
    upper = np.array([[_upper(reached, one, target) for one in each.T] for each in steady])
    right = np.array([[_right(reached, *pair) for pair in zip(each.T, top)] for each, top in zip(steady, first)])
    moves = map(_octaves, (best[:, None], left, upper, right))
    return Transfer(tuple(widths), rates, loss, first, target, best, left, upper, right, *moves)


def deviation(rates, loss, first):
    """(mean over log rates of min(loss, first), the least over rates), over the first axis."""
    logs, kept = np.log(rates), np.minimum(np.where(np.isfinite(loss), loss, np.inf), first)
    # Each rate stands for its cell, up to halfway to its neighbours; the outermost cells are symmetric.
    inner = (logs[1:] + logs[:-1]) / 2
    cells = np.diff(np.r_[2 * logs[0] - inner[0], inner, 2 * logs[-1] - inner[-1]])
    return np.tensordot(cells / cells.sum(), kept, axes=1), kept.min(axis=0)


def _left(logs, loss, target):
    """The least rate at which the loss is at most the target; between grid points where the loss before is finite."""
    good = np.flatnonzero(loss <= target)
    if not len(good):
        return np.nan
    i = good[0]
    return float(np.exp(_crossing(logs, loss, i - 1, i, target) if i else logs[0]))


def _upper(logs, loss, target):
    """Where the loss rises above the target after the first rates that reached it."""
    good = np.flatnonzero(loss <= target)
    return _right(logs[good[0] :], loss[good[0] :], target) if len(good) else np.nan


def _right(logs, loss, top):
    """The largest rate up to which the loss stays at or below what it was at first."""
    bad = np.flatnonzero(~(loss <= top))
    if not len(bad) or bad[0] == 0:
        return np.nan
    i = bad[0]
    return float(np.exp(_crossing(logs, loss, i - 1, i, top)))


def _crossing(logs, loss, i, j, level):
    """Where the logarithm of the loss crosses that of the level; the middle where one side is not finite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b, c = np.log(loss[i]), np.log(loss[j]), np.log(level)
        share = (c - a) / (b - a)
    share = share if np.isfinite(share) and np.isfinite(a) and np.isfinite(b) else 0.5
    return logs[i] + np.clip(share, 0.0, 1.0) * (logs[j] - logs[i])


def _octaves(values):
    """log2 of the last width's geometric mean over the first's."""
    return float(np.log2(values[-1]).mean() - np.log2(values[0]).mean())
