"""MEASURED: where to look at a loss: random directions with the filters' sizes, the plane of a training."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from numdl import _effort, checks, trees
from numdl.analysis import _filters, _parts
from numdl.precision import widen
from numdl.records import record
from numdl.typing import Apply


@record
class TrajectoryPlane:
    """The plane in which a trajectory varies most, through its last point."""

    origin: Any  # pytree: the last params
    directions: tuple  # two pytrees of norm 1, orthogonal
    coordinates: jax.Array  # [T, 2]: of the trajectory's points in it
    explained: jax.Array  # [2]: shares of the trajectory's variance


def direction(
    key: Key[Array, ""],
    params: PyTree,
    *,
    normalize: str = "filter",
    vectors: bool = False,
    apply: Apply | None = None,
    x: PyTree = None,
    outputs: "int | Sequence[int] | dict | None" = None,
    stacked: Sequence[str] = (),
    frozen: Sequence[str] = (),
) -> PyTree:
    """A random direction in parameter space with filter normalization: each filter as long as the one in `params`.

        d_f <- d_f |w_f| / |d_f|,   d ~ N(0, 1)

    A filter is what feeds one output unit. With `apply` and `x` it is taken from how the call contracts the leaf; else
    it is all of a leaf but its last axis, unless `outputs` and `stacked` say otherwise. Vectors stay where they are:
    leaves that the call does not contract; without a call those of one axis. A filter that is 0 does not move.

    Parameters
    ----------
    key : key                   of the random numbers
    params : pytree             floating leaves [..] move
    normalize : "filter" | "layer" | "none"     the length of each filter, of each leaf, or no change
    vectors : bool              move biases and norm scales too, each leaf as a whole
    apply, x : function, pytree     apply(params, x), traced, not run; both or neither
    outputs : int, tuple, or dict of them by path or glob   axes that number output units, None for a vector: 0 for
              (out, in, ...) of PyTorch and Equinox, (1, 2) for an attention query (features, heads, head_dim)
    stacked : paths or globs    leaves whose first axis is depth; without a call, which shows it
    frozen : names              paths of leaves that stay, beside those that are not floating-point numbers
    Returns
    -------
    pytree                      like params, 0 where nothing moves
    Raises
    ------
    ValueError, TypeError       a name that fits no leaf, no such axis, a leaf that a call uses in several ways
    Source: Li et al. 2018, arXiv:1712.09913.    Experiment: e9.
    """
    checks.one_of("normalize", normalize, ("filter", "layer", "none"))
    checks.key("key", key)
    moving, rest = trees.trainable(params, frozen=frozen)
    found = _filters.find(params, apply=apply, x=x, outputs=outputs, stacked=stacked)
    found = tuple(None if kind == "kept" else one for one, kind in zip(found, rest.kinds))
    nothing = trees.Rest(tuple(np.zeros(()) for _ in rest.kept), rest.structure, rest.kinds)
    vectors = checks.flag("vectors", vectors)
    return _parts.outward(rest.moving(_direction(key, nothing.params(moving), found, normalize, vectors)), rest)


@functools.partial(_effort.jit, static_argnames=("found", "normalize", "vectors"))
def _direction(key, params, found, normalize, vectors):
    noise = jax.tree.leaves(trees.random_like(key, params))
    leaves, structure = jax.tree.flatten(params)
    triples = zip(found, noise, leaves, strict=True)
    return jax.tree.unflatten(structure, [_normalized(*triple, normalize, vectors) for triple in triples])


def _normalized(filters, noise, leaf, normalize, vectors):
    if filters is None and not vectors:
        return jnp.zeros_like(noise)
    if normalize == "none":
        return noise
    axes = None
    if normalize == "filter" and filters is not None:
        axes = tuple(axis for axis in range(jnp.ndim(leaf)) if axis not in filters.kept)
    lengths = [jnp.sqrt(jnp.sum(jnp.abs(a) ** 2, axis=axes, keepdims=True)) for a in (noise, leaf)]
    return noise * (lengths[1] / jnp.where(lengths[0] > 0, lengths[0], jnp.ones_like(lengths[0])))


def plane_of_trajectory(trajectory: PyTree, *, frozen: Sequence[str] = ()) -> TrajectoryPlane:
    """The plane of the two largest principal components of a trajectory, about its last point.

    Parameters
    ----------
    trajectory : pytree         params with a leading axis T >= 3
    frozen : names              paths of leaves that do not count: the origin holds their last values
    Returns
    -------
    TrajectoryPlane             origin, directions (like params), coordinates [T, 2], explained [2]
    Raises
    ------
    ValueError, TypeError       fewer than three points, leaves of different T, nothing that moves
    Source: Li et al. 2018, arXiv:1712.09913. A random walk looks flat too: see Antognini & Sohl-Dickstein
            2018, arXiv:1806.08805.
    """
    checks.length("trajectory", checks.leaves("trajectory", trajectory), of="points", least=3)
    moving, rest = trees.trainable(trajectory, frozen=frozen, name="trajectory")
    last, directions, coordinates, shares = _principal(moving)
    rest = jax.tree.map(lambda leaf: leaf[-1], rest)
    u, v = (_parts.outward(along, rest) for along in directions)
    return TrajectoryPlane(rest.params(last), (u, v), coordinates, shares)


@_effort.jit
def _principal(trajectory):
    """(last point, two directions, coordinates [T, 2], shares [2])."""
    last = jax.tree.map(lambda leaf: leaf[-1], trajectory)
    rows = jax.vmap(lambda point: trees.ravel(jax.tree.map(jnp.subtract, point, last))[0])(trajectory)
    rows = widen(rows)
    centered = rows - jnp.mean(rows, axis=0, keepdims=True)
    squares, weights = jnp.linalg.eigh(jnp.matmul(centered, centered.T, precision="highest"))
    basis = weights[:, :-3:-1].T @ centered  # T x T, not a decomposition of T x parameters
    basis = jnp.stack([_unit(basis[0]), _unit(basis[1] - jnp.vdot(_unit(basis[0]), basis[1]) * _unit(basis[0]))])
    unravel = trees.ravel(last)[1]
    shares = jnp.maximum(squares[:-3:-1], 0) / jnp.maximum(jnp.sum(squares), jnp.finfo(squares.dtype).tiny)
    return last, (unravel(basis[0]), unravel(basis[1])), rows @ basis.T, shares


def _unit(vector):
    norm = jnp.linalg.norm(vector)
    return vector / jnp.where(norm > 0, norm, jnp.ones_like(norm))
