"""What decompositions, inverses and Fourier transforms do to axes: all entries along some are mixed, the rest stays."""

from numdl.tracing._layouts import blank, followed, join

# fmt: off
_MATRICES = {
    "cholesky", "eig", "eigh", "householder_product", "hessenberg", "lu", "qr", "schur", "svd",
    "triangular_solve", "tridiagonal",
}
# fmt: on


def _leading(name):
    """Linear algebra of matrices along the last two axes."""

    def rule(params, given, before, shapes):
        one, count = join(given, before[0]), len(before[0]) - 2
        return [_mixed(one, count, shape, name) for shape in shapes]

    return rule


def _mixed(one, count, shape, name):
    """The first `count` axes as they are; the others are made of all entries of what they were."""
    lost = one.lost or (f"{name} is not followed" if any(map(followed, one.axes[count:])) else None)
    return one._replace(axes=(*one.axes[:count], *blank(shape[count:])), lost=lost)


def _triangular(params, given, before, shapes):
    """Solutions of A X = B or X A = B: what numbers the right-hand sides stays."""
    matrix, sides = given
    free = len(shapes[0]) - (1 if params["left_side"] else 2)
    if matrix is not None or sides is None or followed(sides.axes[2 * len(shapes[0]) - 3 - free]):
        return _leading("triangular_solve")(params, given, before, shapes)
    return [sides]


def _fourier(params, given, before, shapes):
    return _mixed(given[0], len(shapes[0]) - len(params["fft_lengths"]), shapes[0], "fft")


RULES = {
    **{name: _leading(name) for name in _MATRICES},
    "triangular_solve": _triangular,
    "fft": _fourier,
}
