"""float32 against float64 for every public function that returns numbers: the registry's good calls, made twice."""

import contextlib
import functools
import os
import tempfile
import warnings

import jax
import jax.numpy as jnp
import numpy as np

from tests import registry
from tests.verification import below, study

EPSILON, EXACT = 2.0**-23, 2.0**-52
# Backward stability promises p(n) (1 + condition) epsilon: p of sums and products of some hundred terms, the worst case
# instead of the square root that rounding errors of both signs leave (Higham 2002, section 3.1).
GROWTH = 128
QUICK = ("trees.norm", "krylov.lanczos.tridiagonalize", "statistics.agreement")
# Fields of a result, by their places among its arrays, that say how wide a number is, or are not determined, and why.
APART = {
    "analysis.attention.rank_collapse": ((2,), "without the floor, which is the logarithm of rounding itself"),
    "analysis.curvature.kronecker": ((4,), "without eigenvectors, which have no sign"),
    "analysis.curvature.top_eigenvalues": ((5, 6), "without the noise, which is rounding, and the ceiling above it"),
    "analysis.descent.along": ((2,), "without the residuals of the eigenvalues, which end where rounding begins"),
    "analysis.landscape.critical_point": (
        (0, 1, 3),
        "without the point, which may lie anywhere along the flat directions, and the gradient that was left there",
    ),
    "analysis.layers.summary": ((1, 2), "without the bytes of its numbers"),
    "analysis.refinement.study": (
        (3, 4),
        "without the interval of an order that is exact: its width is rounding",
    ),
    "ode.adjoint_audit.taylor_remainders": ((3,), "without the slopes, which are looked at until they are rounding"),
    "optimize.least_squares.extreme_learning_machine": (
        (2, 3, 4, 5, 6, 7),
        "without the readout: the candidates for its damping begin at the dtype's epsilon",
    ),
}
NOT_COMPARED = {
    "ode.adjoint_audit.dot_product_test": "returns rounding itself",
    "analysis.curvature.needs": "counts the bytes of numbers, and those that the machine has left",
    "parallel.first": "computes nothing",
    "parallel.over_seeds": "the registry's call hands over a draw of jax's own, made before draws were made the same",
    "records.record": "makes a class, once",
}


def comparable():
    """name -> function, of all that is registered with a good call that a test can make."""
    functions, registered = registry.functions(), registry.calls()
    return {
        name: functions[name]
        for name in registered[0]
        if not name.startswith((*registry.NOT_RUN, "plotting", "reporting", *NOT_COMPARED))
    }, registered


def outputs(function, arguments, wide):
    """The numbers that a call returns, as float64 arrays, in the order of the record's leaves."""
    with jax.enable_x64(wide), warnings.catch_warnings(), _elsewhere():
        warnings.simplefilter("ignore")
        result = registry.calling(function, arguments if wide else jax.tree.map(_kept, arguments))()
        leaves = [a for a in jax.tree.leaves(result) if isinstance(a, jax.Array | np.ndarray | np.generic | float)]
        arrays = [np.asarray(a) for a in leaves if not jnp.issubdtype(jnp.result_type(a), jax.dtypes.extended)]
    arrays = [array for array in arrays if array.dtype.kind in "fcV"]
    return [array.astype(np.complex128 if np.iscomplexobj(array) else np.float64) for array in arrays]


def _kept(leaf):
    """An array of jax's float64 as jax has it now."""
    return jnp.asarray(np.asarray(leaf)) if isinstance(leaf, jax.Array) and leaf.dtype == np.float64 else leaf


@contextlib.contextmanager
def _elsewhere():
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)


def rounding(single, double, magnified=None):
    """The largest difference of two lists of arrays, in units of what rounding to float32 may do; inf if forms differ.

        |single - double| / (epsilon |double| + magnified),    each the largest entry of an array

    magnified : list of numbers     what rounding of the arguments makes of each array
    """
    if len(single) != len(double) or any(a.shape != b.shape for a, b in zip(single, double)):
        return np.inf
    magnified = [0.0] * len(double) if magnified is None else magnified
    return max(map(_rounding, single, double, magnified), default=0.0)


def _rounding(single, double, magnified):
    error, unit = _largest(single, double), EPSILON * _size(double) + magnified
    return float(error / unit) if error and unit else np.inf if error else 0.0


def _size(array):
    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0))


def _largest(one, other):
    """The largest difference of finite entries; inf where others are not finite."""
    kept = np.isfinite(other)
    return np.abs(one[kept] - other[kept]).max(initial=0.0) if np.array_equal(np.isfinite(one), kept) else np.inf


# ---- the same draws in both precisions -------------------------------------------------------------------------------


@contextlib.contextmanager
def same_draws():
    """jax draws other numbers at another width, not only other digits: here all are drawn in float32, then widened."""
    kept = {name: getattr(jax.random, name) for name in _DRAWS}
    jax.clear_caches()
    try:
        for name, make in _DRAWS.items():
            setattr(jax.random, name, make(kept[name], kept))
        yield
    finally:
        for name, original in kept.items():
            setattr(jax.random, name, original)
        jax.clear_caches()


def _narrow(value):
    """A bound or a probability as a float32; what is no number stays."""
    return jnp.asarray(value, jnp.float32) if isinstance(value, float | jax.Array | np.ndarray) else value


def _continuous(original, _, before):
    """A draw (key, *before, shape, dtype, ...) made in float32."""

    @functools.wraps(original)
    def draw(key, *arguments, **keywords):
        names = (*before, "shape", "dtype", "minval", "maxval")[: len(arguments)]
        given = dict(zip(names, arguments)) | keywords
        dtype = jnp.result_type(float) if given.get("dtype") is None else given["dtype"]
        given = {name: value if name == "shape" else _narrow(value) for name, value in given.items()}
        return original(key, **given | {"dtype": jnp.float32}).astype(dtype)

    return draw


def _bernoulli(original, _):
    @functools.wraps(original)
    def draw(key, p=0.5, shape=None, **keywords):
        return original(key, jnp.asarray(p, jnp.float32), shape, **keywords)

    return draw


def _rademacher(original, kept):
    @functools.wraps(original)
    def draw(key, shape=(), dtype=None):
        signs = kept["bernoulli"](key, jnp.float32(0.5), shape)
        return (2 * signs.astype(jnp.int32) - 1).astype(jnp.result_type(int) if dtype is None else dtype)

    return draw


_DRAWS = {
    "normal": functools.partial(_continuous, before=()),
    "uniform": functools.partial(_continuous, before=()),
    "gumbel": functools.partial(_continuous, before=()),
    "truncated_normal": functools.partial(_continuous, before=("lower", "upper")),
    "bernoulli": _bernoulli,
    "rademacher": _rademacher,
}

# ---- how much a call magnifies rounding ------------------------------------------------------------------------------


def magnification(function, arguments, exact):
    """What rounding the arguments to float32 makes of each array of the result, computed in float64.

    An array that rounding to float64 already changes by a 128th of itself is rounding and nothing else, such as the
    residual of a solution: it may be 2**29 times as large in float32. So is one of the size of float64's rounding of
    the largest number of the result.
    """
    sizes = list(map(_size, exact))
    single = _change(function, arguments, exact, EPSILON)
    double = _change(function, arguments, exact, EXACT)
    least = EXACT * max(sizes)
    double = [max(d, least) if size < GROWTH * least else d for d, size in zip(double, sizes, strict=True)]
    return [d * 2.0**29 if d >= size / GROWTH else s for s, d, size in zip(single, double, sizes, strict=True)]


def _change(function, arguments, exact, epsilon):
    """By how much each array changes at most when the entries of the arguments change by up to two epsilons, thrice.

    Where the door refuses that (probabilities, symmetric matrices) they change by one factor.
    """
    worst = np.zeros(len(exact))
    for turn in range(3):
        for change in (_each_entry, _one_factor):
            with contextlib.suppress(ValueError, TypeError):
                moved = outputs(function, _moved(arguments, turn, change, epsilon), True)
                worst = np.maximum(worst, list(map(_largest, moved, exact)))
                break
    return worst.tolist()


def _moved(arguments, turn, change, epsilon):
    random = np.random.default_rng(turn)

    def one(leaf):
        if not isinstance(leaf, np.ndarray | jax.Array) or leaf.dtype != np.float64:
            return leaf
        made = np.asarray(leaf) * (1 + 2 * epsilon * change(random, leaf.shape))
        return jnp.asarray(made) if isinstance(leaf, jax.Array) else made

    return jax.tree.map(one, arguments)


def _each_entry(random, shape):
    return random.uniform(-1, 1, shape)


def _one_factor(random, _):
    return random.uniform(-1, 1)


@study("float32 against float64")
def single(full):
    """Every public function that returns real numbers, in units of what rounding to float32 may do; draws are the same.

    The unit is epsilon times each result's largest entry, and what rounding the arguments to float32 does in float64:
    the function's condition, measured. A bound of 128 allows for some hundred operations.
    """
    functions, registered = comparable()
    chosen = sorted(functions) if full else QUICK
    calls = {name: (functions[name], registry.good_call(name, functions[name], registered)) for name in chosen}
    with same_draws():
        narrow = {name: outputs(*call, False) for name, call in _in_turns(calls)}
        for name, call in _in_turns(calls):
            exact = outputs(*call, True)
            if narrow[name] or exact:
                yield _compared(name, *call, narrow[name], exact)


def _in_turns(calls):
    """The calls, without what was compiled for too many before: each precision as in a process of its own."""
    for count, call in enumerate(calls.items()):
        if not count % 20:
            jax.clear_caches()
        yield call


def _compared(name, function, arguments, narrow, exact):
    """The figure of one function; its condition is asked for only where the difference is not small anyway."""
    fields, why = APART.get(name, ((), ""))
    found = rounding(_without(fields, narrow), _without(fields, exact))
    size = EPSILON * found
    tried = f"relative difference {size:.1e}" if size < 1 else "results of the size of rounding in float64"
    if found > GROWTH:
        magnified = magnification(function, arguments, exact)
        found = rounding(_without(fields, narrow), _without(fields, exact), _without(fields, magnified))
        tried += ", magnified"
    return below(name, found, GROWTH, ", ".join(filter(None, (tried, why))))


def _without(fields, values):
    return [value for place, value in enumerate(values) if place not in fields]
