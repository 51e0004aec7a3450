"""MEASURED: what a function and its parameters do, counted on the very network; never uses a formula of theory."""

from numdl.lazy import submodules as _submodules

__getattr__, __dir__ = _submodules(__name__, __path__)
