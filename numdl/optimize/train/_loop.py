"""The training loop: compiled chunks between the steps at which something is observed, validated or saved."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from numdl import checks
from numdl.optimize.train import _checkpoints, _divergence, _measures, _resuming, _stepping
from numdl.optimize.train._history import History
from numdl.optimize.train._plan import VALIDATION, Best, Log, Run, planned
from numdl.optimize.train._progress import Bar
from numdl.optimize.train._schedule import EarlyStopping, noted
from numdl.typing import StrPath

if TYPE_CHECKING:
    import optax

PAUSE = 0.5  # seconds of steps between two visits to the host, for the progress bar and for Ctrl-C
FIRST = 8  # steps of the first chunk, from which the time of a step is known


def fit(
    loss: Callable[..., Array],
    params: PyTree,
    optimizer: "optax.GradientTransformation",
    batches: Any,
    *,
    steps: int,
    key: Key[Array, ""] | None = None,
    observe: dict | None = None,
    early_stopping: EarlyStopping | None = None,
    folder: StrPath | None = None,
    checkpoint: int = 1000,
    progress: bool | None = None,
) -> tuple[PyTree, History]:
    """Train: (params after the last step, History); early stopping: the best params.

    A step whose loss or result is not finite ends training: params are then those before it, history.stopped is
    "diverged", and history.detail names the step and the first layer that was not finite.

    Parameters
    ----------
    loss : function             (params, batch) -> scalar; with `key`: (params, batch, key of the step)
    params : pytree             floating leaves move (complex ones as two reals), others stay; they remain valid
    optimizer : GradientTransformation      of optax
    batches : iterable of batches, `train.resident(...)` or `train.whole(...)`
    steps : int                 in all, those of a resumed run included
    key : key                   typed; the loss then gets another one at every step, for dropout
    observe : dict              name -> (when, function(params)); `when`: train.every(n), steps, or step -> bool
    early_stopping : train.early_stopping(...)
    folder : path               of checkpoints; a run that was killed goes on from the last one and ends in the same
                                bits (same arguments, versions, CPUs, flags); one with other data, ... is refused
    checkpoint : int            one each `checkpoint` steps, and at the end
    progress : bool             a bar on standard error; None: if that is a terminal
    Raises
    ------
    ValueError, TypeError       a loss that is not a real scalar, a leaf that is not finite, another run's folder, ...
    OSError                     another process trains in this folder (BlockingIOError), it cannot be written, ...
    """
    folder = None if folder is None else checks.path("folder", folder)
    if progress is not None:
        checks.flag("progress", progress)
    plan = planned(loss, params, optimizer, batches, steps, key, observe, early_stopping, checkpoint)
    with _checkpoints.opened(folder) as store:
        bar = Bar(plan.steps, progress)
        identity = _resuming.identity(plan) if store else None
        run = (store and _resuming.restored(plan, store, identity)) or _begun(plan)
        run.log.notes += [note for note in (_resuming.notes(store) if store else []) if note not in run.log.notes]
        if not run.log.stopped:
            run = _train(plan, run, store, identity, bar)
        history = History(*run.log.arrays(plan.dtype), run.log.stopped, run.log.detail, tuple(run.log.notes))
        bar.close(f"{history.stopped}: {history.detail}" if history.detail else "")
    best = early_stopping and np.isfinite(run.best.value)
    return run.best.params if best else run.state.params, history


def _begun(plan):
    run = Run(0, plan.start, Best(plan.start.params, np.inf, 0), Log([], {}))
    return _visited(plan, run)


def _train(plan, run, store, identity, bar):
    pace = Pace()
    while not run.log.stopped:
        run = _visited(plan, _advanced(plan, run, pace))
        if not run.log.stopped and run.step >= plan.steps:
            run.log.stopped = "finished"
        due = run.step % plan.checkpoint == 0 or run.log.stopped
        if store and due and run.log.stopped != "diverged":
            store.save(run.step, _resuming.packed(plan, run, identity))
        bar.update(run.step, run.log.last_loss, now=bool(run.log.stopped))
    return run


class Pace:
    """How many steps fit between two visits to the host; the first chunk is compiled in its time and tells nothing."""

    def __init__(self):
        self._seconds = None

    @property
    def count(self):
        """Steps of the next chunk."""
        return FIRST if not self._seconds else max(1, int(PAUSE / self._seconds))

    def timed(self, seconds, count):
        """One chunk took so long."""
        self._seconds = 0.0 if self._seconds is None else max(seconds / count, 1e-9)


def _advanced(plan, run, pace):
    """The run after one chunk, or as it was with the reason why it stopped."""
    stop = plan.stops[np.searchsorted(plan.stops, run.step, side="right")]
    rows, count = plan.source.rows(run.step, int(min(stop - run.step, plan.source.most, pace.count)))
    if not count:
        run.log.stopped, run.log.detail = "batches ended", f"batches was read to its end after {run.step} steps"
        return run
    begin = time.perf_counter()
    state, losses, done, healthy = _chunk(plan, run, rows, count)
    # The program runs while the host reads on.
    plan.source.prefetch(min(plan.source.most, plan.steps - run.step - count))
    losses = np.asarray(losses)[: int(done)]
    if not healthy:
        return _diverged(plan, run, rows, losses)
    pace.timed(time.perf_counter() - begin, count)
    run.log.loss.append(losses)
    return run._replace(step=run.step + count, state=state)


def _chunk(plan, run, rows, count):
    return _stepping.chunk(
        plan.loss,
        plan.optimizer,
        plan.source.gather,
        run.state,
        plan.source.data,
        rows,
        plan.key,
        np.int32(run.step),
        np.int32(count),
        dtype=plan.dtype,
        singly=plan.singly,
    )


def _diverged(plan, run, rows, losses):
    """The run before the step that failed, which is found by computing the chunk again."""
    failed = not np.isfinite(losses[-1])
    good, state = _divergence.last_good(lambda count: _chunk(plan, run, rows, count)[0], len(losses), failed)
    after = _chunk(plan, run, rows, good + 1)[0]
    step = run.step + good
    batch = plan.source.gather(plan.source.data, jax.tree.map(lambda leaf: leaf[good], rows))
    key = None if plan.key is None else jax.random.fold_in(plan.key, step)
    where = _divergence.first_layer(plan.loss, state.params, batch, key, after.params)
    what = f"the loss became {losses[good]}" if failed and good == len(losses) - 1 else "the parameters were lost"
    run.log.stopped, run.log.detail = "diverged", f"at step {step} {what}; not finite first: {where}"
    run.log.loss.append(losses[:good])
    return run._replace(step=step, state=state)


def _visited(plan, run):
    """Observe what is due at this step; early stopping may end the run. A run that is over is not looked at again."""
    if run.log.stopped:
        return run
    moment = _measures.Moment(run.step, run.state.memory, plan.start.params)
    for name, (at, function) in plan.measures.items():
        index = np.searchsorted(at, run.step)
        if index < len(at) and at[index] == run.step:
            with noted("early_stopping" if name == VALIDATION else f"observe[{name!r}]", run.step):
                observed = _measures.observed(function, run.state.params, moment)
            for part, value in observed.items():
                run.log.add(f"{name}/{part}" if part else name, run.step, value)
            if name == VALIDATION:
                run = _judged(plan, run)
    return run


def _judged(plan, run):
    value = float(run.log.observed[VALIDATION][1][-1])
    if value < run.best.value - plan.patience.gain:
        return run._replace(best=Best(run.state.params, value, 0))
    best = run.best._replace(misses=run.best.misses + 1)
    if best.misses >= plan.patience.patience:
        run.log.stopped = "stopped early"
        run.log.detail = f"no improvement on {best.value:.6g} in {best.misses} validations, at step {run.step}"
    return run._replace(best=best)
