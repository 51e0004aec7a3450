"""The benchmark's runner: rows for all that works and all that does not, ratios, JSON whole at any time."""

import json
import math
import sys

import jax
import numpy as np
import pytest

from benchmarks import __main__ as program
from benchmarks import gpu, runner, table
from tests import broken_benchmark as broken

MODULE = "tests.broken_benchmark"


@pytest.fixture(scope="module")
def found():
    pythons = {"here": sys.executable, "torch": None, "tangents": "/no/such/python"}
    settings = runner.Settings(rounds=3, tiny=True, growth=True, pythons=pythons)
    return runner.measure(MODULE, broken.WORKLOADS[0], settings)


@pytest.fixture(scope="module")
def rows(found):
    return {row["side"]: row for row in found["rows"]}


def test_every_side_is_a_row_in_its_place(found):
    assert [row["side"] for row in found["rows"]] == [side.name for side in broken.SIDES]


@pytest.mark.parametrize("name", ["numdl", "limit: the same", "chatty", "large"])
def test_what_works_is_measured(rows, name):
    row = rows[name]
    assert row["problem"] is None and row["rounds"] == 3 and row["numbers"] == [45.0]
    assert row["difference"] == 0 and row["agrees"]
    for middle, low, high in (row["cpu"], row["ratio"]):
        assert 0 < low <= middle <= high


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("raises", "ValueError: no such thing"),
        ("misses a package", "a_package_that_nobody_has"),
        ("fails later", "worn out"),
        ("dies", "ended with code 3"),
        ("elsewhere", "bench-peers"),
        ("no such Python", "/no/such/python"),
    ],
)
def test_what_fails_says_why_and_has_no_numbers(rows, name, word):
    assert word in rows[name]["problem"] and "\n" not in rows[name]["problem"]
    assert "cpu" not in rows[name]


@pytest.mark.parametrize("name", ["wrong", "nan"])
def test_other_numbers_are_marked_and_do_not_count(found, rows, name):
    assert rows[name]["agrees"] is False and rows[name]["difference"] >= 1
    assert found["over_fastest_peer"] == pytest.approx(1 / min(rows[n]["ratio"][0] for n in ("chatty", "large")))


def test_memory_is_that_of_a_call(rows):
    assert 70e6 < rows["large"]["peak_bytes"] < 200e6 and rows["large"]["planned_bytes"] == 80_000_000
    assert rows["numdl"]["peak_bytes"] < 40e6


def test_growth_is_a_slope_beside_the_demanded_one(found):
    (law,) = found["growth"]
    assert law["size"] == "count" and law["demanded"] == 1 and len(law["cpu"]) == 3
    assert law["slope"] == pytest.approx(np.log2(law["cpu"][2] / law["cpu"][1]))


def test_a_broken_numdl_leaves_rows_without_ratios():
    settings = runner.Settings(rounds=2, tiny=True)
    found = runner.measure(MODULE, broken.WORKLOADS[2], settings)
    assert found["rows"][0]["problem"] and "ratio" not in found["rows"][1] and found["met"] is None
    assert any("ValueError" in line for line in table.text(found))
    assert any("failed" in line for line in table.summary([found]))


def test_a_side_that_does_not_answer_is_ended():
    found = runner.measure(MODULE, broken.WORKLOADS[1], runner.Settings(limit=1.0, tiny=True))
    assert found["rows"][0]["problem"] == "no answer in 1 s"


def test_tables_hold_every_row(found):
    text, page = "\n".join(table.text(found)), "\n".join(table.markdown({"workloads": [found]}))
    for side in broken.SIDES:
        assert side.name in text and f"| {side.name}" in page
    assert page.count("|\n") >= len(broken.SIDES) and "slope" in text


def test_the_file_is_json_and_whole(found, tmp_path):
    path = tmp_path / "new" / "rows.json"
    runner.save(path, {"workloads": [found]})
    runner.save(path, {**runner.machine(), "workloads": [found, found]})
    again = json.loads(path.read_text())
    assert len(again["workloads"]) == 2 and again["cpus"] >= 1
    assert [entry.name for entry in path.parent.iterdir()] == ["rows.json"]


def test_spread_and_difference_by_hand():
    assert runner._spread([3.0, 1.0, 2.0, 5.0, 4.0]) == [3.0, 2.0, 4.0] and runner._spread([7.0]) == [7.0] * 3
    assert runner._difference([1.0, 2.0], [1.0, 4.0]) == 0.5
    assert runner._difference([1.0], [1.0, 2.0]) == math.inf and runner._difference([np.nan], [1.0]) == math.inf


def test_the_verdict_needs_limit_and_peer():
    def row(side, ratio, agrees=True):
        return {"side": side, "ratio": [ratio, ratio, ratio], "agrees": agrees}

    numdl = row("numdl", 1.0)
    told = runner._verdict([numdl, row("numdl, other", 0.1), row("limit: a", 0.9), row("b", 1.5), row("c", 0.5, False)])
    assert told["over_limit"] == pytest.approx(1 / 0.9) and told["over_fastest_peer"] == pytest.approx(1 / 1.5)
    assert told["met"] is True
    assert runner._verdict([numdl, row("limit: a", 0.5), row("b", 1.5)])["met"] is False
    assert runner._verdict([numdl])["met"] is None


def test_every_family_has_numdl_first_and_tiny_sizes_for_all():
    for family in program.FAMILIES:
        module = __import__(f"benchmarks.{family}", fromlist=["WORKLOADS"])
        names = [workload.name for workload in module.WORKLOADS]
        assert len(set(names)) == len(names)
        for workload in module.WORKLOADS:
            sides = [side.name for side in workload.sides]
            assert sides[0].startswith("numdl") and len(set(sides)) == len(sides)
            assert set(workload.sizes) == set(workload.tiny) and set(workload.laws) <= set(workload.sizes)
            assert {side.python for side in workload.sides} <= {"here", "torch", "tangents"}
            workload.problem(**workload.tiny)


def test_a_wrong_name_lists_the_right_ones(capsys):
    assert program.main(["kernel"]) == 2
    assert "kernels" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in program.FAMILIES if name != "imports"])
def test_numdl_and_the_limits_run_and_agree(family, tmp_path):
    path = tmp_path / "rows.json"
    sides = ["numdl", "limit", "jvp", "plain", "contraction"]
    assert program.main([family, "--tiny", "--rounds", "2", "--json", str(path), "--sides", *sides]) == 0
    for workload in json.loads(path.read_text())["workloads"]:
        for row in workload["rows"]:
            assert row["problem"] is None or "not installed" in row["problem"], row
            # Gauss-Hermite is here because it is wrong, and so it may be.
            assert row.get("agrees") is not False or "Gauss-Hermite" in row["side"], row


def test_without_an_accelerator_it_says_so_and_passes(capsys):
    assert gpu.main([]) == 0
    assert "no accelerator" in capsys.readouterr().out


@pytest.mark.slow
def test_what_an_accelerator_would_run_runs_here():
    found, flops, params = gpu.calls("AlexNet", "float32", tiny=True)
    assert list(found)[::5] == ["gradient", "audit"] and flops > 2 * sum(leaf.size for leaf in jax.tree.leaves(params))
    assert gpu.rate("float32", 64, rounds=1) > 1e6
    assert np.isfinite(found["probe"]()) and found["tangent kernel, 2 examples"]().shape == (2, 2)
    for by in gpu.errors().values():
        assert by["float64"] < 1e-10 and 1e-9 < by["float32"] < 1e-3 and by["float32"] < by["bfloat16"]
