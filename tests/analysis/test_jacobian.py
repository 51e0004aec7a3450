"""Products of random matrices: NumPy on the same matrices, chi-squared moments, extreme scales against mpmath."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import linalg, stats
from scipy.special import digamma, polygamma

from numdl.analysis import jacobian, products
from numdl.networks import core, dense, initializers

pytestmark = pytest.mark.float32


def gaussian(key, shape, dtype):
    return jax.random.normal(key, shape, dtype) / np.sqrt(shape[0])


def kept(width, depth, seed=0, scale=1.0):
    """A sampler that returns known matrices, found again by NumPy: W(key) with the key's bits as a seed."""
    table = np.random.default_rng(seed).normal(size=(64, width, width)) * scale / np.sqrt(width)
    stored = jnp.asarray(table, jnp.float32)

    def sampler(key, shape, dtype):
        assert shape == (width, width)
        return stored[jax.random.bits(key, dtype=jnp.uint32) % 64].astype(dtype)

    return sampler, np.asarray(stored, np.float64)


def used(key, draws, depth):
    """Which of the 64 matrices each layer of each draw gets."""

    def one(key):
        _, layers = jax.random.split(key)
        return jax.vmap(lambda k: jax.random.bits(k, dtype=jnp.uint32) % 64)(jax.random.split(layers, depth))

    return np.asarray(jax.vmap(one)(jax.random.split(key, draws)))


def inputs(key, draws, width):
    def one(key):
        return jax.random.normal(jax.random.split(key)[0], (width,), jnp.float32)

    return np.asarray(jax.vmap(one)(jax.random.split(key, draws)), np.float64)


@pytest.mark.parametrize("at_a_time", [None, 1, 3])
def test_log_norms_are_those_of_numpy_on_the_same_matrices(key, at_a_time):
    width, depth, draws = 7, 12, 5
    sampler, table = kept(width, depth)
    result = jacobian.product_norm(
        key, width=width, depth=depth, sampler=sampler, draws=draws, at_a_time=at_a_time, dtype=jnp.float32
    )
    chosen, y = used(key, draws, depth), inputs(key, draws, width)
    np.testing.assert_allclose(result.log_input, np.log(np.sum(y**2, axis=1)), atol=1e-5)
    for layer in range(depth):
        y = np.einsum("sij,si->sj", table[chosen[:, layer]], y)
        np.testing.assert_allclose(result.log_norm[:, layer], np.log(np.sum(y**2, axis=1)), atol=2e-5)
    np.testing.assert_allclose(result.log_ratio, result.log_norm - result.log_input[:, None], rtol=1e-6)
    assert result.log_norm.dtype == jnp.float32


def z_score(samples, expected):
    samples = np.asarray(samples, np.float64)
    return abs(samples.mean() - expected) / (samples.std(ddof=1) / np.sqrt(len(samples)))


def test_gaussian_products_have_the_moments_of_log_chi_squared(key):
    """|K z|^2 = |z|^2 chi^2_n / n independently: log moments psi(n/2) + log(2/n) and psi'(n/2) for each layer."""
    n, depth, draws = 5, 4, 8000
    result = jacobian.product_norm(key, width=n, depth=depth, sampler=gaussian, draws=draws)
    mean, variance = digamma(n / 2) + np.log(2 / n), polygamma(1, n / 2)
    assert z_score(result.log_input, digamma(n / 2) + np.log(2)) < 6
    for layer in range(depth):
        ratio = np.asarray(result.log_ratio[:, layer], np.float64)
        assert z_score(ratio, (layer + 1) * mean) < 6
        assert z_score((ratio - (layer + 1) * mean) ** 2, (layer + 1) * variance) < 6
    ratio, start = np.asarray(result.log_ratio[:, -1], np.float64), np.asarray(result.log_input, np.float64)
    assert z_score((ratio - ratio.mean()) * (start - start.mean()), 0.0) < 6


@pytest.mark.parametrize(
    "sampler, kurtosis",
    [(initializers.lecun_normal, 0.0), (initializers.lecun_uniform, -1.2),
     (initializers.variance_scaling(1.0, law="rademacher"), -2.0)],
)  # fmt: skip
def test_mean_and_variance_of_the_squared_norm_see_the_kurtosis(key, sampler, kurtosis):
    """One layer, y fixed: E |K y|^2 = |y|^2, Var |K y|^2 = (2 |y|^4 + kurtosis * sum y^4) / n, entry variance 1/n."""
    n, y = 4, jnp.array([1.0, 0.5, 0.0, 0.0], jnp.float32)
    result = jacobian.product_norm(key, width=n, depth=1, sampler=sampler, draws=20000, y=y)
    square = np.exp(np.asarray(result.log_norm[:, 0], np.float64))
    assert z_score(square, 1.25) < 6
    assert z_score((square - 1.25) ** 2, (2 * 1.25**2 + kurtosis * (1 + 0.5**4)) / n) < 6


def test_orthogonal_products_keep_the_norm(key):
    sizes = {"width": 6, "depth": 50, "draws": 3, "dtype": jnp.float32}
    result = jacobian.product_norm(key, sampler=initializers.orthogonal(1.0), **sizes)
    np.testing.assert_allclose(result.log_ratio, 0, atol=50 * 8 * jnp.finfo(jnp.float32).eps)
    half = jacobian.product_norm(key, sampler=initializers.orthogonal(0.25), **sizes)
    expected = np.tile(np.arange(1, 51) * np.log(0.25), (3, 1))
    np.testing.assert_allclose(half.log_ratio, expected, atol=50 * 8 * jnp.finfo(jnp.float32).eps)


@pytest.mark.parametrize("initializer", [initializers.he_normal, initializers.normal(0.02)])
def test_an_initializer_and_its_matrices_have_one_law(key, initializer):
    sizes = {"width": 5, "depth": 3, "draws": 3000, "dtype": jnp.float32}
    law = products.product_norm(key, sampler=initializer, **sizes).log_ratio[:, -1]
    drawn = products.product_norm(jax.random.fold_in(key, 1), sampler=initializer.sample, **sizes).log_ratio[:, -1]
    assert stats.ks_2samp(law, drawn).pvalue > 1e-6
    assert stats.ks_2samp(law, drawn + 0.5).pvalue < 1e-6  # that much would be seen


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_depth_10000_in_float32_neither_overflows_nor_drifts(key, scale):
    width, depth = 3, 10000
    sampler, table = kept(width, depth, scale=scale)
    y = jnp.array([1.0, -2.0, 0.5], jnp.float32)
    result = jacobian.product_norm(key, width=width, depth=depth, sampler=sampler, draws=1, y=y)
    exact = mpmath.matrix(y.tolist()).T
    with mpmath.workdps(30):
        matrices = [mpmath.matrix(matrix) for matrix in table.tolist()]
        for index in used(key, 1, depth)[0]:
            exact = exact * matrices[int(index)]
        expected = float(mpmath.log(sum(entry**2 for entry in exact)))
    assert abs(expected) > 1e5
    # Rounding of single layers adds up like a random walk, the sum itself is rounded once: 2e-7 of 1.4e5.
    np.testing.assert_allclose(result.log_norm[0, -1], expected, rtol=2e-7)
    assert np.isfinite(result.log_norm).all()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_a_single_layer_may_leave_the_range_of_squares(key, scale):
    y = jnp.array([1.0, 1.0], jnp.float32)

    def sampler(key, shape, dtype):
        return scale * jnp.eye(2, dtype=dtype)

    result = jacobian.product_norm(key, width=2, depth=3, sampler=sampler, draws=1, y=y)
    np.testing.assert_allclose(result.log_ratio[0], 2 * np.log(scale) * np.arange(1, 4), rtol=1e-6)


def test_a_product_that_dies_has_log_minus_infinity(key):
    def sampler(key, shape, dtype):
        return jnp.zeros(shape, dtype)

    result = jacobian.product_norm(key, width=2, depth=3, sampler=sampler, draws=2)
    assert np.isneginf(result.log_norm).all()
    assert np.isfinite(result.log_input).all()


def test_a_fixed_input_is_used_by_every_draw(key):
    y = jnp.array([3.0, 4.0], jnp.float32)
    result = jacobian.product_norm(key, width=2, depth=2, sampler=gaussian, draws=4, y=y)
    np.testing.assert_allclose(result.log_input, np.log(25.0), rtol=1e-6)
    assert len(np.unique(result.log_norm[:, 0])) == 4


def test_dtype_is_that_of_y_or_as_asked(key):
    seen = []

    def sampler(key, shape, dtype):
        seen.append(jnp.dtype(dtype))
        return jnp.eye(2, dtype=dtype)

    common = {"width": 2, "depth": 1, "sampler": sampler, "draws": 1}
    jacobian.product_norm(key, **common)
    jacobian.product_norm(key, **common, dtype=jnp.bfloat16)
    jacobian.product_norm(key, **common, y=jnp.ones(2, jnp.float16))
    assert set(seen) == {jnp.dtype(jnp.result_type(float)), jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16)}


def test_a_second_call_and_another_scale_compile_nothing(key):
    traces = []

    def counted(key, shape, dtype):
        traces.append(1)
        return gaussian(key, shape, dtype)

    results = [jacobian.product_norm(k, width=3, depth=2, sampler=counted, draws=2) for k in jax.random.split(key)]
    assert len(traces) == 1
    assert not np.allclose(results[0].log_norm, results[1].log_norm)

    def scaled(variance, key, shape, dtype):
        return jnp.sqrt(variance).astype(dtype) * counted(key, shape, dtype)

    for variance in (1.0, 4.0):
        sampler = jax.tree_util.Partial(scaled, jnp.asarray(variance, jnp.float32))
        results.append(jacobian.product_norm(key, width=3, depth=2, sampler=sampler, draws=2))
    assert len(traces) == 2
    np.testing.assert_allclose(results[3].log_ratio - results[2].log_ratio, np.log([[4.0, 16.0]] * 2), rtol=1e-5)


def test_samples_are_a_record(key):
    result = jacobian.product_norm(key, width=3, depth=2, sampler=gaussian, draws=4)
    assert [leaf.shape for leaf in jax.tree.leaves(result)] == [(4,), (4, 2)]
    assert "log_norm" in repr(result)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"key": 0}, TypeError, "key .*got 0"),
        ({"width": 0}, ValueError, "width .*got 0"),
        ({"depth": 1.5}, TypeError, "depth .*got 1.5"),
        ({"draws": 0}, ValueError, "draws .*got 0"),
        ({"at_a_time": -1}, ValueError, "at_a_time .*got -1"),
        ({"sampler": 1.0}, TypeError, "sampler .*got 1.0"),
        ({"y": np.ones(4, np.float32)}, ValueError, r"y must have shape \(3\); got \(4,\)"),
        ({"y": np.ones(3, int)}, TypeError, "y .*dtype int"),
        ({"dtype": jnp.int32}, TypeError, "dtype .*got int32"),
    ],
)
def test_bad_input_is_named(key, change, error, message):
    given = {"key": key, "width": 3, "depth": 2, "sampler": gaussian, "draws": 2} | change
    with pytest.raises(error, match=message):
        jacobian.product_norm(given.pop("key"), **given)


# ---- singular values -----------------------------------------------------------------------------------------------


def build(widths=(8, 12, 12, 12, 5), activation=jnp.tanh, weight_variance=2.0, initializer=None):
    law = {"initializer": initializer} if initializer else {"weight_variance": weight_variance}
    return dense.network(widths=widths, activation=activation, bias_variance=0.1, **law)


def by_numpy(params, x, start, stop):
    """dy_stop / dy_start of a tanh network, (stop, start), in float64."""
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    layers = [(k, b) for s in params["hidden"] for k, b in zip(s["kernel"], s["bias"], strict=True)]
    layers.append((params["readout"]["kernel"], params["readout"]["bias"]))
    y, matrix = np.asarray(x, np.float64)[0], None
    for number, (kernel, bias) in enumerate(layers):
        slope = 1 - np.tanh(y) ** 2 if number else np.ones_like(y)
        if number >= start and number < stop:
            factor = kernel.T * slope[None, :]
            matrix = factor if matrix is None else factor @ matrix
        y = (np.tanh(y) if number else y) @ kernel + bias
    return matrix


SEGMENTS = [(0, 2), (1, 3), (0, 4)]


@pytest.fixture
def point(key):
    return jax.random.normal(key, (1, 8), jnp.float32)


def tolerance(s):
    return 200 * float(jnp.finfo(jnp.float32).eps) * s[0]


@pytest.mark.float32
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_networks_are_decomposed_in_single(key, point, dtype):
    net = build(widths=(8, 12, 12, 5))
    x = point.astype(dtype)
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), net.init(key, point))
    exact = linalg.svdvals(by_numpy(params, x, 0, 2))
    rounding = 20 * float(jnp.finfo(dtype).eps) * exact[0]
    s = jacobian.singular_values(net, params, x, start=0, stop=2)
    ends = jacobian.extremes(key, net, params, x, start=0, stop=2, num_matvecs=8)
    assert s.dtype == ends.largest.dtype == jnp.float32
    np.testing.assert_allclose(s, exact, atol=rounding)
    np.testing.assert_allclose([ends.largest, ends.smallest], exact[[0, -1]], atol=rounding)
    found = jacobian.trace_moments(key, net, params, x, start=0, stop=2, order=2, draws=200)
    assert abs(found.moments[0] - np.mean(exact**2)) < 6 * found.stderr[0] + rounding * exact[0]
    values = jnp.asarray([300.0, 200.0, 100.0], dtype)
    tight = jacobian.isometry(values)
    np.testing.assert_allclose(tight.gain, np.mean(np.asarray(values, np.float64) ** 2), rtol=1e-6)
    turn = jnp.array([[0.0, 0.5], [-1.0, 0.0]], dtype)
    along = products.lyapunov_exponents_along(lambda layer, y: turn @ y, jnp.zeros(300, dtype), jnp.ones(2, dtype))
    np.testing.assert_allclose(along.exponents, np.log(0.5) / 2, rtol=1e-5)
    drawn = products.lyapunov_exponents(key, width=2, depth=10, sampler=lambda key, shape, dtype: turn, dtype=dtype)
    np.testing.assert_allclose(drawn.exponents, np.log(0.5) / 2, rtol=1e-5)


@pytest.mark.parametrize("start, stop", SEGMENTS)
def test_singular_values_and_extremes_by_scipy(key, point, start, stop):
    net = build()
    params = net.init(key, point)
    expected = linalg.svdvals(by_numpy(params, point, start, stop))
    s = jacobian.singular_values(net, params, point, start=start, stop=stop)
    np.testing.assert_allclose(s, expected, atol=tolerance(expected))
    ends = jacobian.extremes(key, net, params, point, start=start, stop=stop, num_matvecs=50)
    np.testing.assert_allclose([ends.largest, ends.smallest], expected[[0, -1]], atol=tolerance(expected))
    assert max(ends.largest_residual, ends.smallest_residual) <= tolerance(expected)


def test_few_steps_bracket_the_largest_singular_value(key, point):
    net = build((8, 40, 40, 40, 5))
    params = net.init(key, point)
    expected = linalg.svdvals(by_numpy(params, point, 1, 3))
    residuals = []
    for steps in (2, 8):
        ends = jacobian.extremes(key, net, params, point, start=1, stop=3, num_matvecs=steps)
        assert ends.largest <= expected[0] + tolerance(expected)
        assert np.abs(expected - float(ends.largest)).min() <= ends.largest_residual + tolerance(expected)
        assert np.isnan(ends.smallest)
        residuals.append(float(ends.largest_residual))
    assert residuals[1] < residuals[0] / 5


@pytest.mark.parametrize("activation", [lambda z: z, lambda z: jnp.where(z > 0, z, 0 * z)])
def test_repeated_and_zero_singular_values_are_found(key, point, activation):
    """An isometry exhausts the Krylov space in one step; relu leaves zeros."""
    net = build((8, 9, 9, 9, 9), activation, initializer=initializers.orthogonal(1.0))
    params = net.init(key, point)
    s = jacobian.singular_values(net, params, point, start=1, stop=3)
    ends = jacobian.extremes(key, net, params, point, start=1, stop=3, num_matvecs=9)
    np.testing.assert_allclose([ends.largest, ends.smallest], [s[0], s[-1]], atol=1e-5)
    assert ends.smallest_residual < 1e-5


@pytest.mark.parametrize("start, stop", [(0, 3), (1, 3), (2, 4)])
def test_trace_moments_are_unbiased_and_their_errors_right(key, point, start, stop):
    net = build()
    params = net.init(key, point)
    J = by_numpy(params, point, start, stop)
    gram = J.T @ J
    expected = [np.trace(np.linalg.matrix_power(gram, k)) / len(gram) for k in (1, 2, 3)]
    found = jacobian.trace_moments(key, net, params, point, start=start, stop=stop, order=3, draws=3000)
    assert found.samples.shape == (3000, 3)
    assert np.all(np.abs(found.moments - np.array(expected)) < 6 * found.stderr)
    for k in (1, 2, 3):  # Hutchinson's variance: 2 (|A|_F^2 - sum a_ii^2)
        A = np.linalg.matrix_power(gram, k) / len(gram)
        exact = np.sqrt(2 * (np.sum(A**2) - np.sum(np.diag(A) ** 2)) / 3000)
        assert found.stderr[k - 1] == pytest.approx(exact, rel=0.3)


def test_spectra_are_the_singular_values_of_one_network_per_key(key, point):
    net = build()
    found = jacobian.spectra(key, net, point, seeds=3, start=1, stop=4)
    params = net.init(jax.random.split(key, 3)[2], point)
    np.testing.assert_allclose(found[2], linalg.svdvals(by_numpy(params, point, 1, 4)), atol=1e-5)
    assert found.shape == (3, 5)


def test_states_with_axes_and_the_readout_of_no_layer(key):
    """An image-shaped state, and a network without layers: the map from input to outputs."""
    weights = jax.random.normal(key, (12, 12), jnp.float32)

    def states(params, x, probes=None):
        y = (x.reshape(1, -1) @ params).reshape(1, 2, 3, 2)
        return ((y if probes is None else y + probes[0][0])[None],)

    net = core.Network(lambda key, x: weights, states, lambda params, y: y.reshape(1, -1))
    x = jnp.ones((1, 2, 3, 2), jnp.float32)
    expected = linalg.svdvals(np.asarray(weights, np.float64))
    s = jacobian.singular_values(net, weights, x, start=0, stop=1)
    ends = jacobian.extremes(key, net, weights, x, start=0, stop=2, num_matvecs=12)
    np.testing.assert_allclose(s, expected, rtol=1e-4)
    np.testing.assert_allclose(ends.largest, expected[0], rtol=1e-5)
    flat = build((8, 3))
    params = flat.init(key, x.reshape(1, 12)[:, :8])
    ends = jacobian.extremes(key, flat, params, x.reshape(1, 12)[:, :8], start=0, stop=1, num_matvecs=3)
    kernel = np.asarray(params["readout"]["kernel"], np.float64)
    np.testing.assert_allclose(ends.smallest, linalg.svdvals(kernel)[-1], rtol=1e-4)


def test_isometry_by_hand():
    s = jnp.asarray([[2.0, 2.0, 2.0, 2.0], [4.0, 2.0, 1.0, 0.0]], jnp.float32)
    found = jacobian.isometry(s)
    np.testing.assert_allclose(found.score, [1.0, (21 / 4) ** 2 / (273 / 4)], rtol=1e-6)
    np.testing.assert_allclose(found.gain, [4.0, 21 / 4], rtol=1e-6)
    np.testing.assert_allclose(found.log_spread, [0.0, np.std(np.log([4.0, 2.0, 1.0]))], atol=1e-6)
    np.testing.assert_allclose(found.condition, [1.0, 4.0], rtol=1e-6)
    np.testing.assert_allclose(found.zeros, [0.0, 0.25], atol=1e-6)
    assert jacobian.isometry(s[1], zero_below=0.3).zeros == 0.5
    tiny = jacobian.isometry(s * 1e-25)  # fourth powers would leave float32
    np.testing.assert_allclose(tiny.score, found.score, rtol=1e-5)
    assert np.isnan(jacobian.isometry(jnp.zeros(3, jnp.float32)).score)


# ---- Lyapunov exponents --------------------------------------------------------------------------------------------


def test_lyapunov_exponents_by_numpy_on_the_same_matrices(key):
    width, depth = 5, 40
    sampler, table = kept(width, depth, scale=0.3)
    found = jacobian.lyapunov_exponents(key, width=width, depth=depth, sampler=sampler, dtype=jnp.float32)
    chosen = jax.vmap(lambda k: jax.random.bits(k, dtype=jnp.uint32) % 64)(jax.random.split(key, depth))
    q, logs = np.eye(width), []
    for index in np.asarray(chosen):
        q, r = np.linalg.qr(table[index].T @ q)
        logs.append(np.log(np.abs(np.diag(r))))
    np.testing.assert_allclose(found.log_growth, logs, atol=1e-3)
    np.testing.assert_allclose(found.exponents, np.mean(logs, axis=0), atol=1e-4)
    np.testing.assert_allclose(found.stderr, np.std(logs, axis=0, ddof=1) / np.sqrt(depth), rtol=1e-3)


@pytest.mark.parametrize("entry_variance", [1 / 8, 1e6, 1e-12])
def test_ten_thousand_layers_in_float32(key, entry_variance):
    """Exact law: (ln 2 s^2 + psi((n - i) / 2)) / 2; the product itself reaches 1e+-60000."""
    found = jacobian.lyapunov_exponents(
        key, width=8, depth=10_000, sampler=initializers.normal(entry_variance), dtype=jnp.float32
    )
    assert found.exponents.dtype == jnp.float32
    freedom = np.arange(8, 0, -1) / 2
    expected = (np.log(2 * entry_variance) + digamma(freedom)) / 2
    assert np.all(np.abs(found.exponents - expected) < 6 * found.stderr)
    np.testing.assert_allclose(found.stderr, np.sqrt(polygamma(1, freedom) / 4 / 10_000), rtol=0.05)


def test_lyapunov_exponents_along_a_recurrence_add_up_to_the_determinant():
    rng = np.random.default_rng(0)
    layers = {"W": rng.normal(size=(30, 4, 4)) / 2, "b": rng.normal(size=(30, 4))}
    y, log_determinant, q, logs = rng.normal(size=4), 0.0, np.eye(4), []
    start = y
    for W, b in zip(layers["W"], layers["b"], strict=True):
        matrix = W.T * (1 - np.tanh(y) ** 2)[None, :]
        log_determinant += np.linalg.slogdet(matrix)[1]
        q, r = np.linalg.qr(matrix @ q)
        logs.append(np.log(np.abs(np.diag(r))))
        y = np.tanh(y) @ W + b
    found = jacobian.lyapunov_exponents_along(
        lambda layer, y: jnp.tanh(y) @ layer["W"] + layer["b"],
        jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), layers),
        jnp.asarray(start, jnp.float32),
    )
    assert found.exponents.sum() * 30 == pytest.approx(log_determinant, abs=1e-2)
    np.testing.assert_allclose(found.exponents, np.mean(logs, axis=0), atol=1e-3)


@pytest.mark.parametrize(
    "call, change, error, message",
    [
        (jacobian.singular_values, {"start": 3, "stop": 3}, ValueError, "stop must be .*got 3"),
        (jacobian.extremes, {"stop": 9}, ValueError, "stop must be an integer in 2..4; got 9"),
        (jacobian.extremes, {"num_matvecs": 0}, ValueError, "num_matvecs must be .*got 0"),
        (jacobian.extremes, {"key": 1}, TypeError, "key must be .*got 1"),
        (jacobian.extremes, {"x": np.ones((2, 8), np.float32)}, ValueError, r"x must be one example.*\(2, 8\)"),
        (jacobian.trace_moments, {"draws": 1}, ValueError, "draws must be an integer >= 2; got 1"),
        (jacobian.trace_moments, {"order": 0}, ValueError, "order must be .*got 0"),
        (jacobian.trace_moments, {"start": -1}, ValueError, "start must be .*got -1"),
    ],
)
def test_bad_segments_are_named(key, point, call, change, error, message):
    net = build()
    own = {jacobian.extremes: {"num_matvecs": 3}, jacobian.trace_moments: {"order": 2, "draws": 5}}.get(call, {})
    given = {"key": key, "x": point, "start": 1, "stop": 3} | own | change
    positional = [given.pop("key"), net, net.init(key, point), given.pop("x")]
    positional = positional if own else positional[1:]
    with pytest.raises(error, match=message):
        call(*positional, **given)


def test_bad_products_are_named(key):
    with pytest.raises(TypeError, match=r"sampler must be a function; got 3"):
        jacobian.lyapunov_exponents(key, width=2, depth=2, sampler=3)
    with pytest.raises(TypeError, match=r"dtype must be .*got int32"):
        jacobian.lyapunov_exponents(key, width=2, depth=2, sampler=gaussian, dtype=jnp.int32)
    with pytest.raises(ValueError, match=r"layers must hold at least one array"):
        jacobian.lyapunov_exponents_along(lambda layer, y: y, (), jnp.ones(2))
    with pytest.raises(ValueError, match=r"zero_below must be .*got -1"):
        jacobian.isometry(jnp.ones(3), zero_below=-1.0)
