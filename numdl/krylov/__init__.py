"""Krylov methods without matrices: a function v -> A v in, records of arrays out. Vectors are pytrees.

Conjugate gradients, Lanczos, Arnoldi, Golub–Kahan bidiagonalization, stochastic traces. Ground floor: knows no network.
"""

from numdl.lazy import submodules as _submodules

__getattr__, __dir__ = _submodules(__name__, __path__)
