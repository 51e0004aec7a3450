"""Linear least squares for a readout: QR, singular values, conjugate gradients, Tikhonov with an automatic damping.

    minimize  |A W - Y|^2 + damping |W|^2,    A features [N, width],  Y targets [N] or [N, outputs]

The sums are over examples, not means. Nothing forms A'A. `extreme_learning_machine` is the whole network that needs
nothing else: a random hidden layer and a readout by least squares.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from numdl import checks
from numdl.krylov import cg
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


def qr(features, targets, *, damping=0.0):
    """The least squares solution by QR of [A; sqrt(damping) I], stable where the normal equations lose half the digits.

    Needs full rank: A with independent columns, or damping > 0; else `converged` is False (or the solution is huge).

    Parameters
    ----------
    features : array [N, width]
    targets : array [N] or [N, outputs]
    damping : scalar            >= 0, of the sum of squares
    Source: Golub & Van Loan 2013, section 5.3.
    """
    features, targets = _check(features, targets)
    damping = checks.variance("damping", damping, shape=())
    rows, columns = features.shape
    if rows < columns and not isinstance(damping, jax.core.Tracer) and damping == 0:
        raise checks.BadValue(
            f"features must have at least as many rows as columns; got shape {features.shape}: use svd"
        )
    matrix, rhs = augmented(features, targets, damping)
    q, r = jnp.linalg.qr(matrix)
    solution = jax.scipy.linalg.solve_triangular(r, q.T @ rhs)
    return _fit(features, targets, solution, jnp.zeros((), jnp.int32), jnp.ones((), bool))


def svd(features, targets, *, cutoff=None):
    """The solution of least norm, without the directions whose singular value is below cutoff * the largest.

        W = sum over i <= rank of v_i (u_i'Y) / values_i

    Parameters
    ----------
    cutoff : scalar             relative, default max(N, width) * eps
    Source: Hansen 1998, chapters 3 and 4 (truncated SVD, Picard's condition).
    """
    features, targets = _check(features, targets)
    if cutoff is None:
        cutoff = max(features.shape) * float(jnp.finfo(features.dtype).eps)
    cutoff = checks.finite("cutoff", cutoff, least=0.0, shape=())
    u, values, vt = jnp.linalg.svd(features, full_matrices=False)
    coefficients = u.T @ targets
    used = values > cutoff * values[0]
    inverse = jnp.where(used, 1 / jnp.where(used, values, 1), 0)
    solution = vt.T @ _rows(inverse, coefficients)
    sizes = jnp.sqrt(_row_squares(coefficients))
    return SingularSpectrum(solution, jnp.linalg.norm(features @ solution - targets), values, sizes, jnp.sum(used))


def cgls(features, targets, *, iterations, tolerance, damping=0.0):
    """The solution by conjugate gradients on the normal equations: few products with A and A', no factorization.

    Stopped early it regularizes: directions of small singular values come last.

    Parameters
    ----------
    iterations : int            at most this many
    tolerance : scalar          stop at |A'(Y - A W) - damping W| <= tolerance |A'Y|
    Source: `krylov.cg.cgls`.
    """
    features, targets = _check(features, targets)
    numbers = {"iterations": iterations, "tolerance": tolerance, "damping": damping}
    found = cg.cgls(lambda w: features @ w, lambda r: features.T @ r, targets, **numbers)
    return _fit(features, targets, found.solution, found.iterations, found.converged)


def tikhonov(features, targets, *, damping=None, choice="gcv", noise_variance=None, candidates=200):
    """The regularized solution; without a damping it is chosen: by cross validation, or by the size of the noise.

        gcv(damping) = N |A W - Y|^2 / (N - trace of the influence)^2         least over the candidates
        discrepancy: |A W - Y|^2 = N outputs noise_variance                   by bisection

    One singular value decomposition serves all candidates: equally spaced logarithms from eps to 10 times the largest
    singular value squared, damping being measured on that scale.

    Parameters
    ----------
    damping : scalar            >= 0: taken as it is; None: chosen
    choice : str                "gcv" or "discrepancy"
    noise_variance : scalar     of one entry of the targets, for "discrepancy"
    Raises
    ------
    ValueError                  unknown choice; "discrepancy" without noise_variance; ...
    Source: Golub, Heath & Wahba 1979; Morozov 1966; Hansen 1998, chapter 7.
    """
    features, targets = _check(features, targets)
    checks.one_of("choice", choice, CHOICES)
    candidates = checks.whole("candidates", candidates, least=3)
    if choice == "discrepancy" and damping is None and noise_variance is None:
        raise checks.BadValue("noise_variance must be given for choice='discrepancy'; got None")
    checks.variance("noise_variance", 0.0 if noise_variance is None else noise_variance, shape=())
    checks.variance("damping", 0.0 if damping is None else damping, shape=())
    parts = _decompose(features, targets)
    found = jnp.ones((), bool)
    if damping is None:
        pick = _by_discrepancy if choice == "discrepancy" else _by_cross_validation
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


def extreme_learning_machine(key, x, targets, *, width, activation, weight_variance, bias_variance, damping=None):
    """Fit the readout of a random hidden layer: no iteration, no gradient.

        weights ~ N(0, weight_variance / inputs),  bias ~ N(0, bias_variance),  [activation(x weights + bias), 1] W = Y

    Parameters
    ----------
    x : array [N, inputs]
    targets : array [N] or [N, outputs]     classes as rows of a unit matrix
    activation : Activation or function, elementwise
    damping : scalar            of the sum of squares; None: by generalized cross validation
    Returns
    -------
    ExtremeLearningMachine      `.apply(x)`, `.readout.damping`, ...
    Source: Huang, Zhu & Siew 2006; Pao, Park & Sobajic 1994.
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
    key_weights, key_bias = jax.random.split(key)
    scale = jnp.sqrt(jnp.asarray(weight_variance / x.shape[1], x.dtype))
    weights = scale * jax.random.normal(key_weights, (x.shape[1], width), x.dtype)
    bias = jnp.sqrt(jnp.asarray(bias_variance, x.dtype)) * jax.random.normal(key_bias, (width,), x.dtype)
    hidden = with_bias(activation(x @ weights + bias[None, :]))
    return ExtremeLearningMachine(weights, bias, tikhonov(hidden, targets, damping=damping), activation)


def with_bias(features):
    """[features, 1]: the last row of the readout's weights is then its bias."""
    features = checks.floating("features", features, ndim=2)
    return jnp.concatenate([features, jnp.ones((features.shape[0], 1), features.dtype)], axis=1)


def augmented(features, targets, damping):
    """[A; sqrt(damping) I] and [Y; 0]: Tikhonov's problem as plain least squares."""
    features, targets = _check(features, targets)
    damping = checks.variance("damping", damping, shape=())
    width = features.shape[1]
    root = jnp.sqrt(jnp.asarray(damping, features.dtype))
    below = jnp.zeros((width, *targets.shape[1:]), targets.dtype)
    rows = jnp.concatenate([features, root * jnp.eye(width, dtype=features.dtype)])
    return rows, jnp.concatenate([targets, below])


def _decompose(features, targets):
    """Singular values, V', U'Y, the squares of its rows, what of |Y|^2 no damping can fit, and N."""
    u, values, vt = jnp.linalg.svd(features, full_matrices=False)
    coefficients = u.T @ targets
    outside = targets - u @ coefficients
    return values, vt, coefficients, _row_squares(coefficients), jnp.sum(outside**2), features.shape[0]


def _residual(parts, damping):
    """|A W - Y|^2 from the filter damping / (values^2 + damping)."""
    values, _, _, squares, outside, _ = parts
    return jnp.sum((1 - _influence(values, damping)) ** 2 * squares) + outside


def _influence(values, damping):
    total = values**2 + damping
    return jnp.where(total > 0, values**2 / jnp.where(total > 0, total, 1), 0)


def _gcv(parts, damping):
    rows = parts[-1]
    free = rows - jnp.sum(_influence(parts[0], damping))
    return rows * _residual(parts, damping) / free**2


def _by_cross_validation(parts, candidates):
    grid = _grid(parts[0], candidates)
    criteria = lax.map(lambda damping: _gcv(parts, damping), grid)
    best = jnp.argmin(jnp.where(jnp.isfinite(criteria), criteria, jnp.inf))
    return grid[best], (best > 0) & (best < candidates - 1)


def _by_discrepancy(parts, noise_variance):
    values, _, coefficients, _, _, rows = parts
    outputs = coefficients.size // coefficients.shape[0]
    goal = rows * outputs * noise_variance
    ends = jnp.log(_grid(values, 2))

    def halve(ends, _):
        middle = jnp.mean(ends)
        low = _residual(parts, jnp.exp(middle)) < goal
        return jnp.stack([jnp.where(low, middle, ends[0]), jnp.where(low, ends[1], middle)]), None

    reached = (_residual(parts, jnp.exp(ends[0])) < goal) & (_residual(parts, jnp.exp(ends[1])) > goal)
    ends, _ = lax.scan(halve, ends, None, length=60)
    return jnp.exp(jnp.mean(ends)), reached


def _grid(values, count):
    """Damping from where it is lost to rounding to where nothing is left of the solution."""
    top = values[0] ** 2
    low = jnp.log(top * jnp.finfo(values.dtype).eps)
    return jnp.exp(low + jnp.linspace(0, 1, count, dtype=values.dtype) * (jnp.log(10 * top) - low))


def _regularized(features, targets, parts, damping, found):
    values, vt, coefficients, *_ = parts
    total = values**2 + damping
    solution = vt.T @ _rows(jnp.where(total > 0, values / jnp.where(total > 0, total, 1), 0), coefficients)
    residual = jnp.linalg.norm(features @ solution - targets)
    freedom = jnp.sum(_influence(values, damping))
    criterion = _gcv(parts, damping)
    return Tikhonov(solution, damping, residual, jnp.linalg.norm(solution), freedom, criterion, found)


def _rows(factors, matrix):
    return factors.reshape((-1,) + (1,) * (matrix.ndim - 1)) * matrix


def _row_squares(matrix):
    return jnp.sum(matrix.reshape(matrix.shape[0], -1) ** 2, axis=1)


def _fit(features, targets, solution, iterations, converged):
    residual = jnp.linalg.norm(features @ solution - targets)
    size = jnp.linalg.norm(solution)
    return Fit(solution, residual, size, converged & jnp.isfinite(size), iterations)


def _check(features, targets):
    features = checks.finite("features", checks.floating("features", features, ndim=2))
    targets = checks.finite("targets", checks.floating("targets", targets, least_ndim=1))
    checks.shape("targets", targets, (features.shape[0], *targets.shape[1:]))
    if targets.ndim > 2:
        raise checks.BadValue(f"targets must have 1 or 2 axes; got shape {tuple(targets.shape)}")
    return features, targets
