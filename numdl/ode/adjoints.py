"""Six ways to differentiate a recurrence, one signature: what is stored, what is computed again, what is exact.

    adjoint(recurrence, y, shared, drive, save) -> (last state, (all later states or None, residuals or None))
    y[n+1] = step(y[n], shared, drive[n])

    adjoint             memory in the number N of steps         work beside a plain gradient    gradient
    direct              every intermediate of every step        none                            exact
    checkpointed        N states                                one more forward pass           exact
    nested(levels=k)    about k N**(1/k) states                 k more forward passes           exact
    binomial(snapshots) so many states                          the least possible              exact
    reversible          one state                               the inverse, one more forward   exact up to rounding
    backsolve           one state                               one more forward pass           not the scheme's

`direct` differentiates in forward mode too; the last three define their own backward pass and do not. They see only
what reaches the recurrence through y, theta and times: a field must not close over what is to be differentiated.
On CPU and GPU `checkpointed` is usually the fastest: computing a step again is cheaper than fetching its intermediates.
`backsolve` solves the continuous adjoint equation with the scheme's own step, backwards in time, together with the
state: optimise, then discretise. It does not return the derivative of what was computed (a Gauss method's excepted, and
only where the way back recovers the states); `adjoint_audit` measures by how much.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from numdl import checks


class Recurrence(NamedTuple):
    """What an adjoint gets to know of a scheme on a grid; every function is traceable."""

    step: Callable  # (y, shared, x) -> (y_new, residual)
    inverse: Callable | None  # (y_new, shared, x) -> y
    solve_back: Callable | None  # (y_new, cotangent, shared, x) -> (y, cotangent, its integrals for shared, for x)


def direct(recurrence, y, shared, drive, save):
    """One scan, differentiated by jax: every intermediate of every step is stored."""
    return lax.scan(_body(recurrence.step, shared, save), y, drive)


def checkpointed(recurrence, y, shared, drive, save):
    """One scan that stores the states and computes each step again on the way back: the fast one."""
    return lax.scan(_body(_forget(recurrence.step), shared, save), y, drive)


def nested(*, levels):
    """An adjoint that stores about levels * N**(1/levels) states, at `levels` extra forward passes.

    The steps are cut into N**(1/levels) equal stretches and a shorter rest, each cut again likewise: a stretch keeps
    its first state and is computed again when the way back reaches it.

    Source: Chen et al. 2016, arXiv:1604.06174 (two levels).
    """
    return _nesting(checks.whole("levels", levels, least=1))


@functools.cache
def _nesting(levels):
    return functools.partial(_nested, levels)


def square_root(recurrence, y, shared, drive, save):
    """`nested(levels=2)`: about 2 sqrt(N) states."""
    return _nested(2, recurrence, y, shared, drive, save)


def binomial(*, snapshots):
    """An adjoint that keeps at most so many states, y[0] among them, and recomputes the least possible for that.

    With s snapshots and every step computed at most r times again, N = (s + r)! / (s! r!) steps are within reach: 10
    states serve 1001 steps at r = 4. The schedule is optimal and fixed at tracing time.

    Source: Griewank & Walther 2000, ACM Trans. Math. Softw. 26, 19-45 (algorithm 799, revolve).
    """
    return _keeping(checks.whole("snapshots", snapshots, least=1))


@functools.cache
def _keeping(snapshots):
    return functools.partial(_binomial, snapshots)


def reversible(recurrence, y, shared, drive, save):
    """One scan that stores its last state only; the way back undoes every step by the scheme's exact inverse."""
    if recurrence.inverse is None:
        raise checks.BadValue(
            "adjoint=reversible needs a scheme with an inverse: leapfrog, verlet or coupling; got none"
        )
    return _reversible(recurrence, save, y, shared, drive)


def backsolve(recurrence, y, shared, drive, save):
    """The continuous adjoint equation, solved backwards by the same scheme: no derivative of the discrete solution."""
    if recurrence.solve_back is None:
        raise checks.BadValue("adjoint=backsolve needs a Runge-Kutta tableau; got a scheme that does not solve y' = f")
    return _backsolve(recurrence, save, y, shared, drive)


def _body(step, shared, save):
    def body(y, x):
        y, residual = step(y, shared, x)
        return y, (y if save else None, residual)

    return body


def _forget(step):
    # Within a scan nothing can merge the second computation with the first, so the barriers against it are left out.
    return jax.checkpoint(step, prevent_cse=False)


def _nested(levels, recurrence, y, shared, drive, save):
    return _segment(levels, recurrence.step, shared, save, y, drive)


def _segment(levels, step, shared, save, y, drive):
    steps = _length(drive)
    chunk = round(steps ** ((levels - 1) / levels))
    if levels == 1 or chunk <= 1:
        return lax.scan(_body(_forget(step), shared, save), y, drive)
    inner = jax.checkpoint(functools.partial(_segment, levels - 1, step, shared, save), prevent_cse=False)
    whole = steps - steps % chunk
    parts = jax.tree.map(lambda leaf: leaf[:whole].reshape(-1, chunk, *leaf.shape[1:]), drive)
    y, saved = lax.scan(inner, y, parts)
    saved = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), saved)
    if whole == steps:
        return y, saved
    y, rest = inner(y, jax.tree.map(lambda leaf: leaf[whole:], drive))
    return y, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), saved, rest)


def _length(drive):
    return jax.tree.leaves(drive)[0].shape[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _reversible(recurrence, save, y, shared, drive):
    return direct(recurrence, y, shared, drive, save)


def _reversible_forward(recurrence, save, y, shared, drive):
    last, saved = direct(recurrence, y, shared, drive, save)
    return (last, saved), (last, shared, drive)


def _reversible_backward(recurrence, save, kept, cotangents):
    last, shared, drive = kept
    cotangent, (later, _) = cotangents

    def back(carry, xs):
        y, ybar, total = carry
        x, extra = xs
        before = recurrence.inverse(y, shared, x)
        pull = _pullback(recurrence.step, before, shared, x)
        ybar, part, xbar = pull(_add(ybar, extra))
        return (before, ybar, _add(total, part)), xbar

    carry = last, cotangent, _zeros(shared)
    (_, ybar, total), xbars = lax.scan(back, carry, (drive, later), reverse=True)
    return ybar, total, xbars


_reversible.defvjp(_reversible_forward, _reversible_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _backsolve(recurrence, save, y, shared, drive):
    return direct(recurrence, y, shared, drive, save)


def _backsolve_forward(recurrence, save, y, shared, drive):
    last, saved = direct(recurrence, y, shared, drive, save)
    return (last, saved), (last, shared, drive)


def _backsolve_backward(recurrence, save, kept, cotangents):
    last, shared, drive = kept
    cotangent, (later, _) = cotangents

    def back(carry, xs):
        y, ybar, total = carry
        x, extra = xs
        y, ybar, part, xbar = recurrence.solve_back(y, _add(ybar, extra), shared, x)
        return (y, ybar, _add(total, part)), xbar

    carry = last, cotangent, _zeros(shared)
    (_, ybar, total), xbars = lax.scan(back, carry, (drive, later), reverse=True)
    return ybar, total, xbars


_backsolve.defvjp(_backsolve_forward, _backsolve_backward)


def _binomial(snapshots, recurrence, y, shared, drive, save):
    return _revolve(snapshots, recurrence, save, y, shared, drive)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _revolve(snapshots, recurrence, save, y, shared, drive):
    return direct(recurrence, y, shared, drive, save)


def _revolve_forward(snapshots, recurrence, save, y, shared, drive):
    return direct(recurrence, y, shared, drive, save), (y, shared, drive)


def _revolve_backward(snapshots, recurrence, save, kept, cotangents):
    first, shared, drive = kept
    cotangent, (later, _) = cotangents
    load, begin, end, index, store = schedule(_length(drive), snapshots)

    def advance(row, state):
        y, slots = state
        n = jnp.asarray(index)[row]
        y, _ = recurrence.step(y, shared, jax.tree.map(lambda leaf: leaf[n], drive))
        return y, _put(slots, y, jnp.asarray(store)[row])

    def back(carry, xs):
        slots, ybar, total = carry
        x, extra, slot, start, stop = xs
        y, slots = lax.fori_loop(start, stop, advance, (_get(slots, slot), slots))
        ybar, part, xbar = _pullback(recurrence.step, y, shared, x)(_add(ybar, extra))
        return (slots, ybar, _add(total, part)), xbar

    # One slot more than snapshots takes the states that nobody wants.
    slots = jax.tree.map(lambda leaf: jnp.zeros((snapshots + 1, *leaf.shape), leaf.dtype), first)
    carry = _put(slots, first, 0), cotangent, _zeros(shared)
    (_, ybar, total), xbars = lax.scan(back, carry, (drive, later, load, begin, end), reverse=True)
    return ybar, total, xbars


_revolve.defvjp(_revolve_forward, _revolve_backward)


def schedule(steps, snapshots):
    """The optimal plan of recomputation: what to do before step n can be differentiated, for every n.

    Load slot load[n]; then for row = begin[n] ... end[n] - 1 take step index[row] and put the new state into slot
    store[row] (slot `snapshots` is a bin). The state at the beginning of step n results.

    Returns
    -------
    load, begin, end [steps], index, store [rows] : int32; rows = steps computed again
    """
    return _schedule(checks.whole("steps", steps), checks.whole("snapshots", snapshots))


@functools.cache
def _schedule(steps, snapshots):
    plan, rows = {}, []
    _reverse(plan, rows, snapshots, 0, steps, 0)
    table = np.array([plan[n] for n in range(steps)], np.int32)
    pairs = np.array(rows, np.int32).reshape(-1, 2)
    return table[:, 0], table[:, 1], table[:, 2], pairs[:, 0], pairs[:, 1]


def _reverse(plan, rows, snapshots, start, stop, slot, begun=None):
    """Plan the way back from step stop - 1 to step start, whose state lies in `slot`.

    `begun` is the (slot, first row) of a run of steps that has just arrived at `start`, if there is one.
    """
    free = snapshots - 1 - slot
    while free and stop - start > 1:
        middle = start + _split(stop - start, free + 1)
        begun = begun or (slot, len(rows))
        rows.extend((n, slot + 1 if n == middle - 1 else snapshots) for n in range(start, middle))
        _reverse(plan, rows, snapshots, middle, stop, slot + 1, begun)
        stop, begun = middle, None
    for n in reversed(range(start, stop)):
        origin, row = begun or (slot, len(rows))
        rows.extend((earlier, snapshots) for earlier in range(start, n))
        plan[n], begun = (origin, row, len(rows)), None


def _split(length, snapshots):
    """Steps before the next snapshot: the longest first part that keeps the total work minimal."""
    repeats = next(r for r in range(1, length) if _reach(snapshots, r) >= length)
    return min(_reach(snapshots, repeats - 1), length - _reach(snapshots - 1, repeats - 1))


def _reach(snapshots, repeats):
    return math.comb(snapshots + repeats, repeats)


def _pullback(step, y, shared, x):
    return jax.vjp(lambda *primals: step(*primals)[0], y, shared, x)[1]


def _add(a, b):
    return a if b is None else jax.tree.map(jnp.add, a, b)


def _zeros(tree):
    return jax.tree.map(jnp.zeros_like, tree)


def _get(slots, slot):
    return jax.tree.map(lambda leaf: leaf[slot], slots)


def _put(slots, y, slot):
    return jax.tree.map(lambda leaf, value: leaf.at[slot].set(value), slots, y)
