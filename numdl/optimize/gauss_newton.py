"""Gauss–Newton: the Hessian of loss(outputs(params)) without the curvature of `outputs`, times a vector, never formed.

    B v = J' H (J v),    J = d outputs / d params,   H = loss''(outputs)

B is positive semidefinite for every convex loss. Objectives are records of functions and their data:

    LeastSquares(residual)                      |residual(params)|^2 / 2
    Composite(outputs, targets, loss)           loss(outputs(params), targets)

and data is bound as `jax.tree_util.Partial(outputs, x=x)`, so that it stays an argument of the compiled minimization.
"""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree, ScalarLike

from numdl import checks, trees
from numdl._compiled import as_tree, compiled
from numdl._hyperparameters import as_data
from numdl.krylov import cg
from numdl.optimize import _moving_part, losses, second_order
from numdl.optimize.second_order import Local, SecondOrderHistory
from numdl.optimize.train import _stepping
from numdl.records import record, static

if TYPE_CHECKING:
    import optax

DECAY = 0.95  # of the last direction, where the next search for one begins
SMALLEST, GREATEST = 1e-10, 1e10  # damping of mini-batch steps stays in this range


@record
class LeastSquares:
    """Half the sum of squares of a residual."""

    residual: Callable  # params -> pytree of arrays

    def value(self, params):
        """|residual(params)|^2 / 2."""
        return _half_square(self.residual(params))

    def within(self, rest):
        """The same of the part of the parameters that moves, see `trees.trainable`."""
        return LeastSquares(_moving_part.of_moving(self.residual, rest))

    def local(self, params):
        """Value, gradient J'r and the product v -> J'J v; the residual is linearized once."""
        r, forward = jax.linearize(lambda params: jax.tree.map(_inexact, self.residual(params)), params)
        backward = jax.linear_transpose(forward, params)
        return Local(_half_square(r), backward(r)[0], lambda v: backward(forward(v))[0])


@record
class Composite:
    """A loss of a model's outputs."""

    outputs: Callable  # params -> outputs, any pytree
    targets: Any
    loss: Callable = static()  # (outputs, targets) -> scalar: a `losses.Loss`, or any convex function

    def value(self, params):
        """loss(outputs(params), targets)."""
        return self._loss(self.outputs(params), self.targets)

    def within(self, rest):
        """The same of the part of the parameters that moves, see `trees.trainable`."""
        return Composite(_moving_part.of_moving(self.outputs, rest), self.targets, self.loss)

    def local(self, params):
        """Value, gradient J'loss' and the product v -> J' loss'' J v; the outputs are linearized once."""
        outputs, forward = jax.linearize(self.outputs, params)
        backward = jax.linear_transpose(forward, params)
        value, slope = jax.value_and_grad(self._loss)(outputs, self.targets)
        return Local(value, backward(slope)[0], lambda v: backward(self._curvature(outputs, forward(v)))[0])

    def _loss(self, outputs, targets):
        return checks.one_real_number("loss", "loss(outputs, targets)", self.loss(outputs, targets))

    def _curvature(self, outputs, v):
        return hessian_product(self.loss, outputs, self.targets, v)


def _inexact(leaf):
    """A leaf of a residual; what is whole, and does not move, as a float: derivatives are linear maps of floats."""
    return leaf if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) else jnp.asarray(leaf, jnp.result_type(float))


def least_squares(residual: Callable[[PyTree], PyTree]) -> LeastSquares:
    """The objective |residual(params)|^2 / 2; bind data with `jax.tree_util.Partial(residual, x=x, y=y)`.

    Parameters
    ----------
    residual : function         params -> pytree of arrays
    Returns
    -------
    LeastSquares                for `minimize`
    Raises
    ------
    TypeError                   not a function of one argument
    """
    return LeastSquares(checks.returning("residual", residual, 1, "residual(params)"))


def composite(
    outputs: Callable[[PyTree], PyTree], targets: PyTree, loss: Callable[[PyTree, PyTree], Array]
) -> Composite:
    """The objective loss(outputs(params), targets) of a model and a convex loss.

    Parameters
    ----------
    outputs : function          params -> outputs, any pytree; bind data with `jax.tree_util.Partial(outputs, x=x)`
    targets : pytree            what the loss compares the outputs with
    loss : Loss or function     one of `losses`, or any convex (outputs, targets) -> scalar
    Returns
    -------
    Composite                   for `minimize`
    Raises
    ------
    TypeError, ValueError       not functions of these arguments, targets that are not arrays
    """
    function = checks.returning("outputs", outputs, 1, "outputs(params)")
    loss = checks.accepts("loss", loss, 2, "loss(outputs, targets)")
    return Composite(function, checks.leaves("targets", targets), loss)


def minimize(
    objective: LeastSquares | Composite | Callable[[PyTree], PyTree],
    params: PyTree,
    *,
    steps: int = 100,
    method: str = "trust_region",
    **options: Any,
) -> tuple[PyTree, SecondOrderHistory]:
    """Minimize by Gauss–Newton: the curvature of the loss, without that of the model.

    Near a solution where the residual vanishes all methods but the constantly damped ones converge fast:
    quadratically, or with a factor that falls by 3 per step for levenberg_marquardt.

    Parameters
    ----------
    objective : LeastSquares, Composite, or a function params -> residual
                                the latter is |residual(params)|^2 / 2
    params : pytree             floating leaves move (complex ones as two reals), all others stay as they are
    steps : int                 at most this many
    method : str                "trust_region" (Gauss–Newton–CG inside a ball), "levenberg_marquardt" (damped), "armijo"
                                or "wolfe" (a line search along the step)
    **options : Any             of `second_order.minimize`: radius, damping, inner_iterations, tolerance, ...
    Returns
    -------
    params, SecondOrderHistory
    Raises
    ------
    ValueError, TypeError       unknown method, a count below 1, params without a floating leaf, ...
    Source: Nocedal & Wright 2006, chapter 10; Levenberg 1944, Marquardt 1963; Schraudolph 2002 (any convex loss).
    """
    if not isinstance(objective, LeastSquares | Composite):
        objective = LeastSquares(checks.returning("objective", objective, 1, "objective(params)"))
    return second_order.minimize(objective, params, steps=steps, method=method, **options)


class BatchState(NamedTuple):
    """What a mini-batch step remembers."""

    direction: Any  # pytree like params
    damping: jax.Array
    ratio: jax.Array  # decrease / promised decrease of the last step, on its batch
    iterations: jax.Array  # of conjugate gradients in the last step


def transformation(
    *,
    damping: ScalarLike,
    inner_iterations: int = 10,
    inner_tolerance: ScalarLike = 1e-3,
    adaptation: ScalarLike = 1.5,
) -> "optax.GradientTransformationExtraArgs":
    """Hessian-free steps for mini-batches, as an optax transformation: the gradient becomes a damped Gauss–Newton step.

        (B + damping) s = -gradient, by conjugate gradients from 0.95 times the last step

    `update(gradient, state, params, objective=...)`, where the objective holds the batch. Chained after it, a scale or
    a schedule shortens the step. The damping is divided by `adaptation` where the batch's decrease is above 3/4 of what
    was promised and multiplied where below 1/4.

    Parameters
    ----------
    damping : scalar            > 0, to start with
    inner_iterations : int      of conjugate gradients in each step, >= 1
    inner_tolerance : scalar    > 0, of the residual |(B + damping) s + gradient| relative to |gradient|
    adaptation : scalar         >= 1; 1 keeps the damping
    Returns
    -------
    GradientTransformationExtraArgs     of optax; its state is a BatchState
    Raises
    ------
    ValueError, TypeError       a number out of its range
    Source: Martens 2010 (Hessian-free).
    """
    import optax

    damping = checks.positive("damping", damping, shape=())
    inner_iterations = checks.whole("inner_iterations", inner_iterations)
    inner_tolerance = checks.positive("inner_tolerance", inner_tolerance, shape=())
    adaptation = checks.finite("adaptation", adaptation, least=1.0, shape=())

    def init(params):
        dtype = _moving_part.scalar_dtype(params)
        zero = jnp.zeros((), dtype)
        zeros = jax.tree.map(jnp.zeros_like, params)
        return BatchState(zeros, jnp.asarray(damping, dtype), zero, jnp.zeros((), jnp.int32))

    def update(gradient, state, params=None, *, objective, **_):
        local = objective.local(params)
        found = _batch_step(local, gradient, state, inner_iterations, inner_tolerance)
        ratio = _ratio(objective, local, gradient, params, found.solution)
        factor = jnp.where(ratio > 0.75, 1 / adaptation, jnp.where(ratio >= 0.25, 1.0, adaptation))
        following = jnp.clip(state.damping * factor.astype(ratio.dtype), SMALLEST, GREATEST)
        step = jax.tree.map(lambda s: jnp.where(jnp.isfinite(ratio), s, jnp.zeros_like(s)), found.solution)
        return step, BatchState(step, following, ratio, found.iterations)

    return optax.GradientTransformationExtraArgs(init, update)


def descend(
    objective: Callable[[PyTree], LeastSquares | Composite],
    params: PyTree,
    batches: PyTree,
    *,
    optimizer: "optax.GradientTransformationExtraArgs",
) -> tuple[PyTree, Float[Array, "steps"]]:
    """Parameters after one step for each batch, and the loss before each: one scan, like `train.descend`.

    Parameters
    ----------
    objective : function        batch -> LeastSquares or Composite
    params : pytree             floating leaves move (complex ones as two reals), all others stay as they are
    batches : pytree            every leaf [steps, ...]
    optimizer : GradientTransformationExtraArgs     `transformation(...)`, alone or chained
    Returns
    -------
    params, losses              losses [steps]
    Raises
    ------
    TypeError, ValueError       not an optax transformation, leaves with different numbers of steps
    """
    checks.accepts("objective", objective, 1, "objective(batch)")
    _stepping.transformation("optimizer", optimizer)
    batches = _stepping.steps_of_batches(batches)
    moving, rest = trees.trainable(params)
    moving, losses = _descend(as_tree(objective), as_data(optimizer), moving, rest, batches)
    return rest.params(moving), losses


@compiled
def _descend(objective, optimizer, moving, rest, batches):
    import optax

    def step(carry, batch):
        moving, memory = carry
        here = checks.instance("objective(batch)", objective(batch), (LeastSquares, Composite))
        here = here if _moving_part.all_move(rest) else here.within(rest)
        value, gradient = jax.value_and_grad(here.value)(moving)
        update, memory = optimizer.update(gradient, memory, moving, objective=here)
        return (optax.apply_updates(moving, update), memory), value

    (moving, _), losses = lax.scan(step, (moving, optimizer.init(moving)), batches)
    return moving, losses


def hessian_product(loss: Callable[[PyTree, PyTree], Array], outputs: PyTree, targets: PyTree, v: PyTree) -> PyTree:
    """loss''(outputs) v, the Hessian in output space times a vector: known for a `losses.Loss`, else differentiated.

    The Hessians of a `losses.Loss` belong to single examples; called, it is their mean.

    Parameters
    ----------
    loss : Loss or function     (outputs, targets) -> scalar
    outputs : pytree            for a `losses.Loss` an array [..., k]
    targets : pytree            as the loss takes them
    v : pytree                  like the outputs
    Returns
    -------
    pytree                      like the outputs
    Raises
    ------
    TypeError, ValueError       v unlike the outputs, targets that the loss does not allow
    """
    checks.accepts("loss", loss, 2, "loss(outputs, targets)")
    outputs, targets = checks.floats("outputs", outputs), checks.leaves("targets", targets)
    v = checks.floats("v", checks.like("v", v, outputs, of="outputs", floating=True))
    v = jax.tree.map(lambda leaf, like: jnp.asarray(leaf, like.dtype), v, outputs)
    if isinstance(loss, losses.Loss):
        examples = outputs.size // outputs.shape[-1]
        return loss.hessian_product(outputs, targets, v) / examples
    if hasattr(loss, "curvature"):
        return loss.curvature(outputs, targets, v)
    return jax.jvp(lambda z: jax.grad(loss)(z, targets), (outputs,), (v,))[1]


def _half_square(r):
    return trees.inner(r, r) / 2


def _batch_step(local, gradient, state, iterations, tolerance):
    product = functools.partial(_damped_product, local.product, state.damping)
    start = jax.tree.map(lambda s: (DECAY * s).astype(s.dtype), state.direction)
    rhs = jax.tree.map(jnp.negative, gradient)
    return cg.cg(product, rhs, iterations=iterations, tolerance=tolerance, x0=start)


def _damped_product(product, damping, v):
    return trees.axpy(damping, v, product(v))


def _ratio(objective, local, gradient, params, step):
    """Decrease on the batch over the decrease that the undamped model promises."""
    promised = -trees.inner(gradient, step) - trees.inner(step, local.product(step)) / 2
    moved = jax.tree.map(lambda p, s: p + s, params, step)
    decrease = local.value - objective.value(moved)
    return decrease / jnp.where(promised > 0, promised, jnp.ones_like(promised)) * jnp.sign(promised)
