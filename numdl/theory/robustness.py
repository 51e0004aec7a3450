"""PREDICTED: how far a network's outputs can move, and a radius inside which no attack changes its class.

    |f(x) - f(x')| <= L |x - x'|,    L = product of the layers' spectral norms and of the activations' steepest slopes

>>> bound = lipschitz([2.0, 3.0], slopes=[1.0])
>>> float(bound), certified_radius([6.0, -1.0], lipschitz=bound).round(3)
(6.0, array([0.707, 0.   ]))

Twin: analysis.robustness. Everything is float64 NumPy.
"""

import math

import numpy as np
from jaxtyping import ArrayLike, ScalarLike

from numdl import checks


def lipschitz(spectral_norms: ArrayLike, *, slopes: ArrayLike) -> np.float64:
    """PREDICTED upper bound of the Lipschitz constant of a chain of affine maps with activations between.

        L = prod_l |W_l|_2 * prod_l max |f_l'|

    Nothing is said of how the layers turn into each other, so that it is far above in deep networks.

    Parameters
    ----------
    spectral_norms : array [L + 1]      largest singular value of each map, >= 0; the readout's is the last
    slopes : array [L]          max |f'| of the activation after each map but the last, >= 0: 1 for relu and tanh
    Returns
    -------
    float64                     inf where the product leaves the range of numbers
    Raises
    ------
    ValueError, TypeError       negative or not finite; not one slope fewer than norms
    Source: Szegedy et al. 2014, arXiv:1312.6199, section 4.3.
    Twin: analysis.robustness.lipschitz.    Experiment: f15.
    """
    norms = _numbers("spectral_norms", spectral_norms)
    steep = _numbers("slopes", slopes, empty=True)
    if steep.size != norms.size - 1:
        raise checks.BadValue(
            f"slopes must have one entry between each two of {norms.size} maps, {norms.size - 1}; got {steep.size}"
        )
    return _product(np.concatenate([norms, steep]))


def certified_radius(margins: ArrayLike, *, lipschitz: ScalarLike) -> np.ndarray:
    """PREDICTED Euclidean radius around each example inside of which the class cannot change.

        radius = max(margin, 0) / (sqrt(2) L),    margin = outputs[class] - max of the other outputs

    The difference of two outputs is sqrt(2) L-Lipschitz where the outputs are L-Lipschitz.

    Parameters
    ----------
    margins : array [...]       of each example; below 0 where it is already wrong
    lipschitz : scalar          L >= 0 of the map from inputs to outputs, an upper bound
    Returns
    -------
    array [...]                 float64; inf where L = 0 and the margin is above 0
    Raises
    ------
    ValueError, TypeError       margins that are not finite, a negative constant
    Source: Tsuzuku, Sato & Sugiyama 2018, arXiv:1802.04034, proposition 1.
    Twin: analysis.robustness.boundary.    Experiment: f15.
    """
    margins = np.asarray(checks.finite("margins", checks.array("margins", margins)), np.float64)
    bound = checks.number("lipschitz", lipschitz, least=0.0)
    safe = np.maximum(margins, 0.0)
    return safe / (np.sqrt(2.0) * bound) if bound > 0 else np.where(safe > 0, np.inf, 0.0)


def _numbers(name, values, empty=False):
    values = checks.array(name, values, ndim=1, empty=empty)
    return np.asarray(checks.variance(name, values), np.float64)


def _product(factors):
    """Exponents apart from mantissas: the product may leave the range on its way and come back."""
    mantissa, exponent = 1.0, 0
    for factor in factors:
        mantissa, more = math.frexp(mantissa * factor)
        exponent += more
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(np.float64(mantissa), exponent)
