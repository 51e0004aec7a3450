"""One process of the benchmark: examines the cases named on its command line and appends a line of JSON for each.

python -m benchmarks.diagnosis.worker RESULTS [--baselines] [--repair] NAME ...
"""

import json
import os
import sys
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.diagnosis import baselines, collection, plain, scores, training
from benchmarks.diagnosis.truth import progress, read


def examined(setting):
    """The row's part that examine gives, and its report (None where it raised)."""
    from numdl import audit

    begin = time.perf_counter()
    try:
        report = audit.examine(setting.apply, setting.params, setting.batch, loss=setting.loss,
                               optimizer=setting.make_optimizer, learning_rate=setting.learning_rate,
                               steps=setting.steps, data=data(setting), evaluate=setting.evaluate,
                               stochastic=setting.stochastic, key=jax.random.key(0))  # fmt: skip
    except Exception as error:
        return {"crash": f"{type(error).__name__}: {error}"[:300]}, None
    findings = [[f.name, f.severity, list(getattr(f, "consequences", ()))] for f in report.findings]
    features = {name: float(value) for name, value in getattr(report, "features", {}).items()}
    return {"verdict": report.verdict, "probability": float(report.probability), "findings": findings,
            "features": features, "seconds": round(time.perf_counter() - begin, 2)}, report  # fmt: skip


def data(setting):
    """The whole training set: arrays, or batches in the order in which they come if they are never shuffled."""
    if setting.shuffle:
        return setting.data
    size = setting.batch_size
    return [tuple(leaf[i : i + size] for leaf in setting.data) for i in range(0, len(setting.data[0]), size)]


def repaired(setting, report, known):
    """What the repaired setting reaches: {"progress", "scores", "changes"} or {"crash"}."""
    begin = time.perf_counter()
    try:
        repair = report.repair()
        settings = [_cured(setting, repair)] * 2  # two orders of the batches
        found, _, _ = training.train(settings)
    except Exception as error:
        return {"crash": f"{type(error).__name__}: {error}"[:300]}
    ahead = progress(found, known["reference"], known["chance"])
    return {"progress": np.round(ahead, 3).tolist(), "scores": np.round(found, 4).tolist(),
            "changes": list(repair.changes), "by_hand": list(repair.by_hand),
            "seconds": round(time.perf_counter() - begin, 1)}  # fmt: skip


def _cured(setting, repair):
    """The setting that a Repair describes, scored on the same held-out examples."""
    case = repair.case
    x, y = setting.held_out
    held_out = repair.inputs(x).astype(x.dtype), _as_trained(case, y, repair.targets(y).astype(y.dtype))
    metric, calls = setting.metric, case.call
    if repair.apply is not None and setting.metric.__name__ == "accuracy_of_one":
        metric = lambda out, labels: jnp.maximum(  # noqa: E731
            scores.accuracy_above(0.0)(out, labels), scores.accuracy_above(0.5)(out, labels))  # fmt: skip
    own = setting.evaluate if repair.apply is None and not setting.stochastic else None
    evaluate = own if own is None else (lambda moving, x: own(case.whole(moving), x))
    if setting.stochastic:
        evaluate = lambda moving, x: setting.scored(case.whole(moving), x)  # noqa: E731
    examples = case.data if case.data is not None else setting.data
    return setting.changed(
        apply=(lambda moving, x, key: calls(moving, x, key)) if setting.stochastic else calls,
        params=case.moving, data=tuple(np.asarray(leaf) for leaf in examples), held_out=held_out, loss=case.loss,
        make_optimizer=lambda rate: case.transformation, learning_rate=float(case.rate), metric=metric,
        evaluate=evaluate, stochastic=setting.stochastic, shuffle=True,
        batch_size=max(setting.batch_size, min(32, int(case.examples or 0))),
    )  # fmt: skip


def _as_trained(case, own, moved):
    """Targets as the repair moves them; labels that were right already, when those of training were not, stay."""
    if case.data is None or own.dtype.kind not in "iu":
        return moved
    labels = np.unique(case.data[1])
    return own if np.isin(own, labels).all() and not np.isin(moved, labels).all() else moved


def main(arguments):
    path, *names = arguments
    options = {name for name in names if name.startswith("--")}
    truth = read()["cases"]
    for name in (name for name in names if name not in options):
        setting = collection.cases()[name].build(0)
        row, report = examined(setting)
        if "--baselines" in options:
            row["baselines"], row["baseline_seconds"] = baselines.scores(setting)
        sick = truth.get(name, {}).get("verdict", "will train") != "will train"
        if "--repair" in options and report is not None and sick:
            plain.PATCHES = True
            row["repair"] = repaired(setting, report, truth[name])
            plain.PATCHES = False
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps({"name": name, **row}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
