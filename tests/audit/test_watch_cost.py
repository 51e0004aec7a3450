"""What a watch costs at its default interval: processor seconds of a watched loop beside those of the plain one."""

import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import numdl as nd

STEPS = 800
OPTIMIZER = optax.adam(1e-3)


def apply(params, x):
    for w in params[:-1]:
        x = jax.nn.relu(x @ w)
    return x @ params[-1]


def loss(outputs, targets):
    return optax.softmax_cross_entropy_with_integer_labels(outputs, targets).mean()


@jax.jit
def step(params, state, batch):
    value, gradient = jax.value_and_grad(lambda params: loss(apply(params, batch[0]), batch[1]))(params)
    update, state = OPTIMIZER.update(gradient, state, params)
    return optax.apply_updates(params, update), state, value


def trained(batches, watched, folder=None):
    """(processor seconds a step after the first ones, the watch or None)."""
    sizes = [64, 256, 256, 10]
    keys = jax.random.split(jax.random.key(0), 3)
    params = [jax.random.normal(k, s, jnp.float32) * math.sqrt(2 / s[0]) for k, *s in zip(keys, sizes, sizes[1:])]
    state, found = OPTIMIZER.init(params), None
    if watched:
        found = nd.audit.watch(apply, loss, optimizer=OPTIMIZER, folder=folder)
    for index in range(STEPS):
        batch = batches[index % len(batches)]
        params, state, value = step(params, state, batch)
        if found is not None:
            found.update(index, params, batch, loss=value, state=state)
        if index == 1:
            jax.block_until_ready(params)
            begin = time.process_time()
    jax.block_until_ready(params)
    return (time.process_time() - begin) / (STEPS - 2), found


@pytest.mark.slow
def test_the_default_interval_costs_at_most_five_percent(tmp_path):
    x = np.random.default_rng(0).normal(size=(8, 256, 64)).astype(np.float32)
    batches = [(jnp.asarray(part), jnp.asarray((part[:, :10]).argmax(axis=1))) for part in x]
    # The first round compiles; each round has both, so that what else runs is the same for both.
    rounds = [(trained(batches, False)[0], *trained(batches, True, tmp_path / str(i))) for i in range(4)][1:]
    ratios = [watched / plain for plain, watched, _ in rounds]
    print(f"step {rounds[0][0]:.2e} s, ratios {np.round(ratios, 3)}, shares {[round(f.share, 3) for *_, f in rounds]}")
    assert min(f.share for *_, f in rounds) <= 0.05
    assert min(ratios) <= 1.05
    for *_, found in rounds:
        assert [f for f in found.findings if f.severity != "hint"] == []
        assert found.numbers()["sharpness"] > 0
