"""MEASURED: adversarial examples of any function, the distance to another class, and how steep outputs are.

    fast_gradient_sign      one step x + radius sign(dloss/dx)
    projected_gradient      many steps inside a ball around x, in the maximum or the Euclidean norm
    linear_distance         how far another class is if the outputs were linear in x
    boundary                a point near x that another class has, by linearizing again and again
    lipschitz               |d outputs / dx|, the local Lipschitz constant, at every example

`apply(params, x)` is any JAX function whose rows do not mix: outputs [N, classes] from x [N, ...].

    >>> import jax.numpy as jnp
    >>> apply = lambda params, x: x @ params
    >>> w, x = jnp.array([[3.0, 0.0], [0.0, 4.0]]), jnp.array([[1.0, 0.0]])
    >>> print(boundary(apply, w, x).distance.round(3), lipschitz(apply, w, x))  # 3 / |(3, -4)|
    [0.6] [4.]

Twin: theory.robustness (bounds that no attack can break).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, Key, PyTree, ScalarLike

from numdl import checks
from numdl.analysis import _attacks
from numdl.records import record
from numdl.typing import Apply

NORMS = ("max", "euclidean")


@record
class Attack:
    """Examples after an attack."""

    x: jax.Array  # [N, ...]
    distance: jax.Array  # [N]: from the examples that came, in the norm of the ball
    stuck: jax.Array  # [N] bool: the loss had no slope there, so that nothing moved (or only at random)


@record
class Boundary:
    """A point of another class for every example."""

    x: jax.Array  # [N, ...]
    distance: jax.Array  # [N] Euclidean; nan where none was found. The nearest such point is no farther
    label: jax.Array  # [N]: the class there
    found: jax.Array  # [N] bool


def fast_gradient_sign(
    apply: Apply,
    params: PyTree,
    x: Float[ArrayLike, "N ..."],
    targets: ArrayLike,
    *,
    loss: Callable[[Array, Array], Array],
    radius: ScalarLike,
    bounds: tuple[float, float] | None = None,
) -> Attack:
    """MEASURED adversarial examples by one step of the fast gradient sign method (FGSM).

        x' = clip(x + radius * sign(dloss/dx))

    Parameters
    ----------
    apply : function            (params, x [N, ...]) -> outputs [N, k]
    params : pytree
    x : array [N, ...]
    targets : array [N, ...]    what the loss takes: the true classes
    loss : function             (outputs, targets) -> scalar
    radius : scalar             epsilon >= 0, in the units of x
    bounds : (low, high)        allowed values of x'; None: any
    Returns
    -------
    Attack
    Raises
    ------
    ValueError, TypeError       a negative radius, low >= high, outputs that are not [N, k], targets the loss refuses
    Source: Goodfellow, Shlens & Szegedy 2015, arXiv:1412.6572, section 4.
    Twin: theory.robustness.certified_radius.    Experiment: f15.
    """
    apply, params, x = _admitted(apply, params, x)
    targets, loss = _judged(apply, params, x, targets, loss)
    radius, bounds = checks.variance("radius", radius, shape=()), _bounds(bounds)
    return Attack(*_attacks.attacked(apply, loss, params, x, targets, x, radius, radius, bounds, steps=1, norm="max"))


def projected_gradient(
    apply: Apply,
    params: PyTree,
    x: Float[ArrayLike, "N ..."],
    targets: ArrayLike,
    *,
    loss: Callable[[Array, Array], Array],
    radius: ScalarLike,
    step: ScalarLike,
    steps: int,
    norm: str = "max",
    bounds: tuple[float, float] | None = None,
    key: Key[Array, ""] | None = None,
) -> Attack:
    """MEASURED adversarial examples by projected gradient ascent of the loss (PGD), inside a ball around each example.

        x <- clip(project(x + step * direction)),    direction = sign(g) or g / |g|,    g = dloss/dx

    Parameters
    ----------
    apply, params, x, targets, loss, bounds : as for `fast_gradient_sign`
    radius : scalar             of the ball, >= 0
    step : scalar               > 0
    steps : int                 >= 1
    norm : str                  of the ball and the step: max (sign of g) or euclidean (g over its length)
    key : key                   of a start drawn uniformly from the ball; None: start at x
    Returns
    -------
    Attack
    Raises
    ------
    ValueError, TypeError       as `fast_gradient_sign`; a step not above 0, steps < 1, another norm
    Source: Madry et al. 2018, arXiv:1706.06083, section 2.
    Twin: theory.robustness.certified_radius.    Experiment: f15.
    """
    apply, params, x = _admitted(apply, params, x)
    targets, loss = _judged(apply, params, x, targets, loss)
    radius, bounds = checks.variance("radius", radius, shape=()), _bounds(bounds)
    step, steps = checks.positive("step", step, shape=()), checks.whole("steps", steps)
    norm = checks.one_of("norm", norm, NORMS)
    start = x if key is None else x + radius * _attacks.drawn(checks.key("key", key), x, norm)
    return Attack(
        *_attacks.attacked(apply, loss, params, x, targets, start, radius, step, bounds, steps=steps, norm=norm)
    )


def linear_distance(
    apply: Apply, params: PyTree, x: Float[ArrayLike, "N ..."], *, norm: str = "euclidean"
) -> Float[Array, "N"]:
    """MEASURED margin as a distance, to the nearest other class, were the outputs linear in x: exact for linear maps.

        min over k of (f_c - f_k) / |d(f_c - f_k)/dx|*,    c the class of x, |.|* the dual of the norm

    Parameters
    ----------
    apply : function            (params, x [N, ...]) -> outputs [N, k]
    params : pytree
    x : array [N, ...]
    norm : str                  of the distance: euclidean, or max (whose dual is the sum of absolute values)
    Returns
    -------
    array [N]                   inf where no other class has another slope
    Raises
    ------
    ValueError, TypeError       outputs that are not [N, k] with k >= 2, another norm
    Source: Moosavi-Dezfooli, Fawzi & Frossard 2016, arXiv:1511.04599, section 3.
    Twin: theory.robustness.certified_radius.    Experiment: f15.
    """
    apply, params, x = _admitted(apply, params, x, classes=2)
    return _attacks.linear(apply, params, x, norm=checks.one_of("norm", norm, NORMS))


def boundary(apply: Apply, params: PyTree, x: Float[ArrayLike, "N ..."], *, steps: int = 50) -> Boundary:
    """MEASURED smallest adversarial perturbation, nearly: a point of another class close to every example (DeepFool).

        x <- x + 1.02 (f_c - f_k) / |w|^2 * w,    w = d(f_k - f_c)/dx, k the class nearest by linearization

    until the class changes; then the segment back to x is halved, and the end on the far side is kept: its class *is*
    another one, so that the distance bounds the smallest perturbation from above.

    Parameters
    ----------
    apply : function            (params, x [N, ...]) -> outputs [N, k]; the class is the largest output
    params : pytree
    x : array [N, ...]
    steps : int                 linearizations at most, >= 1
    Returns
    -------
    Boundary
    Raises
    ------
    ValueError, TypeError       outputs that are not [N, k] with k >= 2, steps < 1
    Source: Moosavi-Dezfooli, Fawzi & Frossard 2016, arXiv:1511.04599, algorithm 2.
    Twin: theory.robustness.certified_radius.    Experiment: f15.
    """
    apply, params, x = _admitted(apply, params, x, classes=2)
    return Boundary(*_attacks.crossed(apply, params, x, steps=checks.whole("steps", steps)))


def lipschitz(apply: Apply, params: PyTree, x: Float[ArrayLike, "N ..."]) -> Float[Array, "N"]:
    """MEASURED local Lipschitz constant: the largest singular value of d outputs / dx at every example.

    A chain of layers has at most the product of their spectral norms.

    The largest over a region bounds the function's Lipschitz constant there from below; for a function that is linear
    around x it is the constant itself. Exact: the Jacobian is formed, one backward pass for each output.

    Parameters
    ----------
    apply : function            (params, x [N, ...]) -> outputs [N, k]
    params : pytree
    x : array [N, ...]
    Returns
    -------
    array [N]
    Raises
    ------
    ValueError, TypeError       outputs that are not [N, k]
    Twin: theory.robustness.lipschitz.    Experiment: f15.
    """
    return _attacks.norms(*_admitted(apply, params, x))


# ---- at the door ---------------------------------------------------------------------------------------------------


def _admitted(apply, params, x, classes=1):
    """(apply as a Partial, params, x), checked: outputs [N, k] with k >= classes."""
    apply = checks.returning("apply", apply, 2, "apply(params, x)")
    params, x = checks.leaves("params", params), checks.floating("x", x, least_ndim=2)
    outputs = jax.eval_shape(apply, params, x)
    shape = getattr(outputs, "shape", ())
    if len(shape) != 2 or shape[0] != len(x) or shape[1] < classes or not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise checks.BadValue(
            f"apply must return real outputs of shape [{len(x)}, k], k >= {classes}, one row for each example; "
            f"got {outputs}"
        )
    return apply, params, x


def _judged(apply, params, x, targets, loss):
    """(targets, loss as a Partial): known targets are shown to the loss, which may refuse them."""
    loss = checks.returning("loss", loss, 2, "loss(outputs, targets)", scalar=True)
    targets = checks.array("targets", targets)
    if targets.shape[:1] != x.shape[:1]:
        raise checks.BadValue(f"targets must have one row for each of {len(x)} examples; got shape {targets.shape}")
    outputs = jax.eval_shape(apply, params, x)
    jax.eval_shape(lambda outputs: loss(outputs, targets), outputs)
    return targets, loss


def _bounds(bounds):
    if bounds is None:
        return None
    low, high = bounds if isinstance(bounds, tuple | list) and len(bounds) == 2 else (None, None)
    if low is None:
        raise checks.BadType(f"bounds must be a pair (low, high) or None; got {checks.shown(bounds)}")
    low = float(checks.finite("bounds[0]", low, shape=()))
    return low, float(checks.finite("bounds[1]", high, above=low, shape=()))
