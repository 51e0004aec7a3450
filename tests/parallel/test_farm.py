"""A sweep's cells: values, files, resuming, failures, executors."""

import concurrent.futures
import dataclasses
import functools
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from numdl import parallel, reporting
from tests.parallel import cells


class Immediate:
    """An executor with nothing but submit -> result."""

    def submit(self, function, argument):
        class Future:
            @staticmethod
            def result():
                return function(argument)

        return Future()


class Dead:
    """An executor whose workers do not return."""

    def submit(self, function, argument):
        class Future:
            @staticmethod
            def result():
                raise ConnectionError("lost")

        return Future()


def configs(folder, widths=(1, 2, 3, 4)):
    return [cells.Config(width, str(folder)) for width in widths]


def test_a_failing_cell_stops_no_other_and_says_why(tmp_path):
    found = parallel.sweep(cells.measured, configs(tmp_path), executor=Immediate())
    assert [bool(cell.problem) for cell in found] == [False, False, True, False]
    assert found[2].value is None
    assert found[2].problem == "ValueError: width 3 is not for me (cells.py, line 28)"
    assert found[3].value["found"]["values"].tolist() == [0, 1, 2, 3]
    assert np.isnan(found[3].value["found"]["share"])
    assert found[3].value["pair"] == [1, "one"]
    assert [cell.config.width for cell in found] == [1, 2, 3, 4]


def test_what_is_finished_is_not_computed_again(tmp_path):
    kept, marks = tmp_path / "kept", tmp_path / "marks"
    marks.mkdir()
    first = parallel.sweep(cells.measured, configs(marks, (1, 3)), executor=Immediate(), folder=kept)
    told = []
    second = parallel.sweep(cells.measured, configs(marks), executor=Immediate(), folder=kept, told=told.append)
    assert [cell.reused for cell in second] == [True, False, False, False]
    assert sorted(name.name.split("-")[1] for name in marks.iterdir()) == ["1", "2", "3", "3", "4"]  # 3 is tried again
    assert second[0].value["found"]["values"].tolist() == first[0].value["found"]["values"].tolist()
    assert np.isnan(second[0].value["found"]["share"])
    assert second[0].value["pair"] == [1, "one"]
    assert len(told) == 4
    assert {path.name for path in kept.iterdir()} == {
        f"{reporting.digest(c)}.npz" for c in configs(marks) if c.width != 3
    }
    cut = kept / f"{second[3].digest}.npz"
    cut.write_bytes(cut.read_bytes()[:50])  # a disk that filled, say
    third = parallel.sweep(cells.measured, configs(marks), executor=Immediate(), folder=kept)
    assert [cell.reused for cell in third] == [True, True, False, False]
    with pytest.raises(
        ValueError, match="folder must hold cells of tests.parallel.cells.other only; got one of .*measured"
    ):
        parallel.sweep(cells.other, configs(marks), executor=Immediate(), folder=kept)


def test_threads_are_an_executor_and_dead_workers_are_told():
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = parallel.sweep(cells.dying, [{"x": 1}, {"x": 3}], executor=pool)
    assert [cell.value for cell in found] == [1, 3]
    (lost,) = parallel.sweep(cells.dying, [{"x": 1}], executor=Dead())
    assert lost.problem.startswith("the worker did not return: ConnectionError: lost")


@pytest.mark.parametrize("make", [lambda rate: functools.partial(cells.scaled, rate=rate), cells.Scaled])
def test_a_folder_never_mixes_what_a_function_holds(tmp_path, make):
    cell = lambda rate: parallel.sweep(make(rate), [{"x": 3.0}], executor=Immediate(), folder=tmp_path)[0]  # noqa: E731
    assert (cell(0.5).value, cell(0.5).value, cell(0.5).reused) == (1.5, 1.5, True)
    with pytest.raises(ValueError, match="folder must hold cells of .* holding "):
        cell(2.0)


def test_a_cell_has_the_callers_precision_and_leaves_the_process_its_own():
    own = bool(jax.config.jax_enable_x64)
    with concurrent.futures.ThreadPoolExecutor(1) as pool, jax.enable_x64(not own):
        (found,) = parallel.sweep(cells.precision, [{"x": 1}], executor=pool)
    assert found.value == ("float32" if own else "float64")
    assert bool(jax.config.jax_enable_x64) == own


@pytest.mark.parametrize("value", [np.ma.masked_equal([1.0, 2.0], 2.0), {1: "a", "1": "b"}], ids=["a mask", "keys"])
def test_what_a_file_would_lose_is_a_problem(value):
    (found,) = parallel.sweep(cells.given, [{"x": 1}], executor=Given(value))
    assert found.value is None and "function(config) must" in found.problem


class Given:
    """An executor that lets a config have what JSON cannot."""

    def __init__(self, value):
        self.value = value

    def submit(self, function, argument):
        return Immediate().submit(function, (argument[0], self.value))


SCRIPT = """
from numdl import parallel

def double(config):
    return 2 * config["x"]

if __name__ == "__main__":
    for _ in range(2):
        (cell,) = parallel.sweep(double, [{"x": 3}], folder="kept", jobs=1)
        print(cell.value, cell.reused, cell.problem)
"""


@pytest.mark.slow
def test_a_script_goes_on_with_its_own_cells(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    told = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, env=os.environ | {"PYTHONPATH": path},
                          capture_output=True, text=True, check=False)  # fmt: skip
    assert told.stdout.split("\n")[:2] == ["6 False ", "6 True "], told.stderr


@pytest.mark.slow
def test_processes_take_the_precision_along_and_a_death_takes_no_other_cell(tmp_path):
    found = parallel.sweep(cells.dying, [{"x": x} for x in range(4)], jobs=2)
    assert [cell.value for cell in found] == [0, 1, None, 3]
    assert found[2].problem == "the process died: killed, or out of memory"
    (wide,) = parallel.sweep(cells.precision, [{"x": 1}], jobs=1)
    assert wide.value == cells.precision(None)


@pytest.mark.slow
def test_dask_on_loopback(tmp_path):
    distributed = pytest.importorskip("distributed")
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None)
    with cluster, distributed.Client(cluster) as client:
        found = parallel.sweep(cells.measured, configs(tmp_path), executor=client, folder=tmp_path / "kept")
    assert [bool(cell.problem) for cell in found] == [False, False, True, False]
    again = parallel.sweep(cells.measured, configs(tmp_path, (1, 2, 4)), executor=Dead(), folder=tmp_path / "kept")
    assert all(cell.reused for cell in again)


def test_bad_sweeps_are_refused():
    refused = {
        "configs must differ": {"configs": [{"x": 1}, {"x": 1}]},
        r"configs\[1\] must be a dataclass": {"configs": [{"x": 1}, 3]},
        r"configs\[0\] must be of a module": {"configs": [dataclasses.make_dataclass("Nowhere", ["x"])(1)]},
        "function must be of a module": {"function": lambda config: 1},
        "executor must have submit": {"executor": 3},
        "jobs must be an integer >= 1": {"jobs": 0},
    }
    for message, bad in refused.items():
        with pytest.raises((ValueError, TypeError), match=message):
            parallel.sweep(**{"function": cells.other, "configs": [{"x": 1}], **bad})
