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


CHECKS = {check.__name__: check for check in (draws, eigenvalues, warm_starts, moments)}

if __name__ == "__main__":
    print(json.dumps({name: CHECKS[name]() for name in sys.argv[1:]}))
