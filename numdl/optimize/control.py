"""Training as optimal control: Hamiltonian, costates, and the method of successive approximations.

    minimize  J(theta) = terminal(x_N) + h sum over n of running(x_n, theta_n),    x_{n+1} = x_n + h field(x_n, theta_n)

Pontryagin's maximum principle for the discrete problem, H(x, p, theta) = <p, field(x, theta)> - running(x, theta):

    p_N = -terminal'(x_N),    p_n = p_{n+1} + h dH/dx(x_n, p_{n+1}, theta_n)
    dJ/dtheta_n = -h dH/dtheta(x_n, p_{n+1}, theta_n)                                 what backpropagation computes
    theta_n maximizes H(x_n, p_{n+1}, .)                                              necessary as h -> 0

The states x [examples, ...] are one array, and `terminal` and `running` are means over the examples. theta is a pytree
with time as axis 0 of every leaf, as many entries as steps.

Source: Pontryagin et al. 1962; Li, Chen, Tai & E 2018, arXiv:1710.09513; E, Han & Li 2019, arXiv:1807.01083.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Float, PyTree, ScalarLike

from numdl import checks, trees
from numdl._compiled import as_tree, compiled, jit
from numdl.optimize import _moving_part
from numdl.records import record

SUFFICIENT = 1e-4  # Armijo's fraction of the increase that the slope promises
HALVINGS = 20  # trial steps of one ascent


class Problem(NamedTuple):
    """A control problem: functions that may bind data as `jax.tree_util.Partial`, and the step size."""

    field: Callable  # (x [examples, ...], theta of one time) -> x', shaped like x
    terminal: Callable  # x_N -> scalar, mean over examples
    running: Callable  # (x, theta of one time) -> scalar, mean over examples
    step: float  # h


@record
class ControlHistory:
    """What the method of successive approximations did."""

    loss: jax.Array  # [iterations + 1]: J before each iteration and at the end
    gradient_norm: jax.Array  # [iterations + 1]: |dJ/dtheta|
    gain: jax.Array  # [iterations]: h sum of what maximizing has added to the (augmented) Hamiltonian, >= 0


def objective(problem: Problem, x: Float[ArrayLike, "examples *x"], theta: PyTree) -> Float[Array, ""]:
    """The control problem's cost J(theta) from the initial states; `jax.grad` of it is backpropagation.

        J = terminal(x_N) + step * sum over n of running(x_n, theta_n),    x_{n+1} = x_n + step * field(x_n, theta_n)

    Parameters
    ----------
    problem : Problem           field, terminal, running, step
    x : array [examples, ...]   initial states
    theta : pytree              controls, real floating leaves [steps, ...]
    Returns
    -------
    scalar                      J
    Raises
    ------
    TypeError, ValueError       not a Problem, theta without a common time axis or with leaves that are not real
    Source: the definition; Li, Chen, Tai & E 2018, arXiv:1710.09513.
    """
    x, theta = _check(problem, x, theta)
    return _objective(as_tree(problem), x, theta)


def hamiltonian(
    problem: Problem, x: Float[ArrayLike, "examples *x"], p: Float[ArrayLike, "examples *x"], theta: PyTree
) -> Float[Array, ""]:
    """Pontryagin's Hamiltonian H at one time; gradient descent and the maximum principle both raise it.

        H(x, p, theta) = <p, field(x, theta)> - running(x, theta)

    Parameters
    ----------
    problem : Problem           field, terminal, running, step
    x, p : array [examples, ...]        states, and costates of the same shape
    theta : pytree              controls of one time, real floating leaves
    Returns
    -------
    scalar                      H
    Raises
    ------
    TypeError, ValueError       not a Problem, p shaped unlike x, leaves of theta that are not real
    Source: Li, Chen, Tai & E 2018, arXiv:1710.09513.
    """
    _check_problem(problem)
    x, theta = checks.floating("x", x, least_ndim=1), _moving_part.only_real("theta", theta)
    p = checks.floating("p", p, ndim=x.ndim)
    checks.shape("p", p, x.shape)
    return jnp.vdot(p, problem.field(x, theta)) - problem.running(x, theta)


def states(problem: Problem, x: Float[ArrayLike, "examples *x"], theta: PyTree) -> Float[Array, "times examples *x"]:
    """The trajectory of the states, forward in time.

        x_{n+1} = x_n + step * field(x_n, theta_n)

    Parameters
    ----------
    problem : Problem           field, terminal, running, step
    x : array [examples, ...]   initial states x_0
    theta : pytree              controls, real floating leaves [steps, ...]
    Returns
    -------
    array [steps + 1, examples, ...]    x_0 ... x_N
    Raises
    ------
    TypeError, ValueError       not a Problem, theta without a common time axis or with leaves that are not real
    Source: the definition.
    """
    x, theta = _check(problem, x, theta)
    return _run(as_tree(problem), x, theta)[0]


def costates(
    problem: Problem, path: Float[ArrayLike, "times examples *x"], theta: PyTree
) -> Float[Array, "times examples *x"]:
    """The costates p_0 ... p_N of a trajectory, backward in time: minus the gradient of J with respect to x_n.

        p_N = -terminal'(x_N),    p_n = p_{n+1} + step * dH/dx(x_n, p_{n+1}, theta_n)

    Parameters
    ----------
    problem : Problem           field, terminal, running, step
    path : array [steps + 1, examples, ...]     x_0 ... x_N, of `states`
    theta : pytree              controls, real floating leaves [steps, ...]
    Returns
    -------
    array [steps + 1, examples, ...]    shaped like the path
    Raises
    ------
    TypeError, ValueError       not a Problem, a path whose length is not that of theta and one more
    Source: Li, Chen, Tai & E 2018, arXiv:1710.09513.
    """
    path = checks.floating("path", path, least_ndim=2)
    _, theta = _check(problem, path[0], theta)
    checks.shape("path", path, (checks.length("theta", theta, of="steps", least=0) + 1, *path.shape[1:]))
    return _back(as_tree(problem), path, theta)


@compiled
def _back(problem, path, theta):
    def back(p, now):
        x, local = now
        p = p + (problem.step * jax.grad(hamiltonian, argnums=1)(problem, x, p, local)).astype(p.dtype)
        return p, p

    last = -jax.grad(problem.terminal)(path[-1])
    _, earlier = lax.scan(back, last, (path[:-1], theta), reverse=True)
    return jnp.concatenate([earlier, last[None]])


def gradient(problem: Problem, x: Float[ArrayLike, "examples *x"], theta: PyTree) -> tuple[Float[Array, ""], PyTree]:
    """J and dJ/dtheta by the maximum principle, without differentiating J: equal to `jax.grad(objective)` to rounding.

        dJ/dtheta_n = -step * dH/dtheta(x_n, p_{n+1}, theta_n)

    Parameters
    ----------
    problem : Problem           field, terminal, running, step
    x : array [examples, ...]   initial states
    theta : pytree              controls, real floating leaves [steps, ...]
    Returns
    -------
    J, gradient                 a scalar, and a pytree like theta
    Raises
    ------
    TypeError, ValueError       not a Problem, theta without a common time axis or with leaves that are not real
    Source: Li, Chen, Tai & E 2018, arXiv:1710.09513.
    """
    x, theta = _check(problem, x, theta)
    return _gradient(as_tree(problem), x, theta)


@compiled
def _gradient(problem, x, theta):
    path, running = _run(problem, x, theta)
    slopes = jax.vmap(jax.grad(functools.partial(hamiltonian, problem), argnums=2))
    slope = slopes(path[:-1], _back(problem, path, theta)[1:], theta)
    value = problem.terminal(path[-1]) + problem.step * jnp.sum(running)
    return value, jax.tree.map(lambda g, leaf: (-problem.step * g).astype(leaf.dtype), slope, theta)


def successive_approximations(
    problem: Problem,
    x: Float[ArrayLike, "examples *x"],
    theta: PyTree,
    *,
    iterations: int,
    penalty: ScalarLike = 0.0,
    ascents: int = 10,
    maximize: Callable | None = None,
) -> tuple[PyTree, ControlHistory]:
    """The method of successive approximations (MSA): forward for x, backward for p, maximize H at every time, again.

    With penalty rho > 0 the augmented Hamiltonian keeps the dynamics of both where they were; means over examples,

        H - rho / 2 mean |field(x, theta) - field(x, old)|^2 - rho / 2 mean |dH/dx(theta) - dH/dx(old)|^2

    Then J falls if rho is large enough; rho = 0 may diverge for a long horizon even in linear-quadratic problems.

    Parameters
    ----------
    problem : Problem           field, terminal, running, step
    x : array [examples, ...]   initial states
    theta : pytree              the start, real floating leaves [steps, ...]
    iterations : int            >= 1
    penalty : scalar            rho >= 0
    ascents : int               gradient ascents with backtracking for each maximization, >= 1
    maximize : function         (function of theta, theta, x_n, p_{n+1}) -> theta of one time, instead of them
    Returns
    -------
    theta, ControlHistory       loss, gradient_norm [iterations + 1], gain [iterations]
    Raises
    ------
    TypeError, ValueError       a negative penalty, theta without a common time axis, a count below 1
    Source: Li, Chen, Tai & E 2018, arXiv:1710.09513, algorithms 1 and 2.
    """
    x, theta = _check(problem, x, theta)
    iterations = checks.whole("iterations", iterations)
    ascents = checks.whole("ascents", ascents)
    penalty = checks.finite("penalty", penalty, least=0.0, shape=())
    maximize = _ascent(ascents) if maximize is None else _maximizer(maximize)
    functions = (checks.as_pytree(f) for f in problem[:3])
    return _iterate(Problem(*functions, problem.step), x, theta, penalty, iterations, maximize)


@functools.partial(jit, static_argnums=(4, 5))
def _iterate(problem, x, theta, penalty, iterations, maximize):
    def improve(theta, _):
        value, slope = gradient(problem, x, theta)
        path = states(problem, x, theta)
        improved = functools.partial(_improve, problem, penalty, maximize)
        new, gain = jax.vmap(improved)(path[:-1], costates(problem, path, theta)[1:], theta)
        return new, (value, trees.norm(slope), problem.step * jnp.sum(gain))

    theta, (values, norms, gains) = lax.scan(improve, theta, None, length=iterations)
    value, slope = gradient(problem, x, theta)
    loss, norm = jnp.append(values, value), jnp.append(norms, trees.norm(slope))
    return theta, ControlHistory(loss, norm, gains)


def _improve(problem, penalty, maximize, x, p, old):
    """A greater (augmented) Hamiltonian at one time, and by how much."""
    examples = x.shape[0]

    def motion(theta):
        return problem.field(x, theta), jax.grad(hamiltonian, argnums=1)(problem, x, p, theta)

    velocity, force = motion(old)

    def augmented(theta):
        v, q = motion(theta)
        # A costate belongs to a mean over examples: each example's own is larger by their number.
        gap = jnp.sum((v - velocity) ** 2) / examples + jnp.sum((q - force) ** 2) * examples
        return hamiltonian(problem, x, p, theta) - penalty / 2 * gap

    new = maximize(augmented, old, x, p)
    return new, augmented(new) - augmented(old)


@functools.lru_cache(maxsize=256)
def _ascent(ascents):
    """One function object for each number of ascents: a compiled caller is found again."""
    return functools.partial(_ascend, ascents)


def _ascend(ascents, function, theta, x, p):
    """Gradient ascent; of the steps h, h/2, h/4 ... the first that adds enough is taken, and doubled for the next."""
    dtype = jnp.result_type(*jax.tree.leaves(theta))
    fractions = 0.5 ** jnp.arange(HALVINGS, dtype=dtype)

    def ascend(carry, _):
        theta, size = carry
        value, slope = jax.value_and_grad(function)(theta)
        promised = SUFFICIENT * trees.inner(slope, slope)

        def moved(size):
            return jax.tree.map(lambda leaf, g: leaf + (size * g).astype(leaf.dtype), theta, slope)

        sizes = size * fractions
        enough = jax.vmap(lambda size: function(moved(size)) >= value + size * promised)(sizes)
        best = sizes[jnp.argmax(enough)]
        found = jnp.any(enough)
        theta = jax.tree.map(lambda new, old: jnp.where(found, new, old), moved(best), theta)
        return (theta, jnp.where(found, 2 * best, size)), None

    return lax.scan(ascend, (theta, jnp.ones((), dtype)), None, length=ascents)[0][0]


@compiled
def _objective(problem, x, theta):
    path, running = _run(problem, x, theta)
    return problem.terminal(path[-1]) + problem.step * jnp.sum(running)


@compiled
def _run(problem, x, theta):
    def step(x, local):
        new = x + (problem.step * problem.field(x, local)).astype(x.dtype)
        return new, (new, problem.running(x, local))

    _, (later, running) = lax.scan(step, x, theta)
    return jnp.concatenate([x[None], later]), running


def _maximizer(maximize):
    return checks.accepts("maximize", maximize, 4, "maximize(function, theta, x, p)")


def _check_problem(problem):
    checks.instance("problem", problem, Problem, hint="control.Problem(field, terminal, running, step)")
    for name, function in zip(problem._fields[:3], problem[:3], strict=True):
        checks.accepts(f"problem.{name}", function, *_CALLED[name])
    checks.positive("problem.step", problem.step, shape=())


_CALLED = {"field": (2, "field(x, theta)"), "terminal": (1, "terminal(x)"), "running": (2, "running(x, theta)")}


def _check(problem, x, theta):
    _check_problem(problem)
    x = checks.floating("x", x, least_ndim=1)
    theta = _moving_part.only_real("theta", theta)
    checks.length("theta", theta, of="steps", least=0)
    now = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), theta)
    rate = jax.eval_shape(problem.field, x, now)
    if getattr(rate, "shape", None) != x.shape:
        found = getattr(rate, "shape", rate)
        raise checks.BadValue(f"theta must make problem.field(x, theta) an array of x's shape, {x.shape}; got {found}")
    return x, theta
