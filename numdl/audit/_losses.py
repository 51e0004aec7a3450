"""Losses in the place of a user's own, each as (words, loss) of a Case and its Evidence; None where it is no cure."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numdl.audit._measured import programs
from numdl.audit._measured.labels import COUPLED
from numdl.audit._skills import UNPAIRED


def _minus(case, evidence):
    return "minus", lambda outputs, targets: -case.loss(outputs, targets)


def _mean(case, evidence):
    return "the mean over the examples, not the sum", lambda *pair: case.loss(*pair) / case.examples


def _apart(case, evidence):
    """Examples that do not act on each other."""
    if np.isfinite(evidence.loss.coupling_reshaped):
        words = "outputs and targets in the same shape: loss(outputs.reshape(targets.shape), targets)"
        return words, lambda outputs, targets: case.loss(outputs.reshape(targets.shape), targets)
    if not (evidence.loss.pairing < UNPAIRED and case.separate):
        return None
    words = "of each example alone: jnp.mean(jax.vmap(lambda o, t: loss(o[None], t[None]))(outputs, targets))"
    return words, lambda outputs, targets: jnp.mean(_each(case.loss, outputs, targets))


def _weighed(case, evidence):
    """All classes weigh the same; only where each example has one, and a loss of its own."""
    labels = case.data[1] if case.data is not None else case.y
    whole = isinstance(labels, np.ndarray) and labels.ndim == 1 and labels.dtype.kind in "iu"
    if evidence.loss.kind != "classes" or not whole or labels.min() < 0 or not evidence.loss.coupling < COUPLED:
        return None
    counts = np.bincount(labels)
    met = np.maximum(counts, 1) * np.count_nonzero(counts)
    weights = np.where(counts, len(labels) / met, 0).astype(np.float32)
    words = "that of each example weighed by 1 / (classes * frequency of its class)"
    return words, lambda outputs, y: jnp.mean(jnp.asarray(weights)[y] * _each(case.loss, outputs, y))


def _each(loss, outputs, targets):
    """[N]"""
    single = lambda tree: jax.tree.map(lambda leaf: leaf[None], tree)  # noqa: E731
    return jax.vmap(lambda o, t: loss(single(o), single(t)))(outputs, targets)


def _heard(case, evidence):
    """Without the steps that end its derivative by the outputs."""
    out = jax.eval_shape(case.plain, case.moving, case.x)
    program, count = jax.make_jaxpr(case.loss)(out, case.y), len(jax.tree.leaves(out))
    lines = programs.stops(program, [True] * count + [False] * (len(program.in_avals) - count))
    return (f"without {', '.join(lines)}", programs.let_through(case.loss, lines)) if passable(lines) else None


def passable(lines: tuple) -> bool:
    """Whether what ends a gradient can be left out, its input in the place of its output.

    Parameters
    ----------
    lines : tuple of str        of `programs.stops`
    """
    return bool(lines) and all(line.split(" ")[0] in programs.THROUGH for line in lines)


BUILT: dict[str, Callable[[Any, Any], tuple[str, Callable] | None]] = {
    "wrong_sign": _minus,
    "loss_couples_examples": _apart,
    "loss_ignores_outputs": _heard,
    "labels_imbalanced": _weighed,
    "loss_scale": _mean,
}
