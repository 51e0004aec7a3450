"""Sequence to sequence against a NumPy loop, and what attention changes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.networks import core, initializers, recurrent, sequences
from tests.networks.test_recurrent import CELLS, EXAMPLES, FEATURES, STEPS, WIDTH, inputs, numpy_step, tolerance

pytestmark = pytest.mark.float32

OUTPUTS, WRITTEN, KEYS = 2, 4, 3
WEIGHTS = initializers.variance_scaling(1.0)


def made(kind, attending=True, **more):
    looks = {"key_width": KEYS, "query_key_weights": initializers.variance_scaling(9.0)} if attending else {}
    sizes = {"outputs": OUTPUTS, "steps": WRITTEN, "readout_weights": WEIGHTS}
    return sequences.network(CELLS[kind](), CELLS[kind](), **{**sizes, **looks, **more})


def numpy_written(kind, params, x):
    """(carries of the encoder, of the decoder, outputs, weights), one step after the other."""
    x, p = np.asarray(x, np.float64), jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    carry, encoded, decoded, outputs, weights = tuple(np.zeros((EXAMPLES, WIDTH)) for _ in range(2)), [], [], [], []
    for t in range(x.shape[1]):
        carry = numpy_step(kind, params["encoder"], carry, x[:, t])
        encoded.append(carry)
    given = np.zeros((EXAMPLES, OUTPUTS))
    for _ in range(WRITTEN):
        if "query" in params:
            looked = np.zeros((EXAMPLES, WIDTH))
            rows = np.zeros((EXAMPLES, len(encoded)))
            for n in range(EXAMPLES):
                scores = [carry[0][n] @ p["query"] @ (m[0][n] @ p["key"]) / np.sqrt(KEYS) for m in encoded]
                rows[n] = np.exp(scores) / np.exp(scores).sum()
                looked[n] = sum(w * m[0][n] for w, m in zip(rows[n], encoded, strict=True))
            weights.append(rows)
            given = np.hstack([given, looked])
        carry = numpy_step(kind, params["decoder"], carry, given)
        decoded.append(carry)
        given = carry[0] @ p["readout"]["kernel"] + p["readout"]["bias"]
        outputs.append(given)
    pack = lambda carries: np.stack([np.concatenate(c, axis=-1) for c in carries])  # noqa: E731
    return pack(encoded), pack(decoded), np.stack(outputs, axis=1), np.stack(weights, axis=1) if weights else None


@pytest.mark.parametrize(
    ("kind", "attending"),
    [("lstm", True), *(pytest.param(*case, marks=pytest.mark.slow) for case in (("gru", False), ("vanilla", True)))],
)
def test_it_writes_what_a_loop_writes(kind, attending):
    net, x = made(kind, attending), inputs(jax.random.key(1))
    params = net.init(jax.random.key(0), x)
    encoded, decoded, outputs, weights = numpy_written(kind, params, x)
    states = net.states(params, x)
    close = {"rtol": 0, "atol": 20 * tolerance(x)}
    np.testing.assert_allclose(states[0], encoded, **close)
    np.testing.assert_allclose(states[1], decoded, **close)
    np.testing.assert_allclose(net.apply(params, x), outputs, **close)
    assert states[2].shape == (1, EXAMPLES, WRITTEN, WIDTH)
    if attending:
        found = sequences.alignments(net, params, x)
        np.testing.assert_allclose(found, weights, **close)
        assert np.ptp(np.asarray(found)) > 0.01


def test_attention_is_a_way_for_gradients_around_the_encoder():
    """A cell that forgets everything in one step: without attention only the last input is felt."""
    laws = {"width": WIDTH, "input_weights": WEIGHTS, "bias_variance": 0.0, "activation": jnp.tanh}
    forgets = recurrent.vanilla(recurrent_weights=initializers.variance_scaling(0.0), **laws)
    x, sizes = inputs(jax.random.key(1)), {"outputs": OUTPUTS, "steps": 1, "readout_weights": WEIGHTS}
    felt = {}
    for attending in (False, True):
        looks = {"key_width": KEYS, "query_key_weights": WEIGHTS} if attending else {}
        net = sequences.network(forgets, CELLS["vanilla"](), **sizes, **looks)
        params = net.init(jax.random.key(0), x)
        gradients = core.state_gradients(net, params, x, lambda outputs: jnp.sum(outputs**2))
        felt[attending] = np.abs(np.asarray(gradients[0])).max(axis=(1, 2))
    np.testing.assert_array_equal(felt[False][:-1], 0)
    assert felt[False][-1] > 0
    assert (felt[True] > 1e-3).all()


def test_bad_arguments_are_named():
    x = inputs(jax.random.key(1))
    plain = made("gru", attending=False)
    params = plain.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="network must have a key_width"):
        sequences.alignments(plain, params, x)
    one = recurrent.many_to_one(CELLS["gru"](), outputs=1, readout_weights=WEIGHTS)
    with pytest.raises(ValueError, match="network must be made by"):
        sequences.alignments(one, params, x)
    with pytest.raises(TypeError, match="query_key_weights"):
        made("gru", query_key_weights=None)
    with pytest.raises((ValueError, TypeError), match="decoder"):
        sequences.network(CELLS["gru"](), CELLS["gru"](width=WIDTH + 1), outputs=1, steps=1, readout_weights=WEIGHTS)
    with pytest.raises(ValueError, match="x must have shape"):
        plain.apply(params, jnp.ones((EXAMPLES, STEPS, FEATURES + 1)))
