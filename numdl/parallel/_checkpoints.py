"""Trees of arrays on the disk, step by step, written by all processes together where orbax is there, else by process 0.

folder/<step>/          orbax: each process writes its own parts, and the folder gets its name when all are there
folder/<step>.npz       without orbax: the arrays whole, gathered to process 0
"""

import importlib.util
import io
import json
import pathlib
import re
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from numdl import _stored, checks
from numdl.parallel._mesh import _gathered, _put
from numdl.parallel._processes import first
from numdl.reporting import _runs
from numdl.typing import StrPath

FORMAT = "numdl parallel checkpoint"
_NUMBER = re.compile(r"(0|[1-9][0-9]*)(\.npz)?")


def save(folder: StrPath, step: int, tree: PyTree, *, keep: int = 2) -> pathlib.Path:
    """Write a tree of arrays as the checkpoint of a step: whole or not at all, called by all processes.

    Parameters
    ----------
    folder : path               that all processes see; made if needed
    step : int                  its name; what was there for this step is replaced
    tree : pytree               arrays wherever they are, random keys too: (params, optimizer state, ...)
    keep : int                  this one and those of the highest steps stay, so many in all; others of this format go
    Returns
    -------
    Path                        of the checkpoint
    Raises
    ------
    ValueError, TypeError       a leaf that is not an array, a step below 0
    OSError                     the folder cannot be written
    """
    folder = checks.path("folder", folder).resolve()
    step, keep = checks.whole("step", step, least=0), checks.whole("keep", keep)
    tree = checks.leaves("tree", tree)
    arrays = {f"leaf{i}": _words(leaf) for i, leaf in enumerate(jax.tree.leaves(tree))}
    about = {"format": FORMAT, "step": step, "leaves": _signature(tree)}
    first(_runs.writable, folder)
    if _orbax() is None:
        path = folder / f"{step}.npz"
        whole = {name: _gathered(leaf) for name, leaf in arrays.items()}
        first(_write, path, whole, about)
    else:
        path = folder / str(step)
        _disk().save(path, args=_orbax().args.StandardSave(arrays), force=True, custom_metadata=about)
    first(_forget, folder, path, keep)
    return path


def restore(folder: StrPath, like: PyTree) -> tuple[int, PyTree] | None:
    """The checkpoint of the highest step that can be read as (step, tree), where `like` is; None where there is none.

    Parameters
    ----------
    folder : path               of `save`
    like : pytree               arrays, or jax.ShapeDtypeStruct: structure, shapes, dtypes, places
    Returns
    -------
    (int, pytree) or None       what cannot be read is passed over with a warning
    Raises
    ------
    ValueError                  it holds another tree
    TypeError                   leaves of `like` that are not arrays
    """
    folder, like = checks.path("folder", folder).resolve(), checks.leaves("like", like, shapes=True)
    for leaf in jax.tree.leaves(like):
        if isinstance(leaf, jax.ShapeDtypeStruct) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.extended):
            raise checks.BadType(f"like must hold keys as arrays, not their shapes alone; got {leaf}")
    for path in _found(folder):
        try:
            about = _about(path)
            arrays = _read(path, like) if about["leaves"] == _signature(like) else None
        except Exception as error:  # a damaged file may fail anywhere in its reader
            warnings.warn(f"checkpoint {path} is passed over: {type(error).__name__}: {error}", stacklevel=2)
            continue
        if arrays is None:
            pairs = zip(about["leaves"], _signature(like))
            there, here = next(((a, b) for a, b in pairs if a != b), (f"{len(about['leaves'])} leaves", "other ones"))
            raise checks.BadValue(f"like must be as the tree in {path}, which has {there}; got {here}")
        leaves, structure = jax.tree.flatten(like)
        found = [_leaf(arrays[f"leaf{i}"], leaf) for i, leaf in enumerate(leaves)]
        return about["step"], jax.tree.unflatten(structure, found)
    return None


def _orbax():
    if importlib.util.find_spec("orbax") is None or importlib.util.find_spec("orbax.checkpoint") is None:
        return None
    import orbax.checkpoint

    return orbax.checkpoint


def _disk():
    return _orbax().Checkpointer(_orbax().StandardCheckpointHandler())


def _words(leaf):
    """The leaf as numbers: spread over devices as it is, else in NumPy, as every process has the same."""
    leaf = jax.random.key_data(leaf) if checks.is_key(leaf) else leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf
    return leaf if isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1 else np.asarray(leaf)


def _signature(tree):
    pairs = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [f"{jax.tree_util.keystr(path)} {leaf.dtype} {list(np.shape(leaf))}" for path, leaf in pairs]


def _write(path, arrays, about):
    held = io.BytesIO()
    plain = {name: _bytes(array) if array.dtype.kind == "V" else array for name, array in arrays.items()}
    np.savez(held, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **plain)
    _runs.put(path, held.getvalue())


def _bytes(array):
    return np.frombuffer(array.tobytes(), np.uint8)


def _found(folder):
    """Checkpoints, those of the highest steps first."""
    there = [path for path in folder.iterdir() if _NUMBER.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(there, key=lambda path: int(path.stem), reverse=True)


def _about(path):
    if path.suffix == ".npz":
        about = json.loads(_stored.arrays(path.read_bytes(), names=("about",))["about"].tobytes())
    else:
        about = json.loads((path / "_CHECKPOINT_METADATA").read_bytes())["custom_metadata"]
    if about["format"] != FORMAT:
        raise ValueError(f"it is not a {FORMAT}")
    return about


def _read(path, like):
    like = {f"leaf{i}": _words(leaf) for i, leaf in enumerate(jax.tree.leaves(like))}
    if path.suffix == ".npz":
        content = path.read_bytes()
        found = _stored.arrays(content, names=tuple(like), most_bytes=max(_stored.MOST, 2 * len(content)))
        return {name: found[name].view(leaf.dtype).reshape(leaf.shape) for name, leaf in like.items()}
    orbax = _orbax()
    if orbax is None:
        raise checks.BadValue(f"folder must hold checkpoints that are read without orbax; got {path}: install orbax")
    forms = jax.tree.map(_form, like)
    return _disk().restore(path, args=orbax.args.StandardRestore(forms))


def _form(leaf):
    if isinstance(leaf, np.ndarray):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _leaf(stored, old):
    """The stored numbers where the old ones are."""
    if checks.is_key(old):
        words = _leaf(stored, jax.random.key_data(old))
        return jax.random.wrap_key_data(words, impl=jax.random.key_impl(old))
    if isinstance(old, jax.ShapeDtypeStruct):
        return jnp.asarray(stored) if old.sharding is None else _put(stored, old.sharding)
    if not isinstance(old, jax.Array):
        return np.asarray(stored)
    if len(old.sharding.device_set) > 1:
        return stored if isinstance(stored, jax.Array) else _put(stored, old.sharding)
    return jax.device_put(stored, old.sharding) if old.committed else jnp.asarray(stored)


def _forget(folder, last, keep):
    """Remove other checkpoints of this format, and the other form of the last one, whatever steps there are beyond."""
    ours = [path for path in _found(folder) if _is_ours(path)]
    twin = [path for path in ours if path.stem == last.stem and path != last]
    for path in [*twin, *[path for path in ours if path not in (*twin, last)][keep - 1 :]]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _is_ours(path):
    try:
        return bool(_about(path))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
