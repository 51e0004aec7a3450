"""PREDICTED: what softmax makes of Gaussian scores, for any size of the scores and any number of tokens."""

import numpy as np
from jaxtyping import ArrayLike, Float64

from numdl.records import record
from numdl.theory.transformer import _doors, _integrals


@record
class SoftmaxMoments:
    """Means over the scores of one row; each of the shape that the arguments broadcast to."""

    log_partition: np.ndarray  # E ln Z
    participation: np.ndarray  # E sum_j P_j^2: 1/T uniform, 1 all on one token
    entropy: np.ndarray  # E H in nats: ln T uniform, 0 all on one token
    response: np.ndarray  # E tr D^2, D = diag P - P P': how far scores move the weights


@record
class JointMoments:
    """Means over two rows whose scores are correlated."""

    overlap: np.ndarray  # E sum_j P_j P'_j
    response: np.ndarray  # E tr D D'


@record
class Limits:
    """The closed forms that the moments tend to."""

    small_participation: np.ndarray  # deviation -> 0
    small_entropy: np.ndarray
    large_participation: np.ndarray  # T -> infinity at a fixed deviation
    large_entropy: np.ndarray
    frozen_participation: np.ndarray  # deviation far above `freezing`
    freezing: np.ndarray  # the deviation at which few tokens begin to take all


def softmax_moments(*, deviation: ArrayLike, tokens: ArrayLike) -> SoftmaxMoments:
    """PREDICTED softmax of T independent scores s ~ N(0, deviation^2): exact to rounding at any size of either.

        Z = sum_j exp(s_j),  P_j = exp(s_j) / Z,   phi(l) = E exp(-l exp(s))
        E ln Z = integral of (exp(-e^y) - phi(e^y)^T) dy,     participation = T integral of e^2y phi'' phi^(T-1) dy
        entropy = E ln Z - deviation^2 (1 - participation),   d(E ln Z)/d(deviation) = deviation (1 - participation)

    Parameters
    ----------
    deviation : scalar or array    tau >= 0; of the scores about what a row has in common
    tokens : int or array       T >= 1
    Returns
    -------
    SoftmaxMoments              each shaped as the arguments broadcast
    Raises
    ------
    ValueError, TypeError       a negative deviation, tokens that are not whole
    Source: own; entropy and derivative by Stein's lemma.
    Twin: analysis.transformer.softmax_moments.    Experiments: g1, g2.
    """
    tau = _doors.variances("deviation", deviation)
    return SoftmaxMoments(*_doors.each(_integrals.single, tau, _doors.whole("tokens", tokens)))


def joint_softmax_moments(*, deviation: ArrayLike, correlation: ArrayLike, tokens: ArrayLike) -> JointMoments:
    """PREDICTED overlap of two attention rows, whose T scores are pairwise correlated; exact to rounding.

        overlap = T double integral of E[l e^s m e^s' exp(-l e^s - m e^s')] Phi(l, m)^(T-1),  l = e^y, m = e^y'

    Parameters
    ----------
    deviation : scalar or array    tau >= 0 of the scores
    correlation : scalar or array    of s_j and s'_j, in [-1, 1]; at 1 the overlap is the participation; below -1/2
                                (T > 2, rows that few tokens have) nan where the deviation exceeds 30
    tokens : int or array       T >= 1
    Returns
    -------
    JointMoments                each shaped as the arguments broadcast
    Raises
    ------
    ValueError, TypeError       a negative deviation, a correlation beyond 1, tokens that are not whole
    Source: own.
    Twin: analysis.transformer.stream.    Experiment: g1.
    """
    tau, rho = _doors.variances("deviation", deviation), _doors.correlations("correlation", correlation)
    return JointMoments(*_doors.each(_integrals.pair, tau, rho, _doors.whole("tokens", tokens)))


def softmax_limits(*, deviation: ArrayLike, tokens: ArrayLike) -> Limits:
    """PREDICTED limits of `softmax_moments`: nearly uniform, many tokens, frozen.

        small deviation     r = 1/T + tau^2 (T-1)/T^2,   H = ln T - tau^2 (T-1)/(2T)
        many tokens         r = exp(tau^2)/T,            H = max(ln T - tau^2/2, 0)
        frozen              r = 1 - sqrt(2 ln T)/tau beyond tau = sqrt(2 ln T) (the random energy model)

    The transition is strongly smeared at T <= 1000: the limits say where one is, the integrals how much it is.

    Parameters
    ----------
    deviation : scalar or array    tau >= 0
    tokens : int or array       T >= 1
    Returns
    -------
    Limits                      each shaped as the arguments broadcast
    Raises
    ------
    ValueError, TypeError       a negative deviation, tokens that are not whole
    Source: Giorlandino & Goldt 2025, arXiv:2505.24333, for the freezing; expansions.
    Experiment: g2.
    """
    tau, t = np.broadcast_arrays(_doors.variances("deviation", deviation), _doors.whole("tokens", tokens))
    square, freezing = tau**2, np.sqrt(2 * np.log(t))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        frozen = np.where(tau > freezing, 1 - freezing / tau, 0.0)
        large = np.minimum(np.exp(square) / t, 1.0)
    return Limits(
        1 / t + square * (t - 1) / t**2,
        np.log(t) - square * (t - 1) / (2 * t),
        large,
        np.maximum(np.log(t) - square / 2, 0.0),
        frozen,
        freezing,
    )


def least_entropy(*, norm: ArrayLike, tokens: ArrayLike) -> Float64[np.ndarray, "..."] | np.float64:
    """PREDICTED least entropy of a softmax row whose scores, less their mean, have this Euclidean norm.

        b = exp(-R sqrt(T / (T - 1))),    H >= ln(1 + (T-1) b) + R sqrt(T (T-1)) b / (1 + (T-1) b)

    It is attained by one large score and T - 1 equal ones. Spectral norms of W_Q and W_K bound R: entropy collapse
    needs large weights.

    Parameters
    ----------
    norm : scalar or array      R >= 0
    tokens : int or array       T >= 2
    Returns
    -------
    array, shaped as the arguments broadcast, nats
    Raises
    ------
    ValueError, TypeError       a negative norm, fewer than two tokens
    Source: Zhai et al. 2023, arXiv:2303.06296, theorem 3.1 (its form).
    """
    radius, t = _doors.variances("norm", norm), _doors.whole("tokens", tokens, least=2)
    rest = (t - 1) * np.exp(-radius * np.sqrt(t / (t - 1)))
    return (np.log1p(rest) + radius * np.sqrt(t / (t - 1)) * rest / (1 + rest))[()]


def initial_loss(
    *, vocabulary: ArrayLike, logit_variance: ArrayLike, own_logit: ArrayLike = 0.0
) -> Float64[np.ndarray, "..."] | np.float64:
    """PREDICTED cross-entropy at initialization (initial loss): E ln Z of the logits; at most ln V + logit_variance/2.

        untied: E ln sum_j exp(s_j),  s ~ N(0, logit_variance): over V logits;    a target's own logit has mean 0
        tied:   one logit, that of the current token, is larger by own_logit = d s corr(h, e)
                about ln(V exp(logit_variance / 2) + exp(own_logit)), a target other than the current token

    An untied head with entries of variance s on d normalized features has logit_variance = d s.

    Parameters
    ----------
    vocabulary : int or array   V >= 1
    logit_variance : scalar or array    over the vocabulary, >= 0
    own_logit : scalar or array    mean of the current token's logit above the others
    Returns
    -------
    array, shaped as the arguments broadcast, nats
    Raises
    ------
    ValueError, TypeError       a vocabulary that is not whole, a negative variance
    Source: own.
    Experiment: g6.
    """
    tokens, tau = _doors.whole("vocabulary", vocabulary), np.sqrt(_doors.variances("logit_variance", logit_variance))
    shift = _doors.numbers("own_logit", own_logit)
    return _doors.each(_loss, tau, tokens, shift)[0][()]


def _loss(deviation, tokens, shift):
    """Shifts that decide alone need no integral, whose line would be as long as they are."""
    if not shift:
        return (_integrals.single(deviation, tokens).log_partition,)
    if abs(shift) <= _integrals.decisive(deviation, tokens):
        return (_integrals.log_partition(deviation, tokens, shift),)
    if shift > 0 or tokens == 1:
        return (shift,)
    return (_integrals.single(deviation, tokens - 1).log_partition,)
