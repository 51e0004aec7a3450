"""Networks as records of three pure functions; parameters are pytrees. `core` says what a network is."""

from numdl.lazy import submodules as _submodules

__getattr__, __dir__ = _submodules(__name__, __path__)
