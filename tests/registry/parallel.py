"""Good calls of parallel."""

import os

import jax
import numpy as np

from numdl import parallel
from tests.parallel import cells
from tests.registry import kinds
from tests.registry import objects as o

OVER = kinds.Argument(parallel.mesh(devices=jax.devices()[:1]), (None, 3, "text"))
AXIS = kinds.Argument("data", ("model", "", 3, None))
CALLS = {
    "parallel.connect": {
        "address": kinds.Argument(None, (3, "", "host", "host:", ("host", 1))),
        "count": kinds.Argument(None, (2,)),
        "rank": kinds.Argument(None, (0,)),
        "timeout": kinds.count(300),
    },
    "parallel.first": {"function": kinds.Argument(os.getpid, (None, 3, "text"))},
    "parallel.gather": {"tree": kinds.data(o.PARAMS)},
    "parallel.mesh": {
        "shape": kinds.Argument({"data": -1}, (3, "text", {}, {"data": 0}, {"data": 2.5}, {"data": 7}, {1: 1})),
        "devices": kinds.Argument(None, (3, "text", [], [3])),
    },
    "parallel.needs": {"function": kinds.Argument(o.apply, (None, 3, "text"))},
    "parallel.over_seeds": {
        "function": kinds.Argument(jax.random.normal, (None, 3, "text")),
        "keys": kinds.Argument(jax.random.split(o.KEY, 3), (None, 3, o.KEY, np.ones(2), "text")),
        "mesh": OVER,
        "axis": AXIS,
    },
    "parallel.replicate": {"tree": kinds.data(o.PARAMS), "mesh": OVER},
    "parallel.restore": {"folder": kinds.Argument("/dev/null/x", (3, None, "")), "like": kinds.data(o.PARAMS)},
    "parallel.save": {
        "folder": kinds.Argument("/dev/null/x", (3, None, "")),
        "step": kinds.count(3, least=0),
        "tree": kinds.data(o.PARAMS),
        "keep": kinds.count(2),
    },
    "parallel.shard_batch": {
        "batch": kinds.data((o.X, o.TARGETS)),
        "mesh": OVER,
        "axis": AXIS,
        "local": kinds.flag(False),
    },
    "parallel.shard_parameters": {
        "params": kinds.data(o.PARAMS),
        "mesh": OVER,
        "axis": AXIS,
        "least": kinds.count(1024, least=0),
    },
    "parallel.sweep": {
        "function": kinds.Argument(cells.other, (None, 3, "text", kinds.no_arguments)),
        "configs": kinds.Argument([{"x": 1}], (None, 3, "text", [3], [{"x": 1}, {"x": 1}])),
        "executor": kinds.Argument(None, (3, "text")),
        "folder": kinds.Argument(None, (3, "")),
        "jobs": kinds.count(),
        "told": kinds.Argument(None, (3, "text", kinds.no_arguments)),
    },
}
