"""What does a convolution cost and do as a matrix?

Lecture: Ruthotto & Haber, Numerical Methods for Deep Learning, deck 5 (convolutional networks); convolution and pooling
by hand, edges of a photograph

Question
--------
A convolution is a linear map, so it is a matrix: sparse, the same few numbers along its diagonals. How much cheaper is
it than the matrix written out? What are its singular values, by which it can stretch a signal and its gradient? Does
the border of the picture matter for them?

Prediction
----------
The worked example of the lecture. An edge kernel (-1, 1) on 320 x 280 pixels gives 319 x 280, with 4 operations for
each (3 where the addition to nothing is not counted) instead of 2 * 320 * 280 (Goodfellow, Bengio & Courville 2016,
section 9.2: 319 * 280 * 3, and over sixteen billion). On a torus the Fourier transform makes the matrix block diagonal:
its singular values are those of the small matrices sum over a of K_a exp(-2 pi i a k / n), one for each frequency k
(Sedghi, Gupta & Long 2018, arXiv:1805.10408). With zeros around, the matrix is a part of the one of any larger torus,
so its norm is at most the maximum M of this symbol over all frequencies, which it approaches as 1 / n^2: a wave that
fits into n pixels with zeros at both ends misses the best one by what the symbol is curved. For the Laplacian
eigenvalues are known: -4 (sin^2(pi j / (2 n + 2)) + sin^2(pi k / (2 n + 2))).

Measurement
-----------
`convolutional.convolve` and `pool`; the matrix by differentiation; singular values by a dense decomposition and by
Fourier transforms of the kernels; operations by `layers.summary`, which allocates nothing. Random kernels 3 x 3, three
channels to four on the torus, one to one for the border.

Verdict
-------
Matrices of up to 576 x 576, 20 kernels; two CPU cores, both used by others, 28 s of processor time. All claims hold:
360 singular values on the torus agree to 7e-15 of the largest, the Laplacian's to 5e-15; the order is 1.987, standard
error 0.005; the largest norm with zeros around is 0.996 of the maximum. The edge kernel takes 357,280 operations, its
matrix 1.6e10. A first run with another seed went up to n = 32 and had the order 1.992; the sizes were cut to save time,
no limit was changed.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from experiments.claiming import near, one_number
from experiments.drawing import dress
from numdl import data, plotting
from numdl.analysis import layers
from numdl.networks import convolutional
from numdl.records import record

BOOK = "Goodfellow, Bengio & Courville 2016, section 9.2"
PRODUCTS = f"two products and additions a pixel; {BOOK}, has 3 in all: 267,960"
SEDGHI = "Sedghi, Gupta & Long 2018, arXiv:1805.10408"
PICTURE = np.array([[3, 3, 2, 1, 0], [0, 0, 1, 3, 1], [3, 1, 2, 2, 3], [2, 0, 0, 2, 2], [2, 0, 0, 0, 1]], float)
KERNEL = np.array([[0, 1, 2], [2, 2, 0], [0, 1, 2]], float)
CONVOLVED = np.array([[12, 12, 17], [10, 17, 19], [9, 6, 14]], float)
FOUR = np.array([[1, 3, 5, 3], [4, 2, 3, 1], [3, 1, 1, 3], [0, 1, 0, 4]], float)
POOLED = np.array([[4, 5], [3, 4]], float)
EDGE = np.array([[-1, 1]], float)
LAPLACIAN = np.array([[0, 1, 0], [1, -4, 1], [0, 1, 0]], float)


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the experiment."""

    torus: tuple[int, int] = (12, 10)
    sizes: tuple[int, ...] = (6, 8, 12, 16, 24)  # n of pictures n x n with zeros around
    kernels: int = 20
    seed: int = 3

    @classmethod
    def tiny(cls):
        """For the tests: seconds."""
        return cls(torus=(6, 5), sizes=(6, 10, 16), kernels=12)


@record
class Result:
    """Pictures, matrices and their singular values."""

    example: np.ndarray  # [3, 3]: the lecture's convolution
    pooled: np.ndarray  # [2, 2]: and its pooling
    photograph: np.ndarray  # [280, 320]
    edges: np.ndarray  # [280, 319]
    curved: np.ndarray  # [278, 318]: the Laplacian
    costs: np.ndarray  # [2]: operations of the edge kernel, of the matrix written out
    matrix: np.ndarray  # [16, 16]: of the Laplacian on 4 x 4
    dense: np.ndarray  # [values]: singular values on the torus, by decomposition of the matrix
    fourier: np.ndarray  # [values]: and by Fourier transforms
    laplacian: np.ndarray  # [2, n * n]: eigenvalues with zeros around, measured and exact
    norms: np.ndarray  # [kernels, sizes]: largest singular value with zeros around
    most: np.ndarray  # [kernels]: maximum of the symbol


def run(config):
    """All of it; matrices of at most 576 x 576."""
    kernels = np.asarray(jax.random.normal(jax.random.key(config.seed), (config.kernels, 3, 3)), float)
    wide = np.asarray(jax.random.normal(jax.random.key(config.seed + 1), (3, 3, 3, 4)), float)
    photograph = data.photographs().images[0].mean(axis=-1)[60:340, 160:480]
    size = config.sizes[0]
    bordered = lambda kernel, n: matrix(one_channel(kernel), (n, n), padding="same")  # noqa: E731
    return Result(
        example=convolved(PICTURE, KERNEL),
        pooled=np.asarray(convolutional.pool(FOUR[None, :, :, None], window=2))[0, :, :, 0],
        photograph=photograph,
        edges=convolved(photograph, EDGE),
        curved=convolved(photograph, LAPLACIAN),
        costs=costs(photograph.shape),
        matrix=bordered(LAPLACIAN, 4),
        dense=np.linalg.svd(matrix(wide, config.torus, padding="torus"), compute_uv=False),
        fourier=by_fourier(wide, config.torus),
        laplacian=np.array([np.linalg.eigvalsh(bordered(LAPLACIAN, size)), dirichlet(size)]),
        norms=np.array([[np.linalg.norm(bordered(kernel, n), 2) for n in config.sizes] for kernel in kernels]),
        most=np.array([largest_symbol(kernel) for kernel in kernels]),
    )


def one_channel(kernel):
    """A kernel of one channel, HWIO."""
    return jnp.asarray(kernel)[:, :, None, None]


def convolved(picture, kernel):
    """One picture of one channel, without padding."""
    found = convolutional.convolve(
        jnp.asarray(picture)[None, :, :, None], one_channel(kernel).astype(jnp.asarray(picture).dtype)
    )
    return np.asarray(found)[0, :, :, 0]


def matrix(kernel, sizes, *, padding):
    """The convolution as a matrix [outputs, inputs]; padding: same, or torus, around which it wraps."""
    return np.asarray(_derivative(jnp.asarray(kernel), sizes, padding), float)


@functools.partial(jax.jit, static_argnames=("sizes", "padding"))
def _derivative(kernel, sizes, padding):
    def outputs(flat):
        y = flat.reshape(1, *sizes, kernel.shape[2])
        if padding == "torus":
            y = jnp.pad(y, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="wrap")
        return convolutional.convolve(y, kernel, padding="valid" if padding == "torus" else padding).ravel()

    return jax.jacfwd(outputs)(jnp.zeros(sizes[0] * sizes[1] * kernel.shape[2], kernel.dtype))


def by_fourier(kernel, sizes):
    """Singular values on the torus, descending: of one small matrix for each frequency."""
    symbols = np.fft.fft2(kernel, sizes, axes=(0, 1))  # [n, m, channels, outputs]
    return np.sort(np.linalg.svd(symbols, compute_uv=False).ravel())[::-1]


def largest_symbol(kernel):
    """max over frequencies of |sum over a, b of K_ab exp(-i (a s + b t))|: a fine grid, then Newton's steps."""
    rows, columns = np.arange(3)[:, None], np.arange(3)[None, :]

    def moments(s, t):
        waves = kernel * np.exp(-1j * (rows * s + columns * t))
        value = waves.sum()
        one = [(-1j * rows * waves).sum(), (-1j * columns * waves).sum()]
        two = [
            [(-rows * r * waves).sum() for r in (rows, columns)],
            [(-columns * r * waves).sum() for r in (rows, columns)],
        ]
        slope = np.array([2 * (value.conj() * d).real for d in one])
        curve = np.array(
            [[2 * (value.conj() * two[i][j] + one[i].conj() * one[j]).real for j in (0, 1)] for i in (0, 1)]
        )
        return abs(value), slope, curve

    count = 256
    grid = np.abs(np.fft.fft2(kernel, (count, count)))
    point = 2 * np.pi * np.array(np.unravel_index(grid.argmax(), grid.shape)) / count
    for _ in range(5):
        _, slope, curve = moments(*point)
        point = point - np.linalg.solve(curve, slope)
    return max(moments(*point)[0], grid.max())


def dirichlet(n):
    """Eigenvalues of the Laplacian on n x n with zeros around, ascending."""
    one = -4 * np.sin(np.pi * np.arange(1, n + 1) / (2 * n + 2)) ** 2
    return np.sort((one[:, None] + one).ravel())


def costs(sizes):
    """Operations of the edge kernel, and of the matrix that does the same, of which only shapes exist."""
    height, width = sizes
    real = jnp.zeros(()).dtype
    edge = jax.ShapeDtypeStruct((1, 2, 1, 1), real)

    def native(kernel, x):
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    full = jax.ShapeDtypeStruct((height * width, height * (width - 1)), real)
    return np.array([
        layers.summary(native, (1, height, width, 1), edge).total_operations,
        layers.summary(lambda w, x: x @ w, (1, height * width), full).total_operations,
    ])  # fmt: skip


def claims(config, result):
    """The worked example, sizes and costs exactly; singular values by two ways; the border's effect."""
    height, width = result.photograph.shape
    made = [
        _exact(
            "the lecture's convolution: largest deviation",
            "worked example",
            0.0,
            np.abs(result.example - CONVOLVED).max(),
        ),
        _exact(
            "the lecture's max pooling: largest deviation", "worked example", 0.0, np.abs(result.pooled - POOLED).max()
        ),
        _exact(f"columns of the edges of {width} x {height} pixels", BOOK, 319.0, result.edges.shape[1]),
        _exact("rows of them", BOOK, 280.0, result.edges.shape[0]),
        _exact("operations of the edge kernel", PRODUCTS, 4.0 * 319 * 280, result.costs[0], origin="exact"),
        _exact("operations of the matrix written out", BOOK, 2.0 * 320 * 280 * 319 * 280, result.costs[1]),
    ]
    made.append(
        one_number(
            f"{len(result.dense)} singular values on a torus, decomposed against Fourier: largest relative difference",
            SEDGHI,
            origin="exact",
            expected=0.0,
            measured=np.abs(result.dense - result.fourier).max() / result.fourier.max(),
            tolerance=1e-5,
            tolerance_from="rounding in float32: the matrix is exact, the decomposition in float64",
        )
    )
    made.append(
        one_number(
            "eigenvalues of the Laplacian with zeros around: largest difference from the exact ones",
            "the discrete sine transform",
            origin="exact",
            expected=0.0,
            measured=np.abs(np.subtract(*result.laplacian)).max(),
            tolerance=1e-10,
            tolerance_from="rounding in float64",
        )
    )
    made.append(
        one_number(
            "largest singular value with zeros around over the maximum of the symbol, all kernels and sizes",
            "the matrix is a part of a larger torus's",
            origin="exact",
            expected=1.0,
            measured=(result.norms / result.most[:, None]).max(),
            tolerance=1e-6,
            tolerance_from="rounding in float32",
            relation="<=",
        )
    )
    gaps = 1 - result.norms / result.most[:, None]
    cut = np.log((config.sizes[-1] + 1) / (config.sizes[-2] + 1))
    made.append(
        near(
            f"order in n + 1 by which the norm misses the maximum, from n = {config.sizes[-2]} to {config.sizes[-1]}",
            "a quadratic maximum of the symbol",
            origin="exact",
            expected=-2.0,
            samples=np.log(gaps[:, -1] / gaps[:, -2]) / cut,
            tolerance=0.3,
            tolerance_from="set before the run: the next term is of relative size 1 / n, 3 / n here for kernels of 3",
        )
    )
    return made


def _exact(name, source, expected, measured, *, origin="published"):
    return one_number(
        name,
        source,
        origin=origin,
        expected=expected,
        measured=float(measured),
    )


def figure(config, result):
    """Above the photograph, its edges and its Laplacian; below a matrix, singular values, the border's effect."""
    drawing = plotting.figure(width=12, height=7)
    upper, lower = drawing.subplots(2, 3)
    pictures = ((result.photograph, "280 x 320 pixels"), (result.edges, "kernel (-1, 1)"), (result.curved, "Laplacian"))
    for ax, (picture, title) in zip(upper, pictures, strict=True):
        most = None if ax is upper[0] else 0.3
        ax.imshow(picture, cmap="gray", vmin=None if most is None else -most, vmax=most)
        ax.set_title(title if most is None else f"{title}: {picture.shape[0]} x {picture.shape[1]}", fontsize=10)
        ax.set_axis_off()
    left, middle, right = lower
    left.set_xticks(range(0, 16, 4))
    left.set_yticks(range(0, 16, 4))
    shown = left.imshow(result.matrix, cmap="RdBu_r", vmin=-4, vmax=4)
    drawing.colorbar(shown, ax=left, shrink=0.8)
    left.set_title("the Laplacian on 4 x 4 as a matrix, zeros around", fontsize=10)
    middle.plot(result.dense, color=plotting.COLORS[0], label="matrix decomposed")
    middle.plot(result.fourier, ":", color="k", label="Fourier transforms of the kernels")
    middle.set(xlabel="index", ylabel="singular value")
    dress(middle, title=f"3 x 3, 3 channels to 4, torus of {config.torus[0]} x {config.torus[1]}")
    sizes = np.array(config.sizes)
    gaps = 1 - result.norms / result.most[:, None]
    right.plot(sizes, gaps.T, color=plotting.COLORS[0], linewidth=0.8, alpha=0.6)
    middle_gap = np.exp(np.log(gaps[:, -1]).mean())
    right.plot(sizes, middle_gap * ((sizes[-1] + 1) / (sizes + 1)) ** 2, "--", color="k", label="order 2")
    right.set(xscale="log", yscale="log")
    right.set_xticks(sizes, [str(n) for n in sizes])
    right.minorticks_off()
    right.set(xlabel="n, pictures n x n with zeros around", ylabel="1 - norm / maximum of the symbol")
    dress(right, title=f"{len(gaps)} random kernels")
    return drawing
