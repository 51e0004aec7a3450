"""PREDICTED: products of random matrices, and the singular values of a deep network's input-output Jacobian.

Source: Ruthotto & Haber, Numerical Methods for Deep Learning, lecture 6 (the experiment on |K_3 K_2 K_1 y|).
Twin: analysis.jacobian. Everything is float64 NumPy.
"""

import numpy as np

from numdl import checks
from numdl.precision import float64
from numdl.records import record


@record
class ProductNorm:
    """The law of |K_L ... K_1 y|^2 in a few numbers. Mean growth is not typical growth: compare mean and typical."""

    mean: np.ndarray  # []  E |z|^2; inf past 1e308, log_of_mean is not
    variance: np.ndarray  # []  Var |z|^2
    log_mean: np.ndarray  # []  E ln |z|^2; nan where no closed form is known
    log_variance: np.ndarray  # []  Var ln |z|^2; nan likewise
    log_of_mean: np.ndarray  # []  ln E |z|^2
    relative_variance: np.ndarray  # []  Var |z|^2 / (E |z|^2)^2

    @property
    def typical(self):
        """exp(E ln |z|^2), the geometric mean: close to the median, far below the mean at large depth / width."""
        return np.exp(self.log_mean)


def product_norm(*, width, depth, entry_variance, excess_kurtosis=None, orthogonal=False, y=None):
    """PREDICTED law of |K_L ... K_1 y|^2 for independent width x width matrices K with mean-zero entries; exact.

        iid entries:   E|z|^2 = (n s^2)^L |y|^2,   s^2 = entry_variance, n = width
                       (A, P) <- n s^4 [[n + 2, k], [3, k]] (A, P),  A = E|z|^4, P = E sum z_i^4, k = excess_kurtosis
        Gaussian:      ln |z|^2 = ln |y|^2 + sum of L independent ln(s^2 chi^2_n)
        orthogonal:    K = sqrt(n) s Q with Q Haar: |z|^2 = (n s^2)^L |y|^2 without any spread

    Parameters
    ----------
    width, depth : int              n and L; depth may be an array of ints, every field then has its shape
    entry_variance : scalar         Var(K_ij)
    excess_kurtosis : scalar        E K_ij^4 / s^4 - 3 >= -2: Gaussian 0, uniform -1.2, Rademacher -2 (iid entries only)
    orthogonal : bool               K is a scaled Haar matrix; its entries are not independent
    y : (n,) array or None          a fixed input; None: y ~ N(0, I)

    Raises
    ------
    ValueError                      width or depth < 1, a negative variance, excess_kurtosis < -2 or given with orthogonal
    Source: second moments of a quadratic form in iid entries; Hanin & Nica 2020, arXiv:1812.05994, for the logarithm.
    Twin: analysis.jacobian.product_norm
    """
    n = checks.whole("width", width)
    depths = np.asarray([checks.whole("depth", int(one)) for one in np.ravel(_whole_array("depth", depth))])
    checks.variance("entry_variance", checks.concrete("entry_variance", entry_variance), shape=())
    if orthogonal == (excess_kurtosis is not None):
        raise ValueError(f"excess_kurtosis must be given for independent entries and only then; got {excess_kurtosis!r}")
    if not orthogonal:
        checks.finite("excess_kurtosis", excess_kurtosis, least=-2.0, shape=())
    if y is not None:
        checks.shape("y", checks.finite("y", y), (n,))
    start = _input_moments(n, y)
    fields = _orthogonal(n, depths, start) if orthogonal else _independent(n, depths, excess_kurtosis, start)
    return _assemble(n * float(entry_variance), depths, np.shape(depth), *start, *fields)


@float64
def _input_moments(n, y):
    """E|y|^2, E|y|^4 / (E|y|^2)^2, E sum y_i^4 / (E|y|^2)^2, E ln|y|^2, Var ln|y|^2."""
    if y is None:
        return float(n), 1 + 2 / n, 3 / n, *_log_chi_square(n)
    square = np.asarray(y, dtype=float) ** 2
    norm = square.sum()
    if norm == 0:
        return 0.0, 1.0, 1.0, -np.inf, 0.0
    return norm, 1.0, (square**2).sum() / norm**2, np.log(norm), 0.0


def _independent(n, depths, kurtosis, start):
    """Relative fourth moment by powers of the 2x2 recursion, and the logarithm's two moments (Gaussian entries)."""
    step = np.array([[1 + 2 / n, kurtosis / n], [3 / n, kurtosis / n]])
    with np.errstate(over="ignore"):
        fourth = np.array([(np.linalg.matrix_power(step, depth) @ start[1:3])[0] for depth in depths])
    if kurtosis != 0:
        return fourth, np.full(depths.shape, np.nan), np.full(depths.shape, np.nan)
    mean, variance = _log_chi_square(n)
    return fourth, depths * (mean - np.log(n)), depths * variance


def _orthogonal(n, depths, start):
    return np.full(depths.shape, start[1]), np.zeros(depths.shape), np.zeros(depths.shape)


def _assemble(gain, depths, shape, norm, _, __, log_norm, log_spread, fourth, log_drift, log_variance):
    """`gain` is n s^2, the mean growth a layer; `log_drift` is the typical growth relative to it."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        log_gain = depths * np.log(gain)
        log_of_mean = log_gain + np.log(norm)
        mean = norm * np.power(float(gain), depths)
        relative = np.maximum(fourth - 1, 0.0)
        fields = (mean, relative * mean**2, log_norm + log_gain + log_drift, log_spread + log_variance, log_of_mean)
    return ProductNorm(*(np.reshape(field, shape)[()] for field in (*fields, relative)))


def _log_chi_square(n):
    """Mean and variance of ln chi^2_n: psi(n/2) + ln 2 and psi_1(n/2)."""
    from scipy.special import polygamma

    return float(polygamma(0, n / 2)) + np.log(2), float(polygamma(1, n / 2))


def _whole_array(name, value):
    array = np.asarray(value)
    if array.dtype.kind not in "iu" or array.size == 0:
        raise TypeError(f"{name} must be an integer >= 1 or an array of such; got {value!r}")
    return array
