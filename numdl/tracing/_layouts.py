"""Where the axes of a value come from: each axis as a product of parts of one source's axes.

A *source* is the input x (its examples' axis) or one leaf of the parameters. A `Layout` says, for one source, of which
parts each axis of a value is made, the major part first: after x [N, T, D] is reshaped to [N T, D], axis 0 is made of
the N examples and of T positions, and can be unfolded. Nothing is concluded from sizes.
"""

from typing import NamedTuple


class Part(NamedTuple):
    """Entries `start, start + stride, ...` of one axis of the source; `axis` None: of no axis that is followed."""

    axis: int | None
    stride: int
    size: int
    exact: bool = True  # neither cut, permuted nor repeated


class Layout(NamedTuple):
    """The parts of each axis; the source's axes of which one entry at a time is taken; why an axis is lost."""

    axes: tuple
    taken: tuple = ()
    lost: str | None = None


def start(shape, followed):
    """The layout of a source itself, of which these axes are followed."""
    return Layout(tuple((Part(i if i in followed else None, 1, size),) for i, size in enumerate(shape)))


def blank(shape):
    """Axes that come from nowhere."""
    return tuple(other(size) for size in shape)


def other(size):
    """The parts of an axis that is not followed."""
    return (Part(None, 1, size),)


def followed(parts):
    """Whether an axis has a part that is followed."""
    return any(part.axis is not None for part in parts)


def is_followed(layout):
    """Whether any axis of the value is followed."""
    return any(followed(parts) for parts in layout.axes)


def inexact(parts, size):
    """What is left of an axis after its entries were cut, permuted or repeated: which source axis, no longer where."""
    axes = {part.axis for part in parts if part.axis is not None}
    return (Part(min(axes), 1, size, False),) if axes else other(size)


def drop(layout, gone):
    """The layout without these axes; of a cut axis one entry was taken."""
    taken = [part.axis for axis in gone for part in layout.axes[axis] if part.axis is not None and not part.exact]
    axes = tuple(parts for axis, parts in enumerate(layout.axes) if axis not in gone)
    return Layout(axes, _union(layout.taken, taken), layout.lost)


def join(layouts, shape):
    """The layout of what is computed elementwise from values with these layouts."""
    layouts = [layout for layout in layouts if layout is not None]
    taken = _union(*(layout.taken for layout in layouts))
    full = [layout for layout in layouts if len(layout.axes) == len(shape)]
    axes, lost = [], None
    for axis, size in enumerate(shape):
        known = {layout.axes[axis] for layout in full if followed(layout.axes[axis])}
        known = {parts for parts in known if _count(parts) == size}
        if len(known) > 1:
            lost = lost or "values with different orders of axes are combined"
        axes.append(known.pop() if len(known) == 1 else other(size))
    layout = Layout(tuple(axes), taken, lost)
    if lost is None and not is_followed(layout):
        return layout._replace(lost=next((one.lost for one in full if one.lost), None) if shape else None)
    return layout


def reshape(layout, shape):
    """The layout after the axes are split and merged."""
    parts = [part for axis in layout.axes for part in axis if part.size != 1 or (part.axis is not None and part.exact)]
    gone = [part.axis for axis in layout.axes for part in axis if part.size == 1 and not part.exact]
    axes, taken = [], _union(layout.taken, [axis for axis in gone if axis is not None])
    for size in shape:
        found, parts = _fill(parts, size)
        if found is None:
            lost = layout.lost
            if any(part.axis is not None for part in parts):
                lost = lost or "a reshape does not keep axes apart"
            return Layout((*axes, *blank(shape[len(axes) :])), taken, lost)
        axes.append(found)
    return Layout(tuple(axes), taken, layout.lost)


def _fill(parts, size):
    """(parts of an axis of this size, parts left), or (None, parts) where no whole number of parts fits."""
    found, left, count = [], list(parts), 1
    while left and (count < size or left[0].size == 1):
        part = left.pop(0)
        need = size // count
        if part.size > need:
            if part.size % need:
                return None, [*found, part, *left]
            inner = part.size // need
            left.insert(0, part._replace(size=inner))
            part = part._replace(size=need, stride=part.stride * inner)
        count *= part.size
        if size % count:
            return None, [*found, part, *left]
        found.append(part)
        if count == size and size == 1:
            break
    return (merged(found) or other(size), left) if count == size else (None, [*found, *left])


def merged(parts):
    """Neighbouring parts that are one put together again."""
    done = []
    for part in parts:
        last = done[-1] if done else None
        if (
            last is not None
            and last.axis == part.axis
            and (part.axis is None or last.stride == part.stride * part.size)
        ):
            done[-1] = Part(part.axis, part.stride, last.size * part.size, last.exact and part.exact)
        else:
            done.append(part)
    return tuple(done)


def cut(parts, size, begin, end, stride=1):
    """An axis after a slice: whole blocks of its major part stay what they are."""
    if (begin, end, stride) == (0, size, 1):
        return parts
    if not followed(parts):
        return other(len(range(begin, end, stride)))
    inner = size // parts[0].size
    if len(parts) > 1 and stride == 1 and parts[0].axis is None and not (begin % inner or end % inner):
        count = (end - begin) // inner
        return merged(((Part(None, 1, count),) if count > 1 else ()) + parts[1:])
    return inexact(parts, len(range(begin, end, stride)))


def stacked(pieces):
    """An axis along which these axes, of one source, are put one after the other."""
    sizes = [_count(parts) for parts in pieces]
    if len(set(pieces)) == 1 and followed(pieces[0]) and len(pieces) > 1:
        return (Part(None, 1, len(pieces)), *pieces[0])
    known = [parts for parts in pieces if followed(parts)]
    return inexact(known[0], sum(sizes)) if known else other(sum(sizes))


def _count(parts):
    count = 1
    for part in parts:
        count *= part.size
    return count


def _union(*groups):
    return tuple(dict.fromkeys(axis for group in groups for axis in group))
