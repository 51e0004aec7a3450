"""MEASURED: curvature of any loss(params, batch), without its matrix: eigenvalues with bounds, densities, traces.

    top_eigenvalues, gradient_overlap, outliers         the upper end of the spectrum, each value with an interval
    spectral_density                                    the whole of it, with error bars
    trace, diagonal, frobenius_norm                     moments, with standard errors
    hessian, gauss_newton, fisher, empirical_fisher     the matrices: operators v -> A v, which all of these take too
    Composed                                            a loss in two halves, for the Gauss-Newton matrix
    kronecker                                           Kronecker factors (KFAC, EKFAC): inverse, log-determinant, trace
    restrict, blocks                                    diagonal blocks by the path of the parameters
    needs                                               the memory of a call, before it is made

`loss` is a function of the parameters and the data, nothing random, batch statistics frozen. With `chunk` it is a mean
over examples, a sum (`reduction="sum"`), or returns a pair (sum, weight); that is verified. `chunk="auto"` takes as
many examples at a time as fit into half of the free memory, or fewer where a processor is faster at those: few
multiplications for each activation, as in convolutions. Say `reduction="mean"` and that is the default.
Many products of your own at the same parameters: `hessian(...).prepared()` keeps all that does not depend on v.
Data is an argument: the second call with other parameters or data of the same shapes compiles nothing.

    >>> import jax, jax.numpy as jnp
    >>> from numdl.analysis import curvature
    >>> def loss(params, batch):
    ...     return jnp.mean((batch @ params) ** 2) / 2
    >>> params, batch, key = jnp.ones(3), jnp.diag(jnp.array([3.0, 2.0, 1.0])), jax.random.key(0)
    >>> found = curvature.top_eigenvalues(loss, params, batch, key=key, k=2)  # of diag(9, 4, 1) / 3
    >>> found.values.round(3).tolist(), found.converged.tolist()
    ([3.0, 1.333], [True, True])
    >>> float(curvature.trace(loss, params, batch, key=key).value.round(3))
    4.667
"""

from numdl.analysis.curvature._density import SpectralDensity, spectral_density
from numdl.analysis.curvature._eigenvalues import Outliers, gradient_overlap, outliers, top_eigenvalues
from numdl.analysis.curvature._kronecker import Kronecker, KroneckerBlock, kronecker
from numdl.analysis.curvature._matrices import Composed, empirical_fisher, fisher, gauss_newton, hessian
from numdl.analysis.curvature._memory import MemoryUse, needs
from numdl.analysis.curvature._moments import diagonal, frobenius_norm, trace
from numdl.analysis.curvature._operators import Operator, blocks, restrict

__all__ = [
    "Composed",
    "Kronecker",
    "KroneckerBlock",
    "MemoryUse",
    "Operator",
    "Outliers",
    "SpectralDensity",
    "blocks",
    "diagonal",
    "empirical_fisher",
    "fisher",
    "frobenius_norm",
    "gauss_newton",
    "gradient_overlap",
    "hessian",
    "kronecker",
    "needs",
    "outliers",
    "restrict",
    "spectral_density",
    "top_eigenvalues",
    "trace",
]
