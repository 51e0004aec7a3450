"""What a process takes: compiled programs, memory maps, resident memory.

On a CPU every kernel of a compiled program (a fusion, as a rule) takes three memory maps of its process for as long as
the program is kept, and Linux allows a process 65,530 of them.
"""

import contextlib
import dataclasses
import functools
import pathlib
import sys
import threading

SECONDS = 1.0  # between two counts


@dataclasses.dataclass
class Usage:
    """The largest numbers seen; None where the system does not tell."""

    programs: int | None = None  # compiled by jax
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


@functools.cache
def _compiled():
    """A list that grows by one for every program that this process compiles from now on."""
    import jax

    events = []

    def note(event, seconds, **more):
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(note)
    return events


def larger(one, other):
    """The larger of two numbers that may be None."""
    return max((value for value in (one, other) if value is not None), default=None)


@contextlib.contextmanager
def watch(seconds=SECONDS):
    """Count while the body runs; the `Usage` handed out is complete when it ends."""
    seen, ended, before = Usage(), threading.Event(), len(_compiled())

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
        seen.programs, seen.peak_memory = len(_compiled()) - before, memory()
