"""IDX, the format of MNIST and its descendants: a header with type and dimensions, then big-endian values."""

import hashlib
import math
import re
import struct
from collections.abc import Sequence

import numpy as np

from numdl import checks
from numdl.data import _files
from numdl.typing import StrPath

# third byte of the magic number -> type
TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
MOST_DIMENSIONS = 8


def read(
    path: StrPath,
    *,
    shape: Sequence[int] | None = None,
    sha256: str | None = None,
    most_bytes: int = _files.MOST,
) -> np.ndarray:
    """The array in an IDX file, plain or gzip, in the machine's byte order.

        0 0 type n | n dimensions, 4 bytes each | prod(dimensions) values, all big-endian

    Parameters
    ----------
    path : path                 the file
    shape : tuple or None       the dimensions that the header must give; None: any
    sha256 : str or None        hexadecimal digest that the uncompressed file must have
    most_bytes : int            refuse arrays larger than this
    Returns
    -------
    array                       of the header's shape: uint8, int8, int16, int32, float32 or float64
    Raises
    ------
    ValueError, TypeError       not IDX, truncated, longer than the header says, damaged, too large, or not the
                                expected shape or digest; the message names the file
    OSError                     the file cannot be read
    Source: Y. LeCun, C. Cortes, C. Burges, The MNIST database, section on file formats.
    """
    most_bytes = checks.whole("most_bytes", most_bytes, most=checks.BYTES)
    shape = None if shape is None else _dimensions(shape)
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{64}", checks.instance("sha256", sha256, str)):
        raise checks.BadValue(f"sha256 must be 64 hexadecimal digits; got {sha256!r}")
    with _files.opened(path, most_bytes=most_bytes + 4 * (1 + MOST_DIMENSIONS)) as stream:
        header, dtype, dimensions = _header(path, stream)
        count = _size(path, dtype, dimensions, shape, most_bytes)
        values = _files.exactly(stream, count)
        described = f"the header's {'x'.join(map(str, dimensions))} values of {dtype.name}, {count} bytes,"
        if len(values) < count:
            raise ValueError(f"{path}: truncated: {described} are announced, {len(values)} bytes are there")
        if stream.read(1):
            raise ValueError(f"{path}: too long: bytes follow after {described} have been read")
    if sha256 is not None:
        _verify(path, sha256, header, values)
    return np.frombuffer(values, dtype).reshape(dimensions).astype(dtype.newbyteorder("="), copy=False)


def _dimensions(shape):
    if isinstance(shape, str | dict | set | frozenset) or not hasattr(shape, "__iter__"):
        raise checks.BadType(f"shape must be a tuple of integers >= 1; got {shape!r}")
    shape = tuple(shape)
    if not shape:
        raise checks.BadValue(f"shape must be a tuple of integers >= 1; got {shape!r}")
    return tuple(checks.whole(f"shape[{axis}]", length) for axis, length in enumerate(shape))


def _header(path, stream):
    """(the header's bytes, dtype, dimensions)."""
    magic = stream.read(4)
    if len(magic) < 4:
        raise ValueError(f"{path}: truncated: {len(magic)} bytes, an IDX header has at least 8")
    if magic[:2] != b"\0\0" or magic[2] not in TYPES:
        known = ", ".join(f"{code:02x}" for code in TYPES)
        raise ValueError(f"{path}: not IDX: it begins with {magic.hex(' ')}; IDX with 00 00, then one of {known}")
    if not 1 <= magic[3] <= MOST_DIMENSIONS:
        raise ValueError(f"{path}: its header claims {magic[3]} dimensions; 1..{MOST_DIMENSIONS} are allowed")
    packed = stream.read(4 * magic[3])
    if len(packed) < 4 * magic[3]:
        raise ValueError(f"{path}: truncated inside the header: {len(packed)} bytes for {magic[3]} dimensions")
    return magic + packed, np.dtype(TYPES[magic[2]]), struct.unpack(f">{magic[3]}I", packed)


def _size(path, dtype, dimensions, shape, most_bytes):
    """Bytes of the array, in Python's integers: the product of honest-looking dimensions can leave 64 bits."""
    if shape is not None and dimensions != tuple(shape):
        raise ValueError(f"{path}: its header says {dimensions}; expected is {tuple(shape)}")
    if 0 in dimensions:
        raise ValueError(f"{path}: its header says {dimensions}: an empty array")
    count = math.prod(dimensions) * dtype.itemsize
    if count > most_bytes:
        claimed = f"its header says {dimensions} of {dtype.name}, {count} bytes"
        raise ValueError(f"{path}: too large: {claimed}; most_bytes={most_bytes} are allowed")
    return count


def _verify(path, sha256, header, values):
    digest = hashlib.sha256(header)
    digest.update(values)
    if digest.hexdigest() != sha256.lower():
        raise ValueError(f"{path}: its sha256 is {digest.hexdigest()}; the published file's is {sha256}")
