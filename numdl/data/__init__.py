"""Data sets: bundled and synthetic by default, published ones from this machine; imports nothing of numdl but checks.

    data.digits(), data.iris(), data.photographs()                    inside scikit-learn's wheel
    data.mnist(split="train"), fashion_mnist, cifar10, cifar100       from the folder NUMDL_DATA or the cache
    data.fetch("mnist")                                               download, only when asked
    data.batches(key, (images, labels), 128, remainder="drop")        shuffled epochs

Readers for files of one's own: `idx`, `cifar`, `tables` (CSV).
"""

from numdl.data import cifar, idx, synthetic, tables
from numdl.data._batching import batches, epoch_indices, split
from numdl.data._bundled import Dataset, digits, iris, photographs
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
    "photographs",
    "split",
    "synthetic",
    "tables",
]
