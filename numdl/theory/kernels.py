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
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import ArrayLike, Float64

from numdl import checks
from numdl.activations import Activation
from numdl.precision import float64

INDEFINITE = 1e-5  # relative size of a negative eigenvalue that is more than the rounding of a float32 kernel
SNAP = 4e-16  # correlations this near to +-1 are +-1: the rounding of a quotient


class Kernels(NamedTuple):
    """Covariance of the outputs at initialization, and the kernel of gradient descent; of one output."""

    nngp: np.ndarray  # [N1, N2]
    ntk: np.ndarray  # [N1, N2]


class Posterior(NamedTuple):
    """A Gaussian process after seeing targets."""

    mean: np.ndarray  # [M, k]
    variance: np.ndarray  # [M]: of the function, without the noise


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
    _check(x1, x2, depth, activation, weight_variance=weight_variance, bias_variance=bias_variance)
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
    _check(
        x1,
        x2,
        depth,
        activation,
        weight_variance=weight_variance,
        second_weight_variance=second_weight_variance,
        bias_variance=bias_variance,
        readout_weight_variance=readout_weight_variance,
    )
    checks.finite("step", step, shape=())
    scaled = step**2 * second_weight_variance
    inner = _run(_residual_layer, x1, x2, depth, activation, weight_variance, bias_variance, scaled, 1.0)
    outputs = readout_weight_variance * inner.nngp + bias_variance
    return Kernels(outputs, outputs + readout_weight_variance * inner.ntk)


def gradient_flow(
    train: ArrayLike,
    cross: ArrayLike,
    targets: ArrayLike,
    *,
    times: ArrayLike | Sequence[float],
    train_start: ArrayLike = 0.0,
    cross_start: ArrayLike = 0.0,
) -> tuple[Float64[np.ndarray, "T N k"], Float64[np.ndarray, "T M k"]]:
    """PREDICTED functions during the lazy training of a wide network by gradient flow on the mean squared error.

        f_t(X) = y + exp(-t Theta / N) (f_0(X) - y)
        f_t(x) = f_0(x) - Theta(x, X) Theta^{-1} (1 - exp(-t Theta / N)) (f_0(X) - y)

    for the loss 1 / (2 N) sum |f - y|^2; t = learning rate * step. Singular directions of Theta do not move. A finite
    network leaves this path by its linearization error and kernel drift.

    Parameters
    ----------
    train, cross : array [N, N], [M, N]         Theta(X, X) and Theta(x, X)
    targets : array [N, k]      y
    times : array [T]           t >= 0; inf is allowed
    train_start, cross_start : array [N, k], [M, k] or 0      the functions at t = 0
    Returns
    -------
    on_train [T, N, k], on_cross [T, M, k]
    Raises
    ------
    ValueError, TypeError       train not symmetric and positive semidefinite, other shapes, a negative time
    Source: Lee et al. 2019, arXiv:1902.06720, eqs. (8), (9).
    Twin: analysis.kernels.drift.    Experiments: e3, e5.
    """
    known = np.asarray(checks.array("times", checks.concrete("times", times)), np.float64)
    if np.isnan(known).any() or (known < 0).any():
        raise checks.BadValue(f"times must be numbers >= 0; got {known.min() if known.ndim else known.item()}")
    times = np.atleast_1d(known)
    values, vectors, targets, cross = _spectrum(train, cross, targets)
    gap = vectors.T @ (np.broadcast_to(np.asarray(train_start, np.float64), targets.shape) - targets)
    with np.errstate(invalid="ignore"):
        exponent = np.where(values > 0, np.multiply.outer(times, values) / len(values), 0.0)  # [T, N]
    on_train = targets + np.einsum("nm,tm,mk->tnk", vectors, np.exp(-exponent), gap)
    moved = np.where(values > 0, -np.expm1(-exponent) / np.where(values > 0, values, 1.0), 0.0)
    start = np.broadcast_to(np.asarray(cross_start, np.float64), (len(cross), targets.shape[1]))
    return on_train, start - np.einsum("xm,tm,mk->txk", cross @ vectors, moved, gap)


def regression(
    train: ArrayLike, cross: ArrayLike, targets: ArrayLike, *, ridge: ArrayLike = 0.0
) -> Float64[np.ndarray, "M k"]:
    """PREDICTED functions after infinite training from f_0 = 0: kernel (ridge) regression.

        f = cross (train + ridge I)^+ targets

    Parameters
    ----------
    train, cross : array [N, N], [M, N]     Theta(X, X) and Theta(x, X)
    targets : array [N, k]      y
    ridge : scalar              >= 0; at 0 the pseudoinverse, by eigenvalues above rounding
    Returns
    -------
    array [M, k], float64
    Raises
    ------
    ValueError, TypeError       train not symmetric and positive semidefinite, other shapes, a negative ridge
    Source: elementary, kernel ridge regression.
    """
    checks.variance("ridge", checks.concrete("ridge", ridge), shape=())
    return _regression(*_spectrum(train, cross, targets), ridge)


def _regression(values, vectors, targets, cross, ridge):
    return cross @ (vectors @ (_inverse(values, ridge)[:, None] * (vectors.T @ targets)))


def _inverse(values, ridge):
    """1 / (values + ridge), 0 where the values are."""
    return np.where(values > 0, 1 / np.where(values > 0, values + ridge, 1.0), 0.0)


def posterior(
    train: ArrayLike, cross: ArrayLike, own: ArrayLike, targets: ArrayLike, *, noise_variance: ArrayLike
) -> Posterior:
    """PREDICTED Gaussian process (of the NNGP kernel, for example) given noisy targets.

        mean = cross (train + s I)^+ targets,    variance = own - diag(cross (train + s I)^+ cross'),    s = noise

    Parameters
    ----------
    train, cross, own : array [N, N], [M, N], [M]       K(X, X), K(x, X) and K(x, x)
    targets : array [N, k]      y
    noise_variance : scalar     s, of the targets, >= 0
    Returns
    -------
    Posterior(mean [M, k], variance [M])    nan where the three do not come from one kernel: no Gaussian process has
                                            covariances that leave a negative variance
    Raises
    ------
    ValueError, TypeError       train has negative eigenvalues: it is not a covariance; other shapes, a negative noise
    Source: Lee et al. 2018, arXiv:1711.00165; Rasmussen & Williams 2006, chapter 2.
    """
    checks.variance("noise_variance", checks.concrete("noise_variance", noise_variance), shape=())
    values, vectors, targets, cross = _spectrum(train, cross, targets)
    own = _floats("own", own, ndim=1)
    checks.shape("own", own, (len(cross),))
    along = cross @ vectors
    variance = own - along**2 @ _inverse(values, noise_variance)
    scale = np.maximum(np.abs(own), np.abs(variance))
    # Covariances with what has no variance: outside of the range of train they must vanish.
    outside = np.abs(along[:, values == 0]).max(axis=1, initial=0.0) ** 2 > INDEFINITE * np.abs(own) * values.max()
    wrong = (variance < -INDEFINITE * scale) | (own < 0) | outside
    mean = _regression(values, vectors, targets, cross, noise_variance)
    return Posterior(np.where(wrong[:, None], np.nan, mean), np.where(wrong, np.nan, np.maximum(variance, 0.0)))


# ---- recursions ----------------------------------------------------------------------------------------------------


@float64
def _run(layer, x1, x2, depth, activation, weight_variance, bias_variance, scale, skip):
    """`skip` 1 adds every layer to what was before it."""
    x1, x2 = checks.native("x1", x1), checks.native("x2", x2)
    numbers = [jnp.asarray(a, jnp.float64) for a in (x1, x2, weight_variance, bias_variance, scale, skip)]
    return Kernels(*_run_jit(*numbers, depth=depth, activation=activation, layer=layer))


@functools.partial(jax.jit, static_argnames=("depth", "activation", "layer"))
def _run_jit(x1, x2, weight_variance, bias_variance, scale, skip, *, depth, activation, layer):
    q1, q2 = (weight_variance * jnp.mean(x**2, axis=1) + bias_variance for x in (x1, x2))
    product = weight_variance * (x1 @ x2.T) / x1.shape[1] + bias_variance
    laws = (activation, weight_variance, bias_variance, scale)

    def one(state, _):
        return layer(*laws, *state), None

    (_, _, product, tangent), _ = lax.scan(one, (q1, q2, product, product), None, length=depth)
    return product, tangent


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
        root = jnp.sqrt(q * q2)
        c = jnp.where(root > 0, products / jnp.where(root > 0, root, 1.0), 0.0)
        c = jnp.where(jnp.abs(c) > 1 - SNAP, jnp.sign(c), c)
        own = jnp.broadcast_to(q, q2.shape)
        return activation.mean_product(own, q2, c), activation.slope_mean_product(own, q2, c)

    return lax.map(row, (q1, product))


# ---- regression ----------------------------------------------------------------------------------------------------


def _spectrum(train, cross, targets):
    """Eigenvalues (0 where they are rounding) and vectors of the symmetric train kernel; targets and cross, checked."""
    train = _floats("train", train)
    if train.shape[0] != train.shape[1]:
        raise checks.BadValue(f"train must be a square matrix; got shape {train.shape}")
    asymmetry = np.abs(train - train.T).max()
    if asymmetry > 1e-6 * np.abs(train).max():
        raise checks.BadValue(f"train must be symmetric, the kernel of one output; got differences of {asymmetry:g}")
    targets = checks.shape("targets", _floats("targets", targets), (len(train), None))
    cross = checks.shape("cross", _floats("cross", cross), (None, len(train)))
    values, vectors = np.linalg.eigh((train + train.T) / 2)
    largest = np.abs(values).max()
    if values[0] < -INDEFINITE * largest:
        found = f"an eigenvalue of {values[0]:g}, shape {train.shape}"
        raise checks.BadValue(f"train must be positive semidefinite, as kernels are; got {found}")
    values = np.where(values > len(train) * np.finfo(np.float64).eps * largest, values, 0.0)
    return values, vectors, targets, cross


def _floats(name, value, *, ndim=2):
    value = checks.array(name, checks.concrete(name, value), ndim=ndim)
    return np.asarray(checks.finite(name, value), np.float64)


def _check(x1, x2, depth, activation, **variances):
    checks.whole("depth", depth, least=0)
    checks.instance("activation", activation, Activation, hint="such as activations.relu")
    for name, value in variances.items():
        checks.variance(name, checks.concrete(name, value), shape=())
    for name, x in (("x1", x1), ("x2", x2)):
        checks.finite(name, checks.array(name, checks.concrete(name, x), ndim=2))
    if np.shape(x1)[1] != np.shape(x2)[1]:
        raise checks.BadValue(f"x2 must have {np.shape(x1)[1]} columns, as x1 has; got shape {np.shape(x2)}")
