"""Activations against mpmath (one point, correlations +-1), brute force and Price's theorem (between)."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from numdl import activations
from tests import oracles
from tests.selection import in_turn

NAMES = list(oracles.ACTIVATIONS)
VARIANCES = np.array([0.01, 1.0, 100.0])
POINTS = np.array([-40.0, -7.0, -1.3, -1.0, -0.4, -1e-3, 0.0, 1e-3, 0.3, 1.0, 2.0, 8.0, 40.0])


@pytest.mark.parametrize("name", in_turn(NAMES, turn=0))
def test_one_point_moments_against_mpmath(name):
    activation = activations.named(name)
    f, slope, kinks = oracles.ACTIVATIONS[name]
    functions = (f, lambda x: f(x) ** 2, lambda x: slope(x) ** 2)
    methods = (activation.mean, activation.mean_square, activation.slope_mean_square)
    for function, method in zip(functions, methods, strict=True):
        expected = [oracles.one_point(function, q, kinks) for q in VARIANCES]
        np.testing.assert_allclose(method(VARIANCES), expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", in_turn(NAMES, turn=1))
def test_two_point_moments_at_correlations_of_one_and_zero(name):
    """Correlation +-1 by mpmath, 0 by the product of one-point means, both at unequal variances."""
    activation = activations.named(name)
    f, slope, kinks = oracles.ACTIVATIONS[name]
    q1, q2, c = 100.0, 0.5, np.array([-1.0, 0.0, 1.0])
    for function, method in ((f, activation.mean_product), (slope, activation.slope_mean_product)):
        ends = [oracles.on_the_diagonal(function, function, q1, q2, sign, kinks, kinks) for sign in (-1, 1)]
        middle = oracles.one_point(function, q1, kinks) * oracles.one_point(function, q2, kinks)
        expected = np.array([ends[0], middle, ends[1]])
        np.testing.assert_allclose(method(q1, q2, c), expected, rtol=1e-12, atol=1e-12 * abs(expected).max() + 1e-16)


@pytest.mark.parametrize("name", in_turn(NAMES, turn=2))
def test_two_point_moments_between(name):
    activation = activations.named(name)
    for function, method in (
        (activation.f, activation.mean_product),
        (activation.slope, activation.slope_mean_product),
    ):
        expected = oracles.two_point(function, function, 1.5, 0.3, -0.6, activation.kinks, activation.kinks)
        np.testing.assert_allclose(method(1.5, 0.3, -0.6), expected, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("name", in_turn(NAMES, turn=3))
@pytest.mark.parametrize(("q1", "q2"), [(0.01, 0.01), (100.0, 100.0)])
def test_near_correlation_one(name, q1, q2):
    """To first order in 1 - c the product falls by sqrt(q1 q2) E f' f' (Price): mpmath knows both at c = 1."""
    activation = activations.named(name)
    f, slope, kinks = oracles.ACTIVATIONS[name]
    gaps = np.array([1e-9, 1e-12, 1e-14])
    start = oracles.on_the_diagonal(f, f, q1, q2, 1, kinks, kinks)
    fall = np.sqrt(q1 * q2) * oracles.on_the_diagonal(slope, slope, q1, q2, 1, kinks, kinks)
    np.testing.assert_allclose(activation.mean_product(q1, q2, 1 - gaps), start - gaps * fall, rtol=2e-12)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "hard_tanh" else name for name in NAMES]
)
def test_price_theorem(name):
    """d/dc E f(u) f(v) = sqrt(q1 q2) E f'(u) f'(v), integrated in the angle c = sin t from 0 to 0.999."""
    activation = activations.named(name)
    q1, q2, end = 2.0, 9.0, np.arcsin(0.999)
    nodes, weights = scipy.special.roots_legendre(60)
    t = (nodes + 1) * end / 2
    slopes = activation.slope_mean_product(q1, q2, np.sin(t))
    rise = np.sqrt(q1 * q2) * np.sum(weights * end / 2 * np.cos(t) * slopes)
    values = activation.mean_product(q1, q2, np.array([0.0, 0.999]))
    np.testing.assert_allclose(values[1] - values[0], rise, rtol=1e-9)


@pytest.mark.float32
@pytest.mark.parametrize("name", in_turn(NAMES, turn=4))
def test_functions_and_slopes(name):
    """f against mpmath, the slope against jax's derivative of f, at kinks too; both finite with finite derivatives."""
    activation = activations.named(name)
    x = jnp.asarray(POINTS, jnp.zeros(0).dtype)
    tolerance = 50 * jnp.finfo(x.dtype).eps
    expected = [float(oracles.ACTIVATIONS[name][0](oracles.mp.mpf(float(point)))) for point in x]
    np.testing.assert_allclose(activation(x), expected, rtol=tolerance, atol=tolerance)
    derivative = jax.vmap(jax.grad(activation.f))(x)
    # XLA's tanh of float32 may stop short of one by 1.5 eps, which the derivative of gelu_tanh at -7 has 48 times.
    np.testing.assert_allclose(activation.slope(x), derivative, rtol=tolerance, atol=4 * tolerance)
    assert activation(x).dtype == activation.slope(x).dtype == x.dtype
    far = jnp.asarray([-1e4, -300.0, 0.0, 300.0, 1e4], x.dtype)
    assert np.isfinite([activation(far), activation.slope(far), jax.vmap(jax.grad(activation.slope))(far)]).all()


@pytest.mark.parametrize("name", ["relu", "elu", "selu", "gelu", "silu", "softplus", "hard_tanh", "sigmoid"])
def test_f_is_jax_nn_by_the_same_name(name):
    options = {"approximate": False} if name == "gelu" else {}
    np.testing.assert_array_equal(activations.named(name)(POINTS), getattr(jax.nn, name)(POINTS, **options))


def test_gelu_tanh_is_the_default_of_jax():
    np.testing.assert_array_equal(activations.gelu_tanh(POINTS), jax.nn.gelu(POINTS))


@pytest.mark.float32
@pytest.mark.parametrize(
    "name", [name if name in ("relu", "tanh", "erf") else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]
)
def test_moments_are_finite_and_differentiable(name):
    """At variance 0, at correlation +-1 and inside: values finite; derivatives finite in closed form or inside."""
    a = activations.named(name)
    q, ends = jnp.asarray([0.0, 0.01, 100.0]), jnp.asarray([-1.0, 0.0, 1.0])

    @jax.jit
    def values():
        line = [[m(q), jax.vmap(jax.grad(m))(q)] for m in (a.mean, a.mean_square, a.slope_mean_square)]
        plane = []
        for moment, closed in (
            (a.mean_product, a.moments.product),
            (a.slope_mean_product, a.moments.slope_product),
        ):
            c = jnp.asarray([-1.0, 0.5, 1.0] if closed else [-0.9, 0.0, 0.5])
            plane.append([moment(2.0, 2.0, ends), jax.vmap(jax.grad(moment, argnums=2), (None, None, 0))(2.0, 2.0, c)])
        return line, plane

    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(values()))


@pytest.mark.parametrize("name", ["identity", "relu", "leaky_relu(0.2)", "erf", "sin", "gelu"])
def test_closed_forms_agree_with_quadrature_over_the_range(name):
    """The same activation without its closed forms takes the other road."""
    activation = activations.named(name)
    plain = activations.Activation(name, activation.f, activation.slope, activation.kinks)
    q1, q2, c = (
        a.ravel()
        for a in np.meshgrid([0.01, 3.0, 100.0], [0.01, 100.0], [-1, -0.7, 0, 0.4, 1 - 1e-8, 1], indexing="ij")
    )
    for moment in ("mean_product", "slope_mean_product"):
        ours, theirs = getattr(activation, moment)(q1, q2, c), getattr(plain, moment)(q1, q2, c)
        np.testing.assert_allclose(ours, theirs, rtol=1e-11, atol=1e-12)


def test_sin_keeps_small_covariances():
    value = activations.sin.mean_product(1.0, 1.0, 1e-12)
    assert value == pytest.approx(np.exp(-1) * 1e-12, rel=1e-14)


def test_relu_is_exact_at_the_ends():
    values = activations.relu.mean_product(3.0, 3.0, np.array([1.0, -1.0]))
    np.testing.assert_allclose(values, [1.5, 0.0], rtol=1e-15, atol=0)
    np.testing.assert_array_equal(activations.relu.slope_mean_product(3.0, 3.0, np.array([1.0, -1.0])), [0.5, 0.0])


def test_shapes_broadcast():
    value = activations.tanh.mean_product(np.ones((2, 1)), 1.0, np.array([[0.1, 0.2, 0.3]]))
    assert value.shape == (2, 3)
    assert activations.relu.mean_product(1.0, 2.0, np.zeros(4)).shape == (4,)
    assert activations.hard_tanh.mean_square(np.ones((2, 3))).shape == (2, 3)


def test_a_leaky_rectifier_keeps_the_mean_of_the_two_squared_slopes():
    f, slope, kinks = oracles.ACTIVATIONS["leaky_relu(0.2)"]
    leaky = activations.leaky_relu(0.2)
    assert float(leaky.mean_square(3.0)) == pytest.approx(oracles.one_point(lambda x: f(x) ** 2, 3.0, kinks), rel=1e-12)
    wanted = oracles.one_point(lambda x: slope(x) ** 2, 3.0, kinks)
    assert float(leaky.slope_mean_square(3.0)) == pytest.approx(wanted, rel=1e-12)


def test_leaky_relu_is_one_object_for_each_slope():
    assert activations.leaky_relu(0.2) is activations.leaky_relu(np.float64(0.2))
    assert activations.leaky_relu(0.2) != activations.leaky_relu(0.3)
    assert activations.named("leaky_relu(0.2)") is activations.leaky_relu(0.2)
    assert activations.named(activations.leaky_relu(1 / 3).name) is activations.leaky_relu(1 / 3)
    assert activations.leaky_relu(0.2)(-1.0) == pytest.approx(-0.2)


def test_activations_are_static_arguments():
    traced = []

    def apply(activation, x):
        traced.append(activation)
        return activation(x)

    jitted = jax.jit(apply, static_argnums=0)
    for activation in (activations.tanh, activations.tanh, activations.leaky_relu(0.5), activations.leaky_relu(0.5)):
        jitted(activation, 1.0)
    assert traced == [activations.tanh, activations.leaky_relu(0.5)]
    assert len({activations.named(name) for name in NAMES}) == len(NAMES)
    with pytest.raises(AttributeError):
        copy.copy(activations.tanh).name = "other"


def test_custom_takes_its_slope_from_jax():
    swish = activations.custom(lambda x: x * jax.nn.sigmoid(2 * x), name="swish")
    assert (swish.name, swish.kinks) == ("swish", ())
    np.testing.assert_allclose(swish.slope(POINTS), jax.vmap(jax.grad(swish.f))(POINTS), rtol=1e-14)
    given = activations.custom(jnp.abs, name="abs", kinks=(0.0,), slope=jnp.sign)
    assert given.slope is jnp.sign
    np.testing.assert_allclose(given.mean(4.0), 2 * np.sqrt(2 / np.pi), rtol=1e-12)
    np.testing.assert_allclose(given.slope_mean_product(4.0, 1.0, 0.5), 2 / np.pi * np.arcsin(0.5), rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: activations.named("tahn"), ValueError, ("name", "tahn", "tanh", "leaky_relu")),
        (lambda: activations.named("leaky_relu(x)"), ValueError, ("name", "leaky_relu(x)")),
        (lambda: activations.leaky_relu(np.inf), ValueError, ("negative_slope", "inf")),
        (lambda: activations.custom(3, name="three"), TypeError, ("f ", "function", "3")),
        (lambda: activations.custom(jnp.abs, name=7), TypeError, ("name", "str", "7")),
        (lambda: activations.custom(jnp.abs, name="abs", kinks=(np.nan,)), ValueError, ("kinks", "nan")),
    ],
)
def test_bad_input_is_named(call, error, words):
    with pytest.raises(error) as caught:
        call()
    assert all(word in str(caught.value) for word in words)
