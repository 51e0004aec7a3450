"""Arrays in .npz files, read within bounds: nothing is unpickled, no header's claim is believed before it is checked.

The archive's directory says how large each entry becomes; the sum is limited before anything is decompressed, and
zipfile gives no more bytes than the directory said and checks their CRC.
"""

import io
import math
import re
import struct
import zipfile
from collections.abc import Collection

import numpy as np

MOST = 2**31  # bytes of all arrays together
MOST_ENTRIES = 100_000
MOST_HEADER = 10_000
KINDS = "biufcSUmM"  # no objects, which need pickle, and no records of several fields
CHUNK = 2**20
METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED = 0x1
_FIELDS = {
    "descr": re.compile(r"'descr':\s*'([<>|=]?[a-zA-Z][0-9]{0,9}(?:\[[a-zA-Z0-9]{1,8}\])?)'"),
    "order": re.compile(r"'fortran_order':\s*(True|False)"),
    "shape": re.compile(r"'shape':\s*\(([0-9, ]{0,999})\)"),
}


def arrays(content: bytes, *, most_bytes: int = MOST, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
    """The arrays in the bytes of an .npz file, by name.

    Parameters
    ----------
    content : bytes             of the whole file
    most_bytes : int            refuse arrays that are larger together
    names : tuple or None       only these, which must be there; None: all
    Returns
    -------
    dict                        {name: array}, new arrays in the machine's byte order
    Raises
    ------
    ValueError                  damaged, too large, without one of the names, or holding what needs pickle; the message
                                says which entry, the caller says which file
    """
    # A damaged archive may fail anywhere in its reader.
    try:
        return _read(content, most_bytes, names)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"no .npz archive, or damaged: {error}") from error


def _read(content, most_bytes, names):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = _entries(archive)
        missing = [name for name in names or () if name not in entries]
        if missing:
            raise ValueError(f"it has no array {missing[0]!r}; it has {', '.join(map(repr, entries)) or 'none'}"[:500])
        chosen = entries if names is None else {name: entries[name] for name in names}
        total = sum(entry.file_size for entry in chosen.values())
        if total > most_bytes:
            raise ValueError(f"too large: its arrays take {total} bytes; most_bytes={most_bytes} are allowed")
        return {name: array(_unpacked(archive, entry), name) for name, entry in chosen.items()}


def _entries(archive):
    entries = archive.infolist()
    if len(entries) > MOST_ENTRIES:
        raise ValueError(f"too large: {len(entries)} entries; {MOST_ENTRIES} are allowed")
    found = {}
    for entry in entries:
        name = entry.filename.removesuffix(".npy")
        if name == entry.filename or name in found:
            raise ValueError(f"its entry {entry.filename[:100]!r} is {'twice there' if name in found else 'no array'}")
        if entry.compress_type not in METHODS or entry.flag_bits & ENCRYPTED:
            raise ValueError(f"its entry {name[:100]!r} is encrypted or packed in a way that numpy does not write")
        found[name] = entry
    return found


def _unpacked(archive, entry):
    """An entry's bytes; memory grows with what comes out, not with what the directory claims."""
    held = bytearray()
    with archive.open(entry) as stream:
        while chunk := stream.read(CHUNK):
            held += chunk
    return held


def array(raw, name):
    """The array in the bytes of an .npy file."""
    dtype, fortran, shape, start = _header(raw, name)
    if dtype.kind not in KINDS:
        raise ValueError(f"its array {name!r} is of {dtype}, which needs pickle (allow_pickle) or has fields")
    count = math.prod(shape)
    if count and not dtype.itemsize:  # numpy would make room for a letter of each
        raise ValueError(f"its array {name!r} should hold {count} texts without a letter, which numpy does not write")
    size = count * dtype.itemsize
    if size != len(raw) - start:
        raise ValueError(
            f"its array {name!r} should hold {size} bytes for {shape} of {dtype}; {len(raw) - start} are there"
        )
    values = np.frombuffer(raw, dtype, offset=start) if size else np.zeros(count, dtype)
    _check_values(values, name)
    values = values.reshape(shape, order="F" if fortran else "C")
    return values.astype(dtype.newbyteorder("="), order="K")


def _header(raw, name):
    """(dtype, whether in Fortran's order, shape, where the values begin)."""
    wide = {(1, 0): "<H", (2, 0): "<I", (3, 0): "<I"}.get(tuple(raw[6:8]))
    if raw[:6] != b"\x93NUMPY" or wide is None or len(raw) < 12:
        raise ValueError(f"its entry {name!r} is no array in numpy's format")
    begin = 8 + struct.calcsize(wide)
    (length,) = struct.unpack(wide, raw[8:begin])
    text = bytes(raw[begin : begin + min(length, MOST_HEADER)]).decode("latin-1")
    found = {what: pattern.search(text) for what, pattern in _FIELDS.items()}
    left = text
    for match in found.values():
        left = left.replace(match[0], "", 1) if match else "?"
    if left.strip("{}, \n") or len(text) < length:
        raise ValueError(f"the header of its array {name!r} is damaged, or of a kind that needs pickle: {text[:100]!r}")
    shape = tuple(int(axis) for axis in found["shape"][1].split(",") if axis.strip())
    try:
        return np.dtype(found["descr"][1]), found["order"][1] == "True", shape, begin + length
    except TypeError as error:
        raise ValueError(f"the header of its array {name!r} has no dtype of numpy: {error}") from error


def _check_values(values, name):
    """Bytes that are no value of their type: a truth that is neither 0 nor 1, a letter beyond Unicode."""
    if values.dtype.kind == "b" and np.any(values.view(np.uint8) > 1):
        raise ValueError(f"its array {name!r} has values that are neither true nor false")
    if values.dtype.kind == "U" and values.size and values.dtype.itemsize:
        letters = values.view(values.dtype.str[0] + "u4")
        if np.any(letters > 0x10FFFF):
            raise ValueError(f"its array {name!r} has letters beyond Unicode")
