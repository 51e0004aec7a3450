"""A recipe says in a few words what network, data and optimiser a setting has; `build(recipe, seed)` makes it."""

import dataclasses
import functools

import optax

from benchmarks.diagnosis import frameworks, plain, scores, sets
from benchmarks.diagnosis.setting import Setting


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Defaults are sane; a fault or a draw replaces some of them."""

    family: str = "dense"  # dense | residual | convolution | recurrent | attention
    maker: str = "plain"  # plain | numdl | linen | nnx | equinox | haiku
    data: str = "digits"
    depth: int = 2  # hidden layers, blocks
    width: int = 32
    activation: str = "relu"
    init: str = "he"
    gain: float = 1.0  # times the law's standard deviation
    bias: float = 0.0
    bias_deviation: float = 0.0
    last: float = 1.0  # the readout's gain, of its law
    last_law: str = "lecun"
    second: float = 1.0  # gain of what ends a residual branch
    query: float = 1.0  # gain of query and key maps
    norm: str = "none"  # none | layer | batch | post (attention)
    branch: float = 1.0
    position: bool = True
    dropout: float = 0.0
    optimizer: str = "adam"
    rate: float = 3e-3
    batch_size: int = 32
    steps: int = 300

    @property
    def scanned(self):
        """Deep stacks are scanned, shallow ones written out, as people do."""
        return self.depth > 8 and not self.dropout

    def but(self, **fields):
        return dataclasses.replace(self, **fields)


OPTIMIZERS = {
    "sgd": optax.sgd,
    "momentum": functools.partial(optax.sgd, momentum=0.9),
    "nesterov": functools.partial(optax.sgd, momentum=0.9, nesterov=True),
    "adam": optax.adam,
    "adamw": functools.partial(optax.adamw, weight_decay=1e-2),
    "rmsprop": optax.rmsprop,
    "adagrad": optax.adagrad,
    "lion": optax.lion,
}
SANE_RATES = {"sgd": 0.1, "momentum": 0.02, "nesterov": 0.02, "adam": 3e-3, "adamw": 3e-3, "rmsprop": 1e-3,
              "adagrad": 3e-2, "lion": 3e-4}  # fmt: skip


def build(recipe, seed=0):
    """The setting of a recipe; seeds differ in their parameters only."""
    data = sets.load(recipe.data)
    module = plain if recipe.maker == "plain" else frameworks
    apply, params = module.network(recipe, data.train[0], data.outputs, seed)
    evaluate = None
    if recipe.dropout:
        evaluate = functools.partial(plain.APPLY[recipe.family], recipe.but(dropout=0.0))
    return Setting(
        apply,
        params,
        data.train,
        data.held_out,
        scores.LOSSES[data.kind],
        OPTIMIZERS[recipe.optimizer],
        recipe.rate,
        scores.METRICS[data.kind],
        scores.chance(data.kind, data.held_out[1]),
        steps=recipe.steps,
        batch_size=recipe.batch_size,
        evaluate=evaluate,
        stochastic=bool(recipe.dropout),
    )


def sane(recipe):
    """The same architecture with the usual initialisation (small enough for its depth), batch and optimiser."""
    law, second, gain = plain.sane_law(recipe.activation), 1.0, 1.0
    if recipe.family == "residual":
        second = min(1.0, recipe.depth**-0.5 / recipe.branch)
        gain, second = (1.0, second) if recipe.maker == "plain" else (second**0.5, 1.0)
    if recipe.family == "attention" and recipe.maker != "plain":
        law = "lecun"
    return recipe.but(init=law, gain=gain, second=second, bias=0.0, bias_deviation=0.0, last=1.0, last_law="lecun",
                      query=1.0, optimizer="adam", rate=3e-3, batch_size=max(recipe.batch_size, 8))  # fmt: skip


STANDARDS = {"convolution": "layer", "attention": "layer"}


def standard(recipe):
    """A shallow network of the family that learns the data set: what a network that learns nothing is compared with."""
    return Recipe(recipe.family, data=recipe.data, depth=2, width=32, norm=STANDARDS.get(recipe.family, "none"),
                  activation="tanh" if recipe.family == "recurrent" else "relu",
                  init="lecun" if recipe.family == "recurrent" else "he", rate=5e-3)  # fmt: skip
