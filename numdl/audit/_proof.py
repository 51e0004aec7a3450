"""A proof: the network as it was and as repaired, trained side by side, beside the forecast in function space."""

import dataclasses
import math
from typing import Any

import numpy as np

from numdl.audit import _tangent, trial
from numdl.audit.evidence import Proof


def prove(case: Any, repair: Any, steps: int, *, seeds: int = 2) -> Proof:
    """MEASURED: the network as it was and as repaired, trained side by side; FORECAST: the repaired one, linearised.

    Parameters
    ----------
    case : Case                 as it was examined
    repair : Repair
    steps, seeds : int          of each training
    Returns
    -------
    Proof                       the curves, in the loss that the user watches where the repair kept it
    """
    runs = []
    for each in (case, repair.case):
        found = trial.run(each, factors=(1.0,), steps=steps, seeds=seeds)
        runs.append(found)
    budget = dataclasses.replace(repair.case, steps=steps)
    kernel = _tangent.measure(budget) if budget.apart else None
    sick, healed = runs
    same = repair.loss is None and repair.target_scale is None and repair.target_shift is None
    helped = bool(_gain_of(healed) > _gain_of(sick) + 0.05)
    return Proof(
        steps=steps,
        sick=sick.losses[0],
        repaired=healed.losses[0],
        forecast=kernel.forecast if kernel is not None else np.zeros(0),
        forecast_steps=kernel.forecast_steps if kernel is not None else np.zeros(0),
        unseen_sick=sick.unseen_end[0],
        unseen_repaired=healed.unseen_end[0],
        same_loss=same,
        helped=helped,
    )


def _gain_of(found):
    """Share of the first loss that is gone at the end, on examples not trained on where there are any."""
    start = found.unseen_start if math.isfinite(found.unseen_start) else found.start
    end = found.unseen_end[0] if math.isfinite(found.unseen_start) else found.end[0]
    end = np.where(np.isfinite(end), end, np.inf)
    if not math.isfinite(start):
        return -math.inf
    return float((start - np.mean(end)) / max(abs(start), 1e-30))
