"""The record of one training setting, and of a case: a setting that is made on demand, once for each seed."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

FITTING, REPORTING = "fitting", "reporting"


@dataclasses.dataclass(frozen=True)
class Setting:
    """Everything that a training run needs; `fixed` holds the fields that the known repair changes."""

    apply: Callable  # (params, x [N, ...]) -> outputs [N, ...]; with stochastic=True (params, x, key)
    params: Any
    data: tuple  # (x, targets) to train on
    held_out: tuple  # (x, targets) to score on
    loss: Callable  # (outputs, targets) -> scalar
    make_optimizer: Callable  # rate -> optax transformation
    learning_rate: float
    metric: Callable  # (outputs, targets) -> scalar, larger is better
    chance: float  # the best constant answer's score
    steps: int = 300
    batch_size: int = 32
    evaluate: Callable | None = None  # (params, x): the evaluation-mode function, if another
    stochastic: bool = False
    shuffle: bool = True
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    name: str = ""
    family: str = ""
    cause: str | None = None
    split: str = ""

    @property
    def batch(self):
        """The first batch that the training loop would take."""
        return tuple(jnp.asarray(leaf[: self.batch_size]) for leaf in self.data)

    @property
    def optimizer(self):
        return self.make_optimizer(self.learning_rate)

    @property
    def scored(self):
        """(params, x) -> outputs, as the finished network is used."""
        return self.evaluate or self.apply

    def changed(self, **fields):
        """Another setting; a new `apply` is also what is scored, unless `evaluate` is given."""
        if "apply" in fields and "stochastic" not in fields:
            fields.setdefault("evaluate", None)
        return dataclasses.replace(self, **fields)

    def twin(self):
        """The setting with its known repair applied."""
        return self.changed(**self.fixed, fixed={}, cause=None)


FIELDS = ("apply", "params", "data", "held_out", "loss", "make_optimizer", "learning_rate", "metric", "steps")
FIELDS += ("batch_size", "evaluate", "stochastic", "shuffle", "chance")


def differences(sick, healthy):
    """The fields of the healthy setting that the sick one does not share."""
    pairs = ((name, getattr(sick, name), getattr(healthy, name)) for name in FIELDS)
    return {name: theirs for name, ours, theirs in pairs if ours is not theirs and not _same(ours, theirs)}


def _same(a, b):
    return isinstance(a, int | float | bool) and a == b


@dataclasses.dataclass(frozen=True)
class Case:
    """A setting by name: what is known of it without making it."""

    name: str
    group: str  # random | planted | reports | autotrainer | healthy
    family: str  # dense | residual | convolution | recurrent | attention
    maker: str  # plain | numdl | linen | nnx | equinox | haiku
    split: str  # fitting | reporting
    make: Callable  # seed -> Setting
    cause: str | None = None  # a name of the audit's findings
    strength: str = ""
    base: str = ""  # the healthy setting it was made from, trained once for all that share it
    source: str = ""
    twins: Callable | None = None  # seed -> (Setting, rates): what a random configuration is compared with
    standard: str = ""  # the reference where no twin of the same architecture learns

    def build(self, seed=0):
        made = self.make(seed)
        return dataclasses.replace(made, name=self.name, family=self.family, cause=self.cause, split=self.split)


def stacked(settings):
    """The parameters of settings that differ in their seed, along a new leading axis."""
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(leaf) for leaf in leaves]), *[s.params for s in settings])
