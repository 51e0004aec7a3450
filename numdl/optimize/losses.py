"""Losses with their slopes and curvatures in output space: squared, logistic, softmax cross-entropy, hinge.

A loss takes outputs [..., k] (the last affine map of a network, no softmax, no sigmoid) and targets, and gives one
number for each example; calling it gives their mean. Beside the value stand the gradient and the Hessian with respect
to the outputs, one k x k block for each example, positive semidefinite: what Gauss-Newton and natural gradients need.

    losses.softmax_cross_entropy(outputs, labels)                     mean over examples
    losses.softmax_cross_entropy.value(outputs, labels)               [...]
    losses.softmax_cross_entropy.hessian_product(outputs, labels, v)  [..., k]
    losses.weighted(losses.softmax_cross_entropy, ignored=-100)       a loss again, without padding

Targets out of the domain (a label 10 of 10 classes, probabilities that do not sum to 1) are an error where their values
are known. Inside `jit` they are not: there the example's value, gradient and curvature are nan, so that the mean and
every step taken from it are nan too, never a plausible number.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, ScalarLike

from numdl import checks, trees
from numdl.optimize._weighted import Weighted


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss of outputs [..., k] and targets; frozen and hashable, so usable as a static argument of `jit`."""

    name: str
    targets: str  # what targets must be, for messages
    encode: Callable  # (outputs, targets) -> (whether each example is in the domain [...], () -> targets like outputs)
    values: Callable  # (outputs, encoded) -> [...]
    slopes: Callable  # (outputs, encoded) -> [..., k]
    blocks: Callable  # (outputs, encoded) -> [..., k, k]
    products: Callable  # (outputs, encoded, v) -> [..., k]

    def __call__(self, outputs, targets):
        """The mean over examples: a scalar."""
        return jnp.mean(self.value(outputs, targets))

    def value(self, outputs, targets):
        """The loss of each example, [...]."""
        outputs, encoded, inside = self._admit(outputs, targets)
        return _poisoned(self.values(outputs, encoded), outputs, inside)

    def gradient(self, outputs, targets):
        """The gradient of each example's value with respect to its outputs, [..., k]."""
        outputs, encoded, inside = self._admit(outputs, targets)
        return _or_nan(inside, self.slopes(outputs, encoded))

    def hessian(self, outputs, targets):
        """The Hessian of each example's value with respect to its outputs, [..., k, k], positive semidefinite."""
        outputs, encoded, inside = self._admit(outputs, targets)
        return _or_nan(inside, self.blocks(outputs, encoded))

    def hessian_product(self, outputs, targets, v):
        """The Hessian of each example times its row of v, [..., k], without forming it."""
        outputs, encoded, inside = self._admit(outputs, targets)
        v = checks.floating("v", v)
        checks.shape("v", v, outputs.shape)
        return _or_nan(inside, self.products(outputs, encoded, v))

    def __repr__(self):
        return f"losses.{self.name}"

    def _admit(self, outputs, targets):
        """The outputs, targets in their shape and dtype, and whether each example's are in the domain, [...]."""
        outputs = checks.floating("outputs", outputs, least_ndim=2)
        inside, encoded = self.encode(outputs, targets)
        if not isinstance(inside, jax.core.Tracer) and not np.all(inside):
            place = tuple(np.argwhere(~inside)[0].tolist())
            wrong = np.asarray(targets)[place]
            allowed = self.targets.format(k=outputs.shape[-1])
            raise checks.BadValue(
                f"targets must be {allowed}; got {wrong} at {list(place)} of shape {np.shape(targets)}"
            )
        return outputs, encoded(), inside


def accuracy(outputs: Float[ArrayLike, "*examples k"], targets: ArrayLike) -> Float[Array, ""]:
    """The share of examples whose largest output is at the label (or at the largest class probability).

    An example with an output that is not finite counts as wrong: the argmax of a row of nan would be class 0.

    Parameters
    ----------
    outputs : array [..., k]    k classes
    targets : array             labels [...], integers in 0..k - 1, or class probabilities [..., k]
    Returns
    -------
    scalar                      in [0, 1]; nan where a label is not allowed and its value was not known (under jit)
    Raises
    ------
    ValueError, TypeError       a label out of range, probabilities that do not sum to 1, shapes that do not fit
    Source: the definition.
    """
    outputs, encoded, inside = softmax_cross_entropy._admit(outputs, targets)
    right = jnp.argmax(outputs, axis=-1) == jnp.argmax(encoded, axis=-1)
    right &= jnp.all(jnp.isfinite(outputs), axis=-1)
    return jnp.mean(_or_nan(inside, right.astype(outputs.dtype)))


def z_loss(outputs: Float[ArrayLike, "*examples k"], *, strength: ScalarLike) -> Float[Array, ""]:
    """The penalty that holds ln Z of a softmax, which a cross-entropy leaves free, near 0; to be added to it.

        strength * mean over examples of (ln Z)**2,    ln Z = ln sum_j exp(outputs_j)

    Parameters
    ----------
    outputs : array [..., k]    of k classes
    strength : scalar           >= 0; 1e-4 in the source
    Returns
    -------
    scalar
    Raises
    ------
    ValueError, TypeError       a negative strength, outputs that are not floating-point numbers
    Source: Chowdhery et al. 2022, arXiv:2204.02311, section 5; Wortsman et al. 2023, arXiv:2309.14322.
    Experiment: g13.
    """
    outputs = checks.floating("outputs", outputs, least_ndim=2)
    strength = checks.finite("strength", strength, least=0.0, shape=())
    return jnp.asarray(strength, outputs.dtype) * jnp.mean(jax.nn.logsumexp(outputs, axis=-1) ** 2)


def with_l2(
    loss: Callable[..., Array], strength: ScalarLike, *, where: Callable[[str], bool] = lambda name: True
) -> Callable[..., Array]:
    """The loss with an L2 penalty on the weights (ridge, weight decay inside the gradient).

        loss(params, batch, ...) + strength / 2 * |params|**2,    over the leaves named by `where`

    Weight decay that is not in the gradient is optax.adamw's.

    Parameters
    ----------
    loss : function             (params, batch, ...) -> scalar
    strength : scalar           >= 0
    where : function            path of a leaf, 'hidden/0/weight' -> whether it is penalized
    Returns
    -------
    function                    called as the loss
    Raises
    ------
    ValueError, TypeError       a negative strength, arguments that are not functions
    Source: the definition.    Experiment: e1.
    """
    checks.function("loss", loss)
    where = checks.accepts("where", where, 1, "where(name)")
    strength = checks.finite("strength", strength, least=0.0, shape=())

    def penalized(params, *batch):
        leaves = [
            leaf
            for name, leaf in zip(trees.names(params), jax.tree.leaves(params), strict=True)
            if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) and where(name)
        ]
        value = loss(params, *batch)
        return value + jnp.asarray(strength / 2 * jnp.real(trees.inner(leaves, leaves)), value.dtype)

    return penalized


def weighted(loss: Loss, *, class_weights: Float[ArrayLike, "k"] | None = None, ignored: int | None = None) -> Weighted:
    """The loss with class weights, and without the examples of one label (padding, "ignore index").

        mean = sum_i w(c_i) * loss_i / sum_i w(c_i)

    Parameters
    ----------
    loss : Loss                 of labels or class probabilities: softmax_cross_entropy
    class_weights : array [k]   w >= 0, not all 0; None: 1 each. Of probabilities [..., k] the mean weight is taken
    ignored : int               the label [...] of examples that do not count, in 0..k - 1 or not, such as -100
    Returns
    -------
    Weighted                    called as the loss; `value`, `gradient`, ... are of weight * value; `weight` [...];
                                `sum_and_weight` gives both sums, from which the mean over chunks of a batch is exact
    Raises
    ------
    ValueError, TypeError       no loss of classes, negative weights, another number of weights than classes
    Source: the definition.
    """
    if not isinstance(loss, Loss) or loss.encode is not _classes:
        raise checks.BadType(f"loss must be losses.softmax_cross_entropy, a loss of classes; got {loss!r}")
    numbers = None
    if class_weights is not None:
        weights = checks.finite("class_weights", checks.array("class_weights", class_weights, ndim=1), least=0.0)
        if not np.any(weights):
            raise checks.BadValue(f"class_weights must not all be 0; got {checks.shown(class_weights)}")
        numbers = tuple(np.asarray(weights, np.float64).tolist())
    if ignored is not None:
        ignored = checks.whole("ignored", ignored, least=-(2**31))
    return Weighted(loss, numbers, ignored)


def _or_nan(inside, value):
    """`value` where the targets are in the domain, else nan."""
    if not isinstance(inside, jax.core.Tracer):
        return value
    rows = inside.reshape(inside.shape + (1,) * (value.ndim - inside.ndim))
    return jnp.where(rows, value, jnp.full_like(value, jnp.nan))


def _poisoned(value, outputs, inside):
    """As `_or_nan`, for every derivative with respect to the outputs too: where(inside, value, nan) has gradient 0."""
    if not isinstance(inside, jax.core.Tracer):
        return value
    lost = jnp.where(inside[..., None], jnp.zeros_like(outputs), outputs)
    return jnp.where(inside, value, jnp.sum(jnp.nan * lost**2, axis=-1))


def _real(outputs, targets):
    targets, xp = _like(outputs, targets)
    return xp.all(xp.isfinite(targets), axis=-1), _as(targets, outputs)


def _between(outputs, targets):
    targets, xp = _like(outputs, targets)
    return xp.all((targets >= 0) & (targets <= 1), axis=-1), _as(targets, outputs)


def _signs(outputs, targets):
    targets, xp = _like(outputs, targets)
    return xp.all((targets == 1) | (targets == -1), axis=-1), _as(targets, outputs)


def _classes(outputs, targets):
    """Integer labels [...] become rows of a unit matrix; what is shaped like the outputs is class probabilities."""
    targets, xp = _numbers(targets)
    if targets.shape == outputs.shape[:-1]:
        if targets.dtype.kind not in "iu":
            raise checks.BadType(f"targets of shape {targets.shape} must be integer labels; got dtype {targets.dtype}")
        inside = (targets >= 0) & (targets < outputs.shape[-1])
        return inside, lambda: jax.nn.one_hot(targets, outputs.shape[-1], dtype=outputs.dtype)
    checks.shape("targets", targets, outputs.shape)
    # The sum of k rounded numbers, each rounded in the coarser of the two types.
    kinds = [a.dtype for a in (targets, outputs) if jax.dtypes.issubdtype(a.dtype, np.floating)]
    tolerance = 4 * outputs.shape[-1] * float(max(jnp.finfo(kind).eps for kind in kinds))
    whole = xp.abs(xp.sum(targets, axis=-1) - 1) <= tolerance
    return whole & xp.all((targets >= 0) & (targets <= 1), axis=-1), _as(targets, outputs)


def _as(targets, outputs):
    return lambda: jnp.asarray(targets, outputs.dtype)


def _like(outputs, targets):
    targets, xp = _numbers(targets)
    checks.shape("targets", targets, outputs.shape)
    return targets, xp


def _numbers(targets):
    """Known targets as NumPy arrays, whose values can be looked at while the outputs are traced; and the module."""
    traced = isinstance(targets, jax.core.Tracer)
    array = checks.array("targets", targets)
    array = array if traced else np.asarray(array)
    array = array.astype(np.int32) if array.dtype == bool else array
    return array, (jnp if traced else np)


def _half_square(outputs, c):
    return jnp.sum((outputs - c) ** 2, axis=-1) / 2


def _binary_entropy(outputs, c):
    # ln(1 + e^y) - c y without overflow: each term is the one that is small for its sign of y.
    return jnp.sum(c * jax.nn.softplus(-outputs) + (1 - c) * jax.nn.softplus(outputs), axis=-1)


def _cross_entropy(outputs, c):
    # A class of probability 0 counts nothing, even where its output is -inf.
    logs = jax.nn.log_softmax(outputs, axis=-1)
    return -jnp.sum(c * jnp.where(c > 0, logs, jnp.zeros_like(logs)), axis=-1)


def _margin(outputs, c):
    return jnp.sum(jax.nn.relu(1 - c * outputs), axis=-1)


def _sigmoid_slope(outputs):
    return jax.nn.sigmoid(outputs) * jax.nn.sigmoid(-outputs)


def _diagonal(entries):
    k = entries.shape[-1]
    unit = jnp.eye(k, dtype=entries.dtype).reshape((1,) * (entries.ndim - 1) + (k, k))
    return entries[..., None] * unit


def _softmax_block(outputs, c):
    p = jax.nn.softmax(outputs, axis=-1)
    return _diagonal(p) - p[..., :, None] * p[..., None, :]


def _softmax_product(outputs, c, v):
    # p (v - <p, v>), not p v - p <p, v>: no cancellation where one class has all the probability.
    p = jax.nn.softmax(outputs, axis=-1)
    return p * (v - jnp.sum(p * v, axis=-1, keepdims=True))


def _separate(curvature):
    """Blocks and products of a loss that is a sum over outputs: curvature(outputs) [..., k] is the diagonal."""
    return (lambda y, c: _diagonal(curvature(y))), (lambda y, c, v: curvature(y) * v)


squared = Loss(
    "squared",
    "finite numbers in the shape of outputs",
    _real,
    _half_square,
    lambda y, c: y - c,
    *_separate(jnp.ones_like),
)
"""|outputs - targets|**2 / 2, summed over outputs; Hessian I."""

logistic = Loss(
    "logistic",
    "numbers in [0, 1] in the shape of outputs",
    _between,
    _binary_entropy,
    lambda y, c: jax.nn.sigmoid(y) - c,
    *_separate(_sigmoid_slope),
)
"""-c ln s - (1 - c) ln(1 - s), s = 1 / (1 + exp(-outputs)), summed over outputs; Hessian diag(s (1 - s))."""

softmax_cross_entropy = Loss(
    "softmax_cross_entropy",
    "integer labels below {k}, none negative, or class probabilities >= 0 that sum to 1",
    _classes,
    _cross_entropy,
    lambda y, c: jax.nn.softmax(y, axis=-1) - c,
    _softmax_block,
    _softmax_product,
)
"""-sum c ln p, p = softmax(outputs); targets are labels [...] or probabilities [..., k]; Hessian diag(p) - p p'."""

hinge = Loss(
    "hinge",
    "-1 or 1 in the shape of outputs",
    _signs,
    _margin,
    lambda y, c: -c * (c * y < 1),
    *_separate(jnp.zeros_like),
)
"""max(0, 1 - c outputs), c = -1 or 1, summed over outputs; Hessian 0, off the kink where c outputs = 1 (slope 0)."""
