"""Axes and what is drawn on them: figures that belong to no window, colours, bands, lines, labels."""

import functools
import io
from typing import TYPE_CHECKING

import numpy as np

from numdl import checks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FEW = 150.0  # largest value of a logarithmic axis over the smallest, up to which 1, 2, 5 are labels that do not touch
# Okabe and Ito's colours, distinct for nearly everyone; black is kept for what was predicted
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")


def figure(*, width: float = 6.4, height: float = 4.2) -> "Figure":
    """A new matplotlib figure that belongs to no window and no pyplot: `figure().subplots(1, 2)`.

    Parameters
    ----------
    width, height : float   inches, > 0
    Returns
    -------
    Figure                  of matplotlib, laid out "constrained"; a notebook shows it as a picture
    Raises
    ------
    ValueError, TypeError   a width or height that is not a positive number
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    width, height = checks.positive("width", width, shape=()), checks.positive("height", height, shape=())
    made = _visible()[0](figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def tidy(ax: "Axes") -> "Axes":
    """Axes with two spines and a faint grid; done to axes that numdl makes, offered for yours.

    Parameters
    ----------
    ax : Axes               of matplotlib, changed in place
    Returns
    -------
    Axes                    the same
    Raises
    ------
    TypeError               not Axes
    """
    checked("None" if ax is None else ax)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(color="0.92", linewidth=0.8)
    ax.set_axisbelow(True)
    for axis in (ax.xaxis, ax.yaxis):
        if axis.get_scale() == "log" and axis.isDefault_majloc:
            plain_powers(axis)
    return ax


def plain_powers(axis):
    """Of a logarithmic axis: 0.2, 0.5, 1 where it shows few powers of ten, else these alone; no label between."""
    from matplotlib.ticker import NullFormatter

    locator, formatter = _of_powers()
    axis.set_major_locator(locator())
    axis.set_major_formatter(formatter())
    axis.set_minor_formatter(NullFormatter())


@functools.cache
def _of_powers():
    """The two classes, made where matplotlib is wanted; they look at the limits when they draw."""
    from matplotlib import ticker

    class Locator(ticker.LogLocator):
        def tick_values(self, vmin, vmax):
            low, high = sorted((vmin, vmax))
            several = low > 0 and (high < 10 * low or (high < FEW * low and low >= 1e-3 and high < 1e5))
            self.set_params(subs=(1.0, 2.0, 5.0) if several else (1.0,))
            return super().tick_values(vmin, vmax)

    class Formatter(ticker.LogFormatterSciNotation):
        def __call__(self, x, pos=None):
            low, high = sorted(self.axis.get_view_interval())
            plain = high < FEW * low and 1e-3 <= abs(x) < 1e5
            return f"{x:g}" if plain else super().__call__(x, pos)

    return Locator, Formatter


def numbers(name, value, ndim):
    """An array of float64 with this many axes."""
    return np.asarray(checks.array(name, value, ndim=ndim), dtype=float)


def field(name, record, field):
    """A record's field as an array of float64."""
    if not hasattr(record, field):
        raise checks.BadType(f"{name} must be a record with the field {field}; got {checks.shown(record)}")
    return np.asarray(checks.array(f"{name}.{field}", getattr(record, field), empty=True), dtype=float)


def checked(ax):
    """None, or Axes of matplotlib."""
    if ax is not None and not (hasattr(ax, "plot") and hasattr(ax, "spines")):
        raise checks.BadType(f"ax must be Axes of matplotlib; got {ax!r:.60}")
    return ax


def axes(ax):
    """`ax`, or new axes on a figure of their own."""
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


def fresh_color(ax):
    """The first of COLORS that the axes do not show yet."""
    from matplotlib.colors import to_hex

    shown = set() if ax is None else {to_hex(line.get_color()) for line in ax.lines}
    return next((color for color in COLORS if color not in shown), COLORS[0])


def band(ax, x, samples, color):
    """The band between the 10 % and the 90 % quantiles of samples [seeds, X]."""
    if samples.shape[0] > 1:
        low, high = np.quantile(samples, (0.1, 0.9), axis=0)
        ax.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0, zorder=2)


def dashed(ax, x, y, label):
    """What was predicted: a black dashed line."""
    ax.plot(x, y, "--", color="black", linewidth=1.6, label=once(ax, label), zorder=4)


def once(ax, label):
    """The label for a legend that does not show it yet."""
    return "_nolegend_" if label in ax.get_legend_handles_labels()[1] else label


def contour(ax, x, y, values, levels, **look):
    """Contour lines of the levels that lie inside the values' range."""
    inside = [level for level in levels if np.nanmin(values) < level < np.nanmax(values)]
    if inside:
        ax.contour(x, y, np.ma.masked_invalid(values), inside, **look)


def name_region(ax, x, y, region, text):
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


def finish(ax, xlabel, ylabel):
    """Name the axes, add a legend where something has a label, and return the axes."""
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
