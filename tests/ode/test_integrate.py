"""Orders on manufactured non-autonomous problems, parameters in time, and what stands at the door."""

import dataclasses
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.linalg import expm

from numdl.ode import convergence, integrate, schemes, tableaus

T = 2.0
RNG = np.random.default_rng(7)
W = np.linspace(0.5, 1.5, 6)
THETA = {"K": RNG.normal(size=(6, 6)) / 2, "b": RNG.normal(size=6)}


def exact(t):
    return np.sin(W * (t + 1))


def field(t, y, theta):
    """y' = tanh(K y + b) + s(t), s such that y = sin(w (t + 1)) solves it."""
    forcing = jnp.asarray(W) * jnp.cos(jnp.asarray(W) * (t + 1))
    wanted = jnp.tanh(theta["K"] @ jnp.sin(jnp.asarray(W) * (t + 1)) + theta["b"])
    return jnp.tanh(theta["K"] @ y + theta["b"]) + forcing - wanted


def acceleration(t, y, theta):
    """y'' = tanh(K y + b) + s(t) with the same solution."""
    place = jnp.sin(jnp.asarray(W) * (t + 1))
    wanted = jnp.tanh(theta["K"] @ place + theta["b"])
    return jnp.tanh(theta["K"] @ y + theta["b"]) - jnp.asarray(W) ** 2 * place - wanted


def damped(t, y, theta):
    """What is left for the explicit part when -2 y is treated implicitly."""
    return field(t, y, theta) + 2 * y


def order_of(steps, **how):
    how = {"start": exact(0), "end": exact(T), "field": field, "t1": T, **how}
    y0, end, rate = jax.tree.map(jnp.asarray, how.pop("start")), how.pop("end"), how.pop("field")
    return convergence.study(lambda n: integrate.endpoint(rate, y0, THETA, steps=n, **how), steps=steps, reference=end)


def grid(order):
    first = {1: 10, 2: 6, 3: 5, 4: 5, 5: 7}[order]
    return [2**k for k in range(first, first + 4)]


@pytest.mark.parametrize("tableau", tableaus.ALL, ids=lambda t: t.name)
def test_runge_kutta_has_its_declared_order(tableau):
    order = order_of(grid(tableau.order), tableau=tableau, **(SCALAR if tableau.order == 5 else {}))
    assert order.used.all()
    assert np.abs(order.pairwise - tableau.order).max() < 0.1


def swing(t, y, theta):
    """y' = 1.7 y cos(t), y = exp(1.7 sin(t)): on the problem above the error of order 6 hides that of order 5."""
    return 1.7 * y * jnp.cos(t)


SCALAR = {"field": swing, "start": np.ones(()), "end": np.exp(1.7 * np.sin(10.0)), "t1": 10.0}
PAIR = {"start": (exact(0), W * np.cos(W)), "end": (exact(T), W * np.cos(W * (T + 1)))}
TWINS = {"start": (exact(0), exact(0)), "end": (exact(T), exact(T))}
SCHEMES = {
    "leapfrog": {"scheme": schemes.leapfrog, "field": acceleration, **PAIR},
    "verlet": {"scheme": schemes.verlet, "field": (field, field), **TWINS},
    "coupling": {"scheme": schemes.coupling, "field": (field, field), **TWINS},
    "semi_implicit": {"scheme": schemes.semi_implicit(2.0 * np.eye(6)), "field": damped},
    "semi_implicit diagonal": {"scheme": schemes.semi_implicit(2.0 * np.ones(6)), "field": damped},
}


@pytest.mark.parametrize("name", SCHEMES)
def test_other_schemes_have_their_declared_order(name):
    how = SCHEMES[name]
    order = order_of(grid(how["scheme"].order), **how)
    assert order.used.all()
    assert np.abs(order.pairwise - how["scheme"].order).max() < 0.1


def test_the_order_test_sees_a_forgotten_time_and_a_bent_weight():
    forgetful = schemes.runge_kutta(tableaus.midpoint)._replace(step=forget_time)
    assert abs(order_of(grid(2), scheme=forgetful).pairwise[-1] - 2) > 0.5
    bend = Fraction(1, 1000)
    b = tableaus.rk4.b
    bent = dataclasses.replace(tableaus.rk4, b=(b[0] + bend, *b[1:3], b[3] - bend))
    assert abs(order_of([128, 256, 512], tableau=bent).pairwise[-1] - 4) > 1


def forget_time(field, y, t, h, control):
    return schemes.runge_kutta(tableaus.midpoint).step(lambda _, y, theta: field(t, y, theta), y, t, h, control)


def test_euler_has_its_error_constant():
    rate = -1.3
    for steps in (256, 1024):
        end = integrate.endpoint(linear, jnp.ones(()), jnp.asarray(rate), tableau=tableaus.euler, t1=T, steps=steps)
        predicted = -(T / steps) / 2 * rate**2 * T * np.exp(rate * T)
        assert abs((float(end) - np.exp(rate * T)) / predicted - 1) < 0.05


def linear(t, y, theta):
    return theta * y


@pytest.mark.parametrize("tableau", [tableaus.dormand_prince, tableaus.gauss_legendre4], ids=lambda t: t.name)
def test_matrix_exponential(tableau):
    a = RNG.normal(size=(5, 5))
    y0 = RNG.normal(size=5)
    how = {"tableau": tableau, "t1": 1.0, "steps": 256}
    end = integrate.endpoint(lambda t, y, a: a @ y, jnp.asarray(y0), jnp.asarray(a), **how)
    np.testing.assert_allclose(end, expm(a) @ y0, rtol=1e-8)


def test_semi_implicit_is_stable_where_euler_is_not():
    a = 1e4 * np.diag([1.0, 2.0]) + np.array([[0.0, 3.0], [-3.0, 0.0]])
    scheme = schemes.semi_implicit(lambda theta: theta)
    y = integrate.endpoint(
        lambda t, y, theta: jnp.ones_like(y), jnp.ones((4, 2)), jnp.asarray(a), scheme=scheme, t1=1.0, steps=8
    )
    np.testing.assert_allclose(y, np.broadcast_to(np.linalg.solve(a, np.ones(2)), (4, 2)), rtol=1e-10)
    system = scheme.derivative(lambda t, y, theta: jnp.ones_like(y), 0.0, jnp.ones((4, 2)), jnp.asarray(a))
    np.testing.assert_allclose(system, np.broadcast_to(1 - a @ np.ones(2), (4, 2)))


def test_a_semi_implicit_step_damps_by_its_new_parameters():
    damping = schemes.semi_implicit(lambda theta: theta * jnp.ones(1))
    how = {"scheme": damping, "interpolation": "linear", "t1": 0.5, "steps": 1}
    end = integrate.endpoint(lambda t, y, theta: 0 * y, jnp.ones(1), jnp.asarray([1.0, 3.0]), **how)
    np.testing.assert_allclose(end, 1 / (1 + 0.5 * 3.0))


def test_piecewise_constant_theta_against_scipy():
    theta = jnp.asarray(RNG.normal(size=(5, 3, 3)))
    y = y0 = RNG.normal(size=3)
    for i, a in enumerate(np.asarray(theta)):
        span = (0.4 * i, 0.4 * (i + 1))
        solution = solve_ivp(lambda t, y, a=a: np.tanh(a @ y) + t, span, y, method="DOP853", rtol=1e-12, atol=1e-12)
        y = solution.y[:, -1]
    fine = jnp.repeat(theta, 20, axis=0)
    how = {"tableau": tableaus.rk4, "t1": T, "steps": 100, "interpolation": "constant"}
    got = integrate.endpoint(lambda t, y, a: jnp.tanh(a @ y) + t, jnp.asarray(y0), fine, **how)
    np.testing.assert_allclose(got, y, rtol=1e-6)


def test_linear_theta_has_a_closed_form():
    nodes = jnp.asarray([1.0, -2.0, 0.5])
    area = 0.5 * (1.0 - 2.0) + 0.5 * (-2.0 + 0.5)  # the trapezoids over [0, 1] and [1, 2]
    for tableau, steps in ((tableaus.rk4, 2), (tableaus.rk4, 4)):
        theta = jnp.interp(jnp.linspace(0, 2, steps + 1), jnp.arange(3.0), nodes)
        end = integrate.endpoint(
            linear, jnp.ones(()), theta, tableau=tableau, t1=2.0, steps=steps, interpolation="linear"
        )
        assert abs(float(end) / np.exp(area) - 1) < {2: 0.2, 4: 0.02}[steps]
    theta = jnp.interp(jnp.linspace(0, 2, 257), jnp.arange(3.0), nodes)
    end = integrate.endpoint(
        linear, jnp.ones(()), theta, tableau=tableaus.rk4, t1=2.0, steps=256, interpolation="linear"
    )
    assert abs(float(end) / np.exp(area) - 1) < 1e-9


def test_constant_theta_is_a_residual_network():
    theta, y0 = RNG.normal(size=(6, 4, 4)), RNG.normal(size=(3, 4))
    y, h = y0, 0.25
    for k in theta:
        y = y + h * np.tanh(y @ k)
    end = integrate.endpoint(
        layer, jnp.asarray(y0), jnp.asarray(theta), tableau=tableaus.euler, t1=1.5, steps=6, interpolation="constant"
    )
    np.testing.assert_allclose(end, y, rtol=1e-12)


def layer(t, y, k):
    return jnp.tanh(y @ k)


def test_theta_at_is_what_the_steps_see():
    theta = jnp.asarray([0.0, 1.0, 4.0])
    at = {"t0": 1.0, "t1": 3.0}
    got = [float(integrate.theta_at(theta, t, interpolation="linear", **at)) for t in (1.0, 1.5, 2.5, 3.0)]
    np.testing.assert_allclose(got, [0, 0.5, 2.5, 4])
    got = [float(integrate.theta_at(theta, t, interpolation="constant", **at)) for t in (1.0, 1.7, 2.9, 3.0)]
    np.testing.assert_allclose(got, [0, 1, 4, 4])
    assert integrate.theta_at(theta, 1.0, interpolation=None, **at) is theta


@pytest.mark.float32
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_states_keep_their_dtype_and_trees_their_structure(dtype):
    y0 = {"a": jnp.ones((2, 3), dtype), "b": [jnp.full((2,), 2, "float32")]}
    result = integrate.trajectory(decay, y0, (), tableau=tableaus.heun, t1=1.0, steps=4)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), result.states) == {
        "a": ((5, 2, 3), jnp.dtype(dtype)),
        "b": [((5, 2), jnp.dtype("float32"))],
    }
    np.testing.assert_allclose(result.states["b"][0][-1], 2 * (1 - 0.25 + 0.03125) ** 4, rtol=1e-6)
    assert result.times.dtype == jnp.float32
    assert bool(result.converged)


def decay(t, y, theta):
    return jax.tree.map(jnp.negative, y)


def test_trajectory_ends_at_the_endpoint_and_backwards_returns():
    y0, theta = jnp.asarray(exact(0)), jax.tree.map(jnp.asarray, THETA)
    how = {"tableau": tableaus.dormand_prince, "steps": 64}
    path = integrate.trajectory(field, y0, theta, t1=T, **how)
    np.testing.assert_array_equal(path.states[0], y0)
    np.testing.assert_array_equal(path.states[-1], integrate.endpoint(field, y0, theta, t1=T, **how))
    np.testing.assert_allclose(path.times, np.linspace(0, T, 65))
    np.testing.assert_allclose(path.states, np.stack([exact(t) for t in np.asarray(path.times)]), atol=1e-9)
    back = integrate.endpoint(field, path.states[-1], theta, t0=T, t1=0.0, **how)
    np.testing.assert_allclose(back, y0, atol=1e-7)


@pytest.mark.parametrize("name", ["leapfrog", "verlet", "coupling"])
@pytest.mark.parametrize("interpolation", [None, "constant", "linear"])
def test_inverse_undoes_every_step(name, interpolation):
    how = SCHEMES[name]
    theta = jax.tree.map(jnp.asarray, THETA)
    if interpolation:
        length = 20 + (interpolation == "linear")
        theta = jax.tree.map(
            lambda leaf: jnp.linspace(0.5, 1, length).reshape(-1, *[1] * leaf.ndim) * leaf[None], theta
        )
    y0 = jax.tree.map(jnp.asarray, how["start"])
    grid = {"scheme": how["scheme"], "t1": T, "steps": 20, "interpolation": interpolation}
    y1 = integrate.endpoint(how["field"], y0, theta, **grid)
    back = integrate.invert(how["field"], y1, theta, **grid)
    for got, wanted in zip(jax.tree.leaves(back), jax.tree.leaves(y0), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-13)
        assert float(jnp.abs(got - y1[0]).max()) > 0.1


@pytest.mark.parametrize("name", ["leapfrog", "verlet"])
def test_symplectic_schemes_and_one_that_is_not(name):
    def rotate(t, y, theta):
        return jnp.sin(y)

    rates = {
        "leapfrog": lambda t, q, theta: -jnp.sin(q),
        "verlet": (lambda t, p, theta: p, lambda t, q, theta: -rotate(t, q, theta)),
    }
    start = (jnp.asarray([0.7]), jnp.asarray([0.3]))

    def end(z, **how):
        return jnp.concatenate(integrate.endpoint(rates[name], (z[:1], z[1:]), (), t1=5.0, steps=50, **how))

    m = jax.jacfwd(lambda z: end(z, scheme=getattr(schemes, name)))(jnp.concatenate(start))
    j = np.array([[0, 1], [-1, 0]])
    assert np.abs(m.T @ j @ m - j).max() / np.linalg.norm(m, 2) ** 2 < 1e-14

    def plain(z):
        return integrate.endpoint(
            lambda t, z, _: jnp.stack([z[1], -jnp.sin(z[0])]), z, (), t1=5.0, steps=50, tableau=tableaus.rk4
        )

    m = jax.jacfwd(plain)(jnp.concatenate(start))
    assert np.abs(m.T @ j @ m - j).max() > 1e-8


def test_implicit_steps_report_failure():
    def explode(t, y, theta):
        return y**2

    stiff = integrate.trajectory(
        lambda t, y, a: -a * y,
        jnp.ones(2),
        jnp.asarray([1e6, 1.0]),
        tableau=tableaus.implicit_midpoint,
        t1=1.0,
        steps=4,
    )
    assert bool(stiff.converged)
    assert float(jnp.abs(stiff.states).max()) <= 1 + 1e-9
    lost = integrate.trajectory(explode, jnp.ones(2), (), tableau=tableaus.implicit_midpoint, t1=50.0, steps=5)
    assert not bool(lost.converged)
    assert float(lost.residual.max()) > 1e-12
    overflow = integrate.trajectory(explode, jnp.ones(2), (), tableau=tableaus.euler, t1=50.0, steps=50)
    assert not bool(overflow.converged)


def test_implicit_steps_differentiate_the_solution():
    a, y0 = jnp.asarray([[-0.5, 1.0], [-2.0, -0.3]]), jnp.asarray([1.0, 0.4])

    def midpoint(a):
        step = jnp.linalg.solve(jnp.eye(2) - 0.1 * a / 2, jnp.eye(2) + 0.1 * a / 2)
        return jnp.linalg.matrix_power(step, 10) @ y0

    def ours(a):
        return integrate.endpoint(lambda t, y, a: a @ y, y0, a, tableau=tableaus.implicit_midpoint, t1=1.0, steps=10)

    np.testing.assert_allclose(ours(a), midpoint(a), rtol=1e-12)
    np.testing.assert_allclose(jax.jacrev(ours)(a), jax.jacrev(midpoint)(a), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(jax.jacfwd(ours)(a), jax.jacrev(midpoint)(a), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("interpolation", [None, "constant"])
def test_adaptive_agrees_with_scipy(interpolation):
    pytest.importorskip("diffrax")
    theta = jax.tree.map(jnp.asarray, THETA)
    y0 = jnp.asarray(exact(0))
    times = jnp.asarray([0.5, T])
    tolerances = {"rtol": 1e-10, "atol": 1e-10}
    if interpolation is None:
        wanted = np.stack([exact(0.5), exact(T)])
    else:
        theta = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf]), theta)
        half = integrate.endpoint(
            field, y0, jax.tree.map(lambda leaf: leaf[0], theta), tableau=tableaus.dormand_prince, t1=1.0, steps=128
        )
        last = integrate.endpoint(
            field,
            half,
            jax.tree.map(lambda leaf: leaf[1], theta),
            tableau=tableaus.dormand_prince,
            t0=1.0,
            t1=T,
            steps=128,
        )
        wanted = np.stack([exact(0.5), last])
    solution = integrate.adaptive(field, y0, theta, t1=T, times=times, interpolation=interpolation, **tolerances)
    assert bool(solution.converged)
    np.testing.assert_allclose(solution.states, wanted, atol=1e-7)
    short = integrate.adaptive(field, y0, theta, t1=T, interpolation=interpolation, max_steps=3, **tolerances)
    assert not bool(short.converged)


GOOD = {
    "field": linear,
    "y0": jnp.ones(2, "float32"),
    "theta": jnp.ones((), "float32"),
    "tableau": tableaus.rk4,
    "t1": 1.0,
    "steps": 4,
}
WRONG = [
    ({"steps": 0}, ValueError, r"steps must be an integer >= 1; got 0"),
    ({"t1": np.inf}, ValueError, r"t1 must be a finite number; got inf"),
    ({"tableau": None}, ValueError, r"exactly one of tableau and scheme must be given; got neither"),
    ({"scheme": schemes.leapfrog}, ValueError, r"exactly one of tableau and scheme must be given; got tableau="),
    ({"tableau": "rk4"}, TypeError, r"tableau must be a Tableau, such as tableaus\.rk4; got 'rk4'"),
    ({"field": 3}, TypeError, r"field must be a function; got 3"),
    ({"field": linear, "scheme": schemes.verlet, "tableau": None}, TypeError, r"field must be a pair.*verlet"),
    ({"y0": jnp.ones(2, int)}, TypeError, r"y0 must be floating-point numbers; got dtype int"),
    ({"theta": {"k": jnp.ones(2, int)}}, TypeError, r"theta\['k'\] must be floating-point numbers; got dtype int"),
    ({"interpolation": "cubic"}, ValueError, r"interpolation must be one of None, constant, linear; got 'cubic'"),
    ({"interpolation": "constant"}, ValueError, r"theta must have shape \(4, \.\.\.\) for 4 steps.*got \(\)"),
    (
        {"interpolation": "linear", "theta": {"k": jnp.ones(4)}},
        ValueError,
        r"theta\['k'\] must have shape \(5, .*got \(4,\)",
    ),
    (
        {"field": lambda t, y, theta: y[0]},
        ValueError,
        r"field must return what is shaped like the state, \(2,\); got \(\)",
    ),
    ({"adjoint": "direct"}, TypeError, r"adjoint must be a function; got 'direct'"),
    (
        {"tableau": tableaus.gauss_legendre4, "y0": jnp.ones(5000)},
        ValueError,
        r"at most 2048 numbers.*got 5000: jax\.vmap",
    ),
]


@pytest.mark.parametrize("change, error, message", WRONG)
def test_errors_name_argument_and_value(change, error, message):
    arguments = {**GOOD, **change}
    with pytest.raises(error, match=message):
        integrate.endpoint(arguments.pop("field"), arguments.pop("y0"), arguments.pop("theta"), **arguments)


def test_schemes_without_inverse_say_so():
    with pytest.raises(ValueError, match=r"scheme must have an inverse.*got semi_implicit"):
        integrate.invert(linear, jnp.ones(2), (), scheme=schemes.semi_implicit(np.eye(2)), t1=1.0, steps=2)
    with pytest.raises(ValueError, match=r"matrix must have shape \(n, n\).*got \(2, 3\)"):
        schemes.semi_implicit(np.ones((2, 3)))


@pytest.mark.parametrize(
    ("time", "t1", "theta", "match"),
    [
        (3.5, 3.0, np.ones(5), "time must lie between t0 = 1.0 and t1 = 3.0; got 3.5"),
        (0.0, 3.0, np.ones(5), "time must lie between t0 = 1.0 and t1 = 3.0; got 0.0"),
        (1.0, 1.0, np.ones(5), "t1 must be another time than t0"),
        (2.0, 3.0, np.ones(1), r"theta must .* at least.*got shape \(1,\)"),
        (2.0, 3.0, {"a": np.ones(5), "b": np.ones(4)}, r"theta\['b'\] must have shape"),
    ],
)
def test_theta_is_not_read_outside_of_its_times_and_entries(time, t1, theta, match):
    with pytest.raises(ValueError, match=match):
        integrate.theta_at(theta, time, t0=1.0, t1=t1, interpolation="linear")


def test_adaptive_turns_a_complex_state_as_the_exponential_does():
    y0 = {"z": jnp.array([1.0 + 2j, -1j]), "x": jnp.ones(3)}
    rates = jnp.array([1j, -0.5 + 2j])
    path = integrate.adaptive(
        lambda t, y, theta: {"z": theta * y["z"], "x": -y["x"]}, y0, rates, t1=2.0, rtol=1e-9, atol=1e-11,
        times=[1.0, 2.0],
    )  # fmt: skip
    wanted = np.exp(np.array([[1.0], [2.0]]) * np.asarray(rates)) * np.asarray(y0["z"])
    assert bool(path.converged) and path.states["z"].dtype == y0["z"].dtype
    np.testing.assert_allclose(path.states["z"], wanted, rtol=1e-8)
    np.testing.assert_allclose(path.states["x"][:, 0], np.exp([-1.0, -2.0]), rtol=1e-8)


@pytest.mark.parametrize("scheme", [schemes.leapfrog, schemes.verlet, schemes.coupling])
@pytest.mark.parametrize("y", [np.ones(3), (np.ones(3),), (np.ones(3),) * 3, {"y": np.ones(3)}], ids=type)
def test_a_scheme_of_pairs_refuses_another_state_by_its_name(scheme, y):
    field = decay if scheme is schemes.leapfrog else (decay, decay)
    with pytest.raises(ValueError, match=rf"y0 must be a pair for scheme {scheme.name}.*got"):
        integrate.endpoint(field, y, (), scheme=scheme, t1=1.0, steps=2)
    with pytest.raises(ValueError, match=rf"y1 must be a pair for scheme {scheme.name}.*got"):
        integrate.invert(field, y, (), scheme=scheme, t1=1.0, steps=2)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"times": np.array([0.5, 0.2])}, "times must go from t0 to t1"),
        ({"times": np.array([0.5, 0.5])}, "times must go from t0 to t1"),
        ({"times": np.array([0.5, 3.0])}, "times must lie between t0 = 0.0 and t1 = 1.0; got 3.0"),
        ({"times": np.array([0.2, 0.5]), "t1": -1.0}, "times must lie between"),
        ({"solver": "dopri5"}, "solver must be .*got 'dopri5'"),
        ({"theta": np.ones(1), "interpolation": "linear"}, "theta must .* at least"),
    ],
)
def test_adaptive_refuses_what_its_solver_would_fail_on(more, match):
    given = {"theta": np.ones(()), "t1": 1.0, "rtol": 1e-3, "atol": 1e-6, **more}
    with pytest.raises((ValueError, TypeError), match=match):
        integrate.adaptive(lambda t, y, theta: -theta * y, np.ones(1), **given)
