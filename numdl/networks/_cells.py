"""What recurrent cells bind, how they are drawn, and one step of each."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from numdl import checks
from numdl._compiled import jit
from numdl.networks import _affine, initializers
from numdl.networks.initializers import Initializer
from numdl.records import record, static

LSTM_GATES = ("input", "forget", "candidate", "output")
GRU_GATES = ("reset", "update", "candidate")


class Memory(NamedTuple):
    """The carry of an LSTM."""

    hidden: jax.Array  # [N, n]
    cell: jax.Array  # [N, n]


@record
class Laws:
    """What a builder of a cell binds."""

    width: int = static()
    activation: object = static()
    input_weights: Initializer
    recurrent_weights: Initializer
    bias_variance: float
    forget_bias: float


def laws(width, input_weights, recurrent_weights, bias_variance, forget_bias, activation):
    """The laws of a cell, each checked by its name."""
    return Laws(
        checks.whole("width", width),
        activation,
        _affine.checked_law("input_weights", input_weights),
        _affine.checked_law("recurrent_weights", recurrent_weights),
        checks.variance("bias_variance", bias_variance, shape=()),
        checks.finite("forget_bias", forget_bias, shape=()),
    )


# Cached, so that equal cells are the same functions and a compiled caller is found again.
@functools.lru_cache(maxsize=256)
def init_cell(draw):
    """(laws, key, features, dtype) -> params, compiled once for each kind of cell."""

    @functools.partial(jit, static_argnames=("features", "dtype"))
    def drawn(laws, key, features, dtype):
        return draw(laws, key, features, dtype)

    def init(laws, key, features, dtype):
        return drawn(
            laws, checks.key("key", key), checks.whole("features", features), initializers.float_dtype("dtype", dtype)
        )

    return init


@functools.lru_cache(maxsize=256)
def zeros(fields, width):
    """(examples, dtype) -> the carry before the first step."""

    def start(examples, dtype):
        parts = [jnp.zeros((examples, width), dtype) for _ in fields]
        return Memory(*parts) if len(fields) == 2 else parts[0]

    return start


def hidden(carry):
    """h, whatever else the carry holds."""
    return carry.hidden if isinstance(carry, Memory) else carry


def packing(start):
    """Carry to one array [N, size] and back."""
    leaves, structure = jax.tree.flatten(start)
    cuts = [leaf.shape[-1] for leaf in leaves]

    def unpack(packed):
        edges = [sum(cuts[: i + 1]) for i in range(len(cuts) - 1)]
        return jax.tree.unflatten(structure, jnp.split(packed, edges, axis=-1))

    return lambda carry: jnp.concatenate(jax.tree.leaves(carry), axis=-1), unpack


def draw_vanilla(laws, key, features, dtype):
    """{"input", "recurrent", "bias"} without an axis of gates."""
    return jax.tree.map(lambda leaf: leaf[0], _draw_gates(laws, key, features, dtype, 1))


def draw_lstm(laws, key, features, dtype):
    """{"input", "recurrent", "bias"}, leaves [4, ...]."""
    params = _draw_gates(laws, key, features, dtype, len(LSTM_GATES))
    shift = jnp.asarray(laws.forget_bias, dtype)
    return {**params, "bias": params["bias"].at[LSTM_GATES.index("forget")].add(shift)}


def draw_gru(laws, key, features, dtype):
    """{"input", "recurrent", "bias"}, leaves [3, ...], and "candidate_bias"."""
    gates_key, bias_key = jax.random.split(key)
    bias = initializers.normal(laws.bias_variance).sample(bias_key, (laws.width,), dtype)
    return {**_draw_gates(laws, gates_key, features, dtype, len(GRU_GATES)), "candidate_bias": bias}


def _draw_gates(laws, key, features, dtype, gates):
    n = laws.width
    parts = (
        ("input", laws.input_weights, (features, n)),
        ("recurrent", laws.recurrent_weights, (n, n)),
        ("bias", initializers.normal(laws.bias_variance), (n,)),
    )
    keys = jax.random.split(key, (len(parts), gates))
    return {
        name: lax.map(lambda k, law=law, shape=shape: law.sample(k, shape, dtype), keys[i])
        for i, (name, law, shape) in enumerate(parts)
    }


@functools.lru_cache(maxsize=256)
def step_vanilla(activation):
    """(params, h, x) -> the next h, one function for each activation."""

    def step(params, h, x):
        return activation(h @ params["recurrent"] + x @ params["input"] + params["bias"][None, :])

    return step


def step_lstm(params, carry, x):
    """The next Memory."""
    i, f, g, o = _products(carry.hidden, params["recurrent"]) + _products(x, params["input"]) + _rows(params["bias"])
    cell = jax.nn.sigmoid(f) * carry.cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return Memory(jax.nn.sigmoid(o) * jnp.tanh(cell), cell)


def step_gru(params, h, x):
    """The next h."""
    from_h = _products(h, params["recurrent"])
    from_x = _products(x, params["input"]) + _rows(params["bias"])
    reset, update = jax.nn.sigmoid(from_h[:2] + from_x[:2])
    candidate = jnp.tanh(from_x[2] + reset * (from_h[2] + params["candidate_bias"][None, :]))
    return (1 - update) * candidate + update * h


def _products(x, weights):
    """x times the weights of every gate, [gates, N, n]."""
    return jnp.einsum("ni,gio->gno", x, weights)


def _rows(bias):
    return bias[:, None, :]
