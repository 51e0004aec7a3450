"""A custom rule around a layer: which of its operands is the weight as it is contracted, which output the state."""

from numdl.tracing._programs import CONTRACTIONS, CUSTOM, REMAT

MOVES = {"reshape", "squeeze", "transpose", "convert_element_type", "copy"}


def weight_operand(step):
    """The place of the operand that is the inner contraction's weight, moved and cast only; None if there is none."""
    body = step.inner[0]
    place = _weight_input(body)
    return None if place is None else len(step.reads) - len(body.inputs) + place


def state_output(step):
    """The place of the only output that depends on the layer inside; None if there are several."""
    body = step.inner[0]
    reached = _reached(body)
    places = [i for i, slot in enumerate(body.outputs) if slot in reached]
    return places[0] if len(places) == 1 else None


def read_operands(step):
    """The places of the operands on which an output of the body depends."""
    body = step.inner[0]
    live, first = body.live(), len(step.reads) - len(body.inputs)
    used = {slot for inner in body.steps if id(inner) in live for slot in inner.reads if isinstance(slot, int)}
    used |= {slot for slot in body.outputs if isinstance(slot, int)}
    return [first + i for i, slot in enumerate(body.inputs) if slot in used]


def forget(step):
    """Take away what was found inside a step that is not entered: its layers are nobody's."""
    for body in step.inner:
        body.places.clear()
        body.watched.clear()
        body.order.clear()
        for inner in body.steps:
            inner.weight, inner.entered = None, False
            forget(inner)


def _weight_input(program):
    slot = next((found for inner in program.steps if (found := _weight_read(inner)) is not None), None)
    while slot is not None and slot not in program.inputs:
        writer = program.writer(slot) if isinstance(slot, int) else None
        slot = writer.reads[0] if writer is not None and writer.name in MOVES else None
    return None if slot is None else program.inputs.index(slot)


def _weight_read(step):
    """What a step reads as the weight of the layer that it is, or holds."""
    if step.weight is not None and (step.name in CONTRACTIONS or step.name in CUSTOM):
        return step.reads[step.weight[0]]
    if step.name in REMAT and len(step.inner) == 1:
        place = _weight_input(step.inner[0])
        return None if place is None else step.reads[len(step.reads) - len(step.inner[0].inputs) + place]
    return None


def _reached(program):
    """The slots that depend on the layer in this program."""
    reached = set()
    for step in program.steps:
        holds = step.weight is not None or any(_reached(body) for body in step.inner)
        if holds or not reached.isdisjoint(slot for slot in step.reads if isinstance(slot, int)):
            reached.update(step.writes)
    return reached
