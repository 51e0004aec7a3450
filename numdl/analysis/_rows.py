"""MEASURED: what `layers.probe` heard, laid out in rows: of layers in call order, and of the leaves of params."""

import jax.numpy as jnp
import numpy as np

from numdl.analysis import _listening


def layer_rows(traced, careful, value, found, heard):
    """(fields of a LayerFlow, one entry per step of a scanned layer; whether every number can be trusted)."""
    layers, entries = traced.layers, traced.entries
    order = _order(layers, entries)

    def lay_out(values):
        return jnp.concatenate([v.ravel() for v in values])[order]

    states = [state | (acted or {}) for state, _, acted in found]
    states = {name: lay_out([state[name] for state in states]) for name in states[0]}
    states["state_rms"], good = _listening.rms(careful, states["state_rms"], states["state_max"])
    nan = jnp.full((), jnp.nan, states["state_rms"].dtype)
    of = [layers[i] for _, i, _ in entries]
    gradients, fine = _gradient_rows(traced, careful, of, lay_out, nan, heard)
    lost = states["state_nonfinite"] > 0
    variances = [jnp.full(layer.steps, nan) if w is None else w for layer, (_, w, _) in zip(layers, found)]
    return {
        "names": tuple(name for name, _, _ in entries),
        "kinds": tuple(layer.kind for layer in of),
        "shapes": tuple(layer.shape for layer in of),
        "nonlinearities": tuple(layer.nonlinearity for layer in of),
        "not_entered": traced.not_entered,
        "notes": tuple(f"{layer.name}: {layer.note}" for layer in layers if layer.note),
        "examples": traced.examples,
        "fan_in": jnp.array([layer.fan_in for layer in of], nan.dtype),
        "weight_variance": lay_out(variances),
        **states,
        **gradients,
        "first_nonfinite": jnp.where(jnp.any(lost), jnp.argmax(lost), -1) if of else jnp.array(-1).astype(jnp.int32),
        "value": nan if value is None else value,
    }, jnp.all(good & fine)


def _gradient_rows(traced, careful, of, lay_out, nan, heard):
    if heard is None:
        every = jnp.full(len(of), nan)
        lost = jnp.full(len(of), -1, jnp.int32)
        return {"state_gradient_rms": every, "weight_gradient_rms": every, "gradient_nonfinite": lost}, True
    sizes = [[lay_out([each[kind][..., i] for each in heard]) for i in (0, 1)] for kind in (0, 1)]
    (state, good), (weight, fine) = (_listening.rms(careful, *size) for size in sizes)
    weightless = np.array([layer.weight_shape is None for layer in of])
    known = np.array([layer.of_examples for layer in of])
    return {
        "state_gradient_rms": jnp.where(known, traced.examples * state, nan),
        "weight_gradient_rms": jnp.where(weightless, nan, weight),
        "gradient_nonfinite": (sizes[0][1] if careful else jnp.zeros(len(of))).astype(jnp.int32),
    }, good & (fine | weightless)


def _order(layers, entries):
    """Places of the entries in all layers' flattened steps, one layer after the other."""
    counts = [int(np.prod(layer.steps, dtype=int)) for layer in layers]
    starts = np.cumsum([0, *counts])
    order = [starts[i] + (np.ravel_multi_index(at, layers[i].steps) if at else 0) for _, i, at in entries]
    return np.array(order, dtype=int)


def leaf_rows(careful, dtype, leaves, moving, heard, updates):
    """(fields of a LayerFlow, one entry per leaf, nan where it does not move; whether they can be trusted)."""
    nan = jnp.full(len(leaves), jnp.nan, dtype)
    places = np.array(moving, dtype=int)

    def laid_out(sizes):
        if not moving:
            return nan, True
        found, good = _listening.rms(careful, *(jnp.stack([size[i].astype(dtype) for size in sizes]) for i in (0, 1)))
        return nan.at[places].set(found), jnp.all(good)

    rms, good = laid_out([_listening.magnitude(careful, leaves[i]) for i in moving])
    gradient, fine = (nan, True) if heard is None else laid_out(heard)
    update, fair = (nan, True) if updates is None else laid_out([_listening.magnitude(careful, u) for u in updates])
    rows = {"leaf_rms": rms, "leaf_gradient_rms": gradient, "leaf_update_ratio": update / rms}
    return rows, jnp.all(jnp.array([good, fine, fair]))
