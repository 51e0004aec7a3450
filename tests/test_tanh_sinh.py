"""Expectations with poles and fast growth: the right value, inf where it is infinite, nan where there is none."""

import jax.numpy as jnp
import numpy as np
import pytest
from mpmath import mp

from numdl import quadrature

EULER = -(np.euler_gamma + np.log(2)) / 2


def power(a):
    """E |z|^a."""
    return float(2 ** (mp.mpf(a) / 2) * mp.gamma((mp.mpf(a) + 1) / 2) / mp.sqrt(mp.pi))


INTEGRABLE = {
    "logarithm": (lambda x: jnp.log(jnp.abs(x)), (), lambda q: EULER + np.log(q) / 2),
    "logarithm, named": (lambda x: jnp.log(jnp.abs(x)), (0.0,), lambda q: EULER + np.log(q) / 2),
    "its square": (lambda x: jnp.log(x**2) ** 2, (), lambda q: 4 * ((EULER + np.log(q) / 2) ** 2 + np.pi**2 / 8)),
    "inverse root": (lambda x: jnp.abs(x) ** -0.5, (), lambda q: power(-0.5) * q**-0.25),
    "near the edge": (lambda x: jnp.abs(x) ** -0.9, (), lambda q: power(-0.9) * q**-0.45),
    "root": (lambda x: jnp.abs(x) ** 0.5, (0.0,), lambda q: power(0.5) * q**0.25),
    "removable": (lambda x: jnp.sin(x) / x, (), lambda q: np.sqrt(np.pi / (2 * q)) * mp.erf(np.sqrt(q / 2))),
    "x log x": (lambda x: x * jnp.log(jnp.abs(x)) * x, (), lambda q: q * (EULER + np.log(q) / 2 + 1)),
    "growth": (lambda x: jnp.exp(8 * x), (), lambda q: np.exp(32 * q)),
    "fast growth": (lambda x: jnp.exp(x**2 / 10), (), lambda q: (1 - q / 5) ** -0.5),
    "high power": (lambda x: x**20, (), lambda q: 654729075.0 * q**10),
}


@pytest.mark.parametrize("name", INTEGRABLE)
def test_what_is_integrable_comes_out_right(name):
    f, kinks, exact = INTEGRABLE[name]
    q = np.array([0.3, 2.0])
    found, wanted = quadrature.expectation(f, q, kinks=kinks), np.array([float(exact(one)) for one in q])
    assert found.converged.all()
    np.testing.assert_allclose(found.value, wanted, rtol=1e-10)
    assert (abs(found.value - wanted) <= found.error + 1e-14 * abs(wanted)).all()


@pytest.mark.parametrize("kinks", [(), (0.0,)])
@pytest.mark.parametrize(
    ("f", "wanted"),
    [
        (lambda x: 1 / jnp.abs(x), np.inf),
        (lambda x: -1 / x**2, -np.inf),
        (lambda x: 1 / x, np.nan),
        (jnp.log, np.nan),
        (jnp.sqrt, np.nan),
        (lambda x: jnp.exp(x**2 / 2), np.inf),
        (lambda x: -jnp.exp(x**2), -np.inf),
        (lambda x: jnp.sinh(x**3), np.nan),
    ],
)
def test_what_is_not_integrable_says_so(f, wanted, kinks):
    found = quadrature.expectation(f, 1.0, kinks=kinks)
    np.testing.assert_equal(float(found.value), wanted)
    assert not found.converged and found.error == np.inf


def test_a_pole_elsewhere_is_right_where_it_is_named_and_doubtful_where_not():
    def f(x):
        return jnp.log(jnp.abs(x - 0.3))

    wanted = float(mp.quad(lambda z: mp.log(abs(z - 0.3)) * mp.npdf(z), [-mp.inf, 0, 0.3, 1, mp.inf]))
    named, unnamed = (quadrature.expectation(f, 1.0, kinks=kinks) for kinks in ((0.3,), ()))
    assert named.converged and abs(named.value - wanted) < 1e-12
    assert not unnamed.converged and abs(unnamed.value - wanted) < unnamed.error


def test_variance_zero_is_the_value_at_zero():
    found = quadrature.expectation(lambda x: jnp.log(jnp.abs(x)), [0.0, 1.0])
    assert found.value[0] == -np.inf and not found.converged[0]
    assert found.converged[1] and found.value[1] == pytest.approx(EULER, abs=1e-13)


@pytest.mark.parametrize("kinks", [(), (0.0,)])
@pytest.mark.slow
def test_a_product_with_poles_is_doubtful(kinks):
    def f(x):
        return jnp.log(jnp.abs(x))

    found = quadrature.product_expectation(f, f, 1.0, 1.0, 0.5, kinks_f=kinks, kinks_g=kinks)
    wanted = EULER**2 + np.arcsin(0.5) ** 2 / 2
    assert not found.converged and abs(found.value - wanted) < found.error


def test_a_product_that_grows_beyond_the_reach_is_doubtful():
    assert not quadrature.product_expectation(jnp.exp, jnp.exp, 60.0, 60.0, 0.9).converged
