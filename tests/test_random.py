"""The package's draws are those of `jax.random`, bit for bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl import _random

SHAPES = [(), (0, 3), (7,), (3, 4, 5)]
DRAWS = {
    "normal": lambda draws, key, shape, dtype: draws.normal(key, shape, dtype),
    "uniform": lambda draws, key, shape, dtype: draws.uniform(key, shape, dtype, -2.0, 3.0),
    "truncated_normal": lambda draws, key, shape, dtype: draws.truncated_normal(key, -2.0, 2.0, shape, dtype),
    "gumbel": lambda draws, key, shape, dtype: draws.gumbel(key, shape, dtype),
    "rademacher": lambda draws, key, shape, dtype: draws.rademacher(key, shape, dtype),
    "orthogonal": lambda draws, key, shape, dtype: draws.orthogonal(key, 3, shape[:1], jnp.float32),
    "bernoulli": lambda draws, key, shape, dtype: draws.bernoulli(key, jnp.full(shape, 0.3, dtype)),
}


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_the_same_numbers(draw, impl):
    key = jax.random.key(3, impl=impl)
    for shape in SHAPES:
        for dtype in (jnp.float32, jnp.bfloat16):
            np.testing.assert_array_equal(draw(_random, key, shape, dtype), draw(jax.random, key, shape, dtype))


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.uint16, jnp.uint32, jnp.uint64])
def test_the_same_bits(dtype):
    with jax.enable_x64(True):
        key = jax.random.key(1)
        bits = _random.bits(key, (3, 5), dtype)
        assert bits.dtype == dtype
        np.testing.assert_array_equal(bits, jax.random.bits(key, (3, 5), dtype))


def test_the_same_for_many_keys_and_inside_of_programs():
    keys = jax.random.split(jax.random.key(0), (2, 3))

    def drawn(draws):
        return jax.jit(jax.vmap(jax.vmap(lambda key: draws.normal(key, (4, 3)))))(keys)

    np.testing.assert_array_equal(drawn(_random), drawn(jax.random))


def test_a_quick_key_gives_the_keys_that_its_own_would():
    key = jax.random.key(5)
    quick = _random.quick(key)
    seeded = jax.random.key(5, impl=_random._generator())
    np.testing.assert_array_equal(jax.random.key_data(seeded), jax.random.key_data(key))
    for derive in (lambda key: jax.random.split(key, (3, 2)), lambda key: jax.random.fold_in(key, 7)):
        np.testing.assert_array_equal(jax.random.key_data(derive(quick)), jax.random.key_data(derive(key)))


def test_many_numbers_are_drawn_by_jax_as_its_program_is_shared_by_devices(monkeypatch):
    monkeypatch.setattr(_random, "_LARGEST", 10)
    key = jax.random.key(0)
    monkeypatch.delattr(_random, "_hash")
    np.testing.assert_array_equal(_random.bits(key, (11,)), jax.random.bits(key, (11,)))


def test_keys_of_other_kinds_and_places_stay_as_they_are(monkeypatch):
    key, raw, other = jax.random.key(0), jax.random.PRNGKey(0), jax.random.key(0, impl="rbg")
    assert _random.quick(raw) is raw and _random.quick(other) is other
    np.testing.assert_array_equal(_random.normal(raw, (3,)), jax.random.normal(raw, (3,)))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert _random.quick(key) is key
