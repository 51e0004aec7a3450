"""CSV files become columns of the right types; errors name file, line and column."""

import gzip
import tracemalloc

import numpy as np
import pytest

from numdl import data
from numdl.data import tables

PLANTS = "length,count,species\n1.5,3,rose\n-2,4,tulip\n 1e-3 ,5,rose\n"


def write(folder, text, name="plants.csv"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def outcome(path):
    """The columns, or the message."""
    try:
        return tables.read(path)
    except ValueError as error:
        return str(error)


def refused(path, match, **options):
    with pytest.raises(ValueError, match=match) as caught:
        tables.read(path, **options)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_types_are_the_narrowest_that_hold_the_cells(tmp_path, pack):
    columns = tables.read(write(tmp_path, pack(PLANTS.encode())))
    assert list(columns) == ["length", "count", "species"]
    assert columns["length"].tolist() == [1.5, -2.0, 0.001] and columns["length"].dtype == np.float64
    assert columns["count"].tolist() == [3, 4, 5] and columns["count"].dtype == np.int64
    assert columns["species"].tolist() == ["rose", "tulip", "rose"]


@pytest.mark.parametrize(
    "text",
    [
        PLANTS.replace("\n", "\r\n"),
        "\ufeff" + PLANTS,
        PLANTS.replace("\n", "\n\n"),
        PLANTS.replace("rose", '"rose"').rstrip(),
    ],
    ids=["windows", "byte order mark", "empty lines", "quoted, no last newline"],
)
def test_forms_of_the_same_table(tmp_path, text):
    expected = tables.read(write(tmp_path, PLANTS))
    for name, values in tables.read(write(tmp_path, text, "other.csv")).items():
        assert values.tolist() == expected[name].tolist()


def test_types_missing_and_delimiter_are_heeded(tmp_path):
    path = write(tmp_path, "a;b;c\n1;;x\n2;3;NA\n")
    columns = tables.read(path, delimiter=";", missing=("", "NA"), types={"a": str})
    assert columns["a"].tolist() == ["1", "2"] and columns["c"].tolist() == ["x", "NA"]
    np.testing.assert_array_equal(columns["b"], [np.nan, 3.0])
    assert tables.read(path, delimiter=";", missing=("",), types={"a": float})["a"].dtype == np.float64
    refused(path, "line 2, column 'b': empty; missing=", delimiter=";")


def test_what_is_text_and_what_is_a_number(tmp_path):
    path = write(tmp_path, "a,b,c,d,e\n1_000,nan,٣,9999999999999999999,0x1F\n1,2,3,4,5\n")
    assert all(values.dtype.kind == "T" for values in tables.read(path).values())
    refused(path, "line 2, column 'a': '1_000' is no int", types={"a": int})
    refused(path, "line 2, column 'b': 'nan' is no float", types={"b": float})
    assert tables.read(path, types={"d": float})["d"].tolist() == [1e19, 4.0]
    refused(write(tmp_path, "a\n1\n1e999\n"), "line 3, column 'a': '1e999' is no float")


def test_many_rows_cross_the_blocks(tmp_path):
    rows = "".join(f"{i},{i / 8},n{i % 3}\n" for i in range(10_000))
    columns = tables.read(write(tmp_path, "i,x,name\n" + rows))
    np.testing.assert_array_equal(columns["i"], np.arange(10_000))
    np.testing.assert_array_equal(columns["x"], np.arange(10_000) / 8)
    assert columns["name"].tolist() == [f"n{i % 3}" for i in range(10_000)]
    late = write(tmp_path, "i,x,name\n" + rows + "1.5,2,a\n")  # the last cell decides about the first
    assert tables.read(late)["i"].dtype == np.float64
    refused(late, "line 10002, column 'i': '1.5' is no int", types={"i": int})


@pytest.mark.parametrize(
    "text, match",
    [
        ("", "0 columns in its first line"),
        ("a,b\n", "no rows"),
        ("a,b\n1,2\n3\n", "line 3: 1 cells; the first line names 2 columns"),
        ("a,b\n1,2,3\n", "line 2: 3 cells"),
        ("a,a\n1,2\n", "line 1: the column name 'a' is empty or there twice"),
        ("a,\n1,2\n", "line 1: the column name '' is empty"),
        ('a,b\n1,"2\n3,4\n', "after line 3: unexpected end of data"),
        ('a,b\n1,"2"x\n', "after line 2: .* expected after"),
        (b"a,b\n1,\xff\n", "after line .*utf-8"),
        (b"a,b\n1,\0\n", "zero byte|NUL"),
        ('a\n"' + "x" * 200_000 + '"\n', "field larger than field limit"),
        (",".join(f"c{i}" for i in range(10_001)) + "\n", "10001 columns in its first line"),
        (b"\x1f\x8b\x08\x00garbage", "truncated|damaged"),
    ],
)
def test_malformed_files(tmp_path, text, match):
    refused(write(tmp_path, text), match)


def test_cut_anywhere_it_is_read_or_refused(tmp_path):
    raw = PLANTS.encode()
    path = write(tmp_path, b"")
    whole = 0
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        found = outcome(path)
        whole += isinstance(found, dict) and len(found["length"]) == 3
        assert isinstance(found, dict) or str(path) in found
    assert whole <= len("rose\n")  # text has no length: a cut in the last cell cannot be seen


def test_wrong_options_are_named(tmp_path):
    path = write(tmp_path, PLANTS)
    with pytest.raises(ValueError, match="delimiter must be one character; got ';;'"):
        tables.read(path, delimiter=";;")
    with pytest.raises(TypeError, match="missing must be a tuple of texts.* got 'NA'"):
        tables.read(path, missing="NA")
    refused(path, r"types must map columns of .*length, count, species.* got \{'size'", types={"size": int})
    refused(path, "types must map", types={"count": bool})
    refused(path, f"most_bytes={len(PLANTS) - 1}", most_bytes=len(PLANTS) - 1)


def test_memory_is_bounded_by_the_limit(tmp_path):
    """A gzip bomb of one line without end, and one of ever more rows."""
    for unit in (b"1" * 2**20, b"1,2\n" * 2**18):
        path = write(tmp_path, b"")
        path.write_bytes(gzip.compress(b"a,b\n") + gzip.compress(unit) * 100)
        tracemalloc.start()
        refused(path, "too large|field larger", most_bytes=10**5)
        assert tracemalloc.get_traced_memory()[1] < 3e7
        tracemalloc.stop()


def test_labelled_reads_what_a_table_was_written_from(tmp_path):
    iris = data.iris()
    head = ",".join([*iris.columns, "species"])
    lines = [",".join([*map(str, row.tolist()), iris.names[label]]) for row, label in zip(iris.features, iris.labels)]
    path = write(tmp_path, "\n".join([head, *lines]) + "\n", "iris.csv")
    found = tables.labelled(path, label="species")
    np.testing.assert_array_equal(found.features, iris.features)
    np.testing.assert_array_equal(found.labels, iris.labels)
    assert (found.names, found.columns, found.source) == (iris.names, iris.columns, str(path))
    assert found.features.dtype == np.float32 and found.labels.dtype == np.int32


def test_labelled_names_the_wrong_column(tmp_path):
    path = write(tmp_path, PLANTS)
    with pytest.raises(ValueError, match="label must be one of its columns length, count, species; got 'kind'"):
        tables.labelled(path, label="kind")
    with pytest.raises(ValueError, match="column 'species' is text"):
        tables.labelled(path, label="count")
    with pytest.raises(ValueError, match="no column beside 'a'"):
        tables.labelled(write(tmp_path, "a\n1\n"), label="a")


def test_a_class_that_is_not_among_them_is_named_with_its_row(tmp_path):
    path = write(tmp_path, PLANTS)
    found = tables.labelled(path, label="species", classes=("tulip", "lily", "rose"))
    assert found.names == ("tulip", "lily", "rose") and found.labels.tolist() == [2, 0, 2]
    assert found.labels.dtype == np.int32
    numbered = tables.labelled(write(tmp_path, "x,y\n1,7\n2,3\n"), label="y", classes=[3, 7])
    assert numbered.names == ("3", "7") and numbered.labels.tolist() == [1, 0]
    misspelt = write(tmp_path, PLANTS + "1,2,rosse\n", "misspelt.csv")
    assert tables.labelled(misspelt, label="species").names == ("rose", "rosse", "tulip")
    with pytest.raises(
        ValueError, match="misspelt.csv, row 4, column 'species': unknown class 'rosse': one of rose, tu"
    ):
        tables.labelled(misspelt, label="species", classes=("rose", "tulip"))


@pytest.mark.parametrize("classes", ["rose", (), ("rose", "rose"), (1.5,), (True,), {"rose"}])
def test_classes_are_names(tmp_path, classes):
    with pytest.raises((ValueError, TypeError), match="classes must .*got"):
        tables.labelled(write(tmp_path, PLANTS), label="species", classes=classes)


def test_a_missing_label_is_no_class(tmp_path):
    with pytest.raises(ValueError, match="row 2, column 'y': no class"):
        tables.labelled(write(tmp_path, "x,y\n1,7\n2,\n"), label="y", missing=("",))
