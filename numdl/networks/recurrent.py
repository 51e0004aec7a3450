"""Recurrent networks: cells as pure functions, scanned over time; time is the depth of the network.

    carry_t = step(params, carry_{t-1}, x_t),    t = 1..T,    hidden state h_t = cell.hidden(carry_t)

As a `Network` the state of "layer" t is the whole carry after step t, one stretch [T, N, size] with one probe a
step: dloss/dy_t is the gradient through time. For an LSTM the carry is (h_t, c_t), side by side on the last axis.

    many_to_one    x [N, T, d] -> outputs [N, k]       the readout of h_T
    many_to_many   x [N, T, d] -> outputs [N, T, k]    the readout of every h_t
    one_to_many    x [N, d]    -> outputs [N, T, k]    x enters at the first step only; later nothing, or the outputs

The last two have one more stretch, [1, N, T, n]: all hidden states side by side, which is what their readout reads.
Parameters: {"cell": ..., "readout": {"kernel", "bias"}}. The gate is the first axis: [gates, fan_in, fan_out].
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, PyTree, ScalarLike

from numdl import checks
from numdl._compiled import as_tree, compiled
from numdl.networks import _affine, _cells, initializers
from numdl.networks._cells import GRU_GATES as GRU_GATES
from numdl.networks._cells import LSTM_GATES as LSTM_GATES
from numdl.networks._cells import Memory as Memory
from numdl.networks._record import Network, probed, split_probes
from numdl.networks.initializers import Initializer
from numdl.records import record, static


class Cell(NamedTuple):
    """One step of a recurrent network: four pure functions."""

    init: Callable  # (key, features, dtype) -> params
    step: Callable  # (params, carry, x [N, features]) -> carry
    start: Callable  # (examples, dtype) -> carry of zeros
    hidden: Callable  # carry -> h [N, n]


def vanilla(
    *,
    width: int,
    activation: Callable[[Array], Array],
    input_weights: Initializer,
    recurrent_weights: Initializer,
    bias_variance: ScalarLike,
) -> Cell:
    """The plain recurrent cell (Elman, simple RNN); its carry is h.

        h_t = activation(h_{t-1} W + x_t U + b)

    Parameters
    ----------
    width : int                 n, >= 1
    activation : function       elementwise
    input_weights, recurrent_weights : Initializer    of U (features, n) and W (n, n)
    bias_variance : scalar      Var(b_i), Gaussian, >= 0
    Returns
    -------
    Cell
    Raises
    ------
    ValueError, TypeError       width < 1, a negative variance, weights that are not an Initializer
    Source: Elman 1990.
    """
    checks.accepts("activation", activation, 1, "activation(x)")
    settings = _cells.laws(width, input_weights, recurrent_weights, bias_variance, 0.0, activation)
    return _cell(settings, _cells.draw_vanilla, _cells.step_vanilla(activation), ("hidden",))


def lstm(
    *,
    width: int,
    input_weights: Initializer,
    recurrent_weights: Initializer,
    bias_variance: ScalarLike,
    forget_bias: ScalarLike,
) -> Cell:
    """The long short-term memory without peepholes; its carry is `Memory(hidden, cell)`.

        i, f, g, o = gates of (h_{t-1} W + x_t U + b), the bias of f shifted by forget_bias at initialization
        c_t = sigmoid(f) * c_{t-1} + sigmoid(i) * tanh(g),    h_t = sigmoid(o) * tanh(c_t)

    Parameters
    ----------
    width : int                 n, >= 1
    input_weights, recurrent_weights : Initializer    of U (features, n) and W (n, n), one draw for each gate
    bias_variance : scalar      Var(b_i), Gaussian, >= 0
    forget_bias : scalar        0 forgets half of c at every step, 1 is the usual remedy
    Returns
    -------
    Cell
    Raises
    ------
    ValueError, TypeError       width < 1, a negative variance, weights that are not an Initializer
    Source: Hochreiter & Schmidhuber 1997; Gers et al. 2000 (forget gate); Jozefowicz et al. 2015 (its bias).
    """
    settings = _cells.laws(width, input_weights, recurrent_weights, bias_variance, forget_bias, None)
    return _cell(settings, _cells.draw_lstm, _cells.step_lstm, ("hidden", "cell"))


def gru(*, width: int, input_weights: Initializer, recurrent_weights: Initializer, bias_variance: ScalarLike) -> Cell:
    """The gated recurrent unit that resets after the product, as cuDNN and Flax do; its carry is h.

        r, u = sigmoid gates of (h W + x U + b),   g = tanh(x U_g + b_g + r * (h W_g + candidate_bias))
        h_t = (1 - u) * g + u * h_{t-1}

    Parameters
    ----------
    width : int                 n, >= 1
    input_weights, recurrent_weights : Initializer    of U (features, n) and W (n, n), one draw for each gate
    bias_variance : scalar      Var(b_i), Gaussian, >= 0
    Returns
    -------
    Cell
    Raises
    ------
    ValueError, TypeError       width < 1, a negative variance, weights that are not an Initializer
    Source: Cho et al. 2014, arXiv:1406.1078.
    """
    settings = _cells.laws(width, input_weights, recurrent_weights, bias_variance, 0.0, None)
    return _cell(settings, _cells.draw_gru, _cells.step_gru, ("hidden",))


def run(cell: Cell, params: PyTree, start: PyTree, inputs: Float[ArrayLike, "T N features"]) -> PyTree:
    """All carries, stacked along a first axis of time.

    Parameters
    ----------
    cell : Cell
    params : pytree             of `cell.init`
    start : pytree              the carry before the first input, cell.start(N, dtype) for example
    inputs : array [T, N, features]
    Returns
    -------
    pytree                      like the carry, leaves [T, N, n]
    Raises
    ------
    ValueError, TypeError       not a Cell, params or a start of other shapes, inputs with other axes
    """
    checks.instance("cell", cell, Cell, hint="made by recurrent.lstm, for example")
    inputs = checks.floating("inputs", inputs, ndim=3)
    expected = jax.eval_shape(lambda: cell.start(inputs.shape[1], inputs.dtype))
    start = checks.like("start", start, expected, of="cell.start(N, dtype)", floating=True)
    drawn = jax.eval_shape(lambda: cell.init(jax.random.key(0), inputs.shape[2], inputs.dtype))
    params = checks.like("params", params, drawn, of="cell.init(key, features, dtype)", floating=True)
    return _run(as_tree(cell), params, start, inputs)


@compiled
def _run(cell, params, start, inputs):
    def step(carry, x):
        carry = cell.step(params, carry, x)
        return carry, carry

    after = jax.eval_shape(lambda carry, x: step(carry, x)[0], start, jax.eval_shape(lambda x: x[0], inputs))
    start = jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), start, after)  # a start in single precision
    return lax.scan(step, start, inputs)[1]


def many_to_one(cell: Cell, *, outputs: int, readout_weights: Initializer) -> Network:
    """A network that reads a sequence [N, T, d] and answers once, [N, outputs], from the last hidden state.

    Parameters
    ----------
    cell : Cell
    outputs : int               >= 1
    readout_weights : Initializer    of the last map (n, outputs); its bias starts at 0
    Returns
    -------
    Network                     x [N, T, d] -> outputs [N, outputs]
    Raises
    ------
    ValueError, TypeError       outputs < 1, not a Cell, not an Initializer
    """
    return _network(_Head(*_checked(cell, outputs, readout_weights), "many_to_one", None, False))


def many_to_many(cell: Cell, *, outputs: int, readout_weights: Initializer) -> Network:
    """A network that answers at every step, from every hidden state.

    Parameters
    ----------
    cell : Cell
    outputs : int               >= 1
    readout_weights : Initializer    of the last map (n, outputs); its bias starts at 0
    Returns
    -------
    Network                     x [N, T, d] -> outputs [N, T, outputs]
    Raises
    ------
    ValueError, TypeError       outputs < 1, not a Cell, not an Initializer
    """
    return _network(_Head(*_checked(cell, outputs, readout_weights), "many_to_many", None, False))


def one_to_many(
    cell: Cell, *, outputs: int, readout_weights: Initializer, steps: int, feedback: bool = False
) -> Network:
    """A network that unrolls one input into a sequence.

    Parameters
    ----------
    cell : Cell
    outputs : int               >= 1
    readout_weights : Initializer    of the last map (n, outputs); its bias starts at 0
    steps : int                 T, >= 1
    feedback : bool             each output is the next input (outputs must then be d); without it later inputs are 0
    Returns
    -------
    Network                     x [N, d] -> outputs [N, T, outputs]
    Raises
    ------
    ValueError, TypeError       outputs or steps < 1, not a Cell, not an Initializer
    """
    steps = checks.whole("steps", steps)
    return _network(
        _Head(*_checked(cell, outputs, readout_weights), "one_to_many", steps, checks.flag("feedback", feedback))
    )


@record
class _Head:
    cell: Cell
    outputs: int = static()
    weights: Initializer
    kind: str = static()
    steps: object = static()
    feedback: bool = static()


def _cell(laws, draw, step, fields):
    return Cell(
        Partial(_cells.init_cell(draw), laws),
        Partial(step),
        Partial(_cells.zeros(fields, laws.width)),
        Partial(_cells.hidden),
    )


def _checked(cell, outputs, weights):
    return (
        checks.instance("cell", cell, Cell, hint="made by recurrent.lstm, for example"),
        checks.whole("outputs", outputs),
        _affine.checked_law("readout_weights", weights),
    )


def _network(head):
    return Network(Partial(_init, head), Partial(_states, head), Partial(_readout, head))


def _init(head, key, x):
    cell_key, last_key = jax.random.split(checks.key("key", key))
    x = _check_input(head, x)
    dtype = initializers.float_dtype("x's dtype", x.dtype)
    width = head.cell.hidden(head.cell.start(1, dtype)).shape[-1]
    readout = {
        "kernel": head.weights.sample(last_key, (width, head.outputs), dtype),
        "bias": jnp.zeros(head.outputs, dtype),
    }
    return {"cell": head.cell.init(cell_key, x.shape[-1], dtype), "readout": readout}


@compiled
def _states(head, params, x, probes=None):
    _check_input(head, x, params["cell"])
    many = head.kind != "many_to_one"
    probes = split_probes(probes, 1 + many)
    dtype = jnp.result_type(x, *jax.tree.leaves(params))
    start = head.cell.start(x.shape[0], dtype)
    first = (start, x.astype(dtype) if head.kind == "one_to_many" else None)
    inputs = None if head.kind == "one_to_many" else jnp.swapaxes(x, 0, 1)
    step = functools.partial(_step, head, params, _cells.packing(start))
    _, (packed, hidden) = lax.scan(step, first, (inputs, probes[0]), length=head.steps)
    if not many:
        return (packed,)
    collected = jnp.swapaxes(hidden, 0, 1)[None]
    return packed, probed(collected, probes[1])


def _step(head, params, packing, both, now):
    """One step of the scan: carry and, if alone, the next input; out come the state and the hidden part of it."""
    (carry, fed), (given, probe) = both, now
    pack, unpack = packing
    packed = probed(pack(head.cell.step(params["cell"], carry, given if fed is None else fed)), probe)
    carry = unpack(packed)
    hidden = head.cell.hidden(carry)
    if fed is not None:
        fed = _affine.apply(params["readout"], hidden) if head.feedback else jnp.zeros_like(fed)
    return (carry, fed), (packed, hidden)


@compiled
def _readout(head, params, y):
    if head.kind != "many_to_one":
        return _affine.apply(params["readout"], y)
    # The carry is packed leaf by leaf, the hidden state first.
    return _affine.apply(params["readout"], y[..., : params["readout"]["kernel"].shape[0]])


def _check_input(head, x, cell_params=None):
    alone = head.kind == "one_to_many"
    x = checks.floating("x", x, ndim=2 if alone else 3)
    if cell_params is not None:
        features = cell_params["input"].shape[-2]
        checks.shape("x", x, (None, features) if alone else (None, None, features))
    if head.feedback and x.shape[-1] != head.outputs:
        raise ValueError(f"outputs must be x's {x.shape[-1]} features where outputs are fed back; got {head.outputs}")
    return x
