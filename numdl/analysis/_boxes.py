"""MEASURED: how rough the border between two sides of a grid is: its dimension by counting boxes."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import ArrayLike, Bool

from numdl import checks
from numdl.records import record

FEWEST = 4  # boxes along the shortest axis, where no sizes are given


@record
class BoxDimension:
    """How many boxes of each size a set touches, and the power of the size with which that falls."""

    sizes: np.ndarray  # [k]: edges, in cells
    counts: np.ndarray  # [k]: boxes with a cell of the set
    local: np.ndarray  # [k - 1]: the dimension between neighbouring sizes; nan where the set is empty
    value: float  # from the least-squares line through all; nan where the set is empty


def boundary(inside: Bool[ArrayLike, "*n"]) -> Bool[np.ndarray, "*m"]:
    """MEASURED border between True and False: the corners of a grid at which both meet, one fewer along each axis.

        border[i, j] = inside[i:i+2, j:j+2] holds both

    Parameters
    ----------
    inside : array of bools     on a grid [n, m] of any number of axes, at least 2 along each
    Returns
    -------
    array of bools              [n - 1, m - 1]
    Raises
    ------
    ValueError, TypeError       an axis shorter than 2, no axes, anything but True and False
    Source: elementary.    Experiment: d19.
    """
    some = every = _flags("inside", inside)
    if min(some.shape) < 2:
        raise checks.BadValue(f"inside must have 2 or more cells along each axis; got shape {some.shape}")
    for axis in range(some.ndim):
        first, second = (range(some.shape[axis])[part] for part in (slice(None, -1), slice(1, None)))
        some = some.take(first, axis) | some.take(second, axis)
        every = every.take(first, axis) & every.take(second, axis)
    return some & ~every


def box_dimension(marked: Bool[ArrayLike, "*n"], *, sizes: Sequence[int] | None = None) -> BoxDimension:
    """MEASURED fractal dimension (box counting, Minkowski) of the marked cells: 1 for a smooth curve, 2 for an area.

        count(size) ~ size^-dimension,    dimension = -slope of ln count over ln size

    Boxes tile the grid from its first cell; the last along an axis may be cut. A set that is no fractal has another
    dimension at every size: look at `local` before you believe `value`.

    Parameters
    ----------
    marked : array of bools     the set, on a grid of any number of axes
    sizes : sequence of int     edges in cells, 2 or more that rise, at most the shortest axis; None: powers of 2 with
                                4 boxes or more along the shortest axis
    Returns
    -------
    BoxDimension                sizes, counts [k], local [k - 1], value
    Raises
    ------
    ValueError, TypeError       anything but True and False, a grid or sizes out of these bounds
    Source: Sohl-Dickstein 2024, arXiv:2402.06184 (the median of local slopes instead of a line).    Experiment: d19.
    """
    marked = _flags("marked", marked)
    sizes = _doubling(marked.shape) if sizes is None else _rising(sizes, min(marked.shape))
    counts = np.array([_count(marked, size) for size in sizes])
    if not counts[0]:
        return BoxDimension(np.array(sizes), counts, np.full(len(sizes) - 1, np.nan), np.nan)
    x, y = np.log(sizes), np.log(counts)
    away = x - x.mean()
    return BoxDimension(np.array(sizes), counts, -np.diff(y) / np.diff(x), -float(away @ y / (away @ away)))


def _count(marked, size):
    """Boxes of this edge that hold a marked cell."""
    for axis, length in enumerate(marked.shape):
        marked = np.logical_or.reduceat(marked, np.arange(0, length, size), axis=axis)
    return np.count_nonzero(marked)


def _flags(name, value):
    value = np.asarray(checks.array(name, value, least_ndim=1))
    if value.dtype != bool:
        raise checks.BadType(f"{name} must be an array of True and False; got dtype {value.dtype}, shape {value.shape}")
    return value


def _doubling(shape):
    shortest = min(shape)
    sizes = [2**k for k in range(shortest.bit_length()) if -(-shortest // 2**k) >= FEWEST]
    if len(sizes) < 2:
        least = FEWEST * 2 - 1
        raise checks.BadValue(f"marked must have {least} or more cells along each axis, or `sizes`; got shape {shape}")
    return sizes


def _rising(sizes, most):
    sizes = checks.wholes("sizes", sizes, fewest=2)
    if any(second <= first for first, second in zip(sizes, sizes[1:], strict=False)) or sizes[-1] > most:
        raise checks.BadValue(f"sizes must rise and be at most {most}, the shortest axis; got {checks.shown(sizes)}")
    return sizes
