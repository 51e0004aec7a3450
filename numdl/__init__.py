"""numdl: numerical analysis of training deep networks, theory's prediction beside the measurement.

    import numdl as nd
    nd.theory.propagation, nd.analysis.layers, nd.networks.dense, ...
    nd.cite(nd.theory.propagation.fixed_point)      the BibTeX of the papers that a function implements

Submodules load at first use, so that `import numdl` costs no more than `import jax`.
"""

from numdl.lazy import submodules as _submodules

__version__ = "0.1.0"

__getattr__, __dir__ = _submodules(__name__, __path__, {"cite": "_citations"})
