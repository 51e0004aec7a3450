"""MEASURED: which axes of a parameter leaf number its filters: as a call contracts the leaf, or as the caller says.

A *filter* is what feeds one output unit. Nothing is guessed from a shape or a name: without a call the last axis is
the output and `outputs=`, `stacked=` say where it is not. One rule for vectors (biases, norm scales, positions), which
have no filters: with a call the leaves of which it sums nothing over with data; without one those that hold a line of
numbers, one axis at most, or three axes and more of which one at most is longer than 1.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from numdl import checks, tracing, trees


class Filters(NamedTuple):
    """Where the filters of one leaf lie; all axes that are not named are summed over. Static, hashable."""

    outputs: tuple  # axes that number output units
    stack: tuple = ()  # axes that number weights of their own: depth, experts, heads that share no input
    inputs: tuple | None = None  # axes that are summed over, if they are known; None: all others
    groups: int = 1  # of a grouped convolution: the outputs hold so many groups, the major part

    @property
    def kept(self):
        """The axes that number filters."""
        return tuple(sorted({*self.outputs, *self.stack}))


def find(params, *, apply=None, x=None, outputs=None, stacked=()):
    """One `Filters` for each leaf of params, None for a vector: a tuple, in the order of the leaves.

    Parameters
    ----------
    apply, x : function, pytree     apply(params, x), which is traced; both or neither
    outputs : int, tuple, or dict of them by path or glob, None in it for a vector: it wins over the call
    stacked : paths or globs        leaves whose first axis is depth; without a call
    """
    if (apply is None) != (x is None):
        missing = "x" if x is None else "apply"
        raise checks.BadValue(f"apply and x must be given together; got {missing}=None")
    params = checks.leaves("params", params)
    leaves = jax.tree.leaves(params)
    if apply is not None:
        checks.accepts("apply", apply, 2, "apply(params, x)")
        x = checks.leaves("x", x)
        for leaf in jax.tree.leaves(x):
            if 0 in leaf.shape:
                raise checks.BadValue(f"x must hold arrays that are not empty; got shape {tuple(leaf.shape)}")
    paths, shapes = trees.names(params), [tuple(leaf.shape) for leaf in leaves]
    said = {path: None for path, leaf in zip(paths, leaves) if not jnp.issubdtype(leaf.dtype, jnp.inexact)} | _said(
        outputs, paths, shapes
    )
    deep = named("stacked", stacked, paths)
    if apply is not None and deep:
        raise checks.BadValue(f"stacked must be left out with a call, which shows the depth; got {stacked!r}")
    found = said | {path: _deeper(path, said[path]) for path in said if path in deep}
    if apply is None:
        rest = {p: _by_convention(p, shape, p in deep) for p, shape in zip(paths, shapes) if p not in said}
    else:
        roles = tracing.trace(apply, params, x).roles()
        rest = {path: _from_call(path, roles) for path in paths if path not in said}
    return tuple((found | rest)[path] for path in paths)


def named(argument, patterns, paths):
    """The paths that a string or strings name: `trees.matching`, with a check of what came."""
    if not isinstance(patterns, str | tuple | list | set | frozenset):
        raise checks.BadType(f"{argument} must be paths or globs of leaves; got {patterns!r}")
    return trees.matching(argument, patterns, paths)


def matrices(leaf, filters):
    """[..., inputs, outputs]: one matrix for each weight that the leaf holds, the stack flattened first."""
    rest = [axis for axis in range(leaf.ndim) if axis not in filters.kept]
    rows = [axis for axis in rest if filters.inputs is None or axis in filters.inputs] or rest
    columns = [axis for axis in range(leaf.ndim) if axis not in rows and axis not in filters.stack]
    count, height, width = (math.prod(leaf.shape[axis] for axis in axes) for axes in (filters.stack, rows, columns))
    turned = jnp.transpose(leaf, (*filters.stack, *rows, *columns))
    split = turned.reshape(count, height, filters.groups, width // filters.groups)
    return jnp.swapaxes(split, 1, 2).reshape(count * filters.groups, height, width // filters.groups)


def each(params, found):
    """(name, matrix [inputs, outputs]) of every weight that was found, 'name[i]' in a stack or group."""
    for name, leaf, filters_of in zip(trees.names(params), jax.tree.leaves(params), found, strict=True):
        if filters_of is None:
            continue
        several = matrices(leaf, filters_of)
        alone = len(several) == 1 and not filters_of.stack
        yield from ((name if alone else f"{name}[{i}]", matrix) for i, matrix in enumerate(several))


def is_line(shape):
    """Whether a leaf of this shape is a vector where no call tells: see the module's rule."""
    return len(shape) <= 1 or (len(shape) > 2 and sum(length > 1 for length in shape) <= 1)


def _by_convention(path, shape, deep):
    if deep and not shape:
        raise checks.BadValue(f"stacked must name leaves with a depth axis; got {path!r}, a scalar")
    if is_line(shape[deep:]):
        return None
    return Filters((len(shape) - 1,), (0,) if deep else ())


def _deeper(path, filters):
    """What the caller says of a stacked leaf, its first axis being depth."""
    if filters is not None and 0 in filters.outputs:
        raise checks.BadValue(f"outputs must not name the first axis of {path!r}, which stacked says is depth; got 0")
    return filters and filters._replace(stack=(0,))


def _from_call(path, roles):
    if path not in roles:
        return None
    axes = roles[path]
    if axes is None or None in axes.others:
        raise _unknown(path, "how apply contracts it cannot be followed")
    if any(set(other.outputs) != set(axes.outputs) for other in axes.others):
        raise _unknown(path, "apply contracts it along different axes")
    stack = tuple(axis for axis in sorted({*axes.groups, *axes.steps}) if axis not in axes.outputs)
    summed = {*axes.inputs, *axes.window}
    if not summed:  # a scale of each output, a time step: nothing in it feeds a unit together
        return None
    if summed & {*axes.outputs, *axes.groups, *axes.steps}:
        raise _unknown(path, "one of its axes holds inputs and outputs")
    return Filters(tuple(axes.outputs), stack, tuple(sorted(summed)), axes.feature_groups)


def _unknown(path, why):
    return checks.BadValue(f"outputs must say which axes of {path!r} number its output units; got none, and {why}")


def _said(outputs, paths, shapes):
    """{path: Filters or None} of what the caller says."""
    if outputs is None:
        return {}
    if not isinstance(outputs, dict):
        pairs = zip(paths, shapes)
        return {path: _given(f"outputs for {path}", outputs, shape) for path, shape in pairs if not is_line(shape)}
    found = {}
    for pattern, axes in outputs.items():
        named = trees.matching("outputs", pattern, paths)
        for path, shape in zip(paths, shapes):
            if path in named:
                found[path] = None if axes is None else _given(f"outputs[{pattern!r}]", axes, shape)
    return found


def _given(name, axes, shape):
    listed = axes if isinstance(axes, tuple | list) else (axes,)
    rank = len(shape)
    numbers = [checks.whole(name, axis, least=-rank, most=rank - 1) % rank for axis in listed]
    if not numbers or len(set(numbers)) < len(numbers):
        raise checks.BadValue(f"{name} must be different axes of a leaf of shape {shape}; got {axes!r}")
    return Filters(tuple(sorted(numbers)))
