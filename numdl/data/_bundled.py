"""Bundled data sets: small, real, inside a wheel, no download."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from numdl import checks
from numdl.data.tables import Table


class Dataset(NamedTuple):
    """Images and their classes."""

    images: np.ndarray  # [N, height, width] or [N, height, width, 3] float32 in [0, 1]
    labels: np.ndarray  # [N] int32
    names: tuple  # the classes' names, by label
    source: str


def digits() -> Dataset:
    """The 1797 handwritten digits of 8 x 8 pixels that come with scikit-learn, scaled to [0, 1].

    Returns
    -------
    Dataset                 images [1797, 8, 8] float32, labels [1797] int32; new arrays at every call
    Raises
    ------
    ImportError             scikit-learn is not installed; the message says how to get it
    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998.
    """
    bunch = _collection("digits").load_digits()
    return Dataset(
        images=np.array(bunch.images / 16.0, dtype=np.float32),  # stored as counts 0..16
        labels=np.array(bunch.target, dtype=np.int32),
        names=tuple(str(name) for name in bunch.target_names),
        source="Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI repository, 1998",
    )


def iris() -> Table:
    """Fisher's 150 irises of three species: length and width of sepal and petal, in centimetres.

    Returns
    -------
    Table                   features [150, 4] float32, labels [150] int32; new arrays at every call
    Raises
    ------
    ImportError             scikit-learn is not installed; the message says how to get it
    Source: R. A. Fisher, The use of multiple measurements in taxonomic problems, Annals of Eugenics 7, 1936.
    """
    bunch = _collection("iris").load_iris()
    return Table(
        features=np.array(bunch.data, dtype=np.float32),
        labels=np.array(bunch.target, dtype=np.int32),
        names=tuple(str(name) for name in bunch.target_names),
        columns=("sepal_length", "sepal_width", "petal_length", "petal_width"),
        source="Fisher, The use of multiple measurements in taxonomic problems, Annals of Eugenics 7, 1936",
    )


def photographs() -> Dataset:
    """Two colour photographs of 427 x 640 pixels, a Chinese temple and a flower, scaled to [0, 1].

    Returns
    -------
    Dataset                 images [2, 427, 640, 3] float32, labels [2] int32; new arrays at every call
    Raises
    ------
    ImportError             scikit-learn (or Pillow, which matplotlib brings) is not installed
    Source: scikit-learn's sample images; photographs by F. Pastor (china) and Val Vesa (flower), CC BY.
    """
    bunch = _collection("photographs").load_sample_images()
    names = tuple(str(name).rsplit("/", 1)[-1].rsplit("\\", 1)[-1].split(".")[0] for name in bunch.filenames)
    return Dataset(
        images=np.stack([np.asarray(image, dtype=np.float32) / 255 for image in bunch.images]),
        labels=np.arange(len(names), dtype=np.int32),
        names=names,
        source="scikit-learn's sample images, CC BY",
    )


def standardize(images: ArrayLike, *, mean: str = "all") -> Float[np.ndarray, "N pixels"]:
    """Images as rows of mean 0 and mean square 1: what networks start from.

        rows = images - mean(images);    rows / sqrt(mean(rows**2))

    Parameters
    ----------
    images : array [N, ...]     real numbers
    mean : str                  what is subtracted: "all", one number, or "pixel", the mean image
    Returns
    -------
    array [N, pixels]           a row for each image; float64 of float64, float32 of anything else
    Raises
    ------
    ValueError                  images that are all alike, so that nothing is left to scale; another `mean`
    TypeError                   images that are no real numbers
    Source: the definition.
    """
    values = checks.array("images", images, least_ndim=1)
    checks.one_of("mean", mean, ("all", "pixel"))
    values = np.asarray(values, np.float64 if values.dtype == np.float64 else np.float32)
    rows = values.reshape(len(values), -1)
    centred = rows - (rows.mean() if mean == "all" else rows.mean(axis=0))
    deviation = rows.std() if mean == "all" else np.sqrt(np.mean(centred**2))
    if not deviation > 0:
        raise checks.BadValue(f"images must differ from their mean; got shape {values.shape}, all alike")
    return centred / deviation


def _collection(name):
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(f"{name} come with scikit-learn: pip install 'numdl[data]'") from error
    return datasets
