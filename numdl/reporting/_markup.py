"""Markup from text: every other value is text and is escaped where it enters, so no text can become markup."""

import html
import re
import textwrap
from typing import Any

VOID = ("br", "hr", "img", "meta")


class Markup(str):
    """Text that is HTML already; everything else is escaped on its way in."""


def prose(text: str) -> Markup:
    """Paragraphs at blank lines; lines that begin with "- " are a list; indented lines are a formula, kept as set.

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


def formula(text):
    """Text with indices set low and powers high: K_3, q_{l+1}, chi_1, n^2; names such as fan_in stay as they are."""
    text = re.sub(r"(?<![A-Za-z0-9_])([^\W\d_]+_[0-9]+|[^\W\d_]_[A-Za-z])(?![A-Za-z0-9_])", _low, html.escape(text))
    text = re.sub(r"(?<=\w)_\{([^{}]*)\}", r"<sub>\1</sub>", text)
    return Markup(re.sub(r"(?<=[\w)\]|])\^(?:\{([^{}]*)\}|(-?[0-9]+|[A-Za-z](?![A-Za-z0-9_])))", _high, text))


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """One element; texts among children and attributes are escaped, None and empty ones are left out.

    Parameters
    ----------
    name : str                  the element, "p"
    *children : Markup or text  what it holds
    **attributes : Any          `class_` and `data_label` are written class and data-label
    Returns
    -------
    Markup
    """
    shown = {k.rstrip("_").replace("_", "-"): v for k, v in attributes.items() if v is not None}
    opened = name + "".join(f' {k}="{html.escape(str(v))}"' for k, v in shown.items())
    if name in VOID:
        return Markup(f"<{opened}>")
    inner = "".join(c if isinstance(c, Markup) else html.escape(str(c)) for c in children if c is not None)
    return Markup(f"<{opened}>{inner}</{name}>")


def _low(match):
    base, index = match[1].split("_")
    return f"{base}<sub>{index}</sub>"


def _high(match):
    return f"<sup>{match[1] or match[2]}</sup>"


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
    return "".join({"list": _list, "text": _paragraph, "formula": _formula}[kind](lines) for kind, lines in runs)


def _list(lines):
    items = re.split(r"\n(?=- )", "\n".join(lines))
    return tag("ul", *(tag("li", inline(" ".join(item[2:].split()))) for item in items))


def _paragraph(lines):
    return tag("p", inline(" ".join(" ".join(lines).split())))


def _formula(lines):
    return tag("pre", formula(textwrap.dedent("\n".join(lines))))
