"""MEASURED: kernels compared with each other, and a network with its linear model at the start of training."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial

from numdl import checks, trees
from numdl.analysis.kernels import tangent
from numdl.records import record


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


def alignment(kernel1, kernel2, *, centered=True):
    """MEASURED cosine of two kernels on the same examples as vectors, -1..1: centered kernel alignment.

        <C K1 C, C K2 C> / (|C K1 C| |C K2 C|),     C = 1 - 1 1' / N; without centering C = 1

    Parameters
    ----------
    kernel1, kernel2 : arrays [N, N]    of features X: X @ X.T; of targets: `target_kernel`
    Returns
    -------
    scalar                              nan where a centered kernel is 0
    Source: Cortes et al. 2012, JMLR 13; Kornblith et al. 2019, arXiv:1905.00414.
    """
    checks.shape("kernel1", kernel1, (None, np.shape(kernel1)[0] if np.ndim(kernel1) else None))
    checks.shape("kernel2", kernel2, np.shape(kernel1))
    one, other = (_unit(_centered(jnp.asarray(k)) if centered else jnp.asarray(k)) for k in (kernel1, kernel2))
    return jnp.sum(one * other)


def target_kernel(targets):
    """The kernel of targets: y y' of [N] or [N, k] numbers, 1 or 0 for equal or different integer labels [N]."""
    targets = jnp.asarray(targets)
    if jnp.issubdtype(targets.dtype, jnp.integer):
        checks.shape("targets", targets, (None,))
        return (targets[:, None] == targets[None, :]).astype(jnp.zeros(()).dtype)
    rows = targets.reshape(targets.shape[0], -1)
    return rows @ rows.T


def drift(kernel0, kernel):
    """MEASURED |K - K0| / |K0| in the Frobenius norm, how far a kernel has moved: [...], leading axes of `kernel`."""
    kernel0, kernel = jnp.asarray(kernel0), jnp.asarray(kernel)
    checks.shape("kernel", kernel[(0,) * (kernel.ndim - kernel0.ndim)], kernel0.shape)
    flat = kernel.reshape(*kernel.shape[: kernel.ndim - kernel0.ndim], -1)
    base = kernel0.reshape((1,) * (flat.ndim - 1) + (-1,))
    return jnp.linalg.norm(flat - base, axis=-1) / jnp.linalg.norm(kernel0.ravel())


def linearize(apply, params):
    """The linear model at `params`: a function(new_params, x) -> f(params, x) + df/dparams (new_params - params).

    Source: Lee et al. 2019, arXiv:1902.06720, eq. (5).
    """
    checks.function("apply", apply)

    def linear(new_params, x):
        step = jax.tree.map(jnp.subtract, new_params, params)
        outputs, change = jax.jvp(lambda p: apply(p, x), (params,), (step,))
        return outputs + change

    return linear


def linearization_error(apply, params0, params, x):
    """MEASURED distance of apply(params, x) from the linear model at params0: a `LinearizationError`.

    Lazy training keeps `relative` small; it falls like 1 / width in the NTK parameterization.
    Source: Chizat et al. 2019, arXiv:1812.07956.
    """
    checks.function("apply", apply)
    return _linearization_error(_partial(apply), params0, params, x)


def laziness(apply, trajectory, x, *, targets=None, scale=None, memory_limit=None):
    """MEASURED drift of the tangent kernel, its alignment and the linear model's error along training.

    Parameters
    ----------
    trajectory : pytree         params with a leading axis T; the first are the start
    x : array [N, ...]
    targets : array             [N] labels or [N, k] numbers: what the kernel is to align with; None: alignment is nan
    scale, memory_limit         as for `ntk`
    Returns
    -------
    Laziness
    Source: Fort et al. 2020, arXiv:2010.15110 (kernel drift); Atanasov et al. 2022, arXiv:2111.00034 (alignment).
    """
    checks.function("apply", apply)
    lengths = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(trajectory)}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        raise ValueError(f"trajectory must be params with one leading axis T >= 1; got {sorted(lengths)}")
    start = jax.tree.map(lambda leaf: leaf[0], trajectory)
    scales = tangent._scales(start, scale)
    wanted = None if targets is None else target_kernel(targets)
    apply, limit = tangent._checked(apply, x, None, "mean", "auto", memory_limit)
    return _laziness(apply, trajectory, x, wanted, scales, limit=limit)


@jax.jit
def _linearization_error(apply, params0, params, x):
    linear = linearize(apply, params0)(params, x)
    outputs, start = apply(params, x), apply(params0, x)
    error, change = trees.norm(outputs - linear), trees.norm(outputs - start)
    moved = change > 0
    relative = jnp.where(moved, error / jnp.where(moved, change, jnp.ones_like(change)), jnp.zeros_like(change))
    return LinearizationError(error, change, relative)


@functools.partial(jax.jit, static_argnames="limit")
def _laziness(apply, trajectory, x, wanted, scales, limit):
    start = jax.tree.map(lambda leaf: leaf[0], trajectory)

    def kernel(params):
        return tangent._kernel(apply, params, x, None, scales, outputs="mean", method="auto", limit=limit)

    first = kernel(start)
    nan = jnp.full((), jnp.nan, first.dtype)

    def one(params):
        now = kernel(params)
        fit = nan if wanted is None else alignment(now, wanted.astype(now.dtype))
        relative = _linearization_error(apply, start, params, x).relative
        moved = trees.norm(jax.tree.map(jnp.subtract, params, start)) / trees.norm(start)
        return drift(first, now), fit, relative, moved

    return Laziness(*lax.map(one, trajectory))


def _centered(kernel):
    rows, columns = jnp.mean(kernel, axis=1, keepdims=True), jnp.mean(kernel, axis=0, keepdims=True)
    return kernel - rows - columns + jnp.mean(kernel)


def _unit(kernel):
    return kernel / jnp.linalg.norm(kernel)


def _partial(function):
    return function if isinstance(function, Partial) else Partial(function)
