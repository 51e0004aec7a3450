"""What a condition saw: the numbers of a finding, and words for its sentence."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Seen:
    """A condition that holds."""

    severity: str
    measured: float
    threshold: float
    predicted: float = math.nan
    where: str = ""
    more: str = ""
    uncertainty: float = 0.0
    weight: float = 0.5  # of the failure, within its severity: 0 to 1
    law: str = ""  # Var W to draw weights with

    def text(self, name):
        value = getattr(self, name)
        if isinstance(value, str):
            return value
        return "unknown" if not math.isfinite(value) and name != "measured" else f"{value:.3g}"


def factor(log):
    """e^log as words: 'x0.001', 'x1e+12'."""
    return f"x{math.exp(log):.3g}" if abs(log) < 600 else f"e^{log:.0f}"


def certain(where, more, measured=1.0, threshold=0.0, **rest):
    """A Seen that is algebra."""
    return Seen("certain", measured, threshold, where=where, more=more, **{"weight": 1.0, **rest})
