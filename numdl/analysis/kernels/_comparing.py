"""MEASURED: kernels compared with each other, and a network with its linear model at the start of training."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, PyTree, Scalar

from numdl import checks, trees
from numdl._compiled import jit
from numdl.analysis import _examples, _parts
from numdl.analysis.kernels import _doors, _tangent
from numdl.precision import widen
from numdl.records import record
from numdl.typing import Apply


@record
class LinearizationError:
    """How far a function is from its linear model, on a batch."""

    error: jax.Array  # []: |f - f_lin|
    change: jax.Array  # []: |f - f_0|
    relative: jax.Array  # []: error / change; 0 where nothing changed


@record
class Laziness:
    """Lazy or rich: at each point of a trajectory, how far it is from the linear model at the first one."""

    drift: jax.Array  # [T]: |K_t - K_0| / |K_0|
    alignment: jax.Array  # [T]: centered, of K_t with the targets' kernel; nan without targets
    linearization_error: jax.Array  # [T]: |f - f_lin| / |f - f_0|
    distance: jax.Array  # [T]: |params_t - params_0| / |params_0|


def alignment(kernel1: ArrayLike, kernel2: ArrayLike, *, centered: bool = True) -> Scalar:
    """MEASURED cosine of two kernels on the same examples as vectors, -1..1: centered kernel alignment (CKA).

        <C K1 C, C K2 C> / (|C K1 C| |C K2 C|),     C = 1 - 1 1' / N; without centering C = 1

    Parameters
    ----------
    kernel1, kernel2 : arrays [N, N]    of features X: X @ X.T; of targets: `target_kernel`
    centered : bool             whether the means of rows and columns are taken off first
    Returns
    -------
    scalar                      nan where a centered kernel is 0 within rounding
    Raises
    ------
    ValueError, TypeError       not two square arrays of one shape
    Source: Cortes et al. 2012, JMLR 13; Kornblith et al. 2019, arXiv:1905.00414.
    """
    kernel1, kernel2 = checks.array("kernel1", kernel1, ndim=2), checks.array("kernel2", kernel2, ndim=2)
    checks.shape("kernel1", kernel1, (len(kernel1), len(kernel1)))
    checks.shape("kernel2", kernel2, kernel1.shape)
    centered = checks.flag("centered", centered)
    one, other = (_unit(jnp.asarray(kernel), centered) for kernel in (kernel1, kernel2))
    return jnp.sum(one * other)


def target_kernel(targets: ArrayLike) -> Float[Array, "N N"]:
    """The kernel of targets: y y' of [N] or [N, ...] numbers, 1 or 0 for equal or different integer labels [N].

    Parameters
    ----------
    targets : array [N] or [N, ...]     integers are labels, [N] only; floating-point numbers are values
    Returns
    -------
    array [N, N]                floating, in float32 at least
    Raises
    ------
    ValueError, TypeError       not an array of numbers, integers of more than one axis
    """
    targets = checks.array("targets", targets, least_ndim=1)
    whole = jnp.issubdtype(targets.dtype, jnp.integer)
    targets = jnp.asarray(checks.shape("targets", targets, (None,)) if whole else targets)
    if whole:
        return (targets[:, None] == targets[None, :]).astype(jnp.zeros(()).dtype)
    rows = widen(targets).reshape(targets.shape[0], -1)
    return rows @ rows.T


def drift(kernel0: ArrayLike, kernel: ArrayLike) -> Float[Array, "..."]:
    """MEASURED kernel drift |K - K0| / |K0| in the Frobenius norm: how far a kernel has moved in training.

    In float32 at least. From a kernel K0 that is 0: inf, and nan where K is 0 too.

    Parameters
    ----------
    kernel0 : array [N1, N2, ..]    the first one
    kernel : array [..., N1, N2, ..]    later ones, any leading axes
    Returns
    -------
    array [...]                 the leading axes of `kernel`
    Raises
    ------
    ValueError, TypeError       not arrays, kernels of different shapes
    Source: Fort et al. 2020, arXiv:2010.15110.    Twin: theory.kernels.gradient_flow.    Experiments: e3, e5.
    """
    kernel0 = checks.array("kernel0", kernel0, least_ndim=2)
    kernel = checks.array("kernel", kernel, least_ndim=kernel0.ndim)
    checks.shape("kernel", kernel, (*(None,) * (kernel.ndim - kernel0.ndim), *kernel0.shape))
    kernel0, kernel = widen((kernel0, kernel))
    largest = jnp.max(jnp.abs(kernel0), initial=0.0)
    scale = jnp.where(largest > 0, largest, jnp.ones_like(largest))  # squares would leave the range
    flat = kernel.reshape(*kernel.shape[: kernel.ndim - kernel0.ndim], -1)
    base = kernel0.reshape((1,) * (flat.ndim - 1) + (-1,)) / scale
    moved = jnp.linalg.norm(flat / scale - base, axis=-1) / jnp.linalg.norm(base)
    # Of a K0 that is 0 by hand, as squares of what has moved may underflow.
    return jnp.where(largest > 0, moved, jnp.where(jnp.any(flat != 0, axis=-1), jnp.inf, jnp.nan))


def linearize(apply: Apply, params: PyTree, *, frozen: Sequence[str] = ()) -> Callable[[PyTree, PyTree], Array]:
    """The linear model of a function at `params`: first order in the parameters.

        linear(new_params, x) = f(params, x) + df/dparams (new_params - params)

    What does not move, and what `frozen` names, is that of `params`, whatever new_params hold there.

    Parameters
    ----------
    apply : function            f: apply(params, x) -> outputs [N, ...]
    params : pytree             floating leaves [..] move
    frozen : names              paths of leaves that stay
    Returns
    -------
    function                    (new_params, x) -> outputs
    Raises
    ------
    ValueError, TypeError       not a function, nothing that moves; at the call: new_params not like params
    Source: Lee et al. 2019, arXiv:1902.06720.
    """
    apply = checks.returning("apply", apply, 2, "apply(params, x)")
    moving, rest = trees.trainable(params, frozen=frozen)

    def linear(new_params, x):
        step = jax.tree.map(jnp.subtract, _parts.inward("new_params", new_params, params, rest, moving), moving)
        outputs, change = jax.jvp(lambda part: apply(rest.params(part), x), (moving,), (step,))
        return outputs + change

    return linear


def linearization_error(
    apply: Apply, params0: PyTree, params: PyTree, x: PyTree, *, frozen: Sequence[str] = ()
) -> LinearizationError:
    """MEASURED linearization error: the distance of apply(params, x) from the linear model at params0.

        error = |f - f_lin|,    change = |f - f_0|,    relative = error / change

    Lazy training keeps `relative` small; it falls like 1 / width in the NTK parameterization. The linear model takes
    what does not move from params0.

    Parameters
    ----------
    apply : function            f: apply(params, x) -> outputs [N, ...]
    params0, params : pytree    at the start, and later: of one structure
    x : pytree                  arrays [N, ...]
    frozen : names              paths of leaves that stay
    Returns
    -------
    LinearizationError          error, change, relative []; relative is 0 where nothing changed
    Raises
    ------
    ValueError, TypeError       not a function, params not like params0, nothing that moves, an x that is not [N, ...]
    Source: Chizat et al. 2019, arXiv:1812.07956.    Twin: theory.kernels.gradient_flow.    Experiments: e3, e5.
    """
    apply = checks.returning("apply", apply, 2, "apply(params, x)")
    moving0, rest0 = trees.trainable(params0, frozen=frozen, name="params0")
    params = checks.like("params", params, params0, of="params0")
    moving = _parts.inward("params", params, params0, rest0, moving0, of="params0")
    kept = tuple(leaf for leaf, kind in zip(jax.tree.leaves(params), rest0.kinds, strict=True) if kind == "kept")
    rest = trees.Rest(kept, rest0.structure, rest0.kinds)
    return _linearization_error(apply, (moving0, rest0), (moving, rest), checks.leaves("x", x, examples=True))


def laziness(
    apply: Apply,
    trajectory: PyTree,
    x: PyTree,
    *,
    targets: ArrayLike | None = None,
    scale: "PyTree | Callable" = None,
    memory_limit: float | None = None,
    frozen: Sequence[str] = (),
) -> Laziness:
    """MEASURED drift of the tangent kernel, its alignment and the linear model's error along training: lazy or rich.

    Parameters
    ----------
    apply : function            apply(params, x) -> real outputs [N, ...], example by example
    trajectory : pytree         params with a leading axis T; the first are the start
    x : pytree                  arrays [N, ...]
    targets : array             [N] labels or [N, ...] numbers: what the kernel is to align with; None: alignment is nan
    scale, memory_limit, frozen : as in `ntk`
    Returns
    -------
    Laziness                    drift, alignment, linearization_error, distance: each [T]
    Raises
    ------
    ValueError, TypeError       not a function, no points, targets of another length, examples that are coupled
    MemoryError                 not even one example at a time fits
    Source: Fort et al. 2020, arXiv:2010.15110 (kernel drift); Atanasov et al. 2022, arXiv:2111.00034 (alignment).
    Twin: theory.kernels.gradient_flow.    Experiments: e3, e5.
    """
    x = checks.leaves("x", x, examples=True)
    apply, x, _, limit = _doors.arguments(apply, x, None, "mean", "auto", memory_limit)
    checks.length("trajectory", checks.leaves("trajectory", trajectory), of="points")
    moving, rest = trees.trainable(trajectory, frozen=frozen, name="trajectory")
    if targets is not None:
        count = len(jax.tree.leaves(x)[0])
        targets = checks.array("targets", targets, least_ndim=1)
        checks.shape("targets", targets, (count, *targets.shape[1:]))
    first, still = jax.tree.map(lambda leaf: leaf[0], (moving, rest))
    scales = _doors.scales(still.params(first), still, scale)
    wanted = None if targets is None else target_kernel(targets)
    _examples.one_by_one("apply", apply, first, still, x=x)
    return _laziness(apply, moving, rest, x, wanted, scales, limit=limit)


@jit
def _linearization_error(apply, point0, point, x):
    (moving0, rest0), (moving, rest) = point0, point
    step = jax.tree.map(jnp.subtract, moving, moving0)
    start, along = jax.jvp(lambda part: apply(rest0.params(part), x), (moving0,), (step,))
    linear, outputs = start + along, apply(rest.params(moving), x)
    error, change = trees.norm(outputs - linear), trees.norm(outputs - start)
    moved = change > 0
    relative = jnp.where(moved, error / jnp.where(moved, change, jnp.ones_like(change)), jnp.zeros_like(change))
    return LinearizationError(error, change, relative)


@functools.partial(jit, static_argnames="limit")
def _laziness(apply, moving, rest, x, wanted, scales, limit):
    start = jax.tree.map(lambda leaf: leaf[0], (moving, rest))

    def kernel(point):
        return _tangent._kernel(apply, *point, x, None, scales, outputs="mean", method="auto", limit=limit)

    first = kernel(start)
    nan = jnp.full((), jnp.nan, first.dtype)

    def one(point):
        now = kernel(point)
        fit = nan if wanted is None else alignment(now, wanted.astype(now.dtype))
        relative = _linearization_error(apply, start, point, x).relative
        moved = trees.norm(jax.tree.map(jnp.subtract, point[0], start[0])) / trees.norm(start[0])
        return drift(first, now), fit, relative, moved

    return Laziness(*lax.map(one, (moving, rest)))


def _centered(kernel):
    rows, columns = jnp.mean(kernel, axis=1, keepdims=True), jnp.mean(kernel, axis=0, keepdims=True)
    return kernel - rows - columns + jnp.mean(kernel)


def _unit(kernel, centered):
    """The kernel divided by its norm; nan where centering leaves rounding only."""
    kernel = widen(kernel)
    kernel = kernel / jnp.max(jnp.abs(kernel), initial=0.0)  # squares would leave the range; 0 becomes nan
    part = _centered(kernel) if centered else kernel
    size, least = jnp.linalg.norm(part), 8 * jnp.finfo(part.dtype).eps * jnp.linalg.norm(kernel)
    return jnp.where(size > least, part / jnp.where(size > least, size, jnp.ones_like(size)), jnp.nan)
