"""MEASURED: many samples of one function, some at a time."""

import jax
from jax import lax

from numdl import checks


def at_a_time(value, total):
    """How many of `total` samples run together; None: 1 on a CPU, where a batch is not faster, all elsewhere."""
    if value is None:
        value = 1 if jax.default_backend() == "cpu" else total
    return min(checks.whole("at_a_time", value), total)


def each(function, inputs, together):
    """`function` of each entry of the inputs' first axis, for use inside of jit; `together` is a Python int."""
    return lax.map(function, inputs, batch_size=together if together > 1 else None)
