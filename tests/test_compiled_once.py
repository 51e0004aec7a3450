"""The second call with new values of the same shapes compiles nothing, outside of jit and for every public function."""

import functools
from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from numdl import _hyperparameters, activations, audit
from numdl.analysis import layers
from numdl.audit._measured import black_box, cases
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


# ---- audits --------------------------------------------------------------------------------------------------------


def drawn(*shape, seed=0):
    return np.float32(np.random.default_rng(seed).standard_normal(shape))


def perceptron(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"]


def masked(params, x):
    return jnp.tanh(x @ (params["in"] * params["mask"])) @ params["out"]


def noisy(params, x, key):
    state = jnp.tanh(x @ params["in"])
    return jnp.where(jax.random.bernoulli(key, 0.8, state.shape), state, 0) @ params["out"]


def module(params, x):
    return params["function"](x @ params["in"]) @ params["out"]


def convolving(params, x):
    state = jax.lax.conv_general_dilated(x, params["in"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(state).mean((1, 2)) @ params["out"]


def attending(params, x):
    queries, keys, values = jnp.split(x @ params["in"], 3, -1)
    return (x + jax.nn.softmax(queries @ keys.swapaxes(1, 2)) @ values).mean(1) @ params["out"]


def entropy(outputs, labels):
    return optax.softmax_cross_entropy_with_integer_labels(outputs, labels).mean()


def only_for_numbers(rate):
    return optax.sgd(rate if rate > 0 else 1.0)


DENSE = {"in": drawn(6, 5), "out": drawn(5, 3, seed=1)}
INPUTS, LABELS = drawn(12, 6, seed=2), np.arange(12, dtype=np.int32) % 3
AUDITED = {
    "data": (perceptron, DENSE, INPUTS, {"data": (drawn(60, 6, seed=3), np.arange(60, dtype=np.int32) % 3)}),
    "evaluate": (noisy, DENSE, INPUTS, {"stochastic": True, "evaluate": perceptron, "optimizer": "momentum"}),
    "kept leaves": (masked, DENSE | {"mask": np.arange(30).reshape(6, 5) % 2}, INPUTS, {}),
    "module": (module, DENSE | {"function": jnp.tanh, "width": 5}, INPUTS, {"optimizer": only_for_numbers}),
    "finished": (perceptron, DENSE, INPUTS, {"optimizer": optax.chain(optax.clip(1.0), optax.adam(0.01))}),
    "convolution": (convolving, {"in": drawn(3, 3, 2, 4), "out": drawn(4, 3)}, drawn(12, 5, 5, 2), {}),
    "attention": (attending, {"in": drawn(4, 12), "out": drawn(4, 3)}, drawn(12, 5, 4), {}),
}


def audited(name, factor, seed):
    apply, params, x, more = AUDITED[name]
    params, x = changed((params, x), lambda a: factor * a)
    settings = {"loss": entropy, "optimizer": optax.adam, "learning_rate": 0.01, "steps": 50} | more
    return audit.examine(apply, params, (x, LABELS), key=jax.random.key(seed), **settings)


@pytest.mark.slow
@pytest.mark.float32
@pytest.mark.parametrize("name", AUDITED)
def test_a_second_audit_compiles_nothing_and_sees_the_new_numbers(name):
    audited(name, 1.0, 0)
    with lowered() as programs:
        again = audited(name, 0.5, 1)
    assert not programs
    jax.clear_caches()
    alone = audited(name, 0.5, 1)
    assert [finding.name for finding in again.findings] == [finding.name for finding in alone.findings]
    np.testing.assert_array_equal(again.evidence.trial.losses, alone.evidence.trial.losses)
    np.testing.assert_array_equal(again.evidence.signal.gradient_rms, alone.evidence.signal.gradient_rms)
    np.testing.assert_array_equal(again.evidence.kernel.forecast, alone.evidence.kernel.forecast)
    assert again.evidence.optimizer.reach == alone.evidence.optimizer.reach


@pytest.mark.float32
def test_a_case_made_again_runs_the_same_programs_on_its_own_numbers():
    def sloped(factor, rate):
        known = cases.case(
            masked, AUDITED["kept leaves"][1] | {"in": factor * DENSE["in"]}, (INPUTS, LABELS), loss=entropy,
            optimizer="momentum", learning_rate=rate, steps=5, data=None, evaluate=None, stochastic=False,
            key=jax.random.key(0),
        )  # fmt: skip
        return known.slope(known.moving, known.x, known.y), black_box.measure(known, known.moving).reach

    sloped(1.0, 0.1)
    with lowered() as programs:
        (value, slope), reach = sloped(2.0, 0.1)
        twice = sloped(2.0, 0.2)[1]
    assert not programs
    params = DENSE | {"mask": AUDITED["kept leaves"][1]["mask"], "in": 2 * DENSE["in"]}
    want = jax.value_and_grad(lambda w: entropy(masked(params | {"in": w}, INPUTS), LABELS))(params["in"])
    np.testing.assert_allclose(value, want[0], rtol=1e-5)
    np.testing.assert_allclose(slope["in"], want[1], rtol=1e-4, atol=1e-6)
    assert twice == pytest.approx(2 * reach, rel=1e-5)


def weighted(held, params, x):
    return perceptron(params, x) * held


def distance(targets, outputs):
    return jnp.mean((outputs - targets) ** 2)


def test_what_partials_bind_is_data_of_a_probe():
    def probed(scale, shift):
        apply = jax.tree_util.Partial(weighted, np.full((1, 3), scale))
        loss = jax.tree_util.Partial(distance, np.full((12, 3), shift))
        return layers.probe(apply, DENSE, INPUTS, loss=loss)

    probed(1.0, 0.0)
    with lowered() as programs:
        found = probed(2.0, 5.0)
    assert not programs
    outputs = 2 * perceptron(DENSE, INPUTS)
    np.testing.assert_allclose(found.value, jnp.mean((outputs - 5) ** 2), rtol=1e-6)
    cotangent = 2 * 2 * (outputs - 5) / outputs.size * len(INPUTS)
    np.testing.assert_allclose(found.state_gradient_rms[-1], jnp.sqrt(jnp.mean(cotangent**2)), rtol=1e-6)


def squared(outputs):
    return jnp.mean(outputs**2)


def test_what_partials_bind_is_data_of_a_probe_but_for_single_numbers():
    """Those are read while the function is followed: another one is another function."""
    for scale in (1.0, 3.0):
        found = layers.probe(jax.tree_util.Partial(weighted, np.full((1, 1), scale)), DENSE, INPUTS, loss=squared)
        np.testing.assert_allclose(found.value, squared(scale * perceptron(DENSE, INPUTS)), rtol=1e-6)


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
