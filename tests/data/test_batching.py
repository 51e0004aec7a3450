"""Batches cover what they should, in an order that follows from the key alone; splits are disjoint and complete."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl import data

X, Y = np.arange(20, dtype=np.float32).reshape(10, 2), np.arange(10, dtype=np.int32)


def joined(lists):
    return list(itertools.chain(*lists))


def rows(key, size, **options):
    return [batch.tolist() for batch in data.batches(key, Y, size, **options)]


def test_batches_have_the_structure_and_the_kinds_of_the_data(key):
    tree = {"x": X, "y": jnp.asarray(Y)}
    batch = next(data.batches(key, tree, 4, remainder="drop"))
    assert isinstance(batch["x"], np.ndarray) and isinstance(batch["y"], jax.Array)
    assert batch["x"].shape == (4, 2) and batch["x"].dtype == np.float32
    np.testing.assert_array_equal(batch["x"][:, 0], 2 * np.asarray(batch["y"]))  # rows stay together
    batch["x"][:] = -1
    assert X.min() == 0, "the data is not the batch's"
    with jax.enable_x64(False):
        wide = next(data.batches(key, np.ones((4, 2)), 2, remainder="drop"))
    assert wide.dtype == np.float64, "NumPy's stay NumPy's, whatever jax keeps of them"


@pytest.mark.parametrize("remainder, sizes", [("keep", [4, 4, 2]), ("drop", [4, 4])])
def test_each_epoch_is_a_permutation(key, remainder, sizes):
    found = rows(key, 4, remainder=remainder, epochs=3)
    assert [len(batch) for batch in found] == sizes * 3
    epochs = [joined(found[i * len(sizes) : (i + 1) * len(sizes)]) for i in range(3)]
    assert all(len(set(epoch)) == sum(sizes) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3, "every epoch has an order of its own"


def test_the_order_is_a_function_of_the_key(key):
    first = rows(key, 3, remainder="keep", epochs=2)
    assert first == rows(key, 3, remainder="keep", epochs=2)
    assert first != rows(jax.random.key(1), 3, remainder="keep", epochs=2)
    assert joined(first[:4]) == jax.random.permutation(jax.random.fold_in(key, 0), 10).tolist()
    assert joined(first[4:]) == jax.random.permutation(jax.random.fold_in(key, 1), 10).tolist()


def test_without_a_number_of_epochs_it_never_ends(key):
    endless = data.batches(key, Y, 10, remainder="keep")
    assert [sorted(batch.tolist()) for batch in itertools.islice(endless, 5)] == [list(range(10))] * 5


def test_indices_are_those_of_the_batches(key):
    indices = data.epoch_indices(key, 10, 4, epochs=3)
    assert indices.shape == (6, 4) and indices.dtype == jnp.int32
    assert indices.tolist() == rows(key, 4, remainder="drop", epochs=3) == rows(key, 4, epochs=3)
    assert data.epoch_indices(key, 10, 4).tolist() == indices[:2].tolist()


def test_carried_indices_leave_nothing_out(key):
    indices = data.epoch_indices(key, 10, 4, epochs=3, remainder="carry")
    stream = joined(rows(key, 10, remainder="keep", epochs=3))
    assert indices.shape == (7, 4) and indices.reshape(-1).tolist() == stream[:28]


def test_indices_under_jit_and_vmap(key):
    compiled = jax.jit(lambda key: data.epoch_indices(key, 10, 4, epochs=3))
    np.testing.assert_array_equal(compiled(key), data.epoch_indices(key, 10, 4, epochs=3))
    keys = jax.random.split(key, 2)
    both = jax.vmap(compiled)(keys)
    np.testing.assert_array_equal(both[1], compiled(keys[1]))


def test_all_orders_are_equally_likely(key):
    """Where each of four examples comes first, over 2000 epochs: chi-squared of 3 degrees, P(> 37.6) = 3.4e-8."""
    first = data.epoch_indices(key, 4, 4, epochs=2000)[:, 0]
    counts = np.bincount(first, minlength=4)
    assert ((counts - 500) ** 2 / 500).sum() < 37.6


@pytest.mark.parametrize(
    "fractions, sizes",
    [
        ((0.8, 0.1, 0.1), [8, 1, 1]),
        ((0.5, 0.5), [5, 5]),
        ((1.0,), [10]),
        ((0.35, 0.65), [4, 6]),
        ((0.14, 0.86), [1, 9]),
        ((0.3, 0.7), [3, 7]),
    ],
)
def test_split_is_disjoint_and_complete(key, fractions, sizes):
    parts = data.split(key, (X, Y), fractions)
    assert [len(y) for _, y in parts] == sizes
    assert sorted(np.concatenate([y for _, y in parts]).tolist()) == list(range(10))
    assert all(np.array_equal(x[:, 0], 2 * y) for x, y in parts)
    again = data.split(key, (X, Y), fractions)
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(parts, again))


def test_split_depends_on_the_key(key):
    a, b = (data.split(k, Y, (0.5, 0.5))[0].tolist() for k in (key, jax.random.key(1)))
    assert a != b and a != sorted(a)


def test_stratified_split_keeps_the_proportions(key):
    classes = np.repeat([0, 1, 2], [60, 30, 10])
    train, test = data.split(key, classes, (0.8, 0.2), stratify=classes)
    assert np.bincount(train).tolist() == [48, 24, 8] and np.bincount(test).tolist() == [12, 6, 2]
    assert test.tolist() != sorted(test.tolist()), "the classes are mixed"
    plain = data.split(key, classes, (0.8, 0.2))[1]
    assert np.bincount(plain, minlength=3).tolist() != [12, 6, 2]


KEY = jax.random.key(0)


@pytest.mark.parametrize(
    "call, error, match",
    [
        (lambda: data.batches(0, Y, 2, remainder="drop"), TypeError, "key must be a typed key.* got 0"),
        (lambda: data.batches(jax.random.split(KEY), Y, 2, remainder="drop"), ValueError, "key must be one key"),
        (lambda: data.batches(KEY, Y, 2, remainder="carry"), ValueError, "one of drop, keep; got 'carry'"),
        (lambda: data.batches(KEY, Y, 11, remainder="keep"), ValueError, "size must be an integer in 1..10; got 11"),
        (lambda: data.batches(KEY, Y, 0, remainder="keep"), ValueError, "size must be an integer in 1..10; got 0"),
        (lambda: data.batches(KEY, Y, 2.0, remainder="keep"), TypeError, "size must be an integer in 1..10; got 2.0"),
        (lambda: data.batches(KEY, Y, 2, remainder="keep", epochs=0), ValueError, "epochs .*got 0"),
        (
            lambda: data.batches(KEY, (X, Y[:9]), 2, remainder="keep"),
            ValueError,
            r"data must have leaves of one length.*data\[1\] \[9\]",
        ),
        (
            lambda: data.batches(KEY, Y[:0], 1, remainder="keep"),
            ValueError,
            r"at least 1 examples along axis 0; got shape \(0,\)",
        ),
        (
            lambda: data.batches(KEY, data.iris(), 2, remainder="keep"),
            TypeError,
            r"data.names\[0\] must be an array; got 'setosa'",
        ),
        (lambda: data.batches(KEY, (), 2, remainder="keep"), ValueError, "data must hold at least one array"),
        (lambda: data.epoch_indices(KEY, 10, 11, epochs=1), ValueError, "size must be an integer in 1..10; got 11"),
        (lambda: data.epoch_indices(KEY, 10, 2, epochs=None), TypeError, "epochs .* got None"),
        (lambda: data.epoch_indices(KEY, 10, 2, epochs=1, remainder="keep"), ValueError, "drop, carry; got 'keep'"),
        (lambda: data.split(KEY, Y, (0.5, 0.4)), ValueError, r"add up to 1; got \(0.5, 0.4\)"),
        (lambda: data.split(KEY, Y, (1.5, -0.5)), ValueError, "positive"),
        (lambda: data.split(KEY, Y, (0.99, 0.01)), ValueError, r"leave no part empty; got .*sizes \[10, 0\]"),
        (
            lambda: data.split(KEY, Y, (0.5, 0.5), stratify=Y[:3]),
            ValueError,
            r"stratify .* 10 examples; got .*shape \(3,\)",
        ),
    ],
)
def test_bad_arguments_are_named_at_the_call(call, error, match):
    with pytest.raises(error, match=match):
        call()
