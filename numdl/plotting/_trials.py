"""Short trainings, rates, forecasts and courses of an audit, and the cure beside the disease."""

from typing import TYPE_CHECKING, Any

import numpy as np

from numdl import checks
from numdl.plotting import _drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def trial(record: Any, *, ax: "Axes | None" = None) -> "Axes":
    """Loss over the steps of short trainings, a colour for each rate: mean over seeds, and all seeds as a band.

    The user's own rate is the thick line; a rate at which the loss leaves the picture or the numbers "diverges".

    Parameters
    ----------
    record : Trial          of an audit's evidence: factors [R], losses [R, S, T], start, repeated [T]
    ax : Axes               where to draw; None makes a figure of its own
    Returns
    -------
    Axes                    `ax`, or the new ones
    Raises
    ------
    ValueError, TypeError   a record without these fields or with other shapes, an `ax` that is not Axes
    """
    _drawing.checked(ax)
    factors, losses, repeated = (_drawing.field("record", record, name) for name in ("factors", "losses", "repeated"))
    checks.shape("record.losses", losses, (factors.size, None, None))
    ax, most = _drawing.axes(ax), _most(float(record.start), losses)
    for i, factor in enumerate(factors):
        _at_rate(ax, i, factor, losses[i], most)
    if np.isfinite(repeated).any():
        shown = np.where(repeated <= most, repeated, np.nan)
        ax.plot(np.arange(shown.size), shown, ":", color="0.35", linewidth=1.6, label="one batch, repeated")
    apt(ax, np.where(losses <= most, losses, np.nan))
    return _drawing.finish(ax, "step", "loss")


def rates(record: Any, *, predicted: Any = None, ax: "Axes | None" = None) -> "Axes":
    """Loss at the end of short trainings against the rate, the loss before, and the rate that sharpness allows.

    Parameters
    ----------
    record : Trial          of an audit's evidence: factors [R], end [R, S], start
    predicted : Predicted   sharpness and sharpness_limit at the user's rate: their ratio is the largest stable factor
    ax : Axes               where to draw; None makes a figure of its own
    Returns
    -------
    Axes                    `ax`, or the new ones
    Raises
    ------
    ValueError, TypeError   a record without these fields or with other shapes, an `ax` that is not Axes
    """
    _drawing.checked(ax)
    factors, end, start = (_drawing.field("record", record, name) for name in ("factors", "end", "start"))
    checks.shape("record.end", end, (factors.size, None))
    limit = np.nan if predicted is None else _factor_of(predicted)
    ax, kept = _drawing.axes(ax), end <= _most(float(start), end)
    inside = np.where(kept, end, np.nan)
    _ends(ax, factors, inside, kept)
    if np.isfinite(start):
        ax.axhline(float(start), color="0.45", linewidth=1.2, label="before")
    ax.axvline(1.0, color=_drawing.COLORS[1], linewidth=1.6, label="this rate", zorder=1)
    ax.set_xscale("log")
    _stable(ax, limit, factors.min() / 3, factors.max() * 3)
    apt(ax, inside)
    return _drawing.finish(ax, "rate / this rate", "loss")


def forecast(kernel: Any, *, trial: Any = None, ax: "Axes | None" = None) -> "Axes":
    """The loss that the tangent kernel forecasts over the budget, beside what a short trial at this rate measured.

    Parameters
    ----------
    kernel : Kernel         of an audit's evidence: forecast, forecast_steps [T], start
    trial : Trial           factors [R], losses [R, S, T]; None: no measurement
    ax : Axes               where to draw; None makes a figure of its own
    Returns
    -------
    Axes                    `ax`, or the new ones
    Raises
    ------
    ValueError, TypeError   records without these fields or with other shapes, an `ax` that is not Axes
    """
    _drawing.checked(ax)
    line, steps = (_drawing.field("kernel", kernel, name) for name in ("forecast", "forecast_steps"))
    checks.shape("kernel.forecast_steps", steps, line.shape)
    ax, most = _drawing.axes(ax), _most(float(kernel.start), line)
    shown = np.where(line <= most, line, np.nan)
    _drawing.dashed(ax, steps, shown, "forecast")
    if trial is not None:
        _own(ax, trial, float(kernel.start))
    if steps.size and steps.max() > 100:
        ax.set_xscale("symlog", linthresh=10)
    apt(ax, shown)
    return _drawing.finish(ax, "step", "loss")


def course(optimizer: Any, *, ax: "Axes | None" = None) -> "Axes":
    """How an optimizer spends its travel over the budget under a constant gradient, beside a constant rate.

    Parameters
    ----------
    optimizer : Optimizer   of an audit's evidence: early and late, the shares of the first tenth and of the second half
    ax : Axes               where to draw; None makes a figure of its own
    Returns
    -------
    Axes                    `ax`, or the new ones
    Raises
    ------
    ValueError, TypeError   a record without these fields, an `ax` that is not Axes
    """
    _drawing.checked(ax)
    early, late = (float(_drawing.field("optimizer", optimizer, name)) for name in ("early", "late"))
    ax = _drawing.axes(ax)
    _drawing.dashed(ax, [0, 1], [0, 1], "constant rate")
    ax.plot([0, 0.1, 0.5, 1], [0, early, 1 - late, 1], "o-", color=_drawing.COLORS[0], label="this optimizer")
    return _drawing.finish(ax, "share of the budget", "share of the travel")


def proof(record: Any, *, ax: "Axes | None" = None) -> "Axes":
    """A network as it was and as repaired, trained side by side, and what theory forecast of the repaired one.

    Parameters
    ----------
    record : Proof          of an audit: sick, repaired [S, T], forecast, forecast_steps [F]
    ax : Axes               where to draw; None makes a figure of its own
    Returns
    -------
    Axes                    `ax`, or the new ones
    Raises
    ------
    ValueError, TypeError   a record without these fields or with other shapes, an `ax` that is not Axes
    """
    _drawing.checked(ax)
    sick, repaired, line, steps = (_drawing.field("record", record, name) for name in _PROOF)
    for name, values in (("sick", sick), ("repaired", repaired)):
        checks.shape(f"record.{name}", values, (None, None))
    checks.shape("record.forecast_steps", steps, line.shape)
    ax, most = _drawing.axes(ax), _most(np.nan, np.concatenate([sick.ravel(), repaired.ravel()]))
    _seeds(ax, sick, most, _drawing.COLORS[1], "as it was", 2)
    _seeds(ax, repaired, most, _drawing.COLORS[0], "repaired", 2)
    if np.isfinite(line).any():
        _drawing.dashed(ax, steps, np.where(line <= most, line, np.nan), "forecast of the repaired")
    apt(ax, np.concatenate([part[part <= most] for part in (sick, repaired)]))
    return _drawing.finish(ax, "step", "loss")


_PROOF = ("sick", "repaired", "forecast", "forecast_steps")


def _own(ax, trial, start):
    """The curve at the user's own rate, if it was tried."""
    factors, losses = (_drawing.field("trial", trial, name) for name in ("factors", "losses"))
    own = np.flatnonzero(np.isclose(factors, 1.0, rtol=1e-3))
    if own.size and losses.size:
        mine = losses[own[0]]
        _seeds(ax, mine, _most(start, mine), _drawing.COLORS[0], "measured, this rate", 2.2)


def _at_rate(ax, i, factor, losses, most):
    """One rate's curve; the user's own rate is thick and of the first colour."""
    own = bool(np.isclose(factor, 1.0, rtol=1e-3))
    color = _drawing.COLORS[0] if own else _drawing.COLORS[1 + i % 5]
    ending = "" if (losses <= most).all() else ", diverges"
    label = ("this rate" if own else f"{factor:g} × the rate") + ending
    _seeds(ax, losses, most, color, label, 2.6 if own else 1.2)


def _seeds(ax, losses, most, color, label, width):
    """Mean of the seeds [S, T] as a line, from their least to their largest as a band; what is above `most` is cut."""
    shown = np.where(losses <= most, losses, np.nan)
    x = np.arange(shown.shape[1])
    if len(shown) > 1:
        ax.fill_between(x, shown.min(axis=0), shown.max(axis=0), color=color, alpha=0.18, linewidth=0)
    if len(shown):
        middle = shown.mean(axis=0)
        mark = "o" if np.isfinite(middle).sum() < 3 else ""  # a line needs two points in a row
        ax.plot(x, middle, color=color, linewidth=width, label=label, marker=mark)


def _ends(ax, factors, inside, kept):
    """Each seed's last loss [R, S] and their mean; a triangle at the top where a seed did not stay in the picture."""
    ax.plot(factors, inside, "o", color=_drawing.COLORS[0], markersize=3.5, alpha=0.6, zorder=3)
    middle = np.where(kept.all(axis=1), inside.mean(axis=1), np.nan)
    ax.plot(factors, middle, "-", color=_drawing.COLORS[0], linewidth=1.6, label="after the trial", zorder=3)
    lost = ~kept.all(axis=1)
    if lost.any():
        marks = {"transform": ax.get_xaxis_transform(), "color": "black", "clip_on": False, "label": "diverges"}
        ax.plot(factors[lost], np.full(lost.sum(), 0.97), "^", **marks)


def _stable(ax, limit, low, high):
    """The largest stable factor as a dashed line, at the edge and with its number where it lies outside."""
    if np.isfinite(limit) and limit > 0:
        beyond = "" if low <= limit <= high else f", at {limit:.2g}"
        at = np.clip(limit, low, high)
        ax.axvline(at, color="black", linestyle="--", linewidth=1.6, label="stable up to" + beyond)


def _most(start, losses):
    """The largest loss that is drawn: ten times the loss before, or the first losses where it is not known."""
    finite = losses[np.isfinite(losses)]
    if not np.isfinite(start):
        start = np.abs(finite[: max(1, finite.size // 20)]).max(initial=0.0)
    return 10 * abs(start) if start else np.inf


def apt(ax, values):
    """A logarithmic axis where the values are positive and span more than a factor of ten."""
    finite = np.asarray(values)[np.isfinite(values)]
    if finite.size and finite.min() > 0 and finite.max() > 10 * finite.min():
        ax.set_yscale("log")
        _drawing.plain_powers(ax.yaxis)


def _factor_of(predicted):
    sharpness, limit = (
        float(_drawing.field("predicted", predicted, name)) for name in ("sharpness", "sharpness_limit")
    )
    return limit / sharpness if sharpness > 0 else np.nan
