"""MEASURED: the neural tangent kernel of any function of a pytree, and how far training is from the kernel's.

    ntk, estimate               the kernel in bounded memory, and what it will cost; by layers, Jacobians or products
    ntk_scale                   what turns ordinary parameters into those of the NTK parameterization
    nngp                        the covariance of the outputs over random networks
    alignment, drift            of two kernels; of a kernel and targets
    linearize, linearization_error, laziness    the linear model at the start, and the distance from it along training

`apply(params, x)` treats the examples one by one: batch statistics must be frozen, nothing random.
Twin: theory.kernels.

    >>> import jax.numpy as jnp
    >>> from numdl.analysis import kernels
    >>> def apply(params, x):
    ...     return jnp.tanh(x @ params["first"]) @ params["second"]
    >>> params = {"first": jnp.zeros((2, 3)), "second": jnp.ones((3, 1))}
    >>> x = jnp.array([[1.0, 0.0], [1.0, 1.0]])
    >>> kernels.ntk(apply, params, x).tolist()  # 3 x x': the second layer's inputs are 0
    [[3.0, 3.0], [3.0, 6.0]]
    >>> kernels.estimate(apply, params, x).method
    'layers'
"""

from numdl.analysis.kernels._comparing import (
    Laziness,
    LinearizationError,
    alignment,
    drift,
    laziness,
    linearization_error,
    linearize,
    target_kernel,
)
from numdl.analysis.kernels._cost import CostEstimate
from numdl.analysis.kernels._tangent import estimate, nngp, ntk, ntk_scale

__all__ = [
    "CostEstimate",
    "Laziness",
    "LinearizationError",
    "alignment",
    "drift",
    "estimate",
    "laziness",
    "linearization_error",
    "linearize",
    "nngp",
    "ntk",
    "ntk_scale",
    "target_kernel",
]
