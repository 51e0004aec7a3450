"""The audit on what others hand over: graphs, modules, rules for the way back alone, outputs and targets in trees."""

import contextlib
import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import numdl as nd
from numdl import activations
from numdl.audit import _affine, _by_hand, _fresh, _proof, _settings, predict, remedies
from numdl.audit._measured import (
    black_box,
    cases,
    described,
    functions,
    heads,
    labels,
    programs,
    tangent,
    views,
)
from numdl.audit._reading import Reading
from numdl.audit._skills import UNPAIRED
from numdl.audit.evidence import Data, Evidence, Facts, Finding, Kernel, Loss, Optimizer, Predicted, Trial, empty
from numdl.networks import dense

N = 12


def squares(outputs, targets):
    return jnp.mean((outputs - targets) ** 2)


def drawn(*shape, seed=0):
    return np.float32(np.random.default_rng(seed).standard_normal(shape))


def case(apply, params, batch, loss=squares, **changes):
    given = {"optimizer": "sgd", "learning_rate": 0.1, "steps": 5, "data": None, "evaluate": None, "stochastic": False}
    return cases.case(apply, params, batch, loss=loss, key=jax.random.key(0), **{**given, **changes})


def linear(p, x):
    return x @ p


def auxiliary(p, x):
    return {"out": x @ p, "balance": jnp.mean(p**2)}


def with_balance(outputs, targets):
    return squares(outputs["out"], targets) + 0.1 * outputs["balance"]


X, Y, W = drawn(N, 3), drawn(N, 2, seed=1), drawn(3, 2, seed=2)


@pytest.mark.parametrize(
    ("apply", "params", "batch", "loss", "rows"),
    [
        (linear, W, (X, Y), squares, (True,)),
        (auxiliary, W, (X, Y), with_balance, (False, True)),
        (lambda p, x: x["links"] @ (x["of"] @ p), W, ({"links": drawn(N, N), "of": X}, Y), squares, None),
        (lambda p, x: x.reshape(N // 3, 3, 3).mean(1) @ p, W, (X, Y[: N // 3]), squares, None),
        (lambda p, x: x.reshape(N, 3) @ p, W, (X, Y), squares, None),
        (lambda p, x: squares(x[:, :3] @ p, x[:, 3:]), W, (np.c_[X, Y], Y), lambda o, y: o, (False,)),
        (lambda p, x: x.swapaxes(0, 1) @ p, W, (drawn(4, N, 3), Y[:, None]), squares, None),
    ],
    ids=["rows", "a-number-beside", "graph", "pooled-rows", "fixed-size", "the-loss-itself", "second-axis"],
)
def test_where_the_examples_lie_is_told_by_other_numbers_of_them(apply, params, batch, loss, rows):
    known = case(apply, params, batch, loss)
    assert known.follows == rows
    assert known.apart == bool(rows and any(rows))
    assert bool(known.notes) == (not known.apart)


@pytest.mark.parametrize("form", [tuple, list], ids=["tuples", "lists"])
@pytest.mark.parametrize("tree", [lambda a: a, lambda a: (a, 2 * a), lambda a: {"a": a}], ids=["one", "two", "dict"])
def test_data_are_a_pair_or_batches_by_the_form_of_the_batch(form, tree):
    apply = lambda p, x: jax.tree.leaves(x)[0] @ p  # noqa: E731
    batch = tree(X), Y
    whole = case(apply, W, batch, data=form([tree(np.tile(X, (2, 1))), np.tile(Y, (2, 1))]))
    batches = case(apply, W, batch, data=form([form(batch), form(batch)]))
    assert not whole.in_order and batches.in_order
    for ours, theirs in zip(jax.tree.leaves(whole.data), jax.tree.leaves(batches.data), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_what_is_no_array_in_a_module_stays_as_it_is():
    params = {"w": W, "activation": jnp.tanh, "name": "layer", "slope": 2.0}
    apply = lambda p, x: p["activation"](p["slope"] * x @ p["w"]) + len(p["name"])  # noqa: E731
    known = case(apply, params, (X, Y), evaluate=lambda p, x: p["slope"] * x @ p["w"])
    assert [np.shape(leaf) for leaf in jax.tree.leaves(known.moving)] == [W.shape]
    np.testing.assert_allclose(known.forward(known.moving, X, None), np.tanh(2 * X @ W) + 5, rtol=1e-5)
    np.testing.assert_allclose(known.evaluate(known.whole(known.moving), X), 2 * X @ W, rtol=1e-5)
    assert "3 leaves" in known.notes[0]


@jax.custom_vjp
def sign(x):
    return jnp.sign(x)


sign.defvjp(lambda x: (jnp.sign(x), x), lambda x, g: (g * (jnp.abs(x) < 1),))


def test_a_rule_for_the_way_back_alone_gives_the_transposed_jacobian():
    apply = lambda p, x: sign(x @ p["a"]) @ p["b"]  # noqa: E731
    known = case(apply, {"a": drawn(3, 4, seed=5), "b": drawn(4, 2, seed=6)}, (X, Y))
    assert known.only_backward and not case(linear, W, (X, Y)).only_backward
    out, push, pull = tangent._linear(known, lambda p: views.floats(apply(p, X)), known.moving)
    rows = jax.jacrev(lambda p: apply(p, X))(known.moving)
    away = {"a": drawn(3, 4, seed=7), "b": drawn(4, 2, seed=8)}
    dense = sum(np.einsum("ncij,ij->nc", rows[k], away[k]) for k in "ab")
    np.testing.assert_allclose(push(away)[0], dense, rtol=2e-5, atol=1e-5)
    back = pull([jnp.asarray(Y)])
    np.testing.assert_allclose(back["a"], np.einsum("ncij,nc->ij", rows["a"], Y), rtol=2e-5, atol=1e-5)
    assert out[0].shape == Y.shape


def steady(function, z):
    """The fixed point from z, to a tolerance: a loop that has no derivative."""
    near = lambda s: jnp.max(jnp.abs(function(s) - s)) > 1e-4  # noqa: E731
    return jax.lax.while_loop(near, function, z)


@jax.custom_vjp
def equilibrium(w, u):
    return steady(lambda z: jnp.tanh(z @ w + u), jnp.zeros_like(u))


def implicit(kept, g):
    w, u, z = kept
    back = jax.vjp(lambda z: jnp.tanh(z @ w + u), z)[1]
    return jax.vjp(lambda w, u: jnp.tanh(z @ w + u), w, u)[1](steady(lambda s: g + back(s)[0], g))


equilibrium.defvjp(lambda w, u: (equilibrium(w, u), (w, u, equilibrium(w, u))), implicit)


def test_where_the_way_back_has_no_derivative_the_kernel_is_known_and_no_forecast():
    known = case(lambda p, x: equilibrium(p["w"], x @ p["u"]), {"w": 0.3 * np.eye(2, dtype=np.float32), "u": W}, (X, Y))
    found = tangent.measure(known)
    assert known.only_backward and found.forecast.size == found.forecast_steps.size == 0 and not found.linear
    assert np.isfinite(found.alignment) and found.start == pytest.approx(
        float(known.cost(known.moving, X, Y)), rel=1e-4
    )


def test_forecast_and_loss_take_outputs_in_trees_with_numbers_and_indices_beside_them():
    """What stands beside the outputs changes neither the floor nor the forecast of a loss that ignores it."""
    several = lambda p, x: {"index": jnp.argmax(x @ p, 1), "norm": jnp.sum(p**2), "out": x @ p}  # noqa: E731
    here = case(several, W, (X, Y), lambda o, y: squares(o["out"], y), steps=20)
    alone = case(linear, W, (X, Y), steps=20)
    assert here.follows == (True, False, True)
    ours, theirs = tangent.measure(here), tangent.measure(alone)
    np.testing.assert_allclose(ours.forecast, theirs.forecast, rtol=1e-5)
    assert ours.alignment == pytest.approx(theirs.alignment, rel=1e-3)
    ours, theirs = heads.measure(here)[0], heads.measure(alone)[0]
    assert ours.floor_shared == pytest.approx(np.mean((Y - Y.mean(0)) ** 2), rel=1e-3)
    assert ours.floor_shared == pytest.approx(theirs.floor_shared, rel=1e-3)
    assert ours.coupling < 1e-5 and ours.doubled == pytest.approx(1, abs=1e-5)


def test_a_function_with_several_outputs_is_looked_at_as_one():
    mixed = lambda p, x: (jnp.roll(x @ p, -1, 0), x @ p)  # noqa: E731
    loss = lambda o, y: squares(o[0], y) + squares(o[1], y)  # noqa: E731
    assert functions.measure(case(mixed, W, (X, Y), loss)).mixing > 1e-3
    apart = functions.measure(case(lambda p, x: (x @ p, x @ p + 1), W, (X, Y), loss))
    assert apart.mixing < 1e-5 and apart.spread > 0.1 and apart.shape == ()


def test_which_targets_a_loss_reads():
    targets = {"label": Y, "weight": np.ones(N, np.float32)}
    known = case(linear, W, (X, targets), lambda o, y: squares(o, y["label"]))
    assert known.reads == (True, False)
    unread = case(linear, W, (X, Y), lambda o, y: jnp.mean(o**2) + 0 * jnp.zeros_like(y).sum())
    assert unread.reads == (False,)
    found, _ = heads.measure(unread)
    assert found.targets_unread and found.kind == "other"
    assert np.isnan(described.measure(unread, labels.Answers()).target_spread)


def test_targets_and_inputs_in_trees_are_constant_only_where_all_are():
    targets = {"a mask": np.ones(N, np.float32), "label": np.arange(N, dtype=np.int32) % 3}
    loss = lambda o, y: -jnp.mean(y["a mask"] * jnp.take_along_axis(o, y["label"][:, None], 1)[:, 0])  # noqa: E731
    inputs = {"a mask": np.ones((N, 3), np.float32), "token": np.arange(N, dtype=np.int32) % 2}
    apply = lambda p, x: (x["a mask"] @ p)[:, :1] * jnp.arange(3.0)[None] + x["token"][:, None]  # noqa: E731
    found = described.measure(case(apply, W, (inputs, targets), loss), labels.Answers())
    assert found.target_spread > 0.5 and found.spread > 0.4 and found.kind == "float"
    flags = described.measure(
        case(apply, W, ({**inputs, "token": inputs["token"] == 1}, targets), loss), labels.Answers()
    )
    assert flags.spread > 0.4
    beside = described.measure(
        case(lambda p, x: x["x"] @ p, W, ({"a mask": np.ones((N, 3), np.float32), "x": X}, Y)), labels.Answers("values")
    )
    assert beside.offset < 10 and beside.rms == pytest.approx(np.sqrt(np.mean(np.float64(X) ** 2)))
    still = described.measure(
        case(apply, W, ({**inputs, "token": inputs["token"] * 0}, targets), loss), labels.Answers()
    )
    assert still.spread < 1e-6


def test_a_layer_that_an_output_goes_around_is_no_head():
    both = lambda p, x: (jax.nn.softmax(jnp.tanh(x @ p[0]) @ p[1]), jnp.tanh(x @ p[0]) @ p[2])  # noqa: E731
    params = [drawn(3, 4), drawn(4, 2, seed=3), drawn(4, 2, seed=4)]
    loss = lambda o, y: squares(o[0], y) + squares(o[1], y)  # noqa: E731
    one = lambda p, x: jax.nn.softmax(jnp.tanh(x @ p[0]) @ p[1])  # noqa: E731
    around = lambda p, x: x[:, :2] + jax.nn.relu(jnp.tanh(x @ p[0]) @ p[1])  # noqa: E731
    given = ((both, params, loss), (one, params[:2], squares), (around, params[:2], squares))
    found = [heads.split(case(apply, own, (X, Y), cost), X)[1] for apply, own, cost in given]
    assert [head is not None for head in found] == [False, True, False]


def test_parameters_behind_the_last_layer_are_no_limit_of_the_head():
    """One score beside four steps that are learned: apart as they are now they cost, moved they do not."""
    steps = (np.arange(4) < np.arange(N)[:, None] % 5).astype(np.float32)
    apply = lambda p, x: (x @ p["w"]) + p["c"]  # noqa: E731
    params = {"w": drawn(3, 1), "c": jnp.linspace(0.5, -0.5, 4)}
    cost = lambda o, y: optax.sigmoid_binary_cross_entropy(o, y).mean()  # noqa: E731
    with _settings.ours():
        moved, _ = heads.measure(case(apply, params, (X, steps), cost))
        held, _ = heads.measure(case(lambda p, x: apply(p | {"c": params["c"]}, x), params, (X, steps), cost))
    assert moved.has_head and moved.floor_head < 0.05 and held.floor_head > 0.2


@pytest.mark.parametrize("tree", [lambda a, b: (a, b), lambda a, b: [a, (b,)], lambda a, b: {"x": a, "t": b}])
def test_affine_maps_are_like_the_tree_they_change(tree):
    x = tree(3 + 5 * X, np.arange(N, dtype=np.int32))
    shift, scale = _affine.columns(x)
    assert jax.tree.structure(shift) == jax.tree.structure(scale) == jax.tree.structure(x)
    out, same = sorted(jax.tree.leaves(_affine.moved(x, shift, scale)), key=np.ndim, reverse=True)
    np.testing.assert_allclose([out.mean(0), out.std(0)], [np.zeros(3), np.ones(3)], atol=1e-5)
    np.testing.assert_array_equal(same, np.arange(N))


def test_columns_of_any_size_get_deviation_one_and_rounding_stays_small():
    """One of two columns 10^4 times the other, and a constant whose last bits differ."""
    rounded = np.float32(1e4) * (1 + np.float32(1e-7) * (np.arange(N) % 2))
    x = np.stack([1e4 * X[:, 0] + 3e4, X[:, 1]], 1).astype(np.float32)
    out = _affine.moved(x, *_affine.columns(x))
    np.testing.assert_allclose([out.mean(0), out.std(0)], [np.zeros(2), np.ones(2)], atol=1e-3)
    with_constant = np.column_stack([x, rounded]).astype(np.float32)
    assert _affine.moved(with_constant, *_affine.columns(with_constant)).std(0)[2] < 0.01


@pytest.mark.parametrize("branches", [True, False])
def test_each_block_of_a_scan_is_scaled_for_itself(branches):
    """Twelve residual blocks in one scan whose stream grows: every state has its goal, beside a loop over them."""
    width, depth = 6, 12
    a, b = (2 * jax.random.normal(jax.random.key(i), (depth, width, width)) for i in (1, 2))
    first = jax.random.normal(jax.random.key(3), (3, width))

    def apply(p, x):
        block = lambda h, w: (h + jnp.tanh(h @ w[0]) @ w[1], None)  # noqa: E731
        return (jax.lax.scan(block, x @ p["first"], (p["a"], p["b"]))[0] @ p["last"])[:, 0]

    params = {"a": a, "b": b, "first": first, "last": jnp.ones((width, 1))}
    known = case(apply, params, (X, (X[:, 0] > 0).astype(np.float32)), lambda o, y: jnp.mean((o - y) ** 2))
    names = ("first", *(f"{name}[{i}]" for i in range(depth) for name in "ab"), "last")
    breaks = tuple(("skip",) if before.startswith("b") else () for before in ("", *names[:-1]))
    chain = types.SimpleNamespace(names=names, breaks=breaks)
    evidence = types.SimpleNamespace(predicted=empty(Predicted), chain=chain)
    with _settings.ours():
        made, text = _fresh.fresh(known, evidence, branches)
    made = dict(zip(("a", "b", "first", "last"), jax.tree.leaves(made), strict=True))
    rms = lambda z: float(np.sqrt(np.mean(np.square(z))))  # noqa: E731
    h = np.asarray(X @ made["first"])
    goal = depth**-0.5 if branches else 1.0
    assert ("those of the 12 branches" in text) == branches
    for i in range(depth):
        inner = h @ np.asarray(made["a"][i])
        outer = np.tanh(inner) @ np.asarray(made["b"][i])
        if branches:
            assert rms(inner) == pytest.approx(1, rel=1e-3) and rms(outer) == pytest.approx(goal, rel=1e-3)
        h = h + outer
    assert rms(h) < (3 if branches else 20)


def test_a_new_start_of_a_scanned_chain_has_no_biases_and_the_variance_that_is_critical_without_them():
    """Twelve tanh layers in one scan with biases of deviation one: at theirs the critical variance is 3.4, not 1."""
    width, depth = 40, 12
    keys = jax.random.split(jax.random.key(0), 5)
    deep = {
        "w": jax.random.normal(keys[0], (depth, width, width)) * 0.11,
        "b": jax.random.normal(keys[1], (depth, width)),
    }
    params = {"first": jax.random.normal(keys[2], (3, width)), "deep": deep, "last": jnp.ones((width, 1))}
    deep["shift"] = jax.random.normal(keys[4], (depth, width))  # not behind a weight: that of a normalisation, say
    params |= {"place": jax.random.normal(keys[3], (len(X), width))}  # no bias: each example has its own

    def apply(p, x):
        y = x @ p["first"] + p["place"][: len(x)]
        y = jax.lax.scan(lambda y, l: ((jnp.tanh(y) + l["shift"]) @ l["w"] + l["b"], None), y, p["deep"])[0]
        return (jnp.tanh(y) @ p["last"])[:, 0]

    known = case(apply, params, (X, (X[:, 0] > 0).astype(np.float32)), lambda o, y: jnp.mean((o - y) ** 2))
    evidence = types.SimpleNamespace(predicted=empty(Predicted, start_variance=1.0), chain=None)
    with _settings.ours():
        made, text = _fresh.fresh(known, evidence)
    assert "variance 1 / fan_in" in text and "biases 0" in text
    assert not made["deep"]["b"].any() and not made["deep"]["shift"].any() and made["place"].any()
    assert float(made["deep"]["w"].var()) * width == pytest.approx(1, rel=0.05)


def test_an_orthogonal_start_has_equal_singular_values_and_the_variance_that_was_asked_for():
    weights = {"deep": jnp.ones((4, 5, 5)), "first": jnp.ones((3, 5)), "last": jnp.ones((5, 1))}

    def apply(p, x):
        return (jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x @ p["first"], p["deep"])[0] @ p["last"])[:, 0]

    known = case(apply, weights, (X, (X[:, 0] > 0).astype(np.float32)), lambda o, y: jnp.mean((o - y) ** 2))
    evidence = types.SimpleNamespace(predicted=empty(Predicted, start_variance=1.0), chain=None)
    with _settings.ours():
        made, text = _fresh.fresh(known, evidence, orthogonal=True)
    deep, first, _ = jax.tree.leaves(made)
    assert "orthogonal" in text
    for values in np.linalg.svd(np.asarray(deep), compute_uv=False):
        np.testing.assert_allclose(values, np.full(5, np.sqrt(np.mean(values**2))), rtol=1e-4)
    np.testing.assert_allclose(first @ first.T / np.sum(first**2) * 3, np.eye(3), atol=1e-5)


@pytest.mark.parametrize("form", ["scanned", "one by one", "recurrent"])
def test_what_differs_between_examples_passes_thirty_sigmoids(form):
    """With variance 1 / fan_in one part in 4^30 of it is left: half of every state is the same for all."""
    width, depth = 32, 30
    shape = {"scanned": (depth, width, width), "one by one": (depth, width, width), "recurrent": (width, width)}[form]
    weights = {"deep": drawn(*shape), "first": drawn(3, width), "last": drawn(width, 1)}
    if form == "one by one":
        weights["deep"] = list(weights["deep"])

    def states(p, x):
        layer = lambda h, w: (h @ w, jax.nn.sigmoid(h @ w))  # noqa: E731
        h = jax.nn.sigmoid(x @ p["first"])
        if form == "scanned":
            return jax.lax.scan(lambda h, w: (layer(h, w)[1], None), h, p["deep"])[0]
        if form == "recurrent":
            return jax.lax.scan(lambda h, _: (layer(h, p["deep"])[1], None), h, None, length=depth)[0]
        for w in p["deep"]:
            h = layer(h, w)[1]
        return h

    apply = lambda p, x: (states(p, x) @ p["last"])[:, 0]  # noqa: E731
    known = case(apply, weights, (X, (X[:, 0] > 0).astype(np.float32)), lambda o, y: jnp.mean((o - y) ** 2))
    told = lambda f: types.SimpleNamespace(predicted=predict.everything(  # noqa: E731
        types.SimpleNamespace(function=f, names=("first", "deep"), breaks=((), ("shared weight",))),
        empty(Loss), empty(Data), empty(Optimizer), 0.1, np.nan), chain=None)  # fmt: skip
    with _settings.ours():
        made, text = _fresh.fresh(known, told(activations.sigmoid))
        usual, _ = _fresh.fresh(known, told(activations.tanh))
    assert "16 / fan_in behind the first layer" in text
    deep = np.concatenate([np.reshape(w, (-1, width, width)) for w in jax.tree.leaves(made["deep"])])
    np.testing.assert_allclose(deep.sum(1), 0, atol=1e-4)
    spread = lambda p: float(np.std(np.asarray(states(p, X)), 0).mean())  # noqa: E731
    assert spread(made) > 0.03 and spread(usual) < 1e-6


@pytest.mark.parametrize("form", ["scanned", "one by one"])
def test_open_rectifiers_hand_on_what_differs_through_a_few_units(form):
    """Thirty relu layers of five units: nine tenths of the examples pass each, and all states have deviation one."""
    width, depth = 5, 30
    weights = {"first": drawn(3, width), "b": np.zeros(width, np.float32), "last": drawn(width, 1),
               "deep": {"w": drawn(depth, width, width), "b": np.zeros((depth, width), np.float32)}}  # fmt: skip
    if form == "one by one":
        weights["deep"] = [{"w": w, "b": b} for w, b in zip(*weights["deep"].values())]

    def apply(p, x):
        h, block = jax.nn.relu(x @ p["first"] + p["b"]), lambda h, q: (jax.nn.relu(h @ q["w"] + q["b"]), None)
        if form == "scanned":
            h = jax.lax.scan(block, h, p["deep"])[0]
        else:
            for q in p["deep"]:
                h = block(h, q)[0]
        return (h @ p["last"])[:, 0]

    known = case(apply, weights, (X, (X[:, 0] > 0).astype(np.float32)), lambda o, y: jnp.mean((o - y) ** 2))
    evidence = types.SimpleNamespace(predicted=empty(Predicted), chain=None)
    with _settings.ours():
        drawn_anew, _ = _fresh.fresh(known, evidence, orthogonal=True)
        made, text = _fresh.opened(known, drawn_anew)
        assert _fresh.opened(case(linear, W, (X, Y)), W) == (None, "")
    assert "90% of the examples" in text
    blocks = made["deep"]
    if form == "scanned":
        blocks = [dict(zip("bw", pair)) for pair in zip(made["deep"]["b"], made["deep"]["w"])]
    h = X
    for w, b in [(made["first"], made["b"]), *((q["w"], q["b"]) for q in blocks)]:
        z = h @ np.asarray(w) + np.asarray(b)
        assert np.sqrt(np.mean((z - z.mean(0)) ** 2)) == pytest.approx(1, abs=1e-3)
        shut = np.mean(z < -1e-4, axis=0)  # of twelve
        assert (shut > 0).all() and (shut < 0.2).all()
        h = np.maximum(z, 0)


@pytest.mark.parametrize(
    ("function", "between", "variance"),
    [
        (activations.sigmoid, (), 16),
        (activations.sigmoid, ("a sum of layers", "shared weight", "normalization"), 16),
        (activations.sigmoid, ("skip",), np.nan),
        (activations.softplus, (), 4),
        (activations.tanh, (), np.nan),
        (activations.relu, (), np.nan),
        (None, (), np.nan),
    ],
)
def test_the_variance_of_weights_that_sum_to_zero(function, between, variance):
    rest = {"weight_variance": np.zeros(0), "input_square": np.nan, "unknown": ""}
    chain = types.SimpleNamespace(function=function, names=("a", "b"), breaks=((), between), **rest)
    found = predict.everything(chain, empty(Loss), empty(Data), empty(Optimizer), 0.1, np.nan)
    assert found.centred_variance == pytest.approx(variance, nan_ok=True)


@pytest.mark.parametrize(("bias", "critical"), [(0.0, 1.0), (1.0, 3.4432)])
def test_a_start_has_the_variance_that_is_critical_without_biases(bias, critical):
    chain = types.SimpleNamespace(
        function=activations.tanh, names=("a", "b", "c"), breaks=((), (), ()), fan_in=np.full(3, 40.0),
        fan_out=np.full(3, 40.0), weight_variance=np.full(3, 0.5), bias_variance=np.full(3, bias), input_square=1.0,
        unknown="",
    )  # fmt: skip
    found = predict.everything(chain, empty(Loss), empty(Data), empty(Optimizer), 0.1, np.nan)
    assert found.applies and found.start_variance == pytest.approx(1)
    assert found.critical_weight_variance == pytest.approx(critical, rel=1e-4)


def test_whole_numbers_as_targets_of_a_regression_become_floating_ones():
    y = np.arange(N, dtype=np.int32)[:, None] * 1000
    out = _affine.moved(y, *_affine.whole(y))
    assert out.dtype == np.float32 and out.std() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize(("kind", "low", "high"), [("classes", 3, 5), ("binary", -1, 1), ("binary", 1, 2)])
def test_a_repair_of_labels_gives_shift_and_scale(kind, low, high):
    y = np.where(np.arange(N) % 2, low, high).astype(np.int32)
    known = case(lambda p, x: (x @ p)[:, 0], W, (X, y), data=(np.tile(X, (4, 1)), np.tile(y, 4)))
    found = Evidence(
        **dict.fromkeys(("signal", "chain", "function", "optimizer", "kernel", "trial", "predicted")),
        facts=empty(Facts), loss=empty(Loss, kind=kind), seconds={},
        data=empty(Data, label_low=float(low), label_high=float(high), classes=high - low + 1),
    )  # fmt: skip
    work = remedies._Work(known, found, set())
    work.labels()
    shift, scale = work.parts["target_shift"], work.parts["target_scale"]
    labels = (y - shift) * scale
    np.testing.assert_array_equal(labels, work.case.y)
    assert set(np.unique(labels)) == ({0, high - low} if kind == "classes" else {0, 1})


def test_what_follows_from_a_cause_that_only_the_user_can_mend_is_left_alone():
    """A mask that closes a row makes numbers that are none: new weights would change nothing."""
    known = case(lambda p, x: (x @ p)[:, 0], W, (X, np.ones(N, np.float32)))
    blank = dict.fromkeys(("signal", "chain", "function", "optimizer", "kernel", "trial", "predicted", "data", "loss"))
    cause = empty(Finding, name="mask", severity="certain", consequences=("signal_vanishes", "rate_too_high"))
    found = remedies.repair(known, Evidence(**blank, facts=empty(Facts), seconds={}), (cause,))
    assert found.changes == () and found.params is None and found.learning_rate == known.rate
    assert [line.split(":")[0] for line in found.by_hand] == ["mask"]


def test_settings_that_would_stop_a_measurement_are_put_aside_and_come_back():
    def measured():
        with _settings.ours():
            nothing = jax.jit(lambda a: jnp.log(a - 2))(jnp.ones(3))
            assert np.isnan(np.nanmean(np.float32([np.nan]))) and np.isnan(np.inf - np.float32(np.inf))
            return nothing, jnp.ones((2, 3)) + jnp.ones(3), jnp.ones(3, jnp.int32) * jnp.ones(3, jnp.float32)

    with jax.debug_nans(True), jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        assert np.isnan(measured()[0]).all()
        with pytest.raises(ValueError, match="rank"):
            jnp.ones((2, 3)) + jnp.ones(3)
        with pytest.raises(FloatingPointError):
            jax.jit(lambda a: jnp.log(a - 2))(jnp.ones(3))


def read(floor, shared, end, start=2.0, **loss):
    blank = dict.fromkeys(("signal", "chain", "function", "data", "optimizer", "predicted"))
    known = empty(Loss, floor=floor, floor_shared=shared, value=start, **loss)
    trial = empty(Trial, factors=np.ones(1), end=np.full((1, 2), end), start=start)
    return Reading(Evidence(facts=empty(Facts), loss=known, kernel=empty(Kernel), trial=trial, seconds={}, **blank))


def test_skill_of_a_loss_without_a_bound_is_measured_by_what_was_met():
    """A log-density has no least value, and one answer for all is no chance level where no target is read."""
    flow = read(-900.0, -900.0, 1.0, targets_unread=True)
    assert flow.chance == 2.0 and flow.best == 1.0 and flow.end == pytest.approx(1)
    still = read(-900.0, -900.0, 1.99, targets_unread=True)
    assert still.end == pytest.approx(0.01 / (2 / 3))
    bounded = read(0.0, 1.5, 0.75)
    assert bounded.chance == 1.5 and bounded.best == 0.0 and bounded.end == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("sick", "healed", "same", "helped"),
    [
        ((1e6, 170.0), (2.0, 0.8), True, True),  # a share of the first loss would flatter the sick one
        ((2.0, 2.0), (3.0, 1.5), True, True),
        ((2.0, 0.5), (2.0, 0.48), True, False),
        ((2.0, np.nan), (2.0, 1.0), True, True),
        ((2.0, 1.0), (2.0, np.nan), True, False),
        ((np.nan, np.nan), (np.nan, np.nan), False, False),
        ((1e8, 9e7), (1.0, 0.2), False, True),
        ((1e8, 1e7), (1.0, 0.2), False, False),
    ],
)
def test_a_repair_has_helped_where_the_same_loss_ends_lower_or_another_falls_further(sick, healed, same, helped):
    runs = [empty(Trial, start=start, end=np.full((1, 2), end), unseen_start=np.nan) for start, end in (sick, healed)]
    assert _proof._helped(*runs, same) is helped


@pytest.mark.parametrize(("said", "cut"), [("The gradient ends at round.", ("round",)), ("Its updates are 0.", ())])
def test_a_frozen_optimizer_beside_a_stopped_leaf_is_no_cut(said, cut):
    signal = types.SimpleNamespace(stops=("round",))
    found = types.SimpleNamespace(name="frozen", sentence=said)
    assert _by_hand.cut(signal, [found]) == cut and _by_hand.cut(None, [found]) == ()


def test_a_proof_shows_both_trainings_in_the_repaired_loss():
    """Minus a loss falls for ever: in the loss that was meant it rises."""
    y = (X @ W).argmax(1).astype(np.int32)
    right = lambda out, t: optax.softmax_cross_entropy_with_integer_labels(out, t).mean()  # noqa: E731
    known = case(linear, W, (X, y), loss=lambda out, t: -right(out, t), optimizer="sgd", learning_rate=0.1)
    cured = dataclasses.replace(known, loss=right)
    repair = types.SimpleNamespace(case=cured, loss=right, target_shift=None, target_scale=None)
    with _settings.ours():
        found = _proof.prove(known, repair, 20)
    assert found.same_loss and found.helped
    np.testing.assert_allclose(found.sick[:, 0], found.repaired[:, 0], rtol=1e-6)
    assert (np.diff(found.sick) > 0).all() and (np.diff(found.repaired) < 0).all()


def test_what_the_program_reads_is_followed_from_the_end():
    known = jax.make_jaxpr(lambda a, b, c: (a + jnp.sin(b), c)[0])(1.0, 2.0, 3.0)
    assert programs.read(known) == (True, True, False)


def network(p, x):
    return jnp.tanh(x @ p["a"]) @ p["b"]


def start(scale=1.0):
    return {"a": scale * drawn(3, 16, seed=3) / 3**0.5, "b": scale * drawn(16, 2, seed=4) / 4}


def many(count=160):
    """An odd function, as the network without biases is."""
    x = drawn(count, 3, seed=9)
    return x, np.float32(np.stack([np.sin(2 * x[:, 0]), np.tanh(x[:, 1] - x[:, 2])], 1))


def settings(kind, fault=False):
    """A setting of each kind, healthy or with zero weights."""
    x, y = many()
    signs = np.sign(x[:, :2])
    params, optimizer, links = start(0.0 if fault else 1.0), optax.adam, np.eye(160, dtype=np.float32)
    module = params | {"activation": jnp.tanh}
    given = {
        "graph": (lambda p, x: x[0] @ network(p, x[1]), params, (links, x), y, squares, None),
        "module": (lambda p, x: p["activation"](x @ p["a"]) @ p["b"], module, x, y, squares, (x, y)),
        "backward-only": (lambda p, x: sign(x @ p["a"]) @ p["b"], params, x, signs, squares, (x, signs)),
        "trees": (
            lambda p, x: {"out": network(p, x["x"]), "size": jnp.sum(p["b"] ** 2)}, params, {"x": x, "mask": 0 * y + 1},
            {"mask": 0 * y + 1, "of": y}, lambda o, t: squares(t["mask"] * o["out"], t["of"]) + 1e-6 * o["size"], None,
        ),
        "no-targets": (
            lambda p, x: (network(p, x), x), params, x, 0 * y, lambda o, y: squares(o[0], jnp.sin(o[1][:, :2])),
            (x, 0 * y),
        ),
    }  # fmt: skip
    apply, params, x, y, loss, data = given[kind]
    batch = (x, y) if data is None else jax.tree.map(lambda a: a[:32], (x, y))
    return (apply, params, batch), {
        "loss": loss, "optimizer": optimizer, "learning_rate": 0.01, "steps": 400, "data": data,
        "key": jax.random.key(0),
    }  # fmt: skip


KINDS = ("graph", "module", "backward-only", "trees", "no-targets")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_other_peoples_networks_are_judged_whole(kind):
    arguments, options = settings(kind)
    report = nd.audit.examine(*arguments, **options)
    assert report.verdict == "will train" and not [f for f in report.findings if f.severity == "certain"]
    arguments, options = settings(kind, fault=True)
    report = nd.audit.examine(*arguments, **options)
    assert report.verdict != "will train"
    assert {"symmetry", "frozen"} & {name for f in report.findings for name in (f.name, *f.consequences)}
    assert report.prove(60).helped


@pytest.mark.slow
def test_strict_settings_of_the_user_change_no_verdict():
    arguments, options = settings("module")
    strict = jax.debug_nans(True), jax.debug_infs(True), jax.numpy_rank_promotion("raise")
    own = jax.numpy_dtype_promotion("strict"), jax.default_matmul_precision("bfloat16")
    with contextlib.ExitStack() as stack:
        for setting in (*strict, *own):
            stack.enter_context(setting)
        report = nd.audit.examine(*arguments, **options)
        assert report.verdict == "will train"
        assert np.isfinite(report.prove(10).sick).all()


def with_gaps(outputs, targets):
    known = ~jnp.isnan(targets)
    return jnp.sum(jnp.where(known, (outputs - jnp.where(known, targets, 0)) ** 2, 0)) / jnp.maximum(jnp.sum(known), 1)


HOLES = np.where(np.arange(2 * N).reshape(N, 2) % 5 == 0, np.nan, Y).astype(np.float32)


@pytest.mark.parametrize(
    ("loss", "x", "y", "rows"),
    [
        (with_gaps, X, HOLES, ()),
        (squares, X, np.where(np.arange(N)[:, None] == 7, np.nan, Y).astype(np.float32), (7,)),
        (squares, np.where(np.arange(N)[:, None] > 10, np.inf, X).astype(np.float32), Y, (11,)),
    ],
    ids=["gaps-that-the-loss-masks", "a-gap-that-it-does-not", "the-last-row"],
)
@pytest.mark.parametrize("whole", [False, True], ids=["batch", "data"])
def test_numbers_that_are_none_are_faults_where_they_reach_the_loss(loss, x, y, rows, whole):
    known = case(linear, W, (x[:8], y[:8]) if whole else (x, y), loss, data=(x, y) if whole else None)
    found = described._broken(known, *(known.data or (known.x, known.y)))
    assert found == (rows, len(rows), bool(rows))


def causal(p, x):
    return jnp.cumsum(x, 0) @ p


def backward_too(p, x):
    return (jnp.cumsum(x, 0) + 0.5 * x.sum(0, keepdims=True)) @ p


@pytest.mark.parametrize(
    ("apply", "shape", "one_way", "second"),
    [
        (causal, (N, 3), True, False),
        (causal, (N, 5, 3), True, True),
        (backward_too, (N, 5, 3), False, True),
        (lambda p, x: x @ p, (N, 5, 3), True, True),
        (lambda p, x: jnp.cumsum(x, 1) @ p, (N, 5, 3), True, False),
        (lambda p, x: backward_too(p, x) + x.sum((0, 1), keepdims=True) @ p, (N, 5, 3), False, False),
    ],
)
def test_examples_beside_time_are_seen_in_who_acts_on_whom(apply, shape, one_way, second):
    found = functions.measure(case(apply, W, (drawn(*shape), drawn(*shape[:-1], 2))))
    assert (found.mixing_back < 1e-5) == one_way
    assert found.second_axis == second


def test_labels_one_past_the_columns_are_counted_where_they_are_left_out():
    labels_ = np.arange(N) % 3 + 1
    spelled = lambda o, y: -jnp.mean(jnp.sum(jax.nn.one_hot(y, 3) * jax.nn.log_softmax(o), -1))  # noqa: E731
    told = labels.Answers("classes", 0, 0, -1, 3)
    apply = lambda p, x: x @ p  # noqa: E731
    known = case(apply, drawn(3, 3), (X, labels_.astype(np.int32)), spelled)
    assert described.measure(known, told).one_past == pytest.approx(1 / 3)
    assert described.measure(dataclasses.replace(known, y=labels_.astype(np.int32) * 5 % 7), told).one_past == 0


METHODS = {
    "a plateau": optax.chain(optax.adam(1e-2), optax.contrib.reduce_on_plateau(patience=2)),
    "a line search": optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5)),
    "an object with methods": optax.MultiSteps(optax.adam(1e-2), 2),
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_that_ask_for_more_than_a_gradient_are_run(name):
    known = case(linear, W, (X, Y), optimizer=METHODS[name], learning_rate=None, steps=12)
    found = black_box.measure(known, known.slope(known.moving, known.x, known.y)[1])
    assert found.at_zero_finite and found.at_zero == 0
    assert found.reach > 0 and found.late == pytest.approx(0.5, abs=0.1)  # a loss that falls is no plateau


@pytest.mark.parametrize(("dtype", "lines"), [(np.float16, 1), (jnp.bfloat16, 0), (np.float32, 0)])
def test_parameters_without_range_are_made_wider(dtype, lines):
    work = remedies._Work(case(linear, jnp.asarray(W, dtype), (X, Y)), None, set())
    assert len(work.wider()) == lines
    assert work.case.moving.dtype == (jnp.float32 if lines else dtype)
    assert (work.parts["params"] is None) == (not lines)


NAMES = np.arange(N, dtype=np.int32) % 3
LOGS = lambda o: jax.nn.log_softmax(o)  # noqa: E731


@pytest.mark.parametrize(
    ("loss", "y", "knows"),
    [
        (lambda o, y: -jnp.mean(LOGS(o)[:, y]), NAMES, False),  # every example beside every label
        (lambda o, y: jnp.mean((jnp.bincount(y, length=3) / N - jax.nn.softmax(o).mean(0)) ** 2), NAMES, False),
        (lambda o, y: -jnp.mean(jnp.take_along_axis(LOGS(o), y[:, None], 1)), NAMES, True),
        (
            lambda o, y: jnp.mean((y[:, None] == y) * jnp.sum((o[:, None] - o) ** 2, -1)),
            NAMES,
            True,
        ),  # supervised pairs
        (lambda o, y: -jnp.mean(jnp.diag(LOGS(o @ o.T))), NAMES, None),  # no label is read
        (lambda o, y: jnp.mean((jnp.sort(o[:, 0]) - jnp.sort(y)) ** 2), Y[:, 0], None),  # a distribution, no labels
    ],
    ids=["every-label", "shares", "cross-entropy", "pairs", "unread", "values"],
)
@pytest.mark.parametrize("same", [True, False])
def test_a_loss_that_knows_no_pairs_is_told_whatever_the_outputs(loss, y, knows, same):
    weights = np.zeros((3, 3), np.float32) if same else drawn(3, 3, seed=2)
    with _settings.ours():
        found, _ = heads.measure(case(linear, weights, (X, y), loss))
    assert np.isnan(found.pairing) if knows is None else (found.pairing > 1e-2) == knows
    assert knows is not False or found.pairing < UNPAIRED / 10  # rounding, beside a change that may be small itself


def test_a_loss_knows_pairs_wherever_the_one_rare_label_stands():
    cost = lambda o, y: jnp.mean(optax.sigmoid_binary_cross_entropy(o[:, 0], y.astype(o.dtype)))  # noqa: E731
    with _settings.ours():
        for rare in range(N):
            y = (np.arange(N) == rare).astype(np.int32)
            assert heads.measure(case(linear, W, (X, y), cost))[0].pairing > 1e-2


@pytest.mark.parametrize(
    ("loss", "coupled"),
    [
        (squares, True),
        (lambda o, y: squares(o.transpose(0, 2, 3, 1), y), False),
        (lambda o, y: squares(o[:, 0], y[..., 0]), False),
        (lambda o, y: jnp.mean((o.mean((1, 2, 3)) - y.mean((1, 2, 3))) ** 2), False),
    ],
    ids=["broadcast", "transposed", "cut", "means"],
)
def test_outputs_and_targets_in_two_layouts_act_on_each_other(loss, coupled):
    """Images with channels first beside targets with channels last: each row of one meets each row of the other."""
    images = lambda p, x: (x @ p).reshape(-1, 1, 4, 4)  # noqa: E731
    with _settings.ours():
        found, _ = heads.measure(case(images, drawn(3, 16), (X, drawn(N, 4, 4, 1, seed=3)), loss))
    broadcast = found.coupling > 0.05 and found.coupling_reshaped < 0.1 * found.coupling
    assert broadcast == coupled and (not coupled or found.coupling == pytest.approx(3, rel=0.1))


@pytest.mark.parametrize("keep", [1.0, 0.5, 0.03])
def test_two_draws_of_the_noise_differ_by_the_root_of_two_at_most(keep):
    def dropped(p, x, key):
        return jnp.where(jax.random.bernoulli(key, keep, (len(x), 3)), x / keep, 0) @ p

    noise = (1 - keep) / keep  # variance beside the square of the mean
    found = functions.measure(
        case(dropped, np.eye(3, 2, dtype=np.float32), (drawn(900, 3), drawn(900, 2)), stochastic=True)
    )
    assert found.noise == pytest.approx((2 * noise / (1 + noise)) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("loss", "coupled", "known"),
    [
        (lambda o, y: jnp.mean((o[:, 0] - y) ** 2), False, False),
        (lambda o, y: jnp.mean((o.squeeze(-1) - y) ** 2), False, False),
        (lambda o, y: jnp.mean((o - y) ** 2), True, True),
    ],
    ids=["a-column", "squeezed", "broadcast"],
)
def test_a_loss_that_takes_no_other_shape_is_not_asked_of_it(loss, coupled, known):
    with _settings.ours():
        found, _ = heads.measure(case(linear, W[:, :1], (X, Y[:, 0]), loss))
    assert (found.coupling > 0.05) == coupled
    assert np.isfinite(found.coupling_reshaped) == known


@pytest.mark.parametrize("places", [(), (5,)])
@pytest.mark.parametrize("read", [4, 2, 1])
def test_numbers_of_the_inputs_that_no_output_follows_are_counted(places, read):
    """Of four features some are read; a fifth is 1 for all examples, and cannot be missed."""
    x = np.concatenate([drawn(N, *places, 4), np.ones((N, *places, 1), np.float32)], -1)

    def some(p, x):
        return jnp.tanh(x[..., :read]).reshape(len(x), -1) @ p

    found = functions.measure(case(some, drawn(int(np.prod(places, initial=read)), 2), (x, drawn(N, 2))))
    assert found.unread == pytest.approx((4 - read) / 5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
def test_a_gradient_that_underflows_is_not_one_that_is_not_there(dtype):
    squares = lambda o, y: 1e-9 * jnp.mean((o - y) ** 2)  # noqa: E731
    known = case(lambda p, x: (x @ p).astype(dtype), W, (X, Y), squares)
    found, _ = heads.measure(known)
    assert not found.ignores and (found.gradient_rms == 0) == (dtype == jnp.float16)
    deaf, _ = heads.measure(case(lambda p, x: (x @ p).astype(dtype), W, (X, Y), lambda o, y: 0 * jnp.mean(o)))
    assert deaf.ignores


def test_pixels_that_no_output_follows_are_counted_in_stretches():
    images, half = drawn(N, 6, 6, 2), lambda p, x: x[:, :3].reshape(len(x), -1) @ p
    assert functions.measure(case(half, drawn(36, 2), (images, drawn(N, 2)))).unread == pytest.approx(0.5)
    assert np.isnan(functions.measure(case(lambda p, x: p[x], drawn(9, 2), (np.arange(N) % 9, drawn(N, 2)))).unread)


FORMS = ("scanned", "one by one", "outputs first", "normed")


def deep(form, act, width, depth):
    """(apply, weights): a chain of this form; `normed`: each state is divided by its size, its mean taken away."""
    side = {"outputs first": lambda w: w.swapaxes(-1, -2)}.get(form, lambda w: w)
    normal = (lambda z: z - z.mean(1, keepdims=True)) if form == "normed" else (lambda z: z)
    weights = {"first": side(drawn(3, width)), "last": drawn(width, 1),
               "deep": {"w": side(drawn(depth, width, width)), "b": np.ones((depth, width), np.float32)}}  # fmt: skip
    if form != "scanned":
        weights["deep"] = [{"w": w, "b": b} for w, b in zip(*weights["deep"].values())]

    def states(p, x):
        z = normal(x @ side(p["first"]))
        if form == "scanned":
            return jax.lax.scan(lambda z, q: (act(z) @ q["w"] + q["b"][None], None), z, p["deep"])[0]
        for q in p["deep"]:
            z = normal(act(z) @ side(q["w"]) + q["b"][None])
        return z

    return (lambda p, x: (act(states(p, x)) @ p["last"])[:, 0]), states, weights


@pytest.mark.parametrize(
    "act", [jax.nn.relu, jax.nn.silu, jax.nn.softplus, jax.nn.leaky_relu, jax.nn.gelu], ids=lambda act: act.__name__
)
@pytest.mark.parametrize("form", FORMS)
def test_pairs_of_opposite_units_make_a_deep_network_linear_that_keeps_all_it_is_given(act, form):
    apply, states, weights = deep(form, act, 8, 40)
    known = case(apply, weights, (X, (X[:, 0] > 0).astype(np.float32)), lambda o, y: jnp.mean((o - y) ** 2))
    with _settings.ours():
        made, text = _fresh.mirrored(known)
    assert "pairs of opposite signs" in text and jax.tree.structure(made) == jax.tree.structure(weights)
    f = lambda x: np.asarray(apply(made, x), float)  # noqa: E731
    np.testing.assert_allclose(f(2 * X) - f(-X), 3 * f(X), atol=2e-4 * np.abs(f(X)).max())  # softplus is not 0 at 0
    assert np.abs(f(X)).max() > 0.1
    found = np.asarray(states(made, X), float)
    singular = np.linalg.svd(np.linalg.lstsq(X.astype(float), found, rcond=None)[0], compute_uv=False)
    assert singular.max() / singular.min() < 1.1  # of 41 layers together


def test_pairs_of_sigmoid_units_are_odd_and_an_odd_unit_is_left_out():
    apply, _, weights = deep("one by one", jax.nn.sigmoid, 5, 3)
    known = case(apply, weights, (X, (X[:, 0] > 0).astype(np.float32)), lambda o, y: jnp.mean((o - y) ** 2))
    with _settings.ours():
        made, _ = _fresh.mirrored(known)
    np.testing.assert_allclose(apply(made, -X), -apply(made, X), atol=1e-6)
    assert all(not np.any(q["w"][4]) and not np.any(q["w"][:, 4]) for q in made["deep"])


def test_pairs_of_channels_make_a_convolutional_network_linear():
    pictures = np.random.default_rng(4).standard_normal((16, 6, 6, 2)).astype(np.float32)
    weights = {"k": [0.1 * drawn(3, 3, 2, 6), *(0.1 * drawn(3, 3, 6, 6) for _ in range(4))], "last": drawn(6, 3)}

    def apply(p, x):
        for k in p["k"]:
            x = jax.nn.relu(
                jax.lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            )
        return x.mean((1, 2)) @ p["last"]

    labels = np.arange(16, dtype=np.int32) % 3
    known = case(apply, weights, (pictures, labels), lambda o, y: -jnp.mean(jax.nn.log_softmax(o)[jnp.arange(16), y]))
    with _settings.ours():
        made, _ = _fresh.mirrored(known)
    np.testing.assert_allclose(apply(made, -pictures), -apply(made, pictures), atol=1e-5)
    assert np.abs(apply(made, pictures)).max() > 0.1


@pytest.mark.parametrize(
    "activation, critical", [(activations.tanh, 1.5), (activations.gelu, 2.2), (activations.elu, 1.5)]
)
def test_networks_of_the_library_start_anew_with_pairs_or_the_critical_variance(activation, critical):
    """Their first layer is a stack of one; the function that acts on a scanned state does so in the next step."""
    net = dense.network(widths=(3, *[64] * 30, 1), activation=activation, weight_variance=4.0, bias_variance=0.0)
    params = net.init(jax.random.key(0), X)
    known = case(lambda p, x: net.apply(p, x)[:, 0], params, (X, X[:, 0]), lambda o, y: jnp.mean((o - y) ** 2))
    evidence = types.SimpleNamespace(predicted=empty(Predicted, start_variance=critical), chain=None)
    with _settings.ours():
        made, text = _fresh.fresh(known, evidence)
        pairs, _ = _fresh.mirrored(known)
    assert f"variance {critical} / fan_in" in text
    assert np.var(made["hidden"][1]["kernel"]) * 64 == pytest.approx(critical, rel=0.02)
    np.testing.assert_allclose(net.apply(pairs, -X), -net.apply(pairs, X), atol=1e-5)
    assert np.abs(net.apply(pairs, X)).max() > 0.1


def test_what_is_no_chain_of_plain_layers_gets_no_pairs():
    with _settings.ours():
        assert _fresh.mirrored(case(linear, W, (X, Y))) == (None, "")
