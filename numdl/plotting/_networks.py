"""Layers of an audited network, and its place on the phase diagram: what was measured beside theory."""

import re
from typing import TYPE_CHECKING, Any

import numpy as np

from numdl import checks
from numdl.plotting import _drawing, _records

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def states(signal: Any, *, predicted: Any = None, ax: "Axes | None" = None) -> "Axes":
    """Rms of each layer's states, with theory's line and two standard deviations of finite width around it.

    Triangles mark layers whose states are not finite, crosses those that are exactly zero.

    Parameters
    ----------
    signal : Signal         of an audit's evidence: names, state_rms [L]
    predicted : Predicted   theory's state_rms [L] and spread, the deviation of ln rms^2 at the last layer, or None
    ax : Axes               where to draw; None makes a figure of its own
    Returns
    -------
    Axes                    `ax`, or the new ones
    Raises
    ------
    ValueError, TypeError   records without these fields or with other lengths, an `ax` that is not Axes
    """
    _drawing.checked(ax)
    values = _drawing.field("signal", signal, "state_rms")
    line = None if predicted is None else _drawing.field("predicted", predicted, "state_rms")
    ax = _profile(ax, signal.names, values, "measured")
    if line is not None:
        checks.shape("predicted.state_rms", line, values.shape)
        _expected(ax, line, float(predicted.spread), np.arange(values.size))
    return _drawing.finish(ax, "", "rms of the states")


def gradients(signal: Any, *, predicted: Any = None, ax: "Axes | None" = None) -> "Axes":
    """Rms of the loss's gradient with respect to each layer's states, per example, with theory's line and band.

    Parameters
    ----------
    signal : Signal         of an audit's evidence: names, gradient_rms [L]
    predicted : Predicted   theory's log_gradient [L], ln of the square against the last layer's, and spread, or None
    ax : Axes               where to draw; None makes a figure of its own
    Returns
    -------
    Axes                    `ax`, or the new ones
    Raises
    ------
    ValueError, TypeError   records without these fields or with other lengths, an `ax` that is not Axes
    """
    _drawing.checked(ax)
    values = _drawing.field("signal", signal, "gradient_rms")
    line = None if predicted is None else _drawing.field("predicted", predicted, "log_gradient")
    ax = _profile(ax, signal.names, values, "measured")
    if line is not None:
        checks.shape("predicted.log_gradient", line, values.shape)
        with np.errstate(over="ignore", invalid="ignore"):
            line = values[-1:] * np.exp(line / 2)
        _expected(ax, line, float(predicted.spread), np.arange(values.size)[::-1])
    return _drawing.finish(ax, "", "rms of the gradients")


def units(signal: Any, *, ax: "Axes | None" = None) -> "Axes":
    """Shares by layer: units that are never active, units at their bounds, and the mean cosine between examples.

    Parameters
    ----------
    signal : Signal         of an audit's evidence: names, dead, saturated, cosine [L]
    ax : Axes               where to draw; None makes a figure of its own
    Returns
    -------
    Axes                    `ax`, or the new ones
    Raises
    ------
    ValueError, TypeError   a record without these fields, an `ax` that is not Axes
    """
    _drawing.checked(ax)
    rows = [(label, _drawing.field("signal", signal, name)) for name, label in _UNITS]
    ax = _drawing.axes(ax)
    for color, marker, (label, values) in zip(_drawing.COLORS, "osD", rows):
        if np.isfinite(values).any():
            x = np.arange(1, values.size + 1)
            ax.plot(x, values, f"{marker}-", color=color, markersize=3.5, linewidth=1, label=label)
    ax.set_ylim(min(-0.04, *(np.nanmin(values, initial=0.0) for _, values in rows)), 1.04)
    _named(ax, signal.names)
    return _drawing.finish(ax, "", "share, cosine")


def place(diagram: Any, *, weight_variance: float, bias_variance: float, ax: "Axes | None" = None) -> "Axes":
    """The phase diagram with a network's place on it; a place outside the diagram is drawn at its edge and says so.

    Parameters
    ----------
    diagram : PhaseDiagram  of `theory.propagation.phase_diagram`
    weight_variance : float the network's fan_in * Var(W)
    bias_variance : float   its Var(b)
    ax : Axes               where to draw; None makes a figure of its own
    Returns
    -------
    Axes                    `ax`, or the new ones
    Raises
    ------
    ValueError, TypeError   a record that is not a phase diagram, variances that are negative or not finite
    """
    _drawing.checked(ax)
    _drawing.field("diagram", diagram, "chi_1")
    weight_variance = float(checks.variance("weight_variance", weight_variance, shape=()))
    bias_variance = float(checks.variance("bias_variance", bias_variance, shape=()))
    ax = _records.phase_diagram(diagram, ax=ax)
    edges = [np.asarray(axis, dtype=float) for axis in (diagram.weight_variances, diagram.bias_variances)]
    asked = (weight_variance, bias_variance)
    at = [float(np.clip(value, axis.min(), axis.max())) for value, axis in zip(asked, edges, strict=True)]
    label = "this network" if at == list(asked) else f"this network, at ({weight_variance:.3g}, {bias_variance:.3g})"
    look = {"markersize": 15, "markerfacecolor": "#ffd21f", "markeredgecolor": "black", "clip_on": False, "zorder": 6}
    ax.plot(*([value] for value in at), "*", linestyle="none", label=label, **look)
    return _drawing.finish(ax, ax.get_xlabel(), ax.get_ylabel())


_UNITS = (("dead", "units never active"), ("saturated", "units at their bounds"), ("cosine", "cosine between examples"))


def _profile(ax, names, values, label):
    """The values by layer on a logarithmic axis, and marks at its edges for what has no height there."""
    ax = _drawing.axes(ax)
    x, shown = np.arange(1, values.size + 1), np.where(np.isfinite(values) & (values > 0), values, np.nan)
    ax.set_yscale("log")
    if np.isfinite(shown).any():
        ax.plot(x, shown, "o-", color=_drawing.COLORS[0], markersize=3.5, linewidth=1, label=label, zorder=3)
    else:
        ax.set_yticks([])
        ax.minorticks_off()
    _edge(ax, x[~np.isfinite(values)], "v", 0.97, "not finite")
    _edge(ax, x[values == 0], "x", 0.03, "zero")
    _named(ax, names)
    return ax


def _edge(ax, x, mark, height, label):
    if x.size:
        look = {"transform": ax.get_xaxis_transform(), "color": "black", "clip_on": False, "label": label}
        ax.plot(x, np.full(x.size, height), mark, markersize=5, **look)


def _expected(ax, line, spread, distance):
    x = np.arange(1, line.size + 1)
    line = np.where(np.isfinite(line) & (line > 0), line, np.nan)
    _drawing.dashed(ax, x, line, "theory")
    if np.isfinite(spread):
        width = spread * np.sqrt(
            distance / max(1, line.size - 1)
        )  # ln rms^2 walks at random: variance grows with depth
        with np.errstate(over="ignore"):
            low, high = line * np.exp(-width), line * np.exp(width)
        ax.fill_between(x, low, high, color="black", alpha=0.12, linewidth=0, label="± 2 deviations", zorder=1)


def _named(ax, names):
    """Names of at most eight layers, without what all names share."""
    count = len(names)
    ticks = np.arange(0, count, max(1, -(-count // 8)))
    labels = _told_apart([str(name) for name in names])
    labels = [labels[i] if len(labels[i]) <= 16 else f"{labels[i][:6]}...{labels[i][-7:]}" for i in ticks]
    ax.set_xticks(ticks + 1, labels, rotation=35, ha="right", fontsize="small", parse_math=False)
    ax.set_xlim(0.5, max(count, 1) + 0.5)


def _told_apart(names):
    """Paths without the parts that all begin or end with; the index of a scan's step stays: 'b/0/w[3]' is '0[3]'."""
    shown = ["".join(c if c.isprintable() else "?" for c in name) for name in names]
    pieces = [re.fullmatch(r"(.*?)((?:\[\d+\])*)", name, re.DOTALL) for name in shown]
    parts, steps = [piece[1].split("/") for piece in pieces], [piece[2] for piece in pieces]
    least = min(map(len, parts), default=0) - 1
    first = next((i for i in range(least) if len({p[i] for p in parts}) > 1), max(least, 0))
    last = next((i for i in range(least - first) if len({p[-1 - i] for p in parts}) > 1), max(least - first, 0))
    return ["/".join(p[first : len(p) - last]) + step for p, step in zip(parts, steps, strict=True)]
