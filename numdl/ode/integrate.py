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
"""

import functools

import jax
import jax.numpy as jnp

from numdl import checks
from numdl.ode import adjoints, schemes, tableaus
from numdl.ode.tableaus import Tableau
from numdl.precision import narrow, wide, widen
from numdl.records import record

INTERPOLATIONS = (None, "constant", "linear")


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
    field, y0, theta, *, t1, steps, tableau=None, scheme=None, t0=0.0, interpolation=None, adjoint=adjoints.direct
):
    """The states at all grid times: Trajectory(times, states, residual, converged).

    Parameters
    ----------
    field : function            (t, y, theta) -> y'; what other schemes than Runge-Kutta take is said in `schemes`
    y0 : pytree                 floating-point arrays
    theta : pytree              parameters; a leading time axis on every leaf if `interpolation` is given
    tableau : Tableau           a Runge-Kutta method, or
    scheme : Scheme             schemes.leapfrog, verlet, coupling, semi_implicit(matrix): exactly one of the two
    t0, t1 : scalars            first and last time; t1 < t0 integrates backwards
    steps : int
    interpolation : None, "constant" or "linear"
    adjoint : function          how the gradient is computed: adjoints.direct, checkpointed, reversible, ...
    Raises
    ------
    ValueError, TypeError       theta's time axis does not fit, the field does not return the shape of y, ...
    """
    return _solve(*_door(field, y0, theta, t0, t1, steps, tableau, scheme, interpolation, adjoint), save=True)


def endpoint(
    field, y0, theta, *, t1, steps, tableau=None, scheme=None, t0=0.0, interpolation=None, adjoint=adjoints.direct
):
    """The state at t1 only; arguments as in `trajectory`, whose record also tells whether implicit steps converged."""
    return _solve(*_door(field, y0, theta, t0, t1, steps, tableau, scheme, interpolation, adjoint), save=False)


def invert(field, y1, theta, *, scheme, t1, steps, t0=0.0, interpolation=None):
    """The state at t0 from the state at t1, by the scheme's exact algebraic inverse, step by step.

    Raises
    ------
    ValueError                  the scheme has no inverse
    """
    check_invertible(field, scheme)
    return _undo(*_door(field, y1, theta, t0, t1, steps, None, scheme, interpolation, adjoints.direct, "y1")[:-1])


def adaptive(field, y0, theta, *, t1, rtol, atol, t0=0.0, interpolation=None, times=None, solver=None, max_steps=4096):
    """An adaptive solution by diffrax (Dormand-Prince 5(4) by default): what the fixed grid converges to.

    Differentiable in reverse mode by diffrax's own checkpointing. Where theta is piecewise in time the solver stops at
    every grid time, since the right-hand side or its slope jumps there.

    Parameters
    ----------
    rtol, atol : scalars        error tolerances per step
    times : array [n]           where the solution is wanted, ascending; t1 only if None
    solver : diffrax solver     another adaptive one
    Raises
    ------
    ImportError                 diffrax is not installed: pip install diffrax
    """
    checks.accepts("field", field, 3, "field(t, y, theta)")
    y0, theta, t0, t1 = _numbers("y0", y0, theta, t0, t1)
    max_steps = checks.whole("max_steps", max_steps)
    rtol, atol = (checks.positive(name, value, shape=()) for name, value in (("rtol", rtol), ("atol", atol)))
    if times is not None:
        times = checks.finite("times", checks.array("times", times, ndim=1))
    checks.one_of("interpolation", interpolation, INTERPOLATIONS)
    steps = None if interpolation is None else _time_axis(theta) - (interpolation == "linear")
    _check_theta(theta, interpolation, steps)
    _check_rates(field, schemes.runge_kutta(tableaus.euler), y0, theta, interpolation)
    return _diffrax(field, y0, theta, (t0, t1), (rtol, atol), interpolation, steps, times, solver, max_steps)


def check_invertible(field, scheme):
    """Refuse a scheme without an inverse, and a field that is not what the scheme takes."""
    _instance(scheme)
    if scheme.inverse is None:
        raise checks.BadValue(f"scheme must have an inverse: leapfrog, verlet or coupling; got {scheme.name}")
    _check_field(field, scheme)


def theta_at(theta, time, *, t0, t1, interpolation):
    """theta at a time between t0 and t1, as the integrators see it; a grid time counts to the step after it."""
    checks.one_of("interpolation", interpolation, INTERPOLATIONS)
    if interpolation is None:
        return theta
    theta = checks.floats("theta", theta)
    steps = _time_axis(theta) - (interpolation == "linear")
    pairs = ("time", time), ("t0", t0), ("t1", t1)
    time, t0, t1 = widen(tuple(checks.finite(*pair, shape=()) for pair in pairs))
    place = (time - t0) / (t1 - t0) * steps
    index = jnp.clip(jnp.floor(place), 0, steps - 1).astype(jnp.int32)
    if interpolation == "constant":
        return jax.tree.map(lambda leaf: leaf[index], theta)
    return _between(*(jax.tree.map(lambda leaf, i=i: leaf[index + i], theta) for i in (0, 1)), place - index)


def _door(field, y0, theta, t0, t1, steps, tableau, scheme, interpolation, adjoint, state="y0"):
    """The checked arguments of a solve, numbers first as arrays of the dtype of time."""
    scheme = _scheme(tableau, scheme)
    _check_field(field, scheme)
    checks.accepts("adjoint", adjoint, 5, "adjoint(recurrence, y, shared, drive, save)")
    y0, theta, t0, t1 = _numbers(state, y0, theta, t0, t1)
    steps = checks.whole("steps", steps)
    _check_theta(theta, interpolation, steps)
    _check_rates(field, scheme, y0, theta, interpolation)
    y0, theta = (jax.tree.map(jnp.asarray, tree) for tree in (y0, theta))
    t0, t1 = (jnp.asarray(t, time_dtype(y0)) for t in (t0, t1))
    return y0, theta, t0, t1, field, scheme, steps, interpolation, adjoint


def time_dtype(y):
    """The dtype of times and step sizes: the widest real dtype in y, float32 at least."""
    y = checks.floats("y", y)
    dtypes = [jnp.finfo(wide(leaf.dtype)).dtype for leaf in jax.tree.leaves(y)]
    return functools.reduce(jnp.promote_types, dtypes, jnp.dtype(jnp.float32))


@functools.partial(
    jax.jit, static_argnames=("field", "scheme", "steps", "interpolation", "adjoint", "save"), inline=True
)
def _solve(y0, theta, t0, t1, field, scheme, steps, interpolation, adjoint, save):
    start = widen(y0)
    shared, drive, times = _grid(theta, t0, t1, steps, interpolation)
    last, (later, residual) = adjoint(_recurrence(field, scheme, interpolation), start, shared, drive, save)
    if not save:
        return narrow(last, y0)
    states = jax.tree.map(lambda first, rest: jnp.concatenate([first[None], rest]), start, later)
    residual = jnp.zeros(steps, times.dtype) if residual is None else jax.lax.stop_gradient(residual)
    solved = jnp.all(residual <= _solved(start))
    return Trajectory(times, narrow(states, y0), residual, _finite(narrow(last, y0)) & solved)


@functools.partial(jax.jit, static_argnames=("field", "scheme", "steps", "interpolation"))
def _undo(y1, theta, t0, t1, field, scheme, steps, interpolation):
    shared, drive, _ = _grid(theta, t0, t1, steps, interpolation)
    inverse = _recurrence(field, scheme, interpolation).inverse
    y0, _ = jax.lax.scan(lambda y, x: (inverse(y, shared, x), None), widen(y1), drive, reverse=True)
    return narrow(y0, y1)


def _finite(y):
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(y)]))


def _grid(theta, t0, t1, steps, interpolation):
    """What all steps share (h and perhaps theta), what drives each (its time, its theta), all times."""
    h = (t1 - t0) / steps
    times = t0 + h * jnp.arange(steps + 1, dtype=h.dtype)
    if interpolation is None:  # every step adds to the gradient of what is shared
        return (h, widen(theta)), (times[:-1], None), times
    if interpolation == "constant":
        return (h, None), (times[:-1], theta), times
    ends = tuple(jax.tree.map(lambda leaf, s=s: leaf[s], theta) for s in (slice(None, -1), slice(1, None)))
    return (h, None), (times[:-1], ends), times


def _recurrence(field, scheme, interpolation):
    def arguments(shared, x):
        (h, theta), (t, local) = shared, x
        return t, h, functools.partial(_control, interpolation, theta, local)

    def step(y, shared, x):
        return scheme.step(field, y, *arguments(shared, x))

    def inverse(y, shared, x):
        return scheme.inverse(field, y, *arguments(shared, x))

    def rate(fraction, y, shared, x):
        t, h, control = arguments(shared, x)
        slope = scheme.derivative(field, t + fraction * h, y, control(fraction))
        return jax.tree.map(lambda k, leaf: (h * k).astype(leaf.dtype), slope, y)

    solve_back = functools.partial(_solve_back, scheme, rate) if scheme.first_order else None
    return adjoints.Recurrence(step, scheme.inverse and inverse, solve_back)


def _control(interpolation, theta, local, fraction):
    """theta at a fraction of the step."""
    if interpolation is None:
        return theta
    return widen(local) if interpolation == "constant" else _between(*widen(local), fraction)


def _between(left, right, fraction):
    def value(a, b):
        return ((1 - fraction) * a + fraction * b).astype(a.dtype)

    return jax.tree.map(value, left, right)


def _solve_back(scheme, rate, y, ybar, shared, x):
    """One step of the adjoint equation in the step's own time s from 1 to 0, with y' = rate(s, y, shared, x):

    ybar' = -(d rate / d y)^T ybar,   gradient' = -(d rate / d (shared, x))^T ybar,   gradient(1) = 0
    """

    def augmented(s, state, _):
        y, ybar, _ = state
        slope, pull = jax.vjp(lambda y, parameters: rate(s, y, *parameters), y, (shared, x))
        return slope, *jax.tree.map(jnp.negative, pull(ybar))

    state = y, ybar, jax.tree.map(jnp.zeros_like, (shared, x))
    one = jnp.ones_like(shared[0])
    (y, ybar, gradients), _ = scheme.step(augmented, state, one, -one, lambda fraction: None)
    return y, ybar, *gradients


def _solved(y):
    return 100 * max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(y))


def _scheme(tableau, scheme):
    if (tableau is None) == (scheme is None):
        got = "neither" if scheme is None else f"tableau={tableau!r} and scheme={scheme!r}"
        raise checks.BadValue(f"exactly one of tableau and scheme must be given; got {got}")
    if scheme is None:
        return schemes.runge_kutta(checks.instance("tableau", tableau, Tableau, hint="such as tableaus.rk4"))
    return _instance(scheme)


def _instance(scheme):
    return checks.instance("scheme", scheme, schemes.Scheme, hint="such as schemes.leapfrog")


def _check_field(field, scheme):
    pair = scheme in (schemes.verlet, schemes.coupling)
    if not pair:
        return checks.accepts("field", field, 3, "field(t, y, theta)")
    if not (isinstance(field, tuple) and len(field) == 2 and all(callable(f) for f in field)):
        raise checks.BadType(f"field must be a pair of functions (f, g) for scheme {scheme.name}; got {field!r}")
    for f in field:
        checks.accepts("field", f, 3, "(f(t, p, theta), g(t, q, theta))")
    return field


def _numbers(state, y0, theta, t0, t1):
    y0, theta = checks.floats(state, y0), checks.floats("theta", theta, empty=True)
    return y0, theta, *(checks.finite(name, time, shape=()) for name, time in (("t0", t0), ("t1", t1)))


def _check_theta(theta, interpolation, steps):
    checks.one_of("interpolation", interpolation, INTERPOLATIONS)
    if interpolation is None:
        return
    length = steps + (interpolation == "linear")
    for path, leaf in jax.tree_util.tree_leaves_with_path(theta):
        if jnp.shape(leaf)[:1] != (length,):
            label = f"theta{jax.tree_util.keystr(path)}"
            wanted = f"({length}, ...) for {steps} steps and interpolation={interpolation!r}"
            raise checks.BadValue(f"{label} must have shape {wanted}; got {jnp.shape(leaf)}")


def _time_axis(theta):
    leaves = jax.tree.leaves(theta)
    if not leaves or jnp.ndim(leaves[0]) == 0:
        raise checks.BadValue(f"theta must have leaves with a time axis; got {theta!r}")
    return jnp.shape(leaves[0])[0]


def _check_rates(field, scheme, y0, theta, interpolation):
    """The field's outputs must be shaped like the state, or a step would broadcast it silently."""
    t0 = jax.ShapeDtypeStruct((), time_dtype(y0))
    y0, theta = jax.eval_shape(widen, (y0, theta))
    local = (
        theta if interpolation is None else jax.eval_shape(lambda tree: jax.tree.map(lambda leaf: leaf[0], tree), theta)
    )
    try:
        rates = jax.eval_shape(functools.partial(scheme.derivative, field), t0, y0, local)
    except TypeError as error:
        if "valid JAX type" not in str(error):
            raise
        raise checks.BadType(f"field must return arrays shaped like the state; got {error}") from error
    wanted, got = (jax.tree.map(jnp.shape, tree) for tree in (y0, rates))
    if wanted != got:
        raise checks.BadValue(f"field must return what is shaped like the state, {wanted}; got {got}")


def _diffrax(field, y0, theta, span, tolerances, interpolation, steps, times, solver, max_steps):
    try:
        import diffrax
    except ImportError as error:
        raise ImportError("integrate.adaptive solves by diffrax: pip install diffrax") from error

    start, theta = widen(y0), widen(theta)
    t0, t1 = (jnp.asarray(t, time_dtype(start)) for t in span)
    at = functools.partial(theta_at, t0=t0, t1=t1, interpolation=interpolation)
    term = diffrax.ODETerm(lambda t, y, theta: field(t, y, at(theta, t)))
    controller = diffrax.PIDController(rtol=tolerances[0], atol=tolerances[1])
    if steps is not None:
        inner = t0 + (t1 - t0) * jnp.arange(1, steps, dtype=t0.dtype) / steps
        controller = diffrax.ClipStepSizeController(controller, jump_ts=inner)
    times = t1[None] if times is None else jnp.asarray(times, t0.dtype)
    solution = diffrax.diffeqsolve(
        term,
        diffrax.Dopri5() if solver is None else solver,
        t0,
        t1,
        None,
        start,
        theta,
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=controller,
        max_steps=max_steps,
        throw=False,
    )
    converged = solution.result == diffrax.RESULTS.successful
    return Adaptive(times, narrow(solution.ys, y0), solution.stats["num_steps"], converged)
