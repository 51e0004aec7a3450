"""Experiments on machines that see one folder, through whatever gives them work: dask, or SLURM by submitit.

A machine that gets an experiment runs it in a worker process of its own, as `reproduce --jobs` does here, and leaves
the run's folder where all see it. The repository must be importable there: start its workers from here, or set
PYTHONPATH.
"""

import importlib
import pathlib

import experiments
from experiments import workers
from experiments.fields import UsageError


def executor(text, folder):
    """What `--executor` names: dask:ADDRESS, slurm, slurm:PARTITION, or local (submitit's own, of this machine)."""
    kind, _, detail = text.partition(":")
    try:
        if kind == "dask" and detail:
            return importlib.import_module("distributed").Client(detail)
        if kind in ("slurm", "local") and (kind == "slurm" or not detail):
            found = importlib.import_module("submitit").AutoExecutor(
                folder=pathlib.Path(folder) / ".jobs", cluster=kind
            )
            found.update_parameters(timeout_min=24 * 60, **({"slurm_partition": detail} if detail else {}))
            return found
    except ImportError as error:
        raise UsageError(f"--executor {text} needs a package that is not there: {error}") from error
    except (OSError, RuntimeError) as error:  # nobody at the address, no sbatch
        raise UsageError(f"--executor {text}: {error}") from error
    raise UsageError(f"--executor must be dask:ADDRESS, slurm, slurm:PARTITION or local; got {text!r}")


def cell(config):
    """One experiment, where this is called: the run's folder."""
    experiments.__path__ = config["folders"]
    settings = {name: config[name] for name in ("results", "tiny", "quick", "timeout", "again")}
    (outcome,) = workers.reproduce([config["name"]], **settings)
    if outcome.run is None:
        raise RuntimeError(outcome.score.problem)
    return {"folder": str(outcome.run.folder), "reused": outcome.reused, "maps": outcome.maps}


def reproduce(names, *, results, executor, tiny=False, quick=False, timeout=None, again=False, heard):
    """Run the experiments on an executor; `heard` gets their `workers.Outcome`s in the order in which they end."""
    from numdl import parallel

    results = str(pathlib.Path(results).resolve())
    shared = {"results": results, "tiny": tiny, "quick": quick, "timeout": timeout, "again": again}
    configs = [{"name": name, "folders": list(map(str, experiments.__path__)), **shared} for name in names]
    with workers.signals():
        parallel.sweep(cell, configs, executor=executor, told=lambda done: heard(_outcome(done)))


def _outcome(done):
    from numdl import reporting

    name = done.config["name"]
    if done.problem:
        return workers.Outcome(name, problem=done.problem, seconds=done.seconds)
    try:
        run = reporting.load(done.value["folder"])
    except (OSError, ValueError) as error:
        return workers.Outcome(name, problem=f"left no result that is seen here ({error})", seconds=done.seconds)
    return workers.Outcome(name, run, seconds=done.seconds, maps=done.value["maps"], reused=done.value["reused"])
