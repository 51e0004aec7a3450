"""A new start: weights with theory's critical variance, or scaled layer by layer until each hands on unit size.

Source: Mishkin & Matas 2016, arXiv:1511.06422, for layer-sequential scaling; Zhang, Dauphin, Ma 2019, arXiv:1901.09321,
for branches divided by the root of their number; Pennington, Schoenholz, Ganguli 2017, arXiv:1711.04735, for orthogonal
matrices where many layers saturate; Balduzzi et al. 2017, arXiv:1702.08591, whose "looks linear" start, and Burkholz,
Dubatovka 2019, NeurIPS 32, 2385, whose shared weights the pairs of units are. Behind a function that is not 0 at 0 (a
sigmoid) most of a state is the same for all examples: weights that sum to zero leave it out, and the variance
1 / f'(0)^2 hands on what differs.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numdl import _random, tracing, trees
from numdl.audit.evidence import Evidence
from numdl.tracing._paths import paths
from numdl.tracing._uses import scans_over

MOST_SCALED = 300  # weights: a run for each; of more, only the branches are divided
LEAST, LEAST_CRITICAL = 0.2, 0.02  # sizes of states that are left as they are
RECTIFIERS = ("relu", "relu6", "leaky_relu", "gelu", "silu", "elu")
SHUT = 0.1  # of the examples at each unit of a start with open rectifiers
ADDED = "bias: elementwise sum"  # how `tracing` says that a leaf is added to a state


def fresh(
    case: Any, evidence: Evidence, depth_scaled: bool = False, draw: int = 0, orthogonal: bool = False
) -> tuple[Any, str]:
    """(moving parameters drawn anew, what was done): critical variance, then unit size from layer to layer.

    Parameters
    ----------
    case : Case                 whose network it is
    evidence : Evidence         its layers and theory's critical variance
    depth_scaled : bool         divide the layers that end a residual branch by the root of their number
    draw : int                  another number, other weights
    orthogonal : bool           matrices with equal singular values instead of independent entries
    """
    traced = _traced(case, case.moving)
    if traced is None:
        return None, ""
    critical = evidence.predicted.start_variance
    names = trees.names(case.moving)
    leaves = dict(zip(names, jax.tree.leaves(case.moving), strict=True))
    keys = dict(zip(names, jax.random.split(jax.random.fold_in(case.key, 7 + draw), len(names))))
    last = traced.layers[-1].leaf if traced.layers else None
    done, centred = set(), evidence.predicted.centred_variance
    walked = paths(traced.program, traced.layers, traced.parameters)
    made = walked.paths
    for i, layer in enumerate(traced.layers):
        name = layer.leaf
        if name is None or name in done or name not in leaves:
            continue
        outer = name == last or (i in made and made[i].starts)  # read by no layer, or reading the inputs
        gain = 1.0 if name == last else _gain(layer, critical, centred, outer)
        leaves[name] = _drawn(keys[name], leaves[name], layer, gain, orthogonal, np.isfinite(centred) and not outer)
        done.add(name)
    leaves |= {name: jnp.zeros_like(leaves[name]) for name in _biases(traced, walked, leaves) if name not in done}
    moving = jax.tree.unflatten(jax.tree.structure(case.moving), [leaves[name] for name in names])
    ends = _branch_ends(evidence.chain) if depth_scaled else set()
    # At theory's variance states shrink as a power of the depth, as they should: size one would be chaos.
    least = LEAST_CRITICAL if np.isfinite(critical) else LEAST
    moving, scaled = _unit(dataclasses.replace(case, moving=moving), traced, names, ends, least)
    if np.isfinite(centred):
        law = f"{centred:.3g} / fan_in behind the first layer, where each unit's add up to 0"
    elif np.isfinite(critical):
        law = f"{critical:.3g} / fan_in"
    else:
        law = "2 / fan_in before rectifiers and 1 / fan_in elsewhere"
    text = f"weights: drawn anew{', orthogonal,' * orthogonal} with variance {law}"
    text += ", then scaled layer by layer to states of size one" * scaled
    return moving, text + f", those of the {len(ends)} branches to 1 / sqrt({len(ends)})" * bool(ends) + "; biases 0"


def _traced(case, moving):
    """The network with these parameters, layer by layer; None where it cannot be followed."""
    try:
        return tracing.trace(case.plain, moving, case.x)
    except (ValueError, TypeError):
        return None


def _biases(traced, walked, leaves):
    """Leaves that are only added: a vector at each step of the scans over it, or as wide as a layer's units (heads)."""
    behind = {fixed.leaf for added in walked.biases.values() for fixed in added if fixed.made == "leaf"}
    known = {}
    for name, uses, slot in zip(traced.parameters, traced.uses, traced.program.inputs, strict=False):
        axes = leaves[name].ndim - scans_over(traced.program, slot, known)
        if uses and all(use.endswith(ADDED) for use in uses) and (axes <= 1 or name in behind):
            yield name


def opened(case: Any, moving: Any) -> tuple[Any, str]:
    """(parameters whose rectifiers let nine tenths of the examples pass, what was done); (None, "") where none can.

    From layer to layer the weight is divided by the deviation of what it makes, then its bias is set. Nearly linear at
    the start: where a few units are rectified again and again at half of their range, nothing arrives.

    Parameters
    ----------
    case : Case                 whose network it is
    moving : pytree             parameters to begin with; orthogonal weights come through best
    """
    traced = _traced(case, moving)
    if traced is None:
        return None, ""
    names = trees.names(moving)
    leaves, structure = jax.tree.flatten(moving)
    own = paths(traced.program, traced.layers, traced.parameters).biases
    places = list(_places(traced, names))[:-1]
    if not 0 < len(places) <= MOST_SCALED or not all(_opens(traced.layers[i], own.get(i, ())) for _, i, *_ in places):
        return None, ""
    for _, i, steps, at, part in places:
        bias = names.index(own[i][0].leaf)
        found = case.run(_spans_of_states, jax.tree.unflatten(structure, leaves), case.x)[i]
        deviation, low = (np.asarray(leaf)[steps] for leaf in found)
        size = float(deviation)
        here = part if leaves[bias].ndim > 1 else (slice(None),)
        if not (np.isfinite(size) and size > 0) or leaves[bias][here].shape != low.shape:
            return None, ""
        leaves[at] = leaves[at].at[part].set((leaves[at][part] / size).astype(leaves[at].dtype))
        shift = (leaves[bias][here] - low) / size
        leaves[bias] = leaves[bias].at[here].set(shift.astype(leaves[bias].dtype))
    return jax.tree.unflatten(structure, leaves), f"biases so that {1 - SHUT:.0%} of the examples pass each rectifier"


def mirrored(case: Any) -> tuple[Any, str]:
    """(parameters whose units come in pairs of opposite signs, what was done); (None, "") where they cannot.

    A layer that reads f(z) and f(-z) with opposite weights sees their difference alone: z where f is a rectifier or
    softplus, an odd function for any f. With orthogonal weights the network is linear at the start and keeps all it
    is given, whatever its depth; an odd unit is left at zero.

    Parameters
    ----------
    case : Case                 whose network it is
    """
    traced = _traced(case, case.moving)
    if traced is None:
        return None, ""
    names = trees.names(case.moving)
    leaves = dict(zip(names, jax.tree.leaves(case.moving), strict=True))
    keys = dict(zip(names, jax.random.split(jax.random.fold_in(case.key, 11), len(names))))
    walked, own = paths(traced.program, traced.layers, traced.parameters), {}
    for i, layer in enumerate(traced.layers):
        if layer.leaf in own or layer.leaf is None:
            continue
        if layer.leaf not in leaves or not _is_plain(layer, leaves[layer.leaf]):
            return None, ""
        own[layer.leaf] = i
    if len(own) < 3:
        return None, ""
    for name, i in own.items():
        first = i in walked.paths and walked.paths[i].starts
        leaves[name] = _paired(keys[name], leaves[name], traced.layers[i].leaf_axes, first, i == len(traced.layers) - 1)
    leaves |= {name: jnp.zeros_like(leaves[name]) for name in _biases(traced, walked, leaves) if name not in own}
    moving = jax.tree.unflatten(jax.tree.structure(case.moving), [leaves[name] for name in names])
    moving, scaled = _unit(dataclasses.replace(case, moving=moving), traced, names, set(), LEAST)
    text = "weights: drawn anew, orthogonal, units in pairs of opposite signs, so that the network is linear at first"
    return moving, text + ", then scaled layer by layer to states of size one" * scaled + "; biases 0"


def _is_plain(layer, leaf):
    """Whether one axis is summed over and one makes the units."""
    axes = layer.leaf_axes
    known = axes is not None and layer.kind in ("dense", "conv") and axes.feature_groups == 1 and not axes.groups
    whole = known and len(axes.inputs) == len(axes.outputs) == 1 and not axes.others
    return whole and all(leaf.shape[axis] == 1 for axis in _idle(axes, leaf))


def _idle(axes, leaf):
    """Axes without a role: of length 1, dropped by a reshape, as of a stack of one."""
    return sorted(set(range(leaf.ndim)) - {*axes.steps, *axes.window, *axes.inputs, *axes.outputs})


def _paired(key, leaf, axes, first, last):
    """Orthogonal weights between pairs of inputs (unless they are the first) and pairs of units (unless the last)."""
    over = (*_idle(axes, leaf), *axes.steps)
    order = (*over, *axes.window, *axes.inputs, *axes.outputs)
    shape = [leaf.shape[axis] for axis in order]
    *lead, rows, columns = shape
    m, n = (rows if first else max(rows // 2, 1)), (columns if last else max(columns // 2, 1))
    steps = lead[: len(over)]
    block = math.sqrt(max(m, n) / m) * _random.orthogonal(key, max(m, n), tuple(steps), jnp.float32)[..., :m, :n]
    block = block if last else jnp.concatenate([block, -block], -1)[..., :columns]
    block = block if first else jnp.concatenate([block, -block], -2)[..., :rows, :]
    block = jnp.pad(block, [(0, 0)] * len(steps) + [(0, rows - block.shape[-2]), (0, columns - block.shape[-1])])
    middle = tuple(leaf.shape[axis] // 2 for axis in axes.window)
    found = jnp.zeros(shape, jnp.float32).at[(*[slice(None)] * len(steps), *middle)].set(block)
    return jnp.transpose(found, np.argsort(order)).astype(leaf.dtype)


def _opens(layer, added):
    """Whether one bias of its own moves the units of this layer, a rectifier behind them."""
    whole = len(added) == 1 and added[0].made == "leaf" and layer.units is not None
    return whole and layer.nonlinearity in ("relu", "gelu", "silu")


def _spans_of_states(form, moving, x):
    def visit(layer, state, given):
        wide = state.astype(jnp.float32)
        rest = tuple(axis for axis in range(wide.ndim) if axis not in (layer.units or ()))
        spread = jnp.sqrt(jnp.mean(jnp.square(wide - jnp.mean(wide, rest, keepdims=True))))
        return state, (spread, jnp.quantile(wide, SHUT, axis=rest).reshape(-1))

    return tracing.trace(form.plain, moving, x).run(moving, x, visit=visit)[1]


def _branch_ends(chain):
    """Names of the weights behind which an earlier state is added."""
    if chain is None:
        return set()
    skips = [any("skip" in text for text in texts) for texts in chain.breaks]
    return {before for before, skip in zip(chain.names, skips[1:]) if skip}


def _gain(layer, critical, centred, first):
    if np.isfinite(centred):
        return 1.0 if first else centred
    if np.isfinite(critical):
        return critical
    return 2.0 if layer.nonlinearity in RECTIFIERS else 1.0


def _drawn(key, leaf, layer, gain, orthogonal, sums):
    """Orthogonal for the square weight of a recurrence, and for matrices where it is asked for; Gaussian else."""
    axes = layer.leaf_axes
    stacked = axes.steps if axes else ()
    recurrent = bool(layer.steps) and not stacked and leaf.ndim == 2 and leaf.shape[0] == leaf.shape[1]
    matrices = leaf.ndim >= 2 and stacked == tuple(range(leaf.ndim - 2)) and layer.fan_in in leaf.shape[-2:]
    if recurrent or (orthogonal and matrices):
        *lead, m, n = leaf.shape
        size = 1.0 if recurrent and not sums else math.sqrt(gain * max(m, n) / layer.fan_in)
        found = size * _random.orthogonal(key, m, tuple(lead), jnp.float32, n)
    else:
        found = math.sqrt(gain / max(layer.fan_in, 1)) * _random.normal(key, leaf.shape, jnp.float32)
    if sums and axes:
        found -= jnp.mean(found, (*axes.inputs, *axes.window), keepdims=True)
    return found.astype(leaf.dtype)


def _unit(case, traced, names, ends, least):
    """(parameters, whether it was needed): weights divided by their states' sizes, in the order of the call."""
    order = list(_places(traced, names))
    if len(order) < 2:
        return case.moving, False
    found = case.run(_rms_of_states, case.moving, case.x)
    if all(least < size < 5 for place in order[:-1] if np.isfinite(size := _size(found, place))) and not ends:
        return case.moving, False
    leaves, structure = jax.tree.flatten(case.moving)
    leaves = list(leaves)
    branch = 1 / math.sqrt(max(len(ends), 1))
    for place in order[:-1]:
        name, _, _, at, part = place
        goal, size = branch if name in ends else 1.0, 1.0
        if len(order) <= MOST_SCALED:
            size = _size(case.run(_rms_of_states, jax.tree.unflatten(structure, leaves), case.x), place)
        if np.isfinite(size) and size > 0:
            changed = (leaves[at][part] * (goal / size)).astype(leaves[at].dtype)
            leaves[at] = leaves[at].at[part].set(changed)
    return jax.tree.unflatten(structure, leaves), True


def _places(traced, names):
    """(name, layer, steps, leaf, part of the leaf) of every weight of its own, in the order of the call.

    A weight that every step of a scan uses has one place; one of a stack that an index takes has none.
    """
    seen = set()
    for name, i, steps in traced.entries:
        layer = traced.layers[i]
        if layer.leaf not in names or layer.kind not in ("dense", "conv"):
            continue
        stacked = layer.leaf_axes.steps if layer.leaf_axes else ()
        if len(stacked) not in (0, len(steps)):
            continue
        part = [slice(None)] * (max(stacked, default=-1) + 1)
        for axis, step in zip(stacked, steps, strict=False):
            part[axis] = step
        which = layer.leaf, steps if stacked else ()
        if which not in seen:
            seen.add(which)
            yield name, i, which[1], names.index(layer.leaf), tuple(part)


def _size(sizes, place):
    """Of the state behind a weight; the largest where the weight serves every step of a scan."""
    _, i, steps, _, _ = place
    of_layer = np.asarray(sizes[i])
    return float(of_layer[steps] if steps else np.max(of_layer))


def _rms_of_states(form, moving, x):
    visit = lambda layer, state, given: (state, jnp.sqrt(jnp.mean(jnp.square(state.astype(jnp.float32)))))  # noqa: E731
    return tracing.trace(form.plain, moving, x).run(moving, x, visit=visit)[1]
