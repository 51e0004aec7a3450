"""Which weight variance would keep squared gradients, and whether this network's chain justifies saying so."""

import math

import jax.numpy as jnp
import numpy as np

from numdl.precision import float64
from numdl.theory import gradients, propagation

# What each thing between two layers does to the recursion, whose terms are one weight, one bias, one function.
BREAKS = {
    "skip": "a skip adds an earlier state",
    "normalization": "a state is divided by its own size",
    "gate": "two states are multiplied",
    "attention": "attention mixes states by weights of their own",
    "pooling": "positions are pooled",
    "concatenation": "states are joined side by side",
    "a sum of layers": "several layers are summed",
    "a scale": "a parameter scales the state",
    "an added parameter": "a parameter that is no bias of one layer is added",
    "a fixed array": "an array of constants (a mask, dropout) acts on the state",
    "branch": "a branch is chosen",
    "a custom rule": "a function with a rule of its own is one layer, whatever else it does",
    "a layer not entered": "a layer lies between that was not entered",
    "shared weight": "one weight is used several times",
    "derived weight": "the contracted weight is computed, not drawn",
}
_HARMLESS = {"pooling"}  # at the end of a chain it leaves the layers before it as they are


def advise(found, bias):
    """(weight variance, bias variance, text) for an Explanation: nan where none can be justified."""
    pace, broken = _measured_pace(found) or _pace(found.predicted_gradient_gain[_inner(found)]), _broken(found)
    if broken:
        return np.nan, bias, f"No weight variance is advised: the chain does not hold. {broken}{pace}"
    if found.function is None:
        return np.nan, bias, found.unknown + pace
    weight, with_bias, text = _critical(found.function, bias)
    if not np.isnan(weight):
        weight, text = _verified(found, weight, with_bias, bias, text)
    return weight, with_bias, text + pace


def _measured_pace(found):
    count = len(found.names) - 1
    if not (count and found.measured and np.isfinite(found.log_gradient[0])):
        return ""
    pace = math.exp(found.log_gradient[0] / count)
    return f" Measured, squared gradients change by x{pace:.3g} a layer, over {count}."


def _critical(f, bias):
    """(weight variance, bias variance, text) that keep squared gradients; without biases if with them nothing does."""
    weight, clause = propagation.critical_weight_variance(activation=f, bias_variance=bias), ""
    if np.isnan(weight) and bias > 0:
        clause = f" (at bias variance {bias:.3g} none keeps lengths as well)"
        weight, bias = propagation.critical_weight_variance(activation=f, bias_variance=0.0), 0.0
    if np.isnan(weight):
        now = 1 / float(_slope(f))
        text = f"{f.name}: no weight variance keeps squared gradients where lengths settle; {now:.6g} does at length 1."
        return weight, bias, text
    said = f"{f.name}: set fan_in * Var(W) = {weight:.6g} and bias variance {bias:.3g}{clause}:"
    return weight, bias, f"{said} squared gradients then keep their size."


@float64
def _slope(f):
    """E f'(z)^2."""
    return f.slope_mean_square(jnp.ones(()))


def _verified(found, weight, bias, asked, text):
    """The advice tried on this network's own depth and input: (weight variance or nan, text)."""
    f, inner = found.function, _inner(found)
    count = int(inner.sum())
    if not count:
        return weight, text
    given, entries = found.weight_variance[inner], found.entries[inner]
    each = np.abs(given / weight - 1) <= 0.005 + 3 * np.sqrt(2 / entries)
    mean = abs(np.mean(given) / weight - 1) <= 0.005 + 2 * np.sqrt(2 * np.sum(1 / entries)) / count
    if each.all() and mean and abs(bias - asked) <= 1e-12:
        said = f"{f.name}: fan_in * Var(W) = {weight:.6g} keeps squared gradients where lengths settle,"
        return weight, f"{said} and it is already so."
    now, then = np.log(found.predicted_gradient_gain[inner]).sum(), _total(found, weight, bias, count)
    if np.isfinite(now) and abs(then) > max(abs(now) * 2 / 3, 0.05 * count):
        pace = math.exp(then / count)
        return np.nan, (
            f"{f.name}: no weight variance is advised: {weight:.6g} keeps squared gradients where lengths settle, but "
            f"over these {count} layers it would change them by x{pace:.3g} a layer."
        )
    return weight, text


def _total(found, weight, bias, count):
    """ln of the squared gradients' gain over `count` layers after the first, all with these variances."""
    square = float(found.input_square)
    law = gradients.growth(
        square if np.isfinite(square) and square > 0 else 1.0,
        activation=found.function,
        weight_variance=weight,
        bias_variance=bias,
        depth=count,
    )
    return float(law.log_products[0])


def _inner(found):
    """[R] the rows that read another one's state through the activation alone."""
    return ~found.begins & np.array([not kinds for kinds in found.breaks], bool)


def _broken(found):
    """Which assumptions fail, and where; empty if none does that matters."""
    where = {}
    for name, breaks in zip(found.names, found.breaks):
        for kind in breaks:
            where.setdefault(kind, []).append(name)
    last = len(found.names) - 1
    if all(kind in _HARMLESS and names == [found.names[last]] for kind, names in where.items()) and last > 1:
        return ""
    said = []
    for kind, names in where.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        said.append(f"{BREAKS.get(kind, f'{kind} lies between')} (before {names[0]}{more})")
    return "; ".join(said) + "." if said else ""


def _pace(gains):
    gains = gains[np.isfinite(gains)]
    if not gains.size or not (gains > 0).all():
        return ""
    return f" Here they change by x{np.exp(np.log(gains).mean()):.3g} a layer, over {gains.size} layers."
