"""Draw the README's picture from real numbers: `python docs/picture.py` writes docs/_static/front.svg.

Left: mean squared gradients in networks of 40 tanh layers, theory's line through what 20 random networks of width 200
measure. Right: the phase diagram of tanh with these three networks in it.
"""

import pathlib
import sys

import jax
import matplotlib as mpl
import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from numdl import activations, plotting  # noqa: E402
from numdl.analysis import gradients as measured  # noqa: E402
from numdl.networks import dense  # noqa: E402
from numdl.theory import gradients as predicted  # noqa: E402
from numdl.theory import propagation  # noqa: E402

DEPTH, WIDTH, SEEDS, BIAS = 40, 200, 20, 0.05
NAMES = ("ordered: gradients vanish", "critical: they arrive", "chaotic: they explode")
COLORS = ("#0072b2", "#009e73", "#d55e00")


def variances():
    """Ordered, critical and chaotic weight variances of tanh."""
    critical = propagation.critical_weight_variance(activation=activations.tanh, bias_variance=BIAS)
    return 1.2, float(critical), 2.5


def draw():
    """The figure."""
    drawing = plotting.figure(width=9.5, height=3.5)
    left, right = drawing.subplots(1, 2, width_ratios=(1.5, 1))
    for variance, name, color in zip(variances(), NAMES, COLORS, strict=True):
        _gradients(left, variance, name, color)
        right.plot(variance, BIAS, "o", color=color, markeredgecolor="white", markersize=9, zorder=5)
    left.set(xlabel="layer", ylabel="squared gradient / at the output", yscale="log", xlim=(0, DEPTH + 1))
    left.plot([], [], "k--", label="predicted")
    left.legend(frameon=False, fontsize=8)
    left.set_title("Will the gradient arrive?", fontsize=10)
    _phases(right)
    return drawing


def _gradients(ax, variance, name, color):
    physics = {"activation": activations.tanh, "weight_variance": variance, "bias_variance": BIAS}
    network = dense.network(widths=(WIDTH,) * (DEPTH + 2), **physics)
    x = jax.random.normal(jax.random.key(1), (8, WIDTH))
    samples = np.asarray(measured.growth(jax.random.key(0), network, x, seeds=SEEDS).log_ratio, float)
    mean, spread = samples.mean(axis=0), samples.std(axis=0)
    line = predicted.growth(1.0, depth=DEPTH, **physics).log_products
    layers = np.arange(1, DEPTH + 1)
    ax.fill_between(layers, np.exp(mean - spread), np.exp(mean + spread), color=color, alpha=0.2, linewidth=0)
    ax.plot(layers, np.exp(mean), ".", color=color, markersize=4, label=name)
    ax.plot(layers, np.exp(line), "k--", linewidth=1)


def _phases(ax):
    grid = np.linspace(0.5, 3.5, 61), np.linspace(0.0, 0.3, 31)
    diagram = propagation.phase_diagram(activation=activations.tanh, weight_variances=grid[0], bias_variances=grid[1])
    ax.contourf(*grid, diagram.chi_1.T, levels=[0, 1, 9], colors=["#cfe3f1", "#f7dcc8"])
    ax.contour(*grid, diagram.chi_1.T, levels=[1], colors="k", linestyles="--", linewidths=1)
    ax.text(0.7, 0.26, "ordered", fontsize=9)
    ax.text(2.7, 0.26, "chaotic", fontsize=9)
    ax.set(xlabel="weight variance", ylabel="bias variance", xlim=(0.5, 3.5), ylim=(0, 0.3))
    ax.set_title("chi_1 = 1: the edge of chaos of tanh", fontsize=10)


if __name__ == "__main__":
    mpl.rcParams.update({"svg.hashsalt": "numdl", "svg.fonttype": "none", "font.family": "sans-serif"})
    target = HERE / "_static" / "front.svg"
    draw().savefig(target, metadata={"Date": None}, bbox_inches="tight", facecolor="white")
    print(target.stat().st_size, "bytes")
