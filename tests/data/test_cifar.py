"""CIFAR files in both layouts, written by hand."""

import gzip
import pickle
import tracemalloc

import numpy as np
import pytest

from numdl.data import cifar


def picture(seed):
    """(32, 32, 3) and the same as bytes: the red plane, then green, then blue, each row by row."""
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    planes = bytes(int(pixels[row, column, colour]) for colour in range(3) for row in range(32) for column in range(32))
    return pixels, planes


PICTURES = [picture(seed) for seed in range(4)]
LABELS = [3, 0, 9, 1]
RAW = b"".join(bytes([label]) + planes for label, (_, planes) in zip(LABELS, PICTURES))


def write(folder, raw, name="batch.bin"):
    path = folder / name
    path.write_bytes(raw)
    return path


def refused(call, path, match, **options):
    with pytest.raises(ValueError, match=match) as caught:
        call(path, **{"classes": (10,), **options})
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_binary(tmp_path, pack):
    records = cifar.read_binary(write(tmp_path, pack(RAW)), classes=(10,), count=4)
    np.testing.assert_array_equal(records.images, np.stack([pixels for pixels, _ in PICTURES]))
    assert records.labels.tolist() == [[3], [0], [9], [1]]
    assert records.images.dtype == np.uint8 and records.labels.dtype == np.int32


def test_binary_with_two_labels(tmp_path):
    raw = b"".join(bytes([coarse, fine]) + planes for coarse, fine, (_, planes) in zip((19, 0), (99, 5), PICTURES))
    records = cifar.read_binary(write(tmp_path, raw), classes=(20, 100))
    assert records.labels.tolist() == [[19, 99], [0, 5]]
    np.testing.assert_array_equal(records.images[1], PICTURES[1][0])


@pytest.mark.parametrize("cut", [0, 1, 3072, 3074, 4 * 3073 - 1, 4 * 3073 + 1])
def test_binary_of_a_wrong_length(tmp_path, cut):
    refused(
        cifar.read_binary, write(tmp_path, (RAW + b"x")[:cut]), f"{cut} bytes are no whole number of records of 3073"
    )


def test_binary_of_a_wrong_count_or_label(tmp_path):
    path = write(tmp_path, RAW)
    refused(cifar.read_binary, path, "4 records; expected are 5", count=5)
    refused(cifar.read_binary, path, "too large", count=3)
    refused(cifar.read_binary, path, "record 2 has the label 9; allowed is 0..8", classes=(9,))
    assert len(cifar.read_binary(path, classes=(10,), most_bytes=len(RAW)).labels) == 4
    refused(cifar.read_binary, path, f"too large: .*most_bytes={len(RAW) - 1}", most_bytes=len(RAW) - 1)


def test_a_binary_bomb_stops_at_the_expected_length(tmp_path):
    path = write(tmp_path, gzip.compress(bytes(2**20)) * 200)
    tracemalloc.start()
    refused(cifar.read_binary, path, "too large", count=100)
    assert tracemalloc.get_traced_memory()[1] < 3e6
    tracemalloc.stop()


def pickled(**entries):
    data = np.array([list(planes) for _, planes in PICTURES], dtype=np.uint8)
    return pickle.dumps({b"data": data, b"labels": LABELS} | {k.encode(): v for k, v in entries.items()}, 2)


def test_pickled(tmp_path):
    records = cifar.read_pickle(write(tmp_path, pickled(batch_label=b"1 of 5")), classes=(10,), count=4)
    np.testing.assert_array_equal(records.images, np.stack([pixels for pixels, _ in PICTURES]))
    assert records.labels[:, 0].tolist() == LABELS
    path = write(tmp_path, pickled(fine_labels=[99, 0, 1, 2], coarse_labels=[19, 1, 2, 3]))
    assert cifar.read_pickle(path, classes=(20, 100)).labels.tolist() == [[19, 99], [1, 0], [2, 1], [3, 2]]


@pytest.mark.parametrize(
    "entries, options, match",
    [
        ({}, {"classes": (20, 100)}, "no entry 'coarse_labels'; it has data, labels"),
        ({}, {"count": 5}, "4 records; expected are 5"),
        ({"labels": [3, 0, 9]}, {}, "'labels' is not a list of 4 integers"),
        ({"labels": [3, 0, 9, b"1"]}, {}, "'labels' is not a list of 4 integers"),
        ({"labels": [3, 0, 10, 1]}, {}, "record 2 has the label 10; allowed is 0..9"),
        ({"labels": [3, -1, 9, 1]}, {}, "record 1 has the label -1"),
        ({"data": np.zeros((4, 3071), np.uint8)}, {}, r"not an array of shape \(N, 3072\) of uint8"),
        ({"data": np.zeros((4, 3072), np.int16)}, {}, "of uint8"),
        ({"data": b"x" * 12288}, {}, "of uint8"),
    ],
)
def test_pickled_and_wrong(tmp_path, entries, options, match):
    refused(cifar.read_pickle, write(tmp_path, pickled(**entries)), match, **options)
