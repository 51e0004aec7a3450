"""What a run is asked for, checked at the door, and where it stands."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numdl import checks, trees
from numdl._compiled import jit
from numdl.optimize.train import _batches as sources
from numdl.optimize.train import _measures, _schedule, _stepping

VALIDATION = "validation"  # the name of early stopping's observations


class Plan(NamedTuple):
    """What stays the same during a run."""

    loss: Any
    optimizer: Any
    start: _stepping.State  # before the first step
    source: Any
    steps: int
    key: Any
    measures: dict  # name -> (sorted steps, function)
    patience: Any  # EarlyStopping or None
    stops: np.ndarray  # sorted steps at which the loop comes to the host
    checkpoint: int
    dtype: Any  # the loss's
    singly: bool  # steps as single programs


class Best(NamedTuple):
    """Early stopping's memory."""

    params: Any
    value: float
    misses: int


@dataclasses.dataclass
class Log:
    """What grows during a run."""

    loss: list  # arrays
    observed: dict  # name -> (list of steps, list of values)
    stopped: str = ""
    detail: str = ""
    notes: list = dataclasses.field(default_factory=list)  # what a reader of the history should know

    def add(self, name, step, value):
        """One observation; the first one fixes the shape."""
        seen, values = self.observed.setdefault(name, ([], []))
        if value.dtype.kind in "OUSMm" or not value.size or (values and values[0].shape != value.shape):
            wanted = f"shape {values[0].shape}, as before" if values else "a number or an array of them"
            raise TypeError(f"observe[{name!r}] must return {wanted}; got shape {value.shape}, dtype {value.dtype}")
        seen.append(step)
        values.append(value)

    @property
    def last_loss(self):
        """The newest loss, nan before the first step."""
        return next((losses[-1] for losses in reversed(self.loss) if len(losses)), np.nan)

    def arrays(self, dtype):
        """All losses, and name -> (steps, values) as arrays."""
        observed = {name: (np.array(seen), np.stack(values)) for name, (seen, values) in self.observed.items()}
        return np.concatenate([np.zeros(0, dtype), *self.loss]), observed


class Run(NamedTuple):
    """Where training stands."""

    step: int
    state: _stepping.State
    best: Best
    log: Log


def planned(loss, params, optimizer, batches, steps, key, observe, early_stopping, checkpoint):
    """The plan of a run; what is wrong with it is said before anything is compiled."""
    steps, checkpoint = checks.whole("steps", steps), checks.whole("checkpoint", checkpoint)
    _stepping.transformation("optimizer", optimizer)
    if key is not None:
        checks.key("key", key)
    params = _finite(params)
    measured = _observations(observe, early_stopping, steps)
    source, loss = sources.source(batches), _of_step(loss, key)
    dtype = _loss_dtype(loss, params, source.example(), key)
    start = _stepping.start(optimizer, params)
    saves = np.arange(checkpoint, steps + 1, checkpoint)
    stops = np.unique(np.concatenate([[steps], saves, *[at for at, _ in measured.values()]]))
    singly = _stepping.one_by_one(loss, start, source.example(), key)
    return Plan(loss, optimizer, start, source, steps, key, measured, early_stopping, stops, checkpoint, dtype, singly)


def _of_step(loss, key):
    """The loss as a pytree that says what is wrong with what it returns."""
    count, signature = (2, "loss(params, batch)") if key is None else (3, "loss(params, batch, key)")
    return checks.returning("loss", _stepping.bound(loss), count, signature, scalar=True)


def _finite(params):
    """The parameters, in native arrays: something moves, and all numbers are finite."""
    moving, rest = trees.trainable(params)
    params = rest.params(moving)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not np.all(np.isfinite(leaf)):
            lost, place = int(np.sum(~np.isfinite(leaf))), f"params{jax.tree_util.keystr(path)}"
            raise checks.BadValue(f"{place} must be finite; got {lost} entries that are not")
    return params


def _loss_dtype(loss, params, batch, key):
    arguments = (batch,) if key is None else (batch, key)
    return jax.eval_shape(_value, loss, params, *arguments).dtype


@jit
def _value(loss, params, *arguments):
    return loss(params, *arguments)


def _observations(observe, early_stopping, steps):
    observe = {} if observe is None else checks.instance("observe", observe, dict, hint="name -> (when, function)")
    measured = {}
    for name, pair in observe.items():
        if not isinstance(name, str) or name == VALIDATION:
            raise checks.BadValue(f"observe must have texts other than {VALIDATION!r} as names; got {name!r}")
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise checks.BadType(f"observe[{name!r}] must be (when, function); got {pair!r}")
        if not isinstance(pair[1], _measures.WithMoment):
            checks.accepts(f"observe[{name!r}][1]", pair[1], 1, "function(params)")
        measured[name] = (_schedule.chosen(f"observe[{name!r}][0]", pair[0], steps), pair[1])
    if early_stopping is not None:
        checks.instance("early_stopping", early_stopping, _schedule.EarlyStopping, hint="train.early_stopping(...)")
        measured[VALIDATION] = (
            _schedule.chosen("early_stopping.when", early_stopping.when, steps),
            early_stopping.function,
        )
    return measured
