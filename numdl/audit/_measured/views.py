"""What was handed over, told by running it on shapes: where the examples lie, which outputs and targets count."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numdl import checks
from numdl._compiled import Same

# What a function of a fixed number of examples, or of a graph's nodes, may raise when it is given another number.
NO_DERIVATIVE = (TypeError, ValueError, NotImplementedError)  # of a rule for the way back alone
REFUSALS = (TypeError, ValueError, IndexError, AssertionError, ZeroDivisionError, NotImplementedError)


def rows(call: Any, loss: Any, moving: Any, x: Any, y: Any) -> tuple | None:
    """For each output whether its first axis holds the examples; None: other numbers of examples are refused.

    A square matrix over all nodes, say, has the nodes along its first axis and cannot be cut there.
    """
    if not side_by_side(x, y):
        return None
    count, found = len(jax.tree.leaves(x)[0]), []
    for m in (count + 1, count + 2):
        like = jax.tree.map(lambda a, m=m: jax.ShapeDtypeStruct((m, *np.shape(a)[1:]), a.dtype), (x, y))
        try:
            out = jax.eval_shape(call, moving, like[0])
            jax.eval_shape(loss, out, like[1])
        except REFUSALS:
            return None
        found.append([np.shape(leaf)[:1] == (m,) for leaf in jax.tree.leaves(out)])
    return tuple(all(pair) for pair in zip(*found, strict=True))


def side_by_side(x: Any, y: Any) -> bool:
    """Whether all leaves are equally long along their first axes."""
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves((x, y))}
    return len(sizes) == 1 and sizes != {()} and sizes != {(0,)}


def floats(out: Any) -> list:
    """The outputs that a gradient can reach: real floating leaves."""
    return [leaf for leaf in jax.tree.leaves(out) if _floating(leaf)]


def half(leaf: Any) -> bool:
    """Whether these are floating numbers of 16 bits or fewer."""
    return _floating(leaf) and jnp.finfo(leaf.dtype).bits <= 16


def filled(parts: list, out: Any) -> Any:
    """Outputs with these in the place of the floating ones; indices and the like stay."""
    rest = iter(parts)
    return jax.tree.map(lambda leaf: next(rest) if _floating(leaf) else leaf, out)


def joined(out: Any, follows: tuple) -> Any:
    """One array [N, ...] of all outputs that have a row for each example; None without one."""
    kept = [leaf for leaf, own in zip(jax.tree.leaves(out), follows) if own and _floating(leaf)]
    if len(kept) < 2:
        return np.asarray(kept[0], np.float64) if kept else None
    return np.concatenate([np.asarray(leaf, np.float64).reshape(len(leaf), -1) for leaf in kept], 1)


def arrays(params: Any, apply: Any, evaluate: Any) -> tuple[Any, Any, Any, tuple]:
    """(params of arrays alone, apply, evaluate, notes): functions, names and options of a module stay what they are."""
    leaves, structure = jax.tree.flatten(params)
    fixed = [leaf if callable(leaf) or isinstance(leaf, str | bytes) else None for leaf in leaves]
    if all(leaf is None for leaf in fixed):
        return params, apply, evaluate, ()
    # A module that holds functions holds its options as plain numbers, too: nobody trains those.
    fixed = [
        leaf if kept is not None or isinstance(leaf, bool | int | float | complex) else None
        for leaf, kept in zip(leaves, fixed)
    ]
    moved = tuple(i for i, leaf in enumerate(fixed) if leaf is None)
    parts = jax.tree.unflatten(structure, [None if kept is not None else leaf for leaf, kept in zip(leaves, fixed)])

    rest = tuple(Same(leaf) if callable(leaf) else leaf for leaf in fixed)
    known = moved, rest, tuple(map(type, rest))
    through = lambda function: None if function is None else _through(Same(function), structure, *known)  # noqa: E731
    note = f"{len(leaves) - len(moved)} leaves of params are no arrays and stay as they are"
    return parts, through(apply), through(evaluate), (note,)


@functools.lru_cache(maxsize=64)
def _through(function, structure, moved, rest, types):
    """The function of all leaves as one of those that are arrays: the same object each time."""

    def through(tree, *more):
        found = dict(zip(moved, jax.tree.leaves(tree), strict=True))
        kept = [leaf.function if isinstance(leaf, Same) else leaf for leaf in rest]
        return function(jax.tree.unflatten(structure, [found.get(i, leaf) for i, leaf in enumerate(kept)]), *more)

    return through


def _floating(leaf):
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def widths(build, widths, stochastic):
    """The widths at which `build` is called, checked together with it; () without them."""
    if (build is None) != (widths is None):
        given, lacking = ("widths", "build") if build is None else ("build", "widths")
        raise checks.BadValue(f"{lacking} must be given together with {given}; got None")
    if build is None:
        return ()
    checks.accepts("build", build, 1, "build(width)")
    kept = checks.wholes("widths", widths, fewest=3)
    if list(kept) != sorted(set(kept)):
        raise checks.BadValue(f"widths must rise; got {checks.shown(widths)}")
    if stochastic:
        raise checks.BadValue(
            "build must be None with stochastic=True: noise has no power of the width; got a function"
        )
    return kept
