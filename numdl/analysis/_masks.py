"""MEASURED: which keys of a softmax a mask closes, followed from how the call makes its logits.

A key is *marked* where a select takes a value that does not come from the scores in place of one that does; where a
term is added, or taken where it is the smaller, that a select, or an array of zeros and numbers whose exponential is 0,
makes low (`_terms`); where an entry is overwritten; or where its weight is multiplied by 0. Marks move with the logits.
"""

import jax
import jax.numpy as jnp

from numdl.analysis._terms import MOVES, SAME, SUMS, either, shape_of
from numdl.tracing._programs import CUSTOM, REMAT, bodies
from numdl.tracing._scalars import is_elementwise

_WRITES = {"scatter", "dynamic_update_slice"}  # an operand, then what is put into it


class Path:
    """From a score to the logits of its softmax: the marks on the way, and what the logits were without them."""

    def __init__(self, house, score):
        self.house, self.program, self.score = house, house.program, score
        self.hot, self.known, self.kinds = {score}, {score: (score, None)}, []
        for step in house.steps:
            if not self.hot.isdisjoint(read for read in step.reads if isinstance(read, int)):
                self.hot.update(step.writes)

    def is_hot(self, read):
        """Whether a read depends on the score."""
        return isinstance(read, int) and read in self.hot

    def at(self, slot):
        """(slot of the value without a mask, slot of its marks or None)."""
        if slot not in self.known:
            step = self.house.writers[slot]
            rule = {"select_n": self._select, "min": self._least}.get(step.name)
            rule = self._written if step.name in _WRITES else self._sum if step.name in SUMS else rule
            self.known[slot] = (rule or self._plain)(slot, step) or self._plain(slot, step)
        return self.known[slot]

    def _say(self, kind):
        if kind not in self.kinds:
            self.kinds.append(kind)

    def _select(self, slot, step):
        which, cases = step.reads[0], step.reads[1:]
        if not any(map(self.is_hot, cases)):
            return slot, None
        found = [self.at(case) if self.is_hot(case) else (case, None) for case in cases]
        hot = list(map(self.is_hot, cases))
        if not all(hot):
            self._say("select")
        own = [mark for _, mark in found if mark is not None]
        if all(hot) and not own and all(bare == case for (bare, _), case in zip(found, cases)):
            return slot, None

        def marks(which, value, *own):
            own = iter(own)
            parts = [
                next(own) if mark is not None else jnp.full(value.shape, 0 if warm else 1, value.dtype)
                for (_, mark), warm in zip(found, hot)
            ]
            return jax.lax.select_n(which, *parts)

        bare = [each for (each, _), warm in zip(found, hot) if warm]
        if len(bare) > 1:
            bare = [self.house.emit(jax.lax.select_n, [which, *(each for each, _ in found)], slot)]
        mark = self.house.emit(marks, [which, slot, *own], slot) if own or not all(hot) else None
        return bare[0], mark

    def _sum(self, slot, step):
        """A sum of logits and a term; None where both depend on the score, or logits are taken away."""
        warm = list(map(self.is_hot, step.reads))
        if all(warm) or (step.name == "sub" and warm[1]):
            return None
        inner, other = step.reads if warm[0] else step.reads[::-1]
        term = self.house.term(other, -1 if step.name == "sub" else 1)
        if term is None:
            return None
        self._say("added term")
        bare, mark = self.at(inner)
        sign = -1 if step.name == "sub" else 1
        without = self.house.emit(
            lambda bare, other, term: bare + jnp.where(term > 0, 0, sign * other).astype(bare.dtype),
            [bare, other, term],
            slot,
        )
        marks = [each for each in (mark, term) if each is not None]
        return without, self.house.emit(either, [slot, *marks], slot)

    def _least(self, slot, step):
        """The smaller of logits and a term that is low where it closes; a cap is the same for all keys."""
        warm = list(map(self.is_hot, step.reads))
        inner, other = step.reads if warm[0] else step.reads[::-1]
        term = None if all(warm) else self.house.term(other)
        if term is None:
            return None
        self._say("minimum")
        bare, mark = self.at(inner)
        return bare, self.house.emit(either, [slot, term, *([] if mark is None else [mark])], slot)

    def _written(self, slot, step):
        """Entries of the logits that are overwritten."""
        update = 2 if step.name == "scatter" else 1
        if not self.is_hot(step.reads[0]) or self.is_hot(step.reads[update]):
            return None
        bare, mark = self.at(step.reads[0])
        self._say(step.name)

        def marks(value, *reads):
            ones = [jnp.ones_like(each) if place == update - 1 else each for place, each in enumerate(reads)]
            return step.call([jnp.zeros_like(value) if mark is None else value, *ones])[0]

        start = step.reads[0] if mark is None else mark
        return bare, self.house.emit(marks, [start, *step.reads[1:]], slot)

    def _plain(self, slot, step):
        """Any other step: the marks of what keeps each number at its place, or moves it."""
        found = {read: self.at(read) for read in step.reads if self.is_hot(read)}
        if all(bare == read and mark is None for read, (bare, mark) in found.items()):
            return slot, None
        place = step.writes.index(slot)
        if step.name == "optimization_barrier":
            return found.get(step.reads[place], (slot, None))
        call = lambda *values: step.call(list(values))[place]  # noqa: E731
        bare = self.house.emit(call, [found[r][0] if self.is_hot(r) else r for r in step.reads], slot)
        return bare, self._marks(slot, step, found, call)

    def _marks(self, slot, step, found, call):
        marks = {read: mark for read, (_, mark) in found.items() if mark is not None}
        if not marks or step.name.startswith(("reduce_", "arg")):
            return None
        if step.name in MOVES:
            return self.house.emit(call, [marks[step.reads[0]], *step.reads[1:]], slot)
        shape = shape_of(self.program, slot)
        if is_elementwise(step.name) or step.name in SAME or _is_elementwise_call(step):
            kept = [mark for read, mark in marks.items() if shape_of(self.program, read) == shape]
            return self.house.emit(either, [slot, *kept], slot) if kept else None
        self._say(f"lost in {step.name}")
        return self.house.emit(lambda value: jnp.full_like(value, jnp.nan), [slot], slot)

    def weighed(self, steps):
        """Slots of the marks of the weights that these steps behind the exponential set to 0."""
        made = [self._zeros(step) for step in steps]
        made = [mark for mark in made if mark is not None]
        if made:
            self._say("weight")
        return made

    def _zeros(self, step):
        warm, end = list(map(self.is_hot, step.reads)), step.writes[0]
        if step.name == "mul" and not all(warm):
            factor = step.reads[warm.index(False)]
            zero = lambda value, factor: jnp.broadcast_to(factor == 0, value.shape).astype(value.dtype)  # noqa: E731
            return self.house.emit(zero, [end, factor], end) if isinstance(factor, int) else None
        if step.name != "select_n" or all(warm[1:]):
            return None

        def zeros(value, which, *cases):
            parts = [
                jnp.full(value.shape, False) if hot else jnp.broadcast_to(case == 0, value.shape)
                for case, hot in zip(cases, warm[1:])
            ]
            return jax.lax.select_n(which, *parts).astype(value.dtype)

        return self.house.emit(zeros, [end, *step.reads], end)


def _is_elementwise_call(step):
    """Whether a call with a rule of its own (relu, softplus) works on each number alone."""
    return step.name in CUSTOM | REMAT and all(map(_is_elementwise_body, bodies(step.equation)))


def _is_elementwise_body(body):
    return all(
        is_elementwise(equation.primitive.name)
        or equation.primitive.name in SAME
        or (equation.primitive.name == "broadcast_in_dim" and not equation.invars[0].aval.shape)
        or (any(True for _ in bodies(equation)) and all(map(_is_elementwise_body, bodies(equation))))
        for equation in getattr(body, "jaxpr", body).eqns
    )
