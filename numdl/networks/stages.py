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

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from numdl import checks
from numdl.networks import core, fields, initializers
from numdl.networks.initializers import Initializer
from numdl.networks.stage_parameters import Settings, draw, freeze
from numdl.ode import adjoints, integrate, refinement, schemes

CONNECTORS = ("affine", "pad")
INTERPOLATIONS = ("constant", "linear")


class Network(core.Network):
    """A network of stages; `apply` keeps no states, so that its memory is what the adjoint needs."""

    __slots__ = ()

    def apply(self, params, x):
        """The outputs [N, d_out]; the gradient goes by the adjoint that the builder was given."""
        return self.readout(params, core.last_state(self.states(params, x, save=False), x))


def build(
    *,
    widths,
    depth,
    scheme,
    field,
    layout,
    bias_variance,
    weight_variance=None,
    initializer=None,
    second_weight_variance=None,
    connector_weight_variance=None,
    readout_weight_variance=None,
    step=None,
    time=None,
    damping=None,
    window=None,
    pool=1,
    pair=False,
    interpolation="constant",
    adjoint=adjoints.checkpointed,
    connector="affine",
    dtype=None,
):
    """A network of stages; the arguments are those of `residual.network`, and what makes a stage:

    Parameters
    ----------
    scheme, field : Scheme, function or pair of functions    what integrates what
    layout : function           width of the state -> {name: (shape without window, who draws it)}
    pair : bool                 the state is two halves
    """
    widths, depths = _sizes(widths, depth, pair)
    window = _window(window)
    layouts = tuple(freeze(layout(width, window)) for width in widths[1:-1])
    weights = _weights(weight_variance, initializer)
    checks.variance("bias_variance", bias_variance, shape=())
    _check_time(step, time)
    checks.whole("pool", pool)
    checks.one_of("interpolation", interpolation, INTERPOLATIONS)
    checks.one_of("connector", connector, CONNECTORS)
    checks.function("adjoint", adjoint)
    if adjoint is adjoints.reversible and scheme.inverse is None:
        raise ValueError(f"adjoint must not be reversible where the scheme has no inverse; got scheme {scheme.name}")
    others = {
        "second_weights": ("second_weight_variance", second_weight_variance),
        "connector_weights": ("connector_weight_variance", connector_weight_variance),
        "readout_weights": ("readout_weight_variance", readout_weight_variance),
    }
    settings = Settings(
        widths=widths,
        depths=depths,
        window=window,
        pool=pool,
        scheme=scheme,
        field=field,
        layouts=layouts,
        pair=pair,
        interpolation=interpolation,
        adjoint=adjoint,
        connector=connector,
        dtype=None if dtype is None else initializers.float_dtype("dtype", dtype),
        weights=weights,
        bias_variance=bias_variance,
        step=step,
        time=time,
        damping=damping,
        **{name: _other(*other, weights) for name, other in others.items()},
    )
    return from_settings(settings)


def from_settings(settings):
    """The network of these settings."""
    return Network(Partial(_init, settings), Partial(_states, settings), Partial(_readout, settings))


def settings_of(network):
    """What the builder has bound."""
    bound = getattr(getattr(network, "states", None), "args", ())
    if not (bound and isinstance(bound[0], Settings)):
        raise TypeError(
            f"network must come from a builder of networks.residual or networks.reversible; got {network!r}"
        )
    return bound[0]


def flow(settings, params, stage):
    """The integration of one stage: the keyword arguments of `ode.integrate`, and theta."""
    theta = params["blocks"][stage]
    steps = refinement.step_count(theta, interpolation=settings.interpolation)
    t1 = settings.time if settings.step is None else settings.step * steps
    if settings.damping is not None:
        length = steps + (settings.interpolation == "linear")
        theta = {**theta, "damping": jnp.broadcast_to(jnp.asarray(settings.damping), (length,))}
    options = {"t1": t1, "steps": steps, "scheme": settings.scheme, "interpolation": settings.interpolation}
    return theta, options


def split(settings, y):
    """The state as the scheme sees it."""
    return tuple(jnp.split(y, 2, axis=-1)) if settings.pair else y


def merge(settings, y):
    """The state as the network sees it."""
    return jnp.concatenate(y, axis=-1) if settings.pair else y


def _init(settings, key, x):
    checks.key("key", key)
    _check_input(settings, x, settings.widths[0], "widths")
    return draw(settings, key, settings.dtype or initializers.float_dtype("x's dtype", x.dtype))


def _states(settings, params, x, probes=None, *, save=True):
    _check_input(settings, x, settings.widths[0], "widths")
    connected = [n != m for n, m in itertools.pairwise(settings.widths[:-1])]
    probes = iter(core.split_probes(probes, len(connected) + sum(connected)))
    y, stretches = x, []
    for stage, connects in enumerate(connected):
        if connects:
            y = _connect(settings, params["connectors"][stage], y, stage)
            probe = next(probes)
            y = _probed(y, None if probe is None else probe[0])
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


@functools.cache
def _with_probes(scheme, field):
    """The scheme for this field with a probe added to every new state: theta is (theta, probe)."""

    def step(_, y, t, h, control):
        y, residual = scheme.step(field, y, t, h, lambda fraction: control(fraction)[0])
        return jax.tree.map(_probed, y, control(1.0)[1]), residual

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


def _probed(y, probe):
    return y if probe is None else y + probe.astype(y.dtype)


def _connect(settings, weights, y, stage):
    if settings.window and stage:
        y = _pool(y, settings.pool)
    if settings.connector == "pad":
        more = settings.widths[stage + 1] - y.shape[-1]
        return jnp.pad(y, (*[(0, 0)] * (y.ndim - 1), (0, more)))
    y = fields.apply(weights["kernel"], y)
    return y + jnp.broadcast_to(weights["bias"], y.shape)


def _pool(y, size):
    if size == 1:
        return y
    if y.shape[1] % size or y.shape[2] % size:
        raise ValueError(f"pool must divide the height and width {y.shape[1:3]}; got {size}")
    return y.reshape(y.shape[0], y.shape[1] // size, size, y.shape[2] // size, size, -1).mean(axis=(2, 4))


def _readout(settings, params, y):
    weights = params["readout"]
    y = y.mean(axis=(1, 2)) if settings.window else y
    return y @ weights["kernel"] + weights["bias"][None, :]


def _sizes(widths, depth, pair):
    widths = tuple(checks.whole(f"widths[{i}]", width) for i, width in enumerate(widths))
    if len(widths) < 3:
        raise ValueError(f"widths must hold at least 3 numbers, input, stages and outputs; got {widths}")
    stages = len(widths) - 2
    depths = (depth,) * stages if not isinstance(depth, tuple | list) else tuple(depth)
    if len(depths) != stages:
        raise ValueError(f"depth must be one number or one for each of {stages} stages; got {depth!r}")
    odd = [width for width in widths[1:-1] if width % 2]
    if pair and odd:
        raise ValueError(f"widths of the stages must be even, positions and velocities side by side; got {odd[0]}")
    return widths, tuple(checks.whole("depth", d) for d in depths)


def _window(window):
    if window is None:
        return ()
    sizes = (window, window) if not isinstance(window, tuple | list) else tuple(window)
    sizes = tuple(checks.whole("window", size) for size in sizes)
    if len(sizes) != 2 or any(size % 2 == 0 for size in sizes):
        raise ValueError(f"window must be odd, one number or (height, width); got {window!r}")
    return sizes


def _weights(weight_variance, initializer):
    if (weight_variance is None) == (initializer is None):
        got = "neither" if initializer is None else f"weight_variance={weight_variance!r} and {initializer!r}"
        raise ValueError(f"exactly one of weight_variance and initializer must be given; got {got}")
    if initializer is not None:
        return checks.instance("initializer", initializer, Initializer, hint="such as initializers.orthogonal(1.0)")
    return initializers.variance_scaling(weight_variance)


def _other(name, variance, weights):
    if variance is None:
        return weights
    return initializers.variance_scaling(checks.variance(name, variance, shape=()))


def _check_time(step, time):
    if (step is None) == (time is None):
        raise ValueError(f"exactly one of step and time must be given; got step={step!r}, time={time!r}")
    checks.finite("time" if step is None else "step", time if step is None else step, shape=())


def _check_input(settings, x, features, source):
    checks.floating("x", x)
    axes = 4 if settings.window else 2
    if x.ndim != axes or x.shape[-1] != features:
        wanted = f"(N, height, width, {features})" if settings.window else f"(N, {features})"
        raise ValueError(f"x must have shape {wanted}, as {source} want; got {tuple(x.shape)}")
    grown = list(itertools.pairwise(settings.widths[:-1]))
    if settings.connector == "pad" and any(m < n for n, m in grown):
        raise ValueError(f"widths must not shrink where connector is 'pad'; got {settings.widths}")
