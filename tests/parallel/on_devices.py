"""What eight devices compute beside what one does: python on_devices.py CHECK ... prints one JSON object.

Each check gives numbers that ought to be small, and places that ought to be those of the parameters.
"""

import json
import os
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

jax.config.update("jax_enable_x64", True)
MESH = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
SPECS = {
    "hidden": PartitionSpec(None, "data"),
    "bias": PartitionSpec("model"),
    "readout": PartitionSpec(("model", "data"), None),
    "shift": PartitionSpec(),
}


def loss(params, batch):
    x, y = batch
    return jnp.mean((apply(params, x) - y) ** 2)


def apply(params, x):
    hidden = jnp.tanh(x @ params["hidden"] + params["bias"][None])
    return hidden @ params["readout"] + params["shift"][None]


def problem(dtype=np.float64):
    """(parameters and batch on one device, both on all)."""
    random = np.random.default_rng(0)
    draw = lambda *shape: random.normal(size=shape).astype(dtype) / 4  # noqa: E731
    params = {"hidden": draw(6, 8), "bias": draw(8), "readout": draw(8, 3), "shift": draw(3)}
    batch = (draw(24, 6), draw(24, 3))
    one = jax.tree.map(jnp.asarray, (params, batch))
    places = {name: NamedSharding(MESH, spec) for name, spec in SPECS.items()}
    return one, (jax.device_put(params, places), jax.device_put(batch, NamedSharding(MESH, PartitionSpec("data"))))


def apart(a, b):
    """The largest difference of two trees, relative to the largest entry."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    pairs = [(np.asarray(x, np.float64), np.asarray(y, np.float64)) for x, y in pairs]
    return max(float(np.abs(x - y).max() / max(np.abs(y).max(), 1e-300)) for x, y in pairs)


def placed(tree):
    """Whether each leaf lies as the parameters do, leading axes whole."""
    wanted = {name: NamedSharding(MESH, spec).shard_shape(leaf.shape[-len(spec) or -1 :])
              for (name, spec), leaf in zip(SPECS.items(), (tree[name] for name in SPECS))}  # fmt: skip
    return all(tuple(leaf.sharding.shard_shape(leaf.shape)[-len(wanted[n]) :]) == wanted[n] for n, leaf in tree.items())


def draws():
    """Random vectors are those of one device, to the last bit, in both precisions."""
    import dataclasses

    from numdl.krylov import _places, _vectors, trace

    found = {}
    for dtype in (np.float32, np.float64):
        one, many = problem(dtype)
        layout = _vectors.layout("params", one[0])
        spread = dataclasses.replace(layout, places=_places.places(jax.tree.leaves(many[0])))
        for name, draw in {"normal": _places.normal, "signs": trace._signs}.items():
            there = layout.ravel(spread.unravel(draw(jax.random.key(1), spread)))
            found[f"{name} {np.dtype(dtype)}"] = apart(there, draw(jax.random.key(1), layout))
        program = jax.jit(lambda key, spread=spread: _places.normal(key, spread)).lower(jax.random.key(0))
        found["gathered"] = program.compile().as_text().count("all-gather(")
        back = spread.unravel(spread.ravel(many[0]))
        found["back"] = apart(back, one[0])
        found["placed"] = placed(back)
    return found


def top(given, **more):
    from numdl.analysis import curvature

    return curvature.top_eigenvalues(loss, *given, key=jax.random.key(0), k=2, **more)


def eigenvalues():
    one, many = problem()
    want, got = top(one), top(many)
    signs = np.sign(
        sum(np.asarray(a * b).reshape(2, -1).sum(1) for a, b in zip(*map(jax.tree.leaves, (got.vectors, want.vectors))))
    )
    turned = {name: leaf * signs.reshape(-1, *[1] * (leaf.ndim - 1)) for name, leaf in got.vectors.items()}
    return {
        "values": apart(got.values, want.values),
        "vectors": apart(turned, want.vectors),
        "placed": placed(got.vectors),
    }


def warm_starts():
    one, many = problem()
    want = [top(one, deflate=jax.tree.map(lambda leaf: leaf[:1], top(one).vectors)), top(one, start=top(one).vectors)]
    got = [
        top(many, deflate=jax.tree.map(lambda leaf: leaf[:1], top(many).vectors)),
        top(many, start=top(many).vectors),
    ]
    return {"values": max(apart(a.values, b.values) for a, b in zip(got, want)), "placed": placed(got[1].vectors)}


def moments():
    from numdl.analysis import curvature

    one, many = problem()
    found = {}
    for method in ("hutchinson", "hutch++", "xtrace"):
        values = [
            curvature.trace(loss, *g, key=jax.random.key(2), num_matvecs=12, method=method).value for g in (one, many)
        ]
        found[method] = apart(values[1], values[0])
    diagonals = [curvature.diagonal(loss, *given, key=jax.random.key(3), num_matvecs=4).value for given in (one, many)]
    density = [curvature.spectral_density(loss, *given, key=jax.random.key(4), num_matvecs=8, num_probes=2).nodes
               for given in (one, many)]  # fmt: skip
    return found | {"diagonal": apart(*diagonals), "density": apart(*density), "placed": placed(diagonals[1])}


def helpers():
    """Meshes, batches, parameters, seeds, checkpoints, needs."""
    import tempfile

    from numdl import parallel

    over = parallel.mesh({"data": 4, "model": -1})
    params = {"w": np.arange(64.0 * 6).reshape(64, 6), "v": np.ones((6, 40)), "b": np.ones(3), "key": jax.random.key(3)}
    spread = parallel.shard_parameters(params, over, least=100)
    parts = {name: leaf.sharding.shard_shape(leaf.shape) for name, leaf in spread.items()}
    batch = parallel.shard_batch((np.ones((8, 2)), np.arange(8)), over)
    keys = jax.random.split(jax.random.key(0), 11)  # 4 devices along the axis do not divide it
    noise = parallel.over_seeds(jax.random.normal, keys, mesh=over)
    sums = parallel.over_seeds(lambda key, x: {"s": x.sum() * jax.random.uniform(key)}, keys, params["w"], mesh=over)
    found = {
        "parts": parts != {"w": (16, 6), "v": (6, 10), "b": (3,), "key": ()},
        "batch": [leaf.sharding.shard_shape(leaf.shape) for leaf in batch] != [(2, 2), (2,)],
        "noise": apart(noise, jax.vmap(jax.random.normal)(keys)),
        "sums": apart(sums["s"], params["w"].sum() * jax.vmap(jax.random.uniform)(keys)),
        "numpy": not isinstance(noise, np.ndarray),
        "gathered": apart(parallel.gather(spread)["w"], params["w"]),
    }
    orbax = parallel._checkpoints._orbax
    for name, reader in {"orbax": orbax, "plain": lambda: None}.items():
        parallel._checkpoints._orbax = reader
        with tempfile.TemporaryDirectory() as folder:
            for step in (1, 2, 3):
                parallel.save(
                    folder, step, jax.tree.map(lambda leaf, s=step: leaf if leaf.ndim == 0 else s * leaf, spread)
                )
            step, back = parallel.restore(folder, spread)
            kept = sorted(
                path.name.removesuffix(".npz")
                for path in parallel._checkpoints._found(parallel._checkpoints.pathlib.Path(folder))
            )
        found[f"{name} kept"] = (step, kept) != (3, ["2", "3"])
        found[f"{name} values"] = apart([back["w"], back["v"]], [3 * params["w"], 3 * params["v"]])
        found[f"{name} places"] = any(back[k].sharding != spread[k].sharding for k in ("w", "v", "b"))
        found[f"{name} keys"] = not jnp.array_equal(
            jax.random.key_data(back["key"]), jax.random.key_data(params["key"])
        )
    needed = parallel.needs(lambda w: w + 1.0, jax.ShapeDtypeStruct((64, 6), np.float64, sharding=spread["w"].sharding))
    found["needs"] = (needed.arguments, needed.devices) != (16 * 6 * 8, 8)
    return {name: float(value) for name, value in found.items()}


def planned():
    """What a call needs is the share of one device, where devices have memories of their own."""
    from unittest import mock

    from numdl.analysis import curvature

    one, many = problem()
    plans = []
    for backend in ("cpu", "gpu"):
        with mock.patch.object(jax, "default_backend", lambda backend=backend: backend):
            plans.append([curvature.needs(curvature.hessian(loss, *given), basis=10) for given in (one, many)])
    (host, hosts), (alone, shared) = plans
    return {
        "host": float(hosts.total != host.total),
        "vector": abs(8 * shared.vector / alone.vector - 1) / 1e12,  # whole bytes
        "basis": float(not 7.9 < alone.basis / shared.basis < 8.1),
        "product": float(not 3.9 < alone.product / shared.product < 4.1),  # examples lie along one axis only
    }


def probe():
    """The probe, lengths, tangent kernels, gradients and products of one device."""
    from numdl.analysis import curvature, kernels, layers

    one, many = problem()
    flows = [layers.probe(apply, p, x, loss=lambda out, y=y: jnp.mean((out - y) ** 2)) for p, (x, y) in (one, many)]
    ntk = [kernels.ntk(apply, p, x) for p, (x, _) in (one, many)]
    slopes = [jax.grad(loss)(*given) for given in (one, many)]
    products = [curvature.hessian(loss, *given)(given[0]) for given in (one, many)]
    return {
        "states": apart(flows[1].state_rms, flows[0].state_rms),
        "gradients": apart(flows[1].state_gradient_rms, flows[0].state_gradient_rms),
        "kernels": apart(ntk[1], ntk[0]),
        "slopes": apart(slopes[1], slopes[0]),
        "products": apart(products[1], products[0]),
    }


def training():
    """`fit` on a sharded batch with sharded parameters, which stay where they are."""
    import optax

    from numdl.optimize import train

    one, many = problem()
    ends = [train.fit(loss, p, optax.adam(1e-2), train.whole(batch), steps=20) for p, batch in (one, many)]
    data = [train.resident(batch, size=8, key=jax.random.key(5)) for _, batch in (one, many)]
    shuffled = [train.fit(loss, g[0], optax.sgd(1e-2), d, steps=12) for g, d in zip((one, many), data)]
    return {
        "params": apart(ends[1][0], ends[0][0]),
        "loss": apart(ends[1][1].loss, ends[0][1].loss),
        "shuffled": apart(shuffled[1][0], shuffled[0][0]),
        "placed": placed(ends[1][0]),
    }


CHECKS = {
    check.__name__: check for check in (draws, eigenvalues, warm_starts, moments, helpers, planned, probe, training)
}

if __name__ == "__main__":
    print(json.dumps({name: CHECKS[name]() for name in sys.argv[1:]}))
