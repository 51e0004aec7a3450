"""MEASURED: the tangent kernel <df(x1)/dparams, df(x2)/dparams> in blocks that fit into memory."""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Key, PyTree, ScalarLike

from numdl import checks, precision, tracing, trees
from numdl._compiled import jit
from numdl.analysis import _examples, _sites
from numdl.analysis.kernels import _cost, _doors, _factors
from numdl.networks import core
from numdl.typing import Apply


def ntk(
    apply: Apply,
    params: PyTree,
    x1: PyTree,
    x2: PyTree = None,
    *,
    scale: "PyTree | Callable" = None,
    outputs: str = "mean",
    method: str = "auto",
    memory_limit: float | None = None,
    frozen: Sequence[str] = (),
) -> Float[Array, "..."]:
    """MEASURED neural tangent kernel (NTK) of any function: the mean over its k outputs, or every pair of them.

        K[n, m, i, j] = sum over leaves of scale * <d f_i(x1[n]) / d leaf, d f_j(x2[m]) / d leaf>

    Real floating leaves count, complex ones as two reals; all else stays.

    Parameters
    ----------
    apply : function            apply(params, x) -> real outputs [N, ...], example by example: that is verified
    params : pytree             arrays [..]
    x1, x2 : pytree             arrays [N1, ...], [N2, ...]; x2 None: x1, at half the cost
    scale : pytree or function  variances: a prefix of params with a number for each leaf, or function(name, leaf) ->
                                number; `ntk_scale` makes that of the NTK parameterization. None: 1
    outputs : "mean" | "full"   [N1, N2], mean of K[n, m, i, i]; or K [N1, N2, k, k], outputs flattened
    method : str                "layers": inputs and cotangents of dense layers, Jacobians of the rest; "jacobian": of
                                all; "products": a vector of parameters at a time; "auto": the fewest operations
    memory_limit : bytes        beside parameters and data; None: half of what is free, at most 2 GiB
    frozen : names              paths of leaves that do not count: running statistics, a pretrained part
    Returns
    -------
    array                       [N1, N2] or [N1, N2, k, k], in float32 at least
    Raises
    ------
    ValueError, TypeError       outputs that are not real or depend on other examples, x2 unlike x1, scale unlike params
    MemoryError                 not even one example at a time fits
    Source: Jacot et al. 2018, arXiv:1806.07572; Novak et al. 2022, arXiv:2206.08720.
    Twin: theory.kernels.ntk (the NTK recursion).    Experiments: e3, e4.
    """
    given = apply
    apply, x1, x2, limit = _doors.arguments(apply, x1, x2, outputs, method, memory_limit)
    moving, rest = trees.trainable(params, frozen=frozen)
    scales = _doors.scales(rest.params(moving), rest, scale)
    compute = functools.partial(_kernel, outputs=outputs, method=method, limit=limit)
    inputs = moving, rest, x1, x2, scales
    key = ("ntk", outputs, method, limit, checks.forms(inputs))
    checks.once(given, key, lambda: jax.eval_shape(compute, apply, *inputs))  # what does not fit is refused at once
    _examples.one_by_one("apply", apply, moving, rest, x1=x1, x2=x2)
    return compute(apply, *inputs)


def estimate(
    apply: Apply,
    params: PyTree,
    x1: PyTree,
    x2: PyTree = None,
    *,
    outputs: str = "mean",
    method: str = "auto",
    memory_limit: float | None = None,
    frozen: Sequence[str] = (),
) -> _cost.CostEstimate:
    """What a call to `ntk` with these arguments will cost, from shapes alone.

    Parameters
    ----------
    apply, params, x1, x2, outputs, method, memory_limit, frozen : as in `ntk`; shapes with dtypes will do for arrays
    Returns
    -------
    CostEstimate                method, block [examples], bytes held at once, flops
    Raises
    ------
    ValueError, TypeError       what `ntk` refuses from shapes
    MemoryError                 not even one example at a time fits
    """
    apply, x1, x2, limit = _doors.arguments(apply, x1, x2, outputs, method, memory_limit, shapes=True)
    return _Problem(apply, *trees.trainable(params, frozen=frozen, shapes=True), x1, x2, outputs, method, limit).plan


def ntk_scale(
    apply: Apply, params: PyTree, x: PyTree, *, weight_variance: ScalarLike, bias_variance: ScalarLike
) -> PyTree:
    """Variances of the NTK parameterization: weight_variance / fan_in for weights, bias_variance for all other leaves.

    What `ntk` takes as `scale` to be the kernel of theory.kernels.ntk. A weight is a leaf that a layer of `apply`
    contracts with data; its fan_in is the number of products that make one output.

    Parameters
    ----------
    apply : function            apply(params, x) -> outputs
    params, x : pytree          arrays, or shapes with dtypes
    weight_variance : scalar >= 0   fan_in times the variance of a weight
    bias_variance : scalar >= 0     the variance of all else
    Returns
    -------
    pytree                      like params, a number for each leaf
    Raises
    ------
    ValueError, TypeError       a negative variance, not a function, params without a leaf that moves
    """
    apply = checks.returning("apply", apply, 2, "apply(params, x)")
    weight_variance = checks.variance("weight_variance", weight_variance, shape=())
    bias_variance = checks.variance("bias_variance", bias_variance, shape=())
    trees.trainable(params, shapes=True)
    x = checks.leaves("x", x, examples=True, shapes=True)
    traced = tracing.trace(apply, params, x)
    fans = {leaf: layer.fan_in for layer in reversed(traced.layers) for leaf in _doors.summed_over(layer)}
    leaves, structure = jax.tree.flatten(params)
    pairs = zip(traced.parameters, leaves, strict=True)
    found = [weight_variance / fans[name] if name in fans else bias_variance for name, _ in pairs]
    return jax.tree.unflatten(structure, found)


def nngp(
    key: Key[Array, ""], network: core.Network, x1: ArrayLike, x2: ArrayLike | None = None, *, seeds: int
) -> Float[Array, "seeds N1 N2"]:
    """MEASURED products of outputs, mean over the outputs, of independent networks; their mean over seeds is the NNGP.

        K[s, n, m] = mean over outputs i of f_i(x1[n]) f_i(x2[m]),    f drawn with seed s

    Parameters
    ----------
    key : key                   of the networks
    network : Network           `init` and `apply`, as in numdl.networks
    x1, x2 : arrays [N1, ...], [N2, ...]    inputs; x2 None: x1
    seeds : int >= 1            networks
    Returns
    -------
    array [seeds, N1, N2]       their mean over seeds estimates the covariance of the outputs
    Raises
    ------
    ValueError, TypeError       x2 with other examples than x1, seeds < 1, not a network
    Source: Lee et al. 2018, arXiv:1711.00165.    Twin: theory.kernels.nngp.    Experiments: e3, e4.
    """
    checks.key("key", key)
    network = core.traceable(network)
    x1 = checks.floating("x1", x1, least_ndim=1)
    x2 = x1 if x2 is None else checks.floating("x2", x2, ndim=x1.ndim)
    if x1.shape[1:] != x2.shape[1:]:
        raise checks.BadValue(f"x2 must have examples like x1's, {_doors.forms(x1)}; got {_doors.forms(x2)}")
    _doors.taken(network, key, x1)
    return _nngp(key, network, x1, x2, seeds=checks.whole("seeds", seeds))


@functools.partial(jit, static_argnames="seeds")
def _nngp(key, network, x1, x2, seeds):
    def one(key):
        params = network.init(key, x1)
        a, b = (network.apply(params, x).reshape(x.shape[0], -1) for x in (x1, x2))
        return a @ b.T / a.shape[1]

    return lax.map(one, jax.random.split(key, seeds))


# ---- the plan -------------------------------------------------------------------------------------------


class _Problem:
    """The function at one example, its sites, and how the kernel will be computed."""

    def __init__(self, apply, moving, rest, x1, x2, outputs, method, limit):
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *np.shape(leaf)[1:]), jnp.result_type(leaf)), x1)
        # What stays is an input like what moves: a layer's operations count, whoever trains it.
        self.traced = tracing.trace(lambda both, x: apply(both[1].params(both[0]), x), (moving, rest), one)
        found = jax.tree.leaves(self.traced.outputs)
        real = len(found) == 1 and jnp.issubdtype(found[0].dtype, jnp.floating)
        if not real or found[0].shape[:1] != (1,) or not found[0].size:
            raise checks.BadType(f"apply must return one array of real numbers [N, ...]; got {self.traced.outputs}")
        leaves = jax.tree.leaves((moving, rest))
        self.real = list(range(len(jax.tree.leaves(moving))))
        self.k, self.full, self.symmetric = math.prod(found[0].shape), outputs == "full", x2 is None
        self.wide = precision.wide(found[0].dtype)
        self.sizes = [len(jax.tree.leaves(x)[0]) for x in (x1, x1 if x2 is None else x2)]
        sites = _sites.sites(self.traced, len(leaves))
        options = {"layers": _sites.moving(sites, len(self.real)), "jacobian": ()}
        self.rest = {name: self._others(sites) for name, sites in options.items()}
        shared = leaves, self.k, self.wide.itemsize, self.full
        counts = {name: _cost.counted(self.traced, s, self.rest[name], *shared) for name, s in options.items()}
        self.plan = _cost.planned(counts, *self.sizes, self.symmetric, method, limit)
        self.sites, self.rest = options.get(self.plan.method, ()), self.rest.get(self.plan.method, self.real)

    def _others(self, sites):
        inside = {site.leaf for site in sites} | {site.bias for site in sites}
        return [index for index in self.real if index not in inside]


@functools.partial(jit, static_argnames=("outputs", "method", "limit"))
def _kernel(apply, moving, rest, x1, x2, scales, outputs, method, limit):
    problem = _Problem(apply, moving, rest, x1, x2, outputs, method, limit)
    leaves = jax.tree.leaves((moving, rest))
    ones = [jnp.ones((), problem.wide) for _ in leaves]
    scales = ones if scales is None else [jnp.asarray(s, problem.wide) for s in scales]
    compute = _by_products if problem.plan.method == "products" else _by_blocks
    return compute(problem, leaves, scales, x1, x1 if x2 is None else x2)


# ---- derivatives of blocks, contracted -----------------------------------------------------------------------------


def _by_blocks(problem, leaves, scales, x1, x2):
    plan = problem.plan
    derive = functools.partial(_derivatives, problem, leaves, scales)
    pieces = [_examples.in_blocks(x, plan.block) for x in ((x1,) if problem.symmetric else (x1, x2))]
    if plan.kept:
        pieces = [_all_at_once(derive, blocks) if plan.whole else lax.map(derive, blocks) for blocks in pieces]
    derived = (lambda blocks: blocks) if plan.kept else derive
    left, right = pieces[0], pieces[-1]
    counts = [jax.tree.leaves(piece)[0].shape[0] for piece in (left, right)]
    contract = functools.partial(_contract, problem.full)

    def row(i):
        first = derived(_take(left, i))

        def cell(j):
            return contract(first, derived(_take(right, j)))

        def upper(j):
            return lax.cond(j >= i, cell, lambda j: jnp.zeros(shape.shape, shape.dtype), j)

        shape = jax.eval_shape(cell, i)
        return lax.map(upper if problem.symmetric else cell, jnp.arange(counts[1]))

    tiles = lax.map(row, jnp.arange(counts[0]))  # [blocks, blocks, b, b] or [blocks, blocks, b, k, b, k]
    return _assembled(problem, tiles if problem.full else tiles / problem.k)


def _all_at_once(derive, blocks):
    """derive of all blocks [blocks, size, ...] as one block."""
    shape = jax.tree.leaves(blocks)[0].shape[:2]
    derived = derive(jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), blocks))
    return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), derived)


def _assembled(problem, tiles):
    """The kernel from its tiles; below the diagonal from above."""
    if problem.symmetric:
        turned = (1, 0, 4, 5, 2, 3) if problem.full else (1, 0, 3, 2)
        places = jnp.arange(tiles.shape[0])
        upper = (places[:, None] <= places[None, :]).reshape(tiles.shape[:2] + (1,) * (tiles.ndim - 2))
        tiles = jnp.where(upper, tiles, tiles.transpose(turned))
    kernel = tiles.transpose((0, 2, 1, 4, 3, 5) if problem.full else (0, 2, 1, 3))
    rows, columns = kernel.shape[0] * kernel.shape[1], kernel.shape[2] * kernel.shape[3]
    kernel = kernel.reshape(rows, columns, *kernel.shape[4:])
    return kernel[: problem.sizes[0], : problem.sizes[1]]


def _derivatives(problem, leaves, scales, block):
    """Factors and rows of a block of examples, times the roots of the scales; a bias's scale beside its site."""

    def one(x):
        x = jax.tree.map(lambda leaf: leaf[None], x)
        _, found, rows = _factors.derivatives(problem.traced, problem.sites, problem.rest, leaves, x, problem.wide)
        return found, rows

    found, rows = jax.vmap(one)(block)
    roots = [jnp.sqrt(scale) for scale in scales]
    zero = jnp.zeros((), problem.wide)
    pairs = []
    for index, site in enumerate(problem.sites):
        if index in found:
            a, d = found[index]
            bias = zero if site.bias is None else roots[site.bias]
            constant = jnp.broadcast_to(bias, (*a.shape[:-1], 1))  # the input of a bias is 1
            pairs.append((jnp.concatenate([roots[site.leaf] * a, constant], axis=-1), d))
    flat = [roots[leaf] * row for leaf, row in rows.items()]
    return pairs, (jnp.concatenate(flat, axis=-1) if flat else None)


def _contract(full, first, second):
    """Sum over leaves of inner products, [b, k, b, k], or of the diagonal over outputs summed, [b, b]."""
    (pairs1, rows1), (pairs2, rows2) = first, second
    product = functools.partial(jnp.einsum, precision="highest")
    parts = [] if rows1 is None else [product("ikp,jlp->ikjl" if full else "ikp,jkp->ij", rows1, rows2)]

    def part(a1, d1, a2, d2):
        inputs = product("if,jf->ij", a1, a2)
        if full:
            return inputs[:, None, :, None] * product("ikf,jlf->ikjl", d1, d2)
        return inputs * product("ikf,jkf->ij", d1, d2)

    for (a1, d1), (a2, d2) in zip(pairs1, pairs2, strict=True):
        if a1.shape[1] == 1:
            parts.append(part(a1[:, 0], d1[:, :, 0], a2[:, 0], d2[:, :, 0]))
            continue
        steps = [jnp.moveaxis(array, axis, 0) for array, axis in ((a1, 1), (d1, 2), (a2, 1), (d2, 2))]
        zero = jnp.zeros(jax.eval_shape(part, *(array[0] for array in steps)).shape, a1.dtype)
        parts.append(lax.scan(lambda total, given: (total + part(*given), None), zero, steps)[0])
    return functools.reduce(jnp.add, parts)


def _take(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


# ---- products ------------------------------------------------------------------------------------------------------


def _by_products(problem, leaves, scales, x1, x2):
    """For each example of x2 and output a vector of parameters, pulled back from there and pushed to all of x1."""
    eye = jnp.eye(problem.k, dtype=problem.traced.outputs.dtype)
    chosen = {index: leaves[index] for index in problem.real}

    def function(chosen, x):
        values = [chosen.get(index, leaf) for index, leaf in enumerate(leaves)]
        x = jax.tree.map(lambda leaf: leaf[None], x)
        return _factors.plain(problem.traced, values, x)

    def block(examples):
        _, push = jax.linearize(lambda chosen: jax.vmap(function, (None, 0))(chosen, examples), chosen)

        def column(x):
            _, pull = jax.vjp(lambda chosen: function(chosen, x), chosen)

            def one(unit):
                vector = {i: scales[i].astype(v.dtype) * v for i, v in pull(unit)[0].items()}
                pushed = push(vector).astype(problem.wide)  # [b, k]
                return pushed if problem.full else jnp.sum(pushed * unit.astype(problem.wide)[None, :], axis=1)

            if problem.full:
                return lax.map(one, eye)  # [k of x2, b, k of x1]
            total = jnp.zeros(jax.tree.leaves(examples)[0].shape[:1], problem.wide)
            return lax.scan(lambda total, unit: (total + one(unit), None), total, eye)[0] / problem.k

        return lax.map(column, x2)

    kernel = lax.map(block, _examples.in_blocks(x1, problem.plan.block))  # [blocks, N2, (k,) b, (k)]
    kernel = kernel.transpose((0, 3, 1, 4, 2) if problem.full else (0, 2, 1))
    return kernel.reshape(-1, *kernel.shape[2:])[: problem.sizes[0]]
