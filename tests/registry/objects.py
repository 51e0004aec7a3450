"""Small good objects that the registry's calls are made of: built once, of NumPy arrays, nothing is compiled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from numdl import activations
from numdl.networks import (
    attention,
    convolutional,
    dense,
    highway,
    image,
    initializers,
    normalization,
    recurrent,
    residual,
    sequences,
    transformer,
)
from numdl.networks import reversible as reversible_networks

X = np.linspace(-1.0, 1.0, 12).reshape(3, 4)
PAIRS = np.linspace(-1.0, 1.0, 16).reshape(2, 2, 4)
TOKENS = np.linspace(-1.0, 1.0, 24).reshape(2, 3, 4)
IMAGES = np.linspace(-1.0, 1.0, 2 * 8 * 8).reshape(2, 8, 8, 1)
TARGETS = np.linspace(0.0, 1.0, 6).reshape(3, 2)
LABELS = np.array([0, 1, 1])
PARAMS = {"v": np.linspace(-1.0, 1.0, 8).reshape(4, 2), "w": np.linspace(-0.5, 1.0, 16).reshape(4, 4)}
KEY = jax.random.key(0)
MATRIX = np.array([[2.0, 0.5, 0.0], [0.5, 1.0, 0.1], [0.0, 0.1, 0.5]])
VECTOR = np.array([1.0, -1.0, 0.5])
WEIGHTS = initializers.variance_scaling(1.0)
OPTIMIZER = optax.sgd(0.1)


def apply(params, x):
    """A network with one hidden layer."""
    return jnp.tanh(x @ params["w"]) @ params["v"]


def rectified(params, x):
    """The same with rectifiers."""
    return jax.nn.relu(x @ params["w"]) @ params["v"]


def build(width):
    """`apply` with parameters of this width."""
    hidden, last = np.linspace(-1.0, 1.0, 4 * width), np.linspace(-0.5, 1.0, 2 * width)
    return apply, {"v": last.reshape(width, 2), "w": hidden.reshape(4, width)}


def loss(params, batch):
    """Squared error of `apply`."""
    x, targets = batch
    return jnp.mean((apply(params, x) - targets) ** 2)


def loss_of_player(players, batch):
    """`loss` of the only player of a game."""
    return loss(players[0], batch)


def loss_of_params(params):
    """A bowl."""
    return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


def loss_of_outputs(outputs):
    """Half the mean square."""
    return jnp.mean(outputs**2) / 2


def product(v):
    """A symmetric matrix times v."""
    return jnp.asarray(MATRIX) @ v


def field(y, theta):
    """The right-hand side of a small equation."""
    return jnp.tanh(y @ theta)


def elementwise(x):
    """A function of one number."""
    return jnp.tanh(x)


def sampler(key, shape, dtype):
    """Gaussian weights."""
    return jax.random.normal(key, shape, dtype) / 2


def filled(network, x):
    """Parameters of a network, every entry another small number."""
    shapes = jax.eval_shape(network.init, KEY, x)
    return jax.tree.map(lambda s: np.linspace(-0.3, 0.3, int(np.prod(s.shape))).reshape(s.shape), shapes)


@functools.cache
def built(kind):
    """(network, params, x) of one architecture."""
    common = {"activation": activations.tanh, "weight_variance": 1.0, "bias_variance": 0.1}
    flow = {"widths": (4, 4, 2), "depth": 2, "activation": activations.tanh, "weight_variance": 1.0, "step": 0.1}
    makers = {
        "dense": lambda: (dense.network(widths=(4, 4, 4, 2), **common), X),
        "tokens": lambda: (
            attention.network(
                depth=2, heads=1, head_width=4, outputs=2, query_key_weights=WEIGHTS, value_weights=WEIGHTS, skip=True
            ),
            TOKENS,
        ),
        "images": lambda: (
            convolutional.network(stages=(convolutional.Stage(2, 3),), outputs=2, **common),
            IMAGES,
        ),
        "residual images": lambda: (image.small_resnet(widths=(2, 4), blocks=(1, 2), outputs=2), IMAGES),
        "highway": lambda: (highway.network(width=4, depth=2, outputs=2, gate_bias=-1.0, **common), X),
        "normalized": lambda: (
            normalization.network(width=4, depth=3, outputs=2, activation=activations.tanh, weight_variance=1.0),
            X,
        ),
        "admin": lambda: (
            transformer.network(
                transformer.blocks(
                    depth=2,
                    heads=2,
                    head_width=2,
                    mlp_width=4,
                    query_key_weights=WEIGHTS,
                    value_weights=WEIGHTS,
                    mlp_weights=WEIGHTS,
                    activation=activations.tanh,
                    norm="post",
                    skip="admin",
                ),
                outputs=2,
                readout_weights=WEIGHTS,
            ),
            TOKENS,
        ),
        "residual": lambda: (residual.network(bias_variance=0.1, **flow), X),
        "reversible": lambda: (reversible_networks.hamiltonian(bias_variance=0.1, **flow), X),
        "sequences": lambda: (
            sequences.network(
                cell(), cell(), outputs=2, steps=2, readout_weights=WEIGHTS, key_width=2, query_key_weights=WEIGHTS
            ),
            TOKENS,
        ),
        "recurrent": lambda: (recurrent.many_to_one(cell(), outputs=2, readout_weights=WEIGHTS), TOKENS),
    }
    network, x = makers[kind]()
    return network, filled(network, x), x


@functools.cache
def cell():
    """An LSTM."""
    return recurrent.lstm(width=4, input_weights=WEIGHTS, recurrent_weights=WEIGHTS, bias_variance=0.0, forget_bias=1.0)


@functools.cache
def cell_params():
    """Parameters of the LSTM."""
    shapes = jax.eval_shape(lambda key: cell().init(key, 4, jnp.result_type(float)), KEY)
    return jax.tree.map(lambda s: np.linspace(-0.3, 0.3, int(np.prod(s.shape))).reshape(s.shape), shapes)
