"""What acts on a layer's state: the elementwise function that alone reads it."""

import jax.extend.core as jex
import numpy as np

from numdl.tracing.programs import CUSTOM, bodies, flatten

_MOVES = {"reshape", "squeeze", "transpose", "convert_element_type", "copy", "name"}
_NONLINEARITIES = {"tanh": "tanh", "logistic": "sigmoid", "erf": "erf"}


def find(program, slot, tags, readers):
    """(name, slot that it reads, the units' layout there); the name is None if none of those we know follows."""
    while len(readers[slot]) == 1 and readers[slot][0] is not None:
        step = readers[slot][0]
        if step.name not in _MOVES:
            return _name(step), slot, tags
        slot = step.writes[0]
    return None, slot, tags


def _name(step):
    if step.name in CUSTOM:
        body = flatten(next(bodies(step.equation)), [])
        return "relu" if [s.name for s in body.steps] == ["max"] and _has_zero(body.steps[0]) else None
    if step.name == "max" and _has_zero(step):
        return "relu"
    return _NONLINEARITIES.get(step.name)


def _has_zero(step):
    return any(np.ndim(r.val) == 0 and r.val == 0 for r in step.reads if isinstance(r, jex.Literal))
