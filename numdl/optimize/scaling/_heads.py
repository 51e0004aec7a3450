"""Attention whose heads widen: what its scores are times, and which entries of which leaves can undo it.

Scores q k of width k are of size sqrt(k) at the start and change as k in a step: muP divides them by k. Over k^p they
are k^(1 - p) too large, which the entries that make one of the two take up: W k^(p - 1) is the network with scores
times k^(p - 1). They are a weight of queries with its bias, the columns of queries in a fused one, or the gain of the
queries' norm: whatever the queries, and nothing else, are proportional to (`_entries`).
"""

import dataclasses
import math

import numpy as np

from numdl.optimize.scaling import _entries
from numdl.optimize.scaling._parts import part
from numdl.tracing import _numbers
from numdl.tracing._nodes import Graph
from numdl.tracing._programs import CONTRACTIONS

_STEP = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class Head:
    """One product of queries and keys whose width grows, or several that share the leaves."""

    name: str
    growth: float  # of the head's width
    power: float  # p: the scores are over its power; nan: not followed
    leaves: dict  # path -> the `Part` that undoes it, None where it is the whole leaf; empty where none can
    normalized: bool = False  # whether queries and keys are the same whatever the size of their weights

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
            named = " and ".join(f"the queries' part of {leaf}" if one else leaf for leaf, one in self.leaves.items())
            return f"{grows}: muP draws and trains {named} {self.undone:.3g} times as large"
        if self.normalized:
            return (
                f"{grows} and would grow: queries and keys are normalized without a gain, so that no leaf's size "
                f"matters; divide the scores by the head width, or multiply the normalized queries by a gain of their "
                f"own, a leaf of one entry for each of their components"
            )
        return (
            f"{grows} and would grow: no leaf makes its queries or keys alone; divide them by the head width, or "
            f"multiply the query weights' deviation and their Adam rate by {self.undone:.3g}"
        )


def growing(narrow, wide):
    """The `Head`s that grow and are not divided by their width, of what is `_uses.Seen` at both widths."""
    layers = enumerate(zip(narrow.traced.layers, wide.traced.layers))
    growths = {
        i: other.fan_in / one.fan_in
        for i, (one, other) in layers
        if one.kind == "attention" and one.fan_in != other.fan_in
    }
    if not growths:
        return []
    graphs = [Graph(seen.traced.program, seen.paths) for seen in (narrow, wide)]
    products = [{i: _product(graph.layers[i]) for i in growths} for graph in graphs]
    powers = {i: _power(i, growth, (narrow, wide), products) for i, growth in growths.items()}
    left = {i: (growths[i], powers[i]) for i in growths if powers[i] != 1}
    heads = []
    while left:
        index, (growth, power) = next(iter(left.items()))
        like = [i for i, each in left.items() if each == (growth, power)]
        known = not math.isnan(power)
        found = _undoing(graphs, products, like) if known else None
        covered, leaves = found or ((index,), {})
        name = ", ".join(narrow.traced.layers[i].name for i in covered)
        lost = known and not leaves and all(_is_normalized(products[0][index], side) for side in (0, 1))
        heads.append(Head(name, growth, power, leaves, lost))
        for each in covered:
            del left[each]
    return heads


def _undoing(graphs, products, like):
    """(products, {leaf: Part}): the first of these and those that share its leaves; None if no leaf makes it alone."""
    for side in _sides(graphs[0], products[0][like[0]]):
        found = []
        for graph, own in zip(graphs, products):
            made = _entries.scaling(graph, own[like[0]], side, [own[i] for i in like])
            masks, reached = made or ({}, [])
            found.append((masks, tuple(i for i in like if own[i] in reached)))
        (one, covered), (other, also) = found
        if one and set(one) == set(other) and covered == also:
            return covered, {leaf: part((one[leaf], other[leaf])) for leaf in one}
    return None


def _product(node):
    """The product itself, as a state may lie past its transposition or a bias; None if that is not seen."""
    while node is not None and node.name not in CONTRACTIONS:
        node = next((each for each in node.inputs if each.data), None)
    return node


def _sides(graph, product):
    """The queries' side first: that of the keys is the one whose positions are summed over after the softmax."""
    end = len(product.shape) - _frees(product, 1)
    begin = end - _frees(product, 0)
    numbers = np.arange(math.prod(product.shape[begin:end]), dtype=np.int32).reshape(product.shape[begin:end])
    places = np.broadcast_to(numbers.reshape(numbers.shape + (1,) * _frees(product, 1)), product.shape)
    return (1, 0) if _is_summed_over(graph, product, places) else (0, 1)


def _frees(product, place):
    return len(product.inputs[place].shape) - sum(len(each[place]) for each in product.params["dimension_numbers"])


def _is_summed_over(graph, product, places):
    """Whether these numbers of a product differ along the axes of the first reduction that follows."""
    seen = {id(product): places}
    for node in graph.nodes:
        read = [each for each in node.inputs if id(each) in seen]
        if not read or id(node) not in graph.live:
            continue
        array = seen[id(read[0])]
        if node.name.startswith("reduce_") and "axes" in node.params:
            axes = tuple(node.params["axes"])
            return bool((array.max(axis=axes) != array.min(axis=axes)).any())
        after = _numbers.moved(node, array) if _numbers.source(node) is read[0] else array
        if after is None or after.shape != node.shape:
            return False
        seen[id(node)] = after
    return False


# ---- sizes ----------------------------------------------------------------------------------------------------------


def _power(index, growth, both, products):
    """p: what a product is times before its softmax goes as its width to the power -p; nan where not followed."""
    if any(own[index] is None for own in products):
        return math.nan
    sizes = [_size(seen.found, index, own[index]) for seen, own in zip(both, products)]
    known = all(size > 0 and math.isfinite(size) for size in sizes)
    return round(-math.log(sizes[1] / sizes[0]) / math.log(growth), 4) if known else math.nan


def _size(found, index, product):
    reduction, function = found.reductions.get(index, (None, None))
    if reduction not in ("reduce_max", "reduce_sum"):
        return math.nan
    after = _slope(function) if reduction == "reduce_max" else _slope(lambda t: np.log((function or np.array)(t)))
    return abs(math.prod(_root_mean_square(product, side) for side in (0, 1)) * after)


def _slope(function):
    """At 0, where a soft cap is not felt."""
    if function is None:
        return 1.0
    with np.errstate(all="ignore"):
        low, high = function(np.array([-_STEP, _STEP]))
    return float(high - low) / (2 * _STEP)


def _root_mean_square(product, side, size=1.0):
    """Of one of the two, where layers' outputs are signs times this size; a median, as a row of one sign may vanish."""
    if product.name != "dot_general":
        return math.nan
    known = {}
    value = _numbers.value_of(product.inputs[side], lambda node: _given(node, size, known), known)
    if value is None:
        return math.nan
    return math.sqrt(np.median(np.mean(np.square(value), axis=tuple(product.params["dimension_numbers"][0][side]))))


def _given(node, size, known):
    """Signs for a layer's outputs, ones for leaves, nothing for biases."""
    if node.name in CONTRACTIONS and node.data and all(each.data or each.made for each in node.inputs):
        if math.prod(node.shape) > _numbers.LARGEST:
            return None
        return size * (2.0 * np.random.default_rng(0).integers(0, 2, node.shape) - 1)
    if node.name == "leaf":
        return np.ones(node.shape)
    given = lambda node: _given(node, size, known)  # noqa: E731
    if node.name == "step":
        stacked = _numbers.value_of(node.inputs[0], given, known)
        return None if stacked is None else stacked[0]
    if node.name in ("add", "sub") and sorted(each.data for each in node.inputs) == [False, True]:
        data, fixed = sorted(node.inputs, key=lambda each: not each.data)
        return _numbers.value_of(data, given, known) if fixed.made else None
    return None


def _is_normalized(product, side):
    """Whether queries, or keys, keep their size when those of all weights double."""
    sizes = [_root_mean_square(product, side, size) for size in (1.0, 2.0)]
    return sizes[1] < 1.01 * sizes[0]
