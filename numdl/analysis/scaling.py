"""MEASURED: how activations and their changes grow with the width, and how the best learning rate moves.

`coordinate_check` trains the network at several widths for a few steps and fits powers of the width, apart for

    own       dW h     the change of a layer's output by its own weight, what it reads held at the start
    passed    the rest: what the weight makes of the changes before it
    total     own + passed

Sums of two powers come in slowly with the width, their parts do not: under a standard start with a rate for each layer
all own parts are constant, and it is the output's passed part that grows, as n^(1/2). `transfer` trains at a grid of
rates and reports both flanks of the loss, since the least of a flat valley is noise; `sensitivity` is the height of
the valley. What theory says stands in theory.scaling; `expected` takes its numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import ArrayLike, Float64, PyTree

from numdl import checks, tracing
from numdl.analysis import _coordinates, _flanks, _widened
from numdl.analysis._flanks import Transfer
from numdl.analysis._slopes import CoordinateCheck, judged

__all__ = ["CoordinateCheck", "Transfer", "coordinate_check", "sensitivity", "transfer"]


def coordinate_check(
    build: Callable[..., tuple],
    batch: PyTree,
    widths: Sequence[int],
    steps: int,
    *,
    optimizer: Any,
    loss: Callable | None = None,
    seeds: int = 1,
    expected: Mapping[str, float] | None = None,
) -> CoordinateCheck:
    """MEASURED powers of the width of every layer's size at the start and change in training, and a verdict for each.

        log rms = slope log width + constant,   over the widths; own, passed, total as in the module

    A layer passes if its own change keeps its size, and its output does so at the start; the output passes if neither
    part of its change grows. Slopes are held against `expected`, and must be within 1/4 of it, since powers are halves:
    those of the first change, where nothing is a consequence of something else, and if all pass those of the last step.
    `culprits` are the leaves whose rate or deviation explains what fails. Known as the coordinate check of muP.

    Parameters
    ----------
    build : function            build(width) -> (apply, params); with several seeds build(width, seed)
    batch : pair of pytrees     x [N, ...], targets: the same at every width
    widths : ints               three or more, rising; with several seeds two or more
    steps : int                 of training, >= 1
    optimizer : optax transformation, or function of the width that returns one
    loss : function             loss(outputs, targets) -> real scalar; None: half the squared error, in the mean
    seeds : int                 networks per width: standard errors are over them; of one, from the fit's residuals
    expected : mapping          name -> slope that a change should have; 0 for what it does not name
    Returns
    -------
    CoordinateCheck             slopes and standard errors, `verdict`, `passes`, `culprits`; prints as a table
    Raises
    ------
    ValueError, TypeError       too few widths, layers that come or go with the width, bad functions or numbers
    Source: Yang et al. 2022, arXiv:2203.03466, D.1.    Twin: theory.scaling.exponents.    Experiment: g9.
    """
    widths, steps, seeds, (batch, loss) = _arguments(build, batch, widths, steps, seeds, loss)
    _widened.check_optimizer("optimizer", optimizer)
    where = _coordinates.places(tracing.trace(*_widened.pair(build, widths[0], 0, seeds), batch[0]))
    expected = _expected(expected, where.names)
    found = []
    for width in widths:
        network = _widened.built(build, width, seeds)
        made = _widened.transformation("optimizer", optimizer, width)
        at, course = _coordinates.course(network, optimizer, loss, steps, batch)
        if at.names != where.names:
            differ = ", ".join(sorted(set(at.names) ^ set(where.names))) or "another order"
            raise checks.BadValue(f"build must give the same layers at every width; got {differ} at width {width} only")
        found.append(jax.device_get(course))
    return judged(where, widths, found, expected, _coordinates.is_proportional(network, made))


def transfer(
    build: Callable[..., tuple],
    batch: PyTree,
    widths: Sequence[int],
    rates: Sequence[float],
    *,
    steps: int,
    optimizer: Callable,
    loss: Callable | None = None,
    seeds: int = 1,
    target: float | None = None,
) -> Transfer:
    """MEASURED flanks of the final loss against the learning rate at each width, and how they move.

        left: the least rate that reaches the target,     upper: that from which on it is not reached any more,
        right: the largest rate that leaves the loss finite and no higher than it was

    All lie between rates of the grid, in the logarithm.

    Parameters
    ----------
    build : function            build(width) -> (apply, params); with several seeds build(width, seed)
    batch : pair of pytrees     x [N, ...], targets: the same at every width
    widths : ints               two or more, rising
    rates : numbers             three or more, rising
    steps : int                 of training, >= 1
    optimizer : function        optimizer(rate) -> optax transformation; the rate is traced
    loss : function             loss(outputs, targets) -> real scalar; None: half the squared error, in the mean
    seeds : int                 networks per width
    target : number             None: halfway, in the logarithm, from the first loss to the worst width's best
    Returns
    -------
    Transfer                    loss [W, R, S], best [W], left, upper, right [W, S]; octaves from first to last width
    Raises
    ------
    ValueError, TypeError       too few widths or rates, bad functions or numbers
    Twin: theory.scaling.exponents.    Experiment: g11.
    """
    widths, steps, seeds, (batch, loss) = _arguments(build, batch, widths, steps, seeds, loss, fewest=2)
    rates = _rates(rates)
    checks.accepts("optimizer", optimizer, 1, "optimizer(rate)")
    target = None if target is None else float(checks.finite("target", target, shape=()))
    networks = (_widened.built(build, width, seeds) for width in widths)
    found = [_flanks.trained(network, optimizer, loss, steps, batch, rates) for network in networks]
    return _flanks.flanks(widths, rates, found, target)


def sensitivity(
    *, rates: Sequence[float], loss: ArrayLike, first: ArrayLike
) -> Float64[np.ndarray, "..."] | np.float64:
    """MEASURED learning-rate sensitivity: how far the final loss is from the best, in the mean over a range of rates.

        mean over ln(rate) of min(loss(rate), first)  -  min over rates of loss

    A loss that is not finite counts as `first`. Each rate of a grid counts for its part of the range, in the logarithm:
    on an even grid this is the plain mean.

    Parameters
    ----------
    rates : numbers [R]         three or more, rising: the range is part of the definition
    loss : array [R, ...]       after training at each rate, as of `Transfer.loss`; nan and inf where it diverged
    first : array [...]         before training
    Returns
    -------
    array [...]                 in units of the loss; nan where no rate brings the loss below `first`
    Raises
    ------
    ValueError, TypeError       rates that do not rise, another number of losses, shapes that do not fit
    Source: Wortsman et al. 2023, arXiv:2309.14322, section 2.2.    Experiments: g13, g14.
    """
    rates = _rates(rates)
    loss, first = _losses("loss", loss), _losses("first", first)
    checks.shape("loss", loss, (len(rates), *first.shape))
    first = np.where(np.isfinite(first), first, np.nan)
    mean, best = _flanks.deviation(rates, loss, first)
    return np.where(best < first, mean - best, np.nan)[()]


def _losses(name, value):
    return np.asarray(checks.concrete(name, checks.array(name, value)), np.float64)


def _arguments(build, batch, widths, steps, seeds, loss, fewest=3):
    """(widths, steps, seeds, (batch, loss)), all checked."""
    seeds, steps = checks.whole("seeds", seeds), checks.whole("steps", steps)
    _widened.check_build(build, seeds)
    fewest = 2 if seeds > 1 else fewest
    widths = checks.wholes("widths", widths, fewest=fewest)
    if list(widths) != sorted(set(widths)):
        raise checks.BadValue(f"widths must rise; got {checks.shown(widths)}")
    return widths, steps, seeds, _widened.check_batch(batch, loss)


def _rates(rates):
    values = np.asarray(checks.sequence("rates", rates))
    if len(values) < 3 or (values <= 0).any() or (np.diff(values) <= 0).any():
        raise checks.BadValue(f"rates must be three or more positive numbers that rise; got {checks.shown(rates)}")
    return values


def _expected(expected, names):
    expected = {} if expected is None else expected
    if not isinstance(expected, Mapping):
        raise checks.BadType(f"expected must be a mapping of names to slopes; got {checks.shown(expected)}")
    for name, slope in expected.items():
        if name not in names:
            raise checks.BadValue(f"expected must name places of {', '.join(names)}; got {name!r}")
        checks.finite(f"expected[{name!r}]", slope, shape=())
    return np.array([float(expected.get(name, 0.0)) for name in names])
