"""Healthy networks that faults are planted in: some for fitting, others for reporting."""

from benchmarks.diagnosis.recipes import Recipe

CONVOLUTION = {"family": "convolution", "depth": 3, "width": 12, "steps": 200, "rate": 5e-3, "norm": "layer"}
ATTENTION = {"family": "attention", "depth": 2, "width": 24, "steps": 200, "rate": 5e-3, "norm": "layer"}
RECURRENT = {"family": "recurrent", "activation": "tanh", "depth": 1, "width": 32, "init": "lecun"}

BASES = {
    # for fitting
    "dense": Recipe(),
    "dense-sgd": Recipe(optimizer="sgd", rate=0.1, depth=3),
    "dense-tanh": Recipe(data="cancer", activation="tanh", init="lecun", depth=3, optimizer="momentum", rate=0.02),
    "dense-values": Recipe(data="sine", activation="tanh", init="lecun", rate=1e-2),
    "dense-moons": Recipe(data="moons", rate=1e-2),
    "residual": Recipe("residual", depth=4, branch=0.5, optimizer="sgd", rate=0.05),
    "convolution": Recipe(data="pictures", **CONVOLUTION),
    "attention": Recipe(data="rows", **ATTENTION),
    "recurrent-tanh": Recipe(data="rows", **RECURRENT),
    "dense-linen": Recipe(maker="linen", width=48),
    # for reporting
    "dense-equinox": Recipe(maker="equinox", data="wine", depth=3, activation="elu", rate=2e-3),
    "dense-haiku-sgd": Recipe(maker="haiku", data="wine", optimizer="sgd", rate=0.05, depth=2, width=48),
    "dense-values-wide": Recipe(data="friedman", width=48, activation="silu", rate=1e-2),
    "dense-circles": Recipe(data="circles", depth=3, width=24, activation="gelu", rate=5e-3),
    "dense-gelu": Recipe(depth=4, width=40, activation="gelu", optimizer="adamw", rate=2e-3),
    "residual-haiku": Recipe("residual", "haiku", data="spirals", depth=3, width=40, branch=0.5, rate=5e-3),
    "residual-numdl": Recipe("residual", "numdl", depth=6, branch=0.4, activation="tanh", init="lecun",
           optimizer="momentum",
                             rate=0.01),
    "convolution-nnx": Recipe(maker="nnx", data="stripes", **CONVOLUTION),
    "attention-pairs": Recipe(data="pairs", **ATTENTION),
    "attention-linen": Recipe(maker="linen", data="columns", **{**ATTENTION, "depth": 1}),
    "recurrent-gru": Recipe(maker="linen", data="columns", **{**RECURRENT, "width": 24}, rate=1e-2),
    "recurrent-recall": Recipe(data="recall", **{**RECURRENT, "init": "orthogonal"}),
    "recurrent-sums": Recipe(data="sums", **{**RECURRENT, "width": 24}),
}  # fmt: skip
