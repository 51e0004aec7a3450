"""MEASURED: the laws that frameworks draw weights from: which one is this, and which one does a framework use.

A law is told by its family (range and kurtosis) and by its variance, each within its sampling error. The families:
uniform; truncated_normal, a Gaussian cut at two deviations; normal.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from numdl import checks
from numdl.records import record, static

FRAMEWORKS = ("flax", "equinox", "pytorch", "keras", "haiku")
LAYERS = ("dense", "conv", "recurrent")
LIMIT = 4.5  # standard errors of a variance, a mean or a kurtosis
RARE = 1e-9  # probability of a maximum as small as the one seen
CUT = 1 - 2 * 2 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))  # Var of N(0, 1) cut at 2: 0.7737


@record
class Defaults:
    """What a framework draws the weights of one layer from; P weights."""

    framework: str = static()
    layer: str = static()
    names: tuple = static()  # "kernel"; of a recurrent layer "input" and "recurrent"
    shapes: tuple = static()  # as (in, out) or HWIO
    laws: tuple = static()
    bias_law: str = static()
    source: str = static()
    fan_in: np.ndarray  # [P]
    fan_out: np.ndarray  # [P]
    weight_variance: np.ndarray  # [P]  fan_in * Var(W)
    bias_variance: np.ndarray  # []  Var(b_i), of the sum where there are two


def defaults(framework: str, layer: str, shape: Sequence[int]) -> Defaults:
    """The law that a framework uses for a layer when nothing is said: its default initialization.

    Parameters
    ----------
    framework : str             flax, equinox, pytorch, keras or haiku
    layer : str                 dense, conv or recurrent: an LSTM, its gates in one matrix where the framework has it so
    shape : sequence of int     dense (in, out); conv HWIO, or WIO, DHWIO; recurrent (inputs, hidden)
    Returns
    -------
    Defaults                    names, shapes, laws, fan_in, fan_out, weight_variance [P], bias_law, bias_variance
    Raises
    ------
    ValueError, TypeError       an unknown framework or layer, a shape with another number of axes
    Source: the framework's, named in the record's field `source`.
    """
    checks.one_of("framework", framework, FRAMEWORKS)
    checks.one_of("layer", layer, LAYERS)
    if not isinstance(shape, tuple | list):
        raise checks.BadType(f"shape must be a sequence of integers >= 1; got {shape!r}")
    shape = tuple(checks.whole(f"shape[{i}]", n) for i, n in enumerate(shape))
    if (len(shape) < 3) if layer == "conv" else (len(shape) != 2):
        wanted = {"dense": "(in, out)", "conv": "HWIO", "recurrent": "(inputs, hidden)"}[layer]
        raise checks.BadValue(f"shape must be {wanted} for a {layer} layer; got {shape}")
    recurrent = layer == "recurrent"
    parts, bias_law, bias = (_RECURRENT if recurrent else _FEED_FORWARD)[framework](shape)
    fans = [_fans(part.shape) for part in parts]
    return Defaults(
        framework=framework,
        layer=layer,
        names=tuple(part.name for part in parts),
        shapes=tuple(part.shape for part in parts),
        laws=tuple(part.law for part in parts),
        bias_law=bias_law,
        source=_SOURCES[framework],
        fan_in=np.array([fan_in for fan_in, _ in fans]),
        fan_out=np.array([fan_out for _, fan_out in fans]),
        weight_variance=np.array([fan_in * part.variance for part, (fan_in, _) in zip(parts, fans)]),
        bias_variance=np.float64(bias),
    )


def identify(matrix, fan_in, fan_out):
    """The laws that fit the entries of a weight (fan_in, features): a tuple, empty if none; '~' marks a bare family.

    Laws of one family and one variance, such as Glorot's and LeCun's of a square matrix, are one: 'a = b'.
    """
    fan_in, fan_out = checks.whole("fan_in", fan_in), checks.whole("fan_out", fan_out)
    matrix = np.asarray(checks.array("matrix", matrix, kind="number", ndim=2))
    entries = np.ravel(matrix)
    if np.iscomplexobj(entries) or not np.isfinite(entries).all():
        return ()
    special = _special(np.asarray(matrix, np.float64), entries)
    if special:
        return (special,)
    fitting = {}
    for rule, family, variance in _named(fan_in, fan_out):
        if _fits(entries, family, variance):
            fitting.setdefault((family, variance), []).append(rule)
    if fitting:
        return tuple(_label(rules, family) for (family, _), rules in fitting.items())
    bare = [family for family in _FAMILIES if _mean_is_zero(entries) and _kurtosis_fits(entries, family)]
    return (f"~{bare[0]}",) if len(bare) == 1 else ()


# ---- recognising ---------------------------------------------------------------------------------------------------


def _named(fan_in, fan_out):
    """(rule, family, Var(W)) of every law that has a name."""
    yield "+-1/sqrt(fan_in)", "uniform", 1 / (3 * fan_in)
    yield "0.77/fan_in", "truncated_normal", CUT / fan_in
    for rule, variance in (("lecun", 1 / fan_in), ("glorot", 2 / (fan_in + fan_out)), ("he", 2 / fan_in)):
        for family in _FAMILIES:
            yield rule, family, variance


_USED_BY = {
    ("+-1/sqrt(fan_in)", "uniform"): "equinox, pytorch",
    ("0.77/fan_in", "truncated_normal"): "haiku",
    ("lecun", "truncated_normal"): "flax",
    ("glorot", "uniform"): "keras",
}


def _label(rules, family):
    """'lecun = glorot truncated_normal (flax)': the rules, the family, and whose default it is."""
    users = ", ".join(_USED_BY[rule, family] for rule in rules if (rule, family) in _USED_BY)
    return f"{' = '.join(rules)} {family}" + (f" ({users})" if users else "")


def _special(matrix, entries):
    size = np.abs(entries)
    if not size.any():
        return "zeros"
    if entries.size > 1 and (entries == entries[0]).all():
        return f"constant {entries[0]:.4g}"
    if matrix.shape[0] == matrix.shape[1] and np.array_equal(matrix, np.eye(len(matrix))):
        return "identity"
    scale = _orthogonal_scale(matrix)
    if scale is not None:
        return "orthogonal" if abs(scale - 1) < 1e-3 else f"orthogonal x {scale:.4g}"
    if entries.size >= 32 and (size == size[0]).all():
        return "rademacher"
    return None


def _orthogonal_scale(matrix):
    """s where the shorter side of the matrix is s times an orthonormal family; None otherwise."""
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    if len(short) < 2:
        return None
    # One pair of rows decides in nearly all cases that this is no orthogonal matrix: the product is paid by the others.
    square = float(np.mean(np.sum(short**2, axis=1)))
    rounding = 2e-2 * square
    if abs(short[0] @ short[1]) > rounding or abs(short[0] @ short[0] - square) > rounding:
        return None
    gram = short @ short.T
    return math.sqrt(square) if np.abs(gram - square * np.eye(len(short))).max() <= rounding else None


def _fits(entries, family, variance):
    kurtosis = _FAMILIES[family].moments[0]
    error = variance * math.sqrt((kurtosis - 1) / entries.size)
    if abs(np.mean(np.square(entries)) - variance) > LIMIT * error or not _mean_is_zero(entries):
        return False
    return _range_fits(entries, family, variance) and _kurtosis_fits(entries, family)


def _mean_is_zero(entries):
    return abs(entries.mean()) <= LIMIT * math.sqrt(np.mean(entries**2) / entries.size)


def _range_fits(entries, family, variance):
    """No entry beyond the bound, and the largest not improbably small."""
    largest = np.abs(entries).max() / math.sqrt(variance)
    below, bound = _FAMILIES[family].below, _FAMILIES[family].bound
    if largest > bound * (1 + 4e-3):  # what bfloat16 rounds
        return False
    chance = below(min(largest, bound))
    return entries.size * math.log(max(chance, 1e-300)) > math.log(RARE)


def _kurtosis_fits(entries, family):
    if entries.size < 200:  # its error is not Gaussian yet; the range tells more
        return True
    four, six, eight = _FAMILIES[family].moments
    spread = eight - four**2 - 4 * four * (six - four) + 4 * four**2 * (four - 1)
    squares = np.square(entries, dtype=np.float64)
    measured = (squares @ squares) / entries.size / np.mean(squares) ** 2
    return abs(measured - four) <= LIMIT * math.sqrt(spread / entries.size)


@dataclasses.dataclass(frozen=True)
class _Family:
    """A symmetric law of unit variance."""

    moments: tuple  # E w^4, w^6, w^8
    bound: float  # largest |w|
    below: object  # t -> P(|w| <= t)


def _cut_moments():
    """E w^2, w^4, w^6, w^8 of N(0, 1) cut at 2: m[k] = (k - 1) m[k - 2] - 2^(k-1) edge, by parts."""
    edge = 2 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))
    moments = [1.0]
    for k in (2, 4, 6, 8):
        moments.append((k - 1) * moments[-1] - 2 ** (k - 1) * edge)
    return moments[1:]


_SECOND, *_HIGHER = _cut_moments()
_FAMILIES = {
    "uniform": _Family((9 / 5, 27 / 7, 9.0), math.sqrt(3), lambda t: t / math.sqrt(3)),
    "truncated_normal": _Family(
        tuple(m / _SECOND**k for k, m in enumerate(_HIGHER, start=2)),
        2 / math.sqrt(_SECOND),
        lambda t: math.erf(t * math.sqrt(_SECOND / 2)) / math.erf(math.sqrt(2)),
    ),
    "normal": _Family((3.0, 15.0, 105.0), math.inf, lambda t: math.erf(t / math.sqrt(2))),
}


# ---- the frameworks ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Part:
    name: str
    shape: tuple
    law: str
    variance: float  # of an entry


def _fans(shape):
    return math.prod(shape[:-1]), math.prod(shape[:-2]) * shape[-1]


def _torch(shape):
    """kaiming_uniform(a=sqrt(5)) is U[-1/sqrt(fan_in), 1/sqrt(fan_in)]: gain 2 / (1 + 5), times 3 / fan_in."""
    variance = 1 / (3 * _fans(shape)[0])
    parts = [_Part("kernel", shape, _label(["+-1/sqrt(fan_in)"], "uniform"), variance)]
    return parts, "uniform in +-1/sqrt(fan_in)", variance


def _one(law, variance):
    return lambda shape: ([_Part("kernel", shape, law, variance(*_fans(shape)))], "zeros", 0.0)


def _torch_recurrent(biases):
    def law(shape):
        inputs, hidden = shape
        variance, text = 1 / (3 * hidden), "uniform in +-1/sqrt(hidden)"
        parts = [_Part("input", (inputs, 4 * hidden), text, variance)]
        return [*parts, _Part("recurrent", (hidden, 4 * hidden), text, variance)], text, biases * variance

    return law


def _flax_recurrent(shape):
    inputs, hidden = shape
    parts = [_Part("input", (inputs, hidden), _label(["lecun"], "truncated_normal"), 1 / inputs)]
    return [*parts, _Part("recurrent", (hidden, hidden), "orthogonal", 1 / hidden)], "zeros", 0.0


def _keras_recurrent(shape):
    """The recurrent kernel has orthonormal rows: 4 hidden entries of mean square 1 / (4 hidden) each."""
    inputs, hidden = shape
    parts = [_Part("input", (inputs, 4 * hidden), _label(["glorot"], "uniform"), 2 / (inputs + 4 * hidden))]
    parts += [_Part("recurrent", (hidden, 4 * hidden), "orthogonal", 1 / (4 * hidden))]
    return parts, "zeros, ones for the forget gate", 0.0


def _haiku_recurrent(shape):
    inputs, hidden = shape
    both = inputs + hidden
    part = _Part("input and recurrent", (both, 4 * hidden), _label(["0.77/fan_in"], "truncated_normal"), CUT / both)
    return [part], "zeros, and 1 is added in the forget gate", 0.0


_FEED_FORWARD = {
    "flax": _one(_label(["lecun"], "truncated_normal"), lambda fan_in, fan_out: 1 / fan_in),
    "equinox": _torch,
    "pytorch": _torch,
    "keras": _one(_label(["glorot"], "uniform"), lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
    "haiku": _one(_label(["0.77/fan_in"], "truncated_normal"), lambda fan_in, fan_out: CUT / fan_in),
}
_RECURRENT = {
    "flax": _flax_recurrent,
    "equinox": _torch_recurrent(1),
    "pytorch": _torch_recurrent(2),
    "keras": _keras_recurrent,
    "haiku": _haiku_recurrent,
}
_SOURCES = {
    "flax": "flax.linen.Dense, Conv, LSTMCell and their flax.nnx twins: lecun_normal of jax.nn.initializers, "
    "cut at two deviations and scaled to variance 1 / fan_in; recurrent orthogonal, one matrix for each gate",
    "equinox": "equinox.nn.Linear, Conv, LSTMCell: lim = 1 / sqrt(fan_in), 1 / sqrt(hidden_size) in a cell",
    "pytorch": "torch.nn.Linear, Conv2d: kaiming_uniform_(a=sqrt(5)); LSTM: U(-sqrt(k), sqrt(k)), k = 1 / hidden",
    "keras": "keras.layers.Dense, Conv2D, LSTM: glorot_uniform, recurrent orthogonal, unit_forget_bias",
    "haiku": "haiku.Linear, Conv2D, LSTM: TruncatedNormal(1 / sqrt(fan_in)), not rescaled after the cut",
}
