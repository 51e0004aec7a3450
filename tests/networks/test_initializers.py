"""Initial weights: exact moments against Monte Carlo in standard errors, integrals by scipy, Haar against its laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from numdl.networks import initializers

pytestmark = pytest.mark.float32

DENSE, CONV = (30, 50), (3, 3, 4, 10)
LAWS = ["normal", "uniform", "truncated_normal", "rademacher"]


def z_score(samples, expected):
    samples = np.asarray(samples, np.float64)
    return abs(samples.mean() - expected) / (samples.std(ddof=1) / np.sqrt(samples.size) + 1e-7 * abs(expected))


def many(initializer, key, shape, draws=200, dtype=jnp.float32):
    return np.asarray(jax.vmap(lambda k: initializer(k, shape, dtype))(jax.random.split(key, draws)), np.float64)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("shape", [DENSE, CONV])
def test_moments_are_what_the_initializer_says(key, law, shape):
    initializer = initializers.variance_scaling(1.7, law=law)
    weights = many(initializer, key, shape)
    variance = initializer.entry_variance(shape)
    assert weights.shape == (200, *shape)
    assert z_score(weights, 0.0) < 6
    assert z_score(weights**2, variance) < 6
    assert z_score((weights**2 / variance) ** 2, 3 + initializer.excess_kurtosis(shape)) < 6


@pytest.mark.parametrize(
    "mode, shape, fan",
    [("fan_in", DENSE, 30), ("fan_out", DENSE, 50), ("fan_average", DENSE, 40),
     ("fan_in", CONV, 36), ("fan_out", CONV, 90), ("fan_average", CONV, 63)],
)  # fmt: skip
def test_modes(key, mode, shape, fan):
    initializer = initializers.variance_scaling(1.7, mode=mode)
    assert initializer.entry_variance(shape) == pytest.approx(1.7 / fan)
    assert z_score(many(initializer, key, shape) ** 2, 1.7 / fan) < 6


def test_truncated_moments_by_integration():
    density = scipy.stats.norm.pdf
    mass, second, fourth = (scipy.integrate.quad(lambda z, p=p: z**p * density(z), -2, 2)[0] for p in (0, 2, 4))
    kurtosis = initializers.truncated_normal(1.0).excess_kurtosis((5,))
    assert kurtosis == pytest.approx(fourth * mass / second**2 - 3, rel=1e-12)
    assert kurtosis == pytest.approx(-0.6345, abs=5e-5)
    weights = initializers.truncated_normal(3.0)(jax.random.key(1), (100000,), jnp.float32)
    assert float(abs(weights).max()) <= 2 * np.sqrt(3.0 * mass / second) * (1 + 1e-6)


@pytest.mark.parametrize(
    "initializer, variance",
    [(initializers.normal(0.3), 0.3), (initializers.truncated_normal(0.3), 0.3), (initializers.rademacher(0.3), 0.3),
     (initializers.uniform(0.3), 0.03)],
)  # fmt: skip
def test_fixed_variances_do_not_see_the_shape(key, initializer, variance):
    for shape in [(7,), DENSE]:
        assert initializer.entry_variance(shape) == pytest.approx(variance)
        assert z_score(many(initializer, key, shape) ** 2, variance) < 6


def test_uniform_fills_its_interval(key):
    weights = many(initializers.uniform(0.3), key, DENSE)
    assert 0.2999 < weights.max() <= 0.3
    assert -0.3 <= weights.min() < -0.2999


@pytest.mark.parametrize(
    "name, variance",
    [("glorot", 1 / 40), ("he", 2 / 30), ("lecun", 1 / 30)],
)
def test_named_schemes(name, variance):
    for law, kurtosis in [("uniform", -1.2), ("normal", 0.0)]:
        initializer = getattr(initializers, f"{name}_{law}")
        assert initializer.name == f"{name}_{law}"
        assert initializer.entry_variance(DENSE) == pytest.approx(variance)
        assert initializer.excess_kurtosis(DENSE) == kurtosis


@pytest.mark.parametrize("name", ["glorot_uniform", "he_uniform", "lecun_uniform"])
def test_uniform_schemes_have_jaxs_range(key, name):
    ours = getattr(initializers, name)(key, DENSE, jnp.float32)
    theirs = getattr(jax.nn.initializers, name)()(key, DENSE, jnp.float32)
    np.testing.assert_allclose(jnp.abs(ours).max(), jnp.abs(theirs).max(), rtol=2e-2)


@pytest.mark.parametrize("shape", [(8, 8), (12, 5), (5, 12), (2, 2, 3, 5)])
def test_orthogonal_is_orthogonal_with_the_right_scale(key, shape):
    weights = np.asarray(initializers.orthogonal(1.7)(key, shape, jnp.float32), np.float64).reshape(-1, shape[-1])
    fan_in, fan_out = weights.shape
    gram = weights.T @ weights if fan_in >= fan_out else weights @ weights.T
    np.testing.assert_allclose(gram, 1.7 * max(fan_in, fan_out) / fan_in * np.eye(len(gram)), atol=1e-5)
    assert np.mean(weights**2) * fan_in == pytest.approx(1.7, rel=1e-5)  # exactly, in every draw


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9)])
def test_orthogonal_kurtosis(key, shape):
    initializer = initializers.orthogonal(1.7)
    fourth = many(initializer, key, shape, draws=4000)[:, 0, 0] ** 4 / initializer.entry_variance(shape) ** 2
    assert z_score(fourth, 3 - 6 / (max(shape) + 2)) < 6
    assert initializer.excess_kurtosis(shape) == pytest.approx(-6 / (max(shape) + 2))


def test_orthogonal_is_haar_and_not_merely_orthogonal(key):
    """Traces of Haar powers: E tr Q = 0, E (tr Q)^2 = 1. QR without signs has tr Q far below 0."""
    matrices = many(initializers.orthogonal(1.0), key, (5, 5), draws=4000)
    trace = np.trace(matrices, axis1=1, axis2=2)
    assert z_score(trace, 0.0) < 6
    assert z_score(trace**2, 1.0) < 6
    for position in [(0, 0), (4, 4), (2, 3)]:  # a coordinate of a unit vector in 5-d: u^2 ~ Beta(1/2, 2)
        squares = matrices[:, position[0], position[1]] ** 2
        assert scipy.stats.kstest(squares, scipy.stats.beta(0.5, 2).cdf).pvalue > 1e-6
    assert z_score(np.sign(np.linalg.det(matrices)), 0.0) < 6


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("law", ["normal", "truncated_normal", "uniform", "rademacher", "orthogonal"])
def test_half_precision_is_a_cast_of_float32(key, dtype, law):
    initializer = initializers.orthogonal(1.0) if law == "orthogonal" else initializers.variance_scaling(1.0, law=law)
    half, full = (initializer(key, (9, 6), d) for d in (dtype, jnp.float32))
    assert half.dtype == dtype
    np.testing.assert_array_equal(half.astype(jnp.float32), full.astype(dtype).astype(jnp.float32))


@pytest.mark.parametrize("shape", [(6, 6), (9, 4), (4, 9)])
@pytest.mark.parametrize("name", ["orthogonal", "normal", "fan_out"])
def test_what_is_applied_in_law_has_the_law_of_the_matrices_product(key, name, shape):
    made = {"orthogonal": initializers.orthogonal(1.7), "normal": initializers.normal(0.3)}
    initializer = made.get(name) or initializers.variance_scaling(1.7, mode="fan_out")
    z = np.linspace(-1, 2, shape[0]).astype(np.float32)
    drawn = np.einsum("i,sij->sj", z, many(initializer, key, shape, draws=4000))
    keys = jax.random.split(jax.random.fold_in(key, 1), 4000)
    applied = np.asarray(jax.vmap(lambda k: initializer.applied(k, jnp.asarray(z), shape[1]))(keys), np.float64)
    assert applied.shape == drawn.shape
    for functional in (lambda v: v[:, 0], lambda v: v[:, 0] - 2 * v[:, -1], lambda v: np.sum(v[:, :3] ** 2, axis=1)):
        assert scipy.stats.ks_2samp(functional(applied), functional(drawn)).pvalue > 1e-6


def test_laws_that_are_not_invariant_are_not_applied_without_their_matrix():
    for law in ("uniform", "truncated_normal", "rademacher"):
        assert initializers.variance_scaling(1.0, law=law).applied is None


@pytest.mark.parametrize("count", [1, 31, 32, 33, 1000])
def test_signs_are_independent_from_place_to_place(key, count):
    signs = many(initializers.rademacher(1.0), key, (count,), draws=3000)
    assert set(np.unique(signs)) == {-1.0, 1.0}
    for lag in {1, 7, 31, 32} & set(range(1, count)):
        assert z_score(signs[:, 0] * signs[:, lag], 0.0) < 6
    assert z_score(signs, 0.0) < 6


def test_another_variance_compiles_nothing(key):
    traces = []

    @jax.jit
    def draw(initializer):
        traces.append(1)
        return initializer.sample(key, (3, 4), jnp.float32)

    one, four = draw(initializers.variance_scaling(1.0)), draw(initializers.variance_scaling(4.0))
    np.testing.assert_allclose(four, 2 * one, rtol=1e-6)
    assert len(traces) == 1
    draw(initializers.variance_scaling(1.0, law="uniform"))
    assert len(traces) == 2


def test_an_initializer_of_the_users_own(key):
    def sample(key, shape, dtype):
        return jnp.full(shape, 0.5, dtype)

    half = initializers.Initializer("half", sample, lambda shape: 0.25, lambda shape: -2)
    assert float(jax.jit(lambda i: i.sample(key, (2, 2), jnp.float32).sum())(half)) == 2.0
    assert half.entry_variance((2, 2)) == 0.25
    assert "half" in repr(half)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda k: initializers.variance_scaling(-1.0), ValueError, "weight_variance .*got -1"),
        (lambda k: initializers.variance_scaling(1.0, mode="fan_sum"), ValueError, "mode .*fan_average; got 'fan_sum'"),
        (lambda k: initializers.variance_scaling(1.0, law="cauchy"), ValueError, "law .*rademacher; got 'cauchy'"),
        (lambda k: initializers.orthogonal(np.inf), ValueError, "weight_variance .*got inf"),
        (lambda k: initializers.normal("1"), TypeError, "entry_variance .*got '1'"),
        (lambda k: initializers.uniform(-0.5), ValueError, "half_width .*got -0.5"),
        (lambda k: initializers.he_normal(k, (3,), jnp.float32), ValueError, r"shape .*2 axes.*got \(3,\)"),
        (lambda k: initializers.he_normal(k, (3, 3), jnp.int32), TypeError, "dtype .*got int32"),
        (lambda k: initializers.he_normal(0, (3, 3), jnp.float32), TypeError, "key .*got 0"),
    ],
)
def test_bad_input_is_named(key, call, error, message):
    with pytest.raises(error, match=message):
        call(key)


def test_float64_needs_the_flag(key):
    if jax.config.jax_enable_x64:
        assert initializers.he_normal(key, (3, 3), jnp.float64).dtype == jnp.float64
    else:
        with pytest.raises(ValueError, match=r"dtype .*jax_enable_x64.*float64"):
            initializers.he_normal(key, (3, 3), jnp.float64)


@pytest.mark.parametrize("kind", [np.uint8, lambda v: np.array(v, np.int8), np.float16], ids=["uint8", "int8", "half"])
@pytest.mark.parametrize("law", [initializers.variance_scaling, initializers.orthogonal, initializers.uniform])
def test_a_variance_of_few_bits_is_the_number_that_it_is(key, law, kind):
    found, expected = (law(value)(key, (300, 4), "float32") for value in (kind(100), 100.0))
    np.testing.assert_array_equal(found, expected)
