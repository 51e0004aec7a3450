"""PREDICTED: what theory says, from numbers and an Activation alone; never sees a network. Float64 NumPy comes out."""

from numdl.lazy import submodules as _submodules

__getattr__, __dir__ = _submodules(__name__, __path__)
