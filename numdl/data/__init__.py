"""Data sets: bundled and synthetic by default, published ones from this machine; uses checks and types of numdl only.

    data.digits(), data.iris(), data.photographs()                    inside scikit-learn's wheel
    data.mnist(), fashion_mnist, cifar10, cifar100       the "train" or "test" split, from NUMDL_DATA or the cache
    data.fetch("mnist")                                               download, only when asked
    data.standardize(digits.images)                      rows of mean 0 and mean square 1
    data.batches(key, (images, labels), 128)                          shuffled epochs

Readers for files of one's own: `idx`, `cifar`, `npz`, `tables` (CSV); points in the plane: `synthetic`.

    >>> import jax
    >>> from numdl import data
    >>> points = data.synthetic.peaks(0, 100)
    >>> batches = data.batches(jax.random.key(0), (points.features, points.labels), 32, epochs=1)
    >>> [labels.shape for _, labels in batches]
    [(32,), (32,), (32,)]
"""

from numdl.data import cifar, idx, npz, synthetic, tables
from numdl.data._batching import batches, epoch_indices, split
from numdl.data._bundled import Dataset, digits, iris, photographs, standardize
from numdl.data._fetching import fetch
from numdl.data._published import cifar10, cifar100, fashion_mnist, mnist
from numdl.data.tables import Table

__all__ = [
    "Dataset",
    "Table",
    "batches",
    "cifar",
    "cifar10",
    "cifar100",
    "digits",
    "epoch_indices",
    "fashion_mnist",
    "fetch",
    "idx",
    "iris",
    "mnist",
    "npz",
    "photographs",
    "split",
    "standardize",
    "synthetic",
    "tables",
]
