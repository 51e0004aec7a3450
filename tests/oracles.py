"""Slow, obvious references that share no code with numdl: mpmath at 20 digits and brute-force NumPy."""

import mpmath as mp
import numpy as np

_SELU = (mp.mpf("1.0507009873554804934193349852946"), mp.mpf("1.6732632423543772848170429916717"))


def _sech2(x):
    return mp.sech(x) ** 2


def _logistic(x):
    return 1 / (1 + mp.exp(-x))


def _tanh_gelu(x):
    return x / 2 * (1 + mp.tanh(mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3)))


def _tanh_gelu_slope(x):
    y = mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3)
    return (1 + mp.tanh(y)) / 2 + x / 2 * _sech2(y) * mp.sqrt(2 / mp.pi) * (1 + 3 * mp.mpf("0.044715") * x**2)


# name -> (f, f', kinks), in mpmath
ACTIVATIONS = {
    "identity": (lambda x: x, lambda x: mp.mpf(1), ()),
    "tanh": (mp.tanh, _sech2, ()),
    "erf": (mp.erf, lambda x: 2 / mp.sqrt(mp.pi) * mp.exp(-(x**2)), ()),
    "sigmoid": (_logistic, lambda x: _logistic(x) * _logistic(-x), ()),
    "relu": (lambda x: max(x, mp.mpf(0)), lambda x: mp.mpf(x > 0), (0,)),
    "leaky_relu(0.2)": (lambda x: x if x > 0 else mp.mpf("0.2") * x, lambda x: 1 if x > 0 else mp.mpf("0.2"), (0,)),
    "elu": (lambda x: x if x > 0 else mp.expm1(x), lambda x: mp.mpf(1) if x > 0 else mp.exp(x), (0,)),
    "selu": (
        lambda x: _SELU[0] * (x if x > 0 else _SELU[1] * mp.expm1(x)),
        lambda x: _SELU[0] * (1 if x > 0 else _SELU[1] * mp.exp(x)),
        (0,),
    ),
    "gelu": (lambda x: x * mp.ncdf(x), lambda x: mp.ncdf(x) + x * mp.npdf(x), ()),
    "gelu_tanh": (_tanh_gelu, _tanh_gelu_slope, ()),
    "silu": (lambda x: x * _logistic(x), lambda x: _logistic(x) * (1 + x * _logistic(-x)), ()),
    "softplus": (lambda x: mp.log1p(mp.exp(-abs(x))) + max(x, mp.mpf(0)), _logistic, ()),
    "sin": (mp.sin, mp.cos, ()),
    "hard_tanh": (lambda x: min(max(x, mp.mpf(-1)), mp.mpf(1)), lambda x: mp.mpf(abs(x) < 1), (-1, 1)),
}


def gaussian_mean(function, scale, kinks=(), digits=20):
    """E function(z) by mpmath; `function` varies on `scale` around zero and has kinks at the z given."""
    with mp.workdps(digits):
        graded = [mp.mpf(scale) * step for step in (1, 3, 10)] + [1, 3, 6]
        graded = [step for step in graded if step <= 6]
        points = sorted({mp.mpf(0), mp.mpf(10), mp.mpf(-10), *graded, *(-g for g in graded), *map(mp.mpf, kinks)})
        points = [point for point in points if abs(point) <= 10]
        return float(mp.quad(lambda z: function(z) * mp.npdf(z), points, method="gauss-legendre"))


def one_point(function, variance, kinks=()):
    """E function(sqrt(variance) z) by mpmath."""
    root = mp.sqrt(variance)
    return gaussian_mean(lambda z: function(root * z), 1 / root, [kink / root for kink in kinks])


def on_the_diagonal(f, g, variance_f, variance_g, sign, kinks_f=(), kinks_g=()):
    """E f(u) g(v) at correlation +1 or -1 by mpmath."""
    root_f, root_g = mp.sqrt(variance_f), sign * mp.sqrt(variance_g)
    places = {k / root_f for k in kinks_f} | {k / root_g for k in kinks_g}
    return gaussian_mean(lambda z: f(root_f * z) * g(root_g * z), 1 / max(root_f, abs(root_g)), places)


def two_point(f, g, variance_f, variance_g, correlation, kinks_f=(), kinks_g=(), panels=30):
    """E f(u) g(v) by brute force in NumPy: many panels in both variables, each cut at the kinks.

    The outer panels must be narrower than s / c, the width of g's blurred kinks, where s^2 = 1 - c^2.
    """
    root_f, root_g = np.sqrt(variance_f), np.sqrt(variance_g)
    s = np.sqrt(1 - correlation**2)
    z, outer = _panels(np.asarray(kinks_f)[None] / root_f, panels)
    cuts = (np.asarray(kinks_g)[None] / root_g - correlation * z.reshape(-1, 1)) / s
    y, inner = _panels(cuts, panels)
    products = f(root_f * z.reshape(-1, 1)) * g(root_g * (correlation * z.reshape(-1, 1) + s * y))
    return float(np.sum(outer.reshape(-1, 1) * inner * products))


def _panels(cuts, panels, reach=9.0, order=12):
    """Nodes and weights, one row for each row of cuts; a cut outside the domain makes an empty panel."""
    even = np.broadcast_to(np.linspace(-reach, reach, panels + 1), (len(cuts), panels + 1))
    edges = np.sort(np.concatenate([even, np.clip(cuts, -reach, reach)], axis=1), axis=1)
    nodes, weights = np.polynomial.legendre.leggauss(order)
    half = np.diff(edges, axis=1)[..., None] / 2
    z = (edges[:, :-1, None] + half * (nodes + 1)).reshape(len(cuts), -1)
    return z, (half * weights).reshape(len(cuts), -1) * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)


def softmax_rows(scores, mask):
    """(entropy over ln(open keys), mean over rows of two and more; largest |logit|; share of rows without a key)."""
    entropies, mask = [], np.broadcast_to(mask, scores.shape)
    for row, opened in zip(scores.reshape(-1, scores.shape[-1]), mask.reshape(-1, scores.shape[-1])):
        kept = row[opened].astype(float)
        if len(kept) > 1:
            p = np.exp(kept - kept.max()) / np.exp(kept - kept.max()).sum()
            entropies.append(-(p * np.log(np.maximum(p, 1e-300))).sum() / np.log(len(kept)))
    shut = np.mean(~mask.any(axis=-1))
    return np.mean(entropies), np.abs(np.where(mask, scores, 0)).max(), shut
