"""Networks written out by hand: backpropagation as the lectures' algorithm, and weights that need no training.

    forward:     y_1 = x W_1 + b_1,    y_{l+1} = f(y_l) W_{l+1} + b_{l+1},    outputs = f(y_L) W + b
    backward:    D = dloss/doutputs,   dW = f(y_L)' D,   db = sum over examples of D,   d_L = (D W') * f'(y_L), ...

Parameters are those of `dense` networks, whose apply they fit. Nothing here differentiates but these lines.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from numdl import checks
from numdl.activations import Activation
from numdl.networks import _affine
from numdl.records import record


@record
class Backpropagation:
    """A pass there and back."""

    loss: jax.Array  # scalar
    gradient: PyTree  # like params
    states: tuple  # y_1 ... y_L, each [N, n_l]
    deltas: tuple  # dloss/dy_1 ... dloss/dy_L, each [N, n_l]


def backpropagate(
    params: PyTree,
    x: Float[ArrayLike, "N d"],
    loss: Callable[[Array], tuple[Array, Array]],
    *,
    activation: Activation,
) -> Backpropagation:
    """Loss and gradient of a dense network by backpropagation spelled out, one layer after the other.

        delta_l = (delta_{l+1} W_{l+1}') * f'(y_l),    dW_{l+1} = f(y_l)' delta_{l+1},    db_{l+1} = sum of delta_{l+1}

    Parameters
    ----------
    params : pytree             of `dense.network(...).init`
    x : array [N, d]
    loss : function             outputs [N, k] -> (value, dvalue/doutputs [N, k]), written by hand, too
    activation : Activation     f, with its slope f'
    Returns
    -------
    Backpropagation
    Raises
    ------
    ValueError, TypeError       not an Activation, a loss that does not take one array, x that is not [N, d]
    Source: Rumelhart, Hinton & Williams 1986, Nature 323.    Experiment: f6.
    """
    checks.instance("activation", activation, Activation, hint="such as activations.tanh")
    loss = checks.accepts("loss", loss, 1, "loss(outputs)")
    params, x = _affine.of_dense(params), checks.floating("x", x, ndim=2)
    layers = _layers(params)
    inputs, states, outputs = _forward(layers, jnp.asarray(x), activation)
    value, delta = loss(outputs)
    gradients, deltas = _backward(layers, inputs, states, delta, activation)
    return Backpropagation(value, _like(params, gradients), tuple(states), tuple(deltas))


def dependencies(*, hidden: int) -> dict[str, tuple[str, ...]]:
    """What each quantity of `backpropagate` is computed from, in an order in which all can be: a graph without cycles.

        "y_2": ("y_1", "W_2", "b_2"),    "d_1": ("d_2", "W_2", "y_1"),    "dW_2": ("y_1", "d_2"),    "db_2": ("d_2",)

    y_{L+1} are the outputs, d_{L+1} the loss's slope there; x is y_0 and is read as it is, y_l with l >= 1 through f.

    Parameters
    ----------
    hidden : int                L >= 1, hidden layers
    Returns
    -------
    dict                        name -> names; x, W_l and b_l are given and have no entry
    Raises
    ------
    ValueError, TypeError       hidden < 1
    Source: Rumelhart, Hinton & Williams 1986, Nature 323.    Experiment: f6.
    """
    last = checks.whole("hidden", hidden) + 1
    below = ["x", *(f"y_{layer}" for layer in range(1, last))]  # what layer l reads is below[l - 1]
    graph = {f"y_{layer}": (below[layer - 1], f"W_{layer}", f"b_{layer}") for layer in range(1, last + 1)}
    graph |= {"loss": (f"y_{last}",), f"d_{last}": (f"y_{last}",)}
    for layer in range(last, 0, -1):
        graph |= {f"dW_{layer}": (below[layer - 1], f"d_{layer}"), f"db_{layer}": (f"d_{layer}",)}
        if layer > 1:
            graph[f"d_{layer - 1}"] = (f"d_{layer}", f"W_{layer}", f"y_{layer - 1}")
    return graph


def _forward(layers, x, activation):
    """What every layer reads, its state where it has one, and the outputs."""
    inputs, states = [x], []
    for kernel, bias in layers[:-1]:
        states.append(inputs[-1] @ kernel + bias[None, :])
        inputs.append(activation(states[-1]))
    kernel, bias = layers[-1]
    return inputs, states, inputs[-1] @ kernel + bias[None, :]


def _backward(layers, inputs, states, delta, activation):
    """Gradients of every layer's (kernel, bias) and of every state, from that of the outputs."""
    gradients, deltas = [(inputs[-1].T @ delta, jnp.sum(delta, axis=0))], []
    for (kernel, _), before, state in zip(layers[:0:-1], inputs[-2::-1], states[::-1], strict=True):
        delta = (delta @ kernel.T) * activation.slope(state)
        deltas.append(delta)
        gradients.append((before.T @ delta, jnp.sum(delta, axis=0)))
    return gradients[::-1], deltas[::-1]


def interpolant(knots: Float[ArrayLike, "n"], values: Float[ArrayLike, "n"]) -> PyTree:
    """Weights of one hidden layer of relu that draws straight lines between n points, and goes on straight beyond.

        f(x) = v_1 + sum_i c_i relu(x - t_i),    c_i the change of slope at knot t_i

    With equal steps h the largest error for a smooth f is max |f''| h^2 / 8.

    Parameters
    ----------
    knots : array [n]           t, rising, n >= 2
    values : array [n]          v = f(t)
    Returns
    -------
    params                      float64 as NumPy arrays, for `dense.network(widths=(1, n - 1, 1), activation=relu, ...)`
    Raises
    ------
    ValueError, TypeError       knots that do not rise, fewer than two, values of another length or not finite
    Source: de Boor 1978, A Practical Guide to Splines.    Experiment: f6.
    """
    knots = np.asarray(checks.finite("knots", checks.concrete("knots", checks.array("knots", knots, ndim=1))), float)
    if len(knots) < 2 or (np.diff(knots) <= 0).any():
        raise checks.BadValue(f"knots must be two numbers or more that rise; got {knots}, shape {knots.shape}")
    values = checks.shape("values", checks.array("values", values, ndim=1), knots.shape)
    values = np.asarray(checks.finite("values", checks.concrete("values", values)), float)
    changes = np.diff(np.diff(values) / np.diff(knots), prepend=0.0)
    hidden = {"kernel": np.ones((1, 1, len(changes))), "bias": -knots[None, :-1]}
    return {"hidden": (hidden,), "readout": {"kernel": changes[:, None], "bias": values[:1]}}


def square(*, depth: int) -> PyTree:
    """Weights of a deep relu network, three units wide, that squares numbers in [0, 1], to 4^-(depth + 1).

        g(t) = 2 relu(t) - 4 relu(t - 1/2),    x^2 = x - sum_s g(...g(x)) / 4^s   (g applied s times), s = 1 ... depth

    The error falls exponentially in the number of parameters, 12 for each layer; one hidden layer's as its square.

    Parameters
    ----------
    depth : int                 hidden layers, >= 1
    Returns
    -------
    params                      float64 as NumPy arrays, for `dense.network(widths=(1, *[3] * depth, 1), ...)`, relu
    Raises
    ------
    ValueError, TypeError       depth < 1
    Source: Yarotsky 2017, Neural Networks 94, proposition 2.    Experiment: f6.
    """
    depth = checks.whole("depth", depth)
    tooth = np.array([2.0, -4.0, 0.0])
    sums = [np.array([0.0, 0.0, 1.0]) - tooth / 4.0**s for s in range(1, depth + 1)]
    bias = np.array([0.0, -0.5, 0.0])
    first = {"kernel": np.ones((1, 1, 3)), "bias": bias[None]}
    more = {
        "kernel": np.array([np.stack([tooth, tooth, total], axis=1) for total in sums[:-1]]),
        "bias": np.tile(bias, (depth - 1, 1)),
    }
    readout = {"kernel": sums[-1][:, None], "bias": np.zeros(1)}
    return {"hidden": (first, more) if depth > 1 else (first,), "readout": readout}


def _layers(params):
    """[(kernel, bias), ...]: hidden layers in their order, then the readout."""
    stretches = [zip(part["kernel"], part["bias"], strict=True) for part in params["hidden"]]
    return [layer for part in stretches for layer in part] + [(params["readout"]["kernel"], params["readout"]["bias"])]


def _like(params, gradients):
    """Gradients [(kernel, bias), ...] of all layers with the structure of params."""
    rest, stretches = list(gradients), []
    for part in params["hidden"]:
        run, rest = rest[: len(part["bias"])], rest[len(part["bias"]) :]
        stretches.append(dict(zip(("kernel", "bias"), map(jnp.stack, zip(*run, strict=True)), strict=True)))
    return {"hidden": tuple(stretches), "readout": dict(zip(("kernel", "bias"), rest[0], strict=True))}
