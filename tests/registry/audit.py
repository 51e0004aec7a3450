"""Good calls of audit."""

import numpy as np

from numdl.analysis import initialization, refinement, stability
from tests.registry import kinds
from tests.registry import objects as o

REFINEMENT = refinement.study(lambda factor, solver: lambda x: x / factor, o.X, factors=(1, 2, 4))
SPECTRUM = stability.spectrum(
    o.field, np.stack([np.eye(4)] * 2), np.ones((2, 1, 4)), 0.1, amplification=lambda z: 1 + z
)
EXPLANATION = initialization.explain({"w": np.eye(4)})
CALLS = {
    "audit.verdicts.gradients": {
        "samples": kinds.real(
            np.linspace(-1.0, 0.0, 12).reshape(3, 4), np.zeros((1, 4)), np.zeros((3, 1)), np.zeros(3)
        ),
        "factor": kinds.number(2.0, 1.0, 0.5),
    },
    "audit.verdicts.initialization": {"explanation": kinds.instance(EXPLANATION)},
    "audit.verdicts.refinement": {"study": kinds.instance(REFINEMENT)},
    "audit.verdicts.steps": {"spectrum": kinds.instance(SPECTRUM)},
}
