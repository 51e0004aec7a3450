"""IDX files written by hand come back exactly; a damaged one is a ValueError that names the file, in little memory."""

import gzip
import hashlib
import os
import random
import struct
import tracemalloc

import numpy as np
import pytest

from numdl.data import idx

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
LETTERS = {"u1": "B", "i1": "b", "i2": "h", "i4": "i", "f4": "f", "f8": "d"}
VALUES = [0, 1, 2, 3, 100, 5, 6, 7, 8, 9, 10, 127]


def packed(code, dimensions, values):
    head = struct.pack(">BBBB", 0, 0, CODES[code], len(dimensions)) + struct.pack(f">{len(dimensions)}I", *dimensions)
    return head + struct.pack(f">{len(values)}{LETTERS[code]}", *values)


def write(folder, raw, name="some-idx"):
    path = folder / name
    path.write_bytes(raw)
    return path


def outcome(path):
    """The array, or the message."""
    try:
        return idx.read(path, most_bytes=1000)
    except ValueError as error:
        return str(error)


def refused(path, match, **options):
    """The ValueError names the file; returns the memory that the attempt took."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=match) as caught:
            idx.read(path, **options)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value)
    return peak


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_values_types_and_shapes(tmp_path, code, pack):
    array = idx.read(write(tmp_path, pack(packed(code, (3, 2, 2), VALUES))))
    assert array.shape == (3, 2, 2) and array.dtype == np.dtype(code) and array.dtype.isnative
    assert array.reshape(-1).tolist() == VALUES
    array[:] = 1  # a new array, not the file's bytes


def test_expected_shape_and_digest(tmp_path):
    raw = packed("u1", (12,), VALUES)
    path = write(tmp_path, gzip.compress(raw))
    digest = hashlib.sha256(raw).hexdigest()
    assert idx.read(path, shape=(12,), sha256=digest).shape == (12,)
    refused(path, r"header says \(12,\); expected is \(3, 4\)", shape=(3, 4))
    refused(path, f"sha256 is {digest}; the published file's is {'0' * 64}", sha256="0" * 64)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_cut_at_every_byte(tmp_path, pack):
    raw = pack(packed("i2", (3, 4), VALUES))
    path = write(tmp_path, raw)
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        refused(path, "truncated|not IDX|damaged")


def test_every_number_of_missing_images_inside_whole_gzip_data(tmp_path):
    whole = packed("u1", (3, 2, 2), VALUES)
    for length in range(len(whole)):
        refused(write(tmp_path, gzip.compress(whole[:length])), "truncated")


@pytest.mark.parametrize("extra", [b"\0", b"x" * 5000])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_bytes_after_the_end(tmp_path, extra, pack):
    refused(
        write(tmp_path, pack(packed("u1", (12,), VALUES) + extra)), "too long: bytes follow.* 12 values of uint8, 12 "
    )


def test_something_else_after_the_gzip_data(tmp_path):
    refused(write(tmp_path, gzip.compress(packed("u1", (12,), VALUES)) + b"appended"), "damaged gzip data")


def test_a_changed_byte_of_gzip_data_is_noticed(tmp_path):
    raw = gzip.compress(packed("u1", (12,), VALUES), mtime=0)
    path = write(tmp_path, raw)
    for place in range(10, len(raw)):  # behind gzip's own header, some bytes of which mean nothing
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 0x55]) + raw[place + 1 :])
        refused(path, "some-idx")


@pytest.mark.parametrize(
    "head, match",
    [
        (b"PK\x03\x04", "not IDX: it begins with 50 4b 03 04; .*08, 09, 0b, 0c, 0d, 0e"),
        (b"\0\0\x07\x01", "not IDX: it begins with 00 00 07 01"),
        (b"\x01\0\x08\x01", "not IDX"),
        (b"\0\x01\x08\x01", "not IDX"),
        (b"\0\0\x08\0", "claims 0 dimensions; 1..8 are allowed"),
        (b"\0\0\x08\xff", "claims 255 dimensions"),
    ],
)
def test_wrong_magic(tmp_path, head, match):
    refused(write(tmp_path, head + struct.pack(">I", 12) + bytes(12)), match)


@pytest.mark.parametrize(
    "dimensions",
    [(70_000, 70_000), (2**32 - 1,) * 8, (2**16, 2**16), (2**32 - 1,), (2**28 + 1,)],
    ids=str,
)
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_absurd_dimensions_cost_nothing(tmp_path, dimensions, pack):
    """Their product leaves 32 or 64 bits, or would be allocated before a byte is read."""
    path = write(tmp_path, pack(packed("u1", dimensions, VALUES)))
    assert refused(path, r"too large: its header says .* most_bytes=268435456 are allowed") < 2e6


def test_an_empty_array_is_refused(tmp_path):
    refused(write(tmp_path, packed("u1", (0, 28, 28), [])), r"\(0, 28, 28\): an empty array")


def test_memory_follows_the_bytes_that_are_there(tmp_path):
    path = write(tmp_path, packed("u1", (2**27,), VALUES))
    assert refused(path, "truncated: the header's 134217728 values .* 12 bytes are there") < 2e6


def test_gzip_bombs_stop_early(tmp_path):
    """100 MB of zeros in 100 kB, behind a header of 12 values, or of more than is allowed."""
    zeros = gzip.compress(bytes(2**20), 9)
    for dimensions, options, match in [
        ((12,), {}, "too long"),
        ((100, 2**20), {"most_bytes": 10**6}, "too large: its header says"),
        ((100, 2**20), {"shape": (60_000, 28, 28)}, "expected is"),
        ((2**27,), {}, "truncated"),
    ]:
        path = write(tmp_path, gzip.compress(packed("u1", dimensions, [])) + zeros * 100)
        peak = refused(path, match, **options)
        assert peak < (2.5e8 if match == "truncated" else 2e6)


def test_a_plain_file_beyond_the_limit_is_not_read(tmp_path):
    path = write(tmp_path, b"")
    os.truncate(path, 2**33)  # a hole: no disk space
    assert refused(path, "too large: 8589934592 bytes") < 2e6
    raw = packed("u1", (12,), VALUES)
    assert idx.read(write(tmp_path, raw), most_bytes=12).size == 12
    refused(write(tmp_path, raw), "12 bytes; most_bytes=11 are allowed", most_bytes=11)


def test_random_damage_never_raises_anything_else(tmp_path):
    random.seed(0)
    raws = [packed("u1", (3, 2, 2), VALUES), gzip.compress(packed("i4", (12,), VALUES), mtime=0)]
    path = tmp_path / "fuzzed"
    accepted = 0
    for trial in range(200):
        raw = bytearray(raws[trial % 2])
        for _ in range(random.randint(1, 4)):
            raw[random.randrange(len(raw))] = random.randrange(256)
        path.write_bytes(raw)
        found = outcome(path)
        accepted += isinstance(found, np.ndarray)
        assert found.nbytes <= 1000 if isinstance(found, np.ndarray) else str(path) in found
    assert 0 < accepted < 200  # changed values alone cannot be seen without a digest


def test_what_is_no_regular_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        idx.read(tmp_path / "nowhere")
    refused(tmp_path, "not a regular file")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "not a regular file")
