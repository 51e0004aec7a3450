"""The papers behind a function, as BibTeX, from its `Source:` line.

    >>> import numdl as nd
    >>> print(nd.cite(nd.theory.propagation.length_map).splitlines()[0])
    @misc{poole2016exponential,

What a line names is looked up in `references.bib`: by its arXiv number, or by first author and year. A fact that is not
recorded there is never made up: the function is refused.
"""

import functools
import inspect
import pathlib
import re
import unicodedata
from collections.abc import Callable
from types import ModuleType

from numdl import checks

FILE = pathlib.Path(__file__).with_name("references.bib")
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5}|[a-z-]+/\d{7})")
AUTHOR = r"(?:[A-Z]\. )*[A-ZÀ-Ž][\w'-]+"
NAMED = re.compile(rf"({AUTHOR}(?:,? (?:& |and |et al\.?|[a-z]{{2,3}} )?(?:{AUTHOR})?)*),? ((?:18|19|20)\d\d)\b")
TITLED = re.compile(rf"({AUTHOR})\b.*[,(] ?((?:18|19|20)\d\d)\b")  # a title stands between author and year


def cite(function: Callable | ModuleType) -> str:
    """The BibTeX of the papers that a function (or a module) implements, in the order of its source line.

    Parameters
    ----------
    function : function         of numdl, with a docstring that names its source; a module, a record or a class too
    Returns
    -------
    str                         entries, one after the other
    Raises
    ------
    TypeError                   not a function, class or module
    ValueError                  no source line, one that names no paper ("the definition"), or no reference recorded for
                                a paper that it names
    """
    if not (callable(function) or inspect.ismodule(function)):
        raise checks.BadType(f"function must be a function, a class or a module; got {checks.shown(function)}")
    name = getattr(function, "__name__", repr(function))
    line = source(inspect.getdoc(function) or "")
    if not line:
        raise checks.BadValue(f"{name} names no source in its docstring")
    found, missing = resolve(line)
    if missing:
        raise checks.BadValue(f"{name} has no reference recorded for {'; '.join(missing)}")
    if not found:
        raise checks.BadValue(f"{name} names no paper: its source is {line!r}")
    entries = references()
    return "\n".join(entries[key] for key in found)


def source(text: str) -> str:
    """What a docstring says after `Source:`, on one line; "" where it says nothing."""
    found = re.search(
        r"(?:^|\s)Sources?: (.*?)(?=\s+(?:Twins?|Experiments?):|\n\s*\n|\Z)", text, flags=re.MULTILINE | re.DOTALL
    )
    return " ".join(found[1].split()) if found else ""


def resolve(line: str) -> tuple[list[str], list[str]]:
    """(keys of references.bib, papers that it does not have) of a source line, in its order."""
    found, missing = [], []
    for piece in re.split(r"; ", line):
        numbers = ARXIV.findall(piece)
        known = {f"arXiv:{number}": _numbers().get(number) for number in numbers} if numbers else _named(piece)
        for paper, key in known.items():
            (found if key else missing).append(key or paper)
    return list(dict.fromkeys(found)), list(dict.fromkeys(missing))


def _named(piece):
    """{"Poole 2016": key or None}: the one paper of that year with this first author and all others who are named."""
    named = {}
    titled = TITLED.match(piece) if not NAMED.match(piece) else None
    for authors, year in [titled.groups()] if titled else NAMED.findall(piece):
        surnames = [name for name in re.findall(r"[A-Z][\w'-]+", _plain(authors)) if len(name) > 1 or name == "E"]
        keys = [
            key
            for key, entry in references().items()
            if _field(entry, "year") == year
            and _surnames(entry)[0] == surnames[0]
            and set(surnames) <= set(re.findall(r"[\w'-]+", _plain(_field(entry, "author"))))
        ]
        named[f"{surnames[0]} {year}"] = keys[0] if len(keys) == 1 else None
    return named


@functools.cache
def references() -> dict[str, str]:
    """{key: BibTeX entry} of all papers recorded."""
    text = FILE.read_text(encoding="utf-8")
    return {found[1]: found[0].strip() + "\n" for found in re.finditer(r"@\w+\{([^,]+),\n.*?\n\}", text, re.DOTALL)}


@functools.cache
def _numbers():
    """Keys by arXiv number."""
    return {_field(entry, "eprint"): key for key, entry in references().items()}


def _surnames(entry):
    authors = _plain(_field(entry, "author")).split(" and ")
    return [name.split(",")[0] if "," in name else name.split()[-1] for name in authors]


def _plain(text):
    """Without accents and braces: Björck is found as Bjorck, and written as LaTeX too."""
    bare = unicodedata.normalize("NFKD", re.sub(r"\\.|[{}]", "", text))
    return "".join(letter for letter in bare if not unicodedata.combining(letter))


def _field(entry, name):
    found = re.search(rf"^  {name} = \{{(.*)\}},$", entry, flags=re.MULTILINE)
    return found[1] if found else ""
