"""Backpropagation by hand against autodiff, and hand-written weights against what they compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl import activations
from numdl.networks import by_hand, core, dense

X = jnp.asarray(np.random.default_rng(0).standard_normal((7, 3)))
TARGETS = jnp.asarray(np.random.default_rng(1).standard_normal((7, 2)))


def half_square(outputs):
    return jnp.sum((outputs - TARGETS) ** 2) / 2, outputs - TARGETS


@pytest.mark.parametrize("widths", [(3, 2), (3, 5, 2), (3, 4, 4, 4, 5, 2)])
@pytest.mark.parametrize("activation", [activations.tanh, activations.relu, activations.gelu], ids=lambda a: a.name)
def test_backpropagation_is_the_gradient(widths, activation):
    net = dense.network(widths=widths, activation=activation, weight_variance=1.5, bias_variance=0.1)
    params = net.init(jax.random.key(0), X)
    found = by_hand.backpropagate(params, X, half_square, activation=activation)
    loss, gradient = jax.value_and_grad(lambda p: half_square(net.apply(p, X))[0])(params)
    tolerance = 50 * float(jnp.finfo(X.dtype).eps)
    np.testing.assert_allclose(found.loss, loss, rtol=tolerance)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=20 * tolerance), found.gradient, gradient
    )
    deltas = [d for part in core.state_gradients(net, params, X, lambda y: half_square(y)[0]) for d in part]
    assert len(found.deltas) == len(deltas) == len(widths) - 2
    for mine, exact in zip(found.deltas, deltas, strict=True):
        np.testing.assert_allclose(mine, exact, rtol=tolerance, atol=20 * tolerance)


def applied(params, widths, x):
    net = dense.network(widths=widths, activation=activations.relu, weight_variance=1.0, bias_variance=0.0)
    return np.asarray(net.apply(params, jnp.asarray(x)[:, None]))[:, 0]


def test_the_interpolant_draws_straight_lines():
    knots = np.array([-1.0, 0.2, 0.5, 2.0])
    values = np.array([0.3, -1.0, 4.0, 3.5])
    x = np.linspace(-1, 2, 101)
    drawn = applied(by_hand.interpolant(knots, values), (1, 3, 1), x)
    np.testing.assert_allclose(drawn, np.interp(x, knots, values), atol=1e-5)


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_the_deep_square_interpolates_at_dyadic_points(depth):
    x = np.linspace(0, 1, 2**depth * 8 + 1)
    dyadic = np.linspace(0, 1, 2**depth + 1)
    drawn = applied(by_hand.square(depth=depth), (1, *[3] * depth, 1), x)
    np.testing.assert_allclose(drawn, np.interp(x, dyadic, dyadic**2), atol=1e-6)
    assert np.abs(drawn - x**2).max() == pytest.approx(4.0 ** -(depth + 1), abs=1e-6)


@pytest.mark.parametrize("knots, values", [([1.0, 0.0], [0.0, 1.0]), ([0.0], [1.0]), ([0.0, 1.0], [1.0])])
def test_knots_that_do_not_rise_are_refused(knots, values):
    with pytest.raises(ValueError, match="knots|values"):
        by_hand.interpolant(knots, values)


def reached(graph, name):
    """All that a quantity is computed from, however far back."""
    near = graph.get(name, ())
    return set(near).union(*(reached(graph, other) for other in near))


@pytest.mark.parametrize("widths", [(3, 4, 2), (3, 4, 4, 2)])
def test_the_graph_says_what_depends_on_what(widths):
    net = dense.network(widths=widths, activation=activations.tanh, weight_variance=1.5, bias_variance=0.1)
    params, last = net.init(jax.random.key(0), X), len(widths) - 1

    def quantities(given):
        own, x = given
        found = by_hand.backpropagate(own, x, half_square, activation=activations.tanh)
        named = {f"y_{i + 1}": y for i, y in enumerate(found.states)} | {"loss": found.loss}
        named |= {f"d_{i + 1}": d for i, d in enumerate(found.deltas)}
        return named | {f"d{name}": leaf for name, leaf in numbered(found.gradient).items()}

    graph = by_hand.dependencies(hidden=last - 1)
    for position, (name, near) in enumerate(graph.items()):
        assert not set(near) & set(list(graph)[position:]), f"{name} comes before what it is computed from"
    slopes = jax.jacobian(quantities)((params, X))
    for name, (by_params, by_x) in slopes.items():
        moved = {leaf for leaf, slope in numbered(by_params).items() if np.abs(slope).max() > 0}
        moved |= {"x"} if np.abs(by_x).max() > 0 else set()
        assert moved == {other for other in reached(graph, name) if other not in graph}, name


def numbered(tree):
    """Leaves of a dense network's tree by layer, "W_1" and so on."""
    parts = [*tree["hidden"], tree["readout"]]
    letters = {"W": "kernel", "b": "bias"}
    return {f"{letter}_{i + 1}": part[name] for i, part in enumerate(parts) for letter, name in letters.items()}
