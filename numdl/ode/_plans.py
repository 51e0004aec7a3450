"""What a layer-parallel solve may be asked for, looked at before any work."""

import math
from collections.abc import Callable
from typing import Any, TypedDict

import jax
from jax.sharding import AxisType, Mesh, NamedSharding

from numdl import checks
from numdl.ode import _doors, adjoints, schemes
from numdl.ode._depth import Plan
from numdl.ode._multigrid import Spread
from numdl.ode.tableaus import Tableau


class Options(TypedDict, total=False):
    """The keywords that all layer-parallel solves share; `DEFAULTS` says what is taken where one is left out.

    Exactly one of tableau and scheme is given.
    """

    tableau: Tableau | None  # explicit
    scheme: schemes.Scheme | None  # one that solves no equations
    t0: Any  # the first time
    interpolation: str | None  # None, "constant" or "linear": how theta depends on time
    coarse: Callable | None  # (t, h, y, theta) -> y at t + h, theta as it is on the slice, leaves [layers, ...]
    tolerance: Any  # stop at this residual, >= 0; None: at 100 units of rounding
    mesh: Mesh | None  # the devices
    axis: str | None  # of the mesh, whose size divides the slices


DEFAULTS = Options(
    tableau=None, scheme=None, t0=0.0, interpolation=None, coarse=None, tolerance=None, mesh=None, axis=None
)


def equal(steps, slices):
    """The coarsening that cuts the steps into so many slices."""
    steps, slices = checks.whole("steps", steps), checks.whole("slices", slices)
    if steps % slices:
        raise checks.BadValue(f"slices must divide the {steps} steps; got {slices}")
    return (steps // slices,)


def taken(options):
    """The options with their defaults, and none that is not one."""
    unknown = sorted(set(options) - set(DEFAULTS))
    if unknown:
        raise checks.BadType(f"options must be of {', '.join(DEFAULTS)}; got {', '.join(unknown)}")
    return {**DEFAULTS, **options}


def problem(field, y0, theta, t1, steps, options):
    """The arguments of a solve, checked as those of `integrate` are, without an adjoint."""
    t0, tableau, scheme, interpolation = (options[name] for name in ("t0", "tableau", "scheme", "interpolation"))
    if isinstance(tableau, Tableau) and not tableau.explicit:  # residuals of its equations would have no place
        raise checks.BadValue(f"tableau must be explicit; got {tableau}")
    if options["mesh"] is not None:
        y0, theta = jax.tree.map(_unbound, (y0, theta))
    return _doors.problem(field, y0, theta, t0, t1, steps, tableau, scheme, interpolation, adjoints.direct)[:-1]


def plan(steps, coarsening, iterations, relaxations, options, adjoint_iterations=None):
    """The checked plan of a solve; steps None: not known yet."""
    iterations = checks.whole("iterations", iterations)
    if adjoint_iterations is not None:
        adjoint_iterations = checks.whole("adjoint_iterations", adjoint_iterations)
    coarsening = checks.wholes("coarsening", coarsening)
    found = Plan(
        coarsening,
        iterations,
        adjoint_iterations or iterations,
        checks.whole("relaxations", relaxations, least=0),
        _coarse(options["coarse"], coarsening),
        _tolerance(options["tolerance"]),
        _spread(options["mesh"], options["axis"]),
    )
    return found if steps is None else fitting(found, checks.whole("steps", steps))


def fitting(plan, steps):
    """The plan, if the steps can be cut as it says."""
    if steps % math.prod(plan.coarsening):
        raise checks.BadValue(f"coarsening must have a product that divides the {steps} steps; got {plan.coarsening}")
    slices, mesh = steps // plan.coarsening[0], plan.spread.mesh
    if mesh is not None and slices % mesh.shape[plan.spread.axis]:
        raise checks.BadValue(
            f"coarsening must leave a multiple of the {mesh.shape[plan.spread.axis]} devices along mesh axis "
            f"{plan.spread.axis!r}; got {slices} slices"
        )
    return plan


def _coarse(coarse, coarsening):
    if coarse is None:
        return None
    coarse = checks.accepts("coarse", coarse, 4, "coarse(t, h, y, theta)")
    if len(coarsening) > 1:
        raise checks.BadValue(f"coarsening must have one entry where coarse is given; got {coarsening}")
    return coarse


def _tolerance(tolerance):
    if tolerance is None:
        return None
    return float(checks.finite("tolerance", checks.concrete("tolerance", tolerance), least=0.0, shape=()))


def _spread(mesh, axis):
    if mesh is None:
        if axis is not None:
            raise checks.BadValue(f"axis must be None without a mesh; got {axis!r}")
        return Spread()
    mesh = checks.instance("mesh", mesh, Mesh, hint="such as jax.make_mesh((8,), ('depth',))")
    axis = checks.one_of("axis", axis, mesh.axis_names)
    return Spread(_automatic(mesh), axis)


def _automatic(mesh):
    """The same devices with axes that jax follows: explicit ones would have to be threaded through the user's field."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def _unbound(leaf):
    """An array where it lies, without explicit axes."""
    placed = getattr(leaf, "sharding", None)
    if isinstance(leaf, jax.core.Tracer) or not isinstance(placed, NamedSharding) or placed.mesh.empty:
        return leaf
    return jax.device_put(leaf, NamedSharding(_automatic(placed.mesh), placed.spec))
