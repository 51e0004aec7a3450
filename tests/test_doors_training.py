"""Doors of training and data: arrays of every kind train alike, what stays stays, files that are none are named."""

import gzip
import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from numdl import data, reporting
from numdl.data import _pickles, cifar, idx, tables
from numdl.optimize import gauss_newton, line_search, losses, newton_cg, second_order, train
from tests import doors

X = np.linspace(-1, 1, 12).reshape(4, 3)
Y = np.sin(X[:, :2])
START = {"w": np.linspace(0, 1, 6).reshape(3, 2)}


def loss(params, batch):
    x, y = batch
    return jnp.mean((x @ params["w"] - y) ** 2)


def fit(params, batches, *, loss=loss, optimizer=None, steps=6, **more):
    return train.fit(loss, params, optimizer or optax.adam(0.1), batches, steps=steps, **more)[0]


def other_endian(array):
    return array.astype(array.dtype.newbyteorder())


def refilled():
    """A generator with one buffer for all its batches."""
    buffer = np.zeros_like(X)
    for index in itertools.count(1):
        buffer[...] = X / index
        yield buffer, Y


SAME = {
    "other byte order": lambda: train.whole((other_endian(X), other_endian(Y))),
    "nothing masked": lambda: train.whole((np.ma.masked_array(X), Y)),
    "iterable in other byte order": lambda: [(other_endian(X), other_endian(Y))],
    "strided": lambda: train.whole((np.repeat(X, 2, axis=0)[::2], np.asfortranarray(Y))),
    "resident": lambda: train.resident((other_endian(X), Y), size=np.uint8(4), key=None),
}


@pytest.mark.parametrize("kind", SAME)
def test_arrays_of_every_kind_give_the_same_numbers(kind):
    expected = fit(START, train.whole((X, Y)))
    got = fit({"w": other_endian(START["w"])}, SAME[kind](), steps=np.uint8(6))
    np.testing.assert_allclose(got["w"], expected["w"], rtol=1e-12 if jax.config.jax_enable_x64 else 1e-5)


def test_a_generator_that_refills_its_buffer_trains_on_every_batch():
    batches = [(X / index, Y) for index in range(1, 41)]
    np.testing.assert_array_equal(fit(START, refilled(), steps=40)["w"], fit(START, batches, steps=40)["w"])


def test_data_that_is_changed_afterwards_is_not_seen():
    x = X.copy()
    held = train.whole((x, Y)), train.resident((x, Y), size=2, key=None)
    expected = [fit(START, source) for source in held]
    x[:] = 7
    for source, before in zip(held, expected, strict=True):
        np.testing.assert_array_equal(fit(START, source)["w"], before["w"])


MIXED = {
    **START,
    "mask": np.array([[True], [False], [True]]),
    "table": np.array([2, 0, 1]),
    "key": jax.random.key(3),
    "none": None,
}


def masked_loss(params, batch):
    x, y = batch
    noise = jax.random.normal(params["key"], y.shape) / 10
    return jnp.mean(
        (jnp.asarray(x)[:, params["table"]] @ jnp.where(params["mask"], params["w"], 0.0 * params["w"]) - y - noise)
        ** 2
    )


def without_rest(params, batch):
    return masked_loss({**MIXED, **params}, batch)


def objective(params):
    return masked_loss(params, (X, Y))


def kept(params):
    assert params["none"] is None
    np.testing.assert_array_equal(params["mask"], MIXED["mask"])
    np.testing.assert_array_equal(params["table"], MIXED["table"])
    np.testing.assert_array_equal(jax.random.key_data(params["key"]), jax.random.key_data(MIXED["key"]))
    return params["w"]


def residual(params):
    return (jnp.asarray(X)[:, params["table"]] @ (params["mask"] * params["w"]) - Y) / 2


MINIMIZERS = {
    "newton_cg": lambda params, f: newton_cg.minimize(f, params, steps=3)[0],
    "gauss_newton": lambda params, f: gauss_newton.minimize(
        lambda p: residual({**MIXED, **p}), params, steps=3, method="levenberg_marquardt", damping=0.1
    )[0],
    "lbfgs": lambda params, f: second_order.lbfgs(f, params, steps=3)[0],
    "descend": lambda params, f: train.descend(lambda p, _: f(p), params, optax.adam(0.1), np.zeros((3, 1)))[0],
    "fit": lambda params, f: train.fit(lambda p, _: f(p), params, optax.adam(0.1), [np.zeros(1)], steps=3)[0],
}


@pytest.mark.parametrize("name", MINIMIZERS)
def test_masks_tables_and_keys_stay_as_they_are(name):
    moved = kept(MINIMIZERS[name](MIXED, objective))
    alone = MINIMIZERS[name](START, lambda params: objective({**MIXED, **params}))["w"]
    assert np.abs(np.asarray(moved) - START["w"]).max() > 1e-3
    np.testing.assert_allclose(moved, alone, rtol=1e-10 if jax.config.jax_enable_x64 else 1e-4)


def test_the_optimizer_sees_what_moves_only_and_a_run_with_the_rest_resumes(tmp_path):
    seen = []
    base = optax.adam(0.1)
    watching = optax.GradientTransformation(
        lambda params: (seen.append(jax.tree.leaves(params)), base.init(params))[1], base.update
    )
    whole = fit(MIXED, [(X, Y)], loss=masked_loss, optimizer=watching)
    assert [len(leaves) for leaves in seen] == [1]
    fit(MIXED, [(X, Y)], loss=masked_loss, steps=3, folder=tmp_path)
    np.testing.assert_array_equal(kept(fit(MIXED, [(X, Y)], loss=masked_loss, folder=tmp_path)), kept(whole))


def test_complex_parameters_move_as_two_reals():
    def square(params, batch):
        return jnp.sum(jnp.abs(params["z"] - batch) ** 2)

    goal = np.array([1 + 2j, -3j])
    # Gradient of |z - g|^2 in the two reals: 2 (z - g).
    got = train.fit(square, {"z": np.zeros(2, complex)}, optax.sgd(0.25), [goal], steps=1)[0]["z"]
    np.testing.assert_allclose(got, goal / 2, rtol=1e-6)


def test_a_line_search_along_a_direction_of_what_moves():
    value, gradient = objective(MIXED), jax.grad(lambda w: objective({**MIXED, "w": w}))(START["w"])
    still = {
        "mask": np.zeros((3, 1), bool),
        "table": np.zeros(3, int),
        "key": np.zeros((), jax.dtypes.float0),
        "none": None,
    }
    along = {**still, "w": -gradient}
    found = line_search.armijo(objective, MIXED, along, value=value, gradient={**still, "w": gradient})
    alone = line_search.armijo(
        lambda p: objective({**MIXED, **p}), START, {"w": -gradient}, value=value, gradient={"w": gradient}
    )
    assert bool(found.found)
    np.testing.assert_allclose(found.step, alone.step)
    np.testing.assert_allclose(found.value, alone.value)


def test_labels_out_of_range_are_nan_inside_jit_never_clamped():
    outputs, labels = np.eye(3), np.array([0, 1, 3])
    assert np.isnan(jax.jit(losses.softmax_cross_entropy)(outputs, labels))
    assert np.isnan(jax.jit(losses.accuracy)(outputs, labels))
    assert np.all(np.isnan(jax.jit(jax.grad(losses.softmax_cross_entropy))(outputs, labels)[2]))


def measure(x, targets):
    return train.accuracy(lambda params, x: x, x, targets)


def masked(array):
    return np.ma.masked_array(array, np.arange(array.size).reshape(array.shape) == 1)


ROWS = [
    doors.bad(lambda: measure(np.eye(4), np.array([0, 1, 2])), "targets", shown="(3,)"),
    doors.bad(lambda: measure(np.eye(4), np.zeros((4, 1), int)), "targets", shown="(4, 1)"),
    doors.bad(lambda: measure(np.eye(4), np.array([0, 1, 2, -1])), "targets", shown="-1"),
    doors.bad(lambda: measure(np.eye(4), np.zeros(4)), "targets", shown="float64"),
    doors.bad(lambda: losses.squared(np.ones((4, 1)), np.ones(4)), "targets", shown="(4,)"),
    doors.bad(lambda: losses.squared(np.ones(4), np.ones((4, 1))), "outputs", shown="(4,)"),
    doors.bad(lambda: losses.squared(np.ones((4, 2)), masked(np.ones((4, 2)))), "targets", shown="(4, 2)"),
    doors.bad(lambda: losses.logistic(np.ones((4, 1)), np.ones((4, 1), complex)), "targets", shown="complex128"),
    doors.bad(lambda: losses.softmax_cross_entropy(np.ones((4, 3)), np.array([0, 1, 2, 3])), "targets", shown="3"),
    doors.bad(lambda: train.gradient_noise(loss, (X, Y[:2]), size=1), "data", shown="[2]"),
    doors.bad(lambda: train.whole(masked(X)), "data", shown="masked"),
    doors.bad(lambda: train.resident({"a": X, "b": masked(Y)}, size=2, key=None), "data['b']", shown="masked"),
    doors.bad(lambda: train.resident((X, Y[:3]), size=2, key=None), "data", shown="[3]"),
    doors.bad(lambda: train.resident(X, size=5, key=None), "size", shown="5"),
    doors.bad(lambda: fit(START, [masked(X)]), "batches", shown="masked"),
    doors.bad(lambda: fit(START, {"x": X}), "batches", shown="{"),
    doors.bad(lambda: fit(START, "abc"), "batches", shown="'abc'"),
    doors.bad(lambda: fit({"w": masked(START["w"])}, [(X, Y)]), "params['w']", shown="masked"),
    doors.bad(lambda: fit({"w": np.arange(3)}, [(X, Y)]), "params", shown="int64(3,)"),
    doors.bad(lambda: fit({"w": START["w"], "n": "text"}, [(X, Y)]), "params['n']", shown="'text'"),
    doors.bad(lambda: fit(START, [(X, Y)], steps=0), "steps", shown="0"),
    doors.bad(lambda: fit(START, [(X, Y)], steps=True), "steps", shown="True"),
    doors.bad(lambda: fit(START, [(X, Y)], steps=2.0), "steps", shown="2.0"),
    doors.bad(lambda: fit(START, [(X, Y)], folder=""), "folder", shown="''"),
    doors.bad(lambda: fit(START, [(X, Y)], folder=3), "folder", shown="3"),
    doors.bad(lambda: fit(START, [(X, Y)], progress="yes"), "progress", shown="'yes'"),
    doors.bad(lambda: fit(START, [(X, Y)], key=0), "key", shown="0"),
    doors.bad(lambda: fit(START, [(X, Y)], loss=lambda params: 0.0), "loss", shown="params"),
    doors.bad(lambda: fit(START, [(X, Y)], observe={"a": (train.every(2), lambda: 0)}), "observe['a']", shown=""),
    doors.bad(lambda: fit(START, [(X, Y)], observe={"a": ([1, 2.5], lambda p: 0)}), "observe['a']", shown="2.5"),
    doors.bad(lambda: train.early_stopping("often", lambda p: 0.0, patience=1), "when", shown="'often'"),
    doors.bad(lambda: train.History.load("/no/such/file"), "/no/such/file"),
]


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_bad_calls_are_refused_before_any_work(row):
    doors.refused(row)


def test_a_refused_run_touches_no_file(tmp_path):
    for row in ({"steps": 0}, {"key": 0}, {"optimizer": 3}, {"observe": 3}, {"checkpoint": 0}, {"loss": 3}):
        with pytest.raises((ValueError, TypeError)):
            fit(START, [(X, Y)], **{"folder": tmp_path / "run"} | row)
    assert not (tmp_path / "run").exists()


READERS = {
    "history": train.History.load,
    "idx": idx.read,
    "cifar binary": lambda path: cifar.read_binary(path, classes=(10,)),
    "cifar pickle": lambda path: cifar.read_pickle(path, classes=(10,)),
    "pickle": _pickles.read,
    "table": tables.read,
    "labelled table": lambda path: tables.labelled(path, label="a"),
    "run": reporting.load,
    "data": lambda path: data.mnist(split="train", folder=path),
}
CONTENTS = {
    "missing": None,
    "directory": "directory",
    "empty": b"",
    "text": b"no such thing\n",
    "binary": bytes(range(256)) * 3,
    "wrong magic": b"\x89PNG\r\n\x1a\n" + bytes(64),
    "cut archive": gzip.compress(os.urandom(256))[:60],
    "zip": b"PK\x03\x04" + bytes(40),
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("reader", READERS)
def test_files_that_are_none_are_named(tmp_path, reader, content):
    path = tmp_path / "file.bin"
    if CONTENTS[content] == "directory":
        path.mkdir()
    elif CONTENTS[content] is not None:
        path.write_bytes(CONTENTS[content])
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises((ValueError, TypeError, OSError), match="file.bin"):
        READERS[reader](path)
    assert sorted(tmp_path.rglob("*")) == before
    for bad in (None, 3, ""):
        if not (reader == "data" and bad is None):
            with pytest.raises((ValueError, TypeError), match="(path|folder) must be a path.*got"):
                READERS[reader](bad)
