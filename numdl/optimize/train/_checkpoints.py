"""Checkpoints of a training run in a folder, through orbax: whole or not at all, one process at a time.

    folder/
        <step>/               orbax's own format: arrays by name; the two newest are kept
        passed-over-<step>    what stood where a checkpoint was to be written and could not be read
        .lock                 held by the process that trains; it ends with that process, whatever happens to it

The arrays of a checkpoint carry a digest, its metadata the name of this format. One that cannot be read, was changed
or is someone else's is passed over, with a warning, and the run goes on from the newest good one. Nothing is deleted
but this format's own checkpoints.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import re
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from numdl import checks

KEEP = 2
FORMAT = {"format": "numdl training run"}
METADATA = "_CHECKPOINT_METADATA"
NUMBER = re.compile(r"0|[1-9][0-9]*")
UNFINISHED = re.compile(r"[0-9]+\.orbax-checkpoint-tmp.*")


@contextlib.contextmanager
def opened(folder):
    """The store in `folder`, made and locked; None for no folder.

    Raises
    ------
    OSError                 the folder cannot be made or written; another process trains in it (BlockingIOError)
    """
    if folder is None:
        yield None
        return
    folder = pathlib.Path(folder).resolve()
    with contextlib.ExitStack() as stack:
        with _naming(folder):
            folder.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(open(folder / ".lock", "a+"))
        _hold(lock, folder)
        for path in folder.iterdir():
            if UNFINISHED.fullmatch(path.name):  # of a process that was killed; nobody else writes here now
                shutil.rmtree(path, ignore_errors=True)
        yield Store(folder)


class Store:
    """Checkpoints as dicts of NumPy arrays."""

    def __init__(self, folder):
        import orbax.checkpoint as ocp

        self.folder = folder
        self.passed_over = {}  # path: why it was not read
        self._orbax = ocp
        self._disk = ocp.Checkpointer(ocp.StandardCheckpointHandler())

    def save(self, step, arrays):
        """Write a checkpoint; when this returns it is on the disk."""
        path = self.folder / str(step)
        if os.path.lexists(path):  # damaged, or someone else's
            path.rename(_free(self.folder, f"passed-over-{step}"))
        # Empty arrays have no form in orbax; they are known from where they are missing.
        arrays = {name: np.asarray(value) for name, value in arrays.items() if np.size(value)}
        arrays["digest"] = _digest(arrays)
        self._disk.save(path, args=self._orbax.args.StandardSave(arrays), custom_metadata=FORMAT)
        good = [path for path in self._numbered() if path not in self.passed_over and _ours(path)]
        for old in good[KEEP:]:
            shutil.rmtree(old, ignore_errors=True)

    def latest(self, understand):
        """understand(step, {name: array}) of the newest checkpoint that can be read and understood, or None."""
        for path in self._numbered():
            # A damaged file may fail anywhere in its reader.
            try:
                return understand(_step(path), self._read(path))
            except Exception as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                self.passed_over[path] = reason
                warnings.warn(f"checkpoint {path} is passed over: {reason}", stacklevel=5)
        return None

    def _numbered(self):
        """What has a number for a name, the greatest first."""
        return sorted(filter(lambda path: NUMBER.fullmatch(path.name), self.folder.iterdir()), key=_step, reverse=True)

    def _read(self, path):
        if not _ours(path):
            raise ValueError("it is not a checkpoint of a training run of numdl")
        restored = self._disk.restore(path, args=self._orbax.args.StandardRestore())
        arrays = {name: np.asarray(value) for name, value in restored.items()}
        digest = arrays.pop("digest", None)
        if digest is None or not np.array_equal(digest, _digest(arrays)):
            raise ValueError("its arrays are not those that were written")
        return arrays


def flat(prefix, tree):
    """A pytree's leaves as {name: NumPy array}; random keys by their words."""
    leaves = [jax.random.key_data(leaf) if checks.is_key(leaf) else leaf for leaf in jax.tree.leaves(tree)]
    return {f"{prefix}{index}": np.asarray(leaf) for index, leaf in enumerate(leaves)}


def unflat(prefix, arrays, like):
    """The pytree with the leaves that `flat` made, in the structure, the kinds and on the devices of `like`."""
    leaves, structure = jax.tree.flatten(like)
    return jax.tree.unflatten(structure, [_leaf(arrays.get(f"{prefix}{i}"), old) for i, old in enumerate(leaves)])


def text(value):
    """Anything that JSON holds, as an array of bytes."""
    return np.frombuffer(json.dumps(value, sort_keys=True).encode(), np.uint8)


def untext(array):
    """What `text` made an array of."""
    return json.loads(array.tobytes())


def signature(tree):
    """A tree's structure, shapes and dtypes as text."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [f"{jax.tree_util.keystr(path)} {leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves]


def digest(tree):
    """The SHA-256 of a tree's arrays."""
    return _digest(flat("", tree)).tobytes().hex()


def _digest(arrays):
    total = hashlib.sha256()
    for name in sorted(arrays):
        value = np.ascontiguousarray(arrays[name])
        total.update(f"{name} {value.dtype} {value.shape}".encode())
        total.update(value.view(np.uint8).data if value.ndim else value.tobytes())
    return np.frombuffer(total.digest(), np.uint8)


def _leaf(stored, old):
    if stored is None:
        return old
    if checks.is_key(old):
        return jax.random.wrap_key_data(stored, impl=jax.random.key_impl(old))
    return jnp.asarray(stored) if len(old.sharding.device_set) == 1 else jax.device_put(stored, old.sharding)


def _step(path):
    return int(path.name)


def _ours(path):
    """Whether orbax finished writing it, and for us."""
    try:
        return json.loads((path / METADATA).read_bytes())["custom_metadata"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _free(folder, name):
    """A path that does not exist yet."""
    names = (folder / (name + end) for end in ("", *(f"-{index}" for index in range(1, 10**6))))
    return next(path for path in names if not os.path.lexists(path))


@contextlib.contextmanager
def _naming(folder):
    """Errors of the system, saying what the folder is for."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise type(error)(f"folder must be one that can be made and written to; got {folder}: {reason}") from error


def _hold(file, folder):
    """Lock the open file for as long as it is open."""
    if os.name != "posix":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        raise BlockingIOError(
            f"folder {folder} is in use: process {holder} trains there; wait for its end or choose another folder"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}")
    file.flush()
