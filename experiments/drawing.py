"""How the panels of an experiment's figure are finished: names of the axes, small titles and legends, a faint grid."""

from numdl import plotting


def dress(*panels, fontsize=8, loc="best", ncols=1, bbox_to_anchor=None, **names):
    """Names, scales and limits as `Axes.set` takes them, a legend where something has a label, two spines and a grid.

    A panel that is to have no legend, or one of its own, is left to `plotting.tidy`.
    """
    for ax in panels:
        ax.set(**names)
        ax.title.set_fontsize(10)
        if ax.get_legend_handles_labels()[1]:
            ax.legend(fontsize=fontsize, loc=loc, ncols=ncols, bbox_to_anchor=bbox_to_anchor, frameon=False)
        plotting.tidy(ax)


def legend_below(part, handles, labels, *, loc="outside lower center", fontsize=9):
    """One legend below all panels of a figure or a part of one, in as many columns as its width holds."""
    for columns in range(len(labels), 0, -1):
        legend = part.legend(handles, labels, loc=loc, ncols=columns, fontsize=fontsize, frameon=False)
        if columns == 1 or legend.get_window_extent().width < part.bbox.width:
            return legend
        legend.remove()
    return None
