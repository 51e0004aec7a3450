"""Variable projection by mini-batches: slimTik updates the linear readout, and an optax optimizer the features.

    M = features of this batch and of the `memory` before it,    tau = sum of all damping so far, damping chosen anew
    W <- W - (M'M + tau)^-1 (A'(A W - Y) + damping W)            A, Y: this batch, divided by sqrt(batch)

With all batches in memory and fixed features W is the exact Tikhonov solution for all data seen,
|A W - Y|^2 + tau |W|^2. No learning rate for W; the damping, which may be negative, minimizes the batch's sampled
generalized cross validation (sGCV)

    |A W(damping) - Y|^2 / (batch - trace of A (M'M + tau)^-1 A')^2

Source: Newman, Chung, Chung & Ruthotto 2021, arXiv:2109.14002 (slimTrain); Slagel et al. 2019 (sampled Tikhonov).
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, PyTree, ScalarLike

from numdl import checks, trees
from numdl._compiled import compiled
from numdl._hyperparameters import as_data
from numdl.optimize.train._stepping import transformation
from numdl.precision import widen
from numdl.records import record

if TYPE_CHECKING:
    import optax

CANDIDATES = 100  # trial values of the damping


class SlimtikState(NamedTuple):
    """The readout and what slimTik remembers."""

    weights: jax.Array  # [width, outputs]
    memory: jax.Array  # [memory + 1, batch, width]: features of the last batches / sqrt(batch), 0 before the first
    total: jax.Array  # []: tau
    count: jax.Array  # []: batches seen


@record
class SlimtikHistory:
    """A training run, row by row: one for each batch."""

    loss: jax.Array  # [steps]: |A W - Y|^2 / (2 batch) before this batch has changed W or theta
    fitted: jax.Array  # [steps]: the same after W was updated
    total: jax.Array  # [steps]: tau


def start(*, width: int, outputs: int, batch: int, memory: int = 5, dtype: Any = None) -> SlimtikState:
    """The state before the first batch: W = 0, an empty memory of this many batches beside the current one.

    Parameters
    ----------
    width : int                 columns of the features, >= 1
    outputs : int               columns of the targets, >= 1
    batch : int                 examples in a batch, >= 1
    memory : int                batches remembered beside the current one, >= 0; the paper finds 5 to 10 enough
    dtype : dtype               a floating-point one; None: jax's default
    Returns
    -------
    SlimtikState                weights [width, outputs], memory [memory + 1, batch, width], total, count
    Raises
    ------
    ValueError, TypeError       a count out of its range, a dtype that is not floating-point
    """
    width, outputs, batch = checks.whole("width", width), checks.whole("outputs", outputs), checks.whole("batch", batch)
    dtype = jnp.result_type(float) if dtype is None else checks.dtype("dtype", dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise checks.BadValue(f"dtype must be one of floating-point numbers; got {dtype!r}")
    memory = checks.whole("memory", memory, least=0)
    none = jnp.zeros((), jnp.int32)
    return SlimtikState(
        jnp.zeros((width, outputs), dtype), jnp.zeros((memory + 1, batch, width), dtype), jnp.zeros((), dtype), none
    )


def update(
    state: SlimtikState,
    features: Float[ArrayLike, "batch width"],
    targets: Float[ArrayLike, "batch outputs"],
    *,
    damping: ScalarLike | None = None,
    least: ScalarLike = 1e-7,
    most: ScalarLike = 1e-3,
) -> SlimtikState:
    """The state after one batch: W moves to the Tikhonov solution of the batches in memory.

        W <- W - (M'M + tau)^-1 (A'(A W - Y) + damping W)

    Parameters
    ----------
    state : SlimtikState        of `start` or the last update
    features : array [batch, width]     A, before division by sqrt(batch)
    targets : array [batch, outputs]    Y
    damping : scalar            added to tau (which must stay positive); None: by sGCV
    least, most : scalar        > 0: then tau >= least, it grows by at most `most`, and at most halves
    Returns
    -------
    SlimtikState
    Raises
    ------
    ValueError, TypeError       arrays that do not fit the state or are not finite, a number out of its range
    Source: Newman, Chung, Chung & Ruthotto 2021, arXiv:2109.14002.
    """
    checks.instance("state", state, SlimtikState, hint="slimtik.start(...)")
    features = checks.floating("features", features, ndim=2)
    checks.shape("features", features, state.memory.shape[1:])
    features = checks.finite("features", features)
    targets = checks.finite("targets", checks.floating("targets", targets, ndim=2))
    checks.shape("targets", targets, (features.shape[0], state.weights.shape[1]))
    least = checks.positive("least", least, shape=())
    most = checks.positive("most", most, shape=())
    if damping is not None:
        damping = checks.finite("damping", damping, shape=())
    return _updated(state, features, targets, least, most, damping)


@compiled
def _updated(state, features, targets, least, most, damping):
    scale = 1 / jnp.sqrt(jnp.asarray(features.shape[0], state.memory.dtype))
    a, y = scale * features.astype(scale.dtype), scale * targets.astype(scale.dtype)
    memory = lax.dynamic_update_index_in_dim(state.memory, a, state.count % state.memory.shape[0], 0)
    values, v = _spectrum(memory)
    misfit = a @ state.weights - y
    # A direction that the memory does not see has no slope: what rounding leaves would be divided by tau, 1e-7 or less.
    seen = values > max(memory.shape[-1], 8) * jnp.finfo(values.dtype).eps * values[0]
    slope = jnp.where(seen[:, None], v.T @ (a.T @ misfit), 0)
    batch = _Batch(a @ v, misfit, slope, v.T @ state.weights, values**2, state.total)
    total = _choose(batch, least, most) if damping is None else state.total + jnp.asarray(damping, a.dtype)
    return SlimtikState(state.weights - v @ _move(batch, total), memory, total, state.count + 1)


def train(
    features: Callable[[PyTree, Array], Array],
    theta: PyTree,
    batches: tuple[ArrayLike, ArrayLike],
    *,
    optimizer: "optax.GradientTransformation",
    memory: int = 5,
    outputs: int | None = None,
    damping: ScalarLike | None = None,
    least: ScalarLike = 1e-7,
    most: ScalarLike = 1e-3,
) -> tuple[tuple[PyTree, Float[Array, "width outputs"]], SlimtikHistory]:
    """Train features and readout batch by batch (slimTrain), one scan: ((theta, weights), SlimtikHistory).

        W by `update` with this batch's features, then theta by the optimizer's step on |A(theta) W - Y|^2 / (2 batch)

    Parameters
    ----------
    features : function         (theta, x) -> A [batch, width]
    theta : pytree              floating leaves move (complex ones as two reals), all others stay as they are
    batches : pair              x [steps, batch, ...], targets [steps, batch, outputs]
    optimizer : GradientTransformation      of optax, for theta
    memory : int                batches remembered beside the current one, >= 0; the paper finds 5 to 10 enough
    outputs : int               columns of the targets, which say it themselves; another number is refused
    damping : scalar            added to tau at each batch; None: by sGCV
    least, most : scalar        > 0: then tau >= least, it grows by at most `most`, and at most halves
    Returns
    -------
    (theta, weights), SlimtikHistory        weights [width, outputs]
    Raises
    ------
    ValueError, TypeError       arrays that do not fit, not an optax transformation, a number out of its range
    Source: Newman, Chung, Chung & Ruthotto 2021, arXiv:2109.14002.
    """
    features = checks.returning("features", features, 2, "features(theta, x)")
    transformation("optimizer", optimizer)
    outputs = None if outputs is None else checks.whole("outputs", outputs)
    memory = checks.whole("memory", memory, least=0)
    least, most = checks.positive("least", least, shape=()), checks.positive("most", most, shape=())
    damping = None if damping is None else checks.finite("damping", damping, shape=())
    if not isinstance(batches, tuple | list) or len(batches) != 2:
        raise checks.BadType(f"batches must be a pair (x, targets); got {batches!r:.60}")
    x = checks.array("batches[0]", batches[0], kind="number", least_ndim=2)
    targets = checks.floating("batches[1]", batches[1], ndim=3)
    checks.shape("batches[1]", targets, (x.shape[0], x.shape[1], outputs))
    checks.shape("batches[0]", x, (*targets.shape[:2], *x.shape[2:]))
    theta = checks.leaves("theta", theta)
    moving, rest = trees.trainable(theta, name="theta")
    form = jax.eval_shape(features, theta, x[0])
    if len(getattr(form, "shape", ())) != 2 or 0 in form.shape or not jnp.issubdtype(form.dtype, jnp.floating):
        raise checks.BadValue(f"features must return real A [batch, width], as features(theta, x) -> A; got {form}")
    state = start(width=form.shape[1], outputs=targets.shape[2], batch=x.shape[1], memory=memory, dtype=form.dtype)

    settings = damping, least, most
    moving, weights, rows = _train(features, as_data(optimizer), moving, rest, state, x, targets, settings)
    return (rest.params(moving), weights), SlimtikHistory(*rows)


@compiled
def _train(features, optimizer, moving, rest, state, x, targets, settings):
    import optax

    damping, least, most = settings

    def loss(moving, x, y, weights):
        theta = rest.params(moving)
        return jnp.sum((features(theta, x) @ weights - y) ** 2) / (2 * y.shape[0])

    def step(carry, batch):
        moving, state, inside = carry
        x, y = batch
        before = loss(moving, x, y, state.weights)
        state = update(state, features(rest.params(moving), x), y, damping=damping, least=least, most=most)
        fitted, gradient = jax.value_and_grad(loss)(moving, x, y, state.weights)
        change, inside = optimizer.update(gradient, inside, moving)
        return (optax.apply_updates(moving, change), state, inside), (before, fitted, state.total)

    (moving, state, _), rows = lax.scan(step, (moving, state, optimizer.init(moving)), (x, targets))
    return moving, state.weights, rows


class _Batch(NamedTuple):
    """One batch in the right singular vectors of the memory."""

    a: jax.Array  # A V
    misfit: jax.Array  # A W - Y
    slope: jax.Array  # V'A'(A W - Y)
    weights: jax.Array  # V'W
    squares: jax.Array  # singular values squared
    total: jax.Array


def _spectrum(memory):
    """Singular values and right singular vectors [width, width] of all rows in memory."""
    width = memory.shape[-1]
    rows = jnp.concatenate([memory.reshape(-1, width), jnp.zeros((width, width), memory.dtype)])
    _, values, vt = jnp.linalg.svd(jnp.linalg.qr(widen(rows), mode="r"))
    return values.astype(memory.dtype), vt.T.astype(memory.dtype)


def _move(batch, total):
    """V' times the change of the weights if tau becomes `total`."""
    return (batch.slope + (total - batch.total) * batch.weights) / (batch.squares + total)[:, None]


@compiled
def _choose(batch, least, most):
    """The tau with the least sampled generalized cross validation."""
    low = jnp.maximum(jnp.asarray(least, batch.total.dtype), batch.total / 2)
    high = jnp.maximum(batch.total + most, low)
    grid = low * (high / low) ** jnp.linspace(0, 1, CANDIDATES, dtype=low.dtype)

    def criterion(total):
        residual = batch.misfit - batch.a @ _move(batch, total)
        trace = jnp.sum(jnp.sum(batch.a**2, axis=0) / (batch.squares + total))
        return jnp.sum(residual**2) / (batch.a.shape[0] - trace) ** 2

    criteria = lax.map(criterion, grid)
    return grid[jnp.argmin(jnp.where(jnp.isfinite(criteria), criteria, jnp.inf))]
