"""Claims of the usual kinds: a mean, a mean ratio or one number is near another, no z score is beyond its limit.

A mean is that of independent samples, one for each seed; its standard error is the claim's uncertainty.
"""

import numpy as np

from numdl.reporting import Claim
from numdl.statistics import mean_and_error, z_limit


def near(text, source, origin, expected, samples, tolerance, tolerance_from, relation="==", note="", errors=0.0):
    """The claim that the samples' mean is near a number, or on one side of it.

    `errors` standard errors of the mean are allowed beside the tolerance.
    """
    mean = mean_and_error(np.asarray(samples, np.float64))
    return Claim(
        text,
        source,
        origin=origin,
        expected=float(expected),
        measured=float(mean.mean),
        uncertainty=float(mean.stderr),
        tolerance=float(errors * mean.stderr + tolerance),
        tolerance_from=tolerance_from,
        relation=relation,
        note=note,
    )


def near_ratio(text, source, origin, expected, ratios, tolerance, tolerance_from, relation="==", note=""):
    """The claim that the geometric mean of positive ratios is near a number, or on one side of it."""
    logs = mean_and_error(np.log(ratios))
    mean = float(np.exp(logs.mean))
    return Claim(
        text,
        source,
        origin=origin,
        expected=float(expected),
        measured=mean,
        uncertainty=mean * float(logs.stderr),
        tolerance=float(tolerance),
        tolerance_from=tolerance_from,
        relation=relation,
        note=note,
    )


def one_number(text, source, origin, expected, measured, tolerance=0.0, tolerance_from="exact", relation="==", note=""):
    """The claim that one number, which has no error of its own, is near another, or on one side of it."""
    return Claim(
        text,
        source,
        origin=origin,
        expected=float(expected),
        measured=float(measured),
        uncertainty=0.0,
        tolerance=float(tolerance),
        tolerance_from=tolerance_from,
        relation=relation,
        note=note,
    )


def within(text, source, z, limit=None, why="one false alarm in a million"):
    """The claim that no |measured - predicted| is beyond the limit, in standard errors; None: that of all of z."""
    z = np.asarray(z)
    limit = z_limit(z.size) if limit is None else limit
    return one_number(text, source, "exact", limit, np.abs(z).max(), tolerance_from=why, relation="<=")


def in_errors(text, source, z, limit=None):
    """`within` of a text that the sentence is added to."""
    return within(f"{text}: largest |measured - predicted| in standard errors", source, z, limit)
