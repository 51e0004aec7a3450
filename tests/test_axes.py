"""Axes followed through any function: where examples lie, what a leaf's axes do, how many products are made."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from numdl import tracing

pytestmark = pytest.mark.float32


@pytest.fixture(autouse=True)
def promoted():
    with jax.numpy_rank_promotion("allow"):
        yield


N = 4  # examples, and tokens, heads, channels wherever a guess by size would be led astray


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape, jnp.float32)


W, X = normal(1, 4, 4), normal(0, N, 4, 4)  # [N, T, D]


def layers(apply, params=W, x=X, **options):
    return tracing.trace(apply, params, x, **options).layers


def states(apply, params, x):
    return tracing.place(apply, lambda layer, state, given: (state, state))(params, x)[1]


def heads(y):
    return y.reshape(N, 4, 2, 2).transpose(0, 2, 1, 3).reshape(2 * N, 4, 2)


def time_major(w, x):
    def step(h, now):
        return jnp.tanh(h @ w + now @ w), None

    return lax.scan(step, jnp.zeros((N, 4)), jnp.swapaxes(x, 0, 1))[0]


def chunked(w, x):
    return lax.scan(lambda total, part: (total, part @ w), 0.0, x.reshape(2, 2, 4, 4))[1]


def until_large(w, x):
    x = lax.while_loop(lambda c: jnp.sum(c[1]) < 9, lambda c: (c[0], c[1] + 1), (jnp.swapaxes(x, 0, 1), 0.0 * x[0]))[0]
    return x @ w


def two_views(w, x):
    return jnp.concatenate([x, 2 * x]) @ w


FOLLOWED = {
    "time-major": lambda w, x: jnp.swapaxes(x, 0, 1) @ w,
    "examples last": lambda w, x: jnp.einsum("ntd,de->etn", x, w),
    "weight first": lambda w, x: jnp.einsum("de,ntd->ent", w, x),
    "folded with tokens": lambda w, x: (x.reshape(-1, 4) @ w).reshape(x.shape),
    "folded, minor": lambda w, x: jnp.swapaxes(x, 0, 1).reshape(-1, 4) @ w,
    "heads in the examples": lambda w, x: jnp.einsum("hid,hjd->hij", heads(x), heads(x)) * jnp.sum(w),
    "split into groups": lambda w, x: x.reshape(2, 2, 4, 4) @ w,
    "vmapped": lambda w, x: jax.vmap(lambda one: one.T @ w, out_axes=2)(x),
    "layer norm, then": lambda w, x: ((x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)) @ w,
    "embedding": lambda w, x: w[jnp.argmax(x, axis=1)] @ w,
    "tokens picked for each": lambda w, x: jnp.take_along_axis(x, jnp.argsort(x, axis=1)[:, :2], axis=1) @ w,
    "a class token": lambda w, x: jnp.concatenate([jnp.broadcast_to(w[0], (N, 1, 4)), x], axis=1) @ w,
    "two views, one after the other": two_views,
    "padded positions": lambda w, x: jnp.pad(x, ((0, 0), (2, 0), (0, 0))) @ w,
    "recurrence": time_major,
    "checkpointed": lambda w, x: jax.checkpoint(lambda x: jnp.swapaxes(x, 0, 1) @ w)(x),
    "a branch": lambda w, x: lax.cond(x[0, 0, 0] > 9, lambda x: 0 * x, lambda x: x.swapaxes(0, 1) @ w, x),
    "a while loop before": until_large,
    "per-example weights": lambda w, x: jnp.matmul(x, jnp.broadcast_to(w, (N, 4, 4))),
    "scattered": lambda w, x: jnp.zeros((N, 6, 4)).at[:, jnp.array([5, 1, 0, 2])].add(x) @ w,
    "rolled positions": lambda w, x: jnp.roll(jnp.swapaxes(x, 0, 1), 1, axis=0) @ w,
    "custom rule": lambda w, x: jax.nn.relu(jnp.swapaxes(x, 0, 1)) @ w,
    "convolved": lambda w, x: lax.conv_general_dilated(
        x.transpose(1, 0, 2), w[None], (1,), "SAME", dimension_numbers=("WNC", "WIO", "CWN")
    ),
    "sorted within": lambda w, x: jnp.sort(jnp.swapaxes(x, 0, 1), axis=0) @ w,
    "stacked": lambda w, x: jnp.stack([x, x], axis=0) @ w,
    "tiled": lambda w, x: jnp.tile(x, (2, 1, 1)) @ w,
    "dense experts": lambda w, x: jnp.einsum("nd,edf->enf", x[:, 0], jnp.stack([w, 2 * w])),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_rows_of_a_state_belong_to_their_examples(name):
    """An oracle without jaxprs: what moves in the state when one example moves."""
    apply = FOLLOWED[name]
    kept = [layer for layer in layers(apply) if layer.kind != "tap"]
    assert all(layer.note is None for layer in kept)
    before = states(apply, W, X)
    for n in range(N):
        after = states(apply, W, X.at[n].multiply(-2))
        for layer, old, new in zip(kept, before, after, strict=True):
            lead = len(layer.steps)
            assert old.shape == layer.steps + layer.shape
            assert layer.shape[0] == N
            change = np.abs(np.nan_to_num(np.asarray(new) - np.asarray(old)))
            by_row = change.max(axis=tuple(a for a in range(change.ndim) if a != lead))
            assert set(np.flatnonzero(by_row)) == {n}


def test_batch_statistics_leave_the_examples_where_they_are():
    (layer,) = layers(lambda w, x: ((x - x.mean(0)) / x.std(0)).swapaxes(0, 1) @ w)
    assert (layer.example_axis, layer.note) == (1, None)


def experts(w, x):
    chosen = jax.nn.one_hot(jnp.argmax(x[:, 0] @ w, 1), 4)  # [N, E]
    queue = jnp.einsum("ne,nd->ed", chosen, x[:, 0])[:, None]  # E = N on purpose
    return jnp.einsum("ne,ecf->nf", chosen, queue @ jnp.stack([w] * 4))


LOST = {
    "one at a time": (lambda w, x: lax.map(lambda one: one @ w, x), "one example at a time"),
    "an expert's queue": (lambda w, x: experts(w, x), "summed over"),
    "pairs of examples": (lambda w, x: jnp.einsum("ntd,md->nmt", x, x[:, 0]) * jnp.sum(w), "two of its axes"),
    "permuted": (lambda w, x: x[jnp.array([1, 0, 3, 2])] @ w, "cut, permuted"),
    "sorted": (lambda w, x: jnp.sort(x, axis=0) @ w, "cut, permuted"),
    "a part": (lambda w, x: x[:2] @ w, "cut, permuted"),
    "mean": (lambda w, x: x.mean(0) @ w, "summed over"),
    "no whole axis": (lambda w, x: x[:, :3, :2].reshape(8, 3)[:, :2] @ w[:2], "reshape"),
}


@pytest.mark.parametrize("name", LOST)
def test_what_cannot_be_followed_is_said(name):
    apply, why = LOST[name]
    notes = [layer.note for layer in layers(apply) if layer.note]
    assert notes
    assert any(re.search(why, note) for note in notes), notes


def test_an_embedding_has_no_guess_when_tokens_are_as_many_as_examples():
    tokens = jnp.arange(16).reshape(4, 4) % 3
    (layer,) = layers(lambda w, t: w[t.T] @ w, W, tokens)
    assert (layer.example_axis, layer.note) == (1, None)


# ---- the leaves of x


TREE = {"adjacency": jnp.eye(5), "x": normal(3, 4, 5, 4)}


def graph(w, z):
    return jnp.einsum("ij,njd->nid", z["adjacency"], z["x"]) @ w


@pytest.mark.parametrize("examples", ["x", ("x",), {"adjacency": None, "x": 0}, {"adjacency": None, "x": -3}])
def test_leaves_of_x_that_have_examples_can_be_named(examples):
    layer = layers(graph, W, TREE, examples=examples)[-1]
    assert (layer.shape, layer.example_axis, layer.note) == ((4, 5, 4), 0, None)


def test_another_axis_of_x_can_be_the_examples():
    (layer,) = layers(lambda w, x: x @ w, W, normal(0, 5, 3, 4), examples=1)
    assert (layer.shape, layer.example_axis) == ((3, 5, 4), 1)


def test_leaves_that_differ_are_asked_about():
    with pytest.raises(ValueError, match=r"examples must say which.*adjacency \(5, 5\), x \(4, 5, 4\)"):
        tracing.example_axes(TREE)
    assert layers(graph, W, TREE)[-1].note == "which leaves of x have examples is not known"


@pytest.mark.parametrize(
    "examples, kind, message",
    [
        ("y", ValueError, "examples must be paths in x, adjacency, x; got 'y'"),
        ({"adjacency": 0, "x": 0}, ValueError, r"one length in x; got lengths \[4, 5\]"),
        ({"adjacency": None, "x": 3}, ValueError, r"examples must be an axis of x \(4, 5, 4\); got 3"),
        ({"adjacency": None, "x": 0.5}, TypeError, "examples must be axes .integers. or None; got 0.5 for x"),
        ({"adjacency": None, "z": 0}, ValueError, "examples must be a prefix of x's pytree"),
        (None, ValueError, "paths"),
        ({"adjacency": None, "x": None}, ValueError, "got lengths"),
    ],
)
def test_bad_examples_are_refused(examples, kind, message):
    with pytest.raises(kind, match=message):
        tracing.example_axes(TREE, examples)


# ---- what the axes of a leaf do


def roles(apply, params, x=X[:, 0]):
    return {
        path: axes and (axes.inputs, axes.outputs, axes.window, axes.groups, axes.steps)
        for path, axes in tracing.trace(apply, params, x).roles().items()
    }


def conv(layout, kernel, groups=1):
    def apply(w, x):
        numbers = (layout, kernel, layout)
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups)

    return apply


@pytest.mark.parametrize(
    "apply, shape, expected",
    [
        (lambda w, x: x @ w, (4, 3), ((0,), (1,), (), (), ())),
        (lambda w, x: x @ w.T, (3, 4), ((1,), (0,), (), (), ())),
        (lambda w, x: jnp.einsum("nd,hde->nhe", x, w), (2, 4, 3), ((1,), (0, 2), (), (), ())),
        (lambda w, x: jnp.einsum("nhd,hde->nhe", x.reshape(4, 2, 2), w), (2, 2, 3), ((1,), (2,), (), (0,), ())),
        (lambda w, x: x @ w.reshape(4, 6), (4, 2, 3), ((0,), (1, 2), (), (), ())),
        (lambda w, x: jnp.split(x @ w, 3, axis=1)[0], (4, 9), ((0,), (1,), (), (), ())),
        (lambda w, x: x @ w[:, :2], (4, 6), ((0,), (1,), (), (), ())),
        (lambda w, x: x @ w[1], (2, 4, 3), ((1,), (2,), (), (), (0,))),
        (lambda w, x: lax.scan(lambda x, w: (x @ w, None), x, w)[0], (2, 4, 4), ((1,), (2,), (), (), (0,))),
        (lambda w, x: lax.fori_loop(0, 2, lambda i, x: x @ w[:, i], x), (4, 2, 4), ((0,), (2,), (), (), (1,))),
        (lambda w, x: lax.scan(lambda x, _: (x @ w, None), x, None, length=2)[0], (4, 4), ((0,), (1,), (), (), ())),
        (lambda w, x: x @ jnp.concatenate([w, w], axis=1), (4, 3), ((0,), (1,), (), (), ())),
        (lambda w, x: x @ w[jnp.array([2, 0, 1, 3])], (4, 3), ((0,), (1,), (), (), ())),
        (lambda w, x: x @ (w / jnp.linalg.norm(w)), (4, 3), ((0,), (1,), (), (), ())),
        (lambda w, x: x @ jnp.matmul(w.T, w), (3, 4), ((1,), (1,), (), (), ())),
        (lambda w, x: x @ (w + w.T), (4, 4), None),
    ],
)
def test_roles_of_a_leafs_axes(apply, shape, expected):
    assert roles(apply, normal(1, *shape)) == {"params": expected}


@pytest.mark.parametrize(
    "apply, shape, x, expected",
    [
        (conv("NHWC", "HWIO"), (3, 3, 4, 3), (4, 6, 6, 4), ((2,), (3,), (0, 1))),
        (conv("NCHW", "OIHW"), (3, 4, 3, 3), (4, 4, 6, 6), ((1,), (0,), (2, 3))),
        (conv("NCHW", "OIHW", 4), (8, 1, 3, 3), (4, 4, 6, 6), ((1,), (0,), (2, 3))),
    ],
)
def test_roles_of_a_kernels_axes(apply, shape, x, expected):
    assert roles(apply, normal(1, *shape), normal(2, *x)) == {"params": (*expected, (), ())}


def test_every_leaf_of_a_derived_weight_has_its_roles():
    params = {"v": normal(1, 4, 3), "g": normal(2, 3), "a": normal(3, 4, 2), "b": normal(4, 2, 3)}

    def apply(p, x):
        return x @ (p["g"] * p["v"] / jnp.linalg.norm(p["v"], axis=0)) + x @ (p["v"] + p["a"] @ p["b"])

    found = tracing.trace(apply, params, X[:, 0]).roles()
    assert {path: (axes.inputs, axes.outputs) for path, axes in found.items()} == {
        "v": ((0,), (1,)),
        "g": ((), (0,)),
        "a": ((0,), ()),
        "b": ((), (1,)),
    }


def test_a_leaf_contracted_in_two_ways_says_so():
    found = tracing.trace(lambda w, x: jnp.tanh(x @ w) @ w.T, W, X).roles()["params"]
    assert (found.inputs, found.outputs) == ((0,), (1,))
    assert [(axes.inputs, axes.outputs) for axes in found.others] == [((1,), (0,))]


# ---- fans, counted


def counted(apply, w, x):
    """(products of an output, outputs of an input), means over all that are not cut off by the border."""
    ones = jax.tree.map(jnp.ones_like, (w, x))
    fan_in = np.asarray(apply(*ones))
    fan_out = np.asarray(jax.grad(lambda x: jnp.sum(apply(ones[0], x)))(ones[1]))
    return fan_in, fan_out


@pytest.mark.parametrize(
    "layout, kernel", [(("NHWC", "HWIO", "NHWC"), (3, 3, 4, 8)), (("NCHW", "OIHW", "NCHW"), (8, 4, 3, 3))]
)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"window_strides": (2, 1)},
        {"feature_group_count": 2},
        {"feature_group_count": 4},
        {"lhs_dilation": (2, 2)},
        {"lhs_dilation": (2, 3), "window_strides": (1, 2)},
        {"lhs_dilation": (2, 2), "window_strides": (2, 2)},
        {"rhs_dilation": (2, 2)},
        {"rhs_dilation": (2, 1), "lhs_dilation": (2, 2)},
        {"rhs_dilation": (2, 2), "lhs_dilation": (2, 2), "window_strides": (2, 2)},
        {"batch_group_count": 2},
    ],
)
def test_fans_of_a_convolution_are_counted(layout, kernel, settings):
    groups = settings.get("feature_group_count", 1)
    inputs = kernel.index(4)
    kernel = tuple(n // groups if axis == inputs else n for axis, n in enumerate(kernel))
    size = {"N": 4, "H": 36, "W": 36, "C": 4}
    x = jnp.ones([size[axis] for axis in layout[0]])
    spatial = [layout[0].index(axis) for axis in "HW"]

    def apply(w, x):
        options = {"window_strides": (1, 1)} | settings
        return lax.conv_general_dilated(x, w, padding=[(0, 0), (0, 0)], dimension_numbers=layout, **options)

    (layer,) = layers(apply, jnp.ones(kernel), x)
    for told, counts in zip((layer.fan_in, layer.fan_out), counted(apply, jnp.ones(kernel), x)):
        ends = [n - (n - 8) % 6 - 4 for n in counts.shape]  # whole periods of all strides and dilations
        middle = tuple(slice(4, ends[a]) if a in spatial else slice(None) for a in range(4))
        np.testing.assert_allclose(told, counts[middle].mean(), rtol=1e-6)


@pytest.mark.parametrize("shape", [(4, 3), (4, 2, 5)])
def test_fans_of_a_dense_layer(shape):
    (layer,) = layers(lambda w, x: jnp.tensordot(x, w, 1), jnp.ones(shape), X[:, 0])
    assert (layer.fan_in, layer.fan_out) == (4, int(np.prod(shape[1:])))


def test_units_follow_a_reshape_past_a_bias():
    params = {"w": normal(1, 4, 6), "b": normal(2, 2, 3)}
    (layer,) = layers(lambda p, x: (x @ p["w"]).reshape(N, 4, 2, 3) + p["b"], params)
    assert (layer.shape, layer.units) == ((4, 4, 2, 3), (2, 3))
    (layer,) = layers(lambda w, x: jnp.einsum("de,ntd->etn", w, x).reshape(-1, N).T, W)
    assert (layer.shape, layer.units) == ((4, 4, 4), (1,))


def test_experts_each_have_their_own_units():
    (layer,) = layers(lambda w, x: jnp.einsum("nd,edf->nef", x[:, 0], jnp.stack([w, w])), W)
    assert (layer.shape, layer.units) == ((4, 2, 4), (1, 2))


@pytest.mark.parametrize("f", [jnp.linalg.inv, jnp.linalg.qr, jnp.linalg.svd, jax.scipy.linalg.expm, jnp.linalg.solve])
def test_programs_that_hold_programs_are_walked(f):
    """No rule for a solver's inner programs; what they hold is still found, and nothing is made up."""

    def apply(w, x):
        y = f(x, x) if f is jnp.linalg.solve else f(x)
        return (y if hasattr(y, "shape") else y[0]) @ w

    last = layers(apply)[-1]
    assert (last.leaf, last.shape[1:]) == ("params", (4, 4))
    assert last.note is None or "is not followed" in last.note


def test_the_walk_over_a_deep_program_is_short():
    def apply(params, x):
        for w in params:
            x = jnp.tanh(x @ w)
        return x

    traced = tracing.trace(apply, [W] * 100, X)
    assert [layer.leaf for layer in traced.layers] == [str(i) for i in range(100)]
    assert list(itertools.chain(*(axes.outputs for axes in traced.roles().values()))) == [1] * 100


@pytest.mark.parametrize(
    "mix", [lambda w: jnp.linalg.qr(w)[0], lambda w: jnp.fft.fft2(w).real, lambda w: jnp.linalg.inv(w)]
)
def test_a_weight_whose_axes_a_decomposition_mixes_is_not_followed(mix):
    """It is no vector either, which has axes that do nothing: what asks for filters must be told."""
    w = normal(1, 4, 4)
    assert tracing.trace(lambda w, x: x @ mix(w), w, normal(0, 5, 4)).roles() == {"params": None}


def test_right_hand_sides_stay_examples_and_blocks_of_them_are_named():
    w, x = normal(1, 4, 4), normal(0, 6, 4)
    solve = jax.scipy.linalg.solve_triangular
    (layer,) = tracing.trace(lambda w, x: solve(jnp.eye(4), x.T).T @ w, w, x).layers
    assert layer.example_axis == 0 and layer.note is None
    (layer,) = tracing.trace(lambda w, x: jax.lax.map(lambda part: part @ w, x.reshape(3, 2, 4)), w, x).layers
    assert layer.note == "it is of some of the examples at a time"
