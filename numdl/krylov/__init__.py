"""Krylov methods without matrices: a function v -> A v in, records of arrays out. Vectors are pytrees.

Conjugate gradients, Lanczos, Arnoldi, Golub–Kahan bidiagonalization, stochastic traces. Ground floor: knows no network.

A function is compiled once for its identity and for what it holds (a matrix that it closes over, say), which is read at
every call: where that changes between calls, make it an argument, `jax.tree_util.Partial(multiply, matrix)`.
"""

from numdl.lazy import submodules as _submodules

__getattr__, __dir__ = _submodules(__name__, __path__)
