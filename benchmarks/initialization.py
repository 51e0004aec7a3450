"""The initialization sweep: |K_L ... K_1 y| over random matrices, a few wide draws or many layers.

The hand-written kernel draws with a counter hash (two rounds of a 32-bit mixer) in place of jax's generator, and
applies a Haar matrix in law, as |z| times a random direction: only one vector sees it.
"""

import functools

import numpy as np

from benchmarks.rows import Run, Side, Workload

SHALLOW = ("normal", "uniform", "rademacher")
DEEP = ("normal", "he", "uniform", "truncated", "orthogonal")


def problem(laws, **sizes):
    """Sizes, laws, a vector y."""
    return {"laws": laws, "y": np.random.default_rng(0).standard_normal(sizes["width"]).astype(np.float32), **sizes}


def numdl(p):
    """`analysis.jacobian.product_norm`, law by law."""
    import jax

    from numdl.analysis import jacobian
    from numdl.networks import initializers as given

    made = {
        "normal": given.variance_scaling(1.0),
        "he": given.variance_scaling(2.0),
        "uniform": given.variance_scaling(1 / 3, law="uniform"),
        "rademacher": given.variance_scaling(1.0, law="rademacher"),
        "truncated": given.variance_scaling(1.0, law="truncated_normal"),
        "orthogonal": given.orthogonal(1.0),
    }
    sizes = {name: p[name] for name in ("width", "depth", "draws")}

    def call():
        return [
            jacobian.product_norm(jax.random.key(0), sampler=made[law], y=p["y"], **sizes).log_ratio[:, -1]
            for law in p["laws"]
        ]

    return Run(call, means)


def limit(p):
    """One program: a counter hash, one product at a time."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    n = p["width"]
    counter = np.arange(n * n, dtype=np.uint32).reshape(n, n)

    def bits(seed, places):
        x = places * np.uint32(0x9E3779B9) + seed
        for _ in range(2):
            x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
            x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
            x = x ^ (x >> 16)
        return x

    def uniform(seed, places):
        return (bits(seed, places) >> 8).astype(jnp.float32) * np.float32(2**-24) + np.float32(2**-25)

    def normal(seed, places):
        return np.float32(2**0.5) * lax.erf_inv(2 * uniform(seed, places) - 1)

    def truncated(seed, places):
        return np.float32(2**0.5 / 0.8796) * lax.erf_inv(0.9545 * (2 * uniform(seed, places) - 1))

    entries = {
        "normal": normal,
        "he": lambda *given: np.float32(2**0.5) * normal(*given),
        "uniform": lambda *given: 2 * uniform(*given) - 1,
        "rademacher": lambda *given: jnp.where(bits(*given) >> 31, 1.0, -1.0).astype(jnp.float32),
        "truncated": truncated,
    }

    def layer(law, z, seed):
        if law == "orthogonal":
            direction = normal(seed, counter[0])
            return direction * (jnp.linalg.norm(z) / jnp.linalg.norm(direction))
        return z @ (entries[law](seed, counter) / np.float32(n**0.5))

    def chain(law, y, seeds):
        def step(carry, seed):
            z, total = carry
            z = layer(law, z, seed)
            size = jnp.sum(z**2)
            return (z * lax.rsqrt(size), total + jnp.log(size)), None

        start = y / jnp.linalg.norm(y), jnp.zeros((), jnp.float32)
        return lax.scan(step, start, seeds)[0][1]

    @jax.jit
    def program(y, seeds):
        return [lax.map(functools.partial(chain, law, y), seeds + np.uint32(k)) for k, law in enumerate(p["laws"])]

    seeds = np.random.default_rng(1).integers(0, 2**32, (p["draws"], p["depth"]), dtype=np.uint32)
    return Run(lambda: program(p["y"], seeds), means)


def numpy_loop(p):
    """A loop over draws and layers."""
    n = p["width"]

    def haar(rng):
        q, r = np.linalg.qr(rng.standard_normal((n, n), np.float32))
        return q * np.sign(np.diagonal(r))

    draw = {
        "normal": lambda rng: rng.standard_normal((n, n), np.float32) / np.float32(n**0.5),
        "he": lambda rng: rng.standard_normal((n, n), np.float32) * np.float32((2 / n) ** 0.5),
        "uniform": lambda rng: (2 * rng.random((n, n), np.float32) - 1) / np.float32(n**0.5),
        "rademacher": lambda rng: (2 * rng.integers(0, 2, (n, n), np.int8) - 1) / np.float32(n**0.5),
        "truncated": functools.partial(redrawn, n),
        "orthogonal": haar,
    }
    return Run(lambda: [loop(p, functools.partial(draw[law], np.random.default_rng(0))) for law in p["laws"]], means)


def redrawn(n, rng):
    """Normals beyond two deviations are drawn anew."""
    x = rng.standard_normal((n, n), np.float32)
    while (far := np.abs(x) > 2).any():
        x[far] = rng.standard_normal(far.sum(), np.float32)
    return x / np.float32(0.8796 * n**0.5)


def loop(p, draw):
    """ln |K_L ... K_1 y|^2 / |y|^2 of every draw, layer after layer."""
    found = []
    for _ in range(p["draws"]):
        z, total = p["y"] / np.linalg.norm(p["y"]), 0.0
        for _ in range(p["depth"]):
            z = draw() @ z
            size = float(np.sum(z**2))
            z, total = z / np.float32(size**0.5), total + np.log(size)
        found.append(total)
    return np.array(found)


def torch_loop(p):
    """The same loop with torch.nn.init, which fills one matrix in place."""
    import torch

    n = p["width"]
    matrix, start = torch.empty(n, n), torch.from_numpy(p["y"])
    fill = {
        "normal": lambda: torch.nn.init.normal_(matrix, std=n**-0.5),
        "he": lambda: torch.nn.init.normal_(matrix, std=(2 / n) ** 0.5),
        "uniform": lambda: torch.nn.init.uniform_(matrix, -(n**-0.5), n**-0.5),
        "rademacher": lambda: matrix.bernoulli_(0.5).mul_(2 * n**-0.5).sub_(n**-0.5),
        "truncated": lambda: torch.nn.init.trunc_normal_(
            matrix, std=1 / (0.8796 * n**0.5), a=-2 / (0.8796 * n**0.5), b=2 / (0.8796 * n**0.5)
        ),
        "orthogonal": lambda: torch.nn.init.orthogonal_(matrix),
    }

    def one(draw):
        z, total = start / start.norm(), 0.0
        for _ in range(p["depth"]):
            z = draw() @ z
            size = float(z.square().sum())
            z, total = z / size**0.5, total + np.log(size)
        return total

    def call():
        with torch.no_grad():
            return [np.array([one(fill[law]) for _ in range(p["draws"])]) for law in p["laws"]]

    return Run(call, means)


def means(result):
    """The mean over draws, law by law."""
    return [float(np.mean(np.asarray(one))) for one in result]


SIDES = (
    Side("numdl", numdl),
    Side("limit: counter hash, one program", limit),
    Side("numpy loop", numpy_loop),
    Side("torch loop, nn.init", torch_loop, "torch"),
)
WORKLOADS = (
    Workload(
        "three layers, three laws",
        functools.partial(problem, SHALLOW),
        SIDES,
        sizes={"width": 100, "depth": 3, "draws": 1000},
        tiny={"width": 8, "depth": 3, "draws": 20},
        laws={"width": 2, "depth": 1, "draws": 1},
    ),
    Workload(
        "100 layers, five laws",
        functools.partial(problem, DEEP),
        SIDES,
        sizes={"width": 256, "depth": 100, "draws": 8},
        tiny={"width": 8, "depth": 5, "draws": 3},
        laws={"width": 2, "depth": 1, "draws": 1},
    ),
)
