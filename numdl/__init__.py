"""numdl: numerical analysis of training deep networks, theory's prediction beside the measurement.

    import numdl as nd
    nd.theory.propagation, nd.analysis.layers, nd.networks.dense, ...

Submodules load at first use, so that `import numdl` costs no more than `import jax`.
"""

import importlib as _importlib

__version__ = "0.1.0"

_SUBMODULES = (
    "activations",
    "analysis",
    "checks",
    "data",
    "networks",
    "plotting",
    "precision",
    "quadrature",
    "records",
    "reporting",
    "statistics",
    "theory",
    "tracing",
    "trees",
)

__all__ = ["__version__", *_SUBMODULES]


def __getattr__(name):
    if name in _SUBMODULES:
        return _importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module 'numdl' has no attribute {name!r}; it has {', '.join(_SUBMODULES)}")


def __dir__():
    return sorted(__all__)
