"""Which entries of which leaves to multiply so that one side of a product of data with data is multiplied, alone.

`ways(node, mask)` goes back from these numbers of a value: a sum asks for all its terms, a product for one factor, a
contraction for its weight, a move for the numbers that are moved. `reached` goes forward with what was found, and says
what of the call is proportional to these entries: a way is good if that is one side of the product and nothing else.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np

from numdl.tracing import _numbers
from numdl.tracing._programs import CONTRACTIONS

_JOINED, _REDUCED = ("concatenate", "stack"), ("reduce_sum", "reduce_max", "reduce_min")
_SUMS = frozenset(("add", "add_any", "sub", "max", "min"))
_POWERS = {"square": 2.0, "sqrt": 0.5, "rsqrt": -0.5, "abs": 1.0, "neg": 1.0, "cbrt": 1 / 3}
_MOST = 16  # ways that are tried


def scaling(graph, product, side, others=()):
    """({leaf: mask}, products) that multiply this side of a product, or of `others` beside; None if none is found."""
    operand = product.inputs[side]
    for found in itertools.islice(ways(operand, np.broadcast_to(True, operand.shape)), _MOST):
        products = reached(graph, found, {id(each): each for each in (product, *others)}) if found else None
        if products and product in products:
            return found, products
    return None


def ways(node, mask):
    """{leaf: which of its entries} whose multiples multiply these numbers of a node, one way after the other."""
    if not mask.any():
        yield {}
    elif node.name == "leaf":
        yield {node.leaf: mask}
    elif not node.data and not node.made:
        number = _numbers.value_of(node)
        if number is not None and not np.any(np.where(mask, number, 0)):
            yield {}
    elif node.name == "step":
        yield from ways(node.inputs[0], np.broadcast_to(mask, node.inputs[0].shape))
    elif _numbers.source(node) is not None:
        earlier = _numbers.before(node, mask)
        if earlier is not None:
            yield from ways(_numbers.source(node), earlier)
    elif node.name in _FACTORS:
        for factor in sorted(node.inputs, key=lambda each: each.data)[: 1 if _is_layer(node) else None]:
            yield from ways(factor, _FACTORS[node.name](node, node.inputs.index(factor), mask))
    elif node.name == "div":
        yield from ways(node.inputs[0], _fitting(mask, node.inputs[0]))
    elif node.name in _TERMS:
        terms = _TERMS[node.name](node, mask)
        yield from () if terms is None else _together(terms)


def _together(terms):
    """All of these terms, in any of their ways."""
    if not terms:
        yield {}
        return
    for first in ways(*terms[0]):
        for rest in _together(terms[1:]):
            yield {
                leaf: first[leaf] | rest[leaf] if leaf in first and leaf in rest else first.get(leaf, rest.get(leaf))
                for leaf in {**first, **rest}
            }


def _is_layer(node):
    return node.name in CONTRACTIONS and any(each.made and not each.data for each in node.inputs)


def _fitting(mask, node):
    """A mask of a value as one of an operand that is repeated along axes of size 1, or a scalar."""
    if not node.shape:
        return np.asarray(mask.any())
    return mask.any(axis=tuple(a for a, size in enumerate(node.shape) if size != mask.shape[a]), keepdims=True)


def _contracted(node, place, mask):
    """Which entries of an operand of a contraction these outputs need."""
    if node.name != "dot_general":
        return np.broadcast_to(mask.any(), node.inputs[place].shape)
    (summed, shared), shape = node.params["dimension_numbers"], node.inputs[place].shape
    free = _free(node, place)
    before = len(shared[0]) + (len(_free(node, 0)) if place else 0)
    kept = (*range(len(shared[0])), *range(before, before + len(free)))
    seen = mask.any(axis=tuple(axis for axis in range(mask.ndim) if axis not in kept))
    order = (*shared[place], *free)
    seen = seen.transpose(np.argsort(order))
    return np.broadcast_to(np.expand_dims(seen, tuple(sorted(summed[place]))), shape)


def _free(node, place):
    summed, shared = node.params["dimension_numbers"]
    axes = range(len(node.inputs[place].shape))
    return tuple(axis for axis in axes if axis not in (*summed[place], *shared[place]))


def _padding(node, mask):
    where = _numbers.inside(node)
    if where is None:
        return None
    outside = mask.copy()
    outside[where] = False
    return [(node.inputs[0], mask[where]), (node.inputs[1], np.asarray(outside.any()))]


def _summed(node, mask):
    axes = tuple(node.params["axes"])
    return [(node.inputs[0], np.broadcast_to(np.expand_dims(mask, axes), node.inputs[0].shape))]


# Of each: (operand, which of its numbers) for these of the node.
_FACTORS = {
    "mul": lambda node, place, mask: _fitting(mask, node.inputs[place]),
    **dict.fromkeys(CONTRACTIONS, _contracted),
}
_TERMS = {
    **dict.fromkeys(_SUMS, lambda node, mask: [(each, _fitting(mask, each)) for each in node.inputs]),
    **dict.fromkeys(_JOINED, lambda node, mask: list(zip(node.inputs, _numbers.pieces(node, mask)))),
    **dict.fromkeys(_REDUCED, _summed),
    "neg": lambda node, mask: [(node.inputs[0], mask)],
    "select_n": lambda node, mask: [(each, mask) for each in node.inputs[1:]],
    "pad": _padding,
}


# ---- forward --------------------------------------------------------------------------------------------------------


def reached(graph, chosen, products):
    """The products of which one side is proportional to these entries; None if anything else depends on them."""
    marks, found = {}, []
    for node in graph.nodes:
        seen = [marks.get(id(each)) for each in node.inputs]
        if id(node) not in graph.live or not (node.leaf in chosen or any(seen)):
            continue
        if id(node) in products:
            sides = [mark for mark in seen if mark]
            if len(sides) != 1 or not sides[0].mask.all() or not math.isclose(sides[0].power, 1):
                return None
            found.append(node)
            continue
        made = Mark(chosen[node.leaf], 1.0) if node.leaf in chosen else _after(node, seen)
        if made is None:
            return None
        if made.power and made.mask.any():
            marks[id(node)] = made
    return None if any(id(each) in marks for each in graph.outputs) else found


class Mark(NamedTuple):
    """Numbers of a value that go as this power of the chosen entries; the others do not depend on them."""

    mask: np.ndarray
    power: float


_NOT = Mark(np.zeros((), bool), 0.0)


def _after(node, seen):
    """The `Mark` of a node given its inputs'; None where its numbers go as no power."""
    if _numbers.source(node) is not None:
        return _moved(node, seen)
    if node.name in _AFTER:
        return _AFTER[node.name](node, seen)
    if node.name in _POWERS:
        return seen[0]._replace(power=_POWERS[node.name] * seen[0].power)
    return None


def _moved(node, seen):
    source = _numbers.source(node)
    beside = node.name not in _numbers.SAME and any(mark for each, mark in zip(node.inputs, seen) if each is not source)
    mark = seen[node.inputs.index(source)] or _NOT
    mask = None if beside else _numbers.moved(node, np.broadcast_to(mark.mask, source.shape))
    return None if mask is None else mark._replace(mask=mask)


def _step(node, seen):
    """One step's part, if it is the same in every step."""
    mask = seen[0].mask
    return seen[0]._replace(mask=mask[0]) if len(mask) and (mask == mask[:1]).all() else None


def _sum(node, seen, terms=slice(None)):
    """Terms that all go as one power, or are zero."""
    marks = [mark or _NOT for mark in seen[terms]]
    powers = {mark.power for mark in marks if mark.power}
    whole = [np.broadcast_to(mark.mask, node.shape) for mark in marks]
    mask = np.logical_or.reduce(whole)
    zero = all(_is_zero(each, mask & ~own) for each, own in zip(node.inputs[terms], whole))
    return Mark(mask, powers.pop()) if len(powers) == 1 and zero else None


def _is_zero(node, mask):
    if not mask.any():
        return True
    number = None if node.data or node.made else _numbers.value_of(node)
    return number is not None and not np.any(np.where(mask, number, 0))


def _joined(node, seen):
    powers = {mark.power for mark in seen if mark}
    masks = [np.broadcast_to((mark or _NOT).mask, each.shape) for mark, each in zip(seen, node.inputs)]
    return Mark(_numbers.computed(node, masks), powers.pop()) if len(powers) == 1 else None


def _product(node, seen):
    marks = [mark and mark._replace(mask=np.broadcast_to(mark.mask, node.shape)) for mark in seen]
    signs = (1, -1 if node.name == "div" else 1)
    both = [mark for mark in marks if mark]
    if any((mark.mask != both[0].mask).any() for mark in both):
        return None
    return Mark(both[0].mask, sum(sign * mark.power for sign, mark in zip(signs, marks) if mark))


def _contraction(node, seen):
    """Sums over entries that all are marked, or none."""
    if all(seen):
        return None
    place = 0 if seen[0] else 1
    mask, power = seen[place]
    if node.name != "dot_general":
        return Mark(np.ones(node.shape, bool), power) if mask.all() else None
    (summed, shared), free = node.params["dimension_numbers"], _free(node, place)
    kept = mask.any(axis=tuple(summed[place]), keepdims=True)
    if (kept != mask.all(axis=tuple(summed[place]), keepdims=True)).any():
        return None
    kept = kept.transpose((*shared[place], *free, *summed[place])).reshape(
        [mask.shape[axis] for axis in (*shared[place], *free)]
    )
    count, other = len(shared[0]), len(node.shape) - len(shared[0]) - len(free)
    before, behind = ((1,) * other, ()) if place else ((), (1,) * other)
    shape = (*kept.shape[:count], *before, *kept.shape[count:], *behind)
    return Mark(np.broadcast_to(kept.reshape(shape), node.shape), power)


def _reduction(node, seen):
    axes = tuple(node.params["axes"])
    mask, power = seen[0]
    whole = mask.all(axis=axes)
    return Mark(whole, power) if (whole == mask.any(axis=axes)).all() else None


_AFTER = {
    "step": _step,
    **dict.fromkeys(_SUMS, _sum),
    "select_n": lambda node, seen: None if seen[0] else _sum(node, seen, slice(1, None)),
    **dict.fromkeys((*_JOINED, "pad"), _joined),
    "mul": _product,
    "div": _product,
    **dict.fromkeys(CONTRACTIONS, _contraction),
    **dict.fromkeys(_REDUCED, _reduction),
    "integer_pow": lambda node, seen: seen[0]._replace(power=node.params["y"] * seen[0].power),
}
