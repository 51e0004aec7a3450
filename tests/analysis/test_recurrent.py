"""Measured Jacobians through time against products in NumPy, and beside the bounds and the carousel's prediction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl import activations
from numdl.analysis import recurrent as measured
from numdl.networks import core, initializers, recurrent
from numdl.theory import recurrent as predicted


def cell_of(kind, width, recurrent_variance=1.0, **more):
    laws = {
        "width": width,
        "input_weights": initializers.variance_scaling(1.0),
        "recurrent_weights": initializers.variance_scaling(recurrent_variance),
        "bias_variance": 0.1,
    }
    builder = {"lstm": recurrent.lstm, "gru": recurrent.gru, "vanilla": recurrent.vanilla}[kind]
    return builder(**{**laws, **more})


def setting(kind, steps=12, examples=2, features=3, width=4, dtype=None, **more):
    if kind == "vanilla":
        more = {"activation": activations.tanh, **more}
    if kind == "lstm":
        more = {"forget_bias": 1.0, **more}
    cell = cell_of(kind, width, **more)
    dtype = jnp.result_type(float) if dtype is None else dtype
    params = cell.init(jax.random.key(1), features, dtype)
    inputs = jax.random.normal(jax.random.key(2), (steps, examples, features), dtype)
    return cell, params, cell.start(examples, dtype), inputs


@pytest.mark.float32
@pytest.mark.parametrize("kind", ["vanilla", "lstm", "gru"])
def test_norms_are_those_of_the_network_s_jacobians(kind):
    cell, params, start, inputs = setting(kind)
    through = measured.gradient_through_time(cell.step, params, start, inputs)
    assert through.log_norm.shape == through.log_step.shape == (12, 2)
    net = recurrent.many_to_one(cell, outputs=1, readout_weights=initializers.lecun_normal)
    x = jnp.swapaxes(inputs, 0, 1)
    params = {"cell": params, "readout": {"kernel": jnp.zeros((4, 1)), "bias": jnp.zeros(1)}}
    for example in (0, 1):
        for t in (1, 6, 11):
            jacobian = core.jacobian(net, params, x[example][None], start=t, stop=12)
            expected = np.log(np.linalg.norm(np.asarray(jacobian, np.float64), 2))
            np.testing.assert_allclose(through.log_norm[t, example], expected, atol=1e-4)
    np.testing.assert_allclose(through.log_norm[-1], through.log_step[-1], atol=1e-5)


@pytest.mark.float32
@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_a_thousand_steps_stay_in_range(scale):
    w = np.array([[0.9, 1.0], [0.0, 0.9]]) * scale
    params = {"w": jnp.asarray(w, jnp.float32)}
    inputs = jnp.zeros((1000, 1, 1), jnp.float32)
    through = measured.gradient_through_time(
        lambda params, h, x: h @ params["w"], params, jnp.ones((1, 2), jnp.float32), inputs
    )
    exact = predicted.transient_growth(w, steps=1000)
    np.testing.assert_allclose(through.log_norm[::-1, 0], exact.log_norm, rtol=1e-4, atol=1e-3)


def test_a_jordan_block_grows_fourfold_in_the_linear_cell():
    cell, params, start, inputs = setting("vanilla", steps=60, width=2, activation=activations.identity)
    params = {**params, "recurrent": jnp.array([[0.9, 1.0], [0.0, 0.9]])}
    through = measured.gradient_through_time(cell.step, params, start, inputs)
    np.testing.assert_allclose(np.exp(through.log_norm.max(axis=0)), 3.9, atol=0.05)
    assert int(through.log_norm[:, 0].argmax()) == 60 - 9


@pytest.mark.parametrize("activation", [activations.tanh, activations.sigmoid, activations.relu])
@pytest.mark.parametrize("variance", [0.1, 4.0])
def test_the_bound_holds(activation, variance):
    cell, params, start, inputs = setting(
        "vanilla", steps=30, width=16, activation=activation, recurrent_variance=variance
    )
    sigma = np.linalg.norm(np.asarray(params["recurrent"]), 2)
    bound = predicted.gradient_through_time(
        steps=30, largest_singular_value=sigma, largest_slope=predicted.largest_slope(activation)
    )
    through = measured.gradient_through_time(cell.step, params, start, inputs)
    assert (np.asarray(through.log_norm) <= bound.log_norm[:, None] + 1e-9).all()
    if bound.vanishes:
        assert float(through.log_norm[0].max()) < 30 * bound.log_rate + 1e-9 < 0


def test_a_large_singular_value_does_not_suffice_for_an_explosion():
    cell, params, start, inputs = setting("vanilla", steps=200, width=2)
    params = {**params, "recurrent": jnp.array([[0.9, 1.0], [0.0, 0.9]])}
    sigma = np.linalg.norm(np.asarray(params["recurrent"]), 2)
    assert predicted.gradient_through_time(steps=200, largest_singular_value=sigma, largest_slope=1.0).may_explode
    through = measured.gradient_through_time(cell.step, params, start, inputs)
    assert float(through.log_norm[0].max()) < -10


def test_a_dead_step_gives_minus_infinity_not_nan():
    cell, params, start, inputs = setting("vanilla", steps=5, activation=activations.relu)
    params = {**params, "bias": jnp.full(4, -100.0)}
    through = measured.gradient_through_time(cell.step, params, start, inputs)
    assert np.isneginf(np.asarray(through.log_norm)).all()


@pytest.mark.float32
def test_the_carousel_is_the_product_of_the_forget_gates():
    cell, params, start, inputs = setting("lstm")
    carousel = measured.carousel(cell.step, params, start, inputs)
    np.testing.assert_array_equal(carousel.leak, 0)
    p = {name: np.asarray(leaf, np.float64)[1] for name, leaf in params.items()}
    carries = recurrent.run(cell, params, start, inputs)
    h = np.concatenate([np.zeros((1, 2, 4)), np.asarray(carries.hidden, np.float64)[:-1]])
    gates = 1 / (1 + np.exp(-(h @ p["recurrent"] + np.asarray(inputs, np.float64) @ p["input"] + p["bias"])))
    np.testing.assert_allclose(carousel.log_gradient, np.cumsum(np.log(gates), axis=0), atol=1e-4)


def test_the_carousel_is_the_predicted_one_in_the_mean():
    # Without recurrent weights a gate's pre-activation is Gaussian over units: variance |x|^2 / d + bias variance.
    cell, params, start, _ = setting(
        "lstm", width=1000, features=4, examples=1, recurrent_variance=0.0, forget_bias=2.0
    )
    inputs = jnp.broadcast_to(jnp.array([[[1.0, -1.0, 2.0, 0.0]]]), (3, 1, 4))
    memory = np.asarray(measured.carousel(cell.step, params, start, inputs).log_gradient)[:, 0]
    expected = predicted.carousel(steps=3, forget_bias=2.0, gate_variance=6 / 4 + 0.1)
    stderr = memory.std(axis=1, ddof=1) / np.sqrt(1000)
    assert (np.abs(memory.mean(axis=1) - expected) < 6 * stderr).all()
    assert stderr[0] < 0.02


def test_a_memory_that_mixes_units_is_told():

    mix = jnp.array([[1.0, 0.5], [0.0, 1.0]])
    start = recurrent.Memory(jnp.zeros((1, 2)), jnp.ones((1, 2)))
    carousel = measured.carousel(
        lambda params, carry, x: recurrent.Memory(carry.hidden, carry.cell @ mix), {}, start, jnp.zeros((3, 1, 1))
    )
    np.testing.assert_allclose(carousel.leak, 0.5)


@pytest.mark.float32
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_accumulated_in_single(dtype):
    # A cell that is exact in half precision: only the accumulation could lose anything.
    gate, steps = 0.75, 300
    start = recurrent.Memory(jnp.zeros((1, 2), dtype), jnp.ones((1, 2), dtype))
    inputs = jnp.zeros((steps, 1, 1), dtype)

    def step(params, carry, x):
        return recurrent.Memory(carry.hidden, jnp.asarray(gate, dtype) * carry.cell)

    carousel = measured.carousel(step, {}, start, inputs)
    assert carousel.log_gradient.dtype == carousel.leak.dtype == jnp.float32
    expected = np.arange(1, steps + 1) * np.log(gate)
    np.testing.assert_allclose(carousel.log_gradient[:, 0, 0], expected, rtol=1e-5)
    turn = jnp.array([[0.0, 0.5], [-1.0, 0.0]], dtype)
    through = measured.gradient_through_time(lambda params, h, x: h @ turn, {}, start.cell, inputs)
    assert through.log_norm.dtype == through.log_step.dtype == jnp.float32
    np.testing.assert_allclose(through.log_step, 0.0, atol=1e-5)
    np.testing.assert_allclose(through.log_norm[0, 0], steps / 2 * np.log(0.5), rtol=1e-5)


def test_bad_input_is_named():
    cell, params, start, inputs = setting("gru")
    with pytest.raises(TypeError, match=r"step .*got 3"):
        measured.gradient_through_time(3, params, start, inputs)
    with pytest.raises(ValueError, match=r"start must have inputs' 2 examples .*got \{1\}"):
        measured.gradient_through_time(cell.step, params, start[:1], inputs)
    with pytest.raises(ValueError, match=r"field must be one of the carry's.*got 'cell'"):
        measured.carousel(cell.step, params, start, inputs)
