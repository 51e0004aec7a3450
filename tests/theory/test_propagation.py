"""theory.propagation against 30-digit references, published numbers and closed forms."""

import json
import pathlib

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

from numdl import activations
from numdl.theory import _roots as roots
from numdl.theory import propagation
from tests.selection import some_fast

pytestmark = pytest.mark.float32

REFERENCES = json.loads((pathlib.Path(__file__).parent.parent / "references" / "fixed_points.json").read_text())
NAMES = sorted({row[0] for row in REFERENCES})


def number(text):
    return {"inf": np.inf, "+inf": np.inf}.get(text) if text and text.endswith("inf") else float(text)


@pytest.mark.parametrize("every", some_fast([5, 1], fast=[0]))
@pytest.mark.parametrize("name", NAMES)
def test_fixed_points_and_chi_1_to_1e_8(name, every):
    """40 pairs of variances for each activation, and more beside criticality; one in five in the quick suite."""
    activation = activations.named(name)
    rows = [row for row in REFERENCES if row[0] == name]
    assert len(rows) >= 40
    for _, weight_variance, bias_variance, q, chi_1 in rows[::every]:
        point = propagation.fixed_point(
            activation=activation, weight_variance=weight_variance, bias_variance=bias_variance
        )
        where = (name, weight_variance, bias_variance)
        assert float(point.q) == pytest.approx(number(q), rel=1e-8, abs=0), where
        if chi_1 is not None:
            assert float(point.chi_1) == pytest.approx(float(chi_1), rel=1e-8), where


def test_published_critical_points():
    """Schoenholz et al. 2017, fig. 1, to 20 digits by mpmath; He et al. 2015; Klambauer et al. 2017."""
    tanh = propagation.critical_weight_variance(activation=activations.tanh, bias_variance=0.05)
    assert tanh == pytest.approx(1.7609546396067391316, rel=1e-12)
    for bias, weight in ((0.01, 1.42421), (0.1, 1.98607), (0.3, 2.50513)):
        found = propagation.critical_weight_variance(activation=activations.tanh, bias_variance=bias)
        assert found == pytest.approx(weight, abs=5e-6)
    assert propagation.critical_weight_variance(activation=activations.relu, bias_variance=0.0) == 2.0
    erf = propagation.critical_weight_variance(activation=activations.erf, bias_variance=0.0)
    assert erf == pytest.approx(np.pi / 4, rel=1e-12)
    selu = propagation.fixed_point(activation=activations.selu, weight_variance=1.0, bias_variance=0.0)
    assert selu.q == pytest.approx(1.0, rel=1e-9)
    assert selu.slope_q == pytest.approx(0.783, abs=1e-3) and selu.chi_1 == pytest.approx(1.0716, abs=5e-5)
    assert selu.stable and selu.phase == "chaotic"


def test_critical_is_nan_where_no_variance_is():
    assert np.isnan(propagation.critical_weight_variance(activation=activations.relu, bias_variance=0.1))
    assert np.isnan(propagation.critical_weight_variance(activation=activations.softplus, bias_variance=0.0))


def test_published_depth_scales():
    """FIELD: xi_c at bias variance 0.05 by 201-point Gauss-Hermite, three digits."""
    published = {1.0: 3.63, 1.3: 7.83, 1.5: 15.79, 1.7: 74.9, 1.9: 39.4, 2.5: 11.8, 4.0: 6.98}
    for weight_variance, expected in published.items():
        point = propagation.fixed_point(
            activation=activations.tanh, weight_variance=weight_variance, bias_variance=0.05
        )
        assert point.depth_scale_c == pytest.approx(expected, rel=2e-3)
        assert point.phase == ("ordered" if weight_variance < 1.76 else "chaotic")


def test_fixed_point_solves_its_equations():
    """c* and chi_c of erf in closed form: E f f = 2/pi asin, so C is elementary."""
    weight_variance, bias_variance = 3.0, 0.1
    point = propagation.fixed_point(
        activation=activations.erf, weight_variance=weight_variance, bias_variance=bias_variance
    )
    q = mpmath.findroot(
        lambda q: weight_variance * 2 / mpmath.pi * mpmath.asin(2 * q / (1 + 2 * q)) + bias_variance - q, 1.8
    )
    c = mpmath.findroot(
        lambda c: (weight_variance * 2 / mpmath.pi * mpmath.asin(2 * c * q / (1 + 2 * q)) + bias_variance) / q - c, 0.2
    )
    slope = weight_variance * 4 / mpmath.pi / mpmath.sqrt((1 + 2 * q) ** 2 - (2 * c * q) ** 2)
    assert (point.q, point.c, point.chi_c) == tuple(pytest.approx(float(v), rel=1e-11) for v in (q, c, slope))
    assert point.depth_scale_c == pytest.approx(float(-1 / mpmath.log(slope)), rel=1e-10)


def test_every_length_is_fixed_for_critical_relu():
    points = propagation.fixed_points(activation=activations.relu, weight_variance=2.0, bias_variance=0.0)
    assert [float(p.q) for p in points] == [0.0, 1.0]
    assert points[1].c == 1.0 and points[1].phase == "critical" and np.isinf(points[1].depth_scale_c)


def test_unbounded_lengths_are_said_to_be():
    point = propagation.fixed_point(activation=activations.relu, weight_variance=2.5, bias_variance=0.1)
    assert np.isinf(point.q) and np.isnan(point.c) and point.phase == "chaotic" and point.chi_1 == 1.25


def test_gelu_is_bistable():
    """Near weight variance 2 both q = 0 and a large q attract: the limit depends on the start."""
    points = propagation.fixed_points(activation=activations.gelu, weight_variance=1.98, bias_variance=0.05)
    assert len(points) >= 1 and all(0 <= float(p.q) < 1e10 for p in points)
    below = propagation.fixed_points(activation=activations.gelu, weight_variance=2.2, bias_variance=0.0)
    assert [p.stable for p in below] == [True, False]
    assert float(below[0].q) == 0 and float(below[1].q) > 1
    for point in below[1:]:
        again = propagation.length_map(
            float(point.q), activation=activations.gelu, weight_variance=2.2, bias_variance=0.0
        )
        assert again == pytest.approx(float(point.q), rel=1e-11)


def test_lengths_and_correlations_are_the_iterated_maps():
    """Closed forms for relu: V(q) = w q / 2 + b and the arc-cosine map."""
    w, b, depth = 1.5, 0.2, 6
    q = [w * 0.7 + b]
    for _ in range(depth - 1):
        q.append(w * q[-1] / 2 + b)
    lengths = propagation.lengths(0.7, depth=depth, activation=activations.relu, weight_variance=w, bias_variance=b)
    np.testing.assert_allclose(lengths, q, rtol=1e-14)
    c = [-0.3]
    for before, after in zip(q, q[1:], strict=False):
        angle = np.arccos(c[-1])
        c.append((w * before / (2 * np.pi) * (np.sin(angle) + (np.pi - angle) * np.cos(angle)) + b) / after)
    predicted = propagation.correlations(
        np.array([c[0], c[0]]), depth=depth - 1, q=q, activation=activations.relu, weight_variance=w, bias_variance=b
    )
    np.testing.assert_allclose(predicted, [c[1:], c[1:]], rtol=1e-13)


def test_relu_at_criticality_decays_like_a_power():
    """1 - c_l ~ 9 pi^2 / (2 l^2): no finite depth scale."""
    c = propagation.correlations(
        0.2, depth=2000, q=1.0, activation=activations.relu, weight_variance=2.0, bias_variance=0.0
    )
    assert (1 - c[-1]) * 2000**2 == pytest.approx(4.5 * np.pi**2, rel=0.02)


def test_correlation_one_stays_one():
    c = propagation.correlations(
        1.0, depth=30, q=0.8, activation=activations.identity, weight_variance=1.0, bias_variance=0.0
    )
    np.testing.assert_allclose(c, 1.0, rtol=1e-14)


@pytest.mark.parametrize("activation", [activations.tanh, activations.gelu, activations.hard_tanh, activations.elu])
def test_phase_diagram_is_the_fixed_points(activation):
    weights, biases = np.array([0.4, 1.3, 1.9, 3.7]), np.array([0.0, 0.05, 0.6])
    diagram = propagation.phase_diagram(activation=activation, weight_variances=weights, bias_variances=biases)
    assert diagram.q.shape == diagram.phase.shape == (4, 3)
    for i, weight_variance in enumerate(weights):
        for j, bias_variance in enumerate(biases):
            point = propagation.fixed_point(
                activation=activation, weight_variance=weight_variance, bias_variance=bias_variance
            )
            assert diagram.q[i, j] == pytest.approx(float(point.q), rel=1e-9)
            assert diagram.chi_1[i, j] == pytest.approx(float(point.chi_1), rel=1e-9)
            # Over the scale's layers squared gradients change by exactly one factor e.
            gained = diagram.depth_scale_gradient[i, j] * np.log(float(point.chi_1))
            assert abs(gained) == pytest.approx(1, rel=1e-6) or abs(float(point.chi_1) - 1) < 1e-9
            assert diagram.slope_q[i, j] == pytest.approx(float(point.slope_q), rel=1e-8, abs=1e-12)
            assert diagram.phase[i, j] == {"ordered": -1, "critical": 0, "chaotic": 1}[point.phase]


def test_phase_diagram_does_not_recompile_for_another_activation():
    axes = {"weight_variances": np.linspace(1, 3, 7), "bias_variances": np.linspace(0, 1, 5)}
    propagation.phase_diagram(activation=activations.tanh, **axes)
    compiled = roots._grid_jit._cache_size()
    propagation.phase_diagram(activation=activations.erf, **axes)
    assert roots._grid_jit._cache_size() == compiled


def test_theory_is_float64_whatever_the_flag_and_inside_jit():
    settings = {"activation": activations.tanh, "weight_variance": 4.0, "bias_variance": 0.05}
    point = propagation.fixed_point(**settings)
    assert point.q.dtype == np.float64
    assert point.q == pytest.approx(2.1954939280344877618, rel=1e-14)
    assert point.chi_1 == pytest.approx(1.3424024144451916959, rel=1e-14)
    inside = jax.jit(lambda x: x * propagation.fixed_point(**settings).q)(jnp.float32(1))
    assert float(inside) == pytest.approx(2.1954939280344877618, rel=1e-6)


SETTINGS = {"activation": activations.tanh, "weight_variance": 1.0, "bias_variance": 0.1}


@pytest.mark.parametrize(
    "call, change, error, message",
    [
        (propagation.fixed_point, {"weight_variance": -1.0}, ValueError, "weight_variance must be .*>= 0; got -1"),
        (propagation.fixed_point, {"bias_variance": float("nan")}, ValueError, "bias_variance must be .*got nan"),
        (propagation.fixed_point, {"weight_variance": [1.0, 2.0]}, ValueError, "weight_variance must be .*shape"),
        (propagation.fixed_point, {"weight_variance": "2"}, TypeError, "weight_variance must be .*got '2'"),
        (propagation.fixed_point, {"activation": "tanh"}, TypeError, "activation must be an Activation.*got 'tanh'"),
        (propagation.fixed_points, {"weight_variance": float("inf")}, ValueError, "weight_variance must be .*got inf"),
        (propagation.lengths, {"x_variance": 1.0, "depth": 0}, ValueError, "depth must be an integer >= 1; got 0"),
        (propagation.lengths, {"x_variance": 1.0, "depth": 2.0}, TypeError, "depth must be an integer >= 1; got 2.0"),
        (propagation.lengths, {"x_variance": -0.1, "depth": 2}, ValueError, "x_variance must be .*got -0.1"),
        (propagation.correlations, {"c": 1.1, "depth": 2, "q": 1.0}, ValueError, "c must be .*<= 1; got 1.1"),
        (propagation.correlations, {"c": 0.5, "depth": 2, "q": 0.0}, ValueError, "q must be .*> 0; got 0"),
        (propagation.correlations, {"c": 0.5, "depth": 2, "q": [1.0, 1.0]}, ValueError, r"q must have shape \(3\)"),
        (propagation.length_map, {"q": -1.0}, ValueError, "q must be .*>= 0; got -1"),
    ],
)
def test_bad_input_is_named(call, change, error, message):
    with pytest.raises(error, match=message):
        call(**SETTINGS | change)


def test_bad_grids_are_named():
    with pytest.raises(ValueError, match="weight_variances must be .*got -1"):
        propagation.phase_diagram(activation=activations.tanh, weight_variances=[-1.0], bias_variances=[0.1])
    with pytest.raises(ValueError, match="bias_variances must be one list"):
        propagation.phase_diagram(activation=activations.tanh, weight_variances=[1.0], bias_variances=[[0.1]])
    with pytest.raises(TypeError, match="weight_variance must be a number known outside of jit"):
        jax.jit(lambda w: propagation.fixed_point(**SETTINGS | {"weight_variance": w}).q)(1.0)


@pytest.mark.parametrize(("name", "q"), [("tanh", 0.3), ("relu", 7.0), ("gelu", 1.0)])
def test_equal_inputs_stay_equal_at_every_length(name, q):
    activation = activations.named(name)
    physics = {"activation": activation, "weight_variance": 3.0, "bias_variance": 0.2}
    assert (propagation.correlations(1.0, depth=60, q=q, **physics) == 1).all()


@pytest.mark.parametrize("name", ["tanh", "sin", "hard_tanh"])
def test_opposite_inputs_stay_opposite_under_odd_functions(name):
    physics = {"activation": activations.named(name), "weight_variance": 3.0, "bias_variance": 0.0}
    assert (propagation.correlations(-1.0, depth=60, q=1.3, **physics) == -1).all()


def test_off_the_fixed_point_the_length_moves_too():
    """relu with biases, q = 1: lengths and covariances by the arc-cosine kernel, written out."""
    w, b, q, k = 1.5, 0.3, 1.0, 0.4
    wanted = []
    for _ in range(5):
        c = k / q
        k = w * q / (2 * np.pi) * (np.sqrt(1 - c**2) + c * (np.pi - np.arccos(c))) + b
        q = w * q / 2 + b
        wanted.append(k / q)
    physics = {"activation": activations.relu, "weight_variance": w, "bias_variance": b}
    np.testing.assert_allclose(propagation.correlations(0.4, depth=5, q=1.0, **physics), wanted, rtol=1e-13)
    even = propagation.correlations(-1.0, depth=1, q=2.0, **physics)
    np.testing.assert_allclose(even, b / (w + b), rtol=1e-14)


def test_given_lengths_are_held():
    physics = {"activation": activations.tanh, "weight_variance": 2.0, "bias_variance": 0.1}
    found = propagation.correlations([1.0, 0.5], depth=2, q=[1.0, 3.0, 5.0], **physics)
    assert (found[0] == 1).all()
    again = propagation.correlations(found[1, 0], depth=1, q=3.0, **physics)
    np.testing.assert_allclose(found[1, 1], again[0], rtol=1e-14)


@pytest.mark.parametrize("keep", [0.99, 0.6])
def test_dropped_correlations_of_erf_in_closed_form(keep):
    """E f f = 2/pi asin(2 c q / (1 + 2 q)); other masks for each of the two: only the lengths have 1 / keep."""
    w, b, q = 1.7, 0.1, 0.9
    c = np.array([1.0, 0.3, -1.0])
    product = lambda c, q: 2 / np.pi * np.arcsin(2 * c * q / (1 + 2 * q))  # noqa: E731
    expected = []
    for _ in range(4):
        after = w / keep * product(1.0, q) + b
        c, q = (w * product(c, q) + b) / after, after
        expected.append(c)
    found = propagation.correlations(
        [1.0, 0.3, -1.0],
        depth=4,
        q=0.9,
        activation=activations.erf,
        weight_variance=w,
        bias_variance=b,
        keep_probability=keep,
    )
    np.testing.assert_allclose(found, np.transpose(expected), rtol=1e-12)
    assert found[0, 0] < 1
