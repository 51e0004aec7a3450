"""Relu networks on digits, pairs of copies with common first steps, and the paths between two networks (e10, e14)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.tree_util import Partial

from numdl import activations, data
from numdl.analysis import landscape
from numdl.networks import dense
from numdl.optimize import losses, train


def digits(seed, count):
    """Training and test digits, (x, labels) each, in random order: the file is sorted by writer."""
    found = data.digits()
    order = np.random.default_rng(seed).permutation(len(found.images))
    x, y = data.standardize(found.images[order]), found.labels[order]
    return (jnp.asarray(x[:count]), jnp.asarray(y[:count])), (jnp.asarray(x[count:]), jnp.asarray(y[count:]))


def network(widths):
    """A dense relu network with He's start."""
    return dense.network(widths=widths, activation=activations.relu, weight_variance=2.0, bias_variance=0.0)


def cross_entropy(net, params, batch):
    """The mean over the batch."""
    x, y = batch
    return losses.softmax_cross_entropy(net.apply(params, x), y)


def error(net, params, batch):
    """The share of wrong digits."""
    x, y = batch
    return 1 - losses.accuracy(net.apply(params, x), y)


def momentum(rate):
    """Gradient descent with momentum."""
    return optax.sgd(rate, momentum=0.9)


def batches(key, shape, count):
    """Three draws of batches [pairs, steps, batch] of `count` examples: common to two copies, and each one's own."""
    return jax.random.randint(key, (3, *shape), 0, count)


def spawned(net, starts, drawn, examples, shared, rate, rule=momentum):
    """Two copies of each start [pairs], stacked, with the same batches for `shared` steps and their own afterwards."""
    common, *own = drawn
    early = (jnp.arange(common.shape[1]) < shared)[None, :, None]
    mixed = jnp.concatenate([jnp.where(early, common, mine) for mine in own])
    found = trained(net, jnp.concatenate([starts, starts]), mixed, examples, rate, rule)
    count = len(starts)
    return tuple(jax.tree.map(lambda leaf, i=i: leaf[i : i + count], found) for i in (0, count))


@functools.partial(jax.jit, static_argnames="rule")
def trained(net, keys, batches, examples, rate, rule=momentum):
    """The parameters of all seeds, one after the other; batches [seeds, steps, batch]; `rule(rate)` optimizes."""
    x, y = examples

    def one(start):
        key, batches = start
        params, taken = net.init(key, x[:1]), (x[batches], y[batches])
        return train.descend(Partial(cross_entropy, net), params, rule(rate), taken)[0]

    return lax.map(one, (keys, batches))


@functools.partial(jax.jit, static_argnames="points")
def paths(loss, starts, stops, batch, points):
    """The straight path of every pair."""
    return lax.map(lambda pair: landscape.interpolation(loss, *pair, batch, points=points), (starts, stops))
