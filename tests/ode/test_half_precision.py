"""Half-precision states over many steps: what comes out is right to half precision, the gradients too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.ode import adjoint_audit, adjoints, convergence, integrate, refinement, schemes, tableaus
from numdl.precision import wide

HALF = (jnp.bfloat16, jnp.float16)
STEPS = 1000


def decay(t, y, rate):
    return -rate * y


def spring(t, y, rate):
    return -rate * y


def units(dtype, count=3):
    """A tolerance of this many units of rounding."""
    return count * float(jnp.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("tableau", [tableaus.euler, tableaus.rk4, tableaus.implicit_midpoint], ids=lambda t: t.name)
def test_a_thousand_steps_do_not_stand_still(dtype, tableau):
    found = integrate.trajectory(decay, jnp.ones(2, dtype), jnp.ones((), dtype), t1=1.0, steps=STEPS, tableau=tableau)
    states = np.asarray(found.states, np.float64)
    assert found.states.dtype == dtype and found.converged
    np.testing.assert_allclose(states[:, 0], np.exp(-np.asarray(found.times, np.float64)), rtol=units(dtype))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("adjoint", ["direct", "checkpointed", "square_root", "binomial", "backsolve"])
def test_the_gradient_of_shared_parameters_is_a_sum_over_all_steps(dtype, adjoint):
    adjoint = adjoints.binomial(snapshots=9) if adjoint == "binomial" else getattr(adjoints, adjoint)

    def end(y0, rate):
        y = integrate.endpoint(decay, y0, rate, t1=1.0, steps=STEPS, tableau=tableaus.euler, adjoint=adjoint)
        return y[0].astype(float)

    by_y0, by_rate = jax.grad(end, (0, 1))(jnp.ones(1, dtype), jnp.ones((), dtype))
    assert by_y0.dtype == by_rate.dtype == dtype
    np.testing.assert_allclose([float(by_y0[0]), -float(by_rate)], np.exp(-1), rtol=units(dtype) + 1e-3)


@pytest.mark.parametrize("dtype", HALF)
def test_small_cotangents_do_not_underflow(dtype):
    def end(rate):
        y = integrate.endpoint(decay, jnp.ones(1, dtype), rate, t1=1.0, steps=STEPS, tableau=tableaus.euler)
        return 1e-3 * y[0].astype(float)

    assert float(jax.grad(end)(jnp.ones((), dtype))) == pytest.approx(-1e-3 * np.exp(-1), rel=units(dtype) + 2e-3)


@pytest.mark.parametrize("dtype", HALF)
def test_reversible_schemes_and_their_adjoint(dtype):
    start = jnp.ones(1, dtype), jnp.zeros(1, dtype)
    options = {"scheme": schemes.leapfrog, "t1": 1.0, "steps": STEPS}

    def end(rate):
        return integrate.endpoint(spring, start, rate, adjoint=adjoints.reversible, **options)[0][0].astype(float)

    value, slope = jax.value_and_grad(end)(jnp.ones((), dtype))
    assert float(value) == pytest.approx(np.cos(1), rel=units(dtype))
    assert float(slope) == pytest.approx(-np.sin(1) / 2, rel=units(dtype))
    back = integrate.invert(spring, (jnp.asarray([np.cos(1)], dtype), jnp.asarray([-np.sin(1)], dtype)), 1.0, **options)
    assert back[0].dtype == dtype and float(back[0][0]) == pytest.approx(1.0, abs=units(dtype))


@pytest.mark.parametrize("interpolation", ["constant", "linear"])
def test_parameters_in_time(interpolation):
    rates = jnp.ones(STEPS + (interpolation == "linear"), jnp.bfloat16)

    def end(rates):
        options = {"t1": 1.0, "steps": STEPS, "tableau": tableaus.euler, "interpolation": interpolation}
        return integrate.endpoint(decay, jnp.ones(1, jnp.bfloat16), rates, **options)[0].astype(float)

    value, slopes = jax.value_and_grad(end)(rates)
    assert slopes.dtype == jnp.bfloat16
    np.testing.assert_allclose([value, -np.asarray(slopes, float).sum()], np.exp(-1), rtol=0.01)


def test_semi_implicit_and_adaptive():
    half = jnp.bfloat16
    scheme = schemes.semi_implicit(jnp.ones((1, 1), half))
    still = integrate.endpoint(lambda t, y, _: 0 * y, jnp.ones(1, half), (), t1=1.0, steps=STEPS, scheme=scheme)
    found = integrate.adaptive(decay, jnp.ones(1, half), jnp.ones((), half), t1=1.0, rtol=1e-4, atol=1e-4)
    assert still.dtype == found.states.dtype == half and found.converged
    np.testing.assert_allclose([float(still[0]), float(found.states[0, 0])], np.exp(-1), rtol=0.01)


def test_a_state_that_leaves_the_range_of_its_dtype_has_not_converged():
    found = integrate.trajectory(decay, jnp.ones(1, jnp.float16), -12.0, t1=1.0, steps=100, tableau=tableaus.rk4)
    assert not found.converged and np.isinf(np.asarray(found.states[-1], float)).all()


def test_refinement_in_bfloat16_is_float32_rounded_once():
    coarse = jnp.asarray([[0.0], [1.0], [3.0]], jnp.bfloat16)
    fine = refinement.prolong(coarse, steps=1200, interpolation="linear")
    wanted = np.interp(np.arange(1201) / 600, [0, 1, 2], [0.0, 1.0, 3.0])
    np.testing.assert_allclose(np.asarray(fine, float)[:, 0], wanted, rtol=units(jnp.bfloat16, 1))
    steps = jnp.arange(1, 601, dtype=jnp.float32).astype(jnp.bfloat16)
    mean = refinement.restrict(steps, steps=1, interpolation="constant")
    assert float(mean[0]) == pytest.approx(np.asarray(steps, float).mean(), rel=units(jnp.bfloat16, 1))


def test_errors_between_half_precision_solutions():
    coarse, fine = jnp.asarray([1.5], jnp.bfloat16), jnp.asarray([1.25], jnp.bfloat16)
    better = convergence.richardson(coarse, fine, order=1)
    assert better.value.dtype == jnp.bfloat16 and float(better.value[0]) == 1.0 and float(better.error) == 0.25


def test_the_dot_product_test_judges_in_float32(key):
    rates = jnp.asarray([1.0, 0.5], jnp.bfloat16)

    def end(rates):
        return integrate.endpoint(decay, jnp.ones(2), rates, t1=1.0, steps=50, tableau=tableaus.euler)

    found = adjoint_audit.dot_product_test(end, rates, key=key, pairs=3)
    assert found.holds and found.tolerance < 0.01


def test_widths_of_accumulators():
    pairs = [(jnp.bfloat16, "float32"), (jnp.float16, "float32"), ("float32", "float32"), ("float64", "float64")]
    pairs += [("complex64", "complex64"), ("int32", "float32"), (jnp.float8_e4m3fn, "float32")]
    assert [str(wide(dtype)) for dtype, _ in pairs] == [name for _, name in pairs]
