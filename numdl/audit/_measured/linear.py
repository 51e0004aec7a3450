"""MEASURED: what a network that is linear in its inputs cannot learn from these data.

The least loss of any affine map beside that of a small network with a bend, both fitted to one half of the examples and
read on the other. All layers without a nonlinearity between them are together one affine map: none of them does better.
"""

import jax
import jax.numpy as jnp
import numpy as np

from numdl.audit._measured import cases

MOST = 512  # examples
WIDTH, STEPS = 48, 800
MOST_WORK = 1e10  # multiplications, the way back included


def measure(case):
    """{"floor_affine": loss, "floor_bent": loss} of a Case; nothing where its inputs are no single table of numbers."""
    x, y = _examples(case)
    flat = x.reshape(len(x), -1) if isinstance(x, np.ndarray) and jnp.issubdtype(x.dtype, jnp.floating) else None
    if flat is None or len(flat) < 32 or not np.isfinite(flat).all():
        return {}
    deviation = flat.std(0)
    flat = np.asarray((flat - flat.mean(0)) / np.where(deviation > 0, deviation, 1), np.float32)
    like = jax.eval_shape(case.plain, case.moving, x)
    size = int(np.prod(like.shape[1:]))
    scale = max(1.0, float(np.abs(y).max())) if jnp.issubdtype(y.dtype, jnp.floating) else 1.0
    steps = int(min(STEPS, max(50, MOST_WORK / (6 * len(flat) * WIDTH * (flat.shape[1] + WIDTH + size)))))

    given = {"steps": steps, "like": (like.shape[1:], like.dtype)}
    bent = _drawn((flat.shape[1], WIDTH, WIDTH, size))
    affine = [np.zeros((flat.shape[1] + 1, size), np.float32)]
    fit = lambda network, params, rate: case.run(_fitted, params, flat, y, scale, rate, network=network, **given)  # noqa: E731
    return {"floor_affine": float(fit(_affine, affine, 0.05)), "floor_bent": float(fit(_bent, bent, 0.01))}


def _examples(case):
    train, _ = case.parts
    x, y = (case.x, case.y) if train is None else train
    if not case.apart or len(jax.tree.leaves(y)) != 1:
        return None, None
    order = np.random.default_rng(11).permutation(cases.count(y))[:MOST]
    return cases.take(x, order), jax.tree.leaves(cases.take(y, order))[0]


def _drawn(widths):
    draw = np.random.default_rng(12)
    return [np.float32(draw.standard_normal((n + 1, m)) * (2 / n) ** 0.5) for n, m in zip(widths, widths[1:])]


def _affine(params, x):
    return x @ params[-1][:-1] + params[-1][-1:]


def _bent(params, x):
    for layer in params[:-1]:
        x = jnp.tanh(_affine([layer], x))
    return _affine(params, x)


def _fitted(form, params, x, y, scale, rate, *, network, steps, like):
    """The least loss on the odd examples while the even ones are fitted by Adam."""
    import optax

    adam, (even, odd) = optax.scale_by_adam(), (np.arange(i, len(x), 2) for i in (0, 1))
    shape, dtype = like

    def loss(params, at):
        out = scale * network(params, x[at])
        return form.value(out.reshape(-1, *shape).astype(dtype), y[at])

    def step(carry, t):
        at, state, least = carry
        change, state = adam.update(jax.grad(loss)(at, even), state)
        at = jax.tree.map(lambda a, c: (a - rate * (1 - t / steps) * c).astype(a.dtype), at, change)
        return (at, state, jnp.fmin(least, loss(at, odd))), None

    params = jax.tree.map(jnp.asarray, params)
    return jax.lax.scan(step, (params, adam.init(params), jnp.asarray(jnp.inf, jnp.float32)), jnp.arange(steps))[0][2]
