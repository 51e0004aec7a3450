"""A session that lives for days: maps, files and memory stay bounded, caches have a size, nothing is held for ever."""

import ast
import functools
import gc
import pathlib
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import numdl
from experiments import usage
from numdl.analysis import curvature
from numdl.networks import fields
from tests import sessions

SOURCES = sorted(pathlib.Path(numdl.__file__).parent.rglob("*.py"))
told = pytest.mark.skipif(not sessions.TOLD, reason="no /proc: the system does not tell what a process takes")
MAPS = 100  # a call, on the average: 500 analyses stay below the 65,530 that Linux allows


def grown(found, *, most):
    """What is wrong with a session's report."""
    wrong = [f"{found['maps']} maps in {found['calls']} calls"] if found["maps a call"] > most else []
    return wrong + ([f"{found['files']} files stay open"] if found["files"] > 2 else [])


@told
def test_sixty_predictions_in_one_process():
    found = sessions.session(60, 0, parts=("theory", "statistics", "quadrature", "trees"))
    assert not grown(found, most=MAPS)
    assert found["calls"] == 60 and found["functions"] >= 50


@told
@pytest.mark.slow
def test_five_hundred_analyses_in_one_process():
    found = sessions.session(500, 0)
    assert not grown(found, most=MAPS)
    assert found["most maps"] < sessions.LIMIT // 1.2
    jax.clear_caches()
    gc.collect()
    assert usage.maps() < found["most maps"] // 2


def test_growth_is_seen():
    assert len(grown({"maps": 9, "calls": 1, "maps a call": 9, "files": 3}, most=8)) == 2


def decorators():
    """(file, function, decorator) of everything that is cached."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                for decorator in node.decorator_list:
                    if "cache" in ast.unparse(decorator) and "cached_property" not in ast.unparse(decorator):
                        yield path, node, ast.unparse(decorator)


def test_every_cache_has_a_size():
    found = list(decorators())
    assert len(found) > 20
    for path, node, decorator in found:
        takes_nothing = not any((node.args.args, node.args.posonlyargs, node.args.kwonlyargs, node.args.vararg))
        if decorator == "functools.cache":
            assert takes_nothing, f"{path.name}: {node.name} keeps a result for everything it was ever given"
        else:
            sized = decorator == "functools.lru_cache" or ("maxsize=" in decorator and "None" not in decorator)
            assert sized, f"{path.name}: {node.name}"


def test_activations_of_ones_own_are_let_go():
    alive = []
    for index in range(600):
        activation = functools.partial(jnp.multiply, index)
        alive.append(weakref.ref(activation))
        fields.single("one_layer", activation)
        del activation
    gc.collect()
    assert 0 < sum(reference() is not None for reference in alive) <= 256


class Data:
    """Something large that a loss closes over."""

    def __init__(self, shift):
        self.shift = shift


def top(shift):
    data = Data(shift)
    loss = lambda params, batch: jnp.mean((params["w"] * batch - data.shift) ** 2)  # noqa: E731
    curvature.top_eigenvalues(loss, {"w": np.ones(2)}, np.ones(2), k=1, key=jax.random.key(0))
    return weakref.ref(data)


def test_nothing_but_jax_holds_a_loss_and_its_data():
    """Programs belong to functions, and jax keeps programs: after its caches are cleared the next call lets go."""
    alive = [top(0.5), top(1.5)]
    jax.clear_caches()
    top(2.5)
    gc.collect()
    assert not [reference for reference in alive if reference() is not None]
