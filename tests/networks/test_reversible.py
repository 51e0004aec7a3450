"""Reversible networks: NumPy loops, inverse to rounding against depth, exact gradients in flat memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.networks import core, residual, reversible
from numdl.ode import adjoints, tableaus
from tests.selection import in_turn

pytestmark = pytest.mark.float32
WIDEST = jnp.zeros(()).dtype
EPS = float(jnp.finfo(WIDEST).eps)
PHYSICS = {"activation": jnp.tanh, "weight_variance": 1.5, "bias_variance": 0.2}
KINDS = {
    "hamiltonian": (reversible.hamiltonian, "one_layer"),
    "hamiltonian symmetric": (reversible.hamiltonian, "symmetric"),
    "leapfrog": (reversible.leapfrog, "symmetric"),
    "leapfrog two": (reversible.leapfrog, "two_layer"),
    "coupling": (reversible.coupling, "two_layer"),
    "coupling one": (reversible.coupling, "one_layer"),
}


def build(kind, widths=(8, 8, 3), depth=6, **more):
    maker, block = KINDS[kind]
    more = {} | ({} if "time" in more else {"step": 0.25}) | more
    return maker(widths=widths, depth=depth, block=block, **PHYSICS | more)


def inputs(*shape, dtype=WIDEST):
    return jax.random.normal(jax.random.key(7), shape, dtype)


def slope(block, theta, y):
    inner = np.tanh(y @ theta["kernel"] + theta["bias"])
    return {"one_layer": inner, "symmetric": -inner @ theta["kernel"].T}.get(
        block, None if block != "two_layer" else inner @ theta["second"]
    )


def step_by_hand(kind, theta, q, p, h):
    maker, block = KINDS[kind]
    if maker is reversible.leapfrog:
        q = q + h / 2 * p
        p = p + h * slope(block, theta, q)
        return q + h / 2 * p, p
    if maker is reversible.coupling:
        q = q + h * slope(block, theta["first"], p)
        return q, p + h * slope(block, theta["second"], q)
    if block == "one_layer":
        back = {"kernel": theta["kernel"].T, "bias": theta["bias"]}
        f, g = functools.partial(slope, block, theta), lambda q: -slope(block, back, q)
    else:
        f, g = (lambda p: -slope(block, theta["first"], p)), functools.partial(slope, block, theta["second"])
    p = p + h / 2 * g(q)
    q = q + h * f(p)
    return q, p + h / 2 * g(q)


@pytest.mark.parametrize("kind", in_turn(KINDS, 0, every=2))
def test_states_are_those_of_a_plain_loop(key, kind):
    net, x = build(kind), inputs(4, 8)
    params = net.init(key, x)
    theta = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["blocks"][0])
    q, p = np.split(np.asarray(x, np.float64), 2, axis=1)
    (states,) = net.states(params, x)
    for n in range(6):
        q, p = step_by_hand(kind, jax.tree.map(lambda leaf, n=n: leaf[n], theta), q, p, 0.25)
        np.testing.assert_allclose(states[n], np.concatenate([q, p], axis=1), atol=300 * EPS)
    np.testing.assert_allclose(net.apply(params, x), core.Network(*net).apply(params, x), atol=300 * EPS)


def test_positions_at_half_steps_follow_the_scheme_in_two_steps(key):
    net, x = build("leapfrog"), inputs(4, 8)
    params = net.init(key, x)
    states = np.concatenate([x[None], net.states(params, x)[0]])
    half = states[..., :4] + 0.125 * states[..., 4:]
    theta = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["blocks"][0])
    for n in range(1, 6):
        local = jax.tree.map(lambda leaf, n=n: leaf[n], theta)
        expected = 2 * half[n] - half[n - 1] + 0.25**2 * slope("symmetric", local, half[n])
        np.testing.assert_allclose(half[n + 1], expected, atol=300 * EPS)


@functools.partial(jax.jit, static_argnums=(3, 4))
def recovered(net, params, x, start, stage):
    """How far `inverse` of the last state of a stage is from the state before it, relative."""
    states = net.states(params, x)
    before = x if start is None else states[start][-1]
    after = states[-1][-1]
    back = reversible.inverse(net, params, after, stage=stage)
    return jnp.linalg.norm(back - before) / jnp.linalg.norm(before)


@pytest.mark.parametrize("kind", ["hamiltonian symmetric", "leapfrog", "coupling"])
def test_inverse_is_exact_to_rounding_at_any_depth(key, kind):
    net, x = build(kind, depth=1000, time=2.0), inputs(4, 8)
    params = net.init(key, x)
    for dtype in {jnp.dtype(jnp.float32), WIDEST}:
        for depth in (10, 100, 1000):
            blocks = jax.tree.map(lambda leaf, n=depth: leaf[:n], params["blocks"])
            cast = jax.tree.map(lambda leaf, d=dtype: leaf.astype(d), {**params, "blocks": blocks})
            assert recovered(net, cast, x.astype(dtype), None, -1) < 300 * float(jnp.finfo(dtype).eps)


def test_inverse_of_a_stage_ends_behind_its_connector(key):
    net, x = build("hamiltonian", (5, 8, 4, 3), (3, 2)), inputs(4, 5)
    params = net.init(key, x)
    assert recovered(net, params, x, 2, 1) < 300 * EPS
    states = net.states(params, x)
    first = reversible.inverse(net, params, states[1][-1], stage=0)
    np.testing.assert_allclose(first, states[0][-1], atol=300 * EPS)


@pytest.mark.parametrize("interpolation", ["constant", "linear"])
@pytest.mark.parametrize("kind", in_turn(KINDS, 0, every=2))
def test_gradients_without_stored_states_are_the_direct_ones(key, kind, interpolation):
    x, gradients = inputs(4, 5), []
    for adjoint in ({}, {"adjoint": adjoints.direct}):
        net = build(kind, (5, 8, 3), 8, interpolation=interpolation, **adjoint)
        params = net.init(key, x)
        gradient = jax.jit(jax.grad(lambda p, x, net=net: jnp.sum(net.apply(p, x) ** 2), argnums=(0, 1)))
        gradients.append(gradient(params, x))
    for ours, direct in zip(*map(jax.tree.leaves, gradients), strict=True):
        assert np.abs(direct).max() > 0
        np.testing.assert_allclose(ours, direct, atol=1000 * EPS * np.abs(direct).max())


def test_a_convolutional_network_can_be_undone(key):
    net, x = build("leapfrog", (3, 6, 2), 5, window=3), inputs(2, 5, 4, 3)
    params = net.init(key, x)
    states = net.states(params, x)
    back = reversible.inverse(net, params, states[1][-1])
    np.testing.assert_allclose(back, states[0][-1], atol=300 * EPS)


def temporary_memory(kind, depth, **more):
    net, x = build(kind, (16, 16, 2), depth, time=1.0, **more), jax.ShapeDtypeStruct((256, 16), WIDEST)
    params = jax.eval_shape(net.init, jax.random.key(0), x)
    gradient = jax.jit(jax.grad(lambda p, x: jnp.sum(net.apply(p, x) ** 2)))
    outputs = sum(leaf.size for leaf in jax.tree.leaves(params)) * WIDEST.itemsize
    return gradient.lower(params, x).compile().memory_analysis().temp_size_in_bytes, outputs


@pytest.mark.parametrize("kind", ["hamiltonian", "leapfrog", "coupling"])
def test_memory_is_flat_in_depth(kind):
    """But for the parameters' own cotangents, which may be held twice; stored states would be 256 x 16 a step."""
    (shallow, small), (deep, large) = temporary_memory(kind, 50), temporary_memory(kind, 3200)
    assert deep - shallow < 2 * (large - small) + 1000
    stored, _ = temporary_memory(kind, 3200, adjoint=adjoints.checkpointed)
    assert stored - deep > 0.9 * 3150 * 256 * 16 * WIDEST.itemsize


@pytest.mark.parametrize("kind", ["hamiltonian symmetric", "leapfrog"])
def test_energy_oscillates_and_does_not_drift(key, kind):
    """theta constant in time: sum of ln cosh is conserved up to O(h^2), over 200 units of time."""
    net, x = build(kind, (8, 8, 1), 2000, time=200.0), inputs(3, 8)
    params = net.init(key, x)
    frozen = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf[:1], leaf.shape), params["blocks"])
    (states,) = net.states({**params, "blocks": frozen}, x)
    theta = jax.tree.map(lambda leaf: np.asarray(leaf[0], np.float64), frozen[0])

    def potential(theta, y):
        return np.log(np.cosh(y @ theta["kernel"] + theta["bias"])).sum(axis=-1)

    q, p = np.split(np.asarray(states, np.float64), 2, axis=-1)
    if kind == "leapfrog":
        energy = (p**2).sum(axis=-1) / 2 + potential(theta, q)
    else:
        energy = potential(theta["second"], q) + potential(theta["first"], p)
    early, late = energy[:1000], energy[1000:]
    assert np.abs(energy / energy[0] - 1).max() < 0.05
    assert np.abs(late.mean(axis=0) / early.mean(axis=0) - 1).max() < 0.005


def test_antisymmetric_is_stable_by_damping_only(key):
    """Linear, forward Euler: the state grows without damping and shrinks below the exact limit on h."""
    settings = {"widths": (6, 6, 1), "depth": 400, "weight_variance": 1.0, "bias_variance": 0.0}
    settings |= {"activation": lambda y: y}
    x, ends = inputs(2, 6), {}
    for damping, step in ((0.0, 0.1), (1.0, 0.99), (1.0, 1.01)):
        net = reversible.antisymmetric(damping=damping, step=0.0, **settings)
        params = net.init(key, x)
        kernel = jnp.broadcast_to(params["blocks"][0]["kernel"][:1], (400, 6, 6))
        theta = {**params["blocks"][0], "kernel": kernel}
        omega = np.abs(np.linalg.eigvals(np.asarray(kernel[0] - kernel[0].T, np.float64))).max()
        h = step if damping == 0 else step * 2 * damping / (damping**2 + omega**2)
        net = reversible.antisymmetric(damping=damping, step=h, **settings)
        ends[damping, step] = np.linalg.norm(net.states({**params, "blocks": (theta,)}, x)[0][-1])
    start = np.linalg.norm(x)
    assert ends[0.0, 0.1] > 1.2 * start
    assert ends[1.0, 0.99] < start < ends[1.0, 1.01]


def test_probes_and_state_gradients(key):
    net, x = build("hamiltonian", (5, 8, 3), 4), inputs(1, 5)
    params = net.init(key, x)
    gradients = core.state_gradients(net, params, x, jnp.sum)
    matrix = core.jacobian(net, params, x, start=2, stop=6)
    np.testing.assert_allclose(gradients[1][0].ravel(), np.asarray(matrix).sum(axis=0), atol=300 * EPS)


def test_unroll_takes_both_halves(key):
    net, x = build("leapfrog"), inputs(4, 8)
    params = net.init(key, x)
    flow = residual.unroll(net, params, x)
    theta = jax.tree.map(lambda leaf: leaf[0], flow.theta)
    rate = flow.field(x, theta)
    np.testing.assert_allclose(rate[:, :4], x[:, 4:])
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), theta)
    np.testing.assert_allclose(rate[:, 4:], slope("symmetric", wide, np.asarray(x[:, :4], np.float64)), atol=100 * EPS)


def test_bad_arguments_are_named(key):
    with pytest.raises(ValueError, match="widths of the stages must be even.*got 7"):
        build("coupling", (5, 7, 3))
    with pytest.raises(ValueError, match="block .*'two_layer'"):
        reversible.hamiltonian(widths=(4, 4, 1), depth=2, step=0.1, block="two_layer", **PHYSICS)
    with pytest.raises(ValueError, match="hidden .*3 for one_layer"):
        build("coupling one", hidden=3)
    for kind in ("coupling", "leapfrog"):
        with pytest.raises(TypeError, match="hidden must be an integer >= 1; got 2.5"):
            build(kind, hidden=2.5)
    with pytest.raises(TypeError, match="options must be among .*got damping"):
        build("leapfrog", damping=0.1)
    net, x = build("leapfrog"), inputs(4, 8)
    params = net.init(key, x)
    with pytest.raises(ValueError, match=r"y must have 8 entries.*\(4, 6\)"):
        reversible.inverse(net, params, x[:, :6])
    with pytest.raises(ValueError, match="stage .*got 1"):
        reversible.inverse(net, params, x, stage=1)
    with pytest.raises(ValueError, match="Runge-Kutta.*leapfrog"):
        residual.with_tableau(net, tableaus.rk4)
    plain = residual.network(widths=(8, 8, 3), depth=2, step=0.1, **PHYSICS)
    with pytest.raises(ValueError, match="scheme must have an inverse.*euler"):
        reversible.inverse(plain, plain.init(key, x), x)
