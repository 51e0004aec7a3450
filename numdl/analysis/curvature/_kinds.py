"""MEASURED: what is differentiated in a curvature matrix, and how: products for whole data and for chunks.

A kind has `product(whole, at, batch, v, weight)`, the matrix at `at` times v, and `outcome(params, batch)`, what the
loss returns: a scalar, or a pair (sum, weight) that stands for sum / weight. In a chunk `weight` is that of the whole
data, and the chunk's own is not used: the products of all chunks are then summed.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from numdl import checks


@dataclasses.dataclass(frozen=True)
class Hessian:
    """Second derivatives of a loss."""

    loss: Callable

    def product(self, whole, at, batch, v, weight):
        """Forward over reverse."""
        return jax.jvp(jax.grad(lambda part: scalar(self.loss(whole(part), batch), weight)), (at,), (v,))[1]

    def outcome(self, params, batch):
        """The loss."""
        return self.loss(params, batch)


@dataclasses.dataclass(frozen=True)
class GaussNewton:
    """J' H_z J."""

    outputs: Callable
    loss_of_outputs: Callable

    def product(self, whole, at, batch, v, weight):
        """Forward through the outputs, the loss's Hessian there, and back."""

        def middle(z, push):
            return jax.jvp(jax.grad(lambda z: scalar(self.loss_of_outputs(z, batch), weight)), (z,), (push,))[1]

        return _sandwich(lambda part: self.outputs(whole(part), batch), middle, at, v)

    def outcome(self, params, batch):
        """The loss."""
        return self.loss_of_outputs(self.outputs(params, batch), batch)


@dataclasses.dataclass(frozen=True)
class Fisher:
    """J' F_z J, a mean over the examples."""

    outputs: Callable
    likelihood: str

    def product(self, whole, at, batch, v, weight):
        """Forward through the outputs, the information there, and back."""

        def middle(z, push):
            examples = max(z.size // z.shape[-1], 1)
            return INFORMATION[self.likelihood](z, push) / examples

        return _sandwich(lambda part: self.outputs(whole(part), batch), middle, at, v)

    def outcome(self, params, batch):
        """The first output: its dtype is that of the products."""
        z = self.outputs(params, batch)
        if not getattr(z, "shape", ()) or not jnp.issubdtype(jnp.result_type(z), jnp.floating) or 0 in np.shape(z):
            raise checks.BadType(f"outputs must return one array of real numbers [..., C]; got {z}")
        if z.ndim < 2:  # N examples of one output, or one example of C: a factor of N between the two
            raise checks.BadValue(
                f"outputs must return an array [examples, ..., C]; got shape {tuple(z.shape)}: reshape it to "
                f"({z.size}, 1) for {z.size} examples of one output, or to (1, {z.size}) for one example"
            )
        return jnp.ravel(z)[0]


@dataclasses.dataclass(frozen=True)
class EmpiricalFisher:
    """The mean of g g' over the examples, each alone; sum of w g g' / sum of w for pairs (w g, w)."""

    loss: Callable

    def product(self, whole, at, batch, v, weight):
        """Forward through the examples' losses, and back."""

        def losses(part):
            def one(example):
                outcome = self.loss(whole(part), jax.tree.map(lambda leaf: leaf[None], example))
                return outcome if isinstance(outcome, tuple) else (outcome, jnp.ones_like(outcome))

            return jax.vmap(one)(batch)

        weights = losses(at)[1]
        shares = jnp.where(weights > 0, 1 / jnp.where(weights > 0, weights, 1), 0)
        total = jnp.sum(weights) if weight is None else weight

        def middle(z, push):
            return push * (shares / total).astype(push.dtype)

        return _sandwich(lambda part: losses(part)[0], middle, at, v)

    def outcome(self, params, batch):
        """The loss of the examples together."""
        return self.loss(params, batch)


def scalar(outcome, weight=None):
    """The loss of what a function returned: a scalar, or sum / weight of a pair, `weight` in place of its own."""
    if not isinstance(outcome, tuple):
        return outcome
    total, own = outcome
    return total / jnp.asarray(own if weight is None else weight).astype(total.dtype)


def _sandwich(function, middle, at, v):
    """J' middle(z, J v)."""
    z, push = jax.jvp(function, (at,), (v,))
    return jax.vjp(function, at)[1](middle(z, push))[0]


def _categorical(z, push):
    p = jax.nn.softmax(z, axis=-1)
    return p * (push - jnp.sum(p * push, axis=-1, keepdims=True))


INFORMATION = {
    "categorical": _categorical,
    "bernoulli": lambda z, push: jax.nn.sigmoid(z) * jax.nn.sigmoid(-z) * push,
    "gaussian": lambda z, push: push,
}
