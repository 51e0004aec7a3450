"""Gaps, margins, norms, flatness and collapse against NumPy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.analysis import generalization
from tests.doors import bad, refused

WIDEST = jnp.zeros(()).dtype
EPS = float(jnp.finfo(WIDEST).eps)


@pytest.mark.float32
def test_gap_and_its_standard_error():
    rng = np.random.default_rng(0)
    train, test = rng.normal(size=50), rng.normal(1, 2, size=30)
    found = generalization.gap(jnp.asarray(train, WIDEST), jnp.asarray(test, WIDEST))
    stderr = np.sqrt(train.var(ddof=1) / 50 + test.var(ddof=1) / 30)
    expected = [train.mean(), test.mean(), test.mean() - train.mean(), stderr]
    np.testing.assert_allclose([found.train, found.test, found.gap, found.stderr], expected, atol=100 * EPS)
    errors = generalization.gap(np.array([0, 0, 1, 1]), np.array([True, True, True, False]).astype(int))
    assert errors.gap == 0.25
    with pytest.raises(ValueError, match="test_losses must hold at least 2 numbers; got 1"):
        generalization.gap(train, test[:1])


@pytest.mark.float32
def test_margins():
    outputs = jnp.asarray([[3.0, 1.0, 0.0], [0.5, 0.0, 2.0], [1.0, 1.0, -4.0], [-1.0, -2.0, -3.0]], WIDEST)
    labels = np.array([0, 0, 1, 2])
    found = generalization.margins(outputs, labels)
    np.testing.assert_allclose(found.margin, [2, -1.5, 0, -2], rtol=EPS)
    assert found.smallest == -2 and found.accuracy == 0.25
    np.testing.assert_allclose([found.median, found.low], [-0.75, np.quantile([2, -1.5, 0, -2], 0.1)], rtol=10 * EPS)
    np.testing.assert_allclose(generalization.margins(outputs, labels, scale=4.0).margin, [0.5, -0.375, 0, -0.5])
    with pytest.raises(ValueError, match="labels must be .* got 3"):
        generalization.margins(outputs, np.array([0, 1, 2, 3]))


@pytest.mark.float32
def test_norms_of_matrices_stacks_and_convolutions():
    rng = np.random.default_rng(1)
    shapes = {"conv": (3, 3, 2, 4), "dense": (5, 3), "stack": (2, 3, 3)}
    arrays = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    params = {n: {"kernel": jnp.asarray(a, WIDEST), "bias": jnp.ones(3, WIDEST)} for n, a in arrays.items()}
    params["stack"]["bias"] = jnp.ones((2, 3), WIDEST)
    found = generalization.norms(params, stacked="stack")
    matrices = [arrays["conv"].reshape(18, 4), arrays["dense"], *arrays["stack"]]
    spectral = np.array([np.linalg.svd(m)[1][0] for m in matrices])
    frobenius = np.array([np.sqrt(np.sum(m**2)) for m in matrices])
    assert found.names == ("conv/kernel", "dense/kernel", "stack/kernel[0]", "stack/kernel[1]")
    tolerance = {"rtol": 200 * EPS}
    np.testing.assert_allclose(found.spectral, spectral, **tolerance)
    np.testing.assert_allclose(found.frobenius, frobenius, **tolerance)
    np.testing.assert_allclose(found.stable_rank, (frobenius / spectral) ** 2, **tolerance)
    np.testing.assert_allclose(found.log_spectral_product, np.log(spectral).sum(), **tolerance)
    product = np.prod(spectral) ** 2
    np.testing.assert_allclose(found.spectral_complexity, product * np.sum((frobenius / spectral) ** 2), **tolerance)
    assert np.isnan(found.distance).all()
    half = generalization.norms(params, jax.tree.map(lambda leaf: leaf / 2, params), stacked="stack")
    np.testing.assert_allclose(half.distance, frobenius / 2, **tolerance)
    np.testing.assert_allclose(half.spectral_complexity, found.spectral_complexity / 4, **tolerance)
    with pytest.raises(ValueError, match="params must hold a kernel"):
        generalization.norms({"bias": jnp.ones(3)})


def convolved(w, x, names, groups=1):
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=names, feature_group_count=groups)


# name -> (shape, x, apply, the matrices [inputs, outputs])
MATRICES = {
    "(out, in)": ((8, 6), (2, 6), lambda w, x: x @ w.T, lambda w: [w.T]),
    "OIHW": (
        (3, 4, 3, 3),
        (2, 4, 5, 5),
        lambda w, x: convolved(w, x, ("NCHW", "OIHW", "NCHW")),
        lambda w: [w.reshape(3, 36).T],
    ),
    "OIHW in groups": (
        (6, 2, 3, 3),
        (2, 4, 5, 5),
        lambda w, x: convolved(w, x, ("NCHW", "OIHW", "NCHW"), 2),
        lambda w: [w[:3].reshape(3, 18).T, w[3:].reshape(3, 18).T],
    ),
    "HWIO depthwise": (
        (3, 3, 1, 4),
        (2, 5, 5, 4),
        lambda w, x: convolved(w, x, ("NHWC", "HWIO", "NHWC"), 4),
        lambda w: [w[..., i].reshape(9, 1) for i in range(4)],
    ),
    "query": (
        (6, 2, 3),
        (2, 5, 6),
        lambda w, x: jnp.einsum("ntf,fhd->nthd", x, w),
        lambda w: [w.reshape(6, 6)],
    ),
    "experts": (
        (3, 4, 5),
        (3, 2, 4),
        lambda w, x: jnp.einsum("enf,efo->eno", x, w),
        list,
    ),
    "depth": (
        (3, 4, 4),
        (2, 4),
        lambda w, x: jax.lax.scan(lambda y, k: (jnp.tanh(y @ k.T), None), x, w)[0],
        lambda w: [k.T for k in w],
    ),
}


@pytest.mark.parametrize("name", MATRICES)
def test_norms_are_of_the_matrix_that_a_call_contracts(name):
    shape, inputs, apply, matrices = MATRICES[name]
    weights = np.random.default_rng(5).normal(size=shape)
    params = {"w": jnp.asarray(weights), "scale": jnp.ones((1, 1, 3))}
    found = generalization.norms(params, apply=lambda p, x: apply(p["w"], x), x=jnp.ones(inputs))
    expected = [np.linalg.svd(m)[1][0] for m in matrices(weights)]
    np.testing.assert_allclose(found.spectral, expected, rtol=1e-10)
    np.testing.assert_allclose(found.frobenius, [np.sqrt((m**2).sum()) for m in matrices(weights)], rtol=1e-10)
    assert found.names == (("w",) if len(expected) == 1 else tuple(f"w[{i}]" for i in range(len(expected))))


PLAIN = {"w": np.ones((3, 4), np.float32), "b": np.ones(4, np.float32)}
NORMS = [
    bad(lambda: generalization.norms({"b": np.ones(3)}), "params", shown="b"),
    bad(lambda: generalization.norms({"n": np.ones((3, 3), int)}), "params", shown="n"),
    bad(lambda: generalization.norms(PLAIN, {"w": np.ones((3, 5)), "b": np.ones(4)}), "reference", shown="(3, 5)"),
    bad(lambda: generalization.norms(PLAIN, {"w": np.ones((3, 4))}), "reference"),
    bad(lambda: generalization.norms(PLAIN, apply=jnp.dot), "apply and x"),
    bad(lambda: generalization.norms(PLAIN, outputs={"w": -3}), "outputs", shown="-3"),
    bad(lambda: generalization.norms(PLAIN, stacked="none"), "stacked", shown="none"),
]


@pytest.mark.parametrize("row", NORMS, ids=str)
def test_bad_norms_are_refused(row):
    refused(row)


def relu_network(params, x):
    for weight, bias in params[:-1]:
        x = jax.nn.relu(x @ weight + bias[None])
    return x @ params[-1][0] + params[-1][1][None]


def test_path_norm_is_the_sum_over_paths():
    rng = np.random.default_rng(2)
    params = [(rng.normal(size=s), rng.normal(size=s[1])) for s in ((2, 3), (3, 4), (4, 2))]
    (a, p), (b, q), (c, r) = params
    total = sum(
        (a[i, j] * b[j, k] * c[k, m]) ** 2 for i in range(2) for j in range(3) for k in range(4) for m in range(2)
    )
    total += sum((p[j] * b[j, k] * c[k, m]) ** 2 for j in range(3) for k in range(4) for m in range(2))
    total += sum((q[k] * c[k, m]) ** 2 for k in range(4) for m in range(2)) + np.sum(r**2)
    found = generalization.path_norm(relu_network, jax.tree.map(jnp.asarray, params), jnp.zeros((3, 2)))
    np.testing.assert_allclose(found, np.sqrt(total), rtol=1e-12)


@pytest.mark.parametrize("f", [jnp.tanh, jax.nn.softmax, lambda y: y / jnp.linalg.norm(y), lambda y: y**2])
def test_path_norm_refuses_other_functions(f):
    with pytest.raises(ValueError, match="apply must be built of affine maps, relus, sums and means"):
        generalization.path_norm(lambda w, x: f(x @ w) @ w, jnp.arange(9.0).reshape(3, 3) / 9, jnp.ones((1, 3)))


CURVATURES = jnp.asarray([1.0, 2.0, 5.0, 0.0], WIDEST)


def bowl(params, batch):
    return 0.5 * jnp.sum(batch * params**2)


@pytest.mark.float32
def test_tolerated_variance_of_a_quadratic():
    """variance = 2 rise / trace H at the minimum, and beside it: the gradient drops out."""
    for point in (jnp.zeros(4, WIDEST), jnp.ones(4, WIDEST)):
        found = generalization.tolerated_variance(jax.random.key(0), bowl, point, CURVATURES, rise=0.1, draws=2000)
        exact = 0.2 / 8
        assert found.found and abs(found.variance - exact) < 6 * found.stderr
        # Var(z' H z / 2) = tr(H^2) / 2: the standard error is known too
        known = exact * np.sqrt(2 * 30) / 8 / np.sqrt(2000)
        np.testing.assert_allclose(found.stderr, known, rtol=0.15)
        np.testing.assert_allclose(found.rise, 0.1, rtol=1e3 * EPS)
        np.testing.assert_allclose(found.rise_stderr / found.rise, found.stderr / found.variance, rtol=1e4 * EPS)


def test_tolerated_variance_relative_to_the_parameters_and_not_found():
    key, point = jax.random.key(1), jnp.asarray([1.0, 3.0, 0.0, 2.0], WIDEST)
    settings = {"rise": 0.1, "draws": 500}
    found = generalization.tolerated_variance(key, bowl, point, CURVATURES, relative=True, **settings)
    assert abs(found.variance - 0.2 / (1 + 18)) < 6 * found.stderr
    # Scaling a parameter up and its curvature down changes nothing.
    scaled = generalization.tolerated_variance(key, bowl, 2 * point, CURVATURES / 4, relative=True, **settings)
    np.testing.assert_allclose(scaled.variance, found.variance, rtol=1e-9)
    flat = generalization.tolerated_variance(key, bowl, point, 0 * CURVATURES, **settings)
    assert not flat.found
    with pytest.raises(ValueError, match="rise must be .* > 0; got 0"):
        generalization.tolerated_variance(key, bowl, point, CURVATURES, rise=0, draws=3)
    with pytest.raises(ValueError, match="draws must be an integer >= 2; got 1"):
        generalization.tolerated_variance(key, bowl, point, CURVATURES, rise=1.0, draws=1)


def simplex(classes, dimensions, scale):
    """Class means of one length at equal angles, about an offset."""
    vertices = np.eye(classes) - 1 / classes
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(dimensions, dimensions)))[0][:classes]
    return scale * vertices @ turn, turn


@pytest.mark.float32
def test_collapse_is_complete_on_a_simplex():
    means, _ = simplex(4, 6, 3.0)
    labels = np.arange(20) % 4
    features = jnp.asarray(means[labels] + 2.0, WIDEST)
    found = generalization.neural_collapse(features, labels, weights=jnp.asarray(0.7 * means.T, WIDEST))
    numbers = jax.tree.leaves(found)
    # The features' offset of 2 moves the outputs, but of all classes alike: the rows sum to 0.
    np.testing.assert_allclose(numbers, 0, atol=100 * EPS)
    alone = generalization.neural_collapse(features, labels)
    np.testing.assert_allclose([alone.within, alone.norm_spread, alone.angle_gap], 0, atol=100 * EPS)
    assert np.isnan([alone.duality, alone.disagreement, alone.weight_angle_gap]).all()


@pytest.mark.float32
def test_collapse_against_numpy():
    rng = np.random.default_rng(4)
    labels = np.concatenate([np.arange(3), rng.integers(0, 3, 40)])
    centres = 1.5 * rng.normal(size=(3, 5))
    features = rng.normal(size=(43, 5)) + centres[labels]
    weights, bias = centres.T + rng.normal(size=(5, 3)), rng.normal(size=3)
    given = [jnp.asarray(a, WIDEST) for a in (features, weights, bias)]
    found = generalization.neural_collapse(given[0], labels, weights=given[1], bias=given[2])
    means = np.stack([features[labels == c].mean(axis=0) for c in range(3)])
    centered = means - means.mean(axis=0)
    within = sum(np.outer(h - means[c], h - means[c]) for h, c in zip(features, labels)) / 43
    between = sum(np.outer(m, m) for m in centered) / 3
    nc1 = np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / 3

    def spreads(vectors):
        lengths = [np.linalg.norm(v) for v in vectors]
        pairs = [vectors[i] @ vectors[j] / lengths[i] / lengths[j] for i in range(3) for j in range(i)]
        return np.std(lengths) / np.mean(lengths), np.std(pairs), np.mean(np.abs(np.array(pairs) + 0.5))

    duality = np.linalg.norm(weights.T / np.linalg.norm(weights) - centered / np.linalg.norm(centered))
    nearest = [int(np.argmin([np.linalg.norm(h - m) for m in means])) for h in features]
    differ = np.mean(np.argmax(features @ weights + bias, axis=1) != nearest)
    expected = [nc1, *spreads(centered), *spreads(weights.T - weights.T.mean(axis=0)), duality, differ]
    np.testing.assert_allclose(jax.tree.leaves(found), expected, rtol=2000 * EPS)
    assert 0 < differ < 1
    missing = generalization.neural_collapse(given[0], labels, classes=4)
    assert np.isnan(missing.within)
    with pytest.raises(ValueError, match=r"weights must have shape \(5, 3\)"):
        generalization.neural_collapse(given[0], labels, weights=given[1].T, classes=3)
    with pytest.raises(ValueError, match="labels must be .*<= 1; got 2"):
        generalization.neural_collapse(given[0], labels, classes=2)
    with pytest.raises(ValueError, match="bias must be None without weights"):
        generalization.neural_collapse(given[0], labels, bias=given[2])
