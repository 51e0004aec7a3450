"""Good calls of audit."""

import numpy as np

from numdl.analysis import initialization, refinement, stability
from numdl.audit import watching
from tests.registry import kinds
from tests.registry import objects as o

REFINEMENT = refinement.study(lambda factor, solver: lambda x: x / factor, o.X, factors=(1, 2, 4))
SPECTRUM = stability.spectrum(
    o.field, np.stack([np.eye(4)] * 2), np.ones((2, 1, 4)), 0.1, amplification=lambda z: 1 + z
)
EXPLANATION = initialization.explain({"w": np.eye(4)})
WATCH = watching.watch(o.apply, lambda outputs, targets: 0.0)
BATCH = (o.X, o.TARGETS)
CALLS = {
    "audit.watching.watch": {
        "apply": kinds.function(o.apply),
        "loss": kinds.function(lambda outputs, targets: 0.0),
        "optimizer": kinds.Argument("sgd", ("sdg", "", 3, [o.OPTIMIZER])),
        "learning_rate": kinds.variance(0.1).without(np.ones(3)),
        "every": kinds.count(10),
        "frozen": kinds.Argument((), (3, None, 2.5)),
        "stochastic": kinds.flag(False),
        "key": kinds.Argument(None, (0, "key", o.KEY)),
        "cost": kinds.number(0.05, 0.0, 1.0, -0.1),
    },
    "audit.watching.instruments": {
        "found": kinds.instance(WATCH),
        "batch": kinds.data(BATCH).also(None, 3, o.X, (o.X,), (*BATCH, o.X)),
        "every": kinds.count(10),
    },
    "audit.watching.read": {"folder": kinds.path(None)},
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
