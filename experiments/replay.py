"""A kept run again: the same config on the program as it is now, and what differs in versions, claims and numbers.

The process takes on what the run had: its precision, XLA's flags and as many CPUs, where there are so many. With these,
the versions and the program equal, every bit must be equal; nothing is written.
"""

import dataclasses
import os
from typing import NamedTuple

import numpy as np

from experiments import runner, usage
from experiments.fields import UsageError

# Facts about a run, not about what its numbers depend on.
TIMES = {"seconds", "finished", "files", "digest", "name", "format", "revision"}
TIMES |= {field.name for field in dataclasses.fields(usage.Usage)}


class Difference(NamedTuple):
    """One thing that is not as it was."""

    kind: str  # "version", "claim" or "number"
    what: str
    before: str
    now: str


class Replay(NamedTuple):
    """What came of running a kept run again."""

    name: str
    folder: str
    arrays: int  # compared
    claims: int
    differences: list

    @property
    def same(self):
        """Whether every number and every claim is as it was, whatever the versions."""
        return all(difference.kind == "version" for difference in self.differences)

    def summary(self):
        """For JSON."""
        about = {"name": self.name, "folder": self.folder, "same": self.same, "arrays": self.arrays}
        return about | {"claims": self.claims, "differences": [found._asdict() for found in self.differences]}

    def text(self):
        """For a terminal."""
        from numdl.reporting import printable

        lines = [f"{found.kind}: {found.what}: {found.before} -> {found.now}" for found in self.differences]
        verdict = "bit for bit as it was" if self.same else "not as it was"
        count = f"{self.arrays} arrays and {self.claims} claims"
        return "\n".join(map(printable, [*lines, f"{self.name}: {verdict}, {count} compared with {self.folder}"]))


def replay(folder):
    """Run a kept run again and compare; UsageError where it cannot be read or is of a config that is no more."""
    from numdl import checks, reporting

    try:
        kept = reporting.load(folder)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error
    name = runner.resolve(kept.name)
    config = restored(name, kept.config)
    _take_on(kept.environment)
    module = runner.load(name)
    try:
        record = module.run(config)
        claims = module.claims(config, record)
    except checks.Refused as error:
        raise UsageError(f"{name}: {error}") from error
    differences = [
        *_versions(kept, reporting.environment(), runner.source(name)),
        *_claims(kept.claims, claims),
        *_numbers(kept.arrays, reporting.arrays(record)),
    ]
    return Replay(name, str(kept.folder), len(kept.arrays), len(kept.claims), differences)


def restored(name, values):
    """The Config that a run's config.json describes; UsageError where the experiment no longer has it."""
    from numdl import reporting

    kind = runner.load(name).Config
    known = {field.name: getattr(kind(), field.name) for field in dataclasses.fields(kind)}
    apart = sorted(set(known) ^ set(values))
    if apart:
        where = "the kept config has" if apart[0] in values else "the kept config has not"
        raise UsageError(f"{name}: the experiment has changed since: {where} the field {apart[0]!r}")
    try:
        config = kind(**{field: _value(value, known[field]) for field, value in values.items()})
        same = reporting.digest(config) == reporting.digest(values)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name}: the kept config is refused: {error}") from error
    if not same:
        raise UsageError(f"{name}: the kept config cannot be written as its Config any more")
    return config


def _value(value, default):
    """As a frozen config has it: lists are tuples, and strict JSON writes numbers that are not finite as texts."""
    if isinstance(value, list):
        inner = default[0] if isinstance(default, tuple) and default else None
        return tuple(_value(entry, inner) for entry in value)
    return float(value) if isinstance(default, float) and isinstance(value, str) else value


def _take_on(environment):
    """The run's precision, flags and number of CPUs, before a device is started; what was started stays."""
    import jax

    flags = environment.get("xla_flags")
    if isinstance(flags, str):
        os.environ["XLA_FLAGS"] = flags
    jax.config.update("jax_enable_x64", bool(environment.get("x64")))
    cpus = environment.get("cpus")
    if isinstance(cpus, int) and cpus > 0 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cpus])


def _versions(kept, now, source):
    for what in sorted((set(kept.environment) | set(now)) - TIMES):
        before, after = kept.environment.get(what, "nothing"), now.get(what, "nothing")
        if before != after:
            yield Difference("version", what, str(before), str(after))
    path = kept.folder / "source.py"
    old, new = path.read_text(encoding="utf-8") if path.is_file() else "", source.read_text(encoding="utf-8")
    if runner.program(old) != runner.program(new):
        yield Difference("version", "the experiment's program", str(path), str(source))


def _claims(before, now):
    found = {claim.claim: claim for claim in now}
    kept = {claim.claim: claim for claim in before}
    for text in [*kept, *(text for text in found if text not in kept)]:
        old, new = kept.get(text), found.get(text)
        if old is None or new is None:
            yield Difference("claim", text, "claimed" if old else "nothing", "claimed" if new else "nothing")
        elif not _equal_claims(old, new):
            yield Difference("claim", text, _said(old), _said(new))


def _equal_claims(old, new):
    """Equal in every number, nan being equal to itself."""
    numbers = [np.array([c.expected, c.measured, c.uncertainty, c.tolerance]) for c in (old, new)]
    return old.holds == new.holds and old.relation == new.relation and np.array_equal(*numbers, equal_nan=True)


def _said(claim):
    return f"{'holds' if claim.holds else 'fails'}, {claim.measured!r} against {claim.expected!r}"


def _numbers(before, now):
    for path in sorted({*before, *now}):
        if path not in before or path not in now:
            yield Difference("number", path, *("there" if path in side else "not there" for side in (before, now)))
        elif _form(before[path]) != _form(now[path]):
            yield Difference("number", path, _form(before[path]), _form(now[path]))
        elif before[path].tobytes() != np.ascontiguousarray(now[path]).tobytes():
            yield Difference("number", path, *_apart(before[path], now[path]))


def _form(array):
    return f"{array.dtype}{list(array.shape)}"


def _apart(before, now):
    """How many entries differ, and by how much at most, relative to the largest that is finite."""
    differing = np.asarray(before != now) & ~(_nan(before) & _nan(now))
    count = f"{int(differing.sum())} of {before.size} entries"
    if before.dtype.kind not in "fc" or not differing.any():
        return count, "others" if differing.any() else "other bits of equal values"
    finite = np.isfinite(before) & np.isfinite(now)
    said = (
        "" if finite[differing].all() else f", {int((differing & ~finite).sum())} of them not finite in one of the runs"
    )
    if not finite[differing].any():
        return count + said, "others"
    apart = np.abs(before.astype(complex)[differing & finite] - now[differing & finite])
    scale = max(float(np.max(np.abs(before[np.isfinite(before)]))), np.finfo(float).tiny)
    return count + said, f"apart by {float(np.max(apart)) / scale:.2g} of the largest at most"


def _nan(array):
    return np.isnan(array) if array.dtype.kind in "fc" else np.zeros(array.shape, bool)
