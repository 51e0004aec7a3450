"""PREDICTED: how lengths and correlations of pre-activations travel through a random, infinitely wide, dense network.

    length map        V(q) = weight_variance E[f(sqrt(q) z)^2] + bias_variance
    correlation map   C(c) = (weight_variance E[f(u) f(v)] + bias_variance) / q,   u, v ~ N(0, q), correlation c
    chi_1             weight_variance E[f'(sqrt(q) z)^2], the slope C'(1) and the growth of squared gradients a layer

A deep network remembers its input over about depth_scale_c layers. Source: Poole et al. 2016, arXiv:1606.05340;
Schoenholz et al. 2017, arXiv:1611.01232. Twin: analysis.propagation. Everything is float64 NumPy.

    >>> from numdl import activations
    >>> from numdl.theory import propagation
    >>> physics = {"activation": activations.tanh, "weight_variance": 2.25, "bias_variance": 0.05}
    >>> propagation.lengths(1.0, depth=3, **physics).round(2).tolist()
    [2.3, 1.28, 1.04]
    >>> point = propagation.fixed_point(**physics)
    >>> point.phase, float(point.depth_scale_c.round(1))
    ('chaotic', 15.1)
    >>> float(propagation.critical_weight_variance(activation=activations.tanh, bias_variance=0.05).round(3))
    1.761
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import ArrayLike, Float64

from numdl import checks
from numdl.activations import Activation
from numdl.precision import float64
from numdl.records import record, static
from numdl.theory import _maps, _roots


@record
class FixedPoint:
    """Where lengths and correlations settle, how fast, and in which phase the network is."""

    q: np.ndarray  # []  length, V(q) = q; 0 where signals die, inf where lengths grow without bound, or beyond 1e16
    c: np.ndarray  # []  correlation, C(c) = c; nan where q is 0 or inf
    chi_1: np.ndarray  # []  C'(1); inf where the activation jumps
    chi_c: np.ndarray  # []  C'(c); nan where c is
    slope_q: np.ndarray  # []  V'(q); below 0 lengths oscillate
    depth_scale_q: np.ndarray  # []  layers, -1 / ln |V'(q)|; inf where |V'| >= 1
    depth_scale_c: np.ndarray  # []  layers, -1 / ln chi_c; inf where chi_c >= 1
    phase: str = static()  # ordered (chi_1 < 1), critical, chaotic (chi_1 > 1)

    @property
    def stable(self):
        """Whether lengths near q return to it."""
        return bool(abs(self.slope_q) < 1)


@record
class PhaseDiagram:
    """Fixed points over a grid of weight and bias variances."""

    weight_variances: np.ndarray  # [W]
    bias_variances: np.ndarray  # [B]
    q: np.ndarray  # [W, B]  the length reached from q = 1
    chi_1: np.ndarray  # [W, B]
    slope_q: np.ndarray  # [W, B]
    depth_scale_q: np.ndarray  # [W, B]  layers
    depth_scale_gradient: np.ndarray  # [W, B]  layers, 1 / |ln chi_1|: squared gradients change e-fold
    phase: np.ndarray  # [W, B]  -1 ordered, 0 critical, 1 chaotic


@float64
def length_map(
    q: ArrayLike, *, activation: Activation, weight_variance: ArrayLike, bias_variance: ArrayLike
) -> Float64[np.ndarray, "..."] | np.float64:
    """PREDICTED length of the next layer, the length map (variance map) V, one step of forward propagation.

        V(q) = weight_variance * E[activation(sqrt(q) z)**2] + bias_variance,   z ~ N(0, 1)

    Parameters
    ----------
    q : scalar or array         length of this layer, >= 0
    activation : Activation     see numdl.activations
    weight_variance : scalar    fan_in * Var(W_ij), dimensionless
    bias_variance : scalar      Var(b_i)
    Returns
    -------
    V(q), shaped like q, float64
    Raises
    ------
    ValueError, TypeError       a negative length or variance, one that is not finite, no Activation
    Source: Poole et al. 2016, arXiv:1606.05340.
    Twin: analysis.propagation.lengths.    Experiments: a2, b3.
    """
    weight_variance, bias_variance = _check(activation, weight_variance, bias_variance)
    q = checks.variance("q", checks.concrete("q", q))
    return _maps.next_length(_roots.as_float(q), activation, weight_variance, bias_variance)


def lengths(
    x_variance: ArrayLike, *, depth: int, activation: Activation, weight_variance: ArrayLike, bias_variance: ArrayLike
) -> Float64[np.ndarray, "layers"]:
    """PREDICTED mean square of the pre-activations, layer by layer, at infinite width: forward propagation.

        q[0] = weight_variance * x_variance + bias_variance
        q[l] = weight_variance * E[activation(sqrt(q[l-1]) z)**2] + bias_variance,   z ~ N(0, 1)

    Parameters
    ----------
    x_variance : scalar         mean of x**2 over the input's coordinates
    depth : int                 number of layers L >= 1
    activation : Activation     see numdl.activations
    weight_variance : scalar    fan_in * Var(W_ij), dimensionless
    bias_variance : scalar      Var(b_i)
    Returns
    -------
    q : array, shape (L,), float64
    Raises
    ------
    ValueError, TypeError       depth < 1, a variance that is negative or not finite, no Activation
    Source: Poole et al. 2016, arXiv:1606.05340.
    Twin: analysis.propagation.lengths.    Experiments: a2, b3.
    """
    weight_variance, bias_variance = _check(activation, weight_variance, bias_variance)
    x_variance = checks.number("x_variance", x_variance, least=0.0)
    return _maps.lengths(x_variance, checks.whole("depth", depth), activation, weight_variance, bias_variance)


def correlations(
    c: ArrayLike | Sequence[float],
    *,
    depth: int,
    q: ArrayLike | Sequence[float],
    activation: Activation,
    weight_variance: ArrayLike,
    bias_variance: ArrayLike,
    keep_probability: ArrayLike = 1.0,
) -> Float64[np.ndarray, "*c layers"]:
    """PREDICTED correlation of the pre-activations of two inputs (cosine of the angle between inputs), layer by layer.

        c[l] = (weight_variance * E[f(u) f(v)] + bias_variance) / V(q[l-1]),  u, v ~ N(0, q[l-1]), correlation c[l-1]

    The correlation map at infinite width. Equal inputs stay equal: 1 stays 1 exactly, and -1 stays -1 where f is odd
    and there are no biases. nan where a length is 0 or infinite. V(q) has weight_variance / keep_probability.

    Parameters
    ----------
    c : scalar or array         correlation in the layer before the first of the `depth` layers, in [-1, 1]
    depth : int                 number of layers L >= 1
    q : scalar or (L + 1,)      the length beside c, which then moves, q[l] = V(q[l-1]), unless it is a fixed point; or
                                lengths layer by layer, q[0] beside c, as they are given (measured, for example)
    activation : Activation     f
    weight_variance, bias_variance : scalar     fan_in * Var(W_ij), Var(b_i)
    keep_probability : scalar   dropout on f, another mask for each input: equal ones part; in (0, 1]
    Returns
    -------
    c : array, shape c.shape + (L,), float64
    Raises
    ------
    ValueError, TypeError       c outside [-1, 1], q or keep_probability not above 0, depth < 1, a bad variance
    Source: Poole et al. 2016, arXiv:1606.05340; Schoenholz et al. 2017, arXiv:1611.01232.
    Twin: analysis.propagation.correlations.    Experiments: a3, a4.
    """
    weight_variance, bias_variance = _check(activation, weight_variance, bias_variance)
    c = checks.finite("c", checks.concrete("c", c), least=-1.0, most=1.0)
    depth = checks.whole("depth", depth)
    q = checks.positive("q", checks.concrete("q", q))
    if np.ndim(q):
        checks.shape("q", q, (depth + 1,))
    keep_probability = checks.number("keep_probability", keep_probability, above=0.0, most=1.0)
    return _maps.correlations(c, depth, q, activation, weight_variance, bias_variance, keep_probability)


def fixed_point(*, activation: Activation, weight_variance: ArrayLike, bias_variance: ArrayLike) -> FixedPoint:
    """PREDICTED fixed point that lengths reach from q = 1, with correlation, slopes, depth scales and phase.

        V(q) = q,  C(c) = c,    chi_1 = weight_variance * E[f'(sqrt(q) z)^2],    depth scale xi = -1 / ln slope

    xi_q and xi_c (the correlation length in depth) are `depth_scale_q` and `depth_scale_c`: the layers after which
    lengths and correlations have settled. chi_1 = 1 is the order-to-chaos transition, or edge of chaos. The root is
    bracketed on a grid and solved for, so that it is exact near criticality too, where an iteration would stop early.
    The correlation is the one that two different inputs reach.

    Parameters
    ----------
    activation : Activation     f
    weight_variance, bias_variance : scalar     fan_in * Var(W_ij), Var(b_i)
    Returns
    -------
    FixedPoint
    Raises
    ------
    ValueError, TypeError       a variance that is negative or not finite, no Activation
    Source: Schoenholz et al. 2017, arXiv:1611.01232, eqs. (3) to (9).
    Twin: analysis.propagation.depth_scale (xi_c), analysis.gradients.growth (chi_1).
    Experiments: a3, b1, b2.
    """
    weight_variance, bias_variance = _check(activation, weight_variance, bias_variance)
    q = _roots.reached(activation, weight_variance, bias_variance)
    return _fixed_point(q, activation, weight_variance, bias_variance)


def fixed_points(
    *, activation: Activation, weight_variance: ArrayLike, bias_variance: ArrayLike
) -> tuple[FixedPoint, ...]:
    """PREDICTED fixed points of the length map from q = 0 to q = 1e16, in order, stable or not.

    Where every length is a fixed point (relu at 2 and 0) the one at q = 1 represents all.

    Parameters
    ----------
    activation : Activation     see numdl.activations
    weight_variance, bias_variance : scalar     fan_in * Var(W_ij), Var(b_i)
    Returns
    -------
    tuple of FixedPoint         each with its depth scales xi_q and xi_c
    Raises
    ------
    ValueError, TypeError       a variance that is negative or not finite, no Activation
    Source: Schoenholz et al. 2017, arXiv:1611.01232.
    Twin: analysis.propagation.depth_scale.    Experiments: a3, b2.
    """
    weight_variance, bias_variance = _check(activation, weight_variance, bias_variance)
    found = _roots.all_roots(activation, weight_variance, bias_variance)
    return tuple(_fixed_point(q, activation, weight_variance, bias_variance) for q in found)


def critical_weight_variance(*, activation: Activation, bias_variance: ArrayLike) -> np.float64:
    """PREDICTED critical initialization: the weight variance at which chi_1 = 1, on the edge of chaos.

        chi_1 = w S(q) = 1 and V(q) = q  give  q - M(q) / S(q) = bias_variance and w = 1 / S(q),
        M(q) = E f(sqrt(q) z)^2,  S(q) = E f'(sqrt(q) z)^2

    At the fixed point reached from q = 1. relu with bias_variance > 0 has none: chi_1 = 1 asks for weight variance 2,
    where lengths grow without bound.

    Parameters
    ----------
    activation : Activation     f
    bias_variance : scalar      Var(b_i)
    Returns
    -------
    w = fan_in * Var(W_ij); nan where there is none
    Raises
    ------
    ValueError, TypeError       a variance that is negative or not finite, no Activation
    Source: Poole et al. 2016, arXiv:1606.05340.
    Twin: analysis.gradients.growth.    Experiments: b1, b2.
    """
    checks.instance("activation", activation, Activation, hint="for example numdl.activations.tanh")
    bias_variance = checks.number("bias_variance", bias_variance, least=0.0)
    for weight_variance in _roots.critical_candidates(activation, float(bias_variance)):
        q = _roots.reached(activation, weight_variance, bias_variance)
        if np.isfinite(q) and abs(_roots.scaled(weight_variance, _roots.moments(q, activation)[1]) - 1) < 1e-7:
            return np.float64(weight_variance)
    return np.float64(np.nan)


def phase_diagram(
    *,
    activation: Activation,
    weight_variances: ArrayLike | Sequence[float],
    bias_variances: ArrayLike | Sequence[float],
) -> PhaseDiagram:
    """PREDICTED fixed points, chi_1 and phase over a grid of variances: where the edge of chaos lies.

    Every moment depends on q alone and is analytic in ln q (|arg q| < pi/2), so one table of it, interpolated to 1e-10,
    serves the whole grid in one compiled call.

    Parameters
    ----------
    activation : Activation     see numdl.activations
    weight_variances : array [W]    fan_in * Var(W_ij)
    bias_variances : array [B]      Var(b_i)
    Returns
    -------
    PhaseDiagram                fields [W, B]
    Raises
    ------
    ValueError, TypeError       a variance that is negative or not finite, not one list of numbers, no Activation
    Source: Poole et al. 2016, figure 1; Schoenholz et al. 2017, figure 2.
    Twin: analysis.gradients.growth.    Experiments: b1, b2.
    """
    checks.instance("activation", activation, Activation, hint="for example numdl.activations.tanh")
    weight_variances, bias_variances = (
        _variances(*pair) for pair in (("weight_variances", weight_variances), ("bias_variances", bias_variances))
    )
    q, chi_1, slope = _roots.grid(
        _roots.table(activation), _roots.at_zero(activation), weight_variances, bias_variances
    )
    with np.errstate(divide="ignore"):
        scale_gradient = 1 / np.abs(np.log(chi_1))
    return PhaseDiagram(
        weight_variances=weight_variances,
        bias_variances=bias_variances,
        q=q,
        chi_1=chi_1,
        slope_q=slope,
        depth_scale_q=_depth_scale(np.abs(slope)),
        depth_scale_gradient=scale_gradient,
        phase=np.where(np.abs(chi_1 - 1) <= _roots.CRITICAL, 0, np.sign(chi_1 - 1)).astype(np.int8),
    )


# ---- fixed points, assembled ---------------------------------------------------------------------------------------


def _fixed_point(q, activation, weight_variance, bias_variance):
    # At q = inf the slopes are limits, taken where the search ends.
    within = np.float64(min(q, _roots.LENGTHS[-1]))
    _, slope_square, growth = _roots.moments(within, activation)
    chi_1 = _roots.scaled(weight_variance, slope_square)
    slope = weight_variance * growth / within if q > 0 else _roots.slope_at_zero(activation, weight_variance)
    c, chi_c = np.float64(np.nan), np.float64(np.nan)
    if 0 < q < math.inf:
        c, chi_c = _roots.fixed_correlation(q, chi_1, activation, weight_variance, bias_variance)
    phase = "critical" if abs(chi_1 - 1) <= _roots.CRITICAL else "ordered" if chi_1 < 1 else "chaotic"
    scale_q, scale_c = _depth_scale(np.abs(slope))[()], _depth_scale(chi_c)[()]
    return FixedPoint(np.float64(q), c, chi_1, chi_c, slope, scale_q, scale_c, phase)


def _depth_scale(slope):
    """-1 / ln slope where slope < 1 (0 at slope 0), inf where it is critical or above; nan stays nan."""
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = -1 / np.log(slope)
    return np.where(slope >= 1 - _roots.CRITICAL, math.inf, np.where(slope == 0, 0.0, scale))


def _check(activation, weight_variance, bias_variance):
    checks.instance("activation", activation, Activation, hint="for example numdl.activations.tanh")
    pairs = ("weight_variance", weight_variance), ("bias_variance", bias_variance)
    return [checks.number(name, value, least=0.0) for name, value in pairs]


def _variances(name, value):
    """One list of variances [n]; a number stands for a list of one."""
    found = np.atleast_1d(checks.array(name, checks.variance(name, checks.concrete(name, value))))
    if found.ndim != 1:
        raise checks.BadValue(f"{name} must be one list of numbers; got an array of shape {found.shape}")
    return found.astype(float)
