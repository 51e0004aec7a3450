"""Bad calls of kinds that no table of single arguments makes, by hand.

Records' methods, callbacks, schedules, arguments that disagree with each other, files.
"""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from numdl import activations, data, reporting
from numdl.analysis import curvature, descent, generalization, information, kernels, landscape, layers
from numdl.analysis import normalization as measured_normalization
from numdl.data import cifar, idx, tables
from numdl.networks import dense
from numdl.optimize import gauss_newton, least_squares, losses, newton_cg, second_order, train
from tests import doors

X = np.linspace(-1.0, 1.0, 12).reshape(4, 3)
Y = np.sin(X[:, :2])
PARAMS = {"w": np.linspace(0.0, 1.0, 6).reshape(3, 2)}
KEY = jax.random.key(0)
LABELS = np.array([0, 1, 1, 0])
OUTPUTS = np.linspace(-1.0, 1.0, 12).reshape(4, 3)
OPTIMIZER = optax.sgd(0.1)


def apply(params, x):
    return x @ params["w"]


def loss(params, batch):
    x, y = batch
    return jnp.mean((apply(params, x) - y) ** 2)


def square(params):
    return jnp.sum(params["w"] ** 2)


def fit(batches=((X, Y),), optimizer=OPTIMIZER, steps=2, **more):
    return train.fit(more.pop("loss", loss), PARAMS, optimizer, batches, steps=steps, **more)


def exhausted():
    iterator = iter([(X, Y)])
    next(iterator)
    return iterator


GROWTH = measured_normalization.GradientGrowth(np.zeros((2, 5)), np.zeros((2, 4)))
DENSITY = curvature.SpectralDensity(
    np.zeros(2), np.zeros(2), np.zeros(2), np.ones(()), np.zeros((1, 3)), np.full((1, 3), 1 / 3), 3
)
NETWORK = dense.network(widths=(3, 4, 2), activation=activations.tanh, weight_variance=1.0, bias_variance=0.0)
HESSIAN = curvature.hessian(loss, PARAMS, (X, Y))
KINDS = {"squared": losses.squared, "logistic": losses.logistic, "hinge": losses.hinge}
METHODS = ("value", "gradient", "hessian", "__call__")

RECORDS = [
    doors.bad(lambda: GROWTH.rate(0, 3), "start", shown="0"),
    doors.bad(lambda: GROWTH.rate(2, 2), "stop", shown="2"),
    doors.bad(lambda: GROWTH.rate(1, 9), "stop", shown="9"),
    doors.bad(lambda: GROWTH.rate(1.5, 3), "start", shown="1.5"),
    doors.bad(lambda: DENSITY.count_above("much"), "threshold", shown="'much'"),
    doors.bad(lambda: DENSITY.count_above(np.nan), "threshold", shown="nan"),
    doors.bad(lambda: DENSITY.on([0.0, np.inf], 1.0), "grid", shown="inf"),
    doors.bad(lambda: DENSITY.on([0.0, 1.0], 0.0), "width", shown="0.0"),
    doors.bad(lambda: DENSITY.mean_of(3), "function", shown="3"),
    doors.bad(lambda: DENSITY.mean_of(lambda: 3), "function", shown="()"),
    doors.bad(lambda: DENSITY.mean_of(lambda x: "text"), "function", shown="'text'"),
    doors.bad(lambda: DENSITY.mean_of(lambda x: np.ones(7)), "function", shown="(7,)"),
    doors.bad(lambda: HESSIAN({"w": np.ones((2, 3))}), "v", shown="(2, 3)"),
    doors.bad(lambda: HESSIAN({"v": np.ones((3, 2))}), "v", shown="w"),
    doors.bad(lambda: HESSIAN(None), "v", shown="None"),
    doors.bad(lambda: NETWORK.init(0, X), "key", shown="0"),
    doors.bad(lambda: NETWORK.init(KEY, X[:, :2]), "x", shown="(4, 2)"),
    doors.bad(lambda: NETWORK.init(KEY, "text"), "x", shown="'text'"),
    doors.bad(lambda: train.every(3)("now"), "step", shown="'now'"),
    doors.bad(lambda: train.History(np.zeros(2), {}).save(3), "path", shown="3"),
    doors.bad(lambda: train.History(np.zeros(2), {}).save(""), "path", shown="''"),
    doors.bad(lambda: reporting.Claim.from_dict({"claim": "a"}), "source", shown="'a'"),
    doors.bad(lambda: reporting.Claim.from_dict(3), "values", shown="3"),
]

DISAGREE = [
    doors.bad(lambda: train.resident((X, Y[:3]), size=2, key=None), "data", shown="[3]"),
    doors.bad(lambda: train.whole((X, "text")), "data[1]", shown="'text'"),
    doors.bad(lambda: train.whole((X, (Y, object()))), "data[1][1]", shown="object"),
    doors.bad(lambda: fit([(X, (Y, "text"))]), "batches[1][1]", shown="'text'"),
    doors.bad(lambda: curvature.empirical_fisher(loss, PARAMS, (X, Y[:3])), "batch", shown="[3]"),
    doors.bad(lambda: curvature.hessian(loss, PARAMS, (X, Y[:3]), chunk=2), "batch", shown="[3]"),
    doors.bad(lambda: curvature.hessian(loss, (PARAMS, "text"), (X, Y)), "params[1]", shown="'text'"),
    doors.bad(lambda: landscape.interpolation(loss, PARAMS, ({"w": X},), (X, Y)), "stop", shown="no leaf"),
    doors.bad(lambda: kernels.ntk(apply, PARAMS, (X, Y[:3])), "x1", shown="(3,)"),
    doors.bad(lambda: kernels.laziness(apply, {"w": np.ones((2, 3, 2))}, X, targets=Y[:3]), "targets", shown="(3, 2)"),
    doors.bad(lambda: train.gradient_noise(loss, (X, Y), size=5), "size", shown="5"),
    doors.bad(lambda: data.split(KEY, (X, Y[:3]), (0.5, 0.5)), "data", shown="[3]"),
    doors.bad(lambda: next(iter(data.batches(KEY, (X, Y[:3]), 2, remainder="drop"))), "data", shown="[3]"),
    doors.bad(lambda: least_squares.tikhonov(X, Y[:3]), "targets", shown="(3, 2)"),
    doors.bad(lambda: layers.probe(apply, PARAMS, X, loss=lambda z: z), "loss", shown="(4, 2)"),
    doors.bad(lambda: curvature.fisher(lambda p, b: (X, Y), PARAMS, X, likelihood="gaussian"), "outputs", shown="("),
    doors.bad(lambda: curvature.fisher(lambda p, b: 1, PARAMS, X, likelihood="gaussian"), "outputs", shown="1"),
    doors.bad(
        lambda: curvature.gauss_newton(lambda p, b: X @ p["w"], lambda z, b: z, PARAMS, X),
        "loss_of_outputs",
        shown="(4, 2)",
    ),
]

LABELLED = [
    *(
        doors.bad(
            functools.partial(getattr(losses.softmax_cross_entropy, method), OUTPUTS, np.array([0, 1, 2, wrong])),
            "targets",
            shown=str(wrong),
        )
        for method in METHODS
        for wrong in (-1, 3)
    ),
    *(
        doors.bad(functools.partial(getattr(kind, method), OUTPUTS, OUTPUTS[:3]), "targets", shown="(3, 3)")
        for kind in KINDS.values()
        for method in METHODS
    ),
    *(
        doors.bad(functools.partial(losses.softmax_cross_entropy, OUTPUTS, row), "targets", shown=shown)
        for row, shown in (
            (np.full((4, 3), 0.5), "0.5"),
            (np.full((4, 3), np.nan), "nan"),
            (np.tile([1.5, -0.5, 0.0], (4, 1)), "-0.5"),
            (np.zeros((4, 3), int), "0"),
            (LABELS[:3], "(3,)"),
            (LABELS + 0.0, "float64"),
        )
    ),
    doors.bad(lambda: losses.logistic(OUTPUTS, np.full((4, 3), 1.5)), "targets", shown="1.5"),
    doors.bad(lambda: losses.hinge(OUTPUTS, np.zeros((4, 3))), "targets", shown="0"),
    doors.bad(lambda: losses.squared(OUTPUTS, np.full((4, 3), np.inf)), "targets", shown="inf"),
    doors.bad(lambda: losses.accuracy(OUTPUTS, LABELS - 1), "targets", shown="-1"),
    doors.bad(lambda: losses.accuracy(OUTPUTS, LABELS[:3]), "targets", shown="(3,)"),
    doors.bad(lambda: losses.squared.hessian_product(OUTPUTS, OUTPUTS, OUTPUTS[:3]), "v", shown="(3, 3)"),
    doors.bad(lambda: generalization.margins(OUTPUTS, LABELS + 2), "labels", shown="3"),
    doors.bad(lambda: generalization.margins(OUTPUTS, LABELS - 1), "labels", shown="-1"),
    doors.bad(lambda: generalization.margins(OUTPUTS, LABELS[:3]), "labels", shown="(3,)"),
    doors.bad(lambda: generalization.neural_collapse(OUTPUTS, LABELS - 1), "labels", shown="-1"),
    doors.bad(lambda: generalization.neural_collapse(OUTPUTS, LABELS + 3, classes=3), "labels", shown="4"),
    doors.bad(lambda: information.binned(OUTPUTS, LABELS[:3], widths=[1.0]), "labels", shown="(3,)"),
    doors.bad(lambda: information.binned(OUTPUTS, [0, 1, 0, np.nan], widths=[1.0]), "labels", shown="nan"),
    doors.bad(lambda: information.entropy([0.5, 0.6]), "probabilities", shown="1.1"),
    doors.bad(lambda: information.entropy([1.5, -0.5]), "probabilities", shown="-0.5"),
    doors.bad(lambda: information.mutual_information([[0.5, 0.5], [0.5, 0.5]]), "joint", shown="2.0"),
    doors.bad(lambda: information.mutual_information([0.5, 0.5]), "joint", shown="(2,)"),
]

TRAINING = [
    doors.bad(lambda: fit(exhausted()), "batches", shown="iterator"),
    doors.bad(lambda: fit([]), "batches", shown="[]"),
    doors.bad(lambda: fit(iter(())), "batches", shown="iterator"),
    doors.bad(lambda: fit(None), "batches", shown="None"),
    doors.bad(lambda: fit(lambda: [(X, Y)]), "batches", shown="lambda"),
    doors.bad(lambda: fit(optimizer=optax.sgd), "optimizer", shown="sgd"),
    doors.bad(lambda: fit(optimizer=optax.GradientTransformation), "optimizer", shown="GradientTransformation"),
    doors.bad(lambda: fit(optimizer=(OPTIMIZER.init, 3)), "optimizer", shown="3"),
    doors.bad(lambda: fit(optimizer="adam"), "optimizer", shown="'adam'"),
    doors.bad(lambda: fit(observe={"a": (lambda step: "yes", square)}), "observe['a']", shown="'yes'"),
    doors.bad(lambda: fit(observe={"a": (lambda step: np.nan, square)}), "observe['a']", shown="nan"),
    doors.bad(lambda: fit(observe={"a": ([-1], square)}), "observe['a']", shown="-1"),
    doors.bad(lambda: fit(observe={"a": (np.nan, square)}), "observe['a']", shown="nan"),
    doors.bad(lambda: fit(observe={"a": square}), "observe['a']", shown="square"),
    doors.bad(lambda: fit(observe={3: ([1], square)}), "observe", shown="3"),
    doors.bad(lambda: fit(observe=[("a", [1], square)]), "observe", shown="("),
    doors.bad(lambda: fit(early_stopping=train.early_stopping), "early_stopping", shown="early_stopping"),
    doors.bad(lambda: descent.path(square, PARAMS, optax.sgd, steps=2), "optimizer", shown="sgd"),
    doors.bad(lambda: descent.along(KEY, loss, PARAMS, (X, Y), optax.sgd, steps=2, every=1), "optimizer", shown="sgd"),
    doors.bad(lambda: train.descend(loss, PARAMS, optax.sgd, (X[None], Y[None])), "optimizer", shown="sgd"),
    doors.bad(lambda: train.descend(loss, PARAMS, OPTIMIZER, (X[None], Y)), "batches", shown="[4]"),
    doors.bad(lambda: train.update_ratio(loss, optax.sgd, (X, Y)), "optimizer", shown="sgd"),
    doors.bad(lambda: newton_cg.minimize(lambda p: "text", PARAMS, steps=1), "function", shown="'text'"),
    doors.bad(lambda: second_order.lbfgs(lambda p: p["w"], PARAMS, steps=1), "(3, 2)"),
    doors.bad(
        lambda: gauss_newton.minimize(lambda p: None, PARAMS, steps=1, method="armijo"), "objective", shown="None"
    ),
]


@pytest.mark.parametrize("row", [*RECORDS, *DISAGREE, *LABELLED, *TRAINING], ids=str)
def test_bad_calls_by_hand_are_refused_before_any_work(row):
    doors.refused(row)


def test_the_linear_model_of_a_function_that_returns_no_array_is_refused():
    with pytest.raises(TypeError, match="apply must return arrays.*got 'text'"):
        kernels.linearize(lambda params, x: "text", PARAMS)(PARAMS, X)


@pytest.mark.parametrize("when", [[1], lambda step: 1 // (step - 1)], ids=["function", "when"])
def test_an_error_of_the_callers_own_stays_what_it_is_and_the_place_is_noted(when):
    def observed(params):
        raise ZeroDivisionError("the caller's own")

    with pytest.raises(ZeroDivisionError) as caught:
        fit(observe={"mine": (when, observed)})
    assert any("observe['mine']" in note and "at step 1" in note for note in caught.value.__notes__)


def test_an_error_while_batches_are_read_stays_what_it_is():
    def reading():
        yield X, Y
        raise ConnectionResetError("the caller's own")

    with pytest.raises(ConnectionResetError):
        fit(reading(), steps=3)


def test_a_schedule_that_becomes_nan_is_a_divergence_at_that_step():
    params, history = fit(train.whole((X, Y)), optax.sgd(lambda step: jnp.where(step < 2, 0.1, jnp.nan)), steps=4)
    expected, _ = fit(train.whole((X, Y)), optax.sgd(0.1), steps=2)
    assert history.stopped == "diverged"
    assert "at step 2" in history.detail
    np.testing.assert_allclose(params["w"], expected["w"], rtol=1e-6)


def test_batches_that_end_early_are_said():
    _, history = fit(iter([(X, Y)]), steps=3)
    assert len(history.loss) == 1
    assert history.stopped != "finished"


PLACES = {
    "training": lambda folder: fit(folder=folder),
    "published data": lambda folder: data.mnist(split="train", folder=folder),
    "a run's folder": reporting.writable,
    "a saved run": reporting.load,
    "history": lambda path: train.History(np.zeros(2), {}).save(path),
}


@pytest.mark.parametrize("kind", PLACES)
def test_a_folder_that_is_a_file_or_lies_in_one_is_named(tmp_path, kind):
    (tmp_path / "taken").write_text("a file")
    places = [tmp_path / "taken" / "inside"] + [tmp_path / "taken"] * (kind != "history")
    for place in places:
        with pytest.raises((OSError, ValueError), match="taken"):
            PLACES[kind](place)
    assert (tmp_path / "taken").read_text() == "a file"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the administrator may write everywhere")
@pytest.mark.parametrize("kind", ["training", "a run's folder", "history"])
def test_a_folder_without_permission_is_named(tmp_path, kind):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with pytest.raises(PermissionError, match="closed"):
        PLACES[kind](closed / "inside")


READERS = {
    "idx": idx.read,
    "cifar binary": lambda path: cifar.read_binary(path, classes=(10,)),
    "cifar pickle": lambda path: cifar.read_pickle(path, classes=(10,)),
    "table": tables.read,
    "labelled": lambda path: tables.labelled(path, label="a"),
}


@pytest.mark.parametrize("kind", READERS)
def test_files_with_nothing_to_read_are_named(tmp_path, kind):
    (tmp_path / "few.bin").write_bytes(b"\n" * 3)
    (tmp_path / "link.bin").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "pipe.bin")
    for name in ("few.bin", "link.bin", "pipe.bin"):
        with pytest.raises((ValueError, OSError), match=name):
            READERS[kind](tmp_path / name)
