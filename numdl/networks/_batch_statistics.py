"""Mean and variance of a batch: measured, averaged over batches, and used where they are known.

networks.normalization offers the functions.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, ScalarLike

from numdl import checks
from numdl.networks import _normalizing
from numdl.records import record


@record
class Statistics:
    """Mean and variance of a batch, feature by feature; running ones are the same record."""

    mean: jax.Array  # shape of x without the axes of the examples
    variance: jax.Array  # likewise; divided by the number of entries


def statistics(x: Float[ArrayLike, "..."], *, axis: int | Sequence[int] = 0) -> Statistics:
    """Mean and variance over the examples, as `batch` uses them.

    Parameters
    ----------
    x : array [N, ...]
    axis : int or tuple         the axes of the examples
    Returns
    -------
    Statistics                  shaped like the axes that are left, at least float32
    Raises
    ------
    ValueError, TypeError       no such axis, x empty or not of floating-point numbers
    """
    x, axes, _ = _normalizing.axes(x, axis, 0.0)
    wide = _normalizing.wide(x)
    mean = jnp.mean(wide, axis=axes, keepdims=True)
    return Statistics(jnp.squeeze(mean, axes), jnp.mean((wide - mean) ** 2, axis=axes))


def update(
    running: Statistics, x: Float[ArrayLike, "..."], *, decay: ScalarLike, axis: int | Sequence[int] = 0
) -> Statistics:
    """Running statistics after one more batch.

        decay * running + (1 - decay) * statistics(x)

    Parameters
    ----------
    running : Statistics        shaped like the axes of x that are left
    x : array [N, ...]
    decay : scalar              in [0, 1]
    axis : int or tuple         the axes of the examples
    Returns
    -------
    Statistics
    Raises
    ------
    ValueError, TypeError       statistics of another shape, decay outside of [0, 1], no such axis
    """
    decay = checks.finite("decay", decay, least=0.0, most=1.0, shape=())
    x, axes, _ = _normalizing.axes(x, axis, 0.0)
    running = _known("running", running, _normalizing.outside(x, axes))
    return jax.tree.map(lambda old, new: decay * old + (1 - decay) * new, running, statistics(x, axis=axis))


def normalize(
    x: Float[ArrayLike, "..."],
    known: Statistics,
    gain: Float[ArrayLike, "..."] | None = None,
    bias: Float[ArrayLike, "..."] | None = None,
    *,
    axis: int | Sequence[int] = 0,
    eps: ScalarLike = 1e-5,
) -> Float[Array, "..."]:
    """x normalized with given `Statistics`, frozen or running: an affine map, example by example.

    Parameters
    ----------
    x : array [N, ...]
    known : Statistics          shaped like the axes that are left
    gain, bias : array          likewise; 1 and 0 if None
    axis : int or tuple         the axes of the examples
    eps : scalar                >= 0
    Returns
    -------
    array                       shape and dtype of x
    Raises
    ------
    ValueError, TypeError       another shape, no such axis, eps < 0, x not of floating-point numbers
    """
    x, axes, eps = _normalizing.axes(x, axis, eps)
    outside = _normalizing.outside(x, axes)
    known = _known("known", known, outside)
    gain, bias = _normalizing.scales(gain, bias, outside)
    mean, variance = known.mean, known.variance
    scaled = (_normalizing.wide(x) - jnp.expand_dims(mean, axes)) * _normalizing.inverse_root(
        jnp.expand_dims(variance, axes) + eps
    )
    return _normalizing.scaled_and_shifted(x, scaled, gain, bias, _normalizing.others(x, axes))


def _known(name, known, shape):
    """Statistics of this shape."""
    checks.instance(name, known, Statistics, hint="made by normalization.statistics")
    return Statistics(
        *(
            checks.shape(f"{name}.{field}", checks.floating(f"{name}.{field}", getattr(known, field)), shape)
            for field in ("mean", "variance")
        )
    )
