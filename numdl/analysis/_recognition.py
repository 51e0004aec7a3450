"""MEASURED: which activation a function between two layers is, told from its values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from numdl import _effort, activations

_GRID = (
    np.concatenate([np.linspace(-6.03, 5.97, 41), [-0.011, 0.013, -20.5, 21.5]]).astype(np.float32).astype(np.float64)
)
_CLOSE = 2e-5  # of the largest value: constants are float32 in most models


def recognised(function):
    """The Activation that has this function's values, a multiple of one too; None if none has. None is the identity."""
    if function is None:
        return activations.identity
    with np.errstate(all="ignore"):
        values = np.asarray(function(_GRID), np.float64)
    if values.shape != _GRID.shape or not np.isfinite(values).all() or not values.any():
        return None
    for name in activations.names():
        factor = _factor(values, _table()[name])
        if factor is not None:
            return activations.named(name) if factor == 1 else _multiple(name, factor)
    slope = round(float(values[0] / _GRID[0]), 6)
    if np.abs(values - np.where(_GRID >= 0, _GRID, slope * _GRID)).max() <= _CLOSE * np.abs(values).max():
        return activations.leaky_relu(slope)
    return None


def _factor(values, shape):
    """a where values = a * shape; None elsewhere. 1 exactly where it is within rounding."""
    factor = float(values @ shape / (shape @ shape))
    if factor == 0 or np.abs(values - factor * shape).max() > _CLOSE * np.abs(values).max():
        return None
    return 1.0 if abs(factor - 1) <= _CLOSE else float(f"{factor:.6g}")


@functools.lru_cache(maxsize=256)
def _multiple(name, factor):
    base = activations.named(name)
    return activations.custom(
        lambda x: factor * base.f(x),
        name=f"{factor:.4g} {name}",
        kinks=base.kinks,
        slope=lambda x: factor * base.slope(x),
    )


@functools.cache
def _table():
    """The values of every named activation on the grid: one program."""
    known = {name: activations.named(name).f for name in activations.names()}
    with jax.ensure_compile_time_eval():
        values = _effort.jit(lambda x: {name: f(x) for name, f in known.items()})(jnp.asarray(_GRID, jnp.float32))
    return {name: np.asarray(value, np.float64) for name, value in values.items()}


def common(found):
    """(activation, why there is none) of what was recognised between layers: the only one, if it is one."""
    kinds = list(dict.fromkeys(found))
    if len(kinds) == 1 and kinds[0] is not None:
        return kinds[0], ""
    if not kinds:
        return None, "No activation was given, and no layer reads another one's state: activation= says which."
    if None in kinds:
        return None, "No activation was given or recognised between the layers: activation= says which."
    named = ", ".join(sorted(kind.name for kind in kinds))
    return None, f"Several activations lie between the layers ({named}): no one weight variance serves them."


def names(found):
    """What was recognised, in one word or several; "unknown" where something was not."""
    kinds = sorted({kind.name if kind else "unknown" for kind in found})
    return ", ".join(kinds) or "unknown"
