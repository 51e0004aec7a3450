"""Adaptive solutions by diffrax, which is imported when it is asked for."""

import functools

import jax
import jax.numpy as jnp

from numdl import checks
from numdl._compiled import as_tree, compiled
from numdl.ode._doors import time_dtype
from numdl.precision import narrow, widen


def solve(field, y0, theta, span, tolerances, at, steps, times, solver, max_steps):
    """(times, states, number of steps, converged); at(theta, t, t0=, t1=) is theta in time, on a grid of `steps`."""
    try:
        import diffrax
    except ImportError as error:
        raise ImportError("integrate.adaptive solves by diffrax: pip install diffrax") from error
    solver = diffrax.Dopri5() if solver is None else solver
    checks.instance("solver", solver, diffrax.AbstractAdaptiveSolver, hint="such as diffrax.Tsit5()")
    counts = {"steps": steps, "max_steps": max_steps}
    return _solved(as_tree(field), y0, theta, span, tolerances, times, as_tree(solver), at=at, **counts)


@functools.partial(compiled, static=("at", "steps", "max_steps"))
def _solved(field, y0, theta, span, tolerances, times, solver, at, steps, max_steps):
    import diffrax

    like, theta = widen(y0), widen(theta)
    t0, t1 = (jnp.asarray(t, time_dtype(like)) for t in span)

    def rate(t, y, parts):
        y, local = _joined(like, y), at(_joined(theta, parts), t, t0=t0, t1=t1)
        return _parts(jax.tree.map(lambda r, z: jnp.asarray(r, z.dtype), field(t, y, local), y))

    term = diffrax.ODETerm(rate)
    controller = diffrax.PIDController(rtol=tolerances[0], atol=tolerances[1])
    if steps is not None:
        inner = t0 + (t1 - t0) * jnp.arange(1, steps, dtype=t0.dtype) / steps
        controller = diffrax.ClipStepSizeController(controller, jump_ts=inner)
    times = t1[None] if times is None else jnp.asarray(times, t0.dtype)
    solution = diffrax.diffeqsolve(
        term,
        solver,
        t0,
        t1,
        None,
        _parts(like),
        _parts(theta),
        saveat=diffrax.SaveAt(ts=times),
        stepsize_controller=controller,
        max_steps=max_steps,
        throw=False,
    )
    converged = solution.result == diffrax.RESULTS.successful
    return times, narrow(_joined(like, solution.ys), y0), solution.stats["num_steps"], converged


def _parts(tree):
    """Complex leaves as two real ones: diffrax does not vouch for complex numbers."""
    return jax.tree.map(lambda leaf: (jnp.real(leaf), jnp.imag(leaf)) if jnp.iscomplexobj(leaf) else leaf, tree)


def _joined(like, parts):
    return jax.tree.map(lambda leaf, part: jax.lax.complex(*part) if jnp.iscomplexobj(leaf) else part, like, parts)
