"""Workloads whose sides fail in every way, for tests/test_benchmarks.py; NumPy only, so that a process is quick."""

import os
import time

import numpy as np

from benchmarks.rows import Run, Side, Workload


def problem(count):
    return np.arange(float(count))


def raising(x):
    raise ValueError("no such thing\nand more")


def missing(x):
    import a_package_that_nobody_has  # noqa: F401


def failing_later(x):
    calls = []

    def call():
        calls.append(1)
        if len(calls) > 2:
            raise RuntimeError("worn out")
        return x.sum()

    return call


def chatty(x):
    print("not an answer")
    os.system("echo nor this")
    return lambda: x.sum()


def large(x):
    """80 MB for the time of a call."""
    return Run(lambda: float(np.ones(10_000_000).sum()) * 0 + x.sum(), plan=lambda: 80_000_000)


SIDES = (
    Side("numdl", lambda x: lambda: x.sum()),
    Side("limit: the same", lambda x: lambda: np.add.reduce(x)),
    Side("chatty", chatty),
    Side("large", large),
    Side("wrong", lambda x: lambda: 2 * x.sum()),
    Side("nan", lambda x: lambda: np.nan),
    Side("raises", raising),
    Side("misses a package", missing),
    Side("fails later", failing_later),
    Side("dies", lambda x: lambda: os._exit(3)),
    Side("elsewhere", lambda x: lambda: x.sum(), "torch"),
    Side("no such Python", lambda x: lambda: x.sum(), "tangents"),
)
WORKLOADS = (
    Workload("a sum", problem, SIDES, {"count": 1000}, {"count": 10}, laws={"count": 1}, agree=1e-9),
    Workload("asleep", problem, (Side("numdl", lambda x: lambda: time.sleep(600)),), {"count": 1}, {"count": 1}),
    Workload("a broken sum", problem, (Side("numdl", raising), SIDES[1]), {"count": 10}, {"count": 10}, agree=1e-9),
)
