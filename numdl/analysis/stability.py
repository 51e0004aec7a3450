"""MEASURED: where the eigenvalues of h J_l of a residual network lie, layer by layer, along its own trajectory.

J_l = dF/dy(y_l, theta_l) of the right-hand side F, whose step the network takes; `networks.residual.unroll` hands out
F, theta, states and h, trained or not. What a scheme makes of z = h lambda is the caller's function R(z), such as
`functools.partial(ode.stability.amplification, tableau)`. A mode that the equation damps (Re lambda <= 0) and the
scheme amplifies (|R| > 1) is the step's fault; a mode with Re lambda > 0 grows whatever the step.

Eigenvalues along a trajectory bound nothing when J_l turns with l or is far from normal; the logarithmic norm does:
d|y1 - y2|/dt <= mu |y1 - y2| while mu_2(J) <= mu.

    >>> import jax.numpy as jnp
    >>> field = lambda y, rate: -rate * y
    >>> rates, states = jnp.array([1.0, 30.0]), jnp.ones((2, 1, 3))
    >>> spectrum(field, rates, states, 0.1, amplification=lambda z: 1 + z).unstable.ravel()  # Euler's
    array([False,  True])

Twin: ode.stability (what a scheme does to one eigenvalue). What follows from a spectrum: audit.verdicts.steps.
"""

import functools
from collections.abc import Callable

import jax
import numpy as np
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Key, PyTree

from numdl import _random, checks
from numdl._compiled import jit
from numdl.krylov import arnoldi
from numdl.records import record

DENSE = 600  # unknowns up to which the whole Jacobian is formed
ROUNDING = 1e-5  # relative to the largest eigenvalue: a real part below it counts as zero


@record
class Spectrum:
    """Eigenvalues of h J_l and what the scheme makes of them; K is the state's size, or the Krylov dimension."""

    eigenvalues: np.ndarray  # [L, N, K] complex: h lambda
    residual: np.ndarray  # [L, N, K]: |h J v - z v| for a Ritz value's unit vector; 0 where all were computed
    amplification: np.ndarray  # [L, N]: max |R(z)|
    unstable: np.ndarray  # [L, N] bool: some mode has Re lambda <= 0 and |R(z)| > 1
    growing: np.ndarray  # [L, N]: max Re lambda, in 1 / time
    log_norm: np.ndarray  # [L, N]: largest eigenvalue of (J + J^T) / 2, in 1 / time
    stiffness: np.ndarray  # [L, N]: max |Re lambda| / min |Re lambda| over Re lambda < 0; nan if there is none
    largest_step: np.ndarray  # []: h below which no mode with Re lambda <= 0 is amplified; nan if not asked for
    step: np.ndarray  # []: h


def spectrum(
    field: Callable[[Array, PyTree], Array],
    theta: PyTree,
    states: Float[ArrayLike, "L N ..."],
    step: ArrayLike,
    *,
    amplification: Callable[[np.ndarray], ArrayLike],
    largest_step: Callable[[np.ndarray], ArrayLike] | None = None,
    krylov: int | None = None,
    key: Key[Array, ""] | None = None,
) -> Spectrum:
    """MEASURED eigenvalues of h J_l at every layer and example, against the amplification factor R of the scheme.

        z = h lambda(J_l),   unstable: Re lambda <= 0 and |R(z)| > 1,   outside the region of absolute stability

    Parameters
    ----------
    field : function            (y [1, ...], theta of one layer) -> y', for one example
    theta : pytree              leaves [L, ...]
    states : array [L, N, ...]  y at the beginning of each step; take a few examples of a batch
    step : scalar               h > 0
    amplification : function    z (complex array) -> R(z)
    largest_step : function     eigenvalues -> the largest stable h, as ode.stability.largest_step for one tableau
    krylov : int                Arnoldi's method with this many steps; None: all eigenvalues up to 600 unknowns, 40 else
    key : key                   of the vector that Arnoldi's method starts from; needed by it alone
    Returns
    -------
    Spectrum                    eigenvalues [L, N, K], figures [L, N], largest_step []
    Raises
    ------
    ValueError, TypeError       states without layers and examples, a step that is not positive, not a function, no key
                                where Arnoldi's method needs one
    Source: Hairer & Wanner, Solving Ordinary Differential Equations II, chapter IV.
    Twins: ode.stability.amplification, ode.stability.largest_step.    Experiment: c3.
    """
    theta, states = _along(field, theta, states)
    checks.accepts("amplification", amplification, 1, "amplification(z)")
    checks.array("amplification(z)", amplification(np.zeros(1, complex)), kind="number")
    if largest_step is not None:
        checks.accepts("largest_step", largest_step, 1, "largest_step(eigenvalues)")
    step = float(checks.positive("step", step, shape=()))
    size = int(np.prod(states.shape[2:]))
    if krylov is not None:
        krylov = min(checks.whole("krylov", krylov, least=2), size)
    elif size > DENSE:
        krylov = 40
    key = key if krylov is None and key is None else checks.key("key", key)
    if krylov is None:
        values, residual, log_norm = _dense(_jacobians(field, theta, states))
    else:
        values, residual, log_norm = _ritz(field, theta, states, krylov, key)
    return _judge(values, residual, log_norm, step, amplification, largest_step)


def jacobians(
    field: Callable[[Array, PyTree], Array], theta: PyTree, states: Float[ArrayLike, "L N ..."]
) -> Float[Array, "L N n n"]:
    """MEASURED J_l = dF/dy for every layer and example, n the size of a state; what `spectrum` looks at.

    Parameters
    ----------
    field : function            F, (y [1, ...], theta of one layer) -> y', for one example
    theta : pytree              leaves [L, ...]
    states : array [L, N, ...]  y at the beginning of each step
    Returns
    -------
    array [L, N, n, n]          all of it in memory
    Raises
    ------
    ValueError, TypeError       states without layers and examples, theta of another length, a field of another shape
    """
    return _jacobians(field, *_along(field, theta, states))


def _along(field, theta, states):
    """(theta, states), checked: one entry of every leaf for each layer, and a field that returns what is like y."""
    checks.accepts("field", field, 2, "field(y, theta)")
    theta, states = checks.leaves("theta", theta), checks.floating("states", states, least_ndim=3)
    for path, leaf in jax.tree_util.tree_leaves_with_path(theta):
        if leaf.shape[:1] != states.shape[:1]:
            raise checks.BadValue(
                f"theta{jax.tree_util.keystr(path)} must have one entry for each of {len(states)} layers; "
                f"got shape {tuple(leaf.shape)}"
            )
    local = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), theta)
    y = jax.ShapeDtypeStruct((1, *states.shape[2:]), states.dtype)
    rate = jax.eval_shape(checks.returning("field", field, 2, "field(y, theta)"), y, local)
    if getattr(rate, "shape", None) != y.shape:
        raise checks.BadValue(f"field must return an array like y, of shape {y.shape}; got {rate}")
    return theta, states


@functools.partial(jit, static_argnums=0)
def _jacobians(field, theta, states):
    size = int(np.prod(states.shape[2:]))

    def one(local, y):
        return jax.jacfwd(lambda y: field(y[None], local)[0])(y).reshape(size, size)

    return lax.map(lambda layer: jax.vmap(one, in_axes=(None, 0))(*layer), (theta, states))


def _dense(matrices):
    matrices = np.asarray(matrices, np.float64)
    values = np.linalg.eigvals(matrices).astype(np.complex128)
    symmetric = (matrices + np.swapaxes(matrices, -1, -2)) / 2
    return values, np.zeros(values.shape), np.linalg.eigvalsh(symmetric)[..., -1]


def _ritz(field, theta, states, steps, key):
    hessenberg, lanczos = (np.asarray(h, np.float64) for h in _krylov(field, theta, states, steps, key))
    values, vectors = np.linalg.eig(hessenberg[..., :steps, :])
    vectors = vectors / np.linalg.norm(vectors, axis=-2, keepdims=True)
    residual = hessenberg[..., steps, -1, None] * np.abs(vectors[..., -1, :])
    square = lanczos[..., :steps, :]
    log_norm = np.linalg.eigvalsh((square + np.swapaxes(square, -1, -2)) / 2)[..., -1]
    return values.astype(np.complex128), np.abs(residual), log_norm


@functools.partial(jit, static_argnums=(0, 3))
def _krylov(field, theta, states, steps, key):
    """Hessenberg matrices [L, N, steps + 1, steps] of J and of its symmetric part."""

    def one(local, y):
        def rate(y):
            return field(y[None], local)[0]

        _, push = jax.linearize(rate, y)
        _, pull = jax.vjp(rate, y)

        def forward(v):
            return push(v.reshape(y.shape)).ravel()

        def symmetric(v):
            return (forward(v) + pull(v.reshape(y.shape))[0].ravel()) / 2

        start = _random.normal(key, (y.size,), y.dtype)
        return tuple(arnoldi.decompose(map_, start, num_matvecs=steps).matrix for map_ in (forward, symmetric))

    return lax.map(lambda layer: jax.vmap(one, in_axes=(None, 0))(*layer), (theta, states))


def _judge(values, residual, log_norm, step, amplification, largest_step):
    z = step * values
    gain = np.abs(checks.array("amplification(z)", amplification(z), kind="number"))
    checks.shape("amplification(z)", gain, z.shape)
    scale = np.abs(values).max(axis=-1, keepdims=True)
    damped = values.real <= ROUNDING * scale
    decaying = np.where(values.real < -ROUNDING * scale, -values.real, np.nan)
    limit = np.nan
    if largest_step is not None and damped.any():
        on_the_axis = np.abs(values.real) <= ROUNDING * scale
        limit = largest_step(np.where(on_the_axis, 1j * values.imag, values)[damped])
    return Spectrum(
        eigenvalues=z,
        residual=step * residual,
        amplification=gain.max(axis=-1),
        unstable=(damped & (gain > 1 + ROUNDING)).any(axis=-1),
        growing=values.real.max(axis=-1),
        log_norm=log_norm,
        stiffness=_ratio(decaying),
        largest_step=np.asarray(limit, np.float64),
        step=np.asarray(step),
    )


def _ratio(decaying):
    some = ~np.isnan(decaying).all(axis=-1)
    most = np.where(np.isnan(decaying), -np.inf, decaying).max(axis=-1)
    least = np.where(np.isnan(decaying), np.inf, decaying).min(axis=-1)
    return np.where(some, most / np.where(some, least, 1.0), np.nan)
