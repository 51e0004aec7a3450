"""MEASURED: how far a step moves each layer's state: by its own weight, by what it reads, and together."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from numdl import checks, tracing, trees
from numdl._compiled import as_tree, compiled
from numdl._hyperparameters import as_data
from numdl.analysis import _widened
from numdl.tracing._paths import paths


class Places(NamedTuple):
    """What is measured, in this order: layers, leaves that no layer holds, the output."""

    names: tuple
    kinds: tuple  # "layer", "attention", "leaf", "output"
    leaves: tuple  # of each layer: the path of its leaf; of a leaf its own
    held: tuple  # paths of the leaves that layers contract
    last: int  # the last layer that holds a leaf: index into the layers
    reads: tuple  # of each place: places whose size at the start it takes over; empty where there is none


def places(traced):
    """The `Places` of a traced function."""
    layers = [layer for layer in traced.layers if layer.kind != "tap"]
    held = tuple(dict.fromkeys(path for layer in layers for path, _ in layer.made_of))
    if not held:
        raise checks.BadValue(
            f"build must return an apply that contracts a parameter; found none: {', '.join(traced.parameters)}"
        )
    moving = [path for path, uses in zip(traced.parameters, traced.uses) if not uses[0].startswith("not floating")]
    alone = [path for path in moving if path not in held]
    names = [*(layer.name for layer in layers), *alone, "output"]
    kinds = [*("layer" if layer.made_of else "attention" for layer in layers), *("leaf" for _ in alone), "output"]
    leaves = [*(layer.leaf for layer in layers), *alone, None]
    last = max(i for i, layer in enumerate(traced.layers) if layer.made_of)
    reads = [*_sources(traced, layers), *(() for _ in alone), ()]
    return Places(tuple(names), tuple(kinds), tuple(leaves), held, last, tuple(reads))


def _sources(traced, layers):
    """The layers before each one, as places: what a normalization separates is none."""
    found = paths(traced.program, traced.layers, traced.parameters).paths
    place = {index: i for i, index in enumerate(k for k, layer in enumerate(traced.layers) if layer in layers)}
    for index in place:
        path = found.get(index)
        if path is None or path.starts or "normalization" in path.between:
            yield ()
        elif path.source in place:
            yield (place[path.source],)
        else:
            yield tuple(range(place[index]))


class Course(NamedTuple):
    """Mean squares of one width: [S, P] at the start, [S, steps, P] of the changes; and the loss [S, steps + 1]."""

    initial: jax.Array
    own: jax.Array
    passed: jax.Array
    total: jax.Array
    loss: jax.Array


def course(network, optimizer, loss, steps, batch):
    """(Places, Course): the training of all seeds of one width, in one program."""
    x, targets = batch
    traced = tracing.trace(network.apply, jax.tree.map(lambda leaf: leaf[0], network.params), x)
    functions = (as_tree(network.apply), as_data(optimizer), as_tree(loss))
    return places(traced), _course(*functions, network.params, x, targets, width=network.width, steps=steps)


@functools.partial(compiled, static=("width", "steps"))
def _course(apply, optimizer, loss, params, x, targets, width, steps):
    traced = tracing.trace(apply, jax.tree.map(lambda leaf: leaf[0], params), x)
    where, optimizer = places(traced), _widened.transformation("optimizer", optimizer, width)

    def run(params, x, targets):
        moving, rest = trees.trainable(params)

        def cost(moving):
            value = loss(apply(rest.params(moving), x), targets)
            return checks.one_real_number("loss", "loss(outputs, targets)", value)

        def step(carry, _):
            now, state = carry
            value, gradient = jax.value_and_grad(cost)(now)
            updates, state = optimizer.update(gradient, state, now)
            now = jax.tree.map(lambda p, u: (p + u).astype(p.dtype), now, updates)
            return (now, state), (value, changes(now))

        changes, initial = _watched(traced, where, moving, rest, x)
        (end, _), (values, found) = jax.lax.scan(step, (moving, optimizer.init(moving)), length=steps)
        return Course(initial, *found, jnp.append(values, cost(end)))

    return jax.vmap(run, (0, None, None))(params, x, targets)


def is_proportional(network, optimizer):
    """Whether the first update doubles with the gradient: that of sgd does, that of Adam does not."""
    return bool(_doubled(as_data(optimizer), network.params))


@compiled
def _doubled(optimizer, params):
    moving, _ = trees.trainable(jax.tree.map(lambda leaf: leaf[0], params))
    gradients = [jax.tree.map(lambda p, size=size: jnp.full_like(p, size), moving) for size in (1.0, 2.0)]
    one, two = (optimizer.update(gradient, optimizer.init(moving), moving)[0] for gradient in gradients)
    sizes = [(jnp.abs(a).max(), jnp.abs(b).max()) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two))]
    return jnp.all(jnp.stack([(b > 1.5 * a) | ~(a > 0) for a, b in sizes]))


def _watched(traced, where, moving, rest, x):
    """(changes, initial): changes(now) -> mean squares (own, passed, total), each [P], of a move from the start."""
    layers = [i for i, layer in enumerate(traced.layers) if layer.kind != "tap"]
    last, held = traced.layers[where.last], [path in where.held for path in trees.names(moving)]

    def values(moving, visit):
        outputs, states = traced.run(rest.params(moving), x, visit=visit)
        return [states[i] for i in layers], _joined(outputs)

    def stop(layer, state, given):
        # No layer's change reaches the next, so that what is seen is each weight's own; the last one's goes on.
        return (state if layer is last else jax.lax.stop_gradient(state)), state

    def arranged(states, alone, output):
        return jnp.stack([*map(_square, states), *map(_square, alone), _square(output)])

    def changes(now):
        move = jax.tree.map(jnp.subtract, now, moving)
        structure, parts = jax.tree.structure(move), jax.tree.leaves(move)
        alone = [part for part, is_held in zip(parts, held) if not is_held]
        tangent = [part if is_held else jnp.zeros_like(part) for part, is_held in zip(parts, held)]
        direction = jax.tree.unflatten(structure, tangent)
        _, (own, own_output) = jax.jvp(lambda moving: values(moving, stop), (moving,), (direction,))
        after, output = values(now, _seen)
        total, total_output = [b - a for a, b in zip(before, after)], output - before_output
        passed = [change - part for change, part in zip(total, own)]
        nothing = [jnp.zeros(()) for _ in alone]
        return (
            arranged(own, alone, own_output),
            arranged(passed, nothing, total_output - own_output),
            arranged(total, alone, total_output),
        )

    before, before_output = values(moving, _seen)
    sizes = [part for part, is_held in zip(jax.tree.leaves(moving), held) if not is_held]
    return changes, arranged(before, sizes, before_output)


def _seen(layer, state, given):
    return state, state


def _square(value):
    return jnp.mean(jnp.square(value))


def _joined(outputs):
    """All outputs as one vector."""
    return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(outputs)])
