"""Hessian of an MLP and of LeNet-5 on 2048 images: products, the top 5 eigenvalues, the spectral density.

Every peer runs as its documentation says, float32. LeNet's convolutions are numdl's for all sides in jax: with XLA's
own a compiled loop takes ten times as long on a CPU. A product at new parameters computes everything anew, further ones
only what depends on the vector. The hand-written kernels: jvp of grad, then jax.linearize once, both in chunks where
something is convolved; plain Lanczos with its basis as rows of one matrix; for the eigenvalues with two
orthogonalizations in every step and as many steps as the residuals need.
"""

import functools

import numpy as np

from benchmarks.rows import Run, Side, Workload, flat

CLASSES, TOP, TOLERANCE = 10, 5, 1e-3
SHAPES = {
    "mlp": ((784, 200), (200, 200), (200, 10)),
    "lenet": ((5, 5, 1, 6), (5, 5, 6, 16), (256, 120), (120, 84), (84, 10)),
}
LIMIT_STEPS = {"mlp": 20, "lenet": 20}


def problem(model, examples, steps=0):
    """Ten smooth patterns with noise [N, 28, 28, 1], labels, kernels (inputs, outputs) or HWIO; biases are 0."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, examples)
    patterns = np.kron(rng.random((CLASSES, 7, 7)), np.ones((1, 4, 4)))
    pixels = 0.6 * patterns[labels] + 0.4 * rng.random((examples, 28, 28))
    rng = np.random.default_rng(1)
    kernels = [(rng.normal(size=s) * np.sqrt(2 / np.prod(s[:-1]))).astype(np.float32) for s in SHAPES[model]]
    return {"model": model, "batch": (pixels[..., None].astype(np.float32), labels), "kernels": kernels, "steps": steps}


# ---- jax -----------------------------------------------------------------------------------------------------------


def in_jax(p):
    """(loss, parameters, batch)"""
    import jax
    import jax.numpy as jnp

    from numdl.networks import convolutional

    def loss(params, batch):
        y, convolutions = batch[0], len(params) - 3
        for layer in params[:convolutions]:
            y = jax.nn.relu(convolutional.convolve(y, layer["kernel"]) + layer["bias"])
            n, height, width, channels = y.shape
            y = y.reshape(n, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
        y = y.reshape(len(y), -1)
        for layer in params[convolutions:-1]:
            y = jax.nn.relu(y @ layer["kernel"] + layer["bias"])
        z = jax.nn.log_softmax(y @ params[-1]["kernel"] + params[-1]["bias"])
        return -jnp.mean(jnp.take_along_axis(z, batch[1][:, None], axis=1))

    params = [{"kernel": jnp.asarray(k), "bias": jnp.zeros(k.shape[-1], jnp.float32)} for k in p["kernels"]]
    return loss, params, jax.tree.map(jnp.asarray, p["batch"])


def numdl_product(p, *, kept=False):
    """`curvature.hessian`, each product alone, or `prepared()` for many at the same parameters."""
    import jax

    from numdl.analysis import curvature

    loss, params, batch = in_jax(p)
    operator = curvature.hessian(loss, params, batch, reduction="mean")
    operator = operator.prepared() if kept else operator
    return Run(lambda: operator(params), lambda v: numbers_of(jax.tree.leaves(v)))


def numdl_in_chunks(p):
    """`curvature.hessian` in pieces of 64 examples, whose activations stay in the cache."""
    import jax

    from numdl.analysis import curvature

    loss, params, batch = in_jax(p)
    operator = curvature.hessian(loss, params, batch, reduction="mean", chunk=64)
    return Run(lambda: operator(params), lambda v: numbers_of(jax.tree.leaves(v)))


def limit_product(p, *, kept=False):
    """jvp of grad, or jax.linearize once; in chunks where there are convolutions, whose kept activations are slower."""
    import jax

    loss, params, batch = in_jax(p)
    gradient = jax.grad(loss)
    if p["model"] == "lenet":
        program = chunked(gradient)
        return Run(lambda: program(params, batch, params), lambda v: numbers_of(jax.tree.leaves(v)))
    if not kept:
        return jax_product(p)
    push = jax.jit(lambda q, b: jax.linearize(lambda q: gradient(q, b), q)[1])(params, batch)
    apply = jax.jit(lambda push, v: push(v))
    return Run(lambda: apply(push, params), lambda v: numbers_of(jax.tree.leaves(v)))


def chunked(gradient, size=128):
    """Hessian-vector products of so many images at a time, in one program."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    @jax.jit
    def product(params, batch, v):
        count = len(batch[1])
        pieces = jax.tree.map(lambda leaf: leaf.reshape(-1, min(size, count), *leaf.shape[1:]), batch)

        def add(total, piece):
            part = jax.jvp(lambda q: gradient(q, piece), (params,), (v,))[1]
            return jax.tree.map(jnp.add, total, part), None

        total = lax.scan(add, jax.tree.map(jnp.zeros_like, v), pieces)[0]
        return jax.tree.map(lambda leaf: leaf / (count / min(size, count)), total)

    return product


def jax_product(p):
    """jvp of grad, as it is usually written."""
    import jax

    loss, params, batch = in_jax(p)
    program = jax.jit(lambda q, b, v: jax.jvp(lambda q: jax.grad(loss)(q, b), (q,), (v,))[1])
    return Run(lambda: program(params, batch, params), lambda v: numbers_of(jax.tree.leaves(v)))


def numdl_top(p):
    """`curvature.top_eigenvalues`: values with intervals and verdicts."""
    import jax

    from numdl.analysis import curvature

    loss, params, batch = in_jax(p)
    operator = curvature.hessian(loss, params, batch, reduction="mean")
    call = functools.partial(curvature.top_eigenvalues, operator, key=jax.random.key(0), tolerance=TOLERANCE)
    return Run(call, lambda found: flat(found.values))


def numdl_density(p):
    """`curvature.spectral_density` from one start more than the peers', per start."""
    import jax

    from numdl.analysis import curvature

    loss, params, batch = in_jax(p)
    operator = curvature.hessian(loss, params, batch, reduction="mean")
    settings = {"num_matvecs": p["steps"], "num_probes": 2}
    call = functools.partial(curvature.spectral_density, operator, key=jax.random.key(0), **settings)
    return Run(call, lambda found: [float(np.max(found.nodes))], 0.5)


def lanczos(p, steps, twice):
    """(start, parameters, batch) -> Ritz values and what bounds their error: one program, the basis as rows."""
    import jax
    import jax.numpy as jnp
    from jax import lax
    from jax.flatten_util import ravel_pytree

    loss, params, batch = in_jax(p)
    flat_params, unravel = ravel_pytree(params)
    gradient = jax.grad(loss)
    piecewise = chunked(gradient)

    def program(start, params, batch):
        if p["model"] == "mlp":
            push = jax.linearize(lambda q: gradient(q, batch), params)[1]
        else:
            push = functools.partial(piecewise, params, batch)

        def step(carry, k):
            basis, before, w, beta = carry
            v = w / beta
            basis = basis.at[k].set(v) if twice else basis
            w = ravel_pytree(push(unravel(v)))[0] - beta * before
            alpha = v @ w
            w = w - alpha * v
            for _ in range(2 * twice):
                w = w - (basis @ w) @ basis
            return (basis, v, w, jnp.linalg.norm(w)), (alpha, jnp.linalg.norm(w))

        basis = jnp.zeros((steps if twice else 1, start.size), start.dtype)
        first = basis, jnp.zeros_like(start), start, jnp.linalg.norm(start)
        first = (*first[:2], first[2] / first[3], jnp.ones_like(first[3]))
        (basis, *_), (alpha, beta) = lax.scan(step, first, jnp.arange(steps))
        values, weights = jnp.linalg.eigh(jnp.diag(alpha) + jnp.diag(beta[:-1], 1) + jnp.diag(beta[:-1], -1))
        vectors = weights[:, -TOP:].T @ basis if twice else basis
        return values[::-1], jnp.abs(beta[-1] * weights[-1])[::-1], vectors

    start = jax.random.normal(jax.random.key(0), flat_params.shape, jnp.float32)
    program = jax.jit(program)
    return lambda: program(start, params, batch)


def limit_top(p):
    """Lanczos until the five residuals are within the tolerance of the largest value: that many steps, fixed."""
    steps = min(LIMIT_STEPS[p["model"]], p["steps"])
    return Run(lanczos(p, steps, True), lambda found: flat(found[0][:TOP]))


def limit_density(p):
    """Lanczos without orthogonalization, which no density needs."""
    return Run(lanczos(p, p["steps"], False), lambda found: [float(found[0][0])])


def matfree(p, reortho, wanted):
    """matfree's Lanczos with the data as arguments."""
    import jax
    import jax.numpy as jnp
    from matfree import decomp, eig

    loss, params, batch = in_jax(p)
    start_from, unravel = jax.flatten_util.ravel_pytree(params)
    start = jax.random.normal(jax.random.key(0), start_from.shape, jnp.float32)

    def product(v, params, batch):
        tangent = jax.jvp(lambda q: jax.grad(loss)(q, batch), (params,), (unravel(v),))[1]
        return jax.flatten_util.ravel_pytree(tangent)[0]

    steps = min(40, start.size) if wanted == TOP else p["steps"]
    tridiagonalize = decomp.tridiag_sym(steps, reortho=reortho, materialize=True)
    solve = eig.eigh_partial(tridiagonalize) if reortho == "full" else None

    @jax.jit
    def program(v, params, batch):
        if solve:
            return solve(product, v, params, batch)[0]
        return jnp.linalg.eigvalsh(tridiagonalize(product, v, params, batch).J_small)

    return Run(lambda: program(start, params, batch), lambda found: sorted(flat(found), reverse=True)[:wanted])


# ---- torch ---------------------------------------------------------------------------------------------------------


def in_torch(p):
    """(network, loss, x, y)"""
    import torch
    from torch import nn

    class Flat(nn.Module):
        def forward(self, y):
            return y.permute(0, 2, 3, 1).flatten(1)

    layers = [Flat()] if p["model"] == "mlp" else []
    for i, kernel in enumerate(p["kernels"]):
        image = kernel.ndim == 4
        if not image and p["model"] == "lenet" and i == 2:
            layers.append(Flat())
        layer = nn.Conv2d(*kernel.shape[2:], 5) if image else nn.Linear(*kernel.shape)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy((kernel.transpose(3, 2, 0, 1) if image else kernel.T).copy()))
            layer.bias.zero_()
        layers.append(layer)
        layers += [nn.ReLU()] if i < len(p["kernels"]) - 1 else []
        layers += [nn.AvgPool2d(2)] if image else []
    torch.manual_seed(0)
    x, y = torch.from_numpy(p["batch"][0].transpose(0, 3, 1, 2).copy()), torch.from_numpy(p["batch"][1])
    return nn.Sequential(*layers), nn.CrossEntropyLoss(), x, y


def ours(p, tensors):
    """Tensors in torch's layout in ours: bias before kernel, the kernel (inputs, outputs) or HWIO."""
    arrays = [tensor.detach().numpy() for tensor in tensors]
    moved = [a.transpose(2, 3, 1, 0) if a.ndim == 4 else a.T for a in arrays]
    return numbers_of([leaf for pair in zip(moved[1::2], moved[::2]) for leaf in pair])


def pyhessian(p, wanted):
    """PyHessian; torch.eig, which torch removed, is put back for it."""
    import torch
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    def eig(matrix, eigenvectors=True):
        values, vectors = torch.linalg.eigh(matrix)
        return torch.stack([values, torch.zeros_like(values)], dim=1), vectors

    torch.eig = eig
    network, loss, x, y = in_torch(p)
    if wanted == "product":

        def anew():
            network.zero_grad()
            matrix = hessian(network, loss, data=(x, y), cuda=False)
            v = [parameter.detach() for parameter in matrix.params]
            return hessian_vector_product(matrix.gradsH, matrix.params, v)

        return Run(anew, functools.partial(ours, p))
    matrix = hessian(network, loss, data=(x, y), cuda=False)
    if wanted == "products":
        v = [parameter.detach().clone() for parameter in matrix.params]
        return Run(lambda: hessian_vector_product(matrix.gradsH, matrix.params, v), functools.partial(ours, p))
    if wanted == "top":
        return Run(
            lambda: matrix.eigenvalues(maxIter=100, tol=TOLERANCE, top_n=TOP)[0], lambda v: sorted(flat(v))[::-1]
        )
    return Run(lambda: matrix.density(iter=p["steps"], n_v=1)[0][0], lambda v: [float(max(v))])


def curvlinops(p, wanted):
    """curvlinops' operator with scipy's ARPACK, or its own density."""
    from curvlinops import HessianLinearOperator

    network, loss, x, y = in_torch(p)
    parameters = list(network.parameters())
    matrix = HessianLinearOperator(network, loss, parameters, [(x, y)], check_deterministic=False)
    if wanted == "product":
        v = [parameter.detach().clone() for parameter in parameters]
        return Run(lambda: matrix @ v, functools.partial(ours, p))
    if wanted == "top":
        from scipy.sparse.linalg import eigsh

        turned = matrix.to_scipy()
        call = functools.partial(eigsh, turned, k=TOP, which="LA", tol=TOLERANCE, return_eigenvectors=False)
        return Run(call, lambda v: sorted(flat(v))[::-1])
    from curvlinops.papyan2020traces.spectrum import lanczos_approximate_spectrum

    bounds = (-10.0, 10.0)
    return Run(lambda: lanczos_approximate_spectrum(matrix, p["steps"], boundaries=bounds)[0], lambda v: [1.0])


def torch_func(p):
    """torch.func: jvp of grad, the parameters as a dict."""
    import torch

    network, loss, x, y = in_torch(p)
    params = {name: value.detach() for name, value in network.named_parameters()}
    slope = torch.func.grad(lambda q: loss(torch.func.functional_call(network, q, (x,)), y))
    call = lambda: torch.func.jvp(slope, (params,), (params,))[1]  # noqa: E731
    return Run(call, lambda found: ours(p, list(found.values())))


def numbers_of(leaves):
    """The norm of every leaf, bias before kernel."""
    return [float(np.linalg.norm(np.asarray(leaf, np.float64))) for leaf in leaves]


def sides(wanted, **own):
    """numdl and the limit, then the torch peers."""
    torch = {"PyHessian": pyhessian, "curvlinops": curvlinops}
    return (
        *(Side(name, make) for name, make in own.items()),
        *(Side(name, functools.partial(make, wanted=wanted), "torch") for name, make in torch.items()),
    )


PRODUCT = (
    *sides(
        "product",
        numdl=numdl_product,
        **{
            "numdl, chunks of 64": numdl_in_chunks,
            "limit: jvp of grad or in chunks": limit_product,
            "jvp of grad": jax_product,
        },
    ),
    Side("torch.func, jvp of grad", torch_func, "torch"),
)
FURTHER = (
    Side("numdl, prepared", functools.partial(numdl_product, kept=True)),
    Side("limit: linearized or in chunks", functools.partial(limit_product, kept=True)),
    Side("PyHessian", functools.partial(pyhessian, wanted="products"), "torch"),
)
EIGENVALUES = sides(
    "top",
    numdl=numdl_top,
    **{"limit: Lanczos": limit_top, "matfree, 40 steps": functools.partial(matfree, reortho="full", wanted=TOP)},
)
DENSITY = sides(
    "density",
    numdl=numdl_density,
    **{"limit: Lanczos": limit_density, "matfree, no reortho": functools.partial(matfree, reortho="none", wanted=1)},
)
NAMES = {"mlp": "MLP 784-200-200-10", "lenet": "LeNet-5"}
STEPS = {"mlp": 100, "lenet": 10}
WORKLOADS = tuple(
    Workload(
        f"{what}, {NAMES[model]}",
        functools.partial(problem, model),
        group,
        sizes,
        {"examples": 16, **tiny},
        laws,
        agree,
    )
    for model in ("mlp", "lenet")
    for what, group, sizes, tiny, laws, agree in (
        ("Hessian product at new parameters", PRODUCT, {"examples": 2048}, {}, {"examples": 1}, 1e-3),
        ("further Hessian products", FURTHER, {"examples": 2048}, {}, {"examples": 1}, 1e-3),
        ("top 5 eigenvalues", EIGENVALUES, {"examples": 2048, "steps": 1000}, {"steps": 1000}, {}, 1e-2),
        ("density, one start", DENSITY, {"examples": 2048, "steps": STEPS[model]}, {"steps": 6}, {"steps": 1}, 2e-2),
    )
)
