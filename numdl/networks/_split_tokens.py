"""Tokens as mean plus deviation, and what a layer of attention does to both."""

import math

import jax
import jax.numpy as jnp

from numdl.records import record


@record
class SplitTokens:
    """Tokens as mean plus deviation, X = 1 mean' + exp(log_scale) deviation: rank collapse without cancellation."""

    mean: jax.Array  # [L + 1, N, d]
    deviation: jax.Array  # [L + 1, N, tokens, d], largest entry 1, token mean 0
    log_scale: jax.Array  # [L + 1, N]


def first(x):
    """The input's tokens."""
    mean = jnp.mean(x, axis=1, keepdims=True)
    return split(mean[:, 0], x - mean, jnp.zeros(x.shape[0], x.dtype))


def split(mean, deviation, log_scale):
    """The token mean of the deviation moved to the mean, and its largest entry to the scale."""
    shift = jnp.mean(deviation, axis=1)
    deviation = deviation - shift[:, None, :]
    mean = mean + jnp.exp(log_scale)[:, None] * shift
    largest = jnp.max(jnp.abs(deviation), axis=(1, 2))
    safe = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    return SplitTokens(mean, deviation / safe[:, None, None], log_scale + jnp.log(largest))


def split_layer(layer, tokens, skip):
    """The tokens after a layer, soft and uncausal."""
    m, r, log_scale = tokens.mean, tokens.deviation, tokens.log_scale
    scale = jnp.exp(log_scale)[:, None, None, None]
    root = math.sqrt(layer["query"].shape[-1])
    keys = heads(r, layer["key"])
    common = jnp.einsum("nd,hdk->nhk", m, layer["query"])
    q = jax.nn.softmax(scale[..., 0] * jnp.einsum("nhk,nhsk->nhs", common, keys) / root)[:, :, None, :]
    change = _relative_change(q, jnp.einsum("nhtk,nhsk->nhts", heads(r, layer["query"]), keys) / root, scale**2)
    maps = jnp.einsum("hdv,hve->hde", layer["value"], layer["output"])
    mean = jnp.einsum("nhd,hde->ne", m[:, None, :] + scale[..., 0] * jnp.einsum("nhus,nsd->nhd", q, r), maps)
    deviation = jnp.einsum("nhts,nsd,hde->nte", q * change, r, maps)
    if not skip:
        return split(mean, deviation, 3 * log_scale)
    return split(mean + m, r + scale[:, 0] ** 2 * deviation, log_scale)


def _relative_change(q, scores, t):
    """(softmax(log q + t scores) / q - 1) / t, exact also where t underflows."""
    scores = scores - jnp.sum(q * scores, axis=-1, keepdims=True)
    u = t * scores
    small = jnp.max(jnp.abs(u), axis=-1, keepdims=True) < jnp.finfo(u.dtype).eps
    safe = jnp.where(small, jnp.zeros_like(u), u)
    change = jnp.expm1(safe - jnp.log1p(jnp.sum(q * jnp.expm1(safe), axis=-1, keepdims=True)))
    return jnp.where(small, scores, change / jnp.where(small, jnp.ones_like(t), t))


def heads(x, weights):
    """x times the maps of every head, [..., H, tokens, k]."""
    return jnp.einsum("...td,hdk->...htk", x, weights)
