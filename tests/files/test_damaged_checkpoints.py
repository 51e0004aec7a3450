"""Every damage of any file of a checkpoint: it is passed over by name, or read bit for bit as it was written."""

import contextlib
import shutil
import warnings

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from numdl.optimize import train
from tests.files import damages
from tests.selection import in_turn

START = {"w": np.arange(3.0), "v": np.ones((2, 2), np.float32)}
FILES = 9  # at least so many files make a checkpoint


def loss(params, batch):
    return jnp.mean((params["w"] - batch) ** 2) + jnp.sum(params["v"]) * jnp.asarray(0.1, params["v"].dtype)


def fit(folder, steps=12, start=START):
    return train.fit(loss, start, optax.sgd(0.1), [np.ones(3)], steps=steps, folder=folder, checkpoint=5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(folder of a run with the steps 10 and 12, of another run with them)."""
    folders = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    fit(folders[0])
    fit(folders[1], start={**START, "w": np.full(3, 7.0)})
    return folders


@pytest.fixture
def runs(whole, tmp_path):
    for folder, name in zip(whole, ("one", "two")):
        shutil.copytree(folder, tmp_path / name)
    return tmp_path / "one", tmp_path / "two"


def read(folder):
    """(step, parameters, what was said): None, None where nothing can be read."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = train.read(folder, START)
        except FileNotFoundError as error:
            return None, None, str(error)
    return found.step, found.params, " ".join(str(each.message) for each in said)


def files(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())


def same(one, other):
    return all(np.array_equal(one[name], other[name]) and one[name].dtype == other[name].dtype for name in START)


# A reader of orbax that fails leaves callbacks behind for a loop that is closed.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def test_a_checkpoint_is_made_of_files(whole):
    assert len(files(whole[0] / "12")) >= FILES


@pytest.mark.parametrize("damage", in_turn(damages.OF_A_FILE, turn=3, every=5))
def test_a_damaged_checkpoint_is_passed_over_or_is_what_was_written(runs, damage):
    folder, other = runs
    expected = {step: read_step(folder, step) for step in (10, 12)}
    for file in files(folder / "12"):
        kept = folder.parent / "kept"
        shutil.copytree(folder / "12", kept)
        path = folder / "12" / file
        twin = other / "12" / file
        if damages.OF_A_FILE[damage] is damages._swapped and not twin.is_file():  # named by its content
            twin = next(each for each in (other / "12" / file.parent).iterdir() if each.is_file())
            shutil.copy(twin, twin.with_name(file.name))
            twin = twin.with_name(file.name)
        damages.OF_A_FILE[damage](path, twin.parent)
        step, params, said = read(folder)
        assert step in (10, 12), said
        assert same(params, expected[step])
        assert step == 12 or ("12 is passed over" in said and len(said.splitlines()) == 1)
        shutil.rmtree(folder / "12")
        kept.rename(folder / "12")


def read_step(folder, step):
    """What a checkpoint holds when it is the only one."""
    alone = folder.parent / f"alone{step}"
    shutil.copytree(folder / str(step), alone / str(step))
    found, params, _ = read(alone)
    assert found == step
    return params


def test_all_damaged_is_an_error_that_names_each(runs):
    folder, _ = runs
    for step in ("10", "12"):
        for file in files(folder / step):
            with contextlib.suppress(OSError):
                (folder / step / file).write_bytes(b"")
    step, _, said = read(folder)
    assert step is None and "folder must hold a checkpoint" in said
    assert all(f"{step} is passed over" in said for step in ("10", "12"))


def test_the_steps_exchanged_are_both_refused(runs):
    folder, _ = runs
    (folder / "10").rename(folder / "held")
    (folder / "12").rename(folder / "10")
    (folder / "held").rename(folder / "12")
    step, _, said = read(folder)
    assert step is None and "it tells of step 10" in said and "it tells of step 12" in said


def test_the_checkpoint_of_another_run_is_refused(runs):
    folder, other = runs
    shutil.rmtree(folder / "12")
    shutil.copytree(other / "12", folder / "12")
    with pytest.raises(ValueError, match="folder must be new or hold a run of the same parameters .start."):
        fit(folder, steps=20)


def test_another_dtype_is_refused(runs):
    folder, _ = runs
    with pytest.raises(ValueError, match="same parameters .shapes.; the run in .* has .*float64.*this one .*float32"):
        fit(folder, steps=20, start={**START, "w": np.arange(3, dtype=np.float32)})
