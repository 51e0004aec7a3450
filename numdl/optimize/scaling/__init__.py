"""Maximal update parametrization for any pytree: roles by tracing, then initialization and rates per leaf.

    table = scaling.roles(build, (64, 256), x)                       # build(width) -> (apply, params)
    apply, params = build(256)
    params = scaling.rescale(params, table, "mup")                   # once, before training
    optimizer = optax.chain(optax.adam(rate), scaling.multipliers(table, "mup", optimizer="adam"))

The narrow width is where everything stays as it is: a rate that is good there is good at every width. With m_in, m_out
the ratios of a leaf's inputs and outputs to the narrow network's, relative to the narrow network,

    rule                            deviation                             rate of adam      rate of sgd
    standard                        m_in^(-1/2)                           1                 1
    ntk                             m_in^(-1/2)                           m_in^(-1/2)       1 / m_in
    standard with rate per layer    m_in^(-1/2)                           1 / m_in          m_out^(1/2) / m_in
    mup, spectral                   m_in^(-1/2) min(1, (m_out/m_in)^1/2)  1 / m_in          m_out / m_in

Under mup and spectral what makes queries (or keys) whose heads widen by m gets m^(p - 1) on top, deviation and Adam
rate, where scores are over the power p of the width: at 1/sqrt(k) they are as at 1/k. That is a weight with its bias,
the queries' entries of a fused one, or the gain of the queries' norm, whatever the scores are proportional to and
nothing else depends on, as followed through the call. What cannot be undone is noted.
A bias, a scale and an embedding that is looked up have m_in = 1. A weight W = sigma w is the same network as w with
other rates, so that no multiplier in the forward pass is needed, but for tied embeddings. Whether `apply` holds further
multipliers (1/sqrt(n) after a product) is not seen: `analysis.scaling.coordinate_check` measures whether all is right.
"""

from numdl.optimize.scaling._roles import Roles, roles
from numdl.optimize.scaling._rules import RULES, multipliers, rescale

__all__ = ["RULES", "Roles", "multipliers", "rescale", "roles"]
