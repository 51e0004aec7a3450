"""Make docs/lectures.md from lectures.toml and the experiments' docstrings; with `--check` say whether it is old."""

import pathlib
import sys
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from experiments import runner  # noqa: E402

TEXT = """# Systems of the lectures

What the lectures show, the functions that compute it, and the experiments that ask a numerical question of it
(`python -m experiments run f1`). Made from `docs/lectures.toml` by `python docs/lectures.py`.

{systems}

## Experiments and where a lecture shows them

Decks that are numbered are those of {course} ({source}): {decks}. Where an experiment names a subject only, no numbered
deck of it is known.

{experiments}
"""


def load():
    """The course, its decks and the systems, as dictionaries."""
    return tomllib.loads((HERE / "lectures.toml").read_text(encoding="utf-8"))


def shown():
    """{short name: (question, lecture)} of every experiment whose docstring names a lecture."""
    parts = {name.split("_")[0]: runner.headings(name) for name in runner.names()}
    return {short: (part["title"], part["Lecture"]) for short, part in parts.items() if part["Lecture"]}


def page(table):
    """The page's text."""
    systems = [
        [row["name"], ", ".join(f"`{name}`" for name in row["functions"]), ", ".join(row["experiments"])]
        for row in table["system"]
    ]
    return TEXT.format(
        systems=_table(["system", "functions of numdl", "shown in"], systems),
        course=table["course"]["name"],
        source=table["course"]["source"],
        decks=", ".join(f"{deck['number']}, {deck['title']}" for deck in table["deck"]),
        experiments=_table(["", "question", "lecture"], [[short, *parts] for short, parts in shown().items()]),
    )


def _table(heads, rows):
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


if __name__ == "__main__":
    target = HERE / "lectures.md"
    new = page(load())
    if "--check" in sys.argv:
        old = target.read_text(encoding="utf-8") if target.is_file() else ""
        sys.exit("docs/lectures.md is older than its sources: python docs/lectures.py" if new != old else 0)
    target.write_text(new, encoding="utf-8")
