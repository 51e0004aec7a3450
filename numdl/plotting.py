"""Plots: one function per record; it takes data and an Axes, and returns the Axes.

What was predicted is a black dashed line, what was measured is coloured dots, the band holds 80 % of the seeds. No
function shows, styles or registers anything: without `ax` the axes stand on a fresh figure of their own, `axes.figure`,
and both are pictures where they end a notebook's cell.
Labels are plain text; `$...$` is typeset where it is valid and shown as it is where it is not.
"""

import functools
import io

import numpy as np

from numdl import checks

# Okabe and Ito's colours, told apart by nearly everyone; black is kept for what was predicted
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
SCALES = (False, True, "x", "y", "both")


def figure(*, width=6.4, height=4.2):
    """A new figure, in inches, that belongs to no window and no pyplot: `figure().subplots(1, 2)`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    width, height = checks.positive("width", width, shape=()), checks.positive("height", height, shape=())
    made = _visible()[0](figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def prediction_and_measurement(
    x, predicted, samples, *, ax=None, label="measured", xlabel="", ylabel="", log=False, color=None
):
    """Theory as a line, the mean over seeds as dots with one standard error, and the band of 80 % of the seeds.

    Parameters
    ----------
    x, predicted : array, shape (X,)
    samples : array, shape (seeds, X)
    ax : Axes               where to draw; None makes a figure
    label : str             the measured series' name in the legend
    xlabel, ylabel : str    with units
    log : bool or str       True or "y": logarithmic values; "x", "both"
    color : str             None takes the first of COLORS that the axes do not show yet
    Raises
    ------
    ValueError              shapes that do not fit, another `log`
    """
    _checked_axes(ax)
    x, predicted, samples = _numbers("x", x, 1), _numbers("predicted", predicted, 1), _numbers("samples", samples, 2)
    if x.size != predicted.size:
        raise checks.BadValue(f"predicted must have the length of x, {x.shape}; got {predicted.shape}")
    checks.shape("samples", samples, (None, x.size))
    checks.one_of("log", log, SCALES)
    ax, color = _axes(ax), color or _fresh(ax)
    _band(ax, x, samples, color)
    stderr = _standard_error(samples)
    ax.errorbar(x, samples.mean(axis=0), stderr, fmt="o", color=color, ms=4, elinewidth=1, label=label, zorder=3)
    _dashed(ax, x, predicted, "predicted")
    if log:
        ax.set_yscale("log" if log in (True, "y", "both") else "linear")
        ax.set_xscale("log" if log in ("x", "both") else "linear")
    return _finish(ax, xlabel, ylabel)


def agreement(record, *, x=None, ax=None, label="measured", xlabel="index", limit=6.0, color=None):
    """How far the measurement is from the prediction, in standard errors, point by point.

    Parameters
    ----------
    record : Agreement      `statistics.agreement(predicted, samples)`; its z may have any shape and is drawn in order
    x : array               positions; None counts from 1
    limit : scalar          standard errors beyond which a difference is no accident, drawn as two lines
    """
    _checked_axes(ax)
    z = np.ravel(_field("record", record, "z"))
    x = np.arange(1, z.size + 1) if x is None else _numbers("x", x, 1)
    checks.shape("x", x, z.shape)
    limit = checks.positive("limit", limit, shape=())
    ax, color = _axes(ax), color or _fresh(ax)
    ax.axhspan(-2, 2, color="0.92", linewidth=0, zorder=0, label=_once(ax, "±2 standard errors"))
    _dashed(ax, x, np.zeros_like(z), "predicted")
    for side in (-limit, limit):
        ax.axhline(side, color="0.55", linewidth=1, zorder=1)
    ax.plot(x, z, "o", color=color, markersize=4, label=label, zorder=3)
    return _finish(ax, xlabel, "measured - predicted (standard errors)")


def phase_diagram(record, *, ax=None):
    """chi_1 over the plane of variances: where gradients vanish, where they explode, and the line between.

    Thin lines: gradients change e-fold within 10 layers, |ln chi_1| = 1/10. Colours are cut at a factor of e a layer.

    Parameters
    ----------
    record : PhaseDiagram   weight_variances (W,), bias_variances (B,), chi_1 (W, B)
    """
    _checked_axes(ax)
    weights, biases = (_field("record", record, name) for name in ("weight_variances", "bias_variances"))
    chi = _field("record", record, "chi_1")
    checks.shape("record.chi_1", chi, (weights.size, biases.size))
    ax = _axes(ax)
    slope = np.log(np.where(chi > 0, chi, np.nan)).T
    mesh = ax.pcolormesh(weights, biases, slope, cmap="RdBu_r", vmin=-1, vmax=1, shading="nearest", rasterized=True)
    bar = ax.figure.colorbar(mesh, ax=ax, extend="both", ticks=[-1, -0.5, 0, 0.5, 1])
    bar.set_label("ln χ₁: growth of squared gradients per layer")
    if min(slope.shape) > 1:
        _contour(ax, weights, biases, slope, (-0.1, 0.1), colors="0.25", linewidths=0.7, linestyles="-")
        _contour(ax, weights, biases, slope, (0.0,), colors="black", linewidths=2, linestyles="--")
    ax.plot([], [], "k--", linewidth=2, label="critical, χ₁ = 1")
    ax.plot([], [], color="0.25", linewidth=0.7, label="10 layers per factor e")
    _name(ax, weights, biases, slope < 0, "ordered\ngradients vanish")
    _name(ax, weights, biases, slope > 0, "chaotic\ngradients explode")
    ax.margins(0)
    return _finish(ax, "weight variance (fan_in · Var W)", "bias variance")


def product_norm(depths, predicted, log_samples, *, ax=None, label="measured", color=None):
    """Squared length of K_l ... K_1 y by depth: theory's mean and typical value, measured median and 80 % band.

    Values are drawn as powers of ten of a linear axis, so that no depth leaves the range of numbers.

    Parameters
    ----------
    depths : array, shape (L,)              layers
    predicted : ProductNorm                 log_of_mean and log_mean, each (L,); a log_mean of nan is not drawn
    log_samples : array, shape (draws, L)   natural logarithm of the squared length, or of its ratio to |y|^2
    """
    from matplotlib.ticker import MaxNLocator

    _checked_axes(ax)
    depths, logs = _numbers("depths", depths, 1), _numbers("log_samples", log_samples, 2)
    if logs.shape[1] != depths.size:
        raise checks.BadValue(
            f"log_samples must have a column for each of the depths; got shape {logs.shape} for depths {depths.shape}"
        )
    mean, typical = (_field("predicted", predicted, name) for name in ("log_of_mean", "log_mean"))
    checks.shape("predicted.log_of_mean", mean, depths.shape)
    ax, color = _axes(ax), color or _fresh(ax)
    tens = np.log(10.0)
    _band(ax, depths, logs / tens, color)
    every = max(1, depths.size // 20)
    median = np.median(logs, axis=0) / tens
    ax.plot(depths[::every], median[::every], "o", color=color, markersize=3.5, label=label, zorder=3)
    _dashed(ax, depths, mean / tens, "predicted mean")
    if typical.shape == depths.shape and np.isfinite(typical).any():
        ax.plot(depths, typical / tens, "k:", linewidth=1.4, zorder=4, label=_once(ax, "predicted typical (exp E ln)"))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.yaxis.set_major_formatter(lambda power, _: f"$10^{{{power:g}}}$")
    return _finish(ax, "depth (layers)", "squared length / |y|²")


def layers(flow, *, ax=None):
    """What each layer does to signals and gradients: rms of the state and of its per-example gradient, layer by layer.

    Triangles mark layers whose state holds numbers that are not finite.

    Parameters
    ----------
    flow : LayerFlow        of `analysis.layers.probe`: names, state_rms, state_gradient_rms, state_nonfinite, each (L,)
    """
    _checked_axes(ax)
    for name in ("state_rms", "state_gradient_rms", "state_nonfinite"):
        _field("flow", flow, name)
    ax = _axes(ax)
    x = np.arange(1, len(flow.names) + 1)
    rows = (("state", flow.state_rms), ("gradient of the state, per example", flow.state_gradient_rms))
    for color, (label, values) in zip(COLORS, rows, strict=False):
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
    return _finish(ax, "" if x.size <= 20 else "layer, in call order", "root mean square")


def tidy(ax):
    """Axes with two spines and a faint grid; done to axes that numdl makes, offered for yours."""
    _checked_axes("None" if ax is None else ax)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)
    return ax


def _numbers(name, value, ndim):
    """An array of float64 with so many axes."""
    return np.asarray(checks.array(name, value, ndim=ndim), dtype=float)


def _field(name, record, field):
    """A record's field as an array of float64."""
    if not hasattr(record, field):
        raise checks.BadType(f"{name} must be a record with the field {field}; got {checks.shown(record)}")
    return np.asarray(checks.array(f"{name}.{field}", getattr(record, field), empty=True), dtype=float)


def _checked_axes(ax):
    if ax is not None and not (hasattr(ax, "plot") and hasattr(ax, "spines")):
        raise checks.BadType(f"ax must be Axes of matplotlib; got {ax!r:.60}")
    return ax


def _axes(ax):
    return tidy(figure().add_subplot(axes_class=_visible()[1])) if ax is None else ax


@functools.cache
def _visible():
    """Figure and Axes that a notebook shows as pictures without pyplot; matplotlib is loaded at first use."""
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    class Drawing(Figure):
        def _repr_png_(self):
            picture = io.BytesIO()
            self.savefig(picture, format="png", dpi=80)
            return picture.getvalue()

    class DrawnAxes(Axes):
        def _repr_png_(self):
            return self.get_figure(root=True)._repr_png_()

    return Drawing, DrawnAxes


def _fresh(ax):
    from matplotlib.colors import to_hex

    shown = set() if ax is None else {to_hex(line.get_color()) for line in ax.lines}
    return next((color for color in COLORS if color not in shown), COLORS[0])


def _band(ax, x, samples, color):
    if samples.shape[0] > 1:
        low, high = np.quantile(samples, (0.1, 0.9), axis=0)
        ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0, zorder=2)


def _standard_error(samples):
    return samples.std(axis=0, ddof=1) / np.sqrt(len(samples)) if len(samples) > 1 else np.zeros(samples.shape[1])


def _dashed(ax, x, y, label):
    ax.plot(x, y, "--", color="black", linewidth=1.6, label=_once(ax, label), zorder=4)


def _once(ax, label):
    """The label for a legend that does not show it yet."""
    return "_nolegend_" if label in ax.get_legend_handles_labels()[1] else label


def _contour(ax, x, y, values, levels, **look):
    inside = [level for level in levels if np.nanmin(values) < level < np.nanmax(values)]
    if inside:
        ax.contour(x, y, np.ma.masked_invalid(values), inside, **look)


def _name(ax, x, y, region, text):
    """Write a phase's name at the cell of its region that is farthest from the region's edge."""
    if region.mean() < 0.04:
        return
    from matplotlib.patheffects import withStroke

    padded = np.pad(region, 1)
    depth = np.zeros(region.shape)
    while padded.any():
        depth += padded[1:-1, 1:-1]
        core = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        padded = np.pad(core, 1)
    row, column = np.unravel_index(depth.argmax(), depth.shape)
    halo = [withStroke(linewidth=3, foreground="white")]
    ax.text(x[column], y[row], text, ha="center", va="center", path_effects=halo, zorder=5)


def _finish(ax, xlabel, ylabel):
    ax.set_xlabel(xlabel, parse_math=_typesets(xlabel))
    ax.set_ylabel(ylabel, parse_math=_typesets(ylabel))
    if any(not label.startswith("_") for label in ax.get_legend_handles_labels()[1]):
        for text in ax.legend(framealpha=0.6, edgecolor="none", fontsize="small").get_texts():
            text.set_parse_math(_typesets(text.get_text()))
    return ax


def _typesets(text):
    from matplotlib.mathtext import MathTextParser

    try:
        MathTextParser("agg").parse(text)
    except ValueError:
        return False
    return True
