"""How a report is shown: on a terminal, in a notebook, as JSON, as a page; each number can be traced to its record."""

import html
import html.parser
import json
import os
import re

import numpy as np
import pytest

from numdl import audit, reporting
from numdl.audit._shown import figures, summaries, tables
from numdl.audit._shown import page as report_page
from numdl.audit._shown import paths as shown_paths
from numdl.audit._watch import page as watch_page
from tests.audit import made


class Reader(html.parser.HTMLParser):
    """Tags with their attributes, and the text outside of styles."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.words, self._open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag):
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data):
        if "style" not in self._open:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def sick():
    """The sick network's page with its proof; its pictures are drawn, but an empty one is written for each."""
    true, blank = reporting.figure_image, b"<svg xmlns='http://www.w3.org/2000/svg'/>"
    repair = Repair(("Draw the weights with variance 2.", "Train 300 steps."), ("mask: let <every> row see one.",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reporting, "figure_image", lambda _, **texts: true(blank, **texts))
        return report_page.page(made.report(), made.proof(), repair)


class Repair:
    def __init__(self, changes, by_hand=()):
        self.changes, self.by_hand = changes, by_hand


@pytest.fixture
def undrawn(monkeypatch):
    """Pages without their pictures: what is drawn is drawn, but not written as an SVG."""
    monkeypatch.setattr(reporting, "figure_image", lambda figure, *, alt, caption: reporting.tag("img", alt=alt))


# ---- terminal --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", made.ALL)
def test_text_fits_a_terminal_and_holds_nothing_that_moves_its_cursor(name):
    lines = tables.text(made.ALL[name]()).split("\n")
    assert all(len(line) <= 100 and line.isprintable() for line in lines)


def test_text_says_the_verdict_first_then_the_cause_with_its_numbers_and_remedy():
    lines = str(made.report()).split("\n")
    assert lines[0] == "WILL NOT TRAIN   probability that it trains 3 %"
    assert lines[3].startswith("1. signal_vanishes  (likely)  at layers/0/w")
    assert lines[5].strip() == "measured 0.2980 ± 0.0040, theory expects 0.3, threshold 0.8"
    assert lines[6].strip().startswith("-> Draw weights")
    assert lines[8].startswith("   follows: gradient_vanishes")
    assert any(line.startswith("2. rate_too_low  (hint)") for line in lines)
    assert any("data: data_order, labels_imbalanced" in line for line in lines)


def test_a_consequence_is_shown_under_its_cause_only_and_circles_end():
    one, two = made.finding("a", consequences=("b", "c")), made.finding("b", consequences=("a",))
    assert summaries.nested((one, two)) == [(0, (1,))]
    assert summaries.named_only(one, (one, two)) == ["c"]
    assert summaries.nested((two, made.finding("x"), one)) == [(0, (2,)), (1, ())]
    assert summaries.nested((one, two, two)) == [(0, (1, 2))]


def test_summary_numbers_are_those_of_the_record():
    trial = made.trial()
    lines = dict(summaries.lines(made.report()))
    own = [part.path for part in lines["trial"] if not isinstance(part, str)]
    assert own[1] == "evidence.trial.end[2].mean"
    assert shown_paths.value_at(made.report(), own[1]) == pytest.approx(trial.end[2].mean())
    assert shown_paths.value_at(made.report(), "evidence.trial.losses.shape[2]") == trial.losses.shape[2]
    assert "10 times it" in str(made.report())
    assert not summaries.lines(made.unseen_at_all())


def test_paths_say_what_is_not_there():
    report = made.report()
    assert np.isnan(shown_paths.value_at(report, "evidence.kernel.forecast[99]"))
    assert shown_paths.value_at(made.unseen_at_all(), "evidence.signal.state_rms[0]") is None
    assert np.isnan(shown_paths.value_at(made.unseen_at_all(), "evidence.trial.losses.mean"))
    with pytest.raises(AttributeError):
        shown_paths.value_at(report, "evidence.nothing")
    for path in ("", "evidence..signal", "evidence[x]"):
        with pytest.raises(ValueError, match="path must be"):
            shown_paths.value_at(report, path)


# ---- json ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", made.ALL)
def test_json_is_strict_and_complete(name):
    report = made.ALL[name]()
    text = json.dumps(tables.as_json(report), allow_nan=False)
    assert json.loads(text)["evidence"].keys() >= {"signal", "trial", "predicted"}
    assert "case" not in json.loads(text)


def test_json_keeps_what_is_not_finite_apart():
    report = made.report(features={"a": float("nan"), "b": float("inf"), "c": np.float32(-np.inf), "d": np.int64(3)})
    assert tables.as_json(report)["features"] == {"a": None, "b": "inf", "c": "-inf", "d": 3}


# ---- page ------------------------------------------------------------------------------------------------------------


def of_json(whole, path):
    """The value of a path in the JSON file, by other means than the report's own."""
    value = whole
    for name, index in re.findall(r"(\w+)|\[(-?\d+)\]", path):
        if index:
            value = value[int(index)]
        elif name == "mean":
            value = float(np.mean(np.asarray(value, float)))
        elif name == "last":
            value = np.asarray(value)[..., -1]
        elif name == "size":
            value = np.asarray(value).size
        elif name == "shape":
            value = np.asarray(value).shape
        else:
            value = value[name]
    return value


def test_every_number_on_the_page_is_that_of_its_path(sick):
    whole = tables.as_json(made.report()) | {"proof": tables.as_json(made.proof())}
    numbers = [attributes for tag, attributes in Reader(sick).tags if tag == "data"]
    assert len(numbers) > 150
    for attributes in numbers:
        value = of_json(whole, attributes["data-path"])
        if value is None:
            assert "value" not in attributes
        else:
            told = attributes["value"]
            assert str(value) == told or float(told) == pytest.approx(float(value), rel=1e-12), attributes
    paths = {attributes["data-path"] for attributes in numbers}
    for path in ("probability", "findings[0].measured", "findings[1].threshold", "evidence.signal.state_rms[11]"):
        assert path in paths


def test_numbers_that_are_read_stand_in_an_element_with_a_path(sick):
    """Outside of texts that rules wrote, of numbered headings and of pictures, no digit stands alone."""
    lines = re.search(r'<table class="lines">.*?</table>', sick, re.DOTALL)[0]
    bare = re.sub(r"<data .*?</data>", "", lines)
    bare = re.sub(r"<tr><td[^>]*>time</td>.*?</tr>", "", bare)
    assert not re.search(r">[^<]*\d[^<]*<", html.unescape(bare))


def test_the_page_needs_nothing_but_itself(sick):
    tags = Reader(sick).tags
    assert not [t for t, _ in tags if t in ("script", "link", "iframe", "object", "base")]
    links = [v for _, attributes in tags for k, v in attributes.items() if k in ("src", "href") and v]
    assert all(link.startswith(("data:image/svg+xml;base64,", "#")) for link in links)
    policy = next(a["content"] for t, a in tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    assert sum(t == "img" for t, _ in tags) == 9


def test_the_page_says_what_is_wrong_and_what_to_do_before_anything_else(sick):
    words = Reader(sick).text
    order = ["will not train", "States shrink", "Change:", "What is wrong", "From this follows:", "What to change"]
    order += [
        "Draw the weights with variance 2.",
        "mask: let <every> row see one.",
        "The repair helped.",
        "Signals and gradients",
        "Forecast and trial",
    ]
    words = words.replace("Every number", "", 1)  # the contents
    places = [words.rindex(text) if text[:4] in ("What", "Sign", "Fore") else words.index(text) for text in order]
    assert places == sorted(places)


@pytest.mark.parametrize("name", [name for name in made.ALL if name != "sick"])
def test_any_report_has_a_page(name, undrawn):
    report = made.ALL[name]()
    reader = Reader(report_page.page(report))
    assert not [t for t, _ in reader.tags if t == "script"]
    assert not [a for _, attributes in reader.tags for a in attributes if a.startswith("on")]
    assert report.verdict in reader.text
    assert reader.text.isprintable()


def test_hostile_texts_stay_texts(undrawn):
    report = made.hostile()
    for shown in (report_page.page(report), report._repr_html_()):
        assert "<script" not in shown
        assert "&lt;script&gt;" in shown


def test_what_was_not_seen_is_not_drawn(undrawn):
    drawn = [a["alt"] for t, a in Reader(report_page.page(made.unseen_at_all())).tags if t == "img"]
    assert not drawn
    assert len([1 for t, _ in Reader(report_page.page(made.healthy())).tags if t == "img"]) == 8


def test_no_phase_diagram_where_theory_does_not_apply(undrawn):
    evidence = made.evidence(predicted=made.predicted(applies=False, why_not="skips"))
    reader = Reader(report_page.page(made.report(evidence=evidence)))
    assert "phase diagram" not in str(reader.tags)
    assert "theory does not apply: skips" in reader.text


# ---- notebook and files ----------------------------------------------------------------------------------------------


def test_a_notebook_shows_verdict_and_findings():
    words = Reader(made.report()._repr_html_()).text
    assert words.startswith("will not train")
    assert "signal_vanishes" in words and "0.2980 ± 0.0040" in words and "Draw weights" in words


def test_saved_by_ending_and_whole_or_not_at_all(tmp_path, undrawn, monkeypatch):
    report = made.report()
    page = report.save(tmp_path / "new" / "r.html", proof=made.proof())
    assert page.read_text(encoding="utf-8").startswith("<!doctype html>")
    stored = json.loads(report.save(str(tmp_path / "r.json"), proof=made.proof()).read_text())
    assert stored["verdict"] == "will not train" and len(stored["proof"]["sick"]) == 3
    with pytest.raises(ValueError, match=re.escape("path must end in .html or .json")):
        report.save(tmp_path / "r.txt")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk")))
    before = page.read_bytes()
    with pytest.raises(OSError, match="disk"):
        made.healthy().save(page)
    assert page.read_bytes() == before
    assert [p.name for p in page.parent.iterdir()] == ["r.html"]


def test_the_report_module_is_reached_from_the_face():
    assert audit.report.Report is type(made.report())


# ---- a watched run ---------------------------------------------------------------------------------------------------


def test_a_watched_run_as_text_says_when_what_was_found():
    lines = watch_page.text(made.events()).split("\n")
    assert lines[0] == "step 199: loss 2.3 to 0.191, least 0.191"
    assert lines[2].startswith("step 150: rate_too_high  (likely)")
    assert any(" ".join(line.split()) == "sharpness 185, stable up to 150" for line in lines)
    assert all(len(line) <= 100 and line.isprintable() for line in lines)


def test_a_watched_run_as_a_page_and_its_numbers(undrawn, tmp_path):
    events = made.events(findings=((3, made.finding(made.HOSTILE, where=made.HOSTILE)),))
    page = watch_page.page(events)
    whole = json.loads(watch_page.save(events, tmp_path / "r.json").read_text())
    reader = Reader(page)
    assert "<script" not in page and len([1 for tag, _ in reader.tags if tag == "img"]) == 4
    for attributes in (attributes for tag, attributes in reader.tags if tag == "data"):
        if not attributes["data-path"].endswith(("least", "most")):
            assert float(attributes["value"]) == pytest.approx(float(of_json(whole, attributes["data-path"])))
    assert watch_page.save(events, tmp_path / "r.html").read_text().startswith("<!doctype html>")


def test_only_more_than_a_hint_makes_a_watched_run_sick():
    assert not watch_page.sick(made.events(findings=()))
    assert not watch_page.sick(made.events(findings=((1, made.finding(severity="hint")),)))
    assert watch_page.sick(made.events(findings=((1, made.finding(severity="certain")),)))


def test_a_run_that_has_only_begun_is_shown(undrawn):
    nothing = {
        "loss_steps": np.zeros(0, int),
        "loss": np.zeros(0),
        "findings": (),
        "looks": {},
        "cost": {},
        "start": {},
    }
    assert watch_page.text(made.events(**nothing)).startswith("no loss was written")
    reader = Reader(watch_page.page(made.events(**nothing)))
    assert "nothing found" in reader.text and "img" not in [tag for tag, _ in reader.tags]


def test_theory_is_drawn_at_the_layers_that_it_speaks_of():
    signal = made.signal(5)
    told = made.predicted(3, names=("layers/1/w", "elsewhere", "layers/3/w"), log_gradient=np.array([-4.0, -2.0, 0.0]))
    drawn = figures._theory(made.report(evidence=made.evidence(signal=signal, predicted=told)))
    assert np.array_equal(drawn.state_rms, [np.nan, 1, np.nan, 0.09, np.nan], equal_nan=True)
    rms = signal.gradient_rms[-1] * np.exp(drawn.log_gradient / 2)
    assert np.allclose(rms[[1, 3]], signal.gradient_rms[3] * np.exp([-2, 0]))
    assert figures._theory(made.report(evidence=made.evidence(predicted=made.predicted(names=("other",) * 12)))) is None


def test_a_verdict_without_a_cause_says_on_what_it_rests():
    for verdict, words in (("will train", "speaks against training"), ("will not train", "No cause was found")):
        bare = made.report(findings=(), verdict=verdict)
        for text in (repr(bare), bare._repr_html_(), report_page.page(bare)):
            assert words in text
