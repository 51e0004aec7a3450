"""MEASURED: the weights of a model as they are stored, or as a framework would draw them."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from numdl import checks, trees
from numdl.analysis import _filters
from numdl.analysis._laws import LIMIT, Defaults, identify


@dataclasses.dataclass(frozen=True)
class Weight:
    """One weight: its fans, the variance of an entry, the bias beside it, the laws that fit. nan: not known."""

    name: str
    shape: tuple
    features: tuple  # in, out: without the window of a kernel
    fan_in: float
    fan_out: float
    variance: float  # of an entry
    bias_variance: float
    bias_mean: float  # where it is not 0 within its sampling error
    laws: tuple  # that fit
    entries: float = math.inf  # how many numbers the variance was taken from

    @property
    def bias_square(self):
        """Mean square of the bias."""
        return self.bias_variance + self.bias_mean**2


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


def from_leaves(params, layouts, transposed, stacked):
    """(weights, notes) of the leaves with two axes or more, in the natural order of their names."""
    leaves, paths = floating(checks.leaves("params", params, host=True)), trees.names(params)
    said = _said(layouts, leaves, paths)
    deep, turned = (_chosen(*pair, paths) for pair in (("stacked", stacked), ("transposed", transposed)))
    found, notes, assumed = [], [], []
    for name, leaf in leaves.items():
        if name in deep and leaf.ndim < 1:
            raise checks.BadValue(f"stacked must name leaves with a depth axis; got {name!r}, a scalar")
        if said.get(name, "") is None or (name not in said and _filters.is_line(leaf.shape[name in deep :])):
            continue
        letters, groups = said.get(name) or _convention(leaf.ndim, name in turned, name in deep)
        if name not in said and len(letters.replace("S", "")) > 2:
            assumed.append(name)
        bias, why = _bias(name, leaf, letters, leaves, said, deep)
        notes += [why] if why else []
        found += _rows(name, leaf, letters, groups, bias, name in said)
    if not found:
        raise checks.BadValue(
            f"params must hold a weight, a floating leaf with two axes or more; got {_listed(params)}"
        )
    if assumed:
        more = f" and {len(assumed) - 1} more" if len(assumed) > 1 else ""
        notes.append(
            f"{assumed[0]}{more}: three axes or more are read as [window ..., in, out], in one group; layouts, stacked "
            "or a call (apply, x) say otherwise"
        )
    return sorted(found, key=lambda weight: natural(weight.name)), notes


def check_params(params):
    """A pytree of arrays with something that could be a weight."""
    leaves = jax.tree.leaves(checks.leaves("params", params, host=True))
    if not any(jnp.issubdtype(leaf.dtype, jnp.inexact) and leaf.ndim for leaf in leaves):
        raise checks.BadValue(f"params must hold a weight, a floating leaf; got {_listed(params)}")
    return params


def weight(name, shape, matrix, fans, features, bias, named=True):
    """A Weight of a matrix [fan_in, features] of numbers."""
    variance = float(np.mean(np.abs(matrix - matrix.mean()) ** 2, dtype=np.float64))
    known = named and np.isfinite(fans).all()
    laws = identify(matrix, *fans) if known else ()
    return Weight(name, tuple(shape), features, *fans, variance, *bias, laws, matrix.size)


def spread(bias):
    """(variance, mean) of a bias: about 0 where its mean is 0 within its sampling error, about the mean elsewhere."""
    bias = np.ravel(bias)
    variance = float(np.var(bias))
    if abs(bias.mean()) ** 2 * max(bias.size - 1, 1) <= LIMIT**2 * variance:
        return float(np.mean(np.abs(bias) ** 2)), 0.0
    return variance, float(bias.mean().real)


def floating(params):
    """name -> array, for all floating leaves."""
    leaves = [np.asarray(leaf) if _is_inexact(leaf) else None for leaf in jax.tree.leaves(params)]
    pairs = zip(trees.names(params), leaves, strict=True)
    wide = {np.dtype(np.complex64): np.complex128, np.dtype(np.complex128): np.complex128}
    return {
        name: leaf.astype(wide.get(leaf.dtype, np.float64)) for name, leaf in pairs if leaf is not None and leaf.size
    }


def natural(name):
    """The key that sorts 'layer_10' after 'layer_2'."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _is_inexact(leaf):
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.inexact)


def _default(name, law, part):
    shape, fan_in = law.shapes[part], int(law.fan_in[part])
    variance = float(law.weight_variance[part]) / fan_in
    fan_out, bias_variance = int(law.fan_out[part]), float(law.bias_variance)
    return Weight(name, shape, shape[-2:], fan_in, fan_out, variance, bias_variance, 0.0, (law.laws[part],))


# ---- layouts -------------------------------------------------------------------------------------------------------


def _said(layouts, leaves, paths):
    """{path: (letters, groups), or None for what is no weight} of what the caller says."""
    checks.instance("layouts", layouts, dict, hint="such as {'*/weight': 'OIHW'}")
    found = {}
    for pattern, given in layouts.items():
        named = trees.matching("layouts", pattern, paths)
        found |= {path: given and _letters(pattern, given, leaf) for path, leaf in leaves.items() if path in named}
    return found


def _letters(pattern, given, leaf):
    letters, groups = given if isinstance(given, tuple | list) and len(given) == 2 else (given, 1)
    name = f"layouts[{pattern!r}]"
    allowed = "a letter for each axis of I, O, G, S and window letters D, H, W, or (letters, groups)"
    if not isinstance(letters, str):
        raise checks.BadType(f"{name} must be {allowed}; got {given!r}")
    if len(letters) != leaf.ndim or not set(letters) <= set("IOGSDHW") or not set(letters) & set("IO"):
        raise checks.BadValue(f"{name} must be {allowed}; got {given!r} for shape {leaf.shape}")
    groups = checks.whole(name, groups)
    outputs = math.prod(n for letter, n in zip(letters, leaf.shape) if letter == "O")
    if outputs % groups:
        raise checks.BadValue(f"{name} must hold a number of groups that divides the {outputs} outputs; got {groups}")
    return letters, groups


def _convention(rank, turned, deep):
    rank, window = rank - deep, "W" * (rank - deep - 2)
    return "S" * deep + ("OI" + window if turned else window + "IO"), 1


def _rows(name, leaf, letters, groups, bias, sure):
    """One Weight for each layer of a stack."""
    order = [axis for kind in ("S", "DHW", "I", "G", "O") for axis, letter in enumerate(letters) if letter in kind]
    count = {
        kind: math.prod(n for n, letter in zip(leaf.shape, letters) if letter in kind)
        for kind in ("S", "DHW", "I", "O")
    }
    inputs, outputs, window = count["I"], count["O"] // groups, count["DHW"]
    fans = inputs * window, outputs * window
    if not sure and len(letters.replace("S", "")) > 2 and 1 in (inputs, outputs):
        # One input or one output: a depthwise kernel reads so, too, and has another fan on the other side.
        fans = (fans[0] if inputs == 1 else np.nan), (fans[1] if outputs == 1 else np.nan)
    matrices = np.transpose(leaf, order).reshape(count["S"], inputs * window, -1)
    shape = [n for n, letter in zip(leaf.shape, letters) if letter != "S"]
    stack = "S" in letters
    return [
        weight(f"{name}[{i}]" if stack else name, shape, matrix, fans, (inputs, outputs), bias[i % len(bias)])
        for i, matrix in enumerate(matrices)
    ]


# ---- biases --------------------------------------------------------------------------------------------------------


def _bias(name, leaf, letters, leaves, said, deep):
    """([(variance, mean)] for each layer, note): the leaf beside `name` called a bias, if it serves it alone."""
    parent = _parent(name)
    beside = {other: each for other, each in leaves.items() if _parent(other) == parent and other != name}
    lines = {other: each for other, each in beside.items() if _filters.is_line(each.shape[other in deep :])}
    vectors = {other: each for other, each in lines.items() if said.get(other, "") in ("", None) and each.any()}
    if not vectors:  # a vector of zeros adds nothing
        return [(0.0, 0.0)], None
    outputs = math.prod(n for n, letter in zip(leaf.shape, letters) if letter in "OG")
    biases = [other for other in vectors if _is_bias(other)]
    if len(biases) == 1 and len(beside) == len(lines):
        bias = vectors[biases[0]]
        each = bias if biases[0] in deep else bias[None]
        if each[0].size == outputs:
            return [spread(one) for one in each], None
    others = ", ".join(vectors)
    return [(np.nan, np.nan)], f"{name}: which of {others} is its bias is not known without a call (apply, x)"


def _parent(name):
    return re.split(r"[/.][^/.]*$", name)[0] if re.search(r"[/.]", name) else ""


def _is_bias(name):
    last = re.split(r"[/.]", name)[-1]
    return last == "b" or last.startswith("bias")


def _chosen(argument, patterns, paths):
    if isinstance(patterns, bool | np.bool_):
        return frozenset(paths) if patterns else frozenset()
    return _filters.named(argument, patterns, paths)


def _listed(params):
    names = [f"{name} {np.shape(leaf)}" for name, leaf in zip(trees.names(params), jax.tree.leaves(params))]
    return ", ".join(names) or "no leaf"
