"""Imports, each in a fresh Python: processor time of the child."""

import functools
import subprocess
import sys

from benchmarks.rows import Run, Side, Workload

ALL = "numdl.analysis.curvature, numdl.theory.propagation, numdl.networks.dense"


def importing(p, module):
    """`import module` in a child of this environment's Python."""
    del p
    subprocess.run([sys.executable, "-W", "ignore", "-c", f"import {module}"], check=True, capture_output=True)
    return Run(lambda: subprocess.run([sys.executable, "-W", "ignore", "-c", f"import {module}"], check=True) and None,
               lambda found: [])  # fmt: skip


def side(name, module, python="here"):
    return Side(name, functools.partial(importing, module=module), python)


WORKLOADS = (
    Workload(
        "import",
        dict,
        (
            side("numdl.analysis, theory, networks", ALL),
            side("numdl alone", "numdl"),
            side("limit: jax", "jax"),
            side("optax", "optax"),
            side("flax.nnx", "flax.nnx"),
            side("diffrax", "diffrax"),
            side("matfree", "matfree.decomp"),
            side("torch", "torch", "torch"),
            side("torchdiffeq", "torchdiffeq", "torch"),
            side("PyHessian", "pyhessian", "torch"),
            side("curvlinops", "curvlinops", "torch"),
        ),
        sizes={},
        tiny={},
    ),
)
