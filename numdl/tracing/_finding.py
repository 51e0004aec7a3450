"""Which steps of a program are layers, where the state of each lies, what it is called."""

import collections
import dataclasses
import math
from typing import Any

from numdl.tracing import _activity, _custom, _geometry, _layouts
from numdl.tracing._axes import NOTHING, read, shape_of
from numdl.tracing._geometry import Axes, Sight
from numdl.tracing._programs import CONTRACTIONS, CUSTOM, REMAT, TAP, is_tap, unread
from numdl.tracing._rules import after
from numdl.tracing._uses import Uses


@dataclasses.dataclass(frozen=True)
class Layer:
    """A place in the function. One per contraction in the program: a scanned layer is one Layer with `steps`."""

    name: str
    kind: str  # "dense" | "conv" | "attention" | "tap"
    shape: tuple  # of the state, the examples first; as in the program where `note` says that they are not known
    dtype: Any
    steps: tuple = ()  # lengths of the scans around it, outermost first
    fan_in: float = 0  # how many products make one output, in the mean away from borders; 0 for a tap
    fan_out: float = 0  # how many outputs one input reaches, likewise
    weight_shape: tuple | None = None  # of the operand that is contracted; None without parameters
    leaf: str | None = None  # path of the largest leaf in the operand that is contracted
    made_of: tuple = ()  # (path, Axes or None) of every leaf in this operand; None: its axes cannot be followed
    nonlinearity: str | None = None  # "tanh", "relu", ...: what acts on the state, past normalization and sums
    units: tuple = (-1,)  # the state's axes that are output units; the others are examples, positions, pixels
    example_axis: int | None = None  # where the examples' axis lies in the program
    note: str | None = None  # why the examples' axis is not known
    view: Any = None  # how the state is seen with the examples first; None: as it is
    activation: Sight | None = None  # the nonlinearity's input, if that is not the state itself

    @property
    def leaf_axes(self):
        """The `Axes` of `leaf`; None without one, or where they cannot be followed."""
        return dict(self.made_of).get(self.leaf)

    @property
    def of_examples(self):
        """Whether each number of the state belongs to one example that is known."""
        return self.note is None or self.note == _geometry.ONE_AT_A_TIME


class Finder:
    """Walks a program whose values are known and puts its layers at their places."""

    def __init__(self, follower, paths, examples, shapes):
        self.follower, self.paths, self.examples, self.shapes = follower, paths, examples, shapes
        self.layers, self.not_entered, self.uses = [], [], Uses(len(paths))
        self.around = ()  # (program, step, readers, around) of the step whose inside is searched

    def search(self, program, steps, lost=()):
        readers, live = program.readers(lost), program.live(lost)
        for step in program.steps:
            values, found = read(program.values, step.reads), None
            if step.name in CONTRACTIONS:
                found = self.contraction(program, step, values, readers, steps)
            elif is_tap(step.equation):
                self.tap(program, step, readers, steps)
            elif step.inner:
                found = self.enter(program, step, values, readers, steps)
            elif step.name == "scan" and id(step) in live:
                self.uses.scanned(program, step, values)
                continue
            if found is None and id(step) in live:
                self.uses.meets(program, step, values)

    def contraction(self, program, step, values, readers, steps):
        """A layer if one operand is data and the other made of parameters, or if both are data."""
        if not any(value.data for value in values) or not all(value.data or value.made for value in values):
            return None
        shapes = [shape_of(program, slot) for slot in step.reads]
        weight = next((i for i, value in enumerate(values) if value.made), None)
        conv = step.name == "conv_general_dilated"
        found = (_geometry.convolution if conv else _geometry.dense)(step.params, shapes, weight)
        if found is None:
            return None
        out = program.avals[step.writes[0]]
        layer = Layer("attention", "attention", out.shape, out.dtype, steps, found.fan_in, found.fan_out)
        units = found.units
        if weight is not None:
            step.weight, value = (weight, len(self.layers)), values[weight]
            self.uses.layer(value.layouts, len(self.layers))
            leaf = self.paths[value.leaf]
            made_of = tuple((self.paths[i], _geometry.roles_of(found, each)) for i, each in value.layouts.items())
            kind, shape = "conv" if conv else "dense", shapes[weight]
            layer = dataclasses.replace(
                layer, name=self.name(value, leaf, shape), kind=kind, weight_shape=shape, leaf=leaf, made_of=made_of
            )  # fmt: skip
            own = [any(_layouts.followed(each.axes[a]) for each in value.layouts.values()) for a in range(len(shape))]
            shared = found.roles.get("groups", ())  # copies by broadcasting have no units of their own
            units = tuple(axis for axis in units if axis >= len(shared) or conv or own[shared[axis]])
        return self.put(program, step.writes[0], layer, units, readers)

    def name(self, value, leaf, shape):
        """The path of the leaf; of leaves that fill the weight side by side, of all of them."""
        sizes = [
            math.prod(size for axis, size in enumerate(self.shapes[i]) if axis not in layout.taken)
            for i, layout in value.layouts.items()
        ]
        full = sum(sizes) == math.prod(shape) and all(layout.lost is None for layout in value.layouts.values())
        return _together([self.paths[i] for i in value.layouts]) if full and len(sizes) > 1 else leaf

    def tap(self, program, step, readers, steps):
        aval = program.avals[step.writes[0]]
        layer = Layer(step.params["name"].removeprefix(TAP), "tap", aval.shape, aval.dtype, steps)
        self.put(program, step.writes[0], layer, (len(aval.shape) - 1,), readers, tapped=True)

    def put(self, program, slot, layer, units, readers, tapped=False):
        """Place the layer at this slot or, past transpositions and a bias, at a later one; its index."""
        tags = _layouts.start(program.avals[slot].shape, units)
        if not tapped:
            slot, tags = _advance(program, slot, tags, readers)
        name, at, tags_there = _activity.find(program, slot, tags, readers, self.around)
        sight, index = self.sight(program, slot, tags), len(self.layers)
        program.places.setdefault(slot, []).append(index)
        program.order.append(index)
        if name is not None and at != slot:
            program.watched.setdefault(at, []).append(index)
        self.layers.append(
            dataclasses.replace(
                layer,
                **sight._asdict(),
                dtype=program.avals[slot].dtype,
                nonlinearity=name,
                activation=self.sight(program, at, tags_there) if name is not None and at != slot else None,
            )
        )
        return index

    def sight(self, program, slot, tags):
        shape = tuple(program.avals[slot].shape)
        if self.examples is None:
            note = "which leaves of x have examples is not known"
            return Sight(
                shape, tuple(a for a, parts in enumerate(tags.axes) if _layouts.followed(parts)), None, None, note
            )
        return _geometry.sight(shape, program.values[slot].examples, tags, self.examples)

    def enter(self, program, step, values, readers, steps):
        """Look inside scan, remat and cond; for anything else look whether there is a layer, and how many.

        Returns None where the step was run as it is.
        """
        before, around = len(self.layers), self.around
        if step.name != "scan" and step.name != "cond" and step.name not in REMAT:
            return self.outside(program, step, values, readers, steps)
        self.around, lost = (program, step, readers, around), unread(step, readers)
        if step.name == "scan":
            self.uses.starts(step, step.inner[0], values)
            self.search(step.inner[0], (*steps, step.params["length"]), lost)
        else:
            for body in step.inner:
                self.search(body, steps, lost)
        self.around = around
        if len(self.layers) > before:
            step.entered = True
            program.order.append(step)
        return step

    def outside(self, program, step, values, readers, steps):
        """A loop of unknown length or a custom rule: not entered; a custom call with one layer is that layer."""
        scout = Finder(self.follower, self.paths, self.examples, self.shapes)
        for body in step.inner:
            self.follower.guess(program, step, body, values)
            scout.search(body, steps)
        only = scout.layers[0] if len(scout.layers) == 1 else None
        if step.name in CUSTOM and only and only.weight_shape and only.steps == steps:
            place, output = _custom.weight_operand(step), _custom.state_output(step)
            if output is not None and any(value.made for value in values):
                _custom.forget(step)
                return self.call(program, step, values, readers, only, place, output)
        _custom.forget(step)
        if scout.layers or any(value.leaf is not None for value in values):
            leaf = max(values, key=lambda value: value.size, default=NOTHING).leaf
            held = ", ".join(layer.name for layer in scout.layers) or (
                "parameters" if leaf is None else self.paths[leaf]
            )
            self.not_entered.append(f"{step.name} holding {held}")
        return None

    def call(self, program, step, values, readers, only, place, output):
        """The layer inside a custom rule, its state the call's output; without a weight where that is computed."""
        index = len(self.layers)
        if place is not None and values[place].made:
            step.weight = place, index
        else:
            only = dataclasses.replace(only, weight_shape=None)
        used = [values[i] for i in _custom.read_operands(step) if values[i].made]
        self.uses.layer(dict.fromkeys(leaf for value in used for leaf in value.layouts), index)
        shape = program.avals[step.writes[output]].shape
        same = only.view is None and only.shape == shape
        return self.put(program, step.writes[output], only, only.units if same else (len(shape) - 1,), readers)

    def named(self):
        """The layers with '#1', '#2', ... from the second use of a parameter on, and attentions counted."""
        uses, layers = collections.Counter(), []
        for layer in self.layers:
            use, name = uses[layer.name], layer.name
            uses[layer.name] += 1
            if layer.kind == "attention":
                name = f"attention/{use}"
            elif use:
                name = f"{name}#{use}"
            layers.append(dataclasses.replace(layer, name=name))
        return tuple(layers)


def roles(layers):
    """{leaf path: its `Axes`} over all layers, None where they cannot be followed; ways that differ in `others`."""
    ways = {}
    for layer in layers:
        for path, axes in layer.made_of:
            ways.setdefault(path, []).append(axes)
    found = {}
    for path, every in ways.items():
        known = list(dict.fromkeys(axes for axes in every if axes is not None))
        unknown = (None,) if len(known) and None in every else ()
        found[path] = known[0]._replace(others=(*known[1:], *unknown)) if known else None
    return found


def _together(names):
    """'cell/hi+hf/kernel' for 'cell/hi/kernel' and 'cell/hf/kernel': what their paths share is said once."""
    parts = [name.split("/") for name in names]
    differ = [i for i, each in enumerate(zip(*parts)) if len(set(each)) > 1]
    if len({len(each) for each in parts}) > 1 or len(differ) != 1:
        return "+".join(names)
    return "/".join("+".join(each) if i in differ else each[0] for i, each in enumerate(zip(*parts)))


def _advance(program, slot, tags, readers):
    """Past the transposition that follows at once and past a bias: an added parameter, at most one number a unit."""
    end, at = (slot, tags), (slot, tags)
    parts = [part.size for axis in tags.axes for part in axis if part.axis is not None]
    features, only_transposed = math.prod(parts), True
    while True:
        step = readers[at[0]][0] if len(readers[at[0]]) == 1 else None
        if step is not None and step.name in _custom.MOVES:
            at = (step.writes[0], moved(program, step, at[1]))
            only_transposed &= step.name == "transpose"
            if only_transposed:
                end = at
        elif step is not None and step.name in ("add", "add_any"):
            other = [each for each in step.reads if each != at[0]]
            value = read(program.values, other)[0] if other else NOTHING
            return (step.writes[0], at[1]) if value.made and 0 < value.size <= max(features, 1) else end
        else:
            return end


def moved(program, step, tags):
    """The units' layout after a step that only moves or casts numbers."""
    shapes = [shape_of(program, slot) for slot in (step.reads[0], step.writes[0])]
    return after(step, [tags], shapes[:1], shapes[1:])[0]


__all__ = ["Axes", "Finder", "Layer", "roles"]
