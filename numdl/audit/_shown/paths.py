"""Paths into a report: where each number that is shown comes from, and the report as strict JSON under the same paths.

evidence.trial.end[2].mean      report.evidence.trial.end, its row 2, the mean of what is finite in it
"""

import dataclasses
import math
import re
from typing import Any, NamedTuple

import jax
import numpy as np

from numdl import activations, checks

_STEP = re.compile(r"\.?([A-Za-z_]\w*)|\[(-?\d+)\]")
_OVER = {"mean": np.mean, "least": np.min, "most": np.max, "last": None}  # of an array's finite numbers


class At(NamedTuple):
    """A number that is shown, by its path; `form` is "number", "share" (a percentage), "count" or "seconds"."""

    path: str
    form: str = "number"


def value_at(root: Any, path: str) -> Any:
    """What stands at `path` in a record, a dictionary, or a tuple of them; nan where there is no such entry."""
    value, end = root, 0
    for step in _STEP.finditer(path):
        if step.start() != end:
            break
        value, end = _enter(value, step[1], step[2]), step.end()
    if end != len(path) or not path:
        raise checks.BadValue(f"path must be fields and entries, 'evidence.trial.end[2]'; got {path!r}")
    return value


def as_json(report: Any) -> dict:
    """A report, or any record, in the types of strict JSON: nan is null, infinities are "inf" and "-inf".

    Parameters
    ----------
    report : Report             or another record; its field `case` (functions and arrays of the user) stays out
    Returns
    -------
    dict                        keys are the fields' names, so that a path is the same in the report and in the file
    """
    return _plain(report)


def _enter(value, name, index):
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return value
    if index is not None:
        return value[int(index)] if -len(value) <= int(index) < len(value) else math.nan
    if isinstance(value, dict):
        return value.get(name, math.nan)
    if name in _OVER and isinstance(value, (np.ndarray, jax.Array, list, tuple)):
        return _over(np.asarray(value, dtype=float), name)
    return getattr(value, name)


def _over(numbers, name):
    if name == "last":
        return numbers[..., -1] if numbers.size else math.nan
    numbers = numbers[np.isfinite(numbers)]
    return float(_OVER[name](numbers)) if numbers.size else math.nan


def _plain(value):
    if isinstance(value, activations.Activation):
        return value.name
    if dataclasses.is_dataclass(value):
        fields = (field.name for field in dataclasses.fields(value))
        return {name: _plain(getattr(value, name)) for name in fields if name != "case"}
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return _plain(np.asarray(value).tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
