"""MEASURED: the data, without the network: sizes, spreads, labels, order, and examples whose loss is not a number."""

import jax
import jax.numpy as jnp
import numpy as np

from numdl.audit._measured import cases, labels, programs
from numdl.audit.evidence import Data, empty

MOST_RUN = 8192  # examples whose loss and gradient are looked at one by one
MOST_BLOCKS = 64  # batches with such examples that are run
FEW = 8
FILLS = jax.lax.GatherScatterMode.FILL_OR_DROP  # what lies past an end is not a number; else the end's row


def measure(case, told):
    """The Data of a Case whose targets answer its outputs as the labels.Answers `told` say."""
    x, y = case.data or (case.x, case.y)
    broken, count, given = _broken(case, x, y)
    target, own = _telling(case, y) if told.kind == "other" else (told.read(y), told.read(case.y))
    counted = None if told.kind == "other" else labels.asked(case, told, x, y)
    past = np.zeros(1) if told.kind != "classes" else np.where(counted | (target < told.columns), 0, target)
    if told.kind == "classes":  # numbers below 0 stay: whether the loss asks for them is a question of its own
        counted |= target < 0
    known = {"whole": case.data is not None, "examples": cases.count(x) if case.separate else 0, "broken": broken}
    known |= {"broken_count": count, "broken_given": given, "kind": _kind(x), "classes": told.columns}
    known["one_past"] = float(np.mean(past > 0)) if past.max(initial=0) == told.columns else 0.0
    known |= _all_inputs(x) if known["kind"] == "float" else {}
    known |= _looked_up(case, x)
    known |= _targets(target, counted, told, own, case) if target is not None else {}
    return empty(Data, **known)


def _telling(case, y):
    """(the targets that vary most beside their size, those of the batch); None where the loss reads no target."""
    pairs = [
        (np.asarray(leaf), np.asarray(own))
        for leaf, own, read in zip(jax.tree.leaves(y), jax.tree.leaves(case.y), case.reads, strict=True)
        if read and not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
    ]
    return max(pairs, key=lambda pair: _relative(pair[0]), default=(None, None))


def _relative(leaf):
    wide = leaf.astype(np.float64)
    wide = wide[np.isfinite(wide)]
    return float(wide.std() / max(np.abs(wide).max(), 1e-30)) if wide.size else 0.0


def _kind(x):
    types = [leaf.dtype for leaf in jax.tree.leaves(x)]
    for kind, name in ((jnp.floating, "float"), (jnp.integer, "integer")):
        if any(jnp.issubdtype(dtype, kind) for dtype in types):
            return name
    return "other"


def _all_inputs(x):
    """The largest of each over the floating inputs; whole numbers beside them that vary are no constant inputs."""
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(x) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    whole = lambda leaf: leaf.dtype == bool or jnp.issubdtype(leaf.dtype, jnp.integer)  # noqa: E731
    others = [np.asarray(leaf) for leaf in jax.tree.leaves(x) if whole(leaf)]
    found = [_inputs(leaf) for leaf in leaves]
    # A constant input beside others, a mask of ones say, has no scale of its own.
    found = [one for one in found if one["constant"] < 1] or found
    known = {name: float(np.fmax.reduce([one[name] for one in found])) for name in found[0]}
    known["spread"] = max([known["spread"], *(_inputs(leaf)["spread"] for leaf in others)])
    known["constant"] = min(one["constant"] for one in found)
    return known


def _inputs(x):
    flat = np.asarray(x, np.float64).reshape(len(x), -1) if x.ndim > 1 else np.asarray(x, np.float64)[:, None]
    flat = np.where(np.isfinite(flat), flat, np.nan)
    with np.errstate(all="ignore"):
        deviation, mean = np.nanstd(flat, 0), np.nanmean(flat, 0)
        vary = deviation > 1e-7 * (np.abs(mean) + 1e-30)
        moving = deviation[vary]
        spread = float(np.sqrt(np.nanmean(deviation**2)))
        return {
            "rms": float(np.sqrt(np.nanmean(flat**2))),
            "spread": spread,
            "offset": float(np.sqrt(np.nanmean(mean**2)) / max(spread, 1e-30)),
            "column_ratio": float(moving.max() / np.median(moving)) if moving.size else float("nan"),
            "constant": float(np.mean(~vary)),
        }


def _looked_up(case, x):
    """Of the tables in which inputs look up rows the one that most of them miss: how many do, how far they run."""
    if not any(jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in jax.tree.leaves(x)):
        return {}
    blocks = zip(*(case.run(_ids, case.moving, block) for block in _blocks(case, x)))
    # Of each lookup and axis of its table [.., 5]: blocks, and the steps of scans, side by side.
    seen = [axis for block in blocks for axis in np.moveaxis(np.float64(block), -2, 0)]
    if not seen:
        return {}
    missed, least, most, last, fills = max((axis.reshape(-1, 5).T for axis in seen), key=lambda axis: axis[0].mean())
    return {"missed": float(missed.mean()), "ids": np.array([least.min(), most.max(), last[0], fills[0]])}


def _blocks(case, x):
    """Inputs as many at a time as a batch holds."""
    if not case.separate or case.data is None:
        return [case.x]
    n, size = cases.count(x), min(case.examples, cases.count(x))
    starts = np.minimum(np.arange(0, min(n, MOST_RUN), size), n - size)
    return [cases.take(x, np.arange(start, start + size)) for start in starts]


def _ids(form, moving, x):
    """Of each lookup [.., axes of the table, 5]: share past an end, least and largest, the last, if nan is read."""
    return programs.looked(form.call, moving, x, _lookup)


def _lookup(equation, values, own):
    """What one gather from a table that does not depend on the inputs looks up, if it is by what they hold."""
    if equation.primitive.name != "gather" or own[0] or not own[1] or not values[1].size:
        return None
    (table, ids), axes = values, equation.params["dimension_numbers"].start_index_map
    last = [table.shape[axis] - equation.params["slice_sizes"][axis] for axis in axes]
    rows, fills = [], jnp.issubdtype(table.dtype, jnp.inexact) and equation.params["mode"] == FILLS
    for k, most in enumerate(last):
        one = ids[..., k].astype(jnp.float32)
        missed = jnp.mean((one < 0) | (one > most))
        rows.append(jnp.stack([missed, one.min(), one.max(), jnp.float32(most), jnp.float32(fills)]))
    return jnp.stack(rows)


def _targets(y, counted, told, batch, case):
    values = (y if counted is None else y[counted]).astype(np.float64).ravel()
    finite = values[np.isfinite(values)]
    if not finite.size:
        return {}
    spread = float(finite.std())
    known = {
        "target_rms": float(np.sqrt(np.mean(finite**2))),
        "target_spread": spread,
        "target_offset": float(abs(finite.mean()) / max(spread, 1e-30)),
        "label_low": float(finite.min()),
        "label_high": float(finite.max()),
        "labels": 0,
        "batch_labels": 0,
    }
    if told.kind in (*labels.NAMED, "binary"):
        found, counts = np.unique(finite, return_counts=True)
        inside = counts[(found >= 0) & (found < max(told.columns, 2))]
        known |= {
            "labels": len(found),
            "common": float(counts.max() / counts.sum()),
            "rare": float(inside.min() / counts.sum()) if inside.size else float("nan"),
            "batch_labels": np.unique(batch).size,
            "spare_labels": told.kind == "classes" and bool((y < 0).any()) and _spare(case, told, y),
        }
    known["sorted_share"] = _sorted(y, case.examples) if case.data is not None else float("nan")
    return known


def _spare(case, told, y):
    """Whether outputs whose label is below 0 do not move the loss, among others whose label is a class."""
    x, whole = case.data or (case.x, case.y)
    below, others = (np.flatnonzero(where.reshape(len(y), -1).any(1)) for where in (y < 0, y >= 0))
    rows = np.concatenate([below[: case.examples // 2], others])[: case.examples]
    if not case.separate or not len(others) or not (y[rows] < 0).any():
        return False
    x, targets = cases.take(x, rows), cases.take(whole, rows)
    out = case.forward(case.moving, x, case.key)
    slope = np.asarray(told.outputs(case.run(_output_slope, out, targets)), np.float32)
    finite = np.isfinite(slope).all() and np.isfinite(np.asarray(case.loss(out, targets), np.float32)).all()
    return bool(finite and (slope[y[rows] < 0] == 0).all() and slope.any())


def _output_slope(form, out, y):
    return jax.grad(form.value)(out, y)


def _sorted(y, size):
    """1 - variance of targets within consecutive batches / in all, corrected for the batches' size."""
    flat = y.reshape(len(y), -1).astype(np.float64)
    flat = np.eye(64)[flat[:, 0].astype(int)] if _few_labels(flat) else flat
    count = len(flat) // size
    if size < 2 or count < 2:
        return float("nan")
    blocks = flat[: count * size].reshape(count, size, -1)
    total = flat.var(0).sum()
    within = blocks.var(1).sum(-1).mean() * size / (size - 1)
    return float(1 - within / total) if total > 0 else float("nan")


def _few_labels(flat):
    column = flat[:, 0]
    return (
        flat.shape[1] == 1
        and np.isfinite(column).all()
        and (column == column.round()).all()
        and column.min() >= 0
        and column.max() < 64
    )


def _broken(case, x, y):
    """(indices of the first few examples whose loss or gradient is not finite, how many, whether they come with it)."""
    if not case.separate:
        return (), 0, False
    n = cases.count(x)
    given = np.zeros(n, bool)
    for leaf in jax.tree.leaves((x, y)):
        if jnp.issubdtype(leaf.dtype, jnp.inexact):
            given |= ~np.isfinite(np.asarray(leaf)).reshape(n, -1).all(1)
    bad = _not_taken(case, x, y, given) if given.any() else np.zeros(n, bool)
    own = bool(bad.any())
    if not own and case.data is not None:
        bad = _run(case, x, y)
    return tuple(int(i) for i in np.flatnonzero(bad)[:FEW]), int(bad.sum()), own


def _not_taken(case, x, y, given):
    """Of examples that hold not-a-number or infinity those that reach the loss: a gap may be meant, and be masked."""
    size = max(1, min(case.examples, len(given)))
    held, judged = np.flatnonzero(given), np.zeros(len(given), bool)
    starts = np.minimum(np.unique(held // size) * size, len(given) - size)
    looked = starts[np.unique(np.linspace(0, len(starts) - 1, MOST_BLOCKS).astype(int))]
    lost = [start for start in looked if not _finite(case, x, y, np.arange(start, start + size))]
    for start in lost:
        judged[start : start + size] = True
    # What was not looked at is taken to be like what was.
    return given & judged if len(looked) == len(starts) or not lost else given


def _run(case, x, y):
    """Which of the examples have a loss or a gradient that is not finite; all false where only batches make sense."""
    size = max(1, min(case.examples, cases.count(x)))
    index = np.arange(min(cases.count(x), MOST_RUN) // size * size).reshape(-1, size)
    good = np.array([_finite(case, x, y, rows) for rows in index])
    bad = np.zeros(cases.count(x), bool)
    # All batches or none broken says nothing about single examples: `Loss` and `Signal` will have seen it.
    for rows in index[~good][:4] if good.any() else ():
        bad[rows] = [not _finite(case, x, y, np.full(size, i)) for i in rows]
        bad[rows[0]] |= not bad[rows].any()  # only together: the batch's first stands for it
    return bad


def _finite(case, x, y, rows):
    value, gradient = case.slope(case.moving, cases.take(x, rows), cases.take(y, rows))
    return bool(np.isfinite(value)) and all(np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(gradient))
