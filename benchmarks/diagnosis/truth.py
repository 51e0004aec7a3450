"""Trains every case and what it is compared with, three seeds each, and writes truth.json: labels are measured.

    python -m benchmarks.diagnosis.truth [NAME ...]        without names: all that are not in the file yet

    progress = (score - chance) / (reference - chance)      held-out scores; one for each seed
    will not train: median progress < 0.5    trains badly: median < 0.9 or worst < 0.7    will train: the others

The reference is the median score of the repaired twin (planted faults: of the healthy network they were put into). For
configurations drawn at random it is the best of several rates of Adam for the same architecture, usually initialised;
if not even that comes half as far as a shallow network on the same data, then the shallow network's score. A control is
measured against that shallow network, too.
"""

import hashlib
import json
import os
import pathlib
import sys
import time

os.environ.setdefault("XLA_FLAGS", "--xla_llvm_disable_expensive_passes=true --xla_backend_optimization_level=1")

import jax
import numpy as np

from benchmarks.diagnosis import collection, plain, training

FILE = pathlib.Path(__file__).with_name("truth.json")
SEEDS = 3
VERDICTS = ("will not train", "trains badly", "will train")


def verdict(progress):
    """The words for the progress of several seeds."""
    middle, worst = float(np.median(progress)), float(np.min(progress))
    return VERDICTS[0] if middle < 0.5 else VERDICTS[1] if middle < 0.9 or worst < 0.7 else VERDICTS[2]


def progress(scores, reference, chance):
    return [(float(score) - chance) / max(reference - chance, 1e-3) for score in scores]


def fingerprint(setting):
    """Of the numbers that a setting is made of: arrays and sizes, not functions."""
    found = hashlib.sha256()
    arrays = jax.tree.leaves((setting.params, setting.data, setting.held_out))
    for leaf in map(np.asarray, arrays):
        rounded = np.round(leaf.astype(np.float64), 3) + 0.0  # the last digits depend on the processor
        found.update(repr((leaf.shape, leaf.dtype.name)).encode() + np.nan_to_num(rounded).tobytes())
    numbers = (setting.learning_rate, setting.steps, setting.batch_size, setting.shuffle, setting.stochastic)
    found.update(repr(numbers).encode())
    return found.hexdigest()[:12]


def read(path=FILE):
    """{"cases": {name: row}, "references": {name: row}}"""
    return json.loads(path.read_text()) if path.exists() else {"cases": {}, "references": {}}


def write(truth, path=FILE):
    """One line for each row; the file is replaced in one step."""

    def part(rows):
        return ",\n".join(f" {json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(rows.items()))

    text = ",\n".join(f"{json.dumps(name)}: {{\n{part(rows)}\n}}" for name, rows in truth.items())
    temporary = path.with_suffix(".new")
    temporary.write_text(f"{{\n{text}\n}}\n")
    temporary.replace(path)


def _trained(settings, twins=(), rates=()):
    """What came out of training: the settings' scores, and those of the twins at each rate."""
    scores, losses, seconds = training.train(settings, twins, rates)
    own, theirs = np.split(np.round(scores, 4), [len(settings)])
    row = {"scores": own.tolist(), **({"twin": theirs.tolist()} if len(theirs) else {})}
    return {**row, "finite": bool(np.isfinite(losses[: len(settings)]).all()), "seconds": round(seconds, 1)}


def _three(build):
    return [build(seed) for seed in range(SEEDS)]


def _cached(truth, name):
    if name not in truth["references"]:
        truth["references"][name] = _trained(_three(lambda seed: collection.reference(name, seed)))
    return float(np.median(truth["references"][name]["scores"]))


def _drawn(truth, case, settings):
    """Row and reference of a random configuration: its twin in the same program where batches are equal."""
    twin, rates = case.twins(0)
    if twin.batch_size == settings[0].batch_size:
        row = _trained(settings, [twin], rates)
    else:
        row = {**_trained(settings), "twin": _trained([twin], [twin], rates)["twin"]}
    best, standard, chance = max(row["twin"]), _cached(truth, case.standard), settings[0].chance
    if best - chance < 0.5 * (standard - chance):
        return {**row, "architecture": True}, standard
    return row, best


def measure(truth, case):
    """The row of one case."""
    settings = _three(case.build)
    first = settings[0]
    if case.twins:
        row, reference = _drawn(truth, case, settings)
    else:
        row = _trained(settings)
        if case.base:
            reference = _cached(truth, case.base)
        elif first.fixed:
            row["twin"] = _trained([s.twin() for s in settings])["scores"]
            reference = float(np.median(row["twin"]))
        else:
            reference = max(float(np.median(row["scores"])), _cached(truth, case.standard))
    ahead = progress(row["scores"], reference, first.chance)
    return {"group": case.group, "family": case.family, "cause": case.cause, "split": case.split,
            "verdict": verdict(ahead), "progress": np.round(ahead, 3).tolist(), "reference": round(reference, 4),
            "chance": round(first.chance, 4), **row, "fingerprint": fingerprint(first)}  # fmt: skip


def main(names):
    plain.PATCHES = True
    truth, known = read(), collection.cases()
    for name in names or [name for name in collection.interleaved() if name not in truth["cases"]]:
        begin = time.perf_counter()
        row = truth["cases"][name] = measure(truth, known[name])
        write(truth)
        jax.clear_caches()
        print(f"{name:44s} {row['verdict']:15s} {row['progress']} of {row['reference']:.2f} "
              f"({time.perf_counter() - begin:.0f} s)", flush=True)  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])
