"""MEASURED: neural collapse, NC1 to NC4: how far class means, features and a classifier are from a simplex."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from numdl import _effort, precision
from numdl.records import record


@record
class NeuralCollapse:
    """Distances from collapse; all are 0 when it is complete."""

    within: jax.Array  # []: NC1, tr(S_W S_B^+) / C
    norm_spread: jax.Array  # []: NC2, standard deviation / mean of the class means' lengths
    angle_spread: jax.Array  # []: NC2, standard deviation of the cosines between class means
    angle_gap: jax.Array  # []: NC2, mean |cosine + 1 / (C - 1)|
    weight_norm_spread: jax.Array  # []: NC2 of the classifier's vectors; nan without
    weight_angle_spread: jax.Array  # []
    weight_angle_gap: jax.Array  # []
    duality: jax.Array  # []: NC3, |W / |W| - M / |M||_F ; nan without a classifier
    disagreement: jax.Array  # []: NC4, share of examples where the classifier is not the nearest class mean


@functools.partial(_effort.jit, static_argnames="classes")
def distances(features, labels, weights, bias, classes):
    """The record of features [N, d], labels [N] and a classifier [d, C], [C] or None; all of it checked before."""
    features = features.astype(precision.wide(features.dtype))
    member = jax.nn.one_hot(labels, classes, dtype=features.dtype)
    means = (member.T @ features) / jnp.sum(member, axis=0)[:, None]
    centered = means - jnp.mean(means, axis=0, keepdims=True)
    rest = features - means[labels]
    # S_B = M'M / C has the pseudo-inverse C M^+ M^+': no d x d matrix is made.
    tolerance = max(centered.shape) * float(jnp.finfo(features.dtype).eps)
    inverse = jnp.linalg.pinv(centered, rtol=tolerance)  # [d, C]
    within = jnp.sum((rest @ inverse) ** 2) / features.shape[0]
    spread = _simplex(centered)
    nan = jnp.full((), jnp.nan, features.dtype)
    if weights is None:
        return NeuralCollapse(within, *spread, nan, nan, nan, nan, nan)
    rows = weights.T.astype(features.dtype)
    duality = jnp.linalg.norm(rows / jnp.linalg.norm(rows) - centered / jnp.linalg.norm(centered))
    outputs = features @ rows.T
    outputs = outputs if bias is None else outputs + bias[None, :].astype(features.dtype)
    nearest = jnp.argmin(jnp.sum(means**2, axis=1)[None, :] - 2 * features @ means.T, axis=1)
    differ = jnp.mean(jnp.argmax(outputs, axis=1) != nearest, dtype=features.dtype)
    return NeuralCollapse(within, *spread, *_simplex(rows - jnp.mean(rows, axis=0, keepdims=True)), duality, differ)


def _simplex(vectors):
    """Spread of lengths, spread of cosines, mean distance of the cosines from -1 / (C - 1)."""
    count = vectors.shape[0]
    lengths = jnp.linalg.norm(vectors, axis=1)
    unit = vectors / lengths[:, None]
    cosines = (unit @ unit.T)[np.triu_indices(count, 1)]
    return jnp.std(lengths) / jnp.mean(lengths), jnp.std(cosines), jnp.mean(jnp.abs(cosines + 1 / (count - 1)))
