"""What lies between one layer's state and the next one's input: one elementwise function, or what else.

`paths(program, layers)` follows every value from the inputs on. A value made of data is a `Trail`: the state that it is
a function of, that function, and what came in between that is no elementwise function of one state: a skip, a
normalization, a gate, ... A layer's `Path` is the trail of its data operand. Nothing is told from names.
"""

import dataclasses
import itertools

from numdl.tracing._programs import CONTRACTIONS, CUSTOM, REMAT, bodies, flatten, scan_counts
from numdl.tracing._scalars import evaluate, is_elementwise
from numdl.tracing._trails import (
    HIDDEN,
    KEPT,
    MOVES,
    PARTS,
    Fixed,
    Found,
    Path,
    Trail,
    after,
    composed,
    constant,
    is_after_a_layer,
    moved,
    newest,
    number_of,
    separately,
    side_by_side,
    size_of,
    start,
    still_joined,
    unknown,
)

_REDUCTIONS = ("reduce_", "argm", "cum", "select_and_scatter", "select_and_gather", "top_k", "sort")
_MOST_STEPS = 400  # of one elementwise function: longer ones are followed and not tabulated


def paths(program, layers, parameters):
    """The `Found` of a program; `parameters` are the paths of the leaves that come first among its inputs."""
    walker = _Walker(layers)
    inputs = [
        Fixed(parameters[i], size_of(program, slot), None, "leaf")
        if i < len(parameters)
        else start(("input", i - len(parameters)))
        for i, slot in enumerate(program.inputs)
    ]
    walker.run(program, inputs)
    found = {index: walker.resolved(trail) for index, trail in walker.operands.items()}
    biases = {layer: tuple(added.values()) for layer, added in walker.biases.items()}
    return Found(found, walker.weights, biases, walker.products, walker.reductions)


class _Walker:
    def __init__(self, layers):
        self.layers, self.operands, self.weights, self.biases = layers, {}, {}, {}
        self.custom = set()  # layers that are a call with a rule of its own: what else it does is not known
        self.carries = {}  # source -> (what came in, what a step makes of it)
        self.pairs, self.products, self.reductions = {}, {}, {}  # of sources; the other two as in `Found`
        self.level, self.count, self.small = 0, itertools.count(), {}

    def run(self, program, inputs):
        """The values of the outputs, given those of the inputs."""
        known = {slot: constant(program.constants[i]) for slot, i in program.captured.items()}
        known |= dict(zip(program.inputs, inputs))
        for step in program.steps:
            values = [known[r] if isinstance(r, int) else constant(r.val) for r in step.reads]
            for slot, value in zip(step.writes, self.step(program, step, values)):
                known[slot] = self.placed(program, slot, value)
        return [known[r] if isinstance(r, int) else constant(r.val) for r in program.outputs]

    def placed(self, program, slot, value):
        """From a layer's state on, the state is the source."""
        for index in program.places.get(slot, ()):
            if self.layers[index].kind != "tap" and isinstance(value, Trail):
                inside = frozenset({"a custom rule"} if index in self.custom else ())
                if value.source in self.pairs:
                    self.products[index] = self.pairs[value.source]
                value = Trail(index, between=inside, upstream=value.upstream | {index})
        return value

    def step(self, program, step, values):
        trails = [value for value in values if isinstance(value, Trail)]
        if not trails:
            return self.fixed(program, step, values)
        if step.name in CONTRACTIONS or (step.weight is not None and not step.entered):
            return self.contraction(program, step, values, trails)
        if step.name == "scan":
            return self.scan(step, values)
        if step.name == "cond":
            branches = [self.run(body, values[1:]) for body in self.inner(step)]
            return [self.mixed(each, "branch") for each in zip(*branches)]
        if step.name in REMAT or step.name in CUSTOM:
            body = self.inner(step)[0]
            return self.run(body, values[len(values) - len(body.inputs) :])
        return self.plain(program, step, values, trails)

    def inner(self, step):
        if step.inner:
            return step.inner
        found = list(bodies(step.equation))
        for jaxpr in found:
            if id(jaxpr) not in self.small:
                self.small[id(jaxpr)] = jaxpr, flatten(jaxpr, [])
        return [self.small[id(jaxpr)][1] for jaxpr in found]

    def fixed(self, program, step, values):
        """What is computed from parameters and constants."""
        numbers = [value.number for value in values]
        if is_elementwise(step.name) and values and None not in numbers:
            return [Fixed(number=number_of(evaluate(step.name, step.params, numbers))) for _ in step.writes]
        largest = max(values, key=lambda v: v.size if v.leaf else -1, default=Fixed())
        sizes = [size_of(program, slot) for slot in step.writes]
        shapes = [[_shape(program, slot) for slot in slots] for slots in (step.reads, step.writes)]
        if step.name in KEPT and len(values) == 1:
            kept = still_joined(step, largest, shapes[0][0], shapes[1][0])
            return [kept._replace(size=min(kept.size, size)) for size in sizes]
        joined = side_by_side(step, values, shapes[0])
        if joined:
            return [Fixed(largest.leaf, sizes[0], None, "joined", joined, largest.levels)]
        if step.name in PARTS and values[0].leaf:
            made = {"leaf": "part", "joined": "derived"}.get(values[0].made, values[0].made)
            return [values[0]._replace(size=min(values[0].size, size), made=made, joined=None) for size in sizes]
        whole = [value.leaf and value.made not in ("derived", "joined") for value in values]
        if step.name in ("mul", "div") and whole[0] and numbers[1] is not None:
            return [values[0]._replace(made="scaled") for _ in sizes]
        if step.name == "mul" and whole[1] and numbers[0] is not None:
            return [values[1]._replace(made="scaled") for _ in sizes]
        merged = max((value.size for value in values), default=0)
        sizes = [min(size, merged) for size in sizes] if is_elementwise(step.name) else sizes
        return [Fixed(largest.leaf, size, levels=largest.levels) for size in sizes]

    def contraction(self, program, step, values, trails):
        """A layer's operand; or a product with something fixed that is no parameter, or of data with data."""
        index = step.weight[1] if step.weight is not None else None
        if index is None:
            known = any(isinstance(value, Fixed) and value.leaf for value in values)
            label = "attention" if len(trails) > 1 else "a layer not entered" if known else "a fixed matrix"
            made = self.hiding(values, label)
            self.pairs[made.source] = tuple(trails)
            return [made]
        if step.name not in CONTRACTIONS:
            self.custom.add(index)
        operand = trails[0] if len(trails) == 1 else self.mixed(trails, "several inputs")
        self.operands[index], self.weights[index] = operand, separately(step, values[step.weight[0]])
        made = Trail(index, upstream=operand.upstream | {index})
        return [made] + [self.mixed([made], step.name) for _ in step.writes[1:]]

    def plain(self, program, step, values, trails):
        name, first = step.name, trails[0]
        if name == "gather":
            return [self.gathered(step, values)]
        if name in MOVES and name != "pad" and len(values) == len(step.writes):
            return [value if isinstance(value, Fixed) else moved(value, step) for value in values]
        if name in MOVES | PARTS and values[0] is first and len(trails) == 1:
            at = tuple(self.at(value) for value in values[1:])
            return [moved(first, step, (place, at)) for place, _ in enumerate(step.writes)]
        if is_elementwise(name):
            return [self.elementwise(program, step, values, trails)]
        if name.startswith(_REDUCTIONS) and len(trails) == 1:
            self.reductions.setdefault(first.source, (name, first.function))
            form = (*first.form, (name, str(step.params.get("axes", step.params.get("axis"))), next(self.count)))
            reduced = dataclasses.replace(first, form=form, reduced=True, between=first.between | {"pooling"})
            return [reduced for _ in step.writes]
        label = {"concatenate": "concatenation", "dynamic_update_slice": "concatenation", "while": "a loop"}
        return [self.hiding(values, label.get(name, name)) for _ in step.writes]

    def gathered(self, step, values):
        """Entries of data at fixed places are a part; entries of a table at places that x says are a new input."""
        operand, indices = values[:2]
        if isinstance(operand, Trail):
            fixed = isinstance(indices, Fixed)
            return moved(operand, step, self.at(indices)) if fixed else self.mixed(values, "gather")
        source = ("lookup", operand.leaf)
        return Trail(source, upstream=indices.upstream | {source})

    def at(self, value):
        """Where a cut begins: two of which this differs, or is not known, are not the same numbers."""
        return next(self.count) if value.number is None else value.number

    def elementwise(self, program, step, values, trails):
        """The same function of the same value goes on; anything else is named."""
        own = [trail for trail in trails if trail.source == trails[0].source]
        alike = len(own) == len(trails) and len({trail.form for trail in trails}) == 1
        if not alike:
            return self.combined(step, trails)
        between, first = frozenset().union(*(trail.between for trail in trails)), trails[0]
        if step.name == "stop_gradient" and not first.reduced:
            between |= {"a stopped gradient"}
        arguments = []
        for value in values:
            if isinstance(value, Trail):
                arguments.append((value.function, None))
            elif value.number is not None:
                arguments.append((None, value.number))
            else:
                label = self.of_parameter(step, first, value)
                if label is None:  # a bias, or the affine part of a normalization
                    return dataclasses.replace(first, between=between)
                return dataclasses.replace(first, between=between | {label})
        if first.reduced:  # the mean's 1 / n and the like are no activation
            return dataclasses.replace(first, between=between)
        steps = 1 + sum(trail.steps for trail in trails)
        function = composed(step, values, arguments) if steps <= _MOST_STEPS else unknown
        return dataclasses.replace(first, function=function, steps=steps, between=between)

    def of_parameter(self, step, trail, value):
        """What an elementwise step with a fixed array does to the chain; None: nothing."""
        sums = step.name in ("add", "add_any", "sub")
        if sums and isinstance(trail.source, int) and trail.function is None and not trail.between and value.leaf:
            layer = self.layers[trail.source]
            shape, units = layer.shape, 1
            for axis in layer.units:
                units *= shape[axis]
            if value.size <= units and step.name != "sub":
                self.biases.setdefault(trail.source, {})[id(step)] = value
                return None
        affine = sums or step.name in ("mul", "div")
        if value.leaf and (trail.reduced or (affine and trail.function is None and "normalization" in trail.between)):
            return None
        if value.leaf is None or not affine:
            return "a fixed array"
        return "an added parameter" if sums else "a scale"

    def combined(self, step, trails):
        """Values of different sources, or of different parts of one, meet."""
        whole = [trail for trail in trails if not trail.reduced]
        if not whole:
            return dataclasses.replace(self.mixed(trails, None), reduced=True)
        reduced = [trail for trail in trails if trail.reduced]
        if reduced and all(newest(trail) & each.upstream for trail in reduced for each in whole):
            made = self.mixed(trails, "normalization")
            return dataclasses.replace(made, between=made.between - {"pooling"})
        if step.name not in ("add", "add_any", "sub"):
            return self.mixed(trails, "gate" if step.name in ("mul", "div") else step.name)
        later = any(one.source in other.upstream for one in trails for other in trails if other is not one)
        return self.mixed(trails, "skip" if later else "a sum of layers")

    def hiding(self, values, label):
        """A new value of several; with a parameter among them, one that comes after a layer of no index."""
        made = self.mixed(values, label)
        known = any(isinstance(value, Fixed) and value.leaf for value in values)
        return dataclasses.replace(made, upstream=made.upstream | {HIDDEN}) if known else made

    def mixed(self, values, label):
        """A new value of several; `label` says what became of the chain."""
        trails = [value for value in values if isinstance(value, Trail)]
        if not trails:
            return max(values, key=lambda value: value.size)
        if label == "branch" and len({id(trail) for trail in trails}) == 1 and len(trails) == len(values):
            return trails[0]
        # What happens to x before the first layer is no matter of the chain.
        counted = [trail for trail in trails if is_after_a_layer(trail)] or trails
        between = frozenset().union(*(trail.between for trail in counted)) | ({label} if label else set())
        source = ("mix", next(self.count))
        upstream = frozenset().union(*(trail.upstream for trail in trails)) | {source}
        return Trail(source, between=between, upstream=upstream)

    def scan(self, step, values):
        """One pass of the body; a carry that is data is a source of its own until the body is known."""
        body, (consts, carries) = self.inner(step)[0], scan_counts(step.params)
        scan, initial = next(self.count), values[consts : consts + carries]
        rest = [self.step_of(value, step.params["length"]) for value in values[consts + carries :]]
        moving = {i for i, value in enumerate(initial) if isinstance(value, Trail)}
        before = {layer: dict(added) for layer, added in self.biases.items()}
        while True:
            # A pass with a carry that turns out to be data took what it makes for parameters.
            self.biases = {layer: dict(added) for layer, added in before.items()}
            carried = [start(("carry", scan, i)) if i in moving else initial[i] for i in range(carries)]
            carried = [
                dataclasses.replace(c, upstream=c.upstream | v.upstream) if isinstance(v, Trail) else c
                for c, v in zip(carried, initial)
            ]
            self.level += 1
            outputs = self.run(body, [*values[:consts], *carried, *rest])
            self.level -= 1
            more = {i for i, value in enumerate(outputs[:carries]) if isinstance(value, Trail)} - moving
            if not more:
                break
            moving |= more
        for i in moving:
            self.carries[("carry", scan, i)] = initial[i], outputs[i]
        return [self.outside(value) for value in outputs]

    def step_of(self, value, length):
        """One step's part of what is scanned over."""
        if isinstance(value, Trail):
            return dataclasses.replace(value, form=(*value.form, ("step",)))
        size, levels = max(value.size // max(length, 1), 1), (*value.levels, self.level)
        if value.joined is None:
            return value._replace(size=size, levels=levels)
        axis, pieces = value.joined
        made, joined = ("joined", (axis - 1, pieces)) if axis else ("derived", None)
        return value._replace(size=size, levels=levels, made=made, joined=joined)

    def outside(self, value):
        """A body's output as it is seen after the scan: a carry that was handed on is what came in."""
        if not isinstance(value, Trail) or value.source not in self.carries:
            return value
        initial = self.carries[value.source][0]
        if isinstance(initial, Fixed):
            return dataclasses.replace(value, source=("mix", next(self.count)))
        return after(value, initial)

    def resolved(self, trail, seen=frozenset()):
        """The `Path` of an operand: a carry is what the step before made of it, at first what came in."""
        starts = not is_after_a_layer(trail)
        plain = Path(trail.source, trail.function, trail.between, starts)
        if trail.source not in self.carries:
            return self.later(trail, plain)
        if trail.source in seen:
            return plain
        initial, made = self.carries[trail.source]
        seen = seen | {trail.source}
        first = None
        if isinstance(initial, Trail):  # in the first step no carry was made yet
            came = after(trail, initial)
            came = dataclasses.replace(came, upstream=initial.upstream | trail.upstream - {trail.source})
            first = self.resolved(came, seen)
        if isinstance(made, Fixed) or (made.source == trail.source and made.function is None and not made.between):
            return first or plain  # handed on unchanged
        return self.resolved(after(trail, made), seen)._replace(first=first)

    def later(self, trail, plain):
        """The path of a mixture with carries in it: from the second step on, what a step made of these came before."""
        made, reached, left = [], set(trail.upstream), list(trail.upstream)
        while left:
            source = left.pop()
            value = self.carries.get(source, (None, None))[1]
            if isinstance(value, Trail):
                made.append(value)
                left += value.upstream - reached
                reached |= value.upstream
        if isinstance(trail.source, int) or not made or not any(isinstance(source, int) for source in reached):
            return plain
        between = frozenset().union(trail.between, *(each.between for each in made))
        initial = [self.carries[source][0] for source in trail.upstream if source in self.carries]
        came = [each.between for each in initial if isinstance(each, Trail) and is_after_a_layer(each)]
        first = plain._replace(between=frozenset().union(trail.between, *came))
        return plain._replace(between=between, starts=False, first=first)


def _shape(program, read):
    aval = program.avals[read] if isinstance(read, int) else read.aval
    return tuple(getattr(aval, "shape", ()))
