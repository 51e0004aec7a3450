"""A session that lives for days: python -m tests.sessions [--count 500] [--seed 0]

Public functions of the registry, called one after the other in one process with other shapes and dtypes each time
round. Prints a line of JSON: calls, and by how much memory maps (Linux allows a process 65,530), open files and
resident memory grew.
"""

import argparse
import json
import os
import pathlib
import random
import sys
import time
import warnings

import jax
import numpy as np

from experiments import usage
from tests import registry

PARTS = ("analysis", "theory", "optimize", "krylov", "ode", "networks", "quadrature", "statistics", "trees", "audit")
LIMIT = 65_530
ROWS = 3  # examples in the data of the registry
TOLD = pathlib.Path("/proc/self/statm").exists()  # whether the system tells a process's maps, files and memory


def names(parts=PARTS):
    """What can be called without files and figures."""
    known = registry.calls()[0]
    return [name for name in known if name.startswith(parts) and not name.startswith(registry.NOT_RUN)]


def varied(arguments, turn):
    """The arguments with another number of examples, another dtype or both; the first time round as they are."""
    rows, single = (None, 4, 6, None, 5, 2, 7)[turn % 7], turn % 4 == 3

    def one(leaf):
        if not isinstance(leaf, np.ndarray) or leaf.dtype.kind not in "fi" or not leaf.ndim:
            return leaf
        made = np.resize(leaf, (rows, *leaf.shape[1:])) if rows and leaf.shape[0] == ROWS else leaf
        return made.astype(np.float32) if single and made.dtype == np.float64 else made

    return jax.tree.map(one, arguments)


def measured():
    """(memory maps, open files, bytes of resident memory) of this process."""
    resident = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return usage.maps(), len(os.listdir("/proc/self/fd")), resident


def session(count, seed, told=lambda name, maps: None, parts=PARTS):
    """Call `count` functions; a dict of what it took. A call that its door refuses for its shapes does not count."""
    functions, registered = registry.functions(), registry.calls()
    order, calls, refused, most = names(parts), 0, 0, 0
    random.Random(seed).shuffle(order)
    begin, start, turn, largest = measured(), time.monotonic(), 0, ("", 0)
    while calls < count:
        for name in order:
            before = usage.maps()
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    arguments = varied(registry.good_call(name, functions[name], registered), turn)
                    jax.block_until_ready(registry.calling(functions[name], arguments)())
            except (ValueError, TypeError):
                refused += 1
                continue
            calls += 1
            now = usage.maps()
            told(name, now)
            largest, most = max(largest, (name, now - before), key=lambda pair: pair[1]), max(most, now)
            if calls == count:
                break
        turn += 1
    maps, files, memory = (after - first for after, first in zip(measured(), begin))
    return {
        "calls": calls, "functions": min(calls, len(order)), "refused": refused, "maps": maps, "most maps": most,
        "maps a call": round(maps / calls, 1), "largest": largest, "files": files,
        "memory a call": round(memory / calls), "seconds": round(time.monotonic() - start),
    }  # fmt: skip


def main(arguments):
    """Run a session and print what it took."""
    parser = argparse.ArgumentParser(prog="python -m tests.sessions", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--loud", action="store_true", help="the maps after every call, on standard error")
    chosen = parser.parse_args(arguments)
    if not TOLD:
        parser.error("this system does not tell what a process takes: it needs /proc, as on Linux")
    jax.config.update("jax_enable_x64", True)
    told = (
        (lambda name, maps: print(f"{maps:6d} {name}", file=sys.stderr, flush=True)) if chosen.loud else lambda *_: None
    )
    found = session(chosen.count, chosen.seed, told)
    print(json.dumps(found), flush=True)
    return int(found["most maps"] > LIMIT // 2 or found["files"] > 2)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
