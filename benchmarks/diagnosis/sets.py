"""Small data sets, made here or bundled with scikit-learn: `load(name)`; half are for fitting, half for reporting.

    features    digits, cancer, moons, sine | wine, circles, spirals, xor, diabetes, friedman, blobs
    images      pictures | stripes
    sequences   rows | columns, recall, sums
    tokens      order | pairs

Kinds of targets: "classes" are integers for as many logits, "values" are [N, 1]. All inputs are of order one.
"""

import functools
from typing import NamedTuple

import numpy as np
from sklearn import datasets


class Data(NamedTuple):
    """Training and held-out examples, and what the network has to put out."""

    train: tuple
    held_out: tuple
    outputs: int
    kind: str  # classes | values


@functools.lru_cache
def load(name):
    """The data set of this name; the same arrays at every call."""
    x, y, outputs = MAKERS[name]()
    kind = "classes" if y.dtype.kind == "i" else "values"
    order = np.random.default_rng(len(x)).permutation(len(x))
    x, y = x.astype(np.float32)[order], y[order]
    cut = int(0.75 * len(x))
    return Data((x[:cut], y[:cut]), (x[cut:], y[cut:]), outputs, kind)


def _standard(x):
    return (x - x.mean(0)) / (x.std(0) + 1e-6)


def _classes(x, y):
    return x, y.astype(np.int32), int(y.max()) + 1


def _values(x, y):
    return x, _standard(y).astype(np.float32)[:, None], 1


def digits():
    found = datasets.load_digits()
    return _classes(found.data / 16, found.target)


def pictures():
    x, y, outputs = digits()
    return x.reshape(-1, 8, 8, 1), y, outputs


def rows():
    x, y, outputs = digits()
    return x.reshape(-1, 8, 8), y, outputs


def columns():
    x, y, outputs = rows()
    return x.swapaxes(1, 2), y, outputs


def _table(load_table, collect):
    found = load_table()
    return collect(_standard(found.data), found.target)


def moons():
    return _classes(*datasets.make_moons(800, noise=0.12, random_state=1))


def circles():
    return _classes(*datasets.make_circles(800, noise=0.08, factor=0.5, random_state=2))


def blobs():
    x, y = datasets.make_blobs(800, centers=3, n_features=2, cluster_std=1.2, random_state=3)
    return _classes(_standard(x), y)


def spirals():
    random = np.random.default_rng(4)
    y = np.arange(900) % 3
    radius = random.uniform(0.2, 1.5, 900)
    angle = 2.2 * radius + 2 * np.pi * y / 3 + 0.1 * random.normal(size=900)
    return _classes(np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1), y)


def xor():
    x = np.random.default_rng(5).uniform(-1, 1, (800, 2))
    return _classes(1.5 * x, (x[:, 0] * x[:, 1] > 0) + 0)


def sine():
    x = np.random.default_rng(6).uniform(-2, 2, (600, 1))
    return _values(x, np.sin(2.5 * x[:, 0]))


def friedman():
    x, y = datasets.make_friedman1(800, n_features=6, noise=0.3, random_state=7)
    return _values(_standard(x), y)


def stripes():
    """Gratings of four directions with noise, any phase and period."""
    random = np.random.default_rng(8)
    y = np.arange(900) % 4
    grid = np.stack(np.meshgrid(np.arange(8), np.arange(8), indexing="ij"))
    way = np.stack([np.cos(np.pi * y / 4), np.sin(np.pi * y / 4)], 1) * random.uniform(1.2, 2.0, (900, 1))
    phase = random.uniform(0, 2 * np.pi, (900, 1, 1))
    x = np.sin(np.einsum("nk,kij->nij", way, grid) + phase) + 0.4 * random.normal(size=(900, 8, 8))
    return _classes(x[..., None], y)


def recall(length=20):
    """The sign of the first step is the class; the rest is noise."""
    random = np.random.default_rng(9)
    y = random.integers(0, 2, 800)
    x = 0.3 * random.normal(size=(800, length, 1))
    x[:, 0, 0] = 2 * y - 1
    return _classes(x, y)


def sums(length=12):
    """The sign of a sequence's sum."""
    x = np.random.default_rng(10).normal(size=(800, length, 2))
    return _classes(x, (x[..., 0].sum(1) > 0) + 0)


def _tokens(index, vocabulary):
    return np.eye(vocabulary)[index]


def order(length=6):
    """Which of tokens 0 and 1 comes first."""
    random = np.random.default_rng(11)
    index = np.stack([random.permutation(length) for _ in range(1600)])
    return _classes(_tokens(index, length), (np.argmax(index == 0, 1) < np.argmax(index == 1, 1)) + 0)


def pairs(length=6):
    """The token in the first place, of four: only its position tells which counts."""
    index = np.random.default_rng(12).integers(0, 4, (1200, length))
    return _classes(_tokens(index, 4), index[:, 0])


MAKERS = {
    "digits": digits,
    "cancer": functools.partial(_table, datasets.load_breast_cancer, _classes),
    "moons": moons,
    "sine": sine,
    "pictures": pictures,
    "rows": rows,
    "order": order,
    "wine": functools.partial(_table, datasets.load_wine, _classes),
    "circles": circles,
    "spirals": spirals,
    "xor": xor,
    "diabetes": functools.partial(_table, datasets.load_diabetes, _values),
    "friedman": friedman,
    "blobs": blobs,
    "stripes": stripes,
    "columns": columns,
    "recall": recall,
    "sums": sums,
    "pairs": pairs,
}
