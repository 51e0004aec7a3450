"""Linear least squares for a readout: QR, singular values, conjugate gradients, Tikhonov with an automatic damping.

    minimize  |A W - Y|^2 + damping |W|^2,    A features [N, width],  Y targets [N] or [N, outputs]

The sums are over examples, not means. Nothing forms A'A. `extreme_learning_machine` is the whole network that needs
nothing else: a random hidden layer and a readout by least squares.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, ArrayLike, Float, Key, ScalarLike

from numdl import _random, checks
from numdl._compiled import compiled
from numdl.krylov import cg
from numdl.optimize import _damping
from numdl.precision import widen
from numdl.records import record, static

CHOICES = ("gcv", "discrepancy")


@record
class Fit:
    """A least squares solution."""

    solution: jax.Array  # [width] or [width, outputs]
    residual_norm: jax.Array  # []: |A W - Y|
    solution_norm: jax.Array  # []: |W|
    converged: jax.Array  # []: finite, and (cgls) the normal equations hold to the tolerance
    iterations: jax.Array  # []: of conjugate gradients; 0 for a direct method


@record
class SingularSpectrum:
    """A solution by singular values A = U diag(values) V', and what they tell about the problem."""

    solution: jax.Array  # [width] or [width, outputs]
    residual_norm: jax.Array  # []
    values: jax.Array  # [min(N, width)]: singular values, falling
    coefficients: jax.Array  # [min(N, width)]: |u_i'Y|; Picard: these must fall faster than the values
    rank: jax.Array  # []: values above cutoff * the largest: those that were used


@record
class Tikhonov:
    """A regularized solution and the damping that was chosen for it."""

    solution: jax.Array  # [width] or [width, outputs]
    damping: jax.Array  # []
    residual_norm: jax.Array  # []: |A W - Y|
    solution_norm: jax.Array  # []: |W|
    degrees_of_freedom: jax.Array  # []: trace of the influence matrix A (A'A + damping)^-1 A'
    criterion: jax.Array  # []: generalized cross validation at the chosen damping
    found: jax.Array  # []: the choice lies inside the range searched (discrepancy: the residual is as asked for)


def qr(
    features: Float[ArrayLike, "N width"], targets: Float[ArrayLike, "N *outputs"], *, damping: ScalarLike = 0.0
) -> Fit:
    """The least squares solution by QR of [A; sqrt(damping) I], stable where the normal equations lose half the digits.

    Needs full rank: A with independent columns, or damping > 0; else `converged` is False (or the solution is huge).

    Parameters
    ----------
    features : array [N, width]
    targets : array [N] or [N, outputs]
    damping : scalar            >= 0, of the sum of squares
    Returns
    -------
    Fit                         solution, residual_norm, solution_norm, converged
    Raises
    ------
    ValueError, TypeError       fewer rows than columns without damping, arrays that do not fit or are not finite
    Source: Golub & Van Loan 2013.    Experiment: d1.
    """
    features, targets = _check(features, targets)
    damping = checks.variance("damping", damping, shape=())
    rows, columns = features.shape
    if rows < columns and not isinstance(damping, jax.core.Tracer) and damping == 0:
        raise checks.BadValue(
            f"features must have at least as many rows as columns; got shape {features.shape}: use svd"
        )
    features, targets = widen(features), widen(targets)
    solution = _damping.by_rotation(*_damping.augmented(features, targets, damping))
    return _fit(features, targets, solution, jnp.zeros((), jnp.int32), jnp.ones((), bool))


def svd(
    features: Float[ArrayLike, "N width"],
    targets: Float[ArrayLike, "N *outputs"],
    *,
    cutoff: ScalarLike | None = None,
) -> SingularSpectrum:
    """The solution of least norm by singular values (the pseudoinverse), cut off relative to the largest.

        W = sum over i <= rank of v_i (u_i'Y) / values_i

    Parameters
    ----------
    features : array [N, width]
    targets : array [N] or [N, outputs]
    cutoff : scalar             relative to the largest singular value, >= 0; None: max(N, width) * eps
    Returns
    -------
    SingularSpectrum            solution, values, coefficients (Picard's condition), rank
    Raises
    ------
    ValueError, TypeError       a negative cutoff, arrays that do not fit or are not finite
    Source: Hansen 1998, chapters 3 and 4 (truncated SVD, Picard's condition).    Experiment: e8.
    """
    features, targets = _check(features, targets)
    if cutoff is None:
        cutoff = max(features.shape) * float(jnp.finfo(features.dtype).eps)
    cutoff = checks.finite("cutoff", cutoff, least=0.0, shape=())
    return SingularSpectrum(*_damping.truncated(widen(features), widen(targets), cutoff))


def cgls(
    features: Float[ArrayLike, "N width"],
    targets: Float[ArrayLike, "N *outputs"],
    *,
    iterations: int = 100,
    tolerance: ScalarLike = 1e-6,
    damping: ScalarLike = 0.0,
) -> Fit:
    """The solution by conjugate gradients on the normal equations: few products with A and A', no factorization.

    Stopped early it regularizes: directions of small singular values come last.

    Parameters
    ----------
    features : array [N, width]
    targets : array [N] or [N, outputs]
    iterations : int            at most this many, >= 1
    tolerance : scalar          stop at |A'(Y - A W) - damping W| <= tolerance |A'Y|
    damping : scalar            >= 0, of the sum of squares
    Returns
    -------
    Fit                         `converged` says whether the tolerance was reached
    Raises
    ------
    ValueError, TypeError       a count below 1, a negative number, arrays that do not fit or are not finite
    Source: `krylov.cg.cgls`; Hansen 1998, chapter 6 (regularization by stopping).
    """
    features, targets = _check(features, targets)
    numbers = {"iterations": iterations, "tolerance": tolerance, "damping": damping}
    found = cg.cgls(Partial(jnp.matmul, features), Partial(_transposed, features), targets, **numbers)
    return _fit(features, targets, found.solution, found.iterations, found.converged)


def tikhonov(
    features: Float[ArrayLike, "N width"],
    targets: Float[ArrayLike, "N *outputs"],
    *,
    damping: ScalarLike | None = None,
    choice: str = "gcv",
    noise_variance: ScalarLike | None = None,
    candidates: int = 200,
) -> Tikhonov:
    """The regularized solution (ridge regression); a damping not given is chosen by cross validation or by the noise.

        gcv(damping) = N |A W - Y|^2 / (N - trace of the influence)^2         least over the candidates
        discrepancy: |A W - Y|^2 = N outputs noise_variance                   by bisection

    The candidates are equally spaced logarithms from eps to 10 times the largest singular value squared.

    Parameters
    ----------
    features : array [N, width]
    targets : array [N] or [N, outputs]
    damping : scalar            >= 0: taken as it is; None: chosen
    choice : str                "gcv" (generalized cross validation) or "discrepancy"
    noise_variance : scalar     of one entry of the targets, for "discrepancy"
    candidates : int            trial values for "gcv", >= 3
    Returns
    -------
    Tikhonov                    solution, damping, degrees_of_freedom, criterion, found, ...
    Raises
    ------
    ValueError, TypeError       unknown choice; "discrepancy" without noise_variance; arrays that do not fit; ...
    Source: Golub, Heath & Wahba 1979; Morozov 1966; Hansen 1998, chapter 7.
    """
    features, targets = _check(features, targets)
    checks.one_of("choice", choice, CHOICES)
    candidates = checks.whole("candidates", candidates, least=3)
    if choice == "discrepancy" and damping is None and noise_variance is None:
        raise checks.BadValue("noise_variance must be given for choice='discrepancy'; got None")
    checks.variance("noise_variance", 0.0 if noise_variance is None else noise_variance, shape=())
    checks.variance("damping", 0.0 if damping is None else damping, shape=())
    features, targets = widen(features), widen(targets)  # a damping of 1e-10 is 0 in half precision
    parts = _damping.decompose(features, targets)
    found = jnp.ones((), bool)
    if damping is None:
        pick = _damping.by_discrepancy if choice == "discrepancy" else _damping.by_cross_validation
        damping, found = pick(parts, candidates if choice == "gcv" else noise_variance)
    return _regularized(features, targets, parts, jnp.asarray(damping, features.dtype), found)


@record
class ExtremeLearningMachine:
    """A network with a random hidden layer and a fitted readout."""

    weights: jax.Array  # [inputs, width]
    bias: jax.Array  # [width]
    readout: Tikhonov  # of [activation(x @ weights + bias), 1]
    activation: Callable = static()

    def features(self, x):
        """activation(x @ weights + bias) and a column of ones, [N, width + 1]."""
        return with_bias(self.activation(x @ self.weights + self.bias[None, :]))

    def apply(self, x):
        """The outputs, [N] or [N, outputs] like the targets."""
        return self.features(x) @ self.readout.solution


def extreme_learning_machine(
    key: Key[Array, ""],
    x: Float[ArrayLike, "N inputs"],
    targets: Float[ArrayLike, "N *outputs"],
    *,
    width: int,
    activation: Callable[[Array], Array],
    weight_variance: ScalarLike,
    bias_variance: ScalarLike,
    damping: ScalarLike | None = None,
) -> ExtremeLearningMachine:
    """Fit the readout of a random hidden layer (random features): no iteration, no gradient.

        weights ~ N(0, weight_variance / inputs),  bias ~ N(0, bias_variance),  [activation(x weights + bias), 1] W = Y

    Parameters
    ----------
    key : key                   typed, of the hidden layer
    x : array [N, inputs]
    targets : array [N] or [N, outputs]     classes as rows of a unit matrix
    width : int                 of the hidden layer, >= 1
    activation : Activation or function, elementwise
                                such as activations.tanh
    weight_variance, bias_variance : scalar     >= 0: inputs * Var(weights), Var(bias)
    damping : scalar            of the sum of squares; None: by generalized cross validation
    Returns
    -------
    ExtremeLearningMachine      `.apply(x)`, `.readout.damping`, ...
    Raises
    ------
    ValueError, TypeError       a negative variance, arrays that do not fit or are not finite, ...
    Source: Huang, Zhu & Siew 2006; Pao, Park & Sobajic 1994.    Experiment: d5.
    """
    checks.key("key", key)
    x = checks.finite("x", checks.floating("x", x, ndim=2))
    _, targets = _check(x, targets)
    if damping is not None:
        damping = checks.variance("damping", damping, shape=())
    width = checks.whole("width", width)
    checks.accepts("activation", activation, 1, "activation(x)")
    weight_variance = checks.variance("weight_variance", weight_variance, shape=())
    bias_variance = checks.variance("bias_variance", bias_variance, shape=())
    weights, bias = _hidden(key, x, weight_variance, bias_variance, width=width)
    hidden = with_bias(activation(x @ weights + bias[None, :]))
    return ExtremeLearningMachine(weights, bias, tikhonov(hidden, targets, damping=damping), activation)


@functools.partial(compiled, static=("width",))
def _hidden(key, x, weight_variance, bias_variance, width):
    """(weights, bias) of a random layer."""
    key_weights, key_bias = jax.random.split(key)
    scale = jnp.sqrt(jnp.asarray(weight_variance / x.shape[1], x.dtype))
    weights = scale * _random.normal(key_weights, (x.shape[1], width), x.dtype)
    return weights, jnp.sqrt(jnp.asarray(bias_variance, x.dtype)) * _random.normal(key_bias, (width,), x.dtype)


def with_bias(features: Float[ArrayLike, "N width"]) -> Float[Array, "N columns"]:
    """[features, 1]: the last row of the readout's weights is then its bias.

    Parameters
    ----------
    features : array [N, width]
    Returns
    -------
    array [N, width + 1]
    Raises
    ------
    TypeError, ValueError       not a floating-point matrix
    """
    features = checks.floating("features", features, ndim=2)
    return jnp.concatenate([features, jnp.ones((features.shape[0], 1), features.dtype)], axis=1)


def augmented(
    features: Float[ArrayLike, "N width"], targets: Float[ArrayLike, "N *outputs"], damping: ScalarLike
) -> tuple[Float[Array, "rows width"], Float[Array, "rows *outputs"]]:
    """[A; sqrt(damping) I] and [Y; 0]: Tikhonov's problem as plain least squares.

    Parameters
    ----------
    features : array [N, width]
    targets : array [N] or [N, outputs]
    damping : scalar            >= 0, of the sum of squares
    Returns
    -------
    matrix, rhs                 [N + width, width], and [N + width] or [N + width, outputs]
    Raises
    ------
    ValueError, TypeError       a negative damping, arrays that do not fit or are not finite
    """
    features, targets = _check(features, targets)
    return _damping.augmented(features, targets, checks.variance("damping", damping, shape=()))


def _transposed(features, r):
    return features.T @ r


@compiled
def _regularized(features, targets, parts, damping, found):
    values, vt, coefficients, *_ = parts
    total = values**2 + damping
    inverse = jnp.where(total > 0, values / jnp.where(total > 0, total, 1), 0)
    solution = vt.T @ _damping.scaled_rows(inverse, coefficients)
    residual = jnp.linalg.norm(features @ solution - targets)
    freedom, criterion = jnp.sum(_damping.influence(values, damping)), _damping.criterion(parts, damping)
    return Tikhonov(solution, damping, residual, jnp.linalg.norm(solution), freedom, criterion, found)


@compiled
def _fit(features, targets, solution, iterations, converged):
    residual, size = jnp.linalg.norm(features @ solution - targets), jnp.linalg.norm(solution)
    return Fit(solution, residual, size, converged & jnp.isfinite(size), iterations)


def _check(features, targets):
    features = checks.finite("features", checks.floating("features", features, ndim=2))
    targets = checks.finite("targets", checks.floating("targets", targets, least_ndim=1))
    checks.shape("targets", targets, (features.shape[0], *targets.shape[1:]))
    if targets.ndim > 2:
        raise checks.BadValue(f"targets must have 1 or 2 axes; got shape {tuple(targets.shape)}")
    return features, targets
