"""Lanczos against dense eigenvalues on spectra that are hard in ten ways each of five kinds."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.krylov import test_lanczos as oracle
from tests.verification import above, below, near, study


def hard(full):
    """(kind, number, matrix, exact eigenvalues descending): 50 matrices, or one of each of two kinds."""
    for kind in oracle.KINDS if full else ("clustered", "degenerate"):
        for case in range(10 if full else 1):
            rng = np.random.default_rng([case, oracle.KINDS.index(kind)])
            yield kind, *oracle.matrix_of(oracle.spectrum(kind, rng), rng)


@study("Lanczos against dense eigenvalues")
def lanczos(full):
    """The five largest of 64 eigenvalues, relative to the largest in size; orthogonality; what the record promises."""
    rows = [(kind, *_compared(*problem)) for kind, *problem in hard(full)]
    for kind in dict.fromkeys(row[0] for row in rows):
        top, five, orthogonality = np.max([row[1:4] for row in rows if row[0] == kind], axis=0)
        tried = f"{sum(row[0] == kind for row in rows)} matrices of 64 rows"
        yield below(f"{kind}: largest eigenvalue", top, 1e-12, tried)
        yield below(f"{kind}: five largest", five, 1e-10, tried)
        yield below(f"{kind}: orthogonality of the vectors", orthogonality, 1e-13, tried)
    missed = sum(row[4] for row in rows)
    yield near("eigenvalues outside of their intervals", missed, 0, 0, f"{5 * len(rows)} intervals, converged or not")
    yield near("converged and wrong", sum(row[5] for row in rows), 0, 0, f"{5 * len(rows)} eigenvalues")
    if full:
        lost = _without_reorthogonalization()
        yield above("planted: orthogonality without reorthogonalization", lost, 0.1, "80 steps, 5 outliers of 200")


def _compared(matrix, exact):
    k, scale = oracle.K, np.abs(exact).max()
    found = oracle.solve(matrix, tolerance=1e-9, max_matvecs=3000)
    gaps = np.abs(found.values - exact[:k]) / scale
    vectors = np.asarray(found.vectors)
    orthogonality = np.abs(vectors @ vectors.T - np.eye(k)).max()
    missed, wrong = 0, int(np.sum(found.converged & (gaps > 1e-9)))
    for record in (found, oracle.solve(matrix, max_matvecs=14, basis=24)):
        missed += int(np.sum((record.intervals[:, 0] > exact[:k]) | (exact[:k] > record.intervals[:, 1])))
    return gaps[0], gaps.max(), orthogonality, missed, wrong


def _without_reorthogonalization():
    """|Q'Q - 1| of the plain recurrence written here: the figure must see what full reorthogonalization prevents."""
    rng = np.random.default_rng(0)
    matrix, _ = oracle.matrix_of(np.concatenate([[100.0, 90, 80, 70, 60], rng.uniform(0, 1, 195)]), rng)
    matrix, rows = np.asarray(matrix, float), [rng.normal(size=200)]
    rows[0] /= np.linalg.norm(rows[0])
    before, beta = np.zeros(200), 0.0
    for _ in range(80):
        w = matrix @ rows[-1] - beta * before
        w -= (w @ rows[-1]) * rows[-1]
        before, beta = rows[-1], np.linalg.norm(w)
        rows.append(w / beta)
    return np.abs(np.array(rows) @ np.array(rows).T - np.eye(len(rows))).max()


@study("Lanczos in float32")
def lanczos_single(full):
    """The same in single precision, against the eigenvalues of the rounded matrix."""
    from numdl.krylov import lanczos as package

    gaps, copies = [], 0
    for _, matrix, _ in list(hard(full))[:: 5 if full else 2]:
        small = matrix.astype(jnp.float32)
        exact = np.linalg.eigvalsh(np.asarray(small, np.float64))[::-1]
        like = jax.ShapeDtypeStruct((len(small),), jnp.float32)
        product = jax.tree_util.Partial(oracle.times, small)
        found = package.eigenpairs(jax.random.key(0), product, like, k=oracle.K, tolerance=1e-5, max_matvecs=2000)
        gaps.append(np.abs(found.values - exact[: oracle.K]).max() / np.abs(exact).max())
        copies += int(np.sum(np.linalg.svd(np.asarray(found.vectors), compute_uv=False) < 0.5))
    yield below("five largest", max(gaps), 1e-6, f"{len(gaps)} matrices of 64 rows")
    yield near("copies of an eigenvector", copies, 0, 0, f"{len(gaps)} matrices of 64 rows")
