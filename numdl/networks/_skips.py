"""Rules for the depth of a residual stream, as numbers: what skips, branches and their first weights are multiplied by.

Networks of transformer blocks know them all, residual networks those that leave the skip at 1.
"""

# (gain of the stream, gain of a branch, factor of a branch's first deviations, of its last) of N blocks of s sublayers.
SKIPS = {
    "unit": lambda n, s: (1.0, 1.0, 1.0, 1.0),
    "depth": lambda n, s: (1.0, (n * s) ** -0.5, 1.0, 1.0),
    "deepnorm": lambda n, s: ((2 * n) ** 0.25, 1.0, (8 * n) ** -0.25, (8 * n) ** -0.25),
    "gate": lambda n, s: (1.0, 1.0, 1.0, 1.0),
    "admin": lambda n, s: (1.0, 1.0, 1.0, 1.0),
    "fixup": lambda n, s: (1.0, 1.0, (n * s) ** -0.5, 0.0),
    "t_fixup": lambda n, s: (1.0, 1.0, 0.67 * n**-0.25, 0.67 * n**-0.25),
    "t_fixup_decoder": lambda n, s: (1.0, 1.0, (9 * n) ** -0.25, (9 * n) ** -0.25),
}
