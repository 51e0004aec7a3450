"""Self-contained HTML: one file, no request to anywhere, readable on a phone, on paper and in the dark.

Every piece is a `Markup`; any other value is text and is escaped where it enters, so no text can become markup.

    page("Title", [section("One", prose(text), table(("a", "b"), rows))], intro="What this is.")
"""

import base64
import functools
import importlib.resources
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from numdl import checks
from numdl.reporting._boards import Score, margin_text
from numdl.reporting._claims import Claim, checked_claims
from numdl.reporting._encoding import image
from numdl.reporting._markup import Markup, formula, tag
from numdl.reporting._prose import inline, prose
from numdl.reporting._runs import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def page(
    title: str, sections: Sequence["Section"], *, intro: str = "", lead: Sequence[Markup] = (), contents: bool = True
) -> str:
    """A whole page as text: title, introduction, what `lead` holds, a table of contents, the sections.

    Parameters
    ----------
    title : str                 heading and window title
    sections : list             of `section(...)`
    intro : str                 prose for a reader who knows nothing yet
    lead : list of Markup       what comes before the contents: a scoreboard, a verdict
    contents : bool             list the sections, where `lead` does not link them already
    Returns
    -------
    str                         the page's HTML, to be written as UTF-8
    """
    titles = [(part.anchor, part.title) for part in sections]
    links = tag("nav", *(tag("a", formula(name), href=f"#{to}") for to, name in titles), aria_label="Contents")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("title", title),
        Markup(f"<style>{_style()}</style>"),
    )
    top = tag("header", tag("h1", formula(title)), prose(intro), *lead)
    body = tag("body", tag("main", top, links if contents and len(titles) > 1 else "", *sections))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


class Section(Markup):
    """A section's markup, with the title and anchor that the contents list needs."""

    title: str  # ty: ignore[incompatible-attribute-override]  (shadows str.title)
    anchor: str


def section(title: str, *children: Any) -> Section:
    """A section with a heading and an anchor made from it.

    Parameters
    ----------
    title : str                 the heading
    *children : Markup or text  what it holds; text is escaped
    Returns
    -------
    Section                     markup, with the title and the anchor that the contents list links to
    """
    anchor = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
    made = Section(tag("section", tag("h2", formula(title)), *children, id=anchor))
    made.title, made.anchor = title, anchor
    return made


def run_section(run: Run, *, title: str, parts: dict, symbols: dict | None = None) -> Section:
    """One run: question, theory beside measurement, figure, where they agree, claims, config, environment.

    Parameters
    ----------
    run : Run                   of `load` or `save`
    title : str                 the heading
    parts : dict                the texts "Question", "Prediction", "Measurement" and "Verdict" (which may be empty)
    symbols : dict or None      a glossary, symbol -> meaning
    Returns
    -------
    Section                     for `page`
    Raises
    ------
    KeyError                    one of the four parts is missing
    """
    about = {k: v for k, v in run.environment.items() if k != "files"}
    picture = run.folder / "figure.svg"
    return section(
        title,
        tag("div", prose(parts["Question"]), class_="question"),
        tag("div", _half("Theory says", parts["Prediction"]), _half("We measured", parts["Measurement"]), class_="two"),
        figure_image(picture.read_bytes(), alt=f"{title}: theory and measurement") if picture.is_file() else "",
        tag("h3", "Do they agree?"),
        agreement(run.claims),
        claims_table(run.claims),
        tag("div", tag("h3", "Verdict"), prose(parts["Verdict"])) if parts["Verdict"] else "",
        details("Symbols", glossary(symbols)) if symbols else "",
        details("Configuration", table(("field", "value"), [(k, _short(v)) for k, v in run.config.items()])),
        details("Environment", table(("what", "value"), [(k, _short(v)) for k, v in about.items()])),
    )


def agreement(claims):
    """One sentence: how many claims hold, and which do not."""
    failing, total = [claim.claim for claim in claims if not claim.holds], len(claims)
    if not failing:
        count = f"All {total} claims hold." if total > 1 else "The one claim holds."
        return tag("p", tag("strong", count), " Theory and measurement agree.")
    count = f"{len(failing)} of {total} {'claims' if total > 1 else 'claim'} not within tolerance:"
    return tag(
        "div",
        tag("p", tag("strong", count)),
        tag("ul", *(tag("li", formula(text)) for text in failing)),
        class_="fails",
    )


def claims_table(claims: Sequence[Claim]) -> Markup:
    """The claims: what holds in words and a sign, expected (and whose number) beside measured, and why.

    Parameters
    ----------
    claims : list of Claim
    Returns
    -------
    Markup                      a table, a row for each claim
    Raises
    ------
    TypeError                   not a list of Claim
    """
    rows = []
    for c in checked_claims(claims):
        mark = tag("span", "✓ holds" if c.holds else "✗ fails", class_="yes" if c.holds else "no")
        failure = tag("small", c.failure_text(), class_="why") if not c.holds else ""
        sentence = tag("div", formula(c.claim), tag("small", c.source), failure)
        allowed = tag("div", f"{c.tolerance:.2g}", tag("small", c.tolerance_from))
        expected = tag("div", c.expected_text(), tag("small", c.origin))
        rows.append((mark, sentence, expected, c.measured_text(), allowed, margin_text(c.margin)))
    return table(("verdict", "claim", "expected", "measured", "tolerance", "margin"), rows, class_="claims")


def scoreboard(scores: Sequence[Score], titles: Sequence[str], links: Sequence[str] | None = None) -> Markup:
    """Verdict, claims, smallest margin and seconds of each experiment, as a table.

    Parameters
    ----------
    scores : list of Score      one for each experiment
    titles : list of str        their titles, as many
    links : list of str         where each title leads; an empty text: nowhere. None: to the section of that title
    Returns
    -------
    Markup                      a table, a row for each score
    Raises
    ------
    ValueError                  another number of titles than scores
    """
    rows = []
    for i, (score, title) in enumerate(zip(scores, titles, strict=True)):
        address = links[i] if links else f"#{section(title).anchor}"
        named = tag("a", formula(title), href=address) if address else formula(title)
        named = tag("div", named, tag("small", ": ".join(filter(None, (score.name, score.problem)))))
        held = sum(claim.holds for claim in score.claims)
        claims = f"{held} of {len(score.claims)}" if score.claims else "—"
        margin = margin_text(score.margin) if score.claims else "—"
        rows.append((_mark(score), named, claims, margin, f"{score.seconds:.1f} s"))
    return table(
        ("verdict", "experiment", "claims", "least margin (standard errors)", "time"),
        rows,
        class_="score",
    )


def table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, class_: str | None = None) -> Markup:
    """A table; on a narrow screen each row becomes a card whose cells carry their column's name.

    Parameters
    ----------
    header : tuple of str       the columns' names
    rows : list of tuples       cells, Markup or text, as many as the header has names
    class_ : str or None        CSS class of the table
    Returns
    -------
    Markup
    Raises
    ------
    TypeError                   rows that are not a list of tuples
    ValueError                  a row with another number of cells than the header
    """
    header, rows = tuple(header), _rows(header, rows)
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in header)))
    body = [
        tag("tr", *(tag("td", cell, data_label=name) for name, cell in zip(header, row, strict=True))) for row in rows
    ]
    return tag("table", head, tag("tbody", *body), class_=class_)


def _rows(header, rows):
    # A text is a sequence of letters, and no row.
    if not isinstance(rows, list | tuple) or not all(isinstance(row, list | tuple) for row in rows):
        raise checks.BadType(f"rows must be a list of tuples of {len(tuple(header))} cells; got {rows!r:.60}")
    for row in rows:
        if len(row) != len(tuple(header)):
            raise checks.BadValue(f"rows must have {len(tuple(header))} cells each, like the header; got {row!r:.60}")
    return rows


def figure_image(figure: "Figure | bytes", *, alt: str, caption: str | None = None) -> Markup:
    """A matplotlib figure, or the bytes of an SVG or a PNG, as an image inside the page.

    Parameters
    ----------
    figure : Figure or bytes    of matplotlib, or an SVG or PNG file's content
    alt : str                   what the picture shows, for those who do not see it; not empty
    caption : str or None       a line below it
    Returns
    -------
    Markup                      the picture is part of the page: nothing is loaded
    Raises
    ------
    TypeError, ValueError       an empty `alt`, or a figure that is neither
    """
    checks.instance("alt", alt, str, hint="not empty")
    if not alt.strip():
        raise checks.BadValue(f"alt must be a text that is not empty; got {alt!r}")
    if not isinstance(figure, bytes) and not hasattr(figure, "savefig"):
        raise checks.BadType(f"figure must be a figure of matplotlib or the bytes of a picture; got {figure!r:.60}")
    content = figure if isinstance(figure, bytes) else image(figure, "svg")
    kind = "png" if content.startswith(b"\x89PNG") else "svg+xml"
    data = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return tag("figure", tag("img", src=data, alt=alt), tag("figcaption", caption) if caption else "")


def glossary(symbols: dict) -> Markup:
    """Symbols and what they mean, as a list.

    Parameters
    ----------
    symbols : dict              symbol ("chi_1") -> meaning (text, with `code` between backticks)
    Returns
    -------
    Markup
    """
    return tag(
        "dl", *(tag("div", tag("dt", formula(symbol)), tag("dd", inline(text))) for symbol, text in symbols.items())
    )


def details(summary: str, *children: Any) -> Markup:
    """Something folded away until it is asked for.

    Parameters
    ----------
    summary : str               the line that is always visible
    *children : Markup or text  what unfolds
    Returns
    -------
    Markup
    """
    return tag("details", tag("summary", summary), *children)


def _mark(score):
    text = "✓ all hold" if score.good else "✗ no result" if score.problem else "✗ some fail"
    return tag("span", text, class_="yes" if score.good else "no")


def _half(heading, text):
    return tag("div", tag("h3", heading), prose(text))


def _short(value):
    text = "—" if value is None else str(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


@functools.cache
def _style():
    return importlib.resources.files("numdl.reporting").joinpath("page.css").read_text(encoding="utf-8")
