"""The map between two states of a network, against the layers composed by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl.networks import _segments, dense

WIDTHS = (3, 4, 4, 2)


@pytest.fixture
def given(key):
    net = dense.network(widths=WIDTHS, activation=jnp.tanh, weight_variance=1.5, bias_variance=0.3)
    x = jax.random.normal(key, (1, 3))
    return net, net.init(key, x), x


@pytest.mark.parametrize("start, stop", [(0, 1), (0, 3), (1, 2), (1, 3), (2, 3)])
def test_a_segment_is_the_layers_between(given, start, stop):
    net, params, x = given
    assert _segments.sizes(net, params, x, start, stop) == (WIDTHS[start], WIDTHS[stop])
    reach, point = _segments.between(net, params, x, start, stop)
    layers = [*({name: leaf[0] for name, leaf in stretch.items()} for stretch in params["hidden"]), params["readout"]]
    shift = np.linspace(-0.5, 0.5, WIDTHS[start])
    y = np.asarray(x[0]) + (0 if start else shift)
    for number, layer in enumerate(layers[:stop], 1):
        y = y @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]) + (shift if number == start else 0)
        y = np.tanh(y) if number < stop else y
    np.testing.assert_allclose(reach(point + shift), y, atol=1e-12)


def test_the_range_is_checked(given):
    net, params, x = given
    shapes = net.states(params, x)
    assert _segments.segment(shapes, np.int64(1), 3) == (1, 3)
    for start, stop, message in ((-1, 1, "start .*0..2; got -1"), (2, 2, "stop .*3..3; got 2"), (0, 4, "got 4")):
        with pytest.raises(ValueError, match=message):
            _segments.segment(shapes, start, stop)
