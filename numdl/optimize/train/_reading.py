"""What a folder's training run has come to, read without a lock and without writing anything."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from numdl import checks, trees
from numdl.optimize.train import _checkpoints, _resuming
from numdl.optimize.train._history import History
from numdl.typing import StrPath


class Kept(NamedTuple):
    """A run as its newest good checkpoint holds it."""

    step: int  # steps taken
    params: PyTree  # what `fit` would return: after that step, or the best if it stops early
    history: History


def read(folder: StrPath, params: PyTree) -> Kept:
    """The newest good checkpoint of a run that `fit(..., folder=folder)` trains, has trained or was killed in.

    The folder may be one that cannot be written, and another process may train in it.

    Parameters
    ----------
    folder : path               of checkpoints
    params : pytree             with the structure, shapes and dtypes of the run's, such as init gives, or these alone
                                (jax.ShapeDtypeStruct); its values are not used
    Returns
    -------
    Kept                        step, params, history; `history.notes` names checkpoints that cannot be read
    Raises
    ------
    FileNotFoundError           there is no such folder, or no checkpoint in it that can be read
    ValueError, TypeError       params of other shapes; the message says which
    """
    folder = checks.path("folder", folder)
    store = _checkpoints.Store(folder.resolve())
    found = store.latest(_resuming.understood) if folder.is_dir() else None
    if found is None:
        why = "; ".join(_resuming.notes(store)) or "there is none"
        raise FileNotFoundError(f"folder must hold a checkpoint of a training run; got {folder}: {why}")
    about, arrays = found
    moving, rest = trees.trainable(jax.tree.map(_filled, params))
    like = jax.tree.map(jnp.asarray, rest.params(moving))
    _resuming.check_shapes(folder, about, like)
    return Kept(about["step"], _params(about, arrays, like), _history(store, about, arrays))


def _filled(leaf):
    known = isinstance(leaf, jax.ShapeDtypeStruct) and isinstance(leaf.dtype, np.dtype)
    return jnp.zeros(leaf.shape, leaf.dtype) if known else leaf


def _params(about, arrays, like):
    best = about["identity"]["early stopping"] is not None and np.isfinite(arrays["best value"])
    return _checkpoints.unflat("best " if best else "state ", arrays, like)


def _history(store, about, arrays):
    observed = {name: (arrays[f"seen {i}"], arrays[f"values {i}"]) for i, name in enumerate(about["names"])}
    notes = tuple(dict.fromkeys([*about["notes"], *_resuming.notes(store)]))
    return History(arrays["loss"], observed, about["stopped"] or "unfinished", about["detail"], notes)
