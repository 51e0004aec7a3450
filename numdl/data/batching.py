"""Shuffled epochs, and splits into training, validation and test sets: every choice follows from the key.

The order of epoch e is one permutation, `jax.random.permutation(fold_in(key, e), N)`: any epoch can be had without
those before it, and a run that resumes at epoch e sees what it would have seen.
"""

import itertools
import numbers

import jax
import jax.numpy as jnp
import numpy as np


def batches(key, data, size, *, remainder, epochs=None):
    """An iterator of batches of `data`, shuffled anew in every epoch; the same key gives the same batches.

    Parameters
    ----------
    key : typed random key
    data : pytree               arrays (NumPy or jax) with one leading length N, such as (images, labels)
    size : int                  examples in a batch, 1..N
    remainder : str             what becomes of the N % size examples at an epoch's end: "drop" leaves them out of this
                                epoch, "keep" makes a shorter last batch of them
    epochs : int or None        None never ends
    Yields
    ------
    pytree                      of data's structure and array kinds, leading length `size`
    Raises
    ------
    TypeError, ValueError       at the call, before the first batch
    """
    count = _length(data)
    _check(key, count, size, epochs, remainder, ("drop", "keep"))
    return _batches(key, data, count, int(size), remainder, epochs)


def epoch_indices(key, count, size, *, epochs, remainder="drop"):
    """Indices [steps, size] of the shuffled batches of all epochs, int32: for training that is one scan on the device.

    With "drop" the batches are those of `batches` with the same key, steps = epochs * (count // size). With "carry" an
    epoch's last examples begin the next epoch's first batch, steps = epochs * count // size. Pure; under jit, `count`,
    `size`, `epochs` and `remainder` are static.

    Raises
    ------
    TypeError, ValueError       a size outside 1..count, or another argument that is not allowed
    """
    _check(key, _whole("count", count), size, _whole("epochs", epochs), remainder, ("drop", "carry"))
    orders = jax.lax.map(lambda epoch: _order(key, epoch, count), jnp.arange(epochs, dtype=jnp.int32))
    used = orders[:, : count - count % size] if remainder == "drop" else orders
    return used.reshape(-1)[: used.size - used.size % size].reshape(-1, size)


def split(key, data, fractions, *, stratify=None):
    """Disjoint random parts of `data` that together are all of it: train, validation, test.

    Part sizes are fraction * N, rounded so that they add up to N (largest remainders first).

    Parameters
    ----------
    key : typed random key
    data : pytree               arrays with one leading length N
    fractions : tuple           positive, adding up to 1, such as (0.8, 0.1, 0.1)
    stratify : array [N] or None        classes: each is split by the fractions on its own
    Returns
    -------
    tuple of pytrees            one for each fraction, of data's structure
    Raises
    ------
    ValueError                  fractions that do not add up to 1, or a part that would be empty
    """
    count = _length(data)
    _check(key, count, 1, None, "drop", ("drop",))
    fractions = _fractions(fractions)
    order = np.asarray(jax.random.permutation(key, jnp.arange(count, dtype=jnp.int32)))
    groups = [order] if stratify is None else _groups(order, stratify, count)
    cut = [np.split(group, np.cumsum(_sizes(len(group), fractions))[:-1]) for group in groups]
    # Sorted by place in `order`, so that a class does not come before another.
    rank = np.argsort(order)
    parts = [np.concatenate(part) for part in zip(*cut)]
    if not all(len(part) for part in parts):
        sizes = [len(part) for part in parts]
        raise ValueError(f"fractions {fractions} of {count} examples leave a part empty: sizes {sizes}")
    return tuple(_take(data, part[np.argsort(rank[part])]) for part in parts)


def _batches(key, data, count, size, remainder, epochs):
    for epoch in itertools.count() if epochs is None else range(epochs):
        order = np.asarray(_order(key, epoch, count))
        for start in range(0, count - size + 1 if remainder == "drop" else count, size):
            yield _take(data, order[start : start + size])


def _order(key, epoch, count):
    return jax.random.permutation(jax.random.fold_in(key, epoch), jnp.arange(count, dtype=jnp.int32))


def _take(data, indices):
    return jax.tree.map(lambda leaf: leaf[indices], data)


def _length(data):
    """The leading length that all leaves of `data` share."""
    leaves = jax.tree.leaves(data)
    if not leaves or not all(isinstance(leaf, np.ndarray | jax.Array) and leaf.ndim for leaf in leaves):
        wrong = next((type(leaf).__name__ for leaf in leaves if getattr(leaf, "ndim", 0) == 0), "nothing")
        raise TypeError(f"data must hold arrays with a leading axis only, such as (images, labels); it holds {wrong}")
    lengths = sorted({len(leaf) for leaf in leaves})
    if len(lengths) > 1 or lengths[0] < 1:
        raise ValueError(f"data must hold arrays of one leading length >= 1; got lengths {lengths}")
    return lengths[0]


def _check(key, count, size, epochs, remainder, allowed):
    if not (isinstance(key, jax.Array) and jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key) and key.ndim == 0):
        raise TypeError(f"key must be one typed random key, jax.random.key(seed); got {key!r}")
    if _whole("size", size) > count:
        raise ValueError(f"size must be at most the number of examples, {count}; got {size}")
    if epochs is not None:
        _whole("epochs", epochs)
    if remainder not in allowed:
        raise ValueError(f"remainder must be one of {', '.join(allowed)}; got {remainder!r}")


def _whole(name, value):
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer >= 1; got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be an integer >= 1; got {value!r}")
    return value


def _fractions(fractions):
    values = tuple(float(fraction) for fraction in fractions)
    if not (values and all(value > 0 for value in values) and abs(sum(values) - 1) < 1e-9):
        raise ValueError(f"fractions must be positive and add up to 1; got {tuple(fractions)}")
    return values


def _groups(order, stratify, count):
    classes = np.asarray(stratify)
    if classes.shape != (count,):
        raise ValueError(f"stratify must have one class for each of the {count} examples; got shape {classes.shape}")
    return [order[classes[order] == value] for value in np.unique(classes)]


def _sizes(count, fractions):
    """Whole numbers near fraction * count that add up to count: the largest remainders are rounded up."""
    exact = np.array(fractions) * count
    sizes = np.floor(exact + 1e-9).astype(int)  # 0.1 * 30 is to be 3
    most = np.argsort(sizes - exact, kind="stable")[: count - sizes.sum()]
    sizes[most] += 1
    return sizes
