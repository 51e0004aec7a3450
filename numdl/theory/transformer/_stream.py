"""PREDICTED: length and correlation of tokens through the sublayers of a transformer, at infinite width."""

from typing import NamedTuple

import numpy as np
from jaxtyping import ArrayLike

from numdl import checks
from numdl.records import record
from numdl.theory.transformer import _doors, _integrals

NORMS = ("pre", "post", "sandwich", "none")


@record
class AttentionMap:
    """What one attention makes of T alike tokens."""

    q: np.ndarray  # mean square of a token's entries
    c: np.ndarray  # correlation of two tokens
    entropy: np.ndarray  # of a row, nats


@record
class Stream:
    """The tokens after every sublayer, the input first."""

    q: np.ndarray  # [2 blocks + 1, ...]
    c: np.ndarray  # [2 blocks + 1, ...]
    gap: np.ndarray  # [2 blocks + 1, ...]  1 - c, with all its digits where tokens are nearly equal


class Setting(NamedTuple):
    """Checked arguments of a stack, broadcast against each other."""

    blocks: int
    norm: str
    tokens: np.ndarray
    score_gain: np.ndarray
    value_gain: np.ndarray
    mlp_gain: np.ndarray
    skip_square: np.ndarray
    q: np.ndarray
    gap: np.ndarray


class Branch(NamedTuple):
    """What a sublayer is given and what it does."""

    length: np.ndarray  # of its input
    gap: np.ndarray  # 1 - c of its input
    variance: np.ndarray  # of its output, before a norm of its own
    spread: np.ndarray  # variance less covariance of two tokens of its output


def attention_map(
    *, q: ArrayLike, c: ArrayLike, tokens: ArrayLike, score_gain: ArrayLike, value_gain: ArrayLike
) -> AttentionMap:
    """PREDICTED length and correlation after one softmax attention of Gaussian weights, many heads or a wide head.

        tau^2 = score_gain q^2 (1 - c),   r = E sum_j P_ij^2,   s = E sum_j P_ij P_i'j (rows correlated by c)
        q' = value_gain q (c + (1 - c) r),     c' = (c + (1 - c) s) / (c + (1 - c) r)

    Parameters
    ----------
    q : scalar or array         mean square of the tokens' entries, > 0
    c : scalar or array         their correlation, in [-1/(T-1), 1]
    tokens : int or array       T >= 2, each of which sees all
    score_gain : scalar or array    s_Q s_K, fan_in times entry variances, with scores q k / sqrt(head width)
    value_gain : scalar or array    s_V s_O
    Returns
    -------
    AttentionMap                each shaped as the arguments broadcast
    Raises
    ------
    ValueError, TypeError       a negative gain, a c that no tokens have, fewer than two tokens
    Source: own; the uniform limit: Noci et al. 2022, arXiv:2206.03126.
    Twin: analysis.transformer.stream.    Experiment: g1.
    """
    t, c = _doors.tokens_and_correlation(tokens, c)
    q, b, v = _doors.positive("q", q), *_gains(score_gain=score_gain, value_gain=value_gain)
    q, c, t, b, v = np.broadcast_arrays(q, c, t, b, v)
    deviation = np.sqrt(b * (1 - c)) * q
    made = _attention(q, 1 - c, t, b, v)
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = 1 - made.spread / made.variance
    return AttentionMap(made.variance[()], correlation[()], _doors.each(_integrals.single, deviation, t)[2][()])


def stream(
    *,
    blocks: int,
    tokens: ArrayLike,
    norm: str,
    score_gain: ArrayLike,
    value_gain: ArrayLike,
    mlp_gain: ArrayLike,
    skip: ArrayLike = 1.0,
    q: ArrayLike = 1.0,
    c: ArrayLike = 0.0,
) -> Stream:
    """PREDICTED residual stream: length and correlation of tokens after every sublayer (attention, ReLU MLP, ...).

        pre       x' = a x + f(N(x))          post   x' = N(a x + f(x))         N(x) = x / |x| sqrt(d)
        sandwich  x' = a x + N(f(N(x)))       none   x' = a x + f(x)
        MLP:      q' = mlp_gain q,  c' = arc-cosine map of c

    Pre: linear growth, tokens collapse as a power of depth, 1 - c ~ l^(-v / (v + m)). Post: exponentially.

    Parameters
    ----------
    blocks : int                N >= 1, each an attention and an MLP
    tokens : int or array       T >= 2
    norm : str                  pre, post, sandwich or none
    score_gain, value_gain : scalar or array    of `attention_map`
    mlp_gain : scalar or array    m = s_1 s_2 / 2: output over input variance of the ReLU MLP
    skip : scalar or array      a
    q, c : scalar or array      of the input
    Returns
    -------
    Stream                      q, c, gap: [2 N + 1, ...], trailing axes as the arguments broadcast
    Raises
    ------
    ValueError, TypeError       blocks < 1, another norm, a negative gain, a c that no tokens have
    Source: own; post against pre: Xiong et al. 2020, arXiv:2002.04745.
    Twin: analysis.transformer.stream.    Experiments: g3, g4, g7.
    """
    given = setting(blocks, tokens, norm, score_gain, value_gain, mlp_gain, skip, q, c)
    rows = walk(given)
    gap = np.stack([row[1] for row in rows])
    return Stream(np.stack([row[0] for row in rows]), 1 - gap, gap)


def setting(blocks, tokens, norm, score_gain, value_gain, mlp_gain, skip, q, c):
    """Checked and broadcast."""
    blocks, norm = checks.whole("blocks", blocks), checks.one_of("norm", norm, NORMS)
    t, c = _doors.tokens_and_correlation(tokens, c)
    gains = _gains(score_gain=score_gain, value_gain=value_gain, mlp_gain=mlp_gain)
    q, skip = _doors.positive("q", q), _doors.numbers("skip", skip)
    return Setting(blocks, norm, *np.broadcast_arrays(t, *gains, skip**2, q, 1 - c))


def walk(given):
    """[(q, 1 - c, Branch that follows)], the input first; the last has no branch."""
    q, gap, rows = given.q, given.gap, []
    inner = given.norm in ("pre", "sandwich")
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for number in range(2 * given.blocks):
            branch = _branch(given, number, np.ones_like(q) if inner else q, gap)
            rows.append((q, gap, branch))
            q, gap = _add(given, q, gap, branch)
    return [*rows, (q, gap, None)]


def _branch(given, number, q, gap):
    if number % 2 == 0:
        return _attention(q, gap, given.tokens, given.score_gain, given.value_gain)
    return Branch(q, gap, given.mlp_gain * q, given.mlp_gain * q * relu_gap(gap))


def _add(given, q, gap, branch):
    scale = branch.variance if given.norm == "sandwich" else 1.0
    total = given.skip_square * q + branch.variance / scale
    spread = given.skip_square * q * gap + branch.spread / scale
    return (np.ones_like(total) if given.norm == "post" else total), spread / total


def _attention(q, gap, tokens, score_gain, value_gain):
    deviation = np.sqrt(score_gain * gap) * q
    r = _doors.each(_integrals.single, deviation, tokens)[1]
    s = _doors.each(_integrals.pair, deviation, 1 - gap, tokens)[0]
    return Branch(q, gap, value_gain * q * (1 - gap + gap * r), value_gain * q * gap * np.maximum(r - s, 0))


def relu_gap(gap):
    """1 - arc-cosine map of c, from 1 - c."""
    angle = _angle(gap)
    return gap - (np.sin(angle) - angle * np.cos(angle)) / np.pi


def relu_slope(gap):
    """Slope of the arc-cosine map at c."""
    return 1 - _angle(gap) / np.pi


def _angle(gap):
    gap = np.clip(gap, 0.0, 2.0)
    return np.arctan2(np.sqrt(gap * (2 - gap)), 1 - gap)


def _gains(**gains):
    return [_doors.variances(name, value) for name, value in gains.items()]
