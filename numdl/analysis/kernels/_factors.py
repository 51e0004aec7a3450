"""MEASURED: derivatives of one example's outputs, in factors: inputs and cotangents of a layer instead of its Jacobian.

A weight W that enters one contraction only, z = a W, has the gradient a' d, where d is the cotangent of z. So

    <a1' d1, a2' d2> = (a1 . a2) (d1 . d2)

and the Jacobian with respect to W is never made. Where a weight is used at several positions (a convolution, a token, a
step of a recurrence) its gradient is a sum over them and is made: it is no larger than the weight. All other leaves are
differentiated as they are.
"""

import jax
import jax.numpy as jnp

from numdl.analysis import _site_values


def derivatives(traced, sites, selected, leaves, x, wide):
    """Per-site (inputs [parts, fan_in], cotangents [k, parts, fan_out]) and rows [k, P] of all else, of one example.

    A site with several positions contributes to the rows. `leaves` of the parameters, `x` [1, ...]; `selected` are the
    leaves to be differentiated as they are. Returns (outputs [k], factors, {leaf: rows}).
    """
    steps = {id(site.step): index for index, site in enumerate(sites)}
    shapes = [site.lengths + tuple(site.program.avals[site.step.writes[0]].shape) for site in sites]
    dtypes = [site.program.avals[site.step.writes[0]].dtype for site in sites]
    probes = {index: jnp.zeros(shape, dtype) for index, (shape, dtype) in enumerate(zip(shapes, dtypes))}

    def forward(chosen, probes):
        values = [chosen.get(index, leaf) for index, leaf in enumerate(leaves)] + jax.tree.leaves(x)
        outputs, inputs = _site_values.run(traced.program, values, steps, probes, traced.constants)
        return outputs[0].ravel(), inputs

    chosen = {index: leaves[index] for index in selected}
    outputs, pull, inputs = jax.vjp(forward, chosen, probes, has_aux=True)
    jacobian, cotangents = jax.vmap(pull)(jnp.eye(outputs.size, dtype=outputs.dtype))
    rows = {index: jacobian[index].reshape(outputs.size, -1).astype(wide) for index in selected}
    factors = {}
    for index, site in enumerate(sites):
        a, d = (
            _site_values.inputs(site, inputs[index].astype(wide)),
            _site_values.cotangents(site, cotangents[index].astype(wide)),
        )
        if site.positions == 1:
            factors[index] = a[:, 0], d[:, :, 0]
        else:
            rows[site.leaf] = jnp.einsum("pti,kpto->kpio", a, d, precision="highest").reshape(outputs.size, -1)
    return outputs, factors, rows


def plain(traced, leaves, x):
    """The outputs [k] of one example, x [1, ...]."""
    outputs, _ = _site_values.run(traced.program, [*leaves, *jax.tree.leaves(x)], {}, {}, traced.constants)
    return outputs[0].ravel()
