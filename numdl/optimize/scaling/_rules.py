"""Rules: the size of each leaf at the start, and the factor of its rate."""

import itertools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import PyTree

from numdl import checks, trees
from numdl.optimize.scaling import _laws, _uses
from numdl.optimize.scaling._roles import Roles


class Rule(NamedTuple):
    """Functions of (m_in, m_out): the deviation and the rates, over those of the narrow network."""

    deviation: Callable
    adam: Callable
    sgd: Callable
    heads: bool = False  # whether scores of growing heads are undone, as `_heads` has it


_MUP = Rule(_laws.mup, lambda m_in, m_out: 1 / m_in, lambda m_in, m_out: m_out / m_in, heads=True)
RULES = {
    "standard": Rule(_laws.standard, lambda m_in, m_out: 1.0, lambda m_in, m_out: 1.0),
    "ntk": Rule(_laws.standard, lambda m_in, m_out: m_in**-0.5, lambda m_in, m_out: 1 / m_in),
    "standard with rate per layer": Rule(
        _laws.standard, lambda m_in, m_out: 1 / m_in, lambda m_in, m_out: m_out**0.5 / m_in
    ),
    "mup": _MUP,
    "spectral": _MUP,
}


def rescale(params: PyTree, roles: Roles, rule: str) -> PyTree:
    """The parameters with every leaf's size as the rule wants it, given what it is at the narrow width.

        leaf * deviation(m_in, m_out) / (its size as drawn, over that at the narrow width)

    What the build draws is known from `roles`: a leaf that already has the right law (and every leaf of zeros) stays.
    Under muP what makes queries of heads that widen by m, with scores over the root of it, gets m^(-1/2) on top: a
    leaf, the queries' entries of one, or the gain of the queries' norm.

    Parameters
    ----------
    params : pytree             as build draws them, at any width that `roles` can tell the ratios of
    roles : Roles               of this build
    rule : str                  one of RULES
    Returns
    -------
    pytree                      like params
    Raises
    ------
    ValueError                  no such rule; leaves or shapes that are not the build's; leaves whose mean squares say
                                that they were rescaled before
    TypeError                   params hold no arrays, roles is not a Roles
    Source: Yang et al. 2022, arXiv:2203.03466, table 3.
    """
    params = _outside_of_jit(checks.leaves("params", params))
    checks.instance("roles", roles, Roles, hint="of scaling.roles(build, widths, x)")
    law = _rule(rule)
    leaves, structure = jax.tree.flatten(params)
    rows = _matched("params", params, roles)
    pieces = [_pieces(row, leaf, law) for row, leaf in zip(rows, leaves)]
    factors = [[_factor(piece, law) for piece in each] for each in pieces]
    _refuse_second([*itertools.chain(*pieces)], [*itertools.chain(*factors)], rule)
    factors = [_together(*pair) for pair in zip(pieces, factors)]
    return jax.tree.unflatten(structure, [_times(leaf, factor) for leaf, factor in zip(leaves, factors)])


def multipliers(roles: Roles, rule: str, optimizer: str) -> Any:
    """An optax transformation that multiplies each leaf's update by the factor of its rate.

        optax.chain(optax.adam(rate), multipliers(roles, "mup", "adam"))

    Place it after the optimizer: before it, Adam divides it out again. After `optax.adamw` it also multiplies the
    decay by 1 / m_in; for decay that does not depend on width, chain scale_by_adam, multipliers, add_decayed_weights,
    scale_by_learning_rate. Adam's eps is not scaled, and must stay far below the gradients, which fall with the width.

    Parameters
    ----------
    roles : Roles               of this build
    rule : str                  one of RULES
    optimizer : str             "adam" for updates of size 1 (Adam, Lion, sign), "sgd" for multiples of the gradient
    Returns
    -------
    optax.GradientTransformation
    Raises
    ------
    ValueError, TypeError       no such rule or optimizer, roles is not a Roles; when used, leaves that are not the
                                build's
    Source: Yang et al. 2022, arXiv:2203.03466, table 3.
    """
    import optax

    checks.instance("roles", roles, Roles, hint="of scaling.roles(build, widths, x)")
    checks.one_of("optimizer", optimizer, ("adam", "sgd"))
    law = _rule(rule)
    rate, power = getattr(law, optimizer), {"adam": 1, "sgd": 2}[optimizer]

    def init(params):
        _matched("params", params, roles)
        return optax.EmptyState()

    def update(updates, state, params=None):
        leaves, structure = jax.tree.flatten(updates)
        rows = _matched("updates", updates, roles)
        factors = [rate(*_ratios(row, leaf)) * _undone(row, leaf, law) ** power for row, leaf in zip(rows, leaves)]
        scaled = [_times(leaf, factor) for leaf, factor in zip(leaves, factors)]
        return jax.tree.unflatten(structure, scaled), state

    return optax.GradientTransformation(init, update)


def _outside_of_jit(params):
    jax.tree.map(lambda leaf: checks.concrete("params", leaf), params)
    return params


def _rule(rule):
    return RULES[checks.one_of("rule", rule, tuple(RULES))]


def _matched(name, tree, roles):
    """The rows of the leaves of a tree, which may lack some of the build's."""
    known = {leaf.path: leaf for leaf in roles.leaves}
    for path in trees.names(tree):
        if path not in known:
            raise checks.BadValue(f"{name} must hold the leaves of the build, {', '.join(known)}; got {path!r}")
    return [known[path] for path in trees.names(tree)]


def _ratios(row, leaf):
    if 0 in leaf.shape and tuple(leaf.shape) not in row.shapes:
        raise checks.BadValue(f"params must not be empty at {row.path!r}; got shape {tuple(leaf.shape)}")
    ratios = row.ratios(tuple(leaf.shape))
    if ratios is None:
        raise checks.BadValue(
            f"params must have the shapes of one of the widths of roles, {row.shapes[0]} or {row.shapes[1]} at "
            f"{row.path!r}; got {tuple(leaf.shape)}: at others its axes cannot be told apart"
        )
    return ratios


def _undone(row, leaf, law):
    """What growing heads ask of the leaf on top: a number, or of a leaf with a part an array that broadcasts."""
    if not law.heads:
        return 1.0
    shape = tuple(leaf.shape)
    undone = _known(row, shape, row.undone(shape))
    return undone if row.part is None else np.where(_known(row, shape, row.part.at(shape)), undone, 1.0)


def _known(row, shape, found):
    if found is None:
        raise checks.BadValue(
            f"params must have the shapes of one of the widths of roles, {row.shapes[0]} or {row.shapes[1]} at "
            f"{row.path!r}; got {shape}: at others the width of its heads, or where its queries are, is not known"
        )
    return found


class _Piece(NamedTuple):
    """Entries of a leaf with a law of their own."""

    row: Any
    leaf: Any
    values: Any
    where: Any  # which entries; None: all


def _pieces(row, leaf, law):
    """The leaf as one piece, or the queries' entries and the rest."""
    shape = tuple(leaf.shape)
    if row.part is None or not law.heads:
        return [_Piece(row, leaf, leaf, None)]
    _ratios(row, leaf)
    where, values = np.broadcast_to(_known(row, shape, row.part.at(shape)), shape), np.asarray(leaf)
    return [_Piece(one, leaf, values[each], each) for one, each in zip(row.pieces, (where, ~where))]


def _together(pieces, factors):
    """The factor of the whole leaf: an array where its pieces differ."""
    if len(set(factors)) == 1:
        return factors[0]
    return np.select([piece.where for piece in pieces], factors)


def _factor(piece, law):
    """What the piece must be multiplied by."""
    row, leaf = piece.row, piece.leaf
    if not math.isnan(row.law.square) and not jax.dtypes.issubdtype(leaf.dtype, np.inexact):
        raise checks.BadType(
            f"params must hold floating-point numbers at {row.path!r}; got dtype {leaf.dtype}, shape {leaf.shape}"
        )
    wanted = math.log(law.deviation(*_ratios(row, leaf)) * _undone(row, leaf, law))
    drawn, own = _laws.drawn(row, tuple(leaf.shape)), _uses.mean_square(piece.values)[0]
    if not (own > 0 and row.law.square > 0):
        return 1.0
    if drawn is None:  # neither of the two widths, and no law that is known: what this leaf has
        drawn = math.log(own / row.law.square)
    change = wanted - drawn / 2
    return 1.0 if abs(change) < 1e-9 else math.exp(change)


def _refuse_second(pieces, factors, rule):
    """Refuse if the leaves are, taken together, nearer to what they should become than to what is drawn."""
    nearer, named = 0.0, None
    for (row, leaf, values, _), factor in zip(pieces, factors):
        drawn = _laws.drawn(row, tuple(leaf.shape))
        if factor == 1.0 or drawn is None:
            continue
        square, error = _uses.mean_square(values)
        spread = math.hypot(error / square, row.law.error / row.law.square) + 1e-3
        found, expected = math.log(square / row.law.square) - drawn, 2 * math.log(factor)
        gain = (found**2 - (found - expected) ** 2) / spread**2
        nearer, named = nearer + gain, named or row.path
    if nearer > 0:
        raise checks.BadValue(
            f"params must be as build draws them; got leaves (the first is {named!r}) whose mean squares are already "
            f"those of {rule!r}: rescale is applied once"
        )


def _times(leaf, factor):
    if np.ndim(factor) == 0 and factor == 1.0:
        return leaf
    return leaf * np.asarray(factor, getattr(leaf, "dtype", None))
