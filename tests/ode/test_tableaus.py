"""Tableaus check themselves; the checks are checked by tableaus that are wrong."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
from scipy.integrate import RK23, RK45

from numdl.ode import tableaus

NAMES = {
    "euler", "midpoint", "heun", "ralston", "ssprk3", "kutta3", "rk4", "three_eighths", "bogacki_shampine",
    "dormand_prince", "implicit_midpoint", "gauss_legendre4",
}  # fmt: skip


def test_all_are_there_and_hashable_with_a_source():
    assert {t.name for t in tableaus.ALL} == NAMES
    assert all(getattr(tableaus, t.name) is t for t in tableaus.ALL)
    assert len({hash(t) for t in tableaus.ALL}) == len(NAMES)
    assert all(any(character.isdigit() for character in t.source) for t in tableaus.ALL)


@pytest.mark.parametrize("tableau", tableaus.ALL, ids=lambda t: t.name)
def test_row_sums_and_order_conditions(tableau):
    assert np.abs(tableaus.row_sum_residuals(tableau)).max() == 0
    residuals = tableaus.order_residuals(tableau, order=6)
    for nodes in range(1, tableau.order + 1):
        assert np.abs(residuals[nodes]).max() < 1e-15
    assert np.abs(residuals[tableau.order + 1]).max() > 1e-4


def test_numbers_of_rooted_trees():
    residuals = tableaus.order_residuals(tableaus.euler, order=6)
    assert [len(residuals[nodes]) for nodes in range(1, 7)] == [1, 1, 2, 4, 9, 20]


def test_residuals_of_euler_by_hand():
    # Only the tree with one node has a weight: the others leave -1 / gamma.
    residuals = tableaus.order_residuals(tableaus.euler, order=3)
    np.testing.assert_allclose(np.sort(residuals[3]), [-1 / 3, -1 / 6], rtol=1e-15)


def test_a_wrong_tableau_is_seen():
    third = Fraction(1, 3)
    bent = dataclasses.replace(tableaus.rk4, b=(third, third, third, Fraction(0)))
    assert np.abs(tableaus.order_residuals(bent)[2]).max() > 0.1
    moved = dataclasses.replace(tableaus.rk4, c=(Fraction(0), third, third, Fraction(1)))
    assert np.abs(tableaus.row_sum_residuals(moved)).max() > 0.1


@pytest.mark.parametrize("tableau, theirs", [(tableaus.bogacki_shampine, RK23), (tableaus.dormand_prince, RK45)])
def test_embedded_pairs_are_scipys(tableau, theirs):
    stages = theirs.n_stages
    np.testing.assert_allclose(tableau.matrix[:stages, : theirs.A.shape[1]], theirs.A[:stages], rtol=0, atol=1e-15)
    np.testing.assert_allclose(tableau.weights[:stages], theirs.B, atol=1e-15)
    np.testing.assert_allclose(tableau.nodes[:stages], theirs.C, atol=1e-15)
    error = tableau.weights - np.array(tableau.embedded, float)
    assert min(np.abs(error - theirs.E).max(), np.abs(error + theirs.E).max()) < 1e-15


@pytest.mark.parametrize("tableau", [tableaus.bogacki_shampine, tableaus.dormand_prince], ids=lambda t: t.name)
def test_companion_has_one_order_less(tableau):
    companion = tableaus.companion(tableau)
    residuals = tableaus.order_residuals(companion)
    assert companion.order == tableau.order - 1
    assert all(np.abs(residuals[nodes]).max() == 0 for nodes in range(1, companion.order + 1))
    assert np.abs(residuals[tableau.order]).max() > 1e-5


def test_explicit_and_stages():
    assert [t.explicit for t in tableaus.ALL] == [True] * 10 + [False] * 2
    assert [t.stages for t in tableaus.ALL] == [1, 2, 2, 2, 3, 3, 4, 4, 4, 7, 1, 2]


def test_errors_name_argument_and_value():
    with pytest.raises(ValueError, match=r"tableau must have embedded weights.*got Tableau\(rk4"):
        tableaus.companion(tableaus.rk4)
    with pytest.raises(TypeError, match=r"tableau must be a Tableau.*got 'rk4'"):
        tableaus.order_residuals("rk4")
    with pytest.raises(ValueError, match=r"order must be an integer in 1..8; got 0"):
        tableaus.order_residuals(tableaus.rk4, order=0)
