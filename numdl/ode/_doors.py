"""What a solve may be asked for: the arguments of `integrate`, looked at before any work."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from numdl import checks
from numdl.ode import schemes
from numdl.ode.tableaus import Tableau
from numdl.precision import wide, widen

INTERPOLATIONS = (None, "constant", "linear")


def problem(field, y0, theta, t0, t1, steps, tableau, scheme, interpolation, adjoint, state="y0"):
    """The checked arguments of a solve, numbers first as arrays of the dtype of time; `state`: what y0 is called."""
    scheme = scheme_of(tableau, scheme)
    field_of(field, scheme)
    checks.accepts("adjoint", adjoint, 5, "adjoint(recurrence, y, shared, drive, save)")
    y0, theta, t0, t1 = numbers(state, y0, theta, t0, t1)
    if scheme.inverse is not None and not (isinstance(y0, tuple) and len(y0) == 2):
        raise checks.BadValue(
            f"{state} must be a pair for scheme {scheme.name}, (y, v) or (p, q); got {checks.shown(y0)}"
        )
    steps = checks.whole("steps", steps)
    check_theta(theta, interpolation, steps)
    check_rates(field, scheme, y0, theta, interpolation)
    y0, theta = (jax.tree.map(jnp.asarray, tree) for tree in (y0, theta))
    t0, t1 = (jnp.asarray(t, time_dtype(y0)) for t in (t0, t1))
    return y0, theta, t0, t1, field, scheme, steps, interpolation, adjoint


def invertible(field, scheme):
    """Refuse a scheme without an inverse, and a field that is not what the scheme takes."""
    _instance(scheme)
    if scheme.inverse is None:
        raise checks.BadValue(f"scheme must have an inverse: leapfrog, verlet or coupling; got {scheme.name}")
    field_of(field, scheme)


def time_dtype(y):
    """The dtype of times and step sizes: the widest real dtype in y, float32 at least."""
    y = checks.floats("y", y)
    dtypes = [jnp.finfo(wide(leaf.dtype)).dtype for leaf in jax.tree.leaves(y)]
    return functools.reduce(jnp.promote_types, dtypes, jnp.dtype(jnp.float32))


def scheme_of(tableau, scheme):
    """The scheme that is given, or that of the tableau: exactly one of them."""
    if (tableau is None) == (scheme is None):
        got = "neither" if scheme is None else f"tableau={tableau!r} and scheme={scheme!r}"
        raise checks.BadValue(f"exactly one of tableau and scheme must be given; got {got}")
    if scheme is None:
        return schemes.runge_kutta(checks.instance("tableau", tableau, Tableau, hint="such as tableaus.rk4"))
    return _instance(scheme)


def _instance(scheme):
    return checks.instance("scheme", scheme, schemes.Scheme, hint="such as schemes.leapfrog")


def field_of(field, scheme):
    """The field, checked: a pair (f, g) for the schemes of two coupled parts, one function else."""
    pair = scheme in (schemes.verlet, schemes.coupling)
    if not pair:
        return checks.accepts("field", field, 3, "field(t, y, theta)")
    if not (isinstance(field, tuple) and len(field) == 2 and all(callable(f) for f in field)):
        raise checks.BadType(f"field must be a pair of functions (f, g) for scheme {scheme.name}; got {field!r}")
    for f in field:
        checks.accepts("field", f, 3, "(f(t, p, theta), g(t, q, theta))")
    return field


def numbers(state, y0, theta, t0, t1):
    """(y0, theta, t0, t1), checked; `state` is what y0 is called in errors."""
    y0, theta = checks.floats(state, y0), checks.floats("theta", theta, empty=True)
    return y0, theta, *(checks.finite(name, time, shape=()) for name, time in (("t0", t0), ("t1", t1)))


def check_theta(theta, interpolation, steps):
    """Refuse a theta without one entry for each step, or for each grid time if linear."""
    checks.one_of("interpolation", interpolation, INTERPOLATIONS)
    if interpolation is None:
        return
    length = steps + (interpolation == "linear")
    for path, leaf in jax.tree_util.tree_leaves_with_path(theta):
        if jnp.shape(leaf)[:1] != (length,):
            label = f"theta{jax.tree_util.keystr(path)}"
            wanted = f"({length}, ...) for {steps} steps and interpolation={interpolation!r}"
            raise checks.BadValue(f"{label} must have shape {wanted}; got {jnp.shape(leaf)}")


def steps_of(theta, interpolation):
    """The steps that theta has entries for, one for each grid time if linear; the same in all leaves."""
    leaves = jax.tree.leaves(theta)
    if not leaves or jnp.ndim(leaves[0]) == 0:
        raise checks.BadValue(f"theta must have leaves with a time axis; got {theta!r}")
    steps = jnp.shape(leaves[0])[0] - (interpolation == "linear")
    if steps < 1:
        raise checks.BadValue(
            f"theta must have leaves with entries for one step at least, two times if linear; "
            f"got shape {jnp.shape(leaves[0])}"
        )
    check_theta(theta, interpolation, steps)
    return steps


def within(name, times, t0, t1, dtype):
    """Times from t0 to t1, each further than the one before; what is traced is not looked at."""
    if any(isinstance(value, jax.core.Tracer) for value in (times, t0, t1)):
        return times
    found, first, last = (np.asarray(value).astype(dtype) for value in (times, t0, t1))
    ahead = np.sign(last - first)
    outside = (found < min(first, last)) | (found > max(first, last))
    if outside.any():
        wrong = np.ravel(times)[np.ravel(outside)][0]
        raise checks.BadValue(f"{name} must lie between t0 = {t0} and t1 = {t1}; got {wrong}")
    if found.ndim and (ahead * np.diff(found) <= 0).any():
        raise checks.BadValue(f"{name} must go from t0 to t1, each beyond the one before; got {np.asarray(times)}")
    return times


def check_rates(field, scheme, y0, theta, interpolation):
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
    for rate, state in zip(jax.tree.leaves(rates), jax.tree.leaves(y0), strict=True):
        if jnp.issubdtype(rate.dtype, jnp.complexfloating) and not jnp.issubdtype(state.dtype, jnp.complexfloating):
            raise checks.BadValue(
                f"field must return real rates of a real state, y0 of {state.dtype}; got {rate.dtype}"
            )
