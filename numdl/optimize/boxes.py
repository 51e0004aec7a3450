"""Boxes around things in pictures: how much two of them overlap, to judge a localization and to train one.

A box is four numbers, two opposite corners in any order: (row, column, row, column), any unit. Its rows and columns lie
between the smaller and the larger of each.

>>> import jax.numpy as jnp
>>> found, true = jnp.asarray([0.0, 0.0, 2.0, 2.0]), jnp.asarray([0.0, 1.0, 2.0, 3.0])
>>> print(f"{intersection_over_union(found, true):.4f}, {generalized(found, true):.4f}")  # 2 of 6; no hull left over
0.3333, 0.3333
"""

import jax.numpy as jnp
from jaxtyping import Array, ArrayLike, Float

from numdl import checks, precision


def intersection_over_union(
    boxes: Float[ArrayLike, "*examples 4"], targets: Float[ArrayLike, "*examples 4"]
) -> Float[Array, "*examples"]:
    """The area that both boxes share over the area that either has (Jaccard index): 1 if equal, 0 if apart.

        |A and B| / |A or B|

    For edges that are off by little it is 1 - sum |d_edge| / extent: rows over the height, columns over the width.

    Parameters
    ----------
    boxes, targets : array [..., 4]    (row, column, row, column) of two opposite corners
    Returns
    -------
    array [...]                 in [0, 1]; nan where neither box has an area, and where a corner is not finite
    Raises
    ------
    ValueError, TypeError       a last axis that is not 4, shapes that differ, not floating-point numbers
    Source: Everingham et al. 2010, "The Pascal visual object classes challenge", section 4.2.    Experiment: f8.
    """
    both, either, _ = _areas(*_checked(boxes, targets))
    return both / either


def generalized(
    boxes: Float[ArrayLike, "*examples 4"], targets: Float[ArrayLike, "*examples 4"]
) -> Float[Array, "*examples"]:
    """The intersection over union less the share of the smallest box around both that neither fills (GIoU).

        |A and B| / |A or B| - (|C| - |A or B|) / |C|,    C the hull

    It has a slope where the boxes are apart, so that 1 - generalized is a loss from any start.

    Parameters
    ----------
    boxes, targets : array [..., 4]    (row, column, row, column) of two opposite corners
    Returns
    -------
    array [...]                 in [-1, 1]; nan where neither box has an area, and where a corner is not finite
    Raises
    ------
    ValueError, TypeError       a last axis that is not 4, shapes that differ, not floating-point numbers
    Source: Rezatofighi et al. 2019, arXiv:1902.09630, algorithm 2.    Experiment: f8.
    """
    both, either, hull = _areas(*_checked(boxes, targets))
    return both / either - (hull - either) / hull


def _checked(boxes, targets):
    boxes, targets = checks.floating("boxes", boxes), checks.floating("targets", targets)
    checks.shape("boxes", boxes, (*boxes.shape[:-1], 4))
    checks.shape("targets", targets, boxes.shape)
    dtype = precision.wide(jnp.result_type(boxes, targets))  # areas of half precision end at 65504
    return boxes.astype(dtype), targets.astype(dtype)


def _areas(boxes, targets):
    """Of the intersection, of the union, of the hull."""
    (low, high), (least, most) = _corners(boxes), _corners(targets)
    both = _area(jnp.maximum(low, least), jnp.minimum(high, most))
    either = _area(low, high) + _area(least, most) - both
    return both, either, _area(jnp.minimum(low, least), jnp.maximum(high, most))


def _corners(boxes):
    """The corner of the smaller and that of the larger numbers, [..., 2] each."""
    first, second = boxes[..., :2], boxes[..., 2:]
    return jnp.minimum(first, second), jnp.maximum(first, second)


def _area(low, high):
    return jnp.prod(jnp.maximum(high - low, 0), axis=-1)
