"""What goes into a stack of blocks and what comes out: vectors, token numbers, pictures, pairs of sequences."""

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import DTypeLike
from jaxtyping import ScalarLike

from numdl import _random, checks
from numdl._compiled import compiled
from numdl.networks import _affine, initializers
from numdl.networks._record import Network, probed_alone, split_probes
from numdl.networks.initializers import Initializer
from numdl.networks.transformer import _blocks
from numdl.networks.transformer._blocks import Blocks
from numdl.records import record, static

POSITIONS = ("none", "learned", "sinusoidal")


@record
class Settings:
    kind: str = static()  # network, language or vision
    outputs: int = static()
    width: object = static()
    patch: object = static()
    positions: str = static()
    tied: bool = static()
    dtype: object = static()
    blocks: Blocks
    readout: object
    embedding: object  # Initializer of patches; variance of token vectors; None
    positions_variance: object


@record
class _Pair:
    source: Settings
    target: Settings


def network(blocks: Blocks, *, outputs: int, readout_weights: Initializer) -> Network:
    """A transformer on token matrices; the readout is a linear map of the mean over tokens.

    Parameters
    ----------
    blocks : Blocks             made by `transformer.blocks`
    outputs : int
    readout_weights : Initializer    of the map (d, outputs)
    Returns
    -------
    Network                     x [N, T, d] -> outputs [N, outputs]
    Raises
    ------
    ValueError, TypeError       not Blocks, outputs < 1
    """
    return _made(_settings("network", blocks, outputs, readout_weights))


def language_model(
    blocks: Blocks,
    *,
    vocabulary: int,
    width: int,
    embedding_variance: ScalarLike,
    readout_weights: Initializer | None = None,
    tied: bool = False,
    positions: str = "none",
    positions_variance: ScalarLike = 0.0,
    dtype: DTypeLike = "float32",
) -> Network:
    """A transformer from token numbers to logits over the vocabulary, at every place.

    Parameters
    ----------
    blocks : Blocks             mask="causal" for a model that predicts the next token
    vocabulary, width : int     V, d
    embedding_variance : scalar    of the entries of the embedding [V, d]
    readout_weights : Initializer    of the head (d, V); None where it is tied
    tied : bool                 the head is the embedding's transpose
    positions : str             none, learned (variance positions_variance at first) or sinusoidal, added to the tokens
    positions_variance : scalar
    dtype : dtype               of the parameters
    Returns
    -------
    Network                     x [N, T] of whole numbers -> logits [N, T, V]
    Raises
    ------
    ValueError, TypeError       not Blocks, a size below 1, a head that is both tied and given a law
    Source: Radford et al. 2019; ties: Press & Wolf 2017, arXiv:1608.05859.
    """
    if checks.flag("tied", tied) == (readout_weights is not None):
        got = "readout_weights with tied=True" if tied else "readout_weights=None with tied=False"
        raise checks.BadValue(f"readout_weights must be given unless the head is tied; got {got}")
    made = _settings(
        "language",
        blocks,
        checks.whole("vocabulary", vocabulary),
        readout_weights,
        width=checks.whole("width", width),
        embedding=checks.variance("embedding_variance", embedding_variance, shape=()),
        positions=checks.one_of("positions", positions, POSITIONS),
        positions_variance=checks.variance("positions_variance", positions_variance, shape=()),
        tied=tied,
        dtype=initializers.float_dtype("dtype", dtype),
    )
    return _made(made)


def vision(
    blocks: Blocks,
    *,
    patch: int,
    width: int,
    outputs: int,
    embedding_weights: Initializer,
    readout_weights: Initializer,
    positions: str = "learned",
    positions_variance: ScalarLike = 0.0,
) -> Network:
    """A transformer on pictures, cut into square patches; the readout is a linear map of the mean over patches.

    Parameters
    ----------
    blocks : Blocks
    patch, width, outputs : int    side of a patch, which divides those of the picture; d; numbers that come out
    embedding_weights : Initializer    of the map of patches (patch * patch * channels, d)
    readout_weights : Initializer    of the map (d, outputs)
    positions : str             none, learned or sinusoidal
    positions_variance : scalar    of learned positions at first
    Returns
    -------
    Network                     x [N, height, width, channels] -> outputs [N, outputs]
    Raises
    ------
    ValueError, TypeError       not Blocks, a size below 1, pictures that are no multiple of the patch
    Source: Dosovitskiy et al. 2020, arXiv:2010.11929, with the mean instead of a class token.
    """
    made = _settings(
        "vision",
        blocks,
        outputs,
        readout_weights,
        width=checks.whole("width", width),
        patch=checks.whole("patch", patch),
        embedding=_affine.checked_law("embedding_weights", embedding_weights),
        positions=checks.one_of("positions", positions, POSITIONS),
        positions_variance=checks.variance("positions_variance", positions_variance, shape=()),
    )
    return _made(made)


def encoder_decoder(
    encoder: Blocks,
    decoder: Blocks,
    *,
    vocabulary: int,
    width: int,
    embedding_variance: ScalarLike,
    readout_weights: Initializer | None = None,
    tied: bool = False,
    positions: str = "sinusoidal",
    positions_variance: ScalarLike = 0.0,
    dtype: DTypeLike = "float32",
) -> Network:
    """A transformer that reads one sequence and writes another; each block of the decoder looks at what was read.

    Parameters
    ----------
    encoder, decoder : Blocks   the decoder with mask="causal". For DeepNorm give each its pair of gains and scale the
                                laws: one stack's constants, skip="deepnorm" or "fixup", do not fit two; of T-Fixup
                                there is one for each side
    vocabulary, width, embedding_variance, readout_weights, tied : as `language_model`, one embedding for both
    positions, positions_variance, dtype : as `language_model`
    Returns
    -------
    Network                     x = (source [N, S], target [N, T]) -> logits [N, T, V]; states: the embedded source,
                                the encoder's, the embedded target, the decoder's
    Raises
    ------
    ValueError, TypeError       not Blocks, skip="deepnorm" or "fixup", sizes or a head as in `language_model`
    Source: Vaswani et al. 2017, arXiv:1706.03762.
    """
    for name, blocks in (("encoder", encoder), ("decoder", decoder)):
        checks.instance(name, blocks, Blocks, hint="made by transformer.blocks")
        known = not isinstance(blocks.weight_gain, jax.core.Tracer)
        # A rule that counts one stack's sublayers: larger skips (DeepNorm) or branches that begin at 0 (Fixup).
        if known and blocks.weight_gain != 1 and (blocks.skip_gain != 1 or blocks.last_gain == 0):
            raise checks.BadValue(
                f"{name} must have a pair of gains for skip, not 'deepnorm' or 'fixup'; got {blocks!r}"
            )
    more = {"vocabulary": vocabulary, "width": width, "embedding_variance": embedding_variance, "dtype": dtype}
    more |= {"tied": tied, "positions": positions, "positions_variance": positions_variance}
    sides = [
        language_model(blocks, readout_weights=readout_weights, **more).init.args[0] for blocks in (encoder, decoder)
    ]
    pair = _Pair(*sides)
    return Network(Partial(_pair_init, pair), Partial(_pair_states, pair), Partial(_pair_readout, sides[1]))


def _settings(kind, blocks, outputs, readout, **more):
    checks.instance("blocks", blocks, Blocks, hint="made by transformer.blocks")
    fields = {"width": None, "patch": None, "positions": "none", "tied": False, "dtype": None, "embedding": None}
    law = None if more.get("tied") else _affine.checked_law("readout_weights", readout)
    given = fields | {"positions_variance": 0.0} | more
    return Settings(kind=kind, outputs=checks.whole("outputs", outputs), blocks=blocks, readout=law, **given)


def _made(settings):
    return Network(Partial(_init, settings), Partial(_states, settings), Partial(_readout, settings))


def _init(settings, key, x):
    """{"blocks", "readout"} and, where there are, "embedding", "positions", "final"."""
    checks.key("key", key)
    x, dtype = tokens_of(settings, x), settings.dtype
    dtype = dtype or initializers.float_dtype("x's dtype", x.dtype)
    width = x.shape[-1] if settings.kind == "network" else settings.width
    names = ("blocks", "readout", "embedding", "positions")
    keys = dict(zip(names, jax.random.split(key, 4), strict=True))
    made = {"blocks": _blocks.drawn(settings.blocks, keys["blocks"], width, dtype)}
    if settings.blocks.norm in ("pre", "sandwich"):
        made["final"] = _blocks.norm_parameters(settings.blocks, width, dtype)
    if not settings.tied:
        made["readout"] = {"kernel": settings.readout.sample(keys["readout"], (width, settings.outputs), dtype)}
    return made | _embedding(settings, keys, x, width, dtype)


def _embedding(settings, keys, x, width, dtype):
    made = {}
    if settings.kind == "language":
        made["embedding"] = _gaussian(keys["embedding"], (settings.outputs, width), settings.embedding, dtype)
    if settings.kind == "vision":
        made["embedding"] = settings.embedding.sample(keys["embedding"], (x.shape[-1], width), dtype)
    if settings.positions == "learned":
        shape = (x.shape[1], width)
        made["positions"] = _gaussian(keys["positions"], shape, settings.positions_variance, dtype)
    return made


def _gaussian(key, shape, variance, dtype):
    return _random.normal(key, shape, dtype) * jnp.sqrt(jnp.asarray(variance, dtype))


@compiled
def _states(settings, params, x, probes=None):
    x = tokens_of(settings, x)
    if settings.kind == "network":
        (probe,) = split_probes(probes, 1)
        width = params["blocks"]["attention"]["query"].shape[-2]
        checks.shape("x", x, (None, None, width))
        y = x.astype(jnp.result_type(x, *jax.tree.leaves(params)))
        return (_blocks.run(settings.blocks, params["blocks"], y, probe),)
    first, rest = split_probes(probes, 2)
    y = probed_alone(embedded(settings, params, x), first)
    return y[None], _blocks.run(settings.blocks, params["blocks"], y, rest)


def embedded(settings, params, x):
    if settings.kind == "language":
        y = params["embedding"][x]
    else:
        y = x.astype(jnp.result_type(x, params["embedding"])) @ params["embedding"]
    if settings.positions == "none":
        return y
    if settings.positions == "sinusoidal":
        return y + _blocks.waves(*y.shape[1:], y.dtype)[None]
    known = params["positions"].shape[0]
    if y.shape[1] > known:
        raise checks.BadValue(f"x must have at most the {known} tokens whose positions were learned; got {y.shape[1]}")
    return y + params["positions"][None, : y.shape[1]]


@compiled
def _readout(settings, params, y):
    if "final" in params:
        y = _blocks.normalized(settings.blocks, params["final"], y)
    head = params["embedding"].T if settings.tied else params["readout"]["kernel"]
    return (y if settings.kind == "language" else jnp.mean(y, axis=1)) @ head


def tokens_of(settings, x):
    """Token matrices, token numbers, or pictures cut into patches [N, T, patch * patch * channels]."""
    if settings.kind == "language":
        return _numbers("x", x)
    x = checks.floating("x", x, ndim=3 if settings.kind == "network" else 4)
    if settings.kind == "network":
        return x
    n, rows, columns, channels = x.shape
    p = settings.patch
    if rows % p or columns % p:
        raise checks.BadValue(f"x must have sides that are multiples of patch = {p}; got shape {tuple(x.shape)}")
    cut = jnp.asarray(x).reshape(n, rows // p, p, columns // p, p, channels)
    return jnp.swapaxes(cut, 2, 3).reshape(n, (rows // p) * (columns // p), p * p * channels)


def _numbers(name, x):
    return jnp.asarray(checks.array(name, x, kind="integer", ndim=2))


def _sides(x):
    if not isinstance(x, tuple | list) or len(x) != 2:
        raise checks.BadType(f"x must be a pair (source, target) of arrays of token numbers; got {checks.shown(x)}")
    return [_numbers(f"x[{i}]", side) for i, side in enumerate(x)]


def _pair_init(pair, key, x):
    """{"encoder", "decoder"}, with one embedding, in the decoder."""
    source, target = _sides(x)
    keys = jax.random.split(checks.key("key", key), 3)
    made = {"encoder": _init(pair.source, keys[0], source), "decoder": _init(pair.target, keys[1], target)}
    dtype, width = pair.target.dtype, pair.target.width
    made["decoder"]["blocks"] = _blocks.drawn(pair.target.blocks, keys[2], width, dtype, crossed=True)
    for name in ("embedding", "readout"):
        made["encoder"].pop(name, None)
    return made | {name: made["decoder"].pop(name) for name in ("embedding", "readout") if name in made["decoder"]}


@compiled
def _pair_states(pair, params, x, probes=None):
    source, target = _sides(x)
    probes = split_probes(probes, 4)
    encoder, decoder = params["encoder"], params["decoder"]
    read = probed_alone(embedded(pair.source, params | encoder, source), probes[0])
    reading = _blocks.run(pair.source.blocks, encoder["blocks"], read, probes[1])
    memory = reading[-1]
    if "final" in encoder:
        memory = _blocks.normalized(pair.source.blocks, encoder["final"], memory)
    written = probed_alone(embedded(pair.target, params | decoder, target), probes[2])
    writing = _blocks.run(pair.target.blocks, decoder["blocks"], written, probes[3], memory)
    return read[None], reading, written[None], writing


@compiled
def _pair_readout(settings, params, y):
    final = {"final": params["decoder"]["final"]} if "final" in params["decoder"] else {}
    return _readout(settings, params | final, y)
