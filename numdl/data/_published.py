"""The published picture sets, read from this machine: MNIST, Fashion-MNIST, CIFAR-10, CIFAR-100. No download here."""

from typing import NamedTuple

import numpy as np

from numdl import checks
from numdl.data import _classes, _local, cifar, idx
from numdl.data._bundled import Dataset
from numdl.typing import StrPath

COUNTS = {"train": 60_000, "test": 10_000}  # MNIST and Fashion-MNIST
CIFAR_COUNTS = {"train": 50_000, "test": 10_000}
PREFIX = {"train": "train", "test": "t10k"}
# sha256 of MNIST's uncompressed files: images, labels
SHA256 = {
    "train": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "test": (
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}
TINY = "Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"


def mnist(split: str = "train", *, folder: StrPath | None = None) -> Dataset:
    """MNIST: 60000 (train) or 10000 (test) handwritten digits of 28 x 28 pixels, scaled to [0, 1].

    Reads `mnist/train-images-idx3-ubyte` and its companions, plain or `.gz`, in NUMDL_DATA's folder or the cache;
    the contents must have the published SHA-256.

    Parameters
    ----------
    split : str                 "train" or "test"
    folder : path or None       look only here, instead of in NUMDL_DATA's folder and then the cache
    Returns
    -------
    Dataset                     images [N, 28, 28] float32, labels [N] int32
    Raises
    ------
    FileNotFoundError           not there; the message says where it looked and how to fetch
    ValueError                  another split; a file is truncated, damaged, or not the published one
    Source: LeCun, Bottou, Bengio, Haffner, Gradient-based learning applied to document recognition, 1998.
    """
    _choose("split", split, COUNTS)
    source = "LeCun, Bottou, Bengio and Haffner, Gradient-based learning applied to document recognition, 1998"
    return _idx("mnist", split, folder, SHA256[split], _classes.FIGURES, source)


def fashion_mnist(split: str = "train", *, folder: StrPath | None = None) -> Dataset:
    """Fashion-MNIST: 60000 (train) or 10000 (test) articles of clothing in MNIST's format, from `fashion-mnist/`.

    The digest of the files is checked by `fetch` (published for the compressed files only), the gzip checksum here.

    Parameters
    ----------
    split : str                 "train" or "test"
    folder : path or None       look only here, instead of in NUMDL_DATA's folder and then the cache
    Returns
    -------
    Dataset                     images [N, 28, 28] float32 in [0, 1], labels [N] int32
    Raises
    ------
    FileNotFoundError           not there; the message says where it looked and how to fetch
    ValueError                  another split; a file is truncated or damaged; the message names it
    Source: Xiao, Rasul, Vollgraf, Fashion-MNIST, 2017, arXiv:1708.07747.
    """
    _choose("split", split, COUNTS)
    source = "Xiao, Rasul and Vollgraf, Fashion-MNIST, 2017, arXiv:1708.07747"
    return _idx("fashion-mnist", split, folder, (None, None), _classes.CLOTHES, source)


def cifar10(split: str = "train", *, folder: StrPath | None = None) -> Dataset:
    """CIFAR-10: 50000 (train) or 10000 (test) colour photographs of 32 x 32 pixels, scaled to [0, 1].

    Reads `cifar-10-batches-bin/`, else `cifar-10-batches-py/`. The archive's digest is checked by `fetch`; here the
    files' sizes and the labels' range are.

    Parameters
    ----------
    split : str                 "train" or "test"
    folder : path or None       look only here, instead of in NUMDL_DATA's folder and then the cache
    Returns
    -------
    Dataset                     images [N, 32, 32, 3] float32, labels [N] int32
    Raises
    ------
    FileNotFoundError           not there; the message says where it looked and how to fetch
    ValueError                  another split; a file is truncated, damaged or not CIFAR; the message names it
    Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    _choose("split", split, COUNTS)
    parts = [f"data_batch_{i}" for i in range(1, 6)] if split == "train" else ["test_batch"]
    layout = _Layout(
        "cifar-10", "cifar-10-batches-bin", "cifar-10-batches-py", (10,), CIFAR_COUNTS[split] // len(parts)
    )
    images, labels = _cifar(layout, parts, folder)
    return Dataset(images, labels[:, 0].copy(), _classes.THINGS, TINY)


def cifar100(split: str = "train", *, folder: StrPath | None = None, labels: str = "fine") -> Dataset:
    """CIFAR-100: as `cifar10` with 100 classes, or with the 20 groups that they form.

    Reads `cifar-100-binary/`, else `cifar-100-python/`.

    Parameters
    ----------
    split : str                 "train" or "test"
    folder : path or None       look only here, instead of in NUMDL_DATA's folder and then the cache
    labels : str                "fine" (100 classes) or "coarse" (20)
    Returns
    -------
    Dataset                     images [N, 32, 32, 3] float32 in [0, 1], labels [N] int32
    Raises
    ------
    FileNotFoundError           not there; the message says where it looked and how to fetch
    ValueError                  another split or kind of labels; a file is truncated, damaged or not CIFAR
    Source: Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """
    _choose("split", split, COUNTS)
    _choose("labels", labels, ("coarse", "fine"))
    layout = _Layout("cifar-100", "cifar-100-binary", "cifar-100-python", (20, 100), CIFAR_COUNTS[split])
    images, both = _cifar(layout, [split], folder)
    names = _classes.COARSE if labels == "coarse" else _classes.FINE
    return Dataset(images, both[:, 0 if labels == "coarse" else 1].copy(), names, TINY)


class _Layout(NamedTuple):
    """How a CIFAR set lies on the disk."""

    name: str
    binary: str  # folder
    pickled: str  # folder
    classes: tuple  # of each label
    count: int  # records in each file


def _choose(name, value, allowed):
    checks.one_of(name, value, tuple(allowed))


def _idx(name, split, folder, digests, names, source):
    parts = tuple(f"{name}/{PREFIX[split]}-{part}-ubyte" for part in ("images-idx3", "labels-idx1"))
    _, paths = _local.find(name, [parts], folder)
    count = COUNTS[split]
    pixels = idx.read(paths[0], shape=(count, 28, 28), sha256=digests[0])
    labels = idx.read(paths[1], shape=(count,), sha256=digests[1])
    if pixels.dtype != np.uint8 or labels.dtype != np.uint8:
        raise ValueError(f"{paths[0]}, {paths[1]}: values of {pixels.dtype} and {labels.dtype}; both must be uint8")
    if labels.max() >= len(names):
        raise ValueError(f"{paths[1]}: a label is {labels.max()}; allowed is 0..{len(names) - 1}")
    return Dataset(_scaled(pixels), labels.astype(np.int32), names, source)


def _cifar(layout, parts, folder):
    """(images float32, labels): file after file into one array, so that only one file is held twice."""
    binary = tuple(f"{layout.binary}/{part}.bin" for part in parts)
    pickled = tuple(f"{layout.pickled}/{part}" for part in parts)
    index, paths = _local.find(layout.name, [binary, pickled], folder)
    read = (cifar.read_binary, cifar.read_pickle)[index]
    images = np.empty((len(parts) * layout.count, cifar.SIDE, cifar.SIDE, 3), np.float32)
    labels = np.empty((len(images), len(layout.classes)), np.int32)
    for number, path in enumerate(paths):
        rows = slice(number * layout.count, (number + 1) * layout.count)
        records = read(path, classes=layout.classes, count=layout.count)
        images[rows], labels[rows] = _scaled(records.images), records.labels
    return images, labels


def _scaled(pixels):
    return np.divide(pixels, np.float32(255), dtype=np.float32)
