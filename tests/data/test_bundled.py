"""The bundled digits: shape, range, and what their source says about them."""

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


def test_without_scikit_learn_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"pip install 'numdl\[data\]'"):
        data.digits()
