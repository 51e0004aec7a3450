"""MEASURED: the vector field of a game: how the players' gradients change with all parameters, and how it turns.

Twin: theory.games, which says what eigenvalues do to a step.

    >>> import jax.numpy as jnp
    >>> losses = (lambda players, batch: players[0] * players[1], lambda players, batch: -players[0] * players[1])
    >>> found = spectrum(losses, (jnp.asarray(1.0), jnp.asarray(2.0)), None)
    >>> [float(abs(value.imag)) for value in found.eigenvalues], [float(entry) for entry in found.field]
    ([1.0, 1.0], [2.0, -1.0])
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from numdl import checks, trees
from numdl._compiled import jit
from numdl.analysis import _parts
from numdl.records import record, static
from numdl.typing import Loss


@record
class GameSpectrum:
    """The players' gradients at a point, and their Jacobian."""

    eigenvalues: np.ndarray  # [n] complex128, the largest in size first
    jacobian: np.ndarray  # [n, n] float64: of the field
    field: np.ndarray  # [n] float64: each player's gradient of its own loss, one after the other
    sizes: tuple = static()  # coordinates of each player


def spectrum(
    losses: Sequence[Loss], players: Sequence[PyTree], batch: PyTree, *, frozen: str | Sequence[str] = ()
) -> GameSpectrum:
    """MEASURED eigenvalues of a game's vector field: rotation is in imaginary parts, a descent in positive real parts.

        v_i = gradient of losses[i] with respect to players[i],    J = dv / d(all players)

    Dense: it takes n^2 numbers and n^3 operations for n coordinates in all.

    Parameters
    ----------
    losses : sequence           loss(players, batch) -> scalar, one for each player
    players : sequence          a pytree for each; floating leaves move (complex ones as two reals), all others stay
    batch : pytree              what the losses take
    frozen : str or strings     paths of leaves that stay, "0/kernel"
    Returns
    -------
    GameSpectrum                nan where the gradients are not finite
    Raises
    ------
    ValueError, TypeError       losses that are not scalar or not as many as players, a player that does not move
    Source: Mescheder, Nowozin & Geiger 2017, arXiv:1705.10461, eq. (4).
    Twins: theory.games.growth, theory.games.largest_step, theory.games.step_matrix.    Experiment: f14.
    """
    losses, moving, rest = _opened(losses, players, frozen)
    field, jacobian = _linearized(losses, moving, rest, _parts.data("batch", batch))
    jacobian = np.asarray(jacobian, np.float64)
    bad = not np.isfinite(jacobian).all()
    values = np.full(len(jacobian), complex("nan+nanj")) if bad else np.linalg.eigvals(jacobian).astype(complex)
    order = np.argsort(-np.abs(values), kind="stable")
    return GameSpectrum(values[order], jacobian, np.asarray(field, np.float64), tuple(map(_size, moving)))


def _opened(losses, players, frozen):
    for name, value in (("losses", losses), ("players", players)):
        checks.instance(name, value, (tuple, list))
    if len(losses) != len(players) or not losses:
        raise checks.BadValue(f"losses must be one for each of the players, {len(players)}; got {losses!r:.80}")
    call, losses = "loss(players, batch)", enumerate(losses)
    losses = tuple(checks.returning(f"losses[{i}]", loss, 2, call, scalar=True) for i, loss in losses)
    moving, rest = trees.trainable(tuple(players), frozen=frozen, name="players")
    if not all(map(_size, moving)):
        raise checks.BadValue(f"players must each have a leaf that moves; got {players!r:.80}")
    return losses, moving, rest


def _size(part):
    return sum(leaf.size for leaf in jax.tree.leaves(part))


@jit
def _linearized(losses, moving, rest, batch):
    flat, unravel = ravel_pytree(moving)

    def field(flat):
        parts = unravel(flat)
        return jnp.concatenate([ravel_pytree(_own(loss, i, parts, rest, batch))[0] for i, loss in enumerate(losses)])

    return field(flat), jax.jacfwd(field)(flat)


def _own(loss, player, parts, rest, batch):
    """The gradient of a player's loss with respect to its own part."""
    return jax.grad(lambda part: loss(rest.params((*parts[:player], part, *parts[player + 1 :])), batch))(parts[player])
