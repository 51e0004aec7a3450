"""Every adjoint against the direct gradient, against finite differences, and by its memory."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.ode import _schedule, adjoints, integrate, refinement, schemes, tableaus

RNG = np.random.default_rng(5)
Y0 = RNG.normal(size=(3, 4))
THETA = {"K": RNG.normal(size=(4, 4)), "b": RNG.normal(size=4)}
STEPS = 13
EXACT = {
    "checkpointed": adjoints.checkpointed,
    "square_root": adjoints.square_root,
    "nested(levels=3)": adjoints.nested(levels=3),
    "binomial(snapshots=3)": adjoints.binomial(snapshots=3),
    "binomial(snapshots=1)": adjoints.binomial(snapshots=1),
    "binomial(snapshots=50)": adjoints.binomial(snapshots=50),
}
REVERSIBLE = {"leapfrog": 1, "verlet": 2, "coupling": 2}


def field(t, y, theta):
    return jnp.tanh(y @ theta["K"] + theta["b"][None]) + jnp.sin(t)


def inputs(interpolation):
    theta = jax.tree.map(jnp.asarray, THETA)
    if interpolation:
        length = STEPS + (interpolation == "linear")
        scale = jnp.asarray(0.6 + 0.4 * np.sin(np.arange(length)))
        theta = jax.tree.map(lambda leaf: scale.reshape(-1, *[1] * leaf.ndim) * leaf[None], theta)
    return theta, jnp.asarray(Y0), jnp.asarray(1.2)


def loss(theta, y0, t1, adjoint, interpolation, how, whole, steps=STEPS):
    solve = {"t1": t1, "t0": 0.1, "steps": steps, "adjoint": adjoint, "interpolation": interpolation, **how}
    rate = solve.pop("field", field)
    start = (y0, 0.5 * y0) if "scheme" in how else y0
    if not whole:
        return sum(jnp.sum(leaf**3) for leaf in jax.tree.leaves(integrate.endpoint(rate, start, theta, **solve)))
    states = integrate.trajectory(rate, start, theta, **solve).states
    return sum(jnp.sum(jnp.sin(leaf) ** 2) + jnp.sum(leaf[-1] ** 3) for leaf in jax.tree.leaves(states))


def largest_gap(got, wanted):
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
    return max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in pairs)


def rounding(factor=100):
    return factor * float(jnp.finfo(jnp.asarray(1.0).dtype).eps)


def latin(names, times):
    """Every name with every kind of time; all but one in three, in turn, only in the long run."""
    return [
        pytest.param(name, *time, marks=() if i % len(times) == j else pytest.mark.slow)
        for i, name in enumerate(names)
        for j, time in enumerate(times)
    ]


@functools.cache
def direct_gradient(name, interpolation, whole):
    return solve_gradient(adjoints.direct, interpolation, settings(name), whole)


def settings(name):
    if name not in REVERSIBLE:
        return {"tableau": tableaus.heun}
    return {"scheme": getattr(schemes, name), "field": field if REVERSIBLE[name] == 1 else (field, field)}


def solve_gradient(adjoint, interpolation, how, whole):
    function = jax.grad(lambda *x: loss(*x, adjoint, interpolation, how, whole), argnums=(0, 1, 2))
    return jax.jit(function)(*inputs(interpolation))


@pytest.mark.float32
@pytest.mark.parametrize(
    "name, interpolation, whole", latin(EXACT, [(None, True), ("constant", False), ("linear", True)])
)
def test_exact_adjoints_are_the_direct_gradient(name, interpolation, whole):
    got = solve_gradient(EXACT[name], interpolation, settings("heun"), whole)
    assert largest_gap(got, direct_gradient("heun", interpolation, whole)) < rounding()


@pytest.mark.float32
@pytest.mark.parametrize(
    "name, interpolation, whole", latin(REVERSIBLE, [(None, False), ("constant", True), ("linear", False)])
)
def test_reversible_is_the_direct_gradient(name, interpolation, whole):
    got = solve_gradient(adjoints.reversible, interpolation, settings(name), whole)
    gap = largest_gap(got, direct_gradient(name, interpolation, whole))
    assert gap < max(1e-10, rounding(300))
    # What it knows is only the last state: bitwise equality would mean that it is not in use.
    assert gap > 0


def test_direct_gradient_is_that_of_finite_differences():
    arguments = inputs("constant")
    rest = (adjoints.direct, "constant", {"tableau": tableaus.rk4}, True)
    value = jax.jit(lambda *x: loss(*x, *rest))
    gradient = jax.jit(jax.grad(value, argnums=(0, 1, 2)))(*arguments)
    direction = jax.tree.map(lambda leaf: jnp.asarray(RNG.normal(size=leaf.shape)), arguments)
    ends = [value(*jax.tree.map(lambda a, d, s=s: a + s * 1e-5 * d, arguments, direction)) for s in (1, -1)]
    slope = sum(
        float(jnp.vdot(g, d)) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction), strict=True)
    )
    assert abs((float(ends[0]) - float(ends[1])) / 2e-5 / slope - 1) < 1e-8


@pytest.mark.parametrize(
    "interpolation, whole",
    [
        pytest.param(None, True, marks=pytest.mark.slow),
        ("constant", False),
        pytest.param("linear", False, marks=pytest.mark.slow),
    ],
)
def test_backsolve_with_euler_converges_to_the_gradient_with_order_one(interpolation, whole):
    theta, y0, t1 = inputs(interpolation)
    gaps = []
    for steps in (8 * STEPS, 32 * STEPS):
        fine = refinement.prolong(theta, steps=steps, interpolation=interpolation) if interpolation else theta
        pair = [
            fine_gradient(fine, y0, t1, a, interpolation, whole, steps) for a in (adjoints.backsolve, adjoints.direct)
        ]
        gaps.append(largest_gap(*pair))
    assert 1e-4 < gaps[-1] < 0.2
    assert abs(np.log2(gaps[0] / gaps[1]) / 2 - 1) < 0.25


def fine_gradient(theta, y0, t1, adjoint, interpolation, whole, steps):
    how = {"tableau": tableaus.euler}
    function = jax.grad(lambda *x: loss(*x, adjoint, interpolation, how, whole, steps), argnums=(0, 1, 2))
    gradient, *rest = jax.jit(function)(theta, y0, t1)
    # Summed over time: Euler gives the last node of a linear theta no weight at all, the continuous adjoint one half.
    return jax.tree.map(lambda leaf: leaf.sum(axis=0), gradient) if interpolation else gradient, *rest


@pytest.mark.float32
def test_backsolve_of_a_gauss_method_is_exact():
    # Symplectic methods solve the pair (state, adjoint) so that the discrete product is kept: Sanz-Serna 2016.
    how = {"tableau": tableaus.implicit_midpoint}
    both = [solve_gradient(a, "constant", how, False) for a in (adjoints.backsolve, adjoints.direct)]
    assert largest_gap(*both) < rounding(3000)


@pytest.mark.parametrize("snapshots", [1, 2, 3, 7])
def test_schedule_is_valid_and_optimal(snapshots):
    for steps in (1, 2, 3, 10, 37, 64):
        load, begin, end, index, store = _schedule.plan(steps, snapshots)
        slots = {0: 0}
        for n in reversed(range(steps)):
            state = slots[load[n]]
            for row in range(begin[n], end[n]):
                assert index[row] == state
                state += 1
                slots[int(store[row])] = state
            assert state == n
        assert max(slots) <= snapshots
        assert len(index) == fewest_steps(steps, snapshots)


def fewest_steps(steps, snapshots, memory=None):
    """The least number of recomputed steps, by trying every first snapshot: Bellman's equation."""
    memory = {} if memory is None else memory
    if steps == 1:
        return 0
    if snapshots == 1:
        return math.comb(steps, 2)
    if (steps, snapshots) not in memory:
        memory[steps, snapshots] = min(
            m + fewest_steps(steps - m, snapshots - 1, memory) + fewest_steps(m, snapshots, memory)
            for m in range(1, steps)
        )
    return memory[steps, snapshots]


def temporary_bytes(adjoint, steps, **how):
    y0, theta = jnp.ones((64, 32)), {"K": jnp.eye(32), "b": jnp.ones(32)}
    rate = how.pop("field", field)

    def total(y0, theta):
        end = integrate.endpoint(rate, y0, theta, t1=1.0, steps=steps, adjoint=adjoint, **how)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(end))

    start = (y0, y0) if "scheme" in how else y0
    compiled = jax.jit(jax.grad(total, argnums=(0, 1))).lower(start, theta).compile()
    return compiled.memory_analysis().temp_size_in_bytes / (y0.nbytes)  # in states


@pytest.mark.parametrize("name", REVERSIBLE)
def test_reversible_memory_is_flat_in_depth(name):
    how = settings(name)
    shallow, deep = (temporary_bytes(adjoints.reversible, steps, **how) for steps in (50, 3200))
    # Besides the states there is one number per step: its time.
    assert deep - shallow < 0.01 * 3200
    assert deep < 60
    assert temporary_bytes(adjoints.direct, 3200, **how) > 3200


def test_memory_of_the_others_is_as_said():
    states = {
        name: temporary_bytes(adjoint, 900, tableau=tableaus.euler)
        for name, adjoint in {
            "direct": adjoints.direct,
            "checkpointed": adjoints.checkpointed,
            "square_root": adjoints.square_root,
            "levels": adjoints.nested(levels=3),
            "binomial": adjoints.binomial(snapshots=8),
            "backsolve": adjoints.backsolve,
        }.items()
    }
    assert states["direct"] > 890
    assert 890 < states["checkpointed"] < 1000
    assert 60 < states["square_root"] < 110
    assert states["levels"] < 60
    assert states["binomial"] < 30
    assert states["backsolve"] < 25


def test_adjoints_that_do_not_fit_say_so():
    theta, y0, _ = inputs(None)
    with pytest.raises(ValueError, match=r"adjoint=reversible needs a scheme with an inverse"):
        integrate.endpoint(field, y0, theta, tableau=tableaus.rk4, t1=1.0, steps=2, adjoint=adjoints.reversible)
    how = {"scheme": schemes.leapfrog, "t1": 1.0, "steps": 2, "adjoint": adjoints.backsolve}
    with pytest.raises(ValueError, match=r"adjoint=backsolve needs a Runge-Kutta tableau"):
        integrate.endpoint(field, (y0, y0), theta, **how)
    with pytest.raises(ValueError, match=r"snapshots must be an integer >= 1; got 0"):
        adjoints.binomial(snapshots=0)
    with pytest.raises(ValueError, match=r"levels must be an integer >= 1; got 0"):
        adjoints.nested(levels=0)
