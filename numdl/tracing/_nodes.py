"""A traced call as one graph of values: inner jits, checkpoints, custom rules and the bodies of scans written out.

A scan's body stands there once. What is no function of the values of its own step is a node that nothing is concluded
from: `OPAQUE`. A value that is the same in every step is the value outside.
"""

import numpy as np

from numdl.tracing._programs import CUSTOM, REMAT, bodies, flatten, scan_counts

# A carry and what a step makes of it, steps put together, branches: of these only what they depend on is known.
OPAQUE = frozenset(("carry", "carried", "stacked", "branch"))


class Node:
    """One value."""

    def __init__(self, name, inputs, shape, params=None, place=0, value=None, leaf=None, data=False):
        self.name, self.inputs, self.shape, self.place = name, inputs, tuple(shape), place
        self.params, self.value, self.leaf = params or {}, value, leaf  # place: which output of its step
        self.data = data or any(each.data for each in inputs)  # depends on x
        self.made = leaf is not None or any(each.made for each in inputs)  # depends on parameters


class Graph:
    """`nodes` in call order, `outputs`, the node of each layer's state, the ids of nodes that an output depends on."""

    def __init__(self, program, parameters):
        self.nodes, self.layers, self.inner = [], {}, {}
        inputs = [self.start(program, i, slot, parameters) for i, slot in enumerate(program.inputs)]
        self.outputs = self.run(program, inputs)
        self.live = self.reached()

    def start(self, program, place, slot, parameters):
        """A leaf of the parameters, or of x."""
        shape = getattr(program.avals[slot], "shape", ())
        known = place < len(parameters)
        return self.put("leaf", (), shape, leaf=parameters[place]) if known else self.put("x", (), shape, data=True)

    def put(self, name, inputs, shape, **more):
        self.nodes.append(Node(name, tuple(inputs), shape, **more))
        return self.nodes[-1]

    def run(self, program, inputs):
        """The nodes of the outputs, given those of the inputs."""
        known = {slot: self.constant(program.constants[i]) for slot, i in program.captured.items()}
        known |= dict(zip(program.inputs, inputs))
        for step in program.steps:
            reads = [known[r] if isinstance(r, int) else self.constant(r.val) for r in step.reads]
            for slot, node in zip(step.writes, self.step(program, step, reads)):
                known[slot] = node
                self.layers.update(dict.fromkeys(program.places.get(slot, ()), node))
        return [known[r] if isinstance(r, int) else self.constant(r.val) for r in program.outputs]

    def constant(self, value):
        plain = isinstance(getattr(value, "dtype", np.dtype(float)), np.dtype)
        return self.put("constant", (), np.shape(value), value=np.asarray(value) if plain else None)

    def step(self, program, step, reads):
        if step.name == "scan":
            return self.scan(step, reads)
        if step.name == "cond":
            every = zip(*(self.run(body, reads[1:]) for body in self.bodies(step)))
            return [self.put("branch", (reads[0], *each), each[0].shape) for each in every]
        if step.name in REMAT or step.name == "custom_jvp_call":
            body = self.bodies(step)[0]
            return self.run(body, reads[len(reads) - len(body.inputs) :])
        # A rule of its own for gradients says nothing of how they go with a leaf's size.
        name = "branch" if step.name in CUSTOM else step.name
        shapes = [getattr(program.avals[slot], "shape", ()) for slot in step.writes]
        return [self.put(name, reads, shape, params=step.params, place=i) for i, shape in enumerate(shapes)]

    def bodies(self, step):
        """The programs inside, flattened once."""
        if not step.inner and id(step) not in self.inner:
            self.inner[id(step)] = [flatten(body, []) for body in bodies(step.equation)]
        return step.inner or self.inner[id(step)]

    def scan(self, step, reads):
        body, (consts, carries) = self.bodies(step)[0], scan_counts(step.params)
        initial = reads[consts : consts + carries]
        same = [body.outputs[i] == body.inputs[consts + i] for i in range(carries)]
        carried = [one if kept else self.put("carry", (one,), one.shape, data=True) for one, kept in zip(initial, same)]
        rest = [self.put("step", (one,), one.shape[1:]) for one in reads[consts + carries :]]
        made = self.run(body, [*reads[:consts], *carried, *rest])
        ends = [one if kept else self.put("carried", (end,), end.shape) for one, kept, end in zip(initial, same, made)]
        length = step.params["length"]
        return ends + [self.put("stacked", (one,), (length, *one.shape)) for one in made[carries:]]

    def reached(self):
        left, live = [*self.outputs, *(node for node in self.nodes if node.name == "carried")], set()
        while left:
            node = left.pop()
            if id(node) not in live:
                live.add(id(node))
                left += node.inputs
        return live
