"""PREDICTED: gradients through the sublayers of a transformer, backwards, at infinite width."""

import numpy as np
from jaxtyping import ArrayLike

from numdl.records import record
from numdl.theory.transformer import _doors, _integrals, _stream


@record
class Gradients:
    """Gradients by the input of every sublayer, relative to the A of the output."""

    spread: np.ndarray  # [2 blocks, ...]  A: mean over tokens of |g_i|^2
    pooled: np.ndarray  # [2 blocks, ...]  B: mean over pairs of tokens of g_i . g_i'


@record
class WeightGradients:
    """Squared gradients of one attention's weights, over that of its values."""

    query: np.ndarray  # |dW_Q|^2 / |dW_V|^2
    key: np.ndarray  # |dW_K|^2 / |dW_V|^2


def gradients(
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
    pooled: ArrayLike,
) -> Gradients:
    """PREDICTED gradients by depth: A = mean |g_i|^2 and B = mean g_i . g_i', from the output (A = 1) down.

        A_l = a^2 A + F,  over q_l (pre);  (a^2 A + F) / (a^2 q_l + f) (post);   B alike, F of a sublayer's input q:
        MLP         A -> m A,   B -> m B slope of the arc-cosine map
        attention   A -> v (A r + B (T-1) s) + w ((1-c) A t + A t + (T-1) c B t'),   w = v b q^2 (1 - c),
                    B -> v (A (1-r)/(T-1) + B (1-s)) + w ((1-c) B t' - A t/(T-1) - c B t'),
                    t = E tr D^2, t' = E tr D D': through values, queries, keys

    Under uniform attention (q - p)(A - B) and (mean of G)(mean of gradients) stay; with MLPs alone q A does.

    Parameters
    ----------
    blocks, tokens, norm : as `stream`    blocks N, each an attention and a ReLU MLP
    score_gain, value_gain, mlp_gain, skip, q, c : as `stream`
    pooled : scalar or array    B at the output: 1 where the tokens are averaged, 0 for a loss of each token
    Returns
    -------
    Gradients                   spread, pooled: [2 blocks, ...], at the inputs of the sublayers, the first one first;
                                the twin's, of states, have the output's as well, 1 and `pooled`
    Raises
    ------
    ValueError, TypeError       as `stream`; pooled beyond [-1, 1]
    Source: own; Xiong et al. 2020, arXiv:2002.04745.
    Twin: analysis.transformer.gradients.    Experiments: g3, g4, g7.
    """
    given = _stream.setting(blocks, tokens, norm, score_gain, value_gain, mlp_gain, skip, q, c)
    b = _doors.correlations("pooled", pooled)
    a, b, _ = np.broadcast_arrays(np.ones(()), b, given.q)
    rows = []
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        for number, (q, _, branch) in reversed(list(enumerate(_stream.walk(given)[:-1]))):
            a, b = _back(given, number, q, branch, a, b)
            rows.append((a, b))
    return Gradients(*np.moveaxis(np.array(rows[::-1]), 1, 0))


def weight_gradients(
    *,
    q: ArrayLike,
    c: ArrayLike,
    tokens: ArrayLike,
    query_variance: ArrayLike,
    key_variance: ArrayLike,
    value_variance: ArrayLike,
    pooled: ArrayLike = 0.0,
) -> WeightGradients:
    """PREDICTED vanishing query and key gradients: how small they are beside those of the values.

        |dW_Q|^2 / |dW_V|^2 = s_K s_V q^2 (1-c)^2 (A t + (T-1) c B t') / (A (c + (1-c) r) + (T-1) B (c + (1-c) s))
        uniform attention, B = 0:   s_K s_V q^2 (1-c)^2 (T-1)/T^2 / (c + (1-c)/T), about (1-c)^2 / (c T)

    |dW_K|^2 has s_Q in place of s_K. Similar tokens hardly move queries and keys.

    Parameters
    ----------
    q, c, tokens : as `attention_map`
    query_variance, key_variance, value_variance : scalar or array    fan_in times entry variance: s_Q, s_K, s_V
    pooled : scalar or array    B / A of the gradients by the attention's output
    Returns
    -------
    WeightGradients             each shaped as the arguments broadcast
    Raises
    ------
    ValueError, TypeError       a negative variance, a c that no tokens have
    Source: Noci et al. 2022, arXiv:2206.03126, theorem 3.2; the constant is own.
    Twin: analysis.transformer.weight_gradients.    Experiment: g5.
    """
    t, c = _doors.tokens_and_correlation(tokens, c)
    names = {"query_variance": query_variance, "key_variance": key_variance, "value_variance": value_variance}
    given = [_doors.positive("q", q), *(_doors.variances(*pair) for pair in names.items())]
    q, sq, sk, sv, t, c, b = np.broadcast_arrays(*given, t, c, _doors.correlations("pooled", pooled))
    r, s, own, cross = _numbers(q, 1 - c, t, sq * sk)
    moved = own + (t - 1) * c * b * cross
    through = c + (1 - c) * r + (t - 1) * b * (c + (1 - c) * s)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = sv * q**2 * (1 - c) ** 2 * moved / through
    return WeightGradients((sk * ratio)[()], (sq * ratio)[()])


def _back(given, number, q, branch, a, b):
    through = (_attention if number % 2 == 0 else _mlp)(given, branch, a, b)
    scale = branch.variance if given.norm == "sandwich" else 1.0
    inner = q if given.norm in ("pre", "sandwich") else 1.0
    outer = given.skip_square * q + branch.variance if given.norm == "post" else 1.0
    return [(given.skip_square * g + f / (inner * scale)) / outer for g, f in zip((a, b), through, strict=True)]


def _mlp(given, branch, a, b):
    return given.mlp_gain * a, given.mlp_gain * b * _stream.relu_slope(branch.gap)


def _attention(given, branch, a, b):
    t, gap, c = given.tokens, branch.gap, 1 - branch.gap
    r, s, own, cross = _numbers(branch.length, gap, t, given.score_gain)
    rate = given.score_gain * branch.length**2 * gap
    one = a * r + b * (t - 1) * s + rate * ((gap + 1) * a * own + (t - 1) * c * b * cross)
    two = a * (1 - r) / (t - 1) + b * (1 - s) + rate * ((gap - c) * b * cross - a * own / (t - 1))
    return given.value_gain * one, given.value_gain * two


def _numbers(q, gap, tokens, score_gain):
    """r, s, E tr D^2, E tr D D'."""
    deviation = np.sqrt(score_gain * gap) * q
    _, r, _, own = _doors.each(_integrals.single, deviation, tokens)
    s, cross = _doors.each(_integrals.pair, deviation, 1 - gap, tokens)
    return r, s, own, cross
