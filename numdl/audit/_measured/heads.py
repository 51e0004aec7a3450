"""MEASURED: the loss as a function of the outputs alone, and of the last layer's state, the network put aside.

The least loss over all outputs, over what the head can make of any state, and over one output for all examples are
found by Adam in output space from several starts. The gap between the first two is what the head costs.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np

from numdl import tracing
from numdl.audit._measured import cases, labels, programs, views, ways
from numdl.audit.evidence import Loss, empty

MOST_NUMBERS = 20_000  # of the outputs that are searched
STEPS = 300
FAR = 30.0  # outputs that a search can reach, in units of the targets' size


def measure(case):
    """(Loss, the traced network or None) of a Case."""
    x, y = _some(case)
    out = case.forward(case.moving, x, case.key)
    traced, head = split(case, x)
    if not views.floats(out):
        value = float(jnp.asarray(case.loss(out, y), jnp.float32).reshape(()))
        finite = bool(np.isfinite(value))
        return empty(Loss, kind="other", value=value, finite_value=finite, finite_gradient=True, ignores=True), traced
    told = labels.answers(case, out, y)
    found = {
        name: np.asarray(value, np.float64) for name, value in _asked(case, out, x, y, told, head is not None).items()
    }
    value = float(found["value"])
    known = {
        "kind": told.kind,
        "place": () if told.kind == "other" else (told.output, told.target, told.axis, told.columns),
        "value": value,
        "finite_value": bool(np.isfinite(value)),
        "finite_gradient": bool(found["finite_gradient"]),
        "ignores": bool(found["largest_gradient"] == 0) and not _underflows(case, out, y),
        "targets_unread": not any(case.reads),
        "has_head": head is not None,
        "gradient_rms": float(found["gradient_rms"]),
        "transmission": float(found["transmission"]) if head is not None else 1.0,
        "floor_head": float(found["floor_head"] if head is not None else found["floor"]),
    }
    known |= {name: float(found[name]) for name in _PLAIN if name in found}
    known["finite_wide"] = known["finite_value"] or _finite_wide(case, x, y)
    return empty(Loss, **known), traced


_PLAIN = (
    "border", "floor_unit", "pull", "meets", "wrong_pays", "coupling", "coupling_reshaped", "pairing", "doubled",
    "shift", "floor", "floor_shared",
)  # fmt: skip


def _underflows(case, out, y):
    """Whether the gradient by outputs of half precision is 0 for that reason alone."""
    halves = [views.half(leaf) for leaf in jax.tree.leaves(out)]
    if not any(halves):
        return False
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float32) if views.half(leaf) else leaf, out)
    return any(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(case.run(_value_slope, wide, y)))


def _value_slope(form, out, y):
    return jax.grad(lambda leaves: form.value(views.filled(leaves, out), y))(views.floats(out))


def _finite_wide(case, x, y):
    """Whether the loss is finite with everything that is handed over in single precision."""
    wide = lambda leaf: leaf.astype(np.float32) if views.half(leaf) else leaf  # noqa: E731
    moving, x, y = jax.tree.map(wide, (case.moving, x, y))
    return bool(np.isfinite(case.run(_cost, moving, x, y)))


def _cost(form, moving, x, y):
    return form.cost(moving, x, y)


def _some(case):
    """Examples whose outputs are not too many numbers."""
    x, y = case.sample
    if not case.separate:
        return x, y
    out = jax.eval_shape(case.plain, case.moving, x)
    size = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(out))
    n = cases.count(x)
    m = max(2, min(n, n * MOST_NUMBERS // max(size, 1)))
    return (x, y) if m >= n else (cases.take(x, slice(0, m)), cases.take(y, slice(0, m)))


def silent(case):
    """Share of random states of the last layer at which the loss has no gradient, or none that is finite."""
    x, y = _some(case)
    state = jax.eval_shape(functools.partial(_last_state, case.form), case.moving, x)
    random = jax.tree.map(lambda z: 2 * np.random.default_rng(8).standard_normal(z.shape, np.float32), state)
    gradient = case.run(_state_slope, random, case.moving, x, y)
    flat = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(gradient)])
    return float(np.mean((flat == 0) | ~np.isfinite(flat)))


def _last_state(form, moving, x):
    traced, parts = cut(form, moving, x)
    return form.call(moving, x) if parts is None else parts[1](moving, x, traced.constants)


def _state_slope(form, state, moving, x, y):
    traced, parts = cut(form, moving, x)
    out = lambda z: z if parts is None else parts[0](z, moving, x, traced.constants)  # noqa: E731
    return jax.grad(lambda z: form.value(out(z), y))(state)


def split(case, x):
    """(traced, (head, z)) of a Case, as `cut` has them."""
    return cut(case.form, case.moving, x)


def cut(form, moving, x):
    """(traced, (head, z)): what lies past the last layer, and its state now; None where the network ends in it."""
    try:
        traced = tracing.trace(form.plain, moving, x)
    except (ValueError, TypeError, NotImplementedError):
        return None, None
    if not traced.layers or traced.ends_in_layer:
        return traced, None
    last = max((i for i, layer in enumerate(traced.layers) if layer.kind != "attention"), default=None)
    if last is None or traced.layers[last].steps:
        return traced, None

    def head(z, moving, x, constants):
        visit = lambda layer, state, given: (state if given is None else given, None)  # noqa: E731
        given = [None] * len(traced.layers)
        given[last] = z
        return traced.run(moving, x, visit=visit, given=given, constants=constants)[0]

    def state(moving, x, constants):
        visit = lambda layer, state, given: (state, state if given is not None else None)  # noqa: E731
        given = [None] * len(traced.layers)
        given[last] = jnp.zeros(())
        return traced.run(moving, x, visit=visit, given=given, constants=constants)[1][last]

    z = jax.eval_shape(state, moving, x, traced.constants)
    known = jax.make_jaxpr(lambda x, *rest: head(rest[0], rest[1], x, rest[2]))(x, z, moving, traced.constants)
    # A layer that some output goes around is no bottleneck: what it cannot reach another way can.
    around = any(programs.read(known)[: len(jax.tree.leaves(x))])
    return traced, None if around else (head, state)


def _asked(case, out, x, y, told, has_head):
    apart = tuple(own for own, leaf in zip(case.follows or (), jax.tree.leaves(out)) if views.floats(leaf))
    return case.run(_program, case.moving, out, x, y, told=told, has_head=has_head, follows=apart)


def _program(form, moving, whole, x, y, *, told, has_head, follows):
    out, loss = views.floats(whole), lambda o, t: form.value(views.filled(o, whole), t)
    value, gradient = jax.value_and_grad(loss)(out, y)
    flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient)]).astype(jnp.float32)
    found = {"value": value, "finite_gradient": jnp.isfinite(flat).all(), "gradient_rms": _rms(flat)}
    starts = _starts(out, y)
    tried = jax.vmap(jax.grad(loss), (0, None))(starts, y)
    found["largest_gradient"] = jnp.max(
        jnp.stack([jnp.max(jnp.abs(jnp.nan_to_num(leaf, nan=1.0))) for leaf in jax.tree.leaves((tried, gradient))])
    )
    least = _least(lambda o, one: loss(_blend(o, one, follows), y), *_both(starts, form.apart), _scale(y))
    found["floor"] = jnp.nanmin(least[: len(least) // (1 + form.apart)])
    if form.apart:
        found["floor_shared"] = jnp.nanmin(least[len(least) // 2 :])
        found["doubled"] = form.value(_doubled(whole, form.follows), _twice(y)) / value
        found |= _couplings(loss, out, y, follows)
    if told.kind != "other":
        found |= ways.asked(loss, gradient, out, y, told)
        shifted = loss([o + (i == told.output) for i, o in enumerate(out)], y)
        found["shift"] = jnp.abs(shifted - value) / jnp.maximum(jnp.abs(value), 1e-12)
    return found | (_through_head(form, moving, x, y, flat) if has_head else {})


def _through_head(form, moving, x, y, flat):
    """What the head lets through of a gradient `flat` at the outputs, and the least loss that it allows."""
    traced, (head, state) = cut(form, moving, x)
    z = state(moving, x, traced.constants)
    through = lambda s: form.value(head(s, moving, x, traced.constants), y)  # noqa: E731
    passed = jax.grad(through)(z).astype(jnp.float32)
    # Parameters of the head itself move as well.
    leaves, structure = jax.tree.flatten(moving)
    reads = programs.read(jax.make_jaxpr(lambda at: head(z, at, x, traced.constants))(moving))
    behind = {i: leaf for i, (leaf, read) in enumerate(zip(leaves, reads)) if read}

    def reached(at, one):
        new = structure.unflatten([at[1].get(i, leaf) for i, leaf in enumerate(leaves)])
        return form.value(head(at[0], new, x, traced.constants), y)

    begin = _starts(z, None)
    begin = begin, {i: jnp.broadcast_to(leaf, (len(begin), *leaf.shape)) for i, leaf in behind.items()}
    least = _least(reached, *_both(begin, False), 1.0)
    return {
        "transmission": _rms(passed) * np.sqrt(z.size / flat.size) / _rms(flat),
        "floor_head": jnp.nanmin(least),
    }


def _rms(a):
    return jnp.sqrt(jnp.mean(jnp.square(a)))


def _doubled(whole, follows):
    """The outputs twice over, of those that have a row for each example."""
    leaves, structure = jax.tree.flatten(whole)
    return jax.tree.unflatten(structure, [_twice(leaf) if own else leaf for leaf, own in zip(leaves, follows)])


def _twice(tree):
    return jax.tree.map(lambda a: jnp.concatenate([a, a]), tree)


def _scale(y):
    """How far outputs may have to go: the largest finite target, 1 at least."""
    leaves = [leaf for leaf in jax.tree.leaves(y) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    known = [jnp.max(jnp.where(jnp.isfinite(leaf), jnp.abs(leaf), 0), initial=0) for leaf in leaves]
    return jnp.maximum(1.0, jnp.max(jnp.stack(known))) if known else 1.0


def _starts(tree, y):
    """[4, ...]: as it is, two random ones, one inside the unit interval."""
    draw = np.random.default_rng(3)
    scale = _scale(y) if y is not None else 1.0

    def of(leaf):
        noise = [scale * draw.standard_normal(leaf.shape, np.float32) for _ in range(2)]
        inside = draw.uniform(0.05, 0.95, leaf.shape).astype(np.float32)
        return jnp.stack([jnp.nan_to_num(leaf.astype(jnp.float32)), *noise, inside]).astype(leaf.dtype)

    return jax.tree.map(of, tree)


def _blend(out, one, follows):
    """The outputs themselves (one = 0), or their mean in the place of each (one = 1)."""
    level = lambda o: o + one.astype(o.dtype) * (o.mean(0, keepdims=True) - o)  # noqa: E731
    return [level(o) if own else o for o, own in zip(out, follows)] if follows else out


def _both(starts, separate):
    """Starts for outputs of each example's own, and the same once more for one output that all share."""
    count = jax.tree.leaves(starts)[0].shape[0]
    if not separate:
        return starts, jnp.zeros(count)
    return jax.tree.map(lambda s: jnp.concatenate([s, s]), starts), jnp.repeat(jnp.arange(2.0), count)


def _least(function, starts, ones, scale):
    """The least value that Adam with a falling rate meets from each start."""
    import optax

    adam = optax.scale_by_adam()

    def search(start, one):
        def step(carry, t):
            at, state, least = carry
            value, gradient = jax.value_and_grad(function)(at, one)
            gradient = jax.tree.map(jnp.nan_to_num, gradient)
            change, state = adam.update(gradient, state)
            rate = 0.01 * FAR * scale * (1 - t / STEPS) ** 2
            at = jax.tree.map(lambda a, c: (a - rate * c).astype(a.dtype), at, change)
            return (at, state, jnp.fmin(least, value)), None

        begin = start, adam.init(start), jnp.asarray(jnp.inf, jnp.float32)
        return jax.lax.scan(step, begin, jnp.arange(STEPS))[0][2]

    return jax.vmap(search)(starts, ones)


def _couplings(loss, out, y, follows):
    """Change of the other examples' gradients, beside its own, when one target becomes another example's."""
    m = cases.count(y)
    if m < 3:
        return {}

    def coupled(loss, out):
        gradient = jax.grad(loss)
        base = gradient(out, y)

        def change(j):
            other = jax.tree.map(lambda t: t.at[j].set(t[_unlike(t, j)]), y)
            pairs = [pair for *pair, own in zip(gradient(out, other), base, follows) if own]
            rows = [jnp.abs(a - b).astype(jnp.float32).reshape(m, -1).max(1) for a, b in pairs]
            rows = functools.reduce(jnp.maximum, rows)
            return (rows.sum() - rows[j]) / (m - 1) / jnp.maximum(rows[j], 1e-30)

        return jnp.nanmax(jax.vmap(change)(jnp.arange(min(m, 8))))

    found = {"coupling": coupled(loss, out)}
    if any(jnp.issubdtype(t.dtype, jnp.integer) or t.dtype == bool for t in jax.tree.leaves(y)):
        found["pairing"] = _pairing(loss, out, y, follows)
    outs, ys = out, jax.tree.leaves(y)
    if len(outs) == len(ys) == 1 and outs[0].shape != ys[0].shape and outs[0].size == ys[0].size:
        shaped = lambda o, t: loss([o[0].reshape(jax.tree.leaves(t)[0].shape)], t)  # noqa: E731
        with contextlib.suppress(*views.REFUSALS):  # a loss may take columns, which the targets' shape has not
            kinds = jnp.stack([jnp.stack([coupled(way, outs), _places(way, outs, y)]) for way in (loss, shaped)])
            own, reshaped = kinds[:, jnp.argmax(jnp.nan_to_num(kinds[0]))]
            found |= {"coupling": own, "coupling_reshaped": reshaped}
    return found


def _places(loss, out, y):
    """Change of the other outputs' gradients, beside the largest, when one entry of the targets becomes another one."""
    (leaf,), structure = jax.tree.flatten(y)
    flat, base = leaf.ravel(), jax.grad(loss)(out, y)[0]

    def change(i):
        far = jnp.argmax(jnp.abs(flat.astype(jnp.float32) - flat[i].astype(jnp.float32)))
        other = structure.unflatten([flat.at[i].set(flat[far]).reshape(leaf.shape)])
        moved = jnp.abs(jax.grad(loss)(out, other)[0] - base).astype(jnp.float32)
        return (moved.sum() - moved.max()) / jnp.maximum(moved.max(), 1e-30)

    return jnp.nanmax(jax.vmap(change)(np.linspace(0, flat.size - 1, 8).astype(int)))


def _pairing(loss, out, y, follows):
    """Change of the loss when labels change places, beside that when all become one: 0 for a loss that knows no pairs.

    At two states near the outputs, since outputs that are all the same hide it; a shift by one place moves every label
    that is rare, which a drawn order may leave where it is.
    """
    m = cases.count(y)
    random = np.random.default_rng(9)
    orders = random.permutation(m), np.roll(np.arange(m), 1)

    def share(out):
        at = lambda rows: jnp.abs(loss(out, cases.take(y, rows)) - loss(out, y))  # noqa: E731
        one = jnp.maximum(at(np.full(m, 0)), at(np.full(m, m // 2)))
        moved = functools.reduce(jnp.maximum, map(at, orders))
        return jnp.where(one > 1e-4 * jnp.abs(loss(out, y)), moved / one, jnp.nan)

    def stirred(leaf):
        size = jnp.sqrt(jnp.mean(jnp.square(leaf.astype(jnp.float32)))) + 0.1
        return leaf + (size * random.standard_normal(leaf.shape, np.float32)).astype(leaf.dtype)

    states = [[stirred(leaf) if own else leaf for leaf, own in zip(out, follows)] for _ in range(2)]
    return jnp.nanmax(jnp.stack([share(state) for state in states]))


def _unlike(t, j):
    """An example whose target is far from that of example j."""
    flat = t.reshape(t.shape[0], -1).astype(jnp.float32)
    return jnp.argmax(jnp.sum(jnp.abs(flat - flat[j][None]), 1))
