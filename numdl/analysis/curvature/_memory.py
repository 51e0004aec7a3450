"""MEASURED: the memory that a curvature call needs at once, counted from shapes before it begins."""

import math
import os
from contextlib import suppress

import jax
import numpy as np

from numdl import checks
from numdl.analysis.curvature._operators import Operator, examples, multiplications
from numdl.krylov import _places, _vectors
from numdl.records import record

CACHE = 2**23  # bytes of a chunk's activations that a core reads from its caches rather than from memory
DENSE = 64  # multiplications for each byte kept from which on reading it is not what takes the time
_LESS = "a smaller k, or one block of the parameters"


@record
class MemoryUse:
    """Bytes held at once on a device beside parameters and data; nothing is computed or compiled to know them."""

    vector: int  # one vector of the size of the parameters
    basis: int  # all vectors of the method, with those of a restart
    product: int  # activations of one product, or of the linearization that is kept
    total: int
    available: float  # on the device, inf where the system does not tell

    @property
    def enough(self):
        """Whether it fits, with a tenth to spare."""
        return self.total <= 0.9 * self.available


def needs(operator: Operator, *, basis: int, extra: int = 4) -> MemoryUse:
    """MEASURED memory of a method that holds `basis` vectors and `extra` others beside the product's activations.

        total = vector (2 basis + extra) + product

    The factor 2 is the moment of a restart, when the old basis and the new one are there.

    Parameters
    ----------
    operator : Operator         with `chunk`, the activations are those of one chunk
    basis : int >= 1            vectors of the method
    extra : int >= 0            vectors beside them
    Returns
    -------
    MemoryUse                   bytes: vector, basis, product, total, available; `enough`
    Raises
    ------
    ValueError, TypeError       a count out of its range, not an Operator
    Source: the definition.
    """
    basis, extra = checks.whole("basis", basis), checks.whole("extra", extra, least=0)
    if not hasattr(operator, "like") or not hasattr(operator, "kept_bytes"):
        raise checks.BadType(f"operator must be an Operator, made by hessian or gauss_newton; got {operator!r}")
    layout = _vectors.layout("params", operator.like)
    vector = int(layout.size * layout.dtype.itemsize * _share_of_vectors(operator.like))
    product = int(operator.kept_bytes * _share_of_examples(operator.batch))
    held = (2 * basis + extra) * vector
    return MemoryUse(vector, 2 * basis * vector, product, held + product, available())


def chosen(operator, vectors=0):
    """The chunk that `chunk="auto"` stands for beside this many vectors; None: all at once."""
    free = available()
    if vectors:
        layout = _vectors.layout("params", operator.like)
        free = 0.9 * free - vectors * layout.size * layout.dtype.itemsize * _share_of_vectors(operator.like)
    chunk, fits = largest(operator, free)
    return chunk if fits or not vectors else None  # what no chunk mends is refused as it is


def quick(operator):
    """The chunk that is faster than all examples at once on a processor, a power of 2; None: none is.

    Where there are few multiplications for each activation (convolutions), those of a chunk should stay in the cache.
    """
    leaves = jax.tree.leaves(operator.batch)
    if jax.default_backend() != "cpu" or _vectors.traced(operator) or _places.places(leaves) is not None:
        return None
    count = examples(operator.batch)
    whole = operator.kept_bytes_of(count) if count > 1 else 0
    if whole <= 2 * CACHE or multiplications(operator) >= DENSE * whole:
        return None
    each = (whole - operator.kept_bytes_of(count // 2)) / (count - count // 2)
    chunk = 2 ** int(math.log2(max(CACHE / max(each, 1), 1)))
    return chunk if 8 <= chunk <= count // 2 else None


def largest(operator, free):
    """(the largest chunk, or None for all examples at once; whether its product fits into half of `free`).

    A product is counted as its linearization, which holds more than a compiled product does. Shapes alone tell it for
    all examples and for half of them: what no chunk makes smaller, and a part in proportion to the examples.

        fixed + each chunk <= fixed + (free - fixed) / 2
    """
    count = examples(operator.batch)
    whole = operator.kept_bytes_of(count)
    if whole <= free / 2 or count == 1:
        return None, whole <= free / 2
    each = (whole - operator.kept_bytes_of(count // 2)) / (count - count // 2)
    fixed = whole - each * count
    chunk = count if each <= 0 else int(max(free - fixed, 0) / 2 / each)
    return (None if chunk >= count else max(chunk, 1)), chunk >= 1


def _alike(devices):
    """How many of these devices share a memory: those of a host's processor."""
    return min(devices, jax.local_device_count()) if jax.default_backend() == "cpu" else 1


def _share_of_vectors(params):
    """The part of a Krylov vector that counts against one memory: each device has its own entries."""
    places = _places.places(jax.tree.leaves(params))
    return 1.0 if places is None else _alike(places.devices) / places.devices


def _share_of_examples(batch):
    """The part of the activations that counts against one memory: they lie as the examples do."""
    leaves = [leaf for leaf in jax.tree.leaves(batch) if np.size(leaf)]
    if _places.places(leaves) is None:
        return 1.0
    whole, parts = 0, 0
    for leaf in leaves:
        place = getattr(leaf, "sharding", None)
        own = leaf.shape if place is None else place.shard_shape(leaf.shape)
        devices = 1 if place is None else len(place.device_set)
        whole, parts = whole + np.size(leaf), parts + math.prod(own) * _alike(devices)
    return min(parts / whole, 1.0)


def check(name, plan, operator, *, least):
    """Raise MemoryError, with the remedy, if the plan does not fit."""
    if plan.enough:
        return
    raise MemoryError(
        f"{name} needs {_size(plan.total)} at once ({_size(plan.basis)} for the basis, {_size(plan.product)} for the "
        f"activations) and {_size(plan.available)} are free: take {_remedy(plan, operator, least)}"
    )


def available():
    """Bytes free on the default device: of the accelerator, or of the machine; inf where unknown."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return float(statistics["bytes_limit"] - statistics.get("bytes_in_use", 0))
    with suppress(OSError, KeyError, ValueError), open("/proc/meminfo") as lines:
        found = dict(line.split(":", 1) for line in lines)
        return 1024.0 * int(found["MemAvailable"].split()[0])
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, OSError, ValueError):
        return np.inf


def _remedy(plan, operator, least):
    """A smaller basis, a chunk, or both; else what there is to do beside them."""
    limit, held = 0.9 * plan.available, plan.total - plan.product
    large = plan.product > 0.45 * plan.available

    def basis(product):
        rows = int((limit - product - held + plan.basis) / plan.vector / 2)
        return f"basis={rows}" if rows >= least else _LESS

    if not large and basis(plan.product) != _LESS:
        return basis(plan.product)
    try:
        chunk = _fewer(operator, limit - held)
        if chunk or not large:
            return f"chunk={chunk}" if chunk else _LESS
        chunk = _fewer(operator, limit)
        return f"chunk={chunk} and {basis(operator.kept_bytes_of(chunk))}" if chunk else _LESS
    except (TypeError, ValueError):  # the data have no axis of examples, or the loss knows how many there are
        return "a smaller batch" if large else _LESS


def _fewer(operator, free):
    """The chunk that makes a product small enough, or None."""
    chunk, fits = largest(operator, free)
    return chunk if fits and chunk and chunk < (operator.chunk or np.inf) else None


def _size(count):
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.3g} {unit}"
        count /= 1024
