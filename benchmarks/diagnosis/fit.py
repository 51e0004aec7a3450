"""Fits the probability that a network will train: a logistic law of the report's features, on the fitting split.

    python -m benchmarks.diagnosis.fit [RESULTS] [--write FILE]

    P(will train) = 1 / (1 + exp(-(intercept + sum of coefficient * feature)))

The results are those of `python -m benchmarks diagnosis --split fitting`. The penalty, on the squared coefficients of
features of deviation one, is chosen by ten-fold cross-validation of the log-likelihood. "trains badly" counts one half.
Written as {"intercept": number, "coefficients": {feature: number}}.
"""

import argparse
import json
import pathlib
import sys

import numpy as np

from benchmarks.diagnosis import score
from benchmarks.diagnosis.__main__ import RESULTS, rows_of
from benchmarks.diagnosis.truth import read

OUTCOME = {"will not train": 0.0, "trains badly": 0.5, "will train": 1.0}
PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0)


def logistic(features, outcomes, penalty, iterations=100):
    """(intercept, coefficients) that maximise the penalised likelihood, by Newton's method.

    features [n, k], outcomes [n] between 0 and 1; the intercept is not penalised.
    """
    x = np.concatenate([np.ones((len(features), 1)), features], 1)
    ridge, w = penalty * np.diag([1e-6] + [1.0] * features.shape[1]), np.zeros(x.shape[1])
    for _ in range(iterations):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        gradient = x.T @ (p - outcomes) + ridge @ w
        step = np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + ridge + 1e-9 * np.eye(len(w)), gradient)
        w = w - step * min(1.0, 5.0 / max(np.abs(step).max(), 1e-12))
        if np.abs(step).max() < 1e-10:
            break
    return w[0], w[1:]


def likelihood(features, outcomes, law):
    """Mean log-likelihood."""
    z = np.clip(law[0] + features @ law[1], -30, 30)
    return float(np.mean(outcomes * -np.log1p(np.exp(-z)) + (1 - outcomes) * -np.log1p(np.exp(z))))


def cross_validated(features, outcomes, folds=10):
    """The penalty under which what was left out is most likely."""
    fold = np.random.default_rng(0).permutation(len(outcomes)) % folds

    def held_out(penalty):
        parts = [(fold != k, fold == k) for k in range(folds)]
        return np.mean([likelihood(features[out], outcomes[out], logistic(features[kept], outcomes[kept], penalty))
                        for kept, out in parts if out.any()])  # fmt: skip

    return max(PENALTIES, key=held_out)


def fit(rows, truth):
    """{"intercept", "coefficients"} from rows that have features and a truth."""
    pairs = [(row, known) for row, known in score.paired(rows, truth) if row.get("features")]
    names = sorted({name for row, _ in pairs for name in row["features"]})
    raw = np.array([[row["features"].get(name, 0.0) for name in names] for row, _ in pairs])
    raw = np.nan_to_num(raw, nan=0.0, posinf=0.0, neginf=0.0)
    outcomes = np.array([OUTCOME[known["verdict"]] for _, known in pairs])
    mean, deviation = raw.mean(0), raw.std(0)
    scaled = (raw - mean) / np.where(deviation > 0, deviation, 1.0)
    intercept, weights = logistic(scaled, outcomes, cross_validated(scaled, outcomes))
    weights = np.where(deviation > 0, weights / np.where(deviation > 0, deviation, 1.0), 0.0)
    coefficients = {name: round(float(weight), 4) for name, weight in zip(names, weights)}
    return {"intercept": round(float(intercept - mean @ weights), 4), "coefficients": coefficients}


def probability(law, features):
    z = law["intercept"] + sum(weight * features.get(name, 0.0) for name, weight in law["coefficients"].items())
    return 1 / (1 + np.exp(-np.clip(z, -50, 50)))


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
