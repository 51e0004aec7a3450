"""The layers of any JAX function: trace it, find every contraction of a parameter with data, place something there.

    traced = trace(apply, params, x)                      # traced.layers, traced.entries, traced.not_entered
    outputs, found = traced.run(params, x, visit=visit)   # visit(layer, state, given) -> (state, found)

A *layer* is a `dot_general` or `conv_general_dilated` of an operand made from parameters alone (through reshape, cast,
slice, weight normalization, the slicing of a scan) with one that depends on x. Its name is the path of that parameter
leaf, in full: 'params/Dense_0/kernel'. Its *state* is the output, past the transposition that einsum appends and past a
bias added directly to it. A contraction of data with data is a layer 'attention/0', 'attention/1', ... of kind
"attention"; `tap(x, name)` marks any other value. The second use of a parameter is called 'path#1'.

Inner `jit`s are inlined; `scan`, `remat` and `cond` are rebuilt around their layers. A custom_jvp or custom_vjp
function keeps its rule: with one layer inside, the call is that layer; with several, and with `while`, it runs as it
is and stands in `not_entered`. What `apply` closes over is in `constants`, to be passed to `jit` as an argument.
Not seen as layers: embeddings (a gather), the scales of norms, what runs inside `shard_map` or a kernel. Steps of a
`lax.map` over examples are steps like any other: prefer `vmap`.
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jax.ad_checkpoint import checkpoint_name

from numdl import checks, trees
from numdl.tracing.finding import DATA, Finder, Layer, Mark, spread
from numdl.tracing.programs import TAP, calls, flatten
from numdl.tracing.running import Visit, run_program

__all__ = ["Layer", "Traced", "place", "tap", "trace"]


def trace(apply, params, x):
    """The layers of `apply(params, x)` and a way to run it with something placed at each: a `Traced`.

    Shapes and dtypes of params and x are all that is used. Nothing is compiled.
    """
    checks.function("apply", apply)
    closed, outputs = jax.make_jaxpr(apply, return_shape=True)(params, x)
    paths = [trees.name_of(path) for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]]
    program = flatten(closed, [])
    marks = [Mark(leaf=name, size=math.prod(aval.shape)) for name, aval in zip(paths, closed.in_avals)]
    marks += [DATA] * (len(closed.in_avals) - len(marks))
    finder = Finder(next((leaf.shape[0] for leaf in jax.tree.leaves(x) if np.ndim(leaf)), None))
    finder.search(program, spread(program, marks), ())
    return Traced(program, finder.named(), tuple(finder.not_entered), outputs, tuple(paths))


def place(apply, visit, *, weigh=None):
    """`apply` with `visit` at each layer: function(params, x, given=None) -> (outputs, found), traced at every call."""

    def placed(params, x, given=None):
        return trace(apply, params, x).run(params, x, visit=visit, weigh=weigh, given=given)

    return placed


def tap(x, name):
    """x itself, marked as a place `name` for every analysis of the function that computes it."""
    if not isinstance(name, str) or not name:
        raise TypeError(f"name must be a non-empty string; got {name!r}")
    return checkpoint_name(x, TAP + name)


@dataclasses.dataclass(frozen=True)
class Traced:
    """A function with its layers found. `layers` in the order of their first call."""

    program: Any
    layers: tuple
    not_entered: tuple  # texts: what was run as it is although it holds layers
    outputs: Any  # shapes and dtypes of what the function returns
    parameters: tuple  # paths of all parameter leaves

    @property
    def constants(self):
        """Arrays that the function closed over; hand them back to `run` as an argument of the jitted function."""
        return tuple(self.program.constants)

    @property
    def entries(self):
        """(name, layer index, step indices) of every layer and step, in call order: 'path[i]' inside a scan."""
        return tuple((_step_name(self.layers[i].name, steps), i, steps) for i, steps in calls(self.program, ()))

    @property
    def ends_in_layer(self):
        """Whether the function returns the last layer's state and nothing else."""
        end, last = self.program.outputs, len(self.layers) - 1
        return len(end) == 1 and last in self.program.places.get(end[0], ()) and self.layers[last].example_axis == 0

    def run(self, params, x, *, visit, weigh=None, given=None, constants=None):
        """(outputs, found): the function with `visit(layer, state, given[l]) -> (state, found[l])` at each layer.

        `state` has the examples' axis first. `weigh(layer, weight, given[l]) -> (weight, found)` sees the parameter
        operand before the contraction; with it found[l] is the pair (visit's, weigh's). In a scan the leaves of
        given[l] and found[l] have leading axes `layer.steps`; a branch of `cond` not taken finds nan.
        """
        constants = self.constants if constants is None else constants
        given = dict(enumerate([None] * len(self.layers) if given is None else given))
        context = Visit(self.layers, visit, weigh, constants)
        outputs, found = run_program(self.program, jax.tree.leaves((params, x)), context, given)
        found = tuple(found.get(i) if weigh else found.get(i, (None,))[0] for i in range(len(self.layers)))
        return jax.tree.unflatten(jax.tree.structure(self.outputs), outputs), found


def _step_name(name, steps):
    return name + "".join(f"[{index}]" for index in steps)
