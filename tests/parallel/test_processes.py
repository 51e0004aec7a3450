"""Two processes over loopback are one program: the same numbers, one writer, and a run that goes on after a kill."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl import parallel
from numdl.parallel import _checkpoints

SCRIPT = pathlib.Path(__file__).with_name("on_processes.py")


def run(folder, *, count=2, steps, killed_at=0):
    """What each process printed, or None for one that was killed or ended because another was."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
    }
    begun = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), address, str(count), str(rank), str(folder), str(steps), str(killed_at)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(count)
    ]
    try:
        if killed_at:
            begun[-1].wait(timeout=240)
            for process in begun:
                process.kill()
        told = [process.communicate(timeout=240) for process in begun]
    finally:
        for process in begun:
            process.kill()
    if killed_at:
        return None
    assert not any(process.returncode for process in begun), told[0][1][-2000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in told]


def on_one_device(steps):
    """The parameters after so many steps, and the draws, as this process has them."""
    random = np.random.default_rng(0)
    hidden, readout = random.normal(size=(6, 16)) / 3, random.normal(size=(16, 2)) / 4
    x, y = random.normal(size=(16, 6)), random.normal(size=(16, 2))
    loss = lambda p: ((jnp.tanh(x @ p[0]) @ p[1] - y) ** 2).mean()  # noqa: E731
    params, mean, square = [hidden, readout], [0.0, 0.0], [0.0, 0.0]
    for step in range(1, steps + 1):  # Kingma & Ba 2015, algorithm 1
        for i, slope in enumerate(map(np.asarray, jax.grad(loss)(params))):
            mean[i], square[i] = 0.9 * mean[i] + 0.1 * slope, 0.999 * square[i] + 0.001 * slope**2
            scale = np.sqrt(square[i] / (1 - 0.999**step)) + 1e-8
            params[i] = params[i] - 1e-2 * mean[i] / (1 - 0.9**step) / scale
    return params[0], jax.vmap(jax.random.normal)(jax.random.split(jax.random.key(0), 5))


def test_two_processes_give_the_numbers_of_one(tmp_path):
    params, noise = on_one_device(2)
    two = run(tmp_path / "two", steps=2)
    for found in two:
        np.testing.assert_allclose(found["params"], params, rtol=1e-10)
        np.testing.assert_allclose(found["noise"], noise, rtol=1e-15)
        assert not found["whole"]
    assert [found["wrote"] for found in two] == [True, False]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["1", "2"]


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path):
    run(tmp_path / "killed", steps=5, killed_at=3)
    resumed, whole = run(tmp_path / "killed", steps=5), run(tmp_path / "whole", steps=5)
    assert resumed[0]["start"] == 3
    assert whole[0]["start"] == 0
    for name in ("params", "loss", "top", "trace"):
        assert resumed[0][name] == whole[0][name], name
    one = run(tmp_path / "one", count=1, steps=5)[0]
    np.testing.assert_allclose(whole[1]["top"], one["top"], rtol=1e-10)
    np.testing.assert_allclose(whole[1]["trace"], one["trace"], rtol=1e-10)


def test_a_program_without_a_launcher_is_alone(monkeypatch):
    def nobody(**_):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", nobody)
    assert parallel.connect() == (0, 1)
    assert parallel.is_first()
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")  # four of them, each of which would think that it is alone
    with pytest.raises(ValueError, match="address must be given .* OMPI_COMM_WORLD_SIZE=4"):
        parallel.connect()


def test_an_error_of_the_writer_is_raised():
    with pytest.raises(ZeroDivisionError):
        parallel.first(lambda: 1 / 0)
    assert parallel.first(max, 1, 2) == 2


@pytest.fixture
def alone(monkeypatch):
    monkeypatch.setattr(_checkpoints, "_orbax", lambda: None)


def test_the_last_checkpoint_stays_whatever_steps_are_beyond(tmp_path, alone):
    for step in (100, 200, 50):
        path = parallel.save(tmp_path, step, {"w": np.full(2, step)}, keep=2)
        assert path.exists()
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix == ".npz") == ["200.npz", "50.npz"]


@pytest.mark.parametrize(
    "leaf",
    [
        jnp.asarray(1.5, jnp.bfloat16),
        np.asarray(jnp.arange(6, dtype=jnp.bfloat16)).reshape(2, 3).T,
        np.arange(3, dtype=">f4"),
        2.5,
    ],
    ids=["bfloat16 scalar", "bfloat16 transposed", "big-endian", "a number"],
)
def test_what_was_saved_is_restored_with_the_same_tree(tmp_path, alone, leaf):
    parallel.save(tmp_path, 1, {"w": leaf})
    step, found = parallel.restore(tmp_path, {"w": leaf})
    assert step == 1
    np.testing.assert_array_equal(np.asarray(found["w"], np.float64), np.asarray(leaf, np.float64))


@pytest.mark.parametrize("writer", ["npz", "orbax"])
def test_a_tree_is_restored_where_only_its_shapes_are_known(tmp_path, monkeypatch, writer):
    if writer == "npz":
        monkeypatch.setattr(_checkpoints, "_orbax", lambda: None)
    tree = {"w": jnp.arange(6.0).reshape(2, 3), "n": jnp.arange(3)}
    parallel.save(tmp_path, 1, tree)
    mesh = parallel.mesh(devices=jax.devices()[:1])
    for place in (None, parallel.replicate(tree, mesh)["n"].sharding):
        like = jax.tree.map(
            lambda leaf, place=place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree
        )
        step, found = parallel.restore(tmp_path, like)
        assert step == 1 and all(isinstance(leaf, jax.Array) for leaf in found.values())
        jax.tree.map(np.testing.assert_array_equal, found, tree)
        assert place is None or {leaf.sharding for leaf in found.values()} == {place}
    with pytest.raises(TypeError, match="like must hold keys as arrays"):
        parallel.restore(tmp_path, jax.eval_shape(jax.random.key, 0))


def test_a_process_gives_its_own_keys_as_a_batch():
    keys = jax.random.split(jax.random.key(3), 4)
    found = parallel.shard_batch(keys, parallel.mesh(devices=jax.devices()[:1]), local=True)
    np.testing.assert_array_equal(jax.random.key_data(found), jax.random.key_data(keys))
