"""A network without its last function, or with another one in its place."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax

from numdl.audit._measured import heads

HEADS = (
    ("end in the last layer: no function behind it", lambda z: z),
    ("a sigmoid behind the last layer", jax.nn.sigmoid),
    ("a softmax behind the last layer", lambda z: jax.nn.softmax(z, -1)),
)


def best(case: Any) -> tuple[str, Callable] | None:
    """(what to change, the network without its last function or with another); None where none can be cut off.

    Of heads whose gradient reaches most outputs the one with the least loss.

    Parameters
    ----------
    case : Case                 whose network it is
    """
    inner = _bare(case)
    if inner is None:
        return None
    tried = [(*_reachable(case, _through(inner, function)), i) for i, (_, function) in enumerate(HEADS)]
    deaf, floor, i = min(tried)
    return None if deaf or not math.isfinite(floor) else (HEADS[i][0], _through(inner, HEADS[i][1]))


def _bare(case):
    """The network up to its last layer, as apply(params, x)."""
    if heads.split(case, case.x)[1] is None:
        return None

    def apply(params, x, *key):
        form, moving = dataclasses.replace(case.form, **({"key": key[0]} if key else {})), case.moving_of(params)
        traced, parts = heads.cut(form, moving, x)
        return parts[1](moving, x, traced.constants)

    return apply


def _through(apply, function):
    return lambda params, x, *key: function(apply(params, x, *key))


def _reachable(case, apply):
    """(whether the loss is deaf to many outputs of this network, least loss over any state of its last layer)."""
    changed = dataclasses.replace(case, apply=apply)
    try:
        found, _ = heads.measure(changed)
        silent = heads.silent(changed)
    except (ValueError, TypeError):
        return True, math.inf
    return silent > 0.3 or not found.pull > 0, round(found.floor_head, 2)
