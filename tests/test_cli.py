"""The command line: a verdict is an exit code, a wrong call is one line, a user's own error keeps its lines."""

import dataclasses
import json
import subprocess
import sys

import pytest

from numdl import audit, cli
from numdl.audit.evidence import Finding
from tests.audit import made

SETTING = """
def setting():
    return {"apply": 1, "loss": 2}

def positional():
    return 1, 2, (3, 4), {"loss": 5}

def plain():
    return 1, 2, (3, 4)

def wrong():
    return 3

def broken():
    return missing_name

number = 3
"""


class Examined:
    """Stands in for `audit.examine`; keeps what it was called with."""

    def __init__(self, report):
        self.report, self.calls = report, []

    def __call__(self, *positional, **named):
        self.calls.append((positional, named))
        return self.report


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(SETTING)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    return tmp_path


@pytest.fixture
def examined(monkeypatch):
    examine = Examined(made.report())
    monkeypatch.setattr(audit, "examine", examine, raising=False)
    return examine


@pytest.mark.parametrize("target", ["mine:setting", "mine.py:setting"])
def test_the_verdict_is_printed_and_is_the_exit_code(here, examined, capsys, target):
    assert cli.main(["audit", target]) == 1
    assert capsys.readouterr().out.startswith("WILL NOT TRAIN")
    examined.report = made.healthy()
    assert cli.main(["audit", target]) == 0
    assert examined.calls == [((), {"apply": 1, "loss": 2})] * 2


def test_a_tuple_is_the_positional_arguments_and_may_end_in_named_ones(here, examined):
    assert cli.main(["audit", "mine:positional"]) == cli.main(["audit", "mine:plain"]) == 1
    assert examined.calls == [((1, 2, (3, 4)), {"loss": 5}), ((1, 2, (3, 4)), {})]


def test_files_are_written(here, examined, capsys):
    assert cli.main(["audit", "mine:setting", "--json", "out/r.json"]) == 1
    assert json.loads((here / "out" / "r.json").read_text())["verdict"] == "will not train"
    assert "wrote out/r.json" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["mine"], "expected MODULE:FUNCTION or FILE.py:FUNCTION; got 'mine'"),
        (["mine:"], "expected MODULE:FUNCTION"),
        (["mine:nothing"], "mine has no function 'nothing'"),
        (["mine:number"], "mine has no function 'number'"),
        (["absent_module:f"], "no module 'absent_module' can be imported"),
        (["absent.py:f"], "there is no file absent.py"),
        (["mine:wrong"], "wrong() must return a dictionary or a tuple"),
        (["mine:broken"], "broken() failed: NameError"),
        (["mine:setting", "--html", "page.txt"], "--html must be a file that ends in .html; got 'page.txt'"),
        (["mine:setting", "--json", "page.html"], "--json must be a file that ends in .json"),
        (["mine:setting", "--prove", "0"], "--prove must be"),
    ],
)
def test_a_wrong_call_is_one_line_and_code_2(here, examined, capsys, arguments, said):
    assert cli.main(["audit", *arguments]) == 2
    last = capsys.readouterr().err.strip().split("\n")[-1]
    assert last.startswith("numdl: error: ") and said in last
    assert not examined.calls


def test_an_error_in_the_users_code_keeps_its_lines(here, examined, capsys):
    cli.main(["audit", "mine:broken"])
    assert "return missing_name" in capsys.readouterr().err


def test_a_bad_argument_of_examine_is_one_line(here, monkeypatch, capsys):
    def refuses(**_):
        raise ValueError("steps must be a whole number >= 1; got 0")

    monkeypatch.setattr(audit, "examine", refuses, raising=False)
    assert cli.main(["audit", "mine:setting"]) == 2
    assert capsys.readouterr().err == "numdl: error: steps must be a whole number >= 1; got 0\n"


def test_argparse_refuses_with_code_2(capsys):
    for arguments in ([], ["nothing"], ["audit"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code == 2


def test_the_module_is_the_command():
    made = subprocess.run([sys.executable, "-m", "numdl", "--help"], capture_output=True, text=True, check=True)
    assert made.stdout.startswith("usage: numdl ") and "audit" in made.stdout


def test_help_is_quick_to_load():
    code = "import sys; import numdl.cli; assert not {'matplotlib', 'optax', 'numdl.audit'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_watched_folder_is_told_and_its_findings_are_the_exit_code(tmp_path, capsys):
    finding = {field.name: getattr(made.finding("rate_too_high"), field.name) for field in dataclasses.fields(Finding)}
    events = [
        {"kind": "start", "step": 0, "format": 1},
        {"kind": "loss", "step": 0, "steps": [0, 1, 2], "values": [2.5, None, 2.0]},
        {"kind": "sharpness", "step": 2, "sharpness": 40.0, "limit": 20.0},
    ]
    file = tmp_path / "events.jsonl"
    file.write_text("".join(json.dumps(event) + "\n" for event in events))
    assert cli.main(["watch", str(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.startswith("step 2: loss 2.5 to 2, least 2") and "sharpness 40, stable up to 20" in said
    file.write_text(file.read_text() + json.dumps({"kind": "finding", "step": 2, **finding}) + "\n")
    assert cli.main(["watch", str(tmp_path), "--json", str(tmp_path / "r.json")]) == 1
    assert "step 2: rate_too_high" in capsys.readouterr().out
    assert json.loads((tmp_path / "r.json").read_text())["loss"] == [2.5, None, 2.0]
    assert cli.main(["watch", str(tmp_path / "absent")]) == 2
