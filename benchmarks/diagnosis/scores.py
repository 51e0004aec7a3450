"""Losses that a user would write, and the held-out scores that decide whether a network trained."""

import jax
import jax.numpy as jnp
import numpy as np


def cross_entropy(outputs, labels):
    logs = jax.nn.log_softmax(outputs.astype(jnp.float32))
    return -jnp.mean(jnp.take_along_axis(logs, labels[:, None], 1))


def squared(outputs, targets):
    return jnp.mean((outputs - targets) ** 2)


def binary(outputs, labels):
    """Cross-entropy of one logit per example."""
    z = outputs.reshape(-1)
    return jnp.mean(jnp.maximum(z, 0) - z * labels + jnp.log1p(jnp.exp(-jnp.abs(z))))


def binary_of_probabilities(outputs, labels):
    p = jnp.clip(outputs.reshape(-1), 1e-7, 1 - 1e-7)
    return -jnp.mean(labels * jnp.log(p) + (1 - labels) * jnp.log(1 - p))


def accuracy(outputs, labels):
    return _where_finite(outputs, jnp.mean(jnp.argmax(outputs, -1) == labels), 0.0)


def accuracy_above(threshold):
    """Share of right answers of one output per example."""

    def accuracy_of_one(outputs, labels):
        return _where_finite(outputs, jnp.mean((outputs.reshape(-1) > threshold) == (labels == 1)), 0.0)

    return accuracy_of_one


def balanced(outputs, labels):
    """Mean recall over the classes that occur."""
    hit, classes = jnp.argmax(outputs, -1) == labels, jnp.arange(outputs.shape[-1])
    member = labels[:, None] == classes
    counts = member.sum(0)
    recall = jnp.where(counts > 0, (hit[:, None] & member).sum(0) / jnp.maximum(counts, 1), 0.0)
    return _where_finite(outputs, recall.sum() / (counts > 0).sum(), 0.0)


def explained(outputs, targets):
    """Share of the targets' variance that is explained, at least -1."""
    left = jnp.mean((outputs.reshape(targets.shape) - targets) ** 2) / jnp.var(targets)
    return _where_finite(left, jnp.clip(1 - left, -1, 1), -1.0)


def _where_finite(outputs, value, otherwise):
    return jnp.where(jnp.isfinite(outputs).all(), value, otherwise).astype(jnp.float32)


LOSSES = {"classes": cross_entropy, "values": squared}
METRICS = {"classes": accuracy, "values": explained}


def chance(kind, targets):
    """The best constant answer's score: the most frequent class's share, or no variance explained."""
    return float(np.bincount(targets).max() / len(targets)) if kind == "classes" else 0.0
