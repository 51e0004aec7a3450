"""Arrays in .npz files come back exactly; a damaged or hostile file is a ValueError that names it, in little memory."""

import io
import pickle
import tracemalloc
import zipfile

import numpy as np
import pytest

from numdl.data import npz

ARRAYS = {
    "images": np.arange(24, dtype=np.uint8).reshape(2, 3, 4),
    "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big_endian": np.arange(3, dtype=">f4"),
    "labels": np.array([3, -1], np.int64),
    "truths": np.array([[True], [False]]),
    "waves": np.array([1 + 2j], np.complex64),
    "names": np.array(["rose", "tülip"]),
    "bytes": np.array([b"ab", b"c"]),
    "days": np.array(["2026-11-28"], "M8[D]"),
    "one": np.array(2.5),
    "none": np.zeros((0, 3), np.float16),
}


def packed(save=np.savez, **arrays):
    held = io.BytesIO()
    save(held, **arrays)
    return held.getvalue()


def archive(*entries, method=zipfile.ZIP_DEFLATED):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", method) as file:
        for name, content in entries:
            file.writestr(name, content)
    return held.getvalue()


def entry(descr="'<f8'", shape="(2,)", values=bytes(16), more="", order="False"):
    text = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, {more}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + values


def refused(path, content, match, **options):
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=match) as caught:
            npz.read(path, **options)
        assert str(path) in str(caught.value)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_come_back_in_the_machines_order(tmp_path, save):
    (tmp_path / "all.npz").write_bytes(packed(save, **ARRAYS))
    found = npz.read(tmp_path / "all.npz")
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype.newbyteorder("=") and found[name].flags.writeable
    assert list(npz.read(tmp_path / "all.npz", names=("one", "labels"))) == ["one", "labels"]


def test_only_what_is_asked_for_counts(tmp_path):
    path = tmp_path / "two.npz"
    path.write_bytes(packed(np.savez_compressed, small=np.ones(2), large=np.zeros(2**20)))
    assert npz.read(path, names=["small"], most_bytes=2**16)["small"].tolist() == [1.0, 1.0]
    assert refused(path, path.read_bytes(), "too large: its arrays take", most_bytes=2**16) < 2**20
    refused(path, path.read_bytes(), "no array 'middle'; it has 'small', 'large'", names=["middle"])


class Payload:
    def __reduce__(self):
        return print, ("executed",)


HOSTILE = {
    "no archive": (b"numbers", "no .npz archive"),
    "empty": (b"", "no .npz archive"),
    "objects": (packed(a=np.array([{}])), "'a' is of object"),
    "a pickle": (archive(("a.npy", pickle.dumps(Payload()))), "'a' is no array"),
    "a pickle behind a header": (
        archive(("a.npy", entry("'|O'", values=pickle.dumps(Payload())))),
        "'a' is of object",
    ),
    "fields": (packed(a=np.zeros(2, [("x", "f4")])), "header of its array 'a'"),
    "raw memory": (archive(("a.npy", entry("'|V8'"))), "'a' is of"),
    "an expression": (archive(("a.npy", entry("__import__('os')"))), "header of its array"),
    "more in the header": (archive(("a.npy", entry(more="'x': 1, "))), "header of its array"),
    "a header twice": (archive(("a.npy", entry(more="'shape': (2,), "))), "header of its array"),
    "a claim": (archive(("a.npy", entry(shape="(99999999999,)"))), "should hold 799999999992 bytes"),
    "a claim beyond 64 bits": (archive(("a.npy", entry(shape=f"({10**20}, {10**20})"))), "should hold"),
    "a claim without a byte": (archive(("a.npy", entry("'<U0'", "(99999999999,)", b""))), "99999999999 texts without"),
    "a negative axis": (archive(("a.npy", entry(shape="(-2,)"))), "header of its array"),
    "less than said": (archive(("a.npy", entry(values=bytes(15)))), "should hold 16 bytes"),
    "more than said": (archive(("a.npy", entry(values=bytes(17)))), "should hold 16 bytes"),
    "no such dtype": (archive(("a.npy", entry("'<f7'"))), "no dtype of numpy"),
    "untruths": (archive(("a.npy", entry("'|b1'", values=b"\1\2"))), "neither true nor false"),
    "no letters": (archive(("a.npy", entry("'<U1'", values=b"\xff" * 8))), "letters beyond Unicode"),
    "a name that leaves": (archive(("../../a.txt", b"x")), "'../../a.txt' is no array"),
    "another packing": (archive(("a.npy", entry()), method=zipfile.ZIP_LZMA), "packed in a way"),
    "a header without end": (archive(("a.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff")), "header of its array"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archives_are_refused(tmp_path, kind, capsys):
    content, match = HOSTILE[kind]
    assert refused(tmp_path / "hostile.npz", content, match) < 2**20
    assert capsys.readouterr().out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["hostile.npz"]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_one_name_twice_is_refused(tmp_path):
    refused(tmp_path / "a.npz", archive(("a.npy", entry()), ("a.npy", entry())), "twice there")


def test_a_bomb_is_not_unpacked(tmp_path):
    bomb = packed(np.savez_compressed, zeros=np.zeros(2**24, np.uint8))
    assert len(bomb) < 2**16
    assert refused(tmp_path / "bomb.npz", bomb, "most_bytes=1048576", most_bytes=2**20) < 2**20
    # A directory that claims less than comes out is found out by the CRC.
    lying = bomb.replace((2**24 + 128).to_bytes(4, "little"), (2**10).to_bytes(4, "little"))
    assert lying != bomb
    assert refused(tmp_path / "bomb.npz", lying, "bomb.npz", most_bytes=2**20) < 2**22


@pytest.mark.parametrize("names", ["images", (), (3,), {"a": 1}])
def test_names_are_texts(tmp_path, names):
    (tmp_path / "a.npz").write_bytes(packed(a=np.ones(1)))
    with pytest.raises((ValueError, TypeError), match="names must .*got"):
        npz.read(tmp_path / "a.npz", names=names)
