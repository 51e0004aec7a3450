"""Empirical tangent kernels: numdl beside plain Jacobian contraction and, in its own environment, neural-tangents.

    python benchmarks/kernels.py [--tangents PYTHON] [--examples 256] [--rounds 5]

Two networks in float32, the kernel of all pairs of outputs [N, N, 10, 10]: a LeNet-5 (convolutions 6@5x5 and 16@5x5,
dense 120, 84, 10, tanh, average pooling) and a network 784-512-512-10. Each round runs all sides in turn, compiled
before; printed are the medians of elapsed and processor time and the median over the rounds of the ratio to numdl.

neural-tangents 0.6.5 imports with jax 0.4.30 and not with today's: `--tangents` names the Python of an environment
that has both; it is run as a second process that answers one round at a time. All three of its methods are timed, on
the same numbers, and its kernel is compared with ours. Aim: at least as fast as the best of them, LeNet-5, N = 256.
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

METHODS = ("JACOBIAN_CONTRACTION", "NTK_VECTOR_PRODUCTS", "STRUCTURED_DERIVATIVES")
SLOW = ("NTK_VECTOR_PRODUCTS", "JACOBIAN_CONTRACTION")  # left out above so many examples: minutes and tens of GB
MOST = 64


def lenet(params, x):
    for kernel, bias in params["conv"]:
        x = lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        x = jnp.tanh(x + bias)
        n, height, width, channels = x.shape
        x = x.reshape(n, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
    return mlp(params["dense"], x.reshape(x.shape[0], -1))


def mlp(params, x):
    for weight, bias in params[:-1]:
        x = jnp.tanh(jnp.dot(x, weight) + bias)
    return jnp.dot(x, params[-1][0]) + params[-1][1]


def dense_parameters(rng, widths):
    shapes = zip(widths[:-1], widths[1:])
    return [(normal(rng, (n, m), n), normal(rng, (m,), 10)) for n, m in shapes]


def normal(rng, shape, fan_in):
    return jnp.asarray(rng.normal(size=shape) / fan_in**0.5, jnp.float32)


def problems(examples):
    """Name -> (apply, params, x), the same numbers in every process."""
    rng = np.random.default_rng(0)
    conv = [(normal(rng, s, np.prod(s[:3])), normal(rng, s[3:], 10)) for s in ((5, 5, 1, 6), (5, 5, 6, 16))]
    images = jnp.asarray(rng.normal(size=(examples, 32, 32, 1)), jnp.float32)
    small = {"conv": conv, "dense": dense_parameters(rng, (400, 120, 84, 10))}
    vectors = jnp.asarray(rng.normal(size=(examples, 784)), jnp.float32)
    return {
        "LeNet-5": (lenet, small, images),
        "784-512-512-10": (mlp, dense_parameters(rng, (784, 512, 512, 10)), vectors),
    }


def contraction(apply):
    """The usual recipe: a Jacobian for each example, contracted leaf by leaf."""

    def kernel(params, x):
        jacobian = jax.vmap(jax.jacrev(lambda p, one: apply(p, one[None])[0]), (None, 0))(params, x)
        flat = (leaf.reshape(*leaf.shape[:2], -1) for leaf in jax.tree.leaves(jacobian))
        return sum(jnp.einsum("nip,mjp->nmij", leaf, leaf) for leaf in flat)

    return kernel


def timed(run):
    """(elapsed seconds, seconds of the processors, a few entries of the result)"""
    begin = time.perf_counter(), time.process_time()
    result = jax.block_until_ready(run())
    spent = time.perf_counter() - begin[0], time.process_time() - begin[1]
    return *spent, np.asarray(result[0, :3]).ravel().tolist()


def serve(examples):
    """The second process: reads "problem method" lines, times that side once and answers in JSON."""
    sys.path = [entry for entry in sys.path if pathlib.Path(entry or ".").resolve() != pathlib.Path(__file__).parent]
    tangents = imported()
    known, sides = problems(examples), {}
    for line in sys.stdin:
        name, method = line.strip().split("/")
        apply, params, x = known[name]
        if line not in sides:
            options = {"trace_axes": (), "implementation": tangents.NtkImplementation[method], "vmap_axes": 0}
            function = jax.jit(tangents.empirical_ntk_fn(lambda p, x, apply=apply: apply(p, x), **options))
            sides[line] = lambda function=function, x=x, params=params: function(x, None, params)
            jax.block_until_ready(sides[line]())
        print("ANSWER " + json.dumps(timed(sides[line])), flush=True)


def imported():
    """neural_tangents, with what it wants and does not need here put in place."""
    import types

    from jax.interpreters import ad

    # The part for TensorFlow.
    sys.modules["neural_tangents.experimental"] = types.ModuleType("neural_tangents.experimental")
    from jax._src import source_info_util

    ad.source_info_util, ad.config = source_info_util, jax.config  # names that jax 0.4.30 no longer has there
    import neural_tangents

    return neural_tangents


class Tangents:
    """neural-tangents behind a pipe."""

    def __init__(self, python, examples):
        command = [python, __file__, "--serve", "--examples", str(examples)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, name, method):
        self.process.stdin.write(f"{name}/{method}\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("ANSWER "):
                return tuple(json.loads(line.removeprefix("ANSWER ")))
        raise RuntimeError(f"neural-tangents ended at {name}, {method}")


def compare(name, apply, params, x, rounds, tangents):
    from numdl.analysis import kernels

    print(f"{name}, N = {len(x)}")
    plan = kernels.estimate(apply, params, x, outputs="full")
    print(
        f"  planned: {plan.method}, {plan.flops / 1e9:.1f} GFLOP, {plan.bytes / 2**20:.0f} MiB, blocks of {plan.block}"
    )
    plain = jax.jit(contraction(apply))
    sides = {"numdl": lambda: timed(lambda: kernels.ntk(apply, params, x, outputs="full"))}
    if len(x) <= MOST or name == "LeNet-5":
        sides["plain contraction"] = lambda: timed(lambda: plain(params, x))
    for method in METHODS if tangents else ():
        if len(x) <= MOST or method not in SLOW:
            sides[f"neural-tangents {method.lower()}"] = lambda method=method: tangents.ask(name, method)
    rows = [{side: run() for side, run in sides.items()} for _ in range(rounds + 1)][1:]
    for side in sides:
        elapsed, processor = (statistics.median(row[side][i] for row in rows) for i in (0, 1))
        ratios = [statistics.median(row[side][i] / row["numdl"][i] for row in rows) for i in (0, 1)]
        error = np.abs(np.subtract(rows[0][side][2], rows[0]["numdl"][2])).max() / np.abs(rows[0]["numdl"][2]).max()
        print(f"  {side}: {elapsed:.3f} s elapsed, {processor:.3f} s processor", end="; ")
        print(f"{ratios[0]:.2f} and {ratios[1]:.2f} times numdl; differs by {error:.1e}", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tangents", help="Python of an environment with neural-tangents")
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.examples)
        return
    tangents = Tangents(options.tangents, options.examples) if options.tangents else None
    for name, problem in problems(options.examples).items():
        compare(name, *problem, options.rounds, tangents)


if __name__ == "__main__":
    main()
