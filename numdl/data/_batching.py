"""Shuffled epochs, and splits into training, validation and test sets: every choice follows from the key.

The order of epoch e is one permutation, `jax.random.permutation(fold_in(key, e), N)`: any epoch can be had without
those before it, and a run that resumes at epoch e sees what it would have seen.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key, PyTree
from numpy.typing import ArrayLike

from numdl import checks


def batches(
    key: Key[Array, ""],
    data: PyTree,
    size: int,
    *,
    remainder: str = "drop",
    epochs: int | None = None,
) -> Iterator[PyTree]:
    """An iterator of mini-batches of `data`, shuffled anew in every epoch; the same key gives the same batches.

    Parameters
    ----------
    key : key                   typed, `jax.random.key(0)`: of the orders of all epochs
    data : pytree               arrays (NumPy or jax) with one leading length N, such as (images, labels)
    size : int                  examples in a batch, 1..N
    remainder : str             what becomes of the N % size examples at an epoch's end: "drop" leaves them out of this
                                epoch (other ones each time), "keep" makes a shorter last batch of them
    epochs : int or None        passes over the data, >= 1; None never ends
    Returns
    -------
    iterator of pytrees         of data's structure and array kinds, leading length `size`
    Raises
    ------
    TypeError, ValueError       at the call, before the first batch: a size outside 1..N, leaves of different lengths,
                                an untyped key, another `remainder`
    """
    data = checks.leaves("data", data, host=True)
    count = checks.length("data", data)
    checks.key("key", key)
    size = checks.whole("size", size, most=count)
    checks.one_of("remainder", remainder, ("drop", "keep"))
    epochs = None if epochs is None else checks.whole("epochs", epochs)
    return _batches(key, data, count, size, remainder, epochs)


def epoch_indices(
    key: Key[Array, ""], count: int, size: int, *, epochs: int = 1, remainder: str = "drop"
) -> Int[Array, "steps size"]:
    """Indices of the shuffled batches of all epochs: for training that is one scan on the device.

    With "drop" the batches are those of `batches` with the same key, steps = epochs * (count // size). With "carry" an
    epoch's last examples begin the next epoch's first batch, steps = epochs * count // size. Pure; under jit, `count`,
    `size`, `epochs` and `remainder` are static.

    Parameters
    ----------
    key : key                   typed, of the orders
    count : int                 examples N >= 1
    size : int                  examples in a batch, 1..N
    epochs : int                passes over the data, >= 1
    remainder : str             "drop" or "carry"
    Returns
    -------
    array [steps, size]         int32, in 0..count - 1
    Raises
    ------
    TypeError, ValueError       a size outside 1..count, or another argument that is not allowed
    """
    checks.key("key", key)
    count, epochs = checks.whole("count", count), checks.whole("epochs", epochs)
    size = checks.whole("size", size, most=count)
    checks.one_of("remainder", remainder, ("drop", "carry"))
    orders = _orders(key, count, epochs)
    used = orders[:, : count - count % size] if remainder == "drop" else orders
    return used.reshape(-1)[: used.size - used.size % size].reshape(-1, size)


def split(
    key: Key[Array, ""], data: PyTree, fractions: Sequence[float], *, stratify: ArrayLike | None = None
) -> tuple[PyTree, ...]:
    """Disjoint random parts of `data` that together are all of it: train, validation, test.

    Part sizes are fraction * N, rounded so that they add up to N (largest remainders first).

    Parameters
    ----------
    key : key                   typed, of the random order
    data : pytree               arrays with one leading length N
    fractions : tuple           positive, adding up to 1, such as (0.8, 0.1, 0.1)
    stratify : array [N] or None        classes: each is split by the fractions on its own
    Returns
    -------
    tuple of pytrees            one for each fraction, of data's structure
    Raises
    ------
    ValueError, TypeError       fractions that do not add up to 1, a part that would be empty, classes of another length
    """
    data = checks.leaves("data", data, host=True)
    count = checks.length("data", data)
    checks.key("key", key)
    fractions = _fractions(fractions)
    classes = None if stratify is None else _classes(stratify, count)
    order = np.asarray(jax.random.permutation(key, jnp.arange(count, dtype=jnp.int32)))
    groups = [order] if classes is None else [order[classes[order] == value] for value in np.unique(classes)]
    cut = [np.split(group, np.cumsum(_sizes(len(group), fractions))[:-1]) for group in groups]
    # Sorted by place in `order`, so that a class does not come before another.
    rank = np.argsort(order)
    parts = [np.concatenate(part) for part in zip(*cut)]
    if not all(len(part) for part in parts):
        sizes = [len(part) for part in parts]
        raise checks.BadValue(f"fractions must leave no part empty; got {fractions} of {count} examples: sizes {sizes}")
    return tuple(_take(data, part[np.argsort(rank[part])]) for part in parts)


def _batches(key, data, count, size, remainder, epochs):
    for epoch in itertools.count() if epochs is None else range(epochs):
        order = np.asarray(_order(key, epoch, count))
        for start in range(0, count - size + 1 if remainder == "drop" else count, size):
            yield _take(data, order[start : start + size])


@functools.partial(jax.jit, static_argnums=(1, 2))
def _orders(key, count, epochs):
    return jax.lax.map(lambda epoch: _order(key, epoch, count), jnp.arange(epochs, dtype=jnp.int32))


def _order(key, epoch, count):
    return jax.random.permutation(jax.random.fold_in(key, epoch), jnp.arange(count, dtype=jnp.int32))


def _take(data, indices):
    return jax.tree.map(lambda leaf: leaf[indices], data)


def _fractions(fractions):
    if isinstance(fractions, str) or not hasattr(fractions, "__iter__"):
        raise checks.BadType(f"fractions must be a tuple of numbers that add up to 1; got {fractions!r}")
    values = np.asarray(checks.array("fractions", tuple(fractions), ndim=1), np.float64)
    if not (np.all(values > 0) and abs(values.sum() - 1) < 1e-9):
        raise checks.BadValue(f"fractions must be positive and add up to 1; got {fractions!r}")
    return tuple(values.tolist())


def _classes(stratify, count):
    classes = np.asarray(checks.native("stratify", stratify))
    if classes.shape != (count,):
        raise checks.BadValue(
            f"stratify must have a class for each of the {count} examples; got {stratify!r:.50}, shape {classes.shape}"
        )
    return classes


def _sizes(count, fractions):
    """Whole numbers near fraction * count that add up to count: the largest remainders are rounded up."""
    exact = np.array(fractions) * count
    sizes = np.floor(exact + 1e-9).astype(int)  # 0.1 * 30 is to be 3
    most = np.argsort(sizes - exact, kind="stable")[: count - sizes.sum()]
    sizes[most] += 1
    return sizes
