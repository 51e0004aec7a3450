"""Layer-parallel solves against the serial ones, against dense multigrid, and on eight simulated devices."""

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl import activations
from numdl.networks import residual
from numdl.ode import adjoints, integrate, parallel, schemes, tableaus

RNG = np.random.default_rng(5)
STEPS = 16
Y0 = jnp.asarray(RNG.normal(size=(3, 4)))
THETA = {"K": RNG.normal(size=(4, 4)), "b": RNG.normal(size=4)}
EPS = float(jnp.finfo(Y0.dtype).eps)
slow = functools.partial(pytest.param, marks=pytest.mark.slow)  # more of a kind that the quick tests have one of
EULER = {"tableau": tableaus.euler, "interpolation": "constant"}


def field(t, y, theta):
    return jnp.tanh(y @ theta["K"] + theta["b"][None]) + jnp.sin(t)


def linear(t, y, theta):
    return theta * y


def layers(interpolation, steps=STEPS):
    theta = jax.tree.map(jnp.asarray, THETA)
    if interpolation is None:
        return theta
    scale = jnp.asarray(0.6 + 0.4 * np.sin(np.arange(steps + (interpolation == "linear"))))
    return jax.tree.map(lambda leaf: scale.reshape(-1, *[1] * leaf.ndim) * leaf[None], theta)


def gap(got, wanted):
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
    return max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in pairs)


# ---- the states ----------------------------------------------------------------------------------------------------

KINDS = [
    ("constant", {"tableau": tableaus.heun}, Y0, field),
    ("linear", {"scheme": schemes.leapfrog}, (Y0, 0.5 * Y0), field),
    slow("linear", {"tableau": tableaus.heun}, Y0, field),
    slow(None, {"tableau": tableaus.euler}, Y0, field),
    slow("constant", {"scheme": schemes.verlet}, (Y0, 0.5 * Y0), (field, field)),
]


@pytest.mark.parametrize("interpolation, how, y0, rate", KINDS)
def test_exact_after_as_many_iterations_as_slices(interpolation, how, y0, rate):
    settings = {"t0": 0.1, "t1": 1.3, "steps": STEPS, "interpolation": interpolation, **how}
    serial = integrate.trajectory(rate, y0, layers(interpolation), **settings)
    solve = functools.partial(parallel.parareal, rate, y0, layers(interpolation), slices=4, tolerance=0.0, **settings)
    exact, early = solve(iterations=4), solve(iterations=3)
    wanted = jax.tree.map(lambda leaf: leaf[::4], serial.states)
    assert gap(exact.states, wanted) <= 4 * EPS
    assert gap(early.states, wanted) > 1e3 * EPS
    first = jax.tree.map(lambda leaf: leaf[:4], (early.states, wanted))  # three slices are right already
    assert gap(*first) <= 4 * EPS
    assert np.array_equal(exact.times, serial.times[::4])


@pytest.mark.parametrize("coarsening", [slow((2,)), slow((2, 2)), (2, 2, 2)])
def test_levels_and_relaxation_reach_the_serial_states(coarsening):
    settings = {"t1": 1.3, "steps": STEPS, "tableau": tableaus.euler, "interpolation": "constant"}
    wanted = integrate.trajectory(field, Y0, layers("constant"), **settings).states[::2]
    found = parallel.multigrid(field, Y0, layers("constant"), coarsening=coarsening, iterations=10, **settings)
    assert bool(found.converged)
    assert gap(found.states, wanted) < 1e-12
    assert int(found.iterations) < 10
    assert np.all(np.asarray(found.residuals[int(found.iterations) :]) == found.residuals[-1])


def by_hand(y0, factors, iterations, h, m):
    """Parareal for y' = factors[n] y by Euler's method in plain Python; the states at the slices, every iteration."""
    slices = len(factors) // m
    old = [y0]
    for j in range(slices):
        old.append(old[-1] * (1 + m * h * factors[j * m]))
    every = [old]
    for _ in range(iterations):
        new = [y0]
        for j in range(slices):
            fine = old[j]
            for n in range(j * m, (j + 1) * m):
                fine = fine * (1 + h * factors[n])
            new.append(fine + (new[j] - old[j]) * (1 + m * h * factors[j * m]))
        every.append(new)
        old = new
    return np.array(every)


def test_every_iterate_is_parareal():
    factors = -1.0 + np.sin(np.arange(STEPS))
    wanted = by_hand(1.5, factors, 3, 2.0 / STEPS, 4)
    for k in (1, 2, 3):
        settings = {"t1": 2.0, "steps": STEPS, "slices": 4, "iterations": k, "tolerance": 0.0, **EULER}
        found = parallel.parareal(linear, jnp.asarray(1.5), jnp.asarray(factors), **settings)
        assert np.asarray(found.states) == pytest.approx(wanted[k], rel=1e-13)
        ends = np.array([wanted[k][j] * np.prod(1 + 2.0 / STEPS * factors[4 * j : 4 * j + 4]) for j in range(4)])
        residual = np.linalg.norm(ends - wanted[k][1:]) / np.linalg.norm(wanted[k][1:])
        assert float(found.residuals[-1]) == pytest.approx(residual, rel=1e-9)


def cycle(level, matrices, cuts, u, g, relaxations):
    """One V-cycle for A u = g as textbooks have it: residual, correction, ideal interpolation; dense, linear."""
    a, m = matrices[level], cuts[level]
    phi = -a[1, 0]

    def spread_from_points(u):
        for n in range(1, len(u)):
            if n % m:
                u[n] = phi * u[n - 1] + g[n]
        return u

    u = spread_from_points(u.copy())
    for _ in range(relaxations):
        points = range(m, len(u), m)
        u[m::m] = [phi * u[n - 1] + g[n] for n in points]
        u = spread_from_points(u)
    residual = (g - a @ u)[::m]
    coarse = matrices[level + 1]
    if level + 2 == len(matrices):
        u[::m] += np.linalg.solve(coarse, residual)
    else:
        u[::m] += cycle(level + 1, matrices, cuts, np.zeros(len(residual)), residual, relaxations)
    return spread_from_points(u)


@pytest.mark.parametrize("cuts, relaxations", [((4,), 1), slow((2, 2), 0), slow((2, 2), 1), ((2, 2, 2), 1)])
def test_cycles_are_those_of_linear_multigrid(cuts, relaxations):
    rate, h = -1.7, 2.0 / STEPS
    matrices, stride = [], 1
    for m in (*cuts, 1):
        matrices.append(np.eye(STEPS // stride + 1) - np.diag([1 + stride * h * rate] * (STEPS // stride), -1))
        stride *= m
    right = np.eye(1, STEPS + 1)[0]
    begun = RNG.normal(size=STEPS // cuts[0] + 1)
    begun[0] = 1.0
    wanted = np.zeros(STEPS + 1)
    wanted[:: cuts[0]] = begun
    for _ in range(2):
        wanted = cycle(0, matrices, cuts, wanted, right, relaxations)
    settings = {"t1": 2.0, "steps": STEPS, "coarsening": cuts, "relaxations": relaxations, "iterations": 2}
    theta = jnp.full(STEPS, rate)
    found = parallel.multigrid(linear, jnp.asarray(1.0), theta, guess=jnp.asarray(begun), **settings, **EULER)
    assert np.asarray(found.states) == pytest.approx(wanted[:: cuts[0]], rel=1e-11, abs=1e-13)


def test_given_coarse_propagator_that_is_exact_leaves_nothing_to_correct():
    def whole_slice(t, h, y, theta):
        for n in range(4):
            y = y + h / 4 * field(t + n * h / 4, y, jax.tree.map(lambda leaf, n=n: leaf[n], theta))
        return y

    settings = {"t1": 1.3, "steps": STEPS, "slices": 4, "iterations": 3, **EULER}
    found = parallel.parareal(field, Y0, layers("constant"), coarse=whole_slice, **settings)
    assert int(found.iterations) == 0
    assert bool(found.converged)


def test_warm_start_needs_no_iteration():
    settings = {"t1": 1.3, "steps": STEPS, "coarsening": (4,), "iterations": 5, **EULER}
    first = parallel.multigrid(field, Y0, layers("constant"), **settings)
    again = parallel.multigrid(field, Y0, layers("constant"), guess=first.states, **settings)
    assert int(first.iterations) > 0
    assert int(again.iterations) == 0


def test_what_did_not_converge_is_said():
    def explode(t, y, theta):
        return theta * y**3

    settings = {"t1": 1.0, "steps": STEPS, "slices": 4, **EULER}
    found = parallel.parareal(explode, jnp.asarray(30.0), jnp.full(STEPS, 50.0), iterations=4, **settings)
    assert not bool(found.converged)
    assert np.isnan(found.residuals[-1])
    few = parallel.parareal(field, Y0, layers("constant"), iterations=1, **settings)
    assert not bool(few.converged)
    assert bool(parallel.parareal(field, Y0, layers("constant"), iterations=1, tolerance=0.5, **settings).converged)
    cut = parallel.adjoint(coarsening=(4,), iterations=1)
    whole = {"t1": 1.0, "steps": STEPS, **EULER}
    assert not bool(integrate.trajectory(field, Y0, layers("constant"), adjoint=cut, **whole).converged)


def test_half_precision_comes_out_as_it_went_in_and_compiles_once():
    settings = {"t1": 1.0, "steps": STEPS, "slices": 4, "iterations": 4, **EULER}
    y0, theta = Y0.astype(jnp.bfloat16), jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), layers("constant"))
    found = parallel.parareal(field, y0, theta, **settings)
    before = parallel._solve._cache_size()
    parallel.parareal(field, y0 + 1, theta, **settings)
    assert parallel._solve._cache_size() == before
    assert found.states.dtype == jnp.bfloat16
    wanted = integrate.trajectory(field, y0, theta, t1=1.0, steps=STEPS, **EULER).states[::4]
    assert gap(found.states.astype(float), wanted.astype(float)) < 2 * float(jnp.finfo(jnp.bfloat16).eps)


# ---- the gradient --------------------------------------------------------------------------------------------------


def measure(y, outer):
    return jnp.sum(jnp.sin(y) * outer)


def serial_gradient(theta, interpolation, outer):
    def value(y0, theta, outer):
        y = integrate.endpoint(
            field, y0, theta, t1=1.3, steps=STEPS, tableau=tableaus.heun, interpolation=interpolation
        )
        return measure(y, outer)

    return jax.value_and_grad(value, argnums=(0, 1, 2))(Y0, theta, outer)


@pytest.mark.parametrize("interpolation", ["constant", slow("linear"), slow(None)])
def test_gradient_is_the_serial_one_and_nears_it_with_every_cycle(interpolation):
    theta, outer = layers(interpolation), jnp.ones((3, 4))
    value, gradient = serial_gradient(theta, interpolation, outer)
    settings = {"t1": 1.3, "steps": STEPS, "tableau": tableaus.heun, "interpolation": interpolation}
    errors = []
    for iterations in (1, 2, 8):
        found = parallel.value_and_gradient(
            measure, field, Y0, theta, coarsening=(2,), iterations=iterations, outer=outer, tolerance=0.0, **settings
        )
        errors.append(gap((found.y0, found.theta, found.outer), gradient))
    assert errors[0] > 3 * errors[1] > 1e-9
    assert errors[2] < 20 * EPS
    assert float(found.value) == pytest.approx(float(value), rel=1e-13)
    assert gap(found.adjoints[0], gradient[0]) < 20 * EPS
    assert found.adjoint_residuals.shape == (9,)


@pytest.mark.slow
def test_one_shot_with_warm_starts_reaches_the_gradient():
    theta, outer = layers("constant"), jnp.ones((3, 4))
    settings = {"t1": 1.3, "steps": STEPS, "tableau": tableaus.heun, "interpolation": "constant", "coarsening": (4,)}
    step = functools.partial(parallel.value_and_gradient, measure, field, Y0, theta, iterations=1, outer=outer)
    guess, errors = None, []
    wanted = serial_gradient(theta, "constant", outer)[1][1]
    for _ in range(5):
        found = step(guess=guess, **settings)
        guess = found.states, found.adjoints
        errors.append(gap(found.theta, wanted))
    assert errors[0] > 1e-6
    assert errors[-1] < 1e-12
    assert bool(found.converged)


@pytest.mark.parametrize("coarsening", [slow((4,)), slow((2, 2))])
def test_as_an_adjoint_of_the_whole_trajectory(coarsening):
    def loss(y0, theta, t1, adjoint):
        settings = {"t1": t1, "steps": STEPS, "adjoint": adjoint, **EULER}
        return jnp.sum(integrate.trajectory(field, y0, theta, **settings).states ** 3)

    cut = parallel.adjoint(coarsening=coarsening, iterations=8)
    got, wanted = (jax.grad(loss, (0, 1, 2))(Y0, layers("constant"), 1.3, a) for a in (cut, adjoints.direct))
    assert gap(got, wanted) < 1e-11


@pytest.mark.slow
def test_a_network_takes_it():
    build = functools.partial(
        residual.network,
        widths=(3, 4, 2),
        depth=8,
        time=2.0,
        block="antisymmetric",
        damping=0.1,
        activation=activations.tanh,
        weight_variance=1.0,
        bias_variance=0.1,
    )
    cut = build(adjoint=parallel.adjoint(coarsening=(2,), iterations=4))
    x = jnp.asarray(RNG.normal(size=(5, 3)))
    params = cut.init(jax.random.key(0), x)
    got, wanted = (jax.grad(lambda p, net=net: jnp.sum(net.apply(p, x) ** 2))(params) for net in (cut, build()))
    assert gap(got, wanted) < 1e-11
    with pytest.raises(ValueError, match="coarsening"):
        build(adjoint=parallel.adjoint(coarsening=(3,), iterations=4)).apply(params, x)


# ---- the door ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad, error, name",
    [
        ({"coarsening": (3,)}, ValueError, "coarsening"),
        ({"coarsening": (4, 8)}, ValueError, "coarsening"),
        ({"coarsening": 4}, TypeError, "coarsening"),
        ({"iterations": 0}, ValueError, "iterations"),
        ({"relaxations": -1}, ValueError, "relaxations"),
        ({"tolerance": -1.0}, ValueError, "tolerance"),
        ({"tableau": tableaus.implicit_midpoint}, ValueError, "tableau"),
        ({"coarse": lambda t, y: y}, TypeError, "coarse"),
        ({"coarse": lambda t, h, y, theta: y, "coarsening": (2, 2)}, ValueError, "coarsening"),
        ({"axis": "depth"}, ValueError, "axis"),
        ({"mesh": "depth"}, TypeError, "mesh"),
        ({"guess": Y0}, ValueError, "guess"),
        ({"speed": 1}, TypeError, "speed"),
    ],
)
def test_door(bad, error, name):
    settings = {"t1": 1.0, "steps": STEPS, "coarsening": (4,), "iterations": 1, **EULER, **bad}
    with pytest.raises(error, match=name):
        parallel.multigrid(field, Y0, layers("constant"), **settings)


def test_steps_that_solve_equations_are_refused_as_an_adjoint_too():
    cut = parallel.adjoint(coarsening=(4,), iterations=1)
    with pytest.raises(ValueError, match="explicit"):
        integrate.endpoint(linear, Y0, -1.0, t1=1.0, steps=8, tableau=tableaus.implicit_midpoint, adjoint=cut)


def test_door_of_the_mesh_and_the_slices():
    mesh = jax.make_mesh((1,), ("depth",))
    settings = {"t1": 1.0, "steps": STEPS, "iterations": 1, **EULER}
    with pytest.raises(ValueError, match="axis"):
        parallel.parareal(field, Y0, layers("constant"), slices=4, mesh=mesh, axis="width", **settings)
    with pytest.raises(ValueError, match="slices"):
        parallel.parareal(field, Y0, layers("constant"), slices=5, **settings)
    found = parallel.parareal(field, Y0, layers("constant"), slices=4, mesh=mesh, axis="depth", **settings)
    assert gap(found.states, parallel.parareal(field, Y0, layers("constant"), slices=4, **settings).states) <= 4 * EPS


# ---- eight devices -------------------------------------------------------------------------------------------------

ON_EIGHT = r"""
import re
import jax, jax.numpy as jnp, numpy as np
jax.config.update("jax_enable_x64", True)
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from numdl.ode import parallel, tableaus
from numdl.theory import layer_parallel

LAYERS, CUT, CYCLES = 64, 4, 2

def field(t, y, theta):
    return jnp.tanh(y @ theta)

theta = jnp.asarray(np.random.default_rng(0).normal(size=(LAYERS, 3, 3)))
y0 = jnp.asarray(np.random.default_rng(1).normal(size=(6, 3)))
settings = {"t1": 1.3, "steps": LAYERS, "tableau": tableaus.euler, "interpolation": "constant", "coarsening": (CUT,)}
settings |= {"iterations": CYCLES, "tolerance": 0.0}
loss = lambda y, outer: jnp.sum(y**2)
one = parallel.multigrid(field, y0, theta, **settings)
gradient = parallel.value_and_gradient(loss, field, y0, theta, **settings)
whole = np.array(jax.devices())
for mesh in (jax.make_mesh((8,), ("depth",)), Mesh(whole.reshape(2, 4), ("data", "depth"))):
    y, layers = y0, theta
    if "data" in mesh.axis_names:
        y = jax.device_put(y0, NamedSharding(mesh, PartitionSpec("data")))
        layers = jax.device_put(theta, NamedSharding(mesh, PartitionSpec("depth")))
    there = {"mesh": mesh, "axis": "depth"}
    many = parallel.multigrid(field, y, layers, **there, **settings)
    assert np.allclose(many.states, one.states, rtol=1e-14, atol=1e-15)
    found = parallel.value_and_gradient(loss, field, y, layers, **there, **settings)
    assert np.allclose(found.theta, gradient.theta, rtol=1e-12, atol=1e-14)
    assert found.theta.sharding.spec[0] == "depth"

mesh = jax.make_mesh((8,), ("depth",))

def solve(y, theta):
    return parallel.multigrid(field, y, theta, mesh=mesh, axis="depth", **settings)

def count(jaxpr, times=1):
    total = 0
    for equation in jaxpr.eqns:
        again = times * equation.params.get("length", 1) * (CYCLES if equation.primitive.name == "while" else 1)
        if equation.primitive.name == "tanh":
            total += times * equation.outvars[0].aval.size // y0.size
        for value in jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            total += count(inner, again) if hasattr(inner, "eqns") else 0
    return total

told = layer_parallel.speed_up(layers=LAYERS, slices=LAYERS // CUT, devices=8, iterations=CYCLES, relaxations=1)
counted = count(jax.make_jaxpr(solve)(y0, theta).jaxpr)
text = jax.jit(solve).lower(y0, theta).compile().as_text()
states = re.findall(r"f64\[16,6,3\]\S* all-gather(?:-start)?\(", text)
print(counted, int(told.layers), len(states), len(re.findall(r"(?:all-reduce|all-to-all)(?:-start)?\(", text)))
"""


@pytest.mark.slow
def test_eight_simulated_devices_agree_with_one_and_do_the_work_that_is_counted():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    run = subprocess.run(
        [sys.executable, "-c", ON_EIGHT], capture_output=True, text=True, check=False, env={**os.environ, **flags}
    )
    assert run.returncode == 0, run.stderr
    counted, told, gathers, reductions = map(int, run.stdout.split())
    assert counted == told  # layers that each device goes through, one after the other
    assert gathers == 1 + 3  # the program holds a cycle once: 2 + relaxations gathers, and one before
    assert reductions == 0
