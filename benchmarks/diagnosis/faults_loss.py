"""Faults of the head and of the loss."""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.diagnosis import scores
from benchmarks.diagnosis.faults import after, but, fit, report
from benchmarks.diagnosis.faults_network import _outputs
from benchmarks.diagnosis.setting import Setting


def one_output(setting: Setting, head, loss, threshold):
    """Two classes by one output: the difference of the two logits, through a head, with another loss."""

    def apply(params, x):
        out = inner(params, x)
        return head(out[:, 1:2] - out[:, :1])

    inner = setting.apply
    return setting.changed(apply=apply, loss=loss, metric=scores.accuracy_above(threshold))


def head(setting, function, loss=None):
    """A function behind the network, with the loss that is there or another."""
    changed = _outputs(setting, function)
    return changed if loss is None else changed.changed(loss=loss)


def loss(setting, change):
    """A function of (loss, outputs, targets) instead of the loss."""
    inner = setting.loss
    return setting.changed(loss=lambda outputs, targets: change(inner, outputs, targets))


def flat_targets(setting):
    """Targets [N] beside outputs [N, 1]: their difference is [N, N]."""
    flat = lambda pair: (pair[0], pair[1][:, 0])  # noqa: E731
    return setting.changed(data=flat(setting.data), held_out=flat(setting.held_out))


def column_of_labels(setting):
    """Labels [N, 1] compared with log-probabilities [N] of each example's own class."""

    def coupled(outputs, labels):
        logs = jax.nn.log_softmax(outputs)
        return -jnp.mean((labels[:, None] == jnp.arange(outputs.shape[-1])) @ logs.T)

    return setting.changed(loss=coupled)


def softmax(out):
    return jax.nn.softmax(out, -1)


def one_hot_squares(outputs, labels):
    return jnp.mean((outputs - jax.nn.one_hot(labels, outputs.shape[-1])) ** 2)


def log_of_probabilities(outputs, labels):
    """Unguarded: the logarithm of a probability that may be zero."""
    return -jnp.mean(jnp.log(jnp.take_along_axis(outputs, labels[:, None], 1)))


def over_an_empty_mask(inner, outputs, targets):
    """The mean over examples that a mask keeps, and it keeps none: 0/0."""
    kept = jnp.sum(targets < -1000)
    return inner(outputs, targets) * kept / kept


def distance(outputs, targets):
    """A norm whose gradient at zero is not a number."""
    return jnp.mean(jnp.sqrt(jnp.sum((outputs - targets) ** 2, -1)))


def half_at_the_origin(setting):
    """Distances to targets many of which are zero, as the first outputs are."""
    positive = lambda pair: (pair[0], np.maximum(pair[1], 0))  # noqa: E731
    return setting.changed(data=positive(setting.data), held_out=positive(setting.held_out), loss=distance)


def accuracy_as_loss(inner, outputs, labels):
    return 1 - scores.accuracy(outputs, labels)


def sign_of(z):
    return z / (jnp.abs(z) + 1e-12)


FAULTS = [
    fit("outputs_constant", "softmax of one", "dense-tanh", **after(
        one_output, softmax, scores.binary_of_probabilities, 0.5)),
    fit("outputs_constant", "clipped", "dense-moons dense-sgd", **after(head, lambda out: jnp.clip(out, 0, 0))),
    report("outputs_constant", "softmax of one", "dense-circles", **after(
        one_output, softmax, scores.binary_of_probabilities, 0.5)),
    report("outputs_constant", "normed", "dense-circles", **after(one_output, sign_of, scores.binary, 0.0)),
    report("outputs_constant", "times zero", "convolution-nnx dense-values-wide", **after(head, lambda out: 0.0 * out)),
    fit("head_against_loss", "softmax twice", "dense-sgd convolution dense-linen", **after(head, softmax)),
    fit("head_against_loss", "relu values", "dense-values", **after(head, jax.nn.relu)),
    fit("head_against_loss", "relu then log", "dense-tanh", **after(
        one_output, lambda z: jax.nn.relu(z - 1), scores.binary_of_probabilities, 0.5)),
    report("head_against_loss", "softmax twice", "dense-haiku-sgd residual-haiku dense-gelu", **after(head, softmax)),
    report("head_against_loss", "sigmoid values", "dense-values-wide", **after(head, jax.nn.sigmoid)),
    report("head_against_loss", "probabilities as logits", "dense-circles", **after(
        one_output, jax.nn.sigmoid, scores.binary, 0.5)),
    report("head_against_loss", "saturated squares", "dense-equinox convolution-nnx", **after(
        head, lambda out: jax.nn.sigmoid(20 * out - 15), one_hot_squares)),
    fit("loss_ignores_outputs", "stopped", "dense dense-values convolution", **after(
        loss, lambda inner, out, y: inner(jax.lax.stop_gradient(out), y))),
    report("loss_ignores_outputs", "accuracy", "dense-equinox convolution-nnx", **after(loss, accuracy_as_loss)),
    report("loss_ignores_outputs", "rounded", "dense-values-wide residual-haiku", **after(
        loss, lambda inner, out, y: inner(jnp.round(out), y))),
    fit("loss_couples_examples", "broadcast", "dense-values", **after(flat_targets)),
    report("loss_couples_examples", "broadcast", "dense-values-wide", **after(flat_targets)),
    report("loss_couples_examples", "every label", "dense-equinox convolution-nnx", **after(column_of_labels)),
    fit("loss_scale", "sum", "dense-sgd residual", **after(loss, lambda inner, out, y: 32 * inner(out, y))),
    fit("loss_scale", "1e-4", "dense-sgd dense-tanh", **after(loss, lambda inner, out, y: 1e-4 * inner(out, y))),
    report("loss_scale", "1e3", "dense-haiku-sgd residual-numdl",
           **after(loss, lambda inner, out, y: 1e3 * inner(out, y))),
    report("loss_scale", "1e-3", "dense-haiku-sgd residual-numdl",
           **after(loss, lambda inner, out, y: 1e-3 * inner(out, y))),
    fit("wrong_sign", "minus", "dense convolution dense-values", **after(loss, lambda inner, out, y: -inner(out, y))),
    report("wrong_sign", "likelihood", "dense-equinox residual-haiku", **after(
        loss, lambda inner, out, y: jnp.exp(-inner(out, y)))),
    fit("not_finite", "log of zero", "dense-sgd", **after(
        head, lambda out: softmax(200 * out), log_of_probabilities)),
    report("not_finite", "empty mask", "dense-equinox convolution-nnx", **after(loss, over_an_empty_mask)),
    report("not_finite", "norm at zero", "dense-values-wide", **but(last_law="zero"), **after(half_at_the_origin)),
]  # fmt: skip
