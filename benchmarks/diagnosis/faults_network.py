"""Faults of the network and of its start."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.diagnosis import plain
from benchmarks.diagnosis.faults import after, but, fit, report

MASKED = -jnp.inf


# --- changes of a finished setting
def _map_params(setting, change):
    """Parameters changed by (name of the leaf, leaf)."""
    name = lambda path: str(getattr(path[-1], "key", getattr(path[-1], "name", "")))  # noqa: E731
    return setting.changed(
        params=jax.tree_util.tree_map_with_path(lambda p, leaf: change(name(p), leaf), setting.params)
    )


def identical_units(setting):
    """Each hidden unit starts as a copy of the first."""
    width = max(leaf.shape[-1] for leaf in jax.tree.leaves(setting.params))

    def copy(name, leaf):
        leaf = np.broadcast_to(leaf[..., :1], leaf.shape) if leaf.shape[-1] == width else leaf
        rows = leaf.ndim > 1 and leaf.shape[-2] == width
        return np.array(np.broadcast_to(leaf[..., :1, :], leaf.shape) if rows else leaf)

    return _map_params(setting, copy)


def _outputs(setting, change):
    """A function of (outputs) behind the network."""
    inner, evaluate = setting.apply, setting.evaluate
    behind = (lambda p, x: change(evaluate(p, x))) if evaluate else None
    return setting.changed(apply=lambda *a: change(inner(*a)), evaluate=behind)


def _inputs(setting, change):
    """A function of (x) in front of the network."""
    inner = setting.apply
    return setting.changed(apply=lambda params, x, *key: inner(params, change(x), *key), evaluate=None)


def scrambled_reshape(x):
    """[N, ...] flattened as if the batch were the last axis: each row mixes examples."""
    flat = x.reshape(len(x), -1)
    return flat.T.reshape(flat.shape).reshape(x.shape)


def over_the_batch(x):
    return plain.standardised(x, 0) if x.ndim < 3 else jax.nn.softmax(x, 0) * len(x)


def stale_statistics(setting):
    """What is evaluated divides hidden states by statistics that nobody updated: the states keep their size."""
    recipe = setting.apply.args[0].but(norm="none")
    inner = functools.partial(plain.APPLY[recipe.family], recipe)
    return setting.changed(evaluate=inner)


def raw_in_evaluation(setting, factor, offset):
    """The training pipeline scales inputs, the evaluation does not."""
    inner = setting.apply
    return setting.changed(evaluate=lambda params, x: inner(params, factor * x + offset))


def singleton_norm(x):
    """Layer norm over an axis of size one."""
    return plain.standardised(x[..., None], -1)[..., 0]


def masked(setting, mask):
    """Attention with an additive mask [tokens, tokens]."""
    tokens = setting.data[0].shape[1]
    own, index = np.eye(tokens, dtype=bool), np.arange(tokens)
    allowed = {
        "own": own,
        "strict": index[None, :] < index[:, None],
        "nothing": np.zeros_like(own),
        "one row": np.broadcast_to(index[:, None] != 2, own.shape),
    }[mask]
    added = jnp.where(jnp.asarray(allowed), 0.0, MASKED)
    return setting.changed(apply=functools.partial(plain.attention, setting.apply.args[0], mask=added))


def hide(x, start, stop):
    """Features or places from start to stop are zero."""
    x = jnp.asarray(x)
    return x.at[..., start:stop, :].set(0) if x.ndim == 3 else x.at[..., start:stop].set(0)


def mean_over_places(x):
    """Every place sees the sequence's mean: no order left."""
    return jnp.broadcast_to(x.mean(1, keepdims=True), x.shape)


DEEP = {"init": "lecun", "activation": "tanh", "norm": "none"}

FAULTS = [
    # the start
    fit("symmetry", "zero", "dense dense-tanh convolution dense-linen", **but(init="zero", last=0.0)),
    fit("symmetry", "constant .1", "dense dense-sgd residual",
           **but(init="constant", gain=0.1, last_law="constant", last=0.1)),
    report("symmetry", "constant .5", "dense-gelu dense-equinox",
           **but(init="constant", gain=0.5, last_law="constant", last=0.1)),
    report("symmetry", "identical", "dense-haiku-sgd convolution-nnx residual-haiku", **after(identical_units)),
    fit("signal_vanishes", "gain .03", "dense-sgd dense-tanh", **but(gain=0.03, depth=6)),
    fit("signal_vanishes", "gain .2 deep", "dense dense-linen", **but(gain=0.2, depth=12, optimizer="sgd", rate=0.1)),
    report("signal_vanishes", "gain .05", "dense-haiku-sgd dense-equinox",
           **but(gain=0.05, depth=7, optimizer="sgd", rate=0.1)),
    report("signal_vanishes", "gain .01", "convolution-nnx", **but(gain=0.01, norm="none", depth=5)),
    fit("signal_explodes", "gain 6", "dense-sgd dense-linen", **but(gain=6.0, depth=8)),
    fit("signal_explodes", "gain 3 deep", "dense convolution", **but(gain=3.0, depth=12, norm="none")),
    report("signal_explodes", "gain 4", "dense-equinox dense-haiku-sgd dense-gelu", **but(gain=4.0, depth=9)),
    report("signal_explodes", "gain 8", "convolution-nnx", **but(gain=8.0, norm="none", depth=6)),
    fit("gradient_vanishes", "sigmoid 8", "dense-sgd dense-linen", **but(activation="sigmoid", init="glorot", depth=8)),
    fit("gradient_vanishes", "tanh 30 cold", "dense-tanh", **but(depth=30, gain=0.7)),
    report("gradient_vanishes", "sigmoid 12", "dense-equinox dense-haiku-sgd",
           **but(activation="sigmoid", init="lecun", depth=12)),
    report("gradient_vanishes", "softsign 25", "dense-gelu",
           **but(activation="softsign", depth=25, init="lecun", gain=0.8)),
    fit("gradient_explodes", "tanh 40", "dense-tanh dense-sgd", **but(**DEEP, depth=40, gain=2.0)),
    report("gradient_explodes", "erf 50", "dense-gelu dense-values-wide",
           **but(depth=50, activation="erf", init="lecun", gain=2.5)),
    fit("saturated", "gain 10", "dense-tanh", **but(gain=10.0)),
    fit("saturated", "sigmoid gain 30", "dense dense-sgd", **but(activation="sigmoid", gain=30.0)),
    report("saturated", "gain 20", "residual-numdl dense-values-wide", **but(activation="tanh", gain=20.0)),
    report("saturated", "bias 30", "dense-haiku-sgd dense-equinox", **but(activation="tanh", bias_deviation=30.0)),
    fit("dead_units", "bias -10", "dense dense-sgd dense-moons", **but(bias=-10.0)),
    fit("dead_units", "bias -4", "convolution dense-linen", **but(bias=-4.0)),
    report("dead_units", "bias -6", "dense-haiku-sgd dense-circles", **but(activation="relu", bias=-6.0)),
    report("dead_units", "bias -20", "convolution-nnx dense-equinox", **but(activation="relu", bias=-20.0)),
    fit("correlation_collapses", "bias 1.5", "dense-tanh dense", **but(**DEEP, depth=14, gain=0.6, bias_deviation=1.5)),
    report("correlation_collapses", "bias 1", "dense-haiku-sgd dense-gelu",
           **but(activation="tanh", init="lecun", depth=20, gain=0.7, bias_deviation=1.0)),
    fit("chaotic", "gain 4", "dense-tanh dense-values", **but(**DEEP, depth=20, gain=4.0)),
    report("chaotic", "gain 3", "dense-gelu dense-values-wide",
           **but(activation="erf", init="lecun", depth=30, gain=3.0)),
    fit("residual_scale", "40 blocks", "residual", **but(depth=40, branch=1.0)),
    fit("residual_scale", "gain 6", "residual", **but(gain=6.0, branch=1.0)),
    report("residual_scale", "60 blocks", "residual-numdl", **but(depth=60, branch=1.0, optimizer="sgd", rate=0.02)),
    report("residual_scale", "branch 4", "residual-haiku residual-numdl", **but(depth=12, branch=4.0)),
    fit("too_narrow", "2 wide", "dense-sgd dense-moons", **but(width=2, depth=30)),
    report("too_narrow", "3 wide", "dense-gelu dense-circles", **but(width=3, depth=45, activation="relu")),
    # through time
    fit("recurrent_explodes", "relu 4", "recurrent-tanh", **but(activation="relu", gain=4.0)),
    fit("recurrent_explodes", "linear 4", "recurrent-tanh", **but(activation="identity", gain=4.0)),
    report("recurrent_explodes", "relu 2.5", "recurrent-recall recurrent-sums", **but(activation="relu", gain=2.5)),
    fit("recurrent_vanishes", "gain .1", "recurrent-tanh", **but(gain=0.1)),
    report("recurrent_vanishes", "gain .3", "recurrent-recall", **but(gain=0.3)),
    report("recurrent_vanishes", "sigmoid", "recurrent-recall recurrent-sums", **but(activation="sigmoid", gain=0.5)),
    # norms and axes
    fit("norm_degenerate", "batch of one", "dense dense-tanh", **but(norm="batch", batch_size=1)),
    fit("norm_degenerate", "one column", "dense-moons dense-sgd", **after(_outputs, singleton_norm)),
    report("norm_degenerate", "batch of one", "dense-equinox dense-haiku-sgd", **but(norm="batch", batch_size=1)),
    report("norm_degenerate", "one pixel", "convolution-nnx residual-haiku", **after(_inputs, singleton_norm)),
    fit("train_differs_from_evaluate", "stale", "dense dense-sgd", **but(norm="batch", depth=4, gain=3.0, bias=1.0),
        **after(stale_statistics)),
    fit("train_differs_from_evaluate", "scale 255", "convolution dense-tanh", **after(raw_in_evaluation, 255.0, 0.0)),
    report("train_differs_from_evaluate", "shift", "dense-equinox convolution-nnx",
           **after(raw_in_evaluation, 1.0, 6.0)),
    report("train_differs_from_evaluate", "scale .02", "residual-haiku dense-haiku-sgd",
           **after(raw_in_evaluation, 0.02, 0.0)),
    fit("wrong_axis", "reshape", "dense convolution", **after(_inputs, scrambled_reshape)),
    fit("wrong_axis", "softmax", "dense-sgd", **after(_outputs, lambda out: jax.nn.softmax(out, 0))),
    report("wrong_axis", "batch mean", "dense-equinox dense-values-wide",
           **after(_outputs, lambda out: out.mean(0, keepdims=True) + 0 * out)),
    report("wrong_axis", "sequence", "attention-pairs recurrent-sums", **after(_inputs, scrambled_reshape)),
    fit("no_nonlinearity", "3 layers", "dense-moons dense-values", **but(activation="identity", depth=3)),
    report("no_nonlinearity", "5 layers", "dense-circles residual-haiku", **but(activation="identity", depth=5)),
    # noise, masks and what cannot be seen
    fit("dropout_too_high", ".97", "dense residual", **but(dropout=0.97)),
    report("dropout_too_high", ".9 deep", "attention-pairs", **but(dropout=0.95, depth=4)),
    report("dropout_too_high", ".98", "recurrent-sums", **but(dropout=0.98)),
    fit("mask", "strict", "attention", **after(masked, "strict")),
    fit("mask", "nothing", "attention", **after(masked, "nothing")),
    report("mask", "own", "attention-pairs", **but(position=False), **after(masked, "own")),
    report("mask", "one row", "attention-pairs", **after(masked, "one row")),
    fit("cannot_see", "half hidden", "dense dense-linen", **after(_inputs, functools.partial(hide, start=0, stop=56))),
    fit("cannot_see", "one coordinate", "dense-moons", **after(_inputs, functools.partial(hide, start=0, stop=1))),
    report("cannot_see", "no position", "attention-pairs", **but(position=False)),
    report("cannot_see", "mean", "recurrent-recall recurrent-gru", **after(_inputs, mean_over_places)),
    report("cannot_see", "one coordinate", "dense-circles residual-haiku",
           **after(_inputs, functools.partial(hide, start=0, stop=1))),
]  # fmt: skip
