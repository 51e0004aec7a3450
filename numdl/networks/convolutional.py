"""Convolutional classifiers of pictures [N, height, width, channels]: convolutions with pooling, then dense layers.

    y_1 = x * W_1 + b_1,    y_{l+1} = pool(activation(y_l)) * W_{l+1} + b_{l+1}          * is a convolution, stride 1
    y_{l+1} = flat(pool(activation(y_l))) W_{l+1} + b_{l+1},    outputs likewise         behind the last convolution

A state is what comes out of a layer before activation and pooling: [N, height, width, channels], or [N, n] if dense.
Layers of one kind that keep a shape (padded, not pooled, equal channels; dense of equal widths) are one stretch, one
scan. Parameters: {"layers": ({"kernel": [layers, ...], "bias": [layers, ...]}, ...), "readout": {"kernel", "bias"}},
one entry for each stretch; kernels are HWIO.

A convolution is one matrix product, strips of a picture times a band of shifted kernels: on a CPU the gradient of jax's
own convolution is many times slower within a scan. Pooling is a mean or maximum over reshaped axes.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, ScalarLike

from numdl import checks
from numdl._compiled import compiled, jit
from numdl.networks import _affine
from numdl.networks._record import Network, probed, run_stretch, split_probes
from numdl.networks._windows import pool
from numdl.networks.initializers import Initializer
from numdl.records import record, static

__all__ = ["PADDINGS", "POOLINGS", "Stage", "convolve", "lecun1990", "lenet5", "network", "pool"]
POOLINGS = ("average", "max")
PADDINGS = ("valid", "same")


class Stage(NamedTuple):
    """A convolution and the pooling behind its activation."""

    channels: int
    window: int  # height and width of the kernel
    pool: int = 1  # height and width of the squares that are pooled, without overlap
    padding: str = "valid"  # "same": zeros around keep height and width, window odd


def network(
    *,
    stages: Sequence[Stage],
    outputs: int,
    activation: Callable[[Array], Array],
    bias_variance: ScalarLike,
    hidden: Sequence[int] = (),
    weight_variance: ScalarLike | None = None,
    initializer: Initializer | None = None,
    pooling: str = "average",
    dtype: DTypeLike | None = None,
) -> Network:
    """A convolutional classifier: `stages` of convolutions, dense layers of the widths `hidden`, an affine readout.

    Parameters
    ----------
    stages : sequence of Stage      at least one
    outputs : int                   >= 1
    activation : function           elementwise
    weight_variance : scalar        fan_in * Var of an entry, fan_in = height * width * channels of the window; Gaussian
    initializer : Initializer       any other law; exactly one of this and `weight_variance`
    bias_variance : scalar          Var(b_i), Gaussian, >= 0
    hidden : sequence of int        each >= 1; may be empty
    pooling : str                   average or max
    dtype : dtype                   of the parameters; the input's if None
    Returns
    -------
    Network                         x [N, height, width, channels] -> outputs [N, outputs]
    Raises
    ------
    ValueError, TypeError           no stage, a size below 1, an even window that is padded, a negative variance, two
                                    laws for the weights or none
    """
    settings = _Settings(
        _checked_stages(stages),
        checks.wholes("hidden", hidden, fewest=0),
        checks.whole("outputs", outputs),
        checks.accepts("activation", activation, 1, "activation(x)"),
        checks.one_of("pooling", pooling, POOLINGS),
        _affine.asked_dtype(dtype),
        _affine.law(weight_variance, initializer),
        checks.variance("bias_variance", bias_variance, shape=()),
    )
    return Network(Partial(_init, settings), Partial(_states, settings), Partial(_readout, settings))


def lenet5(*, padding: str = "same", **settings: Any) -> Network:
    """LeNet-5 for pictures [N, 28, 28, 1], or [N, 32, 32, 1] with padding="valid": 6@5x5, 16@5x5, 120, 84, 10.

    Simplified: every map of the second convolution sees all six before it (the paper's table leaves out 36 of 96
    pairs), pooling has no coefficients, the last layer is affine. That makes 61,706 parameters, not 60,000, which
    `networks.image.lenet5` has.

    Parameters
    ----------
    padding : str                   of the first convolution, same or valid
    **settings : keywords            of `network`, activation, weight_variance, bias_variance, pooling for example
    Returns
    -------
    Network                         outputs [N, 10]
    Raises
    ------
    ValueError, TypeError           another padding, what `network` refuses
    Source: LeCun, Bottou, Bengio & Haffner 1998, "Gradient-based learning applied to document recognition", fig. 2.
    """
    stages = (Stage(6, 5, 2, checks.one_of("padding", padding, PADDINGS)), Stage(16, 5, 2))
    return network(**{"stages": stages, "hidden": (120, 84), "outputs": 10} | settings)


def lecun1990(**settings: Any) -> Network:
    """The first convolutional network for digits, pictures [N, 28, 28, 1]: 4@5x5, pool, 12@5x5, pool, 10.

    Simplified: every map of the second convolution sees all four before it, and pooling has no coefficients. That makes
    3,246 parameters, not the paper's 2,578, which `networks.image.lecun_1990` has.

    Parameters
    ----------
    **settings : keywords            of `network`, activation, weight_variance, bias_variance, pooling for example
    Returns
    -------
    Network                         outputs [N, 10]
    Raises
    ------
    ValueError, TypeError           what `network` refuses
    Source: LeCun et al. 1990, "Handwritten digit recognition with a back-propagation network".
    """
    return network(**{"stages": (Stage(4, 5, 2), Stage(12, 5, 2)), "outputs": 10} | settings)


def convolve(
    y: Float[ArrayLike, "N height width channels"],
    kernel: Float[ArrayLike, "rows columns channels outputs"],
    *,
    padding: str = "valid",
) -> Float[Array, "N new_height new_width outputs"]:
    """The convolution of y [N, H, W, C] with a kernel HWIO, stride 1: one matrix product.

        z[n, i, j] = sum over a, b of y[n, i + a, j + b] @ kernel[a, b]         y with zeros around it if "same"

    Parameters
    ----------
    y : array [N, H, W, C]
    kernel : array [h, w, C, outputs]
    padding : str               valid, or same (zeros around y; h and w odd)
    Returns
    -------
    array [N, H - h + 1, W - w + 1, outputs], or [N, H, W, outputs] if "same"
    Raises
    ------
    ValueError, TypeError       not four axes, another number of channels, an unknown padding, a window
                                that does not fit into y, or an even one with zeros around
    Source: the definition (of the correlation, as all deep learning libraries have it).
    """
    y, kernel = checks.floating("y", y, ndim=4), checks.floating("kernel", kernel, ndim=4)
    checks.one_of("padding", padding, PADDINGS)
    height, width, channels, outputs = checks.shape("kernel", kernel, (None, None, y.shape[-1], None)).shape
    _check_window(y.shape[1:3], (height, width), padding)
    if padding == "same":
        y = jnp.pad(y, ((0, 0), (height // 2,) * 2, (width // 2,) * 2, (0, 0)))
    rows, columns = y.shape[1] - height + 1, y.shape[2] - width + 1
    strip = _strip(columns, width, channels)
    # What `strip` neighbouring outputs see of one row lies side by side: a slice of the row, columns and channels flat.
    flat = y.reshape(*y.shape[:2], -1)
    length = (strip + width - 1) * channels
    seen = [flat[:, :, j * channels : j * channels + length] for j in range(0, columns, strip)]
    seen = jnp.stack(seen, axis=2)
    patches = jnp.concatenate([seen[:, a : a + rows] for a in range(height)], axis=-1)
    z = patches @ _band(kernel, strip).reshape(height * length, strip * outputs)
    return z.reshape(y.shape[0], rows, columns, outputs)


def _check_window(picture, window, padding):
    if padding == "same" and not all(size % 2 for size in window):
        raise checks.BadValue(f"kernel must have an odd height and width where padding is 'same'; got {window}")
    if padding == "valid" and any(size > room for size, room in zip(window, picture, strict=True)):
        raise checks.BadValue(f"kernel must fit into the height and width {picture} of y; got {window}")


def _strip(columns, width, channels):
    """How many neighbours are computed at once: fewer and longer patches, paid for with zeros in the kernel's band."""
    most = min(width + 2, max(width, 5)) if channels < 32 else 1
    return max(n for n in range(1, most + 1) if columns % n == 0)


def _band(kernel, strip):
    """The kernel once for each output of a strip, shifted: [height, strip + width - 1, channels, strip, outputs]."""
    shifts = [jnp.pad(kernel, ((0, 0), (j, strip - 1 - j), (0, 0), (0, 0))) for j in range(strip)]
    return jnp.stack(shifts, axis=3)


@record
class _Settings:
    stages: tuple = static()
    hidden: tuple = static()
    outputs: int = static()
    activation: object = static()
    pooling: str = static()
    dtype: object = static()
    weights: Initializer
    bias_variance: float


class _Layer(NamedTuple):
    """What a map does to the state before it: pool, flatten or not, then this kernel."""

    shape: tuple  # of the kernel
    pool: int = 1
    padding: str = "valid"


def _plan(settings, picture):
    """The layers as [(how many, _Layer)], one entry for each stretch, the readout last; picture: (H, W, C)."""
    layers, sizes, channels, pool = [], picture[:2], picture[2], 1
    for stage in settings.stages:
        sizes = _pooled(sizes, pool, picture)
        layers.append(_Layer((stage.window, stage.window, channels, stage.channels), pool, stage.padding))
        sizes = _convolved(sizes, stage, picture)
        channels, pool = stage.channels, stage.pool
    features = math.prod(_pooled(sizes, pool, picture)) * channels
    for number, pair in enumerate(itertools.pairwise((features, *settings.hidden, settings.outputs))):
        layers.append(_Layer(pair, 1 if number else pool))
    return [(1, layers[0]), *_runs(layers[1:-1]), (1, layers[-1])]


def _runs(layers):
    """Equal neighbours together, if they keep the shape of the state."""
    for layer, run in itertools.groupby(layers):
        keeps = layer.shape[-2] == layer.shape[-1] and layer.pool == 1
        count = len(list(run))
        if keeps and (len(layer.shape) == 2 or layer.padding == "same"):
            yield count, layer
        else:
            yield from [(1, layer)] * count


def _pooled(sizes, pool, picture):
    if any(size % pool for size in sizes):
        raise checks.BadValue(f"pool must divide the height and width {sizes} that it meets in x {picture}; got {pool}")
    return tuple(size // pool for size in sizes)


def _convolved(sizes, stage, picture):
    if stage.padding == "same":
        return sizes
    if min(sizes) < stage.window:
        raise checks.BadValue(f"window must fit into the {sizes} that it meets in x {picture}; got {stage.window}")
    return tuple(size - stage.window + 1 for size in sizes)


def _init(settings, key, x):
    dtype = _affine.dtype_at_init(key, x, settings.dtype, ndim=4)
    return _draw(settings, key, tuple(x.shape[1:]), dtype)


@functools.partial(jit, static_argnames=("picture", "dtype"))
def _draw(settings, key, picture, dtype):
    plan = _plan(settings, picture)
    bias_key, *keys = jax.random.split(key, len(plan) + 1)
    kernels = [
        _affine.kernels(settings.weights, k, layers, layer.shape, dtype)
        for k, (layers, layer) in zip(keys, plan, strict=True)
    ]
    shapes = [(layers, layer.shape[-1]) for layers, layer in plan]
    biases = _affine.biases(bias_key, shapes, [settings.bias_variance] * len(plan), dtype)
    layers = [{"kernel": kernel, "bias": bias} for kernel, bias in zip(kernels, biases, strict=True)]
    return {"layers": tuple(layers[:-1]), "readout": {name: leaf[0] for name, leaf in layers[-1].items()}}


@compiled
def _states(settings, params, x, probes=None):
    checks.floating("x", x, ndim=4)
    plan = _plan(settings, tuple(x.shape[1:]))
    _check_params(plan, params, x)
    probes = split_probes(probes, len(plan) - 1)
    y, states = x, []
    for number, ((_, layer), weights, probe) in enumerate(zip(plan[:-1], params["layers"], probes, strict=True)):
        step = functools.partial(_step, settings if number else None, layer)
        y, outputs = run_stretch(step, y, (weights, probe))
        states.append(outputs)
    return tuple(states)


def _step(settings, layer, y, stretch):
    weights, probe = stretch
    y = probed(_mapped(layer, weights, y if settings is None else _between(settings, layer, y)), probe)
    return y, y


def _between(settings, layer, y):
    """What stands between two maps: activation, pooling, and pictures flattened before a dense layer."""
    y = settings.activation(y)
    if layer.pool > 1:
        y = _pool(y, layer.pool, settings.pooling)
    return y.reshape(y.shape[0], -1) if len(layer.shape) == 2 else y


def _pool(y, size, pooling):
    n, height, width, channels = y.shape
    squares = y.reshape(n, height // size, size, width // size, size, channels)
    return squares.mean(axis=(2, 4)) if pooling == "average" else squares.max(axis=(2, 4))


def _mapped(layer, weights, y):
    product = jnp.matmul if y.ndim == 2 else functools.partial(convolve, padding=layer.padding)
    return _affine.apply(weights, y, product=product)


@compiled
def _readout(settings, params, y):
    last = settings.stages[-1] if not settings.hidden else Stage(0, 0)
    layer = _Layer(params["readout"]["kernel"].shape, last.pool)
    return _mapped(layer, params["readout"], _between(settings, layer, y))


def _check_params(plan, params, x):
    kernels = [*(stretch["kernel"].shape[1:] for stretch in params["layers"]), params["readout"]["kernel"].shape]
    wanted = [layer.shape for _, layer in plan]
    if kernels != wanted:
        raise checks.BadValue(
            f"x must be pictures of the shape that params were made for, {kernels}; got {tuple(x.shape)}"
        )


def _checked_stages(stages):
    if not isinstance(stages, tuple | list) or not stages:
        raise checks.BadValue(f"stages must hold at least 1 Stage; got {stages!r}")
    return tuple(_checked_stage(f"stages[{i}]", stage) for i, stage in enumerate(stages))


def _checked_stage(name, stage):
    checks.instance(name, stage, Stage, hint="such as convolutional.Stage(6, 5, pool=2)")
    numbers = [checks.whole(f"{name}.{field}", getattr(stage, field)) for field in ("channels", "window", "pool")]
    checks.one_of(f"{name}.padding", stage.padding, PADDINGS)
    if stage.padding == "same" and stage.window % 2 == 0:
        raise checks.BadValue(f"{name}.window must be odd where padding is 'same'; got {stage.window}")
    return Stage(*numbers, stage.padding)
