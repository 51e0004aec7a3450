"""PREDICTED: what the arguments of this package may be, and one number after the other through an integral."""

import numpy as np

from numdl import checks


def numbers(name, value, **limits):
    """Finite float64 numbers, at least one, known outside of jit."""
    array = np.asarray(checks.finite(name, checks.concrete(name, value), **limits), np.float64)
    if not array.size:
        raise checks.BadValue(f"{name} must hold at least one number; got shape {array.shape}")
    return array


def variances(name, value):
    """Numbers >= 0."""
    return numbers(name, value, least=0.0)


def positive(name, value):
    """Numbers > 0."""
    return numbers(name, value, above=0.0)


def correlations(name, value):
    """Numbers in [-1, 1]."""
    return numbers(name, value, least=-1.0, most=1.0)


def whole(name, value, least=1):
    """Whole numbers >= least, as floats."""
    array = numbers(name, value, least=least)
    if (array != np.round(array)).any():
        wrong = array[array != np.round(array)].flat[0]
        raise checks.BadValue(f"{name} must be integers >= {least}; got {wrong:g}")
    return array


def tokens_and_correlation(tokens, c):
    """T >= 2 and a c that T tokens can have, both ways: at least -1/(T-1)."""
    t, c = np.broadcast_arrays(whole("tokens", tokens, least=2), correlations("c", c))
    least = -1 / (t - 1)
    if (c < least - 1e-12).any():
        at = np.argmax(c < least - 1e-12)
        raise checks.BadValue(
            f"c must be at least -1/(tokens - 1) = {least.flat[at]:.4g} for all pairs of {t.flat[at]:g} tokens; "
            f"got {c.flat[at]:g}"
        )
    return t, c


def each(function, *arrays):
    """The function of every entry of the broadcast arrays: [numbers that it returns, *shape]."""
    arrays = np.broadcast_arrays(*arrays)
    rows = [function(*map(float, entry)) for entry in zip(*(a.ravel() for a in arrays), strict=True)]
    return np.array(rows, np.float64).T.reshape(len(rows[0]), *arrays[0].shape)
