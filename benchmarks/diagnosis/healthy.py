"""The standard list: models that train, many of them unusual to look at. A verdict against one is a false alarm.

Half are for fitting, half for reporting; truth.json says that each does train.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import optax

from benchmarks.diagnosis import plain, recipes
from benchmarks.diagnosis.bases import BASES
from benchmarks.diagnosis.recipes import Recipe
from benchmarks.diagnosis.setting import FITTING, REPORTING, Case


def always(setting):
    return setting


def with_optimizer(make):
    return lambda setting: setting.changed(make_optimizer=make)


def warm_up(rate):
    return optax.adamw(optax.warmup_cosine_decay_schedule(0.0, rate, 40, 300), weight_decay=0.01)


def clip_before_adam(norm, rate):
    return optax.chain(optax.clip_by_global_norm(norm), optax.adam(rate))


def raw_bytes(setting):
    """Inputs up to 255 and a norm in front of everything."""
    scaled = lambda pair: (255 * pair[0], pair[1])  # noqa: E731
    inner = setting.apply
    normed = lambda params, x: inner(params, plain.standardised(x, -1))  # noqa: E731
    return setting.changed(apply=normed, data=scaled(setting.data), held_out=scaled(setting.held_out))


def frozen_features(setting):
    """Only the readout learns, on 400 random features."""

    def labels(params):
        kinds = {name: "go" if name == "out" else "stop" for name in params}
        return {name: jax.tree.map(lambda _, kind=kinds[name]: kind, part) for name, part in params.items()}

    make = lambda rate: optax.multi_transform({"go": optax.adam(rate), "stop": optax.set_to_zero()}, labels)  # noqa: E731
    return setting.changed(make_optimizer=make)


def negative_loss(setting):
    """A loss that is far below zero at its best."""
    inner = setting.loss
    return setting.changed(loss=lambda outputs, targets: inner(outputs, targets) - 100.0)


def mean_square_of_labels(setting):
    """One-hot squares for classes: flat at the start, and it trains."""
    return setting.changed(loss=lambda out, y: jnp.mean((out - jax.nn.one_hot(y, out.shape[-1])) ** 2) * out.shape[-1])


ADAM = {"rate": 3e-3, "optimizer": "adam"}
ATTENTION = {"data": "rows", "depth": 2, "width": 24, "norm": "layer", "rate": 4e-3}
CASES = [
    # models as their frameworks' tutorials build them
    ("linen-mlp", FITTING, Recipe(maker="linen", width=64), always),
    ("linen-cnn", FITTING, BASES["convolution"].but(maker="linen", norm="none", width=16), always),
    ("resnet", FITTING, Recipe("residual", depth=8, width=32, branch=0.35, norm="layer", rate=2e-3), always),
    ("transformer-warm-up", FITTING, Recipe("attention", **ATTENTION).but(steps=300), with_optimizer(warm_up)),
    ("nnx-mlp", REPORTING, Recipe(maker="nnx", width=48, depth=3, activation="gelu"), always),
    ("nnx-cnn", REPORTING, BASES["convolution-nnx"], always),
    ("numdl-resnet", REPORTING, BASES["residual-numdl"], always),
    ("haiku-resnet", REPORTING, BASES["residual-haiku"], always),
    ("linen-transformer", REPORTING, BASES["attention-linen"].but(steps=300), with_optimizer(warm_up)),
    ("equinox-mlp", REPORTING, BASES["dense-equinox"], always),
    ("gru", REPORTING, BASES["recurrent-gru"], always),
    ("elman", FITTING, BASES["recurrent-tanh"], always),
    # controls that look sick
    ("zero-last-layer", FITTING, Recipe(last_law="zero", depth=3), always),
    ("zero-start-branches", FITTING, Recipe("residual", depth=10, second=0.0, rate=2e-3), always),
    ("clip-before-adam", FITTING, Recipe(), with_optimizer(functools.partial(clip_before_adam, 1e-3))),
    ("tiny-weights-with-norm", FITTING, Recipe(gain=0.01, norm="layer", depth=4), always),
    ("rate-one-with-batch-norm", FITTING, Recipe(norm="batch", optimizer="sgd", rate=1.0), always),
    ("raw-bytes-before-norm", FITTING, Recipe(depth=2), raw_bytes),
    ("random-features", FITTING, Recipe(width=400, depth=1, rate=1e-2), frozen_features),
    ("heavy-adamw-decay", FITTING, Recipe(), with_optimizer(functools.partial(optax.adamw, weight_decay=1.0))),
    ("one-hot-attention", FITTING, Recipe("attention", **ATTENTION).but(query=4.0), always),
    ("dropout-half", FITTING, Recipe(dropout=0.5, width=96, steps=500), always),
    ("negative-loss", FITTING, Recipe(depth=3), negative_loss),
    ("zero-last-values", REPORTING, BASES["dense-values-wide"].but(last_law="zero"), always),
    ("zero-start-attention", REPORTING, Recipe("attention", **{**ATTENTION, "data": "columns"}).but(second=0.0),
    always),
    ("clip-before-adam-small", REPORTING, BASES["dense-circles"], with_optimizer(functools.partial(clip_before_adam,
    1e-4))),
    ("large-weights-with-norm", REPORTING, Recipe(data="wine", gain=30.0, norm="layer", depth=3), always),
    ("rate-two-with-batch-norm", REPORTING, Recipe(norm="batch", optimizer="sgd", rate=2.0, depth=3,
    activation="tanh"), always),
    ("raw-bytes-before-norm-gelu", REPORTING, Recipe(activation="gelu", width=64), raw_bytes),
    ("random-features-spirals", REPORTING, Recipe(data="circles", width=300, depth=1, rate=1e-2), frozen_features),
    ("adamw-decay-half", REPORTING, BASES["dense-gelu"], with_optimizer(functools.partial(optax.adamw,
    weight_decay=0.5))),
    ("one-hot-attention-pairs", REPORTING, BASES["attention-pairs"].but(query=3.0), always),
    ("dropout-third", REPORTING, Recipe("attention", **ATTENTION).but(dropout=0.3, data="columns", steps=300), always),
    ("squares-for-classes", REPORTING, Recipe(data="wine", width=48), mean_square_of_labels),
    ("deep-residual", REPORTING, Recipe("residual", depth=40, branch=40**-0.5, optimizer="sgd", rate=0.05), always),
    ("noisy-values", REPORTING, Recipe(data="diabetes", width=32, rate=2e-3), always),
]  # fmt: skip


def cases():
    return [Case(f"healthy-{name}", "healthy", recipe.family, recipe.maker, split,
                 functools.partial(_make, recipe, change), standard=f"standard-{recipe.family}-{recipe.data}")
            for name, split, recipe, change in CASES]  # fmt: skip


def standards():
    """Name -> recipe of the networks that these are compared with: that they train is measured, too."""
    return {f"standard-{recipe.family}-{recipe.data}": recipes.standard(recipe) for _, _, recipe, _ in CASES}


def _make(recipe, change, seed):
    return dataclasses.replace(change(recipes.build(recipe, seed)), fixed={})
