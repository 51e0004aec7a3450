"""The problems of the curvature benchmark, in NumPy, and what PyHessian and curvlinops make of them, in torch.

PYTHON benchmarks/_curvature_peers.py PEER MODEL MEASURE STEPS       prints one line of JSON; needs torch, not numdl
"""

import json
import sys
import time

import numpy as np

IMAGES, CLASSES = 2048, 10
SIZES = {"mlp": (784, 200, 200, 10), "lenet": ((5, 5, 1, 6), (5, 5, 6, 16), (256, 120), (120, 84), (84, 10))}


def images():
    """2048 images [N, 28, 28, 1] and labels: ten smooth patterns with noise."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, CLASSES, IMAGES)
    patterns = np.kron(rng.random((CLASSES, 7, 7)), np.ones((1, 4, 4)))
    pixels = 0.6 * patterns[labels] + 0.4 * rng.random((IMAGES, 28, 28))
    return pixels[..., None].astype(np.float32), labels


def weights(model):
    """Kernels (inputs, outputs) or (height, width, inputs, outputs) of variance 2 / fan-in; biases are zero."""
    rng = np.random.default_rng(1)
    sizes = SIZES[model]
    shapes = list(zip(sizes[:-1], sizes[1:])) if model == "mlp" else sizes
    return [(rng.normal(size=s) * np.sqrt(2 / np.prod(s[:-1]))).astype(np.float32) for s in shapes]


def torch_network(model):
    """The same network as a torch module, images (N, 1, 28, 28); torch flattens channels first: kernels are moved."""
    import torch
    from torch import nn

    kernels = weights(model)
    layers = [nn.Flatten()] if model == "mlp" else []
    for i, kernel in enumerate(kernels):
        if kernel.ndim == 4:
            layer = nn.Conv2d(kernel.shape[2], kernel.shape[3], 5)
            value = kernel.transpose(3, 2, 0, 1)
            layers += [layer, nn.ReLU(), nn.AvgPool2d(2)]
        else:
            if model == "lenet" and i == 2:
                layers.append(nn.Flatten())
                kernel = kernel.reshape(4, 4, 16, -1).transpose(2, 0, 1, 3).reshape(256, -1)
            layer, value = nn.Linear(*kernel.shape), kernel.T
            layers += [layer] + ([nn.ReLU()] if i < len(kernels) - 1 else [])
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(np.ascontiguousarray(value)))
            layer.bias.zero_()
    return nn.Sequential(*layers)


def pyhessian(network, x, y, measure, steps):
    """PyHessian's power iteration or density; the function that torch removed is put back for it."""
    import torch
    from pyhessian import hessian

    def eig(matrix, eigenvectors=True):
        values, vectors = torch.linalg.eigh(matrix)
        return torch.stack([values, torch.zeros_like(values)], dim=1), vectors

    torch.eig = eig
    matrix = hessian(network, torch.nn.functional.cross_entropy, data=(x, y), cuda=False)
    if measure == "top":
        return lambda: matrix.eigenvalues(maxIter=steps, tol=1e-3, top_n=5)[0]
    return lambda: matrix.density(iter=steps, n_v=1)[0][0]


def curvlinops(network, x, y, measure, steps):
    """curvlinops' operator with scipy's ARPACK, or its own density."""
    import torch
    from curvlinops import HessianLinearOperator
    from curvlinops.papyan2020traces.spectrum import lanczos_approximate_spectrum
    from scipy.sparse.linalg import eigsh

    loss, parameters = torch.nn.CrossEntropyLoss(), list(network.parameters())
    matrix = HessianLinearOperator(network, loss, parameters, [(x, y)], check_deterministic=False)
    if measure == "top":
        turned = matrix.to_scipy()
        return lambda: eigsh(turned, k=5, which="LA", tol=1e-3, return_eigenvectors=False).tolist()
    return lambda: lanczos_approximate_spectrum(matrix, steps, boundaries=(-10.0, 10.0))[0].tolist()


def main():
    """Time one peer in this process."""
    import torch

    peer, model, measure, steps = *sys.argv[1:4], int(sys.argv[4])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = images()
    x, y = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()), torch.from_numpy(y)
    call = {"PyHessian": pyhessian, "curvlinops": curvlinops}[peer](torch_network(model), x, y, measure, steps)
    if model == "mlp":
        call()
    begin = time.process_time()
    values = call()
    seconds = time.process_time() - begin
    found = sorted((float(v) for v in values), reverse=True)[:5]
    print(json.dumps({"seconds": seconds, "values": found}))


if __name__ == "__main__":
    main()
