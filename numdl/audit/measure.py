"""MEASURED: the evidence that instruments give. The only module of the audit that imports `analysis`."""

import contextlib
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from numdl import trees
from numdl.analysis import attention, descent, initialization, layers, scaling
from numdl.audit._measured import attending as attention_watch
from numdl.audit._measured import black_box, cases, described, functions, heads, labels, programs, tangent
from numdl.audit.evidence import Chain, Signal, Widths, empty

MOST_PROBED = 128  # examples whose states are looked at
MATVECS = 12
WIDER = 16  # examples that are looked at at several widths
WIDER_STEPS = 2


def signal(case: Any, traced: Any) -> tuple[Signal | None, Chain | None, Any]:
    """(states and gradients of the layers, the chain of weights, gradient of the loss); None where there is no layer.

    Parameters
    ----------
    case : Case                 what `examine` was given
    traced : Traced             the network with its layers found; None: it could not be traced
    """
    x, y = case.x, case.y
    if case.separate and case.examples > MOST_PROBED:
        x, y = cases.take(x, slice(0, MOST_PROBED)), cases.take(y, slice(0, MOST_PROBED))
    here, near = (case.slope(moving, case.x, case.y)[1] for moving in (case.moving, case.nudged(case.moving)))
    if traced is None or not traced.layers:
        return None, None, here
    loss = case.form.loss_against(y)
    flow = layers.probe(case.plain, case.moving, x, loss=loss)
    return _signal(case, flow, traced, here, near), _chain(case, x, loss), here


def _chain(case, x, loss):
    try:
        found = initialization.explain(case.moving, apply=case.plain, x=x, loss=loss)
    except (ValueError, TypeError, NotImplementedError) as error:
        return empty(Chain, unknown=f"the weights could not be followed: {error}")
    return Chain(
        names=found.names,
        breaks=found.breaks,
        function=found.function,
        unknown=found.unknown or "",
        fan_in=found.fan_in,
        fan_out=found.fan_out,
        weight_variance=found.weight_variance,
        bias_variance=found.bias_variance,
        input_square=float(found.input_square),
        length=found.length,
        log_gradient=found.log_gradient,
    )


def _signal(case, flow, traced, gradient, near):
    many = {name.partition("[")[0] for name in flow.names if "[" in name}
    roles = traced.roles()
    stepped = {name for name in many if not _stacked(name, roles)}
    moves = lambda leaf: bool(np.any(np.nan_to_num(np.asarray(leaf, np.float32), nan=1.0) != 0))  # noqa: E731
    both = zip(*map(jax.tree.leaves, (gradient, near)), strict=True)
    still = [not (moves(here) or moves(there)) for here, there in both]
    names = trees.names(case.moving)
    wide = lambda name: np.asarray(getattr(flow, name), np.float64)  # noqa: E731
    identical = _identical(case, traced, gradient)
    return Signal(
        names=flow.names,
        kinds=flow.kinds,
        nonlinearities=flow.nonlinearities,
        notes=flow.notes,
        first_nonfinite=int(flow.first_nonfinite),
        recurrent=tuple(name.partition("[")[0] in stepped for name in flow.names),
        state_rms=wide("state_rms"),
        state_max=wide("state_max"),
        gradient_rms=wide("state_gradient_rms"),
        saturated=wide("saturated"),
        dead=wide("dead"),
        rank=wide("effective_rank"),
        cosine=wide("mean_cosine"),
        fan_in=wide("fan_in"),
        weight_variance=wide("weight_variance"),
        identical=np.array([identical.get(name.partition("[")[0].partition("#")[0], np.nan) for name in flow.names]),
        largest=float(min(jnp.finfo(layer.dtype).max for layer in traced.layers)),
        leaf_names=names,
        leaf_still=np.array(still),
        stops=_stops(case, still) if any(still) else (),
        leaf_rms=np.array([_rms(leaf) for leaf in jax.tree.leaves(case.moving)]),
        leaf_gradient_rms=np.array([_rms(leaf) for leaf in jax.tree.leaves(gradient)]),
    )


def _stops(case, still):
    """Where the gradients of leaves that get none end."""
    program = jax.make_jaxpr(case.plain)(case.moving, case.x)
    rest = [False] * (len(program.in_avals) - len(still))
    return programs.stops(program, [*still, *rest])


def _stacked(name, roles):
    """Whether the steps of a scanned layer have a weight each: depth, not time."""
    return any(
        axes is not None and axes.steps for leaf, axes in roles.items() if leaf in name.split("+") or leaf == name
    )


def _rms(leaf):
    return float(np.sqrt(np.mean(np.square(np.asarray(leaf, np.float64))))) if np.size(leaf) else float("nan")


def _identical(case, traced, gradient):
    """Share of a layer's units that are copies of another, weights and gradients alike, and so stay: {layer: share}."""
    names = trees.names(case.moving)
    arrays = dict(zip(names, zip(*map(jax.tree.leaves, (case.moving, gradient)), strict=True), strict=True))
    found = {}
    for layer in traced.layers:
        axes, (weight, slope) = layer.leaf_axes, arrays.get(layer.leaf, (None, None))
        if axes is None or weight is None or not axes.outputs or weight.size > 4e6:
            continue
        units = np.concatenate([_units(each, axes.outputs) for each in (weight, slope)], 1)
        if len(units) > 1:
            found[layer.name.partition("#")[0]] = 1 - (len(np.unique(units, axis=0)) - 1) / (len(units) - 1)
    return found


def _units(leaf, outputs):
    """[units, numbers]; gradients rounded, since sums of equal terms in another order differ in the last digit."""
    moved = np.moveaxis(np.asarray(leaf, np.float64), outputs, range(len(outputs)))
    moved = moved.reshape(int(np.prod(moved.shape[: len(outputs)])), -1)
    size = np.abs(moved).max(initial=0.0)
    return np.round(moved / size, 5) if size > 0 and np.isfinite(size) else moved


def sharpness(case: Any) -> float:
    """Largest eigenvalue of the loss's Hessian on the batch, by a few Lanczos steps; nan without a second derivative.

    Parameters
    ----------
    case : Case                 what `examine` was given
    """
    draw = np.random.default_rng(5)
    start = jax.tree.map(lambda p: jnp.asarray(draw.standard_normal(p.shape), p.dtype), case.moving)
    try:
        return float(case.run(_sharpness, case.moving, (case.x, case.y), start))
    except (NotImplementedError, TypeError, ValueError):  # no second derivative
        return float("nan")


def _sharpness(form, moving, batch, start):
    loss = lambda at, batch: form.cost(at, *batch)  # noqa: E731
    return descent.sharpness(loss, moving, batch, start=start, num_matvecs=MATVECS).value


def attending(case: Any, found: Signal | None) -> Any:
    """What the trial calls at the end of each training: `record()` is the Attention seen, None where there is none.

    Parameters
    ----------
    case : Case                 what `examine` was given
    found : Signal or None      whose layers say whether there is attention
    """
    return attention_watch.Watch(case, attention.logits, found)


def widths(case: Any) -> Widths | None:
    """MEASURED powers of the width: a coordinate check with the user's optimizer; None without `build`.

    Parameters
    ----------
    case : Case                 what `examine` was given
    """
    if case.build is None:
        return None
    batch = tuple(cases.take(part, slice(0, WIDER)) if case.separate else part for part in (case.x, case.y))
    check = scaling.coordinate_check(
        lambda width: tuple(case.build(width)[:2]),
        batch,
        case.widths,
        WIDER_STEPS,
        optimizer=lambda width: _of_width(case, width),
        loss=case.loss,
    )
    faster = np.where(np.nan_to_num(check.own, nan=-np.inf) >= np.nan_to_num(check.passed, nan=-np.inf), 0, 1)
    pick = lambda own, passed: np.where(faster == 0, own, passed)  # noqa: E731
    return Widths(
        widths=check.widths,
        names=check.names,
        verdicts=check.verdicts,
        culprits=check.culprits,
        change=pick(check.own, check.passed),
        error=pick(check.own_error, check.passed_error),
        initial=check.initial,
    )


def _of_width(case, width):
    """The transformation that `build` names for this width, or the user's own."""
    made = case.build(width)
    return made[2] if len(made) > 2 else case.transformation


@contextlib.contextmanager
def _timed(seconds, part):
    began = time.perf_counter()
    yield
    seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - began


def everything(case: Any) -> dict:
    """Every measured part of the evidence: {field: record}, with seconds and notes.

    Parameters
    ----------
    case : Case                 what `examine` was given
    """
    seconds, found = {}, {}
    timed = functools.partial(_timed, seconds)
    with timed("widths"):
        found["widths"] = widths(case)
    with timed("loss"):
        found["loss"], traced = heads.measure(case)
    with timed("signal"):
        found["signal"], found["chain"], gradient = signal(case, traced)
    with timed("function"):
        found["function"] = functions.measure(case)
    with timed("data"):
        found["data"] = described.measure(case, labels.told(found["loss"]))
    with timed("optimizer"):
        found["optimizer"] = black_box.measure(case, gradient)
    with timed("kernel"):
        found["kernel"] = tangent.measure(case)
    found["seconds"] = seconds
    return found
