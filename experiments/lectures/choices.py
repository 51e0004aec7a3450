"""One of several items matters: attention that mixes them, and attention that draws one by chance.

Items are standard normal, one of them with MARK added to its first coordinate; each has a sign, and that of the marked
item is the target of a squared loss. The query is the only parameter.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from scipy.integrate import quad
from scipy.special import ndtr

from numdl.networks import attention
from numdl.precision import float64

WAYS = ("soft", "hard, score", "hard, score, mean", "hard, straight through")
MARK = 3.0
BATCH = 16  # examples of a step of training


@functools.cache
def selection(strength, items):
    """Probability that the marked item has the largest score: int phi(z - strength) Phi(z)^(items - 1) dz."""
    density = lambda z: np.exp(-((z - strength) ** 2) / 2) * ndtr(z) ** (items - 1)  # noqa: E731
    return quad(density, -9, 9 + strength)[0] / np.sqrt(2 * np.pi)


def steps_to(right, level):
    """Steps until a mean over ten steps has passed a level, [seeds]; all steps where it never did."""
    smooth = np.apply_along_axis(np.convolve, 0, right, np.ones(10) / 10, mode="valid")
    over = smooth >= level
    return np.where(over.any(axis=0), over.argmax(axis=0), len(right)) + 1.0


@float64
def moments(key, way, config):
    """At the query 0: mean less the exact gradient of the hard loss [batches, features]; variance and exact one."""
    w = jnp.zeros(config.features)
    baseline = 2 * (1 - 1 / config.items) if way == "hard, score, mean" else 0.0  # the mean loss there

    @jax.jit
    def batch(key):
        made, acting = jax.random.split(key)
        x, signs, place = examples(made, config, config.examples)
        keys = jax.random.split(acting, config.examples)
        found = jax.vmap(functools.partial(gradient, way, w, baseline=baseline))(keys, x, signs, place)[0]
        exact, square = jax.vmap(lambda *one: enumerated(w, *one, baseline))(x, signs, place)
        spread = jnp.sum(jnp.mean(found**2, axis=0) - jnp.mean(exact, axis=0) ** 2)
        known = jnp.mean(square) - jnp.sum(jnp.mean(exact, axis=0) ** 2)
        if "score" not in way:
            spread, known = jnp.sum(jnp.var(found, axis=0)), jnp.nan
        return jnp.mean(found - exact, axis=0), jnp.stack([spread, known])

    return [np.asarray(part) for part in lax.map(batch, jax.random.split(key, config.batches))]


@float64
def trained(key, way, config):
    """Selection before every step of descent, [training, seeds]."""

    def step(carry, key):
        w, baseline = carry
        made, acting = jax.random.split(key)
        x, signs, place = examples(made, config, BATCH)
        slopes, losses = jax.vmap(functools.partial(gradient, way, w, baseline=baseline))(
            jax.random.split(acting, BATCH), x, signs, place
        )
        # The baseline of a step is the mean loss of the one before: no example is its own baseline.
        later = losses.mean() if way == "hard, score, mean" else baseline
        return (w - config.learning_rate * slopes.mean(axis=0), later), w

    def train(key):
        return lax.scan(step, (jnp.zeros(config.features), jnp.asarray(0.0)), jax.random.split(key, config.training))[1]

    w = np.asarray(jax.jit(lambda keys: lax.map(train, keys))(jax.random.split(key, config.seeds)))
    size = np.linalg.norm(w, axis=-1)
    strength = MARK * w[..., 0] / np.where(size > 0, size, 1.0)
    table = np.linspace(-MARK, MARK, 121)
    return np.interp(strength, table, [selection(m, config.items) for m in table]).T


def examples(key, config, count):
    """Items [count, T, d], signs [count, T], and which is marked [count]."""
    one, two, three = jax.random.split(key, 3)
    place = jax.random.randint(one, (count,), 0, config.items)
    marks = MARK * jax.nn.one_hot(place, config.items)[:, :, None] * jnp.eye(1, config.features)[None]
    x = jax.random.normal(two, (count, config.items, config.features)) + marks
    return x, jax.random.rademacher(three, (count, config.items), x.dtype), place


def gradient(way, w, key, x, signs, place, baseline):
    """(gradient, loss) from one example."""
    choose = Partial(attention.gumbel, key, temperature=1.0)

    def loss(w):
        weights = attention.soft if way == "soft" else choose
        read = attention.attend(w[None], x, signs[:, None], weights=weights, scale=1.0)[0, 0]
        return (read - signs[place]) ** 2

    value, slope = jax.value_and_grad(loss)(w)
    if "score" not in way:
        return slope, value
    chosen = choose((x @ w)[None])[0]  # the noise is the same, so this is the item that was read
    return (value - baseline) * (chosen - attention.soft(x @ w)) @ x, value


def enumerated(w, x, signs, place, baseline):
    """One example's exact gradient of the hard loss, and the second moment of the score function's, over all items."""
    p = attention.soft(x @ w)
    losses, scores = (signs - signs[place]) ** 2, x - (p @ x)[None]
    return (p * losses) @ scores, (p * (losses - baseline) ** 2) @ jnp.sum(scores**2, axis=1)
