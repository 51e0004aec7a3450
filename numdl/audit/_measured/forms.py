"""What the audit's programs are made of: the user's functions, known again, and the arrays that they need, as data.

A program is a function of a module, `program(form, *arrays, **static)`. Called through `Case.run`, it is compiled once
for the same functions and shapes: the next audit of the same network compiles nothing, whatever its numbers are.
"""

import collections
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from numdl import trees
from numdl._compiled import FORGOTTEN, Same, jit
from numdl.audit._measured import programs
from numdl.records import record, static

NUMBER_NEEDED = (  # what an optimizer raises that computes with its rate outside of jax
    jax.errors.ConcretizationTypeError,
    jax.errors.TracerArrayConversionError,
    jax.errors.TracerIntegerConversionError,
)
RUNS = 5  # of one program in an audit, about
MOST_KEPT = 8  # networks whose programs are kept
_KEPT = collections.OrderedDict()  # structure of a Form -> its programs
FORGOTTEN.append(_KEPT)


class Told:
    """What `follows` says of the examples: a Case's and its Form's."""

    @property
    def separate(self):
        """Whether the first axis of all inputs and targets holds the examples, any number of them."""
        return self.follows is not None

    @property
    def apart(self):
        """Whether outputs can be looked at example by example, too."""
        return bool(self.follows) and any(self.follows)


@record
class Form(Told):
    """The network, the loss and the evaluation as functions of arrays."""

    rest: trees.Rest  # what does not move of the parameters
    key: Any
    apply: Same = static()
    loss: Same = static()
    evaluate: Same = static()
    stochastic: bool = static()
    follows: tuple | None = static()  # as in `Case`
    shown: Same | None = static(default=None)  # the loss that is recorded; None: the one that is trained

    def whole(self, moving):
        """All parameters, as the user's functions take them."""
        return self.rest.params(moving) if self.rest.kept or "complex" in self.rest.kinds else moving

    def call(self, moving, x, key=None):
        """The network's outputs."""
        if self.stochastic:
            return self.apply(self.whole(moving), x, self.key if key is None else key)
        return self.apply(self.whole(moving), x)

    def value(self, outputs, y):
        """The loss of outputs, a float32 scalar."""
        return jnp.asarray(self.loss(outputs, y), jnp.float32).reshape(())

    def recorded(self, outputs, y):
        """The loss of outputs that is recorded, a float32 scalar."""
        return self.value(outputs, y) if self.shown is None else jnp.asarray(self.shown(outputs, y), jnp.float32)

    def cost(self, moving, x, y, key=None):
        """The loss of a batch, a float32 scalar."""
        return self.value(self.call(moving, x, key), y)

    @property
    def plain(self):
        """The network as a function of two arguments."""
        return Partial(_plain, self)

    def loss_against(self, y):
        """The loss as a function of the outputs alone."""
        return Partial(_against, self, y)


@record
class Method:
    """The optimizer: how one is made for a rate, or a finished one."""

    rate: Any  # data; None: the optimizer must be made for a number
    finished: Any  # pytree of functions and their numbers; None: it is made
    make: Same | None = static()
    number: float | None = static()  # the rate, where it cannot be data

    @property
    def own(self):
        """The transformation."""
        return self.finished if self.make is None else self.make(self.rate if self.number is None else self.number)

    def with_rate(self, rate):
        """The same for another rate, where it is made for one."""
        if self.make is None:
            return self
        return dataclasses.replace(self, **{"rate" if self.number is None else "number": rate})


def updated(transformation, gradient, state, moving, value, cost):
    """(updates, state): line searches and plateaus ask for more than the gradient, the others ignore it."""
    import optax

    more = {"value": value, "grad": gradient, "value_fn": cost}
    return optax.with_extra_args_support(transformation).update(gradient, state, moving, **more)


def falling(gradient, moving, t):
    """(value, cost) of a loss with this gradient that has fallen steadily for t steps: what no plateau stops."""
    value = 0.99 ** jnp.asarray(t, jnp.float32)
    lost = lambda g, a, p: jnp.sum(g.astype(jnp.float32) * (a - p).astype(jnp.float32))  # noqa: E731
    return value, lambda at: value + sum(jax.tree.leaves(jax.tree.map(lost, gradient, at, moving)))


def one_update(transformation, moving):
    """The state of a transformation after an update."""
    return updated(transformation, moving, transformation.init(moving), moving, *falling(moving, moving, 0))[1]


def program(form, function, static_names, ordered):
    """`function` compiled for this form's functions; with `ordered`, its convolutions as a CPU is quick at them."""
    structure = jax.tree.structure(form)
    try:
        kept = _KEPT.setdefault(structure, {})
        _KEPT.move_to_end(structure)
    except TypeError:  # params of a kind that has no hash
        kept = {}
    if len(_KEPT) > MOST_KEPT:
        _KEPT.popitem(last=False)
    key = function, static_names, ordered
    if key not in kept:
        run = programs.channels_last(function) if ordered else function
        kept[key] = jit(run, static_argnames=static_names, runs=RUNS)
    return kept[key]


def _plain(form, moving, x):
    return form.call(moving, x)


def _against(form, y, outputs):
    return form.value(outputs, y)
