"""The loss in a plane of two directions, 51 x 51 points, of an MLP."""

import numpy as np

from benchmarks.rows import Run, Side, Workload


def problem(points, examples):
    rng = np.random.default_rng(0)
    shapes = ((784, 128), (128, 128), (128, 10))
    draw = lambda scale: [(scale * rng.standard_normal(s) / s[0] ** 0.5).astype(np.float32) for s in shapes]  # noqa: E731
    x, y = rng.standard_normal((examples, 784), np.float32), rng.integers(0, 10, examples).astype(np.int32)
    return {
        "params": draw(1.4),
        "u": draw(1.0),
        "v": draw(1.0),
        "batch": (x, y),
        "line": np.linspace(-1, 1, points, dtype=np.float32),
    }


def loss(params, batch):
    import jax
    import jax.numpy as jnp

    x, labels = batch
    for weight in params[:-1]:
        x = jax.nn.relu(x @ weight)
    z = jax.nn.log_softmax(x @ params[-1])
    return -jnp.mean(jnp.take_along_axis(z, labels[:, None], axis=1))


def numdl(p):
    """`analysis.landscape.plane`"""
    from numdl.analysis import landscape

    def call():
        return landscape.plane(loss, p["params"], p["batch"], p["u"], p["v"], first=p["line"], second=p["line"]).values

    return Run(call, entries)


def limit(p):
    """One program, a map over the points."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    @jax.jit
    def program(line, params, u, v, batch):
        def one(place):
            return loss([w + place[0] * a + place[1] * b for w, a, b in zip(params, u, v)], batch)

        return lax.map(one, jnp.stack(jnp.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)).reshape(
            line.size, -1
        )

    return Run(lambda: program(p["line"], p["params"], p["u"], p["v"], p["batch"]), entries)


def jit_loop(p):
    """The jitted loss at one point after the other."""
    import jax

    move = jax.jit(lambda s, t, params, u, v: [w + s * a + t * b for w, a, b in zip(params, u, v)])
    value = jax.jit(loss)

    def call():
        return np.array(
            [[float(value(move(s, t, p["params"], p["u"], p["v"]), p["batch"])) for t in p["line"]] for s in p["line"]]
        )

    return Run(call, entries)


def torch_loop(p):
    """Parameters overwritten point after point, as the loss-landscape scripts do."""
    import torch

    params, u, v = ([torch.from_numpy(w) for w in p[name]] for name in ("params", "u", "v"))
    x, labels = torch.from_numpy(p["batch"][0]), torch.from_numpy(p["batch"][1]).long()

    def one(s, t):
        first, second, last = (w + s * a + t * b for w, a, b in zip(params, u, v))
        return float(torch.nn.functional.cross_entropy(torch.relu(torch.relu(x @ first) @ second) @ last, labels))

    def call():
        with torch.no_grad():
            return np.array([[one(float(s), float(t)) for t in p["line"]] for s in p["line"]])

    return Run(call, entries)


def entries(values):
    return np.asarray(values)[0, :8].tolist()


WORKLOADS = (
    Workload(
        "loss in a plane",
        problem,
        (
            Side("numdl", numdl),
            Side("limit: one program", limit),
            Side("jit loop", jit_loop),
            Side("torch loop", torch_loop, "torch"),
        ),
        sizes={"points": 51, "examples": 256},
        tiny={"points": 3, "examples": 4},
        laws={"points": 2, "examples": 1},
        agree=1e-3,
    ),
)
