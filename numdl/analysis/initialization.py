"""MEASURED: which law a model's weights were drawn from, what it does to signals and gradients, what to set instead.

    q[l] = weight_variance[l] E f(sqrt(q[l-1]) z)^2 + bias_variance[l]       length of layer l's output, before f
    gradient_gain[l] = weight_variance[l] E f'(sqrt(q[l-1]) z)^2             |dloss/dy[l-1]|^2 / |dloss/dy[l]|^2

weight_variance = fan_in * Var(W) and the moments are those of the weights at hand; the first layer has no f before it.
The gain is that of squared norms: theory.gradients has it per unit, fan_out / fan_in times this. These are the laws of
a chain. With a call lengths and gradients are measured, the chain's stand beside them as `predicted_...`, and `breaks`
says what lies between two layers that is no chain: a skip, a normalization, a gate, one weight in all steps.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from numdl import activations, checks
from numdl.activations import Activation
from numdl.analysis import _called, _recognition, _weights
from numdl.analysis._laws import Defaults, defaults
from numdl.precision import float64
from numdl.records import abridged, record, rows, static
from numdl.typing import Apply, LossOfOutputs

__all__ = ["Defaults", "Explanation", "defaults", "explain"]


@record
class Explanation:
    """One row per weight, L rows; sums of logarithms are natural; nan: not known, `notes` say why."""

    names: tuple = static()
    shapes: tuple = static()  # as stored; where a call computes the weight as it is contracted
    laws: tuple = static()  # "unknown" where none or several laws fit
    candidates: tuple = static()  # a tuple of laws for each row
    breaks: tuple = static()  # a tuple for each row: what lies before it that is no chain; empty without a call
    activation: str = static()
    function: Activation | None = static()  # the one activation between the layers; None: not known
    unknown: str = static()  # why it is not known
    measured: bool = static()  # lengths and gradients are measured on x; else they follow from the variances, E x^2 = 1
    notes: tuple = static()
    fan_in: np.ndarray  # [L]
    fan_out: np.ndarray  # [L]
    weight_variance: np.ndarray  # [L]  fan_in * Var(W): gain of a linear map forwards
    backward_variance: np.ndarray  # [L]  fan_out * Var(W): its gain per unit backwards
    bias_variance: np.ndarray  # [L]  Var(b_i) of what is added to this layer alone; 0 where there is nothing
    bias_mean: np.ndarray  # [L]  mean of b_i; 0 where it is 0 within its sampling error, Var(b_i) = E b_i^2 then
    length: np.ndarray  # [L]  q
    length_gain: np.ndarray  # [L]  q[l] / q of the row whose state it reads, or of the row before
    gradient_gain: np.ndarray  # [L]  |dloss/dy|^2 of that row over this one's
    log_length: np.ndarray  # [L]  ln q[l] / q[0], q[0] the input's mean square (the first length, if that is unknown)
    log_gradient: np.ndarray  # [L]  ln |dloss/dy[l]|^2 / |dloss/dy[L]|^2
    predicted_length_gain: np.ndarray  # [L]  of a chain, from these lengths
    predicted_gradient_gain: np.ndarray  # [L]
    predicted_log_gradient: np.ndarray  # [L]
    begins: np.ndarray  # [L] bool: no layer comes before
    entries: np.ndarray  # [L]  how many numbers the variance was taken from; inf: exact
    input_square: np.ndarray  # []  mean square of what the first layer reads; 1 without a call

    def __repr__(self):
        if np.ndim(self.input_square) or isinstance(self.input_square, jax.core.Tracer):
            return "\n".join(["Explanation", *(f"  {name:<19} {text}" for name, text in rows(self))])
        head, table = _head(self), [_head(self), *_cells(self)]
        wide = [max(len(row[i]) for row in table) for i in range(len(head))]
        lines = ["  ".join(c.ljust(w) if i < 3 else c.rjust(w) for i, (c, w) in enumerate(zip(r, wide))) for r in table]
        source = "measured on x, chain: as predicted" if self.measured else "lengths from the variances, E x^2 = 1"
        title = f"Explanation: {len(self.names)} weights, activation {self.activation}, {source}"
        return "\n".join([title, *(line.rstrip() for line in lines), *self.notes])


def explain(
    params: PyTree,
    *,
    activation: Activation | None = None,
    apply: Apply | None = None,
    x: PyTree = None,
    loss: LossOfOutputs | None = None,
    examples: PyTree = None,
    layouts: dict | None = None,
    transposed: "bool | str | Sequence[str]" = False,
    stacked: "str | Sequence[str]" = (),
) -> Explanation:
    """Law, variances and gains of every weight of a model: its initialization explained.

    With `apply` and `x` fans, order, biases and what lies between are followed through the call, gains are measured.
    Without, weights are read as (in, out) or [window ..., in, out], in the natural order of their names, as a chain;
    where the features of two neighbours do not fit, a new chain begins; what leaves alone do not tell is nan.

    Parameters
    ----------
    params : pytree, Defaults or sequence of Defaults   without a call, floating leaves of two axes or more are weights
    activation : Activation     between the layers; None: what the call shows, else identity
    apply, x : function, pytree     apply(params, x), x [N, ...]; both or neither
    loss : function             loss(outputs) -> scalar, whose gradients are measured; None: a sum with random signs
    examples : pytree of axes, or paths   where x's examples lie, as in `layers.probe`; None: first
    layouts : dict              path or glob -> a letter for each axis: I in, O out, D H W window, G group, S depth,
                                such as "OIHW", or (letters, groups); None for what is not a weight. Without a call only
    transposed : bool or globs  weights stored (out, in) or (out, in, window): PyTorch, Equinox; without a call only
    stacked : globs             weights and biases whose first axis is depth; without a call only
    Returns
    -------
    Explanation                 a row per weight: names, laws, weight_variance, length, gradient_gain, ... [L], notes
    Raises
    ------
    ValueError, TypeError       no weight (the leaves are listed), apply without x, an activation of another kind
    Source: Glorot & Bengio 2010; He et al. 2015, arXiv:1502.01852.
    """
    if activation is not None:
        checks.instance("activation", activation, Activation, hint="for example numdl.activations.relu")
    if (apply is None) != (x is None):
        given = f"apply={apply!r} and x={type(x).__name__}"
        raise checks.BadValue(f"apply and x must be given together; got {given}")
    if apply is not None:
        for name, value in (("layouts", layouts), ("transposed", transposed), ("stacked", stacked)):
            if value is not None and value is not False and value != ():
                raise checks.BadValue(f"{name} must be left out with a call, which shows it; got {value!r}")
        _weights.check_params(params)
        found, notes = _called.rows(params, apply, x, loss, examples)
        return _from_call(found, notes, activation)
    for name, value in (("loss", loss), ("examples", examples)):
        if value is not None:
            raise checks.BadValue(f"{name} must come with apply and x; got {value!r} alone")
    found, notes = _weights.from_defaults(params), []
    if found is None:
        found, notes = _weights.from_leaves(params, layouts or {}, transposed, stacked)
    return _from_chain(found, notes, activation)


_IDENTITY = activations.identity


# ---- the gains -----------------------------------------------------------------------------------------------------


def _from_chain(found, notes, activation):
    """All numbers follow from the variances."""
    lengths, begins = _propagated(found, activation)
    incoming = np.where(begins, 1.0, lengths[:-1])
    gains = (
        lengths[1:] / incoming,
        _gradient_gains(found, [activation] * len(found), np.where(begins, np.nan, lengths[:-1])),
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        sums = _sums(np.log(gains[0]), begins), _backwards(gains[1], begins)
    f = activation or _IDENTITY
    unknown = "No activation was given: these are the gains of the linear maps; activation= says which."
    judged = activation, unknown, tuple(() for _ in found), begins, 1.0
    return _explanation(found, notes, f.name, lengths[1:], gains, sums, gains, sums[1], judged)


def _from_call(found, notes, activation):
    """Lengths and gradients as measured, those of a chain beside them."""
    all_weights = [row.weight for row in found]
    before = [row.source or rest for row, rest in zip(found, _called.predecessors(found))]
    lengths, gradients = (np.array([getattr(row, name) for row in found]) for name in ("length", "gradient"))
    square = found[0].input_square
    units = np.array([row.weight.fan_out for row in found], float)
    known, before = [not row.starts and len(b) > 0 for row, b in zip(found, before)], [list(b) for b in before]
    above = np.array([gradients[b].sum() if has else np.nan for b, has in zip(before, known)])
    incoming = [np.average(lengths[b], weights=units[b]) if has else np.nan for b, has in zip(before, known)]
    incoming = np.where([row.starts for row in found], [row.input_square for row in found], incoming)
    with np.errstate(divide="ignore", invalid="ignore"):
        gains = lengths / incoming, above / gradients
        sums = np.log(lengths / (square if square > 0 else lengths[0])), np.log(gradients / gradients[-1])
    # The identity is seen where one layer reads another one's state as it is, not where it reads a mixture.
    seen = [r.activation for r in found if not r.starts and (r.source or r.activation is not _IDENTITY)]
    common, unknown = _recognition.common(seen)
    common = activation or common
    each = [None if row.starts else activation or row.activation or common for row in found]
    begins = np.array([row.starts for row in found])
    chain = _gradient_gains(all_weights, each, np.where(begins, np.nan, incoming))
    predicted = _length_gains(all_weights, each, incoming, begins), chain
    if not square > 0:
        notes = [
            *notes,
            f"{found[0].weight.name}: what it reads is not x itself: the first length is measured from there",
        ]
    if not np.isfinite(gradients).all() or not (gradients > 0).all():
        notes = [*notes, "gradients are 0 or unknown at some layers: their gains are not numbers there"]
    name = common.name if common else "identity" if begins.all() else _recognition.names(seen)
    judged = common, unknown, tuple(row.breaks for row in found), begins, square
    logs = _backwards(chain, begins)
    return _explanation(all_weights, notes, name, lengths, gains, sums, predicted, logs, judged)


def _propagated(found, f):
    """(lengths [L + 1] from E x^2 = 1, whether a chain begins at each row)."""
    f, begins, lengths = f or _IDENTITY, [], [1.0]
    for before, weight in zip([None, *found], found):
        begins.append(before is None or weight.features[0] % before.features[1] != 0)
        square = 1.0 if begins[-1] else float(_moments(f, lengths[-1])[0])
        lengths.append(weight.fan_in * weight.variance * square + weight.bias_square)
    return np.array(lengths), np.array(begins, bool)


def _gradient_gains(found, each, incoming):
    """n Var W E f'^2 at the incoming lengths; nan there: nothing before."""
    linear = np.array([weight.fan_in * weight.variance for weight in found])
    return linear * np.where(np.isnan(incoming), 1.0, _moment(1, each, incoming))


def _length_gains(found, each, incoming, begins):
    """(n Var W E f^2 + E b^2) / q."""
    linear, bias = (np.array(v) for v in zip(*((w.fan_in * w.variance, w.bias_square) for w in found)))
    squares = np.where(begins, incoming, _moment(0, each, incoming))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.isnan(incoming) & (bias == 0), linear, (linear * squares + bias) / incoming)


def _moment(which, each, lengths):
    """The activation's moment at each row's length; nan for an activation that is not known."""
    values = np.full(len(lengths), np.nan)
    for f in dict.fromkeys(each):
        at = [i for i, other in enumerate(each) if other is f]
        values[at] = _moments(f or _IDENTITY, np.asarray(lengths)[at])[which]
    return values


def _sums(terms, begins):
    """Running sums that start anew where a chain begins."""
    total, sums = 0.0, []
    for term, new in zip(terms, begins):
        total = term if new else total + term
        sums.append(total)
    return np.array(sums)


def _backwards(gains, begins):
    """ln |dloss/dy[l]|^2 / |dloss/dy[last of its chain]|^2 from the gains."""
    with np.errstate(divide="ignore", invalid="ignore"):
        later = np.append(np.where(begins, 0.0, np.log(gains))[1:], 0.0)
    return _sums(later[::-1], np.append(begins[1:], True)[::-1])[::-1]


def _explanation(found, notes, activation, lengths, gains, sums, predicted, log_predicted, judged):
    fan_in, fan_out, variance, bias, mean = (
        np.array([getattr(w, name) for w in found], float)
        for name in ("fan_in", "fan_out", "variance", "bias_variance", "bias_mean")
    )
    function, unknown, breaks, begins, square = judged
    return Explanation(
        names=tuple(w.name for w in found),
        shapes=tuple(w.shape for w in found),
        laws=tuple(w.laws[0] if len(w.laws) == 1 and not w.laws[0].startswith("~") else "unknown" for w in found),
        candidates=tuple(w.laws for w in found),
        breaks=breaks,
        activation=activation,
        function=function,
        unknown=unknown,
        measured=gains is not predicted,
        notes=tuple(notes),
        fan_in=fan_in,
        fan_out=fan_out,
        weight_variance=fan_in * variance,
        backward_variance=fan_out * variance,
        bias_variance=bias,
        bias_mean=mean,
        length=lengths,
        length_gain=gains[0],
        gradient_gain=gains[1],
        log_length=sums[0],
        log_gradient=sums[1],
        predicted_length_gain=predicted[0],
        predicted_gradient_gain=predicted[1],
        predicted_log_gradient=log_predicted,
        begins=begins,
        entries=np.array([w.entries for w in found], float),
        input_square=np.float64(square),
    )


@float64
def _moments(activation, q):
    """E f^2 and E f'^2 at these lengths; padded, so that all calls share two programs."""
    q = np.asarray(q, np.float64)
    padded = jnp.asarray(np.resize(q, -(-q.size // 256) * 256))
    found = (np.asarray(moment(padded)) for moment in (activation.mean_square, activation.slope_mean_square))
    return tuple(values[: q.size].reshape(q.shape) for values in found)


_COLUMNS = {
    "n Var W": "weight_variance",
    "out Var W": "backward_variance",
    "q": "length",
    "q gain": "length_gain",
    "grad gain": "gradient_gain",
    "ln q sum": "log_length",
    "ln grad sum": "log_gradient",
}
_CHAIN = {"chain q": "predicted_length_gain", "chain grad": "predicted_gradient_gain"}


def _columns(self):
    return _COLUMNS | (_CHAIN if self.measured else {})


def _head(self):
    return ("weight", "shape", "law", *_columns(self), *(["not a chain"] if any(self.breaks) else []))


def _cells(self):
    """The table's rows as text; past 24 weights the first 12 and the last 12."""
    columns, broken = [getattr(self, field) for field in _columns(self).values()], any(self.breaks)
    table = [
        (
            name,
            "x".join(map(str, shape)),
            _law(laws),
            *(f"{column[i]:.4g}" for column in columns),
            *([", ".join(self.breaks[i])] if broken else []),
        )
        for i, (name, shape, laws) in enumerate(zip(self.names, self.shapes, self.candidates))
    ]
    return abridged(table)


def _law(laws):
    """One law as itself, several as 'a or b ...', a bare family with a question mark."""
    if not laws:
        return "unknown"
    if len(laws) > 1:
        said = " or ".join(laws[:2]) + (" ..." if len(laws) > 2 else "")
        return said if len(said) <= 44 else f"{said[:41]}..."
    return f"{laws[0][1:]}, no named variance" if laws[0].startswith("~") else laws[0]
