"""MEASURED: the weights of a call: what is contracted, what is added to it, what lies between, how large states are."""

import bisect
import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numdl import checks
from numdl.analysis import _joined, _weights, layers
from numdl.analysis._recognition import recognised
from numdl.tracing._paths import paths


class Row(NamedTuple):
    """One weight of a call."""

    weight: _weights.Weight
    length: float  # mean square of its output
    gradient: float  # |dloss/dy|^2, up to a factor that all rows share
    source: tuple  # rows whose state it reads, through `activation`; several make one state; none: a mixture
    starts: bool  # no layer comes before
    activation: object  # recognised between source and this one; None: not
    breaks: tuple  # what else lies between
    input_square: float  # mean square of what is read, where that is x itself; else nan
    part: int = 0  # which of the rows of one contraction


def rows(params, apply, x, loss, examples):
    """(rows in the order of the call, notes)."""
    loss = loss or against_signs
    flow, traced, constants = layers._probed(apply, params, x, loss=loss, examples=examples)
    found = paths(traced.program, traced.layers, traced.parameters)
    parts = {i: _joined.split(traced.layers[i], weight) for i, weight in found.weights.items() if i in found.paths}
    parts = {i: lengths for i, lengths in parts.items() if lengths}
    apart = _joined.sizes(traced, constants, params, x, loss, parts)
    call = _Call(traced, found, flow, _weights.floating(params), jax.tree.leaves(x), parts, apart)
    made = [row for key in call.entries for row in call.rows(key)]
    if not made:
        raise checks.BadValue(f"apply must contract a leaf of params with x; the layers are {', '.join(flow.names)}")
    notes = [f"not entered: {text}" for text in flow.not_entered]
    of = [traced.layers[i] for i in dict.fromkeys(layer for layer, _ in call.entries)]
    notes += [f"{one.name}: {one.note}: its gradient is not known" for one in of if not one.of_examples]
    return made, [*notes, *dict.fromkeys(call.notes)]


def predecessors(made):
    """For each row the rows of the contraction before its own."""
    found, begin, before = [], 0, ()
    for i, row in enumerate(made):
        if row.part == 0:
            before, begin = tuple(range(begin, i)), i
        found.append(before)
    return found


def against_signs(outputs):
    """sum of sign * output over all outputs, with pseudo-random signs that do not depend on anything."""
    total = jnp.zeros(())
    for leaf in jax.tree.leaves(outputs):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            total += jnp.sum(_signs(leaf.shape) * jnp.real(leaf).astype(jnp.float32))
    return total


def _signs(shape):
    """+-1, by a hash of the place (the finalizer of MurmurHash3): no stream of random numbers is drawn."""
    bits = jax.lax.iota(jnp.uint32, math.prod(shape)) + jnp.uint32(0x9E3779B9)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        bits = (bits ^ (bits >> jnp.uint32(shift))) * jnp.uint32(factor)
    return 1 - 2 * ((bits >> jnp.uint32(15)) & jnp.uint32(1)).astype(jnp.float32).reshape(shape)


@dataclasses.dataclass
class _Call:
    """What is known of one call; an entry is a contraction: (layer, the steps that go through its leaf).

    It has one row, or where leaves lie side by side in it (the gates of a cell) a row for each of these.
    """

    traced: object
    found: object
    flow: object
    leaves: dict  # name -> array
    inputs: list  # leaves of x
    parts: dict  # layer -> how many units each of the leaves in it makes
    apart: dict  # layer -> (mean squares [*steps, P], |dloss/dy|^2 [*steps, P])

    def __post_init__(self):
        self.notes, self.entries = [], {}
        flow = self.flow
        self.states = np.asarray(flow.state_rms, np.float64) ** 2
        sizes = np.array([math.prod(shape) for shape in flow.shapes])
        self.gradients = np.asarray(flow.state_gradient_rms, np.float64) ** 2 * sizes
        self.variances = np.asarray(flow.weight_variance, np.float64)
        for place, (_, layer, steps) in enumerate(self.traced.entries):
            if self.traced.layers[layer].weight_shape is not None and layer in self.found.paths:
                key = layer, tuple(steps[level] for level in self.levels(layer))
                self.entries.setdefault(key, []).append(place)
        self.calls = {}  # layer -> places of its calls, in order
        for place, (_, layer, _) in enumerate(self.traced.entries):
            self.calls.setdefault(layer, []).append(place)
        self.index, row = {}, 0  # key -> its rows
        for key in self.entries:
            self.index[key] = tuple(range(row, row + len(self.parts.get(key[0], (0,)))))
            row = self.index[key][-1] + 1
        uses = [leaf for layer in {layer for layer, _ in self.entries} for leaf in self.leaves_of(layer)]
        looked_up = ("embedding: ", "lookup: ")
        pairs = zip(self.traced.parameters, self.traced.uses, strict=True)
        uses += [leaf for leaf, texts in pairs if any(text.startswith(looked_up) for text in texts)]
        self.shared = {leaf for leaf in uses if uses.count(leaf) > 1}

    def levels(self, layer):
        """The scans around the layer that go through its weight."""
        steps, weight = self.traced.layers[layer].steps, self.found.weights[layer]
        axes = self.traced.layers[layer].leaf_axes
        indexed = weight.made == "part" and axes is not None and axes.steps
        return range(len(steps)) if indexed else [level for level in weight.levels if level < len(steps)]

    def leaves_of(self, layer):
        """The leaves that are weights of their own in this layer, each once."""
        joined = self.found.weights[layer].joined
        return [leaf for leaf, _ in joined[1]] if layer in self.parts else [self.traced.layers[layer].leaf]

    def rows(self, key):
        (layer, _), places = key, self.entries[key]
        path = self.path(key)
        rest = (
            self.source(path, places[0]),
            path.starts,
            None if path.starts else recognised(path.function),
            self.breaks(layer, path, len(places)),
            self.input_square(path),
        )
        if layer not in self.parts:
            weight = self.weight(key, float(self.variances[places].mean()))
            return [Row(weight, float(self.states[places].mean()), float(self.gradients[places].mean()), *rest)]
        steps = [self.traced.entries[place][2] for place in places]
        lengths, gradients = (np.mean([size[at] for at in steps], axis=0) for size in self.apart[layer])
        return [
            Row(self.part(key, i), float(q), float(g), *rest, i) for i, (q, g) in enumerate(zip(lengths, gradients))
        ]

    def path(self, key):
        layer, _ = key
        path, first = self.found.paths[layer], self.entries[key][0] == self.calls[layer][0]
        return path.first if first and path.first is not None else path

    def source(self, path, place):
        """The rows whose state is read: the last call of that layer before this one."""
        before = bisect.bisect_left(self.calls.get(path.source, []), place) - 1
        if before < 0 or path.source not in self.found.paths:
            return ()
        steps = self.traced.entries[self.calls[path.source][before]][2]
        return self.index[path.source, tuple(steps[level] for level in self.levels(path.source))]

    def breaks(self, index, path, calls):
        """What lies between that is no function of one state, and what a weight of its own for each layer is not."""
        between = set() if path.starts else set(path.between)
        if isinstance(path.source, int) and self.traced.layers[path.source].kind == "attention":
            between.add("attention")
        if calls > 1 or not self.shared.isdisjoint(self.leaves_of(index)):
            between.add("shared weight")
        if self.found.weights[index].made == "derived" or self.is_whole(index):
            between.add("derived weight")
        return tuple(sorted(between))

    def input_square(self, path):
        """Mean square of what the first layer reads, where that is a function of a leaf of x alone."""
        if not path.starts or path.between or path.source[0] != "input":
            return math.nan
        leaf = np.asarray(self.inputs[path.source[1]])
        wide = leaf.astype(np.complex128 if np.iscomplexobj(leaf) else np.float64)
        return float(np.mean(np.abs(wide if path.function is None else path.function(wide)) ** 2))

    def weight(self, key, variance):
        """The `Weight` of a row: variances as contracted, the law of the leaf as stored."""
        (layer, at), one = key, self.traced.layers[key[0]]
        fixed, leaf = self.found.weights[layer], self.leaves.get(one.leaf)
        name = one.name + "".join(f"[{index}]" for index in at)
        fans, axes = (one.fan_in, one.fan_out), one.leaf_axes
        shape, laws, entries = one.weight_shape, (), math.prod(one.weight_shape)
        if fixed.made in ("leaf", "part") and leaf is not None and axes is not None and not axes.others:
            stored = self.stored(leaf, axes, at)
            shape, entries = stored.shape, stored.size
            if fixed.made == "leaf":  # the same number in float64
                variance = one.fan_in * float(np.mean(np.abs(stored - stored.mean()) ** 2))
            laws = self.laws(leaf, stored, axes)
        features = (one.fan_in, one.fan_out)
        bias = self.bias(name, layer, at)
        fan_in = max(one.fan_in, 1)
        return _weights.Weight(name, tuple(shape), features, *fans, variance / fan_in, *bias, laws, entries)

    def is_whole(self, layer):
        """Whether leaves are side by side in a contraction whose state cannot be told apart."""
        return self.found.weights[layer].made == "joined" and layer not in self.parts

    def part(self, key, i):
        """The `Weight` of one of the leaves in a contraction, as `weight`."""
        (layer, at), one = key, self.traced.layers[key[0]]
        name, length = self.found.weights[layer].joined[1][i]
        axes, leaf = dict(one.made_of)[name], self.leaves[name]
        use = one.name.rpartition("#")
        called = name + (f"#{use[2]}" if use[1] else "") + "".join(f"[{index}]" for index in at)
        stored, fans = self.stored(leaf, axes, at), (one.fan_in, one.fan_out * length / sum(self.parts[layer]))
        variance = float(np.mean(np.abs(stored - stored.mean()) ** 2))
        end = sum(self.parts[layer][: i + 1])
        bias = self.bias(called, layer, at, slice(end - length, end))
        laws = self.laws(leaf, stored, axes)
        return _weights.Weight(called, stored.shape, fans, *fans, variance, *bias, laws, stored.size)

    def stored(self, leaf, axes, at):
        """The leaf at this step."""
        if not at or len(axes.steps) != len(at):
            return leaf
        where = dict(zip(axes.steps, at))
        return leaf[tuple(where.get(axis, slice(None)) for axis in range(leaf.ndim))]

    def laws(self, leaf, stored, axes):
        """The laws that fit, with the fans that a framework would take."""
        rest = [axis for axis in range(leaf.ndim) if axis not in axes.steps or stored.ndim == leaf.ndim]
        rows_of = [rest.index(axis) for axis in (*axes.window, *axes.inputs) if axis in rest]
        others = [axis for axis in range(stored.ndim) if axis not in rows_of]
        fan_in = math.prod(stored.shape[axis] for axis in rows_of)
        window = math.prod(leaf.shape[axis] for axis in axes.window)
        matrix = np.transpose(stored, (*rows_of, *others)).reshape(fan_in, -1)
        return _weights.identify(matrix, fan_in, window * matrix.shape[1])

    def bias(self, name, layer, at, units=None):
        """(variance, mean) of what is added to this layer's output alone, or to these of its units."""
        added = self.found.biases.get(layer, ())
        total = 0.0
        for fixed in added:
            numbers = self.added(fixed, layer, at)
            if numbers is not None and units is not None and numbers.size > 1:
                numbers = numbers[units] if numbers.size == sum(self.parts[layer]) else None
            if numbers is None:
                self.notes.append(f"{name}: its bias is computed from {fixed.leaf} and is not known")
                return math.nan, math.nan
            total = total + numbers if np.size(total) in (1, numbers.size) else math.nan
        return _weights.spread(total) if added else (0.0, 0.0)

    def added(self, fixed, layer, at):
        """The numbers of a leaf, or of several side by side, at this step; None where they are computed."""
        names = [leaf for leaf, _ in fixed.joined[1]] if fixed.joined else [fixed.leaf]
        if fixed.made not in ("leaf", "joined") or any(name not in self.leaves for name in names):
            return None
        levels, found = list(self.levels(layer)), []
        for leaf in map(self.leaves.get, names):
            for level in fixed.levels:
                leaf = leaf[at[levels.index(level)]] if level in levels else leaf.mean(axis=0)
            found.append(np.ravel(leaf))
        return np.concatenate(found)
