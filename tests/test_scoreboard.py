"""The record of many runs, the document that is written from it, and the page with all pictures."""

import io
import json
import platform
import re
import xml.dom.minidom

import numpy as np
import PIL.Image
import pytest

from experiments import fields, gallery, runner, scoreboard, sources, workers
from numdl import plotting, reporting

NAMES = ("a1_init_scaling", "a2_length_map", "b6_log_norm_variance")
HOSTILE = "a_b * c | <i>d</i> `e`"


def claim(**changes):
    values = {
        "claim": "the mean is kept", "source": "a paper", "expected": 1.0, "measured": 1.05, "uncertainty": 0.01,
        "tolerance": 0.06, "tolerance_from": "six standard errors", "origin": "exact",
    }  # fmt: skip
    return reporting.Claim(**values | changes)


@pytest.fixture
def outcomes(tmp_path):
    """One that holds, one with a claim that fails, one without a result."""
    drawn = plotting.figure(width=12, height=4)
    drawn.subplots().plot(np.arange(5.0), np.arange(5.0) ** 2)
    own = [claim(origin="own"), claim(origin="published", measured=5.0, note="Too narrow.", claim=HOSTILE)]
    claims = ([claim(), claim(uncertainty=0.0)], own)
    made = [
        reporting.save(
            tmp_path, name=name, config={"seed": 0}, record={"x": np.zeros(2)}, claims=each, seconds=seconds,
            figure=drawn, used={"peak_maps": 900, "peak_memory": 2**28},
        )
        for name, each, seconds in zip(NAMES, claims, (3.0, 400.0), strict=False)
    ]  # fmt: skip
    found = [workers.Outcome(run.name, run, seconds=run.seconds) for run in made]
    log = tmp_path / "log.txt"
    return [*found, workers.Outcome(NAMES[2], problem=f"left no result ({tmp_path}/record.npz)", log=log, seconds=1.0)]


def test_the_record_counts_by_origin_and_says_why_and_names_nobody(outcomes, tmp_path):
    board = scoreboard.record(iter(outcomes), size="full", seconds=404.0)
    path = scoreboard.write(board, tmp_path)
    assert scoreboard.read(tmp_path) == json.loads(path.read_text()) == json.loads(json.dumps(board, allow_nan=False))
    assert board["origins"]["published"] == {"held": 0, "total": 1}
    assert board["origins"]["exact"] == {"held": 2, "total": 2}
    assert board["holds"] is False
    whys = [each["why"] for run in board["runs"] for each in run["claims"]]
    assert whys[:3] == [None] * 3
    assert whys[3].startswith("5.000 ± 0.010 misses 1 with 0.06 allowed by 3.94, 394 standard errors. Too narrow.")
    assert board["machine"]["cores"] >= 1
    assert platform.node() not in json.dumps(board["machine"])
    assert not scoreboard.record(outcomes[:1], size="full", seconds=1.0, stopped="SIGINT")["holds"]
    assert scoreboard.record(outcomes[:1], size="full", seconds=1.0)["holds"]


def test_a_failing_claim_quotes_what_the_verdict_says_of_failures(monkeypatch):
    text = "All held, 3.5 of it. The second claim fails at width 16,\nsince 1.2 is too few. It took 3 s. "
    text += "None failed before."
    monkeypatch.setattr(runner, "headings", lambda name: {"Verdict": text})
    said = "The second claim fails at width 16, since 1.2 is too few. None failed before."
    assert scoreboard.verdict_on_failures("any") == said
    assert scoreboard.why("any", claim(measured=5.0)).endswith(f"The verdict: {said}")
    monkeypatch.setattr(runner, "headings", lambda name: {"Verdict": "All is well."})
    assert scoreboard.why("any", claim(measured=5.0)).endswith("The verdict does not speak of a failure.")


@pytest.mark.parametrize("text", ["", "[]", "3", "null", "{", '{"runs": []}'])
def test_what_is_no_record_is_refused_in_one_line(tmp_path, text):
    (tmp_path / scoreboard.FILE).write_text(text)
    with pytest.raises(runner.UsageError, match="scoreboard needs a folder"):
        scoreboard.read(tmp_path)


def rows(text, header):
    """The cells of the table whose first line begins so."""
    lines = text.split("\n")
    start = next(i for i, line in enumerate(lines) if line.startswith(header))
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    assert {len(row) for row in table} == {len(table[0])}
    return table[2:]


@pytest.mark.parametrize("stacks", [1, 2])
def test_the_document_has_every_run_and_claim_and_what_failed_and_no_path(outcomes, tmp_path, stacks):
    boards = [
        scoreboard.record(outcomes, size="full", seconds=404.0),
        scoreboard.record(outcomes[:2], size="full", seconds=9.0),
    ]
    text = scoreboard.document(boards[:stacks])
    assert str(tmp_path) not in text
    assert len(rows(text, "| date")) == stacks
    assert rows(text, "| claims that hold")[0][1:] == ["2 of 2", "0 of 1", "1 of 1", "3 of 4"]
    failing = rows(text, "| stack | experiment | claim")
    assert len(failing) == stacks
    assert failing[0][1] == "`a2_length_map`"
    assert "394 standard errors" in failing[0][-1]
    assert re.sub(r"\\(.)", r"\1", failing[0][2]) == HOSTILE
    assert rows(text, "| stack | experiment | problem")[0][-1] == "left no result (record.npz)"
    later = text.partition("## Experiments that these runs do not have")[2].partition("\n## ")[0]
    assert "`b12_residual_mean_field`" in later
    assert "`a2_length_map`" not in later
    experiments = rows(text.partition("## Every experiment")[2], "| experiment | question")
    assert [row[0] for row in experiments] == [f"`{name}`" for name in NAMES]
    assert experiments[0][2:7] == ["2 of 2", "1.0", "3 s", "256 MiB", "900"]
    assert experiments[1][4] == "7 min"
    assert experiments[2][2:] == ["—"] * 5 * stacks
    assert len(rows(text, "|  | in | claim")) == 4


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("He, eq. (14): sqrt(n/2) 0.01 a layer", ["equation 14"]),
        ("eqs. (A.1), (A.2), figs. 6 and 7", ["equation A.1", "equation A.2", "figure 6", "figure 7"]),
        ("Hairer I, theorem I.10.6; fig. 4a; section 4.2.1", ["theorem I.10.6", "figure 4a", "section 4.2.1"]),
        ("chapter IX and corollary 6, sec. 4", ["chapter IX", "corollary 6", "section 4"]),
        ("tau^2 (T - 1) / (2 T), 319 figures, no section here", []),
    ],
)
def test_places_of_a_source(text, wanted):
    assert [str(place) for place in sources.places(text)] == wanted


def test_a_place_is_checked_only_in_its_own_paper():
    assert not sources.unchecked("He et al. 2015, arXiv:1502.01852, figs. 2 and 3, eq. (9)")
    assert [str(place) for place in sources.unchecked("arXiv:1502.01852, figs. 2 and 77")] == ["figure 77"]
    assert [str(place) for place in sources.unchecked("arXiv:9999.00001, fig. 2")] == ["figure 2"]
    for paper in sources.papers():
        assert (
            {"key", "name", "read", "found"} <= set(paper) <= {"key", "name", "read", "found", *sources.KINDS.values()}
        )
        assert any(paper["key"] in path.read_text() for path in runner.files().values()), paper["key"]


def test_the_document_says_which_sources_were_not_looked_up(outcomes):
    known = claim(source="He et al. 2015, arXiv:1502.01852, fig. 2")
    unknown = claim(source="Nobody 1900, theorem 3 and fig. 4")
    object.__setattr__(outcomes[0].run, "claims", [known, unknown])
    text = scoreboard.document([scoreboard.record(outcomes[:1], size="full", seconds=1.0)])
    assert "1 of 3 figures" in text
    assert rows(text, "| source | places")[0] == ["Nobody 1900, theorem 3 and fig. 4", "theorem 3, figure 4"]
    assert len(rows(text, "| paper | read")) == 1


def test_all_well_is_said(outcomes):
    text = scoreboard.document([scoreboard.record(outcomes[:1], size="quick", seconds=9000.0)])
    assert "## Claims that fail\n\nNone." in text
    assert "without a result" not in text
    assert "2 h 30 min" in text
    assert scoreboard.failing_text(scoreboard.record(outcomes[:1], size="quick", seconds=1.0)) == "\nNo claim fails."


def test_a_picture_of_every_run_that_has_a_figure(outcomes, tmp_path):
    board = json.loads(json.dumps(scoreboard.record(outcomes, size="full", seconds=404.0)))
    (outcomes[1].run.folder / "figure.png").unlink()
    assert gallery.pictures(board, tmp_path, tmp_path / "site" / "gallery") == [NAMES[0]]
    (made,) = (tmp_path / "site" / "gallery").iterdir()
    assert made.name == "a1_init_scaling.png"
    with PIL.Image.open(made) as picture:
        assert picture.size[0] == gallery.WIDE


def test_the_gallery_is_one_page_that_shows_every_run_and_asks_for_nothing(outcomes, tmp_path):
    board = scoreboard.record(outcomes, size="full", seconds=404.0)
    text = gallery.index([(each.score, each.run, each.log) for each in outcomes], board, tmp_path)
    xml.dom.minidom.parseString(re.sub(r"<meta[^>]*>|<!doctype html>|<img[^>]*>", "", text))
    assert text.count("data:image/png;base64,") == 2
    sources = re.findall(r'src="([^"]*)"', text)
    assert all(each.startswith("data:image/png;base64,") for each in sources)
    links = {each for each in re.findall(r'href="([^"#]*)"', text) if each}
    assert links == {each.run.folder.relative_to(tmp_path).as_posix() + "/report.html" for each in outcomes[:2]} | {
        "log.txt"
    }
    seen = re.sub(r"<details>.*?</details>", "", text, flags=re.DOTALL)
    assert "394 standard errors" in seen, "what fails is not folded away"
    assert "left no result" in seen
    assert "a_b * c | &lt;i&gt;d&lt;/i&gt;" in text


@pytest.mark.parametrize(
    "given, quick, wanted",
    [
        ("", True, {"XLA_FLAGS": runner.LIGHT}),
        ("--xla_a=1", True, {"XLA_FLAGS": f"--xla_a=1 {runner.LIGHT}"}),
        ("--xla_backend_optimization_level=2", True, {}),
        ("", False, {}),
    ],
)
def test_quick_runs_compile_lightly_unless_told_otherwise(monkeypatch, given, quick, wanted):
    monkeypatch.setenv("XLA_FLAGS", given)
    assert workers._compiler({"tiny": False, "quick": quick}) == wanted
    assert reporting.environment()["xla_flags"] == given


def test_small_pictures_are_small():
    picture = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (300, 2000, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(picture, "PNG")
    small = PIL.Image.open(io.BytesIO(gallery.thumbnail(picture.getvalue())))
    assert small.format == "PNG"
    assert small.size == (gallery.WIDTH, 96)


class Two:
    tiny, quick = staticmethod(lambda: "tiny"), staticmethod(lambda: "quick")

    def __new__(cls):
        return "full"


class One:
    tiny = staticmethod(lambda: "tiny")


def test_the_quick_size_is_the_tiny_one_where_there_is_no_other():
    assert [fields.chosen(Two), fields.chosen(Two, tiny=True), fields.chosen(Two, quick=True)] == [
        "full",
        "tiny",
        "quick",
    ]
    assert fields.chosen(One, quick=True) == "tiny"
