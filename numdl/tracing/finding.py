"""Which steps of a program are layers: what every value is made of, where a state lies, what it is called."""

import collections
import dataclasses
import math
from typing import Any

import jax.extend.core as jex
import numpy as np

from numdl.tracing.programs import CONTRACTIONS, CUSTOM, REMAT, TAP, bodies, flatten, is_tap, scan_counts

_MOVES = {"reshape", "squeeze", "transpose", "convert_element_type", "copy"}
_NONLINEARITIES = {"tanh": "tanh", "logistic": "sigmoid", "erf": "erf"}


@dataclasses.dataclass(frozen=True)
class Layer:
    """A place in the function. One per contraction in the program: a scanned layer is one Layer with `steps`."""

    name: str
    kind: str  # "dense" | "conv" | "attention" | "tap"
    shape: tuple  # of the state, the axis of the examples first
    dtype: Any
    steps: tuple = ()  # lengths of the scans around it, outermost first
    fan_in: int = 0  # how many products make one output; 0 for a tap
    weight_shape: tuple | None = None  # of the operand that is contracted; None without parameters
    nonlinearity: str | None = None  # "tanh" | "sigmoid" | "erf" | "relu" when one follows directly
    units: tuple = (-1,)  # the state's axes that are output units; the others are examples, positions, pixels
    example_axis: int | None = 0  # where the examples' axis lies in the program; None when there is none


@dataclasses.dataclass(frozen=True)
class Mark:
    """What a value is made of: data, or parameters alone (the largest leaf among them), or neither."""

    data: bool = False
    leaf: str | None = None
    size: int = 0  # entries of the leaf that reach this value, not counting copies by broadcasting


DATA = Mark(data=True)


def _merge(marks):
    if any(mark.data for mark in marks):
        return DATA
    return max(marks, key=lambda mark: mark.size, default=Mark())


def spread(program, marks):
    """The mark of every slot, given those of the inputs."""
    known = dict.fromkeys(program.captured, Mark()) | dict(zip(program.inputs, marks))
    for step in program.steps:
        known.update(zip(step.writes, _spread_step(program, step, _marks(known, step.reads))))
    return known


def _spread_step(program, step, marks):
    if step.name == "scan" and step.inner:
        return _marks(_scan_marks(step, marks), step.inner[0].outputs)
    if step.name in REMAT and step.inner:
        return _marks(spread(step.inner[0], marks), step.inner[0].outputs)
    merged = _merge(marks)
    sizes = [math.prod(program.avals[slot].shape) for slot in step.writes]
    return [dataclasses.replace(merged, size=min(merged.size, size)) for size in sizes]


def _scan_marks(step, marks):
    """Marks of a scan's body: what a carry is made of is known once a further step changes nothing."""
    body, (consts, carries) = step.inner[0], scan_counts(step.params)
    sizes = [math.prod(body.avals[slot].shape) for slot in body.inputs]
    marks = [dataclasses.replace(mark, size=min(mark.size, size)) for mark, size in zip(marks, sizes)]
    while True:
        known = spread(body, marks)
        after = _marks(known, body.outputs)[:carries]
        carried = [_merge(pair) for pair in zip(marks[consts : consts + carries], after)]
        if carried == marks[consts : consts + carries]:
            return known
        marks = [*marks[:consts], *carried, *marks[consts + carries :]]


def _marks(known, reads):
    return [known[read] if isinstance(read, int) else Mark() for read in reads]


class Finder:
    """Walks a program and puts its layers at their places."""

    def __init__(self, batch):
        self.batch, self.layers, self.not_entered = batch, [], []

    def search(self, program, known, steps):
        readers = program.readers()
        for step in program.steps:
            marks = _marks(known, step.reads)
            if step.name in CONTRACTIONS:
                self.contraction(program, step, marks, readers, known, steps)
            elif is_tap(step.equation):
                aval = program.avals[step.writes[0]]
                name = step.params["name"].removeprefix(TAP)
                self.put(program, step.writes[0], Layer(name, "tap", aval.shape, aval.dtype, steps), readers)
            elif step.inner:
                self.enter(program, step, marks, readers, known, steps)

    def contraction(self, program, step, marks, readers, known, steps):
        """A layer if one operand is data and the other made of parameters, or if both are data."""
        if not any(mark.data for mark in marks) or not all(mark.data or mark.leaf for mark in marks):
            return
        shapes = [program.avals[slot].shape if isinstance(slot, int) else slot.aval.shape for slot in step.reads]
        weight = next((i for i, mark in enumerate(marks) if not mark.data), None)
        fan_in, example, units = _geometry(step, shapes, weight, self.batch)
        if fan_in is None:
            return
        kind = "conv" if step.name == "conv_general_dilated" else "dense"
        layer = Layer(
            name="attention" if weight is None else marks[weight].leaf,
            kind="attention" if weight is None else kind,
            shape=program.avals[step.writes[0]].shape,
            dtype=program.avals[step.writes[0]].dtype,
            steps=steps,
            fan_in=fan_in,
            weight_shape=None if weight is None else shapes[weight],
            units=units,
            example_axis=example,
        )
        if weight is not None:
            step.weight = (weight, len(self.layers))
        self.put(program, step.writes[0], layer, readers, known)

    def put(self, program, slot, layer, readers, known=None):
        """Place the layer at this slot or, past transpositions and a bias, at a later one."""
        if known is not None:
            slot, layer = _advance(program, slot, layer, readers, known)
        shape = program.avals[slot].shape
        units = tuple(axis % len(shape) for axis in layer.units) if shape else ()
        example = layer.example_axis if shape else None
        if example is not None:  # from here on the state is seen with the examples first
            order = [example, *(axis for axis in range(len(shape)) if axis != example)]
            shape, units = tuple(shape[i] for i in order), tuple(order.index(axis) for axis in units if axis != example)
        follower = _nonlinearity(program, slot, readers)
        dtype = program.avals[slot].dtype
        program.places.setdefault(slot, []).append(len(self.layers))
        program.order.append(len(self.layers))
        self.layers.append(
            dataclasses.replace(
                layer, shape=shape, dtype=dtype, units=units, example_axis=example, nonlinearity=follower
            )
        )

    def enter(self, program, step, marks, readers, known, steps):
        """Look inside scan, remat and cond; for anything else look whether there is a layer, and how many."""
        before = len(self.layers)
        if step.name == "scan":
            self.search(step.inner[0], _scan_marks(step, marks), (*steps, step.params["length"]))
        elif step.name in REMAT or step.name == "cond":
            for body in step.inner:
                self.search(body, spread(body, marks[len(marks) - len(body.inputs) :]), steps)
        else:
            self.outside(program, step, marks, readers, known, steps)
            return
        if len(self.layers) > before:
            step.entered = True
            program.order.append(step)

    def outside(self, program, step, marks, readers, known, steps):
        """A loop of unknown length or a custom rule: not entered; a custom call with one layer is that layer."""
        scout = Finder(self.batch)
        for body in step.inner:
            inner = marks if len(marks) >= len(body.inputs) else [_merge(marks)] * len(body.inputs)
            scout.search(body, spread(body, inner[len(inner) - len(body.inputs) :]), steps)
        weights = [i for i, mark in enumerate(marks) if not mark.data and mark.leaf]
        only = scout.layers[0] if len(scout.layers) == 1 else None
        if step.name in CUSTOM and only and only.weight_shape and only.steps == steps and weights:
            step.weight = (max(weights, key=lambda i: marks[i].size), len(self.layers))
            self.put(program, step.writes[0], dataclasses.replace(only, example_axis=0), readers, known)
        elif scout.layers or any(mark.leaf for mark in marks):
            inside = ", ".join(layer.name for layer in scout.layers) or _merge(marks).leaf or "parameters"
            self.not_entered.append(f"{step.name} holding {inside}")

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


def _geometry(step, shapes, weight, batch):
    """(fan_in, axis of the examples, axes of the units) of a contraction's output; fan_in None: none is contracted."""
    if step.name == "conv_general_dilated":
        numbers = step.params["dimension_numbers"]
        kernel, out = numbers.rhs_spec, numbers.out_spec
        fan_in = math.prod(shapes[1]) // shapes[1][kernel[0]]
        return fan_in, out[0], (out[1],)
    contracted, batched = step.params["dimension_numbers"]
    if not contracted[0]:
        return None, None, None
    fan_in = math.prod(shapes[0][axis] for axis in contracted[0])
    free = [[a for a in range(len(shapes[i])) if a not in (*contracted[i], *batched[i])] for i in (0, 1)]
    first = len(batched[0])
    places = [range(first, first + len(free[0])), range(first + len(free[0]), first + len(free[0]) + len(free[1]))]
    if weight is None:  # attention: batch axes, then those of queries and keys
        examples, units = [*range(first), *places[0]], tuple(places[1])
    else:
        examples, units = [*places[1 - weight], *range(first)], tuple(places[weight])
    sizes = [shapes[0][axis] for axis in batched[0]]
    sizes += [shapes[i][axis] for i in (0, 1) for axis in free[i]]
    example = next((axis for axis in examples if sizes[axis] == batch), examples[0] if examples else None)
    return fan_in, example, units


def _advance(program, slot, layer, readers, known):
    """Past the transposition that follows at once and past a bias: an added parameter, at most one number a unit."""
    end, at = (slot, layer), (slot, layer)
    features = math.prod(program.avals[slot].shape[axis] for axis in layer.units)
    only_transposed = True
    while True:
        step = readers[at[0]][0] if len(readers[at[0]]) == 1 else None
        if step is not None and step.name in _MOVES:
            at = (step.writes[0], _moved(layer_step=step, layer=at[1], program=program))
            only_transposed &= step.name == "transpose"
            if only_transposed:
                end = at
        elif step is not None and step.name in ("add", "add_any"):
            other = [read for read in step.reads if read != at[0]]
            mark = _marks(known, other)[0] if other else DATA
            return (step.writes[0], at[1]) if mark.leaf and 0 < mark.size <= max(features, 1) else end
        else:
            return end


def _moved(layer_step, layer, program):
    """The layer after a step that only moves or casts numbers: its axes follow."""
    before, after = (program.avals[slot].shape for slot in (layer_step.reads[0], layer_step.writes[0]))
    if layer_step.name == "transpose":
        axes = [layer_step.params["permutation"].index(axis) for axis in range(len(before))]
    elif layer_step.name == "squeeze":
        gone = layer_step.params["dimensions"]
        axes = [None if axis in gone else axis - sum(g < axis for g in gone) for axis in range(len(before))]
    elif before == after:
        axes = list(range(len(before)))
    else:  # a reshape: the examples stay first if they were, the units are taken to be last
        kept = layer.example_axis == 0 and bool(after) and before[0] == after[0]
        return dataclasses.replace(layer, example_axis=0 if kept else None, units=(len(after) - 1,) if after else ())
    example = None if layer.example_axis is None else axes[layer.example_axis]
    units = tuple(axes[axis] for axis in layer.units if axes[axis] is not None)
    return dataclasses.replace(layer, example_axis=example, units=units)


def _nonlinearity(program, slot, readers):
    """The name of the elementwise function that alone reads this slot, if it is one of those we know."""
    while len(readers[slot]) == 1 and readers[slot][0] is not None:
        step = readers[slot][0]
        if step.name in _MOVES or step.name == "name":
            slot = step.writes[0]
            continue
        if step.name in CUSTOM:
            body = flatten(next(bodies(step.equation)), [])
            return "relu" if [s.name for s in body.steps] == ["max"] and _has_zero(body.steps[0]) else None
        if step.name == "max" and _has_zero(step):
            return "relu"
        return _NONLINEARITIES.get(step.name)
    return None


def _has_zero(step):
    return any(np.ndim(r.val) == 0 and r.val == 0 for r in step.reads if isinstance(r, jex.Literal))
