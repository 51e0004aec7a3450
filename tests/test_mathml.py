"""Formulas as they are written become MathML of the same meaning; what cannot be read stays as it is."""

import ast
import re
import xml.etree.ElementTree

import pytest

from experiments import runner
from numdl import reporting
from numdl.reporting import _mathml

ARITY = {"mfrac": 2, "msub": 2, "msup": 2, "msubsup": 3, "msqrt": 1}


def meaning(node):
    """The tree as nested calls, rows dissolved where they add nothing: an oracle for the eye."""
    inner = [meaning(child) for child in node if child.tag != "mspace"]
    if node.tag in ("math", "mrow"):
        return " ".join(inner)
    return f"{node.tag}({', '.join(inner)})" if inner else node.text


def read(text):
    return meaning(xml.etree.ElementTree.fromstring(_mathml.cell(text)))


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("q_{l+1} = w q_l + b", "msub(q, l + 1) = w msub(q, l) + b"),
        ("(1 + h^2 w v / 2)^L", "msup(( 1 + mfrac(msup(h, 2) w v, 2) ), L)"),
        ("2 / sqrt(pi) exp(-y^2)", "mfrac(2, msqrt(π)) exp ( − msup(y, 2) )"),
        ("|W / |W| - M / |M||_F -> 0", "msub(| mfrac(W, | W |) − mfrac(M, | M |) |, F) → 0"),
        ("E |y_L - y_0|^2", "E msup(| msub(y, L) − msub(y, 0) |, 2)"),
        ("sum_{i <= k} (v_i . g)^2 / |g|^2", "mfrac(msub(∑, i ≤ k) msup(( msub(v, i) · g ), 2), msup(| g |, 2))"),
        ("-1 / (C - 1)", "− mfrac(1, C − 1)"),
        ("|w*|^2 / (h t) (1 + o(1))", "mfrac(msup(| msup(w, ∗) |, 2), h t) ( 1 + o ( 1 ) )"),
        ("rate * sigma^-1", "rate · msup(σ, − 1)"),
        ("A^+ f'(x)", "msup(A, +) msup(f, ′) ( x )"),
        ("S_B^+ x_n.v, 0.5.", "msubsup(S, B, +) msub(x, n) · v , 0.5 ."),
        ("weight_variance E[f f]", "weight_variance E [ f f ]"),
        ("Theta_0 ~ 10^-3 lambda_{k+1}", "msub(Θ, 0) ∼ msup(10, − 3) msub(λ, k + 1)"),
        ("a < b & c", "a < b & c"),
    ],
)
def test_a_formula_means_what_is_written(text, wanted):
    assert read(text) == wanted


@pytest.mark.parametrize(
    "text",
    ["x)", "(x", "|x", "x^", "x_", "a ^ 2", "the class means become a simplex", "/ 2", "x^]", "_", "", "<b>&", "{"],
)
def test_what_is_no_formula_loses_nothing(text):
    shown = _mathml.cell(text)
    plain = "".join(xml.etree.ElementTree.fromstring(f"<p>{shown}</p>").itertext())
    assert re.sub(r"\s", "", plain) == re.sub(r"\s", "", text)


def test_cells_and_lines_stand_below_each_other():
    shown = reporting.prose("    a = 1    for small h\n    b = 2 / 3    else")
    root = xml.etree.ElementTree.fromstring(shown)
    assert [len(row) for row in root[0]] == [2, 2]
    assert root.get("class") == "formulas"


def test_every_formula_of_the_experiments_is_well_formed_and_nearly_all_are_read():
    lines = [
        text
        for file in runner.files().values()
        for line in (ast.get_docstring(ast.parse(file.read_text())) or "").split("\n")
        if line.startswith("    ")
        for text in re.split(r"\s{2,}", line.strip())
    ]
    shown = [_mathml.cell(text) for text in lines]
    for markup in shown:
        for node in xml.etree.ElementTree.fromstring(f"<p>{markup}</p>").iter():
            assert len(node) == ARITY.get(node.tag, len(node)), markup
    read = [text for text, markup in zip(lines, shown, strict=True) if markup.startswith("<math")]
    assert len(read) > 0.6 * len(lines) > 20
