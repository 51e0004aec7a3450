"""Conditions on a watched run's plain numbers: each looks at `Seen` and returns what it hit, or None.

What was not measured is nan or empty and hits nothing. Many of these happen in runs that train well, so that what is
only unusual is a hint; likely needs the loss to agree, certain is algebra.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

NONE = np.zeros(0)
LONG = 50  # steps of a run that say something


@dataclasses.dataclass(frozen=True)
class Seen:
    """A watched run now: L layers, A attentions, P leaves that move; nan and empty is what was not measured."""

    step: int = 0
    steps: int = 0  # since the first one that was watched
    batch: int = 0  # examples
    losses: int = 0  # that were seen
    start: float = math.nan  # median of the first losses, of the last; least median; scatter of the last
    recent: float = math.nan
    best: float = math.nan
    noise: float = math.nan
    lost_step: int = -1  # first step whose loss was not finite
    spike_step: int = -1
    spike_size: float = 0.0  # (loss - median before) / its scatter
    spike_loss: float = math.nan
    lasting: int = 0  # losses in a row that were that high
    moved: str = ""  # leaf that moved first, and how many times its usual way
    moved_by: float = math.nan
    sharpness: float = math.nan
    residual: float = math.nan
    limit: float = math.nan
    noise_scale: float = math.nan  # examples
    leaves: tuple = ()
    leaf_rms: np.ndarray = dataclasses.field(default_factory=lambda: NONE)  # [P]
    leaf_start: np.ndarray = dataclasses.field(default_factory=lambda: NONE)
    leaf_ratio: np.ndarray = dataclasses.field(default_factory=lambda: NONE)  # |update| / |leaf| of one step
    leaf_still: np.ndarray = dataclasses.field(default_factory=lambda: NONE)  # looks in a row at which it had not moved
    leaf_gradient: np.ndarray = dataclasses.field(default_factory=lambda: NONE)
    layers: tuple = ()
    first_nonfinite: int = -1
    dead: np.ndarray = dataclasses.field(default_factory=lambda: NONE)  # [L] now and at the first look
    dead_start: np.ndarray = dataclasses.field(default_factory=lambda: NONE)
    saturated: np.ndarray = dataclasses.field(default_factory=lambda: NONE)
    saturated_start: np.ndarray = dataclasses.field(default_factory=lambda: NONE)
    rank: np.ndarray = dataclasses.field(default_factory=lambda: NONE)
    rank_start: np.ndarray = dataclasses.field(default_factory=lambda: NONE)
    cosine: np.ndarray = dataclasses.field(default_factory=lambda: NONE)
    state: np.ndarray = dataclasses.field(default_factory=lambda: NONE)  # rms
    state_start: np.ndarray = dataclasses.field(default_factory=lambda: NONE)
    gradient: np.ndarray = dataclasses.field(default_factory=lambda: NONE)  # rms of the states' cotangents
    attentions: tuple = ()
    logit: np.ndarray = dataclasses.field(default_factory=lambda: NONE)  # [A]
    logit_start: np.ndarray = dataclasses.field(default_factory=lambda: NONE)
    entropy: np.ndarray = dataclasses.field(default_factory=lambda: NONE)  # 1 uniform, 0 one key
    entropy_start: np.ndarray = dataclasses.field(default_factory=lambda: NONE)
    shut: np.ndarray = dataclasses.field(default_factory=lambda: NONE)

    @property
    def worse(self):
        """Whether the loss is above where it began, or has lost half of what it had gained, beyond its scatter."""
        margin = 3 * self.noise + 0.02 * abs(self.start)
        return self.losses >= 8 and self.recent > min(self.start, (self.start + self.best) / 2) + margin

    @property
    def stuck(self):
        """Whether the loss has not fallen beyond its scatter."""
        margin = max(2 * self.noise, 0.02 * abs(self.start))
        return self.losses >= 8 and self.steps >= LONG and self.recent >= self.start - margin

    @property
    def failing(self):
        """Whether the loss agrees that something is wrong."""
        return self.worse or self.stuck or self.lost_step >= 0


class Hit(NamedTuple):
    """What a rule found."""

    where: str
    measured: float
    predicted: float = math.nan
    severity: str = "hint"
    uncertainty: float = math.nan


def not_finite(seen):
    """The loss or a state is not finite."""
    if seen.lost_step < 0 and seen.first_nonfinite < 0:
        return None
    where = seen.layers[seen.first_nonfinite] if seen.first_nonfinite >= 0 else seen.moved
    return Hit(where, max(seen.lost_step, 0) or seen.step, severity="certain")


def spike(seen):
    """The loss is far above those before it."""
    if seen.spike_step < 0 or seen.lasting == 0 or not seen.spike_size >= 8:
        return None
    known = seen.moved_by >= 5 or seen.sharpness > 1.2 * seen.limit
    severity = "likely" if known and (seen.lasting >= 8 or seen.spike_size >= 30) else "hint"
    return Hit(seen.moved, seen.spike_size, severity=severity)


def edge(seen):
    """Sharpness beyond the method's limit; at the edge itself training hovers and goes on."""
    ratio = seen.sharpness / seen.limit if seen.limit > 0 else math.nan
    if not ratio >= 1.5:
        return None
    spiking = seen.lasting >= 8 or seen.worse or seen.lost_step >= 0
    severity = "likely" if spiking else "hint"
    return Hit("", seen.sharpness, seen.limit, severity, seen.residual)


def large_updates(seen):
    """A step changes a leaf by a tenth of its size."""
    hit = _largest(seen.leaves, seen.leaf_ratio * seen.leaf_rms / np.maximum(seen.leaf_rms, _least(seen)), 0.1)
    return hit and hit._replace(severity="likely" if hit.measured >= 0.3 and seen.failing else "hint")


def small_updates(seen):
    """No leaf moves by a millionth of its size, and the loss stays."""
    known = seen.leaf_ratio[np.isfinite(seen.leaf_ratio)]
    return Hit("", known.max()) if known.size and 0 < known.max() < 1e-6 and seen.failing else None


def frozen(seen):
    """What has a gradient has not moved for three looks."""
    still = (seen.leaf_still >= 3) & (seen.leaf_gradient > 0)
    if not still.any():
        return None
    if seen.leaf_still.min() >= 3:  # a few steps may only gather gradients, or begin a warm-up at 0
        return Hit("", 1.0, severity="certain" if seen.steps >= LONG else "hint")
    return Hit(seen.leaves[int(still.argmax())], float(still.mean()))


def dead(seen):
    """Units that were active at first are so on no example."""
    hit = _first(seen.layers, seen.dead, (seen.dead >= 0.5) & (seen.dead - seen.dead_start >= 0.2), seen.dead_start)
    if hit is None:
        return None
    if hit.measured >= 1 and seen.failing:
        return hit._replace(severity="certain")
    return hit._replace(severity="likely" if hit.measured >= 0.95 or seen.failing else "hint")


def saturated(seen):
    """Numbers that were inside their bounds at first are at them; of the outputs it is what learning a class does."""
    grown = (seen.saturated >= 0.5) & (seen.saturated - seen.saturated_start >= 0.2)
    grown[-1:] = False
    hit = _first(seen.layers, seen.saturated, grown, seen.saturated_start)
    return hit and hit._replace(severity="likely" if hit.measured >= 0.9 or seen.failing else "hint")


def logits(seen):
    """Attention's logits have grown until its softmax takes one key."""
    shrunk = (seen.entropy < 0.1) & (seen.entropy_start > 0.3)
    large = (seen.logit > 50) & (seen.logit > 5 * seen.logit_start)
    hit = _largest(seen.attentions, np.where(large & (shrunk | (seen.logit > 1e3)), seen.logit, 0), 50)
    if hit is None:
        return None
    return hit._replace(severity="likely" if hit.measured > 1e3 or seen.failing else "hint")


def growing(seen):
    """Attention's logits have grown fivefold and are large, whatever its softmax makes of them."""
    large = (seen.logit > 50) & (seen.logit > 5 * seen.logit_start)
    hit = _largest(seen.attentions, np.where(large, seen.logit, 0), 50)
    return hit and hit._replace(severity="likely" if hit.measured > 1e4 or seen.failing else "hint")


def entropy(seen):
    """Rows that were open have one key left, and the loss is the worse for it."""
    fell = (seen.entropy < 0.1) & (seen.entropy_start > 0.3) & (seen.logit > 5 * seen.logit_start)
    if not seen.failing or not fell.any():
        return None
    i = int(np.where(fell, seen.entropy, np.inf).argmin())
    severity = "likely" if seen.entropy[i] < 0.01 else "hint"
    return Hit(seen.attentions[i], float(seen.entropy[i]), float(seen.entropy_start[i]), severity)


def shut(seen):
    """A mask leaves rows without a key."""
    return _largest(seen.attentions, seen.shut, 1e-9)


def collapse(seen):
    """Inputs that differed at first look alike."""
    alike = (seen.cosine >= 0.999) & (seen.rank <= 1.05) & (seen.rank_start >= 2)
    hit = _first(seen.layers, seen.rank, alike, seen.rank_start)
    return hit and hit._replace(severity="likely" if seen.failing else "hint")


def weights(seen):
    """A leaf has grown tenfold."""
    hit = _largest(seen.leaves, seen.leaf_rms / np.maximum(seen.leaf_start, _least(seen)), 10)
    states = bool(np.any(seen.state > 10 * seen.state_start))
    return hit and hit._replace(severity="likely" if states and seen.failing else "hint")


def states(seen):
    """A layer's states have grown a hundredfold."""
    growth = np.where(seen.state_start > 0, seen.state / np.where(seen.state_start > 0, seen.state_start, 1), 0)
    hit = _first(seen.layers, growth, growth > 100)
    return hit and hit._replace(severity="likely" if seen.failing else "hint")


def vanishing(seen):
    """Gradients are lost on the way back."""
    ratio = _backward(seen)
    return (
        Hit(seen.layers[0], ratio, severity="likely" if ratio < 1e-6 and seen.stuck else "hint")
        if ratio < 1e-3
        else None
    )


def exploding(seen):
    """Gradients grow on the way back."""
    ratio = _backward(seen)
    return (
        Hit(seen.layers[0], ratio, severity="likely" if ratio > 1e6 and seen.failing else "hint")
        if ratio > 1e3
        else None
    )


def noise(seen):
    """The batch is far below the noise scale, and the loss stays."""
    ratio = seen.noise_scale / seen.batch if seen.batch else math.nan
    return Hit("", seen.noise_scale, seen.batch) if ratio > 100 and seen.stuck and seen.step >= 100 else None


def _least(seen):
    """Size below which a leaf, such as a bias that began at 0, has no size of its own to be compared with."""
    return max(0.1 * np.max(np.where(np.isfinite(seen.leaf_start), seen.leaf_start, 0), initial=0), 1e-30)


def _backward(seen):
    """Size of the first state's cotangents over that of the last's; nan unknown."""
    known = seen.gradient[np.isfinite(seen.gradient)]
    return known[0] / known[-1] if len(known) > 1 and known[-1] > 0 else math.nan


def _first(names, measured, hit, predicted=None):
    """The first place in call order, the others being its consequences."""
    if not np.any(hit):
        return None
    place = int(np.argmax(hit))
    return Hit(names[place], float(measured[place]), math.nan if predicted is None else float(predicted[place]))


def _largest(names, measured, threshold):
    """The place with the largest number above the threshold."""
    known = np.where(np.isfinite(measured), measured, 0)
    place = int(known.argmax()) if known.size else 0
    return Hit(names[place], float(known[place])) if known.size and known[place] > threshold else None
