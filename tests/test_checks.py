"""What a check raises can be told from a fault deep inside."""

import numpy as np
import pytest

from numdl import checks


@pytest.mark.parametrize(
    "call, kind",
    [
        (lambda: checks.whole("steps", 0), ValueError),
        (lambda: checks.whole("steps", 1.5), TypeError),
        (lambda: checks.finite("rate", np.nan), ValueError),
        (lambda: checks.instance("config", 3, str), TypeError),
    ],
)
def test_checks_refuse_with_a_class_of_their_own(call, kind):
    with pytest.raises(checks.Refused) as caught:
        call()
    assert isinstance(caught.value, kind)


def test_other_errors_are_no_refusal():
    with pytest.raises(ValueError, match="broadcast") as caught:
        np.zeros(3) + np.zeros(4)
    assert not isinstance(caught.value, checks.Refused)
