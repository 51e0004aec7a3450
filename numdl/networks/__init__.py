"""Networks as records of three pure functions; parameters are pytrees. `core` says what a network is.

>>> import jax
>>> from numdl import activations
>>> from numdl.networks import core, dense
>>> net = dense.network(widths=(3, 8, 8, 2), activation=activations.tanh, weight_variance=1.0, bias_variance=0.1)
>>> x = jax.numpy.ones((5, 3))
>>> params = net.init(jax.random.key(0), x)
>>> net.apply(params, x).shape, [stretch.shape for stretch in net.states(params, x)]
((5, 2), [(1, 5, 8), (1, 5, 8)])
>>> core.jacobian(net, params, x[:1], start=0, stop=2).shape
(8, 3)
"""

from numdl.lazy import submodules as _submodules

__getattr__, __dir__ = _submodules(__name__, __path__)
