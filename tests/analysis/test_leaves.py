"""What is no trainable real number in params: masks, tables, keys, complex weights, running statistics, counters.

One rule in every analysis: real floating leaves move, complex ones as two reals, all else stays. The oracle is the same
function of a vector of what moves, differentiated densely.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from numdl.analysis import curvature, descent, generalization, kernels, landscape

pytestmark = pytest.mark.float32
WIDEST = jnp.zeros(()).dtype
RNG = np.random.default_rng(0)
X, Y = jnp.asarray(RNG.normal(size=(6, 3)), WIDEST), jnp.asarray(RNG.normal(size=(6, 2)), WIDEST)


def numbers(*shape):
    return jnp.asarray(RNG.normal(size=shape), WIDEST)


def plain():
    """(params, frozen, function of params): a mask, a table, a key, a counter, a Python number, running statistics."""
    params = {
        "count": 3,
        "gain": 1.5,
        "key": jax.random.key(0),
        "mask": jnp.array([[True, False], [True, True], [False, True]]),
        "stats": {"mean": numbers(3), "var": jnp.abs(numbers(3)) + 1},
        "table": jnp.array([1, 0]),
        "w": numbers(3, 2),
    }

    def apply(params, x):
        z = (x - params["stats"]["mean"][None]) / jnp.sqrt(params["stats"]["var"])[None]
        noise = jax.random.normal(params["key"], (2,), x.dtype)
        return params["gain"] * jnp.tanh(z @ (params["w"] * params["mask"]))[:, params["table"]] + noise[None]

    return params, "stats", apply, {"gain": (), "w": (3, 2)}


def complex_weights():
    params = {"u": numbers(3, 2) + 1j * numbers(3, 2), "v": numbers(2, 2)}

    def apply(params, x):
        z = x @ params["u"]
        return jnp.tanh(jnp.real(z * jnp.conj(z)) @ params["v"]) + jnp.imag(z)

    return params, (), apply, {"u": (3, 2), "v": (2, 2)}


def nnx_state():
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first, self.norm = nnx.Linear(3, 4, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
            self.drop, self.last = nnx.Dropout(0.5, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)

        def __call__(self, x):
            return self.last(self.drop(jnp.tanh(self.norm(self.first(x)))))

    net = Net(nnx.Rngs(0))
    net.eval()
    graph, params = nnx.split(net)  # parameters, statistics, the dropout's key and counter in one state
    shapes = {"bias": (4,), "kernel": (3, 4)}
    return params, ("*/mean", "*/var"), lambda params, x: nnx.merge(graph, params)(x), shapes


def linen_variables():
    nn = pytest.importorskip("flax.linen")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(jnp.tanh(nn.BatchNorm(use_running_average=True)(nn.Dense(3)(x))))

    return Net().init(jax.random.key(0), X), "batch_stats", Net().apply, {}


def equinox_module():
    eqx = pytest.importorskip("equinox")

    class Net(eqx.Module):
        weight: jax.Array
        order: jax.Array
        width: int = eqx.field(static=True)

        def __call__(self, x):
            return jnp.tanh(x @ self.weight)[:, self.order]

    return Net(numbers(3, 2), jnp.array([1, 0]), 2), (), lambda params, x: params(x), {"weight": (3, 2)}


MODELS = {
    "plain": plain,
    "complex": complex_weights,
    "nnx": nnx_state,
    "linen": linen_variables,
    "equinox": equinox_module,
}
# Those that compile for seconds; each kind of leaf is in "plain" and "complex", each framework in the kernels' test.
QUICK = [pytest.param(n, marks=[pytest.mark.slow] * (n in ("nnx", "linen"))) for n in MODELS]


@functools.cache
def model(name):
    params, frozen, apply, _ = MODELS[name]()

    def loss(params, batch):
        return jnp.mean((apply(params, batch[0]) - batch[1]) ** 2)

    return params, frozen, apply, loss


def moves(params, frozen):
    """Whether each leaf moves, by hand."""
    still = {"stats": ("stats",), "batch_stats": ("batch_stats",), (): ()}.get(frozen, ("mean", "var"))
    pairs = jax.tree_util.tree_leaves_with_path(params)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in pairs]
    inexact = [jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.inexact) for _, leaf in pairs]
    return [ok and not any(part in still for part in name.split("/")) for ok, name in zip(inexact, names, strict=True)]


def flattened(params, frozen):
    """(vector of what moves, complex numbers as two, and the way back)."""
    leaves, structure = jax.tree.flatten(params)
    mine = moves(params, frozen)
    chosen = [jnp.asarray(leaf) for leaf, ok in zip(leaves, mine, strict=True) if ok]
    vector = jnp.concatenate(
        [part.ravel() for leaf in chosen for part in ((leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,))]
    )

    def back(vector):
        found, place = list(leaves), 0
        for index, leaf in enumerate(leaves):
            if mine[index]:
                shape, count = np.shape(leaf), np.size(leaf)
                part = vector[place : place + count].reshape(shape)
                place += count
                if jnp.iscomplexobj(leaf):
                    part = part + 1j * vector[place : place + count].reshape(shape)
                    place += count
                found[index] = part
        return jax.tree.unflatten(structure, found)

    return vector, back


def check_still(direction, params, frozen):
    for leaf, like, ok in zip(*map(jax.tree.leaves, (direction, params)), moves(params, frozen), strict=True):
        assert np.shape(leaf) == np.shape(like)
        if not ok:
            assert not np.any(np.asarray(leaf)), "it must not move"


@pytest.mark.parametrize("name", QUICK)
def test_curvature_counts_what_moves(name):
    params, frozen, _, loss = model(name)
    vector, back = flattened(params, frozen)
    dense = np.asarray(jax.jit(jax.hessian(lambda v: loss(back(v), (X, Y))))(vector), np.float64)
    operator = curvature.hessian(loss, params, (X, Y), frozen=frozen)
    assert operator.size == vector.size
    found = curvature.top_eigenvalues(operator, key=jax.random.key(0), k=2)
    exact = np.linalg.eigvalsh(dense)[::-1][:2]
    np.testing.assert_allclose(found.values, exact, atol=1e-3 * abs(exact[0]))
    assert jax.tree.structure(found.vectors) == jax.tree.structure(params)
    first = jax.tree.map(lambda leaf: leaf[0], found.vectors)
    check_still(first, params, frozen)
    along = np.asarray(flattened(first, frozen)[0], np.float64)
    np.testing.assert_allclose(dense @ along, exact[0] * along, atol=2e-3 * abs(exact[0]))
    if name == "plain":
        product = operator(first)  # a tree like params in, a tree like params out
        check_still(product, params, frozen)
        np.testing.assert_allclose(flattened(product, frozen)[0], dense @ along, atol=1e-3 * abs(exact[0]))
        again = curvature.top_eigenvalues(operator, key=jax.random.key(1), k=1, start=found.vectors)
        np.testing.assert_allclose(again.values, exact[:1], atol=1e-3 * abs(exact[0]))
        diagonal = curvature.diagonal(loss, params, (X, Y), frozen=frozen, key=jax.random.key(0), num_matvecs=4)
        check_still(diagonal.value, params, frozen)
        block = curvature.restrict(operator, "w")
        assert block.size == 6 and set(curvature.blocks(operator)) == {"gain", "w"}
        share = curvature.gradient_overlap(loss, params, (X, Y), found.vectors, frozen=frozen)
        gradient = np.asarray(jax.jit(jax.grad(lambda v: loss(back(v), (X, Y))))(vector))
        assert abs(share[0] - (along @ gradient) ** 2 / np.sum(gradient**2)) < 1e-3


@pytest.mark.parametrize("name", QUICK)
def test_landscapes_move_what_moves(name):
    params, frozen, _, loss = model(name)
    vector, back = flattened(params, frozen)
    along = landscape.direction(jax.random.key(1), params, vectors=True, frozen=frozen)
    check_still(along, params, frozen)
    step = flattened(along, frozen)[0]
    value = jax.jit(lambda vector: loss(back(vector), (X, Y)))
    want = [float(value(vector + t * step)) for t in (-1.0, 0.5)]
    line = landscape.line(loss, params, (X, Y), along, positions=np.array([-1.0, 0.5]), frozen=frozen)
    np.testing.assert_allclose(line.values, want, rtol=1e-4)
    other = back(vector + step)
    path = landscape.interpolation(loss, params, other, (X, Y), points=3, frozen=frozen)
    np.testing.assert_allclose(path.values[1], float(value(vector + step / 2)), rtol=1e-4)
    if name in ("plain", "complex"):
        settings = {"steps": 2, "learning_rate": 0.1, "points": 3, "frozen": frozen}
        found = landscape.connect(jax.random.key(0), loss, params, other, (X, Y), **settings)
        change = jax.tree.map(
            lambda a, b: np.any(np.asarray(a) != np.asarray(b)), *map(_numeric, (found.middle, params))
        )
        assert [bool(c) for c in jax.tree.leaves(change)] == [
            ok for ok, leaf in zip(moves(params, frozen), jax.tree.leaves(params)) if _is_numeric(leaf)
        ]
        point = landscape.critical_point(loss, params, (X, Y), steps=2, frozen=frozen)
        assert point.eigenvalues.shape == (vector.size,)


def _is_numeric(leaf):
    return not jax.dtypes.issubdtype(getattr(leaf, "dtype", type(leaf)), jax.dtypes.extended)


def _numeric(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if _is_numeric(leaf)]


@pytest.mark.parametrize(
    "name, method",
    [*((name, "layers") for name in MODELS), *((n, m) for n in ("plain", "complex") for m in ("jacobian", "products"))],
)
def test_kernels_count_what_moves(name, method):
    params, frozen, apply, _ = model(name)
    vector, back = flattened(params, frozen)
    rows = np.asarray(jax.jit(jax.jacobian(lambda v: apply(back(v), X)))(vector), np.float64).reshape(6, 2, -1)
    found = kernels.ntk(apply, params, X, frozen=frozen, method=method, outputs="full")
    want = np.einsum("nip,mjp->nmij", rows, rows)
    np.testing.assert_allclose(found, want, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("name", ["plain", "complex"])
def test_linear_models_keep_what_stays(name):
    params, frozen, apply, _ = model(name)
    vector, back = flattened(params, frozen)
    step = 0.1 * np.arange(1, vector.size + 1) / vector.size
    new = back(vector + step)
    want, push = jax.jvp(lambda v: apply(back(v), X), (vector,), (jnp.asarray(step, WIDEST),))
    np.testing.assert_allclose(kernels.linearize(apply, params, frozen=frozen)(new, X), want + push, rtol=1e-4)
    error = kernels.linearization_error(apply, params, new, X, frozen=frozen)
    np.testing.assert_allclose(error.error, np.linalg.norm(apply(new, X) - want - push), rtol=1e-3)


@pytest.mark.parametrize("name", ["plain", "complex", pytest.param("nnx", marks=pytest.mark.slow)])
def test_descent_moves_what_moves(name):
    params, frozen, _, loss = model(name)
    vector, back = flattened(params, frozen)
    dense = np.asarray(jax.jit(jax.hessian(lambda v: loss(back(v), (X, Y))))(vector), np.float64)
    start = landscape.direction(jax.random.key(1), params, vectors=True, frozen=frozen)
    sharp = descent.sharpness(loss, params, (X, Y), start=start, num_matvecs=vector.size, frozen=frozen)
    np.testing.assert_allclose(sharp.value, np.linalg.eigvalsh(dense)[-1], rtol=1e-3)
    check_still(sharp.vector, params, frozen)
    settings = {"steps": 2, "every": 1, "num_matvecs": 3, "frozen": frozen}
    run = descent.along(jax.random.key(0), loss, params, (X, Y), optax.sgd(0.1), **settings)
    slope = jax.jit(jax.grad(lambda v: loss(back(v), (X, Y))))
    want = vector - 0.1 * slope(vector)
    np.testing.assert_allclose(flattened(run.params, frozen)[0], want - 0.1 * slope(want), rtol=1e-4, atol=1e-6)
    rows = descent.path(lambda params: loss(params, (X, Y)), params, optax.sgd(0.1), steps=1, frozen=frozen)
    last = jax.tree.map(lambda leaf: leaf[-1], rows)
    np.testing.assert_allclose(flattened(last, frozen)[0], want, rtol=1e-4, atol=1e-6)


def test_noise_and_principal_planes_leave_what_stays():
    params, frozen, _, loss = model("plain")
    at = functools.partial(generalization.tolerated_variance, jax.random.key(0), rise=0.1, draws=4)
    found = at(loss, params, (X, Y), frozen=frozen)
    assert found.found and found.variance > 0
    rows = descent.path(lambda params: loss(params, (X, Y)), params, optax.sgd(0.1), steps=4, frozen=frozen)
    seen = landscape.plane_of_trajectory(rows, frozen=frozen)
    check_still(seen.directions[0], params, frozen)
    np.testing.assert_allclose(seen.explained.sum(), 1, atol=0.05)


def test_a_negative_sharpness_is_no_zero():
    """Lanczos ends after one step; what follows is no eigenvalue."""
    loss = lambda params, batch: -jnp.sum(params**2) / 2  # noqa: E731
    found = descent.sharpness(loss, jnp.zeros(4, WIDEST), None, start=np.arange(4.0), num_matvecs=3)
    np.testing.assert_allclose(found.value, -1.0, rtol=1e-5)
    np.testing.assert_allclose(found.vector, np.arange(4) / np.sqrt(14), rtol=1e-5)


def test_functions_and_examples_that_meet_are_refused():
    params, _, apply, loss = model("plain")
    with pytest.raises(TypeError, match=r"params\['f'\] must be an array"):
        curvature.hessian(loss, {**params, "f": jnp.tanh}, (X, Y))
    normalized = lambda params, x: apply(params, x - jnp.mean(x, axis=0, keepdims=True))  # noqa: E731
    with pytest.raises(ValueError, match="apply must treat the examples one by one; got outputs on x1 that differ"):
        kernels.ntk(normalized, params, X)
    with pytest.raises(TypeError, match="apply must return one array of real numbers"):
        kernels.ntk(lambda params, x: x @ params["u"], model("complex")[0], X)


def test_a_second_call_compiles_nothing():
    from tests import doors

    params, frozen, apply, loss = model("plain")
    along = landscape.direction(jax.random.key(1), params, frozen=frozen)
    calls = (
        lambda: curvature.top_eigenvalues(loss, params, (X, Y), key=jax.random.key(0), k=1, frozen=frozen),
        lambda: landscape.line(loss, params, (X, Y), along, positions=np.array([0.0, 1.0]), frozen=frozen),
        lambda: kernels.ntk(apply, params, X, frozen=frozen),
    )
    for call in calls:
        call()
        with doors.compilations() as compiled:
            call()
        assert not compiled
