"""How the entries' size goes with the width as a network is drawn, and how a rule wants it."""

import math
from typing import NamedTuple

from numdl.optimize.scaling import _uses

_CLOSE = 4.0  # standard errors within which a law of two fans is taken for the one that was drawn


class Law(NamedTuple):
    """Mean square of the entries at the narrow width, its growth, and the law behind it."""

    square: float  # at the narrow width
    error: float  # its standard error
    log_ratio: float  # ln of wide over narrow mean square, as measured; nan: a leaf of zeros
    spread: float  # its standard error
    fans: tuple  # inputs and outputs at the narrow width
    name: str | None = None  # of `_LAWS`, or "1 / width"; None: none fits
    log_wide: float = math.nan  # the logarithm by the law; as measured without one


# The mean square up to a constant, at so many inputs and outputs: of those that fit the first is taken.
_LAWS = {
    "constant": lambda inputs, outputs: 1.0,
    "1 / inputs": lambda inputs, outputs: 1 / inputs,
    "1 / outputs": lambda inputs, outputs: 1 / outputs,
    "1 / inputs^2": lambda inputs, outputs: 1 / inputs**2,
    "1 / (inputs + outputs)": lambda inputs, outputs: 1 / (inputs + outputs),
}


def measured(narrow, wide, fans):
    """The `Law` of a leaf from its values at both widths, without a name; `fans` are those at the narrow one."""
    (one, error), (other, error_wide) = _uses.mean_square(narrow), _uses.mean_square(wide)
    if not (one > 0 and other > 0):
        return Law(one, error, math.nan, 0.0, fans)
    return Law(one, error, math.log(other / one), math.hypot(error / one, error_wide / other) + 1e-6, fans)


def named(leaves, m):
    """The leaves' laws with their names: one law for all weights if there is one that fits them all."""
    weights = [leaf for leaf in leaves if leaf.inputs != () and not math.isnan(leaf.law.log_ratio)]
    common = [name for name in _LAWS if all(_fits(leaf, name, m) for leaf in weights)]
    return [_named(leaf, [*(common[:1] if leaf in weights else ()), *_LAWS, "1 / width"], m) for leaf in leaves]


def _named(leaf, order, m):
    name = next((name for name in order if _fits(leaf, name, m)), None)
    return leaf.law._replace(name=name, log_wide=_growth(leaf, name, m) if name else leaf.law.log_ratio)


def _fits(leaf, name, m):
    return abs(_growth(leaf, name, m) - leaf.law.log_ratio) <= _CLOSE * leaf.law.spread


def _growth(leaf, name, m, ratios=None):
    """ln of the mean square at the wide width, or at other ratios, over that at the narrow one."""
    if name == "1 / width":
        return -math.log(m)
    (inputs, outputs), (m_in, m_out) = leaf.law.fans, ratios or (leaf.m_in, leaf.m_out)
    return math.log(_LAWS[name](inputs * m_in, outputs * m_out) / _LAWS[name](inputs, outputs))


def drawn(leaf, shape):
    """ln of the mean square at this shape over that at the narrow width, as the build draws it; None: not known."""
    if shape == leaf.shapes[0]:
        return 0.0
    if shape == leaf.shapes[1]:
        return leaf.law.log_wide
    ratios = leaf.ratios(shape)
    return _growth(leaf, leaf.law.name, None, ratios) if leaf.law.name in _LAWS and ratios else None


def mup(m_in, m_out):
    """The deviation over that of the narrow network under muP, which is the spectral condition."""
    return m_in**-0.5 * min(1.0, math.sqrt(m_out / m_in))


def standard(m_in, m_out):
    """The same where every output keeps its size."""
    return m_in**-0.5
