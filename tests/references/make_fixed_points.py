"""Write fixed_points.json: fixed points and chi_1 of every activation to 20 digits, by mpmath at 30; no numdl in it.

    python tests/references/make_fixed_points.py        some minutes

The length map is scanned in doubles from q = 1 towards its fixed point and the root found there by Brent's method; the
secant method at 30 digits finishes it. A root that is 0 or infinite is written as such.
"""

import json
import pathlib

import mpmath as mp
import numpy as np
from scipy import optimize, special

mp.mp.dps = 30
SCALE, ALPHA = mp.mpf("1.0507009873554804934193349852946"), mp.mpf("1.6732632423543772848170429916717")
ROOT_TWO, ROOT_PI = mp.sqrt(2), mp.sqrt(mp.pi)


def _gelu_tanh(x):
    inner = mp.sqrt(2 / mp.pi) * (x + mp.mpf("0.044715") * x**3)
    slope = mp.sqrt(2 / mp.pi) * (1 + 3 * mp.mpf("0.044715") * x**2)
    return x / 2 * (1 + mp.tanh(inner)), (1 + mp.tanh(inner)) / 2 + x / 2 * mp.sech(inner) ** 2 * slope


# name -> (x -> (f, f')), kinks, the same function in doubles
FUNCTIONS = {
    "identity": (lambda x: (x, mp.mpf(1)), (), lambda x: x),
    "tanh": (lambda x: (mp.tanh(x), mp.sech(x) ** 2), (), np.tanh),
    "erf": (lambda x: (mp.erf(x), 2 / ROOT_PI * mp.exp(-(x**2))), (), special.erf),
    "sigmoid": (
        lambda x: (1 / (1 + mp.exp(-x)), 1 / (2 + mp.exp(-x) + mp.exp(x))),
        (),
        special.expit,
    ),
    "relu": (lambda x: (max(x, mp.mpf(0)), mp.mpf(x > 0)), (0,), lambda x: np.maximum(x, 0)),
    "leaky_relu(0.2)": (
        lambda x: (x if x > 0 else mp.mpf(0.2) * x, mp.mpf(1) if x > 0 else mp.mpf(0.2)),
        (0,),
        lambda x: np.where(x > 0, x, 0.2 * x),
    ),
    "elu": (
        lambda x: (x if x > 0 else mp.expm1(x), mp.mpf(1) if x > 0 else mp.exp(x)),
        (0,),
        lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    ),
    "selu": (
        lambda x: (SCALE * (x if x > 0 else ALPHA * mp.expm1(x)), SCALE * (1 if x > 0 else ALPHA * mp.exp(x))),
        (0,),
        lambda x: float(SCALE) * np.where(x > 0, x, float(ALPHA) * np.expm1(np.minimum(x, 0))),
    ),
    "gelu": (
        lambda x: (x * mp.ncdf(x), mp.ncdf(x) + x * mp.npdf(x)),
        (),
        lambda x: x * special.ndtr(x),
    ),
    "gelu_tanh": (_gelu_tanh, (), lambda x: x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))),
    "silu": (
        lambda x: (x / (1 + mp.exp(-x)), 1 / (1 + mp.exp(-x)) + x / (2 + mp.exp(-x) + mp.exp(x))),
        (),
        lambda x: x * special.expit(x),
    ),
    "softplus": (
        lambda x: (mp.log1p(mp.exp(-abs(x))) + max(x, mp.mpf(0)), 1 / (1 + mp.exp(-x))),
        (),
        lambda x: np.logaddexp(0, x),
    ),
    "sin": (lambda x: (mp.sin(x), mp.cos(x)), (), np.sin),
    "hard_tanh": (
        lambda x: (max(min(x, mp.mpf(1)), mp.mpf(-1)), mp.mpf(abs(x) < 1)),
        (-1, 1),
        lambda x: np.clip(x, -1, 1),
    ),
}
WEIGHTS = (0.3, 0.8, 1.2, 1.7, 1.9999, 2.5, 4.0, 9.0)
BIASES = (0.0, 0.01, 0.05, 0.3, 1.0)
NEAR_CRITICAL = {  # weight variances a hair from criticality at bias variance 0.05 (0 where that is the only one)
    "tanh": ((1.7609, 0.05), (1.761, 0.05), (1.001, 0.0)),
    "erf": ((1.3758, 0.05), (1.3759, 0.05), (0.786, 0.0)),
    "sin": ((1.502, 0.05), (1.5021, 0.05), (1.001, 0.0)),
    "hard_tanh": ((1.1655, 0.05), (1.1656, 0.05), (1.001, 0.0)),
    "selu": ((1.0, 0.0), (0.9017, 0.05), (0.9018, 0.05)),
    "relu": ((2.0, 0.0), (1.99999, 0.05)),
}


def pieces(kinks, q):
    """The line cut where f has kinks, and where a smooth f of sqrt(q) z turns."""
    root = mp.sqrt(q)
    turns = {mp.mpf(k) / root for k in kinks} | {mp.mpf(0)} | {s * w / root for s in (-1, 1) for w in (2, 6, 20)}
    return [mp.mpf(-14), *sorted(t for t in turns if abs(t) < 14), mp.mpf(14)]


def moment(name, q, which):
    """E f^2 (which = 0) or E f'^2 (which = 1) at variance q, 30 digits; at q = 0 the limit from above."""
    function, kinks, _ = FUNCTIONS[name]
    if q == 0:
        tiny = mp.mpf(10) ** -60
        return (function(tiny)[which] ** 2 + function(-tiny)[which] ** 2) / 2
    root = mp.sqrt(q)
    return mp.quad(lambda z: function(root * z)[which] ** 2 * mp.npdf(z), pieces(kinks, q), method="gauss-legendre")


Z = np.concatenate([s * np.geomspace(1e-12, 14, 40001) for s in (-1, 1)])
Z.sort()
DENSITY = np.exp(-(Z**2) / 2) / np.sqrt(2 * np.pi)


def excess(name, q, weight, bias):
    """V(q) - q in doubles."""
    return weight * np.trapezoid(FUNCTIONS[name][2](np.sqrt(q) * Z) ** 2 * DENSITY, Z) + bias - q


def root(name, weight, bias):
    """The fixed point that lengths reach from q = 1."""

    def exact(q):
        return mp.mpf(weight) * moment(name, mp.mpf(q), 0) + mp.mpf(bias) - mp.mpf(q)

    start = exact(1)
    if abs(start) < mp.mpf("1e-14"):
        return mp.mpf(1)
    factor = 1.3 if start > 0 else 1 / 1.3
    last, q = 1.0, factor
    while 1e-7 < q < 1e7:
        if np.sign(excess(name, q, weight, bias)) != np.sign(start):
            rough = optimize.brentq(lambda q: excess(name, q, weight, bias), *sorted((last, q)), rtol=1e-13)
            return mp.findroot(exact, (rough, rough * (1 + 1e-7)), tol=mp.mpf(10) ** -48)
        last, q = q, q * factor
    return mp.inf if q > 1 else mp.mpf(0)


def main():
    rows = []
    for name in FUNCTIONS:
        points = [(w, b) for w in WEIGHTS for b in BIASES] + list(NEAR_CRITICAL.get(name, ()))
        for weight, bias in points:
            q = root(name, weight, bias)
            chi = None if mp.isinf(q) else mp.nstr(mp.mpf(weight) * moment(name, q, 1), 20)
            rows.append([name, weight, bias, mp.nstr(q, 20), chi])
        print(name, flush=True)
    path = pathlib.Path(__file__).with_name("fixed_points.json")
    path.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


if __name__ == "__main__":
    main()
