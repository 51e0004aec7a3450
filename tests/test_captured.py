"""What a function holds is read at every call: changed numbers are seen, equal ones compile nothing."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl import _captured, _compiled
from numdl.analysis import layers
from numdl.krylov import lanczos, trace
from tests import registry
from tests.selection import some_fast
from tests.test_compiled_once import lowered

FUNCTIONS = registry.functions()
REGISTERED = registry.calls()
SCALE = np.array(2.0)
NUMBER = 2.0
KEPT = {"inner": [np.array(2.0)]}


def helper(v):
    return SCALE * v


def by_global(v):
    return SCALE * v


def by_helper(v):
    return helper(v)


def by_number(v):
    return NUMBER * v


def by_dict(v):
    return KEPT["inner"][0] * v


class Model:
    rate = 2.0

    def __init__(self):
        self.scale, self.number, self.kept = np.array(2.0), 2.0, {"a": {"b": [2.0]}}

    def by_array(self, v):
        return self.scale * v

    def by_attribute(self, v):
        return self.number * v

    def by_entry(self, v):
        return self.kept["a"]["b"][0] * v

    def by_class(self, v):
        return Model.rate * v

    def __call__(self, v):
        return self.scale * v


def set_entry(holder, key, value):
    holder[key] = value


def closure():
    scale = np.array(2.0)
    return (lambda v: scale * v), lambda to: scale.fill(to)


def bound_anew():
    scale = 2.0

    def change(to):
        nonlocal scale
        scale = to

    return (lambda v: scale * v), change


def inner_function():
    scale = np.array(2.0)

    def inner(v):
        return scale * v

    return (lambda v: inner(v)), lambda to: scale.fill(to)


def default():
    scale = np.array(2.0)

    def function(v, *, by=scale):
        return by * v

    return function, lambda to: scale.fill(to)


def partial():
    scale = np.array(2.0)
    return functools.partial(lambda by, v: by * v, scale), lambda to: scale.fill(to)


def partial_of_jax_with_a_closure():
    scale = np.array(2.0)
    return jax.tree_util.Partial(lambda v: scale * v), lambda to: scale.fill(to)


def strided_view():
    scales = np.full((4, 3), 2.0)
    view = scales.T[1:, ::2]
    return (lambda v: view[0, 0] * v), lambda to: scales.fill(to)


def array_of_objects():
    scales = np.array([2.0, None], object)
    return (lambda v: scales[0] * v), lambda to: set_entry(scales, 0, to)


def namespace():
    space = types.SimpleNamespace(scale=2.0)
    return (lambda v: space.scale * v), lambda to: setattr(space, "scale", to)


def array_of_jax_bound_anew():
    scale = jnp.array(2.0)

    def change(to):
        nonlocal scale
        scale = jnp.array(to)

    return (lambda v: scale * v), change


def attribute_of_the_function():
    def function(v):
        return function.scale * v

    function.scale = 2.0
    return function, lambda to: setattr(function, "scale", to)


def of_the_module(function, name):
    return lambda: (function, lambda to: set_entry(globals(), name, to))


def of_a_model(method, change):
    def made():
        model = Model()
        return getattr(model, method), functools.partial(change, model)

    return made


KINDS = {
    "closure": closure,
    "a number bound anew": bound_anew,
    "function in a function": inner_function,
    "default argument": default,
    "functools.partial": partial,
    "Partial of a closure": partial_of_jax_with_a_closure,
    "strided view": strided_view,
    "array of objects": array_of_objects,
    "namespace": namespace,
    "array of jax bound anew": array_of_jax_bound_anew,
    "attribute of the function": attribute_of_the_function,
    "global array": lambda: (by_global, SCALE.fill),
    "global of a helper": lambda: (by_helper, SCALE.fill),
    "global number": of_the_module(by_number, "NUMBER"),
    "global dict": lambda: (by_dict, KEPT["inner"][0].fill),
    "method, array": of_a_model("by_array", lambda model, to: model.scale.fill(to)),
    "method, attribute": of_a_model("by_attribute", lambda model, to: setattr(model, "number", to)),
    "method, nested": of_a_model("by_entry", lambda model, to: set_entry(model.kept["a"]["b"], 0, to)),
    "method, class": of_a_model("by_class", lambda _, to: setattr(Model, "rate", to)),
    "object that is called": of_a_model("__call__", lambda model, to: model.scale.fill(to)),
    "lambda on an object": lambda: (lambda model: (lambda v: model.by_array(v), model.scale.fill))(Model()),
}
DOORS = {
    "data": lambda: _compiled.jit(lambda f, v: f(v)),
    "static": lambda: _compiled.jit(lambda f, v: f(v), static_argnames="f"),
    "compiled inside": lambda: _compiled.jit(
        lambda f, v: INNER(f, v),
    ),
    "traced": lambda: lambda f, v: jax.extend.core.jaxpr_as_fun(jax.make_jaxpr(_compiled.known(f))(v))(v)[0],
}
INNER = _compiled.jit(lambda f, v: f(v))


CASES = [(kind, door) for door in DOORS for kind in KINDS]


@pytest.mark.parametrize(
    "kind, door",
    some_fast(CASES, {i for i, (kind, door) in enumerate(CASES) if door == "data" or kind in ("closure", "namespace")}),
)
def test_a_changed_number_is_seen_and_an_equal_one_compiles_nothing(kind, door):
    function, change = KINDS[kind]()
    run = DOORS[door]()
    given = function if door in ("static", "traced") else _compiled.as_tree(function)
    try:
        for to in (2.0, 3.0, 2.0):  # back again as well
            change(to)
            assert run(given, np.ones(())) == to
            with lowered() as programs:
                assert run(given, np.ones(())) == to
            assert not programs or door == "traced"
    finally:
        change(2.0)


@dataclasses.dataclass(frozen=True)
class Law:
    rate: float

    @functools.cached_property
    def half(self):
        return self.rate / 2


def test_what_a_value_has_worked_out_and_kept_compiles_nothing():
    law, traces = Law(0.5), []

    def scaled(x):
        traces.append(1)
        return law.rate * x

    program = _compiled.jit(lambda function, x: function(x), static_argnums=0)
    program(scaled, 1.0)
    assert law.half == 0.25
    program(scaled, 1.0)
    assert len(traces) == 1
    object.__setattr__(law, "rate", 0.7)  # nobody should
    assert program(scaled, 1.0) == pytest.approx(0.7)


def test_what_a_function_writes_while_it_is_traced_is_no_input():
    class Counted:
        calls, log = 0, []

        def __call__(self, v):
            self.calls += 1
            self.log.append({"shape": v.shape})
            return 2 * v

    function, traces = Counted(), []
    programs = [_compiled.jit(lambda f, v: f(v)) for _ in range(2)]
    for _ in range(3):
        for program in programs:
            assert program(jax.tree_util.Partial(function), np.ones(())) == 2
        traces.append(function.calls)
    assert traces == [2, 2, 2]


def test_an_array_that_a_partial_binds_stays_data():
    scale, run = np.array(2.0), _compiled.jit(lambda f, v: f(v))
    assert run(jax.tree_util.Partial(jnp.multiply, scale), np.ones(())) == 2
    scale.fill(3.0)
    with lowered() as programs:
        assert run(jax.tree_util.Partial(jnp.multiply, scale), np.ones(())) == 3
    assert not programs


def test_signs_of_zero_types_and_nan_are_told_apart_and_nan_is_itself():
    held = {"value": 0.0}
    run, found = _compiled.jit(lambda f, v: f(v)), []
    function = jax.tree_util.Partial(lambda v: jnp.copysign(v, held["value"]))
    for value in (0.0, -0.0, float("nan")):
        held["value"] = value
        found.append(float(run(function, np.ones(()))))
        with lowered() as programs:
            run(function, np.ones(()))
        assert not programs
    assert found[:2] == [1.0, -1.0]


def test_gradients_and_maps_see_it_too():
    function, change = closure()
    run = _compiled.jit(lambda f, v: f(v) ** 2)
    slope = jax.grad(lambda v: run(jax.tree_util.Partial(function), v))
    rows = jax.vmap(lambda v: run(jax.tree_util.Partial(function), v))
    for to in (2.0, 3.0):
        change(to)
        assert slope(1.0) == 2 * to**2
        np.testing.assert_array_equal(rows(np.ones(2)), to**2)


def test_the_door_of_lanczos_sees_it():
    scale = np.array([2.0, 2.0])

    def matvec(v):
        return scale * v

    ends = []
    for to in (2.0, 3.0):
        scale.fill(to)
        ends.append(float(lanczos.tridiagonalize(matvec, jnp.ones(2), 1).diagonal[0]))
    np.testing.assert_allclose(ends, [2, 3], rtol=1e-12)


def test_a_loop_in_python_reads_once(monkeypatch):
    scale, reads = np.array([2.0, 3.0]), []
    held = _captured.held
    monkeypatch.setattr(_captured, "held", lambda values: reads.append(1) or held(values))
    ends = []
    for to, count in ((1.0, 4), (2.0, 4), (2.0, 8)):
        before = len(reads)
        found = trace.hutchinson(jax.random.key(0), lambda v, by=to: by * scale * v, np.ones(2), num_matvecs=count)
        ends.append((float(found.value), len(reads) - before))
    np.testing.assert_allclose([value for value, _ in ends], [5, 10, 10], rtol=1e-12)
    assert ends[1][1] == ends[2][1]


@pytest.mark.slow
def test_a_probe_sees_it():
    scale = np.array(2.0)

    def apply(params, x):
        return scale * (x @ params["w"])

    def loss(outputs):
        return scale * jnp.mean(outputs**2)

    params, x, values = {"w": np.eye(3)}, np.ones((2, 3)), []
    for to in (2.0, 3.0):
        scale.fill(to)
        values.append(float(layers.probe(apply, params, x, loss=loss).value))
    np.testing.assert_allclose(values, [8, 27], rtol=1e-6)


def scaled(function, by):
    """The function with its floating results scaled by what is held, so that only the scale can differ."""

    def one(leaf):
        inexact = jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) if hasattr(leaf, "dtype") else False
        return leaf * np.asarray(by, leaf.dtype) if inexact else leaf

    @functools.wraps(function)
    def changed(*arguments, **keywords):
        return jax.tree.map(one, function(*arguments, **keywords))

    return changed


def taking_functions():
    """Public functions whose good call has a plain function among its arguments: (name, argument)."""
    for name in REGISTERED[0]:
        if name in FUNCTIONS and not name.startswith(registry.NOT_RUN):
            for argument, value in registry.good_call(name, FUNCTIONS[name], REGISTERED).items():
                if isinstance(value, types.FunctionType):
                    yield name, argument


def numbers(result):
    """The numbers of a result; functions and programs in it are no numbers."""
    leaves = [leaf for leaf in jax.tree.leaves(result) if isinstance(leaf, jax.Array | np.ndarray | float)]
    return [np.asarray(leaf) for leaf in leaves if not jnp.issubdtype(jnp.result_type(leaf), jax.dtypes.prng_key)]


def outcome(name, good, argument, function):
    try:
        return numbers(registry.calling(FUNCTIONS[name], {**good, argument: function})())
    except (TypeError, ValueError) as error:  # a map that must keep what it is given
        return type(error)


def same(one, other):
    if isinstance(one, type) or isinstance(other, type):
        return one is other
    pairs = zip(one, other, strict=True)
    return all(np.allclose(a, b, rtol=1e-9, atol=1e-12, equal_nan=True) for a, b in pairs)


QUICK = {("optimize.line_search.armijo", "function")}


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=".".join(c), marks=() if c in QUICK else pytest.mark.slow) for c in taking_functions()]
)
def test_every_public_function_sees_what_its_functions_hold(case):
    name, argument = case
    good, scale = registry.good_call(name, FUNCTIONS[name], REGISTERED), np.array(1.0)
    held = scaled(good[argument], scale)
    outcome(name, good, argument, held)
    scale.fill(1.25)
    again, fresh = outcome(name, good, argument, held), outcome(name, good, argument, scaled(good[argument], scale))
    assert same(again, fresh)
