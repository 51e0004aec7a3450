"""Archie's law of a rock's conductivity, fitted in two ways, and two models that do not know it (d1).

sigma / sigma_w = phi^m S^n / a,   x = (porosity phi, saturation S)
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from scipy.special import stdtrit

from numdl import activations
from numdl.optimize import gauss_newton, least_squares

LAW = np.array([np.log(0.62), 2.15, 2.0])  # ln a, m, n of the rock; sigma_w = 1
RELATIVE_NOISE, ABSOLUTE_NOISE = 0.01, 1e-6  # variances: of ln sigma; of sigma / sigma_w
LEVEL = 0.95


def student(freedom):
    """Half of an interval of LEVEL, in standard errors."""
    return stdtrit(freedom, (1 + LEVEL) / 2)


def rocks(random, count, low, high):
    """Porosity and saturation, [count, 2]."""
    return random.uniform([low, 0.5], [high, 1.0], (count, 2))


def features(x):
    """Columns of ln sigma = -ln a + m ln phi + n ln S."""
    return np.concatenate([-np.ones_like(x[..., :1]), np.log(x)], axis=-1)


def log_law(constants, x):
    """ln(sigma / sigma_w) of Archie's law at x [..., 2]."""
    return features(x) @ constants


def linear(x, logs):
    """Estimates and whether their intervals cover, from logarithms [draws, N]."""
    a = features(x)
    fit = np.asarray(least_squares.qr(jnp.asarray(a), jnp.asarray(logs.T)).solution).T
    return fit, _covers(fit, logs - fit @ a.T, np.linalg.inv(a.T @ a)[None])


def _covers(fit, residual, inverse):
    freedom = residual.shape[1] - fit.shape[1]
    variance = np.sum(residual**2, axis=1)[:, None] / freedom * np.diagonal(inverse, axis1=1, axis2=2)
    return np.abs(fit - LAW[None, :]) <= student(freedom) * np.sqrt(variance)


@jax.jit
def _gauss_newton(features, values):
    """Constants, residuals and the Jacobian for each draw, from ln a = 0, m = n = 1.5."""

    def residual(constants, features, y):
        return (jnp.exp(features @ constants) - y) / np.sqrt(ABSOLUTE_NOISE)

    def one(y):
        start = jnp.array([0.0, 1.5, 1.5], y.dtype)
        bound = Partial(residual, features=features, y=y)
        objective = gauss_newton.least_squares(bound)
        fit, history = gauss_newton.minimize(objective, start, steps=30, tolerance=1e-9)
        return fit, bound(fit), jax.jacfwd(bound)(fit), history.converged

    return lax.map(one, values)


def nonlinear(x, values):
    """Estimates, whether their intervals cover and whether Gauss-Newton converged, from values [draws, N]."""
    found = _gauss_newton(jnp.asarray(features(x)), jnp.asarray(values))
    fit, residual, jacobian, converged = (np.asarray(a) for a in found)
    inverse = np.linalg.inv(np.swapaxes(jacobian, 1, 2) @ jacobian)
    return fit, _covers(fit, residual, inverse), converged


@functools.partial(jax.jit, static_argnames="hidden")
def blind(key, x, values, probes, hidden):
    """What a cubic polynomial and a random network, fitted to the same numbers, say at the probes: [draws, points]."""
    cubic = least_squares.qr(_cubic(_scaled(x)), values.T).solution
    net = least_squares.extreme_learning_machine(
        key, _scaled(x), values.T, width=hidden, activation=activations.tanh, weight_variance=1.0, bias_variance=1.0
    )
    return (_cubic(_scaled(probes)) @ cubic).T, net.apply(_scaled(probes)).T


def _scaled(x):
    """The range of the data to [-1, 1]."""
    return (x - jnp.array([[0.2, 0.75]], x.dtype)) / jnp.array([[0.1, 0.25]], x.dtype)


def _cubic(x):
    return jnp.stack([x[:, 0] ** i * x[:, 1] ** j for i in range(4) for j in range(4 - i)], axis=1)
