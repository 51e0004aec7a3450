"""The engine of residual and reversible networks: stages of equal width, each one integration of y' = F(y; theta(t)).

    x --> connector --> step, step, ..., step --> connector --> step, ..., step --> readout --> outputs
          `------------- stage 1 ------------'    `---------- stage 2 --------'

A connector stands where the width changes, none where it stays: an affine map, or zeros in the new coordinates. Its
output is a stretch of one state; the states of a stage are y after each step. The readout is affine in y_L (of a
picture: in the mean over its positions). Parameters:

    {"connectors": ({"kernel", "bias"} or {}, ...), "blocks": (theta, ...), "readout": {"kernel", "bias"}}

one entry for each stage; the leaves of theta have depth as axis 0: [steps, ...], or [steps + 1, ...] if linear in time.
A network reads its depth from there. Where all of a stage's time is fixed, finer parameters make smaller steps.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import ArrayLike, Float, PyTree, ScalarLike

from numdl import checks
from numdl._compiled import compiled
from numdl.networks import _affine, _record, _stage_options, fields
from numdl.networks._record import probed, probed_alone
from numdl.networks._stage_options import Motion, Options
from numdl.networks._stage_parameters import Settings, draw
from numdl.ode import adjoints, integrate, refinement, schemes


class StagedNetwork(_record.Network):
    """A network of stages; `apply` keeps no states, so that its memory is what the adjoint needs."""

    __slots__ = ()

    def apply(self, params, x):
        """The outputs [N, d_out]; the gradient goes by the adjoint that the builder was given."""
        return self.readout(params, _record.last_state(self.states(params, x, save=False), x))


def build(
    motion: Motion,
    *,
    widths: Sequence[int],
    depth: int | Sequence[int],
    bias_variance: ScalarLike,
    adjoint: Callable = adjoints.checkpointed,
    **options: Unpack[Options],
) -> StagedNetwork:
    """A network of stages that this motion runs through.

    Parameters
    ----------
    motion : Motion             scheme, field and layout of the parameters
    widths, depth, bias_variance, adjoint : as for `residual.network`
    **options : Options         as for `residual.network`
    Returns
    -------
    StagedNetwork                     x [N, widths[0]] -> outputs [N, widths[-1]]
    Raises
    ------
    ValueError, TypeError       as `residual.network`
    """
    return from_settings(_stage_options.settings(motion, widths, depth, bias_variance, adjoint, options))


def from_settings(settings: Settings) -> StagedNetwork:
    """The network of these settings.

    Parameters
    ----------
    settings : Settings         of `settings_of`, with fields replaced (`dataclasses.replace`)
    Returns
    -------
    StagedNetwork
    """
    return StagedNetwork(Partial(_init, settings), Partial(_states, settings), Partial(_readout, settings))


def settings_of(network: _record.Network) -> Settings:
    """What the builder has bound: widths, scheme, laws, the clock.

    Parameters
    ----------
    network : StagedNetwork           made by `residual` or `reversible`
    Returns
    -------
    Settings
    Raises
    ------
    TypeError                   a network of another builder
    """
    bound = getattr(getattr(network, "states", None), "args", ())
    if not (bound and isinstance(bound[0], Settings)):
        raise checks.BadType(
            f"network must come from a builder of networks.residual or networks.reversible; got {network!r}"
        )
    return bound[0]


def admitted(network: _record.Network, params: PyTree) -> tuple[Settings, PyTree]:
    """(settings, params) of a network: params like what it draws, but for the number of steps, which may be another.

    Parameters
    ----------
    network : StagedNetwork           made by `residual` or `reversible`
    params : pytree             {"connectors", "blocks", "readout"}; blocks may have another number of steps
    Returns
    -------
    (Settings, pytree)
    Raises
    ------
    ValueError, TypeError       a network of another builder, params that do not fit
    """
    settings = settings_of(network)
    dtype = settings.dtype or jnp.result_type(float)
    expected = jax.eval_shape(lambda: draw(settings, jax.random.key(0), dtype))
    if isinstance(params, dict) and isinstance(params.get("blocks"), tuple | list):
        stages = itertools.zip_longest(expected["blocks"], params["blocks"][: len(expected["blocks"])])
        expected = {**expected, "blocks": tuple(_as_long_as(mine, theirs) for mine, theirs in stages)}
    return settings, checks.like("params", params, expected, of="network.init(key, x)", floating=True)


def _as_long_as(expected, block):
    """The shapes expected of a block with as many steps as its longest leaf has."""
    lengths = [np.shape(leaf)[0] for leaf in jax.tree.leaves(block) if getattr(leaf, "shape", ())]
    if not lengths:
        return expected
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((max(lengths), *leaf.shape[1:]), leaf.dtype), expected)


def flow(settings: Settings, params: PyTree, stage: int) -> tuple[PyTree, dict[str, Any]]:
    """The integration of one stage: theta, and the keyword arguments of `ode.integrate`.

    Parameters
    ----------
    settings : Settings
    params : pytree             of the network
    stage : int                 from 0
    Returns
    -------
    (pytree, dict)              theta, leaves [steps, ...], and t1, steps, scheme, interpolation
    """
    theta = params["blocks"][stage]
    steps = refinement.step_count(theta, interpolation=settings.interpolation)
    t1 = settings.time if settings.step is None else settings.step * steps
    if settings.damping is not None:
        length = steps + (settings.interpolation == "linear")
        theta = {**theta, "damping": jnp.broadcast_to(jnp.asarray(settings.damping), (length,))}
    options = {"t1": t1, "steps": steps, "scheme": settings.scheme, "interpolation": settings.interpolation}
    return theta, options


def split(settings: Settings, y: Float[ArrayLike, "..."]) -> PyTree:
    """The state as the scheme sees it.

    Parameters
    ----------
    settings : Settings
    y : array [..., n]          as the network sees it
    Returns
    -------
    array or pair of arrays [..., n / 2]    a pair where the scheme has positions and velocities
    """
    return tuple(jnp.split(y, 2, axis=-1)) if settings.pair else y


def merge(settings: Settings, y: PyTree) -> Float[ArrayLike, "..."]:
    """The state as the network sees it; undoes `split`.

    Parameters
    ----------
    settings : Settings
    y : array or pair of arrays [..., n / 2]
    Returns
    -------
    array [..., n]
    """
    return jnp.concatenate(y, axis=-1) if settings.pair else y


def _init(settings, key, x):
    dtype = _affine.dtype_at_init(key, x, settings.dtype)
    _check_input(settings, x)
    return draw(settings, key, dtype)


@functools.partial(compiled, static=("save",))
def _states(settings, params, x, probes=None, *, save=True):
    _check_input(settings, x)
    connected = [n != m for n, m in itertools.pairwise(settings.widths[:-1])]
    probes = iter(_record.split_probes(probes, len(connected) + sum(connected)))
    y, stretches = x, []
    for stage, connects in enumerate(connected):
        if connects:
            y = _connect(settings, params["connectors"][stage], y, stage)
            y = probed_alone(y, next(probes))
            stretches.append(y[None])
        stretch = _integrate(settings, params, y, next(probes), stage, save)
        stretches.append(stretch)
        y = stretch[-1]
    return tuple(stretches)


def _integrate(settings, params, y, probe, stage, save):
    theta, options = flow(settings, params, stage)
    y = split(settings, y)
    if not save:
        last = integrate.endpoint(settings.field, y, theta, adjoint=settings.adjoint, **options)
        return merge(settings, last)[None]
    field = settings.field
    if probe is not None:
        theta = theta, split(settings, _at_the_ends(settings, probe))
        options = {**options, "scheme": _with_probes(settings.scheme, field)}
        field = _bound
    # Forward mode is wanted here too, and the states are stored in any case.
    solution = integrate.trajectory(field, y, theta, adjoint=adjoints.checkpointed, **options)
    return merge(settings, solution.states)[1:]


@functools.lru_cache(maxsize=256)
def _with_probes(scheme, field):
    """The scheme for this field with a probe added to every new state: theta is (theta, probe)."""

    def step(_, y, t, h, control):
        y, residual = scheme.step(field, y, t, h, lambda fraction: control(fraction)[0])
        return jax.tree.map(probed, y, control(1.0)[1]), residual

    def derivative(_, t, y, theta):
        return scheme.derivative(field, t, y, theta[0])

    return schemes.Scheme(f"{scheme.name} with probes", scheme.order, step, derivative)


def _bound(t, y, theta):
    """Stands where a field is asked for although the scheme has bound its own."""
    return y


def _at_the_ends(settings, probe):
    """Probes as a function of time whose value at the end of step l is probe l."""
    if settings.interpolation == "constant":
        return probe
    return jnp.concatenate([jnp.zeros_like(probe[:1]), probe])


def _connect(settings, weights, y, stage):
    if settings.window and stage:
        y = _pool(y, settings.pool)
    if settings.connector == "pad":
        more = settings.widths[stage + 1] - y.shape[-1]
        return jnp.pad(y, (*[(0, 0)] * (y.ndim - 1), (0, more)))
    return _affine.apply(weights, y, product=lambda y, kernel: fields.apply(kernel, y))


def _pool(y, size):
    if size == 1:
        return y
    if y.shape[1] % size or y.shape[2] % size:
        raise checks.BadValue(f"pool must divide the height and width {y.shape[1:3]}; got {size}")
    return y.reshape(y.shape[0], y.shape[1] // size, size, y.shape[2] // size, size, -1).mean(axis=(2, 4))


@compiled
def _readout(settings, params, y):
    return _affine.apply(params["readout"], y.mean(axis=(1, 2)) if settings.window else y)


def _check_input(settings, x):
    _affine.check_features(x, settings.widths[0], "widths", places="height, width, " if settings.window else "")
    grown = list(itertools.pairwise(settings.widths[:-1]))
    if settings.connector == "pad" and any(m < n for n, m in grown):
        raise checks.BadValue(f"widths must not shrink where connector is 'pad'; got {settings.widths}")
