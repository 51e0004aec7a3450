"""The table of a network: counts of the papers and of hand, whatever framework made the function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl import activations
from numdl.analysis import layers
from numdl.networks import attention, dense, image, initializers, recurrent, residual

FLOAT = jnp.result_type(float)


def zeros(*shape, dtype=FLOAT):
    return jax.ShapeDtypeStruct(shape, dtype)


def spread(bias, y):
    return jnp.broadcast_to(bias, y.shape)


def chain(widths):
    """(apply, params) of an affine chain with tanh between."""
    params = [(zeros(a, b), zeros(b)) for a, b in zip(widths, widths[1:], strict=False)]

    def apply(params, x):
        for i, (w, b) in enumerate(params):
            x = jnp.tanh(x) if i else x
            x = x @ w
            x = x + spread(b, x)
        return x

    return apply, params


# The lectures' examples: a net of one hidden layer, an autoencoder, a deep one
DENSE = [((4, 4, 1), 25), ((784, 32, 784), 50_992), ((784, 128, 64, 32, 64, 128, 784), 222_384)]


@pytest.mark.parametrize("widths, count", DENSE)
def test_dense_networks_by_hand(widths, count):
    found = layers.summary(chain(widths)[0], (7, widths[0]), chain(widths)[1])
    pairs = list(zip(widths, widths[1:], strict=False))
    assert found.total_parameters == count == sum(a * b + b for a, b in pairs)
    assert found.parameters.tolist() == [a * b + b for a, b in pairs]
    assert found.shapes == tuple((7, b) for b in widths[1:])
    last = len(pairs) - 1
    # products and sums, the bias, tanh behind all but the last
    assert found.operations.tolist() == [7 * (2 * a * b + b + b * (i < last)) for i, (a, b) in enumerate(pairs)]
    size = np.dtype(FLOAT).itemsize
    assert found.forward_bytes.tolist() == [7 * b * size for b in widths[1:]]
    assert found.parameter_bytes == count * size
    assert not found.notes


@pytest.mark.parametrize("widths, count", DENSE)
def test_the_lectures_dense_counts(widths, count):
    net = dense.network(widths=widths, activation=activations.tanh, weight_variance=1.0, bias_variance=0.0)
    assert layers.summary(net, (1, widths[0])).total_parameters == count


PUBLISHED = {
    # (network, size of x, parameters, products of one forward pass)
    "lecun_1990": (image.lecun_1990, (28, 28, 1), 2_578, 4 * 576 * 25 + 20 * 64 * 25 + 192 * 10),
    "lenet5": (image.lenet5, (32, 32, 1), 60_000, 117_600 + 60 * 100 * 25 + 48_000 + 10_080),
    "alexnet": (
        image.alexnet,
        (227, 227, 3),
        60_965_224,
        55**2 * 96 * 363 + 27**2 * 256 * 1200 + 13**2 * (384 * 2304 + 384 * 1728 + 256 * 1728) + 58_621_952,
    ),
    "googlenet": (image.googlenet, (224, 224, 3), 6_998_552, None),
    "resnet18": (functools.partial(image.resnet, 18), (224, 224, 3), 11_689_512, None),
    "resnet50": (functools.partial(image.resnet, 50), (224, 224, 3), 25_557_032, None),
}
# Multiplications with an addition that the papers give, rounded: arXiv:1409.4842 section 5, arXiv:1512.03385 table 1
ROUNDED = {"googlenet": 1.5e9, "resnet18": 1.8e9, "resnet50": 3.8e9}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks(name):
    build, picture, count, products = PUBLISHED[name]
    found = layers.summary(build(), (1, *picture))
    assert found.total_parameters == count == found.parameters.sum()
    if products is None:
        assert abs(found.total_operations / 2 / ROUNDED[name] - 1) < 0.07
    else:
        assert 2 * products < found.total_operations < 2 * products * 1.2
    assert np.isfinite(found.backward_bytes).all()
    text = repr(found)
    assert f"{count:,}" in text
    assert "output" in text.splitlines()[1]


def test_lenet_line_by_line():
    """The paper's counts of each layer, its partly connected one in three kernels."""
    found = layers.summary(image.lenet5(), (1, 32, 32, 1))
    modules = {}
    for name, count in zip(found.names, found.parameters, strict=True):
        modules[name.split("/")[0]] = modules.get(name.split("/")[0], 0) + int(count)
    assert modules == {"c1": 156, "s2": 12, "c3": 1516, "s4": 32, "c5": 48_120, "f6": 10_164}
    place = found.names.index("c1/kernel")
    # 25 products for each of 6 maps, the bias, tanh(2 y / 3) and its factor
    assert found.operations[place] == 28 * 28 * 6 * (50 + 1 + 3)
    assert found.kinds[place] == "conv"
    assert found.shapes[place] == (1, 28, 28, 6)


def test_equal_layers_have_a_line_each():
    physics = {"activation": activations.tanh, "weight_variance": 1.0, "bias_variance": 0.0}
    net = residual.network(widths=(6, 8, 2), depth=5, step=0.1, **physics)
    found = layers.summary(net, (3, 6))
    steps = [name for name in found.names if name.endswith("]")]
    assert [name[-3:] for name in steps] == [f"[{i}]" for i in range(5)]
    counts = dict(zip(found.names, found.parameters, strict=True))
    assert {int(counts[name]) for name in steps} == {8 * 8 + 8}
    drawn = jax.eval_shape(net.init, jax.random.key(0), zeros(3, 6))
    assert found.total_parameters == sum(leaf.size for leaf in jax.tree.leaves(drawn))


def residuals(apply, params, x):
    """Bytes of what jax's own vjp holds beside its arguments."""
    held = jax.tree.leaves(jax.vjp(lambda params: apply(params, x), params)[1])
    given = {id(leaf) for leaf in jax.tree.leaves((params, x))}
    return sum({id(leaf): leaf.nbytes for leaf in held if id(leaf) not in given}.values())


def stack(params, x, wrapped=lambda f: f):
    """A dense layer, three scanned ones, a readout."""

    def step(y, w):
        return jnp.sin(jnp.tanh(y @ w)), None

    return jax.lax.scan(wrapped(step), x @ params["in"], params["w"])[0] @ params["out"]


STACK = {"in": np.ones((4, 6)), "w": np.ones((3, 6, 6)), "out": np.ones((6, 2))}


@pytest.mark.parametrize("wrapped", [lambda f: f, jax.checkpoint], ids=["plain", "checkpoint"])
def test_what_backward_keeps_is_what_vjp_holds(wrapped):
    x, apply = np.ones((5, 4)), functools.partial(stack, wrapped=wrapped)
    found = layers.summary(apply, x, STACK)
    assert found.backward_bytes.sum() == residuals(apply, jax.tree.map(jnp.asarray, STACK), jnp.asarray(x))
    assert found.names == ("in", "w[0]", "w[1]", "w[2]", "out")
    inside = found.backward_bytes[1:4]
    assert np.all(inside == inside[0])
    one = 5 * 6 * np.dtype(float).itemsize  # a state
    assert inside[0] == (one if wrapped is jax.checkpoint else inside[0]) >= one


def test_a_scan_by_hand():
    found = layers.summary(stack, (5, 4), STACK)
    assert found.parameters.tolist() == [24, 36, 36, 36, 12]
    assert found.operations.tolist() == [240, *[5 * 6 * (12 + 2)] * 3, 120]
    assert found.kinds == ("dense",) * 5


def test_a_shared_weight_counts_once():
    found = layers.summary(lambda w, x: jnp.tanh(x @ w) @ w, (2, 3), zeros(3, 3))
    assert found.parameters.tolist() == [9, 0]
    used = layers.summary(
        lambda p, x: jax.lax.scan(lambda y, _: (y @ p["w"], None), x, None, length=3)[0], (2, 3), {"w": zeros(3, 3)}
    )
    assert used.parameters.tolist() == [9, 0, 0]


def test_tokens_embeddings_and_leaves_that_meet_nothing():
    params = {"table": zeros(11, 4), "w": zeros(4, 2), "idle": zeros(5), "mask": zeros(3, dtype=jnp.int32)}
    tokens = zeros(2, 6, dtype=jnp.int32)
    found = layers.summary(lambda p, x: p["table"][x] @ p["w"], tokens, params)
    rows = {
        name: (kind, int(count)) for name, kind, count in zip(found.names, found.kinds, found.parameters, strict=True)
    }
    assert rows["table"] == ("embedding", 44)
    assert rows["w"] == ("dense", 8)
    assert rows["idle"] == ("unused", 5)
    assert found.total_parameters == 57
    assert any("mask" in note for note in found.notes)
    assert found.shapes[found.names.index("table")] == (2, 6, 4)


def test_how_often_a_while_runs_is_not_known():
    def apply(params, x):
        y = x @ params["w"]
        return jax.lax.while_loop(lambda y: jnp.sum(y) < 10, lambda y: y + 1, y) @ params["v"]

    found = layers.summary(apply, (2, 3), {"w": zeros(3, 3), "v": zeros(3, 1)})
    assert np.isnan(found.operations[0])
    assert np.isnan(found.total_operations)
    assert found.operations[1] == 2 * 2 * 3
    assert np.isnan(found.backward_bytes).all()  # a while has no backward pass
    assert any("while" in note for note in found.notes)
    assert any("no gradient" in note for note in found.notes)
    assert "-" in repr(found)


def test_primitives_that_are_not_known_are_named():
    found = layers.summary(lambda w, x: jnp.fft.fft(x @ w), (2, 4), zeros(4, 4))
    assert any(note.startswith("fft") for note in found.notes)


def test_what_is_thrown_away_is_not_counted():
    def apply(params, x):
        _ = jnp.exp(x @ params["b"])
        return x @ params["a"]

    found = layers.summary(apply, (2, 4), {"a": zeros(4, 4), "b": zeros(4, 4)})
    assert dict(zip(found.names, found.kinds, strict=True)) == {"a": "dense", "b": "unused"}
    assert found.total_operations == 2 * 2 * 16


def test_modules_of_scales_and_shifts_have_lines_of_their_own():
    def apply(params, x):
        y = x @ params["first"]["w"]
        y = y + spread(params["first"]["b"], y)
        y = y + spread(params["place"]["embedding"], y)
        factor = params["norm"]["gain"] * jax.lax.rsqrt(jnp.mean(y**2, axis=0))
        return y * spread(factor, y) + spread(params["norm"]["bias"], y)

    params = {"first": {"w": zeros(3, 4), "b": zeros(4)}, "place": {"embedding": zeros(4)}}
    params |= {"norm": {"gain": zeros(4), "bias": zeros(4)}}
    found = layers.summary(apply, (2, 3), params)
    assert found.names == ("first/w", "place/embedding", "norm/gain")
    assert found.parameters.tolist() == [16, 4, 8]
    assert found.shapes == ((2, 4),) * 3  # of what a module makes at last
    # squares, a sum of two, a division and a root come before the gain enters
    assert found.operations.tolist() == [2 * (24 + 4), 2 * 4 + 8 + 4 + 4 + 4, 4 + 2 * 4 + 2 * 4]


def test_attention_and_recurrent_networks():
    """Totals of what the networks draw; operations of the scores by hand."""
    laws = dict.fromkeys(("query_key_weights", "value_weights"), initializers.variance_scaling(1.0))
    net = attention.network(depth=2, heads=2, head_width=4, outputs=3, skip=True, **laws)
    found = layers.summary(net, (2, 5, 8))
    drawn = jax.eval_shape(net.init, jax.random.key(0), zeros(2, 5, 8))
    assert found.total_parameters == sum(leaf.size for leaf in jax.tree.leaves(drawn))
    assert "attention" in found.kinds
    cell = recurrent.vanilla(
        width=4,
        activation=activations.tanh,
        input_weights=laws["value_weights"],
        recurrent_weights=laws["value_weights"],
        bias_variance=0.0,
    )
    net = recurrent.many_to_one(cell, outputs=2, readout_weights=laws["value_weights"])
    found = layers.summary(net, (2, 6, 3))
    drawn = jax.eval_shape(net.init, jax.random.key(0), zeros(2, 6, 3))
    assert found.total_parameters == sum(leaf.size for leaf in jax.tree.leaves(drawn))
    assert found.total_operations >= 2 * 2 * 6 * (3 * 4 + 4 * 4) + 2 * 2 * 4 * 2


def test_functions_of_x_alone_own_what_they_close_over():
    w = jnp.ones((4, 3))
    found = layers.summary(lambda x: jnp.tanh(x @ w) @ w.T, (2, 4))
    assert found.total_parameters == 12
    with pytest.raises(TypeError, match="params is None"):
        layers.summary(lambda params, x: x @ params, (2, 4))


def test_nothing_is_computed_or_allocated():
    """A network of 4 TB: its table takes a moment."""
    found = layers.summary(
        *[chain((10**6, 10**6, 1))[i] if i != 1 else (1, 10**6) for i in (0, 1)], chain((10**6, 10**6, 1))[1]
    )
    assert found.total_parameters == 10**12 + 2 * 10**6 + 1


def test_parameters_of_a_network_may_hold_statistics():
    net = image.small_resnet(widths=(2,), blocks=(1,), outputs=2)
    x = jnp.ones((2, 4, 4, 1))
    params = net.init(jax.random.key(0), x)
    frozen = layers.summary(net, x, image.freeze(net, params, x))
    assert frozen.total_parameters == layers.summary(net, x).total_parameters
    assert any("mean" in note for note in frozen.notes)


# ---- frameworks ------------------------------------------------------------------------------------------------------


def test_flax_linen_counts_its_params_collection():
    nn = pytest.importorskip("flax.linen")

    class Model(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.BatchNorm(use_running_average=True)(nn.Conv(4, (3, 3))(x)))
            return nn.Dense(10)(nn.max_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1))

    model, x = Model(), zeros(2, 8, 8, 3, dtype=jnp.float32)
    with jax.numpy_rank_promotion("allow"):
        variables = jax.eval_shape(model.init, jax.random.key(0), x)
        found = layers.summary(model.apply, x, variables)
    assert found.total_parameters == 3 * 3 * 3 * 4 + 4 + 2 * 4 + 4 * 4 * 4 * 10 + 10
    rows = dict(zip(found.names, found.parameters.tolist(), strict=True))
    assert rows["params/Conv_0/kernel"] == 112
    assert rows["params/BatchNorm_0/scale"] == 8
    assert rows["params/Dense_0/kernel"] == 650
    assert found.shapes[found.names.index("window_max")] == (2, 4, 4, 4)
    assert any("batch_stats" in note for note in found.notes)


def test_equinox_modules_with_and_without_partition():
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(4, 2, 8, 1, key=jax.random.key(0))
    count = 4 * 8 + 8 + 8 * 2 + 2
    assert layers.summary(model, (4,)).total_parameters == count
    params, static = eqx.partition(model, eqx.is_array)
    found = layers.summary(lambda p, x: jax.vmap(eqx.combine(p, static))(x), (5, 4), params)
    assert found.total_parameters == count
    assert found.parameters.tolist() == [40, 18]
    assert found.operations[0] == 5 * (2 * 32 + 8 + 8)
    assert layers.summary(jax.vmap(model), (5, 4)).total_parameters == count


def test_haiku_and_nnx():
    hk = pytest.importorskip("haiku")
    net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([6, 2])(x)))
    with jax.numpy_rank_promotion("allow"):
        params = jax.eval_shape(net.init, jax.random.key(0), zeros(3, 4))
        assert layers.summary(net.apply, (3, 4), params).parameters.tolist() == [30, 14]
    nnx = pytest.importorskip("flax.nnx")
    graph, params = nnx.split(nnx.Linear(4, 3, rngs=nnx.Rngs(0)))
    with jax.numpy_rank_promotion("allow"):
        found = layers.summary(lambda params, x: nnx.merge(graph, params)(x), (2, 4), params)
    assert found.total_parameters == 15
