"""Experiments: one file, one question, theory's prediction beside the measurement.

    python -m experiments list
    python -m experiments run a1_init_scaling --width 200 --json
    python -m experiments reproduce --jobs 2
    python -m experiments margins
    python -m experiments scoreboard results --output docs/scoreboard.md

An experiment is a file `<letter><number>_<words>.py` in the folder of its group, whose own docstring says what the
group asks. The first line of its docstring is the question as a title; a paragraph `Lecture: deck, slide` names where a
lecture shows it; four headings follow, each a word on a line of its own underlined by dashes: Question, Prediction
(equation, source), Measurement, Verdict (how many samples, machine, seconds). Inside:

    @dataclass(frozen=True)
    class Config               its defaults end in about a minute; `tiny()`, a classmethod, in a second or two;
                               `quick()`, where `reproduce --quick` should take another than the tiny one
    run(config)                -> record of arrays
    claims(config, record)     -> list of numdl.reporting.Claim, expectations and tolerances fixed beforehand; `origin`
                               says whose number it is: "exact" (theorem, formula, independent computation),
                               "published" (a number or a sign that a paper reports), "own" (a limit chosen here)
    figure(config, record)     -> matplotlib Figure
    GLOSSARY                   optional: {symbol: what it means}, for the page
"""

import importlib
import re

NAME = re.compile(r"[a-z][0-9]+_[a-z0-9_]+")


def __getattr__(name):
    """An experiment by its name alone, whichever group's folder it is in: `from experiments import d2_two_spaces`."""
    if NAME.fullmatch(name):
        runner = importlib.import_module("experiments.runner")
        if name in runner.files():
            return runner.load(name)
    raise AttributeError(f"module 'experiments' has no attribute {name!r}")
