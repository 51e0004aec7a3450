"""What every builder of networks owes, one contract for all; what a builder computes is tested in its own file."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.networks import (
    attention,
    concatenated,
    convolutional,
    core,
    dense,
    highway,
    initializers,
    normalization,
    pixelwise,
    recurrent,
    residual,
    reversible,
    sequences,
    transformer,
)
from tests.selection import in_turn

pytestmark = pytest.mark.float32
WIDEST = jnp.zeros(()).dtype
EPS = float(jnp.finfo(WIDEST).eps)
N = 3


class Case(NamedTuple):
    build: Callable  # (depth, variance, **more) -> network
    shape: Callable  # depth -> shape of x
    layers: Callable = lambda depth: depth  # states of a network of this depth
    dtype: bool = True  # the builder takes a dtype
    initializer: bool = True  # the builder takes an Initializer in place of a variance
    mixes: bool = False  # examples see each other
    any_width: bool = False  # init takes inputs of any width


def _dense(depth, variance, **more):
    return dense.network(widths=(5, *[4] * depth, 2), activation=jnp.tanh, **_physics(variance), **more)


def _residual(depth, variance, **more):
    return residual.network(widths=(5, 4, 2), depth=depth, activation=jnp.tanh, time=1.0, **_physics(variance), **more)


def _reversible(build, depth, variance, **more):
    return build(widths=(5, 4, 2), depth=depth, activation=jnp.tanh, time=1.0, **_physics(variance), **more)


def _convolutional(depth, variance, **more):
    stages = [convolutional.Stage(2, 3, padding="same")] * depth
    return convolutional.network(stages=stages, outputs=2, activation=jnp.tanh, **_physics(variance), **more)


def _pixelwise(depth, variance, **more):
    return pixelwise.network(width=3, depth=depth, outputs=2, activation=jnp.tanh, **_physics(variance), **more)


def _highway(depth, variance, **more):
    sizes = {"width": 4, "depth": depth, "outputs": 2, "gate_bias": -1.0}
    return highway.network(activation=jnp.tanh, **sizes, **_physics(variance), **more)


def _concatenated(depth, variance, **more):
    sizes = {"width": 4, "growth": 3, "depth": depth, "outputs": 2}
    return concatenated.network(activation=jnp.tanh, **sizes, **_physics(variance), **more)


def _normalized(kind, depth, variance, **more):
    sizes = {"width": 4, "depth": depth, "outputs": 2}
    return normalization.network(activation=jnp.tanh, kind=kind, weight_variance=variance, **sizes, **more)


def _attention(depth, variance):
    weights = initializers.variance_scaling(variance)
    sizes = {"depth": depth, "heads": 2, "head_width": 2, "outputs": 2}
    return attention.network(query_key_weights=weights, value_weights=weights, skip=True, **sizes)


def _transformer(depth, variance):
    weights = initializers.variance_scaling(variance)
    laws = {"query_key_weights": weights, "value_weights": weights, "mlp_weights": weights}
    sizes = {"depth": depth, "heads": 2, "head_width": 2, "mlp_width": 6}
    stack = transformer.blocks(activation=jnp.tanh, norm="pre", mask="causal", **sizes, **laws)
    return transformer.network(stack, outputs=2, readout_weights=weights)


def _recurrent(head, cell, depth, variance):
    weights = initializers.variance_scaling(variance)
    more = {"forget_bias": 1.0} if cell == "lstm" else {"activation": jnp.tanh} if cell == "vanilla" else {}
    laws = {"input_weights": weights, "recurrent_weights": weights, "bias_variance": 0.1}
    made = getattr(recurrent, cell)(width=4, **laws, **more)
    steps = {"steps": depth} if head == "one_to_many" else {}
    return getattr(recurrent, head)(made, outputs=2, readout_weights=weights, **steps)


def _sequences(depth, variance):
    weights = initializers.variance_scaling(variance)
    laws = {"width": 4, "input_weights": weights, "recurrent_weights": weights, "bias_variance": 0.1}
    sizes = {"outputs": 2, "steps": 2, "key_width": 3}
    cells = recurrent.gru(**laws), recurrent.gru(**laws)
    return sequences.network(*cells, readout_weights=weights, query_key_weights=weights, **sizes)


def _physics(variance):
    return {"weight_variance": variance, "bias_variance": 0.2}


def _bind(function, *given):
    return functools.partial(function, *given)


VECTORS, PICTURES, TOKENS, SEQUENCES = (
    lambda depth: (N, 5),
    lambda depth: (N, 4, 4, 2),
    lambda depth: (N, 3, 5),
    lambda depth: (N, depth, 5),
)
ONE_MORE = lambda depth: depth + 1  # noqa: E731
CASES = {
    "dense": Case(_dense, VECTORS),
    "residual": Case(_residual, VECTORS, ONE_MORE),
    "residual, batch": Case(functools.partial(_residual, norm="batch"), VECTORS, ONE_MORE, mixes=True),
    "residual, fixup": Case(
        functools.partial(_residual, block="two_layer", skip="fixup"), VECTORS, ONE_MORE, initializer=False
    ),
    "hamiltonian": Case(_bind(_reversible, reversible.hamiltonian), VECTORS, ONE_MORE),
    "leapfrog": Case(_bind(_reversible, reversible.leapfrog), VECTORS, ONE_MORE),
    "coupling": Case(_bind(_reversible, reversible.coupling), VECTORS, ONE_MORE),
    "antisymmetric": Case(
        _bind(_reversible, functools.partial(reversible.antisymmetric, damping=0.1)), VECTORS, ONE_MORE
    ),
    "convolutional": Case(_convolutional, PICTURES, any_width=True),
    "highway": Case(_highway, VECTORS, ONE_MORE, any_width=True),
    "concatenated": Case(_concatenated, VECTORS, lambda depth: depth + 2, initializer=False, any_width=True),
    "batch normalization": Case(_bind(_normalized, "batch"), VECTORS, mixes=True, any_width=True),
    "layer normalization": Case(_bind(_normalized, "layer"), VECTORS, any_width=True),
    "attention": Case(_attention, TOKENS, dtype=False, initializer=False, any_width=True),
    "transformer": Case(_transformer, TOKENS, lambda depth: 2 * depth, dtype=False, initializer=False, any_width=True),
    "many to one": Case(
        _bind(_recurrent, "many_to_one", "lstm"), SEQUENCES, dtype=False, initializer=False, any_width=True
    ),
    "many to many": Case(
        _bind(_recurrent, "many_to_many", "gru"), SEQUENCES, ONE_MORE, dtype=False, initializer=False, any_width=True
    ),
    "one to many": Case(
        _bind(_recurrent, "one_to_many", "vanilla"), VECTORS, ONE_MORE, dtype=False, initializer=False, any_width=True
    ),
    "pixelwise": Case(_pixelwise, PICTURES, any_width=True),
    "sequence to sequence": Case(
        _sequences, SEQUENCES, lambda depth: depth + 3, dtype=False, initializer=False, any_width=True
    ),
}
every_builder = pytest.mark.parametrize("name", CASES)


def a_third_of_the_builders(turn):
    """For what compiles for long; the long suite takes all."""
    return pytest.mark.parametrize("name", in_turn(CASES, turn))


states = jax.jit(lambda net, *arguments: net.states(*arguments))
apply = jax.jit(lambda net, *arguments: net.apply(*arguments))


@functools.cache
def made(name, depth=3):
    """(network, params, x, states) of a case, drawn once for all tests."""
    case = CASES[name]
    net = core.traceable(case.build(depth, 1.5))
    x = jax.random.normal(jax.random.key(7), case.shape(depth), WIDEST)
    params = jax.jit(lambda key, x: net.init(key, x))(jax.random.key(0), x)
    return net, params, x, states(net, params, x)


def close(ours, expected, rounding=100):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=rounding * EPS, rtol=rounding * EPS), ours, expected
    )


def waves(tree):
    """An array of no symmetry for every leaf."""
    leaves, structure = jax.tree.flatten(tree)
    parts = [jnp.cos(1.0 + i + jnp.arange(leaf.size)).reshape(leaf.shape) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, [part.astype(leaf.dtype) for part, leaf in zip(parts, leaves)])


@every_builder
def test_states_readout_and_apply_fit_together(name):
    net, params, x, found = made(name)
    assert core.layer_count(found) == CASES[name].layers(3)
    assert all(stretch.shape[1] == N and stretch.dtype == x.dtype for stretch in found)
    outputs = apply(net, params, x)
    assert outputs.shape[0] == N and outputs.shape[-1] == 2
    close(outputs, net.readout(params, core.last_state(found, x)))


@every_builder
def test_parameters_have_the_dtype_of_the_input_unless_another_is_asked_for(name):
    case = CASES[name]
    more = [{}, {"dtype": jnp.float32}] if case.dtype else [{}]
    for asked in more:
        for dtype in (jnp.bfloat16, jnp.float32):
            net = case.build(2, 1.5, **asked)
            x = jax.ShapeDtypeStruct(case.shape(2), dtype)
            params = jax.eval_shape(net.init, jax.random.key(0), x)
            assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(asked.get("dtype", dtype))}
            assert jax.eval_shape(net.apply, params, x).dtype == asked.get("dtype", dtype)


@every_builder
def test_numpys_float64_is_taken_in_the_dtype_that_jax_keeps_of_it(name):
    net, params, x, _ = made(name)
    given = np.asarray(x, np.float64)
    drawn = jax.eval_shape(lambda key: net.init(key, given), jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(drawn)} == {WIDEST}
    assert jax.eval_shape(lambda params: net.apply(params, given), params).dtype == WIDEST


@every_builder
def test_a_key_determines_the_parameters_and_no_two_kernels_are_equal(name):
    net, params, x, _ = made(name)
    again, other = (jax.jit(lambda k, x: net.init(k, x))(jax.random.key(seed), x) for seed in (0, 1))
    jax.tree.map(np.testing.assert_array_equal, again, params)
    drawn = {"kernel", "second", "query", "key", "value", "output", "input", "recurrent", "gate_kernel"}
    pairs = zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(other), strict=True)
    kernels = [(np.asarray(a), np.asarray(b)) for (path, a), b in pairs if path[-1].key in drawn]
    assert len(kernels) >= 2
    entries = np.concatenate([entry[entry != 0] for pair in kernels for entry in map(np.ravel, pair)])
    assert np.unique(entries).size == entries.size


@every_builder
def test_a_probe_is_added_to_its_layer_and_flows_on_only(name):
    net, params, x, clean = made(name)
    zero = core.zero_probes(net, params, x)
    close(states(net, params, x, zero), clean, 4)  # another program, which may round otherwise
    place = len(zero) - 1 if name == "concatenated" else np.argmax([stretch.shape[0] for stretch in zero])
    index = zero[place].shape[0] - 1
    push = 0.1 * waves(zero[place][index])
    probes = (*zero[:place], zero[place].at[index].set(push), *zero[place + 1 :])
    found = states(net, params, x, probes)
    close(found[place][index], clean[place][index] + push)
    close(found[place][:index], clean[place][:index])
    close(found[:place], clean[:place])


def slope_at_zero(function):
    """Central differences of two steps, extrapolated: batch normalization over a few examples bends at small scales."""
    e = EPS ** (2 / 5)
    wide, narrow = ((function(h) - function(-h)) / (2 * h) for h in (e, e / 2))
    return (4 * narrow - wide) / 3


@every_builder
def test_gradients_of_zero_probes_are_those_of_the_states(name):
    """Of the last state by the readout alone; of all states along one direction by finite differences."""
    net, params, x, found = made(name)
    loss = lambda outputs: jnp.sum(jnp.sin(outputs))  # noqa: E731
    gradients = core.state_gradients(net, params, x, loss)
    last = jax.grad(lambda y: loss(net.readout(params, y)))(found[-1][-1])
    close(gradients[-1][-1], last, 1000)
    directions = waves(found)

    @jax.jit
    def moved(s):
        probes = jax.tree.map(lambda d: s * d, directions)
        return loss(net.readout(params, net.states(params, x, probes)[-1][-1]))

    slope = sum(jnp.sum(g * d) for g, d in zip(gradients, directions, strict=True))
    np.testing.assert_allclose(slope_at_zero(moved), slope, atol=1000 * EPS ** (2 / 3))


@a_third_of_the_builders(2)
def test_gradients_of_parameters_are_finite_differences(name):
    net, params, x, _ = made(name)
    direction = waves(params)

    @jax.jit
    def loss(s):
        return jnp.sum(jnp.sin(net.apply(jax.tree.map(lambda p, d: p + s * d, params, direction), x)))

    np.testing.assert_allclose(slope_at_zero(loss), jax.jit(jax.grad(loss))(0.0), atol=5000 * EPS ** (2 / 3))


@every_builder
def test_examples_do_not_see_each_other_unless_the_batch_normalizes(name):
    net, params, x, _ = made(name)
    alone, together = apply(net, params, x[:1]), apply(net, params, x)[:1]
    assert np.allclose(alone, together, atol=1000 * EPS) != CASES[name].mixes


@a_third_of_the_builders(1)
def test_seeds_and_variances_share_one_program(name):
    case, traces = CASES[name], []
    x = made(name)[2]

    @jax.jit
    def outputs(net, keys, x):
        traces.append(1)
        return jax.vmap(lambda key: net.apply(net.init(key, x), x))(keys)

    keys = jax.random.split(jax.random.key(0), 2)
    found = outputs(core.traceable(case.build(3, 1.5)), keys, x)
    net = core.traceable(case.build(3, 1.5))
    close(found[1], net.apply(net.init(keys[1], x), x), 1000)
    other = outputs(core.traceable(case.build(3, 0.5)), keys, x)
    assert len(traces) == 1
    assert not np.allclose(found, other)


def count(jaxpr):
    inner = [p for e in jaxpr.eqns for p in e.params.values() if hasattr(p, "eqns") or hasattr(p, "jaxpr")]
    return len(jaxpr.eqns) + sum(count(getattr(p, "jaxpr", p)) for p in inner)


def programs(name, depth):
    """The structure of the parameters, and how long the programs of init and of the gradient are."""
    case = CASES[name]
    net, x = case.build(depth, 1.5), jnp.zeros(case.shape(depth), WIDEST)
    params = jax.eval_shape(net.init, jax.random.key(0), x)
    gradient = jax.make_jaxpr(jax.grad(lambda p: net.apply(p, x).sum()))(params)
    start = jax.make_jaxpr(net.init)(jax.random.key(0), x)
    return jax.tree.structure(params), count(gradient.jaxpr), count(start.jaxpr)


@every_builder
def test_a_network_100_deep_is_the_program_of_one_10_deep(name):
    assert programs(name, 10) == programs(name, 100)


@every_builder
def test_wrong_arguments_are_refused_by_name(name):
    net, params, x, _ = made(name)
    for wrong, error in ((x[0], ValueError), (x[..., :-1], ValueError), (jnp.zeros(x.shape, int), TypeError)):
        with pytest.raises(error, match="^x must"):
            net.apply(params, wrong)
        if not (CASES[name].any_width and wrong.ndim == x.ndim and error is ValueError):
            with pytest.raises(error, match="^x must"):
                net.init(jax.random.key(0), wrong)
    with pytest.raises(TypeError, match="^key must.*got 0"):
        net.init(0, x)
    with pytest.raises(ValueError, match="^probes must .*got 7"):
        net.states(params, x, (x,) * 7)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.initializer])
def test_an_initializer_takes_the_place_of_the_variance(name):
    x, build = made(name)[2], CASES[name].build
    params = build(3, None, initializer=initializers.rademacher(0.25)).init(jax.random.key(0), x)
    kernels = [leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params) if path[-1].key == "kernel"]
    assert len(kernels) >= 2 and all(np.all(np.abs(kernel) == 0.5) for kernel in kernels)
    with pytest.raises(ValueError, match="exactly one of weight_variance and initializer .*got neither"):
        build(3, None)
    with pytest.raises(TypeError, match="initializer must be an Initializer.*got 1"):
        build(3, None, initializer=1)


@every_builder
def test_a_negative_variance_is_refused_by_name(name):
    with pytest.raises(ValueError, match="weight_variance .*-1"):
        CASES[name].build(3, -1.0)
