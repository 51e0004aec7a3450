"""PREDICTED: transformers at initialization: softmax attention, the residual stream, gradients, the first loss.

    softmax_moments, joint_softmax_moments    exact means over Gaussian scores; softmax_limits, least_entropy
    attention_map, stream, gram_stream        length and correlation of tokens through attention, MLPs and norms
    gradients, weight_gradients               backwards, by depth; queries and keys beside values
    exponents, deepnorm, admin, initial_loss  what rules for depth promise; the loss before the first step

T tokens that are alike: mean square q and pairwise correlation c. Gaussian weights, infinite width, no biases; gains
are products of fan_in times entry variances. Depth counts sublayers: a block is an attention and a ReLU MLP.
Everything is float64 NumPy, natural logarithms.

    >>> from numdl.theory import transformer
    >>> made = transformer.attention_map(q=1.0, c=0.0, tokens=16, score_gain=1.0, value_gain=1.0)
    >>> made.q.round(4).item(), made.c.round(4).item(), made.entropy.round(4).item()
    (0.1325, 0.4719, 2.357)
    >>> transformer.initial_loss(vocabulary=50257, logit_variance=0.3072).round(3).item()
    10.979
"""

from numdl.theory.transformer._gradients import Gradients, WeightGradients, gradients, weight_gradients
from numdl.theory.transformer._rules import DeepNorm, Exponents, admin, deepnorm, exponents, gram_stream
from numdl.theory.transformer._softmax import (
    JointMoments,
    Limits,
    SoftmaxMoments,
    initial_loss,
    joint_softmax_moments,
    least_entropy,
    softmax_limits,
    softmax_moments,
)
from numdl.theory.transformer._stream import AttentionMap, Stream, attention_map, stream

__all__ = [
    "AttentionMap",
    "DeepNorm",
    "Exponents",
    "Gradients",
    "JointMoments",
    "Limits",
    "SoftmaxMoments",
    "Stream",
    "WeightGradients",
    "admin",
    "attention_map",
    "deepnorm",
    "exponents",
    "gradients",
    "gram_stream",
    "initial_loss",
    "joint_softmax_moments",
    "least_entropy",
    "softmax_limits",
    "softmax_moments",
    "stream",
    "weight_gradients",
]
