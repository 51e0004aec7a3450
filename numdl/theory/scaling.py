"""PREDICTED: how activations, gradients and their changes grow with width, depth and head width: exponents.

The network of width n is W_1 (fixed -> n), W_2 (n -> n), W_3 (n -> fixed). W_l has entries of deviation n^b_l; a step
of gradient descent with rate n^c_l, or of Adam, whose entries are n^c_l themselves, changes it. Then, to first order in
the rate, and with gradients aligned with what they multiply (they are sums over few examples):

    own change of layer l, RMS of dW_l h_{l-1}     sgd:  c_1 + b_3,  c_2 + b_3 + 1,  c_3 + 1
                                                   adam: c_1,        c_2 + 1,        c_3 + 1
    total change      t_1 = own_1,   t_2 = max(own_2, b_2 + 1/2 + t_1),   t_3 = max(own_3, b_3 + 1 + t_2)

W_3 is aligned with the change of h_2 (dh_2 is made of W_3), hence 1 and not 1/2 in the last line: a network whose
layers all change by n^0 may still have an output that changes by n^(1/2). All exponents are exact in float64 NumPy.
The widths that are measured are those of analysis.scaling.
"""

import re
from fractions import Fraction

import numpy as np
from jaxtyping import ArrayLike, Float64

from numdl import checks
from numdl.records import record, static

_HALF = Fraction(1, 2)
_DEVIATIONS = {"standard": (0, -_HALF, -_HALF), "mup": (0, -_HALF, -1)}
# c of the weight that is contracted: what a rate for w, in W = sigma w, is to W.
_RATES = {
    "standard": {"sgd": (0, 0, 0), "adam": (0, 0, 0)},
    "ntk": {"sgd": (0, -1, -1), "adam": (0, -_HALF, -_HALF)},
    "standard with rate per layer": {"sgd": (_HALF, -_HALF, -1), "adam": (0, -1, -1)},
    "mup": {"sgd": (1, 0, -1), "adam": (0, -1, -1)},
}
_RATES["spectral"] = _RATES["mup"]  # |W|_2 and |dW|_2 of sqrt(fan_out / fan_in) are the same six numbers
PARAMETRIZATIONS = tuple(_RATES)
OPTIMIZERS = ("sgd", "adam")
_SPELLINGS = {
    "muP": "mup",
    "NTK": "ntk",
    "SGD": "sgd",
    "Adam": "adam",
    "standard rate per layer": "standard with rate per layer",
}


@record
class Exponents:
    """Powers of the width n; one entry per layer: input, hidden, output."""

    parametrization: str = static()
    optimizer: str = static()
    deviation: np.ndarray  # [3] b: of the entries of W_l
    rate: np.ndarray  # [3] c: of the learning rate of W_l
    initial: np.ndarray  # [3] of each layer's output at the start; the last is the network's
    gradient: np.ndarray  # [3] of the entries of the gradient of W_l at the start
    gradient_norm: np.ndarray  # [3] of its Frobenius norm
    own: np.ndarray  # [3] of dW_l h_{l-1} after a step
    total: np.ndarray  # [3] of the change of the layer's output after a step of all layers
    output: np.float64  # of the change of the network's output: total[2]


@record
class DepthExponents:
    """Powers of the depth L of x + L^-a f(x), f of unit size."""

    optimizer: str = static()
    branch: np.float64  # -a: of the factor of each branch
    rate: np.float64  # c: of the learning rate of the branches' weights
    stream: np.float64  # of the stream at the start
    gradient: np.float64  # of the entries of the gradient of a branch's weight
    own: np.float64  # of one block's change after a step, over the stream
    total: np.float64  # of the change of the stream, over the stream


@record
class ScoreExponents:
    """Powers of the head width k of the scores k^-p query . key."""

    initial: np.float64  # of a score at the start
    change: np.float64  # of its change after a step of Adam with rates that keep queries and keys of unit size
    deviation: np.float64  # by which the query weights' deviation must be multiplied to keep scores, and their change
    rate: np.float64  # and by which their Adam rate


def exponents(*, parametrization: str, optimizer: str) -> Exponents:
    """PREDICTED powers of the width: what a parametrization does to each layer and to the output.

        W_l ~ n^b_l,   rate ~ n^c_l;   own, total and output by the rules of the module

        parametrization                 b             c of sgd         c of adam
        standard                        0 -1/2 -1/2   0  0    0        0  0    0
        ntk                             0 -1/2 -1/2   0 -1   -1        0 -1/2 -1/2
        standard with rate per layer    0 -1/2 -1/2   1/2 -1/2 -1      0 -1   -1
        mup, spectral                   0 -1/2 -1     1  0   -1        0 -1   -1

    Parameters
    ----------
    parametrization : str       one of PARAMETRIZATIONS; muP and underscores are understood
    optimizer : str             sgd or adam
    Returns
    -------
    Exponents                   own [3], total [3], output, deviation, rate, initial, gradient, gradient_norm
    Raises
    ------
    ValueError, TypeError       no such parametrization or optimizer
    Source: Yang & Hu 2021, arXiv:2011.14522; Yang et al. 2022, arXiv:2203.03466; Everett et al. 2024, arXiv:2407.05872;
    Yang, Simon & Bernstein 2023, arXiv:2310.17813.    Twin: analysis.scaling.coordinate_check.    Experiments: g9, g11.
    """
    parametrization = _spelled("parametrization", parametrization, PARAMETRIZATIONS)
    optimizer = _spelled("optimizer", optimizer, OPTIMIZERS)
    b = _DEVIATIONS["mup" if parametrization in ("mup", "spectral") else "standard"]
    c = _RATES[parametrization][optimizer]
    gradient = (b[2] + b[1] + _HALF, b[2], 0)
    initial = (b[0], b[0] + b[1] + _HALF, b[0] + b[1] + b[2] + 1)
    norm = [size + count for size, count in zip(gradient, (_HALF, 1, _HALF))]
    own, total = _changes(b, c, gradient if optimizer == "sgd" else (0, 0, 0))
    numbers = map(_floats, (b, c, initial, gradient, norm, own, total))
    return Exponents(parametrization, optimizer, *numbers, np.float64(total[2]))


def depth_exponents(*, branch: ArrayLike, optimizer: str, rate: ArrayLike | None = None) -> DepthExponents:
    """PREDICTED powers of the depth L for a stack of x + L^-a f(x): its stream, gradients and change after a step.

        stream   s = max(0, 1/2 - a)           L independent branches
        gradient g = -a - s                    of a branch's weight, the stream normalized before branches and readout
        own        = c - a - s  (adam),   c + g - a - s  (sgd);      total = own + 1,  the L changes being aligned

    a = 1/2, c = -1/2 for adam is depth-muP, a = 1, c = 0 CompleteP; both have total 0.

    Parameters
    ----------
    branch : scalar             a >= 0
    optimizer : str             sgd or adam
    rate : scalar or None       c; None: the c at which total is 0
    Returns
    -------
    DepthExponents              branch (-a), rate, stream, gradient, own, total
    Raises
    ------
    ValueError, TypeError       a that is negative, numbers that are not finite, no such optimizer
    Source: Yang et al. 2023, arXiv:2310.02244; Bordelon et al. 2023, arXiv:2309.16620; Dey et al. 2025,
    arXiv:2505.01618.    Experiment: g12.
    """
    a = checks.number("branch", branch, least=0.0)
    optimizer = _spelled("optimizer", optimizer, OPTIMIZERS)
    stream = max(0.0, 0.5 - a)
    gradient = -a - stream
    without = (gradient if optimizer == "sgd" else 0.0) - a - stream
    if rate is None:
        rate = -1.0 - without
    c = checks.number("rate", rate)
    numbers = (-a, c, stream, gradient, without + c, without + c + 1)
    return DepthExponents(optimizer, *map(np.float64, numbers))


def score_exponents(*, power: ArrayLike) -> ScoreExponents:
    """PREDICTED powers of the head width k for attention scores k^-p q . k.

        initial 1/2 - p,   change 1 - p;     p = 1/2: 0 and 1/2,    p = 1: -1/2 and 0

    Query and key are independent at the start and aligned after a step. At p = 1/2 the query weights' deviation and
    Adam rate times k^(-1/2) give what p = 1 gives.

    Parameters
    ----------
    power : scalar              p: 1/2 for 1/sqrt(k), 1 for 1/k
    Returns
    -------
    ScoreExponents              initial, change, and the deviation and rate that replace p = 1
    Raises
    ------
    ValueError, TypeError       power is not a finite scalar
    Source: Yang et al. 2022, arXiv:2203.03466, definition 4.1.    Experiment: g12.
    """
    p = checks.number("power", power)
    return ScoreExponents(*map(np.float64, (0.5 - p, 1 - p, p - 1, p - 1)))


def _changes(b, c, entries):
    """(own, total) of the module's rules; a step's entries are the rate times n^entries."""
    own = [rate + size + summed for rate, size, summed in zip(c, entries, (0, 1, 1))]
    hidden = max(own[1], b[1] + _HALF + own[0])
    return own, (own[0], hidden, max(own[2], b[2] + 1 + hidden))


def _spelled(name, value, allowed):
    """The one of these names that is meant: 'muP', 'standard_with_rate_per_layer'."""
    plain = re.sub(r"[\W_]+", " ", value).strip() if isinstance(value, str) else value
    plain = _SPELLINGS.get(plain, plain) if isinstance(plain, str) else plain
    return plain if isinstance(plain, str) and plain in allowed else checks.one_of(name, value, allowed)


def _floats(numbers) -> Float64[np.ndarray, " layers"]:
    return np.array([float(number) for number in numbers])
