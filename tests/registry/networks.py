"""Good calls of networks."""

import jax.numpy as jnp
import numpy as np

from numdl import activations
from numdl.networks import autoencoder, convolutional, normalization, recurrent, transformer
from numdl.ode import adjoints, tableaus
from tests.registry import kinds
from tests.registry import objects as o

FLOW = {
    "widths": kinds.counts((4, 4, 2)),
    "depth": kinds.Argument(2, (0, -1, True, "3", 2.5, None, (2, 2), ())),
    "step": kinds.number(0.1),
    "time": kinds.number(1.0),
    "connector_weight_variance": kinds.variance(1.0),
    "window": kinds.count(3, least=1).also(2, (3,), (3, 4), (3, 3, 3), (None, 3)),
    "pool": kinds.count(1),
    "connector": kinds.name("affine"),
    "hidden": kinds.count(4),
    "block": kinds.name("one_layer"),
    "adjoint": kinds.function(adjoints.reversible),
}
SETTINGS = {"weight_variance": 1.0, "step": 0.1}
CHANNELS = np.ones(4)
NORM = {
    "gain": kinds.floating(CHANNELS, np.ones(3)),
    "bias": kinds.floating(CHANNELS, np.ones(3)),
    "eps": kinds.variance(1e-5),
    "known": kinds.instance(normalization.Statistics(np.zeros(4), np.ones(4))),
    "running": kinds.instance(normalization.Statistics(np.zeros(4), np.ones(4))),
    "direction": kinds.batch(np.ones((4, 4))),
    "decay": kinds.probability(0.9),
}
DENSE, DENSE_PARAMS, _ = o.built("dense")
OF_NETWORK = {"network": kinds.instance(DENSE), "params": kinds.like(DENSE_PARAMS), "x": kinds.batch(o.X)}
LIFTED = {
    "examples": kinds.Argument(None, ("tpyo", 7, 0.5)),
    "params": kinds.data(o.PARAMS),
    "x": kinds.data(o.X).also(np.ones((0, 4)), None),
}
CODES = autoencoder.network(widths=(4, 2), activation=activations.tanh, weight_variance=1.0, bias_variance=0.0)
GAUSSIAN = autoencoder.network(
    widths=(4, 2), activation=activations.tanh, weight_variance=1.0, bias_variance=0.0, gaussian=True
)
CODED = {
    "autoencoder": kinds.instance(CODES),
    "params": kinds.data(GAUSSIAN.init(o.KEY, o.X)),
    "x": kinds.floating(o.X),
    "alpha": kinds.variance(0.1),
    "sparsity": kinds.variance(0.1),
    "start": kinds.floating(np.zeros((3, 2))),
}
SIGNS = np.array([1.0, -1.0, 1.0])
WEIGHTS = kinds.floating(np.ones((3, 3)) - np.eye(3), np.ones((3, 2)), np.full((3, 3), np.nan))
STAGES = (convolutional.Stage(2, 3),)
FORM = {"form": kinds.name("native")}


def of(kind):
    """The network, parameters and input of an architecture."""
    network, params, x = o.built(kind)
    return {"network": kinds.instance(network), "params": kinds.like(params), "x": kinds.batch(x)}


MASK = kinds.Argument(np.ones((3, 3), bool), ("1", None, np.ones((3, 2), bool), np.ones((3, 3))))
STACK = transformer.blocks(
    depth=2,
    heads=2,
    head_width=2,
    mlp_width=4,
    query_key_weights=o.WEIGHTS,
    value_weights=o.WEIGHTS,
    mlp_weights=o.WEIGHTS,
    activation=activations.tanh,
    norm="pre",
)
MODEL = {
    "blocks": kinds.instance(STACK),
    "vocabulary": kinds.count(5),
    "width": kinds.count(4),
    "embedding_variance": kinds.variance(1.0),
    "tied": kinds.flag(False),
    "readout_weights": kinds.instance(o.WEIGHTS),
    "positions": kinds.name("learned"),
    "positions_variance": kinds.variance(0.0),
    "dtype": kinds.dtype("float32"),
}
MACHINE = {"visible": np.zeros(3), "hidden": np.zeros(2), "weights": np.linspace(-1.0, 1.0, 6).reshape(3, 2)}
BOLTZMANN = {
    "params": kinds.like(MACHINE),
    "v": kinds.batch(np.ones((4, 3))).also(np.ones((4, 2))),
    "x": kinds.batch(np.ones((4, 3))).also(np.ones((4, 2))),
}
HELMHOLTZ = {
    "params": kinds.like(
        {
            "generative": {"prior": np.zeros(2), "visible": np.zeros(3), "weights": np.ones((2, 3))},
            "recognition": {"hidden": np.zeros(2), "weights": np.ones((3, 2))},
        }
    ),
    "x": kinds.floating(np.ones((4, 3)), np.ones((4, 2))),
}
CALLS = {
    "networks.helmholtz.init": {
        "visible": kinds.count(3),
        "hidden": kinds.count(2),
        "entry_variance": kinds.variance(0.1),
    },
    "networks.helmholtz.evidence": HELMHOLTZ,
    "networks.helmholtz.wake_sleep": HELMHOLTZ,
    "networks.helmholtz.dream": {**HELMHOLTZ, "count": kinds.count(2)},
    "networks.boltzmann.init": {
        "visible": kinds.count(3),
        "hidden": kinds.count(2),
        "entry_variance": kinds.variance(0.1),
    },
    "networks.boltzmann.states": {"units": kinds.limited(3, most=20)},
    "networks.boltzmann.free_energy": BOLTZMANN,
    "networks.boltzmann.log_likelihood": BOLTZMANN,
    "networks.boltzmann.gibbs": {**BOLTZMANN, "steps": kinds.count(2, least=0)},
    "networks.boltzmann.contrastive_divergence": BOLTZMANN,
    "networks.boltzmann.transition": BOLTZMANN,
    "networks.boltzmann.deep_belief": {
        **BOLTZMANN,
        "lower": kinds.like(MACHINE),
        "top": kinds.like({"visible": np.zeros(2), "hidden": np.zeros(3), "weights": np.ones((2, 3))}).also(MACHINE),
    },
    "networks.attention.soft": {"scores": kinds.batch(o.X)},
    "networks.attention.top_1": {"scores": kinds.batch(o.X)},
    "networks.attention.gumbel": {"scores": kinds.batch(o.X), "temperature": kinds.positive(1.0)},
    "networks.attention.attend": {name: kinds.batch(o.TOKENS) for name in ("queries", "keys", "values")}
    | {
        "weights": kinds.function(lambda scores: scores),
        "mask": MASK.without(None),
        "scale": kinds.number(0.5).without(None),
    },
    "networks.transformer.blocks": {
        "heads": kinds.count(2),
        "head_width": kinds.count(2),
        "mlp_width": kinds.count(4).without(None),
        "activation": kinds.function(o.elementwise),
        "mlp_weights": kinds.instance(o.WEIGHTS),
        "norm": kinds.name("pre"),
        "normalization": kinds.name("rms"),
        "scale": kinds.name("qk_norm"),
        "mask": kinds.name("causal").also(np.ones((2, 3), bool)),
        "skip": kinds.name("depth").also((1.0, float("nan")), (1.0,)),
        "key_value_heads": kinds.count(1).without(None),
        "gated": kinds.flag(True),
        "rotary": kinds.flag(True),
        "eps": kinds.variance(1e-5),
    },
    "networks.transformer.admin": of("admin"),
    "networks.transformer.network": {"blocks": kinds.instance(STACK)},
    "networks.transformer.language_model": MODEL,
    "networks.transformer.encoder_decoder": {
        **MODEL,
        "encoder": kinds.instance(STACK),
        "decoder": kinds.instance(STACK),
    },
    "networks.transformer.vision": {
        "blocks": kinds.instance(STACK),
        "patch": kinds.count(2),
        "width": kinds.count(4),
        "embedding_weights": kinds.instance(o.WEIGHTS),
        "positions": kinds.name("learned"),
        "positions_variance": kinds.variance(0.0),
    },
    "networks.attention.self_attention": {
        "params": kinds.tree({name: np.ones((1, 4, 4)) for name in ("query", "key", "value", "output")}),
        "x": kinds.batch(o.TOKENS),
        "weights": kinds.function(lambda scores: scores),
    },
    "networks.attention.network": {
        "heads": kinds.count(1),
        "head_width": kinds.count(4),
        "mlp_width": kinds.count(4),
        "selection": kinds.name("soft"),
        "temperature": kinds.positive(1.0),
    },
    "networks.attention.split_states": {
        "params": kinds.data(o.built("tokens")[1]).also(None, {}),
        "x": kinds.floating(o.TOKENS),
    },
    "networks.autoencoder.network": {
        "code_activation": kinds.function(o.elementwise).without(None),
        "output_activation": kinds.function(o.elementwise).without(None),
        "gaussian": kinds.flag(False),
    },
    "networks.autoencoder.principal": {"x": kinds.finite(o.X), "code": kinds.limited(2, most=4)},
    "networks.autoencoder.energy": {**CODED, "codes": kinds.floating(np.ones((len(o.X), 2)))},
    "networks.autoencoder.optimal_codes": CODED,
    "networks.autoencoder.pretrain": {"x": kinds.floating(o.X), "fit": kinds.function(lambda net, params, x: params)},
    "networks.variational.evidence": {
        **CODED,
        "noise_variance": kinds.positive(0.5),
        "autoencoder": kinds.instance(GAUSSIAN),
    },
    "networks.alternation.minimize": {
        **CODED,
        "params": kinds.data(CODES.init(o.KEY, o.X)),
        "fit": kinds.function(lambda params, x, codes: params),
        "rounds": kinds.count(1),
    },
    "networks.dropout.drop": {},
    "networks.dropout.outputs": {"params": kinds.data(DENSE_PARAMS).also({}), "x": kinds.floating(o.X)},
    "networks.dropout.states": {"params": kinds.data(DENSE_PARAMS).also({}), "x": kinds.floating(o.X)},
    "networks.by_hand.backpropagate": {
        "params": kinds.data(DENSE_PARAMS).also({}),
        "x": kinds.floating(o.X),
        "loss": kinds.function(lambda outputs: (outputs.sum(), outputs)),
        "activation": kinds.instance(activations.tanh),
    },
    "networks.by_hand.dependencies": {"hidden": kinds.count(2)},
    "networks.by_hand.interpolant": {
        "knots": kinds.real(np.arange(3.0), np.zeros(3), np.full(3, np.nan)),
        "values": kinds.real(np.arange(3.0), np.arange(2.0), np.full(3, np.nan)),
    },
    "networks.by_hand.square": {},
    "networks.concatenated.network": {},
    "networks.concatenated.parameter_count": {
        "params": kinds.data({"layers": {"kernel": np.ones((2, 4, 2))}}).also({})
    },
    "networks.convolutional.network": {
        "stages": kinds.Argument(STAGES, (None, 3, (), ("text",), (convolutional.Stage(0, 3),))),
        "hidden": kinds.counts((4,)).without(()),
        "pooling": kinds.name("average"),
    },
    "networks.convolutional.lenet5": {"padding": kinds.name("same"), "outputs": kinds.count(10)},
    "networks.convolutional.lecun1990": {"outputs": kinds.count(10)},
    "networks.convolutional.convolve": {
        "y": kinds.floating(o.IMAGES),
        "kernel": kinds.floating(np.ones((3, 3, 1, 2)), np.ones((3, 3, 2, 2))),
        "padding": kinds.name("valid"),
    },
    "networks.convolutional.pool": {
        "y": kinds.floating(o.IMAGES),
        "window": kinds.count(2).also(9),
        "stride": kinds.count(1),
        "kind": kinds.name("max"),
    },
    "networks.image.lecun_1990": FORM,
    "networks.image.lenet5": FORM,
    "networks.image.alexnet": FORM,
    "networks.image.googlenet": FORM,
    "networks.image.resnet": FORM | {"depth": kinds.Argument(18, (0, -1, 20, True, "18", None, (18,)))},
    "networks.image.small_resnet": FORM | {"widths": kinds.counts((4, 8)), "blocks": kinds.counts((1, 1)).also((1,))},
    "networks.image.freeze": of("residual images"),
    "networks.core.jacobian": {
        **OF_NETWORK,
        "x": kinds.batch(o.X[:1]).also(o.X),
        "start": kinds.limited(1, most=3, least=0),
        "stop": kinds.limited(2, most=4).also(1),
    },
    "networks.core.last_state": {
        "states": kinds.Argument((np.ones((1, 3, 4)),), (None, 3, "text")),
        "x": kinds.free(o.X),
    },
    "networks.core.layer_count": {"states": kinds.Argument((np.ones((1, 3, 4)),), (None, 3, "text"))},
    "networks.core.per_layer": {
        "function": kinds.function(jnp.mean),
        "states": kinds.Argument((np.ones((1, 3, 4)),), (None, 3, "text")),
    },
    "networks.core.split_probes": {
        "probes": kinds.Argument((np.ones((1, 3, 4)),), (3, "text", ())),
        "stretches": kinds.count(1, least=0),
    },
    "networks.core.state_gradients": {**OF_NETWORK, "loss": kinds.loss(o.loss_of_outputs)},
    "networks.core.traceable": {"network": kinds.instance(DENSE)},
    "networks.core.zero_probes": OF_NETWORK,
    "networks.core.lift": {**LIFTED, "apply": kinds.function(o.apply, "text", (1.0, 2.0))},
    "networks.lift.state_names": {**LIFTED, "apply": kinds.function(o.apply, "text", (1.0, 2.0))},
    "networks.dense.network": {"law": kinds.name("normal"), "readout_bias_variance": kinds.variance(0.1)},
    "networks.highway.network": {"gate_bias": kinds.number(-1.0), "gate_weight_variance": kinds.variance(1.0)},
    "networks.highway.gates": of("highway"),
    "networks.hopfield.hebbian": {"patterns": kinds.finite(SIGNS[None], np.full((1, 3), 0.5))},
    "networks.hopfield.energy": {
        "weights": WEIGHTS,
        "state": kinds.batch(SIGNS),
    },
    "networks.hopfield.overlap": {"pattern": kinds.batch(SIGNS), "state": kinds.batch(SIGNS).also(np.ones(2))},
    "networks.hopfield.synchronous": {
        "weights": WEIGHTS,
        "state": kinds.batch(SIGNS),
    },
    "networks.hopfield.asynchronous": {
        "weights": WEIGHTS,
        "state": kinds.batch(SIGNS),
        "order": kinds.Argument(
            np.array([[0, 1, 2]]), (None, "text", np.array([[0, 1, 3]]), np.array([[0.5]]), np.array([0]))
        ),
    },
    "networks.hopfield.sweeps": {"units": kinds.count(3), "count": kinds.count(2)},
    "networks.initializers.variance_scaling": {"mode": kinds.name("fan_in"), "law": kinds.name("normal")},
    "networks.initializers.orthogonal": {},
    "networks.initializers.normal": {},
    "networks.initializers.truncated_normal": {},
    "networks.initializers.rademacher": {},
    "networks.initializers.uniform": {"half_width": kinds.variance(1.0)},
    "networks.initializers.fans": {"shape": kinds.counts((4, 2)).also((4,))},
    **{
        f"networks.normalization.{name}": NORM
        for name in ["batch", "layer", "rms", "weight", "statistics", "update", "normalize"]
    },
    "networks.normalization.network": {"kind": kinds.name("batch"), "eps": kinds.variance(1e-5)},
    "networks.normalization.freeze": of("normalized"),
    "networks.pixelwise.network": {"width": kinds.count(3), "window": kinds.count(3).also(2)},
    "networks.recurrent.vanilla": {},
    "networks.recurrent.lstm": {"forget_bias": kinds.number(1.0)},
    "networks.recurrent.gru": {},
    "networks.recurrent.run": {
        "cell": kinds.instance(o.cell()),
        "params": kinds.like(o.cell_params()),
        "start": kinds.like(recurrent.Memory(np.zeros((2, 4)), np.zeros((2, 4)))),
        "inputs": kinds.floating(np.ones((3, 2, 4))),
    },
    **{
        f"networks.recurrent.{name}": {"cell": kinds.instance(o.cell()), "feedback": kinds.flag(False)}
        for name in ("many_to_one", "many_to_many", "one_to_many")
    },
    "networks.residual.network": {
        **FLOW,
        "damping": kinds.free(None),
        "tableau": kinds.instance(tableaus.euler),
        "norm": kinds.name("batch"),
        "skip": kinds.name("gate"),
    },
    "networks.residual.freeze": of("residual"),
    "networks.residual.unroll": {**of("residual"), "stage": kinds.Argument(0, (1, "0", 0.5, None))},
    "networks.residual.refine": {**of("residual"), "factor": kinds.count(2)},
    "networks.residual.with_tableau": {**of("residual"), "tableau": kinds.instance(tableaus.rk4)},
    "networks.sequences.network": {
        "encoder": kinds.instance(o.cell()),
        "decoder": kinds.instance(o.cell()),
        "key_width": kinds.count(2),
    },
    "networks.sequences.alignments": of("sequences"),
    "networks.reversible.hamiltonian": FLOW,
    "networks.reversible.leapfrog": {**FLOW, "block": kinds.name("symmetric")},
    "networks.reversible.coupling": {**FLOW, "block": kinds.name("two_layer")},
    "networks.reversible.antisymmetric": FLOW,
    "networks.reversible.inverse": {
        **of("reversible"),
        "y": kinds.batch(o.X),
        "stage": kinds.Argument(-1, (7, "0", 0.5, None)),
    },
}
EXTRA = {
    "networks.dense.network": {"weight_variance": 1.0},
    "networks.convolutional.network": {"weight_variance": 1.0},
    "networks.convolutional.lenet5": {
        "activation": activations.tanh,
        "weight_variance": 1.0,
        "bias_variance": 0.0,
        "outputs": 10,
    },
    "networks.convolutional.lecun1990": {
        "activation": activations.tanh,
        "weight_variance": 1.0,
        "bias_variance": 0.0,
        "outputs": 10,
    },
    "networks.attention.network": {
        "mlp_width": 4,
        "mlp_weights": o.WEIGHTS,
        "activation": activations.tanh,
        "selection": "gumbel",
        "key": o.KEY,
    },
    "networks.transformer.blocks": {"mlp_weights": o.WEIGHTS, "activation": activations.tanh},
    "networks.transformer.language_model": {"readout_weights": o.WEIGHTS},
    "networks.transformer.encoder_decoder": {"readout_weights": o.WEIGHTS},
    "networks.highway.network": {"weight_variance": 1.0},
    "networks.normalization.network": {"weight_variance": 1.0},
    "networks.residual.network": SETTINGS,
    "networks.pixelwise.network": {"weight_variance": 1.0},
    "networks.sequences.network": {"key_width": 2, "query_key_weights": o.WEIGHTS},
    "networks.reversible.hamiltonian": SETTINGS,
    "networks.reversible.leapfrog": SETTINGS,
    "networks.reversible.coupling": SETTINGS,
    "networks.reversible.antisymmetric": SETTINGS,
}
