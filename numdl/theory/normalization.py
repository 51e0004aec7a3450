"""PREDICTED: how fast gradients grow in batch-normalized networks, and where their examples end up.

Infinite width, Gaussian weights, eps = 0, gain 1, bias 0. A unit's pre-activations on the batch are then a Gaussian
vector of covariance s**2 ((1 - k) I + k 1 1'); centred and divided by its length it is u, uniform on the unit sphere
of the B - 1 directions that sum to zero, and the normalized values are sqrt(B) u. Everything follows from this.
Twin: analysis.normalization. Everything is float64 NumPy.
"""

import numpy as np

from numdl import checks
from numdl.activations import Activation
from numdl.precision import float64


def gradient_growth(*, activation: Activation, batch_size: int | None = None) -> np.float64:
    """PREDICTED gradient explosion of batch normalization: the factor of the mean squared gradient, per layer back.

        batch_size None:   g = E f'(z)**2 / Var f(z) >= 1, equal for a linear f only;   relu: pi / (pi - 1) = 1.467
        batch_size B:      g = B T / ((m - k) (B - 1) (B - 3)),   T = m (B - 3 + 2/B) + (1 - 1/B) (k + p)
                           m = E f(z)**2, k = E f(u) f(v), p = E f'(u) f'(v), corr(u, v) = -1 / (B - 1)
                           identity: (B - 2) / (B - 3)

    Derivation of batch norm's growth: a step back multiplies by sqrt(B)/r (G - u u') diag(f'), where G = I - 1 1'/B and
    r**2 is (m - k) chi**2 with B - 1 degrees of freedom, of which E 1/r**2 = 1 / ((m - k) (B - 3)). The covariance of
    the gradients is a multiple of G; T is the mean trace of diag(f') G diag(f') (G - u u').

    Parameters
    ----------
    activation : Activation     f
    batch_size : int or None    B >= 4, for activations f(x) = |x| f(sign x) only; None: the limit of large batches
    Raises
    ------
    ValueError, TypeError       B < 4, or a B where f is not homogeneous; E 1/r**2 is infinite at B <= 3; a constant f
    Source: Yang et al. 2019, arXiv:1902.08129; finite B as derived above.
    Twin: analysis.normalization.gradient_growth.    Experiment: b10.
    """
    checks.instance("activation", activation, Activation, hint="such as activations.relu")
    if batch_size is None:
        return _limit(activation)
    b = _batch_size(activation, batch_size)
    m, k, p = _moments(activation, b)
    trace = m * (b - 3 + 2 / b) + (1 - 1 / b) * (k + p)
    return np.float64(b * trace / ((m - k) * (b - 1) * (b - 3)))


def correlation(*, activation: Activation, batch_size: int | None = None) -> np.float64:
    """PREDICTED correlation of two examples' pre-activations, deep in the network: (mean product) / (mean square).

        batch_size None:   (E f(z))**2 / E f(z)**2;   relu: 1 / pi
        batch_size B:      E f(u) f(v) / E f(z)**2,   corr(u, v) = -1 / (B - 1)   (homogeneous f only)

    It is reached after one layer from a batch that is itself symmetric under rotations of the centred examples.

    Parameters
    ----------
    activation : Activation     f
    batch_size : int or None    B >= 4; None: the limit of large batches
    Raises
    ------
    ValueError, TypeError       B < 4, or a B where f is not homogeneous
    Source: Yang et al. 2019, arXiv:1902.08129.    Twin: analysis.normalization.correlation.    Experiment: b10.
    """
    checks.instance("activation", activation, Activation, hint="such as activations.relu")
    if batch_size is None:
        mean, square, _ = _one_point(activation)
        return np.float64(mean**2 / square)
    m, k, _ = _moments(activation, _batch_size(activation, batch_size))
    return np.float64(k / m)


def _limit(activation):
    mean, square, slope_square = _one_point(activation)
    variance = square - mean**2
    if not variance > 1e-14 * square:
        raise ValueError(f"activation must not be constant; got {activation!r}")
    return np.float64(slope_square / variance)


@float64
def _one_point(activation):
    return activation.mean(1.0), activation.mean_square(1.0), activation.slope_mean_square(1.0)


@float64
def _moments(activation, b):
    """m, k, p of the docstring."""
    c = -1 / (b - 1)
    return (
        activation.mean_square(1.0),
        activation.mean_product(1.0, 1.0, c),
        activation.slope_mean_product(1.0, 1.0, c),
    )


def _batch_size(activation, batch_size):
    b = checks.whole("batch_size", batch_size, least=4)
    if not _homogeneous(activation):
        raise ValueError(
            "batch_size must be None unless activation(x) is |x| activation(sign x), as relu's is; "
            f"got {batch_size} with {activation!r}"
        )
    return b


@float64
def _homogeneous(activation):
    x = np.array([1e-3, 0.1, 0.7, 2.0, 30.0])
    pairs = [(np.asarray(activation(sign * x)), x * np.asarray(activation(np.float64(sign)))) for sign in (1.0, -1.0)]
    return all(np.allclose(one, other, rtol=1e-12, atol=0) for one, other in pairs)
