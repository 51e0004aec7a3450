"""The Hessian of a network of real size, 784-200-200-10 on 2000 digits, beside ARPACK at a tolerance of 1e-10."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl import activations, data
from numdl.analysis import curvature
from numdl.krylov import _vectors
from numdl.networks import dense

pytestmark = [pytest.mark.slow]


def digits():
    """2000 digits of 28 x 28: the bundled ones, each pixel three times in both directions, with a frame."""
    pytest.importorskip("sklearn")
    bundled = data.digits()
    images = np.kron(bundled.images, np.ones((1, 3, 3), np.float32))
    images = np.pad(images, ((0, 0), (2, 2), (2, 2))).reshape(-1, 784)
    order = np.arange(2000) % len(images)
    return images[order], np.eye(10, dtype=np.float32)[bundled.labels[order]]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_top_eigenvalues_beside_arpack(dtype):
    from scipy.sparse.linalg import LinearOperator, eigsh

    network = dense.network(
        widths=(784, 200, 200, 10), activation=activations.tanh, weight_variance=1.0, bias_variance=0.0
    )
    images, labels = digits()

    def loss(params, batch):
        return -jnp.mean(jnp.sum(jax.nn.log_softmax(network.apply(params, batch[0])) * batch[1], axis=-1))

    params = network.init(jax.random.key(0), jnp.asarray(images[:1], np.float32))
    single, double = (
        jax.tree.map(lambda leaf, kind=kind: jnp.asarray(leaf, kind), (params, (images, labels)))
        for kind in (dtype, np.float64)
    )
    found = curvature.top_eigenvalues(loss, *single, k=5, key=jax.random.key(1))

    operator = curvature.hessian(loss, *double)
    product, layout = _vectors.flat(operator, operator.like)
    matrix = LinearOperator(
        (layout.size, layout.size),
        matvec=lambda v: np.asarray(_vectors.apply(product, jnp.asarray(v.ravel(), np.float64))),
        dtype=np.float64,
    )
    exact = np.sort(eigsh(matrix, k=5, which="LA", tol=1e-10, return_eigenvectors=False))[::-1]
    np.testing.assert_allclose(found.values, exact, rtol=1e-4)
    assert found.converged.all()
    assert np.all((found.intervals[:, 0] <= exact) & (exact <= found.intervals[:, 1]))
    gaps = -np.diff(exact)
    assert np.all(-np.diff(found.values) > 0.5 * gaps)  # no value twice
