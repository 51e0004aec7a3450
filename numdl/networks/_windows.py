"""Windows that slide over pictures [N, height, width, channels]: convolution with strides and groups, pooling.

The convolution comes in two forms of equal value. "native" is XLA's own, the fastest outside of loops and on GPUs.
"product" lays what each window sees side by side and multiplies once: on a CPU the gradient of XLA's own is ten times
slower and more within a `scan`, and a training loop is one. It keeps window-many copies of its input for the gradient.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float

from numdl import checks

FORMS = ("native", "product")
KINDS = ("average", "max", "sum")


def pool(
    y: Float[ArrayLike, "N height width channels"], *, window: int, stride: int | None = None, kind: str = "max"
) -> Float[Array, "N new_height new_width channels"]:
    """The maximum, mean or sum over windows of a picture, channel by channel; what does not fill a window is left out.

        z[n, i, j, c] = max over a, b of y[n, i * stride + a, j * stride + b, c],   0 <= a, b < window

    Parameters
    ----------
    y : array [N, H, W, C]
    window : int                height and width of a window, at most those of y
    stride : int                from window to window; None: `window`, no overlap
    kind : str                  average, max or sum
    Returns
    -------
    array [N, (H - window) // stride + 1, (W - window) // stride + 1, C]
    Raises
    ------
    ValueError, TypeError       not four axes, an unknown kind, a size below 1, a window that does not fit into y
    Source: the definition.
    """
    y, kind = checks.floating("y", y, ndim=4), checks.one_of("kind", kind, KINDS)
    window = checks.whole("window", window, most=min(y.shape[1:3]))
    stride = window if stride is None else checks.whole("stride", stride)
    return pooled(y, window, stride, (0, 0), kind)


def pooled(y, window, stride, padding, kind):
    """`pool` for builders: checked arguments, (before, after) rows and columns of padding that a maximum ignores."""
    sizes, steps, around = (1, window, window, 1), (1, stride, stride, 1), ((0, 0), padding, padding, (0, 0))
    if kind == "max":
        return lax.reduce_window(y, -jnp.inf, lax.max, sizes, steps, around)
    total = lax.reduce_window(y, 0.0, lax.add, sizes, steps, around)
    return total / window**2 if kind == "average" else total


def convolved(y, kernel, *, stride=1, padding=0, groups=1, form="native"):
    """y [N, H, W, C] convolved with a kernel [h, w, C / groups, outputs], `padding` zeros on every side of y.

    groups : int                channels and outputs in as many parts, each seeing its own
    """
    dtype = jnp.promote_types(y.dtype, kernel.dtype)  # lax convolves one dtype only
    y, kernel = y.astype(dtype), kernel.astype(dtype)
    if form == "native":
        around, numbers = ((padding, padding),) * 2, ("NHWC", "HWIO", "NHWC")
        return lax.conv_general_dilated(
            y, kernel, (stride, stride), around, dimension_numbers=numbers, feature_group_count=groups
        )
    y = jnp.pad(y, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    seen = zip(jnp.split(y, groups, axis=-1), jnp.split(kernel, groups, axis=-1), strict=True)
    parts = [
        _patches(part, kernel.shape[:2], stride) @ weights.reshape(-1, weights.shape[-1]) for part, weights in seen
    ]
    return jnp.concatenate(parts, axis=-1) if groups > 1 else parts[0]


def _patches(y, window, stride):
    """What each window sees, side by side in the last axis: [N, rows, columns, height * width * channels]."""
    (height, width), (rows, columns) = window, y.shape[1:3]
    ends = rows - height + 1, columns - width + 1
    parts = [y[:, a : a + ends[0] : stride, b : b + ends[1] : stride] for a in range(height) for b in range(width)]
    return jnp.concatenate(parts, axis=-1)


def response_normalized(y, *, reach, offset, scale, power):
    """Local response normalization: y / (offset + scale * sum of y**2 over `reach` neighbouring channels)**power."""
    around = ((0, 0),) * (y.ndim - 1) + ((reach // 2, (reach - 1) // 2),)
    window = (1,) * (y.ndim - 1) + (reach,)
    total = lax.reduce_window(y**2, 0.0, lax.add, window, (1,) * y.ndim, around)
    return y / (offset + scale * total) ** power
