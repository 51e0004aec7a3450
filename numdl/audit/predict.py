"""PREDICTED: what theory says of the network before it is trained. The only module of the audit that imports `theory`.

It takes what a start looks like (variances, widths, the optimizer's response), never how the network then behaved.
"""

import math
from typing import Any

import numpy as np

from numdl.audit.evidence import Predicted, empty
from numdl.theory import descent, propagation

SMALLEST = 8  # inputs of a unit below which a mean over them is no law
OFFSET = 0.1  # of a function at 0: less is not the most of its states
# Between two layers that still hand on what differs: a recurrence, or a size of its own instead of the weights'.
PASSED = {"pooling", "shared weight", "a sum of layers", "normalization"}


def everything(chain: Any, loss: Any, data: Any, optimizer: Any, rate: float, sharpness: float) -> Predicted:
    """What theory says, nan where its assumptions do not hold.

    Parameters
    ----------
    chain : Chain               weights in the order of the call; None: not known
    loss, data, optimizer : Loss, Data, Optimizer
    rate : float                the learning rate; nan: not known
    sharpness : float           measured, to stand beside the limit
    Returns
    -------
    Predicted
    """
    known = _mean_field(chain) | _labels(loss, data) | {"centred_variance": _centred(chain)}
    limit = _limit(optimizer, rate)
    return empty(Predicted, **known, sharpness=sharpness, sharpness_limit=limit)


def _mean_field(chain):
    why = _why_not(chain)
    if why:
        return {"applies": False, "why_not": why}
    f = chain.function
    lengths, gains, q = [], [], chain.input_square
    for i, (w, b) in enumerate(zip(chain.weight_variance, chain.bias_variance)):
        if i:
            chi = float(w) * float(np.asarray(f.slope_mean_square(np.asarray(q))))
            gains.append(chi * chain.fan_out[i] / max(chain.fan_in[i], 1.0) if chain.fan_in[i] else chi)
            q = float(propagation.length_map(q, activation=f, weight_variance=float(w), bias_variance=float(b)))
        else:
            q = float(w) * q + float(b)
        lengths.append(q)
    with np.errstate(divide="ignore"):
        logs = np.append(np.cumsum(np.log(gains)[::-1])[::-1], 0.0) if gains else np.zeros(1)
    inner = slice(1, -1) if len(lengths) > 3 else slice(None)
    weight, bias = float(np.mean(chain.weight_variance[inner])), float(np.mean(chain.bias_variance[inner]))
    point = propagation.fixed_point(activation=f, weight_variance=weight, bias_variance=bias)
    critical, start = (propagation.critical_weight_variance(activation=f, bias_variance=b) for b in (bias, 0.0))
    hidden = chain.fan_out[:-1]
    return {
        "applies": True,
        "activation": f.name,
        "names": chain.names,
        "state_rms": np.sqrt(lengths),
        "log_gradient": logs,
        "chi": float(point.chi_1),
        "depth_scale": float(point.depth_scale_c),
        "spread": float(np.sqrt(np.sum(5 / hidden))) if hidden.size else 0.0,
        "critical_weight_variance": float(critical),
        "start_variance": float(start),
        "weight_variance": weight,
        "bias_variance": bias,
    }


def _centred(chain):
    """fan_in Var W that hands on what differs between examples where most of a state is the same for all; or nan.

    f(z) = f(0) + f'(0) z for small z: weights that sum to zero leave f(0) out, and 1 / f'(0)^2 makes up for the slope.
    """
    f = chain.function if chain is not None else None
    broken = chain is None or {text for texts in chain.breaks for text in texts} - PASSED
    if broken or f is None or not abs(float(f.f(np.zeros(())))) > OFFSET:
        return math.nan
    slope = float(f.slope(np.zeros(())))
    return slope**-2 if slope > OFFSET else math.nan


def _why_not(chain):
    """Why the laws of a random chain do not apply; "" if they do."""
    if chain is None:
        return "no weights in the order of a call were found"
    if chain.function is None:
        return chain.unknown or "the nonlinearity between the layers is not known"
    broken = [(name, text) for name, texts in zip(chain.names, chain.breaks) for text in texts if text != "pooling"]
    if broken:
        return f"before {broken[0][0]}: {broken[0][1]}"
    if not np.isfinite(chain.weight_variance).all() or not np.isfinite(chain.input_square):
        return "a weight's variance or the size of the inputs is not known"
    if len(chain.names) > 1 and np.min(chain.fan_in[1:]) < SMALLEST:
        return f"a hidden layer has {int(np.min(chain.fan_in[1:]))} units, too few for a law of large numbers"
    return ""


def _labels(loss, data):
    """Loss of a constant answer, and of outputs that know nothing."""
    if loss.kind not in ("classes", "one-hot", "binary") or not data.labels:
        return {}
    classes = max(2, 2 if loss.kind == "binary" else data.classes)
    known = {"initial": math.log(classes)}
    if loss.kind == "binary" and 0 < data.common < 1:
        known["entropy"] = -data.common * math.log(data.common) - (1 - data.common) * math.log(1 - data.common)
    return known


def _limit(optimizer, rate):
    """Largest stable eigenvalue of the Hessian for a method that is linear in the gradient; nan for others."""
    if not optimizer.linear or not rate > 0 or not optimizer.memory > 0:
        return math.nan
    momentum = min(max(1 - 1 / optimizer.memory, 0.0), 0.999)
    if momentum < 0.01:
        return float(descent.sharpness_limit("gradient_descent", learning_rate=rate))
    return float(descent.sharpness_limit("polyak", learning_rate=rate, momentum=momentum))
