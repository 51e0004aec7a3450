"""Three experiments and an audit: python -m experiments.demo [--tiny] [--results DIR]

Runs a1, a2 and a3, prints their claims and writes results/demo/report.html. Then a network that does not train on
digits is examined, cured, and trained beside its cure: results/demo/audit.html. Each page is one file that opens
anywhere. The exit code is 0 if every claim holds and the cure helped, 1 if not, 2 for a wrong call.
"""

import argparse
import pathlib
import sys

from experiments import pages, runner

CHOSEN = ("a1", "a2", "a3")
TITLE = "Will it train? Theory beside measurement"
INTRO = """
A deep network is a long chain of simple steps. Before the first training step its weights are random, and what chance
makes of a signal on its way through the chain decides whether the network can be trained at all: a signal that fades or
explodes leaves nothing to learn from.

Chance obeys laws. Mathematics predicts from a few numbers (width, depth, variance of the weights) what a random network
does to its input. The experiments on this page put such predictions beside the measurement on real random networks.
Each states its claims, with a number and a tolerance fixed beforehand, so that every claim could have failed.

In the figures what was predicted is drawn black and dashed, what was measured is coloured.
"""
GLOSSARY = {
    "width, n": "how many numbers a layer holds",
    "depth, L": "how many layers follow each other",
    "weight variance": "fan_in · Var(W): how strong random weights are, independent of the width",
    "bias variance": "Var(b): how strong random biases are",
    "length, q": "mean square of the numbers in a layer before the activation",
    "correlation, c": "cosine of the angle between two signals in a layer: 1 for one direction, 0 at right angles",
    "χ₁ (chi_1)": "factor by which a small difference between two signals grows, squared, in one layer; 1 is critical",
    "a ± b": "measured value and its standard error; chance alone rarely moves it by more than a few b",
}


def main(arguments=None):
    """Run, print, write the page, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.demo", description=__doc__.split("\n")[0])
    parser.add_argument("--tiny", action="store_true", help="small versions, seconds instead of minutes")
    parser.add_argument("--results", default="results", help="folder for the runs and the page")
    options = parser.parse_args(arguments)
    try:
        return _demo(options)
    except runner.UsageError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def report(runs):
    """The page over several runs as text: scoreboard, then each question with its answer."""
    from numdl import reporting

    parts = [runner.headings(run.name) for run in runs]
    titles = [part["title"].rstrip(".") for part in parts]
    sections = [
        pages.section_of(run, title=title, parts=part) for run, title, part in zip(runs, titles, parts, strict=True)
    ]
    held, total = sum(run.held for run in runs), sum(len(run.claims) for run in runs)
    verdict = f"{held} of {total} claims hold" + (": theory and measurement agree." if held == total else ".")
    lead = [
        reporting.tag("p", verdict, class_="sum"),
        reporting.scoreboard([run.score for run in runs], titles),
        reporting.details("Words and symbols", reporting.glossary(GLOSSARY)),
    ]
    return reporting.page(TITLE, sections, intro=INTRO, lead=lead, contents=False)


def _demo(options):
    from numdl import reporting

    names = [runner.resolve(name) for name in CHOSEN]
    runs = []
    for name in _steps(names):
        runs.append(runner.execute(name, runner.configure(name, tiny=options.tiny), results=options.results))
    for run in runs:
        print(f"\n{runner.headings(run.name)['title']}\n\n{reporting.claims_text(run.claims)}")
    print("\n" + reporting.scoreboard_text(run.score for run in runs))
    path = pages.publish(pathlib.Path(options.results) / "demo" / "report.html", report(runs))
    page, helped = audited(options)
    print(f"\nOpen {path}\n and {page}")
    return 0 if helped and all(run.held == len(run.claims) for run in runs) else 1


def audited(options):
    """A sick network on digits examined, cured, and trained beside its cure: (its page, whether the cure helped)."""
    from experiments import sick
    from numdl import audit

    print("audit ...", file=sys.stderr, flush=True)
    setting = sick.tiny() if options.tiny else sick.setting()
    report = audit.examine(**setting)
    print(f"\nA network that does not train: what is wrong?\n\n{report}")
    repair, proof = report.repair(), report.prove(setting["steps"])
    print("\nThe cure:\n" + "\n".join(f"  {line}" for line in repair.changes))
    ends = [f"{values[:, -1].mean():.3g}" for values in (proof.sick, proof.repaired)]
    print(f"Both trained for {proof.steps} steps: loss {ends[0]} as it was, {ends[1]} cured.")
    return report.save(pathlib.Path(options.results) / "demo" / "audit.html", proof=proof, repair=repair), proof.helped


def _steps(names):
    """The names one by one, with a bar on a terminal and a line per step elsewhere."""
    terminal = sys.stderr.isatty()
    for i, name in enumerate(names):
        bar = f"[{'=' * (8 * i):<{8 * len(names)}}] {i + 1}/{len(names)} {name}"
        print(
            f"\r\033[K{bar}" if terminal else f"{i + 1}/{len(names)} {name} ...",
            file=sys.stderr,
            end="" if terminal else "\n",
            flush=True,
        )
        yield name
    if terminal:
        print("\r\033[K", file=sys.stderr, end="")


if __name__ == "__main__":
    sys.exit(main())
