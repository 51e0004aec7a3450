"""A watched training: its loss with what was found, its sharpness beside the limit, its movements, its units."""

from typing import TYPE_CHECKING, Any

import numpy as np

from numdl import checks
from numdl.plotting import _drawing
from numdl.plotting._trials import apt

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def watched(events: Any, *, ax: "Axes | None" = None) -> "Axes":
    """Loss over the steps of a watched run; lines mark the findings, triangles the losses that are not finite.

    Parameters
    ----------
    events : Events         of `audit.watching.read`: loss_steps, loss [T], findings ((step, Finding), ...)
    ax : Axes               where to draw; None makes a figure of its own
    Returns
    -------
    Axes                    `ax`, or the new ones
    Raises
    ------
    ValueError, TypeError   a record without these fields or with other shapes, an `ax` that is not Axes
    """
    _drawing.checked(ax)
    steps, loss = (_drawing.field("events", events, name) for name in ("loss_steps", "loss"))
    checks.shape("events.loss", loss, steps.shape)
    ax, finite = _drawing.axes(ax), np.isfinite(loss)
    ax.plot(steps[finite], loss[finite], color=_drawing.COLORS[0], linewidth=1.2, label="loss")
    if not finite.all():
        marks = {"transform": ax.get_xaxis_transform(), "color": "black", "clip_on": False, "label": "not finite"}
        ax.plot(steps[~finite], np.full((~finite).sum(), 0.97), "v", **marks)
    for i, (name, step) in enumerate(_first(events.findings)):
        ax.axvline(step, color=_drawing.COLORS[1 + i % 5], linewidth=1.4, linestyle=":", label=name)
    apt(ax, loss)
    return _drawing.finish(ax, "step", "loss")


def edge(events: Any, *, ax: "Axes | None" = None) -> "Axes":
    """Sharpness of a watched run, and the largest one at which its method is stable.

    Parameters
    ----------
    events : Events         of `audit.watching.read`: looks["sharpness"], a list of {step, sharpness, limit}
    ax : Axes               where to draw; None makes a figure of its own
    Returns
    -------
    Axes                    `ax`, or the new ones
    Raises
    ------
    ValueError, TypeError   a record without looks, an `ax` that is not Axes
    """
    looks = _looks(events, "sharpness", ax)
    ax, steps = _drawing.axes(ax), _values(looks, "step")
    _drawing.dashed(ax, steps, _values(looks, "limit"), "stable up to")
    ax.plot(steps, _values(looks, "sharpness"), "o-", color=_drawing.COLORS[0], markersize=3.5, label="sharpness")
    apt(ax, np.concatenate([_values(looks, "limit"), _values(looks, "sharpness")]))
    return _drawing.finish(ax, "step", "largest eigenvalue")


def movement(events: Any, *, ax: "Axes | None" = None) -> "Axes":
    """How far parameters move in a step, as a share of their size: the leaf that moves most, and the median leaf.

    Parameters
    ----------
    events : Events         of `audit.watching.read`: looks["change"], a list of {step, gap, ratio [P]}
    ax : Axes               where to draw; None makes a figure of its own
    Returns
    -------
    Axes                    `ax`, or the new ones
    Raises
    ------
    ValueError, TypeError   a record without looks, an `ax` that is not Axes
    """
    # A distance over many steps is no sum of their lengths: steps to and fro cancel.
    looks = [look for look in _looks(events, "change", ax) if look.get("gap") == 1 and np.size(look.get("ratio"))]
    ax, steps = _drawing.axes(ax), _values(looks, "step")
    for color, word, of in zip(_drawing.COLORS, ("largest", "median"), (np.nanmax, np.nanmedian)):
        values = np.array([_over(of, look["ratio"]) for look in looks])
        ax.plot(steps, np.where(values > 0, values, np.nan), "o-", color=color, markersize=3.5, label=word)
    ax.set_yscale("log")
    return _drawing.finish(ax, "step", "update / size of the leaf")


def ageing(events: Any, *, ax: "Axes | None" = None) -> "Axes":
    """Shares of dead and of saturated units over a watched run, each of the layer that has most.

    Parameters
    ----------
    events : Events         of `audit.watching.read`: looks["layers"], a list of {step, dead [L], saturated [L]}
    ax : Axes               where to draw; None makes a figure of its own
    Returns
    -------
    Axes                    `ax`, or the new ones
    Raises
    ------
    ValueError, TypeError   a record without looks, an `ax` that is not Axes
    """
    looks = _looks(events, "layers", ax)
    ax, steps = _drawing.axes(ax), _values(looks, "step")
    for color, field, word in zip(
        _drawing.COLORS, ("dead", "saturated"), ("units never active", "units at their bounds")
    ):
        values = [_over(np.nanmax, look.get(field, ())) for look in looks]
        ax.plot(steps, values, "o-", color=color, markersize=3.5, label=word)
    ax.set_ylim(-0.04, 1.04)
    return _drawing.finish(ax, "step", "share, in the worst layer")


def _looks(events, kind, ax):
    _drawing.checked(ax)
    if not isinstance(getattr(events, "looks", None), dict):
        raise checks.BadType(f"events must be a record with the field looks; got {checks.shown(events)}")
    return events.looks.get(kind, [])


def _values(looks, name):
    """A number of each look, nan where the file has null."""
    return np.array([look.get(name) for look in looks], dtype=float)


def _over(of, values):
    numbers = np.array(values, dtype=float)
    return float(of(numbers)) if np.isfinite(numbers).any() else np.nan


def _first(findings):
    """The first six kinds of findings, and when each was found first."""
    first = {}
    for step, finding in findings:
        first.setdefault(str(finding.name), step)
    return list(first.items())[:6]
