"""The training that is carried on, and the score of a shallow model beside it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import brentq
from sklearn.linear_model import Ridge

import numdl as nd
from numdl.audit import _contest, _examining, _reading, _settings, _skills, trial
from numdl.audit._conditions.data import labels_out_of_range
from numdl.audit._measured import cases, described, labels, scores, ways
from numdl.audit.evidence import Ahead, Data, Evidence, Facts, Loss, empty
from tests.audit import made

DRAW = np.random.default_rng(1)
X = DRAW.standard_normal((400, 6)).astype(np.float32)
WAY = DRAW.standard_normal((6, 3)).astype(np.float32)
LABELS = (X @ WAY).argmax(1).astype(np.int32)
HEAD = {"w": 0.1 * DRAW.standard_normal((6, 3)).astype(np.float32)}


def apply(params, x):
    return x @ params["w"]


def entropy(out, y):
    return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(out), y[:, None], 1))


def case(steps=200, optimizer=optax.sgd, rate=0.5, whole=True, **known):
    with _settings.ours():
        return cases.case(
            apply, HEAD, (X[:16], LABELS[:16]), loss=entropy, optimizer=optimizer, learning_rate=rate, steps=steps,
            data=(X, LABELS) if whole else None, evaluate=None, stochastic=False, key=jax.random.key(0), **known,
        )  # fmt: skip


def carried(known, kind="classes"):
    with _settings.ours():
        return trial.ahead(known, trial.Program(known), empty(Loss, kind=kind, border=0.0))


def test_it_goes_to_the_end_of_a_cheap_budget_and_learns_what_a_shallow_model_does():
    found = carried(case())
    assert found.steps.tolist() == [40, 80, 120, 160, 200]
    assert found.unseen[-1] < found.unseen[0]
    assert found.score[-1] > 0.9 and found.shallow > 0.9
    assert found.chance == pytest.approx(np.bincount(case().parts[1][1]).max() / len(case().parts[1][1]))


def test_parts_are_one_training():
    """Five times forty steps in the trial's program, against a plain loop of optax over the same rows."""
    known = case(optimizer=optax.adam, rate=0.05)
    (order,), pool = trial.orders(known, 200, 1)
    at, method = known.moving, optax.adam(0.05)
    state = method.init(at)
    slope = jax.jit(jax.grad(lambda p, x, y: entropy(apply(p, x), y)))
    move = jax.jit(method.update)
    for rows in order:
        gradient = slope(at, pool[0][rows], pool[1][rows])
        update, state = move(gradient, state)
        at = jax.tree.map(np.add, at, update)
    wanted = entropy(apply(at, known.parts[1][0]), known.parts[1][1])
    assert carried(known).unseen[-1] == pytest.approx(float(wanted), rel=2e-4)


@pytest.mark.parametrize("traceable", [True, False])
def test_schedules_go_on_where_they_were(traceable):
    """A rate that is zero from step 80 on moves nothing after it, also where the schedule needs a plain number."""

    def falling(rate):
        return optax.sgd(lambda count: (rate if traceable else float(rate)) * (count < 80))

    found = carried(case(optimizer=falling))
    assert found.steps.tolist() == [40, 80, 120, 160, 200]
    assert found.unseen[1] < found.unseen[0] and len(set(found.unseen[1:].tolist())) == 1


def test_how_far_it_goes_is_counted_in_operations_and_within_the_budget():
    assert carried(case(steps=119)).steps.tolist() == [40, 80]
    assert carried(case(steps=None)).steps[-1] == trial.MOST_STEPS
    dear = dataclasses.replace(case())
    dear.__dict__["work"] = trial.CHEAP / (3 * 16 * 100)
    assert trial.chunks(dear, 40) == 2
    assert carried(case(whole=False)).steps.size == 0  # no example is unseen


def test_the_work_of_loops_counts_as_often_as_they_run():
    from numdl.audit._measured import programs

    loop = lambda x: jax.lax.scan(lambda c, _: (jnp.sin(c) + 1.0, None), x, None, length=7)[0]  # noqa: E731
    plain = lambda x: jnp.sin(x) + 1.0  # noqa: E731
    one, seven = (programs.length(jax.make_jaxpr(f)(1.0)) for f in (plain, loop))
    assert (one, seven) == (2, 15)


def test_scores_by_hand():
    out = np.array([[2.0, 1.0], [0.0, 3.0], [1.0, 0.0]])
    assert scores._score(out, np.array([0, 1, 1]), "classes") == pytest.approx(2 / 3)
    assert scores._score(np.array([-1.0, 2.0, 0.6]), np.array([0, 1, 0]), "binary") == pytest.approx(2 / 3)
    assert scores._score(np.array([0.2, 0.9, 0.4]), np.array([0, 1, 0]), "binary", 0.5) == 1.0  # probabilities
    assert scores._score(np.array([0.2, 0.9, 0.4]), np.array([0, 1, 0]), "binary", 0.0) == pytest.approx(1 / 3)
    assert np.isnan(scores._score(np.array([0.2, 0.9]), np.array([0, 1]), "binary", np.nan))
    assert scores._score(np.array([1.0, 2.0]), np.array([[1.0], [3.0]]), "values") == pytest.approx(0.5)
    assert scores._score(np.array([np.nan, 2.0]), np.array([0, 1]), "binary") == 0.0
    assert scores._chance(np.array([0, 0, 1]), "classes") == pytest.approx(2 / 3)


def logistic(weight=1.0):
    return lambda o, t: jnp.mean(weight * t * jax.nn.softplus(-o) + (1 - t) * jax.nn.softplus(o))


def of_probabilities(o, t):
    return -jnp.mean(t * jnp.log(o) + (1 - t) * jnp.log(1 - o))


def squares(o, t):
    return jnp.mean((o - t) ** 2)


WEIGHTED = brentq(lambda c: 5 * np.logaddexp(0, -c) - np.logaddexp(0, c), 0, 5)
BORDERS = [
    ("logits", logistic(), (0, 1), 0.0),
    ("a dear positive", logistic(5.0), (0, 1), WEIGHTED),
    ("probabilities", of_probabilities, (0, 1), 0.5),
    ("cut probabilities", lambda o, t: of_probabilities(jnp.clip(o, 1e-6, 1 - 1e-6), t), (0, 1), 0.5),
    ("squares", squares, (0, 1), 0.5),
    ("squares of signs", squares, (-1, 1), 0.0),
    ("squares of other labels", squares, (1, 2), 1.5),
    ("hinge", lambda o, t: jnp.mean(jax.nn.relu(1 - t * o)), (-1, 1), 0.0),
    ("bools", lambda o, t: logistic()(o, t.astype(o.dtype)), (False, True), 0.0),
    ("a distance without a side", lambda o, t: jnp.mean((o**2 - t) ** 2), (0, 1), np.nan),
    ("blind", lambda o, t: jnp.mean(o**2), (0, 1), np.nan),
]


@pytest.mark.parametrize(
    ("loss", "labels", "border"), [each[1:] for each in BORDERS], ids=[each[0] for each in BORDERS]
)
def test_the_border_of_two_labels_is_where_they_cost_the_same(loss, labels, border):
    y, out = np.array([labels[0], labels[1], labels[1]]), jnp.zeros(3, jnp.float32)
    found = jax.jit(lambda out, y: ways._border(lambda o, t: loss(o[0], t), [out], y, 0))(out, y)
    np.testing.assert_allclose(found, border, atol=2e-3)


@pytest.mark.slow
def test_probabilities_are_scored_at_a_half():
    """Targets of 0 and 1 behind a sigmoid: at 0 every answer would be yes."""
    y = (X @ WAY[:, 0] > 0).astype(np.float32)
    report = nd.audit.examine(
        lambda p, x: jax.nn.sigmoid(x @ p)[:, 0], np.zeros((X.shape[1], 1), np.float32), (X[:16], y[:16]),
        loss=of_probabilities, optimizer=optax.sgd, learning_rate=0.5, steps=40, data=(X, y), key=jax.random.key(0),
    )  # fmt: skip
    assert report.evidence.loss.kind == "binary"
    assert report.evidence.loss.border == pytest.approx(0.5)
    assert report.evidence.ahead.score[-1] > 0.8


@pytest.mark.parametrize("strength", scores.STRENGTHS)
@pytest.mark.parametrize("count", [60, 500])
def test_ridge_is_scikit_learns_on_either_side(strength, count):
    features = DRAW.standard_normal((count, 90))
    wanted = DRAW.standard_normal((count, 2))
    found = scores._ridge(features, wanted)[scores.STRENGTHS.index(strength)]
    peer = Ridge(alpha=strength * np.mean(features**2) * count, fit_intercept=False).fit(features, wanted)
    np.testing.assert_allclose(found, peer.coef_.T, atol=1e-8)


def test_a_shallow_model_learns_what_can_be_learned_in_any_units():
    x = X * np.float32([1e-4, 1, 1, 1e5, 1, 1])
    train, new = (x[:300], LABELS[:300]), (x[300:], LABELS[300:])
    assert scores.shallow(train, new, "classes") > 0.8
    wrong = train[0], DRAW.permutation(train[1])
    assert scores.shallow(wrong, new, "classes") < 0.6
    line = X @ WAY[:, 0]
    assert scores.shallow((X[:300], line[:300]), (X[300:], line[300:]), "values") > 0.99
    ring = (np.sum(X[:, :2] ** 2, 1) > 1.5).astype(np.int32)
    assert scores.shallow((X[:300, :2], ring[:300]), (X[300:, :2], ring[300:]), "binary") > 0.85


@pytest.mark.parametrize("ignored", [-1, -100])
def test_a_class_below_0_asks_for_no_answer(ignored):
    with_gaps = np.where(np.arange(400) % 3 == 0, ignored, LABELS).astype(np.int32)
    asked = with_gaps >= 0
    out, gaps = X[300:] @ WAY, with_gaps[300:]
    assert scores._score(out, gaps, "classes") == 1
    assert scores._chance(gaps, "classes") == pytest.approx(np.bincount(gaps[gaps >= 0]).max() / np.sum(gaps >= 0))
    found = scores.shallow((X[:300], with_gaps[:300]), (X[300:], gaps), "classes")
    kept = np.flatnonzero(asked[:300])
    apart = scores.shallow((X[kept], LABELS[kept]), (X[300:][asked[300:]], gaps[asked[300:]]), "classes")
    assert found > 0.8 and found == pytest.approx(apart, abs=0.1)  # other examples choose the strength
    nothing = np.full(400, ignored, np.int32)
    assert np.isnan(scores.shallow((X[:300], nothing[:300]), (X[300:], nothing[300:]), "classes"))
    assert np.isnan(scores._score(out, nothing[300:], "classes"))


@pytest.mark.parametrize(("masked", "spare"), [(True, True), (False, False)])
def test_labels_that_the_loss_leaves_out_are_told_from_wrong_ones(masked, spare):
    """-100 asks for nothing where the loss masks it; where it is an index, it reads a wrong column or none."""

    def loss(out, y):
        asked = (y >= 0) if masked else jnp.ones(len(y), bool)
        log = jnp.take_along_axis(jax.nn.log_softmax(out), (jnp.where(asked, y, 0) % 3)[:, None], 1)[:, 0]
        return -jnp.sum(log * asked) / jnp.sum(asked)

    y = np.where(np.arange(400) % 3 == 0, -100, LABELS).astype(np.int32)
    with _settings.ours():
        known = cases.case(
            apply, HEAD, (X[:16], y[:16]), loss=loss, optimizer="sgd", learning_rate=0.1, steps=40, data=(X, y),
            evaluate=None, stochastic=False, key=jax.random.key(0),
        )  # fmt: skip
        data = described.measure(known, labels.Answers("classes", columns=3))
    assert data.spare_labels == spare
    blank = dict.fromkeys(("signal", "chain", "function", "optimizer", "predicted", "trial", "kernel"))
    loss = empty(Loss, kind="classes")
    found = labels_out_of_range(
        _reading.Reading(Evidence(facts=empty(Facts), loss=loss, data=data, seconds={}, **blank))
    )
    assert found.severity == ("hint" if spare else "certain")


def test_classes_may_have_any_numbers():
    far = (10**9 - 7 * LABELS).astype(np.int32)
    found = scores.shallow((X[:300], far[:300]), (X[300:], far[300:]), "classes")
    assert found > 0.8
    far[300:] = 5  # met by no example that is fitted
    assert scores.shallow((X[:300], far[:300]), (X[300:], far[300:]), "classes") == 0


@pytest.mark.parametrize(
    ("x", "y", "kind"),
    [
        (DRAW.integers(0, 9, (50, 4)), LABELS[:50], "classes"),  # tokens
        ((X[:50], X[:50]), LABELS[:50], "classes"),
        (X[:50], np.tile(LABELS[:50, None], (1, 5)), "classes"),  # an answer for each position
        (np.full((50, 6), np.nan, np.float32), LABELS[:50], "classes"),
        (X[:50], LABELS[:50], "other"),
        (X[:50], X[:50], "values"),  # a copy needs no model
        (255 * X[:50], X[:50] - 3, "values"),
    ],
)
def test_what_a_shallow_model_cannot_take_is_unknown(x, y, kind):
    assert np.isnan(scores.shallow((x, y), (x, y), kind))


def read(**known):
    blank = dict.fromkeys(("signal", "chain", "function", "data", "optimizer", "predicted", "trial", "kernel"))
    ahead = empty(Ahead, **{"examples": 100, **known})
    loss = empty(Loss, floor=0.0, floor_shared=1.0, value=1.0)
    return _reading.Reading(Evidence(facts=empty(Facts, steps=400), loss=loss, seconds={}, ahead=ahead, **blank))


def test_readings_of_it():
    one = np.ones(2)
    r = read(steps=np.array([40.0, 200.0]), score=np.array([0.2, 0.55]), unseen=one, chance=0.1, shallow=0.4)
    assert (r.later, r.beside, r.spent) == (pytest.approx(0.5), pytest.approx(1.5), 0.5)
    assert r.comparable
    r = read(steps=np.array([40.0, 200.0]), score=np.nan * one, unseen=np.array([0.9, 0.7]))
    assert r.later == r.beside == pytest.approx(0.3)  # of the loss
    assert not r.comparable  # text, say: nobody knows how much of it can be foretold
    r = read(steps=np.array([40.0]), score=np.array([0.99]), unseen=np.ones(1), chance=0.5, shallow=0.5)
    assert r.comparable and r.beside == pytest.approx(0.98)
    assert np.isnan(read().later) and np.isnan(read().beside)


def test_a_bad_moment_at_the_end_is_not_the_end_and_a_training_that_blows_up_is():
    known = {"steps": np.array([80.0, 160.0, 200.0, 240.0]), "chance": 0.5, "shallow": 1.0}
    score, unseen = np.array([0.5, 1.0, 0.95, 0.6]), np.array([0.7, 0.1, 0.2, 0.9])
    unsteady = read(**known, score=score, unseen=unseen)
    assert unsteady.later == pytest.approx(0.9) and unsteady.carried == pytest.approx(0.8)
    still_rising = read(**known, score=np.sort(score), unseen=-np.sort(-unseen))
    assert still_rising.later == 1 and still_rising.carried == pytest.approx(0.9)
    for lost in (np.nan, np.inf):
        blown = read(**known, score=score, unseen=np.array([0.7, 0.1, 0.2, lost]))
        assert blown.later == pytest.approx(0.2) and blown.carried == -5


def test_few_examples_leave_the_score_in_doubt():
    known = {"steps": np.array([400.0]), "score": np.array([0.9]), "unseen": np.ones(1), "chance": 0.5}
    assert read(**known, shallow=0.9, stderr=0.02).doubt == pytest.approx(0.05)
    assert np.isnan(read(**known).doubt)
    short = [read(**known, shallow=1.0, stderr=doubt).short for doubt in (0.001, 0.1)]
    assert short == [True, False]
    known = {"spent": 1.0, "later": 0.7, "beside": 0.7}
    blank = dict.fromkeys(_examining._laws()[0]["coefficients"], 0.0)
    at = [_examining.calibrated({**blank, "trial": 1.0, **known, "doubt": doubt}) for doubt in (0.0, 0.1, 1.0)]
    assert at == sorted(at) and at[0] < 0.5 < at[2]  # the trial had gone well


def test_the_standard_error_of_a_score_is_that_of_other_examples():
    """Scores of many sets of examples spread as one set foretells: within a tenth."""
    draw = np.random.default_rng(0)
    y = draw.integers(0, 2, (400, 64))
    noise = draw.standard_normal((400, 64))
    for kind, wanted, out in (
        ("binary", y, y - 0.5 + 0.4 * noise),
        ("values", y + noise, y + 0.5 * noise),
        ("classes", y, np.stack([0 * noise, y - 0.5 + 0.4 * noise], -1)),
    ):
        found = [scores._score(a, b, kind) for a, b in zip(out, wanted)]
        told = [scores._stderr(a, b, kind, 0.0) for a, b in zip(out, wanted)]
        assert np.mean(told) == pytest.approx(np.std(found), rel=0.15), kind
    right = np.arange(20) % 2
    assert scores._stderr(right - 0.5, right, "binary", 0.0) == pytest.approx(1 / 20)  # of one answer
    assert np.isnan(scores._stderr(np.ones(1), np.ones(1), "values", 0.0))


@pytest.mark.parametrize(
    "known",
    [
        {"score": 0.8, "chance": 0.8, "shallow": 0.82, "unseen": 1.0},  # rare labels that nothing foretells
        {"score": -0.07, "chance": 0.0, "shallow": -0.02, "unseen": 1.1, "stderr": 0.15},  # values, few examples
        {"score": 0.2, "chance": 0.0, "shallow": 0.05, "unseen": 0.8, "stderr": 0.05},  # noisy values, a little learned
        {"score": 0.74, "chance": 0.81, "shallow": 0.88, "unseen": 0.65},  # a loss of weighted classes, learned
        {"score": 0.1, "chance": 0.7, "shallow": np.nan, "unseen": 0.4},  # tokens whose loss leaves the common one out
        {"score": 0.875, "chance": 0.875, "shallow": 1.0, "unseen": 0.9, "examples": 8},  # by one example
        {"score": 0.9, "chance": 1.0, "shallow": 1.0, "unseen": 0.9},  # no other label is unseen
    ],
)
def test_what_the_data_may_explain_condemns_no_network(known):
    known["score"], known["unseen"] = np.array([known["score"]]), np.array([known["unseen"]])
    r = read(steps=np.array([400.0]), **known)
    assert not r.comparable and not r.in_vain


def test_balanced_classes_of_which_nothing_is_learned_condemn():
    known = {"steps": np.array([400.0]), "score": np.array([0.11]), "chance": 0.1, "shallow": 0.1}
    found = read(**known, unseen=np.array([1.2]))
    assert found.in_vain and not found.comparable  # no fault of the network's need be behind it
    assert _examining._verdict(0.4, found.e) == "will not train"
    assert not read(**known, unseen=np.array([0.7])).in_vain  # the loss got better
    assert not read(**{**known, "chance": 0.7}, unseen=np.array([1.2])).in_vain


def test_values_of_which_nothing_is_learned_condemn():
    known = {"steps": np.array([400.0]), "chance": 0.0, "shallow": -0.02, "unseen": np.array([1.1]), "stderr": 0.05}
    assert read(**known, score=np.array([-0.07])).in_vain
    assert not read(**known, score=np.array([0.02])).in_vain  # 0.1 is within two standard errors


def test_a_loss_that_is_not_learned_either_condemns():
    found = read(steps=np.array([400.0]), score=np.array([0.5]), chance=0.5, shallow=0.9, unseen=np.array([1.2]))
    assert found.comparable and found.beside == 0


def test_a_network_with_noise_is_scored_by_the_mean_of_its_draws():
    """Each logit is tossed by +-3: a draw is often wrong where the mean of some is right."""

    def tossed(params, x, key):
        return x @ params["w"] + 3 * jax.random.rademacher(key, (len(x), 3), jnp.float32)

    way = {"w": 4 * WAY}
    with _settings.ours():
        known = cases.case(
            tossed, way, (X[:16], LABELS[:16]), loss=entropy, optimizer="sgd", learning_rate=1e-6, steps=40,
            data=(X, LABELS), evaluate=None, stochastic=True, key=jax.random.key(0),
        )  # fmt: skip
        seen, (x, y) = trial.Seen(known), known.parts[1]
        one, mean = (scores._score(np.asarray(seen.used(way, x, average=how)), y, "classes") for how in (False, True))
    assert mean > one
    assert trial.DRAWS > 1 and carried(known).score[-1] == pytest.approx(mean, abs=0.03)


@pytest.mark.parametrize("shape", [(), (2,)])
@pytest.mark.parametrize("kind", ["threefry2x32", "rbg"])
def test_an_optimizer_may_hold_keys_of_any_kind(kind, shape):
    def noisy(rate):
        plain, keys = optax.sgd(rate), lambda _: jax.random.split(jax.random.key(0, impl=kind), shape)
        return optax.GradientTransformation(keys, lambda g, state, p=None: (plain.update(g, plain.init(p))[0], state))

    assert carried(case(steps=40, optimizer=noisy)).unseen[-1] == carried(case(steps=40)).unseen[-1]


@pytest.mark.parametrize("number", [float, np.asarray, lambda rate: 1 / len(range(int(1 / rate)))])
def test_an_optimizer_may_compute_with_its_rate_outside_of_jax(number):
    assert carried(case(steps=40, optimizer=lambda rate: optax.sgd(number(rate)))).unseen[-1] < np.log(3)


@pytest.mark.parametrize(("shallow", "counts"), [(np.nan, True), (0.9, False)])
def test_what_a_longer_training_reached_counts_where_nothing_stands_beside_it(shallow, counts):
    """A loss of two parts: no better than one answer for all after forty steps, far better at the end of the budget."""
    ahead = empty(
        Ahead, examples=100, chance=0.0, shallow=shallow, steps=np.array([40.0, 1000.0]),
        unseen=np.array([3.0, 0.5]), score=np.array([np.nan, np.nan]) if counts else np.array([0.1, 0.5]),
    )  # fmt: skip
    seen = made.evidence(
        ahead=ahead,
        trial=made.trial(0.9999, start=3.0),
        loss=empty(Loss, kind="values", floor=0.0, floor_shared=1.0, value=3.0),
    )
    found = _examining.describe(seen, ())
    assert found["later"] == 0.5
    assert (found["trial"] == 0.5) == counts and (found["unseen"] == 0.5) == counts


def test_a_skill_is_known_where_one_answer_is_right_for_all():
    r = read(steps=np.array([400.0]), score=np.array([np.nan]), unseen=np.array([0.4]))
    same = dataclasses.replace(r.e, loss=empty(Loss, floor=0.0, floor_shared=1e-6, value=1.0))
    assert r.carried == pytest.approx(0.6) and _reading.Reading(same).carried == pytest.approx(0.6)
    assert np.isnan(
        _reading.Reading(dataclasses.replace(r.e, loss=empty(Loss, floor=1.0, floor_shared=1.0, value=1.0))).carried
    )


def test_a_far_start_does_not_make_one_answer_right_for_all():
    r = read(steps=np.array([400.0]), score=np.array([np.nan]), unseen=np.array([0.4]))
    far = empty(Loss, kind="values", floor=0.0, floor_shared=1.0, value=1e6)
    data = empty(Data, labels=0, target_spread=1.0, target_rms=1.0)
    assert _reading.Reading(dataclasses.replace(r.e, loss=far, data=data)).chance == 1.0
    same = dataclasses.replace(data, target_spread=0.0)
    assert _reading.Reading(dataclasses.replace(r.e, loss=far, data=same)).chance == 1e6


def test_targets_that_differ_within_an_example_alone_have_one_answer_that_is_right_for_all():
    """The first of six columns is the pair's, the others are drawn: that is so of every example."""
    r = read(steps=np.array([400.0]), score=np.array([0.94]), unseen=np.array([0.13]))
    drawn = empty(Loss, kind="binary", floor=0.00232, floor_shared=0.00231, value=0.693)
    data = empty(Data, labels=2, target_spread=0.37, target_rms=0.41)
    found = _reading.Reading(dataclasses.replace(r.e, loss=drawn, data=data))
    assert found.chance == 0.693 and found.carried == pytest.approx(0.8, abs=0.05)


def test_a_loss_that_knows_no_pairs_shows_no_skill():
    r = read(steps=np.array([400.0]), score=np.array([np.nan]), unseen=np.array([0.0]))
    known = [empty(Loss, floor=0.0, floor_shared=1.0, value=1.0, pairing=share) for share in (np.nan, 0.0)]
    assert [_reading.Reading(dataclasses.replace(r.e, loss=loss)).carried for loss in known] == [1.0, 0.0]


def ends(losses, values=None, **known):
    values = np.full(len(losses), np.nan) if values is None else np.array(values)
    rates = np.array([1e-4, 1e-3, 3e-3, 1e-2, 3e-2][: len(losses)])
    return _contest.Ends(rates, np.array(losses), values, **{"start": 2.0, "seen": True, "adaptive": True} | known)


@pytest.mark.parametrize(
    ("found", "rate"),
    [
        (ends([2.0, 1.0, 0.5, np.inf]), 3e-3),
        (ends([0.5, 0.9, 0.8, 0.7, np.inf], [0.6, 0.9, 0.91, 0.92, 0.0]), 3e-3),  # answers count, far from an edge
        (ends([2.0, 1.01, 1.0, np.inf], seen=False), 1e-3),  # after some steps: the smallest that is near the best
        (ends([2.0, 1.01, 1.0, 1.005], seen=False, adaptive=False), 3e-3),
        (ends([2.0, 1.999, 2.01, 2.0], seen=False), 1e-3),  # nothing learned yet: the usual one
        (ends([2.0, 1.999, 2.01, 2.0], [0.02, 0.0, 0.0, 0.05]), 1e-3),  # nor by the end: values are chance
        (ends([2.0, 1.0, 0.5, np.inf], adaptive=False), 1.5e-3),  # the next one blows up
    ],
)
def test_a_contest_names_a_rate(found, rate):
    assert found.rate == rate


@pytest.mark.parametrize(
    ("rates", "values", "then"),
    [
        ([1e-4, 1e-3, 1e-2], [0.4, 0.6, 0.1], [3e-4, 3e-3]),  # between powers of ten
        ([1e-4, 1e-3, 1e-2], [0.6, 0.4, 0.1], [3e-5, 3e-4]),  # and beyond their end
        ([1e-4, 3e-4, 1e-3, 3e-3, 1e-2], [0.4, 0.6, 0.5, 0.3, 0.1], []),  # its neighbours are known
        ([1e-4, 1e-3, 1e-2], [0.4, 0.96, 0.1], []),  # nothing is left to learn
        ([1e-4, 3e-4, 1e-3, 3e-3, 1e-2], [0.0, 0.1, 0.0, 0.0, 0.0], []),  # nothing was learned
    ],
)
def test_a_contest_goes_on_around_its_best_rate(rates, values, then):
    found = _contest.Ends(np.array(rates), np.ones(len(rates)), np.array(values), 2.0, True, True)
    assert _contest._next(found) == then


def test_a_contest_is_poor_beside_a_shallow_model_and_better_by_a_twentieth():
    shallow, unknown = 0.9, np.nan
    assert _contest.poor(ends([1.0], [0.8]), shallow) and not _contest.poor(ends([1.0], [0.89]), shallow)
    assert not _contest.poor(ends([1.0], [0.7]), shallow, 0.7)
    assert _contest.poor(ends([1.0], [0.85]), unknown)  # of all answers
    assert _contest.poor(ends([1.5]), unknown) and not _contest.poor(ends([0.5]), unknown)
    assert _contest.better(ends([1.0], [0.9]), ends([0.1], [0.8])) and not _contest.better(
        ends([0.1], [0.84]), ends([1.0], [0.8])
    )
    assert _contest.better(ends([2.0]), None) and not _contest.better(None, ends([2.0]))
    assert _contest.better(ends([0.8]), ends([1.0])) and not _contest.better(ends([0.95]), ends([1.0]))


def test_each_rate_of_a_contest_is_trained_as_a_plain_loop_would():
    known, told = case(optimizer="adam", rate=0.02), labels.Answers("classes", columns=3)
    with _settings.ours():
        found = _contest.run(known, True, told, 0.0)
        without = _contest.run(dataclasses.replace(known, steps=None), True, told, 0.0, near=0.02)
    assert without.seen and without.rates.tolist() == [2e-2]  # a thousand steps stand for the budget
    assert found.seen and found.rates.tolist() == [1e-4, 1e-3, 1e-2, 2e-2]
    orders, pool = trial.orders(known, 180, 2)  # three times sixty of two hundred
    x, y = known.parts[1]
    chance = np.bincount(y).max() / len(y)
    for i, rate in enumerate(found.rates):
        ends = []
        for order in orders if i == found.best else orders[:1]:  # the best is tried on other batches, too
            method, at = optax.adam(rate), known.moving
            state = method.init(at)
            for rows in order:
                slope = jax.grad(lambda at, x, y: entropy(apply(at, x), y))(at, *cases.take(pool, rows))
                update, state = method.update(slope, state)
                at = optax.apply_updates(at, update)
            right = float(np.mean(np.argmax(apply(at, x), -1) == y))
            ends.append((float(entropy(apply(at, x), y)), (right - chance) / (1 - chance)))
        assert (found.losses[i], found.values[i]) == pytest.approx(np.mean(ends, 0), rel=1e-4, abs=0.02)


def test_a_rate_that_was_lucky_once_is_left_for_one_that_holds():
    found = ends([1.0, 0.5, 0.3, 0.4, 2.0], [0.1, 0.7, 0.95, 0.8, 0.0])
    others, asked = {3e-3: (1.5, -0.3), 1e-2: (0.4, 0.8), 1e-3: (0.5, 0.7)}, []
    held = _contest.confirmed(found, lambda rate: asked.append(rate) or others[rate])
    assert asked == [3e-3, 1e-2] and held.rate == 1e-2
    assert held.values == pytest.approx([0.1, 0.7, 0.325, 0.8, 0.0]) and found.values[2] == 0.95
    lost = _contest.confirmed(found, lambda rate: (np.inf, np.nan))
    assert np.isinf(lost.losses).sum() == 3  # no more are asked


@pytest.mark.parametrize("rate, tried", [(0.02, False), (300.0, True)])
def test_a_rate_that_destroys_the_start_is_tried_once_more_behind_a_warm_up(rate, tried):
    """Against a plain loop in which updates grow to their full size."""
    known = case(optimizer="adam", rate=rate)
    with _settings.ours():
        found = trial.run(known, steps=20)
        risen = trial._risen(known, trial.Program(known, 20), trial.Seen(known), 30, 2)
    assert (found.warmed.size == 2) == tried
    assert not tried or found.warmed[0] in (20, 80)  # a tenth of two hundred steps, and four trials
    (order,), pool = trial.orders(known, 40, 1)
    method, at = optax.adam(rate), known.moving
    state = method.init(at)
    for t, rows in enumerate(order):
        slope = jax.grad(lambda at, x, y: entropy(apply(at, x), y))(at, *cases.take(pool, rows))
        update, state = method.update(slope, state)
        at = jax.tree.map(lambda a, u, t=t: a + min(1, (t + 1) / 30) * u, at, update)
    x, y = known.sample
    assert risen == pytest.approx(float(entropy(apply(at, x), y)), rel=1e-3)


def test_without_a_budget_probability_and_verdict_take_the_same_one():
    """Nothing learned in 1,000 steps where a shallow model learns: probability and verdict see all of them spent."""
    steps = np.array([40.0, float(_skills.NO_BUDGET)])
    r = read(steps=steps, score=np.array([0.1, 0.1]), unseen=np.ones(2), chance=0.1, shallow=0.9, examples=200)
    without = _reading.Reading(dataclasses.replace(r.e, facts=empty(Facts, steps=None)))
    assert r.spent == 2.5 and without.spent == 1.0
    assert without.comparable and _examining._verdict(0.01, without.e) == "will not train"
    assert read().spent == 0.0
