"""Every damage of a run's folder is refused with an error that names the file; what is whole is read, everywhere."""

import contextlib
import dataclasses
import errno
import io
import os
import shutil
import stat
import tracemalloc
import zipfile

import numpy as np
import pytest

from numdl import reporting
from numdl.optimize import train
from numdl.reporting import _files
from tests.files import damages

FILES = ("config.json", "claims.json", "record.npz", "environment.json", "source.py", "figure.svg")


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 10


def claim(measured=1.05):
    return reporting.Claim("the mean is kept", "a paper", 1.0, measured, 0.01, 0.06, "six errors", origin="exact")


class Drawing:
    """Writes a picture as matplotlib would, in no time."""

    def __init__(self, shift):
        self.shift = shift

    def savefig(self, held, *, format, **settings):
        held.write({"svg": f"<svg>{self.shift}</svg>".encode(), "png": b"\x89PNG"}[format])


def save(folder, width=10, shift=0.0, name="dice", source=__file__):
    record = {"values": np.arange(4.0) + shift, "names": np.array(["a", "b"])}
    settings = {"claims": [claim(1.05 + shift)], "seconds": 1.5 + shift, "figure": Drawing(shift), "source": source}
    return reporting.save(folder, name=name, config=Config(width), record=record, **settings).folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A results folder with two runs of one experiment."""
    results = tmp_path_factory.mktemp("whole")
    return save(results), save(results, 11, 1.0, source=damages.__file__)


@pytest.fixture
def runs(whole, tmp_path):
    results = tmp_path / "results"
    shutil.copytree(whole[0].parent.parent, results)
    return [results / folder.parent.name / folder.name for folder in whole]


DAMAGES = damages.of_a_run(FILES)


def test_the_table_is_long():
    assert len(DAMAGES) >= 140


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_run_is_refused_by_name(runs, damage):
    folder, other = runs
    DAMAGES[damage](folder, other)
    with pytest.raises((ValueError, OSError)) as caught:
        reporting.load(folder)
    file = damage.partition(":")[0].removesuffix(" sealed")
    alone = file in FILES and "sealed" not in damage and damage != "environment.json: of another run"
    named = str(folder / file) if alone else str(folder)
    assert named in str(caught.value), str(caught.value)
    assert str(caught.value).isprintable()
    reporting.load(other)


def test_a_whole_run_is_read_where_nothing_can_be_written(runs):
    folder, _ = runs
    before = sorted((str(path), path.stat().st_mtime_ns) for path in folder.parent.rglob("*"))
    for path in (folder, folder.parent):
        path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        run = reporting.load(folder)
    finally:
        for path in (folder.parent, folder):
            path.chmod(stat.S_IRWXU)
    assert run.arrays["values"].tolist() == [0.0, 1.0, 2.0, 3.0] and run.claims == [claim()]
    assert before == sorted((str(path), path.stat().st_mtime_ns) for path in folder.parent.rglob("*"))


def test_a_run_under_a_name_of_ones_own_is_read(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "the good one")
    assert reporting.load(tmp_path / "the good one").config == {"width": 10}


def test_a_run_in_another_experiments_folder_is_refused(runs):
    target = runs[0].parent.parent / "coin" / runs[0].name
    shutil.copytree(runs[0], target)
    with pytest.raises(ValueError, match="folder must be where its run was kept, dice/.*coin"):
        reporting.load(target)


def test_a_run_of_before_there_was_a_seal_says_so(runs):
    folder, _ = runs
    damages._about(folder, lambda about: damages._without("format")(damages._without("digest")(about)))
    with pytest.warns(UserWarning, match=r"environment\.json was kept by an earlier version"):
        assert reporting.load(folder).config == {"width": 10}


def bomb(size):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("values.npy", "w") as entry:
        np.lib.format.write_array(entry, np.zeros(size, np.uint8))
    return held.getvalue()


def test_arrays_are_not_unpacked_beyond_the_limit(runs):
    damages.forge(runs[0], "record.npz", bomb(2**25))
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r"record\.npz must be.*too large.*most_bytes=1048576"):
            reporting.load(runs[0], most_bytes=2**20)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert reporting.load(runs[0]).arrays["values"].nbytes == 2**25


@pytest.mark.parametrize(
    "name, value, match", [("most_bytes", 0, "most_bytes must be"), ("most_bytes", "1", "most_bytes")]
)
def test_the_limit_is_checked(runs, name, value, match):
    with pytest.raises((ValueError, TypeError), match=match):
        reporting.load(runs[0], **{name: value})


def test_a_killed_writer_leaves_nothing_that_stays(tmp_path):
    """The trial of a folder has no name; a page that was cut off is swept away by the next one."""
    path = tmp_path / "index.html"
    left = tmp_path / ".index.html-77-0123abcd.new"
    left.write_text("half")
    with open(tmp_path / ".index.html-78-0123abcd.new", "wb") as held:
        assert _files._held(held)  # a writer that lives
        reporting.publish(path, "whole")
    assert sorted(file.name for file in tmp_path.iterdir()) == [".index.html-78-0123abcd.new", "index.html"]


def test_a_disk_without_locks_is_written(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(fcntl, "flock", failing_lock)
    left = tmp_path / ".page.html-77-0123abcd.new"
    left.write_text("half, or of a writer that lives")
    assert reporting.publish(tmp_path / "page.html", "whole").read_text() == "whole"
    assert left.exists()
    assert reporting.load(save(tmp_path)).name == "dice"


def failing_lock(file, how):
    raise OSError(errno.ENOSYS, "Function not implemented")


WRITERS = {
    "a run": (lambda folder, shift: save(folder, shift=shift), lambda folder: loaded(folder)),
    "a page": (lambda folder, shift: reporting.publish(folder / "page.html", str(shift)), lambda folder: shown(folder)),
    "a history": (
        lambda folder, shift: train.History(np.full(3, shift), {}).save(folder / "history.npz"),
        lambda folder: train.History.load(folder / "history.npz").loss[0],
    ),
}


def loaded(folder):
    (path,) = (path for path in (folder / "dice").iterdir() if path.is_dir())
    return reporting.load(path).arrays["values"][0]


def shown(folder):
    return float((folder / "page.html").read_text())


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("earlier", [True, False])
def test_the_disk_is_full_at_every_call(tmp_path, monkeypatch, kind, earlier):
    """At the k-th call that asks something of the disk, for all k: what was there is there, nothing half is left."""
    write, read = WRITERS[kind]
    for at in range(1, 1000):
        folder = tmp_path / str(at)
        folder.mkdir()
        if earlier:
            write(folder, 1.0)
        before = content(folder)
        with monkeypatch.context() as patch:
            calls = failing(patch, at)
            with contextlib.suppress(OSError):
                write(folder, 2.0)
        if len(calls) < at:
            break
        if content(folder) != before:  # the disk was full after the new one had taken its place
            assert read(folder) == 2.0
            assert len(content(folder)) == len(before) or not before
    assert at >= 3
    assert read(folder) == 2.0


CALLS = ("fsync", "replace", "rename", "mkdir")


def failing(patch, at):
    """Disk calls, counted; the one of this number fails as on a full disk."""
    calls = []

    def spoiled(real):
        def call(*arguments, **options):
            calls.append(real)
            if len(calls) == at:
                raise OSError(28, "No space left on device")
            return real(*arguments, **options)

        return call

    for name in CALLS:
        patch.setattr(os, name, spoiled(getattr(os, name)))
    real = open

    def opened(path, mode="r", *arguments, **options):
        if "w" in mode or "a" in mode or "x" in mode:
            calls.append(real)
            if len(calls) == at:
                raise OSError(28, "No space left on device")
        return real(path, mode, *arguments, **options)

    patch.setattr("builtins.open", opened)
    return calls


def content(folder):
    """path -> bytes of all files that are no locks."""
    files = (path for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
