"""PREDICTED: what published rules for deep transformers promise, and what no single correlation can describe: masks."""

import numpy as np
from jaxtyping import ArrayLike, Float64

from numdl import checks
from numdl.records import record
from numdl.theory.transformer import _doors, _stream


@record
class Exponents:
    """Per block, natural logarithms; both 0 at the edge of chaos of a transformer."""

    angle: np.ndarray  # of 1 - c where tokens are nearly equal; > 0 they part
    gradient: np.ndarray  # of the pooled gradient, backwards; > 0 it grows


@record
class DeepNorm:
    """Constants of DeepNorm and what they do."""

    alpha: np.ndarray  # the skip's gain
    beta: np.ndarray  # factor of the deviations of values, outputs and MLPs
    branch: np.ndarray  # variance that a sublayer adds, over that of the skip
    least_gradient: np.ndarray  # lower bound of A at the input over A at the output


def exponents(*, value_gain: ArrayLike, mlp_gain: ArrayLike, slope_gain: ArrayLike) -> Exponents:
    """PREDICTED angle and gradient exponents of a block with unit skips and norms, tokens nearly equal.

        gradient = ln((1 + a) / (1 + m)),     angle = gradient - ln(1 + v)
        a = s_1 s_2 E f'(z)^2,   m = s_1 s_2 E f(z)^2:   a = m for ReLU

    Both vanish only as the value gain does. Skips of gain a: gains over a^2. The trainable depth is of the order of one
    over the larger of both in size.

    Parameters
    ----------
    value_gain : scalar or array    v = s_V s_O
    mlp_gain : scalar or array    m
    slope_gain : scalar or array    a
    Returns
    -------
    Exponents                   each shaped as the arguments broadcast
    Raises
    ------
    ValueError, TypeError       a negative gain
    Source: own; the idea of two exponents: Cowsik et al. 2024, arXiv:2403.02579 (normalized otherwise).
    Experiment: g16.
    """
    v, m = _doors.variances("value_gain", value_gain), _doors.variances("mlp_gain", mlp_gain)
    gradient = np.log1p(_doors.variances("slope_gain", slope_gain)) - np.log1p(m)
    return Exponents(*np.broadcast_arrays(gradient - np.log1p(v), gradient + 0 * v))


def deepnorm(*, blocks: ArrayLike) -> DeepNorm:
    """PREDICTED effect of DeepNorm in one stack of N blocks: post-norm with skips of alpha is nearly the identity.

        alpha = (2 N)^(1/4),  beta = (8 N)^(-1/4),   A_0 / A_L >= exp(-1 / (4 sqrt(2 N)))

    Parameters
    ----------
    blocks : int or array       N >= 1
    Returns
    -------
    DeepNorm                    each of the shape of blocks
    Raises
    ------
    ValueError, TypeError       blocks that are not whole
    Source: Wang et al. 2022, arXiv:2203.00555, for alpha and beta; the bound is own.
    Experiment: g7.
    """
    n = _doors.whole("blocks", blocks)
    root = np.sqrt(2 * n)
    return DeepNorm(root**0.5, (8 * n) ** -0.25, 1 / (8 * n * root), np.exp(-1 / (4 * root)))


def admin(
    *,
    blocks: int,
    tokens: ArrayLike,
    score_gain: ArrayLike,
    value_gain: ArrayLike,
    mlp_gain: ArrayLike,
    c: ArrayLike = 0.0,
) -> Float64[np.ndarray, "sublayers ..."]:
    """PREDICTED gains of the stream that Admin sets in a post-norm stack, sublayer by sublayer.

        skip[i]^2 = 1 + sum over j < i of E f_j^2,    attention: E f^2 = v (c + (1 - c) r),   MLP: E f^2 = m

    c is the correlation of the tokens in the plain post-norm stack, whose stream has length 1: once they are alike,
    skip^2 grows by v + m in every block.

    Parameters
    ----------
    blocks, tokens, score_gain, value_gain, mlp_gain, c : of `stream`; the input's mean square is 1
    Returns
    -------
    array [2 N, ...]            trailing axes as the arguments broadcast
    Raises
    ------
    ValueError, TypeError       as `stream`
    Source: Liu et al. 2020, arXiv:2004.08249.    Twin: networks.transformer.admin.
    Experiment: g17.
    """
    given = _stream.setting(blocks, tokens, "post", score_gain, value_gain, mlp_gain, 1.0, 1.0, c)
    added = np.stack([branch.variance for *_, branch in _stream.walk(given)[:-1]])
    return np.sqrt(1 + np.cumsum(added, axis=0) - added)


def gram_stream(
    *,
    blocks: int,
    gram: ArrayLike,
    mask: ArrayLike,
    norm: str,
    value_gain: ArrayLike,
    mlp_gain: ArrayLike,
    skip: ArrayLike = 1.0,
) -> Float64[np.ndarray, "states T T"]:
    """PREDICTED Gram matrix of the tokens under a mask, causal or other, with small scores: even attention.

        attention G -> v P G P',   P_ij = mask_ij / sum_j mask_ij;    MLP G_ij -> m sqrt(G_ii G_jj) arccosine map

    Under a mask tokens are not alike and no one correlation describes them: causal attention of orthonormal tokens
    gives G_ij = 1 / max(i, j).

    Parameters
    ----------
    blocks : int                N >= 1
    gram : array [T, T]         G_ij = x_i . x_j / d of the input
    mask : array [T, T]         bool: token i sees token j; every row sees one
    norm, value_gain, mlp_gain, skip : of `stream`, scalars
    Returns
    -------
    array [2 N + 1, T, T]       after every sublayer, input first
    Raises
    ------
    ValueError, TypeError       shapes that do not fit, a row without tokens, a negative gain
    Source: own.
    """
    blocks, norm = checks.whole("blocks", blocks), checks.one_of("norm", norm, _stream.NORMS)
    g = _doors.numbers("gram", gram)
    if g.ndim != 2 or g.shape[0] != g.shape[1] or not g.size or (np.diagonal(g) <= 0).any():
        raise checks.BadValue(f"gram must be a matrix [T, T] with a positive diagonal; got {_told(g)}")
    scalars = [
        checks.number(name, value, least=least)
        for name, value, least in (
            ("value_gain", value_gain, 0.0),
            ("mlp_gain", mlp_gain, 0.0),
            ("skip", skip, -np.inf),
        )
    ]
    rows = [g]
    weights = _even(mask, g.shape)
    for number in range(2 * blocks):
        rows.append(_sublayer(rows[-1], number, norm, weights, *scalars))
    return np.stack(rows)


def _even(mask, shape):
    seen = np.asarray(checks.concrete("mask", mask))
    if seen.dtype != bool or seen.shape != shape or not seen.any(axis=1).all():
        raise checks.BadValue(f"mask must be bool of shape {shape} with a token in every row; got {_told(seen)}")
    return seen / seen.sum(axis=1, keepdims=True)


def _told(array):
    return f"{array.dtype} of shape {array.shape}" if array.ndim else repr(array.item())


def _sublayer(g, number, norm, weights, value_gain, mlp_gain, skip):
    given = _unit(g) if norm in ("pre", "sandwich") else g
    made = value_gain * weights @ given @ weights.T if number % 2 == 0 else mlp_gain * _relu(given)
    g = skip**2 * g + (_unit(made) if norm == "sandwich" else made)
    return _unit(g) if norm == "post" else g


def _unit(g):
    root = np.sqrt(np.diagonal(g))
    with np.errstate(divide="ignore", invalid="ignore"):
        return g / np.outer(root, root)


def _relu(g):
    root = np.sqrt(np.diagonal(g))
    return np.outer(root, root) * (1 - _stream.relu_gap(1 - _unit(g)))
