"""Parts of a watch: what is a spike, which leaf moved first, when to look, what the file holds, which method it is."""

import functools
import json
import math
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from numdl.audit._watch import history, journal, looks, predict
from numdl.audit._watch import memory as memories
from numdl.audit._watch import pace as paces

# ---- losses --------------------------------------------------------------------------------------------------------


def losses_of(values):
    losses = history.Losses()
    happened = []
    for step, value in enumerate(values):
        losses.add(step, value)
        if losses.drain():
            happened.append(step)
    return losses, happened


def noisy(count, level=1.0, scatter=0.05, seed=0):
    return level + scatter * np.random.default_rng(seed).normal(size=count)


@pytest.mark.parametrize("level", [1.0, -50.0, 0.0])
def test_a_jump_is_a_spike_and_noise_is_none(level):
    values = noisy(200, level)
    assert losses_of(values)[1] == []
    scatter = max(0.05, 0.02 * abs(level))
    values[120:140] += 20 * scatter
    losses, happened = losses_of(values)
    assert losses.spike_step == 120
    assert happened == [120, 127]  # when it begins, and when it has lasted
    assert 12 < losses.spike_size < 45


def test_a_new_level_is_no_spike_for_ever():
    values = np.concatenate([noisy(100), noisy(300, 5.0, seed=1)])
    losses, _ = losses_of(values)
    assert losses.lasting == 0
    assert losses.recent == pytest.approx(5.0, abs=0.1)


def test_a_falling_loss_has_no_spike_and_is_known():
    values = 3 * np.exp(-np.arange(300) / 60) + noisy(300, 0.2, 0.01)
    losses, happened = losses_of(values)
    assert happened == []
    assert losses.start == pytest.approx(3.1, abs=0.15)
    assert losses.best <= losses.recent * 1.2


def test_a_loss_that_is_not_finite_is_told_once():
    losses, happened = losses_of([1.0, 2.0, math.nan, math.inf, 1.0])
    assert happened == [2]
    assert losses.lost == 2
    assert losses.count == 5


def test_a_loss_that_is_not_there_yet_is_not_waited_for():
    class Later:
        ready = False

        def is_ready(self):
            return self.ready

        def __float__(self):
            assert self.ready
            return 7.0

    losses, later = history.Losses(), Later()
    losses.add(0, later)
    losses.add(1, 1.0)
    losses.drain()
    assert losses.unsaved == []
    later.ready = True
    losses.drain()
    assert losses.unsaved == [(0, 7.0), (1, 1.0)]


def test_a_resumed_run_loses_no_loss_that_was_not_there_yet():
    class Later:
        def is_ready(self):
            return False

        def __float__(self):
            return 7.0

    memory = memories.Memory()
    memory.losses.add(3, Later())
    memory.losses.drain()
    memory.restore([{"kind": "loss", "step": 0, "steps": [0, 1, 2], "values": [1.0, None, 2.0]}])
    assert memory.losses.unsaved == [(3, 7.0)]
    assert memory.losses.count == 4
    assert memory.losses.lost == 1


# ---- movements -----------------------------------------------------------------------------------------------------


def test_the_leaf_that_moved_first_is_named():
    changes = history.Changes()
    for step in range(10):
        changes.add(10 * step, 10, np.array([1e-2, 2e-2, 1e-1]))
        changes.add(10 * step + 1, 1, np.array([3e-3, 4e-3, 3e-2]))
    assert changes.first_moved("abc") == ("", pytest.approx(math.nan, nan_ok=True))
    changes.add(110, 9, np.array([9e-3, 0.9, 9e-2]))  # b: 0.1 a step
    changes.add(120, 10, np.array([5.0, 5.0, 5.0]))
    leaf, times = changes.first_moved("abc")
    assert leaf == "b"
    assert times == pytest.approx(0.1 / 2e-3)
    np.testing.assert_array_equal(changes.ratio, [3e-3, 4e-3, 3e-2])


def test_what_stands_still_is_counted():
    changes = history.Changes()
    for _ in range(3):
        changes.add(0, 1, np.array([0.0, 1.0]))
    np.testing.assert_array_equal(changes.still, [3, 0])
    changes.add(0, 1, np.array([1.0, 0.0]))
    np.testing.assert_array_equal(changes.still, [0, 1])


# ---- when to look ----------------------------------------------------------------------------------------------------


def test_the_interval_keeps_to_the_share():
    pace = paces.Pace(0.01)
    assert pace.due(0, math.nan)
    pace.looked(0, 0.02)
    assert pace.interval(0.004) == 500  # 0.02 s in 2 s
    assert not pace.due(499, 0.004)
    assert pace.due(500, 0.004)
    assert pace.interval(math.nan) == math.inf
    assert paces.Pace(0.01, looks=2).interval(0.1) == math.inf
    pace.forced = True
    assert pace.due(1, 0.004)


def test_a_given_interval_is_kept_whatever_it_costs():
    pace = paces.Pace(0.01, every=7)
    pace.looked(3, 100.0)
    assert [step for step in range(4, 20) if pace.due(step, 1e-6)] == list(range(10, 20))


def test_the_clock_tells_looks_from_steps(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    clock = paces.Clock()
    now[0] = 30.0
    clock.looked(0.0, compiled=True)
    now[0] = 50.0  # the caller compiles
    clock.called(1)
    assert math.isnan(clock.step_seconds(2))
    for step in range(1, 11):
        now[0] += 0.1
        clock.called(step)
    begin, now[0] = now[0], now[0] + 0.05
    clock.looked(begin, compiled=False)
    assert clock.step_seconds(11) == pytest.approx(0.1)
    assert clock.share() == pytest.approx(0.05 / 1.05)
    begin, now[0] = now[0], now[0] + 9.0
    clock.looked(begin, compiled=True)  # another form of batches
    assert clock.share() == pytest.approx(0.05 / 1.05)
    assert clock.step_seconds(11) == pytest.approx(0.1)


# ---- the file ------------------------------------------------------------------------------------------------------


def written(folder, first, last, value=1.0):
    log = journal.Log(folder)
    earlier = log.begin(first, {})
    for step in range(first, last, 5):
        log.write("loss", step, {"steps": list(range(step, step + 5)), "values": [value] * 5})
        log.write("change", step, {"ratio": np.array([math.nan, 0.123456789, math.inf])})
    log.close()
    return earlier


def events(folder, name="events.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def steps_of(folder):
    return [step for event in events(folder) if event["kind"] == "loss" for step in event["steps"]]


def test_every_line_is_json_without_nan(tmp_path):
    written(tmp_path / "deep" / "run", 0, 10)
    found = events(tmp_path / "deep" / "run")
    assert [event["kind"] for event in found] == ["start", "loss", "change", "loss", "change"]
    assert found[0]["format"] == 1
    assert found[2]["ratio"] == [None, 0.123457, None]


def test_a_run_that_goes_on_repeats_no_step(tmp_path):
    written(tmp_path, 0, 20)
    earlier = written(tmp_path, 20, 30)
    assert len(earlier) == 9
    assert steps_of(tmp_path) == list(range(30))
    assert not list(tmp_path.glob("superseded*"))


def test_a_run_that_goes_back_takes_the_place_of_what_stood_there(tmp_path):
    written(tmp_path, 0, 20)
    written(tmp_path, 12, 20, value=2.0)
    assert steps_of(tmp_path) == list(range(22))
    losses = [v for event in events(tmp_path) if event["kind"] == "loss" for v in event["values"]]
    assert losses == [1.0] * 12 + [2.0] * 10
    old = events(tmp_path, "superseded-1.jsonl")
    assert [event["step"] for event in old] == [10, 15, 15]
    written(tmp_path, 0, 5, value=3.0)
    assert steps_of(tmp_path) == list(range(5))
    assert len(events(tmp_path, "superseded-2.jsonl")) > 5


@pytest.mark.parametrize("cut", [b'{"kind": "los', b'{"kind": "loss", "step": 4}', b"\xff\xfe\n", b"[1]\n"])
def test_a_line_that_a_crash_cut_short_is_dropped(tmp_path, cut):
    written(tmp_path, 0, 10)
    with open(tmp_path / "events.jsonl", "ab") as file:
        file.write(cut)
    written(tmp_path, 10, 20)
    assert steps_of(tmp_path) == list(range(20))


def test_without_a_folder_nothing_is_written():
    assert written(None, 0, 10) == []


# ---- the method ------------------------------------------------------------------------------------------------------

METHODS = [
    (optax.sgd(0.1), None, "gradient_descent", 0.0, 2 / 0.1),
    (optax.sgd(0.1, momentum=0.9), None, "polyak", 0.9, 3.8 / 0.1),
    (optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3)), None, "adam", 0.9, 38 / 1e-3),
    pytest.param(optax.sgd(0.1, momentum=0.8, nesterov=True), None, "nesterov", 0.8, 36 / 2.6, marks=pytest.mark.slow),
    pytest.param(optax.adamw, 1e-2, "adam", 0.9, 38 / 1e-2, marks=pytest.mark.slow),
    pytest.param(functools.partial(optax.adam, b1=0.5), 1.0, "adam", 0.5, 6.0, marks=pytest.mark.slow),
    ("momentum", 0.1, "polyak", 0.9, 38.0),
    ("adamw", lambda step: 1e-3 * step, "adam", 0.9, 38 / 7e-3),
    ("sgd", None, "gradient_descent", 0.0, math.nan),
    (None, 0.1, "", 0.0, math.nan),
]  # limits by hand at step 7: 2 / eta, 2 (1 + b) / eta, (2 + 2 b) / ((1 + 2 b) eta), (2 + 2 b) / ((1 - b) eta)


@pytest.mark.parametrize("optimizer, rate, method, momentum, limit", METHODS)
def test_the_method_is_recognised_by_what_it_does(optimizer, rate, method, momentum, limit):
    found = predict.method_of(optimizer, rate)
    assert found.method == method
    assert found.momentum == pytest.approx(momentum, abs=2e-3)
    assert found.limit(7) == pytest.approx(limit, rel=0.02, nan_ok=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "optimizer, why",
    [
        (optax.lion(1e-3), "scale-free"),
        (optax.rmsprop(1e-3), "neither"),
        (optax.adagrad(0.1), "shrink"),
        (optax.lamb(1e-3), "size of the parameters"),
        (optax.sgd(optax.cosine_decay_schedule(0.1, 1000)), "schedule"),
        (optax.sgd(optax.linear_schedule(0.0, 0.1, 100)), "warm-up"),
        (optax.lbfgs(), "cannot be tried"),
    ],
)
def test_what_theory_does_not_know_has_no_limit(optimizer, why):
    found = predict.method_of(optimizer, None)
    assert found.method == ""
    assert why in found.why_not
    assert math.isnan(found.limit(0))


def test_a_rate_of_zero_has_no_edge():
    assert predict.method_of("sgd", lambda step: 0.1 * step).limit(0) == math.inf


@jax.custom_vjp
def rounded(x):
    return jnp.round(x)


rounded.defvjp(lambda x: (rounded(x), None), lambda _, g: (g,))


@pytest.mark.parametrize(("function", "known"), [(rounded, False), (jnp.tanh, True)])
def test_a_network_without_a_second_derivative_is_watched_without_sharpness(function, known):
    seen = looks.Instruments(lambda p, x: function(x @ p), lambda o, y: jnp.mean((o - y) ** 2), (), None)
    params, batch = jnp.ones((2, 2)), (jnp.eye(2) * 1.3, jnp.eye(2))
    for _ in range(2):
        found = seen.sharpness(params, batch)
        assert np.isfinite(found["sharpness"]) == known
        assert ("no second derivative" in found.get("why_not", "")) == (not known)


def test_what_is_wrong_with_the_loss_itself_is_raised():
    seen = looks.Instruments(lambda p, x: x @ p, lambda o, y: jnp.mean((o - y) ** 2), (), None)
    with pytest.raises(TypeError):
        seen.sharpness(jnp.ones((3, 2)), (jnp.eye(2), jnp.eye(2)))
