"""Exact moments: quadrature against mpmath, and closed forms against Monte Carlo with one budget for the suite."""

import functools

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np

from numdl import activations
from numdl.analysis import products
from numdl.analysis import propagation as measured
from numdl.krylov import trace
from numdl.networks import dense, initializers
from numdl.statistics import z_limit
from numdl.theory import estimators, jacobian, propagation
from tests import oracles
from tests.verification import above, below, near, study

BUDGET = 1e-3  # false alarms expected in one run of the suite, over all comparisons together
SEED = 0  # `python -m tests.verification --seed` draws anew
DRAWS = 200_000
VARIANCES = (1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)


@study("Quadrature")
def quadrature(full):
    """Relative error of E f(sqrt(q) z)^2 and E f'(sqrt(q) z)^2 against mpmath, q from 1e-3 to 1e2."""
    for name in oracles.ACTIVATIONS if full else ("tanh",):
        f, slope, kinks = oracles.ACTIVATIONS[name]
        activation = activations.named(name)
        chosen = VARIANCES if full else (1.0, 100.0)
        for what, found, wanted in (
            ("square", activation.mean_square, lambda x, f=f: f(x) ** 2),
            ("slope square", activation.slope_mean_square, lambda x, slope=slope: slope(x) ** 2),
        ):
            exact = np.array([oracles.one_point(wanted, mp.mpf(q), kinks) for q in chosen])
            gap = np.abs(np.asarray(found(jnp.asarray(chosen))) / exact - 1).max()
            yield below(f"{name}: {what}", gap, 1e-12, f"{len(chosen)} variances")


# ---- Monte Carlo -----------------------------------------------------------------------------------------------------


def score(samples, exact, deviation=None):
    """z of the mean of independent samples along axis 0; with the exact standard deviation where it is known."""
    samples = np.asarray(samples, np.float64)
    deviation = samples.std(axis=0, ddof=1) if deviation is None else np.asarray(deviation)
    return np.ravel((samples.mean(axis=0) - exact) / (deviation / np.sqrt(len(samples))))


def draws(number):
    return jax.random.fold_in(jax.random.key(SEED), number), np.random.default_rng([SEED, number])


def weights(draws_each=DRAWS // 10):
    """Mean and mean square of one entry of every initializer, in every mode."""
    made = {f"{law}, {mode}": initializers.variance_scaling(1.7, mode=mode, law=law) for law, mode in _laws()}
    made |= {"orthogonal": initializers.orthogonal(1.7), "he_normal": initializers.he_normal}
    for number, (name, law) in enumerate(made.items()):
        keys = jax.random.split(jax.random.fold_in(draws(1)[0], number), draws_each)
        shape = (3, 3, 2, 4) if name != "orthogonal" else (6, 4)
        entries = np.asarray(
            jax.vmap(lambda key, law=law, shape=shape: law.sample(key, shape, jnp.float64).ravel()[5])(keys)
        )
        if name != "rademacher, fan_in":  # whose square is a constant
            yield name, score(np.stack([entries, entries**2], 1), [0.0, float(law.entry_variance(shape))])


def _laws():
    normal = [("normal", mode) for mode in initializers.MODES]
    return normal + [(law, "fan_in") for law in ("uniform", "truncated_normal", "rademacher")]


def norms():
    """|W_L ... W_1 y|^2: mean, mean of the logarithm and of the square; Lyapunov exponents."""
    key, _ = draws(2)
    for law, kurtosis in (("normal", 0.0), ("uniform", -1.2)):
        sampler = initializers.variance_scaling(1.3, law=law)
        found = products.product_norm(key, width=6, depth=3, sampler=sampler, draws=DRAWS // 10)
        exact = jacobian.product_norm(width=6, depth=3, entry_variance=1.3 / 6, excess_kurtosis=kurtosis)
        squares = np.exp(np.asarray(found.log_norm)[:, -1])
        yield f"mean of the norm, {law}", score(squares, exact.mean)
        if kurtosis == 0:
            deviation = np.sqrt(exact.log_variance)
            yield "mean of its logarithm", score(np.asarray(found.log_norm)[:, -1], exact.log_mean, deviation)
        spread = (squares / exact.mean - 1) ** 2
        yield f"variance of the norm, {law}", score(spread, exact.relative_variance)
    sampler = initializers.variance_scaling(1.3)
    found = products.lyapunov_exponents(key, width=5, depth=DRAWS // 20, sampler=sampler)
    exact = jacobian.lyapunov_exponents(width=5, entry_variance=1.3 / 5)
    yield "Lyapunov exponents", score(found.log_growth, exact.exponents, np.sqrt(exact.variance))


def lengths():
    """Mean squares of a linear network's layers, exact at every width."""
    network = dense.network(
        widths=(5, 7, 7, 7, 2), activation=activations.identity, weight_variance=1.2, bias_variance=0.3
    )
    x = jnp.asarray(np.linspace(-1, 2, 5)).reshape(1, 5)
    found = measured.lengths(draws(3)[0], network, x, seeds=DRAWS // 40)
    exact = propagation.lengths(
        float(jnp.mean(x**2)), depth=3, activation=activations.identity, weight_variance=1.2, bias_variance=0.3
    )
    yield "lengths of a linear network", score(found, exact)


def pairs():
    """E f(u) g(v) of every activation and of its slope, at two lengths and a correlation."""
    random = draws(4)[1]
    z = random.normal(size=(2, 5 * DRAWS))
    q1, q2, c = 0.7, 1.9, 0.6
    u, v = np.sqrt(q1) * z[0], np.sqrt(q2) * (c * z[0] + np.sqrt(1 - c**2) * z[1])
    for name in activations.names():
        f = activations.named(name)
        both = [np.asarray(f(u)) * np.asarray(f(v)), np.asarray(f.slope(u)) * np.asarray(f.slope(v))]
        if name == "identity":
            both = both[:1]
        exact = [f.mean_product(q1, q2, c), f.slope_mean_product(q1, q2, c)]
        yield name, np.concatenate([score(s, float(e)) for s, e in zip(both, exact)])


def traces():
    """Hutchinson's estimate: its mean and, by its exact law, its variance."""
    matrix = np.random.default_rng(5).normal(size=(6, 6))
    matrix = jnp.asarray((matrix + matrix.T) / 2)
    square = float(jnp.sum(matrix**2))
    product = jax.tree_util.Partial(_times, matrix)
    variances = {"rademacher": 2 * (square - float(jnp.sum(jnp.diagonal(matrix) ** 2))), "normal": 2 * square}
    for law, variance in variances.items():
        run = jax.jit(functools.partial(trace.hutchinson, num_matvecs=DRAWS // 20, law=law))
        found = run(draws(6)[0], product, jnp.zeros(6))
        samples, exact = np.asarray(found.samples), float(jnp.trace(matrix))
        yield f"hutchinson, {law}: mean", score(samples, exact, np.sqrt(variance))
        yield f"hutchinson, {law}: variance", score((samples - exact) ** 2, variance)


def _times(matrix, v):
    return matrix @ v


def gradients():
    """Two estimators of d/dm E f(m + s z): mean and variance."""
    m, s2 = 0.4, 0.8
    z = draws(7)[1].normal(size=5 * DRAWS)
    x = m + np.sqrt(s2) * z
    ways = {
        "pathwise": (estimators.pathwise(jnp.sin, mean=m, variance=s2), np.cos(x)),
        "score function": (estimators.score_function(jnp.sin, mean=m, variance=s2), np.sin(x) * z / np.sqrt(s2)),
        "with the mean as baseline": (
            estimators.score_function(jnp.sin, mean=m, variance=s2, baseline="mean"),
            (np.sin(x) - np.sin(m) * np.exp(-s2 / 2)) * z / np.sqrt(s2),
        ),
    }
    for name, (exact, samples) in ways.items():
        mean = float(exact.mean)
        yield name, score(np.stack([samples, (samples - mean) ** 2], 1), [mean, float(exact.variance)])


GROUPS = {
    "initializers": weights,
    "products of random matrices": norms,
    "linear networks": lengths,
    "activations": pairs,
    "stochastic traces": traces,
    "estimators of gradients": gradients,
}


@study("Exact moments against Monte Carlo")
def monte_carlo(full):
    """The largest |z| of each group; the limit keeps the false alarms of a run, over all comparisons, below 1e-3."""
    chosen = GROUPS if full else {"estimators of gradients": gradients}
    found = {group: np.concatenate([z for _, z in function()]) for group, function in chosen.items()}
    limit = z_limit(sum(map(len, found.values())), BUDGET)
    for group, z in found.items():
        yield below(f"{group}: largest |z|", np.abs(z).max(), round(limit, 3), f"{len(z)} comparisons")
    if full:
        m = sum(map(len, found.values()))
        yield near(
            "false alarms expected in 1000 runs", 1000 * m * _two_sided(limit), 1000 * BUDGET, 1e-3, f"{m} comparisons"
        )
        bias = (limit + 4.753) * np.sqrt(2 / (DRAWS // 10))
        yield below("relative bias of a variance that is surely found", bias, 0.1, f"{DRAWS // 10} Gaussian draws")
        entries = draws(8)[1].normal(size=DRAWS // 10) * np.sqrt(1 / 8)
        yield above("planted: 1/n for 1/(n - 1), n = 8: |z|", abs(score(entries**2, 1 / 7)[0]), limit, "Gaussian draws")


def _two_sided(z):
    return float(mp.erfc(z / mp.sqrt(2)))
