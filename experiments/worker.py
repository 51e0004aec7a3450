"""One experiment in a process of its own: python -m experiments.worker, the job as a line of JSON on standard input.

The result is the run's folder. The exit code is 0 when it is there, whether its claims hold or not, and 2 for a config
that is refused. The process ends when its standard input does: a worker does not outlive who started it.
"""

import json
import os
import sys
import threading

import experiments
from experiments import replay, runner


def main():
    """Read the job, run it, and return the exit code."""
    job = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with, args=(sys.stdin,), daemon=True).start()
    if job["cores"]:
        os.sched_setaffinity(0, job["cores"])  # before numpy or jax count them
    experiments.__path__ = job["folders"]
    try:
        runner.execute(job["name"], replay.restored(job["name"], job["config"]), results=job["results"])
    except runner.UsageError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _end_with(stream):
    stream.read()
    os._exit(3)


if __name__ == "__main__":
    sys.exit(main())
