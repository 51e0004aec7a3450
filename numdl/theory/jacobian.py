"""PREDICTED: products of random matrices, and the singular values of a deep network's input-output Jacobian.

    J = D_1 W_1 D_2 W_2 ... D_L W_L,    D_l = diag f'(y_l),   y_l ~ N(0, q_l),    W Gaussian or orthogonal

Spectra are those of infinite width, where D and W are free: S-transforms multiply. Lyapunov exponents and product_norm
are exact at every width. Source: Pennington, Schoenholz & Ganguli 2017, arXiv:1711.04735, and 2018, arXiv:1802.09979;
Ruthotto & Haber, Numerical Methods for Deep Learning, lecture 6. All is float64 NumPy.
Twins: analysis.products, analysis.jacobian.

    >>> from numdl.theory import jacobian
    >>> law = jacobian.product_norm(width=100, depth=10, entry_variance=0.01, excess_kurtosis=0.0)
    >>> float(law.mean.round(1)), float(law.typical.round(1))  # typical growth is not mean growth
    (100.0, 89.6)
    >>> float(jacobian.largest_squared(depth=10, weight_variance=1.0, orthogonal=False).round(1))
    28.5
"""

import dataclasses
import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import ArrayLike

from numdl import checks, quadrature
from numdl.activations import Activation
from numdl.precision import float64
from numdl.records import record
from numdl.theory import _roots


@record
class ProductNorm:
    """The law of |K_L ... K_1 y|^2 in a few numbers. Mean growth is not typical growth: compare mean and typical."""

    mean: np.ndarray  # []  E |z|^2; inf past 1e308, log_expectation is not
    variance: np.ndarray  # []  Var |z|^2
    log_mean: np.ndarray  # []  E ln |z|^2, the typical growth; nan where no closed form is known
    log_variance: np.ndarray  # []  Var ln |z|^2; nan likewise
    log_expectation: np.ndarray  # []  ln E |z|^2
    relative_variance: np.ndarray  # []  Var |z|^2 / (E |z|^2)^2

    @property
    def typical(self):
        """exp(E ln |z|^2), the geometric mean: close to the median, far below the mean at large depth / width."""
        return np.exp(self.log_mean)


@record
class SquaredSingularValues:
    """Mean and variance over the spectrum of J J^T, zeros included."""

    mean: np.ndarray  # []  mean of s^2 = tr(J J^T) / n
    variance: np.ndarray  # []  of s^2 from one singular value to another
    relative_variance: np.ndarray  # []  variance / mean^2
    log_expectation: np.ndarray  # []  ln mean, finite where mean leaves the range

    @property
    def isometry(self):
        """1 / (1 + relative_variance) = (mean s^2)^2 / mean s^4 in (0, 1]; 1: all singular values are equal."""
        return 1 / (1 + self.relative_variance)


@record
class ProductDensity:
    """The density of squared singular values on a curve of points."""

    s_squared: np.ndarray  # [points]  increasing, from 0 (excluded) to the largest (excluded)
    density: np.ndarray  # [points]  integrates to 1; infinite towards 0 like s_squared**(-L / (L + 1))


@record
class LyapunovExponents:
    """Rates (1/L) ln of the growth of volumes under a product of matrices."""

    exponents: np.ndarray  # [n]  descending, of lengths (not squared), a layer
    variance: np.ndarray  # [n]  of one layer's contribution: over L layers, variance / L


def product_norm(
    *,
    width: int,
    depth: int | ArrayLike,
    entry_variance: ArrayLike,
    excess_kurtosis: ArrayLike | None = None,
    orthogonal: bool = False,
    y: ArrayLike | None = None,
) -> ProductNorm:
    """PREDICTED product law: |K_L ... K_1 y|^2 of a random matrix product of width x width matrices; exact.

        iid entries:   E|z|^2 = (n s^2)^L |y|^2,   s^2 = entry_variance, n = width
                       (A, P) <- n s^4 [[n + 2, k], [3, k]] (A, P),  A = E|z|^4, P = E sum z_i^4, k = excess_kurtosis
        Gaussian:      ln |z|^2 = ln |y|^2 + sum of L independent ln(s^2 chi^2_n), about log-normal
        orthogonal:    K = sqrt(n) s Q with Q Haar: |z|^2 = (n s^2)^L |y|^2 without any spread

    Parameters
    ----------
    width, depth : int              n and L; depth may be an array of ints, every field then has its shape
    entry_variance : scalar         Var(K_ij); the entries have mean 0
    excess_kurtosis : scalar        E K_ij^4 / s^4 - 3 >= -2: Gaussian 0, uniform -1.2, Rademacher -2 (iid entries only)
    orthogonal : bool               K is a scaled Haar matrix; its entries are not independent
    y : (n,) array or None          a fixed input; None: y ~ N(0, I)
    Raises
    ------
    ValueError, TypeError           width or depth < 1, negative variance, excess_kurtosis < -2 or given with orthogonal
    Source: second moments of a quadratic form in iid entries; Hanin & Nica 2020, arXiv:1812.05994, for the logarithm.
    Twin: analysis.products.product_norm.    Experiment: a1.
    """
    n = checks.whole("width", width)
    depths = np.asarray([checks.whole("depth", one) for one in np.ravel(_wholes("depth", depth)).tolist()])
    orthogonal = checks.flag("orthogonal", orthogonal)
    entry_variance = checks.number("entry_variance", entry_variance, least=0.0)
    if orthogonal == (excess_kurtosis is not None):
        raise checks.BadValue(
            f"excess_kurtosis must be given for independent entries and only then; got {excess_kurtosis!r}"
        )
    if not orthogonal:
        excess_kurtosis = checks.number("excess_kurtosis", excess_kurtosis, least=-2.0)
    if y is not None:
        y = checks.shape("y", checks.finite("y", checks.array("y", checks.concrete("y", y), ndim=1)), (n,))
    start = _input_moments(n, y)
    fields = _orthogonal(n, depths, start) if orthogonal else _independent(n, depths, excess_kurtosis, start)
    return _assemble(n * float(entry_variance), depths, np.shape(depth), *start, *fields)


def squared_singular_values(
    *, depth: int, q: ArrayLike, activation: Activation, weight_variance: ArrayLike, orthogonal: bool
) -> SquaredSingularValues:
    """PREDICTED mean and variance of the squared singular values of D_1 W_1 ... D_L W_L at infinite width.

        mean = prod w mu_1(q_l),     variance / mean^2 = sum (mu_2(q_l) / mu_1(q_l)^2 - 1 - s_1),   mu_k = E f'^(2k)
        s_1 = -1 for Gaussian weights, 0 for orthogonal ones

    J = dy_stop / dy_start of a dense network whose L = stop - start layers have one width and start >= 1. Dynamical
    isometry is variance 0.

    Parameters
    ----------
    depth : int                 L >= 1
    q : scalar or (L,)          length of y_start ... y_{stop-1}: the fixed point, or layer by layer
    activation : Activation     f
    weight_variance : scalar    w = fan_in * Var(W_ij); an orthogonal W is sqrt(w) times a Haar matrix
    orthogonal : bool           the law of the weights
    Raises
    ------
    ValueError, TypeError       depth < 1, q negative or of another shape, a negative weight_variance, no Activation
    Source: Pennington et al. 2017, arXiv:1711.04735; 2018, arXiv:1802.09979.
    Twin: analysis.jacobian.spectra.    Experiment: b5.
    """
    depth = checks.whole("depth", depth)
    checks.instance("activation", activation, Activation, hint="for example numdl.activations.tanh")
    q = checks.variance("q", checks.concrete("q", q))
    checks.shape("q", q, (depth,) if np.ndim(q) else ())
    weight_variance = checks.number("weight_variance", weight_variance, least=0.0)
    checks.flag("orthogonal", orthogonal)
    first, second = _slope_moments(np.broadcast_to(np.asarray(q, float), (depth,)), activation)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        spread = second / first**2 - 1
        spread = np.where(np.abs(spread) < 1e-12, 0, spread)  # the quadrature's error
        relative = np.sum(spread + (0 if orthogonal else 1))
        log_expectation = np.sum(np.log(_roots.scaled(weight_variance, first)))
        mean = np.exp(log_expectation)
        return SquaredSingularValues(mean, relative * mean**2, relative, log_expectation)


def largest_squared(*, depth: int, weight_variance: ArrayLike, orthogonal: bool, active: ArrayLike = 1.0) -> np.float64:
    """PREDICTED upper edge of the squared singular values of D_1 W_1 ... D_L W_L, D = 0 or 1, at infinite width.

        Gaussian, active = 1:    w^L (L + 1)^(L+1) / L^L ~ w^L e (L + 1/2)
        else the minimum over z > 0 of x(z) = w^L (1 + z)/z (z + p)^L, over (1 + z)^L if orthogonal;   p = active

    The edge of the Jacobian spectrum. A finite network's largest value fluctuates about it by a few n^(-2/3),
    relatively.

    Parameters
    ----------
    depth : int                 L >= 1
    weight_variance : scalar    w = fan_in * Var(W_ij) > 0
    orthogonal : bool           the law of the weights: Haar matrices times sqrt(w), or Gaussian
    active : scalar             share of slopes that are 1: 1 linear, 1/2 relu, P(|u| < 1) hard_tanh; in (0, 1]
    Raises
    ------
    ValueError, TypeError       depth < 1, a weight variance that is not positive, a share outside (0, 1]
    Source: Pennington et al. 2018, arXiv:1802.09979.
    Twins: analysis.jacobian.singular_values, analysis.jacobian.extremes.    Experiment: b5.
    """
    depth = checks.whole("depth", depth)
    weight_variance = checks.number("weight_variance", weight_variance, above=0.0)
    checks.flag("orthogonal", orthogonal)
    active = checks.number("active", active, above=0.0, most=1.0)
    log_edge = _log_edge(depth, active, orthogonal)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        power, edge = weight_variance**depth, np.exp(log_edge)
        within = 0 < power < np.inf and edge > 0
        return power * edge if within else np.exp(depth * np.log(weight_variance) + log_edge)


def product_density(*, depth: int, weight_variance: ArrayLike, points: int) -> ProductDensity:
    """PREDICTED density of the squared singular values of a product of L Gaussian matrices at infinite width.

        s^2 = w^L sin^(L+1)((L+1) t) / (sin t sin^L(L t)),   density = sin^2 t sin^(L-1)(L t) / (pi w^L sin^L((L+1) t))

    on 0 < t < pi / (L + 1); the moments of s^2 / w^L are Fuss-Catalan numbers, binom((L+1)k, k) / (L k + 1).

    Parameters
    ----------
    depth : int                 L >= 1
    weight_variance : scalar    w = fan_in * Var(W_ij) > 0
    points : int                number of points, dense at both edges; t is equispaced
    Returns
    -------
    ProductDensity             [points]
    Raises
    ------
    ValueError, TypeError       depth or points < 1, a weight variance that is not positive
    Source: Penson & Zyczkowski 2011, arXiv:1103.3453; Forrester & Liu 2014, arXiv:1404.5759, for the parameter t.
    Twin: analysis.jacobian.spectra.    Experiment: b5.
    """
    depth, points = checks.whole("depth", depth), checks.whole("points", points)
    weight_variance = checks.number("weight_variance", weight_variance, above=0.0)
    share = np.pi * (np.arange(points) + 0.5) / points
    t = (np.pi - share) / (depth + 1)
    # (L + 1) t = pi - share and L t = pi - share - t: of these the sines are small, and exact.
    low, middle, high = np.log(np.sin(t)), np.log(np.sin(share + t)), np.log(np.sin(share))
    log_scale = depth * np.log(weight_variance)
    log_x = log_scale + (depth + 1) * high - low - depth * middle
    log_density = 2 * low + (depth - 1) * middle - depth * high - np.log(np.pi) - log_scale
    return ProductDensity(np.exp(log_x), np.exp(log_density))


def lyapunov_exponents(*, width: int, entry_variance: ArrayLike) -> LyapunovExponents:
    """PREDICTED Lyapunov exponents of products of Gaussian matrices; exact at every width and depth.

        exponents[i] = (ln(2 s^2) + psi((n - i) / 2)) / 2,     variance[i] = psi'((n - i) / 2) / 4,     i = 0..n-1

    s^2 = entry_variance. The i-th diagonal entry of R in K Q = Q' R is s chi_{n-i}, independent from layer to layer:
    the variance of the i-th Lyapunov exponent over L layers is variance[i] / L. At small n other laws of the
    entries have other exponents.

    Parameters
    ----------
    width : int                 n
    entry_variance : scalar     Var(K_ij) > 0
    Returns
    -------
    LyapunovExponents           [n], descending
    Raises
    ------
    ValueError, TypeError       width < 1, a variance that is not positive
    Source: Newman 1986, Comm. Math. Phys. 103; Cohen & Newman 1984.
    Twin: analysis.products.lyapunov_exponents.    Experiment: a1.
    """
    from scipy.special import polygamma

    width = checks.whole("width", width)
    entry_variance = checks.number("entry_variance", entry_variance, above=0.0)
    freedom = np.arange(width, 0, -1) / 2
    return LyapunovExponents((np.log(2 * entry_variance) + polygamma(0, freedom)) / 2, polygamma(1, freedom) / 4)


@float64
def _slope_moments(q, activation):
    """E f'^2 and E f'^4 at lengths q; at 0 their limits from above, where both sides of a kink count."""
    q = jnp.asarray(q) if activation.jumps else jnp.maximum(q, 1e-30)
    fourth = quadrature.expect(_FourthPower(activation.slope), q, kinks=activation.kinks)
    second = activation.slope_mean_square(q)
    return second, jnp.where(jnp.isinf(second), jnp.inf, fourth)


@dataclasses.dataclass(frozen=True)
class _FourthPower:
    """f^4, equal for equal f, so that `jit` knows it again."""

    f: Callable

    def __call__(self, x):
        return self.f(x) ** 4


def _log_edge(depth, active, orthogonal):
    """ln of the minimum of x(z) at w = 1: where the derivative of ln x vanishes, a linear or quadratic equation."""
    if not orthogonal:
        b = depth - 1
        z = (math.sqrt(b**2 + 4 * depth * active) - b) / (2 * depth)
        return math.log1p(z) - math.log(z) + depth * math.log(z + active)
    if depth * (1 - active) <= 1:
        return 0.0  # an atom at w^L: some directions meet no inactive unit at all
    z = active / (depth * (1 - active) - 1)
    return math.log1p(z) - math.log(z) + depth * (math.log(z + active) - math.log1p(z))


@float64
def _input_moments(n, y):
    """E|y|^2 and its ln, E|y|^4 / (E|y|^2)^2 - 1, E sum y_i^4 / (E|y|^2)^2, E ln|y|^2, Var ln|y|^2."""
    if y is None:
        return float(n), np.log(n), 2 / n, 3 / n, *_log_chi_square(n)
    y = np.asarray(y, dtype=float)
    size = np.abs(y).max()
    if size == 0:
        return 0.0, -np.inf, 0.0, 1.0, -np.inf, 0.0
    square = (y / size) ** 2  # entries of 1e-200 have squares as well
    norm = square.sum()
    log_norm = np.log(norm) + 2 * np.log(size)
    with np.errstate(over="ignore", under="ignore"):
        return norm * size**2, log_norm, 0.0, (square**2).sum() / norm**2, log_norm, 0.0


def _independent(n, depths, kurtosis, start):
    """Var |z|^2 / (E |z|^2)^2 by powers of the recursion, of A - 1 and P, and the logarithm's moments (Gaussian)."""
    step = np.array([[1 + 2 / n, kurtosis / n, 2 / n], [3 / n, kurtosis / n, 3 / n], [0, 0, 1]])
    with np.errstate(over="ignore", invalid="ignore"):
        spread = np.array([(np.linalg.matrix_power(step, depth) @ [*start[2:4], 1.0])[0] for depth in depths])
    if kurtosis != 0:
        return spread, np.full(depths.shape, np.nan), np.full(depths.shape, np.nan)
    mean, variance = _log_chi_square(n)
    return spread, depths * (mean - np.log(n)), depths * variance


def _orthogonal(n, depths, start):
    return np.full(depths.shape, start[2]), np.zeros(depths.shape), np.zeros(depths.shape)


def _assemble(gain, depths, shape, norm, log_size, _, __, log_norm, log_spread, spread, log_drift, log_variance):
    """`gain` is n s^2, the mean growth a layer; `log_drift` is the typical growth relative to it."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        log_gain = depths * np.log(gain)
        log_expectation = log_gain + log_size
        mean = norm * np.power(float(gain), depths)
        relative = np.maximum(spread, 0.0)
        fields = (mean, relative * mean**2, log_norm + log_gain + log_drift, log_spread + log_variance, log_expectation)
    return ProductNorm(*(np.reshape(field, shape)[()] for field in (*fields, relative)))


def _log_chi_square(n):
    """Mean and variance of ln chi^2_n: psi(n/2) + ln 2 and psi_1(n/2)."""
    from scipy.special import polygamma

    return float(polygamma(0, n / 2)) + np.log(2), float(polygamma(1, n / 2))


def _wholes(name, value):
    """A whole number, or an array of them."""
    if not getattr(value, "shape", ()) and not isinstance(value, list | tuple):
        return np.asarray(checks.whole(name, value))
    return np.asarray(checks.array(name, checks.concrete(name, value), kind="integer"))
