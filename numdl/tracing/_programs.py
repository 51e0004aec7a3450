"""A jaxpr as a list of steps: inner jits inlined, one slot for every value, inner programs where a layer may lie."""

import collections
import dataclasses

import jax.extend.core as jex
import numpy as np

TAP = "numdl:"
_INLINED = {"jit", "pjit", "closed_call", "core_call"}
REMAT = {"remat", "remat2", "checkpoint"}
CUSTOM = {"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"}
CONTRACTIONS = {"dot_general", "conv_general_dilated"}


class Step:
    """One equation: a slot that it reads or writes is an int, anything else that it reads is a literal."""

    def __init__(self, equation, reads, writes, debug_info):
        self.equation, self.reads, self.writes, self.debug_info = equation, reads, writes, debug_info
        self.name, self.params = equation.primitive.name, equation.params
        self.inner, self.entered, self.weight = (), False, None  # programs; rebuilt when run; (operand, layer)
        self.more = 0  # constants that a scan's body reads beyond those of the equation

    def call(self, values):
        """The equation as it is, with whatever rule it has; what nobody reads is computed, too: it may be a state."""
        results = [jex.Var(v.aval) if isinstance(v, jex.DropVar) else v for v in self.equation.outvars]
        equation = self.equation.replace(outvars=results)
        variables = {v: value for v, value in zip(equation.invars, values) if not isinstance(v, jex.Literal)}
        jaxpr = jex.Jaxpr((), list(variables), results, [equation], equation.effects, self.debug_info)
        return jex.jaxpr_as_fun(jex.ClosedJaxpr(jaxpr, ()))(*variables.values())


class Computed:
    """A step that no equation stands for: function(values read) -> the value written, which may be any object."""

    def __init__(self, function, reads, write):
        self.function, self.reads, self.writes = function, list(reads), [write]
        self.name, self.params, self.equation = "computed", {}, None
        self.inner, self.entered, self.weight = (), False, None

    def call(self, values):
        """The value, as the only one that is written."""
        return [self.function(*values)]


@dataclasses.dataclass
class Program:
    """A jaxpr with its inner jits inlined, every value in a slot of its own."""

    constants: list  # shared by all programs of one trace
    steps: list = dataclasses.field(default_factory=list)
    inputs: list = dataclasses.field(default_factory=list)
    outputs: list = dataclasses.field(default_factory=list)
    avals: list = dataclasses.field(default_factory=list)  # of each slot
    captured: dict = dataclasses.field(default_factory=dict)  # slot -> index into constants
    places: dict = dataclasses.field(default_factory=dict)  # slot -> the layers whose state it holds
    watched: dict = dataclasses.field(default_factory=dict)  # slot -> the layers whose nonlinearity it enters
    values: dict = dataclasses.field(default_factory=dict)  # of each slot: what it is made of
    writers: dict = dataclasses.field(default_factory=dict)  # slot -> the step that writes it, once it was asked for
    order: list = dataclasses.field(default_factory=list)  # layers and entered steps, in call order

    def slot(self, aval):
        self.avals.append(aval)
        return len(self.avals) - 1

    def writer(self, slot):
        """The step that writes a slot; None for an input."""
        if len(self.writers) < len(self.steps):
            self.writers.update((write, step) for step in self.steps for write in step.writes)
        return self.writers.get(slot)

    def live(self, unread=()):
        """The ids of the steps that an output depends on: not those of running statistics that are thrown away.

        unread : set of int     places of outputs that nobody reads
        """
        wanted, steps = {slot for slot in self.wanted(unread) if isinstance(slot, int)}, set()
        for step in reversed(self.steps):
            if not wanted.isdisjoint(step.writes):
                wanted.update(slot for slot in step.reads if isinstance(slot, int))
                steps.add(id(step))
        return steps

    def wanted(self, unread):
        """The outputs but those at the places that nobody reads."""
        return [slot for place, slot in enumerate(self.outputs) if place not in unread]

    def readers(self, unread=()):
        """slot -> the steps that read it and of which an output depends; the outputs count as one, None."""
        readers, live = collections.defaultdict(list), self.live(unread)
        steps = [(step, step.reads) for step in self.steps if id(step) in live]
        for owner, reads in [*steps, (None, self.wanted(unread))]:
            for read in {r for r in reads if isinstance(r, int)}:
                readers[read].append(owner)
        return readers


def flatten(closed, constants, held=()):
    """The program of a closed jaxpr; arrays that it closed over are appended to `constants`.

    The first inputs are the arrays `held`: they are constants as well, before all others.
    """
    program = Program(constants)
    slots = [program.slot(aval) for aval in closed.in_avals]
    program.captured = {slot: len(constants) + i for i, slot in enumerate(slots[: len(held)])}
    constants.extend(held)
    program.inputs = slots[len(held) :]
    program.outputs = _inline(program, closed, slots)
    return program


def _inline(program, closed, arguments):
    jaxpr = getattr(closed, "jaxpr", closed)
    where = dict(zip(jaxpr.invars, arguments))
    for variable, value in zip(jaxpr.constvars, getattr(closed, "consts", ())):
        where[variable] = program.slot(variable.aval)
        program.captured[where[variable]] = len(program.constants)
        program.constants.append(value)
    for equation in jaxpr.eqns:
        reads = [v if isinstance(v, jex.Literal) else where[v] for v in equation.invars]
        if equation.primitive.name in _INLINED:
            writes = _inline(program, next(bodies(equation)), reads)
        else:
            writes = [program.slot(v.aval) for v in equation.outvars]
            program.steps.append(Step(equation, reads, writes, jaxpr.debug_info))
            if _interesting(equation):
                inner = bodies(equation)
                program.steps[-1].inner = tuple(flatten(body, program.constants) for body in inner)
        where.update(zip(equation.outvars, writes))
    return [v if isinstance(v, jex.Literal) else where[v] for v in jaxpr.outvars]


def bodies(equation):
    """The jaxprs in an equation's parameters, closed or not (from jax 0.11 on the two are one class)."""
    for value in equation.params.values():
        for body in value if isinstance(value, tuple | list) else (value,):
            if isinstance(body, jex.Jaxpr | jex.ClosedJaxpr):
                yield body


def _interesting(equation):
    """Whether a contraction or a tap lies anywhere inside."""
    return any(
        inner.primitive.name in CONTRACTIONS or is_tap(inner) or _interesting(inner)
        for body in bodies(equation)
        for inner in getattr(body, "jaxpr", body).eqns
    )


def is_tap(equation):
    """Whether this equation is a value's name given by `tap`."""
    return equation.primitive.name == "name" and equation.params["name"].startswith(TAP)


def read_from(slots, read):
    """What a step reads: a slot's value, or a literal as an array of its dtype."""
    return slots[read] if isinstance(read, int) else np.asarray(read.val, read.aval.dtype)


def scan_counts(params):
    """Numbers of constants and carries; jax 0.11 renamed the parameters that say so."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    constants, carries, _ = params["ft_in"].unpack()
    return len(list(constants)), len(list(carries))


def unread(step, readers):
    """The places of a body's outputs that nobody reads behind its step; what a scan carries its next step reads."""
    carries = scan_counts(step.params)[1] if step.name == "scan" else 0
    return {place for place, write in enumerate(step.writes) if place >= carries and not readers[write]}


def calls(program, at):
    """(layer, step indices) in call order: a scan's steps one after the other, the last first if it is reversed."""
    for item in program.order:
        if isinstance(item, int):
            yield item, at
        elif item.name == "scan":
            indices = range(item.params["length"])
            for index in reversed(indices) if item.params["reverse"] else indices:
                yield from calls(item.inner[0], (*at, index))
        else:
            for body in item.inner:
                yield from calls(body, at)
