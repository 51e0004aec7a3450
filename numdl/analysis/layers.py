"""MEASURED: what happens at each layer of any JAX function, forwards and backwards, in one pass of each.

A *layer* is a contraction of a parameter with data (`numdl.tracing` says which); its *state* is the output before the
activation. `probe` reads statistics of states and cotangents on the fly, `capture` returns the states themselves, `tap`
marks a further place; `summary` is the table of shapes, parameters, operations and memory, and computes nothing.
Identities do the work of `probe`: at states, at weights and at the leaves of params, each with a backward rule that
hears the cotangent (`analysis._listening`). No state is kept for it.

    >>> import jax, jax.numpy as jnp
    >>> from numdl.analysis import layers
    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
    >>> params = {"first": jnp.ones((3, 4)), "second": jnp.ones((4, 2))}
    >>> flow = layers.probe(apply, params, jnp.ones((5, 3)), loss=lambda outputs: jnp.mean(outputs**2))
    >>> flow.names, flow.state_rms.tolist()
    (('first', 'second'), [3.0, 12.0])
    >>> outputs, states = layers.capture(apply, "fir*")(params, jnp.ones((5, 3)))
    >>> {name: state.shape for name, state in states.items()}
    {'first': (5, 4)}
"""

import collections
import fnmatch
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend.core as jex
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from numdl import _effort, checks, tracing
from numdl._compiled import FORGOTTEN, Same, holding
from numdl.analysis import _listening
from numdl.analysis._flow import LayerFlow
from numdl.analysis._rows import layer_rows, leaf_rows
from numdl.analysis._summary import Summary, summary
from numdl.tracing import tap
from numdl.tracing._held import opened, parted
from numdl.typing import Apply, LossOfOutputs

__all__ = ["LayerFlow", "Summary", "capture", "probe", "summary", "tap"]

MOST_KEPT = 32
# Programs of the last calls, for functions that stay alive by it: without it a probe in a training loop would be traced
# and compiled anew at every step, as `jax.jit` would if it forgot.
_KEPT = collections.OrderedDict()
FORGOTTEN.append(_KEPT)


def probe(
    apply: Apply,
    params: PyTree,
    x: PyTree,
    *,
    loss: LossOfOutputs | None = None,
    optimizer: Any = None,
    examples: PyTree = None,
    rank_examples: int = 64,
) -> LayerFlow:
    """MEASURED statistics of every layer's state, cotangent and weight gradient: one forward, one backward pass.

    Compiled once for the same `apply`, `loss`, what they hold, and shapes: define both before a loop. A second, slower
    program, which scales before it squares and counts, runs only where squares leave the range or a number is not
    finite, and under jit or vmap.

    Parameters
    ----------
    apply : function            apply(params, x) -> outputs, pure, examples along x's first axis
    params : pytree             arrays [..]; leaves that no layer holds have rows among `leaf_...`
    x : pytree                  arrays [N, ...]
    loss : function             loss(outputs) -> real scalar, a *mean* over the N examples; None: forward pass only
    optimizer : GradientTransformation of optax     its first update gives `leaf_update_ratio`; needs a loss. None: none
    examples : names or pytree  which leaves of x have the examples, and where: `tracing.example_axes`. None: all, first
    rank_examples : int >= 2    at most this many examples, evenly spaced, enter effective_rank and mean_cosine
    Returns
    -------
    LayerFlow                   statistics of the L layers, names, kinds, state_rms, state_gradient_rms, ... each [L]
    Raises
    ------
    ValueError                  no layer in `apply` (the parameter paths are listed), empty x, loss not a real scalar
    TypeError                   a leaf of params or x that is not an array, apply or loss that is not a function, an
                                optimizer without `init` and `update`
    """
    settings = {"loss": loss, "optimizer": optimizer, "examples": examples, "rank_examples": rank_examples}
    return _probed(apply, params, x, **settings)[0]


def _probed(apply, params, x, *, loss=None, optimizer=None, examples=None, rank_examples=64):
    """(what `probe` measures, the `Traced` that it was measured with, the constants of that)."""
    checks.accepts("apply", apply, 2, "apply(params, x)")
    rank_examples = checks.whole("rank_examples", rank_examples, least=2)
    if loss is not None:
        checks.accepts("loss", loss, 1, "loss(outputs)")
    _check_optimizer(optimizer, loss)
    params, x = _arrays(params, x, examples)
    traced, cost, run = _prepared(apply, loss, params, x, examples, rank_examples, optimizer)
    constants = _now(apply, traced.constants), _now(loss, cost.constants) if cost else ()
    arguments = params, x, *constants
    if not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(arguments)):
        flow, trusted = run(*arguments, careful=False)
        if not isinstance(trusted, jax.core.Tracer) and trusted:
            return flow, traced, constants[0]
    return run(*arguments, careful=True)[0], traced, constants[0]


def capture(
    apply: Apply,
    select: str | re.Pattern | Callable[[str], bool] | Sequence | None = None,
    *,
    examples: PyTree = None,
) -> Callable:
    """`apply` that also returns its layers' states: function(params, x) -> (outputs, OrderedDict of name -> state).

    States have the examples first, unfolded where the program folds them with positions or heads; a scanned layer's has
    its steps before that: [steps, N, ...]. Where the examples cannot be followed (an expert's queue) a state has the
    axes that the program gives it; the returned function's `notes(params, x)` says which and why: {name: reason}.
    Works under jit, grad and vmap; what is not selected costs nothing.

    Parameters
    ----------
    apply : function            apply(params, x) -> outputs, pure
    select : str, compiled regular expression, function or list of these: a glob 'params/Dense_*', a pattern that is
             searched in the name, or function(name) -> bool. None: every layer
    examples : names or pytree  which leaves of x have the examples, and where: `tracing.example_axes`. None: all, first
    Returns
    -------
    function                    (params, x) -> (outputs, states); `.notes(params, x)` -> {name: reason}
    Raises
    ------
    ValueError                  at the call, if nothing is selected (the names are listed)
    TypeError                   apply is not a function of two arguments, select is none of the above
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


def _measure(traced, cost, rank_examples, optimizer, params, x, constants, cost_constants, *, careful):
    """(the record, whether every number in it can be trusted)."""
    leaves, structure = jax.tree.flatten(params)
    moving = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    visit, weigh = (
        functools.partial(f, careful, *more) for f, more in ((_at_state, (rank_examples,)), (_at_weight, ()))
    )

    def forward(sinks, chosen):
        heard = dict(zip(moving, chosen))
        heard |= dict(zip(apart, _listening.at(careful, tuple(heard[i] for i in apart), sinks[1])))
        heard = jax.tree.unflatten(structure, [heard.get(i, leaf) for i, leaf in enumerate(leaves)])
        options = {"visit": visit, "weigh": weigh, "watch": _at_nonlinearity, "given": sinks[0], "constants": constants}
        outputs, found = traced.run(heard, x, **options)
        return (cost(outputs, cost_constants) if cost else None), found

    chosen = [leaves[i] for i in moving]
    apart = [i for i in moving if i not in traced.only_uses]  # the gradient of the others is that of a layer's weight
    sinks = tuple(map(_sinks, traced.layers)), tuple(_listening.sink(leaves[i].dtype) for i in apart)
    heard, gradients = None, None
    if cost is None:
        value, found = forward(sinks, chosen)
    else:
        wanted = (0,) if optimizer is None else (0, 1)
        (value, found), (heard, *gradients) = jax.value_and_grad(forward, wanted, has_aux=True)(sinks, chosen)
    updates = _updates(optimizer, structure, dict(zip(moving, chosen)), gradients) if gradients else None
    flow, good = layer_rows(traced, careful, value, found, heard and heard[0])
    if heard:
        alone = dict(zip(apart, heard[1]))
        layers = traced.only_uses
        heard = [alone[i] if i in alone else _listening.together(careful, heard[0][layers[i]][1]) for i in moving]
    parts, fine = leaf_rows(careful, flow["state_rms"].dtype, leaves, moving, heard, updates)
    return LayerFlow(
        **flow, **parts, leaf_names=traced.parameters, leaf_shapes=tuple(x.shape for x in leaves), leaf_uses=traced.uses
    ), good & fine


def _at_state(careful, rank_examples, layer, state, sinks):
    nonlinearity = None if layer.activation else layer.nonlinearity
    options = careful, nonlinearity, layer.units, rank_examples if layer.note is None else None
    (state,) = _listening.at(careful, (state,), sinks[:1])
    return state, _listening.state_statistics(*options, jax.lax.stop_gradient(state))


def _at_weight(careful, layer, weight, sinks):
    variance = layer.fan_in * _listening.variance(jax.lax.stop_gradient(weight))
    return _listening.at(careful, (weight,), sinks[1:])[0], variance


def _at_nonlinearity(layer, value):
    return _listening.activity(layer.nonlinearity, layer.activation.units, jax.lax.stop_gradient(value))


def _sinks(layer):
    """What receives the sizes of the state's and of the weight's cotangent."""
    return _listening.sink(layer.dtype, layer.steps), _listening.sink(layer.dtype, layer.steps)


def _updates(optimizer, structure, moving, gradients):
    """The optimizer's first update of each leaf that moves; for it the others are not there."""
    params, gradients = (
        jax.tree.unflatten(structure, [leaves.get(i) for i in range(structure.num_leaves)])
        for leaves in (moving, dict(zip(moving, gradients[0])))
    )
    return jax.tree.leaves(optimizer.update(gradients, optimizer.init(params), params)[0])


def _prepared(apply, loss, params, x, examples, rank_examples, optimizer=None):
    """(traced, cost, compiled function) for these functions and shapes; from `_KEPT` if they are there.

    Arrays that a Partial holds are data, others that the functions hold are read anew where they have changed.
    """
    leaves, structure = jax.tree.flatten((params, x))
    flags = (jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision)
    options = (
        rank_examples,
        tuple(tracing.example_axes(x, examples)[0]),
        *(map(Same, (optimizer.init, optimizer.update)) if optimizer else ()),
    )
    own, bare = parted(apply)
    given, bare_loss = ([], None) if loss is None else parted(loss)
    forms = tuple(jax.typeof(leaf) for leaf in (*leaves, *own, *given))
    key = (bare, bare_loss, options, structure, forms, _numbers(own), flags)
    key = (*key, holding(bare, bare_loss, *(optimizer or ())))
    if key in _KEPT:
        _KEPT.move_to_end(key)
        return _KEPT[key]
    traced = _with_layers(apply, params, x, examples)
    cost = None if loss is None else _Cost(loss, traced.outputs)
    run = _effort.jit(functools.partial(_measure, traced, cost, rank_examples, optimizer), static_argnames="careful")
    closed_over = (*traced.constants, *(cost.constants if cost else ()))
    if not any(isinstance(value, jax.core.Tracer) for value in closed_over):
        _KEPT[key] = traced, cost, run
        if len(_KEPT) > MOST_KEPT:
            _KEPT.popitem(last=False)
    return traced, cost, run


def _now(function, constants):
    """The constants of a function that was traced before, with the arrays that it holds now."""
    held, _ = parted(function)
    return (*held, *constants[len(held) :])


def _numbers(arrays):
    """Single numbers among arrays: what they are is seen when a function is traced."""
    single = (np.ravel(each)[0] for each in arrays if np.size(each) == 1 and hasattr(each.dtype, "kind"))
    return tuple(repr(each) for each in single if not isinstance(each, jax.core.Tracer))


class _Cost:
    """loss(outputs) traced, what it closes over (targets, usually) as an argument."""

    def __init__(self, loss, outputs):
        closed, _, held = opened(checks.returning("loss", loss, 1, "loss(outputs)", scalar=True), outputs)
        self.jaxpr, self.count = getattr(closed, "jaxpr", closed), len(held)
        self.constants = (*held, *closed.consts)

    def __call__(self, outputs, constants):
        held, constants = constants[: self.count], constants[self.count :]
        return jex.jaxpr_as_fun(jex.ClosedJaxpr(self.jaxpr, constants))(*held, *jax.tree.leaves(outputs))[0]


def _with_layers(apply, params, x, examples):
    traced = tracing.trace(apply, params, x, examples=examples)
    if not traced.layers:
        held = "".join(f"; not entered: {text}" for text in traced.not_entered)
        raise ValueError(
            "apply must contract a parameter with data (dot_general or convolution) at least once, or call tap; got "
            f"none: found no layer{held}. Parameters: {', '.join(traced.parameters) or 'none'}"
        )
    return traced


def _check_optimizer(optimizer, loss):
    if optimizer is None:
        return
    if not callable(getattr(optimizer, "init", None)) or not callable(getattr(optimizer, "update", None)):
        raise checks.BadType(f"optimizer must be an optax transformation, with init and update; got {optimizer!r}")
    if loss is None:
        raise checks.BadValue("loss must be given with an optimizer: its update needs gradients; got None")


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
