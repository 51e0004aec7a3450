"""Closed forms behind `activations`: Gaussian moments that keep all digits, and slopes.

u, v are centred Gaussians of variances q1, q2 and covariance K = c sqrt(q1 q2).
"""

import math

import jax
import jax.numpy as jnp


def covariance(q1, q2, c):
    return c * root(q1) * root(q2)


def root(x):
    """sqrt(x) whose derivative at zero is zero instead of infinite, so that no nan spreads."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1)), 0)


@jax.custom_jvp
def angle(c):
    """P(u > 0, v > 0) = (pi - arccos c) / (2 pi), exact at c = +-1 and without arccos's loss near them."""
    return jnp.atan2(root((1 - c) * (1 + c)), -c) / (2 * math.pi)


@angle.defjvp
def _angle_jvp(primals, tangents):
    (c,), (dc,) = primals, tangents
    s = root((1 - c) * (1 + c))
    return angle(c), dc / (2 * math.pi * jnp.maximum(s, jnp.finfo(c.dtype).eps))  # infinite at c = +-1: kept finite


@jax.custom_jvp
def arc_cosine(c):
    """E relu(u) relu(v) at unit variances; its derivative, by Price's theorem, is `angle`."""
    return root((1 - c) * (1 + c)) / (2 * math.pi) + c * angle(c)


@arc_cosine.defjvp
def _arc_cosine_jvp(primals, tangents):
    (c,), (dc,) = primals, tangents
    return arc_cosine(c), dc * angle(c)


def erf_product(q1, q2, c):
    """2/pi arcsin(2 K / sqrt((1 + 2 q1)(1 + 2 q2))), as an arctangent of positive terms. Source: Williams 1997."""
    return 2 / math.pi * jnp.atan2(2 * covariance(q1, q2, c), root_volume(2 * q1, 2 * q2, c))


def root_volume(q1, q2, c):
    """sqrt(det(1 + Sigma)), without a difference of large terms; the determinant itself may leave the range."""
    near1, near2 = 1 / (1 + q1), 1 / (1 + q2)
    far1, far2 = q1 * near1, q2 * near2
    return jnp.sqrt(1 + q1) * jnp.sqrt(1 + q2) * jnp.sqrt(near2 + far2 * (near1 + far1 * (1 - c) * (1 + c)))


def sin_product(q1, q2, c):
    """exp(-(q1 + q2)/2) sinh K, as one decaying exponential times expm1."""
    gap, size, sign = _gap(q1, q2, c)
    return -0.5 * sign * jnp.exp(-gap) * jnp.expm1(-2 * size)


def cos_product(q1, q2, c):
    """exp(-(q1 + q2)/2) cosh K."""
    gap, size, _ = _gap(q1, q2, c)
    return 0.5 * jnp.exp(-gap) * (1 + jnp.exp(-2 * size))


def _gap(q1, q2, c):
    """(q1 + q2)/2 - |K| as a sum of squares, |K|, and the sign of K."""
    sign = jnp.where(c < 0, -jnp.ones_like(c), jnp.ones_like(c))
    root1, root2 = root(q1), root(q2)
    return (root1 - root2) ** 2 / 2 + root1 * root2 * (1 - sign * c), root1 * root2 * sign * c, sign


def gelu_product(q1, q2, c):
    """K H + P (q1 q2 - K^2 + K^2/(1 + q1) + K^2/(1 + q2)), by Stein's lemma twice; H = E Phi Phi, P = E phi phi."""
    K, H, P, _ = _gelu_parts(q1, q2, c)
    return K * H + P * q1 * (q2 * (1 - c) * (1 + c)) + P * K * (K / (1 + q1) + K / (1 + q2))


def gelu_slope_product(q1, q2, c):
    """H + P K (1/(1 + q1) + 1/(1 + q2) + 1/R^2), R^2 = det(1 + Sigma)."""
    K, H, P, R = _gelu_parts(q1, q2, c)
    return H + P * (K / (1 + q1) + K / (1 + q2) + K / R / R)


def _gelu_parts(q1, q2, c):
    K, R = covariance(q1, q2, c), root_volume(q1, q2, c)
    return K, jnp.atan2(R, -K) / (2 * math.pi), 1 / (2 * math.pi * R), R


def at_one(product):
    """The one-point form of a two-point form: both variances q, correlation 1."""
    return lambda q: product(q, q, jnp.ones_like(q))


def sech_squared(x):
    decay = jnp.exp(-2 * jnp.abs(x))
    return 4 * decay / (1 + decay) ** 2


def normal_density(x):
    return jnp.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)


def normal_probability(x):
    return jax.lax.erfc(-x / math.sqrt(2)) / 2


def gelu_tanh_slope(x):
    root, cubic = math.sqrt(2 / math.pi), 0.044715
    y = root * (x + cubic * x**3)
    return jax.nn.sigmoid(2 * y) + 0.5 * x * sech_squared(y) * root * (1 + 3 * cubic * x**2)


def elu_slope(x):
    return jnp.where(x > 0, jnp.ones_like(x), jnp.exp(jnp.where(x > 0, 0, x)))


_SELU_SCALE, _SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


def selu_slope(x):
    return _SELU_SCALE * jnp.where(x > 0, jnp.ones_like(x), _SELU_ALPHA * jnp.exp(jnp.where(x > 0, 0, x)))


def hard_tanh_slope(x):
    return jnp.where(jnp.abs(x) <= 1, jnp.ones_like(x), jnp.zeros_like(x))
