"""Admin: gains of the stream of a post-norm transformer, from what its sublayers add in one pass of a batch."""

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike, PyTree

from numdl import checks
from numdl._compiled import compiled
from numdl.networks._record import Network, fitting
from numdl.networks.transformer import _blocks, _readouts
from numdl.precision import wide


def admin(network: Network, params: PyTree, x: ArrayLike) -> PyTree:
    """The parameters with Admin's gains of the stream, from one pass of this batch: start of a post-norm transformer.

        skip[i]^2 = 1 + sum over sublayers j < i of mean f_j(y_j)^2,    y_j the states where every skip is 1

    so that a sublayer adds to the stream about 1/i of what is there, as in a pre-norm network, at the start.

    Parameters
    ----------
    network : Network           of `network`, `language_model` or `vision`, with skip="admin" in its blocks
    params : pytree             of `network.init`
    x : array                   a batch, as the network takes it
    Returns
    -------
    pytree                      params with the leaves "skip" of the sublayers, [depth, d], set
    Raises
    ------
    TypeError, ValueError       another network, params or x that do not fit it
    Source: Liu et al. 2020, arXiv:2004.08249; the 1, the stream's own, is that of the authors' program.
    Twin: theory.transformer.admin.
    """
    checks.instance("network", network, Network, hint="made by transformer.network")
    settings = next(iter(getattr(network.states, "args", ())), None)
    if not (isinstance(settings, _readouts.Settings) and settings.blocks.trained_skip):
        raise checks.BadType(f'network must be a transformer of blocks with skip="admin"; got {network!r}')
    _, params, x = fitting(network, params, x)
    return _with_gains(settings, params, x)


@compiled
def _with_gains(settings, params, x):
    names, layers = _blocks.sublayers(settings.blocks), params["blocks"]
    layers = {name: layers[name] | {"skip": jnp.ones_like(layers[name]["skip"])} for name in names}
    x = _readouts.tokens_of(settings, x)
    y = x if settings.kind == "network" else _readouts.embedded(settings, params, x)
    added = _blocks.squares(settings.blocks, layers, y.astype(jnp.result_type(y, *jax.tree.leaves(params))))
    total = jnp.cumsum(added.ravel().astype(wide(added.dtype)))
    gains = jnp.sqrt(1 + jnp.concatenate([jnp.zeros_like(total[:1]), total[:-1]])).reshape(added.shape)
    gained = {
        name: layers[name] | {"skip": layers[name]["skip"] * gains[:, i, None].astype(added.dtype)}
        for i, name in enumerate(names)
    }
    return {**params, "blocks": gained}
