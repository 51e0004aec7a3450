"""MEASURED: what targets say about outputs. The loss is asked; the type and the shape of the targets say nothing alone.

classes             whole numbers that name a column of outputs
one-hot             rows that name a column by their largest entry: the same, spelled out, smoothed or not
binary              one of two numbers for each output
values              a number for each output
other               anything else, and losses that tell no column by their gradient

The columns may lie along any axis, and what is named may stand among other outputs and targets, weights say. An answer
that the loss leaves out, of weight 0 or of a class of its own, is none.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from numdl.audit._measured import cases, views

NAMED = ("classes", "one-hot")
LEVEL = 0.5  # of all outputs when the loss is asked: a probability, a logit and a value
REST = 10.0  # half the distance of two outputs from which on one is far above the other
LEVELS = (LEVEL, -1.03, 1.71)  # at all of which an answer that is asked for cannot be right
QUARTERS = (0.25, 0.5, 0.75)  # of targets: where the loss is asked which of them its outputs shall become
AGREED = 0.9  # share of the rows in which the named column must stand apart
COUPLED = 0.05  # share of an example's pull that others have in it, from which on its target is not where it stops
MOST = 4096  # targets that are looked at
LOOKS = 64  # batches, spread over the data, in which an answer may be left out
NUMBERS = 3e7  # outputs in all of these; where there are more, the other batches are taken to be asked for


@dataclasses.dataclass(frozen=True)
class Answers:
    """Which of the targets answer which of the floating outputs, and how."""

    kind: str = "other"
    output: int = 0
    target: int = 0
    axis: int = -1  # of the outputs, where the columns lie
    columns: int = 0  # that are chosen from

    @property
    def judged(self):
        """How answers are scored: rows that name a column are read first."""
        return "classes" if self.kind == "one-hot" else self.kind

    def outputs(self, out):
        """The outputs, columns last."""
        leaf = views.floats(out)[self.output]
        return np.moveaxis(leaf, self.axis, -1) if self.kind in NAMED else leaf

    def targets(self, y):
        """The targets; one-hot rows with their columns last."""
        leaf = jax.tree.leaves(y)[self.target]
        return np.moveaxis(leaf, self.axis, -1) if self.kind == "one-hot" else leaf

    def read(self, y):
        """The targets on the host, one-hot rows as the columns that they name."""
        found = np.asarray(self.targets(y))
        return found.argmax(-1) if self.kind == "one-hot" else found


def told(loss):
    """The Answers that the evidence `loss` keeps."""
    return Answers(loss.kind, *loss.place)


def scored(loss):
    """The same where outputs can be set beside their targets; "other" where the loss makes them something else."""
    elsewhere = loss.kind == "values" and loss.meets < AGREED and not loss.coupling > COUPLED
    return Answers() if elsewhere else told(loss)


def answers(case, out, y):
    """The Answers of a Case with these outputs and targets."""
    outs, ys = views.floats(out), jax.tree.leaves(y)
    read = [i for i, seen in enumerate(case.reads) if seen and _real(ys[i])]
    for told in (one for i in read for one in _places(case, outs, ys[i], i)):
        if _stands_apart(case, told, out, y):
            return told
    fits = [_number(j, i, ys[i]) for j, o in enumerate(outs) for i in read if np.size(ys[i]) == o.size]
    return _one_of(fits, case, out, y)


def _real(t):
    return not any(jnp.issubdtype(t.dtype, kind) for kind in (jax.dtypes.extended, jnp.complexfloating))


def _some(rows):
    """Some of them, spread over all: data may be sorted."""
    return rows[np.unique(np.linspace(0, len(rows) - 1, MOST).astype(int))]


def _number(output, target, t):
    return Answers("binary" if np.unique(_some(np.asarray(t).ravel())).size <= 2 else "values", output, target)


def _one_of(fits, case, out, y):
    """The one of these whose outputs the loss makes targets: it pulls them there, or, with the wrong sign, away."""
    if len(views.floats(out)) == sum(case.reads) == 1:
        return fits[0] if fits else Answers()
    ways = [_pulled(case, told, out, y, {each.target for each in fits}) for told in fits]
    # Where all outputs are positive, a weight also pushes always one way.
    for way in (-1, 1):
        found = [told for told, own in zip(fits, ways, strict=True) if own == way]
        if found:
            return found[0] if len(found) == 1 else Answers()
    return Answers()


def asked(case, told, x, y):
    """For each answer of `y` whether the loss asks for it: whether some equal outputs get a gradient in its row."""
    kept = np.ones(np.shape(told.read(y)), bool)
    size = min(case.examples, cases.count(y)) if case.separate else 0
    if told.kind == "other" or not size:
        return kept
    starts = np.append(np.arange(0, len(kept) - size, size), len(kept) - size)
    shapes = jax.eval_shape(case.plain, case.moving, cases.take(x, slice(0, size)))
    most = max(int(NUMBERS / max(sum(leaf.size for leaf in jax.tree.leaves(shapes)), 1)), 1)
    for count in dict.fromkeys((min(LOOKS, most), most)):
        for start in starts[np.unique(np.linspace(0, len(starts) - 1, count).astype(int))]:
            rows = slice(start, start + size)
            kept[rows] = _counted(case, told, cases.take(x, rows), cases.take(y, rows))
        if kept.all():
            break
    return kept


def one_hot(t):
    """Whether each row is a reordering of one distribution with a single largest entry, and not all the same row."""
    rows = np.asarray(_some(t.reshape(-1, t.shape[-1])), np.float64)
    rising = np.sort(rows, -1)
    alike = np.isfinite(rows).all() and np.allclose(rising, rising[:1], atol=1e-3)
    shares = alike and rows.min() >= 0 and np.allclose(rows.sum(-1), 1, atol=1e-2)
    return bool(shares and rising[0, -1] > rising[0, -2] + 1e-3 and np.unique(rows.argmax(-1)).size > 1)


def _places(case, outs, t, target):
    """All ways in which these targets may name columns of some output, the last axis first."""
    for output, o in enumerate(outs):
        for axis in range(o.ndim - 1, 0, -1):
            columns, rest = o.shape[axis], o.shape[:axis] + o.shape[axis + 1 :]
            if columns > 1 and t.shape == rest:
                yield Answers("classes", output, target, axis, columns)
            if columns > 1 and t.shape == o.shape:
                told = Answers("one-hot", output, target, axis, columns)
                if one_hot(np.moveaxis(_all(case, t, target), axis, -1)):
                    yield told


def _all(case, t, target):
    """All the targets that there are, where they are rows like those of the batch."""
    leaves = jax.tree.leaves(case.data[1]) if case.data is not None else []
    fits = target < len(leaves) and np.shape(leaves[target])[1:] == t.shape[1:]
    return np.asarray(leaves[target] if fits else t)


def _stands_apart(case, told, out, y):
    """Whether, of equal outputs, the loss pulls or pushes the column that a made target names alone.

    The gradient of such a loss has its one least entry of a row there, or its one largest where the sign is wrong.
    A row that the loss leaves out says nothing.
    """
    leaves, structure = jax.tree.flatten(y)
    columns, leaves[told.target] = _made(told, leaves[told.target])
    made = jax.tree.unflatten(structure, leaves)
    slope = _slopes(case, told, out, made)
    kept = np.isfinite(slope).all(-1) & slope.any(-1)
    slope, named = slope[kept], columns.reshape(-1)[kept]
    if not len(slope):
        return False
    own = np.take_along_axis(slope, named[:, None], 1)
    others = np.where(np.arange(slope.shape[1]) == named[:, None], np.nan, slope)
    gap = 1e-3 * np.abs(slope).max(1, keepdims=True)
    below, above = own + gap < np.nanmin(others, 1, keepdims=True), own - gap > np.nanmax(others, 1, keepdims=True)
    if below.mean() >= AGREED:
        return True
    return bool(above.mean() >= AGREED) and not (told.columns == 2 and _comes_to_rest(case, told, out, made, columns))


def _comes_to_rest(case, told, out, y, columns):
    """Whether the push away from the named column ends: two columns may be two scores of which one has to be higher."""
    far = np.where(np.arange(told.columns) == columns[..., None], -REST, REST).astype(np.float32)
    levels = LEVEL, np.moveaxis(far, -1, told.axis)
    near, there = (np.nanmax(np.abs(_slopes(case, told, out, y, level))) for level in levels)
    return bool(there < 0.01 * near)


def _pulled(case, told, out, y, others):
    """-1 where more of the target lessens the slope of the loss at its output, 1 where it adds to it, else 0.

    More of a weight does the one where the output is too low, and the other where it is too high.
    """
    leaves, structure = jax.tree.flatten(y)
    draw, signs, t = np.random.default_rng(13), [], np.asarray(leaves[told.target])
    pair = [draw.permutation(t.ravel()).reshape(t.shape) for _ in range(2)]
    more = np.sign(np.subtract(*(np.asarray(each, np.float64) for each in pair))).ravel()
    known = [np.asarray(leaves[other], np.float64) for other in others]
    for level in np.unique(
        [np.quantile(each[np.isfinite(each)], QUARTERS) for each in known if np.isfinite(each).any()]
    ):
        slopes = []
        for each in pair:
            leaves[told.target] = jnp.asarray(each)
            slopes.append(_slopes(case, told, out, structure.unflatten(leaves), level).ravel())
        signs.append(np.sign(slopes[0] - slopes[1]) * more)
    found = np.concatenate(signs)
    found = found[np.isfinite(found) & (found != 0)]
    mean = np.mean(found) if len(found) else 0.0
    return int(np.sign(mean)) if abs(mean) >= 2 * AGREED - 1 else 0


def _made(told, t):
    """(columns by chance, targets like these that name them)."""
    t, draw = np.asarray(t), np.random.default_rng(12)
    if told.kind == "one-hot":
        rows = np.moveaxis(t, told.axis, -1)
        turned = np.sort(rows.reshape(-1, told.columns)[0])
        named = draw.integers(0, told.columns, rows.shape[:-1])
        made = turned[(np.arange(told.columns) - named[..., None] - 1) % told.columns]
        return named, jnp.asarray(np.moveaxis(made, -1, told.axis))
    named = draw.integers(0, min(told.columns, _held(t.dtype)), t.shape)
    return named, jnp.asarray(named.astype(t.dtype))


def _held(dtype):
    """How many whole numbers from 0 on a type can tell apart."""
    if dtype.kind == "b":
        return 2
    return jnp.iinfo(dtype).max + 1 if jnp.issubdtype(dtype, jnp.integer) else 2 ** (jnp.finfo(dtype).nmant + 1)


def _slopes(case, told, out, y, level=LEVEL):
    """Gradient of the loss where the outputs have this level, a row [K] or one number for each answer."""
    outs = views.floats(out)
    filled = [
        jnp.full(o.shape, LEVEL if np.ndim(level) and i != told.output else level, o.dtype) for i, o in enumerate(outs)
    ]
    slope = np.asarray(told.outputs(case.run(_slope, filled, out, y)), np.float64)
    return slope.reshape(-1, slope.shape[-1] if told.kind in NAMED else 1)


def _slope(form, level, out, y):
    return jax.grad(lambda o: form.value(views.filled(o, out), y))(level)


def _counted(case, told, x, y):
    """Which answers of a batch the loss asks for."""
    shapes = jax.eval_shape(case.plain, case.moving, x)
    out = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    slope = np.concatenate([_slopes(case, told, out, y, level) for level in LEVELS], -1)
    return (slope.any(-1) | ~np.isfinite(slope).all(-1)).reshape(np.shape(told.read(y)))
