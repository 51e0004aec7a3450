"""MEASURED kernels' arguments: what is refused before any work, and that a function treats examples one by one."""

import jax
import jax.numpy as jnp
import numpy as np

from numdl import checks, trees
from numdl.analysis.kernels import _cost


def arguments(apply, x1, x2, outputs, method, memory_limit, shapes=False):
    """(apply as a Partial, x1, x2, the limit or None), checked."""
    apply = checks.returning("apply", apply, 2, "apply(params, x)")
    checks.one_of("outputs", outputs, ("mean", "full"))
    checks.one_of("method", method, ("auto", *_cost.METHODS))
    x1 = _examples("x1", x1, shapes)
    if x2 is not None:
        x2 = _examples("x2", x2, shapes)
        if jax.tree.map(_of_one, x1) != jax.tree.map(_of_one, x2):
            raise checks.BadValue(f"x2 must have examples like x1's, {forms(x1)}; got {forms(x2)}")
    limit = None if memory_limit is None else float(checks.positive("memory_limit", memory_limit, shape=()))
    return apply, x1, x2, limit


def _examples(name, x, shapes):
    x = checks.leaves(name, x, shapes=shapes)
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(x)}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise checks.BadValue(f"{name} must hold arrays [N, ...] of one N >= 1; got leading axes {sorted(sizes)}")
    return x


def _of_one(leaf):
    return np.shape(leaf)[1:], str(jnp.result_type(leaf))


def forms(x):
    """One example of x in words."""
    return ", ".join(f"{dtype}{list(shape)}" for shape, dtype in map(_of_one, jax.tree.leaves(x)))


def taken(network, key, x1):
    """Refuse what the network cannot be drawn for, by this function's name for it."""
    try:
        jax.eval_shape(network.init, key, x1)
    except checks.Refused as error:
        raise checks.BadValue(f"x1 must be a batch that the network takes; got {forms(x1)}: {error}") from error


def scales(params, rest, scale):
    """One number for each leaf of what moves, then of what stays; or None."""
    if scale is None:
        return None
    paths = jax.tree_util.tree_flatten_with_path(params)[0]
    if callable(scale):
        found = [scale(trees.name_of(path), leaf) for path, leaf in paths]
    else:
        try:
            found = jax.tree.leaves(jax.tree.map(lambda s, part: jax.tree.map(lambda _: s, part), scale, params))
        except (ValueError, TypeError) as error:
            raise checks.BadValue(
                f"scale must be a prefix of params, or a function; got {jax.tree.structure(scale)} "
                f"where params are {jax.tree.structure(params)}"
            ) from error
    names = [trees.name_of(path) for path, _ in paths]
    if len(found) != len(names):
        raise checks.BadValue(f"scale must have a number for each of {', '.join(names)}; got {len(found)} numbers")
    found = [checks.variance(f"scale of {name}", value, shape=()) for name, value in zip(names, found)]
    copies = {"real": 1, "complex": 2, "kept": 0}
    moving = [value for value, kind in zip(found, rest.kinds, strict=True) for _ in range(copies[kind])]
    return moving + [1.0] * len(rest.kept)


def summed_over(layer):
    """The leaves in a layer's weight that it sums over with data, one or several side by side; no scales."""
    return [leaf for leaf, axes in layer.made_of if axes is None or axes.inputs or axes.window]
