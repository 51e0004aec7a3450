"""Kronecker factors against dense Gauss-Newton matrices from explicit Jacobians, and against factors made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from numdl.analysis import curvature, laplace

RNG = np.random.default_rng(0)


def numbers(*shape):
    return jnp.asarray(RNG.standard_normal(shape) / np.sqrt(shape[0]))


def half_square(z, batch):
    """A sum over outputs, a mean over examples."""
    return jnp.sum((z - batch[1]) ** 2) / (2 * z.shape[0])


def dense(outputs, params, batch, loss=half_square):
    """The Gauss-Newton matrix over all leaves, flat in their order: explicit Jacobians, one example at a time."""

    @jax.jit
    def one(params, example):
        example = jax.tree.map(lambda leaf: leaf[None], example)
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        rows = jax.jacrev(lambda flat: outputs(unravel(flat), example).ravel())(flat)
        z = outputs(params, example)
        hessian = jax.hessian(lambda flat: loss(flat.reshape(z.shape), example))(z.ravel())
        return rows.T @ hessian @ rows

    examples = [jax.tree.map(lambda leaf, n=n: leaf[n], batch) for n in range(len(batch[0]))]
    return np.mean([one(params, example) for example in examples], 0)


def columns(function, params):
    """The matrix of a linear function of trees like params."""
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    product = jax.jit(jax.vmap(lambda e: jax.flatten_util.ravel_pytree(function(unravel(e)))[0]))
    return np.asarray(product(jnp.eye(flat.size)))


def within_blocks(matrix, params, groups):
    """The matrix with 0 between leaves of different groups."""
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    owner = np.repeat(groups, sizes)
    return np.where(owner[:, None] == owner[None], matrix, 0)


# ---- one linear layer: exact whatever its geometry ------------------------------------------------------------------


def conv(shape=(3, 3, 2, 4), channels=2, **settings):
    given = {"window_strides": (1, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")} | settings

    def outputs(params, batch):
        return lax.conv_general_dilated(batch[0], params["w"], **given) + params["b"][None, None, None]

    return outputs, {"w": numbers(*shape), "b": numbers(shape[-1])}, (4, 4, channels)


def tokens(outputs, **shapes):
    return outputs, {name: numbers(*shape) for name, shape in shapes.items()}, (3, 4)


def over_tokens(params, batch):
    """As Equinox does it: a matrix times a vector, under two vmaps."""
    return jax.vmap(jax.vmap(lambda x: params["w"] @ x + params["b"]))(batch[0])


def side_by_side(params, batch):
    w = jnp.concatenate([params["q"], params["k"]], 1)
    return batch[0] @ w + jnp.concatenate([params["bq"], params["bk"]])[None, None]


def in_parts(params, batch):
    first, second = jnp.split(params["w"], 2, axis=1)
    return jnp.concatenate([batch[0] @ first, 2 * (batch[0] @ second) + params["b"][None, None]], -1)


def scaled(params, batch):
    return batch[0] @ (params["w"] / jnp.sqrt(3.0)) * 2 + 0.3 * params["b"][None, None]


def one_entry(params, batch):
    return batch[0] @ params["w"][1]


def rematerialized(params, batch):
    return jax.checkpoint(lambda p, x: x @ p["w"].T + p["b"][None, None])(params, batch[0])


LAYERS = {
    "dense": tokens(lambda p, b: b[0] @ p["w"] + p["b"][None, None], w=(4, 3), b=(3,)),
    "vector": (lambda p, b: b[0] @ p["w"] + p["b"][None], {"w": numbers(4, 2), "b": numbers(2)}, (4,)),
    "vmapped": tokens(over_tokens, w=(3, 4), b=(3,)),
    "heads": tokens(
        lambda p, b: jnp.einsum("ntf,fho->nhto", b[0], p["w"]) + p["b"][None, :, None], w=(4, 2, 3), b=(2, 3)
    ),
    "experts": tokens(lambda p, b: jnp.einsum("netf,efo->neto", jnp.stack([b[0], b[0] ** 2], 1), p["w"]), w=(2, 4, 3)),
    "concatenated": tokens(side_by_side, q=(4, 2), k=(4, 3), bq=(2,), bk=(3,)),
    "split": tokens(in_parts, w=(4, 4), b=(2,)),
    "scaled": tokens(scaled, w=(4, 2), b=(2,)),
    "entry": tokens(one_entry, w=(2, 4, 3)),
    "remat": tokens(rematerialized, w=(3, 4), b=(3,)),
    "conv": conv(),
    "strided": conv(window_strides=(2, 1), padding="VALID"),
    "dilated": conv(rhs_dilation=(2, 1)),
    "transposed": conv(lhs_dilation=(2, 2), padding=((1, 2), (1, 1))),
    "grouped": conv((2, 3, 1, 4), feature_group_count=2),
    "depthwise": conv((3, 3, 1, 6), channels=3, feature_group_count=3),
}


QUICK = ("heads", "concatenated", "grouped", "vmapped")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in LAYERS])
def test_one_linear_layer_is_exact(name):
    outputs, params, shape = LAYERS[name]
    x = jnp.asarray(RNG.standard_normal((3, *shape)))
    batch = x, outputs(params, (x,)) + 1
    found = curvature.kronecker(outputs, half_square, params, batch, chunk=2)
    np.testing.assert_allclose(columns(found, params), dense(outputs, params, batch), atol=1e-12)
    assert not found.alone and found.convex


# ---- deep linear networks -------------------------------------------------------------------------------------------


def deep(params, batch):
    x = batch[0]
    for name in ("first", "second", "third"):
        x = x @ params[name]["w"] + params[name]["b"].reshape((1,) * (x.ndim - 1) + (-1,))
    return x


def pooled(params, batch):
    return jnp.mean(deep(params, batch), 1)


SHAPES = {"first": (4, 3), "second": (3, 5), "third": (5, 2)}
DEEP = {name: {"w": numbers(*shape), "b": numbers(shape[1])} for name, shape in SHAPES.items()}


@pytest.mark.parametrize(("outputs", "sharing", "exact"), [
    (deep, "expand", True), pytest.param(pooled, "reduce", True, marks=pytest.mark.slow),
    pytest.param(deep, "reduce", False, marks=pytest.mark.slow),
    pytest.param(pooled, "expand", False, marks=pytest.mark.slow)])  # fmt: skip
def test_deep_linear_networks_are_exact_in_their_setting(outputs, sharing, exact):
    """Eschenhagen et al. 2023: expand where every position has its own loss, reduce behind a mean over positions."""
    x = jnp.asarray(RNG.standard_normal((3, 4, 4)))
    batch = x, outputs(DEEP, (x,)) + 1
    found = columns(curvature.kronecker(outputs, half_square, DEEP, batch, sharing=sharing), DEEP)
    want = within_blocks(dense(outputs, DEEP, batch), DEEP, [0, 0, 1, 1, 2, 2])
    assert np.allclose(found, want, atol=1e-12) is exact


def mlp(params, batch):
    hidden = jnp.tanh(batch[0] @ params["first"]["w"] + params["first"]["b"][None])
    return hidden @ params["third"]["w"] + params["third"]["b"][None]


def cross_entropy(z, batch):
    return -jnp.mean(jnp.sum(batch[1] * jax.nn.log_softmax(z), -1))


MLP = {"first": {"w": numbers(4, 3), "b": numbers(3)}, "third": {"w": numbers(3, 2), "b": numbers(2)}}


def labelled(count):
    return jnp.asarray(RNG.standard_normal((count, 4))), jnp.eye(2)[RNG.integers(0, 2, count)]


def test_a_single_example_is_exact():
    batch = labelled(1)
    found = columns(curvature.kronecker(mlp, cross_entropy, MLP, batch), MLP)
    want = within_blocks(dense(mlp, MLP, batch, cross_entropy), MLP, [0, 0, 1, 1])
    np.testing.assert_allclose(found, want, atol=1e-12)


@pytest.mark.parametrize("sharing", ["expand", pytest.param("reduce", marks=pytest.mark.slow)])
def test_corrected_eigenvalues_are_never_worse(sharing):
    def outputs(params, batch):
        return jnp.tanh(deep(params, batch))[:, :3].sum(1)

    x = jnp.asarray(RNG.standard_normal((5, 4, 4)))
    batch = x, jnp.eye(2)[RNG.integers(0, 2, 5)]
    want = within_blocks(dense(outputs, DEEP, batch, cross_entropy), DEEP, [0, 0, 1, 1, 2, 2])
    settings = {"sharing": sharing}
    plain = curvature.kronecker(outputs, cross_entropy, DEEP, batch, **settings)
    better = curvature.kronecker(outputs, cross_entropy, DEEP, batch, corrected=True, chunk=2, **settings)
    error, least = (np.linalg.norm(columns(found, DEEP) - want) for found in (plain, better))
    assert least < 0.999 * error
    np.testing.assert_allclose(better.trace, np.trace(want))
    # the best diagonal in these eigenvectors: every change of it is worse
    block = better.blocks["second/w"]
    u = np.kron(block.input_basis[0], block.output_basis[0])
    own = np.concatenate([_places(DEEP, "second/w"), _places(DEEP, "second/b")])
    np.testing.assert_allclose(
        block.eigenvalues.ravel(), np.diag(u.T @ want[np.ix_(own, own)] @ u), atol=1e-12
    )  # fmt: skip


def _places(params, name):
    flags = jax.tree_util.tree_map_with_path(
        lambda path, leaf: jnp.full(leaf.shape, float("/".join(k.key for k in path) == name)), params
    )
    return np.flatnonzero(jax.flatten_util.ravel_pytree(flags)[0])


# ---- kinds of Fisher matrices ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_empirical_and_sampled(key):
    batch = labelled(6)
    empirical = curvature.kronecker(mlp, cross_entropy, MLP, batch, fisher="empirical").blocks["third/w"]
    slopes = jax.nn.softmax(mlp(MLP, batch)) - batch[1]
    np.testing.assert_allclose(empirical.outputs[0], slopes.T @ slopes / 6, atol=1e-12)
    exact = curvature.kronecker(mlp, cross_entropy, MLP, batch).blocks["first/w"]
    keys = jax.random.split(key, 60)

    def sampled(key):
        found = curvature.kronecker(mlp, cross_entropy, MLP, batch, fisher="sampled", key=key, samples=2)
        return found.blocks["first/w"].outputs

    draws = jnp.stack([sampled(key) for key in keys])
    z = (jnp.mean(draws, 0) - exact.outputs) / (jnp.std(draws, 0) / np.sqrt(60) + 1e-12)
    assert jnp.max(jnp.abs(z)) < 4.5 and jnp.std(draws) > 0


@pytest.mark.slow
def test_masked_examples_do_not_count():
    batch, mask = labelled(6), jnp.array([1.0, 1.0, 0.0, 1.0, 0.0, 0.0])

    def masked(z, batch):
        return -jnp.sum(batch[2] * jnp.sum(batch[1] * jax.nn.log_softmax(z), -1)), jnp.sum(batch[2])

    kept = jax.tree.map(lambda leaf: leaf[np.flatnonzero(mask)], batch)
    for fisher in ("exact", "empirical"):
        found = curvature.kronecker(mlp, masked, MLP, (*batch, mask), fisher=fisher)
        want = curvature.kronecker(mlp, cross_entropy, MLP, kept, fisher=fisher)
        np.testing.assert_allclose(columns(found, MLP), columns(want, MLP), atol=1e-12)


@pytest.mark.slow
def test_a_sum_is_a_sum():
    batch = labelled(3)
    total = curvature.kronecker(mlp, lambda z, b: 3 * cross_entropy(z, b), MLP, batch)
    found = curvature.kronecker(
        mlp, lambda z, b: -jnp.sum(b[1] * jax.nn.log_softmax(z)), MLP, batch, reduction="sum", chunk=2
    )
    np.testing.assert_allclose(columns(found, MLP), columns(total, MLP), atol=1e-12)


def test_a_loss_that_is_not_convex_is_told():
    batch = labelled(3)
    found = curvature.kronecker(mlp, lambda z, b: jnp.mean(jnp.sin(z).sum(-1)), MLP, batch)
    assert not found.convex


# ---- algebra --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("corrected", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_algebra_of_the_whole(corrected):
    params = {**MLP, "embedding": numbers(3, 4), "scale": jnp.ones(4), "spare": numbers(2), "count": jnp.arange(2)}

    def outputs(params, batch):
        x = batch[0] * params["scale"][None] + params["embedding"][batch[2]]
        return mlp(params, (x,))

    batch = (*labelled(5), jnp.array([0, 1, 1, 0, 1]))
    found = curvature.kronecker(outputs, cross_entropy, params, batch, corrected=corrected, frozen="spare")
    assert set(found.alone) == {"embedding", "scale"} and dict(found.reasons)["embedding"] == "gather"
    moving = {name: params[name] for name in ("embedding", "first", "scale", "third")}

    def within(function):
        return columns(lambda v: {n: function({**params, **v})[n] for n in moving}, moving)

    matrix = within(found)
    exact = dense(lambda p, b: outputs({**params, **p}, b), moving, batch, cross_entropy)
    own = np.concatenate([_places(moving, "embedding"), _places(moving, "scale")])
    np.testing.assert_allclose(np.diag(matrix)[own], np.diag(exact)[own], atol=1e-12)
    damped = matrix + 0.1 * np.eye(len(matrix))
    np.testing.assert_allclose(within(lambda v: found.inverse(v, damping=0.1)), np.linalg.inv(damped), atol=1e-10)
    np.testing.assert_allclose(found.log_determinant(damping=0.1), np.linalg.slogdet(damped)[1])
    np.testing.assert_allclose(found.trace, np.trace(matrix))
    np.testing.assert_allclose(sum(found.traces.values()), np.trace(matrix))
    diagonal = {name: found.diagonal[name] for name in moving}
    np.testing.assert_allclose(jax.flatten_util.ravel_pytree(diagonal)[0], np.diag(matrix), atol=1e-12)
    assert found(params)["count"].tolist() == [0, 0] and found(params)["spare"].tolist() == [0, 0]
    assert "embedding: diagonal (gather)" in repr(found)


def test_blocks_are_their_factors():
    batch = labelled(4)
    block = curvature.kronecker(mlp, cross_entropy, MLP, batch).blocks["first/w"]
    np.testing.assert_allclose(block.matrix[0], np.kron(block.inputs[0], block.outputs[0]), atol=1e-12)
    a = np.concatenate([batch[0], np.ones((4, 1))], 1)
    np.testing.assert_allclose(block.inputs[0], a.T @ a / 4, atol=1e-12)


@pytest.mark.slow
def test_tied_weights_are_positions_and_transposed_ones_are_alone():
    w = {"w": numbers(3, 3)}

    def twice(params, batch):
        return jnp.tanh(batch[0] @ params["w"]) @ params["w"]

    def scanned(params, batch):
        return lax.scan(lambda x, _: (jnp.tanh(x @ params["w"]), None), batch[0], None, length=2)[0]

    def unrolled(params, batch):
        return jnp.tanh(twice(params, batch))

    def there_and_back(params, batch):
        return jnp.tanh(batch[0] @ params["w"]) @ params["w"].T

    batch = jnp.asarray(RNG.standard_normal((4, 3))), jnp.zeros((4, 3))
    kinds = [curvature.kronecker(f, half_square, w, batch) for f in (scanned, unrolled)]
    np.testing.assert_allclose(*(columns(found, w) for found in kinds), atol=1e-12)
    assert kinds[0].blocks["w"].positions == 2
    alone = curvature.kronecker(there_and_back, half_square, w, batch)
    np.testing.assert_allclose(
        alone.alone["w"].ravel(), np.diag(dense(there_and_back, w, batch)), atol=1e-12
    )  # fmt: skip
    assert "overlap" in dict(alone.reasons)["w"]


@pytest.mark.slow
def test_layers_of_a_scan_are_parts():
    stack = {"w": numbers(3, 2, 2), "b": numbers(3, 2)}

    def scanned(params, batch):
        return lax.scan(lambda x, p: (jnp.tanh(x @ p["w"] + p["b"][None]), None), batch[0], params)[0]

    def listed(params, batch):
        return scanned(jax.tree.map(lambda *leaves: jnp.stack(leaves), *params), batch)

    def loop(params, batch):
        x = batch[0]
        for layer in params:
            x = jnp.tanh(x @ layer["w"] + layer["b"][None])
        return x

    layers = [jax.tree.map(lambda leaf, i=i: leaf[i], stack) for i in range(3)]
    batch = jnp.asarray(RNG.standard_normal((4, 2))), jnp.zeros((4, 2))
    found = curvature.kronecker(scanned, half_square, stack, batch, corrected=True)
    want = curvature.kronecker(loop, half_square, layers, batch, corrected=True)
    assert found.blocks["w"].inputs.shape == (3, 3, 3) and found.blocks["w"].bias == "b"
    for i in range(3):
        np.testing.assert_allclose(found.blocks["w"].matrix[i], want.blocks[f"{i}/w"].matrix[0], atol=1e-12)
    stacked = curvature.kronecker(listed, half_square, layers, batch)
    assert stacked.blocks.keys() == want.blocks.keys()


# ---- frameworks -----------------------------------------------------------------------------------------------------

WIDTH, HEADS, LENGTH = 4, 2, 3


def attend(qkv):
    """[N, T, 3 D] -> [N, T, D]."""
    q, k, v = (part.reshape(*part.shape[:2], HEADS, -1) for part in jnp.split(qkv, 3, -1))
    weights = jax.nn.softmax(jnp.einsum("nthd,nshd->nhts", q, k) / np.sqrt(WIDTH // HEADS))
    return jnp.einsum("nhts,nshd->nthd", weights, v).reshape(*qkv.shape[:2], -1)


def by_hand(w, x, targets):
    """{layer: (A, G)} of convolution, fused qkv and projection; weights as `w`, probes at each layer's output."""

    def forward(probes, x):
        padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))
        patches = jnp.concatenate([padded[:, i : i + LENGTH] for i in range(3)], -1)
        y = jnp.tanh(patches @ w["conv"] + w["conv_b"][None, None] + probes[0])
        qkv = y @ w["qkv"] + w["qkv_b"][None, None] + probes[1]
        mixed = attend(qkv)
        return mixed @ w["out"] + w["out_b"][None, None] + probes[2], (patches, y, mixed)

    zeros = tuple(jnp.zeros((1, LENGTH, d)) for d in (WIDTH, 3 * WIDTH, WIDTH))
    factors, derivative = [], jax.jit(jax.jacrev(forward, has_aux=True))
    for n in range(len(x)):
        slopes, inputs = derivative(zeros, x[n : n + 1])
        each = []
        for slope, a in zip(slopes, inputs):
            g = np.asarray(slope).reshape(-1, slope.shape[-1])  # the Hessian of the loss is the identity
            a = np.concatenate([a[0], np.ones((LENGTH, 1))], 1)
            each.append((a.T @ a / LENGTH, g.T @ g))
        factors.append(each)
    return [[np.mean([f[i][j] for f in factors], 0) for j in (0, 1)] for i in range(3)]


def plain_model():
    shapes = {"conv": (3, WIDTH, WIDTH), "qkv": (WIDTH, 3 * WIDTH), "out": (WIDTH, WIDTH)}
    params = {n: {"kernel": numbers(*s), "bias": numbers(s[-1])} for n, s in shapes.items()}

    def apply(params, x):
        dims = ("NWC", "WIO", "NWC")
        y = lax.conv_general_dilated(x, params["conv"]["kernel"], (1,), "SAME", dimension_numbers=dims)
        y = jnp.tanh(y + params["conv"]["bias"][None, None])
        mixed = attend(y @ params["qkv"]["kernel"] + params["qkv"]["bias"][None, None])
        return mixed @ params["out"]["kernel"] + params["out"]["bias"][None, None]

    return apply, params, "{}/kernel", lambda params, name: params[name]


def linen_model():
    nn = pytest.importorskip("flax.linen")

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            y = jnp.tanh(nn.Conv(WIDTH, (3,), name="conv")(x))
            mixed = attend(nn.Dense(3 * WIDTH, name="qkv")(y))
            return nn.Dense(WIDTH, name="out")(mixed)

    net = Net()
    params = net.init(jax.random.key(1), jnp.ones((1, LENGTH, WIDTH)))
    return net.apply, params, "params/{}/kernel", lambda params, name: params["params"][name]


def nnx_model():
    nnx = pytest.importorskip("flax.nnx")

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.conv = nnx.Conv(WIDTH, WIDTH, (3,), rngs=rngs)
            self.qkv, self.out = nnx.Linear(WIDTH, 3 * WIDTH, rngs=rngs), nnx.Linear(WIDTH, WIDTH, rngs=rngs)

        def __call__(self, x):
            return self.out(attend(self.qkv(jnp.tanh(self.conv(x)))))

    graph, params = nnx.split(Net(nnx.Rngs(1)))
    taken = lambda params, name: {k: v[...] for k, v in params[name].items()}  # noqa: E731
    return (lambda params, x: nnx.merge(graph, params)(x)), params, "{}/kernel", taken


def equinox_model():
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(1), 3)

    class Net(eqx.Module):
        conv: eqx.nn.Conv1d
        qkv: eqx.nn.Linear
        out: eqx.nn.Linear

        def __call__(self, x):
            y = jnp.tanh(self.conv(x.T).T)
            return jax.vmap(self.out)(attend(jax.vmap(self.qkv)(y)[None])[0])

    net = Net(
        eqx.nn.Conv1d(WIDTH, WIDTH, 3, padding=1, key=keys[0]),
        eqx.nn.Linear(WIDTH, 3 * WIDTH, key=keys[1]),
        eqx.nn.Linear(WIDTH, WIDTH, key=keys[2]),
    )
    params, still = eqx.partition(net, eqx.is_array)

    def taken(params, name):
        layer = getattr(params, name)
        kernel = layer.weight.T if layer.weight.ndim == 2 else layer.weight.transpose(2, 1, 0)
        return {"kernel": kernel, "bias": layer.bias.ravel()}

    return (lambda params, x: jax.vmap(eqx.combine(params, still))(x)), params, "{}/weight", taken


MODELS = {"plain": plain_model, "linen": linen_model, "nnx": nnx_model, "equinox": equinox_model}


@pytest.mark.parametrize("name", [
    pytest.param(n, marks=[pytest.mark.slow] * (n != "plain")) for n in MODELS])  # fmt: skip
def test_frameworks(name):
    apply, params, path, taken = MODELS[name]()
    x = jnp.asarray(RNG.standard_normal((2, LENGTH, WIDTH)))
    params = jax.tree.map(lambda leaf: leaf.astype(x.dtype) + 0.1, params)
    batch = x, apply(params, x)
    found = curvature.kronecker(lambda p, b: apply(p, b[0]), half_square, params, batch)
    w = {}
    for layer in ("conv", "qkv", "out"):
        leaves = taken(params, layer)
        w |= {layer: leaves["kernel"].reshape(-1, leaves["kernel"].shape[-1]), layer + "_b": leaves["bias"]}
    assert not found.alone, found
    for layer, (inputs, outputs) in zip(("conv", "qkv", "out"), by_hand(w, *batch)):
        block = found.blocks[path.format(layer)]
        assert block.bias and block.positions == LENGTH
        np.testing.assert_allclose(block.inputs[0], inputs, atol=1e-12)
        np.testing.assert_allclose(block.outputs[0], outputs, atol=1e-12)


def test_laplace_has_the_evidence_and_the_posterior_of_a_linear_model(key):
    x, noise, prior = np.asarray(numbers(6, 3)), 0.3, 2.0
    y = RNG.standard_normal((6, 2))
    mean = np.linalg.solve(x.T @ x / noise + prior * np.eye(3), x.T @ y / noise)
    params = {"w": jnp.asarray(mean)}
    found = curvature.kronecker(lambda p, b: b[0] @ p["w"], half_square, params, (x, y))
    posterior = laplace.posterior(found, scale=6 / noise, prior_precision=prior)
    covariance = noise * np.eye(6) + x @ x.T / prior
    want = -0.5 * (np.sum(y * np.linalg.solve(covariance, y)) + 2 * np.linalg.slogdet(2 * np.pi * covariance)[1])
    misfit = np.sum((y - x @ mean) ** 2) / (2 * noise) + 6 * np.log(2 * np.pi * noise)
    evidence = laplace.evidence(posterior, misfit)
    np.testing.assert_allclose([evidence.least, evidence.most], want)
    of_w = np.linalg.inv(x.T @ x / noise + prior * np.eye(3))
    predicted = laplace.predict(posterior, lambda p, x: x @ p["w"], x[:2])
    want = np.einsum("ni,ij,nj->n", x[:2], of_w, x[:2])[:, None, None] * np.eye(2)
    np.testing.assert_allclose(predicted.covariance, want, atol=1e-12)
    draws = laplace.draw(key, posterior, draws=4000)["w"] - mean[None]
    np.testing.assert_allclose(jnp.einsum("nio,njo->ij", draws, draws) / 8000, of_w, atol=0.06 * of_w.max())
    with pytest.raises(ValueError, match="k must be None"):
        laplace.posterior(found, scale=1.0, prior_precision=1.0, k=1, key=key)


# ---- doors ----------------------------------------------------------------------------------------------------------


def test_bad_arguments_are_named(key):
    batch = labelled(3)

    def centred(params, batch):
        z = mlp(params, batch)
        return z - jnp.mean(z, 0, keepdims=True)

    def over_all(z, batch):
        return cross_entropy(z, batch) ** 2

    def call(outputs=mlp, loss=cross_entropy, **settings):
        curvature.kronecker(outputs, loss, MLP, batch, **settings)

    for settings, words in [
        ({"fisher": "tpyo"}, "fisher"),
        ({"sharing": "tpyo"}, "sharing"),
        ({"fisher": "sampled"}, "key"),
        ({"key": key}, "key must be None"),
        ({"chunk": 0}, "chunk"),
        ({"samples": 0.5}, "samples"),
        ({"outputs": centred}, "outputs must treat the examples one by one"),
        ({"loss": over_all}, "loss_of_outputs must be a mean"),
        ({"loss": lambda z, b: 3 * cross_entropy(z, b) * len(z) / 3}, 'reduction="sum"'),
    ]:
        with pytest.raises((ValueError, TypeError), match=words):
            call(**settings)
    with pytest.raises(ValueError, match="damping"):
        curvature.kronecker(mlp, cross_entropy, MLP, batch).inverse(MLP, damping=0.0)


@pytest.mark.float32
def test_single_precision():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), MLP)
    batch = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), labelled(1))
    found = columns(curvature.kronecker(mlp, cross_entropy, params, batch), params)
    want = within_blocks(dense(mlp, params, batch, cross_entropy), params, [0, 0, 1, 1])
    np.testing.assert_allclose(found, want, atol=1e-5)
