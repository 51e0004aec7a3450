"""One step of a scheme: Runge-Kutta of any tableau, leapfrog, Verlet, additive coupling, semi-implicit Euler.

A scheme is a record of functions that know nothing of loops or gradients. Within the step from t to t + h the
parameters are a function of the fraction c of the step, `control(c)` = theta(t + c h).

    runge_kutta(tableau)    y' = f(t, y, theta)                    field = f
    leapfrog                y'' = f(t, y, theta)                   field = f, state (y, v) with v = y'
    verlet, coupling        q' = f(t, p, theta), p' = g(t, q, theta)    field = (f, g), state (q, p)
    semi_implicit(matrix)   y' = f(t, y, theta) - A y              field = f, state one array [..., n]

Leapfrog, verlet and coupling have an exact algebraic inverse whatever the fields are: `inverse` undoes `step`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import ArrayLike

from numdl import checks, trees
from numdl.ode.tableaus import Tableau

MOST_UNKNOWNS = 4096


class Scheme(NamedTuple):
    """A step y -> y_new of declared order; `residual` is None unless equations are solved within the step."""

    name: str
    order: int
    step: Callable  # (field, y, t, h, control) -> (y_new, residual)
    derivative: Callable  # (field, t, y, theta) -> y', the first-order system that is solved, shaped like y
    inverse: Callable | None = None  # (field, y_new, t, h, control) -> y
    first_order: bool = False  # field is y' itself: the adjoint equation can be solved by the same scheme


def runge_kutta(tableau: Tableau, *, iterations: int = 12) -> Scheme:
    """The scheme of a tableau. Implicit stages are solved by Newton's method with a dense Jacobian of all stages.

    The derivative of an implicit step is that of the equations' solution (implicit function theorem), not of the
    iterations. `residual` is the last Newton correction relative to the stages: below 100 units of rounding the
    equations are solved. A batch is solved example by example: `jax.vmap` the integration.

    Parameters
    ----------
    tableau : Tableau           such as tableaus.rk4
    iterations : int            at most this many Newton steps, >= 1
    Raises
    ------
    ValueError, TypeError       no Tableau, iterations < 1
    """
    checks.instance("tableau", tableau, Tableau, hint="such as tableaus.rk4")
    return _runge_kutta(tableau, checks.whole("iterations", iterations))


@functools.lru_cache(maxsize=256)
def _runge_kutta(tableau, iterations):
    step = functools.partial(_explicit_step, tableau)
    if not tableau.explicit:
        step = functools.partial(_implicit_step, tableau, iterations)
    return Scheme(tableau.name, tableau.order, step, _first_order, first_order=True)


def semi_implicit(matrix: ArrayLike | Callable) -> Scheme:
    """Euler's step, implicit in a stiff linear part and explicit in the rest, of first order.

        (I + h A) y_new = y + h f(t, y, theta)

    Stable for every h if f = 0 and the symmetric part of A is positive semidefinite.

    Parameters
    ----------
    matrix : array or function  A [n, n], or its diagonal [n]; or theta -> A, to learn it. It acts on the last axis of y
    Raises
    ------
    ValueError, TypeError       a matrix that is not square, not finite or not of real floats
    Source: Ascher, Ruuth & Wetton 1995, SIAM J. Numer. Anal. 32, 797-823; Haber et al. 2019, arXiv:1903.02639.
    """
    if callable(matrix):
        checks.accepts("matrix", matrix, 1, "matrix(theta)")
    else:
        matrix = checks.finite("matrix", checks.floating("matrix", matrix))
        if matrix.ndim not in (1, 2) or matrix.shape[0] != matrix.shape[-1]:
            raise checks.BadValue(f"matrix must have shape (n, n), or (n,) if diagonal; got {matrix.shape}")
    of_theta = matrix if callable(matrix) else functools.partial(_constant, matrix)
    step = functools.partial(_semi_implicit_step, of_theta)
    return Scheme("semi_implicit", 1, step, functools.partial(_semi_implicit_derivative, of_theta))


def _explicit_step(tableau, field, y, t, h, control):
    slopes = []
    for row, node in zip(tableau.matrix, tableau.nodes, strict=True):
        stage = _advance(y, h, row[: len(slopes)], slopes)
        slopes.append(field(t + node * h, stage, control(node)))
    return _advance(y, h, tableau.weights, slopes), None


def _advance(y, h, weights, slopes):
    """y + h sum_i weights[i] slopes[i], in the dtypes of y; zero weights cost nothing."""
    terms = [(float(w), slope) for w, slope in zip(weights, slopes, strict=True) if w != 0]
    if not terms:
        return y
    total = jax.tree.map(lambda *ks: sum(w * k for (w, _), k in zip(terms, ks, strict=True)), *(k for _, k in terms))
    return trees.axpy(h, total, y)


def _implicit_step(tableau, iterations, field, y, t, h, control):
    nodes = tableau.nodes
    thetas = [control(node) for node in nodes]
    guess, unravel = trees.ravel([field(t + n * h, y, theta) for n, theta in zip(nodes, thetas, strict=True)])
    _check_unknowns(tableau, guess)

    def mismatch(vector):
        slopes = unravel(vector)
        stages = [_advance(y, h, row, slopes) for row in tableau.matrix]
        values = [field(t + n * h, z, theta) for n, z, theta in zip(nodes, stages, thetas, strict=True)]
        return vector - trees.ravel(values)[0]

    newton = functools.partial(_newton, iterations=iterations)
    slopes, residual = lax.custom_root(mismatch, guess, newton, _solve_linear, has_aux=True)
    return _advance(y, h, tableau.weights, unravel(slopes)), residual


def _newton(mismatch, guess, *, iterations):
    """Newton's method from `guess` until a correction is below 100 units of rounding: the root, the last correction."""
    tolerance = 100 * _rounding(guess)

    def proceed(state):
        _, residual, count = state
        return (residual > tolerance) & (count < iterations)

    def improve(state):
        x, _, count = state
        value, linear = jax.linearize(mismatch, x)
        correction = _solve_linear(linear, value)
        size = trees.norm(x - correction)
        relative = trees.norm(correction) / jnp.where(size > 0, size, jnp.ones_like(size))
        return x - correction, relative, count + 1

    first = jnp.full_like(trees.norm(guess), jnp.inf)
    root, residual, _ = lax.while_loop(proceed, improve, (guess, first, 0))
    return root, residual


def _solve_linear(linear, right):
    columns = jax.vmap(linear)(jnp.eye(right.size, dtype=right.dtype))
    return jnp.linalg.solve(columns.T, right)


def _check_unknowns(tableau, vector):
    if vector.size > MOST_UNKNOWNS:
        raise checks.BadValue(
            f"y0 must hold at most {MOST_UNKNOWNS // tableau.stages} numbers for {tableau.name}, whose step forms a "
            f"dense Jacobian; got {vector.size // tableau.stages}: jax.vmap over the examples of a batch"
        )


def _rounding(vector):
    return float(jnp.finfo(vector.dtype).eps)


def _first_order(field, t, y, theta):
    return field(t, y, theta)


def _leapfrog_step(field, y, t, h, control):
    middle = _drift(y, h / 2)
    return _drift(_kick(field, middle, t, h, control, h), h / 2), None


def _leapfrog_inverse(field, y, t, h, control):
    middle = _drift(y, -h / 2)
    return _drift(_kick(field, middle, t, h, control, -h), -h / 2)


def _drift(y, h):
    position, velocity = y
    return trees.axpy(h, velocity, position), velocity


def _kick(field, y, t, h, control, size):
    position, velocity = y
    return position, trees.axpy(size, field(t + h / 2, position, control(0.5)), velocity)


def _leapfrog_derivative(field, t, y, theta):
    position, velocity = y
    return velocity, field(t, position, theta)


def _verlet_step(fields, y, t, h, control):
    f, g = fields
    q, p = y
    p = trees.axpy(h / 2, g(t, q, control(0.0)), p)
    q = trees.axpy(h, f(t + h / 2, p, control(0.5)), q)
    return (q, trees.axpy(h / 2, g(t + h, q, control(1.0)), p)), None


def _verlet_inverse(fields, y, t, h, control):
    f, g = fields
    q, p = y
    p = trees.axpy(-h / 2, g(t + h, q, control(1.0)), p)
    q = trees.axpy(-h, f(t + h / 2, p, control(0.5)), q)
    return q, trees.axpy(-h / 2, g(t, q, control(0.0)), p)


def _coupling_step(fields, y, t, h, control):
    f, g = fields
    q, p = y
    q = trees.axpy(h, f(t, p, control(0.0)), q)
    return (q, trees.axpy(h, g(t + h, q, control(1.0)), p)), None


def _coupling_inverse(fields, y, t, h, control):
    f, g = fields
    q, p = y
    p = trees.axpy(-h, g(t + h, q, control(1.0)), p)
    return trees.axpy(-h, f(t, p, control(0.0)), q), p


def _partitioned_derivative(fields, t, y, theta):
    f, g = fields
    q, p = y
    return f(t, p, theta), g(t, q, theta)


def _semi_implicit_step(matrix, field, y, t, h, control):
    right = trees.axpy(h, field(t, y, control(0.0)), y)
    a = (h * matrix(control(1.0))).astype(y.dtype)
    if a.ndim == 1:
        return right / jnp.broadcast_to(1 + a, y.shape), None
    flat = right.reshape(-1, y.shape[-1])
    return jnp.linalg.solve(jnp.eye(len(a), dtype=a.dtype) + a, flat.T).T.reshape(y.shape), None


def _semi_implicit_derivative(matrix, field, t, y, theta):
    a = jnp.asarray(matrix(theta))
    damping = jnp.broadcast_to(a, y.shape) * y if a.ndim == 1 else y @ a.T
    return field(t, y, theta) - damping


def _constant(matrix, theta):
    return jnp.asarray(matrix)


leapfrog = Scheme("leapfrog", 2, _leapfrog_step, _leapfrog_derivative, _leapfrog_inverse)
verlet = Scheme("verlet", 2, _verlet_step, _partitioned_derivative, _verlet_inverse)
coupling = Scheme("coupling", 1, _coupling_step, _partitioned_derivative, _coupling_inverse)
