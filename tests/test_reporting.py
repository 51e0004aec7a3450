"""Claims that can fail, folders that are whole or not there, pages in which every text is only text."""

import base64
import dataclasses
import hashlib
import json
import multiprocessing
import os
import pathlib
import re
import xml.dom.minidom

import jax
import numpy as np
import pytest

from numdl import activations, plotting, records, reporting
from numdl.reporting import _pages, _runs


def claim(**changes):
    values = {
        "claim": "the mean is kept", "source": "a paper", "expected": 1.0, "measured": 1.05, "uncertainty": 0.01,
        "tolerance": 0.06, "tolerance_from": "six standard errors", "origin": "exact",
    }  # fmt: skip
    return reporting.Claim(**values | changes)


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 10
    names: tuple = ("a", "b")
    limit: float = float("inf")


@records.record
class Inner:
    mean: np.ndarray
    name: str = records.static()


@records.record
class Result:
    values: np.ndarray
    inner: Inner
    pair: tuple
    by_name: dict


def result(shift=0.0):
    inner = Inner(mean=np.arange(3.0) + shift, name="tanh")
    return Result(np.ones((2, 2)) + shift, inner, (np.zeros(2), 5), {"U[-0.5, 0.5]": np.ones(1)})


def saved(tmp_path, **changes):
    values = {"name": "dice", "config": Config(), "record": result(), "claims": [claim()], "seconds": 1.5}
    return reporting.save(tmp_path, **values | changes)


def reseal(folder, about):
    """environment.json with other entries, as a writer would leave it: a forger can do as much."""
    about = {name: value for name, value in about.items() if name != "digest"}
    text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
    about["digest"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "environment.json").write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n")


def visible(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


# ---- claims ----


@pytest.mark.parametrize(
    "changes, holds",
    [
        ({"measured": 1.0625, "tolerance": 0.0625}, True),
        ({"measured": 1.0626, "tolerance": 0.0625}, False),
        ({"measured": 0.9374, "tolerance": 0.0625}, False),
        ({"measured": -9.0, "relation": "<="}, True),
        ({"measured": 1.07, "relation": "<="}, False),
        ({"measured": 9.0, "relation": ">="}, True),
        ({"measured": 0.93, "relation": ">="}, False),
        ({"measured": float("nan")}, False),
        ({"measured": float("nan"), "relation": "<="}, False),
        ({"measured": -np.inf, "relation": "<="}, False),
        ({"expected": np.inf, "measured": np.inf}, False),
        ({"tolerance": float("inf")}, False),
        ({"tolerance": float("nan")}, False),
        ({"uncertainty": float("nan")}, False),
        ({"measured": 1.0, "tolerance": 0.0, "uncertainty": 0.0}, True),
    ],
)
def test_a_claim_holds_within_its_tolerance_and_never_by_what_is_not_finite(changes, holds):
    assert claim(**changes).holds is holds


def test_a_claim_takes_array_scalars_and_keeps_floats():
    made = claim(measured=jax.numpy.float32(1.0), uncertainty=np.float32(0.5), expected=np.int32(1))
    assert {type(getattr(made, name)) for name in ("measured", "uncertainty", "expected")} == {float}


@pytest.mark.parametrize(
    "changes, kind, message",
    [
        ({"tolerance": -1.0}, ValueError, "tolerance must be a number >= 0; got -1.0"),
        ({"uncertainty": -0.5}, ValueError, "uncertainty must be a number >= 0; got -0.5"),
        ({"measured": np.ones(2)}, TypeError, "measured must be one real number"),
        ({"measured": True}, TypeError, "measured must be one real number; got True"),
        ({"expected": "1"}, TypeError, "expected must be one real number; got '1'"),
        ({"relation": "<"}, ValueError, "relation must be one of ==, <=, >=; got '<'"),
        ({"source": " "}, ValueError, "source must be a text that is not empty"),
        ({"tolerance_from": None}, TypeError, "tolerance_from must be a text; got None"),
        ({"origin": "theorem"}, ValueError, "origin must be one of exact, published, own; got 'theorem'"),
        ({"origin": "unknown"}, ValueError, "origin must be one of exact, published, own; got 'unknown'"),
        ({"origin": None}, ValueError, "origin must be one of exact, published, own; got None"),
        ({"note": None}, TypeError, "note must be"),
    ],
)
def test_a_claim_refuses_what_it_cannot_judge(changes, kind, message):
    with pytest.raises(kind, match=re.escape(message)):
        claim(**changes)


@pytest.mark.parametrize(
    "value, error, text",
    [
        (0.99812, 0.0031, "0.9981 ± 0.0031"), (5.0, 0.0, "5"), (1 / 3, 0.0, "0.333333"), (123.456, 2.5, "123.5 ± 2.5"),
        (1234.5, 310.0, "1234 ± 310"), (2.5e9, 1.0e7, "2.500e+09 ± 1.0e+07"), (1.2e-9, 3e-11, "1.200e-09 ± 3.0e-11"),
        (float("nan"), 0.1, "nan ± 0.1"), (1.0, float("nan"), "1 ± nan"),
    ],
)  # fmt: skip
def test_measured_text_has_the_digits_that_its_uncertainty_leaves(value, error, text):
    assert claim(measured=value, uncertainty=error).measured_text() == text


def test_claims_text_says_what_holds_and_what_fails():
    text = reporting.claims_text([claim(), claim(claim="the second", measured=3.0, relation="<=")])
    assert re.search(r"^holds +exact +1 +1\.050 ± 0\.010 +0\.06 +1\.0$", text, re.MULTILINE)
    assert re.search(r"^FAILS +exact +≤ 1 ", text, re.MULTILINE)
    assert "the second  [a paper]" in text
    assert "tolerance: six standard errors" in text


def test_a_claim_must_say_where_its_number_comes_from():
    with pytest.raises(TypeError, match="origin"):
        reporting.Claim("text", "source", 1.0, 1.0, 0.1, 0.1, "tolerance")


def test_a_failing_claim_says_by_how_much_and_why():
    assert claim().failure_text() == ""
    assert claim(measured=1.1).failure_text() == "1.100 ± 0.010 misses 1 with 0.06 allowed by 0.04, 4 standard errors."
    limit = {"measured": 2.0, "uncertainty": 0.0, "tolerance": 0.0, "relation": "<="}
    assert claim(**limit, note="Too narrow.").failure_text() == "2 misses ≤ 1 by 1. Too narrow."
    assert claim(**limit, note="a net of 8 units").failure_text() == "2 misses ≤ 1 by 1. A net of 8 units."
    assert claim(**limit, note="q is too small").failure_text() == "2 misses ≤ 1 by 1. q is too small."
    nothing = claim(measured=float("nan"), uncertainty=float("inf"))
    assert nothing.failure_text() == "Nothing can be compared: measured, uncertainty not finite."
    assert claim(measured=1.1).failure_text() in reporting.claims_text([claim(measured=1.1)])
    assert "4 standard errors." in _pages.claims_table([claim(measured=1.1)])


@pytest.mark.parametrize("letter", ["\x1b[2J", "\r", "\x00", "\x07", "\x9b", "\u202e", "\u2028", "\x7f", "\ud800"])
def test_a_terminal_gets_no_instructions(letter):
    text = f"a{letter}b"
    made = claim(claim=text, source=text, tolerance_from=text, measured=9.0, note=text)
    shown = (
        reporting.claims_text([made]), reporting.claims_text([made], brief=True),
        reporting.margins_text([(text, [made])]),
        reporting.scoreboard_text([(text, [made], 1.0), (text, [], 1.0, None, None, text)]),
    )  # fmt: skip
    for table in shown:
        assert all(part.isprintable() for part in table.split("\n"))
        assert ascii(letter[0])[1:-1] in table or letter == "\r"


def test_claims_are_counted_by_origin():
    claims = [claim(), claim(measured=5.0), claim(origin="own"), claim(origin="published", measured=5.0)]
    assert reporting.by_origin(iter(claims)) == {"exact": (1, 2), "published": (0, 1), "own": (1, 1)}
    board = reporting.scoreboard_text([("one", claims[:2], 1.0), ("two", claims[2:], 1.0)])
    assert [line.split() for line in board.splitlines()[3:]] == [
        ["exact", "1", "of", "2", "claims", "hold"],
        ["published", "0", "of", "1", "claims", "hold"],
        ["own", "1", "of", "1", "claims", "hold"],
    ]
    for shown in (reporting.margins_text([("one", claims)]), reporting.claims_text(claims)):
        assert all(re.search(rf"\b{origin}\b", shown) for origin in ("exact", "published", "own"))
    assert "<small>published</small>" in reporting.claims_table(claims)


def test_a_result_of_before_is_of_unknown_origin_and_says_so(tmp_path):
    values = claim(measured=5.0).as_dict()
    del values["origin"], values["note"]
    old = reporting.Claim.from_dict(values)
    assert old.origin == "unknown"
    assert reporting.Claim.from_dict(old.as_dict()) == old
    assert reporting.by_origin([claim(), old])["unknown"] == (0, 1)
    assert "unknown" not in reporting.by_origin([claim()])
    assert "unknown" in reporting.claims_text([old])
    assert saved(tmp_path, claims=[old, claim()]).claims == [old, claim()]


def test_scoreboard_sums_up():
    board = reporting.scoreboard_text([("one", [claim()], 1.0), ("two", [claim(), claim(measured=5.0)], 2.5)])
    assert [line.split()[:5] for line in board.splitlines()[:3]] == [
        ["ok", "one", "1", "of", "1"], ["FAIL", "two", "1", "of", "2"], ["FAIL", "total", "2", "of", "3"],
    ]  # fmt: skip
    assert board.splitlines()[2].split("hold")[1].split()[:2] == ["3.5", "s"]


# ---- folders ----


def test_a_run_comes_back_as_it_went(tmp_path):
    run = saved(tmp_path, claims=[claim(measured=float("nan"))], source=__file__)
    again = reporting.load(tmp_path / "dice" / reporting.digest(Config()))
    assert run.folder == again.folder
    assert again.config == {"width": 10, "names": ["a", "b"], "limit": "inf"}
    assert np.isnan(again.claims[0].measured)
    assert not again.claims[0].holds
    assert np.array_equal(again.arrays["inner.mean"], np.arange(3.0))
    assert again.arrays["inner.name"] == "tanh"
    assert np.array_equal(again.arrays["pair.0"], np.zeros(2))
    assert again.arrays["pair.1"] == 5
    assert again.arrays["by_name.U[-0.5, 0.5]"] == 1.0
    assert again.seconds == 1.5
    assert again.environment["jax"] == jax.__version__
    assert again.environment["x64"] == jax.config.jax_enable_x64
    assert (run.folder / "source.py").read_text() == pathlib.Path(__file__).read_text()


def test_json_files_are_strict(tmp_path):
    run = saved(tmp_path, claims=[claim(measured=float("nan"), uncertainty=float("inf"))])
    for name in ("config.json", "claims.json", "environment.json"):
        json.loads((run.folder / name).read_text(), parse_constant=lambda token: pytest.fail(token))


def test_another_config_has_another_folder_and_an_equal_one_replaces(tmp_path):
    first = saved(tmp_path)
    other = saved(tmp_path, config=Config(width=11))
    again = saved(tmp_path, record=result(shift=1.0))
    assert other.folder != first.folder == again.folder
    assert visible(tmp_path / "dice") == sorted([first.folder.name, other.folder.name])
    assert reporting.load(first.folder).arrays["inner.mean"][0] == 1.0


def test_equal_runs_give_equal_bytes(tmp_path):
    def draw():
        ax = plotting.prediction_and_measurement(np.arange(3.0), np.ones(3), np.ones((4, 3)))
        return ax.figure

    one, two = (saved(tmp_path / str(i), figure=draw()) for i in range(2))
    for name in ("config.json", "claims.json", "record.npz", "figure.svg", "figure.png"):
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes(), name


@pytest.mark.parametrize("fail_at", range(5))
@pytest.mark.parametrize("earlier", [True, False])
def test_a_writer_that_fails_midway_leaves_what_was_there(tmp_path, monkeypatch, fail_at, earlier):
    if earlier:
        saved(tmp_path)
    calls = []

    def failing(real):
        def replacement(*arguments):
            calls.append(arguments)
            if len(calls) == fail_at + 1:
                raise OSError(28, "No space left on device")
            return real(*arguments)

        return replacement

    with monkeypatch.context() as patch:
        patch.setattr(_runs, "write", failing(_runs.write))
        patch.setattr(_runs, "_flush", failing(_runs._flush))
        with pytest.raises(OSError, match="No space"):
            saved(tmp_path, record=result(shift=1.0))
    folder = tmp_path / "dice" / reporting.digest(Config())
    assert visible(tmp_path / "dice") == ([folder.name] if earlier else [])
    if earlier:
        assert reporting.load(folder).arrays["inner.mean"][0] == 0.0


def test_a_writer_killed_between_the_two_renames_loses_nothing(tmp_path):
    run = saved(tmp_path)
    aside = _runs._aside(run.folder)
    os.rename(run.folder, aside)
    assert reporting.load(run.folder).arrays["inner.mean"][0] == 0.0
    saved(tmp_path, record=result(shift=2.0))
    assert reporting.load(run.folder).arrays["inner.mean"][0] == 2.0
    assert not aside.exists()


def write_often(folder, shift):
    for _ in range(15):
        reporting.save(folder, name="dice", config=Config(), record=result(shift), claims=[], seconds=shift)


def test_two_writers_of_one_run_do_not_mix(tmp_path):
    saved(tmp_path)
    context = multiprocessing.get_context("spawn")  # a forked child hangs once jax has started
    folder = tmp_path / "dice" / reporting.digest(Config())
    target = write_often
    writers = [context.Process(target=target, args=(tmp_path, shift)) for shift in (1.0, 2.0)]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        run = reporting.load(folder)  # a mixture would fail its digests
        seen.add((run.arrays["inner.mean"][0], run.arrays["values"][0, 0] - 1))
    assert all(a == b for a, b in seen)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert visible(tmp_path / "dice") == [folder.name]


@pytest.mark.parametrize("file", ["config.json", "claims.json", "record.npz"])
def test_a_file_that_was_cut_is_named(tmp_path, file):
    run = saved(tmp_path)
    content = (run.folder / file).read_bytes()
    (run.folder / file).write_bytes(content[:-1])
    with pytest.raises(ValueError, match=file):
        reporting.load(run.folder)


def test_a_run_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing_here"):
        reporting.load(tmp_path / "nothing_here")


def test_pickled_arrays_are_neither_written_nor_read(tmp_path):
    bad = dataclasses.make_dataclass("Bad", ["values"])
    with pytest.raises(TypeError, match=r"record\.values must be an array of numbers or texts"):
        saved(tmp_path, record=bad(np.array([object()])))
    run = saved(tmp_path)
    np.savez(run.folder / "record.npz", values=np.array([{}]))
    about = json.loads((run.folder / "environment.json").read_text())
    about["files"]["record.npz"] = hashlib.sha256((run.folder / "record.npz").read_bytes()).hexdigest()
    reseal(run.folder, about)
    with pytest.raises(ValueError, match="allow_pickle"):
        reporting.load(run.folder)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "x/y", "", "X", "x.y", "1x", "x\n", None])
def test_a_name_cannot_leave_the_folder(tmp_path, name):
    with pytest.raises(ValueError, match="name must be small letters"):
        saved(tmp_path / "inner", name=name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("field", ["../x", "/x", "a/b", "a\\b", "", ".x", "c:x"])
def test_a_field_cannot_leave_the_archive(tmp_path, field):
    with pytest.raises(ValueError, match="field must be a name without slashes"):
        saved(tmp_path, record={field: np.ones(1)})


def test_files_named_in_the_environment_stay_in_the_folder(tmp_path):
    run = saved(tmp_path)
    about = json.loads((run.folder / "environment.json").read_text())
    about["files"]["../../secret"] = "0"
    reseal(run.folder, about)
    with pytest.raises(ValueError, match="secret"):
        reporting.load(run.folder)


def test_writable_names_the_folder_that_is_not(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=f"results folder {tmp_path / 'file'} cannot be written"):
        reporting.writable(tmp_path / "file")
    assert visible(reporting.writable(tmp_path / "new")) == []


def test_arrays_of_every_kind_have_a_form():
    stored = _runs.arrays(
        {"key": jax.random.key(3), "half": jax.numpy.ones(2, jax.numpy.bfloat16), "f": activations.tanh, "none": None,
         "names": ("a", "b"), "flag": True}
    )  # fmt: skip
    assert np.array_equal(stored["key"], jax.random.key_data(jax.random.key(3)))
    assert stored["half"].dtype == np.float32
    assert stored["f"] == "tanh"
    assert stored["names"].tolist() == ["a", "b"]
    assert "none" not in stored


def test_a_config_of_something_else_is_named():
    config = dataclasses.make_dataclass("C", ["f"])
    with pytest.raises(TypeError, match=r"config\.f must be"):
        reporting.digest(config(print))


# ---- pages ----

HOSTILE = "<img src=x onerror=alert(1)> & \"'</style></title>"


def test_every_text_is_escaped_wherever_it_enters(tmp_path):
    run = saved(
        tmp_path,
        config=Config(names=(HOSTILE,)),
        claims=[claim(claim=HOSTILE, source=HOSTILE, tolerance_from=HOSTILE, measured=9.0)],
    )
    parts = dict.fromkeys(("Question", "Prediction", "Measurement", "Verdict"), f"{HOSTILE} `{HOSTILE}`")
    part = reporting.run_section(run, title=HOSTILE, parts=parts, symbols={HOSTILE: HOSTILE})
    image = reporting.figure_image(plotting.figure(), alt=HOSTILE, caption=HOSTILE)
    extra = reporting.section(
        "x", reporting.table((HOSTILE,), [(HOSTILE,)]), reporting.details(HOSTILE, HOSTILE), image
    )
    text = reporting.page(
        HOSTILE,
        [part, extra],
        intro=f"{HOSTILE}\n\n- {HOSTILE}\n\n    {HOSTILE}",
        lead=[_pages.scoreboard([run.score], [HOSTILE])],
    )
    assert "<img src=x" not in text
    assert text.count("</style>") == 1
    assert text.count("</title>") == 1
    assert set(re.findall(r"<(\w+)", text)) <= {
        "html", "head", "meta", "title", "style", "body", "main", "header", "h1", "h2", "h3", "p", "ul", "li", "pre",
        "nav", "a", "section", "table", "thead", "tbody", "tr", "th", "td", "span", "small", "div", "strong", "code",
        "details", "summary", "sub", "sup", "dl", "dt", "dd", "figure", "img", "figcaption", "doctype",
        "math", "mrow", "mspace", "mo", "mi", "mtext", "mn",
    }  # fmt: skip


def test_a_page_is_whole_and_asks_for_nothing(tmp_path):
    run = saved(tmp_path, figure=plotting.prediction_and_measurement([1, 2], [1, 1], np.ones((3, 2))).figure)
    parts = {"Question": "Why?", "Prediction": "So:\n\n    q = 1", "Measurement": "Thus.", "Verdict": "Good."}
    text = reporting.page("Title", [reporting.run_section(run, title="A run", parts=parts)], intro="For you.")
    assert text.startswith("<!doctype html>")
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    body = re.sub(r"<meta[^>]*>|<!doctype html>|<img[^>]*>", "", text)
    xml.dom.minidom.parseString(body)  # every element is closed
    addresses = re.findall(r"(?:src|href)=\"([^\"]*)\"|url\(([^)]*)\)", text)
    assert all(a.startswith(("data:image/svg+xml;base64,", "#")) for pair in addresses for a in pair if a)
    (image,) = re.findall(r"base64,([^\"]*)", text)
    assert base64.b64decode(image) == (run.folder / "figure.svg").read_bytes()
    assert "✓ holds" in text
    assert "1.050 ± 0.010" in text
    assert "six standard errors" in text


def test_a_failing_claim_is_said_in_words():
    good = _pages.agreement([claim()])
    assert "The one claim holds." in good
    bad = _pages.agreement([claim(), claim(claim="the second", measured=5.0)])
    assert "1 of 2 claims not within tolerance" in bad
    assert "<li>the second</li>" in bad
    assert "✗ fails" in _pages.claims_table([claim(measured=5.0)])


def test_prose_knows_paragraphs_lists_formulas_and_code():
    text = reporting.prose(
        "One\nline `x < y`.\n\nThe map:\n    q = 1\n      + 2\nand on.\n\n- first\n  still\n- second"
    )
    assert text == (
        "<p>One line <code>x &lt; y</code>.</p><p>The map:</p>"
        '<div class="formulas"><div class="rows">'
        '<div class="row"><span><math displaystyle="true">'
        "<mrow><mi>q</mi><mo>=</mo><mn>1</mn></mrow></math></span></div>"
        '<div class="row"><span><math displaystyle="true"><mrow><mo>+</mo><mn>2</mn></mrow></math></span></div>'
        "</div></div><p>and on.</p>"
        "<ul><li>first still</li><li>second</li></ul>"
    )


@pytest.mark.parametrize(
    "text, shown",
    [
        ("K_3 K_2 y", "K<sub>3</sub> K<sub>2</sub> y"),
        ("q_{l+1} = q_l", "q<sub>l+1</sub> = q<sub>l</sub>"),
        ("chi_1, psi_1(n/2)", "chi<sub>1</sub>, psi<sub>1</sub>(n/2)"),
        ("|z|^2 (n s^2)^L e^{-x}", "|z|<sup>2</sup> (n s<sup>2</sup>)<sup>L</sup> e<sup>-x</sup>"),
        ("10^-3 R^100", "10<sup>-3</sup> R<sup>100</sup>"),
        ("fan_in weight_variance a_long x_ ^2", "fan_in weight_variance a_long x_ ^2"),
        ("x_{<b>} a<b_1", "x<sub>&lt;b&gt;</sub> a&lt;b<sub>1</sub>"),
    ],
)
def test_formulas_are_set_and_names_left_alone(text, shown):
    assert _pages.formula(text) == shown


def test_sections_are_linked_by_anchors():
    text = reporting.page("T", [reporting.section("One & two", "a"), reporting.section("Three", "b")])
    assert '<a href="#one-two">One &amp; two</a>' in text
    assert '<section id="one-two">' in text
