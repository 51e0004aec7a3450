"""Checkpoints of a training run in a folder, through orbax: whole or not at all, one process at a time.

    folder/
        <step>/       orbax's own format: arrays by name; the two newest are kept
        .lock         held by the process that trains; it ends with that process, whatever happens to it

The arrays of a checkpoint carry a digest. One that cannot be read or was changed is passed over, with a warning, and
the run goes on from the one before.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from numdl import checks

KEEP = 2


@contextlib.contextmanager
def opened(folder):
    """The store in `folder`, made and locked; None for no folder.

    Raises
    ------
    RuntimeError            another process trains in this folder
    """
    if folder is None:
        yield None
        return
    folder = pathlib.Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        import orbax.checkpoint as ocp

        options = ocp.CheckpointManagerOptions(max_to_keep=KEEP, enable_async_checkpointing=False)
        with contextlib.closing(ocp.CheckpointManager(folder, options=options)) as manager:
            yield Store(folder, manager)


class Store:
    """Checkpoints as dicts of NumPy arrays."""

    def __init__(self, folder, manager):
        self._folder, self._manager = folder, manager

    def save(self, step, arrays):
        """Write a checkpoint; when this returns it is on the disk."""
        import orbax.checkpoint as ocp

        if step in self._manager.all_steps():  # one that could not be read
            self._manager.delete(step)
        # Empty arrays have no form in orbax; they are known from where they are missing.
        arrays = {name: np.asarray(value) for name, value in arrays.items() if np.size(value)}
        arrays["digest"] = _digest(arrays)
        self._manager.save(step, args=ocp.args.StandardSave(arrays), force=True)

    def latest(self):
        """The newest checkpoint that can be read, as {name: array}, or None."""
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                return self._read(step)
            except (ValueError, OSError, KeyError) as error:
                reason = str(error).splitlines()[0] if str(error) else type(error).__name__
                warnings.warn(f"checkpoint {self._folder / str(step)} is passed over: {reason}", stacklevel=4)
        return None

    def _read(self, step):
        import orbax.checkpoint as ocp

        restored = self._manager.restore(step, args=ocp.args.StandardRestore())
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


@contextlib.contextmanager
def _locked(folder):
    if os.name != "posix":
        yield
        return
    import fcntl

    with open(folder / ".lock", "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise RuntimeError(
                f"folder {folder} is in use: process {holder} trains there; wait for its end or choose another folder"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}")
        file.flush()
        yield
