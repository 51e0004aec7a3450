"""MEASURED: the softmax behind each score of an attention: where it stands in the program, what enters it.

From a contraction of data with data on, past scales, masks, biases and casts, to the step that subtracts the largest of
a row before the exponential. What enters there are the logits, as they are masked and scaled.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp

from numdl import checks, precision, tracing
from numdl.tracing._geometry import Sight

_LONGEST = 40  # steps from a score to its softmax
_ENDS = {"dot_general", "conv_general_dilated", "scan", "while", "cond"}
CLOSED = -5e3  # logits below are a mask's: masks add or write -1e4 and less, in half precision too


def measured(apply, params, x, examples, measure, columns):
    """[names, *columns]: what `measure(logits, axes)` makes of every softmax, an entry for each step of a scan."""
    checks.accepts("apply", apply, 2, "apply(params, x)")
    params, x = checks.leaves("params", params, empty=True), checks.leaves("x", x)
    tracing.example_axes(x, examples)
    traced, axes = placed(tracing.trace(apply, params, x, examples=examples))
    watch = lambda layer, value: measure(value, axes[layer.name])  # noqa: E731
    _, found = traced.run(params, x, visit=lambda layer, state, given: (state, None), watch=watch)
    entries = [(name, index, steps) for name, index, steps in traced.entries if traced.layers[index].name in axes]

    def column(field):
        return jnp.stack([found[index][2][field][steps] for _, index, steps in entries]) if entries else jnp.zeros(0)

    return [tuple(name for name, _, _ in entries), *map(column, columns)]


def placed(traced):
    """(the function with a watch at each softmax's input, {name of the score's layer: axes of a row})."""
    axes = {}
    _enter(traced.program, traced.layers, axes)
    layers = tuple(
        dataclasses.replace(layer, activation=Sight(layer.shape, layer.units, 0, None, None))
        if layer.name in axes
        else layer
        for layer in traced.layers
    )
    return dataclasses.replace(traced, layers=layers), axes


def _enter(program, layers, axes):
    """Watch the softmaxes of this program and of those inside instead of the nonlinearities."""
    program.watched.clear()
    readers = program.readers()
    for slot, indices in program.places.items():
        found = _softmax(program, slot, readers) if layers[indices[0]].kind == "attention" else None
        if found is not None:
            program.watched.setdefault(found[0], []).append(indices[0])
            axes[layers[indices[0]].name] = found[1]
    for step in program.steps:
        for body in step.inner if step.entered else ():
            _enter(body, layers, axes)


def _softmax(program, slot, readers):
    """(slot that enters the softmax, its reduced axes), or None: breadth first, through what keeps the numbers."""
    front, seen = [slot], {slot}
    for at in front:
        axes = _row_of_softmax(at, readers)
        if axes:
            return at, axes
        size = math.prod(program.avals[at].shape)
        for write in (w for step in readers[at] if step and step.name not in _ENDS for w in step.writes):
            if write not in seen and len(seen) < _LONGEST and math.prod(program.avals[write].shape) == size:
                seen.add(write)
                front.append(write)
    return None


def _row_of_softmax(slot, readers):
    """Axes over which the exponential's shift is taken, if this slot enters a softmax."""
    steps = [step for step in readers[slot] if step]
    largest = next((step for step in steps if step.name == "reduce_max"), None)
    shifted = next((step for step in steps if step.name == "sub" and step.reads[0] == slot), None)
    if largest is None or shifted is None:
        return None
    after = [step.name for write in shifted.writes for step in readers[write] if step]
    return tuple(int(axis) for axis in largest.params["axes"]) if "exp" in after or "exp2" in after else None


def moments(logits, axes):
    """Means over rows with an open key of what theory predicts: dict of scalars."""
    logits, opened, count, weight, nats = _rows(logits, axes)
    some = count > 0
    mean = jnp.sum(jnp.where(opened, logits, 0), axis=axes, keepdims=True) / jnp.maximum(
        jnp.expand_dims(count, axes), 1
    )
    centred = jnp.where(opened, logits - mean, -jnp.inf)
    square = jnp.sum(jnp.where(opened, logits - mean, 0) ** 2, axis=axes)
    log_z = jax.nn.logsumexp(centred, axis=axes, where=opened)
    lost = jnp.isnan(logits).any() | jnp.isposinf(logits).any() | ~some.any()

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


def _rows(logits, axes):
    """(wide logits, which are open, how many of a row, weights, entropy of a row in nats)."""
    logits = logits.astype(precision.wide(logits.dtype))
    opened = jnp.isfinite(logits) & (logits > CLOSED)
    count = jnp.sum(opened, axis=axes)
    top = jnp.max(logits, axis=axes, keepdims=True, where=opened, initial=CLOSED)
    weight = jnp.where(opened, jnp.exp(jnp.where(opened, logits - top, 0)), 0)
    weight = weight / jnp.maximum(jnp.sum(weight, axis=axes, keepdims=True), 1)
    nats = -jnp.sum(weight * jnp.log(jnp.where(weight > 0, weight, 1)), axis=axes)
    return logits, opened, count, weight, nats


def sizes(logits, axes):
    """What a softmax over these axes makes of its logits: dict of scalars."""
    logits, opened, count, _, bits = _rows(logits, axes)
    choice = count > 1
    share = bits / jnp.log(jnp.where(choice, count, 2).astype(bits.dtype))
    lost = jnp.isnan(logits).any() | jnp.isposinf(logits).any()
    nan = jnp.full((), jnp.nan, bits.dtype)
    largest = jnp.max(jnp.abs(logits), where=opened, initial=0)
    return {
        "logit_max": jnp.where(lost, nan, largest),
        "entropy": jnp.where(lost | ~choice.any(), nan, jnp.sum(share * choice) / jnp.maximum(jnp.sum(choice), 1)),
        "shut": jnp.mean(count == 0, dtype=bits.dtype),
    }
