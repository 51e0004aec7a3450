"""What an argument's name means all over the package: its kind and a good value. A function may say otherwise."""

import numpy as np

from numdl import activations
from numdl.ode import tableaus
from tests.registry import kinds
from tests.registry import objects as o

COUNTS = "seeds draws depth width steps num_matvecs num_probes outputs order patience bins growth points samples pairs"
VARIANCES = "weight_variance bias_variance entry_variance second_weight_variance readout_weight_variance x_variance"
POSITIVE = "step learning_rate rtol atol alpha rounding eps"
NAMES = {
    **{name: kinds.count() for name in COUNTS.split()},
    **{name: kinds.count() for name in ("batch_size", "at_a_time", "iterations", "max_steps", "trials", "max_matvecs")},
    "chunk": kinds.count().also("atuo"),
    **{name: kinds.variance(1.5) for name in VARIANCES.split()},
    **{name: kinds.positive(0.1) for name in POSITIVE.split()},
    "key": kinds.key(o.KEY),
    "start": kinds.count(1, least=0),
    "stop": kinds.count(3),
    "activation": kinds.function(activations.tanh),
    "sampler": kinds.function(o.sampler),
    "dtype": kinds.dtype(),
    "tolerance": kinds.positive(1e-2),
    "keep_probability": kinds.probability(0.9, 0.0),
    "confidence": kinds.probability(0.9, 0.0, 1.0),
    "momentum": kinds.number(0.5, -0.1, 1.0),
    "damping": kinds.variance(0.1),
    "noise_variance": kinds.variance(0.1),
    "orthogonal": kinds.flag(False),
    "skip": kinds.flag(False),
    "causal": kinds.flag(False),
    "apply": kinds.function(o.apply, "text"),
    "loss": kinds.loss(o.loss),
    "params": kinds.tree(o.PARAMS),
    "batch": kinds.data((o.X, o.TARGETS)),
    "x": kinds.batch(o.X),
    "x1": kinds.finite(o.X),
    "x2": kinds.finite(o.X),
    "targets": kinds.finite(o.TARGETS),
    "optimizer": kinds.instance(o.OPTIMIZER),
    "tableau": kinds.instance(tableaus.rk4),
    "operator": kinds.name("gauss_newton").without("gauss_newton"),
    "matrix": kinds.finite(o.MATRIX),
    "widths": kinds.counts((4, 4, 2)),
    "input_weights": kinds.instance(o.WEIGHTS),
    "recurrent_weights": kinds.instance(o.WEIGHTS),
    "readout_weights": kinds.instance(o.WEIGHTS),
    "query_key_weights": kinds.instance(o.WEIGHTS),
    "value_weights": kinds.instance(o.WEIGHTS),
    "mlp_weights": kinds.instance(o.WEIGHTS),
    "initializer": kinds.instance(o.WEIGHTS),
    "interpolation": kinds.name("constant"),
    "axis": kinds.count(0, least=-10).without(-11, -3).also(9, -9),
    "path": kinds.path(None),
    "folder": kinds.Argument(None, (3, np.ones(2))),
    "most_bytes": kinds.count(2**20).without(10**10).also(2**63),
}
