"""Tangent kernels against the product of Jacobians, in blocks and by every method; against theory in 1 / width."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from numdl import activations, statistics
from numdl.analysis import kernels as measured
from numdl.networks import dense
from numdl.theory import kernels as predicted

WIDEST = jnp.zeros(()).dtype
TOLERANCE = 300 * float(jnp.finfo(WIDEST).eps)


def draw(key, *shapes):
    keys = jax.random.split(jax.random.key(key), len(shapes))
    return [jax.random.normal(k, shape, WIDEST) for k, shape in zip(keys, shapes, strict=True)]


def convolutional(params, x):
    """Two convolutions of different strides and dilations, a transposed weight, gains, a weight used twice."""
    numbers = ("NHWC", "HWIO", "NHWC")
    x = lax.conv_general_dilated(x, params["first"], (2, 1), "SAME", dimension_numbers=numbers)
    x = jnp.tanh(x + params["bias"][None, None, None])
    x = lax.conv_general_dilated(x, params["second"], (1, 1), "VALID", rhs_dilation=(1, 2), dimension_numbers=numbers)
    x = jnp.tanh(x).reshape(x.shape[0], -1)
    x = jnp.tanh(x @ params["out"].T * params["gain"][None] + params["last"][None])
    return x @ params["twice"] @ params["twice"]


def recurrent(params, x):
    """Weights shared by the steps of a scan, a checkpoint, tokens, a leaf that is no float."""

    @jax.checkpoint
    def step(h, token):
        return jnp.tanh(h @ params["recurrent"] + token @ params["input"] + params["bias"][None]), None

    start = jnp.zeros((x.shape[0], 4), x.dtype)
    h = lax.scan(step, start, jnp.tanh(x @ params["token"] + params["token_bias"][None, None]).swapaxes(0, 1))[0]
    return h @ params["readout"] * params["power"]


def grouped(params, x):
    """A transposed convolution, groups of channels, a weight for each head."""
    numbers = ("NHWC", "HWIO", "NHWC")
    pad = ((1, 1), (1, 1))
    x = lax.conv_general_dilated(x, params["first"], (1, 1), pad, lhs_dilation=(2, 2), dimension_numbers=numbers)
    x = lax.conv_general_dilated(
        jnp.tanh(x), params["second"], (3, 3), "SAME", feature_group_count=2, dimension_numbers=numbers
    )
    x = jnp.tanh(x).reshape(x.shape[0], -1, 2)
    return jnp.einsum("nth,htk->nk", x, params["heads"])


def deep(params, x):
    return NETWORK.apply(params, x)


NETWORK = dense.network(
    widths=(3, 4, 4, 4, 2), activation=activations.tanh, weight_variance=2.0, bias_variance=0.1, dtype=WIDEST
)


def problem(name):
    """(apply, params, x [7, ...])"""
    if name == "deep":
        x = draw(1, (7, 3))[0]
        return deep, NETWORK.init(jax.random.key(0), x), x
    if name == "convolutional":
        shapes = (3, 3, 1, 2), (2,), (2, 2, 2, 3), (3, 24), (3,), (3,), (3, 3)
        names = "first", "bias", "second", "out", "gain", "last", "twice"
        return convolutional, dict(zip(names, draw(2, *shapes))), draw(3, (7, 6, 6, 1))[0]
    if name == "grouped":
        shapes = (2, 2, 1, 4), (3, 3, 2, 2), (2, 9, 3)
        return grouped, dict(zip(("first", "second", "heads"), draw(6, *shapes))), draw(7, (7, 4, 4, 1))[0]
    shapes = (4, 4), (3, 4), (4,), (2, 3), (3,), (4, 2)
    names = "recurrent", "input", "bias", "token", "token_bias", "readout"
    return recurrent, dict(zip(names, draw(4, *shapes))) | {"power": jnp.asarray(2)}, draw(5, (7, 5, 2))[0]


def explicit(apply, params, x1, x2, scale=None):
    """[N1, N2, k, k] from whole Jacobians, in NumPy float64."""
    names = sorted(params) if isinstance(params, dict) and scale else None
    total = 0.0
    floats, rest = {}, {}
    for index, leaf in enumerate(jax.tree.leaves(params)):
        (floats if jnp.issubdtype(leaf.dtype, jnp.floating) else rest)[index] = leaf

    def function(floats, x):
        both = floats | rest
        return apply(jax.tree.unflatten(jax.tree.structure(params), [both[i] for i in sorted(both)]), x)

    jacobian = jax.jit(jax.jacrev(function))(floats, jnp.concatenate([x1, x2]))
    jacobians = [{i: j[: len(x1)] for i, j in jacobian.items()}, {i: j[len(x1) :] for i, j in jacobian.items()}]
    for index in floats:
        a, b = (np.asarray(j[index], np.float64) for j in jacobians)
        factor = scale[names[index]] if names else 1.0
        total = total + factor * np.einsum("nip,mjp->nmij", *(m.reshape(*m.shape[:2], -1) for m in (a, b)))
    return total


def close(got, expected):
    np.testing.assert_allclose(np.asarray(got), expected, rtol=0, atol=TOLERANCE * np.abs(expected).max())


@pytest.mark.float32
@pytest.mark.parametrize(
    "name, method",
    [(name, "layers") for name in ("deep", "convolutional", "recurrent", "grouped")]
    + [("recurrent", "jacobian"), ("recurrent", "products")],
)
def test_every_method_is_the_product_of_jacobians(name, method):
    """With a scale for each leaf, by a tree or by a function of its name; without any."""
    apply, params, x = problem(name)
    scale = None if name == "deep" else {leaf: 0.5 + index for index, leaf in enumerate(sorted(params))}
    given = (lambda path, leaf: scale[path]) if name == "convolutional" else scale
    found = measured.ntk(apply, params, x[:4], x[4:], outputs="full", method=method, scale=given)
    assert found.shape[:2] == (4, 3) and found.dtype == WIDEST
    close(found, explicit(apply, params, x[:4], x[4:], scale))


@pytest.mark.parametrize("method, small, smaller", [("layers", 11500, 9800), ("products", 7500, 5000)])
def test_blocks_symmetry_and_means(method, small, smaller):
    """Small blocks, the last one not full, kept or computed again, give the same kernel; so does x2 = None."""
    apply, params, x = problem("deep")
    whole = explicit(apply, params, x, x)
    mean = np.trace(whole, axis1=2, axis2=3) / whole.shape[-1]
    plans = set()
    for outputs, expected in (("full", whole), ("mean", mean)):
        for limit in (None, small) if outputs == "full" else (smaller,):
            options = {"outputs": outputs, "method": method, "memory_limit": limit}
            plan = measured.estimate(apply, params, x, **options)
            plans.add((plan.block, plan.kept, plan.whole))
            assert plan.method == method and (limit is None or plan.bytes <= limit)
            close(measured.ntk(apply, params, x, **options), expected)
    assert len(plans) >= 2
    if method == "layers":
        assert plans == {(7, True, True), (2, False, False), (4, True, False)}


def test_dense_weights_are_found_and_no_jacobian_is_made():
    """A wide network's kernel in far less memory than its Jacobian has numbers."""

    def apply(params, x):
        for weight, bias in params[:-1]:
            x = jnp.tanh(x @ weight.T + bias)
        return x @ params[-1][0] + params[-1][1]

    params = [(jnp.ones((300, 20)), jnp.ones((1, 300))), (jnp.ones((300, 300)), jnp.ones((1, 300)))]
    params.append((jnp.ones((300, 2)), jnp.ones((1, 2))))
    x = jnp.ones((10, 20))
    plan = measured.estimate(apply, params, x, outputs="full")
    jacobian = x.itemsize * 10 * 2 * sum(leaf.size for leaf in jax.tree.leaves(params))
    assert plan.method == "layers" and plan.bytes < jacobian / 10
    assert plan.flops == plan.flops_of[0] < plan.flops_of[1] / 10
    compiled = jax.jit(lambda p, x: measured.ntk(apply, p, x, outputs="full")).lower(params, x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < jacobian / 4


def test_the_estimate_bounds_the_memory_that_is_used():
    apply, params, x = problem("convolutional")
    x = jnp.tile(x, (10, 1, 1, 1))
    for limit in (1e6, 2e7):
        plan = measured.estimate(apply, params, x, outputs="full", memory_limit=limit)
        run = jax.jit(lambda p, x, limit=limit: measured.ntk(apply, p, x, outputs="full", memory_limit=limit))
        used = run.lower(params, x).compile().memory_analysis()
        assert plan.bytes <= limit
        assert used.temp_size_in_bytes + used.output_size_in_bytes <= 1.5 * plan.bytes


def test_products_are_chosen_where_they_are_cheapest():
    """Many outputs of few weights each used often: no block of Jacobians."""

    def apply(params, x):
        return jnp.tanh(x @ params["in"]) @ (params["out"] * params["gain"])

    params = {"in": jnp.ones((2, 2)), "out": jnp.ones((2, 200)), "gain": jnp.ones((2, 200))}
    plan = measured.estimate(apply, params, jnp.ones((50, 2)), outputs="full")
    assert plan.method == "products"
    assert plan.flops == min(plan.flops_of)


def test_ntk_scale_counts_products_of_each_output():
    apply, params, x = problem("convolutional")
    found = measured.ntk_scale(apply, params, x, weight_variance=2.0, bias_variance=0.3)
    expected = {"first": 2 / 9, "second": 2 / 8, "out": 2 / 24, "twice": 2 / 3, "bias": 0.3, "gain": 0.3, "last": 0.3}
    assert found == pytest.approx(expected)
    apply, params, x = problem("deep")
    found = measured.ntk_scale(apply, params, x, weight_variance=2.0, bias_variance=0.3)
    assert found["hidden"][1]["kernel"] == 0.5 and found["hidden"][0]["kernel"] == pytest.approx(2 / 3)


def test_ntk_scale_of_weights_side_by_side():
    """Gates of a cell in one product: each has the fan_in of the product, not the largest one alone."""
    params = {"gate": jnp.ones((3, 4)), "cell": jnp.ones((3, 5)), "g": jnp.ones(4), "v": jnp.ones((9, 4))}

    def apply(p, x):
        return jnp.tanh(x @ jnp.concatenate([p["gate"], p["cell"]], axis=1)) @ (p["g"][None] * p["v"])

    found = measured.ntk_scale(apply, params, jnp.ones((5, 3)), weight_variance=2.0, bias_variance=0.3)
    assert found == pytest.approx({"gate": 2 / 3, "cell": 2 / 3, "v": 2 / 9, "g": 0.3})


LAW = {"activation": activations.relu, "weight_variance": 2.0, "bias_variance": 0.1}
PAIR = jnp.asarray([[1.0, 0.5, -0.3], [0.2, -1.0, 0.4]], jnp.float32)


def sampled(widths, seeds):
    """Kernels in the NTK parameterization of independent networks, [seeds, 2, 2], float64."""
    network = dense.network(widths=(3, *widths, 1), **LAW)
    variances = {"weight_variance": 2.0, "bias_variance": 0.1}
    shapes = jax.eval_shape(network.init, jax.random.key(0), PAIR)
    scale = measured.ntk_scale(network.apply, shapes, PAIR, **variances)

    def one(key):
        return measured.ntk(network.apply, network.init(key, PAIR), PAIR, PAIR, scale=scale, method="layers")

    keys = jax.random.split(jax.random.key(sum(widths)), seeds)
    return network, np.asarray(jax.jit(lambda keys: lax.map(one, keys))(keys), np.float64)


def test_twins_agree_at_every_width_with_one_hidden_layer():
    """Sums over independent hidden units: the mean is that of infinite width, exactly."""
    network, kernels = sampled((16,), 2000)
    told = predicted.dense(np.asarray(PAIR), np.asarray(PAIR), depth=1, **LAW)
    agreement = statistics.agreement(told.ntk, kernels)
    assert np.all(np.abs(agreement.z) < 6) and np.all(agreement.stderr < 0.05 * told.ntk.max())
    covariance = measured.nngp(jax.random.key(5), network, PAIR, seeds=2000)
    assert covariance.shape == (2000, 2, 2)
    assert np.all(np.abs(statistics.agreement(told.nngp, covariance).z) < 6)


@pytest.mark.slow
def test_twins_agree_at_infinite_width():
    """Means over networks of two widths, extrapolated in 1 / width, beside theory; in standard errors."""
    found = [statistics.mean_and_error(sampled((width, 2 * width), 2000)[1]) for width in (24, 72)]
    told = predicted.ntk(np.asarray(PAIR), np.asarray(PAIR), depth=2, **LAW)
    for i, j in ((0, 0), (0, 1), (1, 1)):
        means, errors = [f.mean[i, j] for f in found], [f.stderr[i, j] for f in found]
        limit = statistics.extrapolate(1 / np.array([24, 72]), means, errors)
        assert abs(limit.mean - told[i, j]) < 6 * limit.stderr
        assert limit.stderr < 0.03 * told[i, j]


@pytest.mark.float32
@pytest.mark.parametrize("dtype, scale", [("float16", 1e3), ("bfloat16", 1e25), ("float32", 1e-30)])
def test_kernels_of_any_scale_and_of_zero_are_compared(dtype, scale):
    rows = np.random.default_rng(0).normal(size=(2, 5, 3))
    a, b = (jnp.asarray(m @ m.T, dtype) * jnp.asarray(scale, dtype) for m in rows)
    p, q = (np.asarray(m, np.float64) for m in (a, b))
    cosine = np.sum(p * q) / np.sqrt(np.sum(p * p) * np.sum(q * q))
    np.testing.assert_allclose(measured.alignment(a, b, centered=False), cosine, rtol=1e-5)
    np.testing.assert_allclose(measured.drift(a, b), np.linalg.norm(q - p) / np.linalg.norm(p), rtol=1e-5)
    zero = jnp.zeros_like(a)
    for centered in (True, False):
        assert np.isnan(measured.alignment(zero, b, centered=centered))
        assert np.isnan(measured.alignment(a, zero, centered=centered))
    assert np.isposinf(measured.drift(zero, b)) and np.isnan(measured.drift(zero, zero))
    assert measured.drift(a, zero) == 1
    assert np.isnan(measured.alignment(np.full((5, 5), 3.0), b))  # centering leaves nothing
    targets = jnp.full((2, 40), 100.0, dtype)
    np.testing.assert_array_equal(measured.target_kernel(targets), np.full((2, 2), 4e5))


@pytest.mark.float32
def test_alignment_and_drift():
    rng = np.random.default_rng(0)
    a, b = (m @ m.T for m in rng.normal(size=(2, 6, 4)))
    center = np.eye(6) - 1 / 6
    for centered, (p, q) in ((True, (center @ a @ center, center @ b @ center)), (False, (a, b))):
        expected = np.sum(p * q) / np.sqrt(np.sum(p * p) * np.sum(q * q))
        found = measured.alignment(jnp.asarray(a, WIDEST), jnp.asarray(b, WIDEST), centered=centered)
        np.testing.assert_allclose(found, expected, rtol=TOLERANCE)
    np.testing.assert_allclose(measured.alignment(a, 3 * a + 2.0), 1, rtol=TOLERANCE)
    np.testing.assert_allclose(measured.drift(a, b), np.linalg.norm(b - a) / np.linalg.norm(a), rtol=TOLERANCE)
    assert measured.drift(a, np.stack([a, 2 * a])).shape == (2,)
    labels = np.array([0, 1, 1])
    np.testing.assert_array_equal(measured.target_kernel(labels), [[1, 0, 0], [0, 1, 1], [0, 1, 1]])
    np.testing.assert_array_equal(measured.target_kernel(np.array([1.0, 2.0])), [[1, 2], [2, 4]])


def test_linearization_and_its_error():
    """The remainder falls with the square of the step, and is nothing for a model linear in its parameters."""
    apply, params, x = problem("convolutional")
    apply = jax.jit(apply)
    aside = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), params)
    moved = [jax.tree.map(lambda p, d, h=h: p + h * d, params, aside) for h in (1e-3, 5e-4)]
    found = [measured.linearization_error(apply, params, there, x) for there in moved]
    assert found[0].error / found[1].error == pytest.approx(4, rel=0.02)
    assert found[0].relative / found[1].relative == pytest.approx(2, rel=0.02)
    linear = jax.jit(measured.linearize(apply, params))
    np.testing.assert_allclose(linear(params, x), apply(params, x))
    h = 1e-6
    slope = (apply(jax.tree.map(lambda p, d: p + h * d, params, aside), x) - apply(params, x)) / h
    line = linear(jax.tree.map(jnp.add, params, aside), x) - apply(params, x)
    np.testing.assert_allclose(line, slope, atol=1e-3)
    still = measured.linearization_error(lambda w, x: x @ w, jnp.ones((3, 2)), jnp.zeros((3, 2)), jnp.ones((4, 3)))
    assert still.relative < 1e-12 and still.change > 1
    assert measured.linearization_error(apply, params, params, x).relative == 0


def test_laziness_along_a_trajectory():
    """A model linear in its parameters is lazy however far it goes; a scaled product is not."""

    def product(params, x):
        return x @ params["u"] @ params["v"]

    u, v, x, y = draw(7, (3, 4), (4, 1), (6, 3), (6, 1))
    factors = jnp.asarray([1.0, 1.5, 3.0])
    trajectory = {"u": jnp.multiply.outer(factors, u), "v": jnp.multiply.outer(factors, v)}
    found = measured.laziness(product, trajectory, x, targets=y)
    np.testing.assert_allclose(found.drift, factors**2 - 1, atol=1e-9)  # the kernel is quadratic in the factor
    np.testing.assert_allclose(found.distance, factors - 1, atol=1e-9)
    # f = c^2 f_0, f_lin = f_0 + 2 (c - 1) f_0
    np.testing.assert_allclose(found.linearization_error[1:], (factors[1:] - 1) / (factors[1:] + 1), atol=1e-9)
    expected = measured.alignment(explicit(product, {"u": u, "v": v}, x, x)[..., 0, 0], np.asarray(y @ y.T))
    np.testing.assert_allclose(found.alignment, expected, atol=1e-9)


def test_bad_arguments_are_named():
    apply, params, x = problem("deep")
    for error, text, call in (
        (TypeError, "apply must be a function", lambda: measured.ntk(1, params, x)),
        (
            ValueError,
            "outputs must be one of mean, full; got 'trace'",
            lambda: measured.ntk(apply, params, x, outputs="trace"),
        ),
        (ValueError, "method must be one of auto", lambda: measured.ntk(apply, params, x, method="fast")),
        (ValueError, "x2 must have examples like x1's", lambda: measured.ntk(apply, params, x, x[:, :2])),
        (ValueError, "memory_limit must be .* > 0; got 0", lambda: measured.ntk(apply, params, x, memory_limit=0)),
        (MemoryError, "memory_limit is 100", lambda: measured.ntk(apply, params, x, memory_limit=100)),
        (ValueError, "scale of .* >= 0; got -1", lambda: measured.ntk(apply, params, x, scale=-1.0)),
        (TypeError, "one array of real numbers", lambda: measured.ntk(lambda p, x: (x, x), params, x)),
        (
            ValueError,
            "trajectory must have leaves of one length along axis 0",
            lambda: measured.laziness(apply, params, x),
        ),
        (ValueError, r"kernel2 must have shape \(2, 2\)", lambda: measured.alignment(np.eye(2), np.eye(3))),
    ):
        with pytest.raises(error, match=text):
            call()
