"""The second call with new values of the same shapes compiles nothing, outside of jit and for every public function."""

import functools
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from numdl import _hyperparameters, activations
from numdl.krylov import cg, lanczos
from numdl.ode import integrate, tableaus
from numdl.optimize import train
from numdl.theory import propagation
from tests import registry
from tests.registry import objects as o

FUNCTIONS = registry.functions()
REGISTERED = registry.calls()
PARTS = ("analysis", "theory", "optimize", "krylov", "ode", "networks", "quadrature", "statistics", "trees")
QUICK = {  # one of each kind; all others run in the long suite
    "analysis.curvature.gradient_overlap",
    "analysis.descent.path",
    "krylov.cg.cg",
    "krylov.lanczos.tridiagonalize",
    "networks.hopfield.synchronous",
    "ode.adjoint_audit.taylor_remainders",
    "optimize.least_squares.tikhonov",
    "theory.propagation.lengths",
}
NETWORKS = (
    *("dense", "tokens", "images", "residual images", "highway", "normalized"),
    *("residual", "reversible", "sequences", "recurrent"),
)


@contextmanager
def lowered():
    """A list that grows with every program that is made meanwhile, also one that a cache on disk already has."""
    programs = []

    def heard(event, duration, **_):
        if event.endswith("jaxpr_to_mlir_module_duration"):
            programs.append(event)

    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        yield programs
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)


def names():
    chosen = [name for name in REGISTERED[0] if name.startswith(PARTS) and not name.startswith(registry.NOT_RUN)]
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in chosen]


def changed(arguments, how):
    """The arguments with other numbers in every floating array, and other keys."""

    def one(leaf):
        if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.fold_in(leaf, 1)
        if isinstance(leaf, np.ndarray | jax.Array) and np.issubdtype(leaf.dtype, np.floating):
            made = np.asarray(how(np.asarray(leaf)), leaf.dtype)
            return jnp.asarray(made) if isinstance(leaf, jax.Array) else made
        return leaf

    return jax.tree.map(one, arguments)


def called(name, arguments):
    return jax.block_until_ready(registry.calling(FUNCTIONS[name], arguments)())


@pytest.mark.parametrize("name", names())
def test_new_values_compile_nothing(name):
    good = registry.good_call(name, FUNCTIONS[name], REGISTERED)
    called(name, good)
    for how in (lambda a: 1.001 * a, lambda a: np.flip(a).copy(), lambda a: a.copy()):  # the first that the door allows
        other = changed(good, how)
        try:
            called(name, other)
            break
        except ValueError:
            continue
    with lowered() as programs:
        called(name, changed(other, lambda a: a.copy()))
    assert not programs


@pytest.mark.parametrize("kind", [k if k == "highway" else pytest.param(k, marks=pytest.mark.slow) for k in NETWORKS])
def test_a_network_and_its_gradient_compile_once(kind):
    network, params, x = o.built(kind)

    def work(params, x):
        states = network.states(params, x)
        slope = jax.grad(lambda params, x: network.apply(params, x).sum())(params, x)
        return states, network.apply(params, x), slope

    work(params, x)
    with lowered() as programs:
        work(jax.tree.map(lambda leaf: 0.9 * leaf, params), 0.9 * x)
    assert not programs


def test_the_gradient_of_an_integration_compiles_once():
    def field(t, y, theta):
        return -theta * y

    end = functools.partial(integrate.endpoint, field, t1=1.0, steps=3, tableau=tableaus.euler)
    slope = jax.grad(lambda y, theta: end(y, theta).sum(), argnums=(0, 1))
    slope(np.ones(2), np.ones(()))
    with lowered() as programs:
        slope(2 * np.ones(2), np.array(3.0))
    assert not programs


def test_the_same_function_compiles_nothing_and_another_one_gives_its_own_numbers():
    def solved(matvec):
        return cg.cg(matvec, jnp.ones(3), iterations=3, tolerance=1e-12).solution

    twice, thrice = (lambda v: 2 * v), (lambda v: 3 * v)
    np.testing.assert_allclose(solved(twice), 1 / 2)
    np.testing.assert_allclose(solved(thrice), 1 / 3)
    with lowered() as programs:
        np.testing.assert_allclose(solved(twice), 1 / 2)
    assert not programs


@pytest.mark.slow
def test_numbers_known_before_a_trace_are_no_programs_of_their_own():
    """Each operation of jax's on known numbers would be compiled alone: 29 programs where these are few."""
    jax.clear_caches()
    grid = {"weight_variances": np.array([1.0, 2.0]), "bias_variances": np.array([0.1])}
    with lowered() as programs:
        propagation.phase_diagram(activation=activations.tanh, **grid)
    assert 0 < len(programs) <= 16


def test_what_a_partial_binds_is_data():
    def largest(matrix):
        found = lanczos.tridiagonalize(jax.tree_util.Partial(jnp.matmul, matrix), jnp.ones(2), 1)
        return float(found.diagonal[0])

    assert largest(jnp.diag(jnp.array([1.0, 3.0]))) == pytest.approx(2.0)
    with lowered() as programs:
        assert largest(jnp.diag(jnp.array([2.0, 6.0]))) == pytest.approx(4.0)
    assert not programs


def test_a_function_without_a_hash_is_taken_all_the_same():
    class Twice:
        __hash__ = None

        def __call__(self, v):
            return 2 * v

    found = cg.cg(Twice(), jnp.ones(3), iterations=3, tolerance=1e-12)
    np.testing.assert_allclose(found.solution, 1 / 2)


def quadratic(traces):
    def loss(params, batch):
        traces.append(1)
        return jnp.mean((params["w"] - batch) ** 2)

    return loss, {"w": jnp.arange(3.0)}, jnp.ones((4, 3))


@pytest.mark.parametrize("maker", [optax.sgd, lambda rate: optax.chain(optax.clip(1.0), optax.adamw(rate))])
def test_twenty_learning_rates_are_one_program(maker):
    traces = []
    loss, params, batches = quadratic(traces)
    ends = []
    for rate in np.linspace(0.01, 0.2, 20):
        (end, _), count = train.descend(loss, params, maker(float(rate)), batches), len(traces)
        ends.append(float(end["w"][0]))
        first = count if len(ends) == 1 else first
        assert count == first
    assert np.all(np.diff(ends) > 0)


def test_fit_traces_once_for_all_learning_rates():
    traces = []
    loss, params, batches = quadratic(traces)
    ends = [train.fit(loss, params, optax.sgd(r), train.whole(batches[0]), steps=3)[0] for r in (0.1,)]
    count = len(traces)
    with lowered() as programs:
        ends += [train.fit(loss, params, optax.sgd(r), train.whole(batches[0]), steps=3)[0] for r in (0.2, 0.3)]
    assert len(traces) == count and not programs
    for end, rate in zip(ends, (0.1, 0.2, 0.3), strict=True):
        np.testing.assert_allclose(end["w"], 1 + (jnp.arange(3.0) - 1) * (1 - 2 * rate / 3) ** 3, rtol=1e-12)


@pytest.mark.float32
@pytest.mark.parametrize("maker", [optax.adam, lambda rate: optax.sgd(rate, momentum=0.9), optax.rmsprop])
def test_an_optimizer_taken_apart_gives_the_same_digits(maker):
    def steps(optimizer):
        params = jnp.linspace(-1.0, 1.0, 7)
        memory = optimizer.init(params)
        for _ in range(4):
            update, memory = optimizer.update(jnp.sin(params), memory, params)
            params = optax.apply_updates(params, update)
        return params

    np.testing.assert_array_equal(steps(_hyperparameters.as_data(maker(0.1))), steps(maker(0.1)))


def test_numbers_that_meet_constants_first_stay_in_the_program():
    numbers = jax.tree.leaves(_hyperparameters.as_data(optax.adam(0.1, b1=0.8, b2=0.99)))
    assert -0.1 in numbers and not {0.8, 0.99} & set(numbers)
    structures = {jax.tree.structure(_hyperparameters.as_data(optax.adam(0.1, b2=b2))) for b2 in (0.9, 0.99, 0.9)}
    assert len(structures) == 2


def test_a_wrapper_of_ones_own_is_not_taken_apart():
    inner = optax.sgd(0.1)

    @functools.wraps(inner.update)
    def doubled(*arguments):
        update, memory = inner.update(*arguments)
        return jax.tree.map(lambda leaf: leaf * TWO, update), memory

    made = _hyperparameters.as_data(optax.GradientTransformation(inner.init, doubled))
    np.testing.assert_allclose(made.update(jnp.ones(2), inner.init(jnp.ones(2)))[0], -0.2, rtol=1e-6)


TWO = 2.0


def test_numbers_of_other_types_are_other_programs():
    structures = {jax.tree.structure(_hyperparameters.as_data(optax.adam(0.1, b2=b2))) for b2 in (0.9, np.float64(0.9))}
    assert len(structures) == 2


def test_the_counter_counts():
    with lowered() as programs:
        jax.jit(lambda x: x + 1)(np.ones(3))
    assert programs
