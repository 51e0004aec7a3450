"""A table of image layers as a Network: parameters drawn at once, states row by row, equal layers scanned."""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.tree_util import Partial

from numdl import _random, checks, precision, trees
from numdl._compiled import compiled, jit
from numdl.networks import _affine
from numdl.networks._record import Network, fitting, probed, split_probes
from numdl.networks.image._parts import Drawn, Filled, Run
from numdl.records import record, static


class Law(NamedTuple):
    """How a paper draws its weights: deviation(fan_in) of entries that are normal, or uniform around 0."""

    deviation: object
    uniform: bool = False


@record
class Settings:
    """What a builder binds."""

    rows: tuple = static()
    law: Law = static()
    form: str = static()
    channels: int | None = static()
    dtype: object = static()
    weight_variance: object  # fan_in * Var, Gaussian; None: the law
    key: object  # of dropout, or None


def build(rows, law, *, channels, weight_variance, form, dtype, key=None):
    """The Network of a table, the options checked."""
    if weight_variance is not None:
        weight_variance = checks.variance("weight_variance", weight_variance, shape=())
    key = None if key is None else checks.key("key", key)
    settings = Settings(rows, law, form, channels, _affine.asked_dtype(dtype), weight_variance, key)
    return Network(Partial(_init, settings), Partial(_states, settings), Partial(_readout, settings))


def freeze(network, params, x):
    """`image.freeze`."""
    checks.instance("network", network, Network, hint="made by a builder of networks.image")
    if not isinstance(network.states, Partial) or network.states.func is not _states:
        raise checks.BadValue(f"network must be made by a builder of networks.image; got {network!r}")
    _, clean, x = fitting(network, _without(params), x)
    return _entered(clean, _statistics(network.states.args[0], clean, x))


def _init(settings, key, x):
    dtype = _affine.dtype_at_init(key, x, settings.dtype, ndim=4)
    return _draw(settings, key, _picture(settings, x), dtype)


def _picture(settings, x):
    checks.floating("x", x, ndim=4)
    if settings.channels is not None and x.shape[-1] != settings.channels:
        raise checks.BadValue(f"x must have shape (N, height, width, {settings.channels}); got {tuple(x.shape)}")
    return tuple(x.shape[1:])


@functools.partial(jit, static_argnames=("picture", "dtype"))
def _draw(settings, key, picture, dtype):
    """All leaves; what is random comes from one draw, since every generator costs compilation."""
    leaves = _leaves(settings.rows, picture)
    flat, structure = jax.tree.flatten(leaves, is_leaf=lambda leaf: isinstance(leaf, Drawn | Filled))
    total = sum(math.prod(leaf.shape) for leaf in flat if isinstance(leaf, Drawn))
    uniform = settings.law.uniform and settings.weight_variance is None
    # Entries of mean 0 and variance 1
    wide = precision.wide(dtype)
    unit = _random.uniform(key, (total,), wide, -(3**0.5), 3**0.5) if uniform else _random.normal(key, (total,), wide)
    made, begin = [], 0
    for leaf in flat:
        if isinstance(leaf, Filled):
            made.append(jnp.full(leaf.shape, leaf.value, dtype))
            continue
        end = begin + math.prod(leaf.shape)
        part = lax.slice(unit, (begin,), (end,)).reshape(leaf.shape)
        made.append((part * _deviation(settings, leaf.fan_in)).astype(dtype))
        begin = end
    return jax.tree.unflatten(structure, made)


def _deviation(settings, fan_in):
    if settings.weight_variance is None:
        return settings.law.deviation(fan_in)
    return jnp.sqrt(settings.weight_variance / fan_in)


def _leaves(rows, picture):
    """{row: leaves}; those of equal layers with an axis of depth in front."""
    found, before = {}, picture
    for row in rows:
        own = row.chain.leaves(before)
        if row.count is not None:
            deep = lambda leaf, count=row.count: leaf._replace(shape=(count, *leaf.shape))  # noqa: E731
            own = jax.tree.map(deep, own, is_leaf=lambda leaf: isinstance(leaf, Drawn | Filled))
        if own:
            found[row.name] = own
        before = row.chain.shape(before)
    return found


@compiled
def _states(settings, params, x, probes=None):
    return _walk(settings, params, x, probes)[0]


def _walk(settings, params, x, probes):
    """(states, {row: statistics of its batch normalizations})."""
    _check_params(settings, params, x)
    rows = settings.rows[:-1]
    probes = split_probes(probes, len(rows))
    y, states, found = x, [], {}
    for number, (row, probe) in enumerate(zip(rows, probes, strict=True)):
        step = functools.partial(_step, row.chain, _run(settings, number))
        weights = params.get(row.name, {})
        if row.count is None:
            y, (state, statistics) = step(y, (weights, None if probe is None else probe[0]))
            state = state[None]
        else:
            # Unrolled: on a CPU the gradient of a native convolution is many times slower within a loop.
            unroll = row.count if settings.form == "native" else 1
            y, (state, statistics) = lax.scan(step, y, (weights, probe), length=row.count, unroll=unroll)
        states.append(state)
        if statistics:
            found[row.name] = statistics
    return tuple(states), found


def _step(chain, run, y, layer):
    weights, probe = layer
    y, statistics = chain(weights, y, run)
    y = probed(y, probe)
    return y, (y, statistics)


def _run(settings, number):
    return Run(settings.form, None if settings.key is None else jax.random.fold_in(settings.key, number))


@compiled
def _readout(settings, params, y):
    last = settings.rows[-1]
    return last.chain(params.get(last.name, {}), y, _run(settings, len(settings.rows) - 1))[0]


def _check_params(settings, params, x):
    """A dense layer fits one size of picture, and there may be parts for other channels."""
    leaves = _leaves(settings.rows, _picture(settings, x))
    is_leaf = lambda leaf: isinstance(leaf, Drawn | Filled)  # noqa: E731
    flat = jax.tree_util.tree_flatten_with_path(leaves, is_leaf=is_leaf)[0]
    wanted = {trees.name_of(path): leaf.shape for path, leaf in flat}
    have = {trees.name_of(path): jnp.shape(leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]}
    wrong = {name: have.get(name) for name, shape in wanted.items() if have.get(name) != shape}
    if wrong:
        name = next(iter(wrong))
        raise checks.BadValue(
            f"params must fit x of shape {tuple(x.shape)}: {name} must have shape {wanted[name]}; got {wrong[name]}"
        )


@jit
def _statistics(settings, params, x):
    return _walk(settings, params, x, None)[1]


def _without(params):
    """The parameters without statistics written in before."""
    if not isinstance(params, dict):
        return params
    return {name: _without(part) for name, part in params.items() if name not in ("mean", "variance")}


def _entered(params, statistics):
    """The statistics among the parameters."""
    if not isinstance(statistics, dict):
        return statistics
    return params | {name: _entered(params.get(name, {}), part) for name, part in statistics.items()}
