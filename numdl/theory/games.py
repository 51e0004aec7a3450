"""PREDICTED: what gradient steps do in a game, where each player descends on a loss of its own.

The players' gradients together are a vector field v(w), zero at a stationary point. Near it one step multiplies a mode
of eigenvalue lambda of the Jacobian of v, with z = learning_rate * lambda, by

    simultaneous     1 - z                          all at once: explicit Euler
    extragradient    1 - z + z^2                    the gradient where a simultaneous step would lead
    alternating      r^2 - (2 + z^2) r + 1 = 0      one after the other; players without a curvature of their own
    consensus        1 - z - learning_rate * consensus * |lambda|^2     v + consensus * grad |v|^2 / 2; J is normal

A bilinear game x' A y has lambda = i s and -i s, s the singular values of A: it turns, and plain steps spiral outwards.
`step_matrix` is exact for any Jacobian. Everything is float64 NumPy. Twin: analysis.games.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import ArrayLike, Float64, ScalarLike

from numdl import checks

METHODS = ("simultaneous", "alternating", "extragradient", "consensus")
ROUNDING = 1e-12  # a real part below this share of an eigenvalue is what rounding makes of an antisymmetric matrix


def growth(
    eigenvalues: ArrayLike, *, method: str, learning_rate: ScalarLike, consensus: ScalarLike = 0.0
) -> Float64[np.ndarray, "..."] | np.float64:
    """PREDICTED factor by which one step multiplies a mode of the game, in the limit of many steps.

        growth = max |r|,    r from the table of the module;    |1 + i h s| = sqrt(1 + h^2 s^2) for the bilinear game

    Parameters
    ----------
    eigenvalues : array         of the Jacobian of the players' gradients, complex or real, any shape
    method : str                one of METHODS; alternating: of two players whose losses are linear in their own part
    learning_rate : scalar      h > 0, of all players
    consensus : scalar          weight >= 0 of the gradient of |v|^2 / 2; 0 for the other methods
    Returns
    -------
    array of that shape         below 1: converges, above 1: diverges
    Raises
    ------
    ValueError, TypeError       no such method, a number out of its range, eigenvalues that are not finite
    Source: Korpelevich 1976; Mescheder, Nowozin & Geiger 2017, arXiv:1705.10461; Gidel et al. 2019, arXiv:1807.04740.
    Twin: analysis.games.spectrum.    Experiment: f14.
    """
    method, consensus = _method(method, consensus)
    h = checks.number("learning_rate", learning_rate, above=0.0)
    values = _eigenvalues(eigenvalues)
    z = h * values
    if method == "alternating":
        root = z * np.sqrt(z**2 + 4)
        return np.maximum(np.abs(2 + z**2 + root), np.abs(2 + z**2 - root)) / 2
    factor = {"simultaneous": 0 * z, "extragradient": z**2, "consensus": -h * consensus * np.abs(values) ** 2}
    return np.abs(1 - z + factor[method])


def largest_step(eigenvalues: ArrayLike, *, method: str, consensus: ScalarLike = 0.0) -> float:
    """PREDICTED largest learning rate of a game up to which no mode grows.

        simultaneous     min 2 Re lambda / |lambda|^2: none for a bilinear game
        extragradient    rho^3 - 2 c rho^2 + (4 c^2 - 1) rho - 2 c = 0,  rho = h |lambda|,  c = Re lambda / |lambda|:
                         1 / s for a bilinear game
        alternating      2 / s where every lambda is imaginary; else some mode grows

    Parameters
    ----------
    eigenvalues : array         of the Jacobian of the players' gradients, complex or real, any shape
    method : str                one of METHODS, as in `growth`
    consensus : scalar          as in `growth`
    Returns
    -------
    float                       0 if some mode grows in every small step, infinite if all eigenvalues are 0
    Raises
    ------
    ValueError, TypeError       no such method, a number out of its range, eigenvalues that are not finite
    Source: |r| = 1 in the table of the module.
    Twin: analysis.games.spectrum.    Experiment: f14.
    """
    method, consensus = _method(method, consensus)
    values = np.ravel(_eigenvalues(eigenvalues))
    values = values[values != 0] + 0j
    if method == "consensus":
        values, method = values + consensus * np.abs(values) ** 2, "simultaneous"
    return min((_limit(method, abs(value), _cosine(value)) for value in values), default=np.inf)


def step_matrix(
    jacobian: ArrayLike,
    *,
    sizes: Sequence[int],
    method: str,
    learning_rate: ScalarLike,
    consensus: ScalarLike = 0.0,
) -> Float64[np.ndarray, "n n"]:
    """PREDICTED matrix of one step of a game whose players' gradients are v(w) = J w: exact for any J.

        simultaneous  I - h J,    extragradient  I - h J (I - h J),    consensus  I - h (J + consensus J' J)
        alternating   the product over players of I - h J_i, J_i having that player's rows of J, all others 0

    Parameters
    ----------
    jacobian : array [n, n]     J, of the players' gradients with respect to all coordinates
    sizes : sequence of int     coordinates of each player, in their order; sum n
    method : str                one of METHODS
    learning_rate : scalar      h > 0, of all players
    consensus : scalar          as in `growth`
    Returns
    -------
    array [n, n]                its eigenvalues are the modes' factors
    Raises
    ------
    ValueError, TypeError       no such method, a number out of its range, J not square, sizes that do not add up
    Source: the definitions of the steps.
    Twin: analysis.games.spectrum.    Experiment: f14.
    """
    method, consensus = _method(method, consensus)
    h = checks.number("learning_rate", learning_rate, above=0.0)
    j, sizes = _square(jacobian), checks.wholes("sizes", sizes)
    if sum(sizes) != len(j):
        raise checks.BadValue(f"sizes must add up to the {len(j)} coordinates of jacobian; got {sizes}")
    one = np.eye(len(j))
    return {
        "simultaneous": lambda: one - h * j,
        "alternating": lambda: _in_turn(h * j, sizes),
        "extragradient": lambda: one - h * j @ (one - h * j),
        "consensus": lambda: one - h * (j + consensus * j.T @ j),
    }[method]()


def _in_turn(change, sizes):
    """The product over players of I - their rows, the first player's on the right."""
    product, owner = np.eye(len(change)), np.repeat(np.arange(len(sizes)), sizes)
    for player in range(len(sizes)):
        product = product - np.where((owner == player)[:, None], change, 0.0) @ product
    return product


def _square(jacobian):
    jacobian = checks.array("jacobian", checks.finite("jacobian", checks.concrete("jacobian", jacobian)), ndim=2)
    return np.asarray(checks.shape("jacobian", jacobian, (jacobian.shape[1], jacobian.shape[1])), np.float64)


def _method(method, consensus):
    checks.one_of("method", method, METHODS)
    consensus = checks.number("consensus", consensus, least=0.0)
    if consensus and method != "consensus":
        raise checks.BadValue(f"consensus must be 0 for the method {method}; got {consensus!r}")
    return method, consensus


def _eigenvalues(eigenvalues):
    found = checks.array("eigenvalues", checks.concrete("eigenvalues", eigenvalues), kind="number")
    values = np.asarray(found).astype(np.complex128)
    if not np.isfinite(values).all():
        wrong = values[~np.isfinite(values)][0]
        raise checks.BadValue(f"eigenvalues must be finite numbers; got {wrong}, {eigenvalues!r:.60}")
    return values


def _cosine(value):
    return 0.0 if abs(value.real) <= ROUNDING * abs(value) else value.real / abs(value)


def _limit(method, size, cosine):
    """The largest h for one eigenvalue."""
    if method == "alternating":
        return 2 / size if cosine == 0 else 0.0
    if cosine < 0 or (cosine == 0 and method == "simultaneous"):
        return 0.0
    if method == "simultaneous":
        return 2 * cosine / size
    roots = np.roots([1.0, -2 * cosine, 4 * cosine**2 - 1, -2 * cosine])
    return roots[np.abs(roots.imag) < 1e-8].real.max() / size
