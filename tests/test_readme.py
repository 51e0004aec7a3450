"""What the README shows, runs, and prints what it says it prints."""

import doctest
import pathlib
import re

README = pathlib.Path(__file__).resolve().parent.parent / "README.md"


def test_code_in_the_readme_runs():
    result = doctest.testfile(str(README), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 20 and result.failed == 0


def test_commands_and_files_in_the_readme_exist():
    root, text = README.parent, README.read_text()
    targets = set(re.findall(r"^([a-z]+):", (root / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"^make ([a-z]+)", text, flags=re.MULTILINE)) <= targets
    for name in re.findall(r"`((?:notebooks|docs|experiments|numdl)/[\w./]*)`", text):
        assert (root / name).exists(), name
