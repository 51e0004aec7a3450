"""`examine`: from what a user trains with to a report: evidence is gathered, judged, and a probability formed."""

import functools
import json
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Key, PyTree

from numdl.audit import _settings, measure, predict, rules, trial
from numdl.audit._measured import cases
from numdl.audit._reading import Reading
from numdl.audit.evidence import Evidence, Facts
from numdl.audit.report import Report

# What says nothing of this network's training: how others of its kind would do.
ASIDE = {"parametrization_does_not_transfer"}
BORNE = {"head_against_loss"}  # a certain loss of part of what could be learned: many networks train in spite of it
# With these the loss, and whatever is read of it, falls without anything being learned.
OF_THE_SCORE = {
    "labels_constant",
    "labels_out_of_range",
    "labels_unrelated",
    "loss_couples_examples",
    "loss_ignores_outputs",
    "wrong_sign",
}
CALIBRATION = pathlib.Path(__file__).parent / "calibration.json"
# Views that a user may leave out, and the findings that need them.
VIEWS = {
    "data": ("data_order", "labels_imbalanced", "labels_constant", "labels_unrelated", "batch_noise", "not_finite"),
    "evaluate": ("train_differs_from_evaluate",),
    "steps": ("rate_too_low", "schedule"),
    "rates": ("rate_too_high", "rate_too_low", "needs_warmup"),
    "layers": (
        "signal_vanishes",
        "signal_explodes",
        "gradient_vanishes",
        "gradient_explodes",
        "dead_units",
        "symmetry",
        "attention_logits",
        "entropy_collapse",
    ),
    "examples": ("loss_couples_examples", "wrong_axis", "cannot_see", "labels_unrelated", "no_nonlinearity"),
    "outputs": ("head_against_loss", "wrong_sign", "outputs_constant"),
    "widths": ("parametrization_does_not_transfer",),
}


def examine(
    apply: Callable,
    params: PyTree,
    batch: tuple,
    *,
    loss: Callable,
    optimizer: Any,
    learning_rate: float | None = None,
    steps: int | None = None,
    data: Any = None,
    evaluate: Callable | None = None,
    stochastic: bool = False,
    build: Callable | None = None,
    widths: Sequence[int] | None = None,
    key: Key[Array, ""],
) -> Report:
    """What is wrong with this network, how we know, and what to change: verdict, probability, findings, evidence.

    Nothing is guessed from names: the network, the loss and the optimizer are run on inputs made for the question. A
    view that is not given (the data, the evaluation function, the budget) excludes faults that stand in `unseen`.

    Parameters
    ----------
    apply : function            apply(params, x) -> outputs; with stochastic, apply(params, x, key)
    params : pytree             arrays; real floating leaves are what is trained
    batch : (x, targets)        pytrees of arrays [N, ...], one batch as it is trained on
    loss : function             loss(outputs, targets) -> scalar
    optimizer : str, function or GradientTransformation     "sgd", "momentum", "adam", "adamw"; rate -> transformation;
                                or a finished one, of which no other rates can be tried
    learning_rate : scalar      above 0; needed unless the transformation is finished
    steps : int                 training budget that "will train" speaks about; None: unknown
    data : (x, targets) or iterable of batches      the whole training set; an iterable is also looked at for its order
    evaluate : function         evaluate(params, x) -> outputs in evaluation mode
    stochastic : bool           whether apply takes a key
    build, widths : function, ints    build(width) -> (apply, params) or (apply, params, optimizer) at three or more
                                rising widths: does one rate serve them all?
    key : key
    Returns
    -------
    Report                      verdict, probability, findings, unseen, evidence; repair(), prove(steps), save(path)
    Raises
    ------
    ValueError, TypeError       an argument of another kind; learning_rate missing for a family of optimizers
    """
    with _settings.ours():
        case = cases.case(
            apply, params, batch, loss=loss, optimizer=optimizer, learning_rate=learning_rate, steps=steps, data=data,
            evaluate=evaluate, stochastic=stochastic, build=build, widths=widths, key=key,
        )  # fmt: skip
        return report(case)


def report(case: Any) -> Report:
    """The Report of a Case.

    Parameters
    ----------
    case : Case                 checked arguments of `examine`
    """
    evidence = gather(case)
    findings = rules.judge(evidence)
    features = describe(evidence, findings)
    probability = calibrated(features)
    return Report(
        _verdict(probability, evidence, findings), probability, findings, _unseen(evidence), evidence, features, case
    )


def gather(case: Any) -> Evidence:
    """Everything that is measured and predicted.

    Parameters
    ----------
    case : Case                 checked arguments of `examine`
    """
    found = measure.everything(case)
    seconds = found.pop("seconds")
    watch, program = measure.attending(case, found["signal"]), trial.Program(case)
    tried = trial.run(case, watch=watch, program=program)
    ahead = trial.ahead(case, program, found["loss"])
    found["attention"] = watch.record()
    seconds |= {"trial": tried.seconds, "ahead": ahead.seconds}
    began = time.perf_counter()
    sharp = measure.sharpness(case) if found["optimizer"].linear else math.nan
    seconds["sharpness"] = time.perf_counter() - began
    began = time.perf_counter()
    predicted = predict.everything(found["chain"], found["loss"], found["data"], found["optimizer"], case.rate, sharp)
    seconds["theory"] = time.perf_counter() - began
    facts = Facts(
        examples=case.examples,
        parameters=case.parameters,
        rate=case.rate,
        steps=case.steps,
        optimizer=case.name,
        stochastic=case.stochastic,
        order=case.in_order,
        views=_views(case, found),
    )
    unread = ("the loss does not depend on the targets' values: nothing was asked of them",)
    closed = ("a rule for the way back alone has no derivative of its own: the linearised network was not trained",)
    kernel = found["kernel"]
    notes = case.notes + (unread if found["loss"].targets_unread else ())
    notes += closed if kernel.examples and not kernel.forecast.size else ()
    return Evidence(facts=facts, trial=tried, ahead=ahead, predicted=predicted, seconds=seconds, notes=notes, **found)


def _views(case, found):
    have = {
        "data": case.data is not None,
        "evaluate": case.evaluate is not None,
        "widths": case.build is not None,
        "steps": case.steps is not None,
        "rates": case.make is not None,
        "layers": found["signal"] is not None,
        "examples": case.apart,
        "outputs": found["loss"].kind != "other",
    }
    return tuple(name for name, known in have.items() if known)


def _unseen(evidence):
    return tuple((view, names) for view, names in VIEWS.items() if view not in evidence.facts.views)


def describe(evidence: Evidence, findings: tuple) -> dict[str, float]:
    """What the probability is a function of: skills of trial, forecast and going on, and how strong the findings are.

    Parameters
    ----------
    evidence : Evidence
    findings : tuple of Finding
    """
    r = Reading(evidence)
    told = [f for f in findings if f.name not in ASIDE]
    # Where no shallow model can be set beside it, what a longer training reached counts as what the trial did.
    longer = math.nan if r.comparable else r.carried
    certain = {f.name for f in told if f.severity == "certain"}
    clip = lambda value, low, high: float(np.clip(np.nan_to_num(value, nan=0.0), low, high))  # noqa: E731
    return {
        "trial": clip(np.fmax(r.end, longer), -0.5, 1),
        "progress": clip(r.progress, -1, 1),
        "faster": clip(r.higher if r.budget > 4 else r.end, -0.5, 1),
        "forecast": clip(r.forecast, -0.5, 1),
        "unseen": clip(np.fmax(r.unseen if np.isfinite(r.unseen) else r.end, longer), -0.5, 1),
        "repeated": clip(r.repeated, -0.5, 1),
        "seen": clip(r.e.kernel.alignment / 10, -0.2, 1),
        "later": clip(r.later, -0.5, 1),
        "beside": clip(r.beside, -0.5, 1.2),
        "doubt": clip(r.doubt, 0, 1),
        # A certain fault of the labels or the loss is also one of the score: what was reached says nothing then.
        "spent": clip(r.spent, 0, 1) if (r.comparable or r.in_vain) and not certain - BORNE else 0.0,
        "certain": float(bool(certain - BORNE)),
        "head": float(bool(certain & BORNE)),
        "likely": float(any(f.severity == "likely" for f in told)),
        "hints": min(3.0, float(sum(f.severity == "hint" for f in told))) / 3,
    }


def calibrated(features: dict) -> float:
    """The probability of training by two logistic laws, `calibration.json`, weighed by what was seen of the end.

    One law is of what a short trial and the findings say, the other of what came of going on. The share of the budget
    that was spent is the second one's weight, less where few unseen examples leave its score in doubt. Both are fitted
    on part of the benchmark's fitting split (their "source" says on how many cases) by
    `python -m benchmarks.diagnosis.fit`.

    Parameters
    ----------
    features : dict             as `describe` gives them
    """
    return weighed(*_laws(), features)


def weighed(early_law: dict, late_law: dict, features: dict) -> float:
    """The probability by these two laws, "coefficients" and "intercept" of each.

    Parameters
    ----------
    early_law, late_law : dict  as in `calibration.json`
    features : dict             as `describe` gives them
    """
    early, late = _score(early_law, features), _score(late_law, features)
    # Of a number in doubt, the "moderated output" of MacKay 1992, Neural Computation 4.
    known = 1 / (1 + math.pi / 8 * (late_law["coefficients"]["beside"] * features["doubt"]) ** 2)
    score = (1 - features["spent"] * known) * early + features["spent"] * math.sqrt(known) * late
    return 1 / (1 + math.exp(-min(max(score, -50.0), 50.0)))


@functools.cache
def _laws():
    known = json.loads(CALIBRATION.read_text())
    return known["early"], known["late"]


def _score(law, features):
    return law["intercept"] + sum(weight * features[name] for name, weight in law["coefficients"].items())


def _verdict(probability, evidence, findings=()):
    if probability >= 0.5:
        return "will train"
    if any(f.severity == "certain" and f.name in OF_THE_SCORE for f in findings):
        return "will not train"
    r = Reading(evidence)
    if (r.comparable or r.in_vain) and r.spent > 0.5:
        return "trains badly" if r.beside > 0.5 else "will not train"
    learns = np.fmax(np.fmax(r.end, r.unseen), r.carried) > 0.2
    return "trains badly" if learns or probability > 0.25 else "will not train"
