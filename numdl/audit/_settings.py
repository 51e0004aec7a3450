"""jax's settings while the audit works: diverging trials make not-a-numbers on purpose, and broadcast as they like."""

import contextlib
import warnings

import jax
import numpy as np


@contextlib.contextmanager
def ours():
    """The user's settings that would stop a measurement are put aside; precision, device and defaults stay theirs."""
    with contextlib.ExitStack() as stack, np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # what is not finite is a field of the evidence
        for setting, value in (
            (jax.numpy_rank_promotion, "allow"),
            (jax.numpy_dtype_promotion, "standard"),
            (jax.debug_nans, False),
            (jax.debug_infs, False),
            (jax.disable_jit, False),
            (jax.transfer_guard, "allow"),
        ):
            stack.enter_context(setting(value))
        yield
