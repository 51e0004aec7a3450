"""Measured lengths, correlations and second moments: brute force in NumPy, and exact laws of linear networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.analysis import normalization, propagation
from numdl.networks import core, dense, residual

pytestmark = pytest.mark.float32

WIDTHS = (6, 9, 9, 9, 4)


def build(activation=jnp.tanh, widths=WIDTHS, weight_variance=1.5, bias_variance=0.2):
    return dense.network(
        widths=widths, activation=activation, weight_variance=weight_variance, bias_variance=bias_variance
    )


def linear(z):
    return z


@pytest.fixture
def x(key):
    return jax.random.normal(key, (4, 6), jnp.float32)


def layer_states(net, params, x):
    return [np.asarray(layer, np.float64) for stretch in net.states(params, x) for layer in stretch]


def test_each_measurement_at_given_parameters_by_brute_force(key, x):
    net = build()
    params, pairs = net.init(key, x), x.reshape(2, 2, 6)
    states = layer_states(net, params, x)
    tolerance = {"rtol": 100 * jnp.finfo(jnp.float32).eps, "atol": 100 * jnp.finfo(jnp.float32).eps}
    np.testing.assert_allclose(propagation.lengths_at(net, params, x), [np.mean(y**2) for y in states], **tolerance)
    moments = [[[np.dot(u, v) / 9 for v in y] for u in y] for y in states]
    np.testing.assert_allclose(propagation.covariances_at(net, params, x), moments, **tolerance)
    units = [y / np.linalg.norm(y, axis=1)[:, None] for y in states]
    cosines = [[np.dot(u[2 * p], u[2 * p + 1]) for u in units] for p in range(2)]
    np.testing.assert_allclose(propagation.correlations_at(net, params, pairs), cosines, **tolerance)


@pytest.mark.parametrize(
    "measure, shape", [("lengths", (3, 3)), ("correlations", (3, 2, 3)), ("covariances", (3, 3, 4, 4))]
)
def test_samples_are_the_measurements_of_one_network_per_key(key, x, measure, shape):
    net, given = build(), x.reshape(2, 2, 6) if measure == "correlations" else x
    samples = getattr(propagation, measure)(key, net, given, seeds=3)
    assert samples.shape == shape
    assert samples.dtype == jnp.float32
    params = net.init(jax.random.split(key, 3)[2], x)
    expected = getattr(propagation, f"{measure}_at")(net, params, given)
    np.testing.assert_allclose(samples[2], expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(samples[0], samples[1], rtol=1e-3)


@pytest.mark.parametrize("at_a_time", [2, 9])
def test_batches_of_seeds_give_the_same_samples(key, x, at_a_time):
    one_by_one = propagation.lengths(key, build(), x, seeds=3, at_a_time=1)
    together = propagation.lengths(key, build(), x, seeds=3, at_a_time=at_a_time)
    np.testing.assert_allclose(together, one_by_one, rtol=1e-5)


def z_scores(samples, expected):
    samples = np.asarray(samples, np.float64)
    return (samples.mean(axis=0) - expected) / (samples.std(axis=0, ddof=1) / np.sqrt(len(samples)))


def test_lengths_of_a_linear_network_are_exact_at_every_width(key, x):
    """E y_l^2 = weight_variance * E y_{l-1}^2 + bias_variance holds at width 9, not only in the limit."""
    expected, q = [], float(np.mean(np.asarray(x, np.float64) ** 2))
    for _ in range(3):
        q = 1.5 * q + 0.2
        expected.append(q)
    samples = propagation.lengths(key, build(linear), x, seeds=4000)
    assert np.all(np.abs(z_scores(samples, expected)) < 6)


def test_covariances_of_a_linear_network_are_exact_at_every_width(key, x):
    expected, k = [], np.asarray(x, np.float64) @ np.asarray(x, np.float64).T / 6
    for _ in range(3):
        k = 1.5 * k + 0.2
        expected.append(k)
    samples = propagation.covariances(key, build(linear), x, seeds=4000)
    assert np.all(np.abs(z_scores(samples, expected)) < 6)


def test_correlation_of_equal_and_of_opposite_inputs(key, x):
    pairs = jnp.stack([jnp.stack([x[0], x[0]]), jnp.stack([x[0], -x[0]])])
    samples = propagation.correlations(key, build(bias_variance=0.0), pairs, seeds=3)  # tanh is odd: no bias, no mixing
    np.testing.assert_allclose(samples[:, 0], 1, rtol=1e-6)
    np.testing.assert_allclose(samples[:, 1], -1, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_correlations_survive_where_squares_leave_float32(key, x, scale):
    pairs = x.reshape(2, 2, 6)
    net = build(linear, bias_variance=0.0)
    plain = propagation.correlations(key, net, pairs, seeds=2)
    np.testing.assert_allclose(propagation.correlations(key, net, scale * pairs, seeds=2), plain, rtol=1e-3, atol=1e-5)


def test_dead_states_have_no_correlation(key):
    net = build(lambda z: 0 * z, bias_variance=0.0)
    samples = propagation.correlations(key, net, jnp.ones((1, 2, 6), jnp.float32), seeds=1)
    assert np.isfinite(samples[0, 0, 0])
    assert np.isnan(samples[0, 0, 1:]).all()


def test_units_are_all_axes_but_the_batch(key):
    x = jax.random.normal(key, (4, 3, 2), jnp.float32)
    net = core.Network(lambda key, x: (), lambda params, x, probes=None: (x[None],), lambda params, y: y)
    flat = np.asarray(x, np.float64).reshape(4, 6)
    np.testing.assert_allclose(propagation.covariances(key, net, x, seeds=1)[0, 0], flat @ flat.T / 6, rtol=1e-5)
    np.testing.assert_allclose(propagation.lengths(key, net, x, seeds=1)[0, 0], np.mean(flat**2), rtol=1e-5)
    cosine = flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1])
    np.testing.assert_allclose(
        propagation.correlations(key, net, x.reshape(2, 2, 3, 2), seeds=1)[0, 0, 0], cosine, rtol=1e-5
    )


def test_half_precision_states_are_averaged_in_float32(key):
    x = jnp.full((1, 4096), 1.0078125, jnp.bfloat16)
    net = core.Network(lambda key, x: (), lambda params, x, probes=None: (x[None],), lambda params, y: y)
    np.testing.assert_allclose(propagation.lengths(key, net, x, seeds=1)[0, 0], 1.0078125**2, rtol=1e-6)


@pytest.mark.parametrize("measure", ["lengths", "correlations", "covariances"])
def test_a_second_call_and_other_variances_compile_nothing(key, x, measure):
    traces = []

    def counted(z):
        traces.append(1)
        return jnp.tanh(z)

    function, given = getattr(propagation, measure), x.reshape(2, 2, 6) if measure == "correlations" else x
    first = function(key, build(counted), given, seeds=2)
    once = len(traces)
    again = function(key, build(counted), given, seeds=2)
    other = function(key, build(counted, weight_variance=2.5, bias_variance=0.0), given, seeds=2)
    assert len(traces) == once > 0
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


def test_a_sweep_over_variances_is_one_program(key, x):
    def swept(variance):
        return propagation.lengths(key, build(weight_variance=variance), x, seeds=2)

    samples = jax.lax.map(swept, jnp.array([0.5, 1.5], jnp.float32))
    np.testing.assert_allclose(samples[1], propagation.lengths(key, build(), x, seeds=2), rtol=1e-5)


def test_depth_scale_of_exact_exponentials():
    layers = np.arange(1, 21)
    scales = np.array([[2.0, 5.0], [3.0, -4.0]])  # seeds x quantities
    values = 7.0 * np.exp(-layers / scales[..., None])
    values[..., :3] = 1.0  # a transient, outside of the window
    values[..., 15:] = 1e-9  # a floor
    result = propagation.depth_scale(values, start=4, stop=15)
    np.testing.assert_allclose(result.slopes, -1 / scales, rtol=1e-12)
    expected = -1 / (-1 / scales).mean(axis=0)
    np.testing.assert_allclose(result.value, expected, rtol=1e-12)
    spread = (1 / scales).std(axis=0, ddof=1) / np.sqrt(2)
    np.testing.assert_allclose(result.stderr, spread * expected**2, rtol=1e-12)
    assert not np.allclose(propagation.depth_scale(values, start=3, stop=15).value, expected, rtol=1e-3)
    assert not np.allclose(propagation.depth_scale(values, start=4, stop=16).value, expected, rtol=1e-3)


def test_depth_scale_error_is_the_spread_of_repetitions():
    rng, layers = np.random.default_rng(0), np.arange(1, 11)
    fits = [
        propagation.depth_scale(np.exp(-layers / 4 + 0.2 * rng.normal(size=(30, 10))), start=1, stop=10)
        for _ in range(400)
    ]
    z = np.array([(fit.value - 4.0) / fit.stderr for fit in fits])
    assert abs(z.mean()) < 0.5  # a ratio of estimates has a small bias
    assert abs(z.std() - np.sqrt(29 / 27)) < 6 / np.sqrt(800) * 1.2


def test_depth_scale_without_decay_is_a_field_and_no_exception():
    values = np.ones((2, 3, 5))
    values[:, 1, 2] = 0.0
    values[:, 2, 2] = np.inf
    result = propagation.depth_scale(values, start=1, stop=5)
    assert np.isinf(result.value[0])
    assert np.isnan(result.value[1:]).all()


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"key": 0}, TypeError, "key .*got 0"),
        ({"network": 3}, TypeError, "network must be a Network.*got 3"),
        ({"seeds": 0}, ValueError, "seeds .*got 0"),
        ({"at_a_time": 0}, ValueError, "at_a_time .*got 0"),
        ({"x": np.ones((2, 6), int)}, TypeError, "x .*dtype int"),
        ({"x": jnp.ones((2, 5))}, ValueError, r"x .*\(N, 6\).*\(2, 5\)"),
    ],
)
def test_bad_input_is_named(key, x, change, error, message):
    given = {"key": key, "network": build(), "x": x, "seeds": 2} | change
    with pytest.raises(error, match=message):
        propagation.lengths(given.pop("key"), given.pop("network"), given.pop("x"), **given)


def test_bad_pairs_and_windows_are_named(key, x):
    with pytest.raises(ValueError, match=r"x .*\(P, 2, ...\); got \(4, 6\)"):
        propagation.correlations(key, build(), x, seeds=2)
    with pytest.raises(ValueError, match=r"values .*2 seeds; got \(1, 9\)"):
        propagation.depth_scale(np.ones((1, 9)), start=1, stop=9)
    with pytest.raises(ValueError, match=r"start .*1..9; got 0"):
        propagation.depth_scale(np.ones((2, 9)), start=0, stop=9)
    with pytest.raises(ValueError, match=r"stop .*5..9; got 4"):
        propagation.depth_scale(np.ones((2, 9)), start=3, stop=4)


@pytest.mark.parametrize("size", [1.0, 1e-25])
def test_branch_shares_are_differences_of_states(key, size):
    """Also where squares are below float32."""
    net = residual.network(
        widths=(4, 5, 2), depth=3, activation=jnp.tanh, weight_variance=1.0, bias_variance=0.0, step=1.0
    )
    x = size * jax.random.normal(key, (6, 4), jnp.float32)
    params = net.init(key, x)
    y = np.concatenate([np.asarray(stretch, float) for stretch in net.states(params, x)])
    expected = ((y[1:] - y[:-1]) ** 2).mean(axis=(1, 2)) / (y[1:] ** 2).mean(axis=(1, 2))
    np.testing.assert_allclose(propagation.branch_shares(net, params, x), expected, rtol=1e-4)
    ragged = dense.network(widths=(4, 5, 6, 2), activation=jnp.tanh, weight_variance=1.0, bias_variance=0.0)
    params = ragged.init(key, x)
    with pytest.raises(ValueError, match="network must have states of one shape"):
        propagation.branch_shares(ragged, params, x)


def test_states_whose_examples_are_lost_have_no_correlations(key):
    """As many experts as examples: a matrix of experts is none of examples, whatever its shape."""
    params = {"router": jnp.eye(4, 4), "expert": jax.random.normal(key, (4, 4, 3)), "out": jnp.ones((3, 2))}

    def apply(p, x):
        share = jax.nn.softmax(x @ p["router"])
        queue = jnp.einsum("ne,nd->ed", share, x)  # one token for each expert
        return jnp.einsum("ne,ef->nf", share, jnp.einsum("ed,edf->ef", queue, p["expert"])) @ p["out"]

    x = jax.random.normal(key, (4, 4), jnp.float32)
    net = core.lift(apply, params, x)
    kept = [True, False, False, True, True]  # router, queue, expert, its return, out
    for found in (
        propagation.covariances_at(net, params, x),
        propagation.correlations_at(net, params, x.reshape(2, 2, 4)).T,
        normalization.correlation(net, params, x),
    ):
        assert [bool(np.isfinite(row).all()) for row in found] == kept
    np.testing.assert_allclose(propagation.covariances_at(net, params, x)[0], x @ x.T / 4, rtol=1e-5, atol=1e-6)
