"""MEASURED: two dense networks with their hidden units in one order, so that their weights can be compared.

Sorting the units of a hidden layer, the columns of its weights and the rows of the next, does not change a function.
Two trained networks differ by such an order among other things; `align` finds the order in which they differ least.
"""

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, PyTree

from numdl import checks, trees
from numdl.records import record


@record
class Alignment:
    """A network with its hidden units in the reference's order."""

    params: object  # pytree: the same function as before
    orders: tuple  # for each hidden layer [n]: unit i is what was unit orders[i]
    distance_before: np.ndarray  # []: |params - reference| over the weights and biases of the layers
    distance: np.ndarray  # []
    sweeps: int


def align(
    params: PyTree,
    reference: PyTree,
    *,
    layers: Sequence[tuple[str, str | None]] | None = None,
    key: Key[Array, ""] | None = None,
    sweeps: int = 100,
) -> Alignment:
    """MEASURED order of hidden units in which a dense network is nearest to another (permutation alignment).

        minimize over orders P_l   sum_l |P_{l-1}' W_l P_l - V_l|^2 + |P_l' b_l - c_l|^2

    one layer after the other, each an assignment problem, until nothing changes: a local minimum.

    Parameters
    ----------
    params, reference : pytrees     of one structure
    layers : sequence of pairs      (path of a kernel, path of its bias or None) from input to output; kernels
                                [n_in, n_out], or stacked [layers, n_in, n_out]. None: every leaf of 2 or 3 axes that is
                                not named like a bias, in the order of the leaves (layer_2 before layer_10), with the
                                vector beside it
    key : key                   the layers in random order; None: from input to output
    sweeps : int >= 1           at most
    Returns
    -------
    Alignment                   params (sorted), orders ([n] of each hidden layer), distance_before, distance [], sweeps
    Raises
    ------
    ValueError, TypeError       kernels that do not follow each other, an unknown path, a leaf in no layer
    Source: Ainsworth et al. 2023, arXiv:2209.04836, algorithm 1.
    """
    params = checks.leaves("params", params)
    reference = checks.like("reference", reference, params)
    sweeps = checks.whole("sweeps", sweeps)
    if key is not None:
        checks.key("key", key)
    names = trees.names(params)
    pairs = _guessed(names, params) if layers is None else _pairs(layers)
    inside = {name for pair in pairs for name in pair}
    leaves = [dict(zip(names, jax.tree.leaves(tree), strict=True)) for tree in (params, reference)]
    # A number alone, a counter say, has no units to be sorted.
    if outside := [name for name in names if name not in inside and np.ndim(leaves[0][name])]:
        raise checks.BadValue(
            f"layers must hold every leaf of params, or its order would be lost; {outside[0]} is in none: got {pairs}"
        )
    if unknown := [name for name in inside if name is not None and name not in names]:
        raise checks.BadValue(f"layers must hold paths of params, {', '.join(names)}; got {unknown[0]!r}")
    for name in inside - {None}:
        for argument, own in zip(("params", "reference"), leaves, strict=True):
            label = f"{argument} at {name}"
            checks.finite(label, checks.array(label, own[name], kind="floating"))
    mine, theirs = ({name: np.array(own[name]) for name in inside - {None}} for own in leaves)
    chain = [layer for pair in pairs for layer in _unstacked(mine, theirs, *pair)]
    _check_chain(chain)
    before = _distance(chain)
    orders = [np.arange(layer[0].shape[1]) for layer in chain[:-1]]
    rng = None if key is None else np.random.default_rng(np.asarray(jax.random.key_data(key)).astype(np.uint32))
    count = _sort(chain, orders, rng, sweeps)
    ordered = [jnp.asarray(mine[name]) if name in mine else leaves[0][name] for name in names]
    sorted_params = jax.tree.unflatten(jax.tree.structure(params), ordered)
    return Alignment(sorted_params, tuple(orders), np.asarray(before), np.asarray(_distance(chain)), count)


def _sort(chain, orders, rng, sweeps):
    """Sort the units of each hidden layer in place until nothing changes; the number of sweeps."""
    from scipy.optimize import linear_sum_assignment

    for count in range(1, sweeps + 1):
        changed = False
        places = range(len(orders)) if rng is None else rng.permutation(len(orders))
        for place in places:
            (w, b, v, c), (w_next, _, v_next, _) = chain[place], chain[place + 1]
            gain = v.T @ w + v_next @ w_next.T  # [reference's unit, own unit]
            if b is not None:
                gain = gain + np.outer(c, b)
            order = linear_sum_assignment(gain, maximize=True)[1]
            if np.sum(gain[np.arange(len(order)), order]) > np.trace(gain) * (1 + 1e-12) + 1e-12:
                changed = True
                orders[place] = orders[place][order]
                w[:] = w[:, order]
                w_next[:] = w_next[order]
                if b is not None:
                    b[:] = b[order]
        if not changed:
            return count
    return sweeps


def _distance(chain):
    parts = [np.sum((a - b) ** 2) for w, b_, v, c in chain for a, b in ((w, v), (b_, c)) if a is not None]
    return np.sqrt(np.sum(parts))


def _guessed(names, params):
    """(kernel, bias) by the number of axes; a bias lies under the same parent, or is the leaf behind."""
    leaves = dict(zip(names, jax.tree.leaves(params), strict=True))
    kernels = [name for name in names if np.ndim(leaves[name]) >= 2 and name.rpartition("/")[2] not in ("bias", "b")]
    kernels = _counted(kernels)
    biases = []
    for kernel in kernels:
        parent, shape = kernel.rpartition("/")[0], np.shape(leaves[kernel])
        beside = [n for n in names if n != kernel and n.rpartition("/")[0] == parent and n not in kernels]
        fitting = [n for n in beside if np.shape(leaves[n]) == (*shape[:-2], shape[-1])]
        biases.append(fitting[0] if len(fitting) == 1 and parent else None)
    return tuple(zip(kernels, biases))


def _counted(names):
    """Names that differ in their numbers alone in the order of these, at the places that they have: 10 after 9."""
    found, groups = list(names), {}
    for place, name in enumerate(names):
        groups.setdefault(re.sub(r"\d+", "#", name), []).append(place)
    for places in groups.values():
        ordered = sorted(
            (names[place] for place in places), key=lambda name: [int(n) for n in re.findall(r"\d+", name)]
        )
        for place, name in zip(places, ordered):
            found[place] = name
    return found


def _pairs(layers):
    """The pairs as they were given, checked."""
    if not isinstance(layers, list | tuple) or not all(isinstance(pair, list | tuple) for pair in layers):
        raise checks.BadType(f"layers must be pairs (path of a kernel, path of its bias or None); got {layers!r}")
    for pair in layers:
        if len(pair) != 2 or not isinstance(pair[0], str) or not isinstance(pair[1], str | None):
            raise checks.BadType(f"layers must be pairs (path of a kernel, path of its bias or None); got {pair!r}")
    return tuple(map(tuple, layers))


def _unstacked(mine, theirs, kernel, bias):
    """(weights, bias, reference's weights, reference's bias) of each layer of a leaf: views, sorted in place."""
    if mine[kernel].ndim not in (2, 3):
        raise checks.BadValue(f"layers must hold kernels [n_in, n_out]; got {kernel} of shape {mine[kernel].shape}")
    shape = mine[kernel].shape
    if bias is not None:
        checks.shape(f"{bias}, a bias in layers,", mine[bias], (*shape[:-2], shape[-1]))
    parts = [mine[kernel], mine[bias] if bias else None, theirs[kernel], theirs[bias] if bias else None]
    if mine[kernel].ndim == 2:
        return [tuple(parts)]
    return [tuple(None if part is None else part[i] for part in parts) for i in range(len(mine[kernel]))]


def _check_chain(chain):
    sizes = [layer[0].shape for layer in chain]
    if len(chain) < 2 or any(a[1] != b[0] for a, b in zip(sizes, sizes[1:])):
        raise checks.BadValue(
            f"layers must be two kernels at least, each with the units of the one before; got {sizes}"
        )
