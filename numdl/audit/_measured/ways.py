"""MEASURED: which way a loss pulls outputs: to their labels, away from them, or to what the labels stand for.

Asked of made-up outputs alone: a distance or an energy falls where the label is near, and that is no wrong sign.
"""

import jax
import jax.numpy as jnp

from numdl.audit._measured import labels

EVEN = 0.5  # of slopes on two sides: one is at most three times the other
NEAR = 0.1  # of the values' deviation: where the loss is asked on both sides of one
FAR_APART = 20.0  # outputs of an answer without doubt


def asked(loss, gradient, out, y, told):
    """{field of Loss: value}: pull, wrong_pays; of values meets, of two labels border and floor_unit too."""
    found = {
        "pull": _pull(*map(told.outputs, (gradient, out)), told.targets(y), told.kind),
        "wrong_pays": _wrong_pays(loss, out, y, told),
    }
    if told.kind == "values":
        return found | {"meets": _meets(loss, out, y, told)}
    if told.kind != "binary":
        return found
    return found | {"border": _border(loss, out, y, told.target), "floor_unit": _floor_unit(loss, out, y, told)}


def _meets(loss, out, y, told):
    """Share of the values asked for on whose two sides, a tenth of their deviation away, the slopes are opposite.

    A quantile pulls harder from one side than from the other: its outputs lie beside their targets.
    """
    t = jnp.nan_to_num(told.targets(y).astype(jnp.float32)).reshape(out[told.output].shape)
    slope = jax.grad(lambda o: loss(_put(out, told, o), y))
    below, above = (slope(t + way * NEAR * t.std()) for way in (-1, 1))
    asked = (below != 0) | (above != 0)
    opposite = jnp.abs(below + above) <= EVEN * jnp.abs(below - above)
    return jnp.sum(asked & opposite) / jnp.maximum(jnp.sum(asked), 1)


def _border(loss, out, y, target):
    """The output above which the larger label costs less: where one constant costs the same for both labels."""
    leaves, structure = jax.tree.flatten(y)
    wide = leaves[target].astype(jnp.float32)
    low, high = jnp.min(wide), jnp.max(wide)
    # A grid that has 0, the border of logits, and the middle of the labels, that of probabilities and squares.
    at = jnp.linspace(-8.0, 8.0, 257) * (high - low) + (low + high) / 2

    def gap(c):
        constant = [jnp.full_like(leaf, c) for leaf in out]
        alike = lambda value: [jnp.full_like(t, value) if i == target else t for i, t in enumerate(leaves)]  # noqa: E731
        return loss(constant, structure.unflatten(alike(low))) - loss(constant, structure.unflatten(alike(high)))

    gaps = jax.vmap(gap)(at)
    known = jnp.isfinite(gaps[:-1]) & jnp.isfinite(gaps[1:])
    crossed = known & (jnp.sign(gaps[:-1]) != jnp.sign(gaps[1:])) & (gaps[:-1] != 0)
    i = jnp.argmax(crossed)
    root = at[i] - gaps[i] * (at[i + 1] - at[i]) / (gaps[i + 1] - gaps[i])
    return jnp.where(jnp.sum(crossed) == 1, root, jnp.nan)


def _floor_unit(loss, out, y, told):
    """The least loss at outputs far to either side if the two labels were 0 and 1."""
    leaves, structure = jax.tree.flatten(y)
    t = leaves[told.target]
    leaves[told.target] = (t == jnp.max(t)).astype(t.dtype)
    far = FAR_APART * jnp.where(t == jnp.max(t), 1.0, -1.0).reshape(out[told.output].shape)
    return jnp.minimum(*(loss(_put(out, told, one), structure.unflatten(leaves)) for one in (far, -far)))


def _put(out, told, one):
    """The outputs with `one` in the place of those that are told of."""
    return [one.astype(o.dtype) if i == told.output else o for i, o in enumerate(out)]


def _pull(gradient, out, y, kind):
    """Cosine of -gradient with the way from the outputs to the label, over all that the loss asks for."""
    g = gradient.astype(jnp.float32)
    asked = jnp.any(g != 0, -1, keepdims=True) if kind in labels.NAMED else g != 0
    if kind in labels.NAMED:
        named = y if kind == "one-hot" else jax.nn.one_hot(y, out.shape[-1])
        g = g - g.mean(-1, keepdims=True)
        way = named.astype(jnp.float32) - 1 / out.shape[-1]
    else:
        t = y.reshape(out.shape).astype(jnp.float32)
        way = t - out if kind == "values" else t - t.mean()
        g = g if kind == "values" else g - g.mean()
    way = jnp.where(asked, way, 0)  # a gap that the loss leaves out may be not-a-number
    return -jnp.sum(g * way) / jnp.maximum(jnp.sqrt(jnp.sum(g**2) * jnp.sum(way**2)), 1e-30)


def _wrong_pays(loss, out, y, told):
    """Share of what the way away from the labels earns that a wrong answer earns, too: 1 or more for a wrong sign.

    A distance falls on that way as well, but not for the nearness of a wrong class. Of values both sides of the
    target must cost less than the target, of two labels the mean of both answers less than the middle.
    """
    t = told.targets(y)
    if told.kind in labels.NAMED:
        return _wrong_class_pays(loss, out, y, told, t.argmax(-1) if told.kind == "one-hot" else t)
    t = jnp.nan_to_num(t.astype(jnp.float32)).reshape(out[told.output].shape)
    if told.kind == "values":
        at, step = t, t.std()
    else:
        high, low = t.max(), t.min()
        at, step = 0 * t + (high + low) / 2, 0.45 * (high - low) * jnp.where(t == high, 1.0, -1.0)
    here, one, other = (loss(_put(out, told, at + way * step), y) for way in (0, 1, -1))
    least = here - 1e-3 * jnp.abs(here)
    paid = (one < least) & (other < least) if told.kind == "values" else (one + other) / 2 < least
    return paid.astype(jnp.float32)


def _wrong_class_pays(loss, out, y, told, t):
    if told.columns < 3:  # one up is the other down: either reading is right
        return jnp.asarray(0.0)
    row = lambda shift: jax.nn.one_hot((t + shift) % told.columns, told.columns)  # noqa: E731
    rows = (0 * row(0), FAR_APART * row(1), -FAR_APART * row(0))
    even, wrong, away = (loss(_put(out, told, jnp.moveaxis(each, -1, told.axis)), y) for each in rows)
    return jnp.where(even > away, (even - wrong) / (even - away), 0.0)
