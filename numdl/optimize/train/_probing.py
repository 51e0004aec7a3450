"""How a run behaves, as a few numbers that a resumed run must have in common: its optimizer, its first step.

    optimizer (updates)     on a small fixed problem with leaves like the parameters: eight steps in a row, and the step
                            that follows where every counter stands at 2, 4, ... 2^20, so that schedules show
    loss (first value)      on the first batch, before the first step
    loss (first step)       of the parameters and the optimizer's state in that step

A tree is known by its norm and by its product with fixed numbers. Numbers are compared to rounding: other processors
and numbers of threads add in another order.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from numdl import checks, precision, trees
from numdl._compiled import jit
from numdl._hyperparameters import as_data
from numdl.optimize.train import _stepping

IN_A_ROW = 8
COUNTS = (0,) * IN_A_ROW + tuple(2**power for power in range(1, 21))
SIDE = 3  # of the small problem's leaves, along every axis
ROUNDING = 100  # units in the last place, where nothing has changed but the process


def numbers(plan):
    """{what: array of numbers}."""
    value, step = _first_step(plan)
    return {"optimizer (updates)": _updates(plan), "loss (first value)": value, "loss (first step)": step}


def apart(old, new, *, name, moved):
    """None where two arrays agree, else (what, the old numbers, the new ones) as texts."""
    eps = float(jnp.finfo(new.dtype).eps)
    # On accelerators sums have no fixed order, and where a gradient is rounding only, a step's direction is, too.
    if name == "loss (first step)" and (moved or jax.default_backend() != "cpu"):
        return None
    tolerance = math.sqrt(eps) if moved else ROUNDING * eps
    if old is None or old.shape != new.shape:
        return name, "none" if old is None else f"{len(old)} numbers", f"{len(new)} numbers"
    old, new = old.astype(np.float64), new.astype(np.float64)
    scale = np.maximum(np.abs(old[..., :1]), np.abs(new[..., :1]))  # a product with fixed numbers may be near zero
    with np.errstate(invalid="ignore"):
        same = (old == new) | (np.isnan(old) & np.isnan(new)) | (np.abs(old - new) <= tolerance * scale)
    if same.all():
        return None
    row = int(np.argmin(same.reshape(same.shape[0], -1).all(axis=1)))
    return f"{name}, {_WHERE[name](row)}", _shown(old[row]), _shown(new[row])


def _updates(plan):
    """[steps, 2] float64, or nothing of an optimizer that asks for more than gradients."""
    for side in (SIDE, None):
        # An optimizer may hold arrays in the parameters' full shapes, or be none that works without an objective.
        try:
            return np.asarray(_followed(as_data(plan.optimizer), _small(trees.trainable(plan.start.params)[0], side)))
        except Exception:
            continue
    return np.zeros((0, 2), np.float32)


def _small(params, side):
    """Leaves of fixed numbers with the axes of the parameters', each at most `side` long."""

    def leaf(old, index):
        shape = tuple(size if side is None else min(size, side) for size in old.shape)
        dtype = precision.wide(old.dtype)
        return jnp.asarray(1 + np.cos(index + np.arange(math.prod(shape))).reshape(shape) / 2, dtype)

    leaves, structure = jax.tree.flatten(params)
    return jax.tree.unflatten(structure, [leaf(old, index) for index, old in enumerate(leaves)])


@jit
def _followed(optimizer, start):
    import optax

    goal = jax.tree.map(lambda leaf: jnp.cos(3 * leaf), start)

    def loss(params):
        return trees.inner(*[jax.tree.map(jnp.subtract, params, goal)] * 2) / 2

    def step(state, count):
        params, memory = state
        memory = jax.tree.map(lambda leaf: jnp.where(count > 0, count, leaf) if _counts(leaf) else leaf, memory)
        value, gradient = jax.value_and_grad(loss)(params)
        more = {"value": value, "grad": gradient, "value_fn": loss}
        change, memory = optax.with_extra_args_support(optimizer).update(gradient, memory, params, **more)
        new = jax.tree.map(_stepping.kept, _stepping.State(optax.apply_updates(params, change), memory), state)
        return new, jnp.stack(_told(change))

    return lax.scan(step, _stepping.start(optimizer, start), jnp.asarray(COUNTS))[1]


def _counts(leaf):
    return jnp.shape(leaf) == () and not checks.is_key(leaf) and jnp.issubdtype(leaf.dtype, jnp.integer)


def _first_step(plan):
    """The first loss [1, 1], and what the first step changed [1, 2]."""
    rows = plan.source.first()
    state, losses, _, _ = _stepping.chunk(
        plan.loss,
        plan.optimizer,
        plan.source.gather,
        plan.start,
        plan.source.data,
        rows,
        plan.key,
        np.int32(0),
        np.int32(1),
        dtype=plan.dtype,
        singly=plan.singly,
    )
    moved = [
        _difference(_reals(new), _reals(old))
        for new, old in zip(jax.tree.leaves(state), jax.tree.leaves(plan.start), strict=True)
        if jnp.issubdtype(old.dtype, jnp.inexact)
    ]
    product = sum(float(np.sum(leaf * np.cos(np.arange(leaf.size)))) for leaf in moved)
    norm = math.sqrt(sum(float(np.sum(leaf**2)) for leaf in moved))
    moving = jax.tree.leaves(trees.trainable(plan.start.params)[0])
    kind = jnp.result_type(plan.dtype, *(leaf.dtype for leaf in moving))
    return np.asarray(losses)[:1, None], np.asarray([[norm, product]]).astype(kind)


def _reals(leaf):
    """A leaf's numbers in a row, complex ones as two."""
    leaf = np.ravel(np.asarray(leaf))
    return leaf.astype(np.complex128).view(np.float64) if np.iscomplexobj(leaf) else leaf.astype(np.float64)


def _difference(new, old):
    """new - old where both are numbers: an optimizer's state may begin with infinities."""
    known = np.isfinite(new) & np.isfinite(old)
    return np.where(known, new, 0) - np.where(known, old, 0)


def _told(tree):
    """A tree's norm, and its product with fixed numbers."""
    weights = jax.tree.map(lambda leaf: jnp.cos(jnp.arange(leaf.size, dtype=leaf.dtype)).reshape(leaf.shape), tree)
    return trees.norm(tree), trees.inner(tree, weights)


def _place(row):
    return f"step {row + 1}" if row < IN_A_ROW else f"at a count of {COUNTS[row]}"


_WHERE = {
    "optimizer (updates)": _place,
    "loss (first value)": lambda row: "on the first batch",
    "loss (first step)": lambda row: "its gradient on the first batch",
}


def _shown(numbers):
    return (
        f"{float(numbers[0]):.6g}"
        if len(numbers) == 1
        else f"norm {float(numbers[0]):.6g}, product {float(numbers[1]):.6g}"
    )
