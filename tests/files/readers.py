"""Every reader of the project with small good files, for the mutations of `fuzz`."""

import contextlib
import dataclasses
import gzip
import io
import pathlib
import pickle
import struct
import tempfile
import zipfile

import numpy as np

from numdl import parallel, reporting
from numdl.data import cifar, idx, npz, tables
from numdl.optimize import train
from numdl.parallel import _cells, _checkpoints
from numdl.reporting import _kept as kept
from tests.files.fuzz import DOCUMENTED, Reader

MOST = 2**22
FILES = ("environment.json", "config.json", "claims.json", "record.npz")


@dataclasses.dataclass(frozen=True)
class Config:
    """A run's config."""

    width: int = 10


def _npz(save=np.savez, **arrays):
    held = io.BytesIO()
    save(held, **arrays)
    return held.getvalue()


def _idx():
    head = struct.pack(">BBBBIII", 0, 0, 8, 3, 2, 3, 4)
    floats = struct.pack(">BBBBI3f", 0, 0, 0x0D, 1, 3, 1.0, 2.0, 3.0)
    return [head + bytes(range(24)), floats, gzip.compress(head + bytes(range(24)))]


def _pickled():
    entries = {b"data": np.zeros((2, 3072), np.uint8), b"labels": [3, 1], b"batch_label": b"one"}
    return [pickle.dumps(entries, protocol) for protocol in (2, 3, 4)]


def _run(folder, file):
    """A run's folder, one of whose files is the one that is mutated."""
    claim = reporting.Claim("kept", "a paper", 1.0, 1.0, 0.1, 0.5, "five errors", origin="exact")
    record = {"values": np.arange(3.0), "names": np.array(["a"])}
    run = reporting.save(folder, name="dice", config=Config(), record=record, claims=[claim], seconds=1.0)
    return run.folder / file


def _kept(file):
    with tempfile.TemporaryDirectory() as folder:
        return _run(pathlib.Path(folder), file).read_bytes()


def _result(file):
    def prepare(folder):
        path = _run(folder, file)
        made.good[:] = [path.read_bytes()]  # its time is in it
        return path

    made = Reader([_kept(file)], lambda path: reporting.load(path.parent, most_bytes=MOST), prepare, exact=True)
    return made


def _labelled(path):
    return tables.labelled(path, label="species", classes=("rose", "tulip, red"))


def _history():
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "history.npz"
        train.History(np.arange(3.0), {"w": (np.arange(2), np.ones((2, 2)))}, notes=("a note",)).save(path)
        return path.read_bytes()


TREE = {"b": np.ones(2, np.float32), "w": np.arange(3, dtype=np.float32)}


def _saved(folder):
    """A checkpoint in the form that is written where there is no orbax."""
    about = {"format": _checkpoints.FORMAT, "step": 3, "leaves": _checkpoints._signature(TREE)}
    arrays = {f"leaf{i}": leaf for i, leaf in enumerate(TREE.values())}
    _checkpoints._write(folder / "3.npz", arrays, about)
    return folder / "3.npz"


def _checkpoint():
    with tempfile.TemporaryDirectory() as folder:
        return _saved(pathlib.Path(folder)).read_bytes()


def _restored(path):
    return parallel.restore(path.parent, TREE)


def _cell():
    with tempfile.TemporaryDirectory() as folder:
        _cells.write(pathlib.Path(folder), "file", {"function": "f", "value": {"x": np.arange(3)}, "seconds": 1.0})
        return (pathlib.Path(folder) / "file.npz").read_bytes()


def _configured(path):
    """Arguments of a command line, one on each line."""
    from experiments import fields

    text = path.read_bytes().decode("utf-8", "surrogateescape")
    with contextlib.redirect_stdout(io.StringIO()):
        return fields.configure("dice", Settings, text.split("\n"))


@dataclasses.dataclass(frozen=True)
class Settings:
    """An experiment's config with a field of every kind."""

    depth: int = 3
    seed: int = 0
    rate: float = 0.1
    widths: tuple[int, ...] = (3, 4)
    name: str = "tanh"
    deep: bool = False

    @classmethod
    def tiny(cls):
        return cls()


def _archive(*entries):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries:
            file.writestr(name, content)
    return held.getvalue()


def readers():
    """name -> Reader."""
    from experiments.fields import UsageError

    arrays = {"images": np.arange(12, dtype=np.uint8), "names": np.array(["rose", "tulip"]), "one": np.array(True)}
    table = b'length,count,species\n1.5,3,rose\n-2,4,"tulip, red"\n1e-3,5,rose\n'
    made = {
        "idx": Reader(_idx(), lambda path: idx.read(path, most_bytes=MOST)),
        "cifar": Reader([bytes([7]) + bytes(3072)], lambda path: cifar.read_binary(path, classes=10, most_bytes=MOST)),
        "pickle": Reader(_pickled(), lambda path: cifar.read_pickle(path, classes=10, most_bytes=MOST)),
        "npz": Reader(
            [_npz(**arrays), _npz(np.savez_compressed, **arrays)], lambda path: npz.read(path, most_bytes=MOST)
        ),
        "csv": Reader([table, gzip.compress(table)], lambda path: tables.read(path, most_bytes=MOST)),
        "labelled": Reader([table], _labelled),
        "history": Reader([_history()], train.History.load),
        "cell": Reader(
            [_cell()], lambda path: _cells.read(path.parent, "file", "f"), lambda folder: folder / "file.npz"
        ),
        "parallel checkpoint": Reader([_checkpoint()], _restored, _saved),
        "config": Reader(
            [b"--depth\n4\n--widths\n3\n9\n--rate\n1e-3", b"--seed=7\n--name\nrelu\n--deep", b"--no-deep\n--rate=0.5"],
            _configured, errors=(UsageError,), heavy=True,
            allowed=frozenset({"import", "exec", "compile", "marshal.loads"}),
        ),
        "claims": Reader(
            [_kept("claims.json")], lambda path: kept._claims(path.read_bytes()),
            errors=(*DOCUMENTED, KeyError, RecursionError),
        ),
        **{f"result {file}": _result(file) for file in FILES},
    }  # fmt: skip
    return made
