"""Landscapes of losses that are known: quadratics, wells on a circle, products; orders of units found again."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numdl import activations
from numdl.analysis import landscape
from numdl.networks import dense
from tests.doors import bad, refused

WIDEST = jnp.zeros(()).dtype
EPS = float(jnp.finfo(WIDEST).eps)


def quadratic(params, batch):
    return 0.5 * params["w"] @ batch @ params["w"] + params["b"]


MATRIX = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3)), WIDEST)
MATRIX = MATRIX @ MATRIX.T
POINT = {"w": jnp.asarray([1.0, -2.0, 0.5], WIDEST), "b": jnp.asarray(0.25, WIDEST)}


@pytest.mark.float32
def test_a_51_by_51_landscape_in_one_compiled_call():
    rng = np.random.default_rng(1)
    u, v = ({"w": jnp.asarray(rng.normal(size=3), WIDEST), "b": jnp.asarray(rng.normal(), WIDEST)} for _ in range(2))
    first, second = np.linspace(-1, 1, 51), np.linspace(-0.5, 2, 51)
    found = landscape.plane(quadratic, POINT, MATRIX, u, v, first=first, second=second)
    w = np.asarray(POINT["w"])[:, None, None] + np.multiply.outer(u["w"], first)[:, :, None]
    w = np.moveaxis(w + np.multiply.outer(v["w"], second)[:, None, :], 0, -1)
    b = 0.25 + np.asarray(u["b"]) * first[:, None] + np.asarray(v["b"]) * second[None, :]
    expected = 0.5 * np.einsum("abi,ij,abj->ab", w, np.asarray(MATRIX), w) + b
    assert found.values.shape == (51, 51)
    np.testing.assert_allclose(found.values, expected, rtol=0, atol=100 * EPS * np.abs(expected).max())
    calls = []

    def counted(params, batch):
        calls.append(1)
        return quadratic(params, batch)

    landscape.plane(counted, POINT, MATRIX, u, v, first=first, second=second)
    traces = len(calls)
    landscape.plane(counted, POINT, 2 * MATRIX, u, v, first=first, second=second)
    assert len(calls) == traces <= 3


def test_lines_and_batches_of_points():
    along = jax.tree.map(jnp.ones_like, POINT)
    found = [
        landscape.line(quadratic, POINT, MATRIX, along, positions=np.linspace(-1, 1, 7), at_a_time=size).values
        for size in (None, 3, 7)
    ]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-12)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-12)
    np.testing.assert_allclose(np.diff(found[0], 3), 0, atol=1e-10)  # a parabola
    np.testing.assert_allclose(found[0][3], quadratic(POINT, MATRIX), rtol=1e-12)


def lengths(leaf, kept):
    """Of every filter: the root of the sum of squares over all axes that are not `kept`."""
    leaf = np.asarray(leaf, np.float64)
    return np.sqrt(np.sum(leaf**2, axis=tuple(axis for axis in range(leaf.ndim) if axis not in kept)))


@pytest.mark.float32
def test_directions_have_the_filters_lengths():
    rng = np.random.default_rng(2)
    params = {
        "conv": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 2, 4)), WIDEST), "bias": jnp.zeros(4, WIDEST)},
        "dense": {"kernel": jnp.asarray(rng.normal(size=(5, 3)), WIDEST).at[:, 1].set(0), "bias": jnp.ones(3, WIDEST)},
        "stack": {"kernel": jnp.asarray(rng.normal(size=(2, 3, 4)), WIDEST), "bias": jnp.ones((2, 4), WIDEST)},
        "norm": {"scale": jnp.ones((1, 1, 1, 4), WIDEST)},
    }
    key = jax.random.key(0)
    found = landscape.direction(key, params, stacked="stack")
    for name, kept in (("conv", (3,)), ("dense", (1,)), ("stack", (0, 2))):
        np.testing.assert_allclose(
            lengths(found[name]["kernel"], kept), lengths(params[name]["kernel"], kept), rtol=20 * EPS
        )
        assert not found[name]["bias"].any()
    assert not found["norm"]["scale"].any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))
    assert not found["dense"]["kernel"][:, 1].any()
    layer = landscape.direction(key, params, normalize="layer", vectors=True)
    for new, old in zip(jax.tree.leaves(layer), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(np.linalg.norm(new), np.linalg.norm(old), rtol=20 * EPS)
    assert layer["stack"]["bias"].any() and not layer["conv"]["bias"].any()
    raw = landscape.direction(key, {"kernel": jnp.zeros((3, 4), WIDEST)}, normalize="none")
    assert raw["kernel"].all()
    with pytest.raises(ValueError, match="normalize must be one of filter, layer, none; got 'unit'"):
        landscape.direction(key, params, normalize="unit")


def conv(x, w, names, groups=1):
    stride = (1,) * (x.ndim - 2)
    return jax.lax.conv_general_dilated(x, w, stride, "SAME", dimension_numbers=names, feature_group_count=groups)


# name -> (shape, x, apply, axes that number filters as they must be, `outputs` that says the same without a call)
LAYOUTS = {
    "Linear (out, in)": ((8, 6), (2, 6), lambda w, x: x @ w.T, (0,), 0),
    "Conv1D WIO": ((3, 4, 5), (2, 7, 4), lambda w, x: conv(x, w, ("NHC", "HIO", "NHC")), (2,), -1),
    "Conv1D OIW": ((5, 4, 3), (2, 4, 7), lambda w, x: conv(x, w, ("NCH", "OIH", "NCH")), (0,), 0),
    "Conv2D OIHW": ((3, 4, 3, 3), (2, 4, 5, 5), lambda w, x: conv(x, w, ("NCHW", "OIHW", "NCHW")), (0,), 0),
    "Conv3D DHWIO": ((2, 2, 2, 3, 4), (1, 3, 3, 3, 3), lambda w, x: conv(x, w, ("NDHWC", "DHWIO", "NDHWC")), (4,), -1),
    "grouped": ((3, 3, 2, 6), (2, 5, 5, 6), lambda w, x: conv(x, w, ("NHWC", "HWIO", "NHWC"), 3), (3,), -1),
    "depthwise (H, W, C, M)": (
        (3, 3, 4, 2),
        (2, 5, 5, 4),
        lambda w, x: conv(x, w.reshape(3, 3, 1, 8), ("NHWC", "HWIO", "NHWC"), 4),
        (2, 3),
        (2, 3),
    ),
    "query (features, heads, head_dim)": (
        (6, 2, 3),
        (2, 5, 6),
        lambda w, x: jnp.einsum("ntf,fhd->nthd", x, w),
        (1, 2),
        (1, 2),
    ),
    "query (heads, features, head_dim)": (
        (2, 6, 3),
        (2, 5, 6),
        lambda w, x: jnp.einsum("ntf,hfd->nthd", x, w),
        (0, 2),
        (0, 2),
    ),
    "out (heads, head_dim, features)": (
        (2, 3, 6),
        (2, 5, 2, 3),
        lambda w, x: jnp.einsum("nthd,hdf->ntf", x, w),
        (2,),
        -1,
    ),
    "experts (E, in, out)": ((3, 4, 5), (3, 2, 4), lambda w, x: jnp.einsum("enf,efo->eno", x, w), (0, 2), (0, 2)),
    "scanned (depth, in, out)": (
        (3, 4, 4),
        (2, 4),
        lambda w, x: jax.lax.scan(lambda y, k: (jnp.tanh(y @ k), None), x, w)[0],
        (0, 2),
        (0, 2),
    ),
}


@pytest.mark.float32
@pytest.mark.parametrize("name", LAYOUTS)
def test_filters_are_followed_from_the_call_or_said(name):
    """The lengths are kept for each output unit, and inside of a filter the noise is white."""
    shape, inputs, apply, kept, said = LAYOUTS[name]
    key, weights = jax.random.key(1), np.random.default_rng(4).normal(size=shape)
    for axis in range(len(shape)):  # every slice has another size, so that a wrong axis is seen
        weights *= np.exp(np.random.default_rng(axis).normal(size=[n if a == axis else 1 for a, n in enumerate(shape)]))
    params = {"w": jnp.asarray(weights, WIDEST), "b": jnp.ones(3, WIDEST)}
    followed = landscape.direction(key, params, apply=lambda p, x: apply(p["w"], x), x=jnp.ones(inputs, WIDEST))
    by_hand = landscape.direction(key, params, outputs={"w": said})
    raw = landscape.direction(key, params, normalize="none")
    for found in (followed, by_hand):
        np.testing.assert_allclose(lengths(found["w"], kept), lengths(params["w"], kept), rtol=50 * EPS)
        # One factor a filter: what is inside is the noise as drawn.
        factor = np.asarray(found["w"], np.float64) / np.asarray(raw["w"], np.float64)
        summed = tuple(axis for axis in range(len(shape)) if axis not in kept)
        np.testing.assert_allclose(factor.max(summed), factor.min(summed), rtol=50 * EPS)
        assert not found["b"].any()


def test_filters_of_attention_in_flax_and_equinox(key):
    nn, eqx = pytest.importorskip("flax.linen"), pytest.importorskip("equinox")
    x, module = jnp.ones((2, 5, 8)), nn.MultiHeadDotProductAttention(2)
    params = module.init(key, x)
    found = landscape.direction(key, params, apply=module.apply, x=x)
    for name, kept in (("query", (1, 2)), ("key", (1, 2)), ("value", (1, 2)), ("out", (2,))):
        new, old = (lengths(tree["params"][name]["kernel"], kept) for tree in (found, params))
        np.testing.assert_allclose(new, old, rtol=1e-5)
    arrays, rest = eqx.partition(eqx.nn.MultiheadAttention(2, 8, key=key), eqx.is_array)

    def apply(arrays, x):
        attention = eqx.combine(arrays, rest)
        return jax.vmap(lambda each: attention(each, each, each))(x)

    found = landscape.direction(key, arrays, apply=apply, x=x)
    for name in ("query_proj", "key_proj", "value_proj", "output_proj"):
        new, old = (lengths(getattr(tree, name).weight, (0,)) for tree in (found, arrays))
        np.testing.assert_allclose(new, old, rtol=1e-5)


def test_leaves_that_are_not_contracted_are_vectors():
    params = {"table": jnp.ones((7, 4)), "positions": jnp.ones((5, 4)), "w": jnp.ones((4, 3)), "g": jnp.ones((1, 1, 3))}

    def apply(p, tokens):
        return ((p["table"][tokens] + p["positions"][None]) @ p["w"]) * p["g"]

    found = landscape.direction(jax.random.key(0), params, apply=apply, x=jnp.zeros((2, 5), int))
    assert found["w"].all()
    assert not any(found[name].any() for name in ("table", "positions", "g"))
    apart = landscape.direction(jax.random.key(0), params, outputs={"table": None, "positions": None})
    assert apart["w"].all() and not apart["table"].any()


ROW = {"w": np.ones((3, 4), np.float32), "b": np.ones(4, np.float32)}
KEY = jax.random.key(0)
DIRECTIONS = [
    bad(lambda: landscape.direction(np.zeros(2, np.uint32), ROW), "key"),
    bad(lambda: landscape.direction(0, ROW), "key", shown="0"),
    bad(lambda: landscape.direction(KEY, ROW, normalize="unit"), "normalize", shown="unit"),
    bad(lambda: landscape.direction(KEY, ROW, apply=jnp.dot), "apply and x"),
    bad(lambda: landscape.direction(KEY, ROW, x=np.ones(3)), "apply and x"),
    bad(lambda: landscape.direction(KEY, ROW, apply=3, x=np.ones(3)), "apply", shown="3"),
    bad(lambda: landscape.direction(KEY, ROW, outputs={"v": 0}), "outputs", shown="v"),
    bad(lambda: landscape.direction(KEY, ROW, outputs={"w": 2}), "outputs", shown="2"),
    bad(lambda: landscape.direction(KEY, ROW, outputs={"w": (0, 0)}), "outputs", shown="(0, 0)"),
    bad(lambda: landscape.direction(KEY, ROW, outputs={"w": ()}), "outputs"),
    bad(lambda: landscape.direction(KEY, ROW, outputs={"w": 1.5}), "outputs", shown="1.5"),
    bad(lambda: landscape.direction(KEY, ROW, outputs="last"), "outputs", shown="last"),
    bad(lambda: landscape.direction(KEY, ROW, stacked="hidden"), "stacked", shown="hidden"),
    bad(lambda: landscape.direction(KEY, ROW, stacked=3), "stacked", shown="3"),
    bad(lambda: landscape.direction(KEY, ROW, stacked=(3,)), "stacked", shown="3"),
    bad(lambda: landscape.direction(KEY, ROW, stacked="w", outputs={"w": 0}), "outputs"),
    bad(lambda: landscape.direction(KEY, ROW, stacked="w", apply=lambda p, x: x, x=np.ones(3)), "stacked"),
]


@pytest.mark.parametrize("row", DIRECTIONS, ids=str)
def test_bad_directions_are_refused(row):
    refused(row)


@pytest.mark.float32
def test_the_plane_of_a_trajectory_is_that_of_its_svd():
    rng = np.random.default_rng(3)
    points = np.cumsum(rng.normal(size=(8, 6)), axis=0)
    trajectory = {"a": jnp.asarray(points[:, :2], WIDEST), "b": jnp.asarray(points[:, 2:].reshape(8, 2, 2), WIDEST)}
    found = landscape.plane_of_trajectory(trajectory)
    aside = points - points[-1:]
    _, values, rows = np.linalg.svd(aside - aside.mean(axis=0))
    mine = np.stack([np.concatenate([np.ravel(d["a"]), np.ravel(d["b"])]) for d in found.directions])
    tolerance = 2000 * EPS
    np.testing.assert_allclose(np.abs(np.sum(mine * rows[:2], axis=1)), 1, atol=tolerance)
    np.testing.assert_allclose(mine @ mine.T, np.eye(2), atol=tolerance)
    np.testing.assert_allclose(found.explained, (values**2 / np.sum(values**2))[:2], atol=tolerance)
    np.testing.assert_allclose(found.coordinates, aside @ mine.T, atol=30 * tolerance)
    np.testing.assert_array_equal(found.origin["a"], trajectory["a"][-1])
    with pytest.raises(ValueError, match="trajectory must have at least 3 points along axis 0; got "):
        landscape.plane_of_trajectory({"a": jnp.ones((2, 3))})


def well(params, batch):
    """A valley on the unit circle; batch is its stiffness."""
    return batch * (jnp.sum(params**2) - 1) ** 2


def test_barriers_and_monotone_paths():
    left, right, out = jnp.asarray([-1.0, 0.0]), jnp.asarray([1.0, 0.0]), jnp.asarray([3.0, 0.0])
    found = landscape.interpolation(well, left, right, 2.0, points=101)
    np.testing.assert_allclose([found.barrier, found.rise], [2, 2], rtol=1e-12)
    assert not found.monotone and found.positions[0] == 0 and found.positions[-1] == 1
    down = landscape.interpolation(well, out, right, 2.0, points=21)
    assert down.monotone and down.barrier == 0 and down.values[0] == 128
    up = landscape.interpolation(well, right, out, 2.0, points=21)
    assert not up.monotone and up.rise == 128


def test_a_curve_around_the_barrier():
    left, right = jnp.asarray([-1.0, 0.1]), jnp.asarray([1.0, 0.1])
    found = landscape.connect(jax.random.key(0), well, left, right, 1.0, steps=300, learning_rate=0.05)
    assert found.straight.barrier > 0.9 and found.curve.barrier < 0.12
    t = np.asarray(found.curve.positions)[:, None]
    curve = (1 - t) ** 2 * np.asarray(left) + 2 * t * (1 - t) * np.asarray(found.middle) + t**2 * np.asarray(right)
    np.testing.assert_allclose(found.curve.values, [well(p, 1.0) for p in curve], rtol=1e-9)
    assert found.losses.shape == (300,)


def test_saddles_of_a_known_function():
    """x^2 - y^2 + y^4 / 2 + z^3 / 3 - z: saddles, minima and flat directions at known points."""

    def loss(p, batch):
        x, y, z, flat = p
        return x**2 - y**2 + y**4 / 2 + z**3 / 3 - z + 0.0 * flat

    for start, where, index in (
        ((0.3, 0.1, 1.2), (0, 0, 1), 1),
        ((0.3, 0.9, 1.2), (0, 1, 1), 0),
        ((0.1, 0.1, -0.8), (0, 0, -1), 2),
    ):
        found = landscape.critical_point(loss, jnp.asarray([*start, 0.7]), None)
        assert found.converged and found.gradient_norm <= 1e-6
        np.testing.assert_allclose(found.params, [*where, 0.7], atol=1e-6)
        assert found.index == index and found.flat == 1
        curvature = sorted([2.0, -2.0 if where[1] == 0 else 4.0, 2.0 * where[2], 0.0])
        np.testing.assert_allclose(found.eigenvalues, curvature, atol=1e-4)
    # x^3 / 3 + x has no critical point; |g| has a minimum of 1 at 0
    none = landscape.critical_point(lambda p, batch: jnp.sum(p**3 / 3 + p), jnp.asarray([0.5]), None)
    assert not none.converged and none.gradient_norm >= 1


def test_units_are_sorted_back(key):
    network = dense.network(
        widths=(4, 6, 6, 6, 5, 2), activation=activations.tanh, weight_variance=1.0, bias_variance=0.1
    )
    x = jax.random.normal(key, (5, 4), WIDEST)
    reference = network.init(key, x)
    kernels = [np.array(k) for stretch in reference["hidden"] for k in stretch["kernel"]]
    biases = [np.array(b) for stretch in reference["hidden"] for b in stretch["bias"]]
    rng = np.random.default_rng(0)
    orders = [rng.permutation(len(b)) for b in biases]
    last = np.array(reference["readout"]["kernel"])
    for i, order in enumerate(orders):
        kernels[i], biases[i] = kernels[i][:, order], biases[i][order]
        target = kernels[i + 1] if i + 1 < len(kernels) else last
        target[:] = target[order]
    shapes = [len(stretch["kernel"]) for stretch in reference["hidden"]]
    ends = list(itertools.accumulate([0, *shapes]))
    hidden = tuple(
        {"kernel": jnp.asarray(np.stack(kernels[a:b])), "bias": jnp.asarray(np.stack(biases[a:b]))}
        for a, b in itertools.pairwise(ends)
    )
    shuffled = {"hidden": hidden, "readout": {"kernel": jnp.asarray(last), "bias": reference["readout"]["bias"]}}
    np.testing.assert_allclose(network.apply(shuffled, x), network.apply(reference, x), rtol=1e-9)
    found = landscape.align(shuffled, reference)
    assert found.distance < 1e-12 < 1 < found.distance_before
    for order, mine in zip(found.orders, orders, strict=True):
        np.testing.assert_array_equal(mine[order], np.arange(len(mine)))
    jax.tree.map(np.testing.assert_array_equal, found.params, reference)


def test_alignment_keeps_the_function_and_finds_the_best_order_of_one_layer():
    rng = np.random.default_rng(4)
    params, reference = (
        [tuple(jnp.asarray(rng.normal(size=s)) for s in shapes) for shapes in (((3, 4), (4,)), ((4, 2), (2,)))]
        for _ in range(2)
    )
    found = landscape.align(params, reference, key=jax.random.key(0))

    def apply(p, x):
        return jnp.tanh(x @ p[0][0] + p[0][1][None]) @ p[1][0] + p[1][1][None]

    x = jnp.asarray(rng.normal(size=(5, 3)))
    np.testing.assert_allclose(apply(found.params, x), apply(params, x), rtol=1e-12)
    best = min(
        sum(
            np.sum((np.asarray(a) - np.asarray(b)) ** 2)
            for a, b in (
                (params[0][0][:, order], reference[0][0]),
                (params[0][1][order], reference[0][1]),
                (params[1][0][order], reference[1][0]),
                (params[1][1], reference[1][1]),
            )
        )
        for order in map(np.array, itertools.permutations(range(4)))
    )
    np.testing.assert_allclose(found.distance**2, best, rtol=1e-12)
    with pytest.raises(ValueError, match="each with the units of the one before"):
        landscape.align(params, reference, layers=(("1/0", "1/1"), ("0/0", "0/1")))
    with pytest.raises(ValueError, match="every leaf of params.*1/1 is in none"):
        landscape.align(params, reference, layers=(("0/0", "0/1"), ("1/0", None)))


def test_bad_arguments_are_named():
    for error, text, call in (
        (TypeError, "loss must be a function", lambda: landscape.interpolation(1, POINT, POINT, None)),
        (
            ValueError,
            "points must be an integer >= 3; got 2",
            lambda: landscape.interpolation(quadratic, POINT, POINT, None, points=2),
        ),
        (
            ValueError,
            "positions must be finite",
            lambda: landscape.line(quadratic, POINT, MATRIX, POINT, positions=[0.0, np.inf]),
        ),
        (
            ValueError,
            "tolerance must be .* >= 0; got -1",
            lambda: landscape.critical_point(quadratic, POINT, MATRIX, tolerance=-1.0),
        ),
        (
            ValueError,
            "reference must have the structure and shapes of params",
            lambda: landscape.align([jnp.ones(2)], [jnp.ones(3)]),
        ),
    ):
        with pytest.raises(error, match=text):
            call()


def test_a_scale_of_outputs_in_a_weight_has_no_filters():
    params = {"v": jnp.ones((4, 3)), "g": jnp.array([1.0, 2.0, 3.0]), "step": jnp.ones(4)}

    def apply(p, x):
        return x @ (jnp.exp(p["step"])[:, None] * p["v"] * p["g"][None] / 7)

    x = jnp.ones((5, 4))
    d = landscape.direction(jax.random.key(0), params, apply=apply, x=x)
    np.testing.assert_allclose(jnp.linalg.norm(d["v"], axis=0), jnp.linalg.norm(params["v"], axis=0), rtol=1e-6)
    assert not d["g"].any()


def test_alignment_takes_layer_10_after_layer_9():
    """Leaves of a dictionary come in the order of their names as texts, where 10 is before 2."""
    keys = jax.random.split(jax.random.key(0), 24)
    params, reference = (
        {f"layer_{i}": {"kernel": jax.random.normal(key, (4, 4))} for i, key in enumerate(some)}
        for some in (keys[:12], keys[12:])
    )

    def apply(p, x):
        for i in range(12):
            x = jnp.tanh(x @ p[f"layer_{i}"]["kernel"])
        return x

    x = jax.random.normal(jax.random.key(1), (3, 4))
    np.testing.assert_allclose(
        apply(landscape.align(params, reference).params, x), apply(params, x), rtol=1e-4, atol=1e-5
    )
