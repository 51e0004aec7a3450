"""Fits the probability that a network will train: a logistic law of the report's features, on the fitting split.

    python -m benchmarks.diagnosis.fit [RESULTS] [--write FILE]

    P(will train) = 1 / (1 + exp(-(intercept + sum of coefficient * feature)))

The results are those of `python -m benchmarks diagnosis --split fitting`. A Gaussian prior holds the law near PRIOR,
set by hand before any fit, so that what the cases do not tell stays as reason has it (after "the sign of the loss is
wrong" no trial makes training likely). How strongly is chosen by ten-fold cross-validation of the log-likelihood.
Two laws, {"early", "late"}, each {"source", "intercept": number, "coefficients": {feature: number}}: of the short trial
and the findings, where "trains badly" counts one half, and of what came of going on, where most of the budget was
spent. The audit weighs them by the share of the budget that was spent, and the second less where its score is in doubt.
"""

import argparse
import collections
import json
import pathlib
import sys

import numpy as np

from benchmarks.diagnosis import score
from benchmarks.diagnosis.__main__ import RESULTS, rows_of
from benchmarks.diagnosis.truth import read
from numdl.audit._examining import weighed

OUTCOME = {"will not train": 0.0, "trains badly": 0.5, "will train": 1.0}
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
PRIOR = {
    "intercept": 0.5, "trial": 2.0, "progress": 1.0, "faster": 1.0, "forecast": 1.0, "unseen": 1.0, "certain": -6.0,
    "head": -1.0, "likely": -3.0, "hints": -0.3,
}  # fmt: skip

LATE = {"later", "beside"}
ASIDE = {"spent", "doubt"}  # how the two are weighed
PRIOR_LATE = {"intercept": -7.0, "beside": 8.0, "later": 1.0}  # even at three quarters of what a shallow model reaches


def logistic(features, outcomes, penalty, prior=None, iterations=100):
    """(intercept, coefficients) of the greatest likelihood less penalty / 2 * |weights - prior|^2, by Newton's method.

    features [n, k], outcomes [n] between 0 and 1; prior [1 + k], the intercept first, zeros if None.
    """
    x = np.concatenate([np.ones((len(features), 1)), features], 1)
    prior = np.zeros(x.shape[1]) if prior is None else prior
    w = prior.copy()
    for _ in range(iterations):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        gradient = x.T @ (p - outcomes) + penalty * (w - prior)
        step = np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + (penalty + 1e-9) * np.eye(len(w)), gradient)
        w = w - step * min(1.0, 5.0 / max(np.abs(step).max(), 1e-12))
        if np.abs(step).max() < 1e-10:
            break
    return w[0], w[1:]


def likelihood(features, outcomes, law):
    """Mean log-likelihood."""
    z = np.clip(law[0] + features @ law[1], -30, 30)
    return float(np.mean(outcomes * -np.log1p(np.exp(-z)) + (1 - outcomes) * -np.log1p(np.exp(z))))


def cross_validated(features, outcomes, prior, folds=10):
    """The penalty under which what was left out is most likely."""
    fold = np.random.default_rng(0).permutation(len(outcomes)) % folds

    def held_out(penalty):
        parts = [(fold != k, fold == k) for k in range(folds)]
        laws = [(out, logistic(features[kept], outcomes[kept], penalty, prior)) for kept, out in parts if out.any()]
        return np.mean([likelihood(features[out], outcomes[out], law) for out, law in laws])

    return max(PENALTIES, key=held_out)


def fit(rows, truth):
    """{"early": law, "late": law} from rows that have features and a truth."""
    pairs = [(row, known) for row, known in score.paired(rows, truth) if row.get("features")]
    names = {name for row, _ in pairs for name in row["features"]}
    went_on = [(row, known) for row, known in pairs if row["features"].get("spent", 0.0) > 0.5]
    return {
        "early": _law(pairs, sorted(names - LATE - ASIDE), PRIOR, OUTCOME),
        "late": _law(went_on, sorted(LATE & names), PRIOR_LATE, {**OUTCOME, "trains badly": 0.0}),
    }


def _law(pairs, names, expected, outcome):
    """{"source", "intercept", "coefficients"}; features are of unit range."""
    raw = np.array([[row["features"].get(name, 0.0) for name in names] for row, _ in pairs])
    raw = np.nan_to_num(raw, nan=0.0, posinf=0.0, neginf=0.0)
    outcomes = np.array([outcome[known["verdict"]] for _, known in pairs])
    prior = np.array([expected["intercept"], *(expected.get(name, 0.0) for name in names)])
    if not pairs:
        return {
            "source": "set by hand",
            "intercept": expected["intercept"],
            "coefficients": dict(zip(names, prior[1:])),
        }
    penalty = cross_validated(raw, outcomes, prior)
    intercept, weights = logistic(raw, outcomes, penalty, prior)
    source = (
        f"fitted on {len(pairs)} cases of the fitting split; prior of strength {penalty:g} around the law set by hand"
    )
    coefficients = {name: round(float(weight), 4) for name, weight in zip(names, weights)}
    return {"source": source, "intercept": round(float(intercept), 4), "coefficients": coefficients}


def probability(laws, features):
    """What the audit would say by these laws; a feature that older rows have not is 0."""
    late = {**laws["late"], "coefficients": {"beside": 0.0, **laws["late"]["coefficients"]}}
    return weighed(laws["early"], late, collections.defaultdict(float, features))


def main(arguments):
    parser = argparse.ArgumentParser(prog="python -m benchmarks.diagnosis.fit", description=__doc__.split("\n")[0])
    parser.add_argument("results", nargs="?", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--write", type=pathlib.Path, help="such as numdl/audit/calibration.json")
    wanted, truth = parser.parse_args(arguments), read()["cases"]
    rows = [row for row in rows_of(wanted.results) if truth.get(row["name"], {}).get("split") == "fitting"]
    law = fit(rows, truth)
    fitted = [{**row, "probability": probability(law, row["features"])} for row in rows if row.get("features")]
    print(json.dumps(law, indent=1))
    kept = ("cases", "auc", "auc, all", "calibration")
    print(score.table({title: {k: score.figures(some, truth)[k] for k in kept}
                       for title, some in (("as it was", rows), ("fitted", fitted))}))  # fmt: skip
    if wanted.write:
        wanted.write.write_text(json.dumps(law, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
