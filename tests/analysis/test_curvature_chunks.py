"""Curvature in chunks: right against the dense matrix of the whole loss, or refused; never a number beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.analysis import curvature

pytestmark = pytest.mark.float32
WIDEST = jnp.zeros(()).dtype
N, D, C = 14, 3, 2
RNG = np.random.default_rng(0)
X, Y = jnp.asarray(RNG.normal(size=(N, D)), WIDEST), jnp.asarray(RNG.normal(size=(N, C)), WIDEST)
PARAMS = jnp.asarray(RNG.normal(size=(D, C)), WIDEST)
INDEX = np.arange(N)
EVEN, PADDED = jnp.ones(N, WIDEST), jnp.asarray(INDEX < 9, WIDEST)
SORTED = jnp.asarray(np.where(INDEX < 7, 1.0, 9.0), WIDEST)


def squares(params, batch):
    return jnp.sum((jnp.tanh(batch[0] @ params) - batch[1]) ** 2, axis=-1)


def mean(params, batch):
    return jnp.mean(squares(params, batch))


def total(params, batch):
    return jnp.sum(squares(params, batch))


def weighted(params, batch):
    return jnp.sum(batch[2] * squares(params, batch)) / jnp.sum(batch[2])


def pair(params, batch):
    return jnp.sum(batch[2] * squares(params, batch)), jnp.sum(batch[2])


def with_batch_statistics(params, batch):
    return mean(params, (batch[0] - jnp.mean(batch[0], axis=0, keepdims=True), batch[1]))


def contrastive(params, batch):
    logits = jnp.tanh(batch[0] @ params) @ batch[1].T
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(logits)))


def of_neighbours(params, batch):
    z = jnp.tanh(batch[0] @ params)
    return mean(params, batch) + jnp.mean((z[1:] - z[:-1]) ** 2) if len(z) > 1 else mean(params, batch)


def of_the_hardest(params, batch):
    return jnp.mean(jnp.sort(squares(params, batch))[-3:])


def first_seven(params, batch):
    return jnp.mean(squares(params, batch)[:7])


def self_weighted(params, batch):
    weights = jax.nn.sigmoid(batch[0] @ params[:, 0])
    return jnp.sum(weights * squares(params, batch)), jnp.sum(weights)


def zero_at_first(params, batch):
    return jnp.sum(jax.nn.relu(1 - batch[1] * jnp.tanh(batch[0] @ params[:, 0])) ** 2)


def dense(loss, batch):
    return np.asarray(jax.hessian(loss)(PARAMS, batch), np.float64).reshape(D * C, D * C)


def matrix(operator):
    apply = operator if operator.chunk else jax.jit(lambda v: operator(v))
    columns = [apply(v.reshape(D, C)) for v in np.eye(D * C, dtype=WIDEST)]
    return np.asarray(jnp.stack(columns), np.float64).reshape(D * C, D * C)


@pytest.mark.parametrize(
    "loss, batch, reduction",
    [
        (mean, (X, Y), None),
        (total, (X, Y), "sum"),
        (pair, (X, Y, EVEN), None),
        (pair, (X, Y, PADDED), None),
        (pair, (X, Y, SORTED), None),
        (pair, (X, Y, PADDED > 0), None),
    ],
    ids=["mean", "sum", "even", "padded", "classes", "bool mask"],
)
@pytest.mark.parametrize("chunk", [4, 13])
def test_chunks_make_the_whole(loss, batch, reduction, chunk):
    def scalar(params, batch):
        found = loss(params, batch)
        return found[0] / found[1] if isinstance(found, tuple) else found

    found = matrix(curvature.hessian(loss, PARAMS, batch, chunk=chunk, reduction=reduction))
    np.testing.assert_allclose(found, dense(scalar, batch), atol=1e-4 * np.abs(found).max())


WRONG = {
    "padding": (weighted, (X, Y, PADDED), None),
    "padding only in the last chunk": (weighted, (X, Y, jnp.asarray(INDEX < 10, WIDEST)), None),
    "class weights": (weighted, (X, Y, SORTED), None),
    "sum": (total, (X, Y), None),
    "mean said to be a sum": (mean, (X, Y), "sum"),
    "sum, 0 at first": (
        zero_at_first,
        (X * jnp.where(INDEX < 7, 50.0, 1.0)[:, None], jnp.sign(X @ PARAMS[:, 0])),
        None,
    ),
    "batch statistics": (with_batch_statistics, (X, Y), None),
    "contrastive": (contrastive, (X, Y), None),
    "neighbours": (of_neighbours, (X, Y), None),
    "hardest": (of_the_hardest, (X, Y), None),
    "the first only": (first_seven, (X, Y), None),
}


@pytest.mark.parametrize(
    "name, room", [*((name, True) for name in WRONG), *((name, False) for name in ("padding", "sum", "neighbours"))]
)
def test_what_chunks_do_not_make_is_refused(name, room, monkeypatch):
    loss, batch, reduction = WRONG[name]
    if not room:
        monkeypatch.setattr(curvature._memory, "available", lambda: 1.0)  # examples are dealt into other chunks
    with pytest.raises(
        ValueError, match="with chunk, the loss must be a .* over examples; got .*freeze batch statistics"
    ):
        curvature.hessian(loss, PARAMS, batch, chunk=5 if name != "sum, 0 at first" else 7, reduction=reduction)


def test_the_remedy_is_told():
    with pytest.raises(ValueError, match='it is a sum over examples: reduction="sum"'):
        curvature.hessian(total, PARAMS, (X, Y), chunk=7)
    with pytest.raises(ValueError, match='it is a mean over examples: reduction="mean"'):
        curvature.hessian(mean, PARAMS, (X, Y), chunk=4, reduction="sum")
    with pytest.raises(ValueError, match="must depend on the data only; got one that changes with params"):
        curvature.hessian(self_weighted, PARAMS, (X, Y), chunk=4)
    with pytest.raises(ValueError, match="weights of a loss .* must have a positive sum; got 0"):
        curvature.hessian(pair, PARAMS, (X, Y, 0 * EVEN), chunk=4)
    with pytest.raises(ValueError, match=r"reduction must be None for a loss that returns \(sum, weight\); got 'mean'"):
        curvature.hessian(pair, PARAMS, (X, Y, EVEN), chunk=4, reduction="mean")


def test_other_matrices_in_chunks():
    def outputs(params, batch):
        return jnp.tanh(batch[0] @ params)

    def of_outputs(z, batch):
        return jnp.sum(batch[2] * jnp.sum((z - batch[1]) ** 2, axis=-1)), jnp.sum(batch[2])

    batch = (X, Y, PADDED)
    whole = matrix(curvature.gauss_newton(outputs, of_outputs, PARAMS, batch))
    jacobian = np.asarray(jax.jacobian(outputs)(PARAMS, batch), np.float64).reshape(N, C, D * C)
    want = 2 * np.einsum("n,nkp,nkq->pq", np.asarray(PADDED) / 9, jacobian, jacobian)
    np.testing.assert_allclose(whole, want, atol=1e-4)
    np.testing.assert_allclose(
        matrix(curvature.gauss_newton(outputs, of_outputs, PARAMS, batch, chunk=5)), want, atol=1e-4
    )
    normalized = lambda params, batch: outputs(params, (batch[0] - jnp.mean(batch[0], axis=0, keepdims=True),))  # noqa: E731
    with pytest.raises(ValueError, match="must be a mean over examples"):
        curvature.fisher(normalized, PARAMS, batch, likelihood="categorical", chunk=5)
    gradients = np.asarray(
        jax.vmap(jax.grad(lambda p, *one: mean(p, [a[None] for a in one])), (None, 0, 0))(PARAMS, X, Y)
    )
    rows = gradients.reshape(N, -1).astype(np.float64)
    want = np.einsum("n,np,nq->pq", np.asarray(PADDED) / 9, rows, rows)
    for chunk in (None, 5):
        found = matrix(curvature.empirical_fisher(pair, PARAMS, batch, chunk=chunk))
        np.testing.assert_allclose(found, want, atol=1e-4 * np.abs(want).max())


def test_a_mean_is_not_refused_where_its_curvature_is_rounding():
    flat = curvature.hessian(mean, PARAMS, (X, jnp.tanh(X @ PARAMS)), chunk=4)  # a minimum of value 0
    np.testing.assert_allclose(matrix(flat), dense(mean, (X, jnp.tanh(X @ PARAMS))), atol=1e-4)

    def saturated(params, batch):
        return jnp.mean(jax.nn.softplus(-40.0 - batch[0] @ params))

    curvature.hessian(saturated, PARAMS, (X, Y), chunk=4)

    def cross_entropy(params, batch):
        return -jnp.mean(jax.nn.log_softmax(batch[0] @ params)[:, 0])

    for size in (1e3, 1e5):  # probabilities are 0 and 1 but for rounding, which differs with the number of examples
        curvature.hessian(cross_entropy, size * PARAMS, (X, Y), chunk=4)
    curvature.hessian(lambda params, batch: jnp.mean(batch[0] @ params), PARAMS, (X, Y), chunk=4)  # no curvature at all


def test_the_second_call_compiles_nothing():
    def run(scale):
        return curvature.top_eigenvalues(pair, scale * PARAMS, (X, Y, PADDED), key=jax.random.key(0), k=1, chunk=5)

    from tests import doors

    run(1.0)
    with doors.compilations() as compiled:
        found = run(1.0)
    assert not compiled and found.converged.all()
