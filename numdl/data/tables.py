"""CSV tables as arrays, one for each column, with errors that name the line and the column."""

import contextlib
import csv
import io
import re
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np

from numdl import checks
from numdl.data import _files
from numdl.typing import StrPath

INTEGER = re.compile(r"[+-]?[0-9]{1,18}")  # what surely fits 64 bits
LONGER = re.compile(r"[+-]?[0-9]{19,}")  # a name made of digits: as a float it would lose some
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,4})?")
KINDS = (int, float, str)  # from the narrowest to the widest
ROWS = 4096  # read at once
MOST_COLUMNS = 10_000


class Table(NamedTuple):
    """Measurements and the classes they belong to."""

    features: np.ndarray  # [N, columns] float32
    labels: np.ndarray  # [N] int32
    names: tuple  # the classes' names, by label
    columns: tuple  # the features' names
    source: str


def read(
    path: StrPath,
    *,
    types: dict[str, type] | None = None,
    missing: Collection[str] = (),
    delimiter: str = ",",
    most_bytes: int = 2**26,
) -> dict[str, np.ndarray]:
    """The columns of a CSV file (UTF-8, plain or gzip) whose first line names them.

    A column's type is the narrowest that holds all its cells: int64, float64, or text (NumPy's StringDType). Numbers
    are written as in 12, -0.5, 1e-3; digits beyond 64 bits are text.

    Parameters
    ----------
    path : path                 the file
    types : dict or None        {column: int, float or str}: what the cells must be, instead of deciding by the cells
    missing : tuple of str      cells that mean that there is no value, such as ("", "NA"): nan in a column of numbers
    delimiter : str             one character
    most_bytes : int            refuse larger files (after decompression)
    Returns
    -------
    dict                        {column: array [rows]}
    Raises
    ------
    ValueError, TypeError       not UTF-8, unequal lines, an empty cell among numbers that `missing` does not name, a
                                cell not of its column's type, no rows, ...; the message names file, line and column
    OSError                     the file cannot be read
    """
    if not isinstance(delimiter, str) or len(delimiter) != 1:
        raise checks.BadValue(f"delimiter must be one character; got {delimiter!r}")
    if not isinstance(missing, tuple | list | set | frozenset) or not all(isinstance(cell, str) for cell in missing):
        raise checks.BadType(f"missing must be a tuple of texts, such as ('',); got {missing!r}")
    if types is not None and (not isinstance(types, dict) or not all(kind in KINDS for kind in types.values())):
        raise checks.BadValue(f"types must map columns of {path} to int, float or str; got {types!r}")
    most_bytes = checks.whole("most_bytes", most_bytes, most=checks.BYTES)
    options = {"missing": frozenset(missing), "delimiter": delimiter, "most_bytes": most_bytes}
    wanted = dict(types or {})
    columns, kinds, count = _survey(path, wanted, options)
    dtypes = {int: np.int64, float: np.float64, str: np.dtypes.StringDType()}
    arrays = [np.zeros(count, dtypes[kind]) for kind in kinds]
    done = 0
    for numbers, rows in _blocks(path, **options):
        for column, array, kind, cells in zip(columns, arrays, kinds, zip(*rows)):
            array[done : done + len(rows)] = _converted(path, numbers, column, kind, cells, options["missing"])
        done += len(rows)
    return dict(zip(columns, arrays))


def labelled(path: StrPath, *, label: str, classes: Sequence[str] | None = None, **options: Any) -> Table:
    """A CSV file as a Table: column `label` holds the classes, numbered in the order of `classes` or of their names.

    Parameters
    ----------
    path : path                 the file
    label : str                 the column of the classes
    classes : tuple or None     the classes that there are, as the file writes them (whole numbers as such or as text);
                                None: those that are found, a misspelt one among them
    **options : Any             of `read`: types, missing, delimiter, most_bytes
    Returns
    -------
    Table                       features [rows, columns] float32, labels [rows] int32, names, columns
    Raises
    ------
    ValueError, TypeError       as `read`; there is no such column; another column is not of numbers; a class that
                                `classes` does not name, with its row
    OSError                     the file cannot be read
    """
    if not checks.instance("label", label, str, hint="the name of a column"):
        raise checks.BadValue(f"label must be the name of a column; got {label!r}")
    classes = None if classes is None else _checked_classes(classes)
    columns = read(path, **options)
    if label not in columns:
        raise ValueError(f"{path}: label must be one of its columns {', '.join(columns)}; got {label!r}")
    names, labels = _numbered(path, label, columns.pop(label), classes)
    text = [name for name, values in columns.items() if values.dtype.kind not in "if"]
    if text or not columns:
        raise ValueError(f"{path}: column {text[0]!r} is text" if text else f"{path}: no column beside {label!r}")
    features = np.stack([values.astype(np.float32) for values in columns.values()], axis=1)
    return Table(features, labels.astype(np.int32), names, tuple(columns), str(path))


def _checked_classes(classes):
    """The classes as texts."""
    if not isinstance(classes, tuple | list):
        raise checks.BadType(f"classes must be a tuple of the classes' names; got {classes!r:.100}")
    if not classes or not all(isinstance(name, str | int) and not isinstance(name, bool) for name in classes):
        raise checks.BadValue(f"classes must be a tuple of texts or whole numbers, not empty; got {classes!r:.100}")
    names = tuple(map(str, classes))
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise checks.BadValue(f"classes must name each class once; got {twice!r} twice")
    return names


def _numbered(path, label, cells, classes):
    """(the classes' names, each row's number)."""
    if cells.dtype.kind == "f" and not np.isfinite(cells).all():
        row = int(np.flatnonzero(~np.isfinite(cells))[0])
        raise ValueError(f"{path}, row {row + 1}, column {label!r}: no class: the cell is one of `missing`")
    found, labels = np.unique(cells, return_inverse=True)
    names = tuple(map(str, found.tolist()))
    if classes is None:
        return names, labels
    unknown = [index for index, name in enumerate(names) if name not in classes]
    if unknown:
        row = int(np.flatnonzero(labels == unknown[0])[0])
        known = ", ".join(classes)[:200]
        raise ValueError(
            f"{path}, row {row + 1}, column {label!r}: unknown class {names[unknown[0]][:50]!r}: one of {known}"
        )
    return classes, np.array([classes.index(name) for name in names], np.int32)[labels]


def _survey(path, wanted, options):
    """(columns, their types, number of rows): a first reading that stores nothing, so that memory stays small."""
    columns = _columns(path, **options)
    unknown = [name for name in wanted if name not in columns]
    if unknown or not all(kind in KINDS for kind in wanted.values()):
        raise ValueError(f"types must map columns of {path} ({', '.join(columns)}) to int, float or str; got {wanted}")
    ranks, empty, count = [0] * len(columns), [None] * len(columns), 0
    for numbers, rows in _blocks(path, **options):
        for index, cells in enumerate(zip(*rows)):
            ranks[index] = max(ranks[index], *(_rank(cell, options["missing"]) for cell in cells))
            if empty[index] is None and "" in cells:
                empty[index] = numbers[cells.index("")]
        count += len(rows)
    if not count:
        raise ValueError(f"{path}: no rows below the names of the columns")
    kinds = [wanted.get(name, KINDS[rank]) for name, rank in zip(columns, ranks)]
    for name, kind, line in zip(columns, kinds, empty):
        if line is not None and kind is not str and "" not in options["missing"]:
            raise ValueError(f"{path}, line {line}, column {name!r}: empty; missing=('',) reads that as nan")
    return columns, kinds, count


def _rank(cell, missing):
    """0 for an integer (or an empty cell, which decides nothing), 1 for a number or a missing one, 2 for text."""
    if cell in missing:
        return 1
    if not cell or INTEGER.fullmatch(cell):
        return 0
    return 1 if NUMBER.fullmatch(cell) and not LONGER.fullmatch(cell) else 2


def _converted(path, numbers, column, kind, cells, missing):
    if kind is str:
        return np.array(cells, np.dtypes.StringDType())
    values = []
    for line, cell in zip(numbers, cells):
        pattern = INTEGER if kind is int else NUMBER
        if kind is float and cell in missing:
            values.append(np.nan)
        elif pattern.fullmatch(cell) and np.isfinite(value := kind(cell)):
            values.append(value)
        else:
            raise ValueError(f"{path}, line {line}, column {column!r}: {cell[:50]!r} is no {kind.__name__}")
    return values


def _columns(path, **options):
    """The names in the first line."""
    with _lines(path, **options) as lines:
        _, names = next(lines, (0, []))
    if not names or len(names) > MOST_COLUMNS:
        raise ValueError(f"{path}: {len(names)} columns in its first line; 1..{MOST_COLUMNS} are allowed")
    if not all(names) or len(set(names)) < len(names):
        wrong = next(name for name in names if not name or names.count(name) > 1)
        raise ValueError(f"{path}, line 1: the column name {wrong!r} is empty or there twice")
    return names


def _blocks(path, **options):
    """(line numbers, rows) of up to ROWS rows at a time, all as long as the first line."""
    with _lines(path, **options) as lines:
        _, names = next(lines)
        numbers, rows = [], []
        for line, row in lines:
            if len(row) != len(names):
                raise ValueError(f"{path}, line {line}: {len(row)} cells; the first line names {len(names)} columns")
            numbers.append(line)
            rows.append(row)
            if len(rows) * len(names) >= ROWS * 16 or len(rows) == ROWS:
                yield numbers, rows
                numbers, rows = [], []
        if rows:
            yield numbers, rows


@contextlib.contextmanager
def _lines(path, *, delimiter, most_bytes, missing):
    """An iterator of (line number, cells); empty lines are passed over."""
    with _files.opened(path, most_bytes=most_bytes) as stream:
        yield _parsed(path, io.TextIOWrapper(stream, encoding="utf-8-sig", newline=""), delimiter)


def _parsed(path, text, delimiter):
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        for row in reader:
            if any("\0" in cell for cell in row):
                raise csv.Error("a zero byte: this is no text")
            if row:
                yield reader.line_num, [cell.strip() for cell in row]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}, after line {reader.line_num}: {error}") from error
