"""What claims name in a paper, a figure or an equation, and whether it was looked up in the paper's text.

`sources.toml` says what was looked up and what is there; what it does not list was not checked, and the scoreboard says
so.
"""

import functools
import pathlib
import re
import tomllib
from typing import NamedTuple

FILE = pathlib.Path(__file__).with_name("sources.toml")
KINDS = {
    "fig": "figure", "figs": "figure", "figure": "figure", "figures": "figure", "eq": "equation", "eqs": "equation",
    "table": "table", "section": "section", "sec": "section", "chapter": "chapter", "theorem": "theorem",
    "lemma": "lemma", "proposition": "proposition", "corollary": "corollary", "definition": "definition",
    "example": "example",
}  # fmt: skip
NUMBER = r"\(?(?:[A-Z]\.)?(?:\d+(?:\.\d+)*[a-z]?|[IVX]+)\)?"
NAMED = re.compile(rf"\b({'|'.join(KINDS)})\.? ({NUMBER}(?:(?:, | and | to ){NUMBER})*)(?![\w%])", re.IGNORECASE)


class Place(NamedTuple):
    """A figure, equation, table or section of a paper, as a claim's source names it."""

    kind: str
    number: str

    def __str__(self):
        return f"{self.kind} {self.number}"


def places(source):
    """The places that a source names: "eqs. (9), (10), figs. 6 and 7" has four; "figures 2 to 4" its two ends."""
    found = [(KINDS[match[1].lower()], re.findall(NUMBER, match[2])) for match in NAMED.finditer(source)]
    return [Place(kind, number.strip("()")) for kind, numbers in found for number in numbers]


def unchecked(source):
    """Those of the places that were not looked up."""
    known = [paper for paper in papers() if paper["key"] in source]
    return [place for place in places(source) if not any(place.number in paper.get(place.kind, ()) for paper in known)]


@functools.cache
def papers():
    """The papers that were looked up: key, name, read, found, and lists of numbers by kind of place."""
    return tomllib.loads(FILE.read_text(encoding="utf-8"))["paper"]
