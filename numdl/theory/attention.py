"""PREDICTED: how fast pure self-attention makes all tokens equal.

Softmax attention without skips and MLPs maps tokens into each other's convex hull, and the closer the tokens the less
their attention differs: the spread falls like its own cube, doubly exponentially in depth.
Twin: analysis.attention. Natural logarithms, float64 NumPy.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import ArrayLike

from numdl import checks
from numdl.precision import float64
from numdl.records import record


@record
class RankCollapseBound:
    """An upper bound on the largest distance between two tokens, layer by layer."""

    log_diameter: np.ndarray  # [L + 1]: natural logarithm, input first
    log_threshold: float  # below this diameter the cubic bound contracts for ever


def rank_collapse(
    *,
    diameter: ArrayLike,
    depth: int,
    query_key_norm: ArrayLike | Sequence[float],
    value_norm: ArrayLike | Sequence[float],
    head_width: int,
    skip: bool = False,
) -> RankCollapseBound:
    """PREDICTED rank collapse: attention's bound on the tokens' diameter after l = 0..depth layers; for every input.

        D' <= V D tanh(A D**2 / (4 sqrt(k)))  <=  A V D**3 / (4 sqrt(k))         [+ D with skips]
        A = |W_Q W_K'|_2,  V = |W_V W_O|_2,  D = max_ij |x_i - x_j|,  k = head_width

    Why token uniformity: two attention rows differ by factors exp((x_i - x_j) W_Q W_K' x_s' / sqrt(k)), whose logarithm
    varies over s by at most A D**2 / sqrt(k); their total variation is then at most tanh of a quarter of that, and
    moving this mass between tokens moves the mean by at most V D. The bounds of several heads add up. Every token must
    see all: under a causal mask the rows differ by more.

    Parameters
    ----------
    diameter : scalar           D of the input tokens
    depth : int                 L
    query_key_norm, value_norm : array [heads], or [depth, heads] for layers of their own    A and V
    head_width : int            k
    skip : bool                 x + attention(x); the bound then only says how fast tokens may part
    Raises
    ------
    ValueError, TypeError       a negative number, depth < 1, other shapes
    Source: the cubic rate: Dong, Cordonnier & Loukas 2021, arXiv:2103.03404; this constant, in spectral
    norms and without its condition on the size of the scores, as derived above.
    Twin: analysis.attention.rank_collapse.    Experiment: b9.
    """
    depth, width = checks.whole("depth", depth), checks.whole("head_width", head_width)
    skip = checks.flag("skip", skip)
    start = checks.number("diameter", diameter, above=0.0)
    a = _by_layer("query_key_norm", query_key_norm, depth)
    v = _by_layer("value_norm", value_norm, depth)
    if a.shape != v.shape:
        raise checks.BadValue(f"value_norm must have the shape of query_key_norm, {a.shape}; got {v.shape}")
    cubic = (a * v).sum(axis=1) / (4 * np.sqrt(width))
    with np.errstate(divide="ignore"):
        threshold = float(-np.log(cubic.max()) / 2)
    return RankCollapseBound(_recursion(np.log(start), a / (4 * np.sqrt(width)), v, skip), threshold)


@float64
def _recursion(log_start, a, v, skip):
    log_diameter = [log_start]
    with np.errstate(divide="ignore", over="ignore"):
        for rate, value in zip(a, v, strict=True):
            log_d = log_diameter[-1]
            # log tanh(y) from log y: where y underflows tanh(y) = y to all digits.
            log_y = np.log(rate) + 2 * log_d
            log_tanh = np.where(log_y < -18, log_y, np.log(np.tanh(np.exp(np.clip(log_y, -18, 18)))))
            attended = np.logaddexp.reduce(np.log(value) + log_tanh) + log_d
            log_diameter.append(np.logaddexp(log_d, attended) if skip else attended)
    return np.array(log_diameter)


def _by_layer(name, norm, depth):
    array = np.asarray(checks.variance(name, checks.concrete(name, norm)), dtype=np.float64)
    if array.ndim == 1:
        array = np.broadcast_to(array, (depth, array.size))
    if array.ndim != 2 or array.shape[0] != depth or not array.size:
        got = f"shape {array.shape}" if array.ndim else repr(norm)
        raise checks.BadValue(f"{name} must have shape [heads] or [{depth}, heads]; got {got}")
    return array
