"""What the stages of a network bind, and how their parameters are drawn: kernels layer by layer, all biases at once."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from numdl import trees
from numdl._compiled import jit
from numdl.networks import _affine, _skips, fields
from numdl.networks.initializers import Initializer
from numdl.ode import schemes
from numdl.records import record, static


@record
class Settings:
    """What a builder binds: static choices, and numbers that are data of a compiled function."""

    widths: tuple = static()  # input, one for each stage, outputs
    depths: tuple = static()  # steps of each stage
    window: tuple = static()  # () dense, (height, width) convolutional
    pool: int = static()
    scheme: schemes.Scheme = static()
    field: object = static()
    layouts: tuple = static()  # for each stage {name: (shape, who draws it)}, nested for pairs, as sorted items
    pair: bool = static()  # the state is (q, p), side by side in the last axis
    interpolation: str = static()
    adjoint: object = static()
    connector: str = static()
    dtype: object = static()
    weights: Initializer
    second_weights: Initializer
    connector_weights: Initializer
    readout_weights: Initializer
    bias_variance: float
    step: object  # h, or None
    time: object  # T of each stage, or None
    damping: object  # or None
    skip: str = static()  # of `_skips.SKIPS`: what the number of blocks does to their weights


@functools.partial(jit, static_argnames="dtype")
def draw(settings, key, dtype):
    """Parameters of all stages at random, as `stages` lays them out."""
    bias_key, *keys = jax.random.split(key, 2 * len(settings.depths) + 2)
    connectors, blocks = [], []
    for stage, depth in enumerate(settings.depths):
        connectors.append(_draw_connector(settings, keys[2 * stage], stage, dtype))
        blocks.append(_draw_blocks(settings, keys[2 * stage + 1], stage, depth, dtype))
    readout = {"kernel": (settings.widths[-2:], "readout_weights"), "bias": (settings.widths[-1:], fields.BIAS)}
    readout = _draw_leaves(settings, keys[-1], readout, dtype)
    params = {"connectors": tuple(connectors), "blocks": tuple(blocks), "readout": readout}
    return _draw_biases(settings, bias_key, params)


def _draw_connector(settings, key, stage, dtype):
    n, m = settings.widths[stage : stage + 2]
    if n == m or settings.connector == "pad":
        return {}
    leaves = {"kernel": ((*settings.window, n, m), "connector_weights"), "bias": ((m,), fields.BIAS)}
    return _draw_leaves(settings, key, leaves, dtype)


def _draw_blocks(settings, key, stage, depth, dtype):
    entries = depth + (settings.interpolation == "linear")
    leaves = _thaw(settings.layouts[stage])
    # A map, not a vmap: small draws stay in the cache.
    return lax.map(lambda k: _draw_leaves(settings, k, leaves, dtype), jax.random.split(key, entries))


def _draw_leaves(settings, key, leaves, dtype):
    keys = jax.random.split(key, len(leaves))
    return {
        name: _draw_leaves(settings, k, leaf, dtype)
        if isinstance(leaf, dict)
        else _draw_leaf(settings, k, *leaf, dtype)
        for k, (name, leaf) in zip(keys, sorted(leaves.items()), strict=True)
    }


def _draw_leaf(settings, key, shape, who, dtype):
    if who in (fields.BIAS, fields.ZEROS, fields.ONES):
        return jnp.full(shape, 1 if who == fields.ONES else 0, dtype)
    _, _, *gains = _skips.SKIPS[settings.skip](sum(settings.depths), 1)
    gains = dict(zip((fields.WEIGHTS, fields.SECOND), gains, strict=True))
    weights = getattr(settings, who).sample(key, shape, dtype)
    return weights * jnp.asarray(gains[who], dtype) if who in gains else weights


def _draw_biases(settings, key, params):
    """All biases, zeros so far, from one draw."""
    flat, structure = jax.tree_util.tree_flatten_with_path(params)
    drawn = [leaf for path, leaf in flat if _is_bias(path)]
    variances = [settings.bias_variance] * len(drawn)
    biases = iter(_affine.biases(key, [leaf.shape for leaf in drawn], variances, drawn[0].dtype))
    return jax.tree.unflatten(structure, [next(biases) if _is_bias(path) else leaf for path, leaf in flat])


def _is_bias(path):
    return trees.name_of(path).endswith("bias")


def freeze(leaves):
    """Dictionaries as sorted items: hashable, for the static part of a pytree."""
    return tuple((name, freeze(leaf) if isinstance(leaf, dict) else leaf) for name, leaf in sorted(leaves.items()))


def _thaw(items):
    return {name: leaf if isinstance(leaf[-1], str) else _thaw(leaf) for name, leaf in items}
