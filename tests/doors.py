"""A table of bad calls as a test: each is refused with an error that names the argument, before any work.

    bad(call, "argument", ...)      one row: `call` without arguments makes the bad call
    refused(row)                    the assertion

A row names the argument as the caller wrote it. What is allowed follows the word "must"; what came is shown.
"""

import dataclasses
from collections.abc import Callable
from contextlib import contextmanager

import jax


@dataclasses.dataclass(frozen=True)
class Row:
    """One bad call."""

    call: Callable
    argument: str  # as the caller wrote it
    kinds: tuple
    shown: str  # a piece of what came that the message must show

    def __str__(self):
        return f"{self.argument}-{self.shown or 'bad'}"


def bad(call, argument, *, shown="", kinds=(ValueError, TypeError, OSError)):
    """A row of the table."""
    return Row(call, argument, tuple(kinds) if isinstance(kinds, tuple | list) else (kinds,), shown)


def refused(row):
    """The bad call raises one of the documented kinds, names argument and value, and compiles nothing."""
    jax.clear_caches()
    with compilations() as compiled:
        try:
            row.call()
        except row.kinds as error:
            text, kind = str(error), type(error)
        else:
            raise AssertionError(f"accepted: {row.argument} {row.shown}")
    assert not kind.__module__.startswith(("jax", "numpy")), f"{kind.__name__} from a library: {text}"
    assert row.argument in text, f"the message must name {row.argument!r}: {text}"
    assert row.shown in text, f"the message must show {row.shown!r}: {text}"
    assert "got" in text or issubclass(kind, OSError), f"the message must say what came: {text}"
    assert not compiled, f"compiled {compiled} before the refusal"


@contextmanager
def compilations():
    """What jax compiles inside, one entry a program: rows are made of NumPy arrays, or of arrays made beforehand."""
    found = []

    def heard(event, duration, **_):
        if event.endswith("backend_compile_duration"):
            found.append(event)

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)
