"""Public reports told again: networks that somebody could not train, each with the repair that the thread found.

Sources: "SO n" is a question of Stack Overflow, "owner/repo#n" an issue or pull request; the others name a published
tool's class of faults. The controls that go with them are in `healthy`. The network, data and numbers here are our own.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.diagnosis import faults_data, faults_loss, faults_network, faults_optimizer, recipes, scores
from benchmarks.diagnosis.recipes import Recipe
from benchmarks.diagnosis.setting import FITTING, REPORTING, Case, differences


def same(setting):
    return setting


def partial(function, *arguments):
    """The change of a setting with its other arguments given."""
    return lambda setting: function(setting, *arguments)


def optimizer(make):
    return lambda setting: setting.changed(make_optimizer=make)


def one_unit(head, loss, threshold):
    """Two classes by one output, through a head."""
    return partial(faults_loss.one_output, head, loss, threshold)


def clip_then_adam(rate):
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))


def penalty(decay):
    return lambda rate: optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate))


def clip_then_sgd(norm):
    return lambda rate: optax.chain(optax.clip_by_global_norm(norm), optax.sgd(rate))


def decaying(factor):
    return lambda rate: optax.sgd(optax.exponential_decay(rate, 1, factor))


def causal(setting, strict):
    """Attention that sees the places before, and its own unless strict."""
    index = np.arange(setting.data[0].shape[1])
    allowed = index[None, :] < index[:, None] + (0 if strict else 1)
    added = jnp.where(allowed, 0.0, -jnp.inf)
    return setting.changed(apply=functools.partial(setting.apply.func, setting.apply.args[0], mask=added))


def identity_recurrence(setting):
    return setting.changed(params={**setting.params, "w": np.eye(len(setting.params["w"]), dtype=np.float32)},
                           make_optimizer=clip_then_adam)  # fmt: skip


SIGMOID, SOFTMAX = jax.nn.sigmoid, functools.partial(jax.nn.softmax, axis=-1)
PROBABLE = scores.binary_of_probabilities
SGD = {"optimizer": "sgd", "rate": 0.1}
WIDE = Recipe(width=64, depth=2)
CANCER = Recipe(data="cancer", width=20, depth=2, init="glorot")
RESIDUAL = Recipe("residual", width=40, depth=36, optimizer="sgd", rate=0.02, steps=250)
RECALL = Recipe("recurrent", data="recall", activation="relu", width=28, init="orthogonal", depth=1, steps=400)
ATTENTION = Recipe("attention", data="rows", width=28, depth=2, norm="layer", rate=3e-3, steps=250)
PAIRS = Recipe("attention", data="pairs", width=20, depth=1, norm="layer", rate=5e-3, steps=250)
WINE = Recipe(data="wine", width=40, depth=2, rate=5e-3)

# name, cause, source, sick recipe, change, healthy recipe (None: the sick one), change
TOLD = [
    ("zeros-everywhere", "symmetry", "TheDeepChecker: constant start; NeuraLint: zeros_init",
     WIDE.but(init="zero", last=0.0, **SGD), same, WIDE.but(**SGD), same),
    ("hundredth-deep", "signal_vanishes", "BVLC/caffe#1396",
     Recipe(width=48, depth=9, init="normal", gain=0.01, **SGD), same, Recipe(width=48, depth=9, **SGD), same),
    ("unit-normal", "saturated", "SO 48385830",
     Recipe(width=96, depth=4, activation="tanh", init="normal", gain=1.0, **SGD), same,
     Recipe(width=96, depth=4, activation="tanh", init="lecun", **SGD), same),
    ("relu-at-the-output", "head_against_loss", "SO 44066044",
     CANCER.but(optimizer="sgd", rate=0.05), one_unit(lambda z: jax.nn.relu(z - 0.8), PROBABLE, 0.5),
     CANCER.but(optimizer="sgd", rate=0.05), one_unit(lambda z: z, scores.binary, 0.0)),
    ("sigmoid-in-every-layer", "gradient_vanishes", "SO 39217567; AutoTrainer: gradient vanish",
     Recipe(width=32, depth=7, activation="sigmoid", init="glorot", optimizer="sgd", rate=0.4), same,
     Recipe(width=32, depth=7, **SGD), same),
    ("branches-add-up", "residual_scale", "dhkim0225/1day_1paper#106", RESIDUAL, same, RESIDUAL.but(branch=1 / 6),
    same),
    ("recurrence-explodes", "recurrent_explodes", "AutoTrainer: gradient explode",
     RECALL.but(gain=2.5, optimizer="sgd", rate=0.05), same, RECALL, identity_recurrence),
    ("one-example-a-batch", "norm_degenerate", "microsoft/CNTK#905; d2l-ai/d2l-en#1722",
     WIDE.but(norm="batch", batch_size=1, **SGD), same, WIDE.but(norm="batch", **SGD), same),
    ("softmax-of-one-unit", "outputs_constant", "SO 31880720; SO 45337371",
     CANCER.but(optimizer="rmsprop", rate=1e-3), one_unit(SOFTMAX, PROBABLE, 0.5),
     CANCER.but(optimizer="rmsprop", rate=1e-3), one_unit(SIGMOID, PROBABLE, 0.5)),
    ("softmax-twice", "head_against_loss", "nfmcclure/tensorflow_cookbook#86; TheDeepChecker: redundant softmax",
     WIDE.but(**SGD), partial(faults_loss.head, SOFTMAX), WIDE.but(**SGD), same),
    ("sigmoid-for-wide-targets", "head_against_loss", "SO 48221692",
     Recipe(data="friedman", width=40, rate=5e-3),
     lambda s: faults_loss.head(partial(faults_data.targets, faults_data.unscaled(6.0, 5.0))(s), SIGMOID),
     Recipe(data="friedman", width=40, rate=5e-3), same),
    ("broadcast-in-the-loss", "loss_couples_examples", "pytorch/pytorch#4938",
     Recipe(data="diabetes", width=24, rate=1e-2), faults_loss.flat_targets, Recipe(data="diabetes", width=24,
     rate=1e-2), same),
    ("the-likelihood-itself", "wrong_sign", "TheDeepChecker: flipped sign",
     WIDE.but(rate=1e-3), partial(faults_loss.loss, lambda inner, out, y: -inner(out, y)), WIDE, same),
    ("norm-at-zero", "not_finite", "jax-ml/jax#3058; jax-ml/jax#21723",
     Recipe(data="sine", last_law="zero", rate=1e-2), faults_loss.half_at_the_origin,
     Recipe(data="sine", last_law="zero", rate=1e-2),
     lambda s: faults_loss.half_at_the_origin(s).changed(loss=scores.squared)),
    ("no-activation", "no_nonlinearity", "SO 55328966; UMLAUT: missing activation",
     Recipe(data="spirals", activation="identity", init="lecun", depth=3, rate=1e-2), same,
     Recipe(data="spirals", depth=3, rate=1e-2), same),
    ("targets-shuffled-apart", "labels_unrelated", "SO 39217567",
     WIDE, partial(lambda s, f: faults_data.targets(s, f, both=False), faults_data.shuffled), WIDE, same),
    ("labels-from-one", "labels_out_of_range", "google-deepmind/optax#1185",
     WINE, partial(faults_data.out_of_range, lambda y: y + 1), WINE, partial(faults_data.out_of_range, lambda y: y)),
    ("bytes", "inputs_unscaled", "SO 55328966",
     WIDE.but(depth=3, **SGD), partial(faults_data.inputs, lambda x: 255 * x), WIDE.but(depth=3, **SGD), same),
    ("raw-target", "targets_unscaled", "SO 52800582; SO 58609115",
     Recipe(data="diabetes", activation="tanh", init="lecun", rate=1e-3, steps=400),
     partial(faults_data.targets, faults_data.unscaled(77.0, 152.0)),
     Recipe(data="diabetes", activation="tanh", init="lecun", rate=3e-3), same),
    ("rate-three", "rate_too_high", "SO 48385830; TheDeepChecker: high rate",
     WIDE.but(depth=3, optimizer="sgd", rate=3.0), same, WIDE.but(depth=3, **SGD), same),
    ("rate-one-millionth", "rate_too_low", "TheDeepChecker: low rate; AutoTrainer: slow convergence",
     WIDE.but(optimizer="adam", rate=1e-6), same, WIDE, same),
    ("decay-takes-all", "decay_too_strong", "tinghuiz/SfMLearner#34; BVLC/caffe#1396",
     WIDE.but(**SGD), optimizer(penalty(0.5)), WIDE.but(**SGD), optimizer(penalty(1e-4))),
    ("every-batch-clipped", "clipped_to_nothing", "wandb/senpai#978",
     WIDE.but(optimizer="sgd", rate=0.05), optimizer(clip_then_sgd(1e-3)), WIDE.but(**SGD),
     optimizer(clip_then_sgd(1.0))),
    ("decay-for-each-step", "schedule", "potterhsu/easy-faster-rcnn.pytorch#26",
     WIDE.but(optimizer="sgd", rate=0.05), optimizer(decaying(0.75)), WIDE.but(**SGD), optimizer(decaying(0.75
     ** (1 / 40)))),
    ("every-leaf-frozen", "frozen", "jax-ml/jax#2097; google/jaxopt#270",
     WIDE, partial(faults_optimizer.optimizer, faults_optimizer.nothing_moves), WIDE, same),
    ("half-precision-adam", "float_range", "google-deepmind/optax#1754; chainer/chainer#6299",
     WIDE, partial(faults_optimizer.as_type, jnp.float16), WIDE, same),
    ("row-fully-masked", "mask", "pytorch/pytorch#41508",
     ATTENTION, partial(causal, True), ATTENTION, partial(causal, False)),
    # kinds that no single pass shows
    ("statistics-not-updated", "train_differs_from_evaluate", "evaluation mode without its statistics",
     WIDE.but(norm="batch", gain=4.0, depth=4), faults_network.stale_statistics, WIDE.but(norm="batch", gain=4.0,
     depth=4), same),
    ("narrow-and-deep", "too_narrow", "arXiv:1801.03744 (widths in series)",
     Recipe(data="moons", width=2, depth=24, rate=3e-3), same, Recipe(data="moons", width=24, depth=3, rate=3e-3),
     same),
    ("post-norm-without-warm-up", "needs_warmup", "arXiv:2002.04745", ATTENTION.but(norm="post", depth=6, rate=1e-2),
    same,
     ATTENTION.but(depth=3), same),
    ("no-positions", "cannot_see", "the first token decides", PAIRS.but(position=False), same, PAIRS, same),
    ("sorted-by-class", "data_order", "SO 55328966 (no shuffle)", WIDE, faults_data.ordered, WIDE, same),
    ("nearly-all-one-class", "labels_imbalanced", "DeepFD: imbalance",
     CANCER.but(**SGD), partial(faults_data.imbalanced, 0.02), CANCER.but(**SGD), same),
    ("almost-all-dropped", "dropout_too_high", "UMLAUT: dropout", WIDE.but(dropout=0.96, depth=3), same,
    WIDE.but(depth=3), same),
    ("loss-summed", "loss_scale", "sum instead of mean", WIDE.but(depth=3, **SGD),
     partial(faults_loss.loss, lambda inner, out, y: 64.0 * inner(out, y)), WIDE.but(depth=3, **SGD), same),
    ("epsilon-of-one", "optimizer_epsilon", "Adam for large models", WIDE.but(rate=1e-3),
     partial(faults_optimizer.optimizer, functools.partial(faults_optimizer.adam_epsilon, 1.0)), WIDE, same),
    ("one-pixel-norm", "norm_degenerate", "layer norm over one feature", Recipe(data="sine", rate=1e-2),
     partial(faults_network._inputs, faults_network.singleton_norm), Recipe(data="sine", rate=1e-2), same),
]  # fmt: skip


def cases():
    return [_case(place, *told) for place, told in enumerate(TOLD)]


def _case(place, name, cause, source, recipe, change, cured, cure):
    make = functools.partial(_tell, recipe, change, cured, cure)
    return Case(f"reports-{name}", "reports", recipe.family, recipe.maker, (FITTING, REPORTING)[place % 2], make,
    cause=cause,
                source=source)  # fmt: skip


def _tell(recipe, change, cured, cure, seed):
    sick, healthy = change(recipes.build(recipe, seed)), cure(recipes.build(cured, seed))
    return dataclasses.replace(sick, fixed=differences(sick, healthy))
