"""The record `Network` and what follows from its functions alone; `core` is the face, and says what a network is."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Num, PyTree

from numdl import checks


class Network(NamedTuple):
    """Three pure functions: parameters from a key, states from parameters, outputs from the last state.

    A network without layers (logistic regression) has no stretch, and its readout gets x itself.
    """

    init: Callable  # (key, x [N, ...]) -> params
    states: Callable  # (params, x [N, ...], probes=None) -> tuple of stretches [layers, N, ...]
    readout: Callable  # (params, y_L [N, ...]) -> outputs [N, d_out]

    def apply(self, params, x):
        """The outputs [N, d_out]: the readout of the last state."""
        return self.readout(params, last_state(self.states(params, x), x))


def traceable(network: Network) -> Network:
    """The same network as an argument of jitted functions: plain functions become Partials, known by identity.

    Parameters
    ----------
    network : Network
    Returns
    -------
    Network                     computing the same
    Raises
    ------
    TypeError                   not a Network
    """
    checks.instance("network", network, Network, hint="made by a builder such as dense.network")
    return Network(*(checks.as_pytree(f) for f in network))


def fitting(network: Network, params: PyTree, x: PyTree) -> tuple[Network, PyTree, PyTree]:
    """(network, params, x) for a jitted function: x has examples, and params are like what the network draws for x.

    Shapes that only broadcast to the right ones would give numbers of another network without a word.

    Parameters
    ----------
    network : Network
    params : pytree             with the structure and shapes of network.init(key, x); frozen statistics may be beside
    x : array [N, ...]          N >= 1; a lifted function may take a pytree
    Returns
    -------
    (Network, pytree, pytree)   checked, native arrays
    Raises
    ------
    ValueError, TypeError       not a Network, x without examples, params that do not fit
    """
    network, x = traceable(network), checks.leaves("x", x)
    for leaf in jax.tree.leaves(x):
        if 0 in leaf.shape or not any(part.shape for part in jax.tree.leaves(x)):
            got = x if not leaf.shape else f"shape {tuple(leaf.shape)}"
            raise checks.BadValue(f"x must be an array [N, ...] with at least one example; got {got}")
    try:
        expected = _initial(*_abstract(network), *_abstract(x))
    except checks.Refused:
        raise
    except Exception:  # an init that cannot be traced, or one that says in its own words what is wrong
        return network, checks.leaves("params", params, empty=True), x
    checks.like("params", _drawn(params), _drawn(expected), of="network.init(key, x)", floating=True)
    return network, checks.leaves("params", params, empty=True), x


def one_example(x: Num[ArrayLike, "..."], start: int = 0) -> Num[ArrayLike, "1 ..."]:
    """x, checked: an array [1, ...], floating-point where start = 0 differentiates it, else any numbers (tokens).

    Parameters
    ----------
    x : array [1, ...]
    start : int                 the layer that the caller starts at
    Returns
    -------
    array [1, ...]
    Raises
    ------
    ValueError, TypeError       several examples, no axis, not of numbers
    """
    if np.ndim(start) == 0 and start == 0:
        x = checks.floating("x", x, least_ndim=1)
    x = checks.array("x", x, kind="number", least_ndim=1)
    if x.shape[0] != 1:
        raise checks.BadValue(f"x must be one example, of shape (1, ...); got shape {tuple(x.shape)}")
    return x


def last_state(states: Sequence[ArrayLike], x: PyTree) -> PyTree:
    """y_L, the state that the readout reads; x where there is no layer.

    Parameters
    ----------
    states : tuple of arrays [layers, N, ...]    of `network.states`
    x : array [N, ...]          what it was called with
    Returns
    -------
    array [N, ...]
    Raises
    ------
    ValueError, TypeError       states that are not a tuple of stretches, a stretch without a layer
    """
    states = _stretches(states)
    if states and not states[-1].shape[0]:
        raise checks.BadValue(f"states must be stretches of at least one layer; got shape {tuple(states[-1].shape)}")
    return states[-1][-1] if states else x


def layer_count(states: Sequence[ArrayLike | jax.ShapeDtypeStruct]) -> int:
    """The number of layers L in a tuple of stretches.

    Parameters
    ----------
    states : tuple of arrays [layers, N, ...]    or of their shapes
    Returns
    -------
    int
    Raises
    ------
    TypeError                   states that are not a tuple of stretches
    """
    states = _stretches(states, shapes=True)
    return sum(stretch.shape[0] for stretch in states)


def per_layer(function: Callable[[Array], PyTree], states: Sequence[ArrayLike]) -> PyTree:
    """`function` of every layer's array [N, ...], stacked into [L, ...]; shape [0] where there is no layer.

    The results of all layers must have one shape, a scalar each gives [L].

    Parameters
    ----------
    function : function         y [N, ...] -> array or pytree of arrays
    states : tuple of arrays [layers, N, ...]
    Returns
    -------
    array or pytree [L, ...]
    Raises
    ------
    TypeError                   states that are not a tuple of stretches, a function that does not take one array
    """
    checks.accepts("function", function, 1, "function(y)")
    parts = [jax.vmap(function)(stretch) for stretch in _stretches(states)]
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts) if parts else jnp.zeros((0,))


def zero_probes(network: Network, params: PyTree, x: PyTree) -> tuple[Array, ...]:
    """One zero array for each stretch, shaped like the states of this input.

    Parameters
    ----------
    network : Network
    params : pytree             of `network.init`
    x : array [N, ...]          the batch; a lifted function may take a pytree
    Returns
    -------
    tuple of arrays [layers, N, ...]
    Raises
    ------
    ValueError, TypeError       not a Network, params or x that do not fit it
    """
    network, params, x = fitting(network, params, x)
    shapes = jax.eval_shape(network.states, params, x)
    return tuple(jnp.zeros(stretch.shape, stretch.dtype) for stretch in shapes)


def split_probes(probes: Sequence[ArrayLike | None] | None, stretches: int) -> tuple[ArrayLike | None, ...]:
    """For builders: one probe or None for each stretch, their number checked.

    Parameters
    ----------
    probes : tuple of arrays [layers, N, ...]    or None, no probes at all
    stretches : int             how many stretches the network has, >= 0
    Returns
    -------
    tuple                       one entry for each stretch
    Raises
    ------
    ValueError, TypeError       another number of probes
    """
    stretches = checks.whole("stretches", stretches, least=0)
    if probes is None:
        return (None,) * stretches
    if not isinstance(probes, tuple | list) or len(probes) != stretches:
        got = len(probes) if isinstance(probes, tuple | list) and probes else repr(probes)
        raise checks.BadValue(f"probes must hold one array for each of {stretches} stretches; got {got}")
    return tuple(probes)


def probed(y, probe):
    """For builders: the state of one layer with its probe added, or as it is where the probe is None."""
    return y if probe is None else y + probe.astype(y.dtype)


def probed_alone(y, probe):
    """For builders: `probed` for a stretch of one layer, whose probe has an axis for it."""
    return probed(y, None if probe is None else probe[0])


def run_stretch(layer, y, stretch):
    """For builders: equal layers one after the other, (y_L, states [layers, N, ...]).

    layer : function            (y, one layer's slice of `stretch`) -> (y, state)
    stretch : pytree            leaves [layers, ...]; two layers or more are scanned
    """
    if jax.tree.leaves(stretch)[0].shape[0] > 1:
        return lax.scan(layer, y, stretch)
    y, state = layer(y, jax.tree.map(lambda leaf: leaf[0], stretch))
    return y, state[None]


@functools.lru_cache(maxsize=64)
def _initial(structure, leaves, x_structure, x_leaves):
    """Shapes of what a network of this structure draws for such an input."""
    network, x = jax.tree.unflatten(structure, leaves), jax.tree.unflatten(x_structure, x_leaves)
    return jax.eval_shape(lambda network, x: network.init(jax.random.key(0), x), network, x)


def _drawn(params):
    """What is drawn: without frozen statistics, which a network may keep beside its weights."""
    if type(params) is dict:
        return {name: _drawn(part) for name, part in params.items() if name not in ("mean", "variance")}
    if type(params) in (tuple, list):
        return type(params)(_drawn(part) for part in params)
    return params


def _abstract(tree):
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(jax.ShapeDtypeStruct(np.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)


def _stretches(states, shapes=False):
    if not isinstance(states, tuple | list) or not all(len(getattr(stretch, "shape", ())) for stretch in states):
        raise checks.BadType(f"states must be a tuple of stretches [layers, N, ...]; got {states!r}")
    return tuple(checks.leaf(f"states[{place}]", stretch, shapes=shapes) for place, stretch in enumerate(states))
