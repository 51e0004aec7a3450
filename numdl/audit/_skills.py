"""How far trainings came, in one currency, from the evidence alone: what several rules and the verdict need.

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
LAST = 3  # looks at the end of a training, one after another: a single one may be a bad moment
COMMON = 0.6  # share of the most common class from which nothing but it may be the best answer
FEWEST = 10  # unseen examples that the best single answer gets wrong, for a score to say much


def beyond(score: float, chance: float) -> float:
    """Skill of a score: 0 is the best single answer for all, 1 all right.

    Parameters
    ----------
    score, chance : scalars     shares of right answers or R2, of what is asked about and of that answer
    """
    return float((score - chance) / max(1 - chance, 1e-3))


@dataclasses.dataclass(frozen=True, eq=False)
class Skills:
    """What the evidence says of losses, scores and the budget."""

    e: Evidence

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
        if not np.isfinite(ahead.score[-1:]).any():
            return self.carried
        return beyond(max(ahead.score[-1], float(np.median(self._last(ahead.score)))), ahead.chance)

    @functools.cached_property
    def doubt(self):
        """Standard error of `beside` over examples; nan where answers cannot be told."""
        ahead = self.e.ahead
        return ahead.stderr / max(1 - ahead.chance, 1e-3) / (self.shallow if self.shallow > FLAT else 1.0)

    @functools.cached_property
    def carried(self):
        """Skill of the loss on unseen examples where the training was carried on; nan where it was not."""
        unseen = self.e.ahead.unseen
        return self.skill(min(unseen[-1], float(np.median(self._last(unseen))))) if unseen.size else math.nan

    def _last(self, looks):
        """The looks that speak of a training's end; one alone where it is not finite."""
        return looks[-LAST:] if np.isfinite(self.e.ahead.unseen[-1:]).all() else looks[-1:]

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
        if not math.isfinite(self.later) or self._missed < FEWEST:
            return False
        # Beside weighted classes or masked answers the share of right ones is not what the loss asks for.
        rewarded = not self.carried > self.later + 2 * FLAT
        return rewarded and bool(self.shallow > FLAT or self.later > 0.9)

    @functools.cached_property
    def in_vain(self):
        """Whether neither answers nor loss got better on unseen examples, and no class is so common as to excuse it.

        It may still be the labels: this says that the training comes to nothing, not that the network is at fault.
        """
        most = np.fmax(self.later, self.carried)
        if self.e.ahead.chance == 0:  # 1 - squared error / variance: no class excuses it, few examples may
            most = most + 2 * np.nan_to_num(self.doubt)
        return bool(self.e.ahead.chance < COMMON and self._missed >= FEWEST and most < FLAT)

    @property
    def _missed(self):
        """Unseen examples that the best single answer gets wrong."""
        return self.e.ahead.examples * (1 - self.e.ahead.chance)

    @functools.cached_property
    def behind(self):
        """Whether most of the budget brought it less than half as far as a shallow model comes."""
        return self.comparable and self.spent > 0.5 and self.beside < 0.5

    @functools.cached_property
    def short(self):
        """Whether most of the budget brought it clearly less far than a shallow model comes."""
        clear = self.beside + 2 * np.nan_to_num(self.doubt) < 0.85
        return self.comparable and self.spent > 0.5 and self.shallow > FLAT and bool(clear)

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
