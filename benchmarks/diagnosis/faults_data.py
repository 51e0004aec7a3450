"""Faults of the data: inputs, targets, labels and the order in which they come."""

import jax.numpy as jnp
import numpy as np

from benchmarks.diagnosis import scores
from benchmarks.diagnosis.drawing import generator
from benchmarks.diagnosis.faults import after, fit, report
from benchmarks.diagnosis.setting import Setting


def inputs(setting: Setting, change):
    """The same change of the inputs in both splits."""
    move = lambda pair: (np.asarray(change(pair[0]), np.float32), pair[1])  # noqa: E731
    return setting.changed(data=move(setting.data), held_out=move(setting.held_out))


def one_column(x, factor):
    x = x.copy()
    x[..., 0] *= factor
    return x


def targets(setting, change, both=True):
    """A change of the targets, in training alone or in both splits."""
    move = lambda pair: (pair[0], change(pair[1]))  # noqa: E731
    return setting.changed(data=move(setting.data), held_out=move(setting.held_out) if both else setting.held_out)


def shuffled(y):
    return y[generator("labels").permutation(len(y))]


def unscaled(factor, offset):
    return lambda y: (factor * y + offset).astype(np.float32)


def poisoned(setting, rows, value=np.nan):
    """Some training rows hold a value that is not finite."""
    x = setting.data[0].copy()
    x.reshape(len(x), -1)[list(rows), 0] = value
    return setting.changed(data=(x, setting.data[1]))


def imbalanced(setting, share):
    """Training data with few examples of all classes but the most frequent."""
    x, y = setting.data
    common = np.bincount(y).argmax()
    rare = np.flatnonzero(y != common)
    keep = np.sort(np.concatenate([np.flatnonzero(y == common), rare[: max(2, int(share * len(y)))]]))
    chance = 1 / len(np.unique(setting.held_out[1]))
    return setting.changed(data=(x[keep], y[keep]), metric=scores.balanced, chance=chance)


def ordered(setting, batch_size=None):
    """Sorted by class or by target, never shuffled."""
    x, y = setting.data
    order = np.argsort(y.reshape(len(y), -1)[:, 0], kind="stable")
    size = setting.batch_size if batch_size is None else batch_size
    return setting.changed(data=(x[order], y[order]), shuffle=False, batch_size=size)


def out_of_range_loss(outputs, labels):
    """The label's log-probability as optax takes it: not a number for a label that does not exist."""
    inside = (labels >= 0) & (labels < outputs.shape[-1])
    taken = jnp.take_along_axis(outputs, jnp.clip(labels, 0, outputs.shape[-1] - 1)[:, None], 1)[:, 0]
    taken = jnp.where(inside, taken, jnp.nan)
    return jnp.mean(jnp.log(jnp.sum(jnp.exp(outputs), -1)) - taken)


def out_of_range(setting, change):
    return targets(setting, change, both=False).changed(loss=out_of_range_loss)


FAULTS = [
    fit("inputs_unscaled", "x255", "dense-sgd dense-tanh residual", **after(inputs, lambda x: 255 * x)),
    fit("inputs_unscaled", "offset 300", "dense residual", **after(inputs, lambda x: x + 300)),
    report("inputs_unscaled", "x2000", "dense-haiku-sgd dense-circles", **after(inputs, lambda x: 2000 * x)),
    report("inputs_unscaled", "column 1e4", "dense-equinox dense-values-wide residual-haiku", **after(
        inputs, lambda x: one_column(x, 1e4))),
    fit("inputs_too_small", "x1e-4", "dense-sgd dense-tanh", **after(inputs, lambda x: 1e-4 * x)),
    fit("inputs_too_small", "scaled twice", "dense-sgd residual", **after(inputs, lambda x: x / 255)),
    report("inputs_too_small", "x1e-3", "dense-haiku-sgd residual-numdl", **after(inputs, lambda x: 1e-3 * x)),
    report("inputs_too_small", "x1e-6", "dense-equinox dense-circles", **after(inputs, lambda x: 1e-6 * x)),
    fit("inputs_constant", "ones", "dense convolution", **after(inputs, lambda x: 0 * x + 1)),
    report("inputs_constant", "rounded away", "dense-equinox dense-values-wide residual-haiku", **after(
        inputs, lambda x: np.round(x / 100))),
    fit("targets_unscaled", "500", "dense-values", **after(targets, unscaled(100.0, 500.0))),
    fit("targets_unscaled", "1e4", "dense-values", **after(targets, unscaled(1e4, 0.0))),
    report("targets_unscaled", "150", "dense-values-wide", **after(targets, unscaled(5.0, 150.0))),
    report("targets_unscaled", "3e3", "dense-values-wide", **after(targets, unscaled(3e3, -1e3))),
    fit("labels_constant", "zeros", "dense convolution dense-values", **after(targets, lambda y: 0 * y, both=False)),
    report("labels_constant", "twos", "dense-equinox convolution-nnx",
           **after(targets, lambda y: 0 * y + 2, both=False)),
    fit("labels_unrelated", "shuffled", "dense dense-tanh convolution", **after(targets, shuffled, both=False)),
    report("labels_unrelated", "one row off", "dense-equinox residual-haiku convolution-nnx", **after(
        targets, lambda y: np.roll(y, 1, 0), both=False)),
    report("labels_unrelated", "one row off", "dense-values-wide",
           **after(targets, lambda y: np.roll(y, 1, 0), both=False)),
    fit("labels_out_of_range", "from one", "dense dense-sgd", **after(out_of_range, lambda y: y + 1)),
    report("labels_out_of_range", "minus one", "dense-equinox convolution-nnx", **after(out_of_range, lambda y: y - 1)),
    report("labels_out_of_range", "ignore 255", "dense-haiku-sgd",
           **after(out_of_range, lambda y: np.where(y == 1, 255, y))),
    fit("labels_imbalanced", "2 %", "dense-tanh dense-sgd", **after(imbalanced, 0.02)),
    report("labels_imbalanced", "1 %", "dense-circles residual-haiku convolution-nnx", **after(imbalanced, 0.01)),
    fit("not_finite", "nan in the batch", "dense convolution", **after(poisoned, (3, 40))),
    fit("not_finite", "rare row", "dense-sgd", **after(poisoned, (700,))),
    report("not_finite", "rare row", "dense-circles dense-values-wide", **after(poisoned, (500,))),
    report("not_finite", "infinite row", "dense-haiku-sgd", **after(poisoned, (90,), np.inf)),
    fit("data_order", "sorted", "dense dense-sgd convolution", **after(ordered)),
    report("data_order", "sorted", "dense-equinox convolution-nnx residual-haiku", **after(ordered)),
    report("data_order", "sorted by 8", "dense-gelu attention-linen", **after(ordered, 8)),
]  # fmt: skip
