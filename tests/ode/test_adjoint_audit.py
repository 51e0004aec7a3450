"""The audit passes what is exact, and catches what is not: wrong gradients are planted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.ode import adjoint_audit, adjoints, integrate, schemes, tableaus
from tests.selection import in_turn

RNG = np.random.default_rng(11)
X = {"y0": jnp.asarray(RNG.normal(size=(3, 4))), "K": jnp.asarray(RNG.normal(size=(4, 4)))}
METHODS = {
    "direct": adjoints.direct,
    "checkpointed": adjoints.checkpointed,
    "square_root": adjoints.square_root,
    "binomial": adjoints.binomial(snapshots=3),
    "reversible": adjoints.reversible,
}


def field(t, y, k):
    return jnp.tanh(y @ k) + jnp.sin(t)


def flow(adjoint):
    """x -> end point of twelve steps of a scheme that the adjoint can serve."""
    if adjoint is adjoints.reversible:
        how = {"scheme": schemes.leapfrog, "t1": 1.0, "steps": 12}
        return lambda x, a=adjoint: integrate.endpoint(field, (x["y0"], x["y0"]), x["K"], adjoint=a, **how)
    how = {"tableau": tableaus.heun, "t1": 1.0, "steps": 12}
    return lambda x, a=adjoint: integrate.endpoint(field, x["y0"], x["K"], adjoint=a, **how)


def forward(name):
    """The same map with a forward derivative."""
    return lambda x: flow(METHODS[name])(x, adjoints.direct)


def loss(adjoint):
    return lambda x: sum(jnp.sum(jnp.sin(leaf) + leaf**2) for leaf in jax.tree.leaves(flow(adjoint)(x)))


@pytest.mark.parametrize("name", in_turn(METHODS, 1))
def test_exact_adjoints_pass(key, name):
    dots = adjoint_audit.dot_product_test(flow(METHODS[name]), X, key=key, forward=forward(name))
    assert dots.relative.shape == (20,)
    assert float(dots.largest) <= 1e-12
    assert bool(dots.holds)
    taylor = adjoint_audit.taylor_remainders(loss(METHODS[name]), X, key=key)
    assert bool(taylor.holds)
    assert np.abs(taylor.slopes[taylor.used][-5:] - 2).max() < 0.1
    first = np.diff(np.log2(taylor.first))
    assert abs(first[-1] + 1) < 0.1


def test_backsolve_fails_both(key):
    dots = adjoint_audit.dot_product_test(flow(adjoints.backsolve), X, key=key, forward=flow(adjoints.direct))
    assert not bool(dots.holds)
    assert float(dots.largest) > 1e-6
    assert not bool(adjoint_audit.taylor_remainders(loss(adjoints.backsolve), X, key=key).holds)


@pytest.mark.parametrize("delta, seen", [(0.0, False), (1e-2, True), (1e-4, True)])
def test_a_scaled_gradient_is_seen(key, delta, seen):
    @jax.custom_vjp
    def wrong(x):
        return loss(adjoints.direct)(x)

    def pull(x, cotangent):
        gradient = jax.grad(loss(adjoints.direct))(x)
        return (jax.tree.map(lambda leaf: cotangent * (1 + delta) * leaf, gradient),)

    wrong.defvjp(lambda x: (wrong(x), x), pull)
    dots = adjoint_audit.dot_product_test(wrong, X, key=key, forward=loss(adjoints.direct), pairs=5)
    assert bool(dots.holds) is not seen
    assert bool(adjoint_audit.taylor_remainders(wrong, X, key=key).holds) is not seen
    loose = adjoint_audit.dot_product_test(wrong, X, key=key, forward=loss(adjoints.direct), pairs=5, tolerance=0.1)
    assert bool(loose.holds)


def contracting(t, y, k):
    return jax.nn.relu(y @ k) - 3 * y


def solve(y0, k, adjoint):
    return jnp.sum(
        integrate.endpoint(contracting, y0, k, tableau=tableaus.euler, t1=1.0, steps=10, adjoint=adjoint) ** 2
    )


def test_backsolve_is_flagged_where_it_is_wrong():
    k, y0 = jnp.asarray(RNG.normal(size=(20, 20)) * 3 / np.sqrt(20)), jnp.asarray(RNG.normal(size=(8, 20)))
    error = adjoint_audit.gradient_error(solve, y0, k, adjoint=adjoints.backsolve)
    assert float(error.theta) > 0.05
    assert bool(error.flagged)
    assert error.verdict.startswith("WRONG")
    # The remedy in the verdict is what helps.
    cured = adjoint_audit.gradient_error(solve, y0, k, adjoint=adjoints.checkpointed)
    assert not bool(cured.flagged)
    assert max(float(cured.theta), float(cured.y0)) < 1e-13
    assert cured.verdict.startswith("right")
    lenient = adjoint_audit.gradient_error(solve, y0, k, adjoint=adjoints.backsolve, limit=10.0)
    assert not bool(lenient.flagged)


def test_gradient_error_is_the_relative_norm():
    y0, k = X["y0"], X["K"]
    error = adjoint_audit.gradient_error(solve, y0, k, adjoint=adjoints.backsolve)
    got, wanted = (jax.grad(solve, argnums=(0, 1))(y0, k, a) for a in (adjoints.backsolve, adjoints.direct))
    for value, a, b in zip((error.y0, error.theta), got, wanted, strict=True):
        np.testing.assert_allclose(value, np.linalg.norm(a - b) / np.linalg.norm(b), rtol=1e-12)


def test_a_gradient_that_is_not_finite_is_flagged():
    def lost(y0, k, adjoint):
        return jnp.sum(y0 * k) * (jnp.nan if adjoint is adjoints.backsolve else 1.0)

    assert bool(adjoint_audit.gradient_error(lost, jnp.ones(2), jnp.ones(2), adjoint=adjoints.backsolve).flagged)


def pendulum(t, y, theta):
    return -theta * jnp.sin(y)


@pytest.mark.float32
def test_reconstruction_is_at_rounding_for_a_fixed_time():
    how = {"scheme": schemes.leapfrog, "t1": 2.0, "steps": (10, 100, 1000)}
    table = adjoint_audit.reconstruction_error(pendulum, (np.ones(3), np.zeros(3)), 1.0, **how)
    assert table.relative.shape == (2, 3)
    assert table.dtypes == ("float32", "float64")
    assert (table.relative[0] < 1e-5).all()
    assert (table.relative[1] < 1e-13).all()
    # Float64 stays float64 whatever the flag, and float32 is really float32.
    assert (table.relative[0] > 1e-9).all()


def test_reconstruction_of_a_complex_state_sees_both_of_its_parts():
    how = {"scheme": schemes.leapfrog, "t1": None, "step_time": 0.1, "steps": (200,), "dtypes": ("float64",)}
    turning = lambda t, y, theta: (1 + 0.5j) * y  # noqa: E731
    start = (np.array([1e-9 + 1j]), np.array([0.5j]))
    apart = lambda t, y, theta: jnp.stack([y[0] - 0.5 * y[1], 0.5 * y[0] + y[1]])  # noqa: E731
    parts = tuple(np.stack([z.real, z.imag]) for z in start)
    found, wanted = (
        adjoint_audit.reconstruction_error(f, y, (), **how).relative[0, 0]
        for f, y in ((turning, start), (apart, parts))
    )
    assert 0.1 * wanted < found < 10 * wanted


def test_reconstruction_falls_with_time_where_the_flow_spreads():
    start = (RNG.normal(size=8), RNG.normal(size=8))
    k = RNG.normal(size=(8, 8)) * 2
    how = {"scheme": schemes.leapfrog, "t1": None, "step_time": 0.1, "steps": (10, 400), "dtypes": ("float64",)}
    table = adjoint_audit.reconstruction_error(lambda t, y, k: jnp.tanh(k @ y) + y * 0.3, start, k, **how)
    assert table.relative[0, 1] > 1e3 * table.relative[0, 0]


def test_errors_name_argument_and_value(key):
    with pytest.raises(TypeError, match=r"key must be a typed key"):
        adjoint_audit.dot_product_test(jnp.sum, jnp.ones(2), key=0)
    with pytest.raises(ValueError, match=r"halvings must be an integer >= 5; got 3"):
        adjoint_audit.taylor_remainders(jnp.sum, jnp.ones(2), key=key, halvings=3)
    with pytest.raises(ValueError, match=r"exactly one of t1 and step_time.*got t1=1\.0, step_time=0\.1"):
        adjoint_audit.reconstruction_error(
            pendulum, (1.0, 0.0), 1.0, scheme=schemes.leapfrog, t1=1.0, step_time=0.1, steps=(2,)
        )
    with pytest.raises(ValueError, match=r"dtypes must be one of float32, float64; got 'float16'"):
        adjoint_audit.reconstruction_error(
            pendulum, (1.0, 0.0), 1.0, scheme=schemes.leapfrog, t1=1.0, steps=(2,), dtypes=("float16",)
        )
