"""Rules of a watched run on hand-made records: each fires on its fault, and on nothing near it that trains."""

import ast
import dataclasses
import pathlib

import numpy as np
import pytest

from numdl.audit._watch import conditions, rules
from numdl.audit._watch.conditions import Seen

HEALTHY = Seen(
    step=500, steps=500, batch=64, losses=500, start=2.3, recent=0.5, best=0.5, noise=0.02, sharpness=10.0, limit=20.0,
    residual=0.1, noise_scale=200.0,
    leaves=("a", "b"), leaf_rms=np.array([1.0, 0.1]), leaf_start=np.array([1.0, 0.01]),
    leaf_ratio=np.array([1e-3, 1e-2]), leaf_still=np.array([0, 0]), leaf_gradient=np.array([0.1, 0.1]),
    layers=("a", "c", "out"), dead=np.array([0.1, 0.4, np.nan]), dead_start=np.array([0.1, 0.1, np.nan]),
    saturated=np.array([np.nan, 0.3, 1.0]), saturated_start=np.array([np.nan, 0.2, 0.0]),
    rank=np.array([10.0, 5.0, 1.0]), rank_start=np.array([12.0, 8.0, 3.0]), cosine=np.array([0.1, 0.5, 0.99]),
    state=np.array([1.0, 2.0, 5.0]), state_start=np.array([1.0, 1.0, 1.0]), gradient=np.array([0.5, 0.7, 1.0]),
    attentions=("attention/0",), logit=np.array([20.0]), logit_start=np.array([2.0]), entropy=np.array([0.05]),
    entropy_start=np.array([0.9]), shut=np.array([0.0]),
)  # fmt: skip
STUCK = {"recent": 2.3, "best": 2.25}
SPIKE = {"spike_step": 490, "lasting": 10, "spike_size": 40.0, "spike_loss": 9.0, "moved": "b", "moved_by": 20.0}


def array(*values):
    return np.array(values, float)


# name, severity, where, what is other than in the healthy run
FAULTS = [
    ("not_finite", "certain", "c", {"lost_step": 480, "first_nonfinite": 1}),
    ("not_finite", "certain", "", {"lost_step": 480}),
    ("rate_too_high", "hint", "", {"sharpness": 40.0}),
    ("rate_too_high", "likely", "", {"sharpness": 40.0, **STUCK, "recent": 3.0}),
    ("rate_too_high", "likely", "b", SPIKE),
    ("rate_too_high", "hint", "", {**SPIKE, "moved": "", "moved_by": np.nan}),
    ("rate_too_high", "hint", "b", {**SPIKE, "lasting": 1, "spike_size": 9.0}),
    ("rate_too_high", "hint", "a", {"leaf_ratio": array(0.2, 0.01)}),
    ("rate_too_high", "likely", "a", {"leaf_ratio": array(0.4, 0.01), **STUCK}),
    ("rate_too_low", "hint", "", {"leaf_ratio": array(1e-8, 1e-9), **STUCK}),
    ("frozen", "certain", "", {"leaf_still": array(3, 5), "leaf_ratio": array(0, 0)}),
    (
        "frozen",
        "hint",
        "",
        {"leaf_still": array(3, 5), "leaf_ratio": array(0, 0), "steps": 20},
    ),  # gathered, or a warm-up
    ("frozen", "hint", "b", {"leaf_still": array(0, 5), "leaf_ratio": array(1e-3, 0)}),
    ("dead_units", "hint", "c", {"dead": array(0.1, 0.6, np.nan)}),
    ("dead_units", "likely", "c", {"dead": array(0.1, 0.6, np.nan), **STUCK}),
    ("dead_units", "likely", "c", {"dead": array(0.1, 0.98, np.nan)}),
    ("dead_units", "certain", "a", {"dead": array(1.0, 1.0, np.nan), **STUCK}),
    ("saturated", "hint", "c", {"saturated": array(np.nan, 0.6, 1.0)}),
    ("saturated", "likely", "c", {"saturated": array(np.nan, 0.95, 1.0)}),
    ("saturated", "hint", "attention/0", {"logit": array(200.0)}),
    ("saturated", "likely", "attention/0", {"logit": array(200.0), **STUCK}),
    ("saturated", "likely", "attention/0", {"logit": array(5e4)}),
    ("attention_logits", "hint", "attention/0", {"logit": array(60.0), "entropy": array(0.5)}),
    ("attention_logits", "likely", "attention/0", {"logit": array(60.0), "entropy": array(0.5), **STUCK}),
    ("attention_logits", "likely", "attention/0", {"logit": array(5e4), "entropy": array(0.5)}),
    ("entropy_collapse", "likely", "attention/0", {"entropy": array(0.001), **STUCK}),
    ("entropy_collapse", "hint", "attention/0", {"entropy": array(0.05), **STUCK}),
    ("mask", "hint", "attention/0", {"shut": array(0.25)}),
    ("correlation_collapses", "hint", "c", {"rank": array(10, 1.0, 1.0), "cosine": array(0.1, 1.0, 1.0)}),
    ("correlation_collapses", "likely", "c", {"rank": array(10, 1.0, 1.0), "cosine": array(0.1, 1.0, 1.0), **STUCK}),
    ("signal_explodes", "hint", "a", {"leaf_rms": array(20.0, 0.1)}),
    ("signal_explodes", "likely", "a", {"leaf_rms": array(20.0, 0.1), "state": array(50.0, 2.0, 5.0), **STUCK}),
    ("signal_explodes", "likely", "out", {"state": array(1.0, 2.0, 500.0), **STUCK}),
    ("gradient_vanishes", "hint", "a", {"gradient": array(1e-5, 1e-3, 1.0)}),
    ("gradient_vanishes", "likely", "a", {"gradient": array(1e-8, 1e-4, 1.0), **STUCK}),
    ("gradient_explodes", "hint", "a", {"gradient": array(1e5, 1e3, 1.0)}),
    ("gradient_explodes", "likely", "a", {"gradient": array(1e8, 1e3, 1.0), **STUCK}),
    ("batch_noise", "hint", "", {"noise_scale": 1e5, **STUCK}),
]


def found(**changes):
    return rules.judge(dataclasses.replace(HEALTHY, **changes))


@pytest.mark.parametrize("name, severity, where, changes", FAULTS, ids=[f"{n}-{s}-{w}" for n, s, w, _ in FAULTS])
def test_a_planted_fault_is_found(name, severity, where, changes):
    hits = [(f.name, f.severity, f.where) for f in found(**changes)]
    assert (name, severity, where) in hits, hits
    # Nothing else but what follows from it: the same fault seen otherwise.
    others = {f.name for f in found(**changes)} - {name}
    softmax = {"attention_logits", "entropy_collapse", "saturated"} if where == "attention/0" else {"entropy_collapse"}
    assert others <= {"correlation_collapses", "signal_explodes", *softmax}, hits


def test_a_healthy_run_has_no_finding():
    assert found() == []


@pytest.mark.parametrize(
    "changes",
    [
        {"sharpness": 24.0},  # at the edge of stability
        {"sharpness": 1e9, "limit": np.inf},  # the rate is 0 at first
        {"sharpness": 1e9, "limit": np.nan},
        {"dead": array(0.9, 0.4, np.nan), "dead_start": array(0.9, 0.1, np.nan)},  # so from the start
        {"leaf_rms": array(1.0, 0.9), "leaf_start": array(1.0, 1e-4)},  # a bias that began at zero
        {"leaf_still": array(3, 3), "leaf_gradient": array(0, 0)},  # nothing to learn
        {"entropy": array(0.5), "logit": array(60.0), "logit_start": array(40.0)},  # large from the start
        {"entropy": array(0.0), "logit": array(30.0)},  # a softmax that takes one key at modest logits
        {"start": -3.0, "recent": -9.0, "best": -9.0, "noise": 0.1},  # a loss below zero
        {"noise_scale": 1e6},  # late in a run that learns
    ],
)
def test_what_trains_is_left_alone(changes):
    assert found(**changes) == []


def test_nothing_is_concluded_from_nothing():
    assert rules.judge(Seen()) == []
    assert rules.judge(Seen(step=10**6, steps=10**6)) == []


def test_causes_come_first_and_say_what_they_are():
    findings = found(lost_step=3, first_nonfinite=1, dead=array(0.1, 0.6, np.nan), sharpness=30.0)
    assert findings[0].name == "not_finite"
    assert [f.weight for f in findings] == sorted((f.weight for f in findings), reverse=True)
    edge = next(f for f in findings if f.name == "rate_too_high")
    assert (edge.measured, edge.predicted, edge.uncertainty) == (30.0, 20.0, 0.1)
    assert "30" in edge.sentence and "20" in edge.sentence
    assert all(f.sentence and f.theory and f.source and f.remedy for f in findings)


def test_the_rules_import_neither_theory_nor_analysis():
    for module in (rules, conditions):
        imports = [
            node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
            for node in ast.walk(ast.parse(pathlib.Path(module.__file__).read_text()))
            if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        assert not [name for name in imports if name.startswith(("numdl.theory", "numdl.analysis", "jax"))]
