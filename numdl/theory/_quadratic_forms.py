"""PREDICTED moments of products of four quadratic forms of a standard normal vector, from their joint cumulants.

    a = z'A z + alpha, ...,    z ~ N(0, I)
    kappa(a) = tr A + alpha,    kappa(a, b) = 2 tr AB,    kappa(a, b, c) = 8 tr ABC
    kappa(a, b, c, d) = 16 (tr ABCD + tr ABDC + tr ACBD),    E[a b c d] = sum over partitions of products of cumulants

Symmetric matrices, stacked along leading axes. Source: Magnus 1978, Statistica Neerlandica 32.
"""

import numpy as np

PAIRINGS = ((0, 1, 2, 3), (0, 2, 1, 3), (0, 3, 1, 2))


def fourth_moment(forms, shifts):
    """E[a b c d]: four stacks [..., N, N] that broadcast, and what is added to each form, scalars or [...]."""
    first = [np.trace(form, axis1=-2, axis2=-1) + shift for form, shift in zip(forms, shifts, strict=True)]
    pairs = {(i, j): 2 * _trace(forms[i], forms[j]) for i in range(4) for j in range(i + 1, 4)}
    # tr ABC and tr ABCD are traces of two products, so that no product is formed twice.
    ab, cd = forms[0] @ forms[1], forms[2] @ forms[3]
    triples = [8 * _trace(forms[1] @ forms[2], forms[3]), 8 * _trace(forms[0], cd)]
    triples += [8 * _trace(ab, forms[3]), 8 * _trace(ab, forms[2])]
    ac, bd = forms[0] @ forms[2], forms[1] @ forms[3]
    total = 16 * (_trace(ab, cd) + _trace(ab, np.swapaxes(cd, -1, -2)) + _trace(ac, bd))
    total = total + sum(triples[i] * first[i] for i in range(4))
    for i, j, k, m in PAIRINGS:
        one, two = pairs[i, j], pairs[k, m]
        total = total + one * two + one * first[k] * first[m] + two * first[i] * first[j]
    return total + first[0] * first[1] * first[2] * first[3]


def _trace(a, b):
    return np.einsum("...ij,...ji->...", a, b)
