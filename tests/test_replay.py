"""A kept run again: equal bits say so, whatever differs is named, and nothing is written."""

import json
import re

import jax
import numpy as np
import pytest

from experiments import replay, runner
from numdl import reporting
from tests.test_runner import call, dice  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("dice")
ARGUMENTS = ("run", "a1", "--throws", "12", "--expected", "3.25", "--sizes", "3", "4", "--no-loud")


@pytest.fixture
def folder(dice, tmp_path, capsys):  # noqa: F811
    assert call(capsys, *ARGUMENTS)[0] == 0
    return next(path for path in (tmp_path / "results" / "a1_dice").iterdir() if path.is_dir())


def reseal(folder, tmp_path, *, record=None, claims=None, **facts):
    """The same run kept with another record, other claims or facts."""
    run = reporting.load(folder)
    config = replay.restored("a1_dice", run.config)
    settings = {"record": record or run.arrays, "claims": claims or run.claims, "source": folder / "source.py"}
    return reporting.save(tmp_path / "other", name="a1_dice", config=config, seconds=1.0, used=facts, **settings).folder


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_program_gives_the_same_bits_and_writes_nothing(folder, tmp_path, capsys):
    before = contents(tmp_path / "results")
    code, out, _ = call(capsys, "replay", str(folder))
    assert (code, out) == (0, f"a1_dice: bit for bit as it was, 2 arrays and 1 claims compared with {folder}\n")
    assert contents(tmp_path / "results") == before
    code, out, _ = call(capsys, "replay", str(folder), "--json")
    assert json.loads(out) == {
        "name": "a1_dice", "folder": str(folder), "same": True, "arrays": 2, "claims": 1, "differences": [],
    }  # fmt: skip


def test_the_config_comes_back_as_it_was(folder):
    config = replay.restored("a1_dice", reporting.load(folder).config)
    assert (config.throws, config.expected, config.sizes, config.loud) == (12, 3.25, (3, 4), False)
    assert replay._value(["inf", [1]], (1.0, (2,))) == (float("inf"), (1,))


def test_another_program_is_named_and_other_numbers_fail(folder, dice, capsys):  # noqa: F811
    path = dice / "a1_dice.py"
    path.write_text(path.read_text().replace("np.arange(1.0, 7.0)", "np.arange(1.0, 7.0) + 0.5"))
    runner.importlib.invalidate_caches()
    del runner.importlib.sys.modules["experiments.a1_dice"]
    code, out, _ = call(capsys, "replay", str(folder))
    assert code == 1
    assert re.search(r"^version: the experiment's program: .*source\.py -> .*a1_dice\.py$", out, re.MULTILINE)
    assert "claim: mean of dice <script>: holds, 3.5 against 3.25 -> fails, 4.0 against 3.25" in out
    assert "number: throws: 12 of 12 entries -> apart by 0.083 of the largest at most" in out
    assert "a1_dice: not as it was" in out


def test_other_versions_are_named_and_do_not_fail(folder, tmp_path, capsys):
    other = reseal(folder, tmp_path, jax="0.1.0", library="0" * 12)
    code, out, _ = call(capsys, "replay", str(other))
    assert code == 0
    assert f"version: jax: 0.1.0 -> {jax.__version__}" in out and "version: library: 000000000000 -> " in out


NAN = np.array([np.nan, 2.0])
CHANGES = {
    "a dtype": ({"throws": np.ones(12, np.float32)}, "number: throws: float32[12] -> float64[12]"),
    "a shape": ({"throws": np.ones(11)}, "number: throws: float64[11] -> float64[12]"),
    "one more": ({"more": np.ones(1)}, "number: more: there -> not there"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_numbers_of_another_form_are_named(folder, tmp_path, capsys, kind):
    change, said = CHANGES[kind]
    other = reseal(folder, tmp_path, record={**reporting.load(folder).arrays, **change})
    code, out, _ = call(capsys, "replay", str(other))
    assert code == 1 and said in out


def test_the_size_of_a_difference_is_said():
    assert replay._apart(np.array([1.0, 4.0]), np.array([1.0, 4.5])) == (
        "1 of 2 entries",
        "apart by 0.12 of the largest at most",
    )
    assert replay._apart(np.array([0.0]), np.array([-0.0])) == ("0 of 1 entries", "other bits of equal values")
    assert replay._apart(np.array([1.0, np.inf, 2.0]), np.array([1.5, 3.0, 2.0])) == (
        "2 of 3 entries, 1 of them not finite in one of the runs",
        "apart by 0.25 of the largest at most",
    )
    assert replay._apart(NAN, NAN + np.arange(2))[0] == "1 of 2 entries"
    assert replay._apart(np.array([1, 2]), np.array([1, 3])) == ("1 of 2 entries", "others")


@pytest.mark.parametrize("kind", ["a field less", "a field more"])
def test_a_config_that_is_no_more_is_named(folder, kind):
    kept = reporting.load(folder).config
    values, said = {
        "a field less": ({"throws": 12}, "the kept config has not the field 'expected'"),
        "a field more": ({**kept, "older": 1}, "the kept config has the field 'older'"),
    }[kind]
    with pytest.raises(runner.UsageError, match=said):
        replay.restored("a1_dice", values)


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_what_cannot_be_read_is_one_line(folder, capsys, damage):
    if damage == "changed":
        (folder / "claims.json").write_text("[]")
    place = folder if damage == "changed" else folder / "nowhere"
    code, out, error = call(capsys, "replay", str(place))
    assert code == 2 and out == "" and error.count("\n") == 1 and str(place) in error


def test_a_full_disk_is_one_line(folder, capsys, monkeypatch):
    def full(*arguments, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reporting, "save", full)
    code, _, error = call(capsys, "run", "a2")
    assert code == 2 and error.count("\n") == 1 and "No space left on device" in error


def test_an_interruption_is_one_line(folder, capsys, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "execute", interrupted)
    code, _, error = call(capsys, "run", "a2")
    assert code == 130 and error == "stopped by SIGINT; what is finished is kept\n"
