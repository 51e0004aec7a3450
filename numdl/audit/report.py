"""The report: a verdict, a probability, the findings in the order of what they explain, and what they rest on."""

import dataclasses
from typing import Any

from numdl.audit.evidence import Evidence, Finding


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """What `examine` found."""

    verdict: str  # "will train" | "trains badly" | "will not train"
    probability: float  # that it will train
    findings: tuple[Finding, ...]  # the cause before its symptoms
    unseen: tuple[tuple[str, tuple[str, ...]], ...]  # (view that was not given, findings it would have excluded)
    evidence: Evidence
    features: dict[str, float]  # what the probability is a function of
    case: Any  # what was examined: `repair` and `prove` need it
