"""Training and its alternatives: everything takes functions (a loss, a control problem), never a network.

>>> import jax.numpy as jnp
>>> from numdl.optimize import gauss_newton
>>> rosenbrock = lambda p: jnp.stack([10 * (p[1] - p[0] ** 2), 1 - p[0]])
>>> params, history = gauss_newton.minimize(rosenbrock, jnp.asarray([-1.2, 1.0]))
>>> [round(float(p), 3) for p in params], bool(history.converged)
([1.0, 1.0], True)
"""

from numdl.lazy import submodules as _submodules

__getattr__, __dir__ = _submodules(__name__, __path__)
