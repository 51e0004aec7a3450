"""AutoTrainer's space: 5 to 30 dense layers of 5 units, its activations and initialisers, on circles and blobs.

Its own truth calls a model broken when its accuracy stays below a fixed number; here it is compared with what the same
architecture, and a shallow one, reach. Source: Zhang et al. 2021 (AutoTrainer).
"""

import functools

from benchmarks.diagnosis import recipes
from benchmarks.diagnosis.drawing import generator
from benchmarks.diagnosis.random_configurations import RATES, repr_of
from benchmarks.diagnosis.recipes import Recipe
from benchmarks.diagnosis.setting import FITTING, REPORTING, Case

COUNT = 40
ACTIVATIONS = ("relu", "sigmoid", "tanh", "selu", "elu", "softsign")
LAWS = (("glorot", 1.0), ("he", 1.0), ("lecun", 1.0), ("orthogonal", 1.0), ("normal", 0.05), ("normal", 1.0),
        ("zero", 0.0), ("constant", 1.0), ("uniform", 1.0))  # fmt: skip
OPTIMIZERS = (
    ("sgd", 0.01),
    ("sgd", 0.1),
    ("adam", 1e-3),
    ("adam", 1e-2),
    ("rmsprop", 1e-3),
    ("sgd", 3.0),
    ("adam", 1e-5),
)


def draw(number):
    """The recipe of this number."""
    random = generator("autotrainer", number)
    pick = lambda choices: choices[random.integers(len(choices))]  # noqa: E731
    law, gain = pick(LAWS)
    optimizer, rate = pick(OPTIMIZERS)
    return Recipe("dense", "plain", data=("circles", "blobs")[number % 2], depth=int(random.integers(5, 31)), width=5,
                  activation=pick(ACTIVATIONS), init=law, gain=gain, optimizer=optimizer, rate=rate,
                         steps=400)  # fmt: skip


def cases():
    return [_case(number) for number in range(COUNT)]


def _case(number):
    recipe, split = draw(number), FITTING if number % 4 < 2 else REPORTING
    twins = lambda seed: (recipes.build(recipes.sane(recipe), seed), RATES)  # noqa: E731
    return Case(f"autotrainer-{number:02d}", "autotrainer", "dense", "plain", split,
                functools.partial(recipes.build, recipe), strength=repr_of(recipe), twins=twins,
                standard=f"standard-dense-{recipe.data}")  # fmt: skip


def standards():
    """Name -> recipe of the shallow network for each data set."""
    return {f"standard-dense-{r.data}": recipes.standard(r) for r in map(draw, range(COUNT))}
