"""MEASURED: which curvature matrix: the Hessian, the Gauss-Newton matrix and the Fisher matrices of a loss."""

import dataclasses
from collections.abc import Callable, Sequence

from jaxtyping import PyTree

from numdl import checks, trees
from numdl.analysis import _parts
from numdl.analysis.curvature import _kinds, _memory, _reduction
from numdl.analysis.curvature._operators import Operator, examples
from numdl.typing import Loss


@dataclasses.dataclass(frozen=True)
class Composed:
    """A loss(params, batch) that keeps its two halves: what a Gauss-Newton matrix is made of."""

    outputs: Callable  # (params, batch) -> z
    loss_of_outputs: Callable  # (z, batch) -> scalar, or a pair (sum, weight)

    def __call__(self, params, batch):
        """loss_of_outputs(outputs(params, batch), batch)."""
        return self.loss_of_outputs(self.outputs(params, batch), batch)


def hessian(
    loss: Loss,
    params: PyTree,
    batch: PyTree,
    *,
    frozen: Sequence[str] = (),
    chunk: int | str | None = None,
    reduction: str | None = None,
) -> Operator:
    """MEASURED Hessian of loss(params, batch) as an Operator: forward over reverse, about two gradients a product.

    Parameters
    ----------
    loss : function             (params, batch) -> scalar, or a pair (sum, weight): the loss is sum / weight, where the
                                weight (of a mask, of classes) depends on the data only
    params : pytree             real floating leaves are coordinates, complex ones two each; all else stays
    batch : pytree              data; with `chunk`, every leaf [N, ...]
    frozen : names              paths of leaves that stay as well: running statistics, a pretrained part
    chunk : int >= 1            this many examples at a time, in a loop: memory of one chunk, any N; "auto": as many as
                                fit into half of the free memory, or fewer where that is faster; None: all at once, but
                                where `reduction` is stated the number that is faster
    reduction : "mean" | "sum"  what a scalar loss is over the examples; None: "mean". One product shows whether it is
    Returns
    -------
    Operator                    v -> A v for trees v like params; size, params, like
    Raises
    ------
    ValueError, TypeError       not a function, nothing that moves, chunks that do not make the whole
    Source: Pearlmutter 1994, Neural Computation 6.
    """
    return _operator(
        _kinds.Hessian(checks.returning("loss", loss, 2, "loss(params, batch)", static=True)),
        params,
        batch,
        frozen,
        chunk,
        reduction,
    )


def gauss_newton(
    outputs: Callable,
    loss_of_outputs: Callable,
    params: PyTree,
    batch: PyTree,
    *,
    frozen: Sequence[str] = (),
    chunk: int | str | None = None,
    reduction: str | None = None,
) -> Operator:
    """MEASURED generalized Gauss-Newton matrix J' H_z J as an Operator; positive semidefinite for a convex loss.

        J = d outputs / d params,    H_z = Hessian of loss_of_outputs at z = outputs(params, batch)

    Parameters
    ----------
    outputs : function          (params, batch) -> z, any pytree
    loss_of_outputs : function  (z, batch) -> scalar, or a pair (sum, weight)
    params, batch, frozen, chunk, reduction : as in `hessian`
    Returns
    -------
    Operator                    v -> J' H_z J v for trees v like params
    Raises
    ------
    ValueError, TypeError       not functions, nothing that moves, chunks that do not make the whole
    Source: Schraudolph 2002, Neural Computation 14.
    """
    kind = _kinds.GaussNewton(
        checks.returning("outputs", outputs, 2, "outputs(params, batch)", static=True),
        checks.returning("loss_of_outputs", loss_of_outputs, 2, "loss_of_outputs(z, batch)", static=True),
    )
    return _operator(kind, params, batch, frozen, chunk, reduction)


def fisher(
    outputs: Callable,
    params: PyTree,
    batch: PyTree,
    *,
    likelihood: str,
    frozen: Sequence[str] = (),
    chunk: int | str | None = None,
) -> Operator:
    """MEASURED Fisher matrix of the model's own distribution, its expectation over labels exact, as an Operator.

        mean over examples of J' F_z J;   F_z = diag(p) - p p' (categorical), diag(p (1 - p)) (bernoulli), 1 (gaussian)

    Parameters
    ----------
    outputs : function          (params, batch) -> z [N, ..., C]: logits, or means of unit variance; N, ...: examples
    params, batch, frozen, chunk : as in `hessian`
    likelihood : "categorical" | "bernoulli" | "gaussian"   the distribution that z parameterizes
    Returns
    -------
    Operator                    v -> F v for trees v like params
    Raises
    ------
    ValueError, TypeError       an unknown likelihood, not a function, chunks that do not make the whole
    Source: Martens 2020, JMLR 21.
    """
    checks.one_of("likelihood", likelihood, _kinds.INFORMATION)
    kind = _kinds.Fisher(checks.returning("outputs", outputs, 2, "outputs(params, batch)", static=True), likelihood)
    return _operator(kind, params, batch, frozen, chunk, "mean")


def empirical_fisher(
    loss: Loss, params: PyTree, batch: PyTree, *, frozen: Sequence[str] = (), chunk: int | str | None = None
) -> Operator:
    """MEASURED mean of g_i g_i' over the examples, g_i the gradient of one example's loss, as an Operator.

    Neither the Fisher matrix nor the Hessian: it uses the labels of the data (Kunstner et al. 2019). A loss that
    returns pairs (sum, weight) has g_i = gradient of sum / weight and a mean weighted alike; weight 0 leaves out.

    Parameters
    ----------
    loss : function             (params, batch) -> scalar or pair; called with batches of one example
    params, frozen, chunk : as in `hessian`
    batch : pytree              every leaf [N, ...]
    Returns
    -------
    Operator                    v -> mean of g_i (g_i . v) for trees v like params
    Raises
    ------
    ValueError, TypeError       leaves of the batch of different lengths, not a function, nothing that moves
    Source: Kunstner, Balles & Hennig 2019, arXiv:1905.12558.
    """
    examples(batch)
    return _operator(
        _kinds.EmpiricalFisher(checks.returning("loss", loss, 2, "loss(params, batch)", static=True)),
        params,
        batch,
        frozen,
        chunk,
        "mean",
    )


def named(loss, params, batch, operator, *, frozen=(), chunk=None, reduction=None, vectors):
    """The Operator that a call means: the one handed over as `loss`, or the one of that name.

    `vectors(size)` are those that the call holds beside a product, for a chunk that fits.
    """
    if isinstance(chunk, str) and not isinstance(loss, Operator):
        whole = named(loss, params, batch, operator, frozen=frozen, reduction=reduction, vectors=vectors)
        return _fitted(whole, chunk, reduction, vectors(whole.size))
    if isinstance(loss, Operator):
        given = {"params": params, "batch": batch, "chunk": chunk, "reduction": reduction}
        beside = [name for name, value in given.items() if value is not None] + ["frozen"] * (not _empty(frozen))
        if beside or operator != "hessian":
            beside = beside or ["operator"]
            raise checks.BadValue(
                f"{beside[0]} must not be given: an Operator holds its own params, batch, frozen and chunk; "
                f"got an Operator as loss and {', '.join(beside)} beside it"
            )
        return loss
    checks.one_of("operator", operator, ("hessian", "gauss_newton", "empirical_fisher"))
    settings = {"frozen": frozen, "chunk": chunk}
    if operator == "empirical_fisher":
        if reduction is not None:
            raise checks.BadValue(f"reduction must be None for an empirical Fisher matrix, a mean; got {reduction!r}")
        return empirical_fisher(loss, params, batch, **settings)
    if operator == "gauss_newton":
        hint = "curvature.Composed(outputs, loss_of_outputs): its two halves make the matrix"
        checks.instance("loss", loss, Composed, hint=hint)
        return gauss_newton(loss.outputs, loss.loss_of_outputs, params, batch, reduction=reduction, **settings)
    return hessian(loss, params, batch, reduction=reduction, **settings)


def _operator(kind, params, batch, frozen, chunk, reduces):
    moving, rest = trees.trainable(params, frozen=frozen)
    batch = _parts.data("batch", batch)
    checks.one_of("reduction", reduces, (None, "mean", "sum"))
    operator = Operator(moving, rest, batch, kind, reduction=reduces or "mean")
    if chunk is None:
        stated = _reduction.outcome(operator) == "pair" or reduces is not None
        return _quick(operator, reduces) if stated and not isinstance(kind, _kinds.EmpiricalFisher) else operator
    if isinstance(chunk, str):
        return _fitted(operator, chunk, reduces)
    chunk = checks.whole("chunk", chunk)
    examples(batch)
    return _reduction.chunked(dataclasses.replace(operator, chunk=chunk), reduces)


def _fitted(operator, chunk, reduces, vectors=0):
    """The operator in chunks that fit into memory beside this many vectors, as it is if all examples do."""
    if chunk != "auto":
        raise checks.BadValue(f'chunk must be a whole number >= 1, "auto" or None; got {chunk!r}')
    examples(operator.batch)
    _reduction.outcome(operator)
    size = _memory.chosen(operator, vectors)
    if size is None:
        return _quick(operator, reduces)
    return _reduction.chunked(dataclasses.replace(operator, chunk=size, for_speed=False), reduces)


def _quick(operator, reduces):
    """The operator in chunks where those are faster and make the whole, else as it is."""
    try:
        size = None if operator.for_speed else _memory.quick(operator)
        if size is None:
            return operator
        return _reduction.chunked(dataclasses.replace(operator, chunk=size, for_speed=True), reduces)
    except (ValueError, TypeError):  # examples that cannot be told apart, a loss that couples them
        return operator


def _empty(frozen):
    return frozen is None or (not isinstance(frozen, str) and not len(tuple(frozen)))
