"""Every study holds: a quick part of each in the suite of every day, the whole in the long one."""

import pytest

from numdl.ode import schemes, tableaus
from tests import verification
from tests.verification import derivatives, orders

STUDIES = verification.studies()
APART = {"interrupted"}  # takes processes of its own; test_train_resume.py kills some in the quick suite


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in APART else ()) for n in STUDIES])
def test_quick(name):
    found = list(STUDIES[name][1](False))
    assert found
    assert not [figure for figure in found if not figure.holds]


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_whole(name):
    found = list(STUDIES[name][1](True))
    assert not [figure for figure in found if not figure.holds]
    assert len({figure.what for figure in found}) == len(found)


def test_every_rule_written_by_hand_is_verified():
    assert derivatives.rules() == set(derivatives.CASES)


def test_every_scheme_is_verified():
    named = {value.name for value in vars(schemes).values() if isinstance(value, schemes.Scheme)}
    named |= {t.name for t in vars(tableaus).values() if isinstance(t, tableaus.Tableau)}
    assert named <= set(orders.cases())


def test_a_figure_that_is_not_a_number_does_not_hold():
    nan = float("nan")
    assert not verification.below("x", nan, 1.0, "").holds
    assert not verification.above("x", nan, 1.0, "").holds
    assert not verification.near("x", nan, 1.0, 0.1, "").holds
    assert verification.furthest([1.0, nan, 2.0], 1.0) != verification.furthest([1.0, 2.0], 1.0)
