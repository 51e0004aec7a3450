"""Experiments: one file, one question, theory's prediction beside the measurement.

    python -m experiments list
    python -m experiments run a1_init_scaling --width 200 --json
    python -m experiments reproduce --jobs 2
    python -m experiments margins

An experiment is a file `<letter><number>_<words>.py` here. The first line of its docstring is the question as a title;
four headings follow, each a word on a line of its own underlined by dashes: Question, Prediction
(equation, source), Measurement, Verdict (how many samples, machine, seconds). Inside:

    @dataclass(frozen=True)
    class Config               its defaults end in about a minute; `tiny()`, a classmethod, in a second or two
    run(config)                -> record of arrays
    claims(config, record)     -> list of numdl.reporting.Claim, with expectations and tolerances fixed beforehand
    figure(config, record)     -> matplotlib Figure
    GLOSSARY                   optional: {symbol: what it means}, for the page
"""
