"""The bundled sets: shape, range, and what their sources say about them."""

import sys

import numpy as np
import pytest

from numdl import data


def test_digits_are_images_between_0_and_1_with_their_labels():
    digits = data.digits()
    assert digits.images.shape == (1797, 8, 8)
    assert digits.images.dtype == np.float32
    assert digits.labels.shape == (1797,)
    assert digits.labels.dtype == np.int32
    assert (digits.images.min(), digits.images.max()) == (0.0, 1.0)
    assert np.array_equal(digits.images * 16, np.round(digits.images * 16))
    assert digits.names == tuple("0123456789")


def test_digits_have_the_class_counts_of_the_test_set_of_the_repository():
    # optdigits.names, class distribution of the writers-independent test set
    assert np.bincount(data.digits().labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_the_first_digit_is_a_zero_with_an_empty_middle():
    digits = data.digits()
    assert digits.labels[0] == 0
    assert digits.images[0, 3:5, 3:5].max() < 0.2 < digits.images[0].max()


def test_changing_the_arrays_changes_nobody_elses():
    data.digits().images[:] = 7
    assert data.digits().images.max() == 1.0


def test_iris_has_the_means_of_fishers_paper():
    iris = data.iris()
    assert iris.features.shape == (150, 4) and iris.features.dtype == np.float32
    assert iris.labels.dtype == np.int32 and np.bincount(iris.labels).tolist() == [50, 50, 50]
    means = {
        "setosa": [5.006, 3.428, 1.462, 0.246],
        "versicolor": [5.936, 2.770, 4.260, 1.326],
        "virginica": [6.588, 2.974, 5.552, 2.026],
    }
    assert iris.names == tuple(means)
    assert iris.columns == ("sepal_length", "sepal_width", "petal_length", "petal_width")
    for label, name in enumerate(iris.names):
        found = iris.features[iris.labels == label].astype(float).mean(axis=0)
        np.testing.assert_allclose(found, means[name], atol=1e-6)


def test_photographs_are_two_colour_pictures():
    photographs = data.photographs()
    assert photographs.images.shape == (2, 427, 640, 3) and photographs.images.dtype == np.float32
    assert photographs.names == ("china", "flower") and photographs.labels.tolist() == [0, 1]
    assert 0 <= photographs.images.min() < 0.05 and 0.95 < photographs.images.max() <= 1
    red, green, blue = photographs.images[0, :50].mean(axis=(0, 1))
    assert blue > red and green > red  # the sky over the temple


@pytest.mark.parametrize("name", ["digits", "iris", "photographs"])
def test_without_scikit_learn_the_message_says_what_to_install(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=rf"{name} come with .*pip install 'numdl\[data\]'"):
        getattr(data, name)()


@pytest.mark.parametrize("mean", ["all", "pixel"])
@pytest.mark.parametrize("kind", [np.uint8, np.float16, np.float32, np.float64])
def test_standardized_images_are_rows_of_mean_0_and_mean_square_1(mean, kind):
    images = np.random.default_rng(0).integers(0, 256, (20, 3, 2, 3)).astype(kind)
    rows = data.standardize(images, mean=mean)
    assert rows.shape == (20, 18)
    assert rows.dtype == (np.float64 if kind == np.float64 else np.float32)
    exact = images.astype(np.float64) - np.mean(images, axis=0 if mean == "pixel" else None, dtype=np.float64)
    np.testing.assert_allclose(rows, (exact / np.sqrt(np.mean(exact**2))).reshape(20, 18), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize(
    "images, settings, error, said",
    [
        (np.ones((3, 2, 2)), {}, ValueError, "alike"),
        (np.ones((3, 4)) * np.arange(4), {"mean": "pixel"}, ValueError, "alike"),
        (np.ones((3, 4)), {"mean": "row"}, ValueError, "mean"),
        ("images", {}, TypeError, "images"),
    ],
)
def test_what_cannot_be_standardized_is_named(images, settings, error, said):
    with pytest.raises(error, match=said):
        data.standardize(images, **settings)
