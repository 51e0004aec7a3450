"""Derivatives of kernels by inputs against mpmath, closed forms where inputs coincide, Monte Carlo and networks."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from numdl import activations
from numdl.networks import dense
from numdl.theory import kernels

RNG = np.random.default_rng(5)
X1, X2 = RNG.normal(size=(2, 2)), RNG.normal(size=(2, 2))
PHYSICS = {"depth": 2, "weight_variance": 1.7, "bias_variance": 0.3}


def _erf(q1, q2, k):
    volume = (1 + 2 * q1) * (1 + 2 * q2)
    return 2 / mp.pi * mp.asin(2 * k / mp.sqrt(volume)), 4 / mp.pi / mp.sqrt(volume - 4 * k**2)


def _leaky(a):
    def law(q1, q2, k):
        root = mp.sqrt(q1 * q2)
        c = min(k / root, mp.mpf(1))
        part = (mp.pi - mp.acos(c)) / (2 * mp.pi)
        share = (1 - mp.mpf(a)) ** 2
        return a * k + share * root * (mp.sqrt(1 - c**2) / (2 * mp.pi) + c * part), a + share * part

    return law


def by_mpmath(law, x, y, *, depth, weight_variance, bias_variance):
    """[slope of K, of Theta [d], mixed of K, of Theta [d, d]] by differences in 40 digits."""
    w, b = mp.mpf(weight_variance), mp.mpf(bias_variance)

    def kernel(which, i, j, s, t):
        u, v = [mp.mpf(float(n)) for n in x], [mp.mpf(float(n)) for n in y]
        u[i], v[j] = u[i] + s, v[j] + t
        q1, q2, k = (w * mp.fdot(p, q) / len(u) + b for p, q in ((u, u), (v, v), (u, v)))
        theta = k
        for _ in range(depth):
            both, slopes = law(q1, q2, k)
            q1, q2 = (w * law(q, q, q)[0] + b for q in (q1, q2))
            k = w * both + b
            theta = k + w * slopes * theta
        return (k, theta)[which]

    def central(which, i, j, mixed):
        h = mp.mpf(10) ** -10
        if not mixed:
            return float((kernel(which, i, j, h, 0) - kernel(which, i, j, -h, 0)) / (2 * h))
        corners = (s * t * kernel(which, i, j, s * h, t * h) for s in (1, -1) for t in (1, -1))
        return float(mp.fsum(corners) / (4 * h**2))

    d = range(len(x))
    with mp.workdps(40):
        slopes = [np.array([central(n, i, 0, False) for i in d]) for n in (0, 1)]
        mixed = [np.array([[central(n, i, j, True) for j in d] for i in d]) for n in (0, 1)]
    return [*slopes, *mixed]


LAWS = {"relu": _leaky(0), "leaky_relu(0.3)": _leaky(0.3), "erf": _erf}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "relu")) for n in LAWS])
def test_against_mpmath(name):
    found = kernels.derivatives(X1, X2, activation=activations.named(name), **PHYSICS)
    fields = found.nngp_slope, found.ntk_slope, found.nngp_mixed, found.ntk_mixed
    for n, m in np.ndindex(2, 2):
        want = by_mpmath(LAWS[name], X1[n], X2[m], **PHYSICS)
        for got, expected in zip(fields, want, strict=True):
            np.testing.assert_allclose(got[n, m], expected, rtol=1e-9, atol=1e-11)
    values = kernels.dense(X1, X2, activation=activations.named(name), **PHYSICS)
    np.testing.assert_allclose(found[:2], values, rtol=1e-12)
    assert not found.notes


def test_relu_where_inputs_coincide():
    """K has (w / 2)^D w / d I there, whatever the input; Theta has a kink, and says so. Opposite inputs: the same."""
    he = {"activation": activations.relu, "depth": 2, "weight_variance": 2.0, "bias_variance": 0.0}
    x = np.array([[1.0, 2.0], [0.0, 0.0]])
    found = kernels.derivatives(x, np.array([[1.0, 2.0], [1.0 + 1e-7, 2.0]]), **he)
    np.testing.assert_allclose(found.nngp_mixed[0, 0], np.eye(2), atol=1e-12)
    np.testing.assert_allclose(found.nngp_mixed[0, 1], np.eye(2), atol=2e-6)
    np.testing.assert_allclose(found.nngp_slope[0, 0], x[0], atol=1e-12)
    assert np.isnan(found.ntk_slope[0, 0]).all() and np.isnan(found.ntk_mixed[0, 0]).all()
    assert np.isfinite(found.ntk_slope[0, 1]).all()
    assert np.isnan(found.nngp_mixed[1]).all() and np.isnan(found.nngp_slope[1]).all()
    assert len(found.notes) == 2 and np.isfinite(found.nngp).all() and np.isfinite(found.ntk).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tanh", "hard_tanh", "elu"])
def test_one_layer_where_inputs_coincide_against_monte_carlo(name):
    """E f'(u)^2 W W' by draws of the weights: no recursion, no regression; at an input 0 too."""
    law = activations.named(name)
    x = np.array([[1.0, -0.5], [0.0, 0.0]])
    physics = {"depth": 1, "weight_variance": 1.7, "bias_variance": 0.0}
    found = kernels.derivatives(x, x, activation=law, **physics)
    weights = RNG.normal(size=(400_000, 2)) * np.sqrt(1.7 / 2)
    for n, m in np.ndindex(2, 2):
        slopes = [np.asarray(law.slope(weights @ point)) for point in (x[n], x[m])]
        terms = 1.7 * (slopes[0] * slopes[1])[:, None, None] * weights[:, :, None] * weights[:, None, :]
        z = (found.nngp_mixed[n, m] - terms.mean(0)) / (terms.std(0) / np.sqrt(len(terms)))
        assert np.abs(z).max() < 4.5
    assert np.isnan(found.ntk_mixed).all() == bool(found.notes) == (name == "hard_tanh")


@pytest.mark.slow
def test_networks_have_these_slopes(key):
    """One hidden layer of any width has exactly this covariance of slopes, in the mean over networks."""
    physics = {"weight_variance": 1.7, "bias_variance": 0.3}
    net = dense.network(widths=(2, 32, 8), activation=activations.tanh, **physics)

    def slopes(key):
        params = net.init(key, jnp.asarray(X1))
        jacobian = jax.vmap(jax.jacrev(lambda x: net.apply(params, x[None])[0]))(jnp.asarray(X1))
        return jnp.einsum("nki,mkj->nmij", jacobian, jacobian) / 8

    draws = np.asarray(jax.lax.map(slopes, jax.random.split(key, 3000)))
    found = kernels.derivatives(X1, X1, depth=1, activation=activations.tanh, **physics)
    z = (found.nngp_mixed - draws.mean(0)) / (draws.std(0) / np.sqrt(len(draws)))
    assert np.abs(z).max() < 4.5


# ---- residual and convolutional -------------------------------------------------------------------------------------

BLOCKS = {**PHYSICS, "step": 0.7, "second_weight_variance": 1.3, "readout_weight_variance": 0.9}
WINDOWS = {**PHYSICS, "window": (1, 3)}
P1, P2 = RNG.normal(size=(1, 2, 3, 1)), RNG.normal(size=(1, 2, 3, 1))


def differences(kernel, x, y, h=3e-4):
    """[value, slope, mixed] of both kernels of one pair by central differences, over all entries of x and y."""
    d, shape = x.size, x.shape[1:]
    moves = np.concatenate([np.zeros((1, d)), np.eye(d), -np.eye(d)]).reshape(1 + 2 * d, *shape) * h
    signs = np.array([1.0, -1.0])
    for values in map(np.asarray, kernel(x + moves, y + moves)):
        yield values[:1, :1]
        yield ((values[1 : 1 + d, 0] - values[1 + d :, 0]) / (2 * h)).reshape(1, 1, *shape)
        corners = values[1:, 1:].reshape(2, d, 2, d)
        yield (np.einsum("aibj,a,b->ij", corners, signs, signs) / (4 * h**2)).reshape(1, 1, *shape, *shape)


def against_differences(function, kernel, x, y, activation, physics):
    found = function(x, y, activation=activation, **physics)
    want = list(differences(lambda a, b: kernel(a, b, activation=activation, **physics), x, y))
    got = [found.nngp, found.nngp_slope, found.nngp_mixed, found.ntk, found.ntk_slope, found.ntk_mixed]
    for one, expected in zip(got, want, strict=True):
        assert one.shape == expected.shape
        np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-6)
    assert not found.notes


@pytest.mark.parametrize("name", ["relu", pytest.param("erf", marks=pytest.mark.slow)])
def test_residual_against_differences(name):
    law = activations.named(name)
    against_differences(kernels.residual_derivatives, kernels.residual, X1[:1], X2[:1], law, BLOCKS)


@pytest.mark.parametrize(
    "name, pooling, padding",
    [
        ("relu", "mean", "same"),
        pytest.param("relu", "none", "same", marks=pytest.mark.slow),
        pytest.param("leaky_relu(0.3)", "mean", "circular", marks=pytest.mark.slow),
        pytest.param("erf", "none", "circular", marks=pytest.mark.slow),
    ],
)
def test_convolutional_against_differences(name, pooling, padding):
    law, physics = activations.named(name), {**WINDOWS, "pooling": pooling, "padding": padding}
    against_differences(kernels.convolutional_derivatives, kernels.convolutional, P1, P2, law, physics)


def test_residual_relu_where_inputs_coincide():
    """Half of the units act, whatever the input: a block multiplies the covariance of slopes by 1 + h^2 v w / 2."""
    physics = {**BLOCKS, "bias_variance": 0.0}
    found = kernels.residual_derivatives(X1, X1, activation=activations.relu, **physics)
    want = 0.9 * 1.7 / 2 * (1 + 0.7**2 * 1.3 * 1.7 / 2) ** 2 * np.eye(2)
    np.testing.assert_allclose(found.nngp_mixed[0, 0], want, rtol=1e-12, atol=1e-12)
    assert np.isnan(found.ntk_mixed[0, 0]).all() and np.isfinite(found.ntk_mixed[0, 1]).all() and found.notes


def test_one_pixel_is_a_dense_network():
    """Also where inputs coincide: the channels of one pixel under a window of one."""
    x = np.concatenate([X1, X2[:1]])
    relu = {"activation": activations.relu, **PHYSICS}
    pictures = x[:, None, None, :]
    found = kernels.convolutional_derivatives(pictures, pictures, window=1, pooling="mean", **relu)
    for one, other in zip(found[:6], kernels.derivatives(x, x, **relu)[:6], strict=True):
        np.testing.assert_allclose(one.reshape(other.shape), other, rtol=1e-12, atol=1e-13)
    assert len(found.notes) == 1 and "two patches coincide" in found.notes[0]


@pytest.mark.slow
def test_one_convolution_where_pictures_coincide_against_monte_carlo():
    """E of the mean over places of f'(u) f'(v) W W', by draws of the window: no recursion, no regression."""
    x = np.array([0.9, -0.4, 0.3])
    weights = RNG.normal(size=(400_000, 3)) * np.sqrt(1.7 / 3)
    physics = {"depth": 1, "window": (1, 3), "weight_variance": 1.7, "bias_variance": 0.0, "padding": "circular"}
    picture = x.reshape(1, 1, 3, 1)
    found = kernels.convolutional_derivatives(picture, picture, activation=activations.tanh, **physics)
    filters = np.stack([np.roll(weights, shift, axis=1) for shift in range(3)])  # [place, draws, pixel]
    slopes = 1 - np.tanh(filters @ x) ** 2
    terms = 1.7 * np.einsum("pn,pni,pnj->nij", slopes**2, filters, filters) / 3
    z = (found.nngp_mixed.reshape(3, 3) - terms.mean(0)) / (terms.std(0) / np.sqrt(len(terms)))
    assert np.abs(z).max() < 4.5


def test_an_activation_that_jumps_is_refused():
    step = activations.custom(lambda x: jnp.where(x > 0, 1.0, 0.0), name="step", kinks=(0.0,))
    for function, x, physics in (
        (kernels.derivatives, X1, PHYSICS),
        (kernels.residual_derivatives, X1, BLOCKS),
        (kernels.convolutional_derivatives, P1, WINDOWS),
    ):
        with pytest.raises(ValueError, match="activation must be continuous"):
            function(x, x, activation=step, **physics)
