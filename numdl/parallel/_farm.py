"""A function at many configs on whatever runs functions, each finished cell in a file of its own."""

import concurrent.futures
import dataclasses
import functools
import hashlib
import multiprocessing
import os
import pathlib
import pickle
import time
import traceback
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax

from numdl import checks, reporting
from numdl.parallel import _cells
from numdl.typing import StrPath


@dataclasses.dataclass(frozen=True)
class Cell:
    """What became of one config."""

    config: Any  # as it was given
    digest: str  # of the config: the name of its file
    value: Any = None  # what the function returned: dicts, lists, numbers, texts, NumPy arrays
    problem: str = ""  # why there is no value
    seconds: float = 0.0
    reused: bool = False  # finished by an earlier call


def sweep(
    function: Callable[[Any], Any],
    configs: Sequence[Any],
    *,
    executor: Any = None,
    folder: StrPath | None = None,
    jobs: int | None = None,
    told: Callable[[Cell], Any] | None = None,
) -> list[Cell]:
    """The function's value at every config, a `Cell` each in their order: a parameter sweep, hyperparameter sweep.

    A cell that fails stops no other: its `problem` says why, and a later call tries it again. What is finished is one
    file, written whole under the digest of its config, and is not computed again: by no call, on no machine that sees
    the folder. Values are read back as they are returned here, records as dicts, tuples as lists.

    Parameters
    ----------
    function : function         of one config; of a module, so that other processes find it; jax is theirs to start
    configs : sequence          dataclasses or dicts of plain values, no two of them equal
    executor : object           with submit(function, argument) -> future with result(): `dask.distributed.Client`,
                                `submitit.AutoExecutor`, any of `concurrent.futures`; None: processes of this machine
    folder : path               of the cells' files, seen by all that compute; None: nothing is kept
    jobs : int                  processes at once where there is no executor; None: one for each core
    told : function             of each `Cell` when it is there, in the order in which they end
    Raises
    ------
    ValueError, TypeError       a config twice, a function or config that cannot be sent, no submit, a folder of another
                                function or of one that holds other arguments (`functools.partial`, an object)
    OSError                     the folder cannot be written
    """
    function, configs = checks.accepts("function", function, 1, "function(config)"), _configs(configs)
    jobs = checks.whole("jobs", _cores() if jobs is None else jobs)
    if executor is not None and not callable(getattr(executor, "submit", None)):
        raise checks.BadType(f"executor must have submit(function, argument), or be None; got {checks.shown(executor)}")
    told = (lambda cell: None) if told is None else checks.accepts("told", told, 1, "told(cell)")
    name = _name(function, _sent("function", function))
    folder = None if folder is None else reporting.writable(checks.path("folder", folder)).resolve()
    found = {}
    for digest, config in configs.items():
        kept = None if folder is None else _cells.read(folder, digest, name)
        if kept is not None:
            found[digest] = Cell(config, digest, kept["value"], seconds=kept["seconds"], reused=True)
            told(found[digest])
    left = {digest: config for digest, config in configs.items() if digest not in found}
    work = functools.partial(_computed, function, name, folder, bool(jax.config.jax_enable_x64))
    for digest, (value, problem, seconds) in _ended(work, left, executor, jobs):
        found[digest] = Cell(left[digest], digest, value, problem, seconds)
        told(found[digest])
    return [found[digest] for digest in configs]


def _configs(configs):
    """{digest: config}"""
    if isinstance(configs, str | bytes | dict) or not hasattr(configs, "__iter__"):
        raise checks.BadType(f"configs must be a sequence of dataclasses or dicts; got {checks.shown(configs)}")
    found = {}
    for place, config in enumerate(configs):
        digest = _digest(f"configs[{place}]", config)
        _sent(f"configs[{place}]", config)
        if digest in found:
            raise checks.BadValue(f"configs must differ from each other; got configs[{place}] twice: {config!r:.200}")
        found[digest] = config
    return found


def _digest(name, config):
    try:
        return reporting.digest(config)
    except TypeError as error:
        raise checks.BadType(f"{name} must be a dataclass or a dict of plain values; got {config!r:.80}") from error


def _sent(name, value):
    """The bytes that another process gets."""
    try:
        return pickle.dumps(value, protocol=4)  # one for all versions of Python: cells are found again by it
    except Exception as error:
        raise checks.BadType(
            f"{name} must be of a module, for other processes to find; got {checks.shown(value)}: {error}"
        ) from error


def _name(function, sent):
    """The function's name, with a digest of what it holds besides: a folder never mixes two learning rates.

    It is taken here, as a script's `__main__` has another name in the processes that it starts.
    """
    inner = function
    while isinstance(inner, functools.partial):
        inner = inner.func
    name = f"{getattr(inner, '__module__', '')}.{getattr(inner, '__qualname__', type(inner).__qualname__)}"
    return (
        name if isinstance(function, types.FunctionType) else f"{name} holding {hashlib.sha256(sent).hexdigest()[:12]}"
    )


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _computed(function, name, folder, x64, item):
    """(value, problem, seconds) of a cell, where it is computed; its file is written there."""
    digest, config = item
    start = time.perf_counter()
    try:
        with jax.enable_x64(x64):  # of this call alone: other users of the worker, or the caller, keep theirs
            value = _cells.plain(function(config), "function(config)")
        seconds = round(time.perf_counter() - start, 3)
        if folder is not None:
            _cells.write(folder, digest, {"function": name, "seconds": seconds, "value": value})
        return value, "", seconds
    except Exception as error:
        return None, _told(error), round(time.perf_counter() - start, 3)


def _told(error):
    """The error, and where in the function it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({pathlib.Path(frames[-1].filename).name}, line {frames[-1].lineno})" if len(frames) > 1 else ""
    return f"{type(error).__name__}: {error}{where}"


def _ended(work, left, executor, jobs):
    """(digest, outcome) of each cell when it ends."""
    if executor is None and left:
        yield from _in_processes(work, left, min(jobs, len(left)))
        return
    futures = {digest: executor.submit(work, (digest, config)) for digest, config in left.items()}
    try:
        for digest in _as_they_end(futures):
            yield digest, _result(futures.pop(digest))
    finally:
        for future in futures.values():
            getattr(future, "cancel", bool)()


def _result(future):
    try:
        return tuple(future.result())
    except Exception as error:  # the executor's own, of a worker that died
        return None, f"the worker did not return: {_told(error)}", 0.0


def _as_they_end(futures):
    """The names of futures that are done first, where they can tell; else in order."""
    left = dict(futures)
    while left:
        done = [name for name, future in left.items() if not hasattr(future, "done") or future.done()]
        yield from done
        for name in done:
            del left[name]
        time.sleep(0.05 if left and not done else 0)


def _in_processes(work, left, jobs):
    """Processes of this machine, begun anew, as jax's threads do not survive a fork; one that dies takes none along."""
    broken = []
    with _pool(jobs) as pool:
        try:
            futures = {pool.submit(work, item): item for item in left.items()}
            for future in concurrent.futures.as_completed(futures):
                try:
                    yield futures[future][0], future.result()
                except concurrent.futures.BrokenExecutor:
                    broken.append(futures[future])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for item in broken:  # one of them killed the pool: each alone, to see which
        yield item[0], _alone(work, item)


def _alone(work, item):
    with _pool(1) as pool:
        try:
            return pool.submit(work, item).result()
        except concurrent.futures.BrokenExecutor:
            return None, "the process died: killed, or out of memory", 0.0


def _pool(jobs):
    return concurrent.futures.ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))
