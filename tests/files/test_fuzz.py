"""Mutated files do no harm: readers return or refuse as documented, in bounded time and memory, and do nothing else.

100,000 files a reader are the study `mutated` of tests/verification, in the long suite.
"""

import os
import pathlib
import pickle
import zlib

import pytest

from tests.files import fuzz, readers

READERS = readers.readers()
QUICK = 250


@pytest.mark.parametrize("name", READERS)
def test_mutated_files_are_read_or_refused(tmp_path, name):
    report = fuzz.fuzz(READERS[name], QUICK // (5 if READERS[name].heavy else 1), zlib.crc32(name.encode()), tmp_path)
    assert not fuzz.faults(report)
    assert report.read + report.refused == report.calls


class Payload:
    def __reduce__(self):
        return os.getenv, ("HOME",)


PLANTED = {
    "an error that is not documented": (lambda path: [][0], "IndexError"),
    "a pickle that is run": (lambda path: pickle.loads(pickle.dumps(Payload())), "pickle.find_class"),
    "a file that is written": (lambda path: path.with_name("more").write_text("x"), "open"),
    "code that is run": (lambda path: eval("1 + 1"), "compile"),
    "a command": (lambda path: os.system("true"), "os.system"),
}


@pytest.mark.parametrize("kind", PLANTED)
def test_harm_is_seen(tmp_path, kind):
    harm, name = PLANTED[kind]
    good = [b"good"]

    def read(path):
        if path.read_bytes() not in (*good, b""):
            harm(path)

    found = fuzz.faults(fuzz.fuzz(fuzz.Reader(good, read), 20, 0, tmp_path))
    assert found and any(name in fault for fault in found)


def test_time_and_memory_are_bounded():
    report = fuzz.Report(slowest=fuzz.SECONDS + 1, grown=fuzz.MEMORY + 1)
    assert len(fuzz.faults(report)) == 2


def test_nothing_of_a_reader_depends_on_the_folder(tmp_path):
    assert all(reader.prepare(pathlib.Path(tmp_path)).parent.is_relative_to(tmp_path) for reader in READERS.values())
