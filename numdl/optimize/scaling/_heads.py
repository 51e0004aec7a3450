"""Attention whose heads widen: what its scores are times, and whose weights can undo it.

Scores q k of width k are of size sqrt(k) at the start and change as k in a step: muP divides them by k. Over k^p they
are k^(1 - p) too large, which one of the two weights takes up: W k^(p - 1) is the network with scores times k^(p - 1).
"""

import math
from typing import NamedTuple

import numpy as np

from numdl.tracing._trails import PARTS

_STEP = 1e-6


class Head(NamedTuple):
    """One product of queries and keys whose width grows."""

    name: str
    growth: float  # of the head's width
    power: float  # p: the scores are over its power; nan: not followed
    leaves: tuple  # paths of the weight, and its bias, that undo it; empty where none can

    @property
    def undone(self):
        """The factor of their deviation and Adam rate."""
        return self.growth ** (self.power - 1)

    def __str__(self):
        grows = f"{self.name}: the head width grows by {self.growth:g}"
        if math.isnan(self.power):
            return (
                f"{grows}: scores over its square root would change as its square root; divide them by the head width, "
                f"or multiply the query weights' deviation and their Adam rate by {self.growth**-0.5:.3g}"
            )
        grows = f"{grows}, its scores are over its power {self.power:.3g}"
        if self.leaves:
            return f"{grows}: muP draws and trains {' and '.join(self.leaves)} {self.undone:.3g} times as large"
        return (
            f"{grows} and would grow: no leaf makes its queries or keys alone; divide them by the head width, or "
            f"multiply the query weights' deviation and their Adam rate by {self.undone:.3g}"
        )


def growing(narrow, wide):
    """The `Head`s that grow and are not divided by their width, of what is `_uses.Seen` at both widths."""
    layers = enumerate(zip(narrow.traced.layers, wide.traced.layers))
    grown = [
        (i, other.fan_in / one.fan_in, one.name)
        for i, (one, other) in layers
        if one.kind == "attention" and one.fan_in != other.fan_in
    ]
    heads = []
    for index, growth, name in grown:
        sizes = [_size(seen.found, index) for seen in (narrow, wide)]
        known = all(size > 0 for size in sizes)
        power = round(-math.log(sizes[1] / sizes[0]) / math.log(growth), 6) if known else math.nan
        if power != 1:
            heads.append(Head(name, growth, power, () if math.isnan(power) else _undoing(narrow, index)))
    return heads


def _size(found, index):
    """What a product of outputs of two layers is times before its softmax; nan where that is not followed."""
    operands, (reduction, function) = found.products.get(index, ()), found.reductions.get(index, (None, None))
    if len(operands) != 2 or any(not isinstance(each.source, int) for each in operands):
        return math.nan
    if reduction not in ("reduce_max", "reduce_sum"):
        return math.nan
    after = _slope(function) if reduction == "reduce_max" else _slope(lambda t: np.log((function or np.array)(t)))
    return abs(math.prod(_slope(each.function) for each in operands) * after)


def _slope(function):
    """At 0, where a soft cap is not felt."""
    if function is None:
        return 1.0
    with np.errstate(all="ignore"):
        low, high = function(np.array([-_STEP, _STEP]))
    return float(high - low) / (2 * _STEP)


def _undoing(seen, index):
    """Paths of the weight of queries, or else of keys, and of its bias: whole leaves that serve nothing else."""
    found = seen.found
    readers = [path.source for path in found.paths.values()]
    readers += [each.source for pair in found.products.values() for each in pair]
    for operand in found.products[index]:
        layer = operand.source
        weight, biases = found.weights.get(layer), found.biases.get(layer, ())
        cut = any(step[0] in PARTS for step in operand.form)
        whole = weight is not None and all(each.made == "leaf" for each in (weight, *biases))
        if whole and not cut and readers.count(layer) == 1:
            paths = weight.leaf, *(bias.leaf for bias in biases)
            if all(len(seen.use(path).layers) <= 1 for path in paths):
                return paths
    return ()
