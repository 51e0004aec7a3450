"""Image networks: published counts, and values against scipy's correlation and explicit loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from numdl.networks import _windows, convolutional, core, image
from numdl.networks.image import _tables
from numdl.networks.image._codes import DIGITS

WIDEST = jnp.zeros(()).dtype
apply = jax.jit(lambda net, *arguments: net.apply(*arguments))
states = jax.jit(lambda net, *arguments: net.states(*arguments))

BUILDERS = {
    "lecun_1990": (image.lecun_1990, 28, 1, 2_578),
    "lenet5": (image.lenet5, 32, 1, 60_000),
    "lenet5, framed": (image.lenet5, 28, 1, 60_000),
    "alexnet": (image.alexnet, 227, 3, 60_965_224),
    "alexnet, framed": (image.alexnet, 224, 3, 60_965_224),
    "googlenet": (image.googlenet, 224, 3, 6_998_552),
    "resnet18": (functools.partial(image.resnet, 18), 224, 3, 11_689_512),
    "resnet34": (functools.partial(image.resnet, 34), 64, 3, 21_797_672),
    "resnet50": (functools.partial(image.resnet, 50), 224, 3, 25_557_032),
    "resnet101": (functools.partial(image.resnet, 101), 224, 3, 44_549_160),
    "resnet152": (functools.partial(image.resnet, 152), 224, 3, 60_192_808),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_the_published_number_of_parameters(name, key):
    build, size, channels, count = BUILDERS[name]
    net, x = build(), jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    params = jax.eval_shape(net.init, key, x)
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
    assert jax.eval_shape(net.apply, params, x).shape == (2, 10 if channels == 1 else 1000)


def slid(y, kernel, stride=1, padding=0):
    """One picture [H, W, C] with a kernel HWIO, by scipy."""
    y = np.pad(y, ((padding, padding), (padding, padding), (0, 0)))
    maps = [
        sum(signal.correlate2d(y[..., c], kernel[..., c, o], "valid") for c in range(y.shape[-1]))
        for o in range(kernel.shape[-1])
    ]
    return np.stack(maps, axis=-1)[::stride, ::stride]


def squeezed(y):
    return 1.7159 * np.tanh(2 * y / 3)


def squares(y, reduce=np.sum):
    height, width, channels = y.shape
    return reduce(y.reshape(height // 2, 2, width // 2, 2, channels), axis=(1, 3))


def partial(params, y, table):
    """A partly connected convolution, map by map, each kernel found by counting."""
    used, maps = {}, []
    for place, seen in enumerate(table):
        n = len(seen)
        kernel = params[f"kernel_{n}"][..., used.get(n, 0)]
        used[n] = used.get(n, 0) + 1
        maps.append(sum(signal.correlate2d(y[..., c], kernel[..., i], "valid") for i, c in enumerate(seen)))
        maps[-1] = maps[-1] + params["bias"][place]
    return np.stack(maps, axis=-1)


def by_hand(name, params, x):
    """The outputs of one digit."""
    first, second, third, fourth = ("h1", "h2", "h3", "h4") if name == "lecun_1990" else ("c1", "s2", "c3", "s4")
    y = slid(x, params[first]["kernel"]) + params[first]["bias"]
    y = squares(squeezed(y)) * params[second]["coefficient"] + params[second]["bias"]
    y = partial(params[third], squeezed(y), _tables.H3 if name == "lecun_1990" else _tables.C3)
    y = squeezed(squares(squeezed(y)) * params[fourth]["coefficient"] + params[fourth]["bias"])
    if name == "lecun_1990":
        return y.ravel() @ params["output"]["kernel"] + params["output"]["bias"]
    y = squeezed(slid(y, params["c5"]["kernel"]) + params["c5"]["bias"]).ravel()
    y = squeezed(y @ params["f6"]["kernel"] + params["f6"]["bias"])
    return -((y - DIGITS) ** 2).sum(axis=1)


@pytest.mark.parametrize("form", ["native", "product"])
@pytest.mark.parametrize("name", ["lecun_1990", "lenet5"])
def test_digit_networks_are_those_of_scipy(name, form, key):
    net = getattr(image, name)(form=form)
    size = 28 if name == "lecun_1990" else 32
    x = jax.random.normal(key, (2, size, size, 1), WIDEST)
    params = jax.tree.map(
        lambda leaf: leaf + 0.05 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape), net.init(key, x)
    )
    expected = [by_hand(name, jax.tree.map(np.asarray, params), np.asarray(one)) for one in x]
    np.testing.assert_allclose(apply(net, params, x), expected, rtol=1e-9)


def test_a_digit_of_28_gets_a_frame_of_two_zeros(key):
    x = jax.random.normal(key, (2, 28, 28, 1), WIDEST)
    net = image.lenet5()
    framed = jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
    params = net.init(key, x)
    np.testing.assert_array_equal(apply(net, params, x), apply(net, params, framed))


def test_the_tables_are_the_papers():
    """20 connections of H3 and 60 of C3, three, four or six maps each; every map before is seen equally often."""
    assert [sum(c in seen for seen in _tables.H3) for c in range(4)] == [5] * 4
    assert sorted(map(len, _tables.C3)) == [3] * 6 + [4] * 9 + [6]
    assert [sum(c in seen for seen in _tables.C3) for c in range(6)] == [10] * 6
    assert len(set(_tables.C3)) == 16


def test_the_codes_are_ten_different_bitmaps():
    assert DIGITS.shape == (10, 84)
    assert set(np.unique(DIGITS)) == {-1.0, 1.0}
    apart = ((DIGITS[:, None] - DIGITS) ** 2).sum(axis=-1) / 4
    assert apart[np.triu_indices(10, 1)].min() >= 5  # pixels


@pytest.mark.parametrize("form", ["native", "product"])
@pytest.mark.parametrize("stride, padding, groups", [(1, 0, 1), (2, 1, 1), (4, 2, 1), (2, 1, 2)])
def test_convolutions_with_strides_and_groups(stride, padding, groups, form, key):
    y = jax.random.normal(key, (2, 9, 8, 4), WIDEST)
    kernel = jax.random.normal(key, (3, 3, 4 // groups, 6), WIDEST)
    found = _windows.convolved(y, kernel, stride=stride, padding=padding, groups=groups, form=form)
    for ours, one in zip(found, np.asarray(y), strict=True):
        parts = zip(np.split(one, groups, axis=-1), np.split(np.asarray(kernel), groups, axis=-1), strict=True)
        expected = np.concatenate([slid(a, b, stride, padding) for a, b in parts], axis=-1)
        np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_convolution_and_pooling_of_the_lecture():
    picture = jnp.array([[3, 3, 2, 1, 0], [0, 0, 1, 3, 1], [3, 1, 2, 2, 3], [2, 0, 0, 2, 2], [2, 0, 0, 0, 1.0]])
    kernel = jnp.array([[0, 1, 2], [2, 2, 0], [0, 1, 2.0]])
    found = convolutional.convolve(picture[None, :, :, None], kernel[:, :, None, None])[0, :, :, 0]
    np.testing.assert_array_equal(found, [[12, 12, 17], [10, 17, 19], [9, 6, 14]])
    four = jnp.array([[1, 3, 5, 3], [4, 2, 3, 1], [3, 1, 1, 3], [0, 1, 0, 4.0]])[None, :, :, None]
    np.testing.assert_array_equal(convolutional.pool(four, window=2)[0, :, :, 0], [[4, 5], [3, 4]])
    np.testing.assert_array_equal(convolutional.pool(four, window=2, kind="sum")[0, :, :, 0], [[10, 12], [5, 8]])


@pytest.mark.parametrize("kind", ["average", "max", "sum"])
@pytest.mark.parametrize("window, stride", [(2, None), (3, 2), (3, 1)])
def test_pooling_is_that_of_loops(kind, window, stride, key):
    y = np.asarray(jax.random.normal(key, (2, 7, 8, 3), WIDEST))
    step, reduce = stride or window, {"average": np.mean, "max": np.max, "sum": np.sum}[kind]
    found = convolutional.pool(y, window=window, stride=stride, kind=kind)
    expected = np.empty((2, (7 - window) // step + 1, (8 - window) // step + 1, 3))
    for i, j in np.ndindex(*expected.shape[1:3]):
        expected[:, i, j] = reduce(y[:, i * step : i * step + window, j * step : j * step + window], axis=(1, 2))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_response_normalization_sums_over_neighbouring_channels(key):
    y = np.asarray(jax.random.normal(key, (1, 2, 2, 7), WIDEST))
    found = _windows.response_normalized(y, reach=5, offset=2.0, scale=0.3, power=0.75)
    for c in range(7):
        total = (y[..., max(c - 2, 0) : c + 3] ** 2).sum(axis=-1)
        np.testing.assert_allclose(found[..., c], y[..., c] / (2 + 0.3 * total) ** 0.75, rtol=1e-12)


def normalized(y, part):
    y = (y - y.mean(axis=(0, 1, 2))) / np.sqrt(y.var(axis=(0, 1, 2)) + 1e-5)
    return part["gain"] * y + part["bias"]


def convolved(y, part, stride=1):
    window = part["kernel"].shape[0]
    return normalized(np.stack([slid(one, part["kernel"], stride, window // 2) for one in y]), part)


def block(y, part, stride=1):
    y = np.maximum(y, 0)
    around = convolved(y, part["shortcut"], stride) if "shortcut" in part else y
    return around + convolved(np.maximum(convolved(y, part["first"], stride), 0), part["second"])


def residual_net():
    return image.small_resnet(widths=(3, 4), blocks=(3, 1), outputs=2)


@pytest.fixture(scope="module")
def residual():
    """(network, params, x)"""
    x = jax.random.normal(jax.random.key(3), (4, 6, 6, 2), WIDEST)
    net = residual_net()
    return net, net.init(jax.random.key(4), x), x


def test_residual_blocks_are_those_of_loops(residual):
    net, params, x = residual
    p = jax.tree.map(np.asarray, params)
    expected = [convolved(np.asarray(x), p["conv1"])]
    expected.append(block(expected[-1], p["stage1_first"]))
    for i in range(2):
        expected.append(block(expected[-1], jax.tree.map(lambda leaf, i=i: leaf[i], p["stage1_rest"])))
    expected.append(block(expected[-1], p["stage2_first"], 2))
    found = [layer for stretch in states(net, params, x) for layer in stretch]
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-10)
    outputs = np.maximum(expected[-1], 0).mean(axis=(1, 2)) @ p["output"]["kernel"] + p["output"]["bias"]
    np.testing.assert_allclose(apply(net, params, x), outputs, atol=1e-10)


def test_both_forms_of_a_scanned_network_are_one(residual):
    net, params, x = residual
    product = image.small_resnet(widths=(3, 4), blocks=(3, 1), outputs=2, form="product")
    np.testing.assert_allclose(apply(product, params, x), apply(net, params, x), atol=1e-10)


def test_frozen_statistics_make_examples_independent(residual):
    net, params, x = residual
    frozen = image.freeze(net, params, x)
    whole = apply(net, frozen, x)
    np.testing.assert_allclose(whole, apply(net, params, x), atol=1e-10)
    np.testing.assert_allclose(apply(net, frozen, x[:2]), whole[:2], atol=1e-10)
    assert np.abs(apply(net, params, x[:2]) - whole[:2]).max() > 1e-3
    again = image.freeze(net, frozen, x)
    for ours, theirs in zip(jax.tree.leaves(again), jax.tree.leaves(frozen), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_probe_is_added_to_the_state_and_flows_on(residual):
    net, params, x = residual
    probes = [jnp.zeros_like(probe) for probe in core.zero_probes(net, params, x)]
    probes[2] = probes[2].at[1].set(0.5)
    clean, moved = states(net, params, x), states(net, params, x, tuple(probes))
    np.testing.assert_array_equal(moved[2][0], clean[2][0])
    np.testing.assert_allclose(moved[2][1], clean[2][1] + 0.5, atol=1e-12)
    assert np.abs(moved[3] - clean[3]).max() > 1e-3


def test_weights_have_the_variance_that_was_asked_for(key):
    x = jnp.zeros((1, 32, 32, 3), WIDEST)
    draw = lambda **more: image.small_resnet(widths=(32, 64), blocks=(1, 2), outputs=2, **more).init(key, x)  # noqa: E731
    for params, variance in ((draw(), 2.0), (draw(weight_variance=0.7), 0.7)):
        kernel = np.asarray(params["stage2_rest"]["second"]["kernel"])
        fan_in = 3 * 3 * 64
        assert kernel.shape == (1, 3, 3, 64, 64)
        assert abs(fan_in * kernel.var() / variance - 1) < 5 * np.sqrt(2 / kernel.size)
        assert np.all(np.asarray(params["conv1"]["gain"]) == 1)
    kernel = np.asarray(image.lenet5().init(key, x[..., :1])["c5"]["kernel"])
    assert 0.99 * 2.4 / 400 < np.abs(kernel).max() <= 2.4 / 400
    assert draw(dtype="float32")["output"]["kernel"].dtype == jnp.float32


def test_dropout_takes_its_key_when_the_network_is_built(key):
    drop, y = image._network.Run, jnp.ones((4, 5000), WIDEST)
    part = _tables.Drop(0.4)
    kept = np.asarray(part({}, y, drop(key=key))[0])
    assert set(np.unique(kept)) == {0.0, 1 / 0.6}
    assert abs(kept.mean() - 1) < 4 * np.sqrt(0.4 / 0.6 / kept.size)
    np.testing.assert_array_equal(part({}, y, drop())[0], y)


@pytest.mark.parametrize("shape", [(2, 28, 28), (2, 28, 28, 3), (2, 12, 12, 1)])
def test_pictures_of_another_shape_are_refused(shape, key):
    with pytest.raises(ValueError, match="x must"):
        image.lecun_1990().init(key, jnp.zeros(shape))


def test_parameters_for_another_size_are_refused(key):
    params = image.lecun_1990().init(key, jnp.zeros((1, 28, 28, 1)))
    with pytest.raises(ValueError, match="params must fit x"):
        image.lecun_1990().apply(params, jnp.zeros((1, 32, 32, 1)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet", "googlenet"])
def test_large_networks_run_and_drop_by_key(name, key):
    build, size = {"alexnet": (image.alexnet, 227), "googlenet": (image.googlenet, 224)}[name]
    x = jax.random.normal(key, (1, size, size, 3), jnp.float32)
    params = build().init(key, x)
    plain, one, two = (apply(build(key=k), params, x) for k in (None, key, jax.random.key(9)))
    assert plain.shape == (1, 1000)
    assert np.isfinite(plain).all()
    assert np.abs(one - two).max() > 0 < np.abs(one - plain).max()


@pytest.mark.slow
def test_one_training_step_of_alexnet_lowers_its_loss(key):
    """All 60,965,224 parameters, dropout as in the paper; the loss is looked at without it."""
    x = jax.random.normal(key, (2, 227, 227, 3), jnp.float32)
    labels = jnp.array([3, 7])
    params = image.alexnet().init(key, x)

    def loss(params, net):
        return -jnp.mean(jax.nn.log_softmax(net.apply(params, x))[jnp.arange(2), labels])

    @jax.jit
    def step(params, key):
        gradient = jax.grad(loss)(params, image.alexnet(key=key))
        return jax.tree.map(lambda leaf, slope: leaf - 0.01 * slope, params, gradient)

    before = loss(params, image.alexnet())
    after = loss(step(params, jax.random.key(1)), image.alexnet())
    assert after < before
