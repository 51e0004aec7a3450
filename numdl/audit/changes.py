"""What to change: the lines of a repair, the new parts, and the whole repaired setting to train with."""

import math
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from numdl import checks
from numdl.audit import _affine
from numdl.audit._measured import cases
from numdl.records import record, static


@record
class Repair:
    """What to change. What is None stays as it was."""

    changes: tuple = static()  # lines, the most important first
    by_hand: tuple = static()  # lines for what cannot be built here
    params: Any  # like those that were given, None for what is no array
    optimizer: str | None = static()  # a named method in the place of the user's
    learning_rate: float
    batch_size: int | None = static()  # examples
    kept: Any  # numbers of the rows of the data that stay
    input_shift: Any  # like one example: x -> (x - shift) * scale, as `inputs` does
    input_scale: Any
    target_shift: Any
    target_scale: Any
    apply: Any = static()  # another network: without its last function, or without what ended its gradient
    loss: Any = static()
    case: Any = static()  # the repaired Case

    def __repr__(self):
        lines = [f"{i}. {line}" for i, line in enumerate(self.changes, 1)]
        return "\n".join(["Repair", *lines, *(f"by hand: {line}" for line in self.by_hand)])

    def inputs(self, x: PyTree) -> PyTree:
        """Inputs as the repaired network takes them, those to come as well: (x - input_shift) * input_scale.

        Parameters
        ----------
        x : pytree              arrays [N, ...], like the inputs that were examined
        Raises
        ------
        ValueError, TypeError   another tree, other columns, no arrays
        """
        return _moved("x", x, self.input_shift, self.input_scale)

    def targets(self, y: PyTree) -> PyTree:
        """Targets as the repaired network learns them: (y - target_shift) * target_scale.

        Parameters
        ----------
        y : pytree              arrays [N, ...], like the targets that were examined
        Raises
        ------
        ValueError, TypeError   another tree, other columns, no arrays
        """
        return _moved("y", y, self.target_shift, self.target_scale)

    def setting(self) -> dict[str, Any]:
        """The repaired network, data and method as arguments of `examine`: to train with, or to examine again.

        Batch and data are changed already; `build` and `widths` are left out.
        """
        case, size, data = self.case, self.case.examples, self.case.data
        if case.in_order and data is not None:  # batches in the order in which they come
            data = [
                tuple(cases.take(part, slice(i, i + size)) for part in data)
                for i in range(0, cases.count(data[0]), size)
            ]
        return {
            "apply": case.apply,
            "params": case.whole(case.moving),
            "batch": (case.x, case.y),
            "loss": case.loss,
            "optimizer": _method(case),
            "learning_rate": None if math.isnan(case.rate) else case.rate,
            "steps": case.steps,
            "data": data,
            "evaluate": case.evaluate,
            "stochastic": case.stochastic,
            "key": case.key,
        }


def _moved(name, tree, shift, scale):
    """The affine map of arrays that fit it: NumPy would broadcast others without a word."""
    if shift is None:
        return tree
    tree = checks.leaves(name, tree)
    shapes, asked = (jax.tree.map(np.shape, part) for part in (tree, shift))
    if jax.tree.structure(tree) != jax.tree.structure(shift):
        raise checks.BadValue(f"{name} must be like what was examined, columns {asked}; got shapes {shapes}")
    for own, column in zip(map(np.shape, jax.tree.leaves(tree)), map(np.shape, jax.tree.leaves(shift)), strict=True):
        if len(own) <= len(column) or own[len(own) - len(column) :] != column:
            raise checks.BadValue(f"{name} must end in the shape {column} of what was examined; got shape {own}")
    return _affine.moved(tree, shift, scale)


def _method(case):
    """The optimizer as it may be given: a name, a family, or a finished transformation."""
    if case.make is None:
        return case.transformation
    return case.name if case.name in cases.NAMED and case.make is cases.named(case.name) else case.make
