"""One side in a process of its own: PYTHON -m benchmarks.worker MODULE WORKLOAD SIDE SIZES.

Answers one JSON line at the start and one for each line that it reads: "run" for a call, "more" for what is asked once
at the end. Processor time counts all threads and ended children. A side that fails answers what it failed of.
"""

import importlib
import importlib.metadata
import json
import os
import re
import resource
import sys
import time

SHORTEST = 0.02  # seconds: calls are repeated until they take so long
PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "optax", "flax", "diffrax", "matfree", "torch", "torchdiffeq",
            "pyhessian", "curvlinops-for-pytorch", "neural-tangents", "equinox")  # fmt: skip


def main(module, workload, side, sizes):
    """Serve one side."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    try:
        serve(answers, importlib.import_module(module), workload, side, json.loads(sizes))
    except Exception as problem:
        lines = str(problem).strip().splitlines() or [""]
        answer(answers, error=f"{type(problem).__name__}: {lines[0][:160]}")


def serve(answers, family, workload, side, sizes):
    from benchmarks import rows

    workload = next(one for one in family.WORKLOADS if one.name == workload)
    made = workload.at(side).make(workload.problem(**sizes))
    run = made if isinstance(made, rows.Run) else rows.Run(made)
    base, repeats, result = memory("VmRSS"), 1, None
    answer(answers, ready=True, versions=versions())
    for number, line in enumerate(sys.stdin):
        if line.strip() == "more":
            plan = run.plan and run.plan()
            answer(answers, numbers=run.numbers(result), plan=plan)
            continue
        if number:
            reset_peak()
        cpu, elapsed, result = timed(run.call, repeats)
        scale = run.scale if number else 1.0  # a first call is what one waits for, whatever it computes
        answer(answers, cpu=scale * cpu, elapsed=scale * elapsed, peak=memory("VmHWM") - base)
        if number == 1:
            repeats = max(1, min(1000, round(SHORTEST / max(elapsed, 1e-6))))


def answer(answers, **content):
    answers.write(json.dumps(content) + "\n")
    answers.flush()


def timed(call, repeats):
    """(processor seconds, elapsed seconds, result) of one call."""
    begin = time.perf_counter(), processor()
    for _ in range(repeats):
        result = waited(call())
    return (processor() - begin[1]) / repeats, (time.perf_counter() - begin[0]) / repeats, result


def processor():
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def waited(result):
    if "jax" in sys.modules:
        sys.modules["jax"].block_until_ready(result)
    return result


def memory(name):
    """Bytes now (VmRSS) or at the peak (VmHWM); elsewhere than on Linux the peak of the process."""
    try:
        with open("/proc/self/status") as status:
            return 1024 * int(re.search(rf"{name}:\s+(\d+)", status.read()).group(1))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak():
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def versions():
    """Of the packages that count and that this side has imported."""
    found = {"python": sys.version.split()[0]}
    for name in PACKAGES:
        if name.split("-for-")[0].replace("-", "_") in sys.modules:
            found[name] = importlib.metadata.version(name)
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
