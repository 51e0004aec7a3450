"""Variational Bayes with independent Gaussians for all parameters (mean field), trained by pathwise gradients.

    q = N(mean, diag(exp(log_variance))),    ln p(data) >= E_q ln p(data | params) - KL(q | N(0, I / prior_precision))

`start` makes q, `evidence` the bound from draws of the parameters: a loss is minus it, for `train.fit`, `train.descend`
or an optimizer of one's own. q is a pytree like any other parameters.

    >>> import jax, jax.numpy as jnp, optax
    >>> from numdl.optimize import train
    >>> likelihood = lambda w, y: -jnp.sum((y - w) ** 2) / 2  # four observations of w with noise of variance 1
    >>> loss = lambda q, key: -evidence(key, likelihood, q, 2.0 * jnp.ones(4), prior_precision=1.0, draws=20)
    >>> keys = jax.random.split(jax.random.key(0), 800)
    >>> q, _ = train.descend(loss, start(jnp.zeros(()), variance=1.0), optax.adam(0.03), keys)
    >>> print(jnp.abs(q.mean - 8 / 5) < 0.1, jnp.abs(jnp.exp(q.log_variance) - 1 / 5) < 0.05)  # the posterior
    True True
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree, ScalarLike

from numdl import checks, trees
from numdl._compiled import compiled
from numdl.records import record


@record
class MeanField:
    """A Gaussian for each number that moves."""

    mean: Any  # like params; what is no real floating number stays
    log_variance: Any  # like the part of params that moves: None where nothing does, two reals for a complex number


def start(params: PyTree, *, variance: ScalarLike) -> MeanField:
    """A Gaussian of this variance around every parameter: where training of q begins.

    Parameters
    ----------
    params : pytree             floating leaves are uncertain, integers, bools and keys stay
    variance : scalar           > 0; small beside the prior's, as many draws of a wide q say little
    Returns
    -------
    MeanField
    Raises
    ------
    ValueError, TypeError       a variance not above 0, nothing that moves
    Source: Blundell et al. 2015, arXiv:1505.05424.    Experiment: f16.
    """
    variance = checks.positive("variance", variance, shape=())
    moving, rest = trees.trainable(params)
    spread = jax.tree.map(lambda leaf: jnp.full(jnp.shape(leaf), jnp.log(variance), jnp.result_type(leaf)), moving)
    return MeanField(rest.params(jax.tree.map(jnp.asarray, moving)), spread)


def draw(key: Key[Array, ""], posterior: MeanField, *, draws: int) -> PyTree:
    """Parameters drawn from q: leaves have a leading axis [draws].

        mean + exp(log_variance / 2) z,    z ~ N(0, I)

    Parameters
    ----------
    key : key                   of z
    posterior : MeanField       q
    draws : int                 >= 1
    Returns
    -------
    params                      like the mean, with a leading axis
    Raises
    ------
    ValueError, TypeError       not a MeanField, draws < 1, no typed key
    Source: the definition.    Experiment: f16.
    """
    checks.key("key", key)
    moving, log_variance, rest = _opened(posterior)
    return _drawn(key, moving, rest, log_variance, draws=checks.whole("draws", draws))


def divergence(posterior: MeanField, *, prior_precision: ScalarLike) -> Float[Array, ""]:
    """KL(q | prior), exactly.

        KL = 1/2 sum_i (p (mean_i^2 + variance_i) - 1 - ln(p variance_i)),    p = prior_precision

    Parameters
    ----------
    posterior : MeanField       q
    prior_precision : scalar    > 0: the prior is N(0, I / prior_precision)
    Returns
    -------
    scalar                      in nats
    Raises
    ------
    ValueError, TypeError       not a MeanField, a precision not above 0
    Source: the definition, for two Gaussians.    Experiment: f16.
    """
    precision = checks.positive("prior_precision", prior_precision, shape=())
    moving, log_variance, _ = _opened(posterior)
    return _divergence(moving, log_variance, precision)


def evidence(
    key: Key[Array, ""],
    log_likelihood: Callable[[PyTree, PyTree], Array],
    posterior: MeanField,
    batch: PyTree,
    *,
    prior_precision: ScalarLike,
    draws: int = 1,
) -> Float[Array, ""]:
    """A lower bound on ln p(data) by pathwise draws of the parameters (ELBO): differentiable in q.

        mean over draws of ln p(data | params) - KL(q | N(0, I / prior_precision))

    Parameters
    ----------
    key : key                   of the draws
    log_likelihood : function   (params, batch) -> scalar, of all data: n of N examples count N / n times
    posterior : MeanField       q
    batch : pytree              what the likelihood takes
    prior_precision : scalar    > 0
    draws : int                 of the parameters, >= 1
    Returns
    -------
    scalar                      in nats
    Raises
    ------
    ValueError, TypeError       a likelihood that is not one real number, a precision not above 0, draws < 1
    Source: Kingma & Welling 2014, arXiv:1312.6114; Blundell et al. 2015, arXiv:1505.05424.    Experiment: f16.
    """
    likelihood = checks.returning("log_likelihood", log_likelihood, 2, "log_likelihood(params, batch)", scalar=True)
    checks.key("key", key)
    moving, log_variance, rest = _opened(posterior)
    batch, draws = checks.leaves("batch", batch), checks.whole("draws", draws)
    precision = checks.positive("prior_precision", prior_precision, shape=())
    jax.eval_shape(likelihood, posterior.mean, batch)
    return _evidence(key, likelihood, moving, rest, log_variance, batch, precision, draws=draws)


@functools.partial(compiled, static=("draws",))
def _evidence(key, likelihood, moving, rest, log_variance, batch, precision, draws):
    every = _drawn(key, moving, rest, log_variance, draws=draws)
    fit = jnp.mean(jax.vmap(likelihood, in_axes=(0, None))(every, batch))
    return fit - _divergence(moving, log_variance, precision)


def _opened(posterior):
    checks.instance("posterior", posterior, MeanField, hint="made by mean_field.start")
    moving, rest = trees.trainable(posterior.mean, name="posterior.mean")
    spread = posterior.log_variance
    return (
        moving,
        checks.like("posterior.log_variance", spread, moving, of="the part of posterior.mean that moves"),
        rest,
    )


@compiled
def _divergence(moving, log_variance, precision):
    def part(mean, spread):
        wide = precision * (mean**2 + jnp.exp(spread))
        return jnp.sum(wide - 1 - spread - jnp.log(jnp.asarray(precision, spread.dtype))) / 2

    return sum(jax.tree.leaves(jax.tree.map(part, moving, log_variance)))


@functools.partial(compiled, static=("draws",))
def _drawn(key, moving, rest, log_variance, draws):
    def one(key):
        noise = trees.random_like(key, moving)
        return rest.params(jax.tree.map(lambda m, s, z: m + jnp.exp(s / 2) * z, moving, log_variance, noise))

    return jax.vmap(one)(jax.random.split(key, draws))
