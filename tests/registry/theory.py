"""Good calls of theory and ode."""

import jax.numpy as jnp
import numpy as np

from numdl import activations
from numdl.ode import adjoints, schemes, tableaus
from numdl.theory import control
from tests.registry import kinds
from tests.registry import objects as o

TRAIN = o.MATRIX
CROSS = o.MATRIX[:2]
TIMES = np.array([0.0, 1.0, 2.0])
THETA = np.linspace(-0.5, 0.5, 64).reshape(4, 4, 4)
KERNEL = {
    "activation": kinds.instance(activations.relu),
    "depth": kinds.count(2, least=0),
    "x1": kinds.real(o.X, np.full((3, 4), np.nan)),
    "x2": kinds.real(o.X, np.full((3, 4), np.inf), np.ones((3, 5))),
}
PICTURES = np.linspace(-1.0, 1.0, 18).reshape(2, 3, 3, 1)
SOLVE = {
    "field": kinds.function(lambda t, y, theta: jnp.tanh(y @ theta), "text", np.ones(7)),
    "y0": kinds.tree(o.X),
    "theta": kinds.data(np.eye(4)),
    "t1": kinds.number(1.0),
    "t0": kinds.number(0.0),
    "scheme": kinds.instance(schemes.leapfrog),
    "adjoint": kinds.function(adjoints.direct),
}


def velocity(t, y, theta):
    """A second-order right-hand side."""
    return -y


def solved(steps):
    """The end point of y' = -y by Euler's method."""
    return (1 - 1 / steps) ** steps


ESTIMATED = {
    "f": kinds.function(jnp.square),
    "mean": kinds.numbers(0.7),
    "variance": kinds.positive(0.5),
    "baseline": kinds.Argument("best", ("tpyo", None, [1.0], float("nan"))),
}
ONE = [[1.0]]
REGULATED = {
    "regulator": kinds.instance(control.Regulator(ONE, ONE, ONE, ONE, ONE, ONE, ONE, 2)),
    "gain": kinds.real(np.array([[0.4]]), np.ones((2, 1)), np.full((1, 1), np.nan)),
    "variance": kinds.variance(0.5),
}
LIKE = {
    "tokens": kinds.numbers(8, 0, 2.5, np.array([8, -1])),
    "q": kinds.numbers(1.0, -1.0, 0.0),
    "c": kinds.numbers(0.5, -1.5, 1.5, -0.9),
    "score_gain": kinds.numbers(1.0, -1.0),
    "value_gain": kinds.numbers(np.array([1.0, 2.0]), -1.0),
}
STACK = {
    **LIKE,
    "blocks": kinds.count(2),
    "norm": kinds.name("pre"),
    "mlp_gain": kinds.numbers(1.0, -1.0),
    "skip": kinds.numbers(1.0),
}
SCORES = {"deviation": kinds.numbers(1.0, -1.0), "tokens": kinds.numbers(8, 0, 2.5)}
GAME = {
    "eigenvalues": kinds.Argument(np.array([1.0, 2.0j]), ("1", None, kinds.NAN, kinds.INF, np.full(2, np.nan))),
    "jacobian": kinds.real(np.eye(3), np.ones((2, 3)), np.full((3, 3), np.nan)),
    "sizes": kinds.counts((1, 2)),
    "method": kinds.name("consensus"),
    "consensus": kinds.variance(0.1),
}
SLICED = {
    **SOLVE,
    "theta": kinds.data(np.stack([np.eye(4)] * 4)),
    "steps": kinds.count(4).also(3),
    "slices": kinds.count(2).also(3),
    "coarsening": kinds.counts((2,)).also((3,)),
    "iterations": kinds.count(2),
    "relaxations": kinds.count(1, least=0),
    "tolerance": kinds.variance(0.0).without(None),
    "interpolation": kinds.name("constant").without(None),
    "scheme": kinds.instance(schemes.leapfrog).without(None),
    "tableau": kinds.instance(tableaus.euler),
    "coarse": kinds.function(None).without(None),
    "mesh": kinds.Argument(None, ("depth", 3)),
    "axis": kinds.Argument(None, ("depth", 3)),
}
CALLS = {
    "theory.layer_parallel.parareal": {
        "difference": kinds.numbers(0.1, -1.0),
        "coarse": kinds.numbers(0.5, -1.0, [0.5, 0.5]),
        "slices": kinds.count(4),
        "iterations": kinds.count(2, least=0),
    },
    "theory.layer_parallel.multigrid": {
        "fine": kinds.Argument(np.array([0.3]), ("1", None, np.array([np.nan]))),
        "coarse": kinds.Argument(np.array([0.5]), ("1", None, np.array([np.inf]), np.ones(2))),
        "slices": kinds.count(4),
        "relaxations": kinds.count(1, least=0),
    },
    "theory.layer_parallel.speed_up": {
        "layers": kinds.count(8).also(9),
        "slices": kinds.count(4).also(3),
        "devices": kinds.count(2).also(3),
        "iterations": kinds.count(2),
        "relaxations": kinds.count(0, least=0),
        "layer_seconds": kinds.positive(1.0),
        "coarse_seconds": kinds.positive(1.0).without(None),
        "state_bytes": kinds.variance(8.0),
        "latency": kinds.variance(0.1),
        "bandwidth": kinds.positive(1.0).without(kinds.INF),
    },
    "ode.parallel.parareal": SLICED,
    "ode.parallel.multigrid": {**SLICED, "guess": kinds.like(np.zeros((3, *np.shape(o.X)))).without(None)},
    "ode.parallel.value_and_gradient": {
        **SLICED,
        "loss": kinds.loss(lambda y, outer: jnp.sum(y)),
        "adjoint_iterations": kinds.count(2).without(None),
        "outer": kinds.free(None),
        "guess": kinds.free(None),
    },
    "ode.parallel.adjoint": {**SLICED, "coarsening": kinds.counts((2,))},
    "theory.transformer.softmax_moments": SCORES,
    "theory.transformer.joint_softmax_moments": {**SCORES, "correlation": kinds.numbers(0.5, 1.5, -1.5)},
    "theory.transformer.softmax_limits": SCORES,
    "theory.transformer.least_entropy": {"norm": kinds.numbers(1.0, -1.0), "tokens": kinds.numbers(8, 1, 2.5)},
    "theory.transformer.initial_loss": {
        "vocabulary": kinds.numbers(100, 0, 2.5),
        "logit_variance": kinds.numbers(0.3, -1.0),
        "own_logit": kinds.numbers(2.0),
    },
    "theory.transformer.attention_map": LIKE,
    "theory.transformer.stream": STACK,
    "theory.transformer.gradients": {**STACK, "pooled": kinds.numbers(0.5, 1.5)},
    "theory.transformer.weight_gradients": {
        **{name: LIKE[name] for name in ("tokens", "q", "c")},
        **{f"{name}_variance": kinds.numbers(1.0, -1.0) for name in ("query", "key", "value")},
        "pooled": kinds.numbers(0.5, 1.5),
    },
    "theory.transformer.exponents": {
        name: kinds.numbers(1.0, -1.0) for name in ("value_gain", "mlp_gain", "slope_gain")
    },
    "theory.transformer.admin": {name: kind for name, kind in STACK.items() if name not in ("norm", "skip", "q")},
    "theory.transformer.deepnorm": {"blocks": kinds.numbers(12, 0, 2.5)},
    "theory.transformer.gram_stream": {
        "blocks": kinds.count(2),
        "norm": kinds.name("pre"),
        "gram": kinds.numbers(np.eye(3), np.ones((2, 3)), -np.eye(3), 1.0),
        "mask": kinds.Argument(np.tri(3, dtype=bool), ("1", None, 1.0, np.eye(2, dtype=bool), np.zeros((3, 3), bool))),
        "value_gain": kinds.variance(1.0),
        "mlp_gain": kinds.variance(1.0),
        "skip": kinds.number(1.0),
    },
    "theory.robustness.lipschitz": {
        "spectral_norms": kinds.numbers(np.array([1.0, 2.0]), np.array([-1.0, 1.0]), 0.5),
        "slopes": kinds.numbers(np.array([1.0]), np.array([-1.0]), 0.5),
    },
    "theory.robustness.certified_radius": {
        "margins": kinds.numbers(np.array([1.0, -1.0])),
        "lipschitz": kinds.variance(1.0),
    },
    "theory.estimators.pathwise": ESTIMATED,
    "theory.estimators.score_function": ESTIMATED,
    "theory.estimators.square_norm": {
        **ESTIMATED,
        "dimension": kinds.count(3),
        "square_mean": kinds.numbers(1.0, -1.0),
    },
    **{f"theory.control.{name}": REGULATED for name in ("riccati", "value")},
    "theory.control.policy_gradient": {
        **REGULATED,
        "variance": kinds.positive(0.5),
        "baseline": kinds.name("value"),
    },
    "theory.games.growth": GAME,
    "theory.games.largest_step": GAME,
    "theory.games.step_matrix": GAME,
    "theory.attention.rank_collapse": {
        "diameter": kinds.positive(1.0).without(0.0),
        "query_key_norm": kinds.numbers(np.array([0.1]), -1.0, 0.5),
        "value_norm": kinds.numbers(np.array([0.5]), -1.0, 0.5),
        "head_width": kinds.count(4),
    },
    "theory.descent.sharpness_limit": {
        "method": kinds.name("gradient_descent"),
        "learning_rate": kinds.numbers(0.1, -1.0, 0.0),
    },
    "theory.descent.growth": {"eigenvalues": kinds.numbers(np.array([1.0, 2.0])), "method": kinds.name("polyak")},
    "theory.descent.path": {
        "start": kinds.numbers(np.array([1.0, 2.0])),
        "eigenvalues": kinds.numbers(np.array([1.0, 2.0])),
        "method": kinds.name("polyak"),
        "steps": kinds.count(2, least=0),
    },
    "theory.descent.tuning": {
        "method": kinds.name("polyak"),
        "least": kinds.positive(1.0),
        "largest": kinds.positive(2.0).also(0.5),
    },
    "theory.descent.modified_loss": {"loss": kinds.Argument(o.loss_of_params, (None, 3, "text"))},
    "theory.descent.mode_strength": {
        "times": kinds.numbers(TIMES, -1.0),
        "singular_value": kinds.positive(1.0),
        "start": kinds.positive(0.1),
    },
    "theory.descent.learning_time": {
        "singular_value": kinds.positive(1.0),
        "start": kinds.positive(0.1),
        "end": kinds.numbers(0.9, -1.0, 0.0, 1.0),
    },
    "theory.descent.adam_step_rms": {"step": kinds.numbers(3, 0, 0.5, -1), "momentum": kinds.number(0.9, -0.1, 1.0)},
    "theory.scaling.exponents": {"parametrization": kinds.name("mup"), "optimizer": kinds.name("adam")},
    "theory.scaling.depth_exponents": {
        "branch": kinds.number(0.5, -0.5),
        "optimizer": kinds.name("adam"),
        "rate": kinds.number(0.0),
    },
    "theory.scaling.score_exponents": {"power": kinds.number(0.5)},
    "theory.gradients.growth": {"depth": kinds.count(3), "widths": kinds.counts((4, 4, 2))},
    "theory.gradients.residual_growth": {
        "x_mean": kinds.number(0.0),
        "readout_gain": kinds.positive(1.0),
        "step": kinds.number(0.1),
    },
    "theory.central_flow.central_flow": {
        "loss": kinds.Argument(o.loss_of_params, (None, 3, "text")),
        "learning_rate": kinds.numbers(0.1, -1.0, 0.0),
        "steps": kinds.count(2),
        "substeps": kinds.count(1),
        "directions": kinds.count(1, least=0),
    },
    "theory.residual.correlations": {
        "c": kinds.numbers(0.5, 1.5, -1.5),
        "x_variance": kinds.positive(1.0),
        "step": kinds.number(0.1),
    },
    "theory.residual.branch_shares": {"x_variance": kinds.positive(1.0), "step": kinds.number(0.1)},
    "theory.shattering.dense": {"c": kinds.numbers(0.5, 1.5, -1.5), "x_variance": kinds.positive(1.0)},
    "theory.shattering.residual": {
        "c": kinds.numbers(0.5, 1.5, -1.5),
        "x_variance": kinds.positive(1.0),
        "step": kinds.number(0.1),
    },
    "theory.residual.tanh_laws": {"step": kinds.number(0.1)},
    "theory.gradients.dropout_fixed_point": {},
    "theory.gradients.log_norm": {
        "activation": kinds.instance(activations.relu).also(activations.tanh),
        "weight_variance": kinds.positive(1.5),
    },
    "theory.jacobian.product_norm": {
        "depth": kinds.Argument(2, (0, -3, True, "3", kinds.NAN, 2.5, None, [2.5], [0])),
        "excess_kurtosis": kinds.number(0.0, -3.0),
        "y": kinds.real(np.ones(2), np.ones(3), np.full(2, np.nan)),
    },
    "theory.jacobian.squared_singular_values": {"q": kinds.variance(1.0)},
    "theory.jacobian.largest_squared": {"active": kinds.probability(1.0)},
    "theory.jacobian.product_density": {"points": kinds.count(5)},
    "theory.jacobian.lyapunov_exponents": {},
    "theory.kernels.nngp": KERNEL,
    "theory.kernels.ntk": KERNEL,
    "theory.kernels.dense": KERNEL,
    "theory.kernels.derivatives": KERNEL,
    "theory.kernels.convolutional": {
        **KERNEL,
        "depth": kinds.count(2),
        "window": kinds.Argument(3, (2, 0, -3, True, "3", 2.5, None, (3, 3, 3), (3, 2))),
        "x1": kinds.real(PICTURES, np.full((2, 3, 3, 1), np.nan), np.ones((2, 3))),
        "x2": kinds.real(PICTURES, np.full((2, 3, 3, 1), np.inf), np.ones((2, 3, 4, 1))),
        "padding": kinds.Argument("same", ("valid", 3, None)),
        "pooling": kinds.Argument("none", ("max", 3, True)),
    },
    "theory.kernels.convolutional_derivatives": {
        **KERNEL,
        "depth": kinds.count(2),
        "window": kinds.Argument(3, (2, 0, -3, True, "3", 2.5, None, (3, 3, 3), (3, 2))),
        "x1": kinds.real(PICTURES, np.full((2, 3, 3, 1), np.nan), np.ones((2, 3))),
        "x2": kinds.real(PICTURES, np.full((2, 3, 3, 1), np.inf), np.ones((2, 3, 4, 1))),
        "padding": kinds.Argument("same", ("valid", 3, None)),
        "pooling": kinds.Argument("none", ("max", 3, True)),
    },
    "theory.kernels.residual": {**KERNEL, "step": kinds.number(0.1)},
    "theory.kernels.residual_derivatives": {**KERNEL, "step": kinds.number(0.1)},
    "theory.kernels.gradient_flow": {
        "train": kinds.real(TRAIN, np.ones((3, 2)), np.full((3, 3), np.nan), np.diag([1.0, 1.0, -1.0])),
        "cross": kinds.real(CROSS, np.ones((2, 2)), np.full((2, 3), np.inf)),
        "targets": kinds.real(np.ones((3, 1)), np.ones((2, 1)), np.full((3, 1), np.nan)),
        "times": kinds.numbers(TIMES, -1.0).without(kinds.INF),
    },
    "theory.kernels.regression": {
        "train": kinds.real(TRAIN, np.ones((3, 2)), np.full((3, 3), np.nan), np.diag([1.0, 1.0, -1.0])),
        "cross": kinds.real(CROSS, np.ones((2, 2)), np.full((2, 3), np.inf)),
        "targets": kinds.real(np.ones((3, 1)), np.ones((2, 1)), np.full((3, 1), np.nan)),
        "ridge": kinds.variance(0.1),
    },
    "theory.kernels.posterior": {
        "train": kinds.real(TRAIN, np.ones((3, 2)), np.full((3, 3), np.nan), np.diag([1.0, 1.0, -1.0])),
        "cross": kinds.real(CROSS, np.ones((2, 2)), np.full((2, 3), np.inf)),
        "own": kinds.real(np.ones(2), np.eye(2), np.ones(3), np.full(2, np.nan)),
        "targets": kinds.real(np.ones((3, 1)), np.ones((2, 1)), np.full((3, 1), np.nan)),
    },
    "theory.normalization.gradient_growth": {"batch_size": kinds.count(4)},
    "theory.normalization.correlation": {"batch_size": kinds.count(4)},
    "theory.propagation.length_map": {"q": kinds.numbers(1.0, -1.0)},
    "theory.propagation.lengths": {},
    "theory.propagation.correlations": {
        "c": kinds.numbers(0.5, 1.5, -1.5),
        "q": kinds.numbers(1.0, -1.0, "tpyo", np.ones(2)),
    },
    "theory.propagation.fixed_point": {},
    "theory.propagation.fixed_points": {},
    "theory.propagation.critical_weight_variance": {},
    "theory.propagation.phase_diagram": {
        "weight_variances": kinds.numbers(np.array([1.0, 2.0]), -1.0),
        "bias_variances": kinds.numbers(np.array([0.1, 0.2]), -1.0),
    },
    "theory.recurrent.gradient_through_time": {
        "largest_singular_value": kinds.variance(1.1),
        "largest_slope": kinds.variance(1.0),
    },
    "theory.recurrent.largest_slope": {},
    "theory.recurrent.transient_growth": {"matrix": kinds.real(o.MATRIX, np.ones((3, 2)), np.full((3, 3), np.nan))},
    "theory.recurrent.carousel": {"forget_bias": kinds.number(1.0), "gate_variance": kinds.variance(0.5)},
    "ode.adjoint_audit.dot_product_test": {
        "function": kinds.function(jnp.tanh),
        "x": kinds.tree(o.X),
        "tolerance": kinds.positive(0.1),
    },
    "ode.adjoint_audit.taylor_remainders": {
        "loss": kinds.loss(o.loss_of_params),
        "x": kinds.tree(o.X),
        "epsilon": kinds.positive(0.1),
        "halvings": kinds.count(6, least=5),
    },
    "ode.adjoint_audit.gradient_error": {
        **SOLVE,
        "solve": kinds.function(lambda y0, theta, adjoint: jnp.sum(y0) * jnp.sum(theta)),
        "limit": kinds.positive(0.1),
    },
    "ode.adjoint_audit.reconstruction_error": {
        **SOLVE,
        "field": kinds.function(velocity),
        "y0": kinds.tree((o.VECTOR, o.VECTOR)),
        "scheme": kinds.instance(schemes.leapfrog).also(schemes.semi_implicit(o.MATRIX)),
        "steps": kinds.counts((2, 4)),
        "step_time": kinds.positive(0.1),
        "dtypes": kinds.Argument(("float32",), (("float46",), ("int32",), 3, ())),
    },
    "ode.adjoints.nested": {"levels": kinds.count(2)},
    "ode.adjoints.binomial": {"snapshots": kinds.count(2)},
    "ode.convergence.observed_order": {
        "errors": kinds.numbers(np.array([1e-2, 1e-3, 1e-4]), -1.0),
        "steps": kinds.counts((4, 8, 16)),
        "low": kinds.variance(1e-12),
        "high": kinds.positive(0.01).without(kinds.INF),
    },
    "ode.convergence.study": {
        "solve": kinds.function(solved),
        "steps": kinds.counts((4, 8, 16, 32)),
        "low": kinds.variance(1e-12),
        "high": kinds.positive(0.01).without(kinds.INF),
    },
    "ode.convergence.richardson": {
        "coarse": kinds.data(o.PARAMS),
        "fine": kinds.like(o.PARAMS),
        "order": kinds.count(2),
        "factor": kinds.number(2.0, 1.0, 0.5),
    },
    "ode.integrate.trajectory": {**SOLVE, "tableau": kinds.instance(tableaus.rk4)},
    "ode.integrate.endpoint": {**SOLVE, "tableau": kinds.instance(tableaus.rk4)},
    "ode.integrate.invert": {
        **SOLVE,
        "field": kinds.function(velocity),
        "y1": kinds.tree((o.VECTOR, o.VECTOR)),
        "scheme": kinds.instance(schemes.leapfrog).also(schemes.semi_implicit(o.MATRIX)),
    },
    "ode.integrate.adaptive": {
        **SOLVE,
        "times": kinds.real(np.array([0.5, 1.0]), np.full(2, np.nan)),
        "solver": kinds.free(None),
    },
    "ode.integrate.theta_at": {
        "theta": kinds.data(THETA),
        "time": kinds.number(0.5),
        "t0": kinds.number(0.0),
        "t1": kinds.number(1.0),
        "interpolation": kinds.name("constant").without(None),
    },
    "ode.refinement.prolong": {"theta": kinds.data(THETA), "steps": kinds.count(8).also(6)},
    "ode.refinement.restrict": {"theta": kinds.data(THETA), "steps": kinds.count(2).also(3)},
    "ode.refinement.coarse_to_fine": {
        "train": kinds.function(lambda theta, steps: theta),
        "theta": kinds.data(THETA),
        "steps": kinds.counts((4, 8)),
    },
    "ode.refinement.smoothness": {"theta": kinds.data(THETA)},
    "ode.refinement.tikhonov": {"theta": kinds.data(THETA)},
    "ode.refinement.step_count": {"theta": kinds.data(THETA)},
    "ode.schemes.runge_kutta": {"iterations": kinds.count(3)},
    "ode.schemes.semi_implicit": {"matrix": kinds.finite(o.MATRIX, np.ones((3, 2)))},
    "ode.stability.amplification": {
        "z": kinds.Argument(np.array([-1.0 + 1j]), ("text", None, masked := kinds.masked((2,))))
    },
    "ode.stability.real_interval": {},
    "ode.stability.imaginary_interval": {},
    "ode.stability.region_boundary": {"points": kinds.count(16)},
    "ode.stability.largest_step": {
        "eigenvalues": kinds.Argument(np.array([-1.0 + 1j]), ("text", None, masked, np.array([np.nan]), np.zeros(0)))
    },
    "ode.stability.logarithmic_norm": {
        "matrix": kinds.Argument(
            o.MATRIX,
            ("text", None, 3.0, np.ones((3, 2)), np.full((3, 3), np.nan), kinds.masked((3, 3)), np.zeros((0, 0))),
        ),
        "ord": kinds.Argument(2, (3, "tpyo", None, 0)),
    },
    "ode.tableaus.companion": {"tableau": kinds.instance(tableaus.bogacki_shampine)},
    "ode.tableaus.row_sum_residuals": {},
    "ode.tableaus.order_residuals": {"order": kinds.limited(3, most=8)},
}
EXTRA = {
    **{
        f"ode.parallel.{name}": {"tableau": tableaus.euler, "interpolation": "constant"}
        for name in ("parareal", "multigrid", "value_and_gradient")
    },
    "theory.gradients.growth": {"depth": 3},
    "theory.jacobian.product_norm": {"excess_kurtosis": 0.0},
    "ode.adjoint_audit.reconstruction_error": {"t1": 1.0},
    "ode.convergence.study": {"reference": np.exp(-1.0)},
    "ode.integrate.endpoint": {"tableau": tableaus.rk4},
    "ode.integrate.trajectory": {"tableau": tableaus.rk4},
}
