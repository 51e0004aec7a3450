"""The 100 x 100 phase diagram of tanh against scipy.integrate.quad in a loop, the usual way to compute one.

    python benchmarks/phase_diagram.py

scipy solves 25 of the 10,000 cells by plain iteration of the length map; its time is scaled up. Both agree where both
converge: the largest difference of chi_1 is printed.
"""

import statistics
import time

import numpy as np

from numdl import activations
from numdl.theory import propagation

CELLS, ROUNDS = 5, 3


def by_quad(weight_variance, bias_variance):
    """chi_1 after iterating the length map to 1e-10."""
    from scipy.integrate import quad

    def mean(f, q):
        return quad(lambda z: f(np.sqrt(q) * z) * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi), -10, 10)[0]

    q, last = 1.0, 0.0
    while abs(q - last) > 1e-10:
        q, last = weight_variance * mean(lambda x: np.tanh(x) ** 2, q) + bias_variance, q
    return weight_variance * mean(lambda x: np.cosh(x) ** -4, q)


def main():
    """Print the times, their ratio, and the agreement."""
    weights, biases = np.linspace(0.5, 4, 100), np.linspace(0.01, 0.5, 100)
    grid = {"activation": activations.tanh, "weight_variances": weights, "bias_variances": biases}
    propagation.phase_diagram(**grid)
    ours, theirs, worst = [], [], 0.0
    chosen = np.linspace(0, 99, CELLS).astype(int)
    for _ in range(ROUNDS):
        start = time.perf_counter()
        diagram = propagation.phase_diagram(**grid)
        middle = time.perf_counter()
        loop = np.array([[by_quad(weights[i], biases[j]) for j in chosen] for i in chosen])
        theirs.append((time.perf_counter() - middle) * 10_000 / CELLS**2)
        ours.append(middle - start)
        worst = np.abs(loop - diagram.chi_1[np.ix_(chosen, chosen)]).max()
    print(f"numdl {1e3 * statistics.median(ours):.0f} ms, scipy.quad {statistics.median(theirs):.1f} s (scaled)")
    print(f"ratio {statistics.median(theirs) / statistics.median(ours):.0f}, largest difference {worst:.1e}")


if __name__ == "__main__":
    main()
