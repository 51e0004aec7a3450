"""The audit on real functions: what is measured against closed forms, a sick and a healthy network from end to end."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import numdl as nd
from numdl.audit import measure, rules
from numdl.audit._measured import black_box, cases, functions, heads
from numdl.audit.evidence import Signal, empty
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
    assert abs(found.degree_up) < 0.01 and found.lost == pytest.approx(1, abs=1e-4)


def test_a_clip_and_an_epsilon_are_told_apart():
    clip = asked(lambda rate: optax.chain(optax.clip_by_global_norm(1e-4), optax.sgd(rate)))
    assert clip.lost < 0.01 and clip.direction > 0.999
    clip = asked(lambda rate: optax.chain(optax.clip_by_global_norm(1e-9), optax.sgd(rate)))
    assert clip.lost < 1e-6 and clip.direction > 0.999
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


def attending(scale):
    """One attention over 6 tokens of width 8; its scores are multiplied by `scale`."""
    draw = np.random.default_rng(2)
    params = {name: np.float32(draw.standard_normal((8, 8)) / math.sqrt(8)) for name in ("query", "key", "value")}
    params["out"] = np.float32(draw.standard_normal((8, 4)) / math.sqrt(8))

    def apply(params, x):
        scores = scale * jnp.einsum("ntd,nsd->nts", x @ params["query"], x @ params["key"])
        return jnp.mean(jax.nn.softmax(scores) @ (x @ params["value"]), axis=1) @ params["out"]

    return apply, params


def test_the_watch_sees_attention_at_both_ends_of_a_training():
    """Against scores written out."""
    apply, params = attending(40.0)
    x, y = np.float32(np.random.default_rng(3).standard_normal((12, 6, 8))), np.arange(12) % 4
    known = case(apply=apply, params=params, batch=(x, y), data=None)
    watch = measure.attending(known, empty(Signal, kinds=("attention",)))
    grown = {**known.moving, "query": 2 * known.moving["query"]}
    for rate, end in ((0, known.moving), (1, grown), (1, known.moving)):
        watch(rate, end)
    found = watch.record()
    scores = 40 * np.einsum("ntd,nsd->nts", x @ params["query"], x @ params["key"])
    odds = np.exp(np.float64(scores - scores.max(-1, keepdims=True)))
    odds = odds / odds.sum(-1, keepdims=True)
    even = -np.mean(np.sum(odds * np.log(np.maximum(odds, 1e-300)), -1)) / np.log(6)
    largest = np.abs(scores).max()
    np.testing.assert_allclose(found.logit_max, [largest], rtol=1e-5)
    np.testing.assert_allclose(found.end_logit_max, [[largest], [2 * largest]], rtol=1e-5)
    np.testing.assert_allclose(found.entropy, [even], rtol=1e-4)
    assert found.end_entropy.shape == (2, 1) and found.end_entropy[1, 0] < even
    assert measure.attending(known, None).record() is None


def wide(width):
    draw = np.random.default_rng(width)
    sizes = zip((16, width, width), (width, width, 4))
    return lambda p, x: jnp.tanh(jnp.tanh(x @ p[0]) @ p[1]) @ p[2], [
        np.float32(draw.standard_normal(pair) / math.sqrt(pair[0])) for pair in sizes
    ]


def test_one_rate_for_all_widths_is_measured():
    known = case(optimizer=optax.adam, learning_rate=1e-3, build=wide, widths=(32, 64, 128))
    found = measure.widths(known)
    (finding,) = rules.judge(dataclasses.replace(healthy(), widths=found))
    assert finding.name == "parametrization_does_not_transfer" and finding.measured > 0.25
    assert found.names[-1] == "output" and found.change[1] > 0.5 and measure.widths(case()) is None


@pytest.mark.slow
def test_build_may_bring_the_rate_of_each_width():
    """muP's rates by hand: W_2 and W_3 learn as 1 / width, the head starts as 1 / width."""

    def build(width):
        apply, params = wide(width)
        rates = [1e-3, 1e-3 * 32 / width, 1e-3 * 32 / width]
        scaled = optax.stateless(lambda updates, _: [-rate * u for rate, u in zip(rates, updates)])
        params[2] = params[2] * np.float32(math.sqrt(32 / width))
        return apply, params, optax.chain(optax.scale_by_adam(), scaled)

    found = measure.widths(case(optimizer=optax.adam, learning_rate=1e-3, build=build, widths=(32, 64, 128)))
    assert np.abs(found.change[:3]).max() < 0.25 and not any(text.startswith("fails") for text in found.verdicts[:3])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"build": wide}, "widths must be given together with build; got None"),
        ({"widths": (4, 8, 16)}, "build must be given together with widths; got None"),
        ({"build": wide, "widths": (8, 4, 16)}, "widths must rise"),
        ({"build": wide, "widths": (4, 8)}, "widths"),
        ({"build": lambda: None, "widths": (4, 8, 16)}, "build"),
    ],
)
def test_widths_and_build_are_checked_before_any_work(changes, message):
    with pytest.raises((ValueError, TypeError), match=message):
        case(**changes)
