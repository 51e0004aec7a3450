"""Plots: one function per record; it takes data and an Axes, and returns the Axes.

What was predicted is a black dashed line, what was measured is coloured dots, the band holds 80 % of the seeds. No
function shows, styles or registers anything: without `ax` the axes stand on a fresh figure of their own, `axes.figure`,
and both are pictures where they end a notebook's cell.
Labels are plain text; `$...$` is typeset where it is valid and shown as it is where it is not.
"""

from numdl.plotting._drawing import COLORS, figure, tidy
from numdl.plotting._networks import gradients, place, states, units
from numdl.plotting._records import agreement, layers, phase_diagram, prediction_and_measurement, product_norm
from numdl.plotting._trials import course, forecast, proof, rates, trial
from numdl.plotting._watched import ageing, edge, movement, watched

__all__ = [
    "COLORS",
    "ageing",
    "agreement",
    "course",
    "edge",
    "figure",
    "forecast",
    "gradients",
    "layers",
    "movement",
    "phase_diagram",
    "place",
    "prediction_and_measurement",
    "product_norm",
    "proof",
    "rates",
    "states",
    "tidy",
    "trial",
    "units",
    "watched",
]
