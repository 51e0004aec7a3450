"""Curvature of small networks against dense matrices made by NumPy, finite differences, ARPACK; and its promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl import statistics
from numdl.analysis import curvature

pytestmark = pytest.mark.float32
WIDEST = jnp.zeros(()).dtype
EPS = float(jnp.finfo(WIDEST).eps)
N, CLASSES = 12, 3
LIMIT = statistics.z_limit(500)


def outputs(params, batch):
    hidden = jnp.tanh(batch["x"] @ params["first"]["w"] + params["first"]["b"][None])
    return hidden @ params["second"]["w"] + params["second"]["b"][None]


def cross_entropy(z, batch):
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(z) * batch["y"], axis=-1))


def loss(params, batch):
    return cross_entropy(outputs(params, batch), batch)


@functools.cache
def problem():
    rng = np.random.default_rng(0)
    shapes = {"first": {"w": (4, 5), "b": (5,)}, "second": {"w": (5, CLASSES), "b": (CLASSES,)}}
    params = jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s), WIDEST), shapes, is_leaf=lambda s: type(s) is tuple)
    x = jnp.asarray(rng.normal(size=(N, 4)), WIDEST)
    y = jnp.asarray(np.eye(CLASSES)[rng.integers(0, CLASSES, N)], WIDEST)
    return params, {"x": x, "y": y}


def ravel(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]).astype(np.float64)


@functools.cache
def jacobian():
    """d outputs / d params [N * C, n], logits and probabilities: by jax's forward mode, entry by entry."""
    params, batch = problem()
    columns = jax.jacfwd(outputs)(params, batch)
    rows = [np.asarray(leaf, np.float64).reshape(N * CLASSES, -1) for leaf in jax.tree.leaves(columns)]
    return np.concatenate(rows, axis=1), np.asarray(jax.nn.softmax(outputs(params, batch)), np.float64)


def dense(operator):
    """The matrix, column by column."""
    flat, unravel = jax.flatten_util.ravel_pytree(operator.like)
    columns = jax.jit(jax.vmap(lambda v: jax.flatten_util.ravel_pytree(operator(unravel(v)))[0]))(
        jnp.eye(flat.size, dtype=flat.dtype)
    )
    return np.asarray(columns, np.float64)


def middle():
    """Block-diagonal matrix of diag(p) - p p' over the examples, divided by their number."""
    p = jacobian()[1]
    blocks = np.zeros((N * CLASSES, N * CLASSES))
    for i in range(N):
        at = slice(i * CLASSES, (i + 1) * CLASSES)
        blocks[at, at] = (np.diag(p[i]) - np.outer(p[i], p[i])) / N
    return blocks


@functools.cache
def hessian_matrix():
    return dense(curvature.hessian(loss, *problem()))


def test_hessian_is_the_derivative_of_the_gradient():
    params, batch = problem()
    matrix = hessian_matrix()
    np.testing.assert_allclose(matrix, matrix.T, atol=20 * EPS)
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    gradient = jax.jit(lambda v: jax.flatten_util.ravel_pytree(jax.grad(loss)(unravel(v), batch))[0])
    direction = jnp.asarray(np.random.default_rng(1).normal(size=flat.size), WIDEST)
    step = EPS ** (1 / 3)
    slope = (gradient(flat + step * direction) - gradient(flat - step * direction)) / (2 * step)
    np.testing.assert_allclose(matrix @ np.asarray(direction), slope, atol=30 * EPS ** (2 / 3))


def test_gauss_newton_and_fisher_are_the_explicit_products():
    params, batch = problem()
    J, p = jacobian()
    expected = J.T @ middle() @ J
    operators = {
        "gauss_newton": curvature.gauss_newton(outputs, cross_entropy, params, batch),
        "categorical": curvature.fisher(outputs, params, batch, likelihood="categorical"),
    }
    for operator in operators.values():  # the same matrix for cross entropy on logits
        np.testing.assert_allclose(dense(operator), expected, atol=20 * EPS)
    gaussian = curvature.fisher(outputs, params, batch, likelihood="gaussian")
    np.testing.assert_allclose(dense(gaussian), J.T @ J / N, atol=50 * EPS)
    z = np.asarray(outputs(params, batch), np.float64).ravel()
    bernoulli = curvature.fisher(outputs, params, batch, likelihood="bernoulli")
    weights = 1 / (1 + np.exp(-z)) / (1 + np.exp(z))
    np.testing.assert_allclose(dense(bernoulli), (J.T * weights) @ J / N, atol=50 * EPS)
    per_example = ((p - np.asarray(batch["y"])).reshape(-1, 1) * J).reshape(N, CLASSES, -1).sum(axis=1)
    empirical = curvature.empirical_fisher(loss, params, batch)
    np.testing.assert_allclose(dense(empirical), per_example.T @ per_example / N, atol=50 * EPS)


def test_top_eigenvalues_are_those_of_the_dense_matrix():
    params, batch = problem()
    exact = np.sort(np.linalg.eigvalsh(hessian_matrix()))[::-1]
    found = curvature.top_eigenvalues(loss, params, batch, k=5, key=jax.random.key(0))
    np.testing.assert_allclose(found.values, exact[:5], atol=1e-5)
    assert found.converged.all() and found.vectors["first"]["w"].shape == (5, 4, 5)
    assert np.all((found.intervals[:, 0] <= exact[:5]) & (exact[:5] <= found.intervals[:, 1]))
    split = curvature.Composed(outputs, cross_entropy)
    J, _ = jacobian()
    newton = curvature.top_eigenvalues(split, params, batch, k=5, key=jax.random.key(0), operator="gauss_newton")
    np.testing.assert_allclose(newton.values, np.linalg.eigvalsh(J.T @ middle() @ J)[::-1][:5], atol=1e-5)
    same = curvature.top_eigenvalues(split, params, batch, k=5, key=jax.random.key(0), linearize=False)
    np.testing.assert_allclose(same.values, found.values, atol=1e-5)
    few = curvature.top_eigenvalues(loss, params, batch, k=5, key=jax.random.key(0), max_matvecs=11)
    assert not few.converged.all()
    assert np.all((few.intervals[:, 0] <= exact[:5]) & (exact[:5] <= few.intervals[:, 1]))


def test_chunks_give_the_whole():
    params, batch = problem()
    v = jax.tree.map(jnp.ones_like, params)
    whole = jax.jit(curvature.hessian(loss, params, batch))(v)
    parts = curvature.hessian(loss, params, batch, chunk=5)(v)  # 5, 5 and a remainder of 2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=20 * EPS), whole, parts)
    found = curvature.top_eigenvalues(loss, params, batch, k=5, key=jax.random.key(0), chunk=5)
    np.testing.assert_allclose(found.values, np.sort(np.linalg.eigvalsh(hessian_matrix()))[::-1][:5], atol=1e-5)


def test_a_chunked_loss_must_be_a_mean():
    params, batch = problem()

    def total(params, batch):
        return N * loss(params, batch) * batch["x"].shape[0]

    def normalized(params, batch):
        x = batch["x"] - jnp.mean(batch["x"], axis=0, keepdims=True)
        return loss(params, {**batch, "x": x})

    for wrong in (total, normalized):
        with pytest.raises(ValueError, match="must be a mean over examples.*freeze batch statistics"):
            curvature.hessian(wrong, params, batch, chunk=6)


def test_blocks_by_path():
    params, batch = problem()
    operator = curvature.hessian(loss, params, batch)
    block = curvature.restrict(operator, "second")
    assert block.size == 18 and set(block.like) == {"second/b", "second/w"}
    np.testing.assert_allclose(dense(block), hessian_matrix()[25:, 25:], atol=20 * EPS)
    assert list(curvature.blocks(operator)) == ["first", "second"]
    assert [part.size for part in curvature.blocks(operator, by="leaf").values()] == [5, 20, 3, 15]
    with pytest.raises(ValueError, match="names must hold paths of leaves, first/b, .*; got 'third'"):
        curvature.restrict(operator, "third")


def test_moments():
    params, batch = problem()
    matrix = hessian_matrix()
    settings = {"key": jax.random.key(0), "num_matvecs": 60}
    found = curvature.trace(loss, params, batch, **settings)
    assert abs(found.value - np.trace(matrix)) < LIMIT * found.stderr
    sketched = curvature.trace(loss, params, batch, method="hutch++", **settings)
    assert abs(sketched.value - np.trace(matrix)) < LIMIT * sketched.stderr + 1e-5
    assert sketched.stderr < found.stderr
    norm = curvature.frobenius_norm(loss, params, batch, **settings)
    assert abs(norm.value - np.linalg.norm(matrix)) < LIMIT * norm.stderr
    diagonal = curvature.diagonal(loss, params, batch, **settings)
    z = (ravel(diagonal.value) - np.diag(matrix)) / ravel(diagonal.stderr)
    assert np.abs(z).max() < LIMIT
    operator = curvature.hessian(loss, params, batch)
    block = curvature.trace(curvature.restrict(operator, "second"), **settings)
    assert abs(block.value - np.trace(matrix[25:, 25:])) < LIMIT * block.stderr


def test_density():
    params, batch = problem()
    exact = np.linalg.eigvalsh(hessian_matrix())
    found = curvature.spectral_density(
        loss, params, batch, key=jax.random.key(0), num_matvecs=43, num_probes=40, reorthogonalize=True
    )
    np.testing.assert_allclose(np.sum(found.density) * (found.grid[1] - found.grid[0]), 1, rtol=1e-3)
    width = found.width
    bells = np.exp(-(((found.grid[:, None] - exact) / width) ** 2) / 2).mean(axis=1) / np.sqrt(2 * np.pi) / width
    seen = found.stderr > 1e-3 * found.density.max()
    # 40 probes: Student's tails, hence the higher limit
    assert np.abs((found.density - bells) / np.where(seen, found.stderr, np.inf)).max() < 2 * LIMIT
    assert seen.sum() > 20
    middle_of_gap = (exact[-1] + exact[-2]) / 2
    count = found.count_above(middle_of_gap)
    assert abs(count.mean - 1) < 2 * LIMIT * count.stderr
    mean = found.mean_of(lambda t: t)
    assert abs(mean.mean - exact.mean()) < 2 * LIMIT * mean.stderr
    wide = found.on(found.grid, 10 * width)
    assert wide.density.max() < found.density.max() and wide.width == 10 * width


def test_gradient_overlap_and_outliers():
    params, batch = problem()
    found = curvature.top_eigenvalues(loss, params, batch, k=5, key=jax.random.key(0))
    overlap = curvature.gradient_overlap(loss, params, batch, found.vectors)
    gradient = ravel(jax.grad(loss)(params, batch))
    rows = np.stack([ravel(jax.tree.map(lambda leaf, i=i: leaf[i], found.vectors)) for i in range(5)])
    np.testing.assert_allclose(overlap, np.cumsum((rows @ gradient) ** 2) / (gradient @ gradient), rtol=1e-4)
    with pytest.raises(ValueError, match="vectors must be like params"):
        curvature.gradient_overlap(loss, params, batch, params)
    apart = curvature.outliers(np.array([10.0, 9.0, 8.0, 2.0, 1.9]))
    assert apart.count == 3 and apart.ratio == 4 and apart.threshold == 4 and not apart.certain
    narrow = np.array([10.0, 9.0, 8.0, 2.0, 1.9])[:, None] + np.array([-0.1, 0.1])
    assert curvature.outliers(np.array([10.0, 9.0, 8.0, 2.0, 1.9]), narrow).certain
    assert curvature.outliers(np.array([1.3, 1.2, 1.1])).count == 0


def test_new_parameters_and_data_compile_nothing():
    traces = []

    def counted(params, batch):
        traces.append(1)
        return loss(params, batch)

    params, batch = problem()
    for i in range(3):
        moved = jax.tree.map(lambda leaf, i=i: leaf + i, (params, batch))
        curvature.top_eigenvalues(counted, *moved, k=5, key=jax.random.key(i), max_matvecs=12)
        first = len(traces) if i == 0 else first
    assert len(traces) == first


def test_a_product_alone_is_one_program():
    """Operation by operation a product of two layers compiles some thirty programs, and takes twice as long."""
    from tests import doors

    params, batch = jax.tree.map(jnp.asarray, problem())
    operator = curvature.hessian(loss, params, batch)
    with doors.compilations() as compiled:
        jax.block_until_ready(operator(params))
    assert len(compiled) == 1
    moved = jax.tree.map(lambda leaf: leaf + 1, params)
    with doors.compilations() as compiled:
        found = jax.block_until_ready(operator(moved))
    assert not compiled
    inside = jax.jit(lambda operator, v: operator(v))(operator, moved)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, inside)


class Held:
    """A loss that is an object with arrays, as a module of Equinox is one."""

    __hash__ = None

    def __init__(self):
        self.traces, self.target = [], jnp.ones(3, WIDEST)

    def __call__(self, params, batch):
        self.traces.append(1)
        return jnp.mean((batch @ params - self.target) ** 2)


@pytest.mark.parametrize("form", ["object", "method", "Partial"])
@pytest.mark.parametrize("operator", ["hessian", "empirical_fisher"])
def test_every_form_of_a_loss_is_known_again(form, operator):
    held = Held()
    once = jax.tree_util.Partial(held.__call__)
    for i in range(2):
        loss = {"object": held, "method": held.__call__, "Partial": once}[form]
        params, key = jnp.full(3, 1.0 + i, WIDEST), jax.random.key(i)
        curvature.trace(loss, params, (1.0 + i) * jnp.eye(3, dtype=WIDEST), key=key, num_matvecs=2, operator=operator)
        first = len(held.traces) if i == 0 else first
    assert len(held.traces) == first


def test_convolutions_are_not_linearized_on_a_cpu():
    from numdl.analysis.curvature import _operators

    def convolved(params, batch):
        z = jax.lax.conv_general_dilated(batch, params, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.mean(jnp.tanh(z) ** 2)

    images = jnp.ones((2, 4, 4, 1), WIDEST)
    conv = curvature.hessian(convolved, jnp.ones((3, 3, 1, 2), WIDEST), images)
    linearized = lambda operator, asked: _operators.settled(operator, asked)[1]  # noqa: E731
    assert linearized(curvature.hessian(loss, *problem()), None)
    assert linearized(conv, None) == (jax.default_backend() != "cpu")
    assert linearized(conv, True)


def test_memory_is_told_before(monkeypatch):
    from numdl.analysis.curvature import _memory

    params, batch = problem()
    operator = curvature.hessian(loss, params, batch)
    plan = curvature.needs(operator, basis=10)
    itemsize = WIDEST.itemsize
    assert plan.vector == 43 * itemsize and plan.basis == 20 * 43 * itemsize and plan.enough
    assert plan.product >= N * 5 * itemsize
    assert curvature.needs(curvature.hessian(loss, params, batch, chunk=4), basis=10).product < plan.product
    monkeypatch.setattr(_memory, "available", lambda: 1.5 * plan.product)
    with pytest.raises(MemoryError, match="top_eigenvalues needs .* at once .* are free: take chunk="):
        curvature.top_eigenvalues(loss, params, batch, key=jax.random.key(0))
    monkeypatch.setattr(_memory, "available", lambda: 3.0 * plan.product + 60 * plan.vector)
    with pytest.raises(MemoryError, match=r"take basis=\d+"):
        curvature.top_eigenvalues(loss, params, batch, key=jax.random.key(0))


def test_errors_name_the_argument():
    params, batch = problem()
    key = jax.random.key(0)
    with pytest.raises(TypeError, match="loss must be a Composed, .*two halves"):
        curvature.top_eigenvalues(loss, params, batch, key=key, operator="gauss_newton")
    with pytest.raises(ValueError, match="operator must be one of hessian, .*; got 'ggn'"):
        curvature.top_eigenvalues(loss, params, batch, key=key, operator="ggn")
    with pytest.raises(ValueError, match="params must not be given: an Operator holds its own params"):
        curvature.trace(curvature.hessian(loss, params, batch), params, key=key)
    with pytest.raises(ValueError, match="likelihood must be one of categorical"):
        curvature.fisher(outputs, params, batch, likelihood="poisson")
    with pytest.raises(ValueError, match=r"outputs must return an array \[examples, ..., C\]; .*to \(24, 1\) for 24 "):
        curvature.fisher(lambda p, b: outputs(p, b).ravel()[:24], params, batch, likelihood="bernoulli")
    with pytest.raises(ValueError, match="linearize keeps the whole data's activations"):
        curvature.trace(loss, params, batch, key=key, chunk=4, linearize=True)
    with pytest.raises(
        ValueError, match="params must hold at least one floating-point array that is not frozen; got a"
    ):
        curvature.hessian(loss, {"a": jnp.zeros(3, jnp.int32)}, batch)
    with pytest.raises(ValueError, match="batch must have leaves of one length along axis 0, the examples"):
        curvature.hessian(loss, params, {"x": batch["x"], "y": batch["y"][:3]}, chunk=2)
    with pytest.raises(ValueError, match="method must be one of hutchinson"):
        curvature.trace(loss, params, batch, key=key, method="exact")
