"""The page over many runs: the count of claims, a scoreboard with links, a picture of every run, and every claim.

One file that asks for nothing; the pictures are small copies of the runs' figures, and lead to the runs' own pages.
"""

import io
import os
import pathlib

WIDTH = 640  # pixels of a small picture
WIDE = 1100  # of one that a page has to itself
COLORS = 96  # of its palette


def index(entries, board, folder):
    """The page over many (Score, Run or None, log or None) and their record of `scoreboard`, as text."""
    from experiments import runner
    from numdl import reporting

    scores = [score for score, _, _ in entries]
    titles = [runner.headings(score.name)["title"] for score in scores]
    links = [_link(run.folder / "report.html" if run else log, folder) for _, run, log in entries]
    kept = {run["name"]: run for run in board["runs"]}
    shown = {
        score.name: (score, run, kept[score.name], title, link)
        for (score, run, _), title, link in zip(entries, titles, links, strict=True)
    }
    sections = [
        part for page, names in runner.groups(shown) for part in _chapter(page, [shown[name] for name in names])
    ]
    lead = [reporting.tag("p", _verdict(scores), class_="sum"), _origins(board), _machine(board)]
    rows = list(zip(scores, titles, links, strict=True))
    if missing := [row for row in rows if row[0].problem]:
        lead.append(reporting.scoreboard(*zip(*missing, strict=True)))
    lead.append(
        reporting.details(f"All {len(rows)} experiments as a table", reporting.scoreboard(*zip(*rows, strict=True)))
    )
    return reporting.page("Theory beside measurement: every experiment", sections, lead=lead)


def pictures(board, results, folder):
    """Write the figure of every run of a record, smaller, as NAME.png into a folder that is made if it is missing.

    Parameters
    ----------
    board : dict        the record of `scoreboard`
    results : path      where its runs' folders are
    folder : path       where the pictures go
    Returns
    -------
    list of str         the experiments whose picture was written
    """
    from numdl import reporting

    shown = []
    for run in board["runs"]:
        if not run["problem"]:
            figure = pathlib.Path(results) / run["name"] / reporting.digest(run["config"]) / "figure.png"
            if figure.is_file():
                reporting.publish(pathlib.Path(folder) / f"{run['name']}.png", thumbnail(figure.read_bytes(), WIDE))
                shown.append(run["name"])
    return shown


def thumbnail(picture, width=WIDTH):
    """A PNG file's content, smaller: at most so many pixels wide, with a palette."""
    from PIL import Image

    with Image.open(io.BytesIO(picture)) as opened:
        small = opened.convert("RGB")
        small.thumbnail((width, width))
        made = io.BytesIO()
        small.quantize(COLORS).save(made, "PNG", optimize=True)
    return made.getvalue()


def _verdict(scores):
    held = sum(claim.holds for score in scores for claim in score.claims)
    total, missing = sum(len(score.claims) for score in scores), sum(bool(score.problem) for score in scores)
    verdict = f"{held} of {total} claims of {len(scores)} experiments hold"
    return verdict + (f"; {missing} without a result." if missing else ".")


def _origins(board):
    from numdl import reporting

    meaning = {
        "exact": "a theorem, a formula or an independent computation gives the number",
        "published": "a paper reports the number, or which of two is larger",
        "own": "the experiment chose the limit",
        "unknown": "kept before claims said where their numbers come from",
    }
    rows = [
        (reporting.tag("strong", name), f"{count['held']} of {count['total']}", meaning[name])
        for name, count in board["origins"].items()
    ]
    return reporting.table(("numbers", "claims that hold", "where they come from"), rows, class_="origins")


def _machine(board):
    from numdl import reporting

    about, versions = board["machine"], board["versions"]
    memory = f", {about['memory_gib']:g} GiB" if about["memory_gib"] else ""
    text = f"{board['finished'][:10]}, {board['size']} size; numdl {versions['numdl']}, jax {versions['jax']}, "
    text += f"Python {versions['python']}; {about['cores']} cores of {about['processor']}{memory}."
    stopped = f" Stopped by {board['stopped']} before all were done." if board["stopped"] else ""
    return reporting.tag("p", text + stopped, class_="quiet")


def _chapter(page, entries):
    """What the group asks, a card for each of its experiments that has a run, and all its claims, folded away."""
    from numdl import reporting

    entries = [entry for entry in entries if entry[1] is not None]
    if not entries:
        return []
    title, _, more = page.partition("\n")
    cards = reporting.tag("div", *(_card(*entry) for entry in entries), class_="gallery")
    total = sum(len(entry[0].claims) for entry in entries)
    claims = reporting.details(f"All {total} claims of this group", _claims(entries))
    return [reporting.section(title or "Experiments", reporting.prose(more), cards, claims)]


def _card(score, run, kept, title, link):
    from numdl import reporting

    picture = run.folder / "figure.png"
    shown = ""
    if picture.is_file():
        shown = reporting.figure_image(thumbnail(picture.read_bytes()), alt=f"{title}: figure")
    held = sum(claim.holds for claim in run.claims)
    counts = [f"{name} {a}\u00a0of\u00a0{b}" for name, (a, b) in reporting.by_origin(run.claims).items() if b]
    mark = reporting.tag(
        "span", f"{'✓' if score.good else '✗'} {held} of {len(run.claims)}", class_="yes" if score.good else "no"
    )
    failing = [
        reporting.tag("li", claim["claim"], reporting.tag("small", claim["why"]))
        for claim in kept["claims"]
        if claim["why"]
    ]
    return reporting.tag(
        "article",
        reporting.tag("a", shown, href=link),
        reporting.tag("h3", reporting.tag("a", f"{score.name.split('_')[0]}: {title}", href=link)),
        reporting.tag("p", mark, f" {', '.join(counts)}; {score.seconds:.0f}\u00a0s", class_="quiet"),
        reporting.tag("ul", *failing, class_="fails") if failing else "",
        class_="card",
    )


def _claims(entries):
    from numdl import reporting

    rows = []
    for score, run, _, _, link in entries:
        for claim in run.claims:
            mark = reporting.tag("span", "✓ holds" if claim.holds else "✗ fails", class_="yes" if claim.holds else "no")
            where = reporting.tag("a", score.name.split("_")[0], href=link)
            sentence = reporting.tag("div", claim.claim, reporting.tag("small", claim.source))
            expected = reporting.tag("div", claim.expected_text(), reporting.tag("small", claim.origin))
            margin = reporting.margin_text(claim.margin)
            rows.append((mark, where, sentence, expected, claim.measured_text(), margin, f"{score.seconds:.0f}"))
    header = ("verdict", "in", "claim", "expected", "measured", "margin", "seconds")
    return reporting.table(header, rows, class_="every")


def _link(path, folder):
    return None if path is None else pathlib.Path(os.path.relpath(path, folder)).as_posix()
