"""One function per record: what was predicted beside what was measured."""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from numdl import checks
from numdl.plotting import _drawing
from numdl.statistics import Agreement

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SCALES = (False, True, "x", "y", "both")


def prediction_and_measurement(
    x: ArrayLike,
    predicted: ArrayLike,
    samples: ArrayLike,
    *,
    ax: "Axes | None" = None,
    label: str = "measured",
    xlabel: str = "",
    ylabel: str = "",
    log: bool | str = False,
    color: str | None = None,
) -> "Axes":
    """Theory as a line, the mean over seeds as dots with one standard error, and the band of 80 % of the seeds.

    Parameters
    ----------
    x, predicted : array [X]        positions and theory's values there
    samples : array [seeds, X]      measured values, a row for each seed
    ax : Axes               where to draw; None makes a figure of its own
    label : str             the measured series' name in the legend
    xlabel, ylabel : str    names of the axes, with units
    log : bool or str       True or "y": logarithmic values; "x", "both"
    color : str             None takes the first of COLORS that the axes do not show yet
    Returns
    -------
    Axes                    `ax`, or the new ones
    Raises
    ------
    ValueError, TypeError   shapes that do not fit, another `log`, an `ax` that is not Axes
    """
    _drawing.checked(ax)
    x, predicted, samples = (
        _drawing.numbers("x", x, 1),
        _drawing.numbers("predicted", predicted, 1),
        _drawing.numbers("samples", samples, 2),
    )
    if x.size != predicted.size:
        raise checks.BadValue(f"predicted must have the length of x, {x.shape}; got {predicted.shape}")
    checks.shape("samples", samples, (None, x.size))
    checks.one_of("log", log, SCALES)
    ax, color = _drawing.axes(ax), color or _drawing.fresh_color(ax)
    _drawing.band(ax, x, samples, color)
    stderr = _standard_error(samples)
    ax.errorbar(x, samples.mean(axis=0), stderr, fmt="o", color=color, ms=4, elinewidth=1, label=label, zorder=3)
    _drawing.dashed(ax, x, predicted, "predicted")
    if log:
        ax.set_yscale("log" if log in (True, "y", "both") else "linear")
        ax.set_xscale("log" if log in ("x", "both") else "linear")
    return _drawing.finish(ax, xlabel, ylabel)


def agreement(
    record: Agreement,
    *,
    x: ArrayLike | None = None,
    ax: "Axes | None" = None,
    label: str = "measured",
    xlabel: str = "index",
    limit: float = 6.0,
    color: str | None = None,
) -> "Axes":
    """How far the measurement is from the prediction, in standard errors, point by point.

    Parameters
    ----------
    record : Agreement      `statistics.agreement(predicted, samples)`; its z may have any shape and is drawn in order
    x : array [points]      positions; None counts from 1
    ax : Axes               where to draw; None makes a figure of its own
    label : str             the measured series' name in the legend
    xlabel : str            what x is, with units
    limit : float           > 0, standard errors beyond which a difference is no accident, drawn as two lines
    color : str             None takes the first of COLORS that the axes do not show yet
    Returns
    -------
    Axes                    `ax`, or the new ones
    Raises
    ------
    ValueError, TypeError   a record without z, another number of positions than points, a limit that is not positive
    """
    _drawing.checked(ax)
    z = np.ravel(_drawing.field("record", record, "z"))
    x = np.arange(1, z.size + 1) if x is None else _drawing.numbers("x", x, 1)
    checks.shape("x", x, z.shape)
    limit = checks.positive("limit", limit, shape=())
    ax, color = _drawing.axes(ax), color or _drawing.fresh_color(ax)
    ax.axhspan(-2, 2, color="0.92", linewidth=0, zorder=0, label=_drawing.once(ax, "±2 standard errors"))
    _drawing.dashed(ax, x, np.zeros_like(z), "predicted")
    for side in (-limit, limit):
        ax.axhline(side, color="0.55", linewidth=1, zorder=1)
    ax.plot(x, z, "o", color=color, markersize=4, label=label, zorder=3)
    return _drawing.finish(ax, xlabel, "measured - predicted (standard errors)")


def phase_diagram(record: Any, *, ax: "Axes | None" = None) -> "Axes":
    """chi_1 over the plane of variances: where gradients vanish, where they explode, and the line between.

    Thin lines: gradients change e-fold within 10 layers, |ln chi_1| = 1/10. Colours are cut at a factor of e a layer.

    Parameters
    ----------
    record : PhaseDiagram   of `theory.propagation.phase_diagram`: weight_variances [W], bias_variances [B],
                            chi_1 [W, B]
    ax : Axes               where to draw; None makes a figure of its own
    Returns
    -------
    Axes                    `ax`, or the new ones
    Raises
    ------
    ValueError, TypeError   a record without these fields or with other shapes, an `ax` that is not Axes
    """
    _drawing.checked(ax)
    weights, biases = (_drawing.field("record", record, name) for name in ("weight_variances", "bias_variances"))
    chi = _drawing.field("record", record, "chi_1")
    checks.shape("record.chi_1", chi, (weights.size, biases.size))
    ax = _drawing.axes(ax)
    slope = np.log(np.where(chi > 0, chi, np.nan)).T
    mesh = ax.pcolormesh(weights, biases, slope, cmap="RdBu_r", vmin=-1, vmax=1, shading="nearest", rasterized=True)
    bar = ax.figure.colorbar(mesh, ax=ax, extend="both", ticks=[-1, -0.5, 0, 0.5, 1])
    bar.set_label("ln χ₁: growth of squared\ngradients per layer")
    if min(slope.shape) > 1:
        _drawing.contour(ax, weights, biases, slope, (-0.1, 0.1), colors="0.25", linewidths=0.7, linestyles="-")
        _drawing.contour(ax, weights, biases, slope, (0.0,), colors="black", linewidths=2, linestyles="--")
    ax.plot([], [], "k--", linewidth=2, label="critical, χ₁ = 1")
    ax.plot([], [], color="0.25", linewidth=0.7, label="10 layers per factor e")
    _drawing.name_region(ax, weights, biases, slope < 0, "ordered\ngradients vanish")
    _drawing.name_region(ax, weights, biases, slope > 0, "chaotic\ngradients explode")
    ax.margins(0)
    return _drawing.finish(ax, "weight variance (fan_in · Var W)", "bias variance")


def product_norm(
    depths: ArrayLike,
    predicted: Any,
    log_samples: ArrayLike,
    *,
    ax: "Axes | None" = None,
    label: str = "measured",
    color: str | None = None,
) -> "Axes":
    """Squared length of K_l ... K_1 y by depth: theory's mean and typical value, measured median and 80 % band.

    Values are drawn as powers of ten of a linear axis, so that no depth leaves the range of numbers.

    Parameters
    ----------
    depths : array [L]              layers
    predicted : ProductNorm         of `theory.jacobian.product_norm`: log_expectation and log_mean, [L]; a log_mean
                                    of nan is not drawn
    log_samples : array [draws, L]  natural logarithm of the squared length, or of its ratio to |y|^2
    ax : Axes                       where to draw; None makes a figure of its own
    label : str                     the measured series' name in the legend
    color : str                     None takes the first of COLORS that the axes do not show yet
    Returns
    -------
    Axes                            `ax`, or the new ones
    Raises
    ------
    ValueError, TypeError           a record without these fields, another number of columns than depths
    """
    from matplotlib.ticker import MaxNLocator

    _drawing.checked(ax)
    depths, logs = _drawing.numbers("depths", depths, 1), _drawing.numbers("log_samples", log_samples, 2)
    if logs.shape[1] != depths.size:
        raise checks.BadValue(
            f"log_samples must have a column for each of the depths; got shape {logs.shape} for depths {depths.shape}"
        )
    mean, typical = (_drawing.field("predicted", predicted, name) for name in ("log_expectation", "log_mean"))
    checks.shape("predicted.log_expectation", mean, depths.shape)
    ax, color = _drawing.axes(ax), color or _drawing.fresh_color(ax)
    tens = np.log(10.0)
    _drawing.band(ax, depths, logs / tens, color)
    every = max(1, depths.size // 20)
    median = np.median(logs, axis=0) / tens
    ax.plot(depths[::every], median[::every], "o", color=color, markersize=3.5, label=label, zorder=3)
    _drawing.dashed(ax, depths, mean / tens, "predicted mean")
    if typical.shape == depths.shape and np.isfinite(typical).any():
        ax.plot(
            depths,
            typical / tens,
            "k:",
            linewidth=1.4,
            zorder=4,
            label=_drawing.once(ax, "predicted typical (exp E ln)"),
        )
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_formatter(lambda power, _: f"$10^{{{power:g}}}$")
    return _drawing.finish(ax, "depth (layers)", "squared length / |y|²")


def layers(flow: Any, *, ax: "Axes | None" = None) -> "Axes":
    """What each layer does to signals and gradients: rms of the state and of its per-example gradient, layer by layer.

    Triangles mark layers whose state holds numbers that are not finite.

    Parameters
    ----------
    flow : LayerFlow        of `analysis.layers.probe`: names, state_rms, state_gradient_rms, state_nonfinite, each [L]
    ax : Axes               where to draw; None makes a figure of its own
    Returns
    -------
    Axes                    `ax`, or the new ones
    Raises
    ------
    ValueError, TypeError   a record without these fields, an `ax` that is not Axes
    """
    _drawing.checked(ax)
    for name in ("state_rms", "state_gradient_rms", "state_nonfinite"):
        _drawing.field("flow", flow, name)
    ax = _drawing.axes(ax)
    x = np.arange(1, len(flow.names) + 1)
    rows = (("state", flow.state_rms), ("gradient of the state, per example", flow.state_gradient_rms))
    for color, (label, values) in zip(_drawing.COLORS, rows, strict=False):
        values = np.asarray(values, dtype=float)
        shown = np.where(np.isfinite(values) & (values > 0), values, np.nan)
        if np.isfinite(shown).any():
            ax.plot(x, shown, "o-", color=color, markersize=3.5, linewidth=1, label=label)
    lost = np.flatnonzero(np.asarray(flow.state_nonfinite) > 0)
    if lost.size:
        marks = np.full(lost.size, 0.97)
        ax.plot(x[lost], marks, "v", color="black", transform=ax.get_xaxis_transform(), label="not finite")
    ax.set_yscale("log")
    if x.size <= 20:
        ax.set_xticks(x, flow.names, rotation=30, ha="right", fontsize="small", parse_math=False)
    return _drawing.finish(ax, "" if x.size <= 20 else "layer, in call order", "root mean square")


def _standard_error(samples):
    return samples.std(axis=0, ddof=1) / np.sqrt(len(samples)) if len(samples) > 1 else np.zeros(samples.shape[1])
