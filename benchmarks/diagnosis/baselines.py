"""What others look at before or early in training, as a score for "will not train" each: the more, the worse.

    gradient ratio   AutoTrainer's vanishing (first/last kernel gradient < 1e-3 and first < 1e-4), exploding (> 70) and
                     dying ReLU (zero share >= 0.7) at step 0
    initial loss     TheDeepChecker: distance to an uninformed network's, log(classes) or the targets' second moment
    overfit          TheDeepChecker: loss left after training on one repeated batch
    umlaut           UMLAUT: inputs outside [-1, 1], rate above 0.01 or below 1e-7
    rate finder      decades between the rate in use and the one that a sweep from 1e-6 to 10 proposes
    one step         loss after one step over the loss before

`alarm` is the threshold above which each says "will not train".
"""

import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

NAMES = ("gradient ratio", "initial loss", "overfit", "umlaut", "rate finder", "one step")
ALARM = {"gradient ratio": 1.0, "initial loss": 1.0, "overfit": 0.1, "umlaut": 0.5, "rate finder": 1.0, "one step": 1.0}
WORST = 1e3  # in the place of what is not finite
SWEEP = np.logspace(-6, 1, 100).astype(np.float32)


def scores(setting):
    """({baseline: score}, {baseline: seconds}); overfit, rate finder and one step share one program and its time."""
    found, seconds, trained = {}, {}, None
    for name, measure in MEASURES.items():
        begin = time.perf_counter()
        if measure is None:
            trained = trained or _trained(setting)
            found[name] = trained[name]
        else:
            found[name] = measure(setting)
        seconds[name] = round(time.perf_counter() - begin, 3)
        found[name] = float(np.clip(found[name], -WORST, WORST)) if np.isfinite(found[name]) else WORST
    return found, seconds


def alarms(found):
    """{baseline: whether it warns}"""
    return {name: found[name] > ALARM[name] for name in found}


def _objective(setting):
    def objective(params, x, y, key):
        out = setting.apply(params, x, key) if setting.stochastic else setting.apply(params, x)
        return setting.loss(out, y)

    return objective


def gradient_ratio(setting):
    """AutoTrainer's rules on the kernels in the order in which the network calls them; 1 is its threshold."""
    from numdl.analysis import layers

    key = jax.random.key(1)
    apply = (lambda params, x: setting.apply(params, x, key)) if setting.stochastic else setting.apply
    x, y = setting.batch
    flow = layers.probe(apply, setting.params, x, loss=lambda out: setting.loss(out, y))
    sizes = np.asarray(flow.weight_gradient_rms, float)
    gradients = jax.tree.leaves(jax.jit(jax.grad(_objective(setting)))(setting.params, x, y, key))
    flat = np.concatenate([np.asarray(g, float).ravel() for g in gradients])
    return autotrainer(sizes, float(np.mean(flat == 0)))


def autotrainer(sizes, zero_share):
    """The largest of three rules, each divided by its threshold (ratios of sizes by logarithms).

    sizes: gradient size of each kernel, first to last.
    """
    if not np.isfinite(sizes).all():
        return np.inf
    first, last = max(sizes[0], 1e-30), max(sizes[-1], 1e-30)
    vanishing = min(np.log(last / first) / np.log(1e3), np.log(first) / np.log(1e-4) if first < 1 else 0.0)
    exploding = np.log(max(sizes.max(), 1.0)) / np.log(70.0)
    return max(vanishing, exploding, zero_share / 0.7)


def initial_loss(setting):
    """|loss - expected| / expected."""
    x, y = setting.batch
    value, outputs = _value_and_outputs(setting, x, y)
    expected = expected_loss(outputs, np.asarray(y), setting.loss)
    return abs(value - expected) / max(abs(expected), 1e-12)


def _value_and_outputs(setting, x, y):
    key = jax.random.key(1)
    out = setting.apply(setting.params, x, key) if setting.stochastic else setting.apply(setting.params, x)
    return float(setting.loss(out, y)), np.asarray(out, np.float32)


def expected_loss(outputs, targets, loss):
    """log(classes) for integer labels (log 2 of one output); for values the loss of outputs that are zero."""
    if targets.dtype.kind == "i":
        return float(np.log(max(2, outputs.shape[-1])))
    return float(loss(jnp.zeros(outputs.shape), jnp.asarray(targets)))


def umlaut(setting):
    """How many of its rules on inputs and rate fire."""
    x = np.asarray(setting.data[0])
    outside = bool(np.nanmax(x) > 1 or np.nanmin(x) < -1)
    return float(outside) + float(setting.learning_rate > 0.01 or setting.learning_rate < 1e-7)


def _trained(setting):
    """One program, two runs side by side: 100 steps on one batch at the rate in use, a sweep of rates on all data."""
    count, size = len(setting.data[0]), setting.batch_size
    rows = np.random.default_rng(5).integers(0, count, (len(SWEEP), size))
    rows = np.stack([np.broadcast_to(np.arange(min(size, count)), rows.shape), rows])
    factors = np.stack([np.ones_like(SWEEP), SWEEP / np.float32(setting.learning_rate)])
    losses = np.asarray(
        jax.jit(jax.vmap(_run(setting), in_axes=(0, 0, None, None)))(rows, factors, *setting.data), float
    )
    repeated, swept = losses
    first = repeated[0]
    return {
        "overfit": _left(repeated),
        "one step": repeated[1] / first if first > 0 else 1 + (repeated[1] - first) / max(abs(first), 1e-12),
        "rate finder": abs(np.log10(setting.learning_rate / proposed_rate(SWEEP, swept))),
    }


def _left(losses):
    """Share of the first loss that is left at the end; of a loss that began at or below zero, 0 if it fell."""
    if not np.isfinite(losses[-1]):
        return np.inf
    return losses[-1] / losses[0] if losses[0] > 0 else float(losses[-1] >= losses[0])


def _run(setting):
    optimizer, objective = setting.optimizer, _objective(setting)

    def run(rows, factors, x, y):
        def step(carry, now):
            params, state = carry
            index, factor = now
            key = jax.random.key(2)
            value, gradient = jax.value_and_grad(objective)(params, x[index], y[index], key)
            update, state = optimizer.update(gradient, state, params)
            update = jax.tree.map(lambda u: (factor * u).astype(u.dtype), update)
            return (optax.apply_updates(params, update), state), value

        params = jax.tree.map(jnp.asarray, setting.params)
        return jax.lax.scan(step, (params, optimizer.init(params)), (rows, factors))[1]

    return run


def proposed_rate(rates, losses):
    """Where the smoothed loss falls most steeply before it has risen to four times its least: fastai's finder."""
    smooth, mean = [], 0.0
    for place, value in enumerate(losses):
        if not np.isfinite(value) or (smooth and value > 4 * max(min(smooth), 1e-12) and place > 10):
            break
        mean = 0.8 * mean + 0.2 * value
        smooth.append(mean / (1 - 0.8 ** (place + 1)))
    if len(smooth) < 5:
        return float(rates[0])
    return float(rates[int(np.argmin(np.gradient(np.asarray(smooth))))])


MEASURES = {"gradient ratio": gradient_ratio, "initial loss": initial_loss, "overfit": None, "umlaut": umlaut,
            "rate finder": None, "one step": None}  # fmt: skip
