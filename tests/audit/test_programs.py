"""Programs as the audit sees them: convolutions in another order give the same numbers, work is counted exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.audit._measured import cases, described, functions, labels, programs

# Strides, dilations and groups of a convolution; the shapes of its input and its kernel, channels second.
KINDS = {
    "plain": ({"window_strides": (1, 1), "padding": "SAME"}, (2, 3, 6, 5), (4, 3, 3, 3)),
    "strided": ({"window_strides": (2, 1), "padding": "VALID"}, (2, 3, 7, 6), (4, 3, 3, 2)),
    "dilated": ({"window_strides": (1,), "padding": [(4, 0)], "rhs_dilation": (2,)}, (3, 2, 8), (5, 2, 3)),
    "transposed": (
        {"window_strides": (1, 1), "padding": [(1, 1), (0, 1)], "lhs_dilation": (2, 2)},
        (2, 3, 4, 4),
        (4, 3, 2, 2),
    ),
    "grouped": ({"window_strides": (1,), "padding": "SAME", "feature_group_count": 4}, (2, 4, 6), (8, 1, 3)),
    "volume": ({"window_strides": (1, 1, 1), "padding": "SAME"}, (2, 2, 3, 4, 3), (2, 2, 2, 2, 2)),
}


def stepped(kind, scanned):
    """Three steps of descent through a convolution, in a scan or one after the other."""
    settings, shape, kernel = KINDS[kind]
    draw = np.random.default_rng(0)
    x, w = jnp.asarray(draw.standard_normal(shape)), jnp.asarray(draw.standard_normal(kernel))

    @jax.jit
    def cost(at):
        return jnp.mean(jnp.tanh(jax.lax.conv_general_dilated(at[0], at[1], **settings)) ** 2)

    def step(at, _):
        value, slope = jax.value_and_grad(jax.checkpoint(cost))(at)
        return jax.tree.map(lambda a, s: a - 0.3 * s, at, slope), value

    def one_by_one(at):
        values = []
        for _ in range(3):
            at, value = step(at, None)
            values.append(value)
        return at, jnp.stack(values)

    return (lambda at: jax.lax.scan(step, at, None, length=3)) if scanned else one_by_one, (x, w)


@pytest.mark.parametrize("kind", KINDS)
def test_convolutions_inside_a_scan_are_brought_into_order(kind):
    function, at = stepped(kind, scanned=True)
    ordered = programs.channels_last(function)
    expected, _ = stepped(kind, scanned=False)
    for ours, theirs in zip(jax.tree.leaves(ordered(at)), jax.tree.leaves(expected(at)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-10, atol=1e-12)
    known = [e for e in programs.equations(jax.make_jaxpr(ordered)(at)) if e.primitive.name == programs.CONVOLUTION]
    last = len(KINDS[kind][1]) - 1
    assert len(known) >= 3
    for spec in (e.params["dimension_numbers"] for e in known):
        assert spec.lhs_spec[:2] == spec.out_spec[:2] == (0, last) and spec.rhs_spec[:2] == (last, last - 1)


def test_functions_without_a_convolution_are_left_alone():
    function = lambda a, b: {"sum": a + b["c"]}  # noqa: E731
    given = jnp.ones(3), {"c": jnp.arange(3.0)}
    assert not programs.convolves(jax.make_jaxpr(function)(*given))
    assert jax.tree.structure(programs.channels_last(function)(*given)) == jax.tree.structure({"sum": 0})


def test_work_counts_the_multiplications_of_products_convolutions_and_loops():
    count = lambda function, *shapes: programs.work(  # noqa: E731
        jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes))
    )
    assert count(lambda a, b: a @ b, (5, 7), (7, 3)) == 5 * 7 * 3
    turn = lambda a, b: jax.lax.scan(lambda h, _: (h @ b, None), a, None, length=11)[0]  # noqa: E731
    assert count(turn, (5, 7), (7, 7)) == 11 * 5 * 7 * 7
    assert count(jnp.sin, (5, 7)) == 5 * 7 * programs.ALONE
    convolved = lambda x, w: jax.lax.conv(x, w, (1, 1), "VALID")  # noqa: E731
    assert count(convolved, (2, 3, 6, 6), (4, 3, 3, 3)) == 2 * 4 * 4 * 4 * 3 * 3 * 3


def test_a_case_compiles_its_convolutions_in_order():
    w = jnp.ones((3, 3, 1, 2), jnp.float32)
    apply = lambda p, x: jax.lax.conv_general_dilated(x, p, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))  # noqa: E731
    x = np.ones((4, 5, 5, 1), np.float32)
    known = cases.case(
        apply, w, (x, np.zeros((4, 5, 5, 2), np.float32)), loss=lambda o, y: jnp.mean((o - y) ** 2), optimizer="sgd",
        learning_rate=0.1, steps=1, data=None, evaluate=None, stochastic=False, key=jax.random.key(0),
    )  # fmt: skip
    # Nine taps and a squared error for each of 50 outputs; the border's zeros are multiplied, too.
    assert 50 * 9 <= known.work <= 50 * (9 + 5 * programs.ALONE)
    np.testing.assert_allclose(known.forward(known.moving, x, None), apply(w, x), rtol=1e-6)


def stopped(w, v, x):
    return jax.nn.softmax(jax.lax.stop_gradient(jax.nn.leaky_relu(x @ w)) @ v)


def chosen(w, v, x):
    return jax.nn.one_hot(jnp.argmax(x @ w, -1), 3) @ v


def rounded(w, v, x):
    return jax.jit(jax.checkpoint(lambda x: jnp.round(x @ w)))(x) @ v


def carried(w, v, x):
    return jax.lax.scan(lambda c, _: (jnp.sign(c @ w), c @ v), x @ w, None, length=3)[0]


def beside(w, v, x):
    return x @ jax.lax.stop_gradient(w) + x @ w @ v


@pytest.mark.parametrize(
    ("function", "what"), [(stopped, "stop_gradient"), (chosen, "argmax"), (rounded, "round"), (carried, "sign")]
)
def test_what_ends_a_gradient_is_named_with_its_line(function, what):
    w = jnp.ones((3, 3))
    assert not jax.grad(lambda w: function(w, jnp.eye(3), jnp.ones((2, 3))).sum())(w).any()
    (found,) = programs.stops(jax.make_jaxpr(function)(w, w, jnp.ones((2, 3))), [True, False, False])
    assert found.startswith(what) and f"line {function.__code__.co_firstlineno + 1})" in found


@pytest.mark.parametrize(("function", "leaf"), [(stopped, 1), (chosen, 1), (rounded, 1), (beside, 0)])
def test_a_gradient_that_gets_through_has_no_such_line(function, leaf):
    w = jnp.ones((3, 3))
    marks = [place == leaf for place in range(3)]
    assert programs.stops(jax.make_jaxpr(function)(w, w, jnp.ones((2, 3))), marks) == ()


def stopped_twice(w, v, x):
    kept = jax.lax.stop_gradient(x @ w)  # another line: it stays
    return jax.lax.stop_gradient(jnp.tanh(x @ w)) @ v + kept


def each_step(w, v, x):
    return jax.vmap(lambda row: jax.lax.scan(lambda c, _: (jnp.round(c @ w), None), row, None, length=2)[0])(x)


@pytest.mark.parametrize(
    ("function", "plain"),
    [
        (stopped, lambda w, v, x: jax.nn.softmax(jax.nn.leaky_relu(x @ w) @ v)),
        (rounded, lambda w, v, x: x @ w @ v),
        (stopped_twice, lambda w, v, x: jnp.tanh(x @ w) @ v + 2.1),
        (each_step, lambda w, v, x: x @ w @ w),
    ],
    ids=["stopped", "in calls", "one of two", "in a scan"],
)  # fmt: skip
def test_a_gradient_is_let_through_where_it_is_said_to_end(function, plain):
    given = jnp.full((3, 3), 0.7), jnp.eye(3) + 0.1, jnp.ones((2, 3))
    lines = programs.stops(jax.make_jaxpr(function)(*given), [True, False, False])
    lines = [line for line in lines if f"line {stopped_twice.__code__.co_firstlineno + 1})" not in line]
    open_ = programs.let_through(function, lines)
    np.testing.assert_allclose(open_(*given), plain(*given), rtol=1e-6)
    slope = jax.jit(jax.grad(lambda w, f: f(w, *given[1:]).sum()), static_argnums=1)
    np.testing.assert_allclose(slope(given[0], open_), slope(given[0], plain), rtol=1e-5)
    assert programs.let_through(function, ())(*given).tolist() == function(*given).tolist()


TABLE, TOKENS = np.arange(12.0, dtype=np.float32).reshape(4, 3), np.array([[0, 1, 6], [2, 9, 3]])
LOOKUPS = {
    "index": (lambda p, x: p[x].sum(1), 2 / 6),
    "take": (lambda p, x: jnp.take(p, x, axis=0).sum(1), 2 / 6),
    "columns": (lambda p, x: p[:3].T[:, x].sum(0), 3 / 6),
    "each-example": (jax.vmap(lambda p, x: p[x].sum(0), (None, 0)), 2 / 6),
    "in-a-scan": (lambda p, x: jax.lax.scan(lambda h, t: (h + p[t], None), jnp.zeros((2, 3)), x.T)[0], 2 / 6),
    "in-a-call": (lambda p, x: jax.jit(jax.checkpoint(lambda p, x: jnp.tanh(p[x])))(p, x).sum(1), 2 / 6),
    "with-positions": (lambda p, x: (p[x] + p[jnp.arange(3) + 20][None]).sum(1), 2 / 6),
    "all-there": (lambda p, x: p[x % 4].sum(1), 0.0),
    "whole-rows": (lambda p, x: jnp.concatenate([p] * 3)[x].sum(1), 0.0),
}


@pytest.mark.parametrize("kind", LOOKUPS)
def test_inputs_past_the_end_of_a_table_are_counted(kind):
    apply, missed = LOOKUPS[kind]
    squared = lambda out, y: jnp.mean((out - y) ** 2)  # noqa: E731
    given = {"steps": 5, "evaluate": None, "stochastic": False, "key": jax.random.key(0)}
    known = cases.case(
        apply, TABLE, (TOKENS, np.ones((2, 3), np.float32)), loss=squared, optimizer="sgd", learning_rate=0.1,
        data=(np.tile(TOKENS, (20, 1)), np.ones((40, 3), np.float32)), **given,
    )  # fmt: skip
    found = described.measure(known, labels.Answers("values"))
    assert found.missed == pytest.approx(missed)
    least, most, last, fills = found.ids
    assert fills == (kind == "take")
    assert (least, most) == ((0, 3) if kind == "all-there" else (0, 9))
    assert last == {"columns": 2, "whole-rows": 11}.get(kind, 3)


def normed(how):
    """Three blocks that divide by a deviation each: over the features, or over one number."""

    def block(h, w):
        h = jnp.tanh(h @ w)
        h = h if how == "features" else h[..., None]
        h = (h - h.mean(-1, keepdims=True)) * jax.lax.rsqrt(h.var(-1, keepdims=True) + 1e-5)
        return (h if how == "features" else h[..., 0]), None

    return lambda p, x: jax.lax.scan(block, x, p)[0]


@pytest.mark.parametrize("how", ["features", "one"])
def test_what_a_normalisation_divides_by_is_looked_at_inside_of_loops(how):
    draw = np.random.default_rng(0)
    weights, x = (np.float32(draw.standard_normal(shape)) for shape in ((3, 5, 5), (7, 5)))
    found = programs.looked(normed(how), weights, x, functions._root)
    assert len(found) == 1 and found[0].shape == (3,)  # one root, three steps
    assert (np.max(found[0]) < 1e-6) == (how == "one") and (np.min(found[0]) > 0.1) == (how == "features")
