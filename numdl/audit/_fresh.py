"""A new start: weights with theory's critical variance, or scaled layer by layer until each hands on unit size.

Source: Mishkin & Matas 2016, arXiv:1511.06422, for layer-sequential scaling; Zhang, Dauphin, Ma 2019, arXiv:1901.09321,
for branches divided by the root of their number.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numdl import tracing, trees
from numdl.audit.evidence import Evidence

ADDED = "bias: elementwise sum"  # how `tracing` says that a leaf is added to a state


def fresh(case: Any, evidence: Evidence, depth_scaled: bool = False, draw: int = 0) -> tuple[Any, str]:
    """(moving parameters drawn anew, what was done): critical variance, then unit size from layer to layer.

    Parameters
    ----------
    case : Case                 whose network it is
    evidence : Evidence         its layers and theory's critical variance
    depth_scaled : bool         divide the layers that end a residual branch by the root of their number
    draw : int                  another number, other weights
    """
    try:
        traced = tracing.trace(case.plain, case.moving, case.x)
    except (ValueError, TypeError):
        return None, ""
    critical = evidence.predicted.critical_weight_variance
    names = trees.names(case.moving)
    leaves = dict(zip(names, jax.tree.leaves(case.moving), strict=True))
    keys = dict(zip(names, jax.random.split(jax.random.fold_in(case.key, 7 + draw), len(names))))
    last = traced.layers[-1].leaf if traced.layers else None
    done = set()
    for layer in traced.layers:
        name, axes = layer.leaf, layer.leaf_axes
        if name is None or name in done or name not in leaves:
            continue
        done.add(name)
        gain = 1.0 if name == last else _gain(layer, critical)
        leaves[name] = _drawn(keys[name], leaves[name], axes, layer, gain)
    for name, uses in zip(traced.parameters, traced.uses, strict=True):
        if name not in done and leaves[name].ndim <= 1 and uses and all(use.endswith(ADDED) for use in uses):
            leaves[name] = jnp.zeros_like(leaves[name])
    moving = jax.tree.unflatten(jax.tree.structure(case.moving), [leaves[name] for name in names])
    ends = _branch_ends(evidence.chain) if depth_scaled else set()
    moving, scaled = _unit(dataclasses.replace(case, moving=moving), traced, names, ends)
    text = "weights: drawn anew with variance " + (
        f"{critical:.3g} / fan_in" if np.isfinite(critical) else "2 / fan_in before rectifiers and 1 / fan_in elsewhere"
    )
    return moving, text + (", then scaled layer by layer to states of size one" if scaled else "") + "; biases 0"


def _branch_ends(chain):
    """Names of the weights behind which an earlier state is added."""
    if chain is None:
        return set()
    skips = [any("skip" in text for text in texts) for texts in chain.breaks]
    return {before for before, skip in zip(chain.names, skips[1:]) if skip}


def _gain(layer, critical):
    if layer.nonlinearity in ("relu", "relu6", "leaky_relu", "gelu", "silu", "elu"):
        return 2.0
    return critical if np.isfinite(critical) and layer.nonlinearity else 1.0


def _drawn(key, leaf, axes, layer, gain):
    """Orthogonal for the square weight of a recurrence, Gaussian else."""
    if layer.steps and not (axes and axes.steps) and leaf.ndim == 2 and leaf.shape[0] == leaf.shape[1]:
        q, r = jnp.linalg.qr(jax.random.normal(key, leaf.shape, jnp.float32))
        return (q * jnp.sign(jnp.diagonal(r))).astype(leaf.dtype)
    deviation = math.sqrt(gain / max(layer.fan_in, 1))
    return (deviation * jax.random.normal(key, leaf.shape, jnp.float32)).astype(leaf.dtype)


def _unit(case, traced, names, ends):
    """(parameters, whether it was needed): weights divided by their states' sizes, in the order of the call."""
    seen, order = set(), []
    for i, layer in enumerate(traced.layers):
        if layer.leaf in names and layer.leaf not in seen and layer.kind in ("dense", "conv"):
            seen.add(layer.leaf)
            order.append((i, names.index(layer.leaf)))
    if len(order) < 2:
        return case.moving, False
    sizes = np.asarray(case.run(_rms_of_states, case.moving, case.x))
    inner = [sizes[i] for i, _ in order[:-1]]
    if all(0.2 < size < 5 for size in inner if np.isfinite(size)) and not ends:
        return case.moving, False
    leaves, structure = jax.tree.flatten(case.moving)
    leaves = list(leaves)
    branch = 1 / math.sqrt(max(len(ends), 1))
    for i, at in order[:-1]:
        moving = jax.tree.unflatten(structure, leaves)
        size = float(case.run(_rms_of_states, moving, case.x)[i])
        if np.isfinite(size) and size > 0:
            goal = branch if traced.layers[i].name in ends else 1.0
            leaves[at] = (leaves[at] * (goal / size)).astype(leaves[at].dtype)
    return jax.tree.unflatten(structure, leaves), True


def _rms_of_states(form, moving, x):
    visit = lambda layer, state, given: (state, jnp.sqrt(jnp.mean(jnp.square(state.astype(jnp.float32)))))  # noqa: E731
    found = tracing.trace(form.plain, moving, x).run(moving, x, visit=visit)[1]
    return jnp.stack([jnp.max(jnp.asarray(value)) for value in found])
