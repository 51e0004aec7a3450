"""Games: each player descends on a loss of its own, which all players change.

    v_i = gradient of losses[i] with respect to players[i]

    simultaneous     every player moves along v of one point
    alternating      one after the other: each sees where those before it have gone
    extragradient    v is taken where a simultaneous step would lead, and followed from where it started
    consensus        along v + consensus * gradient of |v|^2 / 2, which pulls towards points where all gradients vanish

Any optimizer of optax turns gradients into steps; a generative adversarial network is a game of two players.
theory.games says which of these converges, and how fast; analysis.games measures what it takes for that.

>>> import jax, jax.numpy as jnp, optax
>>> losses = (lambda players, batch: players[0] * players[1], lambda players, batch: -players[0] * players[1])
>>> start = jnp.asarray(1.0), jnp.asarray(1.0)
>>> play = lambda method: descend(losses, start, optax.sgd(0.5), jnp.zeros(20), method=method)[0]
>>> [f"{sum(w**2 for w in play(method)):.3f}" for method in ("simultaneous", "extragradient")]
['173.472', '0.031']
"""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PyTree, ScalarLike

from numdl import checks, trees
from numdl._compiled import as_tree, compiled
from numdl._hyperparameters import as_data
from numdl.optimize.train import _stepping
from numdl.typing import Loss

if TYPE_CHECKING:
    import optax


def descend(
    losses: Sequence[Loss],
    players: Sequence[PyTree],
    optimizer: "optax.GradientTransformation | Sequence[optax.GradientTransformation]",
    batches: PyTree,
    *,
    method: str,
    consensus: ScalarLike = 0.0,
) -> tuple[tuple[PyTree, ...], Float[Array, "steps players"]]:
    """The players after one step for each batch, and their losses before each step; pure: jit, vmap and grad it.

        players[i] <- players[i] + update(v_i)        where v is taken: the table of the module

    An extragradient step looks ahead with the optimizer's own step, whose memory is then as it was; both gradients see
    the same batch.

    Parameters
    ----------
    losses : sequence           loss(players, batch) -> scalar, one for each player
    players : sequence          a pytree for each; floating leaves move (complex ones as two reals), all others stay
    optimizer : GradientTransformation      of optax, or a sequence with one for each player
    batches : pytree            every leaf [steps, ...]
    method : str                one of METHODS
    consensus : scalar          weight >= 0 of the gradient of |v|^2 / 2; 0 for the other methods
    Raises
    ------
    TypeError, ValueError       losses that are not scalar or not as many as players, no optax transformation, no such
                                method, leaves with different numbers of steps, a player without a floating leaf
    Source: Korpelevich 1976; Mescheder et al. 2017, arXiv:1705.10461; Gidel et al. 2019, arXiv:1802.10551.
    """
    moving, game = _admitted(losses, players, optimizer)
    game = game._replace(consensus=_weight(method, consensus))
    batches = _stepping.steps_of_batches(batches)
    last, found = _descend(as_tree(game), moving, batches, method=method)
    return game.rest.params(last), found


class _Game(NamedTuple):
    """What does not move: the functions below take it first, then the moving parts, the memories and a batch."""

    losses: tuple
    rest: trees.Rest
    optimizers: tuple
    consensus: Any


@functools.partial(compiled, static=("method",))
def _descend(game, moving, batches, method):
    def step(state, batch):
        return _STEPS[method](game, *state, batch), _values(game, state[0], batch)

    memories = tuple(one.init(part) for one, part in zip(game.optimizers, moving, strict=True))
    (moving, _), found = lax.scan(step, (moving, memories), batches)
    return moving, found


def _values(game, parts, batch):
    return jnp.stack([loss(game.rest.params(parts), batch) for loss in game.losses])


def _own(game, i, parts, batch):
    """The gradient of a player's loss with respect to its own part."""
    return jax.grad(lambda own: _values(game, (*parts[:i], own, *parts[i + 1 :]), batch)[i])(parts[i])


def _field(game, parts, batch):
    return tuple(_own(game, i, parts, batch) for i in range(len(parts)))


def _moved(game, gradients, parts, memories):
    """(parts, memories) after the optimizers' step along given gradients."""
    import optax

    each = zip(game.optimizers, gradients, memories, parts, strict=True)
    updates, memories = zip(*(one.update(v, memory, part) for one, v, memory, part in each), strict=True)
    return optax.apply_updates(parts, updates), memories


def _simultaneous(game, parts, memories, batch):
    return _moved(game, _field(game, parts, batch), parts, memories)


def _alternating(game, parts, memories, batch):
    for i, one in enumerate(game.optimizers):
        alone = game._replace(optimizers=(one,))
        ((part,), (memory,)) = _moved(alone, (_own(game, i, parts, batch),), parts[i : i + 1], memories[i : i + 1])
        parts, memories = (*parts[:i], part, *parts[i + 1 :]), (*memories[:i], memory, *memories[i + 1 :])
    return parts, memories


def _extragradient(game, parts, memories, batch):
    ahead, _ = _simultaneous(game, parts, memories, batch)
    return _moved(game, _field(game, ahead, batch), parts, memories)


def _consensus(game, parts, memories, batch):
    field, back = jax.vjp(lambda parts: _field(game, parts, batch), parts)
    pulled = jax.tree.map(lambda v, pull: v + game.consensus * pull, field, back(field)[0])
    return _moved(game, pulled, parts, memories)


_STEPS = {
    "simultaneous": _simultaneous,
    "alternating": _alternating,
    "extragradient": _extragradient,
    "consensus": _consensus,
}
METHODS = tuple(_STEPS)


def _admitted(losses, players, optimizer):
    checks.instance("losses", losses, (tuple, list))
    count = len(checks.instance("players", players, (tuple, list)))
    if not count or count != len(losses):
        raise checks.BadValue(f"losses must be one for each of the {count} players; got {losses!r:.80}")
    checked = [
        checks.returning(f"losses[{i}]", losses[i], 2, "loss(players, batch)", scalar=True) for i in range(count)
    ]
    moving, rest = trees.trainable(tuple(players), name="players")
    if not all(jax.tree.leaves(part) for part in moving):
        raise checks.BadValue(f"players must each have a floating leaf; got {players!r:.80}")
    return moving, _Game(tuple(checked), rest, _optimizers(optimizer, count), 0.0)


def _weight(method, consensus):
    checks.one_of("method", method, METHODS)
    consensus = checks.variance("consensus", consensus, shape=())
    if method != "consensus" and not isinstance(consensus, jax.core.Tracer) and consensus:
        raise checks.BadValue(f"consensus must be 0 for the method {method}; got {consensus!r}")
    return consensus


def _optimizers(optimizer, count):
    if not isinstance(optimizer, (tuple, list)) or hasattr(optimizer, "update"):
        return (as_data(_stepping.transformation("optimizer", optimizer)),) * count
    if len(optimizer) != count:
        raise checks.BadValue(f"optimizer must be one, or one for each of the {count} players; got {len(optimizer)}")
    return tuple(as_data(_stepping.transformation(f"optimizer[{i}]", one)) for i, one in enumerate(optimizer))
