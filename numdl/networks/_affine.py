"""Affine maps y W + b: which law draws W, stacks of kernels, all biases at once, and the map itself.

Weights are {"kernel": [n_in, n_out], "bias": [n_out]}; those of equal layers have an axis of depth in front. What a
builder of networks needs at its door (one law for its weights, the dtype of its parameters) is here, too.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from numdl import _random, checks, precision
from numdl.networks import initializers
from numdl.networks.initializers import Initializer


def apply(weights, y, *, product=jnp.matmul):
    """y W + b, the bias along the last axis.

    product : function          (y, kernel) -> y W; a convolution, for example
    """
    z = product(y, weights["kernel"])
    return z + jnp.broadcast_to(weights["bias"], z.shape)


def kernels(weights, key, layers, shape, dtype):
    """Independent kernels [layers, *shape] by this Initializer."""
    if layers == 1:
        return weights.sample(key, shape, dtype)[None]
    # A map, not a vmap: small draws stay in the cache, and a batched QR would hold all its matrices at once.
    return lax.map(lambda layer_key: weights.sample(layer_key, shape, dtype), jax.random.split(key, layers))


def biases(key, shapes, variances, dtype):
    """Gaussian biases, one array for each shape, all from one draw: every generator costs compilation.

    variances : sequence of scalars     Var(b_i) for each shape
    """
    sizes = [math.prod(shape) for shape in shapes]
    unit = _random.normal(key, (sum(sizes),), precision.wide(dtype))
    parts = jnp.split(unit, list(itertools.accumulate(sizes))[:-1])
    return [
        (part * jnp.sqrt(jnp.asarray(variance, unit.dtype))).astype(dtype).reshape(shape)
        for part, variance, shape in zip(parts, variances, shapes, strict=True)
    ]


def law(weight_variance, initializer, *, entries=None):
    """The Initializer of a network's weights, from exactly one of the two ways to ask for it.

    entries : str               the law of the entries where a variance is given; Gaussian if None
    """
    if (weight_variance is None) == (initializer is None):
        got = "neither" if initializer is None else f"weight_variance={weight_variance!r} and {initializer!r}"
        raise checks.BadValue(f"exactly one of weight_variance and initializer must be given; got {got}")
    if initializer is None:
        return initializers.variance_scaling(weight_variance, law="normal" if entries is None else entries)
    if entries is not None:
        raise checks.BadValue(f"law must be None where an initializer is given; got {entries!r}")
    return checked_law("initializer", initializer)


def law_or(name, weight_variance, otherwise):
    """Gaussian weights of this variance, or the other law where it is None."""
    if weight_variance is None:
        return otherwise
    return initializers.variance_scaling(checks.variance(name, weight_variance, shape=()))


def checked_law(name, value):
    """The value, if it is an Initializer."""
    return checks.instance(name, value, Initializer, hint="such as initializers.orthogonal(1.0)")


def asked_dtype(dtype):
    """The dtype that a builder was asked for, checked; None stands for that of the input."""
    return None if dtype is None else initializers.float_dtype("dtype", dtype)


def dtype_at_init(key, x, dtype=None, *, ndim=None):
    """The dtype of the parameters, x's unless another was asked for; key and x are checked."""
    checks.key("key", key)
    x = checks.floating("x", x, ndim=ndim)
    return dtype or initializers.float_dtype("x's dtype", x.dtype)


def of_dense(params):
    """Parameters as `dense.network` has them, checked: stretches of hidden layers, each stacked, and a readout."""
    params = checks.floats("params", params)
    parts = params if isinstance(params, dict) and set(params) == {"hidden", "readout"} else {}
    hidden = parts.get("hidden")
    fit = isinstance(hidden, tuple | list) and all(_affine_map(part, 1) for part in hidden)
    if not fit or not _affine_map(parts["readout"], 0):
        shapes = jax.tree.map(np.shape, params)
        raise checks.BadValue(
            f"params must be those of dense.network, hidden layers and a readout; got shapes {shapes}"
        )
    return params


def _affine_map(part, lead):
    """Whether this is {"kernel": [n_in, n_out], "bias": [n_out]}, with `lead` axes of layers in front."""
    if not isinstance(part, dict) or set(part) != {"kernel", "bias"}:
        return False
    kernel, bias = (getattr(part[name], "shape", None) for name in ("kernel", "bias"))
    if kernel is None or bias is None or len(kernel) != lead + 2 or 0 in kernel[:lead]:
        return False
    return bias == (*kernel[:lead], kernel[-1])


def check_features(x, features, source, *, places=""):
    """x [N, features], or with the axes `places` between, by what the source says."""
    checks.floating("x", x)
    axes = 2 + places.count(",")
    if x.ndim != axes or x.shape[-1] != features:
        raise checks.BadValue(f"x must have shape (N, {places}{features}), by {source}; got {tuple(x.shape)}")
    return x
