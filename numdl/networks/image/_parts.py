"""What the tables of image networks are made of: each part knows its parameters, the shape it makes, and its function.

part.leaves(before) -> {name: Drawn or Filled}     before: shape of one example, (H, W, C) or (features,)
part.shape(before) -> shape after
part(params, y, run) -> (y, statistics)            statistics: {} without a batch normalization
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from numdl import checks
from numdl.networks import _batch_statistics, _windows, dropout
from numdl.networks._batch_statistics import Statistics
from numdl.networks.image._codes import DIGITS


class Drawn(NamedTuple):
    """A leaf of random entries."""

    shape: tuple
    fan_in: int


class Filled(NamedTuple):
    """A leaf of equal entries."""

    shape: tuple
    value: float


class Run(NamedTuple):
    """What a call of a part needs beside parameters and picture."""

    form: str = "native"  # of the convolutions
    key: Any = None  # of dropout; None: nothing is dropped


class Convolution(NamedTuple):
    """A convolution with a bias, or with a batch normalization behind it, whose bias serves."""

    channels: int
    window: int
    stride: int = 1
    padding: int = 0
    groups: int = 1
    normalized: bool = False
    bias: float = 0.0  # its entries at first

    def leaves(self, before):
        kernel = (self.window, self.window, before[-1] // self.groups, self.channels)
        found = {
            "kernel": Drawn(kernel, math.prod(kernel[:-1])),
            "bias": Filled((self.channels,), self.bias),
        }
        return found | ({"gain": Filled((self.channels,), 1.0)} if self.normalized else {})

    def shape(self, before):
        return (*_slid(before, self.window, self.stride, (self.padding,) * 2), self.channels)

    def __call__(self, params, y, run):
        kernel = params["kernel"]
        y = _windows.convolved(y, kernel, stride=self.stride, padding=self.padding, groups=self.groups, form=run.form)
        if not self.normalized:
            return y + jnp.broadcast_to(params["bias"], y.shape), {}
        axes = tuple(range(y.ndim - 1))
        if "mean" in params:
            known = Statistics(params["mean"], params["variance"])
        else:
            known = _batch_statistics.statistics(y, axis=axes)
        y = _batch_statistics.normalize(y, known, params["gain"], params["bias"], axis=axes)
        return y, {"mean": known.mean, "variance": known.variance}


class Connected(NamedTuple):
    """A convolution in which every map sees only some of the maps before it: `table` lists them, map by map.

    Maps that see equally many are one kernel [window, window, count, maps]: what is not connected is not there.
    """

    table: tuple
    window: int

    def leaves(self, before):
        counts = [len(seen) for seen in self.table]
        shapes = {f"kernel_{n}": (self.window, self.window, n, counts.count(n)) for n in sorted(set(counts))}
        kernels = {name: Drawn(shape, math.prod(shape[:-1])) for name, shape in shapes.items()}
        return kernels | {"bias": Filled((len(self.table),), 0.0)}

    def shape(self, before):
        return (*_slid(before, self.window, 1, (0, 0)), len(self.table))

    def __call__(self, params, y, run):
        counts = [len(seen) for seen in self.table]
        order = sorted(range(len(counts)), key=counts.__getitem__)
        if run.form == "product":
            kernel = sum(self.spread(params[f"kernel_{n}"], n, y.shape[-1]) for n in set(counts))
            z = _windows.convolved(y, kernel, form=run.form)
        else:
            maps = {n: [seen for seen in self.table if len(seen) == n] for n in sorted(set(counts))}
            parts = [
                _windows.convolved(y[..., np.concatenate(seen)], params[f"kernel_{n}"], groups=len(seen))
                for n, seen in maps.items()
            ]
            z = jnp.concatenate(parts, axis=-1)[..., np.argsort(order)]
        return z + jnp.broadcast_to(params["bias"], z.shape), {}

    def spread(self, kernel, count, channels):
        """The kernel of the maps that see `count` with zeros where nothing is connected: [h, w, channels, maps]."""
        at = [(seen, place) for place, seen in enumerate(self.table) if len(seen) == count]
        sources = np.array([seen for seen, _ in at]).T
        full = jnp.zeros((self.window, self.window, channels, len(self.table)), kernel.dtype)
        return full.at[:, :, sources, np.array([place for _, place in at])[None, :]].set(kernel)


class Subsample(NamedTuple):
    """The sum over squares times a trainable coefficient, plus a trainable bias, one of each for every map."""

    window: int

    def leaves(self, before):
        return {
            "coefficient": Filled(before[-1:], 1 / self.window**2),
            "bias": Filled(before[-1:], 0.0),
        }

    def shape(self, before):
        return (*_slid(before, self.window, self.window, (0, 0)), before[-1])

    def __call__(self, params, y, run):
        y = _windows.pooled(y, self.window, self.window, (0, 0), "sum")
        return y * jnp.broadcast_to(params["coefficient"], y.shape) + jnp.broadcast_to(params["bias"], y.shape), {}


class Dense(NamedTuple):
    """An affine map of all that comes, laid in a row."""

    features: int
    bias: float = 0.0

    def leaves(self, before):
        count = math.prod(before)
        return {"kernel": Drawn((count, self.features), count), "bias": Filled((self.features,), self.bias)}

    def shape(self, before):
        return (self.features,)

    def __call__(self, params, y, run):
        z = y.reshape(y.shape[0], -1) @ params["kernel"]
        return z + jnp.broadcast_to(params["bias"], z.shape), {}


class Plain:
    """Without parameters."""

    __slots__ = ()

    def leaves(self, before):
        return {}

    def shape(self, before):
        return before


class _Active(NamedTuple):
    function: Any


class Active(Plain, _Active):
    """An activation."""

    def __call__(self, params, y, run):
        return self.function(y), {}


class _Pool(NamedTuple):
    window: int
    stride: int
    padding: tuple = (0, 0)
    kind: str = "max"


class Pool(Plain, _Pool):
    """A pooling."""

    def shape(self, before):
        return (*_slid(before, self.window, self.stride, self.padding), before[-1])

    def __call__(self, params, y, run):
        return _windows.pooled(y, self.window, self.stride, self.padding, self.kind), {}


class Mean(Plain):
    """The mean over all places."""

    def shape(self, before):
        return before[-1:]

    def __call__(self, params, y, run):
        return y.mean(axis=(1, 2)), {}


class _Frame(NamedTuple):
    size: int


class Frame(Plain, _Frame):
    """Zeros around pictures that are smaller than the size; the greater part of an odd number comes last."""

    def shape(self, before):
        return (max(before[0], self.size), max(before[1], self.size), before[2])

    def __call__(self, params, y, run):
        lacking = [max(self.size - have, 0) for have in y.shape[1:3]]
        around = [(0, 0), *((n // 2, n - n // 2) for n in lacking), (0, 0)]
        return (jnp.pad(y, around) if any(lacking) else y), {}


class Response(Plain):
    """Local response normalization over five channels, with the constants of Krizhevsky et al. 2012."""

    def __call__(self, params, y, run):
        return _windows.response_normalized(y, reach=5, offset=2.0, scale=1e-4, power=0.75), {}


class _Drop(NamedTuple):
    rate: float


class Drop(Plain, _Drop):
    """Dropout: with a key numbers are zero with this probability, the others larger, so that the mean stays."""

    def __call__(self, params, y, run):
        if run.key is None:
            return y, {}
        return dropout.drop(run.key, y, keep_probability=1 - self.rate), {}


class Codes(Plain):
    """Minus the squared distances to ten fixed codes of +-1 (radial basis functions): nothing to train."""

    def shape(self, before):
        return (len(DIGITS),)

    def __call__(self, params, y, run):
        apart = y[:, None, :] - jnp.broadcast_to(jnp.asarray(DIGITS, y.dtype), (len(y), *DIGITS.shape))
        return -jnp.sum(apart**2, axis=-1), {}


class Chain(NamedTuple):
    """Parts one after the other; a named part is ("first", part), its leaves lie under this name."""

    parts: tuple

    def leaves(self, before):
        found = {}
        for name, part in named(self.parts):
            _enter(found, name, part.leaves(before))
            before = part.shape(before)
        return found

    def shape(self, before):
        for _, part in named(self.parts):
            before = part.shape(before)
        return before

    def __call__(self, params, y, run):
        found = {}
        for name, part in named(self.parts):
            y, statistics = part(params if name is None else params[name], y, run)
            _enter(found, name, statistics)
        return y, found


class Merged(NamedTuple):
    """Chains side by side, their outputs added or concatenated along the channels."""

    chains: tuple
    how: str  # "sum" or "concatenation"

    def leaves(self, before):
        found = {}
        for chain in self.chains:
            found |= chain.leaves(before)
        return found

    def shape(self, before):
        shapes = [chain.shape(before) for chain in self.chains]
        return shapes[0] if self.how == "sum" else (*shapes[0][:-1], sum(shape[-1] for shape in shapes))

    def __call__(self, params, y, run):
        made = [chain(params, y, run) for chain in self.chains]
        outputs = [z for z, _ in made]
        found = {name: each for _, statistics in made for name, each in statistics.items()}
        return (sum(outputs[1:], outputs[0]) if self.how == "sum" else jnp.concatenate(outputs, axis=-1)), found


class Row(NamedTuple):
    """One line of a table: a layer, or `count` equal layers whose leaves are stacked and which are one stretch."""

    name: str
    chain: Chain
    count: int | None = None


def named(parts):
    """(name or None, part) of each part."""
    return [part if type(part) is tuple else (None, part) for part in parts]


def _enter(found, name, inner):
    if inner:
        found.update(inner if name is None else {name: inner})


def _slid(before, window, stride, padding):
    if len(before) != 3 or min(before[:2]) + sum(padding) < window:
        raise checks.BadValue(f"x must be pictures into which every window fits; got {before} at a window of {window}")
    return tuple((size + sum(padding) - window) // stride + 1 for size in before[:2])
