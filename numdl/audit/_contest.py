"""A contest: trainings of one network at several rates, each carried through as much of the budget as is cheap.

Rates are a search: powers of ten, then what lies between them around the best, and beyond it at an end. What a few
dozen steps say of a rate is its first fall; which rate a budget ends best with is seen at its end.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from numdl.audit import trial
from numdl.audit._measured import labels, scores
from numdl.audit._skills import FLAT, NO_BUDGET, beyond

FIRST = {True: (1e-4, 1e-3, 1e-2), False: (1e-3, 1e-2, 1e-1)}  # of Adam and its like, of descent
USUAL = {True: 1e-3, False: 1e-1}
MOST_RATES, MANY = 7, 4  # of a contest; of one in which nothing is learned
CONFIRMED = 3  # rates at most that are tried on other batches, too
STEPS = 60  # of each rate at least
ENOUGH = 0.95  # of all answers
LOST = -0.5  # value of a rate that blows up
MOST = 0.5  # of the budget: from then on a contest's end is taken for the training's


class Ends(NamedTuple):
    """What became of each rate."""

    rates: np.ndarray  # [R]
    losses: np.ndarray  # [R] at the end, of examples not trained on where there are any; inf: not finite
    values: np.ndarray  # [R] 1: all answers right, 0: as good as the best single answer; nan where no score is known
    start: float  # the loss before
    seen: bool  # whether most of the budget was run
    adaptive: bool  # whether updates do not grow with the gradient

    @property
    def fell(self):
        """Share of the first loss that the best rate took away."""
        return float((self.start - self.losses.min()) / max(abs(self.start), 1e-30))

    @property
    def short(self):
        """Whether the best rate leaves much to learn, whatever others make of the data."""
        value = self.values[self.best]
        return bool(value < ENOUGH) if math.isfinite(value) else self.fell < 0.5

    @property
    def learned(self):
        """Whether the best rate learned something."""
        value = self.values[self.best]
        return bool(value > 0.2) if math.isfinite(value) else self.fell > 0.1

    @property
    def best(self):
        """Index of the rate that ended best together with its neighbours: the middle of what works, not its edge."""
        if not np.isfinite(self.values).any():
            return int(np.argmin(self.losses))
        value = np.clip(np.where(np.isfinite(self.losses), np.nan_to_num(self.values, nan=LOST), LOST), LOST, 1)
        slower, faster = np.append(value[:1], value[:-1]), np.append(value[1:], value[-1:] - 0.1)
        return int(np.argmax(3 * value + slower + faster))

    @property
    def rate(self):
        """The rate to take: the best at the end; after some steps alone, one of those near the least loss.

        Of descent, whose rates have a limit, half of it where the next one blows up: another order, and it is beyond.
        """
        rate = self._taken()
        above = np.flatnonzero(self.rates > rate * (1 + 1e-9))
        edge = above.size and not np.isfinite(self.losses[above[0]]) and self.rates[above[0]] < 4 * rate
        return rate / 2 if edge and not self.adaptive else rate

    def _taken(self):
        if self.seen and self.learned:
            return float(self.rates[self.best])
        gap = self.start - self.losses.min()
        good = self.rates[self.losses <= self.losses.min() + 0.02 * abs(gap)].tolist()
        if not gap > 0.02 * abs(self.start):  # nothing was learned yet: the usual rate, not the smallest
            return min(good, key=lambda rate: abs(math.log(rate / USUAL[self.adaptive])))
        return good[0] if self.adaptive else good[(len(good) - 1) // 2]


def run(case: Any, adaptive: bool, told: labels.Answers, border: float, near: float = math.nan) -> Ends | None:
    """MEASURED: the Ends of a Case at its own rate and others, one order of the data; None if all blow up.

    Powers of ten first; then, while answers are left to get right, threefold and a third of the best.

    Parameters
    ----------
    case : Case                 what is trained
    adaptive : bool             whether its optimizer's updates do not grow with the gradient
    told, border : Answers, scalar      how targets relate to outputs, and which of two labels an output names
    near : scalar               begin with this rate, where it is a number
    """
    own = [case.rate] if math.isfinite(case.rate) else []
    first = [near] if math.isfinite(near) else [*own, *(rate for rate in FIRST[adaptive] if not _tried(rate, own))]
    program, seen, unseen = trial.Program(case, STEPS), trial.Seen(case), case.parts[1]
    chunk = program.steps
    count = max(trial.chunks(case, chunk, len(first) + 1), 1)
    drawn, pool = trial.orders(case, chunk * count, 2)
    orders = [[None] * count if order is None else order.reshape(count, chunk, -1) for order in drawn]
    score = scores.scorer(case, told, border) if unseen is not None else None
    start = seen.watched(case.moving)[0] if unseen is None else seen.on_unseen(case.moving)
    most = chunk * count > MOST * (case.steps or NO_BUDGET)

    def trained(rate, parts):
        at, state = case.moving, program.blank
        for i, part in enumerate(parts):
            at, _, losses, state = program.follow(at, state, i * chunk, rate, part, 0, pool)
            if not np.isfinite(losses[-1]):
                break
        return _end(seen, score, at, unseen, told)

    found, ends, waiting = {}, None, first
    while waiting:
        found |= {rate: trained(rate, orders[0]) for rate in waiting}
        rates = np.array(sorted(found))
        losses, values = np.array([found[rate] for rate in rates.tolist()], float).T
        if not np.isfinite(losses).any():
            return None
        ends = Ends(rates, np.where(np.isfinite(losses), losses, np.inf), values, start, most, adaptive)
        waiting = _next(ends)[: MOST_RATES - len(found)]
    again = most and drawn[0] is not None and not case.in_order and ends.learned
    return confirmed(ends, lambda rate: trained(rate, orders[1])) if again else ends


def confirmed(ends: Ends, again: Any) -> Ends:
    """The Ends where the rate that is taken was tried on other batches, too; the mean of both counts.

    Narrow and deep networks learn all in one order of the data and nothing in another.

    Parameters
    ----------
    ends : Ends
    again : function            rate -> (loss, value) at the end, on other batches
    """
    tried = set()
    while len(tried) < CONFIRMED and ends.best not in tried:
        i, losses, values = ends.best, ends.losses.copy(), ends.values.copy()
        tried.add(i)
        loss, value = again(float(ends.rates[i]))
        losses[i] = (losses[i] + loss) / 2 if math.isfinite(loss) else np.inf
        values[i] = (values[i] + value) / 2 if math.isfinite(loss) else np.nan
        ends = ends._replace(losses=losses, values=values)
    return ends


def _next(ends):
    """A third of the best rate and threefold, in round numbers, where more can be learned and neither was tried."""
    if not ends.short or (len(ends.rates) > MANY and not ends.learned):
        return []
    best = float(ends.rates[ends.best])
    return [rate for factor in (0.3, 3.0) if not _tried(rate := float(f"{factor * best:.1g}"), ends.rates)]


def _tried(rate, rates):
    return any(abs(math.log(rate / other)) < math.log(2.0) for other in rates)


def _end(seen, score, at, unseen, told):
    """(loss, skill of the answers) of the parameters at the end."""
    if unseen is None:
        return seen.watched(at)[0], math.nan
    out = seen.used(at, unseen[0], average=told.kind != "other")
    return float(seen.loss(out, unseen[1])), beyond(score(out), score.chance)


def known(loss: Any, parts: dict) -> tuple[labels.Answers, float]:
    """(Answers, border) that still hold after what a repair has changed; of kind "other" where they do not.

    Parameters
    ----------
    loss : Loss                 of the network as it was examined
    parts : dict                what the repair has changed: None stays as it was
    """
    told = labels.scored(loss)
    head = parts["apply"] is not None or parts["loss"] is not None
    moved = parts["target_shift"] is not None
    lost = {"binary": head or moved, "values": head}.get(told.kind, False)
    return (labels.Answers() if lost else told), loss.border


def poor(ends: Ends, shallow: float, share: float = 0.97) -> bool:
    """Whether even the best rate ends short of this share of what can be learned, as far as is known.

    Parameters
    ----------
    ends : Ends
    shallow : scalar            skill of a shallow model of the same data; nan where none could be fitted
    share : scalar              of that skill; of all answers where it has none
    """
    value = ends.values[ends.best]
    if not math.isfinite(value):
        return ends.short
    return bool(value < share * (shallow if shallow > FLAT else 1.0))


def better(new: Ends | None, old: Ends | None) -> bool:
    """Whether the best of `new` is clearly better: a twentieth of all answers, or of the loss.

    Parameters
    ----------
    new, old : Ends or None     of one loss; None where every rate blew up
    """
    if new is None or old is None:
        return new is not None
    a, b = (ends.values[ends.best] for ends in (new, old))
    if math.isfinite(a) and math.isfinite(b):
        return bool(a > b + 0.05)
    least, before = float(new.losses.min()), float(old.losses.min())
    return bool(math.isfinite(least) and least < before - 0.05 * abs(old.start))
