"""The list of planted faults fits the source: each stands in it once, has tests, and changes something."""

import json

import pytest

from tests.verification import mutants

LIST = mutants.read()


def test_the_list_is_long_and_has_every_kind():
    assert len(LIST) >= 100
    packages = {mutant["file"].split("/")[0] for mutant in LIST if "/" in mutant["file"]}
    assert packages >= {"theory", "analysis", "krylov", "ode", "optimize", "networks", "tracing"}
    kinds = {mutant["kind"] for mutant in LIST}
    wanted = {"wrong sign", "missing 1/2", "swapped axes", "variance for deviation", "off by one in depth"}
    assert kinds >= wanted | {"fan_in for fan_out", "wrong conjugate", "lost factor N"}


@pytest.mark.parametrize("mutant", LIST, ids=lambda mutant: f"{mutant['file']}: {mutant['new']}"[:90])
def test_a_fault_stands_in_the_source_once_and_has_its_tests(mutant):
    assert mutants.occurrences(mutant) == 1
    assert mutant["old"] != mutant["new"]
    assert all((mutants.ROOT / "tests" / test).is_file() for test in mutant["tests"])


def test_the_tests_that_noticed_are_quick_ones():
    """A test that goes to the long suite lets the fault through that it alone noticed: ask `--open` then."""
    known = json.loads(mutants.FIGURES.read_text(encoding="utf-8"))
    slow = (mutants.ROOT / "tests" / "long_suite.txt").read_text(encoding="utf-8").splitlines()
    assert {figure["by"] for figure in known.values()}.isdisjoint(slow)
    assert all(figure["verdict"] == "caught" for figure in known.values())


def test_a_copy_is_whole_again_after_a_fault(tmp_path):
    mutant = LIST[0]
    path = tmp_path / "numdl" / mutant["file"]
    path.parent.mkdir(parents=True)
    text = (mutants.ROOT / "numdl" / mutant["file"]).read_text(encoding="utf-8")
    path.write_text(text, encoding="utf-8")
    with mutants.planted(mutant, tmp_path):
        assert mutants.occurrences(mutant, tmp_path) == 0
    assert path.read_text(encoding="utf-8") == text
