"""Metamorphic relations: what must not change, or change in a known way, when the question is asked differently."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from numdl import activations
from numdl.analysis import curvature
from numdl.analysis import propagation as measured
from numdl.krylov import lanczos
from numdl.networks import core, dense
from numdl.ode import integrate, tableaus
from numdl.theory import gradients, jacobian, kernels, propagation
from tests.verification import agreement, below, study

LIMIT = 1e-12
PHYSICS = {"weight_variance": 1.7, "bias_variance": 0.2}


def gap(found, wanted):
    return agreement.gap(found, wanted)


def rotation(size, seed=0):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


@study("Rescaling")
def rescaling(full):
    """What has a unit scales with it; what has none does not move."""
    network, params, x = _relu()
    moved = _scaled(params, 8.0)
    yield below(
        "relu network: outputs, layer 1 times 8, layer 2 by 8",
        gap(network.apply(moved, x), network.apply(params, x)),
        LIMIT,
        "6 examples",
    )
    q = propagation.lengths(1.3, depth=20, activation=activations.relu, weight_variance=2.0, bias_variance=0.0)
    more = propagation.lengths(5.2, depth=20, activation=activations.relu, weight_variance=2.0, bias_variance=0.0)
    yield below("relu: lengths of an input times 2", gap(more, 4 * q), LIMIT, "20 layers")
    if not full:
        return
    before = measured.correlations_at(network, params, x.reshape(3, 2, 4))
    after = measured.correlations_at(network, params, 3 * x.reshape(3, 2, 4))
    yield below("relu network: correlations of inputs times 3", gap(after, before), LIMIT, "3 pairs")
    one = jacobian.product_norm(width=7, depth=9, entry_variance=0.3, excess_kurtosis=-1.2)
    two = jacobian.product_norm(width=7, depth=9, entry_variance=1.2, excess_kurtosis=-1.2)
    yield below(
        "product norm: relative variance, entries times 2",
        gap(two.relative_variance, one.relative_variance),
        LIMIT,
        "9 layers",
    )
    yield below("product norm: mean, entries times 2", gap(two.mean, 4.0**9 * one.mean), LIMIT, "9 layers")
    edge = jacobian.lyapunov_exponents(width=6, entry_variance=0.3).exponents
    yield below(
        "Lyapunov exponents, entries times 2",
        gap(jacobian.lyapunov_exponents(width=6, entry_variance=1.2).exponents, edge + np.log(2)),
        LIMIT,
        "6",
    )
    matrix = _symmetric()
    pairs = [_eigenvalues(factor * matrix) for factor in (1.0, 1e6)]
    yield below("Lanczos: eigenvalues of A times 1e6", gap(pairs[1], 1e6 * pairs[0]), 1e-10, "5 of 40")
    field = lambda t, y, theta: jnp.tanh(y @ theta)  # noqa: E731
    slow = lambda t, y, theta: jnp.tanh(y @ theta) / 4  # noqa: E731
    theta = jnp.asarray(rotation(4))
    ends = [
        integrate.endpoint(f, x, theta, tableau=tableaus.rk4, t1=t, steps=8) for f, t in ((field, 1.0), (slow, 4.0))
    ]
    yield below("integration: time times 4, field by 4", gap(*ends), LIMIT, "rk4, 8 steps")


@study("Permuting units and examples")
def permuting(full):
    """Hidden units have no order, examples neither."""
    network, params, x = agreement.made()
    moved = _permuted(params)
    yield below(
        "outputs, units permuted", gap(network.apply(moved, x), network.apply(params, x)), LIMIT, "3 layers of 5"
    )
    lengths = [measured.lengths_at(network, p, x) for p in (moved, params)]
    yield below("lengths, units permuted", gap(*lengths), LIMIT, "3 layers")
    if not full:
        return
    order = np.array([3, 0, 5, 1, 4, 2])
    yield below(
        "lengths, examples permuted", gap(measured.lengths_at(network, params, x[order]), lengths[1]), LIMIT, "6"
    )
    jacobians = [core.jacobian(network, p, x[:1], start=0, stop=4) for p in (moved, params)]
    yield below("Jacobian of the outputs, units permuted", gap(*jacobians), LIMIT, "4 by 2")
    values = [_curvatures(network, p, x) for p in (moved, params)]
    yield below("Hessian's eigenvalues, units permuted", gap(*values), 1e-10, "dense, all")
    again = _curvatures(network, params, x[order])
    yield below("Hessian's eigenvalues, examples permuted", gap(again, values[1]), 1e-10, "dense, all")
    k = kernels.dense(x, x, depth=3, activation=activations.gelu, **PHYSICS)
    swapped = kernels.dense(x[order], x, depth=3, activation=activations.gelu, **PHYSICS)
    yield below("kernels, examples permuted", gap(swapped.ntk, k.ntk[order]), LIMIT, "gelu, 3 layers")
    yield below(
        "kernels, arguments exchanged",
        gap(kernels.dense(x[:2], x, depth=3, activation=activations.gelu, **PHYSICS).ntk, k.ntk[:, :2].T),
        LIMIT,
        "gelu",
    )


@study("Rotating the inputs")
def rotating(full):
    """Wide networks see lengths and angles only; a network whose first weights turn with the inputs sees nothing."""
    network, params, x = agreement.made()
    turn = jnp.asarray(rotation(4))
    wide = {"depth": 2, "activation": activations.tanh if full else activations.relu, **PHYSICS}
    found = [kernels.dense(inputs, inputs, **wide) for inputs in (x @ turn, x)]
    yield below("NNGP, inputs rotated", gap(found[0].nngp, found[1].nngp), LIMIT, "2 layers")
    yield below("NTK, inputs rotated", gap(found[0].ntk, found[1].ntk), LIMIT, "2 layers")
    first, *rest = params["hidden"]
    turned = {**params, "hidden": ({**first, "kernel": turn.T[None] @ first["kernel"]}, *rest)}
    yield below(
        "network, inputs and first weights rotated",
        gap(network.apply(turned, x @ turn), network.apply(params, x)),
        LIMIT,
        "6 examples",
    )
    if full:
        matrix, basis = _symmetric(), rotation(40, 1)
        pairs = [_eigenvalues(m) for m in (basis @ matrix @ basis.T, matrix)]
        yield below("Lanczos: eigenvalues in another basis", gap(*pairs), 1e-10, "5 of 40")


@study("Splitting the depth")
def splitting(full):
    """A part of the depth after another is the whole."""
    network, params, x = agreement.made()
    whole = core.jacobian(network, params, x[:1], start=1, stop=3)
    parts = [core.jacobian(network, params, x[:1], start=s, stop=s + 1) for s in (1, 2)]
    yield below("Jacobian: 3 <- 1 is 3 <- 2 times 2 <- 1", gap(parts[1] @ parts[0], whole), LIMIT, "5 by 5")
    if not full:
        return
    law = {"activation": activations.gelu, **PHYSICS}
    q = propagation.lengths(0.7, depth=12, **law)
    later = propagation.lengths((q[5] - 0.2) / 1.7, depth=1, **law)
    yield below("lengths start anywhere", gap(later, q[5:6]), LIMIT, "gelu")
    step = [float(propagation.length_map(value, **law)) for value in q[:-1]]
    yield below("lengths are the map again and again", gap(np.array(step), q[1:]), LIMIT, "12 layers")
    fixed = float(propagation.fixed_point(**law).q)  # elsewhere the length moves, too
    c = propagation.correlations(0.3, depth=9, q=fixed, **law)
    rest = propagation.correlations(float(c[3]), depth=5, q=fixed, **law)
    yield below("correlations go on from layer 4", gap(rest, c[4:]), LIMIT, "9 layers")
    products = gradients.growth(0.7, depth=12, **law)
    sums = np.cumsum(np.log(products.chi)[::-1])[::-1]
    yield below("products of gradients are sums of logarithms", gap(products.log_products, sums), LIMIT, "12 layers")
    field = lambda t, y, theta: jnp.tanh(y @ theta) + jnp.sin(t)  # noqa: E731
    theta = jnp.asarray(rotation(4))
    for tableau in (tableaus.heun, tableaus.dormand_prince):
        full_way = integrate.endpoint(field, x, theta, tableau=tableau, t1=2.0, steps=10)
        half = integrate.endpoint(field, x, theta, tableau=tableau, t1=0.8, steps=4)
        both = integrate.endpoint(field, half, theta, tableau=tableau, t0=0.8, t1=2.0, steps=6)
        yield below(f"{tableau.name}: 4 steps and 6 are 10", gap(both, full_way), LIMIT, "non-autonomous")
    norms = [jacobian.product_norm(width=7, depth=d, entry_variance=0.3, excess_kurtosis=0.0) for d in (4, 5, 9)]
    together = (1 + norms[0].relative_variance) * (1 + norms[1].relative_variance) / (1 + 2 / 7)
    yield below(
        "Gaussian products: fourth moments multiply", gap(together, 1 + norms[2].relative_variance), LIMIT, "4 and 5"
    )


def _relu():
    network = dense.network(widths=(4, 5, 5, 2), activation=activations.relu, weight_variance=2.0, bias_variance=0.0)
    _, params, x = agreement.made(depth=2)
    return network, jax.tree.map(lambda leaf: leaf if leaf.ndim > 2 else 0 * leaf, params), x


def _scaled(params, factor):
    """The first layer times a factor, the next by it; a stack's layers are one leaf each here."""
    first, second = params["hidden"]
    up = jax.tree.map(lambda leaf: factor * leaf, first)
    return {**params, "hidden": (up, {**second, "kernel": second["kernel"] / factor})}


def _permuted(params):
    """The units of every hidden layer in another order."""
    order = np.array([2, 4, 0, 3, 1])
    first, *rest = params["hidden"]
    hidden = [{"kernel": first["kernel"][..., order], "bias": first["bias"][..., order]}]
    hidden += [{"kernel": s["kernel"][:, order][:, :, order], "bias": s["bias"][..., order]} for s in rest]
    readout = {**params["readout"], "kernel": params["readout"]["kernel"][order]}
    return {**params, "hidden": tuple(hidden), "readout": readout}


def _symmetric():
    turn = rotation(40)
    return (turn * np.concatenate([[9.0, 7, 6, 5.5, 5], np.linspace(-1, 1, 35)])) @ turn.T


def _eigenvalues(matrix):
    matrix = jnp.asarray((matrix + matrix.T) / 2)
    product = jax.tree_util.Partial(lambda m, v: m @ v, matrix)
    return lanczos.eigenpairs(jax.random.key(0), product, jnp.zeros(40), k=5, tolerance=1e-10).values


def _curvatures(network, params, x):
    operator = curvature.hessian(lambda params, batch: agreement.loss(network, batch)(params), params, x)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    columns = lax.map(lambda e: jax.flatten_util.ravel_pytree(operator(unravel(e)))[0], jnp.eye(flat.size))
    return np.linalg.eigvalsh(np.asarray(columns))
