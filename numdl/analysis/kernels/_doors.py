"""MEASURED kernels' arguments: what is refused before any work, and that a function treats examples one by one."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from numdl import checks, trees
from numdl.analysis.kernels import _cost


def arguments(apply, x1, x2, outputs, method, memory_limit):
    """(apply as a Partial, x1, x2, the limit or None), checked."""
    apply = checks.returning("apply", apply, 2, "apply(params, x)")
    checks.one_of("outputs", outputs, ("mean", "full"))
    checks.one_of("method", method, ("auto", *_cost.METHODS))
    x1 = _examples("x1", x1)
    if x2 is not None:
        x2 = _examples("x2", x2)
        if jax.tree.map(_of_one, x1) != jax.tree.map(_of_one, x2):
            raise checks.BadValue(f"x2 must have examples like x1's, {forms(x1)}; got {forms(x2)}")
    limit = None if memory_limit is None else float(checks.positive("memory_limit", memory_limit, shape=()))
    return apply, x1, x2, limit


def _examples(name, x):
    x = checks.leaves(name, x)
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(x)}
    if len(sizes) != 1 or sizes & {(), (0,)}:
        raise checks.BadValue(f"{name} must hold arrays [N, ...] of one N >= 1; got leading axes {sorted(sizes)}")
    return x


def one_by_one(apply, moving, rest, x1, x2):
    """Refuse a function whose outputs for an example depend on the other examples: no kernel of examples exists."""
    for name, x in (("x1", x1), ("x2", x2)):
        if x is None or isinstance(jax.tree.leaves((moving, x))[0], jax.core.Tracer):
            continue
        apart, size, eps = map(float, jax.device_get(_coupling(apply, moving, rest, x)))
        if apart > 10 * eps**0.5 * size:
            raise checks.BadValue(
                f"apply must treat the examples one by one; got outputs on {name} that differ by {apart:.3g} "
                f"(their size: {size:.3g}) when each example is alone: freeze batch statistics"
            )


@jax.jit
def _coupling(apply, moving, rest, x):
    """(largest difference of outputs together and alone, largest output, rounding unit), block by block."""
    params = rest.params(moving)

    def one(block):
        together = apply(params, block)
        alone = jax.vmap(lambda x: apply(params, jax.tree.map(lambda leaf: leaf[None], x))[0])(block)
        return jnp.max(jnp.abs(together - alone)), jnp.max(jnp.abs(alone))

    count = min(len(jax.tree.leaves(x)[0]), 32)
    apart, size = lax.map(one, in_blocks(x, count))
    return jnp.max(apart), jnp.max(size), jnp.finfo(size.dtype).eps


def _of_one(leaf):
    return np.shape(leaf)[1:], str(jnp.result_type(leaf))


def forms(x):
    """One example of x in words."""
    return ", ".join(f"{dtype}{list(shape)}" for shape, dtype in map(_of_one, jax.tree.leaves(x)))


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


def in_blocks(x, size):
    """[blocks, size, ...], the last block filled up with the first examples."""
    return jax.tree.map(lambda leaf: _fill(leaf, size).reshape(-1, size, *leaf.shape[1:]), x)


def _fill(leaf, size):
    missing = -len(leaf) % size
    return jnp.take(leaf, np.arange(len(leaf) + missing) % len(leaf), axis=0) if missing else leaf
