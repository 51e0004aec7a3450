"""Least squares by factorizations, and how much damping a problem needs: cross validation, discrepancy."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from numdl._compiled import compiled


@compiled
def augmented(features, targets, damping):
    """[A; sqrt(damping) I] and [Y; 0]."""
    width = features.shape[1]
    root = jnp.sqrt(jnp.asarray(damping, features.dtype))
    below = jnp.zeros((width, *targets.shape[1:]), targets.dtype)
    rows = jnp.concatenate([features, root * jnp.eye(width, dtype=features.dtype)])
    return rows, jnp.concatenate([targets, below])


@compiled
def by_rotation(matrix, rhs):
    """The solution by QR."""
    q, r = jnp.linalg.qr(matrix)
    return jax.scipy.linalg.solve_triangular(r, q.T @ rhs)


@compiled
def truncated(features, targets, cutoff):
    """Solution, norm of the residual, singular values, norms of U'Y's rows, and how many values were used."""
    u, values, vt = jnp.linalg.svd(features, full_matrices=False)
    coefficients = u.T @ targets
    used = values > cutoff * values[0]
    inverse = jnp.where(used, 1 / jnp.where(used, values, 1), 0)
    solution = vt.T @ scaled_rows(inverse, coefficients)
    residual = jnp.linalg.norm(features @ solution - targets)
    return solution, residual, values, jnp.sqrt(row_squares(coefficients)), jnp.sum(used)


@compiled
def decompose(features, targets):
    """Singular values, V', U'Y, the squares of its rows, what of |Y|^2 no damping can fit, and N."""
    u, values, vt = jnp.linalg.svd(features, full_matrices=False)
    coefficients = u.T @ targets
    outside = targets - u @ coefficients
    return values, vt, coefficients, row_squares(coefficients), jnp.sum(outside**2), features.shape[0]


def _residual(parts, damping):
    """|A W - Y|^2 from the filter damping / (values^2 + damping)."""
    values, _, _, squares, outside, _ = parts
    return jnp.sum((1 - influence(values, damping)) ** 2 * squares) + outside


def influence(values, damping):
    """The filter values^2 / (values^2 + damping), 0 where both are."""
    total = values**2 + damping
    return jnp.where(total > 0, values**2 / jnp.where(total > 0, total, 1), 0)


def criterion(parts, damping):
    """Generalized cross validation at one damping."""
    rows = parts[-1]
    free = rows - jnp.sum(influence(parts[0], damping))
    return rows * _residual(parts, damping) / free**2


@functools.partial(compiled, static=("candidates",))
def by_cross_validation(parts, candidates):
    """The damping with the least criterion of this many candidates, and whether it lies inside their range."""
    grid = _grid(parts[0], candidates)
    criteria = lax.map(lambda damping: criterion(parts, damping), grid)
    best = jnp.argmin(jnp.where(jnp.isfinite(criteria), criteria, jnp.inf))
    return grid[best], (best > 0) & (best < candidates - 1)


@compiled
def by_discrepancy(parts, noise_variance):
    """The damping whose residual is as large as the noise, by bisection, and whether there is one."""
    values, _, coefficients, _, _, rows = parts
    outputs = coefficients.size // coefficients.shape[0]
    goal = rows * outputs * noise_variance
    ends = jnp.log(_grid(values, 2))

    def halve(ends, _):
        middle = jnp.mean(ends)
        low = _residual(parts, jnp.exp(middle)) < goal
        return jnp.stack([jnp.where(low, middle, ends[0]), jnp.where(low, ends[1], middle)]), None

    reached = (_residual(parts, jnp.exp(ends[0])) < goal) & (_residual(parts, jnp.exp(ends[1])) > goal)
    ends, _ = lax.scan(halve, ends, None, length=60)
    return jnp.exp(jnp.mean(ends)), reached


def _grid(values, count):
    """Damping from where it is lost to rounding to where nothing is left of the solution."""
    top = values[0] ** 2
    low = jnp.log(top * jnp.finfo(values.dtype).eps)
    return jnp.exp(low + jnp.linspace(0, 1, count, dtype=values.dtype) * (jnp.log(10 * top) - low))


def scaled_rows(factors, matrix):
    """Each row of a matrix (or entry of a vector) times its factor."""
    return factors.reshape((-1,) + (1,) * (matrix.ndim - 1)) * matrix


def row_squares(matrix):
    """Sums of squares along all axes but the first."""
    return jnp.sum(matrix.reshape(matrix.shape[0], -1) ** 2, axis=1)
