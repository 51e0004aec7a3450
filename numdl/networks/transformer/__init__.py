"""Transformers: attention and MLP blocks with every usual placement of norms and gains of skips; three readouts.

    pre       y' = a y + g f(norm(y))             post   y' = norm(a y + g f(y))
    sandwich  y' = a y + g norm(f(norm(y)))       none   y' = a y + g f(y)

f is multi-head attention, then (unless mlp_width is None) an MLP; a decoder's block looks at the encoder in between.
`blocks` makes the stack; `network` reads token matrices, `language_model` token numbers, `vision` pictures,
`encoder_decoder` pairs of token numbers. A state is a token matrix [N, T, d] after a *sublayer*, so that depth counts
as in theory.transformer; a state before the first block is the embedding. The depth runs under one scan. No biases but
those of layer normalization. Parameters: {"blocks", "readout"}, with "embedding", "positions", "final" where there are.

    >>> import jax, jax.numpy as jnp
    >>> from numdl.networks import initializers, transformer
    >>> unit = initializers.variance_scaling(1.0)
    >>> laws = {"query_key_weights": unit, "value_weights": unit, "mlp_weights": unit}
    >>> stack = transformer.blocks(
    ...     depth=3, heads=2, head_width=4, mlp_width=16, activation=jax.nn.relu, norm="pre", mask="causal", **laws
    ... )
    >>> model = transformer.language_model(stack, vocabulary=11, width=8, embedding_variance=1.0, readout_weights=unit)
    >>> x = jnp.zeros((2, 5), int)
    >>> model.apply(model.init(jax.random.key(0), x), x).shape
    (2, 5, 11)
"""

from numdl.networks.transformer._admin import admin
from numdl.networks.transformer._blocks import Blocks
from numdl.networks.transformer._building import MASKS, NORMALIZATIONS, NORMS, SCALES, SKIPS, blocks
from numdl.networks.transformer._readouts import POSITIONS, encoder_decoder, language_model, network, vision

__all__ = [
    "MASKS",
    "NORMALIZATIONS",
    "NORMS",
    "POSITIONS",
    "SCALES",
    "SKIPS",
    "Blocks",
    "admin",
    "blocks",
    "encoder_decoder",
    "language_model",
    "network",
    "vision",
]
