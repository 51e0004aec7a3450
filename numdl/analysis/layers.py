"""MEASURED: what happens at each layer of any JAX function, forwards and backwards, in one pass of each.

A *layer* is a contraction of a parameter with data (`numdl.tracing` says which); its *state* is the output before the
activation. `probe` reads statistics of states and cotangents on the fly, `capture` returns the states themselves, `tap`
marks a further place. Two identities do the work of `probe`: at a state and at a weight, each with a backward rule that
writes statistics of the cotangent into the "gradient" of a small array of zeros, the *sink*. No state is kept for it.
"""

import collections
import fnmatch
import functools
import re

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np

from numdl import checks, tracing
from numdl.analysis.flow import LayerFlow
from numdl.tracing import tap

__all__ = ["LayerFlow", "capture", "probe", "tap"]

# |state| beyond which the slope is under 5 % of the steepest one: 1 - tanh(y)^2, 4 s(1 - s), exp(-y^2)
_SATURATION = {"tanh": 2.178275, "sigmoid": 4.356550, "erf": 1.730818}


def probe(apply, params, x, *, loss=None, examples=None, rank_examples=64):
    """MEASURED statistics of every layer's state, cotangent and weight gradient: one forward, one backward pass.

    Compiled once for the same `apply`, `loss` and shapes: define both before a loop. As with `jax.jit`, what they
    close over is read at that time.
    A second, slower program runs only where squares overflow or underflow or a number is not finite, and under jit or
    vmap: it scales before it squares and counts.

    Parameters
    ----------
    apply : function            apply(params, x) -> outputs, pure, examples along x's first axis
    params : pytree of arrays
    x : array, or pytree of them, [N, ...]
    examples : pytree of axes, or paths   which leaves of x have the examples, and where: `tracing.example_axes`
    loss : function             loss(outputs) -> real scalar, a *mean* over the N examples; None: forward pass only
    rank_examples : int         at most so many examples, evenly spaced, enter effective_rank and mean_cosine
    Returns
    -------
    flow : LayerFlow
    Raises
    ------
    ValueError                  no layer in `apply` (the parameter paths are listed), empty x, loss not a real scalar
    TypeError                   a leaf of params or x that is no array, apply or loss that is no function
    """
    checks.accepts("apply", apply, 2, "apply(params, x)")
    rank_examples = checks.whole("rank_examples", rank_examples, least=2)
    if loss is not None:
        checks.accepts("loss", loss, 1, "loss(outputs)")
    params, x = _arrays(params, x, examples)
    traced, cost, run = _prepared(apply, loss, params, x, examples, rank_examples)
    arguments = params, x, traced.constants, cost.constants if cost else ()
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arguments)):
        flow, trusted = run(*arguments, careful=False)
        if not isinstance(trusted, jax.core.Tracer) and trusted:
            return flow
    return run(*arguments, careful=True)[0]


def capture(apply, select=None, *, examples=None):
    """`apply` that also returns its layers' states: function(params, x) -> (outputs, OrderedDict of name -> state).

    States have the examples first, unfolded where the program folds them with positions or heads; a scanned layer's has
    its steps before that: [steps, N, ...]. Where the examples cannot be followed (an expert's queue) a state has the
    axes that the program gives it; the returned function's `notes(params, x)` says which and why: {name: reason}.
    Works under jit, grad and vmap; what is not selected costs nothing.

    Parameters
    ----------
    select : str, compiled regular expression, function or list of these: a glob 'params/Dense_*', a pattern that is
             searched in the name, or function(name) -> bool. None: every layer
    examples : pytree of axes, or paths   which leaves of x have the examples, and where: `tracing.example_axes`
    Raises
    ------
    ValueError                  at the call, if nothing is selected (the names are listed)
    """
    checks.accepts("apply", apply, 2, "apply(params, x)")
    chosen = _selector(select)

    def notes(params, x):
        params, x = _arrays(params, x, examples)
        traced = _with_layers(apply, params, x, examples)
        return {layer.name: layer.note for layer in traced.layers if layer.note and chosen(layer.name)}

    def captured(params, x):
        params, x = _arrays(params, x, examples)
        traced = _with_layers(apply, params, x, examples)
        kept = [chosen(layer.name) for layer in traced.layers]
        if not any(kept):
            names = ", ".join(layer.name for layer in traced.layers)
            raise ValueError(f"select must choose at least one layer; got {select!r}, the layers are {names}")
        keep = dict(zip((layer.name for layer in traced.layers), kept))
        outputs, found = traced.run(params, x, visit=lambda layer, y, given: (y, y if keep[layer.name] else None))
        pairs = ((layer.name, state) for layer, state in zip(traced.layers, found) if keep[layer.name])
        return outputs, collections.OrderedDict(pairs)

    captured.notes = notes
    return captured


def _measure(traced, cost, rank_examples, params, x, constants, cost_constants, *, careful):
    def forward(sinks):
        outputs, found = traced.run(params, x, visit=visit, weigh=weigh, given=sinks, constants=constants)
        return (cost(outputs, cost_constants) if cost else None), found

    visit = functools.partial(_at_state, careful, rank_examples)
    weigh = functools.partial(_at_weight, careful)
    sinks = tuple(_sinks(layer) for layer in traced.layers)
    if cost:
        (value, found), heard = jax.value_and_grad(forward, has_aux=True)(sinks)
    else:
        (value, found), heard = forward(sinks), None
    return _flow(traced, careful, value, found, heard)


def _at_state(careful, rank_examples, layer, state, sinks):
    options = careful, layer.nonlinearity, layer.units, rank_examples if layer.note is None else None
    return _listen(careful, state, sinks[0]), _state_statistics(*options, jax.lax.stop_gradient(state))


def _at_weight(careful, layer, weight, sinks):
    return _listen(careful, weight, sinks[1]), layer.fan_in * _variance(jax.lax.stop_gradient(weight))


def _sinks(layer):
    """Zeros that receive two numbers of the state's and two of the weight's cotangent, for each step of the scans."""
    zeros = jnp.zeros(layer.steps, _wide(layer.dtype))
    return (zeros, zeros), (zeros, zeros)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _listen(careful, value, sink):
    """value; the sink's gradient is what `_size` says of the cotangent that comes by."""
    return value


def _listen_backward(careful, sink, cotangent):
    if cotangent.dtype == jax.dtypes.float0:
        return cotangent, jax.tree.map(jnp.zeros_like, sink)
    return cotangent, tuple(heard.astype(zero.dtype) for heard, zero in zip(_heard(careful, cotangent), sink))


_listen.defvjp(lambda careful, value, sink: (value, sink), _listen_backward)


def _wide(dtype):
    """The real dtype in which statistics of such numbers are accumulated: float32 at least."""
    real = jnp.finfo(dtype).dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.float32
    return jnp.promote_types(real, jnp.float32)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _state_statistics(careful, nonlinearity, units, rank_examples, state):
    """All statistics of one state: dict of scalars, in float32 at least."""
    wide = _wide(state.dtype)
    state = state.astype(jnp.promote_types(state.dtype, wide))
    size = jnp.abs(state)
    largest, (rms, lost) = jnp.max(size), _size(careful, size)
    nan = jnp.full((), jnp.nan, wide)
    saturated, dead, mean = nan, nan, jnp.mean(state)
    if nonlinearity in _SATURATION:
        saturated = jnp.mean(size > _SATURATION[nonlinearity], dtype=wide)
    if nonlinearity == "relu":
        others = tuple(axis for axis in range(state.ndim) if axis not in units)
        dead = jnp.mean(jnp.max(state, axis=others) <= 0, dtype=wide)
    rank, cosine = _gram_statistics(state, largest, rank_examples) if rank_examples and state.ndim > 1 else (nan, nan)
    return {
        "state_mean": jnp.abs(mean) if jnp.iscomplexobj(mean) else mean,
        "state_rms": rms,
        "state_max": largest,
        "saturated": saturated,
        "dead": dead,
        "effective_rank": rank,
        "mean_cosine": cosine,
        "state_nonfinite": lost,
    }


def _gram_statistics(state, largest, rank_examples):
    """Participation ratio of the Gram matrix of some examples, and the mean cosine between two of them."""
    stride = -(-state.shape[0] // rank_examples)
    rows = state[::stride].reshape(-(-state.shape[0] // stride), -1) / _scale(largest)
    gram = rows @ rows.conj().T
    squares = jnp.sum(jnp.abs(rows) ** 2, axis=1)
    rank = jnp.sum(squares) ** 2 / jnp.sum(jnp.abs(gram) ** 2)
    unit = jax.lax.rsqrt(squares)
    count = rows.shape[0]
    cosines = jnp.sum(jnp.real(gram) * unit[:, None] * unit[None, :]) - count
    return rank, cosines / (count * (count - 1)) if count > 1 else jnp.full((), jnp.nan, rank.dtype)


def _scale(largest):
    """A number to divide by before squaring, so that 1e-30 and 1e30 keep their squares."""
    return jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)


def _size(careful, size):
    """Careful: (rms, how many numbers are not finite); else (mean square, 0), in one pass: `_flow` judges it.

    The careful way scales by the maximum before it squares, so that 1e-30 in float32 does not vanish.
    """
    if not careful:
        return jnp.mean(size**2), jnp.zeros((), jnp.int32)
    scale = _scale(jnp.max(size))
    return scale * jnp.sqrt(jnp.mean((size / scale) ** 2)), jnp.sum(~jnp.isfinite(size), dtype=jnp.int32)


@functools.partial(jax.jit, static_argnums=0)
def _heard(careful, cotangent):
    return _size(careful, jnp.abs(cotangent).astype(_wide(cotangent.dtype)))


def _rms(careful, size):
    """(rms, whether it can be trusted) of what `_size` said: squares near the ends of the range cannot, nor can nan."""
    if careful:
        return size, jnp.ones(size.shape, bool)
    limits = jnp.finfo(size.dtype)
    return jnp.sqrt(size), (size > float(limits.tiny) ** 0.75) & (size < float(limits.max) ** 0.75)


@jax.jit
def _variance(weight):
    """Var(W) in one pass: shifted by one entry, so that a large mean does not cancel it."""
    weight = weight.astype(jnp.promote_types(weight.dtype, _wide(weight.dtype)))
    shifted = weight - weight.ravel()[0]
    return jnp.mean(jnp.abs(shifted) ** 2) - jnp.abs(jnp.mean(shifted)) ** 2


def _flow(traced, careful, value, found, heard):
    """The record, one entry per step of a scanned layer, in call order; and whether every number can be trusted."""
    layers, entries = traced.layers, traced.entries
    counts = [int(np.prod(layer.steps, dtype=int)) for layer in layers]
    starts = np.cumsum([0, *counts])
    order = [starts[i] + (np.ravel_multi_index(at, layers[i].steps) if at else 0) for _, i, at in entries]
    order = np.array(order, dtype=int)

    def lay_out(values):
        return jnp.concatenate([v.ravel() for v in values])[order]

    states = {name: lay_out([state[name] for state, _ in found]) for name in found[0][0]}
    states["state_rms"], good = _rms(careful, states["state_rms"])
    nan = jnp.full((), jnp.nan, states["state_rms"].dtype)
    gradient = weight_gradient = jnp.full_like(states["state_rms"], jnp.nan)
    gradient_lost = jnp.full(order.shape, -1, jnp.int32)
    if heard is not None:
        gradient, good_gradient = _rms(careful, lay_out([state[0] for state, _ in heard]))
        weight_gradient, good_weight = _rms(careful, lay_out([weight[0] for _, weight in heard]))
        weightless = np.array([layers[i].weight_shape is None for _, i, _ in entries])
        weight_gradient = jnp.where(weightless, jnp.nan, weight_gradient)
        good &= good_gradient & (good_weight | weightless)
        gradient_lost = lay_out([state[1] for state, _ in heard]).astype(jnp.int32)
    lost = states["state_nonfinite"] > 0
    of = [layers[i] for _, i, _ in entries]
    flow = LayerFlow(
        names=tuple(name for name, _, _ in entries),
        kinds=tuple(layer.kind for layer in of),
        shapes=tuple(layer.shape for layer in of),
        nonlinearities=tuple(layer.nonlinearity for layer in of),
        not_entered=traced.not_entered,
        notes=tuple(f"{layer.name}: {layer.note}" for layer in layers if layer.note),
        examples=traced.examples,
        fan_in=jnp.array([layer.fan_in for layer in of], nan.dtype),
        weight_variance=lay_out([jnp.full(i.steps, nan) if w is None else w for i, (_, w) in zip(layers, found)]),
        **states,
        state_gradient_rms=jnp.where(np.array([layer.of_examples for layer in of]), traced.examples * gradient, nan),
        gradient_nonfinite=gradient_lost,
        weight_gradient_rms=weight_gradient,
        first_nonfinite=jnp.where(jnp.any(lost), jnp.argmax(lost), -1).astype(jnp.int32),
        value=nan if value is None else value,
    )
    return flow, jnp.all(good)


def _prepared(apply, loss, params, x, examples, rank_examples, _kept=collections.OrderedDict()):  # noqa: B006
    """(traced, cost, compiled function) for these functions and shapes; the last 32 are kept."""
    leaves, structure = jax.tree.flatten((params, x))
    flags = (jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision)
    options = rank_examples, tuple(tracing.example_axes(x, examples)[0])
    key = (_Same(apply), _Same(loss), options, structure, tuple(jax.typeof(leaf) for leaf in leaves), flags)
    if key in _kept:
        _kept.move_to_end(key)
        return _kept[key]
    traced = _with_layers(apply, params, x, examples)
    cost = None if loss is None else _Cost(loss, traced.outputs)
    run = jax.jit(functools.partial(_measure, traced, cost, rank_examples), static_argnames="careful")
    closed_over = (*traced.constants, *(cost.constants if cost else ()))
    if not any(isinstance(value, jax.core.Tracer) for value in closed_over):
        _kept[key] = traced, cost, run
        if len(_kept) > 32:
            _kept.popitem(last=False)
    return traced, cost, run


class _Same:
    """A function as a key: itself, or the same method of the same object; keeps it alive, so that ids stay unique."""

    def __init__(self, function):
        self.function = function
        self.parts = (id(getattr(function, "__self__", None)), id(getattr(function, "__func__", function)))

    def __hash__(self):
        return hash(self.parts)

    def __eq__(self, other):
        return isinstance(other, _Same) and self.parts == other.parts


class _Cost:
    """loss(outputs) traced, what it closes over (targets, usually) as an argument."""

    def __init__(self, loss, outputs):
        closed = jax.make_jaxpr(checks.returning("loss", loss, 1, "loss(outputs)", scalar=True))(outputs)
        self.jaxpr, self.constants = getattr(closed, "jaxpr", closed), tuple(closed.consts)

    def __call__(self, outputs, constants):
        return jex.jaxpr_as_fun(jex.ClosedJaxpr(self.jaxpr, constants))(*jax.tree.leaves(outputs))[0]


def _with_layers(apply, params, x, examples):
    traced = tracing.trace(apply, params, x, examples=examples)
    if not traced.layers:
        held = "".join(f"; not entered: {text}" for text in traced.not_entered)
        raise ValueError(
            "apply must contract a parameter with data (dot_general or convolution) at least once, or call tap; got "
            f"none: found no layer{held}. Parameters: {', '.join(traced.parameters) or 'none'}"
        )
    return traced


def _arrays(params, x, examples):
    for name, tree in (("params", params), ("x", x)):
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            if not hasattr(leaf, "shape"):  # a nested list of numbers would be as many parameters
                raise checks.BadType(f"{name}{jax.tree_util.keystr(path)} must be an array; got {leaf!r}")
    tracing.example_axes(x, examples)
    return checks.leaves("params", params, empty=True), checks.leaves("x", x)


def _selector(select):
    if select is None:
        return lambda name: True
    if isinstance(select, str) and select:
        return lambda name: fnmatch.fnmatchcase(name, select)
    if isinstance(select, re.Pattern):
        return lambda name: select.search(name) is not None
    if isinstance(select, list | tuple) and select:
        parts = [_selector(part) for part in select]
        return lambda name: any(part(name) for part in parts)
    if not callable(select):
        raise checks.BadType(
            f"select must be a glob, a regular expression, a function of a name, or a list of these; got {select!r}"
        )
    return checks.accepts("select", select, 1, "select(name)")
