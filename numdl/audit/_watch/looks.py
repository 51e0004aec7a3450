"""The instruments of a watched run: each one program, compiled at its first look; they alone import analysis."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from numdl import checks, precision, trees
from numdl._compiled import jit
from numdl.analysis import attention, descent, layers
from numdl.audit._measured import views
from numdl.optimize import train

MATVECS = 3  # Hessian-vector products of a look; the vector of the look before is where they start
PARTS = 4  # of the batch, whose gradients tell the noise
FIELDS = {
    "state_rms": "state_rms",
    "state_max": "state_max",
    "gradient_rms": "state_gradient_rms",
    "dead": "dead",
    "saturated": "saturated",
    "rank": "effective_rank",
    "cosine": "mean_cosine",
    "weight_gradient_rms": "weight_gradient_rms",
}


class Programs:
    """What is compiled of a pair (apply, loss); batch is (x, targets)."""

    def __init__(self, apply, loss, frozen, key=None):
        seen = apply if key is None else lambda params, x: apply(params, x, key)
        self.frozen = frozen
        self.paired = lambda params, batch: (seen(params, batch[0]), batch[1])
        self.cost = lambda pair: loss(*pair)
        self._of_batch = lambda params, batch: loss(seen(params, batch[0]), batch[1])
        self.attention = jit(lambda params, x: attention.logits(seen, params, x))
        self.change, self.noise, self.sharpest = map(jit, (self._change, self._noise, self._sharpest))
        self.value = jit(self._of_batch)

    def _change(self, moving, kept):
        def rms(leaf):
            return jnp.sqrt(jnp.mean(jnp.square(leaf.astype(precision.wide(leaf.dtype)))))

        leaves = jax.tree.leaves(moving)
        size = jnp.stack([rms(leaf).astype(jnp.float32) for leaf in leaves])
        moved = jnp.stack([rms(a - b).astype(jnp.float32) for a, b in zip(leaves, jax.tree.leaves(kept), strict=True)])
        # A copy of its own: the caller may donate the parameters to the next step.
        return jnp.stack([jnp.where(moved > 0, moved / size, 0 * size), size]), jax.tree.map(jnp.copy, moving)

    def _sharpest(self, params, batch, vector, memory):
        moving, rest = trees.trainable(params, frozen=self.frozen)
        loss = lambda moving, batch: self._of_batch(rest.params(moving), batch)  # noqa: E731
        weights = None if memory is None else descent.adam_preconditioner()(*memory)
        if weights is not None and jax.tree.structure(weights) != jax.tree.structure(moving):
            weights = rest.moving(weights)
        return descent.sharpness(loss, moving, batch, start=vector, num_matvecs=MATVECS, preconditioner=weights)

    def curved(self, params, batch, vector):
        """Whether the loss, which has a gradient, has a second derivative too."""
        jax.eval_shape(jax.grad(self._of_batch, allow_int=True), params, batch)  # what is wrong with it is raised
        try:
            self.sharpest(params, batch, vector, None)
        except views.NO_DERIVATIVE:
            return False
        return True

    def _noise(self, params, batch):
        moving, rest = trees.trainable(params, frozen=self.frozen)
        loss = lambda moving, batch: self._of_batch(rest.params(moving), batch)  # noqa: E731
        found = train.gradient_noise(loss, batch, size=count(batch) // PARTS)(moving)
        return found.trace, found.square_norm


_kept = functools.lru_cache(maxsize=8)(Programs)  # a second watch of the same functions compiles nothing


def _programs(apply, loss, frozen, key):
    frozen = frozen if isinstance(frozen, str) else tuple(sorted(frozen))
    try:
        return _kept(apply, loss, frozen) if key is None else Programs(apply, loss, frozen, key)
    except TypeError:  # a function that has no hash
        return Programs(apply, loss, frozen, key)


class Instruments:
    """Functions of (params, batch) that return dicts of NumPy arrays, and what they remember from look to look."""

    def __init__(self, apply, loss, frozen, key):
        self._programs = _programs(apply, loss, frozen, key)
        self._kept = self._vector = None
        self._no_curvature = ""  # why there is no second derivative

    def leaves(self, params):
        """Names of the leaves that move."""
        return trees.names(self._parted(params)[0])

    def layers(self, params, batch):
        """Layers' states and cotangents, attention's logits, the loss."""
        try:
            flow = self._probed(params, batch)
        except ValueError as error:  # no layer is found, or which leaves have examples is not known
            return {"notes": (str(error),), "loss": float(self._programs.value(params, batch))}
        found = {name: _numbers(getattr(flow, field)) for name, field in FIELDS.items()}
        found |= {"names": flow.names, "kinds": flow.kinds, "nonlinearities": flow.nonlinearities, "notes": flow.notes}
        found |= {"first_nonfinite": self._first_nonfinite(flow, params, batch), "loss": float(flow.value)}
        found |= {"leaf_names": flow.leaf_names, "leaf_gradient_rms": _numbers(flow.leaf_gradient_rms)}
        if "attention" in flow.kinds:
            scores = self._programs.attention(params, batch[0])
            found |= {"attention": scores.names} | {
                name: _numbers(getattr(scores, name)) for name in ("logit_max", "entropy", "shut")
            }
        return found

    def change(self, params):
        """|change since the last call| / |leaf| and rms of every leaf that moves; 0 at the first call."""
        moving, _ = self._parted(params)
        known = self._kept is not None and jax.tree.structure(self._kept) == jax.tree.structure(moving)
        sizes, now = self._programs.change(moving, self._kept if known else moving)
        ratio, rms = _numbers(sizes)
        if self._kept is None or np.isfinite(rms).all():  # the last that were finite tell where they ceased to be
            self._kept = now
        return {"names": trees.names(moving), "ratio": ratio, "rms": rms}

    def _parted(self, params):
        return trees.trainable(params, frozen=self._programs.frozen)

    def _probed(self, params, batch):
        return layers.probe(self._programs.paired, params, batch, loss=self._programs.cost, examples=examples(batch))

    def _first_nonfinite(self, flow, params, batch):
        """The first layer that is not finite, or -1; where a step spoilt the parameters, on those of the last look."""
        moving, rest = self._parted(params)
        if flow.first_nonfinite < 0 or self._kept is None or _spoilt(moving) < 2:
            return int(flow.first_nonfinite)
        return int(self._probed(rest.params(self._kept), batch).first_nonfinite)

    def sharpness(self, params, batch, state=None, step=0):
        """Largest eigenvalue of the Hessian on this batch, from where the last look ended.

        With an optimizer's state that has second moments: of the Hessian that Adam divides by their roots. nan, and
        why, where the network has a rule for the way back alone.
        """
        scaled = state is not None and _has_moments(state)
        if self._no_curvature:
            return {"sharpness": np.nan, "residual": np.nan, "preconditioned": scaled, "why_not": self._no_curvature}
        moving, _ = self._parted(params)
        if self._vector is None or jax.tree.structure(self._vector) != jax.tree.structure(moving):
            self._vector = _pattern(moving)
        try:
            found = self._programs.sharpest(params, batch, self._vector, (state, np.int32(step)) if scaled else None)
        except views.NO_DERIVATIVE as error:
            if self._programs.curved(params, batch, self._vector):
                raise
            self._no_curvature = f"no second derivative: {str(error).splitlines()[0]}"
            return self.sharpness(params, batch, state, step)
        value, residual = float(found.value), float(found.residual)
        self._vector = found.vector if np.isfinite(value) else None
        return {"sharpness": value, "residual": residual, "preconditioned": scaled}

    def noise(self, params, batch):
        """Sums whose ratio is the gradient noise scale; nan where the batch is too small to be parted."""
        if count(batch) < 2 * PARTS or examples(batch) is not None:
            return {"trace": np.nan, "square_norm": np.nan}
        trace, square = self._programs.noise(params, batch)
        return {"trace": float(trace), "square_norm": float(square)}


def opened(batch):
    """The pair (x, targets), checked."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise checks.BadType(f"batch must be a pair (x, targets); got {checks.shown(batch)}")
    return checks.leaves("batch", tuple(batch))


def form(batch):
    """Structure, shapes and dtypes: another form is another program."""
    leaves, structure = jax.tree.flatten(batch)
    return structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves)


def examples(batch):
    """Where the examples are, as `probe` takes it: first in all leaves, or else first in those of x."""
    firsts = {tuple(np.shape(leaf))[:1] for leaf in jax.tree.leaves(batch)}
    return None if len(firsts) == 1 and () not in firsts else "0"


def count(batch):
    """Examples in the batch."""
    return len(jax.tree.leaves(batch)[0])


def _spoilt(moving):
    """Leaves that are not finite: a step on a gradient that is not leaves several, a fault of one leaf itself."""
    return sum(not bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(moving))


def _has_moments(state):
    import optax

    try:
        return optax.tree.get(state, "nu") is not None
    except KeyError:  # in several places
        return False


def _pattern(tree):
    """A start for Lanczos with a part in every direction, the same in every run."""
    return jax.tree.map(lambda leaf: jnp.cos(1.0 + jnp.arange(leaf.size)).reshape(leaf.shape).astype(leaf.dtype), tree)


def _numbers(values):
    return np.asarray(values, np.float64)
