"""Markup from text: every other value is text and is escaped where it enters, so no text can become markup."""

import html
import re
from typing import Any

VOID = ("br", "hr", "img", "meta")


class Markup(str):
    """Text that is HTML already; everything else is escaped on its way in."""


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
