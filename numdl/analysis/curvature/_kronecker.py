"""MEASURED: a curvature matrix as one Kronecker product for each weight that data is contracted with (KFAC, EKFAC)."""

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree, ScalarLike

from numdl import _effort, checks, trees
from numdl.analysis import _examples, _parts
from numdl.analysis.curvature import _factored
from numdl.records import record, static
from numdl.typing import Apply


@record
class KroneckerBlock:
    """A diagonal block, of weights [parts, F, O] with their bias as a last input: `inputs` (x) `outputs`, or corrected.

    Each part is a block of its own. Entry (i, o) of a part stands in row i O + o of its block.
    """

    leaf: str = static()  # path of the weight
    bias: str | None = static()  # path of the bias, which is the last of the inputs
    positions: int = static()  # how often an example uses each weight
    inputs: jax.Array  # [parts, F(+1), F(+1)]: A = E a a'
    outputs: jax.Array  # [parts, O, O]: G = E g g'
    input_basis: jax.Array = dataclasses.field(repr=False)  # [parts, F(+1), F(+1)]: eigenvectors of A in columns
    output_basis: jax.Array = dataclasses.field(repr=False)  # [parts, O, O]
    eigenvalues: jax.Array  # [parts, F(+1), O]: products of theirs; with `corrected` the second moments along the bases
    index: jax.Array = dataclasses.field(repr=False)  # [parts, F, O]: entries of the leaf
    bias_index: Any = dataclasses.field(repr=False)  # [parts, O], or None

    @property
    def matrix(self):
        """The block itself, [parts, F(+1) O, F(+1) O]."""
        basis = jnp.einsum("pif,poq->piofq", self.input_basis, self.output_basis)
        size = self.eigenvalues[0].size
        basis = basis.reshape(-1, size, size)
        return jnp.einsum("pij,pj,pkj->pik", basis, self.eigenvalues.reshape(-1, size), basis, precision="highest")


@record
class Kronecker:
    """A symmetric positive semidefinite matrix of Kronecker blocks; of leaves in no block its diagonal, exact."""

    moving: Any = dataclasses.field(repr=False)  # pytree: the part of params that moves
    rest: trees.Rest = dataclasses.field(repr=False)
    blocks: dict  # name -> KroneckerBlock: the weight's path, '#1' from a second block of the same leaf on
    alone: dict  # path -> diagonal, like the leaf: what no contraction has a weight of
    reasons: tuple = static()  # (path, why) of each leaf alone
    kind: str = static()  # "exact", "sampled" or "empirical"
    sharing: str = static()  # "expand" or "reduce"
    corrected: bool = static()  # whether eigenvalues are second moments (EKFAC)
    convex: jax.Array  # [] bool: no output Hessian has a negative eigenvalue; if one has, its part is left out

    def __repr__(self):
        """A line for each block and each leaf alone."""
        head = f"Kronecker {self.kind}, {self.sharing}, {self.size} parameters" + ", corrected" * self.corrected
        lines = [
            f"  {name}{f' + {b.bias}' if b.bias else ''}: {' x '.join(map(str, b.eigenvalues.shape))}, "
            f"{b.positions} position{'s' * (b.positions > 1)}"
            for name, b in self.blocks.items()
        ]
        alone = [f"  {name}: diagonal ({why})" for name, why in self.reasons]
        return "\n".join([head, *lines, *alone])

    @property
    def params(self):
        """The parameters at which the matrix is taken."""
        return self.rest.params(self.moving)

    @property
    def like(self):
        """The coordinates: params with None for what stays and two reals for complex ones."""
        return self.moving

    @property
    def size(self):
        """Rows of the matrix."""
        return sum(np.size(leaf) for leaf in jax.tree.leaves(self.moving))

    @property
    def eigenvalues(self):
        """{name: eigenvalues, flat} of the blocks and the leaves alone; entries of leaves that nothing uses are 0."""
        found = {name: block.eigenvalues.ravel() for name, block in self.blocks.items()}
        found |= {name: leaf.ravel() for name, leaf in self.alone.items()}
        spare = self.size - sum(leaf.size for leaf in found.values())
        return found | ({"(unused)": jnp.zeros(spare)} if spare else {})

    def __call__(self, v: PyTree) -> PyTree:
        """The product with v, like params."""
        return self.transformed(v, lambda values: values)

    def inverse(self, v: PyTree, *, damping: ScalarLike) -> PyTree:
        """(matrix + damping I)^-1 v, exactly; v like params, damping > 0."""
        damping = checks.positive("damping", damping, shape=())
        return self.transformed(v, lambda values: 1 / (values + jnp.asarray(damping, values.dtype)))

    def transformed(self, v: PyTree, function: Any) -> PyTree:
        """f(matrix) v for an elementwise function f of eigenvalues; v like params, 0 comes out where nothing moves."""
        function = checks.accepts("function", function, 1, "function(eigenvalues)")
        v = _parts.inward("v", v, self.params, self.rest, self.moving)
        return _parts.outward(transformed(self, v, function), self.rest)

    def log_determinant(self, *, damping: ScalarLike) -> Array:
        """ln det(matrix + damping I), damping > 0."""
        return sum(self.log_determinants(damping=damping).values())

    def log_determinants(self, *, damping: ScalarLike) -> dict[str, Array]:
        """{name: ln det(block + damping I)} of the blocks and the leaves alone."""
        damping = checks.positive("damping", damping, shape=())
        return {k: jnp.sum(jnp.log(w + jnp.asarray(damping, w.dtype))) for k, w in self.eigenvalues.items()}

    @property
    def diagonal(self):
        """The diagonal, like params; 0 where nothing moves."""
        return _parts.outward(_diagonal(self), self.rest)

    @property
    def traces(self):
        """{path: trace of the leaf's part} of every leaf that moves."""
        return dict(zip(trees.names(self.moving), map(jnp.sum, jax.tree.leaves(_diagonal(self))), strict=True))

    @property
    def trace(self):
        """The sum of all eigenvalues."""
        return sum(jnp.sum(values) for values in self.eigenvalues.values())


def kronecker(
    outputs: Apply,
    loss_of_outputs: Callable,
    params: PyTree,
    batch: PyTree,
    *,
    fisher: str = "exact",
    sharing: str = "expand",
    corrected: bool = False,
    key: Key[Array, ""] | None = None,
    samples: int = 1,
    frozen: Sequence[str] = (),
    chunk: int = 32,
    reduction: str | None = None,
) -> Kronecker:
    """MEASURED Kronecker-factored curvature (KFAC; EKFAC with `corrected`) of the weights of any JAX function.

        block = A (x) G,  expand: A = E a_t a_t', G = E sum_t g_t g_t';  reduce: those of mean_t a_t and of sum_t g_t

    a_t: inputs at position t (pixel, token, step), a last 1 for a bias; g_t: cotangents of the loss's root there. Exact
    for one position an example where g does not depend on a. A leaf in no contraction has its own exact diagonal.

    Parameters
    ----------
    outputs : function          (params, batch) -> z [N, ...], real, example by example: that is verified
    loss_of_outputs : function  (z, batch) -> scalar or pair (sum, weight), over the examples; k^2 numbers for k outputs
    params, frozen, reduction : as in `hessian`
    batch : pytree              every leaf [N, ...]
    fisher : "exact" | "sampled" | "empirical"    Gauss-Newton matrix, the Fisher matrix of a likelihood; random signs
                                times the root of the loss's Hessian, in the mean the same; gradients at the targets
    sharing : "expand" | "reduce"   positions as examples, or summed before; see Source for where each is exact
    corrected : bool            second moments of the gradients along the eigenvectors in place of eigenvalues
    key, samples : key, int     of the signs, with "sampled" alone; draws for each example
    chunk : int                 examples at a time
    Returns
    -------
    Kronecker                   blocks, alone, reasons; a product v -> A v, inverse, log_determinant, diagonal, trace
    Raises
    ------
    ValueError, TypeError       an unknown choice, a key missing or not needed, examples that are coupled
    Source: Martens & Grosse 2015; George et al. 2018; Eschenhagen et al. 2023, arXiv:2311.00636.
    """
    outputs = checks.returning("outputs", outputs, 2, "outputs(params, batch)")
    loss = checks.returning("loss_of_outputs", loss_of_outputs, 2, "loss_of_outputs(z, batch)")
    moving, rest = trees.trainable(params, frozen=frozen)
    batch = checks.leaves("batch", batch)
    count = checks.length("batch", batch)
    settings = {
        "kind": checks.one_of("fisher", fisher, _factored.KINDS),
        "sharing": checks.one_of("sharing", sharing, ("expand", "reduce")),
        "samples": checks.whole("samples", samples),
        "chunk": checks.whole("chunk", chunk),
    }
    corrected = checks.flag("corrected", corrected)
    checks.one_of("reduction", reduction, (None, "mean", "sum"))
    keys = _keys(key, fisher, count)
    problem = _factored.Problem(outputs, moving, rest, batch)
    settings["reduction"] = _factored.reduction_of(outputs, loss, moving, rest, batch, reduction)
    _examples.one_by_one("outputs", outputs, moving, rest, batch=batch)
    _factored.verify(outputs, loss, moving, rest, batch, settings["reduction"])
    given = outputs, loss, moving, rest, batch, keys
    found, rows, lowest = _factored.factors(*given, **settings)
    spectra = [[_spectrum(factor) for factor in pair] for pair in found]
    values = [a[:, :, None] * g[:, None, :] for (a, _), (g, _) in spectra]
    if corrected:
        bases = [(a, g) for (_, a), (_, g) in spectra]
        values = _factored.corrected(*given, bases, **settings)
    names = _block_names(problem)
    blocks = {
        names[i]: _block(problem, block, *found[i], *(basis for _, basis in spectra[i]), values[i])
        for i, block in enumerate(problem.blocks)
    }
    alone = {problem.names[leaf]: row for leaf, row in zip(problem.alone, rows, strict=True)}
    noise = 100 * jnp.finfo(lowest.dtype).eps
    return Kronecker(moving, rest, blocks, alone, problem.reasons, fisher, sharing, corrected, lowest >= -noise)


def _keys(key, fisher, count):
    """A key for each example; numbers that are not used where nothing is drawn."""
    if fisher == "sampled":
        return jax.random.split(checks.key("key", key), count)
    if key is not None:
        raise checks.BadValue(f'key must be None unless fisher is "sampled"; got {checks.shown(key)} and {fisher!r}')
    return np.zeros(count)


@_effort.jit
def _spectrum(factor):
    """Eigenvalues, what rounding has left below 0 as 0, and eigenvectors in columns."""
    values, vectors = jnp.linalg.eigh(factor)
    return jnp.maximum(values, 0), vectors


def _block_names(problem):
    seen, names = collections.Counter(), []
    for block in problem.blocks:
        name = problem.names[block.leaf]
        names.append(f"{name}#{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names


def _block(problem, block, inputs, outputs, input_basis, output_basis, eigenvalues):
    bias = None if block.bias is None else problem.names[block.bias]
    index, bias_index = (None if each is None else jnp.asarray(each) for each in (block.index, block.bias_index))
    arrays = inputs, outputs, input_basis, output_basis, eigenvalues, index, bias_index
    return KroneckerBlock(problem.names[block.leaf], bias, block.positions, *arrays)


# ---- products ------------------------------------------------------------------------------------------------------


def transformed(matrix, v, function):
    """f(matrix) v of coordinates; entries that nothing uses have the eigenvalue 0."""
    leaves, structure = jax.tree.flatten(v)
    leaves = dict(zip(trees.names(matrix.moving), leaves, strict=True))
    done = {name: function(jnp.zeros((), leaf.dtype)) * leaf for name, leaf in leaves.items()}
    for block in matrix.blocks.values():
        turned = _turned(block.input_basis, _gathered(block, leaves), block.output_basis)
        back = _turned(_swapped(block.input_basis), function(block.eigenvalues) * turned, _swapped(block.output_basis))
        _scatter(block, done, back)
    for name, row in matrix.alone.items():
        done[name] = (function(row) * leaves[name]).astype(leaves[name].dtype)
    return jax.tree.unflatten(structure, list(done.values()))


def _diagonal(matrix):
    leaves, structure = jax.tree.flatten(matrix.moving)
    done = {name: jnp.zeros_like(leaf) for name, leaf in zip(trees.names(matrix.moving), leaves, strict=True)}
    for block in matrix.blocks.values():
        squares = _swapped(block.input_basis) ** 2, _swapped(block.output_basis) ** 2
        _scatter(block, done, _turned(squares[0], block.eigenvalues, squares[1]))
    done |= {name: row.astype(done[name].dtype) for name, row in matrix.alone.items()}
    return jax.tree.unflatten(structure, list(done.values()))


def _turned(left, w, right):
    """left' w right, part by part."""
    return jnp.einsum("pfi,pfo,poq->piq", left, w, right, precision="highest")


def _swapped(bases):
    return jnp.swapaxes(bases, -1, -2)


def _gathered(block, leaves):
    """[parts, F(+1), O] of the leaves."""
    w = leaves[block.leaf].ravel()[block.index]
    if block.bias is not None:
        w = jnp.concatenate([w, leaves[block.bias].ravel()[block.bias_index][:, None]], 1)
    return w.astype(block.eigenvalues.dtype)


def _scatter(block, leaves, w):
    """Put [parts, F(+1), O] into the leaves."""
    places = [(block.leaf, block.index, w if block.bias is None else w[:, :-1])]
    if block.bias is not None:
        places.append((block.bias, block.bias_index, w[:, -1]))
    for name, index, values in places:
        leaf = leaves[name]
        leaves[name] = leaf.ravel().at[index].set(values.astype(leaf.dtype)).reshape(leaf.shape)
