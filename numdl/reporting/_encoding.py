"""A run's values as the bytes of files: arrays by field path, strict JSON, pictures equal for equal figures."""

import dataclasses
import io
import json
import math
import os
import re
from typing import Any

import jax
import numpy as np

from numdl import checks

_FIELD = re.compile(r"[^./\\:\x00-\x1f][^/\\:\x00-\x1f]{0,79}")


def image(figure, form):
    """A figure's bytes as "svg" or "png"; equal figures give equal bytes."""
    import matplotlib

    held = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "numdl"}):
        figure.savefig(held, format=form, dpi=150, metadata={"Date": None} if form == "svg" else None)
    return held.getvalue()


def arrays(record: Any) -> dict[str, np.ndarray]:
    """A record's arrays by field path, as `save` keeps them; nested records and tuples are included.

    Parameters
    ----------
    record : dataclass      of arrays, numbers, texts, records and tuples of them; a tuple of texts is an array of texts
    Returns
    -------
    dict                    {"lengths.mean": array}
    Raises
    ------
    TypeError, ValueError   a field that is not an array, or whose name could leave the folder
    """
    found = {}
    _collect(record, (), found)
    return found


def jsonable(value, path):
    """`value` in the types of strict JSON: tuples are lists, numbers that are not finite are strings."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): jsonable(entry, f"{path}.{key}") for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(entry, f"{path}[{i}]") for i, entry in enumerate(value)]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return jsonable(np.asarray(value).tolist(), path)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (str, int, float)):
        return value
    raise checks.BadType(f"{path} must be a number, a text, or lists and records of them; got {value!r}")


def _collect(value, path, found):
    if not (callable(value) or isinstance(value, (str, np.ndarray, np.generic, jax.Array))):
        parts = _parts(value)
        if parts is not None:
            for name, part in parts:
                _collect(part, (*path, _checked_field(name)), found)
            return
    if value is not None:
        found[".".join(path) or "value"] = _array(value, ".".join(path))


def _parts(value):
    if dataclasses.is_dataclass(value):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    if hasattr(value, "_asdict"):
        return list(value._asdict().items())
    if isinstance(value, dict):
        return list(value.items())
    plain = isinstance(value, (list, tuple)) and all(isinstance(entry, (str, int, float)) for entry in value)
    return list(enumerate(value)) if isinstance(value, (list, tuple)) and not plain else None


def _array(value, path):
    if checks.is_key(value):
        value = jax.random.key_data(value)
    if callable(value):  # an activation or a function among the static fields: its name says which
        value = getattr(value, "name", None) or getattr(value, "__qualname__", type(value).__name__)
    array = np.asarray(value)
    if array.dtype.kind == "V":  # bfloat16 and its like have no npz form
        array = array.astype(np.float32)
    if array.dtype.kind not in "biufcU":
        raise checks.BadType(f"record.{path} must be an array of numbers or texts; got {value!r}")
    return array


def npz(values):
    """Arrays by name as the bytes of an .npz file."""
    held = io.BytesIO()
    np.savez_compressed(held, **values)
    return held.getvalue()


def strict_json(value):
    """Plain values as strict JSON, UTF-8."""
    return (json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n").encode()


def _checked_field(name):
    if not _FIELD.fullmatch(str(name)):
        raise checks.BadValue(f"a record's field must be a name without slashes, colons or a leading dot; got {name!r}")
    return str(name)
