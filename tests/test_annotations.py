"""Shapes in signatures are true: the annotated modules run under beartype, in a process of their own."""

import subprocess
import sys

CODE = """
from unittest import mock

import jax, jax.numpy as jnp, numpy as np
from jaxtyping import TypeCheckError, install_import_hook

names = ("propagation", "jacobian", "information", "generalization", "descent")
modules = ["numdl.theory.propagation", *(f"numdl.analysis.{name}" for name in names)]
with install_import_hook(modules, "beartype.beartype"):
    from numdl.analysis import descent, generalization, information, jacobian, propagation
    from numdl.theory import propagation as predicted
from numdl import activations
from numdl.networks import dense

physics = dict(activation=activations.tanh, weight_variance=1.0, bias_variance=0.1)
network = dense.network(widths=(4, 5, 5, 5, 2), **physics)
key, x = jax.random.key(0), jnp.ones((3, 4))
assert propagation.lengths(key, network, x, seeds=2).shape == (2, 3)
assert propagation.correlations(key, network, jnp.ones((3, 2, 4)), seeds=2).shape == (2, 3, 3)
assert propagation.covariances(key, network, x, seeds=2).shape == (2, 3, 3, 3)
assert jacobian.spectra(key, network, x[:1], seeds=2, start=0, stop=3).shape == (2, 4)
assert propagation.depth_scale(jnp.exp(-jnp.ones((3, 1)) * jnp.arange(5.0)), start=1, stop=5).slopes.shape == (3,)
labels = jnp.array([0, 1, 1])
assert information.binned(x, labels, widths=[0.5, 1.0]).inputs.shape == (2,)
assert generalization.margins(x, labels).margin.shape == (3,)
assert descent.mode_strength([x, x.T], left=x[:, :3], right=x[:, :3]).shape == (3,)
assert predicted.lengths(1.0, depth=3, **physics).shape == (3,)
assert predicted.correlations([0.1, 0.2], depth=3, q=0.5, **physics).shape == (2, 3)

# A wrong shape, and nothing else wrong, must be refused, or the hook does nothing.
with mock.patch.object(predicted._maps, "lengths", lambda *a: np.zeros((2, 2))):
    try:
        predicted.lengths(1.0, depth=3, **physics)
    except TypeCheckError:
        print("refused")
"""


def test_annotated_shapes_hold():
    ran = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert ran.stdout == "refused\n", ran.stderr
