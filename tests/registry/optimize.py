"""Good calls of optimize and krylov."""

import jax
import jax.numpy as jnp
import numpy as np

from numdl.optimize import control, gauss_newton, losses, mean_field, scaling, slimtik
from numdl.optimize import train as training
from tests.registry import kinds
from tests.registry import objects as o

PROBLEM = control.Problem(
    lambda x, theta: jnp.tanh(x @ theta), lambda x: jnp.mean(x**2), lambda x, theta: jnp.mean(theta**2), 0.1
)
THETA = np.stack([np.eye(4)] * 2)
FIELD = {
    "posterior": kinds.instance(mean_field.MeanField(o.PARAMS, jax.tree.map(lambda leaf: 0.0 * leaf, o.PARAMS))),
    "log_likelihood": kinds.loss(o.loss),
    "prior_precision": kinds.positive(1.0),
    "variance": kinds.positive(0.1),
}
DESIGN = np.linspace(-1.0, 1.0, 12).reshape(6, 2)
ANSWERS = np.linspace(0.0, 1.0, 6).reshape(6, 1)
GRADIENT = jax.tree.map(lambda leaf: 2 * leaf, o.PARAMS)
DESCENT = jax.tree.map(lambda leaf: -leaf, o.PARAMS)
BATCHES = (np.ones((2, 3, 4)), np.ones((2, 3, 2)))
WIDENED = scaling.roles(o.build, (4, 8), o.X)
LINEAR = {
    "tolerance": kinds.variance(1e-2),
    "features": kinds.finite(DESIGN),
    "targets": kinds.finite(ANSWERS, np.ones((5, 1)), np.ones(5)),
}
VARIABLE = {
    "features": kinds.function(lambda theta, x: jnp.tanh(x @ theta), "text"),
    "theta": kinds.tree(np.eye(4)),
    "loss": kinds.Argument(None, (3, "text")),
    "jacobian": kinds.name("kaufman"),
    "alpha": kinds.positive(0.1),
    "x": kinds.data(o.X).also(o.X[:2], o.X[:0]),
    "tolerance": kinds.variance(1e-2),
}
MATVEC = kinds.function(o.product, np.ones(7), "text")
SOLVER = {
    "matvec": MATVEC,
    "transpose": MATVEC,
    "start": kinds.floating(o.VECTOR),
    "rhs": kinds.data(o.VECTOR),
    "gradient": kinds.data(o.VECTOR),
    "tolerance": kinds.variance(1e-2),
    "x0": kinds.like(o.VECTOR),
    "like": kinds.tree(o.VECTOR),
    "radius": kinds.positive(1.0),
    "iterations": kinds.count(3),
    "preconditioner": kinds.function(lambda v: v),
    "num_matvecs": kinds.count(3),
    "k": kinds.limited(1, most=3).without(10**10),
    "law": kinds.name("normal"),
    "which": kinds.name("largest"),
    "basis": kinds.count(3),
    "deflate": kinds.data(o.VECTOR[None]).also(o.VECTOR, o.VECTOR[None, None]),
}
KRYLOV = (
    "bidiagonal.decompose bidiagonal.singular_triplets cg.cg cg.steihaug cg.cgls lanczos.eigenpairs "
    "lanczos.tridiagonalize trace.hutchinson trace.squared_norm trace.diagonal trace.hutch_plus_plus trace.xtrace "
    "trace.quadrature"
)
MINIMIZED = {
    "tolerance": kinds.variance(1e-2),
    "function": kinds.loss(o.loss_of_params),
    "objective": kinds.instance(gauss_newton.least_squares(lambda params: params["v"])),
    "direction": kinds.like(DESCENT),
    "gradient": kinds.like(GRADIENT),
    "value": kinds.number(1.0),
    "start": kinds.positive(1.0),
    "sufficient": kinds.probability(1e-4, 0.0, 1.0),
    "curvature": kinds.probability(0.9, 0.0, 1.0),
    "shrink": kinds.probability(0.5, 0.0, 1.0),
    "method": kinds.name("trust_region"),
    "radius": kinds.positive(1.0),
    "inner_iterations": kinds.count(3),
    "inner_tolerance": kinds.positive(0.1),
    "memory": kinds.count(3),
}
TRAINED = {
    "batches": kinds.data(BATCHES),
    "period": kinds.count(2),
    "start": kinds.count(0, least=0),
    "when": kinds.Argument(training.every(2), (None, "text", 2.5)),
    "function": kinds.function(lambda params: 0.0),
    "gain": kinds.variance(0.0),
    "size": kinds.limited(2, most=3),
    "data": kinds.data((o.X, o.TARGETS)).also((o.X, o.TARGETS[:2]), (), (o.X[:0], o.TARGETS[:0])),
    "strength": kinds.variance(0.1),
    "where": kinds.function(lambda name: True),
    "remainder": kinds.name("drop"),
    "observe": kinds.Argument({}, (3, "text", {"loss": 3})),
    "early_stopping": kinds.Argument(None, (3, "text")),
    "checkpoint": kinds.count(2),
    "targets": kinds.real(o.LABELS, np.zeros(2, int), np.zeros((3, 1), int), np.full(3, 2), np.full(3, -1)),
}
PATH = np.ones((3, 3, 4))


BOXES = {name: kinds.floating(np.ones((3, 4)), np.ones((3, 5))) for name in ("boxes", "targets")}
CALLS = {
    "optimize.scaling.roles": {
        "build": kinds.function(o.build, 1.0, (1, 2, 3)),
        "x": kinds.data(o.X),
        "widths": kinds.Argument((4, 8), (None, 3, "text", (8, 4), (4, 4), (4,), (4, 8, 16), (0, 4), (4.5, 8))),
        "embeddings": kinds.Argument((), ("tpyo", ("tpyo",), 3)),
    },
    "optimize.scaling.rescale": {
        "params": kinds.tree(o.build(8)[1]),
        "roles": kinds.instance(WIDENED),
        "rule": kinds.name("mup"),
    },
    "optimize.scaling.multipliers": {
        "roles": kinds.instance(WIDENED),
        "rule": kinds.name("mup"),
        "optimizer": kinds.name("adam"),
    },
    **{f"optimize.mean_field.{name}": FIELD for name in ("start", "draw", "divergence", "evidence")},
    "optimize.games.descend": {
        "losses": kinds.Argument((o.loss_of_player,), (None, 3, "text", (), (3,), (o.loss_of_player,) * 2)),
        "players": kinds.Argument((o.PARAMS,), (None, 3, "text", ("text",), (np.ones(2, int),))),
        "optimizer": kinds.instance(o.OPTIMIZER),
        "batches": kinds.data(BATCHES),
        "method": kinds.name("consensus"),
        "consensus": kinds.variance(0.1),
    },
    **{f"krylov.{name}": SOLVER for name in KRYLOV.split()},
    "krylov.arnoldi.decompose": {**SOLVER, "start": kinds.floating(o.VECTOR)},
    "krylov.trace.hutch_plus_plus": {**SOLVER, "num_matvecs": kinds.count(6, least=6)},
    "krylov.trace.xtrace": {**SOLVER, "num_matvecs": kinds.count(4, least=4)},
    # A product with A of another length is only seen by the transpose that takes it.
    "krylov.bidiagonal.decompose": {**SOLVER, "matvec": kinds.function(o.product, "text")},
    "krylov.bidiagonal.singular_triplets": {**SOLVER, "matvec": kinds.function(o.product, "text")},
    "krylov.cg.cgls": {**SOLVER, "transpose": kinds.function(o.product, "text")},
    **{
        f"optimize.control.{name}": {
            "problem": kinds.instance(PROBLEM),
            "theta": kinds.tree(THETA[0] if name == "hamiltonian" else THETA),
            "p": kinds.floating(o.X),
            "path": kinds.batch(PATH).also(PATH[:2]),
            "iterations": kinds.count(1),
            "penalty": kinds.variance(0.0),
            "ascents": kinds.count(1),
            "maximize": kinds.function(lambda x, p, theta: theta),
        }
        for name in ["objective", "hamiltonian", "states", "costates", "gradient", "successive_approximations"]
    },
    "optimize.boxes.intersection_over_union": BOXES,
    "optimize.boxes.generalized": BOXES,
    "optimize.gauss_newton.least_squares": {"residual": kinds.function(lambda params: params)},
    "optimize.gauss_newton.composite": {
        "outputs": kinds.function(lambda params: params["v"]),
        "targets": kinds.free(np.zeros((4, 2))),
        "loss": kinds.function(lambda outputs, targets: jnp.mean((outputs - targets) ** 2)),
    },
    "optimize.gauss_newton.minimize": MINIMIZED,
    "optimize.gauss_newton.transformation": {
        "damping": kinds.positive(0.1),
        "inner_iterations": kinds.count(3),
        "inner_tolerance": kinds.positive(0.1),
        "adaptation": kinds.number(1.5, 0.5),
    },
    "optimize.gauss_newton.descend": {
        "objective": kinds.function(lambda batch: gauss_newton.least_squares(lambda params: params["v"])),
        "batches": kinds.data(BATCHES),
        "optimizer": kinds.instance(gauss_newton.transformation(damping=0.1)),
    },
    "optimize.gauss_newton.hessian_product": {
        "loss": kinds.function(lambda outputs, targets: jnp.mean((outputs - targets) ** 2)),
        "outputs": kinds.data(o.TARGETS),
        "targets": kinds.data(o.TARGETS),
        "v": kinds.like(o.TARGETS),
    },
    "optimize.least_squares.qr": {**LINEAR, "damping": kinds.variance(0.1)},
    "optimize.least_squares.svd": {**LINEAR, "cutoff": kinds.variance(1e-3)},
    "optimize.least_squares.cgls": LINEAR,
    "optimize.least_squares.tikhonov": {**LINEAR, "choice": kinds.name("gcv"), "candidates": kinds.count(5, least=2)},
    "optimize.least_squares.extreme_learning_machine": {"x": kinds.finite(o.X)},
    "optimize.least_squares.with_bias": {"features": kinds.batch(DESIGN)},
    "optimize.least_squares.augmented": LINEAR,
    "optimize.line_search.armijo": MINIMIZED,
    "optimize.line_search.wolfe": MINIMIZED,
    "optimize.losses.with_l2": {**TRAINED, "loss": kinds.Argument(o.loss, (None, 3, "text"))},
    "optimize.losses.z_loss": {"outputs": kinds.batch(o.TARGETS), "strength": kinds.variance(1e-4)},
    "optimize.losses.accuracy": {
        "outputs": kinds.batch(o.TARGETS),
        "targets": kinds.labels(o.LABELS, classes=2),
    },
    "optimize.losses.weighted": {
        "loss": kinds.Argument(losses.softmax_cross_entropy, (losses.squared, None, "text")),
        "class_weights": kinds.Argument(np.ones(2), (-np.ones(2), np.zeros(2), np.full(2, np.nan), "text")),
        "ignored": kinds.Argument(-100, (1.5, "3", True)),
    },
    "optimize.newton_cg.minimize": MINIMIZED,
    "optimize.second_order.minimize": {**MINIMIZED, "damping": kinds.variance(0.1)},
    "optimize.second_order.lbfgs": MINIMIZED,
    "optimize.slimtik.start": {"width": kinds.count(4), "batch": kinds.count(3), "memory": kinds.count(2, least=0)},
    "optimize.slimtik.update": {
        "state": kinds.instance(slimtik.start(width=4, outputs=2, batch=3, memory=2)),
        "features": kinds.finite(o.X),
        "targets": kinds.finite(o.TARGETS),
        "damping": kinds.number(0.1),
        "least": kinds.positive(1e-7),
        "most": kinds.positive(1e-3),
    },
    "optimize.slimtik.train": {
        **VARIABLE,
        "batches": kinds.data(BATCHES),
        "memory": kinds.count(2, least=0),
        "damping": kinds.number(0.1),
        "least": kinds.positive(1e-7),
        "most": kinds.positive(1e-3),
    },
    **{
        f"optimize.train.{name}": TRAINED
        for name in [
            "descend",
            "distance",
            "early_stopping",
            "every",
            "fit",
        ]
    },
    "optimize.train.accuracy": {
        **TRAINED,
        "x": kinds.data(o.X).also(o.X[:2], o.X[:0]),
        "apply": kinds.function(o.apply),
        "targets": kinds.real(o.LABELS, np.zeros(2, int), np.zeros((3, 1), int), np.full(3, -1)),
    },
    "optimize.train.with_moment": {"function": kinds.function(lambda params, moment: 0.0)},
    "optimize.train.gradient_noise": {**TRAINED, "loss": kinds.function(o.loss)},
    "optimize.train.update_ratio": {**TRAINED, "loss": kinds.function(o.loss)},
    "optimize.train.resident": {**TRAINED, "key": kinds.key(o.KEY).without(None)},
    "optimize.train.read": {"folder": kinds.path(None), "params": kinds.free(o.PARAMS)},
    "optimize.train.whole": {"data": kinds.data((o.X, o.TARGETS)).also((), None)},
    **{f"optimize.varpro.{name}": VARIABLE for name in ("minimize", "reduced", "full", "readout")},
    "optimize.varpro.project": {**VARIABLE, "matrix": kinds.finite(DESIGN), "targets": kinds.finite(ANSWERS)},
}
EXTRA = {
    "optimize.train.fit": {"batches": training.whole((o.X, o.TARGETS)), "steps": 2},
    "optimize.train.gradient_noise": {"size": 1},
}
