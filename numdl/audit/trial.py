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

from numdl.audit._measured import cases, views
from numdl.audit.evidence import Trial

STEPS = 40
SEEDS = 2
FACTORS = (0.01, 0.1, 1.0, 10.0)
BATCHES = 8  # whose gradients give the noise scale


def run(
    case: Any,
    *,
    factors: tuple = FACTORS,
    steps: int = STEPS,
    seeds: int = SEEDS,
    watch: Callable[[int, Any], None] | None = None,
) -> Trial:
    """MEASURED: short trainings of a Case at its rate times each factor.

    Parameters
    ----------
    case : Case                 what `examine` was given, checked
    factors : tuple of floats   of the rate; those beside 1 are left out where the rate cannot be changed
    steps, seeds : int          of each training; orders of the data
    watch : function            watch(index of the rate, parameters), called at the end of each training
    Returns
    -------
    Trial                       losses [R, S, T] and what became of the outputs
    """
    began = time.perf_counter()
    factors = factors if case.make is not None else (1.0,)
    rates = np.array([case.rate * f for f in factors])
    steps = min(steps, case.steps) if case.steps else steps
    orders, pool = _orders(case, steps, seeds)
    train, seen, rows = _trainer(case, steps), _Seen(case), []
    for i, rate in enumerate(rates):
        ends = [train(case.moving, rate, order, s, pool) for s, order in enumerate(orders)]
        rows.append([seen.after(*end) for end in ends])
        for end in ends if watch is not None else ():
            watch(i, end[0])
    again = rows[_own(factors)][0]["losses"]
    if case.parts[0] is not None and case.separate:
        same = np.tile(cases.count(pool[0]) - case.examples + np.arange(case.examples), (steps, 1))
        again = np.asarray(train(case.moving, rates[_own(factors)], same, 0, pool)[2])
    found = {name: np.array([[one[name] for one in row] for row in rows], np.float64) for name in rows[0][0]}
    return Trial(
        rates=rates,
        factors=np.array(factors),
        repeated=np.asarray(again, np.float64),
        noise_scale=_noise_scale(case),
        seconds=time.perf_counter() - began,
        **seen.before(),
        **found,
    )


def _orders(case, steps, seeds):
    """([seeds, steps, N] rows that each step takes, or None for all; the rows: data, the batch behind them)."""
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


def _trainer(case, steps):
    """The compiled training: one program for all rates, or one for each where a schedule needs to know its number."""
    function = functools.partial(_train, case, steps)
    try:
        jax.eval_shape(lambda rate: case.at_rate(rate).init(case.moving), 1.0)
    except jax.errors.ConcretizationTypeError:
        known = {}

        def each(moving, rate, order, seed, pool):
            if rate not in known:
                known[rate] = case.compiled(lambda m, o, s, p: function(m, float(rate), o, s, p))
            return known[rate](moving, order, seed, pool)

        return each
    return case.compiled(function)


def _train(case, steps, moving, rate, order, seed, pool):
    """(parameters at the end, after the first step, losses [T]) of one training."""
    method = case.at_rate(rate)
    key = jax.random.fold_in(case.key, 100 + seed)
    cost = lambda at, x, y, k: jnp.asarray(case.cost(at, x, y, k), jnp.float32).reshape(())  # noqa: E731

    def step(carry, t):
        at, state, first = carry
        x, y = pool if order is None else cases.take(pool, order[t])
        value, gradient = jax.value_and_grad(cost)(at, x, y, jax.random.fold_in(key, t))
        update, state = method.update(gradient, state, at)
        at = jax.tree.map(lambda a, u: (a + u).astype(a.dtype), at, update)
        return (at, state, jax.tree.map(lambda f, a: jnp.where(t == 0, a, f), first, at)), value

    count = steps if order is None else len(order)
    (at, _, first), losses = jax.lax.scan(step, (moving, method.init(moving), moving), jnp.arange(count))
    return at, first, losses


class _Seen:
    """What is read of parameters: losses of the watched and the unseen examples, the outputs' spread, evaluation."""

    def __init__(self, case):
        self.case, self.unseen = case, case.parts[1]
        self.loss = case.compiled(lambda o, y: jnp.asarray(case.loss(o, y), jnp.float32).reshape(()))
        whole = lambda moving, x: case.evaluate(case.whole(moving), x)  # noqa: E731
        self.evaluate = case.compiled(whole) if case.evaluate is not None else None

    def before(self):
        watched, _ = self.watched(self.case.moving)
        return {
            "start": watched,
            "unseen_start": self.on_unseen(self.case.moving),
            "evaluate_start": self.evaluated(self.case.moving),
        }

    def after(self, at, first, losses):
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
        if self.unseen is None:
            return math.nan
        return float(self.loss(self.case.forward(moving, self.unseen[0], self.case.key), self.unseen[1]))

    def evaluated(self, moving):
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
