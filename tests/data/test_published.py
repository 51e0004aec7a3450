"""The published sets are found, read and checked; small files of the same layout stand for them.

With NUMDL_DATA set, the real ones are read too.
"""

import gzip
import hashlib
import os
import pickle
import struct

import numpy as np
import pytest

from numdl import data
from numdl.data import _classes, _local, _published

REAL = os.environ.get("NUMDL_DATA")
COUNTS = {"train": 10, "test": 5}
LABELS = {"train": [0, 1, 2, 3, 9, 5, 6, 7, 8, 4], "test": [3, 3, 9, 0, 1]}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty NUMDL_DATA, an empty home, and sets of a few pictures."""
    monkeypatch.setenv("NUMDL_DATA", str(tmp_path / "sets"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_published, "COUNTS", COUNTS)
    monkeypatch.setattr(_published, "CIFAR_COUNTS", COUNTS)
    return tmp_path / "sets"


def pixels(count, *shape):
    return np.random.default_rng(count).integers(0, 256, (count, *shape), dtype=np.uint8)


def write_idx(folder, split, *, suffix="", labels=None):
    """MNIST's two files for a split; returns their SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    labels = LABELS[split] if labels is None else labels
    prefix, count = {"train": "train", "test": "t10k"}[split], COUNTS[split]
    raws = {
        "images-idx3": struct.pack(">4I", 0x803, count, 28, 28) + pixels(count, 28, 28).tobytes(),
        "labels-idx1": struct.pack(">2I", 0x801, count) + bytes(labels),
    }
    for part, raw in raws.items():
        (folder / f"{prefix}-{part}-ubyte{suffix}").write_bytes(gzip.compress(raw) if suffix else raw)
    return tuple(hashlib.sha256(raw).hexdigest() for raw in raws.values())


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("split", COUNTS)
def test_mnist(folder, monkeypatch, split, suffix):
    digests = write_idx(folder / "mnist", split, suffix=suffix)
    monkeypatch.setattr(_published, "SHA256", {split: digests})
    images, labels, names, _ = data.mnist(split=split)
    np.testing.assert_allclose(images, pixels(COUNTS[split], 28, 28) / 255.0, atol=1e-7)
    assert images.dtype == np.float32 and labels.dtype == np.int32
    assert labels.tolist() == LABELS[split] and names == tuple("0123456789")


def test_the_training_set_is_the_default(folder, monkeypatch):
    monkeypatch.setattr(_published, "SHA256", {"train": write_idx(folder / "mnist", "train")})
    assert data.mnist().labels.tolist() == LABELS["train"]


def test_mnist_must_be_the_published_one(folder):
    write_idx(folder / "mnist", "test")
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte: its sha256 is .* published file's is 0fa7898d"):
        data.mnist(split="test")


def test_mnists_labels_must_be_the_published_ones_too(folder, monkeypatch):
    images, _ = write_idx(folder / "mnist", "test")
    monkeypatch.setattr(_published, "SHA256", {"test": (images, "0" * 64)})
    with pytest.raises(ValueError, match="t10k-labels-idx1-ubyte: its sha256 is"):
        data.mnist(split="test")


def test_fashion_mnist(folder):
    write_idx(folder / "fashion-mnist", "test", suffix=".gz")
    clothes = data.fashion_mnist(split="test")
    assert clothes.labels.tolist() == LABELS["test"] and clothes.names[9] == "Ankle boot"
    write_idx(folder / "fashion-mnist", "test", suffix=".gz", labels=[0, 1, 2, 3, 10])
    with pytest.raises(ValueError, match=r"labels-idx1-ubyte.gz: a label is 10; allowed is 0\.\.9"):
        data.fashion_mnist(split="test")


def test_another_set_in_its_place_is_refused(folder):
    write_idx(folder / "fashion-mnist", "test")
    path = folder / "fashion-mnist" / "t10k-images-idx3-ubyte"
    path.write_bytes(struct.pack(">4I", 0x803, 5, 8, 8) + bytes(320))
    with pytest.raises(ValueError, match=r"t10k-images-idx3-ubyte: its header says \(5, 8, 8\); .* \(5, 28, 28\)"):
        data.fashion_mnist(split="test")
    path.write_bytes(struct.pack(">4I", 0xD03, 5, 28, 28) + bytes(4 * 5 * 784))
    with pytest.raises(ValueError, match="t10k-images-idx3-ubyte.* values of float32 and uint8"):
        data.fashion_mnist(split="test")


def cifar_binary(labels, images):
    return b"".join(bytes(row) + image.transpose(2, 0, 1).tobytes() for row, image in zip(labels, images))


def cifar_pickled(images, **labels):
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    return pickle.dumps({b"data": rows} | {name.encode(): values for name, values in labels.items()}, 2)


def test_cifar10_in_both_layouts(folder):
    images = pixels(10, 32, 32, 3)
    for layout, ending in (("cifar-10-batches-py", ""), ("cifar-10-batches-bin", ".bin")):
        (folder / layout).mkdir(parents=True)
        for part in range(5):
            rows, labels = images[2 * part : 2 * part + 2], LABELS["train"][2 * part : 2 * part + 2]
            raw = cifar_binary([[n] for n in labels], rows) if ending else cifar_pickled(rows, labels=labels)
            (folder / layout / f"data_batch_{part + 1}{ending}").write_bytes(raw)
        found = data.cifar10(split="train")  # first from the pickles alone, then from the binary files
        np.testing.assert_allclose(found.images, images / 255.0, atol=1e-7)
        assert found.labels.tolist() == LABELS["train"] and found.names[9] == "truck"
        assert found.images.dtype == np.float32 and found.labels.dtype == np.int32
    (folder / layout / "data_batch_3.bin").write_bytes(cifar_binary([[0]], images[:1]))
    with pytest.raises(ValueError, match=r"data_batch_3.bin: 1 records; expected are 2"):
        data.cifar10(split="train")
    with pytest.raises(
        FileNotFoundError, match="cifar-10-batches-bin/test_batch.bin or cifar-10-batches-py/test_batch"
    ):
        data.cifar10(split="test")


@pytest.mark.parametrize("layout", ["cifar-100-binary", "cifar-100-python"])
def test_cifar100_with_both_labels(folder, layout):
    images, coarse, fine = pixels(5, 32, 32, 3), [0, 19, 2, 3, 4], [99, 0, 50, 3, 4]
    (folder / layout).mkdir(parents=True)
    if layout == "cifar-100-binary":
        (folder / layout / "test.bin").write_bytes(cifar_binary(zip(coarse, fine), images))
    else:
        (folder / layout / "test").write_bytes(cifar_pickled(images, coarse_labels=coarse, fine_labels=fine))
    found = data.cifar100(split="test")
    np.testing.assert_allclose(found.images, images / 255.0, atol=1e-7)
    assert found.labels.tolist() == fine and (found.names[0], found.names[99]) == ("apple", "worm")
    grouped = data.cifar100(split="test", labels="coarse")
    assert grouped.labels.tolist() == coarse and (len(grouped.names), grouped.names[19]) == (20, "vehicles_2")


def test_names_of_the_classes_are_sorted_and_complete():
    assert (len(_classes.FINE), len(set(_classes.FINE)), len(set(_classes.COARSE))) == (100, 100, 20)
    assert list(_classes.FINE) == sorted(_classes.FINE)


def test_what_is_missing_is_said_with_the_places_and_the_remedy(folder, tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        data.mnist(split="train")
    message = str(caught.value)
    assert "mnist/train-images-idx3-ubyte, mnist/train-labels-idx1-ubyte (plain or .gz)" in message
    assert f"{folder}, {_local.cache()}" in message
    assert "data.fetch('mnist')" in message and "NUMDL_DATA" in message
    with pytest.raises(FileNotFoundError, match="here. To download: data.fetch\\('mnist', folder='.*here'\\)"):
        data.mnist(split="train", folder=tmp_path / "here")


def test_folders_in_their_order(folder, tmp_path, monkeypatch):
    def found(**options):
        return data.fashion_mnist(split="test", **options).labels[0]

    places = [tmp_path / "given", folder, _local.cache()]
    for first, place in enumerate(places):
        write_idx(place / "fashion-mnist", "test", labels=[first] * 5)
    assert (found(folder=places[0]), found()) == (0, 1)
    monkeypatch.delenv("NUMDL_DATA")
    assert found() == 2
    assert found(folder=str(places[1])) == 1


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_a_wrong_split_is_named(name):
    with pytest.raises(ValueError, match="split must be one of train, test; got 'validation'"):
        getattr(data, name)(split="validation")


def test_wrong_labels_are_named():
    with pytest.raises(ValueError, match="labels must be one of coarse, fine; got 'all'"):
        data.cifar100(split="test", labels="all")


def needs(folder):
    there = REAL is not None and os.path.isdir(os.path.join(REAL, folder))
    return pytest.mark.skipif(not there, reason=f"the real files: set NUMDL_DATA to a folder that holds {folder}")


@needs("mnist")
def test_the_real_mnist():
    test, train = data.mnist(split="test"), data.mnist(split="train")
    # the counts of the digits, from the set's page
    assert np.bincount(test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert np.bincount(train.labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert abs(train.images.mean(dtype=float) - 0.1307) < 5e-5 and abs(train.images.std(dtype=float) - 0.3081) < 5e-5


@needs("cifar-10-batches-bin")
def test_the_real_cifar10():
    train = data.cifar10(split="train")
    assert np.bincount(train.labels).tolist() == [5000] * 10
    # pictures that went through JPEG once differ in the fourth digit
    means = train.images.mean(axis=(0, 1, 2), dtype=float)
    np.testing.assert_allclose(means, [0.4914, 0.4822, 0.4465], atol=2e-4)
    assert np.bincount(data.cifar10(split="test").labels).tolist() == [1000] * 10
