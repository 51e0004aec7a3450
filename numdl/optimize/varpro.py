"""Variable projection: the linear readout is eliminated, and what remains is minimized over the nonlinear parameters.

    Phi(theta) = min over W of  loss(features(theta, x) W, targets) + alpha |W|^2 / 2

The minimizing W(theta) is found exactly: by QR for the squared loss, by Newton's method for any other convex one. Then

    Phi'(theta) = d/dtheta of the right side with W held fixed                          (envelope theorem)
    J = d/dtheta [features(theta, x) W(theta), W(theta)]                                for Gauss–Newton, W' implicit

so `reduced(...)` is an objective for `gauss_newton.minimize`, and `full(...)` the same problem with W among the
unknowns. `slimtik` does the like by mini-batches.

Source: Golub & Pereyra 1973; Kaufman 1975; Newman, Ruthotto, Hart & van Bloemen Waanders 2020, arXiv:2007.13171.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, PyTree, ScalarLike

from numdl import checks, trees
from numdl._compiled import as_tree, compiled
from numdl.optimize import _readout, least_squares, second_order
from numdl.optimize.gauss_newton import Composite, LeastSquares, hessian_product
from numdl.optimize.second_order import SecondOrderHistory
from numdl.records import record

JACOBIANS = ("golub_pereyra", "kaufman")


@record
class Readout:
    """The linear weights that are best for given features."""

    weights: jax.Array  # [width, outputs] (or [width] for targets [N])
    value: jax.Array  # []: loss + alpha |W|^2 / 2
    gradient_norm: jax.Array  # []: |d value / dW|, zero but for rounding
    iterations: jax.Array  # []: Newton steps; 0 for least squares


def minimize(
    features: Callable[[PyTree, Any], Array],
    theta: PyTree,
    x: PyTree,
    targets: Float[ArrayLike, "N *outputs"],
    *,
    alpha: ScalarLike,
    steps: int = 100,
    loss: Callable[[Array, Array], Array] | None = None,
    jacobian: str = "golub_pereyra",
    **options: Any,
) -> tuple[tuple[PyTree, Float[Array, "width *outputs"]], SecondOrderHistory]:
    """Variable projection (VarPro): minimize separable least squares over theta with the linear readout eliminated.

    Parameters
    ----------
    features : function         (theta, x) -> A [N, width]; `least_squares.with_bias` appends the column of ones
    theta : pytree              floating leaves move (complex ones as two reals), all others stay as they are
    x : pytree                  what the features take, leaves [N, ...]
    targets : array             [N] or [N, outputs]; for a loss [N, outputs], classes as rows of a unit matrix
    alpha : scalar              > 0, of alpha |W|^2 / 2, beside a loss that is a mean over examples
    steps : int                 at most this many Gauss–Newton steps
    loss : Loss                 convex, (outputs, targets) -> scalar; None: |A W - Y|^2 / (2 N)
    jacobian : str              "golub_pereyra" (exact) or "kaufman" (without one term that is small for a small
                                residual; squared loss only; the gradient is exact with both)
    **options : Any             of `second_order.minimize`
    Returns
    -------
    (theta, weights), SecondOrderHistory        weights [width] or [width, outputs]
    Raises
    ------
    ValueError, TypeError       alpha <= 0, arrays that do not fit, "kaufman" for a loss, ...
    Source: Newman et al. 2020, arXiv:2007.13171, algorithm 1.    Experiment: d11.
    """
    objective = reduced(features, x, targets, theta, alpha=alpha, loss=loss, jacobian=jacobian)
    theta = checks.leaves("theta", theta)
    theta, history = second_order.minimize(objective, theta, steps=steps, **options)
    return (theta, readout(features, theta, x, targets, alpha=alpha, loss=loss).weights), history


def reduced(
    features: Callable[[PyTree, Any], Array],
    x: PyTree,
    targets: Float[ArrayLike, "N *outputs"],
    theta: PyTree,
    *,
    alpha: ScalarLike,
    loss: Callable[[Array, Array], Array] | None = None,
    jacobian: str = "golub_pereyra",
) -> LeastSquares | Composite:
    """The variable projection functional as an objective in theta alone, for `gauss_newton.minimize`.

        Phi(theta) = min over W of  loss(features(theta, x) W, targets) + alpha |W|^2 / 2

    Parameters
    ----------
    features : function         (theta, x) -> A [N, width]
    x : pytree                  what the features take, leaves [N, ...]
    targets : array             [N] or [N, outputs]; for a loss [N, outputs]
    theta : pytree              tells the shapes only
    alpha : scalar              > 0
    loss : Loss                 convex, (outputs, targets) -> scalar; None: |A W - Y|^2 / (2 N)
    jacobian : str              "golub_pereyra" or "kaufman", see `minimize`
    Returns
    -------
    LeastSquares or Composite
    Raises
    ------
    ValueError, TypeError       alpha <= 0, arrays that do not fit, "kaufman" for a loss
    Source: Golub & Pereyra 1973; Newman et al. 2020, arXiv:2007.13171.    Experiment: d11.
    """
    checks.one_of("jacobian", jacobian, JACOBIANS)
    function, x, targets, alpha = _check(features, x, targets, theta, alpha, loss)
    data = {"features": function, "x": x, "alpha": alpha}
    if loss is None:
        return LeastSquares(Partial(_reduced_residual(jacobian), targets=targets, **data))
    if jacobian == "kaufman":
        raise checks.BadValue("jacobian must be golub_pereyra for a loss; got 'kaufman'")
    return Composite(Partial(_reduced_outputs(loss), targets=targets, **data), (targets, alpha), Regularized(loss))


def full(
    features: Callable[[PyTree, Any], Array],
    x: PyTree,
    targets: Float[ArrayLike, "N *outputs"],
    theta: PyTree,
    *,
    alpha: ScalarLike,
    loss: Callable[[Array, Array], Array] | None = None,
) -> LeastSquares | Composite:
    """The same problem without elimination: an objective in (theta, weights), for `gauss_newton.minimize`.

    Parameters
    ----------
    features : function         (theta, x) -> A [N, width]
    x : pytree                  what the features take, leaves [N, ...]
    targets : array             [N] or [N, outputs]; for a loss [N, outputs]
    theta : pytree              tells the shapes only
    alpha : scalar              > 0, of alpha |W|^2 / 2
    loss : Loss                 convex, (outputs, targets) -> scalar; None: |A W - Y|^2 / (2 N)
    Returns
    -------
    LeastSquares or Composite
    Raises
    ------
    ValueError, TypeError       alpha <= 0, arrays that do not fit
    """
    function, x, targets, alpha = _check(features, x, targets, theta, alpha, loss)
    data = {"features": function, "x": x}
    if loss is None:
        return LeastSquares(Partial(_full_residual, targets=targets, alpha=alpha, **data))
    return Composite(Partial(_full_outputs, **data), (targets, alpha), Regularized(loss))


def readout(
    features: Callable[[PyTree, Any], Array],
    theta: PyTree,
    x: PyTree,
    targets: Float[ArrayLike, "N *outputs"],
    *,
    alpha: ScalarLike,
    loss: Callable[[Array, Array], Array] | None = None,
) -> Readout:
    """The best linear weights W(theta) for given features, by QR or, for a loss, by Newton's method.

    Parameters
    ----------
    features : function         (theta, x) -> A [N, width]
    theta : pytree              what the features take
    x : pytree                  data, leaves [N, ...]
    targets : array             [N] or [N, outputs]; for a loss [N, outputs]
    alpha : scalar              > 0, of alpha |W|^2 / 2
    loss : Loss                 convex, (outputs, targets) -> scalar; None: |A W - Y|^2 / (2 N)
    Returns
    -------
    Readout                     weights, value, gradient_norm, iterations
    Raises
    ------
    ValueError, TypeError       alpha <= 0, arrays that do not fit
    """
    function, x, targets, alpha = _check(features, x, targets, theta, alpha, loss)
    matrix = function(theta, x)
    if loss is None:
        weights, count = project(matrix, targets, alpha), jnp.zeros((), jnp.int32)
        misfit = _half_mean_square
    else:
        weights, count = _readout.newton(loss, matrix, targets, jnp.asarray(alpha, matrix.dtype))
        misfit = loss
    return Readout(weights, *_valued(as_tree(misfit), matrix, targets, alpha, weights), count)


@compiled
def _valued(misfit, matrix, targets, alpha, weights):
    """(the regularized misfit, the norm of its gradient)."""
    objective = functools.partial(_readout.regularized, misfit, matrix, targets, alpha)
    value, slope = jax.value_and_grad(objective)(weights)
    return value, jnp.linalg.norm(slope)


@dataclasses.dataclass(frozen=True)
class Regularized:
    """loss(outputs, targets) + alpha |W|^2 / 2 as a function of the pair (outputs, W) and the pair (targets, alpha)."""

    loss: Callable

    def __call__(self, outputs, targets):
        """The value, a scalar."""
        return self.loss(outputs[0], targets[0]) + targets[1] / 2 * jnp.sum(outputs[1] ** 2)

    def curvature(self, outputs, targets, v):
        """The Hessian times a pair v."""
        return hessian_product(self.loss, outputs[0], targets[0], v[0]), (targets[1] * v[1]).astype(v[1].dtype)


def project(
    matrix: Float[ArrayLike, "N width"],
    targets: Float[ArrayLike, "N *outputs"],
    alpha: ScalarLike,
    *,
    jacobian: str = "golub_pereyra",
) -> Float[Array, "width *outputs"]:
    """The best linear weights W of separable least squares, with their exact derivative or Kaufman's.

        W = argmin |A W - Y|^2 / (2 N) + alpha |W|^2 / 2
        dW = A^+ (dY - dA W) + (A'A)^-1 dA' (Y - A W)       of the augmented matrix; Kaufman drops the second term

    Parameters
    ----------
    matrix : array [N, width]   A
    targets : array             Y, [N] or [N, outputs]
    alpha : scalar              > 0
    jacobian : str              "golub_pereyra" (exact) or "kaufman"
    Returns
    -------
    array                       [width] or [width, outputs]
    Raises
    ------
    ValueError, TypeError       alpha <= 0, arrays that do not fit or are not finite
    Source: Golub & Pereyra 1973; Kaufman 1975.    Experiment: d11.
    """
    checks.one_of("jacobian", jacobian, JACOBIANS)
    matrix = checks.finite("matrix", checks.floating("matrix", matrix, ndim=2))
    targets = checks.finite("targets", checks.floating("targets", targets, least_ndim=1))
    checks.shape("targets", targets, (matrix.shape[0], None)[: min(targets.ndim, 2)])
    alpha = checks.positive("alpha", alpha, shape=())
    return _projected(matrix, targets, alpha, kaufman=jacobian == "kaufman")


@functools.partial(compiled, static=("kaufman",))
def _projected(matrix, targets, alpha, kaufman):
    scale = 1 / jnp.sqrt(jnp.asarray(matrix.shape[0], matrix.dtype))
    rows, rhs = least_squares.augmented(scale * matrix, scale * targets, alpha)
    return _readout.solve_damped(kaufman, rows, rhs)


@functools.lru_cache(maxsize=256)
def _reduced_residual(jacobian):
    """One function object for each kind of Jacobian: a compiled minimization is found again."""

    def residual(theta, *, features, x, targets, alpha):
        matrix = features(theta, x)
        weights = project(matrix, targets, alpha, jacobian=jacobian)
        return _residual(matrix, weights, targets, alpha)

    return residual


@functools.lru_cache(maxsize=256)
def _reduced_outputs(loss):
    def outputs(theta, *, features, x, targets, alpha):
        matrix = features(theta, x)
        weights = _readout.best(loss, matrix, targets, jnp.asarray(alpha, matrix.dtype))
        return matrix @ weights, weights

    return outputs


def _full_residual(params, *, features, x, targets, alpha):
    theta, weights = params
    return _residual(features(theta, x), weights, targets, alpha)


def _full_outputs(params, *, features, x):
    theta, weights = params
    return features(theta, x) @ weights, weights


def _residual(matrix, weights, targets, alpha):
    """Whose half square is |A W - Y|^2 / (2 N) + alpha |W|^2 / 2."""
    scale = jnp.sqrt(jnp.asarray(matrix.shape[0], matrix.dtype))
    return (matrix @ weights - targets) / scale, jnp.sqrt(jnp.asarray(alpha, matrix.dtype)) * weights


def _half_mean_square(outputs, targets):
    return jnp.sum((outputs - targets) ** 2) / (2 * outputs.shape[0])


def _check(features, x, targets, theta, alpha, loss):
    """(features as a Partial, x, targets, alpha) after a look at every argument."""
    alpha = checks.positive("alpha", alpha, shape=())
    function = checks.returning("features", features, 2, "features(theta, x)")
    moving, rest = trees.trainable(theta, name="theta")
    theta, x = rest.params(moving), checks.leaves("x", x)
    examples = checks.length("x", x)
    targets = checks.finite("targets", checks.floating("targets", targets, least_ndim=1))
    checks.together("targets", targets, "x", x)
    matrix = jax.eval_shape(function, theta, x)
    checks.array("features(theta, x)", matrix, kind="floating", ndim=2, shapes=True)
    checks.shape("features(theta, x)", matrix, (examples, None))
    if loss is None:
        checks.shape("targets", targets, (matrix.shape[0], None)[: min(targets.ndim, 2)])
    else:
        checks.accepts("loss", loss, 2, "loss(outputs, targets)")
        checks.shape("targets", targets, (matrix.shape[0], None))
    return function, x, targets, alpha
