"""Several processes as one program: how they find each other, and who writes."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from numdl import checks

# What launchers say of the number of processes: for the case that jax finds no coordinator among them.
COUNTS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "WORLD_SIZE")


class Processes(NamedTuple):
    """Who this process is among how many."""

    rank: int
    count: int


def connect(
    address: str | None = None, *, count: int | None = None, rank: int | None = None, timeout: int = 300
) -> Processes:
    """Join the processes of this program, once, before jax's first array: each runs the same script.

    Parameters
    ----------
    address : str               "host:port" of process 0; None: as the launcher says, where jax knows it (SLURM, Open
                                MPI, a cloud's TPU or cluster); a program that no launcher started is alone
    count, rank : int           processes, and which this is; with an address
    timeout : int               seconds to wait for the others
    Returns
    -------
    Processes                   rank, count
    Raises
    ------
    ValueError, TypeError       an address without count and rank, a launcher of many processes that jax does not know
    RuntimeError                the others did not come, or jax has begun already (jax's own message)
    Source: `jax.distributed.initialize`.
    """
    timeout = checks.whole("timeout", timeout)
    if address is None:
        return _launched(count, rank, timeout)
    if not isinstance(address, str) or not address.rpartition(":")[2].isdigit():
        raise checks.BadType(f"address must be 'host:port' of process 0; got {checks.shown(address)}")
    count = checks.whole("count", count)
    rank = checks.whole("rank", rank, least=0, most=count - 1)
    jax.distributed.initialize(address, count, rank, initialization_timeout=timeout)
    return Processes(jax.process_index(), jax.process_count())


def is_first() -> bool:
    """Whether this is process 0, the one that prints and writes.

    Source: `jax.process_index`.
    """
    return jax.process_index() == 0


def first(function: Callable[..., Any], *arguments: Any) -> Any:
    """function(*arguments) on process 0 only, while the others wait: its value there, None elsewhere.

    Parameters
    ----------
    function : function         of the arguments; if it raises, every process does
    arguments : any             its arguments; what is spread over processes is to be gathered before
    Raises
    ------
    RuntimeError                on the others, if process 0 raised
    TypeError                   not a function
    """
    checks.function("function", function)
    value, error = None, None
    if is_first():
        try:
            value = function(*arguments)
        except Exception as raised:
            error = raised
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        failed = bool(multihost_utils.broadcast_one_to_all(np.asarray(error is not None)))
        if failed and error is None:
            raise RuntimeError("process 0 could not do it: its error is in its own output")
    if error is not None:
        raise error
    return value


def _launched(count, rank, timeout):
    for name, value in (("count", count), ("rank", rank)):
        if value is not None:
            raise checks.BadValue(f"{name} must be None without an address; got {checks.shown(value)}")
    told = next(((name, os.environ[name]) for name in COUNTS if os.environ.get(name, "1") != "1"), None)
    try:
        jax.distributed.initialize(initialization_timeout=timeout)
    except ValueError as error:  # no launcher that it knows
        if told is not None:
            raise checks.BadValue(
                f"address must be given where jax finds no coordinator; got None, and {told[0]}={told[1]}: {error}"
            ) from error
        return Processes(0, 1)
    return Processes(jax.process_index(), jax.process_count())
