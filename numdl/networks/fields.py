"""The right-hand sides of residual layers, y' = F(y; theta), dense or convolutional: what one step of a solver sees.

    one_layer        f(y K + b)
    two_layer        f(y K + b) M
    symmetric       -f(y K + b) K^T                  parabolic: where f' >= 0 its Jacobian has no positive eigenvalue
    antisymmetric    f(y (A - A^T - damping I) + b)

With a normalization, f(norm(y K + b)) stands for f(y K + b) in the first two; with a gate, a trained number stands
before F.

Kernels are matrices (n, m), y [N, n]; or windows HWIO of odd height and width, y [N, height, width, n], and then y K is
the convolution with zero padding and y K^T its exact transpose. Pairs of fields, for states (q, p):

    hamiltonian, one_layer    q' = f(p K + b),            p' = -f(q K^T + b)
    hamiltonian, symmetric    q' = f(p K_1 + b_1) K_1^T,  p' = -f(q K_2 + b_2) K_2^T
    coupling                  q' = F_1(p),                p' = F_2(q)           any of the first three

Sources: He et al. 2016, arXiv:1512.03385 (two_layer); Haber & Ruthotto 2017, arXiv:1705.03341 (one_layer,
antisymmetric, Hamiltonian); Ruthotto & Haber 2018, arXiv:1804.04272 (symmetric); Chang et al. 2018, arXiv:1709.03698;
De & Smith 2020, arXiv:2002.10444 (the gate).
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree

from numdl.networks import _batch_statistics
from numdl.typing import Field

BLOCKS = ("one_layer", "two_layer", "symmetric", "antisymmetric")
NORMS = ("none", "batch")
EPS = 1e-5  # of the batch normalization
WEIGHTS, SECOND, BIAS = "weights", "second_weights", "bias"  # who draws a leaf
ZEROS, ONES = "zeros", "ones"  # nobody does


@functools.lru_cache(maxsize=256)
def single(block: str, activation: Callable[[Array], Array], *, norm: str = "none", gated: bool = False) -> Field:
    """The field (t, y, theta) -> y' of this block; one function object for each combination.

    Parameters
    ----------
    block : str                 of `BLOCKS`
    activation : function       elementwise, hashable
    norm : str                  none, or batch: before the activation, over all axes but the last
    gated : bool                theta["gate"], a scalar, times all of it
    Returns
    -------
    function                    (t, y [N, ..., n], theta) -> array like y; theta as `layout` says, and for the
                                antisymmetric block with a scalar "damping"
    """
    value = _FIELDS[block]

    def field(t, y, theta):
        active = activation if norm == "none" else functools.partial(_normalized, activation, theta)
        change = value(active, theta, y)
        return theta["gate"].astype(change.dtype) * change if gated else change

    return field


@functools.lru_cache(maxsize=256)
def hamiltonian(block: str, activation: Callable[[Array], Array]) -> tuple[Field, Field]:
    """The two fields of a Hamiltonian network, theta -> q' and p'.

    Parameters
    ----------
    block : str                 one_layer or symmetric
    activation : function       elementwise, hashable
    Returns
    -------
    (function, function)        (t, p, theta) -> q' and (t, q, theta) -> p'; symmetric takes {"first", "second"}
    """
    if block == "one_layer":
        return (
            lambda t, p, theta: _one_layer(activation, theta, p),
            lambda t, q, theta: -activation(_add(apply(transpose(theta["kernel"]), q), theta["bias"])),
        )
    return (
        lambda t, p, theta: -_symmetric(activation, theta["first"], p),
        lambda t, q, theta: _symmetric(activation, theta["second"], q),
    )


@functools.lru_cache(maxsize=256)
def coupling(block: str, activation: Callable[[Array], Array]) -> tuple[Field, Field]:
    """The two fields of an additive coupling, each with parameters of its own.

    Parameters
    ----------
    block : str                 one_layer, two_layer or symmetric
    activation : function       elementwise, hashable
    Returns
    -------
    (function, function)        (t, p, theta) -> q' and (t, q, theta) -> p'; theta is {"first", "second"}
    """
    value = functools.partial(_FIELDS[block], activation)
    return (
        lambda t, p, theta: value(theta["first"], p),
        lambda t, q, theta: value(theta["second"], q),
    )


def layout(
    block: str,
    width: int,
    hidden: int | None,
    window: tuple[int, ...],
    *,
    norm: str = "none",
    gated: bool = False,
) -> dict[str, tuple]:
    """What theta holds for one layer.

    Parameters
    ----------
    block : str                 of `BLOCKS`
    width : int                 n
    hidden : int                inside a two_layer or symmetric block; n if None
    window : tuple              () dense, (height, width) convolutional
    norm, gated : str, bool     as for `single`
    Returns
    -------
    dict                        {name: (shape, who draws it)}
    """
    hidden = width if hidden is None else hidden
    leaves = {"kernel": ((*window, width, hidden), WEIGHTS), "bias": ((hidden,), BIAS)}
    if block == "two_layer":
        leaves["second"] = ((*window, hidden, width), SECOND)
    if norm != "none":
        leaves |= {"gain": ((hidden,), ONES), "shift": ((hidden,), ZEROS)}
    return leaves | ({"gate": ((), ZEROS)} if gated else {})


def inner(theta: PyTree, y: Float[ArrayLike, "... n"]) -> Float[Array, "... m"]:
    """y K + b: what a one_layer or two_layer block normalizes, or puts into its activation.

    Parameters
    ----------
    theta : dict                of one layer, as `layout` says
    y : array [..., n]
    Returns
    -------
    array [..., m]
    """
    return _add(apply(theta["kernel"], y), theta["bias"])


def apply(kernel: Float[ArrayLike, "..."], y: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    """y K: a product over the last axis, or the convolution with a window HWIO and zero padding.

    Parameters
    ----------
    kernel : array [n, m] or [height, width, n, m]
    y : array [N, n] or [N, H, W, n]
    Returns
    -------
    array [N, m] or [N, H, W, m]
    """
    return y @ kernel if kernel.ndim == 2 else convolve(y, kernel)


def transpose(kernel: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    """K^T, so that <apply(K, y), z> = <y, apply(K^T, z)>; for a window the axes are flipped and channels exchanged.

    Parameters
    ----------
    kernel : array [n, m] or [height, width, n, m]    the window of odd size
    Returns
    -------
    array [m, n] or [height, width, m, n]
    """
    return kernel.T if kernel.ndim == 2 else jnp.swapaxes(kernel[::-1, ::-1], 2, 3)


def convolve(y: Float[ArrayLike, "N H W n"], kernel: Float[ArrayLike, "height width n m"]) -> Float[Array, "N H W m"]:
    """The convolution of y [N, H, W, C] with a window HWIO of odd size, stride 1, zero padding: one matrix product.

        z[n, i, j] = sum over a, b of y[n, i + a - height // 2, j + b - width // 2] @ kernel[a, b]

    On a CPU the gradient of jax's own convolution is 5 to 15 times slower within a scan.

    Parameters
    ----------
    y : array [N, H, W, n]
    kernel : array [height, width, n, m]    height and width odd
    Returns
    -------
    array [N, H, W, m]
    Source: the definition (of the correlation, as all deep learning libraries have it).
    """
    height, width, _, outputs = kernel.shape
    rows, columns = y.shape[1:3]
    padded = jnp.pad(y, ((0, 0), (height // 2,) * 2, (width // 2,) * 2, (0, 0)))
    shifted = [padded[:, a : a + rows, b : b + columns] for a in range(height) for b in range(width)]
    return jnp.concatenate(shifted, axis=-1) @ kernel.reshape(-1, outputs)


def _add(y, bias):
    return y + jnp.broadcast_to(bias, y.shape)


def _normalized(activation, theta, u):
    """activation(batch norm of u), with the statistics in theta if there are any."""
    axes = tuple(range(u.ndim - 1))
    if "mean" in theta:
        known = _batch_statistics.Statistics(theta["mean"], theta["variance"])
    else:
        known = _batch_statistics.statistics(u, axis=axes)
    return activation(_batch_statistics.normalize(u, known, theta["gain"], theta["shift"], axis=axes, eps=EPS))


def _one_layer(activation, theta, y):
    return activation(inner(theta, y))


def _two_layer(activation, theta, y):
    return apply(theta["second"], _one_layer(activation, theta, y))


def _symmetric(activation, theta, y):
    return -apply(transpose(theta["kernel"]), _one_layer(activation, theta, y))


def _antisymmetric(activation, theta, y):
    kernel = theta["kernel"] - transpose(theta["kernel"])
    damping = theta["damping"].astype(y.dtype) * y
    return activation(_add(apply(kernel, y) - damping, theta["bias"]))


_FIELDS = {
    "one_layer": _one_layer,
    "two_layer": _two_layer,
    "symmetric": _symmetric,
    "antisymmetric": _antisymmetric,
}
