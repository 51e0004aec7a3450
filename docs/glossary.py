"""The glossary, from symbols.toml: each quantity under the names that the field has for it, with its formula and links.

Every synonym is an entry of the site's index, so that its search leads to the quantity: "SLQ", "noise scale", "xi_c".
"""

import re

import formulas
import symbols


def page(reference):
    """The page's text."""
    lines = ["# Glossary", "", "What the field calls it, and the functions and experiments of numdl that have it.", ""]
    for row in sorted(symbols.load(), key=lambda row: row["name"].lower()):
        for synonym in dict.fromkeys([re.split("[:,;]", row["name"])[0], *row["synonyms"]]):
            lines += [f"```{{index}} ! single: {synonym}", "```"]  # "!": first among what the search finds
        lines += [f"## {reference.prose(_titled(row['name']))}", ""]
        lines += [f"${row['symbol']}$, also called *{'*, *'.join(reference.prose(s) for s in row['synonyms'])}*.", ""]
        shown = formula(row, reference)
        if shown:
            lines += ["```{raw} html", formulas.block(shown), "```", ""]
        for side in ("predicted", "measured"):
            if row[side]:
                links = (reference.link(f"numdl.{name}", name) for name in row[side])
                lines.append(f"- **{side}** by {', '.join(links)}")
        if row["experiments"]:
            lines.append(f"- **shown** in {', '.join(map(reference.experiment, row['experiments']))}")
        lines.append("")
    return "\n".join(lines)


def formula(row, reference):
    """The first formula in the docstrings of a quantity's functions, or ""."""
    entries = {f"{m.name}.{e.name}": e for m in reference.modules for e in m.functions}
    bodies = {m.name: m.parts.body for m in reference.modules}
    names = [f"numdl.{name}" for name in (*row["predicted"], *row["measured"])]
    texts = [entries[name].parts.body for name in names]
    texts += [bodies[name.rpartition(".")[0]] for name in names]
    for text in texts:
        found = first_formula(text)
        if found:
            return found
    return ""


def first_formula(text):
    """The first run of indented lines that is a formula."""
    run = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("    ") and ">>>" not in line:
            run.append(line)
        elif run and any(sign in "\n".join(run) for sign in ("=", "<", "~", "->")):
            return "\n".join(run)
        else:
            run = []
    return ""


def _titled(name):
    return name[:1].upper() + name[1:]
