"""Training and its alternatives: everything takes functions (a loss, a control problem), never a network."""

from numdl.lazy import submodules as _submodules

__getattr__, __dir__ = _submodules(__name__, __path__)
