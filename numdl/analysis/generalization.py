"""MEASURED: what is said to go with generalization: gaps, margins, norms, flatness, neural collapse.

    gap, margins                    of losses on two sets; of outputs against labels
    norms, path_norm                of the weights
    tolerated_variance              the largest Gaussian noise on the parameters that the loss bears
    neural_collapse                 how far features and classifier are from a simplex

None of them is a bound by itself: which ones rank networks as their gaps do is an experiment.

    >>> import numpy as np
    >>> found = margins(np.array([[2.0, 0.5], [1.0, 3.0], [0.0, 1.0]]), [0, 1, 0])
    >>> print(found.margin, f"{found.accuracy:.2f}")
    [ 1.5  2.  -1. ] 0.67
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Integer, Key, PyTree, Real

from numdl import checks, precision, trees
from numdl.analysis import _collapse, _filters, _flatness, _parts
from numdl.analysis._collapse import NeuralCollapse
from numdl.analysis._flatness import Flatness
from numdl.records import record, static
from numdl.typing import Apply, Loss


@record
class Gap:
    """Means over two independent sets, and their difference."""

    train: jax.Array  # []
    test: jax.Array  # []
    gap: jax.Array  # []: test - train
    stderr: jax.Array  # []: of the gap, over examples


@record
class Margins:
    """How much more the right class gets than the best of the others."""

    margin: jax.Array  # [N]
    smallest: jax.Array  # []
    median: jax.Array  # []
    low: jax.Array  # []: a tenth of the margins lie below
    accuracy: jax.Array  # []: share of margins above 0


@record
class Norms:
    """Of every weight as the matrix [inputs, outputs]; the weights of a stack and of groups one by one."""

    names: tuple = static()
    frobenius: jax.Array  # [L]
    spectral: jax.Array  # [L]
    stable_rank: jax.Array  # [L]: (frobenius / spectral)^2
    distance: jax.Array  # [L]: |W - W_0| in the Frobenius norm; nan without a reference
    log_spectral_product: jax.Array  # []: ln of the product over layers
    spectral_complexity: jax.Array  # []: product^2 * sum over layers of (distance or frobenius)^2 / spectral^2


def gap(train_losses: ArrayLike | Sequence[float], test_losses: ArrayLike | Sequence[float]) -> Gap:
    """MEASURED difference of the means of per-example losses (or errors) on two sets, with its standard error.

        stderr^2 = Var(train) / N + Var(test) / M

    The parameters are given: it is the error of these estimates, not the spread over trainings.

    Parameters
    ----------
    train_losses, test_losses : array [N], array [M]     at least two each
    Returns
    -------
    Gap                         train, test, gap = test - train, stderr, each []
    Raises
    ------
    ValueError, TypeError       fewer than two numbers, more than one axis
    Source: elementary.
    """
    samples = []
    for name, losses in (("train_losses", train_losses), ("test_losses", test_losses)):
        losses = checks.array(name, losses, ndim=1, empty=True)
        if losses.size < 2:
            raise checks.BadValue(f"{name} must hold at least 2 numbers; got {losses.size} of shape {losses.shape}")
        samples.append(losses)
    samples = [jnp.asarray(losses, precision.wide(losses.dtype)) for losses in samples]
    train, test = map(jnp.mean, samples)
    stderr = jnp.sqrt(sum(jnp.var(s, ddof=1) / s.size for s in samples))
    return Gap(train, test, test - train, stderr)


def margins(outputs: Float[ArrayLike, "N C"], labels: Integer[ArrayLike, "N"], *, scale: ArrayLike = 1.0) -> Margins:
    """MEASURED margins of every example: the right class's output beside the best of the others.

        margin = (outputs[label] - max of the other outputs) / scale

    Parameters
    ----------
    outputs : array [N, C]      logits, C >= 2
    labels : array [N]          integers in 0..C-1
    scale : scalar              > 0: the product of spectral norms, for example
    Returns
    -------
    Margins                     margin [N] and its quantiles
    Raises
    ------
    ValueError, TypeError       labels outside 0..C-1 or of another length, fewer than 2 classes, scale <= 0
    Source: Bartlett, Foster & Telgarsky 2017, arXiv:1706.08498.
    """
    scale = checks.positive("scale", scale, shape=())
    outputs, labels = _classified("outputs", outputs, labels)
    mine = jax.nn.one_hot(labels, outputs.shape[1], dtype=bool)
    right = jnp.sum(jnp.where(mine, outputs, 0), axis=1)
    margin = (right - jnp.max(jnp.where(mine, -jnp.inf, outputs), axis=1)) / scale
    low, median = jnp.quantile(margin, jnp.asarray([0.1, 0.5], margin.dtype))
    return Margins(margin, jnp.min(margin), median, low, jnp.mean(margin > 0, dtype=margin.dtype))


def norms(
    params: PyTree,
    reference: PyTree | None = None,
    *,
    apply: Apply | None = None,
    x: PyTree | None = None,
    outputs: int | tuple | dict | None = None,
    stacked: str | Sequence[str] = (),
) -> Norms:
    """MEASURED norms of every weight as the matrix [inputs, outputs] of what is summed over and what is not.

    With `apply` and `x` it is taken from how the call contracts the leaf, one row for each layer of a stack and each
    group; else it is [all axes but the last, the last], unless `outputs` and `stacked` say otherwise. A convolution's
    is the matrix [window * channels, outputs] of its patches: its spectral norm is not that of the map between
    pictures. Vectors are left out: leaves that the call does not contract; without a call those of one axis.

    Parameters
    ----------
    params : pytree             weights and all else that the call takes
    reference : pytree          like params, the initialization: distances are from there
    apply, x : function, pytree     apply(params, x), traced, not run; both or neither
    outputs : int, tuple, or dict of them by path or glob   axes that number output units, as in `landscape.direction`
    stacked : paths or globs    leaves whose first axis is depth; without a call, which shows it
    Returns
    -------
    Norms                       one entry for each matrix, by name
    Raises
    ------
    ValueError, TypeError       no weight (the leaves are listed), a reference unlike params; as `landscape.direction`
    Source: Bartlett et al. 2017, arXiv:1706.08498; Neyshabur et al. 2018, arXiv:1707.09564 (spectral_complexity).
    """
    params, given = checks.leaves("params", params), reference is not None
    reference = checks.like("reference", reference, params) if given else params
    found = _filters.find(params, apply=apply, x=x, outputs=outputs, stacked=stacked)
    if all(one is None for one in found):
        raise checks.BadValue(f"params must hold a kernel of 2 axes or more; got {', '.join(trees.names(params))}")
    kernels, starts = dict(_filters.each(params, found)), dict(_filters.each(reference, found))
    frobenius = jnp.stack([trees.norm(kernel) for kernel in kernels.values()])
    spectral = jnp.stack([jnp.linalg.norm(precision.widen(kernel), 2) for kernel in kernels.values()])
    distance = jnp.stack([trees.norm(kernel - starts[name]) for name, kernel in kernels.items()])
    log_product = jnp.sum(jnp.log(spectral))
    complexity = jnp.exp(2 * log_product) * jnp.sum(((distance if given else frobenius) / spectral) ** 2)
    distance = distance if given else jnp.full_like(distance, jnp.nan)
    stable = (frobenius / spectral) ** 2
    return Norms(tuple(kernels), frobenius, spectral, stable, distance, log_product, complexity)


def path_norm(
    apply: Apply, params: PyTree, x: Float[ArrayLike, "..."], *, frozen: str | Sequence[str] = ()
) -> Float[Array, ""]:
    """MEASURED root of the sum over paths from input to output of products of squared weights, for relu networks.

        path_norm^2 = sum over outputs of f(x = 1; params^2)

    It does not change when a hidden unit's weights are scaled up on one side and down on the other. `apply` must be
    built of affine maps, relus, sums and means; biases count as paths that begin at a 1.

    Parameters
    ----------
    apply : function            (params, x) -> outputs
    params : pytree             real floating leaves are squared
    x : array [1 or N, ...]     for its shape and dtype
    frozen : str or strings     paths of leaves that are taken as they are, like those without floating-point numbers
    Raises
    ------
    ValueError, TypeError       complex params, no floating-point leaf, a path that fits no leaf, x of integers, `apply`
                                with other functions in it (tanh, softmax, norms): that is verified, not under jit
    Source: Neyshabur et al. 2015, arXiv:1506.02617.
    """
    apply = checks.returning("apply", apply, 2, "apply(params, x)")
    x = checks.floating("x", x, least_ndim=1)
    moving, rest = trees.trainable(params, frozen=frozen)
    if "complex" in rest.kinds:
        raise checks.BadType("params must be real, or frozen, for a path norm; got complex leaves")
    outputs = jax.eval_shape(lambda moving, x: apply(rest.params(moving), x[:1]), moving, x)
    if not isinstance(outputs, jax.ShapeDtypeStruct) or not jnp.issubdtype(outputs.dtype, jnp.floating):
        raise checks.BadType(f"apply must return one array of real numbers; got {outputs}")
    squares, one = rest.params(jax.tree.map(jnp.square, moving)), jnp.ones_like(x[:1])
    found = apply(squares, one)
    _check_affine(apply, squares, one, found)
    return jnp.sqrt(jnp.sum(found))


def _check_affine(apply, squares, one, found):
    """Without negative weights and inputs a relu is the identity: then f(u) + f(1 - u) = f(1) + f(0)."""
    if isinstance(found, jax.core.Tracer):
        return
    u = jnp.asarray(np.random.default_rng(0).uniform(size=one.shape), one.dtype)
    left, right, zero = (apply(squares, x) for x in (u, one - u, jnp.zeros_like(one)))
    apart, size = (float(jnp.max(jnp.abs(part))) for part in (left + right - found - zero, found))
    if np.isfinite(size) and not apart <= 100 * float(jnp.finfo(found.dtype).eps) * size:
        raise checks.BadValue(
            "apply must be built of affine maps, relus, sums and means for a path norm; got one that is not affine "
            f"where weights and inputs are positive: f(u) + f(1 - u) - f(1) - f(0) = {apart:.3g}, f(1) = {size:.3g}"
        )


def tolerated_variance(
    key: Key[Array, ""],
    loss: Loss,
    params: PyTree,
    batch: PyTree,
    *,
    rise: ArrayLike,
    draws: int,
    smallest: ArrayLike = 1e-12,
    largest: ArrayLike = 1e2,
    relative: bool = False,
    frozen: str | Sequence[str] = (),
) -> Flatness:
    """MEASURED largest variance of Gaussian noise on the parameters that raises the mean loss by no more than `rise`.

        E_z loss(params + sqrt(variance) z) - loss(params) = rise,    z ~ N(0, 1) or N(0, params^2)

    found by halving the interval of ln variance with the same z throughout; what flat minima are in PAC-Bayes bounds.
    For a quadratic loss at its minimum variance = 2 rise / trace(Hessian).

    Parameters
    ----------
    key : key                   of the directions z
    loss, params, batch : function, pytree, pytree     loss(params, batch) -> scalar
    rise : scalar               > 0, in the unit of the loss
    draws : int                 directions z, >= 2; each is used with both signs, so that the gradient drops out
    smallest, largest : scalar  the interval of variances, 0 < smallest < largest
    relative : bool             noise in proportion to each parameter: unchanged by scaling (Tsuzuku et al. 2020)
    frozen : str or strings     paths of leaves without noise, like those without floating-point numbers
    Raises
    ------
    ValueError, TypeError       rise <= 0, draws < 2, an empty interval, a loss that is not scalar, no leaf that moves
    Source: Dziugaite & Roy 2017, arXiv:1703.11008; Jiang et al. 2020, arXiv:1912.02178 (sigma of PAC-Bayes flatness).
    """
    checks.key("key", key)
    loss = checks.returning("loss", loss, 2, "loss(params, batch)", scalar=True)
    rise = checks.positive("rise", rise, shape=())
    draws, relative = checks.whole("draws", draws, least=2), checks.flag("relative", relative)
    smallest = checks.positive("smallest", smallest, shape=())
    largest = checks.finite("largest", largest, above=smallest, shape=())
    moving, rest = trees.trainable(params, frozen=frozen)
    batch, ends = _parts.data("batch", batch), (np.log(smallest), np.log(largest))
    return _flatness.tolerated(key, loss, moving, rest, batch, rise, *ends, draws=draws, relative=relative)


def neural_collapse(
    features: Float[ArrayLike, "N d"],
    labels: Integer[ArrayLike, "N"],
    *,
    weights: Real[ArrayLike, "d C"] | None = None,
    bias: Real[ArrayLike, "C"] | None = None,
    classes: int | None = None,
) -> NeuralCollapse:
    """MEASURED distances of features and classifier from neural collapse, a simplex equiangular tight frame: NC1..NC4.

        m_c = mean of class c - mean of all class means,   S_W = mean (h - mean_c)(h - mean_c)',  S_B = mean_c m_c m_c'

    Classes without an example make all numbers nan.

    Parameters
    ----------
    features : array [N, d]     h, what the last affine map reads
    labels : array [N]          integers in 0..C-1
    weights, bias : array [d, C], array [C]     of the last map, features @ weights + bias; None: NC1 and NC2 of means
    classes : int               C >= 2, if it is not the weights' and not max(labels) + 1
    Returns
    -------
    NeuralCollapse              numbers [], all 0 when the collapse is complete; nan for a classifier not given
    Raises
    ------
    ValueError, TypeError       labels outside 0..C-1 or of another length, weights or bias of another shape,
                                bias without weights
    Source: Papyan, Han & Donoho 2020, arXiv:2008.08186, figures 2-7.    Experiment: e7.
    """
    features = checks.floating("features", features, ndim=2)
    labels = checks.shape("labels", checks.array("labels", labels, kind="integer"), (features.shape[0],))
    labels = checks.finite("labels", labels, least=0)
    if weights is not None:
        weights = checks.array("weights", weights, ndim=2)
    if classes is None:
        classes = int(np.max(labels)) + 1 if weights is None else weights.shape[1]
    classes = checks.whole("classes", classes, least=2)
    labels = checks.finite("labels", labels, least=0, most=classes - 1)
    if weights is not None:
        weights = checks.shape("weights", weights, (features.shape[1], classes))
    if bias is not None:
        bias = checks.shape("bias", checks.array("bias", bias), (classes,))
        if weights is None:
            raise checks.BadValue(f"bias must be None without weights; got {checks.shown(bias)}")
    return _collapse.distances(features, jnp.asarray(labels), weights, bias, classes=classes)


# ---- helpers -------------------------------------------------------------------------------------------------------


def _classified(name, outputs, labels):
    outputs = checks.array(name, outputs, kind="floating", ndim=2)
    if outputs.shape[1] < 2:
        raise checks.BadValue(f"{name} must have at least 2 classes, [N, C]; got shape {tuple(outputs.shape)}")
    labels = checks.shape("labels", checks.array("labels", labels, kind="integer"), (outputs.shape[0],))
    labels = checks.finite("labels", labels, least=0, most=outputs.shape[1] - 1)
    return jnp.asarray(outputs), jnp.asarray(labels)
