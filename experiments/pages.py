"""Pages of runs: one for each run in its folder, and one that shows them all; each is one file that opens anywhere."""

import os
import pathlib


def write(run):
    """Write the run's page into its folder and return the path."""
    return publish(run.folder / "report.html", report(run))


def report(run):
    """One run's page as text."""
    from experiments import runner
    from numdl import reporting

    parts = runner.headings(run.name)
    title = parts["title"]
    shown = section_of(run, title="Theory beside measurement", parts=parts)
    lecture = f"Lecture: {parts['Lecture']}" if parts["Lecture"] else ""
    return reporting.page(title, [shown], intro=lecture, contents=False)


def section_of(run, *, title, parts):
    """One run's section: question, prediction, measurement, figure, claims."""
    from experiments import runner
    from numdl import reporting

    symbols = getattr(runner.load(run.name), "GLOSSARY", None)
    return reporting.run_section(run, title=title, parts=parts, symbols=symbols)


def index(entries, folder):
    """The page over many (Score, Run or None, log or None): scoreboard with links, then every figure."""
    from experiments import runner
    from numdl import reporting

    scores = [score for score, _, _ in entries]
    titles = [runner.headings(score.name)["title"] for score in scores]
    links = [_link(run.folder / "report.html" if run else log, folder) for _, run, log in entries]
    held, total = (sum(count) for count in zip(*(_counts(score) for score in scores), strict=True))
    missing = sum(bool(score.problem) for score in scores)
    verdict = f"{held} of {total} claims of {len(scores)} experiments hold"
    verdict += f"; {missing} without a result." if missing else "."
    shown = {score.name: (score, run, title, link) for (score, run, _), title, link in zip(entries, titles, links)}
    sections = [
        part for page, names in runner.groups(shown) for part in _chapter(page, [shown[name] for name in names])
    ]
    lead = [reporting.tag("p", verdict, class_="sum"), reporting.scoreboard(scores, titles, links)]
    return reporting.page("Theory beside measurement: every experiment", sections, lead=lead, contents=False)


def publish(path, text):
    """Write a page, whole or not at all."""
    from numdl import reporting

    return reporting.publish(path, text)


def _chapter(page, entries):
    """What the group asks, then a card for each of its experiments that has a run."""
    from numdl import reporting

    cards = [_card(*entry) for entry in entries if entry[1] is not None]
    title, _, more = page.partition("\n")
    return [reporting.section(title, reporting.prose(more)), *cards] if page and cards else cards


def _card(score, run, title, link):
    from numdl import reporting

    picture = run.folder / "figure.svg"
    shown = reporting.figure_image(picture.read_bytes(), alt=title) if picture.is_file() else ""
    failing = [claim for claim in run.claims if not claim.holds]
    return reporting.section(
        f"{score.name.split('_')[0]}: {title}",
        reporting.tag("a", shown, href=link),
        reporting.claims_table(failing) if failing else "",
    )


def _link(path, folder):
    return None if path is None else pathlib.Path(os.path.relpath(path, folder)).as_posix()


def _counts(score):
    return sum(claim.holds for claim in score.claims), len(score.claims)
