"""Losses that a repair builds in the place of a user's own: against the formulas they stand for."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from numdl.audit import _losses
from numdl.audit.evidence import Loss, empty

N, CLASSES = 12, 3
DRAW = np.random.default_rng(0)
OUT = DRAW.standard_normal((N, CLASSES)).astype(np.float32)
LABELS = np.array([0] * 8 + [1] * 3 + [2])


def entropy(out, y):
    return optax.softmax_cross_entropy_with_integer_labels(out, y).mean()


def case(loss=entropy, y=LABELS, **known):
    x = np.ones((N, 2), np.float32)
    plain = lambda p, x: jnp.concatenate([x, x[:, :1]], -1) * p  # noqa: E731
    parts = {"loss": loss, "x": x, "y": y, "data": (x, y), "separate": True, "examples": N, "plain": plain}
    return types.SimpleNamespace(**parts | {"moving": jnp.ones(())} | known)


def built(fault, known=None, **seen):
    told = {"kind": "classes", "coupling": 0.0, "coupling_reshaped": np.nan, "pairing": 1.0, **seen}
    return _losses.BUILT[fault](known or case(), types.SimpleNamespace(loss=empty(Loss, **told)))


def test_a_sign_and_a_size():
    assert built("wrong_sign")[1](OUT, LABELS) == -entropy(OUT, LABELS)
    assert built("loss_scale")[1](OUT, LABELS) == entropy(OUT, LABELS) / N


def test_a_loss_that_knows_no_pairs_is_taken_of_each_example_alone():
    """Every label beside every output, by a column of labels: alone it is the usual cross-entropy."""
    each = lambda out, y: -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(out)[None], y[:, None, None], 2))  # noqa: E731
    words, found = built("loss_couples_examples", case(each), pairing=0.0)
    assert abs(each(OUT, LABELS) - entropy(OUT, LABELS)) > 0.01
    np.testing.assert_allclose(found(OUT, LABELS), entropy(OUT, LABELS), rtol=1e-5)
    assert "vmap" in words
    assert built("loss_couples_examples", case(each), pairing=0.5) is None  # a contrastive loss means its pairs
    assert built("loss_couples_examples", case(each, separate=False), pairing=0.0) is None


def test_shapes_that_broadcast_are_made_one():
    squares = lambda out, y: jnp.mean((out - y) ** 2)  # noqa: E731
    _, found = built("loss_couples_examples", case(squares), coupling_reshaped=0.0)
    column, y = OUT[:, :1], OUT[:, 1]
    np.testing.assert_allclose(found(column, y), np.mean((column[:, 0] - y) ** 2), rtol=1e-6)


def test_all_classes_weigh_the_same():
    """The mean over the classes of the means over their examples; a class that is not there has no weight."""
    _, found = built("labels_imbalanced")
    rows = [np.flatnonzero(label == LABELS) for label in range(CLASSES)]
    wanted = np.mean([entropy(OUT[some], LABELS[some]) for some in rows])
    np.testing.assert_allclose(found(OUT, LABELS), wanted, rtol=1e-5)
    _, found = built("labels_imbalanced", case(y=np.where(LABELS == 1, 0, LABELS)))
    assert np.isfinite(found(OUT, LABELS))


@pytest.mark.parametrize(
    ("known", "seen"),
    [
        ({"y": LABELS[:, None]}, {}),
        ({"y": LABELS - 1}, {}),
        ({"y": LABELS.astype(np.float32)}, {}),
        ({}, {"kind": "binary"}),
        ({}, {"coupling": 0.3}),
    ],
)
def test_what_has_no_classes_of_its_own_is_not_weighed(known, seen):
    assert built("labels_imbalanced", case(**known), **seen) is None


@pytest.mark.parametrize("ends", [jax.lax.stop_gradient, jnp.round, jnp.floor])
def test_a_derivative_by_the_outputs_is_let_through(ends):
    words, found = built("loss_ignores_outputs", case(lambda out, y: entropy(ends(out), y)))
    assert "test_losses.py, line" in words
    np.testing.assert_allclose(jax.grad(found)(OUT, LABELS), jax.grad(entropy)(OUT, LABELS), rtol=1e-5)
    np.testing.assert_allclose(found(OUT, LABELS), entropy(OUT, LABELS), rtol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [lambda out, y: jnp.mean(out.argmax(-1) != y), lambda out, y: 0.0 * out.sum(), lambda out, y: jnp.sign(out).sum()],
)
def test_what_counts_answers_or_drops_them_is_for_the_user(loss):
    assert built("loss_ignores_outputs", case(loss)) is None
