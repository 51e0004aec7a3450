"""Faults of the optimiser, its rate, its schedule, and of number formats."""

import functools

import jax
import jax.numpy as jnp
import optax

from benchmarks.diagnosis.faults import after, but, fit, report, times


def optimizer(setting, make):
    """Another rate -> transformation, made from the setting's own."""
    return setting.changed(make_optimizer=functools.partial(make, setting.make_optimizer))


def adam_epsilon(epsilon, inner, rate):
    return optax.adam(rate, eps=epsilon)


def decayed(decay, inner, rate):
    return optax.chain(optax.add_decayed_weights(decay), inner(rate))


def decoupled(decay, inner, rate):
    return optax.chain(inner(rate), _shrink(decay))


def _shrink(share):
    """Every step takes this share off all parameters."""
    return optax.stateless(lambda updates, params: jax.tree.map(lambda u, p: u - share * p, updates, params))


def clipped(norm, inner, rate):
    return optax.chain(optax.clip_by_global_norm(norm), inner(rate))


def scheduled(schedule, inner, rate):
    return optax.chain(inner(rate), optax.scale_by_schedule(schedule))


def reversed_sign(inner, rate):
    return optax.chain(inner(rate), optax.scale(-1.0))


def nothing_moves(inner, rate):
    labels = lambda params: jax.tree.map(lambda _: "stop", params)  # noqa: E731
    return optax.multi_transform({"go": inner(rate), "stop": optax.set_to_zero()}, labels)


def only_biases(inner, rate):
    kinds = lambda params: jax.tree.map(lambda leaf: "go" if leaf.ndim < 2 else "stop", params)  # noqa: E731
    return optax.multi_transform({"go": inner(rate), "stop": optax.set_to_zero()}, kinds)


def stopped(setting):
    """The parameters' gradient is stopped inside the network."""
    inner = setting.apply
    return setting.changed(apply=lambda params, x: inner(jax.lax.stop_gradient(params), x))


def as_type(setting, dtype, loss_scale=1.0):
    """Parameters and inputs in half precision."""
    inner, loss = setting.apply, setting.loss
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), setting.params)
    return setting.changed(params=params, apply=lambda p, x: inner(p, x.astype(dtype)),
                           loss=lambda out, y: loss_scale * loss(out, y))  # fmt: skip


def half_loss(setting, factor):
    """The outputs leave float16's range on their way to the loss."""
    inner = setting.apply
    return setting.changed(apply=lambda p, x: (inner(p, x) * factor).astype(jnp.float16).astype(jnp.float32) / factor)


FAULTS = [
    fit("rate_too_high", "x300", "dense dense-tanh residual", **times(rate=300)),
    fit("rate_too_high", "x30", "dense-sgd convolution attention", **times(rate=30)),
    report("rate_too_high", "x1000", "dense-equinox residual-numdl dense-haiku-sgd", **times(rate=1000)),
    report("rate_too_high", "x100", "convolution-nnx attention-linen recurrent-gru dense-gelu", **times(rate=100)),
    fit("rate_too_low", "x1e-3", "dense-sgd residual convolution recurrent-tanh", **times(rate=1e-3)),
    fit("rate_too_low", "x1e-2", "dense dense-tanh attention", **times(rate=1e-2)),
    report("rate_too_low", "x1e-4", "dense-equinox residual-numdl dense-haiku-sgd", **times(rate=1e-4)),
    report("rate_too_low", "x3e-3", "convolution-nnx attention-linen recurrent-gru dense-gelu", **times(rate=3e-3)),
    fit("optimizer_epsilon", "1", "dense dense-moons", **after(optimizer, functools.partial(adam_epsilon, 1.0))),
    report("optimizer_epsilon", "10", "dense-gelu convolution-nnx",
           **after(optimizer, functools.partial(adam_epsilon, 10.0))),
    report("optimizer_epsilon", "100", "dense-equinox dense-circles",
           **after(optimizer, functools.partial(adam_epsilon, 100.0))),
    fit("decay_too_strong", "penalty .5", "dense-sgd residual", **after(optimizer, functools.partial(decayed, 0.5))),
    fit("decay_too_strong", "10 % a step", "dense convolution", **after(optimizer, functools.partial(decoupled, 0.1))),
    report("decay_too_strong", "penalty 2", "dense-haiku-sgd residual-numdl",
           **after(optimizer, functools.partial(decayed, 2.0))),
    report("decay_too_strong", "30 % a step", "dense-equinox attention-linen",
           **after(optimizer, functools.partial(decoupled, 0.3))),
    fit("clipped_to_nothing", "1e-3", "dense-sgd residual", **after(optimizer, functools.partial(clipped, 1e-3))),
    report("clipped_to_nothing", "1e-4", "dense-haiku-sgd residual-numdl",
           **after(optimizer, functools.partial(clipped, 1e-4))),
    fit("schedule", "x.7 a step", "dense-sgd convolution", **after(optimizer, functools.partial(
        scheduled, optax.exponential_decay(1.0, 1, 0.7)))),
    fit("schedule", "10 steps", "dense", **after(optimizer, functools.partial(scheduled,
           optax.cosine_decay_schedule(1.0, 5)))),
    report("schedule", "endless warm-up", "dense-equinox residual-numdl attention-linen", **after(
        optimizer, functools.partial(scheduled, optax.linear_schedule(0.0, 1.0, 300_000)))),
    report("schedule", "x.5 a step", "dense-haiku-sgd convolution-nnx", **after(optimizer, functools.partial(
        scheduled, optax.exponential_decay(1.0, 1, 0.5)))),
    fit("batch_noise", "one", "dense-sgd residual", **but(batch_size=1, optimizer="momentum", rate=0.1)),
    report("batch_noise", "one", "dense-haiku-sgd dense-gelu", **but(batch_size=1, optimizer="momentum", rate=0.05)),
    report("batch_noise", "two", "dense-values-wide residual-haiku", **but(batch_size=2, optimizer="sgd", rate=0.3)),
    fit("needs_warmup", "post 6", "attention", **but(norm="post", depth=6, rate=0.01)),
    report("needs_warmup", "post 8", "attention-pairs", **but(norm="post", depth=8, rate=0.02)),
    fit("frozen", "nothing moves", "dense convolution", **after(optimizer, nothing_moves)),
    fit("frozen", "biases only", "dense-sgd residual", **after(optimizer, only_biases)),
    report("frozen", "stopped", "dense-equinox attention-linen residual-haiku", **after(stopped)),
    report("frozen", "nothing moves", "recurrent-gru dense-haiku-sgd", **after(optimizer, nothing_moves)),
    fit("wrong_sign", "ascent", "dense-sgd residual", **after(optimizer, reversed_sign)),
    report("wrong_sign", "ascent", "dense-gelu attention-linen recurrent-gru", **after(optimizer, reversed_sign)),
    fit("float_range", "half adam", "dense convolution", **after(as_type, jnp.float16)),
    fit("float_range", "outputs overflow", "dense-sgd", **after(half_loss, 1e5)),
    report("float_range", "half adam", "dense-equinox dense-gelu", **after(as_type, jnp.float16)),
    report("float_range", "gradient underflows", "dense-haiku-sgd residual-haiku", **after(as_type, jnp.float16, 1e-7)),
]  # fmt: skip
