"""A run that is killed goes on from its folder and ends in the same bits; a folder has one process at a time."""

import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import Partial

from numdl.optimize import train
from numdl.optimize.train import _checkpoints, _resuming

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
# Runs as a program of its own and inside of this one: keys for the loss and in the optimizer, observations, validation.
CODE = """
import jax, jax.numpy as jnp, numpy as np, optax
from numdl.optimize import train

KEY = jax.random.key(3)
X = np.random.default_rng(0).normal(size=(40, 6)).astype(np.float32)
OPTIMIZER = optax.chain(optax.sgd(1e-2, momentum=0.9), optax.add_noise(1e-6, 0.5, KEY))

def loss(params, x, key):
    noise = jax.random.uniform(key, x.shape, x.dtype)
    return jnp.mean((jnp.tanh((x + noise) @ params["a"]) @ params["b"] - x[:, :3]) ** 2)

def run(folder, steps=STEPS, every=EVERY):
    params = {"a": np.cos(np.arange(48, dtype=np.float32)).reshape(6, 8), "b": np.ones((8, 3), np.float32)}
    data = train.resident(X, size=16, key=KEY, remainder="carry")
    observe = {"row": (train.every(7), lambda p: np.asarray(p["a"])[0]), "b": ([0, 9], lambda p: p["b"])}
    stop = train.early_stopping(train.every(11), lambda p: np.abs(p["b"]).sum(), patience=1000)
    return train.fit(loss, params, OPTIMIZER, data, steps=steps, key=KEY, observe=observe, early_stopping=stop,
                     folder=folder, checkpoint=every)
"""
CHILD = """
import sys
params, history = run(sys.argv[1])
np.savez(sys.argv[2], **params)
history.save(sys.argv[3])
"""


def program(steps, every):
    code = CODE.replace("STEPS", str(steps)).replace("EVERY", str(every))
    space = {}
    exec(code, space)
    return code + CHILD, space["run"]


def start(code, folder, out):
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_ENABLE_X64": str(int(jax.config.jax_enable_x64)),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-W", "error", "-c", code, folder, out / "params.npz", out / "history.npz"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    return child


def wait_for(path, text, seconds=120):
    end = time.monotonic() + seconds
    while not (path.exists() and path.read_text() == text):
        assert time.monotonic() < end, f"{path} never held {text}"
        time.sleep(0.01)


def same_history(one, other):
    np.testing.assert_array_equal(one.loss, other.loss)
    assert one.loss.dtype == other.loss.dtype
    assert one.observed.keys() == other.observed.keys()
    for name, (steps, values) in one.observed.items():
        np.testing.assert_array_equal(steps, other.observed[name][0])
        np.testing.assert_array_equal(values, other.observed[name][1])
        assert values.dtype == other.observed[name][1].dtype
    assert (one.stopped, one.detail) == (other.stopped, other.detail)


def same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def killed_and_resumed(tmp_path, *, kills, steps, every, seconds):
    """Kill at random moments after the folder is taken; the last process ends by itself."""
    code, run = program(steps, every)
    params, history = run(None)
    moments, folder, counted = random.Random(0), tmp_path / "run", 0
    for _ in range(kills):
        child = start(code, folder, tmp_path)
        try:
            wait_for(folder / ".lock", str(child.pid))
            with pytest.raises(BlockingIOError, match=f"process {child.pid} trains there"):
                run(folder)
            time.sleep(moments.uniform(0, seconds))
        finally:
            child.send_signal(signal.SIGKILL)
            counted += child.wait() == -signal.SIGKILL
            child.communicate()
    child = start(code, folder, tmp_path)
    _, errors = child.communicate(timeout=600)
    assert child.returncode == 0, errors
    with np.load(tmp_path / "params.npz") as stored:
        same(params, {name: stored[name] for name in ("a", "b")})
    same_history(history, train.History.load(tmp_path / "history.npz"))
    return counted


def test_killed_twice_it_ends_in_the_same_bits(tmp_path):
    assert killed_and_resumed(tmp_path, kills=2, steps=100, every=4, seconds=1.0) >= 1


@pytest.mark.slow
def test_killed_twenty_times_it_ends_in_the_same_bits(tmp_path):
    # Every second step is a checkpoint: most of the time, and of the kills, falls into their writing.
    assert killed_and_resumed(tmp_path, kills=20, steps=2000, every=2, seconds=1.5) >= 15


def test_a_run_goes_on_with_more_steps_and_a_finished_one_takes_none(tmp_path):
    _, run = program(30, 8)
    params, history = run(None, steps=45)
    run(tmp_path)
    again, seen = run(tmp_path, steps=45)
    same(params, again)
    same_history(history, seen)
    assert sorted(path.name for path in tmp_path.glob("[0-9]*")) == ["40", "45"]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != ".lock"}
    finished, seen = run(tmp_path, steps=45)
    same(params, finished)
    same_history(history, seen)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.name != ".lock"}
    with pytest.raises(ValueError, match="steps must be >= 45, which the folder's run has taken; got 44"):
        run(tmp_path, steps=44)


def simple(params, batch):
    return jnp.mean((params["w"] - batch) ** 2)


START = {"w": np.ones(3)}
OPTIMIZER = optax.sgd(0.1, momentum=0.9)


def fit(folder, batches, *, steps=12, params=START, optimizer=OPTIMIZER, **more):
    return train.fit(simple, params, optimizer, batches, steps=steps, folder=folder, checkpoint=5, **more)


def test_an_iterable_is_read_on_from_where_the_run_was(tmp_path):
    batches = [np.full(3, float(value)) for value in range(7)]
    fit(tmp_path, batches, steps=9)
    resumed, history = fit(tmp_path, batches)
    whole, expected = fit(None, batches)
    same(resumed, whole)
    same_history(history, expected)


def averaged(params, batch, weights=None):
    return simple(params, jnp.mean(batch, axis=0))


def same_run():
    """The arguments of one run, each of which stands for a kind of change."""
    return {
        "loss": averaged,
        "params": START,
        "optimizer": OPTIMIZER,
        "batches": train.resident(np.linspace(0, 1, 24).reshape(8, 3), size=2, key=jax.random.key(0)),
        "key": None,
        "observe": None,
    }


def resumed(folder, *, steps=12, **other):
    given = same_run() | other
    arguments = [given.pop(name) for name in ("loss", "params", "optimizer", "batches")]
    return train.fit(*arguments, steps=steps, folder=folder, checkpoint=5, **given)


def scheduled(boundary):
    return optax.sgd(optax.piecewise_constant_schedule(0.1, {boundary: 0.1}), momentum=0.9)


def rows(seed=0, *, data=None, **other):
    data = np.linspace(0, 1, 24).reshape(8, 3) if data is None else data
    return train.resident(data, **{"size": 2, "key": jax.random.key(seed)} | other)


CHANGED_ENTRY = np.linspace(0, 1, 24).reshape(8, 3)
CHANGED_ENTRY[7, 2] += 1e-9
OTHERS = {
    "start": ({"params": {"w": np.full(3, 2.0)}}, "parameters .start.", "sha|[0-9a-f]{12}"),
    "shapes": ({"params": {"w": np.ones(3), "v": np.ones(2)}}, "parameters .shapes.", "'v'"),
    "adam": ({"optimizer": optax.adam(0.1)}, "optimizer .state.", "mu"),
    "rate": ({"optimizer": optax.sgd(0.5, momentum=0.9)}, "optimizer .updates., step 1", "norm"),
    "momentum": ({"optimizer": optax.sgd(0.1, momentum=0.8)}, "optimizer .updates., step 2", "norm"),
    "accumulated": ({"optimizer": optax.sgd(0.1, momentum=0.9, nesterov=True)}, "optimizer .updates.", "norm"),
    "schedule": ({"optimizer": scheduled(300)}, "optimizer .state.", "count"),
    "kind": ({"batches": train.whole(np.zeros((2, 3)))}, "batches", "kind resident, .* kind whole"),
    "order": ({"batches": rows(1)}, "batches", "key"),
    "size": ({"batches": rows(size=4)}, "batches", "size 2.* size 4"),
    "one entry": ({"batches": rows(data=CHANGED_ENTRY)}, "batches", "data [0-9a-f]{20}"),
    "loss": (
        {"loss": lambda params, batch: 2 * averaged(params, batch)},
        "loss .first value.",
        "0.68368, this one 1.36736",
    ),
    "gradient": (
        {"loss": lambda params, batch: averaged(params, batch) + jnp.sum(params["w"] - START["w"])},
        "loss .first step., its gradient",
        "norm",
    ),
    "bound": ({"loss": Partial(averaged, weights=np.ones(3))}, "loss .its arrays.", "[0-9a-f]{20}"),
    "measures": ({"observe": {"w": (train.every(1), lambda params: params["w"])}}, "observations", "w"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_run_is_refused_and_says_old_and_new(tmp_path, name):
    change, what, shown = OTHERS[name]
    resumed(tmp_path, steps=6)
    message = f"run of the same {what}.*has .*{shown}.*start anew choose another folder.*that run's arguments"
    with pytest.raises(ValueError, match=message):
        resumed(tmp_path, **change)
    # The folder is as it was: the same run goes on.
    same(resumed(tmp_path)[0], resumed(None)[0])


def test_a_schedule_that_changes_late_is_told_from_another(tmp_path):
    resumed(tmp_path, optimizer=scheduled(300))
    resumed(tmp_path, optimizer=scheduled(300))
    with pytest.raises(ValueError, match="optimizer .updates., at a count of 512"):
        resumed(tmp_path, optimizer=scheduled(600))


def test_an_iterable_with_another_first_batch_is_refused(tmp_path):
    fit(tmp_path, [np.zeros(3), np.ones(3)])
    with pytest.raises(ValueError, match="same batches.*first batch"):
        fit(tmp_path, [np.full(3, 0.5), np.ones(3)])
    fit(tmp_path, [np.zeros(3), np.ones(3)])


def test_an_optimizer_that_asks_for_more_than_gradients_resumes(tmp_path):
    optimizer = optax.lbfgs()
    same(fit(tmp_path, [np.zeros(3)], optimizer=optimizer)[0], fit(None, [np.zeros(3)], optimizer=optimizer)[0])
    same(fit(tmp_path, [np.zeros(3)], optimizer=optimizer)[0], fit(None, [np.zeros(3)], optimizer=optimizer)[0])


def test_rounding_of_another_machine_is_no_other_run(tmp_path, monkeypatch):
    resumed(tmp_path, steps=6)
    shaken = lambda plan: {name: values * (1 + 1e-9) for name, values in NUMBERS(plan).items()}  # noqa: E731
    NUMBERS = _resuming._probing.numbers
    monkeypatch.setattr(_resuming._probing, "numbers", shaken)
    with pytest.raises(ValueError, match="same optimizer .updates."):
        resumed(tmp_path)
    monkeypatch.setattr(_resuming, "_processor", lambda: "another one")
    with pytest.warns(UserWarning, match="last bits may differ: processor .* -> another one"):
        same(resumed(tmp_path)[0], resumed(None)[0])


def flip(path):
    for file in path.rglob("*"):
        if file.is_file() and file.parent.name == "d":
            content = bytearray(file.read_bytes())
            content[len(content) // 2] ^= 255
            file.write_bytes(content)


def cut(path):
    for file in path.rglob("*"):
        if file.is_file() and file.parent.name == "d":
            file.write_bytes(file.read_bytes()[:7])


def without_arrays(path):
    for file in sorted(path.rglob("*")):
        if file.is_file() and file.name != _checkpoints.METADATA:
            file.unlink()


def foreign_folder(path):
    shutil.rmtree(path)
    path.mkdir()
    np.savez(path / "model.npz", weights=np.ones(3))


def foreign_file(path):
    shutil.rmtree(path)
    path.write_text("notes of my own")


def copied_from_another_step(path):
    shutil.rmtree(path)
    shutil.copytree(path.with_name("10"), path)


def spoiled_metadata(path):
    (path / _checkpoints.METADATA).write_text("{}[")


def someone_elses(path):
    shutil.rmtree(path)
    import orbax.checkpoint as ocp

    ocp.Checkpointer(ocp.StandardCheckpointHandler()).save(path, args=ocp.args.StandardSave({"weights": np.ones(3)}))


DAMAGES = (
    flip,
    cut,
    without_arrays,
    foreign_folder,
    foreign_file,
    copied_from_another_step,
    spoiled_metadata,
    someone_elses,
)


# A reader of orbax that fails leaves callbacks behind for a loop that is closed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_what_cannot_be_read_is_passed_over_and_the_older_step_used(tmp_path, damage):
    batches = [np.arange(3.0), np.ones(3)]
    fit(tmp_path, batches)
    assert sorted(path.name for path in tmp_path.glob("[0-9]*")) == ["10", "12"]
    damage(tmp_path / "12")
    with pytest.warns(UserWarning, match="checkpoint .*12 is passed over"):
        kept, history = fit(tmp_path, batches)
    whole, expected = fit(None, batches)
    same(kept, whole)
    same_history(history, expected)
    assert len(history.notes) == 1 and "12 is passed over" in history.notes[0] and "12 is passed over" in repr(history)
    assert (tmp_path / "passed-over-12").exists()
    fit(tmp_path, batches)  # written anew: no warning


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_foreign_things_with_greater_numbers_stay_and_push_no_good_step_out(tmp_path):
    batches = [np.arange(3.0), np.ones(3)]
    fit(tmp_path, batches, steps=6)
    (tmp_path / "99").mkdir()
    (tmp_path / "007").mkdir()
    (tmp_path / "98").write_text("mine")
    with pytest.warns(UserWarning, match="checkpoint .*9[89] is passed over: it is not a checkpoint of a training run"):
        resumed, history = fit(tmp_path, batches, steps=20)
    same(resumed, fit(None, batches, steps=20)[0])
    assert sorted(path.name for path in tmp_path.glob("[0-9]*")) == ["007", "15", "20", "98", "99"]
    assert len(history.notes) == 2
    history.save(tmp_path / "history.npz")
    assert train.History.load(tmp_path / "history.npz").notes == history.notes


@pytest.mark.parametrize("which", ["file", "below a file"])
def test_a_folder_that_cannot_be_is_an_error_of_the_system(tmp_path, which):
    (tmp_path / "taken").write_text("mine")
    folder = tmp_path / "taken" / ("" if which == "file" else "run")
    with pytest.raises(OSError, match="folder must be one that can be made and written to; got .*taken"):
        fit(folder, [np.zeros(3)])
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_folder_in_use_is_an_error_of_the_system(tmp_path):
    with (
        _checkpoints.opened(tmp_path),
        pytest.raises(OSError, match=f"{tmp_path.name} is in use: process {os.getpid()}"),
    ):
        fit(tmp_path, [np.zeros(3)])
    fit(tmp_path, [np.zeros(3)])


def test_a_run_that_moved_is_warned_about(tmp_path, monkeypatch):
    batches = [np.zeros(3)]
    fit(tmp_path, batches, steps=6)
    monkeypatch.setattr(os, "cpu_count", lambda: 1234)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(1234), raising=False)
    with pytest.warns(UserWarning, match="last bits may differ: cpus [0-9]+ -> 1234"):
        fit(tmp_path, batches)


def test_a_lost_run_resumes_into_the_same_loss(tmp_path):
    batches = [np.zeros(3)] * 7 + [np.full(3, np.inf)]
    for _ in range(2):
        kept, history = fit(tmp_path, batches)
        assert history.stopped == "diverged" and history.steps == 7 and "at step 7" in history.detail
        same(kept, fit(None, batches, steps=7)[0])
    assert [path.name for path in tmp_path.glob("[0-9]*")] == ["5"]


def test_keys_and_small_types_come_back_as_they_were(key):
    tree = {
        "key": key,
        "half": jnp.asarray([1.0, 2.5], jnp.bfloat16),
        "count": jnp.asarray(3, jnp.int32),
        "none": jnp.zeros((0, 2)),
    }
    like = {**tree, "key": jax.random.key(9), "half": jnp.zeros(2, jnp.bfloat16), "count": jnp.asarray(0, jnp.int32)}
    back = _checkpoints.unflat("x ", {n: v for n, v in _checkpoints.flat("x ", tree).items() if v.size}, like)
    assert jax.tree.map(lambda a: a.dtype, back) == jax.tree.map(lambda a: a.dtype, tree)
    same(jax.random.key_data(back.pop("key")), jax.random.key_data(tree.pop("key")))
    same(back, tree)


def tree_of(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_a_run_is_read_while_it_is_trained_and_nothing_is_written(tmp_path):
    batches = [np.arange(3.0), np.ones(3)]
    expected, history = fit(tmp_path, batches, observe={"w": (train.every(4), lambda params: params["w"])})
    before = tree_of(tmp_path)
    with _checkpoints.opened(tmp_path):  # another process holds it
        held = tree_of(tmp_path)
        step, params, seen = train.read(tmp_path, {"w": np.zeros(3)})
        assert tree_of(tmp_path) == held
    assert step == 12 and {path for path in before if path.name != ".lock"} <= held.keys()
    same(params, expected)
    same_history(seen, history)


def test_a_run_that_stopped_early_is_read_with_its_best(tmp_path):
    stop = train.early_stopping(train.every(2), lambda params: jnp.sum(params["w"] ** 2), patience=2)
    expected, _ = fit(tmp_path, [np.full(3, 3.0)], early_stopping=stop)
    found = train.read(tmp_path, START)
    same(found.params, expected)
    assert found.history.stopped == "stopped early"
    same(train.read(tmp_path, jax.eval_shape(lambda: START)).params, expected)


def test_an_unfinished_run_says_so(tmp_path):
    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, [np.ones(3)], observe={"w": ([11], lambda params: 1 / 0)})
    found = train.read(tmp_path, START)
    assert found.step == 10 and found.history.stopped == "unfinished" and found.history.steps == 10


@pytest.mark.parametrize("params", [{"w": np.ones(4)}, {"w": np.ones(3, np.float32)}, {"v": np.ones(3)}, np.ones(3)])
def test_parameters_of_other_shapes_are_named(tmp_path, params):
    fit(tmp_path, [np.ones(3)], steps=1)
    with pytest.raises(ValueError, match="same parameters .shapes.; the run in .* has .*this one"):
        train.read(tmp_path, params)


def test_a_folder_without_a_run_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    for place in ("empty", "nowhere"):
        with pytest.raises(FileNotFoundError, match=f"folder must hold a checkpoint.*got .*{place}"):
            train.read(tmp_path / place, START)
    assert not (tmp_path / "nowhere").exists() and not list((tmp_path / "empty").iterdir())
