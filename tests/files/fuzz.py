"""Readers fed with mutated files: python -m tests.files.fuzz [--count 100000] [--seed 0] [READER ...]

Whatever the bytes, a reader returns, or raises one of its documented errors, in bounded time and memory; it executes
nothing, starts nothing, connects to nothing and changes no file. What it did is heard from Python's own audit events.
"""

import argparse
import codecs
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable

SECONDS = 5.0  # of a processor, for one call: a busy machine changes nothing
MEMORY = 2**28  # bytes by which the process may grow over all calls
DOCUMENTED = (ValueError, TypeError, OSError)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
FORBIDDEN = {
    "exec", "compile", "pickle.find_class", "marshal.loads", "os.system", "os.exec", "os.fork", "os.posix_spawn",
    "subprocess.Popen", "socket.connect", "socket.bind", "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link",
    "os.symlink", "os.truncate", "os.chmod", "shutil.rmtree", "ctypes.dlopen", "tempfile.mkstemp", "import",
}  # fmt: skip
CHANGING = {
    "os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "shutil.rmtree",
    "tempfile.mkstemp",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Reader:
    """One reader, and good files of its kind to begin with."""

    good: list  # bytes
    read: Callable  # of the path
    prepare: Callable = lambda folder: folder / "file"  # the file to be written, its surroundings made
    errors: tuple = DOCUMENTED
    heavy: bool = False  # milliseconds rather than microseconds a call
    exact: bool = False  # nothing but the good files may be read
    allowed: frozenset = frozenset()  # events that reading needs


@dataclasses.dataclass
class Report:
    """What came of a reader."""

    calls: int = 0
    read: int = 0  # files that were read all the same
    refused: int = 0
    slowest: float = 0.0
    grown: int = 0  # bytes
    faults: list = dataclasses.field(default_factory=list)


class Ear:
    """Hears what the interpreter does; a hook cannot be taken away, so it has a switch."""

    def __init__(self):
        self.on, self.heard, self.allowed = False, [], frozenset()
        sys.addaudithook(self._hear)

    def _hear(self, event, arguments):
        if not self.on or event in self.allowed:
            return
        if event in FORBIDDEN or (event == "open" and self._writes(arguments)):
            self.heard.append(f"{event} {arguments!r:.200}")

    @contextlib.contextmanager
    def writing(self):
        """A list of what was done to files meanwhile; what a first import leaves in its own places does not count."""
        self.allowed, self.on = FORBIDDEN - CHANGING, True
        self.heard.clear()
        found = []
        try:
            yield found
        finally:
            self.on, self.allowed = False, frozenset()
            found += [event for event in self.heard if not any(own in event for own in ("__pycache__", "matplotlib"))]

    @staticmethod
    def _writes(arguments):
        return isinstance(arguments[2], int) and bool(arguments[2] & WRITING)


EARS = []


def ear():
    """The one ear of this process."""
    if not EARS:
        EARS.append(Ear())
    return EARS[0]


def mutated(moments, good):
    """A good file with one to four changes of the kinds that break readers."""
    raw = bytearray(moments.choice(good))
    for _ in range(moments.choice((1, 1, 1, 2, 4))):
        moments.choice(CHANGES)(moments, raw, good)
    return bytes(raw)


def _flip(moments, raw, good):
    if raw:
        raw[moments.randrange(len(raw))] ^= 1 << moments.randrange(8)


def _byte(moments, raw, good):
    if raw:
        raw[_early(moments, raw)] = moments.choice((0, 1, 10, 34, 44, 127, 128, 255, moments.randrange(256)))


def _number(moments, raw, good):
    at, wide = _early(moments, raw), moments.choice((2, 4, 8))
    value = moments.choice((0, 1, 2**7, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)) % 2 ** (8 * wide)
    raw[at : at + wide] = value.to_bytes(wide, moments.choice(("big", "little")))


def _cut(moments, raw, good):
    del raw[moments.randrange(len(raw) + 1) :]


def _remove(moments, raw, good):
    at = _early(moments, raw)
    del raw[at : at + moments.randrange(1, 64)]


def _repeat(moments, raw, good):
    at = _early(moments, raw)
    raw[at:at] = raw[at : at + moments.randrange(1, 64)] * moments.randrange(1, 9)


def _insert(moments, raw, good):
    at = _early(moments, raw)
    raw[at:at] = moments.choice(
        (moments.randbytes(8), b"\0" * 9, b"[" * 99, b'"', b"nan", b"1e999", b"\x80\x02c", b".")
    )


def _splice(moments, raw, good):
    other = moments.choice(good)
    at = _early(moments, raw)
    raw[at:] = other[moments.randrange(len(other) + 1) :]


CHANGES = (_flip, _flip, _byte, _number, _cut, _remove, _repeat, _insert, _splice)


def _early(moments, raw):
    """A place, often in the head, where a format says what follows."""
    return moments.randrange(max(1, moments.choice((len(raw), min(len(raw), 128)))))


def fuzz(reader, count, seed, folder):
    """Feed `count` mutated files to a reader."""
    moments, report, listening = random.Random(seed), Report(), ear()
    path = reader.prepare(pathlib.Path(folder))
    for good in reader.good:
        path.write_bytes(good)
        reader.read(path)  # a good file is read, whatever is imported on the way
    _call(reader, path, b"")
    for encoding in (
        "utf-16-be",
        "utf-16-le",
        "utf-32-be",
        "utf-32-le",
    ):  # JSON may be any of them; loaded when asked for
        codecs.lookup(encoding)
    begin, there = _memory(), _there(folder)
    listening.allowed = reader.allowed
    for _ in range(count):
        raw = mutated(moments, reader.good)
        listening.heard.clear()
        listening.on = True
        start = time.thread_time()
        try:
            listening.on = False
            path.write_bytes(raw)
            listening.on = True
            fault = _call(reader, path, raw)
        finally:
            listening.on = False
        report.slowest = max(report.slowest, time.thread_time() - start)
        report.calls += 1
        report.read += fault is None
        report.refused += fault == ""
        if fault is None and reader.exact and raw not in reader.good:
            fault = "read as good"
        if fault or listening.heard:
            report.faults.append((fault or listening.heard[0], raw[:200]))
    if _there(folder) != there:
        report.faults.append((f"files changed: {_there(folder) ^ there}", b""))
    report.grown = _memory() - begin
    return report


def _call(reader, path, raw):
    """None if it was read, "" if it was refused as documented, else what was wrong."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(path)
    except reader.errors:
        return ""
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"{type(error).__name__}: {str(error)[:200]}"
    return None


def _there(folder):
    return {str(path) for path in pathlib.Path(folder).rglob("*")}


def _memory():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def faults(report):
    """What is wrong with a report, as texts."""
    found = [f"{what} on {raw!r}" for what, raw in report.faults]
    if report.slowest > SECONDS:
        found.append(f"one call took {report.slowest:.1f} s")
    if report.grown > MEMORY:
        found.append(f"the process grew by {report.grown / 2**20:.0f} MB")
    return found


def main(arguments):
    """Fuzz the readers, print a line of JSON for each, and return 1 if one failed."""
    from tests.files import readers

    parser = argparse.ArgumentParser(prog="python -m tests.files.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("readers", nargs="*")
    chosen, failed = parser.parse_args(arguments), False
    known = readers.readers()
    for name in chosen.readers or known:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            start = time.perf_counter()
            report = fuzz(known[name], chosen.count, chosen.seed, folder)
        wrong = faults(report)
        failed |= bool(wrong)
        about = {"reader": name, **dataclasses.asdict(report), "seconds": time.perf_counter() - start}
        print(json.dumps({**about, "faults": wrong[:5]}), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
