"""MEASURED: the Jacobians of a recurrent network through time, for any cell, in logarithms.

A cell is a function step(params, carry, x) -> carry; the carry is any pytree of arrays. One example at a time: `start`
is a carry with N examples, and every figure has N as its last axis. No product of Jacobians is ever formed unscaled,
so that a thousand steps neither vanish nor overflow in float32.

    >>> import jax.numpy as jnp
    >>> step = lambda w, h, x: h @ w + x
    >>> w, start, inputs = 0.5 * jnp.eye(2), jnp.zeros((1, 2)), jnp.ones((1000, 1, 2))
    >>> found = gradient_through_time(step, w, start, inputs)
    >>> print(f"{found.log_norm[0, 0] / 1000:.3f}")  # ln 0.5; 0.5**1000 itself is 0 in float32
    -0.693
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float, PyTree

from numdl import checks
from numdl._compiled import jit
from numdl.precision import widen
from numdl.records import record


@record
class ThroughTime:
    """Spectral norms of the Jacobians through time; natural logarithms."""

    log_norm: jax.Array  # [T, N]: ln |dy_T/dy_t|_2 for t = 0..T-1; y_0 is the start
    log_step: jax.Array  # [T, N]: ln |dy_{t+1}/dy_t|_2, one step


@record
class Carousel:
    """The gradient along a memory with everything else held fixed; natural logarithms."""

    log_gradient: jax.Array  # [steps, N, n]: ln |d c_k / d c_0| of every unit, k = 1..steps
    leak: jax.Array  # [steps, N]: largest influence of one unit's memory on another's; 0 for an LSTM


def gradient_through_time(
    step: Callable[[PyTree, PyTree, Array], PyTree], params: PyTree, start: PyTree, inputs: Float[ArrayLike, "T N ..."]
) -> ThroughTime:
    """MEASURED recurrent gradient ln |dy_T/dy_t|_2 for t = 0..T-1, y the whole carry: backpropagation through time.

        M_T = I,   M_t = M_{t+1} J_t,   J_t = dy_{t+1}/dy_t;   M scaled at every step, the logarithms summed

    Parameters
    ----------
    step : function             (params, carry, x) -> carry, examples along the first axis of every leaf
    params : pytree             of the cell
    start : pytree              carry before the first step, leaves [N, ...]
    inputs : array [T, N, ...]  one step's input after the other
    Returns
    -------
    ThroughTime                 log_norm, log_step [T, N], natural logarithms
    Raises
    ------
    TypeError, ValueError       step is not a function or changes the carry's shape; start and inputs disagree on N
    Source: the chain rule; the scaling is numdl's own.
    Twin: theory.recurrent.gradient_through_time, an upper bound where y is h of a plain cell.    Experiment: b8.
    """
    log_norm, log_step = _through_time(*_checked(step, params, start, inputs))
    return ThroughTime(log_norm.T, log_step.T)


def carousel(
    step: Callable[[PyTree, PyTree, Array], PyTree],
    params: PyTree,
    start: PyTree,
    inputs: Float[ArrayLike, "T N ..."],
    *,
    field: str = "cell",
) -> Carousel:
    """MEASURED ln |d c_k / d c_0| along the memory c (an LSTM's error carousel), the rest of the carry held fixed.

        log_gradient[k] = sum_{t <= k} ln |d c_t / d c_{t-1}| of every unit, at fixed h_{t-1}

    Parameters
    ----------
    step : function             (params, carry, x) -> carry, a named tuple; examples along every leaf's first axis
    params : pytree             of the cell
    start : named tuple         carry before the first step, leaves [N, ...]
    inputs : array [T, N, ...]  one step's input after the other
    field : str                 name of the memory in the carry
    Returns
    -------
    Carousel                    log_gradient [T, N, n], leak [T, N]
    Raises
    ------
    TypeError, ValueError       the carry has no such field; as `gradient_through_time`
    Source: Hochreiter & Schmidhuber 1997.
    Twin: theory.recurrent.carousel.    Experiment: b8.
    """
    step, params, start, inputs = _checked(step, params, start, inputs)
    if not isinstance(field, str) or field not in getattr(start, "_fields", ()):
        raise checks.BadValue(f"field must be one of the carry's, {getattr(start, '_fields', ())}; got {field!r}")
    log_gradient, leak = _carousel(step, params, start, inputs, field)
    return Carousel(jnp.swapaxes(log_gradient, 0, 1), leak.T)


def _checked(step, params, start, inputs):
    step = checks.returning("step", step, 3, "step(params, carry, x)")
    params, start = checks.leaves("params", params, empty=True), checks.leaves("start", start, examples=True)
    inputs = checks.floating("inputs", inputs, least_ndim=2)
    examples = {leaf.shape[0] for leaf in jax.tree.leaves(start)}
    if examples != {inputs.shape[1]}:
        raise checks.BadValue(f"start must have inputs' {inputs.shape[1]} examples along axis 0; got {examples}")
    try:
        after = jax.eval_shape(step, params, start, inputs[0])
    except checks.Refused:
        raise
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        shapes = [[tuple(leaf.shape) for leaf in jax.tree.leaves(tree)] for tree in (params, start)]
        got = f"got shapes {shapes[0]} and {shapes[1]}: {type(error).__name__}: {error}"
        raise checks.BadValue(f"params and start must fit step(params, carry, x); {got}") from error
    checks.like("step(params, start, inputs[0])", after, start, of="start", shapes=True)
    for leaf in jax.tree.leaves(after):
        if jnp.iscomplexobj(leaf):
            raise checks.BadType(f"params and start must make a carry of real numbers, step(...); got {leaf.dtype}")
    start = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), start, after)  # a start in another precision
    return step, params, start, inputs


def _single(step):
    """The step of one example, without the axis of the examples."""

    def one(params, carry, x):
        carry = step(params, jax.tree.map(lambda leaf: leaf[None], carry), x[None])
        return jax.tree.map(lambda leaf: leaf[0], carry)

    return one


def _trajectory(step, params, start, inputs):
    """The carry before every step."""
    return lax.scan(lambda carry, x: (step(params, carry, x), carry), start, inputs)[1]


def _each_example(function, start, inputs):
    """`function(start, inputs)` for one example after the other: memory for one trajectory of Jacobians."""
    return lax.map(lambda pair: function(*pair), (start, jnp.swapaxes(inputs, 0, 1)))


@jit
def _through_time(step, params, start, inputs):
    one = _single(step)

    def example(start, inputs):
        before = _trajectory(one, params, start, inputs)

        def back(carry, now):
            product, log_scale = carry
            jacobian = _jacobian(one, params, *now)
            product, log_factor = _scaled(product @ jacobian)
            log_scale = log_scale + log_factor
            return (product, log_scale), (log_scale + _log_spectral(product), _log_spectral(jacobian))

        size, dtype = ravel_pytree(start)[0].size, jnp.result_type(*jax.tree.leaves(start))
        first = widen((jnp.eye(size, dtype=dtype), jnp.zeros((), dtype)))
        return lax.scan(back, first, (before, inputs), reverse=True)[1]

    return _each_example(example, start, inputs)


def _jacobian(step, params, carry, x):
    """The step's own Jacobian, in its dtype; in float32 at least for what is made of it."""
    flat, back = ravel_pytree(carry)
    return widen(jax.jacfwd(lambda y: ravel_pytree(step(params, back(y), x))[0])(flat))


@functools.partial(jit, static_argnames="field")
def _carousel(step, params, start, inputs, field):
    one = _single(step)

    def example(start, inputs):
        def forward(carry, x):
            def memory(c):
                return getattr(one(params, carry._replace(**{field: c}), x), field).ravel()

            c = getattr(carry, field)
            jacobian = widen(jax.jacfwd(memory)(c).reshape(c.size, c.size))
            own = jnp.diagonal(jacobian)
            leak = jnp.max(jnp.abs(jacobian - jnp.diag(own)))
            return one(params, carry, x), (jnp.log(jnp.abs(own)), leak)

        _, (log_factor, leak) = lax.scan(forward, start, inputs)
        return jnp.cumsum(log_factor, axis=0), leak

    return _each_example(example, start, inputs)


def _scaled(matrix):
    """The matrix divided by its largest entry, and the logarithm of that; 0 stays 0 with logarithm -inf."""
    largest = jnp.max(jnp.abs(matrix))
    zero = largest == 0
    scaled = matrix / jnp.where(zero, jnp.ones_like(largest), largest)
    return scaled, jnp.log(largest)


def _log_spectral(matrix):
    """ln of the largest singular value; the zero matrix gives -inf."""
    scaled, log_scale = _scaled(matrix)
    return jnp.where(jnp.isneginf(log_scale), log_scale, log_scale + jnp.log(jnp.linalg.norm(scaled, 2)))
