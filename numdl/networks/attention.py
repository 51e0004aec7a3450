"""Self-attention, soft and hard, one head or many, and deep stacks of it with skips and MLPs switched on or off.

    scores = x W_Q (x W_K)' / sqrt(k),   P = weights(scores),   attention(x) = sum over heads P x W_V W_O

`weights` turns scores [..., queries, keys] into rows that sum to one: `soft` (softmax), `top_1` (all on the best key)
or `gumbel` (one key drawn with the softmax's probabilities). The two hard ones pass gradients straight through: their
value is one-hot, their derivative that of a softmax.

The network:  z = attention(y) [+ y],   y' = mlp(z) [+ z]. A state is a token matrix [N, tokens, d] after a layer, one
stretch; the readout is a linear map of the mean over tokens. There are no biases. Parameters: {"layers", "readout"},
the leaves of "layers" stacked along depth.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Key, PyTree, ScalarLike

from numdl import _effort, _random, checks
from numdl._compiled import compiled
from numdl.networks import _affine, _split_tokens
from numdl.networks._attention_parameters import Settings, init
from numdl.networks._record import Network, probed, split_probes
from numdl.networks._split_tokens import SplitTokens
from numdl.networks.initializers import Initializer

SELECTIONS = ("soft", "top_1", "gumbel")


def soft(scores: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    """The softmax over keys.

    Parameters
    ----------
    scores : array [..., keys]
    Returns
    -------
    array [..., keys]           rows that sum to one
    Raises
    ------
    ValueError, TypeError       empty scores, or not of floating-point numbers
    """
    scores = checks.floating("scores", scores)
    return jax.nn.softmax(scores, axis=-1)


def top_1(scores: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    """One for the best key, the first of equals, and 0 for all others; the derivative is that of `soft`.

    Parameters
    ----------
    scores : array [..., keys]
    Returns
    -------
    array [..., keys]           one-hot rows (hardmax)
    Raises
    ------
    ValueError, TypeError       empty scores, or not of floating-point numbers
    """
    scores = checks.floating("scores", scores)
    return _straight_through(scores, 1.0)


def gumbel(key: Key[Array, ""], scores: Float[ArrayLike, "..."], *, temperature: ScalarLike) -> Float[Array, "..."]:
    """One key, drawn with the probabilities of `soft`; the derivative is that of a softmax at `temperature`.

        argmax(scores + noise),   noise = -log(-log(uniform))

    Parameters
    ----------
    key : key                   of the noise
    scores : array [..., keys]
    temperature : scalar        > 0
    Returns
    -------
    array [..., keys]           one-hot rows
    Raises
    ------
    ValueError, TypeError       a temperature that is not positive, empty scores, or not of floating-point numbers
    Source: Jang, Gu & Poole 2017, arXiv:1611.01144 (straight-through); Maddison et al. 2017, arXiv:1611.00712.
    """
    checks.key("key", key)
    temperature = checks.positive("temperature", temperature, shape=())
    scores = checks.floating("scores", scores)
    return _straight_through(scores + _random.gumbel(key, scores.shape, scores.dtype), temperature)


def attend(
    queries: Float[ArrayLike, "*batch T k"],
    keys: Float[ArrayLike, "*batch S k"],
    values: Float[ArrayLike, "*batch S v"],
    *,
    weights: Callable[[Array], Array] = soft,
    causal: bool = False,
    mask: ArrayLike | None = None,
    scale: ScalarLike | None = None,
) -> Float[Array, "*batch T v"]:
    """Scaled dot-product attention: the values mixed by the weights of their keys.

        weights(scale queries keys') values

    Parameters
    ----------
    queries : array [..., T, k]
    keys : array [..., S, k]
    values : array [..., S, v]
    weights : function          scores [..., T, S] -> rows that sum to one
    causal : bool               query t sees the keys 0..t only
    mask : array [T, S]         bool: query t sees key s, of those that causal leaves; None: all
    scale : scalar              1 / sqrt(k) if None
    Returns
    -------
    array [..., T, v]
    Raises
    ------
    ValueError, TypeError       shapes that do not fit, arrays not of floating-point numbers, weights not a function
    Source: Vaswani et al. 2017, arXiv:1706.03762.
    """
    queries, keys, values = (
        checks.floating(name, array, least_ndim=2)
        for name, array in (("queries", queries), ("keys", keys), ("values", values))
    )
    checks.shape("keys", keys, (*queries.shape[:-2], None, queries.shape[-1]))
    checks.shape("values", values, (*queries.shape[:-2], keys.shape[-2], None))
    if mask is not None:
        mask = checks.shape("mask", checks.array("mask", mask), (queries.shape[-2], keys.shape[-2]))
        if mask.dtype != bool:
            raise checks.BadType(f"mask must be bool, True where a query sees a key; got {checks.shown(mask)}")
    scale = None if scale is None else checks.finite("scale", scale, shape=())
    weights = checks.returning("weights", weights, 1, "weights(scores)")
    causal = checks.flag("causal", causal)
    scores = jnp.einsum("...tk,...sk->...ts", queries, keys)
    scores = scores / math.sqrt(queries.shape[-1]) if scale is None else scores * jnp.asarray(scale, scores.dtype)
    seen = _seen(scores.shape[-2:], causal, mask)
    if seen is not None:
        # A finite number: infinities make nan in derivatives. A quarter leaves room for noise and temperature.
        scores = jnp.where(jnp.broadcast_to(seen, scores.shape), scores, float(jnp.finfo(scores.dtype).min) / 4)
    return jnp.einsum("...ts,...sv->...tv", weights(scores), values)


def self_attention(
    params: dict[str, ArrayLike],
    x: Float[ArrayLike, "*batch T d"],
    *,
    weights: Callable[[Array], Array] = soft,
    causal: bool = False,
) -> Float[Array, "*batch T e"]:
    """Multi-head self-attention of tokens; the heads are the first axis of the parameters.

        sum over heads of weights(x W_Q (x W_K)' / sqrt(k)) x W_V W_O

    Parameters
    ----------
    params : dict               {"query": [H, d, k], "key": [H, d, k], "value": [H, d, v], "output": [H, v, e]}
    x : array [..., T, d]
    weights : function          scores [..., T, T] -> rows that sum to one
    causal : bool               token t sees tokens 0..t only
    Returns
    -------
    array [..., T, e]
    Raises
    ------
    ValueError, TypeError       shapes that do not fit, a missing map, weights not a function
    Source: Vaswani et al. 2017, arXiv:1706.03762.
    """
    x, params = checks.floating("x", x, least_ndim=2), _projections(params, np.shape(x)[-1])
    checks.accepts("weights", weights, 1, "weights(scores)")
    checks.flag("causal", causal)
    queries, keys, values = (_split_tokens.heads(x, params[name]) for name in ("query", "key", "value"))
    mixed = attend(queries, keys, values, weights=weights, causal=causal)
    return jnp.einsum("...htv,hvd->...td", mixed, params["output"])


def network(
    *,
    depth: int,
    heads: int,
    head_width: int,
    outputs: int,
    query_key_weights: Initializer,
    value_weights: Initializer,
    skip: bool,
    mlp_width: int | None = None,
    mlp_weights: Initializer | None = None,
    activation: Callable[[Array], Array] | None = None,
    selection: str = "soft",
    key: Key[Array, ""] | None = None,
    temperature: ScalarLike = 1.0,
    causal: bool = False,
) -> Network:
    """A stack of attention layers (a transformer without normalization) on token matrices, d from the input.

    Parameters
    ----------
    depth, heads, head_width, outputs : int    each >= 1; head_width is k and v
    query_key_weights, value_weights : Initializer    of W_Q, W_K (d, k); of W_V (d, v), W_O (heads * v, d) and readout
    skip : bool                 add the input to the attention's output, and to the MLP's
    mlp_width : int             of an MLP after the attention, d -> mlp_width -> d; without one if None
    mlp_weights : Initializer   of both its maps
    activation : function       between them, elementwise
    selection : str             soft, top_1 or gumbel
    key : key                   for gumbel; it draws the same noise in every call, fresh for each layer
    temperature : scalar        for gumbel, > 0
    causal : bool               token t sees tokens 0..t only
    Returns
    -------
    Network                     x [N, tokens, d] -> outputs [N, outputs]
    Raises
    ------
    ValueError, TypeError       a size below 1, an MLP without weights or activation, gumbel without key
    """
    sizes = (("depth", depth), ("heads", heads), ("head_width", head_width), ("outputs", outputs))
    checks.one_of("selection", selection, SELECTIONS)
    settings = Settings(
        *(checks.whole(name, value) for name, value in sizes),
        checks.flag("skip", skip),
        None if mlp_width is None else checks.whole("mlp_width", mlp_width),
        None if mlp_width is None else checks.accepts("activation", activation, 1, "activation(x)"),
        selection,
        checks.flag("causal", causal),
        _affine.checked_law("query_key_weights", query_key_weights),
        _affine.checked_law("value_weights", value_weights),
        None if mlp_width is None else _affine.checked_law("mlp_weights", mlp_weights),
        checks.key("key", key) if selection == "gumbel" else None,
        checks.positive("temperature", temperature, shape=()),
    )
    return Network(Partial(init, settings), Partial(_states, settings), Partial(_readout))


def split_states(params: PyTree, x: Float[ArrayLike, "N tokens d"], *, skip: bool) -> SplitTokens:
    """The states of a soft, uncausal stack without MLP, input first, with deviations exact at any size.

        E_ij = r_i A r_j' / sqrt(k),  b_j = m A r_j' / sqrt(k),  q = softmax(b),  P = softmax(b + E)
        mean' = (m + q R) W_V W_O [+ m],   deviation' = (P - q) R W_V W_O [+ R],   P - q = q expm1(E - log sum q e^E)

    In the plain states the deviation drowns in the rounding of the mean after about three layers (rank collapse).

    Parameters
    ----------
    params : pytree             of `network` with selection="soft", causal=False, mlp_width=None
    x : array [N, tokens, d]
    skip : bool                 as in `network`
    Returns
    -------
    SplitTokens                 leading axis, the states 0..L
    Raises
    ------
    ValueError, TypeError       parameters with an MLP or of another network, x with other axes
    Source: own; the softmax does not see what is added to a whole row.
    """
    x, skip, params = checks.floating("x", x, ndim=3), checks.flag("skip", skip), checks.leaves("params", params)
    if not isinstance(params, dict) or not isinstance(params.get("layers"), dict):
        raise checks.BadValue(f"params must be those of an attention network, with layers; got {params}")
    layers = params["layers"]
    if "mlp_in" in layers:
        raise checks.BadValue(
            f"params must have no MLP, whose deviations cannot be split off; got layers {sorted(layers)}"
        )
    width = x.shape[-1]
    layers = _projections(layers, width, name="params['layers']", lead=1)
    checks.shape("params['layers']['output']", layers["output"], (None, None, None, width))
    return _split(layers, x.astype(jnp.result_type(x, *layers.values())), skip=skip)


@functools.partial(compiled, static=("skip",))
def _split(layers, x, skip):
    first = _split_tokens.first(x)

    def step(tokens, layer):
        tokens = _split_tokens.split_layer(layer, tokens, skip)
        return tokens, tokens

    _, rest = lax.scan(step, first, layers)
    return jax.tree.map(lambda one, more: jnp.concatenate([one[None], more]), first, rest)


def _seen(shape, causal, mask):
    """Which keys each query sees, bool [T, S]; None for all."""
    mask = None if mask is None else jnp.asarray(mask)
    if not causal:
        return mask
    seen = jnp.arange(shape[0])[:, None] >= jnp.arange(shape[1])[None, :]
    return seen if mask is None else seen & mask


def _projections(params, width, *, name="params", lead=0):
    """The four arrays of `self_attention`, behind so many leading axes, with heads and widths that fit each other."""
    names = ("query", "key", "value", "output")
    if not isinstance(params, dict) or not set(names) <= set(params):
        got = sorted(params) if isinstance(params, dict) and params else params
        raise checks.BadValue(f"{name} must hold query, key, value and output; got {got}")
    arrays = {own: checks.floating(f"{name}['{own}']", params[own], ndim=3 + lead) for own in names}
    *heads, _, k = checks.shape(f"{name}['query']", arrays["query"], (*[None] * lead, None, width, None)).shape
    checks.shape(f"{name}['key']", arrays["key"], (*heads, width, k))
    v = checks.shape(f"{name}['value']", arrays["value"], (*heads, width, None)).shape[-1]
    checks.shape(f"{name}['output']", arrays["output"], (*heads, v, None))
    return arrays


@compiled
def _states(settings, params, x, probes=None):
    layers = params["layers"]
    checks.shape("x", checks.floating("x", x), (None, None, layers["query"].shape[-2]))
    (probe,) = split_probes(probes, 1)
    depth = layers["query"].shape[0]

    def step(y, now):
        layer, push, number = now
        y = probed(_layer(settings, layer, number, y), push)
        return y, y

    x = x.astype(jnp.result_type(x, *jax.tree.leaves(layers)))
    return (lax.scan(step, x, (layers, probe, jnp.arange(depth)))[1],)


def _layer(settings, layer, number, y):
    weights = _selection(settings, number)
    z = self_attention(layer, y, weights=weights, causal=settings.causal)
    z = z + y if settings.skip else z
    if settings.mlp_width is None:
        return z
    out = settings.activation(z @ layer["mlp_in"]) @ layer["mlp_out"]
    return out + z if settings.skip else out


def _selection(settings, number):
    if settings.selection != "gumbel":
        return {"soft": soft, "top_1": top_1}[settings.selection]
    key = jax.random.fold_in(settings.key, number)
    return lambda scores: gumbel(key, scores, temperature=settings.temperature)


@compiled
def _readout(params, y):
    return jnp.mean(y, axis=1) @ params["readout"]["kernel"]


@_effort.jit
def _straight_through(scores, temperature):
    smooth = jax.nn.softmax(scores / temperature, axis=-1)
    hard = jax.nn.one_hot(jnp.argmax(scores, axis=-1), scores.shape[-1], dtype=scores.dtype)
    return hard + (smooth - lax.stop_gradient(smooth))
