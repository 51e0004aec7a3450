"""Linear stability: what a scheme does to y' = lambda y, with z = h lambda.

    y_new = R(z) y,    R(z) = N(z) / D(z),    N = det(I - z a + z 1 b^T),    D = det(I - z a)

Whether |R| <= 1 is decided on the polynomial |N|^2 - |D|^2, whose coefficients are exact: near z = 0 a method may leave
the unit disc by 1e-20, and floating-point values of |R| could not tell. NumPy float64 and complex128 come out.

    >>> from numdl.ode import stability, tableaus
    >>> [round(float(stability.real_interval(tableau)), 3) for tableau in (tableaus.euler, tableaus.rk4)]
    [2.0, 2.785]
    >>> float(stability.largest_step(tableau=tableaus.euler, eigenvalues=[-1.0, -100.0]))
    0.02
"""

import functools

import numpy as np
from jaxtyping import ArrayLike, Complex128, Float64

from numdl import checks
from numdl.ode.tableaus import Tableau

ROUNDING = 1e-12  # a coefficient is zero if it is this small relative to the terms that it is the sum of


def amplification(tableau: Tableau, z: ArrayLike) -> Complex128[np.ndarray, "..."] | np.complex128:
    """PREDICTED amplification factor of one step on y' = lambda y: the stability function R at z = h lambda.

        R(z) = N(z) / D(z),    N = det(I - z a + z 1 b^T),    D = det(I - z a)

    |R(z)| <= 1 is the region of absolute stability.

    Parameters
    ----------
    tableau : Tableau           such as tableaus.rk4
    z : array                   real or complex, any shape
    Returns
    -------
    R(z), complex128, shaped like z; infinite at a pole of an implicit method
    Raises
    ------
    TypeError                   no Tableau, or z is not of numbers
    Source: Hairer & Wanner, Solving ODEs II, propositions IV.3.1 and IV.3.2.
    Twin: analysis.stability.spectrum.    Experiments: c2, c3.
    """
    numerator, denominator = (np.array(p, dtype=np.float64) for p in _polynomials(tableau))
    z = np.asarray(checks.array("z", z, kind="number", empty=True), dtype=np.complex128)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.polynomial.polynomial.polyval(z, numerator) / np.polynomial.polynomial.polyval(z, denominator)


def real_interval(tableau: Tableau) -> float:
    """PREDICTED stability interval on the negative real axis: how far a step may go where the equation decays.

        real_interval = max x such that |R(-s)| <= 1 for all s in [0, x]

    2 for forward Euler; infinite where there is no limit.

    Parameters
    ----------
    tableau : Tableau           such as tableaus.rk4
    Raises
    ------
    TypeError                   no Tableau
    Source: the definition; |R| <= 1 is decided on a polynomial with exact coefficients.
    Twin: analysis.stability.spectrum.    Experiments: c2, c3.
    """
    return _limit(*_polynomials(tableau), -1.0 + 0.0j)


def imaginary_interval(tableau: Tableau) -> float:
    """PREDICTED stability interval on the imaginary axis: how far a step may go where the equation oscillates.

        imaginary_interval = max y such that |R(i s)| <= 1 for all s in [0, y]

    0 for Euler and all two-stage methods of order 2. Both halves of the axis are alike, as the coefficients are real.

    Parameters
    ----------
    tableau : Tableau           such as tableaus.rk4
    Raises
    ------
    TypeError                   no Tableau
    Source: the definition; |R| <= 1 is decided on a polynomial with exact coefficients.
    Twin: analysis.stability.spectrum.    Experiments: c2, c3.
    """
    return _limit(*_polynomials(tableau), 0.0 + 1.0j)


def region_boundary(tableau: Tableau, *, points: int = 400) -> Complex128[np.ndarray, "points branches"]:
    """PREDICTED boundary of the region of absolute stability: the curves |R(z)| = 1.

    R(z) = exp(i phi) is solved for all z at each phi; the region of stability lies on one side of every curve.

    Parameters
    ----------
    tableau : Tableau           such as tableaus.rk4
    points : int                phases phi, equally spaced in [0, 2 pi), >= 2
    Returns
    -------
    z [points, branches]        branch by branch in order, infinite where one escapes
    Raises
    ------
    ValueError, TypeError       no Tableau, fewer than 2 points
    Source: the definition.
    """
    points = checks.whole("points", points, least=2)
    numerator, denominator = (np.array(p, dtype=np.float64) for p in _polynomials(tableau))
    size = max(len(numerator), len(denominator))
    numerator, denominator = (np.pad(p, (0, size - len(p))) for p in (numerator, denominator))
    phases = np.exp(2j * np.pi * np.arange(points) / points)
    branches = [_all_roots(numerator - phase * denominator) for phase in phases]
    return np.array(functools.reduce(_follow, branches[1:], branches[:1]))


def largest_step(*, tableau: Tableau, eigenvalues: ArrayLike) -> float:
    """PREDICTED largest stable step size for a spectrum of eigenvalues.

        largest_step = max h such that |R(s lambda)| <= 1 for all s in [0, h] and every eigenvalue lambda

    0 if some eigenvalue is amplified by every small step, infinite if none is ever amplified. An eigenvalue whose real
    part is below 1e-12 of its size counts as imaginary: that is what rounding makes of an antisymmetric matrix.

    Parameters
    ----------
    tableau : Tableau           such as tableaus.rk4
    eigenvalues : array         of the Jacobian, complex or real, any shape
    Raises
    ------
    ValueError, TypeError       no eigenvalues, or not finite; no Tableau
    Source: the definition.
    Twin: analysis.stability.spectrum.    Experiments: c2, c3.
    """
    rational = _polynomials(tableau)
    values = np.asarray(checks.array("eigenvalues", eigenvalues, kind="number")).astype(np.complex128).ravel()
    if not np.isfinite(values).all():
        found = f"{values[~np.isfinite(values)][0]} in shape {np.shape(eigenvalues)}"
        raise checks.BadValue(f"eigenvalues must be finite numbers, at least one; got {found}")
    values = np.unique(values[values != 0])
    return min((_limit(*rational, value / abs(value)) / abs(value) for value in values), default=np.inf)


def logarithmic_norm(matrix: ArrayLike, *, ord: float = 2) -> Float64[np.ndarray, "..."] | np.float64:
    """The logarithmic norm mu = lim (|I + h A| - 1) / h as h -> 0+: |exp(t A)| <= exp(t mu) for t >= 0.

        ord=2    largest eigenvalue of (A + A^H) / 2
        ord=1    max over columns j of Re a[j, j] + sum_{i != j} |a[i, j]|;    ord=inf the same over rows

    Parameters
    ----------
    matrix : array [..., n, n]  A, real or complex; a stack is done at once
    ord : 1, 2 or inf           the norm
    Returns
    -------
    mu [...], float64
    Raises
    ------
    ValueError, TypeError       another norm, a matrix that is not square or not finite
    Source: Dahlquist 1959, Trans. Royal Inst. Techn. Stockholm 130; Hairer, Norsett & Wanner, Solving ODEs I.
    """
    checks.one_of("ord", ord, (1, 2, np.inf))
    matrix = np.asarray(checks.array("matrix", matrix, kind="number", least_ndim=2))
    if not np.isfinite(matrix).all():
        raise checks.BadValue(f"matrix must be finite numbers; got nan or inf, shape {matrix.shape}")
    if matrix.shape[-1] != matrix.shape[-2]:
        raise checks.BadValue(f"matrix must have shape (..., n, n); got {matrix.shape}")
    matrix = matrix.astype(np.complex128 if np.iscomplexobj(matrix) else np.float64)
    if ord == 2:
        return np.linalg.eigvalsh((matrix + np.swapaxes(matrix.conj(), -1, -2)) / 2)[..., -1]
    diagonal = np.diagonal(matrix, axis1=-2, axis2=-1)
    sums = np.abs(matrix).sum(axis=-2 if ord == 1 else -1)
    return (diagonal.real + sums - np.abs(diagonal)).max(axis=-1)


def _polynomials(tableau):
    """N and D of R = N / D: coefficients by rising powers of z, exact where the tableau is."""
    return _expanded(checks.instance("tableau", tableau, Tableau, hint="such as tableaus.rk4"))


@functools.lru_cache(maxsize=256)
def _expanded(tableau):
    a = [list(row) for row in tableau.a]
    shifted = [[entry - weight for entry, weight in zip(row, tableau.b, strict=True)] for row in a]
    return _trim(_determinant(shifted)), _trim(_determinant(a))


def _determinant(matrix):
    """det(I - z M) by rising powers of z: Faddeev and LeVerrier's recursion, exact in the entries' arithmetic."""
    size = len(matrix)
    identity = [[int(i == j) for j in range(size)] for i in range(size)]
    coefficients, power = [1], identity
    for k in range(1, size + 1):
        product = _multiply(matrix, power)
        coefficients.append(-sum(product[i][i] for i in range(size)) / k)
        power = [[p + coefficients[-1] * e for p, e in zip(*rows, strict=True)] for rows in zip(product, identity)]
    return coefficients


def _multiply(left, right):
    columns = list(zip(*right, strict=True))
    return [[sum(a * b for a, b in zip(row, column, strict=True)) for column in columns] for row in left]


def _trim(coefficients):
    while len(coefficients) > 1 and coefficients[-1] == 0:
        coefficients = coefficients[:-1]
    return tuple(coefficients)


def _limit(numerator, denominator, direction):
    """The first s > 0 beyond which |R(s direction)| > 1."""
    excess = _excess(numerator, denominator, direction)
    if not excess.any():
        return np.inf
    excess = excess[np.flatnonzero(excess)[0] :]  # the factor s**k is positive
    if excess[0] > 0:
        return 0.0
    for start, end in _stretches(excess):
        if _polynomial(excess, (start + end) / 2) > 0:
            return start
    return np.inf


def _excess(numerator, denominator, direction):
    """|N(s d)|^2 - |D(s d)|^2 as a polynomial in s, |d| = 1: sum over j + k = m of (n_j n_k - d_j d_k) Re d^(j - k)."""
    size = max(len(numerator), len(denominator))
    n, d = ([*p, *[0] * (size - len(p))] for p in (numerator, denominator))
    turns = [1.0 + 0.0j]
    for _ in range(size - 1):
        turns.append(turns[-1] * direction)  # products, since the powers of i come out exact
    sums, scales = np.zeros(2 * size - 1), np.zeros(2 * size - 1)
    for j in range(size):
        for k in range(size):
            term = float(n[j] * n[k] - d[j] * d[k])
            sums[j + k] += term * turns[abs(j - k)].real
            scales[j + k] += abs(float(n[j] * n[k])) + abs(float(d[j] * d[k]))
    return np.where(np.abs(sums) <= ROUNDING * scales, 0.0, sums)


def _stretches(polynomial):
    """Consecutive intervals between the positive roots, and beyond the last."""
    roots = np.polynomial.polynomial.polyroots(np.trim_zeros(polynomial, "b"))
    real = roots[np.abs(roots.imag) <= 1e-6 * np.abs(roots)].real
    ends = np.sort([_polish(polynomial, root) for root in real if root > 0])
    if ends.size:
        yield from zip(ends, [*ends[1:], 2 * ends[-1] + 1], strict=True)
    # Without a positive root the sign never changes, and it is not positive at the start.


def _polish(polynomial, root):
    slope = np.polynomial.polynomial.polyder(polynomial)
    for _ in range(3):
        steep = _polynomial(slope, root)
        change = _polynomial(polynomial, root) / steep if steep else 0.0
        root = root - change if abs(change) < 1e-3 * root else root
    return root


def _polynomial(coefficients, x):
    return np.polynomial.polynomial.polyval(x, coefficients)


def _all_roots(coefficients):
    """Roots, infinite ones in place of those that a vanishing leading coefficient takes away."""
    scale = np.abs(coefficients).max()
    kept = np.trim_zeros(np.where(np.abs(coefficients) > 1e-14 * scale, coefficients, 0), "b")
    roots = np.polynomial.polynomial.polyroots(kept)
    return np.concatenate([roots, np.full(len(coefficients) - len(kept), np.inf + 0j)])


def _follow(rows, roots):
    """Append the roots in the order of the branches: each goes where the nearest one was, closest pairs first."""
    with np.errstate(invalid="ignore"):
        distance = np.abs(rows[-1][:, None] - roots[None, :])
    distance = np.where(np.isfinite(distance), distance, np.finfo(float).max)
    ordered = np.empty_like(roots)
    for _ in roots:
        branch, root = np.unravel_index(np.argmin(distance), distance.shape)
        ordered[branch] = roots[root]
        distance[branch, :] = distance[:, root] = np.inf
    return [*rows, ordered]
