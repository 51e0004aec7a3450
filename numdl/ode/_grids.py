"""The grid of a solve, and its steps as a recurrence: what all steps share, what drives each of them."""

import functools

import jax
import jax.numpy as jnp

from numdl.ode import adjoints
from numdl.precision import widen


def grid(theta, t0, t1, steps, interpolation):
    """What all steps share (h and perhaps theta), what drives each (its time, its theta), all times."""
    h = (t1 - t0) / steps
    times = t0 + h * jnp.arange(steps + 1, dtype=h.dtype)
    if interpolation is None:  # every step adds to the gradient of what is shared
        return (h, widen(theta)), (times[:-1], None), times
    if interpolation == "constant":
        return (h, None), (times[:-1], theta), times
    ends = tuple(jax.tree.map(lambda leaf, s=s: leaf[s], theta) for s in (slice(None, -1), slice(1, None)))
    return (h, None), (times[:-1], ends), times


def recurrence(field, scheme, interpolation):
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
    return adjoints.Recurrence(step, scheme.inverse and inverse, solve_back, functools.partial(_coarsen, interpolation))


def _coarsen(interpolation, shared, drive, factor):
    """What drives every factor-th step, made `factor` times as long: its time, its theta as it stands there."""
    (h, theta), (times, local) = shared, drive
    if interpolation == "linear":
        left, right = local
        local = _every(left, 0, factor), _every(right, factor - 1, factor)
    elif interpolation == "constant":
        local = _every(local, 0, factor)
    return (factor * h, theta), (times[::factor], local)


def _every(tree, start, factor):
    return jax.tree.map(lambda leaf: leaf[start::factor], tree)


def _control(interpolation, theta, local, fraction):
    """theta at a fraction of the step."""
    if interpolation is None:
        return theta
    return widen(local) if interpolation == "constant" else between(*widen(local), fraction)


def between(left, right, fraction):
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


def solved(y):
    return 100 * max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(y))
