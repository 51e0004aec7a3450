"""MEASURED: symmetric matrices known by their products v -> A v, their diagonal blocks, products made once for many v.

An operator is a record: the parameters and the data are its arrays, the loss is part of its structure. `jit` therefore
compiles once for a loss *function* and the shapes, and takes new parameters and data without compiling again; write the
loss once with `def`, not as a new `lambda` in every call. Nothing random may be in the loss, and batch statistics must
be frozen (named in `frozen`, or closed over). With `chunk` it is verified that the chunks make the whole.

Leaves of params that are real floating-point numbers are the coordinates, complex ones two each; all else stays.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numdl import _effort, checks, trees
from numdl._compiled import jit
from numdl.analysis import _parts
from numdl.krylov import _vectors
from numdl.records import record, static
from numdl.tracing._programs import CONTRACTIONS, bodies


@record
class Operator:
    """A symmetric matrix at `params`, known by its products: operator(v) for trees v like params."""

    moving: Any = dataclasses.field(repr=False)  # pytree: the part of params that moves
    rest: trees.Rest = dataclasses.field(repr=False)  # and what makes params of it again
    batch: Any = dataclasses.field(repr=False)  # pytree: the data
    kind: Any = static()  # what is differentiated, and how
    chunk: int | None = static(default=None)  # examples at a time
    selected: tuple | None = static(default=None)  # names of the leaves differentiated; None: all that move
    reduction: str = static(default="mean")  # how the chunks make the whole: "mean", "sum", or "pair" (sum, weight)
    weight: Any = dataclasses.field(default=None, repr=False)  # of all chunks, where the loss is a pair
    for_speed: bool = static(default=False)  # nobody asked for the chunk: all at once where it is in the way
    push: Any = dataclasses.field(default=None, repr=False)  # v -> A v with all else computed; None: nothing is kept

    @property
    def params(self):
        """The parameters at which the matrix is taken."""
        return self.rest.params(self.moving)

    @property
    def like(self):
        """The coordinates: params with None for what stays and two reals for complex ones; {name: ...} of a block."""
        return self.moving if self.selected is None else self._named(self.moving)

    @property
    def size(self):
        """Rows of the matrix."""
        return sum(np.size(leaf) for leaf in jax.tree.leaves(self.like))

    @property
    def eager(self):
        """Whether the product is a loop in Python over compiled parts."""
        return self.chunk is not None

    @property
    def kept_bytes(self):
        """Bytes that a linearized product keeps (of one chunk), the parameters and data that it reads included."""
        return self.kept_bytes_of(self.chunk)

    def kept_bytes_of(self, count):
        """The same for the first `count` examples at once, all of them if it is None; by shapes alone."""

        def keeps(operator):
            batch = jax.tree.map(lambda leaf: leaf if count is None else leaf[:count], operator.batch)
            return _linearized(dataclasses.replace(operator, batch=batch, chunk=None, push=None))

        shapes = jax.eval_shape(keeps, self)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))

    def __call__(self, v):
        """The product A v; v like params ({name: leaf} in a block), 0 where nothing moves, or like `like`."""
        if jax.tree.structure(v) == jax.tree.structure(self.like):
            return self._product(_parts.cast("v", checks.like("v", v, self.like), self.like))
        return self.outward(self._product(self.inward("v", v)))

    def prepared(self):
        """The operator for many products at these parameters: all that does not depend on v computed once and kept.

        It keeps `kept_bytes`. Where chunks were asked for, or convolutions on a CPU are faster computed again than
        read again, the operator as it is.
        """
        operator, linearize = settled(self, None)
        return dataclasses.replace(operator, push=_linearized(operator)) if linearize else operator

    def inward(self, name, tree):
        """The coordinates of a tree like params, {name: leaf} in a block."""
        expected, rest = self._view()
        return _parts.inward(name, tree, expected, rest, self.like)

    def inward_rows(self, name, tree):
        """The coordinates of trees like params along a leading axis."""
        expected, rest = self._view()
        return _parts.inward_rows(name, tree, expected, rest, self.like)

    def outward(self, v, lead=()):
        """The tree like params of coordinates with the leading axes `lead`."""
        return _parts.outward(v, self._view()[1], lead)

    def pieces(self):
        """The operators of the chunks, each with its share in the whole."""
        count = examples(self.batch)
        for begin in range(0, count, self.chunk):
            piece = jax.tree.map(lambda leaf, begin=begin: leaf[begin : begin + self.chunk], self.batch)
            share = examples(piece) / count if self.reduction == "mean" else 1.0
            yield dataclasses.replace(self, batch=piece, chunk=None), share

    def _product(self, v):
        inside = _vectors.traced((self, v))
        if self.chunk is None or (self.for_speed and inside):
            return self._at_once(v) if inside else _at_once(self, v)
        total = None
        for piece, share in self.pieces():
            total = _accumulated(piece, v, share, total)
        return total

    def _at_once(self, v):
        if self.push is not None:
            return self.push(v)
        return self.kind.product(lambda part: self._whole(part), self.like, self.batch, v, self.weight)

    def _whole(self, part):
        """The parameters with `part` in place of the coordinates."""
        if self.selected is not None:
            own = self.rest.structure.flatten_up_to(self.moving)
            every = _names(self.rest)
            merged = [part.get(name, leaf) for name, leaf in zip(every, own, strict=True)]
            part = jax.tree.unflatten(self.rest.structure, merged)
        return self.rest.params(part)

    def _view(self):
        """(what a caller sees as params, the rule that leads from there to the coordinates)."""
        if self.selected is None:
            return self.params, self.rest
        names = _names(self.rest)
        kinds_of = dict(zip(names, self.rest.kinds, strict=True))
        structure = jax.tree.structure(dict.fromkeys(self.selected, 0))
        rest = trees.Rest((), structure, tuple(kinds_of[name] for name in sorted(self.selected)))
        return rest.params(self.like), rest

    def _named(self, moving):
        names = _names(self.rest)
        found = dict(zip(names, self.rest.structure.flatten_up_to(moving), strict=True))
        return {name: found[name] for name in self.selected}


def restrict(operator: Operator, names: str | Sequence[str]) -> Operator:
    """The diagonal block of the leaves whose path is, or lies under, one of the names; a name may be a glob.

    Parameters
    ----------
    operator : Operator         of `hessian`, `gauss_newton`, `fisher` or `empirical_fisher`
    names : str or several      paths of leaves or of what holds them, such as "params/Dense_0" or "*/kernel"
    Returns
    -------
    Operator                    acts on {path: leaf} of the block
    Raises
    ------
    ValueError, TypeError       a name that fits no leaf, no leaf among them that moves, not an Operator
    """
    checks.instance("operator", operator, Operator, hint="from hessian, gauss_newton, fisher or empirical_fisher")
    every = _names(operator.rest)
    chosen = trees.matching("names", names, every)
    moving = [path for path, kind in zip(every, operator.rest.kinds, strict=True) if kind != "kept"]
    selected = tuple(path for path in moving if path in chosen)
    if not selected:
        raise checks.BadValue(f"names must hold a leaf that moves, one of {', '.join(moving)}; got {names!r}")
    return dataclasses.replace(operator, selected=selected, push=None)


def blocks(operator: Operator, *, by: str = "layer") -> dict[str, Operator]:
    """{name: Operator} of the diagonal blocks: one for each leaf, or for each group of leaves under one path.

    Parameters
    ----------
    operator : Operator         of `hessian`, `gauss_newton`, `fisher` or `empirical_fisher`
    by : "layer" | "leaf"       one block for all leaves that lie under one path, or for each leaf
    Returns
    -------
    dict                        {path: Operator}, in the order of the leaves
    Raises
    ------
    ValueError, TypeError       another `by`, not an Operator
    """
    checks.instance("operator", operator, Operator, hint="from hessian, gauss_newton, fisher or empirical_fisher")
    checks.one_of("by", by, ("layer", "leaf"))
    every = _names(operator.rest)
    moving = [path for path, kind in zip(every, operator.rest.kinds, strict=True) if kind != "kept"]
    groups = {}
    for path in operator.selected or moving:
        groups.setdefault(path if by == "leaf" else path.rpartition("/")[0] or path, []).append(path)
    return {name: dataclasses.replace(operator, selected=tuple(own), push=None) for name, own in groups.items()}


def settled(operator, linearize):
    """(the operator as it will be applied, whether linearized): as asked for, else where it is faster."""
    if linearize is None:
        return operator, operator.chunk is None and operator.push is None and _worthwhile(operator)
    if checks.flag("linearize", linearize) and operator.chunk is not None and not operator.for_speed:
        raise checks.BadValue(
            "linearize keeps the whole data's activations, chunk avoids it; one of the two must be left out: got both"
        )
    return (dataclasses.replace(operator, chunk=None) if linearize else operator), bool(linearize)


def prepared(operator, linearize):
    """The settled operator, or its product with all that does not depend on v computed once and kept."""
    return _linearized(operator) if linearize else operator


def examples(batch):
    """The number N of examples, the first axis of every leaf."""
    return checks.length("batch", batch)


@jit
def _at_once(operator, v):
    return operator._at_once(v)


@jit
def _linearized(operator):
    # The product is linear in v: its derivative at 0 is itself, with everything else already computed.
    return jax.linearize(operator, jax.tree.map(jnp.zeros_like, operator.like))[1]


def _worthwhile(operator):
    """On a CPU a convolution's activations take longer to read again than to compute again."""
    if jax.default_backend() != "cpu":
        return True
    return not _has_convolution(jax.make_jaxpr(_linearized)(operator).jaxpr)


def multiplications(operator):
    """Multiplications in the contractions of a product with all examples."""
    whole = dataclasses.replace(operator, chunk=None, push=None)
    return _multiplications(jax.make_jaxpr(_applied)(whole, operator.like).jaxpr)


def _applied(operator, v):
    return operator(v)


def _multiplications(jaxpr):
    total = 0
    for equation in jaxpr.eqns:
        inner = sum(_multiplications(getattr(body, "jaxpr", body)) for body in bodies(equation))
        total += inner * (equation.params["length"] if equation.primitive.name == "scan" else 1)
        if equation.primitive.name in CONTRACTIONS:
            left, right = (variable.aval.shape for variable in equation.invars)
            numbers = equation.params["dimension_numbers"]
            if equation.primitive.name == "dot_general":
                each = math.prod(left[axis] for axis in numbers[0][0])
            else:
                each = math.prod(right) // max(right[numbers.rhs_spec[0]], 1)
            total += each * math.prod(equation.outvars[0].aval.shape)
    return total


def _has_convolution(jaxpr):
    return any(
        equation.primitive.name == "conv_general_dilated"
        or any(_has_convolution(getattr(body, "jaxpr", body)) for body in bodies(equation))
        for equation in jaxpr.eqns
    )


@_effort.jit
def _accumulated(part, v, share, total):
    product = jax.tree.map(lambda leaf: (share * leaf).astype(leaf.dtype), part(v))
    return product if total is None else jax.tree.map(jnp.add, total, product)


def _names(rest):
    """The paths of all leaves of params, those that stay included."""
    return trees.names(jax.tree.unflatten(rest.structure, range(len(rest.kinds))))
