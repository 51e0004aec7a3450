"""A proof: the network as it was and as repaired, trained side by side, beside the forecast in function space."""

import dataclasses
import math
from typing import Any

import numpy as np

from numdl.audit import trial
from numdl.audit._measured import tangent
from numdl.records import record, static


@record
class Proof:
    """The network as it was and as repaired, trained side by side on the same batches, beside theory's forecast."""

    steps: int = static()
    sick: np.ndarray  # [S, T] the loss that the repaired network is trained with, of the network as it was
    repaired: np.ndarray  # [S, T]
    forecast: np.ndarray  # [F] of the repaired network, linearised
    forecast_steps: np.ndarray  # [F]
    unseen_sick: np.ndarray  # [S] loss at the end on examples not trained on; nan without data
    unseen_repaired: np.ndarray  # [S]
    same_loss: bool = static()  # whether both curves have one scale: the repair moved no targets
    helped: bool = static()


def prove(case: Any, repair: Any, steps: int, *, seeds: int = 2) -> Proof:
    """MEASURED: the network as it was and as repaired, trained side by side; FORECAST: the repaired one, linearised.

    Parameters
    ----------
    case : Case                 as it was examined
    repair : Repair
    steps, seeds : int          of each training
    Returns
    -------
    Proof                       the curves, both in the loss that the repaired network is trained with
    """
    shown = dataclasses.replace(case, shown=repair.loss)
    runs = [trial.run(each, factors=(1.0,), steps=steps, seeds=seeds) for each in (shown, repair.case)]
    budget = dataclasses.replace(repair.case, steps=steps)
    kernel = tangent.measure(budget) if budget.apart else None
    sick, healed = runs
    same = repair.target_scale is None and repair.target_shift is None  # moved targets are another scale
    return Proof(
        steps=steps,
        sick=sick.losses[0],
        repaired=healed.losses[0],
        forecast=kernel.forecast if kernel is not None else np.zeros(0),
        forecast_steps=kernel.forecast_steps if kernel is not None else np.zeros(0),
        unseen_sick=sick.unseen_end[0],
        unseen_repaired=healed.unseen_end[0],
        same_loss=same,
        helped=_helped(sick, healed, same),
    )


def _helped(sick, healed, same):
    """Whether the repaired one ends lower, by a twentieth of the lower start; if the losses differ, falls further."""
    (before, worse), (after, better) = _course(sick), _course(healed)
    if not math.isfinite(better):
        return False
    if same:
        least = min((abs(start) for start in (before, after) if math.isfinite(start)), default=0.0)
        return bool(worse - better > 0.05 * least)
    gains = [
        (a - b) / max(abs(a), 1e-30) if math.isfinite(a) else -math.inf for a, b in ((before, worse), (after, better))
    ]
    return bool(gains[1] > gains[0] + 0.05)


def _course(found):
    """(loss at the start, at the end), on examples not trained on where there are any."""
    unseen = math.isfinite(found.unseen_start)
    start, end = (found.unseen_start, found.unseen_end[0]) if unseen else (found.start, found.end[0])
    return float(start), float(np.mean(np.where(np.isfinite(end), end, np.inf)))
