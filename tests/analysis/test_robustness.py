"""Attacks and bounds against linear maps, circles and matrices, where all is known; any function of any shape."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl import activations
from numdl.analysis import robustness as measured
from numdl.networks import dense
from numdl.optimize import losses
from numdl.theory import robustness as predicted

CE = losses.softmax_cross_entropy
RANDOM = np.random.default_rng(0)
W, X = RANDOM.standard_normal((6, 3)), RANDOM.standard_normal((5, 6))


def linear(params, x):
    """A linear map of what is behind the first axis."""
    return x.reshape(len(x), -1) @ params


def circle(params, x):
    """Two classes, inside and outside of a circle."""
    inside = params - jnp.sum(x**2, axis=1)
    return jnp.stack([inside, jnp.zeros_like(inside)], axis=1)


def network():
    """A relu network of four layers, its parameters and inputs."""
    net = dense.network(widths=(6, 9, 9, 3), activation=activations.relu, weight_variance=2.0, bias_variance=0.1)
    x = jnp.asarray(X, jnp.float32)
    return net, net.init(jax.random.key(1), x), x


@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 3, 2)])
def test_one_step_moves_every_entry_by_the_radius_against_the_label(shape):
    labels = (X @ W).argmax(axis=1)
    x = X.reshape(-1, *shape)
    found = measured.fast_gradient_sign(linear, W, x, labels, loss=CE, radius=0.3)
    p = np.exp(X @ W) / np.exp(X @ W).sum(axis=1, keepdims=True)
    slope = (p - np.eye(3)[labels]) @ W.T
    np.testing.assert_allclose(np.asarray(found.x).reshape(X.shape), X + 0.3 * np.sign(slope), atol=1e-6)
    np.testing.assert_allclose(found.distance, 0.3, rtol=1e-6)
    assert not found.stuck.any()


def test_two_classes_lose_the_sum_of_absolute_weights():
    labels = (X @ W[:, :2]).argmax(axis=1)
    found = measured.fast_gradient_sign(linear, W[:, :2], X, labels, loss=CE, radius=0.1)
    gap = lambda x: np.asarray((x @ W)[np.arange(5), labels] - (x @ W)[np.arange(5), 1 - labels])  # noqa: E731
    np.testing.assert_allclose(gap(X) - gap(np.asarray(found.x)), 0.1 * np.abs(W[:, 0] - W[:, 1]).sum(), rtol=1e-5)


@pytest.mark.parametrize("norm", measured.NORMS)
@pytest.mark.parametrize("key", [None, jax.random.key(3)])
def test_many_steps_stay_in_the_ball_and_reach_the_best_point_of_a_linear_loss(norm, key):
    labels, w = (X @ W[:, :2]).argmax(axis=1), W[:, :2]
    settings = {"loss": CE, "radius": 0.2, "step": 0.05, "steps": 40, "norm": norm, "key": key}
    found = measured.projected_gradient(linear, w, X, labels, **settings)
    way = (w[:, 1] - w[:, 0])[None] * np.where(labels == 0, 1, -1)[:, None]
    best = 0.2 * (np.sign(way) if norm == "max" else way / np.linalg.norm(way, axis=1, keepdims=True))
    np.testing.assert_allclose(np.asarray(found.x), X + best, atol=1e-4)
    assert (np.asarray(found.distance) <= 0.2 * (1 + 1e-5)).all()


def test_bounds_hold_and_what_has_no_slope_is_stuck():
    x = np.clip(X, 0, 1)
    found = measured.fast_gradient_sign(linear, W, x, np.zeros(5, int), loss=CE, radius=0.5, bounds=(0.0, 1.0))
    assert found.x.min() >= 0
    assert found.x.max() <= 1
    flat = measured.projected_gradient(linear, 0 * W, x, np.zeros(5, int), loss=CE, radius=0.5, step=0.1, steps=3)
    assert flat.stuck.all()
    np.testing.assert_array_equal(flat.x, np.asarray(x, flat.x.dtype))


def test_tiny_slopes_still_have_a_direction():
    tiny = 1e-30 * W.astype(np.float32)
    found = measured.projected_gradient(
        linear, tiny, X.astype(np.float32), np.zeros(5, int), loss=CE, radius=1.0, step=1.0, steps=1, norm="euclidean"
    )
    np.testing.assert_allclose(found.distance, 1.0, rtol=1e-5)


def test_linear_maps_have_their_distances_in_both_norms():
    f = X @ W
    labels = f.argmax(axis=1)
    for norm, dual in (("euclidean", 2), ("max", 1)):
        expected = [
            min((f[i, c] - f[i, k]) / np.linalg.norm(W[:, c] - W[:, k], ord=dual) for k in range(3) if k != c)
            for i, c in enumerate(labels)
        ]
        np.testing.assert_allclose(measured.linear_distance(linear, W, X, norm=norm), expected, rtol=1e-4)
    found = measured.boundary(linear, W, X)
    np.testing.assert_allclose(found.distance, measured.linear_distance(linear, W, X), rtol=1e-4)
    assert found.found.all()
    assert ((np.asarray(found.x) @ W).argmax(axis=1) != labels).all()


@pytest.mark.parametrize("radius", [1.0, 3.0])
def test_the_nearest_point_of_a_circle(radius):
    x = np.array([[0.5, 0.0], [0.3, 0.4], [4.0, 0.0]])
    found = measured.boundary(circle, radius**2, x)
    np.testing.assert_allclose(found.distance, np.abs(radius - np.linalg.norm(x, axis=1)), rtol=2e-2)
    inside = np.linalg.norm(x, axis=1) < radius
    np.testing.assert_array_equal(found.label, np.where(inside, 1, 0))


def test_where_no_other_class_is_to_be_had_nothing_is_found():
    constant = lambda params, x: jnp.zeros_like(x[:, :2]) + params[None]  # noqa: E731
    found = measured.boundary(constant, np.array([1.0, 0.0]), X)
    assert not found.found.any()
    assert np.isnan(found.distance).all()
    assert np.isinf(measured.linear_distance(constant, np.array([1.0, 0.0]), X)).all()


def test_slopes_are_the_matrix_norm_and_the_product_of_norms_is_above():
    np.testing.assert_allclose(measured.lipschitz(linear, W, X), np.linalg.norm(W, ord=2), rtol=1e-5)
    net, params, x = network()
    kernels = [np.asarray(part["kernel"])[0] for part in params["hidden"]] + [np.asarray(params["readout"]["kernel"])]
    bound = predicted.lipschitz([np.linalg.norm(kernel, ord=2) for kernel in kernels], slopes=[1.0, 1.0])
    local = np.asarray(measured.lipschitz(net.apply, params, x))
    masks = [np.asarray(y) > 0 for part in net.states(params, x) for y in part]
    exact = [
        np.linalg.norm(kernels[0] * masks[0][i][None] @ kernels[1] * masks[1][i][None] @ kernels[2], ord=2)
        for i in range(len(x))
    ]
    np.testing.assert_allclose(local, exact, rtol=1e-4)
    assert (local <= bound).all()


def test_no_attack_comes_inside_of_the_certified_radius():
    net, params, x = network()
    outputs = np.asarray(net.apply(params, x))
    margins = np.sort(outputs, axis=1)[:, -1] - np.sort(outputs, axis=1)[:, -2]
    kernels = [np.asarray(part["kernel"])[0] for part in params["hidden"]] + [np.asarray(params["readout"]["kernel"])]
    bound = predicted.lipschitz([np.linalg.norm(kernel, ord=2) for kernel in kernels], slopes=np.ones(2))
    found = measured.boundary(net.apply, params, x)
    assert found.found.any()
    radius = predicted.certified_radius(margins, lipschitz=bound)
    assert (radius <= np.asarray(found.distance))[np.asarray(found.found)].all()


def test_the_radius_is_attained_by_two_opposite_outputs():
    w = np.array([[1.0, -1.0]])  # |W| = sqrt(2), and the margin of x is 2 x
    bound = predicted.lipschitz([np.sqrt(2.0)], slopes=[])
    np.testing.assert_allclose(predicted.certified_radius([0.6, -1.0], lipschitz=bound), [0.3, 0.0])
    np.testing.assert_allclose(measured.boundary(linear, w, np.array([[0.3]])).distance, 0.3, rtol=1e-5)


def test_bounds_of_extreme_sizes():
    assert predicted.lipschitz([1e200, 1e200], slopes=[1.0]) == np.inf
    assert predicted.lipschitz([1e200, 1e200, 1e-300], slopes=[1.0, 1.0]) == pytest.approx(1e100)
    assert predicted.lipschitz([1e200, 0.0], slopes=[1e300]) == 0
    np.testing.assert_array_equal(predicted.certified_radius([1.0, 0.0], lipschitz=0.0), [np.inf, 0.0])


def test_a_second_call_with_other_numbers_compiles_nothing():
    calls = []

    def counted(params, x):
        calls.append(0)
        return linear(params, x)

    attack = functools.partial(measured.projected_gradient, counted, loss=CE, steps=3)
    attack(W, X, np.zeros(5, int), radius=0.1, step=0.1)
    before = len(calls)
    attack(2 * W, X + 1, np.ones(5, int), radius=0.2, step=0.05)
    assert len(calls) - before <= 2  # shapes at the door only


def test_every_map_but_the_last_has_one_slope():
    with pytest.raises(ValueError, match="slopes must have one entry between each two of 3 maps, 2; got 1"):
        predicted.lipschitz(np.ones(3), slopes=[1.0])
    with pytest.raises(ValueError, match=r"apply must return real outputs of shape \[5, k\], k >= 2"):
        measured.boundary(lambda params, x: x @ params[:, :1], W, X)
