"""MEASURED: the record that `layers.probe` returns, and its table."""

import html

import jax
import numpy as np

from numdl.records import abridged, record, rows, static


@record
class LayerFlow:
    """Statistics of each layer, in call order; a scanned layer: one entry per step, 'path[i]'. L entries, N examples.

    Without a loss gradients are nan, their counts -1. In a `cond` branch not taken states are nan and gradients 0.
    """

    names: tuple = static()  # paths of the parameters
    kinds: tuple = static()  # "dense" | "conv" | "attention" | "tap"
    shapes: tuple = static()  # of the states
    nonlinearities: tuple = static()  # "relu", "tanh", ..., None: what acts on the state, past norms and sums
    not_entered: tuple = static()  # what holds layers that were not looked at
    notes: tuple = static()  # layers whose examples cannot be followed, and why: what needs them is nan
    examples: int = static()  # N
    leaf_names: tuple = static()  # [P] paths of all leaves of params
    leaf_shapes: tuple = static()  # [P]
    leaf_uses: tuple = static()  # [P] texts: names of the layers that contract it, or how else it is used
    fan_in: jax.Array  # [L] products in one output, in the mean away from borders
    weight_variance: jax.Array  # [L] fan_in * Var(W), W as it is contracted; nan without a weight
    state_mean: jax.Array  # [L] over units and examples; the modulus of the mean if complex
    state_rms: jax.Array  # [L] sqrt(mean |state|^2)
    state_max: jax.Array  # [L] max |state|
    saturated: jax.Array  # [L] share of numbers where the slope of tanh, sigmoid or erf is under 5 % of its maximum
    dead: jax.Array  # [L] share of units with relu 0, or gelu, silu, ... this flat to the left, on the whole batch
    effective_rank: jax.Array  # [L] (tr G)^2 / tr(G^2), G = Y Y^T of some examples' states, not centred
    mean_cosine: jax.Array  # [L] mean of cos(y_i, y_j) over pairs of these; nan if a y_i is 0
    state_nonfinite: jax.Array  # [L] how many numbers of the state are inf or nan
    state_gradient_rms: jax.Array  # [L] rms over units and examples of N * dloss/dstate: per-example cotangents
    gradient_nonfinite: jax.Array  # [L] how many numbers of dloss/dstate are inf or nan
    weight_gradient_rms: jax.Array  # [L] rms of dloss/dW through this use of W alone
    leaf_rms: jax.Array  # [P] rms of the leaf's entries; nan for what does not move: integers, bools, keys
    leaf_gradient_rms: jax.Array  # [P] rms of the whole gradient, all uses together, as jax.grad gives it
    leaf_update_ratio: jax.Array  # [P] rms of the optimizer's first update / rms of the leaf
    first_nonfinite: jax.Array  # [] index of the first layer with a state that is not finite; -1: none
    value: jax.Array  # [] the loss

    def __repr__(self):
        if np.ndim(self.value) or isinstance(self.value, jax.core.Tracer):
            return "\n".join(["LayerFlow", *(f"  {name:<19} {text}" for name, text in rows(self))])
        table = [_HEAD, *_cells(self)]
        wide = [max(len(row[i]) for row in table) for i in range(len(_HEAD))]
        lines = ["  ".join([row[0].ljust(wide[0]), *map(str.rjust, row[1:], wide[1:])]).rstrip() for row in table]
        return "\n".join([_title(self), *lines, *_remarks(self)])

    def _repr_html_(self):
        if np.ndim(self.value) or isinstance(self.value, jax.core.Tracer):
            return f"<pre>{html.escape(repr(self))}</pre>"
        body = "".join(
            "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
            for tag, row in [("th", _HEAD), *(("td", row) for row in _cells(self))]
        )
        notes = "".join(f"<p>{html.escape(text)}</p>" for text in _remarks(self))
        return f"<table><caption>{html.escape(_title(self))}</caption>{body}</table>{notes}"


_COLUMNS = {
    "fan_in": "fan_in",
    "n Var W": "weight_variance",
    "state rms": "state_rms",
    "state max": "state_max",
    "rank": "effective_rank",
    "cosine": "mean_cosine",
    "saturated": "saturated",
    "dead": "dead",
    "dstate rms": "state_gradient_rms",
    "dW rms": "weight_gradient_rms",
}
_HEAD = ("layer", "kind", *_COLUMNS)


def _title(flow):
    lost = int(flow.first_nonfinite)
    bad = f", first not finite at {flow.names[lost]}" if lost >= 0 else ""
    return f"LayerFlow: {len(flow.names)} layers, {flow.examples} examples, loss {float(flow.value):.6g}{bad}"


def _remarks(flow):
    """What was not looked at, and the leaves that are in no row of the table, the first 12 of them."""
    rms, gradient = (np.asarray(each, np.float64) for each in (flow.leaf_rms, flow.leaf_gradient_rms))
    layers = {name.partition("[")[0] for name in flow.names}
    other = [
        f"leaf {name}: {', '.join(uses)}; rms {rms[i]:.4g}, gradient rms {gradient[i]:.4g}"
        for i, (name, uses) in enumerate(zip(flow.leaf_names, flow.leaf_uses))
        if not all(use in layers for use in uses)
    ]
    more = [f"... {len(other) - 12} more leaves in no layer"] if len(other) > 12 else []
    notes = [*(f"not entered: {text}" for text in flow.not_entered), *(f"note: {text}" for text in flow.notes)]
    return [*notes, *other[:12], *more]


def _cells(flow):
    """The table's rows as text; past 24 layers the first 12 and the last 12."""
    columns = [np.asarray(getattr(flow, field), np.float64) for field in _COLUMNS.values()]
    rows = [
        (name, kind, *("-" if np.isnan(column[i]) else f"{column[i]:.4g}" for column in columns))
        for i, (name, kind) in enumerate(zip(flow.names, flow.kinds))
    ]
    return abridged(rows)
