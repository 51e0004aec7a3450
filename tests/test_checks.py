"""Checks at the door: what passes comes back ready to use, what does not is named, shown, and told what is allowed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl import checks
from tests import doors


def masked():
    return np.ma.masked_array([1.0, 2.0], [False, True])


@pytest.mark.parametrize("value", [3, np.uint8(3), np.int64(3), np.array(3), np.array(3, ">i4"), jnp.array(3)])
def test_whole_numbers_of_every_kind_become_ints(value):
    found = checks.whole("steps", value)
    assert type(found) is int
    assert found == 3


BAD = [
    doors.bad(lambda: checks.whole("steps", True), "steps", shown="True", kinds=TypeError),
    doors.bad(lambda: checks.whole("steps", np.True_), "steps", kinds=TypeError),
    doors.bad(lambda: checks.whole("steps", 2.0), "steps", shown="2.0", kinds=TypeError),
    doors.bad(lambda: checks.whole("steps", "3"), "steps", shown="'3'", kinds=TypeError),
    doors.bad(lambda: checks.whole("steps", np.array([3])), "steps", shown="(1,)", kinds=TypeError),
    doors.bad(lambda: checks.whole("steps", 0), "steps", shown="0", kinds=ValueError),
    doors.bad(lambda: checks.whole("steps", 10**10, most=2**31), "steps", shown="10000000000", kinds=ValueError),
    doors.bad(lambda: checks.finite("rate", masked()), "rate", shown="masked", kinds=ValueError),
    doors.bad(lambda: checks.finite("rate", 1j), "rate", shown="1j", kinds=TypeError),
    doors.bad(lambda: checks.finite("rate", np.array([1.0, np.nan])), "rate", shown="nan", kinds=ValueError),
    doors.bad(lambda: checks.array("x", masked()), "x", shown="masked", kinds=ValueError),
    doors.bad(lambda: checks.array("x", [[1.0], [1.0, 2.0]]), "x", kinds=TypeError),
    doors.bad(lambda: checks.array("x", ["a"]), "x", shown="<U1", kinds=TypeError),
    doors.bad(lambda: checks.array("x", np.zeros((0, 3))), "x", shown="(0, 3)", kinds=ValueError),
    doors.bad(lambda: checks.array("x", np.zeros(3, complex)), "x", shown="complex128", kinds=TypeError),
    doors.bad(lambda: checks.array("x", np.zeros(3), kind="integer"), "x", shown="float64", kinds=TypeError),
    doors.bad(lambda: checks.array("x", np.zeros(3), ndim=2), "x", shown="(3,)", kinds=ValueError),
    doors.bad(lambda: checks.floating("x", np.zeros(3, complex)), "x", shown="complex128", kinds=TypeError),
    doors.bad(lambda: checks.floating("x", [1.0]), "x", shown="[1.0]", kinds=TypeError),
    doors.bad(lambda: checks.leaf("params['w']", "text"), "params['w']", shown="'text'", kinds=TypeError),
    doors.bad(lambda: checks.leaf("params['w']", np.array(["a"])), "params['w']", shown="<U1", kinds=TypeError),
    doors.bad(lambda: checks.dtype("dtype", "float46"), "dtype", shown="'float46'", kinds=TypeError),
    doors.bad(lambda: checks.like("u", {"a": np.zeros(2)}, {"a": np.zeros(3)}), "u['a']", shown="(2,)"),
    doors.bad(lambda: checks.like("u", {}, {"a": np.zeros(3)}), "params['a']", shown="got {}"),
    doors.bad(lambda: checks.like("u", {"a": np.zeros(3), "b": np.zeros(1)}, {"a": np.zeros(3)}), "u['b']"),
    doors.bad(lambda: checks.like("u", [np.zeros(3)], (np.zeros(3),)), "u", shown="[*]"),
    doors.bad(lambda: checks.like("u", {"a": "b"}, {"a": 0.0}), "u['a']", kinds=TypeError),
]


@pytest.mark.parametrize("row", BAD, ids=str)
def test_the_door_names_argument_and_value(row):
    doors.refused(row)


def test_a_row_that_is_accepted_or_unclear_fails():
    with pytest.raises(AssertionError, match="accepted"):
        doors.refused(doors.bad(lambda: checks.whole("steps", 3), "steps"))
    with pytest.raises(AssertionError, match="must name"):
        doors.refused(doors.bad(lambda: checks.whole("steps", 0), "depth"))
    with pytest.raises(AssertionError, match="compiled"):
        doors.refused(doors.bad(lambda: checks.whole("steps", jax.jit(lambda x: x + 41.5)(2.0)), "steps"))


def test_a_deleted_array_is_refused():
    array = jnp.arange(3.0) + 1
    array.delete()
    doors.refused(doors.bad(lambda: checks.array("x", array), "x", shown="deleted"))


@pytest.mark.parametrize("check", [checks.array, checks.floating, checks.finite, checks.leaf, checks.native])
def test_big_endian_comes_back_native_with_the_same_numbers(check):
    found = check("x", np.arange(3.0).astype(">f8"))
    assert found.dtype.isnative
    np.testing.assert_array_equal(jnp.asarray(found), [0.0, 1.0, 2.0])


def test_like_returns_native_leaves_and_passes_tracers():
    found = checks.like("u", {"a": np.arange(3.0).astype(">f8")}, {"a": np.zeros(3)})
    assert found["a"].dtype.isnative
    assert jax.jit(lambda u: checks.like("u", u, {"a": np.zeros(3)})["a"].sum())({"a": jnp.ones(3)}) == 3


def test_float64_is_refused_where_jax_would_make_it_float32():
    with jax.enable_x64(False):
        doors.refused(doors.bad(lambda: checks.dtype("dtype", "float64"), "dtype", shown="float64", kinds=ValueError))
        assert checks.dtype("dtype", jnp.bfloat16) == jnp.bfloat16
    with jax.enable_x64(True):
        assert checks.dtype("dtype", float) == np.float64


@pytest.mark.parametrize("x64", [False, True])
def test_numpys_floats_come_in_the_dtype_that_jax_keeps_of_theirs(x64):
    with jax.enable_x64(x64):
        for dtype in (np.float16, np.float32, np.float64):
            assert checks.floating("x", np.ones(3, dtype)).dtype == jnp.asarray(np.ones(3, dtype)).dtype
        assert checks.leaf("x", np.ones(3)).dtype == jnp.zeros(()).dtype
        assert checks.leaves("x", [np.ones(3)], host=True)[0].dtype == np.float64
        assert checks.kept(np.complex128(1j)).dtype == (np.complex128 if x64 else np.complex64)
        assert checks.kept(np.int64(3)).dtype == np.int64 and checks.kept(None) is None
        assert checks.kept(np.full(1, 1e300))[0] == (1e300 if x64 else np.inf)


@pytest.mark.parametrize(
    "call, kind",
    [
        (lambda: checks.whole("steps", 0), ValueError),
        (lambda: checks.whole("steps", 1.5), TypeError),
        (lambda: checks.finite("rate", np.nan), ValueError),
        (lambda: checks.instance("config", 3, str), TypeError),
    ],
)
def test_checks_refuse_with_a_class_of_their_own(call, kind):
    with pytest.raises(checks.Refused) as caught:
        call()
    assert isinstance(caught.value, kind)


def test_other_errors_are_no_refusal():
    with pytest.raises(ValueError, match="broadcast") as caught:
        np.zeros(3) + np.zeros(4)
    assert not isinstance(caught.value, checks.Refused)


def loss(params, batch):
    return jnp.sum(params) * batch


@pytest.mark.parametrize(
    "value", [loss, jax.jit(loss), jax.tree_util.Partial(loss), lambda *a: 0.0, lambda a, b, c=1: 0]
)
def test_functions_that_take_as_many_arguments_pass(value):
    assert checks.accepts("loss", value, 2, "loss(params, batch)") is value


FUNCTIONS = [
    doors.bad(lambda: checks.accepts("loss", loss, 1, "loss(outputs)"), "loss", shown="loss(params, batch)"),
    doors.bad(lambda: checks.accepts("loss", lambda *, a: 0, 1, "loss(outputs)"), "loss(outputs)", shown="*, a"),
    doors.bad(lambda: checks.accepts("loss", None, 1, "loss(outputs)"), "loss", shown="None", kinds=TypeError),
    doors.bad(lambda: checks.flag("skip", 1), "skip", shown="1", kinds=TypeError),
    doors.bad(lambda: checks.leaves("x", None), "x", shown="None"),
    doors.bad(lambda: checks.leaves("x", {"a": "text"}), "x['a']", shown="'text'"),
    doors.bad(lambda: checks.leaves("x", (np.ones(3), np.ones(2)), examples=True), "x", shown="(3,), (2,)"),
    doors.bad(lambda: checks.leaves("x", np.ones((0, 3)), examples=True), "x", shown="(0, 3)"),
]


@pytest.mark.parametrize("row", FUNCTIONS, ids=str)
def test_functions_and_data_are_checked_at_the_door(row):
    doors.refused(row)


@pytest.mark.parametrize(
    "result, shown", [((1.0, 2.0), "(1.0, 2.0)"), ("text", "'text'"), (np.ones(3), "(3,)"), (1j, "1j")]
)
def test_what_a_loss_returns_is_checked_under_a_trace_before_anything_is_compiled(result, shown):
    def call():
        given = checks.returning("loss", lambda y: result, 1, "loss(outputs)", scalar=True)
        jax.jit(lambda given, y: jax.grad(given)(y))(given, np.ones(3))

    doors.refused(doors.bad(call, "loss", shown=shown))


def test_a_checked_function_is_known_again_and_keeps_its_data():
    bound = jax.tree_util.Partial(loss, batch=np.ones(2))
    first, second = (checks.returning("loss", bound, 1, "loss(params)") for _ in range(2))
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert hash(jax.tree.structure(first)) == hash(jax.tree.structure(second))
    np.testing.assert_array_equal(first(np.ones(3)), [3.0, 3.0])
    assert checks.returning("loss", first, 1, "loss(params)") is first


def test_a_checked_function_is_known_again_as_a_static_argument():
    first, second = (checks.returning("loss", loss, 2, "loss(params, batch)", static=True) for _ in range(2))
    assert first == second
    assert hash(first) == hash(second)
    assert checks.returning("loss", first, 2, "loss(params, batch)", static=True) is first


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.float16, jnp.bfloat16, lambda v: jnp.asarray(v, jnp.uint8)])
def test_a_scalar_of_few_bits_comes_back_as_the_number_that_it_is(kind):
    for value in (kind(100), np.array(100, np.uint8)):
        found = checks.positive("step", value, shape=())
        assert found**4 == 1e8
        assert type(checks.number("step", value, above=0.0)) is np.float64


def test_a_scalar_that_holds_its_own_is_not_touched():
    for value in (np.float64(0.1), np.float32(0.1), 3, jnp.float32(2.0)):
        assert checks.finite("step", value, shape=()) is value


SPAN = np.full(3, 2, "timedelta64[s]")
KINDS = [
    doors.bad(lambda: checks.finite("x", SPAN), "x", shown="timedelta64", kinds=TypeError),
    doors.bad(lambda: checks.finite("x", SPAN[0], shape=()), "x", shown="timedelta64", kinds=TypeError),
    doors.bad(lambda: checks.array("x", SPAN, kind="integer"), "x", shown="timedelta64", kinds=TypeError),
    doors.bad(lambda: checks.leaves("x", {"a": SPAN}), "x['a']", shown="timedelta64", kinds=TypeError),
    doors.bad(lambda: checks.accepts("f", float, 1, "f(x)"), "f", shown="float", kinds=TypeError),
    doors.bad(lambda: checks.function("f", type(None)), "f", shown="NoneType", kinds=TypeError),
    doors.bad(lambda: checks.one_of("norm", np.array(["pre", "post"]), ("pre", "post")), "norm", shown="(2,)"),
    doors.bad(lambda: checks.one_of("ord", True, (1, 2)), "ord", shown="True"),
    doors.bad(lambda: checks.number("x", 10**400), "x", shown="1000", kinds=TypeError),
]


@pytest.mark.parametrize("row", KINDS, ids=str)
def test_kinds_that_are_taken_for_others_are_refused(row):
    doors.refused(row)


def test_a_key_that_was_given_away_is_refused(key):
    gone = jax.random.split(key)[0]
    gone.delete()
    with pytest.raises(ValueError, match="key must be .* that still exists; got a deleted one"):
        checks.key("key", gone)
