"""MEASURED: the spectral density of a curvature matrix by stochastic Lanczos quadrature, with error bars."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Key, PyTree, ScalarLike

from numdl import checks, statistics
from numdl.analysis.curvature import _matrices, _memory, _operators
from numdl.krylov import trace
from numdl.records import record
from numdl.typing import Loss


@record
class SpectralDensity:
    """The density of eigenvalues, smoothed by a Gaussian of standard deviation `width`, and the rules it is made of."""

    grid: np.ndarray  # [points]
    density: np.ndarray  # [points]: mean over the probes; its integral is 1
    stderr: np.ndarray  # [points]: over the probes
    width: np.ndarray  # []
    nodes: np.ndarray  # [probes, m]: Ritz values; where Lanczos ended early the last one is repeated
    weights: np.ndarray  # [probes, m]: each row sums to 1; 0 for what is repeated
    size: int  # n, rows of the matrix

    def mean_of(self, function):
        """Mean over eigenvalues of function(eigenvalue), a `statistics.Mean` over the probes."""
        return statistics.mean_and_error(trace.weighted_sums(self.weights, self.nodes, function))

    def count_above(self, threshold):
        """How many eigenvalues lie above a threshold, a `statistics.Mean`; it wants a gap there, as at outliers."""
        threshold = checks.finite("threshold", threshold, shape=())
        return statistics.mean_and_error(self.size * np.sum(self.weights * (self.nodes > threshold), axis=1))

    def on(self, grid, width):
        """The same density on another grid, with another width."""
        grid = np.asarray(checks.finite("grid", checks.array("grid", grid, ndim=1)), np.float64)
        width = float(checks.positive("width", width, shape=()))
        return _smoothed(grid, width, self.nodes, self.weights, self.size)


def spectral_density(
    loss: Loss | _operators.Operator,
    params: PyTree = None,
    batch: PyTree = None,
    *,
    key: Key[Array, ""],
    num_matvecs: int = 100,
    num_probes: int = 10,
    operator: str = "hessian",
    width: ScalarLike | None = None,
    points: int = 500,
    frozen: Sequence[str] = (),
    chunk: int | str | None = None,
    reduction: str | None = None,
    linearize: bool | None = None,
    reorthogonalize: bool = False,
) -> SpectralDensity:
    """MEASURED spectral density (density of states) of the curvature of a loss, by stochastic Lanczos quadrature, SLQ.

        density(t) = mean over probes of sum_j weights[j] exp(-(t - nodes[j])^2 / (2 width^2)) / (sqrt(2 pi) width)

    A density by Lanczos: num_matvecs products for each of num_probes random vectors, standard errors over those.

    Parameters
    ----------
    loss, params, batch, operator, frozen, chunk, reduction, linearize : as in `top_eigenvalues`
    key : key                   of the random probes
    num_matvecs : int >= 1      Lanczos steps for each probe: structure down to about the spectrum's range / num_matvecs
    num_probes : int >= 2       the standard error falls with its root
    width : scalar > 0          smoothing; None: a hundredth of the range of the Ritz values
    points : int >= 2           of the grid, which reaches 5 widths beyond the Ritz values
    reorthogonalize : bool      `krylov.trace.quadrature`: not needed for a density
    Returns
    -------
    SpectralDensity             grid, density, stderr [points], nodes, weights [num_probes, num_matvecs]; nan where the
                                products were not finite
    Raises
    ------
    ValueError, TypeError       a count or width out of its range, no key, what `top_eigenvalues` refuses
    MemoryError                 what must be held at once is not there
    Source: Ghorbani, Krishnan & Xiao 2019, arXiv:1901.10159; Papyan 2018, arXiv:1811.07062.    Experiment: e1.
    """
    checks.key("key", key)
    points = checks.whole("points", points, least=2)
    num_probes = checks.whole("num_probes", num_probes, least=2)
    num_matvecs = checks.whole("num_matvecs", num_matvecs)
    if width is not None:
        checks.positive("width", width, shape=())
    rows = num_matvecs if checks.flag("reorthogonalize", reorthogonalize) else 2
    settings = {"frozen": frozen, "chunk": chunk, "reduction": reduction, "vectors": lambda size: 2 * rows + 4}
    operator = _matrices.named(loss, params, batch, operator, **settings)
    operator, linearize = _operators.settled(operator, linearize)
    _memory.check("spectral_density", _memory.needs(operator, basis=rows), operator, least=rows)
    matvec = _operators.prepared(operator, linearize)
    steps = {"num_matvecs": num_matvecs, "num_probes": num_probes, "reorthogonalize": reorthogonalize}
    rule = trace.quadrature(key, matvec, operator.like, **steps)
    low, high = rule.nodes.min(), rule.nodes.max()
    spread = high - low if high > low else max(abs(high), 1.0)
    width = float(spread / 100 if width is None else width)
    grid = np.linspace(low - 5 * width, high + 5 * width, points)
    return _smoothed(grid, width, rule.nodes, rule.weights, rule.size)


def _smoothed(grid, width, nodes, weights, size):
    bells = np.exp(-(((grid[:, None, None] - nodes[None]) / width) ** 2) / 2) / (np.sqrt(2 * np.pi) * width)
    found = statistics.mean_and_error(np.sum(weights[None] * bells, axis=-1), axis=1)
    return SpectralDensity(grid, found.mean, found.stderr, np.float64(width), nodes, weights, size)
