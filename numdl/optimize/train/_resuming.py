"""A run as named arrays for a checkpoint, and back; what two runs must share for one to go on with the other."""

import os
import pathlib
import platform
import warnings

import jax
import numpy as np

from numdl import checks
from numdl.optimize.train import _checkpoints, _probing
from numdl.optimize.train._plan import Best, Log, Run


def identity(plan):
    """What must be the same for a run to go on: texts and digests, and numbers, which are compared to rounding."""
    key = None if plan.key is None else np.asarray(jax.random.key_data(plan.key)).tolist()
    patience = plan.patience and [plan.patience.patience, plan.patience.gain]
    texts = {
        "parameters (shapes)": _checkpoints.signature(plan.start.params),
        "optimizer (state)": _checkpoints.signature(plan.start.memory),
        "parameters (start)": _checkpoints.digest(plan.start.params),
        "key": key,
        "batches": plan.source.identity,
        "loss (its arrays)": _checkpoints.digest(plan.loss),
        "observations": list(plan.measures),
        "early stopping": patience,
    }
    # As they come back from JSON, the most telling first.
    texts = {name: _checkpoints.untext(_checkpoints.text(value)) for name, value in texts.items()}
    return {"texts": texts, "numbers": _probing.numbers(plan)}


def packed(plan, run, identity):
    """A run as named arrays."""
    loss, observed = run.log.arrays(plan.dtype)
    arrays = {"loss": loss, "best value": np.array(run.best.value), "best misses": np.array(run.best.misses)}
    about = {"step": run.step, "stopped": run.log.stopped, "detail": run.log.detail, "names": list(observed)}
    for index, (seen, values) in enumerate(observed.values()):
        arrays |= {f"seen {index}": seen, f"values {index}": values}
    arrays |= _checkpoints.flat("state ", run.state) | _checkpoints.flat("best ", run.best.params)
    arrays |= {f"first {name}": values for name, values in identity["numbers"].items()}
    about |= {"identity": identity["texts"], "environment": environment(), "notes": list(run.log.notes)}
    arrays["about"] = _checkpoints.text(about)
    return arrays


def restored(plan, store, identity):
    """The run that a folder holds, or None."""
    found = store.latest(understood)
    if found is None:
        return None
    about, arrays = found
    there = {name.removeprefix("first "): values for name, values in arrays.items() if name.startswith("first ")}
    changed = _moved(about["environment"])
    _check_same(store.folder, {"texts": about["identity"], "numbers": there}, identity, moved=bool(changed))
    if about["step"] > plan.steps:
        raise checks.BadValue(f"steps must be >= {about['step']}, which the folder's run has taken; got {plan.steps}")
    if changed:
        warnings.warn(f"the run goes on elsewhere, its last bits may differ: {', '.join(changed)}", stacklevel=4)
    return _run(plan, about, arrays)


def check_shapes(folder, about, params):
    """Parameters must have the shapes of the run's."""
    name = "parameters (shapes)"
    _check_same(
        folder,
        {"texts": about["identity"], "numbers": {}},
        {"texts": {name: _checkpoints.signature(params)}, "numbers": {}},
        moved=False,
    )


def notes(store):
    """What was found in the folder and not used, for the history."""
    return [f"checkpoint {path} is passed over: {reason}" for path, reason in store.passed_over.items()]


def environment():
    """What bits depend on."""
    return {
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "x64": bool(jax.config.jax_enable_x64),
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "processor": _processor(),
        "flags": os.environ.get("XLA_FLAGS", ""),
    }


def understood(step, arrays):
    about = _checkpoints.untext(arrays["about"])
    missing = {"step", "stopped", "detail", "names", "identity", "environment", "notes"} - set(about)
    if missing or about["step"] != step:
        raise ValueError(f"it tells of step {about.get('step')}" + (f" and has no {min(missing)}" if missing else ""))
    return about, arrays


def _run(plan, about, arrays):
    state = _checkpoints.unflat("state ", arrays, plan.start)
    params = _checkpoints.unflat("best ", arrays, plan.start.params)
    best = Best(params, float(arrays["best value"]), int(arrays["best misses"]))
    observed = {
        name: (arrays[f"seen {index}"].tolist(), list(arrays[f"values {index}"]))
        for index, name in enumerate(about["names"])
    }
    over = about["stopped"] == "stopped early" or about["step"] == plan.steps
    log = Log([arrays["loss"]], observed, about["stopped"] if over else "", about["detail"] if over else "")
    log.notes = about["notes"]
    return Run(about["step"], state, best, log)


def _check_same(folder, there, here, *, moved):
    for name, value in here["texts"].items():
        old = there["texts"].get(name)
        if old != value:
            _refuse(folder, name, *_apart(old, value))
    for name, value in here["numbers"].items():
        apart = _probing.apart(there["numbers"].get(name), value, name=name, moved=moved)
        if apart:
            _refuse(folder, *apart)


def _refuse(folder, name, old, new):
    raise checks.BadValue(
        f"folder must be new or hold a run of the same {name}; the run in {folder} has {old}, this one {new}: "
        "to start anew choose another folder or empty that one, to go on give that run's arguments"
    )


def _apart(old, new):
    """The part of two values in which they differ, as texts."""
    if isinstance(old, dict) and isinstance(new, dict):
        names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
        return tuple(", ".join(f"{name} {_brief(side.get(name))}" for name in names) for side in (old, new))
    if isinstance(old, list) and isinstance(new, list):
        return _brief([x for x in old if x not in new] or old), _brief([x for x in new if x not in old] or new)
    return _brief(old), _brief(new)


def _brief(value):
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _moved(there):
    now = environment()
    return [f"{name} {there.get(name)} -> {now[name]}" for name in now if there.get(name) != now[name]]


def _processor():
    """The processor's name, which decides what instructions are compiled."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
