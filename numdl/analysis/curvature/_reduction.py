"""MEASURED: whether the products of chunks make the product of the whole data, seen before anything is certified.

A loss in chunks needs a rule by which the chunks make the whole: a mean over examples, a sum, or pairs (sum, weight).
No rule is believed. For one random v the matrix of the whole data times v, all its entries, is compared with what the
chunks give; two matrices that agree on a random vector are equal. That catches masks and class weights, sums, batch
statistics, and all else that couples examples. It costs two products, of the sixty and more that are made then.

Where the whole data's activations do not fit, the examples are dealt into other chunks instead, of half the size and in
random order: what depends on the company of an example, or on how many there are, changes.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from numdl import _effort, checks, precision
from numdl._compiled import jit
from numdl.analysis.curvature import _kinds, _memory
from numdl.krylov import _vectors

_SLACK = 1e3  # rounding units between two orders of summation


def outcome(operator):
    """What the loss returns, by shapes alone, "pair" or "scalar"; anything else is refused."""
    found = jax.eval_shape(_outcome, operator)
    pair = isinstance(found, tuple) and len(found) == 2
    for part, kind in zip(found if pair else (found,), (jnp.floating, jnp.number)):
        if getattr(part, "shape", None) != () or not jnp.issubdtype(part.dtype, kind):
            name = "loss_of_outputs" if hasattr(operator.kind, "loss_of_outputs") else "loss"
            raise checks.BadType(f"{name} must return a real scalar, or a pair (sum, weight) of scalars; got {found}")
    return "pair" if pair else "scalar"


def chunked(operator, reduces):
    """The operator with what its chunks need to make the whole, verified; inside of jit nothing can be verified."""
    first = next(operator.pieces())[0]
    if outcome(first) == "pair":
        if reduces is not None and not isinstance(operator.kind, _kinds.EmpiricalFisher):
            raise checks.BadValue(f"reduction must be None for a loss that returns (sum, weight); got {reduces!r}")
        pieces = [piece for piece, _ in operator.pieces()]
        weight = sum(_weight(piece)[0] for piece in pieces)
        operator = dataclasses.replace(operator, reduction="pair", weight=weight)
        if not _vectors.traced(operator):
            _check_weights(pieces, weight)
    per_example = isinstance(operator.kind, _kinds.EmpiricalFisher)
    if not _vectors.traced(operator) and not per_example:
        _verify(operator)
    return operator


def _verify(operator):
    count = jax.tree.leaves(operator.batch)[0].shape[0]
    if operator.chunk >= count:
        return
    layout = _vectors.layout("params", operator.like)
    v = layout.unravel(np.random.default_rng(0).standard_normal(layout.size).astype(layout.dtype))
    room = 2.0 * operator.kept_bytes * -(-count // operator.chunk) < 0.9 * _memory.available()
    other = dataclasses.replace(operator, chunk=None, weight=None) if room else _dealt(operator, count)
    want, got = _flat(other, layout, v), _flat(operator, layout, v)
    if not np.isfinite(want).all() and not np.isfinite(got).all():
        # The loss itself has no value, unless some chunks have one: then those of masked examples only have none.
        if room or not any(np.isfinite(_flat(piece, layout, v)).all() for piece, _ in operator.pieces()):
            return
    elif _agree(got, want, layout):
        return
    if _is_rounding(operator, other, layout, v, np.linalg.norm(got - want)):
        return
    raise checks.BadValue(_told(operator, layout, v, got, want, room))


def _agree(got, want, layout):
    """Whether two products are equal but for rounding, leaf by leaf."""
    slack = min(_SLACK * layout.eps, 0.1)
    ends = np.cumsum([int(np.prod(shape)) for shape in layout.shapes])[:-1]
    floor = 0.1 * slack * np.linalg.norm(want)
    pairs = zip(np.split(got, ends), np.split(want, ends), strict=True)
    return all(np.linalg.norm(a - b) <= slack * np.linalg.norm(b) + floor for a, b in pairs)


def _is_rounding(operator, other, layout, v, apart):
    """Whether a difference is what rounding leaves of a product that nearly vanishes, at saturated outputs say.

    Then the rule holds at smaller params, at the size where the product is largest, and the difference is rounding of
    the product there.
    """
    pairs = []
    for size in (1.0, 1e-1, 1e-2, 1e-4, 1e-8):
        smaller = jax.tree.map(lambda leaf, size=size: (leaf * size).astype(leaf.dtype), operator.moving)
        pairs.append([_flat(dataclasses.replace(one, moving=smaller), layout, v) for one in (operator, other)])
    got, want = max(pairs, key=lambda pair: np.nan_to_num(np.linalg.norm(pair[1]), nan=-1.0, posinf=-1.0))
    return _agree(got, want, layout) and apart <= min(_SLACK * layout.eps, 0.1) * np.linalg.norm(want)


def _told(operator, layout, v, got, want, room):
    """What is wrong, and how to say it right."""
    rule = {"mean": "a mean over examples", "sum": "a sum over examples", "pair": "a pair (sum, weight), both additive"}
    size = [f"{np.linalg.norm(part):.4g}" for part in (got, want)]
    whole = "the whole data" if room else "other chunks of the same data"
    hint = "return a pair (sum of losses, sum of weights) where examples are masked or weighted"
    if operator.reduction != "pair":
        other = "sum" if operator.reduction == "mean" else "mean"
        if _agree(_flat(dataclasses.replace(operator, reduction=other), layout, v), want, layout):
            hint = f'it is a {other} over examples: reduction="{other}"'
    return (
        f"with chunk, the loss must be {rule[operator.reduction]}; got a product of norm {size[0]} from the chunks and "
        f"{size[1]} from {whole}. Remedy: {hint}; freeze batch statistics"
    )


def _dealt(operator, count):
    """The same data in another order and in other chunks."""
    order = np.random.default_rng(1).permutation(count)
    batch = jax.tree.map(lambda leaf: leaf[order], operator.batch)
    return dataclasses.replace(operator, batch=batch, chunk=max(operator.chunk // 2, 1 if operator.chunk > 1 else 2))


def _flat(operator, layout, v):
    return np.asarray(layout.ravel(_vectors.apply(operator, v)), np.float64)


def _check_weights(pieces, weight):
    if any(float(_weight(piece)[1]) != 0 for piece in pieces):
        raise checks.BadValue(
            "with chunk, the weight of (sum, weight) must depend on the data only; got one that changes with params"
        )
    if not float(weight) > 0:
        raise checks.BadValue(f"the weights of a loss (sum, weight) must have a positive sum; got {float(weight):g}")


@_effort.jit
def _weight(piece):
    """(weight, its derivative along a fixed direction)."""

    def weight(moving):
        found = piece.kind.outcome(piece.rest.params(moving), piece.batch)[1]
        return jnp.asarray(found, precision.wide(jnp.result_type(found)))

    return jax.jvp(weight, (piece.moving,), (jax.tree.map(jnp.cos, piece.moving),))


@jit
def _outcome(operator):
    return operator.kind.outcome(operator.params, operator.batch)
