"""A trial: a few dozen steps at several rates and orders of the data, and on one repeated batch, by one program.

What a short training shows, nothing else does: a network that dies at its first step, a rate that is too high, noise.
Losses are read on a watched batch that stays the same, and on examples that are never trained on where there is data.
"""

import functools
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numdl.audit._measured import cases, forms, labels, scores, views
from numdl.audit._skills import LAST
from numdl.audit.evidence import Ahead, Trial, empty

STEPS = 40
SEEDS = 2
FACTORS = (0.01, 0.1, 1.0, 10.0)
CHEAP = 2e10  # multiplications that a training may cost that is carried on: some seconds on one core
MOST_STEPS = 2000
MOST_RISE = 4  # trials that a warm-up may last
OVERHEAD = 1e4  # multiplications that could be done while one equation of a program is begun
BATCHES = 8  # whose gradients give the noise scale
DRAWS = 8  # of a stochastic network whose evaluation mode is not known


def run(
    case: Any,
    *,
    factors: tuple = FACTORS,
    steps: int = STEPS,
    seeds: int = SEEDS,
    watch: Callable[[int, Any], None] | None = None,
    program: Any = None,
) -> Trial:
    """MEASURED: short trainings of a Case at its rate times each factor.

    Parameters
    ----------
    case : Case                 what `examine` was given, checked
    factors : tuple of floats   of the rate; those beside 1 are left out where the rate cannot be changed
    steps, seeds : int          of each training; orders of the data
    watch : function            watch(index of the rate, parameters), called at the end of each training
    program : Program or None   of `Program(case, steps)`, where more than one training is run with it
    Returns
    -------
    Trial                       losses [R, S, T] and what became of the outputs
    """
    began = time.perf_counter()
    factors = factors if case.make is not None else (1.0,)
    rates = np.array([case.rate * f for f in factors])
    train, seen, rows = program or Program(case, steps), Seen(case), []
    steps, (rows_of, pool) = train.steps, orders(case, train.steps, seeds)
    for i, rate in enumerate(rates):
        ends = [train.start(rate, order, s, pool) for s, order in enumerate(rows_of)]
        rows.append([seen.after(*end) for end in ends])
        for end in ends if watch is not None else ():
            watch(i, end[0])
    again = rows[_own(factors)][0]["losses"]
    if case.parts[0] is not None and case.separate:
        same = np.tile(cases.count(pool[0]) - case.examples + np.arange(case.examples), (steps, 1))
        again = np.asarray(train.start(rates[_own(factors)], same, 0, pool)[2])
    found = {name: np.array([[one[name] for one in row] for row in rows], np.float64) for name in rows[0][0]}
    before, own = seen.before(), _own(factors)
    lost = _destroyed(before["start"], found["end"].mean(1), own)
    return Trial(
        rates=rates,
        factors=np.array(factors),
        repeated=np.asarray(again, np.float64),
        warmed=_warmed(case, train, seen) if lost else np.zeros(0),
        noise_scale=_noise_scale(case),
        seconds=time.perf_counter() - began,
        **before,
        **found,
    )


def _destroyed(start, ends, own):
    """Whether the own rate goes clearly less far down than a smaller one; where none was tried, not down at all."""
    end = ends[own] if np.isfinite(ends[own]) else np.inf
    least = np.fmin.reduce([start, *(0.2 * start + 0.8 * ends[:own])])
    return bool(end >= least)


def _warmed(case, train, seen):
    """[2] of the better of two warm-ups, a tenth of the budget and MOST_RISE trials: its steps, the loss later."""
    tenth, most, found = (case.steps or 10 * train.steps) // 10, MOST_RISE * train.steps, []
    for rise in sorted({min(max(tenth, 1), most), most}):
        count = -(-rise // train.steps) + 1
        if count <= chunks(case, train.steps):
            found.append((_risen(case, train, seen, rise, count), rise))
    loss, rise = min(((loss, rise) for loss, rise in found if np.isfinite(loss)), default=(math.nan, math.nan))
    return np.array([rise, loss])


def _risen(case, train, seen, rise, count):
    """Loss of the watched batch after so many programs, over the first steps of which the rate rises to the own one."""
    (order,), pool = orders(case, count * train.steps, 1)
    parts = [None] * count if order is None else order.reshape(count, train.steps, -1)
    at, state = case.moving, train.blank
    for i, part in enumerate(parts):
        at, _, _, state = train.follow(at, state, i * train.steps, case.rate, part, 0, pool, rise)
    return seen.watched(at)[0]


def orders(case: Any, steps: int, seeds: int) -> tuple[list, tuple]:
    """([seeds, steps, N] rows that each step takes, or None for all; the rows: data, the batch behind them).

    Parameters
    ----------
    case : Case
    steps, seeds : int
    """
    train, _ = case.parts
    own = case.x, case.y
    if train is None:
        return [None] * seeds, own
    n, size = cases.count(train[0]), min(case.examples, cases.count(train[0]))
    rows = []
    for seed in range(seeds):
        draw = np.random.default_rng(3 + seed)
        epochs = [np.arange(n) if case.in_order else draw.permutation(n) for _ in range(-(-steps * size // n))]
        rows.append(np.concatenate(epochs)[: steps * size].reshape(steps, size))
    return rows, jax.tree.map(lambda a, b: np.concatenate([a, b]), train, own)


class Program:
    """The compiled training of so many steps: one program for all rates and for what follows.

    It is one for each rate where a schedule needs to know its number.
    """

    def __init__(self, case: Any, steps: int = STEPS):
        self.case, self.steps = case, min(steps, case.steps) if case.steps else steps

    @functools.cached_property
    def blank(self):
        """What stands for the optimizer's state before there is one."""
        method, moving = self.case.method, self.case.moving
        return jax.tree.map(_nothing, jax.eval_shape(lambda: forms.one_update(method.own, moving)))

    def start(self, rate, order, seed, pool):
        """(parameters after the last step, after the first, losses [T]) from the case's own parameters."""
        return self.follow(self.case.moving, self.blank, 0, rate, order, seed, pool)[:3]

    def follow(self, at, state, begin, rate, order, seed, pool, rise=1):
        """(parameters, those after the first step, losses [T], the optimizer's state), from step `begin` on.

        Updates grow to their full size in the first `rise` steps.
        """
        method = self.case.method.with_rate(float(rate))
        return self.case.run(_train, method, at, state, begin, rise, order, seed, pool, steps=self.steps)


def _nothing(leaf):
    """What stands for a state that is not there yet."""
    keys = jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
    return (jnp if keys else np).zeros(leaf.shape, leaf.dtype)


def _train(form, method, moving, state, begin, rise, order, seed, pool, *, steps):
    """(parameters at the end, after the first step, losses [T], state); begin = 0 takes a new state."""
    method = method.own
    key = jax.random.fold_in(form.key, 100 + seed)
    state = jax.tree.map(lambda new, old: jnp.where(begin == 0, new, old), method.init(moving), state)

    def both(at, x, y, key):
        out = form.call(at, x, key)
        return form.value(out, y), form.recorded(out, y)

    def step(carry, t):
        at, state, first = carry
        x, y = pool if order is None else cases.take(pool, order[t])
        cost = lambda at: form.cost(at, x, y, jax.random.fold_in(key, begin + t))  # noqa: E731
        (value, shown), gradient = jax.value_and_grad(both, has_aux=True)(at, x, y, jax.random.fold_in(key, begin + t))
        update, state = forms.updated(method, gradient, state, at, value, cost)
        part = jnp.minimum(1, (begin + t + 1) / rise)
        at = jax.tree.map(lambda a, u: (a + u * part.astype(u.dtype)).astype(a.dtype), at, update)
        return (at, state, jax.tree.map(lambda f, a: jnp.where(t == 0, a, f), first, at)), shown

    count = steps if order is None else len(order)
    (at, state, first), losses = jax.lax.scan(step, (moving, state, moving), jnp.arange(count))
    return at, first, losses, state


def ahead(case: Any, program: Program, loss: Any) -> Ahead:
    """MEASURED: the training carried on at the user's rate while it is cheap, beside a shallow model of the same data.

    How far it goes is counted in operations, not in seconds, so that it is the same on every machine.

    Parameters
    ----------
    case : Case                 with data, of which some examples are kept unseen; else nothing is run
    program : Program           that the trial ran
    loss : Loss                 how targets relate to outputs, and which of two labels an output names
    Returns
    -------
    Ahead                       C looks: losses and scores of unseen examples, as the network is used; the shallow score
    """
    began = time.perf_counter()
    train, unseen = case.parts
    if unseen is None:
        return empty(Ahead)
    told = labels.scored(loss)
    score, seen = scores.scorer(case, told, loss.border), Seen(case)
    chunk, rows = program.steps, []
    (order,), pool = orders(case, chunk * max(chunks(case, chunk), 1), 1)
    at, state, count = case.moving, program.blank, len(order) // chunk
    for i, part in enumerate(order.reshape(count, chunk, -1)):
        at, _, _, state = program.follow(at, state, i * chunk, case.rate, part, 0, pool)
        if (i + 1) & i == 0 or i + LAST >= count:  # after 1, 2, 4, 8, .., and the last ones
            out = seen.used(at, unseen[0], average=loss.kind != "other")
            rows.append(((i + 1) * chunk, seen.watched(at)[0], float(seen.loss(out, unseen[1])), score(out)))
    steps, watched, losses, found = np.array(rows, float).T
    return Ahead(
        examples=score.examples,
        steps=steps,
        watched=watched,
        unseen=losses,
        score=found,
        stderr=score.stderr(out),
        chance=score.chance,
        shallow=scores.shallow(*(scores.answered(case, told, pair) for pair in (train, unseen)), told.judged),
        seconds=time.perf_counter() - began,
    )


def chunks(case: Any, chunk: int, trainings: int = 1) -> int:
    """How many times `chunk` steps are cheap, and within the budget.

    Parameters
    ----------
    case : Case
    chunk, trainings : int      steps of a program, and how many trainings share what is cheap
    """
    dear = 3 * case.examples * case.work + OVERHEAD * case.length
    most = min(MOST_STEPS, CHEAP / trainings / dear)
    return int((min(most, case.steps) if case.steps else most) // chunk)


class Seen:
    """What is read of parameters: losses of the watched and the unseen examples, the outputs' spread, evaluation."""

    def __init__(self, case):
        self.case, self.unseen, self.loss = case, case.parts[1], case.recorded
        self.evaluate = case.evaluated if case.evaluate is not None else None

    def before(self):
        """{field of Trial: value} of the parameters as they are."""
        watched, _ = self.watched(self.case.moving)
        return {
            "start": watched,
            "unseen_start": self.on_unseen(self.case.moving),
            "evaluate_start": self.evaluated(self.case.moving),
        }

    def after(self, at, first, losses):
        """{field of Trial: value} of a training that ended `at` some parameters, after its first step at others."""
        (end, spread), (after_one, spread_first) = self.watched(at), self.watched(first)
        return {
            "losses": np.asarray(losses),
            "first": after_one,
            "end": end,
            "unseen_end": self.on_unseen(at),
            "spread_first": spread_first,
            "spread": spread,
            "evaluate_end": self.evaluated(at),
        }

    def watched(self, moving):
        """(loss, standard deviation of the outputs over examples beside their size)."""
        x, y = self.case.sample
        out = self.case.forward(moving, x, self.case.key)
        first = views.joined(out, self.case.follows) if self.case.apart else None
        spread = math.nan
        if first is not None:
            size = np.sqrt(np.mean(np.square(first)))
            spread = float(np.sqrt(np.mean(np.square(first - first.mean(0)))) / max(size, 1e-30))
        return float(self.loss(out, y)), spread

    def on_unseen(self, moving):
        """Loss on the unseen examples; nan without."""
        if self.unseen is None:
            return math.nan
        return float(self.loss(self.case.forward(moving, self.unseen[0], self.case.key), self.unseen[1]))

    def used(self, moving, x, *, average):
        """The outputs as the finished network is used: in evaluation mode, where there is another."""
        if self.evaluate is not None:
            return self.evaluate(moving, x)
        if not (self.case.stochastic and average):
            return self.case.forward(moving, x, self.case.key)
        # One draw of dropout's noise is worse than the network is: the mean of some is near its evaluation mode.
        outs = [self.case.forward(moving, x, jax.random.fold_in(self.case.key, draw)) for draw in range(DRAWS)]
        return jax.tree.map(lambda *leaves: jnp.mean(jnp.stack(leaves), 0), *outs)

    def evaluated(self, moving):
        """Loss in evaluation mode; nan where it is not known."""
        x, y = self.case.sample
        return math.nan if self.evaluate is None else float(self.loss(self.evaluate(moving, x), y))


def _own(factors):
    """Which rate is the user's own."""
    return int(np.argmin(np.abs(np.log(factors))))


def _noise_scale(case):
    """tr(Sigma) / |G|^2 from the gradients of some batches: McCandlish et al. 2018, arXiv:1812.06162, appendix A."""
    train, _ = case.parts
    if train is None:
        return math.nan
    size = min(case.examples, cases.count(train[0]))
    order = np.random.default_rng(3).permutation(cases.count(train[0]))
    rows = order[: len(order) // size * size].reshape(-1, size)[:BATCHES]
    flat = [_flat(case.slope(case.moving, *(cases.take(part, index) for part in train))[1]) for index in rows]
    if len(flat) < 2:
        return math.nan
    together, count = float(np.sum(np.mean(flat, 0) ** 2)), len(flat)
    variance = size * (np.mean([np.sum(one**2) for one in flat]) - together) * count / (count - 1)
    return float(variance / max(together - variance / (size * count), 1e-30))


def _flat(tree):
    return np.concatenate([np.asarray(leaf, np.float32).ravel() for leaf in jax.tree.leaves(tree)])
