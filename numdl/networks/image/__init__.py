"""Published networks for pictures [N, height, width, channels], each built from a table, with the published counts.

    lecun_1990()        2,578 parameters        digits 28 x 28
    lenet5()           60,000                   digits 32 x 32, or 28 x 28 with a frame of zeros
    alexnet()      60,965,224                   227 x 227, or 224 x 224 with a frame of zeros
    googlenet()     6,998,552                   224 x 224
    resnet(50)     25,557,032                   224 x 224, or any other size; also 18, 34, 101, 152

A state is what comes out of a layer before its activation, of a block or module where its branches have met; equal
blocks are one stretch. Parameters: {row: {"kernel", "bias", ...}}, those of equal blocks with an axis of depth.
Without `weight_variance` weights are drawn as the paper does. Batch normalization takes its statistics from the batch
in hand until `freeze` writes them into the parameters; they are not counted.

    >>> import jax, jax.numpy as jnp
    >>> from numdl.networks import image
    >>> x = jnp.zeros((1, 224, 224, 3))
    >>> params = jax.eval_shape(image.resnet(50).init, jax.random.key(0), x)  # nothing is computed
    >>> sum(leaf.size for leaf in jax.tree.leaves(params))
    25557032
"""

import math
from collections.abc import Sequence

from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Key, PyTree, ScalarLike

from numdl import checks
from numdl.networks import _windows
from numdl.networks._record import Network
from numdl.networks.image import _network, _tables
from numdl.networks.image._network import Law
from numdl.networks.image._parts import Convolution

__all__ = ["alexnet", "freeze", "googlenet", "lecun_1990", "lenet5", "resnet", "small_resnet"]


def _lecun(fan_in):
    return 2.4 / fan_in / math.sqrt(3.0)


def _fixed(fan_in):
    return 0.01


def _he(fan_in):
    return math.sqrt(2.0 / fan_in)


def _caffe(fan_in):
    return math.sqrt(1.0 / fan_in)


def lecun_1990(
    *, weight_variance: ScalarLike | None = None, form: str = "native", dtype: DTypeLike | None = None
) -> Network:
    """The first convolutional network for digits: 4@5x5, average, 12@5x5 by the paper's table, average, 10.

    Averages have a trainable coefficient and bias for each map; every layer but the last is followed by 1.7159
    tanh(2 y / 3). 2,578 parameters, 98,442 connections.

    Parameters
    ----------
    weight_variance : scalar    fan_in * Var of an entry, Gaussian; None: uniform in +-2.4 / fan_in, as in the paper
    form : str                  of the convolutions: native, or product for training loops on a CPU
    dtype : dtype               of the parameters; the input's if None
    Returns
    -------
    Network                     x [N, 28, 28, 1] -> outputs [N, 10]
    Raises
    ------
    ValueError, TypeError       a negative variance, an unknown form, another dtype than a floating one
    Source: LeCun et al. 1990, "Handwritten digit recognition with a back-propagation network", table 1.
    """
    options = {"weight_variance": weight_variance, "form": _form(form), "dtype": dtype}
    return _network.build(_tables.LECUN_1990, Law(_lecun, uniform=True), channels=1, **options)


def lenet5(
    *, weight_variance: ScalarLike | None = None, form: str = "native", dtype: DTypeLike | None = None
) -> Network:
    """LeNet-5 as published: the partial table of C3, trainable subsampling, distances to ten fixed codes. 60,000.

    Outputs are minus the squared distances of F6 to the codes, so that softmax cross-entropy is the paper's criterion
    (9) without its rubbish class. The codes, 7 x 12 bitmaps of the digits, are drawn after figure 3.

    Parameters
    ----------
    weight_variance : scalar    fan_in * Var of an entry, Gaussian; None: uniform in +-2.4 / fan_in, as in the paper
    form : str                  of the convolutions: native, or product for training loops on a CPU
    dtype : dtype               of the parameters; the input's if None
    Returns
    -------
    Network                     x [N, 32, 32, 1], or [N, 28, 28, 1] -> outputs [N, 10]
    Raises
    ------
    ValueError, TypeError       a negative variance, an unknown form, another dtype than a floating one
    Source: LeCun, Bottou, Bengio & Haffner 1998, "Gradient-based learning applied to document recognition", II.B.
    """
    options = {"weight_variance": weight_variance, "form": _form(form), "dtype": dtype}
    return _network.build(_tables.LENET_5, Law(_lecun, uniform=True), channels=1, **options)


def alexnet(
    *,
    outputs: int = 1000,
    key: Key[Array, ""] | None = None,
    weight_variance: ScalarLike | None = None,
    form: str = "native",
    dtype: DTypeLike | None = None,
) -> Network:
    """AlexNet in two groups of channels, with local response normalization and overlapping pools. 60,965,224.

    Parameters
    ----------
    outputs : int               classes
    key : key                   of dropout, another one for every step; None: nothing is dropped
    weight_variance : scalar    fan_in * Var of an entry, Gaussian; None: Var = 0.01**2 whatever the layer, and biases
                                of 1 in layers 2, 4, 5 and the hidden dense ones, as in the paper
    form : str                  of the convolutions: native, or product for training loops on a CPU
    dtype : dtype               of the parameters; the input's if None
    Returns
    -------
    Network                     x [N, 227, 227, 3], or [N, 224, 224, 3] -> outputs [N, outputs]
    Raises
    ------
    ValueError, TypeError       outputs < 1, a negative variance, an unknown form, not a key
    Source: Krizhevsky, Sutskever & Hinton 2012, "ImageNet classification with deep convolutional neural networks".
    """
    options = {"weight_variance": weight_variance, "form": _form(form), "dtype": dtype, "key": key}
    return _network.build(_tables.alexnet(checks.whole("outputs", outputs)), Law(_fixed), channels=3, **options)


def googlenet(
    *,
    outputs: int = 1000,
    key: Key[Array, ""] | None = None,
    weight_variance: ScalarLike | None = None,
    form: str = "native",
    dtype: DTypeLike | None = None,
) -> Network:
    """GoogLeNet as in the paper: nine modules, biases, no batch normalization, without auxiliary heads. 6,998,552.

    The variant of torchvision, with batch normalization, no biases and 3x3 in place of 5x5, has 6,624,904.

    Parameters
    ----------
    outputs : int               classes
    key : key                   of dropout, another one for every step; None: nothing is dropped
    weight_variance : scalar    fan_in * Var of an entry, Gaussian; None: uniform of variance 1 / fan_in and biases
                                of 0.2, as in the authors' model for Caffe
    form : str                  of the convolutions: native, or product for training loops on a CPU
    dtype : dtype               of the parameters; the input's if None
    Returns
    -------
    Network                     x [N, 224, 224, 3] -> outputs [N, outputs]
    Raises
    ------
    ValueError, TypeError       outputs < 1, a negative variance, an unknown form, not a key
    Source: Szegedy et al. 2014, arXiv:1409.4842, table 1.
    """
    options = {"weight_variance": weight_variance, "form": _form(form), "dtype": dtype, "key": key}
    table = _tables.googlenet(checks.whole("outputs", outputs))
    return _network.build(table, Law(_caffe, uniform=True), channels=3, **options)


def resnet(
    depth: int,
    *,
    outputs: int = 1000,
    weight_variance: ScalarLike | None = None,
    form: str = "native",
    dtype: DTypeLike | None = None,
) -> Network:
    """ResNet-18, 34, 50, 101 or 152 as in the paper: projections where a shape changes, the stride in the first map.

    Parameters
    ----------
    depth : int                 18, 34 (two convolutions a block), 50, 101 or 152 (bottlenecks)
    outputs : int               classes
    weight_variance : scalar    fan_in * Var of an entry, Gaussian; None: 2, as in the paper
    form : str                  of the convolutions: native, or product for training loops on a CPU
    dtype : dtype               of the parameters; the input's if None
    Returns
    -------
    Network                     x [N, height, width, 3] -> outputs [N, outputs]
    Raises
    ------
    ValueError, TypeError       another depth, outputs < 1, a negative variance, an unknown form
    Source: He, Zhang, Ren & Sun 2015, arXiv:1512.03385, table 1.
    """
    depth = checks.one_of("depth", depth, tuple(_tables.RESNETS))
    options = {"weight_variance": weight_variance, "form": _form(form), "dtype": dtype}
    return _network.build(_tables.resnet(depth, checks.whole("outputs", outputs)), Law(_he), channels=3, **options)


def small_resnet(
    *,
    widths: Sequence[int],
    blocks: Sequence[int],
    outputs: int,
    weight_variance: ScalarLike | None = None,
    form: str = "native",
    dtype: DTypeLike | None = None,
) -> Network:
    """A residual network for small pictures: a 3x3 stem without pooling, stages that halve the picture, the mean.

    Parameters
    ----------
    widths : sequence of int    channels of each stage; the stem has those of the first
    blocks : sequence of int    blocks of two convolutions in each stage
    outputs : int               classes
    weight_variance : scalar    fan_in * Var of an entry, Gaussian; None: 2
    form : str                  of the convolutions: native, or product for training loops on a CPU
    dtype : dtype               of the parameters; the input's if None
    Returns
    -------
    Network                     x [N, height, width, channels] -> outputs [N, outputs]
    Raises
    ------
    ValueError, TypeError       as many blocks as widths are asked for, a size below 1, a negative variance
    Source: He, Zhang, Ren & Sun 2015, arXiv:1512.03385, section 4.2, here with projections.
    """
    widths, blocks = checks.wholes("widths", widths), checks.wholes("blocks", blocks)
    if len(widths) != len(blocks):
        raise checks.BadValue(f"blocks must hold one number for each of {len(widths)} widths; got {blocks}")
    stem = ("conv1", Convolution(widths[0], 3, padding=1, normalized=True))
    table = _tables.residual_rows(
        stem, (_tables.RELU,), widths, blocks, bottleneck=False, outputs=checks.whole("outputs", outputs)
    )
    options = {"weight_variance": weight_variance, "form": _form(form), "dtype": dtype}
    return _network.build(table, Law(_he), channels=None, **options)


def freeze(network: Network, params: PyTree, x: Float[ArrayLike, "N height width channels"]) -> PyTree:
    """The parameters with the statistics of this batch written in: every example is then on its own.

    network.apply(freeze(network, params, x), x) is network.apply(params, x), up to rounding.

    Parameters
    ----------
    network : Network           made by a builder of this module; without batch normalization nothing changes
    params : pytree             of `network.init`; statistics that are in it are replaced
    x : array [N, H, W, C]      the batch
    Returns
    -------
    pytree                      params with "mean" and "variance" beside gain and bias
    Raises
    ------
    ValueError, TypeError       not a Network made here, params or x that do not fit it
    """
    return _network.freeze(network, params, x)


def _form(form):
    return checks.one_of("form", form, _windows.FORMS)
