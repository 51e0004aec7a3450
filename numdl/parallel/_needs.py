"""The memory of a call before it is made, as XLA plans it."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from numdl import checks
from numdl.analysis.curvature import _memory
from numdl.records import record


@record
class Memory:
    """Bytes on each device while a compiled call runs; those of the host's devices add up, where they share it."""

    arguments: int  # what it is given
    outputs: int  # what it returns
    temporaries: float  # what it holds between, at its most; nan where the backend does not say
    devices: int  # that take part
    total: float  # of the three, on one device
    available: float  # free there now, inf where unknown; arguments that are arrays already are not free any more

    @property
    def enough(self):
        """Whether the total fits with a tenth to spare; False where it is unknown."""
        return bool(self.total <= 0.9 * self.available)


def needs(function: Callable[..., Any], *arguments: Any) -> Memory:
    """The memory that function(*arguments) will need, compiled but not run: a memory pre-flight check.

        total = arguments + outputs + temporaries,    of one device, what is donated or aliased counted once

    Parameters
    ----------
    function : function         of arrays; traceable: a loss, its gradient, a product, a step of training
    arguments : pytrees         arrays, or `jax.ShapeDtypeStruct` with a sharding: nothing has to exist
    Returns
    -------
    Memory                      arguments, outputs, temporaries, devices, total, available; `enough`
    Raises
    ------
    TypeError                   not a function, or one that takes other arguments
    Source: `jax.stages.Compiled.memory_analysis`.
    """
    function = checks.accepts("function", function, len(arguments), "function(*arguments)")
    compiled = jax.jit(function).lower(*arguments).compile()
    found = compiled.memory_analysis()
    devices = _devices(arguments)
    shared = min(devices, jax.local_device_count()) if jax.default_backend() == "cpu" else 1
    available = _memory.available() / shared
    if found is None:
        given, made = (_bytes(tree) for tree in (arguments, jax.eval_shape(function, *arguments)))
        return Memory(given, made, np.nan, devices, np.nan, available)
    given, made, held = (
        found.argument_size_in_bytes,
        found.output_size_in_bytes - found.alias_size_in_bytes,
        found.temp_size_in_bytes,
    )
    return Memory(given, made, float(held), devices, float(given + made + held), available)


def _devices(arguments):
    places = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(arguments)]
    return max([len(place.device_set) for place in places if place is not None], default=1)


def _bytes(tree):
    """On one device."""
    return sum(_part(leaf) * np.dtype(leaf.dtype).itemsize for leaf in jax.tree.leaves(tree))


def _part(leaf):
    place = getattr(leaf, "sharding", None)
    return int(np.prod(np.shape(leaf) if place is None else place.shard_shape(np.shape(leaf))))
