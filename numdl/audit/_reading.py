"""Numbers that several rules need, from the evidence alone: skills, and what changes from layer to layer."""

import functools
import math

import numpy as np

from numdl.audit._skills import Skills


class Reading(Skills):
    """What the evidence says, in the terms of rules."""

    @functools.cached_property
    def hidden(self):
        """Indices of the layers that are not recurrent steps, taps or attention."""
        s = self.e.signal
        if s is None:
            return np.zeros(0, int)
        return np.array(
            [i for i, (kind, again) in enumerate(zip(s.kinds, s.recurrent)) if kind in ("dense", "conv") and not again],
            int,
        )

    @functools.cached_property
    def state_log(self):
        """ln of the states' rms over the hidden layers, from the first to the last."""
        return _logs(self.e.signal.state_rms[self.hidden]) if self.hidden.size else np.zeros(0)

    @functools.cached_property
    def gradient_log(self):
        return _logs(self.e.signal.gradient_rms[self.hidden]) if self.hidden.size else np.zeros(0)

    @functools.cached_property
    def gradient_change(self):
        """ln of the first layer's cotangent / the last one's."""
        logs = self.gradient_log[np.isfinite(self.gradient_log)]
        return float(logs[0] - logs[-1]) if logs.size > 1 else math.nan

    @functools.cached_property
    def state_change(self):
        """ln of the last state before the outputs / the first one."""
        logs = self.state_log[:-1] if self.state_log.size > 2 else self.state_log
        logs = np.where(np.isneginf(logs), -1e3, logs)  # a state of zeros has vanished
        logs = logs[np.isfinite(logs)]
        return float(logs[-1] - logs[0]) if logs.size > 1 else math.nan

    @functools.cached_property
    def times(self):
        """(ln gradient first / last step, ln state last / first step, layer) of the recurrence that changes most."""
        s, found = self.e.signal, [(math.nan, math.nan, "")]
        if s is None:
            return found[0]
        for name in dict.fromkeys(n.partition("[")[0] for n, again in zip(s.names, s.recurrent) if again):
            at = [i for i, n in enumerate(s.names) if n.partition("[")[0] == name]
            states, gradients = _logs(s.state_rms[at]), _logs(s.gradient_rms[at])
            # Steps may run backwards; the gradient is largest where the loss is read.
            found.append((_change(gradients[::-1]), _change(states), name))
        return max(found[1:], key=lambda f: abs(f[0]) if np.isfinite(f[0]) else 1e9, default=found[0])

    @functools.cached_property
    def normalized(self):
        """Whether inputs three times as large leave the outputs where they are."""
        return bool(self.e.function.scaled < 0.1)

    @functools.cached_property
    def dead(self):
        """Whether some layer's units are all dead: outputs that do not vary may be so by the start, not by form."""
        return bool(self.e.signal is not None and np.nanmax(self.e.signal.dead, initial=0) == 1)

    @functools.cached_property
    def alike(self):
        """Whether some layer's states are one for all examples."""
        return bool(self.e.signal is not None and np.nanmax(self.e.signal.cosine, initial=0) > 0.999)

    @functools.cached_property
    def has_attention(self):
        return self.e.signal is not None and "attention" in self.e.signal.kinds

    @functools.cached_property
    def head_share(self):
        """(best through the head - best) / (best single answer - best): what the head costs."""
        gap = self.chance - self.e.loss.floor
        known = np.isfinite(gap) and gap > 1e-6 * abs(self.chance)
        return (self.e.loss.floor_head - self.e.loss.floor) / gap if known else math.nan

    @functools.cached_property
    def adaptive(self):
        """Whether updates do not grow with the gradient."""
        return self.e.optimizer.degree_up < 0.5

    @functools.cached_property
    def over_limit(self):
        """Sharpness / the method's limit; nan for methods that are not linear."""
        p = self.e.predicted
        return p.sharpness / p.sharpness_limit if p.sharpness_limit > 0 else math.nan


def _logs(values):
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.log(np.asarray(values, float))


def _change(logs):
    logs = logs[np.isfinite(logs)]
    return float(logs[-1] - logs[0]) if logs.size > 1 else math.nan
