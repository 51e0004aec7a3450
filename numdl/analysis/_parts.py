"""MEASURED along directions in params: those that a caller hands over, and those that are handed back.

Inside, a vector is the moving part that `trees.trainable` gives; outside it is a tree like params, 0 where nothing
moves.
"""

import jax
import jax.numpy as jnp
import numpy as np

from numdl import checks, trees
from numdl._compiled import jit


def loss_of(loss, rest):
    """loss(params, batch) as a function of the moving part."""
    return lambda moving, batch: loss(rest.params(moving), batch)


def opened(loss, params, batch, frozen, name="params"):
    """(loss as a Partial, what moves, the rest, data), checked."""
    given, loss = loss, checks.returning("loss", loss, 2, "loss(params, batch)", scalar=True)
    moving, rest = trees.trainable(params, frozen=frozen, name=name)
    batch = data("batch", batch)
    key = ("loss", checks.forms(moving, rest, batch))
    checks.once(given, key, lambda: jax.eval_shape(_value, loss, moving, rest, batch))  # whether it is a loss
    return loss, moving, rest, batch


def inward(name, tree, expected, rest, moving, *, of="params"):
    """The moving part of a tree like `expected`, in the dtypes of `moving`."""
    return cast(name, rest.moving(checks.like(name, tree, expected, of=of)), moving)


def inward_rows(name, tree, expected, rest, moving):
    """The moving part of trees like `expected` along one leading axis."""
    leaves = jax.tree.leaves(checks.leaves(name, tree))
    counts = {np.shape(leaf)[:1] for leaf in leaves}
    if len(counts) != 1 or counts & {(), (0,)}:
        raise checks.BadValue(
            f"{name} must be like params with one leading axis k >= 1 on every leaf; got leading axes {sorted(counts)}"
        )
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf)[1:], leaf.dtype), tree)
    checks.like(name, shapes, expected, of="with a leading axis, params", shapes=True)
    return cast(name, rest.moving(jax.tree.map(lambda leaf: checks.native(name, leaf), tree)), moving)


def data(name, batch):
    """The data of a loss: any pytree of arrays and numbers, native and not masked."""
    paths = jax.tree_util.tree_map_with_path
    return paths(lambda path, leaf: checks.leaf(f"{name}{jax.tree_util.keystr(path)}", leaf), batch)


def outward(moving, rest, lead=()):
    """The tree like params of a moving part whose leaves have the leading axes `lead`: 0 where nothing moves."""
    return trees.Rest(tuple(_still(leaf, lead) for leaf in rest.kept), rest.structure, rest.kinds).params(moving)


def _still(leaf, lead):
    key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended)
    return np.zeros((*lead, *np.shape(leaf)), jax.dtypes.float0 if key else leaf.dtype)


def cast(name, part, moving):
    """Coordinates in the dtypes of `moving`; complex ones are refused."""

    def one(v, leaf):
        if jnp.iscomplexobj(v):
            raise checks.BadType(f"{name} must be real where params are real; got dtype {v.dtype}, shape {v.shape}")
        return jnp.asarray(v, leaf.dtype)

    return jax.tree.map(one, part, moving)


@jit
def _value(loss, moving, rest, batch):
    return loss(rest.params(moving), batch)
