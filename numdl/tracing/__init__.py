"""The layers of any JAX function: trace it, find every contraction of a parameter with data, place something there.

    traced = trace(apply, params, x)                      # traced.layers, traced.entries, traced.not_entered
    outputs, found = traced.run(params, x, visit=visit)   # visit(layer, state, given) -> (state, found)

A *layer* is a `dot_general` or `conv_general_dilated` of an operand made from parameters alone (through reshape, cast,
slice, weight normalization, the slicing of a scan) with one that depends on x. Its name is the path of that parameter
leaf, in full: 'params/Dense_0/kernel'; of leaves side by side that of all: 'cell/hi+hf/kernel'. Its *state* is the
output, past the transposition that einsum appends and past a bias added directly to it.
A contraction of data with data is a layer 'attention/0', 'attention/1', ... of kind
"attention"; `tap(x, name)` marks any other value. The second use of a parameter is called 'path#1'. Where examples lie
is followed from x, never concluded from sizes: folded with tokens or heads they are unfolded, and where they are lost
`layer.note` says why.

Inner `jit`s are inlined; `scan`, `remat` and `cond` are rebuilt around their layers. A custom_jvp or custom_vjp
function keeps its rule: with one layer inside, the call is that layer; with several, and with `while`, it runs as it
is and stands in `not_entered`. What `apply` closes over is in `constants`, to be passed to `jit` as an argument.
Not seen as layers: embeddings (a gather), the scales of norms, what runs inside `shard_map` or a kernel. Steps of a
`lax.map` over examples are steps like any other: prefer `vmap`.

    >>> import jax, jax.numpy as jnp
    >>> from numdl import tracing
    >>> def apply(params, x):
    ...     return jax.nn.relu(x @ params["first"]) @ params["second"]
    >>> params = {"first": jnp.ones((3, 4)), "second": jnp.ones((4, 2))}
    >>> [(layer.name, layer.kind, layer.fan_in) for layer in tracing.trace(apply, params, jnp.ones((5, 3))).layers]
    [('first', 'dense', 3), ('second', 'dense', 4)]
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, ArrayLike, PyTree

from numdl import checks, trees
from numdl.tracing import _inputs
from numdl.tracing._axes import Follower, data, parameter
from numdl.tracing._finding import Axes, Finder, Layer, roles
from numdl.tracing._held import opened
from numdl.tracing._inputs import example_axes
from numdl.tracing._programs import TAP, calls, flatten
from numdl.tracing._running import Visit, run_program
from numdl.tracing._uses import only_uses
from numdl.typing import Apply

__all__ = ["Axes", "Layer", "Traced", "example_axes", "place", "tap", "trace"]


def trace(apply: Apply, params: PyTree, x: PyTree, *, examples: PyTree = None) -> "Traced":
    """The layers of `apply(params, x)` and a way to run it with something placed at each: a `Traced`.

    Shapes and dtypes of params and x are all that is used. Nothing is compiled.

    Parameters
    ----------
    apply : function            apply(params, x) -> outputs, pure
    params : pytree             arrays, or shapes with dtypes; may be empty
    x : pytree                  arrays [N, ...], or shapes with dtypes
    examples : None, names or pytree    which leaves of x have the examples, and where: `example_axes`. None: all have
                                them first; where first lengths differ, no layer's examples are known
    Returns
    -------
    Traced                      layers in the order of their first call, entries, uses, roles(), run(...)
    Raises
    ------
    ValueError, TypeError       apply is not a function of two arguments, a leaf that is not an array, no such axis
    """
    apply = checks.returning("apply", apply, 2, "apply(params, x)")
    params, x = checks.leaves("params", params, empty=True, shapes=True), checks.leaves("x", x, shapes=True)
    closed, outputs, held = opened(apply, params, x)
    paths = trees.names(params)
    in_avals = closed.in_avals[len(held) :]
    shapes = [tuple(aval.shape) for aval in in_avals]
    axes, count = _inputs.find_axes(x, examples)
    program, follower = flatten(closed, [], held), Follower()
    follower.follow(
        program,
        [parameter(i, shape) for i, shape in enumerate(shapes[: len(paths)])]
        + [data(shape, axis) for shape, axis in zip(shapes[len(paths) :], axes, strict=True)],
    )
    finder = Finder(follower, paths, count, shapes)
    finder.search(program, ())
    finder.uses.outputs(program)
    layers = finder.named()
    still = [None if jax.dtypes.issubdtype(aval.dtype, np.inexact) else aval.dtype for aval in in_avals[: len(paths)]]
    told = finder.uses.told(program, layers, still), only_uses(program, len(paths))
    return Traced(program, layers, tuple(finder.not_entered), outputs, paths, count, *told)


def place(apply: Apply, visit: Callable, *, weigh: Callable | None = None) -> Callable:
    """`apply` with `visit` at each layer: function(params, x, given=None) -> (outputs, found), traced at every call.

    Parameters
    ----------
    apply : function            apply(params, x) -> outputs, pure
    visit : function            visit(layer, state, given) -> (state, found), as for `Traced.run`
    weigh : function            weigh(layer, weight, given) -> (weight, found), at the parameter of each layer; None:
                                weights stay as they are
    Returns
    -------
    function                    (params, x, given=None) -> (outputs, found); given and found have an entry per layer
    Raises
    ------
    TypeError                   an argument that is not a function of this many arguments
    """
    checks.accepts("apply", apply, 2, "apply(params, x)")
    checks.accepts("visit", visit, 3, "visit(layer, state, given)")
    if weigh is not None:
        checks.accepts("weigh", weigh, 3, "weigh(layer, weight, given)")

    def placed(params, x, given=None):
        return trace(apply, params, x).run(params, x, visit=visit, weigh=weigh, given=given)

    return placed


def tap(x: ArrayLike, name: str) -> Array:
    """x itself, marked as a place `name` for every analysis of the function that computes it.

    Parameters
    ----------
    x : array [...]             any value inside the function
    name : str                  not empty; the name of the layer of kind "tap" that x becomes
    Returns
    -------
    array                       x
    Raises
    ------
    TypeError                   x is not an array, name is not a text or is empty
    """
    if not isinstance(name, str) or not name:
        raise checks.BadType(f"name must be a non-empty string; got {name!r}")
    return checkpoint_name(checks.leaf("x", x), TAP + name)


@dataclasses.dataclass(frozen=True)
class Traced:
    """A function with its layers found. `layers` in the order of their first call."""

    program: Any
    layers: tuple
    not_entered: tuple  # texts: what was run as it is although it holds layers
    outputs: Any  # shapes and dtypes of what the function returns
    parameters: tuple  # paths of all parameter leaves
    examples: int | None  # how many x holds; None: which of its axes has them is not known
    uses: tuple  # of each leaf: texts, the names of the layers that contract it, or how else it is used
    only_uses: dict  # leaf -> layer, for leaves that are the weight of this layer as they are, and nothing else

    def roles(self):
        """What the axes of each contracted parameter leaf do: {path: Axes}, as the leaf is stored.

            Axes(inputs, outputs, window, groups, steps, feature_groups, others)

        The fields are tuples of axes of the leaf: `inputs` and `window` are summed over for one output, `outputs` make
        the output units, `groups` are batch axes (heads, experts), `steps` are depth (scanned, or one entry taken by
        an index): each entry of these two is a weight of its own. A filter of the leaf is thus what inputs and window
        span at fixed outputs, groups and steps. It is followed through whatever is computed from parameters alone
        before the contraction (transposes, reshapes, weight normalization, low-rank products).

        A leaf in no contraction (biases, scales, embeddings that are only gathered) is not in the dict. None stands for
        a leaf whose axes cannot be followed (W + W'). If a leaf is contracted in several ways (tied weights), the
        fields are those of its first use and `others` holds the Axes of the further ones.
        """
        return roles(self.layers)

    @property
    def constants(self):
        """Arrays that the function closed over, a Partial's own first; an argument of `run` for a jitted function."""
        return tuple(self.program.constants)

    @property
    def entries(self):
        """(name, layer index, step indices) of every layer and step, in call order: 'path[i]' inside a scan."""
        return tuple((_step_name(self.layers[i].name, steps), i, steps) for i, steps in calls(self.program, ()))

    @property
    def ends_in_layer(self):
        """Whether the function returns the last layer's state and nothing else."""
        end, last = self.program.outputs, len(self.layers) - 1
        if len(end) != 1 or last not in self.program.places.get(end[0], ()):
            return False
        return self.layers[last].example_axis == 0 and self.layers[last].view is None

    def run(self, params, x, *, visit, weigh=None, watch=None, given=None, constants=None):
        """(outputs, found): the function with `visit(layer, state, given[l]) -> (state, found[l])` at each layer.

        `state` has the examples' axis first (`layer.note` says where they are not known). `weigh(layer, weight,
        given[l]) -> (weight, found)` sees the parameter operand before the contraction; with it found[l] is the pair
        (visit's, weigh's). `watch(layer, value) -> found` sees the nonlinearity's input where that is not the state
        (`layer.activation`); with it found[l] is the triple (visit's, weigh's, watch's). In a scan the leaves of
        given[l] and found[l] have leading axes `layer.steps`; a branch of `cond` not taken finds nan.
        """
        constants = self.constants if constants is None else constants
        given = dict(enumerate([None] * len(self.layers) if given is None else given))
        context = Visit(self.layers, visit, weigh, watch, constants)
        outputs, found = run_program(self.program, jax.tree.leaves((params, x)), context, given)
        kept = slice(3) if watch else slice(2)
        found = [found.get(i, (None, None, None)) for i in range(len(self.layers))]
        found = tuple(each[kept] if weigh or watch else each[0] for each in found)
        return jax.tree.unflatten(jax.tree.structure(self.outputs), outputs), found


def _step_name(name, steps):
    return name + "".join(f"[{index}]" for index in steps)
