"""What a repair hands over: parameters like those given, maps for inputs to come, a setting to train with."""

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import numdl as nd
from numdl.audit import remedies
from numdl.audit.changes import Repair
from numdl.audit.evidence import Data, Loss, empty
from tests.audit.test_examine import case, cross_entropy, data, network, settings, start


def repaired(known, **parts):
    names = [field.name for field in dataclasses.fields(Repair)]
    return Repair(**dict.fromkeys(names) | {"changes": (), "by_hand": (), "case": known} | parts)


def batches(x, y, size=32):
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


@pytest.mark.parametrize(
    "given",
    [
        {"optimizer": "momentum"},
        {"optimizer": optax.adam},
        {"optimizer": lambda rate: optax.sgd(rate, nesterov=True)},
        {"optimizer": optax.sgd(0.1), "learning_rate": None},
        {"data": None, "steps": None},
        {"data": batches(*data())},
    ],
    ids=["name", "family", "own family", "finished", "no data", "in order"],
)
def test_the_setting_is_what_examine_takes_and_makes_the_same_case(given):
    known = case(**given)
    again = case(**repaired(known).setting())
    for field in ("apply", "loss", "make", "name", "rate", "steps", "in_order", "evaluate", "stochastic", "follows"):
        mine, its = getattr(known, field), getattr(again, field)
        assert mine == its or (mine != mine and its != its), field  # a rate may be nan
    for field in ("moving", "x", "y", "data"):
        jax.tree.map(np.testing.assert_array_equal, getattr(known, field), getattr(again, field))


def test_what_does_not_move_is_in_the_setting_too():
    params = {"layers": start(1.0), "seen": np.int32(7), "name": "mine"}
    known = case(apply=lambda p, x: network(p["layers"], x) + 0 * p["seen"], params=params)
    found = repaired(known).setting()["params"]
    assert found["seen"] == 7 and found["name"] is None
    jax.tree.map(np.testing.assert_array_equal, found["layers"], params["layers"])


def test_inputs_and_targets_to_come_are_moved_as_the_old_ones():
    x, y = {"a": np.float32([[1, 2]]), "mask": np.array([[True]])}, np.float32([[6]])
    known = repaired(
        None,
        input_shift={"a": np.float32([1, 0]), "mask": np.zeros(())},
        input_scale={"a": np.float32([1, 4]), "mask": np.ones(())},
        target_shift=np.float32(2),
        target_scale=np.float32(0.5),
    )
    found = known.inputs(x)
    assert found["a"].tolist() == [[0, 8]] and found["mask"] is x["mask"] and known.targets(y).tolist() == [[2]]
    assert repaired(None).inputs(x) is x and repaired(None).targets(y) is y


@pytest.mark.parametrize("x", [np.ones(2), np.ones((3, 4)), np.ones((3, 1)), [np.ones((3, 2))], "two"])
def test_inputs_that_do_not_fit_the_map_are_refused(x):
    known = repaired(None, input_shift=np.zeros(2, np.float32), input_scale=np.ones(2, np.float32))
    with pytest.raises((ValueError, TypeError), match="x"):
        known.inputs(x)


def test_it_is_printed_as_what_to_do():
    found = repaired(None, changes=("loss: minus", "learning rate: 0.1"), by_hand=("mask: look at it",))
    assert repr(found) == "Repair\n1. loss: minus\n2. learning rate: 0.1\nby hand: mask: look at it"


@pytest.mark.slow
def test_the_user_trains_with_what_was_handed_over():
    """Large inputs, rows that are no numbers, a leaf that counts: all in the user's own loop, then examined again."""
    x, y = data(1200)
    x, fresh = np.split(1000 * (x + 5), [400])
    y, right = np.split(y, [400])
    x[7] = np.nan
    apply = lambda p, x: network(p["layers"], x)  # noqa: E731
    given = settings(
        apply=apply,
        params={"layers": start(1.0), "seen": np.int32(7)},
        batch=(x[:32], y[:32]),
        data=(x, y),
        optimizer="sgd",
        learning_rate=10.0,
    )
    report = nd.audit.examine(given.pop("apply"), given.pop("params"), given.pop("batch"), **given)
    assert report.verdict == "will not train"
    change = report.repair()
    assert len(change.kept) == len(x) - 1 and 7 not in change.kept
    setting = change.setting()
    params = setting["params"]
    assert params["seen"] == 7 and jax.tree.structure(params) == jax.tree.structure({"layers": start(1.0), "seen": 0})
    make = {"sgd": optax.sgd, "adam": optax.adam}[setting["optimizer"]]
    optimizer, layers = make(setting["learning_rate"]), params["layers"]
    state, (inputs, labels) = optimizer.init(layers), setting["data"]
    np.testing.assert_allclose(inputs, change.inputs(x[change.kept]), rtol=1e-5)

    @jax.jit
    def step(layers, state, index):
        cost = lambda layers: cross_entropy(apply({"layers": layers}, jnp.asarray(inputs)[index]), labels[index])  # noqa: E731
        updates, state = optimizer.update(jax.grad(cost)(layers), state, layers)
        return optax.apply_updates(layers, updates), state

    labels, draw = jnp.asarray(labels), np.random.default_rng(3)
    for _ in range(200):
        layers, state = step(layers, state, draw.integers(0, len(inputs), 32))
    answers = apply({"layers": layers}, change.inputs(fresh)).argmax(1)
    assert (np.asarray(answers) == right).mean() > 0.95
    again = nd.audit.examine(**setting)
    assert again.verdict == "will train" and not [f for f in again.findings if f.severity == "certain"]


@pytest.mark.slow
def test_a_deep_network_of_five_rectified_units_is_opened_and_trains():
    """Thirty layers: with variance 2 / fan_in all units of some layer are shut for most examples."""
    draw, sizes = np.random.default_rng(0), (2, *[5] * 30, 2)
    labels = np.arange(600) % 2
    angle = draw.uniform(0, 2 * np.pi, 600)
    x = np.where(labels, 1.5, 0.6)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
    x, labels = np.float32(x + 0.05 * draw.standard_normal(x.shape)), labels.astype(np.int32)
    pairs = zip(sizes, sizes[1:])
    params = [(np.float32(math.sqrt(2 / n) * draw.standard_normal((n, m))), np.zeros(m, np.float32)) for n, m in pairs]
    given = {"batch": (x[:32], labels[:32]), "data": (x, labels), "optimizer": "adam", "learning_rate": 1e-2}
    report = nd.audit.examine(network, params, loss=cross_entropy, steps=400, key=jax.random.key(0), **given)
    change = report.repair()
    assert report.verdict != "will train" and "of the examples pass each rectifier" in change.changes[0]
    assert not change.by_hand and nd.audit.examine(**change.setting()).verdict == "will train"


@pytest.mark.parametrize("odd", [255, -1, 12])
def test_labels_that_no_shift_brings_to_a_column_are_left_out(odd):
    """255 beside 0 to 3: nobody knows which class it is; -1 to 2 are the four classes, one too low."""
    x, y = data()
    other = np.where(np.arange(len(y)) % 7 == 0, odd, y).astype(np.int32) if odd > 0 else y - 1
    known = case(data=(x, other), batch=(x[:32], other[:32]))
    columns = network(start(1.0), x[:2]).shape[1]
    told = empty(Loss, kind="classes")
    seen = types.SimpleNamespace(
        loss=told, data=empty(Data, label_low=other.min(), label_high=other.max(), classes=columns)
    )
    work = remedies._Work(known, seen, set())
    (line,) = work.labels()
    if odd < 0:
        assert "subtract -1" in line and work.case.data[1].min() == 0
    else:
        kept = work.parts["kept"]
        assert "leave out" in line and str(np.sum(other == odd)) in line
        np.testing.assert_array_equal(kept, np.flatnonzero(other != odd))
        np.testing.assert_array_equal(work.case.data[1], other[kept])
        assert len(work.case.x) == 32 and work.case.y.max() < columns
        work._keep("not_finite", np.arange(1, 30), "that are not finite")  # of those that stayed
        np.testing.assert_array_equal(work.parts["kept"], kept[1:30])
