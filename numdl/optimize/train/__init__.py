"""Training: any loss(params, batch), any optax transformation, measurements in the loop, resumed to the last bit.

    data = train.resident((images, labels), size=128, key=key)
    params, history = train.fit(loss, params, optax.adam(1e-3), data, steps=1000,
                                observe={"accuracy": (train.every(100), train.accuracy(apply, images, labels))})

`fit` runs its steps in compiled chunks and comes to the host only where something is to be observed or saved; `descend`
is the same descent as a pure function, for `vmap` over seeds and for `grad`. What is common elsewhere is optax's here:

    schedule    optax.adam(optax.cosine_decay_schedule(1e-3, 1000))
    clipping    optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    decay       optax.adamw(1e-3, weight_decay=1e-2), or a penalty on the loss: losses.with_l2(loss, 1e-4)
    dropout     fit(..., key=key) calls loss(params, batch, key) with another key at every step

    >>> import jax.numpy as jnp, optax
    >>> from numdl.optimize import train
    >>> loss = lambda params, batch: jnp.mean((batch[0] * params - batch[1]) ** 2)
    >>> batches = train.whole((jnp.arange(4.0), 3 * jnp.arange(4.0)))
    >>> params, history = train.fit(loss, jnp.asarray(0.0), optax.sgd(0.1), batches, steps=50)
    >>> print(f"{params:.3f}, {history.stopped}")
    3.000, finished
"""

from numdl.optimize.train._batches import resident, whole
from numdl.optimize.train._history import History
from numdl.optimize.train._loop import fit
from numdl.optimize.train._measures import (
    Moment,
    accuracy,
    distance,
    gradient_noise,
    update_ratio,
    with_moment,
)
from numdl.optimize.train._reading import Kept, read
from numdl.optimize.train._schedule import early_stopping, every
from numdl.optimize.train._stepping import descend

__all__ = [
    "History",
    "Kept",
    "Moment",
    "accuracy",
    "descend",
    "distance",
    "early_stopping",
    "every",
    "fit",
    "gradient_noise",
    "read",
    "resident",
    "update_ratio",
    "whole",
    "with_moment",
]
