"""The runner, the command line and the demo, over a small experiment made here."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest

import experiments
from experiments import __main__ as command
from experiments import demo, farm, runner, workers
from numdl import reporting
from tests.files import interruptions

ROOT = pathlib.Path(experiments.__file__).parent.parent

EXPERIMENT = '''"""Is the mean of dice 3.5?

Question
--------
Does the mean of many dice come close to 3.5, and is 1 < 2 & "so" on?

Prediction
----------
The mean is

    (1 + 6) / 2 = 3.5

Measurement
-----------
A mean of `throws` numbers.

Verdict
-------
As it should.
"""

import dataclasses
import os
import signal
import time

import numpy as np

from numdl import checks, plotting
from numdl.reporting import Claim


@dataclasses.dataclass(frozen=True)
class Config:
    """How to throw."""

    throws: int = 60  # how many
    expected: float = 3.5
    mode: str = "ok"
    loud: bool = False
    sizes: tuple[int, ...] = (1, 2)
    seed: int = 0

    @classmethod
    def tiny(cls):
        return cls(throws=6)


@dataclasses.dataclass(frozen=True)
class Result:
    throws: np.ndarray
    by_name: dict


def run(config):
    checks.whole("throws", config.throws)
    if config.mode == "door":
        raise checks.BadValue("mode must be ok; got door")
    if config.mode == "bug":
        return np.zeros(3) + np.zeros(4)
    if config.mode == "call":
        return Result()
    if config.mode == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    if config.mode == "hang":
        time.sleep(600)
    if config.mode == "large":
        np.zeros(2**60)
    values = np.resize(np.arange(1.0, 7.0), config.throws)
    return Result(values, {"N(0, 1)": values})


def claims(config, result):
    numbers = (config.expected, result.throws.mean(), 0.1, 0.6)
    return [Claim("mean of dice <script>", "dice & co", *numbers, "six s.e.", origin="exact")]


def figure(config, result):
    made = plotting.figure()
    made.subplots().plot(result.throws)
    return made
'''


@pytest.fixture
def dice(tmp_path, monkeypatch):
    """Three experiments a1, a2, a3 in a folder of their own, the package's only folder."""
    folder = tmp_path / "files"
    folder.mkdir()
    names = ("a1_dice", "a2_dice", "a3_dice")
    for name in names:
        (folder / f"{name}.py").write_text(EXPERIMENT)
    (folder / "a10_later.py").write_text(EXPERIMENT)
    (folder / "helper.py").write_text("raise RuntimeError('not an experiment')")
    monkeypatch.setattr(experiments, "__path__", [str(folder)])
    monkeypatch.chdir(tmp_path)
    yield folder
    for name in [name for name in sys.modules if re.match(r"experiments\.[a-z][0-9]", name)]:
        del sys.modules[name]


def call(capsys, *arguments):
    code = command.main(list(arguments))
    said = capsys.readouterr()
    return code, said.out, said.err


def test_list_is_one_line_each_in_the_order_of_numbers(dice, capsys):
    code, out, _ = call(capsys, "list")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["a1_dice", "a2_dice", "a3_dice", "a10_later"]
    assert all(line.endswith("Is the mean of dice 3.5?") for line in out.splitlines())


def test_list_imports_neither_jax_nor_an_experiment():
    code = (
        "import sys; from experiments.__main__ import main; main(['list']); "
        "sys.exit('jax' in sys.modules or any(m.startswith('experiments.') "
        "and m.split('.')[-1][1].isdigit() for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False).returncode == 0


@pytest.fixture
def grouped(dice):
    """Two of the experiments in a group's folder, and a folder that is not a group."""
    group = dice / "throwing"
    group.mkdir()
    (group / "__init__.py").write_text('"""How do dice fall?\n\nOften enough <evenly>.\n"""\n')
    text = EXPERIMENT.replace("3.5?\n", "3.5?\n\nLecture: deck 7, slides 3 and\n4, after an hour\n", 1)
    (group / "b1_dice.py").write_text(text)
    (dice / "a2_dice.py").rename(group / "b2_dice.py")
    (dice / "notes").mkdir()
    (dice / "notes" / "b3_dice.py").write_text(EXPERIMENT)
    yield group
    for name in [name for name in sys.modules if name.startswith("experiments.throwing")]:
        del sys.modules[name]


def test_an_experiment_is_found_by_its_name_whichever_folder_it_is_in(grouped, capsys, tmp_path):
    assert runner.names() == ["a1_dice", "a3_dice", "a10_later", "b1_dice", "b2_dice"]
    code, out, _ = call(capsys, "run", "b1", "--json")
    assert code == 0
    assert json.loads(out.splitlines()[-1])["name"] == "b1_dice"
    assert experiments.b2_dice.Config is runner.load("b2_dice").Config
    with pytest.raises(AttributeError, match="b3_dice"):
        _ = experiments.b3_dice
    code, out, _ = call(capsys, "reproduce", "--tiny", "--only", "a1", "b1")
    assert [line.split()[0] for line in board(out).values()] == ["ok"] * 3
    index, page = (
        (tmp_path / "results" / "index.html").read_text(),
        next((tmp_path / "results").glob("b1*/*/report.html")),
    )
    assert index.index("a1: Is the") < index.index("How do dice fall?</h2>") < index.index("b1: Is the")
    assert "Often enough &lt;evenly&gt;." in index
    assert "Lecture: deck 7, slides 3 and 4, after an hour" in page.read_text()


def test_list_says_what_a_group_asks_and_which_lecture_shows_it(grouped, capsys):
    _, out, _ = call(capsys, "list")
    lines = out.splitlines()
    at = lines.index("throwing: How do dice fall?")
    assert [line.split()[0] for line in lines[:at] if line] == ["a1_dice", "a3_dice", "a10_later"]
    assert [line.split()[0] for line in lines[at + 1 :]] == ["b1_dice", "Lecture:", "b2_dice"]
    assert lines[at + 2].strip() == "Lecture: deck 7, slides 3 and 4, after an hour"


def test_headings_are_the_text_between_underlined_words():
    parts = runner.parse_headings(EXPERIMENT.split('"""')[1])
    assert parts["title"] == "Is the mean of dice 3.5?"
    assert parts["Prediction"] == "The mean is\n\n    (1 + 6) / 2 = 3.5"
    assert parts["Verdict"] == "As it should."
    assert runner.parse_headings("One line.\n\nVerdict\nnot underlined")["Verdict"] == ""
    assert parts["Lecture"] == runner.parse_headings("Why?\n\nVerdict\n---\nLecture: late")["Lecture"] == ""


def test_run_keeps_everything(dice, capsys, tmp_path):
    code, out, _ = call(capsys, "run", "a1", "--throws", "12", "--loud")
    assert code == 0
    assert "1 of 1 claims hold" in out
    (folder,) = [p for p in (tmp_path / "results" / "a1_dice").iterdir() if not p.name.startswith(".")]
    files = {path.name for path in folder.iterdir()}
    assert files == {
        "config.json", "claims.json", "record.npz", "figure.svg", "figure.png", "source.py", "environment.json",
        "report.html",
    }  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    assert config == {"throws": 12, "expected": 3.5, "mode": "ok", "loud": True, "sizes": [1, 2], "seed": 0}
    assert (folder / "source.py").read_text() == EXPERIMENT


def test_json_is_the_last_line_and_strict(dice, capsys, tmp_path):
    code, out, _ = call(capsys, "run", "a1_dice", "--json", "--expected", "nan", "--results", str(tmp_path / "other"))
    answer = json.loads(out.splitlines()[-1], parse_constant=lambda token: pytest.fail(f"{token} is not JSON"))
    assert code == 1
    assert answer["name"] == "a1_dice"
    assert answer["config"]["expected"] == "nan"
    assert answer["seconds"] >= 0
    claim = {"claim": "mean of dice <script>", "source": "dice & co", "expected": "nan", "measured": 3.5}
    assert claim.items() <= answer["claims"][0].items()
    assert answer["claims"][0]["holds"] is False
    assert answer["claims"][0]["uncertainty"] == 0.1
    assert (tmp_path / "other" / "a1_dice").is_dir()


def test_tiny_is_the_small_config_and_fields_go_over_it(dice, capsys):
    _, out, _ = call(capsys, "run", "a1", "--tiny", "--json")
    assert json.loads(out.splitlines()[-1])["config"]["throws"] == 6
    _, out, _ = call(capsys, "run", "a1", "--tiny", "--json", "--throws", "7")
    assert json.loads(out.splitlines()[-1])["config"]["throws"] == 7


@pytest.mark.parametrize(
    "arguments, parts",
    [
        (["run", "a1_dise"], ["a1_dise", "a1_dice"]),
        (["run", "../a1_dice"], ["../a1_dice"]),
        (["run"], ["a1_dice"]),
        (["show"], ["show", "a1_dice"]),
        (["show", "b7"], ["b7", "a1_dice"]),
        (["show", "a1", "--tiny"], ["--tiny"]),
        (["run", "a1", "--gaps-of-sizes", "3"], ["--gaps-of-sizes:", "--sizes"]),
        (["run", "a1", "--throw", "3"], ["--throw:", "--throws"]),
        (["run", "a1", "--zzz", "3"], ["--zzz", "--mode"]),
        (["run", "a1", "--throws", "many"], ["--throws", "int", "many"]),
        (["run", "a1", "--throws=many"], ["--throws", "int", "many"]),
        (["run", "a1", "--throws"], ["--throws", "nothing"]),
        (["run", "a1", "3"], ["'3'"]),
        (["run", "a1", "--throws", "0"], ["throws", "0", "1..100000000"]),
        (["run", "a1", "--throws", "-1"], ["throws", "-1", "1..100000000"]),
        (["run", "a1", "--throws", str(10**8 + 1)], ["throws", str(10**8 + 1), "1..100000000"]),
        (["run", "a1", "--throws", str(10**4000)], ["throws", "1..100000000", "bits"]),
        (["run", "a1", "--throws", "1_0"], ["--throws", "int", "1_0"]),
        (["run", "a1", "--throws=1_0"], ["--throws", "int", "1_0"]),
        (["run", "a1", "--throws", "\u0663"], ["--throws", "int", "\u0663"]),
        (["run", "a1", "--expected", "1_0.5"], ["--expected", "float", "1_0.5"]),
        (["run", "a1", "--throws", "1.0"], ["--throws", "int", "1.0"]),
        (["run", "a1", "--seed", "-1"], ["--seed", "-1", "0..4294967295"]),
        (["run", "a1", "--seed", str(2**70)], ["--seed", str(2**70), "0..4294967295"]),
        (["run", "a1", "--sizes", "3", "-4"], ["--sizes", "-4", "1..100000000"]),
        (["run", "a1", "--sizes"], ["--sizes"]),
        (["run", "a1", "--throws", "3", "--throws", "4"], ["--throws", "once"]),
        (["run", "a1", "--throws=3", "--mode", "ok", "--throws=3"], ["--throws", "once"]),
        (["run", "a1", "--loud", "--no-loud"], ["--loud", "once"]),
        (["run", "a1", "--tiny", "--tiny"], ["--tiny", "once"]),
        (["run", "a1", "--results", "a", "--results", "b"], ["--results", "once"]),
        (["run", "a1", "--results", ""], ["--results", "''"]),
        (["run", "a1", "--results="], ["--results", "''"]),
        (["run", "a1", "--results", "  "], ["--results"]),
        (["run", "a1", "--mode", "large"], ["a1_dice", "memory"]),
        (["list", "--tiny"], ["--tiny"]),
        (["list", "a1"], ["a1"]),
        (["margins", "--results", "nowhere"], ["--results", "nowhere"]),
        (["margins", "--least", "many"], ["--least", "many"]),
        (["margins", "--only", "b7"], ["b7"]),
        (["reproduce", "--results", ""], ["--results", "''"]),
        (["reproduce", "--jobs", "0"], ["--jobs", "1..9999", "'0'"]),
        (["reproduce", "--jobs", "-1"], ["--jobs"]),
        (["reproduce", "--jobs", "1_0"], ["--jobs", "1_0"]),
        (["reproduce", "--jobs", "1", "--jobs", "2"], ["--jobs", "once"]),
        (["reproduce", "--jobs", "1.5"], ["--jobs", "1.5"]),
        (["reproduce", "--timeout", "0"], ["--timeout", "above zero"]),
        (["reproduce", "--timeout", "nan"], ["--timeout", "nan"]),
        (["reproduce", "--timeout", "1e999"], ["--timeout", "1e999"]),
        (["reproduce", "--only", "a1", "a1_dice"], ["a1_dice", "once"]),
        (["reproduce", "--only", "a1", "--only", "a2"], ["--only", "once"]),
        (["reproduce", "--only"], ["--only"]),
        (["reproduce", "--only", ""], ["''"]),
        (["reproduce", "--seed", "1"], ["--seed"]),
        (["reproduce", "--tiny", "--quick"], ["--quick", "--tiny"]),
        (["reproduce", "--jobs", "2", "--executor", "local"], ["--jobs", "--executor"]),
        (["run", "a1", "--quick"], ["--quick"]),
        (["scoreboard"], ["folders"]),
        (["scoreboard", "nowhere"], ["nowhere", "reproduce"]),
        (["scoreboard", ".", "--json"], ["--json"]),
        (["run", "a1", "--mode", "door"], ["mode must be ok"]),
        (["frobnicate"], ["frobnicate", "reproduce"]),
        (["reproduce", "--only", "b7"], ["b7"]),
        (["reproduce", "--onyl", "a1"], ["--onyl"]),
    ],
)
def test_wrong_calls_are_one_line_and_exit_code_2(dice, capsys, arguments, parts):
    code, out, err = call(capsys, *arguments)
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert all(part in err for part in parts)


def test_a_results_folder_that_cannot_be_written_is_named_before_anything_runs(dice, capsys, tmp_path):
    (tmp_path / "taken").write_text("a file")
    code, _, err = call(capsys, "run", "a1", "--mode", "bug", "--results", str(tmp_path / "taken"))
    assert code == 2
    assert str(tmp_path / "taken") in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("mode, kind", [("bug", ValueError), ("call", TypeError)])
def test_a_bug_keeps_its_traceback_and_leaves_no_folder(dice, mode, kind, tmp_path):
    with pytest.raises(kind):
        command.main(["run", "a1", "--mode", mode])
    assert list((tmp_path / "results" / "a1_dice").iterdir()) == []


def test_an_experiment_without_a_claim_is_a_defect(dice):
    text = EXPERIMENT.replace("return [Claim(", "return [] and [Claim(")
    (dice / "a2_dice.py").write_text(text)
    with pytest.raises(ValueError, match=r"a2_dice\.claims must return at least one claim"):
        command.main(["run", "a2"])


def test_help_names_the_fields(dice, capsys):
    code, out, _ = call(capsys, "run", "a1", "--help")
    assert code == 0
    assert "--throws" in out
    assert "how many" in out


def test_show_is_the_docstring_and_runs_nothing(dice, capsys, tmp_path):
    code, out, _ = call(capsys, "show", "a1")
    assert code == 0
    assert out.startswith("a1_dice: Is the mean of dice 3.5?\n\nQuestion\n")
    assert out.endswith("Verdict\nAs it should.\n")
    assert not (tmp_path / "results").exists()


def test_a_long_list_of_experiments_is_told_as_ranges(dice, capsys):
    for i in range(4, 12):
        (dice / f"b{i}_dice.py").write_text(EXPERIMENT)
    _, _, err = call(capsys, "run", "zzz")
    assert err == "error: unknown experiment 'zzz': it is one of a1 to a10, b4 to b11 (python -m experiments list)\n"


@pytest.mark.parametrize("name", ["list", "run", "show", "reproduce", "margins"])
def test_help_of_a_command_names_the_options_and_runs_nothing(dice, capsys, tmp_path, name):
    code, out, _ = call(capsys, name, "--help")
    assert code == 0
    assert "--jobs N" in out
    assert not (tmp_path / "results").exists()


def variant(folder, name, **changes):
    """The experiment `name` with other defaults."""
    text = EXPERIMENT
    for field, value in changes.items():
        text = re.sub(rf"(    {field}: \w+ = )[^#\n]*", lambda found, value=value: found[1] + repr(value), text)
    (folder / f"{name}.py").write_text(text)
    sys.modules.pop(f"experiments.{name}", None)


def board(out):
    """{name: line} of the scoreboard."""
    lines = [line for line in out.splitlines() if re.match("ok |FAIL ", line)]
    return {line.split()[1]: line for line in lines}


def test_reproduce_runs_all_whatever_becomes_of_some(dice, capsys, tmp_path):
    """A crash, a failing claim, a bug, a file that cannot be read: each costs its own line only."""
    variant(dice, "a1_dice", mode="crash")
    variant(dice, "a2_dice", mode="bug")
    (dice / "a3_dice.py").write_text('"""No question."""\nraise RuntimeError("on import")\n')
    variant(dice, "a10_later", expected=9.5)
    variant(dice, "b1_good")
    code, out, err = call(capsys, "reproduce", "--jobs", "3")
    lines = board(out)
    assert code == 1
    assert list(lines) == ["a1_dice", "a2_dice", "a3_dice", "a10_later", "b1_good", "total"]
    assert lines["b1_good"].startswith("ok")
    assert all(lines[name].startswith("FAIL") for name in lines if name != "b1_good")
    assert "crashed (signal 11, SIGSEGV)" in lines["a1_dice"]
    assert "crashed (exit code 1: ValueError" in lines["a2_dice"]
    assert "RuntimeError: on import" in lines["a3_dice"]
    assert "0 of 1 " in lines["a10_later"]
    logs = re.findall(r"see (\S+\.log)", out)
    assert len(logs) == 2
    assert "Segmentation fault" in pathlib.Path(logs[0]).read_text()
    assert "np.zeros(3) + np.zeros(4)" in pathlib.Path(logs[1]).read_text()
    page = (tmp_path / "results" / "index.html").read_text()
    assert page.count("<figure>") == 2
    for link in re.findall(r'href="([^"#]+)"', page):
        assert (tmp_path / "results" / link).is_file()

    variant(dice, "a2_dice")  # mended; the next call does it and what crashed, and keeps what is finished
    code, out, err = call(capsys, "reproduce", "--only", "a2", "a10", "b1", "--json")
    answer = json.loads(out)
    assert code == 1
    assert [(run["name"], run["reused"]) for run in answer["runs"]] == [
        ("a2_dice", False), ("a10_later", True), ("b1_good", True),
    ]  # fmt: skip
    assert err.splitlines() == ["a2_dice ..."]


class Immediate:
    """An executor that runs what it is given."""

    def submit(self, function, argument):
        return type("Future", (), {"result": staticmethod(lambda: function(argument))})


def test_reproduce_on_an_executor(dice, capsys, monkeypatch):
    variant(dice, "a2_dice", mode="bug")
    monkeypatch.setattr(farm, "executor", lambda text, folder: Immediate())
    code, out, _ = call(capsys, "reproduce", "--only", "a1", "a2", "--executor", "slurm")
    lines = board(out)
    assert code == 1
    assert lines["a1_dice"].startswith("ok")
    assert "crashed (exit code 1: ValueError" in lines["a2_dice"]
    code, out, _ = call(capsys, "reproduce", "--only", "a1", "--executor", "slurm", "--json")
    assert code == 0
    assert [run["reused"] for run in json.loads(out)["runs"]] == [True]


def test_an_executor_that_is_none_is_refused(dice, capsys):
    code, _, err = call(capsys, "reproduce", "--executor", "dsk:1")
    assert code == 2
    assert err == "error: --executor must be dask:ADDRESS, slurm, slurm:PARTITION or local; got 'dsk:1'\n"


def test_one_that_hangs_is_ended_and_the_others_go_on(dice, capsys):
    variant(dice, "a2_dice", mode="hang")
    runner.execute("a3_dice", runner.configure("a3_dice"))
    code, out, _ = call(capsys, "reproduce", "--only", "a2", "a3", "--timeout", "0.5")
    assert code == 1
    assert "timed out after 0.5 s: see " in board(out)["a2_dice"]
    assert board(out)["a3_dice"].startswith("ok")


def test_what_is_finished_is_not_done_again_unless_something_changed(dice, capsys, tmp_path, monkeypatch):
    config = runner.configure("a1_dice")
    assert runner.finished("a1_dice", config) is None
    run = runner.execute("a1_dice", config)
    assert runner.finished("a1_dice", config).folder == run.folder
    assert runner.finished("a1_dice", runner.configure("a1_dice", ["--seed", "1"])) is None
    assert runner.finished("a1_dice", config, results=tmp_path / "other") is None
    text = (dice / "a1_dice.py").read_text()
    (dice / "a1_dice.py").write_text(text.replace("As it should.", "Measured twice.").replace("# how many", "# some"))
    assert runner.finished("a1_dice", config) is not None
    (dice / "a1_dice.py").write_text(text.replace("0.6)", "0.5)"))
    assert runner.finished("a1_dice", config) is None
    (dice / "a1_dice.py").write_text(text)
    for what in ("numdl", "library", "jax", "jaxlib", "numpy", "python", "x64"):
        with monkeypatch.context() as other:
            known = reporting.versions()
            other.setattr(reporting, "versions", lambda known=known, what=what: known | {what: "another"})
            assert runner.finished("a1_dice", config) is None, what
    monkeypatch.setenv("XLA_FLAGS", f"{os.environ.get('XLA_FLAGS', '')} {runner.LIGHT}".strip())
    light = runner.execute("a1_dice", config)  # takes the folder; jax has read its flags long ago
    assert runner.finished("a1_dice", config) is None
    assert runner.finished("a1_dice", config, light=True).folder == light.folder
    (run.folder / "record.npz").write_bytes(b"cut")
    assert runner.finished("a1_dice", config, light=True) is None


def test_a_worker_takes_the_config_that_was_made_here(dice, capsys, monkeypatch):
    """A default that is computed may differ in another process, which compiles otherwise."""
    there = EXPERIMENT.replace("expected: float = 3.5", "expected: float = 3.5 + int(os.environ.get('ELSEWHERE', 0))")
    (dice / "a2_dice.py").write_text(there)
    runner.configure("a2_dice")
    monkeypatch.setenv("ELSEWHERE", "7")  # what a worker imports finds another default
    code, out, _ = call(capsys, "reproduce", "--only", "a2")
    assert (code, board(out)["a2_dice"][:2]) == (0, "ok")


def test_quick_is_the_quick_version_or_else_the_tiny_one_and_the_scoreboard_is_kept(dice, capsys, tmp_path):
    tiny = "    @classmethod\n    def tiny"
    quick = "    @classmethod\n    def quick(cls):\n        return cls(throws=12, expected=9.5)\n\n"
    (dice / "a2_dice.py").write_text(EXPERIMENT.replace(tiny, quick + tiny))
    variant(dice, "a3_dice", mode="crash")
    code, out, _ = call(capsys, "reproduce", "--quick", "--only", "a1", "a2", "a3")
    kept = json.loads((tmp_path / "results" / "scoreboard.json").read_text())
    assert code == 1
    assert [run["config"]["throws"] for run in kept["runs"][:2]] == [6, 12]
    assert kept["size"] == "quick"
    assert kept["holds"] is False
    assert kept["origins"] == {
        "exact": {"held": 1, "total": 2},
        "published": {"held": 0, "total": 0},
        "own": {"held": 0, "total": 0},
    }
    assert "crashed" in kept["runs"][2]["problem"]
    assert "Claims that fail:" in out
    assert "3.50 ± 0.10 misses 9.5 with 0.6 allowed by 5.4, 54 standard errors." in " ".join(out.split())
    code, out, said = call(capsys, "scoreboard", "results", "--output", "board.md", "--pictures", "small")
    assert (code, out) == (0, "Written to board.md\n")
    assert said.strip().endswith("2 pictures written to small")
    assert {path.name for path in (tmp_path / "small").iterdir()} == {"a1_dice.png", "a2_dice.png"}
    written = (tmp_path / "board.md").read_text()
    assert "1 of 2" in written
    assert "crashed (signal 11, SIGSEGV)" in written
    assert str(tmp_path) not in written


def test_again_does_it_again_and_keeps_what_the_process_took(dice, capsys, tmp_path):
    runner.execute("a1_dice", runner.configure("a1_dice", tiny=True))
    code, out, _ = call(capsys, "reproduce", "--tiny", "--only", "a1", "--again", "--json")
    answer = json.loads(out)
    (run,) = answer["runs"]
    assert code == 0
    assert answer["holds"]
    assert run["config"]["throws"] == 6
    assert run["reused"] is False
    assert run["margin"] == pytest.approx(6.0)
    if sys.platform == "linux":
        assert 50 < run["peak_maps"] < 65530
        assert 2**25 < run["peak_memory"] < 2**33
    (folder,) = [path for path in (tmp_path / "results" / "a1_dice").iterdir() if path.is_dir()]
    assert {"log.txt", "report.html"} <= {path.name for path in folder.iterdir()}
    assert not list((tmp_path / "results" / "a1_dice").glob("*.log"))


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_ends_the_workers_and_keeps_what_is_finished(dice, number, tmp_path):
    variant(dice, "a2_dice", mode="hang")
    code = (
        "import sys, experiments\nfrom experiments.__main__ import main\n"
        "experiments.__path__ = [sys.argv[1]]\nsys.exit(main(['reproduce']))\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(dice)], env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert [parent.stderr.readline() for _ in range(2)] == ["a1_dice ...\n", "a2_dice ...\n"]
    children = interruptions.children(parent.pid)
    parent.send_signal(number)
    out, err = parent.communicate(timeout=240)
    assert parent.returncode == 128 + number
    assert list(board(out)) == ["a1_dice", "total"]
    assert f"stopped by {number.name}" in err
    assert len(children) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(children[0], 0)
    (folder,) = (tmp_path / "results" / "a1_dice").glob("[0-9a-f]" * 12)
    assert reporting.load(folder).held == 1


def test_a_signal_while_an_experiment_is_loaded_ends_it_too(dice, monkeypatch, tmp_path):
    monkeypatch.setattr(runner, "configure", lambda name, **size: os.kill(os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(workers.Stopped):
        list(workers.reproduce(["a1_dice", "a2_dice"], results=tmp_path))
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_worker_does_not_outlive_its_parent(dice, tmp_path):
    variant(dice, "a2_dice", mode="hang")
    asked = dataclasses.asdict(runner.configure("a2_dice"))
    job = {"name": "a2_dice", "config": asked, "results": str(tmp_path), "cores": None, "folders": [str(dice)]}
    worker = subprocess.Popen([sys.executable, "-m", "experiments.worker"], stdin=subprocess.PIPE, cwd=ROOT, text=True)
    worker.stdin.write(json.dumps(job) + "\n")
    worker.stdin.close()
    assert worker.wait(timeout=240) == 3


@pytest.mark.parametrize(
    "cores, jobs, expected",
    [
        ({0, 1}, 2, [[0], [1]]),
        ({3, 5, 7, 9}, 2, [[3, 7], [5, 9]]),
        ({0, 1, 2}, 2, [[0, 2], [1]]),
        ({0, 1}, 3, [[0], [1], [0]]),
        ({4}, 2, [[4], [4]]),
    ],
)
def test_workers_share_the_cores(cores, jobs, expected):
    assert workers.shares(cores, jobs) == expected


def test_margins_lists_the_claims_nearest_to_their_limits_first(dice, capsys):
    variant(dice, "a2_dice", expected=4.0)  # 0.5 off of 0.6 allowed, standard error 0.1: one left
    for name in ("a1_dice", "a2_dice"):
        runner.execute(name, runner.configure(name))
    code, out, _ = call(capsys, "margins")
    assert code == 1
    assert [line.split()[:4] for line in out.splitlines()[1:3]] == [
        ["1.0", "holds", "exact", "a2_dice"],
        ["6.0", "holds", "exact", "a1_dice"],
    ]
    assert "1 of 2 claims within 3 standard errors" in out
    assert call(capsys, "margins", "--least", "0.5")[0] == 0
    code, out, _ = call(capsys, "margins", "--only", "a1", "--json")
    assert code == 0
    assert json.loads(out)["runs"][0]["claims"][0]["margin"] == pytest.approx(6.0)


def test_every_run_has_a_page_that_asks_for_nothing(dice):
    run = runner.execute("a1_dice", runner.configure("a1_dice"))
    page = (run.folder / "report.html").read_text()
    assert page.count("<figure>") == 1
    assert "Is the mean of dice 3.5?" in page
    assert "mean of dice &lt;script&gt;" in page
    assert "<mo>=</mo><mn>3.5</mn>" in page
    assert "http" not in page.replace("http-equiv", "")


@pytest.fixture
def healed(monkeypatch):
    """The demo without its audit, which takes longer than all else here."""
    monkeypatch.setattr(demo, "audited", lambda options: ("audit.html", True))


@pytest.mark.slow
def test_the_demo_ends_with_a_sick_network_and_its_cure(capsys, tmp_path):
    with jax.numpy_rank_promotion("allow"):  # as the demo runs
        page, helped = demo.audited(types.SimpleNamespace(tiny=True, results=tmp_path))
    said = capsys.readouterr().out
    assert helped and page == tmp_path / "demo" / "audit.html"
    assert "signal_vanishes" in said and "The cure:" in said and "Both trained for 60 steps" in said
    assert "The repair helped." in page.read_text()


def test_the_demo_fails_if_the_cure_does_not_help(dice, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(demo, "audited", lambda options: ("audit.html", False))
    assert demo.main(["--tiny"]) == 1


def test_demo_writes_one_page_that_asks_for_nothing_else(dice, healed, capsys, tmp_path):
    code = demo.main(["--tiny", "--results", str(tmp_path / "out")])
    said = capsys.readouterr()
    page = (tmp_path / "out" / "demo" / "report.html").read_text()
    assert code == 0
    assert said.err.splitlines() == ["1/3 a1_dice ...", "2/3 a2_dice ...", "3/3 a3_dice ..."]
    assert str(tmp_path / "out" / "demo" / "report.html") in said.out
    assert page.count("<figure>") == 3
    assert "3 of 3 claims hold: theory and measurement agree." in page
    assert "<mo>=</mo><mn>3.5</mn>" in page
    assert "mean of dice &lt;script&gt;" in page
    assert "mean of dice <script>" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_demo_fails_if_a_claim_fails(dice, healed, capsys, tmp_path):
    (dice / "a3_dice.py").write_text(EXPERIMENT.replace("expected: float = 3.5", "expected: float = 9.5"))
    assert demo.main(["--tiny"]) == 1
    page = (tmp_path / "results" / "demo" / "report.html").read_text()
    assert "1 of 1 claim not within tolerance" in page
    assert "✗ some fail" in page


def test_the_progress_bar_is_for_terminals_only(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert list(demo._steps(["one", "two"])) == ["one", "two"]
    bar = capsys.readouterr().err
    assert "\r" in bar
    assert "\n" not in bar
    assert "[========        ] 2/2 two" in bar


def test_demo_without_its_experiments_says_so(dice, capsys):
    (dice / "a3_dice.py").unlink()
    assert demo.main(["--tiny"]) == 2
    assert "a3" in capsys.readouterr().err


def test_killing_a_writer_again_and_again_leaves_whole_runs_only(tmp_path):
    """SIGKILL at chosen moments of a loop that rewrites one run; what is there is always one whole run."""
    code = (
        "import dataclasses, sys, numpy as np; from numdl import reporting\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class C: n: int = 3\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class R: a: np.ndarray\n"
        "i = 0\n"
        "while True:\n"
        "    i += 1\n"
        "    reporting.save(sys.argv[1], name='x', config=C(), record=R(np.full(300000, i)), claims=[], seconds=i)\n"
        "    print(i, flush=True)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    config = dataclasses.make_dataclass("C", [("n", int, 3)], frozen=True)()
    folder = tmp_path / "x" / reporting.digest(config)
    for attempt in range(5):
        writer = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, env=environment, text=True
        )
        for _ in range(2 + attempt):
            assert writer.stdout.readline()
        time.sleep(0.004 * attempt)  # somewhere within the next save
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        run = reporting.load(folder)  # raises if a file is not the one that was written
        assert len(np.unique(run.arrays["a"])) == 1
        assert run.arrays["a"][0] == run.seconds
