"""Newton's method with conjugate gradients: Hessian-vector products, a trust region or a line search, nothing formed.

    B v = f''(params) v = d/dt f'(params + t v)        forward over reverse, linearized once per step

The outer loop, its options and its record are those of `second_order`.
"""

from collections.abc import Callable

import jax

from numdl import checks
from numdl.optimize import _moving_part, second_order
from numdl.optimize.second_order import Local
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


def minimize(function, params, *, steps, method="trust_region", **options):
    """Minimize function(params) -> scalar by Newton–CG: (params, SecondOrderHistory).

    "trust_region" is Steihaug's method: it leaves saddles along directions of negative curvature. "armijo" and "wolfe"
    cut the conjugate gradients where curvature turns negative, so every step descends; "levenberg_marquardt" raises its
    damping there. Options are those of `second_order.minimize`.

    Parameters
    ----------
    function : function         params -> scalar; bind data with `jax.tree_util.Partial(function, x=x)`
    params : pytree
    steps : int                 at most this many
    Source: Steihaug 1983; Nocedal & Wright 2006, algorithms 4.1, 7.1 and 7.2.
    """
    objective = Smooth(checks.returning("function", function, 1, "function(params)", scalar=True))
    return second_order.minimize(objective, params, steps=steps, method=method, **options)
