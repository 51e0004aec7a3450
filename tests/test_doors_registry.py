"""Every public function refuses every bad value of every argument: a table made from the registry, not by hand."""

import os
import pathlib
import re
import signal
from contextlib import contextmanager

import jax
import numpy as np
import pytest

from tests import registry
from tests.files import fuzz

FUNCTIONS = registry.functions()
REGISTERED = registry.calls()
# Rows that are not refused yet: each must fail, so that a mended row leaves the file, which is meant to be empty.
KNOWN = frozenset((pathlib.Path(registry.__file__).parent / "known.txt").read_text(encoding="utf-8").splitlines())
TRYING = {"reporting.writable"}  # the folder is bad when it cannot be written, which only writing tells


class Worked(BaseException):
    """The call began to compile instead of refusing."""


class Endless(BaseException):
    """The call ran on instead of refusing."""


@contextmanager
def no_work(seconds=20.0):
    """Stop the call as soon as it compiles, or after some seconds."""

    def heard(event, duration, **_):
        if event.endswith("jaxpr_to_mlir_module_duration"):
            raise Worked

    def late(*_):
        raise Endless

    before = signal.signal(signal.SIGALRM, late)
    jax.monitoring.register_event_duration_secs_listener(heard)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        jax.monitoring.unregister_event_duration_listener(heard)


def judged(bad):
    """What is wrong with the answer to a bad call; empty if it is refused as it should be."""
    with fuzz.ear().writing() as written:
        answer = answered(bad)
    touched = written and bad.function not in TRYING
    return answer or (f"touches files: {written[0]}" if touched else "")


def answered(bad):
    """What is wrong with the error of a bad call."""
    try:
        with no_work():
            bad.call()
    except (ValueError, TypeError, OSError) as error:
        return unclear(bad, error)
    except (Worked, Endless) as error:
        return type(error).__name__
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:150]}"
    return "accepted"


def unclear(bad, error):
    """What the message does not say."""
    text = str(error)
    if not re.search(rf"(?<!\w){re.escape(bad.argument)}(?!\w)", text):
        return f"does not name it: {text[:150]}"
    if isinstance(error, OSError):
        return ""
    if "must" not in text or "got" not in text:
        return f"does not say what is allowed and what came: {text[:150]}"
    if not any(piece in text for piece in pieces(bad.value)):
        return f"does not show {registry.shown(bad.value)}: {text[:150]}"
    return ""


def pieces(value):
    """Of which the message must show one."""
    if isinstance(value, str) and value:
        return [value]
    if isinstance(value, str | int | float | complex | None):
        return [repr(value)[:40]]  # a number of four hundred digits is not told in full
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        entries = [str(value.ravel()[0])] if isinstance(value, np.ndarray) and value.size else []
        empty = [f"({length},)" for length in value.shape[:1] if not length]
        return [str(tuple(value.shape)), str(value.dtype), *entries, *empty]
    return [""]


def wrong(name):
    """row -> what is wrong with its answer, for all rows of a function that are not refused as they should be."""
    answers = ((str(bad), judged(bad)) for bad in registry.bad_calls(name, FUNCTIONS[name], REGISTERED))
    return {row: answer for row, answer in answers if answer}


@pytest.mark.parametrize("name", list(REGISTERED[0]))
def test_every_bad_value_is_refused_before_any_work(name):
    found = wrong(name)
    assert not {row: answer for row, answer in found.items() if row not in KNOWN}
    assert not [row for row in KNOWN if row.startswith(f"{name}(") and row not in found]


@pytest.mark.float32  # the good calls are made of NumPy's float64, which jax does not have by default
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in REGISTERED[0] if not name.startswith(registry.NOT_RUN)])
def test_the_good_call_is_accepted_after_all_the_bad_ones(name):
    wrong(name)
    FUNCTIONS[name](**registry.good_call(name, FUNCTIONS[name], REGISTERED))


def test_every_public_function_is_registered():
    named = set(REGISTERED[0]) | set(registry.UNCHECKED)
    assert set(FUNCTIONS) == named
    assert not set(REGISTERED[0]) & set(registry.UNCHECKED)
    for name, function in FUNCTIONS.items():
        if name in REGISTERED[0]:
            assert not registry.unknown(name, function, REGISTERED), name


def test_the_table_is_large():
    rows = sum(1 for name in REGISTERED[0] for _ in registry.bad_calls(name, FUNCTIONS[name], REGISTERED))
    assert rows > 9000


def test_a_row_that_is_accepted_or_unclear_is_found(tmp_path):
    def accepting(depth):
        return depth

    def silent(depth):
        raise ValueError("no")

    def working(depth):
        return jax.jit(lambda x: x + depth)(np.ones(3))

    def writing(depth):
        os.mkdir(tmp_path / "made")
        raise ValueError(f"depth must be less; got {depth}")

    def answer(function):
        return judged(registry.BadCall("f", "depth", 7, lambda: function(7)))

    assert answer(accepting) == "accepted"
    assert answer(silent).startswith("does not name")
    assert answer(working) == "Worked"
    assert answer(writing).startswith("touches files: os.mkdir")
