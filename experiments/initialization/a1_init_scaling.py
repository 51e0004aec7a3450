"""How long is K_3 K_2 K_1 y, and what does depth make of it?

Lecture: Ruthotto & Haber, Numerical Methods for Deep Learning, deck 6 (deep networks)

Question
--------
A signal y in R^100 passes three random 100 x 100 matrices. The lecture samples their entries from N(0, 1), from
U[-0.5, 0.5] and from U[-0.05, 0.05] and asks how |K_3 K_2 K_1 y| compares with |y|. Which initialisation keeps the
length, and does it still keep it after 100 layers?

Prediction
----------
For independent entries of variance s^2, E|K_L ... K_1 y|^2 = (n s^2)^L |y|^2: at n = 100, L = 3 the ratio of squares
is 1e6, 578.70 and 5.787e-4. (The lecture's slide sets |K_3 K_2 K_1 y|^2 against |y|, not |y|^2; the ratio of squares is
the one that does not depend on y, and is used here.) For Gaussian entries ln|z|^2 gains psi(n/2) + ln(2 s^2) a layer
with variance psi_1(n/2): typical growth falls behind mean growth by about L / n in the logarithm. Orthogonal matrices
keep every length exactly. Source: Ruthotto & Haber, Numerical Methods for Deep Learning, deck 6; Hanin & Nica,
arXiv:1812.05994.

Measurement
-----------
The product itself, drawn anew for every sample and renormalised layer by layer with the logarithm of its length kept.

Verdict
-------
n = 1000 products of depth 3 and 200 of depth 100 for each of seven initialisations (20 for the orthogonal one, which
has no spread); two CPU cores, 25 s. All claims hold.
"""

import dataclasses

import jax
import numpy as np

from experiments.claiming import near, one_number
from numdl import plotting
from numdl.analysis import jacobian as measured
from numdl.networks import initializers
from numdl.records import record
from numdl.reporting import Claim
from numdl.theory import jacobian as predicted

LECTURE = "Ruthotto & Haber, deck 6 (deep networks)"
HANIN = "Hanin & Nica 2020, arXiv:1812.05994"


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    width: int = 100  # n, the length of y
    depth: int = 3  # the lecture's product
    draws: int = 1000  # products of that depth for each initialisation
    sweep_depth: int = 100  # how deep the second part goes
    sweep_draws: int = 200  # products of that depth
    orthogonal_draws: int = 20  # the same for orthogonal matrices, all alike
    seed: int = 0

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(width=30, draws=200, sweep_depth=20, sweep_draws=60, orthogonal_draws=4)


@record
class Result:
    """Natural logs of |K_l ... K_1 y|^2 / |y|^2 by initialisation, and theory's law at every depth."""

    lecture: dict  # name -> [draws]
    sweep: dict  # name -> [sweep draws, sweep depth]
    lecture_law: dict  # name -> ProductNorm at the lecture's depth
    sweep_law: dict  # name -> ProductNorm, every field [sweep depth]


def schemes(config):
    """The lecture's three laws and the four that are named after their authors, by name."""
    return {
        "N(0, 1)": initializers.normal(1.0),
        "U[-0.5, 0.5]": initializers.uniform(0.5),
        "U[-0.05, 0.05]": initializers.uniform(0.05),
        "Glorot": initializers.glorot_uniform,
        "He": initializers.he_normal,
        "LeCun": initializers.lecun_normal,
        "orthogonal": initializers.orthogonal(1.0),
    }


def run(config):
    """Sample every scheme at both depths."""
    keys = jax.random.split(jax.random.key(config.seed), 2)
    lecture, sweep, lecture_law, sweep_law = {}, {}, {}, {}
    for index, (name, scheme) in enumerate(schemes(config).items()):
        orthogonal = name == "orthogonal"
        for part, depth, draws, into, laws in (
            (0, config.depth, config.draws, lecture, lecture_law),
            (1, config.sweep_depth, config.sweep_draws, sweep, sweep_law),
        ):
            samples = measured.product_norm(
                jax.random.fold_in(keys[part], index),
                width=config.width,
                depth=depth,
                sampler=scheme.sample,
                draws=config.orthogonal_draws if orthogonal else draws,
            )
            ratio = np.asarray(samples.log_ratio, dtype=float)
            into[name] = ratio if part else ratio[:, -1]
            laws[name] = law(config.width, np.arange(1, depth + 1) if part else depth, scheme, orthogonal)
    return Result(lecture, sweep, lecture_law, sweep_law)


def law(width, depth, scheme, orthogonal):
    """Theory's law of the ratio: y is any fixed vector of length 1 whose coordinates are all alike."""
    shape = (width, width)
    kurtosis = {} if orthogonal else {"excess_kurtosis": float(scheme.excess_kurtosis(shape))}
    return predicted.product_norm(
        width=width,
        depth=depth,
        entry_variance=float(scheme.entry_variance(shape)),
        orthogonal=orthogonal,
        y=np.full(width, width**-0.5),
        **kurtosis,
    )


def claims(config, result):
    """Mean growth at the lecture's depth, spread of the logarithm, and typical growth far down."""
    made = [_mean_growth(config, name, result) for name in ("N(0, 1)", "U[-0.5, 0.5]", "U[-0.05, 0.05]", "Glorot")]
    made += [_spread(config, result), _typical_growth(config, result), _behind(config, result)]
    made += [_rounding(config, result)]
    return made


def _mean_growth(config, name, result):
    ratios = np.exp(result.lecture[name])
    law = result.lecture_law[name]
    stderr = np.sqrt(law.relative_variance / ratios.size) * law.mean
    return Claim(
        f"{name}: mean of |z|^2 / |y|^2 after {config.depth} layers of width {config.width}",
        LECTURE,
        origin="exact",
        expected=law.mean,
        measured=ratios.mean(),
        uncertainty=stderr,
        tolerance=6 * stderr,
        tolerance_from="six standard errors, the variance taken from theory",
    )


def _spread(config, result):
    logs, law = result.lecture["N(0, 1)"], result.lecture_law["N(0, 1)"]
    deviation = np.sqrt(law.log_variance)
    stderr = logs.std(ddof=1) / np.sqrt(2 * (logs.size - 1))
    return Claim(
        f"N(0, 1): standard deviation of ln(|z|^2 / |y|^2) after {config.depth} layers",
        HANIN,
        origin="exact",
        expected=deviation,
        measured=logs.std(ddof=1),
        uncertainty=stderr,
        tolerance=6 * stderr,
        tolerance_from="six standard errors",
    )


def _typical_growth(config, result):
    return near(
        f"LeCun: mean of ln(|z|^2 / |y|^2) after {config.sweep_depth} layers: typical lengths shrink",
        HANIN,
        origin="exact",
        expected=result.sweep_law["LeCun"].log_mean[-1],
        samples=result.sweep["LeCun"][:, -1],
        tolerance=0.0,
        errors=6,
        tolerance_from="six standard errors",
    )


def _behind(config, result):
    return near(
        f"He without its relu: mean of ln(|z|^2 / |y|^2) after {config.sweep_depth} layers, ln 2 a layer",
        HANIN,
        origin="exact",
        expected=result.sweep_law["He"].log_mean[-1],
        samples=result.sweep["He"][:, -1],
        tolerance=0.0,
        errors=6,
        tolerance_from="six standard errors",
    )


def _rounding(config, result):
    worst = np.abs(result.sweep["orthogonal"]).max()
    rounding = float(np.finfo(np.float32).eps) * config.width**0.5 * config.sweep_depth
    return one_number(
        f"orthogonal: largest |ln(|z|^2 / |y|^2)| over {config.sweep_depth} layers and all draws",
        "a product of orthogonal matrices is orthogonal",
        origin="exact",
        expected=0.0,
        measured=worst,
        tolerance=rounding,
        tolerance_from="rounding, float32 epsilon x sqrt(width) x depth",
    )


def figure(config, result):
    """Left the lecture's product, right the way down: mean against typical growth."""
    drawing = plotting.figure(width=11, height=4.4)
    left, right = drawing.subplots(1, 2)
    names = list(result.lecture)
    logs = [result.lecture[name] / np.log(10) for name in names]
    look = {"orientation": "horizontal", "widths": 0.6, "medianprops": {"color": plotting.COLORS[0]}}
    left.boxplot(logs, showfliers=False, whis=(5, 95), **look)
    left.plot(
        [np.log10(result.lecture_law[name].mean) for name in names],
        np.arange(1, len(names) + 1),
        "k|",
        markersize=16,
        markeredgewidth=2,
        label="predicted mean",
    )
    left.axvline(0, color="0.7", linewidth=1, zorder=0)
    left.set_yticks(np.arange(1, len(names) + 1), names)
    left.invert_yaxis()
    left.set_xlabel("log₁₀ of squared length / |y|²")
    left.set_title(f"after {config.depth} layers, width {config.width} (whiskers: 90 % of draws)", fontsize=10)
    left.legend(loc="lower right", frameon=False)
    for colour, name in zip(plotting.COLORS, ("LeCun", "orthogonal"), strict=False):
        plotting.product_norm(
            np.arange(1, config.sweep_depth + 1),
            result.sweep_law[name],
            result.sweep[name],
            ax=right,
            label=name,
            color=colour,
        )
    right.set_title("both keep the mean (dashed); only one keeps what you will see", fontsize=10)
    for ax in (left, right):
        plotting.tidy(ax)
    return drawing
