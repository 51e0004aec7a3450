"""Prose as docstrings have it: paragraphs, lists, code between backticks, formulas on indented lines."""

import re

from numdl.reporting._markup import Markup, formula, tag
from numdl.reporting._mathml import formulas


def prose(text: str) -> Markup:
    """Paragraphs at blank lines; lines that begin with "- " are a list; indented lines are formulas, as MathML.

    Parameters
    ----------
    text : str                  with `code` between backticks, indices and powers as in chi_1, q_{l+1}, n^2
    Returns
    -------
    Markup
    """
    blocks = re.split(r"\n\s*\n", text.strip("\n"))
    return Markup("".join(_block(block) for block in blocks if block.strip()))


def inline(text):
    """One paragraph's text, with `code` between backticks."""
    pieces = re.split(r"``([^`]+)``|`([^`]+)`", text)
    made = []
    for i in range(0, len(pieces), 3):
        made.append(formula(pieces[i]))
        made += [tag("code", code) for code in pieces[i + 1 : i + 3] if code]
    return Markup("".join(made))


def _block(block):
    """One block's runs of lines of one kind: text, list or formula."""
    runs, kind = [], None
    for line in block.split("\n"):
        now = "list" if line.startswith("- ") or (kind == "list" and line.startswith(" ")) else "text"
        now = "formula" if now == "text" and line.startswith("    ") else now
        if now != kind:
            runs.append((now, []))
        runs[-1][1].append(line)
        kind = now
    return "".join({"list": _list, "text": _paragraph, "formula": formulas}[kind](lines) for kind, lines in runs)


def _list(lines):
    items = re.split(r"\n(?=- )", "\n".join(lines))
    return tag("ul", *(tag("li", inline(" ".join(item[2:].split()))) for item in items))


def _paragraph(lines):
    return tag("p", inline(" ".join(" ".join(lines).split())))
