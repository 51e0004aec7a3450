"""Gradients through an ODE solve: numdl's adjoints beside diffrax's, and a reversible scheme beside a plain scan.

    python -m benchmarks.adjoints            200 RK4 steps and leapfrog, dimension 64, batch 256, float32
    python -m benchmarks.adjoints --rounds 9

Seconds are process CPU time, the median of interleaved rounds; a ratio is the median of the rounds' ratios. Memory is
the temporary memory of the compiled gradient, by the compiler itself. diffrax is left out where it is not installed.
"""

import argparse
import functools
import time

import jax
import jax.numpy as jnp
import numpy as np

from numdl.ode import adjoints, integrate, schemes, tableaus

WIDTH, BATCH, TIME = 64, 256, 1.0


def main():
    """Print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=200)
    settings = parser.parse_args()
    y0, theta = problem()
    table("gradient, RK4", runge_kutta(settings.steps), (y0, theta), settings.rounds, first="checkpointed")
    pair = (y0, jnp.zeros_like(y0))
    table("gradient, leapfrog", leapfrog(settings.steps), (pair, theta), settings.rounds, first="reversible")


def problem():
    """A state [256, 64] and the weights of y' = tanh(y K + b)."""
    keys = jax.random.split(jax.random.key(0), 2)
    kernel = jax.random.normal(keys[0], (WIDTH, WIDTH), jnp.float32) / np.sqrt(WIDTH)
    return jax.random.normal(keys[1], (BATCH, WIDTH), jnp.float32), {"K": kernel, "b": jnp.zeros(WIDTH, jnp.float32)}


def field(t, y, theta):
    """tanh(y K + b)."""
    return jnp.tanh(y @ theta["K"] + theta["b"][None])


def runge_kutta(steps):
    """Compiled gradients by name, diffrax's among them if it is there."""
    methods = {
        "direct": adjoints.direct,
        "checkpointed": adjoints.checkpointed,
        "square_root": adjoints.square_root,
        "binomial(10)": adjoints.binomial(snapshots=10),
        "backsolve": adjoints.backsolve,
    }
    solve = functools.partial(integrate.endpoint, field, tableau=tableaus.rk4, t1=TIME, steps=steps)
    ours = {name: gradient(functools.partial(solve, adjoint=adjoint)) for name, adjoint in methods.items()}
    return ours | diffrax_solvers(steps)


def leapfrog(steps):
    """Compiled gradients of the second-order system, plain and reversible."""
    solve = functools.partial(integrate.endpoint, field, scheme=schemes.leapfrog, t1=TIME, steps=steps)
    methods = {"direct": adjoints.direct, "checkpointed": adjoints.checkpointed, "reversible": adjoints.reversible}
    return {name: gradient(functools.partial(solve, adjoint=adjoint)) for name, adjoint in methods.items()}


def diffrax_solvers(steps):
    """The same RK4 steps by diffrax, with its recursive checkpointing and its backsolve."""
    try:
        import diffrax
    except ImportError:
        return {}

    class RungeKutta4(diffrax.AbstractERK):
        tableau = diffrax.ButcherTableau(
            c=np.array([1 / 2, 1 / 2, 1.0]),
            b_sol=np.array([1 / 6, 1 / 3, 1 / 3, 1 / 6]),
            b_error=np.zeros(4),
            a_lower=(np.array([1 / 2]), np.array([0.0, 1 / 2]), np.array([0.0, 0.0, 1.0])),
        )
        interpolation_cls = diffrax.ThirdOrderHermitePolynomialInterpolation.from_k

        def order(self, terms):
            return 4

    def solve(adjoint, y0, theta):
        term = diffrax.ODETerm(field)
        times = {"t0": 0.0, "t1": TIME, "dt0": TIME / steps, "max_steps": steps + 2}
        return diffrax.diffeqsolve(term, RungeKutta4(), y0=y0, args=theta, adjoint=adjoint, **times).ys[0]

    peers = {
        "diffrax checkpointed": diffrax.RecursiveCheckpointAdjoint(),
        "diffrax backsolve": diffrax.BacksolveAdjoint(),
    }
    return {name: gradient(functools.partial(solve, adjoint)) for name, adjoint in peers.items()}


def gradient(solve):
    """The jitted gradient of half the squared end point with respect to y0 and theta."""

    def loss(y0, theta):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(solve(y0, theta))) / 2

    return jax.jit(jax.grad(loss, argnums=(0, 1)))


def table(title, functions, arguments, rounds, *, first):
    """Print seconds, ratio to `first` and memory for every function; check that they return one gradient."""
    compiled = {name: f.lower(*arguments).compile() for name, f in functions.items()}
    results = {
        name: np.concatenate([np.ravel(a) for a in jax.tree.leaves(f(*arguments))]) for name, f in compiled.items()
    }
    seconds = {name: [] for name in compiled}
    for _ in range(rounds):
        for name, f in compiled.items():
            begin = time.process_time()
            jax.block_until_ready(f(*arguments))
            seconds[name].append(time.process_time() - begin)
    print(f"\n{title:<24}{'CPU ms':>10}{'/ ' + first:>16}{'memory MiB':>12}{'difference':>12}")
    for name, f in compiled.items():
        ratio = np.median(np.divide(seconds[name], seconds[first]))
        memory = f.memory_analysis().temp_size_in_bytes / 2**20
        gap = np.linalg.norm(results[name] - results[first]) / np.linalg.norm(results[first])
        print(f"{name:<24}{1e3 * np.median(seconds[name]):>10.1f}{ratio:>16.2f}{memory:>12.2f}{gap:>12.1e}")


if __name__ == "__main__":
    main()
