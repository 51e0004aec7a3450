"""`numdl.cite` gives the papers of a function's source line, or refuses; it never gives another paper."""

import ast
import re

import pytest

import numdl as nd
from numdl import _citations as citations
from tests import test_docstrings

LINES = {name: citations.source(ast.get_docstring(node) or "") for name, node, _ in test_docstrings.FUNCTIONS}
LINES = {name: line for name, line in LINES.items() if line}
# Papers that source lines name and whose facts were not looked up yet: cite refuses their functions. Never grows.
UNRECORDED = 2


def keys(bibtex):
    return re.findall(r"^@\w+\{(.+),$", bibtex, flags=re.MULTILINE)


@pytest.mark.parametrize(
    "function, expected",
    [
        (nd.theory.propagation.length_map, ["poole2016exponential"]),
        (nd.theory.normalization.gradient_growth, ["yang2019mean"]),
        (nd.theory.jacobian.product_norm, ["hanin2020products"]),
        (nd.theory.kernels, ["lee2018deep", "jacot2018neural"]),
        (nd.analysis.descent.sharpness, ["lanczos1950iteration", "cohen2021gradient"]),
        (nd.theory.jacobian.lyapunov_exponents, None),
        (nd.krylov.trace.xtrace, ["epperly2024xtrace"]),
        (nd.theory.attention.rank_collapse, ["dong2021attention"]),
        (nd.optimize.train.gradient_noise, ["mccandlish2018empirical"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_the_papers_of_a_function(function, expected):
    if expected is None:
        with pytest.raises(ValueError, match="no reference recorded for Cohen 1984"):
            nd.cite(function)
    else:
        assert keys(nd.cite(function)) == expected


@pytest.mark.parametrize(
    "line, found, missing",
    [
        ("Hinton & Salakhutdinov 2006, Science 313", ["hinton2006reducing"], []),
        ("Hinton & Nair 2006, Science 313", [], ["Hinton 2006"]),
        ("Hinton et al. 2006", [], ["Hinton 2006"]),
        ("Björck 1996, algorithm 7.4.1", ["bjorck1996numerical"], []),
        ("Bjorck 1996", ["bjorck1996numerical"], []),
        ("Kuczynski & Wozniakowski 1992", ["kuczynski1992estimating"], []),
        ("de Boor 1978, A Practical Guide to Splines", ["deboor1978practical"], []),
        ("Hinton, Osindero & Teh 2006, Neural Computation 18", ["hinton2006fast"], []),
        ("Golub & Van Loan 2013", ["golub2013matrix"], []),
        ("Golub & Pereyra 2013", [], ["Golub 2013"]),
        ("A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009", ["krizhevsky2009learning"], []),
        ("Glorot & Bengio 2010; He et al. 2015, arXiv:1502.01852", ["glorot2010understanding", "he2015delving"], []),
        ("Poole et al. 2016, arXiv:9999.99999", [], ["arXiv:9999.99999"]),
        ("own; Xiong et al. 2020, arXiv:2002.04745", ["xiong2020layer"], []),
        ("Schoenholz et al. 2017, figure 2", ["schoenholz2017deep"], []),
        ("the definition; elementary", [], []),
    ],
)
def test_a_paper_is_found_by_number_or_by_all_its_named_authors(line, found, missing):
    assert citations.resolve(line) == (found, missing)


def test_entries_are_whole():
    entries = citations.references()
    assert len(entries) > 200
    for key, entry in entries.items():
        fields = dict(re.findall(r"^  (\w+) = \{(.*)\},$", entry, flags=re.MULTILINE))
        assert {"author", "title", "year"} <= set(fields), key
        assert re.fullmatch(r"\d{4}", fields["year"]), key
        assert set(fields) & {"eprint", "journal", "booktitle", "publisher", "institution"} or key.startswith("kriz"), (
            key
        )
        assert entry.count("{") == entry.count("}"), key
    numbers = re.findall(r"eprint = \{(.+)\}", "".join(entries.values()))
    assert len(set(numbers)) == len(numbers)


def test_every_source_line_has_its_papers_or_names_what_is_missing():
    missing = {paper for line in LINES.values() for paper in citations.resolve(line)[1]}
    assert len(missing) <= UNRECORDED, sorted(missing)
    silent = {line for line in LINES.values() if citations.resolve(line) == ([], [])}
    named = {line for line in silent if re.search(r"arXiv:\d|[A-Z]\w+ et al", line)}
    assert not named, "a paper that the reader passes over"


def test_arxiv_numbers_and_first_authors_agree():
    """A number in a source line stands beside the first author of the entry that it leads to."""
    for line in LINES.values():
        for piece in line.split("; "):
            numbers, found = citations.ARXIV.findall(piece), citations.resolve(piece)[0]
            if len(numbers) == 1 and found:
                entry = citations.references()[found[0]]
                year = int(re.search(r"year = \{(\d+)\}", entry)[1])  # of the preprint or of its publication
                assert any(str(near) in piece for near in (year - 1, year, year + 1)), f"{piece}: {entry}"
                first = re.search(r"author = \{(.+?)(?: and |\})", entry)[1]
                surname = first.split(",")[0] if "," in first else first.split()[-1]
                assert surname in piece or not re.search(r"[A-Z]\w+ et al|&", piece), f"{piece}: {entry}"


@pytest.mark.parametrize("wrong", [3, "fixed_point", None])
def test_what_is_no_function_is_refused(wrong):
    with pytest.raises(TypeError, match="function must be"):
        nd.cite(wrong)


def test_what_names_no_paper_is_refused():
    with pytest.raises(ValueError, match="norm names no paper"):
        nd.cite(nd.trees.norm)
    with pytest.raises(ValueError, match="names no source"):
        nd.cite(citations.resolve)
