"""MEASURED: a program whose values get marks, and which keys a term closes that is added to logits.

A mark is a number: 1 where a key is marked, 0 where not, and nan where an added array has graded numbers beside such of
which the exponential is 0, so that its mask cannot be told from its bias. Marks move with the term through reshapes,
casts, scans, checkpoints and branches.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from numdl import precision
from numdl.tracing._programs import Computed, scan_counts

SUMS = {"add", "add_any", "sub"}
SAME = {"copy", "name", "stop_gradient", "reduce_precision", "optimization_barrier", "convert_element_type"}
MOVES = {
    "reshape",
    "squeeze",
    "transpose",
    "broadcast_in_dim",
    "expand_dims",
    "rev",
    "slice",
    "dynamic_slice",
    "tile",
    "split",
    *SAME,
}


def shape_of(program, read):
    """The shape of what is read, a literal's too."""
    return tuple(getattr(program.avals[read] if isinstance(read, int) else read.aval, "shape", ()))


def either(value, *marks):
    """Marks of this value where any of these marks it; nan stays."""
    found = jnp.zeros_like(value)
    for mark in marks:
        found = jnp.maximum(found, jnp.broadcast_to(mark, value.shape).astype(value.dtype))
    return found


class House:
    """A program with the marks of its values, and the program around it in which it is a step's body."""

    def __init__(self, program, outer=None, step=None):
        self.program, self.outer, self.step = program, outer, step
        self.steps = list(program.steps)
        self.writers = {write: each for each in self.steps for write in each.writes}
        self.added = {}  # (slot, sign) -> the slot of its marks
        self.origins = dict(self._origins()) if outer else {}
        self.trained = self._trained()

    def _origins(self):
        """(slot, (how, what the step around reads for it)) of each input: 'each' is one of a stack."""
        step, inputs = self.step, self.program.inputs
        if step.name != "scan":
            reads = step.reads[1:] if step.name == "cond" else step.reads
            yield from ((slot, ("whole", read)) for slot, read in zip(inputs, reads))
            return
        consts, carries = scan_counts(step.params)
        for place, (slot, read) in enumerate(zip(inputs, step.reads)):
            if place < consts or (place < consts + carries and self.program.outputs[place - consts] == slot):
                yield slot, ("whole", read)  # a carry that is handed on as it came is a constant
            elif place >= consts + carries:
                yield slot, ("each", read)

    def _trained(self):
        """Slots of real numbers that parameters come into; a state that a loop carries is taken for one."""
        found = {slot for slot, value in self.program.values.items() if value.made}
        for slot in self.program.inputs if self.outer else ():
            origin = self.origins.get(slot, (None, None))[1]
            if slot not in self.origins or (isinstance(origin, int) and origin in self.outer.trained):
                found.add(slot)
        found = {slot for slot in found if _is_real(self.program, slot)}
        for step in self.steps:
            if not found.isdisjoint(read for read in step.reads if isinstance(read, int)):
                found.update(write for write in step.writes if _is_real(self.program, write))
        return found

    def emit(self, function, reads, behind):
        """A slot for function(values of these reads), computed right behind this slot."""
        steps, slot = self.program.steps, self.program.slot(None)
        step = self.writers.get(behind)
        place = 0 if step is None else next(i for i, each in enumerate(steps) if each is step) + 1
        while place < len(steps) and isinstance(steps[place], Computed):
            place += 1
        steps.insert(place, Computed(function, reads, slot))
        return slot

    # ---- terms that are added to logits ------------------------------------------------------------------------------

    def term(self, read, sign=1):
        """The slot of the marks of an added term, in its shape and dtype; None where it can be no mask."""
        if not isinstance(read, int) or math.prod(shape_of(self.program, read)) == 1:
            return None
        if (read, sign) not in self.added:
            self.added[read, sign] = self._term(read, sign, self.writers.get(read))
        return self.added[read, sign]

    def _term(self, read, sign, step):
        if step is None:
            return self._given(read, sign)
        if step.name == "select_n":
            return self._chosen(read, sign, step)
        if step.name in SUMS:
            signs = (sign, -sign if step.name == "sub" else sign)
            marks = [self.term(each, one) for each, one in zip(step.reads, signs)]
            marks = [mark for mark in marks if mark is not None]
            return self.emit(either, [read, *marks], read) if marks else None
        if step.name == "neg":
            return self.term(step.reads[0], -sign)
        place = step.writes.index(read)
        if step.name == "optimization_barrier":
            return self.term(step.reads[place], sign)
        if step.name in MOVES and _is_real(self.program, step.reads[0]):
            mark = self.term(step.reads[0], sign)
            moved = lambda *values: step.call(list(values))[place]  # noqa: E731
            return None if mark is None else self.emit(moved, [mark, *step.reads[1:]], read)
        if step.name in ("concatenate", "stack"):
            return self._together(read, sign, step)
        return self._by_values(read, sign)

    def _together(self, read, sign, step):
        """Arrays side by side, of which some have marks."""
        marks = [self.term(each, sign) for each in step.reads]
        own = [each if mark is None else mark for each, mark in zip(step.reads, marks)]

        def joined(*values):
            return step.call([v if mark is not None else jnp.zeros_like(v) for v, mark in zip(values, marks)])[0]

        return self.emit(joined, own, read) if any(mark is not None for mark in marks) else None

    def _given(self, read, sign):
        """Marks of an input: those that the program around it gives, threaded in."""
        how, origin = self.origins.get(read, (None, None))
        if how is None:
            return self._by_values(read, sign)
        mark = self.outer.term(origin, sign)
        if mark is None:
            return None
        step, slot = self.step, self.program.slot(None)
        if step.name == "cond":
            for body in step.inner:
                body.inputs.append(slot if body is self.program else body.slot(None))
            step.reads.append(mark)
        else:
            place = len(step.reads)
            if step.name == "scan" and how == "whole":
                place = scan_counts(step.params)[0] + step.more
                step.more += 1
            self.program.inputs.insert(place, slot)
            step.reads.insert(place, mark)
        return slot

    def _chosen(self, read, sign, step):
        """A select among terms: marked is the case whose numbers vanish beside those of the others."""
        which, cases = step.reads[0], step.reads[1:]
        nested = [self.term(case, sign) for case in cases]
        own = [mark for mark in nested if mark is not None]

        def marks(which, *values):
            values, inner = values[: len(cases)], iter(values[len(cases) :])
            values = [jnp.asarray(value) for value in values]
            dtype = jnp.result_type(*values)
            tops = [jnp.max(sign * value) for value in values]
            found = []
            for place, value in enumerate(values):
                others = jnp.max(jnp.stack([top for i, top in enumerate(tops) if i != place]))
                low = _vanishes(sign * value, others).astype(dtype)
                found.append(low if nested[place] is None else either(value, next(inner), low))
            return jax.lax.select_n(which, *found)

        return self.emit(marks, [which, *cases, *own], read)

    def _by_values(self, read, sign):
        """Marks of an array that is not followed further: zeros and numbers whose exponential is 0, nothing else."""
        trained = self.program.values[read].made
        if not _is_real(self.program, read) or (read in self.trained and not trained):
            return None
        if not trained and self._counted(read, set()):
            return None
        return self.emit(lambda term: _two_levels(sign * jnp.asarray(term), trained), [read], read)

    def _counted(self, read, seen):
        """Whether numbers of positions (an iota) come into this term other than by a comparison."""
        step = self.writers.get(read) if isinstance(read, int) else None
        if step is None or read in seen or not _is_number(self.program, read):
            return False
        seen.add(read)
        return step.name == "iota" or any(self._counted(each, seen) for each in step.reads)


def _is_real(program, read):
    return jnp.issubdtype(_dtype(program, read), jnp.floating)


def _is_number(program, read):
    return not jnp.issubdtype(_dtype(program, read), jnp.bool_)


def _dtype(program, read):
    aval = program.avals[read] if isinstance(read, int) else read.aval
    return getattr(aval, "dtype", np.dtype(bool))


def _vanishes(value, top):
    """Whether the exponential of a number is rounded away beside that of a larger one."""
    value, top = (jnp.asarray(each, precision.wide(each.dtype)) for each in (value, top))
    return (value < top) & (value <= top + math.log(jnp.finfo(value.dtype).eps))


def _two_levels(term, trained):
    """Marks of an added array by its numbers. `trained`: it is made of parameters, so that graded ones are a bias."""
    wide = term.astype(precision.wide(term.dtype))
    top = jnp.maximum(jnp.max(wide), 0)
    gone, lowest = jnp.exp(wide - top) == 0, term <= jnp.finfo(term.dtype).min / 2
    doubt = 0.0 if trained else jnp.where(jnp.any(gone & ~lowest), jnp.nan, 0.0)
    graded = jnp.where(lowest, 1.0, 0.0) + doubt
    return jnp.where(jnp.all(gone | (wide == top)), gone.astype(float), graded).astype(term.dtype)
