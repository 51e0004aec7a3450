"""PREDICTED: derivatives of wide networks' kernels by their inputs, exact where inputs coincide.

With u = z(x), v = z(x') of one layer, Gaussian with covariance K, and du, dv their derivatives along inputs, which are
Gaussian beside them, g = f for the NNGP and g = f' for the factor of the tangent kernel:

    d/dx E g(u) g(v) = E g'(u) du g(v),     d2/dx dx' E g(u) g(v) = E g'(u) g'(v) du dv

du and dv are regressed on (u, v): nothing is divided by 1 - c^2 that is not a covariance of what is left, and at c = 1
on u alone. So no derivative by the correlation, infinite there, is taken.
"""

import functools
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import ArrayLike

from numdl import checks
from numdl._compiled import jit
from numdl.activations import Activation
from numdl.precision import float64
from numdl.theory import _convolutional_kernels, _kernel_doors, _kernel_moments, _kernel_pairs


class KernelDerivatives(NamedTuple):
    """Both kernels, their derivatives by the inputs (for pictures d is H, W, C); nan where there is none, and why."""

    nngp: np.ndarray  # [N1, N2]
    ntk: np.ndarray  # [N1, N2]
    nngp_slope: np.ndarray  # [N1, N2, d]: d K / dx, x of x1
    ntk_slope: np.ndarray  # [N1, N2, d]
    nngp_mixed: np.ndarray  # [N1, N2, d, d]: d2 K / dx_i dx'_j, x' of x2: the covariance of the outputs' slopes
    ntk_mixed: np.ndarray  # [N1, N2, d, d]
    notes: tuple  # why entries are nan


def derivatives(
    x1: ArrayLike,
    x2: ArrayLike,
    *,
    depth: int,
    activation: Activation,
    weight_variance: ArrayLike,
    bias_variance: ArrayLike,
) -> KernelDerivatives:
    """PREDICTED derivatives by the inputs of the kernels of a wide dense network, `nngp` and `ntk`; right at x = x'.

        d K(x, x') / dx,    d2 K(x, x') / dx dx' = E df/dx df/dx',    and of Theta alike

    Where f' jumps (relu), K has both everywhere but at an input 0 without bias; Theta has a kink where two inputs
    coincide or are opposite: nan there, with a note; f other than relu and leaky_relu have nan for Theta everywhere.
    At a small relative distance r of the inputs relu's of Theta have a relative error of about 1e-15 / r^2.

    Parameters
    ----------
    x1, x2 : array [N1, d], [N2, d]     inputs
    depth : int                 hidden layers D >= 0
    activation : Activation     f, continuous
    weight_variance, bias_variance : scalar     fan_in * Var(W_ij), Var(b_i)
    Returns
    -------
    KernelDerivatives           nngp, ntk, nngp_slope, ntk_slope, nngp_mixed, ntk_mixed, notes; float64
    Raises
    ------
    ValueError, TypeError       as for `nngp`; an activation that jumps, of which no network has slopes
    Source: the chain rule; Price 1958. Closed forms of relu: Cho & Saul 2009.
    """
    _kernel_doors.check(x1, x2, depth, activation, weight_variance=weight_variance, bias_variance=bias_variance)
    return _found(_kernel_pairs.dense, x1, x2, (weight_variance, bias_variance), depth, activation)


def residual_derivatives(
    x1: ArrayLike,
    x2: ArrayLike,
    *,
    depth: int,
    step: ArrayLike,
    activation: Activation,
    weight_variance: ArrayLike,
    second_weight_variance: ArrayLike,
    bias_variance: ArrayLike,
    readout_weight_variance: ArrayLike,
) -> KernelDerivatives:
    """PREDICTED derivatives by the inputs of the kernels of a wide residual network, those of `kernels.residual`.

        d C_{l+1} = d C_l + h^2 v d E[f f],     d S_{l+1} = d S_l + h^2 v d (E[f f] + E[f' f'] T)

    d is d/dx, d/dx' or d2/dx dx'; derivatives of expectations as for `derivatives`, and nan with a note where there.

    Parameters
    ----------
    x1, x2 : array [N1, d], [N2, d]     inputs
    depth, step, activation : as `residual`, the activation continuous
    weight_variance, second_weight_variance, bias_variance, readout_weight_variance : scalar    as `residual`
    Returns
    -------
    KernelDerivatives           nngp, ntk, nngp_slope, ntk_slope, nngp_mixed, ntk_mixed, notes; float64
    Raises
    ------
    ValueError, TypeError       as for `residual`; an activation that jumps
    Source: the chain rule; Price 1958.
    """
    variances = {
        "weight_variance": weight_variance,
        "second_weight_variance": second_weight_variance,
        "bias_variance": bias_variance,
        "readout_weight_variance": readout_weight_variance,
    }
    w, v, b, r = _kernel_doors.check(x1, x2, depth, activation, **variances)
    scaled = _kernel_doors.gain(checks.number("step", step), v)
    return _found(_kernel_pairs.residual, x1, x2, (w, b, scaled, r), depth, activation)


def convolutional_derivatives(
    x1: ArrayLike,
    x2: ArrayLike,
    *,
    depth: int,
    window: int | tuple[int, int],
    activation: Activation,
    weight_variance: ArrayLike,
    bias_variance: ArrayLike,
    padding: str = "same",
    pooling: str = "none",
) -> KernelDerivatives:
    """PREDICTED derivatives by the pixels of the kernels of a convolutional network, those of `kernels.convolutional`.

        d K_{l+1} = weight_variance A(d E[f f]),     d Theta_{l+1} = weight_variance A(d (E[f f] + E[f' f'] Theta_l))

    A is linear; at every place the derivatives of expectations are as for `derivatives`, and nan with a note where
    there: for relu's Theta that is where two pictures agree under one window. A place has (H W C)^2 numbers: for small
    pictures.

    Parameters
    ----------
    x1, x2 : array [N1, H, W, C], [N2, H, W, C]     pictures
    depth, window, activation, padding, pooling : as `convolutional`, the activation continuous
    weight_variance, bias_variance : scalar     as `convolutional`
    Returns
    -------
    KernelDerivatives           slopes [N1, N2, H, W, C], mixed [N1, N2, H, W, C, H, W, C]; float64
    Raises
    ------
    ValueError, TypeError       as for `convolutional`; an activation that jumps
    Source: the chain rule; Price 1958.
    """
    for name, value in (("weight_variance", weight_variance), ("bias_variance", bias_variance)):
        checks.number(name, value, least=0.0)
    shape = _convolutional_kernels.check(x1, x2, depth, window, padding, pooling, activation)
    found = _found(_kernel_pairs.convolutional, x1, x2, (weight_variance, bias_variance), shape, activation, "patches")
    sides = np.shape(x1)[1:]
    whole = {name: (*found.nngp.shape, *sides * (1 + name.endswith("mixed"))) for name in found._fields[2:6]}
    return found._replace(**{name: getattr(found, name).reshape(each) for name, each in whole.items()})


def _found(pair, x1, x2, physics, fixed, activation, what="inputs"):
    """The derivatives by a pair's recursion, nan and notes where there are none."""
    if activation.jumps:
        places = ", ".join(f"{jump.place:g}" for jump in activation.jumps)
        raise checks.BadValue(f"activation must be continuous, or slopes have no covariance; got a jump at {places}")
    bent = _kernel_moments.bends(activation)
    law = _kernel_moments.rectified(activation) if bent or activation.name == "identity" else None
    found = _run(x1, x2, physics, pair, fixed, activation, law, bool(bent), 0.0 in bent)
    notes = []
    if fixed and bent and law is None:
        notes.append(f"the tangent kernel's derivatives are not known for {activation.name}, whose slope jumps")
        found = found._replace(
            **{name: np.full_like(getattr(found, name), np.nan) for name in ("ntk_slope", "ntk_mixed")}
        )
    elif np.isnan(found.ntk_slope).any() or np.isnan(found.ntk_mixed).any():
        notes.append(f"the tangent kernel has a kink where two {what} coincide, are opposite, or one is 0 without bias")
    if np.isnan(found.nngp_mixed).any():
        notes.append(f"the NNGP kernel has no second derivative at {what} of 0 without bias")
    return found._replace(notes=tuple(notes))


@float64
def _run(x1, x2, physics, pair, fixed, activation, law, bent, bent_at_zero):
    given = [jnp.asarray(checks.native(name, x), jnp.float64) for name, x in (("x1", x1), ("x2", x2))]
    numbers = tuple(jnp.asarray(n, jnp.float64) for n in physics)
    return KernelDerivatives(*_run_jit(*given, numbers, pair, fixed, activation, law, bent, bent_at_zero), ())


@functools.partial(jit, static_argnums=(3, 4, 5, 6, 7, 8))
def _run_jit(x1, x2, physics, pair, fixed, activation, law, bent, bent_at_zero):
    if law is not None:
        moments = functools.partial(_kernel_moments.of_rectifier, law)
    else:
        moments = functools.partial(_kernel_moments.of_smooth, activation, bent)
    gained = functools.partial(_kernel_pairs.gained, moments, bent_at_zero)
    return lax.map(lambda x: lax.map(lambda y: pair(gained, x, y, *physics, fixed), x2), x1)
