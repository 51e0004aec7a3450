"""The outer loop of the second-order methods: a quadratic model at every step, and four ways to trust it.

    model(s) = f(x) + g.s + s.(B + damping) s / 2,    minimized by conjugate gradients, B never formed

An *objective* is a record with two methods: `value(params)`, and `local(params) -> Local(value, gradient, product)`,
product(v) = B v; a third one, `within(rest)`, gives the objective of what moves where other leaves stay. B is the
Hessian in newton_cg, the Gauss–Newton matrix in gauss_newton, and that of the problem without its linear weights in
varpro. The minimization is one compiled `lax.scan`; the objective's arrays are arguments.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, PyTree, ScalarLike

from numdl import checks, precision, trees
from numdl._compiled import jit
from numdl.krylov import cg
from numdl.optimize import _moving_part, line_search
from numdl.records import record

METHODS = ("trust_region", "levenberg_marquardt", "armijo", "wolfe")
STARTS = {"levenberg_marquardt": 1e-3}  # the damping that is not given; 0 for the others
ACCEPT = 1e-4  # of the decrease that the model promises
LARGEST, LEAST = 1e12, 1e-12  # radius and damping stay in this range


class Local(NamedTuple):
    """An objective near one point."""

    value: jax.Array
    gradient: Any  # pytree like params
    product: Callable  # v -> B v, B symmetric


@record
class SecondOrderHistory:
    """What a minimization did. Rows after its end repeat the last; nothing is accepted there."""

    value: jax.Array  # [steps + 1]: f before each step and at the end
    gradient_norm: jax.Array  # [steps + 1]
    scale: jax.Array  # [steps]: radius, damping or line-search step that was used
    inner_iterations: jax.Array  # [steps]: products with B in conjugate gradients
    accepted: jax.Array  # [steps] bool: the step was made
    negative_curvature: jax.Array  # [steps] bool
    iterations: jax.Array  # []: steps tried
    converged: jax.Array  # []: gradient_norm <= tolerance * the first
    stalled: jax.Array  # []: ended because no step made progress in this precision


class _State(NamedTuple):
    params: Any
    scale: jax.Array
    value: jax.Array
    norm: jax.Array
    first: jax.Array  # the first gradient norm
    count: jax.Array
    converged: jax.Array
    stalled: jax.Array


class _Options(NamedTuple):
    method: str
    inner_iterations: int
    trials: int


def minimize(
    objective: Any,
    params: PyTree,
    *,
    steps: int = 100,
    method: str = "trust_region",
    radius: ScalarLike = 1.0,
    damping: ScalarLike | None = None,
    inner_iterations: int = 100,
    inner_tolerance: ScalarLike = 0.1,
    tolerance: ScalarLike = 1e-6,
    preconditioner: Callable[[PyTree, PyTree], PyTree] | None = None,
    trials: int = 25,
) -> tuple[PyTree, SecondOrderHistory]:
    """Minimize an objective by one of four second-order methods; |s| is measured by the preconditioner if there is one.

        trust_region            |s| <= radius by Steihaug's method; the radius follows decrease / promised decrease
        levenberg_marquardt     the same for the damping: (B + damping) s = -g
        armijo, wolfe           (B + damping) s = -g, then a line search along s

    Parameters
    ----------
    objective : record          with the methods value and local, `gauss_newton.least_squares(...)`
    params : pytree             floating leaves move (complex ones as two reals), all others stay as they are
    steps : int                 at most this many
    method : str                one of the four
    radius, damping : scalar    those to start with; None: a damping of 0, of 1e-3 for levenberg_marquardt
    inner_iterations : int      of conjugate gradients in each step
    inner_tolerance : scalar    |B s + g| <= min(inner_tolerance, |g| / |g at the start|) |g|: in the end quadratic
    tolerance : scalar          stop at |g| <= tolerance |g at the start|
    preconditioner : function   (params, v) -> M v, near the inverse of B; with it the ball is |s|^2 = s.M^-1 s
    trials : int                values of f in one line search
    Returns
    -------
    params, SecondOrderHistory
    Raises
    ------
    ValueError, TypeError       unknown method, levenberg_marquardt with damping 0, a number out of its range, ...
    Source: Nocedal & Wright 2006, chapters 4, 7 and 10; Dembo, Eisenstat & Steihaug 1982 (inner_tolerance).
    """
    steps = checks.whole("steps", steps)
    checks.one_of("method", method, METHODS)
    damping = STARTS.get(method, 0.0) if damping is None else damping
    options = _options(method, damping, inner_iterations, trials)
    radius = checks.positive("radius", radius, shape=())
    damping = checks.variance("damping", damping, shape=())
    inner_tolerance = checks.positive("inner_tolerance", inner_tolerance, shape=())
    tolerance = checks.finite("tolerance", tolerance, least=0.0, shape=())
    if not callable(getattr(objective, "value", None)) or not callable(getattr(objective, "local", None)):
        raise checks.BadType(
            "objective must be a record with the methods value and local, gauss_newton.least_squares(...); "
            f"got {objective!r}"
        )
    if preconditioner is not None:
        preconditioner = checks.as_pytree(
            checks.accepts("preconditioner", preconditioner, 2, "preconditioner(params, v)")
        )
    numbers = radius, damping, inner_tolerance, tolerance
    moving, rest = trees.trainable(params)
    if not _moving_part.all_move(rest):
        if not hasattr(objective, "within"):
            raise checks.BadType(
                "params must hold real floating-point arrays only for an objective without `within`; "
                f"got {', '.join(_moving_part.unmoved(params))} beside them"
            )
        objective = objective.within(rest)
        preconditioner = preconditioner and _moving_part.preconditioned(preconditioner, rest)
    moving, history = _minimize(steps, options, objective, moving, numbers, preconditioner)
    return rest.params(moving), history


def lbfgs(
    function: Callable[[PyTree], Array],
    params: PyTree,
    *,
    steps: int = 100,
    memory: int = 10,
    tolerance: ScalarLike = 1e-6,
) -> tuple[PyTree, SecondOrderHistory]:
    """Minimize by limited-memory BFGS (L-BFGS, quasi-Newton) with a strong Wolfe search, both optax's.

    `scale` holds the line search's steps; the other columns of the record belong to methods with a model.

    Parameters
    ----------
    function : function         params -> scalar; bind data with `jax.tree_util.Partial(function, x=x)`
    params : pytree             floating leaves move (complex ones as two reals), all others stay as they are
    steps : int                 at most this many
    memory : int                pairs of differences kept
    tolerance : scalar          stop at |g| <= tolerance |g at the start|
    Returns
    -------
    params, SecondOrderHistory
    Raises
    ------
    ValueError, TypeError       a count below 1, a negative tolerance, a function that is not a scalar
    Source: Liu & Nocedal 1989. By optax.lbfgs.
    """
    steps = checks.whole("steps", steps)
    memory = checks.whole("memory", memory)
    tolerance = checks.finite("tolerance", tolerance, least=0.0, shape=())
    function = checks.returning("function", function, 1, "function(params)", scalar=True)
    moving, rest = trees.trainable(params)
    function = function if _moving_part.all_move(rest) else _moving_part.of_moving(function, rest)
    # optax's line search keeps one dtype: that of the value, or of a leaf where one is wider.
    dtype = jnp.result_type(jax.eval_shape(function, moving).dtype, *jax.tree.leaves(moving))
    function, start = _moving_part.of_wide(function, moving, dtype)
    end, history = _lbfgs(steps, memory, function, start, tolerance)
    return rest.params(precision.narrow(end, moving)), history


@functools.partial(jit, static_argnums=(0, 1))
def _minimize(steps, options, objective, params, numbers, preconditioner):
    dtype = _moving_part.scalar_dtype(params)
    radius, damping, inner_tolerance, tolerance = (jnp.asarray(n, dtype) for n in numbers)
    fixed = jnp.zeros((), dtype) if options.method == "levenberg_marquardt" else damping
    scale = {"trust_region": radius, "levenberg_marquardt": damping}.get(options.method, jnp.ones((), dtype))
    move = _MOVES[options.method]

    def look(last, state):
        value, gradient, product = objective.local(state.params)
        value, norm = value.astype(dtype), trees.norm(gradient).astype(dtype)
        first = jnp.where(state.count == 0, norm, state.first)
        state = state._replace(value=value, norm=norm, first=first, converged=_small(norm, tolerance, first))
        forcing = jnp.minimum(inner_tolerance, norm / jnp.where(first > 0, first, 1))
        solver = {"iterations": options.inner_iterations, "tolerance": forcing}
        if preconditioner is not None:
            solver["preconditioner"] = Partial(preconditioner, state.params)
        local = Local(value, gradient, lambda v: trees.axpy(fixed, v, product(v)))
        done = state.converged | last
        return lax.cond(done, _rest, functools.partial(move, objective, local, solver, options), state)

    def step(state, last):
        state, row = lax.cond(state.converged | state.stalled, _rest, functools.partial(look, last), state)
        return state, (state.value, state.norm, row)

    nothing, no = jnp.zeros((), dtype), jnp.zeros((), bool)
    start = _State(params, scale, nothing, nothing, nothing, jnp.zeros((), jnp.int32), no, no)
    # The end is one more look without a move, by the same program: computed anew, its last bits would differ.
    state, (values, norms, rows) = lax.scan(step, start, jnp.arange(steps + 1) == steps)
    rows = [column[:-1] for column in rows]
    converged = _small(state.norm, tolerance, state.first)
    return state.params, SecondOrderHistory(values, norms, *rows, state.count, converged, state.stalled)


class _Row(NamedTuple):
    scale: jax.Array
    inner_iterations: jax.Array
    accepted: jax.Array
    negative_curvature: jax.Array


def _rest(state):
    """A step after the end."""
    no = jnp.zeros((), bool)
    return state, _Row(state.scale, jnp.zeros((), jnp.int32), no, no)


def _in_ball(objective, local, solver, options, state):
    found = cg.steihaug(local.product, local.gradient, state.scale, **solver)
    params, accepted, ratio, still = _judge(objective, local, state, found.step, found.decrease)
    radius = jnp.where(ratio > 0.75, jnp.where(found.boundary, 2 * state.scale, state.scale), state.scale)
    radius = jnp.where(ratio >= 0.25, radius, 0.25 * jnp.minimum(found.norm, state.scale))  # nan goes this way too
    return _after(state, params, radius, found, accepted, still)


def _damped(objective, local, solver, options, state):
    def product(v):
        return trees.axpy(state.scale, v, local.product(v))

    found = cg.cg(product, jax.tree.map(jnp.negative, local.gradient), **solver)
    curved = trees.inner(found.solution, local.product(found.solution))
    decrease = -trees.inner(local.gradient, found.solution) - curved / 2
    params, accepted, ratio, still = _judge(objective, local, state, found.solution, decrease)
    accepted = accepted & ~found.negative_curvature  # too little damping for a minimum of the model to exist
    params, ratio = _either(accepted, params, state.params), jnp.where(found.negative_curvature, -1, ratio)
    # Nielsen 1999: from a third for a perfect model, continuously up to twice where the ratio is near 0.
    factor = jnp.where(ratio > 0, jnp.clip(1 - (2 * ratio - 1) ** 3, 1 / 3, 2.0), 4.0)
    return _after(state, params, factor * state.scale, found, accepted, still)


def _on_line(search, objective, local, solver, options, state):
    steepest = jax.tree.map(jnp.negative, local.gradient)
    found = cg.cg(local.product, steepest, **solver)
    fallback = solver["preconditioner"](steepest) if "preconditioner" in solver else steepest
    lost = ~(trees.inner(found.solution, local.gradient) < 0)  # negative curvature at once
    direction = jax.tree.map(lambda a, b: jnp.where(lost, a, b), fallback, found.solution)
    here = {"value": local.value, "gradient": local.gradient, "trials": options.trials}
    result = search(objective.value, state.params, direction, **here)
    step = result.step.astype(state.scale.dtype)
    params = trees.axpy(step, direction, state.params)
    accepted = step > 0
    state, row = _after(state, _either(accepted, params, state.params), state.scale, found, accepted, ~accepted)
    return state, row._replace(scale=step)


def _judge(objective, local, state, step, promised):
    """The new parameters, whether they are taken, decrease / promised decrease, and whether nothing moves any more."""
    moved = trees.axpy(jnp.ones((), state.value.dtype), step, state.params)
    value = objective.value(moved).astype(state.value.dtype)
    # Differences below rounding tell nothing: there the model is believed (Conn, Gould & Toint 2000, section 17.4.2).
    rounding = line_search.ROUNDING * jnp.finfo(state.value.dtype).eps * jnp.abs(local.value)
    promised = promised.astype(state.value.dtype) + rounding
    ratio = (local.value - value + rounding) / jnp.where(promised > 0, promised, 1)
    accepted = (ratio > ACCEPT) & (promised > 0)
    small = trees.norm(step) <= jnp.finfo(state.value.dtype).eps * trees.norm(state.params)
    return _either(accepted, moved, state.params), accepted, ratio, small & ~accepted


def _after(state, params, scale, found, accepted, stalled):
    lost = ~jnp.isfinite(state.norm)  # no step from there: the row repeats, and so must the parameters
    row = _Row(state.scale, found.iterations, accepted & ~lost, found.negative_curvature)
    scale = jnp.clip(scale, LEAST, LARGEST).astype(state.scale.dtype)
    params, stalled = _either(lost, state.params, params), stalled | lost
    return state._replace(params=params, scale=scale, count=state.count + 1, stalled=stalled), row


_MOVES = {
    "trust_region": _in_ball,
    "levenberg_marquardt": _damped,
    "armijo": functools.partial(_on_line, line_search.armijo),
    "wolfe": functools.partial(_on_line, line_search.wolfe),
}


@functools.partial(jit, static_argnums=(0, 1))
def _lbfgs(steps, memory, function, params, tolerance):
    import optax

    optimizer = optax.lbfgs(memory_size=memory)
    look = optax.value_and_grad_from_state(function)
    dtype = _moving_part.scalar_dtype(params)

    def move(carry):
        params, inside, value, gradient, _ = carry
        update, inside = optimizer.update(gradient, inside, params, value=value, grad=gradient, value_fn=function)
        moved = optax.apply_updates(params, update)
        value, slope = look(moved, state=inside)
        return moved, inside, value, slope, optax.tree.get(inside, "learning_rate").astype(dtype)

    def step(carry, last):
        norm = trees.norm(carry[3]).astype(dtype)
        done = ~(norm > tolerance * first) | (carry[4] == 0) | last
        new = lax.cond(done, lambda c: c, move, carry)
        return new, (carry[2].astype(dtype), norm, new[4], ~done)

    value, gradient = jax.value_and_grad(function)(params)
    first = trees.norm(gradient).astype(dtype)
    start = (params, optimizer.init(params), value, gradient, jnp.ones((), dtype))
    end = jnp.arange(steps + 1) == steps
    (params, _, _, _, moved), (values, norms, scale, made) = lax.scan(step, start, end)
    scale, made, none = scale[:-1], made[:-1], jnp.zeros(steps, jnp.int32)
    converged, count = _small(norms[-1], tolerance, first), jnp.sum(made, dtype=jnp.int32)
    return params, SecondOrderHistory(
        values, norms, scale, none, made, none > 0, count, converged, ~converged & (moved == 0)
    )


def _small(norm, tolerance, first):
    """Whether the gradient has become small; one that is infinite has not, whatever the first one was."""
    return (norm <= tolerance * first) & jnp.isfinite(norm)


def _either(condition, a, b):
    return jax.tree.map(lambda u, v: jnp.where(condition, u, v), a, b)


def _options(method, damping, inner_iterations, trials):
    if method == "levenberg_marquardt" and not isinstance(damping, jax.core.Tracer) and not damping > 0:
        raise ValueError(f"damping must be > 0 to start levenberg_marquardt; got {damping}")
    return _Options(method, checks.whole("inner_iterations", inner_iterations), checks.whole("trials", trials))
