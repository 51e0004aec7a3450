"""Conditions on the signal through layers: states, gradients, units. Theory's number stands beside each."""

import math

import numpy as np

from numdl.audit._conditions.form import start_law, start_variance
from numdl.audit._conditions.seen import Seen, factor

CHANGE = math.log(1e3)  # of states or gradients from end to end
THROUGH_TIME = math.log(1e3)
# The same, of a training that was seen to stay behind a shallow model.
FAILED, FAILED_IN_TIME = math.log(100), math.log(30)
MOVED = 0.1  # of the parameters: a training that moves them less does not fail for what lies between its layers
STREAM = 10.0  # growth of states that blocks add to
SATURATED, DEAD = 0.5, 0.5
ALIKE = 0.999
WIDTH = 1.0  # sum of reciprocal widths


def _severity(r):
    """A profile alone is a hint; with a training that does not move it is the cause."""
    return "likely" if r.end < 0.2 else "hint"


def _predicted_gradient(r):
    p = r.e.predicted
    return 0.5 * float(p.log_gradient[0]) if p.applies and p.log_gradient.size > 1 else math.nan


def _predicted_state(r):
    p = r.e.predicted
    with np.errstate(divide="ignore"):
        return float(np.log(p.state_rms[-2] / p.state_rms[0])) if p.applies and p.state_rms.size > 2 else math.nan


def _limit(r):
    return FAILED if r.behind and r.e.optimizer.reach > MOVED else CHANGE


def signal_vanishes(r):
    if r.normalized or not r.state_change < -_limit(r):
        return None
    return _profile(r, r.state_change, -_limit(r), _predicted_state(r), 0.8)


def signal_explodes(r):
    if not r.state_change > CHANGE:
        return None
    return _profile(r, r.state_change, CHANGE, _predicted_state(r), 0.8)


def gradient_vanishes(r):
    change = r.gradient_change
    silent = r.gradient_log.size > 2 and not np.isfinite(r.gradient_log[0]) and np.isfinite(r.gradient_log[-1])
    if silent and np.nanmax(r.e.signal.dead, initial=0) != 1:
        change = -math.inf
    if not change < -_limit(r) or r.e.predicted.spread == 0:
        return None
    # Parameters whose gradient is small for their size hardly move under descent; a scale-free method does not mind.
    if r.adaptive and change > -2 * CHANGE and r.end > 0.2:
        return None
    return _profile(r, max(change, -700.0), -_limit(r), _predicted_gradient(r), 0.7)


def gradient_explodes(r):
    if not r.gradient_change > CHANGE:
        return None
    return _profile(r, r.gradient_change, CHANGE, _predicted_gradient(r), 0.7)


def _profile(r, change, threshold, predicted, weight):
    """A change from end to end: all three numbers are factors."""
    measured, limit, expected = (math.exp(np.clip(x, -700, 700)) for x in (change, threshold, predicted))
    where, more = r.e.signal.names[r.hidden[0]], f"{factor(change)} over {len(r.hidden)} layers"
    return Seen(_severity(r), measured, limit, expected, where, more, law=start_law(r), weight=weight)


def chaotic(r):
    p = r.e.predicted
    layers, bounded = len(r.hidden), p.activation not in ("relu", "identity", "leaky_relu")
    apart = p.applies and p.chi > 1.1 and layers * math.log(p.chi) > CHANGE
    if not (apart and bounded and r.gradient_change > CHANGE / 2):
        return None
    more = f"{factor(r.gradient_change)} over {layers} layers"
    return Seen(_severity(r), p.chi, 1, p.critical_weight_variance, r.e.signal.names[0], more, weight=0.78)


def residual_scale(r):
    skips = r.e.chain is not None and any("skip" in text for texts in r.e.chain.breaks for text in texts)
    logs = r.state_log[np.isfinite(r.state_log)]
    if not skips or logs.size < 8 or r.normalized:
        return None
    inner = logs[:-1]
    # The stream's growth is seen in what reads it: from the first block to the highest states of the last third.
    growth = float(inner[-max(1, inner.size // 3) :].max() - inner[:2].max())
    if not growth > math.log(STREAM):
        return None
    more = f"{inner.size} layers ({factor(growth / (inner.size / 2))} a block)"
    scaled = math.sqrt(math.e)  # of rms: (1 + 1 / L)^(L / 2), L branches of gain 1 / sqrt(L)
    return Seen(_severity(r), math.exp(growth), STREAM, scaled, r.e.signal.names[0], more, weight=0.85)


def recurrent_explodes(r):
    gradient, state, name = r.times
    limit = FAILED_IN_TIME if r.behind else THROUGH_TIME
    if not (gradient > limit or state > limit):
        return None
    worst = max(x for x in (gradient, state) if np.isfinite(x))
    more = f"{factor(worst)} from end to end"
    return Seen(_severity(r), math.exp(min(worst, 700)), math.exp(limit), where=name, more=more, weight=0.85)


def recurrent_vanishes(r):
    gradient, _, name = r.times
    limit = FAILED_IN_TIME if r.behind else THROUGH_TIME
    if not gradient < -limit:
        return None
    # What vanishes does not come back by a smaller rate: where one learns, it is the rate.
    severity = "likely" if np.fmax(r.end, r.lower) < 0.3 and not r.unseen > 0.3 else "hint"
    more = f"gradients shrink, {factor(gradient)} from the last step to the first"
    weight = 0.6 if gradient > -THROUGH_TIME and r.e.optimizer.reach < MOVED else 0.85
    return Seen(severity, math.exp(max(gradient, -700)), math.exp(-limit), where=name, more=more, weight=weight)


def saturated(r):
    s = r.e.signal
    if s is None or not np.isfinite(s.saturated).any() or not np.nanmax(s.saturated[:-1], initial=0) > SATURATED:
        return None
    at = int(np.nanargmax(np.where(np.isfinite(s.saturated), s.saturated, -1)))
    severity = "likely" if r.end < 0.5 and r.e.trial.end.size else _severity(r)
    share, where = s.saturated[at], s.names[at]
    return Seen(severity, share, SATURATED, start_variance(r), where, f"{share:.0%}", weight=0.82)


def dead(r):
    s, t = r.e.signal, r.e.trial
    if s is not None and np.isfinite(s.dead).any() and np.nanmax(s.dead) > DEAD:
        at = int(np.nanargmax(s.dead))
        share = float(s.dead[at])
        severity = "certain" if share == 1 and r.flat_anywhere else _severity(r)
        return Seen(
            severity,
            share,
            DEAD,
            0.5 ** min(r.e.facts.examples, 50),
            s.names[at],
            f"{s.names[at]}: {share:.0%} of the units are 0 on the whole batch",
            weight=0.75,
        )
    if s is None or not t.spread_first.size or not any(name in ("relu", "relu6") for name in s.nonlinearities):
        return None
    after = float(np.min(t.spread[r.own]))
    if after < 1e-3 and r.e.function.spread > 1e-3 and r.flat:
        before, steps = r.e.function.spread, t.losses.shape[-1]
        more = f"After {steps} steps outputs no longer depend on the input (spread {after:.2g}, before {before:.2g})"
        return Seen("likely", after, 1e-3, before, "outputs", more, weight=0.6)
    return None


def collapses(r):
    s = r.e.signal
    if s is None or len(s.names) < 4 or r.e.function.shape == ():
        return None
    at = [i for i in r.hidden[:-1] if np.isfinite(s.cosine[i])]
    if len(at) < 3 or not s.cosine[at[-1]] > ALIKE or s.cosine[at[0]] > 0.99:
        return None
    severity = _severity(r)
    return Seen(severity, s.cosine[at[-1]], ALIKE, where=s.names[at[-1]], weight=0.65)


def _in_series(r):
    """Sum of the reciprocal widths of the layers one after another with no skip between, the most there is."""
    chain = r.e.chain
    skips = [any("skip" in text for text in texts) for texts in chain.breaks] if chain is not None else []
    if not any(skips):
        return float(np.sum(1 / np.maximum(r.e.signal.fan_in[r.hidden][1:], 1)))
    sums = [0.0]
    for skip, width in zip(skips[1:], chain.fan_in[1:]):
        sums = [*sums, 0.0] if skip else sums
        sums[-1] += 1 / max(float(width), 1)
    return max(sums)


def narrow(r):
    p, s = r.e.predicted, r.e.signal
    if s is None or len(r.hidden) < 4:
        return None
    width = _in_series(r)
    if not width > WIDTH:
        return None
    # Neither the trial nor the linearised network at the end of the budget gets half of the way.
    slow = r.end < 0.5 and r.forecast < 0.5 and r.repeated < 0.5
    severity = "likely" if slow or (r.end < 0.2 and r.flat_anywhere) else "hint"
    spread = p.spread if np.isfinite(p.spread) else math.sqrt(5 * width)
    return Seen(severity, width, WIDTH, spread, s.names[r.hidden[0]], weight=0.72)
