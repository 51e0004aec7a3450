"""MEASURED: which weight variance would keep squared gradients, and whether this network's chain justifies saying so.

All judgement of `initialization.explain` is in `advise`: the numbers come from elsewhere.
"""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from numdl import checks
from numdl.activations import Activation
from numdl.precision import float64

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


class Evidence(NamedTuple):
    """What `advise` judges; R rows."""

    activation: Activation | None  # None: not known
    unknown: str  # why the activation is not known
    names: tuple  # [R]
    breaks: tuple  # [R] tuples of what breaks the chain before each weight
    begins: np.ndarray  # [R] bool: no layer comes before
    weight_variance: np.ndarray  # [R]
    entries: np.ndarray  # [R] how many numbers the variance was taken from; inf: exact
    gradient_gain: np.ndarray  # [R] by the recursion
    measured_log: float  # ln |dloss/dy|^2 of the first row over the last's; nan without a call
    bias_variance: float  # for the advice
    input_square: float  # mean square of what the first layer reads


def advise(evidence):
    """(weight variance, bias variance, text): nan where none can be justified."""
    bias, inner = evidence.bias_variance, _inner(evidence)
    count = len(evidence.names) - 1
    if count and np.isfinite(evidence.measured_log):
        pace = math.exp(evidence.measured_log / count)
        pace = f" Measured, squared gradients change by x{pace:.3g} a layer, over {count}."
    else:
        pace = _pace(evidence.gradient_gain[inner])
    broken = _broken(evidence)
    if broken:
        return (
            np.float64(np.nan),
            np.float64(bias),
            f"No weight variance is advised: the chain does not hold. {broken}{pace}",
        )
    if evidence.activation is None:
        return np.float64(np.nan), np.float64(bias), evidence.unknown + pace
    weight, bias, text = _critical(evidence.activation, bias)
    if not np.isnan(weight):
        weight, text = _verified(evidence, weight, bias, text)
    return np.float64(weight), np.float64(bias), text + pace


@float64
def critical_weight_variance(activation, bias_variance):
    """fan_in * Var(W) at which squared gradients keep their size where lengths settle; nan where there is none.

    w E f'(sqrt(q) z)^2 = 1 and w E f(sqrt(q) z)^2 + bias_variance = q,   q reached from 1
    """
    checks.instance("activation", activation, Activation, hint="for example numdl.activations.relu")
    bias = float(checks.variance("bias_variance", bias_variance, shape=()))

    def excess(q):
        square, slope = moments(activation, q)
        return q - square / slope - bias

    values = excess(_LENGTHS)
    values[np.abs(values) <= 1e-11 * _LENGTHS] = 0.0
    if not values.any():  # every length is kept
        return np.float64(1 / moments(activation, np.ones(1))[1][0])
    known = np.flatnonzero(values)
    places = [(i, j) for i, j in itertools.pairwise(known) if values[i] * values[j] < 0]
    roots = [_bisect(excess, _LENGTHS[i], _LENGTHS[j]) for i, j in places]
    if bias == 0 and moments(activation, np.zeros(1))[0][0] == 0:
        roots.append(_NEAR_ZERO)
    for q in roots:
        weight = 1 / moments(activation, np.array([q]))[1][0]
        settled = _settle(jnp.asarray(weight), jnp.asarray(bias), activation)
        # Lengths approach a critical fixed point as slowly as 1/layers: the gain there tells, not the distance.
        if abs(weight * moments(activation, settled)[1] - 1) <= 2e-3:
            return np.float64(weight)
    return np.float64(np.nan)


_LENGTHS = 10.0 ** np.linspace(-8, 4, 241)
_NEAR_ZERO = 1e-14  # where a kink at 0 is still felt from both sides


@float64
def moments(activation, q):
    """E f^2 and E f'^2 at these lengths; padded, so that all calls share two programs."""
    q = np.asarray(q, np.float64)
    padded = jnp.asarray(np.resize(q, -(-q.size // 256) * 256))
    found = (np.asarray(moment(padded)) for moment in (activation.mean_square, activation.slope_mean_square))
    return tuple(values[: q.size].reshape(q.shape) for values in found)


def _bisect(function, low, high):
    rising = np.sign(function(np.array([low])))[0]
    for _ in range(60):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if np.sign(function(np.array([middle])))[0] == rising else (low, middle)
    return math.sqrt(low * high)


@functools.partial(jax.jit, static_argnames="activation")
def _settle(weight, bias, activation):
    """The length that 2000 layers make of 1."""
    return jax.lax.fori_loop(0, 2000, lambda _, q: weight * activation.mean_square(q) + bias, jnp.ones_like(weight))


def _critical(f, bias):
    """(weight variance, bias variance, text) that keep squared gradients; without biases if with them nothing does."""
    weight, clause = critical_weight_variance(f, bias), ""
    if np.isnan(weight) and bias > 0:
        clause = f" (at bias variance {bias:.3g} none keeps lengths as well)"
        weight, bias = critical_weight_variance(f, 0.0), 0.0
    if np.isnan(weight):
        now = 1 / float(moments(f, 1.0)[1])
        return (
            weight,
            bias,
            (f"{f.name}: no weight variance keeps squared gradients where lengths settle; {now:.6g} does at length 1."),
        )
    said = f"{f.name}: set fan_in * Var(W) = {weight:.6g} and bias variance {bias:.3g}{clause}:"
    return weight, bias, f"{said} squared gradients then keep their size."


@float64
def _verified(evidence, weight, bias, text):
    """The advice tried on this network's own depth and input: (weight variance or nan, text)."""
    f, inner = evidence.activation, _inner(evidence)
    count = int(inner.sum())
    if not count:
        return weight, text
    given, entries = evidence.weight_variance[inner], evidence.entries[inner]
    each = np.abs(given / weight - 1) <= 0.005 + 3 * np.sqrt(2 / entries)
    mean = abs(np.mean(given) / weight - 1) <= 0.005 + 2 * np.sqrt(2 * np.sum(1 / entries)) / count
    if each.all() and mean and abs(bias - evidence.bias_variance) <= 1e-12:
        said = f"{f.name}: fan_in * Var(W) = {weight:.6g} keeps squared gradients where lengths settle,"
        return weight, f"{said} and it is already so."
    now, then = np.log(evidence.gradient_gain[inner]).sum(), _total(evidence, weight, bias, count)
    if np.isfinite(now) and abs(then) > max(abs(now) * 2 / 3, 0.05 * count):
        pace = math.exp(then / count)
        return np.nan, (
            f"{f.name}: no weight variance is advised: {weight:.6g} keeps squared gradients where lengths settle, but "
            f"over these {count} layers it would change them by x{pace:.3g} a layer."
        )
    return weight, text


def _total(evidence, weight, bias, count):
    """ln of the squared gradients' gain over `count` layers after the first, all with these variances."""
    f, square = evidence.activation, evidence.input_square
    q = weight * (square if np.isfinite(square) and square > 0 else 1.0) + bias
    total = 0.0
    for _ in range(count):
        square, slope = moments(f, q)
        total, q = total + math.log(weight * max(float(slope), 1e-300)), weight * float(square) + bias
    return total


def _inner(evidence):
    """[R] the rows that read another one's state through the activation alone."""
    return ~evidence.begins & np.array([not kinds for kinds in evidence.breaks], bool)


def _broken(evidence):
    """Which assumptions fail, and where; empty if none does that matters."""
    where = {}
    for name, breaks in zip(evidence.names, evidence.breaks):
        for kind in breaks:
            where.setdefault(kind, []).append(name)
    last = len(evidence.names) - 1
    if all(kind in _HARMLESS and names == [evidence.names[last]] for kind, names in where.items()) and last > 1:
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
