"""What a value of a program is, for following paths between layers: fixed, or a function of an earlier value."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from numdl.tracing._scalars import evaluate

MOVES = frozenset(
    (
        *("reshape", "transpose", "squeeze", "expand_dims", "rev", "broadcast_in_dim", "name", "pad", "pvary"),
        *("optimization_barrier", "sharding_constraint", "device_put"),
    )
)
KEPT = MOVES - {"pad"} | {"convert_element_type", "copy", "copy_p", "reduce_precision"}
HIDDEN = -1  # stands among a value's sources for a layer that was not entered
PARTS = frozenset(("slice", "dynamic_slice", "split", "unstack", "gather"))


class Fixed(NamedTuple):
    """A value that does not depend on x."""

    leaf: str | None = None  # the largest parameter leaf in it
    size: int = 0  # how many different numbers, copies by broadcasting not counted
    number: float | None = None  # if it is one known number everywhere
    made: str = "derived"  # "leaf": moved and cast only; "part": cut as well; "scaled": times one number; "derived"
    joined: Any = None  # of whole leaves side by side and nothing else: (axis, ((leaf, length along it), ...))
    levels: tuple = ()  # which of the scans around it go through it, the outermost being 0


def side_by_side(step, values, shapes):
    """The `Fixed.joined` of a concatenation of different whole leaves; None for anything else."""
    if step.name != "concatenate" or any(v.made != "leaf" or v.levels != values[0].levels for v in values):
        return None
    axis, leaves = step.params["dimension"], [value.leaf for value in values]
    if len(set(leaves)) < len(leaves) or len(leaves) < 2:
        return None
    return axis, tuple((leaf, shape[axis]) for leaf, shape in zip(leaves, shapes))


def still_joined(step, value, before, after):
    """A joined value after a step that only moves numbers: where its axis goes, if the axis stays one."""
    if value.joined is None:
        return value
    axis, pieces = value.joined
    if step.name == "transpose":
        axis = step.params["permutation"].index(axis)
    elif step.name == "broadcast_in_dim" and before[axis] == after[step.params["broadcast_dimensions"][axis]]:
        axis = step.params["broadcast_dimensions"][axis]
    elif step.name in ("reshape", "squeeze", "expand_dims"):
        wide = [[i for i, size in enumerate(shape) if size > 1] for shape in (before, after)]
        if [before[i] for i in wide[0]] != [after[i] for i in wide[1]]:
            return value._replace(made="derived", joined=None)
        axis = wide[1][wide[0].index(axis)]
    elif before != after or step.name == "rev":
        return value._replace(made="derived", joined=None)
    return value._replace(joined=(axis, pieces))


def separately(step, value):
    """A weight as it is contracted: joined leaves are weights of their own along an axis of outputs alone."""
    if value.joined is None:
        return value
    axis, place, numbers = value.joined[0], step.weight[0], step.params.get("dimension_numbers")
    if step.name == "dot_general":
        apart = axis not in numbers[0][place] and axis not in numbers[1][place]
    else:
        whole = step.name == "conv_general_dilated" and place == 1 and step.params["feature_group_count"] == 1
        apart = whole and numbers.rhs_spec[0] == axis
    return value if apart else value._replace(made="derived", joined=None)


@dataclasses.dataclass(frozen=True, eq=False)
class Trail:
    """A value that depends on x: an elementwise function of one earlier value, and what lies between."""

    source: Any  # index of a layer, ("input", leaf of x), ("lookup", leaf), ("carry", scan, place), ("mix", count)
    form: tuple = ()  # how it was moved and cut since then
    function: Any = None  # on NumPy arrays; None: the identity
    steps: int = 0  # of the function
    between: frozenset = frozenset()
    reduced: bool = False  # a sum or maximum over some of its axes
    upstream: frozenset = frozenset()  # all sources it depends on


class Path(NamedTuple):
    """How a layer's data operand is made."""

    source: Any  # as in `Trail`
    function: Any  # of the source's value, elementwise, on NumPy arrays; None: the identity
    between: frozenset  # what else lies between: empty where the operand is that function of that source
    starts: bool  # no layer comes before
    first: Any = None  # in a scan, for its first step: the `Path` from outside; None: as the others


class Found(NamedTuple):
    """What was followed, by layer."""

    paths: dict  # layer -> Path
    weights: dict  # layer -> Fixed: the operand that is made of parameters
    biases: dict  # layer -> tuple of Fixed: what is added to its output alone
    products: dict  # layer of data with data -> its operands, each a Trail
    reductions: (
        dict  # layer -> (primitive, elementwise function): what is first summed over, or maximized, of its state
    )


def after(trail, before):
    """A trail that goes on from where another one ended."""
    if trail.function is None or before.function is None:
        function = trail.function or before.function
    else:
        outer, inner = trail.function, before.function
        function = lambda t: outer(inner(t))  # noqa: E731
    return Trail(
        before.source,
        (*before.form, *trail.form),
        function,
        trail.steps + before.steps,
        trail.between | before.between,
        trail.reduced or before.reduced,
        trail.upstream | before.upstream,
    )


def start(source):
    """A trail that begins here."""
    return Trail(source, upstream=frozenset({source}))


def moved(trail, step, place=0):
    """The same numbers, moved or cut; `place` tells the outputs of one step apart, and cuts at other places."""
    settings = {k: v for k, v in step.params.items() if k not in ("sharding", "name")}
    return dataclasses.replace(trail, form=(*trail.form, (step.name, str(settings), place)))


def is_after_a_layer(trail):
    """Whether a layer comes before."""
    return any(isinstance(source, int) for source in trail.upstream)


def newest(trail):
    """The last layer that the value depends on; without one, all that it depends on."""
    layers = [source for source in trail.upstream if isinstance(source, int)]
    return {max(layers)} if layers else trail.upstream


def composed(step, values, arguments):
    """The step after the functions that its operands are: (function, None) of a trail, (None, number) of a number."""
    trails = [isinstance(value, Trail) for value in values]

    def function(t):
        made = [
            (t if inner is None else inner(t)) if moves else np.full(np.shape(t), number)
            for moves, (inner, number) in zip(trails, arguments)
        ]
        return evaluate(step.name, step.params, made)

    return None if step.name in KEPT and arguments[0][0] is None else function


def unknown(t):
    """A function that is followed and not tabulated."""
    return np.full(np.shape(t), np.nan)


def constant(value):
    """A literal or an array that was closed over."""
    if np.size(value) == 1 and getattr(getattr(value, "dtype", np.dtype(float)), "kind", "O") in "fiubV":
        return Fixed(number=number_of(value))
    return Fixed(size=int(np.size(value)))


def number_of(value):
    """The one number that an array holds."""
    return float(np.asarray(value).reshape(-1)[0])


def size_of(program, slot):
    """How many numbers a slot holds."""
    return int(np.prod(getattr(program.avals[slot], "shape", ()), dtype=int))
