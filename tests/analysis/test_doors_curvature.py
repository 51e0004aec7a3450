"""Bad calls of curvature, landscapes, kernels, descent, generalization, information: refused by name, before any work.

A good call of each function stands once; a row replaces one of its arguments by something that is none.
"""

import functools

import jax
import numpy as np
import optax
import pytest

from numdl.analysis import curvature, descent, generalization, information, kernels, landscape
from numdl.networks import core
from tests import doors

KEY, KEYS = jax.random.key(0), jax.random.split(jax.random.key(0), 2)
X, Y = np.ones((4, 3)), np.ones((4, 2))
PARAMS = {"b": np.zeros(2), "w": np.ones((3, 2))}
ROWS = {"b": np.zeros((3, 2)), "w": np.ones((3, 3, 2))}
MASKED = np.ma.masked_array(np.ones((4, 3)), mask=np.eye(4, 3) > 0)
SGD = optax.sgd(0.1)


def apply(params, x):
    return x @ params["w"] + params["b"][None]


def squares(z, batch):
    return ((z - batch[1]) ** 2).mean()


def loss(params, batch):
    return squares(apply(params, batch[0]), batch)


def of_params(params):
    return loss(params, (X, Y))


def vector_loss(params, batch):
    return ((apply(params, batch[0]) - batch[1]) ** 2).mean(axis=1)


COUNT = [(0, "0"), (-1, "-1"), (2.5, "2.5"), (True, "True"), ("3", "'3'"), (None, "None"), (np.array([3]), "(1,)")]
MAYBE = [row for row in COUNT if row[0] is not None]  # counts that may be left out
SIZE = [(0.0, "0"), (-1.0, "-1"), (np.nan, "nan"), (np.inf, "inf"), ("x", "'x'"), (1j, "1j"), (None, "None")]
LEAST = [(-1.0, "-1"), (np.nan, "nan"), ("x", "'x'"), (1j, "1j"), (None, "None")]
RANDOM = [(0, "0"), (None, "None"), (np.zeros(2, np.uint32), "(2,)"), (KEYS, "(2,)")]
FLAG = [(1, "1"), ("yes", "'yes'"), (None, "None")]
FUNCTION = [(3, "3"), (None, "None"), (lambda: 0.0, "()")]
LOSS = [*FUNCTION, (vector_loss, "")]
TREE = [
    ({}, ""),
    ({"b": np.zeros(2, int)}, ""),
    ({"w": "text"}, "'text'"),
    ({**PARAMS, "f": np.tanh}, "tanh"),
    ({"w": np.array(["a"])}, "<U1"),
    ({**PARAMS, "w": np.ma.masked_array(np.ones((3, 2)), mask=np.eye(3, 2))}, "masked"),
]
FROZEN = [(("x",), "'x'"), ((3,), "3"), (3, "3"), (None, "None"), (("w", "b"), "w")]
LIKE = [({"w": np.ones((3, 2))}, "no leaf"), ({**PARAMS, "w": np.ones((2, 3))}, "(2, 3)"), (np.ones(8), "")]
BATCH = [((MASKED, Y), "masked"), ((X, "text"), "'text'")]
NUMBERS = [(np.array(["a"]), "<U1"), (np.array([1j, 0]), "complex"), (MASKED[0], "masked"), (np.zeros((0,)), "(0,)")]
NETWORK = core.Network(lambda key, x: PARAMS, lambda params, x, probes=None: (x,), lambda params, y: y)

TWO = {"loss": loss, "params": PARAMS, "batch": (X, Y)}
ENDS = {"loss": loss, "start": PARAMS, "stop": PARAMS, "batch": (X, Y)}
CHUNK = {"chunk": MAYBE, "reduction": [("max", "'max'"), (1, "1")], "frozen": FROZEN}
OPERATOR = {"loss": LOSS, "params": TREE, "batch": BATCH, "key": RANDOM, "operator": [("ggn", "'ggn'")], **CHUNK}
OUTPUTS = {"outputs": FUNCTION, "params": TREE, "frozen": FROZEN, "chunk": MAYBE}

# (function, its good call, {argument: [(bad value, a piece of it that the message shows)]})
TABLE = [
    (curvature.hessian, TWO, {"loss": LOSS, "params": TREE, "batch": BATCH, **CHUNK}),
    (
        curvature.gauss_newton,
        {"outputs": lambda p, b: apply(p, b[0]), "loss_of_outputs": squares, "params": PARAMS, "batch": (X, Y)},
        {**OUTPUTS, "loss_of_outputs": FUNCTION},
    ),
    (
        curvature.fisher,
        {"outputs": lambda p, b: apply(p, b[0]), "params": PARAMS, "batch": (X, Y), "likelihood": "gaussian"},
        {**OUTPUTS, "likelihood": [("poisson", "'poisson'"), (None, "None")]},
    ),
    (curvature.empirical_fisher, TWO, {"loss": LOSS, "params": TREE, "frozen": FROZEN, "chunk": MAYBE}),
    (
        curvature.top_eigenvalues,
        {**TWO, "key": KEY, "k": 2},
        {
            **OPERATOR,
            "k": [*COUNT, (9, "9")],
            "which": [("middle", "'middle'")],
            "tolerance": SIZE,
            "max_matvecs": [*COUNT, (3, "3")],
            "basis": [(3, "3"), ("x", "'x'")],
            "start": [(PARAMS, ""), ({"w": ROWS["w"]}, ""), ("text", "text")],
            "deflate": [(PARAMS, ""), ({"w": ROWS["w"]}, "")],
            "verify": FLAG,
            "linearize": [("yes", "'yes'")],
        },
    ),
    (
        curvature.spectral_density,
        {**TWO, "key": KEY},
        {
            **OPERATOR,
            "num_matvecs": COUNT,
            "num_probes": [*COUNT, (1, "1")],
            "points": [*COUNT, (1, "1")],
            "width": SIZE[:-1],
            "reorthogonalize": FLAG,
        },
    ),
    (curvature.trace, {**TWO, "key": KEY}, {**OPERATOR, "num_matvecs": COUNT, "method": [("exact", "'exact'")]}),
    (curvature.diagonal, {**TWO, "key": KEY}, {"key": RANDOM, "num_matvecs": COUNT, "frozen": FROZEN}),
    (curvature.frobenius_norm, {**TWO, "key": KEY}, {"key": RANDOM, "num_matvecs": COUNT, "loss": LOSS}),
    (
        curvature.gradient_overlap,
        {**TWO, "vectors": ROWS},
        {"loss": FUNCTION, "params": TREE, "vectors": [(PARAMS, ""), ({"w": ROWS["w"]}, "")], "frozen": FROZEN},
    ),
    (
        curvature.outliers,
        {"values": np.array([3.0, 1.0])},
        {
            "values": [(np.array([1.0, 3.0]), "1"), (np.ones(1), "1"), (np.ones((2, 2)), "(2, 2)"), *NUMBERS],
            "intervals": [(np.ones((3, 2)), "(3, 2)")],
            "least_ratio": SIZE,
        },
    ),
    (
        landscape.direction,
        {"key": KEY, "params": PARAMS},
        {"key": RANDOM, "params": TREE, "normalize": [("unit", "'unit'")], "vectors": FLAG, "frozen": FROZEN},
    ),
    (
        landscape.line,
        {**TWO, "along": PARAMS, "positions": np.zeros(2)},
        {
            "loss": LOSS,
            "params": TREE,
            "batch": BATCH,
            "along": LIKE,
            "positions": [(np.array([0.0, np.nan]), "nan"), (0.5, "()"), (np.zeros((2, 2)), "(2, 2)"), *NUMBERS],
            "at_a_time": MAYBE,
            "frozen": FROZEN,
        },
    ),
    (
        landscape.plane,
        {**TWO, "u": PARAMS, "v": PARAMS, "first": np.zeros(2), "second": np.zeros(2)},
        {"loss": LOSS, "u": LIKE, "v": LIKE, "first": NUMBERS, "second": NUMBERS, "at_a_time": MAYBE},
    ),
    (
        landscape.plane_of_trajectory,
        {"trajectory": ROWS},
        {
            "trajectory": [(PARAMS, ""), ({"w": np.ones((2, 3))}, "2"), ({}, ""), ({"w": "text"}, "'text'")],
            "frozen": FROZEN,
        },
    ),
    (
        landscape.interpolation,
        ENDS,
        {
            "loss": LOSS,
            "start": TREE,
            "stop": LIKE,
            "points": [*COUNT, (2, "2")],
            "at_a_time": MAYBE,
            "frozen": FROZEN,
        },
    ),
    (
        landscape.connect,
        {**ENDS, "key": KEY, "steps": 2, "learning_rate": 0.1},
        {
            "key": RANDOM,
            "loss": LOSS,
            "start": TREE,
            "stop": LIKE,
            "steps": COUNT,
            "learning_rate": SIZE,
            "points": COUNT,
        },
    ),
    (
        landscape.critical_point,
        TWO,
        {"loss": LOSS, "params": TREE, "steps": COUNT, "tolerance": LEAST, "damping": LEAST, "frozen": FROZEN},
    ),
    (
        landscape.align,
        {
            "params": {"a": np.ones((3, 2)), "c": np.ones((2, 1))},
            "reference": {"a": np.ones((3, 2)), "c": np.ones((2, 1))},
        },
        {
            "params": [({"a": np.ones((3, 2))}, ""), ({"a": np.ones((2, 2)), "c": np.ones((2, 1))}, "(2, 2)")],
            "layers": [((("a", None),), "'a'"), (3, "3"), (("a", "c"), "'a'"), ((("a", None), ("c", "d")), "'d'")],
            "key": RANDOM[:1] + RANDOM[2:],
            "sweeps": COUNT,
        },
    ),
    (
        kernels.ntk,
        {"apply": apply, "params": PARAMS, "x1": X},
        {
            "apply": [*FUNCTION, (lambda p, x: (x, x), "float"), (lambda p, x: 1j * x, "complex")],
            "params": TREE,
            "x1": [(MASKED, "masked"), (1.0, "()"), (np.zeros((0, 3)), "(0,)"), ("text", "'text'")],
            "x2": [(np.ones((4, 2)), "[2]"), (MASKED, "masked"), (X.astype(int), "int")],
            "scale": [(-1.0, "-1"), ({"w": 1.0}, "'w'"), (lambda name, leaf: "x", "'x'"), (np.nan, "nan")],
            "outputs": [("trace", "'trace'")],
            "method": [("fast", "'fast'")],
            "memory_limit": SIZE[:-1],
            "frozen": FROZEN,
        },
    ),
    (
        kernels.estimate,
        {"apply": apply, "params": PARAMS, "x1": X},
        {"apply": FUNCTION, "params": TREE, "frozen": FROZEN},
    ),
    (
        kernels.ntk_scale,
        {"apply": apply, "params": PARAMS, "x": X, "weight_variance": 1.0, "bias_variance": 0.0},
        {
            "apply": FUNCTION,
            "params": TREE,
            "x": [(MASKED, "masked")],
            "weight_variance": LEAST,
            "bias_variance": LEAST,
        },
    ),
    (
        kernels.nngp,
        {"key": KEY, "network": NETWORK, "x1": X, "seeds": 2},
        {"key": RANDOM, "x1": [(X.astype(int), "int"), (MASKED, "masked")], "x2": [(X[:, :2], "[2]")], "seeds": COUNT},
    ),
    (
        kernels.alignment,
        {"kernel1": np.eye(3), "kernel2": np.eye(3)},
        {
            "kernel1": [
                (np.ones(3), "(3,)"),
                (np.ones((3, 2)), "(3, 2)"),
                (1j * np.eye(3), "complex"),
                (MASKED[:3], "masked"),
            ],
            "kernel2": [(np.eye(2), "(2, 2)"), ("text", "")],
            "centered": FLAG,
        },
    ),
    (kernels.target_kernel, {"targets": Y}, {"targets": [(1.0, "()"), *NUMBERS, (np.ones((3, 2), int), "(3, 2)")]}),
    (
        kernels.drift,
        {"kernel0": np.eye(3), "kernel": np.eye(3)},
        {"kernel0": [(np.ones(3), "(3,)")], "kernel": [(np.eye(2), "(2, 2)"), (np.ones(3), "(3,)")]},
    ),
    (kernels.linearize, {"apply": apply, "params": PARAMS}, {"apply": FUNCTION, "params": TREE, "frozen": FROZEN}),
    (
        kernels.linearization_error,
        {"apply": apply, "params0": PARAMS, "params": PARAMS, "x": X},
        {"apply": FUNCTION, "params0": TREE, "params": LIKE, "x": [(MASKED, "masked")], "frozen": FROZEN},
    ),
    (
        kernels.laziness,
        {"apply": apply, "trajectory": ROWS, "x": X},
        {
            "apply": FUNCTION,
            "trajectory": [({**ROWS, "b": np.ones((2, 2))}, ""), ({}, ""), ({"w": "text"}, "'text'")],
            "x": [(MASKED, "masked")],
            "targets": [(np.ones(3), "(3,)"), (np.array(["a"] * 4), "<U1")],
            "scale": [(-1.0, "-1")],
            "frozen": FROZEN,
        },
    ),
    (
        descent.sharpness,
        {**TWO, "start": PARAMS, "num_matvecs": 2},
        {
            "loss": FUNCTION,
            "params": TREE,
            "batch": BATCH,
            "start": [*LIKE, ({"b": np.zeros(2), "w": np.zeros((3, 2))}, "0")],
            "num_matvecs": COUNT,
            "preconditioner": [*LIKE, (PARAMS, "0")],
            "frozen": FROZEN,
        },
    ),
    (
        descent.along,
        {**TWO, "key": KEY, "optimizer": SGD, "steps": 4, "every": 2},
        {
            "key": RANDOM,
            "loss": LOSS,
            "params": TREE,
            "optimizer": [(0.1, "0.1"), (None, "None")],
            "steps": [*COUNT, (3, "3")],
            "every": COUNT,
            "num_matvecs": COUNT,
            "preconditioner": [(3, "3"), (lambda memory: memory, "(memory)")],
            "frozen": FROZEN,
        },
    ),
    (descent.adam_preconditioner, {}, {"b2": [(1.5, "1.5"), (-1.0, "-1"), ("x", "'x'")], "eps": LEAST}),
    (
        descent.path,
        {"loss": of_params, "params": PARAMS, "optimizer": SGD, "steps": 2},
        {"loss": FUNCTION[:2], "params": TREE, "optimizer": [(0.1, "0.1")], "steps": COUNT[1:], "frozen": FROZEN},
    ),
    (
        descent.mode_strength,
        {"matrices": [np.eye(3)], "left": np.eye(3), "right": np.eye(3)},
        {
            "matrices": [([], "[]"), (3, "3"), ([np.ones(3)], "(3,)"), ([np.eye(3), np.eye(2)], "(2, 2)")],
            "left": [(np.eye(2), "(2, 2)")],
            "right": [(np.ones(3), "(3,)"), (np.eye(3) * 1j, "complex")],
        },
    ),
    (
        generalization.gap,
        {"train_losses": np.ones(3), "test_losses": np.ones(3)},
        {"train_losses": [(np.ones((2, 2)), "(2, 2)"), (1.0, "()"), *NUMBERS[:3]], "test_losses": [(np.ones(1), "1")]},
    ),
    (
        generalization.margins,
        {"outputs": Y, "labels": np.zeros(4, int)},
        {
            "outputs": [(np.ones(4), "(4,)"), (np.ones((4, 2), int), "int"), (np.ones((4, 1)), "(4, 1)")],
            "labels": [
                (np.zeros(3, int), "(3,)"),
                (np.zeros(4), "float"),
                (np.full(4, 2), "2"),
                (np.full(4, -1), "-1"),
            ],
            "scale": SIZE,
        },
    ),
    (
        generalization.path_norm,
        {"apply": apply, "params": PARAMS, "x": X},
        {
            "apply": FUNCTION,
            "params": TREE,
            "x": [(3.0, "3.0"), (X.astype(int), "int"), (MASKED, "masked")],
            "frozen": FROZEN,
        },
    ),
    (
        generalization.tolerated_variance,
        {**TWO, "key": KEY, "rise": 0.1, "draws": 2},
        {
            "key": RANDOM,
            "loss": LOSS,
            "params": TREE,
            "rise": SIZE,
            "draws": [*COUNT, (1, "1")],
            "smallest": SIZE,
            "largest": [(1e-13, "1e-13"), (np.nan, "nan")],
            "relative": FLAG,
            "frozen": FROZEN,
        },
    ),
    (
        generalization.neural_collapse,
        {"features": X, "labels": np.array([0, 1, 0, 1])},
        {
            "features": [(np.ones(4), "(4,)"), (X.astype(int), "int"), (MASKED, "masked")],
            "labels": [(np.zeros(4), "float"), (np.zeros(3, int), "(3,)"), (np.full(4, -1), "")],
            "weights": [(np.ones((2, 2)), "(2, 2)"), (np.ones(3), "(3,)")],
            "bias": [(np.ones(3), "(3,)")],
            "classes": [(1, "1"), (2.5, "2.5"), (True, "True")],
        },
    ),
    (
        information.entropy,
        {"probabilities": [0.5, 0.5]},
        {
            "probabilities": [
                ([0.5, 0.6], "1.1"),
                ([-0.5, 1.5], "-0.5"),
                (["a"], "<U1"),
                ([np.nan, 1], "nan"),
                (MASKED, "masked"),
            ]
        },
    ),
    (information.mutual_information, {"joint": np.eye(2) / 2}, {"joint": [([0.5, 0.5], "(2,)"), (np.eye(2), "2")]}),
    (
        information.binned,
        {"states": X, "labels": np.zeros(4), "widths": [0.1]},
        {
            "states": [(np.array([[np.nan]] * 4), "nan"), (1.0, "()"), (MASKED, "masked"), (X * 1j, "complex")],
            "labels": [(np.zeros(3), "(3,)"), (np.full(4, np.nan), "")],
            "widths": [(0.0, "0"), ([-1.0], "-1"), ("x", ""), (np.ones((2, 2)), "(2, 2)")],
        },
    ),
    (
        information.kernel_bounds,
        {"states": X, "labels": np.zeros(4), "noise_variances": [0.1]},
        {
            "states": [(MASKED, "masked")],
            "labels": [(np.zeros(3), "(3,)")],
            "noise_variances": [(0.0, "0"), (np.nan, "nan")],
        },
    ),
    (
        information.plane,
        {"states": [np.ones((2, 4, 3))], "labels": np.zeros(4), "widths": [0.1]},
        {
            "states": [(3, "3"), ([np.ones(3)], "(3,)"), ([np.ones((2, 4)), np.ones((3, 4))], "3")],
            "widths": [(None, "neither"), (-1.0, "-1")],
            "noise_variances": [(0.1, "both")],
        },
    ),
]


def rows():
    for function, good, bad in TABLE:
        for argument, values in bad.items():
            for value, shown in values:
                call = functools.partial(function, **{**good, argument: value})
                name = f"{function.__module__.split('.')[2]}.{function.__name__}-{argument}-{shown or 'bad'}"
                yield pytest.param(doors.bad(call, argument, shown=shown), id=name)


@pytest.mark.parametrize("row", list(rows()))
def test_bad_calls_are_refused_by_name(row):
    doors.refused(row)


OPERATOR_ROWS = [
    doors.bad(lambda: curvature.restrict(curvature.hessian(**TWO), "third"), "names", shown="'third'"),
    doors.bad(lambda: curvature.restrict(curvature.hessian(**TWO), 3), "names", shown="3"),
    doors.bad(lambda: curvature.restrict(curvature.hessian(**TWO, frozen="b"), "b"), "names", shown="'b'"),
    doors.bad(lambda: curvature.restrict(loss, "w"), "operator", shown="function"),
    doors.bad(lambda: curvature.blocks(curvature.hessian(**TWO), by="row"), "by", shown="'row'"),
    doors.bad(lambda: curvature.blocks(loss), "operator", shown="function"),
    doors.bad(lambda: curvature.needs(curvature.hessian(**TWO), basis=0), "basis", shown="0"),
    doors.bad(lambda: curvature.needs(curvature.hessian(**TWO), basis=2, extra=-1), "extra", shown="-1"),
    doors.bad(lambda: curvature.hessian(**TWO)({"w": np.ones((3, 2))}), "v", shown="no leaf"),
    doors.bad(lambda: curvature.trace(curvature.hessian(**TWO), PARAMS, key=KEY), "params", shown="Operator"),
    doors.bad(lambda: curvature.trace(curvature.hessian(**TWO), key=KEY, frozen="w"), "frozen", shown="Operator"),
    doors.bad(lambda: curvature.trace(curvature.hessian(**TWO), key=KEY, chunk=2), "chunk", shown="Operator"),
    doors.bad(lambda: curvature.hessian(loss, PARAMS, (X, Y[:3]), chunk=2), "batch", shown="3"),
    doors.bad(lambda: curvature.empirical_fisher(loss, PARAMS, (X, Y[:3])), "batch", shown="3"),
    doors.bad(lambda: curvature.trace(**TWO, key=KEY, operator="gauss_newton"), "loss", shown="function"),
    doors.bad(
        lambda: curvature.trace(**TWO, key=KEY, operator="empirical_fisher", reduction="sum"),
        "reduction",
        shown="'sum'",
    ),
    doors.bad(lambda: kernels.linearize(apply, PARAMS)({"w": X}, X), "new_params", shown="no leaf"),
]


@pytest.mark.parametrize("row", OPERATOR_ROWS, ids=str)
def test_operators_refuse_by_name(row):
    doors.refused(row)


def test_the_good_calls_of_the_table_are_good():
    """So that a row is refused for what it changes: the calls that take no time to compile."""
    for function, good, _ in TABLE:
        if (
            function.__module__.endswith(("information", "operators", "eigenvalues"))
            and function.__name__ != "top_eigenvalues"
        ):
            function(**good)
