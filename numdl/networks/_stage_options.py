"""What a network of stages may be asked for: every option once, with its type, its default and its check."""

from collections.abc import Callable
from typing import NamedTuple, TypedDict

from numdl import checks
from numdl.networks import _affine
from numdl.networks._stage_parameters import Settings, freeze
from numdl.networks.initializers import Initializer
from numdl.ode import adjoints, schemes

CONNECTORS = ("affine", "pad")
INTERPOLATIONS = ("constant", "linear")


class Motion(NamedTuple):
    """What moves the state through a stage."""

    scheme: schemes.Scheme
    field: object  # (t, y, theta) -> y', or a pair of such functions
    layout: Callable  # (width of the state, window) -> {name: (shape, who draws it)}, see `fields.layout`
    pair: bool = False  # the state is two halves, side by side
    damping: object = None  # of the antisymmetric block, a scalar
    skip: str = "unit"  # what a rule for depth does to the weights, of `_skips.SKIPS`


class Options(TypedDict, total=False):
    """The keywords that all builders of networks of stages share; `DEFAULTS` says what is taken where one is left out.

    Exactly one of weight_variance and initializer is given, and exactly one of step and time.
    """

    weight_variance: float  # fan_in * Var of the kernels' entries, Gaussian
    initializer: Initializer  # any other law of the kernels
    second_weight_variance: float  # of a two_layer block's second kernel, where it differs
    connector_weight_variance: float  # of the maps that change the width, where it differs
    readout_weight_variance: float  # of the last map, where it differs
    step: float  # h
    time: float  # T of each stage, h = T / depth
    interpolation: str  # of the parameters in time: "constant" on a step, or "linear" between grid times
    window: int | tuple[int, int]  # odd: convolutions over pictures [N, H, W, C]
    pool: int  # averages squares of this size before every stage but the first
    connector: str  # "affine", or "pad" with zeros
    dtype: object  # of the parameters; the input's if None


DEFAULTS = Options(
    weight_variance=None,
    initializer=None,
    second_weight_variance=None,
    connector_weight_variance=None,
    readout_weight_variance=None,
    step=None,
    time=None,
    interpolation="constant",
    window=None,
    pool=1,
    connector="affine",
    dtype=None,
)


def settings(motion, widths, depth, bias_variance, adjoint, options):
    """The `Settings` of a network of stages, everything checked.

    Raises
    ------
    TypeError, ValueError       an unknown option, fewer than three widths, two laws or none, two clocks or none, ...
    """
    options = _complete(options)
    widths, depths = _sizes(widths, depth, motion.pair)
    window = _window(options["window"])
    return Settings(
        widths=widths,
        depths=depths,
        window=window,
        pool=checks.whole("pool", options["pool"]),
        scheme=motion.scheme,
        field=motion.field,
        layouts=tuple(freeze(motion.layout(width, window)) for width in widths[1:-1]),
        pair=motion.pair,
        interpolation=checks.one_of("interpolation", options["interpolation"], INTERPOLATIONS),
        adjoint=_adjoint(motion.scheme, adjoint),
        connector=checks.one_of("connector", options["connector"], CONNECTORS),
        dtype=_affine.asked_dtype(options["dtype"]),
        bias_variance=checks.variance("bias_variance", bias_variance, shape=()),
        damping=motion.damping,
        skip=motion.skip,
        **_laws(options),
        **_clock(options["step"], options["time"]),
    )


def inner_width(block, hidden):
    """The width asked for inside a block, checked; None where it is the stage's own."""
    if hidden is None:
        return None
    if block not in ("two_layer", "symmetric"):
        raise checks.BadValue(f"hidden must be None unless block is two_layer or symmetric; got {hidden} for {block}")
    return checks.whole("hidden", hidden)


def _complete(options):
    unknown = [name for name in options if name not in DEFAULTS]
    if unknown:
        raise checks.BadType(f"options must be among {', '.join(DEFAULTS)}; got {unknown[0]}")
    return DEFAULTS | options


def _laws(options):
    weights = _affine.law(options["weight_variance"], options["initializer"])
    others = {
        f"{whose}_weights": _affine.law_or(f"{whose}_weight_variance", options[f"{whose}_weight_variance"], weights)
        for whose in ("second", "connector", "readout")
    }
    return {"weights": weights, **others}


def _clock(step, time):
    clocks = {"step": step, "time": time}
    given = {name: checks.finite(name, value, shape=()) for name, value in clocks.items() if value is not None}
    if len(given) != 1:
        raise checks.BadValue(f"exactly one of step and time must be given; got step={step!r}, time={time!r}")
    return clocks | given


def _adjoint(scheme, adjoint):
    checks.accepts("adjoint", adjoint, 5, "adjoint(recurrence, y, shared, drive, save)")
    if adjoint is adjoints.reversible and scheme.inverse is None:
        raise checks.BadValue(
            f"adjoint must not be reversible where the scheme has no inverse; got scheme {scheme.name}"
        )
    return adjoint


def _sizes(widths, depth, pair):
    widths = checks.wholes("widths", widths, fewest=0)
    if len(widths) < 3:
        raise checks.BadValue(f"widths must hold at least 3 numbers, input, stages and outputs; got {widths}")
    stages = len(widths) - 2
    depths = (depth,) * stages if not isinstance(depth, tuple | list) else tuple(depth)
    if len(depths) != stages:
        raise checks.BadValue(f"depth must be one number or one for each of {stages} stages; got {depth!r}")
    odd = [width for width in widths[1:-1] if width % 2]
    if pair and odd:
        raise checks.BadValue(f"widths of the stages must be even, positions and velocities side by side; got {odd[0]}")
    return widths, tuple(checks.whole("depth", d) for d in depths)


def _window(window):
    if window is None:
        return ()
    sizes = (window, window) if not isinstance(window, tuple | list) else tuple(window)
    sizes = tuple(checks.whole("window", size) for size in sizes)
    if len(sizes) != 2 or any(size % 2 == 0 for size in sizes):
        raise checks.BadValue(f"window must be odd, one number or (height, width); got {window!r}")
    return sizes
