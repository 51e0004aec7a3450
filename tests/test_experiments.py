"""Every experiment runs with its tiny settings, its claims hold, and its claims can fail."""

import ast
import dataclasses
import re

import jax
import numpy as np
import PIL.Image
import pytest

from experiments import fields, runner, workers
from experiments.drawing import legend_below
from numdl import plotting, reporting
from numdl.networks import dense

NAMES = runner.names()
# What makes a claim of a given origin
CLAIMS = ("Claim", "near", "near_ratio", "one_number")
# A few seconds each; the others compile longer, even when tiny, and run in the long suite
QUICK = {"a1", "b6", "d5", "d15"}
# What conftest.py asks of this process, for a worker
STRICT = {
    "PYTHONWARNINGS": "error",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
RUNS = [pytest.param(n, marks=() if n.split("_")[0] in QUICK else pytest.mark.slow) for n in NAMES]


def test_there_are_experiments():
    assert {"a1_init_scaling", "a2_length_map", "a3_correlation_map"} <= set(NAMES)


def test_every_group_says_what_it_asks():
    assert sum(len(members) for _, members in runner.groups(NAMES)) == len(NAMES)
    for page, members in runner.groups(NAMES):
        assert len({name[0] for name in members}) == 1, f"one letter for {page.split(':')[0]}"
        first, _, more = page.partition("\n\n")
        assert re.fullmatch(r"[a-z_]+: .+\?", first)
        assert len(more) > 80


def cut_off(picture):
    """The edges of a picture on which something is drawn: what the layout holds keeps a distance from them."""
    with PIL.Image.open(picture) as opened:
        pixels = np.asarray(opened.convert("L"))
    edges = {"left": pixels[:, 0], "right": pixels[:, -1], "top": pixels[0], "bottom": pixels[-1]}
    return [name for name, line in edges.items() if line.min() < 250]


def test_a_legend_below_takes_more_lines_where_it_is_too_wide(tmp_path):
    for wanted, legend in ((["left", "right"], None), ([], legend_below)):
        drawn = plotting.figure(width=4, height=3)
        ax = drawn.subplots()
        lines = [ax.plot([0, 1], label=f"a line with a long name, {number}")[0] for number in range(5)]
        names = [each.get_label() for each in lines]
        if legend is None:
            drawn.legend(lines, names, loc="outside lower center", ncols=5)
        else:
            legend(drawn, lines, names)
        drawn.savefig(tmp_path / "drawn.png")
        assert cut_off(tmp_path / "drawn.png") == wanted


@pytest.mark.parametrize("name", RUNS)
def test_tiny_run_holds_and_is_kept(name, tmp_path, monkeypatch):
    """In a process of its own, as `reproduce` does it: programs of 52 experiments would exhaust one's memory maps."""
    for variable, value in STRICT.items():
        monkeypatch.setenv(variable, value)
    (outcome,) = workers.reproduce([name], results=tmp_path, tiny=True)
    assert not outcome.problem, f"{outcome.problem}\n{outcome.log.read_text()}"
    run = outcome.run
    assert run.claims, "an experiment without a claim"
    assert run.score.maps is None or run.score.maps < 16_000, "a quarter of what a process may have"
    failing = [claim for claim in run.claims if not claim.holds]
    assert not failing, reporting.claims_text(failing)
    again = reporting.load(run.folder)
    assert again.claims == run.claims
    assert (run.folder / "figure.svg").stat().st_size > 2000
    assert not cut_off(run.folder / "figure.png"), "something is drawn beyond the figure's edge"
    assert (run.folder / "source.py").read_text() == runner.source(name).read_text()


@pytest.mark.parametrize("name", NAMES)
def test_docstring_says_question_prediction_measurement_verdict(name):
    parts = runner.headings(name)
    assert parts["title"].endswith("?"), "the first line is the question in short"
    for heading in runner.HEADINGS:
        assert len(parts[heading]) > 40, heading


@pytest.mark.parametrize("name", NAMES)
def test_the_options_that_a_docstring_names_are_taken(name):
    module = runner.load(name)
    for options in re.findall(r"`(--[^`]*)`", module.__doc__):
        fields.configure(name, module.Config, options.split())


@pytest.mark.parametrize("name", NAMES)
def test_every_claim_says_where_its_number_comes_from(name):
    """A text of the three, or a name that the callers fill in; `Claim` itself has no default, nor has `claiming`."""
    for call in ast.walk(ast.parse(runner.source(name).read_text())):
        if isinstance(call, ast.Call) and ast.unparse(call.func).split(".")[-1] in CLAIMS:
            given = [keyword.value for keyword in call.keywords if keyword.arg == "origin"] or call.args[2:3]
            if not given and any(isinstance(part, ast.Starred) for part in call.args):
                continue  # a row of a table
            (origin,) = given
            said = {
                part.value
                for part in ast.walk(origin)
                if isinstance(part, ast.Constant) and str(part.value) == part.value
            }
            assert said <= {"exact", "published", "own"}
            assert said or isinstance(origin, ast.Name)


@pytest.mark.parametrize("name", NAMES)
def test_config_is_frozen_and_small_for_the_tests(name):
    module = runner.load(name)
    assert dataclasses.fields(module.Config)
    assert module.Config.tiny() != module.Config()
    with pytest.raises(dataclasses.FrozenInstanceError):
        module.Config().seed = 3


@pytest.mark.parametrize("name", ["a2_length_map", "a3_correlation_map"])
def test_networks_of_another_variance_break_a_claim(name, monkeypatch):
    """Weights whose variance is 40 % too large: theory does not know, so the measurement must contradict it."""
    exact = dense.network

    def wrong(*, weight_variance, **settings):
        return exact(weight_variance=1.4 * weight_variance, **settings)

    monkeypatch.setattr(dense, "network", wrong)
    module, config = runner.load(name), runner.configure(name, tiny=True)
    assert not all(claim.holds for claim in module.claims(config, module.run(config)))
