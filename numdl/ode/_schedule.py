"""Which states `adjoints.binomial` keeps, and which steps it computes again: the plan, in plain Python."""

import functools
import math

import numpy as np

from numdl import checks


def plan(steps, snapshots):
    """The optimal plan of recomputation: what to do before step n can be differentiated, for every n.

    Load slot load[n]; then for row = begin[n] ... end[n] - 1 take step index[row] and put the new state into slot
    store[row] (slot `snapshots` is a bin). The state at the beginning of step n results.

    Returns load, begin, end [steps], index, store [rows], all int32; rows = steps computed again.
    Source: Griewank & Walther 2000, ACM Trans. Math. Softw. 26, 19-45.
    """
    return _plan(checks.whole("steps", steps), checks.whole("snapshots", snapshots))


@functools.lru_cache(maxsize=256)
def _plan(steps, snapshots):
    steps_of, rows = {}, []
    _reverse(steps_of, rows, snapshots, 0, steps, 0)
    table = np.array([steps_of[n] for n in range(steps)], np.int32)
    pairs = np.array(rows, np.int32).reshape(-1, 2)
    return table[:, 0], table[:, 1], table[:, 2], pairs[:, 0], pairs[:, 1]


def _reverse(steps_of, rows, snapshots, start, stop, slot, begun=None):
    """Plan the way back from step stop - 1 to step start, whose state lies in `slot`.

    `begun` is the (slot, first row) of a run of steps that has just arrived at `start`, if there is one.
    """
    free = snapshots - 1 - slot
    while free and stop - start > 1:
        middle = start + _split(stop - start, free + 1)
        begun = begun or (slot, len(rows))
        rows.extend((n, slot + 1 if n == middle - 1 else snapshots) for n in range(start, middle))
        _reverse(steps_of, rows, snapshots, middle, stop, slot + 1, begun)
        stop, begun = middle, None
    for n in reversed(range(start, stop)):
        origin, row = begun or (slot, len(rows))
        rows.extend((earlier, snapshots) for earlier in range(start, n))
        steps_of[n], begun = (origin, row, len(rows)), None


def _split(length, snapshots):
    """Steps before the next snapshot: the longest first part that keeps the total work minimal."""
    repeats = next(r for r in range(1, length) if _reach(snapshots, r) >= length)
    return min(_reach(snapshots, repeats - 1), length - _reach(snapshots - 1, repeats - 1))


def _reach(snapshots, repeats):
    return math.comb(snapshots + repeats, repeats)
