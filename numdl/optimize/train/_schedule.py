"""When the loop comes to the host: observations, validation, checkpoints."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from jaxtyping import PyTree

from numdl import checks


@dataclasses.dataclass(frozen=True)
class Every:
    """Steps with one period."""

    period: int
    start: int

    def __call__(self, step):
        """Whether this is one of them."""
        step = checks.whole("step", step, least=0)
        return step >= self.start and (step - self.start) % self.period == 0


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """See `early_stopping`."""

    when: Callable | Iterable
    function: Callable
    patience: int
    gain: float


def every(period: int, *, start: int = 0) -> Every:
    """The steps start, start + period, ...: a number of completed steps, 0 before the first one.

    Parameters
    ----------
    period : int                >= 1
    start : int                 the first of them, >= 0
    Returns
    -------
    Every                       for `fit(observe=...)` and `early_stopping`; called, whether a step is one of them
    Raises
    ------
    ValueError, TypeError       numbers that are not whole or too small
    """
    return Every(checks.whole("period", period), checks.whole("start", start, least=0))


def early_stopping(
    when: Callable[[int], bool] | Iterable[int],
    function: Callable[[PyTree], Any],
    *,
    patience: int,
    gain: float = 0.0,
) -> EarlyStopping:
    """Stop when `function(params)`, the smaller the better, has not improved for `patience` validations in a row.

    `fit` then returns the parameters with the smallest value; the values are in history.observed["validation"]. A
    value that is not finite is not an improvement, nor is one by `gain` or less.

    Parameters
    ----------
    when : train.every(n), steps, or step -> bool
                                after which numbers of steps to look
    function : function         params -> a number, such as the loss on validation data
    patience : int              validations in a row without improvement, >= 1
    gain : float                what counts as an improvement, >= 0
    Returns
    -------
    EarlyStopping               for `fit(early_stopping=...)`
    Raises
    ------
    ValueError, TypeError       not functions of these arguments, numbers out of their range
    """
    checks.accepts("function", function, 1, "function(params)")
    when = when if callable(when) else _steps("when", when)
    if callable(when) and not isinstance(when, Every):
        checks.accepts("when", when, 1, "when(step)")
    patience = checks.whole("patience", patience)
    gain = checks.finite("gain", gain, least=0.0, shape=())
    return EarlyStopping(when, function, patience, gain)


def chosen(name, when, steps):
    """The chosen steps in 0..steps as a sorted array; `when` is a function of the step or the steps themselves."""
    if isinstance(when, Every):
        return np.arange(when.start, steps + 1, when.period)
    if callable(when):
        checks.accepts(name, when, 1, "when(step)")
        return np.array([step for step in range(steps + 1) if _answer(name, step, when)], int)
    return np.array(sorted({step for step in _steps(name, when) if step <= steps}), int)


@contextlib.contextmanager
def noted(place, step):
    """An error of the caller's own function says, in a note, in which argument and at which step it was called."""
    try:
        yield
    except Exception as error:
        error.add_note(f"in {place} at step {step}")
        raise


def _answer(name, step, when):
    """Whether a function chooses a step: by a bool, or a whole number, of which 0 means no."""
    with noted(name, step):
        answer = when(step)
    if np.shape(answer) or np.asarray(answer).dtype.kind not in "biu":
        raise checks.BadType(f"{name} must be True or False at every step; got {checks.shown(answer)} at step {step}")
    return bool(answer)


def _steps(name, when):
    """The steps themselves, as a tuple of ints."""
    if isinstance(when, str) or not isinstance(when, Iterable) or getattr(when, "shape", None) == ():
        raise checks.BadType(
            f"{name} must be train.every(n), the steps themselves, or a function of a step; got {when!r}"
        )
    return tuple(checks.whole(name, step, least=0) for step in when)
