"""Make the table of docs/concepts.md from symbols.toml; with `--check` say whether it is old."""

import pathlib
import sys
import tomllib

HERE = pathlib.Path(__file__).resolve().parent
BEGIN, END = "<!-- made from symbols.toml: begin -->", "<!-- made from symbols.toml: end -->"


def load():
    """The rows of the table, as dictionaries."""
    return tomllib.loads((HERE / "symbols.toml").read_text(encoding="utf-8"))["symbol"]


def table(rows):
    """The rows as a Markdown table."""
    lines = ["| symbol | what it is, also called | predicted | measured | shown in |", "|---|---|---|---|---|"]
    for row in rows:
        names = f"{row['name']}; *{', '.join(row['synonyms'])}*"
        cells = [f"${row['symbol']}$", names, *(_code(row[side]) for side in ("predicted", "measured"))]
        lines.append("| " + " | ".join([*cells, ", ".join(row["experiments"])]) + " |")
    return "\n".join(lines)


def page(text, rows):
    """A page's text with the table renewed between its two marks."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(rows)}\n{END}{after}"


def _code(functions):
    return ", ".join(f"`{name}`" for name in functions)


if __name__ == "__main__":
    concepts = HERE / "concepts.md"
    old = concepts.read_text(encoding="utf-8")
    new = page(old, load())
    if "--check" in sys.argv:
        sys.exit("docs/concepts.md is older than docs/symbols.toml: python docs/symbols.py" if new != old else 0)
    concepts.write_text(new, encoding="utf-8")
