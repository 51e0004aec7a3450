"""Properties of every public function under other shapes, dtypes, pytrees, empty axes and axes of one.

What is common to all: a call whose arguments were varied is answered with numbers, or refused with the argument named;
it never fails inside. Every array of every argument is varied in every way, one at a time. What is particular to some,
an algebraic law, stands below, under drawn pytrees.
"""

import inspect
import itertools
import pathlib
import traceback
import warnings

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from numdl import data, statistics, trees
from numdl.krylov import lanczos
from numdl.ode import refinement
from tests import registry, test_doors_registry
from tests.selection import in_turn

FUNCTIONS, REGISTERED = test_doors_registry.FUNCTIONS, test_doors_registry.REGISTERED
# Derandomized: the same examples on every machine and in every run.
settings = hypothesis.settings(derandomize=True, database=None, deadline=None, max_examples=12)
# Variations that are known to fail inside or without a name and are not yet mended: the file is meant to be empty.
KNOWN = frozenset((pathlib.Path(__file__).parent / "registry" / "varied.txt").read_text(encoding="utf-8").splitlines())
KINDS = ("float32", "float16", "bfloat16", "longdouble", "complex64", "int32", "uint8", "bool", "object", "str")
X = np.ones(3)
ALL = [name for name in REGISTERED[0] if not name.startswith(registry.NOT_RUN)]


# ---- what is common to all -------------------------------------------------------------------------------------------


def variations(good):
    """(how, value): one array of the argument, itself or a leaf, in another shape or dtype; or another pytree."""
    leaves, structure = jax.tree.flatten(good)
    for place, leaf in enumerate(leaves):
        for how, change in _changes(leaf) if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "fi" else ():
            changed = [*leaves[:place], change(leaf), *leaves[place + 1 :]]
            yield f"{how}, array {place}", jax.tree.unflatten(structure, changed)
    yield from _forms(good)


def _forms(good):
    """Other pytrees than the argument's: nothing but an array, wrapped, a leaf or a part too few or too many."""
    if isinstance(good, np.ndarray):
        return
    yield from (("a list of its arrays", jax.tree.leaves(good)), ("wrapped", (good,)), ("an array", np.ones(3)))
    if isinstance(good, dict):
        names = list(good)
        yield from (("a name less", {name: good[name] for name in names[1:]}), ("a name more", {**good, "more": X}))
        yield from ((f"{name} is None", {**good, name: None}) for name in names)
    if type(good) in (tuple, list):
        yield from (("one less", good[1:]), ("one more", good + good[:1]), ("none", good[:0]))


def _changes(leaf):
    """Of one array: axes cut to one or to nothing, taken or added, other dtypes and layouts."""
    found = [(f"as {kind}", lambda a, kind=kind: a.astype(kind)) for kind in KINDS]
    found += [("a jax array", jnp.asarray), ("an axis more", lambda a: a[None]), ("read backwards", lambda a: a[::-1])]
    found += [("in the other byte order", lambda a: a.astype(a.dtype.newbyteorder("S")))]
    found += [("only its shape", lambda a: jax.ShapeDtypeStruct(a.shape, jax.dtypes.canonicalize_dtype(a.dtype)))]
    found += [("lists", lambda a: a.tolist()), ("transposed", lambda a: a.T), ("not finite", lambda a: a * np.nan)]
    found += [
        ("masked", lambda a: np.ma.masked_array(a, np.ones(a.shape, bool))),
        ("a function", lambda a: lambda *_: a),
    ]
    for axis in range(leaf.ndim):
        found.append((f"axis {axis} of one", lambda a, axis=axis: a.take([0], axis)))
        found.append((f"axis {axis} empty", lambda a, axis=axis: a.take([], axis)))
        found.append((f"axis {axis} doubled", lambda a, axis=axis: np.concatenate([a, a], axis)))
        found.append((f"without axis {axis}", lambda a, axis=axis: a.take(0, axis)))
    return [pair for pair in found if leaf.ndim or pair[0] != "read backwards"]


def varied(name):
    """The arguments of the good call that hold arrays of numbers: those can be varied."""
    call = registry.good_call(name, FUNCTIONS[name], REGISTERED)
    return [argument for argument, value in call.items() if _has_array(value)]


def _has_array(value):
    if callable(value) or not isinstance(value, np.ndarray | tuple | list | dict):
        return False
    leaves = jax.tree.leaves(value)
    return any(isinstance(leaf, np.ndarray) and leaf.dtype.kind in "fi" for leaf in leaves)


def answer(name, argument, value):
    """What is wrong with the answer to the varied call; empty where it comes in, or is refused by name.

    It is in when something is compiled, or when it has run for long: what then comes is for other tests.
    """
    function = FUNCTIONS[name]
    call = {**registry.good_call(name, function, REGISTERED), argument: value}
    jax.clear_caches()  # what was compiled before would let the call go further than alone
    try:
        with test_doors_registry.no_work():
            function(**call)
    except (test_doors_registry.Worked, test_doors_registry.Endless):
        return ""
    except Exception as error:
        return "" if _in_the_callers_own(error) else _judged(function, error)
    return ""


def _judged(function, error):
    if isinstance(error, ValueError | TypeError):
        named = any(name in str(error) for name in inspect.signature(function).parameters)
        if named and "must" in str(error) and "got" in str(error):
            return ""
    return f"{type(error).__name__}: {error}"


def _in_the_callers_own(error):
    """Whether the error comes out of a function that the caller handed over: what fits it is the caller's business."""
    frames = traceback.extract_tb(error.__traceback__)
    return any("/tests/registry/" in frame.filename for frame in frames)


VARIED = [name for name in ALL if varied(name)]


def common(name):
    """row -> what is wrong with the answer, over all variations of one function's arguments."""
    wrong = {}
    for argument in varied(name):
        for how, value in variations(registry.good_call(name, FUNCTIONS[name], REGISTERED)[argument]):
            if found := answer(name, argument, value):
                wrong[f"{name}({argument}: {how})"] = found[:200]
    return wrong


@pytest.mark.parametrize("name", in_turn(VARIED, 0, every=18))
def test_a_varied_call_comes_in_or_is_refused_by_name(name):
    found = common(name)
    assert not {row: wrong for row, wrong in found.items() if row not in KNOWN}


# What ends in a factorization, which LAPACK has not in half precision; all others are as slow as they are many.
FACTORED = ("krylov.bidiagonal.singular_triplets", "optimize.least_squares.svd", "optimize.varpro.project")


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in FACTORED for kind in ("float16", "bfloat16")]
    + [pytest.param(name, "float16", marks=pytest.mark.slow) for name in VARIED if name not in FACTORED],
)
def test_half_precision_is_answered_or_refused_by_name(name, kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call = registry.good_call(name, FUNCTIONS[name], REGISTERED)
    halved = {argument: _halved(value, kind) for argument, value in call.items()}
    said = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            registry.calling(FUNCTIONS[name], halved)()
        except (ValueError, TypeError) as error:
            said = str(error)
    assert "nsupported dtype" not in said and "does not accept dtype" not in said


def _halved(value, kind):
    half = lambda leaf: leaf.astype(kind) if isinstance(leaf, np.ndarray) and leaf.dtype.kind == "f" else leaf  # noqa: E731
    return value if callable(value) else jax.tree.map(half, value)


# Whole numbers are no parameters there that move or that have a spread; a policy of the caller's own wraps around.
WHOLE = {"analysis.layers.probe", "analysis.layers.summary", "analysis.control.episodes"}


@pytest.mark.parametrize("name", in_turn([name for name in VARIED if name not in WHOLE], 7, every=18))
def test_whole_numbers_are_refused_or_count_as_the_same_floats(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for argument in varied(name):
        wanted = _numbers(name, argument, "float64")
        for kind in ("int32", "uint8") if wanted is not None else ():
            found = _numbers(name, argument, kind)
            for got, right in zip(found, wanted, strict=True) if found is not None else ():
                scale = 1e-9 + np.max(np.abs(right), where=np.isfinite(right), initial=0)
                np.testing.assert_allclose(got, right, rtol=0, atol=1e-3 * scale, err_msg=f"{argument} as {kind}")


def _numbers(name, argument, kind):
    """The numbers of the answer where an argument's arrays are whole, in this dtype; None where it is refused."""
    call = registry.good_call(name, FUNCTIONS[name], REGISTERED)
    whole = lambda a: np.clip(np.round(3 * np.abs(a)), 0, 200).astype(kind) if isinstance(a, np.ndarray) else a  # noqa: E731
    call[argument] = jax.tree.map(whole, call[argument])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            found = registry.calling(FUNCTIONS[name], call)()
        except (ValueError, TypeError) as error:
            if "must" not in str(error) or "got" not in str(error):
                raise
            return None
    found = list(itertools.islice(found, 3)) if inspect.isgenerator(found) else found
    leaves = [
        np.asarray(leaf) for leaf in jax.tree.leaves(found) if hasattr(leaf, "dtype") and leaf.dtype.kind in "fciu"
    ]
    return [leaf.astype(complex) for leaf in leaves]


def test_every_public_function_with_arrays_is_varied():
    left_out = {name for name in FUNCTIONS if name not in VARIED}
    without = {name for name in left_out if name in ALL and not varied(name)}
    assert left_out == without | set(registry.UNCHECKED) | {n for n in FUNCTIONS if n.startswith(registry.NOT_RUN)}
    assert len(VARIED) > 150


def test_a_call_that_fails_inside_is_seen(monkeypatch):
    def fails(x):
        raise jax.errors.UnexpectedTracerError("no")

    def silent(x):
        raise ValueError("shapes do not fit")

    for function in (fails, silent):
        monkeypatch.setitem(FUNCTIONS, "f", function)
        monkeypatch.setitem(REGISTERED[0], "f", {})
        assert answer("f", "x", 1.0)


# ---- laws of some ----------------------------------------------------------------------------------------------------

SHAPES = st.sampled_from([(), (0,), (1,), (3,), (1, 4), (2, 0, 3), (2, 3, 1)])
NUMBERS = st.floats(-10, 10, allow_nan=False, width=32)


@st.composite
def arrays(draw, shape=None):
    shape = draw(SHAPES) if shape is None else shape
    seed = draw(st.integers(0, 2**16))
    kind = draw(st.sampled_from(["float32", "float64"]))
    return np.random.default_rng(seed).normal(size=shape).astype(kind)


TREES = st.recursive(
    arrays(),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3)
        | st.lists(inner, min_size=1, max_size=2).map(tuple)
        | st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3)
    ),
    max_leaves=5,
)


def like(tree, seed):
    random = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(leaf.dtype), tree)


@settings
@hypothesis.given(TREES, st.integers(0, 99))
def test_inner_products_are_those_of_the_flat_vectors(tree, seed):
    other = like(tree, seed)
    flat, same = (np.concatenate([leaf.ravel().astype(float) for leaf in jax.tree.leaves(t)]) for t in (tree, other))
    scale = np.linalg.norm(flat) * np.linalg.norm(same) + 1e-30
    assert abs(float(trees.inner(tree, other)) - flat @ same) <= 1e-6 * scale
    assert float(trees.inner(tree, other)) == pytest.approx(float(trees.inner(other, tree)), abs=1e-6 * scale)
    assert float(trees.norm(tree)) == pytest.approx(np.linalg.norm(flat), rel=1e-6)


@settings
@hypothesis.given(TREES, st.integers(0, 99), NUMBERS)
def test_axpy_is_linear_and_keeps_form_and_dtype(tree, seed, alpha):
    other = like(tree, seed)
    found = trees.axpy(alpha, other, tree)
    assert jax.tree.structure(found) == jax.tree.structure(tree)
    for got, x, y in zip(*map(jax.tree.leaves, (found, other, tree)), strict=True):
        assert got.shape == y.shape and got.dtype == y.dtype
        np.testing.assert_allclose(got, alpha * x.astype(float) + y, rtol=1e-5, atol=1e-5)


@settings
@hypothesis.given(TREES)
def test_ravel_goes_and_comes_back(tree):
    flat, back = trees.ravel(tree)
    assert flat.size == sum(leaf.size for leaf in jax.tree.leaves(tree))
    for got, wanted in zip(jax.tree.leaves(back(flat)), jax.tree.leaves(tree), strict=True):
        np.testing.assert_array_equal(got, wanted)
        assert got.dtype == wanted.dtype
    assert len(set(trees.names(tree))) == len(jax.tree.leaves(tree))


@settings
@hypothesis.given(arrays((5, 3)), NUMBERS, st.floats(0.1, 10))
def test_mean_and_error_move_and_scale_with_the_samples(samples, shift, scale):
    plain, moved = statistics.mean_and_error(samples), statistics.mean_and_error(scale * samples.astype(float) + shift)
    np.testing.assert_allclose(moved.mean, scale * plain.mean + shift, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(moved.stderr, scale * plain.stderr, rtol=1e-9, atol=1e-9)


@settings
@hypothesis.given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 9))
def test_an_epochs_batches_hold_every_example_at_most_once(count, size, seed):
    size = min(size, count)
    kept = np.asarray(data.epoch_indices(jax.random.key(seed), count, size))
    assert kept.shape == (count // size, size)
    assert len(set(kept.ravel().tolist())) == kept.size


@settings
@hypothesis.given(st.integers(1, 4), st.integers(1, 3), st.sampled_from(["constant", "linear"]), st.integers(0, 99))
def test_what_is_prolonged_is_restricted_to_itself(steps, factor, interpolation, seed):
    length = steps + (interpolation == "linear")
    theta = {"w": np.random.default_rng(seed).normal(size=(length, 2, 1)), "b": np.zeros((length, 0))}
    fine = refinement.prolong(theta, steps=factor * steps, interpolation=interpolation)
    coarse = refinement.restrict(fine, steps=steps, interpolation=interpolation)
    np.testing.assert_allclose(ravel_pytree(coarse)[0], ravel_pytree(theta)[0], atol=1e-14)


@hypothesis.settings(settings, max_examples=5)
@hypothesis.given(st.integers(2, 6), st.integers(0, 99))
def test_lanczos_of_a_diagonal_is_its_sorted_entries(size, seed):
    diagonal = np.random.default_rng(seed).permutation(np.arange(1.0, size + 1))
    product = jax.tree_util.Partial(lambda d, v: d * v, jnp.asarray(diagonal))
    found = lanczos.eigenpairs(jax.random.key(seed), product, jnp.zeros(size), k=2, tolerance=1e-9)
    np.testing.assert_allclose(found.values, [size, size - 1], rtol=1e-9)
