"""MEASURED and forecast by the tangent kernel K = J J', without ever forming it.

    alignment   z of |J' r|^2 = r' K r against the same with targets permuted, r the residual of a constant answer
    forecast    training of f(theta) + J (theta' - theta) by the user's own optimizer: function-space dynamics,
                exact for any method, clip and schedule, since the linearised network is trained step by step

Source: Jacot et al. 2018, arXiv:1806.07572; Lee et al. 2019, arXiv:1902.06720, for linearised training.
"""

import jax
import jax.numpy as jnp
import numpy as np

from numdl.audit._measured import cases, forms, views
from numdl.audit.evidence import Kernel, empty

MOST = 96  # examples
PERMUTATIONS = 60
MOST_STEPS = 1000
MOST_WORK = 2e10  # of forward passes, in multiplications
KEPT = 100


def measure(case):
    """The Kernel of a Case."""
    if not case.apart or not views.floats(jax.eval_shape(case.plain, case.moving, case.x)):
        return empty(Kernel)
    x, y = case.sample
    m = min(cases.count(x), MOST)
    while m > 16 and PERMUTATIONS * m * case.work > MOST_WORK:
        m //= 2
    some = cases.take((x, y), slice(0, m))
    steps = int(min(case.steps or 200, MOST_STEPS, max(20, MOST_WORK / (m * case.work) / 3)))
    given = {"steps": steps, "only_backward": case.only_backward, "forward": _has_forward(case, some[0])}
    squares, rows, losses, start = case.run(_program, case.method, case.moving, some, **given)
    squares, losses = np.asarray(squares, np.float64), np.asarray(losses, np.float64)
    kept = np.unique(np.geomspace(1, steps, KEPT).astype(int)) - 1 if losses.size else np.zeros(0, int)
    return Kernel(
        examples=m,
        alignment=_score(squares),
        alignment_raw=_raw(some[0], np.asarray(rows, np.float64)),
        forecast=losses[kept],
        forecast_steps=(kept + 1).astype(np.float64),
        start=float(start),
        linear=bool(losses.size) and steps >= (case.steps or 0),
    )


def _has_forward(case, x):
    """Whether J v can be had: a rule for the way back alone may hold what has no derivative, a loop to a tolerance."""
    if not case.only_backward:
        return True

    def pushed(moving):
        return _linear(True, lambda p: views.floats(case.plain(p, x)), moving)[1](moving)

    try:
        jax.eval_shape(pushed, case.moving)
    except views.NO_DERIVATIVE:
        return False
    return True


def _program(form, method, moving, some, *, steps, only_backward, forward):
    x, y = some
    now = form.call(moving, x)
    loss = lambda o: form.value(views.filled(o, now), y)  # noqa: E731
    out, push, pullback = _linear(only_backward, lambda p: views.floats(form.call(p, x)), moving)
    follows = [own for own, leaf in zip(form.follows, jax.tree.leaves(now)) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    residual = _residual(loss, out, follows)
    m = cases.count(x)
    orders = jnp.asarray([np.arange(m), *(np.random.default_rng(i).permutation(m) for i in range(PERMUTATIONS))])

    def square(order):
        moved = [(r[order] if own else r).astype(o.dtype) for r, o, own in zip(residual, out, follows)]
        return _square(pullback(moved))

    start = loss(out)
    losses = _linearised(method.own, steps, moving, out, push, pullback, loss) if forward else jnp.zeros(0)
    flat = jnp.concatenate([leaf.reshape(m, -1) for leaf, own in zip(residual, follows) if own], 1)
    return jax.lax.map(square, orders), flat, losses, start


def _linear(only_backward, function, moving):
    """(outputs, J as a function, J' as a function) at these parameters."""
    if not only_backward:
        out, push = jax.linearize(function, moving)
        back = jax.linear_transpose(push, moving)
        return out, push, lambda u: back(u)[0]
    # Rules for the way back alone: J v is the derivative of u -> J' u, which is linear, taken backwards once more.
    out, back = jax.vjp(function, moving)
    again = lambda v: jax.vjp(lambda u: back(u)[0], jax.tree.map(jnp.zeros_like, out))[1](v)[0]  # noqa: E731
    return out, again, lambda u: back(u)[0]


def _residual(loss, out, follows):
    """-dL/do where all outputs are their mean, its mean taken out: what the labels ask beyond a constant."""
    level = lambda o, own: jnp.broadcast_to(o.mean(0, keepdims=True), o.shape) if own else o  # noqa: E731
    gradient = jax.grad(loss)([level(o, own) for o, own in zip(out, follows)])
    beyond = lambda g, own: -(g - g.mean(0, keepdims=True)) if own else jnp.zeros_like(g)  # noqa: E731
    return [beyond(g, own).astype(jnp.float32) for g, own in zip(gradient, follows)]


def _square(tree):
    return sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree))


def _linearised(method, steps, moving, out, push, pull, loss):
    """Losses [steps] of the linearised network under the user's optimizer, whole batch."""

    def step(carry, _):
        away, state = carry
        linear = lambda away: jax.tree.map(lambda o, d: o + d.astype(o.dtype), out, push(away))  # noqa: E731
        value, gradient = jax.value_and_grad(loss)(linear(away))
        here = jax.tree.map(jnp.add, moving, away)
        cost = lambda there: loss(linear(jax.tree.map(jnp.subtract, there, moving)))  # noqa: E731
        update, state = forms.updated(method, pull(gradient), state, here, value, cost)
        return (jax.tree.map(lambda a, u: (a + u).astype(a.dtype), away, update), state), value

    zero = jax.tree.map(jnp.zeros_like, moving)
    return jax.lax.scan(step, (zero, method.init(moving)), None, length=steps)[1]


def _score(squares):
    """Standard score of the first against the rest."""
    others = squares[1:]
    return (
        float((squares[0] - others.mean()) / max(others.std(), 1e-30)) if np.isfinite(squares).all() else float("nan")
    )


def _raw(x, rows):
    """The same statistic with a kernel of the inputs alone: Gaussian at the median distance; agreement for tokens."""
    leaf = np.asarray(jax.tree.leaves(x)[0])
    if not np.isfinite(rows).all() or len(leaf) < 8:
        return float("nan")
    if np.issubdtype(leaf.dtype, np.integer):
        flat = leaf.reshape(len(leaf), -1)
        kernel = (flat[:, None] == flat[None]).mean(-1)
    else:
        flat = leaf.reshape(len(leaf), -1).astype(np.float64)
        deviation = flat.std(0)
        flat = (flat - flat.mean(0)) / np.where(deviation > 0, deviation, 1.0)
        lengths = np.sum(flat**2, 1)
        squares = np.maximum(lengths[:, None] + lengths - 2 * flat @ flat.T, 0.0)
        apart = squares[squares > 1e-9 * max(lengths.max(), 1e-30)]
        kernel = np.exp(-squares / np.median(apart)) if apart.size else np.ones_like(squares)
    orders = [np.arange(len(rows)), *(np.random.default_rng(i).permutation(len(rows)) for i in range(PERMUTATIONS))]
    return _score(np.array([np.sum(rows[o] * (kernel @ rows[o])) for o in orders]))
