"""MEASURED: examples in blocks, and whether a function treats them one by one."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from numdl import checks
from numdl._compiled import jit


def one_by_one(function, apply, moving, rest, **inputs):
    """Refuse a function, by its name, whose outputs for an example depend on the others among these inputs."""
    for name, x in inputs.items():
        if x is None or isinstance(jax.tree.leaves((moving, x))[0], jax.core.Tracer):
            continue
        apart, size, eps = map(float, jax.device_get(_coupling(apply, moving, rest, x)))
        if apart > 10 * eps**0.5 * size:
            raise checks.BadValue(
                f"{function} must treat the examples one by one; got outputs on {name} that differ by {apart:.3g} "
                f"(their size: {size:.3g}) when each example is alone: freeze batch statistics"
            )


@jit
def _coupling(apply, moving, rest, x):
    """(largest difference of outputs together and alone, largest output, rounding unit), block by block."""
    params = rest.params(moving)

    def one(block):
        together = apply(params, block)
        alone = jax.vmap(lambda x: apply(params, jax.tree.map(lambda leaf: leaf[None], x))[0])(block)
        return jnp.max(jnp.abs(together - alone), initial=0.0), jnp.max(jnp.abs(alone), initial=0.0)

    count = min(len(jax.tree.leaves(x)[0]), 32)
    apart, size = lax.map(one, in_blocks(x, count))
    return jnp.max(apart), jnp.max(size), jnp.finfo(size.dtype).eps


def in_blocks(x, size):
    """[blocks, size, ...], the last block filled up with the first examples."""
    return jax.tree.map(lambda leaf: _fill(leaf, size).reshape(-(-len(leaf) // size), size, *leaf.shape[1:]), x)


def _fill(leaf, size):
    missing = -len(leaf) % size
    return jnp.take(leaf, np.arange(len(leaf) + missing) % len(leaf), axis=0) if missing else leaf
