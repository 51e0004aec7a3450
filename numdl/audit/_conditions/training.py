"""Conditions on the optimizer, the tangent kernel and the trial: pace, noise, what can be seen of the labels."""

import math

import numpy as np

from numdl.audit._conditions.seen import Seen
from numdl.audit._skills import FLAT

LOST = 0.1  # of an update, to a clip or an epsilon
VANISHED = -5.0  # ln of states or gradients from end to end
DECAY = 0.01  # of the parameters, a step
LATE, RISING = 0.02, 0.7
NOISE = 1.35  # sqrt(2 s / (1 + s)) of s = 10 times as much noise as signal
LOUD = 20.0  # noise scale over batch size
BLIND, SEEN = 2.0, 3.0  # standard scores
UNREAD = 0.2  # of an input's numbers
WORTH, EXACT = 0.3, 1e-5  # of the way to the best, lost to affine maps; bend that is rounding
SLOW = 0.7  # of the loss is left after the budget, in function space


def decay(r):
    o = r.e.optimizer
    if not o.at_zero > DECAY:
        return None
    severity = "likely" if o.decayed < 0.1 else "hint"
    return Seen(
        severity,
        o.at_zero,
        DECAY,
        where="optimizer",
        more=f"{o.decayed:.3g} is left after {o.horizon} steps",
        weight=0.85,
    )


def _gone(r):
    """Whether gradients lie below any epsilon, or few are left, which keep their direction under any method."""
    return bool(r.dead or np.fmin(r.state_change, r.gradient_change) < VANISHED)


def clipped(r):
    o = r.e.optimizer
    if not (o.lost < LOST and o.direction > 0.999) or _gone(r):
        return None
    slow = r.forecast_ratio > 0.5 or r.progress < 0.1
    return Seen("likely" if slow else "hint", o.lost, LOST, 1 / max(o.lost, 1e-30), "optimizer", weight=0.85)


def epsilon(r):
    o = r.e.optimizer
    if not (o.lost < LOST and o.direction <= 0.999):
        return None
    slow = r.forecast_ratio > 0.5 or r.progress < 0.1
    if not slow and o.lost > 0.1 * LOST:
        return None
    return Seen("likely" if slow else "hint", o.lost, LOST, where="optimizer", weight=0.65 if _gone(r) else 0.85)


def schedule(r):
    o, steps = r.e.optimizer, r.e.facts.steps
    if not steps or o.reach == 0:
        return None
    if o.late < LATE:
        more = f"All but {o.late:.1%} of the way is gone after half of the {o.horizon} steps: the rate dies."
        severity = "likely" if r.forecast_ratio > 0.3 or not r.end > 0.7 else "hint"
        return Seen(severity, o.late, LATE, 0.5, "optimizer", more, weight=0.85)
    if o.late > RISING and o.first < 0.1:
        more = f"{o.late:.0%} of the way lies in the second half of {o.horizon} steps: the warm-up outlasts the run."
        severity = "likely" if r.forecast_ratio > 0.5 else "hint"
        return Seen(severity, o.late, RISING, 0.5, "optimizer", more, weight=0.8)
    return None


def dropout(r):
    f = r.e.function
    if not f.noise > NOISE:
        return None
    severity = "likely" if r.end < 0.5 and not r.later > 0.5 else "hint"
    return Seen(severity, f.noise, NOISE, where="outputs", weight=0.85)


def evaluation(r):
    f, t = r.e.function, r.e.trial
    if not f.evaluate_distance > 0.5 or f.evaluate_distance < 2 * f.noise:
        return None
    learned = r.end > 0.2
    end = r.skill(float(np.mean(t.evaluate_end[r.own]))) if t.evaluate_end.size else math.nan
    if learned and end > 0.5 * r.end:
        return None
    return Seen("likely", f.evaluate_distance, 0.5, 0, "evaluate", weight=0.8)


def _best_factor(r):
    """The rate with the best end of the trial."""
    t = r.e.trial
    return float(t.rates[int(np.nanargmax(r.ends))]) if t.rates.size else math.nan


def rate_high(r):
    if not r.e.trial.end.size:
        return None
    if not np.isfinite(r.lower):
        return _rises(r)
    t, over = r.e.trial, r.over_limit
    beyond = f" The sharpness is {over:.3g} times the method's limit." if over > 1 else ""
    if r.end < r.lower - 0.1 and (r.end < 0.1 or r.end < 0.5 * r.lower):
        own, lower, steps = np.mean(t.end[r.own]), np.nanmin(t.end[: r.own]), t.losses.shape[-1]
        more = (
            f"From {t.start:.3g} the loss goes to {own:.3g} in {steps} steps, at a smaller rate to {lower:.3g}.{beyond}"
        )
        return Seen("likely", over if over > 0 else r.end, 1, _best_factor(r), "optimizer", more, weight=0.8)
    if over > 3 and r.end < 0.5:
        return Seen("hint", over, 1, _best_factor(r), "optimizer", beyond.strip())
    return None


def _rises(r):
    """Where no other rate can be tried."""
    t = r.e.trial
    if np.isfinite(t.end).all() and np.mean(t.end) <= 1.2 * t.start:
        return None
    more = "The loss rises from the first steps, and no other rate could be tried."
    return Seen("likely", r.over_limit, 1, where="optimizer", more=more, weight=0.7)


def warmup(r):
    if not (r.has_attention and r.adaptive and rate_high(r) is not None):
        return None
    if not r.warmed > max(0.1, np.nan_to_num(0.5 * r.lower)):
        return None
    t = r.e.trial
    more = f"The rate destroys the start: from {t.start:.3g} the loss goes to {np.mean(t.end[r.own]):.3g}. "
    more += f"Where the rate rises from 0 to the same value in {t.warmed[0]:.0f} steps it goes to {t.warmed[1]:.3g}."
    return Seen("likely", r.end, 0.1, r.warmed, "optimizer", more, weight=0.82)


def loss_scale(r):
    loss = r.e.loss
    if not 1.8 < loss.doubled < 2.2 or r.e.facts.examples < 4:
        return None
    severity = "likely" if rate_high(r) is not None else "hint"
    return Seen(severity, loss.doubled, 1.8, r.e.facts.examples, "loss", weight=0.85)


def linear(r):
    f, s = r.e.function, r.e.signal
    if s is None or len(s.names) < 2 or not f.bend < 1e-3 or r.e.loss.has_head:
        return None
    saw, lost = r.e.kernel.alignment, r.skill(f.floor_bent) - r.skill(f.floor_affine)
    more = f"{len(s.names)} layers"
    if lost > WORTH:
        more += f"; the best affine map leaves a loss of {f.floor_affine:.3g}, a small network that bends "
        more += f"{f.floor_bent:.3g}, on examples that neither was fitted to"
        return Seen("certain" if f.bend < EXACT else "likely", f.bend, 1e-3, where="network", more=more, weight=0.85)
    enough = np.isfinite(f.floor_affine)
    severity = "likely" if not enough and r.end < 0.3 and (saw < 2 * SEEN or r.unseen < 0.3) else "hint"
    return Seen(severity, f.bend, 1e-3, where="network", more=more, weight=0.85)


def cannot_see(r):
    k, f = r.e.kernel, r.e.function
    if f.blind < 1e-4 and (r.short or r.behind or (r.flat and not r.later > 0.3)):
        more = "A permutation of the positions does not change the outputs"
        return Seen("likely", f.blind, 1e-4, where="positions", more=more, weight=0.7)
    if f.unread > 0 and (r.short or r.flat) and not r.dead:
        severity = "likely" if f.unread > UNREAD else "hint"
        more = f"No output follows {f.unread:.0%} of an input's numbers"
        return Seen(severity, f.unread, UNREAD, 0, "inputs", more, weight=0.7)
    if (r.later > 0.3 and not r.behind) or r.unanswered:  # what was learned in the end can be seen
        return None
    if not (k.alignment < BLIND and k.alignment_raw > SEEN and r.flat_anywhere):
        return None
    more = f"The tangent kernel does not tell the labels apart (z = {k.alignment:.3g}); the inputs do "
    more += f"(z = {k.alignment_raw:.3g}), and no rate moves the loss"
    return Seen(_unmoved(r), k.alignment, SEEN, k.alignment_raw, "network", more, weight=0.5)


def _unmoved(r):
    """Blindness is not a start so high that the trial only comes down to chance, nor rates that move no parameter."""
    reached = r.e.optimizer.reach * np.max(r.e.trial.factors, initial=1.0)
    return "hint" if r.progress > 0.3 or reached < 0.02 else "likely"


def unrelated(r):
    k = r.e.kernel
    if r.unanswered or not (k.alignment < BLIND and k.alignment_raw < BLIND) or k.examples < 48:
        return None
    gained = r.unseen > 0.05
    if gained:
        return None
    # What it learns is the examples themselves, where neither it nor a shallow model foretells others in the end.
    by_heart = r.spent > 0.5 and r.later < FLAT and r.shallow < FLAT
    severity = _unmoved(r) if r.flat else "likely" if by_heart else "hint"
    return Seen(severity, k.alignment, BLIND, k.alignment_raw, "data", weight=0.6)


def rate_low(r):
    o, t = r.e.optimizer, r.e.trial
    if not t.end.size or o.reach == 0 or o.lost < LOST:
        return None
    slow = r.forecast_ratio > SLOW
    faster = np.isfinite(r.higher) and t.end[r.own].mean() > np.nanmin(t.end[r.own + 1 :])
    faster = faster and (r.higher > r.end + 0.02 or _in_proportion(t, r.own))
    if not slow or r.progress > 0.3 or not (faster or o.reach < 0.02):
        return None
    more = f"In function space {r.forecast_ratio:.0%} of the loss is left after {r.e.facts.steps or 'these'} steps"
    more += f"; a larger rate gets to {np.nanmin(t.end[r.own + 1 :]):.3g} in {t.losses.shape[-1]}." if faster else "."
    severity = "likely" if r.e.facts.steps else "hint"
    return Seen(severity, r.forecast_ratio, SLOW, _best_factor(r), "optimizer", more, weight=0.75)


def _in_proportion(t, own):
    """Whether a larger rate takes the loss down clearly further, and by several times as much."""
    own, further = t.start - t.end[own].mean(), t.start - np.nanmin(t.end[own + 1 :])
    return further > 3 * own and further > 0.005 * abs(t.start)


def noise(r):
    t, batch = r.e.trial, r.e.facts.examples
    loud = batch and t.noise_scale > LOUD * batch
    if not loud or not (r.end < r.lower - 0.05 or r.end_spread > 0.2):
        return None
    more = f"the end of the trial varies by {r.end_spread:.2g} from one order of the data to another"
    # A smaller rate helps against noise too: below the stability limit it is the noise that it helps against.
    weight = 0.85 if r.over_limit < 1 else 0.55
    severity = "likely" if r.end < 0.5 * r.lower else "hint"
    return Seen(severity, t.noise_scale, LOUD * batch, batch, "batch", more, r.end_spread, weight)
