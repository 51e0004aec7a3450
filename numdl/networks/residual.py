"""Residual networks: a layer is a step of an ODE solver, forward Euler being the usual ResNet.

    y_{l+1} = y_l + h F(y_l; theta_l),    h = T / depth

`fields` says which F there are, `stages` how widths change and what parameters look like. Any explicit tableau of
`numdl.ode` may take the step; the parameters are functions of time, constant on steps or linear between grid times.
`refine` cuts the steps of a network, `with_tableau` exchanges its solver: is it an ODE? `unroll` hands out its
right-hand side along its own trajectory.
"""

import dataclasses
import functools
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp

from numdl import checks
from numdl.networks import _record, fields, stages
from numdl.networks.stages import Options
from numdl.ode import adjoints, refinement, schemes, tableaus
from numdl.ode.tableaus import Tableau


def network(
    *,
    widths,
    depth,
    activation,
    bias_variance,
    block="one_layer",
    hidden=None,
    damping=None,
    tableau=tableaus.euler,
    adjoint=adjoints.checkpointed,
    **options: Unpack[Options],
) -> stages.Network:
    """A residual network; a `stages.Network`, whose `apply` needs no more memory than its adjoint.

    Parameters
    ----------
    widths : sequence of int    input, one for each stage, outputs; channels if `window` is given
    depth : int or tuple        steps of each stage
    activation : function       elementwise
    block : str                 one_layer, two_layer, symmetric or antisymmetric: see `fields`
    bias_variance : scalar      Var(b_i), Gaussian, of all biases
    hidden : int                width inside a two_layer block, the stage's own if None
    damping : scalar            of the antisymmetric block, >= 0
    tableau : Tableau           explicit
    adjoint : function          how `apply` is differentiated, see `ode.adjoints`
    options                     laws of the weights, step or time, window, ...: see `stages.Options`
    Raises
    ------
    TypeError, ValueError       an unknown option, an implicit tableau, hidden or damping of another block, ...
    """
    checks.accepts("activation", activation, 1, "activation(x)")
    checks.one_of("block", block, fields.BLOCKS)
    checks.instance("tableau", tableau, Tableau, hint="such as tableaus.euler")
    if not tableau.explicit:
        raise checks.BadValue(f"tableau must be explicit; got {tableau}")
    _check_block(block, hidden, damping)
    layout = functools.partial(_layout, block, hidden)
    motion = stages.Motion(schemes.runge_kutta(tableau), fields.single(block, activation), layout, damping=damping)
    return stages.build(motion, widths=widths, depth=depth, bias_variance=bias_variance, adjoint=adjoint, **options)


class Flow(NamedTuple):
    """A stage of a network as a differential equation along its own trajectory."""

    field: object  # (y [...], theta of one time) -> y': for one example or a batch
    theta: object  # leaves [steps, ...]: at the beginning of each step
    states: jax.Array  # [steps, N, ...]: y at the beginning of each step
    step: jax.Array  # []: h


def unroll(network, params, x, *, stage=0):
    """The right-hand side of a stage, its parameters and states at the beginning of every step, and h.

    The state is what the network sees: positions and velocities side by side where there are two.
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


def refine(network, params, *, factor):
    """The same functions of time on `factor` times as many steps: (network, params).

    Nothing is approximated: theta(t) and T stay, h is divided. Exact powers of two keep times exact.
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


def with_tableau(network, tableau):
    """The same differential equation, solved by another explicit tableau."""
    settings = stages.settings_of(network)
    checks.instance("tableau", tableau, Tableau, hint="such as tableaus.rk4")
    if settings.pair:
        raise checks.BadValue(
            f"network must have a Runge-Kutta step; got {settings.scheme.name}, whose state is a pair"
        )
    if not tableau.explicit:
        raise checks.BadValue(f"tableau must be explicit; got {tableau}")
    return stages.from_settings(dataclasses.replace(settings, scheme=schemes.runge_kutta(tableau)))


def _right_hand_side(settings, y, theta):
    slope = settings.scheme.derivative(settings.field, 0.0, stages.split(settings, y), theta)
    return stages.merge(settings, slope)


def _layout(block, hidden, width, window):
    return fields.layout(block, width, hidden, window)


def _check_block(block, hidden, damping):
    if hidden is not None:
        checks.whole("hidden", hidden)
        if block not in ("two_layer", "symmetric"):
            raise checks.BadValue(
                f"hidden must be None unless block is two_layer or symmetric; got {hidden} for {block}"
            )
    if (damping is not None) != (block == "antisymmetric"):
        raise checks.BadValue(
            f"damping must be given for the antisymmetric block and no other; got {damping!r} for {block}"
        )
    if damping is not None:
        checks.finite("damping", damping, least=0.0, shape=())
