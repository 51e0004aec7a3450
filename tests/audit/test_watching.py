"""Watching a training: numbers against NumPy and dense matrices, planted faults, the file, resuming, no compilation."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

import numdl as nd
from numdl.audit import watching
from numdl.optimize import train
from tests.doors import bad, compilations, refused

KEY = jax.random.key(0)
X = np.asarray(jax.random.normal(KEY, (16, 6)))
TARGETS = np.asarray(X[:, :3] ** 2)
BATCH = (X, TARGETS)


def apply(params, x):
    for name in ("first", "second"):
        x = jax.nn.relu(x @ params[name]["w"] + params[name]["b"][None])
    return x @ params["last"]["w"]


def loss(outputs, targets):
    return jnp.mean((outputs - targets) ** 2)


def start(scale=1.0):
    sizes = {"first": (6, 8), "second": (8, 8), "last": (8, 3)}
    keys = jax.random.split(KEY, 3)
    drawn = {
        name: {
            "w": scale * np.asarray(jax.random.normal(key, size)) * math.sqrt(2 / size[0]),
            "b": 0.1 * np.ones(size[1]),
        }
        for key, (name, size) in zip(keys, sizes.items())
    }
    del drawn["last"]["b"]
    return jax.tree.map(jnp.asarray, drawn)


START = start()  # for rows that must compile nothing


def loss_of(params, batch):
    return loss(apply(params, batch[0]), batch[1])


@jax.jit
def descend(params, rate):
    value, gradient = jax.value_and_grad(loss_of)(params, BATCH)
    return jax.tree.map(lambda p, g: p - rate * g, params, gradient), value


def run(found, steps=80, rate=0.02, fault=None, first=0, params=None):
    """Plain descent, watched; `fault(step, params)` changes the parameters after a step. (params, all findings)."""
    params, findings = start() if params is None else params, []
    for step in range(first, first + steps):
        params, value = descend(params, rate)
        params = fault(step, params) if fault else params
        findings += found.update(step, params, BATCH, loss=value)
    return params, findings


def changed(params, layer, leaf, function):
    return {**params, layer: {**params[layer], leaf: function(params[layer][leaf])}}


def watched(**options):
    return nd.audit.watch(apply, loss, **{"optimizer": "sgd", "learning_rate": 0.02, "every": 10, **options})


def severe(findings):
    return [(f.name, f.where) for f in findings if f.severity != "hint"]


# ---- healthy -------------------------------------------------------------------------------------------------------


def test_a_healthy_run_has_no_severe_finding_and_right_numbers():
    found = watched()
    params, findings = run(found, 81)
    assert severe(findings) == []
    assert found.findings == tuple(findings)
    numbers = found.numbers()
    flat, unravel = ravel_pytree(params)
    hessian = np.asarray(jax.jit(jax.hessian(lambda flat: loss_of(unravel(flat), BATCH)))(flat))
    assert numbers["sharpness"] == pytest.approx(np.linalg.eigvalsh(hessian)[-1], rel=1e-3)
    assert numbers["limit"] == pytest.approx(2 / 0.02)
    assert numbers["loss"] == pytest.approx(float(loss_of(params, BATCH)), rel=1e-5)
    hidden = np.maximum(X @ np.asarray(params["first"]["w"]) + np.asarray(params["first"]["b"]), 0)
    assert numbers["dead"][0] == np.mean(hidden.max(axis=0) == 0)
    assert numbers["rank"].shape == numbers["gradient_rms"].shape == (3,)


def test_updates_and_noise_are_those_of_numpy():
    found = watched()
    params = start()
    found.update(0, params, BATCH)
    after, _ = descend(params, 0.02)
    found.update(1, after, BATCH)
    ratios = [np.linalg.norm(b - a) / np.linalg.norm(b) for a, b in zip(*map(jax.tree.leaves, (params, after)))]
    np.testing.assert_allclose(found.numbers()["update_ratio"], ratios, rtol=1e-5)
    parts = [(X[i : i + 4], TARGETS[i : i + 4]) for i in range(0, 16, 4)]
    gradient = jax.jit(jax.grad(loss_of))
    gradients = np.stack([ravel_pytree(gradient(params, part))[0] for part in parts])
    trace = 4 * np.sum((gradients - gradients.mean(axis=0)) ** 2) / 3
    scale = trace / (np.sum(gradients.mean(axis=0) ** 2) - trace / 16)
    assert found.numbers()["noise_scale"] == pytest.approx(scale, rel=1e-6)


def test_the_second_watch_and_the_second_look_compile_nothing():
    run(watched(), 12)
    with compilations() as compiled:
        run(watched(), 32)
    assert not compiled


def test_parameters_may_be_donated():
    found, params = watched(), start()
    step = jax.jit(lambda params: jax.tree.map(lambda leaf: 0.9 * leaf, params), donate_argnums=0)
    for index in range(13):
        params = step(params)
        found.update(index, params, BATCH)
    np.testing.assert_allclose(found.numbers()["update_ratio"], 0.1 / 0.9, rtol=1e-5)


def test_between_looks_nothing_is_done():
    found = watched(every=1000)
    run(found, 3)
    before = found.numbers()
    params, _ = run(found, 50, first=3)
    np.testing.assert_array_equal(found.numbers()["sharpness"], before["sharpness"])
    found.look(60, params, BATCH)
    assert found.numbers()["sharpness"] != before["sharpness"]


def test_a_batch_of_another_form_is_passed_over():
    found, params = watched(every=1), start()
    found.update(0, params, BATCH)
    value = found.numbers()["loss"]
    with compilations() as compiled:
        found.update(1, params, (X[:4], TARGETS[:4]))
    assert not compiled
    assert found.numbers()["loss"] == value


@pytest.mark.slow
def test_a_form_that_stays_is_taken_up():
    found, params, small = watched(every=1), start(), (X[:4], TARGETS[:4])
    found.update(0, params, BATCH)
    for step in range(2, 12):
        found.update(step, params, small)
    assert found.numbers()["loss"] == pytest.approx(float(loss_of(params, small)), rel=1e-5)
    assert np.isnan(found.numbers()["noise_scale"]) or found.numbers()["noise_scale"] > 0


# ---- planted faults ------------------------------------------------------------------------------------------------


def test_units_that_die_are_found_in_their_layer():
    fault = lambda step, params: changed(params, "second", "b", lambda b: b - 50) if step == 40 else params  # noqa: E731
    _, findings = run(watched(), fault=fault)
    dead = next(f for f in findings if f.name == "dead_units")
    assert (dead.where, dead.measured) == ("second/w", 1.0)
    assert dead.severity in ("likely", "certain")
    assert dead.predicted < 0.8  # at first


def test_a_leaf_that_jumps_makes_a_spike_and_is_named():
    kick = lambda w: w + 3 * jnp.sign(w)  # noqa: E731
    fault = lambda step, params: changed(params, "last", "w", kick) if step == 64 else params  # noqa: E731
    _, findings = run(watched(learning_rate=1e-4), rate=1e-4, fault=fault, steps=100)
    spike = next(f for f in findings if f.name == "rate_too_high")
    assert spike.where == "last/w"
    assert spike.severity == "likely"
    assert "step 65" in spike.sentence


def test_a_rate_that_is_too_high_is_beyond_the_edge():
    found = watched(learning_rate=1.0)
    _, findings = run(found, rate=1.0, steps=40)
    assert any(f.name == "rate_too_high" and f.where == "" and f.measured > f.predicted for f in findings)


@pytest.mark.parametrize("every, step, where", [(1, 33, "second/w"), (10, 33, "second/w"), (10, 37, "")])
def test_what_is_not_finite_is_certain_and_has_a_place_if_it_can_be_known(every, step, where):
    """A step later nearly all parameters are nan, and nothing tells which layer was first."""
    spoil = lambda at, params: changed(params, "second", "w", lambda w: w * np.nan) if at == step else params  # noqa: E731
    _, findings = run(watched(every=every), steps=45, fault=spoil)  # a look at 40
    lost = next(f for f in findings if f.name == "not_finite")
    assert (lost.severity, lost.where) == ("certain", where)


def test_weights_that_grow_are_found():
    grow = lambda step, params: changed(params, "first", "w", lambda w: 1.1 * w)  # noqa: E731
    _, findings = run(watched(learning_rate=1e-6), rate=1e-6, fault=grow, steps=90)
    growth = next(f for f in findings if f.name == "signal_explodes" and f.severity == "likely")
    assert growth.where == "first/w"
    assert growth.measured > 10


def test_states_that_become_alike_are_found():
    alike = lambda step, params: changed(params, "first", "b", lambda b: b + 200) if step > 50 else params  # noqa: E731
    _, findings = run(watched(learning_rate=1e-7), rate=1e-7, fault=alike, steps=90)
    collapse = [f for f in findings if f.name == "correlation_collapses"]
    assert collapse[0].where == "first/w"
    assert collapse[0].measured < 1.05 < 2 < collapse[0].predicted


def test_what_does_not_move_is_certain():
    _, findings = run(watched(), rate=0.0, steps=60)
    assert ("frozen", "") in severe(findings)


@pytest.mark.slow
def test_attention_that_takes_one_key_is_found():
    def attend(params, x):
        q, k = x @ params["query"], x @ params["key"]
        weights = jax.nn.softmax(jnp.einsum("nqd,nkd->nqk", q, k) / 2)
        return jnp.mean(weights @ x, axis=1) @ params["out"]

    keys = jax.random.split(KEY, 4)
    sizes = {"query": (6, 4), "key": (6, 4), "out": (6, 3)}
    params = {name: jax.random.normal(key, size) / 2 for key, (name, size) in zip(keys, sizes.items())}
    tokens = jax.random.normal(keys[3], (16, 5, 6))
    found, findings = nd.audit.watch(attend, loss, every=5), []
    for step in range(60):
        params["query"] = 1.15 * params["query"]
        findings += found.update(step, params, (tokens, TARGETS), loss=3.0)
    names = [f.name for f in findings if f.where == "attention/0"]  # large scores first, then one key for each query
    assert names[0] in ("attention_logits", "saturated") and "saturated" in names
    assert "likely" in {f.severity for f in findings if f.where == "attention/0"}
    assert found.numbers()["entropy"][0] < 0.1
    assert found.numbers()["logit_max"][0] > 50


@pytest.mark.slow
def test_a_healthy_attention_and_adam_have_no_severe_finding():
    def attend(params, x):
        q, k = x @ params["query"], x @ params["key"]
        weights = jax.nn.softmax(jnp.einsum("nqd,nkd->nqk", q, k) / 2)
        return jnp.tanh(jnp.mean(weights @ x, axis=1) @ params["mix"]) @ params["out"]

    keys = jax.random.split(KEY, 5)
    sizes = {"query": (6, 4), "key": (6, 4), "mix": (6, 16), "out": (16, 3)}
    params = {name: jax.random.normal(key, size) / 2 for key, (name, size) in zip(keys, sizes.items())}
    batch = (jax.random.normal(keys[4], (16, 5, 6)), TARGETS)
    optimizer = optax.adam(3e-3)
    found, state = nd.audit.watch(attend, loss, optimizer=optimizer, every=20), optimizer.init(params)

    @jax.jit
    def step(params, state):
        value, gradient = jax.value_and_grad(lambda params: loss(attend(params, batch[0]), batch[1]))(params)
        update, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, update), state, value

    for index in range(400):
        params, state, value = step(params, state)
        found.update(index, params, batch, loss=value, state=state)
    assert severe(found.findings) == []
    assert found.numbers()["limit"] == pytest.approx(38 / 3e-3, rel=0.02)
    assert 0 < found.numbers()["sharpness"] < 2 * found.numbers()["limit"]


# ---- the file ------------------------------------------------------------------------------------------------------


def test_the_file_is_read_back_while_it_grows_and_after_a_resume(tmp_path):
    found = watched(folder=tmp_path)
    params, _ = run(found, 45, fault=lambda step, params: jax.tree.map(lambda leaf: 1.0 * leaf, params))
    assert watching.read(tmp_path).looks["sharpness"]
    found.close()
    before = watching.read(tmp_path)
    np.testing.assert_array_equal(before.loss_steps, np.arange(45))
    again = watched(folder=tmp_path)
    die = lambda step, params: changed(params, "second", "b", lambda b: b - 50) if step == 60 else params  # noqa: E731
    _, findings = run(again, 50, first=40, params=params, fault=die)
    again.close()
    after = watching.read(tmp_path)
    np.testing.assert_array_equal(after.loss_steps, np.arange(90))
    np.testing.assert_array_equal(after.loss[:40], before.loss[:40])
    for events in after.looks.values():
        steps = [event["step"] for event in events]
        assert steps == sorted(set(steps))
    assert [f.name for _, f in after.findings] == [f.name for f in again.findings]
    assert any(f.name == "dead_units" and f.severity != "hint" for f in findings)
    lines = (tmp_path / "events.jsonl").read_text().splitlines()
    assert all(json.loads(line)["kind"] for line in lines)
    assert after.start["leaves"] == ["first/b", "first/w", "last/w", "second/b", "second/w"]


def test_what_was_at_first_survives_a_resume(tmp_path):
    with watched(folder=tmp_path) as found:
        params, _ = run(found, 20)
    grown = changed(params, "first", "w", lambda w: 30 * w)
    with watched(folder=tmp_path) as found:
        _, findings = run(found, 5, first=20, rate=0.0, params=grown)
    assert "first/w" in [f.where for f in findings if f.name == "signal_explodes"]


# ---- in fit --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_instruments_of_fit_observe_and_find():
    found = watched(optimizer=optax.adam(1e-2), learning_rate=None, every=None)
    observe = nd.audit.instruments(found, BATCH, every=60)
    _, history = train.fit(loss_of, start(), optax.adam(1e-2), train.whole(BATCH), steps=180, observe=observe)
    steps, sharpness = history.observed["watch/sharpness"]
    np.testing.assert_array_equal(steps, [0, 60, 120, 180])
    assert np.isfinite(sharpness).all()
    limits = history.observed["watch/limit"][1]
    assert np.isnan(limits[:2]).all()
    np.testing.assert_allclose(limits[2:], 38 / 1e-2, rtol=0.02)
    assert history.observed["watch/dead"][1].shape == (4, 3)
    assert history.observed["watch/update_ratio"][1].shape == (4, 5)
    np.testing.assert_allclose(history.observed["watch/loss"][1][1:3], history.loss[[60, 120]], rtol=1e-5)
    assert severe(found.findings) == []


# ---- doors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        bad(lambda: watched(optimizer="sdg"), "optimizer", shown="sdg"),
        bad(lambda: watched(optimizer=3), "optimizer", shown="3"),
        bad(lambda: watched(optimizer=optax.sgd, learning_rate=None), "learning_rate", shown="None"),
        bad(lambda: watched(learning_rate=-1.0), "learning_rate", shown="-1"),
        bad(lambda: watched(every=0), "every", shown="0"),
        bad(lambda: watched(cost=1.5), "cost", shown="1.5"),
        bad(lambda: watched(stochastic=True), "apply"),
        bad(lambda: watched(key=KEY), "key"),
        bad(lambda: watched(frozen=3), "frozen", shown="3"),
        bad(lambda: watched().update(-1, START, BATCH), "step", shown="-1"),
        bad(lambda: watching.read("nowhere"), "folder", shown="nowhere"),
        bad(lambda: nd.audit.instruments(3, BATCH), "found", shown="3"),
    ],
    ids=str,
)
def test_bad_calls_are_refused(row):
    refused(row)


def test_a_batch_must_be_a_pair():
    with pytest.raises(TypeError, match="batch must be a pair"):
        watched().update(0, start(), X)


def test_the_face_offers_functions_and_modules():
    assert nd.audit.watch is watching.watch
    assert {"watch", "instruments", "watching", "verdicts"} <= set(dir(nd.audit))
    from numdl.audit import verdicts

    assert verdicts.__name__ == "numdl.audit.verdicts"
