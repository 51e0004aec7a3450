"""Functions and the arrays that they hold as a `Partial`: those are data, so that the function is known again."""

import dataclasses
from typing import Any

import jax
import numpy as np
from jax.tree_util import Partial

from numdl._compiled import Same, known, static_parts

_HELD = object()  # where an array was


def opened(function, *arguments):
    """(jaxpr of a function, shapes of what it returns, arrays): those that a Partial holds are its first inputs."""
    held, bare = parted(function)
    closed, outputs = jax.make_jaxpr(known(lambda held, *rest: bare(held)(*rest)), return_shape=True)(held, *arguments)
    return closed, outputs, held


def parted(function):
    """(the arrays that a Partial holds, what it is without them); of any other function none, and itself."""
    if not isinstance(function, Partial):
        return [], Bare(Same(function))
    leaves, structure = jax.tree.flatten((function.args, function.keywords))
    arrays = [isinstance(leaf, jax.Array | np.ndarray | np.generic) for leaf in leaves]
    rest = tuple(_HELD if own else leaf for leaf, own in zip(leaves, arrays))
    bare = Bare(Same(function.func), structure, rest, tuple(map(type, rest)), tuple(static_parts(structure)))
    try:
        hash(bare)
    except TypeError:  # cannot be known again
        return [], Bare(Same(function))
    return [leaf for leaf, own in zip(leaves, arrays) if own], bare


@dataclasses.dataclass(frozen=True)
class Bare:
    """A function without the arrays that it holds: bare(held) is the function; equal where it is the same."""

    function: Same
    structure: Any = None
    rest: tuple = ()  # what else a Partial holds
    types: tuple = ()  # of it: 1 is not True
    inside: tuple = dataclasses.field(default=(), compare=False)  # functions in the structure: what they hold is read

    def __call__(self, held):
        if self.structure is None:
            return self.function.function
        arrays = iter(held)
        filled = [next(arrays) if each is _HELD else each for each in self.rest]
        arguments, keywords = jax.tree.unflatten(self.structure, filled)
        return Partial(self.function.function, *arguments, **keywords)
