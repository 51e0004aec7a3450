"""Kinds of arguments: a good value, and the bad ones that every argument of the kind must refuse."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

NAN, INF = float("nan"), float("inf")


@dataclasses.dataclass(frozen=True)
class Argument:
    """A good value of one argument and the bad values to try in its place."""

    good: Any
    bad: tuple

    def without(self, *values):
        """The same argument where these values are allowed."""
        return Argument(self.good, tuple(b for b in self.bad if not any(b is v or _equal(b, v) for v in values)))

    def also(self, *values):
        """The same argument with more bad values."""
        return Argument(self.good, (*self.bad, *values))


def _equal(a, b):
    return isinstance(a, int | float | str) and type(a) is type(b) and a == b


def free(good):
    """An argument with no bad value that the door could know."""
    return Argument(good, ())


def count(good=2, *, least=1):
    """A whole number."""
    return Argument(good, (least - 1, -3, True, "3", NAN, 2.5, [3], None, INF, 10**10))


def limited(good=2, *, most, least=1):
    """A whole number with a largest value."""
    return count(good, least=least).also(most + 1)


def number(good=1.0, *bad):
    """A finite real scalar."""
    return Argument(good, ("1", None, NAN, INF, 1j, np.ones(3), [1.0, [2.0]], 10**400, span(()), *bad))


def variance(good=1.0):
    """A finite scalar that is not negative."""
    return number(good, -1.0, -INF)


def positive(good=1.0):
    """A finite scalar above zero."""
    return number(good, -1.0, 0.0)


def probability(good=0.5, *bad):
    """A scalar in (0, 1] or [0, 1]."""
    return number(good, -0.5, 1.5, *bad)


def numbers(good, *bad):
    """Finite real numbers, of any shape."""
    return Argument(good, ("1", None, NAN, INF, 1j, masked((3,)), span((3,)), *bad))


def name(good, *also):
    """One of a few names."""
    return Argument(
        good,
        (
            "tpyo",
            "",
            good.upper() if good.upper() != good else good.lower(),
            None,
            3,
            [good],
            np.array(["tpyo"] * 2),
            *also,
        ),
    )


def text(good):
    """Any string that is not empty."""
    return Argument(good, ("", None, 3, [good]))


def key(good):
    """One typed random key."""
    return Argument(good, (0, None, "key", old_key(), keys(), np.zeros(2), deleted_key()))


def function(good, *returning):
    """A function with as many arguments as the good one has, returning what the good one does."""
    return Argument(good, (None, 3, "text", float, int, no_arguments, *map(giving, returning)))


def loss(good):
    """A function that returns one real number."""
    return function(good, (1.0, 2.0), np.ones(3), "text", None, 1j)


def floating(good, *bad):
    """An array of floating-point numbers, not empty, with as many axes as the good one."""
    shape = np.shape(good)
    return batch(good).also(np.ones((*shape, 1)) if shape else np.ones(2), *bad)


def batch(good):
    """An array of floating-point numbers with examples in front: any number of axes after the first."""
    shape = np.shape(good)
    return Argument(
        good,
        (
            "text",
            None,
            [[1.0], [1.0, 2.0]],
            3.0,
            np.ones(shape, int),
            np.ones(shape, bool),
            np.ones(shape, complex),
            np.ones(shape, object),
            np.full(shape, "text"),
            np.ones((0, *shape[1:])),
            masked(shape),
            deleted(shape),
            span(shape),
        ),
    )


def finite(good, *bad):
    """A floating-point array of finite numbers."""
    return floating(good, np.full(np.shape(good), np.nan), np.full(np.shape(good), np.inf), *bad)


def real(good, *bad):
    """Numbers as an array or nested lists: whole ones are welcome."""
    shape = np.shape(good)
    return Argument(
        good,
        (
            "text",
            None,
            [[1.0], [1.0, 2.0]],
            np.ones(shape, complex),
            np.ones(shape, object),
            np.full(shape, "text"),
            np.ones((0, *shape[1:])),
            masked(shape),
            deleted(shape),
            span(shape),
            *bad,
        ),
    )


def labels(good, *, classes=None):
    """Whole numbers from 0, one for each example."""
    size = len(good)
    many = () if classes is None else (np.full(size, classes),)
    return Argument(
        good,
        (
            "text",
            None,
            np.zeros(size) + 0.5,
            np.zeros(size, complex),
            np.full(size, -1),
            np.zeros(size + 1, int),
            np.zeros((size, 1), int),
            np.full(size, "text"),
            masked((size,), int),
            *many,
        ),
    )


def tree(good):
    """A pytree of arrays that holds something to differentiate."""
    return Argument(
        good, ("text", None, {}, *spoiled(good), jax.tree.map(lambda leaf: np.ones(np.shape(leaf), int), good))
    )


def like(good):
    """A pytree whose structure and shapes are those of another argument."""
    leaves, structure = jax.tree.flatten(good)
    first = np.asarray(leaves[0])
    return Argument(
        good,
        (
            "text",
            None,
            {},
            [good],
            {"good": good, "more": np.ones(2)},
            jax.tree.unflatten(structure, [np.ones((1, *first.shape)), *leaves[1:]]),
            jax.tree.unflatten(structure, [np.ones(()), *leaves[1:]]),
            jax.tree.unflatten(structure, [None, *leaves[1:]]),
            *spoiled(good),
        ),
    )


def data(good):
    """A pytree of arrays, examples or whatever a function takes."""
    return Argument(good, ("text", *spoiled(good)))


def spoiled(good):
    """The pytree with a first leaf that is no array of numbers, or none that can be read."""
    leaves, structure = jax.tree.flatten(good)
    shape = np.shape(leaves[0])
    wrong = "text", np.full(shape, "text"), np.ones(shape, object), masked(shape), deleted(shape), span(shape)
    return [jax.tree.unflatten(structure, [leaf, *leaves[1:]]) for leaf in wrong]


def instance(good):
    """An object of a class of numdl."""
    return Argument(good, (None, 3, "text", no_arguments, {}))


def counts(good):
    """A sequence of whole numbers."""
    items = tuple(good)
    return Argument(
        good,
        (
            None,
            3,
            "text",
            set(items),
            (),
            (*items[:-1], 0),
            (*items[:-1], 2.5),
            (*items[:-1], "3"),
            (*items[:-1], True),
        ),
    )


def dtype(good="float32"):
    """A dtype of real floating-point numbers."""
    return Argument(good, ("float46", "int32", 3, "complex64"))


def path(good):
    """A file that can be read."""
    return Argument(good, (None, 3, "/no/such/file", "/"))


def flag(good):
    """True or False."""
    return Argument(good, ("yes", 2, None, np.ones(2)))


def no_arguments():
    """A function that takes nothing."""
    return 0.0


def giving(value):
    """A function of anything that returns this value."""
    return functools.partial(_give, value)


def _give(value, *arguments):
    return value


def masked(shape, kind=float):
    """A masked array with something masked."""
    return np.ma.masked_array(np.ones(shape, kind), np.ones(shape, bool))


@functools.cache
def deleted(shape):
    """A jax array that was given away."""
    array = jnp.asarray(np.ones(shape))
    array.delete()
    return array


def span(shape):
    """Spans of time: whole numbers to NumPy."""
    return np.full(shape, 3, "timedelta64[s]")


@functools.cache
def deleted_key():
    """A random key that was given away."""
    found = jax.random.key(0)
    found.delete()
    return found


@functools.cache
def old_key():
    """A key of the old kind: two integers."""
    return jax.random.PRNGKey(0)


@functools.cache
def keys():
    """Two keys."""
    return jax.random.split(jax.random.key(0), 2)
