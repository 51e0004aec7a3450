"""Self-contained HTML: one file, no request to anywhere, readable on a phone, on paper and in the dark.

Every piece is a `Markup`; any other value is text and is escaped where it enters, so no text can become markup.

    page("Title", [section("One", prose(text), table(("a", "b"), rows))], intro="What this is.")
"""

import base64
import functools
import html
import importlib.resources
import re
import textwrap

from numdl import checks
from numdl.reporting._claims import checked_claims, margin_text
from numdl.reporting._runs import image

VOID = ("br", "hr", "img", "meta")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Markup(str):
    """Text that is HTML already; everything else is escaped on its way in."""


def page(title, sections, *, intro="", lead=(), contents=True):
    """A whole page as text: title, introduction, what `lead` holds, a table of contents, the sections.

    Parameters
    ----------
    title : str                 heading and window title
    sections : list             of `section(...)`
    intro : str                 prose for a reader who knows nothing yet
    lead : list of Markup       what comes before the contents: a scoreboard, a verdict
    contents : bool             list the sections, where `lead` does not link them already
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


def section(title, *children):
    """A section with a heading and an anchor made from it."""
    anchor = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-") or "section"
    made = Section(tag("section", tag("h2", formula(title)), *children, id=anchor))
    made.title, made.anchor = title, anchor
    return made


def run_section(run, *, title, parts, symbols=None):
    """One run: question, theory beside measurement, figure, where they agree, claims, config, environment.

    `parts` holds the texts "Question", "Prediction", "Measurement" and "Verdict"; `symbols` a glossary.
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


def claims_table(claims):
    """The claims: what holds in words and a sign, expected beside measured, and where the tolerance comes from."""
    rows = []
    for c in checked_claims(claims):
        mark = tag("span", "✓ holds" if c.holds else "✗ fails", class_="yes" if c.holds else "no")
        sentence = tag("div", formula(c.claim), tag("small", c.source))
        allowed = tag("div", f"{c.tolerance:.2g}", tag("small", c.tolerance_from))
        rows.append((mark, sentence, c.expected_text(), c.measured_text(), allowed, margin_text(c.margin)))
    return table(("verdict", "claim", "expected", "measured", "tolerance", "margin"), rows, class_="claims")


def scoreboard(scores, titles, links=None):
    """Verdict, claims, smallest margin, seconds, maps of each `Score`; titles link to `links`, or to their sections."""
    rows = []
    for i, (score, title) in enumerate(zip(scores, titles, strict=True)):
        address = links[i] if links else f"#{section(title).anchor}"
        named = tag("a", formula(title), href=address) if address else formula(title)
        named = tag("div", named, tag("small", score.problem)) if score.problem else named
        held = sum(claim.holds for claim in score.claims)
        claims = f"{held} of {len(score.claims)}" if score.claims else "—"
        margin = margin_text(score.margin) if score.claims else "—"
        rows.append((_mark(score), named, claims, margin, f"{score.seconds:.1f} s", _short(score.maps)))
    return table(("verdict", "experiment", "claims", "margin", "time", "maps"), rows, class_="score")


def table(header, rows, *, class_=None):
    """A table; on a narrow screen each row becomes a card whose cells carry their column's name."""
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


def figure_image(figure, *, alt, caption=None):
    """A matplotlib figure, or the bytes of an SVG, as an image inside the page."""
    checks.instance("alt", alt, str, hint="not empty")
    if not alt.strip():
        raise checks.BadValue(f"alt must be a text that is not empty; got {alt!r}")
    if not isinstance(figure, bytes) and not hasattr(figure, "savefig"):
        raise checks.BadType(f"figure must be a figure of matplotlib or the bytes of a picture; got {figure!r:.60}")
    content = figure if isinstance(figure, bytes) else image(figure, "svg")
    data = f"data:image/svg+xml;base64,{base64.b64encode(content).decode()}"
    return tag("figure", tag("img", src=data, alt=alt), tag("figcaption", caption) if caption else "")


def glossary(symbols):
    """Symbols and what they mean."""
    return tag(
        "dl", *(tag("div", tag("dt", formula(symbol)), tag("dd", inline(text))) for symbol, text in symbols.items())
    )


def details(summary, *children):
    """Something folded away until it is asked for."""
    return tag("details", tag("summary", summary), *children)


def prose(text):
    """Paragraphs at blank lines; lines that begin with "- " are a list; indented lines are a formula, kept as set."""
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


def tag(name, /, *children, **attributes):
    """One element; texts among children and attributes are escaped, None and empty ones are left out."""
    shown = {k.rstrip("_").replace("_", "-"): v for k, v in attributes.items() if v is not None}
    opened = name + "".join(f' {k}="{html.escape(str(v))}"' for k, v in shown.items())
    if name in VOID:
        return Markup(f"<{opened}>")
    inner = "".join(c if isinstance(c, Markup) else html.escape(str(c)) for c in children if c is not None)
    return Markup(f"<{opened}>{inner}</{name}>")


def _mark(score):
    text = "✓ all hold" if score.good else "✗ no result" if score.problem else "✗ some fail"
    return tag("span", text, class_="yes" if score.good else "no")


def _low(match):
    base, index = match[1].split("_")
    return f"{base}<sub>{index}</sub>"


def _high(match):
    return f"<sup>{match[1] or match[2]}</sup>"


def _half(heading, text):
    return tag("div", tag("h3", heading), prose(text))


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


def _short(value):
    text = "—" if value is None else str(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


@functools.cache
def _style():
    return importlib.resources.files("numdl.reporting").joinpath("page.css").read_text(encoding="utf-8")
