"""The table of the lectures' systems holds: functions and experiments exist, no experiment of a lecture is left out."""

import importlib
import importlib.util
import pathlib
import re

import pytest

from experiments import runner

ROOT = pathlib.Path(__file__).resolve().parent.parent


def _module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LECTURES = _module(ROOT / "docs" / "lectures.py")
TABLE = LECTURES.load()
SYSTEMS = TABLE["system"]
SHOWN = {name.split("_")[0]: runner.headings(name)["Lecture"] for name in runner.names()}


def found(name):
    """What 'networks.dense.network' names, imported as a user would."""
    module, _, function = name.rpartition(".")
    return getattr(importlib.import_module(f"numdl.{module}"), function)


@pytest.mark.parametrize("name", sorted({name for row in SYSTEMS for name in row["functions"]}))
def test_every_function_is_there(name):
    assert callable(found(name))


@pytest.mark.parametrize("row", SYSTEMS, ids=lambda row: row["name"])
def test_every_system_has_functions_and_experiments_that_name_a_lecture(row):
    assert set(row) == {"name", "functions", "experiments"}
    assert row["functions"], "a system that nothing computes"
    assert row["experiments"], "a system without an experiment"
    assert len(set(row["functions"])) == len(row["functions"])
    silent = [short for short in row["experiments"] if not SHOWN.get(short)]
    assert not silent, f"no experiment, or without a `Lecture:` line: {silent}"


def test_every_experiment_that_names_a_lecture_is_in_the_table():
    listed = {short for row in SYSTEMS for short in row["experiments"]}
    missing = {short for short, lecture in SHOWN.items() if lecture} - listed
    assert not missing, f"docs/lectures.toml has no system for {sorted(missing)}"
    assert len({row["name"] for row in SYSTEMS}) == len(SYSTEMS)


def test_decks_are_named_by_numbers_that_are_known():
    known = {deck["number"] for deck in TABLE["deck"]}
    assert len(known) == len(TABLE["deck"])
    named = {int(n) for lecture in SHOWN.values() for n in re.findall(r"\bdeck 0?(\d+)", lecture)}
    assert named == known, "a deck that lectures.toml does not have, or that no experiment names"
    numbered = [short for short, lecture in SHOWN.items() if "deck " in lecture and "Ruthotto" not in lecture]
    assert not numbered, f"decks are numbered in one course only: {numbered}"


def test_the_page_is_made_from_the_table():
    text = (ROOT / "docs" / "lectures.md").read_text(encoding="utf-8")
    assert LECTURES.page(TABLE) == text, "python docs/lectures.py renews it"
