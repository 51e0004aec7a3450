"""Rules on hand-made evidence: a planted fault is a record, and its finding comes out first."""

# ruff: noqa: E501

import dataclasses
import math

import numpy as np
import pytest

from numdl.audit import _examining, rules
from numdl.audit.evidence import (
    Ahead,
    Attention,
    Chain,
    Data,
    Evidence,
    Facts,
    Function,
    Kernel,
    Loss,
    Optimizer,
    Predicted,
    Signal,
    Trial,
    Widths,
    empty,
)

LAYERS, LEAVES = 6, 12


def healthy():
    """A dense relu network that trains: nothing to say about it."""
    ones, names = np.ones(LAYERS), tuple(f"layer{i}/w" for i in range(LAYERS))
    signal = empty(
        Signal, names=names, kinds=("dense",) * LAYERS, nonlinearities=("relu",) * (LAYERS - 1) + (None,), first_nonfinite=-1,
        recurrent=(False,) * LAYERS, state_rms=ones, state_max=3 * ones, gradient_rms=0.1 * ones, saturated=np.nan * ones,
        dead=0.02 * ones, rank=10 * ones, cosine=np.linspace(0.3, 0.8, LAYERS), fan_in=64 * ones, weight_variance=2 * ones,
        identical=0 * ones, largest=3e38, leaf_names=tuple(f"leaf{i}" for i in range(LEAVES)),
        leaf_still=np.zeros(LEAVES, bool), leaf_rms=np.ones(LEAVES), leaf_gradient_rms=0.01 * np.ones(LEAVES),
    )  # fmt: skip
    function = empty(
        Function, shape=(256, 10), spread=0.5, spread_near=0.5, rms=1.0, least=-2.0, most=2.0, scaled=2.0, mixing=0.0,
        disorder=0.0, rounding=1e-6, noise=0.0, bend=0.1,
    )  # fmt: skip
    loss = empty(
        Loss, kind="classes", value=2.4, finite_value=True, finite_gradient=True, gradient_rms=0.01, pull=0.9, coupling=0.0,
        doubled=1.0, shift=0.0, floor=0.0, floor_head=0.0, floor_shared=2.3, transmission=1.0,
    )  # fmt: skip
    data = empty(
        Data, whole=True, examples=1000, kind="float", rms=1.0, spread=1.0, offset=0.1, column_ratio=2.0, constant=0.0, labels=10,
        label_low=0.0, label_high=9.0, classes=10, common=0.11, rare=0.09, batch_labels=10, sorted_share=0.0, target_rms=5.0,
        target_spread=2.9, target_offset=1.5,
    )  # fmt: skip
    optimizer = empty(
        Optimizer, at_zero=0.0, at_zero_finite=True, degree_up=1.0, degree_down=1.0, direction=1.0, lost=1.0, ascent=1.0, reach=2.0,
        travel=1.0, late=0.5, early=0.1, first=1.0, memory=1.0, decayed=1.0, update_ratio=np.ones(LEAVES),
        frozen=np.zeros(LEAVES, bool), horizon=500,
    )  # fmt: skip
    kernel = Kernel(96, 20.0, 15.0, np.geomspace(2.4, 0.1, 20), np.arange(1.0, 21.0), 2.4, True)
    end = np.array([[2.3, 2.3], [2.0, 2.0], [1.0, 1.0], [0.8, 0.8]])
    trial = Trial(
        np.array([1e-3, 1e-2, 1e-1, 1.0]), np.array([0.01, 0.1, 1, 10]), np.ones((4, 2, 40)), 2.4, end + 0.3, end, 2.4, end,
        np.linspace(2.4, 0.3, 40), np.zeros(0), 0.4 + 0 * end, 0.5 + 0 * end, math.nan, math.nan * end, 30.0, 1.0,
    )  # fmt: skip
    predicted = empty(
        Predicted,
        applies=True,
        activation="relu",
        chi=1.0,
        critical_weight_variance=2.0,
        start_variance=2.0,
        spread=0.7,
    )
    facts = Facts(32, 10_000, 0.1, 500, "sgd", False, False, ())
    chain = empty(Chain, breaks=((),) * LAYERS)
    return Evidence(facts, signal, chain, function, loss, data, optimizer, kernel, trial, predicted, {})


def attention(start=(3.0, 0.9), end=(3.0, 0.9)):
    """Two attentions of (largest logit, entropy) at the start and after the trial at the user's rate and above."""
    rates = np.array([start, start, end, end], float)
    both = np.ones((1, 2)) * [[1.0, 0.0]]
    quiet = np.array([3.0, 0.9])
    table = [np.einsum("r,a->ra", rates[:, k], both[0]) + quiet[k] * (1 - both) for k in (0, 1)]
    first = [np.array([start[k], quiet[k]]) for k in (0, 1)]
    return Attention(("attention/0", "attention/1"), *first, *table)


def widths(**verdicts):
    """A coordinate check with these verdicts; 'fails' is a change that grows as the width."""
    power = np.array([1.0 if text.startswith("fails") else 0.0 for text in verdicts.values()])
    culprits = tuple(name for name, text in verdicts.items() if text.startswith("fails") and name != "output")
    return Widths((16, 32, 64), tuple(verdicts), tuple(verdicts.values()), culprits, power, 0.01 + 0 * power, 0 * power)


def planted(**changes):
    """Healthy evidence with some fields of its records changed: record__field=value."""
    evidence = healthy()
    for name, value in changes.items():
        record, _, field = name.partition("__")
        if not field:
            evidence = dataclasses.replace(evidence, **{record: value})
            continue
        changed = dataclasses.replace(getattr(evidence, record), **{field: value})
        evidence = dataclasses.replace(evidence, **{record: changed})
    return evidence


FLAT = np.full((4, 2), 2.35)
STUCK = {"trial__end": FLAT, "trial__unseen_end": FLAT, "trial__repeated": np.full(40, 2.35)}
BAD_HERE = {"trial__end": np.array([[2.2] * 2, [0.9] * 2, [9.0] * 2, [99.0] * 2])}
DOWN, UP = np.geomspace(1, 1e-5, LAYERS), np.geomspace(1, 1e5, LAYERS)
SLOW = {"kernel__forecast": np.linspace(2.4, 2.3, 20), "trial__end": np.array([[2.4], [2.39], [2.38], [2.2]])}

FAULTS = {
    "symmetry": {"signal__identical": np.ones(LAYERS), **STUCK},
    "signal_vanishes": {"signal__state_rms": DOWN, **STUCK},
    "signal_explodes": {"signal__state_rms": UP, **STUCK},
    "gradient_vanishes": {"signal__gradient_rms": UP, **STUCK},
    "gradient_explodes": {"signal__gradient_rms": DOWN, **STUCK},
    "saturated": {"signal__saturated": np.full(LAYERS, 0.9), **STUCK},
    "dead_units": {"signal__dead": np.full(LAYERS, 0.9), **STUCK},
    "correlation_collapses": {"signal__cosine": 1 - np.geomspace(0.5, 1e-6, LAYERS), **STUCK},
    "too_narrow": {"signal__fan_in": np.full(LAYERS, 3.0), **STUCK},
    "chaotic": {"predicted__chi": 9.0, "predicted__activation": "tanh", "signal__gradient_rms": DOWN, **STUCK},
    "norm_degenerate": {"function__batch_of_one": True, **STUCK},
    "outputs_constant": {"function__spread_near": 0.0, **STUCK},
    "wrong_axis": {"function__mixing": 0.5, "function__disorder": 0.5, **STUCK},
    "no_nonlinearity": {"function__bend": 1e-6, **STUCK},
    "head_against_loss": {"loss__has_head": True, "loss__floor_head": 1.4612},
    "loss_ignores_outputs": {"loss__ignores": True, **STUCK},
    "loss_couples_examples": {"loss__coupling": 1.0, "loss__coupling_reshaped": 0.0},
    "loss_scale": {"loss__doubled": 2.0, **BAD_HERE},
    "wrong_sign": {"loss__pull": -0.9, "loss__floor": -30.0},
    "not_finite": {"data__broken": (17,), "data__broken_count": 1},
    "float_range": {"signal__largest": 65504.0, "optimizer__at_zero_finite": False},
    "labels_constant": {"data__target_spread": 0.0},
    "labels_unrelated": {"kernel__alignment": 0.3, "kernel__alignment_raw": -0.2, **STUCK},
    "labels_out_of_range": {"data__label_low": 1.0, "data__label_high": 10.0},
    "labels_imbalanced": {"data__common": 0.98, "data__rare": 0.001, "trial__end": np.full((4, 2), 2.0)},
    "inputs_unscaled": {"data__rms": 255.0, **BAD_HERE},
    "inputs_too_small": {"data__spread": 1e-3, **STUCK},
    "inputs_constant": {"data__spread": 0.0, **STUCK},
    "targets_unscaled": {"loss__kind": "values", "data__labels": 0, "data__target_rms": 150.0, **STUCK},
    "data_order": {"data__sorted_share": 0.95, "facts__order": True},
    "rate_too_high": BAD_HERE,
    "rate_too_low": SLOW,
    "optimizer_epsilon": {"optimizer__lost": 0.01, "optimizer__direction": 0.7, **SLOW},
    "clipped_to_nothing": {"optimizer__lost": 0.001, **SLOW},
    "decay_too_strong": {"optimizer__at_zero": 0.05, "optimizer__decayed": 0.0},
    "schedule": {"optimizer__late": 0.0, **STUCK},
    "frozen": {"optimizer__reach": 0.0, "optimizer__frozen": np.ones(LEAVES, bool), **STUCK},
    "dropout_too_high": {"function__noise": 3.0, **STUCK},
    "train_differs_from_evaluate": {"function__evaluate_distance": 4.0, "trial__evaluate_end": FLAT},
    "cannot_see": {"kernel__alignment": 0.3, **STUCK},
    "mask": {"signal__kinds": ("attention",) * LAYERS, "signal__first_nonfinite": 1},
    "recurrent_explodes": {"signal__recurrent": (True,) * 5 + (False,), "signal__names": (*(f"cell/w[{i}]" for i in range(5)), "out"),
                           "signal__gradient_rms": DOWN, **STUCK},
    "recurrent_vanishes": {"signal__recurrent": (True,) * 5 + (False,), "signal__names": (*(f"cell/w[{i}]" for i in range(5)), "out"),
                           "signal__gradient_rms": UP, **STUCK},
    "residual_scale": {"chain__breaks": (("a skip adds an earlier state",),) * LAYERS, "signal__state_rms": np.geomspace(1, 1e4, 16),
                       "signal__names": tuple(map(str, range(16))), "signal__kinds": ("dense",) * 16, "signal__recurrent": (False,) * 16,
                       "signal__gradient_rms": np.ones(16), "signal__cosine": np.full(16, 0.5), "signal__fan_in": np.full(16, 64.0),
                       "signal__dead": np.zeros(16), "signal__saturated": np.full(16, np.nan), "signal__identical": np.zeros(16),
                       "signal__nonlinearities": ("relu",) * 16, **STUCK},
    "batch_noise": {"trial__noise_scale": 1e5, "trial__end": np.array([[2.0, 2.0], [0.8, 0.8], [2.2, 1.5], [9.0, 9.0]]),
                    "predicted__sharpness": 5.0, "predicted__sharpness_limit": 20.0},
    "attention_logits": {"attention": attention(end=(900.0, 0.05)), **STUCK},
    "entropy_collapse": {"attention": attention(end=(40.0, 0.02)), **STUCK},
    "parametrization_does_not_transfer": {"widths": widths(embed="passes", hidden="fails: grows", output="fails: grows")},
    "needs_warmup": {"signal__kinds": ("attention", *("dense",) * 5), "optimizer__degree_up": 0.0, "trial__warmed": np.array([50.0, 0.8]), **BAD_HERE},
}  # fmt: skip


def test_nothing_is_said_of_a_healthy_network():
    assert rules.judge(healthy()) == ()


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named_first(name):
    found = rules.judge(planted(**FAULTS[name]))
    assert found and found[0].name == name, [(f.name, f.severity, f.consequences) for f in found]
    assert "{" not in found[0].sentence + found[0].remedy
    assert found[0].severity != "hint" and found[0].source


def test_no_certain_fault_of_labels_or_loss_trains_badly_by_what_its_loss_reached():
    """A healthy trial beside it: the loss falls, and nothing is learned."""
    found = {name: rules.judge(planted(**FAULTS[name]))[0] for name in _examining.OF_THE_SCORE}
    certain = {name for name, first in found.items() if first.severity == "certain"}
    assert len(certain) >= 3
    for name, first in found.items():
        wanted = "will not train" if name in certain else "trains badly"
        assert _examining._verdict(0.3, healthy(), (first,)) == wanted
    assert _examining._verdict(0.3, healthy(), ()) == "trains badly"
    assert _examining._verdict(0.7, healthy(), (found["wrong_sign"],)) == "will train"


def test_every_rule_of_the_table_has_a_planted_fault():
    assert {rule.name for rule in rules.table()} == set(FAULTS)


def test_what_a_cause_explains_does_not_stand_beside_it():
    fault = {**FAULTS["symmetry"], "signal__dead": np.full(LAYERS, 0.9), "signal__gradient_rms": UP}
    found = rules.judge(planted(**fault))
    assert [f.name for f in found] == ["symmetry"]
    assert {"dead_units", "gradient_vanishes"} <= set(found[0].consequences)


AWAY = {"loss__pull": -0.9}
BOTTOMLESS = {"loss__floor": -60.0}
BINARY = {"loss__kind": "binary", "data__labels": 2, "data__label_high": 1.0}
HEAD = {"loss__has_head": True, "loss__floor_head": 0.0}
RESIDUAL = {
    "signal__names": ("0/w", "1/w", "2/w", "0/w#1", "1/w#1", "2/w#1"),
    "data__target_spread": 0.0,
    "data__target_rms": 0.0,
}
HALF = {"signal__largest": 65504.0, "signal__first_nonfinite": 2, "loss__finite_value": False}
BROKEN = {"data__broken": (3,), "data__broken_count": 1, "data__broken_given": True}
INFINITE = {"signal__state_max": np.array([1, 1, np.inf, np.nan, np.nan, np.nan])}
LAST = {
    "signal__first_nonfinite": 3,
    "signal__kinds": ("dense",) * 3 + ("attention",) + ("dense",) * 2,
    "loss__finite_value": False,
}
WORSE = {"ahead__steps": np.array([400.0]), "ahead__score": np.array([0.0]), "ahead__chance": 0.1}
BY_HEART = {
    "kernel__alignment": 0.5, "kernel__alignment_raw": 0.3, "trial__unseen_end": np.full((4, 2), 3.0),
    "ahead__steps": np.array([500.0]), "ahead__score": np.array([0.1]), "ahead__chance": 0.1, "ahead__shallow": 0.1,
    "ahead__unseen": np.array([3.0]), "ahead__examples": 100,
}  # fmt: skip
LEFT_BEHIND = {
    "ahead__steps": np.array([500.0]), "ahead__score": np.array([0.2]), "ahead__chance": 0.1, "ahead__shallow": 0.9,
    "ahead__unseen": np.array([2.2]), "ahead__examples": 100,
}  # fmt: skip
CELL = {"signal__recurrent": (True,) * 5 + (False,), "signal__names": (*(f"cell/w[{i}]" for i in range(5)), "out")}
EXPLODES = CELL | {"signal__gradient_rms": np.array([1.0, 0.3, 0.1, 0.05, 0.02, 0.1])} | STUCK
VANISHES = CELL | {"signal__gradient_rms": np.array([1e-4, 0.01, 0.1, 0.3, 1.0, 1.0])} | STUCK
BLIND = {"function__blind": 0.0, "trial__end": np.full((4, 2), 1.9)}
TIME_FIRST = {"function__mixing": 0.5, "function__disorder": 0.5, "function__mixing_back": 0.0}
KNOWN = {
    "a distance": (AWAY | {"loss__wrong_pays": 0.05}, "wrong_sign", "hint"),
    "minus a loss": (AWAY | BOTTOMLESS, "wrong_sign", "certain"),
    "a likelihood of logits": (AWAY | {"loss__wrong_pays": 1.0}, "wrong_sign", "likely"),
    "a likelihood whose answers get worse": (AWAY | {"loss__wrong_pays": 1.0} | WORSE, "wrong_sign", "certain"),
    "a distance whose nearest is the answer": (AWAY | {"loss__wrong_pays": 0.05} | WORSE, "wrong_sign", "hint"),
    "fifty times through time": (EXPLODES, "recurrent_explodes", None),
    "fifty times through time, and left behind": (EXPLODES | LEFT_BEHIND, "recurrent_explodes", "likely"),
    "no positions": (BLIND, "cannot_see", None),
    "no positions, and stuck": (BLIND | STUCK, "cannot_see", "likely"),
    "no positions, and learned later": (
        BLIND | STUCK | LEFT_BEHIND | {"ahead__score": np.array([0.8])}, "cannot_see", None
    ),
    "no positions, and left behind": (BLIND | LEFT_BEHIND, "cannot_see", "likely"),
    "no positions, and short": (BLIND | LEFT_BEHIND | {"ahead__score": np.array([0.6])}, "cannot_see", "likely"),
    "no positions, short by few examples": (
        BLIND | LEFT_BEHIND | {"ahead__score": np.array([0.6]), "ahead__stderr": 0.1}, "cannot_see", None
    ),
    "half the inputs, and left behind": ({"function__unread": 0.5} | LEFT_BEHIND, "cannot_see", "likely"),
    "some inputs, and left behind": ({"function__unread": 0.1} | LEFT_BEHIND, "cannot_see", "hint"),
    "half the inputs, and learned": (
        {"function__unread": 0.5} | LEFT_BEHIND | {"ahead__score": np.array([0.85])}, "cannot_see", None
    ),
    "a thousandth through time": (VANISHES, "recurrent_vanishes", "likely"),
    "a thousandth through time, and a smaller rate learns": (
        VANISHES | {"trial__end": np.array([[2.2, 2.2], [0.4, 0.4], [2.4, 2.4], [9.0, 9.0]])}, "recurrent_vanishes", "hint"
    ),
    "examples compared": ({"loss__coupling": 0.5}, "loss_couples_examples", "hint"),
    "examples compared, and left behind": ({"loss__coupling": 0.5} | LEFT_BEHIND, "loss_couples_examples", "likely"),
    "labels learned by heart": (BY_HEART, "labels_unrelated", "likely"),
    "labels that a shallow model foretells": (BY_HEART | {"ahead__shallow": 0.9}, "labels_unrelated", "hint"),
    "labels that may be foretold later": (BY_HEART | {"ahead__steps": np.array([40.0])}, "labels_unrelated", "hint"),
    "a probability": (AWAY | BOTTOMLESS | HEAD | {"function__rows_sum": 0.0}, "wrong_sign", "likely"),
    "a margin of distances": (AWAY | BINARY, "wrong_sign", "hint"),
    "a critic": (AWAY | BINARY | BOTTOMLESS | {"loss__wrong_pays": 0.0}, "wrong_sign", "hint"),
    "minus a loss of two labels": (AWAY | BINARY | BOTTOMLESS | {"loss__wrong_pays": 1.0}, "wrong_sign", "certain"),
    "a critic of -1 and 1": (BINARY | BOTTOMLESS | {"data__label_low": -1.0, "loss__floor_unit": -20.0}, "labels_out_of_range", None),
    "logits for -1 and 1": (BINARY | BOTTOMLESS | {"data__label_low": -1.0, "loss__floor_unit": 0.0}, "labels_out_of_range", "certain"),
    "one past the columns": ({"data__label_low": 1.0, "data__one_past": 0.1}, "labels_out_of_range", "likely"),
    "a class that is left out": ({"data__one_past": 0.1}, "labels_out_of_range", None),
    "zeros of a residual": (RESIDUAL | {"loss__kind": "values"}, "labels_constant", "hint"),
    "zeros as classes": (RESIDUAL, "labels_constant", "certain"),
    "ones of a generator": (BINARY | {"data__target_spread": 0.0, "data__target_rms": 1.0}, "labels_constant", "likely"),
    "half of a row": (HALF | BROKEN, "float_range", None),
    "half of a state": (HALF | INFINITE, "float_range", "certain"),
    "half of all": (HALF | {"loss__finite_wide": True}, "float_range", "certain"),
    "half or a root": (HALF, "float_range", "likely"),
    "a closed row": (LAST, "mask", "certain"),
    "a logit in half": (LAST | {"signal__largest": 65504.0}, "mask", None),
    "an input that is none": (LAST | BROKEN, "mask", None),
    "time first": (TIME_FIRST, "wrong_axis", "hint"),
    "time first and stuck": (TIME_FIRST | STUCK, "wrong_axis", "likely"),
    "an axis beside": (TIME_FIRST | {"function__mixing_back": 0.5, "function__second_axis": True}, "wrong_axis", "hint"),
    "rare labels that are learned": ({"data__common": 0.95, "trial__end": np.full((4, 2), 0.1)}, "labels_imbalanced", "hint"),
    "dead at the start": ({"function__spread_near": 0.0, "signal__dead": np.ones(LAYERS), **STUCK}, "dead_units", "certain"),
}  # fmt: skip


@pytest.mark.parametrize("case", KNOWN)
def test_what_may_be_right_is_not_certain(case):
    changes, name, severity = KNOWN[case]
    found = {finding.name: finding.severity for finding in rules.judge(planted(**changes))}
    assert found.get(name) == severity


@pytest.mark.parametrize("name", FAULTS)
def test_no_brace_of_the_table_is_left_in_what_is_said(name):
    for finding in rules.judge(planted(**FAULTS[name])):
        assert "{" not in finding.sentence + finding.theory + finding.source + finding.remedy


def test_certain_comes_before_likely_before_hint():
    fault = {**FAULTS["rate_too_high"], "loss__pull": -0.9, "data__column_ratio": 80.0, "data__sorted_share": 0.9}
    order = [{"certain": 0, "likely": 1, "hint": 2}[f.severity] for f in rules.judge(planted(**fault))]
    assert order == sorted(order)


def test_nan_everywhere_is_no_finding():
    """What was not seen accuses nobody."""
    evidence = Evidence(
        Facts(0, 0, math.nan, None, "given", False, False, ()), None, None, empty(Function), empty(Loss, finite_value=True, finite_gradient=True, kind="other"),
        empty(Data), empty(Optimizer, at_zero_finite=True), empty(Kernel), empty(Trial), empty(Predicted), {},
    )  # fmt: skip
    assert rules.judge(evidence) == ()


def test_disorder_that_rounding_makes_is_not_a_wrong_axis():
    """The same disorder, with and without a network that turns last bits into as much."""
    mixed = {"function__mixing": 0.5, "function__disorder": 0.5, **STUCK}
    names = lambda rounding: {f.name for f in rules.judge(planted(**mixed, function__rounding=rounding))}  # noqa: E731
    assert "wrong_axis" in names(1e-6)
    assert "wrong_axis" not in names(0.4)


@pytest.mark.parametrize(
    "seen",
    [
        attention(),
        attention(end=(900.0, 0.5)),  # grown in a run that learns: a hint at most
        attention(start=(80.0, 0.01), end=(80.0, 0.01)),  # a one-hot start that trains
        attention(end=(20.0, 0.01)),  # a softmax that has learned to take one key
    ],
)
def test_attention_of_a_run_that_learns_turns_nothing(seen):
    found = rules.judge(planted(attention=seen))
    assert all(f.severity == "hint" and f.name == "attention_logits" for f in found)


def test_attention_is_accused_of_nothing_without_a_trial():
    found = rules.judge(planted(attention=attention(start=(900.0, 0.01)), trial=empty(Trial)))
    assert {f.severity for f in found} == {"hint"} and found[0].name == "attention_logits"


def test_large_logits_before_the_first_step_are_said_so():
    found = rules.judge(planted(attention=attention(start=(700.0, 0.02), end=(700.0, 0.02)), **STUCK))
    assert found[0].name == "attention_logits" and "before the first step" in found[0].sentence
    assert "entropy_collapse" in found[0].consequences and found[0].measured == 700 and found[0].where == "attention/0"


def test_a_rate_that_is_too_high_is_the_cause_of_logits_that_grow():
    found = rules.judge(planted(attention=attention(end=(900.0, 0.01)), **BAD_HERE))
    assert found[0].name == "rate_too_high" and {"attention_logits", "entropy_collapse"} <= set(found[0].consequences)


def test_what_fails_with_the_width_names_its_leaves():
    (found,) = rules.judge(planted(widths=widths(embed="passes", hidden="fails: grows", output="passes")))
    assert "hidden" in found.sentence and found.where == "hidden" and found.measured == 1 and found.uncertainty == 0.01
    assert rules.judge(planted(widths=widths(embed="passes", output="not known: error too large"))) == ()


def test_a_rate_that_no_warm_up_helps_is_too_high():
    found = rules.judge(planted(**FAULTS["needs_warmup"] | {"trial__warmed": np.array([50.0, 40.0])}))
    assert found[0].name == "rate_too_high" and "needs_warmup" not in [f.name for f in found]


@pytest.mark.parametrize(
    "seen, name",
    [
        ({"function__unseen": 0.0, "function__blind": 0.0, "function__roots_spread": 0.9}, "cannot_see"),
        ({"function__unseen": 1.0, "function__roots_spread": 0.9}, "outputs_constant"),
        ({"function__mixing": 1.9}, "wrong_axis"),
        ({"function__roots_spread": 1e-6, "function__normalizes": True}, "norm_degenerate"),
        ({"function__rms": 0.0, "loss__has_head": True, "loss__floor_head": 2.3}, "outputs_constant"),
    ],
    ids=["order-alone", "form", "together", "divisor", "times-zero"],
)
def test_why_outputs_are_the_same_for_all_is_measured(seen, name):
    found = rules.judge(planted(function__spread_near=0.0, **seen, **STUCK))
    assert found[0].name == name, [(f.name, f.severity, f.consequences) for f in found]


@pytest.mark.parametrize(
    "seen, name, severity",
    [
        ({"data__missed": 1.0}, "inputs_constant", "certain"),
        ({"data__missed": 0.3, **STUCK}, "inputs_constant", "likely"),
        ({"data__missed": 0.01, **STUCK}, "inputs_constant", "hint"),
        (
            {"data__missed": 0.01, "data__ids": np.array([0, 1019, 19, 1.0]), "loss__finite_value": False},
            "not_finite",
            "certain",
        ),
    ],
)
def test_ids_past_the_end_of_their_table_are_told(seen, name, severity):
    found = rules.judge(planted(**{"data__kind": "integer", "data__ids": np.array([0, 1019, 19, 0.0])} | seen))
    ours = {f.name: f for f in found}[name]
    assert ours.severity == severity and "19" in ours.sentence and "%" in ours.sentence


def test_a_parametrization_says_nothing_of_this_networks_training():
    evidence = planted(widths=widths(hidden="fails: grows", output="fails: grows"))
    told = _examining.describe(evidence, rules.judge(evidence))
    assert told == _examining.describe(healthy(), ()) and rules.judge(evidence)


def test_what_ends_a_gradient_stands_in_the_finding():
    still = np.arange(LEAVES) < 8
    line = "stop_gradient in apply (model.py, line 7)"
    found = rules.judge(planted(signal__leaf_still=still, signal__stops=(line,), **STUCK))
    frozen = next(each for each in found if each.name == "frozen")
    assert frozen.severity == "likely" and line in frozen.sentence
    head = {"loss__has_head": True, "loss__floor_head": 1.5}
    found = rules.judge(planted(signal__leaf_still=np.ones(LEAVES, bool), signal__stops=(line,), **head, **STUCK))
    assert (found[0].name, found[0].severity) == ("frozen", "certain") and "head_against_loss" in found[0].consequences


def test_an_epsilon_above_gradients_that_vanished_is_their_consequence():
    lost = {"optimizer__lost": 0.05, "optimizer__direction": 0.1, "optimizer__degree_up": 0.3, **STUCK}
    for gone in ({"signal__state_rms": DOWN}, {"signal__gradient_rms": UP}, {"data__spread": 1e-4, "data__rms": 1e-4}):
        found = rules.judge(planted(**lost, **gone))
        assert found[0].name != "optimizer_epsilon" and "optimizer_epsilon" in found[0].consequences
    assert rules.judge(planted(**lost))[0].name == "optimizer_epsilon"


@pytest.mark.parametrize(
    "common, size, sorted_", [(0.99, 32, False), (0.5, 32, True), (1e-4, 1, False), (0.1, 4, False)]
)
def test_a_batch_of_one_label_is_sorted_only_where_chance_does_not_make_it(common, size, sorted_):
    found = rules.judge(planted(data__batch_labels=1, data__labels=2, data__common=common, facts__examples=size))
    assert ("data_order" in {f.name for f in found}) == sorted_


def test_few_gradients_that_are_left_are_no_clip():
    lost = {"optimizer__lost": 0.05, "optimizer__direction": 1.0, "optimizer__degree_up": 0.0, **STUCK}
    dead = np.array([0.1] * (LAYERS - 1) + [1.0])
    assert "clipped_to_nothing" in {f.name for f in rules.judge(planted(**lost))}
    assert "clipped_to_nothing" not in {f.name for f in rules.judge(planted(signal__dead=dead, **lost))}


def test_widths_add_up_between_skips_only():
    thin = {"signal__fan_in": np.full(LAYERS, 4.0), "chain__fan_in": np.full(LAYERS, 4.0), **STUCK}
    assert "too_narrow" in {f.name for f in rules.judge(planted(**thin))}
    broken = tuple(("skip",) if at % 2 else () for at in range(LAYERS))
    assert "too_narrow" not in {f.name for f in rules.judge(planted(chain__breaks=broken, **thin))}
    assert "too_narrow" in {f.name for f in rules.judge(planted(chain__breaks=(("normalization",),) * LAYERS, **thin))}


def test_a_head_that_is_dead_now_is_judged_by_what_it_can_reach():
    """Of outputs that are 0 for all because a last rectifier is shut, and that could not reach the targets open."""
    dead = np.array([0.1] * (LAYERS - 1) + [1.0])
    head = {"loss__has_head": True, "loss__floor_head": 1.5, "function__spread_near": 0.0, "function__rms": 0.0}
    found = rules.judge(planted(signal__dead=dead, **head, **STUCK))
    assert (found[0].name, found[0].severity) == ("head_against_loss", "certain") and "dead_units" in found[
        0
    ].consequences


BEHIND = empty(
    Ahead, examples=200, steps=np.array([480.0]), watched=np.ones(1), unseen=np.array([2.3]), score=np.array([0.1]), chance=0.1, shallow=0.9
)  # fmt: skip


def test_a_rate_too_low_is_told_from_what_shrinks_through_time():
    """Both where a training that stays behind moves its parameters; the rate first where it hardly moves them."""
    end = np.array([[2.399, 2.399], [2.398, 2.398], [2.39, 2.39], [2.31, 2.31]])
    steps = {**FAULTS["recurrent_vanishes"], "signal__gradient_rms": np.geomspace(1, 100, LAYERS), "trial__end": end}
    slow = {"kernel__forecast": np.linspace(2.4, 2.35, 20), "ahead": BEHIND, **steps}
    for reach, first in ((0.03, "rate_too_low"), (2.0, "recurrent_vanishes")):
        found = rules.judge(planted(optimizer__reach=reach, **slow))
        assert found[0].name == first, [(f.name, f.severity, f.consequences) for f in found]


def test_states_that_shrink_a_hundredfold_vanish_where_the_training_failed():
    shrunk = {"signal__state_rms": np.geomspace(1, 2e-3, LAYERS), **STUCK}
    assert "signal_vanishes" not in {f.name for f in rules.judge(planted(**shrunk))}
    assert "signal_vanishes" in {f.name for f in rules.judge(planted(ahead=BEHIND, **shrunk))}
