"""One contraction with several leaves side by side: a row for each leaf, or one row that says what it is made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.analysis import initialization, layers
from numdl.tracing import trace

pytestmark = pytest.mark.float32
N, D, T = 5, 4, 6


def leaf(seed, *shape):
    return 0.4 * jax.random.normal(jax.random.key(seed), shape, jnp.float32)


@pytest.fixture
def x():
    return jax.random.normal(jax.random.key(99), (N, T, D), jnp.float32)


def cell(p, x):
    """A recurrent cell by hand whose two gates are one contraction each, biases side by side as well."""

    def step(h, u):
        kernel = jnp.concatenate([p["h"]["f"], p["h"]["g"]], axis=-1)
        y = h @ kernel + jnp.concatenate([p["bias"]["f"], p["bias"]["g"]])[None]
        f, g = jnp.split(y + u @ jnp.concatenate([p["i"]["f"], p["i"]["g"]], axis=-1), [3], axis=-1)
        return jax.nn.sigmoid(f) * h + jnp.tanh(g), None

    start = jnp.zeros((x.shape[0], 3), x.dtype)
    return jax.lax.scan(step, start, jnp.swapaxes(x, 0, 1))[0] @ p["out"]


CELL = {
    "h": {"f": leaf(0, 3, 3), "g": leaf(1, 3, 3)},
    "i": {"f": leaf(2, D, 3), "g": 2 * leaf(3, D, 3)},
    "bias": {"f": leaf(4, 3) + 1, "g": leaf(5, 3)},
    "out": leaf(6, 3, 2),
}


def unrolled(p, x):
    """(states of every weight, step by step) with each gate in a product of its own."""
    h, states = np.zeros((N, 3)), {}
    p, x = jax.tree.map(lambda v: np.asarray(v, np.float64), (p, x))
    for t in range(T):
        ys = {("h", g): h @ p["h"][g] + p["bias"][g] for g in "fg"} | {("i", g): x[:, t] @ p["i"][g] for g in "fg"}
        for name, y in ys.items():
            states.setdefault("/".join(name), []).append(y)
        f, g = (ys["h", gate] + ys["i", gate] for gate in "fg")
        h = h / (1 + np.exp(-f)) + np.tanh(g)
    return states


def test_gates_in_one_contraction_are_rows_of_their_own(x):
    explained = initialization.explain(CELL, apply=cell, x=x)
    assert sorted(explained.names) == ["h/f", "h/g", "i/f", "i/g", "out"]
    assert not any("derived weight" in breaks for breaks in explained.breaks)
    states = unrolled(CELL, x)
    for i, name in enumerate(explained.names[:4]):
        assert explained.names[i] == name
        side, gate = name.split("/")
        weight = np.asarray(CELL[side][gate], np.float64)
        assert explained.shapes[i] == weight.shape
        assert (explained.fan_in[i], explained.fan_out[i]) == weight.shape
        np.testing.assert_allclose(explained.weight_variance[i], weight.shape[0] * weight.var(), rtol=1e-6)
        np.testing.assert_allclose(explained.length[i], np.mean(np.square(states[name])), rtol=1e-5)
        bias = np.asarray(CELL["bias"][gate], np.float64)
        expected = np.mean(bias**2) if side == "h" else 0.0  # the input's product has none of its own
        np.testing.assert_allclose(explained.bias_variance[i] + explained.bias_mean[i] ** 2, expected, rtol=1e-5)


def test_gradients_of_the_gates_add_up_and_are_those_of_probes(x):
    loss = lambda y: jnp.mean(y**2)  # noqa: E731

    def probed(probes):
        def step(h, at):
            u, (a, b) = at
            f = h @ CELL["h"]["f"] + CELL["bias"]["f"][None] + u @ CELL["i"]["f"] + a
            g = h @ CELL["h"]["g"] + CELL["bias"]["g"][None] + u @ CELL["i"]["g"] + b
            return jax.nn.sigmoid(f) * h + jnp.tanh(g), None

        h = jax.lax.scan(step, jnp.zeros((N, 3)), (jnp.swapaxes(x, 0, 1), probes))[0]
        return loss(h @ CELL["out"])

    def h_last(x):
        return cell(CELL | {"out": jnp.eye(3)}, x)

    by_gate = jax.grad(probed)((jnp.zeros((T, N, 3)), jnp.zeros((T, N, 3))))
    squares = [float(jnp.sum(g**2)) / T for g in by_gate]
    explained = initialization.explain(CELL, apply=cell, x=x, loss=loss)
    last = dict(zip(explained.names, explained.log_gradient))
    np.testing.assert_allclose(last["h/g"] - last["h/f"], np.log(squares[1] / squares[0]), rtol=1e-3)
    np.testing.assert_allclose(last["h/g"], last["i/g"], rtol=1e-4)
    readout = jax.grad(lambda p: loss(h_last(x) @ CELL["out"] + p))(jnp.zeros((N, 2)))
    np.testing.assert_allclose(last["h/g"], np.log(squares[1] / float(jnp.sum(readout**2))), rtol=1e-3)


def test_a_state_of_several_leaves_is_read_whole():
    p = {"q": leaf(0, D, 6), "k": 3 * leaf(1, D, 2), "b": leaf(2, 8), "w": leaf(3, 8, 3)}
    x = jax.random.normal(jax.random.key(9), (32, D), jnp.float32)

    def apply(p, x):
        return jnp.tanh(x @ jnp.concatenate([p["q"], p["k"]], 1) + p["b"][None]) @ p["w"]

    found = initialization.explain(p, apply=apply, x=x)
    plain = initialization.explain(
        {"a": jnp.concatenate([p["q"], p["k"]], 1), "b": p["b"], "w": p["w"]},
        apply=lambda p, x: jnp.tanh(x @ p["a"] + p["b"][None]) @ p["w"],
        x=x,
    )
    assert found.names == ("q", "k", "w") and plain.names == ("a", "w")
    assert found.activation == "tanh" and found.breaks == ((), (), ())
    for field in ("length_gain", "gradient_gain", "predicted_length_gain"):
        np.testing.assert_allclose(getattr(found, field)[-1], getattr(plain, field)[-1], rtol=1e-5, err_msg=field)
    np.testing.assert_allclose(np.average(found.length[:2], weights=[6, 2]), plain.length[0], rtol=1e-5)
    np.testing.assert_allclose(found.bias_variance[0], initialization._weights.spread(p["b"][:6])[0], rtol=1e-5)


def summed(p, x):
    return jnp.concatenate([x, x**2], 1) @ jnp.concatenate([p["a"], p["b"]], 0)


def averaged(p, x):
    return x @ (0.5 * jnp.concatenate([p["a"], p["b"]], 1))


def heads(p, x):
    return jnp.einsum("nd,kdf->nkf", x, jnp.stack([p["a"], p["b"]]))


@pytest.mark.parametrize("apply", [summed, averaged, heads])
def test_what_cannot_be_told_apart_is_one_row_that_says_so(apply):
    p = {"a": leaf(0, D, 3), "b": leaf(1, D, 3)}
    explained = initialization.explain(p, apply=apply, x=leaf(2, N, D))
    assert len(explained.names) == 1 and explained.breaks == (("derived weight",),)
    assert np.isfinite(explained.length).all()


def test_a_layer_of_several_leaves_has_the_name_of_all(x):
    flow = layers.probe(cell, CELL, x)
    assert {name.partition("[")[0] for name in flow.names} == {"h/f+g", "i/f+g", "out"}
    uses = dict(zip(flow.leaf_names, flow.leaf_uses))
    assert uses["h/f"] == uses["h/g"] == ("h/f+g",)
    low_rank = trace(lambda p, x: x @ (p["a"] @ p["b"].T), {"a": leaf(0, D, D), "b": leaf(1, D, D)}, leaf(2, N, D))
    assert [layer.name for layer in low_rank.layers] == ["a"], "a product is not side by side"
    far = trace(
        lambda p, x: x @ jnp.concatenate([p["a"], p["b"]["c"]], 1),
        {"a": leaf(0, D, 3), "b": {"c": leaf(1, D, 2)}},
        leaf(2, N, D),
    )
    assert [layer.name for layer in far.layers] == ["a+b/c"]


@pytest.mark.slow
def test_an_lstm_of_flax(x):
    nn = pytest.importorskip("flax.linen")
    model = nn.Sequential([nn.RNN(nn.OptimizedLSTMCell(3)), lambda h: h[:, -1], nn.Dense(2)])
    params = model.init(jax.random.key(0), x)
    explained = initialization.explain(params, apply=model.apply, x=x)
    gates = {f"params/layers_0/cell/{side}{gate}/kernel" for side in "hi" for gate in "ifgo"}
    found = {name for name in explained.names if name.endswith("kernel") and len(name.split("/")[-2]) == 2}
    assert len(found) == len(gates) == 8 and np.isfinite(explained.length).all()
    assert not explained.bias_variance.any()


def test_a_table_that_is_tied_to_the_head_is_shared_wherever_its_rows_go():
    p = {"table": leaf(0, 7, D), "place": leaf(1, 3, D), "w": leaf(2, D, D)}
    tokens = jnp.array([[0, 1, 2], [3, 4, 6]])
    apply = lambda p, x: jnp.tanh((p["table"][x] + p["place"][None]) @ p["w"]) @ p["table"].T  # noqa: E731
    explained = initialization.explain(p, apply=apply, x=tokens)
    assert explained.names == ("w", "table") and explained.breaks[1] == ("shared weight",)
