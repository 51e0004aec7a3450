"""MEASURED: the network as a function of its inputs, by running it on inputs that were changed.

Structure (who depends on whom) is asked of parameters a little off the start, so that layers which begin at zero do not
hide it; size and spread are asked of the parameters themselves.
"""

import jax
import jax.numpy as jnp
import numpy as np

from numdl.audit._measured import cases, linear, programs, views
from numdl.audit.evidence import Function, empty

LINEAR = 1e-3  # bend below which a network is taken for a linear one
CONSTANT = 1e-6  # spread of outputs beside their size, below which they are one for all examples
POSITIONS = 12  # tried one by one


def measure(case):
    """The Function of a Case."""
    x = case.sample[0]
    nudged, other = case.nudged(case.moving), jax.random.fold_in(case.key, 2)
    out = case.forward(case.moving, x, case.key)
    what, near = zip(*((name, case.forward(nudged, variant, case.key)) for name, variant in _variants(case, x)))
    what, near = (*what, "rounded"), (*near, case.forward(_last_bits(nudged), x, case.key))
    other_key = case.forward(case.moving, x, other) if case.stochastic else out
    whole, several = out, len(jax.tree.leaves(out)) != 1
    if several and not case.apart:
        return empty(Function)
    out, other_key, *near = (_one(case, each) for each in (out, other_key, *near))
    if out is None:
        return empty(Function)
    near = np.stack(near)
    if not np.isfinite(near).all() or not np.isfinite(out).all():
        return empty(Function, shape=out.shape, rms=_rms(out[np.isfinite(out)]))
    known = _form(case, x) | {"shape": out.shape, "rms": _rms(out), "least": float(out.min()), "most": float(out.max())}
    known |= {"shape": ()} if several else {"at_bound": float(np.mean((out == out.min()) | (out == out.max())))}
    known |= {"spread": _spread(out), "spread_near": _spread(near[0])}
    known["noise"] = _ratio(other_key - out, np.stack([out, other_key]))
    if known["normalizes"] and known["spread_near"] < CONSTANT:
        roots = np.asarray(case.run(_roots, nudged, x), np.float64)
        known["roots_spread"] = float(np.nanmin(roots, initial=np.inf)) if roots.size else np.nan
    known |= _apart(near, what, case.separate)
    if not several and known.get("bend", 1.0) < LINEAR:
        known |= linear.measure(case)
    known |= {} if several else _rows(out) | _positions(near, what, out.shape) | _parts(near, what)
    if case.evaluate is not None:
        known["evaluate_distance"] = _evaluated(case, x, out, whole)
    return empty(Function, **known)


def _form(case, x):
    """What the program itself shows: roots, sums over one number, a batch of one that is normalised."""
    found = list(programs.equations(jax.make_jaxpr(case.plain)(case.moving, x)))
    names = {equation.primitive.name for equation in found}
    sums = [e for e in found if e.primitive.name == "reduce_sum" and e.invars[0].aval.size > 1]
    ones = [e for e in sums if e.params["axes"] and all(e.invars[0].aval.shape[a] == 1 for a in e.params["axes"])]
    known = {"normalizes": bool(names & {"rsqrt", "sqrt"}), "axis_of_one": bool(ones), "batch_of_one": False}
    if case.separate and case.examples == 1:
        whole = case.data[0] if case.data is not None else None
        other = (
            cases.take(whole, slice(1, 2)) if whole is not None and cases.count(whole) > 1 else jax.tree.map(_other, x)
        )
        x = cases.take(case.x, slice(0, 1))
        pair = jax.tree.map(lambda a, b: np.concatenate([a, b]), x, other)
        moving = case.nudged(case.moving)
        outs = (case.forward(moving, each, case.key) for each in (x, pair))
        if case.apart:
            alone, beside = (views.joined(out, case.follows)[:1] for out in outs)
            known["batch_of_one"] = _ratio(alone - beside, beside) > 1e-3
    return known


def _roots(form, moving, x):
    """Of each root of several numbers that depend on the inputs (largest - least) / largest."""
    found = programs.looked(form.call, moving, x, _root)
    return jnp.concatenate([jnp.ravel(each) for each in found]) if found else jnp.zeros(0)


def _root(equation, values, own):
    if equation.primitive.name not in ("rsqrt", "sqrt") or not own[0] or values[0].size < 2:
        return None
    most = jnp.max(values[0])
    return ((most - jnp.min(values[0])) / most).astype(jnp.float32)


def _last_bits(moving):
    """Parameters that differ by one rounding each: what a function makes of it, another order of sums may make too."""
    draw = np.random.default_rng(9)

    def turned(leaf):
        signs = draw.choice(np.asarray([-1.0, 1.0], np.float32), np.shape(leaf))
        return (leaf * (1 + float(jnp.finfo(leaf.dtype).eps) * signs)).astype(leaf.dtype)

    return jax.tree.map(turned, moving)


def _other(leaf):
    return leaf + 1 if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf


def _variants(case, x):
    """(what it is, inputs), one after the other: the memory of all would be many times that of the inputs."""
    yield "base", x
    m = cases.count(x) if case.separate else 0
    if m < 2:
        return
    for what, index in zip(("half", "front", "reversed"), (*_halves(m), np.arange(m)[::-1])):
        yield what, cases.take(x, index)
    if _as_wide(case, x):
        yield "column", jax.tree.map(lambda a: np.concatenate([a[::-1, 1:2], a[:, 1:]], 1), x)
    if all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(x)):
        rolled = cases.take(x, np.roll(np.arange(m), 1))
        yield "rolled", rolled
        yield "between", jax.tree.map(lambda a, b: ((a + b) / 2).astype(a.dtype), x, rolled)
        yield "tripled", jax.tree.map(lambda a: 3 * a, x)
    length = _length(x)
    if length:
        yield "shuffled", x[:, np.random.default_rng(0).permutation(length)]
        other = np.roll(x, 1, 0)
        for s in sorted({round(s) for s in np.linspace(0, length - 1, POSITIONS)}):
            changed = x.copy()
            changed[:, s] = other[:, s]
            yield s, changed
    yield from _in_parts(x)


def _in_parts(x):
    """(("part", share of the numbers), inputs with another example's numbers there) of POSITIONS parts that vary."""
    if not isinstance(x, np.ndarray) or x.ndim < 2 or not jnp.issubdtype(x.dtype, jnp.floating):
        return
    columns = x.reshape((*x.shape[:2], -1) if x.ndim == 3 else (len(x), 1, -1))
    count = columns.shape[-1]
    for part in np.array_split(np.arange(count), min(count, POSITIONS)):
        changed = columns.copy()
        changed[..., part] = np.roll(columns[..., part], 1, 0)
        if (changed != columns).any():
            yield ("part", len(part) / count), changed.reshape(x.shape)


def _halves(m):
    """Indices that put one example in the place of the later half, and of the first: sums over all change, too."""
    half, front = np.arange(m), np.arange(m)
    half[m // 2 :] = m // 2 if m - m // 2 > 1 else 0
    front[: m // 2] = m // 2 - 1 if m // 2 > 1 else m - 1
    return half, front


def _as_wide(case, x):
    """Whether inputs, targets and outputs have a second axis of one length, which may be that of the examples."""
    out = jax.eval_shape(case.plain, case.moving, x)
    widths = {np.shape(leaf)[1:2] for leaf in jax.tree.leaves((x, case.y, out))}
    return len(widths) == 1 and all(k > 1 for width in widths for k in width) and widths != {()}


def _length(x):
    """How many positions a sequence has; 0 for anything else."""
    if not isinstance(x, np.ndarray) or x.ndim < 2:
        return 0
    tokens = x.ndim == 2 and jnp.issubdtype(x.dtype, jnp.integer)
    return x.shape[1] if tokens or x.ndim == 3 else 0


def _rms(array):
    return float(np.sqrt(np.mean(np.square(array)))) if array.size else float("nan")


def _ratio(change, size):
    return _rms(change) / max(_rms(size), 1e-30)


def _spread(out):
    """Standard deviation over examples beside the size."""
    return _ratio(out - out.mean(0), out) if out.ndim and len(out) > 1 else float("nan")


def _rows(out):
    if out.ndim < 2 or out.shape[-1] < 2 or out.min() < -1e-6:
        return {}
    return {
        "rows_sum": float(np.abs(out.sum(-1) - 1).max()),
        "columns_sum": float(np.abs(out.sum(0) - 1).max()),
    }


def _apart(near, what, separate):
    """How examples act on each other, and how far the function is from a linear one."""
    at = dict(zip(what, near))
    base, m = near[0], len(near[0]) if near[0].ndim else 0
    if not separate or m < 2 or "half" not in at or len(at["half"]) != m:
        return {}
    size = base - base.mean(0)
    size = size if _rms(size) > CONSTANT * _rms(base) else base
    first, later = _ratio((at["half"] - base)[: m // 2], size), _ratio((at["front"] - base)[m // 2 :], size)
    known = {
        "mixing": max(first, later),
        "mixing_back": min(first, later),
        "disorder": _ratio(at["reversed"][::-1] - base, size),
        "rounding": _ratio(at["rounded"] - base, size),
    }
    if "column" in at:
        known["second_axis"] = _ratio((at["column"] - base)[:, 1:], size) < 1e-6
    if "between" in at:
        ends = base - at["rolled"]
        if _rms(ends) > 1e-5 * _rms(base):
            known["bend"] = _ratio(at["between"] - (base + at["rolled"]) / 2, ends)
            known["scaled"] = _ratio(at["tripled"] - base, size)
    return known


def _positions(near, what, shape):
    """What permuting positions and changing single ones does."""
    at, base = dict(zip(what, near)), near[0]
    tried = [s for s in what if isinstance(s, int)]
    if not tried:
        return {}
    size, least = _rms(base - base.mean(0)), 1e-7
    if size < CONSTANT * _rms(base):  # nothing but rounding
        size, least = _rms(base), 10 * CONSTANT
    change = {s: np.abs(at[s] - base).reshape(len(base), -1).max() / max(size, 1e-30) for s in tried}
    known = {"unseen": float(np.mean([c < least for c in change.values()]))}
    known["blind"] = _rms(at["shuffled"] - base) / max(size, 1e-30)
    length = max(tried) + 1
    if len(shape) >= 3 and shape[1] == length and len(tried) > 1:
        elsewhere = [np.abs(np.delete(at[s] - base, s, 1)).max() / max(size, 1e-30) < least for s in tried[:-1]]
        known["alone"] = float(np.mean(elsewhere))
        del known["blind"]
    return known


def _parts(near, what):
    """Which share of the inputs' numbers no output follows."""
    parts = [(name[1], change) for name, change in zip(what, near) if isinstance(name, tuple)]
    return {"unread": sum(share for share, change in parts if (change == near[0]).all())} if parts else {}


def _one(case, out):
    """The outputs as one array: alone as they are, several side by side; None without numbers in them."""
    leaves = jax.tree.leaves(out)
    return np.asarray(leaves[0], np.float64) if len(leaves) == 1 else views.joined(out, case.follows)


def _evaluated(case, x, out, whole):
    found = case.evaluated(case.moving, x)
    if jax.tree.structure(found) != jax.tree.structure(whole):
        return float("nan")
    found = _one(case, found)
    if found.shape != out.shape:
        return float("nan")
    return _ratio(found - out, out - out.mean(0)) if np.isfinite(found).all() else float("inf")
