"""The same assertions on five models, each beside its hand-instrumented twin, which shares no code with the library.

A twin is the model written out once more, with a number added to every state and every state returned: gradients with
respect to those numbers at zero are the cotangents.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl import tracing
from numdl.analysis import layers
from numdl.networks import core, lift
from tests.selection import in_turn

pytestmark = pytest.mark.float32

FLOAT = jnp.result_type(float)  # float64 or float32, as the pass has it
TOLERANCE = 1e-12 if jax.config.jax_enable_x64 else 3e-6


class Hand:
    """Collects states, adds the given numbers to them, remembers what each weight multiplied."""

    def __init__(self, added):
        self.added, self.states, self.inputs = added, [], []

    def __call__(self, state, inputs=None, leaf=None):
        if self.added is not None:
            state = state + self.added[len(self.states)]
        self.states.append(state)
        self.inputs.append((inputs, leaf))
        return state


def broadcasting(function):
    """Models add biases [d] to [N, d]; numdl itself has to do without."""

    def allowed(*args):
        with jax.numpy_rank_promotion("allow"):
            return function(*args)

    return allowed


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape, FLOAT)


def cast(tree):
    return jax.tree.map(lambda leaf: leaf.astype(FLOAT), tree)


def plain():
    sizes = (5, 7, 6, 3)
    params = {
        f"layer{i}": {"w": normal(i, a, b) / a**0.5, "b": 0.1 * normal(9 + i, b)}
        for i, (a, b) in enumerate(itertools.pairwise(sizes))
    }

    def apply(params, x):
        for i in range(3):
            x = x @ params[f"layer{i}"]["w"] + params[f"layer{i}"]["b"]
            x = jnp.tanh(x) if i < 2 else x
        return x

    def hand(params, x, tap):
        y1 = tap(x @ params["layer0"]["w"] + params["layer0"]["b"], x, ("layer0", "w"))
        y2 = tap(jnp.tanh(y1) @ params["layer1"]["w"] + params["layer1"]["b"], jnp.tanh(y1), ("layer1", "w"))
        return tap(jnp.tanh(y2) @ params["layer2"]["w"] + params["layer2"]["b"], jnp.tanh(y2), ("layer2", "w"))

    return apply, params, normal(20, 8, 5), hand, ["layer0/w", "layer1/w", "layer2/w"]


def linen():
    nn = pytest.importorskip("flax.linen")

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            y = nn.Dense(12, name="up")(x)
            return x + nn.Dense(6, name="down")(nn.relu(y)), None

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.Dense(6, name="first")(x)
            stack = nn.scan(
                nn.remat(Block, prevent_cse=False), variable_axes={"params": 0}, split_rngs={"params": True}, length=3
            )
            x, _ = stack(name="stack")(x, None)
            return nn.Dense(2, name="last")(nn.LayerNorm(name="norm")(x))

    model, x = Model(), normal(21, 7, 4)
    params = cast(model.init(jax.random.key(3), x))

    def hand(params, x, tap):
        p = params["params"]
        x = tap(x @ p["first"]["kernel"] + p["first"]["bias"], x, ("params", "first", "kernel"))
        for i in range(3):
            up, down = (jax.tree.map(lambda leaf: leaf[i], p["stack"][name]) for name in ("up", "down"))  # noqa: B023
            y = tap(x @ up["kernel"] + up["bias"], x, ("params", "stack", "up", "kernel", i))
            z = jnp.where(y > 0, y, 0)
            x = x + tap(z @ down["kernel"] + down["bias"], z, ("params", "stack", "down", "kernel", i))
        mean, square = x.mean(1, keepdims=True), (x**2).mean(1, keepdims=True)
        x = (x - mean) / jnp.sqrt(square - mean**2 + 1e-6)
        x = x * p["norm"]["scale"][None] + p["norm"]["bias"][None]
        return tap(x @ p["last"]["kernel"] + p["last"]["bias"], x, ("params", "last", "kernel"))

    steps = [f"params/stack/{name}/kernel[{i}]" for i in range(3) for name in ("up", "down")]
    return model.apply, params, x, hand, ["params/first/kernel", *steps, "params/last/kernel"]


def nnx():
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Sequential(
        nnx.Linear(4, 6, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(6, 5, rngs=nnx.Rngs(1)), jnp.tanh,
        nnx.Linear(5, 2, use_bias=False, rngs=nnx.Rngs(2)),
    )  # fmt: skip
    graph, state, rest = nnx.split(model, nnx.Param, ...)
    params = cast(state)

    def apply(params, x):
        return nnx.merge(graph, params, rest, copy=True)(x)

    def hand(params, x, tap):
        first, second, third = (params["layers"][i] for i in (0, 2, 4))
        y = tap(x @ first["kernel"][...] + first["bias"][...], x, ("layers", 0, "kernel"))
        x = jnp.where(y > 0, y, 0)
        y = tap(x @ second["kernel"][...] + second["bias"][...], x, ("layers", 2, "kernel"))
        return tap(jnp.tanh(y) @ third["kernel"][...], jnp.tanh(y), ("layers", 4, "kernel"))

    return apply, params, normal(22, 9, 4), hand, ["layers/0/kernel", "layers/2/kernel", "layers/4/kernel"]


def equinox():
    eqx = pytest.importorskip("equinox")
    key = jax.random.key(4)
    model = [eqx.nn.Linear(4, 5, key=key), eqx.nn.Linear(5, 5, use_bias=False, key=key), eqx.nn.Linear(5, 3, key=key)]
    params, rest = eqx.partition(model, eqx.is_inexact_array)
    params = cast(params)

    def apply(params, x):
        one, two, three = eqx.combine(params, rest)
        return jax.vmap(lambda x: three(jnp.tanh(two(jnp.tanh(one(x))))))(x)

    def hand(params, x, tap):
        one, two, three = params
        y = tap(x @ one.weight.T + one.bias, x, (0, "weight"))
        y = tap(jnp.tanh(y) @ two.weight.T, jnp.tanh(y), (1, "weight"))
        return tap(jnp.tanh(y) @ three.weight.T + three.bias, jnp.tanh(y), (2, "weight"))

    return apply, params, normal(23, 8, 4), hand, ["0/weight", "1/weight", "2/weight"]


def attention():
    params = {name: normal(i, 6, 2, 3) / 6**0.5 for i, name in enumerate("qkv")}
    params["o"], params["c"] = normal(5, 2, 3, 6), normal(6, 6, 4)

    def apply(params, x):
        q, k, v = (jnp.einsum("ntd,dhe->nhte", x, params[name]) for name in "qkv")
        weights = jax.nn.softmax(jnp.einsum("nhte,nhse->nhts", q, k) / 3**0.5)
        x = x + jnp.einsum("nhte,hed->ntd", jnp.einsum("nhts,nhse->nhte", weights, v), params["o"])
        return x.mean(1) @ params["c"]

    def hand(params, x, tap):
        q, k, v = (tap(project(x, params[name]), x, (name,)) for name in "qkv")
        scores = tap(jnp.matmul(q, k.swapaxes(2, 3))) / 3**0.5
        weights = jnp.exp(scores - scores.max(3, keepdims=True))
        mixed = tap(jnp.matmul(weights / weights.sum(3, keepdims=True), v))
        joined = mixed.transpose(0, 2, 1, 3).reshape(*x.shape[:2], 6)
        x = x + tap(joined @ params["o"].reshape(6, 6), joined, ("o",))
        return tap(x.mean(1) @ params["c"], x.mean(1), ("c",))

    def project(x, w):
        return (x @ w.reshape(6, 6)).reshape(*x.shape[:2], 2, 3).transpose(0, 2, 1, 3)

    return apply, params, normal(24, 5, 4, 6), hand, ["q", "k", "v", "attention/0", "attention/1", "o", "c"]


MODELS = [plain, linen, nnx, equinox, attention]


def loss(outputs):
    return jnp.mean(jnp.sum(jnp.sin(outputs) ** 2 + 0.3 * outputs, axis=1))


@functools.lru_cache
def case(build):
    """The model, its twin's states and inputs, and the twin's gradients with respect to them."""
    apply, params, x, hand, names = build()
    apply, hand = broadcasting(apply), broadcasting(hand)
    tap = Hand(None)
    outputs = hand(params, x, tap)
    states, inputs = tap.states, tap.inputs
    gradient = jax.jit(jax.grad(lambda added: loss(hand(params, x, Hand(added)))))
    gradients = gradient([jnp.zeros_like(y) for y in states])
    return apply, params, x, names, outputs, states, inputs, gradients


def close(found, expected):
    scale = max(float(np.max(np.abs(expected))), 1e-3)
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE * scale)


def rms(values):
    return np.sqrt(np.mean(np.abs(np.asarray(values, np.float64)) ** 2))


def each_model(turn):
    return pytest.mark.parametrize("build", in_turn(MODELS, turn), ids=lambda build: build.__name__)


@each_model(0)
def test_names_are_the_parameters_paths_in_call_order(build):
    apply, params, x, names, *_ = case(build)
    assert [name for name, _, _ in tracing.trace(apply, params, x).entries] == names
    assert layers.probe(apply, params, x, loss=loss).names == tuple(names)


@each_model(1)
def test_capture_gives_the_states_and_leaves_the_outputs(build):
    apply, params, x, names, outputs, states, *_ = case(build)
    got, captured = jax.jit(layers.capture(apply))(params, x)
    close(got, outputs)
    close(got, apply(params, x))
    for name, state in zip(names, states):
        base, _, step = name.partition("[")
        close(captured[base][int(step[:-1])] if step else captured[base], state)


@functools.lru_cache
def lifted(build):
    """The lifted network's states and cotangents, each as {name of the stretch: [layers, N, ...]}."""
    apply, params, x, *_ = case(build)
    network = lift.lift(apply, params, x)
    names = lift.state_names(apply, params, x)

    @jax.jit
    def run(params, x):
        def cost(probes):
            states = network.states(params, x, probes)
            return loss(network.readout(params, states[-1][-1])), states

        zeros = tuple(jnp.zeros(s.shape, s.dtype) for s in jax.eval_shape(network.states, params, x))
        return jax.grad(cost, has_aux=True)(zeros)

    cotangents, states = run(params, x)
    return dict(zip(names, states)), dict(zip(names, cotangents))


def pick(stretches, name):
    """One layer of the stretches: 'path' or, in a scan, 'path[i]'."""
    base, _, step = name.partition("[")
    return stretches[base][int(step[:-1]) if step else 0]


@each_model(2)
def test_lifted_states_and_gradients_are_the_twins(build):
    _, _, _, names, _, states, _, gradients = case(build)
    found, cotangents = lifted(build)
    for name, state, gradient in zip(names, states, gradients):
        close(pick(found, name), state)
        close(pick(cotangents, name), gradient)


@each_model(3)
def test_inputs_times_cotangents_are_the_weights_gradients(build):
    apply, params, x, names, _, _, inputs, _ = case(build)
    weights = jax.jit(jax.grad(lambda p: loss(apply(p, x))))(params)
    for name, (multiplied, path) in zip(names, inputs):
        if path is None:
            continue
        cotangent = pick(lifted(build)[1], name)
        if cotangent.ndim == 4:  # heads: [N, H, T, E] beside inputs [N, T, D]
            cotangent = cotangent.transpose(0, 2, 1, 3)
        units = np.prod(cotangent.shape[multiplied.ndim - 1 :], dtype=int)
        product = multiplied.reshape(-1, multiplied.shape[-1]).T @ cotangent.reshape(-1, units)
        gradient = leaf_at(weights, path)
        torch_order = name.endswith("weight")  # Equinox keeps weights as (out, in)
        close(product.T if torch_order else product.reshape(gradient.shape), gradient)


def leaf_at(tree, path):
    for part in path:
        tree = getattr(tree, part) if isinstance(part, str) and hasattr(tree, part) else tree[part]
    return jnp.asarray(tree[...] if hasattr(tree, "get_value") else tree)


@each_model(4)
def test_probe_reports_the_twins_statistics(build):
    apply, params, x, _, outputs, states, inputs, gradients = case(build)
    flow = layers.probe(apply, params, x, loss=loss)
    weights = jax.jit(jax.grad(lambda p: loss(apply(p, x))))(params)
    close(flow.value, loss(outputs))
    close(flow.state_rms, [rms(y) for y in states])
    close(flow.state_mean, [np.mean(y) for y in states])
    close(flow.state_max, [np.max(np.abs(y)) for y in states])
    close(flow.state_gradient_rms, [x.shape[0] * rms(g) for g in gradients])
    for i, (_, path) in enumerate(inputs):
        if path is None:
            assert np.isnan(flow.weight_variance[i])
            assert np.isnan(flow.weight_gradient_rms[i])
        else:
            close(flow.weight_gradient_rms[i], rms(leaf_at(weights, path)))
            close(flow.weight_variance[i], flow.fan_in[i] * np.var(np.asarray(leaf_at(params, path))))
    assert int(flow.first_nonfinite) == -1


@each_model(5)
def test_gradients_through_the_placed_function_are_unchanged(build):
    apply, params, x, *_ = case(build)
    placed = tracing.place(apply, lambda layer, state, given: (state, None))
    found = jax.jit(jax.grad(lambda p: loss(placed(p, x)[0])))(params)
    expected = jax.jit(jax.grad(lambda p: loss(apply(p, x))))(params)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        close(one, other)


def test_a_model_of_tokens_has_jacobians_from_its_first_layer_on():
    from numdl.analysis import jacobian

    params = {"e": jax.random.normal(jax.random.key(0), (9, 4)), "w": jax.random.normal(jax.random.key(1), (4, 3))}
    tokens = jnp.array([[1, 5]])
    network = lift.lift(lambda p, t: jnp.tanh(jnp.tanh(p["e"][t] @ p["w"]) @ p["w"].T), params, tokens)
    first = params["e"][tokens[0]] @ params["w"]
    expected = jax.jacobian(lambda y: jnp.tanh(y) @ params["w"].T)(first).reshape(8, 6)
    close(core.jacobian(network, params, tokens, start=1, stop=2), expected)
    top = jacobian.extremes(jax.random.key(2), network, params, tokens, start=1, stop=2, num_matvecs=6)
    assert np.isclose(float(jax.tree.leaves(top)[0]), np.linalg.norm(expected, 2), rtol=1e-3)
    with pytest.raises(TypeError, match="x must be an array of floating-point numbers; got dtype int"):
        core.jacobian(network, params, tokens, start=0, stop=2)
