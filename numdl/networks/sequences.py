"""Sequence to sequence: one recurrent cell reads, another writes, with or without attention to what was read.

    carry_s = encoder(carry_{s-1}, x_s), s = 1..S;   memory: the hidden states m_1..m_S;   the decoder starts at carry_S
    weights_t = softmax over s of (h_{t-1} W_Q) (m_s W_K)' / sqrt(k);    context_t = sum_s weights_ts m_s
    carry_t = decoder(carry_{t-1}, [output_{t-1}, context_t]);    output_t = h_t W + b,    output_0 = 0,    t = 1..T

Without attention there is no context: all that was read goes through carry_S, and so do all gradients. As a `Network`
there are three stretches, as of `recurrent`: the carries of the encoder [S, N, size], those of the decoder
[T, N, size], and [1, N, T, n], the hidden states that the readout reads.
Parameters: {"encoder", "decoder", "readout"}, with attention also {"query", "key"}, [n, k] each.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, PyTree

from numdl import checks
from numdl._compiled import compiled
from numdl.networks import _affine, _cells, attention, initializers
from numdl.networks._record import Network, fitting, probed, split_probes
from numdl.networks.initializers import Initializer
from numdl.networks.recurrent import Cell
from numdl.records import record, static


def network(
    encoder: Cell,
    decoder: Cell,
    *,
    outputs: int,
    steps: int,
    readout_weights: Initializer,
    key_width: int | None = None,
    query_key_weights: Initializer | None = None,
) -> Network:
    """A network that reads a sequence, then writes one; each output is the next input of the decoder.

    Parameters
    ----------
    encoder, decoder : Cell     of one width and kind of carry: the decoder starts where the encoder ends
    outputs : int               numbers in each output, >= 1
    steps : int                 outputs to write T, >= 1
    readout_weights : Initializer    of the map (n, outputs); its bias starts at 0
    key_width : int             k of the attention; None: without attention
    query_key_weights : Initializer    of W_Q and W_K (n, k)
    Returns
    -------
    Network                     x [N, S, d] -> outputs [N, T, outputs]
    Raises
    ------
    ValueError, TypeError       a size below 1, not a Cell, carries that differ, attention without weights
    Source: Sutskever, Vinyals & Le 2014, arXiv:1409.3215; with attention Bahdanau, Cho & Bengio 2015, arXiv:1409.0473,
    here with the scaled product of Vaswani et al. 2017, arXiv:1706.03762.    Experiment: f10.
    """
    looks = key_width is not None
    settings = _Settings(
        *_fitting_cells(encoder, decoder),
        checks.whole("outputs", outputs),
        checks.whole("steps", steps),
        checks.whole("key_width", key_width) if looks else None,
        _affine.checked_law("readout_weights", readout_weights),
        _affine.checked_law("query_key_weights", query_key_weights) if looks else None,
    )
    return Network(Partial(_init, settings), Partial(_states, settings), Partial(_readout))


def alignments(network: Network, params: PyTree, x: Float[ArrayLike, "N S d"]) -> Float[Array, "N T S"]:
    """The weights of attention: how much each output looks at each input.

    Parameters
    ----------
    network : Network           made by `network` of this module, with attention
    params : pytree             of `network.init`
    x : array [N, S, d]
    Returns
    -------
    array [N, T, S]             rows that sum to one
    Raises
    ------
    ValueError, TypeError       another network, one without attention, x or params that do not fit
    Source: Bahdanau, Cho & Bengio 2015, arXiv:1409.0473, figure 3.    Experiment: f10.
    """
    checks.instance("network", network, Network, hint="made by sequences.network")
    if not isinstance(network.states, Partial) or network.states.func is not _states:
        raise checks.BadValue(f"network must be made by sequences.network; got {network!r}")
    if network.states.args[0].key_width is None:
        raise checks.BadValue(f"network must have a key_width, for attention; got {network!r}")
    clean, params, x = fitting(network, params, x)
    return jnp.swapaxes(_run(clean.states.args[0], params, x, (None, None)).weights, 0, 1)


@record
class _Settings:
    encoder: Cell
    decoder: Cell
    outputs: int = static()
    steps: int = static()
    key_width: object = static()
    readout_weights: Initializer
    query_key_weights: object


class _Read(NamedTuple):
    """What was read and how the decoder looks at it."""

    memory: jax.Array  # [N, S, n]
    keys: object  # [N, S, k], None without attention


class _Written(NamedTuple):
    """Everything that a pass leaves."""

    encoded: jax.Array  # [S, N, size]
    decoded: jax.Array  # [T, N, size]
    hidden: jax.Array  # [T, N, n]
    weights: object  # [T, N, S], None without attention


def _fitting_cells(encoder, decoder):
    """Both cells, whose carries are alike."""
    pair = (("encoder", encoder), ("decoder", decoder))
    cells = [checks.instance(name, cell, Cell, hint="made by recurrent.lstm, for example") for name, cell in pair]
    first, second = (jax.eval_shape(lambda cell=cell: cell.start(1, jnp.float32)) for cell in cells)
    checks.like("decoder.start(1, float32)", second, first, of="encoder.start(1, float32)", shapes=True)
    return cells


def _init(settings, key, x):
    encoder_key, decoder_key, key = jax.random.split(checks.key("key", key), 3)
    x = checks.floating("x", x, ndim=3)
    dtype = initializers.float_dtype("x's dtype", x.dtype)
    width = settings.encoder.hidden(settings.encoder.start(1, dtype)).shape[-1]
    features = settings.outputs + (0 if settings.key_width is None else width)
    cells = {
        "encoder": settings.encoder.init(encoder_key, x.shape[-1], dtype),
        "decoder": settings.decoder.init(decoder_key, features, dtype),
    }
    return cells | _maps(settings, key, width, dtype)


def _maps(settings, key, width, dtype):
    """The readout and, with attention, the maps of queries and keys."""
    last_key, *keys = jax.random.split(key, 3)
    kernel = settings.readout_weights.sample(last_key, (width, settings.outputs), dtype)
    readout = {"readout": {"kernel": kernel, "bias": jnp.zeros(settings.outputs, dtype)}}
    if settings.key_width is None:
        return readout
    shape, maps = (width, settings.key_width), zip(("query", "key"), keys, strict=True)
    return readout | {name: settings.query_key_weights.sample(k, shape, dtype) for name, k in maps}


@compiled
def _states(settings, params, x, probes=None):
    *through, last = split_probes(probes, 3)
    written = _run(settings, params, x, through)
    return written.encoded, written.decoded, probed(jnp.swapaxes(written.hidden, 0, 1)[None], last)


@compiled
def _readout(params, y):
    return _affine.apply(params["readout"], y)


@compiled
def _run(settings, params, x, probes):
    """Read, then write."""
    x = checks.shape("x", checks.floating("x", x), (None, None, params["encoder"]["input"].shape[-2]))
    x = x.astype(jnp.result_type(x, *jax.tree.leaves(params)))
    start = settings.encoder.start(x.shape[0], x.dtype)
    packing = _cells.packing(start)
    step = functools.partial(_read, settings.encoder, params["encoder"], packing)
    carry, (encoded, memory) = lax.scan(step, start, (jnp.swapaxes(x, 0, 1), probes[0]))
    read = _remembered(params, memory)
    step = functools.partial(_write, settings.decoder, params, packing, read)
    first = carry, jnp.zeros((x.shape[0], settings.outputs), x.dtype)
    _, written = lax.scan(step, first, probes[1], length=settings.steps)
    return _Written(encoded, *written)


def _remembered(params, memory):
    memory = jnp.swapaxes(memory, 0, 1)
    return _Read(memory, memory @ params["key"] if "key" in params else None)


def _read(cell, params, packing, carry, now):
    x, probe = now
    pack, unpack = packing
    packed = probed(pack(cell.step(params, carry, x)), probe)
    carry = unpack(packed)
    return carry, (packed, cell.hidden(carry))


def _write(cell, params, packing, read, both, probe):
    """One output: look, step, and what is fed to the next step."""
    carry, given = both
    pack, unpack = packing
    weights, given = _looked(cell, params, read, carry, given)
    packed = probed(pack(cell.step(params["decoder"], carry, given)), probe)
    carry = unpack(packed)
    hidden = cell.hidden(carry)
    return (carry, _affine.apply(params["readout"], hidden)), (packed, hidden, weights)


def _looked(cell, params, read, carry, given):
    """(weights [N, S], the last output and the context): without attention (None, the last output)."""
    if read.keys is None:
        return None, given
    query = cell.hidden(carry) @ params["query"]
    weights = attention.soft(jnp.einsum("nk,nsk->ns", query, read.keys) / math.sqrt(query.shape[-1]))
    return weights, jnp.concatenate([given, jnp.einsum("ns,nsi->ni", weights, read.memory)], axis=-1)
