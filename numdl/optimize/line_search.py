"""Line searches: how far to go along a direction. Armijo's condition by backtracking, strong Wolfe by zoom.

    f(x + t d) <= f(x) + sufficient t d.f'(x)                       sufficient decrease (Armijo)
    |d.f'(x + t d)| <= curvature |d.f'(x)|                          and a flatter slope (strong Wolfe)

The searching is optax's, in its `lax.while_loop`; what is added here is a verdict: a search that found nothing returns
the step 0 and says so, and a direction that does not descend is refused. Values that agree to rounding count as
decreased, or no method could finish its last, quadratically convergent steps.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, ScalarLike

from numdl import checks, trees
from numdl._compiled import compiled
from numdl.optimize import _moving_part
from numdl.records import record

ROUNDING = 10  # values closer than this many units in the last place are equal


@record
class Search:
    """Where a line search ended."""

    step: jax.Array  # []: t, 0 where no decrease was found
    value: jax.Array  # []: f(x + t d)
    evaluations: jax.Array  # []: values of f (wolfe: and slopes)
    found: jax.Array  # []: the conditions asked for hold at t


def armijo(
    function: Callable[[PyTree], Array],
    params: PyTree,
    direction: PyTree,
    *,
    value: ScalarLike,
    gradient: PyTree,
    start: ScalarLike = 1.0,
    sufficient: ScalarLike = 1e-4,
    shrink: ScalarLike = 0.5,
    trials: int = 25,
) -> Search:
    """The first of start, start * shrink, start * shrink^2 ... that satisfies Armijo's condition: backtracking.

    Parameters
    ----------
    function : function         f: params -> scalar
    params : pytree             x
    direction : pytree          d, like params, with d.f'(x) < 0
    value : scalar              f(x), finite
    gradient : pytree           f'(x), like params
    start : scalar              the first t, > 0
    sufficient, shrink : scalar         in (0, 1)
    trials : int                at most this many values of f, >= 1
    Returns
    -------
    Search                      step (0 where nothing was found), value, evaluations, found
    Raises
    ------
    ValueError, TypeError       a number out of its range, a direction or gradient unlike params, f not a scalar
    Source: Armijo 1966; Nocedal & Wright 2006, algorithm 3.1. By optax.scale_by_backtracking_linesearch.
    """
    trials = _check(function, trials, value, sufficient=sufficient, shrink=shrink)
    start = checks.positive("start", start, shape=())
    moving = _moving(function, params, direction, gradient)
    return _backtrack(*moving, value, start, sufficient, shrink, trials=trials)


@functools.partial(compiled, static=("trials",))
def _backtrack(function, params, direction, gradient, value, start, sufficient, shrink, trials):
    import optax

    allowance = _rounding(value)
    rule = optax.scale_by_backtracking_linesearch(
        max_backtracking_steps=trials - 1,
        slope_rtol=sufficient,
        decrease_factor=shrink,
        increase_factor=jnp.inf,  # every search begins at `start`
        max_learning_rate=start,
        atol=allowance,
    )
    _, state = rule.update(direction, rule.init(params), params, value=value, grad=gradient, value_fn=function)
    found = (state.info.decrease_error <= allowance) & (_slope(direction, gradient) < 0)
    return _verdict(state, value, found, found)


def wolfe(
    function: Callable[[PyTree], Array],
    params: PyTree,
    direction: PyTree,
    *,
    value: ScalarLike,
    gradient: PyTree,
    sufficient: ScalarLike = 1e-4,
    curvature: ScalarLike = 0.9,
    trials: int = 25,
) -> Search:
    """A step that satisfies the strong Wolfe conditions, by bracketing and zooming from t = 1.

    `found` asks for both conditions; where only the decrease was found, that step is returned with found = False.

    Parameters
    ----------
    function : function         f: params -> scalar, differentiable
    params : pytree             x
    direction : pytree          d, like params, with d.f'(x) < 0
    value : scalar              f(x), finite
    gradient : pytree           f'(x), like params
    sufficient, curvature : scalar      in (0, 1), sufficient < curvature: then such a step exists for every f that is
                                bounded below
    trials : int                at most this many values and slopes of f, >= 1
    Returns
    -------
    Search                      step (0 where no decrease was found), value, evaluations, found
    Raises
    ------
    ValueError, TypeError       a number out of its range, a direction or gradient unlike params, f not a scalar
    Source: Nocedal & Wright 2006, algorithms 3.5 and 3.6. By optax.scale_by_zoom_linesearch.
    """
    trials = _check(function, trials, value, sufficient=sufficient, curvature=curvature)
    if not sufficient < curvature:
        raise checks.BadValue(f"curvature must be above sufficient = {sufficient}; got {curvature}")
    return _zoom(*_moving(function, params, direction, gradient), value, sufficient, curvature, trials=trials)


@functools.partial(compiled, static=("trials",))
def _zoom(function, params, direction, gradient, value, sufficient, curvature, trials):
    import optax

    rule = optax.scale_by_zoom_linesearch(
        max_linesearch_steps=trials,
        slope_rtol=sufficient,
        curv_rtol=curvature,
        initial_guess_strategy="one",
    )
    _, state = rule.update(direction, rule.init(params), params, value=value, grad=gradient, value_fn=function)
    descends = _slope(direction, gradient) < 0
    decreased = (state.value <= value + _rounding(value)) & descends
    flat = (state.info.decrease_error <= 0) & (state.info.curvature_error <= 0)
    return _verdict(state, value, decreased, decreased & flat)


def _verdict(state, value, decreased, found):
    step = jnp.where(decreased, state.learning_rate, jnp.zeros_like(state.learning_rate))
    reached = jnp.where(decreased, state.value, jnp.asarray(value, state.value.dtype))
    return Search(step, reached, state.info.num_linesearch_steps, found)


def _slope(direction, gradient):
    return jnp.real(trees.inner(direction, gradient))


def _rounding(value):
    value = jnp.asarray(value)
    return ROUNDING * jnp.finfo(value.dtype).eps * jnp.abs(value)


def _check(function, trials, value, **fractions):
    checks.finite("value", value, shape=())
    for name, fraction in fractions.items():
        checks.positive(name, fraction, shape=())
        if not isinstance(fraction, jax.core.Tracer) and not fraction < 1:
            raise checks.BadValue(f"{name} must be a number in (0, 1); got {fraction}")
    return checks.whole("trials", trials)


def _moving(function, params, direction, gradient):
    """Everything in terms of the part of the parameters that moves."""
    function = checks.returning("function", function, 1, "function(params)", scalar=True)
    moving, rest = trees.trainable(params)
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(params)):
        jax.eval_shape(function, rest.params(moving))
    direction = checks.like("direction", direction, params)
    gradient = checks.like("gradient", gradient, params)
    for name, tree in (("direction", direction), ("gradient", gradient)):
        for leaf, own in zip(jax.tree.leaves(tree), jax.tree.leaves(params)):
            if jnp.iscomplexobj(leaf) and not jnp.iscomplexobj(own):
                raise checks.BadType(f"{name} must be real where params are; got {jnp.result_type(leaf)}")
    if set(rest.kinds) == {"real"}:
        return function, moving, direction, gradient
    return _moving_part.of_moving(function, rest), moving, rest.moving(direction), rest.moving(gradient)
