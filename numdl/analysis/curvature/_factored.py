"""MEASURED: the moments of a Kronecker-factored matrix: inputs and cotangents of each block, summed over the examples.

The matrix of one example is the sum over the columns c of its outputs' root, H_z = sum_c r_c r_c', of squares of what
r_c is pulled back to: for a weight the sum over positions t of a_t d_ct'. Only a and d are kept, of `chunk` examples.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from numdl import _random, checks, precision, tracing, trees
from numdl._compiled import jit
from numdl.analysis import _examples, _site_values
from numdl.analysis.curvature import _blocks

KINDS = ("exact", "sampled", "empirical")


class Problem:
    """The function at one example, with its blocks."""

    def __init__(self, outputs, moving, rest, batch):
        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *np.shape(leaf)[1:]), jnp.result_type(leaf)), batch)
        self.traced = tracing.trace(lambda both, x: outputs(both[1].params(both[0]), x), (moving, rest), one)
        found = jax.tree.leaves(self.traced.outputs)
        if len(found) != 1 or not jnp.issubdtype(found[0].dtype, jnp.floating) or found[0].shape[:1] != (1,):
            raise checks.BadType(f"outputs must return one array of real numbers [N, ...]; got {self.traced.outputs}")
        self.names, leaves = trees.names(moving), jax.tree.leaves(moving)
        self.blocks, elsewhere = _blocks.find(self.traced, [np.shape(leaf) for leaf in leaves])
        self.alone = tuple(sorted(elsewhere))
        self.reasons = tuple((self.names[leaf], elsewhere[leaf]) for leaf in self.alone)
        self.wide = precision.wide(found[0].dtype)
        self.uses = [use for block in self.blocks for use in block.uses]


def reduction_of(outputs, loss, moving, rest, batch, reduction):
    """How the examples make the loss, "mean", "sum" or "pair", from shapes alone; what is no loss is refused."""
    found = jax.eval_shape(_whole, outputs, loss, moving, rest, batch)
    pair = isinstance(found, tuple) and len(found) == 2
    for part, kind in zip(found if pair else (found,), (jnp.floating, jnp.number)):
        if getattr(part, "shape", None) != () or not jnp.issubdtype(part.dtype, kind):
            raise checks.BadType(
                f"loss_of_outputs must return a real scalar, or a pair (sum, weight) of scalars; got {found}"
            )
    if pair and reduction is not None:
        raise checks.BadValue(f"reduction must be None for a loss that returns (sum, weight); got {reduction!r}")
    return "pair" if pair else reduction or "mean"


def verify(outputs, loss, moving, rest, batch, reduction):
    """Refuse a loss that is not what its examples alone make; inside of jit nothing can be verified."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((moving, rest, batch))):
        return
    whole, sums, weights, eps = jax.device_get(_compared(outputs, loss, moving, rest, batch))
    size = max(abs(float(whole[0])), float(np.mean(np.abs(sums))))
    if not np.isfinite(size):
        return  # the loss itself has no value: nor have the factors

    def made(reduction):
        total = np.mean(sums) if reduction == "mean" else np.sum(sums)
        of_weights = reduction != "pair" or abs(np.sum(weights) - whole[1]) <= 1e3 * eps * abs(whole[1])
        return of_weights and abs(total - whole[0]) <= 1e3 * eps * size

    if not made(reduction):
        hint = "return a pair (sum of losses, sum of weights) where examples are masked or weighted"
        hint = 'reduction="sum"' if reduction == "mean" and made("sum") else hint
        noun = {"mean": "a mean", "sum": "a sum", "pair": "a pair of sums"}[reduction]
        raise checks.BadValue(
            f"loss_of_outputs must be {noun} over the examples; got {float(whole[0]):.6g} for all, "
            f"{float(np.mean(sums)):.6g} in the mean for each alone. Remedy: {hint}"
        )


def _whole(outputs, loss, moving, rest, batch):
    return loss(outputs(rest.params(moving), batch), batch)


@jit
def _compared(outputs, loss, moving, rest, batch):
    """((sum, weight) of all, sums [N], weights [N], the rounding unit)."""

    def one(example):
        return _pair(_whole(outputs, loss, moving, rest, jax.tree.map(lambda leaf: leaf[None], example)))

    sums, weights = jax.vmap(one)(batch)
    return _pair(_whole(outputs, loss, moving, rest, batch)), sums, weights, jnp.finfo(sums.dtype).eps


def _pair(outcome):
    total, weight = outcome if isinstance(outcome, tuple) else (outcome, jnp.ones_like(outcome))
    return total, jnp.asarray(weight, total.dtype)


SETTINGS = ("kind", "samples", "sharing", "reduction", "chunk")


@functools.partial(jit, static_argnames=SETTINGS)
def factors(outputs, loss, moving, rest, batch, keys, **settings):
    """([(A, G)] of the blocks, [diagonal] of the leaves alone, the least eigenvalue of an H_z over its largest)."""
    problem = Problem(outputs, moving, rest, batch)
    given = problem, loss, moving, rest, settings

    def moments(part):
        pairs, rows, weights, lowest = _derivatives(*given, part)
        found = [_two_moments(*pair, weights, settings["sharing"]) for pair in pairs]
        return found, [jnp.sum(row**2, (0, 1)) for row in rows], jnp.sum(weights), jnp.min(lowest)

    found, rows, weight, lowest = _over_examples(moments, batch, keys, settings["chunk"])
    total = 1.0 if settings["reduction"] == "sum" else weight
    found = [(a / (weight * block.positions ** (settings["sharing"] == "expand")), g / total)
             for (a, g), block in zip(found, problem.blocks, strict=True)]  # fmt: skip
    return found, [row / total for row in rows], lowest


@functools.partial(jit, static_argnames=SETTINGS)
def corrected(outputs, loss, moving, rest, batch, keys, bases, **settings):
    """Second moments [parts, inputs, outputs] of the gradients in these eigenbases, for each block."""
    problem = Problem(outputs, moving, rest, batch)

    def moments(part):
        pairs, _, weights, lowest = _derivatives(problem, loss, moving, rest, settings, part)
        turned = [
            (_product("nptf,pfg->nptg", a, left), _product("nkpto,poq->nkptq", d, right))
            for (a, d), (left, right) in zip(pairs, bases, strict=True)
        ]
        squares = [jnp.sum(_product("nptf,nkpto->nkpfo", a, d) ** 2, (0, 1)) for a, d in turned]
        return squares, jnp.sum(weights), jnp.min(lowest)

    squares, weight, _ = _over_examples(moments, batch, keys, settings["chunk"])
    total = 1.0 if settings["reduction"] == "sum" else weight
    return [square / total for square in squares]


_product = functools.partial(jnp.einsum, precision="highest")


def _two_moments(a, d, weights, sharing):
    """sum of weights a a' [parts, inputs, inputs] and of d d' [parts, outputs, outputs]."""
    if sharing == "reduce":
        a, d = jnp.mean(a, 2, keepdims=True), jnp.sum(d, 3, keepdims=True)
    return _product("n,nptf,nptg->pfg", weights, a, a), _product("nkpto,nkptq->poq", d, d)


def _over_examples(moments, batch, keys, chunk):
    """The sum of moments(part) over blocks of examples; the last entry is a least value instead."""
    count = len(jax.tree.leaves(batch)[0])
    chunk = min(chunk, count)
    mask = np.arange(-(-count // chunk) * chunk).reshape(-1, chunk) < count
    parts = (_examples.in_blocks(batch, chunk), _examples.in_blocks(keys, chunk), jnp.asarray(mask))

    def add(total, part):
        new = moments(part)
        return (jax.tree.map(jnp.add, total[0], new[:-1]), jnp.minimum(total[1], new[-1])), None

    shapes = jax.eval_shape(moments, jax.tree.map(lambda leaf: leaf[0], parts))
    zeros = jax.tree.map(lambda shape: jnp.zeros(shape.shape, shape.dtype), shapes[:-1])
    (sums, least), _ = lax.scan(add, (zeros, jnp.full((), jnp.inf, shapes[-1].dtype)), parts)
    return (*sums, least)


def _derivatives(problem, loss, moving, rest, settings, part):
    """Of some examples: [(a [n, parts, t, f], d [n, k, parts, t, o])] of the blocks, rows, weights [n], lowest [n]."""
    examples, keys, mask = part
    one = functools.partial(_of_one, problem, loss, jax.tree.leaves((moving, rest)), settings)
    sites, rows, weights, lowest = jax.vmap(one)(examples, keys, mask)
    pairs, sites = [], iter(sites)
    for block in problem.blocks:
        each = [_of_use(use, *next(sites)) for use in block.uses]
        a, d = (jnp.concatenate(parts, axis) for parts, axis in zip(zip(*each), (2, 3)))
        pairs.append((a if block.bias is not None else a[..., :-1], d))
    return pairs, rows, weights, lowest


def _of_use(use, a, d):
    """The use's share in the block, and the input that a bias has."""
    a, d = use.scale * a[:, use.parts][..., use.rows], d[:, :, use.parts][..., use.columns]
    return jnp.concatenate([a, jnp.full((*a.shape[:-1], 1), use.constant, a.dtype)], -1), d


def _of_one(problem, loss, leaves, settings, example, key, counts):
    """Of one example: [(a, d)] of the uses, rows of the leaves alone, its weight, the lowest eigenvalue of its H_z."""
    example = jax.tree.map(lambda leaf: leaf[None], example)
    steps, sites = {}, []  # leaves side by side share a contraction
    for use in problem.uses:
        if steps.setdefault(id(use.site.step), len(sites)) == len(sites):
            sites.append(use.site)
    avals = [site.program.avals[site.step.writes[0]] for site in sites]
    probes = {
        i: jnp.zeros((*site.lengths, *aval.shape), aval.dtype) for i, (site, aval) in enumerate(zip(sites, avals))
    }

    def forward(chosen, probes):
        values = [chosen.get(index, leaf) for index, leaf in enumerate(leaves)] + jax.tree.leaves(example)
        outputs, inputs = _site_values.run(problem.traced.program, values, steps, probes, problem.traced.constants)
        return outputs[0], inputs

    z, pull, inputs = jax.vjp(forward, {leaf: leaves[leaf] for leaf in problem.alone}, probes, has_aux=True)
    weight = _pair(loss(z, example))[1].astype(problem.wide)
    columns, lowest = _directions(lambda z: _pair(loss(z, example))[0], z, weight, key, settings)
    columns = jnp.where(counts, columns, 0)
    rows, pulled = jax.vmap(pull)(columns.astype(z.dtype))
    found = []
    for use in problem.uses:
        place = steps[id(use.site.step)]
        a, d = (each[place].astype(problem.wide) for each in (inputs, pulled))
        found.append((_site_values.inputs(use.site, a), _site_values.cotangents(use.site, d)))
    rows = [rows[leaf].astype(problem.wide) for leaf in problem.alone]
    return found, rows, jnp.where(counts, weight, 0), lowest


def _directions(loss, z, weight, key, settings):
    """(cotangents [k, z's shape] whose squares add up to the example's matrix, the lowest eigenvalue of H_z)."""
    if settings["kind"] == "empirical":
        share = jnp.where(weight > 0, 1 / jnp.sqrt(jnp.where(weight > 0, weight, 1)), 0)
        return share * jax.grad(loss)(z)[None].astype(weight.dtype), jnp.zeros((), weight.dtype)
    size = math.prod(z.shape)
    values, vectors = jnp.linalg.eigh(jax.hessian(loss)(z).reshape(size, size).astype(weight.dtype))
    root = vectors * jnp.sqrt(jnp.maximum(values, 0))[None]
    largest = jnp.max(jnp.abs(values))
    lowest = jnp.min(values) / jnp.where(largest > 0, largest, 1)
    if settings["kind"] == "sampled":
        signs = _random.rademacher(key, (size, settings["samples"]), root.dtype)
        root = _product("ij,js->is", root, signs) / math.sqrt(settings["samples"])
    return root.T.reshape(-1, *z.shape), lowest
