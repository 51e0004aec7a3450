"""The rows of a workload as text or as Markdown: python -m benchmarks.table FILE, the JSON of a run, for the docs."""

import json
import sys

HEADS = ("", "CPU ms", "quartiles", "/ numdl", "quartiles", "first s", "peak MiB", "plan MiB", "differs")


def text(found):
    """The lines of one workload."""
    sizes = ", ".join(f"{name} {value}" for name, value in found["sizes"].items())
    yield f"\n{found['family']}: {found['workload']}" + (f"   ({sizes})" if sizes else "")
    yield line(HEADS)
    for row in found["rows"]:
        yield f"{row['side']:<34}  {row['problem']}" if row["problem"] else line(cells(row))
    if aims := verdict(found):
        yield aims
    for law in found.get("growth", ()):
        yield growth(law)


def line(parts):
    first, *others = parts
    return f"{first:<34}" + "".join(
        f"{part:>{w}}" for part, w in zip(others, (10, 17, 9, 14, 9, 10, 10, 10), strict=True)
    )


def cells(row):
    """The row's cells as text."""
    ratio, differs = row.get("ratio"), row.get("difference")
    middle, low, high = (1e3 * value for value in row["cpu"])
    mark = "" if row.get("agrees") is not False else " !"
    return (
        row["side"], number(middle), f"{number(low)}..{number(high)}", "" if ratio is None else f"{ratio[0]:.2f}",
        "" if ratio is None else f"{ratio[1]:.2f}..{ratio[2]:.2f}", f"{row['first']:.2f}", mib(row["peak_bytes"]),
        mib(row["planned_bytes"]), "" if differs is None else f"{differs:.0e}{mark}",
    )  # fmt: skip


def number(value):
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def mib(size):
    return "" if size is None else f"{size / 2**20:.1f}"


def verdict(found):
    """One line: numdl over the limit and over the fastest peer."""
    names = {"over_limit": "the best hand-written kernel", "over_fastest_peer": "the fastest peer"}
    told = [f"{found[key]:.2f} of {what}" for key, what in names.items() if found[key]]
    return f"numdl takes {', '.join(told)}: {'as aimed at' if found['met'] else 'SHORT'}" if told else ""


def growth(law):
    """One line: the slope beside the demanded one."""
    if law.get("problem"):
        return f"growth with {law['size']}: {law['problem']}"
    times = ", ".join(number(1e3 * value) for value in law["cpu"])
    return (f"growth with {law['size']}: {times} ms, slope {law['slope']:.2f} (demanded {law['demanded']}); "
            f"of the first call {law['slope_first']:.2f}")  # fmt: skip


def summary(results):
    """One line for each workload."""
    yield f"\n{'':<58}{'CPU ms':>10}{'/ limit':>9}{'/ peer':>9}{'first s':>9}"
    for found in results:
        row, name = found["rows"][0] if found["rows"] else {}, f"{found['family']}: {found['workload']}"
        own = (number(1e3 * row["cpu"][0]), f"{row['first']:.2f}") if row.get("cpu") else ("failed", "")
        ratios = ["" if not found[key] else f"{found[key]:.2f}" for key in ("over_limit", "over_fastest_peer")]
        short = "" if found["met"] is not False else "  short"
        yield f"{name:<58}{own[0]:>10}{ratios[0]:>9}{ratios[1]:>9}{own[1]:>9}{short}"


def markdown(content):
    """The tables of docs/benchmarks.md."""
    for found in content["workloads"]:
        yield f"\n**{found['family']}: {found['workload']}**" + _sizes(found) + "\n"
        yield "| side | CPU ms (quartiles) | / numdl (quartiles) | first call, s | peak MiB |\n|---|---|---|---|---|"
        for row in found["rows"]:
            yield _marked(row)
        if aims := verdict(found):
            yield f"\n{aims}."
        for law in found.get("growth", ()):
            yield f"\n{growth(law)}".replace("growth", "Growth", 1) + "."


def _sizes(found):
    return "".join(f", {name} {value}" for name, value in found["sizes"].items())


def _marked(row):
    if row["problem"]:
        return f"| {row['side']} | {row['problem']} | | | |"
    name, cpu, spread, ratio, ratios, first, peak, _, differs = cells(row)
    note = ", other numbers" if "!" in differs else ""
    return f"| {name}{note} | {cpu} ({spread}) | {ratio} ({ratios}) | {first} | {peak} |"


if __name__ == "__main__":
    with open(sys.argv[1]) as file:
        print("\n".join(markdown(json.load(file))))
