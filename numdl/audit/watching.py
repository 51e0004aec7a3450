"""Watch a training in the caller's own loop: instruments at intervals, findings as they appear, one file to read.

    found = nd.audit.watch(apply, loss, optimizer="adam", learning_rate=1e-3, folder="run")
    for step, batch in enumerate(batches):                       # batch = (x, targets)
        params, state, value = train_step(params, state, batch)
        for finding in found.update(step, params, batch, loss=value, state=state):
            print(finding.sentence)

Each instrument looks when it has saved up for it: together they take the share `cost` of the time, compilation apart.
With `folder`, `events.jsonl` in it has one JSON object a line, complete when written; what is not finite is null:

    {"kind": "start", "step", "format": 1, "leaves": [P names], "method", "momentum", "why_not": text, "cost", "every"}
    {"kind": "loss", "steps": [..], "values": [..], "step": the first}
    {"kind": "change", "step", "gap": steps since the look before, "names", "ratio": |change| / |leaf| [P], "rms" [P]}
    {"kind": "layers", "step", "loss", "names", "kinds", "nonlinearities", "state_rms", "state_max", "gradient_rms",
     "dead", "saturated", "rank", "cosine" [L], "leaf_names", "leaf_gradient_rms", "first_nonfinite", "notes", and where
     there is attention "attention": names, "logit_max", "entropy", "shut" [A]}
    {"kind": "sharpness", "step", "sharpness", "residual", "limit", "preconditioned"; where there is none "why_not"}
    {"kind": "noise", "step", "noise_scale", "trace", "square_norm", "batch"}
    {"kind": "finding", "step", and the fields of `audit.evidence.Finding`}
    {"kind": "cost", "step", "share", "seconds", "compiling", "intervals": {instrument: steps}}

`read(folder)` gives them back. A run that goes on appends; see `numdl.audit._watch.journal` for one that goes back.
"""

import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Array, ArrayLike, Key, PyTree

from numdl import checks
from numdl.audit._watch import journal, looks, predict
from numdl.audit._watch.watcher import SHARES, Watch, finding
from numdl.optimize import train
from numdl.records import record, static
from numdl.typing import StrPath


@record
class Events:
    """A watched run as its file has it."""

    start: dict = static()  # of the last start
    loss_steps: np.ndarray  # [steps]
    loss: np.ndarray  # [steps], nan where it was not finite
    looks: dict = static()  # instrument -> list of its events
    findings: tuple = static()  # (step, Finding) in order
    cost: dict = static()  # the last one; {} if there was none


def watch(
    apply: Callable[..., PyTree],
    loss: Callable[[PyTree, PyTree], Array],
    *,
    optimizer: Any = None,
    learning_rate: float | Callable[[int], ArrayLike] | None = None,
    every: int | None = None,
    folder: StrPath | None = None,
    frozen: Any = (),
    stochastic: bool = False,
    key: Key[Array, ""] | None = None,
    cost: float = 0.05,
) -> "Watch":
    """A `Watch`: `found.update(step, params, batch, loss=None, state=None)` in the caller's loop -> new findings.

    Sharpness against the method's limit, gradient noise scale, updates, dead and saturated units, rank, attention's
    logits and entropy, growth, spikes of the loss with the leaf that moved first. Holds two copies of the parameters.

    Parameters
    ----------
    apply : function            apply(params, x) -> outputs; with `stochastic` apply(params, x, key)
    loss : function             loss(outputs, targets) -> scalar, a mean over the batch
    optimizer : name, factory or transformation     "sgd", "momentum", "nesterov", "adam", "adamw", or optax's
    learning_rate : scalar or function(step)        None: as the transformation shows it
    every : int                 steps between looks; None: as `cost` allows
    folder : path               where `events.jsonl` is written; None: nowhere
    frozen : str or strings     paths of leaves that do not move: running statistics
    stochastic, key : bool, key     apply takes a key; this one at every look
    cost : scalar               share of the time for the looks, in (0, 1)
    Returns
    -------
    Watch                       update, look, findings, share, close
    Raises
    ------
    ValueError, TypeError       no such optimizer, numbers out of their range, `stochastic` without a key
    Source: Cohen et al. 2021, arXiv:2103.00065 (sharpness); McCandlish et al. 2018, arXiv:1812.06162 (noise scale).
    """
    stochastic = checks.flag("stochastic", stochastic)
    count, shown = (3, "apply(params, x, key)") if stochastic else (2, "apply(params, x)")
    checks.accepts("apply", apply, count, shown)
    checks.accepts("loss", loss, 2, "loss(outputs, targets)")
    if stochastic:
        key = checks.key("key", key)
    elif key is not None:
        raise checks.BadValue(f"key must be None unless stochastic=True; got {checks.shown(key)}")
    every = None if every is None else checks.whole("every", every)
    if not 0 < checks.finite("cost", cost, shape=()) < 1:
        raise checks.BadValue(f"cost must be in (0, 1); got {cost}")
    if not isinstance(frozen, str | tuple | list | set | frozenset):
        raise checks.BadType(f"frozen must be a path or a list of paths; got {frozen!r}")
    folder = None if folder is None else checks.path("folder", folder)
    method = predict.method_of(optimizer, learning_rate)
    return Watch(looks.Instruments(apply, loss, frozen, key), method, every, float(cost), folder)


def instruments(found: "Watch", batch: PyTree, *, every: int = 100) -> dict:
    """The same instruments for `train.fit(observe=...)`: a dict with the entry "watch".

        found = nd.audit.watch(apply, loss, optimizer="adam", learning_rate=1e-3)
        train.fit(..., observe=nd.audit.instruments(found, batch, every=100));  found.findings

    Observed are loss, sharpness, limit, noise_scale, update_ratio [P], dead, saturated, rank, gradient_rms [L] and,
    with attention, logit_max and entropy [A]; nan where unknown.

    Parameters
    ----------
    found : Watch               of `watch`
    batch : (x, targets)        on which to look, the same each time
    every : int                 steps between two looks
    Returns
    -------
    dict                        {"watch": (train.every(every), measure)}
    Raises
    ------
    ValueError, TypeError       not a Watch, not a pair of arrays, every < 1
    Source: as `watch`.
    """
    found, batch = checks.instance("found", found, Watch), looks.opened(batch)

    def observe(params, moment):
        found.look(moment.step, params, batch, state=moment.memory)
        return found.numbers()

    return {"watch": (train.every(checks.whole("every", every)), train.with_moment(observe))}


def read(folder: StrPath) -> Events:
    """The events of a watched run, of one that is still running too.

    Parameters
    ----------
    folder : path               as given to `watch`
    Returns
    -------
    Events                      start, loss_steps and loss, looks by instrument, findings, cost
    Raises
    ------
    OSError                     there is no `events.jsonl` in it
    ValueError, TypeError       not a path
    """
    path = pathlib.Path(checks.path("folder", folder)) / journal.NAME
    if not path.is_file():
        raise FileNotFoundError(f"folder must hold {journal.NAME}; got {folder}")
    events = journal.lines(path)[1]
    of = {kind: [event for event in events if event["kind"] == kind] for kind in ("start", "cost", "loss", "finding")}
    losses = [pair for event in of["loss"] for pair in zip(event["steps"], event["values"])]
    return Events(
        start=of["start"][-1] if of["start"] else {},
        loss_steps=np.array([step for step, _ in losses], int),
        loss=np.array([value for _, value in losses], float),
        looks={kind: [event for event in events if event["kind"] == kind] for kind in SHARES},
        findings=tuple((event["step"], finding(event)) for event in of["finding"]),
        cost=of["cost"][-1] if of["cost"] else {},
    )
