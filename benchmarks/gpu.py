"""On an accelerator: what the main analyses of two large networks take, and what its precisions do to the numbers.

    python -m benchmarks gpu [--json FILE] [--rounds 5] [--tiny] [--here]

The networks are a causal transformer of 124 million parameters (12 blocks of 768, GPT-2's sizes) and AlexNet of 61
million. Times are elapsed seconds of a call that compiles nothing, the median of the rounds; "of the rate" is the
gradient's multiplications and additions, as XLA counts them, over the seconds and over the rate of a large matrix
product measured on the same device in the same precision. Numbers are compared with float64 on the processor,
relative to the largest entry. "tensor float" is what jax takes for float32 products by default on cards that have it.

Without an accelerator nothing is measured and the exit code is 0; `--here` takes whatever device there is, `--tiny`
sizes that take no time.
"""

import argparse
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks import runner
from numdl import activations, audit
from numdl.analysis import curvature, jacobian, kernels, layers
from numdl.networks import dense, image, initializers, transformer

# name: (dtype of the parameters, jax_default_matmul_precision)
PRECISIONS = {
    "float32": ("float32", "highest"),
    "tensor float": ("float32", "default"),
    "bfloat16": ("bfloat16", "default"),
}
SQUARE = {False: 8192, True: 64}  # rows of the matrix product, tiny or not


def language(tiny):
    """(network, tokens [N, T], loss(outputs, tokens)): next tokens of random text."""
    depth, heads, width, vocabulary, shape = (2, 2, 16, 31, (2, 8)) if tiny else (12, 12, 768, 50257, (8, 512))
    law = initializers.variance_scaling(1.0)
    stack = transformer.blocks(
        depth=depth, heads=heads, head_width=width // heads, mlp_width=4 * width, query_key_weights=law,
        value_weights=law, mlp_weights=law, activation=activations.gelu, norm="pre", mask="causal",
    )  # fmt: skip
    network = transformer.language_model(
        stack, vocabulary=vocabulary, width=width, embedding_variance=4e-4, tied=True, positions="learned",
        positions_variance=4e-4,
    )  # fmt: skip
    tokens = np.random.default_rng(0).integers(0, vocabulary, shape)
    return network, (tokens, np.roll(tokens, -1, 1)), entropy


def pictures(tiny):
    """(network, (images, labels), loss)"""
    random = np.random.default_rng(0)
    if tiny:
        network, shape = image.lenet5(), (4, 32, 32, 1)
    else:
        network, shape = image.alexnet(), (64, 224, 224, 3)
    return network, (random.standard_normal(shape, np.float32), random.integers(0, 10, shape[0])), entropy


MODELS = {"transformer": language, "AlexNet": pictures}


def entropy(outputs, labels):
    """Cross-entropy in float32."""
    return optax.softmax_cross_entropy_with_integer_labels(outputs.astype(jnp.float32), labels).mean()


def seconds(call, rounds):
    """(seconds of the first call, median of the rounds after it, what came)."""

    def once():
        begin = time.perf_counter()
        found = jax.block_until_ready(call())
        return time.perf_counter() - begin, found

    first, found = once()
    return first, float(np.median([once()[0] for _ in range(rounds)])), found


def rate(dtype, size, rounds):
    """Multiplications and additions a second of a matrix product of this many rows and columns."""
    draw = np.random.default_rng(0).standard_normal((size, size), np.float32)
    matrix = jnp.asarray(draw, dtype)
    product = jax.jit(lambda a: a @ a)
    return 2 * size**3 / seconds(lambda: product(matrix), rounds)[1]


def cast(tree, dtype):
    """The floating leaves in another type, on the device."""
    floats = lambda leaf: jnp.issubdtype(jnp.result_type(leaf), jnp.floating)  # noqa: E731
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype if floats(leaf) else None), tree)


def problem(name, dtype, tiny):
    """(apply, params, batch, loss(params, batch), loss of outputs)"""
    network, (x, y), of_outputs = MODELS[name](tiny)
    params = cast(network.init(jax.random.key(0), x[:1]), dtype)
    batch = cast((x, y), dtype)

    def loss(params, batch):
        return of_outputs(network.apply(params, batch[0]), batch[1])

    return network.apply, params, batch, loss, of_outputs


def calls(name, dtype, tiny):
    """{what: a call} for one network; the gradient first."""
    apply, params, batch, loss, of_outputs = problem(name, dtype, tiny)
    slope = jax.jit(jax.grad(loss))
    product = jax.jit(lambda p, b, v: jax.jvp(lambda q: jax.grad(loss)(q, b), (p,), (v,))[1])
    few, of_batch = jax.tree.map(lambda leaf: leaf[:2], batch), lambda out: of_outputs(out, batch[1])
    found = {
        "gradient": lambda: slope(params, batch),
        "Hessian product": lambda: product(params, batch, params),
        "probe": lambda: layers.probe(apply, params, batch[0], loss=of_batch).value,
    }
    if dtype == "float32":
        found |= {
            "5 eigenvalues": lambda: curvature.top_eigenvalues(
                loss, params, batch, k=5, key=jax.random.key(0), max_matvecs=60, reduction="mean").values,
            "tangent kernel, 2 examples": lambda: kernels.ntk(apply, params, few[0]),
            "audit": lambda: audit.examine(
                apply, params, batch, loss=of_outputs, optimizer="adam", learning_rate=3e-4, steps=1000,
                key=jax.random.key(0)).probability,
        }  # fmt: skip
    flops = slope.lower(params, batch).compile().cost_analysis() or {}
    return found, float((flops[0] if isinstance(flops, list) else flops).get("flops", np.nan)), params


def timed(name, precision, tiny, rounds):
    """Rows of one network in one precision; a call that fails is a row that says so."""
    dtype, matmul = PRECISIONS[precision]
    with jax.default_matmul_precision(matmul):
        best = rate(dtype, SQUARE[tiny], rounds)
        found, flops, params = calls(name, dtype, tiny)
        count, gradient = sum(leaf.size for leaf in jax.tree.leaves(params)), np.nan
        for what, call in found.items():
            row = {"network": name, "parameters": count, "precision": precision, "what": what, "rate": best}
            try:
                few = 1 if what in ("audit", "5 eigenvalues") else rounds
                first, middle, _ = seconds(call, few)
            except Exception as error:
                yield row | {"problem": f"{type(error).__name__}: {str(error).splitlines()[0][:100]}"}
                continue
            gradient = middle if what == "gradient" else gradient
            share = flops / middle / best if what == "gradient" else np.nan
            yield row | {"first": first, "seconds": middle, "gradients": middle / gradient, "of_rate": share}
        jax.clear_caches()


def numerics():
    """{quantity: (params, x) -> array} of a tanh network of 20 layers, 64 wide."""
    network = dense.network(widths=[64] * 22, activation=activations.tanh, weight_variance=1.5, bias_variance=0.05)
    square = lambda params, x: jnp.mean(network.apply(params, x) ** 2)  # noqa: E731
    flat = lambda tree: jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(tree)])  # noqa: E731
    return network, {
        "outputs": network.apply,
        "gradient": lambda p, x: flat(jax.grad(square)(p, x)),
        "Hessian product": lambda p, x: flat(jax.jvp(lambda q: jax.grad(square)(q, x), (p,), (p,))[1]),
        "singular values of the Jacobian": lambda p, x: jacobian.singular_values(network, p, x[:1], start=0, stop=20),
        "tangent kernel": lambda p, x: kernels.ntk(network.apply, p, x),
    }


def errors():
    """Rows {quantity: {precision: relative error}} against float64 on the processor."""
    with jax.enable_x64(True):
        return _errors()


def _errors():
    network, quantities = numerics()
    x = np.random.default_rng(1).standard_normal((8, 64))
    with jax.default_device(jax.devices("cpu")[0]):
        params = jax.tree.map(np.asarray, network.init(jax.random.key(0), x))
        right = {name: np.asarray(call(params, x), np.float64) for name, call in quantities.items()}
    found = {name: {} for name in quantities}
    for precision, (dtype, matmul) in {"float64": ("float64", "highest"), **PRECISIONS}.items():
        with jax.default_matmul_precision(matmul):
            given = cast((params, x), dtype)
            for name, call in quantities.items():
                try:
                    away = np.abs(np.asarray(call(*given), np.float64) - right[name]).max()
                    found[name][precision] = float(away / np.abs(right[name]).max())
                except Exception as error:  # no such factorization in this type, say
                    found[name][precision] = f"{type(error).__name__}: {str(error).splitlines()[0][:60]}"
    return found


def said(row):
    """A line of the table."""
    place = f"{row['network']:12s} {row['precision']:13s} {row['what']:27s}"
    if "problem" in row:
        return f"{place} {row['problem']}"
    of_rate = "" if np.isnan(row["of_rate"]) else f"{row['of_rate']:8.2f}"
    return f"{place} {1e3 * row['seconds']:10.2f} {row['gradients']:10.2f} {row['first']:9.2f} {of_rate}"


def main(arguments):
    made = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__.splitlines()[0])
    made.add_argument("--json", metavar="FILE", help="rows as they come")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--tiny", action="store_true", help="sizes that take no time: does everything run?")
    made.add_argument("--here", action="store_true", help="whatever device there is")
    wanted, device = made.parse_args(arguments), jax.devices()[0]
    if device.platform == "cpu" and not wanted.here:
        print("no accelerator: jax sees the processor alone, and nothing is measured")
        return 0
    content = runner.machine() | {"device": device.device_kind, "jax": jax.__version__, "rows": [], "errors": {}}
    print(f"{device.device_kind}, jax {jax.__version__}")
    print("".ljust(54), "        ms  gradients  first, s of rate")
    for name in MODELS:
        for precision in PRECISIONS:
            for row in timed(name, precision, wanted.tiny, wanted.rounds):
                content["rows"].append(row)
                print(said(row), flush=True)
                if wanted.json:
                    runner.save(wanted.json, content)
    content["errors"] = errors()
    print("\nrelative errors against float64 on the processor")
    for name, by in content["errors"].items():
        told = [f"{key} {value if isinstance(value, str) else f'{value:.1e}'}" for key, value in by.items()]
        print(f"{name:32s} {', '.join(told)}")
    if wanted.json:
        runner.save(wanted.json, content)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
