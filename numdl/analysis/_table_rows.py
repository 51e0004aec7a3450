"""MEASURED: the lines of a summary: a program walked in order, every operation and every parameter put into one line.

A line begins at each layer (a contraction, a tap), at each lookup in a parameter, at each pooling window, and where
parameters of another module enter; what follows belongs to it until the next begins.
"""

import dataclasses
from typing import Any

from numdl.analysis._operations import operations
from numdl.tracing._axes import read, shape_of
from numdl.tracing._programs import CONTRACTIONS, REMAT, is_tap, scan_counts

_LOOKUPS = {"gather", "dynamic_slice"}
_WINDOWS = {"reduce_window_max": "max", "reduce_window_min": "min", "reduce_window_sum": "sum", "reduce_window": "any"}
_SUMS = {"add", "add_any", "sub"}


@dataclasses.dataclass
class Line:
    """One line, or one line of every step of a scan."""

    name: str
    kind: str
    shape: tuple
    dtype: Any
    mark: tuple | None = None  # (program, slot): where it begins
    steps: tuple = ()
    operations: float = 0
    leaves: dict = dataclasses.field(default_factory=dict)  # leaf -> share of its entries

    def at(self, index, first, sliced, length):
        """The line of one step of a scan: what is scanned is shared out, the rest comes with the first step."""
        leaves = {
            leaf: share / length if leaf in sliced else share
            for leaf, share in self.leaves.items()
            if first or leaf in sliced
        }
        return dataclasses.replace(self, steps=(index, *self.steps), leaves=leaves)


class Walk:
    """Goes through a traced function; `notes` says what could not be counted."""

    def __init__(self, traced):
        self.traced, self.notes = traced, {}

    def lines(self):
        """All lines, the first of which is what comes before any layer."""
        return self.walk(self.traced.program, set())

    def walk(self, program, met):
        """The lines of a program; leaves in `met` are counted already."""
        lines, live = [Line("input", "input", (), None)], program.live()
        begun, waiting = set(), [item for item in program.order if isinstance(item, int)]
        for step in program.steps:
            if id(step) not in live:
                continue
            values = read(program.values, step.reads)
            index = self.layer(program, step, values, waiting, begun)
            entered = [leaf for leaf in self.entering(values) if leaf not in met]
            if index is not None:
                begun.add(index)
                layer = self.traced.layers[index]
                mark = (program, step.writes[0])
                lines.append(Line(layer.name, layer.kind, layer.shape, layer.dtype, mark))
            elif (line := self.other(program, step, values, entered, lines[-1])) is not None:
                lines.append(line)
            if step.entered:
                self.enter(step, values, lines, met)
                continue
            count, notes = operations(step.equation)
            lines[-1].operations += count
            self.notes |= dict.fromkeys(notes)
            if entered and lines[-1].kind == "elementwise":
                lines[-1].shape = shape_of(program, step.writes[0])
            self.meet(lines[-1], entered, met)
        return lines

    def layer(self, program, step, values, waiting, begun):
        """The layer that begins at this step, or None."""
        if step.weight is not None:
            return step.weight[1]
        left = [index for index in waiting if index not in begun]
        held = [index for slot in step.writes for index in program.places.get(slot, ()) if index in left]
        if held:
            return held[0]
        both = step.name in CONTRACTIONS and len(values) == 2 and all(value.data for value in values)
        kinds = ("attention",) if both else ("tap",) if is_tap(step.equation) else ()
        return left[0] if left and self.traced.layers[left[0]].kind in kinds else None

    def other(self, program, step, values, entered, line):
        """A line that begins at a step which is no layer, or None."""
        shape = shape_of(program, step.writes[0])
        mark, dtype = (program, step.writes[0]), getattr(program.avals[step.writes[0]], "dtype", None)
        if step.name in _WINDOWS and any(value.data for value in values):
            return Line(f"window_{_WINDOWS[step.name]}", "window", shape, dtype, mark)
        if not entered or step.inner:
            return None
        path = self.traced.parameters[entered[0]]
        if step.name in _LOOKUPS and values[0].made:
            return Line(path, "embedding", shape, dtype, mark)
        if step.name in _SUMS and "/" not in path:  # a bias that says nothing of its module
            return None
        if {self.module(leaf) for leaf in entered} & {self.module(leaf) for leaf in line.leaves}:
            return None
        if line.kind == "window" and not line.leaves:  # a pooling with a coefficient of its own
            line.name, line.shape = path, shape
            return None
        return Line(path, "elementwise", shape, dtype, mark)

    def entering(self, values):
        """The leaves that meet data here."""
        if not any(value.data for value in values):
            return []
        return [leaf for value in values if value.made for leaf in value.layouts]

    def module(self, leaf):
        """'block/first' of 'block/first/kernel'; a leaf without a module is its own."""
        path = self.traced.parameters[leaf]
        return path.rpartition("/")[0] or path

    def meet(self, line, entered, met):
        for leaf in entered:
            if leaf not in met:
                line.leaves[leaf] = 1.0
                met.add(leaf)

    def enter(self, step, values, lines, met):
        """Inside of a scan, a checkpoint or the branches of a cond."""
        if step.name == "scan":
            self.scan(step, lines, met)
            return
        if step.name not in REMAT:
            self.notes["cond: the lines of all branches are listed, one of them runs"] = None
        for body in step.inner:
            head, *rest = self.walk(body, met)
            _join(lines[-1], head)
            lines += rest

    def scan(self, step, lines, met):
        (body,), length, inside = step.inner, step.params["length"], set(met)
        consts, carries = scan_counts(step.params)
        scanned = read(body.values, body.inputs[consts + carries :])
        sliced = {leaf for value in scanned if value.made for leaf in value.layouts}
        found = self.walk(body, inside)
        met |= inside
        indices = range(length)
        for place, index in enumerate(reversed(indices) if step.params["reverse"] else indices):
            head, *rest = (line.at(index, place == 0, sliced, length) for line in found)
            _join(lines[-1], head)
            lines += rest


def _join(line, head):
    """What comes before the first line of an inner program belongs to the line that is open."""
    line.operations += head.operations
    for leaf, share in head.leaves.items():
        line.leaves[leaf] = line.leaves.get(leaf, 0.0) + share
