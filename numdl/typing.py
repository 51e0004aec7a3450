"""Names for the functions that users hand in, for signatures: what an `apply`, a `loss`, a vector field is.

Arrays, keys and pytrees are jaxtyping's: `Array`, `ArrayLike`, `Float`, `Key`, `PyTree`.
"""

import os
from collections.abc import Callable
from typing import Any

from jaxtyping import Array, PyTree

Apply = Callable[[PyTree, PyTree], PyTree]  # (params, x [N, ...]) -> outputs [N, ...]
Loss = Callable[[PyTree, PyTree], Array]  # (params, batch) -> real scalar, a mean over the examples
LossOfOutputs = Callable[[PyTree], Array]  # outputs -> real scalar
Field = Callable[[Any, PyTree, PyTree], PyTree]  # (t, y, theta) -> dy/dt, like y
Matvec = Callable[[PyTree], PyTree]  # v -> A v, like v
StrPath = str | os.PathLike[str]  # where a file or a folder lies
