"""Affine maps of inputs and targets: shift and scale, always both and both like the tree that they change."""

import jax
import jax.numpy as jnp
import numpy as np


def columns(x):
    """(shift, scale) that give each column of the floating inputs mean 0 and deviation 1.

    A column that hardly varies, beside most of the others or its own mean's rounding, is scaled as the others are.
    """

    def of(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return np.zeros(()), np.ones(())
        wide = np.asarray(leaf, np.float64)
        wide = np.where(np.isfinite(wide), wide, np.nan)
        axes = 0 if wide.ndim <= 2 else tuple(range(wide.ndim - 1))
        mean, deviation = np.nanmean(wide, axes), np.nanstd(wide, axes)
        varies = deviation > 4 * float(jnp.finfo(leaf.dtype).eps) * np.abs(mean)
        usual = float(np.quantile(deviation[varies], 0.25, method="lower")) if np.any(varies) else 1.0
        scale = 1 / np.where(varies & (deviation > 1e-3 * usual), deviation, usual)
        return np.asarray(mean, leaf.dtype), np.asarray(scale, leaf.dtype)

    return _pairs(of, x)


def whole(y, target=0):
    """(shift, scale) that give the leaf with this number mean 0 and deviation 1; whole numbers become floating ones."""

    def of(leaf):
        dtype = leaf.dtype if jnp.issubdtype(leaf.dtype, jnp.floating) else np.float32
        wide = np.asarray(leaf, np.float64)
        scale = 1 / max(float(np.nanstd(wide)), 1e-12)
        return np.asarray(np.nanmean(wide, 0), dtype), np.asarray(scale, dtype)

    return _pairs(of, y, target)


def labels(y, low, width, target=0):
    """(shift, scale) that make `low` 0, and what lies `width` above it 1, of the leaf with this number."""
    return _pairs(lambda leaf: (np.asarray(low, leaf.dtype), np.asarray(1 / width)), y, target)


def moved(tree, shift, scale):
    """(leaf - shift) * scale in the dtype of the shift."""

    def of(leaf, m, s):
        if not np.any(m) and np.all(s == 1):
            return leaf
        return ((np.asarray(leaf) - m) * s).astype(m.dtype)

    return jax.tree.map(of, tree, shift, scale)


def _pairs(of, tree, target=None):
    """What `of` says of each leaf, or of the one with this number, and nothing of the others."""
    leaves, structure = jax.tree.flatten(tree)
    pairs = [of(leaf) if target in (None, i) else (np.zeros(()), np.ones(())) for i, leaf in enumerate(leaves)]
    return tuple(jax.tree.unflatten(structure, [pair[i] for pair in pairs]) for i in (0, 1))
