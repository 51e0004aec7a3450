"""CIFAR-10 and CIFAR-100 files: the binary layout, and the pickled one read without running any of it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from numdl import checks
from numdl.data import _files, _pickles
from numdl.typing import StrPath

SIDE = 32
PIXELS = 3 * SIDE * SIDE  # 1024 red, 1024 green, 1024 blue, row by row


class Records(NamedTuple):
    """Pictures and their labels, one column of labels for each classification (CIFAR-100: coarse, fine)."""

    images: np.ndarray  # [N, 32, 32, 3] uint8
    labels: np.ndarray  # [N, K] int32


def read_binary(
    path: StrPath, *, classes: Sequence[int] | int, count: int | None = None, most_bytes: int = _files.MOST
) -> Records:
    """The records of a binary CIFAR file, plain or gzip.

        record = one byte for each label, then 3072 bytes of pixels

    Parameters
    ----------
    path : path                 the file
    classes : tuple of int      number of classes of each label byte: (10,) for CIFAR-10, (20, 100) for CIFAR-100
    count : int or None         the number of records that the file must hold; None: any
    most_bytes : int            refuse files that are larger (after decompression)
    Returns
    -------
    Records                     images [N, 32, 32, 3] uint8, labels [N, len(classes)] int32
    Raises
    ------
    ValueError, TypeError       not a whole number of records, another number than `count`, a label out of range, too
                                large, or damaged; the message names the file
    OSError                     the file cannot be read
    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009, and its data page.
    """
    classes, count = _expected(classes, count)
    most_bytes = checks.whole("most_bytes", most_bytes, most=checks.BYTES)
    record = len(classes) + PIXELS
    # With a count known, a file that expands beyond it is refused as soon as it does.
    raw = _files.contents(path, most_bytes=most_bytes if count is None else min(most_bytes, count * record))
    if not raw or len(raw) % record:
        raise ValueError(f"{path}: truncated or not CIFAR: {len(raw)} bytes are no whole number of records of {record}")
    rows = np.frombuffer(raw, np.uint8).reshape(-1, record)
    return _records(path, rows[:, len(classes) :], rows[:, : len(classes)], classes, count)


def read_pickle(
    path: StrPath, *, classes: Sequence[int] | int, count: int | None = None, most_bytes: int = _files.MOST
) -> Records:
    """The records of a pickled CIFAR file ("python version").

    No instruction of the pickle that imports or calls anything is followed: see `numdl.data._pickles`.

    Parameters
    ----------
    path : path                 the file
    classes : tuple of int      number of classes of each kind of label: (10,) for CIFAR-10, (20, 100) for CIFAR-100
    count : int or None         the number of records that the file must hold; None: any
    most_bytes : int            refuse files that are larger (after decompression)
    Returns
    -------
    Records                     images [N, 32, 32, 3] uint8, labels [N, len(classes)] int32
    Raises
    ------
    ValueError, TypeError       as in `read_binary`, or the pickle holds anything but arrays, texts and numbers
    OSError                     the file cannot be read
    Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009, and its data page.
    """
    classes, count = _expected(classes, count)
    columns = ("labels",) if len(classes) == 1 else ("coarse_labels", "fine_labels")
    found = _pickles.read(path, most_bytes=most_bytes)
    missing = [name for name in ("data", *columns) if name not in found]
    if missing:
        raise ValueError(f"{path}: no entry {missing[0]!r}; it has {', '.join(sorted(found)) or 'none'}")
    pixels = found["data"]
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != PIXELS:
        raise ValueError(f"{path}: its entry 'data' is not an array of shape (N, {PIXELS}) of uint8")
    labels = [_column(path, name, found[name], len(pixels)) for name in columns]
    return _records(path, pixels, np.stack(labels, axis=1), classes, count)


def _expected(classes, count):
    """The arguments in plain integers: classes of each label, one or two, and the number of records."""
    numbers = classes if isinstance(classes, tuple | list) else (classes,)
    if len(numbers) not in (1, 2):
        raise checks.BadValue(f"classes must be a tuple of one or two integers; got {classes!r}")
    numbers = tuple(checks.whole("classes", number, most=256) for number in numbers)
    return numbers, None if count is None else checks.whole("count", count)


def _column(path, name, values, count):
    whole = isinstance(values, list) and all(type(value) is int for value in values)
    if not whole or len(values) != count:
        raise ValueError(f"{path}: its entry {name!r} is not a list of {count} integers")
    return np.array(values, dtype=np.int64)


def _records(path, pixels, labels, classes, count):
    if count is not None and len(pixels) != count:
        raise ValueError(f"{path}: {len(pixels)} records; expected are {count}")
    if not len(pixels):
        raise ValueError(f"{path}: no records")
    wrong = (labels < 0) | (labels >= np.array(classes))
    if wrong.any():
        row, column = np.argwhere(wrong)[0].tolist()
        allowed = f"0..{classes[column] - 1}"
        raise ValueError(f"{path}: record {row} has the label {labels[row, column]}; allowed is {allowed}")
    images = pixels.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)
    return Records(np.ascontiguousarray(images), labels.astype(np.int32))
