"""Sizes against loops over layers in NumPy, powers against SciPy's lines and against stacks whose law is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import linregress

from numdl.analysis import regularity

SIZES = regularity.SIZES


def stack(layers, *shape, seed=0):
    return np.random.default_rng(seed).normal(size=(layers, *shape)).astype(np.float32)


def by_loops(*leaves):
    """The definitions, layer by layer, in float64."""
    rows = [np.concatenate([np.ravel(leaf[i]) for leaf in leaves]).astype(complex) for i in range(len(leaves[0]))]
    size = [np.linalg.norm(row) for row in rows]
    step = [np.linalg.norm(after - before) for before, after in zip(rows, rows[1:], strict=False)]
    squares = [sum(s**2 for s in sizes) for sizes in (size, step)]
    return {
        "largest": max(size),
        "increment": max(step),
        "root_sum": squares[0] ** 0.5,
        "variation": squares[1] ** 0.5,
        "total": np.linalg.norm(sum(rows)),
        "roughness": (squares[1] / len(step) / (squares[0] / len(size))) ** 0.5,
    }


@pytest.mark.parametrize(
    "weights",
    [
        stack(7),
        stack(2, 3),
        {"kernel": stack(5, 3, 4), "bias": stack(5, 4, seed=1)},
        [stack(6, 2, 2) + 1j * stack(6, 2, 2, seed=1), stack(6, 3, seed=2)],
        stack(9, 3, 3, 2, 4).astype(jnp.bfloat16),
        1e30 * stack(5, 3),
        1e-30 * stack(5, 3),
    ],
    ids=["scalars", "two layers", "a tree", "complex", "bfloat16", "large", "small"],
)
def test_sizes_are_those_of_the_definitions(weights):
    found, wanted = regularity.norms(weights), by_loops(*map(np.asarray, jax.tree.leaves(weights)))
    for name in SIZES:
        np.testing.assert_allclose(getattr(found, name), wanted[name], rtol=3e-6, err_msg=name)


def test_networks_under_vmap_are_each_by_itself():
    weights = {"kernel": np.stack([stack(4, 3, 3, seed=s) for s in range(3)])}
    found = jax.vmap(regularity.norms)(weights)
    for s in range(3):
        alone = regularity.norms({"kernel": weights["kernel"][s]})
        for name in SIZES:
            np.testing.assert_allclose(getattr(found, name)[s], getattr(alone, name), rtol=1e-6)
    assert found.layers == 4


@pytest.mark.parametrize("bad, lost", [(np.zeros((4, 2)), {"roughness"}), (np.full((4, 2), np.nan), set(SIZES))])
def test_what_has_no_size_is_nan(bad, lost):
    found = regularity.norms(bad)
    assert {name for name in SIZES if np.isnan(getattr(found, name))} == lost


def sizes(depths, law, networks=()):
    """Norms of the law's stacks, with an axis of networks if asked for."""
    random = np.random.default_rng(4)
    found = []
    for depth in depths:
        stacks = [np.float32(law(depth, random)) for _ in range(max(networks, default=1))]
        found.append(jax.vmap(regularity.norms)(np.stack(stacks)) if networks else regularity.norms(stacks[0]))
    return found


def smooth(depth, random):
    t = (np.arange(depth) + 0.5) / depth
    return random.uniform(0.5, 2.0) * np.stack([np.cos(2 * t), np.exp(-t)], axis=1) * depth**-0.3


def diffusive(depth, random):
    return random.normal(size=(depth, 20)) / np.sqrt(depth)


def test_a_smooth_stack_has_the_powers_of_an_ordinary_differential_equation():
    found = regularity.exponents(sizes((64, 128, 256, 512), smooth, networks=(6,)))
    wanted = {"largest": -0.3, "increment": -1.3, "root_sum": 0.2, "variation": -0.8, "total": 0.7, "roughness": -1.0}
    for name, power in wanted.items():
        each = getattr(found, name)
        assert abs(each.mean - power) < 4 * each.stderr + 0.02, name
    assert found.regime == "smooth"
    assert found.roughness.count == 6
    assert "smooth" in repr(found)


def test_independent_layers_have_the_powers_of_a_stochastic_differential_equation():
    norms = sizes((64, 128, 256, 512), diffusive, networks=(20,))
    found = regularity.exponents(norms)
    np.testing.assert_allclose(np.asarray(norms[-1].roughness), np.sqrt(2), rtol=0.1)
    for name, power in {"root_sum": 0.0, "variation": 0.0, "total": 0.0, "roughness": 0.0}.items():
        each = getattr(found, name)
        assert abs(each.mean - power) < 5 * each.stderr + 0.01, name
    assert found.regime == "rough"


def test_one_network_has_the_error_of_its_line():
    depths = (8, 16, 48, 100)
    norms = sizes(depths, diffusive)
    found = regularity.exponents(norms)
    for name in SIZES:
        line = linregress(np.log(depths), np.log([float(getattr(one, name)) for one in norms]))
        np.testing.assert_allclose(getattr(found, name).mean, line.slope, atol=1e-9)
        np.testing.assert_allclose(getattr(found, name).stderr, line.stderr, rtol=1e-6)


def test_weights_that_do_not_change_with_depth_are_undecided():
    found = regularity.exponents([regularity.norms(np.ones((n, 3))) for n in (4, 8, 16)])
    assert np.isnan(found.increment.mean)
    assert found.regime == "undecided"
    np.testing.assert_allclose(found.largest.mean, 0.0, atol=1e-6)


def test_shapes_that_differ_are_refused():
    one, several = sizes((4, 8), smooth), sizes((16, 32), smooth, networks=(3,))
    with pytest.raises(ValueError, match="one shape"):
        regularity.exponents(one + several)
    with pytest.raises(ValueError, match="layers"):
        regularity.norms({"a": np.ones((4, 2)), "b": np.ones((3, 2))})
