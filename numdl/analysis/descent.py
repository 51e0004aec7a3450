"""MEASURED: a gradient method at work: its path, its loss and the sharpness of what it walks on.

Twin: theory.descent, which says where the method becomes unstable, how fast it is and what it learns when.

    >>> import jax, jax.numpy as jnp
    >>> loss = lambda params, batch: 0.5 * jnp.sum(batch * params**2)
    >>> params, curvatures = jnp.array([1.0, 1.0]), jnp.array([1.0, 10.0])
    >>> print(f"{sharpness(loss, params, curvatures, start=params, num_matvecs=2).value:.3f}")
    10.000
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Float, Key, PyTree, Real

from numdl import _random, checks, trees
from numdl._compiled import compiled, jit
from numdl._hyperparameters import as_data
from numdl.analysis import _parts
from numdl.krylov import _vectors, lanczos
from numdl.precision import widen
from numdl.records import record
from numdl.typing import Loss

if TYPE_CHECKING:
    import optax


@record
class Sharpness:
    """The largest eigenvalue of the Hessian, as far as a few products tell."""

    value: jax.Array  # []: never above the eigenvalue, but for rounding
    residual: jax.Array  # []: |H v - value v|: an eigenvalue lies that near
    vector: Any  # like the parameters, of unit length


@record
class Descent:
    """A run of a gradient method with its sharpness, every `every` steps."""

    loss: jax.Array  # [steps]: before each step
    step: np.ndarray  # [n]: at which the following were measured
    sharpness: jax.Array  # [n]: of the (preconditioned) Hessian
    residual: jax.Array  # [n]
    params: Any  # after the last step


def sharpness(
    loss: Loss,
    params: PyTree,
    batch: PyTree,
    *,
    start: PyTree,
    num_matvecs: int,
    preconditioner: PyTree | None = None,
    frozen: str | Sequence[str] = (),
) -> Sharpness:
    """MEASURED sharpness: largest eigenvalue of the Hessian of loss(., batch) by Lanczos from `start`; traceable.

    Warm starts make it cheap along a run: hand the last `vector` in. For a certificate that nothing larger was missed
    ask `analysis.curvature.top_eigenvalues`. Real floating leaves move, complex ones as two reals; all else stays.

    Parameters
    ----------
    loss : function             (params, batch) -> scalar
    params, batch : pytree      where the Hessian is taken; data
    start : pytree              like params, not zero and not orthogonal to the eigenvector
    num_matvecs : int           Hessian-vector products, >= 1
    preconditioner : pytree     positive entries P like params: the eigenvalues are those of P^{-1/2} H P^{-1/2}
    frozen : str or strings     paths of leaves that stay as well: running statistics
    Returns
    -------
    Sharpness                   value, residual [], vector like params
    Raises
    ------
    ValueError, TypeError       a start unlike params or zero, P not positive, num_matvecs < 1, a loss not scalar
    Source: Lanczos 1950; Cohen et al. 2021, arXiv:2103.00065.
    Twin: theory.descent.sharpness_limit.    Experiment: d7.
    """
    size = checks.whole("num_matvecs", num_matvecs)
    loss, moving, rest, batch = _parts.opened(loss, params, batch, frozen)
    start = _parts.inward("start", start, params, rest, moving)
    if not _vectors.traced(start):
        _vectors.nonzero("start", np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(start)]))
    if preconditioner is not None:
        preconditioner = _parts.inward("preconditioner", preconditioner, params, rest, moving)
        if not _vectors.traced(preconditioner):
            checks.positive("preconditioner", np.concatenate([np.ravel(x) for x in jax.tree.leaves(preconditioner)]))
    found = _sharpest(loss, moving, rest, batch, start, preconditioner, num_matvecs=size)
    return dataclasses.replace(found, vector=_parts.outward(found.vector, rest))


@functools.partial(compiled, static=("num_matvecs",))
def _sharpest(loss, moving, rest, batch, start, preconditioner, num_matvecs):
    return _sharpness(_parts.loss_of(loss, rest), moving, batch, start, num_matvecs, preconditioner)


def _sharpness(loss, moving, batch, start, num_matvecs, preconditioner):
    """The record, its vector the moving part."""
    flat, unravel = ravel_pytree(moving)
    weights = jnp.ones_like(flat) if preconditioner is None else 1 / jnp.sqrt(ravel_pytree(preconditioner)[0])
    product = jax.linearize(jax.grad(lambda w: loss(unravel(w), batch)), flat)[1]
    matvec = lambda v: weights * product(weights * v)  # noqa: E731
    found = lanczos.tridiagonalize(matvec, ravel_pytree(start)[0], min(num_matvecs, flat.size))
    coupling = found.off_diagonal[:-1]
    # Past the end of the start's space there is nothing: below all eigenvalues, nothing is the largest.
    least = jnp.min(found.diagonal) - 2 * jnp.max(found.off_diagonal) - 1
    inside = jnp.arange(found.diagonal.size) < jnp.maximum(found.count, 1)
    matrix = jnp.diag(jnp.where(inside, found.diagonal, least)) + jnp.diag(coupling, 1) + jnp.diag(coupling, -1)
    values, turn = (part.astype(flat.dtype) for part in jnp.linalg.eigh(widen(matrix)))
    vector = jnp.matmul(turn[:, -1], found.basis, precision="highest")
    residual = jnp.abs(found.off_diagonal[-1] * turn[-1, -1])
    return Sharpness(values[-1], residual, unravel(vector / jnp.linalg.norm(vector)))


def along(
    key: Key[Array, ""],
    loss: Loss,
    params: PyTree,
    batch: PyTree,
    optimizer: "optax.GradientTransformation",
    *,
    steps: int,
    every: int,
    num_matvecs: int = 12,
    preconditioner: Callable[[PyTree, Array], PyTree] | None = None,
    frozen: str | Sequence[str] = (),
) -> Descent:
    """MEASURED loss and sharpness along a full-batch run: is it at the edge of stability, sharpness near 2/eta?

    One compiled loop; each measurement starts from the eigenvector of the one before.

    Parameters
    ----------
    key : key                   of the first Lanczos start
    loss : function             (params, batch) -> scalar
    params, batch : pytree      where the run starts; data
    optimizer : GradientTransformation      of optax, sees only what moves; the same object again compiles nothing
    steps, every : int          `steps` a multiple of `every`; sharpness is measured before steps 0, every, 2 every ...
    num_matvecs : int           Hessian-vector products for each measurement
    preconditioner : function   (optimizer state, step) -> pytree P as in `sharpness`, such as `adam_preconditioner`
    frozen : str or strings     paths of leaves that stay
    Returns
    -------
    Descent                     loss [steps], sharpness and residual [steps / every], the last params
    Raises
    ------
    ValueError, TypeError       a count below 1, steps not a multiple of every, no optimizer, a loss that is not scalar
    Source: Cohen et al. 2021, arXiv:2103.00065; Cohen et al. 2022, arXiv:2207.14484.
    Twin: theory.descent.sharpness_limit.    Experiment: d7.
    """
    checks.key("key", key)
    loss = checks.returning("loss", loss, 2, "loss(params, batch)", scalar=True)
    _check_optimizer(optimizer)
    every, num_matvecs = checks.whole("every", every), checks.whole("num_matvecs", num_matvecs)
    steps = checks.whole("steps", steps)
    if steps % every:
        raise checks.BadValue(f"steps must be a multiple of every = {every}; got {steps}")
    if preconditioner is not None:
        checks.accepts("preconditioner", preconditioner, 2, "preconditioner(optimizer_state, step)")
    moving, rest = trees.trainable(params, frozen=frozen)
    settings = as_data(optimizer), steps // every, every, num_matvecs, preconditioner
    losses, values, residuals, last = _along(key, moving, rest, _parts.data("batch", batch), loss, *settings)
    return Descent(losses.reshape(-1), np.arange(0, steps, every), values, residuals, rest.params(last))


def adam_preconditioner(*, b2: ArrayLike = 0.999, eps: ArrayLike = 1e-8) -> Callable[[PyTree, Array], PyTree]:
    """The diagonal that optax's adam divides by, as the `preconditioner` of `along`.

        P = sqrt(v / (1 - b2^t)) + eps,   t the step's number, 1 before the first step

    Parameters
    ----------
    b2, eps : scalar            as given to `optax.adam`: 0 <= b2 <= 1, eps >= 0
    Returns
    -------
    function                    (optimizer state, step) -> pytree P
    Raises
    ------
    ValueError, TypeError       b2 outside [0, 1], a negative eps
    Source: Kingma & Ba 2015, arXiv:1412.6980; Cohen et al. 2022, arXiv:2207.14484.
    """
    b2 = float(checks.finite("b2", b2, least=0.0, most=1.0, shape=()))
    eps = float(checks.variance("eps", eps, shape=()))

    def diagonal(memory, step):
        import optax

        moments = optax.tree.get(memory, "nu")
        return jax.tree.map(lambda v: jnp.sqrt(v / (1 - b2 ** jnp.maximum(step, 1).astype(v.dtype))) + eps, moments)

    return diagonal


def path(
    loss: Callable[[PyTree], Array],
    params: PyTree,
    optimizer: "optax.GradientTransformation",
    *,
    steps: int,
    frozen: str | Sequence[str] = (),
) -> PyTree:
    """MEASURED path of a gradient method (heavy ball, Nesterov, any of optax) on loss(params); traceable.

    Its convergence rate is the prediction's; its distance from the gradient flow of the modified loss is what implicit
    gradient regularization (backward error analysis) predicts.

    Parameters
    ----------
    loss : function             params -> scalar
    params : pytree             where it starts; what does not move is repeated
    optimizer : GradientTransformation      of optax, sees only what moves
    steps : int                 >= 0
    frozen : str or strings     paths of leaves that stay
    Returns
    -------
    pytree like params, leaves [steps + 1, ...]: before the first step, after each
    Raises
    ------
    ValueError, TypeError       negative steps, no optimizer, a loss that is not scalar, no leaf that moves
    Twins: theory.descent.path, theory.descent.modified_loss, theory.central_flow.central_flow.
    Experiments: d6, d8, d17.
    """
    loss = checks.returning("loss", loss, 1, "loss(params)", scalar=True)
    _check_optimizer(optimizer)
    steps = checks.whole("steps", steps, least=0)
    moving, rest = trees.trainable(params, frozen=frozen)
    rows = _path(loss, as_data(optimizer), moving, rest, steps=steps)
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (steps + 1, *jnp.shape(leaf))), rest).params(rows)


@functools.partial(compiled, static=("steps",))
def _path(loss, optimizer, moving, rest, steps):
    import optax

    def step(state, _):
        moving, memory = state
        update, memory = optimizer.update(jax.grad(lambda part: loss(rest.params(part)))(moving), memory, moving)
        return (optax.apply_updates(moving, update), memory), moving

    (last, _), before = lax.scan(step, (moving, optimizer.init(moving)), None, length=steps)
    return jax.tree.map(lambda rows, end: jnp.concatenate([rows, end[None]]), before, last)


def mode_strength(
    matrices: Sequence[ArrayLike], *, left: Real[ArrayLike, "modes out"], right: Real[ArrayLike, "modes in"]
) -> Float[Array, "modes"]:
    """MEASURED strength of the modes of a deep linear network x W_1 ... W_D; traceable.

        u_i = right_i' W_1 ... W_D left_i

    Their learning times, one mode after the other, are the saddle-to-saddle dynamics.

    Parameters
    ----------
    matrices : list or tuple    W_1 [d_0, d_1], ..., W_D [d_{D-1}, d_D]
    left, right : array [modes, d_D], array [modes, d_0]     singular vectors of what is to be learned
    Returns
    -------
    u : array [modes]
    Raises
    ------
    ValueError, TypeError       no matrix, matrices or vectors that do not fit each other
    Source: Saxe, McClelland & Ganguli 2014, arXiv:1312.6120.
    Twin: theory.descent.mode_strength.    Experiments: d9, b11.
    """
    matrices = [checks.array(f"matrices[{i}]", matrix, ndim=2) for i, matrix in enumerate(_some(matrices))]
    for i, (one, after) in enumerate(zip(matrices, matrices[1:])):
        checks.shape(f"matrices[{i + 1}]", after, (one.shape[1], None))
    right = checks.shape("right", checks.array("right", right), (None, matrices[0].shape[0]))
    left = checks.shape("left", checks.array("left", left), (right.shape[0], matrices[-1].shape[1]))
    through = functools.reduce(jnp.matmul, matrices, right)
    return jnp.sum(through * left, axis=1)


def _some(matrices):
    if not checks.instance("matrices", matrices, (list, tuple)):
        raise checks.BadValue(f"matrices must hold at least one array; got {matrices!r}")
    return matrices


def _check_optimizer(optimizer):
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise checks.BadType(f"optimizer must have init and update, as optax's have; got {optimizer!r:.60}")


@functools.partial(jit, static_argnums=(6, 7, 8, 9))
def _along(key, moving, rest, batch, loss, optimizer, rounds, every, num_matvecs, preconditioner):
    import optax

    flat, unravel = ravel_pytree(moving)
    first = unravel(_random.normal(key, flat.shape, flat.dtype))
    loss = _parts.loss_of(loss, rest)

    def step(state, _):
        moving, memory = state
        value, gradient = jax.value_and_grad(loss)(moving, batch)
        update, memory = optimizer.update(gradient, memory, moving)
        return (optax.apply_updates(moving, update), memory), value

    def metric(memory, step):
        if preconditioner is None:
            return None
        found = preconditioner(memory, step)
        if jax.tree.structure(found) == jax.tree.structure(moving):
            return checks.like("preconditioner(optimizer_state, step)", found, moving, of="what moves of params")
        return _parts.inward("preconditioner(optimizer_state, step)", found, rest.params(moving), rest, moving)

    def measure(state, index):
        (moving, memory), vector = state
        found = _sharpness(loss, moving, batch, vector, num_matvecs, metric(memory, index * every))
        after, losses = lax.scan(step, (moving, memory), None, length=every)
        return (after, found.vector), (losses, found.value, found.residual)

    start = (moving, optimizer.init(moving)), first
    ((moving, _), _), measured = lax.scan(measure, start, jnp.arange(rounds))
    return *measured, moving
