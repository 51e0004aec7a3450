"""Order of convergence of every scheme, on manufactured non-autonomous problems."""

import dataclasses
from fractions import Fraction

import jax.numpy as jnp
import numpy as np

from numdl.ode import convergence, integrate, schemes, tableaus
from tests.ode import test_integrate as oracle
from tests.verification import above, furthest, near, study


def cases():
    """name -> (declared order, settings of the integration): every tableau and every other scheme."""
    of_tableaus = {t.name: (t.order, {"tableau": t, **(oracle.SCALAR if t.order == 5 else {})}) for t in tableaus.ALL}
    of_schemes = {name: (how["scheme"].order, how) for name, how in oracle.SCHEMES.items()}
    companions = {
        made.name: (made.order, {"tableau": made, **oracle.SCALAR} if made.order == 4 else {"tableau": made})
        for made in (tableaus.companion(t) for t in tableaus.ALL if t.embedded is not None)
    }
    return of_tableaus | of_schemes | companions


@study("Order of convergence")
def orders(full):
    """Relative error at the end against the exact solution, slopes between neighbouring numbers of steps."""
    chosen = cases() if full else {name: cases()[name] for name in ("heun", "verlet")}
    for name, (declared, how) in chosen.items():
        steps = oracle.grid(5 if how.get("t1") == oracle.SCALAR["t1"] else declared)
        found = oracle.order_of(steps, **how)
        slope = furthest(found.pairwise, declared) if found.used.all() else np.nan
        yield near(f"{name}, order {declared}", slope, declared, 0.1, f"{steps[0]} to {steps[-1]} steps")
    if full:
        yield from _constants()
        yield from _planted()


def _constants():
    rate, steps = -1.3, (512, 1024, 2048, 4096)
    end = [
        integrate.endpoint(oracle.linear, jnp.ones(()), jnp.asarray(rate), tableau=tableaus.euler, t1=oracle.T, steps=n)
        for n in steps
    ]
    found = convergence.observed_order(np.abs(np.array(end) / np.exp(rate * oracle.T) - 1), steps)
    leading = rate**2 * oracle.T**2 / 2  # relative error = h rate^2 T / 2, h = T / steps
    measured = found.constant * steps[-1] ** (1 - found.value) / leading
    yield near("euler, error constant / leading term", measured, 1.0, 0.05, f"y' = {rate} y, {steps[-1]} steps")


def _planted():
    forgetful = schemes.runge_kutta(tableaus.midpoint)._replace(step=oracle.forget_time)
    gap = abs(oracle.order_of(oracle.grid(2), scheme=forgetful).pairwise[-1] - 2)
    yield above("planted: midpoint rule that forgets t + h/2", gap, 0.5, "distance from order 2")
    bend, b = Fraction(1, 1000), tableaus.rk4.b
    bent = dataclasses.replace(tableaus.rk4, b=(b[0] + bend, *b[1:3], b[3] - bend))
    gap = abs(oracle.order_of([128, 256, 512], tableau=bent).pairwise[-1] - 4)
    yield above("planted: rk4 with weights off by 1e-3", gap, 1.0, "distance from order 4")
