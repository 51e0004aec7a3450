"""Every study holds: a quick part of each here; the whole is a command of its own, whose kept figures hold, too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.ode import schemes, tableaus
from tests import verification
from tests.verification import derivatives, orders, page, precision

STUDIES = verification.studies()
APART = {"interrupted"}  # takes processes of its own; test_train_resume.py kills some in the quick suite


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in APART else ()) for n in STUDIES])
def test_quick(name):
    found = list(STUDIES[name][1](False))
    assert found
    assert not [figure for figure in found if not figure.holds]


@pytest.mark.parametrize("path", sorted(page.FOLDER.glob("jax-*.json")), ids=lambda path: path.stem)
def test_kept_figures_of_whole_studies_hold(path):
    kept = page.read(path)["studies"]
    assert kept and set(kept) <= set(STUDIES)
    for name, known in kept.items():
        named = {figure["what"] for figure in known["figures"]}
        assert len(named) == len(known["figures"]) > 0, name
        assert not [figure for figure in known["figures"] if not figure["holds"]], name


def test_every_rule_written_by_hand_is_verified():
    assert derivatives.rules() == set(derivatives.CASES)


def test_every_scheme_is_verified():
    named = {value.name for value in vars(schemes).values() if isinstance(value, schemes.Scheme)}
    named |= {t.name for t in vars(tableaus).values() if isinstance(t, tableaus.Tableau)}
    assert named <= set(orders.cases())


def variance_by_cancellation(x):
    return jnp.mean(x**2) - jnp.mean(x) ** 2


def variance_of_deviations(x):
    return jnp.mean((x - jnp.mean(x)) ** 2)


def test_a_formula_that_loses_its_digits_in_float32_is_seen_and_a_sensitive_question_is_not_blamed():
    arguments = {"x": 1e4 + np.linspace(-1, 1, 7)}
    for function, holds in ((variance_by_cancellation, False), (variance_of_deviations, True)):
        narrow, exact = (precision.outputs(function, arguments, wide) for wide in (False, True))
        assert precision._compared("f", function, arguments, narrow, exact).holds == holds


def test_draws_are_the_same_in_both_precisions(key):
    def drawn(wide):
        with jax.enable_x64(wide):
            found = [getattr(jax.random, name)(key, *more) for name, more in DRAWN]
            return [np.asarray(each, np.float64) for each in found]

    with precision.same_draws():
        for one, other in zip(drawn(False), drawn(True), strict=True):
            np.testing.assert_array_equal(one, other)
    assert not np.array_equal(drawn(False)[0], drawn(True)[0])


DRAWN = [("normal", ((3,),)), ("uniform", ((3,), None, -1.0, 2.0)), ("truncated_normal", (-2.0, 2.0, (3,)))]
DRAWN += [("gumbel", ((3,),)), ("bernoulli", (0.3, (3,))), ("rademacher", ((3,), float))]


def test_a_figure_that_is_not_a_number_does_not_hold():
    nan = float("nan")
    assert not verification.below("x", nan, 1.0, "").holds
    assert not verification.above("x", nan, 1.0, "").holds
    assert not verification.near("x", nan, 1.0, 0.1, "").holds
    assert verification.furthest([1.0, nan, 2.0], 1.0) != verification.furthest([1.0, 2.0], 1.0)
