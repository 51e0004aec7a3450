"""Autoencoders: an encoder g to few numbers, the codes, and a decoder h back; both dense networks.

    codes = g(x),    outputs = h(codes),    energy = alpha |z - g(x)|^2 + |x - h(z)|^2 + sparsity |z|_1

The energy makes the codes z unknowns of their own: at its minimum over z they are the best that this decoder can read,
and the encoder is fitted to them. `variational` has the evidence of one whose codes are Gaussian.
Parameters: {"encoder": params, "decoder": params} of the two `dense` networks.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Key, PyTree, ScalarLike

from numdl import checks
from numdl._compiled import jit
from numdl.networks import dense
from numdl.records import record, static


class Autoencoder(NamedTuple):
    """Pure functions: parameters from a key, codes from inputs, outputs from codes."""

    init: Callable  # (key, x [N, d]) -> params
    encode: Callable  # (params, x [N, d]) -> codes [N, k]
    decode: Callable  # (params, codes [N, k]) -> outputs [N, d]
    spread: Callable | None = None  # (params, x [N, d]) -> logarithms of the codes' variances [N, k]

    def apply(self, params, x):
        """The outputs [N, d]: what the decoder makes of the encoder's codes."""
        return self.decode(params, self.encode(params, x))


@record
class Codes:
    """The codes that minimise the energy, and how near to the minimum they are."""

    codes: jax.Array  # [N, k]
    energy: jax.Array  # [steps + 1, N]: before each step and at the end; it never rises
    residual: jax.Array  # [N]: length of the last step over its step size; 0 at a minimum


@record
class _Code:
    width: int = static()


def network(
    *,
    widths: Sequence[int],
    activation: Callable[[Array], Array],
    weight_variance: ScalarLike,
    bias_variance: ScalarLike,
    code_activation: Callable[[Array], Array] | None = None,
    output_activation: Callable[[Array], Array] | None = None,
    gaussian: bool = False,
) -> Autoencoder:
    """An autoencoder: dense layers of these widths down to the code, and their mirror image back.

    Parameters
    ----------
    widths : sequence of int    input, hidden layers, code: (784, 128, 64, 32) makes 784-128-64-32-64-128-784
    activation : function       elementwise, of the hidden layers
    weight_variance : scalar    fan_in * Var(W_ij), >= 0
    bias_variance : scalar      Var(b_i), >= 0
    code_activation, output_activation : function    elementwise, of codes and outputs; None: they stay as they are
    gaussian : bool             the encoder gives a variance with each code, too (variational autoencoder)
    Returns
    -------
    Autoencoder                 x [N, widths[0]] -> codes [N, widths[-1]] -> outputs [N, widths[0]]
    Raises
    ------
    ValueError, TypeError       fewer than two widths, a width below 1, a negative variance, no function
    Source: Hinton & Salakhutdinov 2006, Science 313; Kingma & Welling 2014, arXiv:1312.6114.    Experiment: f4.
    """
    widths = checks.wholes("widths", widths, fewest=2)
    code = _Code(widths[-1])
    weight_variance = checks.variance("weight_variance", weight_variance, shape=())
    after_code = _elementwise("code_activation", code_activation)
    after_outputs = _elementwise("output_activation", output_activation)
    gaussian = checks.flag("gaussian", gaussian)
    physics = {"activation": activation, "weight_variance": weight_variance, "bias_variance": bias_variance}
    encoder = dense.network(widths=(*widths[:-1], widths[-1] * (2 if gaussian else 1)), **physics)
    decoder = dense.network(widths=widths[::-1], **physics)
    return Autoencoder(
        Partial(_init, code, encoder, decoder),
        Partial(_encode, code, encoder, after_code),
        Partial(_decode, decoder, after_outputs),
        Partial(_spread, code, encoder) if gaussian else None,
    )


def principal(x: Float[ArrayLike, "N d"], *, code: int) -> PyTree:
    """Principal component analysis as parameters of a linear autoencoder of widths (d, code).

        g(x) = (x - mean) V,    h(z) = z V' + mean,    V the first `code` right singular vectors of x - mean

    No linear autoencoder of this code size has a smaller mean square error on x.

    Parameters
    ----------
    x : array [N, d]
    code : int                  1..min(N, d)
    Returns
    -------
    params                      for `network(widths=(d, code), ...)`, of the dtype of x; codes by falling variance
    Raises
    ------
    ValueError, TypeError       code out of range, x not finite or not [N, d]
    Source: Baldi & Hornik 1989, Neural Networks 2.    Experiment: f4.
    """
    x = checks.finite("x", checks.concrete("x", checks.floating("x", x, ndim=2)))
    code = checks.whole("code", code, most=min(x.shape))
    rows = np.asarray(x, np.float64)
    mean = rows.mean(axis=0)
    vectors = np.linalg.svd(rows - mean, full_matrices=False)[2][:code].T
    maps = (vectors, -mean @ vectors), (vectors.T, mean)
    layers = [{"kernel": jnp.asarray(kernel, x.dtype), "bias": jnp.asarray(bias, x.dtype)} for kernel, bias in maps]
    return {name: _stacked([layer]) for name, layer in zip(("encoder", "decoder"), layers, strict=True)}


def energy(
    autoencoder: Autoencoder,
    params: PyTree,
    codes: Float[ArrayLike, "N k"],
    x: Float[ArrayLike, "N d"],
    *,
    alpha: ScalarLike,
    sparsity: ScalarLike = 0.0,
) -> Float[Array, "N"]:
    """The energy of each example with these codes.

        alpha |z - g(x)|^2 + |x - h(z)|^2 + sparsity sum_i |z_i|

    Parameters
    ----------
    autoencoder : Autoencoder
    params : pytree             of its `init`
    codes : array [N, k]        z
    x : array [N, d]
    alpha : scalar              >= 0, how much the encoder's own codes count
    sparsity : scalar           >= 0
    Returns
    -------
    array [N]
    Raises
    ------
    ValueError, TypeError       not an Autoencoder, a negative alpha or sparsity, arrays that are not [N, k] and [N, d]
    Source: Ranzato, Boureau, Chopra & LeCun 2007, AISTATS.    Experiment: f18.
    """
    params, x, weights = _admitted(autoencoder, params, x, alpha, sparsity)
    codes = checks.floating("codes", codes, ndim=2)
    codes = jnp.asarray(checks.shape("codes", codes, (x.shape[0], codes.shape[1])))
    encoded = autoencoder.encode(params, x)
    return _smooth(autoencoder, params, jnp.asarray(x), encoded, weights[0], codes) + _penalty(weights, codes)


def optimal_codes(
    autoencoder: Autoencoder,
    params: PyTree,
    x: Float[ArrayLike, "N d"],
    *,
    alpha: ScalarLike,
    sparsity: ScalarLike = 0.0,
    steps: int = 200,
    start: Float[ArrayLike, "N k"] | None = None,
) -> Codes:
    """The codes at a minimum of the energy, for these weights, by proximal gradient steps.

        z <- shrink(z - t dE/dz, t sparsity),    shrink(v, c) = sign(v) max(|v| - c, 0)

    Each example has a step t of its own, halved where the energy's quadratic bound fails, so that no energy rises
    beyond rounding; below it the bound is taken of the slopes.

    Parameters
    ----------
    autoencoder : Autoencoder
    params : pytree             of its `init`
    x : array [N, d]
    alpha, sparsity : scalar    of the energy, >= 0
    steps : int                 >= 1, tried; the residual says whether they were enough
    start : array [N, k]        codes to begin from; None: the encoder's own
    Returns
    -------
    Codes
    Raises
    ------
    ValueError, TypeError       as `energy`; steps < 1, a start of another shape
    Source: Beck & Teboulle 2009, SIAM J. Imaging Sci. 2 (ISTA with backtracking).    Experiment: f18.
    """
    admitted = _admitted(autoencoder, params, x, alpha, sparsity)
    steps = checks.whole("steps", steps)
    if start is not None:
        form = jax.eval_shape(autoencoder.encode, *admitted[:2])
        start = checks.shape("start", checks.floating("start", start, ndim=2), form.shape)
    return _optimal(autoencoder, *admitted, start, steps)


def pretrain(
    key: Key[Array, ""],
    x: Float[ArrayLike, "N d"],
    fit: Callable[[Autoencoder, PyTree, Array], PyTree],
    *,
    widths: Sequence[int],
    activation: Callable[[Array], Array],
    weight_variance: ScalarLike,
    bias_variance: ScalarLike,
) -> PyTree:
    """Greedy layer-wise pretraining: every layer is trained as a shallow autoencoder of what the layers before it give.

    Parameters
    ----------
    key : key                   of the shallow autoencoders' weights
    x : array [N, widths[0]]
    fit : function              (autoencoder, params, inputs) -> params: the caller's training of a shallow one
    widths : sequence of int    input, hidden layers, code; codes and outputs stay linear
    activation : function       elementwise, of the hidden layers
    weight_variance, bias_variance : scalar    of the shallow autoencoders, >= 0
    Returns
    -------
    params                      of `network` with these settings
    Raises
    ------
    ValueError, TypeError       as `network`; a `fit` that does not take three arguments, x of another width
    Source: Bengio, Lamblin, Popovici & Larochelle 2007, NeurIPS 19.    Experiment: f4.
    """
    checks.key("key", key)
    widths = checks.wholes("widths", widths, fewest=2)
    x = checks.floating("x", x, ndim=2)
    fit = checks.accepts("fit", fit, 3, "fit(autoencoder, params, inputs)")
    activation = checks.accepts("activation", activation, 1, "activation(x)")
    physics = {"activation": activation, "weight_variance": weight_variance, "bias_variance": bias_variance}
    last = len(widths) - 2
    nets = [
        network(
            widths=pair,
            code_activation=None if number == last else activation,
            output_activation=None if number == 0 else activation,
            **physics,
        )
        for number, pair in enumerate(itertools.pairwise(widths))
    ]
    encoders, decoders, x = [], [], jnp.asarray(x)
    for net, layer_key in zip(nets, jax.random.split(key, len(nets)), strict=True):
        params = fit(net, net.init(layer_key, x), x)
        x = net.encode(params, x)
        encoders.append(params["encoder"]["readout"])
        decoders.insert(0, params["decoder"]["readout"])
    return {"encoder": _stacked(encoders), "decoder": _stacked(decoders)}


def _elementwise(name, function):
    return Partial(_identity) if function is None else checks.as_pytree(checks.accepts(name, function, 1, f"{name}(x)"))


def _identity(x):
    return x


def _init(code, encoder, decoder, key, x):
    checks.key("key", key)
    keys = jax.random.split(key)
    codes = jnp.zeros((1, code.width), jnp.result_type(x))
    return {"encoder": encoder.init(keys[0], x), "decoder": decoder.init(keys[1], codes)}


def _encode(code, encoder, after, params, x):
    return after(encoder.apply(params["encoder"], x)[..., : code.width])


def _spread(code, encoder, params, x):
    return encoder.apply(params["encoder"], x)[..., code.width :]


def _decode(decoder, after, params, codes):
    return after(decoder.apply(params["decoder"], codes))


def _admitted(autoencoder, params, x, alpha, sparsity):
    """(params, x, (alpha, sparsity)), checked."""
    checks.instance("autoencoder", autoencoder, Autoencoder, hint="made by autoencoder.network")
    weights = checks.variance("alpha", alpha, shape=()), checks.variance("sparsity", sparsity, shape=())
    return checks.leaves("params", params), checks.floating("x", x, ndim=2), weights


def _smooth(autoencoder, params, x, encoded, alpha, codes):
    apart = jnp.sum((codes - encoded) ** 2, axis=-1)
    return alpha * apart + jnp.sum((x - autoencoder.decode(params, codes)) ** 2, axis=-1)


def _penalty(weights, codes):
    return weights[1] * jnp.sum(jnp.abs(codes), axis=-1)


@functools.partial(jit, static_argnames="steps")
def _optimal(autoencoder, params, x, weights, start, steps):
    encoded = autoencoder.encode(params, x)
    begin = encoded if start is None else jnp.asarray(start, encoded.dtype)

    def smooth(codes):
        return _smooth(autoencoder, params, x, encoded, weights[0], codes)

    def look(codes):
        value, pull = jax.vjp(smooth, codes)
        return value, pull(jnp.ones_like(value))[0]

    def step(state, _):
        codes, size, _, (value, slope) = state
        moved = _shrunk(codes - size[:, None] * slope, size[:, None] * weights[1])
        found, way = look(moved), moved - codes
        bend = jnp.sum(way**2, axis=-1) / (2 * size)
        # A difference of energies below their rounding says nothing; slopes still do (Hager & Zhang 2005, eq. 4.1).
        blind = bend <= 8 * jnp.finfo(x.dtype).eps * jnp.abs(value)
        holds = found[0] <= value + jnp.sum(slope * way, axis=-1) + bend
        taken = jnp.where(blind, jnp.sum((found[1] - slope) * way, axis=-1) <= 2 * bend, holds)
        codes, at = _taken(taken, (moved, found), (codes, (value, slope)))
        residual = jnp.linalg.norm(way, axis=-1) / size
        return (codes, jnp.where(taken, 1.2 * size, size / 2), residual, at), value + _penalty(weights, state[0])

    state = begin, jnp.ones(len(x), encoded.dtype), jnp.zeros(len(x), encoded.dtype), look(begin)
    (codes, *_, residual, _), energies = lax.scan(step, state, length=steps)
    last = smooth(codes) + _penalty(weights, codes)
    return Codes(codes, jnp.concatenate([energies, last[None]]), residual)


def _taken(taken, moved, before):
    """For each example what is new where it is taken, and what was."""
    choose = lambda new, old: jnp.where(taken.reshape(-1, *[1] * (new.ndim - 1)), new, old)  # noqa: E731
    return jax.tree.map(choose, moved, before)


def _shrunk(values, by):
    return jnp.sign(values) * jnp.maximum(jnp.abs(values) - by, jnp.zeros_like(values))


def _stacked(layers):
    """Parameters of a dense network from those of its layers, the last being the readout."""
    *hidden, readout = layers
    runs = [hidden[:1]] if hidden else []
    runs += [list(run) for _, run in itertools.groupby(hidden[1:], key=lambda layer: layer["kernel"].shape)]
    stretches = tuple(jax.tree.map(lambda *leaves: jnp.stack(leaves), *run) for run in runs)
    return {"hidden": stretches, "readout": readout}
