"""What a process takes: its memory maps and its resident memory.

Every compiled program of jax on a CPU takes several memory maps, and Linux allows a process 65,530 of them.
"""

import contextlib
import dataclasses
import pathlib
import sys
import threading

SECONDS = 1.0  # between two counts


@dataclasses.dataclass
class Usage:
    """The largest numbers seen; None where the system does not tell."""

    peak_maps: int | None = None
    peak_memory: int | None = None  # bytes


def maps(process="self"):
    """The number of memory maps of a process; None off Linux, or when it has ended."""
    try:
        return pathlib.Path(f"/proc/{process}/maps").read_bytes().count(b"\n") or None
    except OSError:
        return None


def memory():
    """The largest resident memory of this process so far in bytes; None where it is not known."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def larger(one, other):
    """The larger of two numbers that may be None."""
    return max((value for value in (one, other) if value is not None), default=None)


@contextlib.contextmanager
def watch(seconds=SECONDS):
    """Count while the body runs; the `Usage` handed out is complete when it ends."""
    seen, ended = Usage(), threading.Event()

    def count():
        seen.peak_maps = larger(seen.peak_maps, maps())

    def repeat():
        while not ended.wait(seconds):
            count()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()
        count()
        seen.peak_memory = memory()
