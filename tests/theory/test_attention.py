"""The bound on rank collapse against its own recursion in mpmath and against random attention in NumPy."""

import mpmath as mp
import numpy as np
import pytest

from numdl.theory import attention


def collapse(**more):
    settings = {"diameter": 1.0, "depth": 6, "query_key_norm": [1.5], "value_norm": [0.8], "head_width": 4}
    return attention.rank_collapse(**{**settings, **more})


@pytest.mark.parametrize("diameter", [1e-3, 1.0, 40.0])
@pytest.mark.parametrize("skip", [False, True])
def test_recursion_is_that_of_mpmath(diameter, skip):
    ours = collapse(diameter=diameter, query_key_norm=[1.5, 0.3], value_norm=[0.8, 2.0], skip=skip)
    with mp.workdps(40):
        d, expected = mp.mpf(diameter), []
        for _ in range(6):
            heads = ((mp.mpf("1.5"), mp.mpf("0.8")), (mp.mpf("0.3"), 2))
            d = d * sum(v * mp.tanh(a * d**2 / 8) for a, v in heads) + (d if skip else 0)
            expected.append(float(mp.log(d)))
    np.testing.assert_allclose(ours.log_diameter[1:], expected, rtol=1e-10, atol=1e-10)
    assert ours.log_diameter[0] == pytest.approx(np.log(diameter))


def test_fall_is_cubic_far_below_any_float():
    log_diameter = collapse(diameter=0.1, depth=12).log_diameter
    assert log_diameter[-1] < -1e6
    np.testing.assert_allclose(log_diameter[2:], 3 * log_diameter[1:-1] + np.log(1.5 * 0.8 / 8), rtol=1e-6)


def test_threshold_is_where_the_cubic_stands_still():
    for factor, falls in ((0.99, True), (1.01, False)):
        start = factor * np.exp(collapse().log_threshold)
        cubic = start**3 * 1.5 * 0.8 / 8
        assert (cubic < start) == falls
    inside = collapse(diameter=0.99 * np.exp(collapse().log_threshold), depth=40).log_diameter
    assert (np.diff(inside) < 0).all()


@pytest.mark.parametrize("scale", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("seed", range(5))
def test_bound_holds_for_random_attention(scale, seed):
    rng = np.random.default_rng(seed)
    x = scale * rng.standard_normal((7, 5)) + rng.standard_normal(5)
    q, k, w = rng.standard_normal((5, 4)), rng.standard_normal((5, 4)), rng.standard_normal((5, 5))
    scores = x @ q @ (x @ k).T / 2
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    y = p / p.sum(axis=1, keepdims=True) @ x @ w
    before, after = (max(np.linalg.norm(a - b) for a in t for b in t) for t in (x, y))
    norms = {"query_key_norm": [np.linalg.norm(q @ k.T, 2)], "value_norm": [np.linalg.norm(w, 2)]}
    bound = collapse(diameter=before, depth=1, **norms).log_diameter[1]
    assert np.log(after) <= bound + 1e-9


def test_bound_is_attained_by_two_tokens():
    # Two tokens at +-D/2 on a line, all maps the identity: D' = D tanh(D^2 / 4 / sqrt k) exactly.
    d = 1.3
    x = np.array([-d / 2, d / 2])
    p = np.exp(np.outer(x, x) / np.sqrt(4))
    y = p / p.sum(axis=1, keepdims=True) @ x
    bound = collapse(diameter=d, depth=1, query_key_norm=[1.0], value_norm=[1.0]).log_diameter[1]
    assert np.log(y[1] - y[0]) == pytest.approx(bound, rel=1e-12)


def test_layers_may_differ():
    norms = {"query_key_norm": [[1.0], [2.0]], "value_norm": [[0.5], [0.25]], "depth": 2}
    step = collapse(depth=1, query_key_norm=[1.0], value_norm=[0.5]).log_diameter[1]
    second = collapse(depth=1, diameter=np.exp(step), query_key_norm=[2.0], value_norm=[0.25]).log_diameter[1]
    assert collapse(**norms).log_diameter[2] == pytest.approx(second, rel=1e-12)


@pytest.mark.parametrize(
    "more, error, message",
    [
        ({"diameter": 0.0}, ValueError, "diameter .*got 0"),
        ({"depth": 0}, ValueError, "depth .*got 0"),
        ({"head_width": 0}, ValueError, "head_width .*got 0"),
        ({"query_key_norm": [-1.0]}, ValueError, "query_key_norm .*got -1"),
        ({"query_key_norm": 1.0}, ValueError, r"query_key_norm must have shape \[heads\] or \[6, heads\]; got 1.0"),
        ({"value_norm": [1.0, 2.0]}, ValueError, r"value_norm .*\(6, 1\); got \(6, 2\)"),
    ],
)
def test_bad_input_is_named(more, error, message):
    with pytest.raises(error, match=message):
        collapse(**more)
