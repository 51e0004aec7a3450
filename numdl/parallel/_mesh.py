"""Devices in a mesh, and how batches, parameters and seeds lie on it."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Key, PyTree

from numdl import checks
from numdl._compiled import jit

LEAST = 2**10  # entries below which a leaf is not worth dividing


def mesh(shape: Mapping[str, int] | None = None, *, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of the devices that are there, of all processes: data parallel on one axis, or on axes that are named.

    Parameters
    ----------
    shape : dict                axis name -> devices along it, one of them -1 for what is left; None: {"data": -1}
    devices : sequence          of jax devices; None: all
    Returns
    -------
    Mesh                        whose axes are XLA's business (`AxisType.Auto`): a loss needs no change
    Raises
    ------
    ValueError, TypeError       a shape that the devices do not fill, names that are no texts
    Source: `jax.make_mesh`.
    """
    devices = list(jax.devices() if devices is None else _devices(devices))
    shape = {"data": -1} if shape is None else _shape(shape)
    filled = math.prod(size for size in shape.values() if size > 0)
    sizes = {name: len(devices) // filled if size < 0 else size for name, size in shape.items()}
    if math.prod(sizes.values()) != len(devices):
        raise checks.BadValue(f"shape must be filled by the {len(devices)} devices; got {dict(shape)}")
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes), (AxisType.Auto,) * len(sizes), devices=devices)


def shard_batch(batch: PyTree, mesh: Mesh, *, axis: str = "data", local: bool = False) -> PyTree:
    """The batch with its examples divided among the devices along one axis of the mesh.

    Parameters
    ----------
    batch : pytree              leaves [N, ...], N a multiple of the devices along the axis
    mesh : Mesh                 of `mesh`, or jax's own
    axis : str                  its name there
    local : bool                the leaves are this process's own examples; else all are here, on every process
    Returns
    -------
    pytree                      jax arrays of all examples: what every analysis of a loss and `train.fit` take
    Raises
    ------
    ValueError, TypeError       leaves of different lengths, a length that does not divide, an axis that is not there
    """
    batch, parts = checks.leaves("batch", batch), _parts(mesh, axis)
    count = checks.length("batch", batch) * (jax.process_count() if checks.flag("local", local) else 1)
    if count % parts:
        kept = f"leave {count % parts} out or repeat {parts - count % parts}"
        raise checks.BadValue(
            f"batch must hold a multiple of {parts} examples, one share a device; got {count}: {kept}"
        )
    place = NamedSharding(mesh, PartitionSpec(axis))
    if local:
        return jax.tree.map(lambda leaf: _joined(leaf, place), batch)
    return jax.tree.map(lambda leaf: _put(leaf, place), batch)


def shard_parameters(params: PyTree, mesh: Mesh, *, axis: str = "data", least: int = LEAST) -> PyTree:
    """Parameters divided among devices leaf by leaf, as fully sharded data parallel training (FSDP, ZeRO) has them.

    The longest axis of a leaf that the devices divide is divided; a leaf that has none, or few entries, is everywhere.

    Parameters
    ----------
    params : pytree             arrays; on every process the same
    mesh : Mesh                 of `mesh`, or jax's own
    axis : str                  its name there: the one of the batch, so that each device has its part of both
    least : int                 entries below which a leaf is not divided
    Returns
    -------
    pytree                      the same arrays; optimizer states made of them lie alike
    Raises
    ------
    ValueError, TypeError       leaves that are not arrays, an axis that is not there
    Source: Rajbhandari et al. 2020, arXiv:1910.02054, stage 3.
    """
    params, parts = checks.leaves("params", params), _parts(mesh, axis)
    least = checks.whole("least", least, least=0)
    return jax.tree.map(lambda leaf: _put(leaf, NamedSharding(mesh, _spec(np.shape(leaf), parts, axis, least))), params)


def replicate(tree: PyTree, mesh: Mesh) -> PyTree:
    """The arrays on every device of the mesh.

    Parameters
    ----------
    tree : pytree               arrays; on every process the same
    mesh : Mesh                 of `mesh`, or jax's own
    Raises
    ------
    ValueError, TypeError       a leaf that is not an array, not a mesh
    """
    place = NamedSharding(checks.instance("mesh", mesh, Mesh), PartitionSpec())
    return jax.tree.map(lambda leaf: _put(leaf, place), checks.leaves("tree", tree))


def gather(tree: PyTree) -> PyTree:
    """The arrays whole, as NumPy's, on every process: for files and figures, not for what is large.

    Parameters
    ----------
    tree : pytree               arrays, wherever they are; called by all processes
    Raises
    ------
    ValueError, TypeError       a leaf that is not an array
    """
    return jax.tree.map(_gathered, checks.leaves("tree", tree))


def over_seeds(
    function: Callable[..., PyTree], keys: Key[Array, "S"], *arguments: PyTree, mesh: Mesh, axis: str = "data"
) -> PyTree:
    """function(key, *arguments) for every key, the keys divided among devices: NumPy arrays with a leading axis S.

    No device waits for another. Where the devices do not divide S, some keys are computed twice and left out.

    Parameters
    ----------
    function : function         (key, *arguments) -> pytree of arrays; traceable; compiled once, and for what it holds
    keys : keys [S]             typed
    arguments : pytrees         the same for every key: data
    mesh : Mesh                 of `mesh`, or jax's own
    axis : str                  its name there
    Raises
    ------
    ValueError, TypeError       no typed keys, a function that takes other arguments, an axis that is not there
    """
    call = f"function(key{', ...' if arguments else ''})"
    function = checks.accepts("function", function, 1 + len(arguments), call)
    if not checks.is_key(keys) or keys.ndim != 1 or not keys.shape[0]:
        raise checks.BadType(
            f"keys must be an array [S] of typed keys, as jax.random.split gives; got {checks.shown(keys)}"
        )
    parts, count = _parts(mesh, axis), keys.shape[0]
    words, kind = np.asarray(jax.random.key_data(keys)), str(jax.random.key_impl(keys))
    words = words[np.arange(-(-count // parts) * parts) % count]
    words = _put(words, NamedSharding(mesh, PartitionSpec(axis)))
    found = _mapped(function, kind, words, replicate(arguments, mesh) if arguments else ())
    return jax.tree.map(lambda leaf: _gathered(leaf)[:count], found)


@functools.partial(jit, static_argnums=(0, 1))
def _mapped(function, kind, words, arguments):
    keys = jax.random.wrap_key_data(words, impl=kind)
    return jax.vmap(lambda key: function(key, *arguments))(keys)


def _devices(devices):
    if isinstance(devices, str) or not hasattr(devices, "__iter__"):
        raise checks.BadType(f"devices must be a sequence of jax devices; got {checks.shown(devices)}")
    devices = list(devices)
    if not devices or not all(isinstance(device, jax.Device) for device in devices):
        raise checks.BadValue(f"devices must be jax devices, at least one; got {devices!r:.80}")
    return devices


def _shape(shape):
    checks.instance("shape", shape, Mapping)
    for name, size in shape.items():
        checks.instance("shape, its names,", name, str)
        if checks.whole(f"shape[{name!r}]", size, least=-1) == 0:
            raise checks.BadValue(f"shape[{name!r}] must be at least 1, or -1 for what is left; got 0")
    if not shape or list(shape.values()).count(-1) > 1:
        raise checks.BadValue(f"shape must name at least one axis, at most one of them -1; got {dict(shape)}")
    return shape


def _parts(mesh, axis):
    """Devices along the axis."""
    checks.instance("mesh", mesh, Mesh)
    return mesh.shape[checks.one_of("axis", axis, mesh.axis_names)]


def _spec(shape, parts, axis, least):
    places = [place for place, size in enumerate(shape) if size % parts == 0 and size >= parts]
    if math.prod(shape) < least or not places:
        return PartitionSpec()
    longest = max(places, key=lambda place: shape[place])
    return PartitionSpec(*[axis if place == longest else None for place in range(longest + 1)])


def _put(leaf, place):
    """The array there; every process has all of it, or it is a jax array already."""
    if jax.process_count() == 1 or (isinstance(leaf, jax.Array) and not leaf.is_fully_addressable):
        return jax.device_put(leaf, place)
    if checks.is_key(leaf):
        return jax.random.wrap_key_data(_put(jax.random.key_data(leaf), place), impl=jax.random.key_impl(leaf))
    leaf = np.asarray(leaf)
    return jax.make_array_from_callback(leaf.shape, place, lambda index: leaf[index])


def _joined(leaf, place):
    """The array of which every process has its own part."""
    if checks.is_key(leaf):
        return jax.random.wrap_key_data(_joined(jax.random.key_data(leaf), place), impl=jax.random.key_impl(leaf))
    return jax.make_array_from_process_local_data(place, np.asarray(leaf))


def _gathered(leaf):
    if checks.is_key(leaf):
        leaf = jax.random.key_data(leaf)
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return np.asarray(leaf)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))
