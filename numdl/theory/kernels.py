"""PREDICTED: infinitely wide networks as kernels, and what training does to functions in that limit.

NTK parameterization: every weight is sqrt(weight_variance / fan_in) times a parameter of unit variance, every bias
sqrt(bias_variance) times one, and all of them are trained. "Depth D" is D hidden layers and a linear readout:

    K_0 = weight_variance x x' / d + bias_variance           Theta_0 = K_0
    K_{l+1} = weight_variance E[f(u) f(v)] + bias_variance     (u, v) Gaussian with covariance K_l
    Theta_{l+1} = K_{l+1} + weight_variance E[f'(u) f'(v)] Theta_l

    >>> import numpy as np
    >>> from numdl import activations
    >>> from numdl.theory import kernels
    >>> x = np.array([[1.0, 0.0], [0.0, 1.0]])
    >>> physics = {"activation": activations.relu, "weight_variance": 2.0, "bias_variance": 0.0}
    >>> kernels.ntk(x, x, depth=3, **physics).round(3).tolist()
    [[4.0, 1.06], [1.06, 4.0]]

Twin: analysis.kernels. Everything is float64 NumPy.
Source: Lee et al. 2018, arXiv:1711.00165; Jacot et al. 2018, arXiv:1806.07572.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import ArrayLike, Float64

from numdl import checks
from numdl._compiled import jit
from numdl.activations import Activation
from numdl.precision import float64
from numdl.theory import _convolutional_kernels, _kernel_doors
from numdl.theory._factors import correlation
from numdl.theory._kernel_derivatives import (
    KernelDerivatives,
    convolutional_derivatives,
    derivatives,
    residual_derivatives,
)
from numdl.theory._kernel_regression import Posterior, gradient_flow, posterior, regression

__all__ = [
    "KernelDerivatives",
    "Kernels",
    "Posterior",
    "convolutional",
    "convolutional_derivatives",
    "dense",
    "derivatives",
    "gradient_flow",
    "nngp",
    "ntk",
    "posterior",
    "regression",
    "residual",
    "residual_derivatives",
]


class Kernels(NamedTuple):
    """Covariance of the outputs at initialization, and the kernel of gradient descent; of one output."""

    nngp: np.ndarray  # [N1, N2]
    ntk: np.ndarray  # [N1, N2]


def nngp(
    x1: ArrayLike,
    x2: ArrayLike,
    *,
    depth: int,
    activation: Activation,
    weight_variance: ArrayLike,
    bias_variance: ArrayLike,
) -> Float64[np.ndarray, "N1 N2"]:
    """PREDICTED covariance of the outputs at x1 and x2 over random networks: the NNGP kernel K_D.

        K_0 = weight_variance x x' / d + bias_variance
        K_{l+1} = weight_variance E[f(u) f(v)] + bias_variance,     (u, v) Gaussian with covariance K_l

    Parameters
    ----------
    x1 : array [N1, d]          inputs
    x2 : array [N2, d]          inputs
    depth : int                 hidden layers D >= 0
    activation : Activation     f; a closed form costs nanoseconds per pair and layer, quadrature about a millisecond
    weight_variance : scalar    fan_in * Var(W_ij)
    bias_variance : scalar      Var(b_i)
    Returns
    -------
    array [N1, N2], float64
    Raises
    ------
    ValueError, TypeError       depth < 0, a negative variance, inputs of other shapes or not finite, no Activation
    Source: Lee et al. 2018, arXiv:1711.00165.
    Twin: analysis.kernels.nngp.    Experiments: e3, e4.
    """
    return dense(
        x1, x2, depth=depth, activation=activation, weight_variance=weight_variance, bias_variance=bias_variance
    ).nngp


def ntk(
    x1: ArrayLike,
    x2: ArrayLike,
    *,
    depth: int,
    activation: Activation,
    weight_variance: ArrayLike,
    bias_variance: ArrayLike,
) -> Float64[np.ndarray, "N1 N2"]:
    """PREDICTED neural tangent kernel (NTK) of a wide dense network, Theta_D, by the tangent-kernel recursion.

        Theta_0 = K_0,     Theta_{l+1} = K_{l+1} + weight_variance E[f'(u) f'(v)] Theta_l

    The NTK recursion: K_l as in `nngp`, (u, v) Gaussian with covariance K_l; every weight and bias is trained.

    Parameters
    ----------
    x1, x2 : array [N1, d], [N2, d]     inputs
    depth : int                 hidden layers D >= 0
    activation : Activation     f
    weight_variance, bias_variance : scalar     fan_in * Var(W_ij), Var(b_i)
    Returns
    -------
    array [N1, N2], float64
    Raises
    ------
    ValueError, TypeError       as for `nngp`
    Source: Jacot et al. 2018, arXiv:1806.07572.
    Twin: analysis.kernels.ntk.    Experiments: e3, e4.
    """
    return dense(
        x1, x2, depth=depth, activation=activation, weight_variance=weight_variance, bias_variance=bias_variance
    ).ntk


def dense(
    x1: ArrayLike,
    x2: ArrayLike,
    *,
    depth: int,
    activation: Activation,
    weight_variance: ArrayLike,
    bias_variance: ArrayLike,
) -> Kernels:
    """PREDICTED `Kernels` of a dense network: `nngp` and `ntk` from one recursion.

    Parameters
    ----------
    x1, x2 : array [N1, d], [N2, d]     inputs
    depth : int                 hidden layers D >= 0
    activation : Activation     f
    weight_variance, bias_variance : scalar     fan_in * Var(W_ij), Var(b_i)
    Returns
    -------
    Kernels(nngp, ntk), each [N1, N2], float64
    Raises
    ------
    ValueError, TypeError       as for `nngp`
    Source: Lee et al. 2018, arXiv:1711.00165; Jacot et al. 2018, arXiv:1806.07572.
    Twins: analysis.kernels.nngp, analysis.kernels.ntk.    Experiments: e3, e4.
    """
    _kernel_doors.check(x1, x2, depth, activation, weight_variance=weight_variance, bias_variance=bias_variance)
    return _run(_dense_layer, x1, x2, depth, activation, weight_variance, bias_variance, weight_variance, 0.0)


def residual(
    x1: ArrayLike,
    x2: ArrayLike,
    *,
    depth: int,
    step: ArrayLike,
    activation: Activation,
    weight_variance: ArrayLike,
    second_weight_variance: ArrayLike,
    bias_variance: ArrayLike,
    readout_weight_variance: ArrayLike,
) -> Kernels:
    """PREDICTED `Kernels` of a residual network of two-layer blocks, y_{l+1} = y_l + h f(y_l W + b) V, no bias on V.

        Z = weight_variance C_l + bias_variance,    T = Z + weight_variance S_l
        C_{l+1} = C_l + h^2 v E[f f],               S_{l+1} = S_l + h^2 v (E[f f] + E[f' f'] T)

    with (u, v) of covariance Z, C_0 = S_0 = weight_variance x x' / d + bias_variance from an affine connector, and
    outputs K = r C_D + bias_variance, Theta = K + r S_D from an affine readout.

    Parameters
    ----------
    x1, x2 : array [N1, d], [N2, d]     inputs
    depth : int                 blocks D >= 0
    step : scalar               h
    activation : Activation     f
    weight_variance, bias_variance : scalar     fan_in * Var(W_ij), Var(b_i)
    second_weight_variance : scalar     v = fan_in * Var(V_ij)
    readout_weight_variance : scalar    r
    Returns
    -------
    Kernels(nngp, ntk), each [N1, N2], float64
    Raises
    ------
    ValueError, TypeError       as for `nngp`; a step that is not finite
    Source: Yang & Schoenholz 2017, arXiv:1712.08969 (C); the chain rule (S).
    Twins: analysis.kernels.nngp, analysis.kernels.ntk.
    """
    w, v, b, r = _kernel_doors.check(
        x1,
        x2,
        depth,
        activation,
        weight_variance=weight_variance,
        second_weight_variance=second_weight_variance,
        bias_variance=bias_variance,
        readout_weight_variance=readout_weight_variance,
    )
    step = checks.number("step", step)
    inner = _run(_residual_layer, x1, x2, depth, activation, w, b, _kernel_doors.gain(step, v), 1.0)
    outputs = r * inner.nngp + b
    return Kernels(outputs, outputs + r * inner.ntk)


def convolutional(
    x1: ArrayLike,
    x2: ArrayLike,
    *,
    depth: int,
    window: int | tuple[int, int],
    activation: Activation,
    weight_variance: ArrayLike,
    bias_variance: ArrayLike,
    padding: str = "same",
    pooling: str = "none",
) -> Kernels:
    """PREDICTED `Kernels` of a convolutional network with many channels: `depth` convolutions and an affine readout.

        K_1 = weight_variance A(x x' / channels) + bias_variance,     A: mean over the places under the window
        K_{l+1} = weight_variance A(E[f(u) f(v)]) + bias_variance,    (u, v) Gaussian with covariance K_l
        Theta_1 = K_1,    Theta_{l+1} = K_{l+1} + weight_variance A(E[f'(u) f'(v)] Theta_l)

    for every pair of pixels; the readout takes the mean over places in the place of A: without pooling (the states are
    flattened) over pairs at one place, which is all that the recursion then needs; with pooling "mean" over all pairs,
    (height width)^2 numbers for two pictures.

    Parameters
    ----------
    x1, x2 : array [N1, H, W, C], [N2, H, W, C]     pictures
    depth : int                 convolutions >= 1, stride 1
    window : int or (int, int)  height and width, odd
    activation : Activation     f, behind each convolution; one of closed form, or quadrature takes long
    weight_variance, bias_variance : scalar     height * width * channels of the window * Var(W_ij), Var(b_i)
    padding : str               "same": zeros around the picture; "circular"
    pooling : str               before the readout: "none" or "mean"
    Returns
    -------
    Kernels(nngp, ntk), each [N1, N2], float64
    Raises
    ------
    ValueError, TypeError       as for `nngp`; an even window, pictures of other shapes, another padding or pooling
    Source: Novak et al. 2019, arXiv:1810.05148; Arora et al. 2019, arXiv:1904.11955.
    Twins: analysis.kernels.nngp, analysis.kernels.ntk.
    """
    for name, value in (("weight_variance", weight_variance), ("bias_variance", bias_variance)):
        checks.number(name, value, least=0.0)
    shape = _convolutional_kernels.check(x1, x2, depth, window, padding, pooling, activation)
    return _convolve(shape, x1, x2, weight_variance, bias_variance)


# ---- recursions ----------------------------------------------------------------------------------------------------


@float64
def _run(layer, x1, x2, depth, activation, weight_variance, bias_variance, scale, skip):
    """`skip` 1 adds every layer to what was before it."""
    x1, x2 = checks.native("x1", x1), checks.native("x2", x2)
    numbers = [jnp.asarray(a, jnp.float64) for a in (x1, x2, weight_variance, bias_variance, scale, skip)]
    return Kernels(*_run_jit(*numbers, depth=depth, activation=activation, layer=layer))


@functools.partial(jit, static_argnames=("depth", "activation", "layer"))
def _run_jit(x1, x2, weight_variance, bias_variance, scale, skip, *, depth, activation, layer):
    q1, q2 = (weight_variance * jnp.mean(x**2, axis=1) + bias_variance for x in (x1, x2))
    product = weight_variance * (x1 @ x2.T) / x1.shape[1] + bias_variance
    laws = (activation, weight_variance, bias_variance, scale)

    def one(state, _):
        return layer(*laws, *state), None

    (_, _, product, tangent), _ = lax.scan(one, (q1, q2, product, product), None, length=depth)
    return product, tangent


@float64
def _convolve(shape, x1, x2, *physics):
    pictures = [jnp.asarray(checks.native(name, x), jnp.float64) for name, x in (("x1", x1), ("x2", x2))]
    return Kernels(*_convolutional_kernels.run(*pictures, *(jnp.asarray(a, jnp.float64) for a in physics), shape=shape))


def _dense_layer(activation, weight_variance, bias_variance, scale, q1, q2, product, tangent):
    both, slopes = _products(activation, q1, q2, product)
    product = weight_variance * both + bias_variance
    lengths = (weight_variance * activation.mean_square(q) + bias_variance for q in (q1, q2))
    return *lengths, product, product + _chained(weight_variance, slopes, tangent)


def _residual_layer(activation, weight_variance, bias_variance, scale, q1, q2, product, tangent):
    inside = [weight_variance * a + bias_variance for a in (q1, q2, product)]
    both, slopes = _products(activation, *inside)
    lengths = (q + scale * activation.mean_square(z) for q, z in zip((q1, q2), inside[:2]))
    chain = inside[2] + weight_variance * tangent
    return *lengths, product + scale * both, tangent + scale * both + _chained(scale, slopes, chain)


def _chained(scale, slopes, tangent):
    """scale * slopes * tangent, 0 where the other two are: the slope of what jumps is infinite between equal inputs."""
    other = scale * tangent
    return jnp.where(other == 0, 0.0, slopes * other)


def _products(activation, q1, q2, product):
    """E f(u) f(v) and E f'(u) f'(v) for every pair, one row at a time: quadrature needs room."""

    def row(now):
        q, products = now
        c = correlation(q, q2, products)
        own = jnp.broadcast_to(q, q2.shape)
        return activation.mean_product(own, q2, c), activation.slope_mean_product(own, q2, c)

    return lax.map(row, (q1, product))
