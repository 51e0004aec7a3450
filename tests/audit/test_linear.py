"""What affine maps cannot learn: floors against least squares and closed forms, and the rule that reads them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import numdl as nd
from numdl.audit._measured import cases, functions, linear

COUNT = 320


def squares(outputs, targets):
    return jnp.mean((outputs - targets) ** 2)


def stacked(p, x):
    return (x.reshape(len(x), -1) @ p["a"] + p["b"][None]) @ p["c"]


def bent(p, x):
    return jnp.tanh(x.reshape(len(x), -1) @ p["a"] + p["b"][None]) @ p["c"]


def params(inputs, outputs):
    draw = np.random.default_rng(1)
    return {"a": np.float32(draw.standard_normal((inputs, 8)) / inputs**0.5), "b": np.zeros(8, np.float32),
            "c": np.float32(draw.standard_normal((8, outputs)) / 8**0.5)}  # fmt: skip


def data(kind):
    x = np.float32(np.random.default_rng(2).standard_normal((COUNT, 2, 2)))
    flat = x.reshape(COUNT, 4)
    if kind == "product":
        return x, flat[:, :1] * flat[:, 1:2]
    if kind == "affine":
        return x, flat @ np.float32([[1.0], [2.0], [-1.0], [0.5]]) + 3
    return x, (flat[:, 0] * flat[:, 1] > 0).astype(np.int32)


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def case(kind, apply=stacked):
    x, y = data(kind)
    loss, outputs = (cross_entropy, 2) if kind == "exclusive-or" else (squares, 1)
    return cases.case(
        apply, params(4, outputs), (x[:32], y[:32]), loss=loss, optimizer="adam", learning_rate=0.01, steps=300,
        data=(x, y), evaluate=None, stochastic=False, key=jax.random.key(0),
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["product", "affine"])
def test_the_affine_floor_lies_between_two_least_squares(kind):
    """No affine map does better on the odd examples than the one fitted to them; the one of the even ones is one."""
    known = case(kind)
    found = linear.measure(known)
    x, y = linear._examples(known)
    flat = np.c_[x.reshape(len(x), -1), np.ones(len(x))]
    odd, even = slice(1, None, 2), slice(0, None, 2)
    rest = lambda part: np.mean((flat[odd] @ np.linalg.lstsq(flat[part], y[part])[0] - y[odd]) ** 2)  # noqa: E731
    assert 0.999 * rest(odd) <= found["floor_affine"] <= 1.01 * rest(even) + 1e-4
    if kind == "product":
        assert found["floor_bent"] < 0.5 * rest(odd)


def test_the_affine_floor_of_exclusive_or_is_a_coin():
    found = linear.measure(case("exclusive-or"))
    assert found["floor_affine"] == pytest.approx(np.log(2), rel=0.03) and found["floor_bent"] < 0.35


def test_floors_are_asked_of_linear_networks_alone():
    assert np.isnan(functions.measure(case("product", bent)).floor_affine)
    assert np.isfinite(functions.measure(case("product")).floor_affine)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "verdict"), [("exclusive-or", False), ("affine", True)])
def test_linear_layers_are_a_fault_only_where_the_data_bend(kind, verdict):
    x, y = data(kind)
    loss, outputs = (cross_entropy, 2) if kind == "exclusive-or" else (squares, 1)
    report = nd.audit.examine(stacked, params(4, outputs), (x[:32], y[:32]), loss=loss, optimizer="adam",
                              learning_rate=0.01, steps=600, data=(x, y), key=jax.random.key(0))  # fmt: skip
    assert (report.verdict == "will train") is verdict
    severe = {f.name for f in report.findings if f.severity != "hint"}
    assert ("no_nonlinearity" in severe) is not verdict
