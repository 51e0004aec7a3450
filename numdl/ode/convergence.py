"""Does the error fall as declared? Observed order with its confidence interval, and Richardson extrapolation."""

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, PyTree

from numdl import checks, statistics, trees
from numdl.precision import narrow, widen
from numdl.records import record


@record
class Order:
    """The slope of log error against log h, on the part of the data that is asymptotic."""

    value: float  # nan if fewer than three errors could be used
    low: float  # confidence interval
    high: float
    constant: float  # error = constant * h**value
    pairwise: np.ndarray  # [n - 1]: log(errors[i] / errors[i + 1]) / log(steps[i + 1] / steps[i])
    used: np.ndarray  # [n] bool: which errors entered the slope
    errors: np.ndarray  # [n]
    steps: np.ndarray  # [n]


@record
class Richardson:
    """Two solutions combined into a better one."""

    value: object  # like the solutions
    error: jax.Array  # []: estimated norm of the error of the fine solution


def observed_order(
    errors: ArrayLike,
    steps: ArrayLike,
    *,
    low: float = 1e-12,
    high: float = 1e-2,
    confidence: float = 0.95,
) -> Order:
    """The order of convergence p that the errors show, with h proportional to 1 / steps.

        error = constant * h**p

    Only errors in (low, high) enter: larger ones are not yet asymptotic, smaller ones are rounding. Take errors
    relative to the solution, and numbers of steps that are powers of two, so that times are exact.

    Parameters
    ----------
    errors : array [n]          not negative
    steps : array [n]           numbers of steps, increasing
    low, high : scalars         the window
    confidence : scalar         of Student's interval for the slope, in (0, 1)
    Returns
    -------
    Order                       nan where fewer than three errors lie in the window
    Raises
    ------
    ValueError, TypeError       vectors of other lengths, negative errors, steps that do not increase, a bad window
    Source: the definition.
    """
    _check_window(low, high, confidence)
    errors = np.asarray(checks.array("errors", errors, ndim=1), np.float64)
    steps = np.asarray(checks.finite("steps", checks.array("steps", steps, ndim=1)), np.float64)
    _check_levels(errors, steps)
    used = (errors > low) & (errors < high)
    with np.errstate(divide="ignore", invalid="ignore"):
        pairwise = np.diff(np.log(errors)) / -np.diff(np.log(steps))
    if used.sum() < 3:
        return Order(np.nan, np.nan, np.nan, np.nan, pairwise, used, errors, steps)
    line = statistics.slope(-np.log(steps[used]), np.log(errors[used]), confidence)
    return Order(line.value, line.low, line.high, np.exp(line.intercept), pairwise, used, errors, steps)


def study(
    solve: Callable[[int], PyTree],
    *,
    steps: Sequence[int],
    reference: PyTree | None = None,
    low: float = 1e-12,
    high: float = 1e-2,
    confidence: float = 0.95,
) -> Order:
    """Observed order of convergence of solve(steps) -> solution, against a reference or against itself.

    Errors are Euclidean norms relative to the reference. Without one, the differences of consecutive solutions take
    the place of the errors of the coarser ones: they fall with the same order if the numbers of steps grow by one
    factor. A residual network is forward Euler of a neural ODE: its order in depth is 1.

    Parameters
    ----------
    solve : function            number of steps -> pytree
    steps : sequence of int     increasing, three or more
    reference : pytree          the exact solution, if it is known
    low, high : scalars         the window of errors that count, as in `observed_order`
    confidence : scalar         of Student's interval for the slope, in (0, 1)
    Raises
    ------
    ValueError, TypeError       steps that do not increase (by one factor, without a reference), a bad window
    Source: the definition.
    Twin: analysis.refinement.study.    Experiments: c1, c4.
    """
    checks.accepts("solve", solve, 1, "solve(steps)")
    levels = checks.wholes("steps", steps, fewest=2)
    _check_window(low, high, confidence)
    solutions = [solve(n) for n in levels]
    if reference is not None:
        errors = [_relative(solution, reference) for solution in solutions]
        return observed_order(errors, levels, low=low, high=high, confidence=confidence)
    ratios = np.diff(np.log(levels))
    if not np.allclose(ratios, ratios[:1]):
        raise checks.BadValue(f"steps must grow by one factor where there is no reference; got {tuple(levels)}")
    errors = [_relative(a, b) for a, b in itertools.pairwise(solutions)]
    return observed_order(errors, levels[:-1], low=low, high=high, confidence=confidence)


def richardson(coarse: PyTree, fine: PyTree, *, order: int, factor: float = 2) -> Richardson:
    """A solution of higher order from two of one scheme, the fine one with `factor` times as many steps.

        value = fine + (fine - coarse) / (factor**order - 1),    error = |fine - coarse| / (factor**order - 1)

    Parameters
    ----------
    coarse, fine : pytree       floating-point arrays, alike
    order : int                 of the scheme, >= 1
    factor : scalar             > 1
    Returns
    -------
    Richardson(value, error)
    Raises
    ------
    ValueError, TypeError       solutions that are not alike, order < 1, factor <= 1
    Source: Richardson 1911, Phil. Trans. R. Soc. A 210, 307-357.
    """
    order = checks.whole("order", order)
    factor = checks.finite("factor", factor, above=1.0, shape=())
    coarse = checks.floats("coarse", coarse)
    fine = checks.floats("fine", checks.like("fine", fine, coarse, of="coarse"))
    gain = 1 / (factor**order - 1)
    difference = jax.tree.map(lambda f, c: gain * (f - c), widen(fine), widen(coarse))
    return Richardson(narrow(jax.tree.map(jnp.add, widen(fine), difference), fine), trees.norm(difference))


def _relative(solution, reference):
    difference = jax.tree.map(lambda a, b: np.asarray(widen(a)) - np.asarray(widen(b)), solution, reference)
    size = _norm(reference)
    return _norm(difference) / size if size else _norm(difference)


def _norm(tree):
    return np.sqrt(sum(np.sum(np.abs(np.asarray(leaf, np.complex128)) ** 2) for leaf in jax.tree.leaves(tree)))


def _check_window(low, high, confidence):
    low = checks.number("low", low, least=0.0)
    if not (isinstance(high, float) and high == np.inf):  # a window without an upper end
        high = checks.number("high", high, above=0.0)
    if low >= high:
        raise checks.BadValue(f"high must be above low = {low:g}; got {high:g}")
    if not 0 < checks.finite("confidence", confidence, shape=()) < 1:
        raise checks.BadValue(f"confidence must be in (0, 1); got {confidence}")


def _check_levels(errors, steps):
    if errors.shape != steps.shape or errors.size < 2:
        found = f"{errors.shape}, {steps.shape}"
        raise checks.BadValue(f"errors and steps must be two vectors of one length >= 2; got {found}")
    if not (steps[0] > 0 and (np.diff(steps) > 0).all()):
        raise checks.BadValue(f"steps must be positive and increasing; got {steps}")
    if (errors < 0).any():
        raise checks.BadValue(f"errors must not be negative; got {errors}")
