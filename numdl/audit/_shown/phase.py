"""The phase diagram of the activation that a network was found to use, wide enough to show the network's place."""

import functools

import numpy as np

from numdl import activations
from numdl.theory import propagation

CELLS = (48, 36)  # weight variances, bias variances


def phase_map(activation_name, weight_variance, bias_variance, critical=np.nan):
    """The PhaseDiagram around a network's variances and the critical ones; None for an activation without a name here.

    A network far from the critical line is left outside: a diagram of twenty times the critical variance shows nothing.
    """
    try:
        activations.named(activation_name)
    except ValueError:
        return None
    if not (np.isfinite(weight_variance) and np.isfinite(bias_variance)):
        return None
    middle = critical if np.isfinite(critical) and critical > 0 else 2.0
    widest = 1.2 * np.clip(weight_variance, 5 / 3 * middle, 5 * middle)
    highest = 1.2 * np.clip(bias_variance, 0.4, 4.0)
    return _diagram(activation_name, float(f"{widest:.2g}"), float(f"{highest:.2g}"))


@functools.lru_cache(maxsize=16)
def _diagram(activation_name, widest, highest):
    return propagation.phase_diagram(
        activation=activations.named(activation_name),
        weight_variances=np.linspace(widest / CELLS[0], widest, CELLS[0]),
        bias_variances=np.linspace(0.0, highest, CELLS[1]),
    )
