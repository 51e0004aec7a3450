"""One vector of a tree whose leaves are spread over devices: each device holds its own parts, nothing is gathered.

The order of the entries is not that of the leaves: a device's part of the vector is its parts of all leaves, one after
the other, and a leaf that several devices hold is divided among them. Inner products, norms and combinations do not see
the order. Random vectors are drawn entry by entry, by the place that an entry has in the tree on one device, so that
both layouts give the same numbers.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from numdl import _effort, _random
from numdl.precision import widen

_BEHIND = np.uint32(2**32 - 1)  # the index of an entry that belongs to no leaf


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the leaves of a tree are; hashable."""

    mesh: Any
    specs: tuple  # of PartitionSpec, one for each leaf
    shapes: tuple

    @property
    def devices(self):
        """How many hold a part."""
        return self.mesh.size

    @property
    def everywhere(self):
        """The spec of a vector over all devices."""
        return PartitionSpec(self.mesh.axis_names)

    @property
    def length(self):
        """Entries of the vector, those that belong to no leaf included."""
        return self.devices * sum(self._share(*pair) for pair in zip(self.shapes, self.specs, strict=True))

    def of(self, lead=0):
        """The sharding of rows with this many leading axes."""
        return NamedSharding(self.mesh, PartitionSpec(*[None] * lead, self.mesh.axis_names))

    def ravel(self, leaves, dtype, fill=0):
        """The leaves as one vector."""

        def here(*local):
            return jnp.concatenate([self._cut(leaf, spec, dtype, fill) for leaf, spec in zip(local, self.specs)])

        return self._mapped(here, self.specs, self.everywhere)(*leaves)

    def unravel(self, rows, dtypes):
        """The leaves of rows, whatever axes lead."""
        lead = [None] * (rows.ndim - 1)

        def here(local):
            ends = np.cumsum([self._share(*pair) for pair in zip(self.shapes, self.specs)])[:-1]
            parts = jnp.split(local, ends, axis=-1)
            return [self._joined(*each) for each in zip(parts, self.shapes, self.specs, dtypes, strict=True)]

        specs = [PartitionSpec(*lead, *spec) for spec in self.specs]
        return self._mapped(here, (PartitionSpec(*lead, self.mesh.axis_names),), specs)(rows)

    def indices(self):
        """For each entry its place in the vector of the tree on one device."""
        sizes = [math.prod(shape) for shape in self.shapes]
        starts = np.cumsum([0, *sizes])[:-1]
        leaves = [
            lax.iota(np.uint32, size).reshape(shape) + np.uint32(start)
            for size, shape, start in zip(sizes, self.shapes, starts)
        ]
        return self.ravel(leaves, np.uint32, _BEHIND)

    def _mapped(self, function, inside, outside):
        return jax.shard_map(function, mesh=self.mesh, in_specs=tuple(inside), out_specs=outside, check_vma=False)

    def _local(self, shape, spec):
        """The shape of a device's part of a leaf."""
        parts = [*spec, *[None] * (len(shape) - len(spec))]
        return tuple(size // self._count(part) for size, part in zip(shape, parts))

    def _count(self, axes):
        return math.prod(self.mesh.shape[axis] for axis in _named(axes))

    def _idle(self, spec):
        """The axes of the mesh along which a leaf is the same."""
        used = {axis for part in spec for axis in _named(part)}
        return tuple(axis for axis in self.mesh.axis_names if axis not in used)

    def _share(self, shape, spec):
        """Entries of the vector that a device holds of a leaf."""
        return -(-math.prod(self._local(shape, spec)) // self._count(self._idle(spec)))

    def _cut(self, local, spec, dtype, fill):
        """The share of a leaf's part that falls to a device."""
        idle = self._idle(spec)
        flat = local.ravel().astype(dtype)
        if self._count(idle) == 1:
            return flat
        share = -(-flat.size // self._count(idle))
        flat = jnp.pad(flat, (0, share * self._count(idle) - flat.size), constant_values=fill)
        return lax.dynamic_slice_in_dim(flat, lax.axis_index(idle) * share, share)

    def _joined(self, part, shape, spec, dtype):
        """A device's part of a leaf from the shares of those that hold the same."""
        local, idle = self._local(shape, spec), self._idle(spec)
        if self._count(idle) > 1:
            part = lax.all_gather(part, idle, axis=part.ndim - 1, tiled=True)[..., : math.prod(local)]
        return part.reshape(*part.shape[:-1], *local).astype(dtype)


def places(leaves):
    """The Places of leaves of which one at least is divided among devices; None where none is."""
    own = [getattr(leaf, "sharding", None) for leaf in leaves]
    named = [s for s in own if isinstance(s, NamedSharding) and s.mesh.size > 1]
    if not named or not all(_is_concrete(s) for s in named) or all(s.is_fully_replicated for s in named):
        return None
    mesh = named[0].mesh
    if any(s.mesh != mesh for s in named):
        return None
    specs = [s.spec if isinstance(s, NamedSharding) and s.mesh.size > 1 else PartitionSpec() for s in own]
    return Places(mesh, tuple(specs), tuple(tuple(leaf.shape) for leaf in leaves))


def _is_concrete(sharding):
    """Whether the devices are known, and how they are shared is XLA's business (not a part of the types)."""
    automatic = all(kind == jax.sharding.AxisType.Auto for kind in sharding.mesh.axis_types)
    return isinstance(sharding.mesh, jax.sharding.Mesh) and automatic


def normal(key, layout):
    """Independent normal entries: the numbers of `jax.random.normal(key, (n,))`, each at its own place."""
    if layout.places is None:
        return _random.normal(key, (layout.size,), layout.dtype)
    return _spread_normal(key, layout)


@functools.partial(_effort.jit, static_argnums=1)
def _spread_normal(key, layout):
    if not _by_index(key, layout):
        return _whole(_random.normal(key, (layout.size,), layout.dtype), layout)
    index = layout.places.indices()
    least = np.nextafter(layout.dtype.type(-1), layout.dtype.type(0))
    entries = lax.erf_inv(_uniform(key, index, layout.dtype, least)) * np.sqrt(2).astype(layout.dtype)
    return _inside(entries, index, layout)


def signs(key, layout, whole):
    """Independent signs: those of `whole(key)`, which draws `jax.random.rademacher(key, (n,))`, each at its place."""
    if not _by_index(key, layout):
        return _whole(whole(key), layout)
    index = layout.places.indices()
    half = _uniform(key, index, jax.dtypes.canonicalize_dtype(np.float64), 0) < 0.5
    return _inside(jnp.where(half, 1, -1).astype(layout.dtype), index, layout)


def triangular(rows, place):
    """(orthonormal rows [r, n], R [r, r]) of the rows [r, n]: a QR factorization on each device, and one of all the R.

    Source: Demmel, Grigori, Hoemmen & Langou 2012, SIAM J. Sci. Comput. 34 (TSQR).
    """
    axes = place.mesh.axis_names

    def here(local):
        inner, upper = jnp.linalg.qr(widen(local.T))
        stacked = lax.all_gather(upper, axes, axis=0, tiled=True)
        outer, upper = jnp.linalg.qr(stacked)
        own = lax.dynamic_slice_in_dim(outer, lax.axis_index(axes) * inner.shape[1], inner.shape[1])
        return jnp.matmul(inner, own, precision="highest").T.astype(rows.dtype), upper.astype(rows.dtype)

    spec = PartitionSpec(None, axes)
    return place._mapped(here, (spec,), (spec, PartitionSpec()))(rows)


def _by_index(key, layout):
    """Whether the bits of an entry follow from its index alone, as threefry's do."""
    threefry = str(jax.random.key_impl(key)) == "threefry2x32"
    wide = layout.dtype in (np.float32, np.float64) and layout.size < _BEHIND
    return threefry and jax.config.jax_threefry_partitionable and wide


def _uniform(key, index, dtype, least):
    """The numbers of `jax.random.uniform(key, (n,), dtype, least, 1)` at the indices."""
    dtype = np.dtype(dtype)
    words = jax.random.key_data(jax.vmap(functools.partial(jax.random.fold_in, key))(index))
    high, low = words[:, 0], words[:, 1]
    wide = dtype.itemsize == 8
    bits = (high.astype(np.uint64) << np.uint64(32)) | low.astype(np.uint64) if wide else high ^ low
    word, kept = bits.dtype.type, jnp.finfo(dtype).nmant
    one = np.ones((), dtype).view(bits.dtype)
    fraction = lax.bitcast_convert_type((bits >> word(8 * dtype.itemsize - kept)) | one, dtype) - dtype.type(1)
    least = dtype.type(least)
    return jnp.maximum(fraction * (dtype.type(1) - least) + least, least)


def _inside(entries, index, layout):
    """0 where an entry belongs to no leaf."""
    found = jnp.where(index == _BEHIND, jnp.zeros_like(entries), entries)
    return lax.with_sharding_constraint(found, layout.places.of())


def _whole(vector, layout):
    """A vector in the order of one device, spread."""
    return layout.ravel(dataclasses.replace(layout, places=None).unravel(vector))


def _named(axes):
    return () if axes is None else axes if isinstance(axes, tuple) else (axes,)
