import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from numdl.optimize import losses
from tests.selection import in_turn

pytestmark = pytest.mark.float32

OUTPUTS = np.array([[1.5, -0.5, 0.25], [30.0, -2.0, 0.1], [-80.0, 40.0, 90.0], [0.2, 0.9, -1.1]])
REAL = np.array([[0.5, 2.0, -1.0], [29.0, 0.0, 0.0], [1.0, 2.0, 3.0], [0.0, -0.25, 4.0]])
SHARES = np.array([[0.0, 1.0, 0.3], [1.0, 0.0, 0.0], [0.5, 0.0, 1.0], [0.25, 1.0, 0.75]])
SIGNS = np.array([[1, -1, 1], [1, 1, -1], [-1, 1, 1], [-1, 1, -1]])
LABELS = np.array([0, 2, 1, 1])
CLASSES = np.array([[0.0, 0.3, 0.7], [1.0, 0.0, 0.0], [0.25, 0.5, 0.25], [0.0, 0.0, 1.0]])


def _logistic(y, c):
    return sum(c_ * mp.log1p(mp.exp(-y_)) + (1 - c_) * mp.log1p(mp.exp(y_)) for y_, c_ in zip(y, c))


def _cross_entropy(y, c):
    total = mp.fsum(mp.exp(y_) for y_ in y)
    return -mp.fsum(c_ * mp.log(mp.exp(y_) / total) for y_, c_ in zip(y, c))


CASES = {
    "squared": (losses.squared, REAL, lambda y, c: sum((a - b) ** 2 for a, b in zip(y, c)) / 2),
    "logistic": (losses.logistic, SHARES, _logistic),
    "classes": (losses.softmax_cross_entropy, CLASSES, _cross_entropy),
    "labels": (losses.softmax_cross_entropy, LABELS, lambda y, c: _cross_entropy(y, np.eye(3)[int(c)])),
    "hinge": (losses.hinge, SIGNS, lambda y, c: sum(max(mp.mpf(0), 1 - a * b) for a, b in zip(y, c))),
}
BAD = {
    "squared": (np.nan, "targets must be finite numbers in the shape of outputs; got .*nan.* at .1."),
    "logistic": (1.5, "targets must be numbers in .0, 1.* got .*1.5.* at .1."),
    "classes": (0.9, "class probabilities .* sum to 1; got .*0.9.* at .1."),
    "labels": (3, "integer labels below 3.* got 3 at .1."),
    "hinge": (0, "targets must be -1 or 1.* got .*0.* at .1."),
}


def each(turn):
    return pytest.mark.parametrize("name", in_turn(CASES, turn))


def _case(name):
    loss, targets, _ = CASES[name]
    dtype = jnp.result_type(float)
    return loss, jnp.asarray(OUTPUTS, dtype), targets


@each(0)
def test_values_are_those_of_mpmath(name):
    loss, outputs, targets = _case(name)
    with mp.workdps(60):
        exact = np.array(
            [float(CASES[name][2](mp.matrix(y), c)) for y, c in zip(np.asarray(outputs).tolist(), targets)]
        )
    values = loss.value(outputs, targets)
    assert values.dtype == outputs.dtype
    eps = 8 * float(jnp.finfo(outputs.dtype).eps)
    np.testing.assert_allclose(values, exact, rtol=eps, atol=eps)
    np.testing.assert_allclose(loss(outputs, targets), exact.mean(), rtol=eps)


@each(1)
def test_gradient_hessian_and_product_are_those_of_the_value(name):
    loss, outputs, targets = _case(name)
    tolerance = 32 * float(jnp.finfo(outputs.dtype).eps)

    def one(y, c):
        return loss.value(y[None], c[None])[0]

    gradient, hessian = loss.gradient(outputs, targets), loss.hessian(outputs, targets)
    known = jnp.asarray(targets)
    np.testing.assert_allclose(gradient, jax.vmap(jax.grad(one))(outputs, known), atol=tolerance)
    np.testing.assert_allclose(hessian, jax.vmap(jax.hessian(one))(outputs, known), atol=tolerance)
    v = jnp.asarray(np.random.default_rng(0).normal(size=outputs.shape), outputs.dtype)
    product = loss.hessian_product(outputs, targets, v)
    np.testing.assert_allclose(product, np.einsum("nij,nj->ni", hessian, v), atol=tolerance)
    assert np.linalg.eigvalsh(np.asarray(hessian, float)).min() > -tolerance
    assert all(a.dtype == outputs.dtype for a in (gradient, hessian, product))


def test_softmax_product_keeps_its_digits_where_one_class_has_all():
    # p = (1 - 2 e, e, e): H (1, 0, 0) = p_1 (1 - p_1) = 2 e, which p v - p <p, v> loses entirely in float32.
    outputs = jnp.asarray([[30.0, 0.0, 0.0]])
    product = losses.softmax_cross_entropy.hessian_product(outputs, np.array([0]), jnp.asarray([[0.0, 1.0, 0.0]]))
    e = np.exp(-30.0)
    np.testing.assert_allclose(product, [[-e, e, -(e**2)]], rtol=1e-5)


@each(2)
def test_a_known_target_out_of_its_domain_is_an_error(name):
    loss, outputs, targets = _case(name)
    bad, message = np.array(targets, float if name != "labels" else int), BAD[name][1]
    bad[1] = BAD[name][0]
    for part in (loss, loss.value, loss.gradient, loss.hessian):
        with pytest.raises(ValueError, match=message):
            part(outputs, bad)
    with pytest.raises(ValueError, match=message):
        jax.jit(lambda y: loss(y, bad))(outputs)  # known while the outputs are not


@each(3)
def test_an_unknown_target_out_of_its_domain_is_nan_in_value_and_every_derivative(name):
    loss, outputs, targets = _case(name)
    bad = np.array(targets, float if name != "labels" else int)
    bad[1] = BAD[name][0]

    @jax.jit
    def all_of(y, c):
        total = lambda y: jnp.sum(loss.value(y, c))  # noqa: E731
        by_grad, by_hessian = jax.jvp(jax.grad(total), (y,), (jnp.ones_like(y),))
        own = loss.value(y, c), loss.gradient(y, c), loss.hessian(y, c), loss.hessian_product(y, c, jnp.ones_like(y))
        return loss(y, c), *own, by_grad, by_hessian

    mean, *rows = all_of(outputs, jnp.asarray(bad))
    assert np.isnan(mean)
    for row in rows:
        assert np.isnan(row[1]).all()
        assert np.isfinite(np.delete(row, 1, axis=0)).all()


def test_negative_labels_wrong_kinds_and_shapes_are_refused():
    _, outputs, _ = _case("labels")
    cross = losses.softmax_cross_entropy
    with pytest.raises(ValueError, match="got -1 at .2."):
        cross(outputs, np.array([0, 1, -1, 0]))
    with pytest.raises(TypeError, match="integer labels; got dtype float"):
        cross(outputs, np.array([0.0, 1.0, 2.0, 0.0]))
    with pytest.raises(ValueError, match="targets must have shape .4, 3.; got .4, 1."):
        cross(outputs, LABELS[:, None])
    with pytest.raises(ValueError, match="targets must have shape .4, 3.; got .4,."):
        losses.squared(outputs, REAL[:, 0])
    with pytest.raises(ValueError, match="v must have shape .4, 3.; got .3,."):
        losses.squared.hessian_product(outputs, REAL, jnp.ones(3))
    with pytest.raises(ValueError, match="outputs must have at least 2 axes"):
        losses.squared(jnp.ones(4), np.ones(4))
    with pytest.raises(TypeError, match="targets must be an array of real numbers"):
        losses.squared(outputs, np.array([["a", "b", "c"]] * 4))


def test_further_axes_are_examples_and_a_masked_class_counts_nothing():
    outputs = jnp.asarray(OUTPUTS).reshape(2, 2, 3)
    cross = losses.softmax_cross_entropy
    np.testing.assert_array_equal(
        cross.value(outputs, LABELS.reshape(2, 2)).ravel(), cross.value(outputs.reshape(4, 3), LABELS)
    )
    masked = jnp.asarray([[1.0, -jnp.inf, 0.0]])
    np.testing.assert_allclose(cross(masked, np.array([0])), np.log1p(np.exp(-1.0)), rtol=1e-6)
    assert np.isfinite(jax.grad(lambda y: cross(y, np.array([0])))(masked)).all()


def test_accuracy_counts_a_row_of_nan_as_wrong():
    outputs = jnp.asarray([[2.0, 1.0], [0.0, 1.0], [jnp.nan, jnp.nan], [3.0, jnp.nan]])
    assert losses.accuracy(outputs, np.array([0, 1, 0, 0])) == 0.5
    assert losses.accuracy(outputs[:2], np.array([[0.9, 0.1], [0.8, 0.2]])) == 0.5
    assert np.isnan(jax.jit(losses.accuracy)(outputs, jnp.array([0, 1, 0, 2])))


def test_half_precision_and_static_arguments():
    outputs = jnp.asarray(OUTPUTS[:1], jnp.bfloat16)
    assert losses.softmax_cross_entropy(outputs, CLASSES[:1].astype(np.float32)).dtype == jnp.bfloat16
    run = jax.jit(lambda loss, y, c: loss(y, c), static_argnums=0)
    assert run(losses.squared, outputs, jnp.zeros_like(outputs)).dtype == jnp.bfloat16
    assert repr(losses.hinge) == "losses.hinge"


WEIGHTS = np.array([0.5, 2.0, 3.0])


def test_weighted_mean_is_that_of_each_example_times_the_weight_of_its_class():
    """Padding holds nan, as what was never computed may."""
    loss = losses.weighted(losses.softmax_cross_entropy, class_weights=WEIGHTS, ignored=-100)
    outputs, labels = np.vstack([OUTPUTS, np.full(3, np.nan)]), np.append(LABELS, -100)
    exact = np.array([float(_cross_entropy(mp.matrix(y), np.eye(3)[c])) for y, c in zip(OUTPUTS.tolist(), LABELS)])
    weights = WEIGHTS[LABELS]
    wanted = np.sum(weights * exact) / np.sum(weights)
    tolerance = 50 * float(jnp.finfo(jnp.zeros(0).dtype).eps)
    assert loss(outputs, labels) == pytest.approx(wanted, rel=tolerance)
    assert jax.jit(loss)(outputs, labels) == pytest.approx(wanted, rel=tolerance)
    np.testing.assert_allclose(loss.weight(outputs, labels), np.append(weights, 0))
    parts = [loss.sum_and_weight(outputs[rows], labels[rows]) for rows in (slice(0, 1), slice(1, 5))]
    total, weight = np.sum(np.asarray(parts), axis=0)
    assert total / weight == pytest.approx(wanted, rel=tolerance)


def test_weighted_derivatives_are_those_of_autodiff_and_padding_has_none():
    loss = losses.weighted(losses.softmax_cross_entropy, class_weights=WEIGHTS, ignored=2)
    outputs = jnp.asarray(OUTPUTS[:, ::-1].copy() / 10)
    each_value = lambda y, c: loss.value(y[None], c[None])[0]  # noqa: E731
    close = {"rtol": 1e-12, "atol": 0} if jax.config.jax_enable_x64 else {"rtol": 1e-4, "atol": 1e-6}
    slopes, blocks = (jax.vmap(f(each_value))(outputs, jnp.asarray(LABELS)) for f in (jax.grad, jax.hessian))
    np.testing.assert_allclose(loss.gradient(outputs, LABELS), slopes, **close)
    np.testing.assert_allclose(loss.hessian(outputs, LABELS), blocks, **close)
    product = np.einsum("nij,nj->ni", blocks, OUTPUTS)
    np.testing.assert_allclose(loss.hessian_product(outputs, LABELS, OUTPUTS), product, **close)
    assert not np.any(loss.gradient(outputs, LABELS)[LABELS == 2])


def test_weighted_probabilities_take_the_mean_weight_of_their_classes():
    loss = losses.weighted(losses.softmax_cross_entropy, class_weights=WEIGHTS)
    values = np.asarray(losses.softmax_cross_entropy.value(OUTPUTS, CLASSES))
    weights = CLASSES @ WEIGHTS
    assert loss(OUTPUTS, CLASSES) == pytest.approx(np.sum(weights * values) / np.sum(weights), rel=1e-5)


def test_a_batch_of_padding_alone_is_nan_not_zero():
    loss = losses.weighted(losses.softmax_cross_entropy, ignored=1)
    assert np.isnan(loss(OUTPUTS, np.ones(4, int)))


@pytest.mark.parametrize(
    "change, told",
    [
        ({"class_weights": [1.0, -1.0, 2.0]}, "class_weights"),
        ({"class_weights": [0.0, 0.0, 0.0]}, "class_weights must not all be 0"),
        ({"loss": losses.squared}, "loss must be losses.softmax_cross_entropy"),
        ({"ignored": 1.5}, "ignored must be an integer"),
    ],
)
def test_bad_weights_are_named(change, told):
    with pytest.raises((ValueError, TypeError), match=told):
        losses.weighted(**{"loss": losses.softmax_cross_entropy} | change)


def test_another_number_of_weights_than_classes_is_named():
    with pytest.raises(ValueError, match="outputs must have 2 classes, as class_weights; got 3"):
        losses.weighted(losses.softmax_cross_entropy, class_weights=[1.0, 2.0])(OUTPUTS, LABELS)


def test_z_loss_is_the_square_of_the_log_partition_function():
    exact = np.mean([float(mp.log(mp.fsum(mp.exp(v) for v in row)) ** 2) for row in OUTPUTS.tolist()])
    assert np.isclose(losses.z_loss(jnp.asarray(OUTPUTS), strength=0.25), exact / 4, rtol=1e-6)
    shifted = losses.z_loss(jnp.asarray(OUTPUTS) - 3e4, strength=1e-4)
    assert np.isfinite(shifted) and shifted > 8e4
    with pytest.raises(ValueError, match="strength must be .*got -1"):
        losses.z_loss(jnp.asarray(OUTPUTS), strength=-1)
