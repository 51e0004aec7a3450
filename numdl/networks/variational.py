"""Variational autoencoders: codes are random, Gaussian around the encoder's, and training raises a bound on ln p(x).

    z = g(x) + exp(spread / 2) * noise,    x = h(z) + noise_variance^(1/2) * noise

The draw of z is a path from noise to z, so that the gradient of a mean over draws is the mean of gradients.
"""

import functools

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key, PyTree, ScalarLike

from numdl import _random, checks
from numdl._compiled import as_tree, compiled
from numdl.networks.autoencoder import Autoencoder


def evidence(
    key: Key[Array, ""],
    autoencoder: Autoencoder,
    params: PyTree,
    x: Float[ArrayLike, "N d"],
    *,
    noise_variance: ScalarLike,
    draws: int = 1,
) -> Float[Array, "N"]:
    """A lower bound on ln p(x) of each example, by pathwise draws of the codes: differentiable in params.

        mean over draws of ln N(x; h(z), noise_variance I) - KL(q | N(0, I)),    z = g(x) + exp(spread / 2) * N(0, I)
        KL = 1/2 sum_i (g_i^2 + exp(spread_i) - 1 - spread_i)

    Parameters
    ----------
    key : key                   of the draws
    autoencoder : Autoencoder   with a spread: `network(gaussian=True)`
    params : pytree             of its `init`
    x : array [N, d]
    noise_variance : scalar     > 0, of each coordinate around the decoder's output
    draws : int                 codes for each example, >= 1
    Returns
    -------
    array [N]                   in nats
    Raises
    ------
    ValueError, TypeError       an Autoencoder without a spread, a variance not above 0, draws < 1
    Source: Kingma & Welling 2014, arXiv:1312.6114, eqs. (3), (7) and (10).    Experiment: f18.
    """
    checks.key("key", key)
    checks.instance("autoencoder", autoencoder, Autoencoder, hint="made by autoencoder.network")
    if autoencoder.spread is None:
        raise checks.BadValue("autoencoder must have a spread, network(gaussian=True); got one without")
    noise_variance = checks.positive("noise_variance", noise_variance, shape=())
    params, x = checks.leaves("params", params), checks.floating("x", x, ndim=2)
    return _evidence(key, as_tree(autoencoder), params, x, noise_variance, draws=checks.whole("draws", draws))


@functools.partial(compiled, static=("draws",))
def _evidence(key, autoencoder, params, x, noise_variance, draws):
    mean, spread = autoencoder.encode(params, x), autoencoder.spread(params, x)
    noise = _random.normal(key, (draws, *mean.shape), mean.dtype)
    codes = mean[None] + jnp.exp(spread / 2)[None] * noise
    outputs = autoencoder.decode(params, codes.reshape(-1, mean.shape[1])).reshape(draws, *x.shape)
    misfit = jnp.mean(jnp.sum((x[None] - outputs) ** 2, axis=-1), axis=0)
    divergence = jnp.sum(mean**2 + jnp.exp(spread) - 1 - spread, axis=-1) / 2
    return -(misfit / noise_variance + x.shape[1] * jnp.log(2 * jnp.pi * noise_variance)) / 2 - divergence
