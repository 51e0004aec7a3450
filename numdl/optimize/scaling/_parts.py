"""Some of a leaf's entries, known at two widths and, where they are blocks that grow as its axes, at others."""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Blocks of a leaf that are in, of each width: (where blocks end along each axis, which are in)."""

    shapes: tuple  # of the leaf
    blocks: tuple

    def at(self, shape):
        """Which entries are in, of size 1 along axes where that is all the same; None if it is not known."""
        if shape in self.shapes:
            return _spread(*self.blocks[self.shapes.index(shape)])
        return self.scaled(shape) if len(shape) == len(self.shapes[0]) else None

    def scaled(self, shape):
        """Blocks that grew with the axes from one width to the other do so to a third; so do copies of a pattern."""
        (ends, inside), (more, others) = self.blocks
        wide, growths = (np.divide(new, self.shapes[0]) for new in (self.shapes[1], shape))
        if inside.shape == others.shape and (inside == others).all() and _scaled(ends, wide) == more:
            found = _scaled(ends, growths)
            return None if found is None else _spread(found, inside)
        one, other = (_pattern(_spread(*blocks)) for blocks in self.blocks)
        if one.shape != other.shape or (one != other).any() or any(a % b for a, b in zip(shape, one.shape)):
            return None
        return np.tile(one, [1 if b == 1 else a // b for a, b in zip(shape, one.shape)])


def part(masks):
    """The `Part` of a leaf's masks at both widths; None where all of it is in."""
    if all(mask.all() for mask in masks):
        return None
    return Part(tuple(mask.shape for mask in masks), tuple(map(_blocks, masks)))


def _blocks(mask):
    """Where along each axis it changes, and one entry of every block."""
    ends = []
    for axis, size in enumerate(mask.shape):
        rows = np.moveaxis(mask, axis, 0)
        changes = (rows[1:] != rows[:-1]).reshape(size - 1, -1).any(axis=1)
        ends.append((*(int(i) + 1 for i in np.flatnonzero(changes)), size))
    firsts = [np.array([0, *each[:-1]]) for each in ends]
    return tuple(ends), mask[np.ix_(*firsts)]


def _pattern(mask):
    """What the mask is copies of, one after the other along each axis."""
    for axis, size in enumerate(mask.shape):
        rows = np.moveaxis(mask, axis, 0)
        periods = (p for p in range(1, size + 1) if size % p == 0)
        period = next(p for p in periods if (rows == np.resize(rows[:p], rows.shape)).all())
        mask = np.moveaxis(rows[:period], 0, axis)
    return mask


def _scaled(ends, growths):
    """These places times the growth of each axis; None if they are no whole numbers."""
    found = [[place * growth for place in each] for each, growth in zip(ends, growths)]
    whole = all(math.isclose(place, round(place), rel_tol=1e-9) for each in found for place in each)
    return tuple(tuple(round(place) for place in each) for each in found) if whole else None


def _spread(ends, inside):
    for axis, each in enumerate(ends):
        if len(each) > 1:
            inside = np.repeat(inside, np.diff((0, *each)), axis=axis)
    return inside
