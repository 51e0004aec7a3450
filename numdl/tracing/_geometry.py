"""The geometry of a contraction: fans, roles of the weight's axes, and how a state is seen with its examples first."""

import itertools
import math
from fractions import Fraction
from typing import NamedTuple

from numdl.tracing import _layouts

ONE_AT_A_TIME = "it is of one example at a time"


class Axes(NamedTuple):
    """What the axes of one parameter leaf do in a contraction with data; each a tuple of axes of the leaf as stored.

    An axis that is reshaped into two roles (heads times features) stands in both, one that is summed over among
    parameters (the rank of W = A B) in none. An axis of length 1 that a reshape drops stands in none either.
    """

    inputs: tuple = ()  # contracted with data: summed over; a convolution's channels among them, its window not
    outputs: tuple = ()  # make the axes of the output units
    window: tuple = ()  # a convolution's window: summed over, too
    groups: tuple = ()  # batch axes, shared with data: heads, experts, seeds: a weight of its own for each
    steps: tuple = ()  # depth: scanned over, or one entry taken by an index, so that each entry is a weight of its own
    feature_groups: int = 1  # of a grouped convolution: its outputs axis holds so many groups, the major part
    others: tuple = ()  # further `Axes` (or None), if the leaf is contracted in other ways as well (tied weights)


class Contraction(NamedTuple):
    """Fans, and which axes of weight and output are what."""

    fan_in: float
    fan_out: float
    units: tuple  # axes of the output
    roles: dict  # role -> axes of the operand that is the weight
    feature_groups: int = 1


def dense(params, shapes, weight):
    """The `Contraction` of a dot_general; None if nothing is contracted. `weight`: the operand's place, or None."""
    contracted, batched = params["dimension_numbers"]
    if not contracted[0]:
        return None
    free = [[a for a in range(len(shapes[i])) if a not in (*contracted[i], *batched[i])] for i in (0, 1)]
    first, side = len(batched[0]), 1 if weight is None else weight
    begin = first + (len(free[0]) if side == 1 else 0)
    units = [*range(begin, begin + len(free[side]))]
    roles = {"inputs": tuple(contracted[side]), "outputs": tuple(free[side]), "groups": tuple(batched[side])}
    return Contraction(
        math.prod(shapes[0][axis] for axis in contracted[0]),
        math.prod(shapes[side][axis] for axis in free[side]),
        (*range(first), *units) if weight is not None else tuple(units),
        roles,
    )


def convolution(params, shapes, weight):
    """The `Contraction` of a convolution: counts are means over positions away from the border."""
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    kernel, out, operand = numbers.rhs_spec, numbers.out_spec, (numbers.lhs_spec, numbers.rhs_spec)[weight or 0]
    window = [shapes[1][axis] for axis in kernel[2:]]
    settings = [params[name] for name in ("window_strides", "lhs_dilation", "rhs_dilation")]
    reads = [_hits(k, w, s, r, low) for k, w, s, r, (low, _) in zip(window, *settings, params["padding"])]
    reached = [
        _hits(k, s, w, r, r * (k - 1) - low) for k, w, s, r, (low, _) in zip(window, *settings, params["padding"])
    ]
    outputs = Fraction(shapes[1][kernel[0]], groups * params["batch_group_count"])
    roles = {"outputs": operand[:1], "inputs": operand[1:2], "window": operand[2:]}
    return Contraction(
        _number(shapes[1][kernel[1]] * math.prod(reads)),
        _number(outputs * math.prod(reached)),
        (out[1] if weight != 0 else out[0],),
        {role: tuple(axes) for role, axes in roles.items()},
        groups,
    )


def _hits(window, step, grid, dilation, low):
    """Mean number of taps that meet the grid, over positions `step` apart: taps on inserted zeros are none."""
    places = itertools.product(range(grid), range(window))
    return Fraction(sum((place * step - low + tap * dilation) % grid == 0 for place, tap in places), grid)


def _number(fraction):
    return int(fraction) if Fraction(fraction).denominator == 1 else float(fraction)


def roles_of(contraction, layout):
    """The `Axes` of the leaf that a weight's layout follows; None where it is lost."""
    if layout.lost:
        return None
    of = {
        role: tuple(sorted({part.axis for axis in axes for part in layout.axes[axis] if part.axis is not None}))
        for role, axes in contraction.roles.items()
    }
    return Axes(**of, steps=tuple(sorted(layout.taken)), feature_groups=contraction.feature_groups)


class View(NamedTuple):
    """How a value of the program is seen with the examples first, and back."""

    shape: tuple  # in the program
    unfolded: tuple  # every part of an axis an axis
    order: tuple
    seen: tuple  # the examples, then the others in order

    def see(self, value):
        """The value with the examples first."""
        return value.reshape(self.unfolded).transpose(self.order).reshape(self.seen)

    def back(self, value):
        """As the program has it."""
        inverse = sorted(range(len(self.order)), key=self.order.__getitem__)
        moved = value.reshape([self.unfolded[axis] for axis in self.order])
        return moved.transpose(inverse).reshape(self.shape)


class Sight(NamedTuple):
    """A value's shape and units as they are seen; without a view they are as in the program."""

    shape: tuple
    units: tuple
    example_axis: int | None  # in the program
    view: View | None = None
    note: str | None = None  # why the examples' axis is not known


def sight(shape, examples, units, count):
    """How a value is seen whose examples' layout is `examples` (None: it has none) and whose units' is `units`."""
    pieces = list(_pieces(shape, examples, units))
    where = [i for i, (_, part, _) in enumerate(pieces) if part is not None]
    where.sort(key=lambda i: -pieces[i][1].stride)
    note = _why_not(examples, [pieces[i][1] for i in where], count)
    if count == 1 and not where:
        wide = (1, *shape)
        flat = tuple(axis + 1 for axis in _unit_axes(units))
        return Sight(wide, flat, None, View(tuple(shape), wide, tuple(range(len(wide))), wide))
    if note:
        return Sight(tuple(shape), _unit_axes(units), None, None, note)
    rest = [i for i in range(len(pieces)) if i not in where]
    unfolded = tuple(size for size, _, _ in pieces)
    seen = (count, *(unfolded[i] for i in rest))
    flags = tuple(1 + k for k, i in enumerate(rest) if pieces[i][2])
    axis = next(axis for axis, parts in enumerate(examples.axes) if _layouts.followed(parts))
    order = (*where, *rest)
    plain = unfolded == tuple(shape) == seen and order == tuple(range(len(shape)))
    return Sight(seen, flags, axis, None if plain else View(tuple(shape), unfolded, order, seen))


def _pieces(shape, examples, units):
    """(size, the part of the examples or None, whether it is units) of each axis, those with examples unfolded."""
    for axis, size in enumerate(shape):
        parts = examples.axes[axis] if examples is not None else _layouts.other(size)
        if not _layouts.followed(parts):
            yield size, None, _layouts.followed(units.axes[axis])
            continue
        begin = 1
        for part in parts:
            end = begin * part.size
            yield part.size, part if part.axis is not None else None, _overlaps(units.axes[axis], begin, end)
            begin = end


def _overlaps(parts, begin, end):
    """Whether a part that is followed lies between these products of sizes, counted from the major side."""
    low = 1
    for part in parts:
        high = low * part.size
        if part.axis is not None and max(low, begin) < min(high, end):
            return True
        low = high
    return False


def _unit_axes(units):
    return tuple(axis for axis, parts in enumerate(units.axes) if _layouts.followed(parts))


def _why_not(examples, parts, count):
    if examples is None:
        return "it does not depend on the examples"
    if not parts:
        if examples.lost:
            return f"the examples' axis is lost: {examples.lost}"
        return ONE_AT_A_TIME if examples.taken else "the examples are summed over before it"
    if not all(part.exact for part in parts):
        return "the examples are cut, permuted or repeated before it"
    size = 1
    if len(parts) == 1 and parts[0].size < count:
        return "it is of some of the examples at a time"
    for part in reversed(parts):
        if part.stride != size:
            return "two of its axes are the examples"
        size *= part.size
    return None if size == count else "two of its axes are the examples"
