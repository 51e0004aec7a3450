"""Good calls of analysis."""

import types

import jax.numpy as jnp
import numpy as np
import optax

from numdl import activations
from numdl.analysis import control, curvature, laplace, regularity
from numdl.networks import recurrent
from numdl.optimize import losses
from tests.registry import kinds
from tests.registry import objects as o

DENSE, DENSE_PARAMS, _ = o.built("dense")
NETWORK = kinds.instance(DENSE)
OF_NETWORK = {"network": NETWORK, "params": kinds.like(DENSE_PARAMS), "x": kinds.batch(o.X)}
AT_ONE = {**OF_NETWORK, "x": kinds.batch(o.X[:1])}
LIFTED = {
    "examples": kinds.Argument(None, ("tpyo", 7, 0.5)),
    "params": kinds.data(o.PARAMS),
    "x": kinds.data(o.X).also(np.ones((0, 4)), None),
}
DIRECTION = kinds.like(o.PARAMS)
SIDES = np.add.outer(np.arange(8), np.arange(8)) < 7
GRID = kinds.real(np.array([-1.0, 0.0, 1.0]))
STACK = {name: np.stack([leaf, 2 * leaf, leaf + 1]) for name, leaf in o.PARAMS.items()}
STATES = kinds.batch(np.linspace(-1.0, 1.0, 12).reshape(3, 4))
FILTERS = {
    "apply": kinds.function(o.apply),
    "x": LIFTED["x"],
    "outputs": kinds.Argument(None, ("tpyo", {"tpyo": 0}, 1.5, {"w": 7})),
    "stacked": kinds.Argument((), (("tpyo",), 3)),
}
OPERATOR = curvature.hessian(o.loss, o.PARAMS, (o.X, o.TARGETS))
POSTERIOR = laplace.Posterior(
    OPERATOR, np.ones(1), np.eye(1, OPERATOR.size), *map(np.float64, (0.0, 3.0, 1.0)), np.asarray(True)
)
NORMS = [regularity.Norms(depth, *np.full(6, 1.0 / depth)) for depth in (4, 8, 16)]
MEMORY = recurrent.Memory(np.zeros((2, 4)), np.zeros((2, 4)))
INPUTS = np.linspace(-1.0, 1.0, 24).reshape(3, 2, 4)
SPLIT = types.SimpleNamespace(mean=np.ones((2, 2, 4)), deviation=np.ones((2, 2, 3, 4)), log_scale=np.zeros((2, 2)))
CURVED = {"which": kinds.name("largest"), "method": kinds.name("hutchinson"), "width": kinds.positive(0.1)}
PROBABILITIES = np.array([0.25, 0.75])


def outputs(params, batch):
    """The network's outputs on a batch."""
    return o.apply(params, batch[0])


def of_outputs(z, batch):
    """The loss of the outputs."""
    return jnp.mean((z - batch[1]) ** 2)


def refine(factor, solver):
    """A function that changes a little with the factor."""
    return lambda x: np.asarray(x)[:, :2] * (1 + 0.1 / factor)


ATTACKED = {
    "params": kinds.data(o.PARAMS),
    "x": kinds.batch(o.X),
    "targets": kinds.labels(o.LABELS, classes=2),
    "loss": kinds.loss(losses.softmax_cross_entropy),
    "radius": kinds.variance(0.1),
    "bounds": kinds.Argument((-2.0, 2.0), (3, "ab", (1.0,), (1.0, 0.0), (np.nan, 1.0), (0.0, np.inf), ("0", "1"))),
    "norm": kinds.name("max"),
    "key": kinds.key(o.KEY).without(None),
}
ESTIMATED = {
    "f": kinds.loss(lambda z: jnp.sum(z**2)),
    "mean": kinds.finite(np.ones(2)),
    "variance": kinds.positive(0.5),
    "baseline": kinds.number(0.0),
}
TASK = control.Task(lambda params, x: -params @ x, lambda key, x, u: x, lambda x, u: x @ x, lambda x: x @ x, 2)
ACTED = {
    "params": kinds.tree(np.ones((1, 4))),
    "task": kinds.instance(TASK),
    "variance": kinds.positive(0.5),
    "seen": kinds.instance(control.Episodes(np.ones((3, 3, 4)), np.ones((3, 2, 1)), np.ones((3, 3)), np.ones((3, 3)))),
    "policy": kinds.function(TASK.policy),
}
LAPLACE = {
    "operator": kinds.instance(OPERATOR),
    "posterior": kinds.instance(POSTERIOR),
    "scale": kinds.positive(3.0),
    "prior_precision": kinds.positive(1.0),
    "k": kinds.count(2).without(None),
    "key": kinds.key(o.KEY),
    "misfit": kinds.number(1.0),
    "x": kinds.batch(o.X),
}
STREAM = {
    "network": kinds.instance(o.built("tokens")[0]),
    "params": kinds.like(o.built("tokens")[1]),
    "x": kinds.batch(o.TOKENS),
}
WIDENED = {
    "build": kinds.function(o.build, 1.0, (1, 2, 3)),
    "widths": kinds.counts((2, 3, 4)).also((4, 3, 2), (2, 2, 3), (2,)),
    "batch": kinds.Argument((o.X, o.TARGETS), (None, 3, o.X, (o.X,), ("text", o.TARGETS))),
    "loss": kinds.Argument(None, (3, "text")),
    "rates": kinds.Argument((0.1, 0.2, 0.4), (None, 3, "text", (0.1,), (0.2, 0.1, 0.4), (-0.1, 0.1, 0.2))),
    "expected": kinds.Argument(None, (3, {"tpyo": 0.0}, {"output": float("nan")})),
    "target": kinds.number(0.1),
}
CALLS = {
    **{f"analysis.laplace.{name}": LAPLACE for name in ("predict", "draw", "evidence")},
    "analysis.laplace.posterior": {**LAPLACE, "key": kinds.key(o.KEY).without(None)},
    "analysis.scaling.coordinate_check": WIDENED | {"optimizer": kinds.instance(o.OPTIMIZER)},
    "analysis.scaling.sensitivity": {
        "rates": WIDENED["rates"],
        "loss": kinds.real(np.ones(3), np.ones(2), np.ones((3, 2))),
        "first": kinds.real(np.float64(2.0)),
    },
    "analysis.scaling.transfer": WIDENED | {"optimizer": kinds.function(optax.sgd)},
    **{f"analysis.robustness.{name}": ATTACKED for name in ("fast_gradient_sign", "projected_gradient")},
    **{f"analysis.robustness.{name}": ATTACKED for name in ("linear_distance", "boundary", "lipschitz")},
    "analysis.estimators.pathwise": ESTIMATED,
    "analysis.estimators.score_function": ESTIMATED,
    "analysis.control.episodes": {**ACTED, "params": kinds.data(np.ones((1, 4))), "x": kinds.floating(o.X)},
    "analysis.control.policy_gradient": {**ACTED, "baseline": kinds.numbers(0.0, np.ones((3, 7)))},
    "analysis.control.value": {**ACTED, "features": kinds.function(lambda x: x), "bootstrap": kinds.flag(True)},
    "analysis.games.spectrum": {
        "losses": kinds.Argument((o.loss_of_player,), (None, 3, "text", (), (3,), (o.loss_of_player,) * 2)),
        "players": kinds.Argument((o.PARAMS,), (None, 3, "text", ("text",), (np.ones(2, int),))),
        "frozen": kinds.Argument((), (3, "tpyo")),
    },
    "analysis.attention.rank_collapse": {
        "network": kinds.instance(o.built("tokens")[0]),
        "params": kinds.like(o.built("tokens")[1]),
        "x": kinds.floating(o.TOKENS),
    },
    "analysis.transformer.softmax_moments": {**LIFTED, "apply": kinds.function(o.apply)},
    "analysis.transformer.stream": STREAM,
    "analysis.transformer.gradients": {**STREAM, "loss": kinds.loss(lambda outputs: jnp.sum(outputs**2))},
    "analysis.transformer.stream_of": {"states": kinds.floating(np.ones((2, 2, 3, 4)), np.ones((2, 3, 4)))},
    "analysis.transformer.weight_gradients": {
        **{
            name: kinds.Argument(np.ones((2, 3)), (None, "1", np.ones((2, 3), int)))
            for name in ("query", "key", "value")
        },
        "stacked": kinds.count(1, least=0),
    },
    "analysis.attention.logits": {**LIFTED, "apply": kinds.function(o.apply)},
    "analysis.attention.rank_collapse_of": {"split": kinds.Argument(SPLIT, (None, 3, "text", {}))},
    "analysis.curvature.blocks": {"operator": kinds.instance(OPERATOR), "by": kinds.name("layer")},
    "analysis.curvature.restrict": {
        "operator": kinds.instance(OPERATOR),
        "names": kinds.Argument(("w",), (("tpyo",), (), 3, None, ("",))),
    },
    "analysis.curvature.needs": {
        "operator": kinds.instance(OPERATOR),
        "basis": kinds.count(4),
        "extra": kinds.count(4, least=0),
    },
    **{f"analysis.curvature.{name}": dict(CURVED) for name in ("diagonal", "frobenius_norm", "trace")},
    "analysis.curvature.spectral_density": {**CURVED, "points": kinds.count(10, least=2)},
    "analysis.curvature.top_eigenvalues": {
        **CURVED,
        "k": kinds.count(2),
        "basis": kinds.count(12),
        "start": DIRECTION,
        "deflate": DIRECTION,
    },
    "analysis.curvature.hessian": {},
    "analysis.curvature.empirical_fisher": {},
    "analysis.curvature.fisher": {"outputs": kinds.function(outputs, "text"), "likelihood": kinds.name("gaussian")},
    "analysis.curvature.gauss_newton": {
        "outputs": kinds.function(outputs, "text"),
        "loss_of_outputs": kinds.function(of_outputs, np.ones(3), "text", None, 1j),
    },
    "analysis.curvature.kronecker": {
        "outputs": kinds.function(outputs, "text"),
        "loss_of_outputs": kinds.function(of_outputs, np.ones(3), "text", None, 1j),
        "fisher": kinds.name("exact"),
        "sharing": kinds.name("expand"),
        "corrected": kinds.flag(False),
        "key": kinds.Argument(None, (3, "text", o.KEY)),
        "samples": kinds.count(1),
        "chunk": kinds.count(2),
    },
    "analysis.curvature.gradient_overlap": {"vectors": kinds.like(STACK)},
    "analysis.curvature.outliers": {
        "values": kinds.real(np.array([3.0, 1.0, 0.5])),
        "intervals": kinds.real(np.ones((3, 2)), np.ones((2, 2))),
        "least_ratio": kinds.positive(1.5),
    },
    "analysis.descent.sharpness": {"start": DIRECTION, "preconditioner": DIRECTION},
    "analysis.descent.along": {"every": kinds.count(1)},
    "analysis.descent.adam_preconditioner": {"b2": kinds.probability(0.9), "eps": kinds.variance(1e-8)},
    "analysis.descent.path": {"steps": kinds.count(2, least=0), "loss": kinds.loss(o.loss_of_params)},
    "analysis.descent.mode_strength": {
        "matrices": kinds.Argument([o.MATRIX, o.MATRIX], (None, 3, "text", [], ["text"], [o.MATRIX, np.ones((2, 2))])),
        "left": kinds.real(o.VECTOR[None], np.ones((1, 2))),
        "right": kinds.real(o.VECTOR[None], np.ones((1, 2))),
    },
    "analysis.regularity.norms": {"weights": kinds.tree(STACK).also({"w": np.ones((1, 3))}, 3.0)},
    "analysis.regularity.exponents": {
        "found": kinds.Argument(NORMS, (None, 3, "text", [], NORMS[0], NORMS[:2], [*NORMS[:2], 3.5], [NORMS[0]] * 3))
    },
    "analysis.generalization.gap": {
        "train_losses": kinds.real(np.array([0.1, 0.2, 0.3])),
        "test_losses": kinds.real(np.array([0.2, 0.3, 0.4])),
    },
    "analysis.generalization.margins": {
        "outputs": kinds.floating(o.TARGETS),
        "labels": kinds.labels(o.LABELS, classes=2),
        "scale": kinds.positive(1.0),
    },
    "analysis.generalization.norms": {**FILTERS, "params": kinds.tree(o.PARAMS), "reference": DIRECTION},
    "analysis.spectra.eigenvalues": {**FILTERS, "params": kinds.tree(o.PARAMS)},
    "analysis.spectra.power_laws": {
        **FILTERS,
        "params": kinds.tree(o.PARAMS),
        "least": kinds.count(30, least=10),
        "draws": kinds.count(2),
    },
    "analysis.generalization.path_norm": {**LIFTED, "apply": kinds.function(o.rectified)},
    "analysis.generalization.tolerated_variance": {
        "rise": kinds.positive(0.1),
        "smallest": kinds.positive(1e-6),
        "largest": kinds.positive(1.0),
    },
    "analysis.generalization.neural_collapse": {
        "features": kinds.floating(np.linspace(-1.0, 1.0, 24).reshape(6, 4)),
        "labels": kinds.labels(np.array([0, 0, 1, 1, 2, 2])),
        "weights": kinds.real(np.linspace(-1.0, 1.0, 12).reshape(4, 3)),
        "bias": kinds.real(np.zeros(3), np.zeros(2)),
        "classes": kinds.count(3),
    },
    "analysis.gradients.growth": {"network": NETWORK, "loss": kinds.loss(o.loss_of_outputs)},
    "analysis.gradients.growth_at": {
        **OF_NETWORK,
        "cotangent": kinds.floating(np.ones((3, 2)), np.ones((3, 1)), np.ones(3)),
    },
    "analysis.gradients.growth_of_function": {
        "init": kinds.function(lambda key: o.PARAMS),
        "x": LIFTED["x"],
        "loss": kinds.loss(o.loss_of_outputs),
    },
    "analysis.information.entropy": {
        "probabilities": kinds.finite(PROBABILITIES, np.array([0.5, 0.6]), np.array([-0.5, 1.5]))
    },
    "analysis.information.mutual_information": {"joint": kinds.finite(np.full((2, 2), 0.25), np.full((2, 2), 0.3))},
    "analysis.information.binned": {
        "states": kinds.data(STATES.good),
        "labels": kinds.Argument(o.LABELS, (o.LABELS[:2], np.zeros((3, 1), int), kinds.masked((3,), int))),
        "widths": kinds.numbers(np.array([0.5]), -1.0),
    },
    "analysis.information.kernel_bounds": {
        "states": kinds.data(STATES.good),
        "labels": kinds.Argument(o.LABELS, (o.LABELS[:2], np.zeros((3, 1), int), kinds.masked((3,), int))),
        "noise_variances": kinds.numbers(np.array([0.5]), -1.0),
    },
    "analysis.information.plane": {
        "states": kinds.Argument([np.stack([STATES.good] * 2)], (None, 3, "text", [], ["text"], STATES.good)),
        "labels": kinds.Argument(o.LABELS, (o.LABELS[:2], np.zeros((3, 1), int), kinds.masked((3,), int))),
        "widths": kinds.numbers(np.array([0.5]), -1.0),
        "noise_variances": kinds.free(None),
    },
    "analysis.initialization.explain": {
        "activation": kinds.function(activations.tanh),
        "apply": kinds.function(o.apply),
        "x": LIFTED["x"],
        "loss": kinds.function(o.loss_of_outputs).without(None),
        "examples": LIFTED["examples"],
        "layouts": kinds.Argument(None, ("tpyo", {"tpyo": "IO"}, 3)),
        "transposed": kinds.Argument((), (("tpyo",), 3)),
        "stacked": kinds.Argument((), (("tpyo",), 3)),
    },
    "analysis.initialization.defaults": {
        "framework": kinds.name("flax"),
        "layer": kinds.name("dense"),
        "shape": kinds.counts((4, 2)).also((4,), (4, 2, 3)),
    },
    "analysis.layers.probe": {
        **LIFTED,
        "loss": kinds.loss(o.loss_of_outputs),
        "rank_examples": kinds.count(2, least=2),
    },
    "analysis.layers.capture": {
        "examples": kinds.free(None),
        "apply": kinds.function(o.apply),
        "select": kinds.Argument("w", (3, "", [3], [], {})),
    },
    "analysis.layers.summary": {
        "apply_or_network": kinds.function(o.apply, "text"),
        "x_shape": kinds.Argument((3, 4), (None, 3, "text", (), (0, 4), (-1, 4), (2.5, 4), (True, 4), {})),
        "params": kinds.data(o.PARAMS),
    },
    "analysis.layers.tap": {"x": kinds.Argument(o.X, ("text", None, *kinds.spoiled(o.X))), "name": kinds.text("here")},
    "tracing.example_axes": {
        "x": kinds.Argument(o.X, (None, {}, o.X[:0], 3.0, (o.X, o.X[:2]))),
        "examples": kinds.Argument(None, ("tpyo", 7, 0.5)),
    },
    "tracing.trace": {**LIFTED, "x": kinds.data(o.X)},
    "tracing.place": {
        "apply": kinds.function(o.apply),
        "visit": kinds.function(lambda layer, state, given: (state, None)),
        "weigh": kinds.function(lambda layer, weight, given: (weight, None)),
    },
    "analysis.normalization.gradient_growth": {"network": NETWORK},
    "analysis.normalization.correlation": {**OF_NETWORK, "x": kinds.batch(o.X).also(o.X[:1])},
    "analysis.propagation.lengths": {"network": NETWORK},
    "analysis.propagation.covariances": {"network": NETWORK},
    "analysis.propagation.correlations": {"network": NETWORK, "x": kinds.batch(o.PAIRS).also(o.X, np.ones((2, 3, 4)))},
    "analysis.propagation.lengths_at": OF_NETWORK,
    "analysis.propagation.covariances_at": OF_NETWORK,
    "analysis.propagation.correlations_at": {**OF_NETWORK, "x": kinds.batch(o.PAIRS).also(o.X)},
    "analysis.propagation.branch_shares": OF_NETWORK,
    "analysis.shattering.gradient_correlations": {
        **OF_NETWORK,
        "x": kinds.batch(o.PAIRS).also(o.X),
        "cotangent": kinds.floating(np.ones(2), np.ones(3)),
    },
    "analysis.propagation.depth_scale": {
        "values": kinds.real(np.exp(-np.linspace(0.0, 1.0, 12)).reshape(2, 6), np.ones(6), np.ones((1, 6))),
        "start": kinds.limited(1, most=6),
        "stop": kinds.limited(4, most=6).also(2),
    },
    "analysis.jacobian.singular_values": {
        **AT_ONE,
        "start": kinds.limited(1, most=3, least=0),
        "stop": kinds.limited(2, most=4).also(1),
    },
    "analysis.jacobian.spectra": {
        "network": NETWORK,
        "x": kinds.batch(o.X[:1]).also(o.X),
        "start": kinds.limited(1, most=3, least=0),
        "stop": kinds.limited(2, most=4).also(1),
    },
    "analysis.jacobian.isometry": {
        "singular_values": kinds.batch(o.VECTOR**2),
        "zero_below": kinds.variance(0.1),
    },
    "analysis.jacobian.extremes": {
        **AT_ONE,
        "start": kinds.limited(1, most=3, least=0),
        "stop": kinds.limited(2, most=4),
    },
    "analysis.jacobian.trace_moments": {
        **AT_ONE,
        "start": kinds.limited(1, most=3, least=0),
        "stop": kinds.limited(2, most=4),
        "draws": kinds.count(3, least=2),
    },
    "analysis.jacobian.lyapunov_exponents": {"sampler": kinds.function(o.sampler, np.ones(7), "text")},
    "analysis.jacobian.lyapunov_exponents_along": {
        "step": kinds.function(lambda layer, y: layer @ y, np.ones(7), "text"),
        "layers": kinds.data(np.stack([o.MATRIX] * 2)).also(None, {}, (o.MATRIX, np.ones(2))),
        "y": kinds.floating(o.VECTOR),
    },
    "analysis.jacobian.product_norm": {
        "sampler": kinds.function(o.sampler, np.ones(7), "text"),
        "y": kinds.floating(np.ones(2), np.ones(3)),
    },
    **{
        f"analysis.recurrent.{name}": {
            "step": kinds.function(o.cell().step, "text"),
            "params": kinds.data(o.cell_params()),
            "start": kinds.data(MEMORY).also({}, recurrent.Memory(np.zeros((3, 4)), np.zeros((3, 4)))),
            "inputs": kinds.batch(INPUTS),
            "field": kinds.name("cell"),
        }
        for name in ("gradient_through_time", "carousel")
    },
    "analysis.stability.spectrum": {
        "field": kinds.function(o.field, np.ones(7), "text"),
        "theta": kinds.data(np.stack([np.eye(4)] * 2)).also(np.stack([np.eye(4)] * 3), None),
        "states": kinds.batch(np.ones((2, 1, 4))),
        "amplification": kinds.function(lambda z: 1 + z, "text"),
        "largest_step": kinds.function(lambda eigenvalues: 1.0),
        "krylov": kinds.count(2, least=2),
    },
    "analysis.stability.jacobians": {
        "field": kinds.function(o.field, np.ones(7), "text"),
        "theta": kinds.data(np.stack([np.eye(4)] * 2)).also(np.stack([np.eye(4)] * 3), None),
        "states": kinds.batch(np.ones((2, 1, 4))),
    },
    "analysis.refinement.study": {
        "refine": kinds.function(refine, "text", 3),
        "x": kinds.data(o.X).also(None, o.X[:0]),
        "factors": kinds.counts((1, 2, 4)).also((1,), (1, 2, 3), (4, 2, 1)),
        "solvers": kinds.Argument(("own",), (None, 3, ())),
        "labels": kinds.labels(o.LABELS),
    },
    "analysis.kernels.alignment": {
        "kernel1": kinds.real(o.MATRIX, np.ones((3, 2))),
        "kernel2": kinds.real(o.MATRIX, np.eye(2)),
        "centered": kinds.flag(True),
    },
    "analysis.kernels.drift": {"kernel0": kinds.real(o.MATRIX), "kernel": kinds.real(o.MATRIX, np.eye(2))},
    "analysis.kernels.target_kernel": {"targets": kinds.real(o.TARGETS)},
    **{
        f"analysis.kernels.{name}": {
            **LIFTED,
            "x1": kinds.data(o.X).also(None, o.X[:0]),
            "x2": kinds.data(o.X).also(o.X[:0]),
            "outputs": kinds.name("mean"),
            "method": kinds.name("auto"),
            "memory_limit": kinds.positive(1e9),
            "scale": kinds.Argument(None, ("text", {}, {"tpyo": 1.0})),
            "trajectory": kinds.tree(STACK),
            "params0": DIRECTION,
            "targets": kinds.real(o.TARGETS, np.ones((2, 2)), 3.0),
        }
        for name in ("estimate", "laziness", "linearization_error", "linearize", "ntk", "ntk_scale")
    },
    "analysis.kernels.nngp": {"network": NETWORK, "x1": kinds.data(o.X).also(None, o.X[:0]), "x2": kinds.batch(o.X)},
    "analysis.landscape.boundary": {
        "inside": kinds.real(SIDES, np.ones((8, 8)), np.ones((8, 8), int), SIDES[:1], True)
    },
    "analysis.landscape.box_dimension": {
        "marked": kinds.real(SIDES, np.ones((8, 8)), np.ones((8, 8), int), SIDES[:6], True),
        "sizes": kinds.counts((1, 2, 4)).without(None).also((1,), (2, 1), (1, 2, 9)),
    },
    "analysis.landscape.align": {
        "reference": DIRECTION,
        "layers": kinds.free(None),
        "sweeps": kinds.count(2),
        "params": kinds.tree({"0": {"kernel": np.eye(4)}, "1": {"kernel": np.eye(4)}}),
    },
    **{
        f"analysis.landscape.{name}": {
            **(FILTERS if name == "direction" else {}),
            "start": kinds.tree(o.PARAMS),
            "stop": DIRECTION,
            "points": kinds.count(3, least=2),
            "along": DIRECTION,
            "u": DIRECTION,
            "v": DIRECTION,
            "positions": GRID,
            "first": GRID,
            "second": GRID,
            "normalize": kinds.name("layer"),
            "vectors": kinds.flag(False),
            "trajectory": kinds.tree(STACK),
            "tolerance": kinds.variance(0.1),
        }
        for name in ("connect", "critical_point", "direction", "interpolation", "line", "plane", "plane_of_trajectory")
    },
}
# The linear model is built before there are data to try the function on: what it returns is refused when it is called.
CALLS["analysis.kernels.linearize"]["apply"] = kinds.function(o.apply)
CALLS["analysis.landscape.align"]["reference"] = kinds.like(CALLS["analysis.landscape.align"]["params"].good)
for _name, _call in CALLS.items():
    if _name.startswith("analysis.curvature.") and _name != "analysis.curvature.gradient_overlap":
        _call["loss"] = kinds.function(o.loss, np.ones(3), "text", None, 1j)  # a pair is a sum and its weight
MEASURED = {"params": o.PARAMS, "batch": (o.X, o.TARGETS)}
EXTRA = {
    **{
        f"analysis.{name}": {"apply": o.apply, "x": o.X}
        for name in (
            "initialization.explain",
            "landscape.direction",
            "generalization.norms",
            "spectra.eigenvalues",
            "spectra.power_laws",
        )
    },
    "analysis.information.plane": {"widths": np.array([0.5])},
    "analysis.layers.summary": {"params": o.PARAMS},
    **{
        f"analysis.curvature.{name}": MEASURED
        for name in ("diagonal", "frobenius_norm", "trace", "spectral_density", "top_eigenvalues")
    },
}
