"""Training a setting, several seeds side by side in one compiled loop."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.diagnosis.setting import stacked


def order(setting, seeds):
    """[seeds, steps, batch] row numbers: epochs in a random order, or the data's own order for ever."""
    count, size, steps = len(setting.data[0]), setting.batch_size, setting.steps
    epochs, rows = -(-steps * size // count), []
    for seed in range(seeds):
        random = np.random.default_rng([77, seed])
        epoch = (lambda random=random: random.permutation(count)) if setting.shuffle else (lambda: np.arange(count))
        rows.append(np.concatenate([epoch() for _ in range(epochs)])[: steps * size])
    return np.stack(rows).reshape(seeds, steps, size)


def train(settings, twins=(), rates=()):
    """Scores at the end [runs], losses [runs, steps], seconds: a run for each setting, then one for each twin and rate.

    The settings differ in their parameters only. The twins, if any, have the same function and data, and other
    parameters and another optimiser; both optimisers are compiled into one program.
    """
    everyone = [*settings, *(twin for twin in twins for _ in rates)]
    first, other = settings[0], (twins or settings)[0]
    rows = order(first, len(settings))
    rows = np.concatenate([rows, *[rows[:1]] * (len(twins) * len(rates))])
    paces = np.asarray([s.learning_rate for s in settings] + list(rates) * len(twins), np.float32)
    sick = np.arange(len(everyone)) < len(settings)
    run = _runner(first)

    def lane(pace, mine, *arguments):
        if not twins:
            return run(_at(first, pace), *arguments)
        return run(either(mine, _at(first, pace), _at(other, pace)), *arguments)

    begin = time.perf_counter()
    program = jax.jit(jax.vmap(lane, in_axes=(0,) * 5 + (None,) * 4))
    out = program(paces, sick, stacked(everyone), np.arange(len(everyone)), rows, *first.data, *first.held_out)
    scores, losses = (np.asarray(leaf, np.float64) for leaf in out)
    return scores, losses, time.perf_counter() - begin


def _at(setting, pace):
    """The optimiser at a traced rate, so that settings which differ in numbers only share one compiled program."""
    try:
        return setting.make_optimizer(pace)
    except jax.errors.ConcretizationTypeError:  # a schedule that looks at its first value
        return setting.optimizer


def either(flag, one, two):
    """The optimiser `one` where the flag is set, else `two`: both are computed, one is taken."""

    def update(gradient, state, params):
        both = [o.update(gradient, s, params) for o, s in zip((one, two), state)]
        taken = jax.tree.map(lambda a, b: jnp.where(flag, a, b), both[0][0], both[1][0])
        return taken, (both[0][1], both[1][1])

    return optax.GradientTransformation(lambda params: (one.init(params), two.init(params)), update)


def _runner(setting):
    def objective(params, x, y, key):
        out = setting.apply(params, x, key) if setting.stochastic else setting.apply(params, x)
        return setting.loss(out, y)

    def run(optimizer, params, seed, rows, x, y, held_x, held_y):
        key = jax.random.fold_in(jax.random.key(3), seed)

        def step(carry, now):
            params, state, number = carry
            drawn = jax.random.fold_in(key, number) if setting.stochastic else None
            value, gradient = jax.value_and_grad(objective)(params, x[now], y[now], drawn)
            update, state = optimizer.update(gradient, state, params)
            return (optax.apply_updates(params, update), state, number + 1), value

        begin = (params, optimizer.init(params), jnp.zeros((), jnp.int32))
        (params, _, _), losses = jax.lax.scan(step, begin, rows)
        return setting.metric(setting.scored(params, held_x), held_y), losses

    return run
