"""Fixed-grid integration of y' = f(t, y, theta(t)) under one scan: whole trajectories or the end point.

    t[n] = t0 + n h,   h = (t1 - t0) / steps,   y[n+1] = step(y[n])

The state y is any pytree of floating-point arrays, and so is theta. How theta depends on time is said explicitly:

    interpolation=None          one theta for all times
    interpolation="constant"    leaves [steps, ...]: theta[n] on the whole of step n, as in a residual network
    interpolation="linear"      leaves [steps + 1, ...]: values at t[n], linear in between

Step sizes and times are computed in the widest dtype of y, float32 at least. So are half-precision states, parameters
and their gradients: y + h f(y) in bfloat16 stands still where h f is below 1/256 of y. The field sees float32 then, and
what comes out has the dtype that came in. Differentiable with respect to y0, theta, t0 and t1; `adjoint` says how.
Everything here is compiled once for each field, scheme and number of steps: hand in the same function object again, not
a new lambda.

    >>> import jax.numpy as jnp
    >>> from numdl.ode import integrate, tableaus
    >>> def decay(t, y, theta):
    ...     return -theta * y
    >>> y = integrate.endpoint(decay, jnp.ones(2), jnp.ones(()), t1=1.0, steps=10, tableau=tableaus.rk4)
    >>> print(f"{y[0]:.4f}")  # exp(-1)
    0.3679
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, PyTree

from numdl import checks
from numdl._compiled import jit
from numdl.ode import _adaptive, _doors, _grids, adjoints, schemes, tableaus
from numdl.ode.tableaus import Tableau
from numdl.precision import narrow, widen
from numdl.records import record
from numdl.typing import Field


@record
class Trajectory:
    """A solution on the grid."""

    times: jax.Array  # [steps + 1]
    states: object  # leaves [steps + 1, ...]: y0 first
    residual: jax.Array  # [steps]: last Newton correction, relative; 0 where a step solves no equations
    converged: jax.Array  # []: every residual below 100 units of rounding, and the last state finite


@record
class Adaptive:
    """An adaptive solution at the times asked for."""

    times: jax.Array  # [n]
    states: object  # leaves [n, ...]
    steps: jax.Array  # []: accepted and rejected steps
    converged: jax.Array  # []: the end was reached within max_steps


def trajectory(
    field: Field | tuple[Field, Field],
    y0: PyTree,
    theta: PyTree,
    *,
    t1: ArrayLike,
    steps: int,
    tableau: Tableau | None = None,
    scheme: schemes.Scheme | None = None,
    t0: ArrayLike = 0.0,
    interpolation: str | None = None,
    adjoint: Callable = adjoints.direct,
) -> Trajectory:
    """The states at all grid times: Trajectory(times, states, residual, converged).

    Parameters
    ----------
    field : function            (t, y, theta) -> y'; what other schemes than Runge-Kutta take is said in `schemes`
    y0 : pytree                 floating-point arrays
    theta : pytree              parameters; a leading time axis on every leaf if `interpolation` is given
    tableau : Tableau           a Runge-Kutta method, or
    scheme : Scheme             schemes.leapfrog, verlet, coupling, semi_implicit(matrix): exactly one of the two
    t0, t1 : scalars            first and last time; t1 < t0 integrates backwards
    steps : int                 >= 1
    interpolation : str         None, "constant" or "linear": how theta depends on time
    adjoint : function          how the gradient is computed: adjoints.direct, checkpointed, reversible, ...
    Raises
    ------
    ValueError, TypeError       theta's time axis does not fit, the field does not return the shape of y, ...
    """
    return _solve(*_doors.problem(field, y0, theta, t0, t1, steps, tableau, scheme, interpolation, adjoint), save=True)


def endpoint(
    field: Field | tuple[Field, Field],
    y0: PyTree,
    theta: PyTree,
    *,
    t1: ArrayLike,
    steps: int,
    tableau: Tableau | None = None,
    scheme: schemes.Scheme | None = None,
    t0: ArrayLike = 0.0,
    interpolation: str | None = None,
    adjoint: Callable = adjoints.direct,
) -> PyTree:
    """The state at t1 only; the record of `trajectory` also tells whether implicit steps converged.

    Parameters
    ----------
    field, y0, theta, tableau, scheme, t0, t1, steps, interpolation, adjoint : as for `trajectory`
    Returns
    -------
    pytree like y0
    Raises
    ------
    ValueError, TypeError       as for `trajectory`
    """
    return _solve(*_doors.problem(field, y0, theta, t0, t1, steps, tableau, scheme, interpolation, adjoint), save=False)


def invert(
    field: Field | tuple[Field, Field],
    y1: PyTree,
    theta: PyTree,
    *,
    scheme: schemes.Scheme,
    t1: ArrayLike,
    steps: int,
    t0: ArrayLike = 0.0,
    interpolation: str | None = None,
) -> PyTree:
    """The state at t0 from the state at t1, by the scheme's exact algebraic inverse, step by step.

    Parameters
    ----------
    field, theta, t0, t1, steps, interpolation : as for `trajectory`
    y1 : pytree                 the state at t1
    scheme : Scheme             schemes.leapfrog, verlet or coupling
    Returns
    -------
    pytree like y1
    Raises
    ------
    ValueError, TypeError       the scheme has no inverse; else as for `trajectory`
    """
    _doors.invertible(field, scheme)
    return _undo(
        *_doors.problem(field, y1, theta, t0, t1, steps, None, scheme, interpolation, adjoints.direct, "y1")[:-1]
    )


def adaptive(
    field: Field,
    y0: PyTree,
    theta: PyTree,
    *,
    t1: ArrayLike,
    rtol: float,
    atol: float,
    t0: ArrayLike = 0.0,
    interpolation: str | None = None,
    times: ArrayLike | None = None,
    solver: Any = None,
    max_steps: int = 4096,
) -> Adaptive:
    """An adaptive solution by diffrax (Dormand-Prince 5(4) by default): what the fixed grid converges to.

    Differentiable in reverse mode by diffrax's own checkpointing. Where theta is piecewise in time the solver stops at
    every grid time, since the right-hand side or its slope jumps there.

    Parameters
    ----------
    field : function            (t, y, theta) -> y'
    y0, theta : pytree          as for `trajectory`
    t0, t1 : scalars            first and last time
    rtol, atol : scalars        error tolerances per step, > 0
    interpolation : str         None, "constant" or "linear": how theta depends on time
    times : array [n]           where the solution is wanted, on the way from t0 to t1; t1 only if None
    solver : diffrax solver     another adaptive one
    max_steps : int             accepted and rejected steps at most
    Raises
    ------
    ImportError                 diffrax is not installed: pip install diffrax
    ValueError, TypeError       a tolerance that is not positive; else as for `trajectory`
    """
    checks.accepts("field", field, 3, "field(t, y, theta)")
    y0, theta, t0, t1 = _doors.numbers("y0", y0, theta, t0, t1)
    max_steps = checks.whole("max_steps", max_steps)
    rtol, atol = (checks.positive(name, value, shape=()) for name, value in (("rtol", rtol), ("atol", atol)))
    if times is not None:
        times = checks.finite("times", checks.array("times", times, ndim=1))
        times = _doors.within("times", times, t0, t1, _doors.time_dtype(y0))
    checks.one_of("interpolation", interpolation, _doors.INTERPOLATIONS)
    steps = None if interpolation is None else _doors.steps_of(theta, interpolation)
    _doors.check_rates(field, schemes.runge_kutta(tableaus.euler), y0, theta, interpolation)
    at = _AT[interpolation]
    return Adaptive(*_adaptive.solve(field, y0, theta, (t0, t1), (rtol, atol), at, steps, times, solver, max_steps))


def theta_at(theta: PyTree, time: ArrayLike, *, t0: ArrayLike, t1: ArrayLike, interpolation: str | None) -> PyTree:
    """theta at a time between t0 and t1, as the integrators see it; a grid time counts to the step after it.

    Parameters
    ----------
    theta : pytree              parameters, with a leading time axis if `interpolation` is given
    time, t0, t1 : scalars      the time asked for, the first and the last
    interpolation : str         None (theta itself), "constant" or "linear"
    Raises
    ------
    ValueError, TypeError       another interpolation, leaves without a time axis, times that are not finite scalars
    """
    checks.one_of("interpolation", interpolation, _doors.INTERPOLATIONS)
    if interpolation is None:
        return theta
    theta = checks.floats("theta", theta)
    steps = _doors.steps_of(theta, interpolation)
    pairs = ("time", time), ("t0", t0), ("t1", t1)
    time, t0, t1 = (checks.finite(*pair, shape=()) for pair in pairs)
    if not any(isinstance(t, jax.core.Tracer) for t in (t0, t1)) and t0 == t1:
        raise checks.BadValue(f"t1 must be another time than t0 = {t0}; got {t1}")
    _doors.within("time", time, t0, t1, jnp.float32)
    time, t0, t1 = widen((time, t0, t1))
    place = (time - t0) / (t1 - t0) * steps
    index = jnp.clip(jnp.floor(place), 0, steps - 1).astype(jnp.int32)
    if interpolation == "constant":
        return jax.tree.map(lambda leaf: leaf[index], theta)
    return _grids.between(*(jax.tree.map(lambda leaf, i=i: leaf[index + i], theta) for i in (0, 1)), place - index)


_AT = {name: functools.partial(theta_at, interpolation=name) for name in _doors.INTERPOLATIONS}


@functools.partial(jit, static_argnames=("field", "scheme", "steps", "interpolation", "adjoint", "save"))
def _solve(y0, theta, t0, t1, field, scheme, steps, interpolation, adjoint, save):
    start = widen(y0)
    shared, drive, times = _grids.grid(theta, t0, t1, steps, interpolation)
    last, (later, residual) = adjoint(_grids.recurrence(field, scheme, interpolation), start, shared, drive, save)
    if not save:
        return narrow(last, y0)
    states = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start, later)
    residual = jnp.zeros(steps, times.dtype) if residual is None else jax.lax.stop_gradient(residual)
    solved = jnp.all(residual <= _grids.solved(start))
    return Trajectory(times, narrow(states, y0), residual, _finite(narrow(last, y0)) & solved)


@functools.partial(jit, static_argnames=("field", "scheme", "steps", "interpolation"))
def _undo(y1, theta, t0, t1, field, scheme, steps, interpolation):
    shared, drive, _ = _grids.grid(theta, t0, t1, steps, interpolation)
    inverse = _grids.recurrence(field, scheme, interpolation).inverse
    y0, _ = jax.lax.scan(lambda y, x: (inverse(y, shared, x), None), widen(y1), drive, reverse=True)
    return narrow(y0, y1)


def _finite(y):
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(y)]))
