"""A page for each experiment, from its docstring and the scoreboard, and a gallery of them by groups; made at every build.

Claims are the scoreboard's lines as they stand there; the pictures lie in `gallery/`, written by the same command.
"""

import re
import sys

import docstrings
import formulas

sys.path.insert(0, str(docstrings.ROOT))

from experiments import runner

HERE = docstrings.ROOT / "docs"
CELL = re.compile(r"(?<!\\)\|")
COLUMNS = ("", "claim", "origin", "expected", "measured", "margin")  # of the board's, those that a page shows


def short_names():
    """{short name: full name} of all experiments."""
    return {name.split("_")[0]: name for name in runner.names()}


def board():
    """Where and when the scoreboard's claims were measured, and {short name: its claims as {column: Markdown}}."""
    text = (HERE / "scoreboard.md").read_text(encoding="utf-8")
    lines = text.partition("## Every claim\n")[2].partition("\n## ")[0].strip().split("\n")
    said, header, _, *rows = (line for line in lines if line)
    header, found = _cells(header), {}
    for row in rows:
        claim = dict(zip(header, _cells(row), strict=True))
        found.setdefault(claim["in"], []).append(claim)
    return said, found


def write(folder, reference):
    """Write the pages into a folder that exists."""
    lines = [
        "# Experiments",
        "",
        "One file, one question: theory's prediction beside the measurement, claims that can fail. All claims in one table,",
        "and the counts of both stacks: the [scoreboard](/scoreboard.md).",
        "",
    ]
    said, claims = board()
    for group, names in runner.groups(runner.names()):
        first = group.strip().split("\n")[0]
        lines += ["", f"## {reference.prose(first)}", "", "`````{container} gallery", ""]
        for name in names:
            found = claims.get(name.split("_")[0], [])
            lines += card(name, found, reference)
            (folder / f"{name}.md").write_text(page(name, said, found, reference), encoding="utf-8")
        lines += ["`````"]
    lines += ["", "```{toctree}", ":hidden:", "", *runner.names(), "```", ""]  # b2 before b10
    (folder / "index.md").write_text("\n".join(lines), encoding="utf-8")


def card(name, claims, reference):
    """An experiment's place in the gallery: its figure, its question, how many of its claims hold."""
    title = reference.prose(runner.headings(name)["title"])
    link = f"[{name.split('_')[0]}: {title}]({name}.md)"
    shown = [f"```{{image}} {picture(name)}", f":alt: {name}", f":target: {name}.html", ":loading: lazy", "```", ""]
    return ["````{container} card", "", *(shown if picture(name) else []), link, "", counted(claims), "", "````", ""]


def page(name, said, claims, reference):
    """One experiment's page."""
    short, parts = name.split("_")[0], runner.headings(name)
    file = runner.source(name).relative_to(docstrings.ROOT)
    lines = [f"# {short}: {reference.prose(parts['title'])}", ""]
    if parts["Lecture"]:
        lines += [f"*Lecture: {reference.prose(parts['Lecture'])}*", ""]
    for heading in runner.HEADINGS:
        lines += [f"## {heading}", "", *paragraphs(parts[heading], reference), ""]
        if heading == "Measurement" and picture(name):
            lines += [f"```{{image}} {picture(name)}", f":alt: figure of {name}", "```", ""]
    if claims:
        lines += ["## Claims", "", f"{counted(claims)} {said}", "", *table(claims), ""]
    shown = [full for full, entry in functions(reference) if short in entry.parts.experiments]
    if shown:
        lines += ["## Functions that it shows", "", *(f"- {reference.link(full, full[6:])}" for full in shown), ""]
    return "\n".join([*lines, "```", f"python -m experiments run {short}", "```", "", f"The file: `{file}`.", ""])


def counted(claims):
    """How many of the claims hold, in words."""
    held = sum(claim[""] == "holds" for claim in claims)
    return f"{held} of {len(claims)} claims hold." if claims else "Not on the scoreboard yet."


def table(claims):
    """The claims of one experiment as Markdown, each with its source in the same cell."""
    rows = [[f"{c['claim']} *({c['source']})*" if at == "claim" else c[at] for at in COLUMNS] for c in claims]
    return ["| " + " | ".join(row) + " |" for row in (COLUMNS, ["---"] * len(COLUMNS), *rows)]


def picture(name):
    """Where an experiment's figure lies, from the pages; None if there is none."""
    return f"/gallery/{name}.png" if (HERE / "gallery" / f"{name}.png").is_file() else None


def functions(reference):
    """(full name, entry) of all public functions."""
    return [(f"{module.name}.{entry.name}", entry) for module in reference.modules for entry in module.functions]


def paragraphs(text, reference):
    """Markdown of a docstring's part: paragraphs with their links, indented formulas typeset."""
    lines = []
    for piece in re.split(r"\n\s*\n", text):
        if piece.startswith("    "):
            lines += ["```{raw} html", formulas.block(piece), "```", ""]
        else:
            lines += [reference.sourced(" ".join(piece.split())), ""]
    return lines


def _cells(line):
    return [cell.strip() for cell in CELL.split(line)[1:-1]]
