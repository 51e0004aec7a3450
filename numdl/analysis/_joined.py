"""MEASURED: sizes of a state and of its cotangent apart, where one contraction serves several weights side by side."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from numdl import _effort
from numdl._compiled import holding
from numdl.analysis import _listening
from numdl.tracing._held import parted


def split(layer, fixed):
    """Lengths along the state's one axis of units that each of the joined leaves makes; None where there is no such."""
    if fixed.joined is None or len(layer.units) != 1:
        return None
    lengths = tuple(length for _, length in fixed.joined[1])
    axes = dict(layer.made_of)
    known = all(axes.get(leaf) is not None and not axes[leaf].others for leaf, _ in fixed.joined[1])
    return lengths if known and layer.shape[layer.units[0]] == sum(lengths) else None


def sizes(traced, constants, params, x, loss, parts):
    """{layer: (mean squares [*steps, P], |N dloss/dy|^2 [*steps, P])} for `parts`, {layer: lengths}."""
    if not parts:
        return {}
    held, bare = parted(loss)
    run = _prepared(traced, bare, tuple(parts.items()))
    sinks = {i: _listening.sink(traced.layers[i].dtype, (*traced.layers[i].steps, len(parts[i]))) for i in parts}
    heard, rms = run(sinks, params, x, constants, held)
    found = {}
    for i, lengths in parts.items():
        layer = traced.layers[i]
        numbers = np.prod(layer.shape, dtype=float) / layer.shape[layer.units[0]] * np.array(lengths)
        scale = traced.examples if layer.of_examples else np.nan  # as in `layers.probe`: per-example cotangents
        state, cotangent = (np.asarray(each[i], np.float64)[..., 0] ** 2 for each in (rms, heard))
        found[i] = state, cotangent * numbers * scale**2
    return found


def _prepared(traced, bare, parts, _kept=collections.OrderedDict()):  # noqa: B006
    """The compiled measurement; the last 8 are kept, with what their keys are the identities of."""
    key = id(traced), bare, holding(bare), parts
    if key not in _kept:
        _kept[key] = traced, _effort.jit(_measurement(traced, bare, dict(parts)))
        if len(_kept) > 8:
            _kept.popitem(last=False)
    return _kept[key][-1]


def _measurement(traced, bare, parts):
    names = {traced.layers[i].name: lengths for i, lengths in parts.items()}

    def visit(layer, state, sinks):
        if layer.name not in names:
            return state, None
        axis, ends = layer.units[0], list(itertools.accumulate(names[layer.name]))
        pieces = jnp.split(state, ends[:-1], axis)
        pieces = _listening.at(True, tuple(pieces), tuple(sinks))
        found = [jnp.stack(_listening.magnitude(True, jax.lax.stop_gradient(piece))) for piece in pieces]
        return jnp.concatenate(pieces, axis), jnp.stack(found)

    def forward(sinks, params, x, constants, held):
        given = [sinks.get(i) for i in range(len(traced.layers))]
        outputs, found = traced.run(params, x, visit=visit, given=given, constants=constants)
        return bare(held)(outputs), {i: found[i] for i in parts}

    return jax.grad(forward, has_aux=True)
