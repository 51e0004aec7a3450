"""What the audit's plots draw: measured values as they are, theory's where it is, and a word for what has no height."""

import numpy as np
import pytest

from numdl import plotting
from tests.audit import made


def line(ax, label):
    return next(drawn for drawn in ax.lines if drawn.get_label() == label)


def labels(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def ticks(ax):
    return [tick.get_text() for tick in ax.get_xticklabels()]


@pytest.mark.parametrize("draw, field", [(plotting.states, "state_rms"), (plotting.gradients, "gradient_rms")])
def test_profiles_draw_the_measured_values_and_theory_with_its_band(draw, field):
    signal, predicted = made.signal(), made.predicted()
    ax = draw(signal, predicted=predicted)
    assert np.array_equal(line(ax, "measured").get_ydata(), getattr(signal, field))
    expected = 0.3 ** np.arange(12.0)
    if field == "gradient_rms":
        expected = signal.gradient_rms[-1] * expected[::-1]
    assert np.allclose(line(ax, "theory").get_ydata(), expected, rtol=1e-12)
    band = ax.collections[0].get_paths()[0].vertices
    far, near = (12.0, 1.0) if field == "state_rms" else (1.0, 12.0)
    for x, width in ((far, 0.6), (near, 0.0)):
        heights = band[band[:, 0] == x][:, 1]
        assert heights.max() / heights.min() == pytest.approx(np.exp(2 * width))
    assert ax.get_yscale() == "log" and "± 2 deviations" in labels(ax)


def test_profiles_mark_what_has_no_height():
    values = np.array([1.0, 0.0, np.nan, np.inf])
    ax = plotting.states(made.signal(4, state_rms=values))
    assert list(line(ax, "not finite").get_xdata()) == [3, 4]
    assert list(line(ax, "zero").get_xdata()) == [2]
    assert "theory" not in labels(ax)


@pytest.mark.parametrize(
    "names, shown",
    [
        (("layers/0/w", "layers/1/w"), ["0", "1"]),
        (("a/kernel", "b/kernel"), ["a", "b"]),
        (("h/0/w", "h/1/w[0]", "h/1/w[1]"), ["0", "1[0]", "1[1]"]),
        (("h/w[0]", "h/w[1]", "out/w"), ["h[0]", "h[1]", "out"]),
        (("only/one",), ["one"]),
        (("w", "w"), ["w", "w"]),
        (("a/w", "a"), ["a/w", "a"]),
        (("$x$ \x1b[2J", "b" * 40), ["$x$ ?[2J", "bbbbbb...bbbbbbb"]),
    ],
)
def test_layers_are_named_by_what_tells_them_apart(names, shown):
    ax = plotting.states(made.signal(len(names), names=names))
    ax.figure.canvas.draw()
    assert ticks(ax) == shown


def test_many_layers_have_a_few_names():
    ax = plotting.units(made.signal(120))
    assert 4 <= len(ticks(ax)) <= 8 and ticks(ax)[0] == "0"
    assert labels(ax) == ["units never active", "units at their bounds", "cosine between examples"]


def diagram():
    class Diagram:
        weight_variances, bias_variances = np.linspace(0.5, 4, 6), np.linspace(0, 0.5, 5)
        chi_1 = np.repeat(weight_variances[:, None] / 2, 5, axis=1)

    return Diagram


def test_a_place_is_drawn_where_it_is_or_at_the_edge_with_its_numbers():
    ax = plotting.place(diagram(), weight_variance=1.5, bias_variance=0.1)
    assert (*line(ax, "this network").get_xdata(), *line(ax, "this network").get_ydata()) == (1.5, 0.1)
    ax = plotting.place(diagram(), weight_variance=40.0, bias_variance=0.1)
    assert line(ax, "this network, at (40, 0.1)").get_xdata() == [4.0]


def test_trials_draw_the_mean_of_the_seeds_and_say_which_rate_diverges():
    trial = made.trial()
    losses = trial.losses.copy()
    losses[3, 0, 5:] = np.nan
    losses[0, :, 7] = 1e6
    ax = plotting.trial(made.trial(losses=losses))
    assert np.allclose(line(ax, "this rate").get_ydata(), trial.losses[2].mean(axis=0))
    assert {"0.01 × the rate, diverges", "10 × the rate, diverges", "0.1 × the rate", "this rate"} <= set(labels(ax))
    assert ax.get_ylim()[1] < 100


def test_rates_mark_the_largest_stable_rate_and_what_diverges():
    trial = made.trial()
    end = trial.end.copy()
    end[3, 1] = np.inf
    ax = plotting.rates(made.trial(end=end), predicted=made.predicted(sharpness=50.0, sharpness_limit=200.0))
    assert list(line(ax, "stable up to").get_xdata()) == [4.0, 4.0]
    assert list(line(ax, "diverges").get_xdata()) == [10.0]
    assert np.allclose(line(ax, "after the trial").get_ydata()[:3], trial.end[:3].mean(axis=1))
    far = plotting.rates(trial, predicted=made.predicted())
    assert line(far, "stable up to, at 1.7e+02").get_xdata()[0] == 30.0
    assert "stable up to" not in labels(plotting.rates(trial, predicted=made.predicted(sharpness=np.nan)))


def test_forecast_stands_beside_the_measured_beginning():
    kernel, trial = made.kernel(), made.trial()
    ax = plotting.forecast(kernel, trial=trial)
    assert np.array_equal(line(ax, "forecast").get_ydata(), kernel.forecast)
    assert np.allclose(line(ax, "measured, this rate").get_ydata(), trial.losses[2].mean(axis=0))
    assert labels(plotting.forecast(kernel)) == ["forecast"]


def test_course_adds_up():
    ax = plotting.course(made.evidence(optimizer=type("O", (), {"early": 0.4, "late": 0.05})).optimizer)
    assert np.allclose(line(ax, "this optimizer").get_ydata(), [0, 0.4, 0.95, 1])


def test_proof_draws_both_and_the_forecast_on_an_apt_axis():
    proof = made.proof()
    ax = plotting.proof(proof)
    assert np.allclose(line(ax, "as it was").get_ydata(), proof.sick.mean(axis=0))
    assert np.allclose(line(ax, "repaired").get_ydata(), proof.repaired.mean(axis=0))
    assert np.array_equal(line(ax, "forecast of the repaired").get_ydata(), proof.forecast)
    assert ax.get_yscale() == "log"
    assert plotting.proof(made.proof(repaired=proof.sick - 5)).get_yscale() == "linear"


@pytest.mark.parametrize(
    "draw, message",
    [
        (lambda: plotting.states(3), "signal must be a record with the field state_rms"),
        (
            lambda: plotting.states(made.signal(), predicted=made.predicted(3)),
            r"predicted.state_rms must have shape",
        ),
        (lambda: plotting.trial(made.trial(losses=np.ones((2, 3, 4)))), "record.losses must have shape"),
        (lambda: plotting.proof(made.proof(sick=np.ones(3))), "record.sick must have shape"),
        (lambda: plotting.place(diagram(), weight_variance=-1.0, bias_variance=0.0), "weight_variance must be"),
        (lambda: plotting.course(made.kernel(), ax=3), "ax must be Axes"),
    ],
)
def test_bad_arguments_are_named(draw, message):
    with pytest.raises((ValueError, TypeError), match=message):
        draw()


def test_a_watched_loss_marks_findings_and_what_is_not_finite():
    loss = made.events().loss.copy()
    loss[30] = np.nan
    ax = plotting.watched(made.events(loss=loss))
    assert list(line(ax, "not finite").get_xdata()) == [30]
    assert line(ax, "rate_too_high").get_xdata()[0] == 150
    assert np.array_equal(line(ax, "loss").get_ydata(), loss[np.isfinite(loss)])


def test_sharpness_stands_beside_the_limit():
    ax = plotting.edge(made.events())
    assert np.array_equal(line(ax, "sharpness").get_ydata(), [5, np.nan, 125, 185], equal_nan=True)
    assert list(line(ax, "stable up to").get_ydata()) == [150] * 4


def test_movements_are_those_of_single_steps():
    ax = plotting.movement(made.events())
    assert list(line(ax, "largest").get_xdata()) == [10, 90]
    assert np.allclose(line(ax, "largest").get_ydata(), 1e-3)
    assert np.allclose(line(ax, "median").get_ydata(), 5e-4)


def test_ageing_is_of_the_worst_layer():
    assert np.allclose(line(plotting.ageing(made.events()), "units never active").get_ydata(), [0, 0.25, 199 / 400])


@pytest.mark.parametrize("draw", [plotting.edge, plotting.movement, plotting.ageing])
def test_a_run_without_looks_draws_empty_axes_and_no_run_is_refused(draw):
    assert draw(made.events(looks={})).get_xlabel() == "step"
    with pytest.raises(TypeError, match="events must be a record with the field looks"):
        draw(made.kernel())
