"""A network on 200 digits with labels by lot, with and without remedies against fitting too much (d12)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from numdl import activations, data
from numdl.networks import dense
from numdl.optimize import losses, train

REMEDIES = {"none": (0.0, 0.0), "weight decay": (0.0, 0.02), "dropout": (0.5, 0.0)}  # share dropped, strength
LABELS_BY_LOT = 0.3


def trained(config):
    """{"loss", "accuracy" on new examples, "held_out": loss where to stop}: [remedies, seeds, rounds]."""
    digits = data.digits()
    x = jnp.asarray(digits.images.reshape(len(digits.images), -1), jnp.float32)
    strengths = jnp.asarray(list(REMEDIES.values()), jnp.float32)
    keys = jax.random.split(jax.random.key(config.seed), config.seeds)
    rows = _remedied(config, strengths, keys, 2 * (x - jnp.mean(x)), jnp.asarray(digits.labels))
    return dict(zip(("loss", "accuracy", "held_out"), (np.asarray(r, np.float64) for r in rows), strict=True))


@functools.partial(jax.jit, static_argnums=0)
def _remedied(config, strengths, keys, x, labels):
    return lax.map(lambda r: lax.map(lambda key: _one(config, r[0], r[1], key, x, labels), keys), strengths)


def _one(config, dropped, decay, key, x, labels):
    """Losses on new and on held-out examples after every round, one program for all remedies."""
    split, init, draw, steps = jax.random.split(key, 4)
    places = jax.random.permutation(split, x.shape[0])
    given, held, new = places[:200], places[200:400], places[400:]
    lot = jax.random.uniform(draw, (200,), x.dtype) < LABELS_BY_LOT
    targets = jnp.where(lot, jax.random.randint(jax.random.fold_in(draw, 1), (200,), 0, 10), labels[given])
    net = dense.network(
        widths=(64, config.width, 10), activation=activations.relu, weight_variance=2.0, bias_variance=0.0
    )

    def loss(params, key):
        hidden = jax.nn.relu(net.states(params, x[given])[-1][-1])
        kept = jax.random.uniform(key, hidden.shape, hidden.dtype) >= dropped
        hidden = jnp.where(kept, hidden / (1 - dropped), jnp.zeros_like(hidden))
        outputs = hidden @ params["readout"]["kernel"] + params["readout"]["bias"][None, :]
        kernels = (params["hidden"][0]["kernel"], params["readout"]["kernel"])
        return losses.softmax_cross_entropy(outputs, targets) + decay / 2 * sum(jnp.sum(k**2) for k in kernels)

    def turn(params, keys):
        params, _ = train.descend(loss, params, optax.sgd(0.1), keys)
        seen = [(net.apply(params, x[part]), labels[part]) for part in (new, held)]
        misfit = [losses.softmax_cross_entropy(*pair) for pair in seen]
        return params, (misfit[0], losses.accuracy(*seen[0]), misfit[1])

    keys = jax.random.split(steps, (config.rounds, 50))
    return lax.scan(turn, net.init(init, x[:1]), keys)[1]
