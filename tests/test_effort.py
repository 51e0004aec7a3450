"""Small programs are compiled quickly, large ones well, by what they compute and by nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl import _compiled, _effort
from tests.test_compiled_once import lowered


def counted(function, *arguments):
    return _effort.work(jax.make_jaxpr(function)(*arguments).jaxpr)


COUNTS = {
    "elementwise": (lambda x: jnp.sin(x) + x, (np.ones((3, 4)),), (2, 4 * 12 + 12)),
    "product of matrices": (lambda a, b: a @ b, (np.ones((3, 4)), np.ones((4, 5))), (1, 60 / 4)),
    "many products": (lambda a, b: jax.lax.batch_matmul(a, b), (np.ones((2, 3, 4)), np.ones((2, 4, 5))), (1, 120 / 4)),
    "vector and matrix": (lambda a, b: a @ b, (np.ones(4), np.ones((4, 5))), (1, 20 * 4)),
    "outer product": (jnp.outer, (np.ones(4), np.ones(5)), (3, 20 + 4 + 5)),
    "sum": (jnp.sum, (np.ones((3, 4)),), (1, 12)),
    "convolution": (
        lambda x, w: jax.lax.conv(x, w, (1, 1), "VALID"),
        (np.ones((2, 3, 5, 5)), np.ones((4, 3, 3, 3))),
        (1, pytest.approx(2 * 4 * 3 * 3 * 3 * 3 * 3 / 20)),
    ),
    "scan": (lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c), None), x, length=50)[0], (np.ones(3),), (1, 4 * 150)),
    "compiled inside": (jax.jit(jax.jit(jnp.sin)), (np.ones(3),), (1, 4 * 3)),
    "while": (
        lambda x: jax.lax.while_loop(lambda c: c[0] < 1, jnp.sin, x),
        (np.ones(3),),
        (4, _effort.TURNS * (4 * 3 + 3)),  # sin of 3; a slice, its shape, a comparison
    ),
    "branches": (
        lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: jnp.sin(jnp.cos(x)), lambda x: x @ x, x),
        (np.ones((3, 3)),),
        (7, 4 * 9 + 4 * 9 + 4),  # the larger branch; a slice, its shape, a comparison, a cast
    ),
}


@pytest.mark.parametrize("name", COUNTS)
def test_work_is_counted(name):
    function, arguments, expected = COUNTS[name]
    assert counted(function, *arguments) == expected


@pytest.fixture
def told(monkeypatch):
    """What programs are told to be compiled with, in order."""
    seen = []
    monkeypatch.setattr(_effort, "options", lambda: seen.append("quickly"))
    return seen


def layers(x, w):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]


def test_small_quickly_large_well(told):
    run = _effort.jit(layers)
    run(np.ones((400, 300)), np.ones((5, 300, 300)))
    assert not told
    run(np.ones((2, 3)), np.ones((5, 3, 3)))
    assert told == ["quickly"]


def test_what_goes_on_bit_for_bit_is_compiled_in_one_way(told):
    for size in (1, 300):
        _effort.jit(layers, runs=None)(np.ones((2, size)), np.ones((1, size, size)))
    assert not told


def test_how_often_it_runs_counts(told):
    x, w = np.ones((30, 40)), np.ones((5, 40, 40))
    _effort.jit(layers, runs=100)(x, w)
    assert not told
    _effort.jit(layers, runs=1)(x, w)
    assert told


def test_a_function_that_holds_more_than_before_is_judged_anew(told):
    run = _compiled.jit(lambda f, x: f(x), static_argnums=0)
    data = {}

    def function(x):
        return layers(jnp.broadcast_to(x, (50, data["w"].shape[1])), data["w"])

    for size in (3, 400):
        data["w"] = np.ones((5, size, size))
        assert run(function, np.ones(1)).shape == (50, size)
    assert told == ["quickly"]  # the first; the same function and argument, but ten thousand times the work
    run(function, np.ones(1))
    assert told == ["quickly"]


def test_inside_of_other_programs_and_transformations():
    run = _effort.jit(lambda x, n: jnp.sin(x) * n, static_argnames="n")
    x = jnp.arange(3.0)
    expected = 2 * np.cos(x)
    np.testing.assert_allclose(run(x, n=2), 2 * np.sin(x), rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(lambda x: run(x, n=2)))(x), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(lambda x: run(x, 2))))(x), expected, rtol=1e-6)
    known = jax.jit(lambda y: y + run(x, 2))  # known numbers inside of a program
    np.testing.assert_allclose(known(x), x + 2 * np.sin(x), rtol=1e-6)
    with jax.disable_jit():
        np.testing.assert_allclose(run(x, n=2), 2 * np.sin(x), rtol=1e-6)


def test_other_values_compile_nothing():
    run = _effort.jit(lambda x, alpha, n: alpha * jnp.sin(x) + n, static_argnums=2)
    run(np.ones(3), 0.5, 2)
    with lowered() as programs:
        run(np.zeros(3), 0.25, 2)
    assert not programs
    with lowered() as programs:
        run(np.zeros(3), 0.25, n=3)
    assert len(programs) == 1


def test_the_numbers_are_those_of_the_program_compiled_well():
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=(4, 5)).astype(np.float32), rng.normal(size=(6, 5, 5)).astype(np.float32)
    told = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}  # the suite's flags undone
    told |= {name: True for name in _effort.options() if name == "xla_cpu_use_fusion_emitters"}
    quick, well = _effort.jit(layers), jax.jit(layers, compiler_options=told)
    np.testing.assert_allclose(quick(x, w), well(x, w), atol=3e-7 * 5)


def test_the_compiler_takes_the_options():
    jax.jit(lambda: 0, compiler_options=_effort.options()).lower().compile()
    assert _effort.options()["xla_backend_optimization_level"] == 0


@pytest.mark.parametrize("unhashable", [[1], {"a": 1}])
def test_what_has_no_hash_is_refused_as_by_jax(unhashable):
    with pytest.raises(ValueError, match="hash"):
        _effort.jit(lambda n: n, static_argnums=0)(unhashable)
