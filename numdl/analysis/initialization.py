"""MEASURED: which law a model's weights were drawn from, what it does to signals and gradients, what to set instead.

    q[l] = weight_variance[l] E f(sqrt(q[l-1]) z)^2 + bias_variance[l]       length of layer l's output, before f
    gradient_gain[l] = weight_variance[l] E f'(sqrt(q[l-1]) z)^2             |dloss/dy[l-1]|^2 / |dloss/dy[l]|^2

weight_variance = fan_in * Var(W) and the moments are those of the weights at hand; the first layer has no f before it.
The gain is that of squared norms: theory.gradients has it per unit, fan_out / fan_in times this.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np

from numdl import activations, checks
from numdl.activations import Activation
from numdl.analysis import weights
from numdl.analysis.laws import Defaults, defaults
from numdl.precision import float64
from numdl.records import record, rows, static

__all__ = ["Defaults", "Explanation", "critical_weight_variance", "defaults", "explain"]


@record
class Explanation:
    """One row per weight, L rows; sums of logarithms are natural."""

    names: tuple = static()
    shapes: tuple = static()  # as stored
    laws: tuple = static()  # "unknown" where none or several laws fit
    candidates: tuple = static()  # a tuple of laws for each row
    activation: str = static()
    measured: bool = static()  # lengths are measured on x; else they follow from the variances, E x^2 = 1
    advice: str = static()
    fan_in: np.ndarray  # [L]
    fan_out: np.ndarray  # [L]
    weight_variance: np.ndarray  # [L]  fan_in * Var(W): gain of a linear map forwards
    backward_variance: np.ndarray  # [L]  fan_out * Var(W): its gain per unit backwards
    bias_variance: np.ndarray  # [L]  mean square of the bias beside the weight; 0 where there is none
    length: np.ndarray  # [L]  q
    length_gain: np.ndarray  # [L]  q[l] / q[l-1]
    gradient_gain: np.ndarray  # [L]
    log_length: np.ndarray  # [L]  ln q[l] / q[0], q[0] the input's mean square
    log_gradient: np.ndarray  # [L]  ln |dloss/dy[l]|^2 / |dloss/dy[L]|^2
    set_weight_variance: np.ndarray  # []  at which squared gradients keep their size; nan: there is none
    set_bias_variance: np.ndarray  # []  that goes with it

    def __repr__(self):
        if np.ndim(self.set_weight_variance) or isinstance(self.set_weight_variance, jax.core.Tracer):
            return "\n".join(["Explanation", *(f"  {name:<19} {text}" for name, text in rows(self))])
        table = [_HEAD, *_cells(self)]
        wide = [max(len(row[i]) for row in table) for i in range(len(_HEAD))]
        lines = ["  ".join(c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(r, wide))) for r in table]
        source = "lengths measured on x" if self.measured else "lengths from the variances, E x^2 = 1"
        title = f"Explanation: {len(self.names)} weights, activation {self.activation}, {source}"
        return "\n".join([title, *(line.rstrip() for line in lines), self.advice])


def explain(params, *, activation=None, apply=None, x=None, transposed=False, stacked=(), bias_variance=None):
    """Law, variances and gains of every weight of a model, and the weight variance to set instead.

    Without `apply` and `x` the weights are taken in the natural order of their names, as a chain; where the features of
    two neighbours do not fit, a new chain begins. With them the order, orientation and lengths are those of a call.

    Parameters
    ----------
    params : pytree, Defaults or sequence of Defaults   floating leaves with two axes or more are weights
    activation : Activation     between the layers; None: what `apply` shows (tanh, sigmoid, erf, relu), else identity
    apply, x : function, array  apply(params, x); both or neither
    transposed : bool or globs  weights stored (out, in) or OIHW: PyTorch, Equinox; without `apply` only
    stacked : globs             names of weights whose first axis is depth; without `apply` only
    bias_variance : scalar      for the advice; None: the mean of the model's own
    Raises
    ------
    ValueError, TypeError       no weight (the leaves are listed), apply without x, an activation of another kind
    Source: Glorot & Bengio 2010, eq. (5), (6); He et al. 2015, arXiv:1502.01852, eq. (10), (14).
    """
    if activation is not None:
        checks.instance("activation", activation, Activation, hint="for example numdl.activations.relu")
    if (apply is None) != (x is None):
        raise ValueError(f"apply and x must be given together; got apply={apply!r} and x={type(x).__name__}")
    if bias_variance is not None:
        checks.variance("bias_variance", bias_variance, shape=())
    if apply is None:
        found = weights.from_defaults(params) or weights.from_leaves(params, transposed, stacked)
        return _explanation(found, activation, *_propagated(found, activation), bias_variance, measured=False)
    found, lengths, seen = weights.from_call(params, apply, x)
    f = activation or _only(seen)
    return _explanation(found, f, lengths, [True] + [False] * (len(found) - 1), bias_variance, measured=True)


@float64
def critical_weight_variance(activation, bias_variance):
    """fan_in * Var(W) at which squared gradients keep their size where lengths settle; nan where there is none.

    w E f'(sqrt(q) z)^2 = 1 and w E f(sqrt(q) z)^2 + bias_variance = q,   q reached from 1
    """
    checks.instance("activation", activation, Activation, hint="for example numdl.activations.relu")
    bias = float(checks.variance("bias_variance", bias_variance, shape=()))

    def excess(q):
        square, slope = _moments(activation, q)
        return q - square / slope - bias

    values = excess(_LENGTHS)
    values[np.abs(values) <= 1e-11 * _LENGTHS] = 0.0
    if not values.any():  # every length is kept
        return np.float64(1 / _moments(activation, np.ones(1))[1][0])
    known = np.flatnonzero(values)
    places = [(i, j) for i, j in itertools.pairwise(known) if values[i] * values[j] < 0]
    roots = [_bisect(excess, _LENGTHS[i], _LENGTHS[j]) for i, j in places]
    if bias == 0 and _moments(activation, np.zeros(1))[0][0] == 0:
        roots.append(_NEAR_ZERO)
    for q in roots:
        weight = 1 / _moments(activation, np.array([q]))[1][0]
        settled = _settle(jnp.asarray(weight), jnp.asarray(bias), activation)
        # Lengths approach a critical fixed point as slowly as 1/layers: the gain there tells, not the distance.
        if abs(weight * _moments(activation, settled)[1] - 1) <= 2e-3:
            return np.float64(weight)
    return np.float64(np.nan)


_LENGTHS = 10.0 ** np.linspace(-8, 4, 241)
_NEAR_ZERO = 1e-14  # where a kink at 0 is still felt from both sides


def _moments(activation, q):
    q = jnp.asarray(q, jnp.float64)
    return np.asarray(activation.mean_square(q)), np.asarray(activation.slope_mean_square(q))


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


# ---- the gains -----------------------------------------------------------------------------------------------------


@float64
def _propagated(found, f):
    """(lengths [L + 1] from E x^2 = 1, whether a chain begins at each row)."""
    f, begins, lengths = f or activations.identity, [], [1.0]
    for before, weight in zip([None, *found], found):
        begins.append(before is None or weight.features[0] % before.features[1] != 0)
        square = 1.0 if begins[-1] else float(f.mean_square(jnp.asarray(lengths[-1], jnp.float64)))
        lengths.append(weight.fan_in * weight.variance * square + weight.bias_variance)
    return np.array(lengths), begins


@float64
def _slopes(f, lengths):
    return f.slope_mean_square(jnp.asarray(lengths, jnp.float64))


def _explanation(found, f, lengths, begins, bias_variance, *, measured):
    begins, given, f = np.array(begins, bool), f is not None, f or activations.identity
    fan_in, fan_out = (np.array([getattr(w, name) for w in found]) for name in ("fan_in", "fan_out"))
    variance, bias = (np.array([getattr(w, name) for w in found]) for name in ("variance", "bias_variance"))
    incoming = np.where(begins & (not measured), 1.0, lengths[:-1])
    gradient_gain = fan_in * variance * np.where(begins, 1.0, _slopes(f, lengths[:-1]))
    with np.errstate(divide="ignore", invalid="ignore"):
        length_gain = lengths[1:] / incoming
        log_length = _sums(np.log(length_gain), begins)
        later = np.append(np.where(begins, 0.0, np.log(gradient_gain))[1:], 0.0)
        log_gradient = _sums(later[::-1], np.append(begins[1:], True)[::-1])[::-1]
    bias_variance = float(bias.mean()) if bias_variance is None else float(bias_variance)
    weight_variance, bias_variance, advice = _advice(f, bias_variance)
    return Explanation(
        names=tuple(w.name for w in found),
        shapes=tuple(w.shape for w in found),
        laws=tuple(w.laws[0] if len(w.laws) == 1 and not w.laws[0].startswith("~") else "unknown" for w in found),
        candidates=tuple(w.laws for w in found),
        activation=f.name,
        measured=measured,
        advice=(advice if given else _UNKNOWN) + _pace(gradient_gain[~begins]),
        fan_in=fan_in,
        fan_out=fan_out,
        weight_variance=fan_in * variance,
        backward_variance=fan_out * variance,
        bias_variance=bias,
        length=lengths[1:],
        length_gain=length_gain,
        gradient_gain=gradient_gain,
        log_length=log_length,
        log_gradient=log_gradient,
        set_weight_variance=weight_variance,
        set_bias_variance=np.float64(bias_variance),
    )


def _sums(terms, begins):
    """Running sums that start anew where a chain begins."""
    total, sums = 0.0, []
    for term, new in zip(terms, begins):
        total = term if new else total + term
        sums.append(total)
    return np.array(sums)


def _advice(f, bias_variance):
    """(weight variance, bias variance, text) that keep squared gradients; without biases if with them nothing does."""
    weight_variance, clause = critical_weight_variance(f, bias_variance), ""
    if np.isnan(weight_variance) and bias_variance > 0:
        clause = f" (at bias variance {bias_variance:.3g} none keeps lengths as well)"
        weight_variance, bias_variance = critical_weight_variance(f, 0.0), 0.0
    if np.isnan(weight_variance):
        now = 1 / float(_slopes(f, 1.0))
        said = f"{f.name}: no weight variance keeps squared gradients where lengths settle; {now:.6g} does at length 1."
        return weight_variance, bias_variance, said
    said = f"{f.name}: set fan_in * Var(W) = {weight_variance:.6g} and bias variance {bias_variance:.3g}{clause}:"
    return weight_variance, bias_variance, f"{said} squared gradients then keep their size."


_UNKNOWN = "No activation was given or recognised: these are the gains of the linear maps; activation= says which."


def _pace(gains):
    if not gains.size or not (gains > 0).all():
        return ""
    return f" Here they change by x{np.exp(np.log(gains).mean()):.3g} a layer, over {gains.size} layers."


_HEAD = ("weight", "shape", "law", "n Var W", "out Var W", "q", "q gain", "grad gain", "ln q sum", "ln grad sum")
_VARIANCES = ("weight_variance", "backward_variance")
_GAINS = ("length", "length_gain", "gradient_gain", "log_length", "log_gradient")


def _cells(self):
    """The table's rows as text; past 24 weights the first 12 and the last 12."""
    columns = [getattr(self, field) for field in (*_VARIANCES, *_GAINS)]
    table = [
        (name, "x".join(map(str, shape)), _law(laws), *(f"{column[i]:.4g}" for column in columns))
        for i, (name, shape, laws) in enumerate(zip(self.names, self.shapes, self.candidates))
    ]
    if len(table) <= 24:
        return table
    return [*table[:12], (f"... {len(table) - 24} more", *("...",) * (len(_HEAD) - 1)), *table[-12:]]


def _law(laws):
    """One law as itself, several as 'a or b ...', a bare family with a question mark."""
    if not laws:
        return "unknown"
    if len(laws) > 1:
        return " or ".join(laws[:2]) + (" ..." if len(laws) > 2 else "")
    return f"{laws[0][1:]}, no named variance" if laws[0].startswith("~") else laws[0]


def _only(seen):
    known = set(seen)
    return activations.named(known.pop()) if len(known) == 1 and None not in known else None
