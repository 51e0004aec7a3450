"""Claims of the two kinds that most experiments make: a mean is near a number, and no z score is beyond its limit."""

import numpy as np

from numdl.reporting import Claim
from numdl.statistics import mean_and_error, z_limit


def near(text, source, origin, expected, samples, tolerance, tolerance_from, relation="==", note=""):
    """The claim that the samples' mean is near a number, or on one side of it."""
    mean = mean_and_error(np.asarray(samples, np.float64))
    return Claim(
        text,
        source,
        origin=origin,
        expected=float(expected),
        measured=float(mean.mean),
        uncertainty=float(mean.stderr),
        tolerance=float(tolerance),
        tolerance_from=tolerance_from,
        relation=relation,
        note=note,
    )


def in_errors(text, source, z, limit=None):
    """The claim that no |measured - predicted| is beyond the limit, in standard errors; None: that of all of z."""
    z = np.asarray(z)
    return Claim(
        f"{text}: largest |measured - predicted| in standard errors",
        source,
        origin="exact",
        expected=float(z_limit(z.size) if limit is None else limit),
        measured=float(np.abs(z).max()),
        uncertainty=0.0,
        tolerance=0.0,
        tolerance_from="one false alarm in a million",
        relation="<=",
    )
