"""Examines the benchmark's cases and prints how good the diagnosis is.

    python -m benchmarks diagnosis [--split reporting] [--group planted] [--limit 100] [--baselines] [--repair]
                                   [--results FILE] [--score] [--jobs N] [--executor dask:ADDRESS|slurm]

The cases are examined in worker processes, started anew every 25 cases because compiled programs pile up; each gives a
line of JSON in the results, and a second call goes on where the first stopped. A case that raises or takes longer than
ten minutes is a crash. `--score` only reads the results. With `--jobs` or `--executor` many such workers are at work at
once, each with a file of results of its own beside RESULTS; what they leave when all is stopped is taken over.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

from benchmarks.diagnosis import baselines, collection, score
from benchmarks.diagnosis.truth import read
from experiments import farm
from numdl import parallel, reporting

EACH, PATIENCE = 25, 600
RESULTS = pathlib.Path(".cache") / "diagnosis" / "audit.jsonl"
COLUMNS = ("dense", "residual", "convolution", "recurrent", "attention")


def options(arguments):
    parser = argparse.ArgumentParser(prog="python -m benchmarks diagnosis", description=__doc__.split("\n")[0])
    parser.add_argument("--split", choices=["fitting", "reporting", "all"], default="reporting")
    parser.add_argument("--group", choices=list(collection.GROUPS))
    parser.add_argument("--limit", type=int, help="this many cases, of all groups in turn")
    parser.add_argument("--baselines", action="store_true", help="measure what the simpler tools look at, too")
    parser.add_argument("--repair", action="store_true", help="train what the repair makes of each sick case")
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--score", action="store_true", help="examine nothing")
    parser.add_argument("--jobs", type=int, default=1, help="workers at once")
    parser.add_argument("--executor", help="dask:ADDRESS or slurm: machines that see the results' folder")
    return parser.parse_args(arguments)


def chosen(wanted, truth):
    """The names asked for that have a truth, groups in turn."""
    known = collection.cases()
    names = [n for n in collection.interleaved() if n in truth and wanted.split in (known[n].split, "all")]
    names = [n for n in names if wanted.group in (None, known[n].group)]
    return names[: wanted.limit]


def rows_of(path):
    """The rows of a file; a last line that is still being written is none."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def examine(names, results, flags):
    """Workers, one after the other, until every name has its line."""
    results.parent.mkdir(parents=True, exist_ok=True)
    done = {row["name"] for row in rows_of(results)}
    left = [name for name in names if name not in done]
    while left:
        command = [sys.executable, "-m", "benchmarks.diagnosis.worker", str(results), *flags, *left[:EACH]]
        _watch(subprocess.Popen(command), results)
        done = {row["name"] for row in rows_of(results)}
        batch = [name for name in left[:EACH] if name not in done]
        if batch:  # the worker died at the first of them
            _append(results, {"name": batch[0], "crash": "the process died or did not end"})
            done.add(batch[0])
        left = [name for name in left if name not in done]
        print(f"{len(names) - len(left)} of {len(names)} cases", file=sys.stderr, flush=True)


def share(config):
    """A worker's part of the cases, in a file of its own: its path."""
    part = pathlib.Path(config["folder"]) / f"{reporting.digest(config)}.jsonl"
    examine(config["names"], part, config["flags"])
    return str(part)


def examine_in_shares(names, results, flags, jobs, executor):
    """The same by many workers at once, on an executor or on this machine."""
    folder = results.with_suffix(".parts").resolve()
    _taken_over(folder, results)
    done = {row["name"] for row in rows_of(results)}
    left = [name for name in names if name not in done]
    size = max(1, min(EACH, -(-len(left) // jobs)))
    shares = [left[place : place + size] for place in range(0, len(left), size)]
    configs = [{"names": names, "flags": flags, "folder": str(folder)} for names in shares]
    place = None if executor is None else farm.executor(executor, folder)
    for cell in parallel.sweep(share, configs, executor=place, jobs=jobs, told=lambda _: _taken_over(folder, results)):
        if cell.problem:
            print(cell.problem, file=sys.stderr)
    _taken_over(folder, results)


def _taken_over(folder, results):
    """Rows of the parts that the results do not have yet."""
    results.parent.mkdir(parents=True, exist_ok=True)
    known = {row["name"] for row in rows_of(results)}
    for part in sorted(folder.glob("*.jsonl")):
        for row in rows_of(part):
            if row["name"] not in known:
                _append(results, row)
                known.add(row["name"])


def _append(path, row):
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _watch(process, path):
    """Until the process ends, or no line has come for PATIENCE seconds."""
    size, since = None, time.monotonic()
    while process.poll() is None:
        now = path.stat().st_size if path.exists() else 0
        size, since = (now, time.monotonic()) if now != size else (size, since)
        if time.monotonic() - since > PATIENCE:
            process.kill()
        time.sleep(0.5)


def show(rows, truth):
    """The tables: all and by family, by group, the baselines, the mistakes."""
    print(score.table({"all": score.figures(rows, truth), **score.by(rows, truth, "family")}))
    print("\n" + score.table(score.by(rows, truth, "group")))
    if any("baselines" in row for row in rows):
        print("\n" + score.table(score.baseline_figures(rows, truth, baselines.ALARM)))
    print("\ntruth, verdict, probability, findings")
    for name, known, said, probability, findings in score.mistakes(rows, truth):
        print(f"{name:60s} {known:15s} {said:15s} {probability:.2f}  {', '.join(findings)}")
    for row in rows:
        if "crash" in row:
            print(f"{row['name']:60s} crash: {row['crash'][:100]}")


def main(arguments):
    wanted, truth = options(arguments), read()["cases"]
    names = chosen(wanted, truth)
    flags = [flag for flag in ("--baselines", "--repair") if getattr(wanted, flag[2:])]
    if not wanted.score and (wanted.jobs > 1 or wanted.executor):
        examine_in_shares(names, wanted.results, flags, max(wanted.jobs, 1), wanted.executor)
    elif not wanted.score:
        examine(names, wanted.results, flags)
    show([row for row in rows_of(wanted.results) if row["name"] in set(names)], truth)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
