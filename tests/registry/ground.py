"""Good calls of the ground floor, of data, of plotting and of reporting."""

import dataclasses
import types

import numpy as np

from numdl import reporting, statistics
from tests.registry import kinds
from tests.registry import objects as o

CLAIM = reporting.Claim("text", "source", 1.0, 1.0, 0.1, 0.1, "tolerance", origin="exact")
SAMPLES = np.linspace(0.0, 1.0, 12).reshape(4, 3)
TOGETHER = (o.X, o.LABELS)
POINTS = {
    "random": kinds.Argument(0, (-1, "text", 2.5, None)),
    "count": kinds.count(20),
    "classes": kinds.count(5),
    "noise": kinds.variance(0.0),
    "axis": kinds.positive(0.4),
    "turns": kinds.positive(1.0),
    "arms": kinds.count(2),
}
BATCHED = {
    "data": kinds.data(TOGETHER).also((o.X, o.LABELS[:2]), (), None),
    "count": kinds.count(6),
    "size": kinds.limited(2, most=6).without(7).also(100),
    "epochs": kinds.count(2),
    "remainder": kinds.name("drop"),
    "fractions": kinds.Argument((0.5, 0.5), ((0.5, 0.6), (), (1.5, -0.5), "text", None, 3)),
    "stratify": kinds.Argument(o.LABELS, (o.LABELS[:2], "text", 3)),
}
PUBLISHED = {"split": kinds.name("train"), "labels": kinds.name("fine")}
FILE = {
    "classes": kinds.Argument((10,), (0, (), (10, 0), (10, 2.5), "3", None, 3.5, (1, 2, 3))),
    "count": kinds.count(10),
    "shape": kinds.counts((28, 28)).without(()),
    "sha256": kinds.Argument("0" * 64, (3, "text")),
    "types": kinds.free(None),
    "delimiter": kinds.Argument(",", (None, 3, "", ",,")),
    "missing": kinds.Argument((), (3, None)),
    "label": kinds.text("label"),
}
VARIANCES = {
    "f": kinds.function(o.elementwise),
    "g": kinds.function(o.elementwise),
    "variance": kinds.numbers(1.0, -1.0),
    "variance_f": kinds.numbers(1.0, -1.0),
    "variance_g": kinds.numbers(1.0, -1.0),
    "correlation": kinds.numbers(0.5, 1.5, -1.5),
    "kinks": kinds.Argument((0.0,), (("text",), 3, None, (NAN := float("nan"),))),
    "kinks_f": kinds.Argument((0.0,), (("text",), 3, None, (NAN,))),
    "kinks_g": kinds.Argument((0.0,), (("text",), 3, None, (NAN,))),
}
TREES = {
    "a": kinds.data(o.PARAMS),
    "b": kinds.like(o.PARAMS),
    "alpha": kinds.Argument(2.0, ("1", None, np.array("text"))),
    "y": kinds.like(o.PARAMS),
    "tree": kinds.data(o.PARAMS),
    "like": kinds.like(o.PARAMS),
    "law": kinds.name("normal"),
    "frozen": kinds.Argument((), (3, None, ("tpyo",), "tpyo", (3,))),
}
LINE = np.array([0.0, 1.0, 2.0, 3.0])
STATISTICS = {
    "samples": kinds.real(SAMPLES, SAMPLES[:1]),
    "predicted": kinds.real(np.ones(3), np.ones(4)),
    "x": kinds.real(LINE, LINE[:1], np.full(4, np.nan), np.ones(4), 3.0),
    "y": kinds.real(LINE + 1, LINE[:3], np.full(4, np.nan), 3.0),
    "means": kinds.real(LINE + 1, LINE[:3], np.full(4, np.inf), 3.0),
    "stderrs": kinds.real(LINE + 1, LINE[:3], np.full(4, np.inf), -LINE - 1, 3.0),
    "values": kinds.real(np.geomspace(1.0, 9.0, 60), -np.ones(60), np.full(60, np.nan), 3.0),
    "least": kinds.count(30, least=10),
    "draws": kinds.count(2),
    "tests": kinds.count(3),
    "budget": kinds.probability(1e-6, 0.0, 1.0),
}
LABEL = kinds.Argument("text", (3, None))
AXES = kinds.Argument(None, (3, "text"))
PLOT = {
    "width": kinds.positive(6.4),
    "height": kinds.positive(4.2),
    "x": kinds.real(np.arange(3.0), np.arange(4.0)),
    "predicted": kinds.real(np.ones(3), np.ones(4)),
    "samples": kinds.real(SAMPLES, SAMPLES[0]),
    "depths": kinds.real(np.arange(1.0, 4.0), np.arange(4.0)),
    "log_samples": kinds.real(SAMPLES, SAMPLES[0]),
    "ax": AXES,
    "log": kinds.Argument(False, ("tpyo", 3, None)),
    "record": kinds.instance(statistics.agreement(np.ones(3), SAMPLES)),
    "limit": kinds.positive(6.0),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """What an experiment is told."""

    depth: int = 3


class Plain:
    """What `record` makes a record of."""

    depth: int


RECORD = types.SimpleNamespace
LAYERS = RECORD(
    names=("a", "b"), **dict.fromkeys(("state_rms", "gradient_rms", "dead", "saturated", "cosine"), np.ones(2))
)
TRIAL = RECORD(factors=np.ones(1), losses=np.ones((1, 2, 3)), end=np.ones((1, 2)), repeated=np.ones(3), start=1.0)
KERNEL = RECORD(forecast=np.ones(3), forecast_steps=np.arange(3), start=1.0)
PROOF = RECORD(sick=np.ones((1, 3)), repaired=np.ones((1, 3)), forecast=np.ones(2), forecast_steps=np.arange(2))
DIAGRAM = RECORD(weight_variances=np.ones(2), bias_variances=np.ones(3), chi_1=np.ones((2, 3)))
EVENTS = RECORD(loss_steps=np.arange(3), loss=np.ones(3), findings=(), looks={})
DRAWN = {
    **{name: {"events": kinds.instance(EVENTS), "ax": AXES} for name in ("ageing", "edge", "movement", "watched")},
    "states": {"signal": kinds.instance(LAYERS), "predicted": kinds.free(None), "ax": AXES},
    "gradients": {"signal": kinds.instance(LAYERS), "predicted": kinds.free(None), "ax": AXES},
    "units": {"signal": kinds.instance(LAYERS), "ax": AXES},
    "place": {
        "diagram": kinds.instance(DIAGRAM),
        "weight_variance": kinds.variance(),
        "bias_variance": kinds.variance(),
        "ax": AXES,
    },
    "trial": {"record": kinds.instance(TRIAL), "ax": AXES},
    "rates": {"record": kinds.instance(TRIAL), "predicted": kinds.free(None), "ax": AXES},
    "forecast": {"kernel": kinds.instance(KERNEL), "trial": kinds.free(None), "ax": AXES},
    "course": {"optimizer": kinds.instance(RECORD(early=0.1, late=0.5)), "ax": AXES},
    "proof": {"record": kinds.instance(PROOF), "ax": AXES},
}
CALLS = {
    "activations.names": {},
    "activations.named": {"name": kinds.name("tanh").without("TANH").also("TANH")},
    "activations.custom": {
        "f": kinds.function(o.elementwise),
        "name": kinds.text("mine"),
        "kinks": kinds.Argument((0.0,), (("text",), 3, None, (float("nan"),))),
        "slope": kinds.function(o.elementwise),
    },
    "activations.leaky_relu": {"negative_slope": kinds.number(0.1)},
    **{f"quadrature.{name}": VARIANCES for name in ("expectation", "product_expectation")},
    **{
        f"statistics.{name}": STATISTICS
        for name in ("mean_and_error", "agreement", "slope", "extrapolate", "power_law", "z_limit")
    },
    **{f"trees.{name}": TREES for name in ("inner", "norm", "ravel", "random_like", "trainable")},
    "trees.names": {"tree": kinds.free(o.PARAMS)},
    "trees.axpy": {**TREES, "x": kinds.data(o.PARAMS)},
    "precision.wide": {"dtype": kinds.Argument("float32", ("float46", 3))},
    "precision.widen": TREES,
    "precision.narrow": {"tree": kinds.data(o.PARAMS).also({}, [o.PARAMS]), "like": kinds.free(o.PARAMS)},
    "precision.float64": {"function": kinds.Argument(o.elementwise, (None, 3, "text"))},
    "records.record": {"cls": kinds.Argument(Plain, (None, 3, "text", o.elementwise, Config))},
    "records.rows": {"value": kinds.Argument(statistics.agreement(np.ones(3), SAMPLES), (None, 3, "text"))},
    "records.describe": {"value": kinds.free(3)},
    **{f"data.{name}": BATCHED for name in ("batches", "epoch_indices", "split")},
    **{f"data.{name}": PUBLISHED for name in ("cifar10", "cifar100", "fashion_mnist", "mnist")},
    "data.standardize": {
        "images": kinds.real(np.arange(12.0).reshape(3, 2, 2), np.ones((3, 2, 2))),
        "mean": kinds.name("all"),
    },
    "data.fetch": {"name": kinds.name("mnist")},
    **{f"data.synthetic.{name}": POINTS for name in ("peaks", "circles", "ellipses", "swiss_roll", "spirals")},
    "data.synthetic.peaks_function": {"x": kinds.free(0.0), "y": kinds.free(0.0)},
    "data.synthetic.level": {"values": kinds.free(0.0), "edges": kinds.free(np.arange(3.0))},
    **{
        f"data.{name}": FILE
        for name in ("cifar.read_binary", "cifar.read_pickle", "idx.read", "npz.read", "tables.read")
    },
    "data.tables.labelled": {**FILE, "classes": kinds.Argument(None, ("rose", 3, (), (1.5,), ("a", "a")))},
    **{f"data.{name}": {} for name in ("digits", "iris", "photographs")},
    **{f"plotting.{name}": PLOT for name in ("figure", "prediction_and_measurement", "agreement")},
    "plotting.phase_diagram": {
        "record": kinds.instance(RECORD(weight_variances=np.ones(2), bias_variances=np.ones(3), chi_1=np.ones((2, 3)))),
        "ax": AXES,
    },
    "plotting.product_norm": {
        **PLOT,
        "predicted": kinds.instance(RECORD(log_expectation=np.ones(3), log_mean=np.ones(3))),
    },
    "plotting.layers": {"flow": kinds.Argument(None, (None, 3, "text")), "ax": AXES},
    **{f"plotting.{name}": DRAWN[name] for name in DRAWN},
    "plotting.tidy": {"ax": kinds.Argument(None, (None, 3, "text"))},
    "reporting.claims_table": {"claims": kinds.Argument([CLAIM], (None, 3, ["text"]))},
    "reporting.claims_text": {"claims": kinds.Argument([CLAIM], (None, 3, ["text"]))},
    "reporting.digest": {"config": kinds.Argument(Config(), (None, 3, "text"))},
    "reporting.load": {"folder": kinds.Argument(None, (None, 3, "/no/such/folder"))},
    "reporting.publish": {
        "path": kinds.Argument("/dev/null/x", (None, 3, "")),
        "text": kinds.Argument("text", (None, 3, ["x"])),
    },
    "reporting.writable": {"folder": kinds.Argument(None, (None, 3, "/dev/null"))},
    "reporting.figure_image": {"figure": kinds.Argument(None, (None, 3, "text")), "alt": kinds.text("alt")},
    "reporting.table": {"header": kinds.free(("a",)), "rows": kinds.Argument([("1",)], (3, None))},
}
EXTRA = {}
