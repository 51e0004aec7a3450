"""What is worth observing in training, ready made: functions of the parameters for `fit(observe=...)`.

A measure is a function of the parameters that returns a number, an array, or a pytree of them; it is run between two
compiled chunks. One that needs more is wrapped: `with_moment(fn)` is called as fn(params, moment).
"""

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import ArrayLike, PyTree

from numdl import checks, trees
from numdl._compiled import jit
from numdl.optimize import losses
from numdl.optimize.train._stepping import bound, transformation
from numdl.records import record
from numdl.typing import Apply, Loss

if TYPE_CHECKING:
    import optax


class Moment(NamedTuple):
    """Where training stands: what `with_moment` hands to a measure beside the parameters."""

    step: int  # completed steps
    memory: Any  # the optimizer's state
    start: Any  # the parameters before the first step


@record
class GradientNoise:
    """How much the gradients of single examples scatter."""

    trace: jax.Array  # trace of the covariance of one example's gradient, unbiased
    square_norm: jax.Array  # |mean gradient|**2, unbiased; may be negative where noise is all there is
    scale: jax.Array  # trace / square_norm: the batch size at which noise and signal are equal


def with_moment(function: Callable[[PyTree, Moment], Any]) -> "WithMoment":
    """A measure that is called as function(params, moment): it sees the step, the optimizer's state and the start.

    Parameters
    ----------
    function : function         (params, Moment) -> a number, an array, or a pytree of them
    Returns
    -------
    WithMoment                  for `fit(observe=...)`
    Raises
    ------
    TypeError                   not a function of two arguments
    """
    return WithMoment(checks.accepts("function", function, 2, "function(params, moment)"))


@dataclasses.dataclass(frozen=True)
class WithMoment:
    """See `with_moment`."""

    function: Callable

    def __call__(self, params, moment):
        """The wrapped function's value."""
        return self.function(params, moment)


def accuracy(apply: Apply, x: PyTree, targets: ArrayLike, *, size: int | None = None) -> Callable[[PyTree], float]:
    """A measure: the share of examples that apply(params, x) gets right, see `losses.accuracy`.

    Parameters
    ----------
    apply : function            (params, x) -> outputs [N, k]
    x : pytree                  leaves [N, ...]
    targets : array             labels [N], integers >= 0, or class probabilities [N, k]
    size : int or None          examples at a time, 1..N; None: all at once
    Returns
    -------
    function                    params -> share in [0, 1], for `fit(observe=...)`
    Raises
    ------
    ValueError, TypeError       targets of another length, a negative label, labels that are not whole, a size beyond N
    """
    checks.accepts("apply", apply, 2, "apply(params, x)")
    x, targets = checks.leaves("x", x), checks.array("targets", targets, least_ndim=1)
    count = checks.together("targets", targets, "x", x)
    _check_targets(targets)
    length = count if size is None else checks.whole("size", size, most=count)
    x, targets = jax.tree.map(jnp.asarray, (x, targets))
    share = jit(lambda params, x, targets: losses.accuracy(apply(params, x), targets))

    def measure(params):
        parts = [slice(at, min(at + length, count)) for at in range(0, count, length)]
        cut = [jax.tree.map(lambda leaf, part=part: leaf[part], (x, targets)) for part in parts]
        shares = [float(share(params, *pair)) * len(pair[1]) for pair in cut]
        return np.sum(shares) / count

    return measure


def gradient_noise(loss: Loss, data: PyTree, *, size: int) -> Callable[[PyTree], GradientNoise]:
    """A measure: the gradient noise scale (critical batch size), from the scatter of gradients of disjoint batches.

        trace       = size * sum over batches |g_i - g|**2 / (batches - 1),    g the mean of the batches' gradients g_i
        square_norm = |g|**2 - trace / (size * batches)
        scale       = trace / square_norm

    Parameters
    ----------
    loss : function             (params, batch) -> scalar, a mean over the batch
    data : pytree               leaves [examples, ...], at least two batches long
    size : int                  examples in a batch, 1..examples // 2; what fills no batch is left out
    Returns
    -------
    function                    params -> GradientNoise(trace, square_norm, scale), for `fit(observe=...)`
    Raises
    ------
    ValueError, TypeError       a size beyond half of the examples, a loss that is not a real scalar, leaves that differ
    Source: McCandlish et al. 2018, arXiv:1812.06162 (the simple noise scale).    Experiment: d10.
    """
    loss = checks.returning("loss", bound(loss), 2, "loss(params, batch)", scalar=True)
    data = checks.leaves("data", data)
    size = checks.whole("size", size, most=checks.length("data", data) // 2)
    count = checks.length("data", data) // size
    data = jax.tree.map(jnp.asarray, data)
    data = jax.tree.map(lambda leaf: leaf[: count * size].reshape(count, size, *leaf.shape[1:]), data)
    run = jit(_gradient_noise)
    return lambda params: run(loss, params, data, size)


def update_ratio(loss: Loss, optimizer: "optax.GradientTransformation", batch: PyTree) -> "WithMoment":
    """A measure: |update| / |weights| of every leaf, of the step that the optimizer would make on `batch`.

    Leaves that are zero have the ratio inf.

    Parameters
    ----------
    loss : function             (params, batch) -> scalar
    optimizer : GradientTransformation      of optax, the one that trains
    batch : pytree              data, as the loss takes it
    Returns
    -------
    WithMoment                  its values are a dict by the leaves' paths, for `fit(observe=...)`
    Raises
    ------
    TypeError, ValueError       a loss that is not a real scalar, not an optax transformation, no arrays
    """
    run = jit(_update_ratio, static_argnums=1)
    loss = checks.returning("loss", bound(loss), 2, "loss(params, batch)", scalar=True)
    transformation("optimizer", optimizer)
    batch = jax.tree.map(jnp.asarray, checks.leaves("batch", batch))
    return with_moment(lambda params, moment: run(loss, optimizer, params, moment.memory, batch))


def distance() -> "WithMoment":
    """A measure: |params - params before the first step|, over all leaves that move.

    Returns
    -------
    WithMoment                  its value is a scalar, for `fit(observe=...)`
    """

    @jax.jit
    def run(params, start):
        return trees.norm(jax.tree.map(jnp.subtract, trees.trainable(params)[0], trees.trainable(start)[0]))

    return WithMoment(lambda params, moment: run(params, moment.start))


def _check_targets(targets):
    """Labels [N] or class probabilities [N, k]; whether a label is below k, the outputs will show."""
    if targets.ndim > 1 and targets.shape[-1] < 2:
        raise checks.BadValue(
            f"targets must be labels [N] or class probabilities [N, k >= 2]; got shape {targets.shape}"
        )
    if targets.ndim == 1 and not jnp.issubdtype(targets.dtype, jnp.integer):
        raise checks.BadType(f"targets of shape {targets.shape} must be integer labels; got dtype {targets.dtype}")
    if not isinstance(targets, jax.core.Tracer) and np.min(targets) < 0:
        place = tuple(int(index) for index in np.argwhere(np.asarray(targets) < 0)[0])
        raise checks.BadValue(
            f"targets must not be negative; got {targets[place]} at {list(place)} of shape {targets.shape}"
        )


def observed(function, params, moment):
    """A measure's value as {name of a leaf: array}; the name of a single value is empty."""
    value = function(params, moment) if isinstance(function, WithMoment) else function(params)
    leaves, structure = jax.tree.flatten(value)
    names = [""] if jax.tree_util.treedef_is_leaf(structure) else trees.names(value)
    return dict(zip(names, map(np.asarray, leaves), strict=True))


def _gradient_noise(loss, params, data, size):
    moving, rest = trees.trainable(params)
    gradients = lax.map(lambda batch: jax.grad(lambda moving: loss(rest.params(moving), batch))(moving), data)
    batches = jax.tree.leaves(data)[0].shape[0]
    mean = jax.tree.map(lambda g: jnp.mean(g, axis=0), gradients)
    apart = jax.tree.map(lambda g, m: g - m[None], gradients, mean)
    trace = size * trees.inner(apart, apart) / (batches - 1)
    square = trees.inner(mean, mean) - trace / (size * batches)
    return GradientNoise(trace, square, trace / square)


def _update_ratio(loss, optimizer, params, memory, batch):
    import optax

    moving, rest = trees.trainable(params)

    def here(moving):
        return loss(rest.params(moving), batch)

    value, gradient = jax.value_and_grad(here)(moving)
    more = {"value": value, "grad": gradient, "value_fn": here}
    update, _ = optax.with_extra_args_support(optimizer).update(gradient, memory, moving, **more)
    ratios = [trees.norm(u) / trees.norm(p) for u, p in zip(jax.tree.leaves(update), jax.tree.leaves(moving))]
    return dict(zip(trees.names(moving), ratios, strict=True))
