"""MEASURED: the weights of a model: as a call uses them, as they are stored, or as a framework would draw them."""

import dataclasses
import fnmatch
import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from numdl import trees
from numdl.analysis import layers
from numdl.analysis.laws import Defaults, identify


@dataclasses.dataclass(frozen=True)
class Weight:
    """One weight: its fans, the variance of an entry, the bias beside it, the laws that fit."""

    name: str
    shape: tuple
    features: tuple  # in, out: without the window of a kernel
    fan_in: int
    fan_out: int
    variance: float  # of an entry
    bias_variance: float
    laws: tuple  # that fit


def from_defaults(params):
    """Of one Defaults or a sequence of them, a list of Weight; None for anything else."""
    listed = params if isinstance(params, list | tuple) else [params]
    if not listed or not all(isinstance(one, Defaults) for one in listed):
        return None
    return [
        _default(f"{i}/{one.framework} {one.layer}/{name}", one, part)
        for i, one in enumerate(listed)
        for part, name in enumerate(one.names)
    ]


def from_leaves(params, transposed, stacked):
    """Of the leaves with two axes or more, in the natural order of their names."""
    leaves = _leaves(params)
    found = []
    for name, leaf in leaves.items():
        steps = list(enumerate(leaf)) if _matches(name, stacked) and leaf.ndim > 2 else [(None, leaf)]
        for step, weight in steps:
            if weight.ndim < 2 or _is_bias(name):
                continue
            turned = _matches(name, transposed)
            kernel = np.moveaxis(weight, (0, 1), (-1, -2)) if turned else weight
            label = name if step is None else f"{name}[{step}]"
            found.append(_weight(label, weight.shape, kernel, _bias(leaves, name, kernel.shape[-1], step)))
    if not found:
        raise ValueError(f"params must hold a weight, a floating leaf with two axes or more; got {_listed(params)}")
    return sorted(found, key=lambda weight: _natural(weight.name))


def from_call(params, apply, x):
    """In the order of a call: (weights, mean squares [L + 1] of x and the states, nonlinearities between them)."""
    flow = layers.probe(apply, params, x)
    leaves = _leaves(params)
    found, lengths, seen = [], [_mean_square(x)], []
    for i, (label, kind) in enumerate(zip(flow.names, flow.kinds)):
        name, step = _base(label, leaves)
        if name is None or np.isnan(flow.weight_variance[i]):
            continue
        leaf = leaves[name] if step is None else leaves[name].reshape(-1, *leaves[name].shape[step[1] :])[step[0]]
        kernel = _oriented(leaf, int(flow.fan_in[i]), kind)
        bias = _bias(leaves, name, kernel.shape[-1], None if step is None else step[0])
        found.append(_weight(label, leaf.shape, kernel, bias))
        lengths.append(float(flow.state_rms[i]) ** 2)
        seen.append(flow.nonlinearities[i])
    if not found:
        raise ValueError(f"apply must contract a leaf of params with x; the layers are {', '.join(flow.names)}")
    return found, np.array(lengths), seen[:-1]


def _default(name, law, part):
    shape, fan_in = law.shapes[part], int(law.fan_in[part])
    variance = float(law.weight_variance[part]) / fan_in
    fan_out, bias_variance = int(law.fan_out[part]), float(law.bias_variance)
    return Weight(name, shape, shape[-2:], fan_in, fan_out, variance, bias_variance, (law.laws[part],))


def _weight(name, shape, kernel, bias_variance):
    """`kernel` is (in, out) or HWIO."""
    fan_in, window = math.prod(kernel.shape[:-1]), math.prod(kernel.shape[:-2])
    fan_out = window * kernel.shape[-1]
    variance = float(np.mean(np.abs(kernel - kernel.mean()) ** 2, dtype=np.float64))
    laws = identify(kernel.reshape(fan_in, -1), fan_in, fan_out)
    return Weight(name, tuple(shape), kernel.shape[-2:], fan_in, fan_out, variance, bias_variance, laws)


def _oriented(leaf, fan_in, kind):
    """The leaf as (in, out) or HWIO, from the number of products that the call showed."""
    if kind == "conv":
        return leaf if math.prod(leaf.shape[:-1]) == fan_in else np.moveaxis(leaf, (0, 1), (-1, -2))
    if math.prod(leaf.shape[:-1]) != fan_in and math.prod(leaf.shape[1:]) == fan_in:
        return leaf.reshape(leaf.shape[0], -1).T
    return leaf.reshape(fan_in, -1)


def _leaves(params):
    """name -> array, for all floating leaves."""
    leaves = [np.asarray(leaf) if hasattr(leaf, "dtype") else None for leaf in jax.tree.leaves(params)]
    pairs = zip(trees.names(params), leaves, strict=True)
    wide = {np.dtype(np.complex64): np.complex128, np.dtype(np.complex128): np.complex128}
    return {
        name: leaf.astype(wide.get(leaf.dtype, np.float64))
        for name, leaf in pairs
        if leaf is not None and jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.size
    }


def _bias(leaves, name, features, step):
    """Mean square of the leaf beside `name` that is called a bias and has this many features."""
    parent = name.rpartition("/")[0]
    for other, leaf in leaves.items():
        beside = other.rpartition("/")[0]
        one = leaf if step is None or leaf.ndim < 2 or leaf.size == features else leaf[step % len(leaf)]
        if beside == parent and _is_bias(other) and one.size == features:
            return float(np.mean(np.abs(one) ** 2))
    return 0.0


def _is_bias(name):
    last = name.rpartition("/")[2]
    return last == "b" or last.startswith("bias")


def _base(label, leaves):
    """(leaf's name, (index, axes)) of a layer's name: 'path[2]' is a scanned step, 'path#1' a second use."""
    plain = re.sub(r"#\d+$", "", label)
    if plain in leaves:
        return plain, None
    match = re.fullmatch(r"(.*?)((?:\[\d+\])+)(?:#\d+)?", label)
    if match is None or match[1] not in leaves:
        return None, None
    at = [int(index) for index in re.findall(r"\d+", match[2])]
    return match[1], (int(np.ravel_multi_index(at, leaves[match[1]].shape[: len(at)])), len(at))


def _matches(name, patterns):
    if isinstance(patterns, bool):
        return patterns
    return any(fnmatch.fnmatchcase(name, p) for p in ([patterns] if isinstance(patterns, str) else patterns))


def _natural(name):
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _listed(params):
    names = [f"{name} {np.shape(leaf)}" for name, leaf in zip(trees.names(params), jax.tree.leaves(params))]
    return ", ".join(names) or "no leaf"


def _mean_square(x):
    return float(np.mean([np.mean(np.abs(np.asarray(leaf, np.float64)) ** 2) for leaf in jax.tree.leaves(x)]))
