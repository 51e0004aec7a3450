"""MEASURED: trace, diagonal and Frobenius norm of a curvature matrix, of all of it or layer by layer."""

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from numdl import checks
from numdl.analysis.curvature import _matrices, _memory, _operators
from numdl.krylov import trace as estimates
from numdl.typing import Loss

METHODS = {
    "hutchinson": estimates.hutchinson,
    "hutch++": estimates.hutch_plus_plus,
    "xtrace": estimates.xtrace,
}


def trace(
    loss: Loss | _operators.Operator,
    params: PyTree = None,
    batch: PyTree = None,
    *,
    key: Key[Array, ""],
    num_matvecs: int = 30,
    method: str = "hutchinson",
    operator: str = "hessian",
    frozen: Sequence[str] = (),
    chunk: int | str | None = None,
    reduction: str | None = None,
    linearize: bool | None = None,
) -> estimates.TraceEstimate:
    """MEASURED trace of the curvature of a loss, with its standard error: trace estimation by random vectors.

    Parameters
    ----------
    loss : function or Operator     (params, batch) -> scalar or (sum, weight); or an Operator alone: `restrict` makes
                                that of a layer
    params, batch : pytree      floating leaves [..] move; data [N, ...]
    key : key                   of the random vectors
    num_matvecs : int >= 2      products, 6 at least for "hutch++"; "hutch++" and "xtrace" hold a third or one times as
                                many vectors
    method : "hutchinson" | "hutch++" | "xtrace"    the last two pay where few eigenvalues make most of the trace
    operator, frozen, chunk, reduction, linearize : as in `top_eigenvalues`
    Returns
    -------
    TraceEstimate               value [], stderr [], samples [draws], matvecs
    Raises
    ------
    ValueError, TypeError       fewer products than the method takes, no key, what `top_eigenvalues` refuses
    MemoryError                 what must be held at once is not there
    Source: Hutchinson 1990; Hutch++: Meyer et al. 2021, arXiv:2010.09649; XTrace: Epperly, Tropp & Webber 2024,
            arXiv:2301.07825.    Experiment: e1.
    """
    checks.one_of("method", method, METHODS)
    least = {"hutchinson": 2, "hutch++": 6, "xtrace": 2}[method]
    num_matvecs = checks.whole("num_matvecs", num_matvecs, least=least)
    rows = 2 if method == "hutchinson" else num_matvecs
    settings = {"frozen": frozen, "chunk": chunk, "reduction": reduction}
    operator, matvec = _ready("trace", key, loss, params, batch, operator, settings, linearize, rows)
    return METHODS[method](key, matvec, operator.like, num_matvecs=num_matvecs)


def diagonal(
    loss: Loss | _operators.Operator,
    params: PyTree = None,
    batch: PyTree = None,
    *,
    key: Key[Array, ""],
    num_matvecs: int = 30,
    operator: str = "hessian",
    frozen: Sequence[str] = (),
    chunk: int | str | None = None,
    reduction: str | None = None,
    linearize: bool | None = None,
) -> estimates.TraceEstimate:
    """MEASURED diagonal of the curvature of a loss, like params, with a standard error for each entry.

        value = mean over random signs z of z * (A z)

    0 where nothing moves; the two second derivatives of a complex parameter are real and imaginary part of one entry.
    The sum over a layer's leaves estimates the trace of that layer's block.

    Parameters
    ----------
    loss, params, batch, key, operator, frozen, chunk, reduction, linearize : as in `trace`
    num_matvecs : int >= 2      products, one random vector each
    Returns
    -------
    TraceEstimate               value, stderr: like params; samples, matvecs
    Raises
    ------
    ValueError, TypeError       fewer than two products, no key, what `top_eigenvalues` refuses
    MemoryError                 what must be held at once is not there
    Source: Bekas, Kokiopoulou & Saad 2007, Applied Numerical Mathematics 57.    Experiment: e1.
    """
    num_matvecs = checks.whole("num_matvecs", num_matvecs, least=2)
    settings = {"frozen": frozen, "chunk": chunk, "reduction": reduction}
    operator, matvec = _ready("diagonal", key, loss, params, batch, operator, settings, linearize, 4)
    found = estimates.diagonal(key, matvec, operator.like, num_matvecs=num_matvecs)
    return dataclasses.replace(found, value=operator.outward(found.value), stderr=operator.outward(found.stderr))


def frobenius_norm(
    loss: Loss | _operators.Operator,
    params: PyTree = None,
    batch: PyTree = None,
    *,
    key: Key[Array, ""],
    num_matvecs: int = 30,
    operator: str = "hessian",
    frozen: Sequence[str] = (),
    chunk: int | str | None = None,
    reduction: str | None = None,
    linearize: bool | None = None,
) -> estimates.TraceEstimate:
    """MEASURED Frobenius norm of the curvature of a loss, the root of the sum of the squared eigenvalues.

        value = sqrt(mean |A z|^2),    stderr = stderr of the mean / (2 value)

    Parameters
    ----------
    loss, params, batch, key, operator, frozen, chunk, reduction, linearize : as in `trace`
    num_matvecs : int >= 2      products, one random vector z each
    Returns
    -------
    TraceEstimate               value [], stderr [], samples of the square [num_matvecs], matvecs
    Raises
    ------
    ValueError, TypeError       fewer than two products, no key, what `top_eigenvalues` refuses
    MemoryError                 what must be held at once is not there
    Source: Hutchinson's estimate of the trace of A A'; the error by the delta method.    Experiment: e1.
    """
    num_matvecs = checks.whole("num_matvecs", num_matvecs, least=2)
    settings = {"frozen": frozen, "chunk": chunk, "reduction": reduction}
    operator, matvec = _ready("frobenius_norm", key, loss, params, batch, operator, settings, linearize, 2)
    square = estimates.squared_norm(key, matvec, operator.like, num_matvecs=num_matvecs)
    value = jnp.sqrt(square.value)
    stderr = jnp.where(value > 0, square.stderr / jnp.where(value > 0, 2 * value, jnp.ones_like(value)), 0.0)
    return estimates.TraceEstimate(value, stderr.astype(value.dtype), square.samples, square.matvecs)


def _ready(name, key, loss, params, batch, operator, settings, linearize, rows):
    checks.key("key", key)
    operator = _matrices.named(loss, params, batch, operator, vectors=lambda size: 2 * rows + 4, **settings)
    operator, linearize = _operators.settled(operator, linearize)
    _memory.check(name, _memory.needs(operator, basis=rows), operator, least=rows)
    return operator, _operators.prepared(operator, linearize)
