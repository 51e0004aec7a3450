"""Residual networks: a layer is a step of an ODE solver, forward Euler being the usual ResNet.

    y_{l+1} = y_l + h F(y_l; theta_l),    h = T / depth

`fields` says which F there are, `stages` how widths change and what parameters look like. Any explicit tableau of
`numdl.ode` may take the step; the parameters are functions of time, constant on steps or linear between grid times.
`refine` cuts the steps of a network, `with_tableau` exchanges its solver: is it an ODE? `unroll` hands out its
right-hand side along its own trajectory.

    >>> import jax
    >>> from numdl import activations
    >>> from numdl.networks import residual
    >>> physics = {"activation": activations.tanh, "weight_variance": 1.0, "bias_variance": 0.0}
    >>> net, x = residual.network(widths=(3, 3, 1), depth=4, time=1.0, **physics), jax.numpy.ones((5, 3))
    >>> finer, theta = residual.refine(net, net.init(jax.random.key(0), x), factor=2)
    >>> [stretch.shape for stretch in finer.states(theta, x)]
    [(8, 5, 3)]
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float, PyTree, ScalarLike

from numdl import checks
from numdl.networks import _batch_statistics, _record, _stage_options, fields, stages
from numdl.networks.stages import Options
from numdl.ode import adjoints, refinement, schemes, tableaus
from numdl.ode.tableaus import Tableau

SKIPS = ("unit", "gate", "fixup")


def network(
    *,
    widths: Sequence[int],
    depth: int | Sequence[int],
    activation: Callable[[Array], Array],
    bias_variance: ScalarLike,
    block: str = "one_layer",
    hidden: int | None = None,
    damping: ScalarLike | None = None,
    norm: str = "none",
    skip: str = "unit",
    tableau: Tableau = tableaus.euler,
    adjoint: Callable = adjoints.checkpointed,
    **options: Unpack[Options],
) -> stages.StagedNetwork:
    """A residual network (ResNet, neural ODE on a fixed grid), whose `apply` needs no more memory than its adjoint.

        y_{l+1} = y_l + h F(y_l; theta_l),    h = T / depth        one step of `tableau`, Euler's by default

    Parameters
    ----------
    widths : sequence of int    input, one for each stage, outputs; channels if `window` is given
    depth : int or tuple        steps of each stage, >= 1
    activation : function       elementwise
    bias_variance : scalar      Var(b_i), Gaussian, of all biases
    block : str                 one_layer, two_layer, symmetric or antisymmetric, see `fields`
    hidden : int                width inside a two_layer or symmetric block, the stage's own if None
    damping : scalar            of the antisymmetric block, >= 0
    norm : str                  none, or batch before the activation of a one_layer or two_layer block, see `freeze`
    skip : str                  unit; gate (a trained number before F, 0 at first: SkipInit); fixup (two_layer: first
                                kernels times (all blocks)^-1/2, second kernels 0)
    tableau : Tableau           explicit
    adjoint : function          how `apply` is differentiated, see `ode.adjoints`
    **options : Options         laws of the weights, step or time, window and more, see `stages.Options`
    Returns
    -------
    stages.StagedNetwork              x [N, widths[0]], or [N, height, width, channels] -> outputs [N, widths[-1]]
    Raises
    ------
    TypeError, ValueError       fewer than three widths, an unknown option, an implicit tableau, hidden or damping of
                                another block, two laws for the weights or none, step and time both or neither
    Source: He et al. 2016, arXiv:1512.03385; as an equation Haber & Ruthotto 2017, arXiv:1705.03341; De & Smith 2020,
    arXiv:2002.10444 (gate); Zhang et al. 2019, arXiv:1901.09321 (fixup, m = 2, a bias for every unit).
    """
    checks.accepts("activation", activation, 1, "activation(x)")
    checks.one_of("block", block, fields.BLOCKS)
    checks.instance("tableau", tableau, Tableau, hint="such as tableaus.euler")
    if not tableau.explicit:
        raise checks.BadValue(f"tableau must be explicit; got {tableau}")
    _check_damping(block, damping)
    branch = _branch(block, norm, skip)
    layout = functools.partial(_layout, branch, block, _stage_options.inner_width(block, hidden))
    field = fields.single(block, activation, **branch)
    motion = stages.Motion(schemes.runge_kutta(tableau), field, layout, damping=damping, skip=skip)
    return stages.build(motion, widths=widths, depth=depth, bias_variance=bias_variance, adjoint=adjoint, **options)


class Flow(NamedTuple):
    """A stage of a network as a differential equation along its own trajectory."""

    field: object  # (y [...], theta of one time) -> y': for one example or a batch
    theta: object  # leaves [steps, ...]: at the beginning of each step
    states: jax.Array  # [steps, N, ...]: y at the beginning of each step
    step: jax.Array  # []: h


def unroll(network: stages.StagedNetwork, params: PyTree, x: Float[ArrayLike, "N ..."], *, stage: int = 0) -> Flow:
    """The right-hand side of a stage, its parameters and states at the beginning of every step, and h.

    The state is what the network sees, positions and velocities side by side where there are two.

    Parameters
    ----------
    network : Network           of this module or of `reversible`
    params : pytree             of `network.init`
    x : array [N, ...]          the batch
    stage : int                 from 0
    Returns
    -------
    Flow                        field, theta [steps, ...], states [steps, N, ...], step
    Raises
    ------
    ValueError, TypeError       a network of another builder, params or x that do not fit, no such stage
    """
    settings, params = stages.admitted(network, params)
    stage = checks.whole("stage", stage, least=0, most=len(settings.depths) - 1)
    x = checks.floating("x", x, least_ndim=1)
    theta, options = stages.flow(settings, params, stage)
    states = network.states(params, x)
    ends = [i for i, (n, m) in enumerate(zip(settings.widths[:-2], settings.widths[1:-1])) for _ in range(1 + (n != m))]
    place = max(i for i, owner in enumerate(ends) if owner == stage)
    first = _record.last_state(states[:place], x)
    before = jnp.concatenate([first[None].astype(states[place].dtype), states[place][:-1]])
    theta = jax.tree.map(lambda leaf: leaf[: options["steps"]], theta)
    return Flow(functools.partial(_right_hand_side, settings), theta, before, options["t1"] / options["steps"])


def refine(network: stages.StagedNetwork, params: PyTree, *, factor: int) -> tuple[stages.StagedNetwork, PyTree]:
    """The same functions of time on `factor` times as many steps.

    Nothing is approximated: theta(t) and T stay, h is divided. Exact powers of two keep times exact.

    Parameters
    ----------
    network : Network           of this module or of `reversible`
    params : pytree             of `network.init`
    factor : int                >= 1
    Returns
    -------
    (Network, params)           leaves of the blocks with factor times as many steps
    Raises
    ------
    ValueError, TypeError       a network of another builder, params that do not fit, a factor below 1
    """
    settings, params = stages.admitted(network, params)
    factor = checks.whole("factor", factor)
    interpolation = settings.interpolation
    finer = tuple(
        refinement.prolong(
            theta, steps=factor * refinement.step_count(theta, interpolation=interpolation), interpolation=interpolation
        )
        for theta in params["blocks"]
    )
    changes = {"depths": tuple(factor * depth for depth in settings.depths)}
    if settings.step is not None:
        changes["step"] = settings.step / factor
    return stages.from_settings(dataclasses.replace(settings, **changes)), {**params, "blocks": finer}


def with_tableau(network: stages.StagedNetwork, tableau: Tableau) -> stages.StagedNetwork:
    """The same differential equation, solved by another explicit tableau.

    Parameters
    ----------
    network : Network           of this module
    tableau : Tableau           explicit, such as tableaus.rk4
    Returns
    -------
    Network                     it takes the parameters of the first
    Raises
    ------
    ValueError, TypeError       an implicit tableau, a network whose state is a pair, or of another builder
    """
    settings = stages.settings_of(network)
    checks.instance("tableau", tableau, Tableau, hint="such as tableaus.rk4")
    if settings.pair:
        raise checks.BadValue(
            f"network must have a Runge-Kutta step; got {settings.scheme.name}, whose state is a pair"
        )
    if not tableau.explicit:
        raise checks.BadValue(f"tableau must be explicit; got {tableau}")
    return stages.from_settings(dataclasses.replace(settings, scheme=schemes.runge_kutta(tableau)))


def freeze(network: stages.StagedNetwork, params: PyTree, x: Float[ArrayLike, "N ..."]) -> PyTree:
    """The parameters with the statistics of this batch written in: every example is then on its own.

    y = network.apply(freeze(network, params, x), x) is network.apply(params, x), up to rounding. Without a batch
    normalization they are the parameters that were given.

    Parameters
    ----------
    network : Network           of this module; with norm="batch" Euler's, the parameters constant on steps
    params : pytree             of `network.init`
    x : array [N, ...]          the batch
    Returns
    -------
    pytree                      params with "mean" and "variance" [steps, m] beside gain and shift
    Raises
    ------
    ValueError, TypeError       a network of another builder, tableau or interpolation, params or x that do not fit
    """
    settings, params = stages.admitted(network, params)
    _, params, x = _record.fitting(network, params, x)
    if not any("gain" in theta for theta in params["blocks"]):
        return params
    euler = settings.scheme is schemes.runge_kutta(tableaus.euler)
    if not euler or settings.interpolation != "constant":
        raise checks.BadValue(
            "network must have Euler's steps and parameters that are constant on steps; "
            f"got {settings.scheme.name}, {settings.interpolation}"
        )
    flows = [unroll(network, params, x, stage=stage) for stage in range(len(settings.depths))]
    return {**params, "blocks": tuple(_with_statistics(flow) for flow in flows)}


def _with_statistics(flow):
    def known(theta, y):
        u = fields.inner(theta, y)
        return _batch_statistics.statistics(u, axis=tuple(range(u.ndim - 1)))

    found = jax.vmap(known)(flow.theta, flow.states)
    return {**flow.theta, "mean": found.mean, "variance": found.variance}


def _right_hand_side(settings, y, theta):
    slope = settings.scheme.derivative(settings.field, 0.0, stages.split(settings, y), theta)
    return stages.merge(settings, slope)


def _layout(branch, block, hidden, width, window):
    return fields.layout(block, width, hidden, window, **branch)


def _branch(block, norm, skip):
    """What `fields` is told of the branch."""
    if checks.one_of("norm", norm, fields.NORMS) != "none" and block not in ("one_layer", "two_layer"):
        raise checks.BadValue(f"norm must be none unless block is one_layer or two_layer; got {norm!r} for {block}")
    if checks.one_of("skip", skip, SKIPS) == "fixup" and block != "two_layer":
        raise checks.BadValue(f"skip must not be fixup unless block is two_layer; got {block}")
    return {"norm": norm, "gated": skip == "gate"}


def _check_damping(block, damping):
    if (damping is not None) != (block == "antisymmetric"):
        raise checks.BadValue(
            f"damping must be given for the antisymmetric block and no other; got {damping!r} for {block}"
        )
    if damping is not None:
        checks.finite("damping", damping, least=0.0, shape=())
