"""The phase diagram of tanh, 100 x 100 variances: fixed points of the length map and chi_1.

scipy's quad in a loop is the usual way; it solves 9 cells and Gauss-Hermite 100, scaled up. Gauss-Hermite with 80
nodes is wrong by percents where lengths are large: its numbers do not agree, and are marked.
"""

import numpy as np

from benchmarks.rows import Run, Side, Workload, jitted


def problem(cells):
    return {"weights": np.linspace(0.5, 4, cells), "biases": np.linspace(0.01, 0.5, cells), "cells": cells}


def chosen(p, count):
    return np.linspace(0, p["cells"] - 1, count).astype(int)


def corners(p):
    """chi_1 at nine cells."""
    places = np.ix_(chosen(p, 3), chosen(p, 3))
    return lambda chi: np.asarray(chi)[places].ravel().tolist()


def numdl(p):
    """`theory.propagation.phase_diagram`"""
    from numdl import activations
    from numdl.theory import propagation

    given = {"weight_variances": p["weights"], "bias_variances": p["biases"]}
    pick = corners(p)
    return Run(lambda: propagation.phase_diagram(activation=activations.tanh, **given), lambda found: pick(found.chi_1))


def limit(p):
    """Newton for every cell at once, expectations by the trapezoid in sinh, 40 positive nodes."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    jax.config.update("jax_enable_x64", True)
    t = 0.11 * (np.arange(40) + 0.5)
    scale = 1 / np.sqrt(max(p["weights"].max() + p["biases"].max(), 1.0))
    z = scale * np.sinh(t)
    density = 2 * 0.11 * scale * np.cosh(t) * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)

    def program(weights, biases):
        w, b = weights[:, None], biases[None]

        def mean(f, q):
            return sum(weight * f(jnp.sqrt(q) * node) for weight, node in zip(density, z))

        def newton(_, q):
            length = mean(lambda x: jnp.tanh(x) ** 2, q)
            slope = mean(lambda x: (1 / jnp.cosh(x) ** 4) - 2 * jnp.tanh(x) ** 2 / jnp.cosh(x) ** 2, q)
            return jnp.maximum(q - (w * length + b - q) / (w * slope - 1), b)

        q = lax.fori_loop(0, 13, newton, w + b)
        return w * mean(lambda x: 1 / jnp.cosh(x) ** 4, q)

    return jitted(program, p["weights"], p["biases"], numbers=corners(p))


def plain_sweeps(p):
    """400 sweeps of the length map in one program, Gauss-Hermite with 80 nodes."""
    import jax.numpy as jnp
    from jax import lax

    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()

    def program(w, b):
        w, b = w[:, None], b[None]

        def mean(f, q):
            return lax.scan(lambda s, g: (s + g[1] * f(jnp.sqrt(q) * g[0]), None), jnp.zeros_like(q), (nodes, weights))[
                0
            ]

        q = lax.fori_loop(0, 400, lambda _, q: w * mean(lambda x: jnp.tanh(x) ** 2, q) + b, w + b)
        return w * mean(lambda x: jnp.cosh(x) ** -4, q)

    return jitted(program, p["weights"], p["biases"], numbers=corners(p))


def scipy_quad(p):
    """The length map to 1e-10 for nine cells."""
    from scipy.integrate import quad

    def mean(f, q):
        return quad(lambda z: f(np.sqrt(q) * z) * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi), -10, 10)[0]

    def call():
        return [[converged(mean, p["weights"][i], p["biases"][j]) for j in chosen(p, 3)] for i in chosen(p, 3)]

    return Run(call, scale=p["cells"] ** 2 / 9)


def numpy_hermite(p):
    """The same loop with Gauss-Hermite, 80 nodes."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()

    def mean(f, q):
        return float(weights @ f(np.sqrt(q) * nodes))

    def call():
        return [[converged(mean, p["weights"][i], p["biases"][j]) for j in chosen(p, 3)] for i in chosen(p, 3)]

    return Run(call, scale=p["cells"] ** 2 / 9)


def converged(mean, weight_variance, bias_variance):
    """chi_1 after iterating the length map to 1e-10."""
    q, last = 1.0, 0.0
    while abs(q - last) > 1e-10:
        q, last = weight_variance * mean(lambda x: np.tanh(x) ** 2, q) + bias_variance, q
    return weight_variance * mean(lambda x: np.cosh(x) ** -4.0, q)


WORKLOADS = (
    Workload(
        "phase diagram of tanh",
        problem,
        (
            Side("numdl", numdl),
            Side("limit: Newton, sinh trapezoid", limit),
            Side("jax, plain sweeps, Gauss-Hermite", plain_sweeps),
            Side("scipy.quad loop", scipy_quad),
            Side("numpy loop, Gauss-Hermite", numpy_hermite),
        ),
        sizes={"cells": 100},
        tiny={"cells": 4},
        laws={"cells": 2},
        agree=1e-4,
    ),
)
