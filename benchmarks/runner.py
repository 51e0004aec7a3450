"""Runs workloads: each side in its own process, all of them in turn within every round; rows, table, JSON.

A row says what one side took: processor seconds of the first call (compilation included) and of later ones (median and
quartiles), the median over the rounds of its ratio to numdl in the same round, the peak of memory in a later call above
what the process held before the first. A side that fails, is not installed or does not answer in time is a row, too.
"""

import contextlib
import dataclasses
import datetime
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import threading

ROOT = pathlib.Path(__file__).resolve().parents[1]
AIM_LIMIT, AIM_PEER = 1.15, 1.0
STEPS = (1, 2, 4)  # factors of a size for its growth


class Failure(Exception):  # noqa: N818
    """A side gave no answer; the message says why."""


@dataclasses.dataclass
class Settings:
    """How to run."""

    rounds: int = 5
    seconds: float = 120.0  # after so long no new round of a workload is begun, when there are three
    limit: float = 300.0  # longest wait for one answer
    tiny: bool = False
    growth: bool = False
    sides: tuple = ()  # words in the sides' names; empty: all
    pythons: dict = dataclasses.field(default_factory=lambda: {"here": sys.executable})


class Worker:
    """A side behind two pipes."""

    def __init__(self, module, workload, side, sizes, settings):
        python = settings.pythons.get(side.python)
        if not python:
            raise Failure(f"not installed: no Python of the environment {side.python!r} (make bench-peers)")
        command = [python, "-W", "ignore", "-m", "benchmarks.worker", module, workload.name, side.name]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_ENABLE_COMPILATION_CACHE": "false"}
        self.limit, self.late = settings.limit, False
        pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        sizes = json.dumps(dict(sizes))
        try:
            self.process = subprocess.Popen([*command, sizes], cwd=ROOT, text=True, env=environment, **pipes)
        except OSError as problem:
            raise Failure(f"not installed: {problem}") from problem
        self.errors = []
        self.listener = threading.Thread(target=lambda: self.errors.extend(self.process.stderr), daemon=True)
        self.listener.start()
        self.versions = self.read()["versions"]

    def ask(self, what):
        """The answer to "run" or "more"."""
        with contextlib.suppress(BrokenPipeError):  # `read` says why
            self.process.stdin.write(what + "\n")
            self.process.stdin.flush()
        return self.read()

    def read(self):
        timer = threading.Timer(self.limit, self.give_up)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        found = json.loads(line) if line else {"error": self.epitaph()}
        if "error" in found:
            self.close()
            raise Failure(found["error"])
        return found

    def give_up(self):
        self.late = True
        self.process.kill()

    def epitaph(self):
        if self.late:
            return f"no answer in {self.limit:.0f} s"
        code = self.process.wait()
        self.listener.join()
        said = [line.strip() for line in self.errors if line.strip()]
        return f"ended with code {code}" + (f": {said[-1][:160]}" if said else "")

    def close(self):
        for pipe in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.listener.join(5)
        self.process.stderr.close()


def measure(module, workload, settings):
    """A workload of that module as a dict for JSON: sizes, rows, growth, verdict."""
    sizes = dict(workload.tiny if settings.tiny else workload.sizes)
    wanted = [side for side in workload.sides if _wanted(side, settings)]
    answers, problems, ends, versions = _rounds(module, workload, wanted, sizes, settings)
    rows = [_row(workload, side, answers, problems, ends) for side in wanted]
    found = {"family": module.rpartition(".")[2], "workload": workload.name, "sizes": sizes, "rows": rows} | _verdict(
        rows
    )
    if settings.growth:
        found["growth"] = [_growth(module, workload, size, sizes, settings) for size in workload.laws]
    return found | {"versions": versions}


def _wanted(side, settings):
    return not settings.sides or any(word in side.name for word in settings.sides)


def _rounds(module, workload, sides, sizes, settings):
    workers, answers, problems, ends, versions = {}, {}, {}, {}, {}

    def asked(side, what):
        try:
            if side.name not in workers:
                workers[side.name] = Worker(module, workload, side, sizes, settings)
                versions.setdefault(side.python, {}).update(workers[side.name].versions)
            return workers[side.name].ask(what)
        except Failure as problem:
            problems[side.name] = str(problem)
            return None

    spent = 0.0
    try:
        for number in range(settings.rounds + 2):  # the first compiles, the second finds how often to repeat
            for side in _turned(sides, number):
                if side.name not in problems and (found := asked(side, "run")):
                    answers.setdefault(side.name, []).append(found)
                    spent += found["elapsed"]
            if spent > settings.seconds and number >= 4:
                break
        for side in sides:
            if side.name not in problems:
                ends[side.name] = asked(side, "more")
    finally:
        for worker in workers.values():
            worker.close()
    return answers, problems, ends, versions


def _turned(sides, number):
    """Another side begins in every round."""
    shift = number % len(sides) if sides else 0
    return [*sides[shift:], *sides[:shift]]


def _row(workload, side, answers, problems, ends):
    row = {"side": side.name, "environment": side.python, "problem": problems.get(side.name)}
    if row["problem"]:
        return row
    first, later = answers[side.name][0], answers[side.name][2:]
    own = [one["cpu"] for one in later]
    row |= {"first": first["cpu"], "cpu": _spread(own), "elapsed": _spread([one["elapsed"] for one in later])}
    row |= {"peak_bytes": max(one["peak"] for one in later), "planned_bytes": ends[side.name]["plan"]}
    row |= {"rounds": len(own), "numbers": ends[side.name]["numbers"][:16]}
    base = workload.sides[0].name
    if base in answers and base not in problems:
        row["ratio"] = _spread([a / max(b["cpu"], 1e-9) for a, b in zip(own, answers[base][2:])])
        row["difference"] = _difference(row["numbers"], ends[base]["numbers"][:16]) if workload.agree else None
        row["agrees"] = None if row["difference"] is None else row["difference"] <= workload.agree
    return row


def _spread(values):
    """[median, lower quartile, upper quartile]"""
    if len(values) < 2:
        return [values[0]] * 3
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return [middle, low, high]


def _difference(ours, theirs):
    if len(ours) != len(theirs):
        return math.inf
    scale = max((abs(a) for a in theirs), default=0.0) or 1.0
    return max((abs(a - b) / scale if math.isfinite(a) else math.inf for a, b in zip(ours, theirs)), default=0.0)


def _verdict(rows):
    """numdl's time over the best hand-written kernel's and over the fastest peer's, and whether that is the aim."""
    told = [row for row in rows[1:] if row.get("ratio") and row.get("agrees") is not False]
    limits = [row for row in told if row["side"].startswith("limit")]
    peers = [row for row in told if not row["side"].startswith(("limit", "numdl"))]
    over = {"over_limit": limits, "over_fastest_peer": peers}
    found = {name: 1 / min(row["ratio"][0] for row in group) if group else None for name, group in over.items()}
    aims = [(found["over_limit"], AIM_LIMIT), (found["over_fastest_peer"], AIM_PEER)]
    known = [value <= aim for value, aim in aims if value]
    return found | {"met": all(known) if known else None}


def _growth(module, workload, size, sizes, settings):
    """Slope of log time against log size over the last doubling, of numdl's first and later calls."""
    first, later = [], []
    try:
        for factor in STEPS:
            worker = Worker(module, workload, workload.sides[0], sizes | {size: factor * sizes[size]}, settings)
            taken = [worker.ask("run")["cpu"] for _ in range(2 + max(2, settings.rounds // 2))]
            worker.close()
            first.append(taken[0])
            later.append(min(taken[1:]))
    except Failure as problem:
        return {"size": size, "demanded": workload.laws[size], "problem": str(problem)}
    slopes = {"slope": _slope(later), "slope_first": _slope(first)}
    return {"size": size, "demanded": workload.laws[size], "cpu": later, "first": first, **slopes}


def _slope(values):
    return math.log2(values[-1] / values[-2])


def machine():
    """What a reader must know of where it was measured."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    about = {"cpus": os.cpu_count(), "cpus_used": cores, "machine": platform.machine(), "system": platform.system()}
    return {"date": datetime.date.today().isoformat(), **about}


def save(path, content):
    """The whole file or none of it."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(unfinished, path)
