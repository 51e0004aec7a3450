"""A loss whose examples count by the weight of their class, or not at all."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from numdl import checks


@dataclasses.dataclass(frozen=True)
class Weighted:
    """What `losses.weighted` gives; called, and with the methods of, a `Loss`; frozen and hashable."""

    loss: Any  # the Loss
    class_weights: tuple | None
    ignored: int | None

    def __call__(self, outputs, targets):
        """sum of weight * value / sum of weight: a scalar, nan where no example counts."""
        total, weight = self.sum_and_weight(outputs, targets)
        return total / weight

    def sum_and_weight(self, outputs, targets):
        """(sum of weight * value, sum of weight): what means over parts of a batch are put together from."""
        return jnp.sum(self.value(outputs, targets)), jnp.sum(self.weight(outputs, targets))

    def weight(self, outputs, targets):
        """Of each example, [...]: of its class, or the mean of the classes under its probabilities; 0 if ignored."""
        outputs, targets, counts = self._admit(outputs, targets)
        return self._weight(outputs, targets, counts)

    def value(self, outputs, targets):
        """weight * value of each example, [...]."""
        return self._scaled("value", outputs, targets)

    def gradient(self, outputs, targets):
        """Of each example's `value` with respect to its outputs, [..., k]."""
        return self._scaled("gradient", outputs, targets)

    def hessian(self, outputs, targets):
        """Of each example's `value` with respect to its outputs, [..., k, k]."""
        return self._scaled("hessian", outputs, targets)

    def hessian_product(self, outputs, targets, v):
        """The Hessian of each example times its row of v, [..., k]."""
        return self._scaled("hessian_product", outputs, targets, v)

    def __repr__(self):
        return f"losses.weighted({self.loss!r}, class_weights={self.class_weights}, ignored={self.ignored})"

    def _scaled(self, part, outputs, targets, *rest):
        outputs, targets, counts = self._admit(outputs, targets)
        found = getattr(self.loss, part)(outputs, targets, *rest)
        weight = self._weight(outputs, targets, counts)
        return weight.reshape(weight.shape + (1,) * (found.ndim - weight.ndim)) * found

    def _admit(self, outputs, targets):
        """Outputs and targets with 0 at what is ignored (it may be nan there), and whether each example counts."""
        outputs = checks.floating("outputs", outputs, least_ndim=2)
        k = outputs.shape[-1]
        if self.class_weights is not None and len(self.class_weights) != k:
            raise checks.BadValue(f"outputs must have {len(self.class_weights)} classes, as class_weights; got {k}")
        targets = checks.array("targets", targets)
        if self.ignored is None or targets.ndim == outputs.ndim:
            return outputs, targets, None
        xp = np if isinstance(targets, np.ndarray) else jnp
        counts = targets != self.ignored
        return jnp.where(counts[..., None], outputs, 0), xp.where(counts, targets, xp.zeros_like(targets)), counts

    def _weight(self, outputs, targets, counts):
        weights = jnp.ones(outputs.shape[-1]) if self.class_weights is None else jnp.asarray(self.class_weights)
        weights = weights.astype(outputs.dtype)
        shares = targets.ndim == outputs.ndim
        weight = jnp.asarray(targets, weights.dtype) @ weights if shares else weights[targets]
        return weight if counts is None else jnp.where(counts, weight, 0)
