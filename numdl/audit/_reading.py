"""Numbers that several rules need, from the evidence alone: skills, ratios, whether training moved at all.

skill(L) = (floor_shared - L) / (floor_shared - floor)      0 what one answer for all examples reaches, 1 the best
"""

import dataclasses
import functools
import math

import numpy as np

from numdl.audit.evidence import Evidence

NO_BUDGET = 1000  # steps that count as the whole budget where none was given
PERFECT = 1e-3  # of the way from the loss now to the least: a single answer that comes nearer is right for all
FLAT = 0.1  # skill below which a training has learned nothing yet
UNPAIRED = 1e-3  # change of a loss when labels change places: below, it does not know which example each belongs to
FEWEST = 10  # unseen examples that the best single answer gets wrong, for a score to say much


def beyond(score: float, chance: float) -> float:
    """Skill of a score: 0 is the best single answer for all, 1 all right.

    Parameters
    ----------
    score, chance : scalars     shares of right answers or R2, of what is asked about and of that answer
    """
    return float((score - chance) / max(1 - chance, 1e-3))


@dataclasses.dataclass(frozen=True, eq=False)
class Reading:
    """What the evidence says, in the terms of rules."""

    e: Evidence

    # ---- losses and skills ----

    @functools.cached_property
    def chance(self):
        """Loss of the best single answer; the loss now where no target says what an answer is, or that one is right."""
        shared, start, floor = self.e.loss.floor_shared, self.e.loss.value, self.e.loss.floor
        if not np.isfinite(shared) or self.unanswered:
            return start
        # A start far from any answer makes each of them look right; targets may differ within an example alone.
        differ = self.answers_differ and shared - floor > PERFECT * abs(shared)
        return start if shared - floor <= PERFECT * (start - floor) and not differ else shared

    @functools.cached_property
    def answers_differ(self):
        """Whether targets that say what an answer is are not all the same."""
        data = self.e.data
        if self.e.loss.kind == "other" or data is None:
            return False
        return bool(data.labels > 1 or data.target_spread > PERFECT * max(data.target_rms, 1e-30))

    @functools.cached_property
    def residual(self):
        """Whether the outputs may be residuals: all targets are 0, and derivatives use weights again in the network."""
        loss, data, signal = self.e.loss, self.e.data, self.e.signal
        if data is None or signal is None or loss.kind in ("classes", "one-hot"):
            return False
        return data.target_rms == 0 and any("#" in name for name in signal.names)

    @functools.cached_property
    def unanswered(self):
        """Whether no target says what an answer is."""
        return self.e.loss.targets_unread or self.residual

    @functools.cached_property
    def best(self):
        """Least loss that the loss allows; of one without a bound the least that was met, a third below at least."""
        floor, size = self.e.loss.floor, max(abs(self.chance), 1.0)
        if not np.isfinite(floor):
            return self.chance - size
        if floor > self.chance - 3 * size:
            return floor
        met = np.concatenate([np.ravel(self.e.trial.end), self.e.trial.repeated, self.e.kernel.forecast])
        least = np.min(met[np.isfinite(met)], initial=self.chance)
        return float(np.clip(least, self.chance - 3 * size, self.chance - size / 3))

    def skill(self, loss):
        """Between the best single answer (0) and the best (1); far below 0 for what is not finite.

        Of a loss that does not know which example a label belongs to never above 0: it rewards no right answer.
        """
        most = 0.0 if self.e.loss.pairing < UNPAIRED else 1.0
        gap = self.chance - self.best
        if not gap > 1e-9 * max(abs(self.chance), 1e-9):
            return math.nan
        value = np.where(np.isfinite(loss), (self.chance - np.asarray(loss, float)) / gap, -5.0)
        return float(np.clip(value, -5.0, most)) if np.ndim(value) == 0 else np.clip(value, -5.0, most)

    @functools.cached_property
    def own(self):
        """Index of the user's own rate in the trial."""
        return int(np.argmin(np.abs(np.log(self.e.trial.factors)))) if self.e.trial.factors.size else 0

    @functools.cached_property
    def ends(self):
        """Skill at each rate's end, the mean over seeds: [R]."""
        end = self.e.trial.end
        return np.array([np.mean(self.skill(row)) for row in end]) if end.size else np.array([math.nan])

    @functools.cached_property
    def end(self):
        return float(self.ends[self.own])

    @functools.cached_property
    def end_spread(self):
        """Standard deviation of the own rate's skill over seeds."""
        return float(np.std(self.skill(self.e.trial.end[self.own]))) if self.e.trial.end.size else math.nan

    @functools.cached_property
    def lower(self):
        """Best skill at a smaller rate; nan where none was tried."""
        return float(np.max(self.ends[: self.own])) if self.own else math.nan

    @functools.cached_property
    def higher(self):
        return float(np.max(self.ends[self.own + 1 :])) if self.own + 1 < len(self.ends) else math.nan

    @functools.cached_property
    def warmed(self):
        """Skill at the user's rate after it rose from 0; nan where that was not run."""
        risen = self.e.trial.warmed
        return self.skill(risen[1]) if risen.size and np.isfinite(risen[1]) else math.nan

    @functools.cached_property
    def any_rate(self):
        return float(np.nanmax(self.ends))

    @functools.cached_property
    def start(self):
        return self.skill(self.e.trial.start)

    @functools.cached_property
    def unseen(self):
        end = self.e.trial.unseen_end
        return float(np.mean(self.skill(end[self.own]))) if end.size and np.isfinite(end).any() else math.nan

    @functools.cached_property
    def forecast(self):
        """Skill that the linearised network reaches at the end of the budget; nan where it was not run."""
        course = self.e.kernel.forecast
        return self.skill(course[-1]) if course.size else math.nan

    @functools.cached_property
    def forecast_ratio(self):
        """(loss after the budget - best) / (loss now - best), in function space."""
        course, start = self.e.kernel.forecast, self.e.kernel.start
        if not course.size or not np.isfinite(course[-1]) or not start > self.best:
            return math.nan
        return float((course[-1] - self.best) / (start - self.best))

    @functools.cached_property
    def progress(self):
        """Share of the way from the start to the best that the trial went at the own rate."""
        start = self.e.trial.start
        if not self.e.trial.end.size or not np.isfinite(start) or not start > self.best:
            return math.nan
        end = self.e.trial.end[self.own]
        end = np.where(np.isfinite(end), end, start + 5 * abs(start - self.best))
        return float(np.clip(np.mean((start - end) / (start - self.best)), -5, 1))

    @functools.cached_property
    def later(self):
        """Skill on unseen examples when the training was carried on: of answers, of the loss where none can be told.

        The last look, or what most of the last three saw, where the last one is a bad moment of an unsteady training.
        """
        ahead = self.e.ahead
        if not ahead.steps.size:
            return math.nan
        if not np.isfinite(ahead.score[-1]):
            return self.carried
        return beyond(max(ahead.score[-1], float(np.median(ahead.score[-3:]))), ahead.chance)

    @functools.cached_property
    def doubt(self):
        """Standard error of `beside` over examples; nan where answers cannot be told."""
        ahead = self.e.ahead
        return ahead.stderr / max(1 - ahead.chance, 1e-3) / (self.shallow if self.shallow > FLAT else 1.0)

    @functools.cached_property
    def carried(self):
        """Skill of the loss on unseen examples where the training was carried on; nan where it was not."""
        unseen = self.e.ahead.unseen
        return self.skill(min(unseen[-1], float(np.median(unseen[-3:])))) if unseen.size else math.nan

    @functools.cached_property
    def shallow(self):
        """Skill of a shallow model of the same data; nan where none could be fitted."""
        return beyond(self.e.ahead.shallow, self.e.ahead.chance)

    @functools.cached_property
    def beside(self):
        """Skill later over the shallow model's; itself where the model learns nothing either."""
        return self.later / self.shallow if self.shallow > FLAT else self.later

    @functools.cached_property
    def comparable(self):
        """Whether `later` says much: a shallow model learns something, or the network learned nearly all.

        Where both learn nothing, it may be the labels: rare and noisy ones have no better answer than the common one.
        """
        ahead = self.e.ahead
        if not math.isfinite(self.later) or ahead.examples * (1 - ahead.chance) < FEWEST:
            return False
        # Beside weighted classes or masked answers the share of right ones is not what the loss asks for.
        rewarded = not self.carried > self.later + 2 * FLAT
        return rewarded and bool(self.shallow > FLAT or self.later > 0.9)

    @functools.cached_property
    def behind(self):
        """Whether most of the budget brought it less than half as far as a shallow model comes."""
        return self.comparable and self.spent > 0.5 and self.beside < 0.5

    @functools.cached_property
    def spent(self):
        """Share of the budget for which the training was carried on; of `NO_BUDGET` steps where none was given."""
        return float(self.e.ahead.steps.max(initial=0) / (self.e.facts.steps or NO_BUDGET))

    @functools.cached_property
    def repeated(self):
        """Skill on one batch over and over."""
        course = self.e.trial.repeated
        return self.skill(course[-1]) if course.size else math.nan

    @functools.cached_property
    def flat(self):
        """Nothing was learned at the own rate: neither in the trial nor on a batch over and over."""
        return not (self.end > FLAT)

    @functools.cached_property
    def flat_anywhere(self):
        return not (self.any_rate > FLAT)

    @functools.cached_property
    def budget(self):
        """Budget in units of the trial's length; nan: no budget was given."""
        steps, tried = self.e.facts.steps, self.e.trial.losses.shape[-1] if self.e.trial.losses.size else 0
        return steps / tried if steps and tried else math.nan

    @functools.cached_property
    def bottomless(self):
        """Whether the loss of what the head can produce has no least value that a training could stand at."""
        loss = self.e.loss
        least = loss.floor_head if loss.has_head else loss.floor
        return bool(least < -3 * max(abs(loss.floor_shared), abs(loss.value), 1.0) or least < -5)

    # ---- layers ----

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
        return (
            (self.e.loss.floor_head - self.e.loss.floor) / gap
            if np.isfinite(gap) and gap > 1e-6 * abs(self.chance)
            else math.nan
        )

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
