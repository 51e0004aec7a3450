"""The report: a verdict, a probability, the findings in the order of what they explain, and what they rest on."""

import dataclasses
import functools
import pathlib
from typing import Any

from numdl import checks
from numdl.audit import _proof, _settings, remedies
from numdl.audit._shown import tables
from numdl.audit.evidence import Evidence, Finding
from numdl.typing import StrPath


@dataclasses.dataclass(frozen=True, repr=False)
class Report:
    """What `examine` found."""

    verdict: str  # "will train" | "trains badly" | "will not train"
    probability: float  # that it will train, by a law fitted on the diagnosis benchmark (calibration.json)
    findings: tuple[Finding, ...]  # the cause before its symptoms
    unseen: tuple[tuple[str, tuple[str, ...]], ...]  # (view that was not given, findings it would have excluded)
    evidence: Evidence
    features: dict[str, float]  # what the probability is a function of
    case: Any  # what was examined: `repair` and `prove` need it

    def __repr__(self):
        return tables.text(self)

    def _repr_html_(self):
        return tables.notebook(self)

    def save(self, path: StrPath, *, proof: Any = None, repair: Any = None) -> pathlib.Path:
        """Write the report as a page (.html) or as data (.json), whole or not at all.

        Parameters
        ----------
        path : path             the file; its ending says which
        proof : Proof or None   of `prove`, shown and stored with it
        repair : Repair or None of `repair`: its changes are listed
        Returns
        -------
        Path                    the same
        Raises
        ------
        ValueError, TypeError   another ending, no path
        OSError                 the file cannot be written
        """
        return tables.save(self, checks.path("path", path), proof, repair)

    def repair(self) -> remedies.Repair:
        """What to change, and the changed setting: parameters, optimizer, rate, scales, loss or head."""
        return self._repair

    @functools.cached_property
    def _repair(self):
        with _settings.ours():
            return remedies.repair(self.case, self.evidence, self.findings)

    def prove(self, steps: int, *, seeds: int = 2) -> _proof.Proof:
        """MEASURED: the network as it was and as repaired, trained side by side, beside the forecast.

        Parameters
        ----------
        steps, seeds : int          of each training, >= 1
        Returns
        -------
        Proof                       sick, repaired [S, steps], forecast, losses on examples not trained on, helped
        Raises
        ------
        ValueError, TypeError       steps or seeds below 1 or not whole
        """
        steps, seeds = checks.whole("steps", steps), checks.whole("seeds", seeds)
        repair = self.repair()
        with _settings.ours():
            return _proof.prove(self.case, repair, steps, seeds=seeds)
