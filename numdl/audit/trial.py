"""A trial: a few dozen steps at several rates and orders of the data, and on one repeated batch, in one program.

What a short training shows, nothing else does: a network that dies at its first step, a rate that is too high, noise.
Losses are read on a watched batch that stays the same, and on examples that are never trained on where there is data.
"""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numdl.audit import _case
from numdl.audit.evidence import Trial

STEPS = 40
SEEDS = 2
FACTORS = (0.01, 0.1, 1.0, 10.0)
WATCHED = 256
BATCHES = 8  # whose gradients give the noise scale


def run(case: Any, *, factors: tuple = FACTORS, steps: int = STEPS, seeds: int = SEEDS) -> Trial:
    """MEASURED: short trainings of a Case at its rate times each factor.

    Parameters
    ----------
    case : Case                 what `examine` was given, checked
    factors : tuple of floats   of the rate; those beside 1 are left out where the rate cannot be changed
    steps, seeds : int          of each training; orders of the data
    Returns
    -------
    Trial                       losses [R, S, T] and what became of the outputs
    """
    began = time.perf_counter()
    factors = factors if case.make is not None else (1.0,)
    rates = np.array([case.rate * f if case.make is not None else case.rate for f in factors])
    steps = min(steps, case.steps) if case.steps else steps
    train, watched, unseen = _split(case)
    order = _order(case, train, steps, seeds)
    found = _program(case, rates, steps, seeds, train, watched, unseen, order)
    found = jax.tree.map(lambda a: np.asarray(a, np.float64), found)
    shaped = {name: found[name].reshape(len(rates), seeds, *found[name].shape[1:]) for name in _MEASURED}
    return Trial(
        rates=rates,
        factors=np.array(factors),
        start=float(found["start"]),
        unseen_start=float(found["unseen_start"]) if unseen is not None else float("nan"),
        repeated=found["repeated"],
        evaluate_start=float(found["evaluate_start"]),
        noise_scale=float(found["noise_scale"]) if train is not None else float("nan"),
        seconds=time.perf_counter() - began,
        **shaped,
    )


_MEASURED = ("losses", "first", "end", "unseen_end", "spread_first", "spread", "evaluate_end")


def _split(case):
    """(training data or None, watched examples, examples never trained on or None)."""
    if case.data is None or not case.separate:
        return None, (case.x, case.y), None
    n = _case.count(case.data[0])
    order = np.random.default_rng(1).permutation(n)
    held = min(WATCHED, n // 5)
    if n - held < max(case.examples, 8) or held < 8:
        return case.data, _case.take(case.data, order[:WATCHED]), None
    train = np.sort(order[held:])  # in the order in which it came
    watched = np.random.default_rng(2).permutation(train)[:WATCHED]
    return _case.take(case.data, train), _case.take(case.data, watched), _case.take(case.data, order[:held])


def _order(case, train, steps, seeds):
    """Which examples each step takes, [seeds, steps, N]; None: the batch itself."""
    if train is None:
        return None
    n, size = _case.count(train), min(case.examples, _case.count(train))
    rows = []
    for seed in range(seeds):
        draw = np.random.default_rng(3 + seed)
        epochs = -(-steps * size // n)
        order = [np.arange(n) if case.in_order else draw.permutation(n) for _ in range(epochs)]
        rows.append(np.concatenate(order)[: steps * size].reshape(steps, size))
    return np.stack(rows)


def _program(case, rates, steps, seeds, train, watched, unseen, order):
    cost = functools.partial(_quiet_cost, case)

    def evaluated(moving):
        if case.evaluate is None:
            return jnp.asarray(jnp.nan)
        return jnp.asarray(case.loss(case.evaluate(case.whole(moving), watched[0]), watched[1]), jnp.float32)

    def of(moving, batch, key):
        return jnp.asarray(jnp.nan) if batch is None else cost(moving, *batch, key)

    def spread(moving):
        out = jax.tree.leaves(case.plain(moving, watched[0]))[0].astype(jnp.float32)
        if out.ndim == 0 or not case.separate:
            return jnp.asarray(jnp.nan)
        return jnp.sqrt(jnp.mean(jnp.square(out - out.mean(0)))) / jnp.maximum(
            jnp.sqrt(jnp.mean(jnp.square(out))), 1e-30
        )

    def one(moving, rate, order, seed, batches):
        method = case.at_rate(rate)
        key = jax.random.fold_in(case.key, 100 + seed)

        def step(carry, t):
            at, state, after = carry
            x, y = batches if order is None else _case.take(batches, order[t])
            value, gradient = jax.value_and_grad(cost)(at, x, y, jax.random.fold_in(key, t))
            update, state = method.update(gradient, state, at)
            at = jax.tree.map(lambda a, u: (a + u).astype(a.dtype), at, update)
            after = jax.lax.cond(t == 0, lambda: (cost(at, *watched, key), spread(at)), lambda: after)
            return (at, state, after), value

        begin = moving, method.init(moving), (jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))
        (at, _, (first, first_spread)), losses = jax.lax.scan(step, begin, jnp.arange(steps))
        return {
            "losses": losses,
            "first": first,
            "end": cost(at, *watched, key),
            "unseen_end": of(at, unseen, key),
            "spread_first": first_spread,
            "spread": spread(at),
            "evaluate_end": evaluated(at),
        }

    def program(moving, rates, order, train):
        which = jnp.repeat(jnp.arange(len(rates)), seeds), jnp.tile(jnp.arange(seeds), len(rates))
        single = lambda r, s, o: one(moving, r, o, s, (case.x, case.y) if train is None else train)  # noqa: E731
        if order is None:
            found = jax.lax.map(lambda i: single(rates[i[0]], i[1], None), which)
            repeated = found["losses"][_own(rates, case) * seeds]
        else:
            found = jax.lax.map(lambda i: single(rates[i[0]], i[1], order[i[1]]), which)
            repeated = one(moving, rates[_own(rates, case)], None, 0, (case.x, case.y))["losses"]
        found["start"] = cost(moving, *watched, case.key)
        found["unseen_start"], found["evaluate_start"] = of(moving, unseen, case.key), evaluated(moving)
        found["repeated"] = repeated
        found["noise_scale"] = _noise_scale(case, moving, train, order) if train is not None else jnp.nan
        return found

    return case.compiled(program)(case.moving, jnp.asarray(rates, jnp.float32), order, train)


def _own(rates, case):
    """Which rate is the user's own."""
    return len(rates) - 2 if len(rates) > 2 else 0


def _quiet_cost(case, moving, x, y, key):
    return jnp.asarray(case.cost(moving, x, y, key), jnp.float32).reshape(())


def _noise_scale(case, moving, train, order):
    """tr(Sigma) / |G|^2 from the gradients of some batches: McCandlish et al. 2018, arXiv:1812.06162, appendix A."""
    size = order.shape[-1]
    some = order[0][:BATCHES]

    def square(carry, index):
        gradient = jax.grad(functools.partial(_quiet_cost, case))(moving, *_case.take(train, index), case.key)
        gradient = jax.tree.map(lambda g: g.astype(jnp.float32), gradient)
        own = sum(jnp.sum(jnp.square(leaf)) for leaf in jax.tree.leaves(gradient))
        return jax.tree.map(jnp.add, carry, gradient), own

    zero = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), moving)
    total, squares = jax.lax.scan(square, zero, some)
    count = len(some)
    together = sum(jnp.sum(jnp.square(leaf / count)) for leaf in jax.tree.leaves(total))
    variance = size * (squares.mean() - together) * count / max(count - 1, 1)
    return variance / jnp.maximum(together - variance / (size * count), 1e-30)
