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

import numpy as np
import pytest

import experiments
from experiments import __main__ as command
from experiments import demo, runner

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
        raise ValueError("mode must be ok; got door")
    if config.mode == "bug":
        return np.zeros(3) + np.zeros(4)
    if config.mode == "call":
        return Result()
    values = np.resize(np.arange(1.0, 7.0), config.throws)
    return Result(values, {"N(0, 1)": values})


def claims(config, result):
    return [Claim("mean of dice <script>", "dice & co", config.expected, result.throws.mean(), 0.1, 0.6, "six s.e.")]


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
    for name in (*names, "a10_later"):
        sys.modules.pop(f"experiments.{name}", None)


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
        "sys.exit('jax' in sys.modules or any(m.startswith('experiments.a') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_headings_are_the_text_between_underlined_words():
    parts = runner.parse_headings(EXPERIMENT.split('"""')[1])
    assert parts["title"] == "Is the mean of dice 3.5?"
    assert parts["Prediction"] == "The mean is\n\n    (1 + 6) / 2 = 3.5"
    assert parts["Verdict"] == "As it should."
    assert runner.parse_headings("One line.\n\nVerdict\nnot underlined")["Verdict"] == ""


def test_run_keeps_everything(dice, capsys, tmp_path):
    code, out, _ = call(capsys, "run", "a1", "--throws", "12", "--loud")
    assert code == 0
    assert "1 of 1 claims hold" in out
    (folder,) = [p for p in (tmp_path / "results" / "a1_dice").iterdir() if not p.name.startswith(".")]
    files = {path.name for path in folder.iterdir()}
    assert files == {
        "config.json", "claims.json", "record.npz", "figure.svg", "figure.png", "source.py", "environment.json",
    }  # fmt: skip
    config = json.loads((folder / "config.json").read_text())
    assert config == {"throws": 12, "expected": 3.5, "mode": "ok", "loud": True}
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
        (["run", "a1", "--throw", "3"], ["--throw:", "--throws"]),
        (["run", "a1", "--zzz", "3"], ["--zzz", "--mode"]),
        (["run", "a1", "--throws", "many"], ["--throws", "int", "many"]),
        (["run", "a1", "--throws=many"], ["--throws", "int", "many"]),
        (["run", "a1", "--throws"], ["--throws", "nothing"]),
        (["run", "a1", "3"], ["'3'"]),
        (["run", "a1", "--throws", "0"], ["throws", "0", ">= 1"]),
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


def test_reproduce_scores_all_and_only_some(dice, capsys):
    code, out, _ = call(capsys, "reproduce", "--tiny")
    assert code == 0
    assert out.splitlines()[-5].split()[:5] == ["ok", "a1_dice", "1", "of", "1"]
    assert out.splitlines()[-1].split()[:5] == ["ok", "total", "4", "of", "4"]
    code, out, _ = call(capsys, "reproduce", "--only", "a2", "a3_dice", "--json")
    answer = json.loads(out)
    assert code == 0
    assert [run["name"] for run in answer["runs"]] == ["a2_dice", "a3_dice"]
    assert answer["runs"][0]["config"]["throws"] == 60


def test_reproduce_fails_if_a_claim_fails(dice, capsys):
    (dice / "a2_dice.py").write_text(EXPERIMENT.replace("expected: float = 3.5", "expected: float = 9.5"))
    code, out, _ = call(capsys, "reproduce", "--tiny")
    assert code == 1
    assert "FAIL  a2_dice" in out
    assert re.search("FAIL  total +3 of 4", out)


def test_demo_writes_one_page_that_asks_for_nothing_else(dice, capsys, tmp_path):
    code = demo.main(["--tiny", "--results", str(tmp_path / "out")])
    said = capsys.readouterr()
    page = (tmp_path / "out" / "demo" / "report.html").read_text()
    assert code == 0
    assert said.err.splitlines() == ["1/3 a1_dice ...", "2/3 a2_dice ...", "3/3 a3_dice ..."]
    assert str(tmp_path / "out" / "demo" / "report.html") in said.out
    assert page.count("<figure>") == 3
    assert "3 of 3 claims hold: theory and measurement agree." in page
    assert "(1 + 6) / 2 = 3.5" in page
    assert "mean of dice &lt;script&gt;" in page
    assert "mean of dice <script>" not in page
    assert "http" not in page.replace("http-equiv", "")


def test_demo_fails_if_a_claim_fails(dice, capsys, tmp_path):
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
    from numdl import reporting

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
