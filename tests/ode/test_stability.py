"""Stability limits against closed forms, amplification against the method itself run in plain numpy."""

import numpy as np
import pytest
from scipy.linalg import expm

from numdl.ode import stability, tableaus

REAL = {
    "euler": 2, "midpoint": 2, "heun": 2, "ralston": 2, "ssprk3": 2.512745326618328624, "kutta3": 2.512745326618328624,
    "rk4": 2.7852935634052816235, "three_eighths": 2.7852935634052816235, "bogacki_shampine": 2.512745326618328624,
    "implicit_midpoint": np.inf, "gauss_legendre4": np.inf,
}  # fmt: skip
IMAGINARY = {
    "euler": 0, "midpoint": 0, "heun": 0, "ralston": 0, "ssprk3": np.sqrt(3), "kutta3": np.sqrt(3),
    "rk4": 2 * np.sqrt(2), "three_eighths": 2 * np.sqrt(2), "bogacki_shampine": np.sqrt(3),
    "implicit_midpoint": np.inf, "gauss_legendre4": np.inf,
}  # fmt: skip


def step(tableau, z):
    """One step on y' = z y from y = 1, by solving the stage equations."""
    stages = np.linalg.solve(np.eye(tableau.stages) - z * tableau.matrix, np.ones(tableau.stages))
    return 1 + z * tableau.weights @ stages


@pytest.mark.parametrize("tableau", tableaus.ALL, ids=lambda t: t.name)
def test_amplification_is_one_step(tableau):
    z = np.array([[0, -1, 1j], [-2 + 1j, 0.3, -5 - 3j]])
    got = stability.amplification(tableau, z)
    assert got.shape == z.shape
    np.testing.assert_allclose(got, [[step(tableau, w) for w in row] for row in z], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("tableau", tableaus.ALL, ids=lambda t: t.name)
def test_amplification_is_exp_to_the_order(tableau):
    z = 0.1j * np.exp(1j)
    error = [abs(stability.amplification(tableau, w) - np.exp(w)) for w in (z, z / 2)]
    assert abs(np.log2(error[0] / error[1]) - (tableau.order + 1)) < 0.1


@pytest.mark.parametrize("tableau", [t for t in tableaus.ALL if t.name in REAL], ids=lambda t: t.name)
def test_limits_against_closed_forms(tableau):
    np.testing.assert_allclose(stability.real_interval(tableau), REAL[tableau.name], rtol=1e-12)
    np.testing.assert_allclose(stability.imaginary_interval(tableau), IMAGINARY[tableau.name], rtol=1e-12)


def test_dormand_prince_limits():
    # |R(iy)|^2 - 1 with R = 1 + z + ... + z^5/120 + z^6/600 written out by hand, and its first positive root.
    real, imaginary = np.poly1d([-1 / 600, 0, 1 / 24, 0, -1 / 2, 0, 1]), np.poly1d([1 / 120, 0, -1 / 6, 0, 1, 0])
    excess = real**2 + imaginary**2 - 1
    roots = excess.roots[(np.abs(excess.roots.imag) < 1e-9) & (excess.roots.real > 0.5)].real
    np.testing.assert_allclose(stability.imaginary_interval(tableaus.dormand_prince), roots.min(), rtol=1e-10)
    assert abs(stability.imaginary_interval(tableaus.dormand_prince) - 0.997) < 5e-4
    assert stability.imaginary_interval(tableaus.companion(tableaus.dormand_prince)) == 0


@pytest.mark.parametrize("tableau", tableaus.ALL, ids=lambda t: t.name)
def test_limits_are_where_the_modulus_passes_one(tableau):
    for limit, direction in ((stability.real_interval(tableau), -1), (stability.imaginary_interval(tableau), 1j)):
        inside = np.linspace(0, min(limit, 50), 2001) * direction
        assert np.abs(stability.amplification(tableau, inside)).max() <= 1 + 1e-13
        if 0 < limit < np.inf:
            assert abs(stability.amplification(tableau, 1.001 * limit * direction)) > 1 + 1e-8


@pytest.mark.parametrize("tableau", tableaus.ALL, ids=lambda t: t.name)
def test_boundary_has_modulus_one_and_is_connected(tableau):
    boundary = stability.region_boundary(tableau, points=300)
    assert boundary.shape[0] == 300
    finite = boundary[np.isfinite(boundary)]
    np.testing.assert_allclose(np.abs(stability.amplification(tableau, finite)), 1, atol=1e-9)
    assert np.abs(finite).min() < 1e-12  # through the origin
    if tableau.name == "euler":
        np.testing.assert_allclose(np.abs(boundary + 1), 1, atol=1e-14)
        assert np.abs(np.diff(boundary[:, 0])).max() < 1.01 * 2 * np.pi / 300
    if tableau.name == "implicit_midpoint":
        np.testing.assert_allclose(finite.real, 0, atol=1e-9)


@pytest.mark.parametrize("gamma, omega", [(0.1, 1.0), (0.5, 3.0), (2.0, 0.3)])
def test_euler_on_a_damped_antisymmetric_matrix(gamma, omega):
    matrix = np.array([[-gamma, omega], [-omega, -gamma]])
    h = stability.largest_step(tableau=tableaus.euler, eigenvalues=np.linalg.eigvals(matrix))
    np.testing.assert_allclose(h, 2 * gamma / (gamma**2 + omega**2), rtol=1e-12)
    powers = [np.linalg.norm(np.linalg.matrix_power(np.eye(2) + f * h * matrix, 3000)) for f in (0.99, 1.01)]
    assert powers[0] < 1 < powers[1]


def test_antisymmetric_without_damping():
    a = np.random.default_rng(0).normal(size=(60, 60))
    eigenvalues = np.linalg.eigvals(a - a.T)
    radius = np.abs(eigenvalues).max()
    for tableau, limit in IMAGINARY.items():
        h = stability.largest_step(tableau=getattr(tableaus, tableau), eigenvalues=eigenvalues)
        np.testing.assert_allclose(h * radius, limit, rtol=1e-10)
    for h in (1.0, 1e-2, 1e-4):  # every step grows by sqrt(1 + h^2 w^2), however small
        assert abs(stability.amplification(tableaus.euler, 1j * h)) > 1


def test_largest_step_of_other_spectra():
    assert stability.largest_step(tableau=tableaus.rk4, eigenvalues=[0.0, -1.0, -10.0]) == pytest.approx(0.27852935634)
    assert stability.largest_step(tableau=tableaus.rk4, eigenvalues=[-1.0, 1e-3]) == 0
    assert stability.largest_step(tableau=tableaus.rk4, eigenvalues=[0.0]) == np.inf
    assert stability.largest_step(tableau=tableaus.gauss_legendre4, eigenvalues=[-1e9, 5j]) == np.inf


@pytest.mark.parametrize("ord", [1, 2, np.inf])
def test_logarithmic_norm_is_the_limit(ord):
    a = np.random.default_rng(1).normal(size=(3, 5, 5))
    got = stability.logarithmic_norm(a, ord=ord)
    h = 1e-7
    wanted = [(np.linalg.norm(np.eye(5) + h * m, ord) - 1) / h for m in a]
    np.testing.assert_allclose(got, wanted, rtol=1e-5)
    for matrix, mu in zip(a, got, strict=True):
        assert np.linalg.norm(expm(0.7 * matrix), ord) <= np.exp(0.7 * mu) * (1 + 1e-12)


def test_logarithmic_norm_of_an_antisymmetric_matrix():
    a = np.random.default_rng(2).normal(size=(6, 6))
    assert abs(stability.logarithmic_norm(a - a.T - 0.3 * np.eye(6)) + 0.3) < 1e-14


def test_errors_name_argument_and_value():
    with pytest.raises(ValueError, match=r"eigenvalues must be finite.*got \(nan"):
        stability.largest_step(tableau=tableaus.rk4, eigenvalues=[np.nan])
    with pytest.raises(TypeError, match=r"tableau must be a Tableau.*got 3"):
        stability.amplification(3, 1.0)
    with pytest.raises(ValueError, match=r"ord must be one of 1, 2, inf; got 3"):
        stability.logarithmic_norm(np.eye(2), ord=3)
    with pytest.raises(ValueError, match=r"matrix must have shape \(\.\.\., n, n\); got \(2, 3\)"):
        stability.logarithmic_norm(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"points must be an integer >= 2; got 1"):
        stability.region_boundary(tableaus.rk4, points=1)
