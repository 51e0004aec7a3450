"""Verdicts: what the records of `analysis` say, in a word or a few sentences, with the limits that decide.

A verdict is an opinion with a stated threshold; the numbers beside it are the measurement's own.
"""

import math

import numpy as np
from jax.typing import ArrayLike

from numdl import checks
from numdl.analysis.gradients import GradientSamples
from numdl.analysis.initialization import Explanation
from numdl.analysis.refinement import Refinement
from numdl.analysis.stability import Spectrum
from numdl.audit import _initialization
from numdl.records import record, static

TRAINABLE = math.exp(6)  # squared gradients that change by more hardly train: about 6 depth scales
LIMIT = 0.05  # relative distance of the outputs from their limit below which a network is an ODE
AGREEMENT = 0.99  # of the predicted classes
ROUNDING = 1e-5  # relative changes below this are float32's rounding, which grows with the number of steps


@record
class GradientVerdict:
    """Do gradients vanish or explode between the last state and the first, and how sure is that?"""

    kind: str = static()  # vanishing | exploding | stable | undecided: the interval holds a threshold
    growth: float  # ln of the factor a layer, going back: (change from y_L to y_1) / (L - 1)
    growth_stderr: float  # over seeds
    change: float  # ln g[1] / g[L], mean over seeds whose gradient is not 0
    low: float  # interval of that mean at the confidence asked for, Student's law
    high: float
    threshold: float  # ln factor: vanishing below -threshold, exploding above
    spread: float  # standard deviation of `change` from one network to another
    dead: float  # share of seeds whose gradient at y_1 is exactly 0


@record
class InitializationAdvice:
    """What to draw weights and biases with; printed as its text."""

    weight_variance: np.ndarray  # []  fan_in * Var(W) that keeps squared gradients; nan: none can be justified
    bias_variance: np.ndarray  # []  that goes with it
    text: str = static()

    def __repr__(self):
        return str(self.text)


def gradients(
    samples: GradientSamples | ArrayLike, *, factor: float = TRAINABLE, confidence: float = 0.95
) -> GradientVerdict:
    """Vanishing, exploding or stable: the change of the squared gradient from y_L to y_1 against a stated factor.

        change = mean over seeds of (log_square[:, 0] - log_square[:, -1]),    low, high = change -+ t * stderr
        exploding: low > ln factor    vanishing: high < -ln factor    stable: both inside    else undecided

    The threshold is on the whole network, not on one layer: 5 % a layer is harmless at depth 10 and not at 1000. The
    default, e^6 = 403 in the square (20 in size), is Schoenholz's: networks train up to about 6 depth scales.

    Parameters
    ----------
    samples : GradientSamples or array [seeds, L]    natural logarithms; at least 2 seeds and 2 layers
    factor : scalar             > 1, of the squared gradient
    confidence : scalar         of Student's interval over seeds, in (0, 1)
    Raises
    ------
    ValueError, TypeError       samples of another shape, factor <= 1, confidence outside (0, 1)
    Source: Schoenholz et al. 2017, arXiv:1611.01232, figure 5, for the factor.    Experiment: b1
    """
    logs = samples.log_square if isinstance(samples, GradientSamples) else samples
    logs = np.asarray(checks.array("samples", logs), np.float64)
    if logs.ndim != 2 or min(logs.shape) < 2:
        raise checks.BadValue(f"samples must have shape (seeds, L), at least 2 of both; got {logs.shape}")
    checks.finite("factor", factor, above=1.0, shape=())
    if not 0 < checks.finite("confidence", confidence, shape=()) < 1:
        raise checks.BadValue(f"confidence must be in (0, 1); got {confidence}")
    threshold, dead = math.log(factor), float(np.mean(logs[:, 0] == -np.inf))
    change, stderr, low, high, spread = _interval(logs[logs[:, 0] != -np.inf], confidence)
    kind = "vanishing" if dead == 1 else _kind(low, high, threshold)
    gaps = logs.shape[1] - 1
    return GradientVerdict(kind, change / gaps, stderr / gaps, change, low, high, threshold, spread, dead)


def refinement(study: Refinement) -> str:
    """Whether a residual network is an ODE, in a sentence: "Yes: ...", "No: ..." or "Only in the limit: ...".

    No where other steps or solvers give numbers that are not finite, or finer steps no limit. Yes where the outputs are
    within 5 % of their limit and 99 % of the classes stay. Else only the limit is an ODE's.

    Parameters
    ----------
    study : Refinement          of `analysis.refinement.study`
    Raises
    ------
    TypeError                   something else than a Refinement
    Source: Queiruga et al. 2020, arXiv:2008.02389, for the questions; the two limits are ours.    Experiment: c4
    """
    study = checks.instance("study", study, Refinement)
    if not study.finite.all():
        return "No: with other steps or solvers its outputs are not finite."
    start, same, changes = float(study.distance[0, 0]), float(study.same[-1, -1]), study.differences[-1]
    if not changes[-1] <= min(LIMIT, max(changes[0], ROUNDING)):
        return f"No: cutting the steps does not bring its outputs to a limit (last change {changes[-1]:.2g})."
    if start <= LIMIT and same >= AGREEMENT:
        return f"Yes: its outputs are within {start:.2g} of the limit, and {same:.1%} of the classes stay."
    return (
        f"Only in the limit: its own steps are too large. Outputs are {start:.2g} from the limit, "
        f"{same:.1%} of the classes stay."
    )


def initialization(explanation: Explanation, *, bias_variance: float | None = None) -> InitializationAdvice:
    """Which weight variance to draw instead, if the chain that was measured justifies one.

    The critical one, at which squared gradients keep their size, tried on this network's own depth and input; none
    where something between the layers is no chain, or where it would cure nothing.

    Parameters
    ----------
    explanation : Explanation   of `analysis.initialization.explain`, one model's
    bias_variance : scalar      to go with it; None: the mean of the model's own
    Returns
    -------
    InitializationAdvice        weight_variance nan where none is advised
    Raises
    ------
    ValueError, TypeError       something else than an Explanation, a negative bias_variance
    Source: Schoenholz et al. 2017, arXiv:1611.01232, for the critical variance; the limits of a cure are ours.
    """
    checks.instance("explanation", explanation, Explanation)
    known = explanation.bias_variance[np.isfinite(explanation.bias_variance)]
    bias = float(known.mean()) if known.size else 0.0
    if bias_variance is not None:
        bias = float(checks.variance("bias_variance", bias_variance, shape=()))
    weight, bias, text = _initialization.advise(explanation, bias)
    return InitializationAdvice(np.float64(weight), np.float64(bias), text)


def steps(spectrum: Spectrum) -> str:
    """What to do about the step of a residual network, in sentences, from the eigenvalues along its own trajectory.

    Parameters
    ----------
    spectrum : Spectrum         of `analysis.stability.spectrum`, with its `largest_step` for a number to take
    Raises
    ------
    TypeError                   something else than a Spectrum
    Source: Hairer & Wanner, Solving ODEs II, chapter IV.2, for the step; the limits of growth and stiffness are ours.
    Experiment: c3
    """
    return " ".join(_about_steps(checks.instance("spectrum", spectrum, Spectrum)))


def _kind(low, high, threshold):
    if high < -threshold:
        return "vanishing"
    if low > threshold:
        return "exploding"
    return "stable" if -threshold < low and high < threshold else "undecided"


def _interval(logs, confidence):
    from scipy.special import stdtrit

    if len(logs) == 0:
        return -math.inf, 0.0, -math.inf, -math.inf, 0.0
    change = logs[:, 0] - logs[:, -1]
    if len(logs) == 1 or not np.isfinite(change).all():
        return float(change[0]) if len(logs) == 1 else math.nan, math.nan, math.nan, math.nan, math.nan
    spread = float(change.std(ddof=1))
    stderr = spread / math.sqrt(len(change))
    half = float(stdtrit(len(change) - 1, (1 + confidence) / 2)) * stderr
    mean = float(change.mean())
    return mean, stderr, mean - half, mean + half, spread


def _about_steps(found):
    layers = int(found.unstable.any(axis=1).sum())
    limit, step = float(found.largest_step), float(found.step)
    if layers == 0:
        yield f"The step h = {step:.3g} is stable in all {len(found.unstable)} layers."
    else:
        yield f"In {layers} of {len(found.unstable)} layers h = {step:.3g} amplifies what the equation damps."
        if limit == 0:
            yield "No step is stable: eigenvalues lie on the imaginary axis. Add damping, or take rk4 or leapfrog."
        elif np.isfinite(limit):
            times = int(np.ceil(step / limit))
            yield f"Take h <= {limit:.3g}: {times} times as many steps, or a scheme with a larger region."
    growth = found.growing.max(axis=1).clip(min=0).sum() * step
    if growth > 1:
        yield f"The equation itself lets modes grow, by up to exp({growth:.3g}) in all: shrink T or the weights."
    if np.nanmax(found.stiffness, initial=0.0) > 100 and layers:
        yield "The decay rates differ by more than 100: stiff, so that an implicit or semi-implicit step pays."
