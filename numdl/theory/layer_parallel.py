"""PREDICTED: how fast parareal and multigrid over layers converge, and what they can save.

For y' = lambda y a slice multiplies by the fine factor F = R(h lambda)^m and its coarse step by G = R(m h lambda); R is
the stability function of the scheme (`ode.stability.amplification`), and each of N slices has m layers. The errors e at
the N ends of slices obey, with S the shift by one slice and T(G) the lower triangular matrix of the powers of G,

    parareal     e <- (F - G) T(G) S e
    multigrid    e <- (F - G) F^r T(G) S^(r + 1) e              r relaxations of kind CF, two levels: 1 is FCF

so that N / (r + 1) iterations, rounded up, leave nothing. Modes of a diagonalizable system count one by one. Where the
system is neither linear nor normal, |F - G| and |G| may be the Lipschitz constants over the slices: the bounds hold.
Everything is float64 NumPy. Twin: ode.parallel.
"""

import math

import numpy as np
from jaxtyping import ArrayLike, Float64, ScalarLike

from numdl import checks
from numdl.records import record


@record
class PararealBound:
    """Factors by which the largest error over the slices is at least reduced after k iterations, k = 0, 1, ..."""

    linear: np.ndarray  # [iterations + 1]: holds for any number of slices; infinite where |G| >= 1
    superlinear: np.ndarray  # [iterations + 1]: 0 from k = slices on
    sharp: np.ndarray  # [iterations + 1]: the largest possible ratio; below both


@record
class SpeedUp:
    """Time on one device over time on many, and what limits it."""

    serial: np.ndarray  # []: seconds of the layers one by one
    parallel: np.ndarray  # []: seconds of the cycles
    speed_up: np.ndarray  # []
    efficiency: np.ndarray  # []: speed_up / devices
    bound: np.ndarray  # []: no speed-up is above this, however cheap coarse steps and communication are
    layers: np.ndarray  # []: steps one after the other on each device, fine and coarse
    gathers: np.ndarray  # []: times that all devices wait for the states of all slices


def parareal(difference: ArrayLike, coarse: ArrayLike, *, slices: int, iterations: int) -> PararealBound:
    """PREDICTED bounds for the error of parareal (parallel in time, layer-parallel), in the maximum over slices.

        linear         (|F - G| / (1 - |G|))^k
        superlinear    |F - G|^k / k!  (N - 1) (N - 2) ... (N - k)  max(1, |G|)^(N - 1 - k)
        sharp          |F - G|^k  sum_{s=k}^{N-1} binomial(s - 1, k - 1) |G|^(s - k)

    Parameters
    ----------
    difference : array          |F - G| of each mode, the slowest counts; or a Lipschitz constant of F - G over a slice
    coarse : array              |G|, of the same shape; or a Lipschitz constant of G
    slices : int                N
    iterations : int            k = 0 ... iterations
    Returns
    -------
    PararealBound
    Raises
    ------
    ValueError, TypeError       shapes that differ, numbers that are negative or not finite, no slices
    Source: Gander & Vandewalle 2007, SIAM J. Sci. Comput. 29, 556-578 (linear on unbounded, superlinear on
    bounded intervals); the norm of the power of the Toeplitz matrix; nonlinear: Gander & Hairer 2008.
    Twin: ode.parallel.parareal.    Experiment: c12.
    """
    difference, coarse = _modes(difference, coarse)
    slices, iterations = checks.whole("slices", slices), checks.whole("iterations", iterations, least=0)
    with np.errstate(divide="ignore", over="ignore"):
        per = np.where(coarse < 1, difference / np.where(coarse < 1, 1 - coarse, 1), np.inf)
        per = np.where(difference == 0, 0.0, per)
        rows = [
            (per**k, _superlinear(difference, coarse, slices, k), _sharp(difference, coarse, slices, k))
            for k in range(iterations + 1)
        ]
    return PararealBound(*(np.array([values.max() for values in column]) for column in zip(*rows, strict=True)))


def multigrid(
    fine: ArrayLike, coarse: ArrayLike, *, slices: int, relaxations: int = 1
) -> Float64[np.ndarray, "..."] | np.float64:
    """PREDICTED bound for the error of two-level multigrid reduction (MGRIT) after a cycle, for each mode, in 2-norm.

        |F - G| |F|^r (1 - |G|^(N - 1 - r)) / (1 - |G|)             r relaxations; N - 1 - r where |G| = 1

    Parameters
    ----------
    fine : array                F = lambda^m over one slice, complex or real
    coarse : array              G = mu, the coarse step's factor, of the same shape
    slices : int                N
    relaxations : int           r: 0 is F, 1 is FCF relaxation
    Returns
    -------
    array of that shape         factor per cycle; below 1: converges from the first one on
    Raises
    ------
    ValueError, TypeError       shapes that differ, numbers that are not finite, no slices
    Source: Dobrev, Kolev, Petersson & Schroder 2017, SIAM J. Sci. Comput. 39, S501-S527, with N counted as here; a
    Toeplitz matrix's 2-norm is at most the sum of its first column's absolute values.
    Twin: ode.parallel.multigrid.    Experiment: c12.
    """
    fine, coarse = (_complex(name, value) for name, value in (("fine", fine), ("coarse", coarse)))
    if fine.shape != coarse.shape:
        raise checks.BadValue(f"coarse must have the shape of fine, {fine.shape}; got {coarse.shape}")
    slices, relaxations = checks.whole("slices", slices), checks.whole("relaxations", relaxations, least=0)
    with np.errstate(over="ignore", invalid="ignore"):
        powers = _geometric(np.abs(coarse), max(slices - 1 - relaxations, 0))
        difference = np.abs(fine - coarse) * np.abs(fine) ** relaxations
        return np.where(difference == 0, 0.0, difference * powers)[()]


def speed_up(
    *,
    layers: int,
    slices: int,
    devices: int,
    iterations: int,
    relaxations: int = 0,
    layer_seconds: ScalarLike = 1.0,
    coarse_seconds: ScalarLike | None = None,
    state_bytes: ScalarLike = 0.0,
    latency: ScalarLike = 0.0,
    bandwidth: ScalarLike = math.inf,
) -> SpeedUp:
    """PREDICTED speed-up of a two-level solve over its layers one by one, communication counted.

        fine        (1 + K (1 + r)) layers / P                            P devices, K iterations
        coarse      (1 + K) slices + K slices / P                         sweeps on every device, guesses side by side
        gathers     1 + K (2 + r), each (P - 1) (latency + bytes slices / (P bandwidth))          along a ring
        bound       P / (1 + K (1 + r))

    Parameters
    ----------
    layers, slices, devices : int    each a divisor of the one before
    iterations, relaxations : int    K >= 1, r >= 0
    layer_seconds : scalar           one layer on one device
    coarse_seconds : scalar          one coarse step; as long as a layer if None
    state_bytes : scalar             of the state of one slice
    latency, bandwidth : scalars     seconds for a message, bytes per second between neighbours
    Raises
    ------
    ValueError, TypeError            numbers that do not divide, are negative or, but for bandwidth, not finite
    Source: the count of what `ode.parallel` does; parareal's P / K: Lions, Maday & Turinici 2001.
    Twin: ode.parallel.multigrid.    Experiment: c12.
    """
    layers, slices, devices = _divisors(layers, slices, devices)
    iterations = checks.whole("iterations", iterations)
    relaxations = checks.whole("relaxations", relaxations, least=0)
    layer_seconds = _positive("layer_seconds", layer_seconds)
    coarse_seconds = layer_seconds if coarse_seconds is None else _positive("coarse_seconds", coarse_seconds)
    state_bytes, latency = (
        checks.number(n, v, least=0.0) for n, v in (("state_bytes", state_bytes), ("latency", latency))
    )
    infinite = isinstance(bandwidth, float) and bandwidth == math.inf
    bandwidth = bandwidth if infinite else _positive("bandwidth", bandwidth)
    passes = 1 + iterations * (1 + relaxations)
    fine, coarse = passes * layers // devices, (1 + iterations) * slices + iterations * slices // devices
    gathers = 1 + iterations * (2 + relaxations) if devices > 1 else 0
    message = (devices - 1) * (latency + state_bytes * slices / devices / bandwidth)
    serial = layers * layer_seconds
    parallel = fine * layer_seconds + coarse * coarse_seconds + gathers * message
    ratio = serial / parallel
    numbers = serial, parallel, ratio, ratio / devices, devices / passes, fine + coarse, gathers
    return SpeedUp(*(np.float64(number) for number in numbers))


def _geometric(size, count):
    """1 + size + ... + size^(count - 1)."""
    other = np.where((size == 1) | (size == 0), 0.5, size)
    sums = np.expm1(count * np.log(other)) / (other - 1)
    return np.where(size == 1, count, np.where(size == 0, float(count > 0), sums))


def _superlinear(difference, coarse, slices, k):
    if k >= slices:
        return np.zeros_like(difference)
    return _terms(difference, k, slices - 1, k, np.maximum(1.0, coarse), slices - 1 - k)


def _sharp(difference, coarse, slices, k):
    if k == 0:
        return np.ones_like(difference)
    lags = np.arange(k, slices)
    return _terms(difference[..., None], k, lags - 1, k - 1, coarse[..., None], lags - k).sum(axis=-1)


def _terms(difference, k, above, below, size, power):
    """difference^k binomial(above, below) size^power by logarithms: the factors leave the range where this does not."""
    from scipy.special import gammaln, xlogy

    binomial = gammaln(above + 1.0) - gammaln(below + 1.0) - gammaln(above - below + 1.0)
    return np.exp(xlogy(k, difference) + binomial + xlogy(power, size))


def _modes(difference, coarse):
    pairs = ("difference", difference), ("coarse", coarse)
    difference, coarse = (np.asarray(checks.variance(*pair), dtype=np.float64) for pair in pairs)
    if difference.shape != coarse.shape or difference.size == 0:
        raise checks.BadValue(
            f"coarse must have the shape of difference, {difference.shape}, with at least one mode; got {coarse.shape}"
        )
    return difference, coarse


def _complex(name, value):
    value = np.asarray(checks.array(name, value, kind="number")).astype(np.complex128)
    if not np.isfinite(value).all():
        raise checks.BadValue(f"{name} must be finite; got {checks.shown(value)}")
    return value


def _divisors(layers, slices, devices):
    layers, slices, devices = (
        checks.whole(*pair) for pair in (("layers", layers), ("slices", slices), ("devices", devices))
    )
    if layers % slices:
        raise checks.BadValue(f"slices must divide the {layers} layers; got {slices}")
    if slices % devices:
        raise checks.BadValue(f"devices must divide the {slices} slices; got {devices}")
    return layers, slices, devices


def _positive(name, value):
    return checks.number(name, value, above=0.0)
