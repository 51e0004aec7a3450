"""Arrays in NumPy's .npz files, within bounds and without pickle."""

from collections.abc import Collection

import numpy as np

from numdl import _stored, checks
from numdl.data import _files
from numdl.typing import StrPath


def read(
    path: StrPath, *, names: Collection[str] | None = None, most_bytes: int = _files.MOST
) -> dict[str, np.ndarray]:
    """The arrays in an .npz file, by name; nothing in the file is executed.

    Parameters
    ----------
    path : path                 the file
    names : tuple or None       the arrays to read, which must be there; None: all
    most_bytes : int            refuse files and arrays (after decompression, together) that are larger
    Returns
    -------
    dict                        {name: array}: numbers, truths, texts or dates, in the machine's byte order
    Raises
    ------
    ValueError, TypeError       no .npz file, damaged, too large, without one of the names, or with an array of objects,
                                which would need pickle; the message names the file and the array
    OSError                     the file cannot be read
    """
    most_bytes = checks.whole("most_bytes", most_bytes, most=checks.BYTES)
    if names is not None:
        names = _checked_names(names)
    content = _files.contents(path, most_bytes=most_bytes)
    try:
        return _stored.arrays(bytes(content), most_bytes=most_bytes, names=names)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _checked_names(names):
    if not isinstance(names, tuple | list | set | frozenset) or not all(isinstance(name, str) for name in names):
        raise checks.BadType(f"names must be a tuple of texts, the arrays to read; got {names!r:.100}")
    if not names:
        raise checks.BadValue(f"names must name an array at least; got {names!r}")
    return tuple(names)
