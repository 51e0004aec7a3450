"""MEASURED: policy gradients and value functions from episodes, of any dynamics and any Gaussian policy.

    u_t = policy(params, x_t) + sqrt(variance) e_t,    x_{t+1} = dynamics(key, x_t, u_t),    t = 0 .. T-1
    G_t = cost(x_t, u_t) + ... + cost(x_{T-1}, u_{T-1}) + final(x_T)        what is paid from t on, to be small

The functions are not differentiated, but the policy in its parameters. Twin: theory.control.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, Key, PyTree, ScalarLike

from numdl import _random, checks
from numdl._compiled import jit
from numdl.precision import widen
from numdl.records import record


class Task(NamedTuple):
    """What an agent acts in: functions that may bind data as `jax.tree_util.Partial`, and the number of steps."""

    policy: Callable  # (params, x [n]) -> mean of the controls [m]
    dynamics: Callable  # (key, x [n], u [m]) -> x' [n]
    cost: Callable  # (x [n], u [m]) -> scalar
    final: Callable  # x [n] -> scalar
    steps: int  # T


@record
class Episodes:
    """What happened."""

    states: jax.Array  # [episodes, steps + 1, n]
    controls: jax.Array  # [episodes, steps, m]
    costs: jax.Array  # [episodes, steps + 1]: the last is that of the final state
    to_go: jax.Array  # [episodes, steps + 1]: G_t


@record
class FittedValue:
    """A value function, linear in features: V_t(x) = weights[t] . features(x)."""

    weights: jax.Array  # [steps + 1, features]
    residual: jax.Array  # [steps + 1]: root mean square of target - V_t
    rank: jax.Array  # [steps + 1]: of the features at the states seen; below their number, the least weights are taken


def episodes(
    key: Key[Array, ""], params: PyTree, x: Float[ArrayLike, "episodes n"], task: Task, *, variance: ScalarLike
) -> Episodes:
    """MEASURED episodes of a Gaussian policy, one from each initial state.

        u_t = policy(params, x_t) + sqrt(variance) e_t,    e ~ N(0, I)

    Parameters
    ----------
    key : key                   of the controls and the dynamics
    params : pytree             of the policy
    x : array [episodes, n]     initial states
    task : Task                 policy, dynamics, cost, final, steps
    variance : scalar           > 0, of each control
    Returns
    -------
    Episodes                    states, controls, costs, costs to go
    Raises
    ------
    ValueError, TypeError       not a Task, x with other axes, a variance not above 0, no typed key
    Source: the definition.
    Twin: theory.control.value.    Experiment: f11.
    """
    key, task = checks.key("key", key), _task(task)
    x, variance = checks.floating("x", x, ndim=2), checks.positive("variance", variance, shape=())
    return _episodes(key, checks.leaves("params", params), x, task[:4], variance, task.steps)


def policy_gradient(
    params: PyTree,
    seen: Episodes,
    policy: Callable,
    *,
    variance: ScalarLike,
    baseline: Float[ArrayLike, "episodes T"] | ScalarLike = 0.0,
) -> PyTree:
    """MEASURED score-function (REINFORCE) gradients of the cost, one from each episode.

        sum over t of (G_t - b_t) d ln p(u_t | x_t) / d params,    ln p = -|u - policy|^2 / (2 variance) + ...

    b_t may depend on x_t and on other episodes; of these very costs it must not: a value fitted to them makes a bias.

    Parameters
    ----------
    params : pytree             of the policy, those that acted
    seen : Episodes             of `episodes`
    policy : function           (params, x [n]) -> mean of the controls [m]
    variance : scalar           > 0, the one that acted
    baseline : array            b_t, [episodes, steps] or what broadcasts to it
    Returns
    -------
    pytree like params          a leading axis of episodes
    Raises
    ------
    ValueError, TypeError       not Episodes, params without real leaves, a variance not above 0, a baseline's shape
    Source: Williams 1992, Machine Learning 8; Sutton et al. 2000, NeurIPS 12 (costs to go, value baseline).
    Twin: theory.control.policy_gradient.    Experiment: f11.
    """
    params = checks.floats("params", params)
    checks.instance("seen", seen, Episodes)
    policy = checks.returning("policy", policy, 2, "policy(params, x)")
    variance = checks.positive("variance", variance, shape=())
    baseline = checks.finite("baseline", baseline)
    to_go = seen.to_go[:, :-1]
    shape = jnp.shape(baseline)
    if len(shape) > 2 or any(k not in (1, n) for k, n in zip(shape[::-1], to_go.shape[::-1], strict=False)):
        raise checks.BadValue(f"baseline must broadcast to {to_go.shape}; got one of shape {shape}")
    to_go = jnp.asarray(to_go)
    baseline = jnp.broadcast_to(jnp.asarray(baseline, to_go.dtype), to_go.shape)
    return _gradients(params, seen, policy, variance, to_go - baseline)


def value(seen: Episodes, features: Callable, *, bootstrap: bool = False) -> FittedValue:
    """MEASURED value function of the policy that acted, by least squares at every time, backward.

        V_t = argmin over linear V of mean (target - V(x_t))^2,    V_T: final costs
        target = G_t,    or with bootstrap cost(x_t, u_t) + V_{t+1}(x_{t+1})

    If V_t is linear in the features both are unbiased, and the second has less variance; else it has another bias.

    Parameters
    ----------
    seen : Episodes             of `episodes`
    features : function         x [n] -> [p]
    bootstrap : bool            temporal differences instead of what was paid to the end
    Returns
    -------
    FittedValue                 weights [T + 1, p], residual and rank [T + 1]
    Raises
    ------
    ValueError, TypeError       not Episodes, features that do not take one state
    Source: Bradtke & Barto 1996, Machine Learning 22 (least-squares temporal differences), a finite horizon.
    Twin: theory.control.value.    Experiment: f11.
    """
    checks.instance("seen", seen, Episodes)
    features = checks.returning("features", features, 1, "features(x)")
    return _fit(seen, features, checks.flag("bootstrap", bootstrap))


@functools.partial(jit, static_argnames="steps")
def _episodes(key, params, x, functions, variance, steps):
    policy, dynamics, cost, final = functions

    def step(x, key):
        chance, moved = jax.random.split(key)
        means = checks.shape("policy(params, x)", jax.vmap(lambda x: policy(params, x))(x), (len(x), None))
        u = means + jnp.sqrt(variance).astype(x.dtype) * _random.normal(chance, means.shape, x.dtype)
        later = checks.shape("dynamics(key, x, u)", jax.vmap(dynamics)(jax.random.split(moved, len(x)), x, u), x.shape)
        return later.astype(x.dtype), (x, u, jax.vmap(cost)(x, u))

    last, (states, controls, costs) = lax.scan(step, x, jax.random.split(key, steps))
    states = jnp.concatenate([states, last[None]])
    costs = jnp.concatenate([costs, jax.vmap(final)(last)[None]])
    to_go = jnp.cumsum(costs[::-1], axis=0)[::-1]
    return Episodes(*(jnp.swapaxes(part, 0, 1) for part in (states, controls, costs, to_go)))


@jit
def _gradients(params, seen, policy, variance, above):
    def surrogate(params, states, controls, above):
        means = jax.vmap(lambda x: policy(params, x))(states)
        return -jnp.sum(above[:, None] * (controls - means) ** 2) / (2 * variance)

    gradient = jax.vmap(jax.grad(surrogate), in_axes=(None, 0, 0, 0))
    return gradient(params, seen.states[:, :-1], seen.controls, above)


@functools.partial(jit, static_argnames="bootstrap")
def _fit(seen, features, bootstrap):
    def back(after, now):
        x, cost, to_go = now
        rows = widen(jax.vmap(features)(x))
        target = cost + after if bootstrap else to_go
        weights, _, rank, _ = jnp.linalg.lstsq(rows, target)
        fitted = rows @ weights
        return fitted, (weights, jnp.sqrt(jnp.mean((target - fitted) ** 2)), rank)

    rows = [jnp.swapaxes(widen(part), 0, 1) for part in (seen.states, seen.costs, seen.to_go)]
    return FittedValue(*lax.scan(back, jnp.zeros_like(rows[1][0]), rows, reverse=True)[1])


def _task(task):
    checks.instance("task", task, Task)
    names = {"policy": (2, "(params, x)"), "dynamics": (3, "(key, x, u)"), "cost": (2, "(x, u)"), "final": (1, "(x)")}
    functions = [
        checks.returning(f"task.{name}", getattr(task, name), count, name + taken, scalar=name in ("cost", "final"))
        for name, (count, taken) in names.items()
    ]
    return Task(*functions, checks.whole("task.steps", task.steps))
