"""The diagnosis benchmark: its cases are what they say, always the same, and its figures are what a hand computes."""

import json
import math
import types

import jax
import numpy as np
import pytest

from benchmarks.diagnosis import __main__ as benchmark
from benchmarks.diagnosis import (
    baselines,
    collection,
    drawing,
    fit,
    plain,
    recipes,
    score,
    sets,
    training,
    truth,
    worker,
)
from benchmarks.diagnosis.setting import FITTING, REPORTING, Setting

FAST = [  # one of each kind that a family, a maker or a group of faults is
    "random-010",
    "random-007",
    "autotrainer-03",
    "planted-symmetry-zero-dense",
    "planted-head_against_loss-softmax_twice-dense-sgd",
    "planted-inputs_unscaled-x2000-dense-circles",
    "planted-clipped_to_nothing-1e-3-dense-sgd",
    "planted-mask-own-attention-pairs",
    "reports-broadcast-in-the-loss",
    "reports-recurrence-explodes",
    "healthy-equinox-mlp",
    "healthy-dropout-half",
]
KNOWN = truth.read()


def sane(name):
    """Shapes of one case: a scalar loss with a gradient, a scalar score, a twin, a batch of the right size."""
    case = collection.cases()[name]
    made = case.build(0)

    def cost(params, batch):
        key = (jax.random.key(0),) if made.stochastic else ()
        return made.loss(made.apply(params, batch[0], *key), batch[1])

    value, gradient = jax.eval_shape(jax.value_and_grad(cost), made.params, made.batch)
    assert value.shape == () and jax.tree.structure(gradient) == jax.tree.structure(made.params)
    held = jax.eval_shape(lambda p, x, y: made.metric(made.scored(p, x), y), made.params, *made.held_out)
    assert held.shape == () and len(made.batch[0]) == made.batch_size <= len(made.data[0])
    twin = made.twin()
    assert isinstance(twin, Setting) and not twin.fixed and (case.group in ("random", "autotrainer") or twin.chance < 1)
    assert bool(made.fixed) == (case.group in ("planted", "reports"))


@pytest.fixture(autouse=True)
def _as_users_have_it():
    """Users' code broadcasts, and so do these cases."""
    before = jax.config.jax_numpy_rank_promotion
    jax.config.update("jax_numpy_rank_promotion", "allow")
    yield
    jax.config.update("jax_numpy_rank_promotion", before)


@pytest.mark.parametrize("name", FAST)
def test_settings_have_sane_shapes(name):
    sane(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(collection.cases()) - set(FAST))[::3])
def test_a_third_of_all_settings_have_sane_shapes(name):
    sane(name)


@pytest.mark.parametrize("name", ["random-010", "planted-labels_unrelated-shuffled-dense", "reports-bytes"])
def test_a_case_is_made_the_same_twice_and_seeds_change_its_parameters_only(name):
    build = collection.cases()[name].build
    one, two, other = build(0), build(0), build(1)
    assert truth.fingerprint(one) == truth.fingerprint(two) != truth.fingerprint(other)
    np.testing.assert_array_equal(one.data[0], other.data[0])
    np.testing.assert_array_equal(one.data[1], other.data[1])


def test_the_truth_was_made_by_these_settings():
    assert set(KNOWN["cases"]) == set(collection.cases()) and set(KNOWN["references"]) <= set(collection.references())
    for name in (*FAST, *sorted(KNOWN["cases"])[::60]):
        assert truth.fingerprint(collection.cases()[name].build(0)) == KNOWN["cases"][name]["fingerprint"], name


def test_labels_of_the_truth_follow_from_its_scores():
    for name, row in KNOWN["cases"].items():
        ahead = [(s - row["chance"]) / max(row["reference"] - row["chance"], 1e-3) for s in row["scores"]]
        np.testing.assert_allclose(ahead, row["progress"], atol=0.06, err_msg=name)
        assert (row["cause"], row["split"]) == (collection.cases()[name].cause, collection.cases()[name].split)


def test_every_finding_is_planted_for_fitting_and_for_reporting_with_other_strengths():
    cases = [case for case in collection.cases().values() if case.group == "planted"]
    causes = {split: {case.cause for case in cases if case.split == split} for split in (FITTING, REPORTING)}
    assert causes[FITTING] == causes[REPORTING] and len(causes[FITTING]) == 46
    bases = {split: {case.base for case in cases if case.split == split} for split in (FITTING, REPORTING)}
    assert not bases[FITTING] & bases[REPORTING]


def test_random_configurations_are_many_and_of_all_families():
    drawn = [case for case in collection.cases().values() if case.group == "random"]
    assert len(drawn) >= 300 and {case.family for case in drawn} == set(plain.APPLY)
    assert {case.maker for case in drawn} >= {"plain", "numdl", "linen", "nnx", "equinox", "haiku"}


def test_interleaved_names_are_all_names_and_begin_with_every_group():
    names = collection.interleaved()
    assert sorted(names) == sorted(collection.cases())
    assert {collection.cases()[name].group for name in names[:60]} == set(collection.GROUPS)


def test_weights_have_the_variance_of_their_law():
    draw = drawing.weights(drawing.generator("test"), (300, 400), "he", 2.0)
    assert draw.var() * 300 == pytest.approx(8.0, rel=0.03)
    q = drawing.weights(drawing.generator("test"), (20, 20), "orthogonal", 1.0)
    np.testing.assert_allclose(q @ q.T, np.eye(20), atol=1e-5)


def test_patches_are_the_convolution(monkeypatch):
    random = np.random.default_rng(0)
    x, kernel = random.normal(size=(2, 6, 5, 3)), random.normal(size=(3, 3, 3, 4))
    own = plain.convolve(x, kernel)
    monkeypatch.setattr(plain, "PATCHES", True)
    np.testing.assert_allclose(plain.convolve(x, kernel), own, atol=1e-9)


def test_data_sets_are_balanced_and_of_order_one():
    for name in sets.MAKERS:
        data = sets.load(name)
        assert np.isfinite(data.train[0]).all() and 0.1 < np.abs(data.train[0]).max() < 20, name
        assert data.outputs == (data.train[1].max() + 1 if data.kind == "classes" else 1)


def test_training_is_gradient_descent():
    made = recipes.build(recipes.Recipe(data="wine", width=4, optimizer="sgd", rate=0.1, steps=3, batch_size=8), 0)
    _, losses, _ = training.train([made])
    rows, params = training.order(made, 1)[0], made.params
    cost = jax.value_and_grad(lambda p, i: made.loss(made.apply(p, made.data[0][i]), made.data[1][i]))
    by_hand = []
    for row in rows:
        value, gradient = cost(params, row)
        params = jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient)
        by_hand.append(float(value))
    np.testing.assert_allclose(losses[0], by_hand, rtol=1e-5)


@pytest.mark.parametrize(
    "progress, word",
    [
        ([1.0, 0.95, 1.1], "will train"),
        ([1.0, 0.95, 0.6], "trains badly"),
        ([0.8, 0.85, 0.8], "trains badly"),
        ([0.4, 0.9, 0.1], "will not train"),
    ],
)
def test_verdict_of_progress(progress, word):
    assert truth.verdict(progress) == word


def test_area_and_calibration_by_hand():
    assert score.area([0.9, 0.4], [0.1, 0.4, 0.5]) == pytest.approx((3 + 1 + 0.5) / 6)
    assert math.isnan(score.area([], [1.0]))
    found = score.calibration_error([0.1, 0.2, 0.8, 0.9], [0, 1, 1, 1], bins=2)
    assert found == pytest.approx(0.5 * abs(0.15 - 0.5) + 0.5 * abs(0.85 - 1.0))


def row(name, verdict, probability, *findings, **more):
    return {"name": name, "verdict": verdict, "probability": probability, "findings": findings, "seconds": 2.0, **more}


def known(verdict, cause=None, group="planted"):
    return {"verdict": verdict, "cause": cause, "group": group, "family": "dense"}


def test_figures_by_hand():
    rows = [
        row("a", "will not train", 0.1, ["frozen", "certain"], repair={"progress": [0.95, 1.0]}),
        row("b", "will train", 0.8, ["schedule", "hint"], ["rate_too_low", "hint"], repair={"crash": "TypeError"}),
        row("c", "trains badly", 0.4, ["mask", "certain"]),
        row("d", "will train", 0.9),
        {"name": "e", "crash": "ValueError"},
    ]
    facts = {
        "a": known("will not train", "frozen"),
        "b": known("will not train", "rate_too_low"),
        "c": known("will train", None, "healthy"),
        "d": known("will train"),
        "e": known("will train"),
    }
    found = score.figures(rows, facts)
    assert (found["cases"], found["crashes"]) == (4, 1)
    assert found["auc"] == 0.75  # 0.9 and 0.2 against 0.6 and 0.1
    assert (found["detection"], found["false alarms"], found["false alarms, list"]) == (0.5, 0.5, 1.0)
    assert (found["first, strict"], found["three"], found["certain right"], found["rescued"]) == (0.5, 1.0, 0.5, 0.5)
    assert [line[0] for line in score.mistakes(rows, facts)] == ["c", "b"]
    assert "crashes" in score.table({"all": found})


def test_rescues_are_counted_apart_where_only_the_users_code_can_be_changed():
    trains, not_yet = {"progress": [0.95, 1.0], "by_hand": []}, {"progress": [0.1, 0.2], "by_hand": ["mask: a line"]}
    rows = [row(name, "will not train", 0.1, repair=not_yet if name in "bce" else trains) for name in "abcde"]
    causes = ["rate_too_low", "mask", "rate_too_low", None, None]
    facts = {name: known("will not train", cause) for name, cause in zip("abcde", causes)}
    facts["e"]["architecture"] = True
    found = score.figures(rows, facts)
    assert (found["rescued"], found["rescued, planted"], found["line told"]) == (0.4, 0.5, 1.0)
    assert (found["rescued, random"], found["rescued, random, able"]) == (0.5, 1.0)


def test_baselines_by_hand():
    assert baselines.autotrainer(np.array([1e-6, 1.0]), 0.1) > 1 > baselines.autotrainer(np.array([0.1, 0.2]), 0.3)
    assert baselines.autotrainer(np.array([0.1, 0.2]), 0.8) > 1 and baselines.autotrainer(np.array([90.0, 1]), 0.0) > 1
    assert baselines.expected_loss(np.zeros((5, 10)), np.arange(5), None) == pytest.approx(math.log(10))
    rates = np.logspace(-4, 0, 40)
    steep = 1 / (1 + np.exp(8 * (np.log10(rates) + 2)))  # falls most steeply at 0.01, and smoothing lags a little
    assert 0.008 < baselines.proposed_rate(rates, steep) < 0.05


def test_baselines_of_one_setting():
    made = recipes.build(recipes.Recipe(data="wine", width=8, rate=3.0, optimizer="sgd"), 0)
    found, seconds = baselines.scores(made)
    assert set(found) == set(seconds) == set(baselines.NAMES) == set(baselines.ALARM)
    assert found["umlaut"] == 2 and found["rate finder"] > 0.5 and all(map(math.isfinite, found.values()))


def test_logistic_law_is_found_again():
    random = np.random.default_rng(0)
    x = random.normal(size=(4000, 2))
    y = (random.random(4000) < 1 / (1 + np.exp(-(0.5 + x @ [2.0, -1.0])))) + 0.0
    intercept, weights = fit.logistic(x, y, 1e-3)
    np.testing.assert_allclose([intercept, *weights], [0.5, 2.0, -1.0], atol=0.2)
    p = 1 / (1 + np.exp(-(intercept + x @ weights)))
    np.testing.assert_allclose(np.c_[np.ones(4000), x].T @ (p - y), 0, atol=0.01)  # the likelihood is stationary


def test_fit_reads_rows_and_writes_what_the_audit_reads(tmp_path, monkeypatch):
    random = np.random.default_rng(1)
    features = random.normal(size=(80, 2))
    words = ["will train" if a > 0 else "will not train" for a, _ in features]
    rows = [row(str(i), w, 0.5, features={"a": f[0], "b": f[1]}) for i, (w, f) in enumerate(zip(words, features))]
    facts = {str(i): {**known(w), "split": "fitting"} for i, w in enumerate(words)}
    monkeypatch.setattr(fit, "read", lambda: {"cases": facts})
    results, target = tmp_path / "rows.jsonl", tmp_path / "law.json"
    results.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert fit.main([str(results), "--write", str(target)]) == 0
    law = json.loads(target.read_text())
    early = law["early"]["coefficients"]
    assert early["a"] > 3 * abs(early["b"])
    assert fit.probability(law, {"a": 2.0, "b": 0.0}) > 0.9


def test_the_late_law_speaks_where_the_budget_was_spent():
    random = np.random.default_rng(2)
    skills = random.uniform(0, 1, 200)
    words = ["will train" if s > 0.6 else "trains badly" if s > 0.4 else "will not train" for s in skills]
    rows = [
        row(str(i), w, 0.5, features={"trial": 0.0, "later": s, "beside": s, "spent": 0.9})
        for i, (w, s) in enumerate(zip(words, skills))
    ]
    law = fit.fit(rows, {str(i): {**known(w), "split": "fitting"} for i, w in enumerate(words)})
    probability = lambda s, spent: fit.probability(law, {"later": s, "beside": s, "spent": spent})  # noqa: E731
    assert probability(0.5, 1.0) < 0.5 < probability(0.7, 1.0)
    assert probability(0.1, 0.0) == probability(0.9, 0.0)


def test_choice_of_cases_and_score_of_results(tmp_path, capsys):
    results = tmp_path / "rows.jsonl"
    names = benchmark.chosen(benchmark.options(["--split", "fitting", "--limit", "6"]), KNOWN["cases"])
    assert len(names) == 6 and all(collection.cases()[name].split == FITTING for name in names)
    results.write_text("".join(json.dumps(row(name, "will train", 0.7)) + "\n" for name in names))
    assert benchmark.main(["--split", "fitting", "--score", "--limit", "6", "--results", str(results)]) == 0
    assert "false alarms" in capsys.readouterr().out


def test_shares_of_the_cases_make_the_whole(tmp_path, monkeypatch):
    """Each worker has a file of its own; what an earlier call left in one is taken over and not examined again."""
    examined = []

    def examine(names, results, flags):
        examined.extend(names)
        results.parent.mkdir(parents=True, exist_ok=True)
        results.write_text("".join(json.dumps({"name": name}) + "\n" for name in names) + '{"name": "half')

    class Immediate:
        def submit(self, function, argument):
            return type("Future", (), {"result": staticmethod(lambda: function(argument))})

    monkeypatch.setattr(benchmark, "examine", examine)
    monkeypatch.setattr(benchmark.farm, "executor", lambda text, folder: Immediate())
    results = tmp_path / "audit.jsonl"
    examine(["a", "b"], results.with_suffix(".parts") / "left.jsonl", [])
    benchmark.examine_in_shares(list("abcdef"), results, [], 2, "slurm")
    assert sorted(row["name"] for row in benchmark.rows_of(results)) == list("abcdef")
    assert examined == list("abcdef")


@pytest.mark.parametrize(
    ("own", "trained", "moved", "wanted"),
    [
        ([0.5, 900.0], [-1.0, 1.0], [-1.0, 1.0], "moved"),  # values are always moved as in training
        ([0, 1, 2], [0, 1, 2], [1, 2, 3], "own"),  # one too low in training alone
        ([1, 2, 3], [0, 1, 2], [0, 1, 2], "moved"),
    ],
)
def test_held_out_targets_are_moved_where_they_have_the_fault(own, trained, moved, wanted):
    own, trained, moved = map(np.asarray, (own, trained, moved))
    found = worker._as_trained(types.SimpleNamespace(data=(None, trained)), own, moved)
    assert found is {"own": own, "moved": moved}[wanted]
