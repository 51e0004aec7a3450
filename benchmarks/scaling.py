"""Cost laws: how the time and memory of the main analyses grow with each size, beside what the mathematics demands.

    python benchmarks/scaling.py [--rounds 3] [--only gradient product ...] [--width 128] [--batch 128] [--depth 8]

A dense tanh network, float32. One size is doubled twice, the others stay; the slope is that of log cost against log
size over the last doubling. Time is processor time, the least of the rounds; memory is what XLA plans for temporaries
(`numdl.parallel.needs`). The last table compiles one Hessian product for 1 to 8 devices and adds up what its
collectives carry. These devices are simulated on this host: the bytes are those of real ones, times would not be.
"""

import argparse
import os
import re
import time

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from numdl import parallel
from numdl.analysis import curvature, kernels, layers

SIZES = ("width", "depth", "batch")
# Exponents of (width n, depth L, batch N) at large sizes, of the time and of what is held beside parameters and data.
DEMANDED = {
    "gradient": ((2, 1, 1), (1, 1, 1)),  # 6 N P operations, P = L n^2; activations N L n
    "product": ((2, 1, 1), (1, 1, 1)),  # twice a gradient
    "20 lanczos steps": ((2, 1, 1), (2, 1, 0)),  # a product and 4 m P; m vectors of P numbers
    "probe": ((2, 1, 1), (1, 1, 1)),  # a gradient
    "kernel": ((2, 1, 2), (1, 1, 1)),  # Gram matrices of inputs and cotangents of each layer, N^2 n L, N L n^2 before
    "training step": ((2, 1, 1), (1, 1, 1)),  # a gradient and 10 P
}
BYTES = {"f32": 4, "s32": 4, "pred": 1, "u32": 4, "f64": 8, "bf16": 2}


def problem(width, depth, batch):
    """(parameters, batch): hidden layers stacked, for a scan."""
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.standard_normal(shape, np.float32))  # noqa: E731
    params = {"hidden": draw(depth, width, width) / width**0.5, "readout": draw(width, 10) / width**0.5}
    return params, (draw(batch, width), draw(batch, 10))


def apply(params, x):
    state, _ = lax.scan(lambda x, weights: (jnp.tanh(x @ weights), None), x, params["hidden"])
    return state @ params["readout"]


def calls(params, batch):
    """{name: (function to time, arguments, function whose memory is planned or None)}"""

    def loss(params, batch):
        return jnp.mean((apply(params, batch[0]) - batch[1]) ** 2)

    gradient = jax.grad(loss)
    product = lambda v, p, b: jax.jvp(lambda q: gradient(q, b), (p,), (v,))[1]  # noqa: E731
    step = lambda p, b: jax.tree.map(lambda w, g: w - 1e-3 * g, p, gradient(p, b))  # noqa: E731
    probed = lambda p, b: layers.probe(apply, p, b[0], loss=lambda out: jnp.mean((out - b[1]) ** 2))  # noqa: E731
    lanczos = lambda p, b: curvature.top_eigenvalues(  # noqa: E731
        loss, p, b, key=jax.random.key(0), k=1, max_matvecs=20, tolerance=1e-12, verify=False)  # fmt: skip
    kernel = lambda p, b: kernels.ntk(apply, p, b[0])  # noqa: E731
    return {
        "gradient": (jax.jit(gradient), (params, batch), gradient),
        "product": (jax.jit(product), (params, params, batch), product),
        "20 lanczos steps": (lanczos, (params, batch), None),
        "probe": (probed, (params, batch), probed),
        "kernel": (kernel, (params, batch), kernel),
        "training step": (jax.jit(step), (params, batch), step),
    }


def seconds(function, arguments, rounds):
    """Processor time of a call that compiles nothing, the least of the rounds."""
    jax.block_until_ready(jax.tree.leaves(function(*arguments)))
    found = []
    for _ in range(rounds):
        begin = time.process_time()
        jax.block_until_ready(jax.tree.leaves(function(*arguments)))
        found.append(time.process_time() - begin)
    return min(found)


def held(planned, arguments):
    """Bytes of temporaries; nan where a call is no single program."""
    try:
        return float(parallel.needs(planned, *arguments).temporaries) if planned else np.nan
    except (TypeError, ValueError, jax.errors.JAXTypeError):
        return np.nan


def law(name, size, base, rounds):
    """(seconds [3], bytes [3], slopes of the last doubling) of one analysis against one size."""
    times, sizes = [], []
    for factor in (1, 2, 4):
        given = dict(base) | {size: base[size] * factor}
        function, arguments, planned = calls(*problem(**given))[name]
        times.append(seconds(function, arguments, rounds))
        sizes.append(held(planned, arguments))
        jax.clear_caches()
    slope = lambda values: float(np.log2(values[2] / values[1])) if values[1] > 0 else np.nan  # noqa: E731
    return times, sizes, slope(times), slope(sizes)


def carried(text):
    """{collective: bytes that arrive on a device} of a compiled program."""
    found = {}
    text = re.sub(r"/\*index=\d+\*/", "", text)
    pattern = r"= (\(?[^=]*?\)?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\("
    for shapes, kind in re.findall(pattern, text):
        count = sum(BYTES.get(dtype, 4) * int(np.prod([int(n) for n in dims.split(",") if n], dtype=np.int64))
                    for dtype, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes))  # fmt: skip
        found[kind] = found.get(kind, 0) + count
    return found


def communication(base):
    """Lines: bytes of collectives in one Hessian product, per parameter, and temporaries on each device.

    The layers stand one after the other, as a collective inside of a loop would be counted once.
    """
    _, batch = problem(**base)
    width = base["width"]
    params = [jnp.ones((width, width)) / width] * base["depth"] + [jnp.ones((width, 10)) / width]

    def loss(params, batch):
        state = batch[0]
        for weights in params[:-1]:
            state = jnp.tanh(state @ weights)
        return jnp.mean((state @ params[-1] - batch[1]) ** 2)

    product = lambda v, p, b: jax.jvp(lambda q: jax.grad(loss)(q, b), (p,), (v,))[1]  # noqa: E731
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    for devices in (1, 2, 4, 8):
        over = parallel.mesh(devices=jax.devices()[:devices])
        data = parallel.shard_batch(batch, over)
        for kind, spread in (("replicated", parallel.replicate), ("sharded", parallel.shard_parameters)):
            own = spread(params, over)
            places = jax.tree.map(lambda leaf: leaf.sharding, own)
            made = jax.jit(product, out_shardings=places).lower(own, own, data).compile()
            moved = carried(made.as_text())
            memory = made.memory_analysis()
            parts = ", ".join(f"{name} {size / count / 4:.2f}" for name, size in sorted(moved.items())) or "none"
            yield (f"{devices:7d}  {kind:10s}  {memory.argument_size_in_bytes / 2**20:9.2f}  "
                   f"{memory.temp_size_in_bytes / 2**20:9.2f}  {parts}")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(DEMANDED), choices=list(DEMANDED))
    parser.add_argument("--no-devices", action="store_true", help="leave the last table out")
    for name, default in {"width": 128, "depth": 8, "batch": 128}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    wanted = parser.parse_args()
    base = {name: getattr(wanted, name) for name in SIZES}
    print(f"base {base}, x1 x2 x4; processor ms; slopes of the last doubling: measured (demanded)")
    print(f"{'analysis':16s} {'size':6s} {'ms':>26s} {'time':>12s} {'MiB of temporaries':>26s} {'memory':>12s}")
    for name in wanted.only:
        for place, size in enumerate(SIZES):
            times, sizes, t, m = law(name, size, base, wanted.rounds)
            shown = "  ".join(f"{1e3 * value:.1f}" for value in times)
            bytes_ = "  ".join(f"{value / 2**20:.1f}" for value in sizes)
            time_law, memory_law = (DEMANDED[name][kind][place] for kind in (0, 1))
            print(f"{name:16s} {size:6s} {shown:>26s} {f'{t:.2f} ({time_law})':>12s} {bytes_:>26s} "
                  f"{f'{m:.2f} ({memory_law})':>12s}", flush=True)  # fmt: skip
    if wanted.no_devices:
        return
    print("\none Hessian product; MiB on each device; what collectives bring to a device, in numbers per parameter")
    print("devices  parameters  arguments  temporaries  collectives")
    for line in communication(base):
        print(line, flush=True)


if __name__ == "__main__":
    main()
