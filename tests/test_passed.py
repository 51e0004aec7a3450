"""Checks that are remembered: made once for a function and a key, again for another, gone with the function."""

import functools
import gc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl import checks
from numdl.analysis import kernels, landscape
from numdl.checks import _passed


class Model:
    def __init__(self, scale):
        self.scale = scale

    def loss(self, params, batch):
        return jnp.sum(params * batch) * self.scale


def counted(function, *keys):
    """How often a check is made when these keys come one after the other."""
    calls = []
    for key in keys:
        checks.once(function, key, lambda key=key: calls.append(key))
    return len(calls)


def test_once_for_a_function_and_a_key():
    def function():
        pass

    assert counted(function, 1, 1, 2, 1) == 2
    assert counted(function, 1, 2, 3) == 1
    assert counted(lambda: None, 1) == 1
    assert counted(functools.partial(function), 1, 1) == 1
    model = Model(1.0)
    assert counted(model.loss, 1) == 1 and counted(model.loss, 1) == 0
    assert counted(Model(1.0).loss, 1) == 1
    assert counted(jax.tree_util.Partial(function), 1, 1) == 2  # its arrays may be others
    assert counted(len, 1, 1) <= 2 and counted(function, [1], [1]) == 2  # no hash: every time


def test_a_failure_is_not_remembered():
    def function():
        pass

    def fails():
        raise ValueError("no")

    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            checks.once(function, 1, fails)
    assert counted(function, 1) == 1


def test_it_is_bounded_and_dies_with_the_function():
    def function():
        pass

    assert counted(function, *range(1000)) == 1000
    assert len(_passed._keys(function)) <= _passed._MOST
    number = id(function)
    assert number in _passed._PASSED
    del function
    gc.collect()
    assert number not in _passed._PASSED


def test_forms_tell_shapes_dtypes_and_structures_apart():
    x = np.ones(3, np.float32)
    same = [checks.forms(x, 2), checks.forms(2 * x, 2)]
    other = [checks.forms(x[:2], 2), checks.forms(x.astype(np.float16), 2), checks.forms([x], 2), checks.forms(x, None)]
    assert same[0] == same[1]
    assert len({same[0], *other}) == 5


def test_the_second_call_traces_nothing_and_bad_ones_are_still_refused(monkeypatch):
    params, x = jnp.ones((2, 3)), jnp.diag(jnp.array([1.0, 2.0]))

    def apply(params, x):
        return jnp.tanh(x @ params)

    def loss(params, batch):
        return jnp.mean(apply(params, batch) ** 2)

    def vector(params, batch):
        return apply(params, batch)[0]

    def both():
        return kernels.ntk(apply, params, x), landscape.line(loss, params, x, params, positions=[0.0, 1.0]).values

    first = both()
    with monkeypatch.context() as patch:
        patch.setattr(jax, "eval_shape", lambda *given, **more: pytest.fail("traced again"))
        for one, two in zip(first, both(), strict=True):
            np.testing.assert_array_equal(one, two)
    for _ in range(2):
        with pytest.raises(ValueError, match="loss must return one real number"):
            landscape.line(vector, params, x, params, positions=[0.0])
        with pytest.raises(TypeError, match="apply must be a function, called as"):
            kernels.ntk(lambda params: params, params, x)
    with pytest.raises(ValueError, match="one by one"):
        kernels.ntk(lambda p, x: apply(p, x - jnp.mean(x, axis=0, keepdims=True)), params, x)
    with pytest.raises(MemoryError, match="memory_limit"):
        kernels.ntk(apply, params, x, memory_limit=1)
