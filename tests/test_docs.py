"""What README and site show: every block of Python runs, commands and files exist, nothing public is undocumented."""

import doctest
import importlib
import itertools
import pathlib
import re
import subprocess
import sys

import jax
import pytest

import experiments
from experiments import runner

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "guides").glob("*.md"))]
BLOCK = re.compile(r"^(?:<!-- ([a-z ]+) -->\n)?```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SLOW = {"audit", "concepts", "tour"}  # they examine, watch and train networks: half a minute of compilation
RUNS = [
    pytest.param(page, marks=pytest.mark.slow if page.stem in SLOW else (), id=page.stem)
    for page in PAGES
    if ">>> " in page.read_text(encoding="utf-8")
]
# What a page may set for its reader, and not for the tests after it
CACHE = (
    "jax_compilation_cache_dir",
    "jax_persistent_cache_min_compile_time_secs",
    "jax_persistent_cache_min_entry_size_bytes",
)
# Formulas that a reader must find in one search: how the field calls them, and what stands on the page that is found
FORMULAS = {
    "chi_1": ("theory.propagation.fixed_point", "analysis.gradients.growth", "b1"),
    "depth scale": ("theory.propagation.fixed_point", "analysis.propagation.depth_scale", "a3"),
    "product law": ("theory.jacobian.product_norm", "analysis.products.product_norm", "a1"),
    "tangent-kernel recursion": ("theory.kernels.ntk", "analysis.kernels.ntk", "e3"),
    "stability interval": ("ode.stability.real_interval", "analysis.stability.spectrum", "c3"),
    "variable projection": ("optimize.varpro.minimize", "optimize.varpro.reduced", "d11"),
    "gradient noise scale": ("optimize.train.gradient_noise", "optimize.train.gradient_noise", "d10"),
    "density by Lanczos": ("analysis.curvature.spectral_density", "krylov.trace.quadrature", "e1"),
    "batch norm's growth": ("theory.normalization.gradient_growth", "analysis.normalization.gradient_growth", "b10"),
    "attention's bound": ("theory.attention.rank_collapse", "analysis.attention.rank_collapse", "b9"),
}


def blocks(page):
    """(what is said of it, language, text) of a page's fenced blocks."""
    return BLOCK.findall(page.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def docs():
    """The modules that make the site's pages."""
    pytest.importorskip("docutils")
    sys.path.insert(0, str(ROOT / "docs"))
    yield (
        importlib.import_module("reference"),
        importlib.import_module("glossary"),
        importlib.import_module("questions"),
    )
    sys.path.remove(str(ROOT / "docs"))


@pytest.fixture(scope="module")
def pages(docs):
    reference, _, questions = docs
    return reference.Reference(questions.short_names())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", RUNS)
def test_code_runs(page):
    if page.stem == "audit":
        pytest.importorskip("equinox")
        pytest.importorskip("haiku")
    kept = {name: getattr(jax.config, name) for name in CACHE}
    try:
        result = doctest.testfile(str(page), module_relative=False, optionflags=doctest.NORMALIZE_WHITESPACE)
    finally:
        for name, value in kept.items():
            jax.config.update(name, value)
    assert result.attempted > 4
    assert result.failed == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_of_python_is_run(page):
    for said, language, text in blocks(page):
        assert language in {"", "python", "{include}", "{toctree}"}, f"a block of {language!r}"
        if language == "python" and said not in {"by hand", "experiment"}:
            assert ">>> " in text, f"no test runs this:\n{text}"
        if said == "by hand":
            compile(text, page.name, "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_files_exist(page):
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    lines = [line for _, language, block in blocks(page) if not language for line in block.splitlines()]
    for line in lines:
        made = re.match(r"make ([a-z-]+)", line)
        assert not made or made[1] in targets, line
        run = re.match(r"python -m experiments run (\w+)", line)
        assert not run or run[1] == "a9" or runner.resolve(run[1]), line
    for name in re.findall(r"`((?:notebooks|docs|experiments|numdl)/[\w./]*)`", text):
        assert (ROOT / name).exists() or "a9_" in name, name
    for name in re.findall(r"\]\((?!https?:|generated|#)([\w./]+)", text):
        assert (page.parent / name).exists(), name


def test_every_decision_is_a_paragraph_of_its_own():
    lines = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8").splitlines()
    stuck = [line for before, line in itertools.pairwise(lines) if line.startswith("**") and before.strip()]
    assert not stuck, "an empty line is missing before these, so that the site runs them together"


def test_the_experiment_of_the_guide_runs(tmp_path, monkeypatch):
    (text,) = [text for said, _, text in blocks(ROOT / "docs" / "guides" / "extend.md") if said == "experiment"]
    (tmp_path / "a9_mean_of_squares.py").write_text(text)
    monkeypatch.setattr(experiments, "__path__", [*experiments.__path__, str(tmp_path)])
    name = runner.resolve("a9")
    assert all(runner.headings(name)[part] for part in runner.HEADINGS)
    module = runner.load(name)
    config = module.Config.tiny()
    result = module.run(config)
    assert all(claim.holds for claim in module.claims(config, result))
    assert module.figure(config, result).axes


def test_nothing_public_is_undocumented_and_every_link_leads_somewhere(pages):
    assert not list(pages.gaps())


def test_an_experiments_page_has_its_claims_and_its_picture(docs, pages):
    questions = docs[2]
    said, claims = questions.board()
    assert said.startswith("Measured with jax")
    text = questions.page("a1_init_scaling", said, claims["a1"], pages)
    assert "8 of 8 claims hold. Measured with jax" in text
    assert len([line for line in text.split("\n") if line.startswith("| holds |")]) == 8
    assert "/gallery/a1_init_scaling.png" in text
    assert "Not on the scoreboard yet." in "\n".join(questions.card("a1_init_scaling", [], pages))
    pictured = {path.stem for path in (ROOT / "docs" / "gallery").glob("*.png")}
    assert pictured <= set(runner.names())
    assert {name.split("_")[0] for name in pictured} == set(claims), "scoreboard --pictures docs/gallery renews them"


def test_what_is_missing_is_seen(docs, pages, monkeypatch):
    bare = docs[0].docstrings.parts("One.\n\nParameters\n----------\na : int    one\nTwin: theory.nowhere.at_all.")
    module = next(module for module in pages.modules if module.name == "numdl.theory.propagation")
    entry = module.functions[0]
    changed = type(entry)(entry.name, entry.node, entry.file, bare)
    broken = type(module)(module.name, module.file, module.parts, (changed,), (), ())
    monkeypatch.setattr(pages, "modules", [broken])
    found = "\n".join(pages.gaps())
    assert "no word about activation" in found
    assert "no twin theory.nowhere.at_all" in found


def test_docstrings_are_read_as_they_are_written(docs):
    parts = docs[0].docstrings.parts(
        "PREDICTED length.\n\n    V(q) = w * E[f(z)**2],   z ~ N(0, 1)\n\nWords.\n\nParameters\n----------\n"
        "q, r : array [N]    lengths\n    above 0\n*rest : int    more\n"
        "Returns\n-------\nV    float64\nRaises\n------\n"
        "ValueError, TypeError    below 0\nSource: Poole et al. 2016, arXiv:1606.05340.\n"
        "Twins: analysis.propagation.lengths, ode.stability.amplification.    Experiments: a2, b3."
    )
    assert parts.parameters == ((("q", "r"), "array [N]", "lengths above 0"), (("rest",), "int", "more"))
    assert parts.returns == ("V    float64",)
    assert parts.raises == (("ValueError, TypeError", "below 0"),)
    assert parts.source == "Poole et al. 2016, arXiv:1606.05340"
    assert parts.twins == ("analysis.propagation.lengths", "ode.stability.amplification")
    assert parts.experiments == ("a2", "b3")
    assert "Words." in parts.body
    assert "Source" not in parts.body


def test_formulas_become_mathml_or_stay_as_they_are(docs):
    formulas = importlib.import_module("formulas")
    assert "<msqrt>" in formulas.row("V(q) = w E[f(sqrt(q) z)^2]")
    assert "<msub>" in formulas.row("K_{l+1} = b + x x' / d")
    assert formulas.block("    a = `b`").startswith("<pre")
    with pytest.raises(formulas.UnreadableError):
        formulas.row("a = (b")


@pytest.mark.parametrize("name", FORMULAS)
def test_glossary_leads_from_a_name_to_formula_functions_and_experiment(name, docs, pages):
    """One search: the name is an index entry right above the section that has it all."""
    text = docs[1].page(pages)
    *_, section = text.partition(f"single: {name}\n")
    section = re.split(
        r"^```\{index\}", re.split(r"^## ", section, maxsplit=1, flags=re.MULTILINE)[1], flags=re.MULTILINE
    )[0]
    *functions, experiment = FORMULAS[name]
    assert 'class="formula"' in section
    for function in functions:
        assert f"`{function} <numdl.{function}>`" in section
    assert f"[{experiment}](" in section


@pytest.mark.slow
def test_the_site_builds_and_its_search_finds_the_formulas(tmp_path):
    pytest.importorskip("sphinx")
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "-b", "html", str(ROOT / "docs"), str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr[-3000:]
    index = (tmp_path / "searchindex.js").read_text(encoding="utf-8")
    for name in FORMULAS:
        assert f'"{name.lower()}"' in index.lower(), f"search does not know {name!r}"
    for page in tmp_path.rglob("*.html"):
        assert not re.search(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', page.read_text()), (
            f"{page}: needs a network"
        )
