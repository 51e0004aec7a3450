"""How numbers, names and verdicts are written: shared by the terminal's table, the notebook and the page."""

import math
import re
import textwrap
from typing import Any

import numpy as np

from numdl.audit._shown.paths import At, value_at
from numdl.reporting._claims import with_uncertainty

WIDTH = 100  # columns of a terminal
NOTHING = "not measured"


def nothing_found(verdict: str = "will train") -> str:
    """What stands where findings would."""
    if verdict == "will train":
        return "Nothing was found that speaks against training."
    return "No cause was found: the verdict is what the training itself showed, below."


def short(value: Any, form: str = "number") -> str:
    """A number in three or four digits: '0.0123', '1.23e-07', '12 %', '54,210', '∞'; what was not seen is said."""
    if value is None or (isinstance(value, float | np.floating) and math.isnan(value)):
        return NOTHING
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, str):
        return plain(value)
    return _FORMS[form](float(value))


def measured(value: Any, uncertainty: float) -> str:
    """A number with its standard error where there is one: '0.998 ± 0.003'."""
    known = math.isfinite(value) and math.isfinite(uncertainty) and uncertainty > 0
    return with_uncertainty(float(value), float(uncertainty)) if known else short(value)


def plain(text: Any, most: int = 0) -> str:
    """Text without what a terminal or a reader could be misled by; cut in its middle where it is longer than `most`."""
    shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(text))
    if not most or len(shown) <= most:
        return shown
    half = (most - 3) // 2
    return f"{shown[: most - 3 - half]}...{shown[len(shown) - half :]}"


def written(parts: Any, root: Any) -> str:
    """A sentence of texts and numbers by path, as plain text."""
    return "".join(part if isinstance(part, str) else short(value_at(root, part.path), part.form) for part in parts)


def seen(root: Any, *paths: str) -> bool:
    """Whether there is a number at each of these paths, finite or not."""
    return all(_is_number(value_at(root, path)) for path in paths)


def sentence(pattern: str, **paths: Any) -> list:
    """'loss {start} to {end}' and the paths of its numbers as a list of texts and `At`."""
    pieces = re.split(r"\{(\w+)\}", pattern)
    parts = [paths[piece] if i % 2 else piece for i, piece in enumerate(pieces)]
    return [At(part) if i % 2 and isinstance(part, str) else part for i, part in enumerate(parts)]


def folded(sentence, indent=0, hanging=None, width=WIDTH):
    """Lines of at most `width` columns."""
    later = indent if hanging is None else hanging
    return textwrap.wrap(
        sentence, width, initial_indent=" " * indent, subsequent_indent=" " * later, break_on_hyphens=False
    )


def _is_number(value):
    return isinstance(value, int | float | np.number) and not math.isnan(value)


def _number(value):
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        text = f"{value:.4g}" if abs(value) >= 1 else f"{value:.3g}"
        return _grouped(round(value)) if abs(value) >= 1e4 else text
    return f"{value:.2e}"


def _grouped(value):
    return f"{int(value):,}" if math.isfinite(value) else _number(value)


def _share(value):
    if not math.isfinite(value):
        return _number(value)
    low, high = 0 < value < 0.01, 0.99 < value < 1
    return "below 1 %" if low else "above 99 %" if high else f"{100 * value:.0f} %"


_FORMS = {"number": _number, "share": _share, "count": _grouped, "seconds": lambda value: f"{_number(value)} s"}
