"""Theory beside measurement, in standard errors: lengths, correlations, products, gradients, Jacobian spectra.

Every case is a prediction and samples of the same quantity over random networks; nothing is compared within a chosen
percentage. Theory of infinite width meets networks of finite width through a fit: the mean at width n is taken as
a + b / n, and a is what is predicted. The limit for |z| is one for the whole file.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl import activations, statistics
from numdl.analysis import gradients as measured_gradients
from numdl.analysis import jacobian as measured_jacobian
from numdl.analysis import propagation as measured_propagation
from numdl.networks import core, dense, initializers
from numdl.theory import gradients as predicted_gradients
from numdl.theory import jacobian as predicted_jacobian
from numdl.theory import propagation as predicted_propagation
from tests.selection import some_fast

LIMIT = statistics.z_limit(500)  # numbers compared in this file, and some more
WIDTHS = (32, 64)
DEPTH = 4
SEEDS = 1000


# activation, weight variance, bias variance: ordered, near critical and chaotic
SETTINGS = [
    (activations.tanh, 0.9, 0.0),
    (activations.tanh, 1.76, 0.05),
    (activations.tanh, 3.0, 0.1),
    (activations.relu, 1.5, 0.2),
    (activations.relu, 2.0, 0.0),
    (activations.relu, 2.6, 0.05),
    (activations.erf, 0.8, 0.1),
    (activations.erf, 1.6, 0.05),
    (activations.gelu, 1.5, 0.3),
    (activations.gelu, 2.2, 0.1),
    (activations.identity, 0.9, 0.1),
    (activations.identity, 1.2, 0.0),
]
NAMES = [f"{a.name}-{w}-{b}" for a, w, b in SETTINGS]


def at_infinite_width(samples, widths=WIDTHS):
    """Samples whose mean is the intercept a of the least-squares fit a + b / n to the means at these widths.

    The intercept is a fixed combination of the means, sum_i c_i mean_i, with c the first row of the pseudo-inverse of
    [1, 1/n_i]; the same combination of samples has that mean and the right spread. What the fit leaves out is of
    order 1 / n^2.
    """
    design = np.stack([np.ones(len(widths)), 1 / np.asarray(widths, float)], axis=1)
    weights = np.linalg.pinv(design)[0]
    return sum(c * np.asarray(s, np.float64) for c, s in zip(weights, samples, strict=True))


def agree(predicted, samples):
    return statistics.agreement(predicted, samples)


def network(width, activation, weight_variance, bias_variance, depth=DEPTH, **law):
    weights = law or {"weight_variance": weight_variance}
    return dense.network(
        widths=(4, *(width,) * (depth + 1)), activation=activation, bias_variance=bias_variance, **weights
    )


def keys(name):
    """A key for each width and case: samples of different widths must be independent."""
    return [jax.random.key(sum(map(ord, name)) * 1000 + width) for width in WIDTHS]


def theory(setting):
    activation, weight_variance, bias_variance = setting
    return {"activation": activation, "weight_variance": weight_variance, "bias_variance": bias_variance}


def pair(correlation):
    """Two inputs of mean square 1 in four dimensions."""
    other = [2 * correlation, 2 * math.sqrt(1 - correlation**2), 0.0, 0.0]
    return jnp.asarray([[[2.0, 0.0, 0.0, 0.0], other]], jnp.float32)


# ---- the comparisons: (predicted, samples) -------------------------------------------------------------------------


def lengths(setting, seeds=SEEDS):
    samples = [
        measured_propagation.lengths(key, network(width, *setting), pair(0.0)[0, :1], seeds=seeds)
        for width, key in zip(WIDTHS, keys("lengths"), strict=True)
    ]
    return predicted_propagation.lengths(1.0, depth=DEPTH, **theory(setting)), at_infinite_width(samples)


def correlations(setting, seeds=SEEDS):
    _, weight_variance, bias_variance = setting
    q = predicted_propagation.lengths(1.0, depth=DEPTH, **theory(setting))
    first = (0.4 * weight_variance + bias_variance) / q[0]
    later = predicted_propagation.correlations(first, depth=DEPTH - 1, q=q, **theory(setting))
    samples = [
        measured_propagation.correlations(key, network(width, *setting), pair(0.4), seeds=seeds)[:, 0]
        for width, key in zip(WIDTHS, keys("correlations"), strict=True)
    ]
    return np.append(first, later), at_infinite_width(samples)


def gradients(setting, seeds=SEEDS):
    samples = [
        measured_gradients.growth(key, network(width, *setting), pair(0.0)[0, :1], seeds=seeds).log_ratio
        for width, key in zip(WIDTHS, keys("gradients"), strict=True)
    ]
    return predicted_gradients.growth(1.0, depth=DEPTH, **theory(setting)).log_products, at_infinite_width(samples)


@pytest.mark.parametrize("compare", [lengths, correlations, gradients])
@pytest.mark.parametrize("place", some_fast(range(len(SETTINGS)), fast=(1,)), ids=NAMES)
def test_wide_networks(place, compare):
    setting = SETTINGS[place]
    assert np.all(np.abs(agree(*compare(setting)).z) < LIMIT)


# ---- exact at every width ------------------------------------------------------------------------------------------

FINITE = [
    (activations.relu, (4, 20, 20, 20, 20, 20, 20, 20), 2.0),
    (activations.relu, (4, 10, 30, 15, 5), 1.3),
    (activations.relu, (4, 12, 12, 12, 12), 4.0),
    (activations.identity, (4, 8, 8, 8, 8), 1.0),
    (activations.identity, (4, 6, 20, 9, 3), 0.5),
]


def norms_of_gradients(activation, widths, weight_variance, told_weight_variance=None):
    """The law at the very widths, moments of the logarithm: no fit. Networks with a dead layer are left out."""
    net = dense.network(widths=widths, activation=activation, weight_variance=weight_variance, bias_variance=0.3)
    logs = measured_gradients.growth(jax.random.key(7), net, pair(0.0)[0, :1], seeds=2 * SEEDS).log_ratio
    law = predicted_gradients.log_norm(
        widths=widths, weight_variance=told_weight_variance or weight_variance, activation=activation
    )
    logs = np.asarray(logs, np.float64)
    logs = logs[np.isfinite(logs).all(axis=1)]
    return np.append(law.log_mean, law.log_variance), np.concatenate([logs, (logs - law.log_mean) ** 2], axis=1)


@pytest.mark.parametrize("activation, widths, weight_variance", some_fast(FINITE, fast=(0, 1)))
def test_log_norms_of_gradients_at_finite_width(activation, widths, weight_variance):
    case = activation, widths, weight_variance
    assert np.all(np.abs(agree(*norms_of_gradients(*case)).z) < LIMIT)


PRODUCTS = [(n, depth, gain) for n in (2, 5, 20) for depth, gain in ((1, 1.0), (4, 0.3), (12, 1.0), (30, 2.0))]


@pytest.mark.parametrize("width, depth, gain", some_fast(PRODUCTS, fast=(0, 1, 2)))
def test_products_of_matrices(width, depth, gain):
    law = predicted_jacobian.product_norm(width=width, depth=depth, entry_variance=gain / width, excess_kurtosis=0.0)
    sampler = initializers.normal(gain / width)
    found = measured_jacobian.product_norm(
        jax.random.key(width), width=width, depth=depth, sampler=sampler, draws=SEEDS
    ).log_norm[:, -1]
    logs = np.asarray(found, np.float64)
    pairs = np.stack([logs, (logs - law.log_mean) ** 2], axis=1)
    assert np.all(np.abs(agree([law.log_mean, law.log_variance], pairs).z) < LIMIT)


@pytest.mark.parametrize("width", [2, 6])
def test_lyapunov_exponents(width):
    law = predicted_jacobian.lyapunov_exponents(width=width, entry_variance=0.3)
    found = measured_jacobian.lyapunov_exponents(
        jax.random.key(1), width=width, depth=SEEDS, sampler=initializers.normal(0.3)
    )
    assert np.all(np.abs(agree(law.exponents, found.log_growth).z) < LIMIT)


# ---- Jacobian spectra ----------------------------------------------------------------------------------------------

SPECTRA = [
    (activation, weight_variance, orthogonal)
    for activation, weight_variance in (
        (activations.tanh, 1.2),
        (activations.tanh, 2.5),
        (activations.relu, 2.0),
        (activations.hard_tanh, 1.05),
        (activations.identity, 1.0),
    )
    for orthogonal in (False, True)
][:-1]  # orthogonal and linear: no spread to measure in, see below


def spectra(activation, weight_variance, orthogonal):
    """ln mean s^2 and the relative variance of s^2 of dy_3 / dy_1, two layers."""
    setting = (activation, weight_variance, 0.05)
    law = {"initializer": initializers.orthogonal(weight_variance)} if orthogonal else {}
    samples = []
    for width, key in zip(WIDTHS, keys("spectra"), strict=True):
        net = network(width, *setting, depth=3, **law)
        s = measured_jacobian.spectra(key, net, pair(0.0)[0, :1], seeds=400, start=1, stop=3)
        found = measured_jacobian.isometry(s)
        samples.append(np.stack([np.log(found.gain), 1 / np.asarray(found.score, np.float64) - 1], axis=1))
    q = predicted_propagation.lengths(1.0, depth=2, **theory(setting))
    told = predicted_jacobian.squared_singular_values(
        depth=2, q=q, activation=activation, weight_variance=weight_variance, orthogonal=orthogonal
    )
    return np.stack([told.log_expectation, told.relative_variance]), at_infinite_width(samples)


@pytest.mark.parametrize("activation, weight_variance, orthogonal", some_fast(SPECTRA, fast=(0, 3)))
def test_spectra_of_jacobians(activation, weight_variance, orthogonal):
    case = activation, weight_variance, orthogonal
    assert np.all(np.abs(agree(*spectra(*case)).z) < LIMIT)


def test_orthogonal_linear_networks_are_isometries_to_rounding():
    predicted, samples = spectra(activations.identity, 1.0, True)
    np.testing.assert_array_equal(predicted, 0)
    np.testing.assert_allclose(samples, 0, atol=1e-5)


# ---- residual networks and dropout ---------------------------------------------------------------------------------


def blocks(width, depth, step, activation, weight_variance, second):
    """y + h f(y K) V, V absent if second is None; the outputs are y_L."""

    def init(key, x):
        draws = jax.random.normal(key, (2, depth, width, width), x.dtype) / math.sqrt(width)
        return math.sqrt(weight_variance) * draws[0], math.sqrt(second or 1.0) * draws[1]

    def states(params, x, probes=None):
        def block(y, given):
            K, V, probe = given
            value = activation(y @ K)
            y = y + step * (value if second is None else value @ V) + probe
            return y, y

        probes = jnp.zeros((depth, *x.shape), x.dtype) if probes is None else probes[0]
        return (jax.lax.scan(block, x, (*params, probes))[1],)

    return core.Network(init, states, lambda params, y: y)


def dropout(width, depth, activation, weight_variance, keep):
    """y_1 = x W_1, y_{l+1} = (mask / keep * f(y_l)) W_{l+1}; the masks are parameters, the readout one more layer."""

    def init(key, x):
        weights, masks = jax.random.split(key)
        kernels = math.sqrt(weight_variance / width) * jax.random.normal(weights, (depth + 1, width, width), x.dtype)
        return kernels, jax.random.bernoulli(masks, keep, (depth, width)).astype(x.dtype) / keep

    def states(params, x, probes=None):
        def layer(y, given):
            kernel, mask, probe = given
            y = (mask[None, :] * activation(y)) @ kernel + probe
            return y, y

        kernels, masks = params
        probes = jnp.zeros((depth, *x.shape), x.dtype) if probes is None else probes[0]
        y = x @ kernels[0] + probes[0]
        later = jax.lax.scan(layer, y, (kernels[1:-1], masks[:-1], probes[1:]))[1]
        return (jnp.concatenate([y[None], later]),)

    return core.Network(init, states, lambda params, y: (params[1][-1][None, :] * activation(y)) @ params[0][-1])


RESIDUAL = [
    (activations.tanh, 1.5, None, 0.5),
    (activations.relu, 2.0, None, 0.3),
    (activations.relu, 2.0, 1.0, 0.5),
    (activations.tanh, 2.0, 0.7, 1.0),
]


@pytest.mark.parametrize("activation, weight_variance, second, step", some_fast(RESIDUAL, fast=(0,)))
def test_gradients_of_residual_networks(activation, weight_variance, second, step):
    samples = []
    for width, key in zip(WIDTHS, keys("residual"), strict=True):
        x = jnp.asarray([1.0, -1.0] * (width // 2), jnp.float32)[None]
        net = blocks(width, DEPTH, step, activation, weight_variance, second)
        samples.append(measured_gradients.growth(key, net, x, seeds=SEEDS).log_ratio)
    told = predicted_gradients.residual_growth(
        1.0,
        depth=DEPTH,
        step=step,
        activation=activation,
        weight_variance=weight_variance,
        bias_variance=0.0,
        second_weight_variance=second,
    )
    assert np.all(np.abs(agree(told.log_products, at_infinite_width(samples)).z[:-1]) < LIMIT)


@pytest.mark.parametrize(
    "activation, weight_variance, keep",
    some_fast([(activations.tanh, 1.7, 0.8), (activations.relu, 2.0, 0.6)], fast=(1,)),
)
def test_gradients_under_dropout(activation, weight_variance, keep):
    samples = []
    for width, key in zip(WIDTHS, keys("dropout"), strict=True):
        net = dropout(width, DEPTH, activation, weight_variance, keep)
        x = jnp.ones((1, width), jnp.float32)
        samples.append(measured_gradients.growth(key, net, x, seeds=SEEDS).log_ratio)
    told = predicted_gradients.growth(
        1.0,
        depth=DEPTH,
        activation=activation,
        weight_variance=weight_variance,
        bias_variance=0.0,
        keep_probability=keep,
    )
    assert np.all(np.abs(agree(told.log_products, at_infinite_width(samples)).z) < LIMIT)


# ---- what must fail ------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("compare", [lengths, gradients])
def test_a_weight_variance_wrong_by_5_percent_is_seen(compare):
    """The theory of the right network beside samples of one whose weight variance is 5 % larger."""
    setting = SETTINGS[-1]
    wrong = (setting[0], 1.05 * setting[1], setting[2])
    predicted, _ = compare(setting)
    _, samples = compare(wrong, seeds=4 * SEEDS)
    assert np.abs(agree(predicted, samples).z).max() > LIMIT


def test_a_weight_variance_wrong_by_5_percent_is_seen_at_finite_width():
    case = FINITE[0]
    wrong = norms_of_gradients(*case, told_weight_variance=1.05 * case[2])
    assert np.abs(agree(*wrong).z).max() > LIMIT


def test_a_finite_width_is_seen_without_the_fit():
    """The fit is needed: at width 8 alone the bias of ln g stands out."""
    net = network(8, activations.relu, 2.0, 0.0)
    logs = measured_gradients.growth(jax.random.key(3), net, pair(0.0)[0, :1], seeds=SEEDS).log_ratio
    told = predicted_gradients.growth(1.0, depth=DEPTH, **theory((activations.relu, 2.0, 0.0)))
    alive = np.isfinite(np.asarray(logs)).all(axis=1)
    assert np.abs(agree(told.log_products, np.asarray(logs)[alive]).z).max() > LIMIT
