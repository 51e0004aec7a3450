"""MEASURED: statistics of numbers that pass by: states and weights on the way forward, cotangents on the way back.

`at` is an identity whose backward rule writes the cotangent's size into the "gradient" of a small array of zeros, the
*sink*. Sizes are pairs: in one pass (mean square, max |.|), or, the careful way, (rms, how many are not finite).
"""

import functools

import jax
import jax.numpy as jnp

from numdl import _effort, precision

# |state| beyond which the slope is under 5 % of the steepest one: 1 - tanh(y)^2, 4 s(1 - s), exp(-y^2)
SATURATION = {"tanh": 2.178275, "sigmoid": 4.356550, "erf": 1.730818}
# the state below which |slope| stays under 5 % of the steepest one
DEATH = {
    "relu": 0.0,
    "relu6": 0.0,
    "gelu": -2.278561,
    "gelu_tanh": -2.285700,
    "silu": -3.929890,
    "softplus": -2.944439,
    "elu": -2.995732,
    "selu": -2.995732,
}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def at(careful, values, sinks):
    """The arrays `values`; the gradient of each of `sinks` is the size of the cotangent that comes by."""
    return values


def _backward(careful, sinks, cotangents):
    heard = [_heard(careful, cotangent, sink) for cotangent, sink in zip(cotangents, sinks, strict=True)]
    return cotangents, tuple(heard)


at.defvjp(lambda careful, values, sinks: (values, sinks), _backward)


def _heard(careful, cotangent, sink):
    if cotangent.dtype == jax.dtypes.float0:
        return jnp.zeros_like(sink)
    return jnp.stack([each.astype(sink.dtype) for each in magnitude(careful, cotangent)])


def sink(dtype, steps=()):
    """Zeros that receive a size, for each step of the scans around it."""
    return jnp.zeros((*steps, 2), wide(dtype))


def wide(dtype):
    """The real dtype in which statistics of such numbers are accumulated: float32 at least."""
    real = jnp.finfo(dtype).dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.float32
    return precision.wide(real)


@functools.partial(_effort.jit, static_argnums=0)
def magnitude(careful, array):
    """The size of |array|."""
    return _size(careful, jnp.abs(array).astype(wide(array.dtype)))


@functools.partial(_effort.jit, static_argnums=(0, 1, 2, 3))
def state_statistics(careful, nonlinearity, units, rank_examples, state):
    """All statistics of one state: dict of scalars, in float32 at least; nan of a state without numbers."""
    state = state.astype(precision.wide(state.dtype))
    size, nan = jnp.abs(state), jnp.full((), jnp.nan, wide(state.dtype))
    square, largest = _size(careful, size)[0], jnp.max(size, initial=0) if state.size else nan
    mean = jnp.mean(state)
    rank, cosine = (
        _gram_statistics(state, largest, rank_examples)
        if rank_examples and state.ndim > 1 and state.size
        else (nan, nan)
    )
    return {
        "state_mean": jnp.abs(mean) if jnp.iscomplexobj(mean) else mean,
        "state_rms": square,
        "state_max": largest,
        "effective_rank": rank,
        "mean_cosine": cosine,
        "state_nonfinite": jnp.sum(~jnp.isfinite(size), dtype=jnp.int32) if careful else jnp.zeros((), jnp.int32),
        **activity(nonlinearity, units, state),
    }


@functools.partial(_effort.jit, static_argnums=(0, 1))
def activity(nonlinearity, units, value):
    """The shares of saturated numbers and of dead units where this nonlinearity acts; nan where it has none."""
    real = wide(value.dtype)
    saturated = dead = jnp.full((), jnp.nan, real)
    if not value.size:
        return {"saturated": saturated, "dead": dead}
    if nonlinearity in SATURATION:
        saturated = jnp.mean(jnp.abs(value) > SATURATION[nonlinearity], dtype=real)
    if nonlinearity in DEATH and not jnp.iscomplexobj(value):
        others = tuple(axis for axis in range(value.ndim) if axis not in units)
        dead = jnp.mean(jnp.max(value, axis=others) <= DEATH[nonlinearity], dtype=real)
    return {"saturated": saturated, "dead": dead}


def _gram_statistics(state, largest, rank_examples):
    """Participation ratio of the Gram matrix of some examples, and the mean cosine between two of them."""
    stride = -(-state.shape[0] // rank_examples)
    rows = state[::stride].reshape(-(-state.shape[0] // stride), -1) / _scale(largest)
    gram = rows @ rows.conj().T
    squares = jnp.sum(jnp.abs(rows) ** 2, axis=1)
    rank = jnp.sum(squares) ** 2 / jnp.sum(jnp.abs(gram) ** 2)
    unit = jax.lax.rsqrt(squares)
    count = rows.shape[0]
    cosines = jnp.sum(jnp.real(gram) * unit[:, None] * unit[None, :]) - count
    return rank, cosines / (count * (count - 1)) if count > 1 else jnp.full((), jnp.nan, rank.dtype)


def _scale(largest):
    """A number to divide by before squaring, so that 1e-30 and 1e30 keep their squares."""
    return jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)


def _size(careful, size):
    """(mean square, max), or the careful way, scaled before squaring: (rms, how many numbers are not finite)."""
    largest = jnp.max(size, initial=0)
    if not careful:
        return jnp.mean(size**2), largest
    scale = _scale(largest)
    return scale * jnp.sqrt(jnp.mean((size / scale) ** 2)), jnp.sum(~jnp.isfinite(size), dtype=size.dtype)


def together(careful, sizes):
    """The size of all arrays whose sizes are [..., 2], each of as many numbers."""
    first, second = sizes[..., 0].ravel(), sizes[..., 1].ravel()
    if not careful:
        return jnp.stack([jnp.mean(first), jnp.max(second, initial=0)])
    scale = _scale(jnp.max(first, initial=0))
    return jnp.stack([scale * jnp.sqrt(jnp.mean((first / scale) ** 2)), jnp.sum(second)])


def rms(careful, size, largest):
    """(rms, whether it can be trusted) of sizes: squares near the ends of the range cannot, an exact zero can."""
    if careful:
        return size, jnp.ones(size.shape, bool)
    limits = jnp.finfo(size.dtype)
    inside = (size > float(limits.tiny) ** 0.75) & (size < float(limits.max) ** 0.75)
    return jnp.sqrt(size), inside | (largest == 0)


@_effort.jit
def variance(weight):
    """Var(W) in one pass: shifted by one entry, so that a large mean does not cancel it."""
    weight = weight.astype(precision.wide(weight.dtype))
    if not weight.size:
        return jnp.full((), jnp.nan, wide(weight.dtype))
    shifted = weight - weight.ravel()[0]
    return jnp.mean(jnp.abs(shifted) ** 2) - jnp.abs(jnp.mean(shifted)) ** 2
