"""A cell's value in plain types, and its file: JSON and arrays in one .npz, read without pickle."""

import dataclasses
import io
import json
import math
import os

import jax
import numpy as np

from numdl import _stored, checks
from numdl.reporting import _runs


def plain(value, path):
    """The value in dicts, lists, numbers, texts and NumPy arrays: records are dicts of their fields."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, dict):
        found = {str(name): plain(part, f"{path}.{name}") for name, part in value.items()}
        if len(found) < len(value):
            raise checks.BadValue(f"{path} must have keys that differ as texts; got {list(value)!r:.80}")
        return found
    if isinstance(value, list | tuple):
        return [plain(part, f"{path}[{place}]") for place, part in enumerate(value)]
    if checks.is_key(value):
        value = jax.random.key_data(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return _array(value, path)


def write(folder, digest, cell):
    """The cell's file, whole or not at all."""
    arrays = {}
    text = json.dumps(_emptied(cell, arrays), allow_nan=False, ensure_ascii=False)
    held = io.BytesIO()
    np.savez_compressed(held, cell=np.frombuffer(text.encode(), np.uint8), **arrays)
    _runs.put(folder / f"{digest}.npz", held.getvalue())


def read(folder, digest, function):
    """The cell of a file, None where there is none or it cannot be read: it is then computed again."""
    path = folder / f"{digest}.npz"
    try:
        arrays = _stored.arrays(path.read_bytes())
        cell = json.loads(arrays.pop("cell").tobytes())
        cell = _filled(cell, arrays)
        maker, _ = cell["function"], cell["value"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if maker != function:
        raise checks.BadValue(f"folder must hold cells of {function} only; got one of {maker}: {path}")
    return cell


def _array(value, path):
    if isinstance(value, np.ma.MaskedArray):
        raise checks.BadType(f"{path} must be numbers, texts, arrays or records of them; got a masked array")
    try:
        array = np.asarray(value)
    except Exception as error:
        raise checks.BadType(f"{path} must be numbers, texts, arrays or records of them; got {value!r:.80}") from error
    if array.dtype.kind == "V":  # bfloat16 and its like have no npz form
        array = array.astype(np.float32)
    if array.dtype.kind not in "biufcU":
        raise checks.BadType(f"{path} must be numbers, texts, arrays or records of them; got {value!r:.80}")
    return array


def _emptied(value, arrays):
    """JSON's part of a value; arrays, and numbers that JSON does not know, go aside."""
    if isinstance(value, dict):
        return {"dict": {name: _emptied(part, arrays) for name, part in value.items()}}
    if isinstance(value, list):
        return [_emptied(part, arrays) for part in value]
    if isinstance(value, np.ndarray) or (isinstance(value, float) and not math.isfinite(value)):
        name = f"a{len(arrays)}"
        arrays[name] = value if isinstance(value, np.ndarray) else np.float64(value)
        return {"array" if isinstance(value, np.ndarray) else "float": name}
    return value


def _filled(value, arrays):
    if isinstance(value, list):
        return [_filled(part, arrays) for part in value]
    if not isinstance(value, dict):
        return value
    (kind, held), *_ = value.items()
    if kind == "dict":
        return {name: _filled(part, arrays) for name, part in held.items()}
    return arrays[held] if kind == "array" else float(arrays[held])
