"""The chunk that is chosen from memory: the largest that fits, by a search over all; all at once where all fit."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from numdl import trees
from numdl.analysis import curvature
from numdl.analysis.curvature import _memory, _operators

N, D = 24, 4
X = jnp.asarray(np.random.default_rng(0).normal(size=(N, D)))
Y = jnp.asarray(np.random.default_rng(1).normal(size=(N, 2)))
KEY = jax.random.key(0)
WEIGHTS = {"first": jnp.full((D, 3), 0.3), "second": jnp.full((3, 2), 0.2)}


def dense(params, batch):
    return jnp.tanh(batch["x"] @ params["first"]) @ params["second"]


def squares(z, batch):
    return jnp.mean((z - batch["y"]) ** 2)


def loss(params, batch):
    return squares(dense(params, batch), batch)


def pair(params, batch):
    apart = (dense(params, batch) - batch["y"]) ** 2
    return jnp.sum(apart), jnp.sum(jnp.ones_like(apart))


def scanned(params, batch):
    return jnp.mean(lax.scan(lambda x, w: (x + jnp.tanh(x @ w), None), batch, params)[0] ** 2)


def convolved(params, batch):
    return jnp.mean(jnp.tanh(jax.vmap(lambda row: jnp.convolve(row, params, mode="same"))(batch)) ** 2)


BATCH = {"x": X, "y": Y}
MADE = {
    "hessian": lambda **more: curvature.hessian(loss, WEIGHTS, BATCH, **more),
    "hessian of a pair": lambda **more: curvature.hessian(pair, WEIGHTS, BATCH, **more),
    "hessian of a scan": lambda **more: curvature.hessian(scanned, jnp.full((5, D, D), 0.1), X, **more),
    "hessian of a convolution": lambda **more: curvature.hessian(convolved, jnp.full(3, 0.3), X, **more),
    "gauss_newton": lambda **more: curvature.gauss_newton(dense, squares, WEIGHTS, BATCH, **more),
    "fisher": lambda **more: curvature.fisher(dense, WEIGHTS, BATCH, likelihood="categorical", **more),
    "empirical_fisher": lambda **more: curvature.empirical_fisher(loss, WEIGHTS, BATCH, **more),
}


def slow(name):
    return pytest.param(name, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "name", ["hessian", "fisher", *map(slow, [name for name in MADE if " " in name or "_" in name])]
)
def test_the_chunk_is_the_largest_that_fits(name, monkeypatch):
    make = MADE[name]
    operator = make()
    kept = {count: operator.kept_bytes_of(count) for count in (1, 2, 6, 7, 8, N)}
    fixed = 2 * kept[1] - kept[2]
    free = 2.0 * kept[7] - fixed  # half of what is free beside the fixed part holds seven examples, and not eight
    monkeypatch.setattr(_memory, "available", lambda: free)
    found = make(chunk="auto")
    assert found.chunk == 7
    assert kept[7] - fixed <= (free - fixed) / 2 < kept[8] - fixed
    for limit, chunk in ((2.0 * kept[N], None), (2.0 * kept[6] - fixed, 6), (1.0, 1)):
        monkeypatch.setattr(_memory, "available", lambda limit=limit: limit)
        assert _memory.chosen(operator) == chunk


def test_it_gives_the_same_numbers(monkeypatch):
    v = jax.tree.map(jnp.cos, WEIGHTS)
    whole = MADE["hessian"]()
    monkeypatch.setattr(_memory, "available", lambda: 0.9 * whole.kept_bytes)
    found = MADE["hessian"](chunk="auto")
    assert 1 <= found.chunk < N
    for got, want in zip(jax.tree.leaves(found(v)), jax.tree.leaves(whole(v)), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


def test_all_at_once_where_all_fit():
    assert MADE["hessian"](chunk="auto").chunk is None
    one = curvature.hessian(loss, WEIGHTS, {"x": X[:1], "y": Y[:1]}, chunk="auto")
    assert one.chunk is None


CALLS = {
    "top_eigenvalues": lambda **more: (
        curvature.top_eigenvalues(loss, WEIGHTS, BATCH, key=KEY, k=1, basis=6, **more).values
    ),
    "trace": lambda **more: curvature.trace(loss, WEIGHTS, BATCH, key=KEY, num_matvecs=2, **more).value,
    "diagonal": lambda **more: curvature.diagonal(loss, WEIGHTS, BATCH, key=KEY, num_matvecs=2, **more).value,
    "frobenius_norm": lambda **more: (
        curvature.frobenius_norm(loss, WEIGHTS, BATCH, key=KEY, num_matvecs=2, **more).value
    ),
    "spectral_density": lambda **more: (
        curvature.spectral_density(loss, WEIGHTS, BATCH, key=KEY, num_matvecs=3, num_probes=2, points=3, **more).nodes
    ),
}


BASES = {"top_eigenvalues": 6, "trace": 2, "diagonal": 4, "frobenius_norm": 2, "spectral_density": 2}


@pytest.mark.parametrize("name", ["trace", *map(slow, list(BASES)[2:]), slow("top_eigenvalues")])
def test_a_refused_call_names_the_chunk_and_auto_takes_one(name, monkeypatch):
    want = CALLS[name]()
    operator = MADE["hessian"]()
    plan = curvature.needs(operator, basis=BASES[name], extra=2 if name == "top_eigenvalues" else 4)
    monkeypatch.setattr(_memory, "available", lambda: (plan.total - 0.1 * plan.product) / 0.9)
    with pytest.raises(MemoryError, match=r"take chunk=\d+") as refused:
        CALLS[name]()
    chunk = int(re.search(r"chunk=(\d+)", str(refused.value))[1])
    assert 1 <= chunk < N
    for one in (chunk, "auto"):
        for got, expected in zip(jax.tree.leaves(CALLS[name](chunk=one)), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_a_basis_that_is_too_large_beside_a_product_that_is_too_large(monkeypatch):
    operator = MADE["hessian"]()
    monkeypatch.setattr(_memory, "available", lambda: 1.2 * operator.kept_bytes)
    wide = {"k": 2, "basis": 18}
    with pytest.raises(MemoryError, match=r"take chunk=\d+ and basis=\d+") as refused:
        curvature.top_eigenvalues(operator, key=KEY, **wide)
    chunk, basis = map(int, re.search(r"chunk=(\d+) and basis=(\d+)", str(refused.value)).groups())
    for rows, enough in ((basis, True), (basis + 1, False)):
        assert curvature.needs(MADE["hessian"](chunk=chunk), basis=rows, extra=4).enough == enough


def test_what_no_chunk_mends_is_said(monkeypatch):
    monkeypatch.setattr(_memory, "available", lambda: 64.0)
    with pytest.raises(MemoryError, match="a smaller k, or one block"):
        CALLS["trace"]()
    with pytest.raises(MemoryError, match="a smaller batch"):
        curvature.trace(lambda p, b: jnp.sum(jnp.cos(p * b)), jnp.ones(50), jnp.ones(()), key=KEY)


def test_bad_chunks_are_refused():
    with pytest.raises(ValueError, match='chunk must be .*"auto".*atuo'):
        MADE["hessian"](chunk="atuo")
    with pytest.raises(ValueError, match="batch"):
        curvature.hessian(loss, WEIGHTS, {"x": X, "y": Y[:3]}, chunk="auto")
    with pytest.raises(ValueError, match="chunk"):
        curvature.trace(MADE["hessian"](), key=KEY, chunk="auto")


# ---- the chunk that is faster --------------------------------------------------------------------------------------


@pytest.fixture
def small_cache(monkeypatch):
    """A processor whose caches hold the activations of nine examples."""
    operator = MADE["hessian"]()
    each = (operator.kept_bytes_of(N) - operator.kept_bytes_of(N // 2)) / (N - N // 2)
    monkeypatch.setattr(_memory, "CACHE", 9 * each)
    monkeypatch.setattr(_memory, "DENSE", 1e9)


def coupled(params, batch):
    z = dense(params, batch)
    return jnp.mean((z - jnp.mean(z, axis=0, keepdims=True) - batch["y"]) ** 2)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_where_the_reduction_is_stated_chunks_that_stay_in_the_cache_are_the_default(small_cache, reduction):
    def summed(params, batch):
        return loss(params, batch) * (len(batch["x"]) if reduction == "sum" else 1)

    v = jax.tree.map(jnp.cos, WEIGHTS)
    plain = curvature.hessian(summed, WEIGHTS, BATCH)
    found = curvature.hessian(summed, WEIGHTS, BATCH, reduction=reduction)
    assert plain.chunk is None and found.chunk == 8
    for product in (found(v), jax.jit(lambda operator, v: operator(v))(found, v)):
        for got, want in zip(jax.tree.leaves(product), jax.tree.leaves(plain(v)), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)
    flat, tree = trees.ravel(WEIGHTS)
    matrix = jax.hessian(lambda flat: summed(tree(flat), BATCH))(flat)
    top = curvature.top_eigenvalues(found, key=KEY, k=1).values
    np.testing.assert_allclose(top, np.linalg.eigvalsh(matrix)[-1:], rtol=1e-4)
    kept = curvature.top_eigenvalues(found, key=KEY, k=1, linearize=True).values
    np.testing.assert_allclose(kept, top, rtol=1e-4)


def test_what_is_linearized_at_once_is_counted_at_once(small_cache, monkeypatch):
    found = curvature.hessian(loss, WEIGHTS, BATCH, reduction="mean")
    whole, chunk = (curvature.needs(each, basis=2) for each in (MADE["hessian"](), found))
    assert found.chunk == 8 and chunk.total < whole.total
    monkeypatch.setattr(_memory, "available", lambda: (chunk.total + whole.total) / 2 / 0.9)
    curvature.trace(found, key=KEY, num_matvecs=2)
    with pytest.raises(MemoryError, match="for the activations"):
        curvature.trace(found, key=KEY, num_matvecs=2, linearize=True)


def test_auto_takes_the_faster_chunk_and_all_at_once_where_chunks_do_not_make_the_whole(small_cache):
    assert MADE["hessian"](chunk="auto").chunk == 8
    assert MADE["hessian of a pair"]().chunk == 8
    for more in ({"chunk": "auto"}, {"reduction": "mean"}):
        operator = curvature.hessian(coupled, WEIGHTS, BATCH, **more)
        assert operator.chunk is None
    with pytest.raises(ValueError, match="a mean over examples"):
        curvature.hessian(coupled, WEIGHTS, BATCH, chunk=8)


def test_many_multiplications_for_each_activation_want_all_examples_at_once(small_cache, monkeypatch):
    operator = MADE["hessian"]()
    forward = N * (D * 3 + 3 * 2)
    ratio = _operators.multiplications(operator) / forward
    assert 5 <= ratio <= 10  # forward and backward, each with its tangents
    monkeypatch.setattr(_memory, "DENSE", 0.0)
    assert MADE["hessian"](chunk="auto").chunk is None


def test_a_product_of_a_scan_and_of_a_convolution_is_counted():
    scan = _operators.multiplications(MADE["hessian of a scan"]())
    once = _operators.multiplications(curvature.hessian(scanned, jnp.full((1, D, D), 0.1), X))
    assert scan == 5 * once
    assert _operators.multiplications(MADE["hessian of a convolution"]()) >= 4 * N * D * 3 // 2


@pytest.mark.parametrize("name", list(MADE))
def test_a_prepared_operator_is_the_same_matrix(name):
    operator = MADE[name]()
    kept = operator.prepared()
    v = jax.tree.map(jnp.cos, operator.params)
    assert (kept.push is not None) == ("convolution" not in name)
    assert kept.prepared() is kept
    _same(kept(v), operator(v))
    _same(jax.jit(lambda operator, v: operator(v))(kept, v), operator(v))
    _same(curvature.trace(kept, key=KEY, num_matvecs=2).value, curvature.trace(operator, key=KEY, num_matvecs=2).value)
    if isinstance(v, dict):
        block = curvature.restrict(kept, "first")
        _same(block({"first": v["first"]}), curvature.restrict(operator, "first")({"first": v["first"]}))
        assert block.push is None and all(each.push is None for each in curvature.blocks(kept).values())


def test_preparing_again_compiles_nothing():
    from tests import doors

    moved = jax.tree.map(lambda leaf: 2 * leaf, WEIGHTS)
    jax.block_until_ready(MADE["hessian"]().prepared()(WEIGHTS))
    with doors.compilations() as compiled:
        kept = curvature.hessian(loss, moved, BATCH).prepared()
        jax.block_until_ready([kept(moved), kept(WEIGHTS)])
    assert not compiled


def test_chunks_are_not_kept(small_cache):
    fast, asked = MADE["hessian"](reduction="mean"), MADE["hessian"](chunk=5)
    assert fast.chunk == 8 and fast.prepared() is fast and asked.prepared() is asked


def _same(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), got, want)
