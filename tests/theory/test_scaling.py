"""Exponents against the published table, against networks written out in NumPy, and Adam's steps against Adam."""

import itertools

import numpy as np
import pytest

from numdl.theory import descent, scaling

# own change of the three layers, change of the output
TABLE = {
    ("standard", "sgd"): ([-0.5, 0.5, 1], 1),
    ("standard", "adam"): ([0, 1, 1], 1.5),
    ("ntk", "sgd"): ([-0.5, -0.5, 0], 0),
    ("ntk", "adam"): ([0, 0.5, 0.5], 1),
    ("standard with rate per layer", "sgd"): ([0, 0, 0], 0.5),
    ("standard with rate per layer", "adam"): ([0, 0, 0], 0.5),
    ("mup", "sgd"): ([0, 0, 0], 0),
    ("mup", "adam"): ([0, 0, 0], 0),
    ("spectral", "sgd"): ([0, 0, 0], 0),
    ("spectral", "adam"): ([0, 0, 0], 0),
}


@pytest.mark.parametrize("case", TABLE, ids="-".join)
def test_the_published_table(case):
    found = scaling.exponents(parametrization=case[0], optimizer=case[1])
    own, output = TABLE[case]
    assert found.own.tolist() == own and found.output == output == found.total[2]
    muted = case[0] in ("mup", "spectral")
    assert found.initial.tolist() == [0, 0, -0.5 if muted else 0]
    assert found.gradient.tolist() == ([-1, -1, 0] if muted else [-0.5, -0.5, 0])
    assert found.gradient_norm.tolist() == ([-0.5, 0, 0.5] if muted else [0, 0.5, 0.5])


def test_names_are_read_kindly_and_unknown_ones_refused():
    assert scaling.exponents(parametrization="muP", optimizer="Adam").parametrization == "mup"
    assert scaling.exponents(parametrization="standard_with_rate-per layer", optimizer="sgd").optimizer == "sgd"
    with pytest.raises(ValueError, match="parametrization must be one of .*spectral; got 'mop'"):
        scaling.exponents(parametrization="mop", optimizer="adam")


def changes(width, b, c, adam, seed):
    """RMS of dW_l h_{l-1}, of the layers' whole changes, for a small step of a linear network written out."""
    key = np.random.default_rng(seed)
    sizes = ((width, 8), (width, width), (4, width))
    w = [
        key.normal(size=size) * width**power / (8**0.5 if i == 0 else 1)
        for i, (size, power) in enumerate(zip(sizes, b))
    ]
    h = [np.random.default_rng(7).normal(size=8)]
    for each in w:
        h.append(each @ h[-1])
    back = [np.random.default_rng(8).normal(size=4)]  # a loss with a fixed slope
    for each in reversed(w[1:]):
        back.append(each.T @ back[-1])
    gradients = [np.outer(d, x) for d, x in zip(reversed(back), h)]
    steps = [1e-4 * width**power * (np.sign(g) if adam else g) for g, power in zip(gradients, c)]
    own, moved = [s @ x for s, x in zip(steps, h)], [h[0]]
    for each, step in zip(w, steps):
        moved.append((each - step) @ moved[-1])
    total = [after - before for after, before in zip(moved[1:], h[1:])]
    return [[np.sqrt(np.mean(x**2)) for x in kind] for kind in (own, total)]


WRITTEN_OUT = [case for case in TABLE if case[0] != "spectral" and case != ("standard", "sgd")]


@pytest.mark.parametrize("case", WRITTEN_OUT, ids="-".join)
def test_networks_written_out_have_these_slopes(case):
    found = scaling.exponents(parametrization=case[0], optimizer=case[1])
    widths = np.array([128, 256, 512, 1024])
    logs = [
        np.mean(
            [np.log2(changes(n, found.deviation, found.rate, case[1] == "adam", seed)) for seed in range(6)], axis=0
        )
        for n in widths
    ]
    slopes = np.polyfit(np.log2(widths), np.reshape(logs, (4, 6)), 1)[0]
    # A sum of two powers comes in slowly, and the sums of a few random signs scatter.
    assert np.abs(slopes - [*found.own, *found.total]).max() < 0.2


def test_depth():
    named = {"depth-mup": (0.5, -0.5, 0.0), "completep": (1.0, 0.0, 0.0), "plain": (0.0, 0.0, 0.5)}
    for branch, rate, total in named.values():
        found = scaling.depth_exponents(branch=branch, optimizer="adam", rate=rate)
        assert found.total == total and found.branch == -branch and found.own == total - 1
    assert scaling.depth_exponents(branch=0, optimizer="adam").stream == 0.5
    for branch, optimizer in itertools.product((0.0, 0.5, 1.0), scaling.OPTIMIZERS):
        assert scaling.depth_exponents(branch=branch, optimizer=optimizer).total == 0
    assert scaling.depth_exponents(branch=0.5, optimizer="sgd").rate == 0


def test_scores():
    assert [scaling.score_exponents(power=0.5).initial, scaling.score_exponents(power=0.5).change] == [0, 0.5]
    assert [scaling.score_exponents(power=1).initial, scaling.score_exponents(power=1).change] == [-0.5, 0]
    assert scaling.score_exponents(power=0.5).rate == -0.5


def adam_steps(gradients, momentum, second):
    """Updates over the rate, [steps, coordinates], by the algorithm as it is printed."""
    m = v = 0.0
    for t, g in enumerate(gradients, 1):
        m, v = momentum * m + (1 - momentum) * g, second * v + (1 - second) * g**2
        yield (m / (1 - momentum**t)) / np.sqrt(v / (1 - second**t))


@pytest.mark.parametrize("law", ["normal", "standard_cauchy", "laplace"])
def test_adams_steps_of_any_symmetric_law(law):
    gradients = getattr(np.random.default_rng(0), law)(size=(12, 100_000))
    squares = [u**2 for u in adam_steps(gradients, 0.9, 1 - 1e-7)]
    predicted = descent.adam_step_rms(step=np.arange(1, 13), momentum=0.9) ** 2
    for expected, found in zip(predicted, squares):
        assert abs(found.mean() - expected) < 4.5 * found.std() / np.sqrt(found.size) + 1e-5


def test_adams_first_and_last_step():
    for momentum in (0.0, 0.3, 0.9, 0.999999):
        assert descent.adam_step_rms(step=1, momentum=momentum) == 1
    assert descent.adam_step_rms(step=10_000, momentum=0.9) == pytest.approx((0.1 / 1.9) ** 0.5, rel=1e-14)
    weights = 0.95 ** np.arange(7)
    by_hand = np.sqrt(np.sum(weights**2)) / np.sum(weights)
    assert descent.adam_step_rms(step=7, momentum=0.95) == pytest.approx(by_hand, rel=1e-13)
