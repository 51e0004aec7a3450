"""The best linear weights for given features, differentiable: by QR for squares, by Newton for other losses."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from numdl.optimize.gauss_newton import hessian_product
from numdl.precision import widen

NEWTON_STEPS = 50  # at most, for W(theta) of a loss that is not a square
HALVINGS = 30


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def solve_damped(kaufman, matrix, rhs):
    """Least squares by QR, with the derivative of Golub and Pereyra or Kaufman's."""
    q, r = jnp.linalg.qr(widen(matrix))
    return jax.scipy.linalg.solve_triangular(r, q.T @ rhs).astype(rhs.dtype)


@solve_damped.defjvp
def _solve_damped_jvp(kaufman, primals, tangents):
    matrix, rhs = primals
    moved, pushed = tangents
    q, r = jnp.linalg.qr(widen(matrix))
    solve = jax.scipy.linalg.solve_triangular
    weights = solve(r, q.T @ rhs)
    change = q.T @ (pushed - moved @ weights)
    if not kaufman:
        change = change + solve(r, moved.T @ (rhs - matrix @ weights), trans=1)
    return weights.astype(rhs.dtype), solve(r, change).astype(rhs.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def best(loss, matrix, targets, alpha):
    """W(theta) for a convex loss; its derivative is that of the equation d phi / dW = 0."""
    return newton(loss, matrix, targets, alpha)[0]


@best.defjvp
def _best_jvp(loss, primals, tangents):
    weights = best(loss, *primals)

    def slope(matrix, targets, alpha):
        return jax.grad(functools.partial(regularized, loss, matrix, targets, alpha))(weights)

    _, pushed = jax.jvp(slope, primals, tangents)
    return weights, -_solve(_hessian(loss, *primals, weights), pushed)


def newton(loss, matrix, targets, alpha):
    """W(theta) for a convex loss by Newton's method with halved steps, from zero: W and the number of steps."""
    objective = functools.partial(regularized, loss, matrix, targets, alpha)
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


def regularized(loss, matrix, targets, alpha, weights):
    """loss(A W, Y) + alpha |W|^2 / 2."""
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
    factor = jnp.linalg.cholesky(widen(hessian + small * jnp.eye(hessian.shape[0], dtype=hessian.dtype)))
    return jax.scipy.linalg.cho_solve((factor, True), widen(rhs.ravel())).reshape(rhs.shape).astype(rhs.dtype)


def _first(sizes, good):
    """The first size that is good, or 0."""

    def going(place):
        return (place < sizes.shape[0]) & ~good(sizes[jnp.minimum(place, sizes.shape[0] - 1)])

    place = lax.while_loop(going, lambda place: place + 1, jnp.zeros((), jnp.int32))
    return jnp.where(place < sizes.shape[0], sizes[jnp.minimum(place, sizes.shape[0] - 1)], jnp.zeros_like(sizes[0]))
