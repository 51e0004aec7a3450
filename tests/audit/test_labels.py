"""What targets say about outputs is asked of the loss, and one-hot rows are judged like the classes they name."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import numdl as nd
from numdl.audit import _settings
from numdl.audit._measured import cases, described, heads, labels, scores, ways

DRAW = np.random.default_rng(4)
N, K = 60, 12
X = DRAW.standard_normal((N, 5)).astype(np.float32)
W = {"w": 0.1 * DRAW.standard_normal((5, K)).astype(np.float32)}
Y = (np.arange(N) % K).astype(np.int32)
ROWS = np.eye(K, dtype=np.float32)[Y]
SMOOTH = 0.9 * ROWS + np.float32(0.1 / K)
COUNTS = DRAW.poisson(3.0, N).astype(np.int32) % K


def apply(params, x):
    return x @ params["w"]


def sequences(params, x):
    return jnp.stack([x @ params["w"], 2 * x @ params["w"]], 1)


def entropy(out, y):
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(out, y.astype(jnp.int32)))


def weighted(out, y):
    each = optax.softmax_cross_entropy_with_integer_labels(out, y)
    return jnp.sum(each * (1.0 + y)) / jnp.sum(1.0 + y)


def unless_zero(out, y):
    each = optax.softmax_cross_entropy_with_integer_labels(out, y)
    return jnp.sum(each * (y > 0)) / jnp.maximum(jnp.sum(y > 0), 1)


def probabilities(out, y):
    p = jax.nn.softmax(out) if out.ndim else out
    return -jnp.mean(jnp.log(jnp.take_along_axis(p, y[..., None], -1)))


def spelled(out, y):
    return jnp.mean(optax.softmax_cross_entropy(out, y))


def each_column(out, y):
    return jnp.mean((out - y[:, None]) ** 2)


def first_column(out, y):
    return jnp.mean((out[:, 0] - y) ** 2)


def poisson(out, y):
    return jnp.mean(jnp.exp(out) - y[:, None] * out)


def squares(out, y):
    return jnp.mean((out - y) ** 2)


def hinge(out, y):
    own = jnp.take_along_axis(out, y[:, None], 1)
    return jnp.mean(jnp.sum(jax.nn.relu(1 + out - own), 1) - 1)


def two(params, x):
    return x @ params["w"][:, :2]


def scores_apart(out, y):
    """1 asks for the first of two scores to be the higher one."""
    return optax.sigmoid_binary_cross_entropy(out[:, 0] - out[:, 1], y).mean()


PAIRS = (np.arange(N) % 3 > 0).astype(np.int32)
CASES = [
    ("class numbers", apply, Y, entropy, "classes"),
    ("class numbers as floats", apply, Y.astype(np.float32), entropy, "classes"),
    ("the wrong sign", apply, Y, lambda o, y: -entropy(o, y), "classes"),
    ("weights of the classes", apply, Y, weighted, "classes"),
    ("a class that is left out", apply, Y, unless_zero, "classes"),
    ("numbers one too large", apply, Y + 1, entropy, "classes"),
    ("softmax before the logarithm", apply, Y, probabilities, "classes"),
    ("many margins", apply, Y, hinge, "classes"),
    ("squares of one-hot", apply, Y, lambda o, y: squares(o, jax.nn.one_hot(y, K)), "classes"),
    ("tokens", sequences, np.stack([Y, Y[::-1]], 1), entropy, "classes"),
    ("counts for every column", apply, COUNTS, each_column, "other"),
    ("counts for one column", apply, COUNTS, first_column, "other"),
    ("counts under a Poisson law", apply, COUNTS, poisson, "other"),
    ("the higher of two scores", two, PAIRS, scores_apart, "other"),
    ("the higher of two scores, in floats", two, np.float32(PAIRS), scores_apart, "other"),
    ("two classes", two, PAIRS, entropy, "classes"),
    ("two classes, the wrong sign", two, PAIRS, lambda o, y: -entropy(o, y), "classes"),
    ("one-hot", apply, ROWS, spelled, "one-hot"),
    ("one-hot, smoothed", apply, SMOOTH, spelled, "one-hot"),
    ("one-hot whole numbers", apply, ROWS.astype(np.int32), spelled, "one-hot"),
    ("one-hot squares", apply, ROWS, squares, "one-hot"),
    ("several at once", apply, np.maximum(ROWS, ROWS[::-1]), squares, "binary"),
    ("the same row for all", apply, np.tile(ROWS[:1], (N, 1)), squares, "binary"),
    ("distributions", apply, DRAW.dirichlet(np.ones(K), N).astype(np.float32), spelled, "values"),
    ("values", apply, X @ W["w"], squares, "values"),
]  # fmt: skip


def case(network, y, loss, whole=False):
    with _settings.ours():
        return cases.case(
            network, W, (X[:24], y[:24]), loss=loss, optimizer=optax.sgd, learning_rate=0.1, steps=80,
            data=(X, y) if whole else None, evaluate=None, stochastic=False, key=jax.random.key(0),
        )  # fmt: skip


@pytest.mark.parametrize(("network", "y", "loss", "kind"), [each[1:] for each in CASES], ids=[c[0] for c in CASES])
def test_the_loss_says_how_targets_relate_to_outputs(network, y, loss, kind):
    known = case(network, y, loss)
    out = jax.eval_shape(known.plain, known.moving, known.x)
    out = jnp.zeros(out.shape, out.dtype)
    with _settings.ours():
        assert labels.answers(known, out, jnp.asarray(y[:24])).kind == kind


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int16, np.int32, jnp.bfloat16, np.float16])
def test_made_labels_are_held_by_their_type(dtype):
    columns = 40_000
    named, made = labels._made(labels.Answers("classes", 0, 0, 1, columns), np.zeros(500, dtype))
    np.testing.assert_array_equal(np.asarray(made).astype(int), named)
    assert named.min() >= 0 and named.max() < columns and named.max() > (0.3 if dtype is bool else 50)


def test_rows_that_name_classes_are_judged_like_the_classes():
    numbers, rows = case(apply, Y, entropy, whole=True), case(apply, ROWS, spelled, whole=True)
    with _settings.ours():
        (a, _), (b, _) = heads.measure(numbers), heads.measure(rows)
        assert (a.kind, b.kind) == ("classes", "one-hot")
        assert b.pull == pytest.approx(a.pull, rel=1e-5)
        told = [labels.Answers(e.kind, *e.place) for e in (a, b)]
        one, other = (described.measure(c, t) for c, t in zip((numbers, rows), told))
        for name in ("labels", "common", "rare", "batch_labels", "label_low", "label_high"):
            assert getattr(other, name) == getattr(one, name), name
        out = DRAW.standard_normal((len(numbers.parts[1][1]), K))
        first, second = (scores.scorer(c, t, np.nan) for c, t in zip((numbers, rows), told))
        assert (second(out), second.chance, second.examples) == (first(out), first.chance, first.examples)
        found = [
            scores.shallow(*(scores.answered(c, t, pair) for pair in c.parts), t.judged)
            for c, t in zip((numbers, rows), told)
        ]
        assert found[0] == found[1]


WEIGHTS = DRAW.uniform(0.5, 2.0, (N, K)).astype(np.float32)
MASKED = (DRAW.random((N, K)) < 0.7).astype(np.float32)
MASK = (np.arange(2 * N).reshape(N, 2) % 3 > 0).astype(np.float32)
TOKENS = np.where(MASK > 0, np.stack([Y, Y[::-1]], 1), 5).astype(np.int32)  # a padding that is a class, too


def masked(out, y):
    labels_, mask = y
    return jnp.sum(mask * optax.softmax_cross_entropy_with_integer_labels(out, labels_)) / jnp.sum(mask)


PLACES = [
    ("tokens and a mask", sequences, (TOKENS, MASK), masked, ("classes", 0, 0, 2, K)),
    ("a mask and tokens", sequences, (MASK, TOKENS), lambda o, y: masked(o, y[::-1]), ("classes", 0, 1, 2, K)),
    ("columns before positions", lambda p, x: jnp.moveaxis(sequences(p, x), -1, 1), TOKENS,
     lambda o, y: entropy(jnp.moveaxis(o, 1, -1), y), ("classes", 0, 0, 1, K)),
    ("as many positions as columns", lambda p, x: jnp.einsum("nk,kj->njk", x @ p["w"], jnp.eye(K)),
     np.tile(Y[:, None], K), lambda o, y: entropy(jnp.moveaxis(o, 1, -1), y), ("classes", 0, 0, 1, K)),
    ("a second output that is added", lambda p, x: (jnp.sum(p["w"] ** 2), x @ p["w"]), Y,
     lambda o, y: entropy(o[1], y) + 0.1 * o[0], ("classes", 1, 0, 1, K)),
    ("one-hot with weights", apply, {"rows": ROWS, "weights": np.ones(N, np.float32)},
     lambda o, y: jnp.mean(y["weights"] * optax.softmax_cross_entropy(o, y["rows"])), ("one-hot", 0, 0, 1, K)),
    ("values and weights", apply, (WEIGHTS, X @ W["w"]), lambda o, y: jnp.mean(y[0] * (o - y[1]) ** 2),
     ("values", 0, 1, -1, 0)),
    ("values all below the weights", apply, (MASKED, X @ W["w"] - 9), lambda o, y: jnp.mean(y[0] * jnp.abs(o - y[1])),
     ("values", 0, 1, -1, 0)),
    ("counts and an exposure", apply, {"exposure": WEIGHTS, "seen": np.exp(X @ W["w"])},
     lambda o, y: jnp.mean(y["exposure"] * jnp.exp(o) - y["seen"] * o), ("values", 0, 1, -1, 0)),
    ("several labels and a mask", apply, (np.maximum(ROWS, ROWS[::-1]), MASKED),
     lambda o, y: jnp.sum(y[1] * optax.sigmoid_binary_cross_entropy(o, y[0])) / jnp.sum(y[1]), ("binary", 0, 0, -1, 0)),
    ("an upper and a lower bound", apply, (X @ W["w"] - 1, X @ W["w"] + 1),
     lambda o, y: jnp.mean(jax.nn.relu(y[0] - o) + jax.nn.relu(o - y[1])), ("other", 0, 0, -1, 0)),
    ("values beside what is not read", apply, {"index": Y, "values": X @ W["w"]}, lambda o, y: squares(o, y["values"]),
     ("values", 0, 1, -1, 0)),
]  # fmt: skip


@pytest.mark.parametrize(("network", "y", "loss", "place"), [each[1:] for each in PLACES], ids=[c[0] for c in PLACES])
def test_columns_lie_along_any_axis_and_stand_among_others(network, y, loss, place):
    with _settings.ours():
        known = cases.case(
            network, W, (X, y), loss=loss, optimizer=optax.sgd, learning_rate=0.1, steps=80, data=None, evaluate=None,
            stochastic=False, key=jax.random.key(0),
        )  # fmt: skip
        found = labels.answers(known, known.forward(known.moving, known.x, known.key), known.y)
    assert dataclasses.astuple(found) == place


def test_an_answer_of_weight_zero_is_none():
    with _settings.ours():
        known = cases.case(
            sequences, W, (X[:6], (TOKENS[:6], MASK[:6])), loss=masked, optimizer=optax.sgd, learning_rate=0.1,
            steps=80, data=(X, (TOKENS, MASK)), evaluate=None, stochastic=False, key=jax.random.key(0),
        )  # fmt: skip
        told = labels.Answers("classes", 0, 0, 2, K)
        data, (_, (tokens, unseen)) = described.measure(known, told), known.parts[1]
        score = scores.scorer(known, told, np.nan)
    counts = np.bincount(TOKENS[MASK > 0])
    assert data.common == pytest.approx(counts.max() / counts.sum())
    assert data.rare == pytest.approx(counts.min() / counts.sum())
    out = DRAW.standard_normal((*tokens.shape, K))
    assert score(out) == pytest.approx(np.mean((out.argmax(-1) == tokens)[unseen > 0]))
    assert score.chance == pytest.approx(np.bincount(tokens[unseen > 0]).max() / np.sum(unseen > 0))


def test_few_batches_of_many_outputs_are_looked_at(monkeypatch):
    looks = []
    counted = labels._counted
    monkeypatch.setattr(labels, "_counted", lambda *given: (looks.append(1), counted(*given))[1])
    known = case(sequences, TOKENS, entropy)
    told = labels.Answers("classes", 0, 0, 2, K)
    for numbers, most in ((3e7, 3), (2 * 24 * 2 * K, 2), (1, 1)):
        monkeypatch.setattr(labels, "NUMBERS", numbers)
        looks.clear()
        with _settings.ours():
            assert labels.asked(known, told, X, TOKENS).all()
        assert len(looks) == most


@pytest.mark.parametrize("labels_", [False, True])
def test_values_and_labels_of_weight_zero_are_none(labels_):
    values = (X @ W["w"] > 0).astype(np.float32) if labels_ else X @ W["w"]
    cost = optax.sigmoid_binary_cross_entropy if labels_ else lambda o, y: (o - y) ** 2
    with _settings.ours():
        known = cases.case(
            apply, W, (X[:6], (values[:6], MASKED[:6])), loss=lambda o, y: jnp.sum(y[1] * cost(o, y[0])),
            optimizer=optax.sgd, learning_rate=0.1, steps=80, data=(X, (values, MASKED)), evaluate=None,
            stochastic=False, key=jax.random.key(0),
        )  # fmt: skip
        told = labels.answers(known, known.forward(known.moving, known.x, known.key), known.y)
        assert told.kind == ("binary" if labels_ else "values")
        data, (_, (wanted, unseen)) = described.measure(known, told), known.parts[1]
        score = scores.scorer(known, told, 0.0)
        pairs = [scores.answered(known, told, pair) for pair in known.parts]
    assert data.target_rms == pytest.approx(np.sqrt(np.mean(values[MASKED > 0] ** 2)), rel=1e-5)
    out = DRAW.standard_normal(wanted.shape)
    asked = np.where(unseen > 0, wanted, np.nan)
    if labels_:
        assert score(out) == pytest.approx(np.mean(((out > 0) == wanted)[unseen > 0]))
    else:
        gaps = np.nanmean((out - asked) ** 2) / np.nanmean((asked - np.nanmean(asked, 0)) ** 2)
        assert score(out) == pytest.approx(1 - gaps)
    assert np.isfinite(
        scores.shallow((pairs[0][0], pairs[0][1][:, :1]), (pairs[1][0], pairs[1][1][:, :1]), told.judged)
    )


@pytest.mark.slow
def test_twelve_equal_classes_spelled_out_are_not_imbalanced():
    """Of the entries of one-hot rows of twelve classes 92 % are 0."""
    draw = np.random.default_rng(4)
    way = draw.standard_normal((5, K)).astype(np.float32)
    x = draw.standard_normal((600, 5)).astype(np.float32)
    y = np.eye(K, dtype=np.float32)[(x @ way).argmax(1)]
    report = nd.audit.examine(
        apply, W, (x[:64], y[:64]), loss=spelled, optimizer=optax.sgd, learning_rate=1.0, steps=200, data=(x, y),
        key=jax.random.key(0),
    )  # fmt: skip
    assert report.evidence.predicted.initial == pytest.approx(np.log(K))
    assert report.evidence.ahead.chance < 0.2
    assert report.evidence.ahead.score[-1] > 0.6
    assert not {f.name for f in report.findings} & {"imbalanced", "labels_out_of_range"}


def energy(out, y):
    return entropy(-out, y)


def contrastive(out, y):
    return jnp.mean(y * out[:, 0] ** 2 + (1 - y) * jnp.maximum(1.5 - out[:, 0], 0) ** 2)


def logits(out, y):
    return jnp.mean(optax.sigmoid_binary_cross_entropy(out[:, 0], y))


def small_counts(out, y):
    return jnp.mean(jnp.exp(out) - y * out)


def but_gaps(out, y):
    known = ~jnp.isnan(y)
    return jnp.sum(jnp.where(known, (out - jnp.where(known, y, 0)) ** 2, 0)) / jnp.sum(known)


TWO, ONE = (Y % 2).astype(np.float32), {"w": W["w"][:, :1]}
# Which way: the pull, and whether a wrong answer pays.
WAYS = [
    ("energies", W, Y, energy, -1, 0),
    ("minus the entropy", W, Y, lambda o, y: -entropy(o, y), -1, 1),
    ("the likelihood itself", W, Y, lambda o, y: jnp.exp(-entropy(o, y)), -1, 1),
    ("minus the entropy of rows", W, ROWS, lambda o, y: -spelled(o, y), -1, 1),
    ("distances of pairs", ONE, TWO, contrastive, -1, 0),
    ("a critic", ONE, 2 * TWO - 1, lambda o, y: jnp.mean(o[:, 0] * y), -1, 0),
    ("minus two labels", ONE, TWO, lambda o, y: -logits(o, y), -1, 1),
    ("small counts", W, np.float32(0.2 + 0.1 * np.abs(X @ W["w"])), small_counts, -1, 0),
    ("minus squares", W, X @ W["w"] + 1, lambda o, y: -squares(o, y), -1, 1),
    ("with gaps", W, np.where(X @ W["w"] > 0.1, np.nan, X @ W["w"] + 1), but_gaps, 1, 0),
    ("squares", W, X @ W["w"] + 1, squares, 1, 0),
]  # fmt: skip


SHARES = np.float32(1 / (1 + np.exp(-3 * X @ W["w"])))  # between 0 and 1
ABOVE = np.float32(np.exp(X @ W["w"]))
# Whether the loss makes an output what its target is.
MEETS = [
    ("squares", X @ W["w"] + 1, squares, True),
    ("minus squares", X @ W["w"] + 1, lambda o, y: -squares(o, y), True),
    ("distances", X @ W["w"] + 1, lambda o, y: jnp.mean(jnp.abs(o - y)), True),
    ("a quantile", X @ W["w"] + 1, lambda o, y: jnp.mean(jnp.maximum(0.9 * (y - o), 0.1 * (o - y))), False),
    ("Huber's", X @ W["w"] + 1, lambda o, y: jnp.mean(optax.huber_loss(o, y, delta=0.05)), True),
    ("with gaps", np.where(X @ W["w"] > 0.1, np.nan, X @ W["w"] + 1), but_gaps, True),
    ("logits of shares", SHARES, lambda o, y: jnp.mean(optax.sigmoid_binary_cross_entropy(o, y)), False),
    ("squares of sigmoids", SHARES, lambda o, y: squares(jax.nn.sigmoid(o), y), False),
    ("logs of counts", ABOVE, lambda o, y: jnp.mean(jnp.exp(o) - y * o), False),
    ("other units", ABOVE + 9, lambda o, y: squares(o, (y - 9) / 5), False),
]  # fmt: skip


@pytest.mark.parametrize("case", MEETS, ids=[each[0] for each in MEETS])
def test_outputs_that_stand_for_something_else_than_their_targets_are_not_scored_beside_them(case):
    _, y, loss, own = case
    with _settings.ours():
        found, _ = heads.measure(made_of(W, y, loss))
    assert found.kind == "values" and (found.meets > 0.9) == own
    assert labels.scored(found).kind == ("values" if own else "other")


def made_of(params, y, loss):
    return cases.case(
        apply, params, (X[:24], y[:24]), loss=loss, optimizer=optax.sgd, learning_rate=0.1, steps=80, data=None,
        evaluate=None, stochastic=False, key=jax.random.key(0),
    )  # fmt: skip


@pytest.mark.parametrize("way", WAYS, ids=[each[0] for each in WAYS])
def test_a_distance_is_told_from_a_wrong_sign(way):
    _, params, y, loss, pull, paid = way
    with _settings.ours():
        known = made_of(params, y, loss)
        out = known.forward(known.moving, known.x, known.key)
        told = labels.answers(known, out, known.y)
        found = ways.asked(
            lambda o, t: known.form.value(o[0], t), jax.grad(known.loss)(out, known.y), [out], known.y, told
        )
    assert np.sign(found["pull"]) == pull and abs(found["pull"]) > 0.3
    assert (found["wrong_pays"] > 0.5) == paid
