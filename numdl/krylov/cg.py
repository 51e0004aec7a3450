"""Conjugate gradients on pytrees: linear systems, trust regions, least squares. Each is one `lax.while_loop`.

    minimize  x.Ax / 2 - b.x    over the spaces span(z, (MA) z, (MA)^2 z, ...),    z = M r_0

A function of this module takes a function (`matvec`) and says in its record how it went: what was reached, whether the
matrix had a direction without positive curvature, whether a number was not finite. `jax.scipy.sparse.linalg.cg` solves
the first of these problems and does not tell.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import ArrayLike, PyTree

from numdl import checks, trees
from numdl._compiled import as_tree, compiled
from numdl.krylov import _vectors
from numdl.records import record
from numdl.typing import Matvec


@record
class Solution:
    """An approximate solution, and how far one may trust it."""

    solution: Any  # pytree like the right-hand side (cgls: like its transpose's result)
    residual_norm: jax.Array  # []: |b - A x|, computed anew at the end (cgls: of the normal equations)
    iterations: jax.Array  # []: products with the matrix in the loop
    converged: jax.Array  # []: residual_norm <= tolerance |b|, up to rounding
    negative_curvature: jax.Array  # []: a direction with p.Ap <= 0 ended it; the solution is the one before
    breakdown: jax.Array  # []: a number that is not finite ended it; the solution is the last finite one


@record
class Step:
    """An approximate minimizer of a quadratic model inside a ball."""

    step: Any  # pytree like the gradient
    norm: jax.Array  # []: |step| in the metric of the ball
    decrease: jax.Array  # []: what the model loses, -(g.s + s.Hs / 2) >= 0
    iterations: jax.Array  # []
    converged: jax.Array  # []: |g + H s| <= tolerance |g|, inside the ball
    boundary: jax.Array  # []: the step ends on the ball's surface
    negative_curvature: jax.Array  # []: because the model has no minimum that way
    breakdown: jax.Array  # []: a number was not finite


def cg(
    matvec: Matvec,
    rhs: PyTree,
    *,
    iterations: int,
    tolerance: ArrayLike,
    x0: PyTree | None = None,
    preconditioner: Matvec | None = None,
) -> Solution:
    """Solve A x = b for a symmetric positive definite A by (preconditioned) conjugate gradients.

        x <- x + alpha p,    r <- r - alpha A p,     alpha = r.z / p.Ap
        z = M r,             p <- z + beta p,        beta = r.z / (r.z before)

    b = 0 is solved by x = 0 in no iteration.

    Parameters
    ----------
    matvec : function           v -> A v
    rhs : pytree                b
    iterations : int            at most this many, >= 1
    tolerance : scalar          stop at |r| <= tolerance |b|, >= 0
    x0 : pytree                 the start, like b; None: 0
    preconditioner : function   v -> M v, M symmetric positive definite, near the inverse of A
    Returns
    -------
    Solution
    Raises
    ------
    ValueError, TypeError       a matvec that does not return what is like b, iterations < 1, a negative tolerance
    Source: Hestenes & Stiefel 1952; Nocedal & Wright 2006, algorithm 5.3.
    """
    iterations, tolerance = _check(matvec, iterations, tolerance, preconditioner)
    precondition = _identity if preconditioner is None else preconditioner
    rhs = _vector("rhs", rhs)
    _look("matvec", matvec, rhs, rhs, of="rhs")
    _look("preconditioner", precondition, rhs, rhs, of="rhs")
    x0 = None if x0 is None else checks.like("x0", x0, rhs, of="rhs")
    return _cg(as_tree(matvec), as_tree(precondition), rhs, x0, iterations, tolerance)


@compiled
def _cg(matvec, precondition, rhs, x0, iterations, tolerance):
    x0 = jax.tree.map(jnp.zeros_like, rhs) if x0 is None else x0
    goal = tolerance * trees.norm(rhs)
    r = _minus(rhs, matvec(x0))
    z = precondition(r)

    def going(s):
        return (s.count < iterations) & (trees.norm(s.r) > goal) & ~s.negative & ~s.broken

    def advance(s):
        image = matvec(s.p)
        curvature = _real_inner(s.p, image)
        alpha = s.rz / _nonzero(curvature)
        x, r = trees.axpy(alpha, s.p, s.x), trees.axpy(-alpha, image, s.r)
        z = precondition(r)
        rz = _real_inner(r, z)
        p = trees.axpy(rz / _nonzero(s.rz), s.p, z)
        negative, broken = curvature <= 0, ~jnp.isfinite(curvature + trees.norm(r) + rz)
        new = _Iterate(x, r, p, rz, s.count + 1, negative, broken)
        return _keep(negative | broken, s, new)

    rz = _real_inner(r, z)
    start = _Iterate(x0, r, z, rz, _count(), rz < 0, ~jnp.isfinite(rz))
    end = lax.while_loop(going, advance, start)
    residual = trees.norm(_minus(rhs, matvec(end.x)))
    return Solution(end.x, residual, end.count, trees.norm(end.r) <= goal, end.negative, end.broken)


def steihaug(
    matvec: Matvec,
    gradient: PyTree,
    radius: ArrayLike,
    *,
    iterations: int,
    tolerance: ArrayLike,
    preconditioner: Matvec | None = None,
) -> Step:
    """The step of a trust-region method: conjugate gradients on g.s + s.Hs / 2, as far as the ball |s| <= radius.

    It ends where H s = -g to the tolerance, or on the surface: at the crossing, or along a direction of negative
    curvature. The ball is that of the preconditioner, |s|^2 = s.M^-1 s, and Euclidean without one.

    Parameters
    ----------
    matvec : function           v -> H v, symmetric, not necessarily positive
    gradient : pytree           g
    radius : scalar             > 0
    iterations : int            at most this many, >= 1
    tolerance : scalar          stop at |g + H s| <= tolerance |g|, >= 0
    preconditioner : function   v -> M v, M symmetric positive definite, near the inverse of H
    Returns
    -------
    Step
    Raises
    ------
    ValueError, TypeError       a radius that is not positive; else as for `cg`
    Source: Steihaug 1983; Conn, Gould & Toint 2000, algorithm 7.5.1.
    """
    iterations, tolerance = _check(matvec, iterations, tolerance, preconditioner)
    radius = checks.positive("radius", radius, shape=())
    precondition = _identity if preconditioner is None else preconditioner
    gradient = _vector("gradient", gradient)
    _look("matvec", matvec, gradient, gradient, of="gradient")
    _look("preconditioner", precondition, gradient, gradient, of="gradient")
    return _steihaug(as_tree(matvec), as_tree(precondition), gradient, radius, iterations, tolerance)


@compiled
def _steihaug(matvec, precondition, gradient, radius, iterations, tolerance):
    matvec, precondition = map(_vectors.as_precise, (matvec, precondition))
    goal = tolerance * trees.norm(gradient)
    z = precondition(gradient)
    rz = _real_inner(gradient, z)

    def going(s):
        return (s.count < iterations) & (trees.norm(s.r) > goal) & ~s.boundary & ~s.broken

    def advance(s):
        image = matvec(s.p)
        curvature = _real_inner(s.p, image)
        negative = curvature <= 0
        alpha = s.rz / _nonzero(curvature)
        crossing = negative | (s.ss + 2 * alpha * s.sp + alpha**2 * s.pp >= radius**2)
        alpha = jnp.where(crossing, _to_surface(s, radius), alpha).astype(s.rz.dtype)
        x, r = trees.axpy(alpha, s.p, s.x), trees.axpy(alpha, image, s.r)
        z = precondition(r)
        rz = _real_inner(r, z)
        beta = rz / _nonzero(s.rz)
        p = jax.tree.map(lambda u, v: (beta * u - v).astype(v.dtype), s.p, z)
        ss = s.ss + 2 * alpha * s.sp + alpha**2 * s.pp
        broken = ~jnp.isfinite(curvature + alpha + rz)
        new = _InBall(x, r, p, rz, ss, beta * (s.sp + alpha * s.pp), rz + beta**2 * s.pp, s.count + 1)
        return _keep(broken, s, new._replace(boundary=crossing, negative=negative, broken=broken))

    zeros, nothing, no = jax.tree.map(jnp.zeros_like, gradient), jnp.zeros_like(rz), jnp.zeros((), bool)
    start = _InBall(zeros, gradient, jax.tree.map(jnp.negative, z), rz, nothing, nothing, rz, _count(), no, no, no)
    end = lax.while_loop(going, advance, start._replace(broken=~(rz >= 0) | ~jnp.isfinite(rz)))
    decrease = -(_real_inner(gradient, end.x) + _real_inner(end.r, end.x)) / 2
    small = (trees.norm(end.r) <= goal) & ~end.boundary
    norm = jnp.sqrt(jnp.maximum(end.ss, 0))
    return Step(end.x, norm, decrease, end.count, small, end.boundary, end.negative, end.broken)


def cgls(
    matvec: Matvec,
    transpose: Matvec,
    rhs: PyTree,
    *,
    iterations: int,
    tolerance: ArrayLike,
    damping: ArrayLike = 0.0,
    x0: PyTree | None = None,
) -> Solution:
    """Minimize |A x - b|^2 + damping |x|^2 by conjugate gradients on the normal equations, without forming A'A.

        A'(b - A x) = damping x

    `negative_curvature` says that a direction was met with |A p|^2 + damping |p|^2 = 0.

    Parameters
    ----------
    matvec, transpose : functions       v -> A v and u -> A'u
    rhs : pytree                b
    iterations : int            at most this many, >= 1
    tolerance : scalar          stop at |A'(b - A x) - damping x| <= tolerance |A'b|, >= 0
    damping : scalar            >= 0
    x0 : pytree                 the start, like A'b; None: 0
    Returns
    -------
    Solution
    Raises
    ------
    ValueError, TypeError       functions that do not fit each other, a negative damping; else as for `cg`
    Source: Björck 1996, algorithm 7.4.1.
    """
    checks.accepts("transpose", transpose, 1, "transpose(u)")
    iterations, tolerance = _check(matvec, iterations, tolerance, None)
    damping = checks.variance("damping", damping, shape=())
    rhs = _vector("rhs", rhs)
    form = jax.eval_shape(checks.returning("transpose", transpose, 1, "transpose(u)"), rhs)
    x0 = None if x0 is None else checks.like("x0", x0, form, of="transpose(rhs)")
    _look("matvec", matvec, form, rhs, of="rhs")
    return _cgls(as_tree(matvec), as_tree(transpose), rhs, x0, iterations, tolerance, damping)


@compiled
def _cgls(matvec, transpose, rhs, x0, iterations, tolerance, damping):
    right = transpose(rhs)
    x0 = jax.tree.map(jnp.zeros_like, right) if x0 is None else x0
    goal = tolerance * trees.norm(right)

    def gradient(x, r):
        return trees.axpy(-damping, x, transpose(r))

    def going(s):
        return (s.count < iterations) & (jnp.sqrt(s.rz) > goal) & ~s.negative & ~s.broken

    def advance(s):
        x, r = s.x
        image = matvec(s.p)
        curvature = _real_inner(image, image) + damping * _real_inner(s.p, s.p)
        alpha = s.rz / _nonzero(curvature)
        x, r = trees.axpy(alpha, s.p, x), trees.axpy(-alpha, image, r)
        steepest = gradient(x, r)
        size = _real_inner(steepest, steepest)
        p = trees.axpy(size / _nonzero(s.rz), s.p, steepest)
        negative, broken = curvature <= 0, ~jnp.isfinite(curvature + size)
        return _keep(negative | broken, s, _Iterate((x, r), None, p, size, s.count + 1, negative, broken))

    r = _minus(rhs, matvec(x0))
    p = gradient(x0, r)
    size = _real_inner(p, p)
    start = _Iterate((x0, r), None, p, size, _count(), jnp.zeros((), bool), ~jnp.isfinite(size))
    end = lax.while_loop(going, advance, start)
    x = end.x[0]
    residual = trees.norm(gradient(x, _minus(rhs, matvec(x))))
    return Solution(x, residual, end.count, jnp.sqrt(end.rz) <= goal, end.negative, end.broken)


class _Iterate(NamedTuple):
    x: Any
    r: Any
    p: Any
    rz: jax.Array
    count: jax.Array
    negative: jax.Array
    broken: jax.Array


class _InBall(NamedTuple):
    x: Any  # the step so far
    r: Any  # g + H x
    p: Any
    rz: jax.Array
    ss: jax.Array  # |x|^2, x.p and |p|^2 in the metric of the ball, which only these recurrences know
    sp: jax.Array
    pp: jax.Array
    count: jax.Array
    boundary: Any = None
    negative: Any = None
    broken: Any = None


def _to_surface(s, radius):
    """The t > 0 with |x + t p| = radius, without cancellation."""
    room = jnp.maximum(radius**2 - s.ss, 0)
    root = jnp.sqrt(s.sp**2 + s.pp * room)
    # Both forms are the same number; the one used adds terms of one sign.
    return jnp.where(s.sp > 0, room / _nonzero(s.sp + root), (root - s.sp) / _nonzero(s.pp))


def _keep(stop, old, new):
    """The old iterate where the new one is no good, with the new verdicts and the new count."""
    kept = jax.tree.map(lambda a, b: jnp.where(stop, a, b), old, new)
    verdicts = {name: getattr(new, name) for name in ("count", "negative", "broken")}
    return kept._replace(**verdicts)


def _nonzero(value):
    return jnp.where(value == 0, jnp.ones_like(value), value)


def _real_inner(a, b):
    return jnp.real(trees.inner(a, b))


def _minus(a, b):
    return jax.tree.map(lambda u, v: u - v, a, b)


def _identity(v):
    return v


def _count():
    return jnp.zeros((), jnp.int32)


def _check(matvec, iterations, tolerance, other):
    checks.accepts("matvec", matvec, 1, "matvec(v)")
    iterations = checks.whole("iterations", iterations)
    tolerance = checks.finite("tolerance", tolerance, least=0.0, shape=())
    if other is not None:
        checks.accepts("preconditioner", other, 1, "preconditioner(v)")
    return iterations, tolerance


def _look(name, function, v, like, *, of):
    """What a function returns is shaped like another tree: seen before any work, and once, where values are known."""
    if not _vectors.traced((v, like)):
        _vectors.look(name, function, v, like, of=of)


def _vector(name, tree):
    """A pytree of floating or complex arrays, native."""
    tree = checks.leaves(name, tree)
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        checks.array(f"{name}{jax.tree_util.keystr(path)}", leaf, kind="inexact", empty=True)
    return tree
