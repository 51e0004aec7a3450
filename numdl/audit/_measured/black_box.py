"""MEASURED: the optimizer as a black box. Nothing is read from names or options: gradients go in, updates come out.

Every question is asked at the second step, because a warm-up may begin with a rate of zero. For large networks the time
course is taken on a corner of every leaf, and its size from the whole leaves.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from numdl.audit._measured import forms
from numdl.audit.evidence import Optimizer

HORIZON = 1000  # steps where no budget was given
MOST_STEPS = 4000
MOST_WORK = 2e8  # parameters x steps of a time course
CORNER = 8  # entries kept of each axis
SCALES = (1e-12, 1e-9, 1e-6, 1e-3, 1.0, 1e3, 1e6)
OWN = SCALES.index(1.0)


def measure(case, gradient):
    """The Optimizer of a Case, from the gradient of its loss at its parameters."""
    horizon = min(case.steps or HORIZON, MOST_STEPS)
    params = case.moving
    finite = lambda g, p: np.nan_to_num(np.asarray(g), nan=0.0, posinf=0.0, neginf=0.0).astype(p.dtype)  # noqa: E731
    gradient = jax.tree.map(finite, gradient, params)
    small = case.parameters * horizon > MOST_WORK
    asked = case.run(_asked, case.method, params, gradient)
    corner = functools.partial(jax.tree.map, _corner) if small else lambda tree: tree
    course = case.run(_course, case.method, corner(params), corner(gradient), horizon=horizon)
    asked, course = (jax.tree.map(lambda a: np.asarray(a, np.float64), each) for each in (asked, course))
    return _record(asked, course, horizon)


def _corner(leaf):
    return leaf[tuple(slice(0, CORNER) for _ in leaf.shape)]


def _asked(form, method, params, gradient):
    """Norms of the second update for scaled gradients, for none, after an impulse; finiteness."""
    transformation = method.own
    zero = jax.tree.map(jnp.zeros_like, gradient)
    start = transformation.init(params)

    def twice(given):
        state = start
        for t in (0, 1):
            update, state = _update(transformation, given, state, params, t)
        return update

    def second(factor):
        return twice(jax.tree.map(lambda g: (factor * g.astype(jnp.float32)).astype(g.dtype), gradient))

    def sized(factor):
        update = second(factor)
        return _norm(update), _product(update, gradient)

    norms, products = jax.lax.map(sized, jnp.asarray(SCALES, jnp.float32))
    still = twice(zero)
    own = second(jnp.asarray(1.0))
    return {
        "norms": norms,
        "products": products,
        "at_zero": _norm(still) / jnp.maximum(_norm(params), 1e-30),
        "finite": jnp.isfinite(_flat((still, own))).all(),
        "gradient": _norm(gradient),
        "params": _norm(params),
        "leaves": _norms(own),
        "leaf_sizes": _norms(params),
        "leaf_gradients": _norms(gradient),
    }


def _course(form, method, params, gradient, *, horizon):
    """Under a constant gradient: norms and the sum of updates; without any: what is left; after one: the memory."""
    transformation = method.own
    zero = jax.tree.map(jnp.zeros_like, gradient)
    begin = transformation.init(params)
    times = jnp.arange(horizon)
    total, sizes, norms = _pushed(transformation, params, gradient, begin, times)

    def idle(carry, t):
        state, at = carry
        update, state = _update(transformation, zero, state, at, t)
        return (state, jax.tree.map(lambda a, u: (a + u).astype(a.dtype), at, update)), None

    (_, left), _ = jax.lax.scan(idle, (begin, params), times)

    def after(carry, t):
        state, total = carry
        update, state = _update(transformation, jax.tree.map(lambda g: g * (t == 1), gradient), state, zero, t)
        return (state, jax.tree.map(jnp.add, total, update)), _norm(update)

    (_, impulse), answers = jax.lax.scan(after, (begin, zero), jnp.arange(min(horizon, 60)))
    return {
        "norms": norms,
        "total": _norm(total),
        "product": _product(total, gradient),
        "gradient": _norm(gradient),
        "params": _norm(params),
        "left": _norm(left),
        "impulse": _norm(impulse),
        "answer": answers[1] if answers.size > 1 else answers[0],
        "leaf_course": sizes,
        "leaf_totals": _norms(total),
        "numbers": jnp.asarray(float(sum(np.size(leaf) for leaf in jax.tree.leaves(params)))),
    }


def _pushed(transformation, params, gradient, begin, times):
    """Under a constant gradient: the sum of all updates, the largest norm of each leaf's, and every update's norm."""

    def pushed(carry, t):
        state, total, sizes = carry
        update, state = _update(transformation, gradient, state, params, t)
        total = jax.tree.map(lambda a, u: a + u.astype(a.dtype), total, update)
        own = _norms(update)
        return (state, total, jnp.maximum(sizes, own)), jnp.sqrt(jnp.sum(own**2))

    count = len(jax.tree.leaves(params))
    blank = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)
    (_, total, sizes), norms = jax.lax.scan(pushed, (begin, blank, jnp.zeros(count)), times)
    return total, sizes, norms


def _update(transformation, gradient, state, params, t):
    return forms.updated(transformation, gradient, state, params, *forms.falling(gradient, params, t))


def _flat(tree):
    return jnp.concatenate([leaf.ravel().astype(jnp.float32) for leaf in jax.tree.leaves(tree)])


def _norms(tree):
    """[P] norms of the leaves."""
    sizes = [int(np.size(leaf)) for leaf in jax.tree.leaves(tree)]
    owner = np.repeat(np.arange(len(sizes)), sizes)
    return jnp.sqrt(jax.ops.segment_sum(jnp.square(_flat(tree)), owner, len(sizes), indices_are_sorted=True))


def _norm(tree):
    return jnp.sqrt(jnp.sum(jnp.square(_flat(tree))))


def _product(a, b):
    return jnp.sum(_flat(a) * _flat(b))


def _record(asked, course, horizon):
    tiny = 1e-30
    norms = np.maximum(asked["norms"], tiny)
    degrees = np.diff(np.log10(norms)) / 3
    direction = -asked["products"][-1] / max(norms[-1] * asked["gradient"], tiny)
    steps = course["norms"]
    # A corner's updates beside those of the whole leaves: what a time course on corners has to be multiplied with.
    whole = asked["leaves"] / np.maximum(asked["leaf_sizes"], tiny)
    second = steps[1] if len(steps) > 1 else steps[0]
    size = norms[OWN] / max(second, tiny) if second > 0 else 1.0
    travelled = np.cumsum(steps)
    tenth, half = max(1, len(steps) // 10), max(1, len(steps) // 2)
    ratio = np.maximum(whole, course["leaf_course"] / np.maximum(asked["leaf_sizes"], tiny))
    total = max(travelled[-1], tiny)
    return Optimizer(
        at_zero=float(asked["at_zero"]),
        at_zero_finite=bool(asked["finite"]),
        degree_up=float(degrees[OWN]),
        degree_down=float(degrees[OWN - 1]),
        direction=float(direction),
        lost=_lost(norms, degrees, direction),
        ascent=float(-course["product"] / max(course["total"] * course["gradient"], tiny)),
        reach=float(course["total"] * size / max(asked["params"], tiny)),
        travel=float(course["total"] / np.sqrt(course["numbers"])),
        late=float((travelled[-1] - travelled[half - 1]) / total),
        early=float(travelled[tenth - 1] / total),
        first=float(steps[0] / max(steps.max(), tiny)),
        memory=float(course["impulse"] / max(course["answer"], tiny)) if course["answer"] > 0 else float("nan"),
        decayed=float(course["left"] / max(course["params"], tiny)),
        update_ratio=ratio,
        frozen=(course["leaf_totals"] == 0) & (asked["leaf_gradients"] > 0),
        horizon=horizon,
    )


def _lost(norms, degrees, direction):
    """What a clip or an epsilon leaves of the update: 1 where there is neither."""
    saturates, linear = degrees[-1] < 0.1, degrees[0] > 0.2
    if not (saturates and linear):
        return 1.0
    if direction > 0.999:  # large gradients keep their direction: a clip
        return float(min(1.0, norms[OWN] / (norms[0] / SCALES[0])))
    return float(min(1.0, norms[OWN] / norms[-1]))
