"""How the call uses each leaf at one width, and the uses that no rule can serve, refused with what helps."""

import dataclasses
import math
from typing import NamedTuple

import jax
import numpy as np

from numdl import checks, tracing, trees
from numdl.tracing._paths import paths

_LOOKUPS = ("embedding: ", "lookup: ")
_WHOLE = ("leaf", "part", "joined")
_COMPUTED = {
    True: (
        "multiplied by a number",
        "absorb the number into the leaf; its rate is then times that number (Adam), or its square (SGD)",
    ),
    False: (
        "computed from its leaves",
        "merge them into one leaf before training (weight norm, low rank), or choose their rates by hand",
    ),
}


class Use(NamedTuple):
    """What one leaf is to the call."""

    layers: tuple  # `tracing.Layer`s that contract it
    made: tuple  # of each: how the contracted operand is made of leaves, as `tracing._trails.Fixed` has it
    looked_up: bool
    text: str  # how it is used where it is not contracted


@dataclasses.dataclass
class Seen:
    """One width: the traced call and the leaves by path."""

    width: int
    apply: object
    params: object
    x: object

    def __post_init__(self):
        self.traced = tracing.trace(self.apply, self.params, self.x)
        self.paths = trees.names(self.params)
        self.values = dict(zip(self.paths, jax.tree.leaves(self.params), strict=True))
        self.shapes = {path: tuple(leaf.shape) for path, leaf in self.values.items()}
        self.found = paths(self.traced.program, self.traced.layers, self.traced.parameters)
        self.texts = dict(zip(self.paths, self.traced.uses, strict=True))

    def use(self, path):
        """The `Use` of a leaf."""
        holding = [i for i, layer in enumerate(self.traced.layers) if path in dict(layer.made_of)]
        layers = tuple(self.traced.layers[i] for i in holding)
        names = {layer.name for layer in self.traced.layers}
        texts = [text for text in self.texts[path] if text not in names]
        weights = self.found.weights
        made = tuple(weights[i].made if i in weights else "derived" for i in holding)
        return Use(layers, made, any(text.startswith(_LOOKUPS) for text in texts), ", ".join(texts))

    @property
    def last(self):
        """Leaves that no later layer of another leaf follows."""
        held = [layer for layer in self.traced.layers if layer.made_of]
        return {path for path, _ in held[-1].made_of} if held else set()


def check_same(narrow, wide):
    """The same leaves, the same depth, at both widths."""
    for one, other in ((narrow, wide), (wide, narrow)):
        only = [path for path in one.paths if path not in other.shapes]
        if only:
            raise checks.BadValue(
                f"build must give the same leaves at every width; got {only[0]!r} only at width {one.width}"
            )
    for path in narrow.paths:
        if len(narrow.shapes[path]) != len(wide.shapes[path]):
            raise checks.BadValue(
                f"build must give leaves of as many axes at every width; got {path!r} of shapes {narrow.shapes[path]} "
                f"and {wide.shapes[path]}"
            )
    names = [[f"{layer.name}{list(layer.steps) or ''}" for layer in seen.traced.layers] for seen in (narrow, wide)]
    if names[0] != names[1]:
        first, second = (sorted(set(one) - set(other))[:1] or ["fewer"] for one, other in (names, names[::-1]))
        raise checks.BadValue(
            f"build must change the width alone, not the depth nor the layers; got {first[0]} at width {narrow.width} "
            f"where width {wide.width} has {second[0]}"
        )


def check_not_contracted(path, use, shapes):
    """A leaf outside of all layers has at most one axis that grows, and runs where it is seen."""
    grown = [axis for axis, (one, other) in enumerate(zip(*shapes)) if one != other]
    hidden = "not entered" in use.text
    if grown and not use.layers and (hidden or len(grown) > 1):
        raise checks.BadValue(
            f"build must contract its weights where the trace sees it; got {path!r} of shapes {shapes[0]} and "
            f"{shapes[1]}, used by: {use.text}: which of its axes is summed over is not known. Move it out of that call"
        )


def check_weight(path, use, other, shapes):
    """A contracted leaf is the weight itself, in one role."""
    if use.looked_up:
        raise checks.BadValue(
            f"build must not tie an embedding to the head; got {path!r}, which is looked up and contracted in "
            f"{use.layers[0].name!r}: one rate cannot serve both. Untie them, or multiply the logits by narrow / width "
            f"in apply and give embeddings=({path!r},)"
        )
    for layer, wider, made in zip(use.layers, other.layers, use.made):
        if made not in _WHOLE and not all(_side_by_side(*one) for one in zip((layer, wider), shapes)):
            raise checks.BadValue(_derived(layer, made))


def _derived(layer, made):
    how, remedy = _COMPUTED[made == "scaled"]
    return (
        f"build must contract its leaves as they are; got the weight of {layer.name!r}, {how} "
        f"({', '.join(leaf for leaf, _ in layer.made_of)}): a rule for the product says nothing of the factors. "
        f"Remedy: {remedy}"
    )


def _side_by_side(layer, shapes):
    """Whether a weight is its leaves one after the other: they fill it, and every axis of theirs is one of its own."""
    if layer.weight_shape is None:  # computed inside a custom rule
        return False
    sizes = [math.prod(shapes[leaf]) for leaf, _ in layer.made_of]
    own = [axes is not None and _all_placed(axes, shapes[leaf]) for leaf, axes in layer.made_of]
    return len(sizes) > 1 and all(own) and sum(sizes) == math.prod(layer.weight_shape)


def _all_placed(axes, shape):
    placed = {*axes.inputs, *axes.outputs, *axes.window, *axes.groups}
    return all(axis in placed or size == 1 for axis, size in enumerate(shape))


def inputs(path, use, other, shapes):
    """(m_in, the axes that are summed over or None) of a weight; its uses must agree."""
    ways = [_inputs(path, *pair, shapes) for pair in zip(use.layers, other.layers)]
    if any(not math.isclose(way[0], ways[0][0]) for way in ways):
        raise checks.BadValue(
            f"build must use a leaf in one role; got {path!r}, tied: it is contracted in "
            f"{', '.join(layer.name for layer in use.layers)}, whose inputs grow differently. Untie them"
        )
    return ways[0]


def _inputs(path, layer, wider, shapes):
    axes = dict(layer.made_of)[path]
    if axes is None or set(axes.inputs) & {*axes.outputs, *axes.groups} or 0 in shapes[0]:
        return wider.fan_in / layer.fan_in, None
    summed = tuple(axes.inputs)
    return math.prod(shapes[1][axis] / shapes[0][axis] for axis in summed), summed


def mean_square(leaf):
    """(mean square, its standard error) of a leaf, by NumPy; nan of one that does not float."""
    if not jax.dtypes.issubdtype(leaf.dtype, np.floating) or 0 in leaf.shape:
        return math.nan, 0.0
    squares = np.asarray(leaf).astype(np.float64) ** 2
    return float(squares.mean()), float(squares.std() / math.sqrt(squares.size))
