"""Newton's method with conjugate gradients: Hessian-vector products, a trust region or a line search, nothing formed.

    B v = f''(params) v = d/dt f'(params + t v)        forward over reverse, linearized once per step

The outer loop, its options and its record are those of `second_order`.
"""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, PyTree

from numdl import checks
from numdl.optimize import _moving_part, second_order
from numdl.optimize.second_order import Local, SecondOrderHistory
from numdl.records import record


@record
class Smooth:
    """A twice differentiable function of the parameters."""

    function: Callable  # params -> scalar

    def value(self, params):
        """function(params)."""
        return self.function(params)

    def within(self, rest):
        """The same of the part of the parameters that moves, see `trees.trainable`."""
        return Smooth(_moving_part.of_moving(self.function, rest))

    def local(self, params):
        """Value, gradient, and the product with the Hessian; the gradient is linearized once."""

        def slope(p):
            value, gradient = jax.value_and_grad(self.function)(p)
            return gradient, value

        gradient, product, value = jax.linearize(slope, params, has_aux=True)
        return Local(value, gradient, product)


def minimize(
    function: Callable[[PyTree], Array],
    params: PyTree,
    *,
    steps: int = 100,
    method: str = "trust_region",
    **options: Any,
) -> tuple[PyTree, SecondOrderHistory]:
    """Minimize a function by Newton's method with conjugate gradients (Newton–CG, truncated Newton).

    Parameters
    ----------
    function : function         params -> scalar; bind data with `jax.tree_util.Partial(function, x=x)`
    params : pytree             floating leaves move (complex ones as two reals), all others stay as they are
    steps : int                 at most this many
    method : str                "trust_region" is Steihaug's: it leaves saddles along directions of negative curvature;
                                "armijo", "wolfe" cut the conjugate gradients where curvature turns negative, so that
                                every step descends; "levenberg_marquardt" raises its damping there
    **options : Any             of `second_order.minimize`: radius, damping, inner_iterations, tolerance, ...
    Returns
    -------
    params, SecondOrderHistory
    Raises
    ------
    ValueError, TypeError       unknown method, a count below 1, a function that is not a scalar, ...
    Source: Steihaug 1983; Nocedal & Wright 2006, algorithms 4.1, 7.1 and 7.2.    Experiments: d3, d5.
    """
    objective = Smooth(checks.returning("function", function, 1, "function(params)", scalar=True))
    return second_order.minimize(objective, params, steps=steps, method=method, **options)
