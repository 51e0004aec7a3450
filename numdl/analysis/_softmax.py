"""MEASURED: the softmax behind each score of an attention: where it stands in the program, what enters it.

From a contraction of data with data on, past scales, masks, biases and casts, to the exponential of the logits less the
largest of their row, or to exponentials that are divided by their sum. A row's shift that knows more than the row (of
blocks, of a sink) is not taken for a softmax. Which keys are closed is followed on the way: `_masks`.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from numdl import checks, precision, tracing
from numdl.analysis._masks import Path
from numdl.analysis._terms import MOVES, SAME, SUMS, House, either, shape_of
from numdl.tracing._geometry import Sight
from numdl.tracing._programs import CONTRACTIONS
from numdl.tracing._scalars import is_elementwise

_LONGEST = 40  # steps from a score to its softmax
_ENDS = {"dot_general", "conv_general_dilated", "scan", "while", "cond"}
_EXPONENTIALS = {"exp": 1.0, "exp2": math.log(2)}


def measured(apply, params, x, examples, measure, columns):
    """[names, masks, *columns]: what `measure(found, axes)` makes of each softmax, an entry for each step of a scan."""
    checks.accepts("apply", apply, 2, "apply(params, x)")
    params, x = checks.leaves("params", params, empty=True), checks.leaves("x", x)
    tracing.example_axes(x, examples)
    traced, rows = placed(tracing.trace(apply, params, x, examples=examples))
    watch = lambda layer, value: measure(value, rows[layer.name][0])  # noqa: E731
    _, found = traced.run(params, x, visit=lambda layer, state, given: (state, None), watch=watch)
    entries = [(name, index, steps) for name, index, steps in traced.entries if traced.layers[index].name in rows]

    def column(field):
        return jnp.stack([found[index][2][field][steps] for _, index, steps in entries]) if entries else jnp.zeros(0)

    masks = tuple(rows[traced.layers[index].name][1] for _, index, _ in entries)
    return [tuple(name for name, _, _ in entries), masks, *map(column, columns)]


def placed(traced):
    """(the function with a watch at each softmax's logits, {name of the score's layer: (axes of a row, its mask)})."""
    rows = {}
    _enter(House(traced.program), traced.layers, rows)
    layers = tuple(
        dataclasses.replace(layer, activation=Sight(layer.shape, layer.units, 0, None, None))
        if layer.name in rows
        else layer
        for layer in traced.layers
    )
    return dataclasses.replace(traced, layers=layers), rows


def _enter(house, layers, rows):
    """Watch the softmaxes of this program and of those inside instead of the nonlinearities."""
    program = house.program
    program.watched.clear()
    readers = program.readers()
    for slot, indices in program.places.items():
        if layers[indices[0]].kind != "attention":
            continue
        path = Path(house, _score(house, slot))
        found = _softmax(path, slot, readers)
        if found is not None:
            slot, mask = _joined(path, *found)
            program.watched.setdefault(slot, []).append(indices[0])
            rows[layers[indices[0]].name] = found[1].axes, mask
    for step in house.steps:
        for body in step.inner if step.entered else ():
            _enter(House(body, house, step), layers, rows)


def _score(house, slot):
    """The contraction itself, before a transposition or an added parameter."""
    while (step := house.writers[slot]).name not in CONTRACTIONS:
        data = [read for read in step.reads if isinstance(read, int) and house.program.values[read].data]
        if len(data) != 1 or step.name not in MOVES | SUMS:
            return slot
        slot = data[0]
    return slot


def _softmax(path, slot, readers):
    """(slot of the logits, their Row), or None: breadth first, through what keeps the numbers."""
    front, seen, avals = [slot], {slot}, path.program.avals
    for at in front:
        row = _row_of_softmax(path, at, readers)
        if row:
            return at, row
        size = math.prod(avals[at].shape)
        for write in (w for step in readers[at] if step and step.name not in _ENDS for w in step.writes):
            if write not in seen and len(seen) < _LONGEST and math.prod(avals[write].shape) == size:
                seen.add(write)
                front.append(write)
    return None


@dataclasses.dataclass(frozen=True)
class Row:
    """How logits become weights: over these axes, exp(scale * logit), then these steps up to the row's sum."""

    axes: tuple
    scale: float
    steps: tuple


def _row_of_softmax(path, slot, readers):
    """The Row, if this slot enters a softmax."""
    for step in (each for each in readers[slot] if each):
        if step.name == "sub" and step.reads[0] == slot:
            axes = _reduced(path, step.reads[1], "reduce_max", slot)
            found = axes and _exponential(path, step.writes[0], readers, 1.0)
            if found:
                return Row(axes, found[0], _weighing(path, found[1], readers)[0])
        elif step.name in _EXPONENTIALS:
            steps, end = _weighing(path, step.writes[0], readers)
            total = [each for each in readers[end] if each and each.name == "div" and each.reads[0] == end]
            for axes in (_reduced(path, each.reads[1], "reduce_sum", end, slot) for each in total):
                if axes:
                    return Row(axes, _EXPONENTIALS[step.name], steps)
    return None


def _reduced(path, read, name, slot, of=None):
    """Axes of the reductions of this name and this shape that a value comes from; () if from anything else as well.

    With `of` they are of exponentials of this slot.
    """
    axes, front, shape = [], [read], shape_of(path.program, slot)
    for each in front:
        step = path.house.writers.get(each) if isinstance(each, int) else None
        if step is None and isinstance(each, int):
            return ()
        if step is not None and step.name == name:
            axes.append(tuple(int(axis) for axis in step.params["axes"]))
            if not path.is_hot(step.reads[0]) or shape_of(path.program, step.reads[0]) != shape:
                return ()
            if of is not None and not _is_exponential(path, step.reads[0], of):
                return ()
        elif step is not None:
            if not (step.name in MOVES or is_elementwise(step.name)) or len(front) > _LONGEST:
                return ()
            front.extend(step.reads)
    return axes[0] if len(set(axes)) == 1 else ()


def _exponential(path, slot, readers, scale):
    """(factor of the exponent, slot of the exponential), past a number that multiplies or divides; or None."""
    for step in (each for each in readers[slot] if each):
        if step.name in _EXPONENTIALS:
            return scale * _EXPONENTIALS[step.name], step.writes[0]
        number = next((read.val for read in step.reads if not isinstance(read, int)), 0)
        if step.name == "mul" and number > 0:
            return _exponential(path, step.writes[0], readers, scale * float(number))
        if step.name == "div" and step.reads[0] == slot and number > 0:
            return _exponential(path, step.writes[0], readers, scale / float(number))
    return None


def _weighing(path, slot, readers):
    """(the steps from an exponential to what is summed over a row or divided, its slot); without these no steps."""
    steps, at = [], slot
    while not any(step and step.name in ("reduce_sum", "div") for step in readers[at]):
        following = [step for step in readers[at] if step and _keeps(path, step)]
        if len(following) != 1 or len(steps) > _LONGEST:
            return (), slot
        steps.append(following[0])
        at = following[0].writes[0]
    return tuple(steps), at


def _keeps(path, step):
    """Whether a step casts weights, or takes or leaves them by what does not depend on the scores."""
    return step.name in SAME or (step.name in ("mul", "select_n") and sum(map(path.is_hot, step.reads)) == 1)


def _is_exponential(path, at, slot):
    """Whether a value is the exponential of this slot, with weights that may be left out."""
    step = path.house.writers.get(at)
    while step is not None and step.name not in _EXPONENTIALS and _keeps(path, step):
        step = path.house.writers.get(next(filter(path.is_hot, step.reads)))
    return step is not None and step.name in _EXPONENTIALS and step.reads[0] == slot


def _joined(path, slot, row):
    """(a slot that holds logits, marks, logits without a mask; what says which keys are closed)."""
    bare, mark = path.at(slot)
    weighed = path.weighed(row.steps)
    reads = [slot, bare, *([] if mark is None else [mark])]

    def joined(logits, bare, *marks):
        zero = marks if mark is None else marks[1:]
        found = either(logits, *marks)
        logits = jnp.where(either(logits, *zero) > 0, -jnp.inf, logits) if zero else logits
        return logits * row.scale, bare * row.scale, found

    end = row.steps[-1].writes[0] if row.steps else slot
    return path.house.emit(joined, [*reads, *weighed], end), " and ".join(path.kinds) or "none seen"


def moments(found, axes):
    """Means over rows with an open key of what theory predicts: dict of scalars."""
    logits, opened, count, weight, nats = _rows(found, axes)
    some = count > 0
    mean = jnp.sum(jnp.where(opened, logits, 0), axis=axes, keepdims=True) / jnp.maximum(
        jnp.expand_dims(count, axes), 1
    )
    centred = jnp.where(opened, logits - mean, -jnp.inf)
    square = jnp.sum(jnp.where(opened, logits - mean, 0) ** 2, axis=axes)
    log_z = jax.nn.logsumexp(centred, axis=axes, where=opened)
    lost = _is_lost(logits, opened)

    def over(rows, chosen):
        total = jnp.sum(jnp.where(chosen, rows, 0)) / jnp.maximum(jnp.sum(chosen), 1)
        return jnp.where(lost | ~chosen.any(), jnp.full((), jnp.nan, total.dtype), total)

    largest = jnp.max(jnp.abs(logits), where=opened, initial=0)
    return {
        "log_partition": over(log_z, some),
        "participation": over(jnp.sum(weight**2, axis=axes), some),
        "entropy": over(nats, some),
        "deviation": jnp.sqrt(over(square / jnp.maximum(count - 1, 1), count > 1)),
        "logit_max": jnp.where(lost, jnp.nan, largest),
    }


def _rows(found, axes):
    """(wide logits, which are open, how many of a row, weights, entropy of a row in nats).

    Closed are marked keys whose weight is rounded away beside that of the row's best key that is not marked; where all
    are marked, beside what the best had without the mask.
    """
    logits, bare, marks = found
    logits, bare = (each.astype(precision.wide(each.dtype)) for each in (logits, bare))
    seen = ~(marks > 0)
    some = jnp.any(seen, axis=axes, keepdims=True)
    top = jnp.max(logits, axis=axes, keepdims=True, where=seen, initial=-jnp.inf)
    top = jnp.where(some, top, jnp.max(bare, axis=axes, keepdims=True))
    share = jnp.finfo(logits.dtype).eps / math.prod(logits.shape[axis] for axis in axes)
    opened = seen | ~(logits <= top + math.log(share))
    logits = jnp.where(jnp.isnan(marks), jnp.nan, logits)
    count = jnp.sum(opened, axis=axes)
    top = jnp.max(logits, axis=axes, keepdims=True, where=opened, initial=-jnp.inf)
    weight = jnp.where(opened, jnp.exp(jnp.where(opened, logits - top, 0)), 0)
    weight = weight / jnp.maximum(jnp.sum(weight, axis=axes, keepdims=True), 1)
    nats = -jnp.sum(weight * jnp.log(jnp.where(weight > 0, weight, 1)), axis=axes)
    return logits, opened, count, weight, nats


def _is_lost(logits, opened):
    return jnp.any(opened & ~jnp.isfinite(logits)) | ~opened.any()


def sizes(found, axes):
    """What a softmax over these axes makes of its logits: dict of scalars."""
    logits, opened, count, _, bits = _rows(found, axes)
    choice = count > 1
    share = bits / jnp.log(jnp.where(choice, count, 2).astype(bits.dtype))
    lost = _is_lost(logits, opened)
    nan = jnp.full((), jnp.nan, bits.dtype)
    largest = jnp.max(jnp.abs(logits), where=opened, initial=0)
    return {
        "logit_max": jnp.where(lost, nan, largest),
        "entropy": jnp.where(lost | ~choice.any(), nan, jnp.sum(share * choice) / jnp.maximum(jnp.sum(choice), 1)),
        "shut": jnp.mean(count == 0, dtype=bits.dtype),
    }
