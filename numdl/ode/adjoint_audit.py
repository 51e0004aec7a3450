"""Is this gradient right? Tests of any derivative, of an adjoint against the direct one, of an inverse against depth.

Each sees something else. Dot products: is the backward pass the transpose of the forward derivative, to rounding?
Taylor remainders: does the gradient belong to the function at all? `gradient_error`: how far is one adjoint from
another? A continuous adjoint (backsolve) fails the first, and its error need not be small: where the state contracts,
the errors of its reconstruction backwards in time grow exponentially.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Key, PyTree

from numdl import checks, trees
from numdl._compiled import as_tree, compiled
from numdl.ode import _doors, adjoints, integrate
from numdl.ode.schemes import Scheme
from numdl.precision import widen
from numdl.records import record, static
from numdl.typing import Field

LIMIT = 0.01  # relative gradient error above which an adjoint is flagged
MOST = 0.05  # relative mismatch that no precision excuses
ROUNDING_MARGIN = 1e3  # a Taylor remainder counts if it is this many units of rounding of the loss


@record
class DotProduct:
    """|<v, J u> - <J^T v, u>| / (|v| |J u|) over random pairs."""

    relative: jax.Array  # [pairs]
    largest: jax.Array  # []
    tolerance: float = static()

    @property
    def holds(self):
        """Whether the backward pass is the transpose of the forward derivative, to rounding."""
        return self.largest <= self.tolerance


@record
class Taylor:
    """Remainders of the loss along a random direction d of length one, epsilon halved again and again."""

    epsilons: np.ndarray  # [n]
    first: np.ndarray  # [n]: |loss(x + epsilon d) - loss(x)|, slope 1
    second: np.ndarray  # [n]: |loss(x + epsilon d) - loss(x) - epsilon gradient . d|, slope 2
    slopes: np.ndarray  # [n - 1]: of `second` between neighbours
    used: np.ndarray  # [n - 1] bool: both remainders stand above rounding
    holds: np.ndarray  # []: five slopes or more are used and the last five lie in 2 +- 0.1


@record
class GradientError:
    """Relative difference of two gradients of one discrete solution."""

    y0: np.ndarray  # []: |gradient - reference| / |reference| with respect to y0
    theta: np.ndarray  # []: with respect to theta
    relative: np.ndarray  # []: all coordinates together
    flagged: np.ndarray  # []: the larger of the first two is above the limit, or not finite
    limit: float = static()

    @property
    def verdict(self):
        """One sentence for a person."""
        worst = float(np.max(np.asarray([self.y0, self.theta])))
        if bool(self.flagged):
            return (
                f"WRONG: the gradient is off by {worst:.2g} relative, above {self.limit:g}: differentiate the discrete "
                "solution instead (direct, checkpointed, binomial, or reversible with a scheme that has an inverse)"
            )
        return f"right to {worst:.2g} relative, within {self.limit:g}"


@record
class Reconstruction:
    """How well the way back through all steps returns to the start."""

    steps: np.ndarray  # [depths]
    relative: np.ndarray  # [dtypes, depths]: |y0 recovered - y0| / |y0|
    dtypes: tuple = static()


def dot_product_test(
    function: Callable[[PyTree], PyTree],
    x: PyTree,
    *,
    key: Key[Array, ""],
    forward: Callable[[PyTree], PyTree] | None = None,
    pairs: int = 20,
    tolerance: float | None = None,
) -> DotProduct:
    """MEASURED mismatch of the backward pass of `function` at x and the transpose of its forward derivative.

        relative = |<v, J u> - <J^T v, u>| / (|v| |J u|),   u, v random

    Tells an adjoint method that is exact (checkpointing, the inverse of a reversible network) from one that is not.

    Parameters
    ----------
    function : function         x -> pytree; its vector-Jacobian product gives J^T v
    x : pytree                  floating-point arrays
    key : key                   of the random directions
    forward : function          the same map with a forward derivative, where `function` has none: reversible,
                                binomial and backsolve are compared with adjoints.direct
    pairs : int                 of random directions, >= 1
    tolerance : scalar          None: 10,000 units of rounding of the coarsest dtype, 2e-12 in float64, 0.05 at most
    Raises
    ------
    ValueError, TypeError       key is not a typed key, no function, pairs < 1, a tolerance that is not positive
    Source: the definition of the transpose.    Experiments: c8, c9.
    """
    checks.key("key", key)
    pairs = checks.whole("pairs", pairs)
    for name, given in (("function", function), ("forward", forward)):
        if not (name == "forward" and given is None):
            checks.accepts(name, given, 1, f"{name}(x)")
    if tolerance is not None:
        checks.positive("tolerance", tolerance, shape=())
    x = widen(checks.floats("x", x))  # half precision hides what is asked
    relative, outputs = _mismatches(as_tree(function), as_tree(forward), x, jax.random.split(key, pairs))
    rounding = max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves((x, outputs)))
    limit = min(1e4 * rounding, MOST) if tolerance is None else float(tolerance)
    return DotProduct(relative, relative.max(), limit)


@compiled
def _mismatches(function, forward, x, keys):
    outputs, pull = jax.vjp(function, x)
    _, push = jax.linearize(function if forward is None else forward, x)

    def mismatch(key):
        key_u, key_v = jax.random.split(key)
        u, v = trees.random_like(key_u, x), trees.random_like(key_v, outputs)
        image = push(u)
        gap = jnp.abs(trees.inner(v, image) - trees.inner(pull(v)[0], u))
        return gap / (trees.norm(v) * trees.norm(image))

    return lax.map(mismatch, keys), outputs


def taylor_remainders(
    loss: Callable[[PyTree], Array], x: PyTree, *, key: Key[Array, ""], epsilon: float = 0.1, halvings: int = 12
) -> Taylor:
    """First and second Taylor remainders of loss at x: slopes 2.0 +- 0.1 say that jax.grad(loss) is its gradient.

    Float64 and smooth functions only: float32 leaves one or two slopes above rounding, and across a kink (relu) the
    second remainder means nothing.

    Parameters
    ----------
    loss : function             x -> scalar
    x : pytree                  floating-point arrays
    key : key                   of the random direction
    epsilon : scalar            the largest, relative to |x| if that is above 1
    halvings : int              five at least
    Raises
    ------
    ValueError, TypeError       no typed key, a loss that is not a scalar, fewer than five halvings
    Source: Taylor's theorem.
    """
    checks.key("key", key)
    loss = checks.returning("loss", loss, 1, "loss(x)", scalar=True)
    halvings = checks.whole("halvings", halvings, least=5)
    epsilon = checks.positive("epsilon", epsilon, shape=())
    x = checks.floats("x", x)
    jax.eval_shape(loss, jax.eval_shape(widen, x))
    x = widen(x)
    epsilons = epsilon * np.maximum(1.0, trees.norm(x)) * 0.5 ** np.arange(halvings + 1)
    return _taylor(epsilons, *_values_along(loss, x, key, epsilons))


def gradient_error(
    solve: Callable,
    y0: PyTree,
    theta: PyTree,
    *,
    adjoint: Callable,
    reference: Callable = adjoints.direct,
    limit: float = LIMIT,
) -> GradientError:
    """MEASURED error of the gradient by one adjoint method beside another (the discrete solution's own), and a verdict.

    Checkpointing and the inverse of a reversible network are exact; a continuous adjoint is not.

    Parameters
    ----------
    solve : function            (y0, theta, adjoint) -> scalar loss, by integrate.endpoint(..., adjoint=adjoint)
    y0, theta : pytree          floating-point arrays: state and parameters
    adjoint : function          to be judged
    reference : function        what it is judged by
    limit : scalar              relative error that is called wrong, > 0
    Returns
    -------
    GradientError               verdict, flagged, and the relative errors for y0, theta and both together
    Raises
    ------
    ValueError, TypeError       no functions of these arguments, a bad limit, leaves that are not floats
    Source: Gholami, Keutzer & Biros 2019, arXiv:1902.10298 (why the continuous adjoint is wrong).
    Experiments: c8, c9.
    """
    solve = checks.returning("solve", solve, 3, "solve(y0, theta, adjoint)", scalar=True)
    checks.positive("limit", limit, shape=())
    for name, method in (("adjoint", adjoint), ("reference", reference)):
        checks.accepts(name, method, 5, f"{name}(recurrence, y, shared, drive, save)")
    y0, theta = checks.floats("y0", y0), checks.floats("theta", theta)
    got, wanted = (_gradient(as_tree(solve), y0, theta, adjoint=method) for method in (adjoint, reference))
    errors = [_relative(*pair) for pair in ((got[0], wanted[0]), (got[1], wanted[1]), (got, wanted))]
    worst = jnp.stack(errors[:2])
    flagged = ~jnp.all(worst <= limit)  # nan is flagged, too
    return GradientError(*errors, flagged, float(limit))


@functools.partial(compiled, static=("adjoint",))
def _gradient(solve, y0, theta, adjoint):
    return jax.grad(solve, argnums=(0, 1))(y0, theta, adjoint)


def reconstruction_error(
    field: Field | tuple[Field, Field],
    y0: PyTree,
    theta: PyTree,
    *,
    scheme: Scheme,
    steps: Sequence[int],
    t1: float | None = None,
    step_time: float | None = None,
    dtypes: Sequence[str] = ("float32", "float64"),
) -> Reconstruction:
    """MEASURED distance at which the scheme's inverse returns to y0 after this many steps, in each dtype.

    With `t1` the time is fixed and depth refines it. With `step_time` instead every step has that length and
    depth is time: rounding then grows like the flow itself, exponentially where it is chaotic.

    Parameters
    ----------
    field : function            (t, y, theta) -> what the scheme takes, or a pair of them
    y0 : pytree                 the start
    theta : pytree              constant in time
    scheme : Scheme             schemes.leapfrog, verlet or coupling
    steps : sequence of int     depths
    t1, step_time : scalar      end of the time interval, or length of each step: exactly one of the two
    dtypes : sequence of str    float64 is computed as such whatever jax's global flag
    Raises
    ------
    ValueError, TypeError       both or neither of t1 and step_time, a scheme without an inverse, another dtype
    """
    if (t1 is None) == (step_time is None):
        found = f"t1={checks.shown(t1)}, step_time={checks.shown(step_time)}"
        raise checks.BadValue(f"exactly one of t1 and step_time must be given; got {found}")
    _doors.invertible(field, scheme)
    depths = checks.wholes("steps", steps)
    dtypes = _dtypes(dtypes)
    if t1 is None:
        step_time = checks.positive("step_time", step_time, shape=())
    else:
        t1 = checks.finite("t1", t1, shape=())
    with jax.enable_x64(True):  # the float64 runs begin at NumPy's float64
        y0, theta = checks.floats("y0", y0), checks.floats("theta", theta, empty=True)
    ends = [t1 if step_time is None else n * step_time for n in depths]
    back_and_forth = functools.partial(_back_and_forth, field, y0, theta, scheme)
    rows = [[back_and_forth(dtype, end, n) for n, end in zip(depths, ends, strict=True)] for dtype in dtypes]
    return Reconstruction(np.array(depths), np.array(rows, np.float64), dtypes)


def _dtypes(dtypes):
    allowed = "float32", "float64"
    if isinstance(dtypes, str) or not isinstance(dtypes, tuple | list) or not dtypes:
        raise checks.BadValue(f"dtypes must be a sequence of {' and '.join(allowed)}; got {dtypes!r}")
    return tuple(checks.one_of("dtypes", getattr(dtype, "__name__", None) or str(dtype), allowed) for dtype in dtypes)


def _back_and_forth(field, y0, theta, scheme, dtype, t1, steps):
    with jax.enable_x64(True):
        start, parameters = (jax.tree.map(lambda leaf: _in(leaf, dtype), tree) for tree in (y0, theta))
        y1 = integrate.endpoint(field, start, parameters, scheme=scheme, t1=t1, steps=steps)
        again = integrate.invert(field, y1, parameters, scheme=scheme, t1=t1, steps=steps)
        wide = [jax.tree.map(lambda leaf: _in(leaf, "float64"), tree) for tree in (again, start)]
        return float(_relative(*wide))


def _in(leaf, dtype):
    """A leaf in this real dtype, or in the complex one of its parts."""
    return jnp.asarray(leaf, jnp.promote_types(dtype, "complex64") if jnp.iscomplexobj(leaf) else dtype)


@compiled
def _values_along(loss, x, key, epsilons):
    """Values along a random direction, the value and the slope at x."""
    direction = trees.random_like(key, x)
    direction = jax.tree.map(lambda leaf: leaf / trees.norm(direction).astype(leaf.dtype), direction)
    value, gradient = jax.value_and_grad(loss)(x)
    values = lax.map(functools.partial(_along, loss, x, direction), jnp.asarray(epsilons, value.dtype))
    return values, value, trees.inner(gradient, direction)


def _along(loss, x, direction, epsilon):
    return loss(jax.tree.map(lambda leaf, d: leaf + epsilon.astype(leaf.dtype) * d, x, direction))


def _taylor(epsilons, values, value, slope):
    first = np.asarray(values) - np.asarray(value)
    second = np.abs(first - epsilons * float(slope))
    rounding = ROUNDING_MARGIN * np.finfo(first.dtype).eps * max(abs(float(value)), np.abs(first).max())
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = np.diff(np.log2(second)) * -1.0
    used = second[1:] > rounding
    last = slopes[used][-5:]
    holds = np.asarray(last.size == 5 and bool(np.all(np.abs(last - 2) <= 0.1)))
    return Taylor(epsilons, np.abs(first), second, slopes, used, holds)


def _relative(got, wanted):
    size = trees.norm(wanted)
    gap = trees.norm(jax.tree.map(jnp.subtract, widen(got), widen(wanted)))
    return jnp.where(size > 0, gap / jnp.where(size > 0, size, jnp.ones_like(size)), gap)
