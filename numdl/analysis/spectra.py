"""MEASURED: how the eigenvalues of trained weights are spread, and whether their tails are power laws.

>>> import jax
>>> from numdl.analysis import spectra
>>> params = {"kernel": jax.random.normal(jax.random.key(0), (200, 100))}
>>> found = spectra.power_laws(params, key=jax.random.key(1))
>>> found.names, found.plausible.tolist()  # independent Gaussian entries have no heavy tail
(('kernel',), [False])
"""

from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array, Key, PyTree

from numdl import checks, statistics, trees
from numdl.analysis import _filters
from numdl.records import record, static
from numdl.typing import Apply

__all__ = ["PowerLaws", "eigenvalues", "power_laws"]


@record
class PowerLaws:
    """The law that is nearest to the tail of W' W, of every weight; a weight with too few eigenvalues has nan."""

    names: tuple = static()
    exponent: np.ndarray  # [L]: alpha of the density x^-alpha of eigenvalues x
    stderr: np.ndarray  # [L]
    cut: np.ndarray  # [L]: smallest eigenvalue of the tail
    tail: np.ndarray  # [L]: eigenvalues in it
    p: np.ndarray  # [L]: share of samples of this law that lie further from their own fit; nan without a key
    exponential: np.ndarray  # [L]: log-likelihood over an exponential tail's, in standard errors
    lognormal: np.ndarray  # [L]: over a lognormal tail's
    plausible: np.ndarray  # [L], bool: no reason was found against a power law, and there was a way to find one


def eigenvalues(
    params: PyTree,
    *,
    apply: Apply | None = None,
    x: PyTree | None = None,
    outputs: int | tuple | dict | None = None,
    stacked: str | Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """MEASURED eigenvalues of W' W, the squared singular values of every weight as the matrix [inputs, outputs].

    Parameters
    ----------
    params, apply, x, outputs, stacked : pytree, function, ...     as in `generalization.norms`
    Returns
    -------
    dict                        path of the weight -> [min(inputs, outputs)], largest first, float64
    Raises
    ------
    ValueError, TypeError       no weight, what `generalization.norms` refuses
    Source: the definition.
    """
    params = checks.leaves("params", params)
    found = _filters.find(params, apply=apply, x=x, outputs=outputs, stacked=stacked)
    if all(one is None for one in found):
        raise checks.BadValue(f"params must hold a kernel of 2 axes or more; got {', '.join(trees.names(params))}")
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64) if np.isrealobj(leaf) else leaf, params)
    return {
        name: np.square(np.linalg.svd(np.asarray(matrix), compute_uv=False))
        for name, matrix in _filters.each(wide, found)
    }


def power_laws(
    params: PyTree,
    *,
    apply: Apply | None = None,
    x: PyTree | None = None,
    outputs: int | tuple | dict | None = None,
    stacked: str | Sequence[str] = (),
    least: int | None = None,
    key: Key[Array, ""] | None = None,
    draws: int = 100,
) -> PowerLaws:
    """MEASURED power-law exponents of the spectra of weights (heavy-tailed self-regularization), with a test of each.

        density of the eigenvalues of W' W  ~  x^-alpha,   alpha by maximum likelihood above the best cut

    An exponent is returned for any spectrum; only where `plausible` is it one of a power law. Weights as drawn, whose
    spectrum has an edge, are not.

    Parameters
    ----------
    params, apply, x, outputs, stacked : pytree, function, ...     as in `generalization.norms`
    least : int                 eigenvalues that a tail must have, >= 10; None: a fifth of them, and 30
    key : key                   of the samples that give p; None: p is nan and nothing plausible
    draws : int                 samples for each weight
    Returns
    -------
    PowerLaws                   one entry for each weight
    Raises
    ------
    ValueError, TypeError       no weight, what `generalization.norms` and `statistics.power_law` refuse
    Source: Martin & Mahoney 2021, arXiv:1810.01075; Clauset, Shalizi & Newman 2009, arXiv:0706.1062.
    """
    least = None if least is None else checks.whole("least", least, least=10)
    how = {"least": least, "draws": checks.whole("draws", draws)}
    key = None if key is None else checks.key("key", key)
    spectra = eigenvalues(params, apply=apply, x=x, outputs=outputs, stacked=stacked)
    keys = [None] * len(spectra) if key is None else jax.random.split(key, len(spectra))
    found = [statistics.power_law(values, key=k, **how) for values, k in zip(spectra.values(), keys, strict=True)]
    fields = ("exponent", "stderr", "cut", "tail", "p", "exponential", "lognormal", "plausible")
    return PowerLaws(tuple(spectra), *(np.array([getattr(one, field) for one in found]) for field in fields))
