"""MEASURED: what targets say about outputs. The loss is asked; the type and the shape of the targets say nothing alone.

classes             whole numbers that name a column of their row of outputs
one-hot             rows that name a column by their largest entry: the same, spelled out, smoothed or not
binary              one of two numbers for each output
values              a number for each output
other               anything else, and losses that tell no column by their gradient
"""

import jax
import jax.numpy as jnp
import numpy as np

from numdl.audit._measured import views

NAMED = ("classes", "one-hot")
LEVEL = 0.5  # of all outputs when the loss is asked: a probability, a logit and a value
AGREED = 0.9  # share of the rows in which the named column must stand apart
MOST = 4096  # targets that are looked at


def kind_of(case, out, y):
    """How the targets `y` of a Case relate to its outputs `out`: one of the names above."""
    outs, ys = views.floats(out), jax.tree.leaves(y)
    if len(outs) != 1 or len(ys) != 1 or not all(case.reads):
        return "other"
    (o,), t = outs, np.asarray(ys[0])
    columns = o.shape[-1] if o.ndim else 1
    if columns > 1 and t.shape == o.shape[:-1]:
        return "classes" if _stands_apart(case, out, y, _numbers(t, columns)) else "other"
    if t.size != o.size:
        return "other"
    if columns > 1 and t.shape == o.shape and one_hot(_all(case, t)) and _stands_apart(case, out, y, _turned(t)):
        return "one-hot"
    return "binary" if np.unique(t.ravel()[:MOST]).size <= 2 else "values"


def one_hot(t):
    """Whether each row is a reordering of one distribution with a single largest entry, and not all the same row."""
    rows = np.asarray(t, np.float64).reshape(-1, t.shape[-1])[:MOST]
    rising = np.sort(rows, -1)
    alike = np.isfinite(rows).all() and np.allclose(rising, rising[:1], atol=1e-3)
    shares = alike and rows.min() >= 0 and np.allclose(rows.sum(-1), 1, atol=1e-2)
    return bool(shares and rising[0, -1] > rising[0, -2] + 1e-3 and np.unique(rows.argmax(-1)).size > 1)


def told(y, kind):
    """(targets, kind) with the columns that one-hot rows name in the place of the rows."""
    return (np.asarray(y).argmax(-1), "classes") if kind == "one-hot" else (np.asarray(y), kind)


def _all(case, t):
    """All the targets that there are, where they are rows like those of the batch."""
    leaves = jax.tree.leaves(case.data[1]) if case.data is not None else []
    return np.asarray(leaves[0]) if len(leaves) == 1 and np.shape(leaves[0])[1:] == t.shape[1:] else t


def _numbers(t, columns):
    """Targets like these that name each column in turn."""
    most = 2 if t.dtype == bool else min(columns, np.iinfo(t.dtype).max + 1 if t.dtype.kind in "iu" else columns)
    return (np.arange(t.size) % most).reshape(t.shape).astype(t.dtype)


def _turned(t):
    """Rows like these whose largest entry comes in each column in turn."""
    row, count = t.reshape(-1, t.shape[-1])[0], t.size // t.shape[-1]
    first = np.roll(row, -int(row.argmax()))
    return np.stack([np.roll(first, i % len(row)) for i in range(count)]).reshape(t.shape)


def _stands_apart(case, out, y, made):
    """Whether, of equal outputs, the loss pulls or pushes the column that a made target names alone.

    The gradient of such a loss has its one least entry of a row there, or its one largest where the sign is wrong.
    A row that the loss leaves out, as many do with a class of their own, says nothing.
    """
    given = jax.tree.unflatten(jax.tree.structure(y), [jnp.asarray(made)])
    level = [jnp.full_like(o, LEVEL) for o in views.floats(out)]
    (slope,) = case.run(_slope, level, out, given)
    slope = np.asarray(slope, np.float64).reshape(-1, np.shape(slope)[-1])
    named = (made.argmax(-1) if made.shape == np.shape(level[0]) else made).astype(int).reshape(-1)
    asked = np.isfinite(slope).all(-1) & slope.any(-1)
    slope, named = slope[asked], named[asked]
    if not len(slope):
        return False
    own = np.take_along_axis(slope, named[:, None], 1)
    others = np.where(np.arange(slope.shape[1]) == named[:, None], np.nan, slope)
    gap = 1e-3 * np.abs(slope).max(1, keepdims=True)
    below, above = own + gap < np.nanmin(others, 1, keepdims=True), own - gap > np.nanmax(others, 1, keepdims=True)
    return bool(max(below.mean(), above.mean()) >= AGREED)


def _slope(form, level, out, y):
    return jax.grad(lambda o: form.value(views.filled(o, out), y))(level)
