"""Kernel recursions against published digits, mpmath and finite networks; regression against scipy's flow."""

import mpmath as mp
import numpy as np
import pytest
import scipy.linalg

from numdl import activations
from numdl.theory import kernels
from tests import oracles

RNG = np.random.default_rng(3)
HE = {"activation": activations.relu, "weight_variance": 2.0, "bias_variance": 0.0}


def pair(c, q=0.5):
    """Two inputs of mean square q and correlation c."""
    return np.array([[1.0, 0.0]]) * np.sqrt(2 * q), np.array([[c, np.sqrt(1 - c**2)]]) * np.sqrt(2 * q)


def test_relu_to_twelve_digits():
    """He initialization, c = 0.5, by mpmath with 20 digits: arc-cosine kernels iterated."""
    expected = {
        1: ("0.60899778104422935809", "0.94233111437756269142"),
        3: ("0.738128192301000523", "1.7378446792153090237"),
    }
    for depth, digits in expected.items():
        got = kernels.dense(*pair(0.5), depth=depth, **HE)
        np.testing.assert_allclose([k.item() for k in got], [float(d) for d in digits], rtol=1e-13)


@pytest.mark.parametrize("depth", [1, 3, 10])
def test_erf_and_relu_against_mpmath(depth):
    """The closed forms of Williams 1997 and Cho & Saul 2009, iterated in 30 digits, unequal lengths, with bias."""
    x1, x2 = RNG.normal(size=(2, 3)), RNG.normal(size=(2, 3))
    for name, law in (("erf", _erf), ("relu", _relu)):
        w, b = 1.7, 0.3
        got = kernels.dense(x1, x2, depth=depth, activation=activations.named(name), weight_variance=w, bias_variance=b)
        wanted = np.array([[_iterate(law, u, v, depth, w, b) for v in x2] for u in x1])
        np.testing.assert_allclose(np.stack(got, axis=-1), wanted, rtol=1e-12)


def _iterate(law, u, v, depth, w, b):
    with mp.workdps(30):
        start = lambda a, c: mp.mpf(w) * mp.fdot(a.tolist(), c.tolist()) / len(a) + mp.mpf(b)  # noqa: E731
        q1, q2, k = start(u, u), start(v, v), start(u, v)
        theta = k
        for _ in range(depth):
            both, slopes = law(q1, q2, k)
            after = [mp.mpf(w) * law(q, q, q)[0] + mp.mpf(b) for q in (q1, q2)]
            k = mp.mpf(w) * both + mp.mpf(b)
            theta = k + mp.mpf(w) * slopes * theta
            q1, q2 = after
        return float(k), float(theta)


def _erf(q1, q2, k):
    volume = (1 + 2 * q1) * (1 + 2 * q2)
    return 2 / mp.pi * mp.asin(2 * k / mp.sqrt(volume)), 4 / mp.pi / mp.sqrt(volume - 4 * k**2)


def _relu(q1, q2, k):
    c = min(k / mp.sqrt(q1 * q2), mp.mpf(1))
    angle = mp.acos(c)
    return mp.sqrt(q1 * q2) * (mp.sin(angle) + (mp.pi - angle) * c) / (2 * mp.pi), (mp.pi - angle) / (2 * mp.pi)


def test_quadrature_against_brute_force():
    x1, x2 = pair(-0.4, q=1.5)
    got = kernels.dense(x1, x2, depth=1, activation=activations.gelu_tanh, weight_variance=1.2, bias_variance=0.1)
    q, k = 1.2 * 1.5 + 0.1, 1.2 * -0.4 * 1.5 + 0.1
    law = activations.gelu_tanh
    both, slopes = (oracles.two_point(f, f, q, q, k / q) for f in (law.f, law.slope))
    assert got.nngp.item() == pytest.approx(1.2 * both + 0.1, rel=1e-10)
    assert got.ntk.item() == pytest.approx(1.2 * both + 0.1 + 1.2 * slopes * k, rel=1e-10)


def test_linear_networks_are_known():
    """Identity: K_D = w^(D+1) x x'/d, and every layer adds one K_D to the tangent kernel."""
    x1, x2 = RNG.normal(size=(3, 4)), RNG.normal(size=(2, 4))
    got = kernels.dense(x1, x2, depth=4, activation=activations.identity, weight_variance=1.3, bias_variance=0.0)
    np.testing.assert_allclose(got.nngp, 1.3**5 * x1 @ x2.T / 4, rtol=1e-12)
    np.testing.assert_allclose(got.ntk, 5 * got.nngp, rtol=1e-12)
    settings = {"weight_variance": 1.3, "second_weight_variance": 0.7, "bias_variance": 0.0}
    got = kernels.residual(
        x1, x2, depth=6, step=0.5, activation=activations.identity, readout_weight_variance=0.9, **settings
    )
    g = 0.25 * 0.7 * 1.3
    c0 = 1.3 * x1 @ x2.T / 4
    # Block l contributes two parameters' kernels, each g C_0 (1 + g)^(D - 1); connector and readout one K each.
    np.testing.assert_allclose(got.nngp, 0.9 * (1 + g) ** 6 * c0, rtol=1e-12)
    np.testing.assert_allclose(got.ntk, 0.9 * c0 * (2 * (1 + g) ** 6 + 12 * g * (1 + g) ** 5), rtol=1e-12)


def test_equal_and_zero_inputs():
    x = RNG.normal(size=(3, 5))
    x[2] = 0
    got = kernels.dense(x, x, depth=3, **HE)
    np.testing.assert_array_equal(got.nngp, got.nngp.T)
    np.testing.assert_allclose(np.diag(got.nngp), np.mean(x**2, axis=1) * 2, rtol=1e-14)  # He keeps lengths
    np.testing.assert_allclose(np.diag(got.ntk), 4 * np.diag(got.nngp), rtol=1e-14)
    assert (got.ntk[2] == 0).all()


def test_nngp_and_ntk_are_the_parts():
    x1, x2 = RNG.normal(size=(2, 3)), RNG.normal(size=(4, 3))
    both = kernels.dense(x1, x2, depth=2, **HE)
    np.testing.assert_array_equal(kernels.nngp(x1, x2, depth=2, **HE), both.nngp)
    np.testing.assert_array_equal(kernels.ntk(x1, x2, depth=2, **HE), both.ntk)
    assert both.ntk.shape == (2, 4) and both.ntk.dtype == np.float64


# ---- training in the limit -----------------------------------------------------------------------------------------


def problem():
    a, b = RNG.normal(size=(6, 9)), RNG.normal(size=(4, 9))
    return a @ a.T, b @ a.T, RNG.normal(size=(6, 2)), np.sum(b**2, axis=1)


def test_gradient_flow_is_the_matrix_exponential():
    train, cross, y, _ = problem()
    f0, g0, times = RNG.normal(size=(6, 2)), RNG.normal(size=(4, 2)), np.array([0.0, 0.3, 2.0])
    on_train, on_cross = kernels.gradient_flow(train, cross, y, times=times, train_start=f0, cross_start=g0)
    for t, f, g in zip(times, on_train, on_cross, strict=True):
        decay = scipy.linalg.expm(-t * train / 6)
        np.testing.assert_allclose(f, y + decay @ (f0 - y), rtol=1e-9, atol=1e-10)
        wanted = g0 - cross @ np.linalg.solve(train, (np.eye(6) - decay) @ (f0 - y))
        np.testing.assert_allclose(g, wanted, rtol=1e-8, atol=1e-9)


def test_the_end_of_the_flow_is_regression():
    train, cross, y, own = problem()
    _, end = kernels.gradient_flow(train, cross, y, times=[np.inf])
    np.testing.assert_allclose(end[0], kernels.regression(train, cross, y), rtol=1e-8)
    np.testing.assert_allclose(end[0], cross @ np.linalg.solve(train, y), rtol=1e-8)
    noisy = kernels.posterior(train, cross, own, y, noise_variance=0.5)
    solved = np.linalg.solve(train + 0.5 * np.eye(6), np.concatenate([y, cross.T], axis=1))
    np.testing.assert_allclose(noisy.mean, cross @ solved[:, :2], rtol=1e-9)
    np.testing.assert_allclose(noisy.variance, own - np.einsum("mn,nm->m", cross, solved[:, 2:]), rtol=1e-9)


def test_singular_directions_stay():
    train = np.diag([1.0, 0.0])
    on_train, on_cross = kernels.gradient_flow(train, np.array([[1.0, 0.0]]), np.ones((2, 1)), times=[0.0, np.inf])
    np.testing.assert_allclose(on_train[:, :, 0], [[0, 0], [1, 0]], atol=1e-15)
    np.testing.assert_allclose(on_cross[:, 0, 0], [0, 1], atol=1e-15)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: kernels.ntk(np.ones((2, 3)), np.ones((2, 4)), depth=1, **HE), "x2 must have 3 columns"),
        (
            lambda: kernels.ntk(np.ones(3), np.ones((2, 3)), depth=1, **HE),
            r"x1 must have 2 axes; got shape \(3,\)",
        ),
        (
            lambda: kernels.ntk(np.ones((2, 3)), np.ones((2, 3)), depth=-1, **HE),
            "depth must be an integer >= 0; got -1",
        ),
        (lambda: kernels.regression(np.ones((2, 3)), np.ones((2, 3)), np.ones((3, 1))), "train must be a square"),
        (lambda: kernels.regression(np.eye(2), np.ones((2, 2)), np.ones((3, 1))), "targets must have shape"),
        (lambda: kernels.regression(np.array([[1.0, 2], [0, 1]]), np.ones((1, 2)), np.ones((2, 1))), "symmetric"),
        (
            lambda: kernels.gradient_flow(np.eye(2), np.ones((1, 2)), np.ones((2, 1)), times=[-1.0]),
            "times must be numbers >= 0",
        ),
        (
            lambda: kernels.gradient_flow(np.eye(2), np.ones((1, 2)), np.ones((2, 1)), times=[[0.0, 1.0]]),
            r"times must be a number or an array \[T\]; got shape \(1, 2\)",
        ),
    ],
)
def test_bad_input_is_told(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_posterior_of_an_indefinite_kernel_is_refused():
    y = np.ones((2, 1))
    with pytest.raises(ValueError, match=r"train.*semidefinite.*-0\.5"):
        kernels.posterior(np.array([[1.0, 1.5], [1.5, 1.0]]), np.ones((1, 2)), np.ones(1), y, noise_variance=0.0)


def test_covariances_of_no_kernel_leave_no_variance():
    """own - cross / train is -0.82 for the first point; the second is a process; the third leans on what is 0."""
    train, y = np.diag([1.0, 1.0, 0.0]), np.ones((3, 1))
    cross = np.array([[1.35, 0.0, 0.0], [0.6, 0.0, 0.0], [0.0, 0.0, 0.5]])
    found = kernels.posterior(train, cross, np.ones(3), y, noise_variance=0.0)
    np.testing.assert_allclose(found.variance, [np.nan, 1 - 0.36, np.nan], rtol=1e-14)
    np.testing.assert_allclose(found.mean[:, 0], [np.nan, 0.6, np.nan], rtol=1e-14)


def test_the_posterior_at_its_own_data_is_certain():
    x = np.linspace(-1, 1, 8).reshape(4, 2) ** 3
    physics = {"depth": 2, "activation": activations.erf, "weight_variance": 1.5, "bias_variance": 0.1}
    kernel = kernels.nngp(x, x, **physics)
    found = kernels.posterior(kernel, kernel, np.diag(kernel), x[:, :1], noise_variance=0.0)
    assert (found.variance >= 0).all() and found.variance.max() < 1e-9
    np.testing.assert_allclose(found.mean, x[:, :1], atol=1e-8)
