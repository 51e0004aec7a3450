"""Pickles of arrays, texts and numbers are read; whatever would import or call something is refused and not run."""

import datetime
import os
import pickle
import pickletools
import random
import struct
import tracemalloc

import numpy as np
import pytest

from numdl.data import _pickles

DATA = np.arange(12, dtype=np.uint8).reshape(3, 4)
GOOD = {b"data": DATA, b"labels": [1, 2, 300], "names": ["a", b"b"], b"none": None, b"count": -5}


def write(folder, raw):
    path = folder / "some-pickle"
    path.write_bytes(raw)
    return path


def outcome(path):
    """The dictionary, or the message."""
    try:
        return _pickles.read(path)
    except ValueError as error:
        return str(error)


def refused(path, match="some-pickle"):
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=match) as caught:
            _pickles.read(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    return peak


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_what_python_3_writes(tmp_path, protocol):
    found = _pickles.read(write(tmp_path, pickle.dumps(GOOD, protocol)))
    assert sorted(found) == ["count", "data", "labels", "names", "none"]
    np.testing.assert_array_equal(found["data"], DATA)
    assert found["data"].dtype == np.uint8 and found["data"].flags.writeable
    assert (found["labels"], found["names"], found["none"], found["count"]) == ([1, 2, 300], ["a", b"b"], None, -5)


@pytest.mark.parametrize("array", [np.arange(6, dtype=">i4"), np.asfortranarray(np.arange(6.0).reshape(2, 3)), DATA[1]])
def test_array_orders(tmp_path, array):
    found = _pickles.read(write(tmp_path, pickle.dumps({"a": array}, 2)))["a"]
    np.testing.assert_array_equal(found, array)
    assert found.dtype.isnative


def text(raw):
    return b"U" + bytes([len(raw)]) + raw


def number(value):
    return b"K" + bytes([value])


def array(code, shape, raw=b"", *, contents=None, after=b""):
    """As Python 2 and NumPy wrote an array: names, then text that stands for bytes (or instructions instead of it)."""
    contents = b"T" + struct.pack("<I", len(raw)) + raw if contents is None else contents
    dtype = b"cnumpy\ndtype\n" + text(code) + number(0) + number(1) + b"\x87R"
    dtype += b"(" + number(3) + text(b"|") + b"NNN" + b"J\xff\xff\xff\xff" * 2 + number(0) + b"tb"
    empty = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + number(0) + b"\x85" + text(b"b") + b"\x87R"
    dimensions = b"(" + b"".join(number(n) for n in shape) + b"t"
    return empty + b"(" + number(1) + dimensions + dtype + b"\x89" + contents + after + b"tb"


def python_2(entries):
    body = b"".join(text(key) + value for key, value in entries.items())
    return b"\x80\x02}q\x01(" + body + b"u."


def test_what_python_2_wrote(tmp_path):
    raw = python_2({b"batch_label": text(b"1 of 5"), b"labels": b"](" + number(6) + number(9) + b"e"})
    assert _pickles.read(write(tmp_path, raw)) == {"batch_label": b"1 of 5", "labels": [6, 9]}
    raw = python_2({b"data": array(b"u1", (3, 4), DATA.tobytes())})
    np.testing.assert_array_equal(_pickles.read(write(tmp_path, raw))["data"], DATA)
    assert pickle.loads(raw, encoding="bytes")[b"data"].tolist() == DATA.tolist()  # the file of the test is a pickle


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, call, *arguments):
        self.call, self.arguments = call, arguments

    def __reduce__(self):
        return self.call, self.arguments


def payloads(target):
    shell = f"touch {target}"
    return {
        "system": Payload(os.system, shell),
        "eval": Payload(eval, f"open({str(target)!r}, 'w')"),
        "open": Payload(open, str(target), "w"),
        "inside a list": [1, Payload(os.system, shell)],
        "as a key": {(1, 2): 3},
        "getattr": Payload(getattr, os.path.join, "__globals__"),
        "object array": np.array([Payload(os.system, shell)], dtype=object),
        "harmless object": datetime.timedelta(1),
        "set": {1},
        "tuple": (1, 2),
        "a name": np.ndarray,
    }


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("kind", payloads("x"))
def test_no_code_is_executed(tmp_path, kind, protocol):
    target = tmp_path / "executed"
    raw = pickle.dumps({b"data": payloads(target)[kind]}, protocol)
    refused(write(tmp_path, raw), "not a data set's pickle")
    assert not target.exists()


def test_the_payload_of_these_tests_does_execute_in_an_ordinary_loader(tmp_path):
    target = tmp_path / "executed"
    pickle.loads(pickle.dumps(payloads(target)["system"]))
    assert target.exists()


@pytest.mark.parametrize(
    "body, match",
    [
        (b"cos\nsystem\nU\x02id\x85R", "asks to import 'os.system'"),
        (b"U\x02osU\x06system\x93U\x02id\x85R", "asks to import 'os.system'"),
        (b"cnumpy\nload\nU\x01x\x85R", "asks to import 'numpy.load'"),
        (b"cnumpy\nndarray\nK\x05\x85R", "makes a call that is refused"),
        (b"cnumpy\ndtype\nU\x01O\x85R", "makes a call that is refused"),
        (b"c_codecs\nencode\nX\x01\0\0\0aU\x03zip\x86R", "makes a call that is refused"),
        (b"(ios\nsystem\n", "instruction INST, which is refused, at byte"),
        (b"(cos\nsystem\no", "asks to import"),
        (b"cnumpy\nndarray\n)\x81", "instruction NEWOBJ"),
        (b"\x82\x01", "instruction EXT1"),
        (b"U\x01xQ", "instruction BINPERSID"),
        (b"U\x01xK\x01b", "sets the state"),
        (b"K\x01K\x02a", "appends to what is no list"),
        (b"]U\x01aK\x01s", "sets an item of what is no dictionary"),
        (b"](e0", "instruction POP"),
        (b"h\x05", "asks for value 5"),
        (b"t", "never opened"),
        (b"\x87", "more values than there are"),
        (b"r\xff\xff\xff\x7f", "pop from empty|list index out of range|takes more|unfinished"),
    ],
)
def test_refused_instructions(tmp_path, body, match):
    refused(write(tmp_path, b"\x80\x02" + body + b"."), match)


def test_cut_at_every_byte_and_lengthened(tmp_path):
    for raw in (
        pickle.dumps(GOOD, 2),
        pickle.dumps(GOOD, 4),
        python_2({b"data": array(b"u1", (3, 4), DATA.tobytes())}),
    ):
        for length in range(len(raw)):
            refused(write(tmp_path, raw[:length]))
        refused(write(tmp_path, raw + b"."), "bytes follow after its end")


@pytest.mark.parametrize(
    "entry, match",
    [
        (array(b"u1", (3, 5), DATA.tobytes()), r"shape \(3, 5\) and type u1 made of 12 bytes"),
        (array(b"f4", (3, 4), DATA.tobytes()), "type f4 made of 12 bytes"),
        (array(b"u1", (255,) * 8, b""), "made of 0 bytes"),
        (array(b"O8", (3, 4), DATA.tobytes()), "call that is refused"),
        (array(b"u1", (3, 4), DATA.tobytes()).partition(b"(")[0], "array without contents"),
    ],
)
def test_arrays_whose_parts_disagree(tmp_path, entry, match):
    refused(write(tmp_path, python_2({b"data": entry})), match)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.",  # a text of 2^62 bytes
        b"\x80\x02T\xff\xff\xff\x7fx.",
        b"\x80\x02}r\xff\xff\xff\x7f.",  # remembered under the number 2^31 - 1; a dictionary, empty
        b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"}.",  # a frame of 2^60 bytes
    ],
)
def test_enormous_claims_cost_nothing(tmp_path, raw):
    path = write(tmp_path, raw)
    tracemalloc.start()
    found = outcome(path)
    assert found == {} or str(path) in found
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2e6


def test_one_text_made_into_bytes_a_thousand_times(tmp_path):
    """A megabyte of the file is remembered, and asked for again and again."""
    kept = b"X" + struct.pack("<I", 10**6) + b"x" * 10**6 + b"q\x00"
    encoded = b"c_codecs\nencode\nh\x00X\x06\0\0\0latin1\x86R"
    path = write(tmp_path, b"\x80\x02](" + kept + encoded * 1000 + b"e.")
    assert refused(path, "makes more bytes than it holds") < 1e7


@pytest.mark.parametrize("copied", ["array", "contents"])
def test_one_text_made_into_a_thousand_arrays(tmp_path, copied):
    """A megabyte in the file is one array under a thousand names, or the contents of a thousand arrays."""
    shape, raw = (100, 100, 100), b"x" * 10**6
    if copied == "array":
        first, other = array(b"u1", shape, raw) + b"q\xff", b"h\xff"
    else:
        first, other = array(b"u1", shape, raw, after=b"q\xff"), array(b"u1", shape, contents=b"h\xff")
    entries = {b"first": first} | {b"%04d" % i: other for i in range(1000)}
    assert refused(write(tmp_path, python_2(entries)), "several arrays of the same bytes") < 1e7


def test_a_nested_key_whose_hash_takes_exponential_time(tmp_path):
    doubling = b"".join(b"h" + bytes([i]) + b"h" + bytes([i]) + b"\x86q" + bytes([i + 1]) for i in range(100))
    raw = b"\x80\x02}" + b")q\x00" + doubling + b"K\x01s."
    assert pickletools.optimize(raw)
    refused(write(tmp_path, raw), "under a key that is no text")


def test_too_many_instructions(tmp_path, monkeypatch):
    monkeypatch.setattr(_pickles, "MOST_STEPS", 1000)
    raw = b"\x80\x02](" + b"N" * 10**6 + b"e."
    assert refused(write(tmp_path, raw), "more than 1000 instructions") < 4e6


def test_random_damage_never_raises_anything_else(tmp_path):
    random.seed(0)
    raws = [pickle.dumps(GOOD, 2), pickle.dumps(GOOD, 4), python_2({b"data": array(b"u1", (3, 4), DATA.tobytes())})]
    path = tmp_path / "fuzzed"
    refusals = 0
    for trial in range(450):
        raw = bytearray(raws[trial % 3])
        for _ in range(random.randint(1, 4)):
            raw[random.randrange(len(raw))] = random.randrange(256)
        path.write_bytes(raw)
        found = outcome(path)
        assert isinstance(found, dict) or str(path) in found
        refusals += isinstance(found, str)
    assert 150 < refusals < 450
