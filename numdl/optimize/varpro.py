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

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from numdl import checks, trees
from numdl.optimize import least_squares, second_order
from numdl.optimize.gauss_newton import Composite, LeastSquares, hessian_product
from numdl.records import record

JACOBIANS = ("golub_pereyra", "kaufman")
NEWTON_STEPS = 50  # at most, for W(theta) of a loss that is not a square
HALVINGS = 30


@record
class Readout:
    """The linear weights that are best for given features."""

    weights: jax.Array  # [width, outputs] (or [width] for targets [N])
    value: jax.Array  # []: loss + alpha |W|^2 / 2
    gradient_norm: jax.Array  # []: |d value / dW|, zero but for rounding
    iterations: jax.Array  # []: Newton steps; 0 for least squares


def minimize(features, theta, x, targets, *, alpha, steps, loss=None, jacobian="golub_pereyra", **options):
    """Minimize over theta with the readout eliminated: ((theta, weights), SecondOrderHistory).

    Parameters
    ----------
    features : function         (theta, x) -> A [N, width]; `least_squares.with_bias` appends the column of ones
    theta : pytree
    x, targets : arrays         targets [N] or [N, outputs]; for a loss [N, outputs], classes as rows of a unit matrix
    alpha : scalar > 0          of alpha |W|^2 / 2, beside a loss that is a mean over examples
    steps : int                 at most this many Gauss–Newton steps
    loss : Loss                 None: |A W - Y|^2 / (2 N)
    jacobian : str              "golub_pereyra" (exact) or "kaufman" (without one term that is small for a small
                                residual; squared loss only; the gradient is exact with both)
    options                     of `second_order.minimize`
    Source: Newman et al. 2020, arXiv:2007.13171, algorithm 1.
    """
    objective = reduced(features, x, targets, theta, alpha=alpha, loss=loss, jacobian=jacobian)
    theta = checks.leaves("theta", theta)
    theta, history = second_order.minimize(objective, theta, steps=steps, **options)
    return (theta, readout(features, theta, x, targets, alpha=alpha, loss=loss).weights), history


def reduced(features, x, targets, theta, *, alpha, loss=None, jacobian="golub_pereyra"):
    """Phi as an objective in theta for `gauss_newton.minimize`; `theta` here tells the shapes only.

    Parameters and errors as in `minimize`.
    """
    checks.one_of("jacobian", jacobian, JACOBIANS)
    function, x, targets, alpha = _check(features, x, targets, theta, alpha, loss)
    data = {"features": function, "x": x, "alpha": alpha}
    if loss is None:
        return LeastSquares(Partial(_reduced_residual(jacobian), targets=targets, **data))
    if jacobian == "kaufman":
        raise checks.BadValue("jacobian must be golub_pereyra for a loss; got 'kaufman'")
    return Composite(Partial(_reduced_outputs(loss), targets=targets, **data), (targets, alpha), Regularized(loss))


def full(features, x, targets, theta, *, alpha, loss=None):
    """The same problem without elimination: an objective in (theta, weights)."""
    function, x, targets, alpha = _check(features, x, targets, theta, alpha, loss)
    data = {"features": function, "x": x}
    if loss is None:
        return LeastSquares(Partial(_full_residual, targets=targets, alpha=alpha, **data))
    return Composite(Partial(_full_outputs, **data), (targets, alpha), Regularized(loss))


def readout(features, theta, x, targets, *, alpha, loss=None):
    """The best linear weights W(theta): a Readout."""
    function, x, targets, alpha = _check(features, x, targets, theta, alpha, loss)
    matrix = function(theta, x)
    if loss is None:
        weights, count = project(matrix, targets, alpha), jnp.zeros((), jnp.int32)
        misfit = _half_mean_square
    else:
        weights, count = _newton(loss, matrix, targets, jnp.asarray(alpha, matrix.dtype))
        misfit = loss
    objective = functools.partial(_phi, misfit, matrix, targets, alpha)
    value, slope = jax.value_and_grad(objective)(weights)
    return Readout(weights, value, jnp.linalg.norm(slope), count)


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


def project(matrix, targets, alpha, *, jacobian="golub_pereyra"):
    """W = argmin |A W - Y|^2 / (2 N) + alpha |W|^2 / 2, with its exact derivative or Kaufman's.

    dW = A^+ (dY - dA W) + (A'A)^-1 dA' (Y - A W)           of the augmented matrix; Kaufman drops the second term
    """
    checks.one_of("jacobian", jacobian, JACOBIANS)
    matrix = checks.finite("matrix", checks.floating("matrix", matrix, ndim=2))
    targets = checks.finite("targets", checks.floating("targets", targets, least_ndim=1))
    checks.shape("targets", targets, (matrix.shape[0], None)[: min(targets.ndim, 2)])
    alpha = checks.positive("alpha", alpha, shape=())
    scale = 1 / jnp.sqrt(jnp.asarray(matrix.shape[0], matrix.dtype))
    rows, rhs = least_squares.augmented(scale * matrix, scale * targets, alpha)
    return _project(jacobian == "kaufman", rows, rhs)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _project(kaufman, matrix, rhs):
    q, r = jnp.linalg.qr(matrix)
    return jax.scipy.linalg.solve_triangular(r, q.T @ rhs)


@_project.defjvp
def _project_jvp(kaufman, primals, tangents):
    matrix, rhs = primals
    moved, pushed = tangents
    q, r = jnp.linalg.qr(matrix)
    solve = jax.scipy.linalg.solve_triangular
    weights = solve(r, q.T @ rhs)
    change = q.T @ (pushed - moved @ weights)
    if not kaufman:
        change = change + solve(r, moved.T @ (rhs - matrix @ weights), trans=1)
    return weights, solve(r, change)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _best(loss, matrix, targets, alpha):
    """W(theta) for a convex loss; its derivative is that of the equation d phi / dW = 0."""
    return _newton(loss, matrix, targets, alpha)[0]


@_best.defjvp
def _best_jvp(loss, primals, tangents):
    weights = _best(loss, *primals)

    def slope(matrix, targets, alpha):
        return jax.grad(functools.partial(_phi, loss, matrix, targets, alpha))(weights)

    _, pushed = jax.jvp(slope, primals, tangents)
    return weights, -_solve(_hessian(loss, *primals, weights), pushed)


def _newton(loss, matrix, targets, alpha):
    """W(theta) for a convex loss by Newton's method with halved steps, from zero: W and the number of steps."""
    objective = functools.partial(_phi, loss, matrix, targets, alpha)
    look = jax.value_and_grad(objective)
    eps = jnp.finfo(matrix.dtype).eps
    start = jnp.zeros((matrix.shape[1], targets.shape[1]), matrix.dtype)

    def going(state):
        return (state[1] < NEWTON_STEPS) & ~state[2]

    def step(state):
        weights, count, _ = state
        value, slope = look(weights)
        direction = -_solve(_hessian(loss, matrix, targets, alpha, weights), slope)
        promised = -jnp.sum(direction * slope)
        # Full steps first; below rounding of the value a full step can only improve the gradient.
        fractions = jnp.asarray(0.5, matrix.dtype) ** jnp.arange(HALVINGS, dtype=matrix.dtype)
        size = _first(fractions, lambda t: objective(weights + t * direction) <= value - 1e-4 * t * promised)
        fine = promised <= 10 * eps * jnp.abs(value)
        size = jnp.where(fine, jnp.ones_like(size), size)
        done = (promised <= eps**1.5 * jnp.abs(value)) | ~jnp.isfinite(promised) | (size == 0)
        return jnp.where(jnp.isfinite(promised), weights + size * direction, weights), count + 1, done

    weights, count, _ = lax.while_loop(going, step, (start, jnp.zeros((), jnp.int32), jnp.zeros((), bool)))
    return weights, count


@functools.cache
def _reduced_residual(jacobian):
    """One function object for each kind of Jacobian: a compiled minimization is found again."""

    def residual(theta, *, features, x, targets, alpha):
        matrix = features(theta, x)
        weights = project(matrix, targets, alpha, jacobian=jacobian)
        return _residual(matrix, weights, targets, alpha)

    return residual


@functools.cache
def _reduced_outputs(loss):
    def outputs(theta, *, features, x, targets, alpha):
        matrix = features(theta, x)
        weights = _best(loss, matrix, targets, jnp.asarray(alpha, matrix.dtype))
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
    checks.floating("features(theta, x)", matrix, ndim=2)
    checks.shape("features(theta, x)", matrix, (examples, None))
    if loss is None:
        checks.shape("targets", targets, (matrix.shape[0], None)[: min(targets.ndim, 2)])
    else:
        checks.accepts("loss", loss, 2, "loss(outputs, targets)")
        checks.shape("targets", targets, (matrix.shape[0], None))
    return function, x, targets, alpha


def _phi(loss, matrix, targets, alpha, weights):
    return loss(matrix @ weights, targets) + alpha / 2 * jnp.sum(weights**2)


def _hessian(loss, matrix, targets, alpha, weights):
    """d^2 phi / dW^2, [width outputs, width outputs], from one Hessian block per example."""
    outputs = matrix @ weights
    columns = jnp.eye(outputs.shape[1], dtype=outputs.dtype)

    def product(column):
        return hessian_product(loss, outputs, targets, jnp.broadcast_to(column[None, :], outputs.shape))

    blocks = lax.map(product, columns)  # [b, N, a]
    joint = jnp.einsum("ni,nj,bna->iajb", matrix, matrix, blocks)
    size = weights.size
    return joint.reshape(size, size) + alpha * jnp.eye(size, dtype=matrix.dtype)


def _solve(hessian, rhs):
    """hessian^-1 rhs; the diagonal is raised by rounding, so that the factorization exists in float32 too."""
    small = jnp.finfo(hessian.dtype).eps * jnp.max(jnp.diagonal(hessian))
    factor = jnp.linalg.cholesky(hessian + small * jnp.eye(hessian.shape[0], dtype=hessian.dtype))
    return jax.scipy.linalg.cho_solve((factor, True), rhs.ravel()).reshape(rhs.shape)


def _first(sizes, good):
    """The first size that is good, or 0."""

    def going(place):
        return (place < sizes.shape[0]) & ~good(sizes[jnp.minimum(place, sizes.shape[0] - 1)])

    place = lax.while_loop(going, lambda place: place + 1, jnp.zeros((), jnp.int32))
    return jnp.where(place < sizes.shape[0], sizes[jnp.minimum(place, sizes.shape[0] - 1)], jnp.zeros_like(sizes[0]))
