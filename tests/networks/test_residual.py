"""Residual networks against NumPy loops, finite differences and scipy; memory; refinement."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.networks import core, residual
from numdl.ode import adjoints, tableaus
from tests.selection import in_turn

pytestmark = pytest.mark.float32
WIDEST = jnp.zeros(()).dtype
PHYSICS = {"activation": jnp.tanh, "weight_variance": 1.5, "bias_variance": 0.2}


def build(widths=(5, 8, 3), depth=6, **more):
    more = {} | ({} if "time" in more else {"step": 0.25}) | more
    return residual.network(widths=widths, depth=depth, **PHYSICS | more)


def inputs(*shape, dtype=jnp.float32, seed=7):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def wide(tree):
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def affine(weights, y):
    return y @ weights["kernel"] + weights["bias"] if weights else y


def close(ours, expected, rounding=300):
    expected = np.asarray(expected)
    tolerance = rounding * float(jnp.finfo(ours.dtype).eps) * max(np.abs(expected).max(), 1.0)
    np.testing.assert_allclose(ours, expected, atol=tolerance)


SLOPES = {
    "one_layer": lambda t, y: np.tanh(y @ t["kernel"] + t["bias"]),
    "two_layer": lambda t, y: np.tanh(y @ t["kernel"] + t["bias"]) @ t["second"],
    "symmetric": lambda t, y: -np.tanh(y @ t["kernel"] + t["bias"]) @ t["kernel"].T,
    "antisymmetric": lambda t, y: np.tanh(y @ (t["kernel"] - t["kernel"].T) - 0.3 * y + t["bias"]),
}


def by_hand(params, x, slope, h):
    """Forward Euler, one layer after the other in float64: states stage by stage, outputs."""
    params, y, stages = wide(params), wide(x), []
    for connector, theta in zip(params["connectors"], params["blocks"], strict=True):
        y = affine(connector, y)
        stages += [[y]] if connector else []
        states = []
        for n in range(len(theta["bias"])):
            y = y + h * slope({name: leaf[n] for name, leaf in theta.items()}, y)
            states.append(y)
        stages.append(states)
    return stages, affine(params["readout"], y)


@jax.jit
def both(net, params, x):
    """The states, the outputs, and those of a network that keeps all states."""
    return net.states(params, x), net.apply(params, x), core.Network(*net).apply(params, x)


@pytest.mark.parametrize("block", in_turn(SLOPES, 0, every=2))
@pytest.mark.parametrize("widths, depth", [((5, 8, 3), 6), ((8, 8, 3), 4), ((5, 8, 4, 3), (3, 2))])
def test_forward_euler_is_a_plain_loop(key, block, widths, depth):
    net = build(widths, depth, block=block, **({"damping": 0.3} if block == "antisymmetric" else {}))
    x = inputs(4, widths[0])
    params = net.init(key, x)
    expected, outputs = by_hand(params, x, SLOPES[block], 0.25)
    states, *ours = both(net, params, x)
    assert len(states) == len(expected)
    for computed, theirs in zip(states, expected, strict=True):
        close(computed, np.stack(theirs))
    close(ours[0], outputs)
    close(ours[1], outputs)


def runge_kutta_by_hand(tableau, theta, y, h):
    a, b, c = tableau.matrix, tableau.weights, tableau.nodes
    for n in range(len(theta["bias"]) - 1):
        slopes = []
        for i in range(len(b)):
            local = {name: (1 - c[i]) * leaf[n] + c[i] * leaf[n + 1] for name, leaf in theta.items()}
            slopes.append(SLOPES["one_layer"](local, y + h * sum((w * k for w, k in zip(a[i], slopes)), 0 * y)))
        y = y + h * sum(w * k for w, k in zip(b, slopes, strict=True))
    return y


@pytest.mark.parametrize("tableau", [tableaus.heun, tableaus.rk4, tableaus.dormand_prince])
def test_any_tableau_and_parameters_linear_in_time(key, tableau):
    net, x = build((5, 5, 3), 4, tableau=tableau, interpolation="linear"), inputs(4, 5)
    params = net.init(key, x)
    assert params["blocks"][0]["kernel"].shape == (5, 5, 5)
    y = runge_kutta_by_hand(tableau, wide(params["blocks"][0]), wide(x), 0.25)
    close(net.states(params, x)[0][-1], y)


def test_a_refined_network_spans_the_same_time(key):
    net, x = build(), inputs(2, 5)
    params = net.init(key, x)
    flows = [residual.unroll(*pair, x) for pair in ((net, params), residual.refine(net, params, factor=3))]
    assert 3 * float(flows[1].step) == pytest.approx(float(flows[0].step))
    assert len(flows[1].states) == 3 * len(flows[0].states)


def test_step_and_time_are_two_words_for_one_thing(key):
    x = inputs(4, 5)
    params = build().init(key, x)
    close(build(time=1.5).apply(params, x), build().apply(params, x))
    longer = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), params["blocks"])
    deep = {**params, "blocks": longer}
    close(build().apply(deep, x), by_hand(deep, x, SLOPES["one_layer"], 0.25)[1])
    close(build(time=1.5).apply(deep, x), by_hand(deep, x, SLOPES["one_layer"], 0.125)[1])


def native(y, kernel):
    return jax.lax.conv_general_dilated(y, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


@functools.partial(jax.jit, static_argnames="block")
def convolutions_by_hand(params, x, block):
    """Two stages of forward Euler with jax's own convolution, pooled in between: the last state of each."""
    y, maps = x, []
    for stage, theta in enumerate(params["blocks"]):
        y = y.reshape(2, 3, 2, 2, 2, 4).mean(axis=(2, 4)) if stage else y
        y = native(y, params["connectors"][stage]["kernel"]) + params["connectors"][stage]["bias"][None, None, None]
        for n in range(len(theta["bias"])):
            inner = jnp.tanh(native(y, theta["kernel"][n]) + theta["bias"][n][None, None, None])
            if block == "symmetric":
                inner = -native(inner, theta["kernel"][n][::-1, ::-1].swapaxes(2, 3))
            y = y + 0.25 * (native(inner, theta["second"][n]) if block == "two_layer" else inner)
        maps.append(y)
    return maps


@pytest.mark.parametrize("block", ["one_layer", "two_layer", "symmetric"])
def test_convolutional_against_lax(key, block):
    net, x = build((2, 4, 6, 3), (2, 3), block=block, window=3, pool=2), inputs(2, 6, 4, 2)
    params = net.init(key, x)
    maps = convolutions_by_hand(params, x, block)
    states, outputs, _ = both(net, params, x)
    assert [s.shape for s in states] == [(1, 2, 6, 4, 4), (2, 2, 6, 4, 4), (1, 2, 3, 2, 6), (3, 2, 3, 2, 6)]
    close(states[1][-1], maps[0])
    close(states[3][-1], maps[1])
    close(outputs, affine(wide(params["readout"]), wide(maps[1]).mean(axis=(1, 2))))


@pytest.mark.parametrize("more", [{}, {"interpolation": "linear", "tableau": tableaus.rk4}])
def test_probes_are_added_after_each_step_and_flow_on(key, more):
    net, x = build((5, 8, 3), 4, **more), inputs(3, 5)
    params = net.init(key, x)
    clean = net.states(params, x)
    probes = core.zero_probes(net, params, x)
    for ours, expected in zip(net.states(params, x, probes), clean, strict=True):
        close(ours, expected, 10)
    probed = net.states(params, x, (probes[0], probes[1].at[1].set(0.5)))
    close(probed[1][0], clean[1][0], 10)
    close(probed[1][1], clean[1][1] + 0.5, 10)
    # What follows is the flow from the probed state.
    last = build((8, 8, 3), 2, **more)
    rest = {**params, "connectors": ({},), "blocks": jax.tree.map(lambda leaf: leaf[2:], params["blocks"])}
    close(last.states(rest, probed[1][1])[0], probed[1][2:], 20)


@pytest.mark.parametrize("block", in_turn(SLOPES, 1, every=2))
@pytest.mark.parametrize("adjoint", [adjoints.direct, adjoints.checkpointed, adjoints.binomial(snapshots=2)])
def test_gradients_are_finite_differences(key, block, adjoint):
    more = {"damping": 0.3} if block == "antisymmetric" else {}
    net, x = build((5, 8, 3), 3, block=block, adjoint=adjoint, **more), inputs(4, 5, dtype=WIDEST)
    params = net.init(key, x)
    direction = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), params)

    @jax.jit
    def loss(s):
        return jnp.sum(net.apply(jax.tree.map(lambda p, d: p + s * d, params, direction), x) ** 2)

    slope = jax.grad(loss)(0.0)
    e = float(jnp.finfo(WIDEST).eps) ** (1 / 3)
    assert abs(slope - (loss(e) - loss(-e)) / (2 * e)) < 1000 * e**2 * loss(0.0)


def test_state_gradients_and_jacobians_by_whatever_adjoint(key):
    """The states' own derivatives are exact and go forward too, whatever `apply` is told."""
    net, x = build(adjoint=adjoints.backsolve), inputs(1, 5)
    params = net.init(key, x)
    gradients = core.state_gradients(net, params, x, jnp.sum)
    matrix = core.jacobian(net, params, x, start=3, stop=8)
    close(gradients[1][1].ravel(), np.asarray(matrix).sum(axis=0), 50)


def normalized(u, t):
    """Over all axes but the last, in float64."""
    axes = tuple(range(u.ndim - 1))
    return t["gain"] * (u - u.mean(axis=axes)) / np.sqrt(u.var(axis=axes) + 1e-5) + t["shift"]


def varied(params):
    """Every entry another small number added: gates are not 0, gains not 1."""
    wave = lambda leaf: 0.3 * jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape)  # noqa: E731
    return jax.tree.map(lambda leaf: leaf + wave(leaf), params)


BRANCHES = {
    "one_layer": {"norm": "batch"},
    "two_layer": {"norm": "batch", "skip": "gate"},
    "symmetric": {"skip": "gate"},
    "antisymmetric": {"skip": "gate", "damping": 0.3},
}


@pytest.mark.parametrize("block", in_turn(BRANCHES, 1, every=2))
def test_normalized_and_gated_branches_are_a_plain_loop(key, block):
    net, x = build((5, 8, 4, 3), (3, 2), block=block, **BRANCHES[block]), inputs(6, 5)
    params = varied(net.init(key, x))

    def slope(t, y):
        gate = t.get("gate", 1.0)
        if "norm" not in BRANCHES[block]:
            return gate * SLOPES[block](t, y)
        inner = np.tanh(normalized(y @ t["kernel"] + t["bias"], t))
        return gate * (inner @ t["second"] if block == "two_layer" else inner)

    expected, outputs = by_hand(params, x, slope, 0.25)
    states, *ours = both(net, params, x)
    for computed, theirs in zip(states, expected, strict=True):
        close(computed, np.stack(theirs))
    close(ours[0], outputs)
    close(ours[1], outputs)


def test_pictures_are_normalized_over_their_places(key):
    net, x = build((4, 4, 2), 1, block="one_layer", window=3, norm="batch"), inputs(3, 5, 4, 4)
    params = varied(net.init(key, x))
    theta = wide(jax.tree.map(lambda leaf: leaf[0], params["blocks"][0]))
    u = np.asarray(native(x, params["blocks"][0]["kernel"][0])) + theta["bias"]
    close(net.states(params, x)[0][0], np.asarray(x) + 0.25 * np.tanh(normalized(u, theta)))
    frozen = residual.freeze(net, params, x)
    close(net.apply(frozen, x[:1]), net.apply(params, x)[:1])


@pytest.mark.parametrize("skip", ["gate", "fixup"])
def test_a_start_that_is_the_identity(key, skip):
    net, x = build((8, 8, 3), 7, block="two_layer", skip=skip), inputs(4, 8)
    params = net.init(key, x)
    close(net.states(params, x)[0], np.broadcast_to(x, (7, 4, 8)), 0)
    slopes = jax.grad(lambda params: net.apply(params, x).sum())(params)["blocks"][0]
    assert jnp.abs(slopes["gate" if skip == "gate" else "second"]).min(axis=-1).max() > 0, "it can move"


@pytest.mark.parametrize("depth, widths", [(25, (40, 40, 3)), ((9, 16), (40, 40, 40, 3))])
def test_fixup_divides_by_the_root_of_all_blocks(key, depth, widths):
    """Against the same draw without it: 25 blocks, in one stage or two; connectors and readout are as they were."""
    x = inputs(2, 40)
    laws = {"block": "two_layer", "second_weight_variance": 1.0}
    plain, ours = (build(widths, depth, skip=skip, **laws).init(key, x) for skip in ("unit", "fixup"))
    for one, other in zip(plain["blocks"], ours["blocks"], strict=True):
        close(other["kernel"], one["kernel"] / 5)
        close(other["bias"], one["bias"], 0)
        assert not other["second"].any()
    close(ours["readout"]["kernel"], plain["readout"]["kernel"], 0)


def test_frozen_statistics_leave_every_example_alone(key):
    net, x = build((5, 8, 8, 3), (3, 2), block="two_layer", norm="batch"), inputs(6, 5)
    params = varied(net.init(key, x))
    frozen = residual.freeze(net, params, x)
    close(net.apply(frozen, x), net.apply(params, x))
    close(net.apply(frozen, x[2:3]), net.apply(params, x)[2:3])
    assert abs(net.apply(params, x[:2]) - net.apply(params, x)[:2]).max() > 0.01
    plain = build()
    params = plain.init(key, x)
    assert jax.tree.structure(residual.freeze(plain, params, x)) == jax.tree.structure(params)


@pytest.mark.parametrize(
    "more, message",
    [
        ({"block": "symmetric", "norm": "batch"}, "norm must be none unless block"),
        ({"block": "one_layer", "skip": "fixup"}, "skip must not be fixup unless block is two_layer; got one_layer"),
        ({"skip": "deepnorm"}, "skip must be one of"),
        ({"norm": "layer"}, "norm must be one of"),
    ],
)
def test_branches_that_there_are_not(more, message):
    with pytest.raises(ValueError, match=message):
        build(**more)


@pytest.mark.parametrize("more", [{"tableau": tableaus.rk4}, {"interpolation": "linear"}])
def test_statistics_within_a_step_cannot_be_frozen(key, more):
    net, x = build((5, 5, 3), 2, norm="batch", **more), inputs(4, 5)
    with pytest.raises(ValueError, match="network must have Euler's steps"):
        residual.freeze(net, net.init(key, x), x)


def temporary_memory(depth, **more):
    net, x = build((16, 16, 2), depth, time=1.0, **more), inputs(32, 16)
    params = jax.eval_shape(net.init, jax.random.key(0), x)
    gradient = jax.jit(jax.grad(lambda p, x: jnp.sum(net.apply(p, x) ** 2)))
    return gradient.lower(params, x).compile().memory_analysis().temp_size_in_bytes


def test_apply_keeps_what_its_adjoint_needs():
    """Checkpointed: one state a step beside the cotangents of the parameters; direct: about three."""
    state = 32 * 16 * 4
    few = (temporary_memory(400) - temporary_memory(200)) / 200 / state
    many = (
        (temporary_memory(400, adjoint=adjoints.direct) - temporary_memory(200, adjoint=adjoints.direct)) / 200 / state
    )
    assert few < 1.7
    assert many > few + 0.7


def test_numbers_are_data(key):
    x, traces = inputs(4, 5), []

    def counted(y):
        traces.append(1)
        return jnp.tanh(y)

    @jax.jit
    def outputs(net, key, x):
        return net.apply(net.init(key, x), x)

    physics = {"activation": counted, "bias_variance": 0.1}
    first = outputs(residual.network(widths=(5, 8, 3), depth=3, weight_variance=1.0, step=0.1, **physics), key, x)
    once = len(traces)
    second = outputs(residual.network(widths=(5, 8, 3), depth=3, weight_variance=2.0, step=0.2, **physics), key, x)
    assert len(traces) == once > 0
    assert not np.allclose(first, second)


def z_of_variance(samples, variance):
    samples = np.asarray(samples, np.float64).ravel()
    return abs(np.mean(samples**2) - variance) / (variance * np.sqrt(2 / samples.size))


def test_variances_at_initialization(key):
    net = build(
        (40, 60, 30),
        5,
        block="two_layer",
        hidden=80,
        second_weight_variance=0.7,
        connector_weight_variance=3.0,
        readout_weight_variance=0.4,
    )
    params = net.init(key, inputs(2, 40))
    theta = params["blocks"][0]
    assert theta["kernel"].shape == (5, 60, 80) and theta["second"].shape == (5, 80, 60)
    assert z_of_variance(theta["kernel"], 1.5 / 60) < 6
    assert z_of_variance(theta["second"], 0.7 / 80) < 6
    assert z_of_variance(theta["bias"], 0.2) < 6
    assert z_of_variance(params["connectors"][0]["kernel"], 3.0 / 40) < 6
    assert z_of_variance(params["readout"]["kernel"], 0.4 / 60) < 6
    assert not np.array_equal(theta["kernel"][0], theta["kernel"][1])
    window = build((8, 8, 3), 9, window=3).init(key, inputs(1, 5, 5, 8))["blocks"][0]["kernel"]
    assert window.shape == (9, 3, 3, 8, 8)
    assert z_of_variance(window, 1.5 / 72) < 6


def test_padding_puts_zeros_into_the_new_coordinates(key):
    net, x = build((5, 8, 3), 2, connector="pad"), inputs(4, 5)
    params = net.init(key, x)
    assert params["connectors"] == ({},)
    first = net.states(params, x)[0][0]
    np.testing.assert_array_equal(first[:, :5], x)
    np.testing.assert_array_equal(first[:, 5:], 0)


@pytest.mark.parametrize("clock", [{"step": 0.25}, {"time": 1.5}])
@pytest.mark.parametrize("interpolation", ["constant", "linear"])
def test_refining_converges_to_the_ode(key, clock, interpolation):
    """First order towards scipy's solution of the same ODE; the parameters are the same function of time."""
    from scipy.integrate import solve_ivp

    net, x = build((5, 5, 3), 6, interpolation=interpolation, **clock), inputs(1, 5)
    params = net.init(key, x)
    theta = wide(params["blocks"][0])

    def at(t):
        n = min(int(t / 0.25), 5)
        part = t / 0.25 - n if interpolation == "linear" else 0.0
        after = min(n + 1, len(theta["bias"]) - 1)
        return {name: (1 - part) * leaf[n] + part * leaf[after] for name, leaf in theta.items()}

    y = wide(x).ravel()
    for n in range(6):
        span = (0.25 * n, 0.25 * (n + 1) - 1e-13)
        y = solve_ivp(lambda t, y: SLOPES["one_layer"](at(t), y), span, y, rtol=1e-11, atol=1e-12).y[:, -1]
    factors, errors = [4, 8, 16, 32], []
    for factor in factors:
        finer, more = residual.refine(net, params, factor=factor)
        assert more["blocks"][0]["bias"].shape[0] == 6 * factor + (interpolation == "linear")
        errors.append(np.linalg.norm(np.asarray(finer.states(more, x)[0][-1][0], np.float64) - y))
    orders = -np.diff(np.log2(errors))
    np.testing.assert_allclose(orders[-1], 1.0, atol=0.1)
    better = residual.with_tableau(finer, tableaus.rk4)
    assert np.linalg.norm(np.asarray(better.states(more, x)[0][-1][0], np.float64) - y) < errors[-1] / 100


@pytest.mark.parametrize("widths, stage, before", [((5, 8, 4, 3), 0, 0), ((5, 8, 4, 3), 1, 2), ((5, 5, 4, 3), 0, None)])
def test_unroll_is_the_networks_own_equation(key, widths, stage, before):
    net, x = build(widths, (3, 2), block="two_layer"), inputs(4, 5)
    params = net.init(key, x)
    flow = residual.unroll(net, params, x, stage=stage)
    states = net.states(params, x)
    first = x if before is None else states[before][-1]
    close(flow.states[0], first, 10)
    for n in range(flow.states.shape[0] - 1):
        theta = jax.tree.map(lambda leaf, n=n: leaf[n], flow.theta)
        close(flow.states[n] + 0.25 * flow.field(flow.states[n], theta), flow.states[n + 1], 20)
    assert abs(flow.step - 0.25) < 1e-6


@pytest.mark.parametrize(
    "more, error, message",
    [
        ({"widths": (5, 3)}, ValueError, r"widths .*at least 3.*\(5, 3\)"),
        ({"depth": 0}, ValueError, "depth .*got 0"),
        ({"depth": (2, 3)}, ValueError, r"depth .*1 stages; got \(2, 3\)"),
        ({"time": 1.0, "step": 1.0}, ValueError, "step=1.0, time=1.0"),
        ({"step": np.inf}, ValueError, "step .*got inf"),
        ({"block": "three_layer"}, ValueError, "block .*'three_layer'"),
        ({"block": "antisymmetric"}, ValueError, "damping .*None"),
        ({"damping": 0.1}, ValueError, "damping .*0.1 for one_layer"),
        ({"block": "antisymmetric", "damping": -0.1}, ValueError, "damping .*-0.1"),
        ({"hidden": 4}, ValueError, "hidden .*4 for one_layer"),
        ({"tableau": tableaus.implicit_midpoint}, ValueError, "tableau must be explicit.*implicit_midpoint"),
        ({"adjoint": adjoints.reversible}, ValueError, "adjoint .*euler"),
        ({"interpolation": "cubic"}, ValueError, "interpolation .*'cubic'"),
        ({"connector": "none"}, ValueError, "connector .*'none'"),
        ({"window": 2}, ValueError, "window must be odd.*2"),
        ({"activation": "tanh"}, TypeError, "activation .*'tanh'"),
        ({"weight_variance": None}, ValueError, "weight_variance and initializer.*neither"),
        ({"weight_variance": -1.0}, ValueError, "weight_variance .*-1"),
        ({"bias_variance": -1.0}, ValueError, "bias_variance .*-1"),
        ({"readout_weight_variance": -1.0}, ValueError, "readout_weight_variance .*-1"),
        ({"dtype": jnp.int32}, TypeError, "dtype .*int32"),
        ({"wieght_variance": 1.0}, TypeError, "options must be among weight_variance, .*got wieght_variance"),
    ],
)
def test_bad_settings_are_named(more, error, message):
    with pytest.raises(error, match=message):
        build(**more)


def test_bad_inputs_are_named(key):
    net, x = build(), inputs(4, 5)
    params = net.init(key, x)
    with pytest.raises(ValueError, match=r"x must have shape \(N, 5\).*got \(4, 6\)"):
        net.apply(params, inputs(4, 6))
    with pytest.raises(TypeError, match="key .*got 0"):
        net.init(0, x)
    with pytest.raises(ValueError, match="probes .*2 stretches; got 1"):
        net.states(params, x, (x,))
    with pytest.raises(ValueError, match="widths must not shrink.*pad"):
        jax.eval_shape(build((5, 4, 3), connector="pad").init, key, x)
    with pytest.raises(TypeError, match="network must come from a builder"):
        residual.refine(core.Network(jnp.sin, jnp.sin, jnp.sin), params, factor=2)
    with pytest.raises(ValueError, match="factor .*got 0"):
        residual.refine(net, params, factor=0)
    with pytest.raises(ValueError, match="stage .*got 1"):
        residual.unroll(net, params, x, stage=1)
    with pytest.raises(ValueError, match="tableau must be explicit"):
        residual.with_tableau(net, tableaus.gauss_legendre4)
    pooled = build((2, 4, 6, 3), 2, window=3, pool=2)
    picture = inputs(1, 5, 4, 2)
    with pytest.raises(ValueError, match=r"pool must divide .*\(5, 4\); got 2"):
        jax.eval_shape(lambda key, x: pooled.apply(pooled.init(key, x), x), key, picture)
