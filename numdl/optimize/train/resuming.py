"""A run as named arrays for a checkpoint, and back; what two runs must share for one to go on with the other."""

import os
import warnings

import jax
import numpy as np

from numdl.optimize.train import checkpoints
from numdl.optimize.train.plan import Best, Log, Run


def packed(plan, run):
    """A run as named arrays."""
    loss, observed = run.log.arrays(plan.dtype)
    arrays = {"loss": loss, "best value": np.array(run.best.value), "best misses": np.array(run.best.misses)}
    about = {"step": run.step, "stopped": run.log.stopped, "detail": run.log.detail, "names": list(observed)}
    for index, (seen, values) in enumerate(observed.values()):
        arrays |= {f"seen {index}": seen, f"values {index}": values}
    arrays |= checkpoints.flat("state ", run.state) | checkpoints.flat("best ", run.best.params)
    arrays["about"] = checkpoints.text({**about, "identity": _identity(plan), "environment": _environment()})
    return arrays


def restored(plan, store):
    """The run that a folder holds, or None."""
    arrays = store.latest() if store else None
    if arrays is None:
        return None
    about = checkpoints.untext(arrays["about"])
    _check_same(plan, about)
    state = checkpoints.unflat("state ", arrays, plan.start)
    params = checkpoints.unflat("best ", arrays, plan.start.params)
    best = Best(params, float(arrays["best value"]), int(arrays["best misses"]))
    observed = {
        name: (arrays[f"seen {index}"].tolist(), list(arrays[f"values {index}"]))
        for index, name in enumerate(about["names"])
    }
    over = about["stopped"] == "stopped early" or about["step"] == plan.steps
    log = Log([arrays["loss"]], observed, about["stopped"] if over else "", about["detail"] if over else "")
    return Run(about["step"], state, best, log)


def _check_same(plan, about):
    for name, here in _identity(plan).items():
        if about["identity"].get(name) != checkpoints.untext(checkpoints.text(here)):
            raise ValueError(
                f"folder must be new or hold a run of the same {name}; got one of other {name}: "
                "choose another folder, or the arguments of that run"
            )
    if about["step"] > plan.steps:
        raise ValueError(f"steps must be >= {about['step']}, which the folder's run has taken; got {plan.steps}")
    there, now = about["environment"], _environment()
    changed = [f"{name} {there.get(name)} -> {now[name]}" for name in now if there.get(name) != now[name]]
    if changed:
        warnings.warn(f"the run goes on elsewhere, its last bits may differ: {', '.join(changed)}", stacklevel=4)


def _identity(plan):
    """What must be the same for a run to go on."""
    key = None if plan.key is None else np.asarray(jax.random.key_data(plan.key)).tolist()
    patience = plan.patience and [plan.patience.patience, plan.patience.gain]
    return {
        "parameters (shapes)": checkpoints.signature(plan.start.params),
        "optimizer (state)": checkpoints.signature(plan.start.memory),
        "parameters (start)": checkpoints.digest(plan.start.params),
        "key": key,
        "batches": plan.source.identity,
        "observations": list(plan.measures),
        "early stopping": patience,
    }


def _environment():
    """What bits depend on."""
    return {
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "x64": bool(jax.config.jax_enable_x64),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
