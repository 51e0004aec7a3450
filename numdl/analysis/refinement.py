"""MEASURED: is this residual network an ODE? Cut its steps, exchange its solver, and see whether its outputs stay.

A network that approximates y' = F(y, theta(t)) has a limit as steps are cut, reaches it at the order of its scheme, and
classifies as before on the way. One that has learned its own discretization error does neither.

    >>> def refine(factor, solver):  # of a network: residual.refine, then residual.with_tableau
    ...     steps = 4 * factor
    ...     return lambda y: y * (1 - 1 / steps) ** steps  # Euler's method for y' = -y
    >>> found = study(refine, np.array([[1.0, 2.0], [3.0, 4.0]]))
    >>> print(f"{found.order[0]:.0f}")
    1

Twin: ode.refinement (the parameters on finer and coarser steps). What a study says: audit.verdicts.refinement.

Source: Queiruga et al. 2020, arXiv:2008.02389; Ott et al. 2021, arXiv:2007.15386; Sander et al. 2022, arXiv:2205.14612.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Integer, PyTree

from numdl import checks, statistics
from numdl.records import record, static


@record
class Refinement:
    """Outputs of one network at several step sizes and by several solvers."""

    factors: np.ndarray  # [n]: steps relative to the network's own
    distance: np.ndarray  # [solvers, n]: |outputs - limit| / |limit|; the limit: last solver, finest steps
    differences: np.ndarray  # [solvers, n - 1]: |outputs(factor i) - outputs(factor i + 1)| / |limit|
    order: np.ndarray  # [solvers]: at which the differences fall; nan if fewer than three stand above rounding
    low: np.ndarray  # [solvers]: its confidence interval
    high: np.ndarray  # [solvers]
    same: np.ndarray  # [solvers, n]: share of examples with the class of the network as it was
    accuracy: np.ndarray  # [solvers, n]: share of examples with the right class; nan without labels
    finite: np.ndarray  # [solvers, n] bool: all outputs are finite numbers
    solvers: tuple = static()


def study(
    refine: Callable[[int, Any], Callable[[PyTree], Array]],
    x: PyTree,
    *,
    factors: Sequence[int] = (1, 2, 4, 8, 16),
    solvers: Sequence[Any] = ("own",),
    labels: Integer[ArrayLike, "N"] | None = None,
    confidence: float = 0.95,
) -> Refinement:
    """MEASURED outputs of a network whose steps are cut by `factors` and taken by `solvers`, compared with each other.

        distance = |outputs - limit| / |limit|,   order: slope of ln |outputs(factor i) - outputs(factor i + 1)|

    The first solver at the first factor is the network as it was (forward Euler, for a ResNet as a neural ODE); the
    last solver at the last factor is taken for the limit, so let it be the most accurate one.

    Parameters
    ----------
    refine : function           (factor, solver) -> function of x; the module shows one
    x : pytree                  inputs, leaves [N, ...]
    factors : sequence of int   increasing, by one ratio: powers of two
    solvers : list or tuple     whatever `refine` understands
    labels : array [N]          the right classes, for the accuracy; None: it is nan
    confidence : scalar         of the interval for the order, in (0, 1)
    Returns
    -------
    Refinement                  tables [solvers, n], order of convergence [solvers] with its interval
    Raises
    ------
    ValueError, TypeError       fewer than two factors or not by one ratio, labels that do not fit, no function
    Source: Ott et al. 2021, arXiv:2007.15386.    Twin: ode.convergence.study.    Experiment: c4.
    """
    checks.accepts("refine", refine, 2, "refine(factor, solver)")
    x, factors, solvers = checks.leaves("x", x, examples=True), _factors(factors), _solvers(solvers)
    if not 0 < checks.finite("confidence", confidence, shape=()) < 1:
        raise checks.BadValue(f"confidence must be in (0, 1); got {confidence}")
    if labels is not None:
        labels = checks.shape("labels", checks.array("labels", labels), (len(jax.tree.leaves(x)[0]),))
        labels = np.asarray(checks.array("labels", labels, kind="integer"))
        checks.finite("labels", labels, least=0)
    outputs = [[_outputs(refine(int(factor), solver), x) for factor in factors] for solver in solvers]
    outputs = np.asarray(outputs)  # [solvers, n, N, d]
    size = _norm(outputs[-1, -1])
    with np.errstate(invalid="ignore", divide="ignore"):
        distance = _norm(outputs - outputs[-1, -1]) / size
        differences = _norm(np.diff(outputs, axis=1)) / size
    rounding = 1e3 * _epsilon(refine, x, factors, solvers)
    lines = [_order(factors, row, rounding, confidence) for row in differences]
    order, low, high = np.array(lines).T
    classes = outputs.argmax(axis=-1)
    return Refinement(
        factors=factors,
        distance=distance,
        differences=differences,
        order=order,
        low=low,
        high=high,
        same=(classes == classes[0, 0]).mean(axis=-1),
        accuracy=np.full(distance.shape, np.nan) if labels is None else (classes == labels).mean(axis=-1),
        finite=np.isfinite(outputs).all(axis=(2, 3)),
        solvers=tuple(str(getattr(solver, "name", solver)) for solver in solvers),
    )


def _solvers(solvers):
    if not isinstance(solvers, tuple | list) or not solvers:
        raise checks.BadType(f"solvers must be a sequence of at least one solver; got {solvers!r}")
    return solvers


def _factors(factors):
    if not isinstance(factors, tuple | list | range | np.ndarray):
        raise checks.BadType(f"factors must be at least 2 numbers that grow by one ratio; got {factors!r}")
    factors = [checks.whole(f"factors[{i}]", factor) for i, factor in enumerate(factors)]
    ratios = np.diff(np.log(factors))
    if len(factors) < 2 or not (ratios > 0).all() or not np.allclose(ratios, ratios[:1]):
        raise checks.BadValue(f"factors must be at least 2 numbers that grow by one ratio; got {tuple(factors)}")
    return np.asarray(factors)


def _outputs(apply, x):
    outputs = checks.accepts("refine(factor, solver)", apply, 1, "refine(factor, solver)(x)")(x)
    outputs = np.asarray(checks.array("refine(factor, solver)(x)", outputs), np.float64)
    if outputs.ndim != 2:
        raise checks.BadValue(f"refine(factor, solver)(x) must have shape (N, outputs); got {outputs.shape}")
    return outputs


def _epsilon(refine, x, factors, solvers):
    return float(jnp.finfo(jnp.result_type(refine(int(factors[0]), solvers[0])(x))).eps)


def _norm(outputs):
    return np.sqrt((outputs**2).sum(axis=(-2, -1)))


def _order(factors, differences, rounding, confidence):
    """Slope of the log differences that are small, so perhaps asymptotic, and no rounding."""
    used = np.isfinite(differences) & (differences > rounding) & (differences < 0.1)
    if used.sum() < 3:
        return np.nan, np.nan, np.nan
    line = statistics.slope(-np.log(factors[:-1][used]), np.log(differences[used]), confidence)
    return line.value, line.low, line.high
