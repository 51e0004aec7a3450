"""Codes and weights of an autoencoder as unknowns of one energy, minimised in turn.

    E(Z, params) = mean over examples of alpha |z - g(x)|^2 + |x - h(z)|^2 + sparsity |z|_1

One round: the best codes for the weights (`autoencoder.optimal_codes`, from the codes of the round before), then the
caller's fit of the weights to these codes: encoder and decoder are two regressions there, which no longer meet.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree, ScalarLike

from numdl import checks
from numdl.networks import autoencoder as autoencoders
from numdl.networks.autoencoder import Autoencoder
from numdl.records import record


@record
class Alternation:
    """Where the rounds have led, and the energy on the way."""

    params: PyTree
    codes: jax.Array  # [N, k]: the best ones before the last fit
    energy: jax.Array  # [rounds, 3]: mean over examples before the codes move, after, and after the weights have moved


def minimize(
    autoencoder: Autoencoder,
    params: PyTree,
    x: Float[ArrayLike, "N d"],
    fit: Callable[[PyTree, Array, Array], PyTree],
    *,
    alpha: ScalarLike,
    rounds: int,
    sparsity: ScalarLike = 0.0,
    steps: int = 50,
) -> Alternation:
    """The energy minimised over codes and weights, alternating: codes by proximal gradient steps, weights by `fit`.

        Z <- argmin_Z E(Z, params),    params <- fit(params, x, Z)

    Parameters
    ----------
    autoencoder : Autoencoder
    params : pytree             of its `init`: where the rounds begin
    x : array [N, d]
    fit : function              (params, x, codes) -> params, of lower energy; with sparsity it must keep the decoder
                                from growing, or codes shrink for nothing
    alpha, sparsity : scalar    of the energy, >= 0
    rounds : int                >= 1
    steps : int                 proximal gradient steps of each round, >= 1
    Returns
    -------
    Alternation
    Raises
    ------
    ValueError, TypeError       as `autoencoder.energy`; rounds or steps < 1, a `fit` that does not take three arguments
    Source: Ranzato, Boureau, Chopra & LeCun 2007, AISTATS.    Experiment: f18.
    """
    checks.instance("autoencoder", autoencoder, Autoencoder, hint="made by autoencoder.network")
    params, x = checks.leaves("params", params), checks.floating("x", x, ndim=2)
    fit = checks.accepts("fit", fit, 3, "fit(params, x, codes)")
    weights = {"alpha": checks.variance("alpha", alpha, shape=())}
    weights["sparsity"] = checks.variance("sparsity", sparsity, shape=())
    rounds, steps = checks.whole("rounds", rounds), checks.whole("steps", steps)
    codes, energies = autoencoder.encode(params, x), []
    for _ in range(rounds):
        found = autoencoders.optimal_codes(autoencoder, params, x, steps=steps, start=codes, **weights)
        codes = found.codes
        params = checks.like("fit(params, x, codes)", fit(params, x, codes), params)
        after = jnp.mean(autoencoders.energy(autoencoder, params, codes, x, **weights))
        energies.append(jnp.stack([jnp.mean(found.energy[0]), jnp.mean(found.energy[-1]), after]))
    return Alternation(params, codes, jnp.stack(energies))
