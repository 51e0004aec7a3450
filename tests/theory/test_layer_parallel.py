"""Bounds of parareal and multigrid against dense matrices of their errors; the speed-up against a schedule by hand."""

import math

import numpy as np
import pytest

from numdl.theory import layer_parallel

SLICES = 7
RNG = np.random.default_rng(3)
MODES = [(0.9, 0.7), (0.3, -0.5), (0.8 + 0.5j, 0.6 + 0.9j), (1.1, 1.2), (0.5, 1.0), (0.4, 0.4)]


def propagator(fine, coarse, relaxations=0):
    """The matrix of one iteration's error, column by column from the iteration itself, in plain Python."""
    columns = []
    for column in np.eye(SLICES):
        old = [0.0, *column]  # nothing is wrong at the beginning of the first slice
        for _ in range(relaxations):
            old = [0.0, *(fine * e for e in old[:-1])]
        new = [0.0]
        for n in range(SLICES):
            new.append(fine * old[n] + coarse * new[n] - coarse * old[n])
        columns.append(new[1:])
    return np.array(columns).T


@pytest.mark.parametrize("fine, coarse", MODES)
def test_bounds_hold_and_the_sharp_one_is_attained(fine, coarse):
    matrix = propagator(fine, coarse)
    bound = layer_parallel.parareal(abs(fine - coarse), abs(coarse), slices=SLICES, iterations=SLICES)
    for k in range(SLICES + 1):
        norm = np.abs(np.linalg.matrix_power(matrix, k)).sum(axis=1).max()
        assert norm == pytest.approx(bound.sharp[k], rel=1e-12, abs=1e-14)
        assert bound.sharp[k] <= bound.linear[k] * (1 + 1e-12)
        assert bound.sharp[k] <= bound.superlinear[k] * (1 + 1e-12)
    assert bound.superlinear[SLICES] == 0


def test_linear_bound_is_approached_by_many_slices_and_infinite_without_damping():
    many = layer_parallel.parareal(0.2, 0.7, slices=400, iterations=2)
    assert many.sharp == pytest.approx(many.linear, rel=1e-12)
    assert many.linear[1] == pytest.approx(0.2 / 0.3)
    assert math.isinf(layer_parallel.parareal(0.2, 1.0, slices=4, iterations=1).linear[1])


def test_slowest_mode_counts():
    both = layer_parallel.parareal([0.2, 0.1], [0.3, 0.9], slices=SLICES, iterations=4)
    each = [layer_parallel.parareal(d, g, slices=SLICES, iterations=4) for d, g in ((0.2, 0.3), (0.1, 0.9))]
    assert np.array_equal(both.sharp, np.maximum(each[0].sharp, each[1].sharp))


@pytest.mark.parametrize("relaxations", [0, 1, 2])
@pytest.mark.parametrize("fine, coarse", MODES)
def test_multigrid_bounds_the_2_norm_of_a_cycle(fine, coarse, relaxations):
    norm = np.linalg.norm(propagator(fine, coarse, relaxations), 2)
    bound = layer_parallel.multigrid(fine, coarse, slices=SLICES, relaxations=relaxations)
    assert norm <= bound * (1 + 1e-12)
    assert bound <= 3 * norm + 1e-14  # no empty statement
    stacked = layer_parallel.multigrid([fine, 0.1], [coarse, 0.2], slices=SLICES, relaxations=relaxations)
    assert stacked[0] == pytest.approx(float(bound), rel=1e-14)


def test_relaxation_damps_what_the_layers_damp():
    plain, relaxed = (layer_parallel.multigrid(0.1, 0.3, slices=50, relaxations=r) for r in (0, 1))
    assert relaxed == pytest.approx(0.1 * plain, rel=1e-12)


def schedule(layers, slices, devices, iterations, relaxations, layer, coarse, message):
    """Seconds of a run, one stage after the other."""
    clock = slices * coarse  # a sweep to begin with
    stages = ["fine"] + (["fine"] * relaxations + ["guess", "sweep", "fine"]) * iterations
    for stage in stages:
        if stage == "fine":
            clock += layers / devices * layer + message
        elif stage == "guess":
            clock += slices / devices * coarse + message
        else:
            clock += slices * coarse
    return clock


@pytest.mark.parametrize("relaxations", [0, 1])
def test_speed_up_counts_a_schedule(relaxations):
    found = layer_parallel.speed_up(
        layers=1024,
        slices=32,
        devices=8,
        iterations=2,
        relaxations=relaxations,
        layer_seconds=1e-3,
        coarse_seconds=2e-3,
        state_bytes=1e6,
        latency=1e-5,
        bandwidth=1e9,
    )
    message = 7 * (1e-5 + 4 * 1e6 / 1e9)
    wanted = schedule(1024, 32, 8, 2, relaxations, 1e-3, 2e-3, message)
    assert found.parallel == pytest.approx(wanted, rel=1e-12)
    assert found.speed_up == pytest.approx(1.024 / wanted, rel=1e-12)
    assert found.efficiency == pytest.approx(found.speed_up / 8, rel=1e-12)
    assert found.speed_up < found.bound == 8 / (1 + 2 * (1 + relaxations))


def test_bound_is_approached_without_coarse_work_and_one_device_sends_nothing():
    sizes = {"layers": 2**20, "slices": 8, "iterations": 3}
    found = layer_parallel.speed_up(devices=8, coarse_seconds=1e-9, **sizes)
    assert found.speed_up == pytest.approx(float(found.bound), rel=1e-6)
    assert layer_parallel.speed_up(devices=1, latency=1.0, **sizes).gathers == 0


@pytest.mark.parametrize(
    "bad, name",
    [
        ({"slices": 5}, "slices"),
        ({"devices": 3}, "devices"),
        ({"latency": -1.0}, "latency"),
        ({"bandwidth": 0.0}, "bandwidth"),
    ],
)
def test_door(bad, name):
    with pytest.raises(ValueError, match=name):
        layer_parallel.speed_up(**{"layers": 64, "slices": 8, "devices": 4, "iterations": 1, **bad})
    with pytest.raises(ValueError, match="coarse"):
        layer_parallel.parareal([0.1, 0.2], [0.1], slices=3, iterations=1)
    with pytest.raises(ValueError, match="coarse"):
        layer_parallel.multigrid([0.1, 0.2], [0.1], slices=3)
