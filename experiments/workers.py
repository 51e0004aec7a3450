"""Many experiments, each in a worker process of its own: what one does to its process stops no other.

A worker that crashes, hangs or fails leaves a line on the scoreboard and its log; what is finished is kept, and a later
call takes it as it is.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import experiments
from experiments import runner, usage

PAUSE = 0.1  # seconds between two looks at the workers
GRACE = 5.0  # seconds from the request to end to the end by force


class Stopped(BaseException):
    """A signal asked this process to end; as with KeyboardInterrupt, nobody who catches what failed holds it up."""

    def __init__(self, number):
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclasses.dataclass
class Outcome:
    """What became of one experiment."""

    name: str
    run: object = None  # reporting.Run
    problem: str = ""  # why there is no run
    log: pathlib.Path | None = None
    seconds: float = 0.0
    maps: int | None = None
    reused: bool = False  # finished by an earlier call

    @property
    def good(self):
        """Whether there is a run and every claim of it holds."""
        return self.run is not None and self.run.held == len(self.run.claims)

    @property
    def score(self):
        """Its line of the scoreboard."""
        from numdl.reporting import Score

        if self.run is not None:
            return self.run.score
        where = f"{self.problem}: see {self.log}" if self.log else self.problem
        return Score(self.name, [], self.seconds, self.maps, problem=where)

    def summary(self):
        """Its entry in the JSON."""
        if self.run is not None:
            return self.run.summary() | {"reused": self.reused, "problem": None}
        about = {"name": self.name, "problem": self.problem, "log": None if self.log is None else str(self.log)}
        return about | {"seconds": round(self.seconds, 3), "peak_maps": self.maps, "claims": [], "reused": False}


@dataclasses.dataclass
class Worker:
    """A process at work on one experiment."""

    name: str
    process: subprocess.Popen
    folder: pathlib.Path  # where the run will be
    log: pathlib.Path
    slot: int
    start: float = dataclasses.field(default_factory=time.monotonic)
    maps: int | None = None
    counted: float = -math.inf

    @property
    def seconds(self):
        """Since its start."""
        return time.monotonic() - self.start


def reproduce(names, *, results, tiny=False, quick=False, jobs=1, timeout=None, again=False, told=lambda name: None):
    """Run the experiments, `jobs` at once, and yield their `Outcome`s in the order in which they end.

    Parameters
    ----------
    names : list of str     full names
    results : path          where the runs' folders go
    tiny : bool             the small version of each
    quick : bool            the quick version where an experiment has one, else the small one
    jobs : int              workers at once; each gets its share of the cores where the system can give it
    timeout : float         seconds that a worker may take; None for as long as it needs
    again : bool            also those that an earlier call finished for the same program, config and versions
    told : function         of a name; called when its worker starts
    Raises
    ------
    Stopped                 on SIGINT, SIGTERM or SIGHUP, after the workers are ended; what is finished is kept
    """
    waiting, working, jobs = list(names), [], max(1, min(jobs, len(names)))
    size = {"tiny": tiny, "quick": quick}
    with signals():
        try:
            while waiting or working:
                free = set(range(jobs)) - {worker.slot for worker in working}
                while waiting and free:
                    name = waiting.pop(0)
                    outcome, config = _before(name, size, results, again)
                    if outcome is not None:
                        yield outcome
                        continue
                    working.append(_start(name, config, results, size, free.pop(), jobs))
                    told(name)
                for worker in list(working):
                    outcome = _look(worker, timeout)
                    if outcome is not None:
                        working.remove(worker)
                        yield outcome
                time.sleep(PAUSE if working else 0)
        finally:
            _end(working)


def shares(cores, jobs):
    """The cores of each of `jobs` workers: equal shares, or one in turn where there are more workers than cores."""
    cores = sorted(cores)
    return [cores[slot::jobs] or [cores[slot % len(cores)]] for slot in range(jobs)]


def _before(name, size, results, again):
    """(outcome, config): the outcome where no worker is needed, or the config for one."""
    try:
        config = runner.configure(name, **size)
        kept = None if again else runner.finished(name, config, results=results, light=size["quick"])
    except Exception as error:  # whatever its file does on import; the others go on
        return Outcome(name, problem=f"cannot be loaded ({type(error).__name__}: {error})"), None
    return (None if kept is None else _reused(kept)), config


def _start(name, config, results, size, slot, jobs):
    from numdl import reporting

    folder = reporting.writable(pathlib.Path(results) / name) / reporting.digest(config)
    log = folder.with_suffix(".log")
    cores = shares(os.sched_getaffinity(0), jobs)[slot] if jobs > 1 and hasattr(os, "sched_getaffinity") else None
    asked = dataclasses.asdict(config)  # not made anew there: a default may be computed, and differ in its last digits
    job = {"name": name, "config": asked, "results": str(results), "cores": cores}
    job["folders"] = list(experiments.__path__)
    home = pathlib.Path(experiments.__file__).resolve().parent.parent
    path = os.pathsep.join([str(home), *filter(None, [os.environ.get("PYTHONPATH")])])
    with open(log, "wb") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.worker"],
            stdin=subprocess.PIPE, stdout=said, stderr=subprocess.STDOUT, start_new_session=True,
            env=os.environ | {"PYTHONPATH": path, "PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1"}
            | _precision() | _compiler(size),
        )  # fmt: skip
    with contextlib.suppress(BrokenPipeError):  # it has ended already: its exit code says how
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()
    return Worker(name, process, folder, log, slot)


def _precision():
    """The caller's choice between float32 and float64, which a flag of jax may hold rather than the environment."""
    import jax

    return {"JAX_ENABLE_X64": str(int(jax.config.jax_enable_x64))}


def _compiler(size):
    """Quick runs compile for most of their time: XLA leaves out what it does for the speed of long ones."""
    flags = os.environ.get("XLA_FLAGS", "")
    if not size["quick"] or runner.LIGHT.split("=")[0] in flags:
        return {}
    return {"XLA_FLAGS": f"{flags} {runner.LIGHT}".strip()}


def _look(worker, timeout):
    """The worker's outcome if it has ended or its time is over, else None."""
    if worker.seconds - worker.counted > usage.SECONDS:
        worker.counted = worker.seconds
        worker.maps = usage.larger(worker.maps, usage.maps(worker.process.pid))
    code = worker.process.poll()
    if code is None and (timeout is None or worker.seconds < timeout):
        return None
    if code is None:
        _end([worker])
        return _without(worker, f"timed out after {timeout:g} s")
    _close(worker)
    return _kept(worker) if code == 0 else _without(worker, ending(code, worker.log))


def _kept(worker):
    from numdl import reporting

    try:
        run = reporting.load(worker.folder)
    except (OSError, ValueError) as error:
        return _without(worker, f"left no result ({error})")
    log = worker.folder / "log.txt"
    os.replace(worker.log, log)
    return Outcome(worker.name, run, log=log, seconds=worker.seconds, maps=worker.maps)


def _reused(run):
    from experiments import pages

    if not (run.folder / "report.html").is_file():
        pages.write(run)
    return Outcome(run.name, run, seconds=run.seconds, reused=True)


def _without(worker, problem):
    return Outcome(worker.name, problem=problem, log=worker.log, seconds=worker.seconds, maps=worker.maps)


def ending(code, log):
    """Words for an exit code: the signal, or the last line that the worker said."""
    if code < 0:
        try:
            return f"crashed (signal {-code}, {signal.Signals(-code).name})"
        except ValueError:
            return f"crashed (signal {-code})"
    lines = pathlib.Path(log).read_text(encoding="utf-8", errors="replace").strip().split("\n")
    said = lines[-1].strip()[:200]
    return f"refused ({said.removeprefix('error: ')})" if code == 2 else f"crashed (exit code {code}: {said})"


def _end(working):
    """Ask the workers to end, then make them."""
    for number, grace in ((signal.SIGTERM, GRACE), (getattr(signal, "SIGKILL", signal.SIGTERM), GRACE)):
        for worker in working:
            _send(worker.process, number)
        limit = time.monotonic() + grace
        while any(worker.process.poll() is None for worker in working) and time.monotonic() < limit:
            time.sleep(PAUSE / 5)
    for worker in working:
        _close(worker)


def _send(process, number):
    """A signal to the worker and whatever it started."""
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, number)
            else:
                process.terminate()


def _close(worker):
    with contextlib.suppress(OSError):
        worker.process.stdin.close()


@contextlib.contextmanager
def signals():
    """While the body runs, the signals that end a process raise `Stopped` in it, if this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, frame):
        for other in numbers:
            signal.signal(other, signal.SIG_IGN)  # one is enough: the workers are being ended
        raise Stopped(number)

    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
