"""Ordinary differential equations y' = f(t, y, theta(t)) on a fixed grid: schemes, stability, gradients, refinement.

A residual network is a step of a solver; this wing knows vector fields and step sizes, and no network.
"""

from numdl.lazy import submodules as _submodules

__getattr__, __dir__ = _submodules(__name__, __path__)
