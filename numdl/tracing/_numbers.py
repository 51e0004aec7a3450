"""Nodes of a `_nodes.Graph` as numbers: primitives that move numbers, of any arrays, and the value of a node."""

import math

import jax
import numpy as np

from numdl.tracing._scalars import FUNCTIONS, evaluate

LARGEST = 2**26  # numbers in one value: beyond it nothing is said
SAME = frozenset(
    (
        *("convert_element_type", "copy", "copy_p", "reduce_precision", "name", "optimization_barrier"),
        *("sharding_constraint", "device_put", "pvary", "stop_gradient"),
    )
)
_RESHAPED = frozenset(("reshape", "squeeze", "expand_dims"))
_REDUCED = {"reduce_sum": np.sum, "reduce_max": np.max, "reduce_min": np.min, "reduce_prod": np.prod}


def source(node):
    """The input that a node has its numbers from, moved, cut or copied; None where it is made otherwise."""
    if node.name in SAME:
        return node.inputs[node.place]
    return node.inputs[0] if node.name in _RESHAPED or node.name in _MOVES else None


def moved(node, array):
    """What the node is of this array in place of its `source`; None where that depends on data."""
    if node.name in SAME:
        return array
    return array.reshape(node.shape) if node.name in _RESHAPED else _MOVES[node.name](node, array)


def before(node, mask):
    """Which numbers of its source these numbers of the node are; None where that is not known."""
    shape = source(node).shape
    if node.name in SAME:
        return mask
    if node.name in _RESHAPED:
        return mask.reshape(shape)
    if math.prod(shape) > LARGEST:
        return None
    places = moved(node, np.arange(math.prod(shape), dtype=np.int32).reshape(shape))
    if places is None or places[mask].min(initial=0) < 0:
        return None
    found = np.zeros(math.prod(shape), bool)
    found[places[mask]] = True
    return found.reshape(shape)


def pieces(node, array):
    """The parts of an array like a concatenation's, or a stack's, that its inputs fill."""
    if node.name == "stack":
        return [array[_along(node.params["axis"], i)] for i in range(len(node.inputs))]
    axis = node.params["dimension"]
    return np.split(array, np.cumsum([each.shape[axis] for each in node.inputs])[:-1], axis)


def inside(node):
    """Where the operand of a `pad` lies in it; None if it is cut or spread."""
    config = node.params["padding_config"]
    if any(low < 0 or high < 0 or between for low, high, between in config):
        return None
    return tuple(slice(low, low + size) for (low, _, _), size in zip(config, node.inputs[0].shape))


def value_of(node, given=lambda node: None, known=None):
    """The numbers of a node, `given` those of some before it; None where they are not known."""
    known = {} if known is None else known
    if id(node) not in known:
        found = given(node)
        known[id(node)] = _made(node, given, known) if found is None else found
    return known[id(node)]


def _made(node, given, known):
    if node.name == "constant" or math.prod(node.shape) > LARGEST:
        return node.value
    if node.name == "iota":
        shape, axis = node.params["shape"], node.params["dimension"]
        return np.arange(shape[axis]).reshape([-1 if i == axis else 1 for i in range(len(shape))]) + np.zeros(shape)
    if source(node) is not None:
        array = value_of(source(node), given, known)
        return None if array is None else moved(node, array)
    arrays = [value_of(each, given, known) for each in node.inputs]
    if not arrays or any(array is None for array in arrays):
        return None
    return computed(node, arrays)


def computed(node, arrays):
    """What the node is of these arrays as its inputs; None where that is not known."""
    if node.name in _REDUCED:
        return _REDUCED[node.name](arrays[0], axis=tuple(node.params["axes"]))
    if node.name in FUNCTIONS:
        return evaluate(node.name, node.params, arrays)
    return _JOINED[node.name](node, arrays) if node.name in _JOINED else None


def _dot(node, arrays):
    (summed, shared), letters = node.params["dimension_numbers"], iter("abcdefghijklmnopqrstuvwxyz")
    names = [[None] * np.ndim(array) for array in arrays]
    for axes in (*zip(*shared), *zip(*summed)):
        letter = next(letters)
        for side, axis in enumerate(axes):
            names[side][axis] = letter
    names = [[each or next(letters) for each in side] for side in names]
    batch = [names[0][axis] for axis in shared[0]]
    free = [n for side, own in enumerate(names) for i, n in enumerate(own) if i not in (*summed[side], *shared[side])]
    return np.einsum(f"{''.join(names[0])},{''.join(names[1])}->{''.join(batch + free)}", *arrays)


def _padded(node, arrays):
    where = inside(node)
    if where is None:
        return None
    found = np.full(node.shape, arrays[1])
    found[where] = arrays[0]
    return found


def _broadcast(node, array):
    places = dict(zip(node.params["broadcast_dimensions"], array.shape))
    return np.broadcast_to(array.reshape([places.get(i, 1) for i in range(len(node.shape))]), node.shape)


def _slice(node, array):
    params = node.params
    strides = params["strides"] or (1,) * array.ndim
    return array[tuple(map(slice, params["start_indices"], params["limit_indices"], strides))]


def _split(node, array):
    sizes, axis = [int(size) for size in node.params["sizes"]], node.params["axis"]
    begin = sum(sizes[: node.place])
    return array[_along(axis, slice(begin, begin + sizes[node.place]))]


def _dynamic_slice(node, array):
    starts = [value_of(each) for each in node.inputs[1:]]
    if any(start is None for start in starts):
        return None
    begins = [min(max(int(s), 0), whole - size) for s, whole, size in zip(starts, array.shape, node.shape)]
    return array[tuple(slice(begin, begin + size) for begin, size in zip(begins, node.shape))]


def _gather(node, array):
    indices = value_of(node.inputs[1])
    if indices is None:
        return None
    names = ("dimension_numbers", "slice_sizes", "mode", "unique_indices", "indices_are_sorted")
    signed = array.astype(np.int8) if array.dtype == bool else array
    fill = -1 if signed.dtype.kind == "i" else None
    found = jax.lax.gather(
        signed, np.asarray(indices, np.int32), fill_value=fill, **{name: node.params[name] for name in names}
    )
    return np.asarray(found).astype(array.dtype)


def _along(axis, chosen):
    return (*(slice(None),) * axis, chosen)


_MOVES = {
    "transpose": lambda node, array: array.transpose(node.params["permutation"]),
    "broadcast_in_dim": _broadcast,
    "rev": lambda node, array: np.flip(array, node.params["dimensions"]),
    "slice": _slice,
    "split": _split,
    "tile": lambda node, array: np.tile(array, node.params["reps"]),
    "unstack": lambda node, array: array[_along(node.params["axis"], node.place)],
    "dynamic_slice": _dynamic_slice,
    "gather": _gather,
}
_JOINED = {
    "concatenate": lambda node, arrays: np.concatenate(arrays, node.params["dimension"]),
    "stack": lambda node, arrays: np.stack(arrays, node.params["axis"]),
    "pad": _padded,
    "dot_general": _dot,
}
