"""What the plots draw: the data handed in, on the axes handed in, and nothing else changed."""

import sys
import types

import matplotlib
import numpy as np
import pytest

from numdl import plotting

X = np.arange(1.0, 6.0)
PREDICTED = 2.0**-X
SAMPLES = PREDICTED * np.array([[0.5], [1.0], [2.0], [1.5]])


def line(ax, label):
    return next(drawn for drawn in ax.lines if drawn.get_label() == label)


def texts(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def rendered(ax):
    ax.figure.canvas.draw()
    return np.asarray(ax.figure.canvas.buffer_rgba())


def test_prediction_and_measurement_draws_both_and_the_band():
    ax = plotting.prediction_and_measurement(X, PREDICTED, SAMPLES, xlabel="layer", ylabel="q", label="width 10")
    theory = line(ax, "predicted")
    assert np.array_equal(theory.get_ydata(), PREDICTED)
    assert (theory.get_color(), theory.get_linestyle()) == ("black", "--")
    (bars,) = ax.containers
    assert np.allclose(bars.lines[0].get_ydata(), PREDICTED * 1.25, rtol=1e-14)
    half = np.array([(high - low) / 2 for (_, low), (_, high) in bars.lines[2][0].get_segments()])
    spread = np.sqrt((0.75**2 + 0.25**2 + 0.75**2 + 0.25**2) / 3) / 2
    assert np.allclose(half, PREDICTED * spread, rtol=1e-12)
    band = ax.collections[0].get_paths()[0].vertices
    at_first = band[band[:, 0] == 1.0][:, 1]
    assert np.isclose(at_first.min(), PREDICTED[0] * 0.65)  # 0.5 + 0.3 * 0.5
    assert np.isclose(at_first.max(), PREDICTED[0] * 1.85)  # 1.5 + 0.7 * 0.5
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("layer", "q")
    assert texts(ax) == ["predicted", "width 10"]


@pytest.mark.parametrize(
    "log, scales",
    [(False, ("linear", "linear")), (True, ("linear", "log")), ("y", ("linear", "log")),
     ("x", ("log", "linear")), ("both", ("log", "log"))],
)  # fmt: skip
def test_log_names_the_axes_that_are_logarithmic(log, scales):
    ax = plotting.prediction_and_measurement(X, PREDICTED, SAMPLES, log=log)
    assert (ax.get_xscale(), ax.get_yscale()) == scales


def test_the_axes_handed_in_are_used_and_colours_do_not_repeat():
    ax = plotting.figure().subplots()
    assert plotting.prediction_and_measurement(X, PREDICTED, SAMPLES, ax=ax, label="a") is ax
    plotting.prediction_and_measurement(X, PREDICTED, 2 * SAMPLES, ax=ax, label="b")
    colours = [container.lines[0].get_color() for container in ax.containers]
    assert colours == list(plotting.COLORS[:2])
    assert texts(ax).count("predicted") == 1
    assert ax.spines["top"].get_visible()  # the caller's axes keep their look


def test_one_sample_has_no_band_and_no_bar():
    ax = plotting.prediction_and_measurement(X, PREDICTED, SAMPLES[:1])
    assert rendered(ax).std() > 0
    assert len(ax.collections) == 1  # the error bars alone


def test_neither_pyplot_nor_the_style_is_touched():
    before = dict(matplotlib.rcParams)
    had = "matplotlib.pyplot" in sys.modules
    plotting.prediction_and_measurement(X, PREDICTED, SAMPLES, log=True)
    assert dict(matplotlib.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == had


def test_a_label_that_is_no_formula_is_shown_as_it_is():
    ax = plotting.prediction_and_measurement(X, PREDICTED, SAMPLES, label="net_$x_{bad$", xlabel="$q_{$", ylabel="$q$")
    rendered(ax)  # would raise
    assert not ax.xaxis.label.get_parse_math()
    assert ax.yaxis.label.get_parse_math()


@pytest.mark.parametrize(
    "change, name",
    [({"x": X[None]}, "x"), ({"predicted": PREDICTED[:3]}, "predicted"), ({"samples": SAMPLES[:, :2]}, "samples"),
     ({"log": "z"}, "log")],
)  # fmt: skip
def test_what_does_not_fit_is_named(change, name):
    arguments = {"x": X, "predicted": PREDICTED, "samples": SAMPLES, "log": False} | change
    with pytest.raises(ValueError, match=f"^{name} must"):
        plotting.prediction_and_measurement(
            arguments["x"], arguments["predicted"], arguments["samples"], log=arguments["log"]
        )


def test_agreement_draws_standard_errors_in_order():
    ax = plotting.agreement(types.SimpleNamespace(z=np.array([[0.5, -1.0], [3.0, 7.0]])), limit=5.0, xlabel="layer")
    dots = line(ax, "measured")
    assert np.array_equal(dots.get_ydata(), [0.5, -1.0, 3.0, 7.0])
    assert np.array_equal(dots.get_xdata(), [1, 2, 3, 4])
    level = {tuple(drawn.get_ydata()) for drawn in ax.lines}
    assert {(5.0, 5.0), (-5.0, -5.0)} <= level
    assert "standard errors" in ax.get_ylabel()
    with pytest.raises(ValueError, match=r"limit must be .*> 0; got 0"):
        plotting.agreement(types.SimpleNamespace(z=np.zeros(2)), limit=0.0)


def phases(chi):
    weights, biases = np.linspace(0.5, 3.0, chi.shape[0]), np.linspace(0.0, 0.2, chi.shape[1])
    return types.SimpleNamespace(weight_variances=weights, bias_variances=biases, chi_1=chi)


def test_phase_diagram_has_the_critical_line_where_chi_1_is_1():
    weights = np.linspace(0.5, 3.0, 41)
    chi = np.repeat((weights / 1.75)[:, None], 11, axis=1)
    ax = plotting.phase_diagram(phases(chi))
    contours = [c for c in ax.collections if hasattr(c, "levels")]
    critical = next(c for c in contours if list(c.levels) == [0.0])
    assert np.allclose(critical.get_paths()[0].vertices[:, 0], 1.75, atol=1e-3)
    names = {text.get_text().split("\n")[0]: text.get_position()[0] for text in ax.texts}
    assert names["ordered"] < 1.75 < names["chaotic"]
    assert rendered(ax).std() > 0


def test_phase_diagram_of_one_phase_names_that_one_and_survives_zeros():
    ax = plotting.phase_diagram(phases(np.where(np.eye(6, dtype=bool), 0.0, 0.5)))
    assert [text.get_text().split("\n")[0] for text in ax.texts] == ["ordered"]
    assert rendered(ax).std() > 0
    with pytest.raises(ValueError, match=r"chi_1 must have shape \(6, 5\); got \(6, 6\)"):
        plotting.phase_diagram(
            phases(np.ones((6, 6))).__class__(
                weight_variances=np.ones(6), bias_variances=np.ones(5), chi_1=np.ones((6, 6))
            )
        )


def law(mean, typical):
    return types.SimpleNamespace(log_expectation=mean, log_mean=typical)


def test_product_norm_draws_powers_of_ten_far_beyond_the_range_of_numbers():
    depths = np.arange(1, 1001)
    mean = np.log(10.0) * depths
    logs = mean * np.array([[0.9], [1.0], [1.1]])
    ax = plotting.product_norm(depths, law(mean, mean - 1), logs, label="He")
    assert np.allclose(line(ax, "predicted mean").get_ydata(), depths)
    assert np.allclose(line(ax, "He").get_ydata(), line(ax, "He").get_xdata())
    assert np.allclose(line(ax, "predicted typical (exp E ln)").get_ydata(), depths - 1 / np.log(10))
    band = ax.collections[0].get_paths()[0].vertices
    assert np.isclose(band[:, 1].max(), 1000 * 1.08)
    rendered(ax)
    assert ax.yaxis.get_major_formatter()(-3, 0) == "$10^{-3}$"
    assert ax.yaxis.get_major_formatter()(0.5, 0) == "$10^{0.5}$"  # a short range has ticks between the decades


def test_product_norm_leaves_out_a_typical_line_that_is_not_known():
    ax = plotting.product_norm(X, law(X, np.full(5, np.nan)), np.stack([X, X]))
    assert texts(ax) == ["measured", "predicted mean"]


@pytest.mark.parametrize("low, high", [(1.7, 62.0), (0.0035, 0.07), (1e-6, 1e-4), (1.0, 8.0), (1e-12, 1e3), (0.3, 0.9)])
def test_labels_of_a_logarithmic_axis_do_not_touch(low, high):
    made = plotting.figure(width=3, height=3)
    ax = made.subplots()
    ax.loglog([low, high], [low, high])
    plotting.tidy(ax)
    made.canvas.draw()
    labels = [*ax.xaxis.get_majorticklabels(), *ax.xaxis.get_minorticklabels()]
    shown = sorted(label.get_window_extent().extents[[0, 2]].tolist() for label in labels if label.get_text())
    inside = [box for box in shown if ax.bbox.x0 - 1 <= sum(box) / 2 <= ax.bbox.x1 + 1]
    assert len(inside) > 1
    assert all(before[1] < after[0] for before, after in zip(inside, inside[1:], strict=False))
