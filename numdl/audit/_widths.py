"""The record of what changes with the width."""

import numpy as np

from numdl.records import record, static


@record
class Widths:
    """Powers of the width at P places: the layers, the leaves that no layer holds, the output last."""

    widths: tuple = static()
    names: tuple = static()
    verdicts: tuple = static()  # "passes", "fails: ..." or "not known: ..." at each place
    culprits: tuple = static()  # paths of the leaves whose rate or start explains what fails
    change: np.ndarray  # [P] power of each place's change by a step, the faster of its two parts
    error: np.ndarray  # [P] its standard error
    initial: np.ndarray  # [P] power of its size at the start
