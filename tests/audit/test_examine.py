"""The audit on real functions: what is measured against closed forms, a sick and a healthy network from end to end."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import numdl as nd
from numdl.audit import rules
from numdl.audit._measured import black_box, cases, functions, heads
from tests.audit.test_rules import healthy

SIZES = (16, 24, 24, 4)


def network(params, x):
    for w, b in params[:-1]:
        x = jax.nn.relu(x @ w + b[None])
    return x @ params[-1][0] + params[-1][1][None]


def cross_entropy(logits, labels):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1))


def start(scale):
    draw = np.random.default_rng(0)
    pairs = zip(SIZES, SIZES[1:])
    return [
        (np.float32(scale * math.sqrt(2 / n) * draw.standard_normal((n, m))), np.zeros(m, np.float32)) for n, m in pairs
    ]


def data(count=400):
    draw = np.random.default_rng(1)
    labels = draw.integers(0, 4, count)
    centres = draw.standard_normal((4, 16))
    return np.float32(centres[labels] + 0.3 * draw.standard_normal((count, 16))), labels.astype(np.int32)


def settings(**changes):
    x, y = data()
    given = {"apply": network, "params": start(1.0), "batch": (x[:32], y[:32]), "loss": cross_entropy,
             "optimizer": optax.sgd,
             "learning_rate": 0.1, "steps": 200, "data": (x, y), "key": jax.random.key(0)}  # fmt: skip
    return {**given, **changes}


def case(**changes):
    given = {"evaluate": None, "stochastic": False, **settings(**changes)}
    return cases.case(given.pop("apply"), given.pop("params"), given.pop("batch"), **given)


def asked(optimizer, **changes):
    known = case(optimizer=optimizer, **changes)
    slope = lambda p: np.resize(np.float32([0.01, 0.02, 0.03]), p.shape)  # noqa: E731
    gradient = jax.tree.map(slope, known.moving)
    return black_box.measure(known, gradient)


def test_descent_is_linear_and_remembers_nothing():
    found = asked(optax.sgd)
    assert found.degree_up == pytest.approx(1, abs=1e-3) and found.degree_down == pytest.approx(1, abs=1e-3)
    assert found.memory == pytest.approx(1, abs=1e-4) and found.lost == 1 and found.ascent == pytest.approx(1, abs=1e-5)
    assert found.late == pytest.approx(0.5, abs=1e-6) and found.at_zero == 0


def test_momentum_sums_to_the_geometric_series():
    found = asked(lambda rate: optax.sgd(rate, momentum=0.8))
    assert found.memory == pytest.approx(5, rel=1e-3)


def test_adam_is_free_of_scale():
    found = asked(optax.adam)
    assert abs(found.degree_up) < 0.01 and found.lost == 1


def test_a_clip_and_an_epsilon_are_told_apart():
    clip = asked(lambda rate: optax.chain(optax.clip_by_global_norm(1e-4), optax.sgd(rate)))
    assert clip.lost < 0.01 and clip.direction > 0.999
    epsilon = asked(lambda rate: optax.adam(rate, eps=10.0))
    assert epsilon.lost < 0.01 and epsilon.direction < 0.999


def test_decay_schedule_and_frozen_are_seen():
    assert asked(lambda rate: optax.chain(optax.add_decayed_weights(0.5), optax.sgd(rate))).at_zero == pytest.approx(
        0.05, rel=1e-3
    )
    assert asked(lambda rate: optax.sgd(optax.exponential_decay(rate, 1, 0.7))).late < 1e-6
    assert asked(lambda rate: optax.set_to_zero()).reach == 0


def test_the_floor_of_two_softmaxes_is_the_closed_form():
    """log(1 + (C - 1) / e): one probability is 1 and the others 0."""
    twice = lambda params, x: jax.nn.softmax(network(params, x), -1)  # noqa: E731
    found, _ = heads.measure(case(apply=twice))
    assert found.floor_head == pytest.approx(math.log(1 + 3 / math.e), abs=2e-3)
    assert found.floor < 0.02 and found.has_head


def test_the_best_single_answer_is_the_entropy_of_the_labels():
    known = case()
    shares = np.bincount(known.sample[1]) / len(known.sample[1])
    found, _ = heads.measure(known)
    assert found.floor_shared == pytest.approx(-np.sum(shares * np.log(shares)), abs=2e-3)
    assert found.coupling < 1e-6 and found.pull > 0.5 and not found.has_head


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({"optimizer": "sdg"}, "optimizer"),
        ({"learning_rate": None}, "learning_rate"),
        ({"learning_rate": -1.0}, "learning_rate"),
        ({"steps": 0}, "steps"),
        ({"batch": np.ones(3)}, "batch"),
        ({"data": (np.ones((8, 3), np.float32), np.zeros(8, np.int32))}, "data"),
        ({"loss": 3}, "loss"),
        ({"stochastic": 1}, "stochastic"),
        ({"key": 3}, "key"),
        ({"params": {}}, "params"),
    ],
)
def test_bad_arguments_are_named_at_the_door(changes, argument):
    given = settings(**changes)
    with pytest.raises((ValueError, TypeError), match=argument):
        nd.audit.examine(given.pop("apply"), given.pop("params"), given.pop("batch"), **given)


@pytest.mark.slow
def test_a_healthy_network_will_train_and_a_zero_start_will_not():
    given = settings()
    report = nd.audit.examine(given.pop("apply"), given.pop("params"), given.pop("batch"), **given)
    assert report.verdict == "will train" and not [f for f in report.findings if f.severity != "hint"]
    given = settings(params=[(0 * w, b) for w, b in start(1.0)])
    report = nd.audit.examine(given.pop("apply"), given.pop("params"), given.pop("batch"), **given)
    assert report.verdict == "will not train" and report.findings[0].name == "symmetry"
    proof = report.prove(60)
    assert proof.helped and proof.repaired[:, -10:].mean() < 0.5 * proof.sick[:, -10:].mean()


@pytest.mark.slow
def test_a_finished_transformation_leaves_the_rates_unseen():
    given = settings(optimizer=optax.sgd(0.1), learning_rate=None, data=None, steps=None)
    report = nd.audit.examine(given.pop("apply"), given.pop("params"), given.pop("batch"), **given)
    assert {"rates", "data", "steps", "evaluate"} <= {view for view, _ in report.unseen}


@pytest.mark.parametrize("scale, mixes", [(5.0, False), (1.0, True), (1.0, False)])
def test_rounding_that_a_chaotic_network_amplifies_is_not_taken_for_examples_that_mix(scale, mixes):
    """Thirty tanh layers of weight variance 25 turn the last bits of a mean over examples into another output."""
    draw = np.random.default_rng(4)
    params = [np.float32(scale * draw.standard_normal((16, 16)) / 4) for _ in range(30)]
    x = np.float32(draw.standard_normal((33, 16)))

    def apply(params, x):
        x = x + 0.3 * jnp.mean(x, 0, keepdims=True)
        x = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, jnp.stack(params))[0]
        return x + 0.3 * jnp.cumsum(x[::-1], 0) if mixes else x

    squared = lambda outputs, targets: jnp.mean((outputs - targets) ** 2)  # noqa: E731
    opened = case(apply=apply, params=params, batch=(x, x), loss=squared, optimizer="sgd", data=None)
    found = functions.measure(opened)
    assert (found.rounding > 1e-3) is (scale > 1)
    findings = rules.judge(dataclasses.replace(healthy(), function=found))
    assert any(f.name == "wrong_axis" and f.severity == "certain" for f in findings) is mixes
