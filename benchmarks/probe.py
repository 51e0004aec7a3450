"""What `layers.probe` costs over the plain gradient: time of a call, temporary memory, compilation.

    python benchmarks/probe.py

A tanh network of 50 layers of width 256 on 256 examples, float32, once as a Python loop over layers and once as a scan.
The two are timed in turn within each round, so that the machine's other load hits both; the ratio is the median of the
rounds' ratios. Memory is what a call needs beside its arguments: outputs (the gradients, of which the probe returns
none) and temporary arrays. Aim: at most 1.3 times the time and 1.10 times the memory of `jax.value_and_grad`.
"""

import statistics
import time

import jax
import jax.numpy as jnp

from numdl.analysis import layers

DEPTH, WIDTH, EXAMPLES, ROUNDS = 50, 256, 256, 40


def loop(params, x):
    for weight, bias in zip(params["weight"], params["bias"], strict=True):
        x = jnp.tanh(x @ weight + bias)
    return x


def scan(params, x):
    def layer(x, p):
        return jnp.tanh(x @ p["weight"] + p["bias"]), None

    return jax.lax.scan(layer, x, params)[0]


def mean_square(outputs):
    return jnp.mean(outputs**2)


def parameters(key, *, stacked):
    weight = 1.5 * jax.random.normal(key, (DEPTH, WIDTH, WIDTH), jnp.float32) / WIDTH**0.5
    params = {"weight": weight, "bias": jnp.zeros((DEPTH, WIDTH), jnp.float32)}
    return params if stacked else jax.tree.map(list, params)


def compare(apply, params, x):
    """(ratio of times, seconds a call, bytes, compilation seconds); the last three of plain gradient and probe."""
    traced, cost, run = layers._prepared(apply, mean_square, params, x, None, 64)
    probe = run.lower(params, x, traced.constants, cost.constants, careful=False)
    plain = jax.jit(jax.value_and_grad(lambda params, x: mean_square(apply(params, x)))).lower(params, x)
    programs, compilation = zip(*(timed(lowered.compile) for lowered in (plain, probe)), strict=True)
    calls = (lambda: programs[0](params, x), lambda: programs[1](params, x, traced.constants, cost.constants))
    rounds = [[timed(lambda call=call: jax.block_until_ready(call()))[1] for call in calls] for _ in range(ROUNDS)][2:]
    ratio = statistics.median(probe / plain for plain, probe in rounds)
    times = [statistics.median(column) for column in zip(*rounds, strict=True)]
    return ratio, times, [memory(program) for program in programs], compilation


def memory(program):
    """Bytes that a call needs beside its arguments; XLA keeps states in output buffers until gradients go there."""
    sizes = program.memory_analysis()
    return sizes.temp_size_in_bytes + sizes.output_size_in_bytes


def timed(function):
    start = time.perf_counter()
    result = function()
    return result, time.perf_counter() - start


def main():
    x = jax.random.normal(jax.random.key(1), (EXAMPLES, WIDTH), jnp.float32)
    for apply in (loop, scan):
        params = parameters(jax.random.key(0), stacked=apply is scan)
        ratio, (plain, probe), sizes, compilation = compare(apply, params, x)
        print(f"{apply.__name__}: time {ratio:.2f}x, {plain * 1e3:.1f} -> {probe * 1e3:.1f} ms a call")
        before, after = (size / 2**20 for size in sizes)
        print(f"    memory {after / before:.2f}x, {before:.1f} -> {after:.1f} MiB beside the arguments")
        print(f"    compilation {compilation[0]:.2f} -> {compilation[1]:.2f} s")


if __name__ == "__main__":
    main()
