"""PREDICTED: what the kernels of dense networks refuse before any work."""

import numpy as np

from numdl import checks
from numdl.activations import Activation


def check(x1, x2, depth, activation, **variances):
    """Inputs [N1, d] and [N2, d], a depth >= 0, an Activation; gives the variances; raises what `nngp` says."""
    checks.whole("depth", depth, least=0)
    checks.instance("activation", activation, Activation, hint="such as activations.relu")
    numbers = [checks.number(name, value, least=0.0) for name, value in variances.items()]
    for name, x in (("x1", x1), ("x2", x2)):
        checks.finite(name, checks.array(name, checks.concrete(name, x), ndim=2))
    if np.shape(x1)[1] != np.shape(x2)[1]:
        raise checks.BadValue(f"x2 must have {np.shape(x1)[1]} columns, as x1 has; got shape {np.shape(x2)}")
    return numbers


def gain(step, second_weight_variance):
    """h^2 v, infinite where it leaves the range."""
    with np.errstate(over="ignore"):
        return step**2 * second_weight_variance
