"""Configurations drawn at random: architecture, activation, depth, initialisation, norm, optimiser, rate, data.

Depths go from 2 to 100, rates over six decades. There are two pools: what is drawn for reporting has other families
(recurrent), makers, activations and data sets, and also more of the same. About half of the settings stay close to what
is usual in each respect, so that all degrees of health occur.
"""

import functools

from benchmarks.diagnosis import recipes
from benchmarks.diagnosis.drawing import generator
from benchmarks.diagnosis.plain import sane_law
from benchmarks.diagnosis.recipes import SANE_RATES, Recipe
from benchmarks.diagnosis.setting import FITTING, REPORTING, Case

COUNT = 300
RATES = (1e-3, 4e-3, 1.6e-2)  # of Adam, for the twin of the same architecture

MAKERS = {
    FITTING: {
        "dense": ("plain", "plain", "numdl", "linen"),
        "residual": ("plain", "plain", "haiku"),
        "convolution": ("plain", "linen"),
        "attention": ("plain", "numdl"),
    },
    REPORTING: {
        "dense": ("plain", "equinox", "haiku", "nnx"),
        "residual": ("plain", "numdl"),
        "convolution": ("plain", "nnx", "numdl"),
        "recurrent": ("plain", "plain", "numdl", "linen"),
        "attention": ("plain", "linen"),
    },
}
WEIGHTS = {"dense": 5, "residual": 3, "convolution": 2, "recurrent": 3, "attention": 2}
ACTIVATIONS = {
    FITTING: ("relu", "relu", "tanh", "sigmoid", "gelu"),
    REPORTING: ("relu", "tanh", "elu", "silu", "leaky_relu", "softplus", "erf", "selu", "softsign"),
}
FLAT = {FITTING: ("digits", "cancer", "moons", "sine"),
        REPORTING: ("wine", "circles", "spirals", "friedman", "diabetes", "digits")}  # fmt: skip
DATA = {
    FITTING: {"dense": FLAT[FITTING], "residual": FLAT[FITTING], "convolution": ("pictures",), "attention": ("rows",)},
    REPORTING: {"dense": FLAT[REPORTING], "residual": FLAT[REPORTING], "convolution": ("stripes", "pictures"),
                "recurrent": ("columns", "sums", "recall"), "attention": ("columns", "pairs")},
}  # fmt: skip
OPTIMIZERS = {FITTING: ("sgd", "sgd", "momentum", "adam", "adam", "rmsprop"),
              REPORTING: ("sgd", "momentum", "nesterov", "adam", "adamw", "adagrad", "lion")}  # fmt: skip
LAWS = ("he", "lecun", "glorot", "third", "orthogonal")
DEEPEST = {"dense": 100, "residual": 100, "convolution": 8, "recurrent": 1, "attention": 4}
WIDTHS = {"dense": (5, 16, 32, 64), "residual": (16, 32, 48), "convolution": (6, 12), "recurrent": (12, 24),
          "attention": (12, 20)}  # fmt: skip


def cases():
    return [_case(number) for number in range(COUNT)]


def _case(number):
    split = FITTING if number % 2 == 0 else REPORTING
    recipe = draw(number, split)
    standard = f"standard-{recipe.family}-{recipe.data}"
    return Case(f"random-{number:03d}", "random", recipe.family, recipe.maker, split,
                functools.partial(recipes.build, recipe), strength=repr_of(recipe), standard=standard,
                twins=functools.partial(_twins, recipe))  # fmt: skip


def _twins(recipe, seed):
    return recipes.build(recipes.sane(recipe), seed), RATES


def standards():
    """Name -> recipe of the shallow networks that the random configurations' data sets are learnt by."""
    drawn = [draw(number, FITTING if number % 2 == 0 else REPORTING) for number in range(COUNT)]
    return {f"standard-{r.family}-{r.data}": recipes.standard(r) for r in drawn}


@functools.cache
def draw(number, split):
    """The recipe of this number."""
    random = generator("configuration", number)
    pick = lambda choices: choices[random.integers(len(choices))]  # noqa: E731
    family = pick([f for f in MAKERS[split] for _ in range(WEIGHTS[f])])
    maker = pick(MAKERS[split][family])
    activation = pick(ACTIVATIONS[split])
    activation = pick(("tanh", activation)) if family == "recurrent" else activation
    usual = random.random(4) < (0.6, 0.7, 0.5, 0.75)  # initialisation, bias, rate, norm and batch
    optimizer = pick(OPTIMIZERS[split])
    decades = random.uniform(-0.6, 0.6) if usual[2] else random.uniform(-3, 3)
    size = {"data": pick(DATA[split][family]), "depth": _depth(random, family), "width": int(pick(WIDTHS[family]))}
    law = {"init": sane_law(activation), "gain": 1.0}
    if family == "attention" and maker != "plain":
        law["init"] = "lecun"
    if not usual[0]:
        law = {"init": pick(LAWS), "gain": float(2.0 ** random.uniform(-3, 3))}
    if random.random() < 0.06:
        law = pick(({"init": "zero"}, {"init": "constant", "gain": 0.1}, {"init": "uniform", "gain": 1.0},
                    {"init": "normal", "gain": 0.01}, {"init": "normal", "gain": 1.0}))  # fmt: skip
    bias = (
        {} if usual[1] else {"bias_deviation": float(random.uniform(0.05, 1.0)), "bias": float(pick((0, 0, -0.5, 0.5)))}
    )
    branch = pick((1.0, size["depth"] ** -0.5)) if family == "residual" else 1.0
    return Recipe(family, maker, activation=activation, optimizer=optimizer, branch=float(branch),
                  rate=float(SANE_RATES[optimizer] * 10.0**decades), steps=250 if family in ("dense",
                  "residual") else 200,
                  norm=_norm(random, family, maker, usual[3]),
                  batch_size=32 if usual[3] else int(pick((2, 8, 16, 64))),
                  **size, **law, **bias)  # fmt: skip


def _depth(random, family):
    deepest = DEEPEST[family]
    few = random.integers(1 if family == "attention" else 2, 6)
    deep = round(2 * (deepest / 2) ** random.random())
    return int(min(deepest, few if random.random() < 0.5 else deep))


def _norm(random, family, maker, usual):
    """Attention is normed as usual, the others now and then; numdl's own networks here never are."""
    if maker == "numdl" or family == "recurrent":
        return "none"
    if family == "attention":
        return "layer" if usual or maker != "plain" else str(random.choice(["none", "post"]))
    kinds = ["none", "none", "layer"] if maker in ("nnx",) else ["none", "none", "layer", "batch"]
    return str(random.choice(kinds))


def repr_of(recipe):
    """The recipe's fields that are not its defaults, in one line."""
    usual = Recipe()
    pairs = ((name, getattr(recipe, name)) for name in Recipe.__dataclass_fields__)
    return ", ".join(f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
                     for name, value in pairs if value != getattr(usual, name))  # fmt: skip
