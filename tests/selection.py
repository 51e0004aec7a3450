"""Which of many like cases run in the quick suite; all run in `make test-all`."""

import pytest


def some_fast(cases, fast):
    """The cases, all but the chosen places marked slow: each kind of comparison stays in the quick suite."""
    cases = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*case, marks=() if place in fast else pytest.mark.slow) for place, case in enumerate(cases)]


def in_turn(cases, turn, every=3):
    """One of `every` cases in the quick suite; tests with other turns take the others."""
    cases = list(cases)
    return some_fast(cases, fast=range(turn % every, len(cases), every))
