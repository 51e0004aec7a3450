"""What the methods share: pytrees as flat vectors, products with many vectors, a basis that grows row by row.

A basis is kept as rows [m, n]: products with it stream through memory, which columns [n, m] do not (17 times slower).
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from numdl import _effort, checks
from numdl._compiled import as_tree, jit
from numdl.krylov import _places
from numdl.records import record, static

BLOCK = 16  # rows of a basis that are kept, read and written together
EXHAUSTED = 32  # roundings of a vector below which what is left of it beside others is none of its own


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a pytree of arrays lies in one vector; hashable."""

    structure: Any
    shapes: tuple
    dtypes: tuple
    places: Any = None  # where the leaves are, if they are spread over devices: then so is the vector

    @property
    def size(self):
        """Numbers n of the tree."""
        return sum(map(math.prod, self.shapes))

    @property
    def length(self):
        """Entries of the vector: n, or some more that are always 0 where it is spread over devices."""
        return self.size if self.places is None else self.places.length

    def zeros(self, *lead):
        """Vectors of 0 with these leading axes."""
        device = None if self.places is None else self.places.of(len(lead))
        return jnp.zeros((*lead, self.length), self.dtype, device=device)

    @property
    def form(self):
        """Shapes and dtypes as a tree."""
        leaves = [jax.ShapeDtypeStruct(*pair) for pair in zip(self.shapes, self.dtypes, strict=True)]
        return jax.tree.unflatten(self.structure, leaves)

    @property
    def dtype(self):
        """The dtype of the vector, that of all leaves promoted."""
        return np.dtype(jnp.result_type(*self.dtypes))

    @property
    def eps(self):
        """Rounding unit of the coarsest leaf."""
        return max(float(jnp.finfo(dtype).eps) for dtype in self.dtypes)

    def ravel(self, tree):
        """The tree as a vector [n]."""
        if self.places is not None:
            return self.places.ravel(jax.tree.leaves(tree), self.dtype)
        return jnp.concatenate([jnp.ravel(leaf).astype(self.dtype) for leaf in jax.tree.leaves(tree)])

    def unravel(self, rows):
        """The tree of a vector [n], or of rows [..., n] the tree with their leading axes."""
        if self.places is not None:
            return jax.tree.unflatten(self.structure, self.places.unravel(rows, self.dtypes))
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])[:-1]
        parts = jnp.split(rows, ends, axis=-1)
        leaves = [
            part.reshape(*rows.shape[:-1], *shape).astype(dtype)
            for part, shape, dtype in zip(parts, self.shapes, self.dtypes, strict=True)
        ]
        return jax.tree.unflatten(self.structure, leaves)

    def rows(self, name, tree):
        """The rows [k, n] of a tree whose leaves have a leading axis k; `name` is what the caller knows it as."""
        count = checks.length(name, tree, of="vectors")
        tree = checks.leaves(name, tree)
        stacked = [jax.ShapeDtypeStruct((count, *s), d) for s, d in zip(self.shapes, self.dtypes, strict=True)]
        tree = checks.like(name, tree, jax.tree.unflatten(self.structure, stacked), of="like, a leading axis before it")
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            checks.floating(f"{name}{jax.tree_util.keystr(path)}", leaf)
        leaves = jax.tree.leaves(tree)
        if self.places is not None:
            return jnp.stack([self.ravel([leaf[i] for leaf in leaves]) for i in range(count)])
        return jnp.concatenate([leaf.reshape(leaf.shape[0], -1).astype(self.dtype) for leaf in leaves], axis=1)


@record
class Flat:
    """A function of pytrees as one of vectors: a pytree itself, so that `jit` knows it again."""

    matvec: Any
    layout: Layout = static()

    def __call__(self, v):
        """A v, both flat."""
        return self.layout.ravel(
            checks.like("matvec(v)", self.matvec(self.layout.unravel(v)), self.layout.form, of="v")
        )


def layout(name, like):
    """The Layout of a pytree of real arrays (or of shapes and dtypes), checked."""
    pairs, structure = jax.tree_util.tree_flatten_with_path(like)
    if not pairs:
        raise checks.BadValue(f"{name} must hold at least one array; got {like!r}")
    leaves = [checks.leaf(f"{name}{jax.tree_util.keystr(path)}", leaf, shapes=True) for path, leaf in pairs]
    for (path, _), leaf in zip(pairs, leaves, strict=True):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            place = jax.tree_util.keystr(path)
            raise checks.BadType(
                f"{name} must hold real floating-point arrays only; {name}{place} is {dtype or repr(leaf)}; got it"
            )
    return Layout(
        structure,
        tuple(tuple(leaf.shape) for leaf in leaves),
        tuple(jax.dtypes.canonicalize_dtype(leaf.dtype) for leaf in leaves),
    )


def flat(matvec, like, *, square=True, spread=True):
    """(function of vectors, Layout) of a function of pytrees shaped like `like`; `spread`: over devices as `like` is.

    A plain function is compiled once for its identity and what it holds; a `jax.tree_util.Partial` or a
    callable record hands its arrays to `jit` as arguments. One with an attribute `eager` that is true is not compiled.
    A square one is looked at before any work: what it returns is like what it takes.
    """
    checks.accepts("matvec", matvec, 1, "matvec(v)")
    shape = layout("like", like)
    if spread:
        shape = dataclasses.replace(shape, places=_places.places(jax.tree.leaves(like)))
    made = Flat(as_tree(matvec), shape)
    if square and not getattr(matvec, "eager", False) and not traced((matvec, like)):
        # The trace is the one that the first product takes.
        _apply.eval_shape(made, jax.ShapeDtypeStruct((shape.length,), shape.dtype))
    return made, shape


def image(name, function, like):
    """Shapes and dtypes of what a function of pytrees returns, all arrays."""
    return jax.eval_shape(checks.returning(name, lambda v: function(v), 1, f"{name}(v)"), like)


def apply(matvec, v):
    """A v for a function of vectors: compiled, unless it sees to that itself."""
    inner = getattr(matvec, "matvec", matvec)
    return matvec(v) if getattr(inner, "eager", False) else _apply(matvec, v)


def products(matvec, rows):
    """A applied to each row [k, n]. One after the other: on a CPU a batch of Hessian products is the slower way.

    Outside of `jit` a Python loop over the compiled product, as a convolution's weight gradient inside a compiled loop
    takes ten times as long on a CPU; inside of `jit`, `lax.map`.
    """
    if traced((matvec, rows)):
        return lax.map(matvec, rows)
    return each(functools.partial(apply, matvec), rows)


def each(function, rows):
    """function(row) of each of the rows [k, n], one after the other outside of `jit`."""
    found = jnp.zeros_like(rows)
    for i in range(len(rows)):
        found = _set_row(found, function(_row(rows, np.int32(i))), np.int32(i))
    return found


def as_precise(product):
    """The product as precise as its vector."""
    return lambda v: jax.tree.map(lambda image, leaf: image.astype(leaf.dtype), product(v), v)


def look(name, function, start, like, *, of):
    """Refuse a function whose value at `start` is not like `like`; asked once for the same function and shapes."""
    looked = checks.returning(name, function, 1, f"{name}(v)")
    key = (name, of, checks.forms(start, like))
    checks.once(
        function, key, lambda: checks.like(f"{name}(v)", jax.eval_shape(looked, start), like, of=of, shapes=True)
    )


def nonzero(name, vector):
    """A vector that has a direction; inside of jit its numbers are unknown and it passes."""
    if traced(vector):
        return vector
    size = float(_norm(vector)) if isinstance(vector, jax.Array) else float(np.abs(np.asarray(vector)).max(initial=0.0))
    if not (0 < size < np.inf):
        raise checks.BadValue(f"{name} must be a finite vector that is not 0; got one of norm {size:g}")
    return vector


def traced(tree):
    """Whether any leaf is a tracer."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree))


class Rows:
    """Orthonormal rows [count, n], in blocks that are made as they fill. Mutable: for loops in Python only."""

    def __init__(self, layout):
        self.layout, self.count, self.blocks = layout, 0, []

    def append(self, v):
        """One more row."""
        if self.count == BLOCK * len(self.blocks):
            self.blocks.append(self.layout.zeros(BLOCK))
        self.blocks[-1] = _set_row(self.blocks[-1], v, np.int32(self.count % BLOCK))
        self.count += 1

    def project(self, w):
        """(coefficients [count] of w, w without its components along the rows); one pass."""
        found = []
        for block in self.blocks:
            coefficients, w = _project(block, w)
            found.append(coefficients)
        found = np.concatenate([np.asarray(c, np.float64) for c in found]) if found else np.zeros(0)
        return found[: self.count], w

    def turned(self, weights):
        """The rows weights.T @ self, for weights [count, p]: new Rows, made block by block."""
        new = Rows(self.layout)
        new.count = weights.shape[1]
        spare = (-self.count % BLOCK, -new.count % BLOCK)
        weights = np.pad(weights, ((0, spare[0]), (0, spare[1]))).astype(self.layout.dtype)
        for column in range(0, new.count, BLOCK):
            parts = np.split(weights[:, column : column + BLOCK], len(self.blocks))
            block = self.layout.zeros(BLOCK)
            for old, part in zip(self.blocks, parts, strict=True):
                block = _combine(block, old, part)
            new.blocks.append(block)
        return new

    def array(self):
        """All rows [count, n]."""
        return jnp.concatenate(self.blocks)[: self.count]

    def copy(self):
        """The same rows, to be appended to apart."""
        new = Rows(self.layout)
        new.count, new.blocks = self.count, [block.copy() for block in self.blocks]
        return new


def orthonormal(space, w):
    """(coefficients, unit vector, norm) of w orthogonalized against the rows; norm 0 where only rounding is left.

    A second pass is made when the first took away so much that what is left is not orthogonal ("twice is enough").
    """
    size = before = float(_norm(w))
    total = np.zeros(space.count)
    for _ in range(3):
        coefficients, w = space.project(w)
        total += coefficients
        after = float(_norm(w))
        if not np.isfinite(after):
            return total, w, after
        if after > 0.7 * before:
            return total, _scaled(w, np.asarray(1 / after, w.dtype)), after
        if after <= 4 * float(jnp.finfo(w.dtype).eps) * size:
            break
        before = after
    return total, w, 0.0


def beside(rows, w):
    """(coefficients, w without its components along orthonormal rows), by Gram-Schmidt twice; rows of 0 take nothing.

    Traceable, for rows of a fixed number; `orthonormal` is for rows that grow in a Python loop.
    """
    first = jnp.matmul(rows, w, precision="highest")
    w = w - jnp.matmul(first, rows, precision="highest")
    second = jnp.matmul(rows, w, precision="highest")
    return first + second, w - jnp.matmul(second, rows, precision="highest")


def unit(w, size):
    """(w / |w|, |w|), or zeros and 0 where no more is left than the rounding of a vector of norm `size`."""
    norm = jnp.linalg.norm(w)
    # Not `norm > ...`: nan is not exhausted, and must be seen by whoever asks next.
    exhausted = norm <= EXHAUSTED * jnp.finfo(w.dtype).eps * size
    found = jnp.where(exhausted, jnp.zeros_like(w), w / jnp.where(exhausted, jnp.ones_like(norm), norm))
    return found, jnp.where(exhausted, jnp.zeros_like(norm), norm)


def unit_beside(rows, w, spare=None):
    """(coefficients, unit vector, norm) of w beside orthonormal rows; norm 0 where only rounding is left.

    The unit vector is then that of `spare` beside the rows, or 0.
    """
    coefficients, rest = beside(rows, w)
    found, norm = unit(rest, jnp.linalg.norm(w))
    if spare is not None:
        other, _ = unit(beside(rows, spare)[1], jnp.linalg.norm(spare))
        found = jnp.where(norm == 0, other, found)
    return coefficients, found, norm


@jit
def _apply(matvec, v):
    return matvec(v)


def _replace_row(block, v, row):
    return lax.dynamic_update_slice(block, v[None], (row, np.int32(0)))


_set_row = jax.jit(_replace_row, donate_argnums=0)


@_effort.jit
def _row(rows, i):
    return lax.dynamic_index_in_dim(rows, i, keepdims=False)


@_effort.jit
def _project(block, w):
    coefficients = jnp.matmul(block, w, precision="highest")
    return coefficients, w - jnp.matmul(coefficients, block, precision="highest")


def _add_combination(total, block, weights):
    return total + jnp.matmul(weights.T, block, precision="highest")


_combine = jax.jit(_add_combination, donate_argnums=0)


@_effort.jit
def _norm(w):
    # Scaled, as squares leave float32's range where norms do not.
    scale = jnp.max(jnp.abs(w))
    safe = jnp.where((scale > 0) & jnp.isfinite(scale), scale, jnp.ones_like(scale))
    return jnp.where(scale > 0, safe * jnp.sqrt(jnp.sum((w / safe) ** 2)), scale)


@_effort.jit
def _scaled(w, factor):
    return w * factor
