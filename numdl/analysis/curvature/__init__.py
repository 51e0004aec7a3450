"""MEASURED: curvature of any loss(params, batch), without its matrix: eigenvalues with bounds, densities, traces.

    top_eigenvalues, gradient_overlap, outliers         the upper end of the spectrum, each value with an interval
    spectral_density                                    the whole of it, with error bars
    trace, diagonal, frobenius_norm                     moments, with standard errors
    hessian, gauss_newton, fisher, empirical_fisher     the matrices: operators v -> A v, which all of these take too
    Composed                                            a loss in two halves, for the Gauss-Newton matrix
    restrict, blocks                                    diagonal blocks by the path of the parameters
    needs                                               the memory of a call, before it is made

`loss` is a function of the parameters and the data, nothing random, batch statistics frozen. With `chunk` it is a mean
over examples, a sum (`reduction="sum"`), or returns a pair (sum, weight); that is verified.
Data is an argument: the second call with other parameters or data of the same shapes compiles nothing.
"""

from numdl.analysis.curvature._density import SpectralDensity, spectral_density
from numdl.analysis.curvature._eigenvalues import Outliers, gradient_overlap, outliers, top_eigenvalues
from numdl.analysis.curvature._memory import MemoryUse, needs
from numdl.analysis.curvature._moments import diagonal, frobenius_norm, trace
from numdl.analysis.curvature._operators import (
    Composed,
    Operator,
    blocks,
    empirical_fisher,
    fisher,
    gauss_newton,
    hessian,
    restrict,
)

__all__ = [
    "Composed",
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
    "needs",
    "outliers",
    "restrict",
    "spectral_density",
    "top_eigenvalues",
    "trace",
]
