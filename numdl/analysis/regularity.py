"""MEASURED: how trained weights change along the depth, and whether networks of all depths share one limit of them.

Layers 1 ... L of a residual network are samples of a function of t = l / L, if their weights have a limit at all:

    smooth     A_l = L^-beta a(l / L): increments are 1 / L of the weights, an ordinary differential equation
    rough      increments as large as the weights, whatever L; if sum_l |A_l|^2 keeps its size, the weights are those
               of a stochastic differential equation

`norms` measures one network, `exponents` compares networks of several depths.

    >>> import numpy as np
    >>> from numdl.analysis import regularity
    >>> found = [regularity.norms(np.cos(np.arange(n) / n) / n**0.3) for n in (64, 128, 256)]
    >>> powers = regularity.exponents(found)
    >>> print(f"{powers.largest.mean:.2f} {powers.roughness.mean:.1f} {powers.regime}")
    -0.30 -1.0 smooth
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from numdl import _effort, checks, precision
from numdl.records import record, static
from numdl.statistics import Mean, mean_and_error

__all__ = ["Exponents", "Norms", "exponents", "norms"]

SIZES = ("largest", "increment", "root_sum", "variation", "total", "roughness")


@record
class Norms:
    """Sizes of a stack of weights A_1 ... A_L, Frobenius norms; of networks under one vmap [S]."""

    layers: int = static()  # L
    largest: jax.Array  # []: max_l |A_l|
    increment: jax.Array  # []: max_l |A_{l+1} - A_l|
    root_sum: jax.Array  # []: (sum_l |A_l|^2)^(1/2)
    variation: jax.Array  # []: (sum_l |A_{l+1} - A_l|^2)^(1/2), the root of the quadratic variation
    total: jax.Array  # []: |sum_l A_l|
    roughness: jax.Array  # []: root mean square of the increments over that of the weights; nan where all are 0


@record
class Exponents:
    """Powers of the depth L, of the sizes in `Norms`: mean over networks and standard error, nan where a size is 0."""

    depths: np.ndarray  # [D]
    largest: Mean  # -beta
    increment: Mean
    root_sum: Mean
    variation: Mean
    total: Mean
    roughness: Mean  # -1: smooth; 0: rough

    @property
    def regime(self):
        """Smooth or rough: the power of the roughness is two standard errors away from -1/2; else undecided."""
        apart = self.roughness.mean + 0.5
        if not abs(apart) > 2 * self.roughness.stderr:
            return "undecided"
        return "smooth" if apart < 0 else "rough"

    def __repr__(self):
        """A line for each size."""
        lines = [f"Exponents, depths {self.depths.min()} to {self.depths.max()}, {self.largest.count} networks of each"]
        powers = ((name, getattr(self, name)) for name in SIZES)
        lines += [f"  {name:<9}  L^{power.mean:+.3f}  +- {power.stderr:.3f}" for name, power in powers]
        return "\n".join([*lines, f"  {self.regime}"])


def norms(weights: PyTree) -> Norms:
    """MEASURED sizes of a stack of weights and of their increments along the depth.

        largest = max_l |A_l|,    increment = max_l |A_{l+1} - A_l|,    total = |sum_l A_l|
        root_sum^2 = sum_l |A_l|^2,    variation^2 = sum_l |A_{l+1} - A_l|^2
        roughness^2 = variation^2 / (L - 1) / (root_sum^2 / L)

    The roughness of independent layers with mean 0 is near 2^(1/2); that of a smooth function of the depth is of order
    1 / L. `variation` is the root of the quadratic variation. Large weights do not overflow, half precision is widened.

    Parameters
    ----------
    weights : pytree            floating-point or complex leaves [L, ...], L >= 2 layers; |A_l| is over all leaves
    Returns
    -------
    Norms                       numbers []; [S] under a vmap over networks
    Raises
    ------
    ValueError, TypeError       fewer than two layers, leaves of different lengths or of other numbers
    Source: Cohen et al. 2021, arXiv:2105.12245 (largest, increment, root_sum, total).    Experiment: c13.
    """
    weights = checks.floats("weights", weights)
    layers = checks.length("weights", weights, of="layers", least=2)
    return Norms(layers, **_sizes(weights))


def exponents(found: Sequence[Norms]) -> Exponents:
    """MEASURED powers of the depth by which weights and their increments scale: is there a neural ODE limit?

        ln size = power * ln L + constant,    by least squares for every network, then the mean

        smooth: increment ~ L^(-beta - 1), root_sum ~ L^(1/2 - beta);    diffusive: increment ~ L^(-1/2), root_sum ~ 1

    Here largest ~ L^-beta. Beta alone, the scaling exponent of trained weights, does not tell one from the other: the
    roughness does. Standard errors are over networks; of one for each depth, from the residuals of the line.

    Parameters
    ----------
    found : sequence of Norms   of three different depths or more, with fields [] or, the same number for all, [S]
    Returns
    -------
    Exponents                   a mean and a standard error for each size, and `regime`
    Raises
    ------
    ValueError, TypeError       too few or equal depths, fields of other shapes, something else than Norms
    Source: Cohen et al. 2021, arXiv:2105.12245.    Experiment: c13.
    """
    depths, values = _table(found)
    across = np.log(depths) - np.log(depths).mean()
    with np.errstate(divide="ignore", invalid="ignore"):
        powers = {name: _power(across, np.log(values[name])) for name in SIZES}
    return Exponents(depths, **powers)


@_effort.jit
def _sizes(weights):
    matrices = [leaf.reshape(leaf.shape[0], -1) for leaf in jax.tree.leaves(precision.widen(weights))]
    matrix = jnp.concatenate(matrices, axis=1)
    scale = jnp.max(jnp.abs(matrix), initial=0.0)
    matrix = matrix / jnp.where(scale > 0, scale, 1.0)
    weight, step = (jnp.sum(jnp.abs(part) ** 2, axis=1) for part in (matrix, jnp.diff(matrix, axis=0)))
    total = jnp.sum(jnp.abs(jnp.sum(matrix, axis=0)) ** 2)
    squares = {
        "largest": weight.max(), "increment": step.max(), "root_sum": weight.sum(), "variation": step.sum(),
        "total": total,
    }  # fmt: skip
    sizes = {name: scale * jnp.sqrt(square) for name, square in squares.items()}
    return {**sizes, "roughness": jnp.sqrt(step.mean() / weight.mean())}


def _table(found):
    """Depths [D] and every size as [D, S], float64, checked."""
    if not isinstance(found, tuple | list) or len(found) < 3:
        raise checks.BadType(f"found must be a list of Norms of three depths or more; got {checks.shown(found)}")
    for i, one in enumerate(found):
        checks.instance(f"found[{i}]", one, Norms, hint="of regularity.norms")
    depths = np.array([one.layers for one in found])
    if len(set(depths.tolist())) < len(depths):
        raise checks.BadValue(f"found must have a different depth each; got {depths.tolist()}")
    shapes = {np.shape(getattr(one, name)) for one in found for name in SIZES}
    if len(shapes) != 1 or len(next(iter(shapes))) > 1:
        raise checks.BadValue(f"found must have fields of one shape, [] or [S]; got {sorted(shapes)}")
    return depths, {name: _rows(found, name) for name in SIZES}


def _rows(found, name):
    fields = (checks.concrete(f"found[{i}].{name}", getattr(one, name)) for i, one in enumerate(found))
    return np.stack([np.atleast_1d(np.asarray(field, np.float64)) for field in fields])


def _power(across, logs):
    """Mean and standard error of the slopes of the columns of logs [D, S]; nan where a logarithm is not finite."""
    weight = across @ across
    slopes = across @ logs / weight
    slopes = np.where(np.isfinite(slopes), slopes, np.nan)
    if len(slopes) > 1:
        return mean_and_error(slopes)
    left = logs[:, 0] - logs.mean() - slopes * across
    return Mean(slopes[0], np.sqrt(left @ left / (len(across) - 2) / weight), 1)
