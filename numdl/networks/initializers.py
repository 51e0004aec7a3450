"""Initial weights with exact moments: the variance of an entry is what was asked for, its kurtosis is known.

An `Initializer` is called like jax's own, `(key, shape, dtype)`, for weights (fan_in, fan_out) or kernels HWIO.
"normal" means Gaussian: what other libraries call Glorot, He or LeCun "normal" is often a Gaussian cut at two
deviations, here law="truncated_normal". Variances are data of a compiled function: another one compiles nothing.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jax.typing import DTypeLike
from jaxtyping import ScalarLike

from numdl import _random, checks, precision
from numdl.records import record, static

MODES = ("fan_in", "fan_out", "fan_average")


@record
class Initializer:
    """A law for the weights of one layer, and the exact moments of one entry."""

    name: str = static()
    sample: Callable = dataclasses.field(repr=False)  # (key, shape, dtype) -> weights of that shape
    entry_variance: Callable = dataclasses.field(repr=False)  # shape -> Var(W_ij)
    excess_kurtosis: Callable = dataclasses.field(repr=False)  # shape -> E W_ij^4 / Var(W_ij)^2 - 3
    # (key, z [fan_in], fan_out) -> z W for a W that nothing else sees, in law and without W; None: W must be drawn
    applied: Callable | None = dataclasses.field(default=None, repr=False)

    def __post_init__(self):
        for name in ("sample", "entry_variance", "excess_kurtosis", "applied"):
            function = getattr(self, name)
            if callable(function):
                object.__setattr__(self, name, checks.as_pytree(function))

    def __call__(self, key, shape, dtype):
        """Weights of this shape, the arguments checked."""
        return self.sample(checks.key("key", key), tuple(shape), float_dtype("dtype", dtype))


def variance_scaling(weight_variance: ScalarLike, *, mode: str = "fan_in", law: str = "normal") -> Initializer:
    """Independent entries with Var(W_ij) = weight_variance / fan.

    Parameters
    ----------
    weight_variance : scalar    fan * Var(W_ij), dimensionless, >= 0
    mode : str                  fan_in = product of all axes but the last; fan_out = last axis times the window;
                                fan_average = their mean
    law : str                   normal, uniform, truncated_normal (a Gaussian cut at two deviations) or rademacher
    Returns
    -------
    Initializer
    Raises
    ------
    ValueError, TypeError       a negative or infinite variance, an unknown mode or law
    Source: Glorot & Bengio 2010; He et al. 2015, arXiv:1502.01852.
    """
    weight_variance = checks.variance("weight_variance", weight_variance, shape=())
    checks.one_of("mode", mode, MODES)
    checks.one_of("law", law, tuple(_LAWS))
    return _independent(f"{law}, {mode}", law, mode, weight_variance)


def orthogonal(weight_variance: ScalarLike) -> Initializer:
    """Haar orthogonal matrices times a scale: fan_in * Var(W_ij) = weight_variance, rectangular ones too.

        W = sqrt(weight_variance * max(fan_in, fan_out) / fan_in) * Q,   Q'Q = I or QQ' = I

    so a square W preserves lengths at weight_variance = 1. A kernel HWIO is the matrix (H*W*I, O), reshaped.

    Parameters
    ----------
    weight_variance : scalar    fan_in * Var(W_ij), dimensionless, >= 0
    Returns
    -------
    Initializer
    Raises
    ------
    ValueError, TypeError       a negative or infinite variance
    Source: Saxe et al. 2014, arXiv:1312.6120; Haar by QR with signs: Mezzadri 2007, arXiv:math-ph/0609050.
    """
    weight_variance = checks.variance("weight_variance", weight_variance, shape=())
    return Initializer(
        "orthogonal",
        sample=Partial(_sample_orthogonal, weight_variance),
        entry_variance=Partial(_variance("fan_in"), weight_variance),
        excess_kurtosis=Partial(_orthogonal_kurtosis),
        applied=Partial(_apply_orthogonal, weight_variance),
    )


def normal(entry_variance: ScalarLike) -> Initializer:
    """Gaussian entries of this variance, whatever the shape.

    Parameters
    ----------
    entry_variance : scalar     Var(W_ij), >= 0
    Returns
    -------
    Initializer
    Raises
    ------
    ValueError, TypeError       a negative or infinite variance
    """
    return _fixed("normal", checks.variance("entry_variance", entry_variance, shape=()))


def truncated_normal(entry_variance: ScalarLike) -> Initializer:
    """Gaussian entries cut at two deviations.

    Parameters
    ----------
    entry_variance : scalar     Var(W_ij) after the cut, >= 0
    Returns
    -------
    Initializer
    Raises
    ------
    ValueError, TypeError       a negative or infinite variance
    """
    return _fixed("truncated_normal", checks.variance("entry_variance", entry_variance, shape=()))


def rademacher(entry_variance: ScalarLike) -> Initializer:
    """Entries plus or minus sqrt(entry_variance), each with probability one half.

    Parameters
    ----------
    entry_variance : scalar     Var(W_ij), >= 0
    Returns
    -------
    Initializer
    Raises
    ------
    ValueError, TypeError       a negative or infinite variance
    """
    return _fixed("rademacher", checks.variance("entry_variance", entry_variance, shape=()))


def uniform(half_width: ScalarLike) -> Initializer:
    """Entries uniform in [-half_width, half_width), so of variance half_width**2 / 3.

    Parameters
    ----------
    half_width : scalar         >= 0
    Returns
    -------
    Initializer
    Raises
    ------
    ValueError, TypeError       a negative or infinite width
    """
    half_width = checks.finite("half_width", half_width, least=0.0, shape=())
    return _fixed("uniform", half_width**2 / 3)


def float_dtype(name: str, dtype: DTypeLike) -> np.dtype:
    """The dtype, if it is real floating point and available under the current flags.

    Parameters
    ----------
    name : str                  of the argument, for the message
    dtype : dtype               "float32" or jnp.bfloat16, for example
    Returns
    -------
    dtype
    Raises
    ------
    ValueError, TypeError       not a dtype, not a floating one, float64 without jax_enable_x64
    """
    dtype = checks.known_dtype(name, dtype)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise checks.BadType(f"{name} must be a real floating-point dtype; got {dtype}")
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise checks.BadValue(f"{name} must be at most 32 bits wide unless jax_enable_x64 is set; got {dtype}")
    return dtype


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """(fan_in, fan_out) of weights (fan_in, fan_out) or of a kernel HWIO.

        fan_in = product of all axes but the last,   fan_out = last axis times the window

    Parameters
    ----------
    shape : sequence of int     at least two, each >= 1
    Returns
    -------
    (int, int)
    Raises
    ------
    ValueError, TypeError       fewer than two axes, lengths below 1
    Source: the definition.
    """
    shape = checks.wholes("shape", shape)
    if len(shape) < 2:
        raise checks.BadValue(f"shape must have at least 2 axes, (fan_in, fan_out) or HWIO; got {tuple(shape)}")
    return math.prod(shape[:-1]), math.prod(shape[:-2]) * shape[-1]


def _independent(name, law, mode, variance):
    return Initializer(
        name,
        sample=Partial(_sampler(law, mode), variance),
        entry_variance=Partial(_variance(mode), variance),
        excess_kurtosis=Partial(_kurtosis(law)),
        applied=Partial(_applier(mode), variance) if law == "normal" else None,
    )


def _fixed(law, variance):
    return _independent(law, law, "entry", variance)


# Cached, so that equal laws are the same function and a compiled caller is found again.
@functools.lru_cache(maxsize=256)
def _sampler(law, mode):
    draw, _ = _LAWS[law]

    def sample(variance, key, shape, dtype):
        return _scaled(draw(key, shape, _working(dtype)), _variance(mode)(variance, shape), dtype)

    return sample


@functools.lru_cache(maxsize=256)
def _applier(mode):
    """z W is Gaussian for Gaussian W, with variance |z|^2 Var(W_ij) in every direction."""

    def applied(variance, key, z, fan_out):
        unit = _random.normal(key, (fan_out,), _working(z.dtype))
        size = jnp.linalg.norm(z.astype(unit.dtype))
        return _scaled(size * unit, _variance(mode)(variance, (z.size, fan_out)), z.dtype)

    return applied


@functools.lru_cache(maxsize=256)
def _variance(mode):
    return lambda variance, shape: variance / _fan(mode, shape)


@functools.lru_cache(maxsize=256)
def _kurtosis(law):
    return lambda shape: _LAWS[law][1]


def _fan(mode, shape):
    if mode == "entry":
        return 1
    fan_in, fan_out = fans(shape)
    return {"fan_in": fan_in, "fan_out": fan_out, "fan_average": (fan_in + fan_out) / 2}[mode]


def _working(dtype):
    """Half precision is drawn in float32 and cast: its own random numbers have too few values."""
    return precision.wide(dtype)


def _scaled(unit, variance, dtype):
    return (unit * jnp.sqrt(jnp.asarray(variance, unit.dtype))).astype(dtype)


def _sample_orthogonal(weight_variance, key, shape, dtype):
    fan_in, fan_out = math.prod(shape[:-1]), shape[-1]
    long, short = max(fan_in, fan_out), min(fan_in, fan_out)
    q, r = jnp.linalg.qr(_random.normal(key, (long, short), _working(dtype)))
    # R with a positive diagonal makes the factorization unique, and Q then inherits the invariance of the Gaussian.
    q = q * jnp.where(jnp.diagonal(r) < 0, -1, 1).astype(q.dtype)[None, :]
    matrix = q if fan_in >= fan_out else q.T
    return _scaled(matrix, weight_variance * (long / fan_in), dtype).reshape(shape)


def _apply_orthogonal(weight_variance, key, z, fan_out):
    """z Q is |z| times the first coordinates of a uniform unit vector, as long as the longer side."""
    long = max(z.size, fan_out)
    normal = _random.normal(key, (long,), _working(z.dtype))
    size = jnp.linalg.norm(z.astype(normal.dtype)) / jnp.linalg.norm(normal)
    return _scaled(size * normal[:fan_out], weight_variance * (long / z.size), z.dtype)


def _orthogonal_kurtosis(shape):
    """An entry is a coordinate of a uniform unit vector u of length n: E u^4 = 3 / (n (n + 2)), Var u = 1/n."""
    return -6 / (max(math.prod(shape[:-1]), shape[-1]) + 2)


def _truncated_moments(cut):
    """Variance and excess kurtosis of a unit Gaussian restricted to [-cut, cut], by parts."""
    density = math.exp(-(cut**2) / 2) / math.sqrt(2 * math.pi)
    edge = 2 * density / math.erf(cut / math.sqrt(2))
    second = 1 - cut * edge
    fourth = 3 * second - cut**3 * edge
    return second, fourth / second**2 - 3


_TRUNCATED_VARIANCE, _TRUNCATED_KURTOSIS = _truncated_moments(2.0)


def _truncated(key, shape, dtype):
    return _random.truncated_normal(key, -2.0, 2.0, shape, dtype) / math.sqrt(_TRUNCATED_VARIANCE)


def _normal(key, shape, dtype):
    return _random.normal(key, shape, dtype)


def _uniform(key, shape, dtype):
    return _random.uniform(key, shape, dtype, -math.sqrt(3), math.sqrt(3))


def _signs(key, shape, dtype):
    """Plus and minus one, 32 of them from every random word."""
    count = math.prod(shape)
    words = _random.bits(key, (-(-count // 32), 1), jnp.uint32)
    ones = (words >> jnp.arange(32, dtype=jnp.uint32)[None]).ravel()[:count] & 1
    return jnp.where(ones == 1, 1, -1).astype(dtype).reshape(shape)


# law: (draws of unit variance, excess kurtosis)
_LAWS = {
    "normal": (_normal, 0.0),
    "uniform": (_uniform, -1.2),
    "truncated_normal": (_truncated, _TRUNCATED_KURTOSIS),
    "rademacher": (_signs, -2.0),
}

glorot_uniform = _independent("glorot_uniform", "uniform", "fan_average", 1.0)
glorot_normal = _independent("glorot_normal", "normal", "fan_average", 1.0)
he_uniform = _independent("he_uniform", "uniform", "fan_in", 2.0)
he_normal = _independent("he_normal", "normal", "fan_in", 2.0)
lecun_uniform = _independent("lecun_uniform", "uniform", "fan_in", 1.0)
lecun_normal = _independent("lecun_normal", "normal", "fan_in", 1.0)
