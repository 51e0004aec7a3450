"""Six ways to differentiate a recurrence, one signature: what is stored, what is computed again, what is exact.

    adjoint(recurrence, y, shared, drive, save) -> (last state, (all later states or None, residuals or None))
    y[n+1] = step(y[n], shared, drive[n])

    adjoint             memory in the number N of steps         work beside a plain gradient    gradient
    direct              every intermediate of every step        none                            exact
    checkpointed        N states                                one more forward pass           exact
    nested(levels=k)    about k N**(1/k) states                 k more forward passes           exact
    binomial(snapshots) this many states                        the least possible              exact
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
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import PyTree

from numdl import checks
from numdl.ode import _schedule


class Recurrence(NamedTuple):
    """What an adjoint gets to know of a scheme on a grid; every function is traceable."""

    step: Callable  # (y, shared, x) -> (y_new, residual)
    inverse: Callable | None  # (y_new, shared, x) -> y
    solve_back: Callable | None  # (y_new, cotangent, shared, x) -> (y, cotangent, its integrals for shared, for x)
    coarsen: Callable | None = None  # (shared, drive, factor) -> those of every factor-th step, that much longer


def direct(recurrence: Recurrence, y: PyTree, shared: PyTree, drive: PyTree, save: bool) -> tuple[PyTree, tuple]:
    """One scan, differentiated by jax: every intermediate of every step is stored.

    Parameters
    ----------
    recurrence : Recurrence     what `integrate` hands over; this is a value of its argument `adjoint`
    y : pytree                  the first state
    shared, drive : pytree      what all steps share; what drives each, leaves [N, ...]
    save : bool                 whether all states are wanted
    Returns
    -------
    (last state, (all later states or None, residuals or None))
    """
    return lax.scan(_body(recurrence.step, shared, save), y, drive)


def checkpointed(recurrence: Recurrence, y: PyTree, shared: PyTree, drive: PyTree, save: bool) -> tuple[PyTree, tuple]:
    """One scan that stores the states and computes each step again on the way back (checkpointing): the fast one.

    Parameters
    ----------
    recurrence, y, shared, drive, save : as for `direct`
    Returns
    -------
    (last state, (all later states or None, residuals or None))
    """
    return lax.scan(_body(_forget(recurrence.step), shared, save), y, drive)


def nested(*, levels: int) -> Callable:
    """An adjoint that stores about levels * N**(1/levels) states, at `levels` extra forward passes.

    The steps are cut into N**(1/levels) equal stretches and a shorter rest, each cut again likewise: a stretch keeps
    its first state and is computed again when the way back reaches it.

    Parameters
    ----------
    levels : int                >= 1
    Returns
    -------
    function                    a value for `adjoint`
    Raises
    ------
    ValueError, TypeError       levels < 1
    Source: Chen et al. 2016, arXiv:1604.06174 (two levels).
    """
    return _nesting(checks.whole("levels", levels, least=1))


@functools.lru_cache(maxsize=256)
def _nesting(levels):
    return functools.partial(_nested, levels)


def square_root(recurrence: Recurrence, y: PyTree, shared: PyTree, drive: PyTree, save: bool) -> tuple[PyTree, tuple]:
    """`nested(levels=2)`: about 2 sqrt(N) states.

    Parameters
    ----------
    recurrence, y, shared, drive, save : as for `direct`
    Returns
    -------
    (last state, (all later states or None, residuals or None))
    """
    return _nested(2, recurrence, y, shared, drive, save)


def binomial(*, snapshots: int) -> Callable:
    """An adjoint that keeps at most this many states, y[0] among them, and recomputes the least possible for that.

    With s snapshots and every step computed at most r times again, N = (s + r)! / (s! r!) steps are within reach: 10
    states serve 1001 steps at r = 4. The schedule is optimal and fixed at tracing time.

    Parameters
    ----------
    snapshots : int             s >= 1
    Returns
    -------
    function                    a value for `adjoint`
    Raises
    ------
    ValueError, TypeError       snapshots < 1
    Source: Griewank & Walther 2000, ACM Trans. Math. Softw. 26, 19-45 (algorithm 799, revolve).
    """
    return _keeping(checks.whole("snapshots", snapshots, least=1))


@functools.lru_cache(maxsize=256)
def _keeping(snapshots):
    return functools.partial(_binomial, snapshots)


def reversible(recurrence: Recurrence, y: PyTree, shared: PyTree, drive: PyTree, save: bool) -> tuple[PyTree, tuple]:
    """One scan that stores its last state only; the way back undoes every step by the scheme's exact inverse.

    Parameters
    ----------
    recurrence, y, shared, drive, save : as for `direct`
    Returns
    -------
    (last state, (all later states or None, residuals or None))
    Raises
    ------
    ValueError                  the scheme has no inverse
    Source: Gomez et al. 2017, arXiv:1707.04585.
    """
    if recurrence.inverse is None:
        raise checks.BadValue(
            "adjoint=reversible needs a scheme with an inverse: leapfrog, verlet or coupling; got none"
        )
    return _reversible(recurrence, save, y, shared, drive)


def backsolve(recurrence: Recurrence, y: PyTree, shared: PyTree, drive: PyTree, save: bool) -> tuple[PyTree, tuple]:
    """The continuous adjoint equation, solved backwards by the same scheme: no derivative of the discrete solution.

    Parameters
    ----------
    recurrence, y, shared, drive, save : as for `direct`
    Returns
    -------
    (last state, (all later states or None, residuals or None))
    Raises
    ------
    ValueError                  the scheme does not solve y' = f: not of Runge-Kutta's kind
    Source: Chen et al. 2018, arXiv:1806.07366.
    """
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
    parts = jax.tree.map(lambda leaf: leaf[:whole].reshape(whole // chunk, chunk, *leaf.shape[1:]), drive)
    y, saved = lax.scan(inner, y, parts)
    saved = jax.tree.map(lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), saved)
    if whole == steps:
        return y, saved
    y, rest = inner(y, jax.tree.map(lambda leaf: leaf[whole:], drive))
    return y, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), saved, rest)


def _length(drive):
    return jax.tree.leaves(drive)[0].shape[0]


def _from_its_end(undo):
    """An integration whose gradient keeps the last state only.

    undo(recurrence, y, ybar, shared, x) goes one step back: (the state before, its cotangent, shared's part, x's).
    """

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
    def solve(recurrence, save, y, shared, drive):
        return direct(recurrence, y, shared, drive, save)

    def forward(recurrence, save, y, shared, drive):
        last, saved = direct(recurrence, y, shared, drive, save)
        return (last, saved), (last, shared, drive)

    def backward(recurrence, save, kept, cotangents):
        last, shared, drive = kept
        cotangent, (later, _) = cotangents

        def back(carry, xs):
            y, ybar, total = carry
            x, extra = xs
            y, ybar, part, xbar = undo(recurrence, y, _add(ybar, extra), shared, x)
            return (y, ybar, _add(total, part)), xbar

        carry = last, cotangent, _zeros(shared)
        (_, ybar, total), xbars = lax.scan(back, carry, (drive, later), reverse=True)
        return ybar, total, xbars

    solve.defvjp(forward, backward)
    return solve


def _by_the_inverse(recurrence, y, ybar, shared, x):
    before = recurrence.inverse(y, shared, x)
    return before, *_pullback(recurrence.step, before, shared, x)(ybar)


def _by_the_equation(recurrence, y, ybar, shared, x):
    return recurrence.solve_back(y, ybar, shared, x)


_reversible = _from_its_end(_by_the_inverse)
_backsolve = _from_its_end(_by_the_equation)


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
    load, begin, end, index, store = _schedule.plan(_length(drive), snapshots)

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
