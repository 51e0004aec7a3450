"""MEASURED: the Hessian, the Gauss-Newton matrix and the Fisher matrices of a loss as symmetric operators v -> A v.

An operator is a record: the parameters and the data are its arrays, the loss is part of its structure. `jit` therefore
compiles once for a loss *function* and the shapes, and takes new parameters and data without compiling again; write the
loss once with `def`, not as a new `lambda` in every call. Nothing random may be in the loss, and batch statistics must
be frozen (held in the parameters or closed over): with `chunk` that is tested.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numdl import checks, trees
from numdl.krylov import vectors
from numdl.records import record, static
from numdl.tracing.programs import bodies


@record
class Operator:
    """A symmetric matrix at `params`, known by its products: operator(v) for pytrees v like `operator.like`."""

    params: Any = dataclasses.field(repr=False)  # pytree
    batch: Any = dataclasses.field(repr=False)  # pytree: the data
    kind: Any = static()  # what is differentiated, and how
    chunk: int | None = static(default=None)  # examples at a time
    selected: tuple | None = static(default=None)  # names of the leaves differentiated; None: all

    @property
    def like(self):
        """The parameters that a vector v stands beside: all of them, or {name: leaf} of a block."""
        if self.selected is None:
            return self.params
        found = dict(zip(trees.names(self.params), jax.tree.leaves(self.params), strict=True))
        return {name: found[name] for name in self.selected}

    @property
    def size(self):
        """Rows of the matrix."""
        return sum(np.size(leaf) for leaf in jax.tree.leaves(self.like))

    @property
    def eager(self):
        """Whether the product is a loop in Python over compiled parts."""
        return self.chunk is not None

    def __call__(self, v):
        """The product A v."""
        if self.chunk is None:
            return self.kind.product(lambda part: self._whole(part), self.like, self.batch, v)
        total, examples = None, _examples(self.batch)
        for begin in range(0, examples, self.chunk):
            piece = jax.tree.map(lambda leaf, begin=begin: leaf[begin : begin + self.chunk], self.batch)
            part = Operator(self.params, piece, self.kind, None, self.selected)
            total = _accumulated(part, v, _examples(piece) / examples, total)
        return total

    def _whole(self, part):
        if self.selected is None:
            return part
        leaves, structure = jax.tree.flatten(self.params)
        merged = [part.get(name, leaf) for name, leaf in zip(trees.names(self.params), leaves, strict=True)]
        return jax.tree.unflatten(structure, merged)


@dataclasses.dataclass(frozen=True)
class Composed:
    """A loss(params, batch) that keeps its two halves: what a Gauss-Newton matrix is made of."""

    outputs: Callable  # (params, batch) -> z
    loss_of_outputs: Callable  # (z, batch) -> scalar

    def __call__(self, params, batch):
        """loss_of_outputs(outputs(params, batch), batch)."""
        return self.loss_of_outputs(self.outputs(params, batch), batch)


def hessian(loss, params, batch, *, chunk=None):
    """MEASURED Hessian of loss(params, batch) as an Operator: forward over reverse, about two gradients a product.

    Parameters
    ----------
    loss : function             (params, batch) -> scalar, a mean over the examples
    batch : pytree              data; with `chunk`, every leaf [N, ...]
    chunk : int                 so many examples at a time, in a loop: memory of one chunk, any N
    Raises
    ------
    ValueError, TypeError       not a function, leaves that are not real, a chunked loss that is no mean over examples
    Source: Pearlmutter 1994, Neural Computation 6.
    """
    return _operator(_Hessian(checks.function("loss", loss)), params, batch, chunk)


def gauss_newton(outputs, loss_of_outputs, params, batch, *, chunk=None):
    """MEASURED generalized Gauss-Newton matrix J' H_z J as an Operator; positive semidefinite for a convex loss.

        J = d outputs / d params,    H_z = Hessian of loss_of_outputs at z = outputs(params, batch)

    Parameters
    ----------
    outputs : function          (params, batch) -> z, any pytree
    loss_of_outputs : function  (z, batch) -> scalar, a mean over the examples
    Source: Schraudolph 2002, Neural Computation 14.
    """
    kind = _GaussNewton(checks.function("outputs", outputs), checks.function("loss_of_outputs", loss_of_outputs))
    return _operator(kind, params, batch, chunk)


def fisher(outputs, params, batch, *, likelihood, chunk=None):
    """MEASURED Fisher matrix of the model's own distribution, its expectation over labels exact, as an Operator.

        mean over examples of J' F_z J;   F_z = diag(p) - p p' (categorical), diag(p (1 - p)) (bernoulli), 1 (gaussian)

    Parameters
    ----------
    outputs : function          (params, batch) -> z [..., C]: logits, or means of unit variance; leading axes: examples
    likelihood : "categorical" | "bernoulli" | "gaussian"
    Source: Martens 2020, JMLR 21, section 9.
    """
    checks.one_of("likelihood", likelihood, _INFORMATION)
    return _operator(_Fisher(checks.function("outputs", outputs), likelihood), params, batch, chunk)


def empirical_fisher(loss, params, batch, *, chunk=None):
    """MEASURED mean of g_i g_i' over the examples, g_i the gradient of one example's loss, as an Operator.

    Neither the Fisher matrix nor the Hessian: it uses the labels of the data (Kunstner et al. 2019).

    Parameters
    ----------
    loss : function             (params, batch) -> scalar; called with batches of one example
    batch : pytree              every leaf [N, ...]
    """
    _examples(batch)
    return _operator(_EmpiricalFisher(checks.function("loss", loss)), params, batch, chunk)


def named(loss, params, batch, operator, chunk):
    """The Operator that a call means: the one handed over as `loss`, or the one of that name."""
    if isinstance(loss, Operator):
        if params is not None or batch is not None or chunk is not None or operator != "hessian":
            raise ValueError("an Operator holds its own params, batch and chunk; pass it alone")
        return loss
    checks.one_of("operator", operator, ("hessian", "gauss_newton", "empirical_fisher"))
    if operator == "gauss_newton":
        hint = "curvature.Composed(outputs, loss_of_outputs): its two halves make the matrix"
        checks.instance("loss", loss, Composed, hint=hint)
        return gauss_newton(loss.outputs, loss.loss_of_outputs, params, batch, chunk=chunk)
    return {"hessian": hessian, "empirical_fisher": empirical_fisher}[operator](loss, params, batch, chunk=chunk)


def restrict(operator, names):
    """The diagonal block of the leaves whose path is, or lies under, one of the names."""
    names = (names,) if isinstance(names, str) else tuple(names)
    every = trees.names(operator.params)
    chosen = tuple(path for path in every if any(path == n or path.startswith(f"{n}/") for n in names))
    for name in names:
        if not any(path == name or path.startswith(f"{name}/") for path in every):
            raise ValueError(f"names must be paths of params, {', '.join(every)}; got {name!r}")
    return Operator(operator.params, operator.batch, operator.kind, operator.chunk, chosen)


def blocks(operator, *, by="layer"):
    """{name: Operator} of the diagonal blocks: one for each leaf, or for each group of leaves under one path."""
    checks.one_of("by", by, ("layer", "leaf"))
    paths = operator.selected or trees.names(operator.params)
    names = paths if by == "leaf" else [path.rpartition("/")[0] or path for path in paths]
    return {name: restrict(operator, name) for name in dict.fromkeys(names)}


def linearizes(operator, linearize):
    """Whether the product is to be linearized: as asked for, else where it is faster."""
    if linearize is None:
        return operator.chunk is None and _worthwhile(operator)
    if linearize and operator.chunk is not None:
        raise ValueError("linearize keeps the whole data's activations, chunk avoids it; use one of the two")
    return bool(linearize)


def prepared(operator, linearize):
    """The operator, or its product with all that does not depend on v computed once and kept."""
    return _linearized(operator) if linearizes(operator, linearize) else operator


def kept_bytes(operator):
    """Bytes that a linearized product keeps (of one chunk), the parameters and data that it reads included."""
    if operator.chunk is not None:
        piece = jax.tree.map(lambda leaf: leaf[: operator.chunk], operator.batch)
        operator = Operator(operator.params, piece, operator.kind, None, operator.selected)
    shapes = jax.eval_shape(_linearized, operator)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


@jax.jit
def _linearized(operator):
    # The product is linear in v: its derivative at 0 is itself, with everything else already computed.
    return jax.linearize(operator, jax.tree.map(jnp.zeros_like, operator.like))[1]


def _worthwhile(operator):
    """On a CPU a convolution's activations take longer to read again than to compute again."""
    if jax.default_backend() != "cpu":
        return True
    return not _has_convolution(jax.make_jaxpr(_linearized)(operator).jaxpr)


def _has_convolution(jaxpr):
    return any(
        equation.primitive.name == "conv_general_dilated"
        or any(_has_convolution(getattr(body, "jaxpr", body)) for body in bodies(equation))
        for equation in jaxpr.eqns
    )


@jax.jit
def _accumulated(part, v, share, total):
    product = jax.tree.map(lambda leaf: (share * leaf).astype(leaf.dtype), part(v))
    return product if total is None else jax.tree.map(jnp.add, total, product)


def _operator(kind, params, batch, chunk):
    vectors.layout("params", params)
    operator = Operator(params, batch, kind, chunk)
    if chunk is not None:
        checks.whole("chunk", chunk)
        _examples(batch)
        if not vectors.traced((params, batch)):
            _check_mean(operator)
    return operator


def _examples(batch):
    counts = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batch)}
    if len(counts) != 1 or counts == {()} or counts == {(0,)}:
        raise ValueError(f"batch must have one axis of examples on every leaf; got lengths {sorted(counts)}")
    return counts.pop()[0]


def _check_mean(operator):
    """Refuse a loss whose value is not the mean of the values of the two halves of a chunk."""
    half = min(operator.chunk, _examples(operator.batch)) // 2
    if not half:
        return
    first, second, both = (
        float(_value(operator.kind, operator.params, jax.tree.map(lambda leaf, at=at: leaf[at], operator.batch)))
        for at in (slice(half), slice(half, 2 * half), slice(2 * half))
    )
    eps = vectors.layout("params", operator.params).eps
    if abs(both - (first + second) / 2) > 1e3 * eps * max(abs(first), abs(second), abs(both)):
        raise ValueError(
            f"with chunk, the loss must be a mean over examples: {first:g} and {second:g} on two halves, "
            f"{both:g} on both. Divide a sum by the number of examples; freeze batch statistics"
        )


@dataclasses.dataclass(frozen=True)
class _Hessian:
    loss: Callable

    def product(self, whole, at, batch, v):
        return jax.jvp(jax.grad(lambda part: self.loss(whole(part), batch)), (at,), (v,))[1]

    def value(self, params, batch):
        return self.loss(params, batch)


@dataclasses.dataclass(frozen=True)
class _GaussNewton:
    outputs: Callable
    loss_of_outputs: Callable

    def product(self, whole, at, batch, v):
        def middle(z, push):
            return jax.jvp(jax.grad(lambda z: self.loss_of_outputs(z, batch)), (z,), (push,))[1]

        return _sandwich(lambda part: self.outputs(whole(part), batch), middle, at, v)

    def value(self, params, batch):
        return self.loss_of_outputs(self.outputs(params, batch), batch)


@dataclasses.dataclass(frozen=True)
class _Fisher:
    outputs: Callable
    likelihood: str

    def product(self, whole, at, batch, v):
        def middle(z, push):
            examples = max(z.size // z.shape[-1], 1)
            return _INFORMATION[self.likelihood](z, push) / examples

        return _sandwich(lambda part: self.outputs(whole(part), batch), middle, at, v)

    def value(self, params, batch):
        return jnp.mean(self.outputs(params, batch) ** 2)


@dataclasses.dataclass(frozen=True)
class _EmpiricalFisher:
    loss: Callable

    def product(self, whole, at, batch, v):
        def losses(part):
            return jax.vmap(lambda one: self.loss(whole(part), jax.tree.map(lambda leaf: leaf[None], one)))(batch)

        return _sandwich(losses, lambda z, push: push / z.size, at, v)

    def value(self, params, batch):
        return self.loss(params, batch)


def _sandwich(function, middle, at, v):
    """J' middle(z, J v)."""
    z, push = jax.jvp(function, (at,), (v,))
    return jax.vjp(function, at)[1](middle(z, push))[0]


def _categorical(z, push):
    p = jax.nn.softmax(z, axis=-1)
    return p * (push - jnp.sum(p * push, axis=-1, keepdims=True))


_INFORMATION = {
    "categorical": _categorical,
    "bernoulli": lambda z, push: jax.nn.sigmoid(z) * jax.nn.sigmoid(-z) * push,
    "gaussian": lambda z, push: push,
}

_value = jax.jit(lambda kind, params, batch: kind.value(params, batch), static_argnums=0)
