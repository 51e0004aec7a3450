"""A page for each experiment from its docstring, and one that lists them by groups; made anew at every build."""

import re
import sys

import docstrings
import formulas

sys.path.insert(0, str(docstrings.ROOT))

from experiments import runner


def short_names():
    """{short name: full name} of all experiments."""
    return {name.split("_")[0]: name for name in runner.names()}


def write(folder, reference):
    """Write the pages into a folder that exists."""
    lines = [
        "# Experiments",
        "",
        "One file, one question: theory's prediction beside the measurement, claims that can fail.",
        "",
    ]
    for group, names in runner.groups(runner.names()):
        first = group.strip().split("\n")[0]
        lines += ["", f"## {reference.prose(first)}", "", "| | question |", "|---|---|"]
        for name in names:
            title = reference.prose(runner.headings(name)["title"]).replace("|", r"\|")
            lines.append(f"| [{name.split('_')[0]}]({name}.md) | {title} |")
            (folder / f"{name}.md").write_text(page(name, reference), encoding="utf-8")
    lines += ["", "```{toctree}", ":hidden:", "", *runner.names(), "```", ""]  # b2 before b10
    (folder / "index.md").write_text("\n".join(lines), encoding="utf-8")


def page(name, reference):
    """One experiment's page."""
    short, parts = name.split("_")[0], runner.headings(name)
    file = runner.source(name).relative_to(docstrings.ROOT)
    lines = [f"# {short}: {reference.prose(parts['title'])}", ""]
    if parts["Lecture"]:
        lines += [f"*Lecture: {reference.prose(parts['Lecture'])}*", ""]
    for heading in runner.HEADINGS:
        lines += [f"## {heading}", "", *paragraphs(parts[heading], reference), ""]
    shown = [full for full, entry in functions(reference) if short in entry.parts.experiments]
    if shown:
        lines += ["## Functions that it shows", "", *(f"- {reference.link(full, full[6:])}" for full in shown), ""]
    return "\n".join([*lines, "```", f"python -m experiments run {short}", "```", "", f"The file: `{file}`.", ""])


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
