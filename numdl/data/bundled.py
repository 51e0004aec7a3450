"""Bundled data sets: small, real, inside a wheel, no download."""

from typing import NamedTuple

import numpy as np


class Dataset(NamedTuple):
    """Images and their classes."""

    images: np.ndarray  # [N, height, width] float32 in [0, 1]
    labels: np.ndarray  # [N] int32
    names: tuple  # the classes' names, by label
    source: str


def digits():
    """The 1797 handwritten digits of 8 x 8 pixels that come with scikit-learn, scaled to [0, 1].

    Returns
    -------
    Dataset                 images (1797, 8, 8) float32, labels (1797,) int32; new arrays at every call
    Raises
    ------
    ImportError             scikit-learn is not installed; the message says how to get it
    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError("digits come with scikit-learn: pip install 'numdl[data]'") from error
    bunch = datasets.load_digits()
    return Dataset(
        images=np.array(bunch.images / 16.0, dtype=np.float32),  # stored as counts 0..16
        labels=np.array(bunch.target, dtype=np.int32),
        names=tuple(str(name) for name in bunch.target_names),
        source="Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998",
    )
