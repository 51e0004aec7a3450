"""MEASURED: trace, diagonal and Frobenius norm of a curvature matrix, of all of it or layer by layer."""

import dataclasses

import jax.numpy as jnp

from numdl import checks
from numdl.analysis.curvature import _memory, _operators
from numdl.krylov import trace as estimates

METHODS = {
    "hutchinson": estimates.hutchinson,
    "hutch++": estimates.hutch_plus_plus,
    "xtrace": estimates.xtrace,
}


def trace(
    loss,
    params=None,
    batch=None,
    *,
    key,
    num_matvecs=30,
    method="hutchinson",
    operator="hessian",
    frozen=(),
    chunk=None,
    reduction=None,
    linearize=None,
):
    """MEASURED trace of the curvature of a loss, with its standard error.

    Parameters
    ----------
    loss : function or Operator     (params, batch) -> scalar or (sum, weight); or an Operator alone: `restrict` makes
                                that of a layer
    num_matvecs : int           products; "hutch++" and "xtrace" hold a third or one times as many vectors
    method : "hutchinson" | "hutch++" | "xtrace"    the last two pay where few eigenvalues make most of the trace
    operator, frozen, chunk, reduction, linearize       those of `top_eigenvalues`
    Returns
    -------
    krylov.trace.TraceEstimate       value [], stderr [], samples [draws], matvecs
    """
    checks.one_of("method", method, METHODS)
    least = {"hutchinson": 2, "hutch++": 6, "xtrace": 2}[method]
    num_matvecs = checks.whole("num_matvecs", num_matvecs, least=least)
    rows = 2 if method == "hutchinson" else num_matvecs
    settings = {"frozen": frozen, "chunk": chunk, "reduction": reduction}
    operator, matvec = _ready("trace", key, loss, params, batch, operator, settings, linearize, rows)
    return METHODS[method](key, matvec, operator.like, num_matvecs=num_matvecs)


def diagonal(
    loss,
    params=None,
    batch=None,
    *,
    key,
    num_matvecs=30,
    operator="hessian",
    frozen=(),
    chunk=None,
    reduction=None,
    linearize=None,
):
    """MEASURED diagonal of the curvature of a loss, like params, with a standard error for each entry.

    0 where nothing moves; the two second derivatives of a complex parameter are real and imaginary part of one entry.
    The sum over a layer's leaves estimates the trace of that layer's block. Parameters: those of `trace`.
    """
    num_matvecs = checks.whole("num_matvecs", num_matvecs, least=2)
    settings = {"frozen": frozen, "chunk": chunk, "reduction": reduction}
    operator, matvec = _ready("diagonal", key, loss, params, batch, operator, settings, linearize, 4)
    found = estimates.diagonal(key, matvec, operator.like, num_matvecs=num_matvecs)
    return dataclasses.replace(found, value=operator.outward(found.value), stderr=operator.outward(found.stderr))


def frobenius_norm(
    loss,
    params=None,
    batch=None,
    *,
    key,
    num_matvecs=30,
    operator="hessian",
    frozen=(),
    chunk=None,
    reduction=None,
    linearize=None,
):
    """MEASURED Frobenius norm of the curvature of a loss, the root of the sum of the squared eigenvalues.

        value = sqrt(mean |A z|^2),    stderr = stderr of the mean / (2 value)

    Parameters: those of `trace`. Returns an TraceEstimate whose samples are those of the square.
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
    operator = _operators.named(loss, params, batch, operator, **settings)
    linearize = _operators.linearizes(operator, linearize)
    _memory.check(name, _memory.needs(operator, basis=rows), least=rows)
    return operator, _operators.prepared(operator, linearize)
