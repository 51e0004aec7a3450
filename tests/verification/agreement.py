"""One answer however it is asked for: compiled or not, mapped or looped, scanned or unrolled, on one CPU or two."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from numdl import activations
from numdl.analysis import curvature, layers
from numdl.analysis import gradients as measured
from numdl.krylov import lanczos
from numdl.networks import dense
from numdl.ode import integrate, schemes, tableaus
from tests.verification import Figure, below, study

LIMIT = 1e-12
ON_CPUS = 1e-6  # relative, after three hundred full-batch steps


def made(depth=3, width=5):
    """(network, params, x), the same on every stack: nothing is drawn."""
    network = dense.network(
        widths=(4, *[width] * depth, 2), activation=activations.tanh, weight_variance=1.5, bias_variance=0.1
    )
    x = jnp.asarray(np.sin(np.arange(24.0)).reshape(6, 4))
    shapes = jax.eval_shape(network.init, jax.random.key(0), x)
    fill = lambda s: jnp.asarray(np.cos(np.arange(float(np.prod(s.shape))) * 1.7).reshape(s.shape) / 2)  # noqa: E731
    return network, jax.tree.map(fill, shapes), x


def loss(network, x):
    return lambda params: jnp.mean((network.apply(params, x) - 0.3) ** 2)


def gap(found, wanted):
    """The largest difference relative to the largest entry, over all leaves."""
    leaves = zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
    pairs = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in leaves]
    return max(np.abs(a - b).max() / max(np.abs(b).max(), 1e-300) for a, b in pairs)


def field(t, y, theta):
    return jnp.tanh(y @ theta) + jnp.sin(t)


def quantities():
    """name -> a function of nothing: what is computed in several ways."""
    network, params, x = made()
    theta = jnp.asarray(np.cos(np.arange(16.0)).reshape(4, 4))
    ones = jnp.ones((6, 2))
    return {
        "network's outputs": lambda: network.apply(params, x),
        "gradient": lambda: jax.grad(loss(network, x))(params),
        "gradients layer by layer": lambda: measured.growth_at(network, params, x, ones).log_square,
        "integration, dormand_prince": lambda: integrate.endpoint(
            field, x, theta, tableau=tableaus.dormand_prince, t1=1.0, steps=5
        ),
        "integration, gauss_legendre4": lambda: integrate.endpoint(
            field, x[0], theta, tableau=tableaus.gauss_legendre4, t1=1.0, steps=3
        ),
        "Lanczos, tridiagonal": lambda: lanczos.tridiagonalize(lambda v: theta @ theta.T @ v, x[0], 3).diagonal,
    }


@study("Compiled and not")
def compiled(full):
    """`jax.jit` of the whole against `jax.disable_jit`, relative to the largest entry."""
    chosen = quantities()
    for name in chosen if full else ("network's outputs",):
        with jax.disable_jit():
            plain = chosen[name]()
        yield below(name, gap(jax.jit(chosen[name])(), plain), LIMIT, "float64")


@study("Mapped and looped, scanned and unrolled")
def mapped(full):
    """`vmap` against a Python loop over examples, `lax.scan` over depth or time against the loop spelled out."""
    network, params, x = made()
    rows = [network.apply(params, row[None])[0] for row in x]
    alone = jax.vmap(lambda row: network.apply(params, row[None])[0])(x)
    yield below("network: vmap and loop over examples", gap(alone, jnp.stack(rows)), LIMIT, "6 examples")
    yield below("network: batch and loop over examples", gap(network.apply(params, x), jnp.stack(rows)), LIMIT, "6")
    yield below(
        "network: scan and loop over depth", gap(network.apply(params, x), _by_hand(params, x)), LIMIT, "3 layers"
    )
    if not full:
        return
    deep = made(depth=50)
    yield below(
        "network: scan and loop over depth, deep", gap(deep[0].apply(*deep[1:]), _by_hand(*deep[1:])), LIMIT, "50"
    )
    theta = jnp.asarray(np.cos(np.arange(16.0)).reshape(4, 4))
    for name, how in {"rk4": {"tableau": tableaus.rk4}, "leapfrog": {"scheme": schemes.leapfrog}}.items():
        yield below(f"{name}: scan and loop over steps", gap(*_steps(how, x, theta)), LIMIT, "9 steps")
    solve = lambda y: integrate.endpoint(field, y, theta, tableau=tableaus.heun, t1=1.0, steps=4)  # noqa: E731
    looped = jnp.stack([solve(row) for row in x])
    yield below("heun: vmap and loop over starts", gap(jax.vmap(solve)(x), looped), LIMIT, "6 starts")
    yield below("heun: lax.map and loop over starts", gap(lax.map(solve, x), looped), LIMIT, "6 starts")
    over = jax.vmap(jax.grad(loss(network, x)))(jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), params))
    one = jax.grad(loss(network, x))(jax.tree.map(lambda leaf: 2 * leaf, params))
    yield below(
        "gradient: vmap and loop over networks", gap(jax.tree.map(lambda g: g[1], over), one), LIMIT, "2 networks"
    )
    flow = layers.probe(network.apply, params, x, loss=lambda y: jnp.mean((y - 0.3) ** 2))
    rms = [float(jnp.sqrt(jnp.mean(y**2))) for y in [*_states(params, x), network.apply(params, x)]]
    yield below(
        "probe inside of a scan and the states spelled out", gap(flow.state_rms, np.array(rms)), LIMIT, "4 layers"
    )


def _states(params, x):
    """The pre-activations of a dense network, a Python loop over its layers."""
    y, states = x, []
    for stretch in params["hidden"]:
        for kernel, bias in zip(stretch["kernel"], stretch["bias"], strict=True):
            y = (jnp.tanh(y) if states else y) @ kernel + bias[None]
            states.append(y)
    return states


def _by_hand(params, x):
    readout = params["readout"]
    return jnp.tanh(_states(params, x)[-1]) @ readout["kernel"] + readout["bias"][None]


def _steps(how, y, theta):
    scheme = how.get("scheme") or schemes.runge_kutta(how["tableau"])
    y = (y, 0.5 * y) if "scheme" in how else y
    found, h = integrate.endpoint(field, y, theta, t1=0.9, steps=9, **how), 0.9 / 9
    for n in range(9):
        y, _ = scheme.step(field, y, n * h, h, lambda fraction: theta)
    return found, y


# ---- CPUs and stacks -------------------------------------------------------------------------------------------------


@study("One CPU and two")
def cpus(full):
    """The same numbers from a process on one CPU and from one on two."""
    if not full or not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        return (yield Figure("left out: needs two CPUs that processes can be kept on", 0.0, "", True, ""))
    one, two = _in_process(1), _in_process(2)
    for name in one:
        yield below(name, gap(one[name], two[name]), LIMIT if "300" not in name else ON_CPUS, "two processes")


def numbers():
    """name -> list of numbers that every process and every stack must agree on; nothing random enters."""
    found = {name: np.ravel(jax.flatten_util.ravel_pytree(make())[0]).tolist() for name, make in quantities().items()}
    network, params, x = made()
    objective = jax.grad(loss(network, x))
    step = lambda params, _: (jax.tree.map(lambda p, g: p - 0.05 * g, params, objective(params)), None)  # noqa: E731
    trained = lax.scan(step, params, None, length=300)[0]
    found["300 steps of gradient descent"] = jax.flatten_util.ravel_pytree(trained)[0].tolist()
    top = curvature.top_eigenvalues(
        lambda params, batch: loss(network, batch)(params), params, x, key=jax.random.key(0), k=1
    )
    found["largest curvature"] = top.values.tolist()
    return found


def _in_process(count):
    chosen = sorted(os.sched_getaffinity(0))[:count]
    code = (
        f"import os; os.sched_setaffinity(0, {chosen})\n"
        "import jax, json; jax.config.update('jax_enable_x64', True)\n"
        "from tests.verification import agreement; print(json.dumps(agreement.numbers()))"
    )
    threads = {"NPROC": str(count), "OMP_NUM_THREADS": str(count), "OPENBLAS_NUM_THREADS": str(count)}
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | threads, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return {name: np.array(values) for name, values in json.loads(done.stdout).items()}
