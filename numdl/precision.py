"""Float64 where it matters, whatever jax's global flag says: theory computes here and returns NumPy."""

import functools

import jax
import numpy as np


def float64(function):
    """Run `function` in float64 on the CPU, at once even under a trace; floats come out as NumPy float64.

    The global flag is not touched. A float64 jax array that left the context would be demoted by the next operation,
    so arrays leave as NumPy; numbers leave as `np.float64`, which formats like a float.
    """

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        with jax.ensure_compile_time_eval(), jax.enable_x64(True), jax.default_device(_cpu()):
            return jax.tree.map(lambda leaf: np.asarray(leaf)[()], function(*args, **kwargs))

    return wrapped


def _cpu():
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # a process told to see its accelerator only
        return None
