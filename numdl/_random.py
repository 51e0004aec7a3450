"""The numbers of `jax.random`, bit for bit, from programs that compile and run in a part of its time.

jax makes threefry's twenty rounds on a CPU in loops within loops, over counters of as many axes as the array has. The
same rounds written out one after the other, over counters in one row, give the same bits in a quarter of the time. Keys
stay jax's own: only here, inside of a draw, do they belong to the generator below.

Source: Salmon, Moraes, Dror & Shaw 2011, SC '11, doi:10.1145/2063384.2063405 (Threefry-2x32, 20 rounds).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from numdl import _effort

_TURNS = (13, 15, 26, 6), (17, 29, 16, 24)
_PARITY = np.uint32(0x1BD11BDA)
_LARGEST = 2**24  # entries; of more, jax's own program, of which each of several devices makes its part


def _drawn(draw):
    @functools.wraps(draw)
    def drawn(key, *arguments, **options):
        return draw(quick(key), *arguments, **options)

    return drawn


bernoulli = _drawn(jax.random.bernoulli)
bits = _drawn(jax.random.bits)
gumbel = _drawn(jax.random.gumbel)
normal = _drawn(jax.random.normal)
orthogonal = _drawn(jax.random.orthogonal)
rademacher = _drawn(jax.random.rademacher)
truncated_normal = _drawn(jax.random.truncated_normal)
uniform = _drawn(jax.random.uniform)


@functools.partial(_effort.jit, static_argnums=1)
def split(key, shape):
    """`jax.random.split`, whose program for this many keys is compiled quickly.

    Parameters
    ----------
    key : key
    shape : int or tuple of int
    Returns
    -------
    keys                        [*shape]
    """
    return jax.random.split(key, shape)


def quick(key):
    """The key whose numbers are the same and cost less on a CPU; elsewhere, and of another generator, as it is.

    Parameters
    ----------
    key : key                   of any shape
    Returns
    -------
    key                         for `jax.random`'s functions
    """
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    threefry = typed and str(jax.random.key_impl(key)) == "threefry2x32" and jax.config.jax_threefry_partitionable
    if not threefry or jax.default_backend() != "cpu":
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_generator())


@functools.cache
def _generator():
    from jax.extend import random  # takes as long to import as the rest of the package

    return random.define_prng_impl(
        key_shape=(2,), seed=_seeded, split=_split, random_bits=_bits, fold_in=_folded, name="rounds of threefry"
    )


# ---- the generator: jax's own keys, and two words for each counter -------------------------------------------------


def _own(key):
    return jax.random.wrap_key_data(key, impl="threefry2x32")


def _seeded(seed):
    return jax.random.key_data(jax.random.key(seed, impl="threefry2x32"))


def _split(key, shape):
    return jax.random.key_data(jax.random.split(_own(key), shape))


def _folded(key, data):
    return jax.random.key_data(jax.random.fold_in(_own(key), data))


def _hash(key, high, low):
    keys = key[0], key[1], key[0] ^ key[1] ^ _PARITY
    high, low = high + keys[0], low + keys[1]
    for i in range(5):
        for turn in _TURNS[i % 2]:
            high = high + low
            low = high ^ ((low << np.uint32(turn)) | (low >> np.uint32(32 - turn)))
        high, low = high + keys[(i + 1) % 3], low + keys[(i + 2) % 3] + np.uint32(i + 1)
    return high, low


@functools.partial(jax.jit, static_argnums=(1, 2))
def _bits(key, width, shape):
    """Of the counters 0, 1, ... of an array's entries, in row-major order.

    In two halves, as XLA would repeat the rounds in each loop that reads them, were they not in a loop of their own.
    """
    size = math.prod(shape)
    if size > _LARGEST:
        return jax.random.bits(_own(key), shape, f"uint{width}")
    half = -(-size // 2)
    places = lax.iota(jnp.uint32, half)

    def bits(start):
        high, low = _hash(key, jnp.zeros_like(places), start + places)
        if width == 64:
            return (high.astype(jnp.uint64) << np.uint64(32)) | low.astype(jnp.uint64)
        return (high ^ low).astype(f"uint{width}")

    return lax.map(bits, np.asarray([0, half], np.uint32)).ravel()[:size].reshape(shape)
