"""Hessian of an MLP and of LeNet-5 on 2048 images: top 5 eigenvalues and density beside the peers, in CPU seconds.

    python -m benchmarks.curvature                              numdl and matfree; one core: taskset -c 0 python -m ...
    python -m benchmarks.curvature --torch OTHER/bin/python     and PyHessian and curvlinops, in that environment
    python -m benchmarks.curvature --models mlp --rounds 3

Every peer runs as its documentation says, float32, one thread. "error" is the largest relative error of the five
values against numdl's at a tolerance of 1e-5. LeNet's convolutions are `networks.convolutional.convolve`, for matfree
too: with `lax.conv` its compiled loop takes ten times as long on a CPU.
"""

import argparse
import json
import pathlib
import subprocess
import time

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import _curvature_peers as peers
from numdl.analysis import curvature
from numdl.networks import convolutional

STEPS = {"mlp": 100, "lenet": 10}  # Lanczos steps of the density, one probe
CHUNK = {"mlp": None, "lenet": 64}  # images at a time: so many fit into the cache


def main():
    """Print one table for each model."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", default=["mlp", "lenet"], choices=list(STEPS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--torch", help="a Python that has torch, PyHessian and curvlinops-for-pytorch")
    settings = parser.parse_args()
    if not settings.torch:
        print("PyHessian, curvlinops: left out (--torch names a Python that has them)")
    for model in settings.models:
        products(model, settings.rounds)
        top(model, settings)
        density(model, settings)


def problem(model):
    """(loss, parameters, batch) in JAX."""
    pixels, labels = peers.images()
    params = [{"kernel": jnp.asarray(w), "bias": jnp.zeros(w.shape[-1], jnp.float32)} for w in peers.weights(model)]
    return {"mlp": mlp, "lenet": lenet}[model], params, (jnp.asarray(pixels), jnp.asarray(labels))


def mlp(params, batch):
    """Cross entropy of a ReLU network."""
    return cross_entropy(affine_layers(params, batch[0].reshape(len(batch[0]), -1)), batch[1])


def lenet(params, batch):
    """Cross entropy of LeNet-5 with ReLU and mean pooling."""
    y = batch[0]
    for layer in params[:2]:
        y = jax.nn.relu(convolutional.convolve(y, layer["kernel"]) + layer["bias"].reshape(1, 1, 1, -1))
        n, height, width, channels = y.shape
        y = y.reshape(n, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
    return cross_entropy(affine_layers(params[2:], y.reshape(len(y), -1)), batch[1])


def affine_layers(params, y):
    """Dense layers with ReLU between."""
    for layer in params[:-1]:
        y = jax.nn.relu(y @ layer["kernel"] + layer["bias"].reshape(1, -1))
    return y @ params[-1]["kernel"] + params[-1]["bias"].reshape(1, -1)


def cross_entropy(z, labels):
    """Mean over the images."""
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), labels.reshape(-1, 1), axis=1))


def products(model, rounds):
    """A Hessian-vector product beside a gradient."""
    loss, params, batch = problem(model)
    gradient = jax.jit(jax.grad(loss))
    operator = curvature.hessian(loss, params, batch)
    apply = jax.jit(lambda operator, v: operator(v))
    kept = jax.jit(lambda operator: jax.linearize(operator, params)[1])(operator)
    calls = {
        "gradient": lambda: gradient(params, batch),
        "product": lambda: apply(operator, params),
        "product, linearized once": lambda: apply(kept, params),
    }
    if CHUNK[model]:
        chunked = curvature.hessian(loss, params, batch, chunk=CHUNK[model])
        calls[f"product, chunk={CHUNK[model]}"] = lambda: chunked(params)
    seconds = {name: [] for name in calls}
    for i in range(5 * rounds + 1):
        for name, call in calls.items():
            taken = clock(call)[0]
            seconds[name] += [taken] if i else []  # the first compiles
    print(f"\n{model}: Hessian-vector product\n{'':<26}{'CPU ms':>10}{'/ gradient':>12}")
    for name, taken in seconds.items():
        ratio = np.median(np.divide(taken, seconds["gradient"]))
        print(f"{name:<26}{1e3 * np.median(taken):>10.1f}{ratio:>12.2f}")


def top(model, settings):
    """The five largest eigenvalues."""
    loss, params, batch = problem(model)
    exact = curvature.top_eigenvalues(
        loss, params, batch, key=jax.random.key(9), tolerance=1e-5, chunk=CHUNK[model]
    ).values
    rows = {}
    for name, verify in (("numdl", True), ("numdl, verify=False", False)):
        rows[name] = best(
            lambda verify=verify: (
                curvature.top_eigenvalues(
                    loss, params, batch, key=jax.random.key(0), tolerance=1e-3, verify=verify, chunk=CHUNK[model]
                ).values
            ),
            settings.rounds,
        )
    rows["matfree, 40 steps"] = matfree_top(loss, params, batch, 40, settings.rounds)
    rows |= torch_rows(settings, model, "top", 100)
    report(f"{model}: top 5 eigenvalues", rows, exact)


def density(model, settings):
    """The spectral density from one start."""
    loss, params, batch = problem(model)
    steps, rows = STEPS[model], {}
    for name, full in (("numdl", False), ("numdl, reorthogonalized", True)):

        def call(full=full):
            found = curvature.spectral_density(
                curvature.hessian(loss, params, batch, chunk=CHUNK[model]),
                key=jax.random.key(0),
                num_matvecs=steps,
                num_probes=2,
                reorthogonalize=full,
            )
            return found.nodes[0][::-1]

        seconds, values = best(call, settings.rounds)
        rows[name] = (seconds / 2, values)
    rows["matfree, none"] = matfree_top(loss, params, batch, steps, settings.rounds, reortho="none")
    rows |= torch_rows(settings, model, "density", steps)
    report(f"{model}: density, {steps} steps from one start", rows, None)


def matfree_top(loss, params, batch, steps, rounds, reortho="full"):
    """matfree's Lanczos with the data as an argument, and the eigenvalues of its matrix."""
    try:
        from matfree import decomp, eig
    except ImportError:
        return None
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    start = jax.random.normal(jax.random.key(0), flat.shape, flat.dtype)

    def product(v, params, batch):
        tangent = jax.jvp(lambda p: jax.grad(loss)(p, batch), (params,), (unravel(v),))[1]
        return jax.flatten_util.ravel_pytree(tangent)[0]

    tridiagonalize = decomp.tridiag_sym(steps, reortho=reortho, materialize=True)
    if reortho == "none":
        run = jax.jit(lambda v, p, b: jnp.linalg.eigvalsh(tridiagonalize(product, v, p, b).J_small))
    else:
        solve = eig.eigh_partial(tridiagonalize)
        run = jax.jit(lambda v, p, b: solve(product, v, p, b)[0])
    return best(lambda: run(start, params, batch)[::-1], rounds)


def torch_rows(settings, model, measure, steps):
    """What the torch peers take and find, each in a process of its own."""
    rows = {}
    for peer in ("PyHessian", "curvlinops") if settings.torch else ():
        script = str(pathlib.Path(peers.__file__))
        command = [settings.torch, "-W", "ignore", script, peer, model, measure, str(steps)]
        ran = subprocess.run(command, capture_output=True, text=True)
        if ran.returncode:
            print(f"{peer}: failed ({ran.stderr.strip().splitlines()[-1:]})")
            continue
        found = json.loads(ran.stdout.strip().splitlines()[-1])
        rows[peer] = (found["seconds"], np.asarray(found["values"]))
    return rows


def report(title, rows, exact):
    """Print CPU seconds, the ratio to numdl and, for values, their largest relative error."""
    rows = {name: row for name, row in rows.items() if row is not None}
    print(f"\n{title:<42}{'CPU s':>10}{'/ numdl':>10}{'error':>12}")
    for name, (seconds, values) in rows.items():
        error = "" if exact is None else f"{np.abs(np.asarray(values)[:5] / exact - 1).max():.1e}"
        print(f"{name:<42}{seconds:>10.2f}{seconds / rows['numdl'][0]:>10.2f}{error:>12}")


def best(call, rounds):
    """(CPU seconds of the fastest round after a first that compiles, result)."""
    clock(call)
    return min((clock(call) for _ in range(rounds)), key=lambda pair: pair[0])


def clock(call):
    """(CPU seconds, result)."""
    begin = time.process_time()
    result = jax.block_until_ready(call())
    return time.process_time() - begin, result


if __name__ == "__main__":
    main()
