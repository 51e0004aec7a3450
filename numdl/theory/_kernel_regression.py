"""PREDICTED: what training with a kernel makes of functions: gradient flow, its end, and the Gaussian process instead.

Eigenvalues of the training kernel below the rounding of its dtype count as 0, and so do their inverses: N eps times the
largest, 1e-5 for a hundred examples in float32. Give float64 kernels where smaller ones are wanted.
Source: Lee et al. 2019, arXiv:1902.06720; Rasmussen & Williams 2006.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike, Float64

from numdl import checks

INDEFINITE = 1e-5  # relative size of a negative eigenvalue that is more than the rounding of a float32 kernel


class Posterior(NamedTuple):
    """A Gaussian process after seeing targets."""

    mean: np.ndarray  # [M, k]
    variance: np.ndarray  # [M]: of the function, without the noise


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
    if known.ndim > 1:
        raise checks.BadValue(f"times must be a number or an array [T]; got shape {known.shape}")
    if np.isnan(known).any() or (known < 0).any():
        raise checks.BadValue(f"times must be numbers >= 0; got {known.min() if known.ndim else known.item()}")
    times = np.atleast_1d(known)
    values, vectors, targets, cross = _spectrum(train, cross, targets)
    train_start = _start("train_start", train_start, targets.shape)
    start = _start("cross_start", cross_start, (len(cross), targets.shape[1]))
    gap = vectors.T @ (train_start - targets)
    with np.errstate(invalid="ignore"):
        exponent = np.where(values > 0, np.multiply.outer(times, values) / len(values), 0.0)  # [T, N]
    on_train = targets + np.einsum("nm,tm,mk->tnk", vectors, np.exp(-exponent), gap)
    moved = np.where(values > 0, -np.expm1(-exponent) / np.where(values > 0, values, 1.0), 0.0)
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
    ridge = checks.number("ridge", ridge, least=0.0)
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
    noise_variance = checks.number("noise_variance", noise_variance, least=0.0)
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


def _spectrum(train, cross, targets):
    """Eigenvalues (0 where they are rounding) and vectors of the symmetric train kernel; targets and cross, checked."""
    rounding = _rounding(train)
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
    values = np.where(values > len(train) * rounding * largest, values, 0.0)
    return values, vectors, targets, cross


def _rounding(train):
    """Of the dtype that the kernel was computed in: a float32 one has eigenvalues of that size where it has none."""
    kind = getattr(train, "dtype", np.dtype(np.float64))
    return float(jnp.finfo(kind).eps) if jnp.issubdtype(kind, jnp.floating) else np.finfo(np.float64).eps


def _start(name, value, shape):
    """Functions at the beginning, or one number for all."""
    value = np.asarray(checks.finite(name, checks.concrete(name, value)), np.float64)
    return np.broadcast_to(value if not value.ndim else checks.shape(name, value, shape), shape)


def _floats(name, value, *, ndim=2):
    value = checks.array(name, checks.concrete(name, value), ndim=ndim)
    return np.asarray(checks.finite(name, value), np.float64)
