"""The table of blocks: which norm, scale, mask, skip, and what each of them means in numbers."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jaxtyping import Array, ArrayLike, ScalarLike

from numdl import checks
from numdl.networks import _affine
from numdl.networks._skips import SKIPS
from numdl.networks.initializers import Initializer
from numdl.networks.transformer._blocks import Blocks, sublayers

NORMS = ("pre", "post", "sandwich", "none")
NORMALIZATIONS = ("layer", "rms")
SCALES = ("root", "width", "qk_norm")
MASKS = ("full", "causal")


def blocks(
    *,
    depth: int,
    heads: int,
    head_width: int,
    mlp_width: int | None,
    query_key_weights: Initializer,
    value_weights: Initializer,
    mlp_weights: Initializer | None = None,
    activation: Callable[[Array], Array] | None = None,
    norm: str,
    normalization: str = "layer",
    scale: str = "root",
    mask: str | ArrayLike = "full",
    skip: str | Sequence[ScalarLike] = "unit",
    key_value_heads: int | None = None,
    gated: bool = False,
    rotary: bool = False,
    eps: ScalarLike = 1e-5,
) -> Blocks:
    """A stack of transformer blocks, for `network`, `language_model`, `vision` and `encoder_decoder`.

    Parameters
    ----------
    depth, heads, head_width : int    blocks, heads of each, width of a head
    mlp_width : int             hidden units of the MLP; None: blocks of attention alone
    query_key_weights, value_weights, mlp_weights : Initializer    laws of W_Q, W_K; W_V, W_O; both maps of the MLP
    activation : function       of the MLP
    norm : str                  pre, post, sandwich or none
    normalization : str         layer or rms
    scale : str                 root (scores / sqrt(k)), width (/ k) or qk_norm (sqrt(k) cosines)
    mask : str or array [T, T]  full, causal, or bool: token i sees token j
    skip : str or (a, g)        unit (1, 1); depth (1, sublayers^-1/2); deepnorm ((2 N)^1/4, 1; W_V, W_O, MLP times
                                (8 N)^-1/4); gate (1, a trained number, 0 at first); fixup (1, 1; the branch's first
                                weights times sublayers^-1/2, its last 0); t_fixup (1, 1; V, O, MLP times 0.67 N^-1/4),
                                t_fixup_decoder ((9 N)^-1/4, the embedding's deviation with it); admin (post: trained
                                gains of the stream, 1 until `transformer.admin` sets them)
    key_value_heads : int       a divisor of heads; heads if None (grouped queries share keys and values)
    gated : bool                the MLP's hidden units times a second linear map
    rotary : bool               queries and keys turned by their places; an even head_width
    eps : scalar                of all normalizations, >= 0
    Raises
    ------
    ValueError, TypeError       a size below 1, an unknown name, heads that do not group, an MLP without law
    Source: Xiong et al. 2020, arXiv:2002.04745; Wang et al. 2022, arXiv:2203.00555; Bachlechner et al. 2020,
    arXiv:2003.04887; Zhang et al. 2019, arXiv:1901.09321 (fixup, m = 2, without its biases); Huang et al. 2020, ICML
    (t_fixup, for norm="none"); Liu et al. 2020, arXiv:2004.08249 (admin); Henry et al. 2020, arXiv:2010.04245; Su et
    al. 2021, arXiv:2104.09864.
    """
    sizes = {"depth": depth, "heads": heads, "head_width": head_width}
    n, h, k = (checks.whole(name, value) for name, value in sizes.items())
    shared = h if key_value_heads is None else checks.whole("key_value_heads", key_value_heads)
    if h % shared:
        raise checks.BadValue(f"key_value_heads must divide the {h} heads; got {key_value_heads!r}")
    if isinstance(skip, str) and skip == "admin" and norm != "post":
        raise checks.BadValue(f"skip must not be admin unless norm is post; got {norm!r}")
    if checks.flag("rotary", rotary) and k % 2:
        raise checks.BadValue(f"head_width must be even with rotary positions; got {head_width!r}")
    has_mlp = mlp_width is not None
    made = Blocks(
        n,
        h,
        shared,
        k,
        checks.whole("mlp_width", mlp_width) if has_mlp else None,
        checks.accepts("activation", activation, 1, "activation(x)") if has_mlp else None,
        checks.one_of("norm", norm, NORMS),
        checks.one_of("normalization", normalization, NORMALIZATIONS),
        checks.one_of("scale", scale, SCALES),
        isinstance(mask, str) and checks.one_of("mask", mask, MASKS) == "causal",
        checks.flag("gated", gated),
        isinstance(skip, str) and skip == "gate",
        isinstance(skip, str) and skip == "admin",
        rotary,
        None if isinstance(mask, str) else _mask(mask),
        1.0,
        1.0,
        1.0,
        1.0,
        checks.variance("eps", eps, shape=()),
        _affine.checked_law("query_key_weights", query_key_weights),
        _affine.checked_law("value_weights", value_weights),
        _affine.checked_law("mlp_weights", mlp_weights) if has_mlp else None,
    )
    return _with_gains(made, skip)


def _with_gains(made, skip):
    if isinstance(skip, str):
        gains = SKIPS[checks.one_of("skip", skip, tuple(SKIPS))](made.depth, len(sublayers(made)))
    else:
        gains = (*_pair(skip), 1.0, 1.0)
    fields = dict(zip(("skip_gain", "branch_gain", "weight_gain", "last_gain"), gains, strict=True))
    return Blocks(**{name: fields.get(name, getattr(made, name)) for name in made.__dataclass_fields__})


def _pair(skip):
    if not isinstance(skip, tuple | list) or len(skip) != 2:
        raise checks.BadType(f"skip must be one of {tuple(SKIPS)} or a pair of gains (a, g); got {skip!r}")
    return tuple(checks.finite(f"skip[{i}]", gain, shape=()) for i, gain in enumerate(skip))


def _mask(mask):
    seen = np.asarray(mask) if not isinstance(mask, jax.core.Tracer) else mask
    if seen.dtype != bool or seen.ndim != 2 or seen.shape[0] != seen.shape[1]:
        got = f"{seen.dtype} of shape {seen.shape}" if seen.ndim else repr(mask)
        raise checks.BadType(f"mask must be one of {MASKS} or a bool array [T, T]; got {got}")
    return seen
