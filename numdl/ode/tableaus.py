"""Runge-Kutta tableaus as exact data that check themselves and name their origin.

    k[i] = f(t + c[i] h, y + h sum_j a[i][j] k[j]),    y_new = y + h sum_i b[i] k[i]

Coefficients are fractions (Gauss-Legendre 4 holds sqrt(3), so floats); `matrix`, `weights` and `nodes` are their
float64 values. A tableau is hashable: it may be a static argument of a jitted function.
"""

import dataclasses
import itertools
import math
from fractions import Fraction

import numpy as np
from jaxtyping import Float64

from numdl import checks

MOST_ORDER = 8  # 200 conditions; their number grows nearly threefold with every order


@dataclasses.dataclass(frozen=True)
class Tableau:
    """The coefficients of one Runge-Kutta method with s stages."""

    name: str
    a: tuple  # s rows of s numbers
    b: tuple  # s weights
    c: tuple  # s nodes
    order: int
    source: str
    embedded: tuple | None = None  # s weights of the companion of order `order - 1`

    @property
    def stages(self):
        """The number of stages s."""
        return len(self.b)

    @property
    def explicit(self):
        """Whether every stage needs only the stages before it."""
        return all(entry == 0 for i, row in enumerate(self.a) for entry in row[i:])

    @property
    def matrix(self):
        """a as float64, shape (s, s)."""
        return np.array(self.a, dtype=np.float64)

    @property
    def weights(self):
        """b as float64, shape (s,)."""
        return np.array(self.b, dtype=np.float64)

    @property
    def nodes(self):
        """c as float64, shape (s,)."""
        return np.array(self.c, dtype=np.float64)

    def __repr__(self):
        return f"Tableau({self.name}, stages={self.stages}, order={self.order}, explicit={self.explicit})"


def companion(tableau: Tableau) -> Tableau:
    """The embedded method as a tableau of its own: the same stages, the embedded weights, one order less.

    Parameters
    ----------
    tableau : Tableau           with embedded weights, such as tableaus.dormand_prince
    Raises
    ------
    ValueError, TypeError       no embedded weights, no Tableau
    """
    checks.instance("tableau", tableau, Tableau, hint="such as tableaus.dormand_prince")
    if tableau.embedded is None:
        raise checks.BadValue(f"tableau must have embedded weights, as bogacki_shampine has; got {tableau}")
    changes = {"name": f"{tableau.name}_companion", "b": tableau.embedded, "order": tableau.order - 1}
    return dataclasses.replace(tableau, **changes, embedded=None)


def row_sum_residuals(tableau: Tableau) -> Float64[np.ndarray, "stages"]:
    """How far the nodes are from the row sums: zeros for a consistent tableau.

        residual[i] = sum_j a[i][j] - c[i]

    Parameters
    ----------
    tableau : Tableau           such as tableaus.rk4
    Returns
    -------
    array [s], float64, computed in the coefficients' own arithmetic
    Raises
    ------
    TypeError                   no Tableau
    Source: Hairer, Norsett & Wanner, Solving ODEs I.
    """
    checks.instance("tableau", tableau, Tableau, hint="such as tableaus.rk4")
    rows = zip(tableau.a, tableau.c, strict=True)
    return np.array([sum(row) - node for row, node in rows], dtype=np.float64)


def order_residuals(tableau: Tableau, order: int = 5) -> dict[int, Float64[np.ndarray, "conditions"]]:
    """How far the tableau is from each order condition: one residual for each rooted tree with at most `order` nodes.

        residual(tree) = sum_i b[i] Phi_i(tree) - 1 / gamma(tree)
        Phi_i(tree)    = prod over subtrees u of sum_j a[i][j] Phi_j(u)
        gamma(tree)    = nodes(tree) * prod over subtrees u of gamma(u)

    The method has order p (given the row sums) if and only if the residuals of all trees with at most p nodes vanish:
    1, 2, 4, 8, 17 conditions for p = 1 ... 5. Fractions stay exact until the end.

    Parameters
    ----------
    tableau : Tableau           such as tableaus.rk4
    order : int                 the most nodes, 1 to 8
    Returns
    -------
    dict                        {number of nodes: array of residuals, float64}
    Raises
    ------
    ValueError, TypeError       an order outside 1..8, no Tableau
    Source: Butcher 1963, J. Austral. Math. Soc. 3, 185-201; Hairer, Norsett & Wanner, Solving ODEs I.
    """
    checks.instance("tableau", tableau, Tableau, hint="such as tableaus.rk4")
    order = checks.whole("order", order, most=MOST_ORDER)
    sizes = range(1, order + 1)
    return {nodes: np.array([_residual(tableau, tree) for tree in _trees(nodes)], np.float64) for nodes in sizes}


def _residual(tableau, tree):
    weight = sum(b * phi for b, phi in zip(tableau.b, _elementary(tableau, tree), strict=True))
    return weight - Fraction(1, _density(tree))


def _elementary(tableau, tree):
    values = [1] * tableau.stages
    for subtree in tree:
        inner = _elementary(tableau, subtree)
        sums = [sum(a * phi for a, phi in zip(row, inner, strict=True)) for row in tableau.a]
        values = [value * entry for value, entry in zip(values, sums, strict=True)]
    return values


def _density(tree):
    return _nodes(tree) * math.prod(_density(subtree) for subtree in tree)


def _nodes(tree):
    return 1 + sum(_nodes(subtree) for subtree in tree)


def _trees(nodes):
    """All rooted trees with this many nodes; a tree is the sorted tuple of its subtrees."""
    return sorted({tuple(sorted(forest)) for forest in _forests(nodes - 1)})


def _forests(nodes):
    if nodes == 0:
        return [()]
    sizes = range(1, nodes + 1)
    return [(tree, *rest) for size in sizes for tree in _trees(size) for rest in _forests(nodes - size)]


def _fractions(text):
    return tuple(Fraction(word) for word in text.split())


def _explicit(name, order, source, *, c, a, b, embedded=None):
    """An explicit tableau from text: the rows of `a` below the diagonal, one string each, first row left out."""
    nodes = _fractions(c)
    rows = [(), *(_fractions(row) for row in a)]
    square = tuple(row + (Fraction(0),) * (len(nodes) - len(row)) for row in rows)
    companion_weights = None if embedded is None else _fractions(embedded)
    return Tableau(name, square, _fractions(b), nodes, order, source, companion_weights)


euler = _explicit("euler", 1, "Euler 1768, Institutiones calculi integralis I, caput VII", c="0", a=[], b="1")

midpoint = _explicit("midpoint", 2, "Runge 1895, Math. Ann. 46, 167-178", c="0 1/2", a=["1/2"], b="0 1")

heun = _explicit("heun", 2, "Heun 1900, Z. Math. Phys. 45, 23-38", c="0 1", a=["1"], b="1/2 1/2")

ralston = _explicit("ralston", 2, "Ralston 1962, Math. Comp. 16, 431-437", c="0 2/3", a=["2/3"], b="1/4 3/4")

ssprk3 = _explicit(
    "ssprk3",
    3,
    "Shu & Osher 1988, J. Comput. Phys. 77, 439-471",
    c="0 1 1/2",
    a=["1", "1/4 1/4"],
    b="1/6 1/6 2/3",
)

kutta3 = _explicit(
    "kutta3",
    3,
    "Kutta 1901, Z. Math. Phys. 46, 435-453",
    c="0 1/2 1",
    a=["1/2", "-1 2"],
    b="1/6 2/3 1/6",
)

rk4 = _explicit(
    "rk4",
    4,
    "Kutta 1901, Z. Math. Phys. 46, 435-453",
    c="0 1/2 1/2 1",
    a=["1/2", "0 1/2", "0 0 1"],
    b="1/6 1/3 1/3 1/6",
)

three_eighths = _explicit(
    "three_eighths",
    4,
    "Kutta 1901, Z. Math. Phys. 46, 435-453",
    c="0 1/3 2/3 1",
    a=["1/3", "-1/3 1", "1 -1 1"],
    b="1/8 3/8 3/8 1/8",
)

bogacki_shampine = _explicit(
    "bogacki_shampine",
    3,
    "Bogacki & Shampine 1989, Appl. Math. Lett. 2, 321-325",
    c="0 1/2 3/4 1",
    a=["1/2", "0 3/4", "2/9 1/3 4/9"],
    b="2/9 1/3 4/9 0",
    embedded="7/24 1/4 1/3 1/8",
)

dormand_prince = _explicit(
    "dormand_prince",
    5,
    "Dormand & Prince 1980, J. Comput. Appl. Math. 6, 19-26",
    c="0 1/5 3/10 4/5 8/9 1 1",
    a=[
        "1/5",
        "3/40 9/40",
        "44/45 -56/15 32/9",
        "19372/6561 -25360/2187 64448/6561 -212/729",
        "9017/3168 -355/33 46732/5247 49/176 -5103/18656",
        "35/384 0 500/1113 125/192 -2187/6784 11/84",
    ],
    b="35/384 0 500/1113 125/192 -2187/6784 11/84 0",
    embedded="5179/57600 0 7571/16695 393/640 -92097/339200 187/2100 1/40",
)

implicit_midpoint = Tableau(
    "implicit_midpoint",
    ((Fraction(1, 2),),),
    (Fraction(1),),
    (Fraction(1, 2),),
    2,
    "Butcher 1964, Math. Comp. 18, 50-64 (Gauss, one stage)",
)

gauss_legendre4 = Tableau(
    "gauss_legendre4",
    ((1 / 4, 1 / 4 - math.sqrt(3) / 6), (1 / 4 + math.sqrt(3) / 6, 1 / 4)),
    (1 / 2, 1 / 2),
    (1 / 2 - math.sqrt(3) / 6, 1 / 2 + math.sqrt(3) / 6),
    4,
    "Hammer & Hollingsworth 1955, Math. Tables Aids Comp. 9, 92-96 (Gauss, two stages)",
)

EXPLICIT = (euler, midpoint, heun, ralston, ssprk3, kutta3, rk4, three_eighths, bogacki_shampine, dormand_prince)
IMPLICIT = (implicit_midpoint, gauss_legendre4)
ALL = tuple(itertools.chain(EXPLICIT, IMPLICIT))
