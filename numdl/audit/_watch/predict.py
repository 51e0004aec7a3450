"""Where theory says that a method becomes unstable: an optimizer as a black box, its limit; alone imports theory.

Nothing is read from names or options: on one parameter the responses to an impulse and to a constant gradient say
whether an optimizer is linear (descent, heavy ball, Nesterov) or scale-free with a memory (Adam), and with which rate.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from numdl import _effort, checks
from numdl.theory import descent

NAMES = {  # name: method, momentum
    "sgd": ("gradient_descent", 0.0),
    "momentum": ("polyak", 0.9),
    "nesterov": ("nesterov", 0.9),
    "adam": ("adam", 0.9),
    "adamw": ("adam", 0.9),
}
LONG = 1000  # steps after which a schedule, or a memory, would show
ALIKE = 0.02


@dataclasses.dataclass(frozen=True)
class Method:
    """What theory knows the optimizer as; method "" is none of its methods."""

    method: str = ""
    momentum: float = 0.0
    rate: float | Callable = math.nan  # or function(step)
    why_not: str = ""

    def limit(self, step):
        """Largest stable eigenvalue of the (preconditioned) Hessian at this step; nan unknown, inf at rate 0."""
        rate = float(self.rate(step)) if callable(self.rate) else self.rate
        if not self.method or math.isnan(rate):
            return math.nan
        if rate <= 0:
            return math.inf
        return float(descent.sharpness_limit(self.method, learning_rate=rate, momentum=self.momentum))


def method_of(optimizer: Any, learning_rate: float | Callable | None) -> Method:
    """The optimizer as theory knows it, checked at the door."""
    rate = _rate(learning_rate)
    if optimizer is None:
        return Method(why_not="no optimizer was given", rate=rate)
    if isinstance(optimizer, str):
        method, momentum = NAMES[checks.one_of("optimizer", optimizer, tuple(NAMES))]
        why = "" if callable(rate) or rate == rate else "no learning_rate was given"
        return Method(method, momentum, rate, why)
    if not hasattr(optimizer, "update"):
        checks.function("optimizer", optimizer)
        if learning_rate is None:
            raise checks.BadValue(f"learning_rate must be given with a factory of optimizers; got {learning_rate!r}")
        optimizer = optimizer(learning_rate)
    if not all(callable(getattr(optimizer, name, None)) for name in ("init", "update")):
        raise checks.BadType(f"optimizer must be a name, a factory or an optax transformation; got {optimizer!r:.60}")
    return _recognised(optimizer, rate)


def _rate(learning_rate):
    if learning_rate is None:
        return math.nan
    if callable(learning_rate):
        return checks.accepts("learning_rate", learning_rate, 1, "learning_rate(step)")
    return float(checks.finite("learning_rate", learning_rate, least=0.0, shape=()))


def _recognised(optimizer, rate):
    # What asks for more than gradients, or knows its leaves by name, cannot be tried on one number.
    try:
        found = {name: np.asarray(each, np.float64) for name, each in _responses(optimizer).items()}
    except Exception:
        return Method(why_not="the optimizer cannot be tried on one parameter", rate=rate)
    first, given = found["impulse"][0], callable(rate) or rate == rate
    steady = given or _near(found["late"][0], first)  # Adam's late impulse is another one
    if not first > 0:
        why_not = "its first step is not against the gradient (a warm-up from 0? then name the optimizer)"
    elif not _near(found["elsewhere"][0] - found["elsewhere"][1], first):
        why_not = "its steps depend on the size of the parameters"
    elif _near(first, 10 * found["small"][0]):
        if not steady:
            return Method(why_not="its rate changes by a schedule: hand that in as learning_rate", rate=rate)
        return _linear(found["impulse"] / 1e-2, found["constant"][1] / 1e-2, rate, given)
    elif _near(first, found["small"][0]):
        return _scale_free(found["constant"], found["after"], rate, given)
    else:
        why_not = "it is neither linear in the gradient nor free of its scale"
    return Method(why_not=why_not, rate=rate)


def _scale_free(constant, after, rate, given):
    """Adam's momentum is the factor from one update to the next once gradients are 0."""
    momentum = after[1] / after[0] if after[0] > 0 else math.nan
    if not (given or _near(*constant)) or not 0 < momentum < 1 - ALIKE / 2:
        return Method(why_not="it is scale-free, but not as Adam is", rate=rate)
    return Method("adam", float(momentum), rate if given else float(constant[0]))


def _linear(response, last, rate, given):
    """The method of an impulse response h: eta b^k is heavy ball, eta (1 + b), eta b^2, eta b^3, ... Nesterov."""
    momentum = float(response[2] / response[1]) if response[1] > 1e-6 * response[0] else 0.0
    if _near(response[1], momentum * response[0]):
        method, found = "polyak" if momentum else "gradient_descent", float(response[0])
    elif _near(response[1], momentum**2 * response[0] / (1 + momentum)):
        method, found = "nesterov", float(response[1] / momentum**2)
    else:
        return Method(why_not="its memory is not that of heavy ball or Nesterov", rate=rate)
    if not (given or (momentum < 1 and _near(last, found / (1 - momentum)))):
        return Method(why_not="its steps shrink under a constant gradient", rate=rate)
    return Method(method, momentum, rate if given else found)


def _near(a, b):
    return abs(a - b) <= ALIKE * max(abs(a), abs(b))


def _responses(optimizer):
    """Minus the updates of one parameter, by what its gradients were."""

    def updates(state, gradients, at=0.0):
        def step(state, gradient):
            update, state = optimizer.update(jnp.full(1, gradient), state, jnp.full(1, at))
            return state, -update[0]

        return lax.scan(step, state, gradients)

    @_effort.jit
    def run():
        start, impulse = optimizer.init(jnp.zeros(1)), jnp.zeros(3).at[0].set(1e-2)
        quiet, _ = updates(start, jnp.zeros(LONG))
        worn, constant = updates(start, jnp.full(LONG, 1e-2))
        elsewhere = [updates(start, jnp.full(1, size), at=2.0)[1][0] for size in (1e-2, 0.0)]
        return {
            "impulse": updates(start, impulse)[1],
            "small": updates(start, impulse / 10)[1],
            "late": updates(quiet, impulse)[1],
            "constant": constant[jnp.array([0, -1])],
            "after": updates(worn, jnp.zeros(2))[1],
            "elsewhere": jnp.stack(elsewhere),
        }

    return run()
